//! How this node sends to the others: a bounded queue that tasks wait for. No I/O.
//!
//! No queued message is discarded to make room for another. A task whose message can wait (of a client, or
//! a chunk of a list) waits until there is room: a session for its own quota, all sessions together for
//! their part of the queue, and every sender for the window of the node that receives. Control messages do
//! not wait: the limits of all others leave room for them.

use std::{
    collections::VecDeque,
    future::poll_fn,
    sync::{
        Arc,
        atomic::{
            AtomicBool, AtomicU64,
            Ordering::{Acquire, Relaxed},
        },
    },
    task::{Context, Poll},
};

use parking_lot::Mutex;
use tokio::sync::{
    Mutex as AsyncMutex, MutexGuard as AsyncMutexGuard, Notify, Semaphore, SemaphorePermit,
};

use super::{
    batch::Batch,
    flow_control::{Load, Quota},
    queue::{MAX_OBSERVED, Outgoing, Queue},
    wire::NodeId,
};

/// Sessions that migrate at once. Each is a burst of everything that its client has missed.
const MIGRATIONS: usize = 4;

/// The sending half of this node.
pub(crate) struct Outbound {
    node: NodeId,
    queue: Mutex<Queue>,
    /// Notified when the queue has items, and when it is finished.
    filled: Notify,
    /// Whether client messages have reached their limit. The queue sets it. Every session reads it after
    /// each message, so it must not take the lock, under which messages are encoded.
    is_full: Arc<AtomicBool>,
    /// How many marks [`next_mark`](Outbound::next_mark) has given out.
    marks: AtomicU64,
    /// The line of joins and migrations: the task that holds the lock is first.
    line: AsyncMutex<Arc<Quota>>,
    migrations: Semaphore,
}

impl Outbound {
    /// A disconnected node: it queues nothing before [`open`](Outbound::open).
    pub(super) fn new(node: NodeId) -> Outbound {
        let is_full = Arc::new(AtomicBool::new(false));
        Outbound {
            node,
            queue: Mutex::new(Queue::new(is_full.clone())),
            filled: Notify::new(),
            is_full,
            marks: AtomicU64::new(0),
            line: AsyncMutex::new(Arc::new(Quota::of_line())),
            migrations: Semaphore::new(MIGRATIONS),
        }
    }

    /// The id of this node.
    pub(crate) fn node(&self) -> NodeId {
        self.node
    }

    /// A number that is unique for the life of this node. Other nodes send it back to name a request.
    pub(crate) fn next_mark(&self) -> u64 {
        self.marks.fetch_add(1, Relaxed) + 1
    }

    /// The highest number that was sent or received so far.
    pub(crate) fn number(&self) -> u64 {
        self.queue.lock().number
    }

    /// Locks the queue to send messages.
    pub(crate) fn batch(&self) -> Batch<'_> {
        Batch::new(self.node, self.queue.lock(), &self.filled)
    }

    /// Gives later messages a higher number than this one, which another node sent. Ignores numbers above
    /// [`MAX_OBSERVED`].
    pub(super) fn observe(&self, number: u64) {
        if number <= MAX_OBSERVED {
            let mut queue = self.queue.lock();
            queue.number = queue.number.max(number);
        }
    }

    /// Accepts messages from now on.
    pub(super) fn open(&self) {
        self.queue.lock().open();
    }

    /// Discards what is not sent yet, and accepts no more messages.
    pub(super) fn close(&self) {
        let discarded = self.queue.lock().close();
        drop(discarded);
    }

    /// Whether messages are accepted.
    pub(super) fn is_open(&self) -> bool {
        self.queue.lock().is_open()
    }

    /// Ends [`next`](Outbound::next) after what is queued now.
    pub(super) fn finish(&self) {
        self.queue.lock().finish();
        self.filled.notify_one();
    }

    /// A node is up.
    pub(super) fn up(&self, node: NodeId) {
        self.queue.lock().up(node);
    }

    /// A node is down. Returns how many client messages it was sent and has not acknowledged.
    pub(super) fn down(&self, node: NodeId) -> u64 {
        self.queue.lock().down(node)
    }

    /// A node has received everything up to this number.
    pub(super) fn acknowledged(&self, node: NodeId, number: u64) {
        self.queue.lock().acknowledge(node, number);
    }

    /// Whether a session must wait before its next message: for its own quota, or for the limit of all
    /// sessions if its messages reach other nodes.
    pub(crate) fn must_wait(&self, quota: &Quota, reaches: impl FnOnce() -> bool) -> bool {
        quota.is_exceeded() || (self.is_full.load(Acquire) && reaches())
    }

    /// Waits until the owner of a quota may send.
    pub(crate) async fn has_room(&self, quota: &Arc<Quota>) {
        poll_fn(|cx| self.poll_room(cx, quota)).await;
    }

    fn poll_room(&self, cx: &mut Context<'_>, quota: &Arc<Quota>) -> Poll<()> {
        match self.queue.lock().poll_room(cx.waker(), quota) {
            true => Poll::Ready(()),
            false => Poll::Pending,
        }
    }

    /// Waits in line until there is room for a join or a migration. The next in line continues when the
    /// guard is dropped.
    pub(crate) async fn wait_in_line(&self) -> AsyncMutexGuard<'_, Arc<Quota>> {
        let line = self.line.lock().await;
        self.has_room(&line).await;
        line
    }

    /// Waits until a session may migrate to another node. The migration lasts as long as the guard.
    pub(crate) async fn migration_permit(&self) -> Option<SemaphorePermit<'_>> {
        // The semaphore is never closed.
        let permit = self.migrations.acquire().await.ok();
        drop(self.wait_in_line().await);
        permit
    }

    /// Whether there is room now for a chunk of a list to this node.
    pub(crate) fn has_room_for(&self, node: NodeId, quota: &Quota) -> bool {
        self.queue.lock().has_room_for_node(node, quota)
    }

    /// Everything that waits to be written, as soon as there is something, and the epoch of the queue;
    /// `None` when the queue is finished.
    pub(super) async fn next(&self) -> Option<(u64, VecDeque<Outgoing>)> {
        loop {
            let filled = self.filled.notified();
            {
                let mut queue = self.queue.lock();
                if !queue.is_empty() {
                    return Some((queue.epoch(), queue.take()));
                }
                if queue.is_finished() {
                    return None;
                }
            }
            filled.await;
        }
    }

    /// What waits in the queue, or is not acknowledged, or is taken and not given back. Empty once nothing is
    /// under way.
    #[cfg(all(test, feature = "cluster"))]
    pub(crate) fn leftovers(&self) -> Vec<String> {
        let mut left = self.queue.lock().leftovers();
        if self.line.try_lock().is_err() {
            left.push("the line of joins and migrations".to_owned());
        }
        if self.migrations.available_permits() < MIGRATIONS {
            left.push("permits of migrations".to_owned());
        }
        left
    }

    /// Whether items of this epoch are still to be written: the queue has not been closed since.
    pub(super) fn is_current(&self, epoch: u64) -> bool {
        self.queue.lock().epoch() == epoch
    }

    /// An item that [`next`](Outbound::next) returned is written or discarded.
    pub(super) fn written(&self, epoch: u64, cost: usize, load: &Load) {
        self.queue.lock().written(epoch, cost, load);
    }
}

#[cfg(test)]
mod tests {
    use std::{
        pin::pin,
        task::{Wake, Waker},
    };

    use super::{
        super::{
            batch::Sequence,
            flow_control::{MESSAGE_BYTES, QUOTA_BYTES, WINDOW_BYTES},
            queue::Disconnected,
            wire::{Broadcast, Direct, Event, MAX_NUMBER, Message, decode},
        },
        *,
    };
    use crate::protocol::{RoomName, SessionId};

    /// A waker that records whether it was used.
    #[derive(Default)]
    struct WakeFlag(AtomicBool);

    impl Wake for WakeFlag {
        fn wake(self: Arc<WakeFlag>) {
            self.0.store(true, Relaxed);
        }
    }

    fn outbound() -> Outbound {
        let outbound = Outbound::new(NodeId::random());
        outbound.open();
        outbound
    }

    /// The numbers of the queued messages, and for messages about a room the number that each follows.
    async fn queued(outbound: &Outbound) -> Vec<(u64, Option<u64>)> {
        let (_, waiting) = outbound.next().await.unwrap();
        let messages = waiting.iter().filter_map(|item| match item {
            Outgoing::Message(_, message, _) => Some(decode(message).unwrap()),
            _ => None,
        });
        messages
            .map(|envelope| match envelope.message {
                Message::Room(event) => (envelope.number, Some(event.after)),
                _ => (envelope.number, None),
            })
            .collect()
    }

    /// Sends a message of a session to a session of a node.
    fn send(
        outbound: &Outbound,
        node: NodeId,
        quota: &Arc<Quota>,
        bytes: usize,
    ) -> Result<u64, Disconnected> {
        let unicast = Direct::Unicast {
            room: RoomName::default_room(),
            sender: None,
            receiver: SessionId::random(),
            reference: None,
        };
        let load = Load::Message(Some(quota.clone()));
        let mut batch = outbound.batch();
        batch.tell_node(node, unicast, &vec![b'x'; bytes], load)
    }

    /// Writes everything that waits. Returns how many bytes that was.
    async fn write(outbound: &Outbound) -> usize {
        let (epoch, waiting) = outbound.next().await.unwrap();
        let mut bytes = 0;
        for item in waiting {
            let cost = item.cost();
            bytes += cost;
            if let Outgoing::Message(_, _, load) = item {
                outbound.written(epoch, cost, &load);
            }
        }
        bytes
    }

    fn has_room(outbound: &Outbound, quota: &Arc<Quota>) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        outbound.poll_room(&mut cx, quota).is_ready()
    }

    #[tokio::test]
    async fn each_message_about_a_room_names_the_one_before() {
        let outbound = outbound();
        let room = RoomName::default_room();
        let sequence = Sequence::default();
        outbound.batch().enter(&room, &sequence);
        outbound.observe(11);
        let exit = || {
            let mut batch = outbound.batch();
            batch.tell_room(&room, &sequence, Event::Exit, b"", Load::Control)
        };
        exit().unwrap();
        outbound.batch().tell_all(Broadcast::Bye).unwrap();
        exit().unwrap();
        let expected = [(1, None), (12, Some(1)), (13, None), (14, Some(12))];
        assert_eq!(queued(&outbound).await, expected);
    }

    #[tokio::test]
    async fn an_impossible_number_is_not_observed() {
        let outbound = outbound();
        outbound.observe(MAX_NUMBER);
        assert_eq!(outbound.batch().tell_all(Broadcast::Bye), Ok(1));
        outbound.observe(MAX_OBSERVED);
        assert_eq!(
            outbound.batch().tell_all(Broadcast::Bye),
            Ok(MAX_OBSERVED + 1)
        );
    }

    #[tokio::test]
    async fn a_message_of_a_disconnected_node_leaves_a_gap_in_the_sequence() {
        let outbound = outbound();
        let room = RoomName::default_room();
        let sequence = Sequence::default();
        let tell = || {
            let mut batch = outbound.batch();
            batch.tell_room(&room, &sequence, Event::Exit, b"", Load::Control)
        };
        assert_eq!(tell(), Ok(1));
        outbound.close();
        assert_eq!(tell(), Err(Disconnected));
        outbound.open();
        assert_eq!(tell(), Ok(3));
        assert_eq!(queued(&outbound).await, [(3, Some(2))]);
    }

    #[tokio::test]
    async fn a_session_that_exceeds_its_quota_waits_and_others_do_not() {
        let (outbound, node) = (outbound(), NodeId::random());
        let [first, second] = [(); 2].map(|()| Arc::<Quota>::default());
        while !outbound.must_wait(&first, || true) {
            send(&outbound, node, &first, 1000).unwrap();
        }
        assert!(!has_room(&outbound, &first));
        assert!(!outbound.must_wait(&second, || true) && has_room(&outbound, &second));
        let mut waits = pin!(outbound.has_room(&first));
        let mut cx = Context::from_waker(Waker::noop());
        assert!(waits.as_mut().poll(&mut cx).is_pending());
        let written = write(&outbound).await;
        assert!(
            (QUOTA_BYTES..QUOTA_BYTES + 2000).contains(&written),
            "{written}"
        );
        assert!(waits.as_mut().poll(&mut cx).is_ready());
        assert!(!outbound.must_wait(&first, || true));
    }

    #[tokio::test]
    async fn all_sessions_together_leave_room_for_control_messages() {
        let (outbound, node) = (outbound(), NodeId::random());
        let crowd: Vec<Arc<Quota>> = (0..100).map(|_| Arc::default()).collect();
        for quota in crowd.iter().cycle().take(100_000) {
            if !outbound.must_wait(quota, || true) {
                send(&outbound, node, quota, 1000).unwrap();
            }
        }
        let late = Arc::default();
        assert!(outbound.must_wait(&late, || true) && !has_room(&outbound, &late));
        assert!(
            !outbound.must_wait(&late, || false),
            "its messages reach no other node"
        );
        assert!(outbound.batch().tell_all(Broadcast::Bye).is_ok());
        let written = write(&outbound).await;
        assert!(
            (MESSAGE_BYTES..MESSAGE_BYTES + 4000).contains(&written),
            "{written}"
        );
        assert!(has_room(&outbound, &late) && !outbound.must_wait(&late, || true));
    }

    #[tokio::test]
    async fn no_kind_of_message_keeps_another_out() {
        let (outbound, node) = (outbound(), NodeId::random());
        let quotas = [Quota::default(), Quota::of_line(), Quota::of_lists()].map(Arc::new);
        let loads = [Load::Message(None), Load::Line, Load::List];
        for (kind, load) in loads.iter().enumerate() {
            let fill = async || {
                while has_room(&outbound, &quotas[kind]) {
                    let ask = Direct::Ask(vec![RoomName::default_room(); 100]);
                    let mut batch = outbound.batch();
                    batch.tell_node(node, ask, &[], load.clone()).unwrap();
                }
            };
            fill().await;
            for (other, quota) in quotas.iter().enumerate() {
                assert_eq!(has_room(&outbound, quota), other != kind);
            }
            // A waiting task is woken as soon as there is room, however little is missing.
            let woken = Arc::new(WakeFlag::default());
            let waker = Waker::from(woken.clone());
            let mut waits = pin!(outbound.has_room(&quotas[kind]));
            let mut cx = Context::from_waker(&waker);
            assert!(waits.as_mut().poll(&mut cx).is_pending());
            write(&outbound).await;
            assert!(woken.0.load(Relaxed), "{kind}");
            assert!(waits.as_mut().poll(&mut cx).is_ready());
        }
        let undelivered = || Direct::Taken { number: 1 };
        while outbound.batch().reply(node, undelivered()).is_ok() {}
        assert!(quotas.iter().all(|quota| has_room(&outbound, quota)));
        assert!(outbound.is_open() && outbound.batch().tell_all(Broadcast::Bye).is_ok());
    }

    #[tokio::test]
    async fn only_a_session_that_writes_to_a_slow_node_waits_for_it() {
        let (outbound, slow, fast) = (outbound(), NodeId::random(), NodeId::random());
        let [to_slow, to_fast] = [(); 2].map(|()| Arc::<Quota>::default());
        outbound.up(slow);
        outbound.up(fast);
        let mut numbers = Vec::new();
        while !outbound.must_wait(&to_slow, || true) {
            numbers.push(send(&outbound, slow, &to_slow, 10_000).unwrap());
            send(&outbound, fast, &to_fast, 10_000).unwrap();
            outbound.acknowledged(fast, *numbers.last().unwrap());
            write(&outbound).await;
        }
        assert!(numbers.len() as u64 * 10_000 > WINDOW_BYTES - 1_000_000);
        assert!(!has_room(&outbound, &to_slow) && has_room(&outbound, &to_fast));
        assert!(!outbound.has_room_for(slow, &Quota::default()));
        outbound.acknowledged(slow, numbers[numbers.len() / 3]);
        assert!(!has_room(&outbound, &to_slow));
        outbound.acknowledged(slow, numbers[2 * numbers.len() / 3]);
        assert!(has_room(&outbound, &to_slow));
        // Messages that the node has not acknowledged when it goes down are lost.
        let last = *numbers.last().unwrap();
        let lost = numbers
            .iter()
            .filter(|it| **it > numbers[2 * numbers.len() / 3]);
        let lost = lost.count() as u64;
        assert!((lost..=lost + 2).contains(&outbound.down(slow)));
        outbound.acknowledged(fast, last + 1);
        assert_eq!(outbound.down(fast), 0);
    }

    #[tokio::test]
    async fn a_waiting_session_continues_when_the_queue_closes() {
        let (outbound, node) = (outbound(), NodeId::random());
        let quota = Arc::default();
        while !outbound.must_wait(&quota, || true) {
            send(&outbound, node, &quota, 1000).unwrap();
        }
        let mut waits = pin!(outbound.has_room(&quota));
        let mut cx = Context::from_waker(Waker::noop());
        assert_eq!(waits.as_mut().poll(&mut cx), Poll::Pending);
        outbound.close();
        assert!(waits.as_mut().poll(&mut cx).is_ready());
        assert_eq!(send(&outbound, node, &quota, 1), Err(Disconnected));
        assert!(!outbound.must_wait(&quota, || true));
    }

    #[tokio::test]
    async fn a_queue_over_its_limit_closes() {
        let outbound = outbound();
        let name = "x".repeat(128);
        let rooms = vec![RoomName::from_segment(&name).unwrap(); 512];
        while outbound.is_open() {
            outbound
                .batch()
                .notify(NodeId::random(), Direct::Ask(rooms.clone()));
        }
        assert!(outbound.batch().tell_all(Broadcast::Bye).is_err());
        outbound.finish();
        assert!(outbound.next().await.is_none());
    }
}
