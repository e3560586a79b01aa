//! Messages between the sessions of a measurement.

use tokio::sync::mpsc;

use super::swarm::{News, Session};

/// Sessions that send messages to each other in their rooms.
pub(super) struct Flow {
    sessions: Vec<Session>,
    /// The session that each one sends to.
    partners: Vec<usize>,
    pub(super) news: mpsc::UnboundedReceiver<News>,
    filling: String,
}

impl Flow {
    /// Has each session send to the next one in its room, and to itself if it is alone.
    pub(super) fn new(
        joined: Vec<(usize, Session)>,
        news: mpsc::UnboundedReceiver<News>,
        size: usize,
    ) -> Flow {
        let (rooms, sessions): (Vec<usize>, Vec<Session>) = joined.into_iter().unzip();
        let partner = |index: usize| {
            let after = (index + 1..rooms.len()).find(|it| rooms[*it] == rooms[index]);
            after.or_else(|| rooms.iter().position(|it| *it == rooms[index]))
        };
        let partners = (0..rooms.len()).map(|index| partner(index).unwrap_or(index));
        Flow {
            partners: partners.collect(),
            sessions,
            news,
            filling: "x".repeat(size),
        }
    }

    /// Sends the message with this number.
    pub(super) fn send(&self, number: u64) {
        let index = (number % self.sessions.len() as u64) as usize;
        let partner = &self.sessions[self.partners[index]];
        self.sessions[index].send(&partner.id, number, &self.filling);
    }

    pub(super) fn into_sessions(self) -> Vec<Session> {
        self.sessions
    }
}
