//! The accept loop: hands each connection to the routes, with limits on its time and size.

use std::{io, net::SocketAddr, pin::pin, time::Duration};

use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use log::{debug, warn};
use tokio::{
    net::{TcpListener, TcpSocket},
    time::{sleep, timeout},
};

use crate::{Anteroom, Shared};

/// How many connections the kernel holds until they are accepted: a storm of them waits instead of
/// being retried.
const BACKLOG: u32 = 4096;

/// How long to wait before accepting again when there are no resources for another connection.
const EXHAUSTED: Duration = Duration::from_millis(100);

/// How often to say so, in waits.
const WARN_EVERY: u32 = 100;

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
    } = &*anteroom.0;
    let routes = TowerToHyperService::new(warp::service(anteroom.routes()));
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(config.handshake())
        .max_header_size(config.max_header_bytes)
        .max_buf_size(config.max_header_bytes.max(MIN_BUFFER));
    let mut waits = 0;
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) if is_of_one_peer(&error) => {
                debug!("a connection was gone before it was accepted: {error}");
                continue;
            }
            Err(error) => {
                if waits % WARN_EVERY == 0 {
                    warn!(
                        "cannot accept connections: {error}: raise the limit, or lower --max-sessions"
                    );
                }
                waits += 1;
                sleep(EXHAUSTED).await;
                continue;
            }
        };
        waits = 0;
        // Messages are small and meant to arrive now.
        let _ = stream.set_nodelay(true);
        let connection = http.serve_connection(TokioIo::new(stream), routes.clone());
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

/// Whether only the connection that was being accepted is concerned.
fn is_of_one_peer(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(
        error.kind(),
        ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted
    )
}
