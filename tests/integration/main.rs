//! Integration tests: they speak the public protocol to a real server over real sockets. A file is a
//! capability, a test name is a behaviour. A test waits for an event with a deadline; it never sleeps and
//! hopes that the event has happened.
//!
//! | file | what it tests |
//! | --- | --- |
//! | `support/` | nothing: the server under test, a client, a raw connection, deadlines |
//! | `proxy` | nothing: a TCP proxy that fails like a network |
//! | `joining` | the upgrade, room names, and the `new` and `close` events of a room |
//! | `refusals` | close codes that tell a web page why it gets no session |
//! | `routing` | unicast, broadcast, requests to the server; receipts |
//! | `requests` | `hello` and `ping` |
//! | `state` | what sessions say of themselves |
//! | `bytes` | binary messages |
//! | `messages` | validation of messages, and `data` that is relayed unchanged |
//! | `frames` | RFC 6455: fragments, control frames, violations, close codes |
//! | `backpressure` | clients that read too slowly |
//! | `heartbeat` | clients that do not answer pings |
//! | `history` | rooms that keep what is said to all |
//! | `resuming` | sessions that outlive their connections |
//! | `streams` | sessions without a WebSocket |
//! | `client` | the client for Rust programs |
//! | `join` | the command `join`, at a terminal and in pipes |
//! | `restarting` | sessions that outlive their server |
//! | `tokens` | authentication: keys, claims, permissions, expiry |
//! | `tls` | certificates, and their reload |
//! | `ice` | the ICE servers and TURN credentials in `hello` |
//! | `turn` | the STUN and TURN server |
//! | `peerjs` | the wire format of PeerJS |
//! | `topics` | the wire formats of y-webrtc and trystero |
//! | `matchbox` | the wire format of matchbox |
//! | `limits` | origins, quotas, rate limits, header and open-file limits; the log |
//! | `admin` | the admin API, its access control, metrics |
//! | `shutdown` | draining and stopping, in a process and as a program |
//! | `http` | every HTTP request that is not an upgrade |
//! | `program` | options, standard output, the log, exit codes |
//! | `embedding` | the `warp` filter in another application |
//! | `crowds` | join storms, many rooms, and random joins and leaves against a model |
//! | `cluster` | several nodes over a real NATS server (run by `tests/run`) |
//! | `cluster_load` | floods and long lists between nodes (run by `tests/run`) |
//! | `cluster_dialects` | other people's clients on several nodes (run by `tests/run`) |
//! | `cluster_wire` | the messages between nodes, by a node that the test plays (run by `tests/run`) |
//! | `bench` | the command `bench`, by counts and never by times |
//! | `doctor` | the command `doctor` before servers and proxies that are set up well or badly (in part run by `tests/run`) |
//! | `containers` | the image and the manifests of the guide (in part run by `tests/run`) |
//! | `operating` | the server with coturn, nginx and Prometheus (run by `tests/run`) |
//! | `../browser` | the demo page and the client module in a real Chromium (run by `tests/run`) |
//! | `guide` | the commands and links of the README and the guide (in part run by `tests/run`) |

// Without a feature the tests that need it are left out, and what only they use.
#![cfg_attr(
    not(all(
        feature = "cli",
        feature = "cluster",
        feature = "tls",
        feature = "tokens",
        feature = "turn"
    )),
    allow(dead_code, unused_imports)
)]
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used)]

mod admin;
mod backpressure;
#[cfg(feature = "cli")]
mod bench;
#[cfg(all(feature = "cli", feature = "tls", feature = "tokens", feature = "turn"))]
#[path = "../browser/mod.rs"]
mod browser;
mod bytes;
mod client;
#[cfg(all(
    feature = "cli",
    feature = "cluster",
    feature = "tokens",
    feature = "turn"
))]
mod cluster;
#[cfg(all(feature = "cli", feature = "cluster", feature = "tokens"))]
mod cluster_dialects;
#[cfg(all(feature = "cli", feature = "cluster", feature = "tokens"))]
mod cluster_history;
#[cfg(all(feature = "cli", feature = "cluster", feature = "tokens"))]
mod cluster_load;
#[cfg(all(feature = "cli", feature = "cluster", feature = "tokens"))]
mod cluster_wire;
#[cfg(all(
    feature = "cli",
    feature = "cluster",
    feature = "tls",
    feature = "tokens",
    feature = "turn"
))]
mod containers;
mod crowds;
#[cfg(all(
    feature = "cli",
    feature = "cluster",
    feature = "tls",
    feature = "tokens"
))]
mod doctor;
mod embedding;
mod frames;
mod guide;
mod heartbeat;
mod history;
mod http;
mod ice;
#[cfg(all(
    feature = "cli",
    feature = "cluster",
    feature = "tls",
    feature = "tokens"
))]
mod join;
mod joining;
mod limits;
mod matchbox;
mod messages;
#[cfg(all(
    feature = "cli",
    feature = "cluster",
    feature = "tls",
    feature = "tokens",
    feature = "turn"
))]
mod operating;
mod peerjs;
#[cfg(all(
    feature = "cli",
    feature = "cluster",
    feature = "tls",
    feature = "tokens",
    feature = "turn"
))]
mod program;
mod proxy;
mod refusals;
mod requests;
mod restarting;
mod resuming;
mod routing;
mod shutdown;
mod state;
mod streams;
mod support;
#[cfg(all(
    feature = "cli",
    feature = "cluster",
    feature = "tls",
    feature = "tokens",
    feature = "turn"
))]
mod systemd;
#[cfg(all(feature = "cli", feature = "cluster", feature = "tls"))]
mod tls;
#[cfg(all(feature = "cli", feature = "tls", feature = "tokens"))]
mod tokens;
mod topics;
#[cfg(feature = "turn")]
mod turn;
