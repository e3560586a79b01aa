//! A WebSocket server for WebRTC signaling and small real-time apps. Clients join a room, learn who
//! else is in it, and exchange four-field JSON messages.
//!
//! There are two ways to run it:
//!
//! - [`Server`] listens on sockets of its own, with TLS and an admin API. The program `anteroom` runs
//!   one.
//! - [`Anteroom`] is the same server as warp filters, for an application that has its own listener.
//!
//! A [`client`] joins rooms of any server.
//!
//! Both take a [`Config`], whose fields are the options of the program. [`Origin`], [`IceUrl`] and
//! [`NatsUrl`] are the types of some of its values. A [`TokenRequest`] creates room tokens for
//! development.
//!
//! # Architecture
//!
//! A message takes this way through the folders of `src/`:
//!
//! ```text
//! server ─ websocket::Reader ─ session ─ dialects ─ rooms ─ outbox ─ websocket::Writer
//! ```
//!
//! The task of the sending session does all of this, including the writes to the sockets of the first
//! few receivers. If a message has many receivers, further tasks write to the others, a batch each.
//!
//! Folders import only from those below them in this table, and a folder's `mod.rs` names what the
//! others may use.
//!
//! | folder | contents |
//! | --- | --- |
//! | `server` | the accept loop, TLS, every URL, the admin API, static files; the task that applies messages of other nodes |
//! | `session` | the life of one session: start or resume, serve, suspend, close; requests to the server |
//! | `state` | what all sessions share: the rooms, the resume registry, the heartbeat, token expiry, ICE servers |
//! | `turn` | the STUN and TURN server: requests, allocations, quotas, which peers relays may reach |
//! | `access` | admission: origins, tokens, client addresses, rates, slots |
//! | `rooms` | the index of rooms, their members on this node and on others, sessions that migrate |
//! | `history` | what was said to all in rooms that keep it |
//! | `outbox` | the bounded queue of one session, its flushing, and the replay buffer for resuming |
//! | `cluster` | messages to other nodes over NATS, and which nodes are up |
//! | `dialects` | the wire formats of clients: our own protocol, PeerJS, y-webrtc, trystero, matchbox |
//! | `protocol` | our own wire format: ids, messages, events, errors, close codes |
//! | `transport` | the connection of a session, whatever it goes over |
//! | `event_stream` | messages over plain HTTP: server-sent events, long polling, POST requests |
//! | `websocket` | RFC 6455: the handshake, the frames, the halves of a connection |
//! | `web` | plain HTTP: error answers, the `Host` header |
//! | `metrics` | every metric |
//! | `config` | every option, and the files and values that options name |
//! | `keyed_map`, `spare_capacity` | maps whose keys clients choose, and spare capacity of maps |
//! | `random`, `unix_time`, `accept_error`, `turn_rest` | random bits, the clock, errors of accept(2), and passwords of TURN |
//! | `model_check`, `simulation` | the model checker of threads and simulated clusters, for tests |
//! | `client` | the client for Rust programs, which uses none of the others |
//! | `guide` | this guide |
//!
//! # Features
//!
//! All are on by default. What belongs to a feature that is off has no options in [`Config`].
//!
//! | feature | adds |
//! | --- | --- |
//! | `cli` | the program, and the `clap` derives of the options |
//! | `client` | a [`client`] for Rust programs |
//! | `cluster` | nodes that share their rooms over NATS |
//! | `jemalloc` | the allocator of the program |
//! | `tls` | HTTPS and WSS |
//! | `tokens` | JSON Web Tokens that admit to rooms |
//! | `turn` | a STUN and TURN server for the sessions |

#![cfg_attr(test, allow(clippy::unwrap_used))]
// The code that serves a feature outside of its own files has no caller in a build without it.
#![cfg_attr(
    not(all(feature = "cluster", feature = "tls", feature = "tokens")),
    allow(dead_code, unused_imports)
)]

/// The locks of the model checker, in place of parking_lot's.
#[cfg(shuttle)]
extern crate shuttle_parking_lot as parking_lot;

mod accept_error;
mod access;
#[cfg(feature = "client")]
pub mod client;
mod cluster;
pub mod config;
mod dialects;
mod event_stream;
pub mod guide;
mod history;
mod keyed_map;
mod metrics;
#[cfg(shuttle)]
mod model_check;
mod outbox;
mod protocol;
mod random;
mod rooms;
mod server;
mod session;
#[cfg(all(test, feature = "cluster"))]
mod simulation;
mod spare_capacity;
mod state;
mod transport;
// In a build without the feature, the types of the TURN server have no values.
#[cfg_attr(not(feature = "turn"), path = "no_turn.rs")]
mod turn;
mod turn_rest;
mod unix_time;
mod web;
mod websocket;

#[cfg(feature = "cluster")]
pub use crate::config::{HistoryStorage, NatsUrl};
#[cfg(feature = "tokens")]
pub use crate::{access::TokenRequest, config::TokenAlgorithm};
pub use crate::{
    config::{Config, Dialect, IceUrl, Origin},
    server::{Anteroom, Server},
};

#[cfg(fuzzing)]
#[doc(hidden)]
#[path = "../tests/fuzz/targets.rs"]
pub mod fuzz_targets;

/// Compiles the examples of the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
