//! What a room knows of other nodes, and says to them. No I/O.
//!
//! Each session has one writer, its node, and a room's members are all that all nodes say. What a node
//! says of a room is a row of events, each with the number of the one before it: who misses one asks
//! for all of that node's sessions, and takes what differs as `new` and `close`. How such a list is told
//! is in `snapshot_sender`.
//!
//! Sessions are in the order of their numbers of joining, a logical clock of the room. A session comes
//! to know who was before it in two steps: a node that enters a room waits until the others have said
//! who is there, and a session that joins, until they have seen that. Of two that join at once on
//! different nodes so just the earlier is told that the other is new. Neither wait is longer than a
//! node may be silent; who is heard of later than that is new.

use std::{
    collections::{BTreeMap, BTreeSet},
    iter, mem,
    sync::Arc,
    time::Duration,
};

use serde_json::value::RawValue;
use tokio::{sync::oneshot, time::timeout};

use super::{
    index::{JoinGuard, Members, Reservation, Room, Rooms},
    location::Location,
    member::Member,
    migration::{Migrations, RecordedEvent},
    snapshot::{SnapshotReceiver, SnapshotSender},
    speaker::Speaker,
};
use crate::{
    cluster::{
        self, Digest, Direct, Disconnected, Event, Load, MAX_NUMBER, MAX_ROOMS, NodeId, Outbound,
        RoomEvent, Sequence,
    },
    outbox::FlushSet,
    protocol::{self, Close, Problem, RoomName, SessionId},
    spare_capacity::release_spare_capacity,
    websocket::Frame,
};

/// How many sessions of other nodes there may be in a room.
const MAX_THERE: usize = 1 << 20;

/// What a room knows of other nodes.
pub(super) struct RemoteView {
    pub(super) outbound: Arc<Outbound>,
    /// What has been said of the room here.
    chain: Sequence,
    /// All other nodes there are, and what is known of them.
    views: BTreeMap<NodeId, NodeView>,
    /// How many sessions they have here.
    there: usize,
    /// Who waits until all of them have said who is there.
    entering: Vec<oneshot::Sender<()>>,
    /// Sessions of this node that the others have not all seen yet.
    joining: BTreeMap<SessionId, PendingJoin>,
    hearing: Vec<CatchUp>,
    pub(super) migrations: Migrations,
    /// The lists of this node's sessions that are being told, by who is told.
    pub(super) snapshots: BTreeMap<NodeId, SnapshotSender>,
}

/// Who waits until nodes have been heard up to these numbers.
struct CatchUp {
    numbers: Vec<(NodeId, u64)>,
    heard: oneshot::Sender<()>,
}

struct PendingJoin {
    /// The number under which that was said.
    number: u64,
    seen: Option<oneshot::Sender<()>>,
}

/// What is known of a node.
struct NodeView {
    presence: Presence,
    /// The number of what it has last seen of this node.
    seen: u64,
    /// The list of its sessions that is being heard.
    listing: Option<SnapshotReceiver>,
    /// Whether all its sessions are known, and whether they ever were.
    is_whole: bool,
    has_entered: bool,
    /// Whether some of the list has come lately.
    is_listing: bool,
    /// Whether the digest that is under way has named the room.
    listed: bool,
}

/// Whether a node is in the room.
#[derive(Clone, Copy)]
enum Presence {
    /// It has not said yet.
    Asked,
    Absent,
    /// It is, and this is the number of what it last said of the room.
    Present(u64),
}

/// A message that has not arrived: who wrote it, if that was a session, to whom, and under which mark.
struct Undelivered<'a> {
    sender: Option<SessionId>,
    receiver: SessionId,
    reference: Option<&'a RawValue>,
}

impl<'a> Undelivered<'a> {
    fn new(
        sender: Option<SessionId>,
        receiver: SessionId,
        reference: &'a Option<Box<RawValue>>,
    ) -> Undelivered<'a> {
        Undelivered {
            sender,
            receiver,
            reference: reference.as_deref(),
        }
    }

    /// What the node of its sender is told; `None` where that is a backend.
    fn to_wire(&self, room: &RoomName) -> Option<Direct> {
        Some(Direct::Undelivered {
            room: room.clone(),
            sender: self.sender?,
            receiver: self.receiver,
            reference: self.reference.map(ToOwned::to_owned),
        })
    }
}

/// What is to be said about what was heard.
#[derive(Default)]
pub(crate) struct Replies {
    /// Up to where it was seen.
    seen: BTreeMap<(NodeId, RoomName), u64>,
    /// Which nodes are asked for all their sessions in which rooms.
    asked: BTreeMap<NodeId, BTreeSet<RoomName>>,
    /// Which are told that this one is not in which rooms.
    absent: BTreeMap<NodeId, BTreeSet<RoomName>>,
    /// Which are told that a message of their sessions has not arrived.
    undelivered: Vec<(NodeId, Direct)>,
    /// How many sessions of this node were told that.
    pub(crate) told_undelivered: u64,
    /// How many messages have not arrived without anybody hearing of it.
    lost: u64,
}

impl NodeView {
    fn asked() -> NodeView {
        NodeView {
            presence: Presence::Asked,
            seen: 0,
            listing: None,
            is_whole: false,
            has_entered: false,
            is_listing: false,
            listed: false,
        }
    }
}

impl Replies {
    fn ask(&mut self, node: NodeId, room: &RoomName) {
        self.asked.entry(node).or_default().insert(room.clone());
    }

    fn absent(&mut self, node: NodeId, room: RoomName) {
        self.absent.entry(node).or_default().insert(room);
    }

    /// A node has sent a message to a session here that is not taken from it.
    pub(crate) fn refused(&mut self, node: NodeId, message: Direct) {
        if let Direct::Unicast {
            room,
            sender,
            receiver,
            reference,
        } = message
        {
            let message = Undelivered::new(sender, receiver, &reference);
            self.undelivered(node, &room, message);
        }
    }

    /// A message that a node has sent here has not arrived.
    fn undelivered(&mut self, node: NodeId, room: &RoomName, message: Undelivered<'_>) {
        match message.to_wire(room) {
            Some(undelivered) => self.undelivered.push((node, undelivered)),
            // A backend does not wait to hear it.
            None => self.lost += 1,
        }
    }

    /// Says it. Where this node is cut off, nobody waits for it. Returns how many messages have not
    /// arrived without anybody hearing of it.
    pub(crate) fn say(mut self, outbound: &Outbound) -> u64 {
        let mut batch = outbound.batch();
        for ((node, room), number) in self.seen {
            batch.notify(node, Direct::Seen { room, number });
        }
        for (node, rooms) in self.asked {
            for rooms in chunks(rooms) {
                batch.notify(node, Direct::Ask(rooms));
            }
        }
        for (node, rooms) in self.absent {
            for rooms in chunks(rooms) {
                batch.notify(node, Direct::Absent(rooms));
            }
        }
        for (node, undelivered) in self.undelivered {
            self.lost += u64::from(batch.reply(node, undelivered).is_err());
        }
        self.lost
    }
}

fn chunks<T>(all: impl IntoIterator<Item = T>) -> impl Iterator<Item = Vec<T>> {
    let mut all = all.into_iter();
    iter::from_fn(move || {
        let chunk: Vec<T> = all.by_ref().take(MAX_ROOMS).collect();
        (!chunk.is_empty()).then_some(chunk)
    })
}

impl RemoteView {
    /// Makes it known that this node is in the room, and asks these who is there.
    pub(super) fn enter(
        room: &RoomName,
        outbound: &Arc<Outbound>,
        nodes: &BTreeSet<NodeId>,
    ) -> RemoteView {
        let chain = Sequence::default();
        outbound.batch().enter(room, &chain);
        RemoteView {
            outbound: outbound.clone(),
            chain,
            views: nodes
                .iter()
                .map(|node| (*node, NodeView::asked()))
                .collect(),
            there: 0,
            entering: Vec::new(),
            joining: BTreeMap::new(),
            hearing: Vec::new(),
            migrations: Migrations::default(),
            snapshots: BTreeMap::new(),
        }
    }

    /// All other nodes.
    pub(super) fn nodes(&self) -> BTreeSet<NodeId> {
        self.views.keys().copied().collect()
    }

    /// Those that are in the room.
    pub(super) fn present(&self) -> BTreeSet<NodeId> {
        let nodes = self.views.keys().copied();
        nodes.filter(|node| self.is_present(*node)).collect()
    }

    /// How many sessions there are on other nodes.
    pub(super) fn there(&self) -> usize {
        self.there
    }

    /// The number of what was last said of the room here.
    pub(super) fn last(&self) -> u64 {
        self.chain.last()
    }

    /// Whether a node is in the room.
    fn is_present(&self, node: NodeId) -> bool {
        let presence = self.views.get(&node).map(|view| view.presence);
        matches!(presence, Some(Presence::Present(_)))
    }

    /// Whether there is such a node.
    pub(super) fn is_there(&self, node: NodeId) -> bool {
        self.views.contains_key(&node)
    }

    /// Up to where each node in the room was heard, this one included.
    pub(super) fn seen(&self) -> Vec<(NodeId, u64)> {
        let own = (self.outbound.node(), self.chain.last());
        let others = self
            .views
            .iter()
            .filter_map(|(node, view)| match view.presence {
                Presence::Present(last) => Some((*node, last)),
                _ => None,
            });
        others.chain([own]).collect()
    }

    /// Says to the other nodes what happens in the room; returns the number of that.
    pub(super) fn say(&self, room: &RoomName, what: Event) -> Result<u64, Disconnected> {
        let load = match what {
            Event::Join(_) | Event::Arrive { .. } => Load::Line,
            _ => Load::Control,
        };
        let mut batch = self.outbound.batch();
        batch.tell_room(room, &self.chain, what, &[], load)
    }

    /// Says to the other nodes in the room what is for all.
    pub(super) fn broadcast(
        &self,
        room: &RoomName,
        speaker: Speaker<'_>,
        text: &[u8],
    ) -> Result<u64, Disconnected> {
        let views = self.views.iter();
        let present = views.filter(|(_, view)| matches!(view.presence, Presence::Present(_)));
        let nodes = present.map(|(node, _)| *node);
        let what = Event::Broadcast(speaker.id);
        let mut batch = self.outbound.batch();
        batch.broadcast(room, &self.chain, what, text, speaker.quota, nodes)
    }

    /// Says to the node of a session what is for that alone.
    pub(super) fn send(
        &self,
        room: &RoomName,
        way: &Location,
        speaker: Speaker<'_>,
        receiver: SessionId,
        frame: Frame,
    ) -> Result<(), Disconnected> {
        let mut batch = self.outbound.batch();
        let room = room.clone();
        let sender = speaker.id;
        let reference = speaker.reference.map(ToOwned::to_owned);
        let (node, unicast) = match way {
            Location::Remote(node) => (
                *node,
                Direct::Unicast {
                    room,
                    sender,
                    receiver,
                    reference,
                },
            ),
            Location::Migrating(node) => {
                let (_, seek) = self.migrations.gone_to(receiver).ok_or(Disconnected)?;
                let (source, number) = (self.outbound.node(), batch.next_number());
                (
                    *node,
                    Direct::Forward {
                        room,
                        seek,
                        source,
                        number,
                        sender,
                        receiver,
                        reference,
                    },
                )
            }
            Location::Importing(seek, _) => {
                let number = batch.next_number();
                self.migrations
                    .record_for(*seek, self.outbound.node(), number, sender, frame);
                return Ok(());
            }
            Location::Local(_) => return Err(Disconnected),
        };
        let load = Load::Message(speaker.quota.cloned());
        batch
            .tell_node(node, unicast, frame.payload(), load)
            .map(drop)
    }

    /// Keeps what is sent here to all for the sessions that are on their way to this node.
    pub(super) fn record(&self, said: Result<u64, Disconnected>, what: &RecordedEvent) {
        // What nobody else has heard is told last.
        let number = said.unwrap_or(MAX_NUMBER);
        self.migrations.record(self.outbound.node(), number, what);
    }

    /// Whether all nodes have seen what was said under this number.
    fn is_seen(&self, number: u64) -> bool {
        self.views.values().all(|view| match view.presence {
            Presence::Asked => false,
            Presence::Absent => true,
            Presence::Present(_) => view.seen >= number,
        })
    }

    /// Whether all nodes have said who is there.
    fn is_entered(&self) -> bool {
        self.views.values().all(|view| match view.presence {
            Presence::Asked => false,
            Presence::Absent => true,
            Presence::Present(_) => view.has_entered,
        })
    }

    /// Whether nodes have been heard up to these numbers, as far as they are there.
    fn has_heard(&self, numbers: &[(NodeId, u64)]) -> bool {
        numbers.iter().all(|(node, number)| {
            let view = self.views.get(node);
            view.is_none_or(|view| match view.presence {
                Presence::Asked => false,
                Presence::Absent => true,
                Presence::Present(last) => last >= *number,
            })
        })
    }

    /// Lets go on who need not wait any longer.
    fn settle(&mut self) {
        for hearing in mem::take(&mut self.hearing) {
            if hearing.heard.is_closed() {
                continue;
            }
            if self.has_heard(&hearing.numbers) {
                let _ = hearing.heard.send(());
            } else {
                self.hearing.push(hearing);
            }
        }
        if self.is_entered() {
            // Who waits no longer need not be told.
            self.entering
                .drain(..)
                .for_each(|entered| _ = entered.send(()));
        }
        if self.joining.is_empty() {
            return;
        }
        for (id, joining) in mem::take(&mut self.joining) {
            if !self.is_seen(joining.number) {
                self.joining.insert(id, joining);
            } else if let Some(seen) = joining.seen {
                let _ = seen.send(());
            }
        }
    }
}

/// Folds a session's id into, or out of, the hash of all.
fn fold(hash: u64, id: SessionId) -> u64 {
    let bits = id.bits();
    hash ^ (bits >> 64) as u64 ^ bits as u64
}

impl Members {
    /// Tells the other nodes of a session that has joined here.
    pub(super) fn tell_joined(&mut self, room: &RoomName, id: SessionId, new: Frame) {
        let (Some(remote), Some(member)) = (&mut self.remote, self.senders.get(&id)) else {
            return;
        };
        let join = Event::Join(member.to_record(id));
        let said = remote.say(room, join);
        if let Ok(number) = said
            && !remote.is_seen(number)
        {
            let joining = PendingJoin { number, seen: None };
            remote.joining.insert(id, joining);
        }
        remote.record(said, &RecordedEvent::Joined(id, new));
    }

    /// Tells the other nodes of a session that is about to speak, where the list that one of them is being
    /// told has not come to it yet: otherwise it would not be believed.
    pub(super) fn introduce(&self, room: &RoomName, id: Option<SessionId>) {
        let (Some(remote), Some(id)) = (&self.remote, id) else {
            return;
        };
        let mut snapshots = remote.snapshots.values();
        if snapshots.any(|snapshot_sender| snapshot_sender.must_introduce(id))
            && let Some(member) = self.senders.get(&id)
        {
            let join = Event::Join(member.to_record(id));
            // Where this node is cut off, all is told when it is no longer.
            let _ = remote.say(room, join);
        }
    }

    /// Tells the other nodes of a session that has left here.
    pub(super) fn tell_left(&mut self, room: &RoomName, id: SessionId, close: Frame) {
        if let Some(remote) = &mut self.remote {
            remote.joining.remove(&id);
            remote.forget(room, id);
            // Where nobody hears it, all is told as soon as somebody does.
            let said = remote.say(room, Event::Leave(id));
            remote.record(said, &RecordedEvent::Left(id, close));
        }
    }

    /// Takes in what a node says to be its session, and tells those of this one if it is new.
    pub(super) fn come(
        &mut self,
        room: &RoomName,
        node: NodeId,
        number: u64,
        member: cluster::SessionRecord,
        flush_set: &mut FlushSet,
    ) {
        if self.senders.contains_key(&member.id) {
            return self.claim(room, node, &member);
        }
        let Some(remote) = &mut self.remote else {
            return;
        };
        if remote.there >= MAX_THERE {
            return;
        }
        remote.there += 1;
        self.clock = self.clock.max(member.joined.min(MAX_NUMBER));
        let new = protocol::joined(member.id, member.data.as_deref());
        for (id, own) in &self.senders {
            // Who is still about to join finds it among those who were there before.
            let was_before =
                remote.joining.contains_key(id) && (member.joined, member.id) < (own.joined, *id);
            if let Location::Local(sender) = &own.location
                && !was_before
            {
                // Who takes no more is leaving, and needs no news.
                let _ = sender.push(new.clone(), flush_set);
            }
        }
        let said = RecordedEvent::Joined(member.id, new);
        remote.migrations.record(node, number, &said);
        let id = member.id;
        self.senders
            .insert(id, Member::from_record(member, Location::Remote(node)));
    }

    /// Lets a session of another node go, and tells those of this one.
    fn go(&mut self, node: NodeId, number: u64, id: SessionId, flush_set: &mut FlushSet) {
        if !self.is_of(node, id) {
            return;
        }
        self.senders.remove(&id);
        release_spare_capacity(&mut self.senders);
        let close = protocol::left(id);
        self.push_to_all(&close, flush_set);
        if let Some(remote) = &mut self.remote {
            remote.migrations.forget(id);
            remote.there -= 1;
            let said = RecordedEvent::Left(id, close);
            remote.migrations.record(node, number, &said);
        }
    }

    /// Has a session reached in another way from now on.
    pub(super) fn replace_way(&mut self, id: SessionId, location: Location) {
        let (Some(member), Some(remote)) = (self.senders.get_mut(&id), &mut self.remote) else {
            return;
        };
        let is_there = |way: &Location| usize::from(matches!(way, Location::Remote(_)));
        remote.there += is_there(&location);
        remote.there -= is_there(&member.location);
        member.location = location;
    }

    /// Whether it is a session of this other node.
    fn is_of(&self, node: NodeId, id: SessionId) -> bool {
        let way = self.senders.get(&id).map(|member| &member.location);
        matches!(way, Some(Location::Remote(there)) if *there == node)
    }

    /// The sessions of another node.
    fn there(&self, node: NodeId) -> Vec<SessionId> {
        let ids = self.senders.iter().filter(
            |(_, member)| matches!(member.location, Location::Remote(there) if there == node),
        );
        ids.map(|(id, _)| *id).collect()
    }

    /// Lets all sessions of a node go but these.
    fn keep(
        &mut self,
        node: NodeId,
        number: u64,
        ids: &BTreeSet<SessionId>,
        flush_set: &mut FlushSet,
    ) {
        for id in self.there(node) {
            if !ids.contains(&id) {
                self.go(node, number, id, flush_set);
            }
        }
    }

    /// Lets all sessions of a node go, which has no more to say of the room.
    fn clear(&mut self, room: &Room, node: NodeId, number: u64, flush_set: &mut FlushSet) {
        self.keep(node, number, &BTreeSet::new(), flush_set);
        if let Some(remote) = &mut self.remote {
            let done = remote.migrations.turned(node, None);
            remote.settle();
            self.tell_done(&room.name, done);
        }
    }

    fn hash(&self, of: impl Fn(&Location) -> bool) -> u64 {
        let ids = self
            .senders
            .iter()
            .filter(|(_, member)| of(&member.location));
        ids.fold(0, |hash, (id, _)| fold(hash, *id))
    }

    fn view(&mut self, node: NodeId) -> Option<&mut NodeView> {
        self.remote.as_mut()?.views.get_mut(&node)
    }

    fn settle(&mut self) {
        if let Some(remote) = &mut self.remote {
            remote.settle();
        }
    }
}

impl Reservation {
    /// Waits until the other nodes have said who is in the room, for so long at most.
    pub(crate) async fn enter(&self, limit: Duration) {
        self.room.enter(limit).await;
    }
}

impl JoinGuard {
    /// Waits until the other nodes have seen that the session has joined, for so long at most.
    pub(crate) async fn settled(&self, limit: Duration) {
        let waiting = {
            let mut members = self.reservation.room.members.write();
            let remote = members.remote.as_mut();
            let Some(joining) = remote.and_then(|it| it.joining.get_mut(&self.id)) else {
                return;
            };
            let (seen, waiting) = oneshot::channel();
            joining.seen = Some(seen);
            waiting
        };
        // Who has not seen it by then is not waited for any longer.
        let _ = timeout(limit, waiting).await;
    }

    /// The session waits for nobody any longer: whoever is heard of from now on is new to it.
    pub(crate) fn begins(&self) {
        if let Some(remote) = &mut self.reservation.room.members.write().remote {
            remote.joining.remove(&self.id);
        }
    }

    /// Waits until this node has heard others up to these numbers, for so long at most.
    pub(crate) async fn caught_up(&self, numbers: &[(NodeId, u64)], limit: Duration) {
        self.reservation.room.caught_up(numbers, limit).await;
    }
}

impl Room {
    /// Waits until the other nodes have said who is in the room, for so long at most.
    pub(super) async fn enter(&self, limit: Duration) {
        let entered = {
            let mut members = self.members.write();
            match &mut members.remote {
                Some(remote) if !remote.is_entered() => {
                    let (entered, waiting) = oneshot::channel();
                    remote.entering.retain(|other| !other.is_closed());
                    remote.entering.push(entered);
                    waiting
                }
                _ => return,
            }
        };
        // Who has not said it by then is not waited for any longer.
        let _ = timeout(limit, entered).await;
    }

    /// Waits until nodes have been heard up to these numbers, for so long at most.
    pub(super) async fn caught_up(&self, numbers: &[(NodeId, u64)], limit: Duration) {
        let waiting = {
            let mut members = self.members.write();
            match &mut members.remote {
                Some(remote) if !remote.has_heard(numbers) => {
                    let (heard, waiting) = oneshot::channel();
                    let numbers = numbers.to_vec();
                    remote.hearing.retain(|other| !other.heard.is_closed());
                    remote.hearing.push(CatchUp { numbers, heard });
                    waiting
                }
                _ => return,
            }
        };
        // What was lost on the way is not waited for any longer.
        let _ = timeout(limit, waiting).await;
    }

    /// Makes it known that this node is no longer in the room.
    pub(super) fn exit(&self) {
        // Whoever still has the room says nothing more of it.
        if let Some(remote) = self.members.write().remote.take() {
            remote.outbound.batch().exit(&self.name, &remote.chain);
        }
    }

    /// Whether anybody is on another node.
    pub(super) fn reaches_others(&self) -> bool {
        let members = self.members.read();
        members.remote.as_ref().is_some_and(|it| it.there() > 0)
    }

    /// There is another node.
    fn up(&self, node: NodeId) {
        if let Some(remote) = &mut self.members.write().remote {
            remote.views.entry(node).or_insert_with(NodeView::asked);
        }
    }

    /// There is no such node any longer.
    fn down(&self, node: NodeId, flush_set: &mut FlushSet) {
        let mut members = self.members.write();
        let Some(remote) = &mut members.remote else {
            return;
        };
        remote.views.remove(&node);
        remote.snapshots.remove(&node);
        remote.migrations.down(node);
        let number = remote.outbound.number();
        members.clear(self, node, number, flush_set);
    }

    /// A node is in the room, and has nobody there yet; or is not.
    fn alone(&self, node: NodeId, number: u64, presence: Presence, flush_set: &mut FlushSet) {
        let mut members = self.members.write();
        if let Some(view) = members.view(node) {
            view.presence = presence;
            view.listing = None;
            view.is_whole = true;
            view.has_entered = true;
            members.clear(self, node, number, flush_set);
        }
    }

    /// A node says who of its is in the room, piece by piece.
    fn members(
        &self,
        node: NodeId,
        number: u64,
        said: cluster::SnapshotChunk,
        replies: &mut Replies,
        flush_set: &mut FlushSet,
    ) {
        let mut members = self.members.write();
        let is_first = said.after.is_none();
        let known = match is_first {
            true => members.there(node),
            false => Vec::new(),
        };
        let Some(view) = members.view(node) else {
            return;
        };
        view.is_listing = true;
        let heard = SnapshotReceiver::hear(&mut view.listing, &said, known);
        let Some(heard) = heard else {
            // A piece was lost.
            view.is_whole = false;
            return replies.ask(node, &self.name);
        };
        let mut is_whole = heard.is_whole;
        match view.presence {
            Presence::Present(last) if !is_first && last != said.last => {
                // Something that happened meanwhile was lost.
                is_whole = false;
                if let Some(listing) = &mut view.listing {
                    listing.missed();
                }
            }
            _ => {}
        }
        view.presence = Presence::Present(said.last);
        view.is_whole = is_whole;
        view.has_entered |= is_whole;
        members.clock = members.clock.max(said.clock.min(MAX_NUMBER));
        for id in heard.gone {
            members.go(node, number, id, flush_set);
        }
        for member in said.members {
            members.come(&self.name, node, number, member, flush_set);
        }
        members.settle();
        if is_whole {
            replies.seen.insert((node, self.name.clone()), said.last);
        }
    }

    /// A node says what has happened in the room.
    fn event(
        &self,
        node: NodeId,
        number: u64,
        said: RoomEvent,
        text: &str,
        replies: &mut Replies,
        flush_set: &mut FlushSet,
    ) {
        let mut members = self.members.write();
        let Some(view) = members.view(node) else {
            return;
        };
        match &mut view.presence {
            Presence::Present(last) if number <= *last => return,
            Presence::Present(last) => {
                let has_gap = said.after != *last;
                *last = number;
                if has_gap {
                    view.is_whole = false;
                    if let Some(listing) = &mut view.listing {
                        listing.missed();
                    }
                    replies.ask(node, &self.name);
                }
            }
            // What happens is true also before its list comes.
            Presence::Asked => {}
            Presence::Absent => {
                // So it is in the room after all.
                *view = NodeView {
                    seen: view.seen,
                    ..NodeView::asked()
                };
                replies.ask(node, &self.name);
            }
        }
        match said.what {
            Event::Join(member) => {
                members.come(&self.name, node, number, member, flush_set);
                replies.seen.insert((node, self.name.clone()), number);
            }
            Event::Leave(id) => members.go(node, number, id, flush_set),
            Event::Arrive { member, from } => {
                members.arrive(&self.name, node, number, member, from, flush_set);
            }
            Event::Broadcast(sender) => {
                if sender.is_none_or(|id| members.is_of(node, id)) {
                    let frame = relayed(text);
                    members.push_to_all(&frame, flush_set);
                    if let Some(remote) = &members.remote {
                        remote.migrations.record(
                            node,
                            number,
                            &RecordedEvent::Broadcast(sender, frame),
                        );
                    }
                }
            }
            Event::Exit => {
                view.presence = Presence::Absent;
                view.listing = None;
                if let Some(remote) = &mut members.remote {
                    remote.snapshots.remove(&node);
                }
                members.clear(self, node, number, flush_set);
            }
        }
        if let Some(remote) = &mut members.remote
            && !remote.hearing.is_empty()
        {
            remote.settle();
        }
    }

    /// A node has seen what was said here up to this number.
    fn seen(&self, node: NodeId, number: u64) {
        let mut members = self.members.write();
        if let Some(view) = members.view(node) {
            view.seen = number.max(view.seen);
            members.settle();
        }
    }

    /// A session of a node, or a backend there, writes to one of this one.
    fn unicast(
        &self,
        node: NodeId,
        number: u64,
        message: Undelivered<'_>,
        text: &str,
        replies: &mut Replies,
        flush_set: &mut FlushSet,
    ) {
        let members = self.members.read();
        let Undelivered {
            sender, receiver, ..
        } = message;
        if let Some(remote) = &members.remote
            && sender.map_or(remote.is_present(node), |id| members.is_of(node, id))
        {
            let way = members
                .senders
                .get(&receiver)
                .map(|member| &member.location);
            let is_on_its_way = match (way, remote.migrations.gone_to(receiver)) {
                (Some(Location::Local(outbox)), _) => outbox.push(relayed(text), flush_set).is_ok(),
                (Some(Location::Importing(seek, _)), _) => {
                    let migrations = &remote.migrations;
                    migrations.record_for(*seek, node, number, sender, relayed(text));
                    true
                }
                (Some(_), Some((to, seek))) => {
                    let forward = Direct::Forward {
                        room: self.name.clone(),
                        seek,
                        source: node,
                        number,
                        sender,
                        receiver,
                        reference: message.reference.map(ToOwned::to_owned),
                    };
                    let mut batch = remote.outbound.batch();
                    let (text, load) = (text.as_bytes(), Load::Message(None));
                    batch.tell_node(to, forward, text, load).is_ok()
                }
                _ => false,
            };
            if is_on_its_way {
                return;
            }
        }
        replies.undelivered(node, &self.name, message);
    }

    /// A node says that what a session of this one wrote has not arrived. Returns whether it was told so
    /// here.
    fn undelivered(
        &self,
        from: NodeId,
        message: &Undelivered<'_>,
        flush_set: &mut FlushSet,
    ) -> bool {
        let members = self.members.read();
        let Some(sender) = message.sender else {
            return false;
        };
        let way = members.senders.get(&sender).map(|member| &member.location);
        match (way, &members.remote) {
            (Some(Location::Local(outbox) | Location::Importing(_, outbox)), _) => {
                let problem = Problem::unknown_receiver(message.receiver);
                let error = protocol::error(sender, &problem, message.reference);
                outbox.push(error, flush_set).is_ok()
            }
            (Some(Location::Remote(node) | Location::Migrating(node)), Some(remote))
                if *node != from =>
            {
                if let Some(undelivered) = message.to_wire(&self.name) {
                    // Where there is no room for it, nobody hears it.
                    let _ = remote.outbound.batch().reply(*node, undelivered);
                }
                false
            }
            _ => false,
        }
    }

    /// An operator closes a session of this node.
    fn expel(&self, id: SessionId) {
        let members = self.members.read();
        let way = members.senders.get(&id).map(|member| &member.location);
        if let Some(outbox) = way.and_then(Location::outbox) {
            outbox.close(Close::by_operator());
        }
    }

    /// Names the room to the nodes of which it is not known who of theirs is in it.
    fn ask_again(&self, rooms: &mut BTreeMap<NodeId, Vec<RoomName>>) {
        let is_known = |view: &NodeView| matches!(view.presence, Presence::Absent) || view.is_whole;
        let all_known = {
            let members = self.members.read();
            let mut views = members.remote.iter().flat_map(|it| it.views.values());
            views.all(is_known)
        };
        if all_known {
            return;
        }
        let mut members = self.members.write();
        let views = members.remote.iter_mut();
        for (node, view) in views.flat_map(|it| &mut it.views) {
            // Where a list is being heard, it need not begin again.
            if !mem::take(&mut view.is_listing) && !is_known(view) {
                rooms.entry(*node).or_default().push(self.name.clone());
            }
        }
    }

    /// What this node has said of the room, if that node is in it.
    pub(super) fn digest(&self, node: NodeId) -> Option<Digest> {
        let members = self.members.read();
        let remote = members.remote.as_ref()?;
        remote.is_present(node).then(|| Digest {
            room: self.name.clone(),
            last: remote.chain.last(),
            hash: members.hash(Location::is_own),
        })
    }

    /// Compares what is known of a node with what it has said.
    fn compare(&self, node: NodeId, digest: &Digest, replies: &mut Replies) {
        let mut members = self.members.write();
        let known = members.hash(|way| matches!(way, Location::Remote(there) if *there == node));
        let Some(view) = members.view(node) else {
            return;
        };
        view.listed = true;
        let agrees = match view.presence {
            // It is being asked.
            Presence::Asked => true,
            Presence::Present(_) if !view.is_whole => true,
            // It is asked again.
            Presence::Absent => false,
            Presence::Present(last) => {
                digest.last < last || (digest.last == last && digest.hash == known)
            }
        };
        if !agrees {
            view.is_whole = false;
            replies.ask(node, &self.name);
        }
    }

    /// A node has named all rooms that it knows this one to be in.
    fn compared(&self, node: NodeId, replies: &mut Replies) {
        let mut members = self.members.write();
        if let Some(view) = members.view(node)
            && !mem::take(&mut view.listed)
            && let Presence::Present(_) = view.presence
            && view.is_whole
        {
            view.is_whole = false;
            replies.ask(node, &self.name);
        }
    }
}

impl Rooms {
    pub(super) fn rooms(&self) -> Vec<Arc<Room>> {
        self.all().into_iter().map(|(room, _)| room).collect()
    }

    /// There is another node: asks it who is where.
    pub(crate) fn up(&self, node: NodeId) {
        self.index.lock().nodes.insert(node);
        let rooms = self.rooms();
        rooms.iter().for_each(|room| room.up(node));
        self.ask(node, rooms.iter().map(|room| room.name.clone()).collect());
    }

    /// There is no such node any longer: its sessions have gone.
    pub(crate) fn down(&self, node: NodeId) {
        self.index.lock().nodes.remove(&node);
        for room in self.rooms() {
            room.down(node, &mut FlushSet::default());
        }
        self.down_abroad(node);
    }

    /// Hears all rooms again, on another connection.
    pub(crate) fn subscribe(&self) {
        let index = self.index.lock();
        if let Some(outbound) = &self.outbound {
            let mut batch = outbound.batch();
            index.rooms.keys().for_each(|room| batch.subscribe(room));
        }
    }

    /// A node is in a room from now on, without anybody.
    pub(crate) fn entered(
        &self,
        node: NodeId,
        number: u64,
        room: RoomName,
        replies: &mut Replies,
        flush_set: &mut FlushSet,
    ) {
        match self.find(&room) {
            Some(room) => {
                room.alone(node, number, Presence::Present(number), flush_set);
                room.forget_roster(node);
                self.list_to(node, &room);
            }
            None => replies.absent(node, room),
        }
    }

    /// A node says what has happened in a room.
    pub(crate) fn event(
        &self,
        node: NodeId,
        number: u64,
        said: RoomEvent,
        text: &str,
        replies: &mut Replies,
        flush_set: &mut FlushSet,
    ) {
        // It may have been said just before this node left the room.
        if let Some(room) = self.find(&said.room) {
            room.event(node, number, said, text, replies, flush_set);
        }
    }

    /// A node says something to this one.
    pub(crate) fn said(
        &self,
        node: NodeId,
        number: u64,
        said: Direct,
        text: &str,
        replies: &mut Replies,
        flush_set: &mut FlushSet,
    ) {
        match said {
            Direct::Ask(rooms) => {
                for name in rooms {
                    match self.find(&name) {
                        Some(room) => self.list_to(node, &room),
                        None => replies.absent(node, name),
                    }
                }
            }
            Direct::Members(said) => match self.find(&said.room) {
                Some(room) => room.members(node, number, said, replies, flush_set),
                None => self.listed_abroad(node, said),
            },
            Direct::Absent(rooms) => {
                for name in rooms {
                    match self.find(&name) {
                        Some(room) => room.alone(node, number, Presence::Absent, flush_set),
                        None => self.absent_abroad(node, &name),
                    }
                }
            }
            Direct::Seen { room, number } => {
                if let Some(room) = self.find(&room) {
                    room.seen(node, number);
                }
            }
            // That concerns no room.
            Direct::Taken { .. } => {}
            Direct::Unicast {
                room,
                sender,
                receiver,
                reference,
            } => {
                let message = Undelivered::new(sender, receiver, &reference);
                match self.find(&room) {
                    Some(room) => room.unicast(node, number, message, text, replies, flush_set),
                    None => replies.undelivered(node, &room, message),
                }
            }
            Direct::Undelivered {
                room,
                sender,
                receiver,
                reference,
            } => {
                let message = Undelivered::new(Some(sender), receiver, &reference);
                let room = self.find(&room);
                if room.is_some_and(|room| room.undelivered(node, &message, flush_set)) {
                    replies.told_undelivered += 1;
                }
            }
            Direct::Expel { room, id } => {
                if let Some(room) = self.find(&room) {
                    room.expel(id);
                }
            }
            Direct::Answer { room, seek, answer } => {
                if let Some(room) = self.find(&room) {
                    room.answered(node, seek, answer);
                }
            }
            Direct::Offer { room, seek, token } => {
                let accepted = self
                    .find(&room)
                    .is_some_and(|room| room.offered(node, seek, &token));
                let accept = Direct::Accept {
                    room,
                    seek,
                    accepted,
                };
                if let Some(outbound) = &self.outbound {
                    outbound.batch().notify(node, accept);
                }
            }
            Direct::Accept {
                room,
                seek,
                accepted,
            } => {
                if let Some(room) = self.find(&room) {
                    room.accepted(node, seek, accepted);
                }
            }
            Direct::Handed(handed) => {
                if let Some(room) = self.find(&handed.room) {
                    room.handed(node, handed, text);
                }
            }
            Direct::Turned { room, id } => {
                if let Some(room) = self.find(&room) {
                    room.turned(node, id);
                }
            }
            Direct::Forward {
                room,
                seek,
                source,
                number,
                sender,
                receiver,
                reference,
            } => {
                let message = Undelivered::new(sender, receiver, &reference);
                let is_for =
                    |room: Arc<Room>| room.forwarded(node, seek, source, number, sender, text);
                if !self.find(&room).is_some_and(is_for) {
                    replies.undelivered(source, &room, message);
                }
            }
            Direct::Done { room, seek } => {
                if let Some(room) = self.find(&room) {
                    room.done(node, seek);
                }
            }
            Direct::Digest { rooms, more } => {
                for digest in rooms {
                    match self.find(&digest.room) {
                        Some(room) => room.compare(node, &digest, replies),
                        None => replies.absent(node, digest.room),
                    }
                }
                if !more {
                    let rooms = self.rooms();
                    rooms.iter().for_each(|room| room.compared(node, replies));
                }
            }
        }
    }

    /// Asks again who has not answered.
    pub(crate) fn ask_again(&self) {
        let mut asked = BTreeMap::new();
        for room in self.rooms() {
            room.ask_again(&mut asked);
        }
        for (node, rooms) in asked {
            self.ask(node, rooms);
        }
    }
}

/// What a session of another node wrote, encoded once for all who get it here.
pub(super) fn relayed(text: &str) -> Frame {
    Frame::text(|buffer| buffer.extend_from_slice(text.as_bytes()))
}
