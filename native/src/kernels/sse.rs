//! What is read of a chat or completions stream while it passes. The pure reference is `turnout/stream/reader.py`: the
//! same bytes in the same pieces give the same bytes and the same marks.
//!
//! `Scanner` is plain Rust. It hands on whole events only, and what it hands on it leaves where it lies: the answer to
//! `feed` is a range of what was fed, unless an event began in an earlier piece or something between two events is left
//! out. Nothing is allocated for an event that arrives whole.
//!
//! Source of the events: WHATWG HTML, 9.2.6 "Interpreting an event stream". JSON is checked to the end (`json.rs`), and
//! the fields that are looked at must have the type that they have in `turnout/wire/answer.py`.

use std::borrow::Cow;
use std::mem;
use std::ops::Range;

use pyo3::prelude::*;
use pyo3::types::PyBytes;

use super::json::{blank, fields, line_stop, null, number, string, unescape, value, Malformed};

/// An event over this is no chat chunk: the stream is treated as broken.
pub const MAX_EVENT_BYTES: usize = 1024 * 1024;
/// `data:` lines that do not begin like a chunk and are left out, before the stream counts as broken.
const MOST_NOISE: u32 = 3;
const BOM: &[u8] = b"\xef\xbb\xbf";
/// More than any model can take; a larger number is a provider's mistake, not a bill.
const MOST_TOKENS: f64 = 100_000_000.0;
/// Python refuses to read longer integers, and so does msgspec.
const MOST_DIGITS: usize = 4300;

/// Where a delta's content is; the first of these that is set counts. The order is that of `content_bytes` in
/// `turnout/wire/answer.py`.
const CONTENT: [&[u8]; 8] = [
    b"content",
    b"tool_calls",
    b"reasoning_content",
    b"reasoning",
    b"reasoning_details",
    b"refusal",
    b"function_call",
    b"audio",
];

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

enum Verdict {
    Pass,
    Drop,
    Break,
}

/// Follows one upstream stream. Memory is bounded by one event; nothing is searched twice for its end.
#[derive(Debug)]
pub struct Scanner {
    pub marks: Marks,
    strip_usage: bool,
    noise: u32,
    started: bool,
    tail: Vec<u8>,
    /// Where in `tail` the search for the event's end goes on.
    searched: usize,
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
            strip_usage,
            noise: 0,
            started: false,
            tail: Vec::new(),
            searched: 0,
        }
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

    /// The stream ended: what may be handed on of the tail. A last event without its empty line still counts.
    pub fn close(&mut self) -> Vec<u8> {
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
        if b.len() - at > MAX_EVENT_BYTES && !self.ended() {
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

    fn read(&mut self, event: &[u8], data: Option<&[u8]>) -> Verdict {
        let Some(data) = data else { return Verdict::Pass };
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
            if self.noise > MOST_NOISE {
                marks.broken = Broken::Noise;
                return Verdict::Break;
            }
            return Verdict::Drop;
        };
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
            if sensible(usage).unwrap_or(false) {
                let kept = marks.usage.get_or_insert_with(Vec::new);
                kept.clear();
                kept.extend_from_slice(usage);
            }
            if self.strip_usage && chunk.choices == 0 {
                return Verdict::Drop;
            }
        }
        if let Some(error) = chunk.error.map(|span| &data[span]).filter(|raw| is_set(raw)) {
            marks.error = Some(error.to_vec());
            marks.error_event = event.to_vec();
            return Verdict::Break;
        }
        Verdict::Pass
    }
}

// ---- lines

/// What Python's `bytes.strip` takes away.
fn space(c: u8) -> bool {
    matches!(c, b' ' | b'\t'..=b'\r')
}

/// The place behind the line end at `i`: LF, CRLF or CR. Past the end of the text it stays there.
#[inline]
fn after_line(b: &[u8], i: usize) -> usize {
    match b.get(i) {
        None => b.len(),
        Some(b'\r') if b.get(i + 1) == Some(&b'\n') => i + 2,
        Some(_) => i + 1,
    }
}

/// The value of a `data` line, if it is one.
#[inline]
fn data_in(line: &[u8]) -> Option<&[u8]> {
    match line.strip_prefix(b"data")? {
        [b':', b' ', rest @ ..] | [b':', rest @ ..] => Some(rest),
        [] => Some(b""),
        _ => None,
    }
}

/// The data of one event; None if it has no data line (a comment, a lone `event:` line).
fn data_of(event: &[u8]) -> Option<Cow<'_, [u8]>> {
    let mut found: Option<Cow<'_, [u8]>> = None;
    let mut i = 0;
    while i < event.len() {
        let stop = line_stop(event, i);
        if let Some(data) = data_in(&event[i..stop]) {
            match &mut found {
                None => found = Some(Cow::Borrowed(data)),
                Some(whole) => {
                    let whole = whole.to_mut();
                    whole.push(b'\n');
                    whole.extend_from_slice(data);
                }
            }
        }
        i = after_line(event, stop);
    }
    found
}

// ---- chunks

/// What one chunk says. Of a field that stands twice the last one counts, but all must have their type.
#[derive(Default)]
struct Chunk {
    choices: usize,
    with_content: u64,
    content: usize,
    /// The last `finish_reason` that is neither null nor empty: where its text lies, and whether it has escapes.
    finish: Option<(Range<usize>, bool)>,
    usage: Option<Range<usize>>,
    error: Option<Range<usize>>,
}

impl Chunk {
    fn read(b: &[u8]) -> Result<Self, Malformed> {
        let mut chunk = Self::default();
        let end = fields(b, blank(b, 0), |name, at| match name {
            b"choices" => chunk.read_choices(b, at),
            b"usage" => {
                let end = value(b, at, 1)?;
                chunk.usage = Some(at..end);
                Ok(end)
            }
            b"error" => {
                let end = value(b, at, 1)?;
                chunk.error = Some(at..end);
                Ok(end)
            }
            _ => value(b, at, 1),
        })?;
        let end = blank(b, end);
        if end != b.len() {
            return Err(Malformed(end, "text after the object"));
        }
        Ok(chunk)
    }

    fn read_choices(&mut self, b: &[u8], at: usize) -> Result<usize, Malformed> {
        self.choices = 0;
        self.with_content = 0;
        self.content = 0;
        self.finish = None;
        if let Some(end) = null(b, at) {
            return Ok(end);
        }
        if b.get(at) != Some(&b'[') {
            return Err(Malformed(at, "an array expected"));
        }
        let mut i = blank(b, at + 1);
        if b.get(i) == Some(&b']') {
            return Ok(i + 1);
        }
        loop {
            i = blank(b, self.read_choice(b, i)?);
            match b.get(i) {
                Some(b',') => i = blank(b, i + 1),
                Some(b']') => return Ok(i + 1),
                _ => return Err(Malformed(i, "',' or ']' expected")),
            }
        }
    }

    fn read_choice(&mut self, b: &[u8], at: usize) -> Result<usize, Malformed> {
        let mut delta = None;
        let mut text = 0;
        let mut finish = None;
        let end = fields(b, at, |name, at| match name {
            b"delta" => {
                if let Some(end) = null(b, at) {
                    delta = None;
                    return Ok(end);
                }
                let (size, end) = delta_bytes(b, at)?;
                delta = Some(size);
                Ok(end)
            }
            b"finish_reason" => {
                finish = None;
                if let Some(end) = null(b, at) {
                    return Ok(end);
                }
                if b.get(at) != Some(&b'"') {
                    return Err(Malformed(at, "a string expected"));
                }
                let (end, escaped) = string(b, at + 1)?;
                if end - at > 2 {
                    finish = Some((at + 1..end - 1, escaped));
                }
                Ok(end)
            }
            b"text" => {
                let end = value(b, at, 3)?;
                text = set_bytes(&b[at..end]);
                Ok(end)
            }
            _ => value(b, at, 3),
        })?;
        self.choices += 1;
        let size = delta.unwrap_or(text);
        self.with_content += u64::from(size > 0);
        self.content += size;
        if finish.is_some() {
            self.finish = finish;
        }
        Ok(end)
    }
}

/// How many bytes of content the delta at `at` carries, and where it ends.
fn delta_bytes(b: &[u8], at: usize) -> Result<(usize, usize), Malformed> {
    let mut sizes = [0; CONTENT.len()];
    let end = fields(b, at, |name, at| {
        let end = value(b, at, 4)?;
        if let Some(k) = CONTENT.iter().position(|n| *n == name) {
            sizes[k] = set_bytes(&b[at..end]);
        }
        Ok(end)
    })?;
    Ok((sizes.into_iter().find(|n| *n > 0).unwrap_or(0), end))
}

/// Whether a value is something: not null and not empty.
#[inline]
fn is_set(raw: &[u8]) -> bool {
    !matches!(raw, b"null" | b"\"\"" | b"[]" | b"{}")
}

#[inline]
fn set_bytes(raw: &[u8]) -> usize {
    if is_set(raw) {
        raw.len()
    } else {
        0
    }
}

// ---- usage

#[derive(Clone, Copy, PartialEq)]
enum Said {
    Nothing,
    Nonsense,
    Count,
}

/// Whether `usage_of` in `turnout/wire/answer.py` makes a Usage of this JSON object; an error where it cannot be read.
fn sensible(b: &[u8]) -> Result<bool, Malformed> {
    let (mut prompt, mut completion, mut total) = (Said::Nothing, Said::Nothing, Said::Nothing);
    fields(b, 0, |name, at| {
        let (said, end) = match name {
            b"prompt_tokens" | b"completion_tokens" | b"total_tokens" => count(b, at)?,
            b"prompt_cache_hit_tokens" | b"cached_tokens" | b"num_cached_tokens" => return Ok(count(b, at)?.1),
            b"prompt_tokens_details" => {
                return details(b, at, &[b"cached_tokens", b"cache_write_tokens", b"audio_tokens"])
            }
            b"completion_tokens_details" => return details(b, at, &[b"reasoning_tokens"]),
            _ => return value(b, at, 1),
        };
        match name {
            b"prompt_tokens" => prompt = said,
            b"completion_tokens" => completion = said,
            _ => total = said,
        }
        Ok(end)
    })?;
    // Not said is not the same as nonsense: embeddings have no completion, and Voyage gives the total only.
    let known = prompt == Said::Count || prompt == Said::Nothing && total == Said::Count;
    Ok(completion != Said::Nonsense && known)
}

fn details(b: &[u8], at: usize, counts: &[&[u8]]) -> Result<usize, Malformed> {
    match null(b, at) {
        Some(end) => Ok(end),
        None => fields(b, at, |name, at| {
            if counts.contains(&name) {
                Ok(count(b, at)?.1)
            } else {
                value(b, at, 2)
            }
        }),
    }
}

fn count(b: &[u8], at: usize) -> Result<(Said, usize), Malformed> {
    if let Some(end) = null(b, at) {
        return Ok((Said::Nothing, end));
    }
    if !matches!(b.get(at), Some(b'-' | b'0'..=b'9')) {
        return Err(Malformed(at, "a number expected"));
    }
    let end = number(b, at)?;
    let text = std::str::from_utf8(&b[at..end]).unwrap_or("");
    let n: f64 = text.parse().unwrap_or(f64::INFINITY);
    let whole = !text.contains(['.', 'e', 'E']);
    if whole && text.trim_start_matches('-').len() > MOST_DIGITS || !whole && n.is_infinite() {
        return Err(Malformed(at, "number out of range"));
    }
    let said = if (0.0..=MOST_TOKENS).contains(&n) {
        Said::Count
    } else {
        Said::Nonsense
    };
    Ok((said, end))
}

// ---- Python

/// Reads a stream of chat or completions chunks while it passes.
///
/// `StreamScanner(strip_usage)`; `feed(data)` returns what may be handed on (`data` itself where that is all of it) and
/// `close()` what is left at the end of the stream. The attributes say what was seen. Never raises on any bytes.
#[pyclass]
pub struct StreamScanner {
    scanner: Scanner,
}

#[pymethods]
impl StreamScanner {
    #[new]
    fn new(strip_usage: bool) -> Self {
        Self {
            scanner: Scanner::new(strip_usage),
        }
    }

    fn feed<'py>(&mut self, py: Python<'py>, data: &Bound<'py, PyBytes>) -> Bound<'py, PyBytes> {
        let bytes = data.as_bytes();
        match self.scanner.feed(bytes) {
            Passed::Range(range) if range.len() == bytes.len() => data.clone(),
            passed => PyBytes::new(py, passed.of(bytes)),
        }
    }

    fn close<'py>(&mut self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.scanner.close())
    }

    #[getter]
    fn chunks(&self) -> u64 {
        self.scanner.marks.chunks
    }

    #[getter]
    fn content_bytes(&self) -> u64 {
        self.scanner.marks.content_bytes
    }

    #[getter]
    fn saw_content(&self) -> bool {
        self.scanner.marks.chunks > 0
    }

    #[getter]
    fn finish(&self) -> &str {
        &self.scanner.marks.finish
    }

    #[getter]
    fn usage<'py>(&self, py: Python<'py>) -> Option<Bound<'py, PyBytes>> {
        self.scanner.marks.usage.as_ref().map(|raw| PyBytes::new(py, raw))
    }

    #[getter]
    fn done(&self) -> bool {
        self.scanner.marks.done
    }

    #[getter]
    fn error<'py>(&self, py: Python<'py>) -> Option<Bound<'py, PyBytes>> {
        self.scanner.marks.error.as_ref().map(|raw| PyBytes::new(py, raw))
    }

    #[getter]
    fn error_event<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.scanner.marks.error_event)
    }

    #[getter]
    fn broken(&self) -> &'static str {
        self.scanner.marks.broken.name()
    }

    /// Whether more than content has passed: a finish, `[DONE]`, an error, or a break.
    #[getter]
    fn turned(&self) -> bool {
        let marks = &self.scanner.marks;
        marks.done || !marks.finish.is_empty() || self.scanner.ended()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROLE: &str =
        r#"{"id":"c","choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}"#;
    const TEXT: &str = r#"{"id":"c","choices":[{"index":0,"delta":{"content":"h\u00e9llo \ud83d\ude00"}}]}"#;
    const FINISH: &str = r#"{"id":"c","choices":[{"index":0,"delta":{},"finish_reason":"st\u006fp"}]}"#;
    const USAGE: &str = r#"{"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":3,"total_tokens":10}}"#;
    const ERROR: &str = r#"{"error":{"message":"overloaded","code":529}}"#;

    fn stream(chunks: &[&str], end: &str) -> Vec<u8> {
        chunks
            .iter()
            .flat_map(|c| format!("data: {c}{end}{end}").into_bytes())
            .collect()
    }

    fn run(pieces: &[&[u8]], strip: bool) -> (Vec<u8>, Marks) {
        let mut scanner = Scanner::new(strip);
        let mut out = Vec::new();
        for piece in pieces {
            out.extend_from_slice(scanner.feed(piece).of(piece));
        }
        out.extend_from_slice(&scanner.close());
        (out, scanner.marks)
    }

    #[test]
    fn hands_on_whole_input_where_it_lies() {
        let s = stream(&[ROLE, TEXT, FINISH, "[DONE]"], "\n");
        let mut scanner = Scanner::new(true);
        assert_eq!(scanner.feed(&s), Passed::Range(0..s.len()));
        let m = &scanner.marks;
        assert_eq!(
            (m.chunks, m.finish.as_str(), m.done, m.broken),
            (1, "stop", true, Broken::No)
        );
        assert_eq!(m.content_bytes, r#""h\u00e9llo \ud83d\ude00""#.len() as u64);
    }

    #[test]
    fn every_split_gives_the_same() {
        for end in ["\n", "\r\n", "\r"] {
            let s = stream(&[ROLE, TEXT, USAGE, "noise", FINISH, "[DONE]"], end);
            let whole = run(&[&s], true);
            assert_eq!(whole.1.usage.as_deref().map(<[u8]>::len), Some(59));
            for i in 0..=s.len() {
                let got = run(&[&s[..i], &s[i..]], true);
                assert_eq!(got.1, whole.1, "{i}");
                if end != "\r\n" {
                    assert_eq!(got.0, whole.0, "{i}");
                }
            }
            let bytes: Vec<&[u8]> = s.chunks(1).collect();
            assert_eq!(run(&bytes, true).1, whole.1);
        }
    }

    #[test]
    fn takes_out_the_usage_chunk_only_when_told() {
        let s = stream(&[TEXT, USAGE, "[DONE]"], "\n");
        assert_eq!(run(&[&s], true).0, stream(&[TEXT, "[DONE]"], "\n"));
        assert_eq!(run(&[&s], false).0, s);
    }

    #[test]
    fn hands_on_nothing_from_a_break_on() {
        let before = stream(&[TEXT], "\n");
        for (bad, why) in [(r#"{"id":"c","choices":[{"#, Broken::Chunk), (ERROR, Broken::No)] {
            let (out, marks) = run(&[&stream(&[TEXT, bad, TEXT], "\n"), &before], false);
            assert_eq!((out, marks.broken), (before.clone(), why));
        }
        let (out, marks) = run(&[&stream(&["a", "b", "c", TEXT, "d", TEXT], "\n")], false);
        assert_eq!((out, marks.broken), (before, Broken::Noise));
    }

    #[test]
    fn an_event_over_the_limit_is_a_break() {
        let mut s = stream(&[TEXT], "\n");
        let sound = s.clone();
        s.extend_from_slice(b"data: ");
        s.resize(s.len() + MAX_EVENT_BYTES, b'x');
        let pieces: Vec<&[u8]> = s.chunks(65_536).collect();
        for pieces in [vec![&s[..]], pieces] {
            let (out, marks) = run(&pieces, false);
            assert_eq!((&out, marks.broken), (&sound, Broken::TooLong));
        }
    }

    /// A bounded fuzz run: no input may panic, and how it is cut up may not change what is seen.
    #[test]
    fn any_bytes_in_any_pieces() {
        let seeds = [
            stream(&[ROLE, TEXT, TEXT, FINISH, USAGE, "[DONE]"], "\n"),
            stream(&[ROLE, TEXT, ERROR], "\r\n"),
            stream(&[TEXT, USAGE, FINISH, ": x"], "\r"),
            b"\xef\xbb\xbf: hi\n\nevent: message\ndata: {\"choices\":\ndata: [{\"text\":\"a\"}]}\n\ndata\n\n".to_vec(),
        ];
        let bits: [&[u8]; 16] = [
            b"\n", b"\r", b"\r\n", b"\n\n", b"data:", b"\"", b"\\", b"{", b"}", b"[", b"]", b",", b"null", b"\xff",
            b"\\ud800", b"1e999",
        ];
        let mut state = 0x9E37_79B9_7F4A_7C15_u64;
        let mut dice = move |n: usize| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state % n as u64) as usize
        };
        let mut whole_streams = 0;
        for round in 0..100_000 {
            let mut s = seeds[dice(seeds.len())].clone();
            for _ in 0..dice(5) {
                let at = dice(s.len() + 1);
                match dice(5) {
                    0 => s.truncate(at),
                    1 => drop(s.splice(at..at, bits[dice(bits.len())].iter().copied())),
                    2 => drop(s.drain(at..(at + dice(9)).min(s.len()))),
                    3 if at < s.len() => s[at] = dice(256) as u8,
                    _ => {
                        let from = dice(s.len() + 1);
                        let copy = s[from..(from + dice(80)).min(s.len())].to_vec();
                        drop(s.splice(at..at, copy));
                    }
                }
            }
            let strip = round % 2 == 0;
            let (out, mut marks) = run(&[&s], strip);
            assert!(out.len() <= s.len() + 2);
            whole_streams += usize::from(marks.broken == Broken::No && marks.chunks > 0);
            let mut pieces: Vec<&[u8]> = Vec::new();
            let mut rest = &s[..];
            while !rest.is_empty() {
                let most = 1 + dice(60);
                let (piece, more) = rest.split_at((1 + dice(most)).min(rest.len()));
                pieces.push(piece);
                rest = more;
            }
            let (_, mut cut) = run(&pieces, strip);
            // A CRLF cut in two ends one event and begins the next one: their bytes may differ by that LF.
            marks.error_event.clear();
            cut.error_event.clear();
            assert_eq!(marks, cut, "{}", String::from_utf8_lossy(&s));
        }
        assert!(whole_streams > 20_000);
    }
}
