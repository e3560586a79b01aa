//! Outboxes under the model checker: whatever the order in which senders, session and client run, no wake-up is
//! lost, and no message is lost, doubled or out of order. A lost wake-up is a deadlock, which the checker finds.

use std::{
    collections::VecDeque,
    future::poll_fn,
    io::{self, Read},
    iter,
    net::{TcpListener, TcpStream},
    pin::Pin,
    sync::{Arc, LazyLock},
    task::{Context, Poll},
};

use parking_lot::Mutex;
use shuttle::{
    future::block_on,
    sync::mpsc::channel,
    thread::{self, JoinHandle},
};
use tokio::{
    io::{AsyncReadExt, AsyncWrite, BufWriter, DuplexStream, duplex},
    net::tcp::OwnedWriteHalf,
    runtime::{Builder, Runtime},
};
use tokio_util::{either::Either, task::TaskTracker};

use super::{
    flush::FlushSet,
    queue::{Command, FlushError, PushError},
    sender::Sender,
    session_half::{Outbox, outbox},
};
use crate::{
    metrics::Traffic,
    model_check::{check_all, check_random},
    protocol::{Close, CloseCode},
    transport::Writer,
    websocket::Frame,
};

/// How many bytes a connection accepts until its client reads them: a message and a half.
const SPACE: usize = 6;

/// A limit that no test reaches, in bytes.
const NO_LIMIT: usize = 1 << 20;

/// The first message of a resumable session, and of each further connection of its client.
const HELLO: Message = ('h', 0);
const RESUMED: Message = ('r', 0);

/// The name of a message's sender, and the message's number among those of that sender.
type Message = (char, usize);

fn frame((sender, number): Message) -> Frame {
    Frame::text(|buffer| buffer.extend_from_slice(format!("{sender}{number}").as_bytes()))
}

/// What a sender does with an outbox that it has filled.
#[derive(Clone, Copy)]
enum Turn {
    /// It writes what waits.
    Flush,
    /// It wakes the session, which writes what waits.
    Wake,
}

/// Pushes one message in a turn.
fn push(sender: &Sender, message: Message, turn: Turn) -> Result<(), PushError> {
    let mut flush_set = FlushSet::default();
    sender.push(frame(message), &mut flush_set)?;
    if let Turn::Flush = turn {
        flush_set.flush(&TaskTracker::new());
    }
    Ok(())
}

/// A thread that pushes so many messages, until a push fails. Returns how many the outbox has taken, and the
/// error.
fn pusher(
    sender: &Sender,
    name: char,
    count: usize,
    turn: Turn,
) -> JoinHandle<(usize, Option<PushError>)> {
    let sender = sender.clone();
    thread::spawn(move || {
        for number in 0..count {
            if let Err(error) = push(&sender, (name, number), turn) {
                return (number, Some(error));
            }
        }
        (count, None)
    })
}

/// Asserts that these are the first messages of a sender, in order. Returns how many they are.
fn count_in_order(messages: &[Message], name: char) -> usize {
    let numbers = messages.iter().filter(|message| message.0 == name);
    let numbers: Vec<_> = numbers.map(|message| message.1).collect();
    assert!(numbers.iter().copied().eq(0..numbers.len()), "{messages:?}");
    numbers.len()
}

/// The stream that the server writes to.
#[derive(Clone, Copy)]
enum Stream {
    /// It sends what is written at once, as far as there is space.
    Plain,
    /// It keeps back what is written until it is flushed.
    Buffering,
    /// It takes one byte at a time.
    Trickling,
}

/// See [`Stream::Trickling`].
struct Trickle(DuplexStream);

impl AsyncWrite for Trickle {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, &bytes[..1])
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

/// The client's end of a connection.
struct Client {
    stream: DuplexStream,
    /// What has come of the next frame.
    bytes: VecDeque<u8>,
}

#[derive(Debug, PartialEq)]
enum Received {
    Message(Message),
    /// A ping, with the number of messages before it.
    Ping(usize),
    /// A Close frame with this code.
    Close(u16),
    /// The end of the connection.
    End,
}

/// The two ends of a connection.
fn connect(stream: Stream) -> (Writer, Client) {
    let space = match stream {
        Stream::Plain | Stream::Buffering => SPACE,
        Stream::Trickling => 1 << 10,
    };
    let (near, far) = duplex(space);
    let near: Box<dyn AsyncWrite + Send + Unpin> = match stream {
        Stream::Plain => Box::new(near),
        Stream::Buffering => Box::new(BufWriter::new(near)),
        Stream::Trickling => Box::new(Trickle(near)),
    };
    let client = Client {
        stream: far,
        bytes: VecDeque::new(),
    };
    (Writer::new(Either::Right(near), Arc::default()), client)
}

impl Client {
    /// Waits for the next frame, or for the end of the connection.
    fn receive(&mut self) -> Received {
        loop {
            if let Some(&length) = self.bytes.get(1)
                && let end = 2 + usize::from(length)
                && self.bytes.len() >= end
            {
                let frame: Vec<_> = self.bytes.drain(..end).collect();
                return Received::parse(frame[0], &frame[2..]);
            }
            let mut buffer = [0; SPACE];
            let count = block_on(self.stream.read(&mut buffer)).unwrap();
            if count == 0 {
                return Received::End;
            }
            self.bytes.extend(&buffer[..count]);
        }
    }

    /// Receives so many messages.
    fn receive_messages(&mut self, count: usize) -> Vec<Message> {
        iter::repeat_with(|| match self.receive() {
            Received::Message(message) => message,
            other => panic!("{other:?}"),
        })
        .take(count)
        .collect()
    }

    /// Receives messages until something else comes. Returns both.
    fn receive_rest(&mut self) -> (Vec<Message>, Received) {
        let mut messages = Vec::new();
        loop {
            match self.receive() {
                Received::Message(message) => messages.push(message),
                other => return (messages, other),
            }
        }
    }
}

impl Received {
    /// Parses a frame from the first byte of its header (RFC 6455, section 5.2) and its payload.
    fn parse(header: u8, payload: &[u8]) -> Received {
        let text = || str::from_utf8(payload).unwrap();
        match header {
            0x81 => {
                let (sender, number) = text().split_at(1);
                Received::Message((sender.parse().unwrap(), number.parse().unwrap()))
            }
            0x88 => Received::Close(u16::from_be_bytes([payload[0], payload[1]])),
            0x89 => Received::Ping(text().parse().unwrap()),
            _ => panic!("a frame with the header {header}"),
        }
    }
}

/// Where a session finds the connection that it continues with, and how many messages the client of that
/// connection has received.
type Mailbox = Arc<Mutex<Option<(u64, Writer)>>>;

/// A thread that does what the task of a session does with its outbox. A resumable session begins with
/// [`HELLO`].
fn session(outbox: Outbox, resumable: Option<Mailbox>) -> JoinHandle<()> {
    thread::spawn(move || {
        if resumable.is_some() {
            outbox.push_and_keep(frame(HELLO));
        }
        let close = loop {
            let close = match serve(&outbox) {
                FlushError::Command(Command::Close(close)) => break close,
                FlushError::Command(Command::Detach(close)) => Some(close),
                FlushError::Lost => None,
            };
            let mut writer = outbox.detach();
            writer.clear();
            if let Some(close) = close {
                // It fails if the client has left.
                let _ = block_on(writer.close(iter::once(close.frame())));
            }
            drop(writer);
            let mailbox = resumable
                .as_ref()
                .expect("only a resumable session is suspended");
            if let Err(close) = resume(&outbox, mailbox) {
                break close;
            }
        };
        let remainder = outbox.into_remainder();
        if let Some(mailbox) = resumable {
            *mailbox.lock() = None;
        }
        if let Some(mut writer) = remainder.writer {
            if let CloseCode::TryAgainLater = close.code {
                writer.clear();
            }
            let frames = remainder.frames.into_iter().chain([close.frame()]);
            let _ = block_on(writer.close(frames));
        }
    })
}

/// Writes what waits to the connection, until the session must do something else.
fn serve(outbox: &Outbox) -> FlushError {
    block_on(poll_fn(|cx| match outbox.poll_flush(cx) {
        Poll::Ready(Err(end)) => Poll::Ready(end),
        Poll::Ready(Ok(())) | Poll::Pending => Poll::Pending,
    }))
}

/// Waits for a connection and attaches it. Returns the [`Close`] with which the session ends instead.
fn resume(outbox: &Outbox, mailbox: &Mailbox) -> Result<(), Close> {
    let takeover = |cx: &mut Context<'_>| {
        if let Poll::Ready(close) = outbox.poll_closed(cx) {
            return Poll::Ready(Err(close));
        }
        mailbox
            .lock()
            .take()
            .map_or(Poll::Pending, |it| Poll::Ready(Ok(it)))
    };
    loop {
        let (received, writer) = block_on(poll_fn(takeover))?;
        if outbox.attach(frame(RESUMED), received, writer).is_ok() {
            if mailbox.lock().is_some() {
                outbox.give_up(Close::taken_over());
            }
            return Ok(());
        }
    }
}

/// Reconnects a client that has received so many messages. `None` if the session is ending.
fn reconnect(sender: &Sender, mailbox: &Mailbox, received: usize) -> Option<Client> {
    let (writer, client) = connect(Stream::Plain);
    let received = received as u64;
    sender
        .take_over(
            received,
            Close::taken_over(),
            (received, writer),
            |takeover| Ok(mailbox.lock().replace(takeover)),
        )
        .ok()?;
    Some(client)
}

/// How a client changes its connection.
#[derive(Clone, Copy)]
enum Change {
    /// The first connection is lost, then the client reconnects.
    Loss,
    /// The client reconnects while the server still has the first connection.
    Takeover,
}

/// Two senders push so many messages each, two at most. The outbox has filled up with two.
fn two_senders(turns: [Turn; 2], stream: Stream, count: usize) {
    let (writer, mut client) = connect(stream);
    let (sender, outbox) = outbox(8 * frame(HELLO).cost(), writer);
    let session = session(outbox, None);
    let pushers =
        [('a', turns[0]), ('b', turns[1])].map(|(name, turn)| pusher(&sender, name, count, turn));
    let messages = client.receive_messages(2 * count);
    assert_eq!(count_in_order(&messages, 'a'), count);
    assert_eq!(count_in_order(&messages, 'b'), count);
    for pusher in pushers {
        assert_eq!(pusher.join().unwrap(), (count, None));
    }
    sender.close(Close::new(CloseCode::GoingAway, ""));
    assert_eq!(client.receive(), Received::Close(1001));
    assert_eq!(client.receive(), Received::End);
    session.join().unwrap();
}

/// Two senders push so many messages each to a resumable session, whose client changes its connection when it
/// has received one of the numbers of messages in `changes`, and each time the server gives its connection up.
fn resumable(limit: usize, turns: [Turn; 2], count: usize, change: Change, changes: &[usize]) {
    let mailbox = Mailbox::default();
    let (writer, mut client) = connect(Stream::Plain);
    let (sender, outbox) = outbox(limit, writer);
    let session = session(outbox, Some(mailbox.clone()));
    let pushers =
        [('a', turns[0]), ('b', turns[1])].map(|(name, turn)| pusher(&sender, name, count, turn));
    let mut messages = Vec::new();
    let mut changes = changes.iter().peekable();
    while messages.len() < 2 * count + 1 {
        match client.receive() {
            Received::Message(RESUMED) => {}
            Received::Message(message) => messages.push(message),
            Received::Ping(before) => assert_eq!(before, messages.len()),
            Received::Close(code) => {
                assert_eq!((code, client.receive()), (1013, Received::End));
                if !messages.contains(&HELLO) {
                    // The client has no token to reconnect with.
                    break;
                }
                client = reconnect(&sender, &mailbox, messages.len()).unwrap();
            }
            Received::End => panic!("the end of the connection after {messages:?}"),
        }
        if messages.contains(&HELLO) && changes.next_if(|count| messages.len() >= **count).is_some()
        {
            if let Change::Loss = change {
                drop(client);
            }
            client = reconnect(&sender, &mailbox, messages.len()).unwrap();
        }
    }
    if messages.contains(&HELLO) {
        assert_eq!(count_in_order(&messages, 'h'), 1);
        assert_eq!(count_in_order(&messages, 'a'), count);
        assert_eq!(count_in_order(&messages, 'b'), count);
    }
    for pusher in pushers {
        assert_eq!(pusher.join().unwrap(), (count, None));
    }
    sender.close(Close::new(CloseCode::GoingAway, ""));
    drop(client);
    session.join().unwrap();
}

/// A sender pushes a message to a session that has lost its connection.
fn loss([turn, _]: [Turn; 2]) {
    let (writer, client) = connect(Stream::Plain);
    let (sender, outbox) = outbox(NO_LIMIT, writer);
    let session = thread::spawn(move || serve(&outbox));
    drop(client);
    push(&sender, ('a', 0), turn).unwrap();
    assert!(matches!(session.join().unwrap(), FlushError::Lost));
}

/// Two senders push a message each to a session with a socket. A socket keeps nothing back, so the session has
/// nothing to write as soon as nothing waits.
fn socket(turns: [Turn; 2]) {
    let (near, mut far) = socket_pair();
    let traffic = Arc::new(Traffic::default());
    let (sender, outbox) = outbox(NO_LIMIT, Writer::new(Either::Left(near), traffic.clone()));
    let (written, all_written) = channel();
    let look = move || {
        if traffic.messages_sent.get() == 2 {
            // The test may have ended already.
            let _ = written.send(());
        }
    };
    let session = thread::spawn({
        let look = look.clone();
        move || {
            block_on(poll_fn(|cx| {
                let end = outbox.poll_flush(cx);
                look();
                match end {
                    Poll::Ready(Err(_)) => Poll::Ready(()),
                    Poll::Ready(Ok(())) | Poll::Pending => Poll::Pending,
                }
            }));
            outbox
        }
    });
    for (name, turn) in ['a', 'b'].into_iter().zip(turns) {
        let (sender, look) = (sender.clone(), look.clone());
        thread::spawn(move || {
            push(&sender, (name, 0), turn).unwrap();
            look();
        });
    }
    all_written.recv().unwrap();
    sender.close(Close::new(CloseCode::GoingAway, ""));
    let outbox = session.join().unwrap();
    let mut bytes = [0; 8];
    far.read_exact(&mut bytes).unwrap();
    let [a, b] = [frame(('a', 0)), frame(('b', 0))];
    let orders = [
        [a.bytes(), b.bytes()].concat(),
        [b.bytes(), a.bytes()].concat(),
    ];
    assert!(orders.contains(&bytes.to_vec()), "{bytes:?}");
    drop(outbox);
}

/// The server's half of a connection, which accepts all that a test writes, and the client's end.
fn socket_pair() -> (OwnedWriteHalf, TcpStream) {
    static RUNTIME: LazyLock<Runtime> =
        LazyLock::new(|| Builder::new_current_thread().enable_io().build().unwrap());
    let _guard = RUNTIME.enter();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let far = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (near, _) = listener.accept().unwrap();
    near.set_nonblocking(true).unwrap();
    let near = tokio::net::TcpStream::from_std(near).unwrap();
    // The ports of thousands of closed connections would not be free for a minute.
    near.set_zero_linger().unwrap();
    (near.into_split().1, far)
}

/// A sender pushes messages and closes the session, while another sender pushes. The session is not resumable.
fn close_race(turns: [Turn; 2]) {
    let (writer, mut client) = connect(Stream::Plain);
    let (sender, outbox) = outbox(NO_LIMIT, writer);
    let session = session(outbox, None);
    let other = pusher(&sender, 'b', 2, turns[1]);
    let closer = thread::spawn(move || {
        push(&sender, ('a', 0), turns[0]).unwrap();
        sender.close(Close::new(CloseCode::GoingAway, ""));
        assert_eq!(push(&sender, ('a', 1), turns[0]), Err(PushError::Closed));
    });
    let (messages, end) = client.receive_rest();
    assert_eq!(
        (end, client.receive()),
        (Received::Close(1001), Received::End)
    );
    closer.join().unwrap();
    let (pushed, error) = other.join().unwrap();
    assert!(error.is_none_or(|error| error == PushError::Closed));
    assert_eq!(count_in_order(&messages, 'a'), 1);
    assert_eq!(count_in_order(&messages, 'b'), pushed);
    session.join().unwrap();
}

/// A sender pushes a message and closes the session, whose client loses its connection at that time.
fn close_and_loss([turn, _]: [Turn; 2]) {
    let mailbox = Mailbox::default();
    let (writer, mut client) = connect(Stream::Plain);
    let (sender, outbox) = outbox(NO_LIMIT, writer);
    let session = session(outbox, Some(mailbox.clone()));
    let closer = thread::spawn({
        let sender = sender.clone();
        move || {
            push(&sender, ('a', 0), turn).unwrap();
            sender.close(Close::new(CloseCode::GoingAway, ""));
        }
    });
    let mut messages = Vec::new();
    loop {
        match client.receive() {
            Received::Message(RESUMED) => continue,
            Received::Message(message) => messages.push(message),
            Received::Close(code) => assert_eq!((code, count_in_order(&messages, 'a')), (1001, 1)),
            Received::End => break,
            Received::Ping(_) => {}
        }
        if messages.last() == Some(&HELLO) {
            drop(client);
            let Some(next) = reconnect(&sender, &mailbox, messages.len()) else {
                break;
            };
            client = next;
        }
    }
    closer.join().unwrap();
    session.join().unwrap();
    assert!(reconnect(&sender, &mailbox, messages.len()).is_none());
}

/// Two senders push more than an outbox takes. The session is not resumable.
fn overflow(turns: [Turn; 2]) {
    let (writer, mut client) = connect(Stream::Plain);
    let (sender, outbox) = outbox(2 * frame(HELLO).cost(), writer);
    let session = session(outbox, None);
    let pushers =
        [('a', turns[0]), ('b', turns[1])].map(|(name, turn)| pusher(&sender, name, 2, turn));
    let mut messages = Vec::new();
    let end = loop {
        match client.receive() {
            Received::Message(message) => messages.push(message),
            end => break end,
        }
        if messages.len() == 4 {
            // The client was fast enough.
            sender.close(Close::new(CloseCode::GoingAway, ""));
        }
    };
    assert_eq!(client.receive(), Received::End);
    let pushed = pushers.map(|pusher| pusher.join().unwrap());
    let received = [
        count_in_order(&messages, 'a'),
        count_in_order(&messages, 'b'),
    ];
    match end {
        Received::Close(1001) => assert_eq!(pushed, [(2, None), (2, None)]),
        Received::Close(1013) => {
            let errors = pushed.iter().filter_map(|(_, error)| error.as_ref());
            assert_eq!(errors.filter(|error| **error == PushError::Full).count(), 1);
            assert!(received[0] <= pushed[0].0 && received[1] <= pushed[1].0);
        }
        end => panic!("{end:?} after {messages:?}"),
    }
    session.join().unwrap();
}

/// How the two senders take their turns.
const TURNS: [[Turn; 2]; 3] = [
    [Turn::Flush, Turn::Flush],
    [Turn::Flush, Turn::Wake],
    [Turn::Wake, Turn::Wake],
];

/// Checks a case of two senders with all schedules with so many preemptions, and with random ones.
fn check(preemptions: usize, case: fn([Turn; 2])) {
    for turns in TURNS {
        check_all(preemptions, move || case(turns));
        check_random(move || case(turns));
    }
}

#[test]
fn two_senders_and_a_session_lose_no_wake_up_and_no_message() {
    check(2, |turns| two_senders(turns, Stream::Plain, 1));
    check(1, |turns| two_senders(turns, Stream::Plain, 2));
    check_all(3, || two_senders(TURNS[1], Stream::Plain, 1));
}

#[test]
fn a_session_with_a_socket_loses_no_wake_up() {
    check(1, socket);
}

#[test]
fn nothing_stays_behind_in_a_stream_that_keeps_data_back() {
    check(2, |turns| two_senders(turns, Stream::Buffering, 1));
}

#[test]
fn a_turn_that_writes_only_a_part_is_followed_by_another() {
    check(1, |turns| two_senders(turns, Stream::Trickling, 2));
}

#[test]
fn a_session_learns_from_a_sender_that_its_connection_is_lost() {
    check(3, loss);
}

#[test]
fn a_client_that_loses_its_connection_gets_each_message_once() {
    check(1, |turns| resumable(NO_LIMIT, turns, 1, Change::Loss, &[1]));
    check_random(|| resumable(NO_LIMIT, TURNS[1], 3, Change::Loss, &[1, 3, 4]));
}

#[test]
fn a_client_that_takes_its_session_over_gets_each_message_once() {
    check(1, |turns| {
        resumable(NO_LIMIT, turns, 1, Change::Takeover, &[1])
    });
    check_random(|| resumable(NO_LIMIT, TURNS[1], 3, Change::Takeover, &[1, 3, 4]));
}

#[test]
fn what_a_sender_pushes_before_a_close_comes_before_the_close_frame() {
    check(1, close_race);
}

#[test]
fn a_close_ends_a_session_that_is_being_suspended_or_resumed() {
    check(1, close_and_loss);
}

#[test]
fn a_full_outbox_ends_its_session() {
    check(1, overflow);
}

#[test]
fn a_resumable_session_loses_no_message_of_a_full_outbox() {
    check(1, |turns| {
        // The replay buffer has room for all messages, but the queue has not, with its pings.
        resumable(4 * frame(HELLO).cost(), turns, 2, Change::Loss, &[])
    });
}
