//! The bounded queue in front of one socket, and the `Sender` that fills it.

use std::{
    collections::VecDeque,
    mem,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use parking_lot::Mutex;

use crate::{
    protocol::{Close, CloseCode},
    websocket::Frame,
};

/// An empty queue that takes up to `limit` bytes: its two ends.
pub(crate) fn outbox(limit: usize) -> (Sender, Outbox) {
    let shared = Arc::new(Shared {
        limit,
        queue: Mutex::default(),
    });
    (Sender(shared.clone()), Outbox(shared))
}

/// The end that everyone writes to.
#[derive(Clone)]
pub(crate) struct Sender(Arc<Shared>);

/// The end that the session reads. Dropping it closes the queue.
pub(crate) struct Outbox(Arc<Shared>);

/// Why a frame was not taken.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// The frame did not fit: the session is too slow, and is closed for it.
    Full,
    /// The session is already closing.
    Closed,
}

struct Shared {
    limit: usize,
    queue: Mutex<Queue>,
}

#[derive(Default)]
struct Queue {
    frames: VecDeque<Frame>,
    /// What waits, in bytes, with what the session has taken and not yet written.
    bytes: usize,
    state: State,
    /// Whether the session sleeps because nothing waits.
    idle: bool,
    waker: Option<Waker>,
}

#[derive(Default)]
enum State {
    #[default]
    Open,
    /// The session shall end, and say this.
    Closing(Close),
    /// The session has ended.
    Closed,
}

impl Queue {
    /// Returns whom to wake once the lock is released.
    fn close(&mut self, close: Close) -> Option<Waker> {
        let State::Open = self.state else { return None };
        self.state = State::Closing(close);
        self.waker.take()
    }
}

impl Sender {
    /// Puts a frame at the end of the queue, without ever waiting. An empty queue takes a frame of
    /// any size.
    ///
    /// # Errors
    ///
    /// [`Refused::Full`] for the first frame that does not fit: what waited is dropped, and the
    /// session closed (1013). [`Refused::Closed`] from then on.
    pub(crate) fn push(&self, frame: &Frame) -> Result<(), Refused> {
        let mut queue = self.0.queue.lock();
        let State::Open = queue.state else {
            return Err(Refused::Closed);
        };
        let full = queue.bytes > 0 && queue.bytes + frame.len() > self.0.limit;
        let waker = if full {
            queue.frames = VecDeque::new();
            let reason = format!("too slow: over {} bytes waited to be sent", self.0.limit);
            queue.close(Close::new(CloseCode::TryAgainLater, reason))
        } else {
            queue.bytes += frame.len();
            queue.frames.push_back(frame.clone());
            // A session that is busy writing finds the frame by itself.
            if mem::take(&mut queue.idle) {
                queue.waker.take()
            } else {
                None
            }
        };
        drop(queue);
        if let Some(waker) = waker {
            waker.wake();
        }
        if full { Err(Refused::Full) } else { Ok(()) }
    }

    /// Ends the session with this Close frame, after what waits; unless it is already ending.
    pub(crate) fn close(&self, close: Close) {
        let waker = self.0.queue.lock().close(close);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl Outbox {
    /// Waits until `writing` has frames: the ones it still has, or all that wait in the queue.
    ///
    /// # Errors
    ///
    /// The [`Close`] with which the session shall end, as soon as there is one, even while
    /// `writing` has frames.
    pub(crate) fn poll_frames(
        &self,
        cx: &mut Context<'_>,
        writing: &mut VecDeque<Frame>,
    ) -> Poll<Result<(), Close>> {
        let mut queue = self.0.queue.lock();
        if let State::Closing(close) = &queue.state {
            return Poll::Ready(Err(close.clone()));
        }
        if writing.is_empty() {
            mem::swap(&mut queue.frames, writing);
        }
        queue.idle = writing.is_empty();
        if queue
            .waker
            .as_ref()
            .is_none_or(|waker| !waker.will_wake(cx.waker()))
        {
            queue.waker = Some(cx.waker().clone());
        }
        if queue.idle {
            Poll::Pending
        } else {
            Poll::Ready(Ok(()))
        }
    }

    /// Makes room: so many bytes of what was taken are written.
    pub(crate) fn written(&self, bytes: usize) {
        self.0.queue.lock().bytes -= bytes;
    }

    /// What still waits. Nothing is taken from now on.
    pub(crate) fn into_rest(self) -> VecDeque<Frame> {
        let mut queue = self.0.queue.lock();
        queue.state = State::Closed;
        mem::take(&mut queue.frames)
    }
}

impl Drop for Outbox {
    fn drop(&mut self) {
        self.0.queue.lock().state = State::Closed;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(length: usize) -> Frame {
        Frame::text(|buffer| buffer.resize(buffer.len() + length - 2, b'a'))
    }

    fn poll(outbox: &Outbox, writing: &mut VecDeque<Frame>) -> Poll<Result<(), CloseCode>> {
        let mut cx = Context::from_waker(Waker::noop());
        outbox
            .poll_frames(&mut cx, writing)
            .map_err(|close| close.code)
    }

    #[test]
    fn what_is_taken_and_not_written_still_counts() {
        let (sender, outbox) = outbox(100);
        let mut writing = VecDeque::new();
        assert_eq!(sender.push(&frame(60)), Ok(()));
        assert_eq!(poll(&outbox, &mut writing), Poll::Ready(Ok(())));
        assert_eq!(sender.push(&frame(40)), Ok(()));
        outbox.written(30);
        assert_eq!(sender.push(&frame(30)), Ok(()));
        assert_eq!(sender.push(&frame(10)), Err(Refused::Full));
        assert_eq!(sender.push(&frame(10)), Err(Refused::Closed));
        let close = Poll::Ready(Err(CloseCode::TryAgainLater));
        assert_eq!(poll(&outbox, &mut writing), close);
        assert_eq!(writing.len(), 1);
        assert!(outbox.into_rest().is_empty());
    }

    #[test]
    fn an_empty_queue_takes_a_frame_of_any_size() {
        let (sender, _outbox) = outbox(100);
        assert_eq!(sender.push(&frame(110)), Ok(()));
        assert_eq!(sender.push(&frame(10)), Err(Refused::Full));
    }

    #[test]
    fn the_first_close_stands_and_what_waited_goes_before_it() {
        let (sender, outbox) = outbox(100);
        assert_eq!(sender.push(&frame(10)), Ok(()));
        sender.close(Close::new(CloseCode::GoingAway, "first"));
        sender.close(Close::new(CloseCode::ServiceRestart, "second"));
        let close = Poll::Ready(Err(CloseCode::GoingAway));
        assert_eq!(poll(&outbox, &mut VecDeque::new()), close);
        assert_eq!(outbox.into_rest().len(), 1);
    }

    #[test]
    fn nothing_is_taken_after_the_session() {
        let (sender, outbox) = outbox(100);
        drop(outbox);
        assert_eq!(sender.push(&frame(10)), Err(Refused::Closed));
    }
}
