//! The ports of relayed addresses.

use std::{
    io,
    net::{self, IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    ops::RangeInclusive,
};

use tokio::net::UdpSocket;

use crate::random;

/// How many ports are tried that no relay uses: other programs may use them.
pub(super) const ATTEMPTS: usize = 16;

/// The ports of relayed addresses, and where they are bound.
pub(super) struct RelayPorts {
    ports: RangeInclusive<u16>,
    /// The address that the server listens on.
    listen: IpAddr,
}

impl RelayPorts {
    pub(super) fn new(ports: RangeInclusive<u16>, listen: IpAddr) -> RelayPorts {
        RelayPorts { ports, listen }
    }

    /// The number of ports.
    pub(super) fn count(&self) -> usize {
        self.ports.len()
    }

    /// The ports in an order that is chosen at random (RFC 8656, section 7.2), as relayed addresses of `address`; only
    /// even ones if `is_even`.
    pub(super) fn shuffled(
        &self,
        address: IpAddr,
        is_even: bool,
    ) -> impl Iterator<Item = SocketAddr> + use<> {
        let (first, count) = (*self.ports.start(), self.ports.len());
        let start = u32::from_ne_bytes(random::bits()) as usize % count;
        (0..count)
            .map(move |step| first + ((start + step) % count) as u16)
            .filter(move |port| !is_even || port % 2 == 0)
            .map(move |port| SocketAddr::new(address, port))
    }

    /// Binds the first of these relayed addresses whose port no other program uses.
    pub(super) fn bind(
        &self,
        mut relayed: impl Iterator<Item = SocketAddr>,
    ) -> Option<(UdpSocket, SocketAddr)> {
        relayed.find_map(|relayed| Some((self.open(relayed).ok()?, relayed)))
    }

    /// Peers see the address that a datagram comes from. So the socket is bound to the relayed address itself, unless
    /// this machine does not have it, as behind a NAT.
    fn open(&self, relayed: SocketAddr) -> io::Result<UdpSocket> {
        let at = |ip| open(SocketAddr::new(ip, relayed.port()));
        if !self.listen.is_unspecified() {
            return at(self.listen);
        }
        match at(relayed.ip()) {
            Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => match relayed {
                SocketAddr::V4(_) => at(Ipv4Addr::UNSPECIFIED.into()),
                SocketAddr::V6(_) => at(Ipv6Addr::UNSPECIFIED.into()),
            },
            opened => opened,
        }
    }
}

fn open(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = net::UdpSocket::bind(address)?;
    socket.set_nonblocking(true)?;
    UdpSocket::from_std(socket)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// An address of this machine that nothing else uses.
    const ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 77));

    #[tokio::test]
    async fn every_port_of_the_range_is_used_and_no_other() {
        let ports = RelayPorts::new(50_000..=50_003, ADDRESS);
        let (mut taken, mut sockets) = (BTreeSet::new(), Vec::new());
        loop {
            let free = ports.shuffled(ADDRESS, false);
            let Some((socket, relayed)) = ports.bind(free.filter(|it| !taken.contains(it))) else {
                break;
            };
            assert_eq!(socket.local_addr().unwrap(), relayed);
            taken.insert(relayed);
            sockets.push(socket);
        }
        let expected = (50_000..=50_003).map(|port| SocketAddr::new(ADDRESS, port));
        assert!(taken.into_iter().eq(expected));
        // Other programs use them all.
        assert!(ports.bind(ports.shuffled(ADDRESS, false)).is_none());
        let even = ports.shuffled(ADDRESS, true);
        assert!(even.map(|it| it.port()).collect::<BTreeSet<_>>() == [50_000, 50_002].into());
    }

    #[tokio::test]
    async fn an_address_of_this_machine_is_bound_itself() {
        let ports = RelayPorts::new(50_010..=50_010, Ipv4Addr::UNSPECIFIED.into());
        let bound_to = |address: [u8; 4]| {
            let relayed = ports.shuffled(address.into(), false);
            let (socket, relayed) = ports.bind(relayed).unwrap();
            assert_eq!(relayed, (address, 50_010).into());
            socket.local_addr().unwrap().ip()
        };
        assert_eq!(bound_to([127, 0, 0, 77]), ADDRESS);
        // It is the address of a NAT.
        assert!(bound_to([203, 0, 113, 7]).is_unspecified());
    }
}
