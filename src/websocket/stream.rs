//! Streams that are not plain TCP sockets: TLS, or what another HTTP server hands over.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use futures_util::FutureExt;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf},
    net::TcpStream,
};

use crate::web::Socket;
#[cfg(feature = "tls")]
use crate::web::TlsStream;

/// A stream that is not a plain TCP socket.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {
    /// The socket below, if it is accessible.
    fn socket(&self) -> Option<&TcpStream>;
}

#[cfg(feature = "tls")]
impl Stream for TlsStream {
    fn socket(&self) -> Option<&TcpStream> {
        Some(self)
    }
}

/// A socket that somebody looks at while it is upgraded.
impl Stream for Socket {
    fn socket(&self) -> Option<&TcpStream> {
        Some(self)
    }
}

/// Another HTTP server hands over a stream whose type is not known here.
impl Stream for TokioIo<Upgraded> {
    fn socket(&self) -> Option<&TcpStream> {
        None
    }
}

/// One of the two halves of such a stream, which share it.
pub(super) struct Half(Arc<Mutex<dyn Stream>>);

impl Half {
    /// The two halves of a stream.
    pub(super) fn split(stream: impl Stream + 'static) -> (Half, Half) {
        let stream: Arc<Mutex<dyn Stream>> = Arc::new(Mutex::new(stream));
        (Half(stream.clone()), Half(stream))
    }

    /// Has the kernel discard unsent data when both halves are dropped. Does nothing if the socket is not accessible.
    pub(super) fn abort(&self) {
        if let Some(socket) = self.0.lock().socket() {
            // It fails only if the connection has ended already.
            let _ = socket.set_zero_linger();
        }
    }

    /// Whether the peer has closed its side, as far as that is known.
    pub(super) fn is_closed(&self) -> bool {
        self.0.lock().socket().is_some_and(is_closed)
    }
}

impl AsyncRead for Half {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0.lock()).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Half {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.0.lock()).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0.lock()).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0.lock()).poll_shutdown(cx)
    }
}

/// Whether the peer has closed its side of a connection. The operating system tells this even while
/// received data is still unread.
pub(super) fn is_closed(socket: &TcpStream) -> bool {
    let ready = socket.ready(Interest::READABLE).now_or_never();
    ready.is_some_and(|ready| ready.is_ok_and(|ready| ready.is_read_closed()))
}
