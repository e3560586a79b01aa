//! The body of an answer that carries messages.

use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures_util::Stream;
use tokio::time::{Sleep, sleep};

use super::{
    form::Form,
    outlet::Outlet,
    pipe::{Pipe, wake},
    receiver::Receiver,
};
use crate::{metrics::Traffic, web::SocketWatch};

/// The body of an answer. Dropping it tells the session that the connection is lost.
pub(crate) struct Body {
    pipe: Arc<Pipe>,
    /// How long an answer of long polling waits for messages once there is a session, and until when.
    wait: Option<Duration>,
    deadline: Option<Pin<Box<Sleep>>>,
    socket: SocketWatch,
    /// Shows the connection that the answer is not complete.
    _lasting: Option<Arc<()>>,
}

impl Body {
    /// The body of an answer in this form on the connection `socket`, and the two halves of the transport for a
    /// session. Long polling waits for `wait` at most. `lasting` is held until the answer is complete.
    pub(crate) fn new(
        form: Form,
        wait: Duration,
        socket: SocketWatch,
        lasting: Option<Arc<()>>,
        traffic: &Arc<Traffic>,
    ) -> (Body, Receiver, Outlet) {
        let outlet = Outlet::new(form, traffic.clone());
        let pipe = outlet.pipe.clone();
        let receiver = Receiver::of(pipe.clone());
        let body = Body {
            pipe,
            wait: (form == Form::Poll).then_some(wait),
            deadline: None,
            socket,
            _lasting: lasting,
        };
        (body, receiver, outlet)
    }
}

impl Stream for Body {
    type Item = Result<Bytes, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.pipe.lock().is_attached
            && let Some(wait) = self.wait.take()
        {
            self.deadline = Some(Box::pin(sleep(wait)));
        }
        let is_due = self.deadline.as_mut();
        let is_due = is_due.is_some_and(|deadline| deadline.as_mut().poll(cx).is_ready());
        let mut state = self.pipe.lock();
        if is_due && !state.is_complete {
            state.send();
        }
        if let Some(chunk) = state.chunk.take() {
            wake(&mut state.writer);
            return Poll::Ready(Some(Ok(chunk)));
        }
        if state.is_complete || self.socket.poll_closed(cx).is_ready() {
            return Poll::Ready(None);
        }
        state.body = Some(cx.waker().clone());
        Poll::Pending
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        self.pipe.lock().end();
    }
}
