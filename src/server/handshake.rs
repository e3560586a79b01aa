//! The handshake of a client that wants a session, whatever it speaks.

use std::{
    borrow::Cow,
    convert::Infallible,
    net::{IpAddr, SocketAddr},
    num::NonZeroU32,
    sync::{Arc, Weak},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header::CONTENT_TYPE};
use hyper::upgrade::OnUpgrade;
use warp::{
    Filter,
    reply::{Reply, Response},
};

use super::cross_origin::{name_own_origin, readable};
use crate::{
    access::{Admitted, ConnectRequest},
    dialects::WireFormat,
    event_stream::{Body, Form},
    protocol::{Close, CloseCode, RoomName, SUBPROTOCOL, TokenHash},
    rooms::NameClaim,
    session::{self, Connection},
    state::{ResumeRequest, Shared},
    web::{HttpError, SocketWatch},
    websocket,
};

/// Asks nginx not to hold an answer back.
const X_ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// A request that may be a handshake.
pub(super) struct Handshake {
    pub(super) method: Method,
    pub(super) headers: HeaderMap,
    pub(super) query: Query,
    peer: Option<IpAddr>,
    /// The connection that the request came on, if the server is this one.
    source: Option<PeerConnection>,
    connection: Option<OnUpgrade>,
}

/// What a client wants to join, and with what.
pub(super) struct Target {
    pub(super) room: RoomName,
    /// The token in the URL.
    pub(super) token: Option<String>,
    /// The name that the client claims in the room. The token proves that another session is of the same client, or
    /// the user whom it names.
    pub(super) name: Option<String>,
    /// The session that the client wants to resume.
    pub(super) resume: Option<ResumeRequest>,
    /// How many sessions make up a group, if the client wants to be in one.
    pub(super) group_size: Option<NonZeroU32>,
}

impl Target {
    /// A room, and nothing else.
    pub(super) fn of(room: RoomName) -> Target {
        Target {
            room,
            token: None,
            name: None,
            resume: None,
            group_size: None,
        }
    }

    /// A room, with what the query says. How many messages of a session have come may be known from elsewhere.
    pub(super) fn of_query(room: RoomName, query: &Query, received: Option<&str>) -> Target {
        let received = received.map(Cow::from).or_else(|| query.get("received"));
        let resume = query.get("resume");
        Target {
            token: query.get("token").map(Into::into),
            resume: resume.map(|token| ResumeRequest::parse(&token, received.as_deref())),
            ..Target::of(room)
        }
    }
}

/// The query of a URL.
pub(super) struct Query(String);

impl Query {
    /// The first value of this name that is not empty. Names and values are decoded first (WHATWG URL,
    /// section 5.1), because a percent-encoded letter equals the letter (RFC 3986, section 2.3).
    /// Bytes that are not UTF-8 become U+FFFD.
    pub(super) fn get(&self, name: &str) -> Option<Cow<'_, str>> {
        let mut pairs = form_urlencoded::parse(self.0.as_bytes());
        let pair = pairs.find(|(key, value)| key == name && !value.is_empty());
        pair.map(|(_, value)| value)
    }
}

/// A connection, which [`accept`](super::accept) adds to its requests.
#[derive(Clone)]
pub(super) struct PeerConnection {
    pub(super) address: SocketAddr,
    pub(super) socket: SocketWatch,
    /// Held by answers that last.
    pub(super) lasting: Weak<()>,
}

/// Extracts the [`Handshake`] from any request.
pub(super) fn handshake()
-> impl Filter<Extract = (Handshake,), Error = Infallible> + Clone + Send + Sync {
    let query = warp::query::raw()
        .map(Query)
        .or_else(async |_| Ok::<_, Infallible>((Query(String::new()),)));
    // Under warp's own server, which adds no `PeerConnection`, the address is what warp knows.
    let peer = warp::ext::optional::<PeerConnection>()
        .and(warp::addr::remote())
        .map(|ours: Option<PeerConnection>, warps: Option<SocketAddr>| {
            let address = ours.as_ref().map(|ours| ours.address).or(warps);
            (address.map(|address| address.ip()), ours)
        })
        .untuple_one();
    warp::method()
        .and(warp::header::headers_cloned())
        .and(query)
        .and(peer)
        .and(warp::ext::optional::<OnUpgrade>())
        .map(
            |method, headers, query, peer, source, connection| Handshake {
                method,
                headers,
                query,
                peer,
                source,
                connection,
            },
        )
}

impl Handshake {
    /// Whether the request asks for a page and not for a session.
    pub(super) fn is_plain_get(&self) -> bool {
        let is_get = self.method == Method::GET || self.method == Method::HEAD;
        is_get && self.connection.is_none()
    }

    /// The address of the client.
    pub(super) fn address(&self, shared: &Shared) -> Option<IpAddr> {
        shared.admission.address(self.peer, &self.headers)
    }

    /// Held while the answer lasts.
    pub(super) fn lasting(&self) -> Option<Arc<()>> {
        self.source.as_ref()?.lasting.upgrade()
    }

    /// The form of the answer that the request asks for in place of a WebSocket.
    pub(super) fn form(&self) -> Option<Form> {
        match self.connection {
            Some(_) => None,
            None => Form::of(&self.headers),
        }
    }

    /// Starts a session for a client without a WebSocket, or resumes one. The answer carries messages in this form;
    /// long polling waits for `wait` at most.
    pub(super) fn stream(
        mut self,
        shared: &Arc<Shared>,
        form: Form,
        wait: Duration,
        target: Target,
    ) -> Response {
        name_own_origin(shared, &mut self.headers);
        // Why a session ends is told in the answer.
        let address = self.address(shared);
        let response = match self.admit(shared, target, address, true) {
            Ok((room, client, resume, admitted)) => {
                let socket = self.source.as_ref().map(|source| source.socket.clone());
                let lasting = self.lasting();
                let traffic = &shared.metrics.traffic;
                let (body, receiver, outlet) =
                    Body::new(form, wait, socket.unwrap_or_default(), lasting, traffic);
                let connection = Connection::EventStream(receiver.into(), outlet.into());
                session::start(shared.clone(), room, connection, client, resume, admitted);
                let mut response = warp::reply::stream(body).into_response();
                let headers = response.headers_mut();
                headers.insert(CONTENT_TYPE, form.content_type());
                // nginx would hold the answer back.
                headers.insert(X_ACCEL_BUFFERING, HeaderValue::from_static("no"));
                response
            }
            Err(error) => error.into_response(),
        };
        let status = response.status().as_u16();
        shared.metrics.upgrades(status).inc();
        readable(shared, &self.headers, response)
    }

    /// Starts a session for a client that speaks `format`, or resumes one. `target` reads from the request what the
    /// client wants. The client learns from its connection why it is refused if the format has words for it, or if the
    /// client offers the subprotocol; else from the answer.
    pub(super) fn answer(
        mut self,
        shared: &Arc<Shared>,
        format: &dyn WireFormat,
        target: impl FnOnce(&Handshake) -> Result<Target, HttpError>,
    ) -> Response {
        let connection = self.connection.take();
        let connected = self.connect(shared, format, connection, target);
        let (status, response) =
            connected.unwrap_or_else(|error| (error.status(), error.into_response()));
        shared.metrics.upgrades(status.as_u16()).inc();
        response
    }

    /// Returns the response, and the status as which it counts.
    ///
    /// # Errors
    ///
    /// The [`HttpError`] for a request that is not a handshake, or that admission refuses.
    fn connect(
        &self,
        shared: &Arc<Shared>,
        format: &dyn WireFormat,
        connection: Option<OnUpgrade>,
        target: impl FnOnce(&Handshake) -> Result<Target, HttpError>,
    ) -> Result<(StatusCode, Response), HttpError> {
        let upgrade = websocket::accept(&self.method, &self.headers, connection, SUBPROTOCOL)?;
        let reads_refusals = upgrade.has_subprotocol();
        let address = self.address(shared);
        let (shared, connection) = (shared.clone(), upgrade.connection);
        let admitted =
            target(self).and_then(|target| self.admit(&shared, target, address, reads_refusals));
        let status = match admitted {
            Ok((room, client, resume, admitted)) => {
                let connection = Connection::WebSocket(connection);
                session::start(shared, room, connection, client, resume, admitted);
                StatusCode::SWITCHING_PROTOCOLS
            }
            Err(error) => {
                let first = format.refused(&error);
                let close = Close::refusal(&error).filter(|_| reads_refusals || first.is_some());
                let code = match error.status() {
                    StatusCode::BAD_REQUEST => CloseCode::PolicyViolation,
                    _ => CloseCode::TryAgainLater,
                };
                let other = || Close::new(code, error.message());
                let Some(close) = close.or_else(|| first.is_some().then(other)) else {
                    return Err(error);
                };
                session::close_refused(shared, connection, address, first, close);
                error.status()
            }
        };
        let response = upgrade.response.map(|empty: Bytes| empty.into());
        Ok((status, response))
    }

    /// Admits the client: who it is, the session that it wants to resume, and the resources of a new session unless it
    /// can resume that one, which holds its own.
    ///
    /// # Errors
    ///
    /// The [`HttpError`] for a client that is refused.
    fn admit(
        &self,
        shared: &Shared,
        target: Target,
        address: Option<IpAddr>,
        reads_refusals: bool,
    ) -> Result<
        (
            RoomName,
            ConnectRequest,
            Option<ResumeRequest>,
            Option<Admitted>,
        ),
        HttpError,
    > {
        let Target {
            room,
            token,
            name,
            resume,
            group_size,
        } = target;
        let (headers, token) = (&self.headers, token.as_deref());
        let admission = &shared.admission;
        let continues = resume.as_ref().and_then(ResumeRequest::read);
        let continues = continues.is_some_and(|(token, _)| {
            let inlet = shared.resumes.inlet(&token.hash(), &room);
            inlet.flatten().is_some()
        });
        let mut client =
            admission.identify(&room, address, headers, token, reads_refusals, continues)?;
        client.claim = name.map(|name| {
            let (kind, secret) = match client.user() {
                Some(user) => ("user", user),
                None => ("token", token.unwrap_or_default()),
            };
            let secret = TokenHash::of_secret(&[room.as_str(), &name, kind], secret);
            NameClaim::new(&name, secret)
        });
        client.group_size = group_size;
        if shared
            .cluster
            .as_ref()
            .is_some_and(|cluster| !cluster.has_begun())
        {
            return Err(HttpError::unavailable(
                "the server is still looking for the nodes of its cluster: try again later",
            ));
        }
        let resumable = resume.as_ref().is_some_and(|request| {
            let can_resume = shared.resumes.can_resume(request, &room, client.user());
            can_resume && !shared.stopping.is_cancelled()
        });
        if continues && !resumable {
            // It is a new session after all.
            admission.check_rate(address)?;
        }
        if resume.is_some() && !resumable && !shared.can_ask_nodes() {
            return Err(HttpError::unavailable(
                "the server cannot ask its cluster for the session: try again later, another may answer",
            ));
        }
        let admitted = match resumable {
            true => None,
            false => {
                // The room of a group is chosen later.
                let nowhere = room.dialect().filter(|_| group_size.is_some());
                let nowhere = nowhere.map(RoomName::nowhere);
                let place = nowhere.as_ref().unwrap_or(&room);
                let claim = client.claim.as_ref();
                match claim.is_some_and(|claim| shared.rooms.holds(place, claim)) {
                    true => Some(admission.admit_successor(place, client.address)),
                    false => Some(admission.admit(place, client.address)?),
                }
            }
        };
        Ok((room, client, resume, admitted))
    }
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
