//! The lobbies in which sessions of this node are looking for a group, one at a time in each.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync;

use crate::{keyed_map::KeyedMap, protocol::RoomName, spare_capacity::release_spare_capacity};

/// All lobbies.
#[derive(Default)]
pub(crate) struct Lobbies(Mutex<KeyedMap<RoomName, Arc<sync::Mutex<()>>>>);

/// The turn of a session in a lobby, or its wait for it. Dropping it lets the next one in.
pub(crate) struct LobbyTurn<'a> {
    lobbies: &'a Lobbies,
    room: &'a RoomName,
    turn: Option<sync::OwnedMutexGuard<()>>,
}

impl Lobbies {
    /// Waits for the session's turn. Sessions have theirs in the order in which they ask.
    pub(crate) async fn enter<'a>(&'a self, room: &'a RoomName) -> LobbyTurn<'a> {
        let lobby = self.0.lock().entry(room.clone()).or_default().clone();
        let mut turn = LobbyTurn {
            lobbies: self,
            room,
            turn: None,
        };
        turn.turn = Some(lobby.lock_owned().await);
        turn
    }
}

impl Drop for LobbyTurn<'_> {
    fn drop(&mut self) {
        let mut lobbies = self.lobbies.0.lock();
        self.turn = None;
        if let Some(lobby) = lobbies.get(self.room)
            // Whoever waits holds a clone.
            && Arc::strong_count(lobby) == 1
        {
            lobbies.remove(self.room);
            release_spare_capacity(&mut lobbies);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn sessions_have_their_turn_in_order_and_leave_nothing_behind() {
        let (lobbies, room) = (Lobbies::default(), RoomName::default_room());
        let first = lobbies.enter(&room).await;
        let order = Mutex::new(Vec::new());
        let next = async |number| {
            let _turn = lobbies.enter(&room).await;
            order.lock().push(number);
        };
        let given_up = async {
            let gave_up = tokio::time::timeout(std::time::Duration::ZERO, lobbies.enter(&room));
            assert!(gave_up.await.is_err());
            drop(first);
        };
        tokio::join!(next(1), next(2), given_up);
        assert_eq!(*order.lock(), [1, 2]);
        assert!(lobbies.0.lock().is_empty());
    }
}
