//! Every URL on one screen.

use std::{
    borrow::Cow,
    convert::Infallible,
    net::{IpAddr, SocketAddr},
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

use super::{anteroom::Anteroom, assets, assets::Source};
use crate::{
    access,
    protocol::{RoomName, SUBPROTOCOL},
    session,
    state::ResumeRequest,
    web::HttpError,
    websocket,
};

/// All that the server answers.
pub(crate) fn all(anteroom: &Anteroom) -> BoxedFilter<(Response,)> {
    let get = warp::get().or(warp::head()).unify();
    let health = warp::path!("health")
        .and(get)
        .map(|| "ok\n".into_response());
    let folder = anteroom.shared().config.serving.static_dir.clone();
    let page = assets::files(folder.map_or(Source::Page, Source::Folder));
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
        .and(peer())
        .and(warp::ext::optional::<OnUpgrade>())
        .map(move |name, method, headers, query, peer, connection| {
            let response = join(&anteroom, name, &method, &headers, &query, peer, connection)
                .unwrap_or_else(HttpError::into_response);
            let status = response.status().as_u16();
            anteroom.shared().metrics.upgrades(status).inc();
            response
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

/// What stands behind the question mark of a URL.
struct Query(String);

impl Query {
    /// The first value of this name that is not empty, both decoded (WHATWG URL, section 5.1): what is
    /// percent-encoded without need is the same (RFC 3986, section 2.3). Bytes that are no UTF-8
    /// become U+FFFD.
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

/// The other end of a connection of our listener.
#[derive(Clone, Copy)]
pub(crate) struct PeerAddress(pub(crate) SocketAddr);

/// The address that a request comes from, be it to our listener or to warp's server.
fn peer() -> impl Filter<Extract = (Option<IpAddr>,), Error = Infallible> + Clone {
    warp::ext::optional::<PeerAddress>()
        .and(warp::addr::remote())
        .map(|ours: Option<PeerAddress>, warps: Option<SocketAddr>| {
            ours.map(|peer| peer.0)
                .or(warps)
                .map(|address| address.ip())
        })
}

fn join(
    anteroom: &Anteroom,
    room: Result<RoomName, &'static str>,
    method: &Method,
    headers: &HeaderMap,
    query: &Query,
    peer: Option<IpAddr>,
    connection: Option<OnUpgrade>,
) -> Result<Response, HttpError> {
    let room = room.map_err(|message| HttpError::new(StatusCode::BAD_REQUEST, message))?;
    let upgrade = websocket::accept(method, headers, connection, SUBPROTOCOL)?;
    let shared = anteroom.shared();
    let token = query.get("token");
    let client = shared
        .admission
        .identify(&room, peer, headers, token.as_deref())?;
    if shared
        .cluster
        .as_ref()
        .is_some_and(|cluster| !cluster.has_begun())
    {
        return Err(access::unavailable(
            "the server waits for its cluster: try again later",
        ));
    }
    let received = query.get("received");
    let resume = query
        .get("resume")
        .map(|token| ResumeRequest::parse(&token, received.as_deref()));
    let resumable = resume.as_ref().is_some_and(|request| {
        let can_resume = shared.resumes.can_resume(request, &room, client.user());
        can_resume && !shared.stopping.is_cancelled()
    });
    // A session that is resumed has all it needs already.
    let admitted = match resumable {
        true => None,
        false => Some(shared.admission.admit(&room, client.address)?),
    };
    let connection = upgrade.connection;
    session::start(shared.clone(), room, connection, client, resume, admitted);
    Ok(upgrade.response.map(|empty: Bytes| empty.into()))
}

/// Says in a line of text why no route took the request: it is of another method, or for another
/// path.
async fn refuse(rejection: Rejection) -> Result<Response, Infallible> {
    let refusal = if rejection.find::<MethodNotAllowed>().is_some() {
        let message = "only GET and HEAD are answered here";
        HttpError::new(StatusCode::METHOD_NOT_ALLOWED, message)
            .with(ALLOW, HeaderValue::from_static("GET, HEAD"))
    } else {
        let message = "nothing here: the page is at /, the rooms are at /room";
        HttpError::new(StatusCode::NOT_FOUND, message)
    };
    Ok(refusal.into_response())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_decoded_and_what_is_empty_is_not_there() {
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
