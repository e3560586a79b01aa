//! The sending half of a connection.

use std::{
    cell::RefCell,
    collections::VecDeque,
    future::poll_fn,
    io, mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

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

/// The largest capacity, in frames, that a writer without frames keeps.
const KEPT_CAPACITY: usize = 4;

thread_local! {
    static WRITE_BUFFER: RefCell<Vec<u8>> = RefCell::new(Vec::with_capacity(WRITE_BYTES));
}

/// The sending half of a connection, with the frames that it is writing.
pub(crate) struct Writer {
    /// A plain socket, which is the most common case, or another stream.
    stream: Either<OwnedWriteHalf, Box<dyn AsyncWrite + Send + Unpin>>,
    frames: VecDeque<Frame>,
    /// The bytes of the first frame that are written already.
    written: usize,
    /// Whether the last write to a plain socket took less than it was given.
    is_full: bool,
    traffic: Arc<Traffic>,
}

impl Writer {
    /// A writer without frames.
    pub(crate) fn new(
        stream: Either<OwnedWriteHalf, Box<dyn AsyncWrite + Send + Unpin>>,
        traffic: Arc<Traffic>,
    ) -> Writer {
        Writer {
            stream,
            frames: VecDeque::new(),
            written: 0,
            is_full: false,
            traffic,
        }
    }

    /// Takes the frames from `queue` if the writer has none. Returns whether it has frames now.
    pub(crate) fn refill(&mut self, queue: &mut VecDeque<Frame>) -> bool {
        if self.frames.is_empty() {
            if self.frames.capacity() > KEPT_CAPACITY {
                self.frames = VecDeque::new();
            }
            mem::swap(&mut self.frames, queue);
        }
        !self.frames.is_empty()
    }

    /// Writes once, as many frames as the stream takes. Returns the cost ([`Frame::cost`]) of the frames
    /// that are written completely.
    pub(crate) fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let first = self.frames.front().map_or(&[][..], Frame::bytes);
        let written = WRITE_BUFFER.with_borrow_mut(|buffer| {
            let bytes = match self.frames.get(1) {
                Some(second) if first.len() + second.len() <= WRITE_BYTES => {
                    gather(&self.frames, buffer);
                    buffer
                }
                _ => first,
            };
            write(
                &mut self.stream,
                &mut self.is_full,
                cx,
                &bytes[self.written..],
            )
        });
        let mut written = ready!(written)?;
        if written == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        self.traffic.sent_bytes.inc_by(written as u64);
        written += self.written;
        let (mut cost, mut messages) = (0, 0);
        while let Some(frame) = self.frames.front()
            && frame.len() <= written
        {
            written -= frame.len();
            cost += frame.cost();
            messages += u64::from(frame.is_message());
            self.frames.pop_front();
        }
        self.traffic.messages_sent.inc_by(messages);
        self.written = written;
        Poll::Ready(Ok(cost))
    }

    /// Whether the stream may buffer written data until it is flushed, as TLS may.
    pub(crate) fn keeps_back(&self) -> bool {
        matches!(self.stream, Either::Right(_))
    }

    /// Sends the data that the stream has buffered.
    pub(crate) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    /// The number of frames that the writer has capacity for.
    #[cfg(test)]
    pub(crate) fn capacity(&self) -> usize {
        self.frames.capacity()
    }

    /// Drops the frames that are not written, except one that is written in part.
    pub(crate) fn clear(&mut self) {
        self.frames.truncate(usize::from(self.written > 0));
    }

    /// Writes the remaining frames and then `frames`, the last of which is a Close frame, and shuts the
    /// sending side of the stream down. It waits for the peer, so the caller must set a time limit.
    pub(crate) async fn close(&mut self, frames: impl Iterator<Item = Frame>) -> io::Result<()> {
        self.frames.extend(frames);
        while !self.frames.is_empty() {
            poll_fn(|cx| self.poll_write(cx)).await?;
            // There may be many frames: let other tasks run in between.
            consume_budget().await;
        }
        self.stream.shutdown().await
    }
}

/// Copies as many frames into the buffer as fit into one write.
fn gather(frames: &VecDeque<Frame>, buffer: &mut Vec<u8>) {
    buffer.clear();
    for frame in frames {
        if buffer.len() + frame.len() > WRITE_BYTES {
            break;
        }
        buffer.extend_from_slice(frame.bytes());
    }
}

/// Writes once.
fn write(
    stream: &mut Either<OwnedWriteHalf, Box<dyn AsyncWrite + Send + Unpin>>,
    is_full: &mut bool,
    cx: &mut Context<'_>,
    bytes: &[u8],
) -> Poll<io::Result<usize>> {
    match stream {
        Either::Left(socket) => poll_send(socket.as_ref(), is_full, cx, bytes),
        Either::Right(stream) => Pin::new(stream).poll_write(cx, bytes),
    }
}
