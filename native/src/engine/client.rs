//! What Python sees of one call to an upstream: `Call`.

use std::sync::{Arc, MutexGuard};

use http::{HeaderName, HeaderValue};
use pyo3::exceptions::PyRuntimeError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use super::asgi::Exchange;
use super::call::{self, Call, Fault, Relay, State, Want};
use super::hooks::hooks_of;
use super::wake::{Nothing, Ready, Wake};
use crate::kernels::sse::StreamScanner;

/// After `[DONE]` the final chunk is at most a packet behind.
const LINGER_NS: u64 = 500_000_000;

/// One request and its answer as it comes in.
#[pyclass(frozen, name = "Call")]
pub struct PyCall {
    pub call: Arc<Call>,
    pub engine: u64,
}

impl PyCall {
    /// Let the connection see what was changed.
    fn wake(&self, py: Python<'_>) -> PyResult<()> {
        self.call.waker.wake_by_ref();
        hooks_of(self.engine).map_or(Ok(()), |hooks| hooks.schedule(py))
    }

    fn await_for<'py>(&self, py: Python<'py>, want: Want) -> PyResult<Bound<'py, PyAny>> {
        let wake = match want {
            Want::Relay => Wake::of_relay(py, self.engine, &self.call)?,
            _ => Wake::new(py, self.engine)?,
        };
        let before = self.call.lock().wanted.replace((want, wake.clone_ref(py)));
        drop(before);
        Ok(wake.into_bound(py).into_any())
    }

    fn resume(&self, py: Python<'_>, state: MutexGuard<'_, State>) -> PyResult<()> {
        let paused = state.paused;
        drop(state);
        if paused {
            self.wake(py)?;
        }
        Ok(())
    }
}

fn nothing(py: Python<'_>) -> PyResult<Bound<'_, PyAny>> {
    Ok(Bound::new(py, Nothing)?.into_any())
}

fn ready(py: Python<'_>, value: Py<PyAny>) -> PyResult<Bound<'_, PyAny>> {
    Ok(Bound::new(py, Ready::new(value))?.into_any())
}

/// The exception that Python's side knows.
fn raised(py: Python<'_>, engine: u64, fault: Fault) -> PyErr {
    let made = hooks_of(engine)
        .ok_or_else(|| PyRuntimeError::new_err("the engine is closed"))
        .and_then(|hooks| hooks.fault.bind(py).call1(fault));
    match made {
        Ok(value) => PyErr::from_value(value),
        Err(err) => err,
    }
}

#[pymethods]
impl PyCall {
    #[getter]
    fn status(&self) -> u16 {
        self.call.lock().status
    }

    #[getter]
    fn headers<'py>(&self, py: Python<'py>) -> Vec<(Bound<'py, PyBytes>, Bound<'py, PyBytes>)> {
        let state = self.call.lock();
        let pair = |(name, value): &(HeaderName, HeaderValue)| {
            (
                PyBytes::new(py, name.as_str().as_bytes()),
                PyBytes::new(py, value.as_bytes()),
            )
        };
        state.headers.iter().map(pair).collect()
    }

    #[getter]
    fn media_type<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        match self.call.lock().media_type.as_slice() {
            b"application/json" => pyo3::types::PyBytes::new(py, b"application/json"),
            other => PyBytes::new(py, other),
        }
    }

    #[getter]
    fn encoding<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.call.lock().encoding)
    }

    #[getter]
    fn done(&self) -> bool {
        self.call.lock().done
    }

    #[getter]
    fn drained(&self) -> bool {
        let state = self.call.lock();
        state.done && state.chunks.is_empty()
    }

    #[getter]
    fn fault(&self, py: Python<'_>) -> Option<Py<PyAny>> {
        let fault = self.call.lock().fault?;
        Some(raised(py, self.engine, fault).into_value(py).into_any())
    }

    #[getter]
    fn stale(&self) -> bool {
        self.call.lock().stale
    }

    #[getter]
    fn first_byte_ns(&self) -> u64 {
        self.call.lock().first_byte_ns
    }

    #[getter]
    fn progress(&self) -> bool {
        self.call.lock().progress
    }

    #[setter]
    fn set_progress(&self, progress: bool) {
        self.call.lock().progress = progress;
    }

    /// Bytes that the relay has handed on so far.
    #[getter]
    fn moved(&self) -> u64 {
        self.call.lock().relay.as_ref().map_or(0, |relay| relay.moved)
    }

    fn idle(&self, idle_ns: u64, now_ns: u64) {
        self.call.lock().idle(idle_ns, now_ns);
    }

    fn wait_head<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let state = self.call.lock();
        if state.status > 0 {
            drop(state);
            return nothing(py);
        }
        if let Some(fault) = state.fault {
            drop(state);
            return Err(raised(py, self.engine, fault));
        }
        drop(state);
        self.await_for(py, Want::Head)
    }

    #[pyo3(signature = (most=0))]
    fn wait_whole<'py>(&self, py: Python<'py>, most: usize) -> PyResult<Bound<'py, PyAny>> {
        let mut state = self.call.lock();
        if most > 0 {
            state.most = most;
        }
        state.whole = true;
        if state.done {
            let body = state.take();
            drop(state);
            return ready(py, PyBytes::new(py, &body).into_any().unbind());
        }
        if let Some(fault) = state.fault {
            drop(state);
            return Err(raised(py, self.engine, fault));
        }
        self.resume(py, state)?;
        self.await_for(py, Want::Whole)
    }

    fn wait<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let state = self.call.lock();
        if !state.chunks.is_empty() || state.done {
            drop(state);
            return nothing(py);
        }
        if let Some(fault) = state.fault {
            drop(state);
            return Err(raised(py, self.engine, fault));
        }
        drop(state);
        self.await_for(py, Want::News)
    }

    /// As Call.wait_pushing of `turnout/upstream/call.py`.
    fn wait_pushing<'py>(&self, py: Python<'py>, push: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        let some = !self.call.lock().chunks.is_empty();
        if some && !push.call0()?.is_truthy()? {
            return nothing(py);
        }
        let state = self.call.lock();
        if let Some(fault) = state.fault {
            drop(state);
            return Err(raised(py, self.engine, fault));
        }
        let done = state.done;
        drop(state);
        if done {
            return nothing(py);
        }
        self.await_for(py, Want::Push(push.clone().unbind()))
    }

    fn take_nowait<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        let mut state = self.call.lock();
        let data = state.take();
        self.resume(py, state)?;
        Ok(PyBytes::new(py, &data))
    }

    /// Move the answer into the response of `to` (a request, or its `send`), read by `scanner` on the way, until the scanner has
    /// seen something else than content, the answer is complete, or it breaks (then it raises the fault).
    fn relay<'py>(
        &self,
        py: Python<'py>,
        to: &Bound<'py, PyAny>,
        scanner: &Bound<'py, StreamScanner>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let to = match to.downcast::<Exchange>() {
            Ok(exchange) => exchange.get().begin_relay()?,
            Err(_) => to
                .getattr(intern!(py, "__self__"))?
                .downcast::<Exchange>()?
                .get()
                .begin_relay()?,
        };
        let mut state = self.call.lock();
        let moved = state.relay.as_ref().map_or(0, |relay| relay.moved);
        state.relay = Some(Relay {
            scanner: scanner.get().shared(),
            to,
            moved,
            over: false,
        });
        state.relay_waiting(&self.call.waker);
        let over = state.relay.as_ref().is_some_and(|relay| relay.over);
        if over || state.done {
            state.relay_rests();
            drop(state);
            self.wake(py)?;
            return nothing(py);
        }
        if let Some(fault) = state.fault {
            state.relay_rests();
            drop(state);
            return Err(raised(py, self.engine, fault));
        }
        drop(state);
        self.wake(py)?;
        self.await_for(py, Want::Relay)
    }

    /// Nobody reads any more, but the end is near: let it come, so that the connection can be used again.
    fn linger(&self, py: Python<'_>, now_ns: u64) -> PyResult<()> {
        let mut state = self.call.lock();
        if state.done {
            return Ok(());
        }
        state.whole = true;
        state.relay_rests();
        state.relay = None;
        drop(state.take());
        state.limit(now_ns + LINGER_NS, call::SILENT_PLAIN, now_ns + LINGER_NS, LINGER_NS);
        self.resume(py, state)
    }

    /// End it. A connection with an unfinished answer on it is closed, never reused. Idempotent.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        drop(self.call.end());
        hooks_of(self.engine).map_or(Ok(()), |hooks| hooks.schedule(py))
    }
}

/// Something has come for a call that somebody waits for.
pub fn deliver(py: Python<'_>, engine: u64, call: &Arc<Call>) {
    let mut state = call.lock();
    if !state.has_news() {
        return;
    }
    let Some((want, wake)) = state.wanted.take() else {
        return;
    };
    if wake.get().is_done() {
        drop(state);
        return; // cancelled: what has come is left to whoever asks next
    }
    let waiting = !state.chunks.is_empty();
    let outcome = match want {
        Want::Push(push) if waiting => {
            drop(state);
            match push.call0(py).and_then(|more| more.is_truthy(py)) {
                Ok(true) => {
                    let mut state = call.lock();
                    if state.chunks.is_empty() && !state.done && state.fault.is_none() {
                        state.wanted = Some((Want::Push(push), wake));
                        return;
                    }
                    outcome_of(py, engine, state, &Want::News)
                }
                Ok(false) => Ok(py.None()),
                Err(err) => Err(err),
            }
        }
        want => outcome_of(py, engine, state, &want),
    };
    Wake::resolve(wake.bind(py), outcome);
}

fn outcome_of(py: Python<'_>, engine: u64, mut state: MutexGuard<'_, State>, want: &Want) -> PyResult<Py<PyAny>> {
    let fault = match want {
        Want::Head if state.status > 0 => None,
        Want::News | Want::Push(_) if !state.chunks.is_empty() => None,
        Want::Relay if state.relay.as_ref().is_some_and(|relay| relay.over) => None,
        _ => state.fault,
    };
    if matches!(want, Want::Relay) {
        state.relay_rests();
    }
    if let Some(fault) = fault {
        drop(state);
        return Err(raised(py, engine, fault));
    }
    if matches!(want, Want::Whole) {
        let body = state.take();
        drop(state);
        return Ok(PyBytes::new(py, &body).into_any().unbind());
    }
    Ok(py.None())
}
