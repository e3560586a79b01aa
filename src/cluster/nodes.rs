//! Which other nodes there are: who is heard, and who hears. No I/O.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

use super::wire::{MAX_NODES, NodeId};

/// The other nodes that have been heard of lately.
pub(super) struct Nodes {
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
}

/// What has become of a node.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// It is there.
    Up(NodeId),
    /// It is no longer.
    Down(NodeId),
}

impl Nodes {
    pub(super) fn new(me: NodeId, down: Duration) -> Nodes {
        Nodes {
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

    /// How many there are.
    pub(super) fn count_up(&self) -> usize {
        self.heard.values().filter(|node| node.hears_me).count()
    }
}
