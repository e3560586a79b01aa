//! The session's half of an outbox: it writes the queue to a connection, or keeps the messages while there is
//! none.

use std::{
    iter, mem,
    sync::Arc,
    task::{Context, Poll},
};

use thin_vec::ThinVec;

use super::{
    queue::{Channel, Command, FlushError, Flusher, PushError, Queue, State},
    replay_buffer::ReplayBuffer,
    sender::Sender,
};
use crate::{protocol::Close, transport::Writer, websocket::Frame};

/// The session's half. Dropping it closes the outbox.
pub(crate) struct Outbox(pub(super) Arc<Channel>);

/// What is left of an outbox at the end of its session.
pub(crate) struct Remainder {
    /// `None` if the session had no connection.
    pub(crate) writer: Option<Writer>,
    /// The frames that were not written.
    pub(crate) frames: ThinVec<Frame>,
}

/// The two halves of an empty outbox of up to `limit` bytes that is written to `writer`.
pub(crate) fn outbox(limit: usize, writer: Writer) -> (Sender, Outbox) {
    halves(Channel::new(limit, State::Open, 0, Some(writer), None))
}

/// The two halves of the outbox of a session that comes from another node, without a connection. Its client
/// has received so many messages, and not those in `missed`.
pub(crate) fn detached_outbox(limit: usize, received: u64, missed: Vec<Frame>) -> (Sender, Outbox) {
    let mut replay = ReplayBuffer::new(limit, received);
    let messages = received + missed.len() as u64;
    for frame in missed {
        // There is no connection to ping.
        let _ = replay.push(frame);
    }
    let replay = Some(Box::new(replay));
    halves(Channel::new(limit, State::Detached, messages, None, replay))
}

fn halves(channel: Arc<Channel>) -> (Sender, Outbox) {
    (Sender(channel.clone()), Outbox(channel))
}

impl Outbox {
    /// The senders' half.
    pub(crate) fn sender(&self) -> Sender {
        Sender(self.0.clone())
    }

    /// Like [`Sender::push`], by the session itself, which is awake and must flush its outbox before it
    /// sleeps.
    pub(crate) fn push(&self, frame: Frame) {
        // If the outbox is full, the session finds the command that follows from it.
        let _ = self.push_in(&mut self.0.queue.lock(), frame);
    }

    /// Like [`push`](Outbox::push); then makes the session resumable: from now on the outbox keeps what may
    /// have to be sent again. A client that knows its token has received this frame and all before it.
    /// Returns false if the session is ending.
    pub(crate) fn push_and_keep(&self, frame: Frame) -> bool {
        let mut queue = self.0.queue.lock();
        if self.push_in(&mut queue, frame).is_err() {
            return false;
        }
        self.keep_in(&mut queue);
        true
    }

    fn push_in(&self, queue: &mut Queue, frame: Frame) -> Result<(), PushError> {
        self.0.push(queue, frame)?;
        queue.flusher = Flusher::Session;
        Ok(())
    }

    /// Makes the session resumable from its first message.
    pub(crate) fn keep(&self) {
        self.keep_in(&mut self.0.queue.lock());
    }

    fn keep_in(&self, queue: &mut Queue) {
        let replay = ReplayBuffer::new(self.0.limit, queue.messages);
        queue.replay = Some(Box::new(replay));
        queue.outlives_connection = true;
    }

    /// Makes the session outlive its connection. Nothing is kept for the next one.
    pub(crate) fn outlive_connection(&self) {
        self.0.queue.lock().outlives_connection = true;
    }

    /// What the session must do instead of serving its connection, if there is something.
    pub(crate) fn command(&self) -> Option<Command> {
        self.0.queue.lock().command()
    }

    /// Writes until nothing waits or the socket accepts no more. The task is woken when writing can go on
    /// and when there is a [`Command`]; it must be the same task each time.
    pub(crate) fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<Result<(), FlushError>> {
        if self.0.queue.lock().settled {
            return Poll::Ready(Ok(()));
        }
        self.0.register(cx);
        let mut writer = self.0.writer.lock();
        let writer = writer.as_mut().expect("an attached outbox has a writer");
        self.0.poll_flush(cx, writer)
    }

    /// Takes in the payload of a pong. Returns whether it acknowledges further messages.
    pub(crate) fn pong(&self, payload: &[u8]) -> bool {
        let replay = &mut self.0.queue.lock().replay;
        replay.as_mut().is_some_and(|replay| replay.pong(payload))
    }

    /// Like [`Sender::give_up`].
    pub(crate) fn give_up(&self, close: Close) {
        self.0.give_up(&mut self.0.queue.lock(), close);
    }

    /// Detaches the connection; from now on messages are only kept. Returns the writer of the connection. The
    /// replay buffer has the messages that the writer has not written.
    pub(crate) fn detach(&self) -> Writer {
        let mut writer = self.0.writer.lock();
        let mut queue = self.0.queue.lock();
        queue.frames = ThinVec::new();
        queue.cost = 0;
        queue.flusher = Flusher::Session;
        if let State::Open | State::Detaching = queue.state {
            queue.state = State::Detached;
        }
        writer.take().expect("an attached outbox has a writer")
    }

    /// Waits for the [`Close`] with which a suspended session ends. The task is also woken by
    /// [`Sender::take_over`].
    pub(crate) fn poll_closed(&self, cx: &Context<'_>) -> Poll<Close> {
        self.0.register(cx);
        match self.0.queue.lock().command() {
            Some(Command::Close(close)) => Poll::Ready(close),
            _ => Poll::Pending,
        }
    }

    /// Goes on with a connection whose client has received so many messages: sends `first`, which is not counted, then
    /// the messages that the client has missed, then a ping.
    ///
    /// # Errors
    ///
    /// The writer, if those messages are no longer kept or the session is ending.
    pub(crate) fn attach(
        &self,
        first: Frame,
        received: u64,
        mut connection: Writer,
    ) -> Result<(), Writer> {
        let mut writer = self.0.writer.lock();
        let mut queue = self.0.queue.lock();
        let queue = &mut *queue;
        let replay = queue.replay.as_mut().expect("a detached outbox keeps");
        let missed = replay.after(received);
        let (State::Detached, Some(missed)) = (queue.state, missed) else {
            return Err(connection);
        };
        queue.frames = iter::once(first).chain(missed.cloned()).collect();
        if queue.frames.len() > 1 {
            queue.frames.push(replay.ping());
        }
        queue.cost = queue.frames.iter().map(Frame::cost).sum();
        queue.state = State::Open;
        queue.settled = false;
        connection.continue_after(received);
        *writer = Some(connection);
        Ok(())
    }

    /// Closes a detached outbox, and returns the messages that are missed by a client that has received so
    /// many. `None` if they are no longer kept, the session is ending, or `may_close` is false; then nothing
    /// has changed. `may_close` is called under the outbox's lock.
    pub(crate) fn take_missed(
        &self,
        received: u64,
        may_close: impl FnOnce() -> bool,
    ) -> Option<Vec<Frame>> {
        let mut queue = self.0.queue.lock();
        let State::Detached = queue.state else {
            return None;
        };
        let replay = queue.replay.as_mut()?;
        if !replay.covers(received) || !may_close() {
            return None;
        }
        let missed = replay.after(received)?.cloned().collect();
        queue.state = State::Closed;
        queue.replay = None;
        Some(missed)
    }

    /// Whether a suspended session is to end.
    pub(crate) fn is_closing(&self) -> bool {
        matches!(self.0.queue.lock().state, State::Closing)
    }

    /// Closes a detached outbox. Returns the messages that the client may not have received, and how many
    /// messages came before them.
    pub(crate) fn into_kept(self) -> (u64, Vec<Frame>) {
        let mut queue = self.0.queue.lock();
        queue.state = State::Closed;
        let replay = queue.replay.take().expect("a detached outbox keeps");
        replay.into_kept()
    }

    /// Closes the outbox and returns what is left of it.
    pub(crate) fn into_remainder(self) -> Remainder {
        let writer = self.0.writer.lock().take();
        let mut queue = self.0.queue.lock();
        queue.state = State::Closed;
        queue.replay = None;
        Remainder {
            writer,
            frames: mem::take(&mut queue.frames),
        }
    }
}

impl Drop for Outbox {
    fn drop(&mut self) {
        let writer = self.0.writer.lock().take();
        let mut queue = self.0.queue.lock();
        queue.state = State::Closed;
        queue.frames = ThinVec::new();
        queue.replay = None;
        drop(queue);
        drop(writer);
    }
}
