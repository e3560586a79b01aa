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
    replies::Undelivered,
    room::{Delivery, Room},
    session_info::{NameClaim, SessionInfo},
    speaker::Speaker,
};
use crate::{
    cluster::NodeId,
    dialects,
    outbox::FlushSet,
    protocol::{self, Close, RoomName, SessionId, TokenHash},
    unix_time,
    websocket::Frame,
};

/// How long a message waits for a session with its name.
const WAIT: Duration = Duration::from_secs(5);

/// A message to a name.
pub(super) struct ToName<'a> {
    pub(super) speaker: Speaker<'a>,
    pub(super) name: &'a str,
    pub(super) frame: &'a Frame,
    pub(super) may_wait: bool,
    /// Whether a node has passed it on that is not its author's. Then it goes no further than to this one.
    pub(super) is_passed_on: bool,
}

/// What has become of a message to a name.
enum Outcome {
    Sent,
    /// It waits. The first message for the name has its deadline here.
    Waits(Option<(Instant, Arc<str>)>),
    /// Nobody receives it, and it does not wait.
    Dropped,
}

/// Claims.
impl Members {
    /// Gives the claim of a session that joins now its place: after all claims that the node has heard of. Times order
    /// claims also where a node has not heard of another claim, or has just entered the room.
    pub(super) fn time_claim(&self, info: &SessionInfo) {
        if let Some(claim) = &info.claim {
            if claim.time.load(Relaxed) > 0 {
                claim.first.store(claim.time.load(Relaxed), Relaxed);
                return;
            }
            let last = self.names.as_ref().map_or(0, |names| names.clock);
            let time = unix_time::unix_millis().max(last.saturating_add(1));
            let same = self.claims(&claim.name);
            // Who has a name together takes it from nobody, and may mistake a secret for one that still counts.
            let same = same.filter(|(.., other)| other.secret == claim.secret && !claim.is_shared);
            let first = same.map(|(.., other)| other.first.load(Relaxed)).min();
            claim.time.store(time, Relaxed);
            claim.first.store(first.unwrap_or(time), Relaxed);
        }
    }

    /// Adds the claim of a session.
    pub(super) fn add_claim(
        &mut self,
        room: &RoomName,
        id: SessionId,
        name: &Arc<str>,
        flush_set: &mut FlushSet,
    ) {
        let member = self.sessions.get(&id);
        let claim = member.and_then(|member| member.info.claim.as_ref());
        let time = claim.map_or(0, |claim| claim.time.load(Relaxed));
        self.names.get_or_insert_default().add(name, id, time);
        self.settle_name(room, name, flush_set);
    }

    /// Removes the claim of a session that has left. Nothing of it waits any more.
    pub(super) fn remove_claim(
        &mut self,
        room: &RoomName,
        id: SessionId,
        name: &Arc<str>,
        flush_set: &mut FlushSet,
    ) {
        if let Some(names) = &mut self.names {
            names.remove(name, id);
            names.forget(id);
        }
        self.settle_name(room, name, flush_set);
    }

    /// Closes each session of this node that claims a name for itself and does not have it, and sends what waits to the
    /// one that has it.
    fn settle_name(&mut self, room: &RoomName, name: &Arc<str>, flush_set: &mut FlushSet) {
        let Some((owner, member, owned)) = self.owner(name) else {
            return;
        };
        for (other, member, claim) in self.claims(name) {
            let Some(outbox) = member.location.outbox() else {
                continue;
            };
            if other == owner || claim.is_shared {
                continue;
            }
            if claim.secret != owned.secret {
                if let Some(taken) = dialects::of(room.dialect()).name_taken() {
                    // A session that takes nothing more is leaving.
                    let _ = outbox.push(taken, flush_set);
                }
                outbox.close(Close::name_taken());
            } else {
                outbox.close(Close::taken_over());
            }
        }
        let outbox = member.location.outbox();
        let takes_messages =
            outbox.is_none_or(|outbox| owned.is_open.load(Relaxed) && !outbox.stats().is_suspended);
        if takes_messages {
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
        let first = self.claims(name).min_by_key(|(id, _, claim)| {
            let (first, time) = (claim.first.load(Relaxed), claim.time.load(Relaxed));
            (first, time, *id)
        })?;
        let same = self.claims(name);
        same.filter(|(.., claim)| claim.secret == first.2.secret)
            .max_by_key(|(id, _, claim)| (claim.time.load(Relaxed), *id))
    }

    /// Sends a frame to the session that has a name; returns whether it takes the frame. A frame that may wait carries
    /// the name to another node, where the session may be gone when it comes.
    fn push_to_owner(
        &self,
        room: &RoomName,
        speaker: Speaker<'_>,
        name: &str,
        frame: &Frame,
        may_wait: bool,
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
                let reference = serde_json::value::to_raw_value(name);
                let reference = reference.expect("a string always serializes");
                let speaker = Speaker {
                    id: author,
                    reference: may_wait.then_some(&*reference),
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
            let frame = &message.frame;
            if !self.push_to_owner(room, speaker, name, frame, true, flush_set)
                && let Some(author) = message.author
            {
                self.tell_expired(room, author, name, flush_set);
            }
        }
    }

    /// Tells the author of messages to a name that they have waited in vain.
    fn tell_expired(
        &self,
        room: &RoomName,
        author: SessionId,
        name: &str,
        flush_set: &mut FlushSet,
    ) {
        let Some(member) = self.sessions.get(&author) else {
            return;
        };
        let own_name = member.info.name().unwrap_or_default();
        let Some(frame) = dialects::of(room.dialect()).expired(name, own_name) else {
            return;
        };
        match (&member.location, &self.remote) {
            (Location::Local(outbox), _) => {
                // A session that takes nothing more is leaving.
                let _ = outbox.push(frame, flush_set);
            }
            (location, Some(remote)) => {
                // A node that cannot be reached learns nothing more.
                let _ = remote.unicast(room, location, Speaker::default(), author, frame);
            }
            (_, None) => {}
        }
    }
}

/// A name that sessions hold together.
impl Room {
    /// The secret with which sessions hold a name, if any do.
    pub(super) fn secret_of(&self, name: &str) -> Option<TokenHash> {
        let members = self.members.read();
        let (.., claim) = members.owner(name)?;
        Some(claim.secret)
    }

    /// The place of a session in the order of claims: the time of its claim, and its id; `None` without a claim.
    pub(super) fn place(&self, id: SessionId) -> Option<(u64, u128)> {
        let members = self.members.read();
        let claim = members.sessions.get(&id)?.info.claim.as_deref()?;
        Some((claim.time.load(Relaxed), id.bits()))
    }

    /// The place that a [`NameClaim::mark`] of this name has noted.
    pub(super) fn marked(&self, name: &str) -> Option<(u64, u128)> {
        let members = self.members.read();
        let (.., claim) = members.owner(name)?;
        Some((claim.time.load(Relaxed), claim.secret.bits()))
    }

    /// How many sessions hold the name of this one with the same secret, up to this one in the order of their claims.
    /// `None` if another secret has the name.
    pub(super) fn rank(&self, id: SessionId) -> Option<usize> {
        let members = self.members.read();
        let own = members.sessions.get(&id)?.info.claim.as_deref()?;
        let (.., owned) = members.owner(&own.name)?;
        let place = |claim: &NameClaim, id: SessionId| (claim.time.load(Relaxed), id.bits());
        let same = members.claims(&own.name);
        let same = same.filter(|(.., claim)| claim.secret == own.secret);
        let before = same.filter(|(other, _, claim)| place(claim, *other) <= place(own, id));
        (owned.secret == own.secret).then(|| before.count())
    }

    /// The sessions that hold the name of this one with the same secret, this one included.
    pub(super) fn same_claims(&self, id: SessionId) -> Vec<(SessionId, Location)> {
        let members = self.members.read();
        let own = members.sessions.get(&id);
        let own = own.and_then(|member| member.info.claim.as_ref());
        let same = own.into_iter().flat_map(|own| {
            let claims = members.claims(&own.name);
            claims.filter(|(.., claim)| claim.secret == own.secret)
        });
        same.map(|(id, member, _)| (id, member.location.clone()))
            .collect()
    }

    /// Whether a session of this node holds a name with this secret.
    fn holds(&self, name: &str, secret: TokenHash) -> bool {
        let members = self.members.read();
        let mut claims = members.claims(name);
        claims.any(|(_, member, claim)| claim.secret == secret && member.location.is_own())
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

    fn send_to_name(&self, message: &ToName<'_>, most: usize, flush_set: &mut FlushSet) -> Outcome {
        let ToName {
            speaker,
            name,
            frame,
            may_wait,
            is_passed_on,
        } = *message;
        let send = |members: &Members, flush_set: &mut FlushSet| {
            let is_here = || {
                let owner = members.owner(name);
                owner.is_some_and(|(_, member, _)| member.location.is_own())
            };
            (!is_passed_on || is_here())
                && members.push_to_owner(&self.name, speaker, name, frame, may_wait, flush_set)
        };
        if send(&self.members.read(), flush_set) {
            return Outcome::Sent;
        }
        if !may_wait {
            return Outcome::Dropped;
        }
        let mut members = self.members.write();
        // The session may have come in between.
        if send(&members, flush_set) {
            return Outcome::Sent;
        }
        let (name, deadline) = (Arc::from(name), Instant::now() + WAIT);
        let names = members.names.get_or_insert_default();
        match names.wait(&name, speaker.id, frame.clone(), deadline, most) {
            Some(is_first) => Outcome::Waits(is_first.then_some((deadline, name))),
            None => {
                if let Some(author) = speaker.id {
                    members.tell_expired(&self.name, author, &name, flush_set);
                }
                Outcome::Dropped
            }
        }
    }

    /// Removes the messages to a name that have waited in vain, and tells their authors. Returns how many these are,
    /// and the deadline of the next message.
    fn expire(&self, name: &str, flush_set: &mut FlushSet) -> (usize, Option<Instant>) {
        let mut members = self.members.write();
        let Some(names) = &mut members.names else {
            return Default::default();
        };
        let (authors, next) = names.expire(name, Instant::now());
        for author in &authors {
            members.tell_expired(&self.name, *author, name, flush_set);
        }
        (authors.len(), next)
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
}

impl Rooms {
    /// Sends to the session that has a name in a room. If none has it and the message may wait, it waits for such a
    /// session.
    pub(super) fn send_to_name(
        &self,
        room: &Room,
        message: &ToName<'_>,
        flush_set: &mut FlushSet,
    ) -> Delivery {
        let most = self.max_waiting;
        let (receivers, is_waiting) = match room.send_to_name(message, most, flush_set) {
            Outcome::Sent => (1, false),
            Outcome::Waits(first) => {
                if let Some((deadline, name)) = first {
                    self.deadlines.add(deadline, &room.name, &name);
                }
                (0, true)
            }
            Outcome::Dropped => (0, false),
        };
        Delivery {
            receivers,
            is_waiting,
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
            let message = ToName {
                speaker: Speaker {
                    id: message.sender,
                    ..Speaker::default()
                },
                name: &name,
                frame: &protocol::from_json(text),
                may_wait: true,
                is_passed_on: message.sender.is_none(),
            };
            self.send_to_name(room, &message, flush_set);
        }
        true
    }

    /// Whether a session of this node holds a name in a room with this secret.
    pub(crate) fn holds(&self, room: &RoomName, claim: &NameClaim) -> bool {
        let room = self.find(room);
        room.is_some_and(|room| room.holds(&claim.name, claim.secret))
    }

    /// Tells the authors of messages to names when these have waited in vain. `count` is called with how many these
    /// are. Never returns.
    pub(crate) async fn expire_messages(&self, count: impl Fn(usize)) {
        loop {
            let (room, name) = self.deadlines.next().await;
            let Some(room) = self.find(&room) else {
                continue;
            };
            let mut flush_set = FlushSet::default();
            let (authors, next) = room.expire(&name, &mut flush_set);
            drop(flush_set);
            count(authors);
            if let Some(next) = next {
                self.deadlines.add(next, &room.name, &name);
            }
        }
    }
}
