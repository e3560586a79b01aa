//! A room: its name, and its sessions under a lock.

use std::{sync::Arc, time::Duration};

use parking_lot::RwLock;
use tokio::time::timeout;

use super::{
    location::Location,
    lookups::Lookups,
    members::Members,
    recorded_event::RecordedEvent,
    remote_view::RemoteView,
    session_info::{SessionSnapshot, longest_joined_first},
    speaker::Speaker,
};
use crate::{
    cluster::{Event, NodeId},
    history::{History, Past, Receipt, Said},
    outbox::{FlushSet, Flushing},
    protocol::{self, Receiver, RoomName, SessionId},
    websocket::Frame,
};

/// A room.
pub(super) struct Room {
    pub(super) name: RoomName,
    pub(super) members: RwLock<Members>,
    /// Present if the room keeps what is said to all.
    pub(super) history: Option<Arc<History>>,
}

/// What has become of a message.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Delivery {
    /// How many sessions receive it.
    pub(crate) receivers: usize,
    /// Whether it waits for its receiver.
    pub(crate) is_waiting: bool,
    /// Whether it will be in the history of the room, and its receipt follows when it is; `None` if the room keeps
    /// none.
    pub(crate) is_kept: Option<bool>,
}

impl Room {
    /// An empty room.
    pub(super) fn new(
        name: RoomName,
        remote: Option<RemoteView>,
        history: Option<Arc<History>>,
    ) -> Room {
        Room {
            name,
            history,
            members: RwLock::new(Members::new(remote)),
        }
    }

    /// Whether no session is in the room, on any node.
    pub(super) fn is_empty(&self) -> bool {
        self.members.read().sessions.is_empty()
    }

    /// All sessions, longest-joined first.
    pub(super) fn snapshots(&self) -> Vec<SessionSnapshot> {
        let members = self.members.read();
        let snapshots = members.sessions.iter().map(|(id, member)| {
            let snapshot = SessionSnapshot {
                id: *id,
                location: member.location.clone(),
                info: member.info.clone(),
                state: member.state().cloned(),
            };
            (member.joined, snapshot)
        });
        longest_joined_first(snapshots.collect())
    }

    /// Sends to the receivers of a message.
    pub(super) fn route(
        &self,
        speaker: Speaker<'_>,
        receiver: &Receiver<'_>,
        frame: &Frame,
        flush_set: &mut FlushSet,
    ) -> Delivery {
        let receivers = match receiver {
            Receiver::All => return self.broadcast(speaker, frame, flush_set),
            Receiver::Session(id) => usize::from(self.send(speaker, *id, frame.clone(), flush_set)),
            Receiver::User(name) => self.send_to_user(speaker, name, frame, flush_set),
            Receiver::Server | Receiver::Unknown(_) => 0,
        };
        Delivery {
            receivers,
            ..Delivery::default()
        }
    }

    /// Sends to one session. Returns `false` if no session with that id takes messages.
    fn send(
        &self,
        speaker: Speaker<'_>,
        receiver: SessionId,
        frame: Frame,
        flush_set: &mut FlushSet,
    ) -> bool {
        let members = self.members.read();
        let member = members.sessions.get(&receiver);
        match member.map(|member| &member.location) {
            Some(Location::Local(outbox)) => outbox.push(frame, flush_set).is_ok(),
            Some(location) => {
                members.introduce(&self.name, speaker.id);
                members.remote.as_ref().is_some_and(|remote| {
                    let sent = remote.unicast(&self.name, location, speaker, receiver, frame);
                    sent.is_ok()
                })
            }
            None => false,
        }
    }

    /// Sends to every session but the sender, and has the message stored if the room keeps a history.
    fn broadcast(&self, speaker: Speaker<'_>, frame: &Frame, flush_set: &mut FlushSet) -> Delivery {
        let sender = speaker.id;
        let members = self.members.read();
        let (mut local, mut remote_count) = (0, 0);
        for (id, member) in &members.sessions {
            match &member.location {
                Location::Local(_) if Some(*id) == sender => {}
                Location::Local(outbox) => {
                    local += usize::from(outbox.push(frame.clone(), flush_set).is_ok())
                }
                Location::Remote(_) | Location::Migrating(_) | Location::Importing(..) => {
                    remote_count += 1
                }
            }
        }
        members.note_room(flush_set);
        let mut delivery = Delivery {
            receivers: local,
            ..Delivery::default()
        };
        match &members.remote {
            // If the room keeps a history, the number of the event tells later who has received the message.
            Some(remote) if remote_count > 0 || self.history.is_some() => {
                members.introduce(&self.name, speaker.id);
                let event = Event::Broadcast(sender);
                let said = self.said(&members, speaker, frame);
                let keep = |number, is_sent| {
                    delivery.receivers += if is_sent { remote_count } else { 0 };
                    let receivers = delivery.receivers;
                    delivery.is_kept = self.keep(&members, Some(number), speaker, said, receivers);
                };
                let json = protocol::to_json(frame);
                let number = remote.send_message(&self.name, event, &json, speaker, keep);
                remote.record_own(number, &RecordedEvent::Broadcast(sender, frame.clone()));
            }
            _ => {
                let said = self.said(&members, speaker, frame);
                delivery.is_kept = self.keep(&members, None, speaker, said, local);
            }
        }
        delivery
    }

    /// A message to all as it is stored; `None` if the room keeps no history, or the message is binary.
    fn said(&self, members: &Members, speaker: Speaker<'_>, frame: &Frame) -> Option<Said> {
        self.history.as_ref().filter(|_| !frame.is_binary())?;
        let sender = speaker.id.and_then(|id| members.sessions.get(&id));
        let from = sender.and_then(|member| member.info.public());
        Some(Said::now(from, frame))
    }

    /// Has a message to all stored, which has this number among the events of this node in a cluster; `None` if the
    /// room keeps no history. A session that joins, which needs the members for itself, comes before the message or
    /// after it.
    fn keep(
        &self,
        members: &Members,
        event: Option<u64>,
        speaker: Speaker<'_>,
        said: Option<Said>,
        receivers: usize,
    ) -> Option<bool> {
        let history = self.history.as_ref()?;
        let sender = speaker
            .id
            .and_then(|id| Some((id, members.sessions.get(&id)?)));
        let receipt = sender.and_then(|(id, member)| {
            let outbox = member.location.outbox()?.clone();
            Some(Receipt {
                outbox,
                id,
                reference: speaker.reference.map(ToOwned::to_owned),
                receivers,
            })
        });
        let kept = history.append(&self.name, event, said?, receipt);
        Some(kept.is_ok())
    }

    /// Sends to every session of a user but the sender; returns how many receive it.
    fn send_to_user(
        &self,
        speaker: Speaker<'_>,
        user: &str,
        frame: &Frame,
        flush_set: &mut FlushSet,
    ) -> usize {
        let receivers: Vec<SessionId> = {
            let members = self.members.read();
            let of_user = members.sessions.iter().filter(|(id, member)| {
                member.info.user() == Some(user) && Some(**id) != speaker.id
            });
            of_user.map(|(id, _)| *id).collect()
        };
        // One session that cannot be reached is no error.
        let speaker = Speaker {
            reference: None,
            ..speaker
        };
        let receivers = receivers.into_iter();
        let count = receivers
            .filter(|receiver| self.send(speaker, *receiver, frame.clone(), flush_set))
            .count();
        self.members.read().note_room(flush_set);
        count
    }

    /// Sends to every session of this node; returns how many receive it.
    pub(super) fn send_to_local(&self, frame: &Frame, flush_set: &mut FlushSet) -> usize {
        let members = self.members.read();
        let receivers = members.push_to_local(frame, None, flush_set);
        // In a cluster, the other nodes are not told.
        if members.remote.is_none() {
            let said = self.said(&members, Speaker::default(), frame);
            self.keep(&members, None, Speaker::default(), said, receivers);
        }
        receivers
    }

    /// What was said before a session that joins now.
    pub(super) fn past(&self, members: &Members) -> Past {
        match (&self.history, &members.remote) {
            (Some(_), Some(remote)) => Past::Events(remote.past_events().into()),
            (Some(history), None) => Past::Before(history.next_number()),
            (None, _) => Past::Before(0),
        }
    }

    /// Sends to all in the room, once it is known how many sessions are there, on all nodes.
    pub(super) fn publish(
        &self,
        speaker: Speaker<'_>,
        write: impl FnOnce(usize) -> Frame,
        flush_set: &mut FlushSet,
    ) -> Delivery {
        let count = self.members.read().sessions.len();
        self.broadcast(speaker, &write(count), flush_set)
    }

    /// Whether what is said to all goes to other nodes. What a connection says that is in no room may go to any.
    pub(super) fn tells_other_nodes(&self) -> bool {
        if self.name.is_nowhere() {
            return true;
        }
        let members = self.members.read();
        let remote = members.remote.as_ref();
        remote.is_some_and(|remote| remote.remote_sessions > 0 || self.history.is_some())
    }

    /// Calls `f` with the sessions that this node looks up; returns the default without a cluster.
    pub(super) fn with_lookups<T: Default>(&self, f: impl FnOnce(&Lookups) -> T) -> T {
        let members = self.members.read();
        let remote = members.remote.as_ref();
        remote.map_or_else(T::default, |remote| f(&remote.lookups))
    }

    /// Waits until every other node has listed its sessions in the room, for `limit` at most. A node that
    /// is silent for longer delays nobody.
    pub(super) async fn wait_for_snapshots(&self, limit: Duration) {
        let waiting = {
            let remote = &mut self.members.write().remote;
            remote.as_mut().and_then(|it| it.wait_for_snapshots())
        };
        if let Some(waiting) = waiting {
            let _ = timeout(limit, waiting).await;
        }
    }

    /// Waits until this node has seen the events of nodes up to these numbers, for `limit` at most. Some
    /// of the events may have been lost on the way.
    pub(super) async fn wait_for_events(&self, events: &[(NodeId, u64)], limit: Duration) {
        let waiting = {
            let remote = &mut self.members.write().remote;
            remote.as_mut().and_then(|it| it.wait_for_events(events))
        };
        if let Some(waiting) = waiting {
            let _ = timeout(limit, waiting).await;
        }
    }

    /// A flush of an outbox that had filled up, if one is under way: nobody should send to the room before its end. There
    /// may be another one then.
    pub(super) fn flushing(&self) -> Option<Flushing> {
        self.members.read().flushing()
    }

    /// Waits until no outbox in the room is flushed because it had filled up.
    pub(super) async fn wait_for_flushes(&self) {
        while let Some(flushing) = self.flushing() {
            flushing.end().await;
        }
    }

    /// Announces that this node has left the room. A task that still holds the room cannot tell other
    /// nodes about it after that.
    pub(super) fn exit(&self) {
        if let Some(remote) = self.members.write().remote.take() {
            remote.exit(&self.name);
        }
    }
}
