//! Sessions without a WebSocket: messages go down in the answer to a GET request, and up in POST requests.

use std::{sync::Arc, time::Duration};

use bytes::{Buf, Bytes, BytesMut};
use futures_util::{Stream, StreamExt};
use http::{HeaderName, StatusCode};
use serde_json::json;
use tokio::time::timeout;
use warp::reply::{Reply, Response};

use super::{
    cross_origin::{check_page, readable},
    forward::{Request, SessionKey},
    handshake::{Handshake, Target},
};
use crate::{
    event_stream::Form,
    protocol::{ResumeToken, RoomName},
    state::{BodyGuard, Shared},
    web::HttpError,
};

/// The longest body, in bytes, unless two of the longest messages have more.
const BODY_BYTES: usize = 1 << 20;

/// How long an answer of long polling waits for messages if the request does not say, and at most, in seconds.
const DEFAULT_WAIT: u64 = 25;
const LONGEST_WAIT: u64 = 60;

/// How many messages the client has received, in a request of an `EventSource` that has lost its connection (WHATWG
/// HTML, section 9.2.4). It is newer than what the URL says.
const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// Starts or resumes a session whose messages go down in the answer.
pub(super) fn open(
    shared: &Arc<Shared>,
    room: RoomName,
    handshake: Handshake,
    form: Form,
) -> Response {
    let wait = match handshake.query.get("wait").map(|wait| wait.parse()) {
        None => DEFAULT_WAIT,
        Some(Ok(seconds @ ..=LONGEST_WAIT)) => seconds,
        Some(_) => {
            let message = format!("wait must be a number of seconds, at most {LONGEST_WAIT}");
            let error = HttpError::new(StatusCode::BAD_REQUEST, message);
            shared.metrics.upgrades(error.status().as_u16()).inc();
            return readable(shared, &handshake.headers, error.into_response());
        }
    };
    let received = handshake.headers.get(LAST_EVENT_ID);
    let received = received.and_then(|value| value.to_str().ok());
    let target = Target::of_query(room, &handshake.query, received);
    handshake.stream(shared, form, Duration::from_secs(wait), target)
}

/// Sends the messages of a body, a line each.
pub(super) async fn post(
    shared: &Arc<Shared>,
    room: RoomName,
    handshake: &Handshake,
    body: impl Stream<Item = Result<impl Buf, warp::Error>> + Unpin,
) -> Response {
    let _lasting = handshake.lasting();
    let posted = async {
        check_page(shared, &handshake.headers)?;
        let session = session(shared, room, handshake)?;
        let sent = count(handshake, "sent")?.ok_or_else(|| {
            let message = "add &sent= and how many messages the session has sent before these";
            HttpError::new(StatusCode::BAD_REQUEST, message)
        })?;
        let received = count(handshake, "received")?;
        // Nothing is read of what nobody takes.
        session.find(shared).await?;
        let mut guard = shared
            .bodies
            .begin(session.token.hash(), most_waiting(shared));
        let guard = guard.as_mut().ok_or_else(too_much)?;
        let lines = read(shared, guard, body).await?;
        let taken_in = session.post(shared, sent, received, lines).await?;
        if handshake.query.get("leave").is_some() {
            session.carry_out(shared, Request::Leave).await?;
        }
        Ok::<_, HttpError>(warp::reply::json(&json!({ "received": taken_in })).into_response())
    };
    let answer = posted.await.unwrap_or_else(Reply::into_response);
    readable(shared, &handshake.headers, answer)
}

/// Ends a session.
pub(super) async fn delete(
    shared: &Arc<Shared>,
    room: RoomName,
    handshake: &Handshake,
) -> Response {
    let left = async {
        check_page(shared, &handshake.headers)?;
        let session = session(shared, room, handshake)?;
        session.carry_out(shared, Request::Leave).await?;
        Ok::<_, HttpError>(StatusCode::NO_CONTENT.into_response())
    };
    let answer = left.await.unwrap_or_else(Reply::into_response);
    readable(shared, &handshake.headers, answer)
}

/// The session that a request is about.
fn session(
    shared: &Shared,
    room: RoomName,
    handshake: &Handshake,
) -> Result<SessionKey, HttpError> {
    let token = handshake.query.get("resume").ok_or_else(|| {
        let message = "add ?resume= and the token of the session, which its first event tells";
        HttpError::new(StatusCode::BAD_REQUEST, message)
    })?;
    let token = ResumeToken::parse(&token).ok_or_else(|| {
        let message = "resume must be the token of a session, which its first event tells";
        HttpError::new(StatusCode::BAD_REQUEST, message)
    })?;
    Ok(SessionKey {
        room,
        token,
        address: handshake.address(shared),
    })
}

/// A number of messages in the query; `None` if it is not there.
fn count(handshake: &Handshake, name: &str) -> Result<Option<u64>, HttpError> {
    let Some(value) = handshake.query.get(name) else {
        return Ok(None);
    };
    // `u64` would accept a sign.
    let count = Some(&value).filter(|value| !value.starts_with('+'));
    let count = count.and_then(|value| value.parse().ok());
    count.map(Some).ok_or_else(|| {
        let message = format!("{name} must be a number of messages");
        HttpError::new(StatusCode::BAD_REQUEST, message)
    })
}

/// How many bytes the requests of a session may have together that are read or wait.
fn most_waiting(shared: &Shared) -> usize {
    2 * most_bytes(shared)
}

/// How many bytes a body may have.
fn most_bytes(shared: &Shared) -> usize {
    BODY_BYTES.max(2 * shared.config.limits.max_message_bytes)
}

fn too_much() -> HttpError {
    let message = "too much is sent at once: wait for the answer to a request before the next";
    HttpError::too_many_requests(message, Some(1))
}

/// Reads a body.
async fn read(
    shared: &Shared,
    guard: &mut BodyGuard,
    mut body: impl Stream<Item = Result<impl Buf, warp::Error>> + Unpin,
) -> Result<Bytes, HttpError> {
    let most = most_bytes(shared);
    let mut lines = BytesMut::new();
    let read = async {
        while let Some(chunk) = body.next().await {
            let mut chunk = chunk.map_err(|_| {
                let message = "the body is not complete: send it again";
                HttpError::new(StatusCode::BAD_REQUEST, message)
            })?;
            if lines.len() + chunk.remaining() > most {
                let message =
                    format!("a body may have {most} bytes: send fewer messages in one request");
                return Err(HttpError::new(StatusCode::PAYLOAD_TOO_LARGE, message));
            }
            if !guard.add(chunk.remaining(), most_waiting(shared)) {
                return Err(too_much());
            }
            lines.extend_from_slice(&chunk.copy_to_bytes(chunk.remaining()));
        }
        Ok(())
    };
    timeout(shared.config.limits.handshake(), read)
        .await
        .map_err(|_| {
            let message = "the body takes too long: send fewer messages in one request";
            HttpError::new(StatusCode::REQUEST_TIMEOUT, message)
        })??;
    shared
        .metrics
        .traffic
        .received_bytes
        .inc_by(lines.len() as u64);
    Ok(lines.freeze())
}
