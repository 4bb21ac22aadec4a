//! The engine: an HTTP/1.1 server that runs on the event loop's own thread.
//!
//! All sockets are in one epoll set of the engine's own, and the loop watches that single fd. A wake-up (`Engine.turn`)
//! takes what is ready, polls the connections concerned until they wait again, and then hands to Python what came out:
//! Python is never called while anything in here is borrowed. No thread, no tokio, no hand-over of the GIL.
//!
//! `sys` (system calls) < `exec` + `wheel` (tasks, wakers, timers) < `io` + `framing` + `tls` (bytes).
//! Clients: `request` (one request's state) < `server` (one connection) < `message` + `hooks` + `asgi` (what Python sees).
//! Upstreams: `call` (one call's state) + `whole` (its request's body) < `upstream` + `dial` (one connection) + `short` (chunks past hyper) < `pool` < `client` + `origin` (what Python
//! sees). `coroutine`, `task` and `wake` run the app's coroutine; `reactor` is all of it together, `hub` the handle that Python has.

pub mod asgi;
pub mod call;
pub mod client;
pub mod coroutine;
pub mod dial;
pub mod exec;
pub mod framing;
pub mod hooks;
pub mod hub;
pub mod io;
pub mod message;
pub mod origin;
pub mod pool;
pub mod reactor;
pub mod request;
#[cfg(test)]
mod scripted;
#[cfg(test)]
mod scripted_relay;
#[cfg(test)]
mod scripted_time;
#[cfg(test)]
mod scripted_tls;
#[cfg(test)]
mod scripted_upstream;
pub mod server;
mod short;
pub mod sys;
pub mod task;
pub mod tls;
pub mod upstream;
pub mod wake;
pub mod wheel;
pub mod whole;
