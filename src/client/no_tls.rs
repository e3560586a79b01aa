//! Stands in for TLS in a build without it.

use std::io;

use tokio::net::TcpStream;

use super::transport::Transport;

pub(super) async fn connect(_: &str, _: TcpStream) -> io::Result<Transport> {
    Err(io::Error::other(
        "this build has no TLS: turn on the cargo feature tls",
    ))
}
