//! Is this the right answer? Fed with the unframed body, in any pieces; tolerant of a gateway that writes the JSON
//! anew (spaces, order of fields), strict about what arrived.

use memchr::{memchr, memmem};

use crate::wire::{ANSWER_BEGIN, ANSWER_END};

/// Nothing the mock sends comes near; keeps a babbling gateway from filling the memory.
const MAX_LINE: usize = 1024 * 1024;

/// A plain answer: JSON that ends where it should, with the mock's words and the usage in it.
pub fn plain(body: &[u8]) -> Result<(), &'static str> {
    if !is_closed_object(body) {
        return Err("bad_json");
    }
    for word in [ANSWER_BEGIN.as_bytes(), ANSWER_END.as_bytes(), b"\"total_tokens\""] {
        if memmem::find(body, word).is_none() {
            return Err("bad_content");
        }
    }
    Ok(())
}

/// One object whose brackets and strings close exactly at the end.
fn is_closed_object(body: &[u8]) -> bool {
    let body = body.trim_ascii();
    let (mut depth, mut at) = (0i32, 0);
    while at < body.len() {
        match body[at] {
            b'{' | b'[' => depth += 1,
            b'}' | b']' => {
                depth -= 1;
                if depth == 0 {
                    return at + 1 == body.len() && body[0] == b'{';
                }
            }
            b'"' => loop {
                match memchr::memchr2(b'"', b'\\', &body[at + 1..]) {
                    None => return false,
                    Some(n) if body[at + 1 + n] == b'"' => {
                        at += n + 1;
                        break;
                    }
                    Some(n) => at += n + 2,
                }
                if at + 1 >= body.len() {
                    return false;
                }
            },
            _ => {}
        }
        at += 1;
    }
    false
}

/// Follows one stream: exactly one role, content chunks 0..N in order, a finish_reason, the usage, `[DONE]`.
#[derive(Default)]
pub struct Stream {
    carry: Vec<u8>,
    contents: u32,
    roles: u32,
    finished: bool,
    usage: bool,
    done: bool,
    /// The first thing that was wrong.
    wrong: Option<&'static str>,
}

impl Stream {
    /// Forgets the last stream, keeps its buffer.
    pub fn reset(&mut self) {
        let mut carry = std::mem::take(&mut self.carry);
        carry.clear();
        *self = Stream { carry, ..Stream::default() };
    }

    /// Takes the next piece of the body and calls `on_chunk` with the time stamp of each content chunk in it.
    pub fn feed(&mut self, mut piece: &[u8], on_chunk: &mut impl FnMut(u64)) {
        while let Some(end) = memchr(b'\n', piece) {
            if self.carry.is_empty() {
                self.line(&piece[..end], on_chunk);
            } else {
                let mut whole = std::mem::take(&mut self.carry);
                whole.extend_from_slice(&piece[..end]);
                self.line(&whole, on_chunk);
                whole.clear();
                self.carry = whole;
            }
            piece = &piece[end + 1..];
        }
        if self.carry.len() + piece.len() > MAX_LINE {
            self.blame("line_too_long");
        } else {
            self.carry.extend_from_slice(piece);
        }
    }

    /// The body has ended as HTTP: was it the whole stream?
    pub fn verdict(&self, chunks: u32) -> Result<(), &'static str> {
        match self.wrong {
            Some(wrong) => Err(wrong),
            None if self.contents != chunks => Err("chunks_missing"),
            None if !self.finished => Err("no_finish"),
            None if !self.usage => Err("no_usage"),
            None if !self.done => Err("no_done"),
            None if self.roles != 1 => Err("not_one_role"),
            None => Ok(()),
        }
    }

    fn blame(&mut self, what: &'static str) {
        self.wrong.get_or_insert(what);
    }

    fn line(&mut self, line: &[u8], on_chunk: &mut impl FnMut(u64)) {
        let Some(data) = line.strip_prefix(b"data:") else { return }; // comments, event names, empty lines
        let data = data.trim_ascii();
        if self.done {
            return self.blame("data_after_done");
        }
        if data == b"[DONE]" {
            self.done = true;
            return;
        }
        if !(data.starts_with(b"{") && data.ends_with(b"}")) {
            return self.blame("bad_event");
        }
        if let Some(text) = field(data, b"\"content\"").and_then(|v| v.strip_prefix(b"\"w")) {
            match content(text) {
                Some((number, stamp_ns)) => {
                    if number != self.contents || self.finished {
                        self.blame("chunk_order");
                    }
                    self.contents += 1;
                    on_chunk(stamp_ns);
                }
                None => self.blame("bad_content"),
            }
        } else if field(data, b"\"error\"").is_some_and(|v| !v.starts_with(b"null")) {
            self.blame("error_event");
        }
        if field(data, b"\"role\"").is_some_and(|v| v.starts_with(b"\"assistant\"")) {
            self.roles += 1;
        }
        self.finished |= field(data, b"\"finish_reason\"").is_some_and(|v| v.starts_with(b"\""));
        self.usage |= field(data, b"\"usage\"").is_some_and(|v| v.starts_with(b"{"));
    }
}

/// The bytes from the value of `name` (with its quotes) on; `None` when it is not there.
fn field<'a>(json: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let at = memmem::find(json, name)? + name.len();
    Some(json[at..].trim_ascii_start().strip_prefix(b":")?.trim_ascii_start())
}

/// Number and time stamp of `00007@000123456789012345 "...`.
fn content(text: &[u8]) -> Option<(u32, u64)> {
    let text = &text[..memchr(b' ', text)?];
    let at = memchr(b'@', text)?;
    let number = |digits: &[u8]| std::str::from_utf8(digits).ok()?.parse::<u64>().ok();
    Some((number(&text[..at])? as u32, number(&text[at + 1..])?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::{self, Body};
    use crate::wire::{plain_answer, Events};

    fn stream(chunks: u32, finish: bool, done: bool) -> Vec<u8> {
        let mut events = Events::default();
        let mut raw = events.role.clone();
        (0..chunks).for_each(|i| raw.extend_from_slice(events.content(i, 5 + i as u64)));
        if finish {
            raw.extend_from_slice(&events.finish);
        }
        raw.extend_from_slice(&events.usage);
        raw.extend_from_slice(if done { &events.done } else { b"0\r\n\r\n" });
        raw
    }

    fn judge(raw: &[u8], chunks: u32, size: usize) -> (Result<(), &'static str>, Vec<u64>) {
        let (mut check, mut stamps) = (Stream::default(), Vec::new());
        let mut body = Body::new(http::Framing::Chunked);
        for piece in raw.chunks(size) {
            body.feed(piece, |b| check.feed(b, &mut |s| stamps.push(s))).unwrap();
        }
        assert!(body.done());
        (check.verdict(chunks), stamps)
    }

    #[test]
    fn a_whole_stream_is_right_however_it_is_split() {
        let raw = stream(3, true, true);
        for size in 1..=raw.len() {
            assert_eq!(judge(&raw, 3, size), (Ok(()), vec![5, 6, 7]), "size {size}");
        }
    }

    #[test]
    fn what_is_missing_is_named() {
        assert_eq!(judge(&stream(2, true, true), 3, 64).0, Err("chunks_missing"));
        assert_eq!(judge(&stream(3, false, true), 3, 64).0, Err("no_finish"));
        assert_eq!(judge(&stream(3, true, false), 3, 64).0, Err("no_done"));
        let mut check = Stream::default();
        check.feed(b"data: {\"error\": {\"message\": \"x\"}}\n\n", &mut |_| ());
        assert_eq!(check.verdict(0), Err("error_event"));
    }

    #[test]
    fn a_stream_written_anew_is_read_too() {
        let mut check = Stream::default();
        check.feed(b": hi\r\nevent: x\r\ndata: {\"choices\": [{\"delta\": {\"role\" : \"assistant\", ", &mut |_| ());
        check.feed(b"\"content\": \"w00000@000000000000000009 \"}, \"finish_reason\": \"stop\"}],", &mut |_| ());
        check.feed(b" \"usage\": {}}\r\n\r\ndata:[DONE]\r\n\r\n", &mut |s| assert_eq!(s, 9));
        assert_eq!(check.verdict(1), Ok(()));
    }

    #[test]
    fn a_plain_answer_must_be_whole() {
        let all = plain_answer();
        let body = &all[memmem::find(&all, b"\r\n\r\n").unwrap() + 4..];
        assert_eq!(plain(body), Ok(()));
        for cut in 1..body.len() {
            assert_eq!(plain(&body[..cut]), Err("bad_json"), "cut at {cut}");
        }
        assert_eq!(plain(b"{\"a\":\"\\\\\\\"}\"}"), Err("bad_content"));
    }
}
