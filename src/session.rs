//! One session's life, top to bottom: start, join, serve, leave, say goodbye.

use std::{
    collections::VecDeque,
    fmt::{self, Display},
    future::poll_fn,
    ops::ControlFlow,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use log::debug;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::timeout,
};

use crate::{
    Shared,
    admission::Place,
    heartbeat::Beat,
    outbox::{Outbox, outbox},
    protocol::{self, Close, CloseCode, Message, Problem, Receiver, RoomName, SessionId},
    requests,
    rooms::Membership,
    websocket::{Event, Frame, Socket, Stop, Violation},
};

/// How long a client has to take its Close frame and close its side. A restarting server grants its
/// drain time instead.
const GOODBYE_LIMIT: Duration = Duration::from_secs(2);

/// Starts the task of a session that lives on `connection` once it is upgraded. The session keeps
/// its `place` to the end.
pub(crate) fn start(shared: Arc<Shared>, room: RoomName, connection: OnUpgrade, place: Place) {
    let tasks = shared.tasks.clone();
    tasks.spawn(async move {
        let _place = place;
        let upgraded = tokio::select! {
            upgraded = timeout(shared.config.handshake(), connection) => upgraded,
            () = shared.stopped.cancelled() => return,
        };
        let Ok(Ok(upgraded)) = upgraded else { return };
        match upgraded.downcast::<TokioIo<TcpStream>>() {
            Ok(parts) => {
                let mut stream = parts.io.into_inner();
                if let Goodbye::NotTaken = run(&shared, room, &mut stream, parts.read_buf).await {
                    // The kernel must not go on trying for minutes.
                    let _ = stream.set_zero_linger();
                }
            }
            // Under another server than ours the stream is of a type we cannot name.
            Err(upgraded) => {
                run(&shared, room, TokioIo::new(upgraded), Bytes::new()).await;
            }
        }
    });
}

/// Lives the life of a session on `stream`; `early` is what the client sent right behind its
/// handshake.
async fn run(
    shared: &Shared,
    room: RoomName,
    stream: impl AsyncRead + AsyncWrite + Unpin,
    early: Bytes,
) -> Goodbye {
    let mut socket = Socket::new(stream, shared.config.max_message_bytes);
    let mut session = Session::join(shared, room);
    let end = session.serve(&mut socket, early).await;
    let last_frames = session.leave(&end, socket.mid_frame());

    let limit = match end {
        End::Lost => return Goodbye::Said,
        End::Closed(Close {
            code: CloseCode::ServiceRestart,
            ..
        }) => shared.config.drain(),
        _ => GOODBYE_LIMIT,
    };
    tokio::select! {
        // Even without time to wait, it is said once.
        biased;
        said = timeout(limit, socket.close(last_frames)) => match said {
            Ok(_) => Goodbye::Said,
            Err(_) => Goodbye::NotTaken,
        },
        () = shared.stopped.cancelled() => Goodbye::Said,
    }
}

/// How a session parted from its client.
enum Goodbye {
    /// All is said that could be said.
    Said,
    /// The client did not take it, or did not close its side, in time.
    NotTaken,
}

/// A session that is in its room.
struct Session<'a> {
    id: SessionId,
    shared: &'a Shared,
    membership: Membership<'a>,
    beat: Beat<'a>,
    outbox: Outbox,
    /// What is taken from the outbox and not yet written.
    writing: VecDeque<Frame>,
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
    fn join(shared: &'a Shared, room: RoomName) -> Session<'a> {
        let id = SessionId::random();
        let (sender, outbox) = outbox(shared.config.outbox_bytes);
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
            writing: VecDeque::new(),
        }
    }

    /// Takes in what the client sends and writes what waits for it, until something ends the
    /// session.
    async fn serve<S>(&mut self, socket: &mut Socket<S>, early: Bytes) -> End
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let mut early = Vec::from(early);
        if let Err(stop) = socket.feed(&mut early, |event| self.on_event(event)) {
            return self.on_stop(stop);
        }
        drop(early);
        poll_fn(|cx| self.poll_serve(cx, socket)).await
    }

    /// Reads and writes in turns, so that what one read brings about can leave before the next;
    /// ready only when the session shall end.
    fn poll_serve<S>(&mut self, cx: &mut Context<'_>, socket: &mut Socket<S>) -> Poll<End>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        loop {
            let read = socket.poll_read(cx, |event| self.on_event(event));
            if let Poll::Ready(Err(stop)) = read {
                return Poll::Ready(self.on_stop(stop));
            }
            if let Poll::Ready(end) = self.poll_write(cx, socket) {
                return Poll::Ready(end);
            }
            match read {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(true)) => {
                    // The receivers are to write, too, before more comes for them.
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                Poll::Ready(_) => {}
            }
        }
    }

    /// Writes what waits; ready only when the session shall end.
    fn poll_write<S>(&mut self, cx: &mut Context<'_>, socket: &mut Socket<S>) -> Poll<End>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let mut written = 0;
        loop {
            if let Err(close) = ready!(self.outbox.poll_frames(cx, &mut self.writing, written)) {
                return Poll::Ready(End::Closed(close));
            }
            match ready!(socket.poll_write(cx, &mut self.writing)) {
                Ok(cost) => written = cost,
                Err(_) => return Poll::Ready(End::Lost),
            }
        }
    }

    /// Leaves the room, and returns the frames to go: what still waits, and the goodbye. Who was
    /// too slow gets the goodbye alone, behind the frame it is in the middle of.
    fn leave(self, end: &End, mid_frame: bool) -> VecDeque<Frame> {
        debug!("{} left {}: {end}", self.id, self.membership.room());
        drop(self.membership);
        let mut frames = self.writing;
        let goodbye = match end {
            End::Lost => return VecDeque::new(),
            End::Eof => None,
            End::Left(code) => Some(Frame::close(code.map(|code| (code, "")))),
            End::Closed(close) => Some(close.frame()),
        };
        if let End::Closed(Close {
            code: CloseCode::TryAgainLater,
            ..
        }) = end
        {
            frames.truncate(usize::from(mid_frame));
        }
        frames.append(&mut self.outbox.into_rest());
        frames.extend(goodbye);
        frames
    }

    fn on_event(&self, event: Event<'_>) -> ControlFlow<End> {
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
    fn on_message(&self, text: &str) {
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
    fn route(&self, message: &Message<'_>) -> Result<usize, Problem> {
        match &message.receiver {
            Receiver::Session(id) => {
                let frame = protocol::relayed(message, self.id, Some(*id));
                let sent = self.membership.send(*id, &frame);
                if sent {
                    Ok(1)
                } else {
                    Err(Problem::unknown_receiver(id))
                }
            }
            Receiver::All => {
                let frame = protocol::relayed(message, self.id, None);
                match self.membership.broadcast(&frame) {
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
