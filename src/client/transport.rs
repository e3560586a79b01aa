//! Streams of bytes to a server: TCP, with or without TLS.

use std::{io, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, lookup_host},
    time::timeout,
};

use super::{disconnect::Disconnect, room_url::RoomUrl, tls};

/// How long one address may take to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How many addresses of a name are tried.
const MAX_ADDRESSES: usize = 8;

/// A stream of bytes in both directions.
pub trait ByteStream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> ByteStream for T {}

/// A stream of bytes to a server, with or without TLS.
pub type Transport = Box<dyn ByteStream>;

/// Opens a stream to the server of a URL. The caller limits the time.
pub(super) async fn open(url: &RoomUrl) -> Result<Transport, Disconnect> {
    let unreachable = |error: io::Error| Disconnect::Unreachable(why(&error));
    let stream = connect(url.host(), url.port()).await.map_err(unreachable)?;
    match url.is_tls() {
        true => {
            let stream = tls::connect(url.host(), stream).await;
            Ok(Box::new(stream.map_err(unreachable)?))
        }
        false => Ok(Box::new(stream)),
    }
}

/// Opens a TCP connection to the first address that accepts one.
async fn connect(host: &str, port: u16) -> io::Result<TcpStream> {
    let mut failure = io::Error::other("the name has no address");
    for address in lookup_host((host, port)).await?.take(MAX_ADDRESSES) {
        let attempt = timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await;
        match attempt.unwrap_or_else(|elapsed| Err(elapsed.into())) {
            Ok(stream) => {
                stream.set_nodelay(true)?;
                return Ok(stream);
            }
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

/// The reason of a failed connection in a few words.
fn why(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "nothing listens at this address and port".into(),
        io::ErrorKind::TimedOut => "no answer".into(),
        _ => error.to_string(),
    }
}
