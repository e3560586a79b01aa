//! The second phase: how many messages arrive in a second. Each message that arrives has the next one sent, and the
//! number of messages on their way doubles until that brings no more.

use std::{collections::HashMap, time::Duration};

use tokio::time::{Instant, timeout_at};

use super::{
    flow::Flow,
    limits::reason,
    report::{Errors, Latencies, Phase},
    swarm::News,
};

/// The share of the phase that each number of messages in flight has.
const STEPS: u32 = 10;

/// The most messages in flight.
const MAX_IN_FLIGHT: usize = 4096;

/// A step that brings less than this times the rate before is the last one.
const GROWTH: f64 = 1.05;

/// How long messages may be on their way when a step is over.
const ARRIVAL_TIMEOUT: Duration = Duration::from_secs(5);

/// What was measured with one number of messages in flight.
struct Step {
    in_flight: usize,
    per_second: f64,
    latencies: Latencies,
}

/// Measures for at most this time, and until 99 % of the latencies pass the limit.
pub(super) async fn measure(flow: &mut Flow, time: Duration, limit: Duration) -> Phase {
    let end = Instant::now() + time;
    let mut errors = Errors::default();
    let mut best: Option<Step> = None;
    let mut count = 0;
    let mut in_flight = 1;
    let mut next = 0;
    let stopped = loop {
        let until = end.min(Instant::now() + time / STEPS);
        let (step, is_whole) = run(flow, in_flight, until, &mut next, &mut errors).await;
        count += step.latencies.count();
        let latency = step.latencies.quantile(0.99);
        let before = best.as_ref().map_or(0.0, |best| best.per_second);
        let has_grown = step.per_second > before * GROWTH;
        let is_slow = latency > limit;
        if step.per_second > before && (!is_slow || best.is_none()) {
            best = Some(step);
        }
        match () {
            () if !is_whole => break "messages were lost".to_owned(),
            () if is_slow => {
                break format!("with {in_flight} in flight, p99 is {latency:.0?}: --limit-ms");
            }
            () if !has_grown => break format!("{in_flight} in flight bring no more"),
            () if Instant::now() >= end => break format!("the time is over: {time:.0?}"),
            () if in_flight >= MAX_IN_FLIGHT => break format!("{in_flight} are in flight"),
            () => in_flight *= 2,
        }
    };
    Phase {
        name: "messages",
        count,
        per_second: best.as_ref().map_or(0.0, |best| best.per_second),
        in_flight: best.as_ref().map(|best| best.in_flight),
        milliseconds: best.and_then(|best| best.latencies.summary()),
        errors,
        stopped,
    }
}

/// Keeps so many messages in flight. Returns also whether all have arrived.
async fn run(
    flow: &mut Flow,
    in_flight: usize,
    until: Instant,
    next: &mut u64,
    errors: &mut Errors,
) -> (Step, bool) {
    let began = Instant::now();
    let mut latencies = Latencies::new();
    let mut sent = HashMap::new();
    let mut send = |flow: &Flow, sent: &mut HashMap<u64, Instant>| {
        sent.insert(*next, Instant::now());
        flow.send(*next);
        *next += 1;
    };
    for _ in 0..in_flight {
        send(flow, &mut sent);
    }
    let mut last = began;
    while !sent.is_empty() {
        let deadline = last.max(until) + ARRIVAL_TIMEOUT;
        let Ok(Some(news)) = timeout_at(deadline, flow.news.recv()).await else {
            break;
        };
        match news {
            News::Arrived(number, arrived) => {
                // Others may send messages of this type, too.
                let Some(time) = sent.remove(&number) else {
                    continue;
                };
                latencies.add(arrived - time);
                last = arrived;
                if arrived < until {
                    send(flow, &mut sent);
                }
            }
            News::Error(code) => errors.add(code, 1),
            News::Lost(why) => errors.add(reason(&why), 1),
        }
    }
    errors.add("a message has not arrived", sent.len() as u64);
    let seconds = (last - began).as_secs_f64();
    let per_second = match latencies.count() {
        0 => 0.0,
        count => count as f64 / seconds,
    };
    let step = Step {
        in_flight,
        per_second,
        latencies,
    };
    (step, sent.is_empty())
}
