//! The accept loop: hands each connection to the routes, with limits on its time and size.

use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use http::{HeaderName, HeaderValue, Request, StatusCode, header::X_CONTENT_TYPE_OPTIONS};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use log::{debug, warn};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpSocket, TcpStream},
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use warp::{
    filters::BoxedFilter,
    reply::{Reply, Response},
};

use super::{routes::PeerAddress, tls::Tls};
use crate::{
    access::AddressSlot,
    protocol::Escaped,
    state::Shared,
    web::{HttpError, host},
};

/// How many connections the kernel holds until they are accepted: a storm of them waits instead of
/// being retried.
const BACKLOG: u32 = 4096;

/// How long to wait before accepting again when there are no resources for another connection.
const EXHAUSTED: Duration = Duration::from_millis(100);

/// How often to warn of it.
const WARN_EVERY: Duration = Duration::from_secs(60);

/// How long a connection may live that is not upgraded. Upgraded ones have limits of their own.
const HTTP_LIFETIME: Duration = Duration::from_secs(300);

/// How many header lines a request may have: browsers and proxies send some thirty.
const MAX_HEADER_LINES: usize = 100;

/// How far the headers of a request may go beyond `--max-header-bytes` and still be read, in bytes, so
/// that the refusal can say why: a cookie or a token has become too long.
const READABLE_EXCESS: usize = 16 << 10;

/// How many header lines are read, so that the refusal can say why. hyper makes room for all of them
/// whenever it reads headers: twice 32 bytes for each. With 1024 that are blocks of 32 KiB, the largest
/// that jemalloc keeps at hand for a thread: a handshake takes 1.2 % more instructions than with
/// hyper's own 100, which are on the stack. One line more, and it takes 10 %.
const READABLE_LINES: usize = 1024;

/// What browsers are told of every answer to operators: a page from elsewhere gets nothing of it (WHATWG
/// Fetch, section 3.7), and it is taken for what its type says (section 3.6), not for a script.
const OPERATORS_HEADERS: [(HeaderName, HeaderValue); 2] = [
    (X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    (
        HeaderName::from_static("cross-origin-resource-policy"),
        HeaderValue::from_static("same-origin"),
    ),
];

/// Listens on `address`.
pub(crate) fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        TcpSocket::new_v6()?
    };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// What is served to the connections of a listener.
#[derive(Clone)]
pub(crate) struct Service {
    pub(crate) shared: Arc<Shared>,
    pub(crate) routes: BoxedFilter<(Response,)>,
    pub(crate) tls: Option<Arc<Tls>>,
    /// Whether anybody may connect, so that no address shall have too many connections.
    pub(crate) is_public: bool,
    /// Whether the answers are the operators', which no page from elsewhere may embed.
    pub(crate) is_for_operators: bool,
    /// The connections' tasks.
    pub(crate) tasks: TaskTracker,
    /// Cancelled when they shall end.
    pub(crate) stopping: CancellationToken,
    /// How long they may take for that.
    pub(crate) grace: Duration,
}

/// Accepts connections for ever, and serves each in a task of its own.
pub(crate) async fn accept(listener: &TcpListener, service: &Service) {
    #[cfg(target_os = "linux")]
    service.set_user_timeout(listener);
    let mut last_warning: Option<Instant> = None;
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) if is_of_one_peer(&error) => {
                debug!("a connection was gone before it was accepted: {error}");
                continue;
            }
            Err(error) => {
                if last_warning.is_none_or(|last| last.elapsed() >= WARN_EVERY) {
                    last_warning = Some(Instant::now());
                    warn!("cannot accept connections for the moment: {error}");
                }
                sleep(EXHAUSTED).await;
                continue;
            }
        };
        // Messages are small and meant to arrive now.
        let _ = stream.set_nodelay(true);
        let place = match service.is_public {
            true => service.shared.admission.connect(Some(peer.ip())),
            false => Ok(None),
        };
        let place = match place {
            Ok(place) => place,
            Err(limit) => {
                debug!("{peer} has too many connections: see --{}", limit.option());
                continue;
            }
        };
        let connection = service.clone().start(stream, peer, place);
        service.tasks.spawn(connection);
    }
}

impl Service {
    /// Lets the kernel give a connection up whose peer has vanished from the network, once it had the time
    /// to be pinged and to answer twice (RFC 5482): a session that is not read from owes no pong.
    /// Connections have it from their listener (tcp(7)).
    #[cfg(target_os = "linux")]
    fn set_user_timeout(&self, listener: &TcpListener) {
        let config = &self.shared.config;
        let seconds = 2 * (config.liveness.ping_seconds + config.liveness.pong_seconds);
        let set = rustix::net::sockopt::set_tcp_user_timeout(listener, seconds as u32 * 1000);
        if let Err(error) = set {
            warn!("peers that vanish from the network are noticed late: {error}");
        }
    }

    async fn start(self, stream: TcpStream, peer: SocketAddr, _place: Option<AddressSlot>) {
        match self.tls.clone() {
            // In a box, for it is large, and most connections have no need of it.
            Some(tls) => Box::pin(self.serve_tls(&tls, stream, peer)).await,
            None => self.serve(stream, peer).await,
        }
    }

    async fn serve_tls(self, tls: &Tls, stream: TcpStream, peer: SocketAddr) {
        let handshake = timeout(self.shared.config.limits.handshake(), tls.accept(stream));
        let accepted = tokio::select! {
            accepted = handshake => accepted,
            () = self.stopping.cancelled() => return,
        };
        match accepted {
            Ok(Ok(stream)) => self.serve(stream, peer).await,
            Ok(Err(error)) => debug!("no TLS with {peer}: {}", Escaped(error)),
            Err(_) => debug!("TLS with {peer} took too long"),
        }
    }

    async fn serve(
        self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        peer: SocketAddr,
    ) {
        let config = &self.shared.config;
        let max_header_bytes = config.limits.max_header_bytes;
        let routes = warp::service(self.routes);
        let service = service_fn(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(PeerAddress(peer));
            let response = answer(routes.clone(), request, max_header_bytes);
            async move {
                let mut response = response.await?;
                if self.is_for_operators {
                    response.headers_mut().extend(OPERATORS_HEADERS);
                }
                Ok::<_, Infallible>(response)
            }
        });
        let readable = config.limits.max_header_bytes + READABLE_EXCESS;
        // What is beyond these, hyper answers by itself with 431, or with 414 where a URL has over 65534
        // bytes, and with 400 what is no HTTP: an empty answer, and the end of the connection.
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .half_close(true)
            .header_read_timeout(config.limits.handshake())
            .max_headers(READABLE_LINES)
            .max_header_size(readable)
            .max_buf_size(readable)
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades();
        let mut connection = pin!(connection);
        let served = tokio::select! {
            served = timeout(HTTP_LIFETIME, connection.as_mut()) => served,
            () = self.stopping.cancelled() => {
                connection.as_mut().graceful_shutdown();
                timeout(self.grace, connection).await
            }
        };
        match served {
            Ok(Ok(())) => {}
            Ok(Err(error)) => debug!("the connection of {peer} ended: {}", Escaped(error)),
            Err(_) => debug!("the connection of {peer} took too long"),
        }
    }
}

/// Answers a request by the routes, if it is one that HTTP allows.
async fn answer<R>(
    mut routes: R,
    request: Request<Incoming>,
    max_header_bytes: usize,
) -> Result<Response, R::Error>
where
    R: tower_service::Service<Request<Incoming>, Response = Response>,
{
    match check(&request, max_header_bytes) {
        Ok(()) => routes.call(request).await,
        Err(refusal) => Ok(refusal.into_response()),
    }
}

/// Checks what is demanded of every request, whatever it is for.
///
/// # Errors
///
/// The [`Refusal`] of one that has too many or too long headers (431; RFC 6585, section 5), that does
/// not name one host, or asks for something else than a path (400): warp knows of nothing else (RFC
/// 9112, section 3.2).
fn check<B>(request: &Request<B>, max_header_bytes: usize) -> Result<(), HttpError> {
    let too_large = |message| HttpError::new(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, message);
    if request.headers().len() > MAX_HEADER_LINES {
        let message = format!("at most {MAX_HEADER_LINES} header lines are taken: send fewer");
        return Err(too_large(message));
    }
    if head_bytes(request) > max_header_bytes {
        let message = "the headers are over --max-header-bytes: send less, such as smaller cookies";
        return Err(too_large(message.into()));
    }
    host::of(request.version(), request.headers())?;
    if !request.uri().path().starts_with('/') {
        let message = "the request target must be a path, such as /room";
        return Err(HttpError::new(StatusCode::BAD_REQUEST, message));
    }
    Ok(())
}

/// How long a request is without its body, in bytes, with as little space as can be: what hyper has
/// read is not told.
fn head_bytes<B>(request: &Request<B>) -> usize {
    let uri = request.uri();
    let target = uri.authority().map_or(0, |host| host.as_str().len())
        + uri.path_and_query().map_or(0, |path| path.as_str().len());
    let first = request.method().as_str().len() + target + "  HTTP/1.1\r\n".len();
    let lines = request.headers().iter();
    let lines = lines.map(|(name, value)| name.as_str().len() + value.len() + ": \r\n".len());
    first + lines.sum::<usize>() + "\r\n".len()
}

/// Whether only the connection that was being accepted is concerned (accept(2) hands on what has
/// happened to it on the network).
fn is_of_one_peer(error: &io::Error) -> bool {
    use io::ErrorKind::{
        ConnectionAborted, ConnectionRefused, ConnectionReset, HostUnreachable, Interrupted,
        NetworkDown, NetworkUnreachable, PermissionDenied, TimedOut,
    };
    matches!(
        error.kind(),
        ConnectionAborted
            | ConnectionRefused
            | ConnectionReset
            | HostUnreachable
            | Interrupted
            | NetworkDown
            | NetworkUnreachable
            | PermissionDenied
            | TimedOut
    )
}
