//! Options of the STUN and TURN server in this process.

use std::{
    net::{IpAddr, SocketAddr},
    num::{NonZeroU16, NonZeroU32},
    ops::RangeInclusive,
    str::FromStr,
};

#[cfg(feature = "cli")]
use clap::Args;
use ipnet::IpNet;

use super::check::within;
#[cfg(feature = "cli")]
use super::parse::{network, positive, socket_address};

/// The highest rate, in bytes per second. The limiter counts nanoseconds.
const MAX_RATE: u64 = 1_000_000_000;

/// The STUN and TURN server that sessions may use (RFC 8489, RFC 8656).
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(
    feature = "cli",
    derive(Args),
    command(next_help_heading = "TURN server")
)]
#[non_exhaustive]
pub struct TurnOptions {
    /// IP address and port of a STUN and TURN server for the sessions, over UDP and TCP; port 0 picks
    /// a free port [default: no such server]
    #[cfg_attr(feature = "cli", arg(
        long = "turn-listen", id = "turn-listen", env = "ANTEROOM_TURN_LISTEN", value_name = "ADDRESS:PORT",
        value_parser = socket_address
    ))]
    pub listen: Option<SocketAddr>,

    /// IP address at which clients reach the TURN server; may be given twice, for IPv4 and IPv6
    #[cfg_attr(
        feature = "cli",
        arg(
            long = "turn-address",
            env = "ANTEROOM_TURN_ADDRESS",
            value_name = "ADDRESS",
            value_delimiter = ','
        )
    )]
    pub addresses: Vec<IpAddr>,

    /// UDP ports of relays, which peers must reach
    #[cfg_attr(feature = "cli", arg(
        long = "turn-relay-ports", env = "ANTEROOM_TURN_RELAY_PORTS", value_name = "FIRST-LAST",
        default_value_t = TurnOptions::default().relay_ports
    ))]
    pub relay_ports: PortRange,

    /// Address or network of peers that relays may reach although it is not public, such as
    /// `10.0.0.0/8`; may be given several times
    #[cfg_attr(feature = "cli", arg(
        long = "turn-allow-peer", env = "ANTEROOM_TURN_ALLOW_PEER", value_name = "ADDRESS",
        value_delimiter = ',', value_parser = network
    ))]
    pub allow_peer: Vec<IpNet>,

    /// Address or network of peers that relays must not reach; it wins over --turn-allow-peer; may be
    /// given several times
    #[cfg_attr(feature = "cli", arg(
        long = "turn-deny-peer", env = "ANTEROOM_TURN_DENY_PEER", value_name = "ADDRESS",
        value_delimiter = ',', value_parser = network
    ))]
    pub deny_peer: Vec<IpNet>,

    /// Most allocations of one session
    #[cfg_attr(feature = "cli", arg(
        long = "turn-session-allocations", env = "ANTEROOM_TURN_SESSION_ALLOCATIONS", value_name = "COUNT",
        default_value_t = TurnOptions::default().session_allocations, value_parser = positive
    ))]
    pub session_allocations: NonZeroU32,

    /// Most allocations, and most connections over TCP, of one IPv4 address or one IPv6 /64 network
    #[cfg_attr(feature = "cli", arg(
        long = "turn-address-allocations", env = "ANTEROOM_TURN_ADDRESS_ALLOCATIONS", value_name = "COUNT",
        default_value_t = TurnOptions::default().address_allocations, value_parser = positive
    ))]
    pub address_allocations: NonZeroU32,

    /// Average rate of bytes that the relays of one session pass on in both directions together, with
    /// a burst of one second and 48 bytes extra for each datagram; what is over the rate is dropped
    #[cfg_attr(feature = "cli", arg(
        long = "turn-bytes-per-second", id = "turn-bytes-per-second", env = "ANTEROOM_TURN_BYTES_PER_SECOND", value_name = "BYTES",
        default_value_t = TurnOptions::default().bytes_per_second, value_parser = positive
    ))]
    pub bytes_per_second: NonZeroU32,

    /// The same rate for all sessions together [default: no limit]
    #[cfg_attr(feature = "cli", arg(
        long = "turn-total-bytes-per-second", env = "ANTEROOM_TURN_TOTAL_BYTES_PER_SECOND",
        value_name = "BYTES", value_parser = positive
    ))]
    pub total_bytes_per_second: Option<NonZeroU32>,
}

/// A range of UDP ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortRange {
    first: NonZeroU16,
    last: NonZeroU16,
}

impl Default for TurnOptions {
    fn default() -> TurnOptions {
        let positive = |count| NonZeroU32::new(count).expect("it is not zero");
        TurnOptions {
            listen: None,
            addresses: Vec::new(),
            relay_ports: PortRange::default(),
            allow_peer: Vec::new(),
            deny_peer: Vec::new(),
            // A mesh of 16 has 15 peers, and a browser asks for a relay by UDP and by TCP on each of its networks.
            session_allocations: positive(100),
            address_allocations: positive(1000),
            // In a mesh of 16, 15 streams of 1 Mbit/s each way.
            bytes_per_second: positive(4_000_000),
            total_bytes_per_second: None,
        }
    }
}

/// The dynamic ports, as RFC 8656 recommends (section 7.2).
impl Default for PortRange {
    fn default() -> PortRange {
        let port = |number| NonZeroU16::new(number).expect("it is not zero");
        PortRange {
            first: port(49_152),
            last: port(65_535),
        }
    }
}

impl PortRange {
    /// The ports of the range, which is not empty.
    pub(crate) fn ports(self) -> RangeInclusive<u16> {
        self.first.get()..=self.last.get()
    }
}

impl FromStr for PortRange {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<PortRange, &'static str> {
        let parsed = text.split_once('-').and_then(|(first, last)| {
            let (first, last) = (first.parse().ok()?, last.parse().ok()?);
            (first <= last).then_some(PortRange { first, last })
        });
        parsed.ok_or("not a range of ports, such as 49152-65535")
    }
}

impl std::fmt::Display for PortRange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

impl TurnOptions {
    pub(super) fn check(&self) -> Result<(), String> {
        let defaults = TurnOptions::default();
        let Some(listen) = self.listen else {
            let others = TurnOptions {
                listen: None,
                ..self.clone()
            };
            return match others == defaults {
                true => Ok(()),
                false => Err("the options of the TURN server need --turn-listen".into()),
            };
        };
        let count = |is_ipv4| {
            let addresses = self.addresses.iter();
            addresses.filter(|it| it.is_ipv4() == is_ipv4).count()
        };
        let rates = [
            ("--turn-bytes-per-second", Some(self.bytes_per_second)),
            ("--turn-total-bytes-per-second", self.total_bytes_per_second),
        ];
        for (option, rate) in rates {
            if let Some(rate) = rate {
                within(option, rate.get().into(), 1..=MAX_RATE)?;
            }
        }
        if self.addresses.is_empty() {
            return Err(
                "--turn-listen needs --turn-address, the address at which clients reach it".into(),
            );
        }
        if count(true) > 1 || count(false) > 1 {
            return Err("--turn-address takes one IPv4 and one IPv6 address at most".into());
        }
        for address in &self.addresses {
            if address.is_unspecified()
                || address.is_multicast()
                || *address != address.to_canonical()
            {
                return Err(format!(
                    "--turn-address {address} is not an address that clients can reach"
                ));
            }
            let serves = listen.ip().is_unspecified() || listen.is_ipv4() == address.is_ipv4();
            if !serves || (listen.ip() == IpAddr::from([0, 0, 0, 0]) && address.is_ipv6()) {
                return Err(format!(
                    "--turn-listen {listen} does not serve --turn-address {address}: for both IPv4 and IPv6, listen on [::]"
                ));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_has_a_first_and_a_last_port() {
        let range: PortRange = "50000-50009".parse().unwrap();
        assert_eq!(range.ports(), 50_000..=50_009);
        assert_eq!(range.to_string(), "50000-50009");
        for text in ["", "1", "0-9", "9-8", "1-65536", "1-2-3", "a-b"] {
            assert!(text.parse::<PortRange>().is_err(), "{text}");
        }
    }

    #[test]
    fn the_addresses_are_those_that_the_listener_serves() {
        let of = |listen: &str, addresses: &[&str]| {
            let options = TurnOptions {
                listen: Some(listen.parse().unwrap()),
                addresses: addresses.iter().map(|it| it.parse().unwrap()).collect(),
                ..TurnOptions::default()
            };
            options.check()
        };
        assert_eq!(of("0.0.0.0:3478", &["203.0.113.7"]), Ok(()));
        assert_eq!(of("[::]:3478", &["203.0.113.7", "2001:db8::7"]), Ok(()));
        assert_eq!(of("192.0.2.1:3478", &["203.0.113.7"]), Ok(()));
        for (listen, addresses) in [
            ("0.0.0.0:3478", &[][..]),
            ("0.0.0.0:3478", &["203.0.113.7", "203.0.113.8"]),
            ("0.0.0.0:3478", &["2001:db8::7"]),
            ("192.0.2.1:3478", &["2001:db8::7"]),
            ("[2001:db8::1]:3478", &["203.0.113.7"]),
            ("[::]:3478", &["0.0.0.0"]),
            ("[::]:3478", &["::ffff:203.0.113.7"]),
            ("[::]:3478", &["224.0.0.1"]),
        ] {
            assert!(of(listen, addresses).is_err(), "{listen} {addresses:?}");
        }
        let lonely = TurnOptions {
            addresses: vec![[203, 0, 113, 7].into()],
            ..TurnOptions::default()
        };
        let error = "the options of the TURN server need --turn-listen";
        assert_eq!(lonely.check(), Err(error.into()));
    }
}
