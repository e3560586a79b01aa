//! The receiving half of a connection.

use std::{
    cell::RefCell,
    future::poll_fn,
    io, mem,
    ops::ControlFlow,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, ReadBuf},
    net::tcp::OwnedReadHalf,
};
use tokio_util::either::Either;

use super::{
    decode::{Decoder, Event, Violation},
    stream::{Half, is_closed},
};
use crate::metrics::Traffic;

/// The most bytes that one read takes. One buffer serves all sessions of a thread, so that an idle
/// session holds none.
const READ_BYTES: usize = 16 * 1024;

thread_local! {
    static READ_BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; READ_BYTES].into());
}

/// Whether the reader continues after an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ReadControl {
    /// Report the next event.
    Continue,
    /// Stop for now: bytes that were read after this event are kept for the next read.
    #[allow(dead_code, reason = "websocket-echo never pauses")]
    Pause,
}

/// Why nothing more can be read.
#[derive(Debug)]
pub(crate) enum Stop<B> {
    /// The peer has closed its side of the stream.
    Eof,
    /// The connection failed.
    Lost,
    /// The peer broke the protocol, so the connection must be closed.
    Violation(Violation),
    /// The callback returned this with [`ControlFlow::Break`].
    Break(B),
}

/// The receiving half of a connection.
pub(crate) struct Reader {
    /// A plain socket, which is the most common case, or another stream.
    stream: Either<OwnedReadHalf, Half>,
    /// The longest accepted message, in bytes of payload.
    max_message_bytes: usize,
    /// What the last read has left; `None` in an idle connection.
    unfinished: Option<Box<Unfinished>>,
    traffic: Arc<Traffic>,
}

/// What is left between two reads.
struct Unfinished {
    /// Bytes that were read but not decoded: those that followed the handshake, or those after the event
    /// at which the caller paused.
    unread: Box<[u8]>,
    /// The decoder, with what is incomplete.
    decoder: Decoder,
}

impl Reader {
    /// A reader of messages of at most `max_message_bytes`, which decodes `unread` before it reads from
    /// the stream.
    pub(super) fn new(
        stream: Either<OwnedReadHalf, Half>,
        unread: Box<[u8]>,
        max_message_bytes: usize,
        traffic: Arc<Traffic>,
    ) -> Reader {
        let unfinished = (!unread.is_empty()).then(|| {
            let decoder = Decoder::new(max_message_bytes);
            Box::new(Unfinished { unread, decoder })
        });
        Reader {
            stream,
            max_message_bytes,
            unfinished,
            traffic,
        }
    }

    /// Reads once and calls `on_event` with every event. Returns whether more data may be available
    /// immediately; the caller must yield then, so that a peer that sends much does not delay others.
    ///
    /// # Errors
    ///
    /// The [`Stop`] after which nothing more can be read.
    pub(crate) fn poll_read<B>(
        &mut self,
        cx: &mut Context<'_>,
        on_event: impl FnMut(Event<'_>) -> ControlFlow<B, ReadControl>,
    ) -> Poll<Result<bool, Stop<B>>> {
        if let Some(unfinished) = &mut self.unfinished
            && !unfinished.unread.is_empty()
        {
            let mut unread = mem::take(&mut unfinished.unread);
            self.feed(&mut unread, on_event)?;
            return Poll::Ready(Ok(true));
        }
        READ_BUFFER.with_borrow_mut(|buffer| {
            let count = match ready!(poll_stream(&mut self.stream, cx, buffer)) {
                Ok(0) => return Poll::Ready(Err(Stop::Eof)),
                Ok(count) => count,
                Err(_) => return Poll::Ready(Err(Stop::Lost)),
            };
            self.traffic.received_bytes.inc_by(count as u64);
            self.feed(&mut buffer[..count], on_event)?;
            Poll::Ready(Ok(count == READ_BYTES))
        })
    }

    /// Decodes bytes and calls `on_event` with every event.
    ///
    /// # Errors
    ///
    /// The [`Stop`] after which nothing more can be read.
    fn feed<B>(
        &mut self,
        mut bytes: &mut [u8],
        mut on_event: impl FnMut(Event<'_>) -> ControlFlow<B, ReadControl>,
    ) -> Result<(), Stop<B>> {
        let mut decoder = match self.unfinished.take() {
            Some(unfinished) => unfinished.decoder,
            None => Decoder::new(self.max_message_bytes),
        };
        let mut unread: Box<[u8]> = Box::default();
        while let Some(event) = decoder.decode(&mut bytes).map_err(Stop::Violation)? {
            match on_event(event) {
                ControlFlow::Continue(ReadControl::Continue) => {}
                ControlFlow::Continue(ReadControl::Pause) => {
                    unread = Box::from(&*bytes);
                    break;
                }
                ControlFlow::Break(value) => return Err(Stop::Break(value)),
            }
        }
        if !unread.is_empty() || !decoder.is_idle() {
            self.unfinished = Some(Box::new(Unfinished { unread, decoder }));
        }
        Ok(())
    }

    /// Discards received data until the peer closes its side. If the socket were closed with unread data,
    /// TCP would send a reset, and the peer could lose the Close frame (RFC 6455, section 7.1.1). It
    /// waits for the peer, so the caller must set a time limit.
    pub(crate) async fn discard(&mut self) -> io::Result<()> {
        let discard = |cx: &mut Context<'_>, stream: &mut _| {
            READ_BUFFER.with_borrow_mut(|buffer| poll_stream(stream, cx, buffer))
        };
        while poll_fn(|cx| discard(cx, &mut self.stream)).await? > 0 {}
        Ok(())
    }

    /// Whether the peer has closed its side of the stream, as far as that is known without reading what
    /// it sent before.
    pub(crate) fn is_closed(&self) -> bool {
        match &self.stream {
            Either::Left(socket) => is_closed(socket.as_ref()),
            Either::Right(half) => half.is_closed(),
        }
    }

    /// Ends the connection and discards unsent data, which the kernel would otherwise try to deliver for
    /// minutes.
    pub(crate) fn abort(self) {
        match &self.stream {
            // It fails only if the connection has ended already.
            Either::Left(socket) => _ = socket.as_ref().set_zero_linger(),
            Either::Right(half) => half.abort(),
        }
    }
}

/// Reads once. 0 is the end of the stream.
fn poll_stream(
    stream: &mut (impl AsyncRead + Unpin),
    cx: &mut Context<'_>,
    buffer: &mut [u8],
) -> Poll<io::Result<usize>> {
    let mut buffer = ReadBuf::new(buffer);
    ready!(Pin::new(stream).poll_read(cx, &mut buffer))?;
    Poll::Ready(Ok(buffer.filled().len()))
}
