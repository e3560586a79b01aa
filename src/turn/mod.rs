//! A STUN server (RFC 8489) and a TURN server (RFC 8656) for the sessions of this server, over UDP and TCP.
//!
//! A client sends a request, which `requests` answers: it authenticates the client by the credentials that its
//! session has got in `hello`, and opens an allocation, which relays between the client and its peers from then on.
//! The state is bounded by the quotas of sessions and addresses, by the open files and by the ports. A datagram without
//! credentials leaves no state at all.
//!
//! The crates `stun-types` and `turn-types` read and write the messages. The allocations are the server's own, because
//! no library bounds and refuses what it must: `turn` 0.17 keeps a nonce for each request of a forged address, has no
//! quota and no TCP, and reaches every peer; `turn-server` 4.1 relays only between its own clients, and accepts any
//! nonce.

mod address_rate;
mod allocation;
mod allocations;
mod client;
mod credentials;
mod five_tuple;
#[cfg(fuzzing)]
mod fuzzed;
mod peer_policy;
mod quotas;
mod receive;
mod relay_ports;
mod reply;
mod requests;
mod server;
mod sessions;
mod state;
mod tcp;
mod tcp_queue;
mod udp_socket;

#[cfg(fuzzing)]
pub(crate) use self::fuzzed::FuzzedServer;
pub(crate) use self::server::{Turn, TurnSession};
