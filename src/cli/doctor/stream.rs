//! Streams of bytes, with or without TLS, and why one does not open.

use std::{io, time::Duration};

use tokio::io::{AsyncRead, AsyncWrite};

/// How long a name may take to resolve, and a connection to open.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A stream of bytes.
pub(super) trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// The reason of a failed connection in a few words.
pub(super) fn why(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "refused".into(),
        io::ErrorKind::TimedOut => format!("no answer in {} s", CONNECT_TIMEOUT.as_secs()),
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => {
            "the other side closes the connection".into()
        }
        io::ErrorKind::NetworkUnreachable => "this machine has no route to it".into(),
        _ => error.to_string(),
    }
}
