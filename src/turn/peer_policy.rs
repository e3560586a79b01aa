//! Which peers relays may reach.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use ipnet::IpNet;
use log::warn;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::config::TurnOptions;

/// How long the addresses of this machine are taken to be the same.
const KNOWN_FOR: Duration = Duration::from_secs(10);

/// The IPv4 networks that are not public (RFC 6890 and IANA's registry of special-purpose addresses), and the address
/// at which a virtual machine reaches services of Azure.
const NOT_PUBLIC_V4: [(Ipv4Addr, u8); 16] = [
    (Ipv4Addr::new(0, 0, 0, 0), 8),
    (Ipv4Addr::new(10, 0, 0, 0), 8),
    (Ipv4Addr::new(100, 64, 0, 0), 10),
    (Ipv4Addr::new(127, 0, 0, 0), 8),
    (Ipv4Addr::new(169, 254, 0, 0), 16),
    (Ipv4Addr::new(168, 63, 129, 16), 32),
    (Ipv4Addr::new(172, 16, 0, 0), 12),
    (Ipv4Addr::new(192, 0, 0, 0), 24),
    (Ipv4Addr::new(192, 0, 2, 0), 24),
    (Ipv4Addr::new(192, 88, 99, 0), 24),
    (Ipv4Addr::new(192, 168, 0, 0), 16),
    (Ipv4Addr::new(198, 18, 0, 0), 15),
    (Ipv4Addr::new(198, 51, 100, 0), 24),
    (Ipv4Addr::new(203, 0, 113, 0), 24),
    (Ipv4Addr::new(224, 0, 0, 0), 4),
    (Ipv4Addr::new(240, 0, 0, 0), 4),
];

/// The IPv6 addresses that are assigned to the Internet (RFC 4291, section 2.4).
const PUBLIC_V6: (Ipv6Addr, u8) = (Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 0), 3);

/// The networks within them that are not public, or lead to IPv4 addresses: Teredo and other protocol assignments,
/// documentation, and 6to4.
const NOT_PUBLIC_V6: [(Ipv6Addr, u8); 4] = [
    (Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, 0, 0), 23),
    (Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0), 32),
    (Ipv6Addr::new(0x2002, 0, 0, 0, 0, 0, 0, 0), 16),
    (Ipv6Addr::new(0x3fff, 0, 0, 0, 0, 0, 0, 0), 20),
];

/// Decides which peers relays may reach: public addresses, other relays of this server, and what the operator allows.
pub(super) struct PeerPolicy {
    denied: Vec<IpNet>,
    allowed: Vec<IpNet>,
    relay_addresses: Vec<IpAddr>,
    own: Mutex<OwnAddresses>,
}

/// How a relay reaches a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reach {
    /// Not at all.
    Refused,
    /// The peer must be another relay of this server.
    RelaysOnly,
    /// Over the network, or as another relay of this server.
    Network,
}

/// The addresses of this machine, as they were then.
struct OwnAddresses {
    read_at: Instant,
    addresses: Vec<IpAddr>,
}

impl PeerPolicy {
    /// The policy of these options.
    ///
    /// # Errors
    ///
    /// The addresses of this machine cannot be read.
    pub(super) fn new(options: &TurnOptions) -> io::Result<PeerPolicy> {
        Ok(PeerPolicy {
            denied: options.deny_peer.clone(),
            allowed: options.allow_peer.clone(),
            relay_addresses: options.addresses.clone(),
            own: Mutex::new(OwnAddresses {
                read_at: Instant::now(),
                addresses: read_own()?,
            }),
        })
    }

    /// How relays reach a peer with this address.
    pub(super) fn reach(&self, peer: IpAddr) -> Reach {
        let is_in = |networks: &[IpNet]| networks.iter().any(|net| net.contains(&peer));
        if peer != peer.to_canonical() || is_in(&self.denied) {
            // An IPv4 address in the form of IPv6 does not travel over the network.
            Reach::Refused
        } else if self.allowed.contains(&peer.into()) {
            Reach::Network
        } else if self.relay_addresses.contains(&peer) {
            Reach::RelaysOnly
        } else if self.own.lock().contains(peer) {
            // A network that is allowed may be this machine's own: that does not open its services.
            Reach::Refused
        } else if is_in(&self.allowed) || is_public(peer) {
            Reach::Network
        } else {
            Reach::Refused
        }
    }
}

impl OwnAddresses {
    fn contains(&mut self, address: IpAddr) -> bool {
        let now = Instant::now();
        if now - self.read_at > KNOWN_FOR {
            match read_own() {
                Ok(addresses) => self.addresses = addresses,
                Err(error) => warn!("cannot read the addresses of this machine: {error}"),
            }
            self.read_at = now;
        }
        self.addresses.contains(&address)
    }
}

fn read_own() -> io::Result<Vec<IpAddr>> {
    let interfaces = if_addrs::get_if_addrs()?;
    Ok(interfaces.iter().map(|it| it.ip().to_canonical()).collect())
}

/// Whether an address belongs to the Internet.
fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => !NOT_PUBLIC_V4.iter().any(|(network, bits)| {
            let mask = u32::MAX << (32 - bits);
            address.to_bits() & mask == network.to_bits()
        }),
        IpAddr::V6(address) => {
            let is_in = |(network, bits): &(Ipv6Addr, u8)| {
                let mask = u128::MAX << (128 - bits);
                address.to_bits() & mask == network.to_bits()
            };
            is_in(&PUBLIC_V6) && !NOT_PUBLIC_V6.iter().any(is_in)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(allowed: &[&str], denied: &[&str], relays: &[&str]) -> PeerPolicy {
        let networks = |texts: &[&str]| texts.iter().map(|it| it.parse().unwrap()).collect();
        let options = TurnOptions {
            allow_peer: networks(allowed),
            deny_peer: networks(denied),
            addresses: relays.iter().map(|it| it.parse().unwrap()).collect(),
            ..TurnOptions::default()
        };
        PeerPolicy::new(&options).unwrap()
    }

    fn reach(policy: &PeerPolicy, peer: &str) -> Reach {
        policy.reach(peer.parse().unwrap())
    }

    #[tokio::test]
    async fn peers_that_are_not_public_are_refused_in_every_form() {
        let policy = policy(&[], &[], &["203.0.113.7"]);
        for peer in [
            "0.0.0.0",
            "0.1.2.3",
            "10.1.2.3",
            "100.64.0.1",
            "100.127.255.255",
            "127.0.0.1",
            "127.255.255.255",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "168.63.129.16",
            "192.0.0.1",
            "192.0.2.1",
            "192.168.1.1",
            "198.19.0.1",
            "224.0.0.1",
            "239.255.255.255",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::127.0.0.1",
            "::ffff:127.0.0.1",
            "::ffff:8.8.8.8",
            "64:ff9b::7f00:1",
            "64:ff9b:1::1",
            "100::1",
            "2001::1",
            "2001:db8::1",
            "2002:7f00:1::1",
            "fc00::1",
            "fd12:3456:789a::1",
            "fe80::1",
            "fec0::1",
            "ff02::1",
        ] {
            assert_eq!(reach(&policy, peer), Reach::Refused, "{peer}");
        }
        for peer in [
            "1.1.1.1",
            "100.128.0.1",
            "172.32.0.1",
            "223.255.255.255",
            "2600::1",
        ] {
            assert_eq!(reach(&policy, peer), Reach::Network, "{peer}");
        }
        assert_eq!(reach(&policy, "203.0.113.7"), Reach::RelaysOnly);
        assert_eq!(reach(&policy, "::ffff:203.0.113.7"), Reach::Refused);
    }

    #[tokio::test]
    async fn an_operator_allows_and_denies_networks() {
        let policy = policy(
            &["10.0.0.0/8", "fd00::/8"],
            &["10.9.0.0/16", "1.1.1.0/24"],
            &[],
        );
        for (peer, expected) in [
            ("10.1.2.3", Reach::Network),
            ("fd00::1", Reach::Network),
            ("11.1.2.3", Reach::Network),
            ("10.9.2.3", Reach::Refused),
            ("1.1.1.1", Reach::Refused),
            ("::ffff:10.1.2.3", Reach::Refused),
            ("192.168.0.1", Reach::Refused),
        ] {
            assert_eq!(reach(&policy, peer), expected, "{peer}");
        }
    }

    #[tokio::test]
    async fn the_addresses_of_this_machine_are_refused_unless_they_are_named() {
        let own = |policy: PeerPolicy, address: &str| {
            policy.own.lock().addresses = vec![address.parse().unwrap()];
            policy
        };
        let public = own(policy(&[], &[], &[]), "1.1.1.1");
        assert_eq!(reach(&public, "1.1.1.1"), Reach::Refused);
        assert_eq!(reach(&public, "1.1.1.2"), Reach::Network);
        let private = own(policy(&["10.0.0.0/8"], &[], &[]), "10.0.0.7");
        assert_eq!(reach(&private, "10.0.0.7"), Reach::Refused);
        assert_eq!(reach(&private, "10.0.0.8"), Reach::Network);
        let named = own(policy(&["10.0.0.7/32"], &[], &["10.0.0.7"]), "10.0.0.7");
        assert_eq!(reach(&named, "10.0.0.7"), Reach::Network);
        assert!(read_own().unwrap().contains(&"127.0.0.1".parse().unwrap()));
    }
}
