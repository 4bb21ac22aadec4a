//! How a connection to an upstream comes about: one address after the other, a tunnel through an egress proxy, the
//! handshake of TLS, hyper.

use std::cell::RefCell;
use std::future::Future as _;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use hyper::client::conn::http1;

use super::call::{Fault, MALFORMED};
use super::io::{Gate, Io};
use super::sys::{self, Connecting, Socket, Wire};
use super::tls::{handshake_words, Tls};
use super::upstream::Upstream;
use super::whole::Whole;

/// hyper's read buffer at most, and with it the longest head. Real heads are under 8 KiB.
const MOST_BUFFER: usize = 64 * 1024;
/// Real answers have 20 to 40.
const MOST_HEADERS: usize = 256;
const NO_TUNNEL: Fault = ("connect", "the egress proxy did not open the tunnel");

type Http = http1::Connection<Io, Whole>;

/// How a connection comes about.
pub enum Way {
    /// To the first of these (best last) that can be reached.
    Dial(Vec<SocketAddr>),
    /// It is there already, but for its handshake.
    Over(Box<dyn Wire>),
}

/// How far it has come.
pub(super) enum Phase {
    Connecting(Connecting),
    /// The proxy is asked for a tunnel.
    Tunnel(Tunnel),
    /// The handshake of TLS is under way, on `gate`.
    Opening,
    Open(Box<Http>, http1::SendRequest<Whole>),
    /// HTTP is over; what it has read of the answer waits for a reader that is slow.
    Rest,
    Over,
}

/// The proxy is asked for a way to the origin.
pub(super) struct Tunnel {
    socket: Socket,
    sent: usize,
    got: Vec<u8>,
}

impl Upstream {
    /// Whether HTTP may begin; an error is told already.
    pub(super) fn connect(&self, turn: u64) -> Result<bool, ()> {
        if let Phase::Open(..) | Phase::Rest = &*self.phase.borrow() {
            return Ok(true);
        }
        loop {
            let state = match &*self.phase.borrow() {
                Phase::Connecting(connecting) => connecting.check(),
                _ => break,
            };
            match state {
                sys::Dialing::Pending => return Ok(false),
                sys::Dialing::Connected => {
                    let Phase::Connecting(connecting) = self.phase.replace(Phase::Over) else {
                        return Err(());
                    };
                    let Some(socket) = connecting.into_socket() else {
                        return Err(());
                    };
                    let tunnel = self.pool.upgrade().is_some_and(|pool| pool.layers.tunnel.is_some());
                    if !tunnel {
                        self.wrap(socket)?;
                    } else {
                        let tunnel = Tunnel {
                            socket,
                            sent: 0,
                            got: Vec::new(),
                        };
                        self.phase.replace(Phase::Tunnel(tunnel));
                    }
                }
                sys::Dialing::Failed(words) => {
                    self.unwatch();
                    let Some(address) = self.addresses.borrow_mut().pop() else {
                        self.fail(("connect", words));
                        return Err(());
                    };
                    let next = Connecting::begin(address);
                    let fd = next.fd();
                    self.phase.replace(Phase::Connecting(next));
                    if fd >= 0 {
                        self.fd.set(fd);
                        if (self.watch)(fd, true).is_err() {
                            self.fail(("connect", "connecting to the upstream failed: it cannot be watched"));
                            return Err(());
                        }
                    }
                }
            }
        }
        Ok(self.dig()? && self.open(turn)?)
    }

    pub(super) fn unwatch(&self) {
        let fd = self.fd.replace(-1);
        if fd >= 0 {
            let _ = (self.watch)(fd, false);
        }
    }

    /// Ask the proxy for a tunnel. Whether it is there.
    fn dig(&self) -> Result<bool, ()> {
        let Some(pool) = self.pool.upgrade() else {
            return Err(());
        };
        let ask = pool.layers.tunnel.as_deref().unwrap_or_default();
        let mut phase = self.phase.borrow_mut();
        let Phase::Tunnel(tunnel) = &mut *phase else {
            return Ok(true);
        };
        let mut failed = None;
        while tunnel.sent < ask.len() && failed.is_none() {
            match tunnel.socket.send(&[IoSlice::new(&ask[tunnel.sent..])]) {
                Ok(n) => tunnel.sent += n,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => failed = Some(NO_TUNNEL),
            }
        }
        let mut room = [MaybeUninit::uninit(); 4096];
        while failed.is_none() {
            match tunnel.socket.recv(&mut room) {
                Ok(0) => failed = Some(NO_TUNNEL),
                Ok(n) => {
                    // SAFETY: `recv` has just written the first `n` bytes (Wire's contract).
                    let came = unsafe { std::slice::from_raw_parts(room.as_ptr().cast::<u8>(), n.min(room.len())) };
                    tunnel.got.extend_from_slice(came);
                    let end = memchr::memmem::find(&tunnel.got, b"\r\n\r\n");
                    if end.is_some_and(|end| end + 4 == tunnel.got.len()) {
                        if tunnel.got.split(|c| *c == b' ').nth(1) == Some(b"200".as_slice()) {
                            break;
                        }
                        failed = Some(("connect", "the egress proxy refused the tunnel"));
                    } else if end.is_some() || tunnel.got.len() > 16 * 1024 {
                        failed = Some(NO_TUNNEL); // nobody may speak before our handshake
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => failed = Some(NO_TUNNEL),
            }
        }
        let whole = std::mem::replace(&mut *phase, Phase::Over);
        drop(phase);
        if let Some(fault) = failed {
            self.fail(fault);
            return Err(());
        }
        let Phase::Tunnel(tunnel) = whole else { return Err(()) };
        self.wrap(tunnel.socket).map(|()| true)
    }

    /// The socket is there: put TLS around it where the origin speaks it.
    fn wrap(&self, socket: Socket) -> Result<(), ()> {
        let Some(pool) = self.pool.upgrade() else {
            return Err(());
        };
        let wire: Box<dyn Wire> = match &pool.layers.tls {
            None => Box::new(socket),
            Some((config, name)) => match Tls::client(Box::new(socket), Arc::clone(config), name.clone(), &self.pace) {
                Ok(tls) => Box::new(tls),
                Err(_) => {
                    self.fail(("tls", "the TLS handshake with the upstream failed"));
                    return Err(());
                }
            },
        };
        self.gate.replace(Some(Rc::new(RefCell::new(Gate::unguarded(wire)))));
        self.phase.replace(Phase::Opening);
        Ok(())
    }

    /// Handshakes, then HTTP. Whether that may begin.
    fn open(&self, turn: u64) -> Result<bool, ()> {
        let Some(gate) = self.gate.borrow().clone() else {
            return Err(());
        };
        gate.borrow_mut().begin(turn);
        let opened = gate.borrow_mut().open();
        match opened {
            Poll::Pending => return Ok(false),
            Poll::Ready(Ok(())) => {}
            Poll::Ready(Err(e)) => {
                self.fail(("tls", handshake_words(&e)));
                return Err(());
            }
        }
        self.speak(gate).map(|()| true)
    }

    fn speak(&self, gate: Rc<RefCell<Gate>>) -> Result<(), ()> {
        let mut hands = Box::pin(
            http1::Builder::new()
                .max_buf_size(MOST_BUFFER)
                .max_headers(MOST_HEADERS)
                .handshake::<_, Whole>(Io(Rc::clone(&gate))),
        );
        // It only puts things together: ready at once.
        let made = hands.as_mut().poll(&mut Context::from_waker(&self.waker));
        let Poll::Ready(Ok((sender, http))) = made else {
            self.fail(MALFORMED);
            return Err(());
        };
        self.phase.replace(Phase::Open(Box::new(http), sender));
        if let Some(call) = self.call() {
            call.lock().connected = true;
        }
        Ok(())
    }
}
