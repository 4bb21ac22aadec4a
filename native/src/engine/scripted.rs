//! The engine without sockets: scripted I/O in which every single call returns WouldBlock once. No task sleeps for ever.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use http::StatusCode;

use super::exec::{Exec, Key};
use super::request::{respond, BodyEnd, Got, Req};
use super::server::{Event, Limits, Outbox, ServerConn};
use super::sys::{Readiness, Wire};
use super::tls::Pace;

/// A socket whose peer's bytes are a script. Every other call would block; a blocked call is made ready by `Script::edge`.
#[derive(Default)]
pub(super) struct Script {
    pub input: RefCell<VecDeque<Vec<u8>>>,
    pub ended: Cell<bool>,
    pub output: RefCell<Vec<u8>>,
    /// At most so many bytes are taken by one send.
    pub room: Cell<usize>,
    pub blocks: Cell<bool>,
    turn_in: Cell<bool>,
    turn_out: Cell<bool>,
    pub wants: Cell<Readiness>,
    pub shut: Cell<bool>,
}

impl Script {
    /// What epoll would say next: exactly what a call blocked on, and nothing else.
    pub fn edge(&self) -> Option<Readiness> {
        let wants = self.wants.take();
        (wants != Readiness::default()).then_some(wants)
    }

    fn block(&self, turn: &Cell<bool>, readable: bool) -> bool {
        if !self.blocks.get() || turn.replace(!turn.get()) {
            return false;
        }
        let mut wants = self.wants.get();
        wants.readable |= readable;
        wants.writable |= !readable;
        self.wants.set(wants);
        true
    }
}

pub(super) struct Handle(pub Rc<Script>);

impl Wire for Handle {
    fn recv(&self, buf: &mut [MaybeUninit<u8>]) -> io::Result<usize> {
        let script = &self.0;
        if script.block(&script.turn_in, true) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let mut input = script.input.borrow_mut();
        let Some(mut piece) = input.pop_front() else {
            return if script.ended.get() {
                Ok(0)
            } else {
                Err(io::ErrorKind::WouldBlock.into())
            };
        };
        let n = piece.len().min(buf.len());
        for (to, from) in buf.iter_mut().zip(&piece) {
            to.write(*from);
        }
        if n < piece.len() {
            input.push_front(piece.split_off(n));
        } else if !input.is_empty() {
            // The next packet comes later: an edge of its own.
            let mut wants = script.wants.get();
            wants.readable = true;
            script.wants.set(wants);
        }
        Ok(n)
    }

    fn send(&self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        let script = &self.0;
        if script.block(&script.turn_out, false) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let mut left = script.room.get();
        let mut n = 0;
        for buf in bufs {
            let part = buf.len().min(left);
            script.output.borrow_mut().extend_from_slice(&buf[..part]);
            left -= part;
            n += part;
        }
        if left == 0 {
            let mut wants = script.wants.get();
            wants.writable = true;
            script.wants.set(wants);
        }
        Ok(n)
    }

    fn shutdown(&self) {
        self.0.shut.set(true);
    }

    fn reset(&self) {}
}

thread_local! {
    /// What the clock of these tests says.
    static NOW: Cell<u64> = const { Cell::new(0) };
}

pub(super) struct Bench {
    pub exec: Exec,
    outbox: Outbox,
    pub script: Rc<Script>,
    pub key: Key,
    pub closed: Rc<Cell<bool>>,
    pub bodies: Vec<Vec<u8>>,
    pub disconnects: usize,
    gone: Vec<Arc<Req>>,
    pub pace: Rc<Pace>,
}

impl Bench {
    pub fn new(input: Vec<Vec<u8>>, room: usize, blocks: bool) -> Self {
        let script = Rc::new(Script::default());
        script.input.replace(input.into());
        script.room.set(room);
        script.blocks.set(blocks);
        let wire = Box::new(Handle(Rc::clone(&script)));
        Self::over(wire, script)
    }

    /// A server's connection over a wire that ends in `script`.
    pub fn over(wire: Box<dyn Wire>, script: Rc<Script>) -> Self {
        let exec = Exec::new(|| NOW.get());
        let outbox = Outbox::default();
        let (key, waker) = exec.reserve();
        let closed = Rc::new(Cell::new(false));
        let seen = Rc::clone(&closed);
        let limits = Limits {
            header_ms: 1000,
            body_ms: 2000,
            idle_ms: 10_000,
            most_body: 1 << 20,
        };
        let peer: SocketAddr = ([127, 0, 0, 1], 1).into();
        let on_close = Box::new(move || seen.set(true));
        let conn = ServerConn::new(wire, peer, (key, waker.clone()), Rc::clone(&outbox), limits, on_close);
        exec.insert(key, Rc::new(conn));
        waker.wake();
        Self {
            exec,
            outbox,
            script,
            key,
            closed,
            bodies: Vec::new(),
            disconnects: 0,
            gone: Vec::new(),
            pace: Rc::default(),
        }
    }

    /// It is so late now.
    pub fn at(&mut self, ms: u64) {
        NOW.set(ms);
        self.exec.begin();
        self.exec.expire();
    }

    /// Turns until nothing is marked and no edge is due: only then may everything sleep. `app` answers a whole body.
    pub fn settle(&mut self, app: &dyn Fn(&Arc<Req>, &[u8])) {
        for _ in 0..100_000 {
            if let Some(edge) = self.script.edge() {
                self.exec.event(self.key, edge);
            }
            self.pace.begin();
            self.exec.begin();
            self.exec.run();
            for event in self.outbox.take() {
                let (Event::Begin(req, ..) | Event::Receive(req) | Event::Room(req)) = event else {
                    continue;
                };
                self.receive(&req, app);
            }
            if !self.exec.pending() && self.script.wants.get() == Readiness::default() {
                return;
            }
        }
        panic!("it never comes to rest");
    }

    fn receive(&mut self, req: &Arc<Req>, app: &dyn Fn(&Arc<Req>, &[u8])) {
        let got = req.lock().take();
        match got {
            Some(Got::Body(chunks, size, more)) => {
                let body = chunks.concat();
                assert_eq!(body.len(), size);
                assert!(!more);
                app(req, &body);
                self.bodies.push(body);
                req.waker.wake_by_ref();
                self.gone.push(Arc::clone(req));
            }
            Some(Got::Disconnect) => self.disconnects += 1,
            None => {
                // What Exchange.receive does without a future: say that somebody waits.
                req.lock().watched = true;
                req.waker.wake_by_ref();
            }
        }
    }
}

pub(super) fn answer(req: &Arc<Req>, pieces: &[&[u8]], finished: bool) {
    let exact = (finished && pieces.len() == 1).then(|| pieces[0].len() as u64);
    let response = respond(req, (StatusCode::OK, http::HeaderMap::new()), exact);
    let mut state = req.lock();
    state.started = true;
    state.response = Some(response);
    for piece in pieces {
        state.push(Bytes::copy_from_slice(piece));
    }
    state.finished = finished;
    state.cut = !finished;
}

pub(super) fn post(body: &[u8]) -> Vec<u8> {
    let mut raw = format!("POST /x HTTP/1.1\r\nhost: a\r\ncontent-length: {}\r\n\r\n", body.len()).into_bytes();
    raw.extend_from_slice(body);
    raw
}

/// Every script below, whole and byte by byte, with narrow and wide sends, with and without blocking calls.
fn everywhere(raw: &[u8], check: impl Fn(Vec<Vec<u8>>, usize, bool)) {
    for size in [1, 2, 7, 64, raw.len()] {
        for room in [1, 5, 4096, usize::MAX] {
            for blocks in [false, true] {
                check(raw.chunks(size).map(<[u8]>::to_vec).collect(), room, blocks);
            }
        }
    }
}

#[test]
fn pipelined_requests_are_all_answered() {
    let mut raw = Vec::new();
    for n in 0..5 {
        raw.extend(post(format!("body {n}").as_bytes()));
    }
    raw.extend(b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n4\r\ndefg\r\n0\r\n\r\n");
    everywhere(&raw, |input, room, blocks| {
        let mut bench = Bench::new(input, room, blocks);
        bench.settle(&|req, body| answer(req, &[body], true));
        assert_eq!(bench.bodies.len(), 6);
        assert_eq!(bench.bodies[5], b"abcdefg");
        let output = String::from_utf8(bench.script.output.take()).unwrap();
        assert_eq!(output.matches("HTTP/1.1 200 OK").count(), 6);
        assert!(output.ends_with("abcdefg"));
        assert!(!bench.closed.get()); // it waits for more
        bench.script.ended.set(true);
        bench.exec.event(
            bench.key,
            Readiness {
                readable: true,
                ended: true,
                ..Readiness::default()
            },
        );
        bench.settle(&|_, _| {});
        assert!(bench.closed.get());
        assert_eq!(bench.exec.live(), 0);
        // Nobody holds a request any more but us.
        assert!(bench.gone.drain(..).all(|req| Arc::strong_count(&req) == 1));
    });
}

#[test]
fn streams_end_whole_or_not_at_all() {
    let raw = post(b"{}");
    for finished in [true, false] {
        everywhere(&raw, |input, room, blocks| {
            let mut bench = Bench::new(input, room, blocks);
            bench.settle(&|req, _| answer(req, &[b"one", b"two", b"three"], finished));
            let output = String::from_utf8(bench.script.output.take()).unwrap();
            let body = output.split_once("\r\n\r\n").unwrap().1;
            let whole = "3\r\none\r\n3\r\ntwo\r\n5\r\nthree\r\n";
            if finished {
                assert_eq!(body, format!("{whole}0\r\n\r\n"));
                assert!(!bench.script.shut.get());
            } else {
                assert_eq!(body, whole); // all of it, and no last chunk
                assert!(bench.script.shut.get());
            }
        });
    }
}

#[test]
fn half_a_body_is_a_disconnect() {
    let mut raw = post(b"hello");
    raw.truncate(raw.len() - 2);
    everywhere(&raw, |input, room, blocks| {
        let mut bench = Bench::new(input, room, blocks);
        bench.script.ended.set(true);
        bench.settle(&|_, _| panic!("acted on"));
        bench.exec.event(
            bench.key,
            Readiness {
                readable: true,
                ended: true,
                ..Readiness::default()
            },
        );
        bench.settle(&|_, _| panic!("acted on"));
        assert!(bench.disconnects > 0);
    });
}

#[test]
fn a_client_that_leaves_is_told_of_at_once_also_with_pipelined_input() {
    let mut raw = post(b"first");
    raw.extend(post(b"second"));
    let mut bench = Bench::new(vec![raw], usize::MAX, false);
    let held: RefCell<Option<Arc<Req>>> = RefCell::new(None);
    bench.settle(&|req, _| {
        held.replace(Some(Arc::clone(req)));
    });
    let req = held.take().unwrap();
    assert!(req.lock().take().is_none());
    bench.exec.event(
        bench.key,
        Readiness {
            readable: true,
            ended: true,
            ..Readiness::default()
        },
    );
    bench.exec.begin();
    bench.exec.run();
    assert!(matches!(req.lock().take(), Some(Got::Disconnect)));
    assert_eq!(req.lock().end, BodyEnd::Done);
}

#[test]
fn a_slow_head_is_ended_in_time() {
    let mut bench = Bench::new(vec![b"GET / HT".to_vec()], usize::MAX, false);
    bench.settle(&|_, _| {});
    // Armed once for all; before its time nothing happens, and at its time nothing else is asked.
    let due = bench.exec.next_ms().unwrap();
    assert!((1000..=1200).contains(&due));
    bench.at(999);
    bench.settle(&|_, _| {});
    assert!(!bench.closed.get());
    bench.at(due);
    bench.settle(&|_, _| {});
    assert!(bench.closed.get());
    assert!(bench.script.output.take().starts_with(b"HTTP/1.1 408"));
    assert_eq!(bench.exec.next_ms(), None); // nothing wakes an engine that has nothing to wait for
}

#[test]
fn a_task_that_panics_ends_alone() {
    use super::exec::{Step, Task};
    use std::task::Context;

    struct Bad(Rc<Cell<bool>>);
    impl Task for Bad {
        fn poll(&self, _: &mut Context<'_>, _: &Exec) -> Step {
            panic!("on purpose")
        }
        fn event(&self, _: Readiness) {}
        fn close(&self) {
            self.0.set(true);
        }
    }
    let exec = Exec::new(|| 0);
    let closed = Rc::new(Cell::new(false));
    let (key, waker) = exec.reserve();
    exec.insert(key, Rc::new(Bad(Rc::clone(&closed))));
    waker.wake_by_ref();
    exec.run();
    assert!(closed.get());
    assert_eq!(exec.live(), 0);
    // Its key means nobody now, also when the slot is used again.
    let (again, _) = exec.reserve();
    assert_ne!(key, again);
    exec.event(key, Readiness::default());
    assert!(!exec.pending());
}
