//! Reserved places in rooms, for sessions that are about to join.

use std::{sync::Arc, time::Duration};

use super::{
    index::{Index, Rooms},
    room::Room,
};
use crate::{
    protocol::{RoomName, TokenHash},
    spare_capacity::release_spare_capacity,
};

/// A reserved place in a room. Dropping it gives the place back, and the last one removes the room.
pub(crate) struct Reservation {
    pub(super) rooms: Arc<Rooms>,
    pub(super) room: Arc<Room>,
    /// Whether the place is a backend's, which is not a session.
    is_backend: bool,
}

/// Why a place cannot be reserved.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Full {
    /// The server has as many rooms as it may have, and this would be another.
    Rooms,
    /// The room has as many sessions as it may have.
    Room,
}

impl Rooms {
    /// Reserves a place for a session in a room, which is created if it does not exist.
    ///
    /// # Errors
    ///
    /// Which limit is reached.
    pub(crate) fn reserve(self: &Arc<Rooms>, name: &RoomName) -> Result<Reservation, Full> {
        if name.is_nowhere() {
            // A room of its own, which is not in the index.
            return Ok(Reservation {
                rooms: self.clone(),
                room: Arc::new(Room::new(name.clone(), None, None)),
                is_backend: false,
            });
        }
        let mut index = self.index.lock();
        if index.rooms.len() >= self.max_rooms && !index.rooms.contains_key(name) {
            return Err(Full::Rooms);
        }
        let holders = index.rooms.get(name);
        if holders.is_some_and(|holders| holders.sessions as usize >= self.max_room_sessions) {
            return Err(Full::Room);
        }
        Ok(self.add(&mut index, name, false))
    }

    /// Reserves a place for a session from before a restart, or for the successor of one. Limits do not apply.
    pub(crate) fn reserve_again(self: &Arc<Rooms>, name: &RoomName) -> Reservation {
        self.add(&mut self.index.lock(), name, false)
    }

    /// Keeps a room for a backend that sends to it. Limits of rooms and sessions do not apply.
    pub(crate) fn reserve_for_backend(self: &Arc<Rooms>, name: &RoomName) -> Reservation {
        self.add(&mut self.index.lock(), name, true)
    }

    fn add(self: &Arc<Rooms>, index: &mut Index, name: &RoomName, is_backend: bool) -> Reservation {
        let (room, holders) = index.enter(name, self.outbound.as_ref(), self.history.as_ref());
        match is_backend {
            true => holders.backends += 1,
            false => holders.sessions += 1,
        }
        Reservation {
            rooms: self.clone(),
            room,
            is_backend,
        }
    }
}

impl Reservation {
    /// The room's name.
    pub(crate) fn room(&self) -> &RoomName {
        &self.room.name
    }

    /// The secret with which sessions hold a name in the room, if any do.
    pub(crate) fn secret_of(&self, name: &str) -> Option<TokenHash> {
        self.room.secret_of(name)
    }

    /// Waits until every other node has listed its sessions in the room, for `limit` at most. Sessions
    /// that become known later are new to a session that joins.
    pub(crate) async fn wait_for_snapshots(&self, limit: Duration) {
        self.room.wait_for_snapshots(limit).await;
    }

    /// Whether a session that joins must [wait](Reservation::wait_for_flushes).
    pub(crate) fn is_flushing(&self) -> bool {
        self.room.flushing().is_some()
    }

    /// Waits until no outbox in the room is flushed because it had filled up.
    pub(crate) async fn wait_for_flushes(&self) {
        self.room.wait_for_flushes().await;
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let mut index = self.rooms.index.lock();
        if let Some(holders) = index.rooms.get_mut(&self.room.name) {
            match self.is_backend {
                true => holders.backends -= 1,
                false => holders.sessions -= 1,
            }
            if holders.sessions + holders.backends == 0 {
                index.rooms.remove(&self.room.name);
                release_spare_capacity(&mut index.rooms);
                // Under the lock of the index, so that the room cannot be entered again before.
                self.room.exit();
            }
        }
    }
}
