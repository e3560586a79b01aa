//! Lists of who is where, which nodes tell each other in pieces, as the uplink has room. No I/O.
//!
//! A list goes through the ids of a room's sessions in their order, a range at a time. Each piece is
//! what is true of its range when it is said, and what happens in the room is said between the pieces:
//! so nothing need stand still meanwhile, neither the room nor others, however long the list is.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    mem,
    sync::Arc,
    time::Duration,
    vec,
};

use parking_lot::Mutex;
use tokio::{sync::oneshot, time::timeout};

use super::{
    index::{Members, Room, Rooms},
    location::Location,
    session_info::{SessionInfo, SessionSnapshot, longest_joined_first},
};
use crate::{
    cluster::{self, Digest, Direct, Load, MAX_ROOMS, NodeId, Outbound, PART_BYTES, Quota},
    protocol::{RoomName, SessionId},
};

/// How many pieces are said in one turn: what others say is to be heard, too.
const PIECES_AT_ONCE: usize = 16;

/// How many rooms may be looked up on other nodes at once, and for how many operators each.
const MAX_LOOKUPS: usize = 64;

/// How often an operator waits for more, as long as something comes.
const MAX_WAITS: usize = 20;

/// What is to be said to other nodes piece by piece, and what is listed for operators.
pub(super) struct Snapshots {
    /// Each takes its turn with one piece.
    pieces: Mutex<VecDeque<SnapshotTask>>,
    /// What this has in the uplink.
    share: Arc<Quota>,
    lookups: Mutex<BTreeMap<RoomName, RoomQuery>>,
}

impl Default for Snapshots {
    fn default() -> Snapshots {
        Snapshots {
            pieces: Mutex::default(),
            share: Arc::new(Quota::of_lists()),
            lookups: Mutex::default(),
        }
    }
}

/// What takes several messages to a node.
enum SnapshotTask {
    /// Who is in a room.
    SnapshotSender(NodeId, RoomName),
    /// Who of its is in these rooms?
    Ask(NodeId, vec::IntoIter<RoomName>),
    /// Where it should be with what was said of these rooms.
    Digest(NodeId, vec::IntoIter<Arc<Room>>),
}

impl SnapshotTask {
    fn node(&self) -> NodeId {
        match self {
            SnapshotTask::SnapshotSender(node, _)
            | SnapshotTask::Ask(node, _)
            | SnapshotTask::Digest(node, _) => *node,
        }
    }
}

/// A list of a room's sessions that is being told to a node.
#[derive(Default)]
pub(super) struct SnapshotSender {
    /// The sessions that are left, from the first piece on; the next is the last of them.
    left: Option<Vec<SessionId>>,
    /// Up to where it has been told.
    until: Option<SessionId>,
    /// Sessions that were left when they spoke, and so have been told before the list comes to them.
    introduced: Mutex<BTreeSet<SessionId>>,
}

impl SnapshotSender {
    /// Whether a session that speaks must be told first.
    pub(super) fn must_introduce(&self, id: SessionId) -> bool {
        let is_left = |left: &Vec<SessionId>| left.binary_search_by(|it| id.cmp(it)).is_ok();
        self.left.as_ref().is_none_or(is_left) && self.introduced.lock().insert(id)
    }
}

/// A list of a node's sessions in a room that is being heard.
pub(super) struct SnapshotReceiver {
    /// Up to where it has been heard.
    until: Option<SessionId>,
    /// The sessions of the node that were known before, as far as they have not been listed.
    unlisted: BTreeSet<SessionId>,
    /// Whether something that happened meanwhile has been missed.
    has_gap: bool,
}

/// What has come of a piece of a list.
pub(super) struct ChunkOutcome {
    /// The sessions that are not in it, though their ids are in its range.
    pub(super) gone: Vec<SessionId>,
    /// Whether the list is at its end, and nothing is missing.
    pub(super) is_whole: bool,
}

/// A room that is listed for operators, of which nobody is here.
struct RoomQuery {
    /// Which nodes have not said all, and up to where they have.
    waiting: BTreeMap<NodeId, Option<SessionId>>,
    /// Whether a piece has come since this was last looked at.
    goes_on: bool,
    found: Vec<(u64, SessionSnapshot)>,
    operators: Vec<oneshot::Sender<Vec<SessionSnapshot>>>,
}

/// Too many operators look up too many rooms, or the other nodes are too slow.
#[derive(Debug)]
pub(crate) struct Busy;

impl SnapshotReceiver {
    /// Takes in a piece; where it is the first, `known` are the sessions of the node that are known. `None`
    /// if a piece before it is missing.
    pub(super) fn hear(
        listing: &mut Option<SnapshotReceiver>,
        piece: &cluster::SnapshotChunk,
        known: Vec<SessionId>,
    ) -> Option<ChunkOutcome> {
        let mut list = match (listing.take(), piece.after) {
            (_, None) => SnapshotReceiver {
                until: None,
                unlisted: known.into_iter().collect(),
                has_gap: false,
            },
            (Some(list), after) if list.until == after => list,
            _ => return None,
        };
        let rest = match piece.until {
            // Nothing is greater than what is in this range, but for that itself.
            Some(until) => {
                let mut rest = list.unlisted.split_off(&until);
                if rest.remove(&until) {
                    list.unlisted.insert(until);
                }
                rest
            }
            None => BTreeSet::new(),
        };
        let mut gone = mem::replace(&mut list.unlisted, rest);
        for member in &piece.members {
            gone.remove(&member.id);
        }
        let is_whole = piece.until.is_none() && !list.has_gap;
        if piece.until.is_some() {
            list.until = piece.until;
            *listing = Some(list);
        }
        let gone = gone.into_iter().collect();
        Some(ChunkOutcome { gone, is_whole })
    }

    /// Something that happened in the room has been missed.
    pub(super) fn missed(&mut self) {
        self.has_gap = true;
    }
}

impl Members {
    /// The next piece of a list of this node's sessions.
    fn piece(
        &self,
        name: &RoomName,
        snapshot_sender: &mut SnapshotSender,
        last: u64,
    ) -> cluster::SnapshotChunk {
        let remote = self.remote.as_deref();
        let left = snapshot_sender.left.get_or_insert_with(|| {
            let own = self.senders.iter();
            let own = own.filter(|(_, member)| member.location.is_own());
            let own = own.map(|(id, _)| *id);
            // That these have gone the other may not know yet.
            let gone = remote.into_iter().flat_map(|it| it.migrations.all_gone());
            let mut left: Vec<_> = own.chain(gone.map(|member| member.id)).collect();
            left.sort_unstable_by(|a, b| b.cmp(a));
            left
        });
        let after = snapshot_sender.until;
        let mut members = Vec::new();
        let mut bytes = 0;
        while bytes < PART_BYTES
            && let Some(id) = left.pop()
        {
            snapshot_sender.until = Some(id);
            let own = self.senders.get(&id).filter(|it| it.location.is_own());
            let own = own.map(|member| member.to_record(id));
            let gone = || remote.and_then(|it| it.migrations.gone_as(id));
            if let Some(member) = own.or_else(gone) {
                bytes += member.len();
                members.push(member);
            }
        }
        cluster::SnapshotChunk {
            room: name.clone(),
            last,
            clock: self.clock,
            after,
            until: snapshot_sender.until.filter(|_| !left.is_empty()),
            members,
        }
    }
}

impl Room {
    /// Begins a list of who is here for a node; false if that is under way.
    fn begin_roster(&self, node: NodeId) -> bool {
        let mut members = self.members.write();
        members.remote.as_mut().is_some_and(|remote| {
            let is_new = !remote.snapshots.contains_key(&node);
            remote.snapshots.entry(node).or_default();
            is_new
        })
    }

    /// A node hears the room anew: what it was being told is of no use to it.
    pub(super) fn forget_roster(&self, node: NodeId) {
        if let Some(remote) = &mut self.members.write().remote {
            remote.snapshots.remove(&node);
        }
    }

    /// Says the next piece of the list to a node; returns whether there is more.
    fn say_piece(&self, node: NodeId) -> bool {
        let mut members = self.members.write();
        let Some(remote) = &mut members.remote else {
            return false;
        };
        let (last, outbound) = (remote.last(), remote.outbound.clone());
        let Some(mut snapshot_sender) = remote.snapshots.remove(&node) else {
            return false;
        };
        let piece = members.piece(&self.name, &mut snapshot_sender, last);
        let more = piece.until.is_some();
        // Where this node is cut off, all is told when it is no longer.
        let said = outbound
            .batch()
            .tell_node(node, Direct::Members(piece), &[], Load::List);
        if more
            && said.is_ok()
            && let Some(remote) = &mut members.remote
        {
            remote.snapshots.insert(node, snapshot_sender);
        }
        more && said.is_ok()
    }
}

impl Rooms {
    /// Tells a node in pieces who is in a room here.
    pub(super) fn list_to(&self, node: NodeId, room: &Room) {
        if room.begin_roster(node) {
            let snapshot_sender = SnapshotTask::SnapshotSender(node, room.name.clone());
            self.snapshots.pieces.lock().push_back(snapshot_sender);
        }
    }

    /// Asks a node in pieces who of its is in these rooms, unless it is being asked.
    pub(super) fn ask(&self, node: NodeId, rooms: Vec<RoomName>) {
        let mut pieces = self.snapshots.pieces.lock();
        let is_asked =
            |it: &SnapshotTask| matches!(it, SnapshotTask::Ask(asked, _) if *asked == node);
        if !rooms.is_empty() && !pieces.iter().any(is_asked) {
            pieces.push_back(SnapshotTask::Ask(node, rooms.into_iter()));
        }
    }

    /// Tells each node in pieces where it should be with what this one has said.
    pub(crate) fn digest(&self) {
        let nodes: Vec<NodeId> = self.index.lock().nodes.iter().copied().collect();
        for node in nodes {
            let rooms = self.rooms();
            let mut pieces = self.snapshots.pieces.lock();
            let is_told =
                |it: &SnapshotTask| matches!(it, SnapshotTask::Digest(told, _) if *told == node);
            if !pieces.iter().any(is_told) {
                pieces.push_back(SnapshotTask::Digest(node, rooms.into_iter()));
            }
        }
    }

    /// Whether there is something to be said in pieces.
    pub(crate) fn has_pieces(&self) -> bool {
        !self.snapshots.pieces.lock().is_empty()
    }

    /// Waits until the uplink has room for a piece.
    pub(crate) async fn has_room(&self) {
        if let Some(outbound) = &self.outbound {
            outbound.has_room(&self.snapshots.share).await;
        }
    }

    /// Says some pieces, as far as there is room for them.
    pub(crate) fn say_pieces(&self) {
        let Some(outbound) = &self.outbound else {
            return;
        };
        let mut passed_over = 0;
        for _ in 0..PIECES_AT_ONCE {
            let mut pieces = self.snapshots.pieces.lock();
            if passed_over >= pieces.len() {
                return;
            }
            let Some(mut next) = pieces.pop_front() else {
                return;
            };
            if !outbound.has_room_for(next.node(), &self.snapshots.share) {
                // Others may have.
                pieces.push_back(next);
                passed_over += 1;
                continue;
            }
            drop(pieces);
            passed_over = 0;
            if self.say_piece(outbound, &mut next) {
                self.snapshots.pieces.lock().push_back(next);
            }
        }
    }

    /// Says the next piece; returns whether there is more.
    fn say_piece(&self, outbound: &Outbound, pieces: &mut SnapshotTask) -> bool {
        let (node, what, more) = match pieces {
            SnapshotTask::SnapshotSender(node, room) => {
                return self.find(room).is_some_and(|room| room.say_piece(*node));
            }
            SnapshotTask::Ask(node, rooms) => {
                let asked = rooms.by_ref().take(MAX_ROOMS).collect();
                (*node, Direct::Ask(asked), rooms.len() > 0)
            }
            SnapshotTask::Digest(node, rooms) => {
                let next = rooms.by_ref().take(MAX_ROOMS);
                let digests = next.filter_map(|room| room.digest(*node));
                let digests: Vec<Digest> = digests.collect();
                let more = rooms.len() > 0;
                let rooms = digests;
                (*node, Direct::Digest { rooms, more }, more)
            }
        };
        // Where this node is cut off, it is not heard in any case.
        let _ = outbound.batch().tell_node(node, what, &[], Load::List);
        more
    }

    /// The sessions of a room on all nodes, longest-joined first. Nothing comes to be by that: where nobody
    /// is in the room here, the other nodes are asked for their lists.
    ///
    /// # Errors
    ///
    /// [`Busy`] where too many rooms are being looked up, or a node is silent for longer than `limit`.
    pub(crate) async fn look(
        &self,
        name: &RoomName,
        limit: Duration,
    ) -> Result<Vec<SessionSnapshot>, Busy> {
        match self.find(name) {
            Some(room) => {
                room.enter(limit).await;
                Ok(room.snapshots())
            }
            None => self.look_abroad(name, limit).await,
        }
    }

    async fn look_abroad(
        &self,
        name: &RoomName,
        limit: Duration,
    ) -> Result<Vec<SessionSnapshot>, Busy> {
        let Some(outbound) = &self.outbound else {
            return Ok(Vec::new());
        };
        let nodes = self.index.lock().nodes.clone();
        let (done, waiting) = oneshot::channel();
        {
            let mut lookups = self.snapshots.lookups.lock();
            if let Some(lookup) = lookups.get_mut(name) {
                lookup.operators.retain(|operator| !operator.is_closed());
                if lookup.operators.len() >= MAX_LOOKUPS {
                    return Err(Busy);
                }
                lookup.operators.push(done);
            } else {
                if lookups.len() >= MAX_LOOKUPS {
                    return Err(Busy);
                }
                let lookup = RoomQuery {
                    waiting: nodes.iter().map(|node| (*node, None)).collect(),
                    goes_on: false,
                    found: Vec::new(),
                    operators: vec![done],
                };
                lookups.insert(name.clone(), lookup);
                let mut batch = outbound.batch();
                for node in &nodes {
                    batch.notify(*node, Direct::Ask(vec![name.clone()]));
                }
            }
        }
        let mut operator = RoomQueryGuard {
            rooms: self,
            name,
            waiting,
        };
        self.end_lookup(name);
        for _ in 0..MAX_WAITS {
            if let Ok(found) = timeout(limit, &mut operator.waiting).await {
                return Ok(found.unwrap_or_default());
            }
            // It is waited for as long as something comes.
            let mut lookups = self.snapshots.lookups.lock();
            let lookup = lookups.get_mut(name);
            if !lookup.is_some_and(|lookup| mem::take(&mut lookup.goes_on)) {
                break;
            }
        }
        // Somebody may have come here meanwhile: then the lists are the room's.
        match self.find(name) {
            Some(room) => Ok(room.snapshots()),
            None => Err(Busy),
        }
    }

    /// Ends a lookup to which nobody has anything to add.
    fn end_lookup(&self, name: &RoomName) {
        let mut lookups = self.snapshots.lookups.lock();
        if lookups
            .get(name)
            .is_none_or(|lookup| !lookup.waiting.is_empty())
        {
            return;
        }
        if let Some(lookup) = lookups.remove(name) {
            let found = longest_joined_first(lookup.found);
            for operator in lookup.operators {
                // Who has gone need not know.
                let _ = operator.send(found.clone());
            }
        }
    }

    /// A node lists its sessions in a room that is not here.
    pub(super) fn listed_abroad(&self, node: NodeId, piece: cluster::SnapshotChunk) {
        let name = piece.room.clone();
        if let Some(lookup) = self.snapshots.lookups.lock().get_mut(&name) {
            lookup.goes_on = true;
            match lookup.waiting.get_mut(&node) {
                Some(until) if *until == piece.after => *until = piece.until,
                // It is the end of a list that was begun for somebody before: now it can be told anew.
                Some(_) if piece.until.is_none() => {
                    return self.ask(node, vec![name.clone()]);
                }
                _ => return,
            }
            if piece.until.is_none() {
                lookup.waiting.remove(&node);
            }
            let snapshots = piece.members.into_iter().map(|member| {
                let (id, joined) = (member.id, member.joined);
                let info = Arc::new(SessionInfo::remote(member.data, member.since));
                let location = Location::Remote(node);
                (joined, SessionSnapshot { id, location, info })
            });
            lookup.found.extend(snapshots);
        }
        self.end_lookup(&name);
    }

    /// A node is not there any longer, and has nothing to say of rooms that are not here.
    pub(super) fn down_abroad(&self, node: NodeId) {
        let names: Vec<RoomName> = self.snapshots.lookups.lock().keys().cloned().collect();
        names.iter().for_each(|name| self.absent_abroad(node, name));
    }

    /// A node is not in a room that is not here either, or is not there.
    pub(super) fn absent_abroad(&self, node: NodeId, name: &RoomName) {
        if let Some(lookup) = self.snapshots.lookups.lock().get_mut(name) {
            lookup.waiting.remove(&node);
        }
        self.end_lookup(name);
    }
}

/// An operator's part in a lookup. Dropping it ends what nobody waits for any longer.
struct RoomQueryGuard<'a> {
    rooms: &'a Rooms,
    name: &'a RoomName,
    waiting: oneshot::Receiver<Vec<SessionSnapshot>>,
}

impl Drop for RoomQueryGuard<'_> {
    fn drop(&mut self) {
        self.waiting.close();
        let mut lookups = self.rooms.snapshots.lookups.lock();
        let is_left = |lookup: &RoomQuery| lookup.operators.iter().all(oneshot::Sender::is_closed);
        if lookups.get(self.name).is_some_and(is_left) {
            lookups.remove(self.name);
        }
    }
}
