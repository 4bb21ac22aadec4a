//! The short way of a stream's chunks: from the upstream's socket to the client's, past hyper on both sides.
//!
//! Only whole chunks of data take it. Everything else is hyper's, which judges the answer: heads, a chunk of which a part is
//! still on its way, one with an extension, the last one, whatever is wrong, the end. It does not miss what it was not
//! given: between two chunks its decoder remembers nothing, and `Guard` knows when it stands there.

use std::cell::RefCell;
use std::mem::MaybeUninit;
use std::task::Poll;

use http::{header, response, StatusCode, Version};

use super::call::{State, RESET_WITHIN};
use super::exec::Exec;
use super::framing::{At, Guard};
use super::io::Gate;
use super::upstream::Upstream;

const MOST_OF_SOCKET: usize = 16 * 1024;

struct Scratch {
    read: [MaybeUninit<u8>; MOST_OF_SOCKET],
    data: Vec<u8>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = const {
        RefCell::new(Scratch { read: [MaybeUninit::uninit(); MOST_OF_SOCKET], data: Vec::new() })
    };
}

/// Relay what the socket has, after `taken` bytes of the body came through hyper. False: there may be something for hyper.
pub fn relay(state: &mut State, gate: &RefCell<Gate>, taken: u64, exec: &Exec) -> bool {
    SCRATCH.with_borrow_mut(|scratch| loop {
        let mut gate = gate.borrow_mut();
        if !gate.is_between_chunks(taken) || !state.is_relaying() || !state.has_room() {
            return false;
        }
        let n = match gate.recv(&mut scratch.read) {
            Poll::Pending => return true,
            Poll::Ready(Ok(0)) => return false,
            Poll::Ready(Ok(n)) => n,
            Poll::Ready(Err(_)) => {
                state.fail(RESET_WITHIN);
                return true;
            }
        };
        // SAFETY: `recv` has just written the first `n` bytes (Wire's contract); the slice checks that there are as many.
        let came = unsafe { &*(std::ptr::from_ref(&scratch.read[..n]) as *const [u8]) };
        scratch.data.clear();
        let used = whole_chunks(came, &mut scratch.data);
        gate.give_back(&came[used..]);
        drop(gate);
        if used > 0 {
            state.relayed(&scratch.data, exec);
        }
        if used < n {
            return false;
        }
    })
}

/// hyper, too, takes this answer's body for one in chunks.
pub fn is_chunked(head: &response::Parts) -> bool {
    let bare = matches!(head.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    let coded = head.headers.get(header::TRANSFER_ENCODING);
    head.version == Version::HTTP_11 && !bare && coded.is_some_and(|coding| coding == "chunked")
}

impl Upstream {
    /// Whether to follow where hyper stands in the body that comes.
    pub(super) fn watch_body(&self, on: bool) {
        if let Some(gate) = self.gate.borrow().as_ref() {
            gate.borrow_mut().guard = if on { Guard::watching() } else { Guard::off() };
        }
    }
}

impl Guard {
    /// For the answer to one request: it refuses nothing, it only knows where in a chunked body hyper is.
    pub fn watching() -> Self {
        let mut guard = Self::default();
        guard.answers = true;
        guard
    }

    /// Of a watched answer that stands between two chunks: the bytes in those so far.
    pub fn between_chunks(&self) -> Option<u64> {
        (self.answers && self.at == At::Size(0, 0)).then_some(self.payload)
    }
}

/// Put the data of the whole chunks that `raw` begins with into `data`; how many bytes they take.
fn whole_chunks(raw: &[u8], data: &mut Vec<u8>) -> usize {
    let mut used = 0;
    while let Some((size, first)) = size_of(&raw[used..]) {
        let (from, to) = (used + first, used + first + size);
        if raw.get(to..to + 2) != Some(b"\r\n") {
            break;
        }
        data.extend_from_slice(&raw[from..to]);
        used = to + 2;
    }
    used
}

/// The size of a chunk of data, and where its data begins.
fn size_of(raw: &[u8]) -> Option<(usize, usize)> {
    let mut size = 0;
    for (at, c) in raw.iter().take(6).enumerate() {
        match (*c as char).to_digit(16) {
            Some(digit) => size = size << 4 | digit as usize,
            None if *c == b'\r' && size > 0 && raw.get(at + 1) == Some(&b'\n') => return Some((size, at + 2)),
            None => return None,
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_chunks_of_data_are_taken() {
        for (raw, used, data) in [
            (&b"5\r\nhello\r\n"[..], 10, &b"hello"[..]),
            (b"5\r\nhello\r\n3\r\nabc\r\n0\r\n\r\n", 18, b"helloabc"),
            (b"00a\r\n0123456789\r\n", 17, b"0123456789"),
            (b"5\r\nhello\r\n3\r\nab", 10, b"hello"),
            (b"5\r\nhello", 0, b""),
            (b"5\r\nhello\r", 0, b""),
            (b"5\r\nhelloXX", 0, b""),
            (b"5;a=b\r\nhello\r\n", 0, b""),
            (b"5 \r\nhello\r\n", 0, b""),
            (b"5\nhello\r\n", 0, b""),
            (b"\r\n", 0, b""),
            (b"fffffff\r\n", 0, b""),
            (b"-1\r\n", 0, b""),
            (b"", 0, b""),
        ] {
            let mut out = Vec::new();
            assert_eq!(whole_chunks(raw, &mut out), used, "{:?}", String::from_utf8_lossy(raw));
            assert_eq!(out, data);
        }
    }
}
