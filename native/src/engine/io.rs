//! Bytes between a socket and hyper: readiness is remembered, work per turn is bounded, framing is checked on the way.

use std::cell::RefCell;
use std::io::{self, IoSlice, Write as _};
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use hyper::rt::{Read, ReadBufCursor, Write};

use super::framing::Guard;
use super::sys::{Readiness, Wire};

/// Per connection and turn; then the others have theirs.
const MOST_READS: u32 = 16;
const MOST_BYTES: usize = 64 * 1024;
/// Of an upstream at a time. hyper's buffer grows when a read fills it: so it stays at 16 KiB, of which a stream whose
/// client is slow holds two.
const MOST_OF_UPSTREAM: usize = 16 * 1024 - 1;
/// Writes up to here are put together into one buffer: cheaper than a vector of small pieces (head, chunk size, chunk).
const GATHER: usize = 16 * 1024;

/// One socket's state, shared by hyper's side (`Io`) and the connection's.
pub struct Gate {
    wire: Box<dyn Wire>,
    /// The wire is more than a socket: it holds bytes back, has a handshake.
    layered: bool,
    pub guard: Guard,
    /// Bytes read at a time.
    most: usize,
    readable: bool,
    writable: bool,
    /// The peer's FIN has come in, perhaps behind unread bytes.
    pub ended: bool,
    /// Reset, or over in both directions.
    pub broken: bool,
    turn: u64,
    reads: u32,
    bytes: usize,
    /// It wanted to read on but had had its share.
    pub starved: bool,
    /// All that was written has gone to the socket.
    pub flushed: bool,
    /// The end was read: it stays the end.
    at_end: bool,
    /// Read, but left to hyper.
    behind: Vec<u8>,
    /// Of a chunk that was written past hyper: goes out before anything else.
    ahead: Vec<u8>,
    /// Bytes read in all.
    pub received: u64,
}

impl Gate {
    pub fn new(wire: Box<dyn Wire>) -> Self {
        Self {
            layered: wire.layered(),
            wire,
            guard: Guard::default(),
            most: MOST_BYTES,
            // Taken as ready until the socket says otherwise: the first edge may be older than our place in the set.
            readable: true,
            writable: true,
            ended: false,
            broken: false,
            turn: 0,
            reads: 0,
            bytes: 0,
            starved: false,
            flushed: true,
            at_end: false,
            behind: Vec::new(),
            ahead: Vec::new(),
            received: 0,
        }
    }

    /// For an upstream's side: its framing is hyper's to judge.
    pub fn unguarded(wire: Box<dyn Wire>) -> Self {
        Self {
            guard: Guard::off(),
            most: MOST_OF_UPSTREAM,
            ..Self::new(wire)
        }
    }

    pub fn event(&mut self, ready: Readiness) {
        self.readable |= ready.readable;
        self.writable |= ready.writable;
        self.ended |= ready.ended;
        self.broken |= ready.broken;
    }

    pub fn begin(&mut self, turn: u64) {
        if self.turn != turn {
            self.turn = turn;
            self.reads = 0;
            self.bytes = 0;
        }
        self.starved = false;
    }

    /// Whether hyper has sent the request, and all it was given of the answer are whole chunks with `taken` bytes.
    pub fn is_between_chunks(&self, taken: u64) -> bool {
        self.flushed && self.behind.is_empty() && self.guard.between_chunks() == Some(taken)
    }

    /// Bytes that hyper shall read next.
    pub fn give_back(&mut self, data: &[u8]) {
        self.behind.extend_from_slice(data);
    }

    /// Bytes that have come, at most as many as a connection may read in one turn. Pending: none, or not now.
    pub fn recv(&mut self, buf: &mut [MaybeUninit<u8>]) -> Poll<io::Result<usize>> {
        if !self.behind.is_empty() {
            let n = self.behind.len().min(buf.len());
            for (to, from) in buf.iter_mut().zip(self.behind.drain(..n)) {
                to.write(from);
            }
            return Poll::Ready(Ok(n));
        }
        if self.at_end {
            return Poll::Ready(Ok(0));
        }
        if !self.readable {
            return Poll::Pending;
        }
        if self.reads >= MOST_READS || self.bytes >= MOST_BYTES {
            self.starved = true;
            return Poll::Pending;
        }
        loop {
            match self.wire.recv(buf) {
                Ok(n) => {
                    self.reads += 1;
                    self.bytes += n;
                    self.received += n as u64;
                    self.at_end = n == 0 && !buf.is_empty();
                    // Less than asked for: nothing is left (epoll(7)), except a FIN that came together with the bytes.
                    if n > 0 && n < buf.len() && !self.ended {
                        self.readable = self.layered && self.wire.more();
                    }
                    return Poll::Ready(Ok(n));
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    self.readable = self.layered && self.wire.more();
                    self.starved |= self.readable;
                    return Poll::Pending;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Poll::Ready(Err(e)),
            }
        }
    }

    /// One chunk of a body past hyper, which must have nothing to send itself. False: it cannot go now, nothing of it was
    /// taken. What the socket has no room for goes out before hyper's next bytes.
    pub fn chunk(&mut self, data: &[u8]) -> bool {
        if !self.flushed || !self.writable || self.broken || data.is_empty() {
            return false;
        }
        let mut whole = Vec::with_capacity(data.len() + 20);
        let _ = write!(whole, "{:X}\r\n", data.len()); // into memory: cannot fail
        whole.extend_from_slice(data);
        whole.extend_from_slice(b"\r\n");
        let Poll::Ready(Ok(n)) = self.send(&[IoSlice::new(&whole)], whole.len()) else {
            self.flushed = true;
            return false; // an error comes again where hyper meets it
        };
        if n < whole.len() {
            whole.drain(..n);
            self.ahead = whole;
        } else {
            let _ = self.flush();
        }
        true
    }

    fn send(&mut self, bufs: &[IoSlice<'_>], total: usize) -> Poll<io::Result<usize>> {
        self.flushed = false;
        match self.send_ahead() {
            Poll::Ready(Ok(())) => self.put(bufs, total),
            Poll::Ready(Err(e)) => Poll::Ready(Err(e)),
            Poll::Pending => Poll::Pending,
        }
    }

    fn send_ahead(&mut self) -> Poll<io::Result<()>> {
        while !self.ahead.is_empty() {
            let ahead = std::mem::take(&mut self.ahead);
            let sent = self.put(&[IoSlice::new(&ahead)], ahead.len());
            self.ahead = ahead;
            match sent {
                Poll::Ready(Ok(n)) => drop(self.ahead.drain(..n)),
                Poll::Ready(Err(e)) => return Poll::Ready(Err(e)),
                Poll::Pending => return Poll::Pending,
            }
        }
        Poll::Ready(Ok(()))
    }

    fn put(&mut self, bufs: &[IoSlice<'_>], total: usize) -> Poll<io::Result<usize>> {
        if !self.writable {
            return Poll::Pending;
        }
        loop {
            match self.wire.send(bufs) {
                Ok(n) => {
                    if n < total {
                        self.writable = false; // the kernel notes that we met a full buffer and tells when there is room
                    }
                    return Poll::Ready(Ok(n));
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    self.writable = false;
                    return Poll::Pending;
                }
                // Its handshake is still under way. The end of that comes with something to read, and then we are asked.
                Err(e) if e.kind() == io::ErrorKind::NotConnected && self.layered => return Poll::Pending,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Poll::Ready(Err(e)),
            }
        }
    }

    /// Go on with the wire's handshake, if it has one; an error is final. Once ready it stays so.
    pub fn open(&mut self) -> Poll<io::Result<()>> {
        if !self.layered {
            return Poll::Ready(Ok(()));
        }
        if !self.readable {
            let sent = self.flush(); // our part of it may still be in here
            return if let Poll::Ready(Err(e)) = sent {
                Poll::Ready(Err(e))
            } else {
                Poll::Pending
            };
        }
        match self.wire.open() {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                self.readable = self.wire.more();
                self.starved |= self.readable;
                Poll::Pending
            }
            other => Poll::Ready(other),
        }
    }

    /// Whether all that was written has gone to the socket; it goes on with what has not.
    fn flush(&mut self) -> Poll<io::Result<()>> {
        match self.send_ahead() {
            Poll::Ready(Ok(())) => {}
            other => return other,
        }
        if self.layered {
            if !self.writable {
                return Poll::Pending;
            }
            match self.wire.flush() {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    self.writable = false;
                    return Poll::Pending;
                }
                other => other?,
            }
        }
        self.flushed = true;
        Poll::Ready(Ok(()))
    }

    /// Bytes that a layer has taken and not sent yet. It goes on with them.
    pub fn holds(&mut self) -> bool {
        self.layered && !matches!(self.flush(), Poll::Ready(_))
    }

    /// Read and forget, so that a close does not become a reset that destroys our last words. True: the end is reached.
    pub fn discard(&mut self) -> bool {
        let held = self.holds();
        let mut buf = [MaybeUninit::uninit(); 16 * 1024];
        loop {
            match self.recv(&mut buf) {
                Poll::Ready(Ok(0)) => return !held,
                Poll::Ready(Err(_)) => return true,
                Poll::Ready(Ok(_)) => {}
                Poll::Pending => return false,
            }
        }
    }

    /// Whether there is something in the socket that nobody has read. (It is read and lost: nobody will.)
    pub fn has_unread(&mut self) -> bool {
        let mut buf = [MaybeUninit::uninit(); 64];
        matches!(self.recv(&mut buf), Poll::Ready(Ok(n)) if n > 0) || self.starved
    }

    /// A few bytes on a socket on which nothing else is under way; what does not fit is lost.
    pub fn say(&mut self, bytes: &[u8]) {
        let _ = self.wire.send(&[IoSlice::new(bytes)]);
    }

    pub fn shutdown(&self) {
        self.wire.shutdown();
    }

    pub fn reset(&self) {
        self.wire.reset();
    }
}

/// What hyper holds.
pub struct Io(pub Rc<RefCell<Gate>>);

impl Read for Io {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, mut buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        let mut gate = self.0.borrow_mut();
        if gate.guard.broken() {
            return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
        }
        // SAFETY: nothing is read from it before it was written, and nothing is uninitialised again: `recv` only writes.
        let room = unsafe { buf.as_mut() };
        let most = room.len().min(gate.most);
        let n = match gate.recv(&mut room[..most]) {
            Poll::Ready(Ok(n)) => n,
            Poll::Ready(Err(e)) => return Poll::Ready(Err(e)),
            Poll::Pending => return Poll::Pending,
        };
        // SAFETY: `recv` has just written the first `n` bytes (Wire's contract), `n` is at most `most`.
        let came = unsafe { std::slice::from_raw_parts_mut(room.as_mut_ptr().cast::<u8>(), n.min(most)) };
        let passed = gate.guard.pass(came);
        if n > 0 && passed == 0 {
            // Refused from its first byte on, in a body: an end of file here would be something else.
            return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
        }
        // SAFETY: at most the `n` bytes that were written.
        unsafe { buf.advance(passed) };
        Poll::Ready(Ok(()))
    }
}

impl Write for Io {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.0.borrow_mut().send(&[IoSlice::new(buf)], buf.len())
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_write_vectored(self: Pin<&mut Self>, _: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let total = bufs.iter().map(|b| b.len()).sum();
        let mut gate = self.0.borrow_mut();
        if bufs.len() > 1 && total <= GATHER && gate.writable {
            let mut whole = Vec::with_capacity(total);
            for buf in bufs {
                whole.extend_from_slice(buf);
            }
            return gate.send(&[IoSlice::new(&whole)], total);
        }
        gate.send(bufs, total)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.borrow_mut().flush()
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.borrow().shutdown();
        Poll::Ready(Ok(()))
    }
}
