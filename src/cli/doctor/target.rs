//! The server that is checked, as its URL names it.

use std::str::FromStr;

use http::Uri;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

/// Characters that are not percent-encoded in a path segment or a query value.
const PLAIN: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// The parts of the server's URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) is_tls: bool,
    /// A name or an address; an IPv6 address is without brackets.
    pub(super) host: String,
    pub(super) port: u16,
    /// The path before `/room`, without a slash at its end.
    pub(super) prefix: String,
}

impl Target {
    /// The value of `Host`: the port is left out if it is the scheme's own.
    pub(super) fn authority(&self) -> String {
        let host = match self.host.contains(':') {
            true => format!("[{}]", self.host),
            false => self.host.clone(),
        };
        let default = if self.is_tls { 443 } else { 80 };
        match self.port == default {
            true => host,
            false => format!("{host}:{}", self.port),
        }
    }

    /// The origin of pages at this URL.
    pub(super) fn origin(&self) -> String {
        let scheme = if self.is_tls { "https" } else { "http" };
        format!("{scheme}://{}", self.authority())
    }

    /// The URL of the default room.
    pub(super) fn room_url(&self) -> String {
        let scheme = if self.is_tls { "wss" } else { "ws" };
        format!("{scheme}://{}{}/room", self.authority(), self.prefix)
    }

    /// The path of a room.
    pub(super) fn room_path(&self, room: &str) -> String {
        format!("{}/room/{}", self.prefix, encode(room))
    }
}

/// Percent-encodes a path segment or a query value.
pub(super) fn encode(text: &str) -> String {
    utf8_percent_encode(text, PLAIN).to_string()
}

impl FromStr for Target {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Target, &'static str> {
        const ERROR: &str = "not the URL of a server, such as wss://rooms.example.org/";
        let uri: Uri = text.parse().map_err(|_| ERROR)?;
        let is_tls = match uri.scheme_str() {
            Some("wss" | "https") => true,
            Some("ws" | "http") => false,
            _ => return Err(ERROR),
        };
        // The rest of a query, such as the room of a page, is of no use here.
        let mut parameters = uri.query().unwrap_or_default().split('&');
        if parameters.any(|it| it.starts_with("token=")) {
            return Err("the URL must have no token: give it with --token");
        }
        let authority = uri.authority().ok_or(ERROR)?;
        if authority.as_str().contains('@') {
            return Err("the URL must have no user and password");
        }
        let host = authority.host().trim_matches(['[', ']']);
        if host.is_empty() {
            return Err(ERROR);
        }
        let after_host = authority.as_str().strip_prefix(authority.host());
        let port = match after_host.map(|it| it.trim_start_matches(':')) {
            Some("") if is_tls => 443,
            Some("") => 80,
            _ => authority
                .port_u16()
                .filter(|port| *port != 0)
                .ok_or("the port of the URL must be 1 to 65535")?,
        };
        Ok(Target {
            is_tls,
            host: host.into(),
            port,
            prefix: prefix(uri.path()).into(),
        })
    }
}

/// The part of a path that is before `/room` or `/room/{name}`: all of it, if it does not end so.
fn prefix(path: &str) -> &str {
    let path = path.trim_end_matches('/');
    let parent = path.rsplit_once('/').map_or("", |(parent, _)| parent);
    let prefix = path
        .strip_suffix("/room")
        .or_else(|| parent.strip_suffix("/room"));
    prefix.unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_leads_to_the_rooms_behind_its_path() {
        for (text, room_url, origin) in [
            ("ws://a", "ws://a/room", "http://a"),
            ("wss://a:443/", "wss://a/room", "https://a"),
            ("https://a:8443/room", "wss://a:8443/room", "https://a:8443"),
            ("http://a/chat/", "ws://a/chat/room", "http://a"),
            ("wss://a/chat", "wss://a/chat/room", "https://a"),
            ("wss://a:/?room=tea", "wss://a/room", "https://a"),
            ("wss://a/chat/room/tea", "wss://a/chat/room", "https://a"),
            (
                "ws://[::1]:8080/",
                "ws://[::1]:8080/room",
                "http://[::1]:8080",
            ),
        ] {
            let target: Target = text.parse().unwrap();
            assert_eq!(target.room_url(), room_url);
            assert_eq!(target.origin(), origin);
        }
        let target: Target = "wss://a/chat/".parse().unwrap();
        assert_eq!(target.room_path("x y"), "/chat/room/x%20y");
    }

    #[test]
    fn what_is_not_the_url_of_a_server_is_refused() {
        for text in [
            "",
            "rooms.example.org",
            "/room",
            "ftp://a/",
            "wss://",
            "wss://a/?token=x",
            "wss://a/?room=tea&token=x",
            "wss://a:99999/",
            "wss://a:0/",
            "wss://a:x/",
            "wss://[::1]:99999/",
            "wss://alice:secret@a/",
            "wss://a b/",
        ] {
            assert!(text.parse::<Target>().is_err(), "{text}");
        }
    }
}
