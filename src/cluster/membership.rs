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

/// The other nodes of the cluster.
pub(super) struct Membership {
    me: NodeId,
    /// How long a node may be silent before it is removed.
    down: Duration,
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
    /// Whether it receives this node, and so is up.
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
    pub(super) fn new(me: NodeId, down: Duration) -> Membership {
        Membership {
            me,
            down,
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
        hears: &[NodeId],
    ) -> (Option<Change>, bool) {
        let hears_me = hears.contains(&self.me);
        let is_unknown = !self.members.contains_key(&node);
        if is_unknown && self.members.len() >= MAX_NODES {
            return (None, false);
        }
        let known = self.members.entry(node).or_insert(Member {
            last: now,
            number,
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
        known.hears_me = hears_me;
        (change, is_unknown)
    }

    /// Lets the silence of all nodes begin at `now`, because this node could not receive their heartbeats.
    pub(super) fn restart_timeouts(&mut self, now: Instant) {
        self.members.values_mut().for_each(|node| node.last = now);
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
        self.remove(|_, node| now.duration_since(node.last) > down)
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

    /// How many nodes are up.
    pub(super) fn count_up(&self) -> usize {
        self.members.values().filter(|node| node.hears_me).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOWN: Duration = Duration::from_secs(3);

    fn node(bits: u8) -> NodeId {
        format!("{bits:016x}").parse().unwrap()
    }

    fn membership() -> (Membership, Instant) {
        (Membership::new(node(1), DOWN), Instant::now())
    }

    #[test]
    fn a_node_is_up_while_it_receives_and_is_received() {
        let (mut membership, now) = membership();
        assert_eq!(membership.heartbeat(now, node(2), 1, &[]), (None, true));
        assert_eq!(membership.count_up(), 0);
        let up = Some(Change::Up(node(2)));
        assert_eq!(
            membership.heartbeat(now, node(2), 2, &[node(1)]),
            (up, false)
        );
        assert_eq!(
            membership.heartbeat(now, node(2), 3, &[node(1)]),
            (None, false)
        );
        assert_eq!(
            (membership.nodes(), membership.count_up()),
            (vec![node(2)], 1)
        );
        // The node no longer receives this one.
        let down = Some(Change::Down(node(2)));
        assert_eq!(membership.heartbeat(now, node(2), 4, &[]), (down, false));
        assert_eq!(membership.tick(now + 2 * DOWN), []);
        assert_eq!(membership.nodes(), []);
    }

    #[test]
    fn a_node_that_is_silent_for_too_long_is_down_once() {
        let (mut membership, now) = membership();
        for (id, number) in [(2, 1), (3, 1)] {
            membership.heartbeat(now, node(id), number, &[node(1)]);
        }
        membership.heartbeat(now + DOWN, node(3), 2, &[node(1)]);
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
        membership.heartbeat(now, node(2), 5, &[node(1)]);
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
        membership.heartbeat(now, node(2), 1, &[node(1)]);
        let missed = [3, 4, 6, 9, 1, 2].map(|count| membership.count_received(node(2), count));
        assert_eq!(missed, [0, 0, 1, 2, 0, 0]);
        assert_eq!(membership.count_received(node(3), 7), 0);
    }

    #[test]
    fn restarted_timeouts_begin_anew() {
        let (mut membership, now) = membership();
        membership.heartbeat(now, node(2), 1, &[node(1)]);
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
            membership.heartbeat(now, id, 1, &[node(1)]);
        }
        assert_eq!(membership.count_up(), MAX_NODES);
        assert_eq!(membership.clear().len(), MAX_NODES);
        for number in 0..2 * MAX_NODES as u64 {
            let id = format!("{:016x}", number + 10_000).parse().unwrap();
            membership.heartbeat(now, id, 1, &[]);
            membership.bye(id);
        }
        assert_eq!(membership.past.len(), MAX_NODES);
    }
}
