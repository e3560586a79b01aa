//! The URL of a room.

use std::{
    fmt::{self, Display},
    str::FromStr,
};

use http::Uri;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

/// Characters that are not percent-encoded in a path segment or a query value.
const PLAIN: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// The URL of a room, such as `wss://rooms.example.org/room/tea`. `http` and `https` mean `ws` and `wss`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoomUrl {
    is_tls: bool,
    /// A name or an address; an IPv6 address is without brackets.
    host: String,
    port: u16,
    /// Begins with a slash.
    path: String,
    /// Without the question mark.
    query: String,
}

impl RoomUrl {
    /// Whether the connection is encrypted.
    pub fn is_tls(&self) -> bool {
        self.is_tls
    }

    /// The server's name or address; an IPv6 address is without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The server's port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The path of the room.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Whether the path is that of a room: `/room`, `/room/{name}`, or the same behind another path.
    pub fn has_room(&self) -> bool {
        self.prefix() != self.path.trim_end_matches('/')
    }

    /// The part of the path that is before the room, without a slash at its end; all of it if it names no room.
    pub fn prefix(&self) -> &str {
        let path = self.path.trim_end_matches('/');
        let parent = path.rsplit_once('/').map_or("", |(parent, _)| parent);
        let prefix = path
            .strip_suffix("/room")
            .or_else(|| parent.strip_suffix("/room"));
        prefix.unwrap_or(path)
    }

    /// The URL of the default room on the same server: this path, without the room that it may name, and `/room`.
    pub fn with_default_room(&self) -> RoomUrl {
        RoomUrl {
            path: format!("{}/room", self.prefix()),
            ..self.clone()
        }
    }

    /// The URL without its query.
    pub fn without_query(&self) -> RoomUrl {
        RoomUrl {
            query: String::new(),
            ..self.clone()
        }
    }

    /// The URL of a room on the same server: this path, without the room that it may name, and `/room/{name}`.
    pub fn with_room(&self, name: &str) -> RoomUrl {
        RoomUrl {
            path: format!("{}/room/{}", self.prefix(), encode(name)),
            ..self.clone()
        }
    }

    /// The value of `Host`: the port is left out if it is the scheme's own.
    pub fn authority(&self) -> String {
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

    /// The origin of pages of the same server.
    pub fn origin(&self) -> String {
        let scheme = if self.is_tls { "https" } else { "http" };
        format!("{scheme}://{}", self.authority())
    }

    /// The path and the query, with further parameters.
    pub(super) fn target(&self, parameters: &[(&str, &str)]) -> String {
        let own = (!self.query.is_empty()).then(|| self.query.clone());
        let more = parameters
            .iter()
            .map(|(name, value)| format!("{name}={}", encode(value)));
        let query: Vec<String> = own.into_iter().chain(more).collect();
        match query.is_empty() {
            true => self.path.clone(),
            false => format!("{}?{}", self.path, query.join("&")),
        }
    }
}

/// Percent-encodes a path segment or a query value.
pub(super) fn encode(text: &str) -> String {
    utf8_percent_encode(text, PLAIN).to_string()
}

impl Display for RoomUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.is_tls { "wss" } else { "ws" };
        write!(f, "{scheme}://{}{}", self.authority(), self.target(&[]))
    }
}

/// Why a text is not the URL of a room. It does not repeat the text, which may have a secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UrlError(&'static str);

impl Display for UrlError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for UrlError {}

impl FromStr for RoomUrl {
    type Err = UrlError;

    fn from_str(text: &str) -> Result<RoomUrl, UrlError> {
        const ERROR: UrlError =
            UrlError("not the URL of a server or a room, such as wss://rooms.example.org/room/tea");
        let text = text.split('#').next().unwrap_or_default();
        let uri: Uri = text.parse().map_err(|_| ERROR)?;
        let is_tls = match uri.scheme_str() {
            Some("wss" | "https") => true,
            Some("ws" | "http") => false,
            _ => return Err(ERROR),
        };
        let query = uri.query().unwrap_or_default();
        let is_ours = |it: &str| {
            ["token", "resume", "received"].contains(&it.split('=').next().unwrap_or_default())
        };
        if query.split('&').any(is_ours) {
            return Err(UrlError(
                "the URL must have no token and no resume token: give a token beside it",
            ));
        }
        let authority = uri.authority().ok_or(ERROR)?;
        if authority.as_str().contains('@') {
            return Err(UrlError("the URL must have no user and password"));
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
                .ok_or(UrlError("the port of the URL must be 1 to 65535"))?,
        };
        Ok(RoomUrl {
            is_tls,
            host: host.into(),
            port,
            path: uri.path().into(),
            query: query.into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_of_a_url_are_read() {
        for (text, shown, has_room) in [
            ("ws://a", "ws://a/", false),
            ("http://a:80/room", "ws://a/room", true),
            ("https://a/room/tea", "wss://a/room/tea", true),
            (
                "wss://a:8443/chat/room/x%20y",
                "wss://a:8443/chat/room/x%20y",
                true,
            ),
            (
                "ws://[::1]:8080/room/tea?tenant=1#x",
                "ws://[::1]:8080/room/tea?tenant=1",
                true,
            ),
        ] {
            let url: RoomUrl = text.parse().unwrap();
            assert_eq!(url.to_string(), shown);
            assert_eq!(url.has_room(), has_room, "{text}");
        }
        let url: RoomUrl = "ws://[::1]:8080/room/tea?tenant=1".parse().unwrap();
        assert_eq!((url.host(), url.port(), url.is_tls()), ("::1", 8080, false));
        assert_eq!(url.origin(), "http://[::1]:8080");
        assert_eq!(
            url.target(&[("resume", "a/b")]),
            "/room/tea?tenant=1&resume=a%2Fb"
        );
        assert_eq!(url.with_room("x y").path(), "/room/x%20y");
        let url: RoomUrl = "ws://a/chat/".parse().unwrap();
        assert_eq!(url.with_room("x y").path(), "/chat/room/x%20y");
    }

    #[test]
    fn what_is_not_a_url_or_has_a_secret_is_refused() {
        for text in [
            "",
            "a/room",
            "/room",
            "ftp://a/room",
            "wss://",
            "ws://a:0/room",
            "ws://a:x/room",
            "ws://alice:secret@a/room",
            "ws://a/room?token=secret",
            "ws://a/room?x=1&resume=secret",
            "wss://a/?room=tea&token=secret",
            "wss://a:99999/",
            "wss://[::1]:99999/",
            "wss://a b/",
        ] {
            let error = text.parse::<RoomUrl>().unwrap_err();
            assert!(!error.to_string().contains("secret"), "{error}");
        }
    }
}
