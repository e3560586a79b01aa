//! Outboxes without sessions.

use std::{
    future::poll_fn,
    iter,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll, Wake, Waker},
    time::Duration,
};

use futures_util::FutureExt;
use tokio::{
    io::{AsyncRead, AsyncReadExt, BufWriter, DuplexStream, ReadBuf, duplex},
    net::{TcpListener, TcpSocket, TcpStream},
    task::{JoinSet, yield_now},
    time::timeout,
};
use tokio_util::{either::Either, task::TaskTracker};

use super::{
    flush::{FlushSet, Flushes},
    queue::{Command, FlushError, PushError},
    sender::Sender,
    session_half::{Outbox, detached_outbox, outbox},
};
use crate::{
    protocol::{Close, CloseCode},
    transport::Writer,
    websocket::Frame,
};

/// An outbox whose connection accepts `space` bytes until they are read from the stream.
pub(crate) fn outbox_to(limit: usize, space: usize) -> (Sender, Outbox, DuplexStream) {
    let (near, far) = duplex(space);
    let (sender, outbox) = outbox(
        limit,
        Writer::new(Either::Right(Box::new(near)), Arc::default()),
    );
    (sender, outbox, far)
}

/// Like [`outbox_to`], with a real socket that accepts little at a time.
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

/// Counts how often a task is woken.
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
        FlushError::Command(Command::Close(close) | Command::Detach(close)) => close.code,
        FlushError::Lost => panic!("the stream broke"),
    })
}

/// Reads what was written, and returns the number of bytes.
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
fn frames_that_the_writer_has_taken_still_count() {
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
    assert!(outbox.into_remainder().frames.is_empty());
}

#[test]
fn small_frames_cost_more_than_their_bytes() {
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
fn no_memory_is_kept_after_a_burst() {
    let (sender, outbox, _stream) = outbox_to(100_000, 100_000);
    for _ in 0..500 {
        assert_eq!(push(&sender, 100), Ok(()));
    }
    assert_eq!(flush(&outbox), Poll::Ready(Ok(())));
    let rest = outbox.into_remainder();
    assert_eq!(
        (rest.writer.unwrap().capacity(), rest.frames.capacity()),
        (0, 0)
    );
    assert_eq!(sender.0.queue.lock().cost, 0);
}

#[test]
fn an_empty_outbox_takes_a_frame_of_any_size() {
    let (sender, _outbox, _stream) = outbox_to(100, 10);
    assert_eq!(push(&sender, 110), Ok(()));
    assert_eq!(push(&sender, 70), Err(PushError::Full));
}

#[test]
fn the_first_close_counts_and_follows_what_waited() {
    let (sender, outbox, _stream) = outbox_to(100, 10);
    assert_eq!(push(&sender, 70), Ok(()));
    sender.close(Close::new(CloseCode::GoingAway, "first"));
    sender.close(Close::new(CloseCode::ServiceRestart, "second"));
    let first = Close::new(CloseCode::GoingAway, "first");
    assert_eq!(outbox.command(), Some(Command::Close(first)));
    assert_eq!(flush(&outbox), Poll::Ready(Err(CloseCode::GoingAway)));
    assert_eq!(outbox.into_remainder().frames.len(), 1);
}

#[test]
fn only_a_resumable_session_outlives_the_connection_that_it_gives_up() {
    let close = Close::taken_over();
    for is_resumable in [false, true] {
        let (_sender, outbox, _stream) = outbox_to(1000, 10);
        if is_resumable {
            assert!(outbox.push_and_keep(frame(70)));
        }
        outbox.give_up(close.clone());
        let command = match is_resumable {
            true => Command::Detach(close.clone()),
            false => Command::Close(close.clone()),
        };
        assert_eq!(outbox.command(), Some(command));
    }
}

#[test]
fn a_pong_acknowledges_messages_once_the_session_is_resumable() {
    let (sender, outbox, _stream) = outbox_to(1000, 10);
    assert_eq!(push(&sender, 70), Ok(()));
    assert!(!outbox.pong(b"1"));
    assert!(outbox.push_and_keep(frame(70)));
    assert_eq!(push(&sender, 70), Ok(()));
    assert!(outbox.pong(b"3"));
    assert!(!outbox.pong(b"3"));
}

#[test]
fn a_client_that_resumes_gets_what_it_missed_and_a_ping() {
    let missed = [frame(70), frame(80)];
    for count in 0..=2 {
        let (sender, outbox) = detached_outbox(1000, 5, missed.to_vec());
        assert_eq!(sender.stats().messages, 7);
        let (near, mut far) = duplex(1000);
        let writer = Writer::new(Either::Right(Box::new(near)), Arc::default());
        let first = frame(90);
        let attached = outbox.attach(first.clone(), 7 - count as u64, writer);
        assert!(attached.is_ok());
        assert_eq!(flush(&outbox), Poll::Ready(Ok(())));
        drop(outbox);
        let ping = (count > 0).then(|| Frame::ping(b"7"));
        let expected = [&first].into_iter().chain(&missed[2 - count..]);
        let expected: Vec<_> = expected.chain(&ping).map(Frame::bytes).collect();
        let mut bytes = Vec::new();
        let read = far.read_to_end(&mut bytes).now_or_never();
        read.expect("all of it is there").unwrap();
        assert_eq!(bytes, expected.concat());
    }
}

#[test]
fn a_detached_outbox_that_may_not_close_stays_open() {
    let (_sender, outbox) = detached_outbox(1000, 5, vec![frame(70)]);
    assert!(outbox.take_missed(5, || false).is_none());
    // The client cannot have received these counts.
    for received in [4, 7] {
        let may_close = || panic!("the messages are not kept");
        assert!(outbox.take_missed(received, may_close).is_none());
    }
    let missed = outbox.take_missed(5, || true);
    assert_eq!(missed.map(|missed| missed.len()), Some(1));
    assert!(outbox.take_missed(5, || true).is_none());
}

#[test]
fn a_takeover_is_delivered_under_the_lock_of_the_outbox() {
    let (sender, outbox) = detached_outbox(1000, 0, Vec::new());
    let close = Close::taken_over();
    let delivered = sender.take_over(0, close.clone(), "takeover", |takeover| {
        // Otherwise the session could attach the connection of the takeover before it is told to give its
        // connection up, and then give up this one.
        assert!(sender.0.queue.is_locked());
        Ok::<_, &str>(takeover)
    });
    assert_eq!(delivered, Ok("takeover"));
    // A client cannot have received more messages than there are.
    let rejected = sender.take_over(1, close, "takeover", Ok);
    assert_eq!(rejected, Err::<&str, _>("takeover"));
    assert_eq!(outbox.command(), None);
}

#[test]
fn nothing_is_queued_after_the_session() {
    let (sender, outbox, _stream) = outbox_to(100, 10);
    drop(outbox);
    assert_eq!(push(&sender, 70), Err(PushError::Closed));
}

#[test]
fn only_the_first_sender_flushes_an_outbox() {
    let (sender, outbox, mut stream) = outbox_to(10_000, 500);
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
fn a_sender_that_finds_an_outbox_filled_up_flushes_it_too() {
    let (sender, outbox, mut stream) = outbox_to(1000, 150);
    let [mut first, mut second, mut third] = [(); 3].map(|()| FlushSet::default());
    assert_eq!(sender.push(frame(100), &mut first), Ok(()));
    assert!(!first.is_turn_over());
    assert_eq!(sender.push(frame(100), &mut second), Ok(()));
    assert_eq!(sender.push(frame(100), &mut third), Ok(()));
    assert!(second.is_turn_over() && third.is_turn_over());
    assert_eq!((second.first.len(), second.urgent.len()), (0, 1));
    assert_eq!((third.first.len(), third.urgent.len()), (0, 0));
    second.flush(&TaskTracker::new());
    assert_eq!(read(&mut stream), 3 * frame(100).bytes().len());
    first.flush(&TaskTracker::new());
    assert_eq!(read(&mut stream), 0);

    // What waits for the socket is the business of the session, however much it is.
    for _ in 0..2 {
        assert_eq!(sender.push(frame(180), &mut first), Ok(()));
    }
    first.flush(&TaskTracker::new());
    let mut fourth = FlushSet::default();
    assert_eq!(sender.push(frame(180), &mut fourth), Ok(()));
    assert!(fourth.first.is_empty() && fourth.urgent.is_empty() && !fourth.is_turn_over());
    drop(outbox);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 8)]
async fn the_end_of_a_flush_comes_when_all_outboxes_are_flushed() {
    let mut outboxes: Vec<_> = (0..1000).map(|_| outbox_to(1000, 1000)).collect();
    for filled in [1, 32, 33, 161, 1000] {
        let mut flush_set = FlushSet::default();
        for (sender, ..) in &outboxes[..filled] {
            assert_eq!(sender.push(frame(100), &mut flush_set), Ok(()));
        }
        let flushing = flush_set.flush(&TaskTracker::new());
        assert_eq!(flushing.is_some(), filled > 32);
        let waits = iter::repeat_n(flushing, 3).flatten();
        let waits: JoinSet<()> = waits.map(|flushing| flushing.end()).collect();
        let end = timeout(Duration::from_secs(60), waits.join_all());
        end.await.expect("the end, in time");
        for (_, _, stream) in &mut outboxes[..filled] {
            // A task that reads many streams must give up its turn.
            yield_now().await;
            assert_eq!(read(stream), frame(100).len());
        }
    }
}

#[tokio::test]
async fn a_flush_of_outboxes_that_have_filled_up_belongs_to_their_room() {
    let outboxes: Vec<_> = (0..100).map(|_| outbox_to(800, 1000)).collect();
    let push_to_all = |size, flush_set: &mut FlushSet| {
        for (sender, ..) in &outboxes {
            assert_eq!(sender.push(frame(size), flush_set), Ok(()));
        }
    };
    let room = Arc::new(Flushes::default());
    let mut waiting = FlushSet::default();
    push_to_all(70, &mut waiting);
    waiting.note_room(|| unreachable!("none has filled up"));
    for is_settled in [false, true] {
        let mut flush_set = FlushSet::default();
        push_to_all(100, &mut flush_set);
        flush_set.note_room(|| room.clone());
        assert!(room.first().is_none());
        match is_settled {
            true => flush_set.settle(&TaskTracker::new()),
            false => _ = flush_set.flush(&TaskTracker::new()),
        }
        let (first, second) = (room.first().unwrap(), room.first().unwrap());
        first.end().await;
        assert!(room.first().is_none());
        second.end().await;
        for (sender, ..) in &outboxes {
            assert_eq!(sender.stats().bytes, 0);
        }
        waiting.flush(&TaskTracker::new());
        push_to_all(70, &mut waiting);
    }
}

#[test]
fn the_session_writes_what_its_socket_does_not_accept_now() {
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

    // The session is also woken if the sender drops its set without a flush.
    while outbox.poll_flush(&mut cx).is_pending() {
        read(&mut stream);
    }
    let before = woken.0.load(Relaxed);
    assert_eq!(push(&sender, 70), Ok(()));
    assert_eq!(woken.0.load(Relaxed), before + 1);
}

#[tokio::test]
async fn a_session_that_was_not_polled_yet_is_woken() {
    let (sender, outbox, _stream) = outbox_to_socket(1000).await;
    let mut flush_set = FlushSet::default();
    // A sender writes what waits before the session is polled for the first time.
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
fn a_buffering_stream_is_flushed() {
    // The stream keeps back what does not fit.
    for space in [100, 10] {
        let (near, mut far) = duplex(space);
        let stream = Either::Right(Box::new(BufWriter::new(near)) as Box<_>);
        let (sender, outbox) = outbox(1000, Writer::new(stream, Arc::default()));
        assert_eq!(push(&sender, 90), Ok(()));
        let mut written = 0;
        while flush(&outbox).is_pending() {
            written += read(&mut far);
        }
        written += read(&mut far);
        assert_eq!(written, frame(90).bytes().len());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_frame_is_left_behind_by_concurrent_pushes_and_flushes() {
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
                // Every fourth flush is left to the session.
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
