//! The URL of the server that is checked.

use anteroom::client::{RoomUrl, UrlError};

/// Reads the URL of a server. A room and a query, such as that of a page, are of no use here.
pub(super) fn server_url(text: &str) -> Result<RoomUrl, UrlError> {
    let url: RoomUrl = text.parse()?;
    Ok(url.without_query())
}

/// Encodes the value of a query parameter.
pub(super) fn encode(text: &str) -> String {
    form_urlencoded::byte_serialize(text.as_bytes()).collect()
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
            let url = server_url(text).unwrap();
            assert_eq!(url.with_default_room().to_string(), room_url);
            assert_eq!(url.origin(), origin);
        }
        assert!(server_url("wss://a/?token=x").is_err());
        assert!(server_url("rooms.example.org").is_err());
    }
}
