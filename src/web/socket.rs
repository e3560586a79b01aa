//! A TCP connection whose end can be noticed while a request is answered.

use std::{
    io::{self, IoSlice, Read},
    net::Shutdown,
    ops::Deref,
    pin::Pin,
    sync::{Arc, Weak},
    task::{Context, Poll, ready},
};

use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf},
    net::TcpStream,
};

/// A TCP connection. It is shared only with those who watch it.
pub(crate) struct Socket(Arc<TcpStream>);

/// Tells when a connection ends. It does not keep the connection open.
#[derive(Clone, Default)]
pub(crate) struct SocketWatch {
    stream: Weak<TcpStream>,
    has_tls: bool,
}

impl Socket {
    pub(crate) fn new(stream: TcpStream) -> Socket {
        Socket(Arc::new(stream))
    }

    /// What tells when this connection ends, which may have TLS.
    pub(crate) fn watch(&self, has_tls: bool) -> SocketWatch {
        SocketWatch {
            stream: Arc::downgrade(&self.0),
            has_tls,
        }
    }

    /// The connection itself.
    ///
    /// # Errors
    ///
    /// The socket, if somebody looks at it just now.
    pub(crate) fn into_inner(self) -> Result<TcpStream, Socket> {
        Arc::try_unwrap(self.0).map_err(Socket)
    }
}

impl SocketWatch {
    /// Whether the peer has closed its side, or the connection has failed. The task is woken when that happens; it
    /// must be the task that reads from the connection. With TLS, whatever the peer sends counts as the end: it sends
    /// an alert before it closes (RFC 8446, section 6.1). Without, the end is not noticed if the peer has sent more
    /// before, nor if the connection is not known.
    pub(crate) fn poll_closed(&self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(stream) = self.stream.upgrade() else {
            return Poll::Pending;
        };
        let mut byte = [0];
        match ready!(stream.poll_peek(cx, &mut ReadBuf::new(&mut byte))) {
            Ok(1..) if !self.has_tls => Poll::Pending,
            _ => Poll::Ready(()),
        }
    }
}

impl Deref for Socket {
    type Target = TcpStream;

    fn deref(&self) -> &TcpStream {
        &self.0
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let space = buffer.initialize_unfilled();
        loop {
            ready!(self.0.poll_read_ready(cx))?;
            let mut last = None;
            let read = self.0.try_io(Interest::READABLE, || {
                let count = receive(&self.0, space)?;
                match count {
                    // Nothing is left, but where TCP's urgent data begins. So tokio is to wait for more before the next
                    // read, as its own reads do.
                    1.. if count < space.len() => {
                        last = Some(count);
                        Err(io::ErrorKind::WouldBlock.into())
                    }
                    _ => Ok(count),
                }
            });
            let read = last.map_or(read, Ok);
            match read {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                read => {
                    buffer.advance(read?);
                    return Poll::Ready(Ok(()));
                }
            }
        }
    }
}

/// Reads once what has come already, whatever tokio's record of its readiness says.
///
/// # Errors
///
/// [`WouldBlock`](io::ErrorKind::WouldBlock) if nothing has come.
fn receive(stream: &TcpStream, space: &mut [u8]) -> io::Result<usize> {
    (&*SockRef::from(stream)).read(space)
}

/// Writes once. A socket usually takes everything, so it is tried directly: tokio's record of its readiness is not in the
/// CPU cache. After a write that did not take everything (`is_full`), tokio must write: only a failed write of its own clears
/// that record and has the task woken.
pub(crate) fn poll_send(
    stream: &TcpStream,
    is_full: &mut bool,
    cx: &mut Context<'_>,
    bytes: &[u8],
) -> Poll<io::Result<usize>> {
    #[cfg(target_os = "linux")]
    if !*is_full {
        use rustix::net::{SendFlags, send};

        let sent = send(stream, bytes, SendFlags::NOSIGNAL);
        *is_full = sent != Ok(bytes.len());
        if let Ok(count) = sent {
            return Poll::Ready(Ok(count));
        }
    }
    let written = ready!(poll_write_with(stream, cx, |stream| stream.try_write(bytes)))?;
    *is_full = written < bytes.len();
    Poll::Ready(Ok(written))
}

/// Writes with `write` once the connection accepts more.
fn poll_write_with(
    stream: &TcpStream,
    cx: &mut Context<'_>,
    mut write: impl FnMut(&TcpStream) -> io::Result<usize>,
) -> Poll<io::Result<usize>> {
    loop {
        ready!(stream.poll_write_ready(cx))?;
        match write(stream) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            written => return Poll::Ready(written),
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        poll_write_with(&self.0, cx, |stream| stream.try_write(bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        poll_write_with(&self.0, cx, |stream| stream.try_write_vectored(slices))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(SockRef::from(&*self.0).shutdown(Shutdown::Write))
    }
}
