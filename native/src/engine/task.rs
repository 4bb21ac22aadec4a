//! What drives the app's coroutine for one request: a task in asyncio's sense that begins at once.
//!
//! `loop.create_task` puts the first step, and every later one, into the loop's queue: a turn of the loop and a system
//! call each. A request is begun from the engine's turn, where no task is running, so its coroutine can be stepped right
//! there, and again when what it waits for comes from the engine. For the app it is its `asyncio.current_task()`.
//! The rules of a step are those of `asyncio/tasks.py` (Task.__step, 3.11), timeouts and cancellation included.

use std::sync::{Mutex, MutexGuard, PoisonError};

use pyo3::exceptions::asyncio::{CancelledError, InvalidStateError};
use pyo3::exceptions::{PyKeyboardInterrupt, PyRuntimeError, PySystemExit};
use pyo3::ffi;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::asgi::Exchange;
use super::coroutine::{send, throw, Outcome, Sent};
use super::hooks::{hooks_of, Hooks};
use super::wake::{cancelled_error, without, Callback, Wake};

struct State {
    coroutine: Option<Py<PyAny>>,
    /// What it waits for.
    waiter: Option<Py<PyAny>>,
    must_cancel: bool,
    /// Of the last `cancel`.
    message: Option<Py<PyAny>>,
    /// Of `cancel` calls that were not taken back.
    cancelling: usize,
    outcome: Option<Outcome>,
    callbacks: Vec<Callback>,
}

/// The task of one request.
#[pyclass(frozen, weakref)]
pub struct Task {
    engine: u64,
    context: Py<PyAny>,
    exchange: Py<Exchange>,
    state: Mutex<State>,
}

impl Task {
    /// `exchange` is told when it is over, before other callbacks. Nothing has run yet.
    pub fn new(py: Python<'_>, engine: u64, coroutine: Py<PyAny>, exchange: Py<Exchange>) -> PyResult<Py<Self>> {
        // SAFETY: returns a new reference, or null with an exception set, which `from_owned_ptr_or_err` tells apart.
        let context = unsafe { Bound::from_owned_ptr_or_err(py, ffi::PyContext_CopyCurrent())? };
        let task = Self {
            engine,
            context: context.unbind(),
            exchange,
            state: Mutex::new(State {
                coroutine: Some(coroutine),
                waiter: None,
                must_cancel: false,
                message: None,
                cancelling: 0,
                outcome: None,
                callbacks: Vec::new(),
            }),
        };
        Py::new(py, task)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Go on: with what it waited for, or with an exception. No other task may be running.
    pub fn step(slf: &Bound<'_, Self>, error: Option<PyErr>) {
        let py = slf.py();
        let this = slf.get();
        let Some(hooks) = hooks_of(this.engine) else { return };
        let (coroutine, error) = {
            let mut state = this.lock();
            if state.outcome.is_some() {
                return;
            }
            let Some(coroutine) = state.coroutine.as_ref().map(|c| c.clone_ref(py)) else {
                return;
            };
            let waiter = state.waiter.take();
            let cancel = std::mem::take(&mut state.must_cancel);
            let message = state.message.as_ref().filter(|_| cancel).map(|m| m.clone_ref(py));
            drop(state);
            drop(waiter);
            let is_cancel = error.as_ref().is_some_and(|e| e.is_instance_of::<CancelledError>(py));
            let error = if cancel && !is_cancel {
                Some(cancelled_error(py, message.as_ref()))
            } else {
                error
            };
            (coroutine.into_bound(py), error)
        };
        match this.run(py, &hooks, slf, &coroutine, error) {
            Ok(Sent::Yield(what)) => Self::wait(slf, &hooks, &what),
            Ok(Sent::Return(value)) => {
                let state = this.lock();
                // Cancelled right before it stopped: it counts as cancelled.
                let outcome = if state.must_cancel {
                    Outcome::Error(cancelled_error(py, state.message.as_ref()))
                } else {
                    Outcome::Value(value)
                };
                drop(state);
                Self::finish(slf, outcome);
            }
            Err(err) => Self::finish(slf, Outcome::Error(err)),
        }
    }

    fn run<'py>(
        &self,
        py: Python<'py>,
        hooks: &Hooks,
        slf: &Bound<'py, Self>,
        coroutine: &Bound<'py, PyAny>,
        error: Option<PyErr>,
    ) -> PyResult<Sent<'py>> {
        let context = self.context.as_ptr();
        // SAFETY: `context` is a Context (PyContext_CopyCurrent made it) that this object keeps alive.
        if unsafe { ffi::PyContext_Enter(context) } < 0 {
            return Err(PyErr::fetch(py));
        }
        let sent = hooks.enter_task.bind(py).call1((&hooks.r#loop, slf)).and_then(|_| {
            let sent = match error {
                None => send(coroutine),
                Some(error) => throw(coroutine, error),
            };
            let left = hooks.leave_task.bind(py).call1((&hooks.r#loop, slf));
            left.and(sent)
        });
        // SAFETY: entered above, on this thread.
        if unsafe { ffi::PyContext_Exit(context) } < 0 {
            return Err(PyErr::fetch(py));
        }
        sent
    }

    /// It yielded `what`: sleep until that is done.
    fn wait(slf: &Bound<'_, Self>, hooks: &Hooks, what: &Bound<'_, PyAny>) {
        let this = slf.get();
        if let Ok(wake) = what.downcast_exact::<Wake>() {
            this.lock().waiter = Some(what.clone().unbind());
            if !wake.get().wait(slf.clone().unbind()) {
                // Done between its `__next__` and now: cannot be, but a lost task would hang for ever.
                this.later(slf, hooks);
            } else if this.lock().must_cancel {
                this.pass_cancel(slf, what);
            }
            return;
        }
        if let Err(err) = Self::wait_foreign(slf, hooks, what) {
            this.lock().waiter = None;
            this.throw_later(slf, hooks, err);
        }
    }

    fn wait_foreign(slf: &Bound<'_, Self>, hooks: &Hooks, what: &Bound<'_, PyAny>) -> PyResult<()> {
        let py = slf.py();
        let this = slf.get();
        if what.is_none() {
            this.later(slf, hooks);
            return Ok(());
        }
        let name = intern!(py, "_asyncio_future_blocking");
        let blocking = match what.getattr_opt(name)? {
            Some(blocking) => blocking.is_truthy()?,
            None => false,
        };
        if !blocking {
            return Err(PyRuntimeError::new_err(format!("the app's coroutine yielded {what:?}")));
        }
        what.setattr(name, false)?;
        // Without a context: a step enters its own, and a context cannot be entered twice.
        let wakeup = slf.getattr(intern!(py, "wakeup"))?;
        what.call_method1(intern!(py, "add_done_callback"), (wakeup,))?;
        let cancel = {
            let mut state = this.lock();
            state.waiter = Some(what.clone().unbind());
            state.must_cancel
        };
        if cancel {
            this.pass_cancel(slf, what);
        }
        Ok(())
    }

    fn pass_cancel(&self, slf: &Bound<'_, Self>, waiter: &Bound<'_, PyAny>) {
        match self.cancel_waiter(waiter) {
            Ok(true) => self.lock().must_cancel = false,
            Ok(false) => {}
            Err(err) => err.write_unraisable(slf.py(), None),
        }
    }

    fn cancel_waiter(&self, waiter: &Bound<'_, PyAny>) -> PyResult<bool> {
        let py = waiter.py();
        let with = PyDict::new(py);
        let message = self.lock().message.as_ref().map(|m| m.clone_ref(py));
        with.set_item(intern!(py, "msg"), message)?;
        waiter.call_method(intern!(py, "cancel"), (), Some(&with))?.is_truthy()
    }

    fn later(&self, slf: &Bound<'_, Self>, hooks: &Hooks) {
        let py = slf.py();
        let called = slf
            .getattr(intern!(py, "wakeup"))
            .and_then(|wakeup| hooks.call_soon.bind(py).call1((wakeup,)).map(drop));
        if let Err(err) = called {
            err.write_unraisable(py, None);
        }
    }

    fn throw_later(&self, slf: &Bound<'_, Self>, hooks: &Hooks, err: PyErr) {
        let py = slf.py();
        let called = slf
            .getattr(intern!(py, "throw"))
            .and_then(|throw| hooks.call_soon.bind(py).call1((throw, err.value(py))).map(drop));
        if let Err(err) = called {
            err.write_unraisable(py, None);
        }
    }

    fn finish(slf: &Bound<'_, Self>, outcome: Outcome) {
        let py = slf.py();
        let this = slf.get();
        // These two end the loop, not only the task that they came up in.
        let ends = matches!(&outcome, Outcome::Error(err)
            if err.is_instance_of::<PySystemExit>(py) || err.is_instance_of::<PyKeyboardInterrupt>(py));
        let failure = outcome.failure(py);
        let (coroutine, callbacks) = {
            let mut state = this.lock();
            state.outcome = Some(outcome);
            (state.coroutine.take(), std::mem::take(&mut state.callbacks))
        };
        drop(coroutine);
        if let Err(err) = this.exchange.get().ended(py, failure) {
            err.write_unraisable(py, None);
        }
        for (callback, context) in callbacks {
            if let Err(err) = this.call_back(slf, callback.bind(py), context.as_ref()) {
                err.write_unraisable(py, None);
            }
        }
        if let Some(hooks) = hooks_of(this.engine).filter(|_| ends) {
            let called = slf
                .getattr(intern!(py, "result"))
                .and_then(|result| hooks.call_soon.bind(py).call1((result,)).map(drop));
            if let Err(err) = called {
                err.write_unraisable(py, None);
            }
        }
    }

    fn call_back(
        &self,
        slf: &Bound<'_, Self>,
        callback: &Bound<'_, PyAny>,
        context: Option<&Py<PyAny>>,
    ) -> PyResult<()> {
        let py = slf.py();
        let hooks = hooks_of(self.engine).ok_or_else(|| PyRuntimeError::new_err("the engine is closed"))?;
        let with = PyDict::new(py);
        with.set_item("context", context.unwrap_or(&self.context))?;
        hooks.call_soon.bind(py).call((callback, slf), Some(&with)).map(drop)
    }
}

#[pymethods]
impl Task {
    /// What it waited for is done; or it yielded the turn, and it is its turn again.
    #[pyo3(signature = (future=None))]
    fn wakeup(slf: &Bound<'_, Self>, future: Option<&Bound<'_, PyAny>>) {
        let error = future.and_then(|f| f.call_method0(intern!(slf.py(), "result")).err());
        Self::step(slf, error);
    }

    fn throw(slf: &Bound<'_, Self>, error: &Bound<'_, PyAny>) {
        Self::step(slf, Some(PyErr::from_value(error.clone())));
    }

    /// As asyncio.Task.cancel: what it waits for is cancelled, or its next step begins with CancelledError.
    #[pyo3(signature = (msg=None))]
    fn cancel(&self, py: Python<'_>, msg: Option<&Bound<'_, PyAny>>) -> PyResult<bool> {
        let message = msg.filter(|msg| !msg.is_none()).map(|msg| msg.clone().unbind());
        let (waiter, before) = {
            let mut state = self.lock();
            if state.outcome.is_some() {
                return Ok(false);
            }
            state.cancelling += 1;
            let before = std::mem::replace(&mut state.message, message);
            (state.waiter.as_ref().map(|w| w.clone_ref(py)), before)
        };
        drop(before);
        if let Some(waiter) = waiter {
            if self.cancel_waiter(waiter.bind(py))? {
                return Ok(true);
            }
        }
        self.lock().must_cancel = true;
        Ok(true)
    }

    fn cancelling(&self) -> usize {
        self.lock().cancelling
    }

    fn uncancel(&self) -> usize {
        let mut state = self.lock();
        state.cancelling = state.cancelling.saturating_sub(1);
        state.cancelling
    }

    fn done(&self) -> bool {
        self.lock().outcome.is_some()
    }

    fn cancelled(&self, py: Python<'_>) -> bool {
        self.lock()
            .outcome
            .as_ref()
            .is_some_and(|outcome| outcome.is_cancelled(py))
    }

    fn result(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        match &self.lock().outcome {
            None => Err(InvalidStateError::new_err("result is not set")),
            Some(Outcome::Value(value)) => Ok(value.clone_ref(py)),
            Some(Outcome::Error(err)) => Err(err.clone_ref(py)),
        }
    }

    fn exception(&self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        match &self.lock().outcome {
            None => Err(InvalidStateError::new_err("exception is not set")),
            Some(Outcome::Error(err)) if err.is_instance_of::<CancelledError>(py) => Err(err.clone_ref(py)),
            Some(outcome) => Ok(outcome.failure(py).map(|err| err.into_value(py).into_any())),
        }
    }

    #[pyo3(signature = (callback, *, context=None))]
    fn add_done_callback(
        slf: &Bound<'_, Self>,
        callback: &Bound<'_, PyAny>,
        context: Option<Py<PyAny>>,
    ) -> PyResult<()> {
        let this = slf.get();
        {
            let mut state = this.lock();
            if state.outcome.is_none() {
                state.callbacks.push((callback.clone().unbind(), context));
                return Ok(());
            }
        }
        this.call_back(slf, callback, context.as_ref())
    }

    fn remove_done_callback(&self, py: Python<'_>, callback: &Bound<'_, PyAny>) -> PyResult<usize> {
        let all = std::mem::take(&mut self.lock().callbacks);
        let (left, gone) = without(py, all, callback)?;
        self.lock().callbacks.splice(0..0, left);
        Ok(gone)
    }

    /// All have the same: a request has an id.
    fn set_name(&self, _name: &Bound<'_, PyAny>) {}

    fn get_loop(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        let hooks = hooks_of(self.engine).ok_or_else(|| PyRuntimeError::new_err("the engine is closed"))?;
        Ok(hooks.r#loop.clone_ref(py))
    }

    fn get_coro(&self, py: Python<'_>) -> Option<Py<PyAny>> {
        self.lock().coroutine.as_ref().map(|c| c.clone_ref(py))
    }

    fn get_context(&self, py: Python<'_>) -> Py<PyAny> {
        self.context.clone_ref(py)
    }

    fn get_name(&self) -> &'static str {
        "request"
    }

    // anyio looks at these two of asyncio.Task when it delivers a cancellation.

    #[getter(_fut_waiter)]
    fn fut_waiter(&self, py: Python<'_>) -> Option<Py<PyAny>> {
        self.lock().waiter.as_ref().map(|w| w.clone_ref(py))
    }

    #[getter(_must_cancel)]
    fn must_cancel(&self) -> bool {
        self.lock().must_cancel
    }
}
