//! Pure data: the names that sessions claim in a room, and the messages that wait for a session with a name.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    mem,
    sync::Arc,
};

use tokio::time::Instant;

use crate::{
    keyed_map::KeyedMap, protocol::SessionId, spare_capacity::release_spare_capacity,
    websocket::Frame,
};

/// What a waiting message costs beside its frame, in bytes: its places in maps and queues.
const WAITING_BYTES: usize = 512;

/// The part of what may wait for a name that one author may use.
const PART_OF_AUTHOR: usize = 4;

/// The names that sessions claim in a room.
#[derive(Default)]
pub(super) struct Names {
    /// The latest time of a claim so far, in milliseconds since 1970.
    pub(super) clock: u64,
    claimants: KeyedMap<Arc<str>, Vec<SessionId>>,
    waiting: KeyedMap<Arc<str>, VecDeque<Waiting>>,
    /// The cost of the waiting messages of each author, and of those to each name, in bytes.
    author_costs: BTreeMap<Option<SessionId>, usize>,
    name_costs: KeyedMap<Arc<str>, usize>,
}

/// A message that waits for a session with a name.
pub(super) struct Waiting {
    /// `None` if another node has passed the message on.
    pub(super) author: Option<SessionId>,
    pub(super) frame: Frame,
    deadline: Instant,
}

impl Names {
    /// Adds the claim of a session, which has this time.
    pub(super) fn add(&mut self, name: &Arc<str>, id: SessionId, time: u64) {
        self.clock = self.clock.max(time);
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

    /// Has a message wait until `deadline`. Returns whether it is the first one for this name; `None` if too much waits
    /// for the name, of which `most` bytes may, or too much of its author.
    pub(super) fn wait(
        &mut self,
        name: &Arc<str>,
        author: Option<SessionId>,
        frame: Frame,
        deadline: Instant,
        most: usize,
    ) -> Option<bool> {
        let of_author = self.author_costs.get(&author).copied().unwrap_or_default();
        let for_name = self.name_costs.get(name).copied().unwrap_or_default();
        let (of_author, for_name) = (of_author + cost(&frame), for_name + cost(&frame));
        if of_author > most / PART_OF_AUTHOR || for_name > most {
            return None;
        }
        self.author_costs.insert(author, of_author);
        self.name_costs.insert(name.clone(), for_name);
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
        self.settle(name, &taken);
        taken
    }

    /// Drops the waiting messages of an author.
    pub(super) fn forget(&mut self, author: SessionId) {
        if self.author_costs.remove(&Some(author)).is_none() {
            return;
        }
        let names: Vec<Arc<str>> = self.waiting.keys().cloned().collect();
        for name in names {
            if let Some(waiting) = self.waiting.get_mut(&name) {
                let all = mem::take(waiting).into_iter();
                let (gone, kept): (VecDeque<_>, VecDeque<_>) =
                    all.partition(|message| message.author == Some(author));
                *waiting = kept;
                if waiting.is_empty() {
                    self.waiting.remove(&name);
                }
                self.settle(&name, &gone);
            }
        }
        release_spare_capacity(&mut self.waiting);
    }

    /// Removes the messages to a name of each author one of whose messages has waited until its deadline. Returns the
    /// authors, and the deadline of the next message.
    pub(super) fn expire(&mut self, name: &str, now: Instant) -> (Vec<SessionId>, Option<Instant>) {
        let Some(waiting) = self.waiting.get_mut(name) else {
            return Default::default();
        };
        let due = waiting.iter().filter(|message| message.deadline <= now);
        let authors: BTreeSet<Option<SessionId>> = due.map(|message| message.author).collect();
        let all = mem::take(waiting).into_iter();
        let (expired, kept): (VecDeque<Waiting>, VecDeque<Waiting>) =
            all.partition(|message| authors.contains(&message.author));
        *waiting = kept;
        let next = waiting.front().map(|message| message.deadline);
        if next.is_none() {
            self.waiting.remove(name);
            release_spare_capacity(&mut self.waiting);
        }
        self.settle(name, &expired);
        (authors.into_iter().flatten().collect(), next)
    }

    /// Notes that messages wait no more.
    fn settle(&mut self, name: &str, messages: &VecDeque<Waiting>) {
        for message in messages {
            let cost = cost(&message.frame);
            if let Some(of_author) = self.author_costs.get_mut(&message.author) {
                *of_author = of_author.saturating_sub(cost);
                if *of_author == 0 {
                    self.author_costs.remove(&message.author);
                }
            }
            if let Some(for_name) = self.name_costs.get_mut(name) {
                *for_name = for_name.saturating_sub(cost);
                if *for_name == 0 {
                    self.name_costs.remove(name);
                }
            }
        }
        release_spare_capacity(&mut self.name_costs);
    }
}

/// What a waiting message costs, in bytes.
fn cost(frame: &Frame) -> usize {
    frame.cost() + WAITING_BYTES
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn frame(bytes: usize) -> Frame {
        Frame::text(|buffer| buffer.resize(bytes, b'x'))
    }

    #[test]
    fn all_messages_of_an_author_expire_with_the_first() {
        let mut names = Names::default();
        let [ann, bob] = [(); 2].map(|()| SessionId::random());
        let (name, start) = (Arc::from("cat"), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        for (author, seconds, is_first) in [(ann, 1, true), (ann, 2, false), (bob, 3, false)] {
            let first = names.wait(&name, Some(author), frame(10), at(seconds), 100_000);
            assert_eq!(first, Some(is_first));
        }
        assert_eq!(names.expire("cat", at(0)), (vec![], Some(at(1))));
        assert_eq!(names.expire("cat", at(1)), (vec![ann], Some(at(3))));
        assert_eq!(names.expire("dog", at(9)), (vec![], None));
        assert_eq!(names.take("cat").len(), 1);
        assert_eq!(names.expire("cat", at(9)), (vec![], None));
        assert!(names.waiting.is_empty() && names.author_costs.is_empty());
    }

    #[test]
    fn what_waits_is_bounded_for_each_author_and_for_each_name() {
        const MOST: usize = 400_000;
        let mut names = Names::default();
        let (name, other, now) = (Arc::from("cat"), Arc::from("dog"), Instant::now());
        let frame = frame(10_000);
        let fill = |author: SessionId, name: &Arc<str>, names: &mut Names| {
            let wait = || names.wait(name, Some(author), frame.clone(), now, MOST);
            std::iter::repeat_with(wait)
                .take_while(Option::is_some)
                .count()
        };
        let [ann, bob] = [(); 2].map(|()| SessionId::random());
        let share = MOST / PART_OF_AUTHOR / cost(&frame);
        assert_eq!(fill(ann, &name, &mut names), share);
        assert_eq!(fill(bob, &name, &mut names), share);
        // More of her messages wait for nobody.
        assert_eq!(fill(ann, &other, &mut names), 0);
        let mut waiting = 2 * share;
        for _ in 0..9 {
            waiting += fill(SessionId::random(), &name, &mut names);
        }
        assert_eq!(waiting, MOST / cost(&frame));
        names.forget(ann);
        assert_eq!(names.take("cat").len(), waiting - share);
        assert!(names.author_costs.is_empty() && names.name_costs.is_empty());
        assert_eq!(fill(ann, &name, &mut names), share);
    }
}
