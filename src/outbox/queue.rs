//! The bounded queue in front of one socket, and the `Sender` that fills it.
//!
//! A frame is put into the queue first and written later, so that what many say to one session leaves
//! in one write. Whoever fills an idle queue sees to that: at the end of its turn it flushes what it has
//! filled, in place of the sessions, which go on sleeping. Where that is much, each batch of it has a
//! task of its own.
//!
//! An outbox that keeps what it sends may do without a socket for a while: it is detached from one,
//! and attached to the next.

use std::{
    collections::VecDeque,
    iter, mem,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Waker, ready},
};

use arrayvec::ArrayVec;
use parking_lot::Mutex;
use tokio_util::task::TaskTracker;

use super::replay_buffer::ReplayBuffer;
use crate::{
    access::{Admitted, ConnectRequest},
    cluster::NodeId,
    protocol::{Close, CloseCode, ResumeToken, RoomName, TokenHash},
    state::ResumeRegistration,
    websocket::{Frame, Reader, Writer},
};

/// How many outboxes are flushed in one turn. A large room takes many turns, and its sender's next is
/// behind them: it shall not fill outboxes faster than they are emptied.
const FLUSHED_AT_ONCE: usize = 16;

/// How often one socket is written to in one turn, which is up to 256 KB of small frames. What is left
/// is the session's to write, behind the next turns of those who send to it: so this is more than many
/// of them send in one. Nothing else bounds a turn.
const WRITES_AT_ONCE: usize = 8;

/// An empty queue that takes up to `limit` bytes, and `writer` behind it: its two ends.
pub(crate) fn outbox(limit: usize, writer: Writer) -> (Sender, Outbox) {
    let channel = channel(limit, State::Open, 0, Some(writer));
    (Sender(channel.clone()), Outbox(channel))
}

/// The same for a session that comes from another node without a connection. Its client has got so
/// many messages, and not those that it has `missed`; `ticket` is how it is resumed.
pub(crate) fn outbox_of_missed(
    limit: usize,
    received: u64,
    missed: Vec<Frame>,
    ticket: impl FnOnce(Sender) -> ResumeRegistration,
) -> (Sender, Outbox) {
    let mut kept = ReplayBuffer::new(limit, received);
    let messages = received + missed.len() as u64;
    for frame in missed {
        // There is nobody to ping.
        let _ = kept.push(frame);
    }
    let channel = channel(limit, State::Detached, messages, None);
    let sender = Sender(channel.clone());
    let resumable = Resumable {
        ticket: ticket(sender.clone()),
        kept,
        takeover: None,
    };
    channel.queue.lock().resumable = Some(Box::new(resumable));
    (sender, Outbox(channel))
}

fn channel(limit: usize, state: State, messages: u64, writer: Option<Writer>) -> Arc<Channel> {
    Arc::new(Channel {
        limit,
        settled: AtomicBool::new(false),
        queue: Mutex::new(Queue {
            frames: VecDeque::new(),
            cost: 0,
            idle: writer.is_some(),
            state,
            messages,
            resumable: None,
        }),
        writer: Mutex::new(writer),
        session: OnceLock::new(),
    })
}

/// The end that everyone puts frames into.
#[derive(Clone)]
pub(crate) struct Sender(Arc<Channel>);

/// The end of the session itself. Dropping it closes the queue.
pub(crate) struct Outbox(Arc<Channel>);

/// Queues that were idle and have frames now, to be flushed by who filled them. When this is dropped,
/// they are up to their sessions, which are woken for it: so the coming and going of a crowd is written
/// in fewer pieces.
#[derive(Default)]
pub(crate) struct FlushSet {
    first: Batch,
    /// Empty while there is room among the first.
    others: Vec<Sender>,
}

/// What is flushed in one turn.
type Batch = ArrayVec<Sender, FLUSHED_AT_ONCE>;

/// A connection that has come to go on with a session.
pub(crate) struct Reconnection {
    pub(crate) reader: Reader,
    pub(crate) writer: Writer,
    /// How many of the session's messages its client has got.
    pub(crate) received: u64,
    /// Who has come.
    pub(crate) client: ConnectRequest,
    pub(crate) room: RoomName,
    /// What it needs to begin another session. `None` where that must be found then.
    pub(crate) admitted: Option<Admitted>,
}

/// With what a session is to go on.
pub(crate) enum Takeover {
    /// Another connection.
    Local(Box<Reconnection>),
    /// Another node, to which the client has come.
    Remote(MigrationRequest),
}

/// A node that wants a session.
pub(crate) struct MigrationRequest {
    pub(crate) node: NodeId,
    pub(crate) room: RoomName,
    /// That node's mark for it.
    pub(crate) seek: u64,
    pub(crate) token: TokenHash,
    /// How many of the session's messages its client has got.
    pub(crate) received: u64,
    /// Up to where that node has heard each node.
    pub(crate) seen: Vec<(NodeId, u64)>,
}

impl MigrationRequest {
    /// Whether it is the search of this node that has this mark.
    pub(crate) fn is_of(&self, node: NodeId, seek: u64) -> bool {
        (self.node, self.seek) == (node, seek)
    }
}

impl Takeover {
    fn received(&self) -> u64 {
        match self {
            Takeover::Local(reconnection) => reconnection.received,
            Takeover::Remote(takeover) => takeover.received,
        }
    }
}

/// What a session goes on with.
pub(crate) struct Attached {
    pub(crate) reader: Reader,
    pub(crate) client: ConnectRequest,
    /// What it does not need any longer, to be dropped where no lock is held.
    pub(crate) admitted: Option<Admitted>,
}

/// Why a frame was not taken.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum PushError {
    /// The frame did not fit: the session is too slow, and is closed for it.
    Full,
    /// The session is already closing.
    Closed,
}

/// Why nothing more is written.
#[derive(Debug)]
pub(crate) enum FlushError {
    /// The connection is gone.
    Lost,
    /// The session is called away from its connection.
    Called(Command),
}

/// What an outbox has taken so far, and still holds.
pub(crate) struct OutboxStats {
    /// How many messages there have been so far.
    pub(crate) messages: u64,
    /// What it costs to keep what waits to be sent, or what is kept for who is away.
    pub(crate) bytes: usize,
    /// Whether there is no connection to send it on.
    pub(crate) is_suspended: bool,
}

/// What is left of an outbox.
pub(crate) struct Remainder {
    /// `None` where the session was without a connection.
    pub(crate) writer: Option<Writer>,
    /// What was not written.
    pub(crate) frames: VecDeque<Frame>,
    /// Who has come too late to go on with the session.
    pub(crate) takeover: Option<Takeover>,
}

/// What a session is to do in place of going on.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Command {
    /// To end, and say this.
    Close(Close),
    /// To say this and give its connection up, but not itself.
    Detach(Close),
}

struct Channel {
    limit: usize,
    /// Whether the session has nothing to do here, and need not look at the rest. Changed under the
    /// queue's lock: set when nothing waits any more and the session can be woken, cleared with
    /// everything that is put here.
    settled: AtomicBool,
    queue: Mutex<Queue>,
    /// `None` while the session is without a connection, and once it has ended. Locked before the
    /// queue, where both are.
    writer: Mutex<Option<Writer>>,
    /// Wakes the session's task, once that has been polled.
    session: OnceLock<Waker>,
}

struct Queue {
    frames: VecDeque<Frame>,
    /// What it costs to keep what waits, with what is taken from here and not yet written.
    cost: usize,
    state: State,
    /// Whether nothing waits. Otherwise someone is about to write it: who filled the queue, a task for
    /// it, or the session, which has been woken for it, waits until its socket takes more, or is
    /// without one.
    idle: bool,
    /// How many messages there have been so far.
    messages: u64,
    /// There if the session may be resumed.
    resumable: Option<Box<Resumable>>,
}

/// What goes with it takes locks of its own when it is dropped: that must not be under the queue's.
struct Resumable {
    ticket: ResumeRegistration,
    /// What may have to be sent again.
    kept: ReplayBuffer,
    /// With what the session shall go on.
    takeover: Option<Takeover>,
}

enum State {
    Open,
    /// The session shall give its connection up, and say this.
    Detaching(Box<Close>),
    /// It has done so. What is sent to it is only kept.
    Detached,
    /// The session shall end, and say this.
    Closing(Box<Close>),
    /// The session has ended.
    Closed,
}

impl Channel {
    /// Puts a frame at the end of the queue; returns whether the queue was idle, and must be
    /// flushed.
    fn push(&self, queue: &mut Queue, frame: Frame) -> Result<bool, PushError> {
        if let State::Closing(_) | State::Closed = queue.state {
            return Err(PushError::Closed);
        }
        let mut early_ping = None;
        if frame.is_message() {
            queue.messages += 1;
            if let Some(resumable) = &mut queue.resumable {
                early_ping = resumable.kept.push(frame.clone());
            }
        }
        if let State::Detaching(_) | State::Detached = queue.state {
            // There is nothing to write to, nor to ping.
            return Ok(false);
        }
        if queue.cost > 0 && queue.cost + frame.cost() > self.limit {
            queue.frames = VecDeque::new();
            let reason = format!("too slow: over {} bytes waited to be sent", self.limit);
            let close = Close::new(CloseCode::TryAgainLater, reason);
            return match self.give_up(queue, close) {
                // It has been kept.
                State::Detaching(_) => Ok(false),
                _ => Err(PushError::Full),
            };
        }
        queue.put(frame);
        if let Some(ping) = early_ping {
            queue.put(ping);
        }
        self.unsettle();
        Ok(mem::take(&mut queue.idle))
    }

    /// Ends the session, unless it is already ending.
    fn close(&self, queue: &mut Queue, close: Close) {
        if let State::Closing(_) | State::Closed = queue.state {
            return;
        }
        queue.state = State::Closing(Box::new(close));
        self.call();
    }

    /// Has the session give its connection up, and end if it may not be resumed; returns what it is
    /// to do now.
    fn give_up<'q>(&self, queue: &'q mut Queue, close: Close) -> &'q State {
        if queue.resumable.is_none() {
            self.close(queue, close);
        } else if let State::Open = queue.state {
            queue.state = State::Detaching(Box::new(close));
            self.call();
        }
        &queue.state
    }

    /// Has the session look for what it is to do.
    fn call(&self) {
        self.unsettle();
        self.wake();
    }

    fn unsettle(&self) {
        self.settled.store(false, Ordering::Release);
    }

    /// Writes until nothing waits, [`WRITES_AT_ONCE`] at most; then the session, whose task is woken
    /// by `cx`, goes on with it.
    fn poll_flush(
        &self,
        cx: &mut Context<'_>,
        writer: &mut Writer,
    ) -> Poll<Result<(), FlushError>> {
        let mut written = 0;
        for left in (0..=WRITES_AT_ONCE).rev() {
            {
                let mut queue = self.queue.lock();
                if let Some(call) = queue.called() {
                    return Poll::Ready(Err(FlushError::Called(call)));
                }
                queue.cost -= mem::take(&mut written);
                queue.idle = !writer.refill(&mut queue.frames);
                if queue.idle {
                    let settled = !writer.keeps_back() && self.session.get().is_some();
                    self.settled.store(settled, Ordering::Release);
                    break;
                }
            }
            if left == 0 {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            written = match ready!(writer.poll_write(cx)) {
                Ok(cost) => cost,
                Err(_) => return Poll::Ready(Err(FlushError::Lost)),
            };
        }
        writer.poll_flush(cx).map_err(|_| FlushError::Lost)
    }

    fn wake(&self) {
        if let Some(session) = self.session.get() {
            session.wake_by_ref();
        }
    }
}

impl Queue {
    fn put(&mut self, frame: Frame) {
        self.cost += frame.cost();
        self.frames.push_back(frame);
    }

    /// There if the session may be resumed by a client that has got so many messages.
    fn resumable_from(&mut self, received: u64) -> Option<&mut Resumable> {
        if let State::Closing(_) | State::Closed = self.state {
            return None;
        }
        let resumable = self.resumable.as_deref_mut()?;
        resumable.kept.covers(received).then_some(resumable)
    }

    fn has_takeover(&self) -> bool {
        let resumable = self.resumable.as_ref();
        resumable.is_some_and(|resumable| resumable.takeover.is_some())
    }

    fn called(&self) -> Option<Command> {
        match &self.state {
            State::Closing(close) => Some(Command::Close(Close::clone(close))),
            State::Detaching(close) => Some(Command::Detach(Close::clone(close))),
            State::Open if self.has_takeover() => Some(Command::Detach(Close::taken_over())),
            State::Open | State::Detached | State::Closed => None,
        }
    }
}

impl Sender {
    /// Puts a frame at the end of the queue, without ever waiting, and the queue among the
    /// `flush_set` if it was idle. An empty queue takes a frame of any size.
    ///
    /// # Errors
    ///
    /// [`PushError::Full`] for the first frame that does not fit: what waited is dropped, and the
    /// session closed (1013). [`PushError::Closed`] from then on. A session that may be resumed is
    /// only to give its connection up: for it the frame is kept.
    pub(crate) fn push(&self, frame: Frame, flush_set: &mut FlushSet) -> Result<(), PushError> {
        self.push_locked(&mut self.0.queue.lock(), frame, flush_set)
    }

    /// Like [`push`](Sender::push), for a ping: `ping`, or one of its own for a session that may be
    /// resumed. Returns whether there is a connection to ping.
    pub(crate) fn ping(&self, ping: &Frame, flush_set: &mut FlushSet) -> bool {
        let mut queue = self.0.queue.lock();
        let State::Open = queue.state else {
            return false;
        };
        let ping = match &mut queue.resumable {
            Some(resumable) => resumable.kept.ping(),
            None => ping.clone(),
        };
        self.push_locked(&mut queue, ping, flush_set).is_ok()
    }

    fn push_locked(
        &self,
        queue: &mut Queue,
        frame: Frame,
        flush_set: &mut FlushSet,
    ) -> Result<(), PushError> {
        if self.0.push(queue, frame)? {
            flush_set.push(self.clone());
        }
        Ok(())
    }

    /// Ends the session with this Close frame, after what waits; unless it is already ending.
    pub(crate) fn close(&self, close: Close) {
        self.0.close(&mut self.0.queue.lock(), close);
    }

    /// Has the session give its connection up with this Close frame, and end if it may not be
    /// resumed.
    pub(crate) fn give_up(&self, close: Close) {
        self.0.give_up(&mut self.0.queue.lock(), close);
    }

    /// How many messages the session has been sent, how many bytes wait for it, and whether it is
    /// without a connection.
    pub(crate) fn stats(&self) -> OutboxStats {
        let queue = self.0.queue.lock();
        let is_suspended = matches!(queue.state, State::Detached);
        let kept = queue.resumable.as_ref().filter(|_| is_suspended);
        OutboxStats {
            messages: queue.messages,
            bytes: kept.map_or(queue.cost, |resumable| resumable.kept.cost()),
            is_suspended,
        }
    }

    /// Whether the session can go on with a connection whose client has got so many messages.
    pub(crate) fn is_resumable(&self, received: u64) -> bool {
        self.0.queue.lock().resumable_from(received).is_some()
    }

    /// Has the session go on with something else. Returns what had come for the same before, and is too
    /// early.
    ///
    /// # Errors
    ///
    /// The successor, if the session cannot go on with it.
    pub(crate) fn hand_over(&self, takeover: Takeover) -> Result<Option<Takeover>, Takeover> {
        let mut queue = self.0.queue.lock();
        let Some(resumable) = queue.resumable_from(takeover.received()) else {
            return Err(takeover);
        };
        let earlier = resumable.takeover.replace(takeover);
        self.0.call();
        Ok(earlier)
    }

    /// Writes what waits, in place of the session. What the socket does not take at once is left to
    /// the session.
    fn flush(&self) {
        if let Some(writer) = &mut *self.0.writer.lock() {
            let session = self.0.session.get().unwrap_or(Waker::noop());
            let mut cx = Context::from_waker(session);
            if let Poll::Ready(Err(_)) = self.0.poll_flush(&mut cx, writer) {
                session.wake_by_ref();
            }
        }
    }
}

impl FlushSet {
    fn push(&mut self, sender: Sender) {
        if let Err(full) = self.first.try_push(sender) {
            self.others.push(full.element());
        }
    }

    /// Flushes all of them, as far as their sockets take it: the first at once, the others in `tasks`
    /// of their own.
    pub(crate) fn flush(&mut self, tasks: &TaskTracker) {
        while !self.others.is_empty() {
            let rest = self.others.len().saturating_sub(FLUSHED_AT_ONCE);
            let batch: Batch = self.others.drain(rest..).collect();
            tasks.spawn(async move { batch.iter().for_each(Sender::flush) });
        }
        self.first.drain(..).for_each(|sender| sender.flush());
    }
}

impl Drop for FlushSet {
    fn drop(&mut self) {
        for sender in self.first.iter().chain(&self.others) {
            sender.0.wake();
        }
    }
}

impl Outbox {
    /// The other end.
    pub(crate) fn sender(&self) -> Sender {
        Sender(self.0.clone())
    }

    /// Like [`Sender::push`], by the session itself. It is awake, and must flush its outbox before
    /// it sleeps.
    pub(crate) fn push(&self, frame: Frame) {
        // When it is full, the session finds the close that follows from it.
        let _ = self.0.push(&mut self.0.queue.lock(), frame);
    }

    /// The same, and keeps from then on what may have to be sent again. Who has the token has got
    /// the frame that tells it, and all before.
    pub(crate) fn push_and_keep(&self, frame: Frame, ticket: ResumeRegistration) {
        let mut resumable = Box::new(Resumable {
            ticket,
            kept: ReplayBuffer::new(self.0.limit, 0),
            takeover: None,
        });
        let mut queue = self.0.queue.lock();
        let unused = match self.0.push(&mut queue, frame) {
            Ok(_) => {
                resumable.kept = ReplayBuffer::new(self.0.limit, queue.messages);
                queue.resumable.replace(resumable)
            }
            Err(_) => Some(resumable),
        };
        drop(queue);
        drop(unused);
    }

    /// By which the session can be resumed.
    pub(crate) fn token(&self) -> Option<ResumeToken> {
        let queue = self.0.queue.lock();
        queue
            .resumable
            .as_ref()
            .map(|resumable| resumable.ticket.token())
    }

    /// What the session is to do in place of going on, if there is something.
    pub(crate) fn called(&self) -> Option<Command> {
        if self.settled() {
            return None;
        }
        self.0.queue.lock().called()
    }

    fn settled(&self) -> bool {
        self.0.settled.load(Ordering::Acquire)
    }

    /// Writes until nothing waits, or the socket takes no more. The task is woken when that goes on,
    /// and when the session is called; it must be the same task every time.
    pub(crate) fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<Result<(), FlushError>> {
        if self.settled() {
            return Poll::Ready(Ok(()));
        }
        self.register(cx);
        let mut writer = self.0.writer.lock();
        let writer = writer.as_mut().expect("it is here while it is attached");
        self.0.poll_flush(cx, writer)
    }

    /// Whether the session can be resumed.
    pub(crate) fn is_resumable(&self) -> bool {
        self.0.queue.lock().resumable.is_some()
    }

    /// Lets the session's task be woken.
    fn register(&self, cx: &Context<'_>) {
        self.0.session.get_or_init(|| cx.waker().clone());
    }

    /// Takes in the payload of a pong; returns whether it says something new of what the client has
    /// got.
    pub(crate) fn pong(&self, payload: &[u8]) -> bool {
        let resumable = &mut self.0.queue.lock().resumable;
        resumable
            .as_mut()
            .is_some_and(|resumable| resumable.kept.pong(payload))
    }

    /// Goes on without a socket: what is sent is only kept. Returns the writer of the last one, whose
    /// frames are kept, too.
    pub(crate) fn detach(&self) -> Writer {
        let mut writer = self.0.writer.lock();
        let mut queue = self.0.queue.lock();
        queue.frames = VecDeque::new();
        queue.cost = 0;
        queue.idle = false;
        if let State::Open | State::Detaching(_) = queue.state {
            queue.state = State::Detached;
        }
        writer.take().expect("it is here while it is attached")
    }

    /// Waits until there is something to go on with.
    ///
    /// # Errors
    ///
    /// The [`Close`] with which the session ends.
    pub(crate) fn poll_takeover(&self, cx: &mut Context<'_>) -> Poll<Result<Takeover, Close>> {
        self.register(cx);
        let mut queue = self.0.queue.lock();
        if let State::Closing(close) = &queue.state {
            return Poll::Ready(Err(Close::clone(close)));
        }
        let resumable = queue.resumable.as_mut();
        match resumable.and_then(|resumable| resumable.takeover.take()) {
            Some(takeover) => Poll::Ready(Ok(takeover)),
            None => Poll::Pending,
        }
    }

    /// Goes on with a connection: sends `first`, then what the client has not got, and a ping. Returns the
    /// rest of it.
    ///
    /// # Errors
    ///
    /// The arrival, if that is not kept any longer, or the session is to end.
    pub(crate) fn attach(
        &self,
        first: Frame,
        reconnection: Box<Reconnection>,
    ) -> Result<Attached, Box<Reconnection>> {
        let mut writer = self.0.writer.lock();
        let mut queue = self.0.queue.lock();
        let queue = &mut *queue;
        let resumable = queue.resumable.as_mut().expect("it was detached");
        let missed = resumable.kept.after(reconnection.received);
        let (State::Detached, Some(missed)) = (&queue.state, missed) else {
            return Err(reconnection);
        };
        queue.frames = iter::once(first).chain(missed.cloned()).collect();
        if queue.frames.len() > 1 {
            queue.frames.push_back(resumable.kept.ping());
        }
        queue.cost = queue.frames.iter().map(Frame::cost).sum();
        queue.state = State::Open;
        self.0.unsettle();
        let reconnection = *reconnection;
        *writer = Some(reconnection.writer);
        Ok(Attached {
            reader: reconnection.reader,
            client: reconnection.client,
            admitted: reconnection.admitted,
        })
    }

    /// Whether somebody has come for the session.
    pub(crate) fn has_takeover(&self) -> bool {
        self.0.queue.lock().has_takeover()
    }

    /// What a client that has got so many messages has not got, for another node to send; nothing is taken
    /// from now on. `None` if that is not kept any longer, the session is to end, or somebody else has come
    /// for it since.
    pub(crate) fn take_missed(&self, received: u64) -> Option<Vec<Frame>> {
        let mut queue = self.0.queue.lock();
        let State::Detached = queue.state else {
            return None;
        };
        let resumable = queue.resumable.as_mut()?;
        if resumable.takeover.is_some() {
            return None;
        }
        let missed = resumable.kept.after(received)?.cloned().collect();
        queue.state = State::Closed;
        let resumable = queue.resumable.take();
        drop(queue);
        drop(resumable);
        Some(missed)
    }

    /// The writer, if there is one, what still waits, and who has come to go on with the session.
    /// Nothing is taken from now on.
    pub(crate) fn into_rest(self) -> Remainder {
        let writer = self.0.writer.lock().take();
        let mut queue = self.0.queue.lock();
        queue.state = State::Closed;
        let resumable = queue.resumable.take();
        let frames = mem::take(&mut queue.frames);
        drop(queue);
        Remainder {
            writer,
            frames,
            takeover: resumable.and_then(|resumable| resumable.takeover),
        }
    }
}

impl Drop for Outbox {
    fn drop(&mut self) {
        let writer = self.0.writer.lock().take();
        let mut queue = self.0.queue.lock();
        queue.state = State::Closed;
        let rest = (mem::take(&mut queue.frames), queue.resumable.take());
        drop(queue);
        drop((writer, rest));
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::{
        future::poll_fn,
        pin::Pin,
        sync::atomic::{AtomicUsize, Ordering::Relaxed},
        task::Wake,
        time::Duration,
    };

    use tokio::{
        io::{AsyncRead, AsyncReadExt, BufWriter, DuplexStream, ReadBuf, duplex},
        net::{TcpListener, TcpSocket, TcpStream},
        task::yield_now,
        time::timeout,
    };
    use tokio_util::either::Either;

    use super::*;

    /// An outbox whose socket takes `space` bytes until they are read from the stream.
    pub(crate) fn outbox_to(limit: usize, space: usize) -> (Sender, Outbox, DuplexStream) {
        let (near, far) = duplex(space);
        let (sender, outbox) = outbox(
            limit,
            Writer::new(Either::Right(Box::new(near)), Arc::default()),
        );
        (sender, outbox, far)
    }

    /// The same to a real socket, which takes little at a time.
    async fn outbox_to_socket(limit: usize) -> (Sender, Outbox, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(1).unwrap();
        let connect = socket.connect(listener.local_addr().unwrap());
        let (far, near) = tokio::join!(connect, listener.accept());
        let (_, near) = near.unwrap().0.into_split();
        let (sender, outbox) = outbox(limit, Writer::new(Either::Left(near), Arc::default()));
        (sender, outbox, far.unwrap())
    }

    /// How often it has been woken.
    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Relaxed);
        }
    }

    pub(crate) fn flush(outbox: &Outbox) -> Poll<Result<(), CloseCode>> {
        let mut cx = Context::from_waker(Waker::noop());
        outbox.poll_flush(&mut cx).map_err(|error| match error {
            FlushError::Called(Command::Close(close) | Command::Detach(close)) => close.code,
            FlushError::Lost => panic!("the stream broke"),
        })
    }

    /// Reads what has been written; returns how many bytes.
    pub(crate) fn read(stream: &mut DuplexStream) -> usize {
        let mut bytes = [0; 100_000];
        let mut buffer = ReadBuf::new(&mut bytes);
        let mut cx = Context::from_waker(Waker::noop());
        let _ = Pin::new(stream).poll_read(&mut cx, &mut buffer);
        buffer.filled().len()
    }

    /// A frame of this cost.
    fn frame(cost: usize) -> Frame {
        let empty = Frame::text(|_| {});
        let frame = Frame::text(|buffer| buffer.resize(buffer.len() + cost - empty.cost(), b'a'));
        assert_eq!(frame.cost(), cost);
        frame
    }

    fn push(sender: &Sender, cost: usize) -> Result<(), PushError> {
        sender.push(frame(cost), &mut FlushSet::default())
    }

    #[test]
    fn what_is_taken_and_not_written_still_counts() {
        let (sender, outbox, mut stream) = outbox_to(200, 10);
        assert_eq!(push(&sender, 120), Ok(()));
        assert_eq!(flush(&outbox), Poll::Pending);
        assert_eq!(push(&sender, 80), Ok(()));
        let mut written = 0;
        while flush(&outbox).is_pending() {
            written += read(&mut stream);
        }
        written += read(&mut stream);
        assert_eq!(written, frame(120).bytes().len() + frame(80).bytes().len());

        assert_eq!(push(&sender, 120), Ok(()));
        assert_eq!(flush(&outbox), Poll::Pending);
        assert_eq!(push(&sender, 81), Err(PushError::Full));
        assert_eq!(push(&sender, 70), Err(PushError::Closed));
        let close = Poll::Ready(Err(CloseCode::TryAgainLater));
        assert_eq!(flush(&outbox), close);
        assert!(outbox.into_rest().frames.is_empty());
    }

    #[test]
    fn many_small_frames_are_much_to_keep() {
        let (sender, _outbox, _stream) = outbox_to(1000, 10);
        let small = Frame::pong(b"");
        let mut flush_set = FlushSet::default();
        let taken = (0..1000)
            .take_while(|_| sender.push(small.clone(), &mut flush_set).is_ok())
            .count();
        assert!(
            taken < 20,
            "{taken} frames of {} bytes",
            small.bytes().len()
        );
    }

    #[test]
    fn nothing_is_kept_of_a_burst() {
        let (sender, outbox, _stream) = outbox_to(100_000, 100_000);
        for _ in 0..500 {
            assert_eq!(push(&sender, 100), Ok(()));
        }
        assert_eq!(flush(&outbox), Poll::Ready(Ok(())));
        let rest = outbox.into_rest();
        assert!(rest.writer.unwrap().capacity() <= 4 && rest.frames.capacity() <= 4);
        assert_eq!(sender.0.queue.lock().cost, 0);
    }

    #[test]
    fn an_empty_queue_takes_a_frame_of_any_size() {
        let (sender, _outbox, _stream) = outbox_to(100, 10);
        assert_eq!(push(&sender, 110), Ok(()));
        assert_eq!(push(&sender, 70), Err(PushError::Full));
    }

    #[test]
    fn the_first_close_stands_and_what_waited_goes_before_it() {
        let (sender, outbox, _stream) = outbox_to(100, 10);
        assert_eq!(push(&sender, 70), Ok(()));
        sender.close(Close::new(CloseCode::GoingAway, "first"));
        sender.close(Close::new(CloseCode::ServiceRestart, "second"));
        assert_eq!(flush(&outbox), Poll::Ready(Err(CloseCode::GoingAway)));
        assert_eq!(outbox.into_rest().frames.len(), 1);
    }

    #[test]
    fn nothing_is_taken_after_the_session() {
        let (sender, outbox, _stream) = outbox_to(100, 10);
        drop(outbox);
        assert_eq!(push(&sender, 70), Err(PushError::Closed));
    }

    #[test]
    fn only_who_fills_an_idle_queue_owes_it_to_flush_it() {
        let (sender, outbox, mut stream) = outbox_to(1000, 500);
        let [mut first, mut second] = [FlushSet::default(), FlushSet::default()];
        let small = Frame::pong(b"");
        assert_eq!(sender.push(small.clone(), &mut first), Ok(()));
        assert_eq!(sender.push(small.clone(), &mut second), Ok(()));
        assert_eq!((first.first.len(), second.first.len()), (1, 0));
        first.flush(&TaskTracker::new());
        assert_eq!(read(&mut stream), 2 * small.bytes().len());

        assert_eq!(sender.push(small.clone(), &mut second), Ok(()));
        assert_eq!(second.first.len(), 1);
        drop(outbox);
        second.flush(&TaskTracker::new());
        assert_eq!(read(&mut stream), 0);
    }

    #[test]
    fn what_a_socket_does_not_take_is_left_to_the_session() {
        let (sender, outbox, mut stream) = outbox_to(1000, 10);
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(woken.clone());
        let mut cx = Context::from_waker(&waker);
        assert!(outbox.poll_flush(&mut cx).is_ready());

        let mut flush_set = FlushSet::default();
        assert_eq!(sender.push(frame(100), &mut flush_set), Ok(()));
        flush_set.flush(&TaskTracker::new());
        assert_eq!(woken.0.load(Relaxed), 0, "there is no room");
        assert_eq!(read(&mut stream), 10);
        assert_eq!(woken.0.load(Relaxed), 1, "there is room again");

        // A debt that nobody pays is the session's, too.
        while outbox.poll_flush(&mut cx).is_pending() {
            read(&mut stream);
        }
        let before = woken.0.load(Relaxed);
        assert_eq!(push(&sender, 70), Ok(()));
        assert_eq!(woken.0.load(Relaxed), before + 1);
    }

    #[tokio::test]
    async fn who_has_not_looked_yet_is_woken_all_the_same() {
        let (sender, outbox, _stream) = outbox_to_socket(1000).await;
        let mut flush_set = FlushSet::default();
        // Another writes what waits before the session is polled for the first time.
        assert_eq!(sender.push(frame(100), &mut flush_set), Ok(()));
        flush_set.flush(&TaskTracker::new());
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(woken.clone());
        let mut cx = Context::from_waker(&waker);
        assert!(outbox.poll_flush(&mut cx).is_ready());
        sender.close(Close::new(CloseCode::GoingAway, "away"));
        assert_eq!(woken.0.load(Relaxed), 1);
    }

    #[test]
    fn a_stream_that_keeps_back_what_is_written_is_flushed() {
        let (near, mut far) = duplex(100);
        let (sender, outbox) = outbox(
            1000,
            Writer::new(
                Either::Right(Box::new(BufWriter::new(near))),
                Arc::default(),
            ),
        );
        assert_eq!(push(&sender, 90), Ok(()));
        assert_eq!(flush(&outbox), Poll::Ready(Ok(())));
        assert_eq!(read(&mut far), frame(90).bytes().len());
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn nothing_is_left_behind_however_pushes_and_flushes_fall_together() {
        const SENDERS: usize = 4;
        const FRAMES: usize = 5000;
        let small = Frame::pong(b"");
        let total = SENDERS * FRAMES * small.bytes().len();
        let (sender, outbox, mut stream) = outbox_to_socket(usize::MAX).await;
        let session = tokio::spawn(poll_fn(move |cx| {
            assert!(!matches!(outbox.poll_flush(cx), Poll::Ready(Err(_))));
            Poll::<()>::Pending
        }));
        for _ in 0..SENDERS {
            let (sender, small) = (sender.clone(), small.clone());
            tokio::spawn(async move {
                for turn in 0..FRAMES {
                    let mut flush_set = FlushSet::default();
                    sender.push(small.clone(), &mut flush_set).unwrap();
                    // Every fourth debt is left to the session.
                    if turn % 4 > 0 {
                        flush_set.flush(&TaskTracker::new());
                    }
                    yield_now().await;
                }
            });
        }
        let mut bytes = vec![0; total];
        let all = timeout(Duration::from_secs(60), stream.read_exact(&mut bytes));
        all.await.expect("all of it, in time").unwrap();
        let frames = bytes.chunks(small.bytes().len());
        assert!(frames.into_iter().all(|frame| frame == small.bytes()));
        session.abort();
    }
}
