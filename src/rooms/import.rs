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
    location::{Import, Location},
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
    history::{Past, PastEvents},
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
    /// The messages to all that came before the lookup.
    past: PastEvents,
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
        let guard = LookupGuard {
            room: self.clone(),
            number,
            past: remote.past_events(),
        };
        Some((guard, waiting))
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
        let mut events = lookup.past.clone();
        events.replace(&transfer.past);
        let past = match room.history {
            Some(_) => Past::Events(events.into()),
            None => Past::Before(0),
        };
        // From here on the guard removes the session, however its import ends.
        let mut join_guard = JoinGuard {
            reservation,
            id,
            moves,
            info,
            past,
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
        let lost = members.catch_up(lookup.number, transfer, &sender);
        members.set_location(id, Location::Local(sender));
        drop(members);
        if let Past::Events(events) = &mut join_guard.past {
            lost.into_iter()
                .for_each(|(node, number)| events.add(node, number));
        }
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
        let state = before.state.clone();
        members.add_remote(&self.name, from, 0, before, &mut flush_set);
        // This node tells the state to others from now on, also if it still waits for earlier messages of the session.
        if let Some(state) = state {
            members.update_state(&self.name, from, 0, id, state, &mut flush_set);
        }
        let import = Import {
            lookup,
            sender: sender.clone(),
        };
        let location = Location::Importing(Box::new(import));
        members.set_location(id, location.clone());
        // `add_remote` does not add it if the room has too many sessions of other nodes.
        let member = members.sessions.entry(id);
        let member = member.or_insert_with(|| Member::from_record(record.clone(), location));
        member.set_moves(record.moves);
        let info = member.info.clone();
        info.taken_in.store(received.transfer.taken_in, Relaxed);
        info.binary.store(received.transfer.binary, Relaxed);
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
            if let Location::Importing(import) = &member.location
                && let Some((from, last)) = remote.lookups.forwarding_node(import.lookup)
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
    /// Sends an imported session the events that it has missed. Returns the messages to all that it does not get.
    fn catch_up(
        &mut self,
        lookup: u64,
        transfer: &SessionTransfer,
        sender: &Sender,
    ) -> Vec<(NodeId, u64)> {
        let Some(remote) = &mut self.remote else {
            return Vec::new();
        };
        match remote.lookups.take_recorded(lookup) {
            Some(Ok(recorded)) => {
                let mut flush_set = FlushSet::default();
                // The session has no connection yet, so its outbox keeps the frames for the next one.
                let push = |frame: Frame| _ = sender.push(frame, &mut flush_set);
                catch_up(transfer, recorded, &self.sessions, push)
            }
            Some(Err(TooMuchRecorded)) => {
                let reason = "too slow: too much was sent while the session moved between nodes";
                sender.close(Close::new(CloseCode::TryAgainLater, reason));
                Vec::new()
            }
            None => Vec::new(),
        }
    }
}

#[cfg(all(test, feature = "cluster"))]
mod tests {
    use std::pin::pin;

    use futures_util::FutureExt;
    use tokio::time::Instant;

    use super::{
        super::{index::Rooms, lookups::Lookups, migrations::Migration},
        *,
    };
    use crate::{
        cluster::{Broadcast, Message, NodeId, TestLink},
        outbox::detached_outbox,
        protocol::{ResumeToken, RoomName, SessionId},
    };

    const SECOND: Duration = Duration::from_secs(1);

    /// A node with a room, in a cluster with another node.
    struct TestNode {
        link: TestLink,
        rooms: Arc<Rooms>,
        other: NodeId,
    }

    impl TestNode {
        fn new() -> (TestNode, Reservation) {
            let (link, other) = (TestLink::open(), NodeId::random());
            let rooms = Rooms::empty(Some(link.outbound.clone()));
            rooms.node_up(other);
            let reservation = rooms.reserve(&RoomName::default_room()).unwrap();
            (TestNode { link, rooms, other }, reservation)
        }

        /// The messages that this node has sent to others since the last call.
        fn sent(&self) -> Vec<Message> {
            let mut sent = Vec::new();
            let nowhere = TestLink::open();
            self.link.carry_to(&nowhere, |it| sent.push(it.message));
            sent
        }
    }

    fn record(id: SessionId) -> SessionRecord {
        SessionRecord::first(id)
    }

    #[tokio::test(start_paused = true)]
    async fn a_lookup_waits_longer_once_the_session_is_offered() {
        for (is_offered, waited) in [(false, SECOND), (true, 3 * SECOND)] {
            let (node, reservation) = TestNode::new();
            let (room, token) = (reservation.room.clone(), ResumeToken::random(None).hash());
            let start = Instant::now();
            let mut lookup = pin!(reservation.look_up(token, None, 0, 1000, SECOND, 2 * SECOND));
            assert!(lookup.as_mut().now_or_never().is_none());
            let seek = node.sent().into_iter().find_map(|message| match message {
                Message::All(Broadcast::Want(want)) => Some(want.seek),
                _ => None,
            });
            let seek = seek.expect("the other node is asked");
            if is_offered {
                let offer = |lookups: &Lookups| lookups.receive_offer(node.other, seek, &token);
                assert!(room.with_lookups(offer));
            }
            assert!(matches!(lookup.await, LookupOutcome::Unanswered));
            assert_eq!(start.elapsed(), waited);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_lookup_is_repeated_when_the_session_has_moved_on_from_here() {
        let (node, reservation) = TestNode::new();
        let (room, token) = (reservation.room.clone(), ResumeToken::random(None).hash());
        let id = SessionId::random();
        let (migration, _waiting) = Migration::new(record(id), node.other, 3, token);
        {
            let remote = &mut room.members.write().remote;
            remote.as_mut().unwrap().migrations.insert(migration);
        }
        let mut lookup = pin!(reservation.look_up(token, None, 0, 1000, SECOND, SECOND));
        assert!(lookup.as_mut().now_or_never().is_none());
        {
            let remote = &mut room.members.write().remote;
            let remote = remote.as_mut().unwrap();
            let waiters = remote.migrations.remove(id);
            remote.send_ask_again(&room.name, waiters);
        }
        let outcome = lookup.now_or_never();
        assert!(matches!(outcome, Some(LookupOutcome::Retry(_))));
    }

    #[test]
    fn a_session_is_announced_again_until_its_last_node_has_forwarded_all() {
        let (node, reservation) = TestNode::new();
        let (id, room) = (SessionId::random(), reservation.room.clone());
        let (sender, _outbox) = detached_outbox(1000, 0, Vec::new());
        let (result, _waiting) = oneshot::channel();
        let (done, _forwarding) = oneshot::channel();
        let (token, nodes) = (ResumeToken::random(None).hash(), [node.other].into());
        {
            let mut members = room.members.write();
            let remote = members.remote.as_mut().unwrap();
            let lookup = Lookup::new(token, None, nodes, 1000, result);
            remote.lookups.insert(7, lookup);
            let forwarding = Forwarding {
                from: node.other,
                last: 0,
                done,
            };
            remote.lookups.expect_forwarding(7, forwarding);
            let location = Location::Importing(Box::new(Import { lookup: 7, sender }));
            let member = Member::from_record(record(id), location);
            members.sessions.insert(id, member);
        }
        node.sent();
        let is_announced = || {
            node.rooms.ask_again();
            let is_arrive = |message: &Message| matches!(message, Message::Room(_));
            node.sent().iter().any(is_arrive)
        };
        assert!(is_announced() && is_announced());
        room.with_lookups(|lookups| lookups.forwarding_done(node.other, 7, Vec::new()));
        assert!(!is_announced());
    }
}
