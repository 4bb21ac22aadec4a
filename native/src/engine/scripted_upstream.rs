//! The upstream's side without sockets: every call blocks once, bytes come one by one, the end comes at every byte, the
//! reader is slow or leaves. No task sleeps for ever, nothing is lost and nothing is left.

use std::cell::Cell;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use http::{Method, Request, StatusCode};

use super::call::{Call, MOST_WAITING};
use super::dial::Way;
use super::exec::{Exec, Key};
use super::pool::{Ground, Layers, Pool};
use super::request::{respond, Req};
use super::scripted::{post, Handle, Script};
use super::server::{Event, Limits, Outbox, ServerConn};
use super::sys::{Poller, Readiness, Wire};
use super::tls::Pace;
use super::whole::Whole;

/// An upstream that says nothing before it has been asked.
struct Asked(Handle);

impl Asked {
    fn is_asked(&self) -> bool {
        self.0 .0.output.borrow().ends_with(b"{}")
    }
}

impl Wire for Asked {
    fn recv(&self, buf: &mut [MaybeUninit<u8>]) -> io::Result<usize> {
        if !self.is_asked() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.0.recv(buf)
    }
    fn send(&self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        let sent = self.0.send(bufs)?;
        let mut wants = self.0 .0.wants.get();
        wants.readable |= self.is_asked();
        self.0 .0.wants.set(wants);
        Ok(sent)
    }
    fn shutdown(&self) {}
    fn reset(&self) {}
}

/// An engine with one pool, and at most one client whose response a relay writes.
pub(super) struct Rig {
    pub exec: Exec,
    outbox: Outbox,
    poller: Rc<Poller>,
    pace: Rc<Pace>,
    pub pool: Rc<Pool>,
    pub scripts: Vec<(Rc<Script>, Key, Cell<bool>)>,
    begun: Option<Arc<Req>>,
    _held: Arc<()>,
}

pub(super) fn script(input: Vec<Vec<u8>>, room: usize, blocks: bool) -> Rc<Script> {
    let script = Rc::new(Script::default());
    script.input.replace(input.into());
    script.room.set(room);
    script.blocks.set(blocks);
    script
}

pub(super) const ENDED: Readiness = Readiness {
    readable: true,
    writable: false,
    ended: true,
    broken: false,
};

impl Rig {
    pub fn new() -> Self {
        let held = Arc::new(());
        Self {
            exec: Exec::new(|| 0),
            outbox: Outbox::default(),
            poller: Rc::new(Poller::new().unwrap()),
            pace: Rc::default(),
            pool: Pool::new(4, Layers::default(), &held),
            _held: held,
            scripts: Vec::new(),
            begun: None,
        }
    }

    pub fn ask(&mut self, script: &Rc<Script>, whole: bool) -> Arc<Call> {
        let mut request = Request::new(Whole::new(Bytes::from_static(b"{}")));
        *request.method_mut() = Method::POST;
        let kept = Rc::from([]);
        let ground = Ground {
            exec: &self.exec,
            poller: &self.poller,
            outbox: &self.outbox,
            kept: &kept,
            pace: &self.pace,
        };
        let mut key = 0;
        let way = Way::Over(Box::new(Asked(Handle(Rc::clone(script)))));
        let call = self.pool.connect(&ground, way, request, |waker, its| {
            key = its;
            Call::new(waker, whole, 1 << 20)
        });
        self.scripts.push((Rc::clone(script), key, Cell::new(false)));
        call
    }

    /// A client that has asked for something, and has been sent a head.
    pub fn client(&mut self, script: &Rc<Script>) -> Arc<Req> {
        let (key, waker) = self.exec.reserve();
        let limits = Limits {
            header_ms: 1000,
            body_ms: 1000,
            idle_ms: 1000,
            most_body: 1 << 20,
        };
        script.input.borrow_mut().push_back(post(b"{}"));
        let wire = Box::new(Handle(Rc::clone(script)));
        let peer = ([127, 0, 0, 1], 1).into();
        let outbox = Rc::clone(&self.outbox);
        let conn = ServerConn::new(wire, peer, (key, waker.clone()), outbox, limits, Box::new(|| ()));
        self.exec.insert(key, Rc::new(conn));
        waker.wake();
        self.scripts.push((Rc::clone(script), key, Cell::new(false)));
        self.settle();
        let req = self.begun.take().unwrap();
        let response = respond(&req, (StatusCode::OK, http::HeaderMap::new()), None);
        let mut state = req.lock();
        state.started = true;
        state.response = Some(response);
        drop(state);
        req.waker.wake_by_ref();
        req
    }

    /// Turns until nothing is marked and no edge is due: only then may everything sleep.
    pub fn settle(&mut self) {
        for _ in 0..1_000_000 {
            let mut due = false;
            for (script, key, told) in &self.scripts {
                if let Some(edge) = script.edge() {
                    self.exec.event(*key, edge);
                    due = true;
                } else if script.ended.get() && !told.get() {
                    // The FIN is behind all that was sent, and comes once.
                    told.set(true);
                    self.exec.event(*key, ENDED);
                    due = true;
                }
            }
            if !due && !self.exec.pending() {
                return;
            }
            self.pace.begin();
            self.exec.begin();
            self.exec.run();
            for event in self.outbox.take() {
                if let Event::Begin(req, ..) = event {
                    self.begun = Some(req);
                }
            }
        }
        panic!("it never comes to rest");
    }

    /// What a reader that takes all there is whenever everything sleeps has got in the end.
    fn read(&mut self, call: &Arc<Call>) -> Vec<u8> {
        let mut out = Vec::new();
        loop {
            self.settle();
            let mut state = call.lock();
            let data = state.take();
            let paused = state.paused;
            drop(state);
            if paused {
                call.waker.wake_by_ref();
            }
            out.extend_from_slice(&data);
            if data.is_empty() && (!paused || call.lock().fault.is_some()) {
                return out;
            }
        }
    }
}

/// Its fault, and whether it is complete.
pub(super) fn outcome(call: &Arc<Call>) -> (Option<super::call::Fault>, bool) {
    let state = call.lock();
    (state.fault, state.done)
}

pub(super) fn everywhere(raw: &[u8], check: impl Fn(Vec<Vec<u8>>, usize, bool)) {
    for size in [1, 2, 7, 64, raw.len()] {
        for room in [1, 5, usize::MAX] {
            for blocks in [false, true] {
                check(raw.chunks(size).map(<[u8]>::to_vec).collect(), room, blocks);
            }
        }
    }
}

/// Answers that say hello, and whether their connection is used again (None: only its end ends them).
const ANSWERS: &[(&str, Option<bool>)] = &[
    ("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello", Some(true)),
    ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n", Some(true)),
    ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x\r\n\r\n5;a=b\r\nhello\r\n0\r\nx: y\r\nz: 1\r\n\r\n", Some(true)),
    ("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello", Some(true)),
    ("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 5\r\n\r\nhello", Some(false)),
    ("HTTP/1.0 200 OK\r\ncontent-length: 5\r\n\r\nhello", Some(false)),
    ("HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: 5\r\n\r\nhello", Some(true)),
    ("HTTP/1.1 200 OK\r\n\r\nhello", None),
    ("HTTP/1.0 200 OK\r\n\r\nhello", None),
];

#[test]
fn answers_are_whole_however_they_come() {
    for (raw, again) in ANSWERS {
        for whole in [false, true] {
            everywhere(raw.as_bytes(), |input, room, blocks| {
                let mut rig = Rig::new();
                let script = script(input, room, blocks);
                script.ended.set(again.is_none());
                let call = rig.ask(&script, whole);
                let got = rig.read(&call);
                assert_eq!(got, b"hello", "{raw}");
                let state = call.lock();
                assert!(state.done && state.fault.is_none() && state.status == 200, "{raw}");
                drop(state);
                assert!(script.output.take().ends_with(b"\r\n\r\n{}"));
                let kept = usize::from(*again == Some(true));
                assert_eq!((rig.pool.size(), rig.exec.live()), (kept, kept), "{raw}");
                assert_eq!(rig.pool.checkout().is_some(), kept == 1, "{raw}");
                assert_eq!(Arc::strong_count(&call), 1);
            });
        }
    }
}

#[test]
fn an_end_at_every_byte_is_told() {
    for (raw, again) in ANSWERS {
        for n in 0..raw.len() {
            for (size, blocks) in [(1, false), (1, true), (1000, false), (1000, true)] {
                let mut rig = Rig::new();
                let input = raw.as_bytes()[..n].chunks(size).map(<[u8]>::to_vec).collect();
                let script = script(input, usize::MAX, blocks);
                script.ended.set(true);
                let call = rig.ask(&script, false);
                let got = rig.read(&call);
                let state = call.lock();
                assert!(b"hello".starts_with(&got[..]));
                // Where only the end ends it, any end behind the head is one.
                let head = again.is_none() && raw[..n].contains("\r\n\r\n");
                assert_eq!(state.done, head, "{raw} {n}");
                assert_eq!(state.fault.is_some(), !head, "{raw} {n}");
                assert!(!state.stale);
                drop(state);
                assert_eq!((rig.pool.size(), rig.exec.live()), (0, 0));
                assert_eq!(Arc::strong_count(&call), 1);
            }
        }
    }
}

fn long(close: &str, length: bool) -> (Vec<u8>, Vec<u8>) {
    let body: Vec<u8> = (0..1_000_000_u32).map(|n| (n % 251) as u8).collect();
    let framing = if length {
        format!("content-length: {}\r\n", body.len())
    } else {
        String::new()
    };
    let mut raw = format!("HTTP/1.1 200 OK\r\n{framing}{close}\r\n").into_bytes();
    raw.extend_from_slice(&body);
    (raw, body)
}

#[test]
fn a_slow_reader_gets_all_of_an_answer_behind_which_the_connection_ended() {
    for (close, length) in [("connection: close\r\n", true), ("", true), ("", false)] {
        let (raw, body) = long(close, length);
        for size in [1_000, 16_384, 70_000, raw.len()] {
            for blocks in [false, true] {
                let mut rig = Rig::new();
                let script = script(raw.chunks(size).map(<[u8]>::to_vec).collect(), usize::MAX, blocks);
                script.ended.set(true);
                let call = rig.ask(&script, false);
                rig.settle();
                assert!(call.lock().size <= MOST_WAITING + 2 * 64 * 1024);
                let got = rig.read(&call);
                assert_eq!(outcome(&call), (None, true), "{close} {length} {size} {blocks}");
                assert!(got == body);
                assert_eq!((rig.pool.size(), rig.exec.live()), (0, 0));
            }
        }
    }
}

#[test]
fn an_answer_nobody_asked_for_ends_the_connection() {
    let whole = "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello";
    for (behind, later) in [
        ("HTTP/1.1 200 OK\r\n", false),
        ("x", false),
        ("HTTP/1.1 408 X\r\n\r\n", true),
        ("\r\n", true),
    ] {
        for size in [1, 1000] {
            let first = format!("{whole}{}", if later { "" } else { behind });
            let mut rig = Rig::new();
            let script = script(
                first.as_bytes().chunks(size).map(<[u8]>::to_vec).collect(),
                usize::MAX,
                false,
            );
            let call = rig.ask(&script, true);
            assert_eq!(rig.read(&call), b"hello");
            assert!(call.lock().done);
            if later {
                assert_eq!(rig.pool.size(), 1);
                script.input.borrow_mut().push_back(behind.as_bytes().to_vec());
                script.wants.set(Readiness {
                    readable: true,
                    ..Readiness::default()
                });
                rig.settle();
            }
            assert_eq!((rig.pool.size(), rig.exec.live()), (0, 0), "{behind:?}");
            assert!(rig.pool.checkout().is_none());
        }
    }
}

#[test]
fn a_connection_that_ended_while_idle_is_stale_and_nothing_else() {
    let whole = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello";
    for told in [false, true] {
        let mut rig = Rig::new();
        let script = script(vec![whole.to_vec()], usize::MAX, false);
        let first = rig.ask(&script, true);
        assert_eq!(rig.read(&first), b"hello");
        script.ended.set(true);
        if told {
            rig.settle();
            assert!(rig.pool.checkout().is_none());
            continue;
        }
        // Its end is there, and not seen yet: the request goes out in vain.
        let conn = rig.pool.checkout().unwrap();
        let second = Call::new(conn.waker().clone(), true, 1 << 20);
        let mut request = Request::new(Whole::new(Bytes::from_static(b"{}")));
        *request.method_mut() = Method::POST;
        conn.give(Arc::clone(&second), request);
        drop(conn);
        rig.settle();
        let state = second.lock();
        assert_eq!((state.stale, state.fault.map(|fault| fault.0)), (true, Some("reset")));
        assert_eq!(rig.exec.live(), 0);
    }
}

#[test]
fn closing_at_any_time_ends_the_connection_and_leaves_nothing() {
    for (raw, _) in ANSWERS {
        for n in 0..raw.len() - 1 {
            let mut rig = Rig::new();
            let script = script(vec![raw.as_bytes()[..n].to_vec()], usize::MAX, n % 2 == 0);
            let call = rig.ask(&script, n % 3 == 0);
            if n > 0 {
                rig.settle();
            }
            call.lock().closed = true;
            call.waker.wake_by_ref();
            rig.settle();
            assert_eq!((rig.pool.size(), rig.exec.live()), (0, 0));
            assert_eq!((Arc::strong_count(&call), Rc::strong_count(&script)), (1, 2)); // the rig has the other one
            call.waker.wake_by_ref(); // means nobody
            rig.settle();
        }
    }
}
