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

use super::wire::{self, Answer, Event, MAX_NUMBER, NodeId, Say, ToAll, ToNode, ToRoom, Want};
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
pub(crate) struct Uplink {
    me: NodeId,
    queue: Mutex<Queue>,
    filled: Notify,
    /// Whether more messages of clients wait than may.
    is_full: AtomicBool,
    /// How many marks have been given.
    marks: AtomicU64,
    /// Who is first in line of those who say much at once.
    line: AsyncMutex<Arc<Share>>,
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
    held_up: Vec<Arc<Share>>,
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
    Say(To, Vec<u8>, Load),
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
    Message(Option<Arc<Share>>),
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
pub(crate) struct Share {
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
pub(crate) struct Chain(AtomicU64);

/// It was not said: nobody hears, or too much waits already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cut;

/// Says several things with nothing of others between.
pub(crate) struct Turn<'a> {
    uplink: &'a Uplink,
    queue: MutexGuard<'a, Queue>,
}

impl Chain {
    /// The number of what was last said, 0 if nothing was.
    pub(crate) fn last(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

impl Share {
    /// The share of those who wait in line.
    fn of_line() -> Share {
        Share {
            kind: Kind::Line,
            ..Share::default()
        }
    }

    /// The share of all lists.
    pub(crate) fn of_lists() -> Share {
        Share {
            kind: Kind::List,
            ..Share::default()
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

impl Uplink {
    pub(super) fn new(me: NodeId) -> Uplink {
        Uplink {
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
                held_up: Vec::new(),
            }),
            filled: Notify::new(),
            is_full: AtomicBool::new(false),
            marks: AtomicU64::new(0),
            line: AsyncMutex::new(Arc::new(Share::of_line())),
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

    pub(crate) fn turn(&self) -> Turn<'_> {
        Turn {
            uplink: self,
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
    pub(crate) fn holds_up(&self, share: &Share, reaches: impl FnOnce() -> bool) -> bool {
        share.is_over() || (self.is_full.load(Acquire) && reaches())
    }

    /// Waits until there is room for what can wait.
    pub(crate) async fn has_room(&self, share: &Arc<Share>) {
        poll_fn(|cx| self.poll_room(cx, share)).await;
    }

    /// Waits in line for room. Nobody else in the line goes on before the guard is dropped.
    pub(crate) async fn in_line(&self) -> AsyncMutexGuard<'_, Arc<Share>> {
        let line = self.line.lock().await;
        self.has_room(&line).await;
        line
    }

    /// Waits until a session may be handed over, which is done as long as the guard lives.
    pub(crate) async fn may_hand_over(&self) -> Option<SemaphorePermit<'_>> {
        // Nobody closes it.
        let permit = self.handovers.acquire().await.ok();
        drop(self.in_line().await);
        permit
    }

    /// Whether there is room now for a piece of a list for this node.
    pub(crate) fn has_room_for(&self, node: NodeId, share: &Share) -> bool {
        let queue = self.queue.lock();
        let has_room = queue.links.get(&node).is_none_or(Link::has_room) || !queue.open;
        if !has_room {
            share.set_slow(Some(node));
        }
        has_room && queue.has_room_of(share.kind)
    }

    fn poll_room(&self, cx: &mut Context<'_>, share: &Arc<Share>) -> Poll<()> {
        let mut queue = self.queue.lock();
        if queue.has_room(share) {
            share.set_slow(None);
            return Poll::Ready(());
        }
        share.waker.register(cx.waker());
        if !share.waits.swap(true, Relaxed) {
            queue.held_up.push(share.clone());
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
    pub(super) fn is_time(&self, time: u64) -> bool {
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
            Outgoing::Say(_, message, _) => message.len(),
            Outgoing::Subscribe(_) | Outgoing::Unsubscribe(_) => 0,
        };
        message + size_of::<Outgoing>()
    }

    fn kind(&self) -> Option<Kind> {
        match self {
            Outgoing::Say(_, _, load) => load.kind(),
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
    fn put(&mut self, item: Outgoing, is_full: &AtomicBool) -> Result<(), Cut> {
        if !self.open {
            return Err(Cut);
        }
        self.bytes += item.cost();
        if self.bytes > LIMIT {
            // In part it would be of no use.
            self.close(is_full);
            return Err(Cut);
        }
        if let Some(kind) = item.kind() {
            self.by_kind[kind as usize] += item.cost();
            if self.by_kind[Kind::Message as usize] > MESSAGES {
                is_full.store(true, Release);
            }
        }
        if let Outgoing::Say(_, _, Load::Message(Some(share))) = &item {
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
            if let Outgoing::Say(_, _, Load::Message(Some(share))) = item {
                share.bytes.fetch_sub(item.cost(), Relaxed);
            }
        }
        self.let_go_on();
        forgotten
    }

    /// Whether who has this share need not wait.
    fn has_room(&self, share: &Share) -> bool {
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
        for share in self.held_up.drain(..) {
            share.waits.store(false, Relaxed);
            share.waker.wake();
        }
    }
}

impl Turn<'_> {
    pub(super) fn tell_all(&mut self, what: ToAll) -> Result<u64, Cut> {
        self.say(To::All, None, &Say::All(what), &[], Load::Control)
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
        let _ = self.tell_node(node, what, &[], Load::Control);
    }

    /// The same where others may have it said at any rate: what there is no room for is not said.
    pub(crate) fn reply(&mut self, node: NodeId, what: ToNode) -> Result<u64, Cut> {
        match self.queue.has_room_of(Kind::Reply) {
            true => self.tell_node(node, what, &[], Load::Reply),
            false => Err(Cut),
        }
    }

    /// `text` is what a client or a backend wrote.
    pub(crate) fn tell_node(
        &mut self,
        node: NodeId,
        what: ToNode,
        text: &[u8],
        load: Load,
    ) -> Result<u64, Cut> {
        let before = self.queue.bytes;
        let mut count = None;
        if let (Load::Message(_), Some(link)) = (&load, self.queue.links.get_mut(&node)) {
            link.count += 1;
            count = Some(link.count);
        }
        let say = Say::Node(what);
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
        chain: &Chain,
        what: Event,
        text: &[u8],
        load: Load,
    ) -> Result<u64, Cut> {
        let say = Say::Room(ToRoom {
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
        chain: &Chain,
        sender: Event,
        text: &[u8],
        share: Option<&Arc<Share>>,
        nodes: impl Iterator<Item = NodeId>,
    ) -> Result<u64, Cut> {
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
    pub(crate) fn enter(&mut self, room: &RoomName, chain: &Chain) {
        self.subscribe(room);
        // Where nobody hears it, all is told as soon as somebody does.
        let _ = self.tell_all(ToAll::Enter { room: room.clone() });
        chain.0.store(self.queue.number, Relaxed);
    }

    /// Begins to hear what others say of a room.
    pub(crate) fn subscribe(&mut self, room: &RoomName) {
        // Where it is cut off, that is done when it is no longer.
        let _ = self.put(Outgoing::Subscribe(room.clone()));
    }

    /// Ends what `enter` began.
    pub(crate) fn exit(&mut self, room: &RoomName, chain: &Chain) {
        let _ = self.tell_room(room, chain, Event::Exit, &[], Load::Control);
        let _ = self.put(Outgoing::Unsubscribe(room.clone()));
    }

    fn say(
        &mut self,
        to: To,
        count: Option<u64>,
        say: &Say,
        text: &[u8],
        load: Load,
    ) -> Result<u64, Cut> {
        self.queue.number += 1;
        if !self.queue.open {
            return Err(Cut);
        }
        let number = self.queue.number;
        let message = wire::encode(self.uplink.me, number, count, say, text);
        self.put(Outgoing::Say(to, message, load))?;
        Ok(number)
    }

    fn put(&mut self, item: Outgoing) -> Result<(), Cut> {
        self.queue.put(item, &self.uplink.is_full)
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
    use std::{
        pin::pin,
        task::{Poll, Waker},
    };

    use super::*;
    use crate::{
        cluster::{Woken, wire::decode},
        protocol::SessionId,
    };

    fn uplink() -> Uplink {
        let uplink = Uplink::new(NodeId::random());
        uplink.open();
        uplink
    }

    /// The numbers of what waits, with what each follows.
    async fn said(uplink: &Uplink) -> Vec<(u64, Option<u64>)> {
        let (_, waiting) = uplink.next().await.unwrap();
        let messages = waiting.iter().filter_map(|item| match item {
            Outgoing::Say(_, message, _) => Some(decode(message).unwrap()),
            _ => None,
        });
        messages
            .map(|heard| match heard.say {
                Say::Room(said) => (heard.number, Some(said.after)),
                _ => (heard.number, None),
            })
            .collect()
    }

    /// What a session says to another of this node.
    fn say(uplink: &Uplink, node: NodeId, share: &Arc<Share>, bytes: usize) -> Result<u64, Cut> {
        let unicast = ToNode::Unicast {
            room: RoomName::default_room(),
            sender: None,
            receiver: SessionId::random(),
            reference: None,
        };
        let load = Load::Message(Some(share.clone()));
        let mut turn = uplink.turn();
        turn.tell_node(node, unicast, &vec![b'x'; bytes], load)
    }

    /// Writes all that waits; returns how much that was.
    async fn write(uplink: &Uplink) -> usize {
        let (time, waiting) = uplink.next().await.unwrap();
        let mut bytes = 0;
        for item in waiting {
            let cost = item.cost();
            bytes += cost;
            if let Outgoing::Say(_, _, load) = item {
                uplink.done(time, cost, &load);
            }
        }
        bytes
    }

    fn has_room(uplink: &Uplink, share: &Arc<Share>) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        uplink.poll_room(&mut cx, share).is_ready()
    }

    #[tokio::test]
    async fn what_is_said_of_a_room_is_an_unbroken_row() {
        let uplink = uplink();
        let room = RoomName::default_room();
        let chain = Chain::default();
        uplink.turn().enter(&room, &chain);
        uplink.observe(11);
        let exit = || {
            let mut turn = uplink.turn();
            turn.tell_room(&room, &chain, Event::Exit, b"", Load::Control)
        };
        exit().unwrap();
        uplink.turn().tell_all(ToAll::Bye).unwrap();
        exit().unwrap();
        let expected = [(1, None), (12, Some(1)), (13, None), (14, Some(12))];
        assert_eq!(said(&uplink).await, expected);
    }

    #[tokio::test]
    async fn a_number_that_cannot_be_is_not_followed() {
        let uplink = uplink();
        uplink.observe(MAX_NUMBER);
        assert_eq!(uplink.turn().tell_all(ToAll::Bye), Ok(1));
        uplink.observe(MAX_BELIEVED);
        assert_eq!(uplink.turn().tell_all(ToAll::Bye), Ok(MAX_BELIEVED + 1));
    }

    #[tokio::test]
    async fn what_nobody_hears_is_missed_in_the_row() {
        let uplink = uplink();
        let room = RoomName::default_room();
        let chain = Chain::default();
        let tell = || {
            let mut turn = uplink.turn();
            turn.tell_room(&room, &chain, Event::Exit, b"", Load::Control)
        };
        assert_eq!(tell(), Ok(1));
        uplink.close();
        assert_eq!(tell(), Err(Cut));
        uplink.open();
        assert_eq!(tell(), Ok(3));
        assert_eq!(said(&uplink).await, [(3, Some(2))]);
    }

    #[tokio::test]
    async fn a_session_has_its_share_and_others_have_theirs() {
        let (uplink, node) = (uplink(), NodeId::random());
        let [first, second] = [(); 2].map(|()| Arc::<Share>::default());
        while !uplink.holds_up(&first, || true) {
            say(&uplink, node, &first, 1000).unwrap();
        }
        assert!(!has_room(&uplink, &first));
        assert!(!uplink.holds_up(&second, || true) && has_room(&uplink, &second));
        let mut waits = pin!(uplink.has_room(&first));
        let mut cx = Context::from_waker(Waker::noop());
        assert!(waits.as_mut().poll(&mut cx).is_pending());
        let written = write(&uplink).await;
        assert!((SHARE..SHARE + 2000).contains(&written), "{written}");
        assert!(waits.as_mut().poll(&mut cx).is_ready());
        assert!(!uplink.holds_up(&first, || true));
    }

    #[tokio::test]
    async fn all_sessions_together_leave_room_for_what_nodes_say() {
        let (uplink, node) = (uplink(), NodeId::random());
        let crowd: Vec<Arc<Share>> = (0..100).map(|_| Arc::default()).collect();
        for share in crowd.iter().cycle().take(100_000) {
            if !uplink.holds_up(share, || true) {
                say(&uplink, node, share, 1000).unwrap();
            }
        }
        let late = Arc::default();
        assert!(uplink.holds_up(&late, || true) && !has_room(&uplink, &late));
        assert!(
            !uplink.holds_up(&late, || false),
            "it says nothing to other nodes"
        );
        assert!(uplink.turn().tell_all(ToAll::Bye).is_ok());
        let written = write(&uplink).await;
        assert!((MESSAGES..MESSAGES + 4000).contains(&written), "{written}");
        assert!(has_room(&uplink, &late) && !uplink.holds_up(&late, || true));
    }

    #[tokio::test]
    async fn no_kind_of_what_can_wait_keeps_another_out() {
        let (uplink, node) = (uplink(), NodeId::random());
        let shares = [Share::default(), Share::of_line(), Share::of_lists()].map(Arc::new);
        let loads = [Load::Message(None), Load::Line, Load::List];
        for (kind, load) in loads.iter().enumerate() {
            let fill = async || {
                while has_room(&uplink, &shares[kind]) {
                    let ask = ToNode::Ask(vec![RoomName::default_room(); 100]);
                    let mut turn = uplink.turn();
                    turn.tell_node(node, ask, &[], load.clone()).unwrap();
                }
            };
            fill().await;
            for (other, share) in shares.iter().enumerate() {
                assert_eq!(has_room(&uplink, share), other != kind);
            }
            // Who waits, be it only for a little, is woken as soon as there is room.
            let woken = Arc::new(Woken::default());
            let waker = Waker::from(woken.clone());
            let mut waits = pin!(uplink.has_room(&shares[kind]));
            let mut cx = Context::from_waker(&waker);
            assert!(waits.as_mut().poll(&mut cx).is_pending());
            write(&uplink).await;
            assert!(woken.since.load(Relaxed), "{kind}");
            assert!(waits.as_mut().poll(&mut cx).is_ready());
        }
        let undelivered = || ToNode::Taken { number: 1 };
        while uplink.turn().reply(node, undelivered()).is_ok() {}
        assert!(shares.iter().all(|share| has_room(&uplink, share)));
        assert!(uplink.is_open() && uplink.turn().tell_all(ToAll::Bye).is_ok());
    }

    #[tokio::test]
    async fn who_writes_to_a_slow_node_waits_for_it_and_nobody_else() {
        let (uplink, slow, fast) = (uplink(), NodeId::random(), NodeId::random());
        let [to_slow, to_fast] = [(); 2].map(|()| Arc::<Share>::default());
        uplink.up(slow);
        uplink.up(fast);
        let mut numbers = Vec::new();
        while !uplink.holds_up(&to_slow, || true) {
            numbers.push(say(&uplink, slow, &to_slow, 10_000).unwrap());
            say(&uplink, fast, &to_fast, 10_000).unwrap();
            uplink.taken(fast, *numbers.last().unwrap());
            write(&uplink).await;
        }
        assert!(numbers.len() as u64 * 10_000 > WINDOW - 1_000_000);
        assert!(!has_room(&uplink, &to_slow) && has_room(&uplink, &to_fast));
        assert!(!uplink.has_room_for(slow, &Share::default()));
        uplink.taken(slow, numbers[numbers.len() / 3]);
        assert!(!has_room(&uplink, &to_slow));
        uplink.taken(slow, numbers[2 * numbers.len() / 3]);
        assert!(has_room(&uplink, &to_slow));
        // What it has not taken in when it goes is lost.
        let last = *numbers.last().unwrap();
        let lost = numbers
            .iter()
            .filter(|it| **it > numbers[2 * numbers.len() / 3]);
        let lost = lost.count() as u64;
        assert!((lost..=lost + 2).contains(&uplink.down(slow)));
        uplink.taken(fast, last + 1);
        assert_eq!(uplink.down(fast), 0);
    }

    #[tokio::test]
    async fn who_waits_goes_on_where_nobody_hears() {
        let (uplink, node) = (uplink(), NodeId::random());
        let share = Arc::default();
        while !uplink.holds_up(&share, || true) {
            say(&uplink, node, &share, 1000).unwrap();
        }
        let mut waits = pin!(uplink.has_room(&share));
        let mut cx = Context::from_waker(Waker::noop());
        assert_eq!(waits.as_mut().poll(&mut cx), Poll::Pending);
        uplink.close();
        assert!(waits.as_mut().poll(&mut cx).is_ready());
        assert_eq!(say(&uplink, node, &share, 1), Err(Cut));
        assert!(!uplink.holds_up(&share, || true));
    }

    #[tokio::test]
    async fn too_much_is_nothing() {
        let uplink = uplink();
        let name = "x".repeat(128);
        let rooms = vec![RoomName::from_segment(&name).unwrap(); 512];
        while uplink.is_open() {
            uplink
                .turn()
                .notify(NodeId::random(), ToNode::Ask(rooms.clone()));
        }
        assert!(uplink.turn().tell_all(ToAll::Bye).is_err());
        uplink.finish();
        assert!(uplink.next().await.is_none());
    }
}
