//! The bounded queue of events between a room's task and the application.

use std::{
    fmt,
    future::poll_fn,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll, ready},
};

use futures_util::Stream;
use tokio::sync::{Notify, mpsc};

use super::{event::Event, handle::Handle};

/// What an event takes besides its message, in bytes.
const EVENT_BYTES: usize = 128;

/// What the two ends of the queue share.
#[derive(Default)]
struct Fill {
    bytes: AtomicUsize,
    shrunk: Notify,
}

/// The events of a room, as a [`Stream`]. The last one is [`Event::Closed`].
///
/// Dropping this and all handles of the [`Room`](super::Room) leaves the room.
pub struct Events {
    queue: mpsc::UnboundedReceiver<(Event, usize)>,
    fill: Arc<Fill>,
    _handle: Arc<Handle>,
}

impl Events {
    /// The next event; `None` after the last one.
    pub async fn next(&mut self) -> Option<Event> {
        poll_fn(|cx| Pin::new(&mut *self).poll_next(cx)).await
    }
}

impl Stream for Events {
    type Item = Event;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Event>> {
        let Some((event, bytes)) = ready!(self.queue.poll_recv(cx)) else {
            return Poll::Ready(None);
        };
        self.fill.bytes.fetch_sub(bytes, SeqCst);
        self.fill.shrunk.notify_one();
        Poll::Ready(Some(event))
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        self.queue.close();
        self.fill.shrunk.notify_one();
    }
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Events").finish_non_exhaustive()
    }
}

/// The end of the queue that the room's task fills.
pub(super) struct EventSink {
    queue: mpsc::UnboundedSender<(Event, usize)>,
    fill: Arc<Fill>,
    limit: usize,
}

impl EventSink {
    /// Adds an event whose message has this many bytes. Nobody may be there to read it.
    pub(super) fn push(&self, event: Event, bytes: usize) {
        let bytes = bytes + EVENT_BYTES;
        self.fill.bytes.fetch_add(bytes, SeqCst);
        let _ = self.queue.send((event, bytes));
    }

    /// Whether another message may be read from the server.
    pub(super) fn has_room(&self) -> bool {
        self.fill.bytes.load(SeqCst) < self.limit || self.queue.is_closed()
    }

    /// Waits until it may.
    pub(super) async fn has_shrunk(&self) {
        while !self.has_room() {
            self.fill.shrunk.notified().await;
        }
    }
}

/// A queue that is full once its events have so many bytes.
pub(super) fn queue(limit: usize, handle: Arc<Handle>) -> (EventSink, Events) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let fill = Arc::<Fill>::default();
    let sink = EventSink {
        queue: sender,
        fill: fill.clone(),
        limit,
    };
    let events = Events {
        queue: receiver,
        fill,
        _handle: handle,
    };
    (sink, events)
}
