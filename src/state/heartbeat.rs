//! Who is pinged when, and who is given up when. No I/O, and no clock decides anything: time is
//! counted in ticks of a second.
//!
//! Sessions are spread over as many slots as a ping period has seconds; each tick pings one slot
//! and looks after another. So all are pinged once a period, a few at a time, by one ticker.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use nohash_hasher::IntMap;
use parking_lot::Mutex;

use crate::{
    outbox::{FlushSet, Sender},
    protocol::{Close, CloseCode, SessionId},
    websocket::Frame,
};

/// All sessions, by the second of the ping period that is theirs.
pub(crate) struct Heartbeat {
    /// The number of seconds a session has to answer.
    pong_seconds: u64,
    slots: Box<[Mutex<Slot>]>,
}

/// Sessions that are pinged together.
#[derive(Default)]
struct Slot {
    pulses: IntMap<SessionId, Pulse>,
    /// When they were pinged last.
    pinged: Option<Instant>,
}

struct Pulse {
    sender: Sender,
    state: PulseState,
}

/// What a session owes.
enum PulseState {
    /// Nothing: it has answered.
    Answered,
    /// The answer to a ping; this is the tick of the first that is not answered.
    Pinged(u64),
    /// Nothing: it is not read from, so that no answer could be seen.
    Paused,
}

/// A session's place among those that are pinged; dropping it gives it back.
pub(crate) struct HeartbeatGuard {
    heartbeat: Arc<Heartbeat>,
    id: SessionId,
}

impl Heartbeat {
    /// Pings every `ping_seconds` (at least 1), and gives up a session that has not answered after
    /// `pong_seconds`.
    pub(crate) fn new(ping_seconds: u64, pong_seconds: u64) -> Heartbeat {
        let slots = (0..ping_seconds).map(|_| Mutex::default()).collect();
        Heartbeat {
            pong_seconds,
            slots,
        }
    }

    /// Pings the session behind `sender` from now on.
    pub(crate) fn register(self: &Arc<Heartbeat>, id: SessionId, sender: Sender) -> HeartbeatGuard {
        self.slot(id).lock().pulses.insert(
            id,
            Pulse {
                sender,
                state: PulseState::Answered,
            },
        );
        HeartbeatGuard {
            heartbeat: self.clone(),
            id,
        }
    }

    /// Does what is due at second `now`, to be called once for each second that the server runs.
    pub(crate) fn tick(&self, now: u64) {
        if let Some(due) = now.checked_sub(self.pong_seconds) {
            for pulse in self.slot_at(due).lock().pulses.values() {
                if matches!(pulse.state, PulseState::Pinged(pinged) if pinged <= due) {
                    let reason = format!("no pong within {} s", self.pong_seconds);
                    let close = Close::new(CloseCode::GoingAway, reason);
                    pulse.sender.give_up(close);
                }
            }
        }
        let ping = Frame::ping(b"");
        let mut flush_set = FlushSet::default();
        let mut slot = self.slot_at(now).lock();
        slot.pinged = Some(Instant::now());
        for pulse in slot.pulses.values_mut() {
            let is_pinged = pulse.sender.ping(&ping, &mut flush_set);
            if is_pinged && let PulseState::Answered = pulse.state {
                pulse.state = PulseState::Pinged(now);
            }
        }
    }

    fn slot(&self, id: SessionId) -> &Mutex<Slot> {
        &self.slots[(id.bits() % self.slots.len() as u128) as usize]
    }

    fn slot_at(&self, second: u64) -> &Mutex<Slot> {
        &self.slots[(second % self.slots.len() as u64) as usize]
    }
}

impl HeartbeatGuard {
    /// The session has answered, or has another connection now. Returns how long ago it was pinged,
    /// if that was not answered yet.
    pub(crate) fn pong(&self) -> Option<Duration> {
        let mut slot = self.heartbeat.slot(self.id).lock();
        let pulse = slot.pulses.get_mut(&self.id)?;
        let PulseState::Pinged(_) = pulse.state else {
            return None;
        };
        pulse.state = PulseState::Answered;
        slot.pinged.map(|time| time.elapsed())
    }

    /// The session is not read from, or it is again. Its answers may stand behind what is not read yet,
    /// so it owes none until it is pinged again.
    pub(crate) fn pause(&self, paused: bool) {
        let mut slot = self.heartbeat.slot(self.id).lock();
        if let Some(pulse) = slot.pulses.get_mut(&self.id) {
            pulse.state = match paused {
                true => PulseState::Paused,
                false => PulseState::Answered,
            };
        }
    }
}

impl Drop for HeartbeatGuard {
    fn drop(&mut self) {
        self.heartbeat.slot(self.id).lock().pulses.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use std::task::Poll;

    use tokio::io::DuplexStream;

    use super::*;
    use crate::outbox::{
        Outbox,
        tests::{flush, outbox_to, read},
    };

    /// Another session, as its client and its server see it.
    struct Session {
        beat: HeartbeatGuard,
        outbox: Outbox,
        stream: DuplexStream,
    }

    impl Session {
        fn register(heartbeat: &Arc<Heartbeat>) -> Session {
            let (sender, outbox, stream) = outbox_to(100_000, 1000);
            Session {
                beat: heartbeat.register(SessionId::random(), sender),
                outbox,
                stream,
            }
        }

        /// How many pings have come since it was asked last, or why the session is closed.
        fn pings(&mut self) -> Result<usize, CloseCode> {
            match flush(&self.outbox) {
                Poll::Ready(Err(code)) => Err(code),
                _ => Ok(read(&mut self.stream) / Frame::ping(b"").bytes().len()),
            }
        }
    }

    #[test]
    fn everyone_is_pinged_once_a_period() {
        let heartbeat = Arc::new(Heartbeat::new(20, 10));
        let mut sessions: Vec<_> = (0..100).map(|_| Session::register(&heartbeat)).collect();
        for now in 7..27 {
            heartbeat.tick(now);
            sessions.iter().for_each(|session| _ = session.beat.pong());
        }
        assert!(sessions.iter_mut().all(|session| session.pings() == Ok(1)));
    }

    #[test]
    fn only_who_does_not_answer_is_given_up_and_not_before_the_time() {
        // Pongs may take less than a period, as long, or longer.
        for (ping, pong) in [(20, 10), (10, 10), (5, 10), (1, 1), (1, 60), (7, 10)] {
            let heartbeat = Arc::new(Heartbeat::new(ping, pong));
            let mut silent = Session::register(&heartbeat);
            let mut alive = Session::register(&heartbeat);
            let mut pinged = None;
            for now in 0..200 {
                heartbeat.tick(now);
                alive.beat.pong();
                match silent.pings() {
                    Ok(pings) if pings > 0 => _ = pinged.get_or_insert(now),
                    Ok(_) => {}
                    Err(code) => {
                        assert_eq!(code, CloseCode::GoingAway);
                        assert_eq!(now - pinged.expect("pinged before it is given up"), pong);
                        break;
                    }
                }
                assert!(
                    now < ping + pong,
                    "given up by {now} with ping {ping}, pong {pong}"
                );
            }
            assert!(alive.pings().is_ok());
        }
    }

    #[test]
    fn who_is_not_read_from_is_not_given_up_before_it_is_again() {
        let heartbeat = Arc::new(Heartbeat::new(5, 2));
        let mut session = Session::register(&heartbeat);
        session.beat.pause(true);
        (0..100).for_each(|now| heartbeat.tick(now));
        assert_eq!(session.pings(), Ok(20));
        session.beat.pause(false);
        (100..108).for_each(|now| heartbeat.tick(now));
        assert_eq!(session.pings(), Err(CloseCode::GoingAway));
    }

    #[test]
    fn a_session_that_left_is_forgotten() {
        let heartbeat = Arc::new(Heartbeat::new(3, 3));
        drop(Session::register(&heartbeat));
        assert!(
            heartbeat
                .slots
                .iter()
                .all(|slot| slot.lock().pulses.is_empty())
        );
    }
}
