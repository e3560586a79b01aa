//! The command `doctor`: behaves like a client, and says step by step what works and what to do.

mod address;
mod clock;
mod connection;
mod fallback;
mod http;
mod ice;
mod operators;
mod options;
mod report;
mod room;
mod server_url;
mod session;
mod stream;
// In a build without the feature, the type of TLS has no values.
#[cfg_attr(not(feature = "tls"), path = "no_tls.rs")]
mod tls;
mod token;
mod upgrade;

use tokio::runtime::Builder;
use uuid::Uuid;

pub(crate) use self::options::DoctorOptions;
use self::{
    address::KnownAddresses,
    report::{Finding, Outcome, Report},
    session::{Endpoint, IceServer, Session},
    token::Claims,
};
use super::failure::Failure;

/// Checks a server. Returns whether no step failed.
pub(crate) fn run(options: DoctorOptions) -> Result<bool, Failure> {
    let runtime = Builder::new_current_thread().enable_all().build();
    let runtime =
        runtime.map_err(|error| Failure::other(format!("cannot start the runtime: {error}")))?;
    let mut report = Report::new(options.target.with_default_room().to_string(), options.json);
    runtime.block_on(examine(options, &mut report));
    // A name that does not resolve must not hold up the exit.
    runtime.shutdown_background();
    Ok(report.finish())
}

/// Does every step that can be done.
async fn examine(options: DoctorOptions, report: &mut Report) {
    let Some(connector) = connection::reach(&options.target, report).await else {
        let reason = "the server is not reached";
        report.skip(&["page", "upgrade", "origin"], reason);
        report.skip(&room::STEPS, reason);
        report.skip(
            &["clock", "ice", "without WebSocket", "operators' URLs"],
            reason,
        );
        return;
    };
    let (finding, page) = operators::page(&connector, &options.target).await;
    report.add("page", finding);
    let mut date = page.and_then(|page| page.date());

    let claims = options.token.as_deref().and_then(Claims::read);
    let own = format!("doctor-{}", Uuid::new_v4().simple());
    if let Some(token) = &options.token {
        report.hide(token);
    }
    let (room, is_shared) = match &claims {
        Some(claims) => claims.room(&own),
        None => (own, false),
    };
    let endpoint = Endpoint {
        origin: match options.origin {
            Some(origin) => origin.to_string(),
            None => options.target.origin(),
        },
        target: options.target,
        token: options.token,
        connector,
        room,
        is_shared,
    };
    match room::enter(&endpoint, report).await {
        Ok(mut session) => {
            date = session.date.take().or(date);
            let mut servers = std::mem::take(&mut session.hello.ice_servers);
            let idle_seconds = options.idle_seconds;
            let current = in_room(&endpoint, session, &mut servers, idle_seconds, report).await;
            report.add("clock", clock::judge(date.as_ref(), claims.as_ref()));
            // TURN credentials may be good only as long as their session is there.
            match current {
                Some(mut session) => {
                    tokio::select! {
                        biased;
                        () = ice::check(&servers, report) => {}
                        () = session.stay() => {}
                    }
                    session.leave().await;
                }
                None => ice::check(&servers, report).await,
            }
        }
        Err(answer) => {
            date = answer.and_then(|answer| answer.date()).or(date);
            report.skip(&room::STEPS, "no session begins");
            report.add("clock", clock::judge(date.as_ref(), claims.as_ref()));
            report.skip(&["ice"], "no session begins");
        }
    }
    let finding = fallback::check(&endpoint, report).await;
    report.add("without WebSocket", finding);
    let exposed = operators::exposed(&endpoint.connector, &endpoint.target).await;
    report.add("operators' URLs", exposed);
}

/// Does the steps from `round trip` to `forged address`. A session that a step has lost is replaced by another, which
/// has other `servers`. Returns the last one.
async fn in_room(
    endpoint: &Endpoint,
    session: Session,
    servers: &mut Vec<IceServer>,
    idle_seconds: u64,
    report: &mut Report,
) -> Option<Session> {
    const NO_SESSION: &str = "no new session begins after the last one was lost";
    let mut current = Some(session);
    for name in ["round trip", "size", "idle"] {
        let Some(session) = &mut current else {
            report.skip(&[name], NO_SESSION);
            continue;
        };
        let finding = match name {
            "round trip" => room::round_trip(session).await,
            "size" => room::size(session).await,
            _ if idle_seconds == 0 => Finding::skipped("--idle-seconds is 0"),
            _ => room::idle(session, idle_seconds).await,
        };
        let is_broken = finding.outcome == Outcome::Failed;
        report.add(name, finding);
        if is_broken && let Some(broken) = current.take() {
            broken.leave().await;
            current = replace(endpoint, servers).await;
        }
    }
    match current.take() {
        Some(session) => {
            if let Some(resume) = &session.hello.resume {
                report.hide(&resume.token);
            }
            let (finding, resumed) = room::resume(endpoint, session).await;
            report.add("resume", finding);
            current = match resumed {
                Some(session) => Some(session),
                None => replace(endpoint, servers).await,
            };
        }
        None => report.skip(&["resume"], NO_SESSION),
    }
    let Some(mut session) = current else {
        report.skip(&["address", "forged address"], NO_SESSION);
        return None;
    };
    let (local, server) = (session.local, endpoint.connector.server());
    let finding = match address::seen(&mut session).await {
        Ok(seen) => {
            let mapped = match seen == local {
                true => None,
                false => ice::mapped_address(servers).await,
            };
            address::judge(
                seen,
                &KnownAddresses {
                    local,
                    server,
                    mapped,
                },
            )
        }
        Err(finding) => finding,
    };
    report.add("address", finding);
    report.add("forged address", address::forged(endpoint).await);
    Some(session)
}

/// Begins another session.
async fn replace(endpoint: &Endpoint, servers: &mut Vec<IceServer>) -> Option<Session> {
    let mut session = endpoint.join().await.ok()?;
    *servers = std::mem::take(&mut session.hello.ice_servers);
    Some(session)
}
