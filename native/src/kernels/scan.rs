//! Where the top-level fields of a JSON object lie, without building anything.
//!
//! One pass over the body: UTF-8 is checked by SIMD first, then the machine of `json.rs` walks it.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use memchr::memchr;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyBytes, PyString, PyTuple};

#[cfg(not(target_arch = "x86_64"))]
use super::blocks::Words;
#[cfg(target_arch = "x86_64")]
use super::blocks::{Avx2, Sse2};
use super::json::{blank, key, unescape, value, Malformed};
use super::quick::Cursor;

/// What is wrong with a body and at which byte.
#[derive(Debug, PartialEq, Eq)]
pub enum Flaw {
    Json(usize, &'static str),
    Duplicate(usize, usize),
}

impl From<Malformed> for Flaw {
    fn from(Malformed(at, what): Malformed) -> Self {
        Self::Json(at, what)
    }
}

/// Fill `spans` with (start, end) of the value of each of `names`, `usize::MAX` where it is missing.
/// Returns the place just after the opening brace, and whether the object is empty.
#[inline]
pub fn scan(b: &[u8], names: &[Vec<u8>], spans: &mut [usize]) -> Result<(usize, bool), Flaw> {
    match quick_scan(b, names, spans) {
        Some(found) => Ok(found),
        None => full_scan(b, names, spans),
    }
}

/// As `scan`; None unless all is well. No `Task`: of a struct the compiler knows less than of arguments, 7 % of the count.
fn quick_scan(b: &[u8], names: &[Vec<u8>], spans: &mut [usize]) -> Option<(usize, bool)> {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx2,bmi1,bmi2")]
        unsafe fn with_avx2(look: Avx2, b: &[u8], names: &[Vec<u8>], spans: &mut [usize]) -> Option<(usize, bool)> {
            Cursor::new(b, look)?.fields(names, spans)
        }
        if let Some(look) = Avx2::found() {
            // SAFETY: a value of `Avx2` says that the processor has all three.
            return unsafe { with_avx2(look, b, names, spans) };
        }
        Cursor::new(b, Sse2)?.fields(names, spans)
    }
    #[cfg(not(target_arch = "x86_64"))]
    Cursor::new(b, Words)?.fields(names, spans)
}

/// As `scan`, a byte after the other.
#[cold]
pub fn full_scan(b: &[u8], names: &[Vec<u8>], spans: &mut [usize]) -> Result<(usize, bool), Flaw> {
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
                plain.as_bytes()
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
///
/// `look(body, arrays)` gives those, and what most bodies need no more than: the value of the first name where it is a
/// string without escapes and not empty, else None; that of the second, true or false (false also where it is missing or
/// null), else None; and whether each name whose bit is set in `arrays` is there with an array.
#[pyclass(frozen)]
pub struct FieldScanner {
    names: Vec<Vec<u8>>,
    /// Strings as they are spelt, because the same few come again and again.
    met: Mutex<HashMap<Vec<u8>, Py<PyString>>>,
}

const MOST_MET: usize = 256;
const MOST_TEXT: usize = 200;
type Spans = [usize; 64];

#[pymethods]
impl FieldScanner {
    #[new]
    fn new(names: Vec<String>) -> PyResult<Self> {
        if names.len() > 32 {
            return Err(PyValueError::new_err("at most 32 names"));
        }
        Ok(Self {
            names: names.into_iter().map(String::into_bytes).collect(),
            met: Mutex::default(),
        })
    }

    fn scan<'py>(&self, py: Python<'py>, body: &Bound<'py, PyBytes>) -> PyResult<Bound<'py, PyTuple>> {
        self.spans(py, body.as_bytes()).map(|found| found.0)
    }

    fn look<'py>(&self, py: Python<'py>, body: &Bound<'py, PyBytes>, arrays: u32) -> PyResult<Bound<'py, PyTuple>> {
        let b = body.as_bytes();
        let (told, spans) = self.spans(py, b)?;
        let value = |k: usize| match spans[2 * k] {
            _ if k >= self.names.len() => None,
            usize::MAX => None,
            start => b.get(start..spans[2 * k + 1]),
        };
        let text = match value(0) {
            Some([b'"', text @ .., b'"']) if !text.is_empty() && memchr(b'\\', text).is_none() => {
                self.meet(py, text)?.into_any()
            }
            _ => py.None().into_bound(py),
        };
        let flag = match value(1) {
            Some(b"true") => PyBool::new(py, true).to_owned().into_any(),
            None | Some(b"false" | b"null") => PyBool::new(py, false).to_owned().into_any(),
            Some(_) => py.None().into_bound(py),
        };
        let (mut good, mut rest) = (true, arrays);
        while rest != 0 {
            good &= value(rest.trailing_zeros() as usize).is_some_and(|v| v[0] == b'[');
            rest &= rest - 1;
        }
        PyTuple::new(
            py,
            [told.into_any(), text, flag, PyBool::new(py, good).to_owned().into_any()],
        )
    }
}

impl FieldScanner {
    fn spans<'py>(&self, py: Python<'py>, body: &[u8]) -> PyResult<(Bound<'py, PyTuple>, Spans)> {
        let mut room = [0; 64];
        let spans = &mut room[..2 * self.names.len()];
        match scan(body, &self.names, spans) {
            Ok((inside, empty)) => {
                let found = spans.iter().map(|s| isize::try_from(*s).unwrap_or(-1));
                let rest = [inside as isize, isize::from(empty)];
                let mut told = [0; 66];
                let n = spans.len() + 2;
                told.iter_mut()
                    .zip(found.chain(rest))
                    .for_each(|(place, one)| *place = one);
                Ok((PyTuple::new(py, &told[..n])?, room))
            }
            Err(Flaw::Json(at, what)) => Err(PyValueError::new_err(("json", at, what))),
            Err(Flaw::Duplicate(at, k)) => Err(PyValueError::new_err((
                "duplicate",
                at,
                String::from_utf8_lossy(&self.names[k]).into_owned(),
            ))),
        }
    }

    /// As a string, which is the same object for those that come again.
    fn meet<'py>(&self, py: Python<'py>, text: &[u8]) -> PyResult<Bound<'py, PyString>> {
        let mut met = self.met.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = met.get(text) {
            return Ok(known.clone_ref(py).into_bound(py));
        }
        let made = PyString::new(py, std::str::from_utf8(text)?);
        let mut old = HashMap::new();
        if text.len() <= MOST_TEXT {
            if met.len() >= MOST_MET {
                old = std::mem::take(&mut *met);
            }
            met.insert(text.to_vec(), made.clone().unbind());
        }
        drop(met);
        drop(old);
        Ok(made)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(body: &str) -> Result<Vec<usize>, Flaw> {
        let names = [b"model".to_vec(), b"stream".to_vec()];
        let mut spans = [0; 4];
        scan(body.as_bytes(), &names, &mut spans).map(|_| spans.to_vec())
    }

    #[test]
    fn finds_values_and_leaves_the_rest() {
        let body = r#" {"a":[1,{"model":2}], "model" : "x\"y", "stream":true} "#;
        let s = found(body).unwrap();
        assert_eq!(&body[s[0]..s[1]], r#""x\"y""#);
        assert_eq!(&body[s[2]..s[3]], "true");
    }

    #[test]
    fn refuses_a_name_that_stands_twice_however_spelt() {
        assert!(matches!(found(r#"{"model":1,"model":2}"#), Err(Flaw::Duplicate(_, 0))));
        assert!(matches!(
            found(r#"{"model":1,"mod\u0065l":2}"#),
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
            assert!(matches!(found(bad), Err(Flaw::Json(..))), "{bad}");
        }
    }

    #[test]
    fn bounds_the_depth() {
        let deep = |n: usize| format!("{{\"a\":{}{}}}", "[".repeat(n), "]".repeat(n));
        assert!(found(&deep(127)).is_ok());
        assert!(found(&deep(128)).is_err());
        assert!(found(&deep(100_000)).is_err());
    }

    #[test]
    fn every_truncation_is_refused() {
        let body = r#"{"model":"aé😀\n","stream":true,"m":[{"b":-1.5e+3,"c":[null,false,{}]}]}"#;
        for n in 0..body.len() {
            let names = [b"model".to_vec()];
            assert!(scan(&body.as_bytes()[..n], &names, &mut [0; 2]).is_err(), "{n}");
        }
        assert!(found(body).is_ok());
    }
}
