//! A session's data, and a session as operators see it.

use std::{
    net::IpAddr,
    sync::{Arc, atomic::AtomicU64},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::location::Location;
use crate::{cluster::SessionState, protocol::SessionId, unix_time};

/// A session's data, apart from its place in a room.
pub(crate) struct SessionInfo {
    /// The data that the other sessions see in its `new`.
    pub(crate) public: Option<Box<RawValue>>,
    /// The user, which is a part of that data; `None` if its token names none.
    pub(super) user: Option<Box<str>>,
    /// The client's address; `None` for a session of another node.
    pub(crate) address: Mutex<Option<IpAddr>>,
    /// When the session joined.
    pub(crate) since: SystemTime,
    /// How many messages the server has taken in from the client.
    pub(crate) taken_in: AtomicU64,
}

/// A session at one moment, as the admin API shows it.
#[derive(Clone)]
pub(crate) struct SessionSnapshot {
    pub(crate) id: SessionId,
    pub(crate) location: Location,
    pub(crate) info: Arc<SessionInfo>,
    /// The last state that it has set, if it has set one.
    pub(crate) state: Option<Arc<SessionState>>,
}

impl SessionInfo {
    /// A session that joins now.
    pub(crate) fn new(public: Option<Box<RawValue>>, address: Option<IpAddr>) -> SessionInfo {
        #[derive(Deserialize)]
        struct Public {
            user: Option<Box<str>>,
        }
        let parsed = public.as_deref().map(|it| serde_json::from_str(it.get()));
        let parsed: Option<Public> = parsed.and_then(Result::ok);
        SessionInfo {
            public,
            user: parsed.and_then(|it| it.user),
            address: Mutex::new(address),
            since: unix_time::now(),
            taken_in: AtomicU64::new(0),
        }
    }

    /// A session of another node, which joined so many milliseconds after 1970.
    pub(super) fn remote(public: Option<Box<RawValue>>, since: u64) -> SessionInfo {
        let since = UNIX_EPOCH.checked_add(Duration::from_millis(since));
        SessionInfo {
            since: since.unwrap_or(UNIX_EPOCH),
            ..SessionInfo::new(public, None)
        }
    }

    /// When the session joined, in milliseconds since 1970.
    pub(super) fn since_millis(&self) -> u64 {
        let since = self.since.duration_since(UNIX_EPOCH).unwrap_or_default();
        since.as_millis() as u64
    }
}

/// Sorts sessions by their join numbers. The smaller id comes first where two numbers are the same.
pub(super) fn longest_joined_first(
    mut snapshots: Vec<(u64, SessionSnapshot)>,
) -> Vec<SessionSnapshot> {
    snapshots.sort_unstable_by_key(|(joined, snapshot)| (*joined, snapshot.id));
    snapshots
        .into_iter()
        .map(|(_, snapshot)| snapshot)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_of_another_node_keeps_the_time_when_it_joined() {
        assert_eq!(SessionInfo::remote(None, 1234).since_millis(), 1234);
    }
}
