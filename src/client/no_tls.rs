//! Stands in for TLS in a build without it.

use std::io;

use tokio::net::TcpStream;

pub(super) async fn connect(_: &str, _: TcpStream) -> io::Result<TcpStream> {
    Err(io::Error::other(
        "this build has no TLS: turn on the cargo feature tls",
    ))
}
