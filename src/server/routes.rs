//! Every URL on one screen.

use std::{
    borrow::Cow,
    convert::Infallible,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

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

use super::{
    assets::{self, Source},
    handle::Handle,
};
use crate::{
    access::{Admitted, ConnectRequest},
    protocol::{Close, RoomName, SUBPROTOCOL},
    session,
    state::{ResumeRequest, Shared},
    web::HttpError,
    websocket,
};

/// Answers every request to the server.
pub(super) fn all(handle: &Handle) -> BoxedFilter<(Response,)> {
    let get = warp::get().or(warp::head()).unify();
    let health = warp::path!("health")
        .and(get)
        .map(|| "ok\n".into_response());
    let folder = handle.config.serving.static_dir.clone();
    let page = assets::files(folder.map_or(Source::DemoPage, Source::Folder));
    room(handle)
        .or(health)
        .unify()
        .or(page)
        .unify()
        .recover(refuse)
        .unify()
        .boxed()
}

/// Answers requests for `/room` and `/room/{name}`.
pub(super) fn room(handle: &Handle) -> BoxedFilter<(Response,)> {
    let handle = handle.clone();
    warp::path("room")
        .and(room_name())
        .and(warp::method())
        .and(warp::header::headers_cloned())
        .and(query())
        .and(peer())
        .and(warp::ext::optional::<OnUpgrade>())
        .map(move |name, method, headers, query, peer, connection| {
            let joined = join(&handle, name, &method, &headers, &query, peer, connection);
            let (status, response) =
                joined.unwrap_or_else(|error| (error.status(), error.into_response()));
            handle.metrics.upgrades(status.as_u16()).inc();
            response
        })
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

/// The query of a URL.
struct Query(String);

impl Query {
    /// The first value of this name that is not empty. Names and values are decoded first (WHATWG URL,
    /// section 5.1), because a percent-encoded letter equals the letter (RFC 3986, section 2.3).
    /// Bytes that are not UTF-8 become U+FFFD.
    fn get(&self, name: &str) -> Option<Cow<'_, str>> {
        let mut pairs = form_urlencoded::parse(self.0.as_bytes());
        let pair = pairs.find(|(key, value)| key == name && !value.is_empty());
        pair.map(|(_, value)| value)
    }
}

fn query() -> impl Filter<Extract = (Query,), Error = Infallible> + Clone {
    warp::query::raw()
        .map(Query)
        .or_else(async |_| Ok((Query(String::new()),)))
}

/// The address of the peer of a connection, which [`accept`](super::accept) adds to its requests.
#[derive(Clone, Copy)]
pub(super) struct PeerAddress(pub(super) SocketAddr);

/// The address that a request came from. Under warp's own server, which adds no [`PeerAddress`], it
/// is what warp knows.
fn peer() -> impl Filter<Extract = (Option<IpAddr>,), Error = Infallible> + Clone {
    warp::ext::optional::<PeerAddress>()
        .and(warp::addr::remote())
        .map(|ours: Option<PeerAddress>, warps: Option<SocketAddr>| {
            ours.map(|peer| peer.0)
                .or(warps)
                .map(|address| address.ip())
        })
}

/// Starts a session, or resumes one, on the connection of this request. Returns the response, and the
/// status as which it counts: a client that offers the subprotocol learns a refusal from a Close frame.
///
/// # Errors
///
/// The [`HttpError`] for a request that is not a handshake, or that admission refuses.
fn join(
    shared: &Arc<Shared>,
    room: Result<RoomName, &'static str>,
    method: &Method,
    headers: &HeaderMap,
    query: &Query,
    peer: Option<IpAddr>,
    connection: Option<OnUpgrade>,
) -> Result<(StatusCode, Response), HttpError> {
    let room = room.map_err(|message| HttpError::new(StatusCode::BAD_REQUEST, message))?;
    let upgrade = websocket::accept(method, headers, connection, SUBPROTOCOL)?;
    let reads_refusals = upgrade.has_subprotocol();
    let address = shared.admission.address(peer, headers);
    let (shared, connection) = (shared.clone(), upgrade.connection);
    let status = match admit(&shared, &room, address, headers, query, reads_refusals) {
        Ok((client, resume, admitted)) => {
            session::start(shared, room, connection, client, resume, admitted);
            StatusCode::SWITCHING_PROTOCOLS
        }
        Err(error) => match Close::refusal(&error).filter(|_| reads_refusals) {
            Some(refusal) => {
                session::close_refused(shared, connection, address, refusal);
                error.status()
            }
            None => return Err(error),
        },
    };
    let response = upgrade.response.map(|empty: Bytes| empty.into());
    Ok((status, response))
}

/// Admits the client of a handshake: who it is, the session that it wants to resume, and the resources
/// of a new session unless it can resume that one, which holds its own.
///
/// # Errors
///
/// The [`HttpError`] for a client that is refused.
fn admit(
    shared: &Shared,
    room: &RoomName,
    address: Option<IpAddr>,
    headers: &HeaderMap,
    query: &Query,
    reads_refusals: bool,
) -> Result<(ConnectRequest, Option<ResumeRequest>, Option<Admitted>), HttpError> {
    let token = query.get("token");
    let client =
        shared
            .admission
            .identify(room, address, headers, token.as_deref(), reads_refusals)?;
    if shared
        .cluster
        .as_ref()
        .is_some_and(|cluster| !cluster.has_begun())
    {
        return Err(HttpError::unavailable(
            "the server is still connecting to its cluster: try again later",
        ));
    }
    let received = query.get("received");
    let resume = query
        .get("resume")
        .map(|token| ResumeRequest::parse(&token, received.as_deref()));
    let resumable = resume.as_ref().is_some_and(|request| {
        let can_resume = shared.resumes.can_resume(request, room, client.user());
        can_resume && !shared.stopping.is_cancelled()
    });
    if resume.is_some() && !resumable && !shared.can_ask_nodes() {
        return Err(HttpError::unavailable(
            "the server cannot ask its cluster for the session: try again later, another may answer",
        ));
    }
    let admitted = match resumable {
        true => None,
        false => Some(shared.admission.admit(room, client.address)?),
    };
    Ok((client, resume, admitted))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn query_values_are_decoded_and_empty_ones_count_as_absent() {
        for (query, value) in [
            ("", None),
            ("token", None),
            ("token=", None),
            ("token=a", Some("a")),
            ("other=b&token=a&token=c", Some("a")),
            ("token=&token=a", Some("a")),
            ("token=a%2Eb%2e%63", Some("a.b.c")),
            ("t%6Fken=a", Some("a")),
            ("token=a=b", Some("a=b")),
            ("token=%&x=%zz", Some("%")),
            ("token=%FFa", Some("\u{FFFD}a")),
            ("%FF=a&%", None),
            ("Token=a", None),
        ] {
            assert_eq!(
                Query(query.into()).get("token").as_deref(),
                value,
                "{query}"
            );
        }
    }
}
