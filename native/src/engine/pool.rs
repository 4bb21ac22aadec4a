//! The connections to one upstream origin: a stack of idle ones, so that taking and giving back is a push and a pop.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::{Arc, Weak};
use std::task::Waker;

use http::{HeaderName, Request};
use rustls::pki_types::ServerName;
use rustls::ClientConfig;

use super::call::{Call, DRAINING};
use super::dial::Way;
use super::exec::Exec;
use super::server::Outbox;
use super::sys::Poller;
use super::tls::Pace;
use super::upstream::Upstream;
use super::whole::Whole;

/// Common servers close idle connections after 60 s or more (nginx 75 s, AWS load balancers 60 s): leave before them.
const IDLE_NS: u64 = 55_000_000_000;

/// What lies between the socket and HTTP.
#[derive(Default)]
pub struct Layers {
    /// The request for a tunnel to an egress proxy.
    pub tunnel: Option<Vec<u8>>,
    /// The name that the peer's certificate must be for.
    pub tls: Option<(Arc<ClientConfig>, ServerName<'static>)>,
}

pub struct Pool {
    pub layers: Layers,
    /// By whoever may ask for connections.
    held: Weak<()>,
    most_idle: Cell<usize>,
    /// Best last: the one used last is the one most likely alive.
    idle: RefCell<Vec<u64>>,
    all: RefCell<HashMap<u64, Rc<Upstream>>>,
}

/// What a pool needs of the engine to make a connection.
pub struct Ground<'a> {
    pub exec: &'a Exec,
    pub poller: &'a Rc<Poller>,
    pub outbox: &'a Outbox,
    pub kept: &'a Rc<[HeaderName]>,
    pub pace: &'a Rc<Pace>,
}

impl Pool {
    pub fn new(most_idle: usize, layers: Layers, held: &Arc<()>) -> Rc<Self> {
        Rc::new(Self {
            layers,
            held: Arc::downgrade(held),
            most_idle: Cell::new(most_idle),
            idle: RefCell::default(),
            all: RefCell::default(),
        })
    }

    /// Whether `checkout` may find something.
    pub fn has_idle(&self) -> bool {
        !self.idle.borrow().is_empty()
    }

    /// Whether nobody can ask for a connection any more, and there is none.
    pub fn is_over(&self) -> bool {
        self.held.strong_count() == 0 && self.all.borrow().is_empty()
    }

    /// An idle connection that is still alive.
    pub fn checkout(&self) -> Option<Rc<Upstream>> {
        loop {
            let key = self.idle.borrow_mut().pop()?;
            let found = self.all.borrow().get(&key).cloned();
            if let Some(conn) = found.filter(|conn| conn.is_alive()) {
                return Some(conn);
            }
        }
    }

    /// A new connection that carries `request` when it is there. `make` is given its waker and key, and makes the call.
    pub fn connect(
        self: &Rc<Self>,
        ground: &Ground<'_>,
        way: Way,
        request: Request<Whole>,
        make: impl FnOnce(Waker, u64) -> Arc<Call>,
    ) -> Arc<Call> {
        let (key, waker) = ground.exec.reserve();
        let call = make(waker.clone(), key);
        let poller = Rc::clone(ground.poller);
        let watch = Box::new(move |fd, on| {
            if on {
                poller.add(fd, key)
            } else {
                poller.remove(fd);
                Ok(())
            }
        });
        let conn = Upstream::new(self, way, Arc::clone(&call), request, ground, key, watch);
        self.all.borrow_mut().insert(key, Rc::clone(&conn));
        ground.exec.insert(key, conn);
        waker.wake();
        call
    }

    /// A connection whose answer is complete. False: it is not wanted any more.
    pub fn give_back(&self, key: u64) -> bool {
        let mut idle = self.idle.borrow_mut();
        if idle.len() >= self.most_idle.get() {
            return false;
        }
        idle.push(key);
        true
    }

    /// A connection has gone.
    pub fn lost(&self, key: u64) {
        let gone = self.all.borrow_mut().remove(&key);
        if gone.is_some() {
            let mut idle = self.idle.borrow_mut();
            if let Some(at) = idle.iter().rposition(|k| *k == key) {
                idle.remove(at);
            }
        }
    }

    /// How many connections there are.
    pub fn size(&self) -> usize {
        self.all.borrow().len()
    }

    /// Look at the limits of what is under way, and at those that have been idle for long.
    pub fn tick(&self, exec: &Exec, now_ns: u64) {
        let mut old = Vec::new();
        let forgotten = self.held.strong_count() == 0;
        for (key, conn) in self.all.borrow().iter() {
            match conn.call() {
                Some(call) => {
                    let mut state = call.lock();
                    if let Some(fault) = state.overdue(now_ns) {
                        state.fail(fault);
                        drop(state);
                        conn.waker().wake_by_ref();
                    }
                }
                None if forgotten || now_ns.saturating_sub(conn.idle_since_ns.get()) > IDLE_NS => old.push(*key),
                None => {}
            }
        }
        for key in old {
            exec.remove(key);
        }
    }

    /// Close idle connections, and those in use when their answer is complete.
    pub fn retire(&self, exec: &Exec) {
        self.most_idle.set(0);
        let idle = self.idle.take();
        for key in idle {
            exec.remove(key);
        }
    }

    /// End everything at once.
    pub fn close(&self, exec: &Exec) {
        self.retire(exec);
        for conn in self.all.borrow().values() {
            if let Some(call) = conn.call() {
                call.lock().fail(DRAINING);
                conn.waker().wake_by_ref();
            }
        }
    }
}
