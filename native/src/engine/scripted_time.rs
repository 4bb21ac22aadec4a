//! Limits of time without waiting: the clock is moved by hand, to the moments that the wheel asks for and to others.

use std::sync::Arc;

use super::request::Req;
use super::scripted::{answer, post, Bench};
use super::sys::Readiness;

/// As in `Bench::over`.
const HEAD_MS: u64 = 1000;
const BODY_MS: u64 = 2000;
const IDLE_MS: u64 = 10_000;
/// Two slots of the wheel: nothing is later than that.
const LATE_MS: u64 = 200;

fn reply(req: &Arc<Req>, body: &[u8]) {
    answer(req, &[body], true);
}

fn feed(bench: &mut Bench, bytes: &[u8]) {
    bench.script.input.borrow_mut().push_back(bytes.to_vec());
    let ready = Readiness {
        readable: true,
        ..Readiness::default()
    };
    bench.exec.event(bench.key, ready);
    bench.settle(&reply);
}

/// Go on in steps of 50 ms until it is closed; when that was. Nothing is asked of the connection but by the wheel.
fn closed_at(bench: &mut Bench, from: u64, until: u64) -> Option<u64> {
    for ms in (from..until).step_by(50) {
        bench.at(ms);
        bench.settle(&reply);
        if bench.closed.get() {
            return Some(ms);
        }
    }
    None
}

fn assert_in_time(at: Option<u64>, due: u64) {
    assert!(
        at.is_some_and(|at| (due..=due + LATE_MS).contains(&at)),
        "{at:?} for {due}"
    );
}

#[test]
fn a_connection_on_which_nothing_comes_is_ended() {
    for blocks in [false, true] {
        let mut bench = Bench::new(vec![], usize::MAX, blocks);
        bench.at(0);
        bench.settle(&reply);
        assert_in_time(closed_at(&mut bench, 0, 5000), HEAD_MS);
        assert!(bench.script.output.take().is_empty()); // nobody has asked
        assert_eq!(bench.exec.next_ms(), None);
    }
}

#[test]
fn an_idle_connection_is_ended_a_while_after_its_last_answer() {
    for blocks in [false, true] {
        let mut bench = Bench::new(vec![post(b"a")], usize::MAX, blocks);
        bench.at(0);
        bench.settle(&reply);
        // Every answer begins the time anew, and none of them puts anything into the wheel but the first.
        for n in 1..6 {
            assert_eq!(closed_at(&mut bench, (n - 1) * 4000, n * 4000), None);
            feed(&mut bench, &post(b"b"));
        }
        assert_eq!(bench.bodies.len(), 6);
        assert_in_time(closed_at(&mut bench, 20_000, 40_000), 20_000 + IDLE_MS);
        assert_eq!(bench.exec.next_ms(), None);
    }
}

#[test]
fn a_head_that_begins_on_an_idle_connection_has_the_shorter_time() {
    let mut bench = Bench::new(vec![post(b"a")], usize::MAX, false);
    bench.at(0);
    bench.settle(&reply);
    bench.script.output.take();
    assert_eq!(closed_at(&mut bench, 0, 5000), None);
    bench.at(5000);
    feed(&mut bench, b"POST /x HT");
    assert_in_time(closed_at(&mut bench, 5000, 30_000), 5000 + HEAD_MS);
    assert!(bench.script.output.take().starts_with(b"HTTP/1.1 408"));
}

#[test]
fn a_body_may_be_slow_but_not_silent() {
    let mut bench = Bench::new(vec![], usize::MAX, false);
    bench.at(0);
    let raw = post(b"0123456789");
    let (head, rest) = raw.split_at(raw.len() - 10);
    feed(&mut bench, head);
    for (n, byte) in rest[..5].iter().enumerate() {
        let now = 1500 * n as u64;
        bench.at(now);
        feed(&mut bench, &[*byte]);
        assert_eq!(closed_at(&mut bench, now, now + 1500), None);
    }
    assert_in_time(closed_at(&mut bench, 6000, 20_000), 6000 + BODY_MS);
    assert!(bench.disconnects > 0); // and the app hears of it
    assert!(bench.bodies.is_empty());
}

#[test]
fn an_app_may_take_as_long_as_it_takes() {
    let mut bench = Bench::new(vec![post(b"a")], usize::MAX, false);
    bench.at(0);
    bench.settle(&|_, _| {});
    for hour in 0..100 {
        bench.at(hour * 3_600_000);
        bench.settle(&|_, _| {});
        assert!(!bench.closed.get());
    }
    assert_eq!(bench.exec.next_ms(), None); // nothing is awaited of the clock
}
