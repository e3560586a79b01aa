//! The receiving half of a session's transport.

use std::{
    future::poll_fn,
    ops::ControlFlow,
    sync::Arc,
    task::{Context, Poll},
};

use super::{
    form::Form,
    inlet::Inlet,
    pipe::{Pipe, wake},
};
use crate::websocket::{Event, ReadControl, Stop};

/// The receiving half: what the client posts, and whether the answer that carries messages to it is still open.
pub(crate) struct Receiver {
    /// `None` for a session that has no answer just now.
    pipe: Option<Arc<Pipe>>,
    /// Present once the session is known.
    inlet: Option<Arc<Inlet>>,
}

impl Receiver {
    /// The receiving half beside the answer of this pipe.
    pub(super) fn of(pipe: Arc<Pipe>) -> Receiver {
        Receiver {
            pipe: Some(pipe),
            inlet: None,
        }
    }

    /// The receiving half of a session that has no answer just now.
    pub(crate) fn without_answer(inlet: Arc<Inlet>) -> Receiver {
        Receiver {
            pipe: None,
            inlet: Some(inlet),
        }
    }

    /// Whether the answer is one of long polling.
    pub(crate) fn is_poll(&self) -> bool {
        let form = |pipe: &Arc<Pipe>| pipe.lock().answer.form();
        self.pipe.as_ref().map(form) == Some(Form::Poll)
    }

    /// Reads from this inlet from now on.
    pub(crate) fn connect(&mut self, inlet: Arc<Inlet>) {
        self.inlet = Some(inlet);
    }

    /// Reads as [`websocket::Reader::poll_read`](crate::websocket::Reader::poll_read) does.
    ///
    /// # Errors
    ///
    /// The [`Stop`] after which nothing more can be read: [`Stop::Lost`] when the answer has ended.
    pub(crate) fn poll_read<B>(
        &mut self,
        cx: &mut Context<'_>,
        on_event: impl FnMut(Event<'_>) -> ControlFlow<B, ReadControl>,
    ) -> Poll<Result<bool, Stop<B>>> {
        if self.poll_ended(cx).is_ready() {
            return Poll::Ready(Err(Stop::Lost));
        }
        match &self.inlet {
            Some(inlet) => inlet.poll_read(cx, on_event),
            None => Poll::Pending,
        }
    }

    /// Waits until the HTTP server takes nothing more.
    fn poll_ended(&self, cx: &Context<'_>) -> Poll<()> {
        let Some(pipe) = &self.pipe else {
            return Poll::Pending;
        };
        let mut state = pipe.lock();
        if state.is_gone {
            return Poll::Ready(());
        }
        state.reader = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Waits until the answer is sent. It waits for the client, so the caller must set a time limit.
    pub(crate) async fn discard(&mut self) {
        poll_fn(|cx| self.poll_ended(cx)).await;
    }

    /// Whether the answer has ended, or the client leaves.
    pub(crate) fn is_closed(&self) -> bool {
        let is_leaving = self.inlet.as_ref().is_some_and(|inlet| inlet.is_leaving());
        is_leaving || self.pipe.as_ref().is_some_and(|pipe| pipe.lock().is_gone)
    }

    /// Ends the answer.
    pub(crate) fn abort(self) {
        if let Some(pipe) = &self.pipe {
            let mut state = pipe.lock();
            state.chunk = None;
            state.is_complete = true;
            wake(&mut state.body);
        }
    }
}
