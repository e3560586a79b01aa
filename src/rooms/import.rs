//! The import of a session from another node, because its client has come to this one. The other node's
//! part is in `migration`.

use std::{
    mem,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use tokio::{sync::oneshot, time::timeout};

use super::{
    catch_up::catch_up,
    join_guard::JoinGuard,
    location::Location,
    lookups::{Forwarding, Lookup, LookupResult, ReceivedSession, TooMuchRecorded},
    member::Member,
    members::Members,
    migrations::Waiter,
    reservation::Reservation,
    room::Room,
    session_info::SessionInfo,
};
use crate::{
    cluster::{Answer, Event, NodeId, SessionRecord, SessionTransfer, Want},
    outbox::{FlushSet, Sender},
    protocol::{Close, CloseCode, TokenHash},
    websocket::Frame,
};

/// The outcome of a lookup.
pub(crate) enum LookupOutcome {
    Found(ImportedSession),
    /// No other node has the session.
    NotFound(Reservation),
    /// This node is disconnected, or another has not answered in time: it is not known who has the session.
    Unanswered,
    /// The session migrates between two nodes, of which one may be this: look it up again.
    Retry(Reservation),
    /// The client has reconnected once more since.
    Superseded,
}

/// A session that another node has transferred, and that has not joined the room here.
pub(crate) struct ImportedSession {
    reservation: Reservation,
    lookup: LookupGuard,
    received: ReceivedSession,
}

/// A lookup that is under way. Dropping it ends the lookup.
struct LookupGuard {
    room: Arc<Room>,
    number: u64,
}

impl Drop for LookupGuard {
    fn drop(&mut self) {
        let mut members = self.room.members.write();
        let remote = members.remote.as_mut();
        let lookup = remote.and_then(|remote| remote.lookups.remove(self.number));
        drop(members);
        // Its frames may be many, and are freed without the lock.
        drop(lookup);
    }
}

impl LookupGuard {
    /// Whether a node has offered the session. If not, the lookup ends, and no node needs to begin.
    fn is_offered_or_ends(&self) -> bool {
        self.room
            .with_lookups(|lookups| lookups.is_offered_or_ends(self.number))
    }
}

impl Reservation {
    /// Looks up a session on all other nodes: waits `limit` for an offer, and then `offer_limit` for the
    /// session. What the session would receive meanwhile is recorded, up to `max_bytes`. The client has
    /// received `received` messages.
    pub(crate) async fn look_up(
        self,
        token: TokenHash,
        user: Option<String>,
        received: u64,
        max_bytes: usize,
        limit: Duration,
        offer_limit: Duration,
    ) -> LookupOutcome {
        if let Some(arrived) = self.room.wait_for_migration(&token) {
            let _ = timeout(limit, arrived).await;
            return LookupOutcome::Retry(self);
        }
        let begun = self.room.begin_lookup(token, user, received, max_bytes);
        let Some((lookup, mut result)) = begun else {
            return LookupOutcome::NotFound(self);
        };
        let mut outcome = timeout(limit, &mut result).await;
        if outcome.is_err() && lookup.is_offered_or_ends() {
            outcome = timeout(offer_limit, result).await;
        }
        match outcome {
            Ok(Ok(LookupResult::Found(received))) => LookupOutcome::Found(ImportedSession {
                reservation: self,
                lookup,
                received,
            }),
            Ok(Ok(LookupResult::Answered(Answer::AskAgain))) => LookupOutcome::Retry(self),
            Ok(Ok(LookupResult::Answered(Answer::Superseded))) => LookupOutcome::Superseded,
            Ok(Ok(LookupResult::Answered(_))) => LookupOutcome::NotFound(self),
            Ok(Err(_)) | Err(_) => LookupOutcome::Unanswered,
        }
    }
}

impl Room {
    /// A wait until the session with this token has arrived at another node; `None` if it does not migrate
    /// from here.
    fn wait_for_migration(&self, token: &TokenHash) -> Option<oneshot::Receiver<()>> {
        let mut members = self.members.write();
        let migrations = &mut members.remote.as_mut()?.migrations;
        let (again, waiting) = oneshot::channel();
        let is_added = migrations.add_waiter(token, Waiter::Local(again));
        is_added.then_some(waiting)
    }

    /// Begins a lookup of the session with this token; `None` without a cluster.
    fn begin_lookup(
        self: &Arc<Room>,
        token: TokenHash,
        user: Option<String>,
        received: u64,
        max_bytes: usize,
    ) -> Option<(LookupGuard, oneshot::Receiver<LookupResult>)> {
        let mut members = self.members.write();
        let remote = members.remote.as_mut()?;
        let number = remote.outbound.next_mark();
        let (result, waiting) = oneshot::channel();
        let nodes = remote.nodes();
        let has_nodes = !nodes.is_empty();
        let mut lookup = Lookup::new(token, user.clone(), nodes, max_bytes, result);
        let want = Want {
            room: self.name.clone(),
            seek: number,
            token,
            user,
            received,
            seen: remote.seen_events(),
        };
        if !has_nodes {
            lookup.finish(LookupResult::Answered(Answer::NotHere));
        } else if remote.outbound.batch().want(want).is_err() {
            lookup.give_up();
        }
        remote.lookups.insert(number, lookup);
        let room = self.clone();
        Some((LookupGuard { room, number }, waiting))
    }
}

impl ImportedSession {
    /// The session as its last node has transferred it.
    pub(crate) fn transfer(&self) -> &SessionTransfer {
        &self.received.transfer
    }

    /// Takes the messages that the client has not received, up to the transfer.
    pub(crate) fn take_missed(&mut self) -> Vec<Frame> {
        mem::take(&mut self.received.missed)
    }

    /// Adds the session to the room on this node. Waits, for `limit` at most, until its last node forwards
    /// nothing more. Then the session's outbox contains all that it has missed.
    pub(crate) async fn join(self, sender: Sender, limit: Duration) -> JoinGuard {
        let ImportedSession {
            reservation,
            lookup,
            received,
        } = self;
        let transfer = &received.transfer;
        let record = SessionRecord {
            moves: transfer.member.moves.saturating_add(1),
            ..transfer.member.clone()
        };
        let (id, moves) = (record.id, record.moves);
        let room = reservation.room.clone();
        let (done, waiting) = oneshot::channel();
        {
            // After `limit`, the session goes on without its turn: its client has waited long enough.
            let line = timeout(limit, reservation.rooms.wait_in_line());
            let _line = line.await;
        }
        let info = room.import(record, &received, lookup.number, &sender, done);
        // From here on the guard removes the session, however its import ends.
        let join_guard = JoinGuard {
            reservation,
            id,
            moves,
            info,
            first_number: 0,
        };
        let forwarded = timeout(limit, waiting).await;
        // The session's last node may have seen events that this node has not: it has sent them to the session, or has
        // forwarded messages that follow them.
        let seen = match &forwarded {
            Ok(Ok(seen)) => seen,
            _ => &transfer.seen,
        };
        room.wait_for_events(seen, limit).await;

        let mut members = room.members.write();
        members.catch_up(lookup.number, transfer, &sender);
        members.set_location(id, Location::Local(sender));
        drop(members);
        join_guard
    }
}

impl Room {
    /// Makes this node the owner of a session that another has transferred, and announces it. `done` is
    /// notified when the last node forwards nothing more.
    fn import(
        &self,
        record: SessionRecord,
        received: &ReceivedSession,
        lookup: u64,
        sender: &Sender,
        done: oneshot::Sender<Vec<(NodeId, u64)>>,
    ) -> Arc<SessionInfo> {
        let (id, from) = (record.id, received.from);
        let seen = &received.transfer.seen;
        let last = seen.iter().find(|(node, _)| *node == from);
        let last = last.map_or(0, |(_, last)| *last);
        let mut flush_set = FlushSet::default();
        let mut members = self.members.write();
        // If this node took the last node for down, it has removed the session: others get its `new`.
        let before = received.transfer.member.clone();
        members.add_remote(&self.name, from, 0, before, &mut flush_set);
        let location = Location::Importing(lookup, sender.clone());
        members.set_location(id, location.clone());
        // `add_remote` does not add it if the room has too many sessions of other nodes.
        let member = members.sessions.entry(id);
        let member = member.or_insert_with(|| Member::from_record(record.clone(), location));
        member.moves = record.moves;
        let info = member.info.clone();
        info.taken_in.store(received.transfer.taken_in, Relaxed);
        if let Some(remote) = &mut members.remote {
            // A node that is down forwards nothing, and nothing is waited for: `done` is dropped.
            if remote.is_up(from) {
                let forwarding = Forwarding { from, last, done };
                remote.lookups.expect_forwarding(lookup, forwarding);
            }
            let member = record;
            let arrive = Event::Arrive { member, from, last };
            // If this node is disconnected, it sends everything when it is connected again.
            let _ = remote.send_event(&self.name, arrive);
        }
        info
    }
}

impl Room {
    /// Announces the sessions again that have come here and that their last nodes still forward messages to: the
    /// first announcement may be lost, and without it those nodes take the session for lost.
    pub(super) fn announce_imports(&self) {
        let members = self.members.read();
        let Some(remote) = members.remote.as_ref().filter(|it| !it.lookups.is_empty()) else {
            return;
        };
        for (id, member) in &members.sessions {
            if let Location::Importing(lookup, _) = &member.location
                && let Some((from, last)) = remote.lookups.forwarding_node(*lookup)
            {
                let member = member.to_record(*id);
                let arrive = Event::Arrive { member, from, last };
                // If this node is disconnected, it sends everything when it is connected again.
                let _ = remote.send_event(&self.name, arrive);
            }
        }
    }
}

impl Members {
    /// Sends an imported session the events that it has missed.
    fn catch_up(&mut self, lookup: u64, transfer: &SessionTransfer, sender: &Sender) {
        let Some(remote) = &mut self.remote else {
            return;
        };
        match remote.lookups.take_recorded(lookup) {
            Some(Ok(recorded)) => {
                let mut flush_set = FlushSet::default();
                // The session has no connection yet, so its outbox keeps the frames for the next one.
                let push = |frame: Frame| _ = sender.push(frame, &mut flush_set);
                catch_up(transfer, recorded, &self.sessions, push);
            }
            Some(Err(TooMuchRecorded)) => {
                let reason = "too slow: too much was sent while the session moved between nodes";
                sender.close(Close::new(CloseCode::TryAgainLater, reason));
            }
            None => {}
        }
    }
}
