//! What the server tells its clients apart by.

use std::net::{IpAddr, SocketAddr};

/// A client as the server tells it from others (RFC 8656, section 2), without the port of the server, which all share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct FiveTuple {
    pub(super) transport: Transport,
    /// The address that the datagrams or the connection of the client come from. On a socket for both IPv4 and IPv6,
    /// IPv4 addresses have the form of IPv6.
    pub(super) client: SocketAddr,
    /// The address of this machine that they come to, if the system tells it.
    pub(super) server: Option<IpAddr>,
}

/// How clients reach the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Transport {
    Udp,
    Tcp,
}

impl FiveTuple {
    /// The address of the client as it is over the network.
    pub(super) fn address(&self) -> SocketAddr {
        SocketAddr::new(self.client.ip().to_canonical(), self.client.port())
    }
}
