//! The load tools of Turnout: `mock`, an upstream that speaks the OpenAI wire, and `load`, a client that checks every answer.
//!
//! Both are one thread around one epoll, so that together they fit on one core and leave the other to the gateway.
//! The mock stamps every content chunk with the monotonic clock just before its `write`; the load generator, on the
//! same host, subtracts: the delay of each chunk is exact, whatever the gateway did to its frame.

pub mod args;
pub mod bodies;
pub mod check;
pub mod drive;
pub mod hist;
pub mod http;
pub mod plan;
pub mod poll;
pub mod report;
pub mod timers;
pub mod wire;
