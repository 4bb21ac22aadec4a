//! The scanner as a Python class.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyString};

use super::{Passed, Scanner, MOST_NOISE};

/// Reads a stream of chat or completions chunks while it passes.
///
/// `StreamScanner(strip_usage, most_noise)`: with `strip_usage` a chunk that carries usage and no choices is left out,
/// as are up to `most_noise` data lines that do not even begin like a chunk. `feed(data)` returns what may be handed on:
/// whole events only, and nothing from a broken chunk on. `close()` returns what is left when the stream has ended: a
/// last event without its empty line still counts. Neither raises, whatever the bytes. The attributes say what was seen
/// so far: choices that carried content and its bytes, the last finish_reason, the last usage that makes sense and an
/// in-band error (both as JSON), `[DONE]`, and why the stream is broken ("", "chunk", "noise" or "too_long").
#[pyclass(frozen)]
pub struct StreamScanner {
    scanner: Arc<Mutex<Scanner>>,
}

impl StreamScanner {
    /// For a relay that reads with it.
    pub fn shared(&self) -> Arc<Mutex<Scanner>> {
        Arc::clone(&self.scanner)
    }

    fn lock(&self) -> MutexGuard<'_, Scanner> {
        self.scanner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[pymethods]
impl StreamScanner {
    #[new]
    #[pyo3(signature = (strip_usage, most_noise=MOST_NOISE))]
    fn new(strip_usage: bool, most_noise: u32) -> Self {
        let mut scanner = Scanner::new(strip_usage);
        scanner.most_noise = most_noise;
        Self {
            scanner: Arc::new(Mutex::new(scanner)),
        }
    }

    fn feed<'py>(&self, py: Python<'py>, data: &Bound<'py, PyBytes>) -> Bound<'py, PyBytes> {
        let bytes = data.as_bytes();
        match self.lock().feed(bytes) {
            Passed::Range(range) if range.len() == bytes.len() => data.clone(),
            passed => PyBytes::new(py, passed.of(bytes)),
        }
    }

    fn close<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.lock().close())
    }

    #[getter]
    fn chunks(&self) -> u64 {
        self.lock().marks.chunks
    }

    #[getter]
    fn content_bytes(&self) -> u64 {
        self.lock().marks.content_bytes
    }

    #[getter]
    fn saw_content(&self) -> bool {
        self.lock().marks.chunks > 0
    }

    #[getter]
    fn finish<'py>(&self, py: Python<'py>) -> Bound<'py, PyString> {
        PyString::new(py, &self.lock().marks.finish)
    }

    #[getter]
    fn usage<'py>(&self, py: Python<'py>) -> Option<Bound<'py, PyBytes>> {
        self.lock().marks.usage.as_ref().map(|raw| PyBytes::new(py, raw))
    }

    #[getter]
    fn done(&self) -> bool {
        self.lock().marks.done
    }

    #[getter]
    fn error<'py>(&self, py: Python<'py>) -> Option<Bound<'py, PyBytes>> {
        self.lock().marks.error.as_ref().map(|raw| PyBytes::new(py, raw))
    }

    #[getter]
    fn error_event<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.lock().marks.error_event)
    }

    #[getter]
    fn broken(&self) -> &'static str {
        self.lock().marks.broken.name()
    }

    /// Whether more than content has passed: a finish, `[DONE]`, an error, or a break.
    #[getter]
    fn turned(&self) -> bool {
        self.lock().turned()
    }
}
