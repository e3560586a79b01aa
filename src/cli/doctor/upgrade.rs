//! The WebSocket handshake, and what is wrong with an answer that is no WebSocket.

use anteroom::client::RoomUrl;
use http::{
    HeaderValue, StatusCode, Version,
    header::{
        CONNECTION, ORIGIN, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL,
        SEC_WEBSOCKET_VERSION, UPGRADE, WWW_AUTHENTICATE,
    },
};
use tokio_tungstenite::tungstenite::handshake::{client::generate_key, derive_accept_key};

use super::{
    connection::Connector,
    http::{Answer, get},
    report::Finding,
};

/// What a proxy needs so that it passes upgrades on.
const PASS_UPGRADES: &str = "have the proxy pass upgrades on: nginx needs proxy_http_version 1.1, \
     proxy_set_header Upgrade $http_upgrade and proxy_set_header Connection \"upgrade\"; Apache needs \
     ProxyPass with upgrade=websocket";

/// What the server says, by which its refusals are recognized.
const NO_UPGRADE: &str = "this is a WebSocket endpoint";
const OLD_VERSION: &str = "needs HTTP/1.1";
const NO_SUCH_URL: &str = "no such URL: the page is at /";
const OTHER_ORIGIN: &str = "origin may not open sessions";

/// What nginx says on a port for TLS.
const PLAIN_HTTP: &str = "plain HTTP request was sent to HTTPS port";

/// Asks for a WebSocket, as a page of `origin` does.
///
/// # Errors
///
/// The finding for a handshake that fails, with the answer if there is one.
pub(super) async fn upgrade(
    connector: &Connector,
    target: &RoomUrl,
    path: &str,
    origin: &str,
    extra: &[(http::HeaderName, HeaderValue)],
) -> Result<Answer, (Finding, Option<Answer>)> {
    let key = generate_key();
    let value = |text: &str| HeaderValue::from_str(text).unwrap_or(HeaderValue::from_static(""));
    let mut headers = vec![
        (CONNECTION, HeaderValue::from_static("Upgrade")),
        (UPGRADE, HeaderValue::from_static("websocket")),
        (SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13")),
        (SEC_WEBSOCKET_KEY, value(&key)),
        (
            SEC_WEBSOCKET_PROTOCOL,
            HeaderValue::from_static("anteroom.v1"),
        ),
        (ORIGIN, value(origin)),
    ];
    headers.extend_from_slice(extra);
    let answer = match get(connector, &target.authority(), path, &headers).await {
        Ok(answer) => answer,
        Err(error) => {
            let advice = "check the scheme and port of the URL, and what the server or proxy logs";
            return Err((Finding::failed(error.to_string(), advice), None));
        }
    };
    let is_accepted = answer.header(SEC_WEBSOCKET_ACCEPT) == derive_accept_key(key.as_bytes());
    match answer.status {
        StatusCode::SWITCHING_PROTOCOLS if is_accepted => Ok(answer),
        _ => Err((cause(&answer, target), Some(answer))),
    }
}

/// Whether an answer, or the reason of a Close frame, refuses the origin.
pub(super) fn refuses_origin(text: &str) -> bool {
    text.contains(OTHER_ORIGIN)
}

/// What an answer says about the way to the server, if it is no WebSocket.
fn cause(answer: &Answer, target: &RoomUrl) -> Finding {
    let status = answer.status.as_u16();
    let line = answer.line().unwrap_or_default();
    let said = match line {
        "" => format!("the answer is {status}"),
        line => format!("the answer is {status}: {line}"),
    };
    match status {
        101 => Finding::failed(
            "the answer is 101, but not that of a WebSocket server: Sec-WebSocket-Accept is wrong",
            "remove the cache or proxy that answers in place of the server",
        ),
        300..=399 => Finding::failed(
            format!("{status} redirects to {}", answer.location()),
            "clients do not follow redirects of a WebSocket: use the URL that it redirects to, or do not \
             redirect this path",
        ),
        400 if answer.body.contains(PLAIN_HTTP) => Finding::failed(
            "the port is for TLS",
            format!(
                "use the URL wss://{}{}/",
                target.authority(),
                target.prefix()
            ),
        ),
        400 if answer.body.is_empty() => Finding::failed(
            "the server does not understand the request (400)",
            "have the proxy send plain HTTP/1.1, without the PROXY protocol (send-proxy in HAProxy)",
        ),
        426 if line.contains(OLD_VERSION) => Finding::failed(
            "the proxy asks the server over HTTP/1.0, which has no WebSockets",
            "have the proxy use HTTP/1.1: nginx needs proxy_http_version 1.1",
        ),
        400 | 426 if line.contains(NO_UPGRADE) => Finding::failed(
            format!("the request reaches the server without its upgrade headers ({status})"),
            PASS_UPGRADES,
        ),
        _ if answer.version < Version::HTTP_11 => Finding::failed(
            format!("the answer is HTTP/1.0 ({status}), which has no WebSockets"),
            "have the proxy speak HTTP/1.1 to its clients",
        ),
        200..=299 => Finding::failed(
            format!("{status} in place of a WebSocket: something else answers this path"),
            format!(
                "have the proxy route {}/room to the server, by a rule that comes before that of the page",
                target.prefix()
            ),
        ),
        404 if line.contains(NO_SUCH_URL) => Finding::failed(
            "the server answers 404: the proxy passes on a path other than /room",
            match target.prefix() {
                "" => {
                    "have the proxy pass the path on as it is: in nginx, proxy_pass without a path"
                        .into()
                }
                prefix => format!(
                    "have the proxy cut {prefix} off: in nginx, location {prefix}/ with a slash at the \
                     end of proxy_pass"
                ),
            },
        ),
        404 => Finding::failed(
            format!("{said}; it does not come from the server"),
            format!(
                "have the proxy route {}/room to the server, or correct the path of the URL",
                target.prefix()
            ),
        ),
        401 if answer.header(WWW_AUTHENTICATE).starts_with("Basic") => Finding::failed(
            "the proxy asks for a password (401)",
            "clients cannot give one: exempt this path from it, and use tokens",
        ),
        401 | 403 | 429 | 503 if is_ours(status, line) => refusal(status, line),
        401 | 403 => Finding::failed(
            format!("{said}; it does not come from the server"),
            "check the access rules of the proxy or firewall for this path",
        ),
        429 => Finding::failed(
            format!("{said}; it does not come from the server"),
            "raise the rate limit of the proxy",
        ),
        503 => Finding::failed(
            "503: the proxy does not reach the server, or limits requests",
            "start the server, and check its address and port, and rate limits, in the proxy's configuration",
        ),
        502 | 504 => Finding::failed(
            format!("{status}: the proxy does not reach the server"),
            "start the server, and check its address and port in the proxy's configuration",
        ),
        _ => Finding::failed(
            said,
            "check what the server and the proxy log for this request",
        ),
    }
}

/// Whether a refusal is the server's own. Some proxies answer with plain text as well.
fn is_ours(status: u16, line: &str) -> bool {
    let parts: &[&str] = match status {
        401 | 403 => &["token", "origin"],
        429 => &["your address"],
        _ => &["the server ", "this server ", "the room "],
    };
    parts.iter().any(|part| line.contains(part))
}

/// The finding for a refusal of the server, as an HTTP status or a close code that ends like one.
pub(super) fn refusal(status: u16, line: &str) -> Finding {
    let advice = match status {
        401 => "give a token with --token that the server accepts; see step clock",
        403 if refuses_origin(line) => "see step origin",
        403 => "give a token that admits to this room",
        429 => {
            "wait, or raise --joins-per-second or --max-address-sessions; behind a proxy, name it with \
                --trust-proxy"
        }
        _ => {
            "wait, or raise --max-sessions, --max-rooms or --max-room-sessions; a server that drains \
              accepts no sessions"
        }
    };
    Finding::failed(format!("the server refuses ({status}): {line}"), advice)
}
