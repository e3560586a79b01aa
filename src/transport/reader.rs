//! The receiving half.

use std::{
    io,
    ops::ControlFlow,
    sync::Arc,
    task::{Context, Poll},
};

use crate::{
    event_stream::{Inlet, Receiver},
    websocket::{self, Event, ReadControl, Stop},
};

/// The receiving half of a connection.
pub(crate) enum Reader {
    WebSocket(websocket::Reader),
    /// In a box, because most sessions have a WebSocket.
    EventStream(Box<Receiver>),
}

impl From<websocket::Reader> for Reader {
    fn from(reader: websocket::Reader) -> Reader {
        Reader::WebSocket(reader)
    }
}

impl From<Receiver> for Reader {
    fn from(receiver: Receiver) -> Reader {
        Reader::EventStream(Box::new(receiver))
    }
}

impl Reader {
    /// Whether the client uses no WebSocket.
    pub(crate) fn is_event_stream(&self) -> bool {
        matches!(self, Reader::EventStream(_))
    }

    /// Whether the client polls.
    pub(crate) fn is_poll(&self) -> bool {
        match self {
            Reader::WebSocket(_) => false,
            Reader::EventStream(receiver) => receiver.is_poll(),
        }
    }

    /// Reads from this inlet from now on. Without effect on a WebSocket.
    pub(crate) fn connect(&mut self, inlet: Arc<Inlet>) {
        if let Reader::EventStream(receiver) = self {
            receiver.connect(inlet);
        }
    }

    /// Reads once and calls `on_event` with every event. Returns whether more data may be available immediately; the
    /// caller must yield then, so that a peer that sends much does not delay others.
    ///
    /// # Errors
    ///
    /// The [`Stop`] after which nothing more can be read.
    pub(crate) fn poll_read<B>(
        &mut self,
        cx: &mut Context<'_>,
        on_event: impl FnMut(Event<'_>) -> ControlFlow<B, ReadControl>,
    ) -> Poll<Result<bool, Stop<B>>> {
        match self {
            Reader::WebSocket(reader) => reader.poll_read(cx, on_event),
            Reader::EventStream(receiver) => receiver.poll_read(cx, on_event),
        }
    }

    /// Discards what comes until the client closes its side. It waits for the client, so the caller must set a time
    /// limit.
    pub(crate) async fn discard(&mut self) -> io::Result<()> {
        match self {
            Reader::WebSocket(reader) => reader.discard().await,
            Reader::EventStream(receiver) => {
                receiver.discard().await;
                Ok(())
            }
        }
    }

    /// Whether the client has closed its side, as far as that is known.
    pub(crate) fn is_closed(&self) -> bool {
        match self {
            Reader::WebSocket(reader) => reader.is_closed(),
            Reader::EventStream(receiver) => receiver.is_closed(),
        }
    }

    /// Ends the connection and discards unsent data.
    pub(crate) fn abort(self) {
        match self {
            Reader::WebSocket(reader) => reader.abort(),
            Reader::EventStream(receiver) => receiver.abort(),
        }
    }
}
