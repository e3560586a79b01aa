//! A session's membership of its room.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use serde_json::value::RawValue;
use tokio::time::timeout;

use super::{
    naming::ToName, reservation::Reservation, room::Delivery, session_info::SessionInfo,
    speaker::Speaker,
};
use crate::{
    cluster::{NodeId, Quota},
    history::{History, Past},
    outbox::{FlushSet, Flushing, Sender},
    protocol::{Close, Peer, Receiver, RoomName, SessionId},
    websocket::Frame,
};

/// A session in its room. Dropping it removes the session, so that a leave cannot be forgotten, however
/// the session ends.
pub(crate) struct JoinGuard {
    pub(super) reservation: Reservation,
    pub(super) id: SessionId,
    /// How many nodes the session had left behind when it came to this one. It tells this stay from a
    /// later one, should the session come back.
    pub(super) moves: u32,
    pub(super) info: Arc<SessionInfo>,
    /// What was said before the session joined.
    pub(super) past: Past,
}

impl Reservation {
    /// Adds a session to the room and tells the others (`new`).
    pub(crate) fn join(
        self,
        id: SessionId,
        sender: Sender,
        info: impl Into<Arc<SessionInfo>>,
    ) -> JoinGuard {
        let info = info.into();
        let mut flush_set = FlushSet::default();
        let mut members = self.room.members.write();
        members.join(&self.room.name, id, sender, info.clone(), &mut flush_set);
        let past = self.room.past(&members);
        drop(members);
        flush_set.settle(&self.rooms.tasks);
        JoinGuard {
            reservation: self,
            id,
            moves: 0,
            info,
            past,
        }
    }
}

impl JoinGuard {
    /// The session's id.
    pub(crate) fn id(&self) -> SessionId {
        self.id
    }

    /// The room's name.
    pub(crate) fn room(&self) -> &RoomName {
        self.reservation.room()
    }

    /// The session's data.
    pub(crate) fn info(&self) -> &Arc<SessionInfo> {
        &self.info
    }

    /// Counts a message that was taken in from the client.
    pub(crate) fn count_taken_in(&self, is_binary: bool) {
        // The session's own task is the only one that counts, so a load and a store are enough.
        let count = |counter: &AtomicU64| counter.store(counter.load(Relaxed) + 1, Relaxed);
        count(&self.info.taken_in);
        if is_binary {
            count(&self.info.binary);
        }
    }

    /// The history of the room, if it keeps one.
    pub(crate) fn history(&self) -> Option<&Arc<History>> {
        self.reservation.room.history.as_ref()
    }

    /// The number in the history of one server before which all was said when the session joined; 0 in a cluster.
    pub(crate) fn first_number(&self) -> u64 {
        self.past.first_number()
    }

    /// Tells what was said before the session joined, and what has not come to this node since. All the rest it
    /// receives.
    pub(crate) fn past(&self) -> impl Fn(&BTreeMap<NodeId, u64>) -> Past + Send + Sync + use<> {
        let (room, past) = (self.reservation.room.clone(), self.past.clone());
        move |answers| {
            let mut past = past.clone();
            if let Past::Events(events) = &mut past
                && let Some(remote) = &room.members.read().remote
            {
                remote.add_lost(events, answers);
                let mut up = remote.nodes();
                up.insert(remote.outbound.node());
                events.end(up);
            }
            past
        }
    }

    /// A flush of an outbox that had filled up, if one is under way in the room: the session must not send before its end.
    /// There may be another one then.
    pub(crate) fn flushing(&self) -> Option<Flushing> {
        self.reservation.room.flushing()
    }

    /// Waits until no outbox in the room is flushed because it had filled up.
    pub(crate) async fn wait_for_flushes(&self) {
        self.reservation.wait_for_flushes().await;
    }

    /// Sends to the receivers of a message.
    pub(crate) fn route(
        &self,
        speaker: Speaker<'_>,
        receiver: &Receiver<'_>,
        frame: &Frame,
        flush_set: &mut FlushSet,
    ) -> Delivery {
        let room = &self.reservation.room;
        room.route(speaker, receiver, frame, flush_set)
    }

    /// Sends to the session that has a name in the room. If none has it and the message may wait, it waits for such a
    /// session.
    pub(crate) fn send_to_name(
        &self,
        speaker: Speaker<'_>,
        name: &str,
        frame: &Frame,
        may_wait: bool,
        flush_set: &mut FlushSet,
    ) -> Delivery {
        let Reservation { rooms, room, .. } = &self.reservation;
        let message = ToName {
            speaker,
            name,
            frame,
            may_wait,
            is_passed_on: false,
        };
        rooms.send_to_name(room, &message, flush_set)
    }

    /// Ends the joining of a session that claims a name: from now on it takes messages to the name, after `first`.
    /// Does nothing if another session has the name.
    pub(crate) fn open_name(&self, first: Option<Frame>) {
        let mut flush_set = FlushSet::default();
        let room = &self.reservation.room;
        room.open_name(self.id, first, &mut flush_set);
    }

    /// The session's place in the order of claims; `None` without a claim.
    pub(crate) fn place(&self) -> Option<(u64, u128)> {
        self.reservation.room.place(self.id)
    }

    /// The place that a [`NameClaim::mark`](super::NameClaim::mark) of this name has noted, if there is one.
    pub(crate) fn marked(&self, name: &str) -> Option<(u64, u128)> {
        self.reservation.room.marked(name)
    }

    /// How many sessions hold the session's name with the same secret, up to this one in the order of joining. `None`
    /// if another secret has the name.
    pub(crate) fn rank(&self) -> Option<usize> {
        self.reservation.room.rank(self.id)
    }

    /// Closes all sessions that hold the session's name with the same secret, on whichever nodes, this one included.
    pub(crate) fn close_same_claims(&self) {
        let Reservation { rooms, room, .. } = &self.reservation;
        for (id, location) in room.same_claims(self.id) {
            rooms.close_at(&room.name, id, &location, Close::by_operator());
        }
    }

    /// Sends to all in the room, once it is known how many sessions are there.
    pub(crate) fn publish(
        &self,
        speaker: Speaker<'_>,
        write: impl FnOnce(usize) -> Frame,
        flush_set: &mut FlushSet,
    ) -> Delivery {
        let room = &self.reservation.room;
        room.publish(speaker, write, flush_set)
    }

    /// Sets what the session says of itself, and tells the others. Returns the number of bytes that this sends;
    /// `None` if the states of the room would have more than `most` bytes.
    pub(crate) fn set_state(
        &self,
        speaker: Speaker<'_>,
        value: Option<Box<RawValue>>,
        most: usize,
        flush_set: &mut FlushSet,
    ) -> Option<usize> {
        let room = &self.reservation.room;
        let mut members = room.members.write();
        if members.state_bytes(self.id, value.as_deref()) > most {
            return None;
        }
        Some(members.set_state(&room.name, self.id, speaker, value, flush_set))
    }

    /// Calls `f` with the other sessions, longest-joined first. No session joins or leaves while `f` runs,
    /// so a list that `f` puts into the session's outbox is true at that place in the session's stream.
    pub(crate) fn with_peers<T>(&self, f: impl FnOnce(&[Peer]) -> T) -> T {
        let members = self.reservation.room.members.read();
        let others = members.sessions.iter().filter(|(id, _)| **id != self.id);
        let mut others: Vec<(u64, Peer<'_>)> = others
            .map(|(id, member)| {
                let peer = Peer {
                    id: *id,
                    data: member.info.public(),
                    state: member.state().and_then(|it| it.value.as_deref()),
                };
                (member.joined, peer)
            })
            .collect();
        others.sort_unstable_by_key(|(joined, peer)| (*joined, peer.id));
        let peers: Vec<Peer<'_>> = others.into_iter().map(|(_, peer)| peer).collect();
        f(&peers)
    }

    /// A wait for room in the queue to other nodes; `None` if the session may send at once. `quota` is
    /// the session's share of the queue.
    pub(crate) fn backpressure(
        &self,
        quota: &Arc<Quota>,
    ) -> Option<impl Future<Output = ()> + Send + use<>> {
        let Reservation { rooms, room, .. } = &self.reservation;
        let outbound = rooms.outbound.as_ref()?;
        let must_wait = outbound.must_wait(quota, || room.tells_other_nodes());
        must_wait.then(|| {
            let (outbound, quota) = (outbound.clone(), quota.clone());
            async move { outbound.has_room(&quota).await }
        })
    }

    /// Waits until the other nodes have seen the session, for `limit` at most. A node that has not seen it
    /// by then is not waited for.
    pub(crate) async fn wait_until_seen(&self, limit: Duration) {
        let waiting = {
            let remote = &mut self.reservation.room.members.write().remote;
            remote.as_mut().and_then(|it| it.wait_for_join(self.id))
        };
        if let Some(waiting) = waiting {
            let _ = timeout(limit, waiting).await;
        }
    }

    /// Ends the joining: every session that becomes known from now on is new to this one.
    pub(crate) fn finish_join(&self) {
        if let Some(remote) = &mut self.reservation.room.members.write().remote {
            remote.remove_pending_join(self.id);
        }
    }

    /// Waits until this node has seen the events of nodes up to these numbers, for `limit` at most.
    pub(crate) async fn wait_for_events(&self, events: &[(NodeId, u64)], limit: Duration) {
        self.reservation.room.wait_for_events(events, limit).await;
    }
}

impl Drop for JoinGuard {
    fn drop(&mut self) {
        let room = &self.reservation.room;
        let mut flush_set = FlushSet::default();
        let mut members = room.members.write();
        members.leave(&room.name, self.id, self.moves, &mut flush_set);
        drop(members);
        flush_set.settle(&self.reservation.rooms.tasks);
    }
}
