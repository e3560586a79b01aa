//! Pure data: the sessions that this node looks up on other nodes, because their clients came here.

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
};

use log::debug;
use parking_lot::Mutex;
use serde_json::value::RawValue;
use tokio::sync::oneshot;

use super::recorded_event::{Recorded, RecordedEvent};
use crate::{
    cluster::{Answer, NodeId, SessionTransfer},
    protocol::{self, SessionId, TokenHash},
    websocket::Frame,
};

/// The lookups in a room, by the numbers that this node gave them. Other nodes send the number back, and
/// each of their messages is checked against the lookup.
///
/// The lock is taken after the lock of the room's members.
#[derive(Default)]
pub(super) struct Lookups(Mutex<BTreeMap<u64, Lookup>>);

/// A session that this node looks up, and then receives.
pub(super) struct Lookup {
    token: TokenHash,
    /// The user that the session must belong to, if it must belong to one.
    user: Option<String>,
    /// Nodes that have not answered.
    waiting: BTreeSet<NodeId>,
    /// Whether a node has answered that the session is on its way to another node, or to this one.
    is_migrating: bool,
    /// The node that has offered to transfer the session.
    offered: Option<NodeId>,
    /// How many parts of the session have come, and the session so far.
    received: Option<(usize, ReceivedSession)>,
    /// Gets the result, once.
    result: Option<oneshot::Sender<LookupResult>>,
    /// What the session's last node still forwards.
    forwarding: Option<Forwarding>,
    /// Events that the session would have received since the lookup began.
    recorded: Vec<Recorded>,
    recorded_bytes: usize,
    /// The most bytes that may be recorded.
    max_bytes: usize,
}

/// The messages that the last node of a session forwards to this one.
pub(super) struct Forwarding {
    pub(super) from: NodeId,
    /// The number of the node's last event before the transfer.
    pub(super) last: u64,
    /// Gets the last event of each node that `from` has seen when it has forwarded the last message.
    pub(super) done: oneshot::Sender<Vec<(NodeId, u64)>>,
}

/// The end of a lookup.
pub(super) enum LookupResult {
    Found(ReceivedSession),
    Answered(Answer),
}

/// A session as its last node transferred it.
pub(super) struct ReceivedSession {
    /// The session's last node.
    pub(super) from: NodeId,
    pub(super) transfer: Box<SessionTransfer>,
    /// The messages that the client has not received.
    pub(super) missed: Vec<Frame>,
}

/// More was sent to a session than may be recorded for it.
#[derive(Debug)]
pub(super) struct TooMuchRecorded;

impl Lookup {
    /// A lookup of the session with this token on these nodes. `result` gets the result.
    pub(super) fn new(
        token: TokenHash,
        user: Option<String>,
        nodes: BTreeSet<NodeId>,
        max_bytes: usize,
        result: oneshot::Sender<LookupResult>,
    ) -> Lookup {
        Lookup {
            token,
            user,
            waiting: nodes,
            is_migrating: false,
            offered: None,
            received: None,
            result: Some(result),
            forwarding: None,
            recorded: Vec::new(),
            recorded_bytes: 0,
            max_bytes,
        }
    }

    /// Ends the lookup without a result, because this node is disconnected. It still records.
    pub(super) fn give_up(&mut self) {
        self.waiting.clear();
        self.result = None;
    }

    fn record(&mut self, source: NodeId, number: u64, event: RecordedEvent) {
        self.recorded_bytes += event.frame().cost();
        if self.recorded_bytes > self.max_bytes {
            // An incomplete record is of no use.
            self.recorded = Vec::new();
            return;
        }
        self.recorded.push(Recorded {
            source,
            number,
            event,
        });
    }

    /// Stops waiting for a node. If it was the last, the lookup ends.
    fn exclude(&mut self, node: NodeId) {
        self.waiting.remove(&node);
        self.offered.take_if(|offered| *offered == node);
        if self.waiting.is_empty() && self.offered.is_none() {
            self.finish(LookupResult::Answered(match self.is_migrating {
                true => Answer::AskAgain,
                false => Answer::NotHere,
            }));
        }
    }

    /// Ends the lookup. It still records.
    pub(super) fn finish(&mut self, result: LookupResult) {
        if let Some(sender) = self.result.take() {
            // If the receiver has given up, a found session leaves the room on its last node.
            let _ = sender.send(result);
        }
    }
}

impl Lookups {
    /// Whether no session is looked up.
    pub(super) fn is_empty(&self) -> bool {
        self.0.lock().is_empty()
    }

    /// Begins a lookup under a new number.
    pub(super) fn insert(&mut self, number: u64, lookup: Lookup) {
        self.0.get_mut().insert(number, lookup);
    }

    /// Ends a lookup. The caller drops it after it has released the lock of the room's members.
    pub(super) fn remove(&mut self, number: u64) -> Option<Lookup> {
        self.0.get_mut().remove(&number)
    }

    /// Whether this node looks up the session with this token.
    pub(super) fn contains(&mut self, token: &TokenHash) -> bool {
        let mut lookups = self.0.get_mut().values();
        lookups.any(|lookup| lookup.token == *token)
    }

    /// Whether a node has offered the session. If not, the lookup ends, so that no node can offer it
    /// any longer.
    pub(super) fn is_offered_or_ends(&self, number: u64) -> bool {
        let mut lookups = self.0.lock();
        let lookup = lookups.get(&number);
        let is_offered = lookup.is_some_and(|lookup| lookup.offered.is_some());
        if !is_offered {
            lookups.remove(&number);
        }
        is_offered
    }

    /// Records an event for all sessions that are looked up. `source` and `number` give its place.
    pub(super) fn record(&self, source: NodeId, number: u64, event: &RecordedEvent) {
        for lookup in self.0.lock().values_mut() {
            lookup.record(source, number, event.clone());
        }
    }

    /// Records a message to the session of one lookup.
    pub(super) fn record_unicast(
        &self,
        lookup: u64,
        source: NodeId,
        number: u64,
        sender: Option<SessionId>,
        frame: Frame,
    ) {
        if let Some(lookup) = self.0.lock().get_mut(&lookup) {
            lookup.record(source, number, RecordedEvent::Unicast(sender, frame));
        }
    }

    /// Takes the events recorded for the session of a lookup; `None` if there is no such lookup.
    ///
    /// # Errors
    ///
    /// [`TooMuchRecorded`]: the events were dropped.
    pub(super) fn take_recorded(
        &mut self,
        number: u64,
    ) -> Option<Result<Vec<Recorded>, TooMuchRecorded>> {
        let lookup = self.0.get_mut().get_mut(&number)?;
        Some(match lookup.recorded_bytes > lookup.max_bytes {
            true => Err(TooMuchRecorded),
            false => Ok(mem::take(&mut lookup.recorded)),
        })
    }

    /// Notes that a node forwards messages for the session of a lookup.
    pub(super) fn expect_forwarding(&mut self, number: u64, forwarding: Forwarding) {
        if let Some(lookup) = self.0.get_mut().get_mut(&number) {
            lookup.forwarding = Some(forwarding);
        }
    }

    /// The node that still forwards messages for the session of a lookup, and the number of its last event before
    /// the transfer.
    pub(super) fn forwarding_node(&self, number: u64) -> Option<(NodeId, u64)> {
        let lookups = self.0.lock();
        let forwarding = lookups.get(&number)?.forwarding.as_ref();
        forwarding.map(|it| (it.from, it.last))
    }

    /// Notes that a node is down: no lookup waits for it.
    pub(super) fn node_down(&mut self, node: NodeId) {
        for lookup in self.0.get_mut().values_mut() {
            lookup.exclude(node);
            lookup.forwarding.take_if(|it| it.from == node);
        }
    }

    /// Notes that a node answers a lookup, and does not offer the session.
    pub(super) fn receive_answer(&self, node: NodeId, number: u64, answer: Answer) {
        let mut lookups = self.0.lock();
        let Some(lookup) = lookups.get_mut(&number) else {
            return;
        };
        match answer {
            Answer::NotHere => lookup.exclude(node),
            Answer::WantedHere | Answer::AskAgain => {
                lookup.is_migrating = true;
                lookup.exclude(node);
            }
            Answer::Superseded => lookup.finish(LookupResult::Answered(answer)),
        }
    }

    /// Notes that a node offers a session. Returns whether this node still wants it from that node.
    pub(super) fn receive_offer(&self, node: NodeId, number: u64, token: &TokenHash) -> bool {
        let mut lookups = self.0.lock();
        lookups.get_mut(&number).is_some_and(|lookup| {
            let is_wanted =
                lookup.result.is_some() && lookup.token == *token && lookup.waiting.contains(&node);
            if is_wanted {
                lookup.offered = Some(node);
            }
            is_wanted
        })
    }

    /// Takes in a part of a session. `text` is a JSON array of messages that the client has not received.
    pub(super) fn receive_part(&self, node: NodeId, transfer: Box<SessionTransfer>, text: &str) {
        let mut lookups = self.0.lock();
        let id = transfer.member.id;
        let Some(lookup) = lookups.get_mut(&transfer.seek) else {
            return debug!("{node} transfers {id} after the lookup has ended");
        };
        let permissions = transfer.permissions.as_ref();
        let user = permissions.and_then(|permissions| permissions.user.as_ref());
        if lookup.offered != Some(node)
            || lookup.token != transfer.token
            || lookup.user.as_ref() != user
        {
            return debug!("{node} transfers {id}, which is not the session it was asked for");
        }
        let Ok(missed) = serde_json::from_str::<Vec<&RawValue>>(text) else {
            return debug!("{node} transfers {id} with a text that is not a JSON array");
        };
        let missed = missed
            .into_iter()
            .map(|message| protocol::from_json(message.get()));
        let more = transfer.more;
        match &mut lookup.received {
            Some((parts, session)) if session.from == node && *parts == transfer.part => {
                *parts += 1;
                session.transfer.known.extend(transfer.known);
                session.transfer.states.extend(transfer.states);
                session.missed.extend(missed);
            }
            received if transfer.part == 0 => {
                let session = ReceivedSession {
                    from: node,
                    transfer,
                    missed: missed.collect(),
                };
                *received = Some((1, session));
            }
            _ => return debug!("{node} transfers {id} with a part missing"),
        }
        if !more && let Some((_, session)) = lookup.received.take() {
            lookup.finish(LookupResult::Found(session));
        }
    }

    /// Records a message that a node forwards to a session that has come from it; returns `false` if
    /// there is no such session. `source` and `event` give the message's place.
    pub(super) fn receive_forwarded(
        &self,
        node: NodeId,
        number: u64,
        source: NodeId,
        event: u64,
        sender: Option<SessionId>,
        text: &str,
    ) -> bool {
        let mut lookups = self.0.lock();
        let lookup = lookups.get_mut(&number);
        let lookup = lookup.filter(|lookup| lookup.offered == Some(node));
        lookup.is_some_and(|lookup| {
            let unicast = RecordedEvent::Unicast(sender, protocol::from_json(text));
            lookup.record(source, event, unicast);
            true
        })
    }

    /// Notes that a node has forwarded the last message for a session, and has seen these events.
    pub(super) fn forwarding_done(&self, node: NodeId, number: u64, seen: Vec<(NodeId, u64)>) {
        if let Some(lookup) = self.0.lock().get_mut(&number)
            && let Some(forwarding) = lookup.forwarding.take_if(|it| it.from == node)
        {
            // The wait may have ended.
            let _ = forwarding.done.send(seen);
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot::error::TryRecvError;

    use super::*;
    use crate::{
        cluster::SessionRecord,
        protocol::{ResumeToken, RoomName},
    };

    const NUMBER: u64 = 7;

    fn lookup(
        nodes: &[NodeId],
        max_bytes: usize,
    ) -> (Lookups, TokenHash, oneshot::Receiver<LookupResult>) {
        let token = ResumeToken::random(None).hash();
        let (result, waiting) = oneshot::channel();
        let nodes = nodes.iter().copied().collect();
        let mut lookups = Lookups::default();
        lookups.insert(NUMBER, Lookup::new(token, None, nodes, max_bytes, result));
        (lookups, token, waiting)
    }

    fn part(token: TokenHash, part: usize, more: bool) -> Box<SessionTransfer> {
        Box::new(SessionTransfer {
            room: RoomName::default_room(),
            seek: NUMBER,
            token,
            member: SessionRecord::first(SessionId::random()),
            taken_in: 0,
            binary: 0,
            owed: [0, 0],
            permissions: None,
            seen: Vec::new(),
            delivered: Vec::new(),
            past: Vec::new(),
            part,
            known: vec![SessionId::random()],
            states: Vec::new(),
            more,
        })
    }

    fn answer(mut result: oneshot::Receiver<LookupResult>) -> Option<Answer> {
        match result.try_recv() {
            Ok(LookupResult::Answered(answer)) => Some(answer),
            _ => None,
        }
    }

    #[test]
    fn a_lookup_ends_when_the_last_node_has_answered() {
        let nodes = [NodeId::random(), NodeId::random()];
        let (lookups, _, mut result) = lookup(&nodes, 1000);
        lookups.receive_answer(nodes[0], NUMBER, Answer::NotHere);
        assert!(result.try_recv().is_err());
        lookups.receive_answer(nodes[1], NUMBER, Answer::NotHere);
        assert_eq!(answer(result), Some(Answer::NotHere));

        let (mut lookups, _, result) = lookup(&nodes, 1000);
        lookups.receive_answer(nodes[0], NUMBER, Answer::WantedHere);
        lookups.node_down(nodes[1]);
        assert_eq!(answer(result), Some(Answer::AskAgain));
    }

    #[test]
    fn a_session_is_taken_only_from_the_node_that_has_offered_it() {
        let nodes = [NodeId::random(), NodeId::random()];
        let (lookups, token, mut result) = lookup(&nodes, 1000);
        let other_token = ResumeToken::random(None).hash();
        assert!(!lookups.receive_offer(nodes[0], NUMBER, &other_token));
        assert!(!lookups.receive_offer(nodes[0], NUMBER + 1, &token));
        assert!(!lookups.receive_offer(NodeId::random(), NUMBER, &token));
        assert!(lookups.receive_offer(nodes[0], NUMBER, &token));
        lookups.receive_part(nodes[1], part(token, 0, false), "[]");
        lookups.receive_part(nodes[0], part(other_token, 0, false), "[]");
        assert!(result.try_recv().is_err());
        assert!(!lookups.receive_forwarded(nodes[1], NUMBER, nodes[1], 1, None, "{}"));
        assert!(lookups.receive_forwarded(nodes[0], NUMBER, nodes[1], 1, None, "{}"));

        lookups.receive_part(nodes[0], part(token, 0, true), "[1]");
        lookups.receive_part(nodes[0], part(token, 2, false), "[3]");
        assert!(result.try_recv().is_err());
        lookups.receive_part(nodes[0], part(token, 1, true), "[2]");
        lookups.receive_part(nodes[0], part(token, 2, false), "[3]");
        let Ok(LookupResult::Found(session)) = result.try_recv() else {
            panic!("the session has come")
        };
        let missed = session.missed.iter().map(Frame::payload);
        assert!(missed.eq([b"1", b"2", b"3"]));
        assert_eq!((session.from, session.transfer.known.len()), (nodes[0], 3));
    }

    #[test]
    fn forwarding_ends_when_the_last_node_has_forwarded_all_or_is_down() {
        let [from, other] = [NodeId::random(), NodeId::random()];
        let ends: [fn(&mut Lookups, NodeId); 2] = [
            |lookups, node| lookups.forwarding_done(node, NUMBER, Vec::new()),
            |lookups, node| lookups.node_down(node),
        ];
        for end in ends {
            let (mut lookups, _, _result) = lookup(&[from, other], 1000);
            let (done, mut waiting) = oneshot::channel();
            let last = 3;
            lookups.expect_forwarding(NUMBER, Forwarding { from, last, done });
            end(&mut lookups, other);
            assert_eq!(waiting.try_recv(), Err(TryRecvError::Empty));
            assert_eq!(lookups.forwarding_node(NUMBER), Some((from, last)));
            end(&mut lookups, from);
            assert_ne!(waiting.try_recv(), Err(TryRecvError::Empty));
            assert_eq!(lookups.forwarding_node(NUMBER), None);
        }
    }

    #[test]
    fn a_lookup_that_is_given_up_wants_no_session() {
        let node = NodeId::random();
        let (mut lookups, token, result) = lookup(&[node], 1000);
        let mut lookup = lookups.remove(NUMBER).unwrap();
        lookup.give_up();
        lookups.insert(NUMBER, lookup);
        assert!(!lookups.receive_offer(node, NUMBER, &token));
        lookups.receive_answer(node, NUMBER, Answer::NotHere);
        assert_eq!(answer(result), None);
    }

    #[test]
    fn a_lookup_without_an_offer_ends_before_a_late_one() {
        let node = NodeId::random();
        let (mut lookups, token, _result) = lookup(&[node], 1000);
        assert!(lookups.contains(&token));
        assert!(!lookups.is_offered_or_ends(NUMBER));
        assert!(!lookups.contains(&token));
        assert!(!lookups.receive_offer(node, NUMBER, &token));
    }

    #[test]
    fn no_more_is_recorded_than_allowed() {
        let node = NodeId::random();
        let cost = protocol::from_json("{}").cost();
        let (mut lookups, _, _result) = lookup(&[node], 2 * cost);
        for number in 0..2 {
            let event = RecordedEvent::Broadcast(None, protocol::from_json("{}"));
            lookups.record(node, number, &event);
        }
        assert_eq!(lookups.take_recorded(NUMBER).unwrap().unwrap().len(), 2);
        lookups.record_unicast(NUMBER, node, 3, None, protocol::from_json("{}"));
        assert!(lookups.take_recorded(NUMBER).unwrap().is_err());
        assert!(lookups.take_recorded(NUMBER + 1).is_none());
    }
}
