//! A mutation fuzzer for all that reads bytes of others: the SSE scanner, the readers of chunks and of request fields, the
//! framing guard, a whole server connection, a relay from an upstream to a client, and TLS. It needs no nightly toolchain; each case follows from its number.
//!
//! Runs for TURNOUT_FUZZ_S seconds in all (4 unless told). TURNOUT_FUZZ_FIRST sets the first case's number. Seeds are the
//! excerpts below and, where they are there, the recorded vectors beside the project (or in TURNOUT_FUZZ_DATA). A case that
//! fails is printed with its number and its bytes.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::panic::{catch_unwind, resume_unwind, AssertUnwindSafe};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::StatusCode;

use _native::engine::call::{Call, Relay};
use _native::engine::dial::Way;
use _native::engine::exec::Exec;
use _native::engine::framing::Guard;
use _native::engine::pool::{Ground, Layers, Pool};
use _native::engine::request::{refuse, respond, Got, Req};
use _native::engine::server::{Event, Limits, Outbox, ServerConn};
use _native::engine::sys::{Poller, Readiness, Wire};
use _native::engine::tls::{server_config, Pace, Tls};
use _native::engine::whole::Whole;
use _native::kernels::chunk::Chunk;
use _native::kernels::scan::scan;
use _native::kernels::sse::{Marks, Scanner};

// ---- chance

struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        // splitmix64
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }

    /// A part of `n` bytes, most often a short one.
    fn part(&mut self, n: usize) -> std::ops::Range<usize> {
        let from = self.below(n + 1);
        let most = [1, 4, 32, n][self.below(4)];
        from..(from + self.below(most + 1)).min(n)
    }
}

/// What a byte of others likes to be.
const WORDS: &[&[u8]] = &[
    b"\r\n",
    b"\n",
    b"\r",
    b"\r\n\r\n",
    b"\n\n",
    b"\0",
    b" ",
    b"\t",
    b":",
    b"data: ",
    b"data:",
    b"event: error\n",
    b": ping\n\n",
    b"\xef\xbb\xbf",
    b"[DONE]",
    b"{",
    b"}",
    b"[",
    b"]",
    b"\"",
    b"\\",
    b"\\u0000",
    b"\\ud83d",
    b"1e999",
    b"-0",
    b"null",
    b"\xff",
    b"\xf0\x9f\x98\x80",
    b"\"choices\":[",
    b"\"usage\":{",
    b"\"error\":{}",
    b"\"finish_reason\":\"stop\"",
    b"\"content\":\"x\"",
    b"content-length: 5\r\n",
    b"content-length: 0\r\n",
    b"Content-Length: 18446744073709551615\r\n",
    b"transfer-encoding: chunked\r\n",
    b"Transfer-Encoding: identity\r\n",
    b"connection: close\r\n",
    b"expect: 100-continue\r\n",
    b"upgrade: x\r\n",
    b"0\r\n\r\n",
    b"5\r\nhello\r\n",
    b"ffffffffffffffff\r\n",
    b";a=\"b\"",
    b"HTTP/1.0",
    b"HTTP/1.1",
    b"GET / HTTP/1.1\r\nhost: a\r\n\r\n",
    b"CONNECT a:1 HTTP/1.1\r\n",
];

fn mutate(chance: &mut Chance, seeds: &[Vec<u8>]) -> Vec<u8> {
    let mut data = seeds[chance.below(seeds.len())].clone();
    for _ in 0..chance.below(6) {
        let at = chance.below(data.len() + 1);
        match chance.below(7) {
            0 if at < data.len() => data[at] ^= 1 << chance.below(8),
            1 if at < data.len() => data[at] = chance.next() as u8,
            2 => drop(data.drain(chance.part(data.len()))),
            3 => {
                let copy = data[chance.part(data.len())].to_vec();
                data.splice(at..at, copy);
            }
            4 => {
                let other = &seeds[chance.below(seeds.len())];
                let part = other[chance.part(other.len())].to_vec();
                data.splice(at..at, part);
            }
            5 => data.truncate(at),
            _ => {
                let word = WORDS[chance.below(WORDS.len())];
                data.splice(at..at, word.iter().copied());
            }
        }
        data.truncate(20_000);
    }
    data
}

/// Cut into pieces: all single bytes, equal ones, or as it comes.
fn pieces(chance: &mut Chance, data: &[u8]) -> Vec<Vec<u8>> {
    let mut out = Vec::new();
    let size = [1, 2, 7, 64, 0][chance.below(5)];
    let mut rest = data;
    while !rest.is_empty() {
        let n = if size > 0 { size } else { 1 + chance.below(rest.len()) };
        let (piece, after) = rest.split_at(n.min(rest.len()));
        out.push(piece.to_vec());
        rest = after;
    }
    out
}

// ---- targets

fn stream(pieces: &[Vec<u8>], strip: bool) -> (Vec<u8>, Marks) {
    let mut scanner = Scanner::new(strip);
    let mut out = Vec::new();
    for piece in pieces {
        out.extend_from_slice(scanner.feed(piece).of(piece));
    }
    out.extend_from_slice(&scanner.close());
    (out, scanner.marks)
}

fn sse(data: &[u8], chance: &mut Chance) {
    let strip = chance.below(2) == 0;
    let (whole, mut marks) = stream(&[data.to_vec()], strip);
    let (cut, mut cut_marks) = stream(&pieces(chance, data), strip);
    // Where CR and LF of one line end come apart, one of them may stay behind; the text is the same.
    for marks in [&mut marks, &mut cut_marks] {
        marks.error_event.retain(|c| !b"\r\n".contains(c));
    }
    assert_eq!(marks, cut_marks);
    let text = |out: &[u8]| out.iter().copied().filter(|c| !b"\r\n".contains(c)).collect::<Vec<_>>();
    assert_eq!(text(&whole), text(&cut));
    assert!(whole.len() <= data.len() + 2);
    assert!(!marks.error.as_ref().is_some_and(Vec::is_empty));
}

fn chunk(data: &[u8], _: &mut Chance) {
    if let Ok(chunk) = Chunk::read(data) {
        assert!(chunk.content <= data.len());
        assert!(chunk.with_content as usize <= chunk.choices);
        for part in [chunk.usage, chunk.error, chunk.finish.map(|f| f.0)]
            .into_iter()
            .flatten()
        {
            assert!(part.start <= part.end && part.end <= data.len());
        }
    }
}

fn fields(data: &[u8], _: &mut Chance) {
    let names = [b"model".to_vec(), b"stream".to_vec(), b"messages".to_vec()];
    let mut spans = [0; 6];
    if scan(data, &names, &mut spans).is_ok() {
        for span in spans.chunks(2).filter(|span| span[0] != usize::MAX) {
            assert!(span[0] < span[1] && span[1] <= data.len());
        }
    }
}

fn guarded(pieces: &[Vec<u8>]) -> (usize, bool, bool) {
    let mut guard = Guard::default();
    let mut passed = 0;
    for piece in pieces {
        let mut data = piece.clone();
        let n = guard.pass(&mut data);
        assert!(n <= piece.len());
        passed += n;
        if guard.broken() {
            // What passes is what came, but for the byte that ends a bad head.
            assert!(n == 0 || data[..n - 1] == piece[..n - 1]);
            break;
        }
        assert_eq!((n, &data), (piece.len(), piece));
    }
    (passed, guard.broken(), guard.at_rest())
}

fn guard(data: &[u8], chance: &mut Chance) {
    assert_eq!(guarded(&[data.to_vec()]), guarded(&pieces(chance, data)));
}

/// A socket whose peer's bytes are a script, and then its end.
#[derive(Default)]
struct Peer {
    input: RefCell<VecDeque<Vec<u8>>>,
    output: RefCell<Vec<u8>>,
    /// Every other call blocks.
    blocks: Cell<bool>,
    turn: Cell<bool>,
    /// It has had all, and its end.
    over: Cell<bool>,
}

struct Line(Rc<Peer>);

impl Line {
    fn block(&self) -> io::Result<()> {
        if self.0.blocks.get() && !self.0.turn.replace(!self.0.turn.get()) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(())
    }
}

impl Wire for Line {
    fn recv(&self, buf: &mut [MaybeUninit<u8>]) -> io::Result<usize> {
        self.block()?;
        let mut input = self.0.input.borrow_mut();
        let Some(mut piece) = input.pop_front() else {
            self.0.over.set(true);
            return Ok(0);
        };
        let n = piece.len().min(buf.len());
        for (to, from) in buf.iter_mut().zip(&piece) {
            to.write(*from);
        }
        if n < piece.len() {
            input.push_front(piece.split_off(n));
        }
        Ok(n)
    }
    fn send(&self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        self.block()?;
        bufs.iter()
            .for_each(|b| self.0.output.borrow_mut().extend_from_slice(b));
        Ok(bufs.iter().map(|b| b.len()).sum())
    }
    fn shutdown(&self) {}
    fn reset(&self) {}
}

/// Panics of tasks are caught by the executor: this counts them.
static PANICS: AtomicUsize = AtomicUsize::new(0);

/// A server's connection from its first byte to its end: the bodies that the app was given whole, and the answers.
fn served(pieces: Vec<Vec<u8>>, blocks: bool, tls: bool) -> (Vec<Vec<u8>>, Vec<u8>) {
    thread_local!(static NOW: Cell<u64> = const { Cell::new(0) });
    NOW.set(0);
    let panics = PANICS.load(Ordering::Relaxed);
    let exec = Exec::new(|| NOW.get());
    let outbox = Outbox::default();
    let peer = Rc::new(Peer::default());
    peer.input.replace(pieces.into());
    peer.blocks.set(blocks);
    let pace = Rc::new(Pace::default());
    let mut wire: Box<dyn Wire> = Box::new(Line(Rc::clone(&peer)));
    if tls {
        let config = server_config(
            include_bytes!("../src/engine/testdata/cert.pem"),
            include_bytes!("../src/engine/testdata/key.pem"),
        );
        wire = Box::new(Tls::server(wire, config.unwrap(), &pace).unwrap());
    }
    let (key, waker) = exec.reserve();
    let limits = Limits {
        header_ms: 1000,
        body_ms: 1000,
        idle_ms: 1000,
        most_body: 1 << 20,
    };
    let address: SocketAddr = ([127, 0, 0, 1], 1).into();
    let conn = ServerConn::new(
        wire,
        address,
        (key, waker.clone()),
        Rc::clone(&outbox),
        limits,
        Box::new(|| ()),
    );
    exec.insert(key, Rc::new(conn));
    waker.wake();
    let mut bodies = Vec::new();
    for turn in 0..200_000_u64 {
        let over = peer.over.get();
        exec.event(
            key,
            Readiness {
                readable: true,
                writable: true,
                ended: over,
                broken: false,
            },
        );
        if turn % 1000 == 999 {
            NOW.set(NOW.get() + 200); // whoever waits for more than there is is ended by the clock
        }
        pace.begin();
        exec.begin();
        exec.expire();
        exec.run();
        for event in outbox.take() {
            let (Event::Begin(req, ..) | Event::Receive(req) | Event::Room(req)) = event else {
                continue;
            };
            receive(&req, &mut bodies);
        }
        if exec.live() == 0 {
            assert_eq!(PANICS.load(Ordering::Relaxed), panics, "a task has panicked");
            return (bodies, peer.output.take());
        }
    }
    panic!("the connection never ends");
}

fn receive(req: &Arc<Req>, bodies: &mut Vec<Vec<u8>>) {
    let got = req.lock().take();
    match got {
        Some(Got::Body(chunks, size, more)) => {
            assert!(!more);
            let body = chunks.concat();
            assert_eq!(body.len(), size);
            let response = respond(req, (StatusCode::OK, Vec::new()), Some(body.len() as u64));
            let mut state = req.lock();
            if !state.over {
                state.started = true;
                state.response = Some(response);
                state.push(Bytes::from(body.clone()));
                state.finished = true;
            } else {
                drop(state);
                drop(response);
            }
            bodies.push(body);
            req.waker.wake_by_ref();
        }
        Some(Got::Disconnect) => {
            // An app that ends without having answered.
            let refusal = refuse(req, StatusCode::INTERNAL_SERVER_ERROR);
            let mut state = req.lock();
            if state.finished || state.over {
                drop(state);
                return drop(refusal);
            }
            state.started = true;
            state.finished = true;
            state.response = Some(refusal);
            req.waker.wake_by_ref();
        }
        None => {
            req.lock().watched = true;
            req.waker.wake_by_ref();
        }
    }
}

fn connection(data: &[u8], chance: &mut Chance) {
    let (bodies, output) = served(vec![data.to_vec()], false, false);
    let (cut_bodies, cut_output) = served(pieces(chance, data), chance.below(2) == 0, false);
    // A client that ends while it is being answered may be taken as gone, sooner or later: so one may have seen more.
    let n = bodies.len().min(cut_bodies.len());
    assert_eq!(bodies[..n], cut_bodies[..n]);
    for output in [output, cut_output] {
        assert!(output.is_empty() || output.starts_with(b"HTTP/1.1 ") || output.starts_with(b"HTTP/1.0 "));
    }
    // All that the guard let pass and hyper made of it is framed as the guard saw it.
    let (passed, _, _) = guarded(&[data.to_vec()]);
    assert!(bodies.iter().map(Vec::len).sum::<usize>() <= passed);
}

/// An upstream that says nothing before it was asked.
struct Asked(Line);

impl Wire for Asked {
    fn recv(&self, buf: &mut [MaybeUninit<u8>]) -> io::Result<usize> {
        if self.0 .0.output.borrow().is_empty() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.0.recv(buf)
    }
    fn send(&self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        self.0.send(bufs)
    }
    fn shutdown(&self) {}
    fn reset(&self) {}
}

/// One answer from an upstream, `before` of it read as it comes and the rest relayed to a client: all that was read of it,
/// what the client was sent, and how it ended.
fn relayed(pieces: Vec<Vec<u8>>, blocks: bool) -> (Vec<u8>, Option<&'static str>, bool) {
    let panics = PANICS.load(Ordering::Relaxed);
    let exec = Exec::new(|| 0);
    let outbox = Outbox::default();
    let (client, upstream) = (Rc::new(Peer::default()), Rc::new(Peer::default()));
    client
        .input
        .borrow_mut()
        .push_back(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n".to_vec());
    client.blocks.set(blocks);
    upstream.input.replace(pieces.into());
    upstream.blocks.set(blocks);
    let (at, waker) = exec.reserve();
    let limits = Limits {
        header_ms: 1000,
        body_ms: 1000,
        idle_ms: 1000,
        most_body: 1 << 20,
    };
    let conn = ServerConn::new(
        Box::new(Open(Line(Rc::clone(&client)))),
        ([127, 0, 0, 1], 1).into(),
        (at, waker.clone()),
        Rc::clone(&outbox),
        limits,
        Box::new(|| ()),
    );
    exec.insert(at, Rc::new(conn));
    waker.wake();
    let held = Arc::new(());
    let pool = Pool::new(4, Layers::default(), &held);
    let (poller, pace, kept) = (Rc::new(Poller::new().unwrap()), Rc::default(), Rc::from([]));
    let ground = Ground {
        exec: &exec,
        poller: &poller,
        outbox: &outbox,
        kept: &kept,
        pace: &pace,
    };
    let mut key = 0;
    let way = Way::Over(Box::new(Asked(Line(Rc::clone(&upstream)))));
    let request = http::Request::new(Whole::new(Bytes::from_static(b"{}")));
    let call = pool.connect(&ground, way, request, |waker, its| {
        key = its;
        Call::new(waker, false, 1 << 20)
    });
    let mut to = None;
    for _ in 0..200_000 {
        for (key, peer) in [(at, &client), (key, &upstream)] {
            let ready = Readiness {
                readable: true,
                writable: true,
                ended: peer.over.get() && Rc::ptr_eq(peer, &upstream),
                broken: false,
            };
            exec.event(key, ready);
        }
        pace.begin();
        exec.begin();
        exec.run();
        for event in outbox.take() {
            let Event::Begin(req, ..) = event else { continue };
            let mut state = req.lock();
            state.started = true;
            state.relaying = true;
            state.response = Some(respond(&req, (StatusCode::OK, Vec::new()), None));
            drop(state);
            let mut state = call.lock();
            state.relay = Some(Relay {
                scanner: Arc::new(Mutex::new(Scanner::new(false))),
                to: Arc::clone(&req),
                moved: 0,
                over: false,
            });
            state.relay_waiting(&call.waker);
            to = Some(req);
        }
        let mut state = call.lock();
        let over = state.done || state.fault.is_some();
        if state.relay.as_ref().is_some_and(|relay| relay.over) {
            // Something else than content: the rest of it is Python's.
            drop(state.take());
        }
        drop(state);
        if over {
            let req = to.take().expect("the client came first");
            let mut state = req.lock();
            state.finished = true;
            drop(state);
            req.waker.wake_by_ref();
            for _ in 0..100 {
                exec.event(
                    at,
                    Readiness {
                        readable: true,
                        writable: true,
                        ..Readiness::default()
                    },
                );
                exec.begin();
                exec.run();
            }
            assert_eq!(PANICS.load(Ordering::Relaxed), panics, "a task has panicked");
            let state = call.lock();
            assert!(exec.live() <= 2 && pool.size() <= usize::from(state.done));
            let output = client.output.take();
            return (output, state.fault.map(|fault| fault.0), state.done);
        }
    }
    panic!("the relay never ends");
}

/// A client that stays.
struct Open(Line);

impl Wire for Open {
    fn recv(&self, buf: &mut [MaybeUninit<u8>]) -> io::Result<usize> {
        if self.0 .0.input.borrow().is_empty() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.0.recv(buf)
    }
    fn send(&self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        self.0.send(bufs)
    }
    fn shutdown(&self) {}
    fn reset(&self) {}
}

/// The body out of chunked framing.
fn dechunked(raw: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let Some(head) = raw.windows(4).position(|w| w == b"\r\n\r\n") else {
        return out;
    };
    let mut rest = &raw[head + 4..];
    while let Some(end) = rest.windows(2).position(|w| w == b"\r\n") {
        let n = usize::from_str_radix(std::str::from_utf8(&rest[..end]).unwrap(), 16).unwrap();
        out.extend_from_slice(&rest[end + 2..end + 2 + n]);
        rest = &rest[end + 4 + n..];
    }
    out
}

/// What a client is sent of a stream is what the scanner passes, however both come in pieces.
fn relay(data: &[u8], chance: &mut Chance) {
    let mut raw = match chance.below(3) {
        0 => b"HTTP/1.1 200 OK\r\n\r\n".to_vec(),
        1 => format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", data.len()).into_bytes(),
        _ => b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n".to_vec(),
    };
    let head = raw.len();
    let chunked = raw.windows(7).any(|w| w == b"chunked");
    if chunked {
        for piece in pieces(chance, data) {
            raw.extend(format!("{:x}\r\n", piece.len()).bytes());
            raw.extend(piece);
            raw.extend(b"\r\n");
        }
        raw.extend(b"0\r\n\r\n");
    } else {
        raw.extend_from_slice(data);
    }
    let cut = chance.below(4) == 0;
    if cut {
        raw.truncate(chance.below(raw.len()));
    }
    let (output, fault, done) = relayed(vec![raw.clone()], false);
    let (cut_output, cut_fault, cut_done) = relayed(pieces(chance, &raw), chance.below(2) == 0);
    assert_eq!((fault, done), (cut_fault, cut_done));
    if !cut {
        assert_eq!((fault, done), (None, true));
    }
    assert!(!done || raw.len() >= head);
    // All that the client has is a beginning of what the scanner lets pass; it stops where more than content came.
    let mut scanner = Scanner::new(false);
    let passed = scanner.feed(data).of(data).to_vec();
    let text = |out: &[u8]| out.iter().copied().filter(|c| !b"\r\n".contains(c)).collect::<Vec<_>>();
    for output in [output, cut_output] {
        assert!(text(&passed).starts_with(&text(&dechunked(&output))));
    }
}

fn handshake(data: &[u8], chance: &mut Chance) {
    let (bodies, output) = served(pieces(chance, data), chance.below(2) == 0, true);
    assert!(bodies.is_empty());
    // Records only: a handshake's or an alert's, nothing in the clear.
    assert!(output.is_empty() || [20, 21, 22].contains(&output[0]), "{output:?}");
}

// ---- seeds

fn own(words: &[&str]) -> Vec<Vec<u8>> {
    words.iter().map(|w| w.as_bytes().to_vec()).collect()
}

fn base64(text: &str) -> Vec<u8> {
    let mut out = Vec::new();
    let (mut bits, mut n) = (0_u32, 0);
    for c in text.bytes() {
        let value = match c {
            b'A'..=b'Z' => c - b'A',
            b'a'..=b'z' => c - b'a' + 26,
            b'0'..=b'9' => c - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => break,
        };
        bits = bits << 6 | u32::from(value);
        n += 6;
        if n >= 8 {
            n -= 8;
            out.push((bits >> n) as u8);
        }
    }
    out
}

/// All base64 texts of a file of recorded vectors, one row a seed. Empty where the file is not there.
fn recorded(file: &str) -> Vec<Vec<u8>> {
    let beside = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared/data");
    let folder = std::env::var_os("TURNOUT_FUZZ_DATA").map_or(beside, PathBuf::from);
    let Ok(text) = std::fs::read_to_string(folder.join(file)) else {
        println!("{file} is not beside the project: fuzzing without it");
        return Vec::new();
    };
    let seeds = text.lines().map(|line| {
        let (_, texts) = line.split_once("_b64\": ")?;
        let texts = texts
            .split_once("\", \"")
            .map_or(texts, |(first, rest)| if texts.starts_with('[') { rest } else { first });
        Some(texts.split('"').flat_map(base64).collect::<Vec<u8>>())
    });
    let mut seeds: Vec<_> = seeds.flatten().collect();
    for seed in &mut seeds {
        seed.truncate(4096);
    }
    seeds
}

type Target = (&'static str, fn(&[u8], &mut Chance), Vec<Vec<u8>>);

fn targets() -> Vec<Target> {
    let mut streams = own(&[
        "data: {\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}\n\ndata: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"h\\u00e9 \\ud83d\\ude00\"}}]}\n\ndata: {\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}\n\ndata: {\"choices\":[],\"usage\":{\"prompt_tokens\":7,\"completion_tokens\":3,\"total_tokens\":10}}\n\ndata: [DONE]\n\n",
        "\u{feff}: ping\r\n\r\nevent: x\r\ndata: {\"choices\":[{\"delta\":{\"tool_calls\":[{\"index\":0,\"function\":{\"name\":\"f\",\"arguments\":\"{\"}}]}}]}\r\n\r\ndata: {\"error\":{\"message\":\"overloaded\",\"code\":529}}\r\n\r\n",
        "data: noise\n\ndata: {broken\n\ndata: {\"a\":1}\ndata: \ndata:{}\n\rid: 5\r\r",
    ]);
    streams.extend(recorded("sse/sse_vectors.jsonl"));
    streams.extend(recorded("sse/llm_stream_damage.jsonl"));
    let mut requests = own(&[
        "GET / HTTP/1.1\r\nhost: a\r\n\r\n",
        "POST /x HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nhelloPOST /y HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\n{}",
        "POST /x HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n1\r\n!\r\n0\r\nx: y\r\n\r\nGET / HTTP/1.0\r\n\r\n",
        "POST /x HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 3\r\n\r\nabc",
        "GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n",
        "\r\n\r\nCONNECT a:443 HTTP/1.1\r\nhost: a\r\n\r\n",
    ]);
    requests.extend(recorded("http1/h1_vectors.jsonl"));
    let json = own(&[
        "{\"model\":\"fast\",\"stream\":true,\"messages\":[{\"role\":\"user\",\"content\":\"a\\\"b\\u1234\"}],\"x\":[1,-2.5e3,null,false]}",
        " { \"id\" : \"c\" , \"choices\":[{\"index\":0,\"delta\":{\"content\":\"x\"},\"finish_reason\":\"st\\u006fp\"}],\"usage\":{\"prompt_tokens\":1} } ",
        "{\"error\":\"no\"}",
        "{}",
    ]);
    let hello = base64(HELLO);
    vec![
        ("relay", relay, streams.clone()),
        ("sse", sse, streams),
        ("chunk", chunk, json.clone()),
        ("fields", fields, json),
        ("guard", guard, requests.clone()),
        ("connection", connection, requests),
        ("handshake", handshake, vec![hello]),
    ]
}

/// A ClientHello of OpenSSL 3, TLS 1.2 and 1.3.
const HELLO: &str = "FgMBAgABAAH8AwMzTR7/nYsnbgJ7l1KZ+vDJc/HhziAATbDpxrIwm85nnSCH/4BQyN3xgf+6682h2gh59cPU+tH2Nr9KnUK8rLTpxwAkEwITAxMBwCzAMMArwC/MqcyowCTAKMAjwCcAnwCeAGsAZwD/AQABjwAAABEADwAADGdhdGV3YXkudGVzdAALAAQDAAECAAoAFgAUAB0AFwAeABkAGAEAAQEBAgEDAQQAIwAAABAACwAJCGh0dHAvMS4xABYAAAAXAAAADQAqACgEAwUDBgMIBwgICAkICggLCAQIBQgGBAEFAQYBAwMDAQMCBAIFAgYCACsABQQDBAMDAC0AAgEBADMAJgAkAB0AIMiwvVMQdON6i2k9tShoOSXrK6kNl4tL0wLVC/ot3StvABUA0gAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

#[test]
fn bytes_of_others_do_no_harm() {
    let number = |name: &str, or: u64| std::env::var(name).ok().and_then(|v| v.parse().ok()).unwrap_or(or);
    let (seconds, first) = (number("TURNOUT_FUZZ_S", 4), number("TURNOUT_FUZZ_FIRST", 0));
    let tell = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        PANICS.fetch_add(1, Ordering::Relaxed);
        tell(info);
    }));
    let targets = targets();
    let share = Duration::from_secs(seconds) / targets.len() as u32;
    for (name, check, seeds) in targets {
        let began = Instant::now();
        let mut case = first;
        while began.elapsed() < share || case < first + 50 {
            let mut chance = Chance(case);
            let data = mutate(&mut chance, &seeds);
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| check(&data, &mut chance))) {
                println!("target {name}, case {case}: {}", data.escape_ascii());
                resume_unwind(panic);
            }
            case += 1;
        }
        println!("{name}: {} cases from {} seeds", case - first, seeds.len());
    }
}
