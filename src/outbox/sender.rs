//! The senders' half of an outbox.

use std::sync::Arc;

use super::{
    flush::FlushSet,
    queue::{Channel, PushError, Queue, State},
};
use crate::{protocol::Close, websocket::Frame};

/// Fills the outbox of one session. A clone fills the same outbox.
#[derive(Clone)]
pub(crate) struct Sender(pub(super) Arc<Channel>);

/// What an outbox has taken so far, and still holds.
pub(crate) struct OutboxStats {
    /// The number of messages so far.
    pub(crate) messages: u64,
    /// The cost of what waits to be sent, in bytes; of a suspended session, the cost of its replay buffer.
    pub(crate) bytes: usize,
    /// Whether the session has no connection.
    pub(crate) is_suspended: bool,
}

impl Sender {
    /// Appends a frame without waiting, and adds the outbox to `flush_set` if nothing waited in it, or so much that the
    /// sender that is to flush it may be late. An empty outbox takes a frame of any size.
    ///
    /// # Errors
    ///
    /// [`PushError::Full`] for the first frame that does not fit: what waited is dropped and the session
    /// is closed (1013). [`PushError::Closed`] from then on. A resumable session only gives its
    /// connection up, and keeps the frame.
    pub(crate) fn push(&self, frame: Frame, flush_set: &mut FlushSet) -> Result<(), PushError> {
        self.push_locked(&mut self.0.queue.lock(), frame, flush_set)
    }

    /// Like [`push`](Sender::push), for a ping. A resumable session gets a ping of its own in place of
    /// `ping`. Returns whether the session has a connection.
    pub(crate) fn ping(&self, ping: &Frame, flush_set: &mut FlushSet) -> bool {
        let mut queue = self.0.queue.lock();
        let State::Open = queue.state else {
            return false;
        };
        let ping = match &mut queue.replay {
            Some(replay) => replay.ping(),
            None => ping.clone(),
        };
        self.push_locked(&mut queue, ping, flush_set).is_ok()
    }

    fn push_locked(
        &self,
        queue: &mut Queue,
        frame: Frame,
        flush_set: &mut FlushSet,
    ) -> Result<(), PushError> {
        let duty = self.0.push(queue, frame)?;
        flush_set.take_on(duty, &self.0);
        Ok(())
    }

    /// Ends the session with this Close frame, which follows what waits. Does nothing if the session is
    /// ending already.
    pub(crate) fn close(&self, close: Close) {
        self.0.close(&mut self.0.queue.lock(), close);
    }

    /// Makes the session give its connection up with this Close frame, or end if it is not resumable.
    pub(crate) fn give_up(&self, close: Close) {
        self.0.give_up(&mut self.0.queue.lock(), close);
    }

    /// Makes a resumable session give its connection up with this Close frame. Ends any other.
    pub(crate) fn give_up_to_resume(&self, close: Close) {
        let queue = &mut self.0.queue.lock();
        match queue.replay.is_some() {
            true => self.0.give_up(queue, close),
            false => self.0.close(queue, close),
        }
    }

    /// What the outbox has taken and holds.
    pub(crate) fn stats(&self) -> OutboxStats {
        let queue = self.0.queue.lock();
        let is_suspended = matches!(queue.state, State::Detached);
        let replay = queue.replay.as_ref().filter(|_| is_suspended);
        OutboxStats {
            messages: queue.messages,
            bytes: replay.map_or(queue.cost, |replay| replay.cost()),
            is_suspended,
        }
    }

    /// Whether the session can continue with a client that has received so many of its messages.
    pub(crate) fn is_resumable(&self, received: u64) -> bool {
        self.0.queue.lock().is_resumable(received)
    }

    /// Delivers to a session what takes it over, for a client that has received so many of its messages:
    /// `deliver` puts `takeover` where the session finds it, then the session gives its connection up with
    /// this Close frame, or is woken if it has none. All of it happens under the outbox's lock, so that the
    /// session cannot take the takeover and attach its connection in between, and lose that again.
    ///
    /// # Errors
    ///
    /// The takeover, if the session cannot continue with it or `deliver` fails.
    pub(crate) fn take_over<T, R>(
        &self,
        received: u64,
        close: Close,
        takeover: T,
        deliver: impl FnOnce(T) -> Result<R, T>,
    ) -> Result<R, T> {
        let mut queue = self.0.queue.lock();
        if !queue.is_resumable(received) {
            return Err(takeover);
        }
        let delivered = deliver(takeover)?;
        self.0.give_up(&mut queue, close);
        self.0.wake();
        Ok(delivered)
    }
}
