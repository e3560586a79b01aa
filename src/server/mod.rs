//! What listens: the server with its accept loop and TLS, every URL, static files and the admin API.

mod accept;
mod admin;
mod anteroom;
mod apply;
mod assets;
#[cfg(any(feature = "cluster", feature = "tls"))]
mod certificates;
mod cross_origin;
mod dialect_routes;
mod encoding;
mod forward;
mod handle;
mod handshake;
#[cfg(all(test, feature = "cluster"))]
mod in_memory;
mod lookup;
mod request_limits;
mod routes;
mod standalone;
mod status;
mod streams;
// In a build without the feature, the type of TLS has no values.
#[cfg_attr(not(feature = "tls"), path = "no_tls.rs")]
mod tls;

#[cfg(all(test, feature = "cluster"))]
pub(crate) use self::in_memory::InMemoryServer;
pub use self::{anteroom::Anteroom, standalone::Server};
