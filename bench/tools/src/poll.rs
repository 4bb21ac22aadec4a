//! epoll, non-blocking sockets and the monotonic clock: the only file that talks to the kernel directly.

use std::io;
use std::mem;
use std::net::{SocketAddrV4, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, RawFd};

pub const READ: u32 = libc::EPOLLIN as u32 | libc::EPOLLRDHUP as u32;
pub const WRITE: u32 = libc::EPOLLOUT as u32;

/// Monotonic nanoseconds, comparable between processes of one host.
pub fn now_ns() -> u64 {
    let mut t = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `t` outlives the call.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut t) };
    t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64
}

/// One event: the token given to `add`, and what is ready.
#[derive(Clone, Copy)]
pub struct Ready {
    pub token: u64,
    pub writable: bool,
    pub readable: bool,
}

pub struct Epoll {
    fd: RawFd,
    events: Vec<libc::epoll_event>,
}

impl Epoll {
    pub fn new() -> io::Result<Epoll> {
        // SAFETY: plain system call.
        let fd = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Epoll { fd, events: vec![libc::epoll_event { events: 0, u64: 0 }; 512] })
    }

    pub fn add(&self, fd: RawFd, token: u64, interest: u32) -> io::Result<()> {
        self.ctl(libc::EPOLL_CTL_ADD, fd, token, interest)
    }

    pub fn change(&self, fd: RawFd, token: u64, interest: u32) -> io::Result<()> {
        self.ctl(libc::EPOLL_CTL_MOD, fd, token, interest)
    }

    fn ctl(&self, op: i32, fd: RawFd, token: u64, interest: u32) -> io::Result<()> {
        let mut event = libc::epoll_event { events: interest, u64: token };
        // SAFETY: `event` outlives the call.
        match unsafe { libc::epoll_ctl(self.fd, op, fd, &mut event) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Waits until something is ready or `timeout_ns` has passed (`None`: for ever) and returns what is ready.
    ///
    /// Nanoseconds because a stream's next chunk is due in microseconds: rounding up to epoll's milliseconds would
    /// send the chunks of many streams in bursts.
    pub fn wait(&mut self, timeout_ns: Option<u64>, out: &mut Vec<Ready>) {
        out.clear();
        let limit = timeout_ns
            .map(|ns| libc::timespec { tv_sec: (ns / 1_000_000_000) as i64, tv_nsec: (ns % 1_000_000_000) as i64 });
        let limit_ptr = limit.as_ref().map_or(std::ptr::null(), |t| t as *const libc::timespec);
        // SAFETY: `events` holds `len` entries; `limit` outlives the call; no signal mask is given.
        let mut n = unsafe {
            libc::syscall(
                libc::SYS_epoll_pwait2,
                self.fd,
                self.events.as_mut_ptr(),
                self.events.len() as i32,
                limit_ptr,
                std::ptr::null::<libc::sigset_t>(),
                mem::size_of::<u64>(),
            )
        };
        if n < 0 && io::Error::last_os_error().raw_os_error() == Some(libc::ENOSYS) {
            let ms = timeout_ns.map_or(-1, |ns| ns.div_ceil(1_000_000) as i32);
            // SAFETY: as above; kernels before 5.11.
            n = unsafe { libc::epoll_wait(self.fd, self.events.as_mut_ptr(), self.events.len() as i32, ms) } as i64;
        }
        for event in &self.events[..n.max(0) as usize] {
            let bits = event.events;
            let broken = bits & (libc::EPOLLERR | libc::EPOLLHUP) as u32 != 0;
            out.push(Ready { token: event.u64, writable: bits & WRITE != 0, readable: bits & READ != 0 || broken });
        }
    }
}

/// Starts a connect without waiting for it; the socket turns writable when it is made or has failed.
pub fn connect(to: SocketAddrV4) -> io::Result<TcpStream> {
    // SAFETY: plain system call; the descriptor is owned by the TcpStream at once.
    let sock = unsafe {
        let fd = libc::socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC, 0);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        TcpStream::from_raw_fd(fd)
    };
    sock.set_nodelay(true)?;
    let addr = libc::sockaddr_in {
        sin_family: libc::AF_INET as u16,
        sin_port: to.port().to_be(),
        sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(to.ip().octets()) },
        sin_zero: [0; 8],
    };
    let len = mem::size_of::<libc::sockaddr_in>() as u32;
    // SAFETY: `addr` is a whole sockaddr_in of `len` bytes.
    let rc = unsafe { libc::connect(sock.as_raw_fd(), &addr as *const _ as *const libc::sockaddr, len) };
    let why = io::Error::last_os_error();
    if rc < 0 && why.raw_os_error() != Some(libc::EINPROGRESS) {
        return Err(why);
    }
    Ok(sock)
}

/// A non-blocking loopback listener with a backlog for thousands of connections at once (std's is 128).
pub fn listen(port: u16) -> io::Result<TcpListener> {
    let listener = TcpListener::bind(("127.0.0.1", port))?;
    listener.set_nonblocking(true)?;
    // SAFETY: listen() again only changes the backlog.
    unsafe { libc::listen(listener.as_raw_fd(), 8192) };
    Ok(listener)
}

/// Makes the close of `sock` a reset instead of an orderly end.
pub fn reset_on_close(sock: &TcpStream) {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    // SAFETY: `linger` outlives the call and is of the given size.
    unsafe {
        libc::setsockopt(
            sock.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_LINGER,
            &linger as *const _ as *const libc::c_void,
            mem::size_of::<libc::linger>() as u32,
        )
    };
}

/// Raises the limit of open files to what the system lets us have, and takes away the 50 us by which the kernel may
/// delay our timers: they would be in every latency of the open loop.
pub fn prepare_process() {
    // SAFETY: plain system call.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1u64) };
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` outlives both calls.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) == 0 {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &limit);
        }
    }
}
