//! The socket: a stream of bytes, read as events and written as frames.

use std::{
    cell::RefCell,
    collections::VecDeque,
    future::poll_fn,
    io, mem,
    ops::ControlFlow,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use futures_util::FutureExt;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt, Interest, ReadBuf},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    task::coop::consume_budget,
};
use tokio_rustls::server::TlsStream;
use tokio_util::either::Either;

use crate::metrics::Traffic;

use super::{Event, Frame, Violation, decode::Decoder};

/// How many bytes one read takes at most. One buffer serves all sessions of a thread, so that none
/// has its own.
const READ_BYTES: usize = 16 * 1024;

/// How many bytes of small frames are put together for one write. The kernel takes one piece faster
/// than a list of many, by more than the copying costs.
const WRITE_BYTES: usize = 32 * 1024;

/// How many frames a writer has room for while it has none.
const KEPT_PLACES: usize = 4;

thread_local! {
    static READ_BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; READ_BYTES].into());
    static WRITE_BUFFER: RefCell<Vec<u8>> = RefCell::new(Vec::with_capacity(WRITE_BYTES));
}

/// What is to follow an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// The next event.
    Event,
    /// Nothing yet: what has been read behind the event is kept for the next read.
    #[allow(dead_code, reason = "websocket-echo never pauses")]
    Pause,
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

/// A stream that is no plain socket.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {
    /// Has the kernel forget what the peer has not taken, as soon as the stream is dropped. Nothing where
    /// its socket is not known.
    fn abort(&self) {}

    /// Whether the peer has closed its side. False where its socket is not known.
    fn is_closed(&self) -> bool {
        false
    }
}

impl Stream for TlsStream<TcpStream> {
    fn abort(&self) {
        // Where that fails, the connection is gone already.
        let _ = self.get_ref().0.set_zero_linger();
    }

    fn is_closed(&self) -> bool {
        is_closed(self.get_ref().0)
    }
}

/// Under another server than ours the stream is of a type we cannot name.
impl Stream for TokioIo<Upgraded> {}

/// One of the two halves of such a stream.
struct Half(Arc<Mutex<dyn Stream>>);

impl Half {
    fn split(stream: impl Stream + 'static) -> (Half, Half) {
        let stream: Arc<Mutex<dyn Stream>> = Arc::new(Mutex::new(stream));
        (Half(stream.clone()), Half(stream))
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

/// The receiving half of a connection. It keeps no buffer while nothing is under way.
pub(crate) struct Reader {
    /// A plain socket, as most are, or another stream.
    stream: Either<OwnedReadHalf, Half>,
    /// What has been read already: what the peer has sent right behind its handshake, or what stood
    /// behind the event at which the caller has paused.
    unread: Box<[u8]>,
    decoder: Decoder,
    traffic: Arc<Traffic>,
}

/// The sending half of a connection, with the frames it is writing.
pub(crate) struct Writer {
    /// A plain socket, as most are, or another stream.
    stream: Either<OwnedWriteHalf, Box<dyn AsyncWrite + Send + Unpin>>,
    frames: VecDeque<Frame>,
    /// How many bytes of the first frame are written.
    written: usize,
    /// Whether the stream has last taken less than it was given.
    is_full: bool,
    traffic: Arc<Traffic>,
}

/// The two halves of an upgraded connection, which accepts messages of at most `max_message_bytes`.
pub(crate) fn split(
    upgraded: Upgraded,
    max_message_bytes: usize,
    traffic: &Arc<Traffic>,
) -> (Reader, Writer) {
    let (reader, writer, early) = match upgraded.downcast::<TokioIo<TcpStream>>() {
        Ok(parts) => {
            let (reader, writer) = parts.io.into_inner().into_split();
            let early = Vec::from(parts.read_buf);
            (Either::Left(reader), Either::Left(writer), early)
        }
        Err(upgraded) => {
            let (halves, early) = match upgraded.downcast::<TokioIo<TlsStream<TcpStream>>>() {
                Ok(parts) => (Half::split(parts.io.into_inner()), parts.read_buf.into()),
                Err(upgraded) => (Half::split(TokioIo::new(upgraded)), Vec::new()),
            };
            let writer = Either::Right(Box::new(halves.1) as _);
            (Either::Right(halves.0), writer, early)
        }
    };
    traffic.received_bytes.inc_by(early.len() as u64);
    let reader = Reader {
        stream: reader,
        unread: early.into(),
        decoder: Decoder::new(max_message_bytes),
        traffic: traffic.clone(),
    };
    (reader, Writer::new(writer, traffic.clone()))
}

impl Reader {
    /// Reads once and gives every event to `on_event`. Returns whether there may be more to read
    /// at once: whoever sends that much must let others have a turn.
    ///
    /// # Errors
    ///
    /// The [`Stop`] after which nothing more can be read.
    pub(crate) fn poll_read<B>(
        &mut self,
        cx: &mut Context<'_>,
        on_event: impl FnMut(Event<'_>) -> ControlFlow<B, Next>,
    ) -> Poll<Result<bool, Stop<B>>> {
        if !self.unread.is_empty() {
            let mut unread = mem::take(&mut self.unread);
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

    /// Gives every event in `bytes` to `on_event`, as if they had just been read.
    ///
    /// # Errors
    ///
    /// The [`Stop`] after which nothing more can be read.
    fn feed<B>(
        &mut self,
        mut bytes: &mut [u8],
        mut on_event: impl FnMut(Event<'_>) -> ControlFlow<B, Next>,
    ) -> Result<(), Stop<B>> {
        while let Some(event) = self.decoder.decode(&mut bytes).map_err(Stop::Violation)? {
            match on_event(event) {
                ControlFlow::Continue(Next::Event) => {}
                ControlFlow::Continue(Next::Pause) => {
                    self.unread = Box::from(&*bytes);
                    break;
                }
                ControlFlow::Break(value) => return Err(Stop::Break(value)),
            }
        }
        Ok(())
    }

    /// Discards what still comes until the peer has closed, too: closing over unread bytes would
    /// take the Close frame back (RFC 6455, section 7.1.1). It waits for the peer, so the caller
    /// must set a time limit.
    pub(crate) async fn discard(&mut self) -> io::Result<()> {
        let discard = |cx: &mut Context<'_>, stream: &mut _| {
            READ_BUFFER.with_borrow_mut(|buffer| poll_stream(stream, cx, buffer))
        };
        while poll_fn(|cx| discard(cx, &mut self.stream)).await? > 0 {}
        Ok(())
    }

    /// Whether the peer has closed its side of the stream, as far as that can be known without reading
    /// what it has sent before.
    pub(crate) fn is_closed(&self) -> bool {
        match &self.stream {
            Either::Left(socket) => is_closed(socket.as_ref()),
            Either::Right(half) => half.0.lock().is_closed(),
        }
    }

    /// Ends the connection without waiting for what the peer has not taken: the kernel must not go
    /// on trying for minutes.
    pub(crate) fn abort(self) {
        match &self.stream {
            // Where that fails, the connection is gone already.
            Either::Left(socket) => _ = socket.as_ref().set_zero_linger(),
            Either::Right(half) => half.0.lock().abort(),
        }
    }
}

impl Writer {
    /// Writes to a plain socket or another stream.
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

    /// Takes over what stands in `queue`, if it has nothing to write; returns whether it has now.
    pub(crate) fn refill(&mut self, queue: &mut VecDeque<Frame>) -> bool {
        if self.frames.is_empty() {
            if self.frames.capacity() > KEPT_PLACES {
                self.frames = VecDeque::new();
            }
            mem::swap(&mut self.frames, queue);
        }
        !self.frames.is_empty()
    }

    /// Writes once, as many frames as the stream takes. Returns the cost of those that are written
    /// as a whole.
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

    /// Whether the stream may keep back what is written until it is flushed, as one with TLS may.
    pub(crate) fn keeps_back(&self) -> bool {
        matches!(self.stream, Either::Right(_))
    }

    /// Has what is written leave a stream that keeps it back.
    pub(crate) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    /// For how many frames it keeps room.
    #[cfg(test)]
    pub(crate) fn capacity(&self) -> usize {
        self.frames.capacity()
    }

    /// Drops what is not written, but for the rest of a frame that is written in part.
    pub(crate) fn clear(&mut self) {
        self.frames.truncate(usize::from(self.written > 0));
    }

    /// Writes what there is and then `frames`, the last of them a Close frame, and says that
    /// nothing more will come.
    pub(crate) async fn close(&mut self, frames: impl Iterator<Item = Frame>) -> io::Result<()> {
        self.frames.extend(frames);
        while !self.frames.is_empty() {
            poll_fn(|cx| self.poll_write(cx)).await?;
            // There may be much, and others are to have their turns.
            consume_budget().await;
        }
        self.stream.shutdown().await
    }
}

/// Whether the peer has closed its side of a connection: the operating system says so also before what
/// was sent is read.
fn is_closed(socket: &TcpStream) -> bool {
    let ready = socket.ready(Interest::READABLE).now_or_never();
    ready.is_some_and(|ready| ready.is_ok_and(|ready| ready.is_read_closed()))
}

/// Puts as many of the frames into the buffer as it has room for.
fn gather(frames: &VecDeque<Frame>, buffer: &mut Vec<u8>) {
    buffer.clear();
    for frame in frames {
        if buffer.len() + frame.len() > WRITE_BYTES {
            break;
        }
        buffer.extend_from_slice(frame.bytes());
    }
}

/// Writes once. A plain socket mostly takes what it is given, and is tried directly: tokio's record of
/// its readiness is cold memory. Once it has not taken everything, tokio must try for itself: only its
/// own failed write clears that record, and has the task woken.
fn write(
    stream: &mut Either<OwnedWriteHalf, Box<dyn AsyncWrite + Send + Unpin>>,
    is_full: &mut bool,
    cx: &mut Context<'_>,
    bytes: &[u8],
) -> Poll<io::Result<usize>> {
    #[cfg(target_os = "linux")]
    if let Either::Left(socket) = stream
        && !*is_full
    {
        use rustix::net::{SendFlags, send};

        let sent = send(socket.as_ref(), bytes, SendFlags::NOSIGNAL);
        *is_full = sent != Ok(bytes.len());
        if let Ok(count) = sent {
            return Poll::Ready(Ok(count));
        }
    }
    let written = ready!(Pin::new(stream).poll_write(cx, bytes))?;
    *is_full = written < bytes.len();
    Poll::Ready(Ok(written))
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
