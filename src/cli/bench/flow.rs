//! Messages between the sessions of a measurement.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::mpsc;

use super::{
    limits::pace,
    swarm::{Crew, News, Session, Written},
};

/// How many bytes may wait to be written in all sessions together, and how many a message has besides its filling.
const MAX_QUEUED_BYTES: usize = 64 << 20;
const OVERHEAD: usize = 200;

/// The most messages that may wait to be written in one session.
const MAX_QUEUED: usize = 4096;

/// How many messages may wait to be written in each of so many sessions.
pub(super) fn max_queued(sessions: usize, size: usize) -> usize {
    (MAX_QUEUED_BYTES / (size + OVERHEAD) / sessions).clamp(1, MAX_QUEUED)
}

/// Sessions that send messages to each other in their rooms.
pub(super) struct Flow {
    sessions: Vec<Session>,
    /// The session that each one sends to.
    partners: Vec<usize>,
    news: mpsc::UnboundedReceiver<News>,
    /// How many sessions are lost.
    lost: usize,
    filling: String,
    /// What has left the process since this was last reset.
    written: Arc<Mutex<Written>>,
}

impl Flow {
    /// Has each session send to the next one in its room, and to itself if it is alone.
    pub(super) fn new(
        joined: Vec<(usize, Session)>,
        news: mpsc::UnboundedReceiver<News>,
        size: usize,
        crew: &Crew,
    ) -> Flow {
        let (rooms, sessions): (Vec<usize>, Vec<Session>) = joined.into_iter().unzip();
        let partner = |index: usize| {
            let after = (index + 1..rooms.len()).find(|it| rooms[*it] == rooms[index]);
            after.or_else(|| rooms.iter().position(|it| *it == rooms[index]))
        };
        let partners = (0..rooms.len()).map(|index| partner(index).unwrap_or(index));
        crew.get_or_init(|| sessions.iter().map(|session| session.id.clone()).collect());
        Flow {
            partners: partners.collect(),
            sessions,
            news,
            lost: 0,
            filling: "x".repeat(size),
            written: Arc::default(),
        }
    }

    /// Queues the message with this number. Returns whether there was room for it.
    pub(super) fn send(&self, number: u64) -> bool {
        let index = (number % self.sessions.len() as u64) as usize;
        let partner = &self.sessions[self.partners[index]];
        self.sessions[index].send(&partner.id, number, &self.filling, &self.written)
    }

    /// What a session has to tell next.
    pub(super) async fn next(&mut self) -> Option<News> {
        let news = self.news.recv().await;
        self.heard(news)
    }

    /// What a session has to tell already.
    pub(super) fn try_next(&mut self) -> Option<News> {
        let news = self.news.try_recv().ok();
        self.heard(news)
    }

    fn heard(&mut self, news: Option<News>) -> Option<News> {
        self.lost += usize::from(matches!(news, Some(News::Lost(_))));
        news
    }

    /// How many sessions are lost.
    pub(super) fn lost(&self) -> usize {
        self.lost
    }

    /// Whether no session is left.
    pub(super) fn is_lost(&self) -> bool {
        self.lost == self.sessions.len()
    }

    /// Counts what leaves the process from zero. What is queued already does not count.
    pub(super) fn reset_written(&mut self) {
        self.written = Arc::default();
    }

    /// What has left the process.
    pub(super) fn written(&self) -> Written {
        *self.written.lock()
    }

    /// The reason why a phase has ended, with the rate at which the server paces the sessions, if it does.
    pub(super) fn with_pace(&self, reason: String) -> String {
        match self.sessions.first().and_then(|it| pace(&it.pace)) {
            Some(pace) => format!("{reason}; {pace}"),
            None => reason,
        }
    }

    pub(super) fn into_sessions(self) -> Vec<Session> {
        self.sessions
    }
}
