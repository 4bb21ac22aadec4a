//! What Python sees of an upstream's origin: `Head`, `Trust` and `Pool`.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri};
use pyo3::buffer::PyBuffer;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBytes, PyList, PyTuple};
use rustls::ClientConfig;

use super::call::{self, Call};
use super::client::PyCall;
use super::hooks::hooks_of;
use super::reactor::reactor_of;
use super::tls::client_config;
use super::whole::Whole;

/// The head of requests to one endpoint of an origin, put together once.
#[pyclass(frozen)]
pub struct Head {
    target: Uri,
    headers: HeaderMap,
}

#[pymethods]
impl Head {
    /// `target` as it stands in the request line; `headers` without content-length.
    #[new]
    fn new(target: &str, headers: Vec<(Vec<u8>, Vec<u8>)>) -> PyResult<Self> {
        let target = target
            .parse()
            .map_err(|_| PyValueError::new_err("the upstream's path is not valid"))?;
        let mut map = HeaderMap::with_capacity(headers.len() + 4);
        for (name, value) in headers {
            let (name, value) = line(&name, &value)?;
            map.append(name, value);
        }
        Ok(Self { target, headers: map })
    }
}

fn line(name: &[u8], value: &[u8]) -> PyResult<(HeaderName, HeaderValue)> {
    let name = HeaderName::from_bytes(name).map_err(|_| PyValueError::new_err("a header's name is not valid"))?;
    let value = HeaderValue::from_bytes(value)
        .map_err(|_| PyValueError::new_err(format!("the value of the header {name} is not valid")))?;
    Ok((name, value))
}

/// The authorities that upstreams are checked against. Sessions are resumed by those who share one.
#[pyclass(frozen)]
pub struct Trust(Arc<ClientConfig>);

#[pymethods]
impl Trust {
    /// `roots`: certificates of authorities, each as DER.
    #[new]
    fn new(roots: Vec<Vec<u8>>) -> PyResult<Self> {
        client_config(&roots).map(Self).map_err(PyValueError::new_err)
    }
}

impl Trust {
    pub fn config(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.0)
    }
}

/// msgspec's: a Struct's fields.
static ASTUPLE: PyOnceLock<Py<PyAny>> = PyOnceLock::new();

// The places of what is read of a Request (upstream/call.py); the first one is its path.
const STREAM: usize = 1;
const PIECES: usize = 2;
const LENGTH: usize = 3;
const FORWARD: usize = 4;
const NOW: usize = 5;
const FIRST: usize = 6;
const DEADLINE: usize = 7;
const CONNECT_MS: usize = 8;
const IDLE: usize = 9;

/// The connections to one origin. Made by `Engine.pool`.
#[pyclass(frozen)]
pub struct Pool {
    pub engine: u64,
    pub id: usize,
    /// Bytes of an answer at most.
    pub most_answer: usize,
    /// The engine's side ends when this is gone and its last connection.
    pub held: Arc<()>,
}

#[pymethods]
impl Pool {
    /// Send `request` (upstream/call.py: Request): on an idle connection if `reuse`, else on a new one to one of
    /// `addresses`. None where neither is given.
    fn open(
        &self,
        py: Python<'_>,
        head: &Head,
        request: &Bound<'_, PyAny>,
        reuse: bool,
        addresses: Option<Vec<(String, u16)>>,
    ) -> PyResult<Option<PyCall>> {
        let core = reactor_of(self.engine)?;
        let pool = core.pool(self.id)?;
        if addresses.is_none() && !(reuse && pool.has_idle()) {
            return Ok(None);
        }
        let astuple = ASTUPLE.import(py, "msgspec.structs", "astuple")?;
        let fields = astuple.call1((request,))?.downcast_into::<PyTuple>()?;
        let number = |at| fields.get_borrowed_item(at)?.extract::<u64>();
        let whole = !fields.get_borrowed_item(STREAM)?.is_truthy()?;
        let connect_ns = number(NOW)? + number(CONNECT_MS)? * 1_000_000;
        let (first_ns, deadline_ns, idle_ns) = (number(FIRST)?, number(DEADLINE)?, number(IDLE)?);
        let length = number(LENGTH)? as usize;
        let body = body_of(fields.get_borrowed_item(PIECES)?.downcast::<PyList>()?, length)?;
        let mut headers = head.headers.clone();
        let forward = fields.get_borrowed_item(FORWARD)?;
        for pair in (forward.len()? > 0)
            .then(|| forward.try_iter())
            .transpose()?
            .into_iter()
            .flatten()
        {
            let pair = pair?.downcast_into::<PyTuple>()?;
            let (name, value) = (pair.get_item(0)?, pair.get_item(1)?);
            let (name, value) = line(
                name.downcast::<PyBytes>()?.as_bytes(),
                value.downcast::<PyBytes>()?.as_bytes(),
            )?;
            headers.append(name, value);
        }
        let mut request = Request::new(Whole::new(body));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = head.target.clone();
        *request.headers_mut() = headers;
        // Nothing fails from here on: what is taken out of the pool is used.
        let idle = if reuse { pool.checkout() } else { None };
        if idle.is_none() && addresses.is_none() {
            return Ok(None);
        }
        let silent = if whole { call::SILENT_PLAIN } else { call::SILENT_TTFT };
        let make = |waker| {
            let call = Call::new(waker, whole, self.most_answer);
            let mut state = call.lock();
            state.limit(first_ns, silent, deadline_ns, idle_ns);
            state.connect_ns = connect_ns;
            drop(state);
            call
        };
        let call = match idle {
            Some(conn) => {
                let call = make(conn.waker().clone());
                conn.give(Arc::clone(&call), request);
                call
            }
            None => {
                // Best last, as they are taken from the end.
                let found = addresses.unwrap_or_default();
                let addresses = found
                    .iter()
                    .rev()
                    .filter_map(|(ip, port)| Some(SocketAddr::new(ip.parse::<IpAddr>().ok()?, *port)))
                    .collect();
                core.dial(&pool, addresses, request, make)
            }
        };
        if let Some(hooks) = hooks_of(self.engine) {
            hooks.schedule(py)?;
        }
        Ok(Some(PyCall {
            call,
            engine: self.engine,
        }))
    }

    /// Idle connections are closed, the others after their answer.
    fn retire(&self, py: Python<'_>) -> PyResult<()> {
        reactor_of(self.engine)?.retire(self.id)?;
        hooks_of(self.engine).map_or(Ok(()), |hooks| hooks.schedule(py))
    }

    #[getter]
    fn size(&self) -> PyResult<usize> {
        Ok(reactor_of(self.engine)?.pool(self.id)?.size())
    }
}

fn body_of(pieces: &Bound<'_, PyList>, length: usize) -> PyResult<Bytes> {
    let mut body = BytesMut::with_capacity(length);
    for piece in pieces.iter() {
        if let Ok(bytes) = piece.downcast::<PyBytes>() {
            body.extend_from_slice(bytes.as_bytes());
            continue;
        }
        let view: PyBuffer<u8> = PyBuffer::get(&piece)?;
        let cells = view
            .as_slice(piece.py())
            .ok_or_else(|| PyValueError::new_err("a piece with gaps"))?;
        // SAFETY: a cell is its byte. Python runs nothing while they are copied, so nobody writes to them.
        let bytes = unsafe { std::slice::from_raw_parts(cells.as_ptr().cast::<u8>(), cells.len()) };
        body.extend_from_slice(bytes);
    }
    Ok(body.freeze())
}
