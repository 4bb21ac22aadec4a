//! One engine: its epoll set, its listener, its tasks and pools, and the turn that drives them all.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsRawFd;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::task::Waker;

use http::{HeaderName, Request};
use pyo3::exceptions::{PyOSError, PyRuntimeError};
use pyo3::prelude::*;
use rustls::ServerConfig;

use super::asgi;
use super::call::Call;
use super::client;
use super::dial::Way;
use super::exec::Exec;
use super::hooks::{self, Hooks};
use super::pool::{Ground, Pool};
use super::server::{Event, Limits, Outbox, ServerConn};
use super::sys::{Poller, Socket, Wire};
use super::tls::{Pace, Tls};
use super::whole::Whole;

pub const LISTENER: u64 = u64::MAX;
const MOST_ACCEPTS: u32 = 32;
/// How often in one turn what Python has set going is looked at: request in, request up, answer out.
const ROUNDS: u32 = 4;
/// How long no connection is accepted after the system refused one (no file descriptors, no memory).
const PAUSE_MS: u64 = 100;

pub fn os_error(e: io::Error) -> PyErr {
    PyOSError::new_err(e.to_string())
}

thread_local! {
    /// The engines of this thread. Python's object only names one: whichever thread collects it, nothing of the engine
    /// is touched there.
    static ENGINES: RefCell<Vec<Rc<Reactor>>> = const { RefCell::new(Vec::new()) };
}

pub struct Reactor {
    pub(super) name: u64,
    pub(super) poller: Rc<Poller>,
    pub(super) exec: Exec,
    pub(super) outbox: Outbox,
    pub(super) listener: RefCell<Option<TcpListener>>,
    pub(super) listening: Cell<bool>,
    pub(super) paused_until_ms: Cell<u64>,
    /// What the loop's timer is set to.
    pub(super) timer_ms: Cell<u64>,
    /// Connections of clients.
    pub(super) clients: Rc<Cell<usize>>,
    pub(super) most_connections: usize,
    pub(super) limits: Limits,
    pub(super) tls: RefCell<Option<Arc<ServerConfig>>>,
    pub(super) pace: Rc<Pace>,
    /// By number, and the next one.
    pub(super) pools: RefCell<(HashMap<usize, Rc<Pool>>, usize)>,
    pub(super) kept: RefCell<Rc<[HeaderName]>>,
}

pub fn add(reactor: Reactor) {
    ENGINES.with_borrow_mut(|all| all.push(Rc::new(reactor)));
}

pub fn remove(name: u64) {
    let gone = ENGINES.with_borrow_mut(|all| {
        all.iter()
            .position(|one| one.name == name)
            .map(|at| all.swap_remove(at))
    });
    drop(gone);
}

/// This thread's engine of that name.
pub fn reactor_of(name: u64) -> PyResult<Rc<Reactor>> {
    ENGINES
        .with_borrow(|all| all.iter().find(|one| one.name == name).cloned())
        .ok_or_else(|| PyRuntimeError::new_err("the engine is closed, or of another thread"))
}

/// The engine is at work. However that ends: afterwards it can be asked again.
struct Busy<'a>(&'a Hooks);

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.scheduled.store(false, Ordering::Release);
    }
}

impl Reactor {
    pub fn pool(&self, id: usize) -> PyResult<Rc<Pool>> {
        let pools = self.pools.borrow();
        let found = pools.0.get(&id).cloned();
        found.ok_or_else(|| PyRuntimeError::new_err("no such pool"))
    }

    pub fn add_pool(&self, pool: Rc<Pool>) -> usize {
        let mut pools = self.pools.borrow_mut();
        let id = pools.1;
        pools.1 += 1;
        pools.0.insert(id, pool);
        id
    }

    pub fn all_pools(&self) -> Vec<Rc<Pool>> {
        self.pools.borrow().0.values().cloned().collect()
    }

    /// Drop those of old configs, once they have nothing under way.
    pub fn forget_pools(&self) {
        self.pools.borrow_mut().0.retain(|_, pool| !pool.is_over());
    }

    pub fn retire(&self, id: usize) -> PyResult<()> {
        self.pool(id)?.retire(&self.exec);
        Ok(())
    }

    pub fn dial(
        &self,
        pool: &Rc<Pool>,
        addresses: Vec<SocketAddr>,
        request: Request<Whole>,
        make: impl FnOnce(Waker) -> Arc<Call>,
    ) -> Arc<Call> {
        let kept = self.kept.borrow().clone();
        let ground = Ground {
            exec: &self.exec,
            poller: &self.poller,
            outbox: &self.outbox,
            kept: &kept,
            pace: &self.pace,
        };
        pool.connect(&ground, Way::Dial(addresses), request, |waker, _| make(waker))
    }

    /// Poll tasks and tell Python what came out, until nothing is marked or the turn is over.
    pub(super) fn turn(&self, py: Python<'_>, look: bool) -> PyResult<()> {
        let Some(hooks) = hooks::hooks_of(self.name) else {
            return Ok(());
        };
        hooks.scheduled.store(true, Ordering::Release); // what is marked in here needs no call: it is looked at below
        let busy = Busy(&hooks);
        if look {
            if let Err(e) = self.look() {
                os_error(e).write_unraisable(py, None);
            }
        }
        self.exec.begin();
        self.pace.begin();
        for _ in 0..ROUNDS {
            self.exec.run();
            if !self.deliver(py) {
                break;
            }
        }
        if !self.listening.get() && self.exec.clock.now_ms() >= self.paused_until_ms.get() {
            self.listen();
        }
        self.set_timer(py, &hooks)?;
        drop(busy);
        if self.exec.pending() {
            hooks.schedule(py)?;
        }
        Ok(())
    }

    /// One timer of the loop for the next slot of the wheel. It is moved forward only: one that comes for nothing does no
    /// harm, and is rarer than what would move it.
    fn set_timer(&self, py: Python<'_>, hooks: &Hooks) -> PyResult<()> {
        let Some(next) = self.exec.next_ms().filter(|next| *next < self.timer_ms.get()) else {
            return Ok(());
        };
        self.timer_ms.set(next);
        // The clock may be behind by its grain.
        let wait_s = (next.saturating_sub(self.exec.clock.now_ms()) + 5) as f64 / 1000.0;
        let timer = hooks.call_later.call1(py, (wait_s, &hooks.tick))?;
        hooks.swap_timer(py, Some(timer))
    }

    /// Take what epoll has.
    fn look(&self) -> io::Result<()> {
        let mut knocking = false;
        self.poller.take(|key, ready| {
            if key == LISTENER {
                knocking = true;
            } else {
                self.exec.event(key, ready);
            }
        })?;
        if knocking {
            self.accept();
        }
        Ok(())
    }

    /// Hand out what the tasks have left for Python. Nothing is borrowed while it runs. Whether there was something.
    pub(super) fn deliver(&self, py: Python<'_>) -> bool {
        let Some(hooks) = hooks::hooks_of(self.name) else {
            return false;
        };
        let events = self.outbox.take();
        let any = !events.is_empty();
        for event in events {
            match event {
                Event::Begin(req, parts, peer) => asgi::begin(py, self.name, &hooks, req, parts, peer),
                Event::Receive(req) => asgi::deliver(py, &req),
                Event::Room(req) => asgi::release(py, &req),
                Event::Call(call) => client::deliver(py, self.name, &call),
            }
        }
        any
    }

    pub(super) fn unlisten(&self) {
        self.listening.set(false);
        if let Some(listener) = self.listener.take() {
            self.poller.remove(listener.as_raw_fd());
        }
    }

    fn accept(&self) {
        let listener = self.listener.borrow();
        let Some(listener) = listener.as_ref() else { return };
        for _ in 0..MOST_ACCEPTS {
            if self.clients.get() >= self.most_connections {
                self.deafen(listener, 0);
                return;
            }
            let (stream, peer) = match listener.accept() {
                Ok(accepted) => accepted,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Err(e) => match e.raw_os_error() {
                    Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM) => {
                        self.deafen(listener, PAUSE_MS);
                        return;
                    }
                    _ => continue, // the client gave up in the meantime, or something of that kind
                },
            };
            let Ok(socket) = Socket::new(stream) else { continue };
            let fd = socket.fd();
            let mut wire: Box<dyn Wire> = Box::new(socket);
            if let Some(config) = self.tls.borrow().as_ref() {
                match Tls::server(wire, Arc::clone(config), &self.pace) {
                    Ok(tls) => wire = Box::new(tls),
                    Err(_) => continue,
                }
            }
            let (key, waker) = self.exec.reserve();
            if self.poller.add(fd, key).is_err() {
                self.exec.remove(key);
                continue;
            }
            let poller = Rc::clone(&self.poller);
            let clients = Rc::clone(&self.clients);
            clients.set(clients.get() + 1);
            let leave = Box::new(move || {
                poller.remove(fd);
                clients.set(clients.get() - 1);
            });
            let conn = ServerConn::new(
                wire,
                peer,
                (key, waker.clone()),
                Rc::clone(&self.outbox),
                self.limits,
                leave,
            );
            self.exec.insert(key, Rc::new(conn));
            waker.wake();
        }
    }

    /// Do not listen until there is room, and for some time at least.
    fn deafen(&self, listener: &TcpListener, ms: u64) {
        self.poller.remove(listener.as_raw_fd());
        self.listening.set(false);
        let until = self.exec.clock.now_ms() + ms;
        self.paused_until_ms.set(until);
        self.exec.wake_at(until);
    }

    fn listen(&self) {
        if self.listening.get() || self.clients.get() >= self.most_connections {
            return;
        }
        if let Some(listener) = self.listener.borrow().as_ref() {
            self.listening
                .set(self.poller.add_listener(listener.as_raw_fd(), LISTENER).is_ok());
        }
    }
}
