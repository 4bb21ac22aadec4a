//! TLS as a wire around another wire: rustls without sockets. `Gate::new(Box::new(Tls::server(..)))` just works.
//!
//! A handshake goes on inside `open`, `recv` and `flush`; all connections of an engine share a `Pace`, so that a burst of
//! handshakes (0.1 to 1 ms of CPU each) takes a bounded part of every turn and the streams keep theirs. Bytes that the
//! socket does not take at once stay in here, at most `MOST_UNSENT`: `flush` says when they are out. What a Wire promises
//! about short reads holds here too, or `more` says otherwise. A peer that ends without close_notify is an error
//! (`UnexpectedEof`), never an end: whoever can cut a connection must not be able to end an answer.

use std::cell::{Cell, RefCell};
use std::io::{self, BufRead, IoSlice, Write as _};
use std::mem::MaybeUninit;
use std::rc::Rc;
use std::sync::Arc;

use rustls::crypto::{ring, CryptoProvider};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{
    CertificateError, ClientConfig, ClientConnection, Connection, RootCertStore, ServerConfig, ServerConnection,
};

use super::sys::Wire;

/// Steps of handshakes in one turn of the loop: one costs up to 1 ms (an RSA signature), a handshake has two.
pub const MOST_STEPS: u32 = 4;
/// Records that one `recv` looks at without finding a byte for its caller: then it is somebody else's turn.
const MOST_EMPTY: u32 = 16;
const MOST_UNSENT: usize = 32 * 1024;
const PIECE: usize = 16 * 1024;
/// rustls takes so much at a time, and a piece of this size never fills its buffer of plain text.
const LEAST_PIECE: usize = 4096;

/// How many steps of handshakes are left in this turn. One for all connections of an engine.
#[derive(Default)]
pub struct Pace(Cell<u32>);

impl Pace {
    /// A new turn.
    pub fn begin(&self) {
        self.0.set(MOST_STEPS);
    }
}

/// The one provider of cryptography, for both sides.
#[must_use]
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// What a listener needs, from PEM: the certificate with its chain, and its key. The error is for people.
pub fn server_config(cert: &[u8], key: &[u8]) -> Result<Arc<ServerConfig>, String> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(cert).collect();
    let chain = chain.map_err(|e| format!("the certificate is not PEM: {e}"))?;
    if chain.is_empty() {
        return Err("the certificate's PEM holds no certificate".into());
    }
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|e| format!("the key is not PEM: {e}"))?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(|e| format!("certificate and key cannot be used: {e}"))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    // Sessions are kept by the clients: nothing of one is left here when its connection is closed.
    config.ticketer = ring::Ticketer::new().map_err(|e| e.to_string())?;
    Ok(Arc::new(config))
}

/// What connections to upstreams need: the authorities they are checked against, as DER. The error is for people.
pub fn client_config(roots: &[Vec<u8>]) -> Result<Arc<ClientConfig>, String> {
    let mut store = RootCertStore::empty();
    let (good, _) = store.add_parsable_certificates(roots.iter().map(|der| CertificateDer::from(der.as_slice())));
    if good == 0 {
        return Err("there is no certificate authority to check upstreams against".into());
    }
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?
        .with_root_certificates(store)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// Why a handshake with an upstream failed.
pub fn handshake_words(e: &io::Error) -> &'static str {
    let inner = e.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match inner {
        Some(rustls::Error::InvalidCertificate(why)) => match why {
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                "the TLS handshake with the upstream failed: its certificate has expired"
            }
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                "the TLS handshake with the upstream failed: its certificate is for another name"
            }
            CertificateError::UnknownIssuer => {
                "the TLS handshake with the upstream failed: its certificate is from an authority that is not trusted"
            }
            _ => "the TLS handshake with the upstream failed: its certificate is not valid",
        },
        _ => "the TLS handshake with the upstream failed",
    }
}

struct State {
    conn: Connection,
    /// Plain text that is ready.
    plain: usize,
    /// close_notify has come.
    closed: bool,
    /// The next call would find something without the socket having said so.
    more: bool,
    closing: bool,
    shut: bool,
    failed: Option<rustls::Error>,
}

pub struct Tls {
    wire: Box<dyn Wire>,
    state: RefCell<State>,
    pace: Rc<Pace>,
}

struct Sink<'a>(&'a dyn Wire);

impl io::Write for Sink<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.0.send(&[IoSlice::new(buf)])
    }
    fn write_vectored(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        self.0.send(bufs)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Tls {
    /// Our side of a client's connection.
    pub fn server(wire: Box<dyn Wire>, config: Arc<ServerConfig>, pace: &Rc<Pace>) -> Result<Self, rustls::Error> {
        Ok(Self::new(wire, ServerConnection::new(config)?.into(), pace))
    }

    /// Our side of a connection to `name`, which the peer's certificate must be for.
    pub fn client(
        wire: Box<dyn Wire>,
        config: Arc<ClientConfig>,
        name: ServerName<'static>,
        pace: &Rc<Pace>,
    ) -> Result<Self, rustls::Error> {
        Ok(Self::new(wire, ClientConnection::new(config, name)?.into(), pace))
    }

    fn new(wire: Box<dyn Wire>, mut conn: Connection, pace: &Rc<Pace>) -> Self {
        conn.set_buffer_limit(Some(MOST_UNSENT));
        let state = State {
            conn,
            plain: 0,
            closed: false,
            more: false,
            closing: false,
            shut: false,
            failed: None,
        };
        Self {
            wire,
            state: RefCell::new(state),
            pace: Rc::clone(pace),
        }
    }

    fn push(&self, state: &mut State) -> io::Result<()> {
        while state.conn.wants_write() {
            match state.conn.write_tls(&mut Sink(&*self.wire)) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                other => other.map(drop)?,
            }
        }
        if state.closing && !state.shut {
            state.shut = true;
            self.wire.shutdown();
        }
        Ok(())
    }

    /// Read once from the socket and take in what came; what is plain goes to `buf`.
    fn pull(&self, state: &mut State, buf: &mut [MaybeUninit<u8>]) -> io::Result<usize> {
        let mut room = [MaybeUninit::uninit(); PIECE];
        // Not more than `buf` has room for: then at most one record's plain text stays in rustls, for which it has room.
        let asked = buf.len().clamp(LEAST_PIECE, PIECE);
        let n = self.wire.recv(&mut room[..asked])?;
        state.more |= n == asked;
        // SAFETY: `recv` has just written the first `n` bytes (Wire's contract), and `n` is at most `asked`.
        let mut came = unsafe { std::slice::from_raw_parts(room.as_ptr().cast::<u8>(), n.min(asked)) };
        let mut taken = 0;
        loop {
            let opening = state.conn.is_handshaking();
            state.conn.read_tls(&mut came)?;
            let result = state.conn.process_new_packets();
            // Only whole messages cost something: they are answered, or they are the last.
            if opening && (result.is_err() || state.conn.wants_write() || !state.conn.is_handshaking()) {
                self.pace.0.set(self.pace.0.get().saturating_sub(1));
            }
            match result {
                Ok(now) => {
                    state.plain = now.plaintext_bytes_to_read();
                    state.closed |= now.peer_has_closed();
                }
                Err(e) => {
                    let _ = self.push(state); // an alert says why
                    state.failed = Some(e);
                    return Ok(taken); // what came before it is good; the next call tells
                }
            }
            taken += drain(state, &mut buf[taken..]);
            if came.is_empty() {
                break;
            }
        }
        match self.push(state) {
            Err(e) if e.kind() != io::ErrorKind::WouldBlock => Err(e),
            _ => Ok(taken),
        }
    }

    /// Go on until there is plain text, the handshake is over (`buf` is empty), the end is reached, or it would block.
    fn step(&self, state: &mut State, buf: &mut [MaybeUninit<u8>]) -> io::Result<usize> {
        state.more = false;
        if state.plain > 0 && !buf.is_empty() {
            state.more = true; // the socket was not asked
            return Ok(drain(state, buf));
        }
        for _ in 0..MOST_EMPTY {
            if let Some(e) = &state.failed {
                return Err(io::Error::new(io::ErrorKind::InvalidData, e.clone()));
            }
            if !state.conn.is_handshaking() && buf.is_empty() {
                return Ok(0);
            }
            if state.closed {
                return Ok(0);
            }
            if state.conn.is_handshaking() && self.pace.0.get() == 0 {
                state.more = true;
                return Err(io::ErrorKind::WouldBlock.into());
            }
            if let Err(e) = self.push(state) {
                if e.kind() != io::ErrorKind::WouldBlock {
                    return Err(e);
                }
            }
            let n = self.pull(state, buf)?;
            if n > 0 {
                state.more |= state.closed || state.failed.is_some();
                return Ok(n);
            }
            // An end that was not announced: rustls says so when it is asked for plain text.
            if let Err(e) = state.conn.reader().fill_buf() {
                if e.kind() != io::ErrorKind::WouldBlock {
                    return Err(e);
                }
            }
        }
        state.more = true;
        Err(io::ErrorKind::WouldBlock.into())
    }
}

/// Move plain text that is ready.
fn drain(state: &mut State, buf: &mut [MaybeUninit<u8>]) -> usize {
    let mut taken = 0;
    while state.plain > 0 && taken < buf.len() {
        let mut reader = state.conn.reader();
        let Ok(data) = reader.fill_buf() else { break };
        let n = data.len().min(buf.len() - taken);
        if n == 0 {
            break;
        }
        for (to, from) in buf[taken..].iter_mut().zip(&data[..n]) {
            to.write(*from);
        }
        reader.consume(n);
        taken += n;
        state.plain -= n;
    }
    taken
}

impl Wire for Tls {
    fn recv(&self, buf: &mut [MaybeUninit<u8>]) -> io::Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        self.step(&mut self.state.borrow_mut(), buf)
    }

    fn send(&self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        let state = &mut *self.state.borrow_mut();
        self.push(state)?;
        if state.conn.is_handshaking() {
            return Err(io::ErrorKind::NotConnected.into());
        }
        let mut sent = 0;
        for buf in bufs {
            let mut rest: &[u8] = buf;
            while !rest.is_empty() {
                let n = state.conn.writer().write(rest)?;
                sent += n;
                rest = &rest[n..];
                if !rest.is_empty() {
                    // It is full. That is the socket's doing, or there is room again now.
                    match self.push(state) {
                        Err(e) if e.kind() == io::ErrorKind::WouldBlock && sent > 0 => return Ok(sent),
                        other => other?,
                    }
                }
            }
        }
        match self.push(state) {
            Err(e) if e.kind() != io::ErrorKind::WouldBlock => Err(e),
            _ => Ok(sent),
        }
    }

    fn shutdown(&self) {
        let state = &mut *self.state.borrow_mut();
        if !state.closing {
            state.closing = true;
            state.conn.send_close_notify();
        }
        let _ = self.push(state);
    }

    fn reset(&self) {
        self.wire.reset();
    }

    fn layered(&self) -> bool {
        true
    }

    fn open(&self) -> io::Result<()> {
        let state = &mut *self.state.borrow_mut();
        self.push(state).or_else(|e| match e.kind() {
            io::ErrorKind::WouldBlock => Ok(()),
            _ => Err(e),
        })?;
        self.step(state, &mut [])?;
        if state.conn.is_handshaking() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        self.push(&mut self.state.borrow_mut())
    }

    fn more(&self) -> bool {
        let state = self.state.borrow();
        state.more || state.plain > 0
    }
}
