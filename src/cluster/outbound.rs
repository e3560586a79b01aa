//! What waits to be said to other nodes, numbered in the order in which it will be. No I/O.
//!
//! Nothing is thrown away to make room. Who fills the queue with what can wait (a client's message, a
//! list of sessions) waits until there is room again: each session for its own share, all of them
//! together for what the queue takes, and for what a node has not taken in yet. What nodes must say to
//! each other for themselves always finds room behind that.

use std::{
    collections::{BTreeMap, VecDeque},
    future::poll_fn,
    mem,
    sync::{
        Arc,
        atomic::{
            AtomicBool, AtomicU64, AtomicUsize,
            Ordering::{Acquire, Relaxed, Release},
        },
    },
    task::{Context, Poll},
};

use futures_util::task::AtomicWaker;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{
    Mutex as AsyncMutex, MutexGuard as AsyncMutexGuard, Notify, Semaphore, SemaphorePermit,
};

use super::wire::{
    self, Answer, Broadcast, Direct, Event, MAX_NUMBER, Message, NodeId, RoomEvent, Want,
};
use crate::protocol::RoomName;

/// How much may wait, in bytes, before this node gives up to be heard: this is only reached by what
/// nodes say for themselves.
const LIMIT: usize = 64 << 20;

/// How much of it may be messages of clients, of those who wait in line, lists, and replies. Each has
/// room of its own, so that none keeps another out; and all together are little, for what is said
/// behind them, such as that this node is there, must not come too late on a slow network.
const MESSAGES: usize = 4 << 20;
const LINE: usize = 2 << 20;
const LISTS: usize = 2 << 20;
const REPLIES: usize = 2 << 20;

/// How many sessions are handed over at once: each is a burst of all that its client has missed.
const HANDOVERS: usize = 4;

/// How much of it may be of one session.
const SHARE: usize = 256 << 10;

/// How much a node may not have taken in yet, in bytes.
const WINDOW: u64 = 8 << 20;

/// After so many bytes it is noted how much a node has been sent.
const MARK_BYTES: u64 = 16 << 10;

/// The highest number that is believed: beyond it something must be wrong with a node, and the others'
/// numbers do not follow. A million messages a second take 142 years to get there.
const MAX_BELIEVED: u64 = MAX_NUMBER / 2;

/// How this node speaks to the others. What it cannot take, it refuses.
pub(crate) struct Outbound {
    me: NodeId,
    queue: Mutex<Queue>,
    filled: Notify,
    /// Whether more messages of clients wait than may.
    is_full: AtomicBool,
    /// How many marks have been given.
    marks: AtomicU64,
    /// Who is first in line of those who say much at once.
    line: AsyncMutex<Arc<Quota>>,
    /// The sessions that may be handed over now.
    handovers: Semaphore,
}

struct Queue {
    /// The number of the last message. Numbers are a logical clock (Lamport, 1978): what is said is
    /// numbered higher than everything that was said or heard before.
    number: u64,
    waiting: VecDeque<Outgoing>,
    /// How many bytes wait, with what is taken from here and not yet written.
    bytes: usize,
    /// How many of them are of each kind that can wait.
    by_kind: [usize; 4],
    /// Whether somebody may be hearing.
    open: bool,
    /// How often it was closed.
    time: u64,
    finished: bool,
    /// The nodes that are there.
    links: BTreeMap<NodeId, Link>,
    /// Who waits for room.
    waiters: Vec<Arc<Quota>>,
}

/// What has been said to a node of what can wait.
#[derive(Default)]
struct Link {
    /// How many bytes, and how many messages of clients.
    sent: Amount,
    /// How much of that it has taken in.
    taken: Amount,
    /// How much it had been sent with some of the messages, by their numbers.
    marks: VecDeque<(u64, Amount)>,
    /// The number of the last of them.
    last: u64,
    /// How many messages of clients and backends there have been for it alone.
    count: u64,
}

#[derive(Clone, Copy, Default)]
struct Amount {
    bytes: u64,
    messages: u64,
}

/// What is to be done at the connection, in this order.
pub(super) enum Outgoing {
    Message(To, Vec<u8>, Load),
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

/// What a message is to the queue.
#[derive(Clone)]
pub(crate) enum Load {
    /// What must be said now.
    Control,
    /// What a client or a backend says; a session waits for room behind it.
    Message(Option<Arc<Quota>>),
    /// What has waited in line: a session that joins or is handed over.
    Line,
    /// A piece of a list.
    List,
    /// What somebody is told who does not wait for it.
    Reply,
}

/// What can wait.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Kind {
    #[default]
    Message,
    Line,
    List,
    Reply,
}

/// What one session, or another who waits for room, has in the queue.
#[derive(Default)]
pub(crate) struct Quota {
    kind: Kind,
    bytes: AtomicUsize,
    /// A node that had not taken in what it was sent when this was last added to.
    slow: Mutex<Option<NodeId>>,
    is_slow: AtomicBool,
    /// Whether it is among those who wait.
    waits: AtomicBool,
    waker: AtomicWaker,
}

/// The number of what this node has last said of a room.
#[derive(Default)]
pub(crate) struct Sequence(AtomicU64);

/// It was not said: nobody hears, or too much waits already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Disconnected;

/// Says several things with nothing of others between.
pub(crate) struct Batch<'a> {
    outbound: &'a Outbound,
    queue: MutexGuard<'a, Queue>,
}

impl Sequence {
    /// The number of what was last said, 0 if nothing was.
    pub(crate) fn last(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

impl Quota {
    /// The share of those who wait in line.
    fn of_line() -> Quota {
        Quota {
            kind: Kind::Line,
            ..Quota::default()
        }
    }

    /// The share of all lists.
    pub(crate) fn of_lists() -> Quota {
        Quota {
            kind: Kind::List,
            ..Quota::default()
        }
    }

    /// Whether its session has to wait for room.
    fn is_over(&self) -> bool {
        self.bytes.load(Relaxed) > SHARE || self.is_slow.load(Relaxed)
    }

    fn set_slow(&self, node: Option<NodeId>) {
        *self.slow.lock() = node;
        self.is_slow.store(node.is_some(), Relaxed);
    }
}

impl Outbound {
    pub(super) fn new(me: NodeId) -> Outbound {
        Outbound {
            me,
            queue: Mutex::new(Queue {
                number: 0,
                waiting: VecDeque::new(),
                bytes: 0,
                by_kind: [0; 4],
                open: false,
                time: 0,
                finished: false,
                links: BTreeMap::new(),
                waiters: Vec::new(),
            }),
            filled: Notify::new(),
            is_full: AtomicBool::new(false),
            marks: AtomicU64::new(0),
            line: AsyncMutex::new(Arc::new(Quota::of_line())),
            handovers: Semaphore::new(HANDOVERS),
        }
    }

    /// This node.
    pub(crate) fn node(&self) -> NodeId {
        self.me
    }

    /// A number that this node gives only once, for others to send back.
    pub(crate) fn mark(&self) -> u64 {
        self.marks.fetch_add(1, Relaxed) + 1
    }

    /// The number of what was last said or heard.
    pub(crate) fn number(&self) -> u64 {
        self.queue.lock().number
    }

    pub(crate) fn batch(&self) -> Batch<'_> {
        Batch {
            outbound: self,
            queue: self.queue.lock(),
        }
    }

    /// What is said from now on is numbered higher than this.
    pub(super) fn observe(&self, number: u64) {
        if number <= MAX_BELIEVED {
            let mut queue = self.queue.lock();
            queue.number = queue.number.max(number);
        }
    }

    /// Takes what is said from now on.
    pub(super) fn open(&self) {
        self.queue.lock().open = true;
    }

    /// Forgets what has not been said yet, and takes no more.
    pub(super) fn close(&self) {
        let forgotten = self.queue.lock().close(&self.is_full);
        drop(forgotten);
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

    /// A node is there from now on.
    pub(super) fn up(&self, node: NodeId) {
        self.queue.lock().links.entry(node).or_default();
    }

    /// A node is not there any longer. Returns how many messages of clients it was sent and has not said
    /// to have taken in.
    pub(super) fn down(&self, node: NodeId) -> u64 {
        let mut queue = self.queue.lock();
        let link = queue.links.remove(&node).unwrap_or_default();
        queue.let_go_on();
        link.sent.messages - link.taken.messages
    }

    /// A node has taken in what it was sent up to this number.
    pub(super) fn taken(&self, node: NodeId, number: u64) {
        let mut queue = self.queue.lock();
        let Some(link) = queue.links.get_mut(&node) else {
            return;
        };
        if number >= link.last {
            link.taken = link.sent;
            link.marks.clear();
        }
        while let Some((_, sent)) = link.marks.pop_front_if(|(mark, _)| *mark <= number) {
            link.taken = sent;
        }
        if link.has_room() {
            queue.let_go_on();
        }
    }

    /// Whether a session has to wait before it says more: for its share, for a node, or for all others
    /// if it `reaches` other nodes at all.
    pub(crate) fn holds_up(&self, share: &Quota, reaches: impl FnOnce() -> bool) -> bool {
        share.is_over() || (self.is_full.load(Acquire) && reaches())
    }

    /// Waits until there is room for what can wait.
    pub(crate) async fn has_room(&self, share: &Arc<Quota>) {
        poll_fn(|cx| self.poll_room(cx, share)).await;
    }

    /// Waits in line for room. Nobody else in the line goes on before the guard is dropped.
    pub(crate) async fn in_line(&self) -> AsyncMutexGuard<'_, Arc<Quota>> {
        let line = self.line.lock().await;
        self.has_room(&line).await;
        line
    }

    /// Waits until a session may be handed over, which is done as long as the guard lives.
    pub(crate) async fn may_hand_over(&self) -> Option<SemaphorePermit<'_>> {
        // Nobody closes it.
        let permissions = self.handovers.acquire().await.ok();
        drop(self.in_line().await);
        permissions
    }

    /// Whether there is room now for a piece of a list for this node.
    pub(crate) fn has_room_for(&self, node: NodeId, share: &Quota) -> bool {
        let queue = self.queue.lock();
        let has_room = queue.links.get(&node).is_none_or(Link::has_room) || !queue.open;
        if !has_room {
            share.set_slow(Some(node));
        }
        has_room && queue.has_room_of(share.kind)
    }

    fn poll_room(&self, cx: &mut Context<'_>, share: &Arc<Quota>) -> Poll<()> {
        let mut queue = self.queue.lock();
        if queue.has_room(share) {
            share.set_slow(None);
            return Poll::Ready(());
        }
        share.waker.register(cx.waker());
        if !share.waits.swap(true, Relaxed) {
            queue.waiters.push(share.clone());
        }
        Poll::Pending
    }

    /// What waits, as soon as something does, and in which time it was said; `None` when all is said.
    pub(super) async fn next(&self) -> Option<(u64, VecDeque<Outgoing>)> {
        loop {
            let filled = self.filled.notified();
            {
                let mut queue = self.queue.lock();
                if !queue.waiting.is_empty() {
                    return Some((queue.time, mem::take(&mut queue.waiting)));
                }
                if queue.finished {
                    return None;
                }
            }
            filled.await;
        }
    }

    /// Whether what was said in this time is still to be said.
    pub(super) fn is_current(&self, time: u64) -> bool {
        self.queue.lock().time == time
    }

    /// What was said in this time, and cost so much to keep, is written or dropped.
    pub(super) fn done(&self, time: u64, cost: usize, load: &Load) {
        let mut queue = self.queue.lock();
        if queue.time == time {
            queue.bytes -= cost;
            if let Some(kind) = load.kind() {
                let had_room = queue.has_room_of(kind);
                queue.by_kind[kind as usize] -= cost;
                if !had_room && queue.has_room_of(kind) {
                    if let Kind::Message = kind {
                        self.is_full.store(false, Release);
                    }
                    queue.let_go_on();
                }
            }
        }
        // Who looks whether it has room holds the lock, too, and does not miss this.
        if let Load::Message(Some(share)) = load {
            let before = share.bytes.fetch_sub(cost, Relaxed);
            if before > SHARE / 2 && before - cost <= SHARE / 2 {
                share.waker.wake();
            }
        }
    }
}

impl Load {
    /// What kind it is of, if it can wait.
    fn kind(&self) -> Option<Kind> {
        match self {
            Load::Control => None,
            Load::Message(_) => Some(Kind::Message),
            Load::Line => Some(Kind::Line),
            Load::List => Some(Kind::List),
            Load::Reply => Some(Kind::Reply),
        }
    }
}

impl Kind {
    /// Who waits for room goes on when less than this is there.
    fn room(self) -> usize {
        match self {
            // All of them wait until half of it is free.
            Kind::Message => MESSAGES / 2,
            Kind::Line => LINE,
            Kind::List => LISTS,
            Kind::Reply => REPLIES,
        }
    }
}

impl Outgoing {
    /// What it takes to keep it, in bytes. Names of rooms are shared.
    pub(super) fn cost(&self) -> usize {
        let message = match self {
            Outgoing::Message(_, message, _) => message.len(),
            Outgoing::Subscribe(_) | Outgoing::Unsubscribe(_) => 0,
        };
        message + size_of::<Outgoing>()
    }

    fn kind(&self) -> Option<Kind> {
        match self {
            Outgoing::Message(_, _, load) => load.kind(),
            Outgoing::Subscribe(_) | Outgoing::Unsubscribe(_) => None,
        }
    }
}

impl Link {
    fn has_room(&self) -> bool {
        self.sent.bytes - self.taken.bytes <= WINDOW / 2
    }

    fn is_over(&self) -> bool {
        self.sent.bytes - self.taken.bytes > WINDOW
    }

    fn add(&mut self, number: u64, bytes: usize, is_message: bool) {
        let noted = self.marks.back().map_or(self.taken, |(_, sent)| *sent);
        self.sent.bytes += bytes as u64;
        self.sent.messages += u64::from(is_message);
        self.last = number;
        if self.sent.bytes - noted.bytes >= MARK_BYTES {
            self.marks.push_back((number, self.sent));
        }
    }
}

impl Queue {
    fn put(&mut self, item: Outgoing, is_full: &AtomicBool) -> Result<(), Disconnected> {
        if !self.open {
            return Err(Disconnected);
        }
        self.bytes += item.cost();
        if self.bytes > LIMIT {
            // In part it would be of no use.
            self.close(is_full);
            return Err(Disconnected);
        }
        if let Some(kind) = item.kind() {
            self.by_kind[kind as usize] += item.cost();
            if self.by_kind[Kind::Message as usize] > MESSAGES {
                is_full.store(true, Release);
            }
        }
        if let Outgoing::Message(_, _, Load::Message(Some(share))) = &item {
            share.bytes.fetch_add(item.cost(), Relaxed);
        }
        self.waiting.push_back(item);
        Ok(())
    }

    /// Returns what has not been said.
    fn close(&mut self, is_full: &AtomicBool) -> VecDeque<Outgoing> {
        self.open = false;
        self.time += 1;
        self.bytes = 0;
        self.by_kind = [0; 4];
        is_full.store(false, Release);
        let forgotten = mem::take(&mut self.waiting);
        for item in &forgotten {
            if let Outgoing::Message(_, _, Load::Message(Some(share))) = item {
                share.bytes.fetch_sub(item.cost(), Relaxed);
            }
        }
        self.let_go_on();
        forgotten
    }

    /// Whether who has this share need not wait.
    fn has_room(&self, share: &Quota) -> bool {
        let slow = share.slow.lock().and_then(|node| self.links.get(&node));
        let has_room = self.has_room_of(share.kind)
            && share.bytes.load(Relaxed) <= SHARE / 2
            && slow.is_none_or(Link::has_room);
        // Where nobody hears it there is nothing to wait for.
        has_room || !self.open
    }

    fn has_room_of(&self, kind: Kind) -> bool {
        self.by_kind[kind as usize] < kind.room()
    }

    /// Lets everyone look again who waits for room.
    fn let_go_on(&mut self) {
        for share in self.waiters.drain(..) {
            share.waits.store(false, Relaxed);
            share.waker.wake();
        }
    }
}

impl Batch<'_> {
    pub(super) fn tell_all(&mut self, what: Broadcast) -> Result<u64, Disconnected> {
        self.say(To::All, None, &Message::All(what), &[], Load::Control)
    }

    /// The number that the next message will have.
    pub(crate) fn next_number(&self) -> u64 {
        self.queue.number + 1
    }

    /// Tells a node why it does not get a session.
    pub(crate) fn answer(&mut self, node: NodeId, room: RoomName, seek: u64, answer: Answer) {
        let answer = Direct::Answer { room, seek, answer };
        self.notify(node, answer);
    }

    /// Asks every node for a session.
    pub(crate) fn want(&mut self, want: Want) -> Result<u64, Disconnected> {
        self.tell_all(Broadcast::Want(want))
    }

    /// Tells a node something for which it does not wait: it is lost where this one is cut off.
    pub(crate) fn notify(&mut self, node: NodeId, what: Direct) {
        let _ = self.tell_node(node, what, &[], Load::Control);
    }

    /// The same where others may have it said at any rate: what there is no room for is not said.
    pub(crate) fn reply(&mut self, node: NodeId, what: Direct) -> Result<u64, Disconnected> {
        match self.queue.has_room_of(Kind::Reply) {
            true => self.tell_node(node, what, &[], Load::Reply),
            false => Err(Disconnected),
        }
    }

    /// `text` is what a client or a backend wrote.
    pub(crate) fn tell_node(
        &mut self,
        node: NodeId,
        what: Direct,
        text: &[u8],
        load: Load,
    ) -> Result<u64, Disconnected> {
        let before = self.queue.bytes;
        let mut count = None;
        if let (Load::Message(_), Some(link)) = (&load, self.queue.links.get_mut(&node)) {
            link.count += 1;
            count = Some(link.count);
        }
        let say = Message::Node(what);
        let number = self.say(To::Node(node), count, &say, text, load.clone())?;
        if load.kind().is_some() {
            self.add_to(node, number, self.queue.bytes - before, &load);
        }
        Ok(number)
    }

    /// Says the next of what happens in a room; returns its number.
    ///
    /// # Errors
    ///
    /// [`Cut`], and who hears the next will miss this.
    pub(crate) fn tell_room(
        &mut self,
        room: &RoomName,
        chain: &Sequence,
        what: Event,
        text: &[u8],
        load: Load,
    ) -> Result<u64, Disconnected> {
        let say = Message::Room(RoomEvent {
            room: room.clone(),
            after: chain.last(),
            what,
        });
        let result = self.say(To::Room(room.clone()), None, &say, text, load);
        chain.0.store(self.queue.number, Relaxed);
        result
    }

    /// Says to all nodes in a room what a client or a backend wrote to all; these are the `nodes`.
    ///
    /// # Errors
    ///
    /// As of [`tell_room`](Turn::tell_room).
    pub(crate) fn broadcast(
        &mut self,
        room: &RoomName,
        chain: &Sequence,
        sender: Event,
        text: &[u8],
        share: Option<&Arc<Quota>>,
        nodes: impl Iterator<Item = NodeId>,
    ) -> Result<u64, Disconnected> {
        let before = self.queue.bytes;
        let load = Load::Message(share.cloned());
        let number = self.tell_room(room, chain, sender, text, load.clone())?;
        let bytes = self.queue.bytes - before;
        nodes.for_each(|node| self.add_to(node, number, bytes, &load));
        Ok(number)
    }

    fn add_to(&mut self, node: NodeId, number: u64, bytes: usize, load: &Load) {
        let Some(link) = self.queue.links.get_mut(&node) else {
            return;
        };
        link.add(number, bytes, matches!(load, Load::Message(_)));
        if link.is_over()
            && let Load::Message(Some(share)) = load
        {
            share.set_slow(Some(node));
        }
    }

    /// Begins to hear what others say of a room, and to speak of it.
    pub(crate) fn enter(&mut self, room: &RoomName, chain: &Sequence) {
        self.subscribe(room);
        // Where nobody hears it, all is told as soon as somebody does.
        let _ = self.tell_all(Broadcast::Enter { room: room.clone() });
        chain.0.store(self.queue.number, Relaxed);
    }

    /// Begins to hear what others say of a room.
    pub(crate) fn subscribe(&mut self, room: &RoomName) {
        // Where it is cut off, that is done when it is no longer.
        let _ = self.put(Outgoing::Subscribe(room.clone()));
    }

    /// Ends what `enter` began.
    pub(crate) fn exit(&mut self, room: &RoomName, chain: &Sequence) {
        let _ = self.tell_room(room, chain, Event::Exit, &[], Load::Control);
        let _ = self.put(Outgoing::Unsubscribe(room.clone()));
    }

    fn say(
        &mut self,
        to: To,
        count: Option<u64>,
        say: &Message,
        text: &[u8],
        load: Load,
    ) -> Result<u64, Disconnected> {
        self.queue.number += 1;
        if !self.queue.open {
            return Err(Disconnected);
        }
        let number = self.queue.number;
        let message = wire::encode(self.outbound.me, number, count, say, text);
        self.put(Outgoing::Message(to, message, load))?;
        Ok(number)
    }

    fn put(&mut self, item: Outgoing) -> Result<(), Disconnected> {
        self.queue.put(item, &self.outbound.is_full)
    }
}

impl Drop for Batch<'_> {
    fn drop(&mut self) {
        if !self.queue.waiting.is_empty() {
            self.outbound.filled.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        pin::pin,
        task::{Poll, Waker},
    };

    use super::*;
    use crate::{
        cluster::{node::Woken, wire::decode},
        protocol::SessionId,
    };

    fn outbound() -> Outbound {
        let outbound = Outbound::new(NodeId::random());
        outbound.open();
        outbound
    }

    /// The numbers of what waits, with what each follows.
    async fn said(outbound: &Outbound) -> Vec<(u64, Option<u64>)> {
        let (_, waiting) = outbound.next().await.unwrap();
        let messages = waiting.iter().filter_map(|item| match item {
            Outgoing::Message(_, message, _) => Some(decode(message).unwrap()),
            _ => None,
        });
        messages
            .map(|heard| match heard.message {
                Message::Room(said) => (heard.number, Some(said.after)),
                _ => (heard.number, None),
            })
            .collect()
    }

    /// What a session says to another of this node.
    fn say(
        outbound: &Outbound,
        node: NodeId,
        share: &Arc<Quota>,
        bytes: usize,
    ) -> Result<u64, Disconnected> {
        let unicast = Direct::Unicast {
            room: RoomName::default_room(),
            sender: None,
            receiver: SessionId::random(),
            reference: None,
        };
        let load = Load::Message(Some(share.clone()));
        let mut batch = outbound.batch();
        batch.tell_node(node, unicast, &vec![b'x'; bytes], load)
    }

    /// Writes all that waits; returns how much that was.
    async fn write(outbound: &Outbound) -> usize {
        let (time, waiting) = outbound.next().await.unwrap();
        let mut bytes = 0;
        for item in waiting {
            let cost = item.cost();
            bytes += cost;
            if let Outgoing::Message(_, _, load) = item {
                outbound.done(time, cost, &load);
            }
        }
        bytes
    }

    fn has_room(outbound: &Outbound, share: &Arc<Quota>) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        outbound.poll_room(&mut cx, share).is_ready()
    }

    #[tokio::test]
    async fn what_is_said_of_a_room_is_an_unbroken_row() {
        let outbound = outbound();
        let room = RoomName::default_room();
        let chain = Sequence::default();
        outbound.batch().enter(&room, &chain);
        outbound.observe(11);
        let exit = || {
            let mut batch = outbound.batch();
            batch.tell_room(&room, &chain, Event::Exit, b"", Load::Control)
        };
        exit().unwrap();
        outbound.batch().tell_all(Broadcast::Bye).unwrap();
        exit().unwrap();
        let expected = [(1, None), (12, Some(1)), (13, None), (14, Some(12))];
        assert_eq!(said(&outbound).await, expected);
    }

    #[tokio::test]
    async fn a_number_that_cannot_be_is_not_followed() {
        let outbound = outbound();
        outbound.observe(MAX_NUMBER);
        assert_eq!(outbound.batch().tell_all(Broadcast::Bye), Ok(1));
        outbound.observe(MAX_BELIEVED);
        assert_eq!(
            outbound.batch().tell_all(Broadcast::Bye),
            Ok(MAX_BELIEVED + 1)
        );
    }

    #[tokio::test]
    async fn what_nobody_hears_is_missed_in_the_row() {
        let outbound = outbound();
        let room = RoomName::default_room();
        let chain = Sequence::default();
        let tell = || {
            let mut batch = outbound.batch();
            batch.tell_room(&room, &chain, Event::Exit, b"", Load::Control)
        };
        assert_eq!(tell(), Ok(1));
        outbound.close();
        assert_eq!(tell(), Err(Disconnected));
        outbound.open();
        assert_eq!(tell(), Ok(3));
        assert_eq!(said(&outbound).await, [(3, Some(2))]);
    }

    #[tokio::test]
    async fn a_session_has_its_share_and_others_have_theirs() {
        let (outbound, node) = (outbound(), NodeId::random());
        let [first, second] = [(); 2].map(|()| Arc::<Quota>::default());
        while !outbound.holds_up(&first, || true) {
            say(&outbound, node, &first, 1000).unwrap();
        }
        assert!(!has_room(&outbound, &first));
        assert!(!outbound.holds_up(&second, || true) && has_room(&outbound, &second));
        let mut waits = pin!(outbound.has_room(&first));
        let mut cx = Context::from_waker(Waker::noop());
        assert!(waits.as_mut().poll(&mut cx).is_pending());
        let written = write(&outbound).await;
        assert!((SHARE..SHARE + 2000).contains(&written), "{written}");
        assert!(waits.as_mut().poll(&mut cx).is_ready());
        assert!(!outbound.holds_up(&first, || true));
    }

    #[tokio::test]
    async fn all_sessions_together_leave_room_for_what_nodes_say() {
        let (outbound, node) = (outbound(), NodeId::random());
        let crowd: Vec<Arc<Quota>> = (0..100).map(|_| Arc::default()).collect();
        for share in crowd.iter().cycle().take(100_000) {
            if !outbound.holds_up(share, || true) {
                say(&outbound, node, share, 1000).unwrap();
            }
        }
        let late = Arc::default();
        assert!(outbound.holds_up(&late, || true) && !has_room(&outbound, &late));
        assert!(
            !outbound.holds_up(&late, || false),
            "it says nothing to other nodes"
        );
        assert!(outbound.batch().tell_all(Broadcast::Bye).is_ok());
        let written = write(&outbound).await;
        assert!((MESSAGES..MESSAGES + 4000).contains(&written), "{written}");
        assert!(has_room(&outbound, &late) && !outbound.holds_up(&late, || true));
    }

    #[tokio::test]
    async fn no_kind_of_what_can_wait_keeps_another_out() {
        let (outbound, node) = (outbound(), NodeId::random());
        let shares = [Quota::default(), Quota::of_line(), Quota::of_lists()].map(Arc::new);
        let loads = [Load::Message(None), Load::Line, Load::List];
        for (kind, load) in loads.iter().enumerate() {
            let fill = async || {
                while has_room(&outbound, &shares[kind]) {
                    let ask = Direct::Ask(vec![RoomName::default_room(); 100]);
                    let mut batch = outbound.batch();
                    batch.tell_node(node, ask, &[], load.clone()).unwrap();
                }
            };
            fill().await;
            for (other, share) in shares.iter().enumerate() {
                assert_eq!(has_room(&outbound, share), other != kind);
            }
            // Who waits, be it only for a little, is woken as soon as there is room.
            let woken = Arc::new(Woken::default());
            let waker = Waker::from(woken.clone());
            let mut waits = pin!(outbound.has_room(&shares[kind]));
            let mut cx = Context::from_waker(&waker);
            assert!(waits.as_mut().poll(&mut cx).is_pending());
            write(&outbound).await;
            assert!(woken.since.load(Relaxed), "{kind}");
            assert!(waits.as_mut().poll(&mut cx).is_ready());
        }
        let undelivered = || Direct::Taken { number: 1 };
        while outbound.batch().reply(node, undelivered()).is_ok() {}
        assert!(shares.iter().all(|share| has_room(&outbound, share)));
        assert!(outbound.is_open() && outbound.batch().tell_all(Broadcast::Bye).is_ok());
    }

    #[tokio::test]
    async fn who_writes_to_a_slow_node_waits_for_it_and_nobody_else() {
        let (outbound, slow, fast) = (outbound(), NodeId::random(), NodeId::random());
        let [to_slow, to_fast] = [(); 2].map(|()| Arc::<Quota>::default());
        outbound.up(slow);
        outbound.up(fast);
        let mut numbers = Vec::new();
        while !outbound.holds_up(&to_slow, || true) {
            numbers.push(say(&outbound, slow, &to_slow, 10_000).unwrap());
            say(&outbound, fast, &to_fast, 10_000).unwrap();
            outbound.taken(fast, *numbers.last().unwrap());
            write(&outbound).await;
        }
        assert!(numbers.len() as u64 * 10_000 > WINDOW - 1_000_000);
        assert!(!has_room(&outbound, &to_slow) && has_room(&outbound, &to_fast));
        assert!(!outbound.has_room_for(slow, &Quota::default()));
        outbound.taken(slow, numbers[numbers.len() / 3]);
        assert!(!has_room(&outbound, &to_slow));
        outbound.taken(slow, numbers[2 * numbers.len() / 3]);
        assert!(has_room(&outbound, &to_slow));
        // What it has not taken in when it goes is lost.
        let last = *numbers.last().unwrap();
        let lost = numbers
            .iter()
            .filter(|it| **it > numbers[2 * numbers.len() / 3]);
        let lost = lost.count() as u64;
        assert!((lost..=lost + 2).contains(&outbound.down(slow)));
        outbound.taken(fast, last + 1);
        assert_eq!(outbound.down(fast), 0);
    }

    #[tokio::test]
    async fn who_waits_goes_on_where_nobody_hears() {
        let (outbound, node) = (outbound(), NodeId::random());
        let share = Arc::default();
        while !outbound.holds_up(&share, || true) {
            say(&outbound, node, &share, 1000).unwrap();
        }
        let mut waits = pin!(outbound.has_room(&share));
        let mut cx = Context::from_waker(Waker::noop());
        assert_eq!(waits.as_mut().poll(&mut cx), Poll::Pending);
        outbound.close();
        assert!(waits.as_mut().poll(&mut cx).is_ready());
        assert_eq!(say(&outbound, node, &share, 1), Err(Disconnected));
        assert!(!outbound.holds_up(&share, || true));
    }

    #[tokio::test]
    async fn too_much_is_nothing() {
        let outbound = outbound();
        let name = "x".repeat(128);
        let rooms = vec![RoomName::from_segment(&name).unwrap(); 512];
        while outbound.is_open() {
            outbound
                .batch()
                .notify(NodeId::random(), Direct::Ask(rooms.clone()));
        }
        assert!(outbound.batch().tell_all(Broadcast::Bye).is_err());
        outbound.finish();
        assert!(outbound.next().await.is_none());
    }
}
