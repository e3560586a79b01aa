//! What a session that may be resumed has been sent, as long as it may have to be sent again. No I/O.
//!
//! Messages are numbered as the client counts them. Pings carry the number of messages before them,
//! so that each pong says how far a client's network stack has come, whatever the client is. Its
//! application may be behind that: what a pong acknowledges is kept until the next one.

use std::collections::VecDeque;

use crate::websocket::Frame;

/// An early ping goes out each time such a part of the limit has been sent.
const EARLY_PINGS: usize = 8;

/// The last messages that a session was sent, or is to be sent.
pub(crate) struct ReplayBuffer {
    /// How much may be kept, in bytes; where more comes, the oldest goes.
    limit: usize,
    frames: VecDeque<Frame>,
    /// What it costs to keep them.
    cost: usize,
    /// How many messages there were before these.
    before: u64,
    /// How many messages have been acknowledged.
    acknowledged: u64,
    /// The cost of what has come since the last ping.
    unpinged: usize,
}

impl ReplayBuffer {
    /// Keeps up to `limit` bytes of what comes after the first `before` messages.
    pub(crate) fn new(limit: usize, before: u64) -> ReplayBuffer {
        ReplayBuffer {
            limit,
            frames: VecDeque::new(),
            cost: 0,
            before,
            acknowledged: before,
            unpinged: 0,
        }
    }

    /// How many messages there have been so far.
    fn count(&self) -> u64 {
        self.before + self.frames.len() as u64
    }

    /// Keeps a message, and drops the oldest where that is too much; returns a ping if it is time for
    /// an early one.
    pub(crate) fn push(&mut self, frame: Frame) -> Option<Frame> {
        self.cost += frame.cost();
        self.unpinged += frame.cost();
        self.frames.push_back(frame);
        while self.cost > self.limit {
            self.drop_until(self.before + 1);
        }
        (self.unpinged > self.limit / EARLY_PINGS).then(|| self.ping())
    }

    /// A ping that is to be sent now.
    pub(crate) fn ping(&mut self) -> Frame {
        self.unpinged = 0;
        Frame::ping(self.count().to_string().as_bytes())
    }

    /// Takes in the payload of a pong; returns whether it says something new. One that answers none of
    /// these pings says nothing.
    pub(crate) fn pong(&mut self, payload: &[u8]) -> bool {
        let number = str::from_utf8(payload)
            .ok()
            .and_then(|text| text.parse().ok());
        let Some(count) = number.filter(|count| (self.acknowledged..=self.count()).contains(count))
        else {
            return false;
        };
        let is_new = count > self.acknowledged;
        self.drop_until(self.acknowledged);
        self.acknowledged = count;
        is_new
    }

    /// What it costs to keep what is kept.
    pub(crate) fn cost(&self) -> usize {
        self.cost
    }

    /// Whether all is here that must be sent to a client that has got so many messages.
    pub(crate) fn covers(&self, received: u64) -> bool {
        (self.before..=self.count()).contains(&received)
    }

    /// The messages to be sent to a client that has got so many; `None` if they are not all here.
    /// Those before are dropped.
    pub(crate) fn after(&mut self, received: u64) -> Option<impl Iterator<Item = &Frame>> {
        if !self.covers(received) {
            return None;
        }
        self.drop_until(received);
        self.acknowledged = self.acknowledged.max(received);
        Some(self.frames.iter())
    }

    /// Drops the messages of the first `count` that are still here.
    fn drop_until(&mut self, count: u64) {
        let here = count.saturating_sub(self.before);
        for frame in self.frames.drain(..here as usize) {
            self.cost -= frame.cost();
            self.before += 1;
        }
        if self.frames.is_empty() {
            self.frames = VecDeque::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(number: u64) -> Frame {
        Frame::text(|buffer| buffer.extend_from_slice(format!("message {number}").as_bytes()))
    }

    /// How many messages are missed by a client that has got so many; all must be there in order.
    fn missed(kept: &mut ReplayBuffer, received: u64) -> Option<u64> {
        let frames = kept.after(received)?;
        let mut number = received;
        for frame in frames {
            assert_eq!(frame.bytes(), message(number).bytes());
            number += 1;
        }
        Some(number - received)
    }

    fn kept(limit: usize, before: u64, count: u64) -> ReplayBuffer {
        let mut kept = ReplayBuffer::new(limit, before);
        for number in before..count {
            kept.push(message(number));
        }
        kept
    }

    #[test]
    fn what_a_client_has_not_got_is_there_in_order() {
        for received in 3..=10 {
            assert_eq!(
                missed(&mut kept(10_000, 3, 10), received),
                Some(10 - received)
            );
        }
    }

    #[test]
    fn a_count_that_cannot_be_is_refused() {
        for received in [0, 2, 11, u64::MAX] {
            assert_eq!(missed(&mut kept(10_000, 3, 10), received), None);
        }
    }

    #[test]
    fn a_client_does_not_go_back() {
        let mut kept = kept(10_000, 0, 10);
        assert_eq!(missed(&mut kept, 5), Some(5));
        assert_eq!(missed(&mut kept, 4), None);
        assert_eq!(missed(&mut kept, 5), Some(5));
    }

    #[test]
    fn what_a_pong_acknowledges_is_kept_until_the_next() {
        let mut kept = ReplayBuffer::new(10_000, 0);
        let mut pings = Vec::new();
        for number in 0..10 {
            kept.push(message(number));
            pings.push(kept.ping().bytes()[2..].to_vec());
        }
        kept.pong(&pings[3]);
        assert_eq!(missed(&mut kept, 0), Some(10));
        kept.pong(&pings[5]);
        assert_eq!(missed(&mut kept, 3), None);
        assert_eq!(missed(&mut kept, 4), Some(6));
        // Neither what was acknowledged before nor what was never sent says anything.
        for payload in [&pings[0][..], b"", b"11", b"-1", b"1e3", b"\xff"] {
            kept.pong(payload);
            assert_eq!(missed(&mut kept, 4), Some(6), "{payload:?}");
        }
        kept.pong(&pings[9]);
        kept.pong(&pings[9]);
        assert_eq!(missed(&mut kept, 10), Some(0));
        assert_eq!((kept.cost, kept.frames.capacity()), (0, 0));
    }

    #[test]
    fn the_oldest_makes_room() {
        let cost = message(100).cost();
        let mut kept = kept(10 * cost, 100, 150);
        assert_eq!(kept.cost, 10 * cost);
        assert_eq!(missed(&mut kept, 139), None);
        assert_eq!(missed(&mut kept, 140), Some(10));
    }

    #[test]
    fn a_ping_goes_out_early_where_much_is_sent() {
        let cost = message(100).cost();
        let mut kept = ReplayBuffer::new(16 * cost, 100);
        let early = (100..107).filter_map(|number| kept.push(message(number)));
        let early: Vec<_> = early.map(|ping| ping.bytes()[2..].to_vec()).collect();
        assert_eq!(early, [b"103", b"106"]);
    }
}
