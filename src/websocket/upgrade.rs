//! The server's side of the opening handshake (RFC 6455, section 4.2).

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode,
    header::{
        ALLOW, CONNECTION, CONTENT_LENGTH, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY,
        SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, TRANSFER_ENCODING, UPGRADE,
    },
};
use hyper::upgrade::OnUpgrade;
use sha1::{Digest, Sha1};

use crate::web::{HttpError, host};

/// The constant that is appended to the key before both are hashed (section 1.3).
const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// The length of a decoded key, in bytes (section 4.1).
const KEY_BYTES: usize = 16;

/// A valid handshake.
pub(crate) struct Upgrade {
    /// Yields the connection once the response is sent.
    pub(crate) connection: OnUpgrade,
    /// The response, with status 101.
    pub(crate) response: Response<Bytes>,
}

impl Upgrade {
    /// Whether the response selects the subprotocol, because the client offers it.
    pub(crate) fn has_subprotocol(&self) -> bool {
        self.response.headers().contains_key(SEC_WEBSOCKET_PROTOCOL)
    }
}

/// Checks a handshake request and prepares its response, which selects `subprotocol` if the client
/// offers it.
///
/// # Errors
///
/// The [`HttpError`] for an invalid handshake (section 4.2.1): 405 if the method is not GET, 426 without
/// an upgrade to WebSocket or if the version is not 13, 400 for a missing or invalid host or key.
pub(crate) fn accept(
    method: &Method,
    headers: &HeaderMap,
    connection: Option<OnUpgrade>,
    subprotocol: &'static str,
) -> Result<Upgrade, HttpError> {
    if method != Method::GET {
        return Err(HttpError::new(
            StatusCode::METHOD_NOT_ALLOWED,
            format!("open a WebSocket with GET, not {method}"),
        )
        .with(ALLOW, HeaderValue::from_static("GET")));
    }
    // hyper provides an upgrade only for HTTP/1.1 requests that ask for one.
    let asks = tokens(headers, UPGRADE).any(|token| token.eq_ignore_ascii_case("websocket"))
        && tokens(headers, CONNECTION).any(|token| token.eq_ignore_ascii_case("upgrade"));
    let Some(connection) = connection.filter(|_| asks) else {
        let message = match asks {
            true => {
                "a WebSocket needs HTTP/1.1, and the request came with an older version: \
                 have the proxy use HTTP/1.1"
            }
            false => {
                "this is a WebSocket endpoint: connect with ws://, or send HTTP/1.1 \
                 with Connection: Upgrade and Upgrade: websocket"
            }
        };
        return Err(HttpError::new(StatusCode::UPGRADE_REQUIRED, message)
            .with(UPGRADE, HeaderValue::from_static("websocket"))
            .with(CONNECTION, HeaderValue::from_static("upgrade")));
    };
    host::required(headers)?;
    if only(headers, SEC_WEBSOCKET_VERSION).is_none_or(|version| version != "13") {
        return Err(HttpError::new(
            StatusCode::UPGRADE_REQUIRED,
            "Sec-WebSocket-Version must be 13",
        )
        .with(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13")));
    }
    let Some(key) = only(headers, SEC_WEBSOCKET_KEY).filter(|key| is_key(key)) else {
        return Err(HttpError::new(
            StatusCode::BAD_REQUEST,
            "send one Sec-WebSocket-Key: 16 bytes in base64",
        ));
    };
    // With a body, it would be ambiguous whether the bytes after the headers are the body or frames.
    let body = only(headers, CONTENT_LENGTH).is_some_and(|length| length != "0");
    if body || headers.contains_key(TRANSFER_ENCODING) {
        return Err(HttpError::new(
            StatusCode::BAD_REQUEST,
            "a WebSocket handshake must not have a body",
        ));
    }

    let mut response = Response::new(Bytes::new());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let answer = response.headers_mut();
    answer.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    answer.insert(UPGRADE, HeaderValue::from_static("websocket"));
    answer.insert(SEC_WEBSOCKET_ACCEPT, accept_value(key));
    if tokens(headers, SEC_WEBSOCKET_PROTOCOL).any(|token| token == subprotocol) {
        answer.insert(
            SEC_WEBSOCKET_PROTOCOL,
            HeaderValue::from_static(subprotocol),
        );
    }
    Ok(Upgrade {
        connection,
        response,
    })
}

/// The items of a header that is a comma-separated list and may be repeated.
fn tokens(headers: &HeaderMap, name: HeaderName) -> impl Iterator<Item = &str> {
    headers
        .get_all(name)
        .into_iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
}

/// The value of a header that is given exactly once.
fn only(headers: &HeaderMap, name: HeaderName) -> Option<&HeaderValue> {
    let mut values = headers.get_all(name).iter();
    values.next().filter(|_| values.next().is_none())
}

/// Whether a key has the right length.
fn is_key(key: &HeaderValue) -> bool {
    STANDARD
        .decode(key)
        .is_ok_and(|bytes| bytes.len() == KEY_BYTES)
}

/// The value that proves to the client that the server has read the key (section 4.2.2, step 5.4).
fn accept_value(key: &HeaderValue) -> HeaderValue {
    let mut hash = Sha1::new();
    hash.update(key);
    hash.update(GUID);
    HeaderValue::try_from(STANDARD.encode(hash.finalize())).expect("base64 is a header value")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_accept_value_matches_the_example_of_the_rfc() {
        let key = HeaderValue::from_static("dGhlIHNhbXBsZSBub25jZQ==");
        assert!(is_key(&key));
        assert_eq!(accept_value(&key), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[test]
    fn a_key_is_sixteen_bytes_in_base64() {
        for key in [
            "",
            "c2hvcnQ=",
            "dGhlIHNhbXBsZSBub25jZQ",
            "dGhlIHNhbXBsZSBub25jZSE=",
            "!",
        ] {
            assert!(!is_key(&HeaderValue::from_static(key)), "{key:?}");
        }
    }
}
