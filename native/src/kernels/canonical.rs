//! A JSON object in one spelling, so that a hash over it says whether two requests ask the same.
//!
//! One pass writes the value out; the members of an object are written as they come and put in order behind the last
//! one, by moving the written bytes. Bodies that come in that order already are not moved.

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use super::json::{blank, hex4, key, string_escapes, string_stop, unescape, value, Escapes, Malformed, MAX_DEPTH};

/// What is being written, and the members of the objects that are open: start of the key, of its end, of the next.
struct Writer<'a> {
    b: &'a [u8],
    out: Vec<u8>,
    members: Vec<(usize, usize, usize)>,
    moved: Vec<u8>, // what is being put in order
}

/// A string's text as it is to stand between quotes: only quotes and backslashes escaped, all else as it is. `raw` is
/// what `string` has accepted.
fn put_text(out: &mut Vec<u8>, raw: &[u8], escaped: bool) {
    if !escaped {
        out.extend_from_slice(raw);
        return;
    }
    // What is escaped as it has to be, which is nearly all in text that quotes JSON, is copied with the rest.
    let (mut from, mut i) = (0, 0);
    loop {
        i = string_stop(raw, i);
        let plain = match raw.get(i + 1) {
            Some(b'"' | b'\\') => {
                i += 2;
                continue;
            }
            None => break,
            Some(b'n') => b'\n',
            Some(b't') => b'\t',
            Some(b'r') => b'\r',
            Some(b'b') => 8,
            Some(b'f') => 12,
            Some(b'u') => {
                out.extend_from_slice(&raw[from..i]);
                let pair = hex4(raw, i + 2).is_ok_and(|v| (0xD800..0xDC00).contains(&v));
                from = (i + if pair { 12 } else { 6 }).min(raw.len());
                let text = unescape(&raw[i..from]);
                if matches!(text.as_str(), "\"" | "\\") {
                    out.push(b'\\');
                }
                out.extend_from_slice(text.as_bytes());
                i = from;
                continue;
            }
            Some(c) => *c, // a slash
        };
        out.extend_from_slice(&raw[from..i]);
        out.push(plain);
        i += 2;
        from = i;
    }
    out.extend_from_slice(&raw[from..]);
}

impl Writer<'_> {
    /// Write the value at `i`; returns the place behind it. `depth` counts what is open around it.
    fn value(&mut self, i: usize, depth: u32) -> Result<usize, Malformed> {
        match self.b.get(i) {
            Some(b'"') => {
                let (end, escapes) = string_escapes(self.b, i + 1)?;
                if escapes == Escapes::Other {
                    self.out.push(b'"');
                    put_text(&mut self.out, &self.b[i + 1..end - 1], true);
                    self.out.push(b'"');
                } else {
                    self.out.extend_from_slice(&self.b[i..end]);
                }
                Ok(end)
            }
            Some(b'{') => self.object(i, depth, &[]),
            Some(b'[') => self.list(i, depth),
            // Numbers and words as they are spelt.
            _ => {
                let end = value(self.b, i, depth)?;
                self.out.extend_from_slice(&self.b[i..end]);
                Ok(end)
            }
        }
    }

    fn list(&mut self, i: usize, depth: u32) -> Result<usize, Malformed> {
        if depth == MAX_DEPTH {
            return Err(Malformed(i, "nested too deeply"));
        }
        self.out.push(b'[');
        let mut i = blank(self.b, i + 1);
        if self.b.get(i) != Some(&b']') {
            loop {
                i = blank(self.b, self.value(i, depth + 1)?);
                match self.b.get(i) {
                    Some(b',') => i = blank(self.b, i + 1),
                    Some(b']') => break,
                    _ => return Err(Malformed(i, "',' or ']' expected")),
                }
                self.out.push(b',');
            }
        }
        self.out.push(b']');
        Ok(i + 1)
    }

    fn object(&mut self, i: usize, depth: u32, skip: &[Vec<u8>]) -> Result<usize, Malformed> {
        if depth == MAX_DEPTH {
            return Err(Malformed(i, "nested too deeply"));
        }
        self.out.push(b'{');
        let first = self.members.len();
        let mut i = blank(self.b, i + 1);
        if self.b.get(i) != Some(&b'}') {
            loop {
                let (from, to, start, escaped) = key(self.b, i)?;
                let at = self.out.len();
                self.out.push(b'"');
                put_text(&mut self.out, &self.b[from..to], escaped);
                let end = self.out.len();
                if skip.iter().any(|name| name[..] == self.out[at + 1..end]) {
                    self.out.truncate(at);
                    i = value(self.b, start, depth + 1)?;
                } else {
                    self.out.extend_from_slice(b"\":");
                    i = self.value(start, depth + 1)?;
                    self.out.push(b',');
                    self.members.push((at, end, self.out.len()));
                }
                i = blank(self.b, i);
                match self.b.get(i) {
                    Some(b',') => i = blank(self.b, i + 1),
                    Some(b'}') => break,
                    _ => return Err(Malformed(i, "',' or '}' expected")),
                }
            }
        }
        self.sort(first);
        if self.out.last() == Some(&b',') {
            self.out.pop();
        }
        self.out.push(b'}');
        Ok(i + 1)
    }

    /// Put the members from `first` on in the order of their keys; those of one key stay in theirs.
    fn sort(&mut self, first: usize) {
        let Self {
            out, members, moved, ..
        } = self;
        let ours = &mut members[first..];
        if ours.windows(2).any(|w| out[w[0].0..w[0].1] > out[w[1].0..w[1].1]) {
            let at = ours[0].0;
            if let [one, _] = ours {
                out[at..].rotate_left(one.2 - at);
            } else {
                ours.sort_by(|x, y| out[x.0..x.1].cmp(&out[y.0..y.1]));
                moved.clear();
                moved.extend_from_slice(&out[at..]);
                out.truncate(at);
                for (from, _, to) in ours.iter() {
                    out.extend_from_slice(&moved[from - at..to - at]);
                }
            }
        }
        members.truncate(first);
    }
}

/// See `canonical`; `skip` are names as they stand between quotes.
pub fn write(b: &[u8], skip: &[Vec<u8>]) -> Result<Vec<u8>, Malformed> {
    if let Err(e) = simdutf8::compat::from_utf8(b) {
        return Err(Malformed(e.valid_up_to(), "not UTF-8"));
    }
    let i = blank(b, 0);
    if b.get(i) != Some(&b'{') {
        return Err(Malformed(i, "a JSON object expected"));
    }
    let mut writer = Writer {
        b,
        out: Vec::with_capacity(b.len() + 16),
        members: Vec::with_capacity(64),
        moved: Vec::new(),
    };
    let end = blank(b, writer.object(i, 0, skip)?);
    if end != b.len() {
        return Err(Malformed(end, "text after the object"));
    }
    Ok(writer.out)
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

    fn run(body: &str) -> Result<String, Malformed> {
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
            assert_eq!(run(body).unwrap(), want);
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
            assert!(run(bad).is_err(), "{bad}");
        }
        let deep = |n: usize| format!("{{\"a\":{}{}}}", "[".repeat(n), "]".repeat(n));
        assert!(run(&deep(127)).is_ok());
        assert!(run(&deep(128)).is_err());
        assert!(run(&deep(100_000)).is_err());
    }
}
