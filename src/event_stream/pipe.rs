//! What a session and the answer that carries its messages share.

use std::task::Waker;

use bytes::Bytes;
use parking_lot::{Mutex, MutexGuard};

use super::form::{Answer, Form};

/// Between a session, which fills it, and the HTTP server, which empties it.
pub(super) struct Pipe(Mutex<State>);

pub(super) struct State {
    pub(super) answer: Answer,
    /// Whether a session sends here.
    pub(super) is_attached: bool,
    /// What the answer sends next.
    pub(super) chunk: Option<Bytes>,
    /// Whether nothing follows the chunk.
    pub(super) is_complete: bool,
    /// Whether the HTTP server takes nothing more.
    pub(super) is_gone: bool,
    /// Wakes the session when there is room for a chunk.
    pub(super) writer: Option<Waker>,
    /// Wakes the session when the HTTP server takes nothing more.
    pub(super) reader: Option<Waker>,
    /// Wakes the HTTP server.
    pub(super) body: Option<Waker>,
}

impl Pipe {
    pub(super) fn new(answer: Answer) -> Pipe {
        Pipe(Mutex::new(State {
            answer,
            is_attached: false,
            chunk: None,
            is_complete: false,
            is_gone: false,
            writer: None,
            reader: None,
            body: None,
        }))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock()
    }
}

impl State {
    /// Hands what is made to the HTTP server. Nothing follows the answer of long polling.
    pub(super) fn send(&mut self) {
        self.chunk = Some(self.answer.take().into());
        self.is_complete |= self.answer.form() == Form::Poll;
        wake(&mut self.body);
    }

    /// Notes that a session sends here.
    pub(super) fn attach(&mut self) {
        self.is_attached = true;
        wake(&mut self.body);
    }

    /// Notes that the HTTP server takes nothing more.
    pub(super) fn end(&mut self) {
        self.is_gone = true;
        self.chunk = None;
        wake(&mut self.writer);
        wake(&mut self.reader);
    }
}

/// Wakes a task that waits.
pub(super) fn wake(waker: &mut Option<Waker>) {
    if let Some(waker) = waker.take() {
        waker.wake();
    }
}
