//! Stands in for TLS in a program that is built without it.

use std::io;

use tokio::net::TcpStream;

use super::{report::Finding, stream::Io};

/// There is none.
pub(super) enum Client {}

impl Client {
    pub(super) fn new() -> Result<Client, Finding> {
        Err(Finding::failed(
            "this program is built without TLS",
            "build it with the cargo feature tls",
        ))
    }

    pub(super) fn without_alpn() -> Result<Client, Finding> {
        Client::new()
    }

    pub(super) async fn connect(&self, _: &str, _: TcpStream) -> io::Result<Box<dyn Io>> {
        match *self {}
    }

    pub(super) fn finding(&self, _: &str, _: Option<io::Error>) -> Finding {
        match *self {}
    }
}
