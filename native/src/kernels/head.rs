//! A request's headers, read in one pass: the presented key, the length of the body, and the few others that are acted on.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList, PyTuple};

/// What is done with a header; from `REST` on it is handed on as it is.
const AUTHORIZATION: u8 = 0;
const HOST: u8 = 1;
const LENGTH: u8 = 2;
const OTHER_KEY: u8 = 3;
const ENCODING: u8 = 4;
const REST: u8 = 5;

/// What there is to know of a head.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Found<'a> {
    pub key: Option<&'a [u8]>,
    pub length: Option<i64>,
    /// Kind, name and value.
    pub rest: Vec<(u8, &'a [u8], &'a [u8])>,
}

/// A hash of header names, which callers choose: but the map has only our own, so that nobody makes it slow.
#[derive(Default)]
struct Name(u64);

impl Hasher for Name {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        // The first eight bytes and the last eight tell the names that are read apart from nearly all others.
        let n = bytes.len().min(8);
        let (mut head, mut tail) = ([0; 8], [0; 8]);
        head[..n].copy_from_slice(&bytes[..n]);
        tail[..n].copy_from_slice(&bytes[bytes.len() - n..]);
        let mixed = u64::from_le_bytes(head) ^ u64::from_le_bytes(tail).rotate_left(29) ^ bytes.len() as u64;
        self.0 = (self.0 ^ mixed).wrapping_mul(0x9E37_79B9_7F4A_7C15); // Fibonacci hashing: the map looks at the top bits
    }

    fn write_usize(&mut self, _: usize) {} // the length, which is in `write` already

    fn write_u8(&mut self, _: u8) {}
}

/// Reads the heads of requests. `kinds` says what is done with which header (names in lower case): 0 the `Authorization`
/// that is preferred, 1 `Host`, 2 `Content-Length`, 3 another way to present a key, 4 `Content-Encoding`, and from 5 on
/// any that are handed on. At most `most` headers are taken.
///
/// `HeadReader(kinds, most).read(headers)` gives the presented key (None: there is none; empty: not one), the content
/// length (-1: none) and the list of (kind, name, value) that are handed on. Raises `ValueError(what)`: `headers` (too
/// many), `hosts` (a second Host), `no_host`, `host` (RFC 9110, 7.2 and RFC 3986, 3.2: a name, an IPv4 or a bracketed
/// IPv6 address, and perhaps a port), `length`, `encoding` (a body that is not sent as it is).
#[pyclass(frozen)]
pub struct HeadReader {
    kinds: HashMap<Vec<u8>, u8, BuildHasherDefault<Name>>,
    most: usize,
}

#[pymethods]
impl HeadReader {
    #[new]
    fn new(kinds: HashMap<Vec<u8>, u8>, most: usize) -> Self {
        Self {
            kinds: kinds.into_iter().collect(),
            most,
        }
    }

    fn read<'py>(&self, py: Python<'py>, headers: &Bound<'py, PyList>) -> PyResult<Bound<'py, PyTuple>> {
        let pairs: Vec<(Bound<'_, PyBytes>, Bound<'_, PyBytes>)> =
            headers.iter().map(|pair| pair.extract()).collect::<PyResult<_>>()?;
        let found = self.find(pairs.len(), pairs.iter().map(|(n, v)| (n.as_bytes(), v.as_bytes())));
        told(py, found)
    }
}

impl HeadReader {
    /// The same of `count` headers.
    pub fn find<'a>(
        &self,
        count: usize,
        headers: impl Iterator<Item = (&'a [u8], &'a [u8])>,
    ) -> Result<Found<'a>, &'static str> {
        if count > self.most {
            return Err("headers");
        }
        let mut found = Found::default();
        let (mut authorization, mut other, mut host) = (None, None, None);
        for (name, value) in headers {
            match self.kinds.get(name).copied() {
                None => {}
                Some(AUTHORIZATION) => authorization = Some(value),
                Some(HOST) if host.is_some() => return Err("hosts"),
                Some(HOST) => host = Some(value),
                Some(LENGTH) => found.length = Some(number(value).ok_or("length")?),
                Some(OTHER_KEY) => other = Some(value),
                Some(ENCODING) if stripped(value).eq_ignore_ascii_case(b"identity") => {}
                Some(ENCODING) => return Err("encoding"),
                Some(kind) => {
                    debug_assert!(kind >= REST);
                    found.rest.push((kind, name, value));
                }
            }
        }
        if !is_host(host.ok_or("no_host")?) {
            return Err("host");
        }
        found.key = authorization.map_or(other, |line| Some(bearer(line)));
        Ok(found)
    }
}

/// For Python.
pub fn told<'py>(py: Python<'py>, found: Result<Found<'_>, &'static str>) -> PyResult<Bound<'py, PyTuple>> {
    let found = found.map_err(PyValueError::new_err)?;
    let bytes = |data: &[u8]| PyBytes::new(py, data);
    let key = match found.key {
        Some(key) => bytes(key).into_any(),
        None => py.None().into_bound(py),
    };
    let length = found.length.unwrap_or(-1).into_pyobject(py)?.into_any();
    let rest = found
        .rest
        .iter()
        .map(|(kind, name, value)| (*kind, bytes(name), bytes(value)));
    let rest = PyList::new(py, rest.collect::<Vec<_>>())?.into_any();
    PyTuple::new(py, [key, length, rest])
}

/// The key in `Bearer <key>`; empty where it is not that.
fn bearer(line: &[u8]) -> &[u8] {
    let at = line.iter().position(|c| *c == b' ').unwrap_or(line.len());
    let key = line.get(at + 1..).unwrap_or_default();
    if line[..at].eq_ignore_ascii_case(b"bearer") {
        stripped(key)
    } else {
        b""
    }
}

/// Without blanks at either end, as Python's `bytes.strip` understands them.
fn stripped(mut text: &[u8]) -> &[u8] {
    let blank = |c: &u8| matches!(c, b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c);
    while let [rest @ .., last] = text {
        if !blank(last) {
            break;
        }
        text = rest;
    }
    while let [first, rest @ ..] = text {
        if !blank(first) {
            break;
        }
        text = rest;
    }
    text
}

/// Digits; what is beyond 63 bits is as good as endless.
fn number(text: &[u8]) -> Option<i64> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    Some(
        text.iter()
            .fold(0i64, |n, c| n.saturating_mul(10).saturating_add(i64::from(c - b'0'))),
    )
}

fn is_host(text: &[u8]) -> bool {
    let (name, rest) = if text.first() == Some(&b'[') {
        let Some(end) = text.iter().position(|c| *c == b']') else {
            return false;
        };
        let inside = &text[1..end];
        let good = inside.iter().all(|c| c.is_ascii_hexdigit() || matches!(c, b':' | b'.'));
        (good && (2..=45).contains(&inside.len()), &text[end + 1..])
    } else {
        let end = text.iter().position(|c| *c == b':').unwrap_or(text.len());
        let good = text[..end].iter().all(|c| {
            c.is_ascii_alphanumeric()
                || matches!(
                    c,
                    b'.' | b'_'
                        | b'~'
                        | b'!'
                        | b'$'
                        | b'%'
                        | b'&'
                        | b'\''
                        | b'('
                        | b')'
                        | b'*'
                        | b'+'
                        | b','
                        | b';'
                        | b'='
                        | b'-'
                )
        });
        (good && (1..=255).contains(&end), &text[end..])
    };
    let port = match rest {
        [] => true,
        [b':', port @ ..] => (1..=5).contains(&port.len()) && port.iter().all(u8::is_ascii_digit),
        _ => false,
    };
    name && port
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts() {
        let long = "a".repeat(256);
        for (text, good) in [
            ("localhost", true),
            ("127.0.0.1:8080", true),
            ("[::1]:1", true),
            ("[::1]", true),
            ("[1]", false),
            ("[::g]", false),
            ("[::1", false),
            ("a:", false),
            ("a:123456", false),
            ("a:b", false),
            ("", false),
            (":80", false),
            ("a/b", false),
            (&long, false),
            (&long[1..], true),
        ] {
            assert_eq!(is_host(text.as_bytes()), good, "{text}");
        }
    }

    #[test]
    fn keys() {
        for (line, key) in [
            ("Bearer k", "k"),
            ("bEARER  k ", "k"),
            ("Bearer", ""),
            ("Bearer ", ""),
            ("Basic k", ""),
            ("", ""),
            ("Bearer a b", "a b"),
        ] {
            assert_eq!(bearer(line.as_bytes()), key.as_bytes(), "{line}");
        }
    }

    #[test]
    fn numbers() {
        assert_eq!(number(b""), None);
        assert_eq!(number(b"12a"), None);
        assert_eq!(number(b"-1"), None);
        assert_eq!(number(b"0012"), Some(12));
        assert_eq!(number(&[b'9'; 40]), Some(i64::MAX));
    }
}
