//! The accept loop: hands each connection to the routes, with limits on its time and size.

use std::{
    io,
    net::SocketAddr,
    pin::pin,
    time::{Duration, Instant},
};

use http::{Request, StatusCode};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use log::{debug, warn};
use tokio::{
    net::{TcpListener, TcpSocket},
    time::{sleep, timeout},
};

use tower_service::Service;
use warp::reply::{Reply, Response};

use crate::{Anteroom, Shared, refusal::Refusal};

/// How many connections the kernel holds until they are accepted: a storm of them waits instead of
/// being retried.
const BACKLOG: u32 = 4096;

/// How long to wait before accepting again when there are no resources for another connection.
const EXHAUSTED: Duration = Duration::from_millis(100);

/// How often to warn of it.
const WARN_EVERY: Duration = Duration::from_secs(60);

/// How long a connection may live that is not upgraded. Upgraded ones have limits of their own.
const HTTP_LIFETIME: Duration = Duration::from_secs(300);

/// The smallest buffer hyper reads headers with, in bytes.
const MIN_BUFFER: usize = 8192;

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

/// Accepts connections for ever, and serves each in a task of its own.
pub(crate) async fn accept(listener: &TcpListener, anteroom: &Anteroom) {
    let Shared {
        config,
        tasks,
        stopping,
        ..
    } = &**anteroom.shared();
    let routes = warp::service(anteroom.routes());
    let service = service_fn(move |request| answer(routes.clone(), request));
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .half_close(true)
        .header_read_timeout(config.handshake())
        .max_header_size(config.max_header_bytes)
        .max_buf_size(config.max_header_bytes.max(MIN_BUFFER));
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
        let connection = http.serve_connection(TokioIo::new(stream), service.clone());
        let (stopping, drain) = (stopping.clone(), config.drain());
        tasks.spawn(async move {
            let mut connection = pin!(connection.with_upgrades());
            let served = tokio::select! {
                served = timeout(HTTP_LIFETIME, connection.as_mut()) => served,
                () = stopping.cancelled() => {
                    connection.as_mut().graceful_shutdown();
                    timeout(drain, connection).await
                }
            };
            match served {
                Ok(Ok(())) => {}
                Ok(Err(error)) => debug!("the connection of {peer} ended: {error}"),
                Err(_) => debug!("the connection of {peer} took too long"),
            }
        });
    }
}

/// Answers a request by the routes, if it asks for a path; warp knows of nothing else
/// (RFC 9112, section 3.2).
async fn answer<R>(mut routes: R, request: Request<Incoming>) -> Result<Response, R::Error>
where
    R: Service<Request<Incoming>, Response = Response>,
{
    if !request.uri().path().starts_with('/') {
        let message = "the request target must be a path, such as /room";
        return Ok(Refusal::new(StatusCode::BAD_REQUEST, message).into_response());
    }
    routes.call(request).await
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
