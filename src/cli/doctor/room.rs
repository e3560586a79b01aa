//! What a client does in a room: joining, messages of each size, idling, resuming.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use super::{
    http::Answer,
    report::{Finding, Report},
    session::{ANSWER_TIMEOUT, Endpoint, Lost, SERVER, Session},
    upgrade::{refusal, refuses_origin},
};

/// The steps that need a session, in their order.
pub(super) const STEPS: [&str; 7] = [
    "hello",
    "round trip",
    "size",
    "idle",
    "resume",
    "address",
    "forged address",
];

/// How many requests a round trip is measured with.
const ROUND_TRIPS: usize = 10;

/// The size of the message that is sent both ways, in bytes.
const LARGE: usize = 64 * 1024;

/// How long a large message may take.
const LARGE_TIMEOUT: Duration = Duration::from_secs(15);

/// The size of the requests that make the server answer, to see whether a proxy holds answers back, in bytes. Most
/// buffers have 4 to 64 KiB.
const PUSH_BYTES: usize = 4 * 1024;

/// How many such requests are sent.
const PUSHES: usize = 32;

/// How long a held answer may take after each.
const PUSH_TIMEOUT: Duration = Duration::from_millis(200);

/// Does the steps `upgrade`, `origin` and `hello`.
///
/// # Errors
///
/// Why there is no session, and the answer to the upgrade if there is one.
pub(super) async fn enter(
    endpoint: &Endpoint,
    report: &mut Report,
) -> Result<Session, Option<Answer>> {
    let began = Instant::now();
    let mut session = match endpoint.open("", &[]).await {
        Ok(session) => session,
        Err((_, Some(answer))) if answer.line().is_some_and(refuses_origin) => {
            refused_origin(endpoint, report);
            return Err(Some(answer));
        }
        Err((finding, answer)) => {
            report.add("upgrade", finding);
            report.skip(&["origin"], "the upgrade fails");
            return Err(answer);
        }
    };
    let time = began.elapsed().as_millis();
    let asked = Instant::now();
    let mut answered = session.say_hello().await;
    if let Err(Lost::Silent(_)) = answered {
        // A slow server or network is no proxy that holds the answer back.
        answered = session.hear_hello().await;
    }
    let waited = asked.elapsed();
    let said = match answered {
        Err(Lost::Silent(_)) => match held_back(&mut session).await {
            Some(bytes) => Err(Finding::failed(
                format!(
                    "101, but messages come only when about {bytes} bytes more follow: a proxy buffers"
                ),
                "turn off response buffering for this path",
            )),
            None => Err(Finding::failed(
                "101, but no message gets through",
                "have the proxy pass on all bytes after the 101, both ways, at once",
            )),
        },
        Err(Lost::Closed(4403, reason)) if refuses_origin(&reason) => {
            refused_origin(endpoint, report);
            session.leave().await;
            return Err(None);
        }
        Err(Lost::Closed(code @ (4401 | 4403 | 4429 | 4503), reason)) => {
            Err(refusal(code - 4000, &reason))
        }
        Err(lost) => Err(Finding::failed(
            format!("101, but then {lost}"),
            "check what the server and the proxy log for this connection",
        )),
        Ok(()) if session.hello.room.is_empty() => Err(Finding::failed(
            "101, but what answers is not an anteroom server",
            "have the proxy route this path to the server",
        )),
        Ok(()) => Ok(()),
    };
    if let Err(finding) = said {
        report.add("upgrade", finding);
        report.skip(&["origin"], "no session begins");
        session.leave().await;
        return Err(None);
    }
    let opened = format!("101 in {time} ms");
    let finding = match waited > ANSWER_TIMEOUT {
        true => Finding::warning(
            format!(
                "{opened}, but the first message came only after {} s",
                tenths(waited)
            ),
            "check the load of the server and the proxy, and the network between them",
        ),
        false => Finding::ok(opened),
    };
    report.add("upgrade", finding);
    report.add(
        "origin",
        Finding::ok(format!("pages of {} get a session", endpoint.origin)),
    );
    report.add("hello", hello(endpoint, &session));
    Ok(session)
}

fn refused_origin(endpoint: &Endpoint, report: &mut Report) {
    report.add("upgrade", Finding::ok("the request reaches the server"));
    let origin = &endpoint.origin;
    let allow = format!("start the server with --allow-origin {origin}");
    let advice = match *origin == endpoint.target.origin() {
        true => format!(
            "name your page's origin with --origin; if your pages are those of {origin}, {allow}"
        ),
        false => allow,
    };
    let detail = format!("pages of {origin} get no session");
    report.add("origin", Finding::failed(detail, advice));
}

/// Makes the server answer until an answer to `hello` that is held back arrives. Returns after how many
/// bytes it did.
async fn held_back(session: &mut Session) -> Option<usize> {
    let data = "p".repeat(PUSH_BYTES);
    for count in 1..=PUSHES {
        let ping = json!({ "type": "ping", "receiver": SERVER, "data": data });
        session.send(&ping).await.ok()?;
        let deadline = Instant::now() + PUSH_TIMEOUT;
        let expected = [(SERVER, "hello"), (SERVER, "pong")];
        match session.next_of(&expected, deadline).await {
            Ok(_) => return Some(count * PUSH_BYTES),
            Err(Lost::Silent(_)) => {}
            Err(_) => return None,
        }
    }
    None
}

fn hello(endpoint: &Endpoint, session: &Session) -> Finding {
    let room = &session.hello.room;
    let note = match endpoint.is_shared {
        true => " (the token's room: others there see three sessions of the doctor come and go)",
        false => "",
    };
    Finding::ok(format!("session {} in room {room}{note}", session.id))
}

/// Does the step `round trip`.
pub(super) async fn round_trip(session: &mut Session) -> Finding {
    let mut times = Vec::new();
    for number in 0..ROUND_TRIPS {
        let began = Instant::now();
        match session.ask("ping", json!(number), "pong").await {
            Ok(answer) if answer["data"] == json!(number) => times.push(began.elapsed()),
            Ok(answer) => return unexpected(&answer),
            Err(lost) => return broken(&lost),
        }
    }
    times.sort();
    let [median, most] = [ROUND_TRIPS / 2, ROUND_TRIPS - 1].map(|it| milliseconds(times[it]));
    Finding::ok(format!(
        "median of {ROUND_TRIPS}: {median} ms, at most {most} ms"
    ))
}

fn milliseconds(time: Duration) -> String {
    format!("{:.1}", time.as_secs_f64() * 1000.0)
}

/// The finding for an answer that does not belong to the request.
fn unexpected(answer: &Value) -> Finding {
    let kind = answer["type"].as_str().unwrap_or_default();
    let code = match answer["data"]["code"].as_str() {
        Some(code) if kind == "error" => format!(" ({code})"),
        _ => String::new(),
    };
    Finding::failed(
        format!("the answer is a message of type {kind}{code}"),
        "check that it is an anteroom server, and that no proxy changes messages",
    )
}

fn broken(lost: &Lost) -> Finding {
    Finding::failed(
        lost.to_string(),
        "check what the server and the proxy log for this connection",
    )
}

/// Does the step `size`: sends a large message to the session itself.
pub(super) async fn size(session: &mut Session) -> Finding {
    let limits = &session.hello.limits;
    // A burst of two seconds is free: the message counts when it arrives and when it is delivered.
    let most = [limits.message_bytes, limits.bytes_per_second];
    let bytes = most.into_iter().flatten().fold(LARGE, usize::min);
    let message = |data: &str| json!({ "type": "doctor", "receiver": session.id, "data": data });
    let empty = message("").to_string().len();
    let data: String = ('a'..='z')
        .cycle()
        .take(bytes.saturating_sub(empty))
        .collect();
    let message = message(&data);
    if let Err(lost) = session.send(&message).await {
        return cut_off(bytes, &lost);
    }
    let deadline = Instant::now() + LARGE_TIMEOUT;
    let id = session.id.clone();
    let expected = [(&*id, "doctor"), (SERVER, "error")];
    match session.next_of(&expected, deadline).await {
        Ok(answer) if answer["type"] == "error" => {
            let code = answer["data"]["code"].as_str().unwrap_or_default();
            match code {
                "not_allowed" => Finding::skipped("the token does not allow messages to others"),
                _ => unexpected(&answer),
            }
        }
        Ok(answer) if answer["data"] == data => {
            Finding::ok(format!("{bytes} bytes both ways, intact"))
        }
        Ok(_) => Finding::failed(
            format!("a message of {bytes} bytes arrives changed"),
            "have the proxy pass on messages as they are",
        ),
        Err(lost) => cut_off(bytes, &lost),
    }
}

fn cut_off(bytes: usize, lost: &Lost) -> Finding {
    Finding::failed(
        format!("a message of {bytes} bytes does not come back: {lost}"),
        "raise the limit of the proxy or firewall for WebSocket messages",
    )
}

/// Does the step `idle`: sends nothing for some seconds, except the pongs that a WebSocket client sends by itself.
pub(super) async fn idle(session: &mut Session, seconds: u64) -> Finding {
    let began = Instant::now();
    session.reset_pings();
    let end = began + Duration::from_secs(seconds);
    let lost = loop {
        match session.next(end).await {
            Ok(_) => {}
            Err(Lost::Silent(_)) => break None,
            Err(lost) => break Some(lost),
        }
    };
    let count = session.pings().count;
    let pings = match session.pings().ends {
        None => "no ping of the server came in this time".into(),
        Some((only, _)) if count == 1 => {
            format!("a ping of the server came after {} s", tenths(only - began))
        }
        Some((first, last)) => {
            format!(
                "the server pings every {} s",
                tenths((last - first) / (count - 1))
            )
        }
    };
    let time = tenths(began.elapsed());
    let Some(lost) = lost else {
        return match session.ask("ping", json!("idle"), "pong").await {
            Ok(_) => Finding::ok(format!("{time} s without traffic; {pings}")),
            Err(lost) => Finding::failed(
                format!(
                    "after {time} s the connection is dead, and nobody has closed it: {lost}; {pings}"
                ),
                TIMEOUTS,
            ),
        };
    };
    match lost {
        Lost::Closed(1001, reason) => Finding::failed(
            format!("after {time} s the server closes the connection (1001: {reason}); {pings}"),
            "have the proxy pass on pings and pongs at once",
        ),
        Lost::Closed(code @ (1008 | 1012 | 1013), reason) => Finding::failed(
            format!("after {time} s the server closes the connection ({code}: {reason})"),
            "try again: the reason is not the time",
        ),
        _ if count == 0 => Finding::failed(
            format!("the connection is cut after {time} s without traffic; {pings}"),
            TIMEOUTS,
        ),
        _ => Finding::failed(
            format!("the connection is cut after {time} s; {pings}"),
            format!("{TIMEOUTS}; if they do, a limit on the whole time of a connection cuts it"),
        ),
    }
}

/// What an idle connection needs of a proxy.
const TIMEOUTS: &str = "the idle timeout of the proxy must exceed --ping-seconds (20 unless configured): raise \
     proxy_read_timeout in nginx or timeout tunnel in HAProxy, or lower --ping-seconds";

fn tenths(time: Duration) -> String {
    format!("{:.1}", time.as_secs_f64())
}

/// Does the step `resume`: cuts the connection, and takes the session up again on another one.
pub(super) async fn resume(
    endpoint: &Endpoint,
    mut session: Session,
) -> (Finding, Option<Session>) {
    let Some(resume) = session.hello.resume.take() else {
        let reason = "the server resumes no sessions (--resume-seconds 0)";
        return (Finding::skipped(reason), Some(session));
    };
    // In a shared room, others would see one more session.
    if endpoint.is_shared {
        return cut(endpoint, session, &resume.token, None).await;
    }
    let mut other = match endpoint.join().await {
        Ok(other) => other,
        Err(error) => {
            let detail = format!("no second session: {error}");
            let advice = "raise the limits for sessions of one address, or wait";
            return (Finding::warning(detail, advice), Some(session));
        }
    };
    let deadline = Instant::now() + ANSWER_TIMEOUT;
    let result = match session.next_of(&[(&other.id, "new")], deadline).await {
        Ok(_) => cut(endpoint, session, &resume.token, Some(&mut other)).await,
        Err(Lost::Silent(_)) => {
            let detail = "a second session does not get into the same room: clients are routed to several servers";
            (Finding::failed(detail, ONE_SERVER), Some(session))
        }
        Err(lost) => (broken(&lost), None),
    };
    other.leave().await;
    result
}

/// Cuts the connection, has `other` write to the session meanwhile, and resumes the session.
async fn cut(
    endpoint: &Endpoint,
    session: Session,
    token: &str,
    mut other: Option<&mut Session>,
) -> (Finding, Option<Session>) {
    let (id, received) = (session.id.clone(), session.received());
    // Without a Close frame, the connection counts as lost.
    drop(session);
    let missed_from = match &mut other {
        Some(other) => match write_meanwhile(other, &id).await {
            Ok(is_sent) => is_sent.then(|| other.id.clone()),
            Err(finding) => return (finding, None),
        },
        None => None,
    };
    let query = format!("resume={token}&received={received}");
    let mut session = match endpoint.open(&query, &[]).await {
        Ok(session) => session,
        Err((finding, _)) => return (finding, None),
    };
    let finding = resumed(&mut session, missed_from).await;
    (finding, Some(session))
}

/// Sends a message to the session with this id. Returns whether the token allows that.
async fn write_meanwhile(other: &mut Session, id: &str) -> Result<bool, Finding> {
    let message = json!({ "type": "doctor", "receiver": id, "data": "meanwhile", "ref": 1 });
    other.send(&message).await.map_err(|lost| broken(&lost))?;
    let deadline = Instant::now() + ANSWER_TIMEOUT;
    let answer = other
        .next_of(&[(SERVER, "ack"), (SERVER, "error")], deadline)
        .await;
    let answer = answer.map_err(|lost| broken(&lost))?;
    match answer["data"]["code"].as_str() {
        None => Ok(true),
        Some("not_allowed") => Ok(false),
        Some(_) => Err(lost_session(&answer["data"]["message"])),
    }
}

/// Reads what a resumed session gets first, and what it has missed of this sender.
async fn resumed(session: &mut Session, missed_from: Option<String>) -> Finding {
    let deadline = Instant::now() + ANSWER_TIMEOUT;
    match session.next(deadline).await {
        Ok(first) if first["type"] == "resumed" => {}
        Ok(first) if first["type"] == "error" => return lost_session(&first["data"]["message"]),
        Ok(first) => return unexpected(&first),
        Err(lost) => return broken(&lost),
    }
    let Some(sender) = missed_from else {
        return Finding::ok("the session goes on over a new connection");
    };
    match session.next_of(&[(&sender, "doctor")], deadline).await {
        Ok(missed) if missed["data"] == "meanwhile" => Finding::ok(
            "the session goes on over a new connection, with the message that it missed",
        ),
        Ok(other) => unexpected(&other),
        Err(lost) => Finding::failed(
            format!("the session goes on, but the message that it missed does not come: {lost}"),
            "check what the server logs",
        ),
    }
}

/// What sessions need of several servers.
const ONE_SERVER: &str = "with several servers, form a cluster (--cluster), or have the balancer route all clients of a \
     room to the same server";

fn lost_session(message: &Value) -> Finding {
    Finding::failed(
        format!(
            "the session is lost with its connection: {}",
            message.as_str().unwrap_or_default()
        ),
        ONE_SERVER,
    )
}
