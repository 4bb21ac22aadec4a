//! A relay without sockets: a stream from an upstream to a client, in any pieces, with a client that is slow or leaves.

use std::sync::{Arc, Mutex};

use super::call::{Call, Relay};
use super::request::Req;
use super::scripted_upstream::{everywhere, outcome, script, Rig, ENDED};
use super::sys::Readiness;
use crate::kernels::sse::Scanner;

fn stream(events: usize) -> (Vec<u8>, Vec<u8>) {
    let event =
        |n: usize| format!("data: {{\"choices\":[{{\"index\":0,\"delta\":{{\"content\":\"word {n}\"}}}}]}}\n\n");
    let body: String = (0..events).map(event).collect();
    let mut raw = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n".to_vec();
    for n in 0..events {
        let event = event(n);
        raw.extend(format!("{:x}\r\n{event}\r\n", event.len()).as_bytes());
    }
    raw.extend(b"0\r\n\r\n");
    (raw, body.into_bytes())
}

fn relay(call: &Arc<Call>, to: &Arc<Req>) {
    let mut state = call.lock();
    to.lock().relaying = true;
    state.relay = Some(Relay {
        scanner: Arc::new(Mutex::new(Scanner::new(false))),
        to: Arc::clone(to),
        moved: 0,
        over: false,
    });
    state.relay_waiting(&call.waker);
    drop(state);
    call.waker.wake_by_ref();
}

/// The body out of chunked framing.
fn dechunked(raw: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = &raw[raw.windows(4).position(|w| w == b"\r\n\r\n").unwrap() + 4..];
    while let Some(end) = rest.windows(2).position(|w| w == b"\r\n") {
        let n = usize::from_str_radix(std::str::from_utf8(&rest[..end]).unwrap(), 16).unwrap();
        out.extend_from_slice(&rest[end + 2..end + 2 + n]);
        rest = &rest[end + 4 + n..];
    }
    out
}

#[test]
fn a_relay_moves_all_of_it_however_it_comes_and_goes() {
    let (raw, body) = stream(20);
    everywhere(&raw, |input, room, blocks| {
        let mut rig = Rig::new();
        let client = script(Vec::new(), room, blocks);
        let to = rig.client(&client);
        let script = script(input, usize::MAX, blocks);
        let call = rig.ask(&script, false);
        rig.settle();
        relay(&call, &to);
        rig.settle();
        let state = call.lock();
        assert!(state.done && state.fault.is_none());
        assert_eq!(state.relay.as_ref().unwrap().moved, body.len() as u64);
        drop(state);
        assert_eq!(dechunked(&client.output.borrow()), body);
        assert_eq!(rig.pool.size(), 1);
    });
}

#[test]
fn a_client_that_does_not_read_holds_its_upstream_back() {
    let (raw, body) = stream(40_000);
    for size in [500, 16_384, raw.len()] {
        for closes in [false, true] {
            let mut rig = Rig::new();
            let client = script(Vec::new(), 1, false);
            let to = rig.client(&client);
            let script = script(raw.chunks(size).map(<[u8]>::to_vec).collect(), usize::MAX, false);
            script.ended.set(closes);
            let call = rig.ask(&script, false);
            rig.settle();
            relay(&call, &to);
            client.wants.take(); // it never says that it has room again
            for _ in 0..1000 {
                rig.exec.begin();
                rig.exec.run();
                client.wants.take();
                if let Some(edge) = script.edge() {
                    rig.exec.event(rig.scripts[1].1, edge);
                }
            }
            let left: usize = script.input.borrow().iter().map(Vec::len).sum();
            let held = raw.len() - left;
            assert!(held < 256 * 1024, "{held} bytes are held");
            assert!(call.lock().paused);
            // It reads again: nothing was lost, and the connection is used again where it may.
            client.room.set(3_000);
            client.wants.set(Readiness {
                writable: true,
                ..Readiness::default()
            });
            rig.settle();
            assert_eq!(outcome(&call), (None, true));
            assert!(dechunked(&client.output.borrow()) == body);
            assert_eq!(rig.pool.size(), usize::from(!closes));
        }
    }
}

#[test]
fn a_client_that_leaves_ends_its_relay() {
    let (raw, _) = stream(40_000);
    for room in [1, 1000, usize::MAX] {
        let mut rig = Rig::new();
        let client = script(Vec::new(), room, false);
        let to = rig.client(&client);
        let script = script(
            raw[..raw.len() / 2].chunks(5_000).map(<[u8]>::to_vec).collect(),
            usize::MAX,
            false,
        );
        let call = rig.ask(&script, false);
        rig.settle();
        relay(&call, &to);
        rig.exec.begin();
        rig.exec.run();
        rig.exec.event(rig.scripts[0].1, Readiness { broken: true, ..ENDED });
        rig.settle();
        // Whether it was being read from or not: its connection is closed, and nobody waits for ever.
        assert_eq!(call.lock().fault.map(|fault| fault.0), Some("client_gone"), "{room}");
        assert_eq!((rig.pool.size(), rig.exec.live()), (0, 0));
        drop(to);
        assert_eq!(Arc::strong_count(&call), 1);
    }
}

#[test]
fn a_chunk_goes_past_hyper_while_nothing_else_is_to_be_sent() {
    let mut rig = Rig::new();
    let client = script(Vec::new(), usize::MAX, false);
    let to = rig.client(&client);
    rig.settle();
    assert!(rig.exec.write(to.key, b"abc"));
    assert!(client.output.borrow().ends_with(b"\r\n\r\n3\r\nabc\r\n"), "at once");
    client.room.set(4);
    assert!(rig.exec.write(to.key, b"0123456789"));
    assert!(!rig.exec.write(to.key, b"more"), "a part of the last one waits");
    let mut state = to.lock();
    state.push(b"xyz".as_slice().into());
    state.finished = true;
    drop(state);
    to.waker.wake_by_ref();
    rig.settle();
    assert_eq!(dechunked(&client.output.borrow()), b"abc0123456789xyz");
    assert!(client.output.borrow().ends_with(b"\r\n0\r\n\r\n"));
    assert!(!rig.exec.write(to.key, b"late"), "the answer is over");
}
