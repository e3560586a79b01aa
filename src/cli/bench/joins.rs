//! The first phase: how many sessions join in a second.

use std::{pin::Pin, time::Duration};

use anteroom::client::{Disconnect, RoomUrl};
use futures_util::{StreamExt, stream::FuturesUnordered};
use tokio::{sync::mpsc, time::Instant};

use super::{
    cpu::CpuClock,
    limits::{is_refusal, reason},
    report::{Errors, Latencies, Phase},
    swarm::{Entrance, News, Session},
};

/// How many sessions join at once.
const IN_FLIGHT: usize = 16;

/// How many failures in a row end the phase.
const MAX_FAILURES: u64 = IN_FLIGHT as u64;

/// Which session, and in what time.
type Joined = (usize, Result<Session, Disconnect>, Duration);

/// Joins as many sessions as are allowed, in the time that is given. Returns them by room.
pub(super) async fn measure(
    rooms: &dyn Fn(usize) -> (usize, RoomUrl),
    count: usize,
    time: Duration,
    entrance: &Entrance,
    news: &mpsc::UnboundedSender<News>,
) -> (Vec<(usize, Session)>, Phase) {
    let cpu = CpuClock::start();
    let began = Instant::now();
    let mut joining = FuturesUnordered::<Pin<Box<dyn Future<Output = Joined> + Send>>>::new();
    let (mut latencies, mut errors) = (Latencies::new(), Errors::default());
    let mut sessions = Vec::new();
    let (mut started, mut failures) = (0, 0);
    let mut stopped = None;
    let mut last = began;
    loop {
        if stopped.is_none() && started == count {
            stopped = Some(format!("all {count} sessions have tried"));
        }
        if stopped.is_none() && began.elapsed() >= time {
            stopped = Some(format!("the time is over: {time:.0?}"));
        }
        while stopped.is_none() && started < count && joining.len() < IN_FLIGHT {
            let (room, url) = rooms(started);
            let (entrance, news) = (entrance.clone(), news.clone());
            joining.push(Box::pin(async move {
                let began = Instant::now();
                let joined = Session::join(url, &entrance, news).await;
                (room, joined, began.elapsed())
            }));
            started += 1;
        }
        let Some((room, joined, latency)) = joining.next().await else {
            break;
        };
        match joined {
            Ok(session) => {
                failures = 0;
                latencies.add(latency);
                sessions.push((room, session));
                last = Instant::now();
            }
            Err(why) => {
                failures += 1;
                errors.add(reason(&why), 1);
                if is_refusal(&why) || failures == MAX_FAILURES {
                    stopped.get_or_insert_with(|| reason(&why));
                }
            }
        }
    }
    let seconds = (last - began).as_secs_f64();
    let joined = latencies.count();
    let per_second = if joined == 0 {
        0.0
    } else {
        joined as f64 / seconds
    };
    let phase = Phase {
        count: joined,
        per_second,
        cpu_percent: cpu.percent(),
        milliseconds: latencies.summary(),
        errors,
        ..Phase::new("joins", stopped.unwrap_or_default())
    };
    (sessions, phase)
}
