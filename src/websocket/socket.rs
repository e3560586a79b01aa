//! The socket: a stream of bytes, read as events and written as frames.

use std::{
    cell::RefCell,
    collections::VecDeque,
    future::poll_fn,
    io::{self, IoSlice},
    ops::ControlFlow,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{Event, Frame, Violation, decode::Decoder};

/// How many bytes one read takes at most. One buffer serves all sessions of a thread, so that none
/// has its own.
const READ_BYTES: usize = 16 * 1024;

/// How many frames one write takes at most; the kernel takes up to 1,024.
const WRITE_FRAMES: usize = 64;

thread_local! {
    static READ_BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; READ_BYTES].into());
}

/// What stops the reading.
#[derive(Debug)]
pub(crate) enum Stop<B> {
    /// The peer has closed its side of the stream.
    Eof,
    /// The connection is gone.
    Lost,
    /// The connection must be failed.
    Violation(Violation),
    /// The caller broke off.
    Break(B),
}

/// A WebSocket connection. It keeps no buffer while nothing is under way.
pub(crate) struct Socket<S> {
    stream: S,
    decoder: Decoder,
    /// Whether the front of what is being written has been written in part.
    mid_frame: bool,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Socket<S> {
    /// A socket on `stream` that accepts messages of at most `max_message_bytes`.
    pub(crate) fn new(stream: S, max_message_bytes: usize) -> Socket<S> {
        Socket {
            stream,
            decoder: Decoder::new(max_message_bytes),
            mid_frame: false,
        }
    }

    /// Reads once and gives every event to `on_event`. Returns whether there may be more to read
    /// at once: whoever sends that much must let others have a turn.
    ///
    /// # Errors
    ///
    /// The [`Stop`] after which nothing more can be read.
    pub(crate) fn poll_read<B>(
        &mut self,
        cx: &mut Context<'_>,
        on_event: impl FnMut(Event<'_>) -> ControlFlow<B>,
    ) -> Poll<Result<bool, Stop<B>>> {
        READ_BUFFER.with_borrow_mut(|buffer| {
            let count = match ready!(poll_stream(&mut self.stream, cx, buffer)) {
                Ok(0) => return Poll::Ready(Err(Stop::Eof)),
                Ok(count) => count,
                Err(_) => return Poll::Ready(Err(Stop::Lost)),
            };
            self.feed(&mut buffer[..count], on_event)?;
            Poll::Ready(Ok(count == READ_BYTES))
        })
    }

    /// Gives every event in `bytes` to `on_event`, as if they had just been read.
    ///
    /// # Errors
    ///
    /// The [`Stop`] after which nothing more can be read.
    pub(crate) fn feed<B>(
        &mut self,
        mut bytes: &mut [u8],
        mut on_event: impl FnMut(Event<'_>) -> ControlFlow<B>,
    ) -> Result<(), Stop<B>> {
        while let Some(event) = self.decoder.decode(&mut bytes).map_err(Stop::Violation)? {
            if let ControlFlow::Break(value) = on_event(event) {
                return Err(Stop::Break(value));
            }
        }
        Ok(())
    }

    /// Writes once, as many of `frames` as there are and the stream takes, and removes what is
    /// written. Returns by how much that lowers the frames' cost.
    pub(crate) fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        frames: &mut VecDeque<Frame>,
    ) -> Poll<io::Result<usize>> {
        let mut slices = [IoSlice::new(&[]); WRITE_FRAMES];
        let count = frames.len().min(WRITE_FRAMES);
        for (slice, frame) in slices.iter_mut().zip(frames.iter()) {
            *slice = IoSlice::new(frame.bytes());
        }
        let written = ready!(Pin::new(&mut self.stream).poll_write_vectored(cx, &slices[..count]))?;
        if written == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        let mut left = written;
        let mut cost = 0;
        while let Some(frame) = frames.front_mut().filter(|frame| frame.len() <= left) {
            left -= frame.len();
            cost += frame.cost();
            frames.pop_front();
        }
        if let Some(frame) = frames.front_mut() {
            frame.advance(left);
        }
        self.mid_frame = left > 0;
        Poll::Ready(Ok(cost + left))
    }

    /// Whether the first of the frames given to [`poll_write`](Socket::poll_write) has been written
    /// in part, so that its rest must come next.
    pub(crate) fn mid_frame(&self) -> bool {
        self.mid_frame
    }

    /// Writes `frames`, the last of them a Close frame, says that nothing more will come, and
    /// discards what still comes until the peer has closed, too: closing over unread bytes would
    /// take the Close frame back (RFC 6455, section 7.1.1). It waits for the peer, so the caller
    /// must set a time limit.
    pub(crate) async fn close(&mut self, mut frames: VecDeque<Frame>) -> io::Result<()> {
        poll_fn(|cx| {
            while !frames.is_empty() {
                ready!(self.poll_write(cx, &mut frames))?;
            }
            Pin::new(&mut self.stream).poll_shutdown(cx)
        })
        .await?;
        let discard = |cx: &mut Context<'_>, stream: &mut S| {
            READ_BUFFER.with_borrow_mut(|buffer| poll_stream(stream, cx, buffer))
        };
        while poll_fn(|cx| discard(cx, &mut self.stream)).await? > 0 {}
        Ok(())
    }
}

/// Reads once; 0 is the end of the stream.
fn poll_stream(
    stream: &mut (impl AsyncRead + Unpin),
    cx: &mut Context<'_>,
    buffer: &mut [u8],
) -> Poll<io::Result<usize>> {
    let mut buffer = ReadBuf::new(buffer);
    ready!(Pin::new(stream).poll_read(cx, &mut buffer))?;
    Poll::Ready(Ok(buffer.filled().len()))
}
