//! URLs of ICE servers (RFC 7064, RFC 7065), as `hello` has them.

use std::str::FromStr;

use http::uri::Authority;

/// The ports of STUN and TURN, without and with TLS.
const PORTS: [u16; 2] = [3478, 5349];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Stun,
    Turn,
}

/// How packets get to the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Transport {
    Udp,
    Tcp,
    Tls,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct IceUrl {
    pub(super) kind: Kind,
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) transport: Transport,
}

impl IceUrl {
    pub(super) fn is_udp(&self) -> bool {
        self.transport == Transport::Udp
    }
}

impl FromStr for IceUrl {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<IceUrl, &'static str> {
        const ERROR: &str = "not the URL of an ICE server";
        let (scheme, rest) = text.split_once(':').ok_or(ERROR)?;
        let (authority, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (kind, is_tls) = match scheme {
            "stun" => (Kind::Stun, false),
            "stuns" => (Kind::Stun, true),
            "turn" => (Kind::Turn, false),
            "turns" => (Kind::Turn, true),
            _ => return Err(ERROR),
        };
        let transport = match (is_tls, query) {
            (true, "" | "transport=tcp") => Transport::Tls,
            (true, _) => return Err("TURN over DTLS, which browsers do not support"),
            (false, "" | "transport=udp") => Transport::Udp,
            (false, "transport=tcp") => Transport::Tcp,
            (false, _) => return Err(ERROR),
        };
        let authority: Authority = authority.parse().map_err(|_| ERROR)?;
        let host = authority.host();
        let port = match authority.as_str().strip_prefix(host) {
            Some("") => PORTS[usize::from(is_tls)],
            Some(rest) => {
                let port = rest.strip_prefix(':').and_then(|port| port.parse().ok());
                port.filter(|port| *port != 0)
                    .ok_or("its port is not one of 1 to 65535")?
            }
            None => return Err(ERROR),
        };
        let host = host.trim_matches(['[', ']']);
        if host.is_empty() {
            return Err(ERROR);
        }
        Ok(IceUrl {
            kind,
            host: host.into(),
            port,
            transport,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_those_of_the_rfcs() {
        let url = |kind, host: &str, port, transport| IceUrl {
            kind,
            host: host.into(),
            port,
            transport,
        };
        for (text, expected) in [
            ("stun:a", url(Kind::Stun, "a", 3478, Transport::Udp)),
            (
                "turn:a?transport=udp",
                url(Kind::Turn, "a", 3478, Transport::Udp),
            ),
            (
                "turn:[::1]:99?transport=tcp",
                url(Kind::Turn, "::1", 99, Transport::Tcp),
            ),
            ("turns:a", url(Kind::Turn, "a", 5349, Transport::Tls)),
            (
                "stuns:192.0.2.1:443",
                url(Kind::Stun, "192.0.2.1", 443, Transport::Tls),
            ),
        ] {
            assert_eq!(text.parse(), Ok(expected), "{text}");
        }
        for text in [
            "",
            "stun",
            "stun:",
            "http:a",
            "stun:name@a",
            "stun:a:",
            "stun:a:0",
            "stun:a:65536",
            "stun:a:b",
            "turn:[::1]:99999",
            "turn:a?transport=sctp",
            "turns:a?transport=udp",
        ] {
            assert!(text.parse::<IceUrl>().is_err(), "{text}");
        }
    }
}
