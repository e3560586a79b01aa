//! What the sessions use of the TURN server.

use std::{
    collections::HashMap,
    num::NonZeroU32,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::five_tuple::FiveTuple;
use crate::{protocol::SessionId, spare_capacity::release_spare_capacity};

/// Peers without a channel have this part of a session's rate, in addition to it. That is enough for the checks of ICE,
/// which come before the channel.
const OTHER_PART: u32 = 4;

/// The live sessions of this node.
#[derive(Default)]
pub(super) struct Sessions {
    by_id: Mutex<HashMap<SessionId, Arc<SessionUse>>>,
    /// Notified when the last one has ended.
    emptied: Notify,
}

/// What one session uses of the server.
pub(super) struct SessionUse {
    /// The clients with an allocation; `None` once the session has ended.
    allocations: Mutex<Option<Vec<FiveTuple>>>,
    /// The time after which no allocation of the session lasts, in seconds since 1970.
    until: AtomicU64,
    /// The rate of what the client sends, and of the peers that it has given a channel.
    bandwidth: DefaultDirectRateLimiter,
    /// The rate of other peers that it permits. Whoever shares an address with a peer is one of them.
    other_bandwidth: DefaultDirectRateLimiter,
}

/// Why a session gets no further allocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rejected {
    /// The session has ended.
    Ended,
    /// It has as many as it may have.
    Full,
}

impl Sessions {
    /// Adds a session, which may relay so many bytes in a second.
    pub(super) fn add(&self, id: SessionId, bytes_per_second: NonZeroU32) -> Arc<SessionUse> {
        let others = NonZeroU32::new(bytes_per_second.get() / OTHER_PART);
        let others = others.unwrap_or(NonZeroU32::MIN);
        let session = Arc::new(SessionUse {
            allocations: Mutex::new(Some(Vec::new())),
            until: AtomicU64::new(u64::MAX),
            bandwidth: RateLimiter::direct(Quota::per_second(bytes_per_second)),
            other_bandwidth: RateLimiter::direct(Quota::per_second(others)),
        });
        self.by_id.lock().insert(id, session.clone());
        session
    }

    /// The live session with this id.
    pub(super) fn get(&self, id: SessionId) -> Option<Arc<SessionUse>> {
        self.by_id.lock().get(&id).cloned()
    }

    /// Removes a session, unless another with its id has come.
    pub(super) fn remove(&self, id: SessionId, session: &Arc<SessionUse>) {
        let mut sessions = self.by_id.lock();
        if sessions.get(&id).is_some_and(|it| Arc::ptr_eq(it, session)) {
            sessions.remove(&id);
            release_spare_capacity(&mut sessions);
            if sessions.is_empty() {
                self.emptied.notify_one();
            }
        }
    }

    /// Waits until there is no session.
    pub(super) async fn wait_for_end(&self) {
        while !self.by_id.lock().is_empty() {
            self.emptied.notified().await;
        }
    }
}

impl SessionUse {
    /// Adds the allocation that `open` opens for a client, unless the session has `limit` of them or has ended.
    pub(super) fn add<T>(
        &self,
        client: FiveTuple,
        limit: NonZeroU32,
        open: impl FnOnce() -> Option<T>,
    ) -> Result<Option<T>, Rejected> {
        let mut allocations = self.allocations.lock();
        let allocations = allocations.as_mut().ok_or(Rejected::Ended)?;
        if allocations.len() >= limit.get() as usize {
            return Err(Rejected::Full);
        }
        let opened = open();
        if opened.is_some() {
            allocations.push(client);
        }
        Ok(opened)
    }

    /// Removes the allocation of a client.
    pub(super) fn remove(&self, client: &FiveTuple) {
        if let Some(allocations) = &mut *self.allocations.lock() {
            allocations.retain(|it| it != client);
        }
    }

    /// Ends the session, and returns the clients whose allocations must end with it.
    pub(super) fn end(&self) -> Vec<FiveTuple> {
        self.allocations.lock().take().unwrap_or_default()
    }

    /// Lets the allocations of the session outlast it, until then at most, in seconds since 1970.
    pub(super) fn outlast(&self, until: u64) {
        self.until.store(until, Relaxed);
        self.allocations.lock().take();
    }

    /// The time after which no allocation of the session lasts, in seconds since 1970.
    pub(super) fn until(&self) -> u64 {
        self.until.load(Relaxed)
    }

    /// Charges bytes that are relayed: of the client or of a peer that has a channel, or else of another peer. Returns
    /// whether they are within their rate.
    pub(super) fn allows(&self, bytes: usize, has_channel: bool) -> bool {
        match has_channel {
            true => allows(&self.bandwidth, bytes),
            false => allows(&self.other_bandwidth, bytes),
        }
    }
}

/// Charges bytes to a rate. Returns whether they are within it.
pub(super) fn allows(rate: &DefaultDirectRateLimiter, bytes: usize) -> bool {
    let bytes = u32::try_from(bytes).ok().and_then(NonZeroU32::new);
    bytes.is_none_or(|bytes| matches!(rate.check_n(bytes), Ok(Ok(()))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::turn::five_tuple::Transport;

    fn client(port: u16) -> FiveTuple {
        FiveTuple {
            transport: Transport::Udp,
            client: ([192, 0, 2, 1], port).into(),
            server: None,
        }
    }

    #[test]
    fn a_session_has_its_allocations_until_it_ends() {
        let (sessions, id) = (Sessions::default(), SessionId::random());
        let two = NonZeroU32::new(2).unwrap();
        let session = sessions.add(id, NonZeroU32::MAX);
        assert_eq!(session.add(client(1), two, || Some(1)), Ok(Some(1)));
        assert_eq!(session.add(client(2), two, || None::<u8>), Ok(None));
        assert_eq!(session.add(client(3), two, || Some(3)), Ok(Some(3)));
        assert_eq!(session.add(client(4), two, || Some(4)), Err(Rejected::Full));
        session.remove(&client(1));
        assert_eq!(session.add(client(4), two, || Some(4)), Ok(Some(4)));
        // The session has come back to this node before its first guard is gone.
        let second = sessions.add(id, NonZeroU32::MAX);
        sessions.remove(id, &session);
        assert!(Arc::ptr_eq(&sessions.get(id).unwrap(), &second));
        assert_eq!(session.end(), [client(3), client(4)]);
        assert_eq!(
            session.add(client(5), two, || Some(5)),
            Err(Rejected::Ended)
        );
        sessions.remove(id, &second);
        assert!(sessions.by_id.lock().is_empty());
    }

    #[test]
    fn a_session_over_its_bandwidth_is_refused() {
        let session = Sessions::default().add(SessionId::random(), NonZeroU32::new(1000).unwrap());
        assert!(session.allows(0, true) && session.allows(900, true));
        assert!(!session.allows(900, true));
        // More than a second's worth at once never passes.
        assert!(!session.allows(2000, true));
        // Peers without a channel take nothing from the others, and have less.
        assert!(session.allows(200, false) && !session.allows(200, false));
    }
}
