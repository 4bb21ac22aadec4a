//! Timers: a binary heap of (when, what). 1,000 streams at 20 ms are 50,000 pushes and pops a second, about 50 ns each.
//! Nothing is ever removed early: whoever sets a timer puts a generation into `what` and ignores what has become old.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

struct Entry<T> {
    at_ns: u64,
    what: T,
}

impl<T> PartialEq for Entry<T> {
    fn eq(&self, other: &Self) -> bool {
        self.at_ns == other.at_ns
    }
}
impl<T> Eq for Entry<T> {}
impl<T> PartialOrd for Entry<T> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl<T> Ord for Entry<T> {
    /// Reversed: the heap's greatest is the earliest.
    fn cmp(&self, other: &Self) -> Ordering {
        other.at_ns.cmp(&self.at_ns)
    }
}

pub struct Timers<T>(BinaryHeap<Entry<T>>);

impl<T> Default for Timers<T> {
    fn default() -> Self {
        Timers(BinaryHeap::new())
    }
}

impl<T> Timers<T> {
    pub fn set(&mut self, at_ns: u64, what: T) {
        self.0.push(Entry { at_ns, what });
    }

    /// The next timer that is due at `now_ns`.
    pub fn due(&mut self, now_ns: u64) -> Option<T> {
        if self.0.peek()?.at_ns > now_ns {
            return None;
        }
        self.0.pop().map(|entry| entry.what)
    }

    /// How long until the next timer, 0 when one is due; `None` when none is set.
    pub fn wait_ns(&self, now_ns: u64) -> Option<u64> {
        self.0.peek().map(|entry| entry.at_ns.saturating_sub(now_ns))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timers_come_out_in_order_and_not_early() {
        let mut timers = Timers::default();
        for at in [30, 10, 20] {
            timers.set(at, at);
        }
        assert_eq!(timers.due(5), None);
        assert_eq!(timers.wait_ns(5), Some(5));
        assert_eq!((timers.due(25), timers.due(25), timers.due(25)), (Some(10), Some(20), None));
        assert_eq!(timers.wait_ns(99), Some(0));
    }
}
