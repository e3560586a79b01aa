//! The rooms that a session joins and leaves one by one, for dialects with topics.

use std::sync::Arc;

use futures_util::future::join_all;
use parking_lot::Mutex;
use tokio::time::timeout;

use super::serve::{Routed, Session};
use crate::{
    access::Names,
    config::{Dialect, Limit},
    dialects::Publication,
    keyed_map::KeyedMap,
    outbox::FlushSet,
    protocol::{Close, CloseCode, Problem, RoomName},
    rooms::{Delivery, Full, JoinGuard, Reservation, Speaker},
};

/// The topics of a session.
pub(super) struct Topics {
    /// Those that it is subscribed to.
    joined: Arc<Mutex<KeyedMap<RoomName, JoinGuard>>>,
    /// Those that its token admits to; `None` for all.
    allowed: Option<Names>,
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
            let message =
                format!("the server does not serve {dialect}: start it with --dialect {dialect}");
            return Err(Problem::not_allowed(&message));
        }
        match self.allowed.as_ref().is_none_or(|names| names.admit(room)) {
            true => Ok(()),
            false => Err(Problem::not_allowed(
                "the token does not admit to this topic",
            )),
        }
    }
}

impl Session {
    fn topics(&self) -> Result<&Topics, Problem> {
        let topics = self.topics.as_deref();
        topics.ok_or_else(|| Problem::bad_message("this connection has no topics"))
    }

    /// Joins rooms, or none of them. In a cluster, nothing more is read until the other nodes have said who is there.
    pub(super) fn subscribe(&mut self, rooms: Vec<RoomName>) -> Result<(), Problem> {
        let topics = self.topics()?;
        let config = &self.shared.config;
        let (most, served) = (config.limits.max_topics, &config.serving.dialect);
        let mut reservations = Vec::new();
        let mut new: Vec<RoomName> = Vec::new();
        for room in rooms {
            let joined = topics.joined.lock();
            if joined.contains_key(&room) || new.contains(&room) {
                continue;
            }
            topics.check(&room, served)?;
            if joined.len() + new.len() >= most {
                self.shared.metrics.limits_hit(Limit::Topics).inc();
                let message = format!("a connection may have {most} topics: unsubscribe from some");
                return Err(Problem::not_allowed(&message));
            }
            let reservation = self.shared.rooms.reserve(&room).map_err(|full| {
                let (limit, message) = match full {
                    Full::Rooms => (Limit::Rooms, "the server has too many topics: try again"),
                    Full::Room => (Limit::RoomSessions, "the topic is full: try again later"),
                };
                self.shared.metrics.limits_hit(limit).inc();
                Problem::not_allowed(message)
            })?;
            reservations.push(reservation);
            new.push(room);
        }
        let (id, sender) = (self.id(), self.outbox.sender());
        let (info, joined) = (self.join_guard.info().clone(), topics.joined.clone());
        let join_all_now = move |reservations: Vec<Reservation>| {
            let mut joined = joined.lock();
            for reservation in reservations {
                let guard = reservation.join(id, sender.clone(), info.clone());
                guard.finish_join();
                joined.insert(guard.room().clone(), guard);
            }
        };
        let Some(limit) = self.shared.cluster.as_ref().map(|cluster| cluster.down) else {
            join_all_now(reservations);
            return Ok(());
        };
        let (rooms, sender) = (self.shared.rooms.clone(), self.outbox.sender());
        let subscribed = async move {
            let waits = reservations.iter().map(|it| it.wait_for_snapshots(limit));
            join_all(waits).await;
            match timeout(limit, rooms.wait_in_line()).await {
                Ok(_line) => join_all_now(reservations),
                Err(_) => {
                    let message = "the cluster is slow: try again later";
                    sender.close(Close::new(CloseCode::TryAgainLater, message));
                }
            }
            0
        };
        self.pace
            .get_or_insert_default()
            .wait_for(Box::pin(subscribed));
        Ok(())
    }

    /// Leaves rooms.
    pub(super) fn unsubscribe(&self, rooms: &[RoomName]) -> Result<(), Problem> {
        let mut joined = self.topics()?.joined.lock();
        let left: Vec<_> = rooms
            .iter()
            .filter_map(|room| joined.remove(room))
            .collect();
        drop(joined);
        drop(left);
        Ok(())
    }

    /// Sends to all in a room, in which the session need not be.
    pub(super) fn publish(
        &mut self,
        publication: Publication,
        flush_set: &mut FlushSet,
    ) -> Result<Routed, Problem> {
        if self.permissions.as_ref().is_some_and(|it| !it.may_send) {
            return Err(Problem::listens_only());
        }
        let served = &self.shared.config.serving.dialect;
        self.topics()?.check(&publication.room, served)?;
        let limit = self.shared.cluster.as_ref().map(|cluster| cluster.down);
        if limit.is_some() {
            self.pace.get_or_insert_default().ensure_quota();
        }
        let quota = self.pace.as_ref().and_then(|pace| pace.quota()).cloned();
        let mut bytes = 0;
        let mut write = |subscribers| {
            let frame = publication.frame(subscribers);
            bytes = frame.len();
            frame
        };
        let joined = self.topics()?.joined.clone();
        let joined = joined.lock();
        let speaker = Speaker::anonymous(quota.as_ref());
        let room = &publication.room;
        let Delivery { receivers, .. } = match (joined.get(room), limit) {
            (Some(guard), _) => guard.publish(speaker, &mut write, flush_set),
            (None, None) => {
                let rooms = &self.shared.rooms;
                rooms.publish(room, speaker, &mut write, flush_set)
            }
            (None, Some(limit)) => {
                // This node may not be in the room, where sessions of other nodes may be.
                let (shared, reservation) = (
                    self.shared.clone(),
                    self.shared.rooms.reserve_for_backend(room),
                );
                let published = async move {
                    reservation.wait_for_snapshots(limit).await;
                    let mut bytes = 0;
                    let write = |subscribers| {
                        let frame = publication.frame(subscribers);
                        bytes = frame.len();
                        frame
                    };
                    let speaker = Speaker::anonymous(quota.as_ref());
                    let mut flush_set = FlushSet::default();
                    let room = &publication.room;
                    let rooms = &shared.rooms;
                    let Delivery { receivers, .. } =
                        rooms.publish(room, speaker, write, &mut flush_set);
                    let deliveries = &shared.metrics.traffic.deliveries;
                    deliveries.inc_by(receivers as u64);
                    bytes.saturating_mul(receivers)
                };
                let pace = self.pace.get_or_insert_default();
                pace.wait_for(Box::pin(published));
                return Ok(Routed::default());
            }
        };
        let deliveries = &self.shared.metrics.traffic.deliveries;
        deliveries.inc_by(receivers as u64);
        Ok(Routed {
            receivers,
            bytes: bytes.saturating_mul(receivers),
            ..Routed::default()
        })
    }
}
