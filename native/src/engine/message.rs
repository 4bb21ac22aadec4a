//! ASGI's messages: Python's dicts to and from what the engine works with.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::net::SocketAddr;

use bytes::Bytes;
use http::{header, request, HeaderMap, HeaderName, HeaderValue, StatusCode, Version};
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

/// Header lines that the app keeps and sends again and again, ready to be used. They are known by the identity of their
/// tuples, which are held here.
struct Kept {
    lines: Vec<Py<PyTuple>>,
    map: HeaderMap,
}

type Places<T> = RefCell<HashMap<usize, T, BuildHasherDefault<Place>>>;

thread_local! {
    static KEPT: Places<Kept> = RefCell::default();
    static NAMES: Places<(Py<PyBytes>, HeaderName)> = RefCell::default();
    /// Sets that came once lately: what comes only once is not worth keeping.
    static SEEN: Cell<[usize; MOST_SEEN]> = const { Cell::new([0; MOST_SEEN]) };
}

/// A hash of addresses that nobody outside chooses.
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

/// Sets of lines, or clients, that are kept; then the memory of them begins anew.
const MOST_KEPT: usize = 512;
const MOST_SEEN: usize = 64;
/// Lines of such a set; an answer with more is put together line by line.
const MOST_LINES: usize = 32;

fn line(pair: &Bound<'_, PyAny>) -> PyResult<Line> {
    let (name, value) = match pair.downcast_exact::<PyTuple>() {
        Ok(pair) => (
            pair.get_borrowed_item(0)?.to_owned(),
            pair.get_borrowed_item(1)?.to_owned(),
        ),
        Err(_) => (pair.get_item(0)?, pair.get_item(1)?),
    };
    let name = name_of(name.downcast::<PyBytes>()?)?;
    let value = HeaderValue::from_bytes(value.downcast::<PyBytes>()?.as_bytes())
        .map_err(|_| PyValueError::new_err(format!("the value of the response header {name} is not valid")))?;
    Ok((name, value))
}

/// A name; those that the app has as constants are known by their identity.
fn name_of(name: &Bound<'_, PyBytes>) -> PyResult<HeaderName> {
    let place = name.as_ptr() as usize;
    if let Some(known) = NAMES.with_borrow(|all| all.get(&place).map(|one| one.1.clone())) {
        return Ok(known);
    }
    let made = HeaderName::from_bytes(name.as_bytes())
        .map_err(|_| PyValueError::new_err("a response header's name is not valid"))?;
    if name.get_refcnt() > 3 {
        let old = NAMES.with_borrow_mut(|all| {
            let full = all.len() >= MOST_KEPT;
            let old = if full { std::mem::take(all) } else { HashMap::default() };
            all.insert(place, (name.clone().unbind(), made.clone()));
            old
        });
        drop(old);
    }
    Ok(made)
}

fn add(map: &mut HeaderMap, pair: &Bound<'_, PyAny>) -> PyResult<()> {
    let (name, value) = line(pair)?;
    if name != header::TRANSFER_ENCODING {
        map.append(name, value); // the framing is the server's
    }
    Ok(())
}

/// The headers of a list: those that the app keeps as one set, and the others behind them.
fn headers_of(list: &Bound<'_, PyList>) -> PyResult<HeaderMap> {
    let n = list.len();
    if n > MOST_LINES {
        let mut map = HeaderMap::with_capacity(n + 1);
        list.iter().try_for_each(|pair| add(&mut map, &pair))?;
        return Ok(map);
    }
    // One that nobody but the list holds is made for this answer only.
    let (mut kept, mut fresh) = ([0; MOST_LINES], [0; MOST_LINES]);
    let (mut k, mut f, mut place) = (0, 0, 0_usize);
    for (at, pair) in list.iter().enumerate() {
        if pair.get_refcnt() > 2 && pair.is_exact_instance_of::<PyTuple>() {
            kept[k] = at;
            k += 1;
            place = place.rotate_left(7) ^ pair.as_ptr() as usize;
        } else {
            fresh[f] = at;
            f += 1;
        }
    }
    let pair = |at: &usize| list.get_item(*at);
    let same = |one: &Kept| {
        let mut known = one.lines.iter().zip(&kept[..k]);
        one.lines.len() == k && known.all(|(line, at)| pair(at).is_ok_and(|pair| pair.is(line)))
    };
    let known = KEPT.with_borrow(|all| all.get(&place).filter(|one| same(one)).map(|one| one.map.clone()));
    let mut map = match known {
        Some(map) => map,
        None => keep(list, &kept[..k], place, n)?,
    };
    fresh[..f].iter().try_for_each(|at| add(&mut map, &pair(at)?))?;
    Ok(map)
}

/// Keep these lines of the list as a set.
fn keep(list: &Bound<'_, PyList>, kept: &[usize], place: usize, room: usize) -> PyResult<HeaderMap> {
    let mut map = HeaderMap::with_capacity(room + 2);
    let mut lines = Vec::with_capacity(kept.len());
    for at in kept {
        let pair = list.get_item(*at)?;
        add(&mut map, &pair)?;
        lines.push(pair.downcast_into::<PyTuple>()?.unbind());
    }
    let mut seen = SEEN.get();
    let before = std::mem::replace(&mut seen[place / 16 % MOST_SEEN], place);
    SEEN.set(seen);
    if before != place {
        return Ok(map);
    }
    let one = Kept {
        lines,
        map: map.clone(),
    };
    let old = KEPT.with_borrow_mut(|all| {
        let full = all.len() >= MOST_KEPT;
        let old = if full { std::mem::take(all) } else { HashMap::default() };
        (all.insert(place, one), old)
    });
    drop(old); // Python's destructors run here, with nothing borrowed
    Ok(map)
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
    let Some(headers) = headers else {
        return Ok((status, HeaderMap::new()));
    };
    let list = match headers.downcast_exact::<PyList>() {
        Ok(list) => list.clone(),
        Err(_) => PyList::new(headers.py(), headers.try_iter()?.collect::<PyResult<Vec<_>>>()?)?,
    };
    if list.len() > MOST_HEADERS {
        return Err(PyValueError::new_err(format!(
            "more than {MOST_HEADERS} response headers"
        )));
    }
    Ok((status, headers_of(&list)?))
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
