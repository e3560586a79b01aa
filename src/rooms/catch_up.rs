//! Pure function: the events that a session receives after it has come from another node.

use std::collections::{BTreeMap, BTreeSet};

use nohash_hasher::IntMap;

use super::{
    member::Member,
    recorded_event::{Recorded, RecordedEvent},
};
use crate::{
    cluster::{NodeId, SessionTransfer},
    dialects,
    protocol::SessionId,
    websocket::Frame,
};

/// Passes the frames that a session has missed to `push`, in the order of the events. `recorded` are the
/// events since the lookup began, and `members` the sessions that are in the room now. Returns the messages to all that
/// the session does not get, each by its source and number.
///
/// The session gets exactly one `new` and at most one `close` about each other session, and nothing from
/// a session before its `new` or after its `close`.
pub(super) fn catch_up(
    transfer: &SessionTransfer,
    mut recorded: Vec<Recorded>,
    members: &IntMap<SessionId, Member>,
    mut push: impl FnMut(Frame),
) -> Vec<(NodeId, u64)> {
    let mut lost = Vec::new();
    recorded.sort_by_key(|it| (it.number, it.source));
    let own = transfer.member.id;
    // Each session that the client knows, with the number of the state that it knows.
    let known = transfer.known.iter().map(|id| (*id, 0));
    let mut known: BTreeMap<SessionId, u64> =
        known.chain(transfer.states.iter().copied()).collect();
    let seen: BTreeMap<NodeId, u64> = transfer.seen.iter().copied().collect();
    // The session's last node has sent it the events that the node had seen.
    let was_seen = |source, number| seen.get(&source).is_some_and(|seen| number <= *seen);
    // A message to all that the node has lost must not follow a later one to the session alone.
    let delivered: BTreeMap<NodeId, u64> = transfer.delivered.iter().copied().collect();
    let is_late = |source, number| delivered.get(&source).is_some_and(|last| number <= *last);
    let format = dialects::of(transfer.room.dialect());
    let new = |id: SessionId, member: &Member| {
        let data = member.info.public();
        format.joined(id, data)
    };
    // The state of a session, if it is later than the one with the number that the client knows.
    let later_state = |id: SessionId, member: &Member, number: u64| {
        let state = member.state();
        let later = state.filter(|state| state.number > number);
        later.and_then(|state| format.state(id, state.value.as_deref()))
    };

    // A session that joined without a recorded event gets its `new` before its messages.
    let joined = recorded.iter().filter_map(|it| match &it.event {
        RecordedEvent::Joined(id, _) => Some(*id),
        _ => None,
    });
    let joined: BTreeSet<SessionId> = joined.collect();
    for (id, member) in members {
        if *id != own && !joined.contains(id) && !known.contains_key(id) {
            known.insert(*id, member.state_number());
            new(*id, member).into_iter().for_each(&mut push);
            later_state(*id, member, 0).into_iter().for_each(&mut push);
        }
    }

    for Recorded {
        source,
        number,
        event,
    } in recorded
    {
        match event {
            // A session that has come and gone before the transfer is not known, and has been announced.
            RecordedEvent::Joined(id, _)
                if was_seen(source, number) && !members.contains_key(&id) => {}
            RecordedEvent::Joined(id, frame) if id != own && !known.contains_key(&id) => {
                known.insert(id, 0);
                push(frame);
            }
            RecordedEvent::Left(id, frame) if known.remove(&id).is_some() => push(frame),
            RecordedEvent::State(id, number, frame) => {
                if let Some(last) = known.get_mut(&id).filter(|last| **last < number) {
                    *last = number;
                    push(frame);
                }
            }
            RecordedEvent::Broadcast(..) if was_seen(source, number) => {}
            RecordedEvent::Broadcast(sender, frame) => {
                let is_unknown = sender.is_some_and(|id| id != own && !known.contains_key(&id));
                match is_unknown || is_late(source, number) {
                    true => lost.push((source, number)),
                    false => push(frame),
                }
            }
            RecordedEvent::Unicast(Some(sender), _)
                if sender != own && !known.contains_key(&sender) => {}
            RecordedEvent::Unicast(_, frame) => push(frame),
            _ => {}
        }
    }

    // The last differences from the room, which no recorded event explains.
    for id in known.keys() {
        if !members.contains_key(id) {
            format.left(*id).into_iter().for_each(&mut push);
        }
    }
    for (id, member) in members {
        if *id != own {
            let known_state = known.get(id).copied();
            if known_state.is_none() {
                new(*id, member).into_iter().for_each(&mut push);
            }
            let later = later_state(*id, member, known_state.unwrap_or_default());
            later.into_iter().for_each(&mut push);
        }
    }
    lost
}

#[cfg(test)]
mod tests {
    use std::str;

    use super::{super::location::Location, *};
    use crate::{
        cluster::{SessionRecord, SessionState},
        protocol::{self, ResumeToken, RoomName},
    };

    fn record(id: SessionId) -> SessionRecord {
        SessionRecord::first(id)
    }

    fn text(frame: Frame) -> String {
        str::from_utf8(frame.payload()).unwrap().to_owned()
    }

    #[test]
    fn a_session_receives_what_it_missed_once_and_in_order() {
        let (node, other) = (NodeId::random(), NodeId::random());
        let [own, known, left, joined, silent, brief, passing] =
            [(); 7].map(|()| SessionId::random());
        let transfer = SessionTransfer {
            room: RoomName::default_room(),
            seek: 1,
            token: ResumeToken::random(None).hash(),
            member: record(own),
            taken_in: 0,
            binary: 0,
            owed: [0, 0],
            permissions: None,
            seen: vec![(node, 10)],
            delivered: vec![(node, 9), (other, 21)],
            past: Vec::new(),
            part: 0,
            known: vec![known, left],
            states: vec![(known, 2)],
            more: false,
        };
        let message =
            |sender, text| RecordedEvent::Broadcast(Some(sender), protocol::from_json(text));
        let state = |id, number| {
            let frame = protocol::from_json(&format!("state {number}"));
            RecordedEvent::State(id, number, frame)
        };
        let recorded = [
            (19, RecordedEvent::Unicast(None, protocol::from_json("6"))),
            // The session has received these on its last node.
            (
                8,
                RecordedEvent::Joined(brief, protocol::joined(brief, None)),
            ),
            (9, RecordedEvent::Left(brief, protocol::left(brief))),
            (10, message(known, "0")),
            (10, state(known, 2)),
            (10, state(known, 3)),
            (10, state(known, 1)),
            (11, message(left, "1")),
            (12, RecordedEvent::Left(left, protocol::left(left))),
            (13, message(left, "2")),
            (
                14,
                RecordedEvent::Joined(joined, protocol::joined(joined, None)),
            ),
            (
                14,
                RecordedEvent::Joined(joined, protocol::joined(joined, None)),
            ),
            (15, state(joined, 1)),
            (15, message(joined, "3")),
            (15, message(silent, "4")),
            (15, RecordedEvent::Joined(own, protocol::joined(own, None))),
            (
                16,
                RecordedEvent::Joined(passing, protocol::joined(passing, None)),
            ),
            (17, message(passing, "5")),
            (18, RecordedEvent::Left(passing, protocol::left(passing))),
        ];
        // The session has received message 21 of the other node, and no longer message 20.
        let late = (20, message(known, "late"));
        let recorded = recorded.map(|event| (node, event));
        let recorded = recorded.into_iter().chain([(other, late)]);
        let recorded = recorded.map(|(source, (number, event))| Recorded {
            source,
            number,
            event,
        });
        let recorded = recorded.collect();
        let members = [own, joined, silent].map(|id| {
            let mut member = Member::from_record(record(id), Location::Remote(node));
            // The events of the states that two of them have set last were lost.
            if id != own {
                let value = None;
                member.set_state(SessionState { number: 2, value }.into());
            }
            (id, member)
        });
        let mut received = Vec::new();
        let members = members.into_iter().collect();
        let lost = catch_up(&transfer, recorded, &members, |frame| {
            received.push(text(frame));
        });
        // The sender of the first has left before.
        assert_eq!(lost, [(node, 13), (other, 20)]);
        let expected = [
            text(protocol::joined(silent, None)),
            text(protocol::state(silent, None)),
            "state 3".into(),
            "1".into(),
            text(protocol::left(left)),
            text(protocol::joined(joined, None)),
            "state 1".into(),
            "3".into(),
            "4".into(),
            text(protocol::joined(passing, None)),
            "5".into(),
            text(protocol::left(passing)),
            "6".into(),
            // It left without a recorded event.
            text(protocol::left(known)),
            // The event of its last state was lost.
            text(protocol::state(joined, None)),
        ];
        assert_eq!(received, expected);
    }
}
