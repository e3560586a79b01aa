//! Plain HTTP: the answer to a refused request, the host that a request is for, and the connection it came on, perhaps
//! with TLS.

mod error;
pub(crate) mod host;
mod socket;
#[cfg(feature = "tls")]
mod tls_stream;

#[cfg(feature = "tls")]
pub(crate) use self::tls_stream::TlsStream;
pub(crate) use self::{
    error::HttpError,
    socket::{Socket, SocketWatch, poll_send},
};
