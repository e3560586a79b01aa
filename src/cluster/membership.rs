//! Which other nodes there are: who is heard, and who hears. No I/O.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

use super::wire::{MAX_NODES, NodeId};

/// The other nodes that have been heard of lately.
pub(super) struct Membership {
    me: NodeId,
    /// How long a node may be silent.
    down: Duration,
    heard: BTreeMap<NodeId, Node>,
    /// The numbers of what was last heard of nodes that are no longer there: some of it may come again.
    past: VecDeque<(NodeId, u64)>,
}

struct Node {
    last: Instant,
    /// The number of what it last said.
    number: u64,
    /// Whether it hears this one. Only who can hear and be heard is there.
    hears_me: bool,
    /// How many bytes of what it said have been taken in since it was told so.
    unacknowledged: usize,
    /// How many messages of clients and backends it has sent to this node alone.
    count: u64,
}

/// What has become of a node.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// It is there.
    Up(NodeId),
    /// It is no longer.
    Down(NodeId),
}

impl Membership {
    pub(super) fn new(me: NodeId, down: Duration) -> Membership {
        Membership {
            me,
            down,
            heard: BTreeMap::new(),
            past: VecDeque::new(),
        }
    }

    /// Whether this was said after all else that was heard of the node.
    pub(super) fn is_news(&mut self, node: NodeId, number: u64) -> bool {
        if node == self.me {
            return false;
        }
        match self.heard.get_mut(&node) {
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

    /// A node has said that it hears these. Returns what follows from it, and whether it has to be told at
    /// once who is heard here.
    pub(super) fn heard(
        &mut self,
        now: Instant,
        node: NodeId,
        number: u64,
        hears: &[NodeId],
    ) -> (Option<Change>, bool) {
        let hears_me = hears.contains(&self.me);
        let is_news = !self.heard.contains_key(&node);
        if is_news && self.heard.len() >= MAX_NODES {
            return (None, false);
        }
        let known = self.heard.entry(node).or_insert(Node {
            last: now,
            number,
            hears_me: false,
            unacknowledged: 0,
            count: 0,
        });
        known.last = now;
        let change = match (known.hears_me, hears_me) {
            (false, true) => Some(Change::Up(node)),
            (true, false) => Some(Change::Down(node)),
            _ => None,
        };
        known.hears_me = hears_me;
        (change, is_news)
    }

    /// Has a node's silence begin only now: this one could not hear it.
    pub(super) fn excuse(&mut self, now: Instant) {
        self.heard.values_mut().for_each(|node| node.last = now);
    }

    /// A node has sent so many messages of clients and backends to this one alone. Returns how many of them
    /// have not come.
    pub(super) fn count_received(&mut self, node: NodeId, count: u64) -> u64 {
        let Some(known) = self.heard.get_mut(&node) else {
            return 0;
        };
        let missed = match known.count {
            // What came before it is not known.
            0 => 0,
            before => count.saturating_sub(before + 1),
        };
        known.count = count;
        missed
    }

    /// So many bytes of what a node said have been taken in.
    pub(super) fn took_in(&mut self, node: NodeId, bytes: usize) {
        if let Some(known) = self.heard.get_mut(&node) {
            known.unacknowledged += bytes;
        }
    }

    /// The nodes of which at least so many bytes have been taken in since they were told so, and up to
    /// which number that was.
    pub(super) fn take_unacknowledged(&mut self, least: usize) -> Vec<(NodeId, u64)> {
        let nodes = self.heard.iter_mut();
        nodes
            .filter(|(_, node)| node.hears_me && node.unacknowledged >= least)
            .map(|(id, node)| {
                node.unacknowledged = 0;
                (*id, node.number)
            })
            .collect()
    }

    /// A node has said that it stops.
    pub(super) fn bye(&mut self, node: NodeId) -> Option<Change> {
        self.give_up(|id, _| *id == node).pop()
    }

    /// Gives up who has been silent for too long.
    pub(super) fn tick(&mut self, now: Instant) -> Vec<Change> {
        let down = self.down;
        self.give_up(|_, node| now.duration_since(node.last) > down)
    }

    /// Gives up all of them.
    pub(super) fn clear(&mut self) -> Vec<Change> {
        self.give_up(|_, _| true)
    }

    fn give_up(&mut self, is_gone: impl Fn(&NodeId, &Node) -> bool) -> Vec<Change> {
        let mut changes = Vec::new();
        for (id, node) in self.heard.extract_if(.., |id, node| is_gone(id, node)) {
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

    /// Who is heard.
    pub(super) fn list(&self) -> Vec<NodeId> {
        self.heard.keys().copied().collect()
    }

    /// Whether a node can hear and be heard.
    pub(super) fn is_up(&self, node: NodeId) -> bool {
        self.heard.get(&node).is_some_and(|node| node.hears_me)
    }

    /// How many there are.
    pub(super) fn count_up(&self) -> usize {
        self.heard.values().filter(|node| node.hears_me).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOWN: Duration = Duration::from_secs(3);

    fn node(bits: u8) -> NodeId {
        format!("{bits:016x}").parse().unwrap()
    }

    fn nodes() -> (Membership, Instant) {
        (Membership::new(node(1), DOWN), Instant::now())
    }

    #[test]
    fn a_node_is_there_when_it_hears_and_is_heard() {
        let (mut nodes, now) = nodes();
        assert_eq!(nodes.heard(now, node(2), 1, &[]), (None, true));
        assert_eq!(nodes.count_up(), 0);
        let up = Some(Change::Up(node(2)));
        assert_eq!(nodes.heard(now, node(2), 2, &[node(1)]), (up, false));
        assert_eq!(nodes.heard(now, node(2), 3, &[node(1)]), (None, false));
        assert_eq!((nodes.list(), nodes.count_up()), (vec![node(2)], 1));
        // It has given this one up.
        let down = Some(Change::Down(node(2)));
        assert_eq!(nodes.heard(now, node(2), 4, &[]), (down, false));
        assert_eq!(nodes.tick(now + 2 * DOWN), []);
        assert_eq!(nodes.list(), []);
    }

    #[test]
    fn who_is_silent_for_too_long_is_given_up_once() {
        let (mut nodes, now) = nodes();
        for (id, number) in [(2, 1), (3, 1)] {
            nodes.heard(now, node(id), number, &[node(1)]);
        }
        nodes.heard(now + DOWN, node(3), 2, &[node(1)]);
        assert_eq!(nodes.tick(now + DOWN), []);
        let late = now + DOWN + Duration::from_millis(1);
        assert_eq!(nodes.tick(late), [Change::Down(node(2))]);
        assert_eq!(nodes.tick(late), []);
        assert_eq!(nodes.bye(node(3)), Some(Change::Down(node(3))));
        assert_eq!(nodes.bye(node(3)), None);
    }

    #[test]
    fn what_was_heard_is_no_news_even_of_who_is_gone() {
        let (mut nodes, now) = nodes();
        assert!(!nodes.is_news(node(1), 5), "it is this node itself");
        assert!(nodes.is_news(node(2), 5), "it may be about to come");
        nodes.heard(now, node(2), 5, &[node(1)]);
        assert!(!nodes.is_news(node(2), 5));
        assert!(nodes.is_news(node(2), 7));
        assert!(!nodes.is_news(node(2), 6));
        nodes.bye(node(2));
        assert!(!nodes.is_news(node(2), 7));
        assert!(nodes.is_news(node(2), 8));
    }

    #[test]
    fn what_has_not_come_is_counted() {
        let (mut nodes, now) = nodes();
        nodes.heard(now, node(2), 1, &[node(1)]);
        let missed = [3, 4, 6, 9, 1, 2].map(|count| nodes.count_received(node(2), count));
        assert_eq!(missed, [0, 0, 1, 2, 0, 0]);
        assert_eq!(nodes.count_received(node(3), 7), 0);
    }

    #[test]
    fn who_could_not_be_heard_is_not_blamed() {
        let (mut nodes, now) = nodes();
        nodes.heard(now, node(2), 1, &[node(1)]);
        nodes.excuse(now + DOWN);
        assert_eq!(nodes.tick(now + 2 * DOWN), []);
        let late = now + 2 * DOWN + Duration::from_millis(1);
        assert_eq!(nodes.tick(late), [Change::Down(node(2))]);
    }

    #[test]
    fn there_are_only_so_many() {
        let (mut nodes, now) = nodes();
        for number in 0..2 * MAX_NODES as u64 {
            let id = format!("{:016x}", number + 10).parse().unwrap();
            nodes.heard(now, id, 1, &[node(1)]);
        }
        assert_eq!(nodes.count_up(), MAX_NODES);
        assert_eq!(nodes.clear().len(), MAX_NODES);
        for number in 0..2 * MAX_NODES as u64 {
            let id = format!("{:016x}", number + 10_000).parse().unwrap();
            nodes.heard(now, id, 1, &[]);
            nodes.bye(id);
        }
        assert_eq!(nodes.past.len(), MAX_NODES);
    }
}
