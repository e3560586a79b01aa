//! The messages of other nodes, from several subscriptions, in an order without gaps. No I/O.

use std::{
    future::poll_fn,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    task::{Context, Poll, Wake, Waker},
};

use futures_util::{
    Stream, StreamExt,
    stream::{AbortHandle, Abortable, SelectAll, abortable},
    task::AtomicWaker,
};
use log::debug;

use crate::{keyed_map::KeyedMap, protocol::RoomName};

/// A subscription to a room that begins or ends.
pub(super) enum SubscriptionChange<S> {
    Begin(RoomName, S),
    End(RoomName),
}

/// The subscriptions of this node, each a stream `S`.
pub(super) struct Inbox<S> {
    streams: SelectAll<Abortable<S>>,
    /// Ends the subscription to each room.
    rooms: KeyedMap<RoomName, AbortHandle>,
    woken: Arc<WakeFlag>,
}

impl<S: Stream + Unpin> Inbox<S> {
    /// An inbox without subscriptions.
    pub(super) fn new() -> Inbox<S> {
        Inbox {
            streams: SelectAll::new(),
            rooms: KeyedMap::default(),
            woken: Arc::default(),
        }
    }

    /// Adds a subscription that lasts as long as the inbox.
    pub(super) fn add(&mut self, stream: S) {
        self.streams.push(abortable(stream).0);
    }

    /// Adds or removes the subscription to a room. A second subscription to the same room replaces the
    /// first.
    pub(super) fn change(&mut self, change: SubscriptionChange<S>) {
        let (room, earlier) = match change {
            SubscriptionChange::Begin(room, stream) => {
                let (stream, handle) = abortable(stream);
                self.streams.push(stream);
                (room.clone(), self.rooms.insert(room, handle))
            }
            SubscriptionChange::End(room) => {
                let earlier = self.rooms.remove(&room);
                (room, earlier)
            }
        };
        if let Some(earlier) = earlier {
            debug!("the subscription to room {room} ends");
            earlier.abort();
        }
    }

    /// Removes the subscriptions to all rooms.
    pub(super) fn forget_rooms(&mut self) {
        self.rooms.drain().for_each(|(_, handle)| handle.abort());
    }

    /// Everything that has arrived, as soon as there is something.
    ///
    /// A message arrives later than everything that its node has sent before, but perhaps in another
    /// subscription. When all subscriptions were found empty after the message, and none was woken since,
    /// nothing before it is missing. The caller must poll this future in [`unconstrained`]: a subscription
    /// that yields to the scheduler looks empty and is not.
    ///
    /// [`unconstrained`]: tokio::task::coop::unconstrained
    pub(super) async fn batch(&mut self) -> Vec<S::Item> {
        let mut batch = Vec::new();
        let waker = Waker::from(self.woken.clone());
        poll_fn(|cx| {
            self.woken.reader.register(cx.waker());
            let mut cx = Context::from_waker(&waker);
            loop {
                let before = batch.len();
                self.woken.is_set.store(false, SeqCst);
                while let Poll::Ready(Some(item)) = self.streams.poll_next_unpin(&mut cx) {
                    batch.push(item);
                }
                if batch.len() == before && !self.woken.is_set.load(SeqCst) {
                    break;
                }
            }
            match batch.is_empty() {
                true => Poll::Pending,
                false => Poll::Ready(()),
            }
        })
        .await;
        batch
    }
}

/// A waker that records a wake-up and passes it on to the task that reads.
#[derive(Default)]
struct WakeFlag {
    /// Whether a stream was woken since the flag was cleared.
    is_set: AtomicBool,
    reader: AtomicWaker,
}

impl Wake for WakeFlag {
    fn wake(self: Arc<WakeFlag>) {
        self.is_set.store(true, SeqCst);
        self.reader.wake();
    }
}

#[cfg(test)]
mod tests {
    use std::pin::{Pin, pin};

    use futures_util::FutureExt;
    use tokio::sync::mpsc::{self, UnboundedReceiver};

    use super::*;

    struct Channel(UnboundedReceiver<u32>);

    impl Stream for Channel {
        type Item = u32;

        fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<u32>> {
            self.0.poll_recv(cx)
        }
    }

    #[test]
    fn a_batch_has_everything_that_has_arrived_in_any_subscription() {
        let mut inbox = Inbox::new();
        let (to_all, all) = mpsc::unbounded_channel();
        let (to_room, of_room) = mpsc::unbounded_channel();
        let room = RoomName::default_room();
        inbox.add(Channel(all));
        inbox.change(SubscriptionChange::Begin(room.clone(), Channel(of_room)));
        {
            let mut batch = pin!(inbox.batch());
            assert!(batch.as_mut().now_or_never().is_none());
            for number in 0..100 {
                let sender = if number % 3 == 0 { &to_all } else { &to_room };
                sender.send(number).unwrap();
            }
            let mut numbers = batch.now_or_never().unwrap();
            numbers.sort_unstable();
            assert_eq!(numbers, Vec::from_iter(0..100));
        }
        inbox.change(SubscriptionChange::End(room));
        to_all.send(1).unwrap();
        let _ = to_room.send(2);
        assert_eq!(inbox.batch().now_or_never(), Some(vec![1]));
    }
}
