//! The ledger's rows of a request, from its record: as long as all is well, nobody else has to read it.

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyString};

use super::unpack::{Reader, Torn, Value};

/// Fields of a record (telemetry/record.py), their number, and the places of those that are looked at.
const FIELDS: usize = 41;
const ROUTE: usize = 2;
const KEY: usize = 3;
const TENANT: usize = 5;
const FAULT: usize = 6;
const TRACE_ID: usize = 11;
const ID: usize = 13;
const WALL: usize = 14;
const STARTED: usize = 15;
const ENDED: usize = 16;
const STREAM: usize = 17;
const STATUS: usize = 18;
const CACHE: usize = 19;
const USAGE: usize = 21;
const SESSION: usize = 33;
const ATTEMPTS: usize = 38;
/// The cache outcome of a route that has none.
const OFF: &str = "bypass;off";

const TOKENS: [&str; 5] = [
    ",\"prompt_tokens\":",
    ",\"completion_tokens\":",
    ",\"cached_tokens\":",
    ",\"cache_write_tokens\":",
    ",\"reasoning_tokens\":",
];

/// Of one attempt, 13 fields.
struct Attempt<'a> {
    names: [&'a str; 4], // provider, account, model, cause
    started: i64,
    ended: i64,
    first_content: i64,
    status: i64,
    reason: &'a str,
    tokens: [i64; 5], // prompt, completion, cached, written to the cache, reasoning
    estimated: bool,
    cost: Value<'a>,
    priced: bool,
}

impl Value<'_> {
    fn int(self) -> Result<i64, Torn> {
        match self {
            Value::Int(n) => Ok(n),
            _ => Err(Torn),
        }
    }

    fn truth(self) -> Result<bool, Torn> {
        match self {
            Value::Bool(b) => Ok(b),
            _ => Err(Torn),
        }
    }
}

fn text(value: Value<'_>) -> Result<&str, Torn> {
    match value {
        Value::Text(text) => Ok(text),
        _ => Err(Torn),
    }
}

fn attempt<'a>(r: &mut Reader<'a>) -> Result<Attempt<'a>, Torn> {
    if r.array()? != 13 {
        return Err(Torn);
    }
    let mut names = [""; 4];
    for name in &mut names {
        *name = text(r.value()?)?;
    }
    let (started, ended) = (r.value()?.int()?, r.value()?.int()?);
    let (_, first_content) = (r.value()?.int()?, r.value()?.int()?);
    let (status, reason) = (r.value()?.int()?, text(r.value()?)?);
    let mut tokens = [0; 5];
    let mut estimated = false;
    if let Some(n) = r.array_or_nil()? {
        if n != 6 {
            return Err(Torn);
        }
        for one in &mut tokens {
            *one = r.value()?.int()?;
        }
        estimated = r.value()?.truth()?;
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
        cost: r.value()?,
        priced: r.value()?.truth()?,
    })
}

/// One row as JSON, field by field.
struct Line(Vec<u8>);

impl Line {
    /// A name as it stands before its value: `,"name":`.
    fn name(&mut self, name: &str) {
        self.0.extend_from_slice(name.as_bytes());
    }

    fn text(&mut self, name: &str, value: &str) {
        self.name(name);
        self.0.push(b'"');
        let mut from = 0;
        let bytes = value.as_bytes();
        for (at, c) in bytes.iter().enumerate() {
            if *c >= 0x20 && *c != b'"' && *c != b'\\' {
                continue;
            }
            self.0.extend_from_slice(&bytes[from..at]);
            from = at + 1;
            let short = match c {
                b'"' => b'"',
                b'\\' => b'\\',
                8 => b'b',
                12 => b'f',
                b'\n' => b'n',
                b'\r' => b'r',
                b'\t' => b't',
                _ => {
                    self.0.extend_from_slice(format!("\\u{c:04x}").as_bytes());
                    continue;
                }
            };
            self.0.extend([b'\\', short]);
        }
        self.0.extend_from_slice(&bytes[from..]);
        self.0.push(b'"');
    }

    fn number(&mut self, name: &str, value: i64) {
        self.name(name);
        self.digits(value.unsigned_abs(), value < 0);
    }

    fn digits(&mut self, mut n: u64, negative: bool) {
        let mut room = [0; 20];
        let mut at = room.len();
        loop {
            at -= 1;
            room[at] = b'0' + (n % 10) as u8;
            n /= 10;
            if n == 0 {
                break;
            }
        }
        if negative {
            self.0.push(b'-');
        }
        self.0.extend_from_slice(&room[at..]);
    }

    fn truth(&mut self, name: &str, value: bool) {
        self.name(name);
        self.0.extend_from_slice(if value { b"true" } else { b"false" });
    }

    /// Nanoseconds as milliseconds, to the microsecond, as a float is written: at least one decimal.
    fn millis(&mut self, name: &str, ns: i64) {
        self.name(name);
        let us = ns.saturating_add(500).div_euclid(1000);
        let (whole, part) = (us.unsigned_abs() / 1000, us.unsigned_abs() % 1000);
        self.digits(whole, us < 0);
        self.0.push(b'.');
        self.0.push(b'0' + (part / 100) as u8);
        if part % 100 != 0 {
            self.0.push(b'0' + (part / 10 % 10) as u8);
            if part % 10 != 0 {
                self.0.push(b'0' + (part % 10) as u8);
            }
        }
    }
}

/// RFC 3339 in UTC with milliseconds. Days to a date as in Howard Hinnant's `civil_from_days`.
fn stamp(wall_ns: i64) -> [u8; 24] {
    let (seconds, ns) = (wall_ns.div_euclid(1_000_000_000), wall_ns.rem_euclid(1_000_000_000));
    let (days, of_day) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let doe = z.rem_euclid(146_097);
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let day = doy - (153 * mp + 2) / 5 + 1;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    let year = yoe + era * 400 + i64::from(month <= 2);
    let mut out = *b"0000-00-00T00:00:00.000Z";
    let mut put = |end: usize, digits: usize, mut n: i64| {
        for at in (end - digits..end).rev() {
            out[at] = b'0' + (n % 10) as u8;
            n /= 10;
        }
    };
    put(4, 4, year);
    put(7, 2, month);
    put(10, 2, day);
    put(13, 2, of_day / 3600);
    put(16, 2, of_day / 60 % 60);
    put(19, 2, of_day % 60);
    put(23, 3, ns / 1_000_000);
    out
}

pub struct Rows {
    pub lines: Vec<u8>,
    pub stamp: [u8; 24],
    pub count: usize,
    pub plain: bool,
}

/// See `ledger_rows`.
pub fn rows(record: &[u8]) -> Result<Rows, Torn> {
    let mut r = Reader(record);
    let fields = r.array()?;
    if fields < FIELDS {
        return Err(Torn);
    }
    let mut f = [Value::Nil; ATTEMPTS];
    for (at, field) in f.iter_mut().enumerate() {
        if at == USAGE {
            r.skip(1)?;
        } else {
            *field = r.value()?;
        }
    }
    let count = r.array()?;
    let mut attempts = Vec::with_capacity(count.min(64));
    for _ in 0..count {
        attempts.push(attempt(&mut r)?);
    }
    r.skip(1)?; // cut-overs
    let saved = match r.array_or_nil()? {
        None => None,
        Some(3) => Some((text(r.value()?)?, text(r.value()?)?, r.value()?)),
        Some(_) => return Err(Torn),
    };
    r.skip(fields - FIELDS)?;
    if !r.0.is_empty() {
        return Err(Torn);
    }
    let fault = text(f[FAULT])?;
    let cache = text(f[CACHE])?;
    let (started, ended) = (f[STARTED].int()?, f[ENDED].int()?);
    let served = match fault {
        "refused" => count.checked_sub(1),
        "" | "client_gone" => attempts.iter().rposition(|a| a.reason.is_empty()),
        _ => None,
    };
    let mut out = Rows {
        lines: Vec::with_capacity(768 * attempts.len().max(1)),
        stamp: stamp(f[WALL].int()?),
        count,
        plain: fault.is_empty()
            && f[STATUS].int()? < 400
            && text(f[TRACE_ID])?.is_empty()
            && attempts.iter().all(|a| a.reason.is_empty()),
    };
    let mut line = Line(Vec::new());
    std::mem::swap(&mut line.0, &mut out.lines);
    let names = [ID, ROUTE, KEY, TENANT, SESSION];
    let [id, route, key, tenant, session] = {
        let mut found = [""; 5];
        for (name, at) in found.iter_mut().zip(names) {
            *name = text(f[at])?;
        }
        found
    };
    let stream = f[STREAM].truth()?;
    let cache = if cache == OFF { "" } else { cache };
    let head = |line: &mut Line, attempt: i64, cause: &str| {
        line.0.extend_from_slice(b"{\"ts\":\"");
        line.0.extend_from_slice(&out.stamp);
        line.0.push(b'"');
        line.text(",\"request_id\":", id);
        line.number(",\"attempt\":", attempt);
        line.text(",\"cause\":", cause);
        line.text(",\"route\":", route);
        line.text(",\"key\":", key);
        line.text(",\"tenant\":", tenant);
        line.text(",\"session\":", session);
    };
    let told = |line: &mut Line, status: i64, reason: &str, tokens: [i64; 5], estimated: bool| {
        line.truth(",\"stream\":", stream);
        line.number(",\"status\":", status);
        line.text(",\"reason\":", reason);
        for (name, n) in TOKENS.iter().zip(tokens) {
            line.number(name, n);
        }
        line.truth(",\"estimated\":", estimated);
    };
    for (i, a) in attempts.iter().enumerate() {
        let [provider, account, model, cause] = a.names;
        head(&mut line, i as i64 + 1, cause);
        line.text(",\"provider\":", provider);
        line.text(",\"account\":", account);
        line.text(",\"model\":", model);
        told(&mut line, a.status, a.reason, a.tokens, a.estimated);
        cost(&mut line, ",\"cost_nanos\":", a.cost)?;
        line.truth(",\"priced\":", a.priced);
        line.text(",\"cache\":", cache);
        line.number(",\"saved_nanos\":", 0);
        line.millis(",\"started_ms\":", a.started - started);
        line.millis(",\"took_ms\":", if a.ended == 0 { ended } else { a.ended } - a.started);
        if a.first_content == 0 {
            line.name(",\"ttft_ms\":");
            line.0.extend_from_slice(b"null");
        } else {
            line.millis(",\"ttft_ms\":", a.first_content - a.started);
        }
        line.truth(",\"served\":", served == Some(i));
        line.0.extend_from_slice(b"}\n");
    }
    if let (true, Some((provider, model, nanos))) = (attempts.is_empty(), saved) {
        out.count = 1;
        head(&mut line, 0, "cache");
        line.text(",\"provider\":", provider);
        line.text(",\"account\":", "");
        line.text(",\"model\":", model);
        told(&mut line, 0, "", [0; 5], false);
        line.number(",\"cost_nanos\":", 0);
        line.truth(",\"priced\":", true);
        line.text(",\"cache\":", cache);
        cost(&mut line, ",\"saved_nanos\":", nanos)?;
        line.0.extend_from_slice(b",\"started_ms\":0.0");
        line.millis(",\"took_ms\":", ended - started);
        line.0.extend_from_slice(b",\"ttft_ms\":null");
        line.truth(",\"served\":", fault.is_empty());
        line.0.extend_from_slice(b"}\n");
    }
    out.lines = line.0;
    Ok(out)
}

fn cost(line: &mut Line, name: &str, value: Value<'_>) -> Result<(), Torn> {
    match value {
        Value::Int(n) => line.number(name, n),
        Value::Large(n) => {
            line.name(name);
            line.digits(n, false);
        }
        _ => return Err(Torn),
    }
    Ok(())
}

/// The ledger's rows of one request, from its record as a worker leaves it in the ring.
///
/// Returns the UTC day of the request (`YYYY-MM-DD`), the rows as JSON lines (account/ledger.py has their fields) in the
/// order of the attempts or, where the cache answered, one; how many they are; and whether nothing about the request is
/// of interest to anybody else: it went well at once and is not traced. Raises ValueError for what is no record.
#[pyfunction]
pub fn ledger_rows<'py>(
    py: Python<'py>,
    record: &[u8],
) -> PyResult<(Bound<'py, PyString>, Bound<'py, PyBytes>, usize, bool)> {
    let rows = rows(record).map_err(|Torn| PyValueError::new_err("not a record"))?;
    let day = PyString::new(py, std::str::from_utf8(&rows.stamp[..10])?);
    Ok((day, PyBytes::new(py, &rows.lines), rows.count, rows.plain))
}
