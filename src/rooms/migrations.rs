//! Pure data: the sessions that migrate from this node to others, as `migration` describes.

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
};

use tokio::sync::oneshot;

use crate::{
    cluster::{NodeId, SessionRecord},
    protocol::{SessionId, TokenHash},
};

/// How many clients and nodes may wait for one session that migrates. It bounds the memory that
/// strangers with a session's token can use.
const MAX_WAITERS: usize = 64;

/// The sessions of a room that migrate, or have migrated and still get messages here.
#[derive(Default)]
pub(super) struct Migrations {
    sessions: BTreeMap<SessionId, Migration>,
    /// Who waits for the answer to an offer, by the node and the number of its lookup.
    offers: BTreeMap<(NodeId, u64), oneshot::Sender<bool>>,
}

/// A session that migrates from this node.
pub(super) struct Migration {
    /// The session as it was on this node.
    record: SessionRecord,
    /// Where the session migrates to.
    to: NodeId,
    /// The number of the lookup on that node.
    lookup: u64,
    token: TokenHash,
    phase: Phase,
    /// Nodes that send the session nothing more over this node.
    redirected: BTreeSet<NodeId>,
    /// Dropped when the session needs this node no longer, or cannot arrive.
    finished: Option<oneshot::Sender<()>>,
}

enum Phase {
    /// The session has not arrived. The waiters want it, and are to look it up again when it has.
    Leaving(Vec<Waiter>),
    /// The session has arrived. These nodes may still send it something over this node.
    Arrived(BTreeSet<NodeId>),
}

/// Who looks up a session that migrates already.
pub(super) enum Waiter {
    /// A client of this node.
    Local(oneshot::Sender<()>),
    /// Another node, and the number of its lookup.
    Remote(NodeId, u64),
}

impl Migration {
    /// The migration of a session to the node `to`. The receiver ends when the session needs this node
    /// no longer, or cannot arrive.
    pub(super) fn new(
        record: SessionRecord,
        to: NodeId,
        lookup: u64,
        token: TokenHash,
    ) -> (Migration, oneshot::Receiver<()>) {
        let (finished, waiting) = oneshot::channel();
        let migration = Migration {
            record,
            to,
            lookup,
            token,
            phase: Phase::Leaving(Vec::new()),
            redirected: BTreeSet::new(),
            finished: Some(finished),
        };
        (migration, waiting)
    }

    fn has_arrived(&self) -> bool {
        matches!(self.phase, Phase::Arrived(_))
    }

    fn into_waiters(self) -> Vec<Waiter> {
        match self.phase {
            Phase::Leaving(waiters) => waiters,
            Phase::Arrived(_) => Vec::new(),
        }
    }
}

impl Migrations {
    /// Whether no session migrates or is offered.
    #[cfg(all(test, feature = "cluster"))]
    pub(super) fn is_empty(&self) -> bool {
        self.sessions.is_empty() && self.offers.is_empty()
    }

    /// Begins a migration.
    pub(super) fn insert(&mut self, migration: Migration) {
        self.sessions.insert(migration.record.id, migration);
    }

    /// Ends a migration, if there is one; returns who waits for the session.
    #[must_use]
    pub(super) fn remove(&mut self, id: SessionId) -> Vec<Waiter> {
        let migration = self.sessions.remove(&id);
        migration.map_or_else(Vec::new, Migration::into_waiters)
    }

    /// Ends the migration that began when the session had left this many nodes behind. The session may
    /// have come back, and migrate again.
    pub(super) fn remove_move(&mut self, id: SessionId, moves: u32) {
        let is_same = |migration: &Migration| migration.record.moves == moves;
        if self.sessions.get(&id).is_some_and(is_same) {
            self.sessions.remove(&id);
        }
    }

    /// Has `waiter` wait for the session with this token, if it is leaving and not too many wait.
    pub(super) fn add_waiter(&mut self, token: &TokenHash, waiter: Waiter) -> bool {
        let mut waiters = self.sessions.values_mut().filter_map(|migration| {
            let has_token = migration.token == *token;
            match &mut migration.phase {
                Phase::Leaving(waiters) if has_token => Some(waiters),
                _ => None,
            }
        });
        match waiters.next() {
            Some(waiters) if waiters.len() < MAX_WAITERS => {
                waiters.push(waiter);
                true
            }
            _ => false,
        }
    }

    /// Notes that a session has arrived, where these nodes may still send to it over this node. Returns
    /// who waited for the session.
    #[must_use]
    pub(super) fn arrived(&mut self, id: SessionId, senders: &BTreeSet<NodeId>) -> Vec<Waiter> {
        let Some(migration) = self.sessions.get_mut(&id) else {
            return Vec::new();
        };
        let waiting = Phase::Arrived(senders - &migration.redirected);
        match mem::replace(&mut migration.phase, waiting) {
            Phase::Leaving(waiters) => waiters,
            Phase::Arrived(_) => Vec::new(),
        }
    }

    /// Notes that a node sends nothing more to this session, or to any, over this node. Returns to whom
    /// nothing more is forwarded, with the numbers of their lookups: those migrations have ended.
    #[must_use]
    pub(super) fn redirected(&mut self, node: NodeId, id: Option<SessionId>) -> Vec<(NodeId, u64)> {
        let finished = self.sessions.extract_if(.., |session, migration| {
            if id.is_none_or(|id| id == *session) {
                migration.redirected.insert(node);
                if let Phase::Arrived(waiting) = &mut migration.phase {
                    waiting.remove(&node);
                }
            }
            matches!(&migration.phase, Phase::Arrived(waiting) if waiting.is_empty())
        });
        finished
            .map(|(_, migration)| (migration.to, migration.lookup))
            .collect()
    }

    /// Notes that a node is down: sessions that migrate there cannot arrive.
    pub(super) fn node_down(&mut self, node: NodeId) {
        let stranded = self.sessions.values_mut().filter(|it| it.to == node);
        stranded.for_each(|migration| migration.finished = None);
    }

    /// Notes that a node may send to this session over this node, if it migrates.
    pub(super) fn add_sender(&mut self, node: NodeId, id: SessionId) {
        let Some(migration) = self.sessions.get_mut(&id) else {
            return;
        };
        migration.redirected.remove(&node);
        if let Phase::Arrived(waiting) = &mut migration.phase {
            waiting.insert(node);
        }
    }

    /// The sessions that have arrived.
    pub(super) fn arrived_ids(&self) -> impl Iterator<Item = SessionId> {
        let arrived = self.sessions.iter().filter(|(_, it)| it.has_arrived());
        arrived.map(|(id, _)| *id)
    }

    /// A session that has arrived, as it was on this node.
    pub(super) fn arrived_record(&self, id: SessionId) -> Option<SessionRecord> {
        let migration = self.sessions.get(&id).filter(|it| it.has_arrived())?;
        Some(migration.record.clone())
    }

    /// Where to forward what is sent to a session, and the number of the lookup there.
    pub(super) fn destination(&self, id: SessionId) -> Option<(NodeId, u64)> {
        let migration = self.sessions.get(&id)?;
        Some((migration.to, migration.lookup))
    }

    /// Has `answer` wait for a node's answer to an offer for its lookup.
    pub(super) fn insert_offer(
        &mut self,
        node: NodeId,
        lookup: u64,
        answer: oneshot::Sender<bool>,
    ) {
        self.offers.insert((node, lookup), answer);
    }

    /// Takes an offer back, or ends it; returns who waits for the answer.
    pub(super) fn remove_offer(
        &mut self,
        node: NodeId,
        lookup: u64,
    ) -> Option<oneshot::Sender<bool>> {
        self.offers.remove(&(node, lookup))
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot::error::TryRecvError;

    use super::*;
    use crate::protocol::ResumeToken;

    fn begin(migrations: &mut Migrations, to: NodeId) -> (SessionId, TokenHash) {
        let (id, token, _) = begin_and_wait(migrations, to);
        (id, token)
    }

    fn begin_and_wait(
        migrations: &mut Migrations,
        to: NodeId,
    ) -> (SessionId, TokenHash, oneshot::Receiver<()>) {
        let (id, token) = (SessionId::random(), ResumeToken::random(None).hash());
        let record = SessionRecord::first(id);
        let (migration, waiting) = Migration::new(record, to, 7, token);
        migrations.insert(migration);
        (id, token, waiting)
    }

    #[test]
    fn a_migration_ends_when_no_node_sends_over_this_one() {
        let mut migrations = Migrations::default();
        let [to, early, late] = [NodeId::random(), NodeId::random(), NodeId::random()];
        let (id, _) = begin(&mut migrations, to);
        assert!(migrations.redirected(early, Some(id)).is_empty());
        assert_eq!(migrations.destination(id), Some((to, 7)));
        assert!(migrations.arrived_record(id).is_none());

        let senders = BTreeSet::from([early, late]);
        assert!(migrations.arrived(id, &senders).is_empty());
        assert_eq!(migrations.arrived_ids().collect::<Vec<_>>(), [id]);
        assert!(migrations.arrived_record(id).is_some());
        assert!(migrations.redirected(early, Some(id)).is_empty());
        assert_eq!(migrations.redirected(late, None), [(to, 7)]);
        assert!(migrations.destination(id).is_none());
    }

    #[test]
    fn waiters_are_bounded_and_end_when_the_session_arrives() {
        let mut migrations = Migrations::default();
        let (id, token) = begin(&mut migrations, NodeId::random());
        let waiter = |lookup| Waiter::Remote(NodeId::random(), lookup);
        let other_token = ResumeToken::random(None).hash();
        assert!(!migrations.add_waiter(&other_token, waiter(0)));
        for lookup in 0..MAX_WAITERS as u64 {
            assert!(migrations.add_waiter(&token, waiter(lookup)));
        }
        assert!(!migrations.add_waiter(&token, waiter(0)));
        let waiters = migrations.arrived(id, &BTreeSet::new());
        assert_eq!(waiters.len(), MAX_WAITERS);
        assert!(!migrations.add_waiter(&token, waiter(0)));
    }

    #[test]
    fn waiters_end_with_a_migration_that_ends() {
        let mut migrations = Migrations::default();
        let (id, token) = begin(&mut migrations, NodeId::random());
        assert!(migrations.add_waiter(&token, Waiter::Remote(NodeId::random(), 3)));
        let waiters = migrations.remove(id);
        assert!(matches!(waiters[..], [Waiter::Remote(_, 3)]));
        assert!(migrations.destination(id).is_none());
    }

    #[test]
    fn a_session_cannot_arrive_at_a_node_that_is_down() {
        let mut migrations = Migrations::default();
        let [to, other] = [NodeId::random(), NodeId::random()];
        let (_, _, mut finished) = begin_and_wait(&mut migrations, to);
        migrations.node_down(other);
        assert_eq!(finished.try_recv(), Err(TryRecvError::Empty));
        migrations.node_down(to);
        assert_eq!(finished.try_recv(), Err(TryRecvError::Closed));
    }

    #[test]
    fn only_the_node_of_an_offer_answers_it() {
        let mut migrations = Migrations::default();
        let [to, other] = [NodeId::random(), NodeId::random()];
        let (answer, _) = oneshot::channel();
        migrations.insert_offer(to, 7, answer);
        assert!(migrations.remove_offer(other, 7).is_none());
        assert!(migrations.remove_offer(to, 8).is_none());
        assert!(migrations.remove_offer(to, 7).is_some());
        assert!(migrations.remove_offer(to, 7).is_none());
    }

    #[test]
    fn a_session_that_came_back_keeps_its_later_migration() {
        let mut migrations = Migrations::default();
        let (id, _) = begin(&mut migrations, NodeId::random());
        migrations.remove_move(id, 1);
        assert!(migrations.destination(id).is_some());
        migrations.remove_move(id, 0);
        assert!(migrations.destination(id).is_none());
    }
}
