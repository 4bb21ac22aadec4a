//! What Python sees of a request: `receive`, `send`, and awaitables that are ready where nothing is waited for.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::ThreadId;

use bytes::Bytes;
use http::{request, StatusCode};
use pyo3::exceptions::{PyException, PyRuntimeError, PyValueError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyString};

use super::message::{bytes_of, event, head, head_of, scope};
use super::request::{refuse, respond, Got, Req, HIGH};
use super::task::Task;
use super::wake::{Nothing, Ready, Wake};

/// The loop's side.
pub struct Hooks {
    pub app: Py<PyAny>,
    /// `turnout.errors.Fault`: what a failed call raises.
    pub fault: Py<PyAny>,
    pub r#loop: Py<PyAny>,
    /// asyncio's own: they say which task is the current one.
    pub enter_task: Py<PyAny>,
    pub leave_task: Py<PyAny>,
    pub call_soon: Py<PyAny>,
    /// `Engine.run` of the engine that this belongs to.
    pub run: Py<PyAny>,
    pub call_later: Py<PyAny>,
    /// `Engine.tick`, and the loop's timer that will call it.
    pub tick: Py<PyAny>,
    pub timer: Mutex<Option<Py<PyAny>>>,
    /// The loop's exception handler.
    pub report: Py<PyAny>,
    pub scope: Py<PyDict>,
    pub nothing: Py<Nothing>,
    pub thread: ThreadId,
    /// `run` is in the loop's queue, or the engine is at work and will look again before it ends.
    pub scheduled: AtomicBool,
}

thread_local! {
    /// The hooks of the engines of this thread. A request's objects only know their engine's name: Python may keep them
    /// (in a traceback, say) where the app or the loop can reach them, and what they held would make a cycle.
    static HOOKS: RefCell<Vec<(u64, Arc<Hooks>)>> = const { RefCell::new(Vec::new()) };
}

/// The hooks of this thread's engine of that name, until it is closed.
pub fn hooks_of(name: u64) -> Option<Arc<Hooks>> {
    HOOKS.with_borrow(|all| all.iter().find(|one| one.0 == name).map(|one| Arc::clone(&one.1)))
}

pub fn register(name: u64, hooks: Hooks) {
    HOOKS.with_borrow_mut(|all| all.push((name, Arc::new(hooks))));
}

pub fn forget(name: u64) {
    let old = HOOKS.with_borrow_mut(|all| all.iter().position(|one| one.0 == name).map(|at| all.swap_remove(at)));
    drop(old); // Python's destructors run here, with nothing borrowed
}

impl Hooks {
    /// This one instead of the loop's timer that there was, which may have been called already.
    pub fn swap_timer(&self, py: Python<'_>, timer: Option<Py<PyAny>>) -> PyResult<()> {
        let old = std::mem::replace(&mut *self.timer.lock().unwrap_or_else(PoisonError::into_inner), timer);
        old.map_or(Ok(()), |old| old.call_method0(py, intern!(py, "cancel")).map(drop))
    }

    /// Something is marked: let `run` come, once.
    pub fn schedule(&self, py: Python<'_>) -> PyResult<()> {
        if !self.scheduled.swap(true, Ordering::AcqRel) {
            self.call_soon.call1(py, (&self.run,))?;
        }
        Ok(())
    }

    fn ready<'py>(&self, py: Python<'py>) -> Bound<'py, PyAny> {
        self.nothing.clone_ref(py).into_bound(py).into_any()
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

/// One request's `receive` and `send`.
#[pyclass(frozen)]
pub struct Exchange {
    req: Arc<Req>,
    engine: u64,
    thread: ThreadId,
}

#[pymethods]
impl Exchange {
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

    /// The request's body in one call, if all of it is there; else None, and `receive` gives it: the extension
    /// `turnout.body`.
    fn body<'py>(&self, py: Python<'py>) -> Option<Bound<'py, PyBytes>> {
        let got = self.req.lock().take_whole()?;
        Some(match got.as_slice() {
            [one] => PyBytes::new(py, one),
            many => PyBytes::new(py, &many.concat()),
        })
    }

    /// A whole answer in one call: the extension `turnout.reply`.
    fn reply<'py>(
        &self,
        py: Python<'py>,
        status: u16,
        headers: &Bound<'py, PyAny>,
        body: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let Some(hooks) = self.hooks()? else {
            return Ok(Bound::new(py, Nothing)?.into_any());
        };
        let head = head(status, Some(headers))?;
        let data = bytes_of(body)?;
        {
            let mut state = self.req.lock();
            if state.over {
                state.finished = true;
                return Ok(hooks.ready(py));
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
        Ok(hooks.ready(py))
    }

    /// The task has ended, one way or another.
    fn done(&self, py: Python<'_>, task: &Bound<'_, PyAny>) -> PyResult<()> {
        let ours = self.req.lock().task.take();
        drop(ours);
        if !task.call_method0(intern!(py, "cancelled"))?.is_truthy()? {
            let exception = task.call_method0(intern!(py, "exception"))?;
            // One that ends the loop is raised in it (see `Task::finish`).
            if !exception.is_none() && exception.is_instance_of::<PyException>() {
                let err = PyErr::from_value(exception);
                match hooks_of(self.engine) {
                    Some(hooks) => hooks.tell(py, "the application failed", err),
                    None => err.write_unraisable(py, None),
                }
            }
        }
        self.abandon(py)
    }
}

impl Exchange {
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
pub fn begin(py: Python<'_>, engine: u64, hooks: &Hooks, req: Arc<Req>, parts: &request::Parts, peer: SocketAddr) {
    let exchange = Exchange {
        req,
        engine,
        thread: hooks.thread,
    };
    let exchange = match Bound::new(py, exchange) {
        Ok(exchange) => exchange,
        Err(err) => return err.write_unraisable(py, None),
    };
    if let Err(err) = start(py, hooks, &exchange, parts, peer) {
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
    parts: &request::Parts,
    peer: SocketAddr,
) -> PyResult<()> {
    let scope = scope(py, hooks.scope.bind(py), parts, peer)?;
    let receive = exchange.getattr(intern!(py, "receive"))?;
    let send = exchange.getattr(intern!(py, "send"))?;
    let coroutine = hooks.app.bind(py).call1((scope, receive, send))?;
    let done = exchange.getattr(intern!(py, "done"))?;
    let task = Task::new(py, exchange.get().engine, coroutine.unbind(), done.unbind())?;
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
