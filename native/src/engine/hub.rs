//! The engine as Python holds it: one epoll set, one listener, the task list, and the three calls that drive them.

use std::cell::{Cell, RefCell};
use std::os::fd::AsRawFd;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use http::HeaderName;
use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyDict;
use rustls::pki_types::ServerName;

use super::call::Call;
use super::exec::{Exec, NEVER};
use super::hooks::{self, Hooks};
use super::origin;
use super::pool::{Layers, Pool};
use super::reactor::{self, os_error, reactor_of, Reactor, LISTENER};
use super::request::Req;
use super::server::{Limits, Outbox};
use super::sys::{self, Poller};
use super::tls::server_config;
use super::wake::Nothing;

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
        let reactor = Reactor {
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
        reactor::add(reactor);
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

    /// Serve `app` on `loop`; `state` is what the app's lifespan left for its requests. An app that has `direct` is called
    /// with it, `await app.direct(request)`, instead of ASGI's scope, receive and send. Failed calls raise
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
        scope.set_item("extensions", extensions)?;
        scope.set_item("state", state)?;
        let local = core.listener.borrow().as_ref().and_then(|l| l.local_addr().ok());
        scope.set_item("server", local.map(|a| (a.ip().to_string(), a.port())))?;
        let tasks = py.import("asyncio.tasks")?;
        let hooks = Hooks {
            direct: app.bind(py).getattr_opt("direct")?.map(Bound::unbind),
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
        hooks::register(core.name, hooks);
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

    /// A pool of connections to one origin, with at most `most_idle` idle ones and answers of at
    /// most `most_answer` bytes. `tls` and the name in the peer's
    /// certificate, where it speaks TLS; `tunnel` is the request for a tunnel, where it is behind an egress proxy.
    #[pyo3(signature = (most_idle, most_answer, tls=None, name=None, tunnel=None))]
    fn pool(
        &self,
        most_idle: usize,
        most_answer: usize,
        tls: Option<&origin::Trust>,
        name: Option<String>,
        tunnel: Option<Vec<u8>>,
    ) -> PyResult<origin::Pool> {
        let core = self.core()?;
        let name = name.map(ServerName::try_from).transpose();
        let name = name.map_err(|_| PyValueError::new_err("the upstream's host name cannot be in a certificate"))?;
        if tls.is_some() != name.is_some() {
            return Err(PyValueError::new_err("TLS needs both authorities and a name"));
        }
        let tls = tls.map(origin::Trust::config).zip(name);
        let held = Arc::new(());
        let id = core.add_pool(Pool::new(most_idle, Layers { tunnel, tls }, &held));
        Ok(origin::Pool {
            engine: self.name,
            id,
            most_answer,
            held,
        })
    }

    /// Pools there are, also those of an old config that have calls under way.
    #[getter]
    fn pools(&self) -> PyResult<usize> {
        Ok(self.core()?.all_pools().len())
    }

    /// Look at the limits of the calls under way; for every 20 ms.
    fn watch(&self, py: Python<'_>) -> PyResult<()> {
        let core = self.core()?;
        let now = sys::now_ns();
        for pool in core.all_pools() {
            pool.tick(&core.exec, now);
        }
        core.forget_pools();
        if core.exec.pending() {
            core.turn(py, false)?;
        }
        Ok(())
    }

    /// End all calls to upstreams.
    fn close_upstream(&self, py: Python<'_>) -> PyResult<()> {
        let core = self.core()?;
        for pool in core.all_pools() {
            pool.close(&core.exec);
        }
        hooks::hooks_of(core.name).map_or(Ok(()), |hooks| hooks.schedule(py))
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
        hooks::hooks_of(core.name).map_or(Ok(()), |hooks| hooks.schedule(py))
    }

    /// End everything at once; requests hear of it in the loop's next turn. Idempotent.
    fn close(slf: &Bound<'_, Self>) -> PyResult<()> {
        let Ok(core) = slf.get().core() else { return Ok(()) };
        core.unlisten();
        core.exec.clear();
        match hooks::hooks_of(core.name) {
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
        if let Some(hooks) = hooks::hooks_of(self.name) {
            if let Err(err) = hooks.swap_timer(py, None) {
                err.write_unraisable(py, None);
            }
        }
        reactor::remove(self.name);
        // The hooks hold `run`, and with it the engine: without this they would keep each other.
        hooks::forget(self.name);
    }
}

impl Engine {
    fn core(&self) -> PyResult<Rc<Reactor>> {
        reactor_of(self.name)
    }
}
