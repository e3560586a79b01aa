//! Rooms, and in each the map of its sessions.
//!
//! A room's lock is never held across a wait, and for little more than pushes; only the roster of a
//! `hello`, and a piece of a list for another node, are also put together under it. Locks are taken in this
//! order: the index, a room's members, the sessions that are sought, the uplink's queue. Joining and leaving happen under it for writing, messages under it for
//! reading: that is what makes `new` the first and `close` the last that anyone gets of a session.
//!
//! A session of another node stands in the same map; what is sent to it is said to its node. How the
//! nodes agree is in `remote`.

use std::{
    collections::{BTreeSet, HashMap},
    num::NonZeroU32,
    sync::{Arc, atomic::Ordering::Relaxed},
};

use nohash_hasher::IntMap;
use parking_lot::{Mutex, RwLock};

use super::{
    location::Location,
    member::Member,
    migration::RecordedEvent,
    replication::RemoteView,
    session_info::{SessionInfo, SessionSnapshot, longest_joined_first},
    snapshot::Snapshots,
    speaker::Speaker,
};
use crate::{
    cluster::{Direct, MAX_NUMBER, NodeId, Outbound, Quota},
    config::Limits,
    outbox::{FlushSet, Sender},
    protocol::{self, Close, Peer, RoomName, SessionId},
    spare_capacity::release_spare_capacity,
    websocket::Frame,
};

/// All rooms that have a session.
pub(crate) struct Rooms {
    pub(super) max_rooms: usize,
    pub(super) max_room_sessions: usize,
    /// How other nodes are spoken to, if there may be any.
    pub(super) outbound: Option<Arc<Outbound>>,
    pub(super) index: Mutex<Index>,
    pub(super) snapshots: Snapshots,
}

#[derive(Default)]
pub(super) struct Index {
    pub(super) rooms: HashMap<RoomName, Entry>,
    /// The other nodes.
    pub(super) nodes: BTreeSet<NodeId>,
}

pub(super) struct Entry {
    room: Arc<Room>,
    /// How many sessions of this node are in the room, on their way in, or on their way out.
    seats: usize,
    /// How many backends speak to the room from here. With the last of both the room goes.
    backends: usize,
}

pub(super) struct Room {
    pub(super) name: RoomName,
    pub(super) members: RwLock<Members>,
}

#[derive(Default)]
pub(super) struct Members {
    pub(super) senders: IntMap<SessionId, Member>,
    /// The highest number of joining so far.
    pub(super) clock: u64,
    /// There if there may be other nodes.
    pub(super) remote: Option<Box<RemoteView>>,
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
pub(crate) struct Reservation {
    pub(super) rooms: Arc<Rooms>,
    pub(super) room: Arc<Room>,
    /// Whether it is a backend's, which is no session.
    pub(super) is_backends: bool,
}

/// A session that is in a room; dropping it is the leaving.
pub(crate) struct JoinGuard {
    pub(super) reservation: Reservation,
    pub(super) id: SessionId,
    /// How many nodes the session had left behind when it came here: it may come again.
    pub(super) moves: u32,
    pub(super) info: Arc<SessionInfo>,
}

impl Rooms {
    /// As many rooms, and sessions in each, as the limits allow.
    pub(crate) fn new(limits: &Limits, outbound: Option<Arc<Outbound>>) -> Rooms {
        let limit =
            |limit: Option<NonZeroU32>| limit.map_or(usize::MAX, |limit| limit.get() as usize);
        Rooms {
            max_rooms: limit(limits.max_rooms),
            max_room_sessions: limit(limits.max_room_sessions),
            outbound,
            index: Mutex::default(),
            snapshots: Snapshots::default(),
        }
    }

    /// Keeps a seat in a room, which exists from its first session to its last.
    ///
    /// # Errors
    ///
    /// What there is too much of already.
    pub(crate) fn reserve(self: &Arc<Rooms>, name: &RoomName) -> Result<Reservation, Full> {
        self.take_seat(name, false)
    }

    /// Lets a backend speak to a room from here. It is no session, and no limit is its.
    pub(crate) fn enter_backend(self: &Arc<Rooms>, name: &RoomName) -> Option<Reservation> {
        self.take_seat(name, true).ok()
    }

    fn take_seat(
        self: &Arc<Rooms>,
        name: &RoomName,
        is_backends: bool,
    ) -> Result<Reservation, Full> {
        let Index { rooms, nodes } = &mut *self.index.lock();
        if !rooms.contains_key(name) {
            if rooms.len() >= self.max_rooms && !is_backends {
                return Err(Full::Rooms);
            }
            let outbound = self.outbound.as_ref();
            let remote =
                outbound.map(|outbound| Box::new(RemoteView::enter(name, outbound, nodes)));
            let room = Arc::new(Room {
                name: name.clone(),
                members: RwLock::new(Members {
                    remote,
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
        Ok(Reservation {
            rooms: self.clone(),
            room: entry.room.clone(),
            is_backends,
        })
    }

    /// Waits in line for room in the uplink, for what can wait and is no client's message. Nobody else in
    /// the line goes on while the outcome lives.
    pub(crate) async fn in_line(&self) -> Option<impl Drop> {
        match &self.outbound {
            Some(outbound) => Some(outbound.in_line().await),
            None => None,
        }
    }

    /// Waits until a session may be handed over, which is done as long as the outcome lives.
    pub(crate) async fn may_hand_over(&self) -> Option<impl Drop> {
        match &self.outbound {
            Some(outbound) => outbound.may_hand_over().await,
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

    pub(super) fn all(&self) -> Vec<(Arc<Room>, usize)> {
        let index = self.index.lock();
        index
            .rooms
            .values()
            .map(|entry| (entry.room.clone(), entry.seats))
            .collect()
    }

    pub(super) fn find(&self, name: &RoomName) -> Option<Arc<Room>> {
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
        let mut flush_set = FlushSet::default();
        Some(match receiver {
            Some(id) => {
                let speaker = Speaker::default();
                usize::from(room.send(speaker, id, frame.clone(), &mut flush_set))
            }
            None => room.broadcast(Speaker::default(), frame, &mut flush_set),
        })
    }

    /// Closes a session, wherever it is.
    pub(crate) fn close(&self, name: &RoomName, session: &SessionSnapshot, close: Close) {
        match (&session.location, &self.outbound) {
            (Location::Local(sender) | Location::Importing(_, sender), _) => sender.close(close),
            (Location::Remote(node) | Location::Migrating(node), Some(outbound)) => {
                let (room, id) = (name.clone(), session.id);
                outbound.batch().notify(*node, Direct::Expel { room, id });
            }
            (Location::Remote(_) | Location::Migrating(_), None) => {}
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
    pub(super) fn snapshots(&self) -> Vec<SessionSnapshot> {
        let members = self.members.read();
        let snapshots = members.senders.iter().map(|(id, member)| {
            let snapshot = SessionSnapshot {
                id: *id,
                location: member.location.clone(),
                info: member.info.clone(),
            };
            (member.joined, snapshot)
        });
        longest_joined_first(snapshots.collect())
    }

    /// Sends to one session; false if there is none of that id that still takes messages.
    fn send(
        &self,
        speaker: Speaker<'_>,
        receiver: SessionId,
        frame: Frame,
        flush_set: &mut FlushSet,
    ) -> bool {
        let members = self.members.read();
        match members
            .senders
            .get(&receiver)
            .map(|member| &member.location)
        {
            Some(Location::Local(outbox)) => outbox.push(frame, flush_set).is_ok(),
            Some(way) => {
                members.introduce(&self.name, speaker.id);
                let remote = members.remote.as_ref();
                remote.is_some_and(|it| it.send(&self.name, way, speaker, receiver, frame).is_ok())
            }
            None => false,
        }
    }

    /// Sends to every session but the sender; returns how many took it.
    fn broadcast(&self, speaker: Speaker<'_>, frame: &Frame, flush_set: &mut FlushSet) -> usize {
        let sender = speaker.id;
        let members = self.members.read();
        let (mut here, mut there) = (0, 0);
        for (id, member) in &members.senders {
            match &member.location {
                Location::Local(_) if Some(*id) == sender => {}
                Location::Local(outbox) => {
                    here += usize::from(outbox.push(frame.clone(), flush_set).is_ok())
                }
                Location::Remote(_) | Location::Migrating(_) | Location::Importing(..) => {
                    there += 1
                }
            }
        }
        match &members.remote {
            Some(remote) if there > 0 => {
                members.introduce(&self.name, speaker.id);
                let said = remote.broadcast(&self.name, speaker, frame.payload());
                remote.record(said, &RecordedEvent::Broadcast(sender, frame.clone()));
                here + said.map_or(0, |_| there)
            }
            _ => here,
        }
    }
}

impl Reservation {
    /// Puts a session into the room and tells the others (`new`).
    pub(crate) fn join(self, id: SessionId, sender: Sender, info: SessionInfo) -> JoinGuard {
        let new = protocol::joined(id, info.public.as_deref());
        let info = Arc::new(info);
        let mut flush_set = FlushSet::default();
        let mut members = self.room.members.write();
        members.push_to_all(&new, &mut flush_set);
        members.clock = (members.clock + 1).min(MAX_NUMBER);
        let member = Member {
            location: Location::Local(sender),
            joined: members.clock,
            moves: 0,
            info: info.clone(),
        };
        members.senders.insert(id, member);
        members.tell_joined(&self.room.name, id, new);
        drop(members);
        drop(flush_set);
        JoinGuard {
            reservation: self,
            id,
            moves: 0,
            info,
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let rooms = &mut self.rooms.index.lock().rooms;
        if let Some(entry) = rooms.get_mut(&self.room.name) {
            match self.is_backends {
                true => entry.backends -= 1,
                false => entry.seats -= 1,
            }
            if entry.seats + entry.backends == 0 {
                rooms.remove(&self.room.name);
                release_spare_capacity(rooms);
                self.room.exit();
            }
        }
    }
}

impl JoinGuard {
    /// What the session, which has this share of the uplink, has to wait for before it says more to other
    /// nodes, if it has to.
    pub(crate) fn has_to_wait(
        &self,
        share: &Arc<Quota>,
    ) -> Option<impl Future<Output = ()> + Send + use<>> {
        let outbound = self.reservation.rooms.outbound.as_ref()?;
        let reaches = || self.reservation.room.reaches_others();
        outbound.holds_up(share, reaches).then(|| {
            let (outbound, share) = (outbound.clone(), share.clone());
            async move { outbound.has_room(&share).await }
        })
    }

    /// The room's name.
    pub(crate) fn room(&self) -> &RoomName {
        &self.reservation.room.name
    }

    /// What is known of the session.
    pub(crate) fn info(&self) -> &SessionInfo {
        &self.info
    }

    /// Counts a message of the session's client.
    pub(crate) fn take_in(&self) {
        // Nobody else counts it.
        let count = self.info.taken_in.load(Relaxed);
        self.info.taken_in.store(count + 1, Relaxed);
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
        flush_set: &mut FlushSet,
    ) -> bool {
        self.reservation
            .room
            .send(speaker, receiver, frame, flush_set)
    }

    /// Sends to every other session of the room; returns how many took it.
    pub(crate) fn broadcast(
        &self,
        speaker: Speaker<'_>,
        frame: &Frame,
        flush_set: &mut FlushSet,
    ) -> usize {
        self.reservation.room.broadcast(speaker, frame, flush_set)
    }

    /// Gives `tell` the others, longest-joined first. Nobody comes or goes meanwhile: what it puts
    /// into the session's outbox is true where it stands among all else that the session gets.
    pub(crate) fn with_roster<T>(&self, tell: impl FnOnce(&[Peer]) -> T) -> T {
        let members = self.reservation.room.members.read();
        let others = members.senders.iter().filter(|(id, _)| **id != self.id);
        let mut others: Vec<(u64, Peer<'_>)> = others
            .map(|(id, member)| {
                let data = member.info.public.as_deref();
                (member.joined, Peer { id: *id, data })
            })
            .collect();
        others.sort_unstable_by_key(|(joined, peer)| (*joined, peer.id));
        let peers: Vec<Peer<'_>> = others.into_iter().map(|(_, peer)| peer).collect();
        tell(&peers)
    }
}

impl Drop for JoinGuard {
    fn drop(&mut self) {
        let close = protocol::left(self.id);
        let mut flush_set = FlushSet::default();
        let room = &self.reservation.room;
        let mut members = room.members.write();
        match members.senders.get(&self.id) {
            Some(member) if member.location.is_own() && member.moves == self.moves => {}
            // It has gone to another node, and may even be back.
            _ => {
                if let Some(remote) = &mut members.remote {
                    remote.migrations.gone(self.id, self.moves);
                }
                return;
            }
        }
        members.senders.remove(&self.id);
        release_spare_capacity(&mut members.senders);
        members.push_to_all(&close, &mut flush_set);
        members.tell_left(&room.name, self.id, close);
        drop(members);
        drop(flush_set);
    }
}

impl Members {
    /// The sessions of this node.
    pub(super) fn here(&self) -> impl Iterator<Item = (SessionId, &Sender)> {
        self.senders
            .iter()
            .filter_map(|(id, member)| match &member.location {
                Location::Local(sender) => Some((*id, sender)),
                _ => None,
            })
    }

    pub(super) fn push_to_all(&self, frame: &Frame, flush_set: &mut FlushSet) {
        for (_, sender) in self.here() {
            // Who takes no more is leaving, and needs no news.
            let _ = sender.push(frame.clone(), flush_set);
        }
    }
}
