//! The ledger's rows of requests, from their records: as long as all is well, nobody else has to read these.

use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList, PyString};

use super::fields::{Line, Stamps};
use super::unpack::{Reader, Text, Torn};

/// Fields of a record (telemetry/record.py).
const FIELDS: usize = 41;
/// The cache outcome of a route that has none.
const OFF: &str = "bypass;off";
/// Bytes of a usual row: 490, and some for longer names.
const ROW: usize = 768;

/// Of one attempt, 13 fields.
struct Attempt<'a> {
    names: [Text<'a>; 4], // provider, account, model, cause
    started: i64,
    ended: i64,
    first_content: i64,
    status: i64,
    reason: Text<'a>,
    tokens: [i64; 5], // prompt, completion, cached, written to the cache, reasoning
    estimated: bool,
    cost: (u64, bool),
    priced: bool,
}

fn attempt<'a>(r: &mut Reader<'a>) -> Result<Attempt<'a>, Torn> {
    if r.array()? != 13 {
        return Err(Torn);
    }
    let mut names = [Text::EMPTY; 4];
    for name in &mut names {
        *name = r.text()?;
    }
    let (started, ended) = (r.int()?, r.int()?);
    let (_, first_content) = (r.int()?, r.int()?);
    let (status, reason) = (r.int()?, r.text()?);
    let mut tokens = [0; 5];
    let mut estimated = false;
    if let Some(n) = r.array_or_nil()? {
        if n != 6 {
            return Err(Torn);
        }
        for one in &mut tokens {
            *one = r.int()?;
        }
        estimated = r.truth()?;
    }
    Ok(Attempt {
        names,
        started,
        ended,
        first_content,
        status,
        reason,
        tokens,
        estimated,
        cost: r.amount()?,
        priced: r.truth()?,
    })
}

/// What a piece of a ring comes to; see `ledger_batch`.
pub struct Batch<'a> {
    pub days: Vec<([u8; 10], Vec<u8>)>,
    pub others: Vec<&'a [u8]>,
    pub records: usize,
    pub bad: usize,
    pub used: usize,
    pub want: usize,
}

/// What is kept from one record to the next: the last stamp, and room for attempts.
struct Work<'a> {
    stamps: Stamps,
    attempts: Vec<Attempt<'a>>,
}

/// See `ledger_batch`.
pub fn batch(data: &[u8], most: usize, everything: bool) -> Batch<'_> {
    let mut out = Batch {
        days: Vec::new(),
        others: Vec::new(),
        records: 0,
        bad: 0,
        used: 0,
        want: 0,
    };
    let mut work = Work {
        stamps: Stamps::default(),
        attempts: Vec::new(),
    };
    while out.records < most {
        let rest = &data[out.used..];
        out.want = match rest.first_chunk::<4>() {
            Some(length) => 4 + u32::from_le_bytes(*length) as usize,
            None => 4,
        };
        let Some(whole) = rest.get(..out.want) else { return out };
        let Some(record) = whole.get(4..) else { return out };
        out.used += out.want;
        out.records += 1;
        match rows(record, &mut work, &mut out.days, data.len()) {
            Ok(plain) if plain && !everything => {}
            Ok(_) => out.others.push(record),
            Err(Torn) => out.bad += 1,
        }
    }
    out.want = 0;
    out
}

/// Where lines of a day go; the first one gets room for the rows of `piece` bytes of records, which they exceed by half.
fn lines_of(days: &mut Vec<([u8; 10], Vec<u8>)>, day: [u8; 10], piece: usize) -> &mut Vec<u8> {
    let at = days.iter().rposition(|(one, _)| *one == day).unwrap_or_else(|| {
        let room = if days.is_empty() { piece + piece / 2 + ROW } else { 0 };
        days.push((day, Vec::with_capacity(room)));
        days.len() - 1
    });
    &mut days[at].1
}

/// Append the rows of one request to those of its day; whether nothing about it is of interest to others. Nothing is
/// written of what is no record.
fn rows<'a>(
    record: &'a [u8],
    work: &mut Work<'a>,
    days: &mut Vec<([u8; 10], Vec<u8>)>,
    piece: usize,
) -> Result<bool, Torn> {
    let mut r = Reader(record);
    let fields = r.array()?;
    if fields < FIELDS {
        return Err(Torn);
    }
    r.skip(2)?; // surface, operation
    let (route, key) = (r.text()?, r.text()?);
    r.skip(1)?; // fingerprint
    let (tenant, fault) = (r.text()?, r.text()?);
    r.skip(4)?; // message, fallback, bytes_in, worker
    let trace_id = r.text()?;
    r.skip(1)?; // parent_id
    let (id, wall) = (r.text()?, r.int()?);
    let (started, ended) = (r.int()?, r.int()?);
    let (stream, status, cache) = (r.truth()?, r.int()?, r.text()?);
    r.skip(13)?; // guard, usage, cost_nanos, chunks, seven times, bytes_out, model
    let session = r.text()?;
    r.skip(4)?; // tags, prompt_version, finish, config_version
    let attempts = &mut work.attempts;
    attempts.clear();
    for _ in 0..r.array()? {
        attempts.push(attempt(&mut r)?);
    }
    r.skip(1)?; // cut-overs
    let saved = match r.array_or_nil()? {
        None => None,
        Some(3) => Some((r.text()?, r.text()?, r.amount()?)),
        Some(_) => return Err(Torn),
    };
    r.skip(fields - FIELDS)?;
    if !r.0.is_empty() {
        return Err(Torn);
    }
    let plain = fault.is_empty() && status < 400 && trace_id.is_empty() && attempts.iter().all(|a| a.reason.is_empty());
    let stamp = work.stamps.of(wall);
    if attempts.is_empty() && saved.is_none() {
        return Ok(plain);
    }
    let mut day = [0; 10];
    day.copy_from_slice(&stamp[..10]);
    let lines = lines_of(days, day, piece);
    lines.reserve(ROW * attempts.len().max(1));
    let mut line = Line(lines);
    let cache = if cache.is(OFF) { Text::EMPTY } else { cache };
    let head = |line: &mut Line, attempt: i64, cause: Text| {
        line.put(b"{\"ts\":\"");
        line.put(&stamp);
        line.text(b"\",\"request_id\":\"", id);
        line.number(b",\"attempt\":", attempt);
        line.text(b",\"cause\":\"", cause);
        line.text(b",\"route\":\"", route);
        line.text(b",\"key\":\"", key);
        line.text(b",\"tenant\":\"", tenant);
        line.text(b",\"session\":\"", session);
    };
    let told = |line: &mut Line, status: i64, reason: Text, tokens: [i64; 5], estimated: bool| {
        line.truth(b",\"stream\":", stream);
        line.number(b",\"status\":", status);
        line.text(b",\"reason\":\"", reason);
        line.number(b",\"prompt_tokens\":", tokens[0]);
        line.number(b",\"completion_tokens\":", tokens[1]);
        line.number(b",\"cached_tokens\":", tokens[2]);
        line.number(b",\"cache_write_tokens\":", tokens[3]);
        line.number(b",\"reasoning_tokens\":", tokens[4]);
        line.truth(b",\"estimated\":", estimated);
    };
    let served = match fault.bytes {
        b"refused" => attempts.len().checked_sub(1),
        b"" | b"client_gone" => attempts.iter().rposition(|a| a.reason.is_empty()),
        _ => None,
    };
    for (i, a) in attempts.iter().enumerate() {
        let [provider, account, model, cause] = a.names;
        head(&mut line, i as i64 + 1, cause);
        line.text(b",\"provider\":\"", provider);
        line.text(b",\"account\":\"", account);
        line.text(b",\"model\":\"", model);
        told(&mut line, a.status, a.reason, a.tokens, a.estimated);
        line.put(b",\"cost_nanos\":");
        line.digits(a.cost.0, a.cost.1);
        line.truth(b",\"priced\":", a.priced);
        line.text(b",\"cache\":\"", cache);
        line.put(b",\"saved_nanos\":0");
        line.millis(b",\"started_ms\":", a.started.saturating_sub(started));
        let over = if a.ended == 0 { ended } else { a.ended };
        line.millis(b",\"took_ms\":", over.saturating_sub(a.started));
        if a.first_content == 0 {
            line.put(b",\"ttft_ms\":null");
        } else {
            line.millis(b",\"ttft_ms\":", a.first_content.saturating_sub(a.started));
        }
        line.truth(b",\"served\":", served == Some(i));
        line.put(b"}\n");
    }
    if let (true, Some((provider, model, nanos))) = (attempts.is_empty(), saved) {
        let cause = Text {
            bytes: b"cache",
            plain: true,
        };
        head(&mut line, 0, cause);
        line.text(b",\"provider\":\"", provider);
        line.put(b",\"account\":\"\"");
        line.text(b",\"model\":\"", model);
        told(&mut line, 0, Text::EMPTY, [0; 5], false);
        line.put(b",\"cost_nanos\":0,\"priced\":true");
        line.text(b",\"cache\":\"", cache);
        line.put(b",\"saved_nanos\":");
        line.digits(nanos.0, nanos.1);
        line.put(b",\"started_ms\":0.0");
        line.millis(b",\"took_ms\":", ended.saturating_sub(started));
        line.put(b",\"ttft_ms\":null");
        line.truth(b",\"served\":", fault.is_empty());
        line.put(b"}\n");
    }
    Ok(plain)
}

type Days<'py> = Vec<(Bound<'py, PyString>, Bound<'py, PyBytes>)>;

/// The ledger's rows of the requests whose records lie in `data`, a piece of a worker's ring: each is 4 bytes of length
/// (little-endian) and so many bytes. At most `most` are taken, as many as lie there whole.
///
/// Returns, per UTC day (`YYYY-MM-DD`) in which a request with rows came in, its rows as JSON lines (account/ledger.py
/// has their fields), in the order of the records and in each of the attempts, or one row where the cache answered; the
/// records that are of interest to others than the ledger: with `everything` all, else those of what did not go well at
/// once or is traced; how many records were taken; how many of them were none (they are in none of the former); how many
/// bytes they took; and the bytes of the next, length and all, which is not whole (4: not even its length is), or 0
/// where `most` were taken.
#[pyfunction]
pub fn ledger_batch<'py>(
    py: Python<'py>,
    data: &[u8],
    most: usize,
    everything: bool,
) -> PyResult<(Days<'py>, Bound<'py, PyList>, usize, usize, usize, usize)> {
    let found = batch(data, most, everything);
    let mut days = Vec::with_capacity(found.days.len());
    for (day, lines) in &found.days {
        days.push((PyString::new(py, std::str::from_utf8(day)?), PyBytes::new(py, lines)));
    }
    let others = PyList::new(py, found.others.iter().map(|one| PyBytes::new(py, one)))?;
    Ok((days, others, found.records, found.bad, found.used, found.want))
}
