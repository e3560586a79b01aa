//! What operators, and the application's own backend, are answered: every URL of the second listener.

use std::{convert::Infallible, net::IpAddr, sync::atomic::Ordering::Relaxed};

use aws_lc_rs::constant_time::verify_slices_are_equal;
use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue, StatusCode, Uri,
    header::{CACHE_CONTROL, CONTENT_TYPE, HOST, ORIGIN, WWW_AUTHENTICATE},
    uri::Authority,
};
use jiff::Timestamp;
use log::info;
use serde::Serialize;
use warp::{
    Filter, Rejection,
    filters::BoxedFilter,
    reject::{self, MethodNotAllowed, PayloadTooLarge, Reject},
    reply::{Reply, Response},
};

use crate::{
    Anteroom, Shared,
    admission::bearer,
    metrics,
    page::{self, Source},
    protocol::{self, Close, CloseCode, Receiver, RoomName, SessionId},
    refusal::Refusal,
};

/// What the envelope adds to a message's own bytes, at the most.
const ENVELOPE_BYTES: u64 = 1024;

/// The words of the server, which nobody else puts into its mouth.
const OWN_TYPES: [&str; 7] = ["new", "close", "hello", "pong", "ack", "error", "resumed"];

/// All that the admin listener answers.
pub(crate) fn all(anteroom: &Anteroom) -> BoxedFilter<(Response,)> {
    let get = warp::get().or(warp::head()).unify();
    let with = {
        let anteroom = anteroom.clone();
        warp::any().map(move || anteroom.clone())
    };
    let room =
        || warp::path::param::<String>().map(|segment: String| RoomName::from_segment(&segment));
    let longest = anteroom.shared().config.max_message_bytes as u64 + ENVELOPE_BYTES;

    let health = warp::path!("health")
        .and(get)
        .map(|| line(StatusCode::OK, "ok"));
    let ready = warp::path!("ready").and(get).and(with.clone()).map(ready);
    let metrics = warp::path!("metrics")
        .and(get)
        .and(with.clone())
        .map(metrics);
    let rooms = warp::path!("rooms").and(get).and(with.clone()).map(rooms);
    let sessions = warp::path("rooms")
        .and(room())
        .and(warp::path::end())
        .and(get)
        .and(with.clone())
        .map(sessions);
    let close = warp::path("rooms")
        .and(room())
        .and(warp::path!("sessions" / String))
        .and(warp::delete())
        .and(with.clone())
        .map(close);
    let speak = warp::path("rooms")
        .and(room())
        .and(warp::path!("messages"))
        .and(warp::post())
        .and(warp::body::content_length_limit(longest))
        .and(warp::body::bytes())
        .and(with.clone())
        .map(speak);
    let drain = warp::path!("drain").and(warp::post()).and(with).map(drain);

    let for_operators = metrics
        .or(rooms)
        .unify()
        .or(sessions)
        .unify()
        .or(close)
        .unify();
    let for_operators = for_operators.or(speak).unify().or(drain).unify();
    let for_operators = authorize(anteroom).and(for_operators);
    health
        .or(ready)
        .unify()
        .or(page::files(Source::AdminPage))
        .unify()
        .or(for_operators)
        .unify()
        .recover(refuse)
        .unify()
        .boxed()
}

fn ready(anteroom: Anteroom) -> Response {
    match anteroom.is_ready() {
        true => line(StatusCode::OK, "ready"),
        false => line(StatusCode::SERVICE_UNAVAILABLE, "draining"),
    }
}

fn metrics(anteroom: Anteroom) -> Response {
    let mut response = anteroom.metrics().into_response();
    let content_type = HeaderValue::from_static(metrics::CONTENT_TYPE);
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    response
}

fn rooms(anteroom: Anteroom) -> Response {
    #[derive(Serialize)]
    struct Room {
        room: RoomName,
        sessions: usize,
    }
    let mut rooms = anteroom.shared().rooms.list();
    rooms.sort_unstable_by(|(a, _), (b, _)| a.as_str().cmp(b.as_str()));
    let rooms = rooms
        .into_iter()
        .map(|(room, sessions)| Room { room, sessions });
    json(&serde_json::json!({ "rooms": rooms.collect::<Vec<_>>() }))
}

fn sessions(room: Result<RoomName, &'static str>, anteroom: Anteroom) -> Response {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Session {
        id: SessionId,
        /// What its token says of it.
        data: Option<Box<serde_json::value::RawValue>>,
        address: Option<IpAddr>,
        since: String,
        /// From its client, and to it.
        messages_received: u64,
        messages_sent: u64,
        waiting_bytes: usize,
        away: bool,
    }
    let found = find(room, |room| anteroom.shared().rooms.look_into(room));
    let (room, glimpses) = match found {
        Ok(found) => found,
        Err(refusal) => return refusal,
    };
    let sessions = glimpses.into_iter().map(|glimpse| {
        let waiting = glimpse.sender.look();
        let since = Timestamp::try_from(glimpse.guest.since).unwrap_or_default();
        Session {
            id: glimpse.id,
            data: glimpse.guest.public.clone(),
            address: *glimpse.guest.address.lock(),
            since: format!("{since:.3}"),
            messages_received: glimpse.guest.taken_in.load(Relaxed),
            messages_sent: waiting.messages,
            waiting_bytes: waiting.bytes,
            away: waiting.is_away,
        }
    });
    #[derive(Serialize)]
    struct Answer {
        room: RoomName,
        sessions: Vec<Session>,
    }
    let sessions = sessions.collect();
    json(&Answer { room, sessions })
}

fn close(room: Result<RoomName, &'static str>, id: String, anteroom: Anteroom) -> Response {
    let rooms = &anteroom.shared().rooms;
    let found = find(room, |room| rooms.look_into(room));
    let (room, glimpses) = match found {
        Ok(found) => found,
        Err(refusal) => return refusal,
    };
    let Some(session) = glimpses.iter().find(|glimpse| glimpse.id.to_string() == id) else {
        return problem(
            StatusCode::NOT_FOUND,
            "unknown_session",
            "no such session in this room",
        );
    };
    info!("{id} in {room} is closed by an operator");
    let close = Close::new(CloseCode::PolicyViolation, "closed by an operator");
    session.sender.close(close);
    StatusCode::NO_CONTENT.into_response()
}

fn speak(room: Result<RoomName, &'static str>, body: Bytes, anteroom: Anteroom) -> Response {
    let bad = |message: &str| problem(StatusCode::BAD_REQUEST, "bad_message", message);
    let Ok(text) = str::from_utf8(&body) else {
        return bad("a message is UTF-8");
    };
    let message = match protocol::parse(text) {
        Ok(message) => message,
        Err(invalid) => return bad(&invalid.problem.message),
    };
    if OWN_TYPES.contains(&&*message.kind) {
        return bad("this type is one of the server's own: take another");
    }
    let receiver = match message.receiver {
        Receiver::All => None,
        Receiver::Session(id) => Some(id),
        Receiver::Server | Receiver::Unknown(_) => {
            return bad(r#"receiver must be "all" or a session id"#);
        }
    };
    let frame = protocol::announced(&message, receiver);
    let found = find(room, |room| {
        anteroom.shared().rooms.announce(room, receiver, &frame)
    });
    match found {
        Err(refusal) => refusal,
        Ok((_, 0)) => problem(
            StatusCode::NOT_FOUND,
            "unknown_receiver",
            "no such session in this room",
        ),
        Ok((_, receivers)) => {
            let traffic = &anteroom.shared().metrics.traffic;
            traffic.deliveries.inc_by(receivers as u64);
            json(&serde_json::json!({ "receivers": receivers }))
        }
    }
}

fn drain(anteroom: Anteroom) -> Response {
    info!("draining: no more sessions begin here");
    anteroom.drain();
    json(&serde_json::json!({ "sessions": anteroom.sessions() }))
}

/// What there is of a room, or the refusal that says that there is none.
fn find<T>(
    room: Result<RoomName, &'static str>,
    look: impl FnOnce(&RoomName) -> Option<T>,
) -> Result<(RoomName, T), Response> {
    let room = room.map_err(|message| problem(StatusCode::BAD_REQUEST, "bad_room", message))?;
    match look(&room) {
        Some(found) => Ok((room, found)),
        None => Err(problem(
            StatusCode::NOT_FOUND,
            "unknown_room",
            "no such room",
        )),
    }
}

/// Why somebody is no operator.
#[derive(Debug)]
enum Unauthorized {
    Token,
    Page,
}

impl Reject for Unauthorized {}

/// Lets operators pass: who has the secret, or, where none is set, who is on this machine. There,
/// web pages from elsewhere are kept out, which a browser on this machine may show: by the origin
/// that they come from, and by the name that they have given to this machine's address.
fn authorize(anteroom: &Anteroom) -> impl Filter<Extract = (), Error = Rejection> + Clone + use<> {
    let anteroom = anteroom.clone();
    warp::header::headers_cloned()
        .and_then(move |headers: HeaderMap| {
            let allowed = is_operator(anteroom.shared(), &headers);
            async move { allowed.map_err(reject::custom) }
        })
        .untuple_one()
}

fn is_operator(shared: &Shared, headers: &HeaderMap) -> Result<(), Unauthorized> {
    let host: Option<Authority> = headers
        .get(HOST)
        .and_then(|host| Authority::try_from(host.as_bytes()).ok());
    let is_own_page = headers.get(ORIGIN).is_none_or(|origin| {
        let origin = Uri::try_from(origin.as_bytes()).ok();
        origin.is_some_and(|origin| {
            origin.authority().is_some() && origin.authority() == host.as_ref()
        })
    });
    if !is_own_page {
        return Err(Unauthorized::Page);
    }
    match &shared.admin_token {
        Some(token) => {
            let given = bearer(headers).unwrap_or_default();
            verify_slices_are_equal(given.as_bytes(), &token.get()).map_err(|_| Unauthorized::Token)
        }
        None => {
            let host = host
                .as_ref()
                .map(|host| host.host().trim_matches(['[', ']']));
            let is_here = host.is_some_and(|host| {
                let address = host.parse::<IpAddr>();
                host == "localhost" || address.is_ok_and(|address| address.is_loopback())
            });
            is_here.then_some(()).ok_or(Unauthorized::Page)
        }
    }
}

/// Says why no route took the request.
async fn refuse(rejection: Rejection) -> Result<Response, Infallible> {
    let refusal = if let Some(unauthorized) = rejection.find::<Unauthorized>() {
        match unauthorized {
            Unauthorized::Token => {
                let message =
                    "give the secret of --admin-token-file: Authorization: Bearer <secret>";
                let mut refusal = problem(StatusCode::UNAUTHORIZED, "unauthorized", message);
                let challenge = HeaderValue::from_static("Bearer");
                refusal.headers_mut().insert(WWW_AUTHENTICATE, challenge);
                refusal
            }
            Unauthorized::Page => {
                let message = "this is not for pages of other origins, nor for names of this machine \
                               other than localhost: set --admin-token-file to use others";
                problem(StatusCode::FORBIDDEN, "forbidden", message)
            }
        }
    } else if rejection.find::<PayloadTooLarge>().is_some() {
        let message = "the message is over --max-message-bytes";
        problem(StatusCode::PAYLOAD_TOO_LARGE, "bad_message", message)
    } else if rejection.find::<reject::LengthRequired>().is_some() {
        let message = "the message must come with its Content-Length";
        problem(StatusCode::LENGTH_REQUIRED, "bad_message", message)
    } else if rejection.find::<MethodNotAllowed>().is_some() {
        let message = "another method is needed here";
        problem(StatusCode::METHOD_NOT_ALLOWED, "bad_method", message)
    } else {
        let message = "nothing here: there are /metrics, /health, /ready, /rooms, /rooms/{room}, \
                       /rooms/{room}/sessions/{id}, /rooms/{room}/messages, /drain, and the page at /";
        problem(StatusCode::NOT_FOUND, "not_found", message)
    };
    Ok(refusal)
}

fn line(status: StatusCode, message: &'static str) -> Response {
    Refusal::new(status, message).into_response()
}

fn json(answer: &impl Serialize) -> Response {
    let mut response = warp::reply::json(answer).into_response();
    let headers = response.headers_mut();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

fn problem(status: StatusCode, code: &str, message: &str) -> Response {
    let mut response = json(&serde_json::json!({ "code": code, "message": message }));
    *response.status_mut() = status;
    response
}
