//! The load generator's loop: opens requests as the mode says, reads the answers, has each checked.
//!
//! Three modes. *closed*: every connection asks again as soon as it has its answer. *streams*: the same, but the
//! connections start spread over one stream's length, so that chunks arrive evenly. *open*: requests are due at fixed
//! times whether or not earlier ones are answered, and latency counts from when a request was due (no coordinated
//! omission). Counted is what happens between the end of the warm-up and the end of the window; errors always count.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddrV4, TcpStream};
use std::os::fd::AsRawFd;

use crate::check::{self, Stream};
use crate::http::{self, Body, Head};
use crate::poll::{self, now_ns, Epoll, Ready};
use crate::report::Totals;
use crate::timers::Timers;

#[derive(Clone, Copy, PartialEq)]
pub enum Mode {
    Closed,
    Open,
    Streams,
}

pub struct Settings {
    pub addr: SocketAddrV4,
    /// Head and body, ready to be sent.
    pub request: Vec<u8>,
    pub mode: Mode,
    /// Connections; in open mode the most there may be.
    pub conns: usize,
    /// Requests a second, open mode only.
    pub rate: f64,
    pub warmup_ns: u64,
    pub window_ns: u64,
    pub timeout_ns: u64,
    /// Content chunks of each answer; `None` for plain answers.
    pub chunks: Option<u32>,
    pub gap_ns: u64,
}

#[derive(Clone, Copy, PartialEq)]
enum State {
    Closed,
    Connecting,
    Idle,
    Busy,
}

enum Timer {
    /// Open this connection's next request (closed and streams).
    Start(usize),
    /// The open loop's next request is due.
    Arrival,
    WindowStart,
    WindowEnd,
    /// Look for answers that take too long.
    Sweep,
}

struct Conn {
    sock: Option<TcpStream>,
    state: State,
    /// Counts the sockets this place has had: an event of an old one is ignored.
    generation: u32,
    sent: usize,
    /// When the request was started; in open mode, when it was due.
    since_ns: u64,
    first_ns: Option<u64>,
    raw: Vec<u8>,
    head: Option<Head>,
    framing: Option<Body>,
    plain: Vec<u8>,
    stream: Stream,
}

pub struct Drive {
    set: Settings,
    epoll: Epoll,
    timers: Timers<Timer>,
    conns: Vec<Conn>,
    idle: Vec<usize>,
    /// Open mode: when the requests were due that wait for a connection.
    queue: VecDeque<u64>,
    arrivals: u64,
    begin_ns: u64,
    open_ns: u64,
    close_ns: u64,
    over: bool,
    totals: Totals,
}

const SWEEP_NS: u64 = 100_000_000;
/// After a broken connection; without it a dead gateway would be asked a million times.
const PAUSE_NS: u64 = 10_000_000;

impl Drive {
    pub fn new(set: Settings) -> std::io::Result<Drive> {
        let conns = (0..set.conns).map(|_| Conn::new()).collect();
        let begin_ns = now_ns() + 1_000_000;
        let open_ns = begin_ns + set.warmup_ns;
        let close_ns = open_ns + set.window_ns;
        let idle = (0..set.conns).rev().collect();
        let epoll = Epoll::new()?;
        let (timers, queue, totals) = (Timers::default(), VecDeque::new(), Totals::default());
        Ok(Drive {
            set,
            epoll,
            timers,
            conns,
            idle,
            queue,
            arrivals: 0,
            begin_ns,
            open_ns,
            close_ns,
            over: false,
            totals,
        })
    }

    /// Runs warm-up, window and drain. `mark` is told "start" and "end" of the window when they come.
    pub fn run(mut self, mut mark: impl FnMut(&str)) -> Totals {
        match self.set.mode {
            Mode::Open => self.timers.set(self.begin_ns, Timer::Arrival),
            Mode::Closed => (0..self.set.conns).for_each(|i| self.timers.set(self.begin_ns, Timer::Start(i))),
            Mode::Streams => {
                let length_ns = self.set.chunks.unwrap_or(0) as u64 * self.set.gap_ns;
                let spread_ns = length_ns.min(self.set.warmup_ns * 9 / 10);
                for i in 0..self.set.conns {
                    let at_ns = self.begin_ns + spread_ns * i as u64 / self.set.conns as u64;
                    self.timers.set(at_ns, Timer::Start(i));
                }
            }
        }
        self.timers.set(self.open_ns, Timer::WindowStart);
        self.timers.set(self.close_ns, Timer::WindowEnd);
        self.timers.set(self.begin_ns, Timer::Sweep);
        let (mut ready, mut scratch) = (Vec::new(), vec![0; 256 * 1024]);
        loop {
            while let Some(timer) = self.timers.due(now_ns()) {
                self.on_timer(timer, &mut mark);
            }
            if self.over && !self.busy() {
                break;
            }
            self.epoll.wait(self.timers.wait_ns(now_ns()), &mut ready);
            for event in &ready {
                self.on_ready(*event, &mut scratch);
            }
        }
        self.totals.window_ns = self.set.window_ns;
        self.totals
    }

    fn busy(&self) -> bool {
        !self.queue.is_empty() || self.conns.iter().any(|c| matches!(c.state, State::Busy | State::Connecting))
    }

    fn on_timer(&mut self, timer: Timer, mark: &mut impl FnMut(&str)) {
        match timer {
            Timer::WindowStart => mark("start"),
            Timer::WindowEnd => {
                self.over = true;
                mark("end");
            }
            Timer::Start(i) if !self.over => self.start(i, now_ns()),
            Timer::Start(_) => {}
            Timer::Arrival => {
                self.arrive();
                self.arrivals += 1;
                let next_ns = self.begin_ns + (self.arrivals as f64 * 1e9 / self.set.rate) as u64;
                if next_ns < self.close_ns {
                    self.timers.set(next_ns, Timer::Arrival);
                }
            }
            Timer::Sweep => {
                let late_ns = now_ns().saturating_sub(self.set.timeout_ns);
                for i in 0..self.conns.len() {
                    let conn = &self.conns[i];
                    if matches!(conn.state, State::Busy | State::Connecting) && conn.since_ns < late_ns {
                        self.fail(i, "timeout");
                    }
                }
                self.timers.set(now_ns() + SWEEP_NS, Timer::Sweep);
            }
        }
    }

    fn arrive(&mut self) {
        self.queue.push_back(self.begin_ns + (self.arrivals as f64 * 1e9 / self.set.rate) as u64);
        self.serve_queue();
    }

    /// Open mode: gives waiting requests to free connections, the last used first.
    fn serve_queue(&mut self) {
        while !self.queue.is_empty() {
            let Some(i) = self.idle.pop() else { return };
            if let Some(due_ns) = self.queue.pop_front() {
                self.start(i, due_ns);
            }
        }
    }

    fn start(&mut self, i: usize, since_ns: u64) {
        let conn = &mut self.conns[i];
        conn.renew(since_ns);
        if conn.state == State::Idle {
            conn.state = State::Busy;
            return self.send(i);
        }
        conn.state = State::Connecting;
        let token = conn.token(i);
        let made = poll::connect(self.set.addr).and_then(|sock| {
            self.epoll.add(sock.as_raw_fd(), token, poll::READ | poll::WRITE)?;
            Ok(sock)
        });
        match made {
            Ok(sock) => conn.sock = Some(sock),
            Err(_) => self.fail(i, "connect"),
        }
    }

    fn send(&mut self, i: usize) {
        let conn = &mut self.conns[i];
        let Some(mut sock) = conn.sock.as_ref() else { return };
        let was_partial = conn.sent > 0;
        match sock.write(&self.set.request[conn.sent..]) {
            Ok(n) => conn.sent += n,
            Err(why) if why.kind() == ErrorKind::WouldBlock => {}
            Err(_) => return self.fail(i, "reset"),
        }
        let partial = conn.sent < self.set.request.len();
        if partial || was_partial {
            let interest = if partial { poll::READ | poll::WRITE } else { poll::READ };
            let _ = self.epoll.change(sock.as_raw_fd(), conn.token(i), interest);
        }
    }

    fn on_ready(&mut self, event: Ready, scratch: &mut [u8]) {
        let (i, generation) = (event.token as u32 as usize, (event.token >> 32) as u32);
        let conn = &mut self.conns[i];
        if conn.generation != generation {
            return;
        }
        let Some(sock) = conn.sock.as_ref() else { return };
        if conn.state == State::Connecting {
            if !matches!(sock.take_error(), Ok(None)) {
                return self.fail(i, "connect");
            }
            if event.writable {
                let _ = self.epoll.change(sock.as_raw_fd(), event.token, poll::READ);
                conn.state = State::Busy;
                self.send(i);
            }
        } else if event.writable && conn.state == State::Busy {
            self.send(i);
        }
        if event.readable && self.conns[i].generation == generation {
            self.read(i, scratch);
        }
    }

    fn read(&mut self, i: usize, scratch: &mut [u8]) {
        let conn = &mut self.conns[i];
        let Some(mut sock) = conn.sock.as_ref() else { return };
        match sock.read(scratch) {
            Err(why) if why.kind() == ErrorKind::WouldBlock => {}
            // An idle connection may be closed by the gateway whenever it likes.
            Ok(0) | Err(_) if conn.state == State::Idle => conn.close(),
            Ok(_) if conn.state == State::Idle => self.fail(i, "bytes_after_answer"),
            Ok(0) => match conn.framing.as_ref() {
                Some(framing) if framing.may_end() => self.finish(i),
                Some(_) => self.fail(i, "truncated"),
                None => self.fail(i, "closed"),
            },
            Err(_) => self.fail(i, "reset"),
            Ok(n) => match self.take(i, &scratch[..n]) {
                Ok(true) => self.finish(i),
                Ok(false) => {}
                Err(kind) => self.fail(i, kind),
            },
        }
    }

    /// Takes what was read; `Ok(true)` when the answer's body has ended.
    fn take(&mut self, i: usize, bytes: &[u8]) -> Result<bool, &'static str> {
        let conn = &mut self.conns[i];
        if conn.head.is_some() {
            return self.take_body(i, bytes);
        }
        if conn.raw.is_empty() {
            if let Some(head) = http::head(bytes, true)? {
                let rest = &bytes[head.len..];
                return self.take_head(i, head, rest);
            }
        }
        conn.raw.extend_from_slice(bytes);
        let Some(head) = http::head(&conn.raw, true)? else { return Ok(false) };
        let raw = std::mem::take(&mut conn.raw);
        let rest = &raw[head.len..];
        self.take_head(i, head, rest)
    }

    fn take_head(&mut self, i: usize, head: Head, rest: &[u8]) -> Result<bool, &'static str> {
        if matches!(head.status, 100..=199) {
            return self.take(i, rest); // "100 Continue": the answer's head is still to come
        }
        let conn = &mut self.conns[i];
        conn.framing = Some(Body::new(head.framing));
        conn.head = Some(head);
        self.take_body(i, rest)
    }

    fn take_body(&mut self, i: usize, bytes: &[u8]) -> Result<bool, &'static str> {
        let Conn { framing, head, plain, stream, first_ns, .. } = &mut self.conns[i];
        let (Some(framing), Some(head)) = (framing.as_mut(), head.as_ref()) else { return Ok(false) };
        let took = if self.set.chunks.is_none() || head.status != 200 {
            framing.feed(bytes, |piece| plain.extend_from_slice(piece))?
        } else {
            let now = now_ns();
            let counts = now >= self.open_ns && now < self.close_ns;
            let totals = &mut self.totals;
            framing.feed(bytes, |piece| {
                stream.feed(piece, &mut |stamp_ns| {
                    first_ns.get_or_insert(now);
                    if counts {
                        totals.chunks += 1;
                        totals.delay.add(now.saturating_sub(stamp_ns));
                    }
                })
            })?
        };
        if framing.done() && took < bytes.len() {
            return Err("bytes_after_answer");
        }
        Ok(framing.done())
    }

    /// The answer's body has ended: was it right, and what comes next on this connection?
    fn finish(&mut self, i: usize) {
        let now = now_ns();
        let conn = &mut self.conns[i];
        let (status, close) = conn.head.as_ref().map_or((0, true), |head| (head.status, head.close));
        let verdict = match self.set.chunks {
            _ if status != 200 => Err(format!("status_{status}")),
            None => check::plain(&conn.plain).map_err(str::to_string),
            Some(chunks) => conn.stream.verdict(chunks).map_err(str::to_string),
        };
        match verdict {
            Err(kind) => self.totals.error(&kind),
            Ok(()) => {
                let counted_at_ns = if self.set.mode == Mode::Open { conn.since_ns } else { now };
                if counted_at_ns >= self.open_ns && counted_at_ns < self.close_ns {
                    self.totals.latency.add(now - conn.since_ns.min(now));
                    if let Some(first_ns) = conn.first_ns {
                        self.totals.ttft.add(first_ns - conn.since_ns.min(first_ns));
                    }
                }
                if now >= self.open_ns && now < self.close_ns {
                    self.totals.requests += 1;
                }
            }
        }
        if close || conn.sent < self.set.request.len() {
            conn.close();
        } else {
            conn.state = State::Idle;
        }
        self.next(i, now);
    }

    fn fail(&mut self, i: usize, kind: &str) {
        self.totals.error(kind);
        self.conns[i].close();
        if self.set.mode == Mode::Open {
            return self.next(i, 0);
        }
        self.timers.set(now_ns() + PAUSE_NS, Timer::Start(i));
    }

    fn next(&mut self, i: usize, now: u64) {
        if self.set.mode == Mode::Open {
            self.idle.push(i);
            self.serve_queue();
        } else if !self.over {
            self.start(i, now);
        }
    }
}

impl Conn {
    fn new() -> Conn {
        Conn {
            sock: None,
            state: State::Closed,
            generation: 0,
            sent: 0,
            since_ns: 0,
            first_ns: None,
            raw: Vec::new(),
            head: None,
            framing: None,
            plain: Vec::new(),
            stream: Stream::default(),
        }
    }

    fn token(&self, i: usize) -> u64 {
        (self.generation as u64) << 32 | i as u64
    }

    fn renew(&mut self, since_ns: u64) {
        self.sent = 0;
        self.since_ns = since_ns;
        self.first_ns = None;
        self.raw.clear();
        self.head = None;
        self.framing = None;
        self.plain.clear();
        self.stream.reset();
    }

    fn close(&mut self) {
        self.sock = None;
        self.state = State::Closed;
        self.generation = self.generation.wrapping_add(1);
    }
}
