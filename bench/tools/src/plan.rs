//! What the mock does is asked for by the model name: `m-c50-g20` is 50 chunks 20 ms apart.
//!
//! The parts between dashes, in any order; what is none of these is ignored, as is everything up to the last slash:
//! - `c<N>` content chunks of a stream (default 20), `g<MS>` the gap between them (default 0)
//! - `f503`, `f429`: that status. `rst`: the connection is reset. `silent`: nothing more comes, the connection stays.
//! - `a<K>`: `rst` and `silent` strike a stream after K content chunks instead of before the head
//! - `p<PERCENT>`: only that share of the requests fails, spread evenly (no chance: rounds stay comparable)

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fault {
    Status(u16),
    Reset,
    Silent,
}

impl Fault {
    pub fn name(self) -> &'static str {
        match self {
            Fault::Status(429) => "f429",
            Fault::Status(_) => "f503",
            Fault::Reset => "rst",
            Fault::Silent => "silent",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Plan {
    pub chunks: u32,
    pub gap_ns: u64,
    pub fault: Option<Fault>,
    pub after_chunks: u32,
    pub percent: u32,
}

/// Reads the plan out of a model name.
pub fn plan(model: &str) -> Plan {
    let mut plan = Plan { chunks: 20, gap_ns: 0, fault: None, after_chunks: 0, percent: 100 };
    for part in model.rsplit('/').next().unwrap_or("").split('-') {
        let number = part.get(1..).and_then(|digits| digits.parse::<u32>().ok());
        match (part, part.as_bytes().first(), number) {
            ("f503", ..) => plan.fault = Some(Fault::Status(503)),
            ("f429", ..) => plan.fault = Some(Fault::Status(429)),
            ("rst", ..) => plan.fault = Some(Fault::Reset),
            ("silent", ..) => plan.fault = Some(Fault::Silent),
            (_, Some(b'c'), Some(n)) => plan.chunks = n.min(99_999),
            (_, Some(b'g'), Some(n)) => plan.gap_ns = n as u64 * 1_000_000,
            (_, Some(b'a'), Some(n)) => plan.after_chunks = n,
            (_, Some(b'p'), Some(n)) => plan.percent = n.min(100),
            _ => {}
        }
    }
    plan
}

/// True for `percent` of the counted requests, as evenly spread as whole numbers allow.
pub fn strikes(nth: u64, percent: u32) -> bool {
    (nth + 1) * percent as u64 / 100 != nth * percent as u64 / 100
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_model_name_is_the_plan() {
        let p = plan("a/m-c50-g20-rst-a7-p10");
        assert_eq!(
            (p.chunks, p.gap_ns, p.fault, p.after_chunks, p.percent),
            (50, 20_000_000, Some(Fault::Reset), 7, 10)
        );
        assert_eq!(plan("gpt-4o-mini").fault, None);
        assert_eq!(plan("m-f503").fault, Some(Fault::Status(503)));
    }

    #[test]
    fn the_share_is_exact() {
        for percent in [0, 1, 10, 33, 100] {
            assert_eq!((0..1000).filter(|&n| strikes(n, percent)).count() as u32, percent * 10);
        }
    }
}
