//! What was counted, as one line of JSON.

use std::collections::BTreeMap;

use crate::drive::{Mode, Settings};
use crate::hist::Hist;

#[derive(Default)]
pub struct Totals {
    pub requests: u64,
    pub errors: BTreeMap<String, u64>,
    pub latency: Hist,
    pub ttft: Hist,
    pub delay: Hist,
    pub chunks: u64,
    pub window_ns: u64,
}

impl Totals {
    pub fn error(&mut self, kind: &str) {
        *self.errors.entry(kind.to_string()).or_default() += 1;
    }
}

/// Content chunks that an ideal gateway would deliver in the window; `None` where the mode does not fix it.
pub fn offered(mode: Mode, conns: usize, gap_ns: u64, window_ns: u64) -> Option<u64> {
    (mode == Mode::Streams && gap_ns > 0).then(|| conns as u64 * window_ns / gap_ns)
}

/// Facts of the run that `json` needs after the settings have been used up.
pub struct Facts {
    pub mode: Mode,
    pub conns: usize,
    pub gap_ns: u64,
}

impl From<&Settings> for Facts {
    fn from(set: &Settings) -> Facts {
        Facts { mode: set.mode, conns: set.conns, gap_ns: set.gap_ns }
    }
}

/// Times in microseconds; `null` for what was not measured.
pub fn json(totals: &Totals, facts: &Facts, elapsed_s: f64) -> String {
    let window_s = totals.window_ns as f64 / 1e9;
    let errors: Vec<String> = totals.errors.iter().map(|(kind, n)| format!("\"{kind}\":{n}")).collect();
    let offered = offered(facts.mode, facts.conns, facts.gap_ns, totals.window_ns);
    let share = offered.map(|n| totals.chunks as f64 / n as f64);
    let fields = [
        ("requests", totals.requests.to_string()),
        ("errors", format!("{{{}}}", errors.join(","))),
        ("req_per_s", format!("{:.1}", totals.requests as f64 / window_s)),
        ("latency_p50_us", number(totals.latency.us(0.5))),
        ("latency_p99_us", number(totals.latency.us(0.99))),
        ("latency_p999_us", number(totals.latency.us(0.999))),
        ("ttft_p50_us", number(totals.ttft.us(0.5))),
        ("ttft_p99_us", number(totals.ttft.us(0.99))),
        ("chunk_delay_p50_us", number(totals.delay.us(0.5))),
        ("chunk_delay_p99_us", number(totals.delay.us(0.99))),
        ("chunk_delay_p999_us", number(totals.delay.us(0.999))),
        ("chunks_delivered", totals.chunks.to_string()),
        ("chunks_offered", offered.map_or("null".into(), |n| n.to_string())),
        ("delivered_share", share.map_or("null".into(), |s| format!("{s:.4}"))),
        ("window_s", format!("{window_s:.3}")),
        ("elapsed_s", format!("{elapsed_s:.3}")),
    ];
    let fields: Vec<String> = fields.iter().map(|(name, value)| format!("\"{name}\":{value}")).collect();
    format!("{{{}}}", fields.join(","))
}

fn number(us: Option<f64>) -> String {
    us.map_or("null".into(), |us| format!("{us:.1}"))
}
