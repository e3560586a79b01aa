//! One session's life, top to bottom: start, join, serve, leave, say goodbye.

use std::{
    fmt::{self, Display},
    future::poll_fn,
    ops::ControlFlow,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use log::debug;
use tokio::{
    io::{AsyncRead, AsyncWrite, split},
    net::{TcpStream, tcp::OwnedReadHalf},
    time::timeout,
};

use crate::{
    Shared,
    admission::Place,
    heartbeat::Beat,
    outbox::{FlushError, Outbox, Unflushed, outbox},
    protocol::{self, Close, CloseCode, Message, Problem, Receiver, RoomName, SessionId},
    requests,
    rooms::Membership,
    websocket::{Event, Frame, Reader, Stop, Violation, Writer},
};

/// How long a client has to take its Close frame and close its side. A restarting server grants its
/// drain time instead.
const GOODBYE_LIMIT: Duration = Duration::from_secs(2);

type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Starts the task of a session that lives on `connection` once it is upgraded. The session keeps
/// its `place` to the end.
pub(crate) fn start(shared: Arc<Shared>, room: RoomName, connection: OnUpgrade, place: Place) {
    let tasks = shared.tasks.clone();
    tasks.spawn(async move {
        let handshake = shared.config.handshake();
        if let Some(Ok(upgraded)) = in_time(&shared, handshake, connection).await {
            life(&shared, room, upgraded).await;
        }
        drop(place);
    });
}

/// The life of a session on `upgraded`. In a box of just its size, for it is most of what a session
/// costs while it is idle.
fn life(shared: &Shared, room: RoomName, upgraded: Upgraded) -> BoxFuture<'_, ()> {
    match upgraded.downcast::<TokioIo<TcpStream>>() {
        Ok(parts) => {
            let (reader, writer) = parts.io.into_inner().into_split();
            // The kernel must not go on trying for minutes.
            let abort = |reader: OwnedReadHalf| _ = reader.as_ref().set_zero_linger();
            Box::pin(run(shared, room, reader, writer, parts.read_buf, abort))
        }
        // Under another server than ours the stream is of a type we cannot name.
        Err(upgraded) => {
            let (reader, writer) = split(TokioIo::new(upgraded));
            Box::pin(run(shared, room, reader, writer, Bytes::new(), drop))
        }
    }
}

/// Lives the life of a session between two halves of a stream; `early` is what the client sent right
/// behind its handshake. Who does not take the goodbye is cut off with `abort`.
async fn run<R: AsyncRead + Send + Unpin>(
    shared: &Shared,
    room: RoomName,
    reader: R,
    writer: impl AsyncWrite + Send + Unpin + 'static,
    early: Bytes,
    abort: fn(R),
) {
    let mut reader = Reader::new(reader, shared.config.max_message_bytes);
    let mut session = Session::join(shared, room, Writer::new(writer));
    let end = session.serve(&mut reader, early).await;
    let (mut writer, last_frames) = session.leave(&end);

    let limit = match end {
        End::Lost => return,
        End::Closed(Close {
            code: CloseCode::ServiceRestart,
            ..
        }) => shared.config.drain(),
        _ => GOODBYE_LIMIT,
    };
    let goodbye = async {
        writer.close(last_frames).await?;
        reader.discard().await
    };
    let taken = in_time(shared, limit, goodbye).await;
    if taken.is_none() && !shared.stopped.is_cancelled() {
        abort(reader.into_inner());
    }
}

/// The outcome of `work`, unless it takes longer than `limit`, or the server stops waiting; but it
/// is begun in any case. In a box, so that a session that lives need not keep room for it.
fn in_time<'a, T>(
    shared: &'a Shared,
    limit: Duration,
    work: impl Future<Output = T> + Send + 'a,
) -> BoxFuture<'a, Option<T>> {
    Box::pin(async move {
        tokio::select! {
            biased;
            outcome = timeout(limit, work) => outcome.ok(),
            () = shared.stopped.cancelled() => None,
        }
    })
}

/// A session that is in its room.
struct Session<'a> {
    id: SessionId,
    shared: &'a Shared,
    membership: Membership<'a>,
    beat: Beat<'a>,
    outbox: Outbox,
    /// Whom it has sent something that is not written yet.
    unflushed: Unflushed,
}

/// Why a session ended.
enum End {
    /// The connection broke.
    Lost,
    /// The client closed its side of the connection without a Close frame.
    Eof,
    /// The client sent a Close frame, with this code if it gave one.
    Left(Option<u16>),
    /// The server closes it.
    Closed(Close),
}

impl<'a> Session<'a> {
    fn join(shared: &'a Shared, room: RoomName, writer: Writer) -> Session<'a> {
        let id = SessionId::random();
        let (sender, outbox) = outbox(shared.config.outbox_bytes, writer);
        let membership = shared.rooms.join(room, id, sender.clone());
        let beat = shared.heartbeat.register(id, sender.clone());
        if shared.stopping.is_cancelled() {
            // It came too late to be among those who were told.
            sender.close(Close::restart(0));
        }
        debug!("{id} joined {}", membership.room());
        Session {
            id,
            shared,
            membership,
            beat,
            outbox,
            unflushed: Unflushed::default(),
        }
    }

    /// Takes in what the client sends and writes what waits for it, until something ends the
    /// session.
    async fn serve<R>(&mut self, reader: &mut Reader<R>, early: Bytes) -> End
    where
        R: AsyncRead + Unpin,
    {
        let mut early = Vec::from(early);
        if let Err(stop) = reader.feed(&mut early, |event| self.on_event(event)) {
            return self.on_stop(stop);
        }
        drop(early);
        poll_fn(|cx| self.poll_serve(cx, reader)).await
    }

    /// Takes in what has come, then writes what waits for the session and what it has sent to
    /// others; ready only when the session shall end.
    fn poll_serve<R>(&mut self, cx: &mut Context<'_>, reader: &mut Reader<R>) -> Poll<End>
    where
        R: AsyncRead + Unpin,
    {
        let mut read = reader.poll_read(cx, |event| self.on_event(event));
        if let Poll::Ready(Ok(false)) = read {
            // Nothing more is there; this asks to be woken when there is.
            read = reader.poll_read(cx, |event| self.on_event(event));
        }
        if let Poll::Ready(Err(stop)) = read {
            return Poll::Ready(self.on_stop(stop));
        }
        match self.outbox.poll_flush(cx) {
            Poll::Ready(Err(FlushError::Lost)) => return Poll::Ready(End::Lost),
            Poll::Ready(Err(FlushError::Closing(close))) => {
                return Poll::Ready(End::Closed(close));
            }
            Poll::Ready(Ok(())) | Poll::Pending => {}
        }
        self.unflushed.flush();
        if read.is_ready() {
            // The receivers are to write, too, before more comes for them.
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }

    /// Leaves the room, and returns the frames to go: what still waits, and the goodbye. Who was
    /// too slow gets the goodbye alone, behind the frame it is in the middle of.
    fn leave(self, end: &End) -> (Writer, impl Iterator<Item = Frame>) {
        debug!("{} left {}: {end}", self.id, self.membership.room());
        drop(self.membership);
        let (mut writer, rest) = self.outbox.into_rest();
        let goodbye = match end {
            End::Lost | End::Eof => None,
            End::Left(code) => Some(Frame::close(code.map(|code| (code, "")))),
            End::Closed(close) => Some(close.frame()),
        };
        if let End::Closed(Close {
            code: CloseCode::TryAgainLater,
            ..
        }) = end
        {
            writer.clear();
        }
        (writer, rest.into_iter().chain(goodbye))
    }

    fn on_event(&mut self, event: Event<'_>) -> ControlFlow<End> {
        // Nothing more is done for a session that is being closed.
        if let Some(close) = self.outbox.closing() {
            return ControlFlow::Break(End::Closed(close));
        }
        match event {
            Event::Text(text) => self.on_message(text),
            Event::Ping(payload) => self.outbox.push(&Frame::pong(payload)),
            Event::Pong(_) => self.beat.pong(),
            Event::Binary(_) => {
                let reason = "a binary message: send JSON as text";
                let close = Close::new(CloseCode::UnsupportedData, reason);
                return ControlFlow::Break(End::Closed(close));
            }
            Event::Close(status) => return ControlFlow::Break(End::Left(status.map(|s| s.0))),
        }
        ControlFlow::Continue(())
    }

    fn on_stop(&self, stop: Stop<End>) -> End {
        let violation = match stop {
            Stop::Lost => return End::Lost,
            Stop::Eof => return End::Eof,
            Stop::Break(end) => return end,
            Stop::Violation(violation) => violation,
        };
        End::Closed(match violation {
            Violation::Protocol(what) => Close::new(CloseCode::ProtocolError, what),
            Violation::Utf8 => Close::new(CloseCode::InvalidPayload, "text that is not UTF-8"),
            Violation::TooLong => {
                let reason = format!(
                    "a message over {} bytes",
                    self.shared.config.max_message_bytes
                );
                Close::new(CloseCode::MessageTooBig, reason)
            }
        })
    }

    /// Routes one message, and answers what must be answered.
    fn on_message(&mut self, text: &str) {
        let (result, reference) = match protocol::parse(text) {
            Ok(message) => (self.route(&message), message.reference),
            Err(invalid) => (Err(invalid.problem), invalid.reference),
        };
        match (result, reference) {
            (Ok(receivers), Some(reference)) => {
                self.outbox
                    .push(&protocol::ack(self.id, reference, receivers));
            }
            (Ok(_), None) => {}
            (Err(problem), reference) => {
                self.outbox
                    .push(&protocol::error(self.id, &problem, reference));
            }
        }
    }

    /// Delivers a message; returns to how many.
    fn route(&mut self, message: &Message<'_>) -> Result<usize, Problem> {
        match &message.receiver {
            Receiver::Session(id) => {
                let frame = protocol::relayed(message, self.id, Some(*id));
                let sent = self.membership.send(*id, &frame, &mut self.unflushed);
                if sent {
                    Ok(1)
                } else {
                    Err(Problem::unknown_receiver(id))
                }
            }
            Receiver::All => {
                let frame = protocol::relayed(message, self.id, None);
                match self.membership.broadcast(&frame, &mut self.unflushed) {
                    0 => Err(Problem::empty_room()),
                    receivers => Ok(receivers),
                }
            }
            Receiver::Server => {
                requests::answer(
                    message,
                    self.id,
                    &self.membership,
                    &self.outbox,
                    &self.shared.config,
                )?;
                Ok(1)
            }
            Receiver::Unknown(name) => Err(Problem::unknown_receiver(name)),
        }
    }
}

impl Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            End::Lost => f.write_str("the connection was lost"),
            End::Eof => f.write_str("the client closed without a word"),
            End::Left(Some(code)) => write!(f, "the client closed ({code})"),
            End::Left(None) => f.write_str("the client closed"),
            End::Closed(close) => write!(f, "closed by the server ({close})"),
        }
    }
}
