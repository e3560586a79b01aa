//! What operators, and the application's own backend, are answered: every URL of the second listener.

use std::{borrow::Cow, convert::Infallible, net::IpAddr, sync::atomic::Ordering::Relaxed};

use aws_lc_rs::constant_time::verify_slices_are_equal;
use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, StatusCode, Uri, Version,
    header::{CACHE_CONTROL, CONTENT_TYPE, ORIGIN, WWW_AUTHENTICATE},
};
use jiff::Timestamp;
use log::info;
use percent_encoding::percent_decode_str;
use serde::Serialize;
use tokio::time::timeout;
use warp::{
    Filter, Rejection,
    filters::BoxedFilter,
    reject::{self, LengthRequired, MethodNotAllowed, PayloadTooLarge, Reject},
    reply::{Reply, Response},
};

use super::{anteroom::Anteroom, assets, assets::Source};
use crate::{
    access::bearer,
    cluster::NodeId,
    metrics,
    protocol::{self, Close, Receiver, RoomName, SessionId},
    rooms::{Busy, Location, SessionSnapshot},
    state::Shared,
    web::{HttpError, host},
};

/// What the envelope adds to a message's own bytes, at the most.
const ENVELOPE_BYTES: u64 = 1024;

/// The words of the server, which nobody else puts into its mouth.
const OWN_TYPES: [&str; 7] = ["new", "close", "hello", "pong", "ack", "error", "resumed"];

/// Headers that proxies add, besides those that begin with `x-forwarded-`.
const OF_PROXIES: [&str; 4] = ["forwarded", "via", "x-real-ip", "cf-connecting-ip"];

/// Says where a browser's request is from (W3C Fetch Metadata, section 2.3).
const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Its values for the page itself, and for what a person has typed or chosen.
const OWN_SITES: [&str; 2] = ["same-origin", "none"];

/// All that the admin listener answers.
pub(crate) fn all(anteroom: &Anteroom) -> BoxedFilter<(Response,)> {
    let get = warp::get().or(warp::head()).unify();
    let with = {
        let anteroom = anteroom.clone();
        warp::any().map(move || anteroom.clone())
    };
    let room = || warp::path::param::<String>();
    let session = warp::path::param()
        .map(|id: String| percent_decode_str(&id).decode_utf8_lossy().into_owned());
    let longest = anteroom.shared().config.limits.max_message_bytes as u64 + ENVELOPE_BYTES;

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
        .then(sessions)
        .map(answer);
    let close = warp::path("rooms")
        .and(room())
        .and(warp::path("sessions"))
        .and(session)
        .and(warp::path::end())
        .and(warp::delete())
        .and(with.clone())
        .then(close)
        .map(answer);
    let speak = warp::path("rooms")
        .and(room())
        .and(warp::path!("messages"))
        .and(warp::post())
        .and(warp::body::content_length_limit(longest))
        .and(warp::body::bytes())
        .and(with.clone())
        .then(speak)
        .map(answer);
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
        .or(assets::files(Source::AdminPage))
        .unify()
        .or(for_operators)
        .unify()
        .recover(refuse)
        .unify()
        .boxed()
}

fn ready(anteroom: Anteroom) -> Response {
    match anteroom.why_not_ready() {
        None => line(StatusCode::OK, "ready"),
        Some(reason) => line(StatusCode::SERVICE_UNAVAILABLE, reason),
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

/// The name of a room in a URL.
fn name(segment: &str) -> Result<RoomName, ApiError> {
    RoomName::from_segment(segment).map_err(|message| ApiError {
        status: StatusCode::BAD_REQUEST,
        code: "bad_room",
        message: message.into(),
    })
}

/// The sessions of a room, on other nodes, too, if there may be some.
async fn look(room: &RoomName, shared: &Shared) -> Result<Vec<SessionSnapshot>, ApiError> {
    let limit = shared.cluster.as_ref().map(|cluster| cluster.down);
    let looking = shared.rooms.query(room, limit.unwrap_or_default());
    let snapshots = looking.await.map_err(|Busy| BUSY)?;
    let is_cut_off = shared.cluster.as_ref().is_some_and(|it| !it.is_connected());
    match snapshots.is_empty() {
        true if is_cut_off => Err(BUSY),
        true => Err(UNKNOWN_ROOM),
        false => Ok(snapshots),
    }
}

async fn sessions(room: String, anteroom: Anteroom) -> Result<Response, ApiError> {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Session {
        id: SessionId,
        /// What its token says of it.
        data: Option<Box<serde_json::value::RawValue>>,
        since: String,
        #[serde(flatten)]
        here: Option<Here>,
        /// Where it is, if it is on another node, which knows more of it.
        #[serde(skip_serializing_if = "Option::is_none")]
        node: Option<NodeId>,
    }
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Here {
        address: Option<IpAddr>,
        /// From its client, and to it.
        messages_received: u64,
        messages_sent: u64,
        waiting_bytes: usize,
        away: bool,
    }
    let room = name(&room)?;
    let snapshots = look(&room, anteroom.shared()).await?;
    let sessions = snapshots
        .into_iter()
        .map(|SessionSnapshot { id, location, info }| {
            let since = Timestamp::try_from(info.since).unwrap_or_default();
            let (here, node) = match location {
                Location::Local(sender) | Location::Importing(_, sender) => {
                    let waiting = sender.stats();
                    let here = Here {
                        address: *info.address.lock(),
                        messages_received: info.taken_in.load(Relaxed),
                        messages_sent: waiting.messages,
                        waiting_bytes: waiting.bytes,
                        away: waiting.is_suspended,
                    };
                    (Some(here), None)
                }
                Location::Remote(node) | Location::Migrating(node) => (None, Some(node)),
            };
            Session {
                id,
                data: info.public.clone(),
                since: format!("{since:.3}"),
                here,
                node,
            }
        });
    #[derive(Serialize)]
    struct Answer {
        room: RoomName,
        sessions: Vec<Session>,
    }
    let sessions = sessions.collect();
    Ok(json(&Answer { room, sessions }))
}

async fn close(room: String, id: String, anteroom: Anteroom) -> Result<Response, ApiError> {
    let room = name(&room)?;
    let shared = anteroom.shared();
    let snapshots = look(&room, shared).await?;
    let id = SessionId::parse(&id).ok_or(UNKNOWN_SESSION)?;
    let session = snapshots.iter().find(|session| session.id == id);
    let session = session.ok_or(UNKNOWN_SESSION)?;
    shared.rooms.close(&room, session, Close::by_operator());
    info!("{id} in {room} is closed by an operator");
    Ok(StatusCode::NO_CONTENT.into_response())
}

async fn speak(room: String, body: Bytes, anteroom: Anteroom) -> Result<Response, ApiError> {
    let bad = |message| ApiError {
        status: StatusCode::BAD_REQUEST,
        code: "bad_message",
        message,
    };
    let text = str::from_utf8(&body).map_err(|_| bad("a message is UTF-8".into()))?;
    let message = protocol::parse(text).map_err(|invalid| bad(invalid.problem.message.into()))?;
    if OWN_TYPES.contains(&&*message.kind) {
        return Err(bad(
            "this type is one of the server's own: take another".into()
        ));
    }
    let receiver = match message.receiver {
        Receiver::All => None,
        Receiver::Session(id) => Some(id),
        Receiver::Server | Receiver::Unknown(_) => {
            return Err(bad(r#"receiver must be "all" or a session id"#.into()));
        }
    };
    let frame = protocol::announced(&message, receiver);
    let shared = anteroom.shared();
    let room = name(&room)?;
    look(&room, shared).await?;
    let limit = shared.cluster.as_ref().map(|cluster| cluster.down);
    let limit = limit.unwrap_or_default();
    // In a cluster it speaks from here, where it may be the only one in the room.
    let cluster = shared.cluster.as_ref();
    let reservation = cluster.map(|_| shared.rooms.reserve_for_backend(&room));
    if let Some(reservation) = &reservation {
        reservation.wait_for_answers(limit).await;
    }
    let line = timeout(limit, shared.rooms.wait_in_line()).await;
    let _line = line.map_err(|_| BUSY)?;
    let receivers = shared.rooms.announce(&room, receiver, &frame);
    let receivers = receivers.ok_or(UNKNOWN_ROOM)?;
    if receivers == 0 {
        return Err(UNKNOWN_SESSION);
    }
    shared.metrics.traffic.deliveries.inc_by(receivers as u64);
    Ok(json(&serde_json::json!({ "receivers": receivers })))
}

fn drain(anteroom: Anteroom) -> Response {
    info!("draining: no more sessions begin here");
    anteroom.drain();
    json(&serde_json::json!({ "sessions": anteroom.sessions() }))
}

/// What is wrong with a request.
struct ApiError {
    status: StatusCode,
    /// Stable.
    code: &'static str,
    /// For people.
    message: Cow<'static, str>,
}

const UNKNOWN_ROOM: ApiError = ApiError {
    status: StatusCode::NOT_FOUND,
    code: "unknown_room",
    message: Cow::Borrowed("no such room"),
};

const BUSY: ApiError = ApiError {
    status: StatusCode::SERVICE_UNAVAILABLE,
    code: "busy",
    message: Cow::Borrowed(
        "the other nodes do not answer, or are asked for too much at once: try again",
    ),
};

const UNKNOWN_SESSION: ApiError = ApiError {
    status: StatusCode::NOT_FOUND,
    code: "unknown_receiver",
    message: Cow::Borrowed("no such session in this room"),
};

impl Reply for ApiError {
    fn into_response(self) -> Response {
        let ApiError {
            status,
            code,
            message,
        } = self;
        let mut response = json(&serde_json::json!({ "code": code, "message": message }));
        *response.status_mut() = status;
        response
    }
}

fn answer(result: Result<Response, ApiError>) -> Response {
    result.unwrap_or_else(ApiError::into_response)
}

/// Why somebody is no operator.
#[derive(Debug)]
enum Unauthorized {
    /// It has no secret, or another.
    Token,
    /// It is of a web page from elsewhere.
    Page,
    /// It is for a name of this machine that anybody may have given to it.
    Name,
    /// It has come through a proxy.
    Proxy,
}

impl Reject for Unauthorized {}

/// Lets operators pass: who has the secret, or, where none is set, who is on this machine. Web pages
/// from elsewhere are kept out, which a browser on this machine may show: by the origin that they
/// have, by the site that they are from, for images, scripts, links and frames have no origin
/// (`Sec-Fetch-Site`; W3C Fetch Metadata, section 2.3), and, where no secret is set, by the name that
/// they have given to this machine's address. So is what a proxy lets in, where it can be told.
fn authorize(anteroom: &Anteroom) -> impl Filter<Extract = (), Error = Rejection> + Clone + use<> {
    let anteroom = anteroom.clone();
    warp::header::headers_cloned()
        .and_then(move |headers: HeaderMap| {
            let allowed = is_operator(anteroom.shared(), &headers);
            async move { allowed.map_err(reject::custom) }
        })
        .untuple_one()
}

fn is_of_proxies(header: &str) -> bool {
    header.starts_with("x-forwarded-") || OF_PROXIES.contains(&header)
}

fn is_operator(shared: &Shared, headers: &HeaderMap) -> Result<(), Unauthorized> {
    // The listener has refused what is none.
    let host = host::of(Version::HTTP_10, headers).ok().flatten();
    let is_own_origin = |origin: &HeaderValue| {
        let origin = Uri::try_from(origin.as_bytes()).ok();
        origin.is_some_and(|origin| {
            origin.authority().is_some() && origin.authority() == host.as_ref()
        })
    };
    let is_own_site = |site: &HeaderValue| OWN_SITES.iter().any(|own| site == own);
    // What is given twice is nobody's.
    let mut origins = headers.get_all(ORIGIN).iter();
    let is_own_page = origins.next().is_none_or(is_own_origin) && origins.next().is_none();
    if !is_own_page || !headers.get_all(SEC_FETCH_SITE).iter().all(is_own_site) {
        return Err(Unauthorized::Page);
    }
    match &shared.admin_token {
        Some(token) => {
            let given = bearer(headers).unwrap_or_default();
            verify_slices_are_equal(given.as_bytes(), token.get().expose())
                .map_err(|_| Unauthorized::Token)
        }
        None if headers.keys().any(|name| is_of_proxies(name.as_str())) => Err(Unauthorized::Proxy),
        None => {
            let host = host
                .as_ref()
                .map(|host| host.host().trim_matches(['[', ']']));
            let is_here = host.is_some_and(|host| {
                let address = host.parse::<IpAddr>();
                host == "localhost" || address.is_ok_and(|address| address.is_loopback())
            });
            is_here.then_some(()).ok_or(Unauthorized::Name)
        }
    }
}

/// Says why no route took the request.
async fn refuse(rejection: Rejection) -> Result<Response, Infallible> {
    let (status, code, message) = if let Some(unauthorized) = rejection.find() {
        match unauthorized {
            Unauthorized::Token => (
                StatusCode::UNAUTHORIZED,
                "unauthorized",
                "give the secret of --admin-token-file: Authorization: Bearer <secret>",
            ),
            Unauthorized::Page => (
                StatusCode::FORBIDDEN,
                "forbidden",
                "this is not for pages of other sites: ask from the page at /, or from a program",
            ),
            Unauthorized::Name => (
                StatusCode::FORBIDDEN,
                "forbidden",
                "this is not for names of this machine other than localhost: set \
                 --admin-token-file to use others",
            ),
            Unauthorized::Proxy => (
                StatusCode::FORBIDDEN,
                "forbidden",
                "behind a proxy --admin-token-file is needed",
            ),
        }
    } else if rejection.find::<PayloadTooLarge>().is_some() {
        (
            StatusCode::PAYLOAD_TOO_LARGE,
            "bad_message",
            "the message is over --max-message-bytes",
        )
    } else if rejection.find::<LengthRequired>().is_some() {
        (
            StatusCode::LENGTH_REQUIRED,
            "bad_message",
            "the message must come with its Content-Length",
        )
    } else if rejection.find::<MethodNotAllowed>().is_some() {
        (
            StatusCode::METHOD_NOT_ALLOWED,
            "bad_method",
            "another method is needed here",
        )
    } else {
        (
            StatusCode::NOT_FOUND,
            "not_found",
            "nothing here: there are /metrics, /health, /ready, /rooms, /rooms/{room}, \
             /rooms/{room}/sessions/{id}, /rooms/{room}/messages, /drain, and the page at /",
        )
    };
    let message = message.into();
    let mut response = ApiError {
        status,
        code,
        message,
    }
    .into_response();
    if status == StatusCode::UNAUTHORIZED {
        let challenge = HeaderValue::from_static("Bearer");
        response.headers_mut().insert(WWW_AUTHENTICATE, challenge);
    }
    Ok(response)
}

fn line(status: StatusCode, message: impl Into<Cow<'static, str>>) -> Response {
    HttpError::new(status, message).into_response()
}

fn json(answer: &impl Serialize) -> Response {
    let mut response = warp::reply::json(answer).into_response();
    let headers = response.headers_mut();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
