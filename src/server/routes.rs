//! Every URL on one screen.

use std::{convert::Infallible, pin::pin};

use http::{HeaderValue, Method, StatusCode, header::ALLOW};
use warp::{
    Filter, Rejection,
    filters::BoxedFilter,
    path::{FullPath, Tail},
    reject::MethodNotAllowed,
    reply::{Reply, Response},
};

use super::{
    assets::{self, Source},
    cross_origin, dialect_routes,
    handle::Handle,
    handshake::{Handshake, Target, handshake},
    streams,
};
use crate::{dialects, protocol::RoomName, web::HttpError};

/// Answers every request to the server.
pub(super) fn all(handle: &Handle) -> BoxedFilter<(Response,)> {
    let get = warp::get().or(warp::head()).unify();
    let health = warp::path!("health")
        .and(get)
        .map(|| "ok\n".into_response());
    let folder = handle.config.serving.static_dir.clone();
    let page = assets::files(folder.map_or(Source::DemoPage, Source::Folder));
    sessions(handle)
        .or(health)
        .unify()
        .or(page)
        .unify()
        .recover(refuse)
        .unify()
        .boxed()
}

/// Answers requests for `/room` and `/room/{name}`, and for the URLs of dialects that are served.
pub(super) fn sessions(handle: &Handle) -> BoxedFilter<(Response,)> {
    room(handle).or(dialect_routes::all(handle)).unify().boxed()
}

/// Answers requests for `/room` and `/room/{name}`.
fn room(handle: &Handle) -> BoxedFilter<(Response,)> {
    let with = {
        let handle = handle.clone();
        warp::any().map(move || handle.clone())
    };
    let room = warp::path("room").and(room_name());
    // Most requests are these. The path comes before the method: another path with this method is not found.
    let session = room
        .clone()
        .and(opens())
        .and(handshake())
        .and(with.clone())
        .map(session);
    let post = room
        .clone()
        .and(warp::post())
        .and(handshake())
        .and(with.clone())
        .and(warp::body::stream())
        .then(
            async |name, handshake: Handshake, handle: Handle, body| match name {
                Ok(room) => streams::post(&handle, room, &handshake, pin!(body)).await,
                Err(message) => HttpError::new(StatusCode::BAD_REQUEST, message).into_response(),
            },
        );
    let delete = room.and(warp::delete()).and(handshake()).and(with).then(
        async |name, handshake: Handshake, handle: Handle| match name {
            Ok(room) => streams::delete(&handle, room, &handshake).await,
            Err(message) => HttpError::new(StatusCode::BAD_REQUEST, message).into_response(),
        },
    );
    session.or(post).unify().or(delete).unify().boxed()
}

/// Takes the requests that are not about a session that is there.
fn opens() -> impl Filter<Extract = (), Error = Rejection> + Clone {
    warp::method()
        .and_then(async |method| match method {
            Method::POST | Method::DELETE => Err(warp::reject::not_found()),
            _ => Ok(()),
        })
        .untuple_one()
}

/// Starts a session in a room, or resumes one.
fn session(name: Result<RoomName, &'static str>, handshake: Handshake, handle: Handle) -> Response {
    let refuse = |error: HttpError| {
        handle.metrics.upgrades(error.status().as_u16()).inc();
        cross_origin::readable(&handle, &handshake.headers, error.into_response())
    };
    let room = match name {
        Ok(room) => room,
        Err(message) => return refuse(HttpError::new(StatusCode::BAD_REQUEST, message)),
    };
    match handshake.method.clone() {
        Method::OPTIONS => return cross_origin::preflight(&handle, &handshake.headers),
        Method::GET => {}
        other => {
            let message = format!(
                "open a session with GET, send with POST and leave with DELETE, not {other}"
            );
            let error = HttpError::new(StatusCode::METHOD_NOT_ALLOWED, message);
            return refuse(error.with(ALLOW, cross_origin::METHODS));
        }
    }
    match handshake.form() {
        Some(form) => streams::open(&handle, room, handshake, form),
        None => handshake.answer(&handle, dialects::of(None), |handshake| {
            Ok(Target::of_query(room, &handshake.query, None))
        }),
    }
}

/// The room that the rest of the path names: one segment, or none for the default room.
fn room_name() -> impl Filter<Extract = (Result<RoomName, &'static str>,), Error = Rejection> + Clone
{
    warp::path::full()
        .and(warp::path::tail())
        .and_then(async |path: FullPath, tail: Tail| match tail.as_str() {
            "" if !path.as_str().ends_with('/') => Ok(Ok(RoomName::default_room())),
            more if more.contains('/') => Err(warp::reject::not_found()),
            segment => Ok(RoomName::from_segment(segment)),
        })
}

/// Answers a request that no route took.
async fn refuse(rejection: Rejection) -> Result<Response, Infallible> {
    let error = if rejection.find::<MethodNotAllowed>().is_some() {
        let message = "this URL supports only GET and HEAD";
        HttpError::new(StatusCode::METHOD_NOT_ALLOWED, message)
            .with(ALLOW, HeaderValue::from_static("GET, HEAD"))
    } else {
        let message = "no such URL: the page is at /, rooms are at /room and /room/{name}";
        HttpError::new(StatusCode::NOT_FOUND, message)
    };
    Ok(error.into_response())
}
