//! The ICE servers that `hello` names: whether STUN tells an address, and TURN relays a packet.

mod link;
mod stun;
mod turn;
mod url;

use std::net::IpAddr;

use self::{
    link::Link,
    turn::Credentials,
    url::{IceUrl, Kind},
};
use super::{
    report::{Finding, Report},
    session::IceServer,
};

/// How many URLs are checked.
const MAX_URLS: usize = 16;

/// How many servers are asked for this machine's address: one that does not answer takes seconds.
const MAX_ASKED: usize = 2;

/// Does a step for each URL.
pub(super) async fn check(servers: &[IceServer], report: &mut Report) {
    if servers.iter().all(|server| server.urls.is_empty()) {
        let reason = "the server names no ICE servers: calls between networks need --turn-listen, --turn-url or --ice-server";
        report.skip(&["ice"], reason);
        return;
    }
    let urls = servers
        .iter()
        .flat_map(|server| server.urls.iter().map(move |url| (server, url)));
    for (server, text) in urls.take(MAX_URLS) {
        let finding = match text.parse::<IceUrl>() {
            Ok(url) => check_one(&url, server).await,
            Err(error) => Finding::failed(error, "correct the URL in --ice-server or --turn-url"),
        };
        report.add(format!("ice {text}"), finding);
    }
}

async fn check_one(url: &IceUrl, server: &IceServer) -> Finding {
    let result = match (url.kind, &server.username, &server.credential) {
        (Kind::Stun, ..) => stun::check(url).await,
        (Kind::Turn, Some(name), Some(password)) => {
            turn::check(url, &Credentials { name, password }).await
        }
        (Kind::Turn, ..) => Err(Finding::failed(
            "the server gives no name and password for it",
            "set --turn-secret-file, or put the name and password into --ice-server",
        )),
    };
    result.unwrap_or_else(|finding| finding)
}

/// This machine's address as the first STUN or TURN server sees it that answers over UDP.
pub(super) async fn mapped_address(servers: &[IceServer]) -> Option<IpAddr> {
    let urls = servers
        .iter()
        .flat_map(|server| &server.urls)
        .take(MAX_URLS);
    let urls = urls.filter_map(|text| text.parse::<IceUrl>().ok());
    for url in urls.filter(IceUrl::is_udp).take(MAX_ASKED) {
        if let Ok(mut link) = Link::open(&url).await
            && let Ok(mapped) = stun::bind(&mut link).await
        {
            return Some(mapped.ip().to_canonical());
        }
    }
    None
}
