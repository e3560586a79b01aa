//! What listens: the server with its accept loop and TLS, every URL, static files and the admin API.

mod accept;
mod admin;
mod anteroom;
mod apply;
mod assets;
mod hand_over;
mod handle;
mod request_limits;
mod routes;
mod standalone;
mod status;
mod tls;

pub use self::{anteroom::Anteroom, standalone::Server};
