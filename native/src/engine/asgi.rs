//! What Python sees of a request: `receive`, `send`, and awaitables that are ready where nothing is waited for.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::ThreadId;

use bytes::Bytes;
use http::{request, StatusCode};
use pyo3::exceptions::{PyException, PyRuntimeError, PyValueError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList, PyString, PyTuple};

use super::hooks::{hooks_of, Hooks};
use super::message::{bytes_of, decoded, event, head, head_of, lines, method, scope};
use super::request::{refuse, respond, Got, Req, HIGH};
use super::task::Task;
use super::wake::{Nothing, Ready, Wake};
use crate::kernels::head::{told, HeadReader};

/// One request's `receive` and `send`.
#[pyclass(frozen)]
pub struct Exchange {
    req: Arc<Req>,
    engine: u64,
    thread: ThreadId,
    /// What an app that is called with this has not read yet: it is let go as soon as it may be, because it holds the
    /// buffer that the request came in.
    parts: Mutex<Option<Box<request::Parts>>>,
}

#[pymethods]
impl Exchange {
    #[getter]
    fn path<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyString>> {
        self.parts(|parts| Ok(PyString::new(py, &decoded(parts.uri.path()))))
    }

    #[getter]
    fn method<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyString>> {
        self.parts(|parts| Ok(method(py, parts)))
    }

    /// All headers, as ASGI's scope has them.
    fn headers<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        self.parts(|parts| lines(py, parts))
    }

    /// What `reader` reads of the headers; path, method and headers are gone after that.
    fn head<'py>(&self, py: Python<'py>, reader: &HeadReader) -> PyResult<Bound<'py, PyTuple>> {
        let parts = self.lock().take().ok_or_else(read_already)?;
        let pairs = parts.headers.iter();
        let pairs = pairs.map(|(name, value)| (name.as_str().as_bytes(), value.as_bytes()));
        told(py, reader.find(parts.headers.len(), pairs))
    }

    /// What a relay writes to.
    #[getter]
    fn relay_to<'py>(slf: Bound<'py, Self>) -> Bound<'py, Self> {
        slf
    }

    fn receive<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let hooks = self.hooks()?;
        let got = self.req.lock().take();
        if let Some(got) = got {
            return Ok(Bound::new(py, Ready::new(event(py, got)?.into_any().unbind()))?.into_any());
        }
        let Some(hooks) = hooks else {
            let event = event(py, Got::Disconnect)?.into_any().unbind();
            return Ok(Bound::new(py, Ready::new(event))?.into_any());
        };
        let wake = Wake::new(py, self.engine)?;
        {
            let mut state = self.req.lock();
            state.watched = true;
            state.receivers.push(wake.clone_ref(py));
        }
        self.wake(py, &hooks)?;
        Ok(wake.into_bound(py).into_any())
    }

    fn send<'py>(&self, py: Python<'py>, message: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        let Some(hooks) = self.hooks()? else {
            return Ok(Bound::new(py, Nothing)?.into_any()); // the engine is closed: there is no client any more
        };
        let kind = message.get_item(intern!(py, "type"))?;
        let kind = kind.downcast::<PyString>()?.to_str()?;
        match kind {
            "http.response.body" => self.send_body(py, &hooks, message),
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
                Ok(hooks.ready(py))
            }
            other => Err(PyValueError::new_err(format!("unexpected ASGI message {other:?}"))),
        }
    }

    /// The request's body in one call, if all of it is there; else None, and `receive` gives it.
    fn body<'py>(&self, py: Python<'py>) -> Option<Bound<'py, PyBytes>> {
        let got = self.req.lock().take_whole()?;
        Some(match got.as_slice() {
            [one] => PyBytes::new(py, one),
            many => PyBytes::new(py, &many.concat()),
        })
    }

    /// A whole answer in one call. True: it is taken, whatever becomes of the client.
    fn reply(
        &self,
        py: Python<'_>,
        status: u16,
        headers: &Bound<'_, PyAny>,
        body: &Bound<'_, PyAny>,
    ) -> PyResult<bool> {
        let Some(hooks) = self.hooks()? else { return Ok(true) };
        let head = head(status, Some(headers))?;
        let data = bytes_of(body)?;
        {
            let mut state = self.req.lock();
            if state.over {
                state.finished = true;
                return Ok(true);
            }
            if state.started || state.head.is_some() {
                return Err(PyRuntimeError::new_err("the response has already been started"));
            }
            state.started = true;
            state.response = Some(respond(&self.req, head, Some(data.len() as u64)));
            state.push(data);
            state.finished = true;
        }
        self.wake(py, &hooks)?;
        Ok(true)
    }
}

fn read_already() -> PyErr {
    PyRuntimeError::new_err("the head was read already")
}

impl Exchange {
    fn lock(&self) -> MutexGuard<'_, Option<Box<request::Parts>>> {
        self.parts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// No lock is held meanwhile: making objects may set off Python's collector.
    fn parts<T>(&self, read: impl FnOnce(&request::Parts) -> PyResult<T>) -> PyResult<T> {
        let parts = self.lock().take().ok_or_else(read_already)?;
        let out = read(&parts);
        *self.lock() = Some(parts);
        out
    }

    /// The task has ended, one way or another; with `error`, if it failed.
    pub fn ended(&self, py: Python<'_>, error: Option<PyErr>) -> PyResult<()> {
        let ours = self.req.lock().task.take();
        drop(ours);
        // One that ends the loop is raised in it (see `Task::finish`).
        if let Some(err) = error.filter(|err| err.is_instance_of::<PyException>(py)) {
            match hooks_of(self.engine) {
                Some(hooks) => hooks.tell(py, "the application failed", err),
                None => err.write_unraisable(py, None),
            }
        }
        self.abandon(py)
    }

    /// The response, for a relay that goes on with its body; the app has sent the head.
    pub fn begin_relay(&self) -> PyResult<Arc<Req>> {
        let mut state = self.req.lock();
        if state.finished {
            return Err(PyRuntimeError::new_err("the response is already complete"));
        }
        if state.relaying && !state.over {
            return Err(PyRuntimeError::new_err("a relay is writing this response"));
        }
        if !state.started && !state.over {
            let Some(head) = state.head.take() else {
                return Err(PyRuntimeError::new_err("http.response.start must come before a relay"));
            };
            state.started = true;
            state.response = Some(respond(&self.req, head, None));
        }
        state.relaying = true;
        Ok(Arc::clone(&self.req))
    }

    fn hooks(&self) -> PyResult<Option<Arc<Hooks>>> {
        if std::thread::current().id() != self.thread {
            return Err(PyRuntimeError::new_err(
                "used from a thread that is not the event loop's",
            ));
        }
        Ok(hooks_of(self.engine))
    }

    fn wake(&self, py: Python<'_>, hooks: &Hooks) -> PyResult<()> {
        self.req.waker.wake_by_ref();
        hooks.schedule(py)
    }

    fn send_body<'py>(
        &self,
        py: Python<'py>,
        hooks: &Hooks,
        message: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let (body, more) = if let Ok(dict) = message.downcast_exact::<PyDict>() {
            (
                dict.get_item(intern!(py, "body"))?,
                dict.get_item(intern!(py, "more_body"))?,
            )
        } else {
            (
                message
                    .call_method1(intern!(py, "get"), (intern!(py, "body"),))
                    .map(Some)?,
                message
                    .call_method1(intern!(py, "get"), (intern!(py, "more_body"),))
                    .map(Some)?,
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
                return Ok(hooks.ready(py));
            }
            if state.finished {
                return Err(PyRuntimeError::new_err("the response is already complete"));
            }
            if state.relaying {
                return Err(PyRuntimeError::new_err("a relay is writing this response"));
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
        self.wake(py, hooks)?;
        if !full {
            return Ok(hooks.ready(py));
        }
        let wake = Wake::new(py, self.engine)?;
        self.req.lock().senders.push(wake.clone_ref(py));
        Ok(wake.into_bound(py).into_any())
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
        hooks_of(self.engine).map_or(Ok(()), |hooks| self.wake(py, &hooks))
    }
}

/// Call the app for a request that has come.
pub fn begin(py: Python<'_>, engine: u64, hooks: &Hooks, req: Arc<Req>, parts: Box<request::Parts>, peer: SocketAddr) {
    let (scope, parts) = match hooks.direct {
        Some(_) => (None, Some(parts)),
        None => (Some(scope(py, hooks.scope.bind(py), &parts, peer)), None),
    };
    let exchange = Exchange {
        req,
        engine,
        thread: hooks.thread,
        parts: Mutex::new(parts),
    };
    let exchange = match Bound::new(py, exchange) {
        Ok(exchange) => exchange,
        Err(err) => return err.write_unraisable(py, None),
    };
    if let Err(err) = start(py, hooks, &exchange, scope) {
        hooks.tell(py, "the application could not be called", err);
        if let Err(err) = exchange.get().abandon(py) {
            err.write_unraisable(py, None);
        }
    }
}

fn start(
    py: Python<'_>,
    hooks: &Hooks,
    exchange: &Bound<'_, Exchange>,
    scope: Option<PyResult<Bound<'_, PyDict>>>,
) -> PyResult<()> {
    let coroutine = match (&hooks.direct, scope) {
        (Some(direct), None) => direct.bind(py).call1((exchange,))?,
        (_, scope) => {
            let receive = exchange.getattr(intern!(py, "receive"))?;
            let send = exchange.getattr(intern!(py, "send"))?;
            hooks.app.bind(py).call1((scope.transpose()?, receive, send))?
        }
    };
    let task = Task::new(py, exchange.get().engine, coroutine.unbind(), exchange.clone().unbind())?;
    exchange.get().req.lock().task = Some(task.clone_ref(py));
    Task::step(task.bind(py), None);
    Ok(())
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

fn resolve(py: Python<'_>, waiting: Vec<Py<Wake>>, value: &Bound<'_, PyAny>) {
    for wake in waiting {
        Wake::resolve(wake.bind(py), Ok(value.clone().unbind()));
    }
}
