//! A histogram of nanoseconds: 64 steps per power of two, so a quantile is off by less than 1.6 %.

const STEPS_LOG2: u32 = 6;
const STEPS: u64 = 1 << STEPS_LOG2;

pub struct Hist {
    counts: Vec<u64>,
    pub total: u64,
}

impl Default for Hist {
    fn default() -> Self {
        Hist { counts: vec![0; 64 * STEPS as usize], total: 0 }
    }
}

impl Hist {
    pub fn add(&mut self, ns: u64) {
        self.counts[slot(ns)] += 1;
        self.total += 1;
    }

    /// The value that the share `q` (0 to 1) does not exceed, in microseconds; `None` when nothing was added.
    pub fn us(&self, q: f64) -> Option<f64> {
        let rank = ((self.total as f64 * q).ceil() as u64).max(1);
        let mut seen = 0;
        for (slot, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return Some(middle(slot) / 1000.0);
            }
        }
        None
    }
}

fn slot(ns: u64) -> usize {
    if ns < STEPS {
        return ns as usize;
    }
    let shift = 63 - ns.leading_zeros() - STEPS_LOG2;
    ((shift as u64 + 1) * STEPS + ((ns >> shift) - STEPS)) as usize
}

fn middle(slot: usize) -> f64 {
    let (power, step) = (slot as u64 / STEPS, slot as u64 % STEPS);
    if power == 0 {
        return step as f64;
    }
    let width = 1u64 << (power - 1);
    ((STEPS + step) * width) as f64 + (width - 1) as f64 / 2.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_within_two_percent() {
        let mut hist = Hist::default();
        assert_eq!(hist.us(0.5), None);
        (1..=100_000u64).for_each(|i| hist.add(i * 1000));
        for (q, us) in [(0.5, 50_000.0), (0.99, 99_000.0), (0.999, 99_900.0)] {
            assert!((hist.us(q).unwrap() / us - 1.0).abs() < 0.02, "{q}: {:?}", hist.us(q));
        }
        hist.add(u64::MAX);
    }
}
