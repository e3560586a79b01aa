//! The migration of a session from this node to the node that its client has come to.
//!
//! 1. The other node looks the session up, and records the events of the room from then on.
//! 2. This node stops the session and transfers it: its state, the sessions it knows, and the number of the
//!    last event that it has seen of each node.
//! 3. The other node announces that the session has arrived.
//! 4. All nodes send messages for the session to its new node. Once they have taken in what the session has sent
//!    from here, they tell this node so. This node forwards messages that still come here, and tells the new node
//!    when no more can come.
//! 5. The new node sends the session the events that it has missed, in the order of their numbers.
//!
//! The other sessions of the room notice nothing.

use std::{collections::BTreeMap, sync::atomic::Ordering::Relaxed, time::Duration};

use tokio::{sync::oneshot, time::timeout};

use super::{
    index::Rooms,
    join_guard::JoinGuard,
    location::Location,
    migration_request::MigrationRequest,
    migrations::{Migration, Waiter},
    room::Room,
};
use crate::{
    cluster::{
        Answer, Direct, Event, Load, MAX_IDS, NodeId, Outbound, PART_BYTES, Permissions,
        SessionTransfer,
    },
    history::Past,
    outbox::Outbox,
    protocol::{self, SessionId},
    websocket::Frame,
};

/// A session that is offered to a node. Dropping it takes the offer back.
struct Offer<'a> {
    room: &'a Room,
    node: NodeId,
    lookup: u64,
}

impl Drop for Offer<'_> {
    fn drop(&mut self) {
        if let Some(remote) = &mut self.room.members.write().remote {
            remote.migrations.remove_offer(self.node, self.lookup);
        }
    }
}

impl Rooms {
    /// The answer to a node that looks up a session which is not on this node. `None` if the session
    /// migrates, and the answer comes when it has arrived.
    pub(crate) fn answer_lookup(&self, request: &MigrationRequest) -> Option<Answer> {
        let Some(room) = self.find(&request.room) else {
            return Some(Answer::NotHere);
        };
        let mut members = room.members.write();
        let Some(remote) = &mut members.remote else {
            return Some(Answer::NotHere);
        };
        let waiter = Waiter::Remote(request.node, request.seek);
        if remote.migrations.add_waiter(&request.token, waiter) {
            return None;
        }
        Some(match remote.lookups.contains(&request.token) {
            true => Answer::WantedHere,
            false => Answer::NotHere,
        })
    }
}

impl JoinGuard {
    /// Offers the session to a node that looks it up, and waits for the answer, for `limit` at most.
    /// Returns whether the node still wants the session.
    pub(crate) async fn offer(&self, to: &MigrationRequest, limit: Duration) -> bool {
        let room = &*self.reservation.room;
        let (node, lookup) = (to.node, to.seek);
        let _offer = Offer { room, node, lookup };
        let answer = {
            let mut members = room.members.write();
            let Some(remote) = &mut members.remote else {
                return false;
            };
            let (answered, answer) = oneshot::channel();
            remote.migrations.insert_offer(node, lookup, answered);
            let offer = Direct::Offer {
                room: to.room.clone(),
                seek: lookup,
                token: to.token,
            };
            remote.outbound.batch().notify(node, offer);
            answer
        };
        matches!(timeout(limit, answer).await, Ok(Ok(true)))
    }

    /// Transfers the session to a node that looks it up, with its outbox, the permissions of its token, and
    /// what it owes to its rate limits. The receiver ends when the session needs this node no longer.
    ///
    /// Returns `None` if the client's missed messages are no longer kept, the session is ending, or `may_close`
    /// returns false. Then the session stays on this node.
    pub(crate) fn migrate(
        &self,
        outbox: &Outbox,
        to: &MigrationRequest,
        permissions: Option<Permissions>,
        owed: [u64; 2],
        may_close: impl FnOnce() -> bool,
    ) -> Option<oneshot::Receiver<()>> {
        let room = &self.reservation.room;
        let mut members = room.members.write();
        let member = members.sessions.get(&self.id)?;
        if member.moves() != self.moves
            || !matches!(member.location, Location::Local(_))
            || members.remote.is_none()
        {
            return None;
        }
        let record = member.to_record(self.id);
        let missed = outbox.take_missed(to.received, may_close)?;
        let known = members.sessions.iter().filter(|(id, _)| **id != self.id);
        let known: Vec<(SessionId, u64)> = known
            .map(|(id, member)| (*id, member.state_number()))
            .collect();
        let remote = members.remote.as_mut()?;
        let mut past = Vec::new();
        if let Past::Events(events) = &self.past {
            let mut events = events.clone();
            remote.add_lost(&mut events, &BTreeMap::new());
            past = events.to_vec();
        }
        // The session may have migrated from here before, and be back.
        let waiters = remote.migrations.remove(self.id);
        remote.send_ask_again(&room.name, waiters);
        // This event follows all that the session has sent, also to single sessions. If this node is disconnected,
        // the session cannot arrive.
        let _ = remote.send_event(&room.name, Event::Join(record.clone()));
        let (migration, waiting) = Migration::new(record.clone(), to.node, to.seek, to.token);
        remote.migrations.insert(migration);
        let transfer = SessionTransfer {
            room: room.name.clone(),
            seek: to.seek,
            token: to.token,
            member: record,
            taken_in: self.info.taken_in.load(Relaxed),
            binary: self.info.binary.load(Relaxed),
            owed,
            permissions,
            seen: remote.seen_events(),
            delivered: remote.delivered(),
            past,
            part: 0,
            known: Vec::new(),
            states: Vec::new(),
            more: false,
        };
        send_parts(&remote.outbound, to.node, &transfer, &known, &missed);
        members.set_location(self.id, Location::Migrating(to.node));
        Some(waiting)
    }
}

/// Sends a session in parts. Each has some of the sessions that it knows, and some of the messages that
/// its client has not received.
fn send_parts(
    outbound: &Outbound,
    node: NodeId,
    transfer: &SessionTransfer,
    known: &[(SessionId, u64)],
    missed: &[Frame],
) {
    let mut batch = outbound.batch();
    // Each id may stand twice, with the number of its state.
    let mut known = known.chunks(MAX_IDS / 2);
    let mut texts = json_arrays(missed).into_iter().peekable();
    for part in 0.. {
        let (ids, text) = (known.next().unwrap_or_default(), texts.next());
        let more = known.len() > 0 || texts.peek().is_some();
        let transfer = SessionTransfer {
            room: transfer.room.clone(),
            member: transfer.member.clone(),
            permissions: transfer.permissions.clone(),
            seen: transfer.seen.clone(),
            delivered: transfer.delivered.clone(),
            past: if part == 0 {
                transfer.past.clone()
            } else {
                Vec::new()
            },
            part,
            known: ids.iter().map(|(id, _)| *id).collect(),
            states: ids
                .iter()
                .filter(|(_, state)| *state > 0)
                .copied()
                .collect(),
            more,
            ..*transfer
        };
        let text = text.unwrap_or_else(|| b"[]".to_vec());
        // If this node is disconnected, the session cannot arrive, and leaves the room.
        let message = Direct::Handed(Box::new(transfer));
        let _ = batch.tell_node(node, message, &text, Load::Line);
        if !more {
            break;
        }
    }
}

/// Messages as JSON arrays that are small enough for one part each.
fn json_arrays(frames: &[Frame]) -> Vec<Vec<u8>> {
    let mut arrays: Vec<Vec<u8>> = Vec::new();
    for frame in frames {
        let json = protocol::to_json(frame);
        match arrays.last_mut() {
            Some(array) if array.len() + json.len() <= PART_BYTES => {
                array.push(b',');
                array.extend_from_slice(&json);
            }
            _ => arrays.push([b"[", &*json].concat()),
        }
    }
    arrays.iter_mut().for_each(|array| array.push(b']'));
    arrays
}

impl Room {
    /// Notes a node's answer to an offer: whether it still wants the session.
    pub(super) fn answer_offer(&self, node: NodeId, lookup: u64, accepted: bool) {
        let mut members = self.members.write();
        let remote = members.remote.as_mut();
        let offer = remote.and_then(|it| it.migrations.remove_offer(node, lookup));
        if let Some(offer) = offer {
            // The session may have given up.
            let _ = offer.send(accepted);
        }
    }

    /// Notes that a node sends nothing more to a session over this one.
    pub(super) fn redirected(&self, node: NodeId, id: SessionId) {
        if let Some(remote) = &mut self.members.write().remote {
            let finished = remote.migrations.redirected(node, Some(id));
            remote.send_forwarding_done(&self.name, finished);
        }
    }
}

#[cfg(all(test, feature = "cluster"))]
mod tests {
    use super::{super::session_info::SessionInfo, *};
    use crate::{
        cluster::{Message, NodePast, SessionRecord, TestLink},
        outbox::detached_outbox,
        protocol::{ResumeToken, RoomName},
    };

    fn transfer() -> SessionTransfer {
        SessionTransfer {
            room: RoomName::default_room(),
            seek: 7,
            token: ResumeToken::random(None).hash(),
            member: SessionRecord {
                moves: 2,
                ..SessionRecord::first(SessionId::random())
            },
            taken_in: 3,
            binary: 1,
            owed: [4, 5],
            permissions: Some(Permissions {
                user: Some("ann".into()),
                may_send: true,
                expires: 6,
            }),
            seen: vec![(NodeId::random(), 8)],
            delivered: vec![(NodeId::random(), 9)],
            past: vec![(NodeId::random(), NodePast::default())],
            part: 0,
            known: Vec::new(),
            states: Vec::new(),
            more: false,
        }
    }

    fn message(bytes: usize) -> Frame {
        let text = format!("\"{}\"", "x".repeat(bytes - 2));
        Frame::text(|buffer| buffer.extend_from_slice(text.as_bytes()))
    }

    /// Sends a session, and returns its parts, each with its text.
    fn parts(
        transfer: &SessionTransfer,
        known: &[(SessionId, u64)],
        missed: &[Frame],
    ) -> Vec<(SessionTransfer, String)> {
        let (here, other) = (TestLink::open(), TestLink::open());
        send_parts(&here.outbound, other.node, transfer, known, missed);
        let mut parts = Vec::new();
        here.carry_to(&other, |envelope| match envelope.message {
            Message::Node(Direct::Handed(part)) => parts.push((*part, envelope.text.to_owned())),
            other => panic!("not a part: {other:?}"),
        });
        parts
    }

    #[test]
    fn a_session_is_sent_in_as_many_parts_as_its_lists_need() {
        let transfer = transfer();
        // Every other session has set a state.
        let most = MAX_IDS / 2;
        let ids: Vec<(SessionId, u64)> = (0..2 * most as u64 + 1)
            .map(|number| (SessionId::random(), number % 2))
            .collect();
        let large = message(PART_BYTES);
        for (known, missed, count) in [
            (&ids[..0], vec![], 1),
            (&ids[..], vec![], 3),
            (&ids[..most], vec![large.clone(), large.clone()], 2),
            (&ids[..most + 1], vec![large.clone(); 4], 4),
        ] {
            let parts = parts(&transfer, known, &missed);
            assert_eq!(parts.len(), count);
            let (mut all_known, mut all_states, mut all_missed) = (vec![], vec![], vec![]);
            for (number, (part, text)) in parts.into_iter().enumerate() {
                assert_eq!((part.part, part.more), (number, number + 1 < count));
                assert_eq!(part.seen, transfer.seen);
                assert_eq!(part.delivered, transfer.delivered);
                let past: &[_] = if number == 0 { &transfer.past } else { &[] };
                assert_eq!(part.past, past);
                all_states.extend(part.states);
                let user = part.permissions.and_then(|permissions| permissions.user);
                assert_eq!(user.as_deref(), Some("ann"));
                assert_eq!((part.member.id, part.owed), (transfer.member.id, [4, 5]));
                all_known.extend(part.known);
                all_missed.extend(serde_json::from_str::<Vec<String>>(&text).unwrap());
            }
            assert!(all_known.iter().eq(known.iter().map(|(id, _)| id)));
            assert!(
                all_states
                    .iter()
                    .eq(known.iter().filter(|(_, state)| *state > 0))
            );
            assert_eq!(all_missed.len(), missed.len());
        }
    }

    #[test]
    fn small_messages_are_sent_in_one_array_up_to_its_limit() {
        let half = PART_BYTES / 2;
        // An opening bracket comes first.
        let fits = [message(half), message(half - 1)];
        let [array] = &json_arrays(&fits)[..] else {
            panic!("two messages that fit are apart")
        };
        let messages: Vec<String> = serde_json::from_slice(array).unwrap();
        assert_eq!(messages.len(), 2);
        assert_eq!(json_arrays(&[message(half), message(half)]).len(), 2);
        assert!(json_arrays(&[]).is_empty());
    }

    #[test]
    fn a_session_that_has_left_this_node_does_not_migrate_from_it() {
        let link = TestLink::open();
        let rooms = Rooms::empty(Some(link.outbound.clone()));
        let room = RoomName::default_room();
        let reservation = rooms.reserve(&room).unwrap();
        let (sender, outbox) = detached_outbox(1000, 0, Vec::new());
        let (id, info) = (SessionId::random(), SessionInfo::new(None, None));
        let session = reservation.join(id, sender.clone(), info);
        let request = MigrationRequest {
            node: NodeId::random(),
            room,
            seek: 7,
            token: ResumeToken::random(None).hash(),
            received: 0,
            seen: Vec::new(),
        };
        let migrate = || session.migrate(&outbox, &request, None, [0, 0], || true);
        let members = &session.reservation.room.members;

        let elsewhere = Location::Migrating(request.node);
        members.write().set_location(id, elsewhere);
        assert!(migrate().is_none());
        members.write().set_location(id, Location::Local(sender));
        // The session has been away, and is back with another guard.
        let set_moves = |moves| {
            let mut members = members.write();
            members.sessions.get_mut(&id).unwrap().set_moves(moves);
        };
        set_moves(2);
        assert!(migrate().is_none());
        set_moves(0);
        assert!(migrate().is_some());
        assert!(migrate().is_none());
    }
}
