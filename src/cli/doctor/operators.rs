//! The page, and the URLs of operators, which the public must not reach.

use std::{io, time::Duration};

use anteroom::client::RoomUrl;
use http::{StatusCode, header};
use serde_json::Value;
use tokio::time::timeout;

use super::{
    connection::Connector,
    http::{Answer, get},
    report::Finding,
};

/// Where the admin API would be, if a proxy routes to it.
const PATHS: [&str; 8] = [
    "/metrics",
    "/status",
    "/rooms",
    "/admin/",
    "/admin/metrics",
    "/admin/status",
    "/admin/rooms",
    "/api/rooms",
];

/// How long an answer to one of the paths may take: the admin API answers at once.
const PATH_TIMEOUT: Duration = Duration::from_secs(5);

/// After how many unknown answers the rest of the paths is not asked for: each may take seconds.
const MAX_UNKNOWN: usize = 4;

/// What the title of the admin page begins with.
const ADMIN_TITLE: &str = "<title>anteroom: rooms and sessions";

/// What a list of rooms begins with, and what follows its first name. A long list is cut off.
const FIRST_ROOM: &str = r#"{"rooms":[{"room":""#;
const ITS_SESSIONS: &str = r#"","sessions":"#;

/// Does the step `page`. The second is the answer, if there is one.
pub(super) async fn page(connector: &Connector, target: &RoomUrl) -> (Finding, Option<Answer>) {
    let path = format!("{}/", target.prefix());
    let answer = match get(connector, &target.authority(), &path, &[]).await {
        Ok(answer) => answer,
        Err(error) => {
            let advice = "see step upgrade";
            return (
                Finding::warning(format!("GET {path}: {error}"), advice),
                None,
            );
        }
    };
    let status = answer.status.as_u16();
    let is_html = answer.header(header::CONTENT_TYPE).starts_with("text/html");
    let advice = "this is fine if your application serves its pages elsewhere";
    let finding = match status {
        200 if is_html => Finding::ok(format!("{path} is a page")),
        300..=399 => {
            let location = answer.location();
            Finding::warning(format!("{path} redirects to {location} ({status})"), advice)
        }
        _ => Finding::warning(format!("{path} is not a page ({status})"), advice),
    };
    (finding, Some(answer))
}

/// Does the step `operators' URLs`.
pub(super) async fn exposed(connector: &Connector, target: &RoomUrl) -> Finding {
    let (mut open, mut guarded, mut unknown) = (Vec::new(), Vec::new(), Vec::new());
    let prefixes = match target.prefix() {
        "" => vec![""],
        prefix => vec!["", prefix],
    };
    let paths = prefixes
        .iter()
        .flat_map(|prefix| PATHS.map(|path| format!("{prefix}{path}")));
    let host = target.authority();
    // One after the other: a limit on requests may refuse many at once.
    for path in paths {
        if unknown.len() >= MAX_UNKNOWN {
            unknown.push(path);
            continue;
        }
        let answer = timeout(PATH_TIMEOUT, get(connector, &host, &path, &[])).await;
        match access(answer.map_err(io::Error::from).flatten()) {
            Access::Open => open.push(path),
            Access::Guarded => guarded.push(path),
            Access::Unknown => unknown.push(path),
            Access::None => {}
        }
    }
    let advice = "have the proxy pass on only /, /room and /health to the server, and bind --admin to an \
                  address that only operators reach";
    match (open.as_slice(), guarded.as_slice(), unknown.as_slice()) {
        ([], [], []) => Finding::ok("the admin API is not reachable"),
        ([], [], unknown) => Finding::warning(
            format!(
                "it is unknown whether the admin API is reachable at {}",
                unknown.join(", ")
            ),
            "try again, or ask for these paths with curl",
        ),
        ([], guarded, _) => Finding::warning(
            format!(
                "the admin API is reachable, but asks for a secret or refuses: {}",
                guarded.join(", ")
            ),
            advice,
        ),
        (open, ..) => Finding::failed(
            format!("everybody can use the admin API: {}", open.join(", ")),
            advice,
        ),
    }
}

/// Whether the admin API gives an answer.
#[derive(Debug, PartialEq, Eq)]
enum Access {
    Open,
    Guarded,
    None,
    /// There is no answer, or one that refuses any request at this time.
    Unknown,
}

/// Recognizes answers of the admin API.
fn access(answer: io::Result<Answer>) -> Access {
    let Ok(answer) = answer else {
        return Access::Unknown;
    };
    let body: Value = serde_json::from_str(&answer.body).unwrap_or_default();
    let has = |name: &str| body.get(name).is_some();
    let rooms = answer.body.strip_prefix(FIRST_ROOM);
    let is_ours = answer.body.contains("anteroom_sessions")
        || (has("startedAt") && has("nodes"))
        || rooms.is_some_and(|rooms| rooms.contains(ITS_SESSIONS));
    let is_refusal = ["unauthorized", "forbidden"]
        .iter()
        .any(|code| body["code"] == *code);
    match answer.status {
        // The page itself needs no secret, so it does not say whether the rest does.
        StatusCode::OK if answer.body.contains(ADMIN_TITLE) => Access::Guarded,
        StatusCode::OK if is_ours => Access::Open,
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN if is_refusal => Access::Guarded,
        StatusCode::TOO_MANY_REQUESTS
        | StatusCode::BAD_GATEWAY
        | StatusCode::SERVICE_UNAVAILABLE
        | StatusCode::GATEWAY_TIMEOUT => Access::Unknown,
        _ => Access::None,
    }
}
