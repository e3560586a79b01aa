//! How a session goes over to the node that its client has come back to, and the room notices nothing.
//!
//! The node that wants it records from then on what happens in the room. The node that has it stops it,
//! and hands over what it is, whom it knows, and up to where it has heard each node. Then the new node
//! says that it has arrived. From now on others send what is for it alone to the new node, and tell the
//! old one so, which forwards what still comes, and says when there is no more. At last all that the
//! session has missed is brought into the order in which it was said.

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use log::debug;
use parking_lot::Mutex;
use serde_json::value::RawValue;
use tokio::{sync::oneshot, time::timeout};

use super::{
    index::{JoinGuard, Members, Reservation, Room, Rooms},
    location::Location,
    member::Member,
    replication::{RemoteView, relayed},
};
use crate::{
    cluster::{
        self, Answer, Direct, Event, Load, MAX_IDS, NodeId, PART_BYTES, Permissions,
        SessionTransfer, Want,
    },
    outbox::{FlushSet, MigrationRequest, Outbox, Sender},
    protocol::{self, Close, CloseCode, RoomName, SessionId, TokenHash},
    websocket::Frame,
};

/// How many may have come for a session while it is going.
const MAX_ASKERS: usize = 64;

/// The handovers that are under way in a room.
#[derive(Default)]
pub(super) struct Migrations {
    /// Sessions that are wanted here, by this node's marks.
    seeks: Mutex<BTreeMap<u64, Lookup>>,
    /// Sessions that are going.
    going: BTreeMap<SessionId, Migration>,
    /// To whom a session is offered, by those nodes' marks.
    offers: BTreeMap<(NodeId, u64), oneshot::Sender<bool>>,
}

/// A session that is wanted here.
struct Lookup {
    token: TokenHash,
    /// Whose it must be, if that is known.
    user: Option<String>,
    /// Who has not answered yet.
    waiting: BTreeSet<NodeId>,
    /// Whether it is on its way to another node, or this.
    is_going: bool,
    /// Which node is about to hand it over.
    offered: Option<NodeId>,
    /// What has come of it so far, in so many parts.
    part: Option<(usize, ReceivedSession)>,
    /// Gets the answer.
    found: Option<oneshot::Sender<Outcome>>,
    /// Hears that nothing more is forwarded, and by whom.
    done: Option<(NodeId, oneshot::Sender<()>)>,
    /// What the session would have been sent since.
    recorded: Vec<Recorded>,
    bytes: usize,
    /// How many bytes it may be.
    limit: usize,
}

/// What has come of a search.
enum Outcome {
    Found(ReceivedSession),
    Answered(Answer),
}

/// A session that is going.
struct Migration {
    /// As it was here.
    member: cluster::SessionRecord,
    to: NodeId,
    /// That node's mark for it.
    seek: u64,
    token: TokenHash,
    /// Who has come for it too late, and shall ask where it has gone.
    askers: Vec<Waiter>,
    /// Who may still send it something here; `None` as long as it has not arrived.
    waiting: Option<BTreeSet<NodeId>>,
    /// Who does no longer.
    turned: BTreeSet<NodeId>,
    /// Is dropped when it has gone, or cannot go.
    gone: Option<oneshot::Sender<()>>,
}

enum Waiter {
    Local(oneshot::Sender<()>),
    Remote(NodeId, u64),
}

/// A session as its last node has handed it over.
struct ReceivedSession {
    from: NodeId,
    handed: Box<SessionTransfer>,
    missed: Vec<Frame>,
}

struct Recorded {
    /// The node that said it, and under which number.
    source: NodeId,
    number: u64,
    what: RecordedEvent,
}

/// What a session is sent.
#[derive(Clone)]
pub(super) enum RecordedEvent {
    Joined(SessionId, Frame),
    Left(SessionId, Frame),
    /// By a session, or by a backend.
    Broadcast(Option<SessionId>, Frame),
    ToOne(Option<SessionId>, Frame),
}

impl RecordedEvent {
    fn frame(&self) -> &Frame {
        match self {
            RecordedEvent::Joined(_, frame)
            | RecordedEvent::Left(_, frame)
            | RecordedEvent::Broadcast(_, frame)
            | RecordedEvent::ToOne(_, frame) => frame,
        }
    }
}

impl Lookup {
    fn record(&mut self, source: NodeId, number: u64, what: RecordedEvent) {
        self.bytes += what.frame().cost();
        if self.bytes > self.limit {
            // In part it is of no use.
            self.recorded = Vec::new();
            return;
        }
        self.recorded.push(Recorded {
            source,
            number,
            what,
        });
    }

    /// Goes on without the answer of a node.
    fn not_there(&mut self, node: NodeId) {
        self.waiting.remove(&node);
        self.offered.take_if(|offered| *offered == node);
        if self.waiting.is_empty()
            && self.offered.is_none()
            && let Some(found) = self.found.take()
        {
            // Who has given up does not hear it.
            let answer = match self.is_going {
                true => Answer::AskAgain,
                false => Answer::NotHere,
            };
            let _ = found.send(Outcome::Answered(answer));
        }
    }
}

impl Migrations {
    /// Keeps what is sent to all for the sessions that are to come.
    pub(super) fn record(&self, source: NodeId, number: u64, what: &RecordedEvent) {
        for seek in self.seeks.lock().values_mut() {
            seek.record(source, number, what.clone());
        }
    }

    /// Keeps what is sent to one session that is to come.
    pub(super) fn record_for(
        &self,
        seek: u64,
        source: NodeId,
        number: u64,
        sender: Option<SessionId>,
        frame: Frame,
    ) {
        if let Some(seek) = self.seeks.lock().get_mut(&seek) {
            seek.record(source, number, RecordedEvent::ToOne(sender, frame));
        }
    }

    /// A session has left that may have gone from here.
    pub(super) fn forget(&mut self, id: SessionId) {
        self.going.remove(&id);
    }

    /// A session has gone from here that had left so many nodes behind: it is not waited for any longer.
    pub(super) fn gone(&mut self, id: SessionId, moves: u32) {
        let is_that = |going: &Migration| going.member.moves == moves;
        if self.going.get(&id).is_some_and(is_that) {
            self.going.remove(&id);
        }
    }

    /// The session of this token, if it is going.
    fn going(&mut self, token: &TokenHash) -> Option<&mut Migration> {
        self.going
            .values_mut()
            .find(|going| going.token == *token && going.waiting.is_none())
    }

    /// The sessions that have gone, as they were here.
    pub(super) fn all_gone(&self) -> impl Iterator<Item = cluster::SessionRecord> {
        let gone = self.going.values().filter(|going| going.waiting.is_some());
        gone.map(|going| going.member.clone())
    }

    /// A session that has gone, as it was here.
    pub(super) fn gone_as(&self, id: SessionId) -> Option<cluster::SessionRecord> {
        let gone = self.going.get(&id).filter(|going| going.waiting.is_some());
        gone.map(|going| going.member.clone())
    }

    /// Where a session has gone for which something may still come here.
    pub(super) fn gone_to(&self, id: SessionId) -> Option<(NodeId, u64)> {
        self.going.get(&id).map(|going| (going.to, going.seek))
    }

    /// Does not wait for a node any longer, nor for who is going there.
    pub(super) fn down(&mut self, node: NodeId) {
        for seek in self.seeks.lock().values_mut() {
            seek.not_there(node);
            if let Some((_, done)) = seek.done.take_if(|(from, _)| *from == node) {
                let _ = done.send(());
            }
        }
        let cannot_go = |going: &&mut Migration| going.to == node;
        let going = self.going.values_mut().filter(cannot_go);
        going.for_each(|going| going.gone = None);
    }

    /// A node sends nothing more to this session, or to any, over this node; returns to whom nothing
    /// more is forwarded by that.
    pub(super) fn turned(&mut self, node: NodeId, id: Option<SessionId>) -> Vec<(NodeId, u64)> {
        let done = self.going.extract_if(.., |session, going| {
            if id.is_none_or(|id| id == *session) {
                going.turned.insert(node);
                if let Some(waiting) = &mut going.waiting {
                    waiting.remove(&node);
                }
            }
            going.waiting.as_ref().is_some_and(BTreeSet::is_empty)
        });
        done.map(|(_, going)| (going.to, going.seek)).collect()
    }
}

impl RemoteView {
    /// A session that was going has left.
    pub(super) fn forget(&mut self, room: &RoomName, id: SessionId) {
        if let Some(going) = self.migrations.going.remove(&id) {
            self.ask_again(room, going.askers);
        }
    }

    /// Tells who has come for a session too late to ask again.
    fn ask_again(&self, room: &RoomName, askers: Vec<Waiter>) {
        for asker in askers {
            match asker {
                // Who waits no longer need not know.
                Waiter::Local(again) => _ = again.send(()),
                Waiter::Remote(node, seek) => {
                    let room = room.clone();
                    self.outbound
                        .batch()
                        .answer(node, room, seek, Answer::AskAgain);
                }
            }
        }
    }
}

impl Rooms {
    /// What to answer to a node that wants a session which is not here. `None` if it is going, and the
    /// answer will come when it has gone.
    pub(crate) fn answer(&self, request: &MigrationRequest) -> Option<Answer> {
        let Some(room) = self.find(&request.room) else {
            return Some(Answer::NotHere);
        };
        let mut members = room.members.write();
        let Some(remote) = &mut members.remote else {
            return Some(Answer::NotHere);
        };
        if let Some(going) = remote.migrations.going(&request.token)
            && going.askers.len() < MAX_ASKERS
        {
            going
                .askers
                .push(Waiter::Remote(request.node, request.seek));
            return None;
        }
        let mut seeks = remote.migrations.seeks.get_mut().values();
        Some(match seeks.any(|seek| seek.token == request.token) {
            true => Answer::WantedHere,
            false => Answer::NotHere,
        })
    }
}

impl Members {
    /// Tells who waits for it that nothing more is forwarded.
    pub(super) fn tell_done(&self, room: &RoomName, done: Vec<(NodeId, u64)>) {
        if let Some(remote) = &self.remote {
            let mut batch = remote.outbound.batch();
            for (node, seek) in done {
                let room = room.clone();
                batch.notify(node, Direct::Done { room, seek });
            }
        }
    }
}

/// A session that is sought; dropping it ends the search.
struct LookupGuard {
    room: Arc<Room>,
    seek: u64,
}

/// A session that is offered to a node; dropping it takes the offer back.
struct Offer<'a> {
    room: &'a Room,
    key: (NodeId, u64),
}

impl Drop for LookupGuard {
    fn drop(&mut self) {
        let mut members = self.room.members.write();
        let remote = members.remote.as_mut();
        let seek = remote.and_then(|it| it.migrations.seeks.get_mut().remove(&self.seek));
        drop(members);
        drop(seek);
    }
}

impl Drop for Offer<'_> {
    fn drop(&mut self) {
        if let Some(remote) = &mut self.room.members.write().remote {
            remote.migrations.offers.remove(&self.key);
        }
    }
}

/// What has come of the search for a session.
pub(crate) enum LookupOutcome {
    Found(ImportedSession),
    /// Nobody has it.
    Nobody(Reservation),
    /// It is on its way from one node to another, which may be this.
    Again(Reservation),
    /// Its client has come back once more since.
    Superseded,
}

/// A session that has been handed over, and has not arrived yet.
pub(crate) struct ImportedSession {
    reservation: Reservation,
    seeking: LookupGuard,
    found: ReceivedSession,
}

impl Reservation {
    /// Asks all other nodes for a session, for so long at most. What it would be sent meanwhile is kept, up
    /// to so many bytes.
    pub(crate) async fn seek(
        self,
        token: TokenHash,
        user: Option<String>,
        received: u64,
        kept_bytes: usize,
        limit: Duration,
        offer_limit: Duration,
    ) -> LookupOutcome {
        let going = {
            let remote = &mut self.room.members.write().remote;
            let going = remote.as_mut().and_then(|it| it.migrations.going(&token));
            going
                .filter(|going| going.askers.len() < MAX_ASKERS)
                .map(|going| {
                    let (again, waiting) = oneshot::channel();
                    going.askers.push(Waiter::Local(again));
                    waiting
                })
        };
        if let Some(going) = going {
            let _ = timeout(limit, going).await;
            return LookupOutcome::Again(self);
        }
        let (found, mut waiting) = oneshot::channel();
        let seek = {
            let mut members = self.room.members.write();
            let Some(remote) = &mut members.remote else {
                drop(members);
                return LookupOutcome::Nobody(self);
            };
            let mark = remote.outbound.mark();
            let mut seek = Lookup {
                token,
                user: user.clone(),
                is_going: false,
                offered: None,
                waiting: remote.nodes(),
                part: None,
                found: Some(found),
                done: None,
                recorded: Vec::new(),
                bytes: 0,
                limit: kept_bytes,
            };
            let want = Want {
                room: self.room.name.clone(),
                seek: mark,
                token,
                user,
                received,
                seen: remote.seen(),
            };
            if seek.waiting.is_empty() || remote.outbound.batch().want(want).is_err() {
                seek.waiting.clear();
                seek.found = None;
            }
            remote.migrations.seeks.get_mut().insert(mark, seek);
            mark
        };
        let room = self.room.clone();
        let seeking = LookupGuard { room, seek };
        let mut outcome = timeout(limit, &mut waiting).await;
        if outcome.is_err() && seeking.is_offered() {
            outcome = timeout(offer_limit, waiting).await;
        }
        match outcome {
            Ok(Ok(Outcome::Found(found))) => LookupOutcome::Found(ImportedSession {
                reservation: self,
                seeking,
                found,
            }),
            Ok(Ok(Outcome::Answered(Answer::AskAgain))) => LookupOutcome::Again(self),
            Ok(Ok(Outcome::Answered(Answer::Superseded))) => LookupOutcome::Superseded,
            _ => LookupOutcome::Nobody(self),
        }
    }
}

impl LookupGuard {
    /// Whether a node is about to hand the session over. Otherwise it need not begin to.
    fn is_offered(&self) -> bool {
        let members = self.room.members.read();
        members.remote.as_ref().is_some_and(|remote| {
            let mut seeks = remote.migrations.seeks.lock();
            let is_offered = seeks
                .get(&self.seek)
                .is_some_and(|seek| seek.offered.is_some());
            if !is_offered {
                seeks.remove(&self.seek);
            }
            is_offered
        })
    }
}

impl ImportedSession {
    /// What its last node has said of it.
    pub(crate) fn handed(&self) -> &SessionTransfer {
        &self.found.handed
    }

    /// The messages that its client has not got, as far as its last node had sent them.
    pub(crate) fn missed(&mut self) -> Vec<Frame> {
        mem::take(&mut self.found.missed)
    }

    /// Lets the session be here, and waits, for so long at most, until nothing more for it goes to its
    /// last node. All that it has missed is in its outbox then.
    pub(crate) async fn arrive(self, sender: Sender, limit: Duration) -> JoinGuard {
        let ImportedSession {
            reservation,
            seeking,
            found,
        } = self;
        let (id, from) = (found.handed.member.id, found.from);
        let member = cluster::SessionRecord {
            moves: found.handed.member.moves.saturating_add(1),
            ..found.handed.member.clone()
        };
        let room = reservation.room.clone();
        let (done, waiting) = oneshot::channel();
        {
            // Nobody waits for it longer than for a session that is not there.
            let line = timeout(limit, reservation.rooms.in_line());
            let _line = line.await;
        }
        let info = {
            let mut flush_set = FlushSet::default();
            let mut members = room.members.write();
            // Others may have given its last node up, and the session with it.
            let before = found.handed.member.clone();
            members.come(&room.name, from, 0, before, &mut flush_set);
            let way = Location::Importing(seeking.seek, sender.clone());
            members.replace_way(id, way.clone());
            // Where there are too many of other nodes, it is not among them yet.
            let known = members.senders.entry(id);
            let known = known.or_insert_with(|| Member::from_record(member.clone(), way));
            known.moves = member.moves;
            let info = known.info.clone();
            info.taken_in.store(found.handed.taken_in, Relaxed);
            if let Some(remote) = &mut members.remote {
                let is_there = remote.is_there(from);
                let seeks = remote.migrations.seeks.get_mut();
                if let Some(seek) = seeks.get_mut(&seeking.seek)
                    && is_there
                {
                    seek.done = Some((from, done));
                }
                let member = member.clone();
                // Where this node is cut off, the session is told of when it is no longer.
                let _ = remote.say(&room.name, Event::Arrive { member, from });
            }
            info
        };
        // Whatever happens from now on, it leaves as any other.
        let membership = JoinGuard {
            reservation,
            id,
            moves: member.moves,
            info,
        };
        let _ = timeout(limit, waiting).await;
        // What it was told there shall be known here.
        room.caught_up(&found.handed.seen, limit).await;

        let mut members = room.members.write();
        members.catch_up(seeking.seek, &found, &sender);
        members.replace_way(id, Location::Local(sender));
        drop(members);
        membership
    }
}

impl Members {
    /// Sends a session what it has missed on its way.
    fn catch_up(&mut self, seek: u64, found: &ReceivedSession, sender: &Sender) {
        let Some(remote) = &mut self.remote else {
            return;
        };
        let Some(seek) = remote.migrations.seeks.get_mut().get_mut(&seek) else {
            return;
        };
        if seek.bytes > seek.limit {
            let reason = "too slow: too much was sent while it came from another node";
            return sender.close(Close::new(CloseCode::TryAgainLater, reason));
        }
        let mut recorded = mem::take(&mut seek.recorded);
        recorded.sort_by_key(|it| (it.number, it.source));
        let mut flush_set = FlushSet::default();
        // It is without a connection yet, and only keeps it.
        let mut push = |frame: Frame| _ = sender.push(frame, &mut flush_set);
        let own = found.handed.member.id;
        let mut known: BTreeSet<SessionId> = found.handed.known.iter().copied().collect();
        let seen: BTreeMap<NodeId, u64> = found.handed.seen.iter().copied().collect();
        // Who came here by another way than the others is new before it speaks.
        let told = recorded.iter().filter_map(|it| match &it.what {
            RecordedEvent::Joined(id, _) => Some(*id),
            _ => None,
        });
        let told: BTreeSet<SessionId> = told.collect();
        for (id, member) in &self.senders {
            if *id != own && !told.contains(id) && known.insert(*id) {
                push(protocol::joined(*id, member.info.public.as_deref()));
            }
        }
        for Recorded {
            source,
            number,
            what,
        } in recorded
        {
            match what {
                RecordedEvent::Joined(id, frame) if id != own && known.insert(id) => push(frame),
                RecordedEvent::Left(id, frame) if known.remove(&id) => push(frame),
                RecordedEvent::Broadcast(sender, _) | RecordedEvent::ToOne(sender, _)
                    if sender.is_some_and(|id| id != own && !known.contains(&id)) => {}
                RecordedEvent::Broadcast(_, frame)
                    if seen.get(&source).is_none_or(|seen| number > *seen) =>
                {
                    push(frame);
                }
                RecordedEvent::ToOne(_, frame) => push(frame),
                _ => {}
            }
        }
        // What else differs it is told now.
        for id in &known {
            if !self.senders.contains_key(id) {
                push(protocol::left(*id));
            }
        }
        for (id, member) in &self.senders {
            if *id != own && !known.contains(id) {
                push(protocol::joined(*id, member.info.public.as_deref()));
            }
        }
    }
}

impl JoinGuard {
    /// Asks a node that wants the session whether it still does, and waits for the answer, for so long at
    /// most.
    pub(crate) async fn offer(&self, to: &MigrationRequest, limit: Duration) -> bool {
        let key = (to.node, to.seek);
        let room = &self.reservation.room;
        let _offer = Offer { room, key };
        let answer = {
            let mut members = self.reservation.room.members.write();
            let Some(remote) = &mut members.remote else {
                return false;
            };
            let (answered, answer) = oneshot::channel();
            remote.migrations.offers.insert(key, answered);
            let offer = Direct::Offer {
                room: to.room.clone(),
                seek: to.seek,
                token: to.token,
            };
            remote.outbound.batch().notify(to.node, offer);
            answer
        };
        matches!(timeout(limit, answer).await, Ok(Ok(true)))
    }

    /// Hands the session over to a node that wants it, with its outbox, what its token allows, and what it
    /// owes to its rates. Returns
    /// what is dropped when nothing more comes for it here.
    ///
    /// # Errors
    ///
    /// The client cannot go on from where it is; the session stays.
    pub(crate) fn hand_over(
        &self,
        outbox: &Outbox,
        to: &MigrationRequest,
        permissions: Option<Permissions>,
        owed: [u64; 2],
    ) -> Option<oneshot::Receiver<()>> {
        let room = &self.reservation.room;
        let mut members = room.members.write();
        let member = members.senders.get(&self.id)?;
        if member.moves != self.moves || !matches!(member.location, Location::Local(_)) {
            return None;
        }
        let member = member.to_record(self.id);
        let missed = outbox.take_missed(to.received)?;
        let known: Vec<SessionId> = members
            .senders
            .keys()
            .copied()
            .filter(|id| *id != self.id)
            .collect();
        let remote = members.remote.as_mut()?;
        remote.forget(&room.name, self.id);
        let (gone, waiting) = oneshot::channel();
        let going = Migration {
            member: member.clone(),
            to: to.node,
            seek: to.seek,
            token: to.token,
            askers: Vec::new(),
            waiting: None,
            turned: BTreeSet::new(),
            gone: Some(gone),
        };
        remote.migrations.going.insert(self.id, going);
        let seen = remote.seen();
        let mut batch = remote.outbound.batch();
        let mut known = known.chunks(MAX_IDS);
        let mut missed = texts(&missed).into_iter().peekable();
        for part in 0.. {
            let (ids, text) = (known.next(), missed.next());
            let more = known.len() > 0 || missed.peek().is_some();
            let handed = SessionTransfer {
                room: room.name.clone(),
                seek: to.seek,
                token: to.token,
                member: member.clone(),
                taken_in: self.info.taken_in.load(Relaxed),
                owed,
                permissions: permissions.clone(),
                seen: seen.clone(),
                part,
                known: ids.unwrap_or_default().to_vec(),
                more,
            };
            let text = text.unwrap_or_else(|| b"[]".to_vec());
            // Where this node is cut off, the session cannot arrive, and leaves.
            let handed = Direct::Handed(Box::new(handed));
            let _ = batch.tell_node(to.node, handed, &text, Load::Line);
            if !more {
                break;
            }
        }
        drop(batch);
        members.replace_way(self.id, Location::Migrating(to.node));
        Some(waiting)
    }
}

/// Messages as JSON arrays that are short enough for one message each.
fn texts(frames: &[Frame]) -> Vec<Vec<u8>> {
    let mut texts: Vec<Vec<u8>> = Vec::new();
    for frame in frames {
        let payload = frame.payload();
        match texts.last_mut() {
            Some(text) if text.len() + payload.len() <= PART_BYTES => text.push(b','),
            _ => texts.push(b"[".to_vec()),
        }
        let text = texts.last_mut().expect("there is one");
        text.extend_from_slice(payload);
    }
    texts.iter_mut().for_each(|text| text.push(b']'));
    texts
}

impl Room {
    /// A node does not hand over a session that was asked for.
    pub(super) fn answered(&self, node: NodeId, seek: u64, answer: Answer) {
        let members = self.members.read();
        let Some(remote) = &members.remote else {
            return;
        };
        let mut seeks = remote.migrations.seeks.lock();
        let Some(seek) = seeks.get_mut(&seek) else {
            return;
        };
        match answer {
            Answer::NotHere => seek.not_there(node),
            Answer::WantedHere | Answer::AskAgain => {
                seek.is_going = true;
                seek.not_there(node);
            }
            Answer::Superseded => {
                if let Some(found) = seek.found.take() {
                    // Who has given up does not hear it.
                    let _ = found.send(Outcome::Answered(answer));
                }
            }
        }
    }

    /// A node is about to hand a session over; returns whether that is what is still wanted of it.
    pub(super) fn offered(&self, node: NodeId, seek: u64, token: &TokenHash) -> bool {
        let members = self.members.read();
        members.remote.as_ref().is_some_and(|remote| {
            let mut seeks = remote.migrations.seeks.lock();
            seeks.get_mut(&seek).is_some_and(|seek| {
                let wanted =
                    seek.found.is_some() && seek.token == *token && seek.waiting.contains(&node);
                if wanted {
                    seek.offered = Some(node);
                }
                wanted
            })
        })
    }

    /// A node still wants a session, or does not.
    pub(super) fn accepted(&self, node: NodeId, seek: u64, accepted: bool) {
        let mut members = self.members.write();
        let remote = members.remote.as_mut();
        let offer = remote.and_then(|it| it.migrations.offers.remove(&(node, seek)));
        if let Some(offer) = offer {
            // Who waits no longer need not know.
            let _ = offer.send(accepted);
        }
    }

    /// A node hands a session over.
    pub(super) fn handed(&self, node: NodeId, handed: Box<SessionTransfer>, text: &str) {
        let members = self.members.read();
        let Some(remote) = &members.remote else {
            return;
        };
        let mut seeks = remote.migrations.seeks.lock();
        let Some(seek) = seeks.get_mut(&handed.seek) else {
            return debug!("{} comes too late", handed.member.id);
        };
        let user = handed
            .permissions
            .as_ref()
            .and_then(|permissions| permissions.user.as_ref());
        if seek.offered != Some(node) || seek.token != handed.token || seek.user.as_ref() != user {
            return debug!("{} is not what {node} was asked for", handed.member.id);
        }
        let Ok(missed) = serde_json::from_str::<Vec<&RawValue>>(text) else {
            return debug!("{} is handed over with something else", handed.member.id);
        };
        let missed = missed.into_iter().map(|message| relayed(message.get()));
        let more = handed.more;
        match &mut seek.part {
            Some((parts, found)) if found.from == node && *parts == handed.part => {
                *parts += 1;
                found.handed.known.extend(handed.known);
                found.missed.extend(missed);
            }
            part if handed.part == 0 => {
                let missed = missed.collect();
                let from = node;
                *part = Some((
                    1,
                    ReceivedSession {
                        from,
                        handed,
                        missed,
                    },
                ));
            }
            _ => return debug!("{} is handed over with a part missing", handed.member.id),
        }
        if !more && let (Some((_, part)), Some(found)) = (seek.part.take(), seek.found.take()) {
            // Who has given up does not get it, and the session leaves where it was.
            let _ = found.send(Outcome::Found(part));
        }
    }

    /// A node forwards what was for a session that has come here from it; false if that does not get it.
    pub(super) fn forwarded(
        &self,
        node: NodeId,
        seek: u64,
        source: NodeId,
        number: u64,
        sender: Option<SessionId>,
        text: &str,
    ) -> bool {
        let members = self.members.read();
        members.remote.as_ref().is_some_and(|remote| {
            let mut seeks = remote.migrations.seeks.lock();
            let seek = seeks.get_mut(&seek);
            let seek = seek.filter(|seek| seek.offered == Some(node));
            seek.is_some_and(|seek| {
                seek.record(source, number, RecordedEvent::ToOne(sender, relayed(text)));
                true
            })
        })
    }

    /// A node forwards nothing more.
    pub(super) fn done(&self, node: NodeId, seek: u64) {
        let members = self.members.read();
        if let Some(remote) = &members.remote
            && let Some(seek) = remote.migrations.seeks.lock().get_mut(&seek)
            && let Some((_, done)) = seek.done.take_if(|(from, _)| *from == node)
        {
            let _ = done.send(());
        }
    }

    /// A node sends nothing more to a session over this one.
    pub(super) fn turned(&self, node: NodeId, id: SessionId) {
        let mut members = self.members.write();
        if let Some(remote) = &mut members.remote {
            let done = remote.migrations.turned(node, Some(id));
            members.tell_done(&self.name, done);
        }
    }
}

impl Members {
    /// A session of the node `from` is at `node` now.
    pub(super) fn arrive(
        &mut self,
        room: &RoomName,
        node: NodeId,
        number: u64,
        member: cluster::SessionRecord,
        from: NodeId,
        flush_set: &mut FlushSet,
    ) {
        let is_unknown = !self.senders.contains_key(&member.id);
        let id = member.id;
        self.come(room, node, number, member, flush_set);
        if is_unknown {
            self.tell_turned(room, from, id);
        }
    }

    /// A node says that a session is its, which is known already.
    pub(super) fn claim(
        &mut self,
        room: &RoomName,
        node: NodeId,
        claimed: &cluster::SessionRecord,
    ) {
        let id = claimed.id;
        let Some(known) = self.senders.get_mut(&id) else {
            return;
        };
        let is_later = claimed.moves > known.moves;
        match known.location {
            Location::Remote(other) if is_later => {
                known.moves = claimed.moves;
                self.replace_way(id, Location::Remote(node));
                self.tell_turned(room, other, id);
            }
            Location::Remote(other) if other != node => self.tell_turned(room, node, id),
            Location::Migrating(_) if is_later => {
                known.moves = claimed.moves;
                self.replace_way(id, Location::Remote(node));
                self.arrived(room, id, node);
            }
            Location::Local(_) | Location::Importing(..) if is_later => {
                debug!("{node} claims {id}")
            }
            _ => {}
        }
    }

    /// A session of this node has arrived at another.
    fn arrived(&mut self, room: &RoomName, id: SessionId, node: NodeId) {
        let Some(remote) = &mut self.remote else {
            return;
        };
        let mut waiting = remote.present();
        waiting.remove(&node);
        if let Some(going) = remote.migrations.going.get_mut(&id) {
            going.waiting = Some(&waiting - &going.turned);
            let askers = mem::take(&mut going.askers);
            remote.ask_again(room, askers);
        }
        let done = remote.migrations.turned(node, Some(id));
        self.tell_done(room, done);
    }

    /// Tells a node that what is for a session goes to another from now on.
    fn tell_turned(&self, room: &RoomName, node: NodeId, id: SessionId) {
        if let Some(remote) = &self.remote {
            let room = room.clone();
            let turned = Direct::Turned { room, id };
            remote.outbound.batch().notify(node, turned);
        }
    }
}
