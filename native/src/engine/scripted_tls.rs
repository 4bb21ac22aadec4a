//! TLS without sockets: the server's connection against rustls' own client, over scripts that block at every call, give
//! and take a few bytes at a time, and are cut off. What comes out is what comes out without TLS.

use std::cell::{Cell, RefCell};
use std::io::{self, IoSlice, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore};

use super::io::Gate;
use super::request::Req;
use super::scripted::{answer, post, Bench, Handle, Script};
use super::sys::{Readiness, Wire};
use super::tls::{provider, server_config, Pace, Tls, MOST_STEPS};

const CA: &[u8] = include_bytes!("testdata/ca.pem");
const CERT: &[u8] = include_bytes!("testdata/cert.pem");
const KEY: &[u8] = include_bytes!("testdata/key.pem"); // made for these tests, used nowhere else

fn client_config(ca: &[u8]) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(ca).unwrap()).unwrap();
    let config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    Arc::new(config)
}

fn name(name: &str) -> ServerName<'static> {
    ServerName::try_from(name.to_owned()).unwrap()
}

/// A server's connection with TLS, and a client of it.
struct Pair {
    bench: Bench,
    client: ClientConnection,
    /// Bytes that the client gives at a time.
    size: usize,
    got: Vec<u8>,
    closed: bool,
}

impl Pair {
    fn new(size: usize, room: usize, blocks: bool) -> Self {
        let script = Rc::new(Script::default());
        script.room.set(room);
        script.blocks.set(blocks);
        let pace = Rc::new(Pace::default());
        let config = server_config(CERT, KEY).unwrap();
        let wire = Tls::server(Box::new(Handle(Rc::clone(&script))), config, &pace).unwrap();
        let mut bench = Bench::over(Box::new(wire), script);
        bench.pace = pace;
        Self {
            bench,
            client: ClientConnection::new(client_config(CA), name("gateway.test")).unwrap(),
            size,
            got: Vec::new(),
            closed: false,
        }
    }

    /// Both sides go on until neither has anything to say.
    fn settle(&mut self, app: &dyn Fn(&Arc<Req>, &[u8])) {
        loop {
            self.bench.settle(app);
            let sent = self.bench.script.output.take();
            let mut rest: &[u8] = &sent;
            while !rest.is_empty() {
                self.client.read_tls(&mut rest).unwrap();
                self.closed |= self.client.process_new_packets().unwrap().peer_has_closed();
                let mut buf = [0; 4096];
                while let Ok(n @ 1..) = self.client.reader().read(&mut buf) {
                    self.got.extend_from_slice(&buf[..n]);
                }
            }
            let mut raw = Vec::new();
            while self.client.wants_write() {
                self.client.write_tls(&mut raw).unwrap();
            }
            if raw.is_empty() {
                return;
            }
            let pieces = raw.chunks(self.size).map(<[u8]>::to_vec);
            self.bench.script.input.borrow_mut().extend(pieces);
            self.edge(false);
        }
    }

    fn edge(&self, ended: bool) {
        let readable = Readiness {
            readable: true,
            ended,
            ..Readiness::default()
        };
        self.bench.exec.event(self.bench.key, readable);
    }
}

fn everywhere(check: impl Fn(Pair)) {
    for size in [1, 7, 512, usize::MAX >> 1] {
        for room in [1, 300, usize::MAX] {
            for blocks in [false, true] {
                check(Pair::new(size, room, blocks));
            }
        }
    }
}

#[test]
fn requests_and_answers_pass_in_pieces_of_any_size() {
    let long = vec![b'q'; 40_000];
    everywhere(|mut pair| {
        let app = |req: &Arc<Req>, body: &[u8]| answer(req, &[body], true);
        pair.settle(&app);
        assert!(!pair.client.is_handshaking());
        for n in 0..3 {
            pair.client
                .writer()
                .write_all(&post(format!("body {n}").as_bytes()))
                .unwrap();
        }
        pair.client.writer().write_all(&post(&long)).unwrap();
        pair.settle(&app);
        let bodies: Vec<&[u8]> = pair.bench.bodies.iter().map(Vec::as_slice).collect();
        assert_eq!(bodies, [&b"body 0"[..], b"body 1", b"body 2", &long]);
        let text = String::from_utf8(pair.got.clone()).unwrap();
        assert_eq!(text.matches("HTTP/1.1 200 OK").count(), 4);
        assert!(text.ends_with(&"q".repeat(40_000)));
        assert!(!pair.closed && !pair.bench.closed.get());
        // The client says goodbye: so do we.
        pair.client.send_close_notify();
        pair.settle(&|_, _| {});
        assert!(pair.bench.closed.get());
        assert!(pair.closed);
        assert_eq!(pair.bench.exec.live(), 0);
    });
}

#[test]
fn an_answer_that_is_cut_never_ends_cleanly() {
    everywhere(|mut pair| {
        pair.client.writer().write_all(&post(b"{}")).unwrap();
        pair.settle(&|req, _| answer(req, &[b"one", b"two"], false));
        let text = String::from_utf8(pair.got.clone()).unwrap();
        assert!(text.ends_with("\r\n\r\n3\r\none\r\n3\r\ntwo\r\n"), "{text}");
        assert!(pair.bench.script.shut.get());
    });
}

#[test]
fn an_end_without_goodbye_in_a_body_is_a_disconnect() {
    everywhere(|mut pair| {
        let raw = post(b"hello");
        pair.client.writer().write_all(&raw[..raw.len() - 2]).unwrap();
        pair.settle(&|_, _| panic!("acted on"));
        pair.bench.script.ended.set(true);
        pair.edge(true);
        pair.settle(&|_, _| panic!("acted on"));
        assert!(pair.bench.disconnects > 0);
    });
}

#[test]
fn what_is_no_tls_is_ended_with_an_alert() {
    let mut pair = Pair::new(1000, usize::MAX, true);
    pair.bench.script.input.borrow_mut().push_back(post(b"plain"));
    pair.edge(false);
    pair.bench.settle(&|_, _| panic!("acted on"));
    assert!(pair.bench.closed.get() || pair.bench.script.shut.get());
    let sent = pair.bench.script.output.take();
    assert_eq!(sent.first(), Some(&21)); // an alert record, and nothing in the clear
    assert!(!sent.windows(4).any(|w| w == b"HTTP"));
}

#[test]
fn a_turn_has_so_many_steps_of_handshakes_and_no_more() {
    let config = server_config(CERT, KEY).unwrap();
    let pace = Rc::new(Pace::default());
    let mut gates = Vec::new();
    for _ in 0..10 {
        let script = Rc::new(Script::default());
        script.room.set(usize::MAX);
        let mut client = ClientConnection::new(client_config(CA), name("gateway.test")).unwrap();
        let mut hello = Vec::new();
        client.write_tls(&mut hello).unwrap();
        script.input.borrow_mut().push_back(hello);
        let wire = Tls::server(Box::new(Handle(Rc::clone(&script))), Arc::clone(&config), &pace).unwrap();
        gates.push((script, Gate::new(Box::new(wire))));
    }
    let mut turns = 0;
    while gates.iter().any(|(script, _)| script.output.borrow().is_empty()) {
        pace.begin();
        let before = gates
            .iter()
            .filter(|(script, _)| script.output.borrow().is_empty())
            .count();
        for (script, gate) in &mut gates {
            gate.begin(turns + 1);
            if script.output.borrow().is_empty() {
                assert!(matches!(gate.open(), Poll::Pending));
                // Either it has answered, or it says that it wants another turn.
                assert!(gate.starved || !script.output.borrow().is_empty());
            }
        }
        let after = gates
            .iter()
            .filter(|(script, _)| script.output.borrow().is_empty())
            .count();
        assert_eq!(before - after, before.min(MOST_STEPS as usize));
        turns += 1;
    }
    assert_eq!(turns, 3);
}

/// One end of a pipe in memory.
struct End(Rc<RefCell<Vec<u8>>>, Rc<RefCell<Vec<u8>>>, Cell<bool>);

impl Wire for End {
    fn recv(&self, buf: &mut [MaybeUninit<u8>]) -> io::Result<usize> {
        let mut from = self.0.borrow_mut();
        // Every other call blocks.
        if from.is_empty() || self.2.replace(!self.2.get()) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let n = from.len().min(buf.len());
        for (to, from) in buf.iter_mut().zip(from.drain(..n)) {
            to.write(from);
        }
        Ok(n)
    }
    fn send(&self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        bufs.iter().for_each(|b| self.1.borrow_mut().extend_from_slice(b));
        Ok(bufs.iter().map(|b| b.len()).sum())
    }
    fn shutdown(&self) {}
    fn reset(&self) {}
}

/// The client's side as the upstream uses it: `open`, then bytes; and what it says of a peer that it must not trust.
fn meet(ca: &[u8], whom: &str) -> Result<(), io::Error> {
    let (a, b) = (Rc::new(RefCell::new(Vec::new())), Rc::new(RefCell::new(Vec::new())));
    let pace = Rc::new(Pace::default());
    let ours = End(Rc::clone(&a), Rc::clone(&b), Cell::new(false));
    let mut client = Gate::new(Box::new(
        Tls::client(Box::new(ours), client_config(ca), name(whom), &pace).unwrap(),
    ));
    let theirs = End(b, a, Cell::new(false));
    let mut server = Gate::new(Box::new(
        Tls::server(Box::new(theirs), server_config(CERT, KEY).unwrap(), &pace).unwrap(),
    ));
    let mut done = (false, false);
    for turn in 1..100 {
        pace.begin();
        for (gate, done) in [(&mut client, &mut done.0), (&mut server, &mut done.1)] {
            gate.begin(turn);
            gate.event(Readiness {
                readable: true,
                ..Readiness::default()
            });
            if !*done {
                match gate.open() {
                    Poll::Ready(result) => {
                        result?;
                        *done = true;
                    }
                    Poll::Pending => {}
                }
            }
        }
        if done == (true, true) {
            return Ok(());
        }
    }
    panic!("they never come to an end");
}

#[test]
fn a_client_opens_only_to_whom_it_trusts() {
    meet(CA, "gateway.test").unwrap();
    for (ca, whom) in [(CA, "other.test"), (CERT, "gateway.test")] {
        let error = meet(ca, whom).unwrap_err();
        let told = error.get_ref().and_then(|e| e.downcast_ref::<rustls::Error>()).unwrap();
        assert!(matches!(told, rustls::Error::InvalidCertificate(_)), "{told}");
    }
}

#[test]
fn a_key_of_another_certificate_is_refused() {
    assert!(server_config(CA, KEY).unwrap_err().contains("certificate and key"));
    assert!(server_config(b"", KEY).unwrap_err().contains("no certificate"));
    assert!(server_config(CERT, b"nonsense").unwrap_err().contains("key is not PEM"));
}
