//! Pure data: the answers of this node to messages of other nodes.

use std::{
    collections::{BTreeMap, BTreeSet},
    iter,
};

use serde_json::value::RawValue;

use crate::{
    cluster::{Direct, MAX_ROOMS, NodeId, Outbound},
    protocol::{RoomName, SessionId},
};

/// The answers to a batch of messages. They are collected so that many messages about one room need only
/// one answer.
#[derive(Default)]
pub(crate) struct Replies {
    /// The numbers of the last events that were seen, and of the last own events at that time.
    seen: BTreeMap<(NodeId, RoomName), (u64, u64)>,
    /// Nodes that are asked for their sessions in these rooms.
    asked: BTreeMap<NodeId, BTreeSet<RoomName>>,
    /// Nodes that learn that this node is not in these rooms.
    absent: BTreeMap<NodeId, BTreeSet<RoomName>>,
    /// Nodes that learn that a message of their sessions was not delivered.
    undelivered: Vec<(NodeId, Direct)>,
    /// How many sessions of this node were told that their message was not delivered.
    pub(crate) told_undelivered: u64,
    /// How many messages were not delivered although no sender was told.
    lost: u64,
}

/// A message to one session that was not delivered.
pub(super) struct Undelivered<'a> {
    /// The sender; `None` for a backend.
    pub(super) sender: Option<SessionId>,
    pub(super) receiver: SessionId,
    /// The `ref` that the client gave the message.
    pub(super) reference: Option<&'a RawValue>,
}

impl<'a> Undelivered<'a> {
    /// A message between these two.
    pub(super) fn new(
        sender: Option<SessionId>,
        receiver: SessionId,
        reference: &'a Option<Box<RawValue>>,
    ) -> Undelivered<'a> {
        Undelivered {
            sender,
            receiver,
            reference: reference.as_deref(),
        }
    }

    /// The message to the sender's node; `None` for a backend, which does not wait for one.
    pub(super) fn to_direct(&self, room: &RoomName) -> Option<Direct> {
        Some(Direct::Undelivered {
            room: room.clone(),
            sender: self.sender?,
            receiver: self.receiver,
            reference: self.reference.map(ToOwned::to_owned),
        })
    }
}

impl Replies {
    /// Tells a node that its events of a room have been seen up to this number, when the last own event was `own`.
    pub(super) fn add_seen(&mut self, node: NodeId, room: &RoomName, number: u64, own: u64) {
        self.seen.insert((node, room.clone()), (number, own));
    }

    /// Asks a node for its sessions in a room.
    pub(super) fn ask(&mut self, node: NodeId, room: &RoomName) {
        self.asked.entry(node).or_default().insert(room.clone());
    }

    /// Tells a node that this node is not in a room.
    pub(super) fn add_absent(&mut self, node: NodeId, room: RoomName) {
        self.absent.entry(node).or_default().insert(room);
    }

    /// Tells a node that its message to a session here was rejected.
    pub(crate) fn reject(&mut self, node: NodeId, message: Direct) {
        if let Direct::Unicast {
            room,
            sender,
            receiver,
            reference,
        } = message
        {
            let message = Undelivered::new(sender, receiver, &reference);
            self.add_undelivered(node, &room, message);
        }
    }

    /// Tells a node that its message to a session here was not delivered.
    pub(super) fn add_undelivered(
        &mut self,
        node: NodeId,
        room: &RoomName,
        message: Undelivered<'_>,
    ) {
        match message.to_direct(room) {
            Some(undelivered) => self.undelivered.push((node, undelivered)),
            None => self.lost += 1,
        }
    }

    /// Sends the answers. While this node is disconnected they are dropped, and no node waits for them.
    /// Returns how many messages were not delivered although no sender was told.
    pub(crate) fn send(mut self, outbound: &Outbound) -> u64 {
        let mut batch = outbound.batch();
        for ((node, room), (number, last)) in self.seen {
            batch.notify(node, Direct::Seen { room, number, last });
        }
        for (node, rooms) in self.asked {
            for rooms in chunks(rooms) {
                batch.notify(node, Direct::Ask(rooms));
            }
        }
        for (node, rooms) in self.absent {
            for rooms in chunks(rooms) {
                batch.notify(node, Direct::Absent(rooms));
            }
        }
        for (node, undelivered) in self.undelivered {
            self.lost += u64::from(batch.reply(node, undelivered).is_err());
        }
        self.lost
    }
}

/// Rooms in chunks that are small enough for one message each.
fn chunks(rooms: BTreeSet<RoomName>) -> impl Iterator<Item = Vec<RoomName>> {
    let mut rooms = rooms.into_iter();
    iter::from_fn(move || {
        let chunk: Vec<RoomName> = rooms.by_ref().take(MAX_ROOMS).collect();
        (!chunk.is_empty()).then_some(chunk)
    })
}

#[cfg(all(test, feature = "cluster"))]
mod tests {
    use super::*;
    use crate::cluster::{Message, TestLink};

    fn unicast(sender: Option<SessionId>) -> Direct {
        Direct::Unicast {
            room: RoomName::default_room(),
            sender,
            receiver: SessionId::random(),
            reference: Some(RawValue::from_string("7".into()).unwrap()),
        }
    }

    /// The answers as the other node receives them.
    fn carry(from: &TestLink, to: &TestLink) -> Vec<Direct> {
        let mut received = Vec::new();
        from.carry_to(to, |envelope| match envelope.message {
            Message::Node(message) => received.push(message),
            other => panic!("not an answer: {other:?}"),
        });
        received
    }

    #[test]
    fn the_node_of_the_sender_is_told_of_a_message_that_was_not_delivered() {
        let (here, other) = (TestLink::open(), TestLink::open());
        let mut replies = Replies::default();
        let id = SessionId::random();
        replies.reject(other.node, unicast(Some(id)));
        // A backend does not wait.
        replies.reject(other.node, unicast(None));
        assert_eq!(replies.send(&here.outbound), 1);
        let received = carry(&here, &other);
        let [
            Direct::Undelivered {
                sender, reference, ..
            },
        ] = &received[..]
        else {
            panic!("{received:?}")
        };
        assert_eq!((*sender, reference.as_ref().unwrap().get()), (id, "7"));
    }

    #[test]
    fn undelivered_messages_of_which_no_sender_is_told_are_counted() {
        let (here, other) = (TestLink::open(), TestLink::open());
        let mut replies = Replies::default();
        let sender = Some(SessionId::random());
        for sender in [None, None, sender, sender, sender] {
            replies.reject(other.node, unicast(sender));
        }
        here.disconnect();
        assert_eq!(replies.send(&here.outbound), 5);
    }

    #[test]
    fn one_answer_says_up_to_which_event_a_room_was_seen() {
        let (here, other) = (TestLink::open(), TestLink::open());
        let mut replies = Replies::default();
        let room = RoomName::default_room();
        (3..6).for_each(|number| replies.add_seen(other.node, &room, number, 0));
        replies.send(&here.outbound);
        let received = carry(&here, &other);
        assert!(matches!(received[..], [Direct::Seen { number: 5, .. }]));
    }
}
