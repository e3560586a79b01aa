//! The accept loop, and what a connection does until its request is answered or upgraded.

use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use http::{HeaderName, HeaderValue, Request, header::X_CONTENT_TYPE_OPTIONS};
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

use super::{handshake::PeerConnection, request_limits, tls::Tls};
use crate::{
    accept_error::concerns_one_connection,
    access::AddressSlot,
    protocol::Escaped,
    state::Shared,
    web::{Socket, SocketWatch},
};

/// How many connections the kernel queues until they are accepted. When many clients connect at once,
/// they wait in the queue instead of retrying after a second or more.
const BACKLOG: u32 = 4096;

/// The pause before the next attempt to accept when the process is out of files or memory.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(100);

/// The shortest time between two warnings that connections cannot be accepted.
const WARN_EVERY: Duration = Duration::from_secs(60);

/// The longest life of a connection that is not upgraded and has no answer that lasts. Sessions have limits of their
/// own.
const HTTP_LIFETIME: Duration = Duration::from_secs(300);

/// How many bytes beyond `--max-header-bytes` are still read, so that the 431 can say what is wrong:
/// usually a cookie or a token is too long.
const READABLE_EXCESS: usize = 16 << 10;

/// How many header lines are still read, so that the 431 can say what is wrong. hyper allocates two
/// arrays of 32 bytes for each line whenever it reads headers. With 1024 lines, an array has 32 KiB, the
/// largest size that jemalloc caches for a thread: a handshake takes 1.2 % more instructions than with
/// hyper's default of 100 lines, which are on the stack. With 1025 lines, it takes 10 % more.
const READABLE_LINES: usize = 1024;

/// The headers of every answer of the admin API. Browsers give it to no page of another site (WHATWG
/// Fetch, section 3.7), and do not run it as a script unless its type says so (section 3.6).
const ADMIN_HEADERS: [(HeaderName, HeaderValue); 2] = [
    (X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    (
        HeaderName::from_static("cross-origin-resource-policy"),
        HeaderValue::from_static("same-origin"),
    ),
];

/// Listens on an address.
pub(super) fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        TcpSocket::new_v6()?
    };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// The context of a listener, which its connections share.
#[derive(Clone)]
pub(super) struct Service {
    pub(super) shared: Arc<Shared>,
    pub(super) routes: BoxedFilter<(Response,)>,
    pub(super) tls: Option<Arc<Tls>>,
    /// Whether other machines can connect, so that the connections of each address are limited.
    pub(super) is_public: bool,
    /// Whether this is the admin API, whose answers no page of another site may read or embed.
    pub(super) is_admin: bool,
    /// The tasks of the connections.
    pub(super) tasks: TaskTracker,
    /// Cancelled when the connections must end.
    pub(super) stopping: CancellationToken,
    /// How long a connection may take to end after that.
    pub(super) grace: Duration,
}

/// Accepts connections forever, and serves each in a task of its own.
pub(super) async fn accept(listener: &TcpListener, service: &Service) {
    #[cfg(target_os = "linux")]
    service.set_user_timeout(listener);
    let mut last_warning: Option<Instant> = None;
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) if concerns_one_connection(&error) => {
                debug!("a connection ended before it was accepted: {error}");
                continue;
            }
            Err(error) => {
                if last_warning.is_none_or(|last| last.elapsed() >= WARN_EVERY) {
                    last_warning = Some(Instant::now());
                    warn!("cannot accept connections, trying again: {error}");
                }
                sleep(EXHAUSTED_PAUSE).await;
                continue;
            }
        };
        // Messages are small and must not wait for more data (Nagle's algorithm).
        let _ = stream.set_nodelay(true);
        let slot = match service.is_public {
            true => service.shared.admission.connect(Some(peer.ip())),
            false => Ok(None),
        };
        let slot = match slot {
            Ok(slot) => slot,
            Err(limit) => {
                debug!(
                    "closing a connection of {peer}: --{} is reached",
                    limit.option()
                );
                continue;
            }
        };
        let connection = service.clone().start(stream, peer, slot);
        service.tasks.spawn(connection);
    }
}

impl Service {
    /// Has the kernel close connections whose peer does not acknowledge data for twice the time of a ping
    /// and its pong (RFC 5482). The heartbeat does not cover this: a session that is paused by a rate
    /// limit owes no pong. Connections inherit the option from their listener (tcp(7)).
    #[cfg(target_os = "linux")]
    fn set_user_timeout(&self, listener: &TcpListener) {
        let config = &self.shared.config;
        let seconds = 2 * (config.liveness.ping_seconds + config.liveness.pong_seconds);
        let set = rustix::net::sockopt::set_tcp_user_timeout(listener, seconds as u32 * 1000);
        if let Err(error) = set {
            warn!("cannot set TCP_USER_TIMEOUT, so dead connections are closed late: {error}");
        }
    }

    async fn start(self, stream: TcpStream, peer: SocketAddr, _slot: Option<AddressSlot>) {
        let socket = Socket::new(stream);
        match self.tls.clone() {
            // In a box: the future is large, and connections without TLS need not hold it.
            Some(tls) => Box::pin(self.serve_tls(&tls, socket, peer)).await,
            None => {
                let watch = socket.watch(false);
                self.serve(socket, peer, watch).await;
            }
        }
    }

    async fn serve_tls(self, tls: &Tls, stream: Socket, peer: SocketAddr) {
        let watch = stream.watch(true);
        let handshake = timeout(self.shared.config.limits.handshake(), tls.accept(stream));
        let accepted = tokio::select! {
            biased;
            accepted = handshake => accepted,
            () = self.stopping.cancelled() => return,
        };
        match accepted {
            Ok(Ok(stream)) => self.serve(stream, peer, watch).await,
            Ok(Err(error)) => debug!("the TLS handshake with {peer} failed: {}", Escaped(error)),
            Err(_) => debug!("the TLS handshake with {peer} took too long"),
        }
    }

    /// Serves a connection until it ends or is upgraded. `socket` tells when it ends.
    pub(super) async fn serve(
        self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        peer: SocketAddr,
        socket: SocketWatch,
    ) {
        let config = &self.shared.config;
        let max_header_bytes = config.limits.max_header_bytes;
        let routes = warp::service(self.routes);
        // Shared by the answers that last.
        let lasting = Arc::new(());
        let source = PeerConnection {
            address: peer,
            socket,
            lasting: Arc::downgrade(&lasting),
        };
        let service = service_fn(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(source.clone());
            let response = answer(routes.clone(), request, max_header_bytes);
            async move {
                let mut response = response.await?;
                if self.is_admin {
                    response.headers_mut().extend(ADMIN_HEADERS);
                }
                Ok::<_, Infallible>(response)
            }
        });
        let readable = config.limits.max_header_bytes + READABLE_EXCESS;
        // Beyond these limits hyper itself closes the connection with an empty answer: 431, or 414 for a
        // URL of more than 65534 bytes, or 400 for what is not HTTP.
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
        let served = async {
            loop {
                match timeout(HTTP_LIFETIME, connection.as_mut()).await {
                    Err(_) if Arc::strong_count(&lasting) > 1 => {}
                    served => return served,
                }
            }
        };
        let served = tokio::select! {
            biased;
            served = served => served,
            () = self.stopping.cancelled() => {
                connection.as_mut().graceful_shutdown();
                timeout(self.grace, connection).await
            }
        };
        match served {
            Ok(Ok(())) => {}
            Ok(Err(error)) => debug!("the connection of {peer} failed: {}", Escaped(error)),
            Err(_) => debug!("the connection of {peer} took too long"),
        }
    }
}

/// Routes a request that passes the checks for every request.
async fn answer<R>(
    mut routes: R,
    request: Request<Incoming>,
    max_header_bytes: usize,
) -> Result<Response, R::Error>
where
    R: tower_service::Service<Request<Incoming>, Response = Response>,
{
    match request_limits::check(&request, max_header_bytes) {
        Ok(()) => routes.call(request).await,
        Err(error) => Ok(error.into_response()),
    }
}
