//! Sessions that may outlive their connections: how they are found by their tokens, and what has
//! become of them. How a session is taken up again is in `session`.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
};

use parking_lot::Mutex;

use crate::{
    outbox::Sender,
    protocol::{RoomName, Token},
    rooms::release_spare,
};

/// What a client wants that comes with `?resume=`.
pub(crate) struct Request {
    /// `None` for what cannot be a token.
    token: Option<Token>,
    /// How many messages it has got; `None` for what cannot be a count.
    received: Option<u64>,
}

/// All sessions that may be resumed.
#[derive(Default)]
pub(crate) struct Resumes {
    sessions: Mutex<HashMap<Token, Resumable>>,
    away: AtomicUsize,
    resumed: AtomicU64,
    failed: AtomicU64,
    expired: AtomicU64,
}

struct Resumable {
    room: RoomName,
    sender: Sender,
}

/// How many sessions have lost their connection, and what became of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResumeCounts {
    /// How many are without a connection now.
    pub away: usize,
    /// How often one has been taken up again so far.
    pub resumed: u64,
    /// How many requests to take up a session have failed so far.
    pub failed: u64,
    /// How many sessions have ended so far because nobody took them up in time.
    pub expired: u64,
}

/// A session's place among those that may be resumed; dropping it gives it back.
pub(crate) struct Ticket {
    resumes: Arc<Resumes>,
    token: Token,
}

/// A session is without a connection as long as this lives.
pub(crate) struct Away(Arc<Resumes>);

impl Request {
    /// What the query of a URL asks for, `None` if not to resume. The first `resume` and the first
    /// `received` count.
    pub(crate) fn from_query(query: &str) -> Option<Request> {
        let value = |name| {
            let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
            pairs.find(|pair| pair.0 == name).map(|pair| pair.1)
        };
        Some(Request {
            token: Token::parse(value("resume")?),
            received: value("received").and_then(|count| count.parse().ok()),
        })
    }
}

impl Resumes {
    /// Lets the session behind `sender`, which is in this room, be found from now on.
    pub(crate) fn register(self: &Arc<Resumes>, room: RoomName, sender: Sender) -> Ticket {
        let token = Token::random();
        self.sessions
            .lock()
            .insert(token, Resumable { room, sender });
        Ticket {
            resumes: self.clone(),
            token,
        }
    }

    /// The session that a client wants to take up in this room, and how many of its messages the
    /// client has got; `None` if that cannot be.
    pub(crate) fn find(&self, request: &Request, room: &RoomName) -> Option<(Sender, u64)> {
        let received = request.received?;
        let sender = {
            let sessions = self.sessions.lock();
            let session = sessions.get(request.token.as_ref()?)?;
            (session.room == *room).then(|| session.sender.clone())?
        };
        sender.is_resumable(received).then_some((sender, received))
    }

    /// A session has lost its connection.
    pub(crate) fn away(self: &Arc<Resumes>) -> Away {
        self.away.fetch_add(1, Relaxed);
        Away(self.clone())
    }

    /// A session has been taken up again.
    pub(crate) fn count_resumed(&self) {
        self.resumed.fetch_add(1, Relaxed);
    }

    /// A session could not be taken up again.
    pub(crate) fn count_failed(&self) {
        self.failed.fetch_add(1, Relaxed);
    }

    /// Nobody took up a session in time.
    pub(crate) fn count_expired(&self) {
        self.expired.fetch_add(1, Relaxed);
    }

    pub(crate) fn counts(&self) -> ResumeCounts {
        ResumeCounts {
            away: self.away.load(Relaxed),
            resumed: self.resumed.load(Relaxed),
            failed: self.failed.load(Relaxed),
            expired: self.expired.load(Relaxed),
        }
    }
}

impl Ticket {
    pub(crate) fn token(&self) -> Token {
        self.token
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut sessions = self.resumes.sessions.lock();
        sessions.remove(&self.token);
        release_spare(&mut sessions);
    }
}

impl Drop for Away {
    fn drop(&mut self) {
        self.0.away.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_asks_to_resume_or_not() {
        assert!(Request::from_query("").is_none());
        assert!(Request::from_query("received=3&resumed=x").is_none());
        let token = "AAAAAAAAAAAAAAAAAAAAAA";
        let request = Request::from_query(&format!("a=b&resume={token}&received=3")).unwrap();
        assert!(request.token == Token::parse(token) && request.token.is_some());
        assert_eq!(request.received, Some(3));
        for query in [
            "resume=".to_owned(),
            "resume=short".to_owned(),
            format!("resume={token}A"),
            format!("resume={token}=="),
            "resume=%41AAAAAAAAAAAAAAAAAAAAA".to_owned(),
        ] {
            assert!(
                Request::from_query(&query).unwrap().token.is_none(),
                "{query}"
            );
        }
        for count in ["", "-1", "1.5", "18446744073709551616", "many"] {
            let query = format!("resume={token}&received={count}");
            assert_eq!(
                Request::from_query(&query).unwrap().received,
                None,
                "{query}"
            );
        }
    }
}
