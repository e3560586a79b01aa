//! Pings, and the sessions that are given up for want of a pong. No I/O and no clock: time is counted in
//! ticks of one second.
//!
//! Sessions are spread over as many slots as the ping period has seconds. Each tick pings the sessions of one
//! slot, and checks the pongs of another. Thus one ticker pings every session once a period, a few at a
//! time.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use parking_lot::Mutex;
use slab::Slab;
use tokio::time::Instant;

use crate::{
    outbox::{FlushSet, Sender},
    protocol::{Close, CloseCode},
    websocket::Frame,
};

/// All sessions, by the second of the ping period in which they are pinged.
pub(crate) struct Heartbeat {
    /// How long a session may take to answer a ping, in seconds.
    pong_seconds: u64,
    slots: Box<[Mutex<Slot>]>,
    /// How many sessions were ever registered.
    registered: AtomicUsize,
}

/// Sessions that are pinged in the same second.
#[derive(Default)]
struct Slot {
    /// By the keys of their guards. A session that has moved to another node and come back is registered twice
    /// for a while, so its id is no key.
    pulses: Slab<Pulse>,
    /// When they were last pinged.
    pinged: Option<Instant>,
}

struct Pulse {
    sender: Sender,
    state: PulseState,
}

/// What a session owes the server.
enum PulseState {
    /// Nothing: it has answered the last ping.
    Answered,
    /// A pong. The tick is that of the first ping without an answer; a server runs for less than 2^32 seconds.
    Pinged(u32),
    /// Nothing: the server does not read from the session, so it would not see a pong.
    Paused,
}

/// Keeps a session among those that are pinged. Dropping it ends that.
pub(crate) struct HeartbeatGuard {
    heartbeat: Arc<Heartbeat>,
    /// The number of its slot, and its key there.
    slot: usize,
    key: usize,
}

impl Heartbeat {
    /// Pings each session every `ping_seconds`, at least 1, and gives up a session that has not answered
    /// within `pong_seconds`.
    pub(crate) fn new(ping_seconds: u64, pong_seconds: u64) -> Heartbeat {
        let slots = (0..ping_seconds).map(|_| Mutex::default()).collect();
        Heartbeat {
            pong_seconds,
            slots,
            registered: AtomicUsize::new(0),
        }
    }

    /// Pings the session of `sender` from now on.
    pub(crate) fn register(self: &Arc<Heartbeat>, sender: Sender) -> HeartbeatGuard {
        let slot = self.registered.fetch_add(1, Relaxed) % self.slots.len();
        let key = self.slots[slot].lock().pulses.insert(Pulse {
            sender,
            state: PulseState::Answered,
        });
        HeartbeatGuard {
            heartbeat: self.clone(),
            slot,
            key,
        }
    }

    /// Pings and gives up the sessions that are due in second `now`. Must be called once for each second that
    /// the server runs.
    pub(crate) fn tick(&self, now: u64) {
        if let Some(due) = now.checked_sub(self.pong_seconds) {
            for (_, pulse) in &self.slot_of(due).lock().pulses {
                if matches!(pulse.state, PulseState::Pinged(pinged) if u64::from(pinged) <= due) {
                    let reason = format!("no pong within {} s", self.pong_seconds);
                    let close = Close::new(CloseCode::GoingAway, reason);
                    pulse.sender.give_up(close);
                }
            }
        }
        let ping = Frame::ping(b"");
        let mut flush_set = FlushSet::default();
        let mut slot = self.slot_of(now).lock();
        slot.pinged = Some(Instant::now());
        for (_, pulse) in &mut slot.pulses {
            let is_pinged = pulse.sender.ping(&ping, &mut flush_set);
            if is_pinged && let PulseState::Answered = pulse.state {
                pulse.state = PulseState::Pinged(now as u32);
            }
        }
    }

    /// The outboxes of all sessions of this node.
    pub(crate) fn senders(&self) -> Vec<Sender> {
        let mut senders = Vec::new();
        for slot in &self.slots {
            let slot = slot.lock();
            senders.extend(slot.pulses.iter().map(|(_, pulse)| pulse.sender.clone()));
        }
        senders
    }

    /// How many sessions there are on this node.
    pub(crate) fn len(&self) -> usize {
        self.slots.iter().map(|slot| slot.lock().pulses.len()).sum()
    }

    /// The slot of a second.
    fn slot_of(&self, second: u64) -> &Mutex<Slot> {
        &self.slots[second as usize % self.slots.len()]
    }
}

impl HeartbeatGuard {
    /// Notes that the session has answered, or has another connection. Returns the time since the ping, if a
    /// pong was due.
    pub(crate) fn pong(&self) -> Option<Duration> {
        let mut slot = self.heartbeat.slots[self.slot].lock();
        let pulse = slot.pulses.get_mut(self.key)?;
        let PulseState::Pinged(_) = pulse.state else {
            return None;
        };
        pulse.state = PulseState::Answered;
        slot.pinged.map(|time| time.elapsed())
    }

    /// Notes that the server pauses or resumes reading from the session. The session's pongs may be behind data
    /// that was not read yet, so the session owes none until the next ping.
    pub(crate) fn pause(&self, paused: bool) {
        let mut slot = self.heartbeat.slots[self.slot].lock();
        if let Some(pulse) = slot.pulses.get_mut(self.key) {
            pulse.state = match paused {
                true => PulseState::Paused,
                false => PulseState::Answered,
            };
        }
    }
}

impl Drop for HeartbeatGuard {
    fn drop(&mut self) {
        self.heartbeat.slots[self.slot]
            .lock()
            .pulses
            .remove(self.key);
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

    /// A session, and the client's end of its connection.
    struct Session {
        beat: HeartbeatGuard,
        outbox: Outbox,
        stream: DuplexStream,
    }

    impl Session {
        fn register(heartbeat: &Arc<Heartbeat>) -> Session {
            let (sender, outbox, stream) = outbox_to(100_000, 1000);
            Session {
                beat: heartbeat.register(sender),
                outbox,
                stream,
            }
        }

        /// The number of pings since the last call, or the code with which the session is closed.
        fn pings(&mut self) -> Result<usize, CloseCode> {
            match flush(&self.outbox) {
                Poll::Ready(Err(code)) => Err(code),
                _ => Ok(read(&mut self.stream) / Frame::ping(b"").bytes().len()),
            }
        }
    }

    #[test]
    fn every_session_is_pinged_once_a_period() {
        let heartbeat = Arc::new(Heartbeat::new(20, 10));
        let mut sessions: Vec<_> = (0..100).map(|_| Session::register(&heartbeat)).collect();
        for now in 7..27 {
            heartbeat.tick(now);
            sessions.iter().for_each(|session| _ = session.beat.pong());
        }
        assert!(sessions.iter_mut().all(|session| session.pings() == Ok(1)));
    }

    #[test]
    fn only_a_session_without_pongs_is_given_up_and_not_before_its_time() {
        // The pong time may be shorter than the period, as long, or longer.
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
    fn a_paused_session_is_not_given_up_before_it_is_read_from_again() {
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
    fn a_session_that_has_come_back_is_pinged_when_its_first_stay_ends() {
        let heartbeat = Arc::new(Heartbeat::new(1, 10));
        let (sender, outbox, mut stream) = outbox_to(100_000, 1000);
        let [first, second] = [(); 2].map(|()| heartbeat.register(sender.clone()));
        drop(first);
        heartbeat.tick(1);
        assert!(flush(&outbox).is_ready() && read(&mut stream) > 0);
        assert!(second.pong().is_some());
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
