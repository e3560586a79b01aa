//! The registry of resumable sessions. A session is found by its token, and has a mailbox for what comes to
//! take it over.

use std::{
    collections::{BTreeSet, HashMap, hash_map::Entry},
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
    event_stream::Inlet,
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
    attempts: Mutex<HashMap<TokenHash, Attempts>>,
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
    /// Present while the client uses no WebSocket.
    inlet: Option<Arc<Inlet>>,
}

/// The connections to this node that try to resume one session, numbered in the order in which they came.
#[derive(Default)]
struct Attempts {
    count: u64,
    /// Those that have neither succeeded nor failed.
    open: BTreeSet<u64>,
    /// The last one that has succeeded; 0 if none has.
    succeeded: u64,
}

/// A connection that tries to resume a session. Dropping it tells that the connection has failed.
pub(crate) struct ResumeAttempt {
    resumes: Arc<Resumes>,
    hash: TokenHash,
    number: u64,
}

/// A session's entry in the registry. Dropping it removes the entry.
pub(crate) struct ResumeRegistration {
    resumes: Arc<Resumes>,
    hash: TokenHash,
    /// `None` until the client of a session from before a restart has come with it.
    token: Option<ResumeToken>,
    mailbox: Arc<Mailbox>,
    /// Present while the client uses no WebSocket.
    inlet: Option<Arc<Inlet>>,
}

/// Counts a session as suspended while it lives.
pub(crate) struct SuspendedGuard(Arc<Resumes>);

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
        self.register_token(self.new_token(), room, user, sender)
    }

    /// A new token.
    pub(crate) fn new_token(&self) -> ResumeToken {
        self.keys.token()
    }

    /// Like [`register`](Resumes::register), for a session that has a token already.
    pub(crate) fn register_token(
        self: &Arc<Resumes>,
        token: ResumeToken,
        room: RoomName,
        user: Option<String>,
        sender: Sender,
    ) -> ResumeRegistration {
        let mut registration = self.register_hash(token.hash(), room, user, sender);
        registration.learn_token(token);
        registration
    }

    /// Like [`register`](Resumes::register), for a session of which only the hash of the token is known.
    pub(crate) fn register_hash(
        self: &Arc<Resumes>,
        hash: TokenHash,
        room: RoomName,
        user: Option<String>,
        sender: Sender,
    ) -> ResumeRegistration {
        let mailbox = Arc::new(Mailbox::new());
        let resumable = Resumable {
            room,
            user,
            sender,
            mailbox: mailbox.clone(),
            inlet: None,
        };
        self.sessions.lock().insert(hash, resumable);
        ResumeRegistration {
            resumes: self.clone(),
            hash,
            token: None,
            mailbox,
            inlet: None,
        }
    }

    /// The inlet of the session in this room whose token has this hash: `None` if the session is not on this node, and
    /// `Some(None)` if its client uses a WebSocket.
    pub(crate) fn inlet(&self, token: &TokenHash, room: &RoomName) -> Option<Option<Arc<Inlet>>> {
        let sessions = self.sessions.lock();
        let session = sessions.get(token).filter(|it| it.room == *room)?;
        Some(session.inlet.clone())
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

    /// Notes that a connection has come to resume the session whose token has this hash. Of several that try at
    /// once, each may wait for other nodes for a while; the last one is to have the session.
    pub(crate) fn attempt(self: &Arc<Resumes>, hash: TokenHash) -> ResumeAttempt {
        let mut attempts = self.attempts.lock();
        let of_session = attempts.entry(hash).or_default();
        of_session.count += 1;
        let number = of_session.count;
        of_session.open.insert(number);
        ResumeAttempt {
            resumes: self.clone(),
            hash,
            number,
        }
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
        let Some((sender, mailbox)) = self.find(token, room, user) else {
            return Err(takeover);
        };
        let (received, close) = (takeover.received(), Close::taken_over());
        sender.take_over(received, close, takeover, |takeover| mailbox.put(takeover))
    }

    /// How many sessions are registered.
    #[cfg(all(test, feature = "cluster"))]
    pub(crate) fn len(&self) -> usize {
        self.sessions.lock().len()
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
    pub(crate) fn suspend(self: &Arc<Resumes>) -> SuspendedGuard {
        self.suspended.fetch_add(1, Relaxed);
        SuspendedGuard(self.clone())
    }

    /// How many sessions have no connection.
    pub(crate) fn count_suspended(&self) -> usize {
        self.suspended.load(Relaxed)
    }
}

impl ResumeAttempt {
    /// Whether a connection that came later tries to resume the session, or has resumed it.
    pub(crate) fn is_superseded(&self) -> bool {
        let attempts = self.resumes.attempts.lock();
        let of_session = attempts.get(&self.hash);
        of_session.is_some_and(|it| it.supersede(self.number))
    }

    /// Makes the session of this user in this room continue with `takeover`, which has this connection. Returns
    /// the takeover that has lost the session by that: an earlier one, or this one if it is superseded.
    ///
    /// # Errors
    ///
    /// As for [`Resumes::take_over`].
    pub(crate) fn take_over(
        &self,
        room: &RoomName,
        user: Option<&str>,
        takeover: Takeover,
    ) -> Result<Option<Takeover>, Takeover> {
        let mut attempts = self.resumes.attempts.lock();
        let of_session = attempts.entry(self.hash).or_default();
        if of_session.supersede(self.number) {
            return Ok(Some(takeover));
        }
        let lost = self.resumes.take_over(&self.hash, room, user, takeover)?;
        of_session.succeeded = self.number;
        Ok(lost)
    }
}

impl Attempts {
    /// Whether an attempt with a higher number is open or has succeeded.
    fn supersede(&self, number: u64) -> bool {
        self.succeeded > number || self.open.last() > Some(&number)
    }
}

impl Drop for ResumeAttempt {
    fn drop(&mut self) {
        let mut attempts = self.resumes.attempts.lock();
        if let Entry::Occupied(mut entry) = attempts.entry(self.hash) {
            entry.get_mut().open.remove(&self.number);
            if entry.get().open.is_empty() {
                entry.remove();
                release_spare_capacity(&mut attempts);
            }
        }
    }
}

impl ResumeRegistration {
    /// The session's token, if it is known.
    pub(crate) fn token(&self) -> Option<ResumeToken> {
        self.token
    }

    /// The hash of the session's token.
    pub(crate) fn hash(&self) -> TokenHash {
        self.hash
    }

    /// Notes the token with which the client has come.
    pub(crate) fn learn_token(&mut self, token: ResumeToken) {
        self.token = Some(token);
    }

    /// The inlet of a client without a WebSocket.
    pub(crate) fn inlet(&self) -> Option<&Arc<Inlet>> {
        self.inlet.as_ref()
    }

    /// The inlet of a client that uses no WebSocket from now on, of which so many messages are taken in; those have at
    /// most `max_message_bytes`. It stays the same until the client uses a WebSocket.
    pub(crate) fn open_inlet(&mut self, max_message_bytes: usize, taken_in: u64) -> Arc<Inlet> {
        if let Some(inlet) = &self.inlet {
            inlet.set_taken_in(taken_in);
            return inlet.clone();
        }
        let inlet = Inlet::new(max_message_bytes, taken_in);
        self.inlet = Some(inlet.clone());
        self.show_inlet();
        inlet
    }

    /// Notes that the client uses a WebSocket from now on.
    pub(crate) fn close_inlet(&mut self) {
        if let Some(inlet) = self.inlet.take() {
            inlet.retire();
            self.show_inlet();
        }
    }

    /// Lets requests find the inlet, if there is one.
    fn show_inlet(&self) {
        if let Some(session) = self.resumes.sessions.lock().get_mut(&self.hash)
            && Arc::ptr_eq(&session.mailbox, &self.mailbox)
        {
            session.inlet = self.inlet.clone();
        }
    }

    /// The takeover that has come for the session. When one comes, [`Sender::take_over`] wakes the
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
        if let Some(inlet) = &self.inlet {
            inlet.retire();
        }
        let mut sessions = self.resumes.sessions.lock();
        if let Entry::Occupied(entry) = sessions.entry(self.hash)
            // A session that has moved away and come back has registered its token again.
            && Arc::ptr_eq(&entry.get().mailbox, &self.mailbox)
        {
            let removed = entry.remove();
            release_spare_capacity(&mut sessions);
            drop(sessions);
            // The outbox may end with this sender: not under the lock of all sessions.
            drop(removed);
        }
    }
}

impl Drop for SuspendedGuard {
    fn drop(&mut self) {
        self.0.suspended.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        cluster::NodeId,
        outbox::{Outbox, detached_outbox},
        rooms::MigrationRequest,
    };

    /// A suspended session in the lobby, without a user.
    fn suspended(resumes: &Arc<Resumes>) -> (Outbox, ResumeRegistration) {
        let (sender, outbox) = detached_outbox(10_000, 0, Vec::new());
        let registration = resumes.register(RoomName::default_room(), None, sender);
        (outbox, registration)
    }

    /// Lets another node take a session over.
    fn take_over(
        resumes: &Resumes,
        token: &TokenHash,
        seek: u64,
    ) -> Result<Option<Takeover>, Takeover> {
        resumes.take_over(token, &RoomName::default_room(), None, from_node(seek))
    }

    /// A takeover of another node. The number tells the takeovers apart.
    fn from_node(seek: u64) -> Takeover {
        Takeover::Remote(MigrationRequest {
            node: NodeId::random(),
            room: RoomName::default_room(),
            seek,
            token: ResumeToken::random(None).hash(),
            received: 0,
            seen: Vec::new(),
        })
    }

    fn number(takeover: Takeover) -> u64 {
        match takeover {
            Takeover::Remote(request) => request.seek,
            Takeover::Local(_) => panic!("not from another node"),
        }
    }

    #[test]
    fn the_last_takeover_gets_the_session_and_the_earlier_is_returned() {
        let resumes = Arc::new(Resumes::default());
        let (_outbox, registration) = suspended(&resumes);
        let token = registration.hash();
        assert!(take_over(&resumes, &token, 1).is_ok_and(|earlier| earlier.is_none()));
        let earlier = take_over(&resumes, &token, 2).ok().flatten();
        assert_eq!(earlier.map(number), Some(1));
        assert!(registration.has_takeover() && !registration.retire_if_empty());
        assert_eq!(registration.take().map(number), Some(2));
        assert!(!registration.has_takeover() && registration.take().is_none());
    }

    #[test]
    fn a_session_that_ends_or_has_moved_accepts_no_takeover() {
        let resumes = Arc::new(Resumes::default());
        let (outbox, registration) = suspended(&resumes);
        let token = registration.hash();
        assert!(take_over(&resumes, &token, 1).is_ok());
        assert_eq!(registration.retire().map(number), Some(1));
        assert_eq!(take_over(&resumes, &token, 2).err().map(number), Some(2));

        let (_moved, registration) = suspended(&resumes);
        let token = registration.hash();
        assert!(registration.retire_if_empty());
        assert_eq!(take_over(&resumes, &token, 3).err().map(number), Some(3));

        drop(outbox);
        let (outbox, registration) = suspended(&resumes);
        drop(outbox);
        let token = registration.hash();
        assert_eq!(take_over(&resumes, &token, 4).err().map(number), Some(4));
    }

    #[test]
    fn only_the_same_user_in_the_same_room_can_resume_a_session() {
        let resumes = Arc::new(Resumes::default());
        let (sender, _outbox) = detached_outbox(10_000, 5, Vec::new());
        let [room, other_room] = ["tea", "milk"].map(|name| RoomName::from_segment(name).unwrap());
        let registration = resumes.register(room.clone(), Some("ann".into()), sender);
        let token = registration.token();
        let can_resume = |token, received, room, user| {
            resumes.can_resume(&ResumeRequest { token, received }, room, user)
        };
        assert!(can_resume(token, Some(5), &room, Some("ann")));
        assert!(!can_resume(token, Some(5), &other_room, Some("ann")));
        assert!(!can_resume(token, Some(5), &room, Some("bob")));
        assert!(!can_resume(token, Some(5), &room, None));
        // The client cannot have received this count.
        assert!(!can_resume(token, Some(6), &room, Some("ann")));
        assert!(!can_resume(token, None, &room, Some("ann")));
        drop(registration);
        assert!(!can_resume(token, Some(5), &room, Some("ann")));
    }

    #[test]
    fn a_token_that_no_node_made_does_not_exist() {
        let [one, other] = [true, true].map(|is_clustered| Arc::new(Resumes::new(is_clustered)));
        let (_outbox, registration) = suspended(&one);
        let token = registration.token().unwrap();
        assert!(one.may_exist(&token) && !other.may_exist(&token));
        other.learn(&one.keys());
        assert!(other.may_exist(&token));
    }

    #[test]
    fn sessions_count_as_suspended_while_their_guards_live() {
        let resumes = Arc::new(Resumes::default());
        let guards = [resumes.suspend(), resumes.suspend()];
        assert_eq!(resumes.count_suspended(), 2);
        drop(guards);
        assert_eq!(resumes.count_suspended(), 0);
    }

    #[test]
    fn a_session_that_comes_back_keeps_its_entry_when_its_earlier_stay_ends() {
        let resumes = Arc::new(Resumes::default());
        let (_first, earlier_stay) = suspended(&resumes);
        let token = earlier_stay.token().unwrap();
        let (sender, _second) = detached_outbox(10_000, 0, Vec::new());
        let room = RoomName::default_room();
        let later_stay = resumes.register_token(token, room, None, sender);
        drop(earlier_stay);
        assert!(take_over(&resumes, &token.hash(), 1).is_ok());
        assert_eq!(later_stay.take().map(number), Some(1));
        drop(later_stay);
        assert!(resumes.sessions.lock().is_empty());
    }

    #[test]
    fn of_several_attempts_the_last_that_does_not_fail_gets_the_session() {
        let resumes = Arc::new(Resumes::default());
        let (_outbox, registration) = suspended(&resumes);
        let [first, second, third] = [(); 3].map(|()| resumes.attempt(registration.hash()));
        let take_over = |attempt: &ResumeAttempt, seek| {
            let lost = attempt.take_over(&RoomName::default_room(), None, from_node(seek));
            lost.ok().unwrap().map(number)
        };
        assert!(first.is_superseded() && second.is_superseded() && !third.is_superseded());
        assert_eq!(take_over(&second, 1), Some(1));
        // The connection of the third is lost.
        drop(third);
        assert!(first.is_superseded() && !second.is_superseded());
        assert_eq!(take_over(&second, 2), None);
        drop(second);
        assert_eq!(take_over(&first, 3), Some(3));
        assert_eq!(registration.take().map(number), Some(2));
        drop(first);
        assert!(resumes.attempts.lock().is_empty());
    }

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

    #[cfg(shuttle)]
    mod interleavings {
        use std::{future::poll_fn, task::Poll};

        use shuttle::{future::block_on, sync::mpsc::channel, thread};
        use tokio::io::duplex;
        use tokio_util::either::Either;

        use super::*;
        use crate::{
            model_check::{check_all, check_random},
            outbox::{Command, FlushError},
            transport::Writer,
            websocket::Frame,
        };

        #[test]
        fn of_two_takeovers_that_come_at_once_the_last_gets_the_session_and_keeps_it() {
            check_all(2, two_takeovers);
            check_random(two_takeovers);
        }

        /// Two takeovers come at once, each in a thread of its own, to a suspended session.
        fn two_takeovers() {
            let resumes = Arc::new(Resumes::default());
            let (outbox, registration) = suspended(&resumes);
            let (sender, token) = (outbox.sender(), registration.hash());
            let (attached, owners) = channel();
            let session = thread::spawn(move || {
                serve(&outbox, &registration, |owner| {
                    attached.send(owner).unwrap()
                })
            });
            let takeovers = [1, 2].map(|seek| {
                let resumes = resumes.clone();
                thread::spawn(move || take_over(&resumes, &token, seek).ok().unwrap())
            });
            let replaced = takeovers.map(|takeover| takeover.join().unwrap().map(number));
            // Each takeover is replaced by the other in the mailbox, or gets the session.
            let replaced: Vec<_> = replaced.into_iter().flatten().collect();
            let owners: Vec<_> = owners.iter().take(2 - replaced.len()).collect();
            let mut numbers = [replaced, owners.clone()].concat();
            numbers.sort_unstable();
            assert_eq!(numbers, [1, 2]);
            sender.close(Close::taken_over());
            assert_eq!(session.join().unwrap(), owners.last().copied());
        }

        /// What the task of a suspended session does until the session is closed, as in `session::suspended`.
        /// Tells `on_attach` each takeover that gets the session, and returns the one that has it at the end.
        fn serve(
            outbox: &Outbox,
            registration: &ResumeRegistration,
            on_attach: impl Fn(u64),
        ) -> Option<u64> {
            loop {
                let takeover = block_on(poll_fn(|cx| match outbox.poll_closed(cx) {
                    Poll::Ready(_) => Poll::Ready(None),
                    Poll::Pending => registration
                        .take()
                        .map_or(Poll::Pending, |it| Poll::Ready(Some(it))),
                }));
                let owner = number(takeover?);
                let (near, _far) = duplex(1000);
                let writer = Writer::new(Either::Right(Box::new(near)), Arc::default());
                assert!(outbox.attach(Frame::text(|_| {}), 0, writer).is_ok());
                if registration.has_takeover() {
                    outbox.give_up(Close::taken_over());
                }
                on_attach(owner);
                let command = block_on(poll_fn(|cx| match outbox.poll_flush(cx) {
                    Poll::Ready(Err(FlushError::Command(command))) => Poll::Ready(command),
                    Poll::Ready(Err(FlushError::Lost)) => panic!("the stream broke"),
                    Poll::Ready(Ok(())) | Poll::Pending => Poll::Pending,
                }));
                match command {
                    Command::Close(_) => return Some(owner),
                    Command::Detach(_) => drop(outbox.detach()),
                }
            }
        }
    }
}
