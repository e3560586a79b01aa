//! What a room knows of other nodes, and says to them. No I/O.
//!
//! Each session has one writer, its node, and a room's members are all that all nodes say. What a node
//! says of a room is a row of events, each with the number of the one before it: who misses one asks
//! for all of that node's sessions, and takes what differs as `new` and `close`.
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
    time::{Duration, UNIX_EPOCH},
};

use tokio::{sync::oneshot, time::timeout};

use super::{Guest, Member, Members, Membership, Room, Rooms, Seat, Way, release_spare};
use crate::{
    cluster::{self, Chain, Cut, Digest, Event, MAX_ROOMS, NodeId, ToNode, ToRoom, Uplink},
    outbox::Unflushed,
    protocol::{self, Close, RoomName, SessionId},
    websocket::Frame,
};

/// How many sessions of other nodes there may be in a room.
const MAX_THERE: usize = 1 << 20;

/// What a room knows of other nodes.
pub(super) struct Elsewhere {
    pub(super) uplink: Arc<Uplink>,
    /// What has been said of the room here.
    chain: Chain,
    /// All other nodes there are, and what is known of them.
    views: BTreeMap<NodeId, View>,
    /// How many sessions they have here.
    there: usize,
    /// Who waits until all of them have said who is there.
    entering: Vec<oneshot::Sender<()>>,
    /// Sessions of this node that the others have not all seen yet.
    joining: BTreeMap<SessionId, Joining>,
}

struct Joining {
    /// The number under which that was said.
    number: u64,
    seen: Option<oneshot::Sender<()>>,
}

/// What is known of a node.
struct View {
    presence: Presence,
    /// The beginning of a list of its sessions.
    part: Vec<cluster::Member>,
    /// Whether the digest that is under way has named the room.
    listed: bool,
}

/// Whether a node is in the room.
#[derive(Clone, Copy)]
enum Presence {
    /// It has not said yet.
    Asked,
    Absent,
    Present {
        /// The number of what it last said of the room.
        last: u64,
        /// The number of what it has last seen of this node.
        seen: u64,
    },
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
}

impl View {
    fn asked() -> View {
        View {
            presence: Presence::Asked,
            part: Vec::new(),
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

    /// Says it. Where this node is cut off, nobody waits for it.
    pub(crate) fn say(self, uplink: &Uplink) {
        let mut turn = uplink.turn();
        for ((node, room), number) in self.seen {
            let _ = turn.to_node(node, ToNode::Seen { room, number }, &[]);
        }
        for (node, rooms) in self.asked {
            for rooms in chunks(rooms) {
                let _ = turn.to_node(node, ToNode::Ask(rooms), &[]);
            }
        }
        for (node, rooms) in self.absent {
            for rooms in chunks(rooms) {
                let _ = turn.to_node(node, ToNode::Absent(rooms), &[]);
            }
        }
    }
}

fn chunks<T>(all: impl IntoIterator<Item = T>) -> impl Iterator<Item = Vec<T>> {
    let mut all = all.into_iter();
    iter::from_fn(move || {
        let chunk: Vec<T> = all.by_ref().take(MAX_ROOMS).collect();
        (!chunk.is_empty()).then_some(chunk)
    })
}

impl Elsewhere {
    /// Makes it known that this node is in the room, and asks these who is there.
    pub(super) fn enter(
        room: &RoomName,
        uplink: &Arc<Uplink>,
        nodes: &BTreeSet<NodeId>,
    ) -> Elsewhere {
        let chain = Chain::default();
        uplink.turn().enter(room, &chain);
        Elsewhere {
            uplink: uplink.clone(),
            chain,
            views: nodes.iter().map(|node| (*node, View::asked())).collect(),
            there: 0,
            entering: Vec::new(),
            joining: BTreeMap::new(),
        }
    }

    /// Says to the other nodes what happens in the room; returns the number of that.
    pub(super) fn say(&self, room: &RoomName, what: Event, text: &[u8]) -> Result<u64, Cut> {
        self.uplink.turn().to_room(room, &self.chain, what, text)
    }

    /// Whether all nodes have seen what was said under this number.
    fn is_seen(&self, number: u64) -> bool {
        self.views.values().all(|view| match view.presence {
            Presence::Asked => false,
            Presence::Absent => true,
            Presence::Present { seen, .. } => seen >= number,
        })
    }

    /// Whether all nodes have said who is there.
    fn is_entered(&self) -> bool {
        let mut presences = self.views.values().map(|view| view.presence);
        !presences.any(|presence| matches!(presence, Presence::Asked))
    }

    /// Lets go on who need not wait any longer.
    fn settle(&mut self) {
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
    pub(super) fn tell_joined(&mut self, room: &RoomName, id: SessionId) {
        let (Some(elsewhere), Some(member)) = (&mut self.elsewhere, self.senders.get(&id)) else {
            return;
        };
        let join = Event::Join(member.to_wire(id));
        if let Ok(number) = elsewhere.say(room, join, &[])
            && !elsewhere.is_seen(number)
        {
            let joining = Joining { number, seen: None };
            elsewhere.joining.insert(id, joining);
        }
    }

    /// Tells the other nodes of a session that has left here.
    pub(super) fn tell_left(&mut self, room: &RoomName, id: SessionId) {
        if let Some(elsewhere) = &mut self.elsewhere {
            elsewhere.joining.remove(&id);
            // Where nobody hears it, all is told as soon as somebody does.
            let _ = elsewhere.say(room, Event::Leave(id), &[]);
        }
    }

    /// Takes in a session of another node, and tells those of this one.
    fn come(&mut self, node: NodeId, member: cluster::Member, unflushed: &mut Unflushed) {
        let Some(elsewhere) = &mut self.elsewhere else {
            return;
        };
        if self.senders.contains_key(&member.id) || elsewhere.there >= MAX_THERE {
            return;
        }
        elsewhere.there += 1;
        self.clock = self.clock.max(member.joined);
        let new = protocol::joined(member.id, member.data.as_deref());
        for (id, own) in &self.senders {
            // Who is still about to join finds it among those who were there before.
            let was_before = elsewhere.joining.contains_key(id)
                && (member.joined, member.id) < (own.joined, *id);
            if let Way::Here(sender) = &own.way
                && !was_before
            {
                // Who takes no more is leaving, and needs no news.
                let _ = sender.push(new.clone(), unflushed);
            }
        }
        let since = UNIX_EPOCH.checked_add(Duration::from_millis(member.since));
        let guest = Guest::elsewhere(member.data, since.unwrap_or(UNIX_EPOCH));
        let joined = Member {
            way: Way::There(node),
            joined: member.joined,
            guest: Arc::new(guest),
        };
        self.senders.insert(member.id, joined);
    }

    /// Lets a session of another node go, and tells those of this one.
    fn go(&mut self, node: NodeId, id: SessionId, unflushed: &mut Unflushed) {
        if !self.is_of(node, id) {
            return;
        }
        self.senders.remove(&id);
        release_spare(&mut self.senders);
        if let Some(elsewhere) = &mut self.elsewhere {
            elsewhere.there -= 1;
        }
        self.push_to_all(&protocol::left(id), unflushed);
    }

    /// Whether it is a session of this other node.
    fn is_of(&self, node: NodeId, id: SessionId) -> bool {
        let way = self.senders.get(&id).map(|member| &member.way);
        matches!(way, Some(Way::There(there)) if *there == node)
    }

    /// The sessions of another node.
    fn there(&self, node: NodeId) -> Vec<SessionId> {
        let ids = self
            .senders
            .iter()
            .filter(|(_, member)| matches!(member.way, Way::There(there) if there == node));
        ids.map(|(id, _)| *id).collect()
    }

    /// Lets all sessions of a node go but these.
    fn keep(&mut self, node: NodeId, ids: &BTreeSet<SessionId>, unflushed: &mut Unflushed) {
        for id in self.there(node) {
            if !ids.contains(&id) {
                self.go(node, id, unflushed);
            }
        }
    }

    fn hash(&self, of: impl Fn(&Way) -> bool) -> u64 {
        let ids = self.senders.iter().filter(|(_, member)| of(&member.way));
        ids.fold(0, |hash, (id, _)| fold(hash, *id))
    }

    fn view(&mut self, node: NodeId) -> Option<&mut View> {
        self.elsewhere.as_mut()?.views.get_mut(&node)
    }

    fn settle(&mut self) {
        if let Some(elsewhere) = &mut self.elsewhere {
            elsewhere.settle();
        }
    }
}

impl Member {
    fn to_wire(&self, id: SessionId) -> cluster::Member {
        let since = self
            .guest
            .since
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        cluster::Member {
            id,
            joined: self.joined,
            data: self.guest.public.clone(),
            since: since.as_millis() as u64,
        }
    }
}

impl Seat {
    /// Waits until the other nodes have said who is in the room, for so long at most.
    pub(crate) async fn enter(&self, limit: Duration) {
        let entered = {
            let mut members = self.room.members.write();
            match &mut members.elsewhere {
                Some(elsewhere) if !elsewhere.is_entered() => {
                    let (entered, waiting) = oneshot::channel();
                    elsewhere.entering.push(entered);
                    waiting
                }
                _ => return,
            }
        };
        // Who has not said it by then is not waited for any longer.
        let _ = timeout(limit, entered).await;
    }
}

impl Membership {
    /// Waits until the other nodes have seen that the session has joined, for so long at most.
    pub(crate) async fn settled(&self, limit: Duration) {
        let waiting = {
            let mut members = self.seat.room.members.write();
            let elsewhere = members.elsewhere.as_mut();
            let Some(joining) = elsewhere.and_then(|it| it.joining.get_mut(&self.id)) else {
                return;
            };
            let (seen, waiting) = oneshot::channel();
            joining.seen = Some(seen);
            waiting
        };
        if timeout(limit, waiting).await.is_err()
            && let Some(elsewhere) = &mut self.seat.room.members.write().elsewhere
        {
            elsewhere.joining.remove(&self.id);
        }
    }
}

impl Room {
    /// Makes it known that this node is no longer in the room.
    pub(super) fn exit(&self) {
        if let Some(elsewhere) = &self.members.read().elsewhere {
            elsewhere.uplink.turn().exit(&self.name, &elsewhere.chain);
        }
    }

    /// Says to a node who is here.
    fn tell_members(&self, node: NodeId) {
        let members = self.members.read();
        let Some(elsewhere) = &members.elsewhere else {
            return;
        };
        let here = members
            .senders
            .iter()
            .filter(|(_, member)| matches!(member.way, Way::Here(_)));
        let here = here.map(|(id, member)| member.to_wire(*id)).collect();
        let mut parts = cluster::parts(here).into_iter().peekable();
        let mut before = 0;
        let mut turn = elsewhere.uplink.turn();
        let last = elsewhere.chain.last();
        while let Some(part) = parts.next() {
            let count = part.len();
            let part = cluster::Members {
                room: self.name.clone(),
                last,
                clock: members.clock,
                before,
                members: part,
                more: parts.peek().is_some(),
            };
            before += count;
            // Where it is cut off, it will ask again.
            let _ = turn.to_node(node, ToNode::Members(part), &[]);
        }
    }

    /// There is another node.
    fn up(&self, node: NodeId) {
        if let Some(elsewhere) = &mut self.members.write().elsewhere {
            elsewhere.views.entry(node).or_insert_with(View::asked);
        }
    }

    /// There is no such node any longer.
    fn down(&self, node: NodeId, unflushed: &mut Unflushed) {
        let mut members = self.members.write();
        if let Some(elsewhere) = &mut members.elsewhere {
            elsewhere.views.remove(&node);
        }
        members.keep(node, &BTreeSet::new(), unflushed);
        members.settle();
    }

    /// A node is in the room, and has nobody there yet; or is not.
    fn alone(&self, node: NodeId, presence: Presence, unflushed: &mut Unflushed) {
        let mut members = self.members.write();
        if let Some(view) = members.view(node) {
            view.presence = presence;
            members.keep(node, &BTreeSet::new(), unflushed);
            members.settle();
        }
    }

    /// A node says who of its is in the room.
    fn members(
        &self,
        node: NodeId,
        said: cluster::Members,
        replies: &mut Replies,
        unflushed: &mut Unflushed,
    ) {
        let mut members = self.members.write();
        let Some(view) = members.view(node) else {
            return;
        };
        if said.before == 0 {
            view.part = Vec::new();
        }
        if said.before != view.part.len() || view.part.len() > MAX_THERE {
            // Something of it was lost.
            view.part = Vec::new();
            return replies.ask(node, &self.name);
        }
        view.part.extend(said.members);
        if said.more {
            return;
        }
        let all = mem::take(&mut view.part);
        let seen = match view.presence {
            Presence::Present { seen, .. } => seen,
            _ => 0,
        };
        view.presence = Presence::Present {
            last: said.last,
            seen,
        };
        members.clock = members.clock.max(said.clock);
        let ids = all.iter().map(|member| member.id).collect();
        members.keep(node, &ids, unflushed);
        for member in all {
            members.come(node, member, unflushed);
        }
        members.settle();
        replies.seen.insert((node, self.name.clone()), said.last);
    }

    /// A node says what has happened in the room.
    fn event(
        &self,
        node: NodeId,
        number: u64,
        said: ToRoom,
        text: &str,
        replies: &mut Replies,
        unflushed: &mut Unflushed,
    ) {
        let mut members = self.members.write();
        let Some(view) = members.view(node) else {
            return;
        };
        let last = match &mut view.presence {
            Presence::Present { last, .. } => last,
            Presence::Asked => return,
            Presence::Absent => {
                // So it is in the room after all.
                view.presence = Presence::Asked;
                return replies.ask(node, &self.name);
            }
        };
        if number <= *last {
            return;
        }
        if said.after != *last {
            replies.ask(node, &self.name);
        }
        *last = number;
        match said.what {
            Event::Join(member) => {
                members.come(node, member, unflushed);
                replies.seen.insert((node, self.name.clone()), number);
            }
            Event::Leave(id) => members.go(node, id, unflushed),
            Event::Broadcast(sender) => {
                if sender.is_none_or(|id| members.is_of(node, id)) {
                    members.push_to_all(&relayed(text), unflushed);
                }
            }
            Event::Exit => {
                view.presence = Presence::Absent;
                members.keep(node, &BTreeSet::new(), unflushed);
                members.settle();
            }
        }
    }

    /// A node has seen what was said here up to this number.
    fn seen(&self, node: NodeId, number: u64) {
        let mut members = self.members.write();
        if let Some(View {
            presence: Presence::Present { seen, .. },
            ..
        }) = members.view(node)
        {
            *seen = number.max(*seen);
            members.settle();
        }
    }

    /// A session of a node, or a backend there, writes to one of this one.
    fn unicast(
        &self,
        node: NodeId,
        sender: Option<SessionId>,
        receiver: SessionId,
        text: &str,
        unflushed: &mut Unflushed,
    ) {
        let members = self.members.read();
        if sender.is_none_or(|id| members.is_of(node, id))
            && let Some(Way::Here(outbox)) = members.senders.get(&receiver).map(|it| &it.way)
        {
            // Who takes no more is leaving; the sender is about to hear of that.
            let _ = outbox.push(relayed(text), unflushed);
        }
    }

    /// An operator closes a session of this node.
    fn expel(&self, id: SessionId) {
        let members = self.members.read();
        if let Some(Way::Here(outbox)) = members.senders.get(&id).map(|it| &it.way) {
            outbox.close(Close::by_operator());
        }
    }

    /// Adds to what is to be said to each node about what this one has said of the room.
    fn sum_up(&self, digests: &mut BTreeMap<NodeId, Vec<Digest>>, replies: &mut Replies) {
        let members = self.members.read();
        let Some(elsewhere) = &members.elsewhere else {
            return;
        };
        let hash = members.hash(|way| matches!(way, Way::Here(_)));
        for (node, view) in &elsewhere.views {
            match view.presence {
                Presence::Asked => replies.ask(*node, &self.name),
                Presence::Absent => {}
                Presence::Present { .. } => digests.entry(*node).or_default().push(Digest {
                    room: self.name.clone(),
                    last: elsewhere.chain.last(),
                    hash,
                }),
            }
        }
    }

    /// Compares what is known of a node with what it has said.
    fn compare(&self, node: NodeId, digest: &Digest, replies: &mut Replies) {
        let mut members = self.members.write();
        let known = members.hash(|way| matches!(way, Way::There(there) if *there == node));
        let Some(view) = members.view(node) else {
            return;
        };
        view.listed = true;
        let agrees = match view.presence {
            // It is asked again.
            Presence::Asked | Presence::Absent => false,
            Presence::Present { last, .. } => {
                digest.last < last || (digest.last == last && digest.hash == known)
            }
        };
        if !agrees {
            replies.ask(node, &self.name);
        }
    }

    /// A node has named all rooms that it knows this one to be in.
    fn compared(&self, node: NodeId, replies: &mut Replies) {
        let mut members = self.members.write();
        if let Some(view) = members.view(node)
            && !mem::take(&mut view.listed)
            && let Presence::Present { .. } = view.presence
        {
            replies.ask(node, &self.name);
        }
    }
}

impl Rooms {
    fn rooms(&self) -> Vec<Arc<Room>> {
        self.all().into_iter().map(|(room, _)| room).collect()
    }

    /// There is another node: asks it who is where.
    pub(crate) fn up(&self, node: NodeId) {
        let Some(uplink) = &self.uplink else {
            return;
        };
        self.index.lock().nodes.insert(node);
        let mut replies = Replies::default();
        for room in self.rooms() {
            room.up(node);
            replies.ask(node, &room.name);
        }
        replies.say(uplink);
    }

    /// There is no such node any longer: its sessions have gone.
    pub(crate) fn down(&self, node: NodeId) {
        self.index.lock().nodes.remove(&node);
        for room in self.rooms() {
            room.down(node, &mut Unflushed::default());
        }
    }

    /// Hears all rooms again, on another connection.
    pub(crate) fn subscribe(&self) {
        let index = self.index.lock();
        if let Some(uplink) = &self.uplink {
            let mut turn = uplink.turn();
            index.rooms.keys().for_each(|room| turn.subscribe(room));
        }
    }

    /// A node is in a room from now on, without anybody.
    pub(crate) fn entered(
        &self,
        node: NodeId,
        number: u64,
        room: RoomName,
        replies: &mut Replies,
        unflushed: &mut Unflushed,
    ) {
        match self.find(&room) {
            Some(room) => {
                let (last, seen) = (number, 0);
                room.alone(node, Presence::Present { last, seen }, unflushed);
                room.tell_members(node);
            }
            None => replies.absent(node, room),
        }
    }

    /// A node says what has happened in a room.
    pub(crate) fn event(
        &self,
        node: NodeId,
        number: u64,
        said: ToRoom,
        text: &str,
        replies: &mut Replies,
        unflushed: &mut Unflushed,
    ) {
        // It may have been said just before this node left the room.
        if let Some(room) = self.find(&said.room) {
            room.event(node, number, said, text, replies, unflushed);
        }
    }

    /// A node says something to this one.
    pub(crate) fn said(
        &self,
        node: NodeId,
        said: ToNode,
        text: &str,
        replies: &mut Replies,
        unflushed: &mut Unflushed,
    ) {
        match said {
            ToNode::Ask(rooms) => {
                for name in rooms {
                    match self.find(&name) {
                        Some(room) => room.tell_members(node),
                        None => replies.absent(node, name),
                    }
                }
            }
            ToNode::Members(said) => {
                if let Some(room) = self.find(&said.room) {
                    room.members(node, said, replies, unflushed);
                }
            }
            ToNode::Absent(rooms) => {
                for room in rooms.iter().filter_map(|name| self.find(name)) {
                    room.alone(node, Presence::Absent, unflushed);
                }
            }
            ToNode::Seen { room, number } => {
                if let Some(room) = self.find(&room) {
                    room.seen(node, number);
                }
            }
            ToNode::Unicast {
                room,
                sender,
                receiver,
            } => {
                if let Some(room) = self.find(&room) {
                    room.unicast(node, sender, receiver, text, unflushed);
                }
            }
            ToNode::Expel { room, id } => {
                if let Some(room) = self.find(&room) {
                    room.expel(id);
                }
            }
            ToNode::Digest { rooms, more } => {
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

    /// Tells each node where it should be with what this one has said, and asks again who has not
    /// answered.
    pub(crate) fn digest(&self) {
        let Some(uplink) = &self.uplink else {
            return;
        };
        let mut replies = Replies::default();
        let mut digests: BTreeMap<_, _> = {
            let nodes = &self.index.lock().nodes;
            nodes.iter().map(|node| (*node, Vec::new())).collect()
        };
        for room in self.rooms() {
            room.sum_up(&mut digests, &mut replies);
        }
        let mut turn = uplink.turn();
        for (node, digests) in digests {
            let mut chunks = chunks(digests).peekable();
            loop {
                let rooms = chunks.next().unwrap_or_default();
                let more = chunks.peek().is_some();
                let _ = turn.to_node(node, ToNode::Digest { rooms, more }, &[]);
                if !more {
                    break;
                }
            }
        }
        drop(turn);
        replies.say(uplink);
    }
}

/// What a session of another node wrote, encoded once for all who get it here.
fn relayed(text: &str) -> Frame {
    Frame::text(|buffer| buffer.extend_from_slice(text.as_bytes()))
}
