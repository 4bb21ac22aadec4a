//! One request and its answer: the state that the connection and Python share. Knows neither sockets nor Python's API.
//!
//! Python's side lives as long as Python likes, on whatever thread its garbage is collected, so this is a plain
//! `Send + Sync` object behind one short lock. No lock is held while Python runs.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http::{header, HeaderMap, HeaderValue, Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use pyo3::Py;

use super::exec::Key;
use super::task::Task;
use super::wake::Wake;

/// Read of a body before anybody asks for it: most requests are whole then.
const EAGER: usize = 64 * 1024;
/// Unsent bytes of an answer up to here let `send` go on at once; above, it waits until they are below LOW. hyper holds
/// as much again, and the socket its buffer.
pub const HIGH: usize = 64 * 1024;
pub const LOW: usize = 32 * 1024;
/// A relay reads no more of its upstream while more than this is unsent: it needs no long way back up.
pub const FED: usize = 16 * 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyEnd {
    Open,
    Done,
    /// It ended early or its framing was wrong.
    Broken,
}

/// What `receive` gives.
pub enum Got {
    Body(Vec<Bytes>, usize, bool),
    Disconnect,
}

pub type Head = (StatusCode, HeaderMap);

pub struct State {
    incoming: Option<Incoming>,
    chunks: Vec<Bytes>,
    size: usize,
    most: usize,
    pub end: BodyEnd,
    /// Somebody waits in `receive`.
    wanted: bool,
    /// The client waits for 100-continue, so nothing is read before somebody asks.
    lazy: bool,
    told: bool, // the last part of the body was handed out
    /// What the app gave with http.response.start; goes out with the first piece of the body.
    pub head: Option<Head>,
    pub started: bool,
    /// For hyper to take.
    pub response: Option<Response<Out>>,
    out: VecDeque<Bytes>,
    pub out_size: usize,
    pub finished: bool, // the app has given the last piece
    /// The app ended without the last piece: the client must not take the answer for complete.
    pub cut: bool,
    /// The client has left.
    pub gone: bool,
    /// The answer is with hyper as a whole, or the connection is over.
    pub over: bool,
    /// The relay that writes the answer: woken at the end, and when there is room again, if it waits for that.
    pub feeder: Option<Waker>,
    pub hungry: bool,
    /// The socket had no room for all that hyper gave it.
    pub slow: bool,
    /// A relay is writing the answer: `send` may not.
    pub relaying: bool,
    /// Somebody waits in `receive`; the futures, where it is Python.
    pub watched: bool,
    pub receivers: Vec<Py<Wake>>,
    pub senders: Vec<Py<Wake>>,
    /// The task that serves it: what it waits for may hold it weakly only.
    pub task: Option<Py<Task>>,
}

pub struct Req {
    state: Mutex<State>,
    pub waker: Waker,
    /// Of the connection's task.
    pub key: Key,
    /// The answer goes out in chunks.
    chunked: AtomicBool,
}

/// Requests that somebody still holds, in this process.
static LIVE: AtomicUsize = AtomicUsize::new(0);

impl Drop for Req {
    fn drop(&mut self) {
        LIVE.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Req {
    /// How many there are.
    pub fn live() -> usize {
        LIVE.load(Ordering::Relaxed)
    }

    pub fn new(incoming: Incoming, most: usize, lazy: bool, waker: Waker, key: Key) -> Arc<Self> {
        LIVE.fetch_add(1, Ordering::Relaxed);
        let done = incoming.is_end_stream();
        Arc::new(Self {
            state: Mutex::new(State {
                incoming: (!done).then_some(incoming),
                chunks: Vec::new(),
                size: 0,
                most,
                end: if done { BodyEnd::Done } else { BodyEnd::Open },
                wanted: false,
                lazy,
                told: false,
                head: None,
                started: false,
                response: None,
                out: VecDeque::new(),
                out_size: 0,
                finished: false,
                cut: false,
                gone: false,
                over: false,
                feeder: None,
                hungry: false,
                slow: false,
                relaying: false,
                watched: false,
                receivers: Vec::new(),
                senders: Vec::new(),
                task: None,
            }),
            waker,
            key,
            chunked: AtomicBool::new(false),
        })
    }

    pub fn is_chunked(&self) -> bool {
        self.chunked.load(Ordering::Relaxed)
    }

    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Move what hyper has read of the body over here, as far as it is wanted.
    fn pump(&mut self, cx: &mut Context<'_>) {
        loop {
            let room = if self.wanted {
                self.most.max(1)
            } else if self.lazy {
                0
            } else {
                EAGER.min(self.most)
            };
            if self.size >= room {
                return;
            }
            let Some(incoming) = self.incoming.as_mut() else { return };
            match Pin::new(incoming).poll_frame(cx) {
                Poll::Pending => return,
                Poll::Ready(Some(Ok(frame))) => {
                    if let Ok(data) = frame.into_data() {
                        self.size += data.len();
                        self.chunks.push(data);
                    }
                    continue;
                }
                Poll::Ready(None) => self.end = BodyEnd::Done,
                Poll::Ready(Some(Err(_))) => self.end = BodyEnd::Broken,
            }
            self.incoming = None;
        }
    }

    /// Whether `take` would give something.
    pub fn receivable(&self) -> bool {
        if self.told {
            self.gone || self.over
        } else {
            self.end != BodyEnd::Open || self.size >= self.most || self.gone || self.over
        }
    }

    /// The next event for the app, if there is one; otherwise note that somebody waits for it.
    pub fn take(&mut self) -> Option<Got> {
        if !self.receivable() {
            self.wanted = true;
            return None;
        }
        self.wanted = false;
        self.watched = false;
        if self.told || self.end == BodyEnd::Broken || (self.end == BodyEnd::Open && self.size < self.most) {
            self.chunks.clear();
            return Some(Got::Disconnect);
        }
        let last = self.end == BodyEnd::Done;
        self.told = last;
        let size = std::mem::take(&mut self.size);
        Some(Got::Body(std::mem::take(&mut self.chunks), size, !last))
    }

    /// The whole body, if it is there and within the limit.
    pub fn take_whole(&mut self) -> Option<Vec<Bytes>> {
        if self.told || self.end != BodyEnd::Done || self.size >= self.most {
            return None;
        }
        self.told = true;
        self.size = 0;
        Some(std::mem::take(&mut self.chunks))
    }

    /// One piece of the answer.
    pub fn push(&mut self, data: Bytes) {
        if !data.is_empty() && !self.over {
            self.out_size += data.len();
            self.out.push_back(data);
        }
    }

    /// There is room, or an end: the relay that waits for it goes on.
    pub fn feed(&mut self) {
        self.hungry = false;
        if let Some(feeder) = &self.feeder {
            feeder.wake_by_ref();
        }
    }

    /// hyper has the head and waits for more of the body.
    pub fn is_streaming(&self) -> bool {
        self.started && self.response.is_none() && !(self.finished || self.cut || self.over || self.gone)
    }

    /// All that was given has gone to hyper.
    pub fn is_out(&self) -> bool {
        self.response.is_none() && self.out.is_empty()
    }

    /// The connection has ended, or hyper has all of the answer.
    pub fn finish(&mut self) {
        self.over = true;
        self.out.clear();
        self.out_size = 0;
        self.feed();
    }
}

/// The answer's head from what the app gave. `exact` is the body's size where it is known.
#[must_use]
pub fn respond(req: &Arc<Req>, head: Head, exact: Option<u64>) -> Response<Out> {
    let sized = exact.is_some() || head.1.contains_key(header::CONTENT_LENGTH);
    let bare = matches!(head.0, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED) || head.0.is_informational();
    req.chunked.store(!sized && !bare, Ordering::Relaxed);
    let mut response = Response::new(Out {
        req: Arc::clone(req),
        exact,
    });
    *response.status_mut() = head.0;
    *response.headers_mut() = head.1;
    response
}

/// An answer of the engine's own, without a body; the connection ends after it.
pub fn refuse(req: &Arc<Req>, status: StatusCode) -> Response<Out> {
    let mut headers = HeaderMap::with_capacity(2);
    headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from_static("0"));
    respond(req, (status, headers), Some(0))
}

/// hyper's wait for the answer (or an answer that is there at once); meanwhile the request's body is read.
pub struct Answer(pub Arc<Req>, pub Option<Response<Out>>);

impl Future for Answer {
    type Output = Result<Response<Out>, Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if let Some(response) = self.1.take() {
            return Poll::Ready(Ok(response));
        }
        let mut state = self.0.lock();
        state.pump(cx);
        match state.response.take() {
            Some(response) => Poll::Ready(Ok(response)),
            None => Poll::Pending,
        }
    }
}

/// The body of the answer, as hyper takes it.
pub struct Out {
    req: Arc<Req>,
    exact: Option<u64>,
}

impl Body for Out {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let mut state = self.req.lock();
        state.pump(cx);
        match state.out.pop_front() {
            Some(data) => {
                state.out_size -= data.len();
                Poll::Ready(Some(Ok(Frame::data(data))))
            }
            None if state.finished => Poll::Ready(None),
            None => Poll::Pending,
        }
    }

    fn is_end_stream(&self) -> bool {
        let state = self.req.lock();
        state.finished && state.out.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        self.exact.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

impl Drop for Out {
    fn drop(&mut self) {
        self.req.lock().finish();
    }
}
