//! Rooms and sessions in the admin API: listing, closing, and messages of the backend.

use std::{borrow::Cow, net::IpAddr, sync::atomic::Ordering::Relaxed};

use bytes::Bytes;
use http::StatusCode;
use jiff::Timestamp;
use log::info;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::time::timeout;
use warp::reply::{Reply, Response};

use super::answer::{ApiError, json};
use crate::{
    cluster::NodeId,
    protocol::{self, Close, Message, Receiver, RoomName, SessionId},
    rooms::{Busy, SessionSnapshot},
    server::handle::Handle,
    state::Shared,
};

/// The message types of the server itself. The backend may not send them: clients would take such a
/// message for an event or an answer.
const SERVER_TYPES: [&str; 9] = [
    "new", "close", "state", "history", "hello", "pong", "ack", "error", "resumed",
];

const UNKNOWN_ROOM: ApiError = ApiError::new(StatusCode::NOT_FOUND, "unknown_room", "no such room");

const UNKNOWN_SESSION: ApiError = ApiError::new(
    StatusCode::NOT_FOUND,
    "unknown_receiver",
    "no such session in this room",
);

const BAD_QUERY: ApiError = ApiError::new(
    StatusCode::BAD_REQUEST,
    "bad_query",
    "the query may have dialect: peerjs, y-webrtc, trystero or matchbox",
);

const BUSY: ApiError = ApiError::new(
    StatusCode::SERVICE_UNAVAILABLE,
    "busy",
    "the other nodes do not answer, or have too many requests to answer: try again",
);

/// The room of an answer.
#[derive(Serialize)]
struct Which<'a> {
    room: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    dialect: Option<String>,
}

impl<'a> From<&'a RoomName> for Which<'a> {
    fn from(room: &'a RoomName) -> Which<'a> {
        Which {
            room: room.as_str(),
            dialect: room.dialect().map(|dialect| dialect.to_string()),
        }
    }
}

/// `GET /rooms`: the rooms of this node, by name, with their numbers of sessions.
pub(super) fn list(handle: Handle) -> Response {
    #[derive(Serialize)]
    struct Room<'a> {
        #[serde(flatten)]
        room: Which<'a>,
        sessions: usize,
    }
    let mut rooms = handle.rooms.list();
    rooms.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
    let rooms = rooms.iter().map(|(room, sessions)| Room {
        room: Which::from(room),
        sessions: *sessions,
    });
    json(&serde_json::json!({ "rooms": rooms.collect::<Vec<_>>() }))
}

/// `GET /rooms/{room}`: the sessions of a room on all nodes.
pub(super) async fn sessions(
    room: String,
    query: String,
    handle: Handle,
) -> Result<Response, ApiError> {
    #[derive(Serialize)]
    struct Answer<'a> {
        #[serde(flatten)]
        room: Which<'a>,
        sessions: Vec<Session>,
    }
    let room = room_of_any_dialect(&room, &query)?;
    let snapshots = snapshots(&room, &handle).await?;
    let sessions = snapshots.into_iter().map(Session::from).collect();
    let room = Which::from(&room);
    Ok(json(&Answer { room, sessions }))
}

/// `DELETE /rooms/{room}/sessions/{id}`: closes a session, on whichever node it is.
pub(super) async fn close_session(
    room: String,
    id: String,
    query: String,
    handle: Handle,
) -> Result<Response, ApiError> {
    let room = room_of_any_dialect(&room, &query)?;
    let snapshots = snapshots(&room, &handle).await?;
    let id = SessionId::parse(&id).ok_or(UNKNOWN_SESSION)?;
    let session = snapshots.iter().find(|session| session.id == id);
    let session = session.ok_or(UNKNOWN_SESSION)?;
    handle.rooms.close(&room, session, Close::by_operator());
    info!("an operator closed session {id} in {room}");
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// `POST /rooms/{room}/messages`: sends a message as `server`, to all sessions of a room, to those of a user, or to
/// one.
pub(super) async fn send(room: String, body: Bytes, handle: Handle) -> Result<Response, ApiError> {
    let message = message(&body)?;
    if let Receiver::Server | Receiver::Unknown(_) = message.receiver {
        let receivers = r#"receiver must be "all", "user:" and a name, or a session id"#;
        return Err(bad_message(receivers));
    }
    let frame = protocol::announced(&message);
    let room = room_name(&room)?;
    snapshots(&room, &handle).await?;
    let limit = handle.cluster.as_ref().map(|cluster| cluster.down);
    let limit = limit.unwrap_or_default();
    // In a cluster, the message goes out from this node, where the room may have no session: the
    // backend enters the room for the time of the message.
    let cluster = handle.cluster.as_ref();
    let reservation = cluster.map(|_| handle.rooms.reserve_for_backend(&room));
    if let Some(reservation) = &reservation {
        reservation.wait_for_snapshots(limit).await;
    }
    handle.rooms.wait_for_flushes(&room).await;
    let line = timeout(limit, handle.rooms.wait_in_line()).await;
    let _line = line.map_err(|_| BUSY)?;
    let receivers = handle.rooms.announce(&room, &message.receiver, &frame);
    let receivers = receivers.ok_or(UNKNOWN_ROOM)?;
    if receivers == 0 {
        return Err(UNKNOWN_SESSION);
    }
    handle.metrics.traffic.deliveries.inc_by(receivers as u64);
    Ok(json(&serde_json::json!({ "receivers": receivers })))
}

/// `POST /messages`: sends a message as `server`, to all sessions of this node.
pub(super) async fn send_to_all(body: Bytes, handle: Handle) -> Result<Response, ApiError> {
    let message = message(&body)?;
    if !matches!(message.receiver, Receiver::All) {
        return Err(bad_message(
            r#"receiver must be "all": send to one session at /rooms/{room}/messages"#,
        ));
    }
    let frame = protocol::announced(&message);
    let receivers = handle.rooms.announce_to_local(&frame).await;
    handle.metrics.traffic.deliveries.inc_by(receivers as u64);
    Ok(json(&serde_json::json!({ "receivers": receivers })))
}

/// The message in the body of a request.
fn message(body: &[u8]) -> Result<Message<'_>, ApiError> {
    let text = str::from_utf8(body).map_err(|_| bad_message("the message must be UTF-8"))?;
    let message = protocol::parse(text).map_err(|invalid| bad_message(invalid.problem.message))?;
    match SERVER_TYPES.contains(&&*message.kind) {
        true => Err(bad_message(
            "this type is reserved for the server: choose another",
        )),
        false => Ok(message),
    }
}

fn bad_message(message: impl Into<Cow<'static, str>>) -> ApiError {
    ApiError {
        status: StatusCode::BAD_REQUEST,
        code: "bad_message",
        message: message.into(),
    }
}

/// A session in the answer to `GET /rooms/{room}`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Session {
    id: SessionId,
    /// The name that it claims in the room: the id of a PeerJS client.
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    /// The public claims of its token.
    data: Option<Box<RawValue>>,
    /// What the session says of itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    state: Option<Box<RawValue>>,
    /// When it started, in RFC 3339 with milliseconds.
    since: String,
    #[serde(flatten)]
    local: Option<LocalSession>,
    /// The other node that the session is on.
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<NodeId>,
}

/// The facts that only the node of a session knows.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct LocalSession {
    address: Option<IpAddr>,
    /// How many messages the client sent.
    messages_received: u64,
    /// How many of these were binary.
    binary: u64,
    /// How many messages the client was sent.
    messages_sent: u64,
    /// The size of what waits in the outbox.
    waiting_bytes: usize,
    #[serde(rename = "away")]
    suspended: bool,
}

impl From<SessionSnapshot> for Session {
    fn from(snapshot: SessionSnapshot) -> Session {
        let SessionSnapshot {
            id,
            location,
            info,
            state,
        } = snapshot;
        let since = i64::try_from(info.since).unwrap_or_default();
        let since = Timestamp::from_millisecond(since).unwrap_or_default();
        let local = location.outbox().map(|outbox| {
            let outbox = outbox.stats();
            LocalSession {
                address: *info.address.lock(),
                messages_received: info.taken_in.load(Relaxed),
                binary: info.binary.load(Relaxed),
                messages_sent: outbox.messages,
                waiting_bytes: outbox.bytes,
                suspended: outbox.is_suspended,
            }
        });
        Session {
            id,
            name: info.name().map(Into::into),
            data: info.public().map(ToOwned::to_owned),
            state: state.and_then(|state| state.value.clone()),
            since: format!("{since:.3}"),
            local,
            node: location.node(),
        }
    }
}

/// The room that a path segment names.
pub(super) fn room_name(segment: &str) -> Result<RoomName, ApiError> {
    RoomName::from_segment(segment)
        .map_err(|message| ApiError::new(StatusCode::BAD_REQUEST, "bad_room", message))
}

/// The room that a path segment names, of the dialect in the query if there is one.
fn room_of_any_dialect(segment: &str, query: &str) -> Result<RoomName, ApiError> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Asked {
        dialect: Option<String>,
    }
    let room = room_name(segment)?;
    let asked: Asked = serde_urlencoded::from_str(query).map_err(|_| BAD_QUERY)?;
    match asked.dialect.map(|dialect| dialect.parse()) {
        None => Ok(room),
        Some(Ok(dialect)) => Ok(room.in_dialect(dialect)),
        Some(Err(_)) => Err(BAD_QUERY),
    }
}

/// The sessions of a room; in a cluster, those on other nodes included.
///
/// # Errors
///
/// The room has no session, or other nodes may have some but cannot be asked.
async fn snapshots(room: &RoomName, shared: &Shared) -> Result<Vec<SessionSnapshot>, ApiError> {
    let limit = shared.cluster.as_ref().map(|cluster| cluster.down);
    let looking = shared.rooms.query(room, limit.unwrap_or_default());
    let snapshots = looking.await.map_err(|Busy| BUSY)?;
    let is_disconnected = shared.cluster.as_ref().is_some_and(|it| !it.is_connected());
    match snapshots.is_empty() {
        true if is_disconnected => Err(BUSY),
        true => Err(UNKNOWN_ROOM),
        false => Ok(snapshots),
    }
}
