//! The lobbies in which sessions of this node are looking for a group, one at a time in each.

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::{sync, time::Instant};

use crate::{
    keyed_map::KeyedMap, protocol::RoomName, rooms::Reservation,
    spare_capacity::release_spare_capacity,
};

/// How long this node stays in a lobby after the last turn.
const STAY: Duration = Duration::from_secs(5);

/// All lobbies.
#[derive(Default)]
pub(crate) struct Lobbies(Mutex<KeyedMap<RoomName, Lobby>>);

struct Lobby {
    turn: Arc<sync::Mutex<()>>,
    /// Keeps this node in the lobby.
    place: Option<Reservation>,
    last_turn: Instant,
}

/// The turn of a session in a lobby. Dropping it lets the next one in.
pub(crate) struct LobbyTurn<'a> {
    lobbies: &'a Lobbies,
    room: &'a RoomName,
    _turn: sync::OwnedMutexGuard<()>,
}

impl Lobbies {
    /// Waits for the session's turn. Sessions have theirs in the order in which they ask.
    pub(crate) async fn enter<'a>(&'a self, room: &'a RoomName) -> LobbyTurn<'a> {
        let turn = {
            let mut lobbies = self.0.lock();
            let lobby = lobbies.entry(room.clone()).or_insert_with(|| Lobby {
                turn: Arc::default(),
                place: None,
                last_turn: Instant::now(),
            });
            lobby.last_turn = Instant::now();
            lobby.turn.clone()
        };
        LobbyTurn {
            lobbies: self,
            room,
            _turn: turn.lock_owned().await,
        }
    }

    /// Leaves the lobbies in which nobody has looked for a group for a while. Call it every second.
    pub(crate) fn tick(&self) {
        let mut left = Vec::new();
        let mut lobbies = self.0.lock();
        lobbies.retain(|_, lobby| {
            // Whoever has a turn, or waits for one, holds a clone.
            let is_kept = Arc::strong_count(&lobby.turn) > 1 || lobby.last_turn.elapsed() < STAY;
            if !is_kept {
                left.push(lobby.place.take());
            }
            is_kept
        });
        release_spare_capacity(&mut lobbies);
        drop(lobbies);
        drop(left);
    }
}

impl LobbyTurn<'_> {
    /// Keeps this node in the lobby for a while, with a reservation if it has none.
    pub(crate) fn stay(&mut self, reserve: impl FnOnce() -> Reservation) {
        if let Some(lobby) = self.lobbies.0.lock().get_mut(self.room) {
            lobby.place.get_or_insert_with(reserve);
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::{advance, timeout};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn sessions_have_their_turn_in_order_and_leave_nothing_behind() {
        let (lobbies, room) = (Lobbies::default(), RoomName::default_room());
        let first = lobbies.enter(&room).await;
        let order = Mutex::new(Vec::new());
        let next = async |number| {
            let _turn = lobbies.enter(&room).await;
            order.lock().push(number);
        };
        let given_up = async {
            let gave_up = timeout(Duration::ZERO, lobbies.enter(&room));
            assert!(gave_up.await.is_err());
            drop(first);
        };
        tokio::join!(next(1), next(2), given_up);
        assert_eq!(*order.lock(), [1, 2]);
        lobbies.tick();
        assert_eq!(lobbies.0.lock().len(), 1);
        advance(STAY).await;
        lobbies.tick();
        assert!(lobbies.0.lock().is_empty());
    }
}
