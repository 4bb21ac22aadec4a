//! The mock upstream: an OpenAI wire that does what the model name asks for (see `plan.rs`).
//!
//! `GET /__stats` gives the counters, any other GET `{"status":"ok"}`. One event of a stream is one `write`.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;

use memchr::memmem;
use turnout_bench::args::{refuse, Args};
use turnout_bench::http::{self, Body, Framing, Head};
use turnout_bench::plan::{plan, strikes, Fault, Plan};
use turnout_bench::poll::{self, now_ns, Epoll, Ready};
use turnout_bench::timers::Timers;
use turnout_bench::wire::{self, Events};

const USAGE: &str = "mock [--port P] [--tick-us T]
  P 0 (the default) takes a free port; prints `listening 127.0.0.1:PORT`. T: see `tick_ns`, default 1000.";
const LISTENER: u64 = u64::MAX;

/// The content chunks a stream still owes.
struct Stream {
    plan: Plan,
    begin_ns: u64,
    sent: u32,
    usage: bool,
    fault: Option<Fault>,
}

struct Conn {
    sock: TcpStream,
    token: u64,
    input: Vec<u8>,
    /// What the client has not taken yet; empty almost always.
    output: Vec<u8>,
    stream: Option<Stream>,
    silent: bool,
}

#[derive(Default)]
struct Stats {
    requests: u64,
    plain: u64,
    streams: u64,
    streams_done: u64,
    chunks: u64,
    closed_early: u64,
    f503: u64,
    f429: u64,
    rst: u64,
    silent: u64,
}

struct Mock {
    epoll: Epoll,
    listener: TcpListener,
    conns: Vec<Option<Conn>>,
    free: Vec<usize>,
    generation: u32,
    timers: Timers<u64>,
    events: Events,
    plain: Vec<u8>,
    ok: Vec<u8>,
    /// Streams begin on multiples of this, so the chunks of those that meet on one leave together: as from a network
    /// card, and cheaper than one wake-up of an idle core each (nginx takes 18 us a chunk at 1 ms, 38 at none).
    tick_ns: u64,
    stats: Stats,
}

/// A request: where its body is in the input, and how many bytes of input it took.
struct Request {
    is_get: bool,
    is_stats: bool,
    body: Vec<u8>,
    took: usize,
}

fn main() {
    let args = Args::read(&["port", "tick-us"], &["help"], USAGE);
    if args.has("help") {
        return println!("{USAGE}");
    }
    poll::prepare_process();
    let listener = poll::listen(args.number("port", 0)).unwrap_or_else(|why| refuse(&format!("listen: {why}"), ""));
    let epoll = Epoll::new().unwrap_or_else(|why| refuse(&format!("epoll: {why}"), ""));
    let added = epoll.add(listener.as_raw_fd(), LISTENER, poll::READ);
    let addr = added.and_then(|()| listener.local_addr()).unwrap_or_else(|why| refuse(&format!("listen: {why}"), ""));
    println!("listening {addr}");
    let mock = Mock {
        epoll,
        listener,
        conns: Vec::new(),
        free: Vec::new(),
        generation: 0,
        timers: Timers::default(),
        events: Events::default(),
        plain: wire::plain_answer(),
        ok: wire::answer(200, "OK", "", r#"{"status":"ok"}"#),
        tick_ns: args.number::<u64>("tick-us", 1000).max(1) * 1000,
        stats: Stats::default(),
    };
    mock.run()
}

impl Mock {
    fn run(mut self) -> ! {
        let (mut ready, mut scratch) = (Vec::new(), vec![0; 256 * 1024]);
        loop {
            while let Some(token) = self.timers.due(now_ns()) {
                self.advance(token);
            }
            self.epoll.wait(self.timers.wait_ns(now_ns()), &mut ready);
            for event in &ready {
                match event.token {
                    LISTENER => self.accept(),
                    _ => self.on_ready(*event, &mut scratch),
                }
            }
        }
    }

    fn accept(&mut self) {
        while let Ok((sock, _)) = self.listener.accept() {
            let slot = self.free.pop().unwrap_or_else(|| {
                self.conns.push(None);
                self.conns.len() - 1
            });
            self.generation = self.generation.wrapping_add(1) & 0x7fff_ffff; // never LISTENER
            let token = (self.generation as u64) << 32 | slot as u64;
            let made = sock
                .set_nonblocking(true)
                .and_then(|()| sock.set_nodelay(true))
                .and_then(|()| self.epoll.add(sock.as_raw_fd(), token, poll::READ));
            match made {
                Ok(()) => {
                    let (input, output) = (Vec::new(), Vec::new());
                    self.conns[slot] = Some(Conn { sock, token, input, output, stream: None, silent: false });
                }
                Err(_) => self.free.push(slot),
            }
        }
    }

    /// The connection of a token, unless it has gone.
    fn conn(&mut self, token: u64) -> Option<&mut Conn> {
        self.conns[token as u32 as usize].as_mut().filter(|conn| conn.token == token)
    }

    fn close(&mut self, token: u64) {
        let slot = token as u32 as usize;
        if let Some(conn) = self.conns[slot].take() {
            self.stats.closed_early += conn.stream.is_some() as u64;
            self.free.push(slot);
        }
    }

    fn on_ready(&mut self, event: Ready, scratch: &mut [u8]) {
        if event.writable {
            self.write(event.token, &[]);
        }
        let Some(conn) = self.conn(event.token) else { return };
        if !event.readable {
            return;
        }
        match conn.sock.read(scratch) {
            Err(why) if why.kind() == ErrorKind::WouldBlock => return,
            Ok(0) | Err(_) => return self.close(event.token),
            Ok(n) => conn.input.extend_from_slice(&scratch[..n]),
        }
        self.serve(event.token);
    }

    /// Answers the requests that are whole in the input, one after the other.
    fn serve(&mut self, token: u64) {
        while let Some(conn) = self.conn(token) {
            if conn.stream.is_some() || conn.silent || conn.input.is_empty() {
                return;
            }
            match request(&conn.input) {
                Ok(None) => return,
                Err(_) => {
                    let bad = wire::answer(400, "Bad Request", "connection: close\r\n", r#"{"error":"bad HTTP"}"#);
                    self.write(token, &bad);
                    return self.close(token);
                }
                Ok(Some(request)) => {
                    conn.input.drain(..request.took);
                    self.answer(token, request);
                }
            }
        }
    }

    fn answer(&mut self, token: u64, request: Request) {
        if request.is_stats {
            let stats = wire::answer(200, "OK", "", &self.stats_json());
            return self.write(token, &stats);
        }
        if request.is_get {
            let ok = self.ok.clone();
            return self.write(token, &ok);
        }
        let nth = self.stats.requests;
        self.stats.requests += 1;
        let plan = plan(model(&request.body));
        let fault = plan.fault.filter(|_| strikes(nth, plan.percent));
        let streams = has(&request.body, b"\"stream\"", b"true");
        if let Some(fault) = fault {
            if !streams || plan.after_chunks == 0 || matches!(fault, Fault::Status(_)) {
                return self.strike(token, fault);
            }
        }
        if !streams {
            self.stats.plain += 1;
            let plain = std::mem::take(&mut self.plain);
            self.write(token, &plain);
            self.plain = plain;
            return;
        }
        self.stats.streams += 1;
        let usage = has(&request.body, b"\"include_usage\"", b"true");
        let mut opening = wire::STREAM_HEAD.to_vec();
        opening.extend_from_slice(&self.events.role);
        self.write(token, &opening);
        let begin_ns = now_ns() / self.tick_ns * self.tick_ns;
        if let Some(conn) = self.conn(token) {
            conn.stream = Some(Stream { plan, begin_ns, sent: 0, usage, fault });
            self.advance(token);
        }
    }

    fn strike(&mut self, token: u64, fault: Fault) {
        match fault.name() {
            "f503" => self.stats.f503 += 1,
            "f429" => self.stats.f429 += 1,
            "rst" => self.stats.rst += 1,
            _ => self.stats.silent += 1,
        }
        match fault {
            Fault::Status(status) => self.write(token, &wire::fault_answer(status)),
            Fault::Reset => {
                if let Some(conn) = self.conn(token) {
                    poll::reset_on_close(&conn.sock);
                    conn.stream = None;
                }
                self.close(token);
            }
            Fault::Silent => {
                if let Some(conn) = self.conn(token) {
                    conn.silent = true;
                    conn.stream = None;
                }
            }
        }
    }

    /// Sends the chunks of a stream that are due: chunk i at i gaps after the head, the finish one gap after the last.
    fn advance(&mut self, token: u64) {
        loop {
            let now = now_ns();
            let Some(conn) = self.conn(token) else { return };
            let Some(stream) = conn.stream.as_mut() else { return };
            let due_ns = stream.begin_ns + stream.sent as u64 * stream.plan.gap_ns;
            if due_ns > now {
                return self.timers.set(due_ns, token);
            }
            if let Some(fault) = stream.fault.filter(|_| stream.sent >= stream.plan.after_chunks) {
                return self.strike(token, fault);
            }
            if stream.sent == stream.plan.chunks {
                let usage = stream.usage;
                conn.stream = None;
                return self.end(token, usage);
            }
            let number = stream.sent;
            stream.sent += 1;
            self.stats.chunks += 1;
            // Apart from `self.events`, which lends the chunk: the write needs the connection only.
            let chunk = self.events.content(number, now_ns());
            let slot = token as u32 as usize;
            if let Some(conn) = self.conns[slot].as_mut() {
                if write(&self.epoll, conn, chunk).is_err() {
                    return self.close(token);
                }
            }
        }
    }

    fn end(&mut self, token: u64, usage: bool) {
        self.stats.streams_done += 1;
        let (finish, usage_event, done) =
            (self.events.finish.clone(), self.events.usage.clone(), self.events.done.clone());
        self.write(token, &finish);
        if usage {
            self.write(token, &usage_event);
        }
        self.write(token, &done);
        self.serve(token);
    }

    fn write(&mut self, token: u64, bytes: &[u8]) {
        let slot = token as u32 as usize;
        let Some(conn) = self.conns[slot].as_mut().filter(|conn| conn.token == token) else { return };
        if write(&self.epoll, conn, bytes).is_err() {
            self.close(token);
        }
    }

    fn stats_json(&self) -> String {
        let s = &self.stats;
        let open = self.conns.iter().flatten().count();
        format!(
            concat!(
                r#"{{"requests":{},"plain":{},"streams":{},"streams_done":{},"chunks":{},"closed_early":{},"#,
                r#""faults":{{"f503":{},"f429":{},"rst":{},"silent":{}}},"open_connections":{}}}"#
            ),
            s.requests,
            s.plain,
            s.streams,
            s.streams_done,
            s.chunks,
            s.closed_early,
            s.f503,
            s.f429,
            s.rst,
            s.silent,
            open
        )
    }
}

/// Writes at once; what the socket does not take waits for it to become writable.
fn write(epoll: &Epoll, conn: &mut Conn, bytes: &[u8]) -> std::io::Result<()> {
    let had_rest = !conn.output.is_empty();
    conn.output.extend_from_slice(if had_rest { bytes } else { &[] });
    let pending = if had_rest { &conn.output[..] } else { bytes };
    let wrote = match conn.sock.write(pending) {
        Ok(n) => n,
        Err(why) if why.kind() == ErrorKind::WouldBlock => 0,
        Err(why) => return Err(why),
    };
    if had_rest {
        conn.output.drain(..wrote);
    } else {
        conn.output.extend_from_slice(&bytes[wrote..]);
    }
    let has_rest = !conn.output.is_empty();
    if has_rest != had_rest {
        let interest = if has_rest { poll::READ | poll::WRITE } else { poll::READ };
        epoll.change(conn.sock.as_raw_fd(), conn.token, interest)?;
    }
    Ok(())
}

/// The request at the front of `input`, when it is whole.
fn request(input: &[u8]) -> Result<Option<Request>, &'static str> {
    let Some(Head { len, framing, .. }) = http::head(input, false)? else { return Ok(None) };
    if matches!(framing, Framing::Length(n) if input.len() - len < n as usize) {
        return Ok(None); // not before it is all there: the body would be copied at every read
    }
    let (mut framing, mut body) = (Body::new(framing), Vec::new());
    let took = len + framing.feed(&input[len..], |piece| body.extend_from_slice(piece))?;
    let (is_get, is_stats) = (input.starts_with(b"GET "), input.starts_with(b"GET /__stats"));
    Ok(framing.done().then_some(Request { is_get, is_stats, body, took }))
}

fn model(body: &[u8]) -> &str {
    value(body, b"\"model\"")
        .and_then(|rest| rest.strip_prefix(b"\""))
        .and_then(|rest| std::str::from_utf8(&rest[..memchr::memchr(b'"', rest)?]).ok())
        .unwrap_or("")
}

fn has(body: &[u8], name: &[u8], expected: &[u8]) -> bool {
    value(body, name).is_some_and(|rest| rest.starts_with(expected))
}

/// What follows `name` and its colon. Good enough for the tools' own bodies and what gateways make of them: in a JSON
/// string the quotes of `name` would be escaped.
fn value<'a>(body: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let at = memmem::find(body, name)? + name.len();
    Some(body[at..].trim_ascii_start().strip_prefix(b":")?.trim_ascii_start())
}
