//! The sending half of a session's transport.

use std::{
    collections::VecDeque,
    future::poll_fn,
    io, mem,
    sync::Arc,
    task::{Context, Poll},
};

use thin_vec::ThinVec;

use super::{
    form::{Answer, Form},
    pipe::{Pipe, wake},
};
use crate::{metrics::Traffic, protocol::Resume, websocket::Frame};

/// The most bytes that are handed over at once, unless a single message has more.
const CHUNK_BYTES: usize = 64 * 1024;

/// The sending half, with the frames that wait for the HTTP server.
pub(crate) struct Outlet {
    pub(super) pipe: Arc<Pipe>,
    frames: VecDeque<Frame>,
    traffic: Arc<Traffic>,
}

impl Outlet {
    /// An outlet to a new pipe.
    pub(super) fn new(form: Form, traffic: Arc<Traffic>) -> Outlet {
        Outlet {
            pipe: Arc::new(Pipe::new(Answer::new(form))),
            frames: VecDeque::new(),
            traffic,
        }
    }

    /// Tells the client first how it resumes the session.
    pub(crate) fn introduce(&mut self, resume: &Resume) {
        let mut state = self.pipe.lock();
        state.answer.introduce(resume);
        state.attach();
    }

    /// Notes how many messages of the session the client has received. The next message is not counted.
    pub(crate) fn continue_after(&mut self, received: u64) {
        let mut state = self.pipe.lock();
        state.answer.continue_after(received);
        state.attach();
    }

    /// Takes the frames from `queue` if the outlet has none. Returns whether it has frames now.
    pub(crate) fn refill(&mut self, queue: &mut ThinVec<Frame>) -> bool {
        if self.frames.is_empty() {
            self.frames.extend(mem::take(queue));
        }
        !self.frames.is_empty()
    }

    /// Hands over what is made without a frame.
    pub(crate) fn flush(&mut self) {
        let mut state = self.pipe.lock();
        if !state.is_complete && state.chunk.is_none() && state.answer.is_worth_sending(false) {
            state.send();
        }
    }

    /// Hands over a chunk of frames. Returns their cost ([`Frame::cost`]).
    pub(crate) fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        self.poll_hand_over(cx, false)
    }

    fn poll_hand_over(
        &mut self,
        cx: &mut Context<'_>,
        is_closing: bool,
    ) -> Poll<io::Result<usize>> {
        let mut state = self.pipe.lock();
        if state.is_gone || state.is_complete {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if state.chunk.is_some() {
            state.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let (before, mut cost, mut messages) = (state.answer.count(), 0, 0);
        while let Some(frame) = self.frames.front()
            && (state.answer.len() == 0 || state.answer.len() + frame.len() <= CHUNK_BYTES)
        {
            state.answer.add(frame);
            cost += frame.cost();
            messages += u64::from(frame.is_message());
            self.frames.pop_front();
        }
        self.traffic.messages_sent.inc_by(messages);
        let has_counted = state.answer.count() > before;
        // The Close frame is in the same answer as the messages before it, as far as they fit.
        let is_last = is_closing && self.frames.is_empty();
        if is_last || state.answer.is_worth_sending(has_counted) {
            self.traffic.sent_bytes.inc_by(state.answer.len() as u64);
            state.send();
            state.is_complete |= is_last;
        }
        Poll::Ready(Ok(cost))
    }

    /// Drops the frames that are not handed over.
    pub(crate) fn clear(&mut self) {
        self.frames.clear();
    }

    /// Hands over the remaining frames and then `frames`, the last of which is a Close frame, and ends the answer. It
    /// waits for the client, so the caller must set a time limit.
    pub(crate) async fn close(&mut self, frames: impl Iterator<Item = Frame>) -> io::Result<()> {
        self.frames.extend(frames);
        while !self.frames.is_empty() {
            poll_fn(|cx| self.poll_hand_over(cx, true)).await?;
        }
        Ok(())
    }
}

/// The answer ends when nothing more comes.
impl Drop for Outlet {
    fn drop(&mut self) {
        let mut state = self.pipe.lock();
        state.is_complete = true;
        wake(&mut state.body);
    }
}
