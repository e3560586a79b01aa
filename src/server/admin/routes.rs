//! Every URL of the admin API on one screen.

use std::convert::Infallible;

use http::{HeaderValue, StatusCode, header::CONTENT_TYPE};
use log::info;
use percent_encoding::percent_decode_str;
use warp::{
    Filter, Rejection,
    filters::BoxedFilter,
    reject::{LengthRequired, MethodNotAllowed, PayloadTooLarge},
    reply::{Reply, Response},
};

use super::{
    answer::{ApiError, from_result, json, line},
    history,
    operator::{Unauthorized, authorize},
    rooms,
};
use crate::{
    metrics::CONTENT_TYPE as OPENMETRICS,
    server::{
        assets::{self, Source},
        handle::Handle,
        status::{self, Status},
    },
};

/// How many bytes the fields besides `data` may add to a message of `--max-message-bytes`.
const ENVELOPE_BYTES: u64 = 1024;

/// Answers every request to the admin listener.
pub(in crate::server) fn all(handle: &Handle) -> BoxedFilter<(Response,)> {
    let get = warp::get().or(warp::head()).unify();
    let with = {
        let handle = handle.clone();
        warp::any().map(move || handle.clone())
    };
    let room = || warp::path::param::<String>();
    let query = || warp::query::raw().or(warp::any().map(String::new)).unify();
    let session = warp::path::param()
        .map(|id: String| percent_decode_str(&id).decode_utf8_lossy().into_owned());
    let max_body = handle.config.limits.max_message_bytes as u64 + ENVELOPE_BYTES;

    let health = warp::path!("health")
        .and(get)
        .map(|| line(StatusCode::OK, "ok"));
    let ready = warp::path!("ready").and(get).and(with.clone()).map(ready);
    let metrics = warp::path!("metrics")
        .and(get)
        .and(with.clone())
        .map(metrics);
    let status = warp::path!("status")
        .and(get)
        .and(with.clone())
        .map(|handle: Handle| json(&Status::of(&handle)));
    let rooms = warp::path!("rooms")
        .and(get)
        .and(with.clone())
        .map(rooms::list);
    let sessions = warp::path("rooms")
        .and(room())
        .and(warp::path::end())
        .and(get)
        .and(query())
        .and(with.clone())
        .then(rooms::sessions)
        .map(from_result);
    let close = warp::path("rooms")
        .and(room())
        .and(warp::path("sessions"))
        .and(session)
        .and(warp::path::end())
        .and(warp::delete())
        .and(query())
        .and(with.clone())
        .then(rooms::close_session)
        .map(from_result);
    let body = warp::body::content_length_limit(max_body).and(warp::body::bytes());
    let send = warp::path("rooms")
        .and(room())
        .and(warp::path!("messages"))
        .and(warp::post())
        .and(body)
        .and(with.clone())
        .then(rooms::send)
        .map(from_result);
    let send_to_all = warp::path!("messages")
        .and(warp::post())
        .and(body)
        .and(with.clone())
        .then(rooms::send_to_all)
        .map(from_result);
    let of_room = || warp::path("rooms").and(room()).and(warp::path("history"));
    let page = of_room()
        .and(warp::path::end())
        .and(get)
        .and(query())
        .and(with.clone())
        .then(history::page)
        .map(from_result);
    let remove = of_room()
        .and(warp::path::param::<u64>())
        .and(warp::path::end())
        .and(warp::delete())
        .and(with.clone())
        .then(|room, number, handle| history::remove(room, Some(number), handle))
        .map(from_result);
    let remove_all = of_room()
        .and(warp::path::end())
        .and(warp::delete())
        .and(with.clone())
        .then(|room, handle| history::remove(room, None, handle))
        .map(from_result);
    let drain = warp::path!("drain").and(warp::post()).and(with).map(drain);

    // Boxed, all routes have the same type. Nested in each other, their types take the compiler 15 s.
    let for_operators = [
        status.boxed(),
        rooms.boxed(),
        sessions.boxed(),
        close.boxed(),
        send.boxed(),
        send_to_all.boxed(),
        page.boxed(),
        remove.boxed(),
        remove_all.boxed(),
        drain.boxed(),
    ];
    let for_operators = for_operators
        .into_iter()
        .fold(metrics.boxed(), |routes, route| {
            routes.or(route).unify().boxed()
        });
    let for_operators = authorize(handle).and(for_operators);
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

fn ready(handle: Handle) -> Response {
    match status::why_not_ready(&handle) {
        None => line(StatusCode::OK, "ready"),
        Some(reason) => line(StatusCode::SERVICE_UNAVAILABLE, reason),
    }
}

fn metrics(handle: Handle) -> Response {
    let mut response = status::metrics(&handle).into_response();
    let content_type = HeaderValue::from_static(OPENMETRICS);
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    response
}

fn drain(handle: Handle) -> Response {
    info!("draining: the server accepts no new sessions");
    handle.admission.close();
    json(&serde_json::json!({ "sessions": handle.heartbeat.len() }))
}

/// Answers a request that no route took.
async fn refuse(rejection: Rejection) -> Result<Response, Infallible> {
    let error = if let Some(unauthorized) = rejection.find::<Unauthorized>() {
        unauthorized.into()
    } else if rejection.find::<PayloadTooLarge>().is_some() {
        ApiError::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "bad_message",
            "the message exceeds --max-message-bytes: send a smaller one",
        )
    } else if rejection.find::<LengthRequired>().is_some() {
        ApiError::new(
            StatusCode::LENGTH_REQUIRED,
            "bad_message",
            "send the message with a Content-Length header",
        )
    } else if rejection.find::<MethodNotAllowed>().is_some() {
        ApiError::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "bad_method",
            "this URL does not support the method: use GET to read, POST for /drain and messages, \
             DELETE for sessions and the history",
        )
    } else {
        ApiError::new(
            StatusCode::NOT_FOUND,
            "not_found",
            "no such URL: use /metrics, /status, /health, /ready, /rooms, /rooms/{room}, \
             /rooms/{room}/sessions/{id}, /rooms/{room}/messages, \
             /rooms/{room}/history, /rooms/{room}/history/{number}, /messages, /drain, or the page at /",
        )
    };
    Ok(error.into_response())
}
