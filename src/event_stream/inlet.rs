//! Where the bodies of POST requests wait for their session. No I/O.

use std::{
    ops::ControlFlow,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use bytes::{Buf, Bytes};
use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::pipe::wake;
use crate::{
    protocol::bytes_from_json,
    websocket::{Event, ReadControl, Stop, Violation},
};

/// How many POST requests of a session may wait for it, and for messages that come between.
const MAX_WAITING: usize = 16;

/// How many bytes of a request are read in one turn.
const TURN_BYTES: usize = 16 << 10;

/// The close code of a client that leaves (RFC 6455, section 7.4.1).
const NORMAL: u16 = 1000;

/// The messages that the client of one session sends in POST requests.
pub(crate) struct Inlet {
    /// The longest accepted message, in bytes.
    max_message_bytes: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// How many messages of the client were taken in during the session.
    taken_in: u64,
    waiting: Vec<Post>,
    /// How many messages the client says it has received, if the session does not know that yet.
    received: Option<u64>,
    is_leaving: bool,
    has_refused: bool,
    is_retired: bool,
    session: Option<Waker>,
}

/// A request that waits.
struct Post {
    /// How many messages come before.
    before: u64,
    /// The messages, a line each.
    lines: Bytes,
    answer: oneshot::Sender<u64>,
}

/// What becomes of a POST request.
pub(crate) enum Posted {
    /// It waits. Yields how many messages of the client are taken in, with these; fails if the session goes on without
    /// this inlet.
    Waits(oneshot::Receiver<u64>),
    /// Too many wait already.
    Busy,
    /// The session goes on without this inlet.
    Retired,
}

impl Inlet {
    /// An inlet for messages of at most `max_message_bytes`, of a client of which so many messages are taken in.
    pub(crate) fn new(max_message_bytes: usize, taken_in: u64) -> Arc<Inlet> {
        Arc::new(Inlet {
            max_message_bytes,
            state: Mutex::new(State {
                taken_in,
                ..State::default()
            }),
        })
    }

    /// Notes how many messages of the client are taken in.
    pub(crate) fn set_taken_in(&self, taken_in: u64) {
        self.state.lock().taken_in = taken_in;
    }

    /// Whether a message was too long or no text, which ends the session.
    pub(crate) fn has_refused(&self) -> bool {
        self.state.lock().has_refused
    }

    /// Whether the client leaves.
    pub(super) fn is_leaving(&self) -> bool {
        self.state.lock().is_leaving
    }

    /// How many messages of the client are taken in.
    pub(crate) fn taken_in(&self) -> u64 {
        self.state.lock().taken_in
    }

    /// Takes a request whose messages come after the first `before`, a line each. The client may say how many messages
    /// it has received.
    pub(crate) fn post(&self, before: u64, received: Option<u64>, lines: Bytes) -> Posted {
        let mut state = self.state.lock();
        if state.is_retired {
            return Posted::Retired;
        }
        // The clients of some have given up.
        state.waiting.retain(|post| !post.answer.is_closed());
        // Requests that wait for messages between do not keep these out.
        let is_next = |before| before <= state.taken_in;
        let alike = state.waiting.iter();
        let alike = alike.filter(|post| is_next(post.before) == is_next(before));
        if alike.count() >= MAX_WAITING {
            return Posted::Busy;
        }
        let (answer, waiting) = oneshot::channel();
        state.received = state.received.max(received);
        state.waiting.push(Post {
            before,
            lines,
            answer,
        });
        wake(&mut state.session);
        Posted::Waits(waiting)
    }

    /// Makes the session leave. Returns false if the session goes on without this inlet.
    pub(crate) fn leave(&self) -> bool {
        let mut state = self.state.lock();
        state.is_leaving = true;
        wake(&mut state.session);
        !state.is_retired
    }

    /// Takes no request from now on, and answers none.
    pub(crate) fn retire(&self) {
        let mut state = self.state.lock();
        state.is_retired = true;
        state.waiting = Vec::new();
    }

    /// Calls `on_event` with the messages of the next request, if one has come; returns whether more may have come.
    /// Messages that were taken in before are skipped. A request whose messages do not follow waits for those between.
    ///
    /// # Errors
    ///
    /// The [`Stop`] after which nothing more can be read.
    pub(crate) fn poll_read<B>(
        &self,
        cx: &mut Context<'_>,
        mut on_event: impl FnMut(Event<'_>) -> ControlFlow<B, ReadControl>,
    ) -> Poll<Result<bool, Stop<B>>> {
        let (post, received, is_leaving) = {
            let mut state = self.state.lock();
            state.waiting.retain(|post| !post.answer.is_closed());
            let next = state.next();
            let (received, is_leaving) = (state.received.take(), state.is_leaving);
            if next.is_none() && received.is_none() && !is_leaving {
                state.session = Some(cx.waker().clone());
                return Poll::Pending;
            }
            (next, received, is_leaving)
        };
        if let Some(received) = received
            && let ControlFlow::Break(value) =
                on_event(Event::Pong(received.to_string().as_bytes()))
        {
            return Poll::Ready(Err(Stop::Break(value)));
        }
        if let Some(post) = post {
            self.read(post, &mut on_event)?;
        } else if is_leaving
            && let ControlFlow::Break(value) = on_event(Event::Close(Some((NORMAL, ""))))
        {
            return Poll::Ready(Err(Stop::Break(value)));
        }
        Poll::Ready(Ok(true))
    }

    /// Calls `on_event` with the messages of a request. What comes after a pause, or after the bytes of one turn, waits
    /// again.
    fn read<B>(
        &self,
        mut post: Post,
        on_event: &mut impl FnMut(Event<'_>) -> ControlFlow<B, ReadControl>,
    ) -> Result<(), Stop<B>> {
        let mut taken_in = self.taken_in();
        let end_of_turn = post.lines.len().saturating_sub(TURN_BYTES);
        while !post.lines.is_empty() {
            let unread = post.lines.clone();
            let end = post.lines.iter().position(|byte| *byte == b'\n');
            let line = post.lines.split_to(end.unwrap_or(post.lines.len()));
            if end.is_some() {
                post.lines.advance(1);
            }
            let is_message = !line.trim_ascii().is_empty();
            let number = post.before + u64::from(is_message);
            let is_new = is_message && number > taken_in;
            let flow = match is_new {
                true => self.take_in(&line, on_event).inspect_err(|_| {
                    self.state.lock().has_refused = true;
                })?,
                // What is sent again costs as much as a fragment of a message.
                false => on_event(Event::Fragment),
            };
            let control = match flow {
                ControlFlow::Continue(control) => control,
                // It was not carried out: it is read again with the next connection.
                ControlFlow::Break(value) => {
                    post.lines = unread;
                    self.state.lock().waiting.push(post);
                    return Err(Stop::Break(value));
                }
            };
            post.before = number;
            if is_new {
                taken_in = number;
                self.state.lock().taken_in = taken_in;
            }
            let is_turn_over = control == ReadControl::Pause || post.lines.len() < end_of_turn;
            if is_turn_over && !post.lines.is_empty() {
                self.state.lock().waiting.push(post);
                return Ok(());
            }
        }
        // The client may have given up.
        let _ = post.answer.send(taken_in);
        Ok(())
    }

    /// Calls `on_event` with the message of a line.
    fn take_in<B>(
        &self,
        line: &[u8],
        on_event: &mut impl FnMut(Event<'_>) -> ControlFlow<B, ReadControl>,
    ) -> Result<ControlFlow<B, ReadControl>, Stop<B>> {
        let text = str::from_utf8(line).map_err(|_| Stop::Violation(Violation::Utf8))?;
        let bytes = bytes_from_json(text.trim_ascii());
        let length = bytes.as_ref().map_or(line.len(), Vec::len);
        if length > self.max_message_bytes {
            return Err(Stop::Violation(Violation::TooLong));
        }
        Ok(match bytes {
            Some(bytes) => on_event(Event::Binary(&bytes)),
            None => on_event(Event::Text(text)),
        })
    }
}

impl State {
    /// Takes the request out whose messages are next, if it has come.
    fn next(&mut self) -> Option<Post> {
        let waiting = self.waiting.iter().enumerate();
        let first = waiting.min_by_key(|(_, post)| post.before);
        let (index, _) = first.filter(|(_, post)| post.before <= self.taken_in)?;
        Some(self.waiting.swap_remove(index))
    }
}

#[cfg(test)]
mod tests {
    use std::iter;

    use super::*;

    const MOST: usize = 8;

    /// Takes in what waits, with a pause after each of the first `pauses` messages; returns the messages, or why
    /// nothing more can be read.
    fn take_in(inlet: &Inlet, mut pauses: usize) -> Result<Vec<String>, Stop<String>> {
        let mut taken = Vec::new();
        let mut cx = Context::from_waker(Waker::noop());
        loop {
            let read = inlet.poll_read(&mut cx, |event| {
                match event {
                    Event::Fragment => {}
                    Event::Text(text) => taken.push(text.to_owned()),
                    Event::Binary(bytes) => taken.push(format!("{bytes:?}")),
                    Event::Pong(count) => {
                        taken.push(format!("got {}", String::from_utf8_lossy(count)))
                    }
                    Event::Close(_) => return ControlFlow::Break("left".to_owned()),
                    other => panic!("{other:?}"),
                }
                pauses = pauses.saturating_sub(1);
                ControlFlow::Continue(match pauses {
                    0 => ReadControl::Continue,
                    _ => ReadControl::Pause,
                })
            });
            match read {
                Poll::Ready(read) => _ = read?,
                Poll::Pending => return Ok(taken),
            }
        }
    }

    fn post(inlet: &Inlet, before: u64, lines: &'static str) -> oneshot::Receiver<u64> {
        match inlet.post(before, None, Bytes::from_static(lines.as_bytes())) {
            Posted::Waits(answer) => answer,
            Posted::Busy | Posted::Retired => panic!("it does not wait"),
        }
    }

    #[test]
    fn each_message_is_taken_in_once_and_in_order() {
        let inlet = Inlet::new(MOST, 5);
        let mut later = post(&inlet, 7, "c\nd");
        let mut again = post(&inlet, 4, "x\na\r\n\n b \n");
        assert!(
            take_in(&inlet, 0)
                .unwrap()
                .iter()
                .eq(["a\r", " b ", "c", "d"])
        );
        assert_eq!((again.try_recv(), later.try_recv()), (Ok(7), Ok(9)));
        let mut known = post(&inlet, 0, "a\nb");
        assert!(take_in(&inlet, 0).unwrap().is_empty());
        assert_eq!(known.try_recv(), Ok(9));
        assert_eq!(inlet.taken_in(), 9);
    }

    #[test]
    fn what_follows_a_pause_is_taken_in_after_it() {
        let inlet = Inlet::new(MOST, 0);
        let mut answer = post(&inlet, 0, "a\nb\nc");
        let mut first = Vec::new();
        let mut cx = Context::from_waker(Waker::noop());
        let read = inlet.poll_read(&mut cx, |event| {
            first.push(matches!(event, Event::Text("a")));
            ControlFlow::<(), _>::Continue(ReadControl::Pause)
        });
        assert!(read.is_ready());
        assert_eq!(first, [true]);
        assert!(answer.try_recv().is_err());
        assert_eq!(inlet.taken_in(), 1);
        assert!(take_in(&inlet, 9).unwrap().iter().eq(["b", "c"]));
        assert_eq!(answer.try_recv(), Ok(3));
    }

    #[test]
    fn a_message_that_is_not_carried_out_is_not_taken_in() {
        let inlet = Inlet::new(MOST, 0);
        let mut answer = post(&inlet, 0, "a\nb\nc");
        let mut cx = Context::from_waker(Waker::noop());
        let read = inlet.poll_read(&mut cx, |event| match event {
            Event::Text("a") => ControlFlow::Continue(ReadControl::Continue),
            _ => ControlFlow::Break(()),
        });
        assert!(matches!(read, Poll::Ready(Err(Stop::Break(())))));
        assert_eq!(inlet.taken_in(), 1);
        // The session goes on with another connection.
        assert!(take_in(&inlet, 0).unwrap().iter().eq(["b", "c"]));
        assert_eq!(answer.try_recv(), Ok(3));
    }

    #[test]
    fn a_long_request_is_read_in_turns() {
        let inlet = Inlet::new(MOST, 0);
        let lines = "1234567\n".repeat(TURN_BYTES / 4);
        let Posted::Waits(mut answer) = inlet.post(0, None, lines.into()) else {
            panic!("it does not wait")
        };
        let (mut taken, mut turns) = (0, 0);
        let mut cx = Context::from_waker(Waker::noop());
        while let Poll::Ready(Ok(true)) = inlet.poll_read(&mut cx, |_| {
            taken += 1;
            ControlFlow::<(), _>::Continue(ReadControl::Continue)
        }) {
            turns += 1;
        }
        assert_eq!((taken, turns), (TURN_BYTES / 4, 2));
        assert_eq!(answer.try_recv(), Ok(taken as u64));
    }

    #[test]
    fn a_request_whose_client_has_given_up_is_forgotten() {
        let inlet = Inlet::new(MOST, 0);
        drop(post(&inlet, 0, "a"));
        let _waiting = post(&inlet, 1, "b");
        assert!(take_in(&inlet, 0).unwrap().is_empty());
    }

    #[test]
    fn requests_that_wait_for_others_keep_these_not_out() {
        let inlet = Inlet::new(MOST, 0);
        let waiting: Vec<_> = iter::repeat_with(|| post(&inlet, 1, "b"))
            .take(MAX_WAITING)
            .collect();
        let empty = || Bytes::new();
        assert!(matches!(inlet.post(1, None, empty()), Posted::Busy));
        let mut first = post(&inlet, 0, "a");
        assert!(take_in(&inlet, 0).unwrap().iter().eq(["a", "b"]));
        assert_eq!(first.try_recv(), Ok(1));
        for mut answer in waiting {
            assert_eq!(answer.try_recv(), Ok(2));
        }
        inlet.retire();
        assert!(matches!(inlet.post(2, None, empty()), Posted::Retired));
        assert!(!inlet.leave());
    }

    #[test]
    fn wrong_messages_end_the_reading_and_limits_are_those_of_frames() {
        let exact = Inlet::new(MOST, 0);
        let _answer = post(&exact, 0, "12345678\n\"AAECAwQFBgc=\"");
        let taken = take_in(&exact, 0).unwrap();
        assert!(taken.iter().eq(["12345678", "[0, 1, 2, 3, 4, 5, 6, 7]"]));
        for (line, is_long) in [
            ("123456789", true),
            ("\"AAECAwQFBgcI\"", true),
            ("\u{e9}", false),
        ] {
            let inlet = Inlet::new(MOST, 0);
            let line = match is_long {
                true => Bytes::from_static(line.as_bytes()),
                false => Bytes::from_static(b"\xe9"),
            };
            let Posted::Waits(mut answer) = inlet.post(0, None, line) else {
                panic!("it does not wait")
            };
            match take_in(&inlet, 0) {
                Err(Stop::Violation(Violation::TooLong)) => assert!(is_long),
                Err(Stop::Violation(Violation::Utf8)) => assert!(!is_long),
                other => panic!("{other:?}"),
            }
            assert!(answer.try_recv().is_err());
        }
    }

    #[test]
    fn a_client_says_what_it_has_got_and_leaves_after_what_it_has_said() {
        let inlet = Inlet::new(MOST, 0);
        let line = Bytes::from_static(b"a");
        let Posted::Waits(mut answer) = inlet.post(0, Some(3), line) else {
            panic!("it does not wait")
        };
        assert!(take_in(&inlet, 0).unwrap().iter().eq(["got 3", "a"]));
        assert_eq!(answer.try_recv(), Ok(1));
        let mut answer = post(&inlet, 1, "b");
        assert!(inlet.leave());
        assert!(matches!(take_in(&inlet, 0), Err(Stop::Break(left)) if left == "left"));
        assert_eq!(answer.try_recv(), Ok(2));
    }
}
