//! The framing of requests, checked before hyper sees the bytes.
//!
//! hyper takes some things that RFC 9112 says a server must refuse, because another server may read them in another way
//! (request smuggling): chunk extensions that are no tokens, blanks after a chunk size, bare LF, folded lines, both
//! lengths at once, a coding other than `chunked`. The guard walks the same bytes: heads line by line, of bodies only the
//! frame. At the first byte that is wrong it puts a NUL into a head, which hyper answers with 400, or ends a body there,
//! which the application hears of as a disconnect. All else (methods, targets, names, values, sizes of heads) is hyper's.
//! Whether Host is right is the application's to say, which has better words for it.

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum At {
    /// In a head, or before one.
    #[default]
    Head,
    /// In a body of known length: bytes left.
    Body(u64),
    /// In a chunk size: digits seen, size so far.
    Size(u8, u64),
    /// In a chunk extension.
    Extension(Ext),
    /// After the CR of a chunk's first line.
    SizeEnd,
    Chunk(u64),
    /// Before the CR, then the LF, behind a chunk.
    ChunkCr,
    ChunkLf,
    /// In the trailer section: bytes in this line, whether a CR was last, bytes in all.
    Trailer(u16, bool, u16),
    Broken,
}

/// chunk-ext = *( ";" name [ "=" value ] ), value = token or quoted string; no blanks (RFC 9112, 7.1.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ext {
    NameStart,
    Name,
    ValueStart,
    Value,
    Quoted,
    Escaped,
    QuotedEnd,
}

const MOST_HEAD: usize = 128 * 1024;
const MOST_TRAILER: u16 = 16 * 1024;
const MOST_EXTENSION: u16 = 1024;

#[derive(Default)]
pub struct Guard {
    pub(super) at: At,
    next: u64,                // size of the chunk whose first line is being read
    extended: u16,            // bytes of its extensions
    head: Vec<u8>,            // of a head that came in pieces
    begun: bool,              // a byte of the present head has come
    pub(super) answers: bool, // it only watches, and what it watches are answers
    pub(super) payload: u64,  // bytes in chunks so far, of the answer that is watched
}

fn is_token(c: u8) -> bool {
    c.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&c)
}

impl Guard {
    /// Passes everything.
    pub fn off() -> Self {
        Self {
            at: At::Body(u64::MAX),
            ..Self::default()
        }
    }

    pub fn broken(&self) -> bool {
        self.at == At::Broken
    }

    /// Some bytes of a head have come, but not all.
    pub fn in_head(&self) -> bool {
        self.at == At::Head && self.begun
    }

    /// Between two requests.
    pub fn at_rest(&self) -> bool {
        self.at == At::Head && !self.begun
    }

    /// How many of these bytes hyper may have.
    pub fn pass(&mut self, data: &mut [u8]) -> usize {
        let (passed, wrong) = self.walk(data);
        if self.answers {
            if self.broken() {
                *self = Self::off(); // it is hyper's to refuse
            }
            return data.len();
        }
        if let Some(at) = wrong {
            data[at] = 0;
            return at + 1;
        }
        passed
    }

    /// How many bytes are right, and where a head is wrong.
    fn walk(&mut self, data: &[u8]) -> (usize, Option<usize>) {
        let mut i = 0;
        while i < data.len() {
            match self.at {
                At::Head => match self.head(&data[i..]) {
                    Ok(used) => i += used,
                    Err(at) => {
                        self.at = At::Broken;
                        return (i, Some(i + at));
                    }
                },
                At::Body(left) | At::Chunk(left) => {
                    let n = left.min((data.len() - i) as u64);
                    i += n as usize;
                    if matches!(self.at, At::Chunk(_)) {
                        self.payload += n;
                    }
                    self.at = match self.at {
                        At::Body(_) if n == left => At::Head,
                        At::Body(_) => At::Body(left - n),
                        _ if n == left => At::ChunkCr,
                        _ => At::Chunk(left - n),
                    };
                }
                At::Broken => return (i, None),
                _ => {
                    self.at = self.frame(data[i]);
                    if self.broken() {
                        return (i, None);
                    }
                    i += 1;
                }
            }
        }
        (i, None)
    }

    /// One byte of a chunked body's frame.
    fn frame(&mut self, c: u8) -> At {
        match self.at {
            At::Size(digits, size) => match (c as char).to_digit(16) {
                Some(d) if digits < 15 => At::Size(digits + 1, size << 4 | u64::from(d)),
                None if digits > 0 && c == b'\r' => {
                    self.next = size;
                    At::SizeEnd
                }
                None if digits > 0 && c == b';' => {
                    self.next = size;
                    self.extended = 0;
                    At::Extension(Ext::NameStart)
                }
                _ => At::Broken,
            },
            At::Extension(ext) => {
                self.extended += 1;
                if self.extended > MOST_EXTENSION {
                    return At::Broken;
                }
                self.extension(ext, c)
            }
            At::SizeEnd if c == b'\n' => match self.next {
                0 => At::Trailer(0, false, 0),
                n => At::Chunk(n),
            },
            At::ChunkCr if c == b'\r' => At::ChunkLf,
            At::ChunkLf if c == b'\n' => At::Size(0, 0),
            At::Trailer(line, cr, all) => {
                if all >= MOST_TRAILER {
                    return At::Broken;
                }
                match (c, cr) {
                    (b'\n', true) if line == 0 => At::Head,
                    (b'\n', true) => At::Trailer(0, false, all + 1),
                    (b'\n', false) | (0, _) | (_, true) => At::Broken,
                    (b'\r', false) => At::Trailer(line, true, all + 1),
                    (b' ' | b'\t', false) if line == 0 => At::Broken, // a folded line
                    _ => At::Trailer(line + 1, false, all + 1),
                }
            }
            _ => At::Broken,
        }
    }

    fn extension(&mut self, ext: Ext, c: u8) -> At {
        let next = match (ext, c) {
            (Ext::NameStart | Ext::Name, c) if is_token(c) => Ext::Name,
            (Ext::Name, b'=') => Ext::ValueStart,
            (Ext::ValueStart, b'"') => Ext::Quoted,
            (Ext::ValueStart | Ext::Value, c) if is_token(c) => Ext::Value,
            (Ext::Quoted, b'"') => Ext::QuotedEnd,
            (Ext::Quoted, b'\\') => Ext::Escaped,
            (Ext::Quoted | Ext::Escaped, b'\t' | b' '..=b'~' | 0x80..=0xff) => Ext::Quoted,
            (Ext::Name | Ext::Value | Ext::QuotedEnd, b';') => Ext::NameStart,
            (Ext::Name | Ext::Value | Ext::QuotedEnd, b'\r') => return At::SizeEnd,
            _ => return At::Broken,
        };
        At::Extension(next)
    }

    /// Bytes of a head. How many belong to it (all, if it is not at its end), or where it is wrong.
    fn head(&mut self, new: &[u8]) -> Result<usize, usize> {
        let old = self.head.len();
        if old > 0 {
            let mut head = std::mem::take(&mut self.head);
            head.extend_from_slice(new);
            let found = self.scan(&head, old);
            if found == Ok(None) {
                self.head = head;
            }
            return match found {
                Ok(None) if self.head.len() > MOST_HEAD => Err(0),
                Ok(None) => Ok(new.len()),
                Ok(Some(end)) => Ok(end - old),
                Err(at) => Err(at - old),
            };
        }
        match self.scan(new, 0)? {
            Some(end) => Ok(end),
            None => {
                if self.begun {
                    self.head.extend_from_slice(new);
                }
                Ok(new.len())
            }
        }
    }

    /// Look for the end of a head in the bytes from `from` on, then judge it. Errors are at or after `from`.
    fn scan(&mut self, buf: &[u8], from: usize) -> Result<Option<usize>, usize> {
        // Empty lines before a request are to be ignored (RFC 9112, 2.2); hyper does.
        let mut start = 0;
        while buf[start..].starts_with(b"\r\n") {
            start += 2;
        }
        self.begun = start < buf.len();
        if !self.begun {
            return Ok(Some(start));
        }
        for lf in memchr::memchr_iter(b'\n', &buf[from..]).map(|at| from + at) {
            if lf < start {
                continue;
            }
            if lf == start || buf[lf - 1] != b'\r' {
                return Err(lf); // a bare LF
            }
            if buf[lf - 2] == b'\n' {
                // The line before ended right in front of our CR: this is the empty one.
                self.at = judge(&buf[start..lf - 1], self.answers).ok_or(lf)?;
                self.begun = false;
                return Ok(Some(lf + 1));
            }
        }
        Ok(None)
    }
}

/// A head's verdict on its body: `head` is all lines with their CRLF. None: refused. Of an answer: not one that is watched.
fn judge(head: &[u8], answer: bool) -> Option<At> {
    let mut length: Option<u64> = None;
    let mut chunked = false;
    let mut from = memchr::memchr(b'\n', head)? + 1; // past the request line
    while from < head.len() {
        let end = from + memchr::memchr(b'\n', &head[from..])?;
        let line = &head[from..end - 1];
        match line.first()? {
            b' ' | b'\t' => return None, // a folded line
            b'c' | b'C' => {
                if let Some(value) = value_of(line, b"content-length") {
                    let digits = !value.is_empty() && value.len() < 19 && value.iter().all(u8::is_ascii_digit);
                    let number = std::str::from_utf8(value).ok().and_then(|v| v.parse().ok());
                    if !digits || length.is_some() {
                        return None;
                    }
                    length = Some(number?);
                }
            }
            b't' | b'T' => {
                if let Some(value) = value_of(line, b"transfer-encoding") {
                    if chunked || !value.eq_ignore_ascii_case(b"chunked") {
                        return None;
                    }
                    chunked = true;
                }
            }
            _ => {}
        }
        from = end + 1;
    }
    match (chunked, length) {
        (true, Some(_)) => None,
        (true, None) => Some(At::Size(0, 0)),
        (false, _) if answer => None,
        (false, None | Some(0)) => Some(At::Head),
        (false, Some(n)) => Some(At::Body(n)),
    }
}

/// The value of a header line of this name. A blank before the colon is hyper's to refuse.
fn value_of<'a>(line: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let (start, rest) = line.split_at_checked(name.len())?;
    let rest = rest.strip_prefix(b":")?;
    start.eq_ignore_ascii_case(name).then(|| rest.trim_ascii())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What passes of `raw` when it comes in one piece, and in pieces of every size.
    fn passed(raw: &[u8]) -> (usize, bool) {
        let mut guard = Guard::default();
        let mut data = raw.to_vec();
        let whole = (guard.pass(&mut data), guard.broken());
        for size in 1..raw.len().min(40) {
            let mut guard = Guard::default();
            let mut data = raw.to_vec();
            let mut n = 0;
            for piece in data.chunks_mut(size) {
                n += guard.pass(piece);
                if guard.broken() {
                    break;
                }
            }
            assert_eq!((n, guard.broken()), whole, "{size}: {:?}", String::from_utf8_lossy(raw));
        }
        whole
    }

    fn chunked(body: &str) -> Vec<u8> {
        format!("POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n{body}").into_bytes()
    }

    #[test]
    fn good_requests_pass_whole() {
        for good in [
            &b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"[..],
            b"\r\n\r\nGET / HTTP/1.1\r\nhost: a\r\n\r\n",
            b"GET / HTTP/1.0\r\n\r\n",
            b"POST / HTTP/1.1\r\nhost: a\r\nContent-Length: 2\r\n\r\n{}GET / HTTP/1.1\r\nhost: a\r\n\r\nGET",
        ] {
            assert_eq!(passed(good), (good.len(), false));
        }
        for good in [
            "5\r\nhello\r\n0\r\n\r\n",
            "5;a=b\r\nhello\r\n0\r\n\r\n",
            "5;a;b=\"x\\\" y\"\r\nhello\r\n00\r\nx: y\r\n\r\nGET",
        ] {
            let raw = chunked(good);
            assert_eq!(passed(&raw), (raw.len(), false), "{good}");
        }
    }

    #[test]
    fn bad_chunks_are_cut_off() {
        for bad in [
            "5 \r\nhello\r\n0\r\n\r\n",
            "5;bad[=x\r\nhello\r\n0\r\n\r\n",
            "5;\r\nhello\r\n0\r\n\r\n",
            "5;a=\r\nhello\r\n0\r\n\r\n",
            "5\nhello\r\n0\r\n\r\n",
            "5\r\nhello0\r\n\r\n",
            "5\r\nhello!!\r\n0\r\n\r\n",
            "-1\r\nhello\r\n0\r\n\r\n",
            "0x5\r\nhello\r\n0\r\n\r\n",
            "FFFFFFFFFFFFFFFF0\r\nhello\r\n0\r\n\r\n",
            "0\r\n folded\r\n\r\n",
        ] {
            assert!(passed(&chunked(bad)).1, "{bad:?}");
        }
    }

    #[test]
    fn bad_heads_are_poisoned() {
        for bad in [
            "GET / HTTP/1.1\nhost: a\r\n\r\n",
            "GET / HTTP/1.1\r\nhost: a\n\n",
            "GET / HTTP/1.1\r\nhost: a\r\n b\r\n\r\n",
            "GET / HTTP/1.1\r\n x: y\r\nhost: a\r\n\r\n",
            "POST / HTTP/1.1\r\ncontent-length: 2\r\ncontent-length: 2\r\n\r\n{}",
            "POST / HTTP/1.1\r\ncontent-length: +2\r\n\r\n{}",
            "POST / HTTP/1.1\r\ncontent-length: \r\n\r\n{}",
            "POST / HTTP/1.1\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
            "POST / HTTP/1.1\r\ntransfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n",
            "POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
            "\nGET / HTTP/1.1\r\n\r\n",
        ] {
            let mut guard = Guard::default();
            let mut data = bad.as_bytes().to_vec();
            let n = guard.pass(&mut data);
            assert!(guard.broken(), "{bad:?}");
            assert_eq!(data[n - 1], 0, "{bad:?}");
            passed(bad.as_bytes());
        }
    }
}
