//! Kernels: bytes in, bytes or numbers out; no callbacks, no I/O. `answer`, `canonical`, `counters`, `head`, `keys`, `meaning`,
//! `near`, `rows`, `scan`, `sse` and `tally` have a twin of the same name in `turnout/twin/`; `blocks`, `chunk`, `fields`,
//! `json`, `lines`, `pack`, `quick` and `unpack` are what they are made of.

pub mod answer;
pub mod blocks;
pub mod canonical;
pub mod chunk;
pub mod counters;
pub mod fields;
pub mod head;
pub mod json;
pub mod keys;
pub mod lines;
pub mod meaning;
pub mod near;
pub mod pack;
pub mod quick;
pub mod rows;
pub mod scan;
pub mod sse;
pub mod tally;
pub mod unpack;
