//! One session's life, top to bottom: join, serve, leave, say goodbye.

use std::{
    collections::VecDeque,
    fmt::{self, Display},
    future::poll_fn,
    ops::ControlFlow,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use log::debug;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::timeout,
};

use crate::{
    Shared,
    heartbeat::Beat,
    outbox::{Outbox, Sender, outbox},
    protocol::{self, Close, CloseCode, Message, Problem, Receiver, RoomName, SessionId},
    requests,
    rooms::Membership,
    websocket::{Event, Frame, Socket, Stop, Violation},
};

/// How long a client has to take its Close frame and close its side. A restarting server grants its
/// drain time instead.
const GOODBYE: Duration = Duration::from_secs(2);

/// Lives the life of a session on `stream`; `early` is what the client sent right behind its
/// handshake.
pub(crate) async fn run(
    shared: &Shared,
    room: RoomName,
    stream: impl AsyncRead + AsyncWrite + Unpin,
    early: Bytes,
) {
    let mut socket = Socket::new(stream, shared.config.max_message_bytes);
    let mut session = Session::join(shared, room);
    let end = session.serve(&mut socket, early).await;
    let last_frames = session.leave(&end, socket.mid_frame());

    let limit = match end {
        End::Lost => return,
        End::Closed(Close {
            code: CloseCode::ServiceRestart,
            ..
        }) => shared.config.drain(),
        _ => GOODBYE,
    };
    tokio::select! {
        // Even without time to wait, it is said once.
        biased;
        // Whether the client took it in time makes no difference any more.
        _ = timeout(limit, socket.close(last_frames)) => {}
        () = shared.stopped.cancelled() => {}
    }
}

/// A session that is in its room.
struct Session<'a> {
    id: SessionId,
    shared: &'a Shared,
    membership: Membership,
    beat: Beat,
    /// To the session itself: receipts, errors, answers.
    sender: Sender,
    outbox: Outbox,
    /// What is taken from the outbox and not yet written.
    writing: VecDeque<Frame>,
}

/// Why a session ended.
enum End {
    /// The connection broke, or closed without a Close frame.
    Lost,
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
            sender,
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
        if let Err(stop) = socket.take_in(&mut early, |event| self.on_event(event)) {
            return self.on_stop(stop);
        }
        drop(early);
        poll_fn(|cx| {
            while let Poll::Ready(read) = socket.poll_read(cx, |event| self.on_event(event)) {
                if let Err(stop) = read {
                    return Poll::Ready(self.on_stop(stop));
                }
            }
            self.poll_write(cx, socket)
        })
        .await
    }

    /// Writes what waits; ready only when the session shall end.
    fn poll_write<S>(&mut self, cx: &mut Context<'_>, socket: &mut Socket<S>) -> Poll<End>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        loop {
            if let Err(close) = ready!(self.outbox.poll_frames(cx, &mut self.writing)) {
                return Poll::Ready(End::Closed(close));
            }
            match ready!(socket.poll_write(cx, &mut self.writing)) {
                Ok(bytes) => self.outbox.written(bytes),
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
            End::Left(code) => Frame::close(code.map(|code| (code, ""))),
            End::Closed(close) => close.frame(),
        };
        if let End::Closed(Close {
            code: CloseCode::TryAgainLater,
            ..
        }) = end
        {
            frames.truncate(usize::from(mid_frame));
        }
        frames.append(&mut self.outbox.into_rest());
        frames.push_back(goodbye);
        frames
    }

    fn on_event(&self, event: Event<'_>) -> ControlFlow<End> {
        match event {
            Event::Text(text) => self.on_message(text),
            Event::Ping(payload) => self.answer(&Frame::pong(payload)),
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
                self.answer(&protocol::ack(self.id, reference, receivers));
            }
            (Ok(_), None) => {}
            (Err(problem), reference) => {
                self.answer(&protocol::error(self.id, &problem, reference));
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
                requests::answer(message, self.id, &self.membership, &self.shared.config)?;
                Ok(1)
            }
            Receiver::Unknown(name) => Err(Problem::unknown_receiver(name)),
        }
    }

    fn answer(&self, frame: &Frame) {
        // An outbox that is full ends the session by itself.
        let _ = self.sender.push(frame);
    }
}

impl Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            End::Lost => f.write_str("the connection was lost"),
            End::Left(Some(code)) => write!(f, "the client closed ({code})"),
            End::Left(None) => f.write_str("the client closed"),
            End::Closed(close) => write!(f, "closed by the server ({close})"),
        }
    }
}
