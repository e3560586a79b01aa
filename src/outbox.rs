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
    let channel = Arc::new(Channel {
        limit,
        queue: Mutex::default(),
    });
    (Sender(channel.clone()), Outbox(channel))
}

/// The end that everyone writes to.
#[derive(Clone)]
pub(crate) struct Sender(Arc<Channel>);

/// The end that the session reads. Dropping it closes the queue.
pub(crate) struct Outbox(Arc<Channel>);

/// Why a frame was not taken.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum PushError {
    /// The frame did not fit: the session is too slow, and is closed for it.
    Full,
    /// The session is already closing.
    Closed,
}

struct Channel {
    limit: usize,
    queue: Mutex<Queue>,
}

#[derive(Default)]
struct Queue {
    frames: VecDeque<Frame>,
    /// What it costs to keep what waits, with what the session has taken and not yet written.
    cost: usize,
    state: State,
    /// Whether the session sleeps because nothing waits.
    asleep: bool,
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

impl Channel {
    /// Puts a frame at the end of the queue; returns whom to wake for it.
    fn push(&self, frame: &Frame) -> (Result<(), PushError>, Option<Waker>) {
        let mut queue = self.queue.lock();
        let State::Open = queue.state else {
            return (Err(PushError::Closed), None);
        };
        let cost = queue.cost + frame.cost();
        if queue.cost > 0 && cost > self.limit {
            queue.frames = VecDeque::new();
            let reason = format!("too slow: over {} bytes waited to be sent", self.limit);
            let waker = queue.close(Close::new(CloseCode::TryAgainLater, reason));
            return (Err(PushError::Full), waker);
        }
        queue.cost = cost;
        queue.frames.push_back(frame.clone());
        // A session that is busy writing finds the frame by itself.
        let asleep = mem::take(&mut queue.asleep);
        (Ok(()), asleep.then(|| queue.waker.take()).flatten())
    }
}

impl Queue {
    /// Returns whom to wake for it.
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
    /// [`PushError::Full`] for the first frame that does not fit: what waited is dropped, and the
    /// session closed (1013). [`PushError::Closed`] from then on.
    pub(crate) fn push(&self, frame: &Frame) -> Result<(), PushError> {
        let (result, waker) = self.0.push(frame);
        if let Some(waker) = waker {
            waker.wake();
        }
        result
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
    /// Like [`Sender::push`], by the session itself. It is awake, and must look into its outbox
    /// before it sleeps.
    pub(crate) fn push(&self, frame: &Frame) {
        // When it is full, the session finds the close that follows from it.
        let _ = self.0.push(frame);
    }

    /// The [`Close`] with which the session shall end, if there is one.
    pub(crate) fn closing(&self) -> Option<Close> {
        match &self.0.queue.lock().state {
            State::Closing(close) => Some(close.clone()),
            State::Open | State::Closed => None,
        }
    }

    /// Waits until `writing` has frames: the ones it still has, or all that wait in the queue.
    /// `written` is the cost of what was written since the last call; it makes room.
    ///
    /// # Errors
    ///
    /// The [`Close`] with which the session shall end, as soon as there is one, even while
    /// `writing` has frames.
    pub(crate) fn poll_frames(
        &self,
        cx: &mut Context<'_>,
        writing: &mut VecDeque<Frame>,
        written: usize,
    ) -> Poll<Result<(), Close>> {
        let mut queue = self.0.queue.lock();
        if let State::Closing(close) = &queue.state {
            return Poll::Ready(Err(close.clone()));
        }
        queue.cost -= written;
        if writing.is_empty() {
            // Not even the room that a burst has taken is kept.
            *writing = mem::take(&mut queue.frames);
        }
        queue.asleep = writing.is_empty();
        if queue
            .waker
            .as_ref()
            .is_none_or(|waker| !waker.will_wake(cx.waker()))
        {
            queue.waker = Some(cx.waker().clone());
        }
        if queue.asleep {
            Poll::Pending
        } else {
            Poll::Ready(Ok(()))
        }
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

    /// A frame of this cost.
    fn frame(cost: usize) -> Frame {
        let empty = Frame::text(|_| {});
        let frame = Frame::text(|buffer| buffer.resize(buffer.len() + cost - empty.cost(), b'a'));
        assert_eq!(frame.cost(), cost);
        frame
    }

    fn poll(
        outbox: &Outbox,
        writing: &mut VecDeque<Frame>,
        written: usize,
    ) -> Poll<Result<(), CloseCode>> {
        let mut cx = Context::from_waker(Waker::noop());
        outbox
            .poll_frames(&mut cx, writing, written)
            .map_err(|close| close.code)
    }

    #[test]
    fn what_is_taken_and_not_written_still_counts() {
        let (sender, outbox) = outbox(200);
        let mut writing = VecDeque::new();
        assert_eq!(sender.push(&frame(120)), Ok(()));
        assert_eq!(poll(&outbox, &mut writing, 0), Poll::Ready(Ok(())));
        assert_eq!(sender.push(&frame(80)), Ok(()));
        assert_eq!(poll(&outbox, &mut writing, 70), Poll::Ready(Ok(())));
        assert_eq!(sender.push(&frame(70)), Ok(()));
        assert_eq!(sender.push(&frame(70)), Err(PushError::Full));
        assert_eq!(sender.push(&frame(70)), Err(PushError::Closed));
        let close = Poll::Ready(Err(CloseCode::TryAgainLater));
        assert_eq!(poll(&outbox, &mut writing, 0), close);
        assert_eq!(writing.len(), 1);
        assert!(outbox.into_rest().is_empty());
    }

    #[test]
    fn many_small_frames_are_much_to_keep() {
        let (sender, _outbox) = outbox(1000);
        let small = Frame::pong(b"");
        let taken = (0..1000)
            .take_while(|_| sender.push(&small).is_ok())
            .count();
        assert!(
            taken < 20,
            "{taken} frames of {} bytes",
            small.bytes().len()
        );
    }

    #[test]
    fn nothing_is_kept_of_a_burst() {
        let (sender, outbox) = outbox(100_000);
        let mut writing = VecDeque::new();
        for _ in 0..500 {
            assert_eq!(sender.push(&frame(100)), Ok(()));
        }
        assert_eq!(poll(&outbox, &mut writing, 0), Poll::Ready(Ok(())));
        writing.clear();
        assert_eq!(poll(&outbox, &mut writing, 50_000), Poll::Pending);
        let queue = outbox.0.queue.lock();
        assert_eq!(
            (writing.capacity(), queue.frames.capacity(), queue.cost),
            (0, 0, 0)
        );
    }

    #[test]
    fn an_empty_queue_takes_a_frame_of_any_size() {
        let (sender, _outbox) = outbox(100);
        assert_eq!(sender.push(&frame(110)), Ok(()));
        assert_eq!(sender.push(&frame(70)), Err(PushError::Full));
    }

    #[test]
    fn the_first_close_stands_and_what_waited_goes_before_it() {
        let (sender, outbox) = outbox(100);
        assert_eq!(sender.push(&frame(70)), Ok(()));
        sender.close(Close::new(CloseCode::GoingAway, "first"));
        sender.close(Close::new(CloseCode::ServiceRestart, "second"));
        let close = Poll::Ready(Err(CloseCode::GoingAway));
        assert_eq!(poll(&outbox, &mut VecDeque::new(), 0), close);
        assert_eq!(outbox.into_rest().len(), 1);
    }

    #[test]
    fn nothing_is_taken_after_the_session() {
        let (sender, outbox) = outbox(100);
        drop(outbox);
        assert_eq!(sender.push(&frame(70)), Err(PushError::Closed));
    }
}
