//! Names in a room: which session has one, and messages to a name.
//!
//! Sessions claim names when they join. Every node knows all claims and decides alike whose a name is, so of sessions
//! that claim one at once, on whichever nodes, one has it and each other is closed. A message to a name goes to the
//! session that has it. While none does, or that session has no connection, the message waits on the node that has it,
//! for a few seconds.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use serde_json::value::RawValue;
use tokio::time::Instant;

use super::{
    index::Rooms,
    location::Location,
    member::Member,
    members::Members,
    recorded_event::relayed_frame,
    replies::Undelivered,
    room::{Delivery, Room},
    session_info::{NameClaim, SessionInfo},
    speaker::Speaker,
};
use crate::{
    cluster::NodeId,
    dialects,
    outbox::FlushSet,
    protocol::{Close, RoomName, SessionId, TokenHash},
    websocket::Frame,
};

/// How long a message waits for a session with its name.
const WAIT: Duration = Duration::from_secs(5);

/// What has become of a message to a name.
enum Outcome {
    Sent,
    /// It waits. The time is that of the first message for the name.
    Waits(Option<Instant>),
    /// It can neither be delivered nor wait: too much of its author waits.
    Expired,
    /// It never waits, and nobody receives it.
    Dropped,
}

/// Claims.
impl Members {
    /// Numbers the claim of a session that joins now: with the number of the session whose name it takes over, or with
    /// its own join number.
    pub(super) fn number_claim(&self, info: &SessionInfo) {
        if let Some(claim) = &info.claim {
            let earlier = self.claims(&claim.name);
            let same = earlier.filter(|(_, _, other)| other.secret == claim.secret);
            let number = same.map(|(_, _, other)| other.number.load(Relaxed)).min();
            claim.number.store(number.unwrap_or(self.clock), Relaxed);
        }
    }

    /// Adds the claim of a session, and closes each session of this node that does not have the name.
    pub(super) fn add_claim(
        &mut self,
        room: &RoomName,
        id: SessionId,
        name: &Arc<str>,
        flush_set: &mut FlushSet,
    ) {
        self.names.get_or_insert_default().add(name, id);
        let Some((owner, member, owned)) = self.owner(name) else {
            return;
        };
        let is_local = member.location.outbox().is_some();
        let format = dialects::of(room);
        for (other, member, claim) in self.claims(name) {
            let Some(outbox) = member.location.outbox().filter(|_| other != owner) else {
                continue;
            };
            if claim.secret != owned.secret {
                if let Some(taken) = format.name_taken() {
                    // A session that takes nothing more is leaving.
                    let _ = outbox.push(taken, flush_set);
                }
                outbox.close(Close::name_taken());
            } else if !format.shares_names() {
                outbox.close(Close::taken_over());
            }
        }
        if !is_local {
            self.deliver_waiting(room, name, flush_set);
        }
    }

    /// The sessions that claim a name, with their claims.
    fn claims(&self, name: &str) -> impl Iterator<Item = (SessionId, &Member, &NameClaim)> {
        let names = self.names.as_ref();
        let claimants = names.map_or(&[][..], |names| names.claimants(name));
        claimants.iter().filter_map(|id| {
            let member = self.sessions.get(id)?;
            Some((*id, member, member.info.claim.as_deref()?))
        })
    }

    /// The session that has a name: of those with the secret of the first claim, the last.
    fn owner(&self, name: &str) -> Option<(SessionId, &Member, &NameClaim)> {
        let order = |(id, member, claim): &(SessionId, &Member, &NameClaim)| {
            (claim.number.load(Relaxed), member.joined, *id)
        };
        let first = self.claims(name).min_by_key(order)?;
        let same = self.claims(name);
        same.filter(|(_, _, claim)| claim.secret == first.2.secret)
            .max_by_key(|(id, member, _)| (member.joined, *id))
    }

    /// Sends a frame to the session that has a name; returns whether it takes the frame.
    fn push_to_owner(
        &self,
        room: &RoomName,
        speaker: Speaker<'_>,
        name: &str,
        frame: &Frame,
        flush_set: &mut FlushSet,
    ) -> bool {
        let Some((id, member, claim)) = self.owner(name) else {
            return false;
        };
        // This node does not speak for a session of another.
        let author = speaker.id.filter(|author| {
            let author = self.sessions.get(author);
            author.is_some_and(|author| author.location.is_own())
        });
        match &member.location {
            Location::Local(outbox) => {
                claim.is_open.load(Relaxed) && outbox.push(frame.clone(), flush_set).is_ok()
            }
            location => self.remote.as_ref().is_some_and(|remote| {
                self.introduce(room, author);
                // If the session is gone when the message comes, its node still knows for which name it is.
                let reference = serde_json::value::to_raw_value(name);
                let reference = reference.expect("a string always serializes");
                let speaker = Speaker {
                    id: author,
                    reference: Some(&reference),
                    ..speaker
                };
                let sent = remote.unicast(room, location, speaker, id, frame.clone());
                sent.is_ok()
            }),
        }
    }

    /// Sends the messages that wait for a name to the session that has it now.
    fn deliver_waiting(&mut self, room: &RoomName, name: &str, flush_set: &mut FlushSet) {
        let waiting = self.names.as_mut().map(|names| names.take(name));
        for message in waiting.into_iter().flatten() {
            let speaker = Speaker {
                id: message.author,
                ..Speaker::default()
            };
            self.push_to_owner(room, speaker, name, &message.frame, flush_set);
        }
    }
}

/// A name that sessions hold together.
impl Room {
    pub(super) fn secret_of(&self, name: &str) -> Option<TokenHash> {
        let members = self.members.read();
        let (_, _, claim) = members.owner(name)?;
        Some(claim.secret)
    }

    /// How many sessions hold the name of this one with the same secret, up to this one in the order of joining. `None`
    /// if another secret has the name.
    pub(super) fn rank(&self, id: SessionId) -> Option<usize> {
        let members = self.members.read();
        let member = members.sessions.get(&id)?;
        let own = member.info.claim.as_ref()?;
        let (_, _, owned) = members.owner(&own.name)?;
        let place = |member: &Member, id| (member.joined, id);
        let same = members.claims(&own.name);
        let same = same.filter(|(_, _, claim)| claim.secret == own.secret);
        let before = same.filter(|(other, at, _)| place(at, *other) <= place(member, id));
        (owned.secret == own.secret).then(|| before.count())
    }

    /// The sessions that hold the name of this one with the same secret, this one included.
    pub(super) fn same_claims(&self, id: SessionId) -> Vec<(SessionId, Location)> {
        let members = self.members.read();
        let own = members.sessions.get(&id);
        let own = own.and_then(|member| member.info.claim.as_ref());
        let same = own.into_iter().flat_map(|own| {
            let claims = members.claims(&own.name);
            claims.filter(|(_, _, claim)| claim.secret == own.secret)
        });
        same.map(|(id, member, _)| (id, member.location.clone()))
            .collect()
    }
}

/// Messages to names.
impl Room {
    /// Ends the joining of a session: it has the name that it claims, and takes messages to it after `first`. Does
    /// nothing if another session has the name.
    pub(super) fn open_name(&self, id: SessionId, first: Option<Frame>, flush_set: &mut FlushSet) {
        let mut members = self.members.write();
        let Some(info) = members.sessions.get(&id).map(|member| member.info.clone()) else {
            return;
        };
        let Some(claim) = &info.claim else {
            return;
        };
        let owner = members.owner(&claim.name);
        if let Some((_, member, _)) = owner.filter(|(owner, ..)| *owner == id)
            && let Some(outbox) = member.location.outbox()
        {
            if let Some(first) = first {
                // A session that takes nothing more is leaving.
                let _ = outbox.push(first, flush_set);
            }
            claim.is_open.store(true, Relaxed);
            members.deliver_waiting(&self.name, &claim.name, flush_set);
        }
    }

    /// A message that was `passed_on` by another node goes no further than to this one.
    fn send_to_name(
        &self,
        speaker: Speaker<'_>,
        name: &str,
        frame: &Frame,
        passed_on: bool,
        flush_set: &mut FlushSet,
    ) -> Outcome {
        let send = |members: &Members, flush_set: &mut FlushSet| {
            let is_here = || {
                let owner = members.owner(name);
                owner.is_some_and(|(_, member, _)| member.location.is_own())
            };
            (!passed_on || is_here())
                && members.push_to_owner(&self.name, speaker, name, frame, flush_set)
        };
        if send(&self.members.read(), flush_set) {
            return Outcome::Sent;
        }
        if !dialects::of(&self.name).waits(frame.payload()) {
            return Outcome::Dropped;
        }
        let mut members = self.members.write();
        // The session may have come in between.
        match send(&members, flush_set) {
            true => Outcome::Sent,
            false => members.wait(speaker.id, name, frame.clone()),
        }
    }

    /// Removes the messages to a name that have waited in vain. Returns their authors, and the deadline of the next
    /// message.
    fn expire(&self, name: &str) -> (Vec<SessionId>, Option<Instant>) {
        let mut members = self.members.write();
        let names = members.names.as_mut();
        names.map_or_else(Default::default, |names| names.expire(name, Instant::now()))
    }

    /// Tells the author of messages to a name that they have waited in vain.
    pub(super) fn tell_expired(&self, author: SessionId, name: &str, flush_set: &mut FlushSet) {
        let members = self.members.read();
        let Some(member) = members.sessions.get(&author) else {
            return;
        };
        let own_name = member.info.name().unwrap_or_default();
        let Some(frame) = dialects::of(&self.name).expired(name, own_name) else {
            return;
        };
        match (&member.location, &members.remote) {
            (Location::Local(outbox), _) => {
                // A session that takes nothing more is leaving.
                let _ = outbox.push(frame, flush_set);
            }
            (location, Some(remote)) => {
                let speaker = Speaker::default();
                // A node that cannot be reached has told its sessions by other means.
                let _ = remote.unicast(&self.name, location, speaker, author, frame);
            }
            (_, None) => {}
        }
    }

    /// Whether a message that comes from a node may be of this author.
    fn may_come(&self, node: NodeId, author: Option<SessionId>) -> bool {
        let members = self.members.read();
        let is_present = || {
            let remote = members.remote.as_ref();
            remote.is_some_and(|remote| remote.is_present(node))
        };
        author.map_or_else(is_present, |author| members.may_speak(node, author))
    }
}

impl Members {
    /// The name that a message from another node is for, as its reference says, if sessions of this room have names.
    pub(super) fn addressed_name(&self, reference: Option<&RawValue>) -> Option<String> {
        self.names.as_ref()?;
        serde_json::from_str(reference?.get()).ok()
    }

    fn wait(&mut self, author: Option<SessionId>, name: &str, frame: Frame) -> Outcome {
        let (name, deadline) = (Arc::from(name), Instant::now() + WAIT);
        let names = self.names.get_or_insert_default();
        match names.wait(&name, author, frame, deadline) {
            Some(is_first) => Outcome::Waits(is_first.then_some(deadline)),
            None => Outcome::Expired,
        }
    }
}

impl Rooms {
    /// Sends to the session that has a name in a room, or has the message wait for such a session.
    pub(super) fn send_to_name(
        &self,
        room: &Room,
        speaker: Speaker<'_>,
        name: &str,
        frame: &Frame,
        flush_set: &mut FlushSet,
    ) -> Delivery {
        self.send_or_wait(room, speaker, name, frame, false, flush_set)
    }

    fn send_or_wait(
        &self,
        room: &Room,
        speaker: Speaker<'_>,
        name: &str,
        frame: &Frame,
        passed_on: bool,
        flush_set: &mut FlushSet,
    ) -> Delivery {
        let outcome = room.send_to_name(speaker, name, frame, passed_on, flush_set);
        match (&outcome, speaker.id) {
            (Outcome::Waits(Some(deadline)), _) => {
                self.deadlines.add(*deadline, &room.name, &name.into());
            }
            (Outcome::Expired, Some(author)) => room.tell_expired(author, name, flush_set),
            _ => {}
        }
        let is_taken = matches!(outcome, Outcome::Sent | Outcome::Waits(_));
        Delivery {
            receivers: usize::from(is_taken),
            is_kept: None,
        }
    }

    /// Takes in a message of another node to a name. Returns whether it was one; else `message` is for the session
    /// with the id of its receiver.
    pub(super) fn apply_named(
        &self,
        node: NodeId,
        room: &Room,
        message: &Undelivered<'_>,
        text: &str,
        flush_set: &mut FlushSet,
    ) -> bool {
        let name = room.members.read().addressed_name(message.reference);
        let Some(name) = name else {
            return false;
        };
        if room.may_come(node, message.sender) {
            let speaker = Speaker {
                id: message.sender,
                ..Speaker::default()
            };
            let (frame, passed_on) = (relayed_frame(text), message.sender.is_none());
            self.send_or_wait(room, speaker, &name, &frame, passed_on, flush_set);
        }
        true
    }

    /// Tells the authors of messages to names when these have waited in vain. Never returns.
    pub(crate) async fn expire_messages(&self) {
        loop {
            let (room, name) = self.deadlines.next().await;
            let Some(room) = self.find(&room) else {
                continue;
            };
            let (authors, next) = room.expire(&name);
            if let Some(next) = next {
                self.deadlines.add(next, &room.name, &name);
            }
            let mut flush_set = FlushSet::default();
            for author in authors {
                room.tell_expired(author, &name, &mut flush_set);
            }
        }
    }
}
