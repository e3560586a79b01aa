//! Pure data: a room's view of one other node, and how complete the view is.

use std::{
    mem,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use super::snapshot_receiver::{ChunkOutcome, SnapshotReceiver};
use crate::{
    cluster::{Digest, SnapshotChunk},
    protocol::SessionId,
};

/// A room's view of another node.
pub(super) struct NodeView {
    presence: Presence,
    /// The number up to which the node's events in the room have come or are superseded, if one has come.
    last: Option<u64>,
    /// Which of the node's events have not come.
    gaps: EventGaps,
    /// The number of the last event of this node that the other node has seen.
    seen: u64,
    /// The same, of an answer that has come before an event of the node that was sent earlier; and the number of that
    /// event.
    held_seen: Option<(u64, u64)>,
    /// The number of the last message of the node that was delivered to one session of this node.
    delivered: AtomicU64,
    /// Whether all sessions of the node have been known at some time since it was first asked.
    was_complete: bool,
    /// Whether a chunk has come since the last check for nodes that must be asked again.
    has_recent_chunk: bool,
    /// Whether the digest that is under way has listed the room.
    is_in_digest: bool,
}

/// Which events of a node in a room have come to this node: all up to a number but some.
#[derive(Clone, Debug, Default)]
pub(super) struct EventGaps {
    /// The number of the last event that has come, or of a later one that supersedes it; 0 if none has come.
    pub(super) last: u64,
    /// Ranges of events that have not come, at most `most`: the number before the first, and that of the last. The
    /// first range is that before this node knew the other.
    pub(super) ranges: Vec<(u64, u64)>,
    most: usize,
}

impl EventGaps {
    /// Remembers so many ranges.
    pub(super) fn new(most: usize) -> EventGaps {
        EventGaps {
            most,
            ..EventGaps::default()
        }
    }

    fn advance(&mut self, number: u64, missing: u64) {
        self.skip(self.last, missing);
        self.last = self.last.max(number);
    }

    fn skip(&mut self, before: u64, last: u64) {
        if before >= last || self.most == 0 {
            return;
        }
        if let Some((_, end)) = self.ranges.last_mut().filter(|(_, end)| *end == before) {
            *end = last;
            return;
        }
        if self.ranges.len() >= self.most {
            self.ranges.remove(1);
        }
        self.ranges.push((before, last));
    }
}

/// Whether a node is in the room.
enum Presence {
    /// The node has not answered.
    Asked,
    /// The node is not in the room.
    Absent,
    /// The node is in the room.
    Present(Sync),
}

/// Whether all sessions of a node are known.
enum Sync {
    /// Something is missing, and the node has been asked.
    Incomplete,
    /// A snapshot has begun and not ended.
    Receiving(SnapshotReceiver),
    Complete,
}

/// Where an event stands among those of its node.
pub(super) enum EventOrder {
    /// It has been seen before.
    Duplicate,
    /// It is the next one.
    Next,
    /// Events before it were lost: the node must be asked.
    AfterGap,
}

impl NodeView {
    /// A node that has been asked for its sessions in the room. `gaps` are those of its events that are known already.
    pub(super) fn asked(gaps: EventGaps) -> NodeView {
        NodeView {
            presence: Presence::Asked,
            last: None,
            gaps,
            seen: 0,
            held_seen: None,
            delivered: AtomicU64::new(0),
            was_complete: false,
            has_recent_chunk: false,
            is_in_digest: false,
        }
    }

    /// The number up to which the node's events in the room have come or are superseded, if one has come.
    pub(super) fn last_event(&self) -> Option<u64> {
        self.last
    }

    /// Which of the node's events have not come.
    pub(super) fn gaps(&self) -> &EventGaps {
        &self.gaps
    }

    /// Ends the view.
    pub(super) fn into_gaps(self) -> EventGaps {
        self.gaps
    }

    /// Notes that nobody here has received the message of the event with this number, which followed the event with the
    /// number `after`.
    pub(super) fn skip(&mut self, number: u64, after: u64) {
        self.gaps.skip(after, number);
    }

    /// Notes that the node's events up to this number have come or are superseded. Those up to `missing` that have
    /// not come are lost.
    fn advance(&mut self, number: u64, missing: u64) {
        self.last = Some(number);
        self.gaps.advance(number, missing);
    }

    /// Whether the node is in the room.
    pub(super) fn is_present(&self) -> bool {
        matches!(self.presence, Presence::Present(_))
    }

    /// Whether the node has seen the event of this node with this number. A node that is not in the
    /// room has no session that could miss it.
    pub(super) fn has_seen(&self, number: u64) -> bool {
        let held = self.held_seen.filter(|(_, last)| self.last >= Some(*last));
        let seen = held.map_or(self.seen, |(seen, _)| seen.max(self.seen));
        self.settles(seen >= number)
    }

    /// Whether the node has listed its sessions in the room.
    pub(super) fn has_answered(&self) -> bool {
        self.settles(self.was_complete)
    }

    /// Whether the node's event with this number and all before it have been seen here.
    pub(super) fn is_observed(&self, number: u64) -> bool {
        self.settles(self.last >= Some(number) && self.is_known())
    }

    /// Whether a wait for the node can end: it is absent, or it is present and `is_met`.
    fn settles(&self, is_met: bool) -> bool {
        match self.presence {
            Presence::Asked => false,
            Presence::Absent => true,
            Presence::Present(_) => is_met,
        }
    }

    /// Notes that a message of the node with this number was delivered to one session of this node.
    pub(super) fn note_delivered(&self, number: u64) {
        self.delivered.fetch_max(number, Relaxed);
    }

    /// The number of the last message of the node that was delivered to one session of this node.
    pub(super) fn delivered(&self) -> u64 {
        self.delivered.load(Relaxed)
    }

    /// Notes that the node has seen the events of this node up to this number, when its own last event was `last`. This
    /// counts once that event has come, too: messages of different subjects overtake each other.
    pub(super) fn note_seen(&mut self, number: u64, last: u64) {
        if self.last >= Some(last) || last == 0 {
            self.seen = number.max(self.seen);
        } else {
            let held = self.held_seen.unwrap_or_default();
            self.held_seen = Some((number.max(held.0), last.max(held.1)));
        }
    }

    /// Whether an answer has come before an event that was sent earlier.
    pub(super) fn holds_seen(&self) -> bool {
        self.held_seen.is_some()
    }

    /// Notes that the node has entered the room with this event, and has no session there.
    pub(super) fn enter(&mut self, number: u64) {
        self.was_complete = true;
        self.advance(number, number);
        self.presence = Presence::Present(Sync::Complete);
    }

    /// Notes that the node has answered that it is not in the room. The answer has this number, and supersedes all
    /// events before it: they may be lost.
    pub(super) fn answer_absent(&mut self, number: u64) {
        self.was_complete = true;
        self.advance(number, number);
        self.presence = Presence::Absent;
    }

    /// Notes that the node has left the room with this event.
    pub(super) fn exit(&mut self, number: u64) {
        self.advance(number, number);
        self.presence = Presence::Absent;
    }

    /// Notes an event of the node, which follows the event with the number `after`.
    pub(super) fn observe(&mut self, number: u64, after: u64) -> EventOrder {
        if Some(number) <= self.last {
            return EventOrder::Duplicate;
        }
        let is_next = self.last == Some(after);
        self.advance(number, after);
        match &mut self.presence {
            Presence::Present(_) if is_next => EventOrder::Next,
            Presence::Present(sync) => {
                match sync {
                    Sync::Receiving(receiver) => receiver.note_gap(),
                    Sync::Incomplete | Sync::Complete => *sync = Sync::Incomplete,
                }
                EventOrder::AfterGap
            }
            // An event is true even before the node's snapshot comes.
            Presence::Asked => EventOrder::Next,
            // The node is in the room after all.
            Presence::Absent => {
                self.presence = Presence::Asked;
                self.was_complete = false;
                EventOrder::AfterGap
            }
        }
    }

    /// Takes in a chunk of the node's snapshot. `known` are the sessions of the node that this node
    /// knows; only the first chunk needs them. Returns `None` if a chunk was lost: the node must be
    /// asked again.
    pub(super) fn receive_chunk(
        &mut self,
        chunk: &SnapshotChunk,
        known: Vec<SessionId>,
    ) -> Option<ChunkOutcome> {
        self.has_recent_chunk = true;
        let receiver = match &mut self.presence {
            Presence::Present(sync) => match mem::replace(sync, Sync::Incomplete) {
                Sync::Receiving(receiver) => Some(receiver),
                Sync::Incomplete | Sync::Complete => None,
            },
            Presence::Asked | Presence::Absent => None,
        };
        let (mut receiver, mut outcome) = SnapshotReceiver::receive(receiver, chunk, known)?;
        if chunk.after.is_some() && self.last != Some(chunk.last) {
            // An event between the chunks was lost.
            outcome.is_complete = false;
            if let Some(receiver) = &mut receiver {
                receiver.note_gap();
            }
        }
        self.was_complete |= outcome.is_complete;
        self.advance(chunk.last, chunk.last);
        self.presence = Presence::Present(match receiver {
            Some(receiver) => Sync::Receiving(receiver),
            None if outcome.is_complete => Sync::Complete,
            None => Sync::Incomplete,
        });
        Some(outcome)
    }

    /// Whether it is known which sessions of the node are in the room.
    pub(super) fn is_known(&self) -> bool {
        matches!(
            self.presence,
            Presence::Absent | Presence::Present(Sync::Complete)
        )
    }

    /// Whether the node must be asked again. While chunks of its snapshot come, it need not begin anew.
    #[must_use]
    pub(super) fn must_ask_again(&mut self) -> bool {
        !mem::take(&mut self.has_recent_chunk) && !self.is_known()
    }

    /// Compares the known sessions of the node, which have these hashes, with the node's digest of the room. Returns
    /// `false` if the node must be asked.
    #[must_use]
    pub(super) fn agrees_with(&mut self, digest: &Digest, hashes: [u64; 2]) -> bool {
        self.is_in_digest = true;
        match &mut self.presence {
            Presence::Present(sync @ Sync::Complete) => {
                let last = Some(digest.last);
                let agrees = last < self.last
                    || (last == self.last && [digest.hash, digest.states] == hashes);
                if !agrees {
                    *sync = Sync::Incomplete;
                }
                agrees
            }
            // The node has been asked already.
            Presence::Asked | Presence::Present(_) => true,
            Presence::Absent => false,
        }
    }

    /// Notes the end of the node's digest, which lists all rooms that both nodes are in. Returns `false`
    /// if the room was missing and the node must be asked.
    #[must_use]
    pub(super) fn end_digest(&mut self) -> bool {
        if mem::take(&mut self.is_in_digest) {
            return true;
        }
        match &mut self.presence {
            Presence::Present(sync @ Sync::Complete) => {
                *sync = Sync::Incomplete;
                false
            }
            _ => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::RoomName;

    fn chunk(last: u64, after: Option<SessionId>, until: Option<SessionId>) -> SnapshotChunk {
        SnapshotChunk {
            room: RoomName::default_room(),
            last,
            clock: 0,
            after,
            until,
            members: Vec::new(),
        }
    }

    fn digest(last: u64, [hash, states]: [u64; 2]) -> Digest {
        let room = RoomName::default_room();
        Digest {
            room,
            last,
            hash,
            states,
        }
    }

    fn complete(last: u64) -> NodeView {
        let mut view = NodeView::asked(EventGaps::default());
        let outcome = view.receive_chunk(&chunk(last, None, None), Vec::new());
        assert!(outcome.unwrap().is_complete && view.is_known());
        view
    }

    #[test]
    fn an_event_after_a_gap_makes_the_node_unknown_until_its_snapshot_ends() {
        let mut view = complete(5);
        assert!(matches!(view.observe(6, 5), EventOrder::Next));
        assert!(matches!(view.observe(6, 5), EventOrder::Duplicate));
        assert!(view.is_known());
        assert!(matches!(view.observe(9, 8), EventOrder::AfterGap));
        assert!(!view.is_known() && view.has_answered() && !view.is_observed(9));

        let (first, second) = (SessionId::random(), SessionId::random());
        let known = vec![first, second];
        let outcome = view.receive_chunk(&chunk(9, None, Some(first.max(second))), known);
        let outcome = outcome.unwrap();
        assert_eq!((outcome.gone.len(), outcome.is_complete), (2, false));
        let rest = view.receive_chunk(&chunk(9, Some(first.max(second)), None), Vec::new());
        assert!(rest.unwrap().is_complete && view.is_known() && view.is_observed(9));
    }

    #[test]
    fn a_node_has_seen_what_it_says_and_misses_nothing_while_it_is_absent() {
        let mut view = NodeView::asked(EventGaps::default());
        assert!(!view.is_present() && !view.has_seen(0));
        view.enter(5);
        assert!(view.is_present() && view.is_known() && view.has_answered());
        assert_eq!(view.last_event(), Some(5));
        view.note_seen(4, 0);
        // A message that comes late.
        view.note_seen(2, 0);
        assert!(view.has_seen(4) && !view.has_seen(5));
        view.exit(6);
        assert!(!view.is_present() && view.has_seen(5));

        // It is in the room after all.
        assert!(matches!(view.observe(8, 7), EventOrder::AfterGap));
        let outcome = view.receive_chunk(&chunk(8, None, None), Vec::new());
        assert!(outcome.unwrap().is_complete);
        assert!(view.has_seen(4) && !view.has_seen(5));
    }

    #[test]
    fn a_snapshot_during_which_an_event_is_lost_is_not_complete() {
        let id = SessionId::random();
        // The event between the chunks has not come.
        let mut view = NodeView::asked(EventGaps::default());
        let begun = view.receive_chunk(&chunk(5, None, Some(id)), Vec::new());
        assert!(begun.is_some());
        let ended = view.receive_chunk(&chunk(6, Some(id), None), Vec::new());
        assert!(!ended.unwrap().is_complete && !view.is_known() && !view.has_answered());

        // A later event shows that one before it was lost.
        let begun = view.receive_chunk(&chunk(6, None, Some(id)), Vec::new());
        assert!(begun.is_some());
        assert!(matches!(view.observe(9, 8), EventOrder::AfterGap));
        let ended = view.receive_chunk(&chunk(9, Some(id), None), Vec::new());
        assert!(!ended.unwrap().is_complete && !view.is_known());

        // A chunk was lost.
        let begun = view.receive_chunk(&chunk(9, None, Some(id)), Vec::new());
        assert!(begun.is_some());
        let after = Some(SessionId::random());
        assert!(
            view.receive_chunk(&chunk(9, after, None), Vec::new())
                .is_none()
        );
    }

    #[test]
    fn events_before_the_snapshot_of_a_node_are_taken_in_once() {
        let mut view = NodeView::asked(EventGaps::default());
        assert!(matches!(view.observe(3, 2), EventOrder::Next));
        assert!(matches!(view.observe(3, 2), EventOrder::Duplicate));
        assert_eq!(view.last_event(), Some(3));
        assert!(!view.is_observed(3));

        // The node was taken for absent, and is in the room.
        view.answer_absent(4);
        assert_eq!(view.last_event(), Some(4));
        assert!(matches!(view.observe(5, 4), EventOrder::AfterGap));
        assert_eq!(view.last_event(), Some(5));
        assert!(!view.is_known() && !view.has_answered());
    }

    #[test]
    fn a_node_is_asked_again_only_while_no_chunk_comes() {
        let mut view = NodeView::asked(EventGaps::default());
        assert!(view.must_ask_again());
        let until = Some(SessionId::random());
        let begun = view.receive_chunk(&chunk(5, None, until), Vec::new());
        assert!(begun.is_some());
        assert!(!view.must_ask_again());
        assert!(view.must_ask_again());
        view.answer_absent(6);
        assert!(!view.must_ask_again() && view.has_answered());
    }

    #[test]
    fn a_digest_that_differs_makes_the_node_unknown() {
        let mut view = complete(5);
        assert!(view.agrees_with(&digest(5, [7, 3]), [7, 3]));
        // Events of which the node did not know yet.
        assert!(view.agrees_with(&digest(4, [1, 3]), [7, 3]));
        assert!(view.end_digest() && view.is_known());
        assert!(!view.agrees_with(&digest(5, [1, 3]), [7, 3]));
        // The node has been asked by now.
        assert!(view.agrees_with(&digest(5, [1, 3]), [7, 3]) && !view.is_known());
        assert!(view.end_digest());

        let mut view = complete(5);
        assert!(!view.agrees_with(&digest(6, [7, 3]), [7, 3]));

        // A session has another state.
        let mut view = complete(5);
        assert!(!view.agrees_with(&digest(5, [7, 4]), [7, 3]));

        // The node lists its rooms, but not this one.
        let mut view = complete(5);
        assert!(!view.end_digest() && !view.is_known());

        let mut view = complete(5);
        view.exit(6);
        assert_eq!(view.last_event(), Some(6));
        view.answer_absent(7);
        assert_eq!(view.last_event(), Some(7));
        assert!(!view.agrees_with(&digest(6, [7, 3]), [7, 3]));
    }
}
