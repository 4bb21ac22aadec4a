//! A whole server connection, in the clear and behind TLS.

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::sync::Arc;

use bytes::Bytes;
use http::StatusCode;

use _native::engine::exec::Exec;
use _native::engine::request::{refuse, respond, Got, Req};
use _native::engine::server::{Event, Limits, Outbox, ServerConn};
use _native::engine::sys::{Readiness, Wire};
use _native::engine::tls::{server_config, Pace, Tls};

use crate::chance::{pieces, Chance};
use crate::guard::guarded;
use crate::peer::{Line, Peer, PANICS};

/// A server's connection from its first byte to its end: the bodies that the app was given whole, and the answers.
fn served(pieces: Vec<Vec<u8>>, blocks: bool, tls: bool) -> (Vec<Vec<u8>>, Vec<u8>) {
    thread_local!(static NOW: Cell<u64> = const { Cell::new(0) });
    NOW.set(0);
    let panics = PANICS.load(Ordering::Relaxed);
    let exec = Exec::new(|| NOW.get());
    let outbox = Outbox::default();
    let peer = Rc::new(Peer::default());
    peer.input.replace(pieces.into());
    peer.blocks.set(blocks);
    let pace = Rc::new(Pace::default());
    let mut wire: Box<dyn Wire> = Box::new(Line(Rc::clone(&peer)));
    if tls {
        let config = server_config(
            include_bytes!("../../src/engine/testdata/cert.pem"),
            include_bytes!("../../src/engine/testdata/key.pem"),
        );
        wire = Box::new(Tls::server(wire, config.unwrap(), &pace).unwrap());
    }
    let (key, waker) = exec.reserve();
    let limits = Limits {
        header_ms: 1000,
        body_ms: 1000,
        idle_ms: 1000,
        most_body: 1 << 20,
    };
    let address: SocketAddr = ([127, 0, 0, 1], 1).into();
    let conn = ServerConn::new(
        wire,
        address,
        (key, waker.clone()),
        Rc::clone(&outbox),
        limits,
        Box::new(|| ()),
    );
    exec.insert(key, Rc::new(conn));
    waker.wake();
    let mut bodies = Vec::new();
    for turn in 0..200_000_u64 {
        let over = peer.over.get();
        exec.event(
            key,
            Readiness {
                readable: true,
                writable: true,
                ended: over,
                broken: false,
            },
        );
        if turn % 1000 == 999 {
            NOW.set(NOW.get() + 200); // whoever waits for more than there is is ended by the clock
        }
        pace.begin();
        exec.begin();
        exec.expire();
        exec.run();
        for event in outbox.take() {
            let (Event::Begin(req, ..) | Event::Receive(req) | Event::Room(req)) = event else {
                continue;
            };
            receive(&req, &mut bodies);
        }
        if exec.live() == 0 {
            assert_eq!(PANICS.load(Ordering::Relaxed), panics, "a task has panicked");
            return (bodies, peer.output.take());
        }
    }
    panic!("the connection never ends");
}

fn receive(req: &Arc<Req>, bodies: &mut Vec<Vec<u8>>) {
    let got = req.lock().take();
    match got {
        Some(Got::Body(chunks, size, more)) => {
            assert!(!more);
            let body = chunks.concat();
            assert_eq!(body.len(), size);
            let response = respond(req, (StatusCode::OK, http::HeaderMap::new()), Some(body.len() as u64));
            let mut state = req.lock();
            if !state.over {
                state.started = true;
                state.response = Some(response);
                state.push(Bytes::from(body.clone()));
                state.finished = true;
            } else {
                drop(state);
                drop(response);
            }
            bodies.push(body);
            req.waker.wake_by_ref();
        }
        Some(Got::Disconnect) => {
            // An app that ends without having answered.
            let refusal = refuse(req, StatusCode::INTERNAL_SERVER_ERROR);
            let mut state = req.lock();
            if state.finished || state.over {
                drop(state);
                return drop(refusal);
            }
            state.started = true;
            state.finished = true;
            state.response = Some(refusal);
            req.waker.wake_by_ref();
        }
        None => {
            req.lock().watched = true;
            req.waker.wake_by_ref();
        }
    }
}

pub fn connection(data: &[u8], chance: &mut Chance) {
    let (bodies, output) = served(vec![data.to_vec()], false, false);
    let (cut_bodies, cut_output) = served(pieces(chance, data), chance.below(2) == 0, false);
    // A client that ends while it is being answered may be taken as gone, sooner or later: so one may have seen more.
    let n = bodies.len().min(cut_bodies.len());
    assert_eq!(bodies[..n], cut_bodies[..n]);
    for output in [output, cut_output] {
        assert!(output.is_empty() || output.starts_with(b"HTTP/1.1 ") || output.starts_with(b"HTTP/1.0 "));
    }
    // All that the guard let pass and hyper made of it is framed as the guard saw it.
    let (passed, _, _) = guarded(&[data.to_vec()]);
    assert!(bodies.iter().map(Vec::len).sum::<usize>() <= passed);
}

pub fn handshake(data: &[u8], chance: &mut Chance) {
    let (bodies, output) = served(pieces(chance, data), chance.below(2) == 0, true);
    assert!(bodies.is_empty());
    // Records only: a handshake's or an alert's, nothing in the clear.
    assert!(output.is_empty() || [20, 21, 22].contains(&output[0]), "{output:?}");
}

/// A ClientHello of OpenSSL 3, TLS 1.2 and 1.3.
pub const HELLO: &str = "FgMBAgABAAH8AwMzTR7/nYsnbgJ7l1KZ+vDJc/HhziAATbDpxrIwm85nnSCH/4BQyN3xgf+6682h2gh59cPU+tH2Nr9KnUK8rLTpxwAkEwITAxMBwCzAMMArwC/MqcyowCTAKMAjwCcAnwCeAGsAZwD/AQABjwAAABEADwAADGdhdGV3YXkudGVzdAALAAQDAAECAAoAFgAUAB0AFwAeABkAGAEAAQEBAgEDAQQAIwAAABAACwAJCGh0dHAvMS4xABYAAAAXAAAADQAqACgEAwUDBgMIBwgICAkICggLCAQIBQgGBAEFAQYBAwMDAQMCBAIFAgYCACsABQQDBAMDAC0AAgEBADMAJgAkAB0AIMiwvVMQdON6i2k9tShoOSXrK6kNl4tL0wLVC/ot3StvABUA0gAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
