//! The sending half of a connection.

use std::{
    cell::RefCell,
    future::poll_fn,
    io, mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use thin_vec::ThinVec;
use tokio::{
    io::{AsyncWrite, AsyncWriteExt},
    net::tcp::OwnedWriteHalf,
    task::coop::consume_budget,
};
use tokio_util::either::Either;

use super::frame::Frame;
use crate::{metrics::Traffic, web::poll_send};

/// The most bytes of small frames that are copied together for one write. The kernel takes one buffer
/// faster than a list of many, by more than the copying costs.
const WRITE_BYTES: usize = 32 * 1024;

thread_local! {
    static WRITE_BUFFER: RefCell<Vec<u8>> = RefCell::new(Vec::with_capacity(WRITE_BYTES));
}

/// The sending half of a connection, with the frames that it is writing. Without frames it holds no memory for them.
pub(crate) struct Writer {
    stream: Stream,
    /// In reverse order: the first frame is the last, and is removed when it is written.
    frames: ThinVec<Frame>,
    /// The bytes of the first frame that are written already.
    written: usize,
    traffic: Arc<Traffic>,
}

/// What a writer writes to.
enum Stream {
    /// A plain socket, which is the most common case.
    Socket {
        socket: OwnedWriteHalf,
        /// Whether the last write took less than it was given.
        is_full: bool,
    },
    Other(Box<dyn AsyncWrite + Send + Unpin>),
}

impl Writer {
    /// A writer without frames.
    pub(crate) fn new(
        stream: Either<OwnedWriteHalf, Box<dyn AsyncWrite + Send + Unpin>>,
        traffic: Arc<Traffic>,
    ) -> Writer {
        Writer {
            stream: match stream {
                Either::Left(socket) => Stream::Socket {
                    socket,
                    is_full: false,
                },
                Either::Right(stream) => Stream::Other(stream),
            },
            frames: ThinVec::new(),
            written: 0,
            traffic,
        }
    }

    /// Takes the frames from `queue` if the writer has none. Returns whether it has frames now.
    pub(crate) fn refill(&mut self, queue: &mut ThinVec<Frame>) -> bool {
        if self.frames.is_empty() {
            self.frames = mem::take(queue);
            self.frames.reverse();
        }
        !self.frames.is_empty()
    }

    /// Writes once, as many frames as the stream takes. Returns the cost ([`Frame::cost`]) of the frames
    /// that are written completely.
    pub(crate) fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut frames = self.frames.iter().rev();
        let first = frames.next().map_or(&[][..], Frame::bytes);
        let written = WRITE_BUFFER.with_borrow_mut(|buffer| {
            let bytes = match frames.next() {
                Some(second) if first.len() + second.len() <= WRITE_BYTES => {
                    gather(self.frames.iter().rev(), buffer);
                    buffer
                }
                _ => first,
            };
            self.stream.poll_write(cx, &bytes[self.written..])
        });
        let mut written = ready!(written)?;
        if written == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        self.traffic.sent_bytes.inc_by(written as u64);
        written += self.written;
        let (mut cost, mut messages) = (0, 0);
        while let Some(frame) = self.frames.last()
            && frame.len() <= written
        {
            written -= frame.len();
            cost += frame.cost();
            messages += u64::from(frame.is_message());
            self.frames.pop();
        }
        if self.frames.is_empty() {
            self.frames = ThinVec::new();
        }
        self.traffic.messages_sent.inc_by(messages);
        self.written = written;
        Poll::Ready(Ok(cost))
    }

    /// Whether the stream may buffer written data until it is flushed, as TLS may.
    pub(crate) fn keeps_back(&self) -> bool {
        matches!(self.stream, Stream::Other(_))
    }

    /// Sends the data that the stream has buffered.
    pub(crate) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            // The kernel sends what it has.
            Stream::Socket { .. } => Poll::Ready(Ok(())),
            Stream::Other(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    /// The number of frames that the writer has capacity for.
    #[cfg(test)]
    pub(crate) fn capacity(&self) -> usize {
        self.frames.capacity()
    }

    /// Drops the frames that are not written, except one that is written in part.
    pub(crate) fn clear(&mut self) {
        let first = self.frames.pop().filter(|_| self.written > 0);
        self.frames = first.into_iter().collect();
    }

    /// Writes the remaining frames and then `frames`, the last of which is a Close frame, and shuts the
    /// sending side of the stream down. It waits for the peer, so the caller must set a time limit.
    pub(crate) async fn close(&mut self, frames: impl Iterator<Item = Frame>) -> io::Result<()> {
        let mut last: ThinVec<Frame> = frames.collect();
        last.reverse();
        last.append(&mut self.frames);
        self.frames = last;
        while !self.frames.is_empty() {
            poll_fn(|cx| self.poll_write(cx)).await?;
            // There may be many frames: let other tasks run in between.
            consume_budget().await;
        }
        match &mut self.stream {
            Stream::Socket { socket, .. } => socket.shutdown().await,
            Stream::Other(stream) => stream.shutdown().await,
        }
    }
}

impl Stream {
    /// Writes once.
    fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self {
            Stream::Socket { socket, is_full } => poll_send(socket.as_ref(), is_full, cx, bytes),
            Stream::Other(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }
}

/// Copies as many frames into the buffer as fit into one write.
fn gather<'a>(frames: impl Iterator<Item = &'a Frame>, buffer: &mut Vec<u8>) {
    buffer.clear();
    for frame in frames {
        if buffer.len() + frame.len() > WRITE_BYTES {
            break;
        }
        buffer.extend_from_slice(frame.bytes());
    }
}
