//! One session's life, top to bottom: start, join, serve, leave, say goodbye.

use std::{
    collections::VecDeque,
    fmt::{self, Display},
    future::poll_fn,
    ops::ControlFlow,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use log::debug;
use tokio::{
    io::{AsyncRead, split},
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

/// Starts a session on `connection` once it is upgraded. The session keeps its `place` to the end.
pub(crate) fn start(shared: Arc<Shared>, room: RoomName, connection: OnUpgrade, place: Place) {
    let tasks = shared.tasks.clone();
    tasks.spawn(async move {
        let handshake = shared.config.handshake();
        let Some(Ok(upgraded)) = in_time(&shared, handshake, connection).await else {
            return;
        };
        match upgraded.downcast::<TokioIo<TcpStream>>() {
            Ok(parts) => {
                let (reader, writer) = parts.io.into_inner().into_split();
                let session = Session::join(shared, room, Writer::to_socket(writer), place);
                // The kernel must not go on trying for minutes.
                let abort = |reader: OwnedReadHalf| _ = reader.as_ref().set_zero_linger();
                session.live(reader, parts.read_buf, abort);
            }
            // Under another server than ours the stream is of a type we cannot name.
            Err(upgraded) => {
                let (reader, writer) = split(TokioIo::new(upgraded));
                let session = Session::join(shared, room, Writer::to_stream(writer), place);
                session.live(reader, Bytes::new(), drop);
            }
        }
    });
}

/// The outcome of `work`, unless it takes longer than `limit`, or the server stops waiting; but it
/// is begun in any case.
async fn in_time<T>(shared: &Shared, limit: Duration, work: impl Future<Output = T>) -> Option<T> {
    tokio::select! {
        biased;
        outcome = timeout(limit, work) => outcome.ok(),
        () = shared.stopped.cancelled() => None,
    }
}

/// A session that is in its room.
struct Session {
    shared: Arc<Shared>,
    membership: Membership,
    beat: Beat,
    outbox: Outbox,
    place: Place,
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

impl Session {
    fn join(shared: Arc<Shared>, room: RoomName, writer: Writer, place: Place) -> Session {
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
            shared,
            membership,
            beat,
            outbox,
            place,
        }
    }

    /// Lives in a task of its own; `early` is what the client sent right behind its handshake. Who
    /// does not take the goodbye is cut off with `abort`.
    ///
    /// The task is most of what a session costs while it is idle. It holds just these few things,
    /// and what is needed once, at the end, is in a box.
    fn live<R>(mut self, reader: R, early: Bytes, abort: fn(R))
    where
        R: AsyncRead + Send + Unpin + 'static,
    {
        let tasks = self.shared.tasks.clone();
        let mut reader = Reader::new(reader, self.shared.config.max_message_bytes);
        let mut early: Box<[u8]> = Vec::from(early).into();
        tasks.spawn(async move {
            let begin = {
                let mut unflushed = Unflushed::default();
                reader.feed(&mut early, |event| self.on_event(event, &mut unflushed))
            };
            let end = match begin {
                Ok(()) => poll_fn(|cx| self.poll_serve(cx, &mut reader)).await,
                Err(stop) => self.on_stop(stop),
            };
            let (goodbye, place) = self.leave(end);
            Box::pin(goodbye.say(reader, abort)).await;
            drop(place);
        });
    }

    /// Takes in what has come, then writes what waits for the session and what it has sent to
    /// others; ready only when the session shall end.
    fn poll_serve<R>(&mut self, cx: &mut Context<'_>, reader: &mut Reader<R>) -> Poll<End>
    where
        R: AsyncRead + Unpin,
    {
        // Whom it sends something that is not written yet.
        let mut unflushed = Unflushed::default();
        let mut read = reader.poll_read(cx, |event| self.on_event(event, &mut unflushed));
        if let Poll::Ready(Ok(false)) = read {
            // Nothing more is there; this asks to be woken when there is.
            read = reader.poll_read(cx, |event| self.on_event(event, &mut unflushed));
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
        unflushed.flush();
        if read.is_ready() {
            // The receivers are to write, too, before more comes for them.
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }

    /// Leaves the room. What is left is a goodbye to say, and its place.
    fn leave(self, end: End) -> (Goodbye, Place) {
        debug!(
            "{} left {}: {end}",
            self.membership.id(),
            self.membership.room()
        );
        drop(self.membership);
        let (writer, waiting) = self.outbox.into_rest();
        let goodbye = Goodbye {
            shared: self.shared,
            end,
            writer,
            waiting,
        };
        (goodbye, self.place)
    }

    fn on_event(&self, event: Event<'_>, unflushed: &mut Unflushed) -> ControlFlow<End> {
        // Nothing more is done for a session that is being closed.
        if let Some(close) = self.outbox.closing() {
            return ControlFlow::Break(End::Closed(close));
        }
        match event {
            Event::Text(text) => self.on_message(text, unflushed),
            Event::Ping(payload) => self.outbox.push(Frame::pong(payload)),
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
    fn on_message(&self, text: &str, unflushed: &mut Unflushed) {
        let (result, reference) = match protocol::parse(text) {
            Ok(message) => (self.route(&message, unflushed), message.reference),
            Err(invalid) => (Err(invalid.problem), invalid.reference),
        };
        let id = self.membership.id();
        let answer = match (result, reference) {
            (Ok(receivers), Some(reference)) => protocol::ack(id, reference, receivers),
            (Ok(_), None) => return,
            (Err(problem), reference) => protocol::error(id, &problem, reference),
        };
        self.outbox.push(answer);
    }

    /// Delivers a message; returns to how many.
    fn route(&self, message: &Message<'_>, unflushed: &mut Unflushed) -> Result<usize, Problem> {
        let membership = &self.membership;
        match &message.receiver {
            Receiver::Session(id) => {
                let frame = protocol::relayed(message, membership.id(), Some(*id));
                match membership.send(*id, frame, unflushed) {
                    true => Ok(1),
                    false => Err(Problem::unknown_receiver(id)),
                }
            }
            Receiver::All => {
                let frame = protocol::relayed(message, membership.id(), None);
                match membership.broadcast(&frame, unflushed) {
                    0 => Err(Problem::empty_room()),
                    receivers => Ok(receivers),
                }
            }
            Receiver::Server => {
                requests::answer(message, membership, &self.outbox, &self.shared.config)?;
                Ok(1)
            }
            Receiver::Unknown(name) => Err(Problem::unknown_receiver(name)),
        }
    }
}

/// What is to be said to a client whose session has ended.
struct Goodbye {
    shared: Arc<Shared>,
    end: End,
    writer: Writer,
    /// What still waits to be written.
    waiting: VecDeque<Frame>,
}

impl Goodbye {
    /// Says it behind all that waits; but who was too slow gets it alone, behind the frame it is in
    /// the middle of. Then waits until the client closes its side, and cuts it off with `abort` if
    /// it does not in time.
    async fn say<R: AsyncRead + Unpin>(mut self, mut reader: Reader<R>, abort: fn(R)) {
        let (frame, limit) = match &self.end {
            End::Lost => return,
            End::Eof => (None, GOODBYE_LIMIT),
            End::Left(code) => (
                Some(Frame::close(code.map(|code| (code, "")))),
                GOODBYE_LIMIT,
            ),
            End::Closed(close) => {
                let limit = match close.code {
                    CloseCode::ServiceRestart => self.shared.config.drain(),
                    _ => GOODBYE_LIMIT,
                };
                if let CloseCode::TryAgainLater = close.code {
                    self.writer.clear();
                }
                (Some(close.frame()), limit)
            }
        };
        let last_frames = self.waiting.into_iter().chain(frame);
        let goodbye = async {
            self.writer.close(last_frames).await?;
            reader.discard().await
        };
        let taken = in_time(&self.shared, limit, goodbye).await;
        if taken.is_none() && !self.shared.stopped.is_cancelled() {
            abort(reader.into_inner());
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
