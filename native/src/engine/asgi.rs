//! What Python sees of a request: the scope, `receive`, `send`, and awaitables that are ready where nothing is waited for.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::thread::ThreadId;

use bytes::Bytes;
use http::{header, request, HeaderName, HeaderValue, StatusCode, Version};
use pyo3::exceptions::{PyRuntimeError, PyStopIteration, PyTypeError, PyValueError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::types::{PyBytes, PyDict, PyList, PyString, PyTuple};

use super::request::{refuse, respond, Got, Head, Req, HIGH};

/// The loop's side. Objects of one request hold it no longer than that request.
pub struct Hooks {
    pub app: Py<PyAny>,
    pub create_future: Py<PyAny>,
    pub create_task: Py<PyAny>,
    pub call_soon: Py<PyAny>,
    /// `Engine.run` of the engine that this belongs to.
    pub run: Py<PyAny>,
    /// The loop's exception handler.
    pub report: Py<PyAny>,
    pub scope: Py<PyDict>,
    pub nothing: Py<Nothing>,
    pub thread: ThreadId,
    /// `run` is in the loop's queue, or the engine is at work and will look again before it ends.
    pub scheduled: AtomicBool,
}

impl Hooks {
    /// Something is marked: let `run` come, once.
    pub fn schedule(&self, py: Python<'_>) -> PyResult<()> {
        if !self.scheduled.swap(true, Ordering::AcqRel) {
            self.call_soon.call1(py, (&self.run,))?;
        }
        Ok(())
    }

    fn tell(&self, py: Python<'_>, what: &str, err: PyErr) {
        let context = PyDict::new(py);
        let told = context
            .set_item("message", what)
            .and_then(|()| context.set_item("exception", err.value(py)))
            .and_then(|()| self.report.call1(py, (&context,)));
        if let Err(other) = told {
            other.write_unraisable(py, None);
        }
    }
}

/// An awaitable that is ready with `None`. One for all.
#[pyclass(frozen)]
pub struct Nothing;

#[pymethods]
impl Nothing {
    fn __await__(slf: Py<Self>) -> Py<Self> {
        slf
    }
    fn __iter__(slf: Py<Self>) -> Py<Self> {
        slf
    }
    fn __next__(&self) -> Option<Py<PyAny>> {
        None // StopIteration without a value
    }
}

/// An awaitable that is ready with a value.
#[pyclass]
pub struct Ready(Option<Py<PyAny>>);

#[pymethods]
impl Ready {
    fn __await__(slf: Py<Self>) -> Py<Self> {
        slf
    }
    fn __iter__(slf: Py<Self>) -> Py<Self> {
        slf
    }
    fn __next__(&mut self) -> PyResult<Py<PyAny>> {
        match self.0.take() {
            Some(value) => Err(PyStopIteration::new_err((value,))),
            None => Err(PyRuntimeError::new_err("cannot reuse an awaitable that was awaited")),
        }
    }
}

/// One request's `receive` and `send`.
#[pyclass(frozen)]
pub struct Exchange {
    req: Arc<Req>,
    hooks: Arc<Hooks>,
}

#[pymethods]
impl Exchange {
    fn receive<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.check()?;
        let got = self.req.lock().take();
        if let Some(got) = got {
            return Ok(Bound::new(py, Ready(Some(event(py, got)?.into_any().unbind())))?.into_any());
        }
        let future = self.hooks.create_future.bind(py).call0()?;
        {
            let mut state = self.req.lock();
            state.watched = true;
            state.receivers.push(future.clone().unbind());
        }
        self.wake(py)?;
        Ok(future)
    }

    fn send<'py>(&self, py: Python<'py>, message: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        self.check()?;
        let kind = message.get_item(intern!(py, "type"))?;
        let kind = kind.downcast::<PyString>()?.to_str()?;
        match kind {
            "http.response.body" => self.send_body(py, message),
            "http.response.start" => {
                let head = head_of(py, message)?;
                let mut state = self.req.lock();
                if state.started || state.head.is_some() {
                    return Err(PyRuntimeError::new_err("the response has already been started"));
                }
                if !state.over {
                    state.head = Some(head);
                }
                drop(state);
                self.ready(py)
            }
            other => Err(PyValueError::new_err(format!("unexpected ASGI message {other:?}"))),
        }
    }

    /// The task has ended, one way or another.
    fn done(&self, py: Python<'_>, task: &Bound<'_, PyAny>) -> PyResult<()> {
        let (ours, waiting) = {
            let mut state = self.req.lock();
            let waiting = (std::mem::take(&mut state.receivers), std::mem::take(&mut state.senders));
            (state.task.take(), waiting)
        };
        drop(waiting); // whoever waited there has ended
        drop(ours);
        if !task.call_method0(intern!(py, "cancelled"))?.is_truthy()? {
            let exception = task.call_method0(intern!(py, "exception"))?;
            if !exception.is_none() {
                self.hooks.tell(py, "the application failed", PyErr::from_value(exception));
            }
        }
        self.abandon(py)
    }
}

impl Exchange {
    fn check(&self) -> PyResult<()> {
        if std::thread::current().id() == self.hooks.thread {
            Ok(())
        } else {
            Err(PyRuntimeError::new_err("used from a thread that is not the event loop's"))
        }
    }

    fn wake(&self, py: Python<'_>) -> PyResult<()> {
        self.req.waker.wake_by_ref();
        self.hooks.schedule(py)
    }

    fn ready<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        Ok(self.hooks.nothing.clone_ref(py).into_bound(py).into_any())
    }

    fn send_body<'py>(&self, py: Python<'py>, message: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        let (body, more) = if let Ok(dict) = message.downcast_exact::<PyDict>() {
            (dict.get_item(intern!(py, "body"))?, dict.get_item(intern!(py, "more_body"))?)
        } else {
            (
                message.call_method1(intern!(py, "get"), (intern!(py, "body"),)).map(Some)?,
                message.call_method1(intern!(py, "get"), (intern!(py, "more_body"),)).map(Some)?,
            )
        };
        let more = more.map_or(Ok(false), |m| m.is_truthy())?;
        let data = match body {
            Some(body) if !body.is_none() => bytes_of(&body)?,
            _ => Bytes::new(),
        };
        let full = {
            let mut state = self.req.lock();
            if state.over {
                // The client has left; `receive` says so.
                state.finished |= !more;
                return self.ready(py);
            }
            if state.finished {
                return Err(PyRuntimeError::new_err("the response is already complete"));
            }
            if !state.started {
                let Some(head) = state.head.take() else {
                    return Err(PyRuntimeError::new_err("http.response.start must come before the body"));
                };
                state.started = true;
                let exact = (!more).then_some(data.len() as u64);
                state.response = Some(respond(&self.req, head, exact));
            }
            state.push(data);
            state.finished = !more;
            state.out_size > HIGH
        };
        self.wake(py)?;
        if !full {
            return self.ready(py);
        }
        let future = self.hooks.create_future.bind(py).call0()?;
        self.req.lock().senders.push(future.clone().unbind());
        Ok(future)
    }

    /// Nothing more comes from the app: an answer that is not complete is cut off, one that was not begun is a 500.
    fn abandon(&self, py: Python<'_>) -> PyResult<()> {
        {
            let mut state = self.req.lock();
            if state.finished || state.over {
                return Ok(());
            }
            if state.started {
                state.cut = true;
            } else {
                state.started = true;
                state.finished = true;
                state.response = Some(refuse(&self.req, StatusCode::INTERNAL_SERVER_ERROR));
            }
        }
        self.wake(py)
    }
}

fn bytes_of(body: &Bound<'_, PyAny>) -> PyResult<Bytes> {
    if let Ok(bytes) = body.downcast::<PyBytes>() {
        let data = bytes.as_bytes();
        if data.len() <= 16 * 1024 {
            return Ok(Bytes::copy_from_slice(data));
        }
        return Ok(Bytes::from_owner(PyBackedBytes::from(bytes.clone())));
    }
    let data: Vec<u8> = body.extract().map_err(|_| PyTypeError::new_err("`body` must be bytes"))?;
    Ok(data.into())
}

fn head_of(py: Python<'_>, message: &Bound<'_, PyAny>) -> PyResult<Head> {
    let status: u16 = message.get_item(intern!(py, "status"))?.extract()?;
    let status = StatusCode::from_u16(status).map_err(|_| PyValueError::new_err("`status` is not an HTTP status"))?;
    if status.is_informational() {
        return Err(PyValueError::new_err("`status` is not that of a final response"));
    }
    let mut out = Vec::with_capacity(16);
    let headers = match message.downcast::<PyDict>() {
        Ok(dict) => dict.get_item(intern!(py, "headers"))?,
        Err(_) => Some(message.call_method1(intern!(py, "get"), (intern!(py, "headers"),))?),
    };
    if let Some(headers) = headers.filter(|h| !h.is_none()) {
        for line in headers.try_iter()? {
            let line = line?;
            let (name, value) = if let Ok(pair) = line.downcast_exact::<PyTuple>() {
                (pair.get_item(0)?, pair.get_item(1)?)
            } else {
                (line.get_item(0)?, line.get_item(1)?)
            };
            let name = HeaderName::from_bytes(name.downcast::<PyBytes>()?.as_bytes())
                .map_err(|_| PyValueError::new_err("a response header's name is not valid"))?;
            let value = HeaderValue::from_bytes(value.downcast::<PyBytes>()?.as_bytes())
                .map_err(|_| PyValueError::new_err(format!("the value of the response header {name} is not valid")))?;
            if name != header::TRANSFER_ENCODING {
                out.push((name, value)); // the framing is the server's
            }
        }
    }
    Ok((status, out))
}

fn event(py: Python<'_>, got: Got) -> PyResult<Bound<'_, PyDict>> {
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

/// Call the app for a request that has come.
pub fn begin(py: Python<'_>, hooks: &Arc<Hooks>, req: Arc<Req>, parts: &request::Parts, peer: SocketAddr) {
    let exchange = Exchange {
        req,
        hooks: Arc::clone(hooks),
    };
    let exchange = match Bound::new(py, exchange) {
        Ok(exchange) => exchange,
        Err(err) => return err.write_unraisable(py, None),
    };
    if let Err(err) = start(py, &exchange, parts, peer) {
        hooks.tell(py, "the application could not be called", err);
        if let Err(err) = exchange.get().abandon(py) {
            err.write_unraisable(py, None);
        }
    }
}

fn start(py: Python<'_>, exchange: &Bound<'_, Exchange>, parts: &request::Parts, peer: SocketAddr) -> PyResult<()> {
    let hooks = &exchange.get().hooks;
    let scope = scope(py, hooks, parts, peer)?;
    let receive = exchange.getattr(intern!(py, "receive"))?;
    let send = exchange.getattr(intern!(py, "send"))?;
    let coroutine = hooks.app.bind(py).call1((scope, receive, send))?;
    let task = hooks.create_task.bind(py).call1((coroutine,))?;
    task.call_method1(intern!(py, "add_done_callback"), (exchange.getattr(intern!(py, "done"))?,))?;
    exchange.get().req.lock().task = Some(task.unbind());
    Ok(())
}

fn scope<'py>(
    py: Python<'py>,
    hooks: &Hooks,
    parts: &request::Parts,
    peer: SocketAddr,
) -> PyResult<Bound<'py, PyDict>> {
    // The template has type, asgi, scheme, server, root_path, extensions and http_version 1.1.
    let scope = hooks.scope.bind(py).copy()?;
    if parts.version == Version::HTTP_10 {
        scope.set_item(intern!(py, "http_version"), intern!(py, "1.0"))?;
    }
    let method = match parts.method.as_str() {
        "POST" => intern!(py, "POST").clone(),
        "GET" => intern!(py, "GET").clone(),
        other => PyString::new(py, other),
    };
    scope.set_item(intern!(py, "method"), method)?;
    let raw = parts.uri.path();
    scope.set_item(intern!(py, "path"), decoded(raw))?;
    scope.set_item(intern!(py, "raw_path"), PyBytes::new(py, raw.as_bytes()))?;
    let query = parts.uri.query().unwrap_or_default();
    scope.set_item(intern!(py, "query_string"), PyBytes::new(py, query.as_bytes()))?;
    scope.set_item(intern!(py, "client"), (peer.ip().to_string(), peer.port()))?;
    let lines = parts.headers.iter().map(|(name, value)| {
        (PyBytes::new(py, name.as_str().as_bytes()), PyBytes::new(py, value.as_bytes()))
    });
    let lines: Vec<_> = lines.collect();
    scope.set_item(intern!(py, "headers"), PyList::new(py, lines)?)?;
    if let Some(state) = scope.get_item(intern!(py, "state"))? {
        scope.set_item(intern!(py, "state"), state.downcast::<PyDict>()?.copy()?)?;
    }
    Ok(scope)
}

/// A path with its percent-escapes undone.
fn decoded(raw: &str) -> std::borrow::Cow<'_, str> {
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

/// Wake those who wait in `receive`, all with the same event.
pub fn deliver(py: Python<'_>, req: &Arc<Req>) {
    let (waiting, got) = {
        let mut state = req.lock();
        if state.receivers.is_empty() || !state.receivable() {
            return;
        }
        (std::mem::take(&mut state.receivers), state.take())
    };
    let Some(got) = got else { return };
    match event(py, got) {
        Ok(event) => resolve(py, waiting, event.as_any()),
        Err(err) => err.write_unraisable(py, None),
    }
}

/// Wake those who wait in `send`.
pub fn release(py: Python<'_>, req: &Arc<Req>) {
    let waiting = std::mem::take(&mut req.lock().senders);
    resolve(py, waiting, py.None().bind(py));
}

fn resolve(py: Python<'_>, waiting: Vec<Py<PyAny>>, value: &Bound<'_, PyAny>) {
    for future in waiting {
        let future = future.into_bound(py);
        let result = (|| -> PyResult<()> {
            if !future.call_method0(intern!(py, "done"))?.is_truthy()? {
                future.call_method1(intern!(py, "set_result"), (value,))?;
            }
            Ok(())
        })();
        if let Err(err) = result {
            err.write_unraisable(py, None);
        }
    }
}
