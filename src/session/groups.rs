//! Groups of sessions in order of arrival.
//!
//! In the lobby of a room, the sessions of the one group that is not complete hold a name together, with the group's
//! secret. A session that arrives claims the name with that secret, or with a new one if nobody holds it. Of two that
//! begin a group at once, on whichever nodes, one loses and claims again. The session that completes a group takes all
//! of it out of the lobby.

use std::{future::poll_fn, num::NonZeroU32, sync::Arc, time::Duration};

use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::{
    outbox::{Outbox, detached_outbox},
    protocol::{RoomName, SessionId, TokenHash},
    rooms::{Full, JoinGuard, NameClaim, Reservation, SessionInfo},
    state::Shared,
};

/// The name that the sessions of the open group hold.
const OPEN: &str = "open";

/// The first and the longest pause before a session claims again. Each pause is twice as long as the last.
const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(160);

/// How long a session tries to find a group.
const LIMIT: Duration = Duration::from_secs(10);

/// A place in the room of a group, and in the lobby while the group is not complete.
pub(super) struct Place {
    pub(super) reservation: Reservation,
    pub(super) lobby: LobbyPlace,
}

/// A place in the lobby. Dropping it leaves the lobby.
pub(super) struct LobbyPlace {
    _leaving: DropGuard,
}

/// Finds the group of `size` sessions of a room that the next session belongs to. In a cluster, other nodes are waited
/// for, for `down` at most each time.
///
/// # Errors
///
/// What to tell a client that gets no place.
pub(super) async fn find(
    shared: &Arc<Shared>,
    room: &RoomName,
    size: NonZeroU32,
    down: Duration,
) -> Result<Place, &'static str> {
    const BUSY: &str = "too many sessions arrive at once: try again";
    let (deadline, mut pause) = (Instant::now() + LIMIT, FIRST_PAUSE);
    let lobby = room.with_suffix(&format!("?next={size}"));
    // The sessions of this node come one by one, in the order in which they have arrived.
    let turn = timeout(LIMIT, shared.lobbies.enter(&lobby)).await;
    let _turn = turn.map_err(|_| BUSY)?;
    while Instant::now() < deadline && !shared.stopping.is_cancelled() {
        // The place in the lobby counts as no session.
        let reservation = shared.rooms.reserve_for_backend(&lobby);
        reservation.wait_for_snapshots(down).await;
        let group = reservation.secret_of(OPEN);
        let group = group.unwrap_or_else(TokenHash::random);
        let (sender, outbox) = detached_outbox(1, 0, Vec::new());
        let claim = NameClaim::new(OPEN, group);
        let info = SessionInfo::new(None, None).with_claim(Some(claim));
        let guard = {
            let _line = timeout(down, shared.rooms.wait_in_line()).await;
            reservation.join(SessionId::random(), sender, info)
        };
        guard.wait_until_seen(down).await;
        guard.finish_join();
        let size = size.get() as usize;
        let rank = guard.rank().filter(|rank| *rank <= size);
        if let Some(rank) = rank {
            if rank == size {
                guard.close_same_claims();
            }
            let room = lobby.with_suffix(&format!("#{group}"));
            let reservation = shared.rooms.reserve(&room).map_err(|full| match full {
                Full::Rooms => "the server has too many rooms: try again later",
                Full::Room => "the room is full: try again later",
            })?;
            let lobby = hold(shared, guard, outbox);
            return Ok(Place { reservation, lobby });
        }
        drop(guard);
        sleep(pause).await;
        pause = LONGEST_PAUSE.min(2 * pause);
    }
    Err(BUSY)
}

/// Keeps a place in the lobby until the group is complete, or the place is dropped.
fn hold(shared: &Arc<Shared>, guard: JoinGuard, outbox: Outbox) -> LobbyPlace {
    let leaving = CancellationToken::new();
    let left = leaving.clone();
    shared.tasks.spawn(async move {
        let completed = poll_fn(|cx| outbox.poll_closed(cx));
        left.run_until_cancelled(completed).await;
        drop(guard);
    });
    LobbyPlace {
        _leaving: leaving.drop_guard(),
    }
}
