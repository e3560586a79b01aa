//! The server seen from outside: over real sockets, by the public protocol. A file is a capability,
//! a test is a behaviour. Tests wait for events, never for time to pass.
//!
//! | file | what it shows |
//! | --- | --- |
//! | `support` | the server under test, a client, a raw connection |
//! | `proxy` | a network that fails |
//! | `joining` | who comes and who goes: rooms, `new`, `close`, the upgrade |
//! | `routing` | who gets a message: one, all, the server; receipts |
//! | `requests` | `hello` and `ping` |
//! | `messages` | what is wrong with a message, and what is only strange |
//! | `frames` | RFC 6455: fragments, control frames, violations, close codes |
//! | `backpressure` | who does not read |
//! | `heartbeat` | who does not answer |
//! | `resuming` | sessions that outlive their connections |
//! | `tokens` | who is let in by what, and what that allows |
//! | `tls` | certificates, and how they are changed |
//! | `ice` | the ICE servers that sessions are told of |
//! | `limits` | sessions, headers, time, open files |
//! | `admin` | operators, backends, metrics |
//! | `shutdown` | stopping, inside and as a program |
//! | `http` | everything that is not a WebSocket |
//! | `program` | options, first line, exit codes |
//! | `embedding` | the filters in someone else's warp application |
//! | `crowds` | storms, many rooms, and random comings and goings against a reference model |
//! | `cluster` | several nodes over a real NATS server (started by `tests/run`) |
//! | `cluster_load` | what much of anything does to several nodes (started by `tests/run`) |
//! | `cluster_wire` | what a node says to others and takes from them (started by `tests/run`) |
//! | `operating` | coturn, nginx and Prometheus beside it (started by `tests/run`) |
//! | `../browser` | the page and the client module in a real Chromium (started by `tests/run`) |
//! | `guide` | the commands and links of the README and the guide (in part started by `tests/run`) |

#![allow(missing_docs, unreachable_pub, clippy::unwrap_used)]

mod admin;
mod backpressure;
#[path = "../browser/mod.rs"]
mod browser;
mod cluster;
mod cluster_load;
mod cluster_wire;
mod crowds;
mod embedding;
mod frames;
mod guide;
mod heartbeat;
mod http;
mod ice;
mod joining;
mod limits;
mod messages;
mod operating;
mod program;
mod proxy;
mod requests;
mod resuming;
mod routing;
mod shutdown;
mod support;
mod tls;
mod tokens;
