//! A JSON object in one spelling, so that a hash over it says whether two requests ask the same.
//!
//! One pass: what stands there as it is to be written is copied in runs as long as can be; the members of an object are
//! put in order behind the last one, by moving the written bytes. Bodies that come in that order already are not moved.

use std::cmp::Ordering;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use super::blocks::{run, Look, Task};
use super::json::{blank, hex4, string_stop, value, Malformed, MAX_DEPTH};
use super::quick::Cursor;

/// What is copied at once, if no more is needed.
const STRIDE: usize = 32;

/// A member of an open object: where its key begins (a quote) and ends. It reaches to the next, its comma too.
type Member = (usize, usize);

/// What is open: an object or a list, and how many members of others there were.
#[derive(Clone, Copy, Default)]
struct Open {
    object: bool,
    first: usize,
}

/// What is written: `out`, and what stands in `b` from `from` on.
struct Writer<'a> {
    b: &'a [u8],
    from: usize,
    out: Vec<u8>,
    members: Vec<Member>,
    moved: Vec<u8>, // what is being put in order
}

impl Writer<'_> {
    /// Where in the end it will stand what stands at `i`.
    #[inline(always)]
    fn place(&self, i: usize) -> usize {
        self.out.len() + i - self.from
    }

    /// Write all that stands before `to`, and go on at `next`.
    #[inline(always)]
    fn copy(&mut self, to: usize, next: usize) {
        let n = to - self.from;
        match self.b[self.from..].first_chunk::<STRIDE>() {
            Some(stride) if n <= STRIDE => {
                let end = self.out.len() + n;
                self.out.extend_from_slice(stride);
                self.out.truncate(end);
            }
            _ => self.out.extend_from_slice(&self.b[self.from..to]),
        }
        self.from = next;
    }

    /// Leave out white space.
    #[inline(always)]
    fn blank(&mut self, cursor: &mut Cursor<'_, impl Look>) {
        let at = cursor.place();
        cursor.blank();
        if cursor.place() != at {
            self.copy(at, cursor.place());
        }
    }

    /// Write the string that lies there with its quotes: of its characters only quotes and backslashes stay escaped.
    #[cold]
    fn respell(&mut self, at: usize, to: usize) {
        self.copy(at, at);
        let mut i = at + 1;
        loop {
            i = string_stop(&self.b[..to], i);
            let plain = match self.b.get(i + 1).filter(|_| i + 1 < to) {
                None => break,
                Some(b'"' | b'\\') => {
                    i += 2;
                    continue;
                }
                Some(b'n') => b'\n',
                Some(b't') => b'\t',
                Some(b'r') => b'\r',
                Some(b'b') => 8,
                Some(b'f') => 12,
                Some(b'u') => {
                    let hex = |at| hex4(self.b, at).unwrap_or(0);
                    match hex(i + 2) {
                        high @ 0xD800..0xDC00 => {
                            let v = 0x1_0000 + ((high - 0xD800) << 10 | hex(i + 8) & 0x3FF);
                            self.put(i, i + 12, v)
                        }
                        v => self.put(i, i + 6, v),
                    }
                    i = self.from;
                    continue;
                }
                Some(_) => b'/',
            };
            self.copy(i, i + 2);
            self.out.push(plain);
            i += 2;
        }
        self.copy(to, to);
    }

    /// Write the character `v` instead of what stands from `at` to `next`.
    #[inline]
    fn put(&mut self, at: usize, next: usize, v: u32) {
        self.copy(at, next);
        match char::from_u32(v).unwrap_or(char::REPLACEMENT_CHARACTER) {
            c @ ('"' | '\\') => self.out.extend_from_slice(&[b'\\', c as u8]),
            c if c.is_ascii() => self.out.push(c as u8),
            c => self.out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }

    /// Put the members from `first` on, of which the last ends at `to`, in the order of their keys; those of one key
    /// stay in theirs.
    fn sort(&mut self, first: usize, to: usize) {
        self.copy(to, to);
        let Self {
            out, members, moved, ..
        } = self;
        let ours = &mut members[first..];
        if ours.windows(2).all(|w| order(out, w[0], w[1]).is_le()) {
            return;
        }
        out.push(b',');
        let at = ours[0].0;
        if let [_, (middle, _)] = *ours {
            moved.clear();
            moved.extend_from_slice(&out[at..middle]);
            out.copy_within(middle.., at);
            let back = out.len() - moved.len();
            out[back..].copy_from_slice(moved);
        } else {
            let mut ours: Vec<_> = (0..ours.len())
                .map(|k| (ours[k], ours.get(k + 1).map_or(out.len(), |next| next.0)))
                .collect();
            ours.sort_by(|(x, _), (y, _)| order(out, *x, *y));
            moved.clear();
            moved.extend_from_slice(&out[at..]);
            out.truncate(at);
            for ((from, _), to) in ours {
                out.extend_from_slice(&moved[from - at..to - at]);
            }
        }
        out.pop();
    }
}

/// Which key comes first.
#[inline(always)]
fn order(out: &[u8], x: Member, y: Member) -> Ordering {
    // The first eight bytes mostly tell, as one number.
    if let (Some(a), Some(b)) = (out[x.0..].first_chunk(), out[y.0..].first_chunk()) {
        let (a, b) = (u64::from_be_bytes(*a), u64::from_be_bytes(*b));
        let alike = (a ^ b).leading_zeros() as usize / 8;
        if alike < (x.1 - x.0).min(y.1 - y.0).min(8) {
            return a.cmp(&b);
        }
    }
    out[x.0..x.1].cmp(&out[y.0..y.1])
}

/// A body that is right and the names to leave out.
struct Canonical<'a>(&'a [u8], &'a [Vec<u8>]);

impl Task for Canonical<'_> {
    type Out = Option<Vec<u8>>;

    #[inline(always)]
    fn run(self, look: impl Look) -> Self::Out {
        let Self(b, skip) = self;
        let mut cursor = Cursor::new(b, look)?;
        cursor.blank();
        if cursor.peek() != b'{' {
            return None;
        }
        let mut writer = Writer {
            b,
            from: cursor.place(),
            out: Vec::with_capacity(b.len() + STRIDE),
            members: Vec::with_capacity(64),
            moved: Vec::new(),
        };
        let mut around: Vec<Open> = Vec::with_capacity(16);
        let mut open = Open::default();
        loop {
            let mut left_out = false;
            if open.object {
                let at = cursor.place();
                let start = writer.place(at);
                let (from, to) = cursor.key()?;
                let bent = cursor.has_other_since(from);
                if bent {
                    writer.respell(at, to + 1);
                }
                let end = writer.place(to);
                if cursor.place() != to + 2 {
                    // White space before the colon or behind it.
                    writer.copy(to + 1, cursor.place());
                    writer.out.push(b':');
                }
                if around.len() == 1 && !skip.is_empty() {
                    if !bent {
                        writer.copy(cursor.place(), cursor.place());
                    }
                    left_out = skip.iter().any(|name| name[..] == writer.out[start + 1..end]);
                }
                if left_out {
                    cursor.value()?;
                    writer.out.truncate(start);
                    writer.from = cursor.place();
                } else {
                    writer.members.push((start, end));
                }
            }
            // A value begins, if it was not left out.
            let from = cursor.place();
            if left_out {
            } else if cursor.pass::<b'"'>() {
                cursor.text()?;
                if cursor.has_other_since(from) {
                    writer.respell(from, cursor.place());
                }
            } else if matches!(cursor.peek(), b'{' | b'[') {
                if around.len() == MAX_DEPTH as usize {
                    return None;
                }
                around.push(open);
                open = Open {
                    object: cursor.pass::<b'{'>() || !cursor.pass::<b'['>(),
                    first: writer.members.len(),
                };
                writer.blank(&mut cursor);
                if cursor.peek() != if open.object { b'}' } else { b']' } {
                    continue;
                }
            } else {
                cursor.scalar()?;
            }
            // A value has ended, or an empty one is to: close until another begins.
            loop {
                writer.blank(&mut cursor);
                if cursor.pass::<b','>() {
                    if left_out {
                        writer.from = cursor.place();
                    }
                    writer.blank(&mut cursor);
                    break;
                }
                if open.object && cursor.peek() == b'}' {
                    if left_out && writer.out.last() == Some(&b',') {
                        writer.out.pop();
                    }
                    if writer.members.len() > open.first + 1 {
                        writer.sort(open.first, cursor.place());
                    }
                    writer.members.truncate(open.first);
                    open = around.pop()?;
                    if around.is_empty() {
                        writer.copy(cursor.place() + 1, cursor.place());
                        return cursor.at_end().then_some(writer.out);
                    }
                    cursor.pass_brace()?;
                } else if open.object || !cursor.pass::<b']'>() {
                    return None;
                } else {
                    open = around.pop()?;
                }
            }
        }
    }
}

/// What is wrong with a body that is not right.
#[cold]
fn flaw(b: &[u8]) -> Malformed {
    if let Err(e) = simdutf8::compat::from_utf8(b) {
        return Malformed(e.valid_up_to(), "not UTF-8");
    }
    let i = blank(b, 0);
    if b.get(i) != Some(&b'{') {
        return Malformed(i, "a JSON object expected");
    }
    value(b, i, 0).map_or_else(|flaw| flaw, |end| Malformed(blank(b, end), "text after the object"))
}

/// See `canonical`; `skip` are names as they stand between quotes.
pub fn write(b: &[u8], skip: &[Vec<u8>]) -> Result<Vec<u8>, Malformed> {
    run(Canonical(b, skip)).ok_or_else(|| flaw(b))
}

/// The JSON object in `body` in one spelling, without the top-level fields in `skip`.
///
/// No white space, keys sorted by their bytes, of characters only quotes and backslashes escaped, numbers as they are
/// spelt (1 and 1.0 may mean different things to an upstream). Of a key that stands twice both values stay, in their
/// order, because parsers differ about which one counts. So two bodies come out alike if and only if they differ in
/// white space, order of keys or escapes alone. Raises ValueError for what is no JSON object in UTF-8 or is nested
/// deeper than 128.
#[pyfunction]
pub fn canonical<'py>(py: Python<'py>, body: &Bound<'py, PyBytes>, skip: Vec<String>) -> PyResult<Bound<'py, PyBytes>> {
    let names: Vec<Vec<u8>> = skip
        .iter()
        .map(|name| {
            let mut out = Vec::with_capacity(name.len());
            for c in name.bytes() {
                if c == b'"' || c == b'\\' {
                    out.push(b'\\');
                }
                out.push(c);
            }
            out
        })
        .collect();
    match write(body.as_bytes(), &names) {
        Ok(out) => Ok(PyBytes::new(py, &out)),
        Err(Malformed(at, what)) => Err(PyValueError::new_err(("json", at, what))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spelt(body: &str) -> Result<String, Malformed> {
        write(body.as_bytes(), &[b"stream".to_vec()]).map(|out| String::from_utf8(out).unwrap())
    }

    #[test]
    fn one_spelling() {
        for (body, want) in [
            (
                r#" { "b" : [ 1.0 , {"y":null, "x":"\u00e9\n"} ] , "a":true }"#,
                "{\"a\":true,\"b\":[1.0,{\"x\":\"é\n\",\"y\":null}]}",
            ),
            (r#"{"a":2,"a":1,"stream":{"x":[1]}}"#, r#"{"a":2,"a":1}"#),
            (r#"{"str\u0065am":1}"#, "{}"),
            (r#"{"x":{"stream":1}}"#, r#"{"x":{"stream":1}}"#),
            (r#"{"a":"\u0022\\\/"}"#, r#"{"a":"\"\\/"}"#),
            ("{}", "{}"),
        ] {
            assert_eq!(spelt(body).unwrap(), want);
        }
    }

    #[test]
    fn refuses_what_is_not_json() {
        for bad in [
            "",
            "[]",
            "{",
            "{}x",
            r#"{"a":01}"#,
            r#"{"a":1,}"#,
            r#"{"a":"\ud800"}"#,
            r#"{"a":[1 2]}"#,
            r#"{"stream":}"#,
        ] {
            assert!(spelt(bad).is_err(), "{bad}");
        }
        let deep = |n: usize| format!("{{\"a\":{}{}}}", "[".repeat(n), "]".repeat(n));
        assert!(spelt(&deep(127)).is_ok());
        assert!(spelt(&deep(128)).is_err());
        assert!(spelt(&deep(100_000)).is_err());
    }
}
