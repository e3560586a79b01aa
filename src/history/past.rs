//! Which messages of a room a session asks for: those that it has not received, because it came later.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
};

use crate::cluster::{EventId, NodeId, NodePast};

/// How many ranges are remembered of a node. The first is that from before the session joined.
const MAX_MISSED: usize = 16;

/// How many nodes are told to the next node of a session.
const MAX_TOLD: usize = 256;

/// How many ranges of each of them.
const MAX_TOLD_MISSED: usize = 8;

/// Tells the past of a session, given that all events of nodes before these numbers have come or are lost.
pub(crate) type PastOf<'a> = &'a (dyn Fn(&BTreeMap<NodeId, u64>) -> Past + Send + Sync);

/// Which messages of a room were said before a session joined.
#[derive(Clone, Debug)]
pub(crate) enum Past {
    /// All that there are.
    All,
    /// In the history of one node, those with a lower number.
    Before(u64),
    /// In a cluster.
    Events(Box<PastEvents>),
}

/// Which messages of the nodes of a cluster a session has not received.
#[derive(Clone, Debug, Default)]
pub(crate) struct PastEvents {
    nodes: BTreeMap<NodeId, NodePast>,
    /// Other nodes that are up: what they have sent is about to come.
    up: BTreeSet<NodeId>,
}

impl Past {
    /// The number in the history of one server before which all was said; 0 in a cluster.
    pub(crate) fn first_number(&self) -> u64 {
        match self {
            Past::Before(number) => *number,
            Past::All | Past::Events(_) => 0,
        }
    }
}

impl PastEvents {
    /// A session that joins when the events of nodes have come up to these numbers.
    pub(crate) fn up_to(events: impl Iterator<Item = (NodeId, u64)>) -> PastEvents {
        let past = |known| NodePast {
            known,
            missed: vec![(0, known)],
        };
        // A node of which nothing has come yet is not known.
        let events = events.filter(|(_, last)| *last > 0);
        PastEvents {
            nodes: events.map(|(node, last)| (node, past(last))).collect(),
            up: BTreeSet::new(),
        }
    }

    /// Takes over what the last node of the session says. What had come here before the session was looked up, and not
    /// there, the session has missed.
    pub(crate) fn replace(&mut self, nodes: &[(NodeId, NodePast)]) {
        for (node, past) in nodes {
            let mut past = past.clone();
            if let Some(here) = self.nodes.get(node).filter(|here| here.known > past.known) {
                push(&mut past.missed, (past.known, here.known));
                past.known = here.known;
            }
            self.nodes.insert(*node, past);
        }
    }

    /// Notes that the events of a node have come up to the number `last`, but those in the ranges `gaps`.
    pub(crate) fn advance(&mut self, node: NodeId, last: u64, gaps: &[(u64, u64)]) {
        if last == 0 {
            return;
        }
        let past = self.nodes.entry(node).or_default();
        let known = past.known;
        let new = gaps.iter().filter(|(_, last)| *last > known);
        let new = new.map(|(before, last)| (known.max(*before), *last));
        new.for_each(|range| push(&mut past.missed, range));
        if let Some(excess) = past.missed.len().checked_sub(MAX_MISSED) {
            past.missed.drain(1..1 + excess);
        }
        past.known = known.max(last);
    }

    /// Adds one message of a node.
    pub(crate) fn add(&mut self, node: NodeId, number: u64) {
        let past = self.nodes.entry(node).or_default();
        push(&mut past.missed, (number.saturating_sub(1), number));
    }

    /// Notes which nodes are up. Of the others, no more events come.
    pub(crate) fn end(&mut self, up: BTreeSet<NodeId>) {
        let down = self.nodes.iter_mut().filter(|(node, _)| !up.contains(node));
        for (_, past) in down {
            push(&mut past.missed, (past.known, u64::MAX));
        }
        self.up = up;
    }

    /// What the next node of the session has to know. Nodes that have spoken last come first, if there are too many.
    pub(crate) fn to_vec(&self) -> Vec<(NodeId, NodePast)> {
        let nodes = self.nodes.iter();
        let nodes = nodes.map(|(node, past)| {
            let mut past = past.clone();
            if let Some(excess) = past.missed.len().checked_sub(MAX_TOLD_MISSED) {
                past.missed.drain(1..1 + excess);
            }
            (*node, past)
        });
        let mut nodes: Vec<(NodeId, NodePast)> = nodes.collect();
        nodes.sort_by_key(|(node, past)| (Reverse(past.known), *node));
        nodes.truncate(MAX_TOLD);
        nodes
    }

    /// Whether the session has not received a message, and does not receive it any more.
    pub(crate) fn includes(&self, id: EventId) -> bool {
        match self.nodes.get(&id.node) {
            Some(past) => {
                let mut missed = past.missed.iter();
                missed.any(|(before, last)| *before < id.number && id.number <= *last)
            }
            // A node that was down before the session joined.
            None => !self.up.contains(&id.node),
        }
    }
}

/// Adds a range, which continues the last one if it begins at its end.
fn push(ranges: &mut Vec<(u64, u64)>, (before, last): (u64, u64)) {
    match ranges.last_mut() {
        Some((_, end)) if *end == before => *end = last,
        _ => ranges.push((before, last)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_past_of_a_session_is_what_it_did_not_receive() {
        let [one, other, late, unknown] = [(); 4].map(|()| NodeId::random());
        let mut past = PastEvents::up_to([(one, 10), (other, 20), (late, 0)].into_iter());
        let included = |past: &PastEvents, node, numbers: [u64; 8]| {
            numbers.map(|number| u8::from(past.includes(EventId { node, number })))
        };
        assert_eq!(
            included(&past, one, [1, 10, 11, 12, 13, 20, 21, 99]),
            [1, 1, 0, 0, 0, 0, 0, 0]
        );
        // A node that nobody knows was down before, or comes later.
        let id = EventId {
            node: unknown,
            number: 7,
        };
        assert!(past.includes(id));
        let mut later = past.clone();
        later.end([one, other, unknown].into());
        assert!(!later.includes(id));

        // Events were lost, some of them before the session joined; a node is new.
        past.advance(one, 20, &[(0, 3), (8, 12), (15, 17)]);
        past.advance(late, 9, &[(0, 4)]);
        assert_eq!(
            included(&past, one, [10, 11, 12, 13, 15, 16, 17, 18]),
            [1, 1, 1, 0, 0, 1, 1, 0]
        );
        assert_eq!(
            included(&past, late, [1, 4, 5, 9, 10, 11, 12, 13]),
            [1, 1, 0, 0, 0, 0, 0, 0]
        );
        // The same again changes nothing.
        past.advance(one, 20, &[(0, 3), (8, 12), (15, 17)]);
        assert_eq!(past.nodes[&one].missed, [(0, 12), (15, 17)]);

        // The session goes on at a node that has lost other events, and that knows another node.
        let mut next = PastEvents::up_to([(one, 22), (unknown, 3)].into_iter());
        next.replace(&past.to_vec());
        // The last node had not received 21 and 22, and this one had.
        next.advance(one, 30, &[(5, 19), (26, 27)]);
        assert_eq!(
            included(&next, one, [18, 19, 20, 21, 22, 23, 26, 27]),
            [0, 0, 0, 1, 1, 0, 0, 1]
        );
        assert_eq!(
            included(&next, unknown, [1, 3, 4, 5, 6, 7, 8, 9]),
            [1, 1, 0, 0, 0, 0, 0, 0]
        );
        // A node is down: what it has stored last has not come.
        next.end([other].into());
        assert_eq!(
            included(&next, one, [27, 28, 30, 31, 32, 40, 50, 1 << 50]),
            [1, 0, 0, 1, 1, 1, 1, 1]
        );
    }

    #[test]
    fn only_some_gaps_are_remembered() {
        let node = NodeId::random();
        let mut past = PastEvents::up_to([(node, 1)].into_iter());
        for number in 1..100 {
            past.advance(node, number * 10, &[(number * 10 - 5, number * 10)]);
        }
        let missed = &past.nodes[&node].missed;
        assert_eq!(missed.len(), MAX_MISSED);
        assert_eq!((missed[0], missed[1]), ((0, 1), (845, 850)));
        assert_eq!(missed[MAX_MISSED - 1], (985, 990));
    }
}
