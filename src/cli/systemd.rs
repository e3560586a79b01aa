//! What systemd gives to a service and wants to know of it. Without systemd, nothing happens.

use std::{io, net::TcpListener};

use listenfd::ListenFd;
use log::warn;
use sd_notify::{NotifyState, notify};

/// The socket that systemd has opened for the server (sd_listen_fds(3)), if it has opened one. Call it before there are
/// other threads: it removes variables from the environment.
///
/// # Errors
///
/// systemd has opened several sockets, or one that is not a TCP socket that listens.
pub(crate) fn listener() -> io::Result<Option<TcpListener>> {
    let mut sockets = ListenFd::from_env();
    match sockets.len() {
        0 => Ok(None),
        1 => sockets.take_tcp_listener(0).map_err(|error| {
            let message =
                format!("the socket of systemd is not a TCP socket that listens: {error}");
            io::Error::new(error.kind(), message)
        }),
        more => Err(io::Error::other(format!(
            "systemd gives {more} sockets: give one, and name other addresses in options"
        ))),
    }
}

/// Tells systemd the state of the service (sd_notify(3)).
pub(crate) fn tell(state: NotifyState<'_>) {
    if let Err(error) = notify(&[state]) {
        warn!("cannot tell systemd the state of the server: {error}");
    }
}
