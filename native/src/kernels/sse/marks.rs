//! What a scanner has seen, and what may be handed on.

use std::ops::Range;

/// Why nothing more is handed on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Broken {
    #[default]
    No,
    /// A `data:` line that begins like a chunk and is not one: it may have carried text.
    Chunk,
    /// More lines of noise than are left out in silence.
    Noise,
    /// An event over `MAX_EVENT_BYTES`.
    TooLong,
}

impl Broken {
    pub fn name(self) -> &'static str {
        match self {
            Self::No => "",
            Self::Chunk => "chunk",
            Self::Noise => "noise",
            Self::TooLong => "too_long",
        }
    }
}

/// What was seen so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Marks {
    /// Choices that carried content.
    pub chunks: u64,
    /// Bytes of that content, JSON spelling and all.
    pub content_bytes: u64,
    /// The last `finish_reason`.
    pub finish: String,
    /// The last `usage` that makes sense, as JSON.
    pub usage: Option<Vec<u8>>,
    /// `[DONE]` was seen.
    pub done: bool,
    /// An in-band error object as JSON, and the event it stood in. Nothing is handed on from there.
    pub error: Option<Vec<u8>>,
    pub error_event: Vec<u8>,
    pub broken: Broken,
    /// The text of the first choice, UTF-8, where it is kept; empty once it is over the bound.
    pub text: Vec<u8>,
    /// What else there was, where the text is kept: bits of `chunk::kind`.
    pub kinds: u32,
    /// A tool call is next; it and all behind it wait for `resume`.
    pub stopped: bool,
}

/// What may be handed on after `feed`.
#[derive(Debug, PartialEq, Eq)]
pub enum Passed {
    /// This part of what was fed; empty if nothing.
    Range(Range<usize>),
    /// These bytes: they begin with what was held back before, or something between them was left out.
    Bytes(Vec<u8>),
}

impl Passed {
    /// As bytes, `data` being what was fed.
    pub fn of<'a>(&'a self, data: &'a [u8]) -> &'a [u8] {
        match self {
            Self::Range(range) => &data[range.clone()],
            Self::Bytes(bytes) => bytes,
        }
    }
}
