//! Every URL on one screen.

use std::convert::Infallible;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header::ALLOW};
use hyper::upgrade::OnUpgrade;
use warp::{
    Filter, Rejection,
    filters::BoxedFilter,
    path::{FullPath, Tail},
    reject::MethodNotAllowed,
    reply::{Reply, Response},
};

use crate::{
    Anteroom, page,
    protocol::{RoomName, SUBPROTOCOL},
    refusal::Refusal,
    resume, session, websocket,
};

/// All that the server answers.
pub(crate) fn all(anteroom: &Anteroom) -> BoxedFilter<(Response,)> {
    let get = warp::get().or(warp::head()).unify();
    let health = warp::path!("health")
        .and(get)
        .map(|| "ok\n".into_response());
    let page = page::files(anteroom.shared().config.static_dir.clone());
    room(anteroom)
        .or(health)
        .unify()
        .or(page)
        .unify()
        .recover(refuse)
        .unify()
        .boxed()
}

/// `/room` and `/room/{name}`.
pub(crate) fn room(anteroom: &Anteroom) -> BoxedFilter<(Response,)> {
    let anteroom = anteroom.clone();
    warp::path("room")
        .and(room_name())
        .and(warp::method())
        .and(warp::header::headers_cloned())
        .and(query())
        .and(warp::ext::optional::<OnUpgrade>())
        .map(move |name, method, headers, query: String, connection| {
            join(&anteroom, name, &method, &headers, &query, connection)
                .unwrap_or_else(Refusal::into_response)
        })
        .boxed()
}

/// The name in the one segment that is left, the default room's without one.
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

/// What stands behind the question mark, if there is one.
fn query() -> impl Filter<Extract = (String,), Error = Infallible> + Clone {
    warp::query::raw().or_else(async |_| Ok((String::new(),)))
}

fn join(
    anteroom: &Anteroom,
    room: Result<RoomName, &'static str>,
    method: &Method,
    headers: &HeaderMap,
    query: &str,
    connection: Option<OnUpgrade>,
) -> Result<Response, Refusal> {
    let room = room.map_err(|message| Refusal::new(StatusCode::BAD_REQUEST, message))?;
    let upgrade = websocket::accept(method, headers, connection, SUBPROTOCOL)?;
    let shared = anteroom.shared();
    shared.admission.check_origin(headers)?;
    let resume = resume::Request::from_query(query);
    let resumable = resume
        .as_ref()
        .is_some_and(|request| shared.resumes.find(request, &room).is_some());
    // A session that is resumed has its place already.
    let place = match resumable && !shared.stopping.is_cancelled() {
        true => None,
        false => Some(shared.admission.admit()?),
    };
    session::start(shared.clone(), room, upgrade.connection, resume, place);
    Ok(upgrade.response.map(|empty: Bytes| empty.into()))
}

/// Says in a line of text why no route took the request: it is of another method, or for another
/// path.
async fn refuse(rejection: Rejection) -> Result<Response, Infallible> {
    let refusal = if rejection.find::<MethodNotAllowed>().is_some() {
        let message = "only GET and HEAD are answered here";
        Refusal::new(StatusCode::METHOD_NOT_ALLOWED, message)
            .with(ALLOW, HeaderValue::from_static("GET, HEAD"))
    } else {
        let message = "nothing here: the page is at /, the rooms are at /room";
        Refusal::new(StatusCode::NOT_FOUND, message)
    };
    Ok(refusal.into_response())
}
