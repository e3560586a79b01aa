//! Every URL on one screen.

use std::convert::Infallible;

use http::{HeaderValue, StatusCode, header::ALLOW};
use warp::{
    Filter, Rejection,
    filters::BoxedFilter,
    path::{FullPath, Tail},
    reject::MethodNotAllowed,
    reply::{Reply, Response},
};

use super::{
    assets::{self, Source},
    dialect_routes,
    handle::Handle,
    handshake::{Handshake, Target, handshake},
};
use crate::{dialects, protocol::RoomName, state::ResumeRequest, web::HttpError};

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
    let handle = handle.clone();
    warp::path("room")
        .and(room_name())
        .and(handshake())
        .map(
            move |name: Result<RoomName, &'static str>, handshake: Handshake| {
                let room = match name {
                    Ok(room) => room,
                    Err(message) => {
                        let error = HttpError::new(StatusCode::BAD_REQUEST, message);
                        handle.metrics.upgrades(error.status().as_u16()).inc();
                        return error.into_response();
                    }
                };
                let format = dialects::of(None);
                handshake.answer(&handle, format, |handshake| {
                    let query = &handshake.query;
                    let received = query.get("received");
                    let resume = query.get("resume");
                    Ok(Target {
                        token: query.get("token").map(Into::into),
                        resume: resume
                            .map(|token| ResumeRequest::parse(&token, received.as_deref())),
                        ..Target::of(room)
                    })
                })
            },
        )
        .boxed()
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
