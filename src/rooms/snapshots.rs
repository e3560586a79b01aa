//! The schedule of snapshots, requests and digests, which this node sends to others in chunks.
//!
//! Each task gets its turn with one chunk, as the queue to its node has room. So a long snapshot delays
//! neither other tasks nor the clients' messages.

use std::{collections::VecDeque, sync::Arc, vec};

use parking_lot::Mutex;

use super::{members::Members, room::Room, snapshot_sender::SnapshotSender};
use crate::{
    cluster::{Digest, Direct, Load, MAX_ROOMS, NodeId, Outbound, Quota, SnapshotChunk},
    protocol::{RoomName, SessionId},
};

/// How many chunks are sent at once. Between such batches the node listens to the others.
const CHUNKS_AT_ONCE: usize = 16;

/// The tasks that are under way, each of which sends several chunks to one node.
pub(super) struct SnapshotTasks {
    /// Taken from the front; put back at the end.
    tasks: Mutex<VecDeque<SnapshotTask>>,
    /// The share of all tasks in the queue to other nodes.
    quota: Arc<Quota>,
}

enum SnapshotTask {
    /// Sends this node's sessions in a room.
    Snapshot(NodeId, Arc<Room>),
    /// Asks for a node's sessions in these rooms.
    Ask(NodeId, vec::IntoIter<RoomName>),
    /// Sends the digests of these rooms.
    Digest(NodeId, vec::IntoIter<Arc<Room>>),
}

impl Default for SnapshotTasks {
    fn default() -> SnapshotTasks {
        SnapshotTasks {
            tasks: Mutex::default(),
            quota: Arc::new(Quota::of_lists()),
        }
    }
}

impl SnapshotTasks {
    /// Sends this node's sessions in a room to a node, unless that is under way.
    pub(super) fn send_snapshot(&self, node: NodeId, room: &Arc<Room>) {
        if room.begin_snapshot(node) {
            let task = SnapshotTask::Snapshot(node, room.clone());
            self.tasks.lock().push_back(task);
        }
    }

    /// Asks a node for its sessions in these rooms, unless a request to it is under way.
    pub(super) fn ask(&self, node: NodeId, rooms: Vec<RoomName>) {
        let mut tasks = self.tasks.lock();
        let is_same =
            |task: &SnapshotTask| matches!(task, SnapshotTask::Ask(asked, _) if *asked == node);
        if !rooms.is_empty() && !tasks.iter().any(is_same) {
            tasks.push_back(SnapshotTask::Ask(node, rooms.into_iter()));
        }
    }

    /// Sends the digests of these rooms to a node, unless that is under way.
    pub(super) fn send_digests(&self, node: NodeId, rooms: Vec<Arc<Room>>) {
        let mut tasks = self.tasks.lock();
        let is_same =
            |task: &SnapshotTask| matches!(task, SnapshotTask::Digest(to, _) if *to == node);
        if !tasks.iter().any(is_same) {
            tasks.push_back(SnapshotTask::Digest(node, rooms.into_iter()));
        }
    }

    /// Whether no task is under way.
    pub(super) fn is_empty(&self) -> bool {
        self.tasks.lock().is_empty()
    }

    /// Waits until the queue to the other nodes has room for a chunk.
    pub(super) async fn wait_for_space(&self, outbound: &Outbound) {
        outbound.has_room(&self.quota).await;
    }

    /// Sends some chunks, as far as the queue has room for them.
    pub(super) fn send_chunks(&self, outbound: &Outbound) {
        let mut skipped = 0;
        for _ in 0..CHUNKS_AT_ONCE {
            let mut tasks = self.tasks.lock();
            if skipped >= tasks.len() {
                return;
            }
            let Some(mut task) = tasks.pop_front() else {
                return;
            };
            if !outbound.has_room_for(task.node(), &self.quota) {
                // This node is slow, but others may not be.
                tasks.push_back(task);
                skipped += 1;
                continue;
            }
            drop(tasks);
            skipped = 0;
            if task.send_chunk(outbound) {
                self.tasks.lock().push_back(task);
            }
        }
    }
}

impl SnapshotTask {
    /// The node that the chunks go to.
    fn node(&self) -> NodeId {
        match self {
            SnapshotTask::Snapshot(node, _)
            | SnapshotTask::Ask(node, _)
            | SnapshotTask::Digest(node, _) => *node,
        }
    }

    /// Sends the next chunk; returns whether more follow.
    fn send_chunk(&mut self, outbound: &Outbound) -> bool {
        let (node, message, more) = match self {
            SnapshotTask::Snapshot(node, room) => return room.send_chunk(*node),
            SnapshotTask::Ask(node, rooms) => {
                let asked = rooms.by_ref().take(MAX_ROOMS).collect();
                (*node, Direct::Ask(asked), rooms.len() > 0)
            }
            SnapshotTask::Digest(node, rooms) => {
                let next = rooms.by_ref().take(MAX_ROOMS);
                let digests: Vec<Digest> = next.filter_map(|room| room.digest(*node)).collect();
                let more = rooms.len() > 0;
                let rooms = digests;
                (*node, Direct::Digest { rooms, more }, more)
            }
        };
        // While this node is disconnected the message is dropped, and repeated later.
        let _ = outbound.batch().tell_node(node, message, &[], Load::List);
        more
    }
}

impl Room {
    /// Begins a snapshot for a node; returns `false` if one is under way.
    fn begin_snapshot(&self, node: NodeId) -> bool {
        let mut members = self.members.write();
        members.remote.as_mut().is_some_and(|remote| {
            let is_new = !remote.snapshots.contains_key(&node);
            remote.snapshots.entry(node).or_default();
            is_new
        })
    }

    /// Ends the snapshot for a node that has entered the room anew: its first chunks are lost on it.
    pub(super) fn cancel_snapshot(&self, node: NodeId) {
        if let Some(remote) = &mut self.members.write().remote {
            remote.snapshots.remove(&node);
        }
    }

    /// Sends the next chunk of the snapshot for a node; returns whether more follow.
    fn send_chunk(&self, node: NodeId) -> bool {
        let mut members = self.members.write();
        let Some(remote) = &mut members.remote else {
            return false;
        };
        let outbound = remote.outbound.clone();
        let Some(mut snapshot) = remote.snapshots.remove(&node) else {
            return false;
        };
        let chunk = members.next_chunk(&self.name, &mut snapshot);
        members.note_listed(node, &chunk);
        let more = chunk.until.is_some();
        // If this node is disconnected, it sends everything when it is connected again.
        let sent = outbound
            .batch()
            .tell_node(node, Direct::Members(chunk), &[], Load::List);
        if more
            && sent.is_ok()
            && let Some(remote) = &mut members.remote
        {
            remote.snapshots.insert(node, snapshot);
        }
        more && sent.is_ok()
    }

    /// The digest of this node's sessions in the room, if that node is in the room.
    fn digest(&self, node: NodeId) -> Option<Digest> {
        let members = self.members.read();
        let remote = members.remote.as_ref()?;
        remote.is_present(node).then(|| {
            let [hash, states] = members.hashes(|location| location.is_own());
            Digest {
                room: self.name.clone(),
                last: remote.last_event(),
                hash,
                states,
            }
        })
    }
}

impl Members {
    /// Notes that a node in the room is told of these sessions. Some migrate to other nodes, and it may send to them
    /// over this one until it knows that.
    fn note_listed(&mut self, node: NodeId, chunk: &SnapshotChunk) {
        let Some(remote) = self.remote.as_mut().filter(|it| it.is_present(node)) else {
            return;
        };
        let listed = chunk.members.iter().map(|record| record.id);
        let outbox = |id: &SessionId| self.sessions.get(id)?.location.outbox();
        let migrated = listed.filter(|id| outbox(id).is_none());
        migrated.for_each(|id| remote.migrations.add_sender(node, id));
    }

    /// The next chunk of a snapshot of this node's sessions.
    fn next_chunk(&self, room: &RoomName, snapshot: &mut SnapshotSender) -> SnapshotChunk {
        let remote = self.remote.as_deref();
        let migrations = remote.map(|remote| &remote.migrations);
        let ids = || {
            let own = self.sessions.iter();
            let own = own.filter(|(_, member)| member.location.is_own());
            let own = own.map(|(id, _)| *id);
            // The receiver may not know yet that these sessions have migrated.
            let migrated = migrations.into_iter().flat_map(|it| it.arrived_ids());
            own.chain(migrated).collect()
        };
        let record = |id| {
            let own = self.sessions.get(&id).filter(|it| it.location.is_own());
            let own = own.map(|member| member.to_record(id));
            own.or_else(|| migrations.and_then(|it| it.arrived_record(id)))
        };
        let range = snapshot.next_range(ids, record);
        SnapshotChunk {
            room: room.clone(),
            last: remote.map_or(0, |remote| remote.last_event()),
            clock: self.clock,
            after: range.after,
            until: range.until,
            members: range.members,
        }
    }
}

#[cfg(all(test, feature = "cluster"))]
mod tests {
    use super::*;
    use crate::cluster::{Message, TestLink};

    /// How many messages the tasks send.
    fn count_sent(tasks: &SnapshotTasks, link: &TestLink) -> usize {
        while !tasks.is_empty() {
            tasks.send_chunks(&link.outbound);
        }
        let mut count = 0;
        link.carry_to(&TestLink::open(), |envelope| {
            assert!(matches!(envelope.message, Message::Node(_)));
            count += 1;
        });
        count
    }

    #[test]
    fn a_node_gets_one_request_at_a_time_and_one_list_of_digests() {
        let (tasks, link) = (SnapshotTasks::default(), TestLink::open());
        let [one, other] = [NodeId::random(), NodeId::random()];
        let rooms = || vec![RoomName::default_room()];
        tasks.ask(one, Vec::new());
        assert_eq!(count_sent(&tasks, &link), 0);
        (0..2).for_each(|_| tasks.ask(one, rooms()));
        tasks.ask(other, rooms());
        (0..2).for_each(|_| tasks.send_digests(one, Vec::new()));
        tasks.send_digests(other, Vec::new());
        assert_eq!(count_sent(&tasks, &link), 4);
        tasks.ask(one, rooms());
        assert_eq!(count_sent(&tasks, &link), 1);
    }
}
