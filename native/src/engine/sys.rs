//! The system calls: epoll, and sockets that never block. All `unsafe` of the engine that is not hyper's buffer is here.

use std::cell::Cell;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

fn checked(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// Milliseconds of a clock that never goes back, as coarse as the system's tick (1 to 10 ms), which makes it cheap.
pub fn now_ms() -> u64 {
    let mut at = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `at` outlives the call. It cannot fail: Linux has had this clock since 2.6.32.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC_COARSE, &mut at) };
    at.tv_sec as u64 * 1000 + at.tv_nsec as u64 / 1_000_000
}

/// What epoll said about one socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Readiness {
    pub readable: bool,
    pub writable: bool,
    /// The peer will send no more: its FIN is here (perhaps behind unread bytes).
    pub ended: bool,
    /// Both directions are over, or the connection was reset.
    pub broken: bool,
}

/// An epoll set.
pub struct Poller {
    fd: OwnedFd,
}

/// Events taken per call; what is left comes with the next turn.
const MOST_EVENTS: usize = 256;

impl Poller {
    pub fn new() -> io::Result<Self> {
        // SAFETY: no pointers are passed; the result is checked before it is owned.
        let fd = checked(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })?;
        // SAFETY: `fd` was just opened and nobody else owns it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Self { fd })
    }

    pub fn fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    fn ctl(&self, op: libc::c_int, fd: RawFd, events: libc::c_int, key: u64) -> io::Result<()> {
        let mut event = libc::epoll_event {
            events: events as u32,
            u64: key,
        };
        // SAFETY: `event` lives across the call and the kernel keeps no pointer to it.
        checked(unsafe { libc::epoll_ctl(self.fd.as_raw_fd(), op, fd, &mut event) }).map(drop)
    }

    /// A connection, edge-triggered: it speaks up once when its state changes and costs nothing while it is paused, so
    /// it needs no leaving and joining of the set. Readiness is remembered by the reader until a call would block.
    pub fn add(&self, fd: RawFd, key: u64) -> io::Result<()> {
        let events = libc::EPOLLIN | libc::EPOLLOUT | libc::EPOLLRDHUP | libc::EPOLLET;
        self.ctl(libc::EPOLL_CTL_ADD, fd, events, key)
    }

    /// A listener, level-triggered: what one turn does not accept is still there in the next.
    pub fn add_listener(&self, fd: RawFd, key: u64) -> io::Result<()> {
        self.ctl(libc::EPOLL_CTL_ADD, fd, libc::EPOLLIN, key)
    }

    pub fn remove(&self, fd: RawFd) {
        // Fails only for an fd that is not in the set, and then there is nothing to do.
        let _ = self.ctl(libc::EPOLL_CTL_DEL, fd, 0, 0);
    }

    /// What is ready now, without waiting.
    pub fn take(&self, mut each: impl FnMut(u64, Readiness)) -> io::Result<()> {
        // Not cleared first: that is 3 KiB for what is mostly a handful.
        let mut events = [const { MaybeUninit::<libc::epoll_event>::uninit() }; MOST_EVENTS];
        let room = events.as_mut_ptr().cast();
        // SAFETY: the pointer and the length describe `events`, which outlives the call.
        let n = unsafe { libc::epoll_wait(self.fd.as_raw_fd(), room, MOST_EVENTS as libc::c_int, 0) };
        let n = match checked(n) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => 0,
            other => other?,
        };
        for event in &events[..n as usize] {
            // SAFETY: the system has written the first `n` of them.
            let event = unsafe { event.assume_init_ref() };
            let (bits, key) = (event.events as libc::c_int, event.u64);
            let broken = bits & (libc::EPOLLERR | libc::EPOLLHUP) != 0;
            let ended = broken || bits & libc::EPOLLRDHUP != 0;
            each(
                key,
                Readiness {
                    readable: ended || bits & libc::EPOLLIN != 0,
                    writable: broken || bits & libc::EPOLLOUT != 0,
                    ended,
                    broken,
                },
            );
        }
        Ok(())
    }
}

/// Our own handle of a listening socket that somebody else owns too.
pub fn listener(fd: RawFd) -> io::Result<TcpListener> {
    if fd < 0 {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: borrowed only for this statement, and the caller's fd is open while it calls us; if it were not,
    // duplicating it is an error, not undefined behaviour.
    let owned = unsafe { BorrowedFd::borrow_raw(fd) }.try_clone_to_owned()?;
    let listener = TcpListener::from(owned);
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Monotonic nanoseconds, on the clock of Python's `time.monotonic_ns`.
pub fn now_ns() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` outlives the call. CLOCK_MONOTONIC is always there.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// How far connecting has come.
pub enum Dialing {
    Pending,
    Connected,
    /// What to tell.
    Failed(&'static str),
}

/// A socket on its way to being connected.
pub struct Connecting {
    socket: Option<socket2::Socket>,
    failed: Cell<Option<&'static str>>,
    ready: Cell<bool>,
}

impl Connecting {
    /// No address was tried yet.
    pub fn none() -> Self {
        Self {
            socket: None,
            failed: Cell::new(Some("the upstream's host name could not be resolved")),
            ready: Cell::new(false),
        }
    }

    pub fn begin(address: SocketAddr) -> Self {
        let begun = Self::try_begin(address);
        Self {
            failed: Cell::new(begun.as_ref().err().map(connect_words)),
            socket: begun.ok(),
            ready: Cell::new(false),
        }
    }

    fn try_begin(address: SocketAddr) -> io::Result<socket2::Socket> {
        let domain = socket2::Domain::for_address(address);
        let socket = socket2::Socket::new(domain, socket2::Type::STREAM, Some(socket2::Protocol::TCP))?;
        socket.set_nonblocking(true)?;
        socket.set_tcp_nodelay(true)?;
        match socket.connect(&address.into()) {
            Err(e) if e.raw_os_error() != Some(libc::EINPROGRESS) => Err(e),
            _ => Ok(socket),
        }
    }

    pub fn fd(&self) -> RawFd {
        self.socket.as_ref().map_or(-1, AsRawFd::as_raw_fd)
    }

    pub fn event(&self, ready: Readiness) {
        self.ready.set(self.ready.get() || ready.writable || ready.broken);
    }

    pub fn check(&self) -> Dialing {
        if let Some(words) = self.failed.get() {
            return Dialing::Failed(words);
        }
        let Some(socket) = self.socket.as_ref().filter(|_| self.ready.get()) else {
            return Dialing::Pending;
        };
        match socket.take_error() {
            Ok(None) => Dialing::Connected,
            Ok(Some(e)) | Err(e) => Dialing::Failed(connect_words(&e)),
        }
    }

    pub fn into_socket(self) -> Option<Socket> {
        self.socket.map(|socket| Socket(socket.into()))
    }
}

fn connect_words(e: &io::Error) -> &'static str {
    match e.raw_os_error() {
        Some(libc::ECONNREFUSED) => "connecting to the upstream failed: Connection refused",
        Some(libc::ENETUNREACH) => "connecting to the upstream failed: Network is unreachable",
        Some(libc::EHOSTUNREACH) => "connecting to the upstream failed: No route to host",
        Some(libc::ETIMEDOUT) => "connecting to the upstream failed: Connection timed out",
        Some(libc::ECONNRESET) => "connecting to the upstream failed: Connection reset by peer",
        Some(libc::EMFILE | libc::ENFILE) => "connecting to the upstream failed: Too many open files",
        Some(libc::EADDRNOTAVAIL) => "connecting to the upstream failed: Cannot assign requested address",
        _ => "connecting to the upstream failed",
    }
}

/// What the engine needs of a socket; tests give scripts instead.
pub trait Wire {
    /// Bytes read; 0 at the end. Fewer than asked for: nothing is left, or `more` says otherwise.
    fn recv(&self, buf: &mut [MaybeUninit<u8>]) -> io::Result<usize>;
    /// Bytes taken. Fewer than there are: the socket is full and will say when it has room.
    fn send(&self, bufs: &[IoSlice<'_>]) -> io::Result<usize>;
    /// No more will be sent.
    fn shutdown(&self);
    /// Make the coming close a reset.
    fn reset(&self);
    /// It does more than pass bytes on: what follows means something.
    fn layered(&self) -> bool {
        false
    }
    /// Go on with the handshake. Ok when it is over.
    fn open(&self) -> io::Result<()> {
        Ok(())
    }
    /// Ok when all that `send` took has gone to the socket.
    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
    /// `recv` (or `open`) could go on though the socket may say nothing more.
    fn more(&self) -> bool {
        false
    }
}

pub struct Socket(TcpStream);

impl Socket {
    pub fn new(stream: TcpStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self(stream))
    }

    pub fn fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.0.local_addr().ok()
    }
}

impl Wire for Socket {
    fn recv(&self, buf: &mut [MaybeUninit<u8>]) -> io::Result<usize> {
        // SAFETY: the kernel writes at most `buf.len()` bytes into `buf`, which outlives the call.
        let n = unsafe { libc::recv(self.0.as_raw_fd(), buf.as_mut_ptr().cast(), buf.len(), 0) };
        if n < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(n as usize)
    }

    fn send(&self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        let n = if let [one] = bufs {
            // SAFETY: pointer and length describe `one`, which outlives the call.
            unsafe { libc::send(self.0.as_raw_fd(), one.as_ptr().cast(), one.len(), libc::MSG_NOSIGNAL) }
        } else {
            // SAFETY: msghdr is plain data for which all zeroes is "no name, no control data, no buffers".
            let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
            // IoSlice is documented to have the layout of iovec; the kernel only reads through it.
            message.msg_iov = bufs.as_ptr().cast_mut().cast();
            message.msg_iovlen = bufs.len() as _;
            // SAFETY: `message` and the buffers it names outlive the call.
            unsafe { libc::sendmsg(self.0.as_raw_fd(), &message, libc::MSG_NOSIGNAL) }
        };
        if n < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(n as usize)
    }

    fn shutdown(&self) {
        let _ = self.0.shutdown(std::net::Shutdown::Write);
    }

    fn reset(&self) {
        let linger = libc::linger {
            l_onoff: 1,
            l_linger: 0,
        };
        // SAFETY: pointer and size describe `linger`, which outlives the call.
        unsafe {
            libc::setsockopt(
                self.0.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_LINGER,
                std::ptr::from_ref(&linger).cast(),
                size_of::<libc::linger>() as libc::socklen_t,
            );
        }
    }
}
