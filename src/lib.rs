//! anteroom is where peers meet before they talk to each other directly: a WebSocket server that
//! keeps a map of the sessions in each room, tells everyone who comes and who goes, and routes
//! four-field JSON messages between them.
//!
//! [`Server`] is the whole server on a socket of its own; [`Anteroom`] is the same as warp filters,
//! to be mounted in another application.
//!
//! A message's way through the modules:
//!
//! ```text
//! listener ─ routes ─ websocket::Reader ─ session ─ protocol::parse ─ rooms ─ outbox ─ websocket::Writer
//! ```
//!
//! All of it happens in the task of the session that sends, up to the sockets of the first few
//! receivers; what stands in the outboxes of many more is written by tasks of their own, a batch each.
//!
//! | module | what is in it |
//! | --- | --- |
//! | `config` | every option |
//! | `listener`, `tls` | the accept loop, with its limits |
//! | `routes`, `page`, `refusal` | every URL; the files behind `/`; how a request is turned away |
//! | `host` | which host a request is for |
//! | `admission` | who may join |
//! | `address`, `tokens`, `keys`, `rates` | where a request is from; what a token grants, and who signs it; how much is too much |
//! | `websocket` | the handshake, the frames, the socket |
//! | `session` | one session's life |
//! | `requests`, `ice` | what is addressed to the server; the ICE servers it tells of |
//! | `rooms` | who is where, on this node and on others |
//! | `cluster` | what nodes say to each other, and how: over NATS |
//! | `outbox` | what waits for a session |
//! | `kept` | what may have to be sent again |
//! | `resume` | the sessions that may be resumed |
//! | `heartbeat`, `expiry` | who is pinged, who is given up; whose token ends |
//! | `protocol` | the wire format |
//! | `escape` | what comes from outside, as it is logged |
//! | `admin` | every URL for operators |
//! | `metrics`, `traffic` | everything that is counted |
//! | `reload`, `pem`, `secret` | what is read from files, and read again; what no log may have |

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod access;
mod cluster;
pub mod config;
pub mod guide;
mod metrics;
mod outbox;
mod protocol;
mod rooms;
mod server;
mod session;
mod spare_capacity;
mod state;
mod web;
mod websocket;

pub use crate::{
    access::TokenRequest,
    config::{Config, IceUrl, NatsUrl, Origin},
    server::{Anteroom, Server},
};

/// The README's example, compiled.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
