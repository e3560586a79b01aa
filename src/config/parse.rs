//! Parsers of option values, whose errors say what a value looks like.

use std::{
    net::{IpAddr, SocketAddr},
    num::NonZeroU32,
};

use ipnet::IpNet;

pub(super) fn socket_address(text: &str) -> Result<SocketAddr, &'static str> {
    text.parse()
        .map_err(|_| "not an IP address and a port, such as 0.0.0.0:8080 or [::]:8080")
}

pub(super) fn positive(text: &str) -> Result<NonZeroU32, &'static str> {
    text.parse()
        .map_err(|_| "not a number from 1 to 4294967295; leave it out for no limit")
}

/// A network. An address alone is the network of this address only.
pub(super) fn network(text: &str) -> Result<IpNet, &'static str> {
    let address = || text.parse::<IpAddr>().map(IpNet::from);
    let network = text.parse().or_else(|_| address());
    network.map_err(|_| "not an IP address or a network, such as 10.0.0.0/8 or fd00::/8")
}
