//! What the engine knows of the loop that it runs on, and of the app that it serves.

use std::cell::RefCell;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::ThreadId;

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::wake::Nothing;

/// The loop's side.
pub struct Hooks {
    pub app: Py<PyAny>,
    /// What is called with a request instead, where the app has it: its `direct`.
    pub direct: Option<Py<PyAny>>,
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

    pub fn ready<'py>(&self, py: Python<'py>) -> Bound<'py, PyAny> {
        self.nothing.clone_ref(py).into_bound(py).into_any()
    }

    pub fn tell(&self, py: Python<'_>, what: &str, err: PyErr) {
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
