//! Where the top-level fields of a JSON object lie, without building anything.
//!
//! One pass over the body: UTF-8 is checked by SIMD first, then a small machine walks the grammar of RFC 8259 with a
//! bit per nesting level instead of recursion. Strings, where nearly all bytes of a request are, are skipped eight
//! bytes at a time (the "has byte less than n / equal to n" tricks of Hacker's Delight and Bit Twiddling Hacks).

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyTuple};

/// Deeper than any request of a real client (tool schemas reach about 20), shallow enough to fit one machine word.
pub const MAX_DEPTH: u32 = 128;

/// What is wrong with a body and at which byte.
#[derive(Debug, PartialEq, Eq)]
pub enum Flaw {
    Json(usize, &'static str),
    Duplicate(usize, usize),
}

const ONES: u64 = 0x0101_0101_0101_0101;
const HIGHS: u64 = 0x8080_8080_8080_8080;

/// Index of the first byte at or after `i` that ends or bends a string: a quote, a backslash or a control character.
#[inline]
fn string_stop(b: &[u8], mut i: usize) -> usize {
    while let Some(chunk) = b.get(i..i + 8) {
        let w = u64::from_le_bytes(chunk.try_into().expect("eight bytes"));
        let quote = w ^ (ONES * u64::from(b'"'));
        let slash = w ^ (ONES * u64::from(b'\\'));
        // A borrow can only raise false alarms above the first true one, so the lowest set bit is exact.
        let hit =
            (quote.wrapping_sub(ONES) & !quote | slash.wrapping_sub(ONES) & !slash | w.wrapping_sub(ONES * 0x20) & !w)
                & HIGHS;
        if hit != 0 {
            return i + (hit.trailing_zeros() / 8) as usize;
        }
        i += 8;
    }
    while i < b.len() && b[i] != b'"' && b[i] != b'\\' && b[i] >= 0x20 {
        i += 1;
    }
    i
}

#[inline]
fn blank(b: &[u8], mut i: usize) -> usize {
    while i < b.len() && matches!(b[i], b' ' | b'\n' | b'\t' | b'\r') {
        i += 1;
    }
    i
}

fn hex4(b: &[u8], i: usize) -> Result<u32, Flaw> {
    let mut v = 0;
    for k in 0..4 {
        let d = b
            .get(i + k)
            .and_then(|c| (*c as char).to_digit(16))
            .ok_or(Flaw::Json(i + k, "bad \\u escape"))?;
        v = v * 16 + d;
    }
    Ok(v)
}

/// `i` is just after the opening quote; returns just after the closing one, and whether an escape was met.
fn string(b: &[u8], mut i: usize) -> Result<(usize, bool), Flaw> {
    let mut escaped = false;
    loop {
        i = string_stop(b, i);
        match b.get(i) {
            None => return Err(Flaw::Json(i, "unterminated string")),
            Some(b'"') => return Ok((i + 1, escaped)),
            Some(b'\\') => {
                escaped = true;
                match b.get(i + 1) {
                    Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => i += 2,
                    Some(b'u') => {
                        let v = hex4(b, i + 2)?;
                        i += 6;
                        if (0xDC00..0xE000).contains(&v) {
                            return Err(Flaw::Json(i - 6, "lone surrogate"));
                        }
                        if (0xD800..0xDC00).contains(&v) {
                            // A pair or nothing: what one parser drops and another replaces is a way round rules.
                            if b.get(i) != Some(&b'\\')
                                || b.get(i + 1) != Some(&b'u')
                                || !(0xDC00..0xE000).contains(&hex4(b, i + 2)?)
                            {
                                return Err(Flaw::Json(i - 6, "lone surrogate"));
                            }
                            i += 6;
                        }
                    }
                    _ => return Err(Flaw::Json(i, "bad escape")),
                }
            }
            Some(_) => return Err(Flaw::Json(i, "control character in string")),
        }
    }
}

fn digits(b: &[u8], mut i: usize) -> Result<usize, Flaw> {
    let from = i;
    while i < b.len() && b[i].is_ascii_digit() {
        i += 1;
    }
    if i == from {
        return Err(Flaw::Json(i, "digit expected"));
    }
    Ok(i)
}

fn number(b: &[u8], mut i: usize) -> Result<usize, Flaw> {
    if b[i] == b'-' {
        i += 1;
    }
    i = if b.get(i) == Some(&b'0') { i + 1 } else { digits(b, i)? };
    if b.get(i) == Some(&b'.') {
        i = digits(b, i + 1)?;
    }
    if matches!(b.get(i), Some(b'e' | b'E')) {
        i += 1;
        if matches!(b.get(i), Some(b'+' | b'-')) {
            i += 1;
        }
        i = digits(b, i)?;
    }
    Ok(i)
}

fn word(b: &[u8], i: usize) -> Result<usize, Flaw> {
    for w in [&b"true"[..], b"false", b"null"] {
        if b[i..].starts_with(w) {
            return Ok(i + w.len());
        }
    }
    Err(Flaw::Json(i, "value expected"))
}

/// Skip one value that begins at `i` (not blank); `depth` counts what is open around it.
fn value(b: &[u8], mut i: usize, depth: u32) -> Result<usize, Flaw> {
    // One bit per open bracket, lowest = innermost: 1 object, 0 array.
    let mut kinds: u128 = 0;
    let mut open = 0u32;
    loop {
        // A value begins at i.
        match b.get(i) {
            None => return Err(Flaw::Json(i, "value expected")),
            Some(c @ (b'{' | b'[')) => {
                open += 1;
                if depth + open > MAX_DEPTH {
                    return Err(Flaw::Json(i, "nested too deeply"));
                }
                kinds = kinds << 1 | u128::from(*c == b'{');
                i = blank(b, i + 1);
                if b.get(i) == Some(&(c + 2)) {
                    // '{' + 2 == '}' and '[' + 2 == ']'
                    open -= 1;
                    kinds >>= 1;
                    i += 1;
                } else {
                    if *c == b'{' {
                        i = key(b, i)?.2;
                    }
                    continue;
                }
            }
            Some(b'"') => i = string(b, i + 1)?.0,
            Some(b'-' | b'0'..=b'9') => i = number(b, i)?,
            Some(_) => i = word(b, i)?,
        }
        // A value has ended at i: close brackets until another value begins.
        loop {
            if open == 0 {
                return Ok(i);
            }
            i = blank(b, i);
            match (b.get(i), kinds & 1 == 1) {
                (Some(b','), true) => {
                    i = key(b, blank(b, i + 1))?.2;
                    break;
                }
                (Some(b','), false) => {
                    i = blank(b, i + 1);
                    break;
                }
                (Some(b'}'), true) | (Some(b']'), false) => {
                    open -= 1;
                    kinds >>= 1;
                    i += 1;
                }
                _ => return Err(Flaw::Json(i, "',' or closing bracket expected")),
            }
        }
    }
}

/// A key at `i`: (start, end, start of its value, escaped), the quotes left out.
fn key(b: &[u8], i: usize) -> Result<(usize, usize, usize, bool), Flaw> {
    if b.get(i) != Some(&b'"') {
        return Err(Flaw::Json(i, "field name in double quotes expected"));
    }
    let (after, escaped) = string(b, i + 1)?;
    let colon = blank(b, after);
    if b.get(colon) != Some(&b':') {
        return Err(Flaw::Json(colon, "':' expected"));
    }
    Ok((i + 1, after - 1, blank(b, colon + 1), escaped))
}

/// The name of an escaped key with its escapes undone, for comparing only: what is not ASCII becomes '?'.
fn unescape(b: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(b.len());
    let mut i = 0;
    while i < b.len() {
        if b[i] != b'\\' {
            out.push(b[i]);
            i += 1;
            continue;
        }
        match b[i + 1] {
            b'u' => {
                let v = hex4(b, i + 2).unwrap_or(0x3F);
                out.push(if v < 0x80 { v as u8 } else { b'?' });
                i += 6;
                continue;
            }
            b'b' => out.push(8),
            b'f' => out.push(12),
            b'n' => out.push(b'\n'),
            b'r' => out.push(b'\r'),
            b't' => out.push(b'\t'),
            c => out.push(c),
        }
        i += 2;
    }
    out
}

/// Fill `spans` with (start, end) of the value of each of `names`, `usize::MAX` where it is missing.
/// Returns the place just after the opening brace, and whether the object is empty.
pub fn scan(b: &[u8], names: &[Vec<u8>], spans: &mut [usize]) -> Result<(usize, bool), Flaw> {
    if let Err(e) = simdutf8::compat::from_utf8(b) {
        return Err(Flaw::Json(e.valid_up_to(), "not UTF-8"));
    }
    spans.fill(usize::MAX);
    let mut i = blank(b, 0);
    if b.get(i) != Some(&b'{') {
        return Err(Flaw::Json(i, "a JSON object expected"));
    }
    let inside = i + 1;
    i = blank(b, inside);
    let empty = b.get(i) == Some(&b'}');
    // A body that is not JSON at all is refused as such, whatever else is wrong with it: so this waits for the end.
    let mut twice = None;
    if !empty {
        loop {
            let at = i;
            let (from, to, start, escaped) = key(b, i)?;
            let end = value(b, start, 1)?;
            let plain;
            let name: &[u8] = if escaped {
                plain = unescape(&b[from..to]);
                &plain
            } else {
                &b[from..to]
            };
            if let Some(k) = names.iter().position(|n| n == name) {
                if spans[2 * k] == usize::MAX {
                    spans[2 * k] = start;
                    spans[2 * k + 1] = end;
                } else if twice.is_none() {
                    twice = Some(Flaw::Duplicate(at, k));
                }
            }
            i = blank(b, end);
            match b.get(i) {
                Some(b',') => i = blank(b, i + 1),
                Some(b'}') => break,
                _ => return Err(Flaw::Json(i, "',' or '}' expected")),
            }
        }
    }
    let rest = blank(b, i + 1);
    if rest != b.len() {
        return Err(Flaw::Json(rest, "text after the object"));
    }
    twice.map_or(Ok((inside, empty)), Err)
}

/// Finds the named top-level fields of JSON objects.
///
/// `FieldScanner(names).scan(body)` returns a flat tuple of ints: start and end of the value of each name in turn
/// (-1, -1 where it is missing), then the place just after the opening brace and 1 if the object is empty, else 0.
/// Raises `ValueError("json", offset, what)` for a body that is not a valid JSON object in UTF-8 or is nested deeper
/// than 128, and `ValueError("duplicate", offset, name)` when one of the names stands in it twice, however spelt.
#[pyclass(frozen)]
pub struct FieldScanner {
    names: Vec<Vec<u8>>,
}

#[pymethods]
impl FieldScanner {
    #[new]
    fn new(names: Vec<String>) -> PyResult<Self> {
        if names.len() > 32 {
            return Err(PyValueError::new_err("at most 32 names"));
        }
        Ok(Self {
            names: names.into_iter().map(String::into_bytes).collect(),
        })
    }

    fn scan<'py>(&self, py: Python<'py>, body: &Bound<'py, PyBytes>) -> PyResult<Bound<'py, PyTuple>> {
        let mut room = [0usize; 64];
        let spans = &mut room[..2 * self.names.len()];
        match scan(body.as_bytes(), &self.names, spans) {
            Ok((inside, empty)) => PyTuple::new(
                py,
                spans
                    .iter()
                    .map(|s| isize::try_from(*s).unwrap_or(-1))
                    .chain([inside as isize, isize::from(empty)])
                    .collect::<Vec<_>>(),
            ),
            Err(Flaw::Json(at, what)) => Err(PyValueError::new_err(("json", at, what))),
            Err(Flaw::Duplicate(at, k)) => Err(PyValueError::new_err((
                "duplicate",
                at,
                String::from_utf8_lossy(&self.names[k]).into_owned(),
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(body: &str) -> Result<Vec<usize>, Flaw> {
        let names = [b"model".to_vec(), b"stream".to_vec()];
        let mut spans = [0; 4];
        scan(body.as_bytes(), &names, &mut spans).map(|_| spans.to_vec())
    }

    #[test]
    fn finds_values_and_leaves_the_rest() {
        let body = r#" {"a":[1,{"model":2}], "model" : "x\"y", "stream":true} "#;
        let s = run(body).unwrap();
        assert_eq!(&body[s[0]..s[1]], r#""x\"y""#);
        assert_eq!(&body[s[2]..s[3]], "true");
    }

    #[test]
    fn refuses_a_name_that_stands_twice_however_spelt() {
        assert!(matches!(run(r#"{"model":1,"model":2}"#), Err(Flaw::Duplicate(_, 0))));
        assert!(matches!(
            run(r#"{"model":1,"mod\u0065l":2}"#),
            Err(Flaw::Duplicate(_, 0))
        ));
    }

    #[test]
    fn refuses_what_is_not_json() {
        for bad in [
            "",
            "[]",
            "{",
            "{}x",
            "{\"a\":01}",
            "{\"a\":1,}",
            "{\"a\":\"\u{1}\"}",
            "{\"a\":\"\\x\"}",
            "{a:1}",
            "{\"a\":tru}",
            "{\"a\":[1 2]}",
            "{\"a\":\"\\ud800\"}",
        ] {
            assert!(matches!(run(bad), Err(Flaw::Json(..))), "{bad}");
        }
    }

    #[test]
    fn bounds_the_depth() {
        let deep = |n: usize| format!("{{\"a\":{}{}}}", "[".repeat(n), "]".repeat(n));
        assert!(run(&deep(127)).is_ok());
        assert!(run(&deep(128)).is_err());
        assert!(run(&deep(100_000)).is_err());
    }

    #[test]
    fn every_truncation_is_refused() {
        let body = r#"{"model":"aé😀\n","stream":true,"m":[{"b":-1.5e+3,"c":[null,false,{}]}]}"#;
        for n in 0..body.len() {
            let names = [b"model".to_vec()];
            assert!(scan(&body.as_bytes()[..n], &names, &mut [0; 2]).is_err(), "{n}");
        }
        assert!(run(body).is_ok());
    }
}
