//! The registry of resumable sessions. A session is found by its token, and has a mailbox for what comes to
//! take it over.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use parking_lot::Mutex;

use super::{
    takeover::{Mailbox, Takeover},
    token_keys::TokenKeys,
};
use crate::{
    outbox::Sender,
    protocol::{Close, ResumeToken, RoomName, TokenHash, TokenKey},
    spare_capacity::release_spare_capacity,
};

/// What a client asks for with `?resume=` and `received=`.
pub(crate) struct ResumeRequest {
    /// `None` if the text is not a token.
    token: Option<ResumeToken>,
    /// How many of the session's messages the client has received. `None` if the text is not a count.
    received: Option<u64>,
}

/// All resumable sessions.
#[derive(Default)]
pub(crate) struct Resumes {
    sessions: Mutex<HashMap<TokenHash, Resumable>>,
    /// How many sessions have no connection.
    suspended: AtomicUsize,
    keys: TokenKeys,
}

struct Resumable {
    room: RoomName,
    /// The user of the session, if a token names one.
    user: Option<String>,
    sender: Sender,
    mailbox: Arc<Mailbox>,
}

/// A session's entry in the registry. Dropping it removes the entry.
pub(crate) struct ResumeRegistration {
    resumes: Arc<Resumes>,
    token: ResumeToken,
    sender: Sender,
    mailbox: Arc<Mailbox>,
}

/// Counts a session as suspended while it lives.
pub(crate) struct Suspension(Arc<Resumes>);

impl ResumeRequest {
    /// Parses the two values of the query.
    pub(crate) fn parse(token: &str, received: Option<&str>) -> ResumeRequest {
        ResumeRequest {
            token: ResumeToken::parse(token),
            // `u64` would accept a sign.
            received: received
                .filter(|count| !count.starts_with('+'))
                .and_then(|count| count.parse().ok()),
        }
    }

    /// The token and the count, if both are valid.
    pub(crate) fn read(&self) -> Option<(ResumeToken, u64)> {
        self.token.zip(self.received)
    }
}

impl Resumes {
    /// An empty registry. In a cluster the tokens have tags, by which other nodes tell them from made-up
    /// ones.
    pub(crate) fn new(is_clustered: bool) -> Resumes {
        Resumes {
            keys: TokenKeys::new(is_clustered),
            ..Resumes::default()
        }
    }

    /// Whether the token may be of a session of some node.
    pub(crate) fn may_exist(&self, token: &ResumeToken) -> bool {
        self.keys.match_token(token)
    }

    /// The keys of tokens, this node's own first.
    pub(crate) fn keys(&self) -> Vec<TokenKey> {
        self.keys.all()
    }

    /// Adds the keys that another node knows. The first of `keys` is that node's own.
    pub(crate) fn learn(&self, keys: &[TokenKey]) {
        self.keys.learn(keys);
    }

    /// Registers the session behind `sender`, which is in this room and of this user, with a new token.
    pub(crate) fn register(
        self: &Arc<Resumes>,
        room: RoomName,
        user: Option<String>,
        sender: Sender,
    ) -> ResumeRegistration {
        self.register_token(self.keys.token(), room, user, sender)
    }

    /// Like [`register`](Resumes::register), for a session that has a token already.
    pub(crate) fn register_token(
        self: &Arc<Resumes>,
        token: ResumeToken,
        room: RoomName,
        user: Option<String>,
        sender: Sender,
    ) -> ResumeRegistration {
        let mailbox = Arc::new(Mailbox::new());
        let resumable = Resumable {
            room,
            user,
            sender: sender.clone(),
            mailbox: mailbox.clone(),
        };
        self.sessions.lock().insert(token.hash(), resumable);
        ResumeRegistration {
            resumes: self.clone(),
            token,
            sender,
            mailbox,
        }
    }

    /// Whether a client of this user can resume a session of this node in this room.
    pub(crate) fn can_resume(
        &self,
        request: &ResumeRequest,
        room: &RoomName,
        user: Option<&str>,
    ) -> bool {
        request.read().is_some_and(|(token, received)| {
            let session = self.find(&token.hash(), room, user);
            session.is_some_and(|(sender, _)| sender.is_resumable(received))
        })
    }

    /// Makes the session of this user in this room, whose token has this hash, continue with `takeover`.
    /// Returns the earlier takeover that has lost the session by that.
    ///
    /// # Errors
    ///
    /// The takeover, if there is no such session or the session cannot continue with it.
    pub(crate) fn take_over(
        &self,
        token: &TokenHash,
        room: &RoomName,
        user: Option<&str>,
        takeover: Takeover,
    ) -> Result<Option<Takeover>, Takeover> {
        match self.find(token, room, user) {
            Some((sender, mailbox)) => deliver(&sender, &mailbox, takeover),
            None => Err(takeover),
        }
    }

    fn find(
        &self,
        token: &TokenHash,
        room: &RoomName,
        user: Option<&str>,
    ) -> Option<(Sender, Arc<Mailbox>)> {
        let sessions = self.sessions.lock();
        let session = sessions.get(token)?;
        let is_its = session.room == *room && session.user.as_deref() == user;
        is_its.then(|| (session.sender.clone(), session.mailbox.clone()))
    }

    /// Counts a session as suspended.
    pub(crate) fn suspend(self: &Arc<Resumes>) -> Suspension {
        self.suspended.fetch_add(1, Relaxed);
        Suspension(self.clone())
    }

    /// How many sessions have no connection.
    pub(crate) fn count_suspended(&self) -> usize {
        self.suspended.load(Relaxed)
    }
}

/// Puts a takeover into the mailbox, and makes the session give its connection up for it.
fn deliver(
    sender: &Sender,
    mailbox: &Mailbox,
    takeover: Takeover,
) -> Result<Option<Takeover>, Takeover> {
    if !sender.is_resumable(takeover.received()) {
        return Err(takeover);
    }
    let replaced = mailbox.put(takeover)?;
    sender.give_up(Close::taken_over());
    Ok(replaced)
}

impl ResumeRegistration {
    /// The session's token.
    pub(crate) fn token(&self) -> ResumeToken {
        self.token
    }

    /// Like [`Resumes::take_over`], for this session.
    ///
    /// # Errors
    ///
    /// The takeover, if the session cannot continue with it.
    pub(crate) fn take_over(&self, takeover: Takeover) -> Result<Option<Takeover>, Takeover> {
        deliver(&self.sender, &self.mailbox, takeover)
    }

    /// The takeover that has come for the session. When one comes, [`Sender::give_up`] wakes the
    /// session.
    pub(crate) fn take(&self) -> Option<Takeover> {
        self.mailbox.take()
    }

    /// Whether a takeover has come for the session.
    pub(crate) fn has_takeover(&self) -> bool {
        self.mailbox.is_full()
    }

    /// Accepts no takeover from now on. Returns the one that came too late.
    pub(crate) fn retire(&self) -> Option<Takeover> {
        self.mailbox.retire()
    }

    /// Accepts no takeover from now on, unless one has come. Returns whether none has.
    pub(crate) fn retire_if_empty(&self) -> bool {
        self.mailbox.retire_if_empty()
    }
}

impl Drop for ResumeRegistration {
    fn drop(&mut self) {
        let mut sessions = self.resumes.sessions.lock();
        if let Entry::Occupied(entry) = sessions.entry(self.token.hash())
            // A session that has moved away and come back has registered its token again.
            && Arc::ptr_eq(&entry.get().mailbox, &self.mailbox)
        {
            entry.remove();
            release_spare_capacity(&mut sessions);
        }
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
    fn a_request_has_a_token_and_a_count_only_if_they_are_valid() {
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
            let request = ResumeRequest::parse(good, Some(count));
            assert_eq!(request.received, None, "{count}");
        }
    }
}
