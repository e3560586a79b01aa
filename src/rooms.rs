//! Rooms, and in each the map of its sessions.
//!
//! A room's lock is never held across a wait, and for little more than pushes; only a roster is also
//! put together under it. Joining and leaving happen under it for writing, messages under it for
//! reading: that is what makes `new` the first and `close` the last that anyone gets of a session.

use std::{
    collections::HashMap,
    hash::{BuildHasher, Hash},
    sync::Arc,
};

use nohash_hasher::IntMap;
use parking_lot::{Mutex, RwLock};

use crate::{
    outbox::{Sender, Unflushed},
    protocol::{self, Peer, RoomName, SessionId},
    websocket::Frame,
};

/// A map keeps this many free places however few it holds.
const SPARE_PLACES: usize = 32;

/// All rooms that have a session.
#[derive(Default)]
pub(crate) struct Rooms {
    rooms: Mutex<HashMap<RoomName, Entry>>,
}

struct Entry {
    room: Arc<Room>,
    /// How many sessions are in the room, on their way in, or on their way out. With the last the
    /// room goes.
    sessions: usize,
}

struct Room {
    name: RoomName,
    members: RwLock<Members>,
}

#[derive(Default)]
struct Members {
    senders: IntMap<SessionId, Member>,
    /// How many have joined so far.
    joined: u64,
}

struct Member {
    sender: Sender,
    /// Its number in the order of joining.
    joined: u64,
}

/// A session that is in a room; dropping it is the leaving.
pub(crate) struct Membership {
    rooms: Arc<Rooms>,
    room: Arc<Room>,
    id: SessionId,
}

impl Rooms {
    /// Puts a session into a room, which exists from its first session to its last, and tells the
    /// others (`new`).
    pub(crate) fn join(
        self: &Arc<Rooms>,
        name: RoomName,
        id: SessionId,
        sender: Sender,
    ) -> Membership {
        let room = {
            let mut rooms = self.rooms.lock();
            let entry = rooms.entry(name).or_insert_with_key(|name| Entry {
                room: Arc::new(Room {
                    name: name.clone(),
                    members: RwLock::default(),
                }),
                sessions: 0,
            });
            entry.sessions += 1;
            entry.room.clone()
        };
        let new = protocol::joined(id);
        let mut members = room.members.write();
        let unflushed = members.push_to_all(&new);
        members.joined += 1;
        let joined = members.joined;
        members.senders.insert(id, Member { sender, joined });
        drop(members);
        drop(unflushed);
        Membership {
            rooms: self.clone(),
            room,
            id,
        }
    }

    /// The senders of all sessions.
    pub(crate) fn senders(&self) -> Vec<Sender> {
        let rooms: Vec<Arc<Room>> = self
            .rooms
            .lock()
            .values()
            .map(|entry| entry.room.clone())
            .collect();
        let senders = |room: &Arc<Room>| -> Vec<Sender> {
            room.members
                .read()
                .senders
                .values()
                .map(|member| member.sender.clone())
                .collect()
        };
        rooms.iter().flat_map(senders).collect()
    }

    /// How many rooms there are.
    pub(crate) fn len(&self) -> usize {
        self.rooms.lock().len()
    }

    /// How many sessions there are, in all rooms.
    pub(crate) fn sessions(&self) -> usize {
        self.rooms.lock().values().map(|entry| entry.sessions).sum()
    }
}

impl Membership {
    /// The room's name.
    pub(crate) fn room(&self) -> &RoomName {
        &self.room.name
    }

    /// The session's id.
    pub(crate) fn id(&self) -> SessionId {
        self.id
    }

    /// Sends to one session of the room; false if there is none of that id that still takes
    /// messages.
    pub(crate) fn send(
        &self,
        receiver: SessionId,
        frame: Frame,
        unflushed: &mut Unflushed,
    ) -> bool {
        let members = self.room.members.read();
        members
            .senders
            .get(&receiver)
            .is_some_and(|member| member.sender.push(frame, unflushed).is_ok())
    }

    /// Sends to every other session of the room; returns how many took it.
    pub(crate) fn broadcast(&self, frame: &Frame, unflushed: &mut Unflushed) -> usize {
        let members = self.room.members.read();
        let others = members.senders.iter().filter(|(id, _)| **id != self.id);
        others
            .filter(|(_, member)| member.sender.push(frame.clone(), unflushed).is_ok())
            .count()
    }

    /// Gives `tell` the others, longest-joined first. Nobody comes or goes meanwhile: what it puts
    /// into the session's outbox is true where it stands among all else that the session gets.
    pub(crate) fn with_roster(&self, tell: impl FnOnce(&[Peer])) {
        let members = self.room.members.read();
        let others = members.senders.iter().filter(|(id, _)| **id != self.id);
        let mut others: Vec<(u64, SessionId)> =
            others.map(|(id, member)| (member.joined, *id)).collect();
        others.sort_unstable();
        let peers: Vec<Peer> = others
            .into_iter()
            .map(|(_, id)| Peer { id, data: () })
            .collect();
        tell(&peers);
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        let close = protocol::left(self.id);
        let mut members = self.room.members.write();
        members.senders.remove(&self.id);
        release_spare(&mut members.senders);
        let unflushed = members.push_to_all(&close);
        drop(members);
        drop(unflushed);

        let mut rooms = self.rooms.rooms.lock();
        if let Some(entry) = rooms.get_mut(&self.room.name) {
            entry.sessions -= 1;
            if entry.sessions == 0 {
                rooms.remove(&self.room.name);
                release_spare(&mut rooms);
            }
        }
    }
}

impl Members {
    fn push_to_all(&self, frame: &Frame) -> Unflushed {
        let mut unflushed = Unflushed::default();
        for member in self.senders.values() {
            // Who takes no more is leaving, and needs no news.
            let _ = member.sender.push(frame.clone(), &mut unflushed);
        }
        unflushed
    }
}

/// Gives back what a map that was once full no longer needs.
pub(crate) fn release_spare<K: Eq + Hash, V, S: BuildHasher>(map: &mut HashMap<K, V, S>) {
    if map.capacity() > 4 * map.len() + SPARE_PLACES {
        map.shrink_to(2 * map.len());
    }
}
