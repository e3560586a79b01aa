//! Rooms, and in each the map of its sessions.
//!
//! A room's lock is never held across a wait, and for little more than pushes; only the roster of a
//! `hello`, and a piece of a list for another node, are also put together under it. Locks are taken in this
//! order: the index, a room's members, the sessions that are sought, the uplink's queue. Joining and leaving happen under it for writing, messages under it for
//! reading: that is what makes `new` the first and `close` the last that anyone gets of a session.
//!
//! A session of another node stands in the same map; what is sent to it is said to its node. How the
//! nodes agree is in `elsewhere`.

mod elsewhere;
mod handover;
mod roster;

use std::{
    collections::{BTreeSet, HashMap},
    hash::{BuildHasher, Hash},
    net::IpAddr,
    num::NonZeroU32,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::SystemTime,
};

use nohash_hasher::IntMap;
use parking_lot::{Mutex, RwLock};
use serde_json::value::RawValue;

use self::{elsewhere::Elsewhere, handover::Said, roster::Rosters};
pub(crate) use self::{elsewhere::Replies, handover::Sought, roster::Busy};
use crate::{
    Config,
    cluster::{MAX_NUMBER, NodeId, Share, ToNode, Uplink},
    outbox::{Sender, Unflushed},
    protocol::{self, Close, Peer, RoomName, SessionId},
    websocket::Frame,
};

/// A map keeps this many free places however few it holds.
const SPARE_PLACES: usize = 32;

/// All rooms that have a session.
pub(crate) struct Rooms {
    max_rooms: usize,
    max_room_sessions: usize,
    /// How other nodes are spoken to, if there may be any.
    uplink: Option<Arc<Uplink>>,
    index: Mutex<Index>,
    rosters: Rosters,
}

#[derive(Default)]
struct Index {
    rooms: HashMap<RoomName, Entry>,
    /// The other nodes.
    nodes: BTreeSet<NodeId>,
}

struct Entry {
    room: Arc<Room>,
    /// How many sessions of this node are in the room, on their way in, or on their way out.
    seats: usize,
    /// How many backends speak to the room from here. With the last of both the room goes.
    backends: usize,
}

struct Room {
    name: RoomName,
    members: RwLock<Members>,
}

#[derive(Default)]
struct Members {
    senders: IntMap<SessionId, Member>,
    /// The highest number of joining so far.
    clock: u64,
    /// There if there may be other nodes.
    elsewhere: Option<Box<Elsewhere>>,
}

struct Member {
    way: Way,
    /// Its number in the order of joining; of two that have the same, the smaller id was first.
    joined: u64,
    /// How many nodes it has left behind.
    moves: u32,
    guest: Arc<Guest>,
}

/// How a session is reached.
#[derive(Clone)]
pub(crate) enum Way {
    Here(Sender),
    There(NodeId),
    /// It is on its way to this node, and sought under this mark; what is sent to it is kept.
    Arriving(u64, Sender),
    /// It is on its way to this other node; what is sent to it is forwarded.
    Going(NodeId),
}

impl Way {
    /// Whether this node is who tells of the session.
    fn is_own(&self) -> bool {
        !matches!(self, Way::There(_))
    }

    /// Its outbox, if it is of this node.
    pub(crate) fn outbox(&self) -> Option<&Sender> {
        match self {
            Way::Here(outbox) | Way::Arriving(_, outbox) => Some(outbox),
            Way::There(_) | Way::Going(_) => None,
        }
    }
}

/// What is known of a session.
pub(crate) struct Guest {
    /// What the others are told of it.
    pub(crate) public: Option<Box<RawValue>>,
    /// Where its connection comes from.
    pub(crate) address: Mutex<Option<IpAddr>>,
    /// When it joined.
    pub(crate) since: SystemTime,
    /// How many of its client's messages have been taken in.
    pub(crate) taken_in: AtomicU64,
}

/// Why there is no seat for another session.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Full {
    /// There are as many rooms as there may be, and this would be another.
    Rooms,
    /// There are as many sessions in the room as there may be.
    Room,
}

/// Room for a session in a room. Dropping it gives it back, and with the last the room goes.
pub(crate) struct Seat {
    rooms: Arc<Rooms>,
    room: Arc<Room>,
    /// Whether it is a backend's, which is no session.
    is_backends: bool,
}

/// Who says something. The default is a backend, which speaks in the server's name.
#[derive(Clone, Copy, Default)]
pub(crate) struct Speaker<'a> {
    /// The session, if it is one.
    id: Option<SessionId>,
    share: Option<&'a Arc<Share>>,
    /// The client's mark for the message.
    reference: Option<&'a RawValue>,
}

/// A session that is in a room; dropping it is the leaving.
pub(crate) struct Membership {
    seat: Seat,
    id: SessionId,
    /// How many nodes the session had left behind when it came here: it may come again.
    moves: u32,
    guest: Arc<Guest>,
}

/// A session as an operator sees it.
#[derive(Clone)]
pub(crate) struct Glimpse {
    pub(crate) id: SessionId,
    pub(crate) way: Way,
    pub(crate) guest: Arc<Guest>,
}

impl Guest {
    /// Somebody who joins now.
    pub(crate) fn new(public: Option<Box<RawValue>>, address: Option<IpAddr>) -> Guest {
        Guest {
            public,
            address: Mutex::new(address),
            since: SystemTime::now(),
            taken_in: AtomicU64::new(0),
        }
    }

    /// A session of another node.
    fn elsewhere(public: Option<Box<RawValue>>, since: SystemTime) -> Guest {
        Guest {
            since,
            ..Guest::new(public, None)
        }
    }
}

impl<'a> Speaker<'a> {
    /// A session, with its share of the uplink, and its client's mark for what it says.
    pub(crate) fn session(
        id: SessionId,
        share: Option<&'a Arc<Share>>,
        reference: Option<&'a RawValue>,
    ) -> Speaker<'a> {
        Speaker {
            id: Some(id),
            share,
            reference,
        }
    }
}

impl Rooms {
    /// As many rooms, and sessions in each, as the configuration allows.
    pub(crate) fn new(config: &Config, uplink: Option<Arc<Uplink>>) -> Rooms {
        let limit =
            |limit: Option<NonZeroU32>| limit.map_or(usize::MAX, |limit| limit.get() as usize);
        Rooms {
            max_rooms: limit(config.max_rooms),
            max_room_sessions: limit(config.max_room_sessions),
            uplink,
            index: Mutex::default(),
            rosters: Rosters::default(),
        }
    }

    /// Keeps a seat in a room, which exists from its first session to its last.
    ///
    /// # Errors
    ///
    /// What there is too much of already.
    pub(crate) fn reserve(self: &Arc<Rooms>, name: &RoomName) -> Result<Seat, Full> {
        self.take_seat(name, false)
    }

    /// Lets a backend speak to a room from here. It is no session, and no limit is its.
    pub(crate) fn enter_backend(self: &Arc<Rooms>, name: &RoomName) -> Option<Seat> {
        self.take_seat(name, true).ok()
    }

    fn take_seat(self: &Arc<Rooms>, name: &RoomName, is_backends: bool) -> Result<Seat, Full> {
        let Index { rooms, nodes } = &mut *self.index.lock();
        if !rooms.contains_key(name) {
            if rooms.len() >= self.max_rooms && !is_backends {
                return Err(Full::Rooms);
            }
            let uplink = self.uplink.as_ref();
            let elsewhere = uplink.map(|uplink| Box::new(Elsewhere::enter(name, uplink, nodes)));
            let room = Arc::new(Room {
                name: name.clone(),
                members: RwLock::new(Members {
                    elsewhere,
                    ..Members::default()
                }),
            });
            let entry = Entry {
                room,
                seats: 0,
                backends: 0,
            };
            rooms.insert(name.clone(), entry);
        }
        let entry = rooms.get_mut(name).expect("it has just been seen to");
        match is_backends {
            true => entry.backends += 1,
            false if entry.seats >= self.max_room_sessions => return Err(Full::Room),
            false => entry.seats += 1,
        }
        Ok(Seat {
            rooms: self.clone(),
            room: entry.room.clone(),
            is_backends,
        })
    }

    /// Waits in line for room in the uplink, for what can wait and is no client's message. Nobody else in
    /// the line goes on while the outcome lives.
    pub(crate) async fn in_line(&self) -> Option<impl Drop> {
        match &self.uplink {
            Some(uplink) => Some(uplink.in_line().await),
            None => None,
        }
    }

    /// Waits until a session may be handed over, which is done as long as the outcome lives.
    pub(crate) async fn may_hand_over(&self) -> Option<impl Drop> {
        match &self.uplink {
            Some(uplink) => uplink.may_hand_over().await,
            None => None,
        }
    }

    /// The senders of all sessions of this node.
    pub(crate) fn senders(&self) -> Vec<Sender> {
        let senders = |room: &Room| -> Vec<Sender> {
            let members = room.members.read();
            members.here().map(|(_, sender)| sender.clone()).collect()
        };
        self.all()
            .iter()
            .flat_map(|(room, _)| senders(room))
            .collect()
    }

    /// The name of each room that a session of this node is in, and how many are.
    pub(crate) fn list(&self) -> Vec<(RoomName, usize)> {
        let name = |(room, seats): (Arc<Room>, usize)| (room.name.clone(), seats);
        let rooms = self.all().into_iter().filter(|(_, seats)| *seats > 0);
        rooms.map(name).collect()
    }

    fn all(&self) -> Vec<(Arc<Room>, usize)> {
        let index = self.index.lock();
        index
            .rooms
            .values()
            .map(|entry| (entry.room.clone(), entry.seats))
            .collect()
    }

    fn find(&self, name: &RoomName) -> Option<Arc<Room>> {
        Some(self.index.lock().rooms.get(name)?.room.clone())
    }

    /// Sends to one session of a room, or to all, what no session says; returns to how many, `None`
    /// if nobody is there.
    pub(crate) fn announce(
        &self,
        name: &RoomName,
        receiver: Option<SessionId>,
        frame: &Frame,
    ) -> Option<usize> {
        let room = self.find(name)?;
        if room.members.read().senders.is_empty() {
            return None;
        }
        let mut unflushed = Unflushed::default();
        Some(match receiver {
            Some(id) => {
                let speaker = Speaker::default();
                usize::from(room.send(speaker, id, frame.clone(), &mut unflushed))
            }
            None => room.broadcast(Speaker::default(), frame, &mut unflushed),
        })
    }

    /// Closes a session, wherever it is.
    pub(crate) fn close(&self, name: &RoomName, session: &Glimpse, close: Close) {
        match (&session.way, &self.uplink) {
            (Way::Here(sender) | Way::Arriving(_, sender), _) => sender.close(close),
            (Way::There(node) | Way::Going(node), Some(uplink)) => {
                let (room, id) = (name.clone(), session.id);
                uplink.turn().notify(*node, ToNode::Expel { room, id });
            }
            (Way::There(_) | Way::Going(_), None) => {}
        }
    }

    /// How many rooms there are.
    pub(crate) fn len(&self) -> usize {
        self.index.lock().rooms.len()
    }

    /// How many sessions of this node there are, in all rooms.
    pub(crate) fn sessions(&self) -> usize {
        let index = self.index.lock();
        index.rooms.values().map(|entry| entry.seats).sum()
    }
}

impl Room {
    /// Its sessions, longest-joined first.
    fn glimpses(&self) -> Vec<Glimpse> {
        let members = self.members.read();
        let glimpses = members.senders.iter().map(|(id, member)| {
            let glimpse = Glimpse {
                id: *id,
                way: member.way.clone(),
                guest: member.guest.clone(),
            };
            (member.joined, glimpse)
        });
        longest_joined_first(glimpses.collect())
    }

    /// Sends to one session; false if there is none of that id that still takes messages.
    fn send(
        &self,
        speaker: Speaker<'_>,
        receiver: SessionId,
        frame: Frame,
        unflushed: &mut Unflushed,
    ) -> bool {
        let members = self.members.read();
        match members.senders.get(&receiver).map(|member| &member.way) {
            Some(Way::Here(outbox)) => outbox.push(frame, unflushed).is_ok(),
            Some(way) => {
                members.introduce(&self.name, speaker.id);
                let elsewhere = members.elsewhere.as_ref();
                elsewhere
                    .is_some_and(|it| it.send(&self.name, way, speaker, receiver, frame).is_ok())
            }
            None => false,
        }
    }

    /// Sends to every session but the sender; returns how many took it.
    fn broadcast(&self, speaker: Speaker<'_>, frame: &Frame, unflushed: &mut Unflushed) -> usize {
        let sender = speaker.id;
        let members = self.members.read();
        let (mut here, mut there) = (0, 0);
        for (id, member) in &members.senders {
            match &member.way {
                Way::Here(_) if Some(*id) == sender => {}
                Way::Here(outbox) => {
                    here += usize::from(outbox.push(frame.clone(), unflushed).is_ok())
                }
                Way::There(_) | Way::Going(_) | Way::Arriving(..) => there += 1,
            }
        }
        match &members.elsewhere {
            Some(elsewhere) if there > 0 => {
                members.introduce(&self.name, speaker.id);
                let said = elsewhere.broadcast(&self.name, speaker, frame.payload());
                elsewhere.record(said, &Said::ToAll(sender, frame.clone()));
                here + said.map_or(0, |_| there)
            }
            _ => here,
        }
    }
}

impl Seat {
    /// Puts a session into the room and tells the others (`new`).
    pub(crate) fn join(self, id: SessionId, sender: Sender, guest: Guest) -> Membership {
        let new = protocol::joined(id, guest.public.as_deref());
        let guest = Arc::new(guest);
        let mut unflushed = Unflushed::default();
        let mut members = self.room.members.write();
        members.push_to_all(&new, &mut unflushed);
        members.clock = (members.clock + 1).min(MAX_NUMBER);
        let member = Member {
            way: Way::Here(sender),
            joined: members.clock,
            moves: 0,
            guest: guest.clone(),
        };
        members.senders.insert(id, member);
        members.tell_joined(&self.room.name, id, new);
        drop(members);
        drop(unflushed);
        Membership {
            seat: self,
            id,
            moves: 0,
            guest,
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let rooms = &mut self.rooms.index.lock().rooms;
        if let Some(entry) = rooms.get_mut(&self.room.name) {
            match self.is_backends {
                true => entry.backends -= 1,
                false => entry.seats -= 1,
            }
            if entry.seats + entry.backends == 0 {
                rooms.remove(&self.room.name);
                release_spare(rooms);
                self.room.exit();
            }
        }
    }
}

impl Membership {
    /// What the session, which has this share of the uplink, has to wait for before it says more to other
    /// nodes, if it has to.
    pub(crate) fn has_to_wait(
        &self,
        share: &Arc<Share>,
    ) -> Option<impl Future<Output = ()> + Send + use<>> {
        let uplink = self.seat.rooms.uplink.as_ref()?;
        let reaches = || self.seat.room.reaches_others();
        uplink.holds_up(share, reaches).then(|| {
            let (uplink, share) = (uplink.clone(), share.clone());
            async move { uplink.has_room(&share).await }
        })
    }

    /// The room's name.
    pub(crate) fn room(&self) -> &RoomName {
        &self.seat.room.name
    }

    /// What is known of the session.
    pub(crate) fn guest(&self) -> &Guest {
        &self.guest
    }

    /// Counts a message of the session's client.
    pub(crate) fn take_in(&self) {
        // Nobody else counts it.
        let count = self.guest.taken_in.load(Relaxed);
        self.guest.taken_in.store(count + 1, Relaxed);
    }

    /// The session's id.
    pub(crate) fn id(&self) -> SessionId {
        self.id
    }

    /// Sends to one session of the room; false if there is none of that id that still takes
    /// messages.
    pub(crate) fn send(
        &self,
        speaker: Speaker<'_>,
        receiver: SessionId,
        frame: Frame,
        unflushed: &mut Unflushed,
    ) -> bool {
        self.seat.room.send(speaker, receiver, frame, unflushed)
    }

    /// Sends to every other session of the room; returns how many took it.
    pub(crate) fn broadcast(
        &self,
        speaker: Speaker<'_>,
        frame: &Frame,
        unflushed: &mut Unflushed,
    ) -> usize {
        self.seat.room.broadcast(speaker, frame, unflushed)
    }

    /// Gives `tell` the others, longest-joined first. Nobody comes or goes meanwhile: what it puts
    /// into the session's outbox is true where it stands among all else that the session gets.
    pub(crate) fn with_roster<T>(&self, tell: impl FnOnce(&[Peer]) -> T) -> T {
        let members = self.seat.room.members.read();
        let others = members.senders.iter().filter(|(id, _)| **id != self.id);
        let mut others: Vec<(u64, Peer<'_>)> = others
            .map(|(id, member)| {
                let data = member.guest.public.as_deref();
                (member.joined, Peer { id: *id, data })
            })
            .collect();
        others.sort_unstable_by_key(|(joined, peer)| (*joined, peer.id));
        let peers: Vec<Peer<'_>> = others.into_iter().map(|(_, peer)| peer).collect();
        tell(&peers)
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        let close = protocol::left(self.id);
        let mut unflushed = Unflushed::default();
        let room = &self.seat.room;
        let mut members = room.members.write();
        match members.senders.get(&self.id) {
            Some(member) if member.way.is_own() && member.moves == self.moves => {}
            // It has gone to another node, and may even be back.
            _ => {
                if let Some(elsewhere) = &mut members.elsewhere {
                    elsewhere.handovers.gone(self.id, self.moves);
                }
                return;
            }
        }
        members.senders.remove(&self.id);
        release_spare(&mut members.senders);
        members.push_to_all(&close, &mut unflushed);
        members.tell_left(&room.name, self.id, close);
        drop(members);
        drop(unflushed);
    }
}

impl Members {
    /// The sessions of this node.
    fn here(&self) -> impl Iterator<Item = (SessionId, &Sender)> {
        self.senders
            .iter()
            .filter_map(|(id, member)| match &member.way {
                Way::Here(sender) => Some((*id, sender)),
                _ => None,
            })
    }

    fn push_to_all(&self, frame: &Frame, unflushed: &mut Unflushed) {
        for (_, sender) in self.here() {
            // Who takes no more is leaving, and needs no news.
            let _ = sender.push(frame.clone(), unflushed);
        }
    }
}

/// Sorts sessions by their numbers of joining.
fn longest_joined_first(mut glimpses: Vec<(u64, Glimpse)>) -> Vec<Glimpse> {
    glimpses.sort_unstable_by_key(|(joined, glimpse)| (*joined, glimpse.id));
    glimpses.into_iter().map(|(_, glimpse)| glimpse).collect()
}

/// Gives back what a map that was once full no longer needs.
pub(crate) fn release_spare<K: Eq + Hash, V, S: BuildHasher>(map: &mut HashMap<K, V, S>) {
    if map.capacity() > 4 * map.len() + SPARE_PLACES {
        map.shrink_to(2 * map.len());
    }
}
