//! The TURN server as the rest of the program sees it.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use log::warn;
use tokio::{net::TcpListener, task::yield_now, time::sleep};
use tokio_util::sync::CancellationToken;

use super::{
    client::Link,
    receive::receive,
    sessions::SessionUse,
    state::TurnState,
    tcp,
    udp_socket::{UdpBuffer, UdpSocket},
};
use crate::{
    config::{Config, Secret},
    metrics::Metrics,
    protocol::{IceServer, SessionId},
    unix_time::unix_seconds,
};

/// How long the allocations of a session last at most once it has moved to another node, in seconds. This node does not
/// learn when the session ends there.
const MOVED_SECONDS: u64 = 3600;

/// The pause after an error of the socket.
const ERROR_PAUSE: Duration = Duration::from_secs(1);

/// The STUN and TURN server of this process.
pub(crate) struct Turn {
    state: Arc<TurnState>,
    address: SocketAddr,
}

/// The sockets of the server.
pub(crate) struct TurnListeners {
    state: Arc<TurnState>,
    udp: Arc<UdpSocket>,
    tcp: TcpListener,
}

/// A session that may use the server. Dropping it ends the allocations of the session.
pub(crate) struct TurnSession {
    state: Arc<TurnState>,
    id: SessionId,
    session: Arc<SessionUse>,
}

impl Turn {
    /// Whether the options ask for a server.
    pub(crate) fn is_configured(config: &Config) -> bool {
        config.turn.listen.is_some()
    }

    /// Binds the address of the server; `None` if the options name none.
    ///
    /// # Errors
    ///
    /// The address cannot be bound, or the addresses of this machine cannot be read; the message says which.
    pub(crate) fn bind(
        config: &Config,
        metrics: &Arc<Metrics>,
    ) -> io::Result<Option<(Turn, TurnListeners)>> {
        let Some(listen) = config.turn.listen else {
            return Ok(None);
        };
        let (udp, tcp) = bind_both(listen).map_err(|error| {
            let message = format!("cannot listen on {listen} for TURN: {error}");
            io::Error::new(error.kind(), message)
        })?;
        let address = SocketAddr::new(listen.ip(), udp.local_addr()?.port());
        let files = config.turn_files() / 2;
        let state = TurnState::new(config.turn.clone(), listen.ip(), files, metrics.clone());
        let state = Arc::new(state.map_err(|error| {
            let message = format!("cannot read the addresses of this machine for TURN: {error}");
            io::Error::new(error.kind(), message)
        })?);
        let listeners = TurnListeners {
            state: state.clone(),
            udp: Arc::new(udp),
            tcp,
        };
        Ok(Some((Turn { state, address }, listeners)))
    }

    /// The address that the server listens on, with the actual port.
    pub(crate) fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Lets a session use the server until it ends.
    pub(crate) fn admit(&self, id: SessionId) -> Box<TurnSession> {
        let bytes_per_second = self.state.options.bytes_per_second;
        Box::new(TurnSession {
            state: self.state.clone(),
            id,
            session: self.state.sessions.add(id, bytes_per_second),
        })
    }

    /// The server as a session names it to its browser, with credentials that are valid until then, in seconds since
    /// 1970.
    pub(crate) fn ice_server(&self, id: SessionId, until: u64) -> IceServer {
        let (username, credential) = self.state.credentials.of(id, until);
        let urls = self.state.options.addresses.iter().flat_map(|address| {
            let host = match address {
                IpAddr::V4(_) => address.to_string(),
                IpAddr::V6(_) => format!("[{address}]"),
            };
            let port = self.address.port();
            [
                format!("stun:{host}:{port}"),
                format!("turn:{host}:{port}?transport=udp"),
                format!("turn:{host}:{port}?transport=tcp"),
            ]
        });
        IceServer {
            urls: urls.collect(),
            username: Some(username),
            credential: Some(Secret::new(credential)),
        }
    }
}

impl TurnListeners {
    /// Serves clients until `stopping` is cancelled and no session is left that may need a relay, or until `stopped` is
    /// cancelled.
    pub(crate) async fn run(self, stopping: CancellationToken, stopped: CancellationToken) {
        let TurnListeners { state, udp, tcp } = self;
        let serving = serve_udp(udp, state.clone());
        state.tasks.spawn(serving);
        let serving = tcp::serve(tcp, state.clone());
        state.tasks.spawn(serving);
        let sessions_end = async {
            stopping.cancelled().await;
            state.sessions.wait_for_end().await;
        };
        tokio::select! {
            biased;
            () = stopped.cancelled() => {}
            () = sessions_end => {}
        }
        state.stop().await;
    }
}

/// Serves the clients of a socket until the server stops.
async fn serve_udp(socket: Arc<UdpSocket>, state: Arc<TurnState>) {
    let mut buffer = UdpBuffer::new();
    loop {
        let handle = |from, datagram: &mut [u8]| {
            receive(&state, from, datagram, || Link::Udp(socket.clone()));
        };
        let received = tokio::select! {
            biased;
            () = state.stopped.cancelled() => return,
            received = socket.receive(&mut buffer, handle) => received,
        };
        match received {
            Ok(true) => yield_now().await,
            Ok(false) => {}
            Err(error) => {
                warn!("the TURN server cannot read datagrams, trying again: {error}");
                sleep(ERROR_PAUSE).await;
            }
        }
    }
}

impl TurnSession {
    /// The session goes on at another node of the cluster. Its calls here may go on for a while.
    pub(crate) fn has_moved(self) {
        self.session.outlast(unix_seconds() + MOVED_SECONDS);
    }
}

impl Drop for TurnSession {
    fn drop(&mut self) {
        self.state.sessions.remove(self.id, &self.session);
        for client in self.session.end() {
            self.state.end_of_session(&client, &self.session);
        }
    }
}

/// Binds the same port for UDP and TCP.
fn bind_both(listen: SocketAddr) -> io::Result<(UdpSocket, TcpListener)> {
    /// How many ports that the system picks for UDP are tried for TCP.
    const ATTEMPTS: usize = 16;
    let attempt = || {
        let udp = UdpSocket::bind(listen)?;
        let tcp = std::net::TcpListener::bind(udp.local_addr()?)?;
        tcp.set_nonblocking(true)?;
        Ok((udp, TcpListener::from_std(tcp)?))
    };
    let mut bound = attempt();
    for _ in 1..ATTEMPTS {
        if bound.is_ok() || listen.port() != 0 {
            break;
        }
        bound = attempt();
    }
    bound
}
