//! What one chunk of a chat or completions stream says, read off its JSON without building anything.
//!
//! The text is checked to its end, and the fields that are looked at must have the type that `turnout/twin/sse.py`
//! gives them. Of a field that stands twice the last one counts.

use std::ops::Range;

use super::json::{blank, fields, items, null, string, value, Malformed};

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

/// What a chunk carries beside the text of its first choice, as bits; those of `turnout/twin/sse.py`.
pub mod kind {
    pub const CALLS: u32 = 1;
    pub const REASONING: u32 = 2;
    pub const REFUSAL: u32 = 4;
    pub const LOGPROBS: u32 = 8;
    /// A choice other than the first.
    pub const OTHER_CHOICE: u32 = 16;
    /// Audio, a call of the old shape, content that is not text.
    pub const OTHER: u32 = 32;
    /// The text is over the bound and was let go.
    pub const OVER: u32 = 64;
    /// Reasoning in blocks that are signed or encrypted.
    pub const SIGNED: u32 = 128;
}

/// The bit of each name in `CONTENT`; content that is text has none.
const KINDS: [u32; CONTENT.len()] = [
    kind::OTHER,
    kind::CALLS,
    kind::REASONING,
    kind::REASONING,
    kind::SIGNED,
    kind::REFUSAL,
    kind::OTHER,
    kind::OTHER,
];

/// Where a text lies, the quotes left out, and whether it has escapes.
type Text = (Range<usize>, bool);

/// Numbers and places of what a chunk says.
#[derive(Default)]
pub struct Chunk {
    /// How many there are.
    pub choices: usize,
    /// How many of them carry content, and how many bytes of it, JSON spelling and all.
    pub with_content: u64,
    pub content: usize,
    /// The text of the first choice, and what else there is (`kind`).
    pub text: Option<Text>,
    pub kinds: u32,
    /// The last `finish_reason` that is neither null nor empty: where its text lies, and whether it has escapes.
    pub finish: Option<Text>,
    pub usage: Option<Range<usize>>,
    pub error: Option<Range<usize>>,
}

impl Chunk {
    pub fn read(b: &[u8]) -> Result<Self, Malformed> {
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
        self.text = None;
        self.kinds = 0;
        self.finish = None;
        if let Some(end) = null(b, at) {
            return Ok(end);
        }
        items(b, at, |at| self.read_choice(b, at))
    }

    fn read_choice(&mut self, b: &[u8], at: usize) -> Result<usize, Malformed> {
        let mut delta = None;
        let mut text = Said::default();
        let mut finish = None;
        let mut first = self.choices == 0;
        let mut logprobs = false;
        let end = fields(b, at, |name, at| match name {
            b"delta" => {
                if let Some(end) = null(b, at) {
                    delta = None;
                    return Ok(end);
                }
                let (said, end) = delta_said(b, at)?;
                delta = Some(said);
                Ok(end)
            }
            b"index" => {
                let end = value(b, at, 3)?;
                first = matches!(&b[at..end], b"0") || self.choices == 0 && &b[at..end] == b"null";
                Ok(end)
            }
            b"logprobs" => {
                let end = value(b, at, 3)?;
                logprobs = is_set(&b[at..end]);
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
                let (end, span) = text_or_value(b, at, 3)?;
                text = Said {
                    size: set_bytes(&b[at..end]),
                    ..Said::default()
                };
                if text.size > 0 {
                    text.kinds = if span.is_some() { 0 } else { kind::OTHER };
                    text.text = span;
                }
                Ok(end)
            }
            _ => value(b, at, 3),
        })?;
        self.choices += 1;
        let said = delta.unwrap_or(text);
        self.with_content += u64::from(said.size > 0);
        self.content += said.size;
        self.kinds |= said.kinds;
        if logprobs {
            self.kinds |= kind::LOGPROBS;
        }
        if first {
            self.text = said.text;
        } else if said.size > 0 || finish.is_some() {
            self.kinds |= kind::OTHER_CHOICE;
        }
        if finish.is_some() {
            self.finish = finish;
        }
        Ok(end)
    }
}

/// What one choice says: bytes of content, its text, and what it is if not text.
#[derive(Default)]
struct Said {
    size: usize,
    text: Option<Text>,
    kinds: u32,
}

/// A value, and its text if it is a string.
#[inline]
fn text_or_value(b: &[u8], at: usize, depth: u32) -> Result<(usize, Option<Text>), Malformed> {
    if b.get(at) == Some(&b'"') {
        let (end, escaped) = string(b, at + 1)?;
        return Ok((end, Some((at + 1..end - 1, escaped))));
    }
    Ok((value(b, at, depth)?, None))
}

/// What the delta at `at` says, and where it ends.
fn delta_said(b: &[u8], at: usize) -> Result<(Said, usize), Malformed> {
    let mut sizes = [0; CONTENT.len()];
    let mut text = None;
    let mut signed = false;
    let end = fields(b, at, |name, at| {
        let (end, span) = text_or_value(b, at, 4)?;
        if let Some(k) = CONTENT.iter().position(|n| *n == name) {
            sizes[k] = set_bytes(&b[at..end]);
            if k == 0 {
                text = span.filter(|_| sizes[0] > 0);
            } else if KINDS[k] == kind::SIGNED {
                signed = is_signed(&b[at..end]);
            }
        }
        Ok(end)
    })?;
    let mut said = Said::default();
    for (k, size) in sizes.into_iter().enumerate().filter(|(_, n)| *n > 0) {
        if said.size == 0 {
            said.size = size;
        }
        if KINDS[k] == kind::SIGNED && !signed {
            said.kinds |= kind::REASONING;
        } else if k > 0 || text.is_none() {
            said.kinds |= KINDS[k];
        }
    }
    said.text = text;
    Ok((said, end))
}

/// Whether blocks of reasoning have a signature or are encrypted: then half of them are of no use to anybody.
fn is_signed(raw: &[u8]) -> bool {
    let mut rest = raw;
    while let Some(i) = find(rest, b"\"signature\"") {
        rest = &rest[i + 11..];
        let colon = blank(rest, 0);
        if rest.get(colon) == Some(&b':') && rest.get(blank(rest, colon + 1)) == Some(&b'"') {
            return true;
        }
    }
    find(raw, b"reasoning.encrypted").is_some()
}

fn find(b: &[u8], what: &[u8]) -> Option<usize> {
    b.windows(what.len()).position(|w| w == what)
}

/// Whether a value is something: not null and not empty.
#[inline]
pub fn is_set(raw: &[u8]) -> bool {
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
