//! The messages of a resumable session that may have to be sent again. No I/O.
//!
//! Messages are numbered as the client counts them. A ping carries the number of messages before it, so each
//! pong tells how many messages the client's network stack has received; every WebSocket client sends
//! pongs by itself. The client's application may be behind its network stack, so the messages that a pong
//! acknowledges are kept until the next pong.

use std::collections::VecDeque;

use crate::websocket::Frame;

/// An early ping is sent each time this fraction of the limit has been sent since the last ping.
const EARLY_PINGS: usize = 8;

/// The last messages that were sent to a session, or are queued for it.
pub(crate) struct ReplayBuffer {
    /// How much is kept, in bytes. Beyond it, the oldest messages are dropped.
    limit: usize,
    frames: VecDeque<Frame>,
    /// The cost of the frames.
    cost: usize,
    /// The number of messages before these.
    before: u64,
    /// The number of messages that were acknowledged.
    acknowledged: u64,
    /// The cost of the messages since the last ping.
    unpinged: usize,
}

impl ReplayBuffer {
    /// A buffer of up to `limit` bytes, for the messages after the first `before`.
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

    /// The number of messages so far.
    fn count(&self) -> u64 {
        self.before + self.frames.len() as u64
    }

    /// Keeps a message, and drops the oldest messages if the buffer is full. Returns a ping if an early one is
    /// due.
    pub(crate) fn push(&mut self, frame: Frame) -> Option<Frame> {
        self.cost += frame.cost();
        self.unpinged += frame.cost();
        self.frames.push_back(frame);
        while self.cost > self.limit {
            self.drop_until(self.before + 1);
        }
        (self.unpinged > self.limit / EARLY_PINGS).then(|| self.ping())
    }

    /// A ping to be sent now.
    pub(crate) fn ping(&mut self) -> Frame {
        self.unpinged = 0;
        Frame::ping(self.count().to_string().as_bytes())
    }

    /// Takes in the payload of a pong. Returns whether the pong acknowledges further messages; a pong that
    /// answers none of these pings does not.
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

    /// The cost of what is kept.
    pub(crate) fn cost(&self) -> usize {
        self.cost
    }

    /// Whether the buffer has all messages that are missed by a client that has received so many.
    pub(crate) fn covers(&self, received: u64) -> bool {
        (self.before..=self.count()).contains(&received)
    }

    /// The messages that are missed by a client that has received so many. `None` if the buffer does not have
    /// all of them. The messages before are dropped.
    pub(crate) fn after(&mut self, received: u64) -> Option<impl Iterator<Item = &Frame>> {
        if !self.covers(received) {
            return None;
        }
        self.drop_until(received);
        self.acknowledged = self.acknowledged.max(received);
        Some(self.frames.iter())
    }

    /// The messages that are kept, and how many came before them.
    pub(crate) fn into_kept(self) -> (u64, Vec<Frame>) {
        (self.before, self.frames.into())
    }

    /// Drops those of the first `count` messages that are still here.
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

    /// The number of messages that are missed by a client that has received so many. They must be in order.
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
    fn missed_messages_are_kept_in_order() {
        for received in 3..=10 {
            assert_eq!(
                missed(&mut kept(10_000, 3, 10), received),
                Some(10 - received)
            );
        }
    }

    #[test]
    fn an_impossible_count_is_rejected() {
        for received in [0, 2, 11, u64::MAX] {
            assert_eq!(missed(&mut kept(10_000, 3, 10), received), None);
        }
    }

    #[test]
    fn a_count_lower_than_the_last_is_rejected() {
        let mut kept = kept(10_000, 0, 10);
        assert_eq!(missed(&mut kept, 5), Some(5));
        assert_eq!(missed(&mut kept, 4), None);
        assert_eq!(missed(&mut kept, 5), Some(5));
    }

    #[test]
    fn acknowledged_messages_are_kept_until_the_next_pong() {
        let mut kept = ReplayBuffer::new(10_000, 0);
        let mut pings = Vec::new();
        for number in 0..10 {
            kept.push(message(number));
            pings.push(kept.ping().bytes()[2..].to_vec());
        }
        assert!(kept.pong(&pings[3]));
        assert_eq!(missed(&mut kept, 0), Some(10));
        assert!(kept.pong(&pings[5]));
        assert_eq!(missed(&mut kept, 3), None);
        assert_eq!(missed(&mut kept, 4), Some(6));
        // A count that was acknowledged before, and one that was never sent, acknowledge nothing.
        for payload in [&pings[0][..], b"", b"11", b"-1", b"1e3", b"\xff"] {
            assert!(!kept.pong(payload), "{payload:?}");
            assert_eq!(missed(&mut kept, 4), Some(6), "{payload:?}");
        }
        assert!(kept.pong(&pings[9]));
        assert!(!kept.pong(&pings[9]));
        assert_eq!(missed(&mut kept, 10), Some(0));
        assert_eq!((kept.cost, kept.frames.capacity()), (0, 0));
    }

    #[test]
    fn a_full_buffer_drops_the_oldest() {
        let cost = message(100).cost();
        let mut kept = kept(10 * cost, 100, 150);
        assert_eq!(kept.cost, 10 * cost);
        assert_eq!(missed(&mut kept, 139), None);
        assert_eq!(missed(&mut kept, 140), Some(10));
    }

    #[test]
    fn an_early_ping_follows_much_data() {
        let cost = message(100).cost();
        let mut kept = ReplayBuffer::new(16 * cost, 100);
        let early = (100..107).filter_map(|number| kept.push(message(number)));
        let early: Vec<_> = early.map(|ping| ping.bytes()[2..].to_vec()).collect();
        assert_eq!(early, [b"103", b"106"]);
    }
}
