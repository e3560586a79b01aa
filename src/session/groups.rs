//! Groups of sessions in order of arrival.
//!
//! In the lobby of a room, the sessions of the one group that is not complete hold a name together, with the group's
//! secret. A session that arrives claims the name with that secret, or with a new one if nobody holds it. Of two groups
//! that begin at once, on whichever nodes, one has the name first, and the other after it. The session that completes a
//! group says which claim was the last, and then takes all of it out of the lobby.

use std::{future::poll_fn, num::NonZeroU32, sync::Arc, time::Duration};

use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::{
    outbox::{Outbox, detached_outbox},
    protocol::{Close, CloseCode, RoomName, SessionId, TokenHash},
    rooms::{JoinGuard, NameClaim, Reservation, SessionInfo},
    state::Shared,
};

/// The name that the sessions of the open group hold.
const OPEN_GROUP: &str = "open";

/// The first and the longest pause before a session claims again. Each pause is twice as long as the last.
const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(160);

/// How long it is known that a group is complete, in addition to the two waits of a session that has taken it for open.
const COMPLETE: Duration = Duration::from_secs(5);

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

/// The lobby of a room for one size of groups.
struct Lobby<'a> {
    shared: &'a Arc<Shared>,
    name: RoomName,
    /// How long other nodes are waited for.
    down: Duration,
}

/// A claim in a lobby, by no session.
struct LobbyClaim {
    guard: JoinGuard,
    outbox: Outbox,
}

/// Finds the group of `size` sessions of a room that the next session belongs to. In a cluster, other nodes are waited
/// for, for `down` at most each time.
///
/// # Errors
///
/// The Close frame for a client that gets no place.
pub(super) async fn find(
    shared: &Arc<Shared>,
    room: &RoomName,
    size: NonZeroU32,
    down: Duration,
) -> Result<Place, Close> {
    let busy = || {
        let message = "too many sessions arrive at once: try again";
        Close::new(CloseCode::TryAgainLater, message)
    };
    let lobby = Lobby {
        shared,
        name: room.with_suffix(&format!("?next={size}")),
        down,
    };
    // The sessions of this node come one by one, in the order in which they have arrived.
    let turn = timeout(LIMIT, shared.lobbies.enter(&lobby.name)).await;
    let mut turn = turn.map_err(|_| busy())?;
    // Whoever enters a room anew may not know at once who is there.
    turn.stay(|| shared.rooms.reserve_for_backend(&lobby.name));
    let (deadline, mut pause) = (Instant::now() + LIMIT, FIRST_PAUSE);
    let size = size.get() as usize;
    while Instant::now() < deadline && !shared.stopping.is_cancelled() {
        let reservation = lobby.reserve().await;
        let group = reservation.secret_of(OPEN_GROUP);
        let group = group.unwrap_or_else(TokenHash::random);
        let complete = format!("{group} is complete");
        let claim = NameClaim::shared(OPEN_GROUP, group);
        let place = lobby.claim(reservation, claim).await;
        let (rank, own) = (place.guard.rank(), place.guard.place());
        let last = place.guard.marked(&complete);
        let belongs = match last {
            // Another session has counted those up to itself.
            Some(last) => own.is_some_and(|own| own <= last),
            None => rank.is_some_and(|rank| rank <= size),
        };
        if belongs {
            let room = lobby.name.with_suffix(&format!("#{group}"));
            let reservation = shared.admission.reserve(&room);
            let reservation = reservation
                .map_err(|error| Close::new(CloseCode::TryAgainLater, error.message()))?;
            if let (Some(own), None) = (own, last)
                && rank == Some(size)
            {
                // Whoever has taken the group for open learns this before it misses those who have left the lobby.
                let claim = NameClaim::mark(&complete, own);
                let done = lobby.claim(lobby.reserve().await, claim).await;
                place.guard.close_same_claims();
                done.hold_for(shared, 2 * down + COMPLETE);
            }
            let lobby = place.hold(shared);
            return Ok(Place { reservation, lobby });
        }
        drop(place);
        sleep(pause).await;
        pause = LONGEST_PAUSE.min(2 * pause);
    }
    Err(match shared.stopping.is_cancelled() {
        true => Close::restart(0),
        false => busy(),
    })
}

impl Lobby<'_> {
    /// Enters the lobby, and learns who is there.
    async fn reserve(&self) -> Reservation {
        // It counts as no session.
        let reservation = self.shared.rooms.reserve_for_backend(&self.name);
        reservation.wait_for_snapshots(self.down).await;
        reservation
    }

    /// Claims a name, and waits until the other nodes know.
    async fn claim(&self, reservation: Reservation, claim: NameClaim) -> LobbyClaim {
        let (sender, outbox) = detached_outbox(1, 0, Vec::new());
        let info = SessionInfo::new(None, None).with_claim(Some(claim));
        let guard = {
            let _line = timeout(self.down, self.shared.rooms.wait_in_line()).await;
            reservation.join(SessionId::random(), sender, info)
        };
        guard.wait_until_seen(self.down).await;
        guard.finish_join();
        LobbyClaim { guard, outbox }
    }
}

impl LobbyClaim {
    /// Keeps the claim until the group is complete, or the place is dropped.
    fn hold(self, shared: &Arc<Shared>) -> LobbyPlace {
        let leaving = CancellationToken::new();
        let left = leaving.clone();
        shared.tasks.spawn(async move {
            let completed = poll_fn(|cx| self.outbox.poll_closed(cx));
            left.run_until_cancelled(completed).await;
            drop(self.guard);
        });
        LobbyPlace {
            _leaving: leaving.drop_guard(),
        }
    }

    /// Keeps the claim for a while.
    fn hold_for(self, shared: &Arc<Shared>, time: Duration) {
        let stopping = shared.stopping.clone();
        shared.tasks.spawn(async move {
            stopping.run_until_cancelled(sleep(time)).await;
            drop(self.guard);
        });
    }
}
