//! One WebSocket connection.

use std::{
    fmt,
    future::poll_fn,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::{Instant, timeout, timeout_at},
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        self, Message,
        protocol::{CloseFrame, Role, WebSocketConfig, frame::coding::CloseCode},
    },
};

use super::{disconnect::Disconnect, transport::Transport};

/// The sizes of the buffers of a connection.
const BUFFER_BYTES: usize = 8 * 1024;

/// The code of a Close frame that has none (RFC 6455, section 7.4.1).
const NO_CODE: u16 = 1005;

/// A message: text, or bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// A text message.
    Text(String),
    /// A binary message. Its first 16 bytes are an id.
    Binary(Bytes),
}

impl Frame {
    /// The number of bytes.
    pub(super) fn len(&self) -> usize {
        match self {
            Frame::Text(text) => text.len(),
            Frame::Binary(bytes) => bytes.len(),
        }
    }
}

impl From<String> for Frame {
    fn from(text: String) -> Frame {
        Frame::Text(text)
    }
}

impl From<&str> for Frame {
    fn from(text: &str) -> Frame {
        Frame::Text(text.into())
    }
}

impl From<Bytes> for Frame {
    fn from(bytes: Bytes) -> Frame {
        Frame::Binary(bytes)
    }
}

/// The pings of the server that have arrived.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct Pings {
    /// When the first and the last one arrived.
    pub ends: Option<(Instant, Instant)>,
    /// How many have arrived.
    pub count: u32,
}

impl Pings {
    fn add(&mut self, now: Instant) {
        let first = self.ends.map_or(now, |(first, _)| first);
        self.ends = Some((first, now));
        self.count = self.count.saturating_add(1);
    }
}

/// One WebSocket connection, over any stream of bytes. It answers pings while a message is awaited.
///
/// [`Connect`](super::Connect) opens one.
pub struct Connection<S = Transport> {
    socket: WebSocketStream<S>,
    received: u64,
    pings: Pings,
    heard: Instant,
    is_flushed: bool,
    /// Why nothing can be written any longer. A Close frame that has arrived says more.
    failed: Option<tungstenite::Error>,
}

impl<S> Connection<S> {
    /// Makes a connection of a socket, for tests that do the handshake themselves.
    #[doc(hidden)]
    pub fn of_socket(socket: WebSocketStream<S>) -> Connection<S> {
        Connection {
            socket,
            received: 0,
            pings: Pings::default(),
            heard: Instant::now(),
            is_flushed: true,
            failed: None,
        }
    }

    /// How many messages have arrived.
    pub fn received(&self) -> u64 {
        self.received
    }

    /// The pings of the server that have arrived.
    pub fn pings(&self) -> Pings {
        self.pings
    }

    /// Counts pings from zero.
    pub fn reset_pings(&mut self) {
        self.pings = Pings::default();
    }

    /// When something last arrived.
    pub fn heard(&self) -> Instant {
        self.heard
    }

    /// The implementation of WebSockets, for tests that send what a client does not send.
    #[doc(hidden)]
    pub fn socket(&mut self) -> &mut WebSocketStream<S> {
        &mut self.socket
    }

    /// The stream below. Dropping it cuts the connection, without a Close frame.
    pub fn into_stream(self) -> S {
        self.socket.into_inner()
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<S> {
    /// Makes a connection of a stream that is upgraded already. It accepts messages of at most so many bytes.
    pub async fn over(stream: S, max_message_bytes: usize) -> Connection<S> {
        Connection::read_before(stream, Vec::new(), max_message_bytes).await
    }

    /// Makes a connection of a stream of which some bytes were read together with the answer to the handshake.
    pub(super) async fn read_before(
        stream: S,
        read: Vec<u8>,
        max_message_bytes: usize,
    ) -> Connection<S> {
        let config = WebSocketConfig::default()
            .read_buffer_size(BUFFER_BYTES)
            .write_buffer_size(BUFFER_BYTES)
            .max_message_size(Some(max_message_bytes))
            .max_frame_size(Some(max_message_bytes));
        let socket = WebSocketStream::from_partially_read(stream, read, Role::Client, Some(config));
        Connection::of_socket(socket.await)
    }

    /// Sends a message.
    ///
    /// # Errors
    ///
    /// Why the connection has ended, or that the message could not be written in time.
    pub async fn send(
        &mut self,
        message: impl Into<Frame>,
        deadline: Instant,
    ) -> Result<(), Disconnect> {
        let began = Instant::now();
        self.queue(message);
        match timeout_at(deadline, poll_fn(|cx| self.poll_flush(cx))).await {
            Ok(()) if self.failed.is_none() => Ok(()),
            // The reason may be a Close frame that has arrived already.
            Ok(()) => loop {
                self.next(deadline).await?;
            },
            Err(_) => Err(Disconnect::Silent(deadline - began)),
        }
    }

    /// Queues a message without waiting. It is written by [`poll_flush`](Connection::poll_flush), and while a message
    /// is awaited. The queue has no bound of its own.
    pub fn queue(&mut self, message: impl Into<Frame>) {
        self.queue_message(match message.into() {
            Frame::Text(text) => Message::text(text),
            Frame::Binary(bytes) => Message::binary(bytes),
        });
    }

    pub(super) fn queue_message(&mut self, message: Message) {
        self.is_flushed = false;
        if let Err(error) = self.socket.start_send_unpin(message) {
            self.failed = Some(error);
        }
    }

    /// Writes what is queued. Ready when all is written, or when nothing can be written any longer, which
    /// [`poll_next`](Connection::poll_next) reports.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.is_flushed && self.failed.is_none() {
            if let Err(error) = ready!(self.socket.poll_flush_unpin(cx)) {
                self.failed = Some(error);
            }
            self.is_flushed = true;
        }
        Poll::Ready(())
    }

    /// The next message. Writes what is queued meanwhile.
    ///
    /// # Errors
    ///
    /// Why the connection has ended.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Frame, Disconnect>> {
        let _ = self.poll_flush(cx);
        loop {
            let item = match self.socket.poll_next_unpin(cx) {
                Poll::Ready(item) => item,
                Poll::Pending => {
                    return match self.failed.take() {
                        Some(error) => Poll::Ready(Err(cut(&error))),
                        None => Poll::Pending,
                    };
                }
            };
            self.heard = Instant::now();
            match item {
                Some(Ok(Message::Text(text))) => {
                    self.received += 1;
                    return Poll::Ready(Ok(Frame::Text(text.as_str().into())));
                }
                Some(Ok(Message::Binary(bytes))) => {
                    self.received += 1;
                    return Poll::Ready(Ok(Frame::Binary(bytes)));
                }
                Some(Ok(Message::Ping(_))) => self.pings.add(self.heard),
                Some(Ok(Message::Close(frame))) => {
                    // The answer to the Close frame.
                    let _ = self.socket.poll_flush_unpin(cx);
                    let (code, reason) = match frame {
                        Some(frame) => (frame.code.into(), frame.reason.to_string()),
                        None => (NO_CODE, String::new()),
                    };
                    return Poll::Ready(Err(Disconnect::Closed { code, reason }));
                }
                Some(Ok(Message::Pong(_) | Message::Frame(_))) => {}
                Some(Err(error)) => return Poll::Ready(Err(cut(&error))),
                None => return Poll::Ready(Err(Disconnect::Cut("the stream ended".into()))),
            }
        }
    }

    /// The next message, if it comes in time.
    ///
    /// # Errors
    ///
    /// Why the connection has ended, or that nothing came in time.
    pub async fn next(&mut self, deadline: Instant) -> Result<Frame, Disconnect> {
        let began = Instant::now();
        let next = timeout_at(deadline, poll_fn(|cx| self.poll_next(cx))).await;
        next.unwrap_or_else(|_| {
            Err(Disconnect::Silent(
                deadline.saturating_duration_since(began),
            ))
        })
    }

    /// Leaves the room: sends what is queued and a Close frame, and waits for the server's.
    pub async fn leave(mut self, limit: Duration) {
        let frame = CloseFrame {
            code: CloseCode::Normal,
            reason: "".into(),
        };
        let closing = async {
            if self.socket.close(Some(frame)).await.is_ok() {
                while poll_fn(|cx| self.poll_next(cx)).await.is_ok() {}
                // The server closes the stream.
                while let Some(Ok(_)) = self.socket.next().await {}
            }
        };
        let _ = timeout(limit, closing).await;
    }
}

impl<S> fmt::Debug for Connection<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Connection");
        shown.field("received", &self.received);
        shown.finish_non_exhaustive()
    }
}

fn cut(error: &tungstenite::Error) -> Disconnect {
    match error {
        tungstenite::Error::Capacity(error) => Disconnect::Protocol(error.to_string()),
        error => Disconnect::Cut(error.to_string()),
    }
}
