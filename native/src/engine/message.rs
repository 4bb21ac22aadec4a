//! ASGI's messages: Python's dicts to and from what the engine works with.

use std::cell::RefCell;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::net::SocketAddr;

use bytes::Bytes;
use http::{header, request, HeaderName, HeaderValue, StatusCode, Version};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::types::{PyBytes, PyDict, PyList, PyString, PyTuple};

use super::request::{Got, Head};

const MOST_HEADERS: usize = 1000;

/// A piece of a body. Long ones are not copied.
pub fn bytes_of(body: &Bound<'_, PyAny>) -> PyResult<Bytes> {
    if let Ok(bytes) = body.downcast::<PyBytes>() {
        let data = bytes.as_bytes();
        if data.len() <= 16 * 1024 {
            return Ok(Bytes::copy_from_slice(data));
        }
        return Ok(Bytes::from_owner(PyBackedBytes::from(bytes.clone())));
    }
    let data: Vec<u8> = body
        .extract()
        .map_err(|_| PyTypeError::new_err("`body` must be bytes"))?;
    Ok(data.into())
}

type Line = (HeaderName, HeaderValue);

thread_local! {
    /// Header lines that the app keeps and sends again and again (they are found by the identity of their tuple, which
    /// is held here), ready to be used.
    static KEPT: RefCell<Kept> = RefCell::default();
}

type Kept = HashMap<usize, (Py<PyTuple>, Line), BuildHasherDefault<Place>>;

/// A hash of an address that nobody outside chooses.
#[derive(Default)]
struct Place(u64);

impl Hasher for Place {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _: &[u8]) {
        unreachable!("addresses are hashed whole");
    }

    fn write_usize(&mut self, at: usize) {
        self.0 = (at as u64 >> 4).wrapping_mul(0x9E37_79B9_7F4A_7C15); // Fibonacci hashing: the map looks at the top bits
    }
}

/// Lines, or clients, that are kept; then the memory of them begins anew.
const MOST_KEPT: usize = 1024;

fn line(line: &Bound<'_, PyAny>) -> PyResult<Line> {
    let (name, value) = if let Ok(pair) = line.downcast_exact::<PyTuple>() {
        // One that nobody but the list holds is made for this answer only.
        if pair.get_refcnt() <= 2 {
            (
                pair.get_borrowed_item(0)?.to_owned(),
                pair.get_borrowed_item(1)?.to_owned(),
            )
        } else {
            return kept_line(pair);
        }
    } else {
        (line.get_item(0)?, line.get_item(1)?)
    };
    made_line(&name, &value)
}

fn made_line(name: &Bound<'_, PyAny>, value: &Bound<'_, PyAny>) -> PyResult<Line> {
    let name = HeaderName::from_bytes(name.downcast::<PyBytes>()?.as_bytes())
        .map_err(|_| PyValueError::new_err("a response header's name is not valid"))?;
    let value = HeaderValue::from_bytes(value.downcast::<PyBytes>()?.as_bytes())
        .map_err(|_| PyValueError::new_err(format!("the value of the response header {name} is not valid")))?;
    Ok((name, value))
}

fn kept_line(pair: &Bound<'_, PyTuple>) -> PyResult<Line> {
    let key = pair.as_ptr() as usize;
    if let Some(found) = KEPT.with_borrow(|kept| kept.get(&key).map(|one| one.1.clone())) {
        return Ok(found);
    }
    let made = made_line(&pair.get_item(0)?, &pair.get_item(1)?)?;
    let old = KEPT.with_borrow_mut(|kept| {
        let old = if kept.len() >= MOST_KEPT {
            std::mem::take(kept)
        } else {
            Kept::default()
        };
        kept.insert(key, (pair.clone().unbind(), made.clone()));
        old
    });
    drop(old); // Python's destructors run here, with nothing borrowed
    Ok(made)
}

/// Status and headers of http.response.start.
pub fn head_of(py: Python<'_>, message: &Bound<'_, PyAny>) -> PyResult<Head> {
    let status: u16 = message.get_item(intern!(py, "status"))?.extract()?;
    let headers = match message.downcast::<PyDict>() {
        Ok(dict) => dict.get_item(intern!(py, "headers"))?,
        Err(_) => Some(message.call_method1(intern!(py, "get"), (intern!(py, "headers"),))?),
    };
    head(status, headers.filter(|h| !h.is_none()).as_ref())
}

/// A response's head from its status and its list of (name, value).
pub fn head(status: u16, headers: Option<&Bound<'_, PyAny>>) -> PyResult<Head> {
    let status = StatusCode::from_u16(status).map_err(|_| PyValueError::new_err("`status` is not an HTTP status"))?;
    if status.is_informational() {
        return Err(PyValueError::new_err("`status` is not that of a final response"));
    }
    let mut out = Vec::with_capacity(16);
    let mut add = |one: &Bound<'_, PyAny>| {
        if out.len() >= MOST_HEADERS {
            return Err(PyValueError::new_err(format!(
                "more than {MOST_HEADERS} response headers"
            )));
        }
        let line = line(one)?;
        if line.0 != header::TRANSFER_ENCODING {
            out.push(line); // the framing is the server's
        }
        Ok(())
    };
    match headers {
        None => {}
        Some(headers) => match headers.downcast_exact::<PyList>() {
            Ok(list) => list.iter().try_for_each(|one| add(&one))?,
            Err(_) => headers.try_iter()?.try_for_each(|one| add(&one?))?,
        },
    }
    Ok((status, out))
}

/// The event that `receive` gives.
pub fn event(py: Python<'_>, got: Got) -> PyResult<Bound<'_, PyDict>> {
    let dict = PyDict::new(py);
    match got {
        Got::Disconnect => dict.set_item(intern!(py, "type"), intern!(py, "http.disconnect"))?,
        Got::Body(chunks, size, more) => {
            let body = match chunks.as_slice() {
                [one] => PyBytes::new(py, one),
                many => PyBytes::new_with(py, size, |room| {
                    let mut at = 0;
                    for chunk in many {
                        room[at..at + chunk.len()].copy_from_slice(chunk);
                        at += chunk.len();
                    }
                    Ok(())
                })?,
            };
            dict.set_item(intern!(py, "type"), intern!(py, "http.request"))?;
            dict.set_item(intern!(py, "body"), body)?;
            dict.set_item(intern!(py, "more_body"), more)?;
        }
    }
    Ok(dict)
}

thread_local! {
    /// Clients as a scope names them: a connection is good for many requests.
    static CLIENTS: RefCell<HashMap<SocketAddr, Py<PyTuple>>> = RefCell::default();
}

fn client(py: Python<'_>, peer: SocketAddr) -> PyResult<Bound<'_, PyTuple>> {
    if let Some(known) = CLIENTS.with_borrow(|all| all.get(&peer).map(|one| one.clone_ref(py))) {
        return Ok(known.into_bound(py));
    }
    let made = (peer.ip().to_string(), peer.port()).into_pyobject(py)?;
    let old = CLIENTS.with_borrow_mut(|all| {
        let old = if all.len() >= MOST_KEPT {
            std::mem::take(all)
        } else {
            HashMap::new()
        };
        all.insert(peer, made.clone().unbind());
        old
    });
    drop(old); // Python's destructors run here, with nothing borrowed
    Ok(made)
}

/// The scope of a request.
pub fn scope<'py>(
    py: Python<'py>,
    template: &Bound<'py, PyDict>,
    parts: &request::Parts,
    peer: SocketAddr,
) -> PyResult<Bound<'py, PyDict>> {
    // The template has type, asgi, scheme, server, root_path, extensions and http_version 1.1.
    let scope = template.copy()?;
    if parts.version == Version::HTTP_10 {
        scope.set_item(intern!(py, "http_version"), intern!(py, "1.0"))?;
    }
    scope.set_item(intern!(py, "method"), method(py, parts))?;
    let raw = parts.uri.path();
    scope.set_item(intern!(py, "path"), decoded(raw))?;
    scope.set_item(intern!(py, "raw_path"), PyBytes::new(py, raw.as_bytes()))?;
    let query = parts.uri.query().unwrap_or_default();
    scope.set_item(intern!(py, "query_string"), PyBytes::new(py, query.as_bytes()))?;
    scope.set_item(intern!(py, "client"), client(py, peer)?)?;
    scope.set_item(intern!(py, "headers"), lines(py, parts)?)?;
    if let Some(state) = scope.get_item(intern!(py, "state"))? {
        scope.set_item(intern!(py, "state"), state.downcast::<PyDict>()?.copy()?)?;
    }
    Ok(scope)
}

pub fn method<'py>(py: Python<'py>, parts: &request::Parts) -> Bound<'py, PyString> {
    match parts.method.as_str() {
        "POST" => intern!(py, "POST").clone(),
        "GET" => intern!(py, "GET").clone(),
        other => PyString::new(py, other),
    }
}

/// The headers of a request as a list of (name, value).
pub fn lines<'py>(py: Python<'py>, parts: &request::Parts) -> PyResult<Bound<'py, PyList>> {
    let lines = parts.headers.iter().map(|(name, value)| {
        (
            PyBytes::new(py, name.as_str().as_bytes()),
            PyBytes::new(py, value.as_bytes()),
        )
    });
    PyList::new(py, lines.collect::<Vec<_>>())
}

/// A path with its percent-escapes undone.
pub fn decoded(raw: &str) -> std::borrow::Cow<'_, str> {
    if !raw.contains('%') {
        return raw.into();
    }
    let bytes = raw.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        let hex = |at: usize| bytes.get(at).and_then(|c| (*c as char).to_digit(16));
        match (bytes[i], hex(i + 1), hex(i + 2)) {
            (b'%', Some(high), Some(low)) => {
                out.push((high << 4 | low) as u8);
                i += 3;
            }
            (c, ..) => {
                out.push(c);
                i += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned().into()
}
