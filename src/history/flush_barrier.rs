//! The other nodes of a cluster: before a session reads its history, they have stored what it must find there.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Weak},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    sync::{
        Notify,
        mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
        oneshot,
    },
    time::timeout,
};

use super::page::Unavailable;
use crate::cluster::{Direct, NodeId, Outbound};

/// How long nodes are waited for.
const LIMIT: Duration = Duration::from_secs(5);

/// Asks the other nodes to store what their sessions have said, and waits for their answers.
pub(super) struct FlushBarrier {
    state: Mutex<State>,
    /// Notified when the last node has answered.
    answered: Notify,
    requests: UnboundedSender<oneshot::Sender<bool>>,
}

#[derive(Default)]
struct State {
    /// The nodes that are up and may answer.
    nodes: BTreeSet<NodeId>,
    /// The number of the last answer of each node that is up and has answered.
    answers: BTreeMap<NodeId, u64>,
    /// The number of the current round.
    mark: u64,
    /// Nodes that have not answered in this round.
    left: BTreeSet<NodeId>,
}

impl FlushBarrier {
    /// No other nodes yet.
    pub(super) fn new(outbound: &Arc<Outbound>) -> Arc<FlushBarrier> {
        let (requests, received) = unbounded_channel();
        let barrier = Arc::new(FlushBarrier {
            state: Mutex::default(),
            answered: Notify::new(),
            requests,
        });
        tokio::spawn(ask(Arc::downgrade(&barrier), received, outbound.clone()));
        barrier
    }

    /// Waits until the other nodes have stored what their sessions have said so far.
    ///
    /// # Errors
    ///
    /// [`Unavailable`] if a node does not answer in time, although it is up.
    pub(super) async fn wait(&self) -> Result<(), Unavailable> {
        let (done, waiting) = oneshot::channel();
        self.requests.send(done).map_err(|_| Unavailable)?;
        match waiting.await {
            Ok(true) => Ok(()),
            Ok(false) | Err(_) => Err(Unavailable),
        }
    }

    /// The number of the last answer of each node. What the node has sent before it has come, or is lost.
    pub(super) fn answers(&self) -> BTreeMap<NodeId, u64> {
        self.state.lock().answers.clone()
    }

    /// A node is up.
    pub(super) fn up(&self, node: NodeId) {
        self.state.lock().nodes.insert(node);
    }

    /// A node is down.
    pub(super) fn down(&self, node: NodeId) {
        let mut state = self.state.lock();
        state.nodes.remove(&node);
        state.answers.remove(&node);
        self.end_wait(&mut state, node);
    }

    /// A node has answered in the round `mark`, with its message of this number.
    pub(super) fn answer(&self, node: NodeId, number: u64, mark: u64) {
        let mut state = self.state.lock();
        if state.nodes.contains(&node) {
            state.answers.insert(node, number);
            if state.mark == mark {
                self.end_wait(&mut state, node);
            }
        }
    }

    fn end_wait(&self, state: &mut State, node: NodeId) {
        if state.left.remove(&node) && state.left.is_empty() {
            self.answered.notify_one();
        }
    }

    /// Asks all nodes, and waits until they have answered. Returns whether they have.
    async fn ask_all(&self, outbound: &Outbound) -> bool {
        {
            let mut state = self.state.lock();
            if state.nodes.is_empty() {
                return true;
            }
            state.mark += 1;
            state.left = state.nodes.clone();
            let mut batch = outbound.batch();
            for node in &state.left {
                let mark = state.mark;
                batch.notify(*node, Direct::FlushHistory { mark });
            }
        }
        let all_answered = async {
            while !self.state.lock().left.is_empty() {
                self.answered.notified().await;
            }
        };
        let _ = timeout(LIMIT, all_answered).await;
        let State {
            nodes,
            answers,
            left,
            ..
        } = &mut *self.state.lock();
        // A node that never answers does not know the question: it is of an older version, and stores nothing.
        left.retain(|node| answers.contains_key(node) || !nodes.remove(node));
        left.is_empty()
    }
}

/// Asks the other nodes, once for all sessions that wait by then.
async fn ask(
    barrier: Weak<FlushBarrier>,
    mut requests: UnboundedReceiver<oneshot::Sender<bool>>,
    outbound: Arc<Outbound>,
) {
    let mut waiting = Vec::new();
    while requests.recv_many(&mut waiting, usize::MAX).await > 0 {
        let have_answered = match barrier.upgrade() {
            Some(barrier) => barrier.ask_all(&outbound).await,
            None => false,
        };
        // A session may have given up.
        waiting
            .drain(..)
            .for_each(|done| _ = done.send(have_answered));
    }
}

#[cfg(all(test, feature = "cluster"))]
mod tests {
    use std::pin::pin;

    use futures_util::FutureExt;
    use tokio::{task::yield_now, time::Instant};

    use super::*;
    use crate::cluster::{Message, TestLink};

    /// The rounds in which the nodes were asked since the last call, once for each node.
    fn asked(link: &TestLink) -> Vec<u64> {
        let mut marks = Vec::new();
        link.carry_to(&TestLink::open(), |envelope| {
            if let Message::Node(Direct::FlushHistory { mark }) = envelope.message {
                marks.push(mark);
            }
        });
        marks
    }

    #[tokio::test(start_paused = true)]
    async fn a_session_waits_until_all_nodes_have_answered_or_are_down() {
        let link = TestLink::open();
        let barrier = FlushBarrier::new(&link.outbound);
        // Without other nodes nobody waits.
        barrier.wait().await.unwrap();
        let [one, other] = [NodeId::random(), NodeId::random()];
        barrier.up(one);
        barrier.up(other);
        let mut first = pin!(barrier.wait());
        assert!(first.as_mut().now_or_never().is_none());
        yield_now().await;
        assert_eq!(asked(&link), [1, 1]);
        // Those that come now wait for the next round, all for the same one.
        let mut later = [(); 3].map(|()| Box::pin(barrier.wait()));
        for waiting in &mut later {
            assert!(waiting.as_mut().now_or_never().is_none());
        }
        barrier.answer(one, 7, 1);
        barrier.answer(one, 7, 1);
        yield_now().await;
        assert!(first.as_mut().now_or_never().is_none());
        barrier.answer(other, 7, 1);
        first.await.unwrap();
        yield_now().await;
        assert_eq!(asked(&link), [2, 2]);
        // A late answer to the first round counts nothing, and a node goes down.
        barrier.answer(one, 7, 1);
        barrier.answer(other, 7, 2);
        yield_now().await;
        let [last, others @ ..] = &mut later;
        assert!(last.as_mut().now_or_never().is_none());
        barrier.down(one);
        last.await.unwrap();
        for waiting in others {
            waiting.await.unwrap();
        }
        assert_eq!(barrier.answers(), BTreeMap::from([(other, 7)]));

        // A node that has answered before must answer.
        let start = Instant::now();
        assert!(barrier.wait().await.is_err());
        assert_eq!(start.elapsed(), LIMIT);
        assert_eq!(asked(&link), [3]);
        // One that has never answered is waited for only once.
        barrier.down(other);
        barrier.up(one);
        for waited in [LIMIT, Duration::ZERO] {
            let start = Instant::now();
            barrier.wait().await.unwrap();
            assert_eq!(start.elapsed(), waited);
        }
    }
}
