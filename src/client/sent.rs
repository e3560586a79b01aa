//! What was sent in a session and is not acknowledged yet.

use std::collections::VecDeque;

use tokio_tungstenite::tungstenite::Message;

/// Who knows what has become of a message.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// The client itself, which sends it again in another session if need be.
    Own,
    /// The application, which waits for a receipt.
    Watched,
    /// The application, which waits for no receipt.
    Unwatched,
}

/// A message that was sent.
pub(super) struct Sent {
    pub(super) message: Message,
    /// What it takes of the queue.
    pub(super) reserved: usize,
    pub(super) kind: Kind,
}

/// What was sent in a session and is not acknowledged yet, in order.
#[derive(Default)]
pub(super) struct Unconfirmed {
    /// How many messages of the session came before.
    confirmed: u64,
    messages: VecDeque<Sent>,
}

impl Unconfirmed {
    /// Adds a message. Returns its place in the session: the first has 1.
    pub(super) fn push(&mut self, sent: Sent) -> u64 {
        self.messages.push_back(sent);
        self.confirmed + self.messages.len() as u64
    }

    pub(super) fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// Forgets the messages up to this place. Returns what they took of the queue; `None` if no such message was sent,
    /// or a later one is acknowledged already.
    pub(super) fn confirm_exactly(&mut self, place: u64) -> Option<usize> {
        let sent = self.confirmed + self.messages.len() as u64;
        (self.confirmed..=sent)
            .contains(&place)
            .then(|| self.confirm(place))
    }

    /// Forgets the messages up to this place. Returns what they took of the queue.
    pub(super) fn confirm(&mut self, place: u64) -> usize {
        let mut freed = 0;
        while self.confirmed < place
            && let Some(sent) = self.messages.pop_front()
        {
            self.confirmed += 1;
            freed += sent.reserved;
        }
        freed
    }

    /// The messages to send again on another connection.
    pub(super) fn messages(&self) -> impl Iterator<Item = &Message> {
        self.messages.iter().map(|sent| &sent.message)
    }

    /// Begins another session. Returns what is not acknowledged.
    pub(super) fn restart(&mut self) -> VecDeque<Sent> {
        self.confirmed = 0;
        std::mem::take(&mut self.messages)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_forgotten_in_order_and_only_once() {
        let mut unconfirmed = Unconfirmed::default();
        for place in 1..=4 {
            let sent = Sent {
                message: Message::text(place.to_string()),
                reserved: 10,
                kind: Kind::Unwatched,
            };
            assert_eq!(unconfirmed.push(sent), place);
        }
        assert_eq!(unconfirmed.confirm(2), 20);
        assert_eq!(unconfirmed.confirm(1), 0);
        assert_eq!(unconfirmed.confirm_exactly(1), None);
        assert_eq!(unconfirmed.confirm_exactly(5), None);
        assert_eq!(unconfirmed.confirm_exactly(3), Some(10));
        let left: Vec<_> = unconfirmed.messages().map(ToString::to_string).collect();
        assert_eq!(left, ["4"]);
        assert_eq!(unconfirmed.restart().len(), 1);
        assert!(unconfirmed.is_empty());
        assert_eq!(unconfirmed.confirm_exactly(1), None);
    }
}
