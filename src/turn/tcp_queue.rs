//! What waits to be written to a client over TCP.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

use tokio::sync::{Notify, mpsc};

/// The most bytes of data that wait. What peers send beyond that is lost, as it would be in a network.
const DATA_BYTES: usize = 192 << 10;

/// The most bytes that wait in all. A client that does not read its answers is given up.
const ALL_BYTES: usize = 256 << 10;

/// The memory that each frame takes beside its bytes.
const FRAME_COST: usize = 64;

/// The end of the queue that fills it.
#[derive(Clone)]
pub(super) struct TcpSender {
    frames: mpsc::UnboundedSender<Vec<u8>>,
    shared: Arc<Shared>,
}

/// The end of the queue that empties it.
pub(super) struct TcpReceiver {
    frames: mpsc::UnboundedReceiver<Vec<u8>>,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    bytes: AtomicUsize,
    overflow: Notify,
}

/// An empty queue.
pub(super) fn tcp_queue() -> (TcpSender, TcpReceiver) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let shared = Arc::<Shared>::default();
    let sender = TcpSender {
        frames: sender,
        shared: shared.clone(),
    };
    let receiver = TcpReceiver {
        frames: receiver,
        shared,
    };
    (sender, receiver)
}

impl TcpSender {
    /// Adds data of a peer. Returns false if there is no room for it.
    pub(super) fn data(&self, frame: &[u8]) -> bool {
        self.push(frame, DATA_BYTES)
    }

    /// Adds an answer.
    pub(super) fn answer(&self, frame: &[u8]) {
        if !self.push(frame, ALL_BYTES) {
            self.shared.overflow.notify_one();
        }
    }

    /// Whether both lead to the same connection.
    pub(super) fn is_same(&self, other: &TcpSender) -> bool {
        self.frames.same_channel(&other.frames)
    }

    fn push(&self, frame: &[u8], most: usize) -> bool {
        // Over TCP, the length of everything is a multiple of four (RFC 8656, section 12.5).
        let length = frame.len().next_multiple_of(4);
        let cost = length + FRAME_COST;
        if self.shared.bytes.fetch_add(cost, Relaxed) + cost > most {
            self.shared.bytes.fetch_sub(cost, Relaxed);
            return false;
        }
        let mut padded = Vec::with_capacity(length);
        padded.extend(frame);
        padded.resize(length, 0);
        self.frames.send(padded).is_ok()
    }
}

impl TcpReceiver {
    /// The next frame; `None` once it has a sender no more.
    pub(super) async fn next(&mut self) -> Option<Vec<u8>> {
        self.frames.recv().await
    }

    /// Makes room again for a frame that is written.
    pub(super) fn written(&self, frame: &[u8]) {
        let cost = frame.len() + FRAME_COST;
        self.shared.bytes.fetch_sub(cost, Relaxed);
    }

    /// Waits until an answer has found no room.
    pub(super) fn overflow(&self) -> impl Future<Output = ()> + use<> {
        let shared = self.shared.clone();
        async move { shared.overflow.notified().await }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn data_leaves_room_for_answers_and_answers_are_bounded() {
        let (sender, mut receiver) = tcp_queue();
        let frame = [7; 1001];
        let accepted = (0..1000).filter(|_| sender.data(&frame)).count();
        assert_eq!(accepted, DATA_BYTES / (1004 + FRAME_COST));
        let overflow = receiver.overflow();
        sender.answer(&frame);
        assert!(receiver.overflow().now_or_never().is_none());
        (0..1000).for_each(|_| sender.answer(&frame));
        overflow.await;
        // What is written makes room again.
        for _ in 0..accepted {
            let frame = receiver.next().await.unwrap();
            assert_eq!(frame[..], [[7; 1001].as_slice(), &[0; 3]].concat());
            receiver.written(&frame);
        }
        assert!(sender.data(&frame));
    }
}
