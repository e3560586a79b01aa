//! Rooms, and in each the map of its sessions.
//!
//! A room's lock is never held across a wait, and for little more than pushes; only a roster is also
//! put together under it. Joining and leaving happen under it for writing, messages under it for
//! reading: that is what makes `new` the first and `close` the last that anyone gets of a session.

use std::{
    collections::HashMap,
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

use crate::{
    Config,
    outbox::{Sender, Unflushed},
    protocol::{self, Peer, RoomName, SessionId},
    websocket::Frame,
};

/// A map keeps this many free places however few it holds.
const SPARE_PLACES: usize = 32;

/// All rooms that have a session.
pub(crate) struct Rooms {
    max_rooms: usize,
    max_room_sessions: usize,
    rooms: Mutex<HashMap<RoomName, Entry>>,
}

struct Entry {
    room: Arc<Room>,
    /// How many sessions are in the room, on their way in, or on their way out. With the last the
    /// room goes.
    seats: usize,
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
    guest: Arc<Guest>,
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
}

/// A session that is in a room; dropping it is the leaving.
pub(crate) struct Membership {
    seat: Seat,
    id: SessionId,
    guest: Arc<Guest>,
}

/// A session as an operator sees it.
pub(crate) struct Glimpse {
    pub(crate) id: SessionId,
    pub(crate) sender: Sender,
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
}

impl Rooms {
    /// As many rooms, and sessions in each, as the configuration allows.
    pub(crate) fn new(config: &Config) -> Rooms {
        let limit =
            |limit: Option<NonZeroU32>| limit.map_or(usize::MAX, |limit| limit.get() as usize);
        Rooms {
            max_rooms: limit(config.max_rooms),
            max_room_sessions: limit(config.max_room_sessions),
            rooms: Mutex::default(),
        }
    }

    /// Keeps a seat in a room, which exists from its first session to its last.
    ///
    /// # Errors
    ///
    /// What there is too much of already.
    pub(crate) fn reserve(self: &Arc<Rooms>, name: &RoomName) -> Result<Seat, Full> {
        let mut rooms = self.rooms.lock();
        if !rooms.contains_key(name) {
            if rooms.len() >= self.max_rooms {
                return Err(Full::Rooms);
            }
            let room = Arc::new(Room {
                name: name.clone(),
                members: RwLock::default(),
            });
            rooms.insert(name.clone(), Entry { room, seats: 0 });
        }
        let entry = rooms.get_mut(name).expect("it has just been seen to");
        if entry.seats >= self.max_room_sessions {
            return Err(Full::Room);
        }
        entry.seats += 1;
        Ok(Seat {
            rooms: self.clone(),
            room: entry.room.clone(),
        })
    }

    /// The senders of all sessions.
    pub(crate) fn senders(&self) -> Vec<Sender> {
        let senders = |room: &Room| -> Vec<Sender> {
            let members = room.members.read();
            members
                .senders
                .values()
                .map(|member| member.sender.clone())
                .collect()
        };
        self.all()
            .iter()
            .flat_map(|(room, _)| senders(room))
            .collect()
    }

    /// The name of each room, and how many sessions are in it.
    pub(crate) fn list(&self) -> Vec<(RoomName, usize)> {
        let name = |(room, seats): (Arc<Room>, usize)| (room.name.clone(), seats);
        self.all().into_iter().map(name).collect()
    }

    fn all(&self) -> Vec<(Arc<Room>, usize)> {
        let rooms = self.rooms.lock();
        rooms
            .values()
            .map(|entry| (entry.room.clone(), entry.seats))
            .collect()
    }

    fn find(&self, name: &RoomName) -> Option<Arc<Room>> {
        Some(self.rooms.lock().get(name)?.room.clone())
    }

    /// Sends to one session of a room, or to all, what no session says; returns to how many, `None`
    /// if there is no such room.
    pub(crate) fn announce(
        &self,
        name: &RoomName,
        receiver: Option<SessionId>,
        frame: &Frame,
    ) -> Option<usize> {
        let room = self.find(name)?;
        let mut unflushed = Unflushed::default();
        let receivers = match receiver {
            Some(id) => usize::from(room.send(id, frame.clone(), &mut unflushed)),
            None => room.broadcast(frame, None, &mut unflushed),
        };
        unflushed.flush();
        Some(receivers)
    }

    /// The sessions of a room, longest-joined first; `None` if there is no such room.
    pub(crate) fn look_into(&self, name: &RoomName) -> Option<Vec<Glimpse>> {
        let room = self.find(name)?;
        let members = room.members.read();
        let mut glimpses: Vec<(u64, Glimpse)> = members
            .senders
            .iter()
            .map(|(id, member)| {
                let glimpse = Glimpse {
                    id: *id,
                    sender: member.sender.clone(),
                    guest: member.guest.clone(),
                };
                (member.joined, glimpse)
            })
            .collect();
        glimpses.sort_unstable_by_key(|(joined, _)| *joined);
        Some(glimpses.into_iter().map(|(_, glimpse)| glimpse).collect())
    }

    /// How many rooms there are.
    pub(crate) fn len(&self) -> usize {
        self.rooms.lock().len()
    }

    /// How many sessions there are, in all rooms.
    pub(crate) fn sessions(&self) -> usize {
        self.rooms.lock().values().map(|entry| entry.seats).sum()
    }
}

impl Room {
    /// Sends to one session; false if there is none of that id that still takes messages.
    fn send(&self, receiver: SessionId, frame: Frame, unflushed: &mut Unflushed) -> bool {
        let members = self.members.read();
        let member = members.senders.get(&receiver);
        member.is_some_and(|member| member.sender.push(frame, unflushed).is_ok())
    }

    /// Sends to every session but one; returns how many took it.
    fn broadcast(
        &self,
        frame: &Frame,
        except: Option<SessionId>,
        unflushed: &mut Unflushed,
    ) -> usize {
        let members = self.members.read();
        let others = members
            .senders
            .iter()
            .filter(|(id, _)| Some(**id) != except);
        others
            .filter(|(_, member)| member.sender.push(frame.clone(), unflushed).is_ok())
            .count()
    }
}

impl Seat {
    /// Puts a session into the room and tells the others (`new`).
    pub(crate) fn join(self, id: SessionId, sender: Sender, guest: Guest) -> Membership {
        let new = protocol::joined(id, guest.public.as_deref());
        let guest = Arc::new(guest);
        let mut members = self.room.members.write();
        let unflushed = members.push_to_all(&new);
        members.joined += 1;
        let member = Member {
            sender,
            joined: members.joined,
            guest: guest.clone(),
        };
        members.senders.insert(id, member);
        drop(members);
        drop(unflushed);
        Membership {
            seat: self,
            id,
            guest,
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut rooms = self.rooms.rooms.lock();
        if let Some(entry) = rooms.get_mut(&self.room.name) {
            entry.seats -= 1;
            if entry.seats == 0 {
                rooms.remove(&self.room.name);
                release_spare(&mut rooms);
            }
        }
    }
}

impl Membership {
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
        receiver: SessionId,
        frame: Frame,
        unflushed: &mut Unflushed,
    ) -> bool {
        self.seat.room.send(receiver, frame, unflushed)
    }

    /// Sends to every other session of the room; returns how many took it.
    pub(crate) fn broadcast(&self, frame: &Frame, unflushed: &mut Unflushed) -> usize {
        self.seat.room.broadcast(frame, Some(self.id), unflushed)
    }

    /// Gives `tell` the others, longest-joined first. Nobody comes or goes meanwhile: what it puts
    /// into the session's outbox is true where it stands among all else that the session gets.
    pub(crate) fn with_roster(&self, tell: impl FnOnce(&[Peer])) {
        let members = self.seat.room.members.read();
        let others = members.senders.iter().filter(|(id, _)| **id != self.id);
        let mut others: Vec<(u64, Peer<'_>)> = others
            .map(|(id, member)| {
                let data = member.guest.public.as_deref();
                (member.joined, Peer { id: *id, data })
            })
            .collect();
        others.sort_unstable_by_key(|(joined, _)| *joined);
        let peers: Vec<Peer<'_>> = others.into_iter().map(|(_, peer)| peer).collect();
        tell(&peers);
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        let close = protocol::left(self.id);
        let mut members = self.seat.room.members.write();
        members.senders.remove(&self.id);
        release_spare(&mut members.senders);
        let unflushed = members.push_to_all(&close);
        drop(members);
        drop(unflushed);
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
