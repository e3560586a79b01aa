//! The task that applies messages of other nodes to the rooms and sessions of this one.
//!
//! How the messages travel and which nodes are up is the business of `cluster`, which calls the [`Applier`].

use std::{future::pending, mem, sync::Arc};

use tokio::time::timeout;

use super::{forward::take_forwarded, lookup::answer_lookup};
use crate::{
    cluster::{self, Broadcast, Cluster, Delegate, Direct, Message, NodeId, Outbound, Transport},
    outbox::FlushSet,
    protocol::{ErrorCode, TokenKey},
    rooms::{LostNode, Replies},
    state::Shared,
};

/// Takes part in the cluster until the server stops and all its sessions have ended.
pub(super) async fn run(cluster: Arc<Cluster>, transport: impl Transport, shared: Arc<Shared>) {
    let (metrics, stopping) = (shared.metrics.clone(), shared.stopping.clone());
    let applier = Applier {
        outbound: cluster.outbound.clone(),
        shared,
        replies: Replies::default(),
        flush_set: FlushSet::default(),
        lost: None,
    };
    cluster::run(cluster, transport, metrics, stopping, applier).await;
}

/// Applies messages of other nodes.
struct Applier {
    shared: Arc<Shared>,
    outbound: Arc<Outbound>,
    /// Replies to the messages of this batch.
    replies: Replies,
    /// Receivers whose outbox has messages of this batch and still needs a flush.
    flush_set: FlushSet,
    /// The node that went down last, until its sessions are removed.
    lost: Option<LostNode>,
}

impl Delegate for Applier {
    fn apply(&mut self, node: NodeId, number: u64, message: Message, text: &str) {
        let (rooms, replies, flush_set) =
            (&self.shared.rooms, &mut self.replies, &mut self.flush_set);
        match message {
            // The node enters a room: it has no sessions there yet, and needs the list of ours.
            Message::All(Broadcast::Enter { room }) => {
                rooms.apply_enter(node, number, room, replies, flush_set);
            }
            // A client of the node wants to resume a session that may be here.
            Message::All(Broadcast::Want(want)) => answer_lookup(&self.shared, node, want),
            // A client of the node has sent it a request for a session that may be here.
            Message::All(Broadcast::Find { room, mark, token }) => {
                let here = self.shared.resumes.inlet(&token, &room).is_some();
                let found = Direct::Found { mark, here };
                self.outbound.batch().notify(node, found);
            }
            Message::Node(Direct::Found { mark, here }) => {
                self.shared.remote_inlets.receive_found(node, mark, here);
            }
            Message::Node(post @ (Direct::Post { .. } | Direct::End { .. })) => {
                take_forwarded(&self.shared, node, post, text);
            }
            Message::Node(Direct::Posted { mark, outcome }) => {
                let inlets = &self.shared.remote_inlets;
                inlets.receive_outcome(node, mark, outcome);
            }
            // A session of the node joins, leaves or sends to its room.
            Message::Room(event) => {
                rooms.apply_event(node, number, event, text, replies, flush_set)
            }
            // A session of the node reads the history of a room, and waits for what was said here.
            Message::Node(
                direct @ (Direct::FlushHistory { .. } | Direct::HistoryFlushed { .. }),
            ) => {
                match (&self.shared.history, direct) {
                    (Some(history), direct) => history.receive(node, number, &direct),
                    // Nothing is stored here.
                    (None, Direct::FlushHistory { mark }) => {
                        let flushed = Direct::HistoryFlushed { mark };
                        self.outbound.batch().notify(node, flushed);
                    }
                    (None, _) => {}
                }
            }
            // A message to a session here, a list of sessions, a part of a migration and the like.
            Message::Node(direct) => {
                rooms.apply_direct(node, number, direct, text, replies, flush_set)
            }
            // The cluster handles heartbeats itself.
            Message::All(Broadcast::Alive { .. } | Broadcast::Bye) => {}
        }
    }

    fn reject(&mut self, node: NodeId, message: Direct) {
        self.replies.reject(node, message);
    }

    fn must_end_batch(&self) -> bool {
        self.flush_set.is_turn_over()
    }

    async fn end_batch(&mut self) -> u64 {
        let replies = mem::take(&mut self.replies);
        let undelivered = self
            .shared
            .metrics
            .errors(ErrorCode::UnknownReceiver.as_str());
        undelivered.inc_by(replies.told_undelivered);
        let lost = replies.send(&self.outbound);
        let mut flush_set = mem::take(&mut self.flush_set);
        let must_wait = flush_set.is_turn_over();
        // What has not filled up may get more meanwhile: other rooms need not wait for it.
        if let Some(flushing) = flush_set.flush(&self.shared.tasks)
            && must_wait
        {
            flushing.end().await;
        }
        lost
    }

    fn node_up(&mut self, node: NodeId) {
        self.shared.rooms.node_up(node);
        if let Some(history) = &self.shared.history {
            history.node_up(node);
        }
    }

    fn node_down(&mut self, node: NodeId) {
        self.lost = Some(self.shared.rooms.node_down(node));
        self.shared.remote_inlets.node_down(node);
        if let Some(history) = &self.shared.history {
            history.node_down(node);
        }
    }

    fn remove_sessions(&mut self) -> bool {
        let lost = self.lost.as_mut();
        let has_more = lost.is_some_and(|lost| lost.remove_sessions(&mut self.flush_set));
        if !has_more {
            self.lost = None;
        }
        has_more
    }

    fn token_keys(&self) -> Vec<TokenKey> {
        self.shared.resumes.keys()
    }

    fn learn_token_keys(&mut self, keys: &[TokenKey]) {
        self.shared.resumes.learn(keys);
    }

    fn subscribe(&mut self) {
        self.shared.rooms.resubscribe();
    }

    fn retry(&mut self) {
        self.shared.rooms.ask_again();
    }

    fn send_digests(&mut self) {
        self.shared.rooms.send_digests();
    }

    async fn lists_ready(&self) {
        match self.shared.rooms.has_chunks() {
            true => self.shared.rooms.wait_for_chunk_space().await,
            false => pending().await,
        }
    }

    fn send_lists(&mut self) {
        self.shared.rooms.send_chunks();
    }

    async fn finish(&mut self) {
        if let (Some(history), Some(cluster)) = (&self.shared.history, &self.shared.cluster) {
            // The other nodes wait for this one as long as it is up. A store that hangs keeps it from stopping only
            // for as long as they may wait for any node.
            let _ = timeout(cluster.down, history.flush()).await;
        }
    }

    fn is_done(&self) -> bool {
        let shared = &self.shared;
        let is_empty = shared.stopping.is_cancelled() && shared.rooms.len() == 0;
        is_empty || shared.stopped.is_cancelled()
    }
}
