//! Kernels: bytes in, bytes or numbers out; no callbacks, no I/O. Each has a twin of the same name in `turnout/twin/`.

pub mod json;
pub mod scan;
pub mod sse;
