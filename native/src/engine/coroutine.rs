//! One step of a coroutine.

use std::ptr;

use pyo3::exceptions::asyncio::CancelledError;
use pyo3::exceptions::PyStopIteration;
use pyo3::ffi;
use pyo3::intern;
use pyo3::prelude::*;

pub enum Sent<'py> {
    Yield(Bound<'py, PyAny>),
    Return(Py<PyAny>),
}

pub fn send<'py>(coroutine: &Bound<'py, PyAny>) -> PyResult<Sent<'py>> {
    let py = coroutine.py();
    let mut out: *mut ffi::PyObject = ptr::null_mut();
    let none = py.None();
    // SAFETY: all three pointers are valid for the call; `out` is a new reference where the result says so.
    let told = unsafe { ffi::PyIter_Send(coroutine.as_ptr(), none.as_ptr(), &mut out) };
    // SAFETY: see above; null, with an exception set, after PYGEN_ERROR.
    let out = unsafe { Bound::from_owned_ptr_or_err(py, out) }?;
    match told {
        ffi::PySendResult::PYGEN_NEXT => Ok(Sent::Yield(out)),
        _ => Ok(Sent::Return(out.unbind())),
    }
}

pub fn throw<'py>(coroutine: &Bound<'py, PyAny>, error: PyErr) -> PyResult<Sent<'py>> {
    let py = coroutine.py();
    match coroutine.call_method1(intern!(py, "throw"), (error.into_value(py),)) {
        Ok(what) => Ok(Sent::Yield(what)),
        Err(err) if err.is_instance_of::<PyStopIteration>(py) => {
            let value = err.value(py).getattr(intern!(py, "value"))?;
            Ok(Sent::Return(value.unbind()))
        }
        Err(err) => Err(err),
    }
}

/// How a task ended.
pub enum Outcome {
    Value(Py<PyAny>),
    Error(PyErr),
}

impl Outcome {
    pub fn is_cancelled(&self, py: Python<'_>) -> bool {
        matches!(self, Self::Error(err) if err.is_instance_of::<CancelledError>(py))
    }

    pub fn failure(&self, py: Python<'_>) -> Option<PyErr> {
        match self {
            Self::Error(err) if !self.is_cancelled(py) => Some(err.clone_ref(py)),
            _ => None,
        }
    }
}
