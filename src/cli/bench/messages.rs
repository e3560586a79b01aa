//! The second phase: how many messages arrive in a second. Each message that arrives has the next one sent, and the
//! number of messages on their way doubles until that brings no more.

use std::{collections::HashMap, time::Duration};

use tokio::time::{Instant, timeout_at};

use super::{
    cpu::CpuClock,
    flow::Flow,
    limits::reason,
    report::{Errors, Latencies, MISSING, Phase},
    swarm::News,
};

/// The share of the phase that each number of messages in flight has.
const STEPS: u32 = 10;

/// The most messages in flight.
const MAX_IN_FLIGHT: usize = 4096;

/// A step that brings less than this times the best rate before does not grow.
const GROWTH: f64 = 1.05;

/// So many steps in a row that do not grow end the phase: one may be chance.
const MAX_STALLED: u32 = 2;

/// With fewer messages in flight, growth does not count: a few do not load a server, and two may bring less than one.
const MIN_IN_FLIGHT: usize = 64;

/// How long messages may be on their way when a step is over.
const ARRIVAL_TIMEOUT: Duration = Duration::from_secs(5);

/// What was measured with one number of messages in flight.
struct Step {
    in_flight: usize,
    arrived: u64,
    per_second: f64,
    latencies: Latencies,
    missing: u64,
    cpu_percent: Option<f64>,
    /// Whether messages did not fit into the queue of a session.
    is_full: bool,
}

/// Measures for at most this time, and until 99 % of the latencies pass the limit.
pub(super) async fn measure(flow: &mut Flow, time: Duration, limit: Duration) -> Phase {
    let end = Instant::now() + time;
    let mut errors = Errors::default();
    let mut best: Option<Step> = None;
    let (mut count, mut missing) = (0, 0);
    let mut in_flight = 1;
    let mut stalled = 0;
    let mut next = 0;
    let stopped = loop {
        let until = end.min(Instant::now() + time / STEPS);
        let step = run(flow, in_flight, until, &mut next, &mut errors).await;
        count += step.arrived;
        missing += step.missing;
        let is_full = step.is_full;
        let latency = step.latencies.quantile(0.99);
        let before = best.as_ref().map_or(0.0, |best| best.per_second);
        stalled = match step.per_second > before * GROWTH || in_flight < MIN_IN_FLIGHT {
            true => 0,
            false => stalled + 1,
        };
        let is_slow = latency > limit;
        if step.per_second > before && (!is_slow || best.is_none()) {
            best = Some(step);
        }
        match () {
            () if flow.is_lost() => break "all sessions are lost".to_owned(),
            () if missing > 0 => break "messages were lost".to_owned(),
            () if is_slow => {
                break format!("with {in_flight} in flight, p99 is {latency:.0?}: --limit-ms");
            }
            () if is_full => break format!("{in_flight} in flight are more than may be queued"),
            () if stalled == MAX_STALLED => break format!("{in_flight} in flight bring no more"),
            () if Instant::now() >= end => break format!("the time is over: {time:.0?}"),
            () if in_flight >= MAX_IN_FLIGHT => break format!("{in_flight} are in flight"),
            () => in_flight *= 2,
        }
    };
    Phase {
        count,
        missing,
        per_second: best.as_ref().map_or(0.0, |best| best.per_second),
        in_flight: best.as_ref().map(|best| best.in_flight),
        cpu_percent: best.as_ref().and_then(|best| best.cpu_percent),
        milliseconds: best.and_then(|best| best.latencies.summary()),
        errors,
        ..Phase::new("messages", flow.with_pace(stopped))
    }
}

/// Keeps so many messages in flight.
async fn run(
    flow: &mut Flow,
    in_flight: usize,
    until: Instant,
    next: &mut u64,
    errors: &mut Errors,
) -> Step {
    let cpu = CpuClock::start();
    let began = Instant::now();
    let mut latencies = Latencies::new();
    let mut sent = HashMap::new();
    let mut is_full = false;
    let mut send = |flow: &Flow, sent: &mut HashMap<u64, Instant>| {
        let now = Instant::now();
        match flow.send(*next) {
            true => _ = sent.insert(*next, now),
            false => is_full = true,
        }
        *next += 1;
    };
    for _ in 0..in_flight {
        send(flow, &mut sent);
    }
    let mut last = began;
    while !sent.is_empty() && !flow.is_lost() {
        let deadline = last.max(until) + ARRIVAL_TIMEOUT;
        let Ok(Some(news)) = timeout_at(deadline, flow.next()).await else {
            break;
        };
        match news {
            News::Arrived(number, arrived) => {
                // A message of the step before may be late.
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
    let arrived = latencies.count();
    let missing = sent.len() as u64;
    latencies.add_missing(missing, ARRIVAL_TIMEOUT);
    errors.add(MISSING, missing);
    let seconds = (last - began).as_secs_f64();
    Step {
        in_flight,
        arrived,
        per_second: match arrived {
            0 => 0.0,
            _ => arrived as f64 / seconds,
        },
        latencies,
        missing,
        cpu_percent: cpu.percent(),
        is_full,
    }
}
