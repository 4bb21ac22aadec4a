//! What is left of a request that has ended: counts by who served it, and a record in the ring.

use std::sync::atomic::{AtomicU64, Ordering};

use pyo3::buffer::PyBuffer;
use pyo3::exceptions::{PyBufferError, PyTypeError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyString, PyTuple};

use super::pack::{size, Item, Packer};

/// Of the ring: four words (written, read, dropped, spare), then the bytes.
const HEAD: usize = 32;

/// What is recorded of an exchange: its last fields, and their places among these.
const RECORDED: usize = 28;
const STARTED: usize = 2;
const ENDED: usize = 3;
const STREAM: usize = 4;
const STATUS: usize = 5;
const CACHE: usize = 6;
const GUARD: usize = 7;
const USAGE: usize = 8;
const COST: usize = 9;
const CHUNKS: usize = 10;
const ADMITTED: usize = 11;
const PARSED: usize = 12;
const ROUTED: usize = 13;
const UPSTREAM: usize = 14;
const FIRST_HEAD: usize = 15;
const FIRST_CONTENT: usize = 17;

/// Counts of values by bounds, and their sum.
struct Spread {
    counts: Vec<u64>,
    total: f64,
}

impl Spread {
    fn new(bounds: &[f64]) -> Self {
        Self {
            counts: vec![0; bounds.len() + 1],
            total: 0.0,
        }
    }

    fn add(&mut self, bounds: &[f64], value: f64) {
        let at = bounds.partition_point(|bound| *bound < value);
        self.counts[at] += 1;
        self.total += value;
    }
}

type Outcome = (Py<PyString>, Py<PyString>, Py<PyString>);

/// Requests of one (route, surface, provider, model).
struct Series {
    statuses: Vec<(i64, u64)>,
    /// duration, overhead, first token, gap
    spreads: [Spread; 4],
    stages: [i64; 5],
    /// prompt, completion, cached, reasoning, estimated, cost
    sums: [i64; 6],
    usual: Vec<(Outcome, u64)>,
}

/// Counts of one worker's requests by series, and their records in its ring.
///
/// `ring`: what has `memory`, a writable buffer (see telemetry/ring.py), and `put_nowait`, which the twin calls; None:
/// records are not kept. `bounds`: of the histograms of duration, overhead, time to the first token and mean gap, in seconds.
/// Beyond `most` series all models of a (route, surface, provider) share one that is called `other`.
#[pyclass]
pub struct Tally {
    ring: Option<Ring>,
    bounds: [Vec<f64>; 4],
    most: usize,
    places: Py<PyDict>,
    series: Vec<Series>,
    room: Vec<u8>,
    /// msgspec's: a Struct's fields.
    astuple: Py<PyAny>,
}

struct Ring {
    memory: PyBuffer<u8>,
    size: usize,
}

impl Ring {
    fn word(&self, at: usize) -> &AtomicU64 {
        // SAFETY: `Tally::new` has checked that the memory is writable, aligned to 8 bytes and longer than the four words;
        // it stays while `memory` is held. Other processes touch the words only by whole loads and stores.
        unsafe { &*self.memory.buf_ptr().cast::<AtomicU64>().add(at) }
    }

    fn copy(&self, data: &[u8], pos: usize) {
        assert!(pos + data.len() <= self.size);
        // SAFETY: the range lies in the memory (checked here), which is writable and held; what stands between `written`
        // and `read` belongs to this one writer, and `data` is our own.
        unsafe {
            let to = self.memory.buf_ptr().cast::<u8>().add(HEAD + pos);
            std::ptr::copy_nonoverlapping(data.as_ptr(), to, data.len());
        }
    }

    /// False, and one more in `dropped`: there is no room.
    fn put(&self, piece: &[u8]) -> bool {
        let at = self.word(0).load(Ordering::Relaxed);
        let read = self.word(1).load(Ordering::Acquire);
        let n = piece.len();
        if at + n as u64 - read > self.size as u64 {
            self.word(2).fetch_add(1, Ordering::Relaxed);
            return false;
        }
        let pos = (at % self.size as u64) as usize;
        let cut = n.min(self.size - pos);
        self.copy(&piece[..cut], pos);
        self.copy(&piece[cut..], 0);
        self.word(0).store(at + n as u64, Ordering::Release);
        true
    }
}

#[pymethods]
impl Tally {
    #[new]
    fn new(
        py: Python<'_>,
        ring: &Bound<'_, PyAny>,
        bounds: (Vec<f64>, Vec<f64>, Vec<f64>, Vec<f64>),
        most: usize,
    ) -> PyResult<Self> {
        let ring = if ring.is_none() {
            None
        } else {
            let memory = PyBuffer::<u8>::get(&ring.getattr("memory")?)?;
            let aligned = memory.buf_ptr().cast::<AtomicU64>().is_aligned();
            if memory.readonly() || !memory.is_c_contiguous() || memory.len_bytes() <= HEAD || !aligned {
                return Err(PyBufferError::new_err(
                    "a ring's memory must be writable, and longer than its head",
                ));
            }
            let size = memory.len_bytes() - HEAD;
            Some(Ring { memory, size })
        };
        Ok(Self {
            ring,
            bounds: [bounds.0, bounds.1, bounds.2, bounds.3],
            most,
            places: PyDict::new(py).unbind(),
            series: Vec::new(),
            room: Vec::with_capacity(1024),
            astuple: py.import("msgspec.structs")?.getattr("astuple")?.unbind(),
        })
    }

    /// Count the exchange `x`, and put its record into the ring: `context` and the last fields of `x`. Where the ring is
    /// full it counts the record as dropped. `usual`: the account that served it at once, empty if none had to: then
    /// outcomes of cache and guard are counted here; None: they are not.
    fn settle<'py>(
        &mut self,
        py: Python<'py>,
        labels: &Bound<'py, PyTuple>,
        usual: Option<&Bound<'py, PyString>>,
        context: &Bound<'py, PyTuple>,
        x: &Bound<'py, PyAny>,
    ) -> PyResult<()> {
        let room = &mut self.room;
        room.clear();
        room.extend([0; 4]);
        let mut packer = Packer {
            out: room,
            astuple: self.astuple.bind(py),
            known: None,
        };
        let facts = packer.fields(x)?;
        let from = facts
            .len()
            .checked_sub(RECORDED)
            .ok_or_else(|| PyTypeError::new_err("no exchange"))?;
        packer.array(context.len() + RECORDED)?;
        for one in context.iter_borrowed() {
            packer.write(one)?;
        }
        let mut numbers = [0; RECORDED];
        let mut tokens = None;
        for (at, number) in numbers.iter_mut().enumerate() {
            let one = facts.get_borrowed_item(from + at)?;
            if at == USAGE && !one.is_none() {
                let start = packer.out.len();
                tokens = Some(usage(&mut packer, one)?);
                packer.known = Some((one.as_ptr() as usize, start..packer.out.len()));
            } else {
                *number = packer.write(one)?;
            }
        }
        let n = size(room.len() - 4)?;
        room[..4].copy_from_slice(&n.to_le_bytes());
        let at = self.place(labels)?;
        let series = &mut self.series[at];
        series.count(&self.bounds, &numbers, tokens);
        if let Some(account) = usual {
            let outcome = |at| facts.get_borrowed_item(from + at);
            series.outcome(account, &outcome(CACHE)?, &outcome(GUARD)?)?;
        }
        if let Some(ring) = &self.ring {
            ring.put(&self.room);
        }
        Ok(())
    }

    /// Of each series its labels; (status, requests) pairs; the histograms in the order of `bounds` as (counts, sum); ns of
    /// admit, parse, route, upstream, answer; sums of prompt, completion, cached and reasoning tokens, of requests with
    /// estimated ones, and of the cost in nano-dollars; and ((account, cache, guard), requests) pairs.
    fn rows<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let out = PyList::empty(py);
        for (labels, at) in self.places.bind(py) {
            let s = &self.series[at.extract::<usize>()?];
            let spreads = PyTuple::new(py, s.spreads.iter().map(|one| (&one.counts, one.total)))?;
            let usual: Vec<_> = s
                .usual
                .iter()
                .map(|((a, b, c), n)| ((a.bind(py), b.bind(py), c.bind(py)), *n))
                .collect();
            let sums = PyTuple::new(py, s.sums)?;
            let stages = PyTuple::new(py, s.stages)?;
            out.append((labels, &s.statuses, spreads, stages, sums, usual))?;
        }
        Ok(out)
    }
}

impl Tally {
    /// The series of these labels; beyond `most` of them all models of a provider share one.
    fn place(&mut self, labels: &Bound<'_, PyTuple>) -> PyResult<usize> {
        let py = labels.py();
        let places = self.places.bind(py);
        let mut found = places.get_item(labels)?;
        let mut shared = None;
        if found.is_none() && self.series.len() >= self.most {
            let rest = labels.get_slice(0, 3);
            let other = (rest.get_item(0)?, rest.get_item(1)?, rest.get_item(2)?, "other").into_pyobject(py)?;
            found = places.get_item(&other)?;
            shared = Some(other);
        }
        if let Some(at) = found {
            return at.extract();
        }
        let at = self.series.len();
        places.set_item(shared.as_ref().unwrap_or(labels), at)?;
        self.series.push(Series {
            statuses: Vec::new(),
            spreads: [0, 1, 2, 3].map(|i| Spread::new(&self.bounds[i])),
            stages: [0; 5],
            sums: [0; 6],
            usual: Vec::new(),
        });
        Ok(at)
    }
}

/// Write tokens, and give them.
fn usage<'py>(packer: &mut Packer<'_, 'py>, usage: Item<'_, 'py>) -> PyResult<[i64; 6]> {
    let fields = packer.fields(&usage)?;
    let mut tokens = [0; 6];
    packer.array(tokens.len())?;
    for (at, one) in tokens.iter_mut().enumerate() {
        *one = packer.write(fields.get_borrowed_item(at)?)?;
    }
    Ok(tokens)
}

impl Series {
    fn count(&mut self, bounds: &[Vec<f64>; 4], numbers: &[i64; RECORDED], tokens: Option<[i64; 6]>) {
        let [started, ended, head, first] = [STARTED, ENDED, FIRST_HEAD, FIRST_CONTENT].map(|at| numbers[at]);
        let [admitted, parsed, routed, upstream] = [ADMITTED, PARSED, ROUTED, UPSTREAM].map(|at| numbers[at]);
        let [status, chunks] = [STATUS, CHUNKS].map(|at| numbers[at]);
        let seconds = |ns: i64| ns as f64 / 1e9;
        match self.statuses.iter_mut().find(|(known, _)| *known == status) {
            Some((_, n)) => *n += 1,
            None => self.statuses.push((status, 1)),
        }
        let [duration, overhead, ttft, gap] = &mut self.spreads;
        duration.add(&bounds[0], seconds(ended - started));
        if head != 0 {
            overhead.add(&bounds[1], seconds((head - started - upstream).max(0)));
        }
        if numbers[STREAM] != 0 && first != 0 {
            ttft.add(&bounds[2], seconds(first - started));
            if chunks > 1 {
                gap.add(&bounds[3], seconds(ended - first) / (chunks - 1) as f64);
            }
        }
        if let Some([prompt, completion, cached, _, reasoning, estimated]) = tokens {
            let more = [prompt, completion, cached, reasoning, estimated, numbers[COST]];
            for (sum, more) in self.sums.iter_mut().zip(more) {
                *sum = sum.saturating_add(more);
            }
        }
        if routed != 0 {
            let answer = (ended - routed - upstream).max(0);
            let took = [admitted - started, parsed - admitted, routed - parsed, upstream, answer];
            for (sum, took) in self.stages.iter_mut().zip(took) {
                *sum += took;
            }
        }
    }

    fn outcome(&mut self, account: &Bound<'_, PyString>, cache: &Item<'_, '_>, guard: &Item<'_, '_>) -> PyResult<()> {
        let (cache, guard) = (cache.downcast::<PyString>()?, guard.downcast::<PyString>()?);
        let py = account.py();
        for ((a, b, c), n) in &mut self.usual {
            if same(account, a.bind(py))? && same(cache, b.bind(py))? && same(guard, c.bind(py))? {
                *n += 1;
                return Ok(());
            }
        }
        let outcome = (account.clone().unbind(), cache.clone().unbind(), guard.clone().unbind());
        self.usual.push((outcome, 1));
        Ok(())
    }
}

/// Mostly it is one and the same object.
fn same(a: &Bound<'_, PyString>, b: &Bound<'_, PyString>) -> PyResult<bool> {
    Ok(a.is(b) || a.to_str()? == b.to_str()?)
}
