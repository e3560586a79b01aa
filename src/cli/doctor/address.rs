//! The address by which the server counts a client: behind a proxy that it does not trust, all clients are one.

use std::net::IpAddr;

use http::{HeaderName, HeaderValue};
use serde_json::Value;

use super::{
    report::Finding,
    session::{Endpoint, Session},
};

/// An address of nobody (RFC 5737), which the doctor claims to be.
const NOBODY: &str = "198.51.100.87";

/// What the doctor knows of the addresses on the way.
pub(super) struct KnownAddresses {
    /// The address of this machine that the connection has.
    pub(super) local: IpAddr,
    /// The address of the server, or of the proxy before it.
    pub(super) server: IpAddr,
    /// This machine's address as a STUN server sees it.
    pub(super) mapped: Option<IpAddr>,
}

/// The address that the server sees.
///
/// # Errors
///
/// What the report says if the server does not tell it.
pub(super) async fn seen(session: &mut Session) -> Result<IpAddr, Finding> {
    let answer = session.ask("address", Value::Null, "address").await;
    let answer = answer.map_err(|lost| Finding::failed(lost.to_string(), "try again"))?;
    if answer["data"]["code"] == "unknown_request" {
        return Err(Finding::skipped(
            "the server is older and does not tell the address",
        ));
    }
    let ip = answer["data"]["ip"].as_str().and_then(|ip| ip.parse().ok());
    ip.ok_or_else(|| Finding::skipped("the server does not know the address"))
}

/// Judges the address that the server sees.
pub(super) fn judge(seen: IpAddr, known: &KnownAddresses) -> Finding {
    let trust = format!(
        "if {seen} is a proxy, all its clients count as one, and limits hit them together: start the server \
         with --trust-proxy {seen}, and have the proxy set X-Forwarded-For"
    );
    if seen == known.local {
        return Finding::ok(format!("the server sees {seen}, this machine"));
    }
    // What a STUN server in the same network sees says nothing: it may be the address of the proxy, too.
    let mapped = known.mapped.filter(|mapped| !is_local(*mapped));
    if mapped == Some(seen) {
        return Finding::ok(format!("the server sees {seen}, this network"));
    }
    let detail = format!(
        "the server sees {seen}, and this machine is {}",
        known.local
    );
    if is_local(seen) {
        // With hairpin NAT, the router may put its own address in place of this machine's.
        if mapped == Some(known.server) && !seen.is_loopback() {
            return Finding::warning(detail, trust);
        }
        // A server in the same private network sees an address of it that a router may have changed.
        return match is_local(known.local) && is_local(known.server) && !seen.is_loopback() {
            true if !known.local.is_loopback() => Finding::warning(detail, trust),
            _ => Finding::failed(detail, trust),
        };
    }
    match mapped.filter(|mapped| mapped.is_ipv4() == seen.is_ipv4()) {
        Some(mapped) => Finding::warning(
            format!("the server sees {seen}, and a STUN server sees {mapped}"),
            trust,
        ),
        None if !is_local(known.local) && known.local.is_ipv4() == seen.is_ipv4() => {
            Finding::failed(detail, trust)
        }
        None => Finding::skipped(format!(
            "the server sees {seen}; no STUN server says whether that is this network"
        )),
    }
}

/// Whether an address is of no use outside its own network.
fn is_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => {
            let is_shared = matches!(address.octets(), [100, 64..=127, ..]);
            address.is_private() || address.is_loopback() || address.is_link_local() || is_shared
        }
        IpAddr::V6(address) => {
            address.is_loopback() || address.is_unique_local() || address.is_unicast_link_local()
        }
    }
}

/// Does the step `forged address`: claims another address on a connection of its own.
pub(super) async fn forged(endpoint: &Endpoint) -> Finding {
    let headers = [
        ("x-forwarded-for", NOBODY),
        ("forwarded", "for=198.51.100.87"),
    ]
    .map(|(name, value)| {
        (
            HeaderName::from_static(name),
            HeaderValue::from_static(value),
        )
    });
    let mut session = match endpoint.open("", &headers).await {
        Ok(session) => session,
        Err((finding, _)) => {
            let detail = format!(
                "a request with X-Forwarded-For is refused: {}",
                finding.detail
            );
            return Finding::skipped(detail);
        }
    };
    let finding = match seen(&mut session).await {
        Ok(seen) if seen.to_string() == NOBODY => {
            believed(session.local, endpoint.connector.server())
        }
        Ok(_) => Finding::ok("the server does not believe the X-Forwarded-For of a client"),
        Err(finding) => Finding::skipped(finding.detail),
    };
    session.leave().await;
    finding
}

/// The finding for a server that believes the claim. In a private network, it may trust all addresses of that network
/// as those of proxies.
fn believed(local: IpAddr, server: IpAddr) -> Finding {
    if is_local(local) && is_local(server) && !local.is_loopback() {
        return Finding::warning(
            format!("the server believes the X-Forwarded-For of {local}, this machine"),
            "name only the proxies' own addresses in --trust-proxy, or run the doctor from outside",
        );
    }
    Finding::failed(
        "the server believes the X-Forwarded-For of any client, so that clients evade limits",
        "have the proxy append the address that it sees (nginx: $proxy_add_x_forwarded_for), and name \
         only proxies in --trust-proxy",
    )
}

#[cfg(test)]
mod tests {
    use super::super::report::Outcome;
    use super::*;

    #[test]
    fn a_believed_claim_from_a_private_network_is_a_warning() {
        for (local, server, outcome) in [
            ("10.0.0.5", "10.0.0.7", Outcome::Warning),
            ("fd00::5", "fd00::7", Outcome::Warning),
            // Behind a NAT, the server sees another address.
            ("10.0.0.5", "203.0.113.7", Outcome::Failed),
            ("203.0.113.9", "203.0.113.7", Outcome::Failed),
            ("127.0.0.2", "127.0.0.1", Outcome::Failed),
        ] {
            let finding = believed(local.parse().unwrap(), server.parse().unwrap());
            assert_eq!(finding.outcome, outcome, "{local} {server}");
        }
    }

    #[test]
    fn an_address_of_a_proxy_is_told_from_one_of_the_client() {
        for (seen, local, server, mapped, outcome) in [
            // Direct, with and without a NAT.
            ("127.0.0.2", "127.0.0.2", "127.0.0.1", None, Outcome::Ok),
            (
                "203.0.113.9",
                "203.0.113.9",
                "203.0.113.7",
                None,
                Outcome::Ok,
            ),
            (
                "203.0.113.9",
                "10.0.0.5",
                "203.0.113.7",
                None,
                Outcome::Skipped,
            ),
            (
                "203.0.113.9",
                "10.0.0.5",
                "203.0.113.7",
                Some("203.0.113.9"),
                Outcome::Ok,
            ),
            // A proxy on the server's machine, or in its network.
            ("127.0.0.1", "127.0.0.2", "127.0.0.1", None, Outcome::Failed),
            (
                "127.0.0.1",
                "127.0.0.2",
                "127.0.0.1",
                Some("127.0.0.1"),
                Outcome::Failed,
            ),
            (
                "127.0.0.1",
                "10.0.0.5",
                "203.0.113.7",
                None,
                Outcome::Failed,
            ),
            (
                "127.0.0.1",
                "203.0.113.7",
                "203.0.113.7",
                None,
                Outcome::Failed,
            ),
            ("127.0.0.1", "10.0.0.5", "10.0.0.7", None, Outcome::Failed),
            (
                "172.17.0.1",
                "10.0.0.5",
                "203.0.113.7",
                None,
                Outcome::Failed,
            ),
            (
                "172.17.0.1",
                "127.0.0.2",
                "127.0.0.1",
                None,
                Outcome::Failed,
            ),
            ("172.17.0.1", "10.0.0.5", "10.0.0.7", None, Outcome::Warning),
            (
                "fd00::1",
                "2001:db8::5",
                "2001:db8::7",
                None,
                Outcome::Failed,
            ),
            // A proxy elsewhere, such as a CDN.
            (
                "198.51.100.1",
                "203.0.113.9",
                "198.51.100.2",
                None,
                Outcome::Failed,
            ),
            (
                "198.51.100.1",
                "10.0.0.5",
                "198.51.100.2",
                Some("203.0.113.9"),
                Outcome::Warning,
            ),
            (
                "2001:db8::1",
                "10.0.0.5",
                "198.51.100.2",
                Some("203.0.113.9"),
                Outcome::Skipped,
            ),
            // A router between this machine and a server behind the same public address.
            (
                "10.0.0.1",
                "10.0.0.5",
                "203.0.113.7",
                Some("203.0.113.7"),
                Outcome::Warning,
            ),
            (
                "127.0.0.1",
                "10.0.0.5",
                "203.0.113.7",
                Some("203.0.113.7"),
                Outcome::Failed,
            ),
        ] {
            let parse = |text: &str| text.parse().unwrap();
            let known = KnownAddresses {
                local: parse(local),
                server: parse(server),
                mapped: mapped.map(parse),
            };
            let finding = judge(parse(seen), &known);
            assert_eq!(
                finding.outcome, outcome,
                "{seen} {local} {server} {mapped:?}"
            );
        }
    }
}
