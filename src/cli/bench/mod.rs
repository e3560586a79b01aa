//! The command `bench`: what a running server carries, as its clients see it. It is polite: it says in its sessions'
//! states what it is, ends by itself, and asks before it loads another machine.

mod cpu;
mod flow;
mod joins;
mod latency;
mod limits;
mod messages;
mod options;
mod permission;
mod report;
mod swarm;

use std::{
    collections::HashSet,
    io::{self, Write},
    process::ExitCode,
    time::Duration,
};

use anteroom::client::RoomUrl;
use tokio::{runtime::Builder, sync::mpsc};
use uuid::Uuid;

pub(crate) use self::options::BenchOptions;
use self::{
    flow::Flow,
    report::Report,
    swarm::{Crew, Entrance},
};
use super::{failure::Failure, signals::Signals};

/// How many sessions a room has.
const ROOM_SESSIONS: usize = 10;

/// How long a session may take to join.
const JOIN_TIMEOUT: Duration = Duration::from_secs(10);

/// Measures a server. Returns the exit code: 1 if no session has joined, all were lost, or messages are missing.
pub(crate) fn run(options: BenchOptions) -> Result<ExitCode, Failure> {
    let runtime = Builder::new_current_thread().enable_all().build();
    let runtime =
        runtime.map_err(|error| Failure::other(format!("cannot start the runtime: {error}")))?;
    let result = runtime.block_on(bench(options));
    // A name that does not resolve must not hold up the exit.
    runtime.shutdown_background();
    result
}

async fn bench(options: BenchOptions) -> Result<ExitCode, Failure> {
    let is_json = options.json;
    let url = options.address.url().clone();
    if !options.yes {
        permission::ask(&url, options.sessions).await?;
    }
    let _ = rlimit::increase_nofile_limit(rlimit::INFINITY);
    let mut signals = Signals::catch()
        .map_err(|error| Failure::other(format!("cannot catch signals: {error}")))?;
    let report = tokio::select! {
        report = measure(options, url) => report,
        // The connections end without being resumable, so the sessions are gone at once.
        code = signals.next() => return Ok(ExitCode::from(code)),
    };
    let text = match is_json {
        true => report.json(),
        false => report.table(),
    };
    // Standard output may be closed.
    let _ = writeln!(io::stdout(), "{text}");
    Ok(ExitCode::from(u8::from(report.has_failed())))
}

/// Does the phases, one after the other.
async fn measure(options: BenchOptions, url: RoomUrl) -> Report {
    let prefix = format!("bench-{}", Uuid::new_v4().simple());
    let rooms = |session: usize| match options.address.names_room() {
        true => (0, url.clone()),
        false => {
            let room = session / ROOM_SESSIONS;
            (room, url.with_room(&format!("{prefix}-{room}")))
        }
    };
    let (count, size) = (options.sessions as usize, options.size as usize);
    let entrance = Entrance {
        token: options.token.clone(),
        origin: match &options.origin {
            Some(origin) => origin.to_string(),
            None => url.origin(),
        },
        timeout: JOIN_TIMEOUT,
        max_queued: flow::max_queued(count, size),
        crew: Crew::default(),
    };
    let (sender, news) = mpsc::unbounded_channel();
    let time = options.time();
    let (sessions, phase) = joins::measure(&rooms, count, time, &entrance, &sender).await;
    let mut report = Report {
        url: url.to_string(),
        sessions: sessions.len(),
        rooms: sessions
            .iter()
            .map(|(room, _)| *room)
            .collect::<HashSet<_>>()
            .len(),
        lost: 0,
        phases: vec![phase],
    };
    if sessions.is_empty() {
        return report;
    }
    let mut flow = Flow::new(sessions, news, size, &entrance.crew);
    let phase = messages::measure(&mut flow, time, options.limit()).await;
    report.phases.push(phase);
    if !flow.is_lost() {
        let phase = latency::measure(&mut flow, options.rate, time).await;
        report.phases.push(phase);
    }
    report.lost = flow.lost();
    swarm::leave(flow.into_sessions()).await;
    report
}
