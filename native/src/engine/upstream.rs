//! One connection to an upstream: connecting, hyper's client state machine, and the call under way on it.
//!
//! A call is given to the connection before that is made, so that connecting needs no waiting of its own in Python: a
//! failure of it is the call's fault like any other.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use http::{HeaderName, Request, Response};
use http_body::Body;
use hyper::body::Incoming;

use super::call::{Call, Fault, CLIENT_GONE, MALFORMED, RESET_BEFORE, RESET_WITHIN};
use super::dial::{Phase, Way};
use super::exec::{Exec, Step, Task};
use super::io::Gate;
use super::pool::{Ground, Pool};
use super::server::{Event, Outbox};
use super::short;
use super::sys::{self, Connecting, Readiness};
use super::tls::Pace;
use super::whole::Whole;

/// Of a body, taken at a time: with what one more piece has, this is what a slow client's queue is over its mark.
const MOST_TAKEN: usize = 32 * 1024;

type Answering = Pin<Box<dyn Future<Output = hyper::Result<Response<Incoming>>>>>;

/// What is under way.
struct Running {
    call: Arc<Call>,
    request: Option<Request<Whole>>,
    answering: Option<Answering>,
    body: Option<Incoming>,
    /// Bytes of it that came through hyper.
    taken: u64,
    /// The connection has served others before; so many bytes had come when this one was sent.
    again: bool,
    before: u64,
}

/// How things stand after a turn.
enum After {
    Idle,
    Running,
    /// The answer is complete; nothing is under way any more.
    Complete,
    /// It has failed, or nobody wants the rest.
    Broken,
}

pub struct Upstream {
    pub(super) gate: RefCell<Option<Rc<RefCell<Gate>>>>,
    pub(super) phase: RefCell<Phase>,
    running: RefCell<Option<Running>>,
    pub(super) pool: Weak<Pool>,
    pub(super) addresses: RefCell<Vec<SocketAddr>>,
    pub idle_since_ns: Cell<u64>,
    outbox: Outbox,
    kept: Rc<[HeaderName]>,
    pub(super) pace: Rc<Pace>,
    pub(super) waker: Waker,
    pub key: u64,
    /// Put the socket of that number into the epoll set, or take it out.
    pub(super) watch: Box<dyn Fn(i32, bool) -> std::io::Result<()>>,
    pub(super) fd: Cell<i32>,
}

impl Upstream {
    /// A connection with `request` to be sent on it.
    pub fn new(
        pool: &Rc<Pool>,
        way: Way,
        call: Arc<Call>,
        request: Request<Whole>,
        ground: &Ground<'_>,
        key: u64,
        watch: Box<dyn Fn(i32, bool) -> std::io::Result<()>>,
    ) -> Rc<Self> {
        let waker = call.waker.clone();
        let (gate, phase, addresses) = match way {
            Way::Dial(addresses) => (None, Phase::Connecting(Connecting::none()), addresses),
            Way::Over(wire) => (
                Some(Rc::new(RefCell::new(Gate::unguarded(wire)))),
                Phase::Opening,
                Vec::new(),
            ),
        };
        Rc::new(Self {
            gate: RefCell::new(gate),
            phase: RefCell::new(phase),
            running: RefCell::new(Some(Running {
                call,
                request: Some(request),
                answering: None,
                body: None,
                taken: 0,
                again: false,
                before: 0,
            })),
            pool: Rc::downgrade(pool),
            addresses: RefCell::new(addresses),
            idle_since_ns: Cell::new(0),
            outbox: Rc::clone(ground.outbox),
            kept: Rc::clone(ground.kept),
            pace: Rc::clone(ground.pace),
            waker,
            key,
            watch,
            fd: Cell::new(-1),
        })
    }

    pub fn waker(&self) -> &Waker {
        &self.waker
    }

    /// Whether another request may be sent on it.
    pub fn is_alive(&self) -> bool {
        let phase = self.phase.borrow();
        let Phase::Open(_, sender) = &*phase else { return false };
        sender.is_ready()
            && self.gate.borrow().as_ref().is_some_and(|g| {
                let gate = g.borrow();
                !gate.ended && !gate.broken
            })
    }

    /// The next request on an idle connection.
    pub fn give(&self, call: Arc<Call>, request: Request<Whole>) {
        call.lock().connected = true;
        self.running.replace(Some(Running {
            call,
            request: Some(request),
            answering: None,
            body: None,
            taken: 0,
            again: true,
            before: 0,
        }));
        self.waker.wake_by_ref();
    }

    /// The call under way, if it is not over.
    pub fn call(&self) -> Option<Arc<Call>> {
        self.running.borrow().as_ref().map(|running| Arc::clone(&running.call))
    }

    fn received(&self) -> u64 {
        self.gate.borrow().as_ref().map_or(0, |gate| gate.borrow().received)
    }

    pub(super) fn fail(&self, fault: Fault) {
        if let Some(running) = self.running.take() {
            let mut state = running.call.lock();
            state.fail(fault);
            self.tell(&running.call, state.has_news());
        }
    }

    fn tell(&self, call: &Arc<Call>, news: bool) {
        if news {
            self.outbox.borrow_mut().push(Event::Call(Arc::clone(call)));
        }
    }

    /// Move what hyper has for the call. Whether anything moved.
    fn advance(&self, cx: &mut Context<'_>, exec: &Exec) -> bool {
        let mut slot = self.running.borrow_mut();
        let Some(running) = slot.as_mut() else { return false };
        let call = Arc::clone(&running.call);
        let mut state = call.lock();
        if state.closed || state.fault.is_some() {
            return false;
        }
        if let Some(request) = running.request.take() {
            let mut phase = self.phase.borrow_mut();
            let Phase::Open(_, sender) = &mut *phase else {
                return false;
            };
            running.answering = Some(Box::pin(sender.send_request(request)));
            running.before = self.received();
            self.watch_body(!state.whole);
            return true;
        }
        if state.first_byte_ns == 0 && self.received() > running.before {
            state.first_byte_ns = sys::now_ns();
            state.seen = true;
        }
        let mut moved = false;
        if let Some(answering) = running.answering.as_mut() {
            match answering.as_mut().poll(cx) {
                Poll::Pending => return false,
                Poll::Ready(Ok(response)) if response.status().is_informational() => {
                    state.fail(MALFORMED);
                    return true;
                }
                Poll::Ready(Ok(response)) => {
                    running.answering = None;
                    let (parts, body) = response.into_parts();
                    if !short::is_chunked(&parts) {
                        self.watch_body(false);
                    }
                    state.head(parts, &self.kept);
                    running.body = Some(body);
                    moved = true;
                }
                Poll::Ready(Err(e)) => {
                    running.answering = None;
                    state.stale = running.again && state.first_byte_ns == 0;
                    state.fail(if e.is_parse() { MALFORMED } else { RESET_BEFORE });
                    return true;
                }
            }
        }
        let mut pieces = Vec::new();
        let mut size = 0;
        let mut ended = false;
        if let Some(body) = running.body.as_mut() {
            while size < MOST_TAKEN && state.has_room() {
                match Pin::new(&mut *body).poll_frame(cx) {
                    Poll::Pending => break,
                    Poll::Ready(Some(Ok(frame))) => {
                        moved = true;
                        if let Ok(data) = frame.into_data() {
                            size += data.len();
                            running.taken += data.len() as u64;
                            pieces.push(data);
                        }
                        // A reader that is given every piece at once would be called for each: let them come together.
                    }
                    Poll::Ready(Some(Err(e))) => {
                        state.fail(if e.is_parse() { MALFORMED } else { RESET_WITHIN });
                        moved = true;
                        break;
                    }
                    Poll::Ready(None) => {
                        ended = true;
                        break;
                    }
                }
            }
        }
        if !pieces.is_empty() {
            state.came(pieces, exec);
        }
        if ended {
            running.body = None;
            if state.fault.is_none() {
                state.done = true;
                state.paused = false;
            }
            moved = true;
        }
        moved
    }

    /// Relay what can go past hyper. False: hyper must look.
    fn relay_short(&self, gate: &RefCell<Gate>, exec: &Exec) -> bool {
        let slot = self.running.borrow();
        slot.as_ref().is_some_and(|running| {
            running.body.is_some() && short::relay(&mut running.call.lock(), gate, running.taken, exec)
        })
    }

    /// Whether there is more of the answer, for which its reader has no room.
    fn has_rest(&self) -> bool {
        let slot = self.running.borrow();
        slot.as_ref()
            .is_some_and(|running| running.body.is_some() && running.call.lock().paused)
    }

    /// After hyper's turn: tell whoever waits, and say how things stand.
    fn look(&self) -> After {
        let mut slot = self.running.borrow_mut();
        let Some(running) = slot.as_ref() else {
            return After::Idle;
        };
        let call = Arc::clone(&running.call);
        let state = call.lock();
        self.tell(&call, state.has_news());
        if state.fault.is_some() || state.closed && !state.done {
            return After::Broken;
        }
        if state.done {
            slot.take();
            return After::Complete;
        }
        After::Running
    }
}

impl Task for Upstream {
    fn poll(&self, cx: &mut Context<'_>, exec: &Exec) -> Step {
        let turn = exec.turn();
        if self.call().is_some_and(|call| {
            let mut state = call.lock();
            if state.is_deserted() {
                state.fail(CLIENT_GONE);
            }
            state.closed || state.fault.is_some()
        }) {
            self.look();
            return Step::Done;
        }
        match self.connect(turn) {
            Ok(true) => {}
            Ok(false) if self.gate.borrow().as_ref().is_some_and(|gate| gate.borrow().starved) => return Step::Again,
            Ok(false) => return Step::Wait,
            Err(()) => return Step::Done,
        }
        let Some(gate) = self.gate.borrow().clone() else {
            return Step::Done;
        };
        gate.borrow_mut().begin(turn);
        let over = loop {
            if self.relay_short(&gate, exec) {
                break false;
            }
            let ended = match &mut *self.phase.borrow_mut() {
                Phase::Open(http, _) => Pin::new(http.as_mut()).poll(cx).is_ready(),
                Phase::Rest => true,
                _ => return Step::Done,
            };
            let moved = self.advance(cx, exec);
            if ended {
                while self.advance(cx, exec) {}
                break true;
            }
            if !moved {
                break false;
            }
        };
        match self.look() {
            After::Broken => return Step::Done,
            After::Complete if !over => {
                self.idle_since_ns.set(sys::now_ns());
                if !self.pool.upgrade().is_some_and(|pool| pool.give_back(self.key)) {
                    return Step::Done;
                }
            }
            After::Running if over && self.has_rest() => {
                self.phase.replace(Phase::Rest);
                return Step::Wait;
            }
            _ if over => return Step::Done,
            _ => {}
        }
        if gate.borrow().starved {
            Step::Again
        } else {
            Step::Wait
        }
    }

    fn settles(&self) -> bool {
        true
    }

    fn event(&self, ready: Readiness) {
        match self.gate.borrow().as_ref() {
            Some(gate) => gate.borrow_mut().event(ready),
            None => {
                if let Phase::Connecting(connecting) = &*self.phase.borrow() {
                    connecting.event(ready);
                }
            }
        }
    }

    fn close(&self) {
        self.unwatch();
        let begun = self.running.borrow().as_ref().map(|running| {
            let mut state = running.call.lock();
            // It ended before it had as much as taken the request.
            state.stale |= running.again && state.first_byte_ns == 0 && state.fault.is_none();
            state.status > 0
        });
        if let Some(begun) = begun {
            self.fail(if begun { RESET_WITHIN } else { RESET_BEFORE });
        }
        self.phase.replace(Phase::Over);
        self.gate.replace(None);
        if let Some(pool) = self.pool.upgrade() {
            pool.lost(self.key);
        }
    }
}
