//! Which other nodes are up. No I/O.
//!
//! Every node sends heartbeats, in which it lists the nodes that it receives. A node is up for another while
//! each receives the other.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use tokio::time::Instant;

use super::wire::{MAX_NODES, NodeId};

/// Time between two heartbeats of a node.
pub(super) const HEARTBEAT: Duration = Duration::from_secs(1);

/// The other nodes of the cluster.
pub(super) struct Membership {
    me: NodeId,
    /// How long a node may be silent before it is removed.
    down: Duration,
    /// When this node began to learn which others there are. It may lie ahead, while connections settle.
    learns_since: Instant,
    /// The nodes that this one receives.
    members: BTreeMap<NodeId, Member>,
    /// The last numbers of nodes that were removed. Their last messages may arrive once more.
    past: VecDeque<(NodeId, u64)>,
}

struct Member {
    /// When its last heartbeat came.
    last: Instant,
    /// The number of its last message.
    number: u64,
    /// The nodes that it receives, as its last heartbeat lists them.
    hears: Vec<NodeId>,
    /// Whether this node is among them, and so the other one is up.
    hears_me: bool,
    /// Bytes that were received from it and are not acknowledged yet.
    unacknowledged: usize,
    /// How many messages of clients and backends it has sent to this node alone.
    direct: u64,
}

/// A change of the state of a node.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// The node is up.
    Up(NodeId),
    /// The node is down.
    Down(NodeId),
}

impl Membership {
    /// No other nodes yet. `me` is this node.
    pub(super) fn new(me: NodeId, down: Duration, now: Instant) -> Membership {
        Membership {
            me,
            down,
            learns_since: now,
            members: BTreeMap::new(),
            past: VecDeque::new(),
        }
    }

    /// Whether a message is newer than all others that were received from the node, so that it must be
    /// applied. Messages may arrive twice or late.
    pub(super) fn is_new(&mut self, node: NodeId, number: u64) -> bool {
        if node == self.me {
            return false;
        }
        match self.members.get_mut(&node) {
            Some(known) if number <= known.number => false,
            Some(known) => {
                known.number = number;
                true
            }
            None => self
                .past
                .iter()
                .all(|(id, last)| *id != node || number > *last),
        }
    }

    /// Records a heartbeat of a node that receives the nodes `hears`. Returns the change of its state, and
    /// whether the node was unknown, so that it needs a heartbeat of this one at once.
    pub(super) fn heartbeat(
        &mut self,
        now: Instant,
        node: NodeId,
        number: u64,
        hears: Vec<NodeId>,
    ) -> (Option<Change>, bool) {
        let hears_me = hears.contains(&self.me);
        let is_unknown = !self.members.contains_key(&node);
        if is_unknown && self.members.len() >= MAX_NODES {
            return (None, false);
        }
        let known = self.members.entry(node).or_insert(Member {
            last: now,
            number,
            hears: Vec::new(),
            hears_me: false,
            unacknowledged: 0,
            direct: 0,
        });
        known.last = now;
        let change = match (known.hears_me, hears_me) {
            (false, true) => Some(Change::Up(node)),
            (true, false) => Some(Change::Down(node)),
            _ => None,
        };
        known.hears = hears;
        known.hears_me = hears_me;
        if matches!(change, Some(Change::Down(_))) {
            // The node has given this one up, and cannot be asked for its sessions until it is up again.
            self.learn_anew(now);
        }
        (change, is_unknown)
    }

    /// Begins at `now` to learn which other nodes there are.
    pub(super) fn learn_anew(&mut self, now: Instant) {
        self.learns_since = now;
    }

    /// Notes that this node has received no heartbeats for a time, because its process stood still. That time does
    /// not count as learning.
    pub(super) fn stood_still(&mut self, now: Instant, time: Duration) {
        // After the down time, the others have given this node up.
        let since = match time < self.down {
            true => now.min(self.learns_since + time),
            false => now,
        };
        self.learn_anew(since);
    }

    /// Lets the silence of all nodes begin at `now`, because this node could not receive their heartbeats.
    pub(super) fn restart_timeouts(&mut self, now: Instant) {
        self.members.values_mut().for_each(|node| node.last = now);
        self.learn_anew(now);
    }

    /// Records that a node has sent `count` messages of clients and backends to this one alone. Returns how
    /// many of them are missing.
    pub(super) fn count_received(&mut self, node: NodeId, count: u64) -> u64 {
        let Some(known) = self.members.get_mut(&node) else {
            return 0;
        };
        let missed = match known.direct {
            // It is not known how many came before the first.
            0 => 0,
            before => count.saturating_sub(before + 1),
        };
        known.direct = count;
        missed
    }

    /// Adds bytes that were received from a node.
    pub(super) fn received(&mut self, node: NodeId, bytes: usize) {
        if let Some(known) = self.members.get_mut(&node) {
            known.unacknowledged += bytes;
        }
    }

    /// The nodes with at least so many unacknowledged bytes, each with the number to acknowledge. These
    /// bytes count as acknowledged from now on.
    pub(super) fn take_unacknowledged(&mut self, least: usize) -> Vec<(NodeId, u64)> {
        let nodes = self.members.iter_mut();
        nodes
            .filter(|(_, node)| node.hears_me && node.unacknowledged >= least)
            .map(|(id, node)| {
                node.unacknowledged = 0;
                (*id, node.number)
            })
            .collect()
    }

    /// Removes a node that has announced its end.
    pub(super) fn bye(&mut self, node: NodeId) -> Option<Change> {
        self.remove(|id, _| *id == node).pop()
    }

    /// Removes the nodes that have been silent for too long.
    pub(super) fn tick(&mut self, now: Instant) -> Vec<Change> {
        let down = self.down;
        let changes = self.remove(|_, node| now.duration_since(node.last) > down);
        if !changes.is_empty() && self.count_up() == 0 {
            // It may be this node that is cut off.
            self.learn_anew(now);
        }
        changes
    }

    /// Removes all nodes.
    pub(super) fn clear(&mut self) -> Vec<Change> {
        self.remove(|_, _| true)
    }

    fn remove(&mut self, is_gone: impl Fn(&NodeId, &Member) -> bool) -> Vec<Change> {
        let mut changes = Vec::new();
        for (id, node) in self.members.extract_if(.., |id, node| is_gone(id, node)) {
            if self.past.len() >= MAX_NODES {
                self.past.pop_front();
            }
            self.past.push_back((id, node.number));
            if node.hears_me {
                changes.push(Change::Down(id));
            }
        }
        changes
    }

    /// The nodes that this one receives.
    pub(super) fn nodes(&self) -> Vec<NodeId> {
        self.members.keys().copied().collect()
    }

    /// Whether a node is up.
    pub(super) fn is_up(&self, node: NodeId) -> bool {
        self.members.get(&node).is_some_and(|node| node.hears_me)
    }

    /// Whether this node knows the others well enough to serve clients. Before, a session that joins could miss the
    /// sessions of a node.
    pub(super) fn can_begin(&self, now: Instant) -> bool {
        self.has_waited(now) || self.is_complete(now)
    }

    /// Whether a session is lost that no node has that is up. Before the down time is over, a node that hears no other
    /// cannot tell: the only other one may be silent.
    pub(super) fn knows_all(&self, now: Instant) -> bool {
        self.has_waited(now) || (self.is_complete(now) && self.count_up() > 0)
    }

    /// Whether this node has learned for the down time. Meanwhile, the others have given up whoever was silent.
    fn has_waited(&self, now: Instant) -> bool {
        now.duration_since(self.learns_since) >= self.down
    }

    /// Whether every node had time for a heartbeat, and all are up that this one receives or that others list. A node
    /// that is silent for a while is still listed by those that knew it before.
    fn is_complete(&self, now: Instant) -> bool {
        let listed = self.members.values().flat_map(|node| &node.hears);
        let mut nodes = self.members.keys().chain(listed);
        now.duration_since(self.learns_since) >= HEARTBEAT
            && nodes.all(|id| *id == self.me || self.is_up(*id))
    }

    /// How many nodes are up.
    pub(super) fn count_up(&self) -> usize {
        self.members.values().filter(|node| node.hears_me).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOWN: Duration = Duration::from_secs(3);
    const MOMENT: Duration = Duration::from_millis(1);

    fn node(bits: u8) -> NodeId {
        format!("{bits:016x}").parse().unwrap()
    }

    fn membership() -> (Membership, Instant) {
        let now = Instant::now();
        (Membership::new(node(1), DOWN, now), now)
    }

    #[test]
    fn a_node_is_up_while_it_receives_and_is_received() {
        let (mut membership, now) = membership();
        assert_eq!(membership.heartbeat(now, node(2), 1, vec![]), (None, true));
        assert_eq!(membership.count_up(), 0);
        let up = Some(Change::Up(node(2)));
        assert_eq!(
            membership.heartbeat(now, node(2), 2, vec![node(1)]),
            (up, false)
        );
        assert_eq!(
            membership.heartbeat(now, node(2), 3, vec![node(1)]),
            (None, false)
        );
        assert_eq!(
            (membership.nodes(), membership.count_up()),
            (vec![node(2)], 1)
        );
        // The node no longer receives this one.
        let down = Some(Change::Down(node(2)));
        assert_eq!(membership.heartbeat(now, node(2), 4, vec![]), (down, false));
        assert_eq!(membership.tick(now + 2 * DOWN), []);
        assert_eq!(membership.nodes(), []);
    }

    #[test]
    fn a_node_begins_when_each_that_any_receives_is_up() {
        let (mut membership, start) = membership();
        let now = start + HEARTBEAT;
        assert!(!membership.can_begin(now - MOMENT) && membership.can_begin(now));
        let mut can_begin_after = |id, hears| {
            membership.heartbeat(start, node(id), 1, hears);
            assert_eq!(membership.can_begin(now), membership.knows_all(now));
            membership.can_begin(now)
        };
        // The third node is silent, the second one receives it still.
        assert!(!can_begin_after(2, vec![node(3)]));
        assert!(!can_begin_after(2, vec![node(1), node(3)]));
        assert!(!can_begin_after(3, vec![node(2)]));
        assert!(can_begin_after(3, vec![node(1), node(2)]));
        assert!(!can_begin_after(2, vec![node(1), node(4)]));
        let late = start + DOWN;
        assert!(!membership.can_begin(late - MOMENT) && membership.can_begin(late));
        assert!(!membership.knows_all(late - MOMENT) && membership.knows_all(late));
    }

    #[test]
    fn a_node_that_hears_no_other_serves_but_does_not_know_all() {
        let (mut membership, start) = membership();
        let late = start + DOWN;
        assert!(membership.can_begin(late - MOMENT) && !membership.knows_all(late - MOMENT));
        assert!(membership.knows_all(late));
        membership.stood_still(late, MOMENT);
        assert!(!membership.knows_all(late) && membership.knows_all(late + MOMENT));
        membership.stood_still(late + MOMENT, DOWN);
        let later = late + MOMENT + DOWN;
        assert!(!membership.knows_all(later - MOMENT) && membership.knows_all(later));
    }

    #[test]
    fn a_node_that_is_given_up_or_cut_off_learns_anew() {
        let begin = || {
            let (mut membership, start) = membership();
            for id in [2, 3] {
                membership.heartbeat(start, node(id), 1, vec![node(1), node(2), node(3)]);
            }
            let now = start + DOWN;
            assert!(membership.knows_all(now));
            (membership, now)
        };
        let (mut given_up, now) = begin();
        given_up.heartbeat(now, node(2), 2, vec![node(3)]);
        assert!(!given_up.knows_all(now + DOWN - MOMENT));
        given_up.heartbeat(now, node(2), 2, vec![node(1), node(3)]);
        assert!(!given_up.knows_all(now + HEARTBEAT - MOMENT));
        assert!(given_up.knows_all(now + HEARTBEAT));

        let (mut cut_off, now) = begin();
        cut_off.heartbeat(now, node(2), 2, vec![node(1), node(3)]);
        assert_eq!(cut_off.tick(now + MOMENT), [Change::Down(node(3))]);
        assert!(cut_off.knows_all(now + MOMENT));
        let late = now + DOWN + MOMENT;
        assert_eq!(cut_off.tick(late), [Change::Down(node(2))]);
        assert!(!cut_off.knows_all(late + DOWN - MOMENT) && cut_off.knows_all(late + DOWN));

        let (mut reconnected, now) = begin();
        reconnected.restart_timeouts(now);
        assert!(!reconnected.knows_all(now) && reconnected.knows_all(now + HEARTBEAT));
        // Nodes that announce their end have no sessions left.
        let (mut last, now) = begin();
        last.bye(node(2));
        last.bye(node(3));
        assert!(last.knows_all(now));
    }

    #[test]
    fn a_node_that_is_silent_for_too_long_is_down_once() {
        let (mut membership, now) = membership();
        for (id, number) in [(2, 1), (3, 1)] {
            membership.heartbeat(now, node(id), number, vec![node(1)]);
        }
        membership.heartbeat(now + DOWN, node(3), 2, vec![node(1)]);
        assert_eq!(membership.tick(now + DOWN), []);
        let late = now + DOWN + Duration::from_millis(1);
        assert_eq!(membership.tick(late), [Change::Down(node(2))]);
        assert_eq!(membership.tick(late), []);
        assert_eq!(membership.bye(node(3)), Some(Change::Down(node(3))));
        assert_eq!(membership.bye(node(3)), None);
    }

    #[test]
    fn a_message_is_new_once_even_of_a_node_that_was_removed() {
        let (mut membership, now) = membership();
        assert!(
            !membership.is_new(node(1), 5),
            "a message of this node itself"
        );
        assert!(
            membership.is_new(node(2), 5),
            "the first message of an unknown node"
        );
        membership.heartbeat(now, node(2), 5, vec![node(1)]);
        assert!(!membership.is_new(node(2), 5));
        assert!(membership.is_new(node(2), 7));
        assert!(!membership.is_new(node(2), 6));
        membership.bye(node(2));
        assert!(!membership.is_new(node(2), 7));
        assert!(membership.is_new(node(2), 8));
    }

    #[test]
    fn missing_messages_are_counted() {
        let (mut membership, now) = membership();
        membership.heartbeat(now, node(2), 1, vec![node(1)]);
        let missed = [3, 4, 6, 9, 1, 2].map(|count| membership.count_received(node(2), count));
        assert_eq!(missed, [0, 0, 1, 2, 0, 0]);
        assert_eq!(membership.count_received(node(3), 7), 0);
    }

    #[test]
    fn restarted_timeouts_begin_anew() {
        let (mut membership, now) = membership();
        membership.heartbeat(now, node(2), 1, vec![node(1)]);
        membership.restart_timeouts(now + DOWN);
        assert_eq!(membership.tick(now + 2 * DOWN), []);
        let late = now + 2 * DOWN + Duration::from_millis(1);
        assert_eq!(membership.tick(late), [Change::Down(node(2))]);
    }

    #[test]
    fn the_number_of_nodes_is_limited() {
        let (mut membership, now) = membership();
        for number in 0..2 * MAX_NODES as u64 {
            let id = format!("{:016x}", number + 10).parse().unwrap();
            membership.heartbeat(now, id, 1, vec![node(1)]);
        }
        assert_eq!(membership.count_up(), MAX_NODES);
        assert_eq!(membership.clear().len(), MAX_NODES);
        for number in 0..2 * MAX_NODES as u64 {
            let id = format!("{:016x}", number + 10_000).parse().unwrap();
            membership.heartbeat(now, id, 1, vec![]);
            membership.bye(id);
        }
        assert_eq!(membership.past.len(), MAX_NODES);
    }
}
