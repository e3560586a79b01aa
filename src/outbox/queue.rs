//! The bounded queue of frames, and the state of the connection behind it.

#[cfg(not(shuttle))]
use std::sync::OnceLock;
use std::{
    mem,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use parking_lot::Mutex;
use thin_vec::ThinVec;

use super::replay_buffer::ReplayBuffer;
#[cfg(shuttle)]
use crate::model_check::OnceLock;
use crate::{
    protocol::{Close, CloseCode},
    transport::Writer,
    websocket::Frame,
};

/// How many times one socket is written to in one turn; that is up to 256 KB of small frames. The session
/// writes what is left, after its senders have taken their next turns, so the number is greater than the
/// writes that many senders cause in one turn. Nothing else bounds a turn.
const WRITES_AT_ONCE: usize = 8;

/// An outbox has filled up if more than its limit divided by this waits for a sender's flush.
const FILLED_UP_DIVISOR: usize = 8;

/// A queue and the writer that empties it, shared by the senders and the session.
pub(super) struct Channel {
    /// How many bytes may wait, by the cost of their frames.
    pub(super) limit: usize,
    /// Lock order: the writer before the queue.
    pub(super) queue: Mutex<Queue>,
    /// `None` while the session has no connection, and after its end.
    pub(super) writer: Mutex<Option<Writer>>,
    /// Wakes the session's task. Set when that task is polled for the first time.
    session: OnceLock<Waker>,
}

/// What waits to be written, and what may have to be sent again.
pub(super) struct Queue {
    pub(super) frames: ThinVec<Frame>,
    /// The cost of all frames that are not written, with those that the writer has taken.
    pub(super) cost: usize,
    pub(super) state: State,
    /// The Close frame to send, in the states that need one.
    close: Option<Box<Close>>,
    pub(super) flusher: Flusher,
    /// Whether the session has nothing to write and nothing to do: nothing waits, the stream keeps nothing back, and the
    /// session can be woken.
    pub(super) settled: bool,
    /// The number of messages so far.
    pub(super) messages: u64,
    /// Present if the session is resumable.
    pub(super) replay: Option<Box<ReplayBuffer>>,
    /// Whether the session outlives its connection, even if nothing is kept for the next one.
    pub(super) outlives_connection: bool,
}

/// Who is about to write what waits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Flusher {
    /// Nobody: nothing waits.
    Nobody,
    /// The sender that was the first to add something, or a task for it, in one of its next turns. If it drops its set
    /// instead, the session, which is woken for it.
    Sender,
    /// A sender that has found the outbox filled up meanwhile, or a task for it, in its next turn.
    UrgentSender,
    /// The session, which is woken for it, waits for its socket, or has no connection.
    Session,
}

/// What a sender must do about an outbox to which it has added something.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Duty {
    /// Nothing: somebody else is about to write.
    Nothing,
    /// Flush it at the end of its turn; of many outboxes, in further turns.
    Flush,
    /// End its turn and flush it then: it has filled up, and whoever is to flush it may be late.
    FlushNow,
    /// End its turn: it has filled up, and another sender flushes it at the end of its own.
    EndTurn,
}

/// What the session does with its connection.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// It writes to the connection.
    Open,
    /// It must send a Close frame and give the connection up.
    Detaching,
    /// It has no connection. Messages are only kept, if the session is resumable.
    Detached,
    /// It must send a Close frame and end.
    Closing,
    /// It has ended.
    Closed,
}

/// What the session must do instead of serving its connection.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Command {
    /// End with this Close frame.
    Close(Close),
    /// Give the connection up with this Close frame, and wait for the next one.
    Detach(Close),
}

/// Why a frame was not queued.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum PushError {
    /// The frame did not fit: the session is too slow and is closed.
    Full,
    /// The session is closing already, or has no connection and keeps nothing for the next one.
    Closed,
}

/// Why nothing more is written.
#[derive(Debug)]
pub(crate) enum FlushError {
    /// The connection is gone.
    Lost,
    /// The session must do something else.
    Command(Command),
}

impl Channel {
    /// An empty queue of up to `limit` bytes. `messages` is the number of messages before it.
    pub(super) fn new(
        limit: usize,
        state: State,
        messages: u64,
        writer: Option<Writer>,
        replay: Option<Box<ReplayBuffer>>,
    ) -> Arc<Channel> {
        Arc::new(Channel {
            limit,
            queue: Mutex::new(Queue {
                frames: ThinVec::new(),
                cost: 0,
                flusher: match writer {
                    Some(_) => Flusher::Nobody,
                    None => Flusher::Session,
                },
                settled: false,
                state,
                close: None,
                messages,
                outlives_connection: replay.is_some(),
                replay,
            }),
            writer: Mutex::new(writer),
            session: OnceLock::new(),
        })
    }

    /// Appends a frame. Returns what the caller must do about it.
    pub(super) fn push(&self, queue: &mut Queue, frame: Frame) -> Result<Duty, PushError> {
        match queue.state {
            State::Closing | State::Closed => return Err(PushError::Closed),
            State::Detaching | State::Detached if queue.replay.is_none() => {
                return Err(PushError::Closed);
            }
            _ => {}
        }
        let mut early_ping = None;
        if frame.is_message() {
            queue.messages += 1;
            if let Some(replay) = &mut queue.replay {
                early_ping = replay.push(frame.clone());
            }
        }
        if let State::Detaching | State::Detached = queue.state {
            // There is no connection to write to or to ping.
            return Ok(Duty::Nothing);
        }
        if queue.cost > 0 && queue.cost + frame.cost() > self.limit {
            queue.frames = ThinVec::new();
            let reason = format!("too slow: over {} bytes waited to be sent", self.limit);
            let close = Close::new(CloseCode::TryAgainLater, reason);
            if queue.replay.is_none() {
                self.close(queue, close);
                return Err(PushError::Full);
            }
            self.give_up(queue, close);
            return match queue.state {
                // The replay buffer has the frame.
                State::Detaching => Ok(Duty::Nothing),
                _ => Err(PushError::Full),
            };
        }
        queue.append(frame);
        if let Some(ping) = early_ping {
            queue.append(ping);
        }
        queue.settled = false;
        let has_filled_up = queue.cost > self.limit / FILLED_UP_DIVISOR;
        let (flusher, duty) = match queue.flusher {
            Flusher::Nobody => (Flusher::Sender, Duty::Flush),
            Flusher::Sender if has_filled_up => (Flusher::UrgentSender, Duty::FlushNow),
            Flusher::UrgentSender if has_filled_up => (Flusher::UrgentSender, Duty::EndTurn),
            other => (other, Duty::Nothing),
        };
        queue.flusher = flusher;
        Ok(duty)
    }

    /// Ends the session, unless it is ending already.
    pub(super) fn close(&self, queue: &mut Queue, close: Close) {
        if let State::Closing | State::Closed = queue.state {
            return;
        }
        self.call(queue, State::Closing, close);
    }

    /// Makes the session give its connection up, or end if it does not outlive it.
    pub(super) fn give_up(&self, queue: &mut Queue, close: Close) {
        if !queue.outlives_connection {
            return self.close(queue, close);
        }
        if let State::Open = queue.state {
            self.call(queue, State::Detaching, close);
        }
    }

    /// Makes the session send a Close frame, in its new state.
    fn call(&self, queue: &mut Queue, state: State, close: Close) {
        queue.state = state;
        queue.close = Some(Box::new(close));
        queue.settled = false;
        self.wake();
    }

    /// Lets the session's task be woken from now on.
    pub(super) fn register(&self, cx: &Context<'_>) {
        self.session.get_or_init(|| cx.waker().clone());
    }

    /// Wakes the session's task.
    pub(super) fn wake(&self) {
        if let Some(session) = self.session.get() {
            session.wake_by_ref();
        }
    }

    /// Writes what waits, in the session's place. The session writes what its socket does not take now.
    pub(super) fn flush_for_session(&self) {
        if let Some(writer) = &mut *self.writer.lock() {
            let session = self.session.get().unwrap_or(Waker::noop());
            let mut cx = Context::from_waker(session);
            if let Poll::Ready(Err(_)) = self.poll_flush(&mut cx, writer) {
                session.wake_by_ref();
            }
        }
    }

    /// Writes until nothing waits, at most [`WRITES_AT_ONCE`] times; then wakes `cx` to go on.
    pub(super) fn poll_flush(
        &self,
        cx: &mut Context<'_>,
        writer: &mut Writer,
    ) -> Poll<Result<(), FlushError>> {
        let mut written = 0;
        for left in (0..=WRITES_AT_ONCE).rev() {
            {
                let mut queue = self.queue.lock();
                if let Some(command) = queue.command() {
                    return Poll::Ready(Err(FlushError::Command(command)));
                }
                queue.cost -= mem::take(&mut written);
                let queue = &mut *queue;
                if writer.refill(&mut queue.frames) {
                    queue.flusher = Flusher::Session;
                } else {
                    queue.flusher = Flusher::Nobody;
                    queue.settled = !writer.keeps_back() && self.session.get().is_some();
                    break;
                }
            }
            if left == 0 {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            written = match writer.poll_write(cx) {
                Poll::Ready(Ok(cost)) => cost,
                Poll::Ready(Err(_)) => return Poll::Ready(Err(FlushError::Lost)),
                Poll::Pending => return Poll::Pending,
            };
        }
        writer.poll_flush(cx).map_err(|_| FlushError::Lost)
    }
}

impl Queue {
    fn append(&mut self, frame: Frame) {
        self.cost += frame.cost();
        self.frames.push(frame);
    }

    /// Whether the session can continue with a client that has received so many of its messages.
    pub(super) fn is_resumable(&self, received: u64) -> bool {
        let is_ending = matches!(self.state, State::Closing | State::Closed);
        let replay = self.replay.as_ref().filter(|_| !is_ending);
        replay.is_some_and(|replay| replay.covers(received))
    }

    /// What the session must do instead of serving its connection.
    pub(super) fn command(&self) -> Option<Command> {
        let close = || self.close.as_deref().cloned();
        match self.state {
            State::Closing => close().map(Command::Close),
            State::Detaching => close().map(Command::Detach),
            State::Open | State::Detached | State::Closed => None,
        }
    }
}
