//! Pure data: the names that sessions claim in a room, and the messages that wait for a session with a name.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use tokio::time::Instant;

use crate::{
    keyed_map::KeyedMap, protocol::SessionId, spare_capacity::release_spare_capacity,
    websocket::Frame,
};

/// Most bytes of one session's messages that wait in a room. A further message fails at once.
const MAX_WAITING: usize = 256 << 10;

/// The names that sessions claim in a room.
#[derive(Default)]
pub(super) struct Names {
    claimants: KeyedMap<Arc<str>, Vec<SessionId>>,
    waiting: KeyedMap<Arc<str>, VecDeque<Waiting>>,
    /// The cost of the waiting messages of each author, in bytes.
    costs: BTreeMap<Option<SessionId>, usize>,
}

/// A message that waits for a session with a name.
pub(super) struct Waiting {
    /// `None` if another node has passed the message on.
    pub(super) author: Option<SessionId>,
    pub(super) frame: Frame,
    deadline: Instant,
}

impl Names {
    /// Adds the claim of a session.
    pub(super) fn add(&mut self, name: &Arc<str>, id: SessionId) {
        self.claimants.entry(name.clone()).or_default().push(id);
    }

    /// Removes the claim of a session.
    pub(super) fn remove(&mut self, name: &str, id: SessionId) {
        if let Some(claimants) = self.claimants.get_mut(name) {
            claimants.retain(|claimant| *claimant != id);
            if claimants.is_empty() {
                self.claimants.remove(name);
                release_spare_capacity(&mut self.claimants);
            }
        }
    }

    /// The sessions that claim a name.
    pub(super) fn claimants(&self, name: &str) -> &[SessionId] {
        self.claimants.get(name).map_or(&[], Vec::as_slice)
    }

    /// Has a message wait until `deadline`. Returns whether it is the first one for this name; `None` if too much of
    /// its author waits.
    pub(super) fn wait(
        &mut self,
        name: &Arc<str>,
        author: Option<SessionId>,
        frame: Frame,
        deadline: Instant,
    ) -> Option<bool> {
        let cost = self.costs.get(&author).copied().unwrap_or_default() + frame.cost();
        if cost > MAX_WAITING {
            return None;
        }
        self.costs.insert(author, cost);
        let waiting = self.waiting.entry(name.clone()).or_default();
        waiting.push_back(Waiting {
            author,
            frame,
            deadline,
        });
        Some(waiting.len() == 1)
    }

    /// Takes the messages that wait for a name.
    pub(super) fn take(&mut self, name: &str) -> VecDeque<Waiting> {
        let taken = self.waiting.remove(name).unwrap_or_default();
        release_spare_capacity(&mut self.waiting);
        self.settle(&taken);
        taken
    }

    /// Removes the messages to a name whose deadline has passed. Returns their authors, each once, and the deadline of
    /// the next message.
    pub(super) fn expire(&mut self, name: &str, now: Instant) -> (Vec<SessionId>, Option<Instant>) {
        let Some(waiting) = self.waiting.get_mut(name) else {
            return Default::default();
        };
        let expired = waiting.partition_point(|message| message.deadline <= now);
        let expired: VecDeque<Waiting> = waiting.drain(..expired).collect();
        let next = waiting.front().map(|message| message.deadline);
        if next.is_none() {
            self.waiting.remove(name);
            release_spare_capacity(&mut self.waiting);
        }
        self.settle(&expired);
        let authors = expired.iter().filter_map(|message| message.author);
        let mut authors: Vec<SessionId> = authors.collect();
        authors.sort_unstable();
        authors.dedup();
        (authors, next)
    }

    /// Notes that messages wait no more.
    fn settle(&mut self, messages: &VecDeque<Waiting>) {
        for message in messages {
            if let Some(cost) = self.costs.get_mut(&message.author) {
                *cost = cost.saturating_sub(message.frame.cost());
                if *cost == 0 {
                    self.costs.remove(&message.author);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn frame(bytes: usize) -> Frame {
        Frame::text(|buffer| buffer.resize(bytes, b'x'))
    }

    #[test]
    fn messages_expire_one_by_one_and_each_author_is_named_once() {
        let mut names = Names::default();
        let [ann, bob] = [(); 2].map(|()| SessionId::random());
        let (name, start) = (Arc::from("cat"), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        for (author, seconds, is_first) in [(ann, 1, true), (ann, 2, false), (bob, 3, false)] {
            let first = names.wait(&name, Some(author), frame(10), at(seconds));
            assert_eq!(first, Some(is_first));
        }
        assert_eq!(names.expire("cat", at(0)), (vec![], Some(at(1))));
        assert_eq!(names.expire("cat", at(2)), (vec![ann], Some(at(3))));
        assert_eq!(names.expire("dog", at(9)), (vec![], None));
        assert_eq!(names.take("cat").len(), 1);
        assert_eq!(names.expire("cat", at(9)), (vec![], None));
        assert!(names.waiting.is_empty() && names.costs.is_empty());
    }

    #[test]
    fn what_waits_of_one_author_is_bounded_and_leaves_the_others_theirs() {
        let mut names = Names::default();
        let [ann, bob] = [(); 2].map(|()| SessionId::random());
        let (name, now) = (Arc::from("cat"), Instant::now());
        let mut waiting = 0;
        while names.wait(&name, Some(ann), frame(10_000), now).is_some() {
            waiting += 1;
        }
        assert_eq!(waiting, MAX_WAITING / frame(10_000).cost());
        assert!(names.wait(&name, Some(bob), frame(10_000), now).is_some());
        names.take("cat");
        assert!(names.wait(&name, Some(ann), frame(10_000), now).is_some());
    }
}
