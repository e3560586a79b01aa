//! The sending half.

use std::{
    io,
    task::{Context, Poll},
};

use thin_vec::ThinVec;
#[cfg(any(test, fuzzing))]
use {
    crate::metrics::Traffic,
    std::sync::Arc,
    tokio::{io::AsyncWrite, net::tcp::OwnedWriteHalf},
    tokio_util::either::Either,
};

use crate::{
    event_stream::Outlet,
    protocol::Resume,
    websocket::{self, Frame},
};

/// The sending half of a connection, with the frames that it is writing.
pub(crate) enum Writer {
    WebSocket(websocket::Writer),
    /// In a box, because most sessions have a WebSocket.
    EventStream(Box<Outlet>),
}

impl From<websocket::Writer> for Writer {
    fn from(writer: websocket::Writer) -> Writer {
        Writer::WebSocket(writer)
    }
}

impl From<Outlet> for Writer {
    fn from(outlet: Outlet) -> Writer {
        Writer::EventStream(Box::new(outlet))
    }
}

impl Writer {
    /// A writer of WebSocket frames to a stream.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn new(
        stream: Either<OwnedWriteHalf, Box<dyn AsyncWrite + Send + Unpin>>,
        traffic: Arc<Traffic>,
    ) -> Writer {
        websocket::Writer::new(stream, traffic).into()
    }

    /// Tells a client without a WebSocket how it resumes its session. The others ask for that.
    pub(crate) fn introduce(&mut self, resume: &Resume) {
        if let Writer::EventStream(outlet) = self {
            outlet.introduce(resume);
        }
    }

    /// Notes how many messages of the session the client has received. The next message is not counted.
    pub(crate) fn continue_after(&mut self, received: u64) {
        if let Writer::EventStream(outlet) = self {
            outlet.continue_after(received);
        }
    }

    /// Takes the frames from `queue` if the writer has none. Returns whether it has frames now.
    pub(crate) fn refill(&mut self, queue: &mut ThinVec<Frame>) -> bool {
        match self {
            Writer::WebSocket(writer) => writer.refill(queue),
            Writer::EventStream(outlet) => outlet.refill(queue),
        }
    }

    /// Writes once, as many frames as the connection takes. Returns the cost ([`Frame::cost`]) of the frames that are
    /// written completely.
    pub(crate) fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        match self {
            Writer::WebSocket(writer) => writer.poll_write(cx),
            Writer::EventStream(outlet) => outlet.poll_write(cx),
        }
    }

    /// Whether the connection may buffer written data until it is flushed, as TLS may.
    pub(crate) fn keeps_back(&self) -> bool {
        match self {
            Writer::WebSocket(writer) => writer.keeps_back(),
            Writer::EventStream(_) => false,
        }
    }

    /// Sends the data that the connection has buffered.
    pub(crate) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Writer::WebSocket(writer) => writer.poll_flush(cx),
            Writer::EventStream(outlet) => {
                outlet.flush();
                Poll::Ready(Ok(()))
            }
        }
    }

    /// The number of frames that the writer has capacity for.
    #[cfg(test)]
    pub(crate) fn capacity(&self) -> usize {
        match self {
            Writer::WebSocket(writer) => writer.capacity(),
            Writer::EventStream(_) => 0,
        }
    }

    /// Drops the frames that are not written, except one that is written in part.
    pub(crate) fn clear(&mut self) {
        match self {
            Writer::WebSocket(writer) => writer.clear(),
            Writer::EventStream(outlet) => outlet.clear(),
        }
    }

    /// Writes the remaining frames and then `frames`, the last of which is a Close frame, and ends the sending side. It
    /// waits for the client, so the caller must set a time limit.
    pub(crate) async fn close(&mut self, frames: impl Iterator<Item = Frame>) -> io::Result<()> {
        match self {
            Writer::WebSocket(writer) => writer.close(frames).await,
            Writer::EventStream(outlet) => outlet.close(frames).await,
        }
    }
}
