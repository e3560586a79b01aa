//! A session's data, and a session as operators see it.

use std::{
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
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
    public: Option<Box<Public>>,
    /// The client's address; `None` for a session of another node.
    pub(crate) address: Mutex<Option<IpAddr>>,
    /// When the session joined, in milliseconds since 1970.
    pub(crate) since: u64,
    /// How many messages the server has taken in from the client.
    pub(crate) taken_in: AtomicU64,
    /// How many of these were binary.
    pub(crate) binary: AtomicU64,
    /// The name that it claims in its room, if it claims one.
    pub(super) claim: Option<Box<NameClaim>>,
}

/// What the token of a session says of it.
struct Public {
    /// The data that the other sessions see in its `new`.
    data: Box<RawValue>,
    /// The user, which is a part of that data; `None` if the token names none.
    user: Option<Box<str>>,
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
        SessionInfo {
            public: public.map(|data| Box::new(Public::read(data))),
            address: Mutex::new(address),
            since: unix_time::unix_millis(),
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

    /// The data that the other sessions see in its `new`.
    pub(crate) fn public(&self) -> Option<&RawValue> {
        Some(&self.public.as_ref()?.data)
    }

    /// The user, which is a part of that data; `None` if the session's token names none.
    pub(super) fn user(&self) -> Option<&str> {
        self.public.as_ref()?.user.as_deref()
    }

    /// The name that the session claims in its room, if it claims one.
    pub(crate) fn name(&self) -> Option<&str> {
        Some(&self.claim.as_ref()?.name)
    }

    /// A session that another node describes.
    pub(super) fn remote(record: &SessionRecord) -> SessionInfo {
        let claim = record.claim.as_deref().cloned();
        SessionInfo {
            since: record.since,
            ..SessionInfo::new(record.data.clone(), None).with_claim(claim.map(NameClaim::from))
        }
    }
}

impl Public {
    /// Reads the user from the data.
    fn read(data: Box<RawValue>) -> Public {
        #[derive(Deserialize)]
        struct User {
            user: Option<Box<str>>,
        }
        let user = serde_json::from_str(data.get()).ok();
        Public {
            user: user.and_then(|it: User| it.user),
            data,
        }
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
        assert_eq!(SessionInfo::remote(&record).since, 1234);
    }
}
