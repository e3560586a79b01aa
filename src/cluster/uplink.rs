//! What waits to be said to other nodes, numbered in the order in which it will be. No I/O.

use std::{
    collections::VecDeque,
    mem,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::{SystemTime, UNIX_EPOCH},
};

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;

use super::wire::{self, Answer, Event, NodeId, Say, ToAll, ToNode, ToRoom, Want};
use crate::protocol::RoomName;

/// How much may wait, in bytes: what a busy node says in the seconds that NATS may take to come
/// back.
const LIMIT: usize = 64 << 20;

/// How far ahead of this node's clock a number may be, in microseconds: an hour, by which clocks may
/// differ.
const AHEAD: u64 = 3_600_000_000;

/// How this node speaks to the others. Nobody waits for it: what it cannot take, it refuses.
pub(crate) struct Uplink {
    me: NodeId,
    queue: Mutex<Queue>,
    filled: Notify,
}

struct Queue {
    /// The number of the last message. Numbers are a logical clock (Lamport, 1978): what is said is
    /// numbered higher than everything that was said or heard before. They begin with the time, in
    /// microseconds since 1970, so that a number can be seen to be too high.
    number: u64,
    waiting: VecDeque<Outgoing>,
    /// How many bytes wait.
    bytes: usize,
    /// Whether somebody may be hearing.
    open: bool,
    /// How often it was closed.
    time: u64,
    finished: bool,
}

/// What is to be done at the connection, in this order.
pub(super) enum Outgoing {
    Say(To, Vec<u8>),
    Subscribe(RoomName),
    Unsubscribe(RoomName),
}

/// Who is to hear it.
#[derive(Clone, Debug)]
pub(super) enum To {
    All,
    Room(RoomName),
    Node(NodeId),
}

/// The number of what this node has last said of a room.
#[derive(Default)]
pub(crate) struct Chain(AtomicU64);

/// It was not said: nobody hears, or too much waits already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cut;

/// Says several things with nothing of others between.
pub(crate) struct Turn<'a> {
    uplink: &'a Uplink,
    queue: MutexGuard<'a, Queue>,
}

fn now_micros() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.unwrap_or_default().as_micros() as u64
}

impl Chain {
    /// The number of what was last said, 0 if nothing was.
    pub(crate) fn last(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

impl Uplink {
    pub(super) fn new(me: NodeId) -> Uplink {
        Uplink {
            me,
            queue: Mutex::new(Queue {
                number: now_micros(),
                waiting: VecDeque::new(),
                bytes: 0,
                open: false,
                time: 0,
                finished: false,
            }),
            filled: Notify::new(),
        }
    }

    /// This node.
    pub(crate) fn node(&self) -> NodeId {
        self.me
    }

    /// The number of what was last said or heard.
    pub(crate) fn number(&self) -> u64 {
        self.queue.lock().number
    }

    pub(crate) fn turn(&self) -> Turn<'_> {
        Turn {
            uplink: self,
            queue: self.queue.lock(),
        }
    }

    /// What is said from now on is numbered higher than this, unless that is too high to be true.
    /// Returns whether it can be true: who believes another a little has numbers a little higher.
    pub(super) fn witness(&self, number: u64) -> bool {
        let now = now_micros();
        if number <= now + AHEAD {
            let mut queue = self.queue.lock();
            queue.number = queue.number.max(number);
        }
        number <= now + 2 * AHEAD
    }

    /// Takes what is said from now on.
    pub(super) fn open(&self) {
        self.queue.lock().open = true;
    }

    /// Forgets what has not been said yet, and takes no more.
    pub(super) fn close(&self) {
        self.queue.lock().close();
    }

    /// Whether it takes anything.
    pub(super) fn is_open(&self) -> bool {
        self.queue.lock().open
    }

    /// Nothing more will be said.
    pub(super) fn finish(&self) {
        self.queue.lock().finished = true;
        self.filled.notify_one();
    }

    /// The time in which it is now: another begins each time it is closed.
    pub(super) fn time(&self) -> u64 {
        self.queue.lock().time
    }

    /// What waits, as soon as something does, and in which time it was said; `None` when all is said.
    pub(super) async fn next(&self) -> Option<(u64, VecDeque<Outgoing>)> {
        loop {
            let filled = self.filled.notified();
            {
                let mut queue = self.queue.lock();
                if !queue.waiting.is_empty() {
                    queue.bytes = 0;
                    return Some((queue.time, mem::take(&mut queue.waiting)));
                }
                if queue.finished {
                    return None;
                }
            }
            filled.await;
        }
    }
}

impl Queue {
    fn put(&mut self, item: Outgoing) -> Result<(), Cut> {
        if !self.open {
            return Err(Cut);
        }
        self.bytes += match &item {
            Outgoing::Say(_, message) => message.len(),
            Outgoing::Subscribe(room) | Outgoing::Unsubscribe(room) => room.as_str().len(),
        };
        self.bytes += size_of::<Outgoing>();
        if self.bytes > LIMIT {
            // In part it would be of no use.
            self.close();
            return Err(Cut);
        }
        self.waiting.push_back(item);
        Ok(())
    }

    fn close(&mut self) {
        self.open = false;
        self.time += 1;
        self.bytes = 0;
        self.waiting = VecDeque::new();
    }
}

impl Turn<'_> {
    pub(super) fn tell_all(&mut self, what: ToAll) -> Result<u64, Cut> {
        self.say(To::All, &Say::All(what), &[])
    }

    /// The number that the next message will have.
    pub(crate) fn next_number(&self) -> u64 {
        self.queue.number + 1
    }

    /// Tells a node why it does not get a session.
    pub(crate) fn answer(&mut self, node: NodeId, room: RoomName, seek: u64, answer: Answer) {
        let answer = ToNode::Answer { room, seek, answer };
        self.notify(node, answer);
    }

    /// Asks every node for a session.
    pub(crate) fn want(&mut self, want: Want) -> Result<u64, Cut> {
        self.tell_all(ToAll::Want(want))
    }

    /// Tells a node something for which it does not wait: it is lost where this one is cut off.
    pub(crate) fn notify(&mut self, node: NodeId, what: ToNode) {
        let _ = self.tell_node(node, what, &[]);
    }

    /// `text` is what a client or a backend wrote.
    pub(crate) fn tell_node(
        &mut self,
        node: NodeId,
        what: ToNode,
        text: &[u8],
    ) -> Result<u64, Cut> {
        self.say(To::Node(node), &Say::Node(what), text)
    }

    /// Says the next of what happens in a room; returns its number.
    ///
    /// # Errors
    ///
    /// [`Cut`], and who hears the next will miss this.
    pub(crate) fn tell_room(
        &mut self,
        room: &RoomName,
        chain: &Chain,
        what: Event,
        text: &[u8],
    ) -> Result<u64, Cut> {
        let say = Say::Room(ToRoom {
            room: room.clone(),
            after: chain.last(),
            what,
        });
        let result = self.say(To::Room(room.clone()), &say, text);
        chain.0.store(self.queue.number, Relaxed);
        result
    }

    /// Begins to hear what others say of a room, and to speak of it.
    pub(crate) fn enter(&mut self, room: &RoomName, chain: &Chain) {
        self.subscribe(room);
        // Where nobody hears it, all is told as soon as somebody does.
        let _ = self.tell_all(ToAll::Enter { room: room.clone() });
        chain.0.store(self.queue.number, Relaxed);
    }

    /// Begins to hear what others say of a room.
    pub(crate) fn subscribe(&mut self, room: &RoomName) {
        // Where it is cut off, that is done when it is no longer.
        let _ = self.queue.put(Outgoing::Subscribe(room.clone()));
    }

    /// Ends what `enter` began.
    pub(crate) fn exit(&mut self, room: &RoomName, chain: &Chain) {
        let _ = self.tell_room(room, chain, Event::Exit, &[]);
        let _ = self.queue.put(Outgoing::Unsubscribe(room.clone()));
    }

    fn say(&mut self, to: To, say: &Say, text: &[u8]) -> Result<u64, Cut> {
        self.queue.number += 1;
        if !self.queue.open {
            return Err(Cut);
        }
        let number = self.queue.number;
        let message = wire::encode(self.uplink.me, number, say, text);
        self.queue.put(Outgoing::Say(to, message))?;
        Ok(number)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if !self.queue.waiting.is_empty() {
            self.uplink.filled.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::wire::decode;

    fn uplink() -> Uplink {
        let uplink = Uplink::new(NodeId::random());
        uplink.open();
        uplink
    }

    /// The numbers of what waits, with what each follows.
    async fn said(uplink: &Uplink) -> Vec<(u64, Option<u64>)> {
        let (_, waiting) = uplink.next().await.unwrap();
        let messages = waiting.iter().filter_map(|item| match item {
            Outgoing::Say(_, message) => Some(decode(message).unwrap()),
            _ => None,
        });
        messages
            .map(|heard| match heard.say {
                Say::Room(said) => (heard.number, Some(said.after)),
                _ => (heard.number, None),
            })
            .collect()
    }

    #[tokio::test]
    async fn what_is_said_of_a_room_is_an_unbroken_row() {
        let uplink = uplink();
        let room = RoomName::default_room();
        let chain = Chain::default();
        let first = uplink.number() + 1;
        uplink.turn().enter(&room, &chain);
        assert!(uplink.witness(first + 10));
        assert!(!uplink.witness(first + 10 * AHEAD));
        uplink
            .turn()
            .tell_room(&room, &chain, Event::Exit, b"")
            .unwrap();
        uplink.turn().tell_all(ToAll::Bye).unwrap();
        uplink
            .turn()
            .tell_room(&room, &chain, Event::Exit, b"")
            .unwrap();
        let said = said(&uplink).await;
        let row = said
            .iter()
            .map(|(number, after)| (number - first, after.map(|it| it - first)));
        let expected = [(0, None), (11, Some(0)), (12, None), (13, Some(11))];
        assert_eq!(row.collect::<Vec<_>>(), expected);
    }

    #[tokio::test]
    async fn what_nobody_hears_is_missed_in_the_row() {
        let uplink = uplink();
        let room = RoomName::default_room();
        let chain = Chain::default();
        let tell = || uplink.turn().tell_room(&room, &chain, Event::Exit, b"");
        let first = tell().unwrap();
        uplink.close();
        assert_eq!(tell(), Err(Cut));
        uplink.open();
        assert_eq!(tell(), Ok(first + 2));
        assert_eq!(said(&uplink).await, [(first + 2, Some(first + 1))]);
    }

    #[tokio::test]
    async fn too_much_is_nothing() {
        let uplink = uplink();
        let text = vec![b'x'; 1 << 20];
        let id = crate::protocol::SessionId::random();
        let unicast = || ToNode::Unicast {
            room: RoomName::default_room(),
            sender: None,
            receiver: id,
        };
        let node = NodeId::random();
        let mut count = 0;
        while uplink.turn().tell_node(node, unicast(), &text).is_ok() {
            count += 1;
        }
        assert_eq!(count, LIMIT / text.len() - 1);
        assert!(!uplink.is_open());
        uplink.finish();
        assert!(uplink.next().await.is_none());
    }
}
