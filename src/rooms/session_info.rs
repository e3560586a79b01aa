//! A session's data, and a session as operators see it.

use std::{
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::location::Location;
use crate::{
    cluster::{Claim, SessionRecord, SessionState},
    protocol::{SessionId, TokenHash},
    unix_time,
};

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
    /// How many of these were binary.
    pub(crate) binary: AtomicU64,
    /// The name that it claims in its room, if it claims one.
    pub(super) claim: Option<Box<NameClaim>>,
}

/// The claim of a session to a name in its room.
pub(crate) struct NameClaim {
    pub(crate) name: Arc<str>,
    pub(crate) secret: TokenHash,
    /// Whether all sessions with the secret have the name.
    pub(super) is_shared: bool,
    /// [`Claim::first`] and [`Claim::time`], from when the session joins.
    pub(super) first: AtomicU64,
    pub(super) time: AtomicU64,
    /// Whether the session takes messages to the name, as far as its node knows.
    pub(super) is_open: AtomicBool,
}

impl NameClaim {
    /// A claim of a session that has not joined yet.
    pub(crate) fn new(name: &str, secret: TokenHash) -> NameClaim {
        NameClaim {
            name: name.into(),
            secret,
            is_shared: false,
            first: AtomicU64::new(0),
            time: AtomicU64::new(0),
            is_open: AtomicBool::new(false),
        }
    }

    /// The claim of `last`, whose claim to another name has this time, to a name that says what the last claim was.
    pub(crate) fn mark(name: &str, (time, last): (u64, u128)) -> NameClaim {
        let claim = NameClaim::shared(name, TokenHash::of_bits(last));
        claim.time.store(time, Relaxed);
        claim
    }

    /// A claim of a session that is to have the name together with the others that claim it with this secret.
    pub(crate) fn shared(name: &str, secret: TokenHash) -> NameClaim {
        NameClaim {
            is_shared: true,
            ..NameClaim::new(name, secret)
        }
    }

    pub(super) fn to_record(&self) -> Claim {
        Claim {
            name: self.name.clone(),
            secret: self.secret,
            first: self.first.load(Relaxed),
            time: self.time.load(Relaxed),
            shared: self.is_shared,
        }
    }
}

impl From<Claim> for NameClaim {
    /// The claim of a session of another node, which knows whether it is open.
    fn from(claim: Claim) -> NameClaim {
        NameClaim {
            name: claim.name,
            secret: claim.secret,
            is_shared: claim.shared,
            first: AtomicU64::new(claim.first),
            time: AtomicU64::new(claim.time),
            is_open: AtomicBool::new(true),
        }
    }
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
            binary: AtomicU64::new(0),
            claim: None,
        }
    }

    /// The same session with a claim to a name in its room.
    pub(crate) fn with_claim(self, claim: Option<NameClaim>) -> SessionInfo {
        SessionInfo {
            claim: claim.map(Box::new),
            ..self
        }
    }

    /// The name that the session claims in its room, if it claims one.
    pub(crate) fn name(&self) -> Option<&str> {
        Some(&self.claim.as_ref()?.name)
    }

    /// A session that another node describes.
    pub(super) fn remote(record: &SessionRecord) -> SessionInfo {
        let since = UNIX_EPOCH.checked_add(Duration::from_millis(record.since));
        let claim = record.claim.as_deref().cloned();
        SessionInfo {
            since: since.unwrap_or(UNIX_EPOCH),
            ..SessionInfo::new(record.data.clone(), None).with_claim(claim.map(NameClaim::from))
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
        let record = SessionRecord {
            since: 1234,
            ..SessionRecord::first(SessionId::random())
        };
        assert_eq!(SessionInfo::remote(&record).since_millis(), 1234);
    }
}
