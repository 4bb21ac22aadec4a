//! One request to an upstream and its answer as it comes in: the state that the connection, the clock and Python share.
//! Knows no sockets. The twin of `turnout/upstream/call.py`: same limits, same outcomes.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;

use bytes::{Bytes, BytesMut};
use http::{header, response, HeaderName, HeaderValue};
use pyo3::{Py, PyAny};

use super::exec::Exec;
use super::request::{Req, FED};
use super::wake::Wake;
use crate::kernels::sse::{Passed, Scanner};

/// Comments and pings show that a provider is alive, not that it works: they stretch the idle limit at most this far.
const IDLE_STRETCH: u64 = 3;
/// Bytes of an answer that may wait for a slow reader before no more is read.
pub const MOST_WAITING: usize = 128 * 1024;
/// Headers of an answer that are kept at most.
const MOST_KEPT: usize = 32;

/// A kind of `errors.TABLE` and our words for it.
pub type Fault = (&'static str, &'static str);

pub const SILENT_IDLE: Fault = ("idle_timeout", "the upstream went silent in the middle of its answer");
pub const SILENT_TTFT: Fault = ("ttft_timeout", "the upstream did not begin to answer in time");
pub const SILENT_PLAIN: Fault = ("plain_timeout", "the upstream did not answer in time");
pub const SILENT_CONNECT: Fault = ("connect_timeout", "connecting to the upstream took too long");
pub const TOTAL: Fault = ("total_timeout", "the request took longer than its time limit");
pub const TOO_LARGE: Fault = ("answer_too_large", "the upstream's answer is over the size limit");
pub const RESET_BEFORE: Fault = ("reset", "the upstream closed the connection before it answered");
pub const RESET_WITHIN: Fault = (
    "reset",
    "the upstream closed the connection in the middle of its answer",
);
pub const MALFORMED: Fault = ("protocol", "the upstream's answer is not valid HTTP/1.1");
pub const CLIENT_GONE: Fault = ("client_gone", "the client closed the connection");
pub const DRAINING: Fault = ("draining", "the gateway is shutting down");

/// What Python waits for.
pub enum Want {
    /// The status.
    Head,
    /// The complete body.
    Whole,
    /// Anything new.
    News,
    /// Anything new, which this is called with nothing for; it says whether it took all there was.
    Push(Py<PyAny>),
    /// The end of the relay.
    Relay,
}

/// An answer on its way from here to a client, without Python.
pub struct Relay {
    pub scanner: Arc<Mutex<Scanner>>,
    pub to: Arc<Req>,
    pub moved: u64,
    /// Something has come that Python must look at.
    pub over: bool,
}

#[derive(Default)]
pub struct State {
    /// Nobody reads before the end: no reader is woken, no pace is kept.
    pub whole: bool,
    pub status: u16,
    pub headers: Vec<(HeaderName, HeaderValue)>,
    pub media_type: Vec<u8>,
    pub encoding: Vec<u8>,
    pub done: bool,
    pub fault: Option<Fault>,
    /// Lost on a reused connection before any byte came back: nothing was served.
    pub stale: bool,
    /// An event carried content since the clock last looked.
    pub progress: bool,
    pub first_byte_ns: u64,
    pub chunks: Vec<Bytes>,
    pub size: usize,
    pub most: usize,
    /// Python has ended it: its connection must go, unless the answer is complete.
    pub closed: bool,
    pub wanted: Option<(Want, Py<Wake>)>,
    pub relay: Option<Relay>,
    /// The connection waits until its reader has taken something.
    pub paused: bool,
    /// Connected, or on a connection that was.
    pub connected: bool,
    pub connect_ns: u64,
    limit_ns: u64,
    hard_ns: u64,
    silent: Option<Fault>,
    idle_ns: u64,
    then_idle_ns: u64,
    last_ns: u64,
    content_ns: u64,
    pub seen: bool,
}

pub struct Call {
    state: Mutex<State>,
    pub waker: Waker,
}

static LIVE: AtomicUsize = AtomicUsize::new(0);

impl Drop for Call {
    fn drop(&mut self) {
        LIVE.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Call {
    /// How many there are in this process that somebody still holds.
    pub fn live() -> usize {
        LIVE.load(Ordering::Relaxed)
    }

    pub fn new(waker: Waker, whole: bool, most: usize) -> Arc<Self> {
        LIVE.fetch_add(1, Ordering::Relaxed);
        let state = State {
            whole,
            most,
            ..State::default()
        };
        Arc::new(Self {
            state: Mutex::new(state),
            waker,
        })
    }

    /// Nobody wants the rest: its connection is closed with the next turn, if the answer is not complete. What is
    /// returned is Python's, and must be dropped without the lock.
    pub fn end(&self) -> Option<(Want, Py<Wake>)> {
        let mut state = self.lock();
        if state.done || state.closed {
            return None;
        }
        state.closed = true;
        state.relay_rests();
        let wanted = state.wanted.take();
        drop(state);
        self.waker.wake_by_ref();
        wanted
    }

    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Fail with `silent` unless the next phase begins by `limit_ns`, with TOTAL at `hard_ns` in any case. The next phase
    /// of a whole answer begins with its head; that of a stream when its reader calls `idle`.
    pub fn limit(&mut self, limit_ns: u64, silent: Fault, hard_ns: u64, then_idle_ns: u64) {
        (self.limit_ns, self.silent, self.hard_ns) = (limit_ns, Some(silent), hard_ns);
        (self.idle_ns, self.then_idle_ns) = (0, then_idle_ns);
    }

    /// From now on the answer must not fall silent for longer than `idle_ns`.
    pub fn idle(&mut self, idle_ns: u64, now_ns: u64) {
        (self.idle_ns, self.last_ns, self.content_ns) = (idle_ns, now_ns, now_ns);
        self.seen = false;
    }

    /// What the clock says of it.
    pub fn overdue(&mut self, now_ns: u64) -> Option<Fault> {
        if now_ns > self.hard_ns {
            return Some(TOTAL);
        }
        if !self.connected {
            return (now_ns > self.connect_ns).then_some(SILENT_CONNECT);
        }
        if self.paused {
            // The client is slow, not the upstream.
            (self.last_ns, self.content_ns) = (now_ns, now_ns);
        } else if self.idle_ns > 0 {
            if std::mem::take(&mut self.seen) {
                self.last_ns = now_ns;
                if std::mem::take(&mut self.progress) || self.whole {
                    self.content_ns = now_ns;
                }
            }
            if now_ns.saturating_sub(self.last_ns) > self.idle_ns
                || now_ns.saturating_sub(self.content_ns) > IDLE_STRETCH * self.idle_ns
            {
                return Some(SILENT_IDLE);
            }
        } else if self.whole && self.status > 0 {
            self.idle(self.then_idle_ns, now_ns);
        } else if now_ns > self.limit_ns {
            return self.silent;
        }
        None
    }

    /// The head has come; of its headers those are kept that `kept` names.
    pub fn head(&mut self, parts: response::Parts, kept: &[HeaderName]) {
        self.status = parts.status.as_u16();
        for (name, value) in &parts.headers {
            if name == header::CONTENT_TYPE {
                let raw = value.as_bytes();
                let end = raw.iter().position(|c| *c == b';').unwrap_or(raw.len());
                self.media_type = raw[..end].trim_ascii().to_ascii_lowercase();
            } else if name == header::CONTENT_ENCODING {
                self.encoding = value.as_bytes().to_ascii_lowercase();
            } else if self.headers.len() < MOST_KEPT && kept.contains(name) {
                self.headers.push((name.clone(), value.clone()));
            }
        }
    }

    /// Whether more of the answer should be read now. False: the connection is woken when there is room again.
    pub fn has_room(&mut self) -> bool {
        let full = match &self.relay {
            Some(relay) if !relay.over => {
                let mut to = relay.to.lock();
                to.hungry = to.out_size > FED;
                to.hungry
            }
            _ => !self.whole && self.size > MOST_WAITING,
        };
        self.paused = full;
        !full
    }

    /// Pieces of the body that came in one wake-up.
    pub fn came(&mut self, mut pieces: Vec<Bytes>, exec: &Exec) {
        if self.closed {
            return;
        }
        self.seen = true;
        if self.relay.as_ref().is_some_and(|relay| !relay.over) {
            let data = join(&mut pieces);
            self.pass(&data, Some(exec));
            return;
        }
        for piece in pieces {
            self.size += piece.len();
            self.chunks.push(piece);
        }
        if self.whole && self.size > self.most {
            self.fail(TOO_LARGE);
        }
    }

    /// Data of a relayed stream, which came past hyper.
    pub fn relayed(&mut self, data: &[u8], exec: &Exec) {
        self.seen = true;
        self.pass(data, Some(exec));
    }

    pub fn is_relaying(&self) -> bool {
        !self.closed && self.fault.is_none() && self.relay.as_ref().is_some_and(|relay| !relay.over)
    }

    fn pass(&mut self, data: &[u8], exec: Option<&Exec>) {
        let Some(relay) = self.relay.as_mut() else { return };
        let mut scanner = relay.scanner.lock().unwrap_or_else(PoisonError::into_inner);
        let before = scanner.marks.chunks;
        let passed = scanner.feed(data);
        self.progress |= scanner.marks.chunks != before;
        relay.over = scanner.turned();
        drop(scanner);
        let passed = match &passed {
            Passed::Range(range) => &data[range.clone()],
            Passed::Bytes(bytes) => &bytes[..],
        };
        if passed.is_empty() {
            return;
        }
        relay.moved += passed.len() as u64;
        let mut to = relay.to.lock();
        // The short way: past the client's task and hyper, where neither has anything to say itself.
        let free = !to.slow && to.out_size == 0 && relay.to.is_chunked() && to.is_streaming();
        if free && exec.is_some_and(|exec| exec.write(relay.to.key, passed)) {
            return;
        }
        // A copy: what waits keeps no more than itself, where a piece of a read buffer would keep up to 64 KiB.
        to.push(Bytes::copy_from_slice(passed));
        drop(to);
        relay.to.waker.wake_by_ref();
    }

    /// A relay under way whose client has left.
    pub fn is_deserted(&self) -> bool {
        let relay = self.relay.as_ref().filter(|relay| !relay.over && !self.done);
        relay.is_some_and(|relay| {
            let to = relay.to.lock();
            to.over || to.gone
        })
    }

    /// A relay begins: what has come before it goes first.
    pub fn relay_waiting(&mut self, waker: &Waker) {
        if let Some(relay) = &self.relay {
            relay.to.lock().feeder = Some(waker.clone());
        }
        if !self.chunks.is_empty() {
            let data = self.take();
            self.pass(&data, None);
        }
    }

    /// The relay hands on nothing for now: `send` may.
    pub fn relay_rests(&self) {
        if let Some(relay) = &self.relay {
            relay.to.lock().relaying = false;
        }
    }

    /// All of the body that waits, as one piece.
    pub fn take(&mut self) -> Bytes {
        self.size = 0;
        join(&mut self.chunks)
    }

    pub fn fail(&mut self, fault: Fault) {
        if !self.done && self.fault.is_none() {
            self.fault = Some(fault);
        }
    }

    /// Whether there is something for whoever waits.
    pub fn has_news(&self) -> bool {
        let over = self.done || self.fault.is_some();
        match &self.wanted {
            None => false,
            Some((Want::Head, _)) => over || self.status > 0,
            Some((Want::Whole, _)) => over,
            Some((Want::News | Want::Push(_), _)) => over || !self.chunks.is_empty(),
            Some((Want::Relay, _)) => over || !self.relay.as_ref().is_some_and(|relay| !relay.over),
        }
    }
}

fn join(pieces: &mut Vec<Bytes>) -> Bytes {
    match pieces.len() {
        0 => Bytes::new(),
        1 => pieces.pop().unwrap_or_default(),
        _ => {
            let mut whole = BytesMut::with_capacity(pieces.iter().map(Bytes::len).sum());
            for piece in pieces.drain(..) {
                whole.extend_from_slice(&piece);
            }
            whole.freeze()
        }
    }
}
