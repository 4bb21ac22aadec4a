//! What Python awaits where the engine has to wait: a future in asyncio's sense (PEP 3156, the protocol of
//! `_asyncio_future_blocking`) that goes on the moment the engine has news.
//!
//! A future of asyncio's own wakes its task through `call_soon`, which is another turn of the loop, another system call.
//! This one calls back straight from the engine's turn, where no task is running.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use pyo3::exceptions::asyncio::{CancelledError, InvalidStateError};
use pyo3::exceptions::{PyRuntimeError, PyStopIteration};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::call::Call;
use super::hooks::hooks_of;
use super::task::Task;

#[derive(Default)]
enum Outcome {
    #[default]
    Pending,
    Value(Py<PyAny>),
    Error(PyErr),
    /// With the message that `cancel` was given.
    Cancelled(Option<Py<PyAny>>),
}

#[derive(Default)]
struct State {
    outcome: Outcome,
    blocking: bool,
    /// Our own task that awaits it: stepped without a callback.
    task: Option<Py<Task>>,
    callbacks: Vec<Callback>,
}

/// What is called when it is done, and in which context.
pub type Callback = (Py<PyAny>, Option<Py<PyAny>>);

/// Those that are not `callback`, and how many are.
pub fn without(py: Python<'_>, all: Vec<Callback>, callback: &Bound<'_, PyAny>) -> PyResult<(Vec<Callback>, usize)> {
    let before = all.len();
    let mut left = Vec::with_capacity(before);
    for one in all {
        if !one.0.bind(py).eq(callback)? {
            left.push(one);
        }
    }
    let gone = before - left.len();
    Ok((left, gone))
}

/// What `cancel(msg)` makes of a message, as asyncio's futures do.
pub fn cancelled_error(py: Python<'_>, message: Option<&Py<PyAny>>) -> PyErr {
    match message {
        Some(message) => CancelledError::new_err((message.clone_ref(py),)),
        None => CancelledError::new_err(()),
    }
}

/// A future of this engine.
#[pyclass(frozen, weakref)]
pub struct Wake {
    engine: u64,
    /// It is the end of this call's relay: cancelled, it ends the call.
    relay: Option<Weak<Call>>,
    state: Mutex<State>,
}

impl Wake {
    pub fn new(py: Python<'_>, engine: u64) -> PyResult<Py<Self>> {
        Py::new(
            py,
            Self {
                engine,
                relay: None,
                state: Mutex::default(),
            },
        )
    }

    /// For the end of a relay.
    pub fn of_relay(py: Python<'_>, engine: u64, call: &Arc<Call>) -> PyResult<Py<Self>> {
        Py::new(
            py,
            Self {
                engine,
                relay: Some(Arc::downgrade(call)),
                state: Mutex::default(),
            },
        )
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn is_done(&self) -> bool {
        !matches!(self.lock().outcome, Outcome::Pending)
    }

    /// `task` sleeps on it. False: it is done already.
    pub fn wait(&self, task: Py<Task>) -> bool {
        let mut state = self.lock();
        state.blocking = false;
        if !matches!(state.outcome, Outcome::Pending) {
            return false;
        }
        match &state.task {
            None => state.task = Some(task),
            // Somebody else's await is under way: both go on.
            Some(_) => {
                drop(state);
                return self.wait_too(task);
            }
        }
        true
    }

    fn wait_too(&self, task: Py<Task>) -> bool {
        Python::attach(|py| match task.getattr(py, "wakeup") {
            Ok(wakeup) => {
                self.lock().callbacks.push((wakeup, None));
                true
            }
            Err(_) => false,
        })
    }

    /// Its outcome is there: those who wait go on now. Nothing may be borrowed, and no task may be running.
    pub fn resolve(slf: &Bound<'_, Self>, outcome: PyResult<Py<PyAny>>) {
        let py = slf.py();
        let outcome = match outcome {
            Ok(value) => Outcome::Value(value),
            Err(err) => Outcome::Error(err),
        };
        let Some((task, callbacks)) = slf.get().settle(outcome) else {
            return;
        };
        if let Some(task) = task {
            Task::step(task.bind(py), None);
        }
        for (callback, context) in callbacks {
            let called = match context {
                Some(context) => context.call_method1(py, "run", (callback, slf)),
                None => callback.call1(py, (slf,)),
            };
            if let Err(err) = called {
                err.write_unraisable(py, None);
            }
        }
    }

    fn settle(&self, outcome: Outcome) -> Option<(Option<Py<Task>>, Vec<Callback>)> {
        let mut state = self.lock();
        if !matches!(state.outcome, Outcome::Pending) {
            return None;
        }
        state.outcome = outcome;
        Some((state.task.take(), std::mem::take(&mut state.callbacks)))
    }

    /// Later, from the loop: whoever calls this may be a task.
    fn call_later(
        &self,
        slf: &Bound<'_, Self>,
        callback: &Bound<'_, PyAny>,
        context: Option<&Py<PyAny>>,
    ) -> PyResult<()> {
        let py = slf.py();
        let hooks = hooks_of(self.engine).ok_or_else(|| PyRuntimeError::new_err("the engine is closed"))?;
        match context {
            Some(context) => {
                let with = PyDict::new(py);
                with.set_item("context", context)?;
                hooks.call_soon.bind(py).call((callback, slf), Some(&with))?;
            }
            None => {
                hooks.call_soon.bind(py).call1((callback, slf))?;
            }
        }
        Ok(())
    }

    pub fn outcome(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        match &self.lock().outcome {
            Outcome::Pending => Err(InvalidStateError::new_err("result is not set")),
            Outcome::Value(value) => Ok(value.clone_ref(py)),
            Outcome::Error(err) => Err(err.clone_ref(py)),
            Outcome::Cancelled(message) => Err(cancelled_error(py, message.as_ref())),
        }
    }
}

#[pymethods]
impl Wake {
    fn __await__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __iter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __next__(slf: &Bound<'_, Self>) -> PyResult<Option<Py<PyAny>>> {
        let py = slf.py();
        let this = slf.get();
        {
            let mut state = this.lock();
            if matches!(state.outcome, Outcome::Pending) {
                state.blocking = true;
                drop(state);
                return Ok(Some(slf.clone().into_any().unbind()));
            }
        }
        let value = this.outcome(py)?;
        if value.is_none(py) {
            Ok(None) // StopIteration without a value
        } else {
            Err(PyStopIteration::new_err((value,)))
        }
    }

    #[getter(_asyncio_future_blocking)]
    fn blocking(&self) -> bool {
        self.lock().blocking
    }

    #[setter(_asyncio_future_blocking)]
    fn set_blocking(&self, blocking: bool) {
        self.lock().blocking = blocking;
    }

    fn get_loop(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        let hooks = hooks_of(self.engine).ok_or_else(|| PyRuntimeError::new_err("the engine is closed"))?;
        Ok(hooks.r#loop.clone_ref(py))
    }

    fn done(&self) -> bool {
        self.is_done()
    }

    fn cancelled(&self) -> bool {
        matches!(self.lock().outcome, Outcome::Cancelled(_))
    }

    fn result(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        self.outcome(py)
    }

    fn exception(&self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        match &self.lock().outcome {
            Outcome::Pending => Err(InvalidStateError::new_err("exception is not set")),
            Outcome::Value(_) => Ok(None),
            Outcome::Error(err) => Ok(Some(err.clone_ref(py).into_value(py).into_any())),
            Outcome::Cancelled(message) => Err(cancelled_error(py, message.as_ref())),
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
            if matches!(state.outcome, Outcome::Pending) {
                state.callbacks.push((callback.clone().unbind(), context));
                return Ok(());
            }
        }
        this.call_later(slf, callback, context.as_ref())
    }

    /// Returns how many there were.
    fn remove_done_callback(&self, py: Python<'_>, callback: &Bound<'_, PyAny>) -> PyResult<usize> {
        let all = std::mem::take(&mut self.lock().callbacks);
        let (left, gone) = without(py, all, callback)?;
        self.lock().callbacks.splice(0..0, left);
        Ok(gone)
    }

    fn _make_cancelled_error<'py>(&self, py: Python<'py>) -> Bound<'py, PyAny> {
        let error = match &self.lock().outcome {
            Outcome::Cancelled(message) => cancelled_error(py, message.as_ref()),
            _ => CancelledError::new_err(()),
        };
        error.into_value(py).into_bound(py).into_any()
    }

    /// Whoever waits for it gets a CancelledError, in a turn of the loop of its own. False if it is done already.
    #[pyo3(signature = (msg=None))]
    fn cancel(slf: &Bound<'_, Self>, msg: Option<&Bound<'_, PyAny>>) -> PyResult<bool> {
        let py = slf.py();
        let this = slf.get();
        let message = msg.filter(|msg| !msg.is_none()).map(|msg| msg.clone().unbind());
        let Some((task, callbacks)) = this.settle(Outcome::Cancelled(message)) else {
            return Ok(false);
        };
        if let Some(call) = this.relay.as_ref().and_then(Weak::upgrade) {
            drop(call.end());
            if let Some(hooks) = hooks_of(this.engine) {
                hooks.schedule(py)?;
            }
        }
        if let Some(task) = task {
            let wakeup = task.bind(py).getattr("wakeup")?;
            this.call_later(slf, &wakeup, None)?;
        }
        for (callback, context) in callbacks {
            this.call_later(slf, callback.bind(py), context.as_ref())?;
        }
        Ok(true)
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

impl Ready {
    pub fn new(value: Py<PyAny>) -> Self {
        Self(Some(value))
    }
}

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
