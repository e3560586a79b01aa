//! Queries of operators for rooms that no session of this node is in.
//!
//! A query asks the other nodes for snapshots of a room, and creates no room on this node. Operators that
//! ask for the same room share a query.

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{sync::oneshot, time::timeout};

use super::{
    location::Location,
    session_info::{SessionInfo, SessionSnapshot, longest_joined_first},
};
use crate::{
    cluster::{Direct, NodeId, Outbound, SnapshotChunk},
    protocol::{RoomName, SessionId},
};

/// How many rooms may be queried at once, and how many operators may wait for each. It bounds the
/// memory that operators can use.
const MAX_QUERIES: usize = 64;

/// How many times an operator waits for the limit anew, as long as chunks still come.
const MAX_WAITS: usize = 20;

/// The query cannot be answered: too many are under way, or the other nodes are too slow.
#[derive(Debug)]
pub(crate) struct Busy;

/// All queries that are under way.
#[derive(Default)]
pub(super) struct Queries(Mutex<BTreeMap<RoomName, RoomQuery>>);

/// The query of one room.
struct RoomQuery {
    /// Nodes whose snapshot has not ended, each with the end of the last range that it sent.
    waiting: BTreeMap<NodeId, Option<SessionId>>,
    /// Whether a chunk has come since an operator last checked.
    has_progress: bool,
    /// Sessions with their join numbers.
    found: Vec<(u64, SessionSnapshot)>,
    operators: Vec<oneshot::Sender<Vec<SessionSnapshot>>>,
}

/// An operator who waits for a query. Dropping it ends the query if no other operator waits.
struct Operator<'a> {
    queries: &'a Queries,
    name: &'a RoomName,
    answer: oneshot::Receiver<Vec<SessionSnapshot>>,
}

impl Queries {
    /// Asks these nodes for their sessions in a room. The answer is longest-joined first.
    ///
    /// # Errors
    ///
    /// [`Busy`] if too many queries are under way, or a node sends nothing for longer than `limit`.
    pub(super) async fn run(
        &self,
        name: &RoomName,
        nodes: &BTreeSet<NodeId>,
        outbound: &Outbound,
        limit: Duration,
    ) -> Result<Vec<SessionSnapshot>, Busy> {
        let mut operator = Operator {
            queries: self,
            name,
            answer: self.begin(name, nodes, outbound)?,
        };
        // With no other node, the query has ended already.
        self.end_if_complete(name);
        for _ in 0..MAX_WAITS {
            if let Ok(found) = timeout(limit, &mut operator.answer).await {
                return Ok(found.unwrap_or_default());
            }
            let mut queries = self.0.lock();
            let query = queries.get_mut(name);
            if !query.is_some_and(|query| mem::take(&mut query.has_progress)) {
                break;
            }
        }
        Err(Busy)
    }

    /// Whether no query is under way.
    #[cfg(all(test, feature = "cluster"))]
    pub(super) fn is_empty(&self) -> bool {
        self.0.lock().is_empty()
    }

    /// Joins the query of a room, or begins it.
    fn begin(
        &self,
        name: &RoomName,
        nodes: &BTreeSet<NodeId>,
        outbound: &Outbound,
    ) -> Result<oneshot::Receiver<Vec<SessionSnapshot>>, Busy> {
        let (operator, answer) = oneshot::channel();
        let mut queries = self.0.lock();
        if let Some(query) = queries.get_mut(name) {
            query.operators.retain(|operator| !operator.is_closed());
            if query.operators.len() >= MAX_QUERIES {
                return Err(Busy);
            }
            query.operators.push(operator);
            return Ok(answer);
        }
        if queries.len() >= MAX_QUERIES {
            return Err(Busy);
        }
        let query = RoomQuery {
            waiting: nodes.iter().map(|node| (*node, None)).collect(),
            has_progress: false,
            found: Vec::new(),
            operators: vec![operator],
        };
        queries.insert(name.clone(), query);
        let mut batch = outbound.batch();
        for node in nodes {
            batch.notify(*node, Direct::Ask(vec![name.clone()]));
        }
        Ok(answer)
    }

    /// Takes in a chunk of a node's sessions. Returns whether the node must be asked again, because the
    /// chunk ends a snapshot that began before this query.
    #[must_use]
    pub(super) fn receive_chunk(&self, node: NodeId, chunk: SnapshotChunk) -> bool {
        let name = chunk.room;
        if let Some(query) = self.0.lock().get_mut(&name) {
            query.has_progress = true;
            match query.waiting.get_mut(&node) {
                Some(until) if *until == chunk.after => *until = chunk.until,
                // The node sends one snapshot of a room at a time, and can begin another one now.
                Some(_) if chunk.until.is_none() => return true,
                _ => return false,
            }
            if chunk.until.is_none() {
                query.waiting.remove(&node);
            }
            let snapshots = chunk.members.into_iter().map(|record| {
                let snapshot = SessionSnapshot {
                    id: record.id,
                    location: Location::Remote(node),
                    info: Arc::new(SessionInfo::remote(&record)),
                    state: record.state,
                };
                (record.joined, snapshot)
            });
            query.found.extend(snapshots);
        }
        self.end_if_complete(&name);
        false
    }

    /// Notes that a node has no session in a room.
    pub(super) fn remove_node(&self, node: NodeId, name: &RoomName) {
        if let Some(query) = self.0.lock().get_mut(name) {
            query.waiting.remove(&node);
        }
        self.end_if_complete(name);
    }

    /// Notes that a node is down: no query waits for it.
    pub(super) fn node_down(&self, node: NodeId) {
        let names: Vec<RoomName> = self.0.lock().keys().cloned().collect();
        names.iter().for_each(|name| self.remove_node(node, name));
    }

    /// Answers the operators of a query that waits for no node.
    fn end_if_complete(&self, name: &RoomName) {
        let mut queries = self.0.lock();
        if queries
            .get(name)
            .is_none_or(|query| !query.waiting.is_empty())
        {
            return;
        }
        if let Some(query) = queries.remove(name) {
            let found = longest_joined_first(query.found);
            for operator in query.operators {
                // An operator who has disconnected needs no answer.
                let _ = operator.send(found.clone());
            }
        }
    }
}

impl Drop for Operator<'_> {
    fn drop(&mut self) {
        self.answer.close();
        let mut queries = self.queries.0.lock();
        let is_abandoned = |query: &RoomQuery| query.operators.iter().all(|it| it.is_closed());
        if queries.get(self.name).is_some_and(is_abandoned) {
            queries.remove(self.name);
        }
    }
}

#[cfg(all(test, feature = "cluster"))]
mod tests {
    use std::pin::pin;

    use futures_util::FutureExt;

    use super::*;
    use crate::cluster::{SessionRecord, TestLink};

    const LIMIT: Duration = Duration::from_secs(1);

    fn chunk(
        after: Option<SessionId>,
        until: Option<SessionId>,
        members: &[SessionId],
    ) -> SnapshotChunk {
        let record = |id: &SessionId| SessionRecord::first(*id);
        SnapshotChunk {
            room: RoomName::default_room(),
            last: 5,
            clock: 1,
            after,
            until,
            members: members.iter().map(record).collect(),
        }
    }

    fn sorted_ids<const N: usize>() -> [SessionId; N] {
        let mut ids = [(); N].map(|()| SessionId::random());
        ids.sort_unstable();
        ids
    }

    #[tokio::test(start_paused = true)]
    async fn a_query_has_the_sessions_of_all_nodes_that_stay_up() {
        let (link, queries) = (TestLink::open(), Queries::default());
        let room = RoomName::default_room();
        let [one, other, down, unasked] = [(); 4].map(|()| NodeId::random());
        let nodes = BTreeSet::from([one, other, down]);
        let mut query = pin!(queries.run(&room, &nodes, &link.outbound, LIMIT));
        assert!(query.as_mut().now_or_never().is_none());
        let ids: [SessionId; 4] = sorted_ids();
        // These chunks are of a snapshot that began before the query. After its end the node is asked again.
        let middle = chunk(Some(ids[0]), Some(ids[2]), &[ids[2]]);
        assert!(!queries.receive_chunk(one, middle));
        assert!(queries.receive_chunk(one, chunk(Some(ids[2]), None, &[ids[3]])));
        assert!(!queries.receive_chunk(unasked, chunk(None, None, &[ids[3]])));

        assert!(!queries.receive_chunk(one, chunk(None, Some(ids[0]), &ids[..1])));
        assert!(!queries.receive_chunk(one, chunk(Some(ids[0]), None, &ids[1..2])));
        assert!(!queries.receive_chunk(other, chunk(None, None, &ids[2..3])));
        assert!(query.as_mut().now_or_never().is_none());
        queries.node_down(down);
        let found: Vec<_> = query.await.unwrap().iter().map(|it| it.id).collect();
        assert_eq!(found, ids[..3]);
    }

    #[tokio::test(start_paused = true)]
    async fn an_operator_waits_as_long_as_chunks_come() {
        let (link, queries) = (TestLink::open(), Queries::default());
        let room = RoomName::default_room();
        let node = NodeId::random();
        let nodes = BTreeSet::from([node]);
        let mut query = pin!(queries.run(&room, &nodes, &link.outbound, LIMIT));
        let mut after = None;
        for id in sorted_ids::<5>() {
            assert!(timeout(LIMIT * 3 / 4, query.as_mut()).await.is_err());
            assert!(!queries.receive_chunk(node, chunk(after, Some(id), &[id])));
            after = Some(id);
        }
        assert!(timeout(LIMIT * 3, query).await.unwrap().is_err());
    }

    #[test]
    fn operators_share_a_query_up_to_a_number_and_make_room_when_they_go() {
        let (link, queries) = (TestLink::open(), Queries::default());
        let room = RoomName::default_room();
        let nodes = BTreeSet::from([NodeId::random()]);
        let begin = || queries.begin(&room, &nodes, &link.outbound);
        let mut operators: Vec<_> = (0..MAX_QUERIES).map(|_| begin().unwrap()).collect();
        assert!(begin().is_err());
        operators.pop();
        assert!(begin().is_ok());
    }
}
