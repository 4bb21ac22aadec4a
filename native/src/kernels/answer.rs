//! What a plain answer says of itself: its finish reason, an error object, its usage. Twin of `turnout/twin/answer.py`.

use pyo3::exceptions::PyValueError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyString};

use super::chunk::is_set;
use super::json::{blank, fields, items, null, number, string, unescape, value, Malformed};

/// More than any model can take; a larger number is a provider's mistake, not a bill.
const MOST_TOKENS: f64 = 100_000_000.0;
/// msgspec reads no longer integers, their sign counted (Python's own bound counts digits only).
const MOST_DIGITS: usize = 4300;

/// Prompt, completion, cached, written to the cache, reasoning.
pub type Tokens = (u64, u64, u64, u64, u64);

/// Places in an answer.
#[derive(Default)]
struct Answer {
    choices: usize,
    finish: Option<(usize, usize, bool)>,
    usage: Option<(usize, usize)>,
    error: Option<(usize, usize)>,
}

impl Answer {
    fn read(b: &[u8]) -> Result<Self, Malformed> {
        let mut answer = Self::default();
        let end = fields(b, blank(b, 0), |name, at| match name {
            b"choices" => answer.read_choices(b, at),
            b"usage" | b"error" => {
                let end = value(b, at, 1)?;
                let place = if name == b"usage" {
                    &mut answer.usage
                } else {
                    &mut answer.error
                };
                *place = Some((at, end));
                Ok(end)
            }
            _ => value(b, at, 1),
        })?;
        let end = blank(b, end);
        if end != b.len() {
            return Err(Malformed(end, "text after the object"));
        }
        Ok(answer)
    }

    fn read_choices(&mut self, b: &[u8], at: usize) -> Result<usize, Malformed> {
        (self.choices, self.finish) = (0, None);
        if let Some(end) = null(b, at) {
            return Ok(end);
        }
        items(b, at, |at| {
            let mut finish = None;
            let end = fields(b, at, |name, at| {
                if name != b"finish_reason" {
                    return value(b, at, 3);
                }
                finish = None;
                if let Some(end) = null(b, at) {
                    return Ok(end);
                }
                if b.get(at) != Some(&b'"') {
                    return Err(Malformed(at, "a string expected"));
                }
                let (end, escaped) = string(b, at + 1)?;
                finish = Some((at + 1, end - 1, escaped));
                Ok(end)
            })?;
            if self.choices == 0 {
                self.finish = finish;
            }
            self.choices += 1;
            Ok(end)
        })
    }
}

/// A count of tokens as it stands there.
#[derive(Clone, Copy, Default, PartialEq)]
enum Count {
    #[default]
    Unsaid,
    /// Negative, or more than any model can take.
    Nonsense,
    Of(u64),
}

impl Count {
    fn get(self) -> Option<u64> {
        match self {
            Self::Of(n) => Some(n),
            _ => None,
        }
    }
}

fn count(b: &[u8], at: usize) -> Result<(Count, usize), Malformed> {
    if let Some(end) = null(b, at) {
        return Ok((Count::Unsaid, end));
    }
    if !matches!(b.get(at), Some(b'-' | b'0'..=b'9')) {
        return Err(Malformed(at, "a number expected"));
    }
    let end = number(b, at)?;
    let text = std::str::from_utf8(&b[at..end]).unwrap_or("");
    if let Ok(n) = text.parse::<u64>() {
        let said = if n as f64 <= MOST_TOKENS {
            Count::Of(n)
        } else {
            Count::Nonsense
        };
        return Ok((said, end));
    }
    let n: f64 = text.parse().unwrap_or(f64::INFINITY);
    let whole = !text.contains(['.', 'e', 'E']);
    if whole && text.len() > MOST_DIGITS || !whole && n.is_infinite() {
        return Err(Malformed(at, "number out of range"));
    }
    let said = if (0.0..=MOST_TOKENS).contains(&n) {
        Count::Of(n as u64)
    } else {
        Count::Nonsense
    };
    Ok((said, end))
}

#[derive(Default)]
struct Details {
    cached: Count,
    written: Count,
    audio: Count,
    reasoning: Count,
}

fn details(b: &[u8], at: usize, of_prompt: bool) -> Result<(Option<Details>, usize), Malformed> {
    if let Some(end) = null(b, at) {
        return Ok((None, end));
    }
    let mut d = Details::default();
    let end = fields(b, at, |name, at| {
        let place = match name {
            b"cached_tokens" if of_prompt => &mut d.cached,
            b"cache_write_tokens" if of_prompt => &mut d.written,
            b"audio_tokens" if of_prompt => &mut d.audio,
            b"reasoning_tokens" if !of_prompt => &mut d.reasoning,
            _ => return value(b, at, 2),
        };
        let (said, end) = count(b, at)?;
        *place = said;
        Ok(end)
    })?;
    Ok((Some(d), end))
}

/// Tokens in OpenAI's meaning; None where they make no sense.
pub fn tokens(b: &[u8]) -> Option<Tokens> {
    let (mut prompt, mut completion, mut total) = Default::default();
    let mut others: [Count; 3] = Default::default();
    let (mut p, mut c): (Option<Details>, Option<Details>) = Default::default();
    let end = fields(b, blank(b, 0), |name, at| {
        let place = match name {
            b"prompt_tokens" => &mut prompt,
            b"completion_tokens" => &mut completion,
            b"total_tokens" => &mut total,
            b"prompt_cache_hit_tokens" => &mut others[0],
            b"cached_tokens" => &mut others[1],
            b"num_cached_tokens" => &mut others[2],
            b"prompt_tokens_details" | b"completion_tokens_details" => {
                let of_prompt = name[0] == b'p';
                let (d, end) = details(b, at, of_prompt)?;
                *(if of_prompt { &mut p } else { &mut c }) = d;
                return Ok(end);
            }
            _ => return value(b, at, 1),
        };
        let (said, end) = count(b, at)?;
        *place = said;
        Ok(end)
    })
    .ok()?;
    if blank(b, end) != b.len() {
        return None;
    }
    let (prompt, completion, total): (Count, Count, Count) = (prompt, completion, total);
    let mut out = match completion {
        Count::Of(n) => n,
        // Not said is not the same as nonsense: embeddings have no completion.
        Count::Nonsense => return None,
        Count::Unsaid => total.get().zip(prompt.get()).map_or(0, |(t, p)| t.saturating_sub(p)),
    };
    let mut into = match prompt {
        Count::Of(n) => n,
        Count::Nonsense => return None,
        Count::Unsaid => total.get()?.saturating_sub(out), // Voyage gives the total only
    };
    let reasoning = c.and_then(|c| c.reasoning.get()).unwrap_or(0);
    if let Some(apart) = total.get().and_then(|t| t.checked_sub(into + out)).filter(|n| *n > 0) {
        if apart == reasoning {
            out += apart; // xAI counts thinking apart from the answer,
        } else if p.as_ref().is_some_and(|p| p.audio == Count::Of(apart)) {
            into += apart; // Mistral audio apart from the prompt
        }
    }
    let cached = p.as_ref().and_then(|p| p.cached.get());
    let cached = cached.unwrap_or_else(|| others.iter().find_map(|n| n.get().filter(|n| *n > 0)).unwrap_or(0));
    let cached = cached.min(into);
    let written = p.and_then(|p| p.written.get()).unwrap_or(0).min(into - cached);
    Some((into, out, cached, written, reasoning.min(out)))
}

type Told<'py> = (Option<Bound<'py, PyString>>, Bound<'py, PyBytes>, Option<Tokens>);

/// `(finish_reason of the first choice or None, the error object or b"" if there are choices, its tokens or None)` of a
/// plain answer. Tokens are prompt, completion, cached, written to the cache and reasoning ones, in OpenAI's meaning;
/// None if they are not there or make no sense. Raises `ValueError(what)` for what is not one JSON object in UTF-8 or
/// has fields of other types.
#[pyfunction]
pub fn read_answer<'py>(py: Python<'py>, body: &Bound<'py, PyBytes>) -> PyResult<Told<'py>> {
    let b = body.as_bytes();
    if simdutf8::basic::from_utf8(b).is_err() {
        return Err(PyValueError::new_err("not UTF-8"));
    }
    let answer = Answer::read(b).map_err(|Malformed(_, what)| PyValueError::new_err(what))?;
    let finish = answer.finish.map(|(from, to, escaped)| match &b[from..to] {
        raw if escaped => PyString::new(py, &unescape(raw)),
        b"stop" => intern!(py, "stop").clone(), // by far the most frequent
        raw => PyString::new(py, &String::from_utf8_lossy(raw)),
    });
    let error = answer
        .error
        .map(|(from, to)| &b[from..to])
        .filter(|raw| is_set(raw) && answer.choices == 0);
    let usage = answer
        .usage
        .map(|(from, to)| &b[from..to])
        .filter(|raw| is_set(raw))
        .and_then(tokens);
    Ok((finish, PyBytes::new(py, error.unwrap_or_default()), usage))
}

/// The tokens that a `usage` object tells of, as in `read_answer`.
#[pyfunction]
pub fn read_usage(usage: &Bound<'_, PyBytes>) -> Option<Tokens> {
    let raw = usage.as_bytes();
    if is_set(raw) {
        tokens(raw)
    } else {
        None
    }
}
