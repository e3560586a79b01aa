//! How fast a session is read from.

use std::{
    future::poll_fn,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::time::{Instant, sleep_until, timeout_at};

use crate::{
    access::Rates,
    cluster::Quota,
    config::{Limit, Limits},
    history::History,
    rooms::JoinGuard,
};

/// How often the connection of a session that is not read from is checked.
const CHECK_EVERY: Duration = Duration::from_secs(1);

/// The time after which a message is stored, or cannot be: a little longer than the history tries.
const STORED_AFTER: Duration = Duration::from_secs(15);

/// How many bytes of a session may wait to be stored in the history of its room. A flood fills only its own share of
/// what waits.
const MAX_UNSTORED: usize = 256 << 10;

/// The rates of a session, its quota of the outbound queue, and the pause that follows when it exceeds one.
/// Most sessions are idle and have no pace.
#[derive(Default)]
pub(super) struct Pace {
    rates: Option<Rates>,
    /// What the session has in the queue to other nodes. Present in a cluster, once the session has
    /// sent a message.
    quota: Option<Arc<Quota>>,
    /// When the session said its last message that is stored in the history of its room.
    kept_at: Option<Instant>,
    /// At most so many bytes of the session wait to be stored in the history of its room.
    unstored: usize,
    /// How many messages had come to the history when the session had said the first half of these bytes.
    last_half: u64,
    /// Present while reading is paused. Completes when the limits must be checked again, with a number of bytes to
    /// account for.
    pause: Option<Pin<Box<dyn Future<Output = usize> + Send>>>,
}

impl Pace {
    /// The pace of a session that owes to its rates already: the time to pay the messages and the bytes, in
    /// milliseconds. `None` if there are no rates.
    pub(super) fn new(limits: &Limits, owed: [u64; 2]) -> Option<Box<Pace>> {
        Rates::new(limits, owed).map(|rates| {
            Box::new(Pace {
                rates: Some(rates),
                ..Pace::default()
            })
        })
    }

    /// What the session owes to its rates.
    pub(super) fn owed(&self) -> [u64; 2] {
        self.rates.as_ref().map(Rates::owed).unwrap_or_default()
    }

    /// The session's quota of the outbound queue.
    pub(super) fn quota(&self) -> Option<&Arc<Quota>> {
        self.quota.as_ref()
    }

    /// Gives the session a quota, if it has none.
    pub(super) fn ensure_quota(&mut self) {
        self.quota.get_or_insert_default();
    }

    /// Whether the session is not read from.
    pub(super) fn is_paused(&self) -> bool {
        self.pause.is_some()
    }

    /// Accounts for a frame that has come and for the bytes that it causes to be sent. Returns the rate that
    /// is exceeded, and until when.
    pub(super) fn spend(&mut self, bytes: usize) -> Option<(Limit, Instant)> {
        let rates = self.rates.as_mut()?;
        rates.spend(bytes);
        rates.excess()
    }

    /// Begins a pause if a rate is exceeded or other nodes accept no more for the moment: the client's TCP
    /// window then tells the client. Returns whether the session is paused.
    pub(super) fn pause(
        &mut self,
        excess: Option<(Limit, Instant)>,
        join_guard: &JoinGuard,
    ) -> bool {
        if self.is_paused() {
            return true;
        }
        let quota = self.quota.as_ref();
        let outbound = quota.and_then(|quota| join_guard.backpressure(quota));
        if excess.is_none() && outbound.is_none() {
            return false;
        }
        self.pause = Some(Box::pin(async move {
            let check_at = Instant::now() + CHECK_EVERY;
            if let Some((_, until)) = excess {
                sleep_until(until.min(check_at)).await;
            }
            if let Some(outbound) = outbound {
                let _ = timeout_at(check_at, outbound).await;
            }
            0
        }));
        true
    }

    /// Notes that a message waits to be stored. Pauses until all are, if many of the session wait.
    pub(super) fn note_kept(&mut self, bytes: usize, history: &Arc<History>) {
        self.unstored += bytes;
        self.kept_at = Some(Instant::now());
        if self.unstored <= MAX_UNSTORED / 2 || self.is_paused() {
            return;
        }
        // The last half may still wait to be stored if the half before does not.
        let is_stored = history.done() >= self.last_half;
        self.unstored = 0;
        self.last_half = history.appended();
        if !is_stored {
            let history = history.clone();
            self.wait_for(Box::pin(async move {
                // A history that is closed stores nothing more, and the session is told so.
                let _ = history.flush().await;
                0
            }));
        }
    }

    /// Pauses until an answer has been sent, which returns its length in bytes.
    pub(super) fn wait_for(&mut self, answer: Pin<Box<dyn Future<Output = usize> + Send>>) {
        self.pause = Some(answer);
    }

    /// Whether messages of the session may still wait to be stored.
    pub(super) fn awaits_receipts(&self) -> bool {
        self.kept_at.is_some_and(|at| at.elapsed() < STORED_AFTER)
    }

    /// Waits for the end of the pause, if there is one.
    pub(super) async fn end_pause(&mut self) {
        if self.is_paused() {
            poll_fn(|cx| self.poll_pause(cx)).await;
        }
    }

    /// Waits for the end of the pause. Returns the rate that is still exceeded, and until when.
    pub(super) fn poll_pause(&mut self, cx: &mut Context<'_>) -> Poll<Option<(Limit, Instant)>> {
        if let Some(pause) = &mut self.pause {
            let bytes = ready!(pause.as_mut().poll(cx));
            self.pause = None;
            if let Some(rates) = self.rates.as_mut().filter(|_| bytes > 0) {
                rates.spend(bytes);
            }
        }
        Poll::Ready(self.rates.as_ref().and_then(Rates::excess))
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use tokio_util::task::TaskTracker;

    use super::*;
    use crate::{
        config::HistoryOptions,
        history::Said,
        metrics::Metrics,
        outbox::detached_outbox,
        protocol::{RoomName, SessionId},
        rooms::{Rooms, SessionInfo},
        websocket::Frame,
    };

    #[tokio::test(start_paused = true)]
    async fn a_session_over_its_rate_is_checked_every_second_until_it_may_be_read_from() {
        let limits = Limits {
            messages_per_second: NonZeroU32::new(10),
            ..Limits::default()
        };
        let rooms = Arc::new(Rooms::new(&limits, None, None, TaskTracker::new()));
        let reservation = rooms.reserve(&RoomName::default_room()).unwrap();
        let (sender, _outbox) = detached_outbox(1000, 0, Vec::new());
        let info = SessionInfo::new(None, None);
        let join_guard = reservation.join(SessionId::random(), sender, info);
        let mut pace = Pace::new(&limits, [0, 0]).unwrap();
        assert!(!pace.pause(None, &join_guard) && !pace.is_paused());

        let mut excess = None;
        for _ in 0..45 {
            excess = pace.spend(1);
        }
        let start = Instant::now();
        let mut pauses = Vec::new();
        while pace.pause(excess, &join_guard) {
            assert!(pace.is_paused() && pauses.len() < 10);
            excess = poll_fn(|cx| pace.poll_pause(cx)).await;
            assert!(!pace.is_paused());
            pauses.push(start.elapsed().as_millis());
        }
        assert_eq!(pauses[..3], [1000, 2000, 2500]);
    }

    #[test]
    fn a_session_keeps_the_quota_that_it_was_given_first() {
        let mut pace = Pace::default();
        assert!(pace.quota().is_none());
        pace.ensure_quota();
        let quota = pace.quota().unwrap().clone();
        pace.ensure_quota();
        assert!(Arc::ptr_eq(pace.quota().unwrap(), &quota));
    }

    #[tokio::test]
    async fn a_session_with_much_to_store_is_read_from_again_once_it_is_stored() {
        let options = HistoryOptions {
            rooms: vec!["*".into()],
            ..HistoryOptions::default()
        };
        let metrics = Arc::new(Metrics::new(false, false, [], []));
        let history = History::open(&options, None, &metrics).unwrap().unwrap();
        let mut pace = Pace::default();
        let say = || {
            let frame = Frame::text(|buffer| buffer.extend_from_slice(b"1"));
            let said = Said::now(None, &frame);
            let room = RoomName::default_room();
            history.append(&room, None, said, None).unwrap();
        };
        const HALF: usize = MAX_UNSTORED / 2 + 1;
        // All that was said before is stored.
        for _ in 0..5 {
            say();
            pace.note_kept(HALF, &history);
            assert!(!pace.is_paused());
            history.flush().await.unwrap();
        }
        // The half before still waits.
        for _ in 0..2 {
            pace.last_half = u64::MAX;
            say();
            pace.note_kept(HALF - 1, &history);
            assert!(!pace.is_paused());
            pace.note_kept(1, &history);
            assert!(pace.is_paused());
            assert!(poll_fn(|cx| pace.poll_pause(cx)).await.is_none());
            assert!(!pace.is_paused());
        }
    }
}
