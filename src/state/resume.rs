//! Sessions that may outlive their connections: how they are found by their tokens, and what has
//! become of them. How a session is taken up again is in `session`.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use parking_lot::Mutex;

use crate::{
    outbox::Sender,
    protocol::{ResumeToken, RoomName, TokenHash, TokenKey},
    rooms::release_spare,
};

/// How many keys of other nodes are known. Those of nodes that have long gone make room.
const MAX_KEYS: usize = 256;

/// What a client wants that comes with `?resume=`.
pub(crate) struct ResumeRequest {
    /// `None` for what cannot be a token.
    token: Option<ResumeToken>,
    /// How many messages it has got; `None` for what cannot be a count.
    received: Option<u64>,
}

/// All sessions that may be resumed.
#[derive(Default)]
pub(crate) struct Resumes {
    sessions: Mutex<HashMap<TokenHash, Resumable>>,
    suspended: AtomicUsize,
    keys: TokenKeys,
}

/// The keys of this node's tokens, and of those of other nodes. A server that is alone has none.
#[derive(Default)]
struct TokenKeys {
    own: Option<TokenKey>,
    /// Last come those that were heard of last by their nodes themselves.
    others: Mutex<VecDeque<TokenKey>>,
}

struct Resumable {
    room: RoomName,
    /// Whose it is, if that is known.
    user: Option<String>,
    sender: Sender,
}

/// A session's place among those that may be resumed; dropping it gives it back.
pub(crate) struct ResumeRegistration {
    resumes: Arc<Resumes>,
    token: ResumeToken,
}

/// A session is without a connection as long as this lives.
pub(crate) struct Suspension(Arc<Resumes>);

impl ResumeRequest {
    /// What stands in `?resume=` and `&received=`.
    pub(crate) fn parse(token: &str, received: Option<&str>) -> ResumeRequest {
        ResumeRequest {
            token: ResumeToken::parse(token),
            // A sign is none of its digits.
            received: received
                .filter(|count| !count.starts_with('+'))
                .and_then(|count| count.parse().ok()),
        }
    }

    /// The token and the count, if they can be such.
    pub(crate) fn read(&self) -> Option<(ResumeToken, u64)> {
        self.token.zip(self.received)
    }
}

impl Resumes {
    /// Whether other nodes are to know this one's tokens from made-up ones.
    pub(crate) fn new(is_clustered: bool) -> Resumes {
        let keys = TokenKeys {
            own: is_clustered.then(TokenKey::random),
            others: Mutex::default(),
        };
        Resumes {
            keys,
            ..Resumes::default()
        }
    }

    /// A token for another session.
    pub(crate) fn token(&self) -> ResumeToken {
        ResumeToken::random(self.keys.own.as_ref())
    }

    /// Whether the token may be a session's of any node.
    pub(crate) fn may_be(&self, token: &ResumeToken) -> bool {
        let others = self.keys.others.lock();
        let mut keys = self.keys.own.iter().chain(others.iter());
        keys.any(|key| token.is_of(key))
    }

    /// The keys of tokens, this node's own first.
    pub(crate) fn keys(&self) -> Vec<TokenKey> {
        let others = self.keys.others.lock();
        self.keys.own.iter().chain(others.iter()).copied().collect()
    }

    /// Takes in the keys that another node knows, its own first.
    pub(crate) fn learn(&self, keys: &[TokenKey]) {
        let mut others = self.keys.others.lock();
        let is_others = |key: &TokenKey| Some(*key) != self.keys.own;
        for (index, key) in keys.iter().enumerate().filter(|(_, key)| is_others(key)) {
            match others.iter().position(|known| known == key) {
                Some(place) if index == 0 => _ = others.remove(place),
                Some(_) => continue,
                None => {}
            }
            others.push_back(*key);
        }
        let surplus = others.len().saturating_sub(MAX_KEYS);
        others.drain(..surplus);
    }

    /// Lets the session behind `sender`, which is in this room and this user's, be found by its token
    /// from now on.
    pub(crate) fn register(
        self: &Arc<Resumes>,
        token: ResumeToken,
        room: RoomName,
        user: Option<String>,
        sender: Sender,
    ) -> ResumeRegistration {
        let resumable = Resumable { room, user, sender };
        self.sessions.lock().insert(token.hash(), resumable);
        ResumeRegistration {
            resumes: self.clone(),
            token,
        }
    }

    /// The session that a client of this user wants to take up in this room, and how many of its
    /// messages the client has got; `None` if that cannot be.
    pub(crate) fn find(
        &self,
        request: &ResumeRequest,
        room: &RoomName,
        user: Option<&str>,
    ) -> Option<(Sender, u64)> {
        let (token, received) = request.read()?;
        let sender = self.look_up(&token.hash(), room, user)?;
        sender.is_resumable(received).then_some((sender, received))
    }

    /// The session of this user in this room whose token has this hash.
    pub(crate) fn look_up(
        &self,
        token: &TokenHash,
        room: &RoomName,
        user: Option<&str>,
    ) -> Option<Sender> {
        let sessions = self.sessions.lock();
        let session = sessions.get(token)?;
        let is_its = session.room == *room && session.user.as_deref() == user;
        is_its.then(|| session.sender.clone())
    }

    /// A session has lost its connection.
    pub(crate) fn suspend(self: &Arc<Resumes>) -> Suspension {
        self.suspended.fetch_add(1, Relaxed);
        Suspension(self.clone())
    }

    /// How many sessions are without a connection.
    pub(crate) fn count_suspended(&self) -> usize {
        self.suspended.load(Relaxed)
    }
}

impl ResumeRegistration {
    pub(crate) fn token(&self) -> ResumeToken {
        self.token
    }
}

impl Drop for ResumeRegistration {
    fn drop(&mut self) {
        let mut sessions = self.resumes.sessions.lock();
        sessions.remove(&self.token.hash());
        release_spare(&mut sessions);
    }
}

impl Drop for Suspension {
    fn drop(&mut self) {
        self.0.suspended.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_token_or_no_count_is_nothing() {
        let good = "AAAAAAAAAAAAAAAAAAAAAA";
        let request = ResumeRequest::parse(good, Some("3"));
        assert!(request.token == ResumeToken::parse(good) && request.token.is_some());
        assert_eq!(request.received, Some(3));
        for token in [
            "",
            "short",
            "AAAAAAAAAAAAAAAAAAAAAAA",
            "AAAAAAAAAAAAAAAAAAAAAA==",
            "%41AAAAAAAAAAAAAAAAAAAAA",
            "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
        ] {
            assert!(ResumeRequest::parse(token, None).token.is_none(), "{token}");
        }
        for count in ["", "-1", "+1", "1.5", "18446744073709551616", "many"] {
            assert_eq!(
                ResumeRequest::parse(good, Some(count)).received,
                None,
                "{count}"
            );
        }
    }

    #[test]
    fn a_token_is_known_wherever_its_key_is() {
        let (here, there) = (Resumes::new(true), Resumes::new(true));
        let token = there.token();
        assert!(there.may_be(&token) && !here.may_be(&token));
        here.learn(&there.keys());
        assert!(here.may_be(&token));
        let third = Resumes::new(true);
        third.learn(&here.keys());
        assert!(third.may_be(&token), "it is told on");
        let made_up = ResumeToken::parse("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA").unwrap();
        assert!(!here.may_be(&made_up));
    }

    #[test]
    fn the_keys_of_nodes_that_are_there_stay() {
        let here = Resumes::new(true);
        let node = Resumes::new(true);
        for _ in 0..2 * MAX_KEYS {
            here.learn(&node.keys());
            here.learn(&Resumes::new(true).keys());
        }
        assert_eq!(here.keys().len(), 1 + MAX_KEYS);
        assert!(here.may_be(&node.token()));
    }
}
