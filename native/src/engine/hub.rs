//! The engine as Python holds it: one epoll set, one listener, the task list, and the three calls that drive them.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsRawFd;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::Waker;

use http::{HeaderName, Request};
use pyo3::exceptions::{PyOSError, PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyDict;
use rustls::pki_types::ServerName;
use rustls::ServerConfig;

use super::asgi::{self, Hooks, Nothing};
use super::call::Call;
use super::client;
use super::exec::{Exec, NEVER};
use super::pool::{Ground, Layers, Pool};
use super::request::Req;
use super::server::{Event, Limits, Outbox, ServerConn};
use super::sys::{self, Poller, Socket, Wire};
use super::tls::{server_config, Pace, Tls};
use super::upstream::Whole;

const LISTENER: u64 = u64::MAX;
const MOST_ACCEPTS: u32 = 32;
/// How often in one turn what Python has set going is looked at: request in, request up, answer out.
const ROUNDS: u32 = 4;
/// How long no connection is accepted after the system refused one (no file descriptors, no memory).
const PAUSE_MS: u64 = 100;

fn os_error(e: io::Error) -> PyErr {
    PyOSError::new_err(e.to_string())
}

thread_local! {
    /// The engines of this thread. Python's object only names one: whichever thread collects it, nothing of the engine
    /// is touched there.
    static ENGINES: RefCell<Vec<Rc<Core>>> = const { RefCell::new(Vec::new()) };
}

static NAMES: AtomicU64 = AtomicU64::new(1);

/// An HTTP/1.1 server for one ASGI app on a listening socket (of which it makes a handle of its own).
///
/// The loop calls `turn` when `fileno()` is readable, and `run` and `tick` when the engine asked for it with `call_soon`
/// and `call_later`. Only the thread that made it may use it; it lasts until `close`.
#[pyclass(frozen)]
pub struct Engine {
    name: u64,
}

#[pymethods]
impl Engine {
    #[new]
    #[pyo3(signature = (fd, *, max_connections, header_timeout_ms, body_timeout_ms, idle_timeout_ms, max_body_bytes))]
    fn new(
        fd: i32,
        max_connections: usize,
        header_timeout_ms: u64,
        body_timeout_ms: u64,
        idle_timeout_ms: u64,
        max_body_bytes: usize,
    ) -> PyResult<Self> {
        let poller = Poller::new().map_err(os_error)?;
        let listener = sys::listener(fd).map_err(os_error)?;
        poller.add_listener(listener.as_raw_fd(), LISTENER).map_err(os_error)?;
        let name = NAMES.fetch_add(1, Ordering::Relaxed);
        let core = Core {
            name,
            poller: Rc::new(poller),
            exec: Exec::new(sys::now_ms),
            outbox: Outbox::default(),
            listener: RefCell::new(Some(listener)),
            listening: Cell::new(true),
            paused_until_ms: Cell::new(0),
            timer_ms: Cell::new(NEVER),
            clients: Rc::default(),
            most_connections: max_connections,
            limits: Limits {
                header_ms: header_timeout_ms,
                body_ms: body_timeout_ms,
                idle_ms: idle_timeout_ms,
                most_body: max_body_bytes.saturating_add(1),
            },
            pools: RefCell::default(),
            kept: RefCell::new(Rc::new([])),
            tls: RefCell::default(),
            pace: Rc::default(),
        };
        ENGINES.with_borrow_mut(|all| all.push(Rc::new(core)));
        Ok(Self { name })
    }

    /// Whether this certificate (with its chain) and key, both PEM, can be served with. Raises ValueError.
    #[staticmethod]
    fn check_tls(cert: &[u8], key: &[u8]) -> PyResult<()> {
        server_config(cert, key).map(drop).map_err(PyValueError::new_err)
    }

    /// TLS for all connections from now on. Raises ValueError, and then all stays as it is.
    fn set_tls(&self, cert: &[u8], key: &[u8]) -> PyResult<()> {
        let config = server_config(cert, key).map_err(PyValueError::new_err)?;
        self.core()?.tls.replace(Some(config));
        Ok(())
    }

    /// Serve `app` on `loop`; `state` is what the app's lifespan left for its requests. Failed calls raise
    /// `fault(kind, message)`.
    fn start(
        slf: &Bound<'_, Self>,
        app: Py<PyAny>,
        r#loop: &Bound<'_, PyAny>,
        state: &Bound<'_, PyDict>,
        fault: Py<PyAny>,
    ) -> PyResult<()> {
        let py = slf.py();
        let core = slf.get().core()?;
        let scope = PyDict::new(py);
        let asgi = PyDict::new(py);
        asgi.set_item("version", "3.0")?;
        asgi.set_item("spec_version", "2.3")?;
        scope.set_item("type", "http")?;
        scope.set_item("asgi", asgi)?;
        scope.set_item("http_version", "1.1")?;
        let scheme = if core.tls.borrow().is_some() { "https" } else { "http" };
        scope.set_item("scheme", scheme)?;
        scope.set_item("root_path", "")?;
        let extensions = PyDict::new(py);
        extensions.set_item("turnout.relay", PyDict::new(py))?;
        extensions.set_item("turnout.reply", PyDict::new(py))?;
        scope.set_item("extensions", extensions)?;
        scope.set_item("state", state)?;
        let local = core.listener.borrow().as_ref().and_then(|l| l.local_addr().ok());
        scope.set_item("server", local.map(|a| (a.ip().to_string(), a.port())))?;
        let tasks = py.import("asyncio.tasks")?;
        let hooks = Hooks {
            app,
            fault,
            r#loop: r#loop.clone().unbind(),
            enter_task: tasks.getattr("_enter_task")?.unbind(),
            leave_task: tasks.getattr("_leave_task")?.unbind(),
            call_soon: r#loop.getattr("call_soon")?.unbind(),
            report: r#loop.getattr("call_exception_handler")?.unbind(),
            call_later: r#loop.getattr("call_later")?.unbind(),
            run: slf.getattr("run")?.unbind(),
            tick: slf.getattr("tick")?.unbind(),
            timer: Mutex::default(),
            scope: scope.unbind(),
            nothing: Py::new(py, Nothing)?,
            thread: std::thread::current().id(),
            scheduled: AtomicBool::new(false),
        };
        asgi::register(core.name, hooks);
        Ok(())
    }

    fn fileno(&self) -> PyResult<i32> {
        Ok(self.core()?.poller.fd())
    }

    /// Connections of clients there are now, idle ones too.
    #[getter]
    fn connections(&self) -> PyResult<usize> {
        Ok(self.core()?.clients.get())
    }

    /// Requests of this process that are not over or that somebody still holds.
    #[getter]
    fn requests(&self) -> usize {
        Req::live()
    }

    /// Requests to upstreams that are not over or that somebody still holds, in this process.
    #[getter]
    fn calls(&self) -> usize {
        Call::live()
    }

    /// The headers of upstream answers that are kept, by their lower-case names.
    fn keep(&self, names: Vec<Vec<u8>>) -> PyResult<()> {
        let names: Result<Vec<_>, _> = names.iter().map(|name| HeaderName::from_bytes(name)).collect();
        let names = names.map_err(|_| PyRuntimeError::new_err("a header's name is not valid"))?;
        self.core()?.kept.replace(names.into());
        Ok(())
    }

    /// A pool of connections to one origin, with at most `most_idle` idle ones. `tls` and the name in the peer's
    /// certificate, where it speaks TLS; `tunnel` is the request for a tunnel, where it is behind an egress proxy.
    #[pyo3(signature = (most_idle, tls=None, name=None, tunnel=None))]
    fn pool(
        &self,
        most_idle: usize,
        tls: Option<&client::Trust>,
        name: Option<String>,
        tunnel: Option<Vec<u8>>,
    ) -> PyResult<client::Pool> {
        let core = self.core()?;
        let name = name.map(ServerName::try_from).transpose();
        let name = name.map_err(|_| PyValueError::new_err("the upstream's host name cannot be in a certificate"))?;
        let tls = tls.map(client::Trust::config).zip(name);
        let mut pools = core.pools.borrow_mut();
        pools.push(Pool::new(most_idle, Layers { tunnel, tls }));
        Ok(client::Pool {
            engine: self.name,
            id: pools.len() - 1,
        })
    }

    /// Look at the limits of the calls under way; for every 20 ms.
    fn watch(&self, py: Python<'_>) -> PyResult<()> {
        let core = self.core()?;
        let pools = core.pools.borrow().clone();
        let now = sys::now_ns();
        for pool in pools {
            pool.tick(&core.exec, now);
        }
        if core.exec.pending() {
            core.turn(py, false)?;
        }
        Ok(())
    }

    /// End all calls to upstreams.
    fn close_upstream(&self, py: Python<'_>) -> PyResult<()> {
        let core = self.core()?;
        let pools = core.pools.borrow().clone();
        for pool in pools {
            pool.close(&core.exec);
        }
        asgi::hooks_of(core.name).map_or(Ok(()), |hooks| hooks.schedule(py))
    }

    /// Take what is ready and do it.
    fn turn(&self, py: Python<'_>) -> PyResult<()> {
        self.core()?.turn(py, true)
    }

    /// Go on with what was marked since.
    fn run(&self, py: Python<'_>) -> PyResult<()> {
        // It may have been closed since it asked to be called.
        self.core().map_or(Ok(()), |core| core.turn(py, false))
    }

    /// The loop's timer: something may be due.
    fn tick(&self, py: Python<'_>) -> PyResult<()> {
        let Ok(core) = self.core() else { return Ok(()) };
        core.timer_ms.set(NEVER);
        core.exec.begin();
        core.exec.expire();
        core.turn(py, false)
    }

    /// Accept nobody any more, close idle connections, and the others after their answer.
    fn drain(&self, py: Python<'_>) -> PyResult<()> {
        let core = self.core()?;
        core.unlisten();
        core.exec.drain();
        // The caller may be a task: others go on from the loop.
        asgi::hooks_of(core.name).map_or(Ok(()), |hooks| hooks.schedule(py))
    }

    /// End everything at once; requests hear of it in the loop's next turn. Idempotent.
    fn close(slf: &Bound<'_, Self>) -> PyResult<()> {
        let Ok(core) = slf.get().core() else { return Ok(()) };
        core.unlisten();
        core.exec.clear();
        match asgi::hooks_of(core.name) {
            Some(hooks) => hooks.call_soon.bind(slf.py()).call1((slf.getattr("bury")?,)).map(drop),
            None => {
                slf.get().bury(slf.py());
                Ok(())
            }
        }
    }

    /// After `close`: the last events, then nothing is left of it.
    fn bury(&self, py: Python<'_>) {
        let Ok(core) = self.core() else { return };
        core.deliver(py);
        if let Some(hooks) = asgi::hooks_of(self.name) {
            if let Err(err) = hooks.swap_timer(py, None) {
                err.write_unraisable(py, None);
            }
        }
        ENGINES.with_borrow_mut(|all| all.retain(|one| one.name != self.name));
        // The hooks hold `run`, and with it the engine: without this they would keep each other.
        asgi::forget(self.name);
    }
}

impl Engine {
    fn core(&self) -> PyResult<Rc<Core>> {
        core_of(self.name)
    }
}

pub struct Core {
    name: u64,
    poller: Rc<Poller>,
    exec: Exec,
    outbox: Outbox,
    listener: RefCell<Option<TcpListener>>,
    listening: Cell<bool>,
    paused_until_ms: Cell<u64>,
    /// What the loop's timer is set to.
    timer_ms: Cell<u64>,
    /// Connections of clients.
    clients: Rc<Cell<usize>>,
    most_connections: usize,
    limits: Limits,
    tls: RefCell<Option<Arc<ServerConfig>>>,
    pace: Rc<Pace>,
    pools: RefCell<Vec<Rc<Pool>>>,
    kept: RefCell<Rc<[HeaderName]>>,
}

/// This thread's engine of that name.
pub fn core_of(name: u64) -> PyResult<Rc<Core>> {
    ENGINES
        .with_borrow(|all| all.iter().find(|one| one.name == name).cloned())
        .ok_or_else(|| PyRuntimeError::new_err("the engine is closed, or of another thread"))
}

impl Core {
    pub fn pool(&self, id: usize) -> PyResult<Rc<Pool>> {
        let pools = self.pools.borrow();
        let found = pools.get(id).cloned();
        found.ok_or_else(|| PyRuntimeError::new_err("no such pool"))
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
        pool.dial(&ground, addresses, request, make)
    }

    /// Poll tasks and tell Python what came out, until nothing is marked or the turn is over.
    fn turn(&self, py: Python<'_>, look: bool) -> PyResult<()> {
        let Some(hooks) = asgi::hooks_of(self.name) else {
            return Ok(());
        };
        hooks.scheduled.store(true, Ordering::Release); // what is marked in here needs no call: it is looked at below
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
        hooks.scheduled.store(false, Ordering::Release);
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
    fn deliver(&self, py: Python<'_>) -> bool {
        let Some(hooks) = asgi::hooks_of(self.name) else {
            return false;
        };
        let events = self.outbox.take();
        let any = !events.is_empty();
        for event in events {
            match event {
                Event::Begin(req, parts, peer) => asgi::begin(py, self.name, &hooks, req, &parts, peer),
                Event::Receive(req) => asgi::deliver(py, &req),
                Event::Room(req) => asgi::release(py, &req),
                Event::Call(call) => client::deliver(py, self.name, &call),
            }
        }
        any
    }

    fn unlisten(&self) {
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
            let conn = ServerConn::new(wire, peer, waker.clone(), Rc::clone(&self.outbox), self.limits, leave);
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
