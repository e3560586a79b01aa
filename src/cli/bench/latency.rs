//! The third phase: the latency at a given rate. The time of each message is fixed beforehand, and its latency counts
//! from then: a stall delays what would have been sent meanwhile, and counts for all of that.

use std::time::Duration;

use tokio::{
    task::yield_now,
    time::{Instant, sleep_until},
};

use super::{
    flow::Flow,
    limits::reason,
    report::{Errors, Latencies, MISSING, Phase, Rates, digits},
    swarm::News,
};

/// The number of the first message. Messages of the phase before, which may be late, have lower ones.
const FIRST: u64 = 1 << 40;

/// How long messages may be on their way at the end.
const ARRIVAL_TIMEOUT: Duration = Duration::from_secs(5);

/// Timers have steps of a millisecond, and may fire a step late.
const TIMER_STEPS: Duration = Duration::from_millis(2);

/// How many messages are sent before sessions get to write.
const BURST: u64 = 64;

/// When sending is so late, the rate is too high: what is measured then is this program.
const MAX_LATE: Duration = Duration::from_secs(1);

/// What becomes of the messages. The number of each counts from zero.
struct Measurement {
    began: Instant,
    rate: u64,
    has_arrived: Vec<bool>,
    latencies: Latencies,
    errors: Errors,
    last: Instant,
}

impl Measurement {
    fn due(&self, number: u64) -> Instant {
        self.began + Duration::from_secs_f64(number as f64 / self.rate as f64)
    }

    fn heard(&mut self, news: News) {
        match news {
            News::Arrived(number, arrived) => {
                // Messages of the phase before may be late.
                let number = number.wrapping_sub(FIRST);
                let place = usize::try_from(number).ok();
                let place = place.and_then(|it| self.has_arrived.get_mut(it));
                if place.is_some_and(|it| !std::mem::replace(it, true)) {
                    self.latencies.add(arrived - self.due(number));
                    self.last = arrived;
                }
            }
            News::Error(code) => self.errors.add(code, 1),
            News::Lost(why) => self.errors.add(reason(&why), 1),
        }
    }
}

/// Sends so many messages a second for this time.
pub(super) async fn measure(flow: &mut Flow, rate: u64, time: Duration) -> Phase {
    let began = Instant::now();
    let count = rate * time.as_secs();
    let mut it = Measurement {
        began,
        rate,
        has_arrived: vec![false; count as usize],
        latencies: Latencies::new(),
        errors: Errors::default(),
        last: began,
    };
    let mut deadline = began + time + ARRIVAL_TIMEOUT;
    flow.reset_written();
    // How many messages are awaited at last, and how many were queued.
    let (mut total, mut queued) = (count, 0);
    let mut stopped = None;
    while it.latencies.count() < total && !flow.is_lost() {
        let now = Instant::now();
        if now >= deadline {
            break;
        }
        // What is due is sent, late or not.
        for _ in 0..BURST {
            if queued == total || it.due(queued) > now {
                break;
            }
            let is_late = now - it.due(queued) > MAX_LATE;
            if is_late || !flow.send(FIRST + queued) {
                stopped = Some(match is_late {
                    true => "bench itself is a second late",
                    false => "the queue of a session is full",
                });
                total = queued;
                deadline = now + ARRIVAL_TIMEOUT;
                break;
            }
            queued += 1;
        }
        while let Some(news) = flow.try_next() {
            it.heard(news);
        }
        let wait = match queued < total {
            true => it.due(queued),
            false => deadline,
        };
        tokio::select! {
            biased;
            news = flow.next() => match news {
                Some(news) => it.heard(news),
                None => break,
            },
            () = wait_until(wait) => {}
        }
    }
    if flow.is_lost() {
        stopped = Some("all sessions are lost");
    }
    let arrived = it.latencies.count();
    let missing = total - arrived;
    let longest = it.latencies.add_missing(missing, ARRIVAL_TIMEOUT);
    it.errors.add(MISSING, missing);
    let written = flow.written();
    // The last message, too, has its part of the time.
    let sending = written.last.map(|last| last - began);
    let sent = sending.map_or(0.0, |it| {
        written.count as f64 / (it.as_secs_f64() + 1.0 / rate as f64)
    });
    let mut text = format!(
        "{} messages were sent, {} a second of {rate}",
        written.count,
        digits(sent)
    );
    if let Some(stopped) = stopped {
        text = format!("{stopped}: {text}");
    }
    if missing > 0 {
        text += &format!("; {missing} are missing, and count as {longest:.0?} each");
    }
    let seconds = (it.last - began).as_secs_f64();
    Phase {
        count: arrived,
        missing,
        per_second: match arrived {
            0 => 0.0,
            _ => arrived as f64 / seconds,
        },
        rates: Some(Rates { asked: rate, sent }),
        milliseconds: it.latencies.summary(),
        errors: it.errors,
        ..Phase::new("latency", flow.with_pace(text))
    }
}

/// Waits until this time, to the microsecond: a timer alone would add up to a millisecond to each latency. Others run
/// at least once.
async fn wait_until(time: Instant) {
    let early = time.checked_sub(TIMER_STEPS);
    if let Some(early) = early.filter(|early| *early > Instant::now()) {
        sleep_until(early).await;
    }
    loop {
        yield_now().await;
        if Instant::now() >= time {
            break;
        }
    }
}
