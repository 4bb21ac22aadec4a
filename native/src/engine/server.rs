//! One client's connection: hyper's state machine, the request under way on it, and how both end.

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::future::Future as _;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use http::{header, request, Method, Request, StatusCode, Version};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::Service;

use super::call::Call;
use super::exec::{Clock, Exec, Key, Step, Task, NEVER};
use super::io::{Gate, Io};
use super::request::{refuse, Answer, BodyEnd, Req, FED, LOW};
use super::sys::{Readiness, Wire};

/// What Python is to be told after the poll.
pub enum Event {
    /// A request has come: call the app.
    Begin(Arc<Req>, Box<request::Parts>, SocketAddr),
    /// Somebody who waits in `receive` can be answered.
    Receive(Arc<Req>),
    /// Somebody who waits in `send` may go on.
    Room(Arc<Req>),
    /// An upstream's answer has something for whoever waits.
    Call(Arc<Call>),
}

pub type Outbox = Rc<RefCell<Vec<Event>>>;

#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub header_ms: u64,
    pub body_ms: u64,
    pub idle_ms: u64,
    /// A body up to here is handed out whole.
    pub most_body: usize,
}

/// A connection whose last words may still be on their way is read from for this long before it is closed.
const LINGER_MS: u64 = 2_000;
/// hyper's read buffer, and with it the longest head, and its write buffer: unsent bytes.
const MOST_BUFFER: usize = 64 * 1024;

/// What hyper's side and the connection's side both look at.
struct Shared {
    current: RefCell<Option<Arc<Req>>>,
    served: Cell<u64>,
    /// The request under way is of HTTP/1.0; it has an answer without a body.
    http10: Cell<bool>,
    headless: Cell<bool>,
    outbox: Outbox,
    peer: SocketAddr,
    most_body: usize,
    key: Key,
    waker: Waker,
}

struct App(Rc<Shared>);

impl Service<Request<Incoming>> for App {
    type Response = http::Response<super::request::Out>;
    type Error = Infallible;
    type Future = Answer;

    fn call(&self, request: Request<Incoming>) -> Answer {
        let shared = &self.0;
        let (parts, body) = request.into_parts();
        let lazy = parts.headers.contains_key(header::EXPECT);
        let req = Req::new(body, shared.most_body, lazy, shared.waker.clone(), shared.key);
        shared.served.set(shared.served.get() + 1);
        shared.http10.set(parts.version == Version::HTTP_10);
        shared.headless.set(parts.method == Method::HEAD);
        if parts.method == Method::CONNECT || parts.headers.contains_key(header::UPGRADE) {
            req.lock().finished = true;
            let refusal = refuse(&req, StatusCode::NOT_IMPLEMENTED);
            return Answer(req, Some(refusal));
        }
        if let Some(before) = shared.current.replace(Some(Arc::clone(&req))) {
            before.lock().finish(); // its answer is out, or hyper would not have come here
            shared.outbox.borrow_mut().push(Event::Receive(before));
        }
        let begin = Event::Begin(Arc::clone(&req), Box::new(parts), shared.peer);
        shared.outbox.borrow_mut().push(begin);
        Answer(req, None)
    }
}

type Http = Pin<Box<http1::Connection<Io, App>>>;

/// Which limit of time holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Head,
    Body,
    Busy,
    Idle,
    Lingering,
}

pub struct ServerConn {
    gate: Rc<RefCell<Gate>>,
    http: RefCell<Option<Http>>,
    shared: Rc<Shared>,
    limits: Limits,
    lingering: Cell<bool>,
    doomed: Cell<bool>,
    draining: Cell<bool>,
    /// Which limit of time holds, and what must change for it to begin anew: now, and when `until` was found.
    phase: Cell<(Phase, u64)>,
    timed: Cell<(Phase, u64)>,
    until: Cell<u64>,
    on_close: RefCell<Option<Box<dyn FnOnce()>>>,
}

impl ServerConn {
    /// `on_close` runs once, when the connection has left the task list: before its socket is closed.
    pub fn new(
        wire: Box<dyn Wire>,
        peer: SocketAddr,
        (key, waker): (Key, Waker),
        outbox: Outbox,
        limits: Limits,
        on_close: Box<dyn FnOnce()>,
    ) -> Self {
        let gate = Rc::new(RefCell::new(Gate::new(wire)));
        let shared = Rc::new(Shared {
            current: RefCell::new(None),
            served: Cell::new(0),
            http10: Cell::new(false),
            headless: Cell::new(false),
            outbox,
            peer,
            most_body: limits.most_body,
            key,
            waker,
        });
        // Half-closed is no error to hyper: what it means is decided here, and told to the app at once.
        // hyper gets no timer: see `wheel`.
        let http = http1::Builder::new()
            .half_close(true)
            .max_buf_size(MOST_BUFFER)
            .header_read_timeout(None)
            .serve_connection(Io(Rc::clone(&gate)), App(Rc::clone(&shared)));
        Self {
            gate,
            http: RefCell::new(Some(Box::pin(http))),
            shared,
            limits,
            lingering: Cell::new(false),
            doomed: Cell::new(false),
            draining: Cell::new(false),
            phase: Cell::new((Phase::Head, 0)),
            timed: Cell::new((Phase::Head, u64::MAX)),
            until: Cell::new(NEVER),
            on_close: RefCell::new(Some(on_close)),
        }
    }

    /// Tell the request under way that its client has gone.
    fn leave(&self) {
        if let Some(req) = self.shared.current.take() {
            let unsent = {
                let mut state = req.lock();
                state.gone = true;
                state.finish();
                state.response.take() // it holds its request: dropped here, or never, and not under the lock
            };
            drop(unsent);
            let mut outbox = self.shared.outbox.borrow_mut();
            outbox.push(Event::Receive(Arc::clone(&req)));
            outbox.push(Event::Room(req));
        }
    }

    /// hyper's part is over. Stay a moment if closing now would be a reset that destroys our last words.
    fn end(&self, unread: bool) -> Step {
        self.http.take();
        self.leave();
        let mut gate = self.gate.borrow_mut();
        if gate.broken || gate.ended {
            return Step::Done;
        }
        gate.shutdown();
        if !unread && gate.guard.at_rest() && !gate.holds() && !gate.has_unread() {
            return Step::Done;
        }
        self.lingering.set(true);
        self.phase.set((Phase::Lingering, 0));
        Step::Again
    }

    /// After hyper's turn: what has come of the request under way.
    fn look(&self) -> Step {
        let current = self.shared.current.borrow().clone();
        if let Some(req) = current {
            let mut state = req.lock();
            let gate = self.gate.borrow();
            if gate.ended && state.end != BodyEnd::Open && !state.gone {
                state.gone = true; // a client that will send no more is taken as having left
                state.feed();
            }
            if state.cut && state.is_out() && gate.flushed && !state.over {
                drop(state);
                drop(gate);
                return self.cut_off();
            }
            let mut outbox = self.shared.outbox.borrow_mut();
            if state.watched && state.receivable() {
                outbox.push(Event::Receive(Arc::clone(&req)));
            }
            if !state.senders.is_empty() && (state.out_size <= LOW || state.over) {
                outbox.push(Event::Room(Arc::clone(&req)));
            }
            state.slow = !gate.flushed;
            if state.hungry && state.out_size <= FED {
                state.feed();
            }
            // How far it is behind when somebody waits for a body; else it takes as long as it takes.
            let body = state.end == BodyEnd::Open && state.watched;
            self.phase.set(if body {
                (Phase::Body, gate.received)
            } else {
                (Phase::Busy, 0)
            });
            if state.over {
                drop(state);
                drop(gate);
                self.shared.current.take();
                self.between();
            }
        } else {
            self.between();
        }
        if self.gate.borrow().starved {
            Step::Again
        } else {
            Step::Wait
        }
    }

    /// End an answer so that nobody takes it for complete: its last chunk never comes.
    fn cut_off(&self) -> Step {
        if self.shared.http10.get() {
            self.gate.borrow().reset(); // HTTP/1.0 knows no chunks: only a reset tells
            self.http.take();
            self.leave();
            return Step::Done;
        }
        self.end(true)
    }

    /// No request is under way.
    fn between(&self) {
        let served = self.shared.served.get();
        let phase = if self.gate.borrow().guard.at_rest() && served > 0 {
            Phase::Idle
        } else {
            Phase::Head
        };
        self.phase.set((phase, served));
    }
}

impl Task for ServerConn {
    fn poll(&self, cx: &mut Context<'_>, exec: &Exec) -> Step {
        self.gate.borrow_mut().begin(exec.turn());
        if self.doomed.get() || self.gate.borrow().broken {
            self.http.take();
            self.leave();
            return Step::Done;
        }
        if self.lingering.get() {
            let mut gate = self.gate.borrow_mut();
            return if gate.discard() {
                Step::Done
            } else if gate.starved {
                Step::Again
            } else {
                Step::Wait
            };
        }
        let Some(mut http) = self.http.take() else {
            return Step::Done;
        };
        match http.as_mut().poll(cx) {
            Poll::Pending => {
                self.http.replace(Some(http));
                self.look()
            }
            Poll::Ready(result) => {
                drop(http);
                self.end(result.is_err())
            }
        }
    }

    fn write(&self, data: &[u8]) -> bool {
        // hyper has nothing to send, so its next bytes come behind these. Its encoder keeps no count of chunks.
        let shared = &self.shared;
        let plain = shared.http10.get() || shared.headless.get() || self.lingering.get() || self.doomed.get();
        let answering = self.http.borrow().is_some() && shared.current.borrow().is_some();
        !plain && answering && self.gate.borrow_mut().chunk(data)
    }

    fn event(&self, ready: Readiness) {
        self.gate.borrow_mut().event(ready);
    }

    fn due(&self, clock: &Clock) -> u64 {
        let phase = self.phase.get();
        if phase != self.timed.replace(phase) {
            let most = match phase.0 {
                Phase::Head => self.limits.header_ms,
                Phase::Body => self.limits.body_ms,
                Phase::Idle => self.limits.idle_ms,
                Phase::Lingering => LINGER_MS,
                Phase::Busy => {
                    self.until.set(NEVER);
                    return NEVER;
                }
            };
            self.until.set(clock.now_ms() + most);
        }
        self.until.get()
    }

    fn expire(&self) {
        if self.phase.get().0 == Phase::Head && self.gate.borrow().guard.in_head() {
            let answer = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
            self.gate.borrow_mut().say(answer);
        }
        self.doomed.set(true);
    }

    fn drain(&self) {
        if !self.draining.replace(true) {
            if let Some(http) = self.http.borrow_mut().as_mut() {
                http.as_mut().graceful_shutdown();
            }
            if self.shared.current.borrow().is_none() && self.gate.borrow().guard.at_rest() {
                self.doomed.set(true);
            }
        }
    }

    fn close(&self) {
        self.http.take();
        self.leave();
        if let Some(on_close) = self.on_close.take() {
            on_close();
        }
    }
}
