//! A session, and how it serves its connection: it reads messages, routes them, and writes what waits.

use std::{
    ops::ControlFlow,
    sync::Arc,
    task::{Context, Poll, ready},
};

use log::debug;
use serde_json::value::RawValue;
use tokio::time::Instant;

use super::{
    closing_handshake::ClosingHandshake,
    disconnect::Disconnect,
    groups::LobbyPlace,
    pace::Pace,
    permissions::Permissions,
    requests::{self, Answer, RequestContext},
    routed::Routed,
    topics::{Subscriber, Topics},
};
use crate::{
    access::SessionSlot,
    cluster,
    config::Limit,
    dialects::{self, Author, Command, WireFormat},
    outbox::{FlushError, FlushSet, Flushing, Outbox},
    protocol::{Close, CloseCode, Invalid, Message, Problem, Receiver, SessionId},
    rooms::{Delivery, JoinGuard, Speaker},
    state::{HeartbeatGuard, ResumeRegistration, Shared, Takeover},
    transport::Reader,
    turn::TurnSession,
    websocket::{Event, Frame, ReadControl, Stop, Violation},
};

/// The fewest bytes of a frame beside its payload: two, and the mask (RFC 6455, section 5.2).
const FRAME_BYTES: usize = 6;

/// A session in its room. An idle session costs little more than this: what few sessions need is in a
/// box.
pub(super) struct Session {
    pub(super) shared: Arc<Shared>,
    pub(super) join_guard: JoinGuard,
    pub(super) outbox: Outbox,
    /// Present while the session is not read from because many outboxes are being flushed.
    flushing: Option<Box<FlushWait>>,
    pub(super) heartbeat: HeartbeatGuard,
    slot: SessionSlot,
    /// Present where the server asks for tokens.
    pub(super) permissions: Option<Box<Permissions>>,
    /// Present where the session has rates or a quota.
    pub(super) pace: Option<Box<Pace>>,
    /// Present once the session is resumable.
    pub(super) registration: Option<Box<ResumeRegistration>>,
    /// Present if this process is a TURN server.
    pub(super) turn: Option<Box<TurnSession>>,
    /// Present where the session joins its rooms one by one.
    pub(super) topics: Option<Box<Topics>>,
    /// Present where the session is in a group.
    pub(super) lobby: Option<Box<LobbyPlace>>,
}

/// A session's wait for the end of a flush.
struct FlushWait {
    flushing: Flushing,
    /// Whether another one came before it. In a crowd, many may follow, so the session owes no pong.
    is_long: bool,
}

/// What is left of a session.
pub(super) struct Ended {
    /// A takeover that came too late.
    pub(super) late: Option<Takeover>,
    /// The closing handshake of its connection, if it has one.
    pub(super) handshake: Option<(ClosingHandshake, Reader)>,
    /// The slot of the session, which the connection keeps to its end.
    pub(super) slot: Option<SessionSlot>,
}

impl Session {
    /// A session that has joined its room, with what its token allows and what it owes to its rates.
    pub(super) fn new(
        shared: Arc<Shared>,
        join_guard: JoinGuard,
        outbox: Outbox,
        permissions: Option<cluster::Permissions>,
        slot: SessionSlot,
        owed: [u64; 2],
    ) -> Session {
        let sender = outbox.sender();
        shared.metrics.joins.inc();
        let permissions = permissions.map(|permissions| {
            let permissions = Permissions::new(permissions, &shared.expiries, sender.clone());
            Box::new(permissions)
        });
        let heartbeat = shared.heartbeat.register(sender.clone());
        if shared.stopping.is_cancelled() {
            // The session may have begun too late to be told with the others.
            shared.stop_session(&sender, 0);
        }
        Session {
            heartbeat,
            pace: Pace::new(&shared.config.limits, owed),
            turn: shared.turn.as_ref().map(|turn| turn.admit(join_guard.id())),
            shared,
            join_guard,
            outbox,
            flushing: None,
            slot,
            permissions,
            registration: None,
            topics: None,
            lobby: None,
        }
    }

    /// The session's id.
    pub(super) fn id(&self) -> SessionId {
        self.join_guard.id()
    }

    /// What the client speaks.
    pub(super) fn format(&self) -> &'static dyn WireFormat {
        dialects::of(self.join_guard.room().dialect())
    }

    /// Ends the joining of a session that claims a name, unless another session has it.
    pub(super) fn open_name(&self) {
        if self.join_guard.info().name().is_some() {
            self.join_guard.open_name(self.format().opened(self.id()));
        }
    }

    /// Reads and routes what has come, writes what waits for this session, and flushes the outboxes that
    /// this session has filled. Ready only if the session must not go on with this connection.
    pub(super) fn poll_serve(
        &mut self,
        cx: &mut Context<'_>,
        reader: &mut Option<Reader>,
    ) -> Poll<Disconnect> {
        let reader = reader.as_mut().expect("a served session has a reader");
        // The outboxes of the receivers, to be flushed at the end of this turn.
        let mut flush_set = FlushSet::default();
        let read = self.poll_read(cx, reader, &mut flush_set);
        if let Poll::Ready(Err(disconnect)) = read {
            return Poll::Ready(disconnect);
        }
        match self.outbox.poll_flush(cx) {
            Poll::Ready(Err(FlushError::Lost)) => return Poll::Ready(Disconnect::Lost),
            Poll::Ready(Err(FlushError::Command(command))) => return Poll::Ready(command.into()),
            Poll::Ready(Ok(())) | Poll::Pending => {}
        }
        self.flush(flush_set);
        if read.is_ready() {
            // What this turn has sent is written before the next message is read.
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }

    /// Carries out what comes from a client that uses no WebSocket, while the session has no connection. Ready only if
    /// the session must end.
    pub(super) fn poll_posts(
        &mut self,
        cx: &mut Context<'_>,
        reader: &mut Reader,
    ) -> Poll<Disconnect> {
        let mut flush_set = FlushSet::default();
        let read = self.poll_read(cx, reader, &mut flush_set);
        self.flush(flush_set);
        match read {
            Poll::Ready(Ok(())) => cx.waker().wake_by_ref(),
            Poll::Ready(Err(disconnect)) => return Poll::Ready(disconnect),
            Poll::Pending => {}
        }
        Poll::Pending
    }

    /// Reads and carries out what has come. Ready if more may be there.
    ///
    /// # Errors
    ///
    /// Why the session must not go on with this connection.
    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        reader: &mut Reader,
        flush_set: &mut FlushSet,
    ) -> Poll<Result<(), Disconnect>> {
        // What comes meanwhile is written together then, and senders do not fill outboxes faster than they are emptied.
        ready!(self.poll_flushing(cx, reader));
        ready!(self.poll_pause(cx, reader))?;
        let mut read = reader.poll_read(cx, |event| self.on_event(event, flush_set));
        if let Poll::Ready(Ok(false)) = read
            && !self.is_paused()
            && !flush_set.is_turn_over()
        {
            // Nothing more is there. This registers the task to be woken when more comes.
            read = reader.poll_read(cx, |event| self.on_event(event, flush_set));
        }
        let read = read.map_ok(drop);
        read.map_err(|stop| self.on_stop(stop))
    }

    /// Flushes the outboxes that this session has filled.
    fn flush(&mut self, mut flush_set: FlushSet) {
        if let Some(flushing) = flush_set.flush(&self.shared.tasks) {
            let is_long = false;
            self.flushing = Some(Box::new(FlushWait { flushing, is_long }));
        }
    }

    /// Ready when what this session has sent is written, and no outbox in its room is flushed because it had filled up.
    fn poll_flushing(&mut self, cx: &Context<'_>, reader: &Reader) -> Poll<()> {
        loop {
            if let Some(wait) = &mut self.flushing {
                ready!(wait.flushing.poll_end(cx));
            }
            let ended = self.flushing.take();
            let was_long = ended.as_ref().is_some_and(|wait| wait.is_long);
            let Some(flushing) = self.join_guard.flushing() else {
                if was_long {
                    let is_paused = self.is_paused() || reader.is_event_stream();
                    self.heartbeat.pause(is_paused);
                }
                return Poll::Ready(());
            };
            let is_long = ended.is_some();
            if is_long && !was_long {
                self.heartbeat.pause(true);
            }
            self.flushing = Some(Box::new(FlushWait { flushing, is_long }));
        }
    }

    fn is_paused(&self) -> bool {
        self.pace.as_ref().is_some_and(|pace| pace.is_paused())
    }

    /// Waits until the session may be read from.
    ///
    /// # Errors
    ///
    /// [`Disconnect::Eof`] if the client closes the connection during a pause: what was not read was
    /// not acknowledged, and nobody waits for it.
    fn poll_pause(
        &mut self,
        cx: &mut Context<'_>,
        reader: &Reader,
    ) -> Poll<Result<(), Disconnect>> {
        if !self.is_paused() {
            self.pause(None);
        }
        while let Some(pace) = &mut self.pace
            && pace.is_paused()
        {
            let Poll::Ready(excess) = pace.poll_pause(cx) else {
                return Poll::Pending;
            };
            match self.pause(excess) {
                ReadControl::Pause if reader.is_closed() => {
                    return Poll::Ready(Err(Disconnect::Eof));
                }
                ReadControl::Pause => {}
                ReadControl::Continue => self.heartbeat.pause(reader.is_event_stream()),
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Accounts for a frame and for the bytes that it causes to be sent.
    fn spend(&mut self, bytes: usize) -> ReadControl {
        let Some(pace) = &mut self.pace else {
            return ReadControl::Continue;
        };
        let excess = pace.spend(bytes);
        if let Some((limit, _)) = excess {
            self.shared.metrics.limits_hit(limit).inc();
        }
        self.pause(excess)
    }

    /// Stops reading for a while if a rate is exceeded or other nodes accept no more.
    fn pause(&mut self, excess: Option<(Limit, Instant)>) -> ReadControl {
        let Some(pace) = &mut self.pace else {
            return ReadControl::Continue;
        };
        if !pace.pause(excess, &self.join_guard) {
            return ReadControl::Continue;
        }
        self.heartbeat.pause(true);
        ReadControl::Pause
    }

    fn on_event(
        &mut self,
        event: Event<'_>,
        flush_set: &mut FlushSet,
    ) -> ControlFlow<Disconnect, ReadControl> {
        // A session that must close or detach routes nothing more.
        if let Some(command) = self.outbox.command() {
            return ControlFlow::Break(command.into());
        }
        let bytes = match event {
            // The server has asked for this pong, so it costs nothing.
            Event::Pong(payload) if self.is_answer(payload) => {
                return ControlFlow::Continue(ReadControl::Continue);
            }
            Event::Text(text) => {
                let command = self.format().read(self.author(), text);
                let bytes = self.on_message(command, false, flush_set);
                bytes.saturating_add(text.len())
            }
            Event::Binary(payload) => {
                let Some(command) = self.format().read_bytes(self.author(), payload) else {
                    let reason = "a binary message: send JSON as text";
                    let close = Close::new(CloseCode::UnsupportedData, reason);
                    return ControlFlow::Break(Disconnect::Closed(close));
                };
                let bytes = self.on_message(command, true, flush_set);
                bytes.saturating_add(payload.len())
            }
            Event::Ping(payload) => {
                let pong = Frame::pong(payload);
                let bytes = payload.len() + pong.len();
                self.outbox.push(pong);
                bytes
            }
            Event::Pong(payload) => payload.len(),
            Event::Fragment => 0,
            Event::Close(status) => {
                return ControlFlow::Break(Disconnect::Left(status.map(|(code, _)| code)));
            }
        };
        let control = self.spend(bytes.saturating_add(FRAME_BYTES));
        ControlFlow::Continue(match flush_set.is_turn_over() {
            true => ReadControl::Pause,
            false => control,
        })
    }

    /// Takes in the payload of a pong. Returns whether the pong answers a ping of the server.
    fn is_answer(&self, payload: &[u8]) -> bool {
        let time = self.heartbeat.pong();
        if let Some(time) = time {
            self.shared.metrics.observe_round_trip(time);
        }
        self.outbox.pong(payload) || time.is_some()
    }

    fn on_stop(&self, stop: Stop<Disconnect>) -> Disconnect {
        let violation = match stop {
            Stop::Lost => return Disconnect::Lost,
            Stop::Eof => return Disconnect::Eof,
            Stop::Break(disconnect) => return disconnect,
            Stop::Violation(violation) => violation,
        };
        Disconnect::Closed(match violation {
            Violation::Protocol(what) => Close::new(CloseCode::ProtocolError, what),
            Violation::Utf8 => Close::new(CloseCode::InvalidPayload, "text that is not UTF-8"),
            Violation::TooLong => {
                let reason = format!(
                    "a message over {} bytes",
                    self.shared.config.limits.max_message_bytes
                );
                Close::new(CloseCode::MessageTooBig, reason)
            }
        })
    }

    /// Carries one message out, and sends the receipt or the error that follows from it. Returns the number of
    /// bytes that the message causes to be sent.
    fn on_message(
        &mut self,
        command: Result<Command<'_>, Invalid<'_>>,
        is_binary: bool,
        flush_set: &mut FlushSet,
    ) -> usize {
        self.join_guard.count_taken_in(is_binary);
        self.shared.metrics.traffic.messages_received.inc();
        let (id, format) = (self.id(), self.format());
        let (result, reference) = match command {
            Ok(command) => {
                let reference = command.reference();
                (self.carry_out(command, flush_set), reference)
            }
            Err(invalid) => (Err(invalid.problem), invalid.reference),
        };
        let (answer, bytes) = match (result, reference) {
            (Ok(routed), Some(reference)) if !routed.is_receipt_due => {
                let receipt = format.receipt(id, reference, routed.receivers);
                (receipt, routed.bytes)
            }
            (Ok(routed), _) => return routed.bytes,
            (Err(problem), reference) => {
                let reference = reference.or_else(|| no_reference(is_binary));
                self.shared.metrics.errors(problem.code.as_str()).inc();
                (format.error(id, &problem, reference), 0)
            }
        };
        let Some(answer) = answer else {
            return bytes;
        };
        let bytes = bytes.saturating_add(answer.len());
        self.outbox.push(answer);
        bytes
    }

    /// Does what a client asks for.
    fn carry_out(
        &mut self,
        command: Command<'_>,
        flush_set: &mut FlushSet,
    ) -> Result<Routed, Problem> {
        match command {
            Command::Send {
                receiver,
                frame,
                reference,
            } => self.route(&receiver, &frame, reference, flush_set),
            Command::SendToName {
                name,
                frame,
                may_wait,
            } => self.send_to_name(&name, &frame, may_wait, flush_set),
            Command::Request(message) => self.answer(&message, flush_set),
            Command::Reply(frame) => {
                let bytes = frame.len();
                self.outbox.push(frame);
                Ok(Routed {
                    bytes,
                    ..Routed::default()
                })
            }
            Command::Subscribe(rooms) => {
                let (topics, subscriber) = self.topics()?;
                topics.subscribe(subscriber, rooms)
            }
            Command::Unsubscribe(rooms) => {
                self.topics()?.0.unsubscribe(&rooms);
                Ok(Routed::default())
            }
            Command::Publish(publication) => {
                self.may_send()?;
                let (topics, subscriber) = self.topics()?;
                topics.publish(subscriber, publication, flush_set)
            }
            Command::Ignore => Ok(Routed::default()),
        }
    }

    /// Answers a request.
    fn answer(
        &mut self,
        message: &Message<'_>,
        flush_set: &mut FlushSet,
    ) -> Result<Routed, Problem> {
        let answer = requests::answer(&mut self.request_context(flush_set), message)?;
        let (bytes, is_receipt_due) = match answer {
            Answer::Sent(bytes) => (bytes, false),
            Answer::Follows(answer) => {
                self.pace.get_or_insert_default().wait_for(answer);
                (0, true)
            }
        };
        Ok(Routed {
            receivers: 1,
            is_receipt_due,
            bytes,
        })
    }

    /// Delivers a message to the session that has a name, or has it wait.
    fn send_to_name(
        &mut self,
        name: &str,
        frame: &Frame,
        may_wait: bool,
        flush_set: &mut FlushSet,
    ) -> Result<Routed, Problem> {
        self.may_send()?;
        if self.shared.cluster.is_some() {
            self.pace.get_or_insert_default().ensure_quota();
        }
        let speaker = self.speaker(None);
        let guard = &self.join_guard;
        let delivery = guard.send_to_name(speaker, name, frame, may_wait, flush_set);
        let deliveries = &self.shared.metrics.traffic.deliveries;
        deliveries.inc_by(delivery.receivers as u64);
        match delivery.receivers == 0 && !delivery.is_waiting {
            true => Err(Problem::unknown_receiver(name)),
            false => Ok(Routed {
                receivers: delivery.receivers,
                bytes: frame.len(),
                ..Routed::default()
            }),
        }
    }

    /// Delivers a message to its receivers.
    fn route(
        &mut self,
        receiver: &Receiver<'_>,
        frame: &Frame,
        reference: Option<&RawValue>,
        flush_set: &mut FlushSet,
    ) -> Result<Routed, Problem> {
        self.may_send()?;
        if self.shared.cluster.is_some() {
            self.pace.get_or_insert_default().ensure_quota();
        }
        let speaker = self.speaker(reference.or_else(|| no_reference(frame.is_binary())));
        let delivery = self.join_guard.route(speaker, receiver, frame, flush_set);
        let Delivery {
            receivers, is_kept, ..
        } = delivery;
        let bytes = frame.len().saturating_mul(receivers);
        let deliveries = &self.shared.metrics.traffic.deliveries;
        deliveries.inc_by(receivers as u64);
        match is_kept {
            Some(false) => {
                let problem = Problem::not_stored();
                let metrics = &self.shared.metrics;
                metrics.errors(problem.code.as_str()).inc();
                if let Some(answer) = self.format().error(self.id(), &problem, reference) {
                    self.outbox.push(answer);
                }
                Ok(Routed {
                    receivers,
                    is_receipt_due: true,
                    bytes,
                })
            }
            None if receivers == 0 => Err(receiver.problem()),
            None => Ok(Routed {
                receivers,
                is_receipt_due: false,
                bytes,
            }),
            Some(true) => {
                if let Some(history) = self.join_guard.history() {
                    let pace = self.pace.get_or_insert_default();
                    pace.note_kept(frame.len(), history);
                }
                Ok(Routed {
                    receivers,
                    is_receipt_due: true,
                    bytes,
                })
            }
        }
    }

    /// Checks that the session may send to others.
    fn may_send(&self) -> Result<(), Problem> {
        match self.permissions.as_ref().is_none_or(|it| it.may_send) {
            true => Ok(()),
            false => Err(Problem::listens_only()),
        }
    }

    /// The session's topics, and the rest of it that they need.
    fn topics(&mut self) -> Result<(&Topics, Subscriber<'_>), Problem> {
        let topics = self.topics.as_deref();
        let topics = topics.ok_or_else(|| Problem::bad_message("this connection has no topics"))?;
        let subscriber = Subscriber {
            shared: &self.shared,
            join_guard: &self.join_guard,
            outbox: &self.outbox,
            pace: &mut self.pace,
        };
        Ok((topics, subscriber))
    }

    fn request_context<'a>(&'a mut self, flush_set: &'a mut FlushSet) -> RequestContext<'a> {
        RequestContext {
            shared: &self.shared,
            join_guard: &self.join_guard,
            outbox: &self.outbox,
            permissions: &mut self.permissions,
            registration: &mut self.registration,
            pace: &mut self.pace,
            flush_set,
        }
    }

    /// This session as the author of a message.
    fn author(&self) -> Author<'_> {
        let name = self.join_guard.info().name();
        Author {
            id: self.id(),
            name,
        }
    }

    /// This session as the sender of a message, which has the client's `ref` if it has one.
    fn speaker<'a>(&'a self, reference: Option<&'a RawValue>) -> Speaker<'a> {
        let quota = self.pace.as_ref().and_then(|pace| pace.quota());
        Speaker::session(self.id(), quota, reference)
    }

    /// Leaves the room.
    pub(super) fn end(self, disconnect: Disconnect, reader: Option<Reader>) -> Ended {
        debug!(
            "{} left {}: {disconnect}",
            self.id(),
            self.join_guard.room()
        );
        self.count_slow(&disconnect);
        self.shared.metrics.leaves(disconnect.cause()).inc();
        if let Disconnect::Expired = disconnect {
            self.shared.metrics.resumes("expired").inc();
        }
        if let (Some(turn), Disconnect::Migrated) = (self.turn, &disconnect) {
            turn.has_moved();
        }
        drop((
            self.lobby,
            self.topics,
            self.join_guard,
            self.heartbeat,
            self.permissions,
        ));
        let remainder = self.outbox.into_remainder();
        let late = self.registration.and_then(|it| it.retire());
        let slot = reader.is_some().then_some(self.slot);
        let handshake = reader.zip(remainder.writer).map(|(reader, writer)| {
            let (shared, frames) = (self.shared, remainder.frames);
            let handshake = ClosingHandshake::of_session(shared, disconnect, writer, frames);
            (handshake, reader)
        });
        Ended {
            late,
            handshake,
            slot,
        }
    }

    /// Counts a connection that is given up because its client reads too slowly.
    pub(super) fn count_slow(&self, disconnect: &Disconnect) {
        if let Some(close) = disconnect.close()
            && close.code == CloseCode::TryAgainLater
        {
            self.shared.metrics.slow_readers.inc();
        }
    }
}

/// What stands in the place of the reference of a binary message, which has none.
fn no_reference(is_binary: bool) -> Option<&'static RawValue> {
    is_binary.then_some(RawValue::NULL)
}
