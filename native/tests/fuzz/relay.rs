//! A relay from an upstream to a client.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::StatusCode;

use _native::engine::call::{Call, Relay};
use _native::engine::dial::Way;
use _native::engine::exec::Exec;
use _native::engine::pool::{Ground, Layers, Pool};
use _native::engine::request::respond;
use _native::engine::server::{Event, Limits, Outbox, ServerConn};
use _native::engine::sys::{Poller, Readiness, Wire};
use _native::engine::whole::Whole;
use _native::kernels::sse::Scanner;

use crate::chance::{pieces, Chance};
use crate::peer::{Line, Peer, PANICS};

/// An upstream that says nothing before it was asked.
struct Asked(Line);

impl Wire for Asked {
    fn recv(&self, buf: &mut [MaybeUninit<u8>]) -> io::Result<usize> {
        if self.0 .0.output.borrow().is_empty() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.0.recv(buf)
    }
    fn send(&self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        self.0.send(bufs)
    }
    fn shutdown(&self) {}
    fn reset(&self) {}
}

/// One answer from an upstream, `before` of it read as it comes and the rest relayed to a client: all that was read of it,
/// what the client was sent, and how it ended.
fn relayed(pieces: Vec<Vec<u8>>, blocks: bool) -> (Vec<u8>, Option<&'static str>, bool) {
    let panics = PANICS.load(Ordering::Relaxed);
    let exec = Exec::new(|| 0);
    let outbox = Outbox::default();
    let (client, upstream) = (Rc::new(Peer::default()), Rc::new(Peer::default()));
    client
        .input
        .borrow_mut()
        .push_back(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n".to_vec());
    client.blocks.set(blocks);
    upstream.input.replace(pieces.into());
    upstream.blocks.set(blocks);
    let (at, waker) = exec.reserve();
    let limits = Limits {
        header_ms: 1000,
        body_ms: 1000,
        idle_ms: 1000,
        most_body: 1 << 20,
    };
    let conn = ServerConn::new(
        Box::new(Open(Line(Rc::clone(&client)))),
        ([127, 0, 0, 1], 1).into(),
        (at, waker.clone()),
        Rc::clone(&outbox),
        limits,
        Box::new(|| ()),
    );
    exec.insert(at, Rc::new(conn));
    waker.wake();
    let held = Arc::new(());
    let pool = Pool::new(4, Layers::default(), &held);
    let (poller, pace, kept) = (Rc::new(Poller::new().unwrap()), Rc::default(), Rc::from([]));
    let ground = Ground {
        exec: &exec,
        poller: &poller,
        outbox: &outbox,
        kept: &kept,
        pace: &pace,
    };
    let mut key = 0;
    let way = Way::Over(Box::new(Asked(Line(Rc::clone(&upstream)))));
    let request = http::Request::new(Whole::new(Bytes::from_static(b"{}")));
    let call = pool.connect(&ground, way, request, |waker, its| {
        key = its;
        Call::new(waker, false, 1 << 20)
    });
    let mut to = None;
    for _ in 0..200_000 {
        for (key, peer) in [(at, &client), (key, &upstream)] {
            let ready = Readiness {
                readable: true,
                writable: true,
                ended: peer.over.get() && Rc::ptr_eq(peer, &upstream),
                broken: false,
            };
            exec.event(key, ready);
        }
        pace.begin();
        exec.begin();
        exec.run();
        for event in outbox.take() {
            let Event::Begin(req, ..) = event else { continue };
            let mut state = req.lock();
            state.started = true;
            state.relaying = true;
            state.response = Some(respond(&req, (StatusCode::OK, http::HeaderMap::new()), None));
            drop(state);
            let mut state = call.lock();
            state.relay = Some(Relay {
                scanner: Arc::new(Mutex::new(Scanner::new(false))),
                to: Arc::clone(&req),
                moved: 0,
                over: false,
            });
            state.relay_waiting(&call.waker);
            to = Some(req);
        }
        let mut state = call.lock();
        let over = state.done || state.fault.is_some();
        if state.relay.as_ref().is_some_and(|relay| relay.over) {
            // Something else than content: the rest of it is Python's.
            drop(state.take());
        }
        drop(state);
        if over {
            let req = to.take().expect("the client came first");
            let mut state = req.lock();
            state.finished = true;
            drop(state);
            req.waker.wake_by_ref();
            for _ in 0..100 {
                exec.event(
                    at,
                    Readiness {
                        readable: true,
                        writable: true,
                        ..Readiness::default()
                    },
                );
                exec.begin();
                exec.run();
            }
            assert_eq!(PANICS.load(Ordering::Relaxed), panics, "a task has panicked");
            let state = call.lock();
            assert!(exec.live() <= 2 && pool.size() <= usize::from(state.done));
            let output = client.output.take();
            return (output, state.fault.map(|fault| fault.0), state.done);
        }
    }
    panic!("the relay never ends");
}

/// A client that stays.
struct Open(Line);

impl Wire for Open {
    fn recv(&self, buf: &mut [MaybeUninit<u8>]) -> io::Result<usize> {
        if self.0 .0.input.borrow().is_empty() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.0.recv(buf)
    }
    fn send(&self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        self.0.send(bufs)
    }
    fn shutdown(&self) {}
    fn reset(&self) {}
}

/// The body out of chunked framing.
fn dechunked(raw: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let Some(head) = raw.windows(4).position(|w| w == b"\r\n\r\n") else {
        return out;
    };
    let mut rest = &raw[head + 4..];
    while let Some(end) = rest.windows(2).position(|w| w == b"\r\n") {
        let n = usize::from_str_radix(std::str::from_utf8(&rest[..end]).unwrap(), 16).unwrap();
        out.extend_from_slice(&rest[end + 2..end + 2 + n]);
        rest = &rest[end + 4 + n..];
    }
    out
}

/// What a client is sent of a stream is what the scanner passes, however both come in pieces.
pub fn relay(data: &[u8], chance: &mut Chance) {
    let mut raw = match chance.below(3) {
        0 => b"HTTP/1.1 200 OK\r\n\r\n".to_vec(),
        1 => format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", data.len()).into_bytes(),
        _ => b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n".to_vec(),
    };
    let head = raw.len();
    let chunked = raw.windows(7).any(|w| w == b"chunked");
    if chunked {
        for piece in pieces(chance, data) {
            raw.extend(format!("{:x}\r\n", piece.len()).bytes());
            raw.extend(piece);
            raw.extend(b"\r\n");
        }
        raw.extend(b"0\r\n\r\n");
    } else {
        raw.extend_from_slice(data);
    }
    let cut = chance.below(4) == 0;
    if cut {
        raw.truncate(chance.below(raw.len()));
    }
    let (output, fault, done) = relayed(vec![raw.clone()], false);
    let (cut_output, cut_fault, cut_done) = relayed(pieces(chance, &raw), chance.below(2) == 0);
    assert_eq!((fault, done), (cut_fault, cut_done));
    if !cut {
        assert_eq!((fault, done), (None, true));
    }
    assert!(!done || raw.len() >= head);
    // All that the client has is a beginning of what the scanner lets pass; it stops where more than content came.
    let mut scanner = Scanner::new(false);
    let passed = scanner.feed(data).of(data).to_vec();
    let text = |out: &[u8]| out.iter().copied().filter(|c| !b"\r\n".contains(c)).collect::<Vec<_>>();
    for output in [output, cut_output] {
        assert!(text(&passed).starts_with(&text(&dechunked(&output))));
    }
}
