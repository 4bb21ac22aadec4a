//! HTTP/1.1 as far as the tools need it, sans-IO: heads, and bodies by content-length, chunked, or until the close.
//! Bytes may arrive split anywhere.

use memchr::memmem;

const MAX_HEAD: usize = 64 * 1024;

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Framing {
    Length(u64),
    Chunked,
    UntilClose,
}

#[derive(Debug)]
pub struct Head {
    /// Bytes of the head, its empty line included.
    pub len: usize,
    /// The answer's status; 0 in a request.
    pub status: u16,
    pub framing: Framing,
    /// The other side closes the connection after this message.
    pub close: bool,
}

/// The head at the front of `buf`, `None` while it is incomplete; `Err` names what is wrong with it.
pub fn head(buf: &[u8], is_answer: bool) -> Result<Option<Head>, &'static str> {
    let Some(end) = memmem::find(buf, b"\r\n\r\n") else {
        return if buf.len() > MAX_HEAD { Err("head_too_long") } else { Ok(None) };
    };
    let mut lines = buf[..end].split(|&b| b == b'\n').map(|l| l.strip_suffix(b"\r").unwrap_or(l));
    let first = lines.next().unwrap_or(b"");
    let (mut status, mut close) = (0, false);
    if is_answer {
        if !first.starts_with(b"HTTP/1.") || first.len() < 12 {
            return Err("bad_http");
        }
        status = number(&first[9..12]).ok_or("bad_http")? as u16;
        close = first.starts_with(b"HTTP/1.0");
    }
    let no_body = matches!(status, 100..=199 | 204 | 304);
    let mut framing = if is_answer && !no_body { Framing::UntilClose } else { Framing::Length(0) };
    for line in lines {
        // Only these three matter; the first letter spares us the comparison of all the others.
        if !matches!(line.first(), Some(b'c' | b'C' | b't' | b'T')) {
            continue;
        }
        let Some(colon) = line.iter().position(|&b| b == b':') else { return Err("bad_http") };
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        if name.eq_ignore_ascii_case(b"content-length") && framing != Framing::Chunked {
            framing = Framing::Length(number(value).ok_or("bad_http")?);
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") && value.eq_ignore_ascii_case(b"chunked") {
            framing = Framing::Chunked;
        } else if name.eq_ignore_ascii_case(b"connection") {
            close = value.eq_ignore_ascii_case(b"close");
        }
    }
    close |= framing == Framing::UntilClose;
    Ok(Some(Head { len: end + 4, status, framing, close }))
}

fn number(digits: &[u8]) -> Option<u64> {
    std::str::from_utf8(digits).ok()?.parse().ok()
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum State {
    /// Bytes left of a content-length body.
    Fixed(u64),
    UntilClose,
    /// Reading a chunk's size: value so far, digits seen.
    Size(u64, u8),
    /// After the size, up to the line feed: value.
    SizeEnd(u64),
    Data(u64),
    DataCr,
    DataLf,
    /// After the last chunk: bytes of the current trailer line.
    Trailer(u32),
    Done,
}

/// Undoes a body's framing.
#[derive(Debug)]
pub struct Body(State);

impl Body {
    pub fn new(framing: Framing) -> Body {
        Body(match framing {
            Framing::Length(0) => State::Done,
            Framing::Length(n) => State::Fixed(n),
            Framing::Chunked => State::Size(0, 0),
            Framing::UntilClose => State::UntilClose,
        })
    }

    pub fn done(&self) -> bool {
        self.0 == State::Done
    }

    /// The connection ended: was that the right end of this body?
    pub fn may_end(&self) -> bool {
        matches!(self.0, State::UntilClose | State::Done)
    }

    /// Takes what belongs to the body from the front of `buf`, hands each piece of content to `on`, and returns how
    /// many bytes it took. `done` tells whether the body has ended.
    pub fn feed<'a>(&mut self, buf: &'a [u8], mut on: impl FnMut(&'a [u8])) -> Result<usize, &'static str> {
        let mut at = 0;
        while at < buf.len() {
            match self.0 {
                State::Done => break,
                State::UntilClose => {
                    on(&buf[at..]);
                    at = buf.len();
                }
                State::Fixed(left) | State::Data(left) => {
                    let n = left.min((buf.len() - at) as u64);
                    on(&buf[at..at + n as usize]);
                    at += n as usize;
                    self.0 = match self.0 {
                        State::Fixed(_) if n == left => State::Done,
                        State::Fixed(_) => State::Fixed(left - n),
                        _ if n == left => State::DataCr,
                        _ => State::Data(left - n),
                    };
                }
                framing => {
                    self.0 = step(framing, buf[at])?;
                    at += 1;
                }
            }
        }
        Ok(at)
    }
}

/// One byte of chunk framing.
fn step(state: State, byte: u8) -> Result<State, &'static str> {
    Ok(match (state, byte) {
        (State::Size(n, digits), _) if digits < 15 && byte.is_ascii_hexdigit() => {
            State::Size(n << 4 | (byte as char).to_digit(16).unwrap_or(0) as u64, digits + 1)
        }
        (State::Size(n, 1..), b'\r' | b';' | b' ') => State::SizeEnd(n),
        (State::SizeEnd(0), b'\n') => State::Trailer(0),
        (State::SizeEnd(n), b'\n') => State::Data(n),
        (State::SizeEnd(n), _) => State::SizeEnd(n),
        (State::DataCr, b'\r') => State::DataLf,
        (State::DataLf, b'\n') => State::Size(0, 0),
        (State::Trailer(0), b'\n') => State::Done,
        (State::Trailer(_), b'\n') => State::Trailer(0),
        (State::Trailer(n), b'\r') => State::Trailer(n),
        (State::Trailer(n), _) => State::Trailer(n + 1),
        _ => return Err("bad_chunk"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunked_body_reads_the_same_however_it_is_split() {
        let raw = b"4\r\nabcd\r\nA;x=1\r\n0123456789\r\n0\r\nT: x\r\n\r\nnext";
        for size in 1..raw.len() {
            let (mut body, mut got, mut left) = (Body::new(Framing::Chunked), Vec::new(), 0);
            for piece in raw.chunks(size) {
                left += piece.len() - body.feed(piece, |b| got.extend_from_slice(b)).unwrap();
            }
            assert!(body.done());
            assert_eq!((got.as_slice(), left), (&b"abcd0123456789"[..], 4), "size {size}");
        }
    }

    #[test]
    fn broken_framing_is_an_error() {
        for raw in [&b"\r\n"[..], b"zz\r\n", b"1\r\nabc"] {
            assert!(Body::new(Framing::Chunked).feed(raw, |_| ()).is_err());
        }
    }

    #[test]
    fn heads_tell_status_framing_and_close() {
        let h = head(b"HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\n", true).unwrap().unwrap();
        assert_eq!((h.status, h.framing, h.close, h.len), (200, Framing::Length(12), false, 39));
        let h = head(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n", true).unwrap();
        let h = h.unwrap();
        assert_eq!((h.framing, h.close), (Framing::Chunked, true));
        assert!(head(b"HTTP/1.1 200 OK\r\nA: b\r\n", true).unwrap().is_none());
        assert_eq!(head(b"GET / HTTP/1.1\r\n\r\n", false).unwrap().unwrap().framing, Framing::Length(0));
        assert_eq!(head(b"HTTP/1.1 200 OK\r\n\r\n", true).unwrap().unwrap().framing, Framing::UntilClose);
    }
}
