//! The index of all rooms that this node is in.

use std::{
    borrow::Borrow,
    collections::BTreeSet,
    hash::{Hash, Hasher},
    num::NonZeroU32,
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use tokio::task::yield_now;
use tokio_util::task::TaskTracker;

use super::{
    deadlines::Deadlines,
    location::Location,
    query::{Busy, Queries},
    remote_view::RemoteView,
    room::{Delivery, Room},
    session_info::SessionSnapshot,
    snapshots::SnapshotTasks,
    speaker::Speaker,
};
use crate::{
    cluster::{Direct, NodeId, Outbound},
    config::Limits,
    history::History,
    keyed_map::KeyedMap,
    outbox::FlushSet,
    protocol::{Close, Receiver, RoomName, SessionId},
    websocket::Frame,
};

/// All rooms that this node is in. A room exists from its first session here to its last.
pub(crate) struct Rooms {
    pub(super) max_rooms: usize,
    pub(super) max_room_sessions: usize,
    /// Most bytes that wait for a name in a room.
    pub(super) max_waiting: usize,
    /// The queue to other nodes; `None` without a cluster.
    pub(super) outbound: Option<Arc<Outbound>>,
    /// Present if rooms keep their last messages.
    pub(super) history: Option<Arc<History>>,
    pub(super) index: Mutex<Index>,
    pub(super) snapshot_tasks: SnapshotTasks,
    pub(super) queries: Queries,
    pub(super) deadlines: Deadlines,
    /// The tasks of the server.
    pub(super) tasks: TaskTracker,
}

/// The rooms by name.
#[derive(Default)]
pub(super) struct Index {
    pub(super) rooms: KeyedMap<ByName, Holders>,
    /// The other nodes that are up.
    pub(super) nodes: BTreeSet<NodeId>,
}

/// A room as a key, which is found by its name.
pub(super) struct ByName(pub(super) Arc<Room>);

/// How many keep a room in the index. The last one removes it.
#[derive(Default)]
pub(super) struct Holders {
    /// Sessions of this node that are in the room, joining or leaving.
    pub(super) sessions: u32,
    /// Backends that send to the room from this node.
    pub(super) backends: u32,
}

impl Borrow<RoomName> for ByName {
    fn borrow(&self) -> &RoomName {
        &self.0.name
    }
}

impl Hash for ByName {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.name.hash(state);
    }
}

impl PartialEq for ByName {
    fn eq(&self, other: &ByName) -> bool {
        self.0.name == other.0.name
    }
}

impl Eq for ByName {}

impl Index {
    /// The room with this name.
    pub(super) fn find(&self, name: &RoomName) -> Option<&Arc<Room>> {
        self.rooms.get_key_value(name).map(|(room, _)| &room.0)
    }

    /// The room with this name, which is created if there is none, and who keeps it.
    pub(super) fn enter(
        &mut self,
        name: &RoomName,
        outbound: Option<&Arc<Outbound>>,
        history: Option<&Arc<History>>,
    ) -> (Arc<Room>, &mut Holders) {
        let room = self.find(name).cloned().unwrap_or_else(|| {
            let remote = outbound
                .map(|outbound| RemoteView::enter(name, outbound, &self.nodes, history.is_some()));
            let history = history.filter(|history| history.includes(name)).cloned();
            Arc::new(Room::new(name.clone(), remote, history))
        });
        let holders = self.rooms.entry(ByName(room.clone())).or_default();
        (room, holders)
    }
}

impl Rooms {
    /// No rooms yet, with these limits. `outbound` is the queue to other nodes, and `history` that of the rooms that
    /// keep one. Tasks of `tasks` write to large rooms.
    pub(crate) fn new(
        limits: &Limits,
        outbound: Option<Arc<Outbound>>,
        history: Option<Arc<History>>,
        tasks: TaskTracker,
    ) -> Rooms {
        let limit =
            |limit: Option<NonZeroU32>| limit.map_or(usize::MAX, |limit| limit.get() as usize);
        Rooms {
            max_rooms: limit(limits.max_rooms),
            max_room_sessions: limit(limits.max_room_sessions),
            // They must fit into an outbox beside other messages.
            max_waiting: limits.outbox_bytes / 2,
            outbound,
            history,
            index: Mutex::default(),
            snapshot_tasks: SnapshotTasks::default(),
            queries: Queries::default(),
            deadlines: Deadlines::default(),
            tasks,
        }
    }

    /// No rooms yet, with the default limits.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn empty(outbound: Option<Arc<Outbound>>) -> Arc<Rooms> {
        let (limits, tasks) = (Limits::default(), TaskTracker::new());
        Arc::new(Rooms::new(&limits, outbound, None, tasks))
    }

    /// How many rooms there are.
    pub(crate) fn len(&self) -> usize {
        self.index.lock().rooms.len()
    }

    /// How many sessions of this node there are, in all rooms. A session that is in several counts in each.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn session_count(&self) -> usize {
        let index = self.index.lock();
        let holders = index.rooms.values();
        holders.map(|holders| holders.sessions as usize).sum()
    }

    /// Each room with sessions of this node, and how many there are.
    pub(crate) fn list(&self) -> Vec<(RoomName, usize)> {
        let index = self.index.lock();
        let rooms = index
            .rooms
            .iter()
            .filter(|(_, holders)| holders.sessions > 0);
        rooms
            .map(|(room, holders)| (room.0.name.clone(), holders.sessions as usize))
            .collect()
    }

    /// All rooms.
    pub(super) fn all(&self) -> Vec<Arc<Room>> {
        let index = self.index.lock();
        index.rooms.keys().map(|room| room.0.clone()).collect()
    }

    /// The room with this name.
    pub(super) fn find(&self, name: &RoomName) -> Option<Arc<Room>> {
        self.index.lock().find(name).cloned()
    }

    /// The sessions of a room on all nodes, longest-joined first. This does not create the room: if no
    /// session of this node is in it, the other nodes are queried.
    ///
    /// # Errors
    ///
    /// [`Busy`] if too many rooms are being queried, or a node sends nothing for longer than `limit`.
    pub(crate) async fn query(
        &self,
        name: &RoomName,
        limit: Duration,
    ) -> Result<Vec<SessionSnapshot>, Busy> {
        if let Some(room) = self.find(name) {
            room.wait_for_snapshots(limit).await;
            return Ok(room.snapshots());
        }
        let Some(outbound) = &self.outbound else {
            return Ok(Vec::new());
        };
        let nodes = self.index.lock().nodes.clone();
        match self.queries.run(name, &nodes, outbound, limit).await {
            Ok(snapshots) => Ok(snapshots),
            // If a session has joined on this node since, the room has received the snapshots instead.
            Err(Busy) => Ok(self.find(name).ok_or(Busy)?.snapshots()),
        }
    }

    /// Sends a message of the server to its receivers in a room. Returns to how many, or `None` if no session is in
    /// the room.
    pub(crate) fn announce(
        &self,
        name: &RoomName,
        receiver: &Receiver<'_>,
        frame: &Frame,
    ) -> Option<usize> {
        let room = self.find(name)?;
        if room.is_empty() {
            return None;
        }
        let mut flush_set = FlushSet::default();
        let speaker = Speaker::default();
        let delivery = room.route(speaker, receiver, frame, &mut flush_set);
        flush_set.settle(&self.tasks);
        Some(delivery.receivers)
    }

    /// Whether a message to a room must [wait](Rooms::wait_for_flushes).
    pub(crate) fn is_flushing(&self, name: &RoomName) -> bool {
        let room = self.find(name);
        room.is_some_and(|room| room.flushing().is_some())
    }

    /// Waits until no outbox in a room is flushed because it had filled up.
    pub(crate) async fn wait_for_flushes(&self, name: &RoomName) {
        if let Some(room) = self.find(name) {
            room.wait_for_flushes().await;
        }
    }

    /// Sends to all in a room, once it is known how many sessions are there. Nobody receives it if this node is not in
    /// the room.
    pub(crate) fn publish(
        &self,
        name: &RoomName,
        speaker: Speaker<'_>,
        write: impl FnOnce(usize) -> Frame,
        flush_set: &mut FlushSet,
    ) -> Delivery {
        let room = self.find(name);
        room.map_or_else(Delivery::default, |room| {
            room.publish(speaker, write, flush_set)
        })
    }

    /// Sends a message of the server to every session of this node. Returns to how many. Other tasks have
    /// their turn between two rooms.
    pub(crate) async fn announce_to_local(&self, frame: &Frame) -> usize {
        let mut receivers = 0;
        // A dialect has no words for it.
        let rooms = self.all().into_iter();
        for room in rooms.filter(|room| room.name.dialect().is_none()) {
            room.wait_for_flushes().await;
            let mut flush_set = FlushSet::default();
            receivers += room.send_to_local(frame, &mut flush_set);
            flush_set.settle(&self.tasks);
            yield_now().await;
        }
        receivers
    }

    /// The other nodes that are up, sorted.
    pub(crate) fn nodes(&self) -> Vec<NodeId> {
        self.index.lock().nodes.iter().copied().collect()
    }

    /// Closes a session, on whichever node it is.
    pub(crate) fn close(&self, name: &RoomName, session: &SessionSnapshot, close: Close) {
        self.close_at(name, session.id, &session.location, close);
    }

    pub(super) fn close_at(
        &self,
        name: &RoomName,
        id: SessionId,
        location: &Location,
        close: Close,
    ) {
        if let Some(outbox) = location.outbox() {
            outbox.close(close);
        } else if let (Some(node), Some(outbound)) = (location.node(), &self.outbound) {
            let room = name.clone();
            outbound.batch().notify(node, Direct::Expel { room, id });
        }
    }

    /// Waits in line for room in the queue to other nodes, for a large message that is not a client's.
    /// The next in line goes on when the guard is dropped.
    pub(crate) async fn wait_in_line(&self) -> Option<impl Drop> {
        match &self.outbound {
            Some(outbound) => Some(outbound.wait_in_line().await),
            None => None,
        }
    }

    /// Waits for the permission to migrate a session, which holds until the permit is dropped. The number
    /// of permits is bounded, because each migration sends all that its client has missed at once.
    pub(crate) async fn migration_permit(&self) -> Option<impl Drop> {
        match &self.outbound {
            Some(outbound) => outbound.migration_permit().await,
            None => None,
        }
    }
}
