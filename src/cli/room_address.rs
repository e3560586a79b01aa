//! The URL of a room, as people write it.

use std::{net::IpAddr, str::FromStr};

use anteroom::client::{RoomUrl, UrlError};

/// The room that a URL names, with parts left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RoomAddress {
    url: RoomUrl,
    names_room: bool,
}

impl RoomAddress {
    /// The URL of the room, the default one if none is named.
    pub(crate) fn url(&self) -> &RoomUrl {
        &self.url
    }

    /// Whether a room is named.
    pub(crate) fn names_room(&self) -> bool {
        self.names_room
    }
}

impl FromStr for RoomAddress {
    type Err = UrlError;

    fn from_str(text: &str) -> Result<RoomAddress, UrlError> {
        let url: RoomUrl = match text.contains("://") {
            true => text.parse()?,
            false => {
                let url: RoomUrl = format!("wss://{text}").parse()?;
                match has_certificate(url.host()) {
                    true => url,
                    false => format!("ws://{text}").parse()?,
                }
            }
        };
        let (url, names_room) = match (page_room(text), url.has_room()) {
            (Some(room), _) => (url.without_query().with_room(&room), true),
            (None, true) => (url, true),
            (None, false) => (url.with_default_room(), false),
        };
        Ok(RoomAddress { url, names_room })
    }
}

/// Whether a server with this name is reached by TLS, if the URL has no scheme: names of this machine and of the local
/// network, and addresses, have no certificates.
fn has_certificate(host: &str) -> bool {
    host.parse::<IpAddr>().is_err() && host.contains('.') && !host.ends_with(".localhost")
}

/// The room of a page's URL, such as `https://rooms.example.org/?room=tea`.
fn page_room(text: &str) -> Option<String> {
    let (_, query) = text.split('#').next()?.split_once('?')?;
    let mut parameters = form_urlencoded::parse(query.as_bytes());
    let (_, room) = parameters.find(|(name, _)| name == "room")?;
    Some(room.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scheme_and_room_may_be_left_out() {
        for (text, url) in [
            ("localhost:8080", "ws://localhost:8080/room"),
            ("localhost:8080/room/tea", "ws://localhost:8080/room/tea"),
            ("127.0.0.1:8080/", "ws://127.0.0.1:8080/room"),
            ("[::1]:8080/room", "ws://[::1]:8080/room"),
            ("mint:8080/room/tea", "ws://mint:8080/room/tea"),
            (
                "rooms.example.org/room/tea",
                "wss://rooms.example.org/room/tea",
            ),
            ("ws://rooms.example.org", "ws://rooms.example.org/room"),
            ("https://example.org/chat/", "wss://example.org/chat/room"),
            (
                "http://localhost:8080/?room=x%20y",
                "ws://localhost:8080/room/x%20y",
            ),
            (
                "https://example.org/chat/?room=tea#x",
                "wss://example.org/chat/room/tea",
            ),
        ] {
            let address: RoomAddress = text.parse().unwrap();
            assert_eq!(address.url().to_string(), url, "{text}");
        }
        for text in [
            "",
            "/room",
            "ftp://a/",
            "localhost:x",
            "a?token=secret",
            "a?room=tea&token=x",
        ] {
            assert!(text.parse::<RoomAddress>().is_err(), "{text}");
        }
    }
}
