//! The third phase: the latency at a given rate. The time of each message is fixed beforehand, and its latency counts
//! from then: a stall delays what would have been sent meanwhile, and counts for all of that.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::{
    flow::Flow,
    limits::reason,
    report::{Errors, Latencies, Phase},
    swarm::News,
};

/// The number of the first message. Messages of the phase before, which may be late, have lower ones.
const FIRST: u64 = 1 << 40;

/// How long messages may be on their way at the end.
const ARRIVAL_TIMEOUT: Duration = Duration::from_secs(5);

/// Sends so many messages a second for this time.
pub(super) async fn measure(flow: &mut Flow, rate: u64, time: Duration) -> Phase {
    let began = Instant::now();
    let due = |number: u64| began + Duration::from_secs_f64(number as f64 / rate as f64);
    let count = rate * time.as_secs();
    let (mut latencies, mut errors) = (Latencies::new(), Errors::default());
    let mut has_arrived = vec![false; count as usize];
    let mut sent = 0;
    let mut last = began;
    let deadline = began + time + ARRIVAL_TIMEOUT;
    while latencies.count() < count {
        // What is due is sent, late or not.
        let wait = match sent < count {
            true => due(sent),
            false => deadline,
        };
        tokio::select! {
            biased;
            () = sleep_until(wait), if sent < count => {
                while sent < count && due(sent) <= Instant::now() {
                    flow.send(FIRST + sent);
                    sent += 1;
                }
            }
            () = sleep_until(deadline) => break,
            news = flow.news.recv() => match news {
                Some(News::Arrived(number, arrived)) => {
                    // Others may send messages of this type, too.
                    let number = number.wrapping_sub(FIRST);
                    let place = usize::try_from(number).ok().and_then(|it| has_arrived.get_mut(it));
                    if number < sent && place.is_some_and(|it| !std::mem::replace(it, true)) {
                        latencies.add(arrived - due(number));
                        last = arrived;
                    }
                }
                Some(News::Error(code)) => errors.add(code, 1),
                Some(News::Lost(why)) => errors.add(reason(&why), 1),
                None => break,
            },
        }
    }
    let arrived = latencies.count();
    errors.add("a message has not arrived", count - arrived);
    let seconds = (last - began).as_secs_f64();
    Phase {
        name: "latency",
        count: arrived,
        per_second: if arrived == 0 {
            0.0
        } else {
            arrived as f64 / seconds
        },
        in_flight: None,
        milliseconds: latencies.summary(),
        errors,
        stopped: format!("{count} messages were sent, {rate} a second"),
    }
}
