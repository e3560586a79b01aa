//! The history of rooms in the admin API: reading and removing.

use http::StatusCode;
use log::info;
use serde::Deserialize;
use warp::reply::{Reply, Response};

use super::{
    answer::{ApiError, json},
    rooms::room_name,
};
use crate::{
    history::{History, Past, Query, Unavailable},
    protocol::RoomName,
    server::handle::Handle,
};

/// How many messages are listed if the operator does not say.
const DEFAULT_LAST: usize = 50;

/// The longest list, in bytes.
const MAX_BYTES: usize = 16 << 20;

const NO_HISTORY: ApiError = ApiError::new(
    StatusCode::NOT_FOUND,
    "no_history",
    "this room keeps no history: name it with --history-room",
);

const UNKNOWN_MESSAGE: ApiError = ApiError::new(
    StatusCode::NOT_FOUND,
    "unknown_message",
    "no message with this number is in the history of this room",
);

const BAD_QUERY: ApiError = ApiError::new(
    StatusCode::BAD_REQUEST,
    "bad_query",
    "the query may have last and before, both integers",
);

const HISTORY_FAILED: ApiError = ApiError::new(
    StatusCode::SERVICE_UNAVAILABLE,
    "history_failed",
    "the history cannot be used now: see the log, and try again",
);

/// Which messages of a room an operator asks for.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Asked {
    #[serde(default = "default_last")]
    last: usize,
    #[serde(default = "u64_max")]
    before: u64,
}

fn default_last() -> usize {
    DEFAULT_LAST
}

fn u64_max() -> u64 {
    u64::MAX
}

/// `GET /rooms/{room}/history`: the last messages of a room, oldest first.
pub(super) async fn page(
    room: String,
    query: String,
    handle: Handle,
) -> Result<Response, ApiError> {
    let (room, history) = of_room(&room, &handle)?;
    let asked: Asked = serde_urlencoded::from_str(&query).map_err(|_| BAD_QUERY)?;
    let query = Query {
        last: asked.last,
        before: asked.before,
        bytes: MAX_BYTES,
        overhead: 0,
    };
    let page = history.page(&room, query, &|_| Past::All).await;
    let page = page.map_err(|Unavailable| HISTORY_FAILED)?;
    // A room that is not named any more may still have messages.
    if page.messages.is_empty() && !history.includes(&room) {
        return Err(NO_HISTORY);
    }
    Ok(json(&page))
}

/// `DELETE /rooms/{room}/history` and `DELETE /rooms/{room}/history/{number}`: removes all messages, or one.
pub(super) async fn remove(
    room: String,
    number: Option<u64>,
    handle: Handle,
) -> Result<Response, ApiError> {
    let (room, history) = of_room(&room, &handle)?;
    let removed = history.remove(&room, number).await;
    let removed = removed.map_err(|Unavailable| HISTORY_FAILED)?;
    if removed == 0 && !history.includes(&room) {
        return Err(NO_HISTORY);
    }
    if number.is_some() && removed == 0 {
        return Err(UNKNOWN_MESSAGE);
    }
    info!("an operator removed {removed} message(s) from the history of {room}");
    Ok(json(&serde_json::json!({ "removed": removed })).into_response())
}

/// The room that a path segment names, and the history.
fn of_room<'a>(segment: &str, handle: &'a Handle) -> Result<(RoomName, &'a History), ApiError> {
    let room = room_name(segment)?;
    let history = handle.history.as_deref();
    Ok((room, history.ok_or(NO_HISTORY)?))
}
