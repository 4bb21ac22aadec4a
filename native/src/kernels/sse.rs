//! What is read of a chat or completions stream while it passes. Twin of `turnout/twin/sse.py`: the same bytes in the
//! same pieces give the same bytes and the same marks.
//!
//! `Scanner` is plain Rust. It hands on whole events only, and what it hands on it leaves where it lies: the answer to
//! `feed` is a range of what was fed, unless an event began in an earlier piece or something between two events is left
//! out. Nothing is allocated for an event that arrives whole.

mod like;
mod marks;
mod python;
#[cfg(test)]
mod tests;

use std::mem;

use like::Like;
pub use marks::{Broken, Marks, Passed};
pub use python::StreamScanner;

use super::answer::tokens;
use super::chunk::{is_set, kind, Chunk};
use super::json::{line_stop, unescape};
use super::lines::{after_line, data_in, data_of, space};

/// An event over this is no chat chunk: the stream is treated as broken.
pub const MAX_EVENT_BYTES: usize = 1024 * 1024;
/// `data:` lines that do not begin like a chunk and are left out, before the stream counts as broken.
pub const MOST_NOISE: u32 = 3;
const BOM: &[u8] = b"\xef\xbb\xbf";

enum Verdict {
    Pass,
    Drop,
    Break,
    Stop,
}

/// Follows one upstream stream. Memory is bounded by one event; nothing is searched twice for its end.
#[derive(Debug)]
pub struct Scanner {
    pub marks: Marks,
    /// How many lines of noise are left out before the stream counts as broken.
    pub most_noise: u32,
    /// How many bytes of the first choice's text are kept; 0: none, and nothing is noted of what else there is.
    pub most_text: usize,
    /// Whether to stop in front of the first tool call.
    pub hold_calls: bool,
    strip_usage: bool,
    noise: u32,
    started: bool,
    tail: Vec<u8>,
    /// Where in `tail` the search for the event's end goes on.
    searched: usize,
    like: Like,
}

/// What one walk over a buffer found.
struct Walk {
    passed: Passed,
    /// Where the first event that is not whole begins, and where its end is to be searched on.
    rest: usize,
    resume: usize,
}

impl Scanner {
    /// `strip_usage`: the usage chunk was asked for by us, not by the client, and is taken out again.
    pub fn new(strip_usage: bool) -> Self {
        Self {
            marks: Marks::default(),
            most_noise: MOST_NOISE,
            most_text: 0,
            hold_calls: false,
            strip_usage,
            noise: 0,
            started: false,
            tail: Vec::new(),
            searched: 0,
            like: Like::default(),
        }
    }

    /// Whether more than content has passed: a finish, `[DONE]`, an error, a break, or a tool call that is held.
    pub fn turned(&self) -> bool {
        self.marks.done || !self.marks.finish.is_empty() || self.marks.stopped || self.ended()
    }

    /// Whether nothing more is handed on, whatever comes.
    pub fn ended(&self) -> bool {
        self.marks.broken != Broken::No || self.marks.error.is_some()
    }

    /// What may be handed on of `data`, and of what was held back before.
    pub fn feed(&mut self, data: &[u8]) -> Passed {
        if self.ended() {
            return Passed::Range(0..0);
        }
        if self.marks.stopped {
            self.tail.extend_from_slice(data);
            return Passed::Range(0..0);
        }
        let mut from = 0;
        if !self.started {
            // A byte order mark in front is dropped: the grammar ignores it, but several SDKs fail on it.
            if self.tail.len() + data.len() < BOM.len() {
                self.tail.extend_from_slice(data);
                if BOM.starts_with(&self.tail) {
                    return Passed::Range(0..0);
                }
                self.started = true;
                return self.feed_held();
            }
            self.started = true;
            if self.tail.is_empty() {
                from = if data.starts_with(BOM) { BOM.len() } else { 0 };
            } else {
                self.tail.extend_from_slice(data);
                if self.tail.starts_with(BOM) {
                    self.tail.drain(..BOM.len());
                }
                return self.feed_held();
            }
        }
        if !self.tail.is_empty() {
            self.tail.extend_from_slice(data);
            return self.feed_held();
        }
        let walk = self.walk(data, from, from);
        self.tail.extend_from_slice(&data[walk.rest..]);
        self.searched = walk.resume - walk.rest;
        walk.passed
    }

    fn feed_held(&mut self) -> Passed {
        let mut held = mem::take(&mut self.tail);
        let walk = self.walk(&held, 0, self.searched);
        self.searched = walk.resume - walk.rest;
        match walk.passed {
            Passed::Range(range) if range == (0..walk.rest) && !range.is_empty() => {
                self.tail = held.split_off(walk.rest);
                Passed::Bytes(held)
            }
            Passed::Range(range) => {
                let out = if range.is_empty() {
                    Passed::Range(0..0)
                } else {
                    Passed::Bytes(held[range].to_vec())
                };
                held.drain(..walk.rest);
                self.tail = held;
                out
            }
            out => {
                held.drain(..walk.rest);
                self.tail = held;
                out
            }
        }
    }

    /// Go on, tool calls and all: what may be handed on of what waited.
    pub fn resume(&mut self) -> Vec<u8> {
        self.hold_calls = false;
        if !mem::take(&mut self.marks.stopped) {
            return Vec::new();
        }
        self.searched = 0;
        match self.feed_held() {
            Passed::Bytes(bytes) => bytes,
            Passed::Range(_) => Vec::new(),
        }
    }

    /// The stream ended: what may be handed on of the tail. A last event without its empty line still counts.
    pub fn close(&mut self) -> Vec<u8> {
        if self.marks.stopped {
            return Vec::new();
        }
        let mut event = mem::take(&mut self.tail);
        self.searched = 0;
        if self.ended() || event.iter().all(|c| space(*c)) {
            return Vec::new();
        }
        let text = event
            .iter()
            .rposition(|c| !matches!(c, b'\r' | b'\n'))
            .map_or(0, |i| i + 1);
        event.truncate(text);
        event.extend_from_slice(b"\n\n");
        let data = data_of(&event);
        match self.read(&event, data.as_deref()) {
            Verdict::Pass => event,
            Verdict::Stop => {
                self.tail = event;
                Vec::new()
            }
            _ => Vec::new(),
        }
    }

    /// Read the whole events of `b` from `from`; the end of the first one is searched from `search`.
    fn walk(&mut self, b: &[u8], from: usize, search: usize) -> Walk {
        let mut at = from;
        let mut i = search;
        let mut kept = from..from;
        let mut gaps: Option<Vec<u8>> = None;
        let resume = loop {
            let stop = line_stop(b, i);
            let next = after_line(b, stop);
            match b.get(next) {
                None => break stop.min(b.len()),
                Some(b'\n' | b'\r') => {}
                Some(_) => {
                    i = next;
                    continue;
                }
            }
            let end = after_line(b, next);
            if end - at > MAX_EVENT_BYTES {
                self.marks.broken = Broken::TooLong;
                break b.len();
            }
            let event = &b[at..end];
            let verdict = if i == at {
                self.read(event, data_in(&b[at..stop]))
            } else {
                self.read(event, data_of(event).as_deref())
            };
            match verdict {
                Verdict::Break => break b.len(),
                Verdict::Stop => break at,
                Verdict::Drop => {}
                Verdict::Pass => match &mut gaps {
                    Some(out) => out.extend_from_slice(event),
                    None if kept.is_empty() => kept = at..end,
                    None if kept.end == at => kept.end = end,
                    None => gaps = Some([&b[kept.clone()], event].concat()),
                },
            }
            at = end;
            i = end;
        };
        if b.len() - at > MAX_EVENT_BYTES && !self.ended() && !self.marks.stopped {
            self.marks.broken = Broken::TooLong;
        }
        let (rest, resume) = if self.ended() { (b.len(), b.len()) } else { (at, resume) };
        if kept.is_empty() {
            kept = 0..0;
        }
        Walk {
            passed: gaps.map_or(Passed::Range(kept), Passed::Bytes),
            rest,
            resume,
        }
    }

    /// Keep what the first choice has said.
    fn gather(&mut self, text: &[u8], escaped: bool) {
        let marks = &mut self.marks;
        if marks.kinds & kind::OVER != 0 {
            return;
        }
        if escaped {
            marks.text.extend_from_slice(unescape(text).as_bytes());
        } else {
            marks.text.extend_from_slice(text);
        }
        if marks.text.len() > self.most_text {
            marks.kinds |= kind::OVER;
            marks.text = Vec::new();
        }
    }

    fn read(&mut self, event: &[u8], data: Option<&[u8]>) -> Verdict {
        let Some(data) = data else { return Verdict::Pass };
        if let Some((text, escaped)) = self.like.read(data) {
            self.marks.chunks += 1;
            self.marks.content_bytes += text.len() as u64 + 2; // as it stands there, in quotes
            if self.most_text > 0 {
                self.gather(text, escaped);
            }
            return Verdict::Pass;
        }
        let marks = &mut self.marks;
        if data == b"[DONE]" {
            marks.done = true;
            return Verdict::Pass;
        }
        // What is not UTF-8 may not go on: SDKs die of it.
        let chunk = match simdutf8::basic::from_utf8(data) {
            Ok(_) => Chunk::read(data).ok(),
            Err(_) => None,
        };
        let Some(chunk) = chunk else {
            if data.iter().find(|c| !space(**c)) == Some(&b'{') {
                marks.broken = Broken::Chunk;
                return Verdict::Break;
            }
            self.noise += 1;
            if self.noise > self.most_noise {
                marks.broken = Broken::Noise;
                return Verdict::Break;
            }
            return Verdict::Drop;
        };
        if self.most_text > 0 {
            if self.hold_calls && chunk.kinds & kind::CALLS != 0 {
                marks.stopped = true;
                return Verdict::Stop;
            }
            marks.kinds |= chunk.kinds;
            if let Some((text, escaped)) = chunk.text.clone() {
                self.gather(&data[text], escaped);
            }
        }
        let marks = &mut self.marks;
        // Text and nothing else, so that only the text can differ in the next one.
        let plain = chunk.choices == 1
            && chunk.with_content == 1
            && chunk.kinds == 0
            && chunk.finish.is_none()
            && chunk.usage.is_none()
            && chunk.error.is_none();
        marks.chunks += chunk.with_content;
        marks.content_bytes += chunk.content as u64;
        if let Some((text, escaped)) = chunk.finish {
            if escaped {
                marks.finish = unescape(&data[text]);
            } else if marks.finish.as_bytes() != &data[text.clone()] {
                marks.finish = String::from_utf8_lossy(&data[text]).into_owned();
            }
        }
        if let Some(usage) = chunk.usage.map(|span| &data[span]).filter(|raw| is_set(raw)) {
            if tokens(usage).is_some() {
                let kept = marks.usage.get_or_insert_with(Vec::new);
                kept.clear();
                kept.extend_from_slice(usage);
            }
            if self.strip_usage && chunk.choices == 0 {
                return Verdict::Drop;
            }
        }
        if let Some((text, _)) = chunk.text.filter(|_| plain) {
            self.like.set(&data[..text.start], &data[text.end..]);
        }
        if let Some(error) = chunk.error.map(|span| &data[span]).filter(|raw| is_set(raw)) {
            marks.error = Some(error.to_vec());
            marks.error_event = event.to_vec();
            return Verdict::Break;
        }
        Verdict::Pass
    }
}
