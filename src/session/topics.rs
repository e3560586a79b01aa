//! The rooms that a session joins and leaves one by one, for dialects with topics.

use std::sync::Arc;

use futures_util::future::join_all;
use parking_lot::Mutex;
use tokio::time::timeout;

use super::{pace::Pace, routed::Routed};
use crate::{
    access::Names,
    config::{Dialect, Limit},
    dialects::Publication,
    keyed_map::KeyedMap,
    outbox::{FlushSet, Outbox},
    protocol::{Close, CloseCode, Problem, RoomName},
    rooms::{Delivery, JoinGuard, Reservation, Rooms, Speaker},
    state::Shared,
    websocket::Frame,
};

/// What it counts for a session's rate of bytes to join a room, in bytes. In a cluster, all nodes are told.
const JOIN_BYTES: usize = 1024;

/// The topics of a session.
pub(super) struct Topics {
    /// Those that it is subscribed to.
    joined: Arc<Mutex<KeyedMap<RoomName, JoinGuard>>>,
    /// Those that its token admits to; `None` for all.
    allowed: Option<Names>,
}

/// The parts of a session that its topics read and change.
pub(super) struct Subscriber<'a> {
    pub(super) shared: &'a Arc<Shared>,
    pub(super) join_guard: &'a JoinGuard,
    pub(super) outbox: &'a Outbox,
    pub(super) pace: &'a mut Option<Box<Pace>>,
}

impl Topics {
    /// No topics yet.
    pub(super) fn new(allowed: Option<Names>) -> Topics {
        Topics {
            joined: Arc::default(),
            allowed,
        }
    }

    /// Checks that the session may be in a room, if the server serves these dialects.
    fn check(&self, room: &RoomName, served: &[Dialect]) -> Result<(), Problem> {
        if let Some(dialect) = room.dialect().filter(|dialect| !served.contains(dialect)) {
            let message = format!("this server serves no clients of {dialect}");
            return Err(Problem::not_allowed(&message));
        }
        match self.allowed.as_ref().is_none_or(|names| names.admit(room)) {
            true => Ok(()),
            false => Err(Problem::not_allowed(
                "the token does not admit to this topic",
            )),
        }
    }

    /// Joins rooms, or none of them. In a cluster, nothing more is read until the other nodes have said who is there.
    pub(super) fn subscribe(
        &self,
        subscriber: Subscriber<'_>,
        rooms: Vec<RoomName>,
    ) -> Result<Routed, Problem> {
        let Subscriber {
            shared,
            join_guard,
            outbox,
            pace,
        } = subscriber;
        let reservations = self.reserve(shared, rooms)?;
        let routed = Routed {
            bytes: reservations.len() * JOIN_BYTES,
            ..Routed::default()
        };
        let (id, info) = (join_guard.id(), join_guard.info().clone());
        let (sender, joined) = (outbox.sender(), self.joined.clone());
        let join = move |reservations: Vec<Reservation>| {
            for reservation in reservations {
                let guard = reservation.join(id, sender.clone(), info.clone());
                guard.finish_join();
                joined.lock().insert(guard.room().clone(), guard);
            }
        };
        let Some(limit) = shared.cluster.as_ref().map(|cluster| cluster.down) else {
            join(reservations);
            return Ok(routed);
        };
        let (rooms, sender) = (shared.rooms.clone(), outbox.sender());
        let subscribed = async move {
            join_all(reservations.iter().map(|it| it.wait_for_snapshots(limit))).await;
            match timeout(limit, rooms.wait_in_line()).await {
                Ok(_line) => join(reservations),
                Err(_) => {
                    let message = "the cluster is slow: reconnect";
                    sender.close(Close::new(CloseCode::ServiceRestart, message));
                }
            }
            0
        };
        let pace = pace.get_or_insert_default();
        pace.wait_for(Box::pin(subscribed));
        Ok(routed)
    }

    /// Reserves places in those of the rooms that the session is not in.
    fn reserve(&self, shared: &Shared, rooms: Vec<RoomName>) -> Result<Vec<Reservation>, Problem> {
        let (most, served) = (
            shared.config.limits.max_topics,
            &shared.config.serving.dialect,
        );
        let joined = self.joined.lock();
        let mut reservations: Vec<Reservation> = Vec::new();
        for room in rooms {
            let is_reserved = reservations.iter().any(|it| *it.room() == room);
            if is_reserved || joined.contains_key(&room) {
                continue;
            }
            self.check(&room, served)?;
            if joined.len() + reservations.len() >= most {
                let message = format!("a connection may have {most} topics: unsubscribe from some");
                shared.metrics.limits_hit(Limit::Topics).inc();
                return Err(Problem::not_allowed(&message));
            }
            let reservation = shared.admission.reserve(&room);
            let reservation =
                reservation.map_err(|error| Problem::not_allowed(&error.message()))?;
            reservations.push(reservation);
        }
        Ok(reservations)
    }

    /// Leaves rooms.
    pub(super) fn unsubscribe(&self, rooms: &[RoomName]) {
        let mut joined = self.joined.lock();
        let left: Vec<_> = rooms
            .iter()
            .filter_map(|room| joined.remove(room))
            .collect();
        drop(joined);
        drop(left);
    }

    /// Sends to all in a room, in which the session need not be.
    pub(super) fn publish(
        &self,
        subscriber: Subscriber<'_>,
        publication: Publication,
        flush_set: &mut FlushSet,
    ) -> Result<Routed, Problem> {
        let Subscriber { shared, pace, .. } = subscriber;
        self.check(&publication.room, &shared.config.serving.dialect)?;
        let limit = shared.cluster.as_ref().map(|cluster| cluster.down);
        if limit.is_some() {
            pace.get_or_insert_default().ensure_quota();
        }
        let quota = pace.as_ref().and_then(|pace| pace.quota()).cloned();
        let speaker = Speaker::anonymous(quota.as_ref());
        let joined = self.joined.lock();
        let guard = joined.get(&publication.room);
        // Without a subscription, this node may not be in the room, where sessions of other nodes may be.
        let enters = limit.filter(|_| guard.is_none());
        let is_flushing = match guard {
            Some(guard) => guard.flushing().is_some(),
            None => shared.rooms.is_flushing(&publication.room),
        };
        if enters.is_none() && !is_flushing {
            let room = &publication.room;
            let send = |write: &mut Write<'_>| match guard {
                Some(guard) => guard.publish(speaker, write, flush_set),
                None => shared.rooms.publish(room, speaker, write, flush_set),
            };
            return Ok(count(shared, &publication, send));
        }
        drop(joined);
        let reservation = shared.rooms.reserve_for_backend(&publication.room);
        let shared = shared.clone();
        let published = async move {
            if let Some(limit) = enters {
                reservation.wait_for_snapshots(limit).await;
            }
            reservation.wait_for_flushes().await;
            let mut flush_set = FlushSet::default();
            let speaker = Speaker::anonymous(quota.as_ref());
            let send = |write: &mut Write<'_>| {
                let rooms: &Rooms = &shared.rooms;
                rooms.publish(&publication.room, speaker, write, &mut flush_set)
            };
            let bytes = count(&shared, &publication, send).bytes;
            flush_set.settle(&shared.tasks);
            bytes + enters.map_or(0, |_| JOIN_BYTES)
        };
        let pace = pace.get_or_insert_default();
        pace.wait_for(Box::pin(published));
        Ok(Routed::default())
    }
}

/// Writes a publication for so many subscribers.
type Write<'a> = dyn FnMut(usize) -> Frame + 'a;

/// Sends a publication with `send`, and counts it.
fn count(
    shared: &Shared,
    publication: &Publication,
    send: impl FnOnce(&mut Write<'_>) -> Delivery,
) -> Routed {
    let mut bytes = 0;
    let Delivery { receivers, .. } = send(&mut |subscribers| {
        let frame = publication.frame(subscribers);
        bytes = frame.len();
        frame
    });
    shared.metrics.traffic.deliveries.inc_by(receivers as u64);
    Routed {
        receivers,
        bytes: bytes.saturating_mul(receivers),
        ..Routed::default()
    }
}
