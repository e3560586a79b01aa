//! The opening handshake of a connection (RFC 6455, section 4.1).

use std::{
    fmt,
    future::poll_fn,
    pin::{Pin, pin},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode, header};
use hyper::{
    body::{Body, Incoming},
    client::conn::http1,
};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::timeout,
};
use tokio_tungstenite::tungstenite::handshake::{client::generate_key, derive_accept_key};

use super::{
    connection::Connection,
    disconnect::Disconnect,
    room_url::{RoomUrl, encode},
    transport::{self, Transport},
};

/// The subprotocol whose offer makes the server refuse with a Close frame, which says why.
const SUBPROTOCOL: &str = "anteroom.v1";

/// How long a connection may take to open, unless the application says otherwise.
pub(super) const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);

/// The longest message that is accepted, unless the application says otherwise. A `hello` of a room with thousands
/// of sessions has megabytes.
const DEFAULT_MAX_MESSAGE_BYTES: usize = 16 * 1024 * 1024;

/// How many bytes of a refusal's body are read, and how long its line may be to be shown.
const MAX_BODY_BYTES: usize = 4096;
const MAX_LINE_BYTES: usize = 300;

/// What stands in place of a token that an answer repeats.
const HIDDEN: &str = "[hidden]";

/// How to open one connection: where, and as whom.
#[derive(Clone)]
pub struct Connect {
    url: RoomUrl,
    token: Option<String>,
    origin: Option<String>,
    resume: Option<(String, u64)>,
    offers_protocol: bool,
    timeout: Duration,
    max_message_bytes: usize,
}

impl Connect {
    /// Opens connections to this room.
    pub fn to(url: RoomUrl) -> Connect {
        Connect {
            url,
            token: None,
            origin: None,
            resume: None,
            offers_protocol: true,
            timeout: DEFAULT_TIMEOUT,
            max_message_bytes: DEFAULT_MAX_MESSAGE_BYTES,
        }
    }

    /// The token that admits to the room.
    #[must_use]
    pub fn token(mut self, token: impl Into<String>) -> Connect {
        self.token = Some(token.into());
        self
    }

    /// The origin of a web page, as a browser would send it.
    #[must_use]
    pub fn origin(mut self, origin: impl Into<String>) -> Connect {
        self.origin = Some(origin.into());
        self
    }

    /// The resume token of a session, and how many messages it has received.
    #[must_use]
    pub fn resume(mut self, token: impl Into<String>, received: u64) -> Connect {
        self.resume = Some((token.into(), received));
        self
    }

    /// Offers no subprotocol: the server refuses with an HTTP status, not with a Close frame.
    #[must_use]
    pub fn without_protocol(mut self) -> Connect {
        self.offers_protocol = false;
        self
    }

    /// How long the connection may take to open; 10 seconds by default.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Connect {
        self.timeout = timeout;
        self
    }

    /// The longest message that is accepted; 16 MiB by default.
    #[must_use]
    pub fn max_message_bytes(mut self, bytes: usize) -> Connect {
        self.max_message_bytes = bytes;
        self
    }

    /// Opens the connection.
    ///
    /// # Errors
    ///
    /// Why there is none.
    pub async fn open(&self) -> Result<Connection<Transport>, Disconnect> {
        let opened = async { self.handshake(transport::open(&self.url).await?).await };
        let opened = timeout(self.timeout, opened).await;
        opened.unwrap_or(Err(Disconnect::Silent(self.timeout)))
    }

    /// Does the handshake on a stream that is open already.
    ///
    /// # Errors
    ///
    /// Why there is no connection.
    pub async fn upgrade<S>(&self, stream: S) -> Result<Connection<S>, Disconnect>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let opened = timeout(self.timeout, self.handshake(stream)).await;
        opened.unwrap_or(Err(Disconnect::Silent(self.timeout)))
    }

    /// The request of the handshake.
    fn request(&self, key: &str) -> Result<Request<String>, http::Error> {
        let received = self.resume.as_ref().map(|(_, count)| count.to_string());
        let mut parameters = Vec::new();
        if let (Some((token, _)), Some(received)) = (&self.resume, &received) {
            parameters.extend([("resume", &**token), ("received", received)]);
        }
        if let Some(token) = &self.token {
            parameters.push(("token", token));
        }
        let mut request = Request::get(self.url.target(&parameters))
            .header(header::HOST, self.url.authority())
            .header(header::CONNECTION, "Upgrade")
            .header(header::UPGRADE, "websocket")
            .header(header::SEC_WEBSOCKET_VERSION, "13")
            .header(header::SEC_WEBSOCKET_KEY, key)
            .header(
                header::USER_AGENT,
                concat!("anteroom-client/", env!("CARGO_PKG_VERSION")),
            );
        if self.offers_protocol {
            request = request.header(header::SEC_WEBSOCKET_PROTOCOL, SUBPROTOCOL);
        }
        if let Some(origin) = &self.origin {
            request = request.header(header::ORIGIN, origin);
        }
        request.body(String::new())
    }

    async fn handshake<S>(&self, stream: S) -> Result<Connection<S>, Disconnect>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let key = generate_key();
        // The error would name what it refuses, such as the origin; the token and the path are percent-encoded.
        let request = self.request(&key).map_err(|_| {
            Disconnect::Unreachable(
                "the path or the origin has characters that HTTP forbids".into(),
            )
        })?;
        let failed = |error: hyper::Error| match error.is_parse() {
            true => Disconnect::Unreachable(
                "the answer is not HTTP/1.1: the port is that of TLS or of another program".into(),
            ),
            false => Disconnect::Cut("the connection ended before the upgrade".into()),
        };
        let (mut sender, driver) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(failed)?;
        // The task ends with the request, or gives up the stream that is upgraded.
        tokio::spawn(driver.with_upgrades());
        let mut response = sender.send_request(request).await.map_err(failed)?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Err(self.refusal(response).await);
        }
        let accept = response.headers().get(header::SEC_WEBSOCKET_ACCEPT);
        if accept.is_none_or(|it| it != &derive_accept_key(key.as_bytes())) {
            return Err(Disconnect::Protocol("Sec-WebSocket-Accept is wrong".into()));
        }
        let upgraded = hyper::upgrade::on(&mut response).await.map_err(failed)?;
        let parts = upgraded
            .downcast::<TokioIo<S>>()
            .map_err(|_| Disconnect::Protocol("another stream was upgraded".into()))?;
        let (stream, read) = (parts.io.into_inner(), parts.read_buf);
        Ok(Connection::read_before(stream, read.into(), self.max_message_bytes).await)
    }

    /// What an answer other than 101 says.
    async fn refusal(&self, response: Response<Incoming>) -> Disconnect {
        let (head, body) = response.into_parts();
        let is_plain = text(&head.headers, header::CONTENT_TYPE).starts_with("text/plain");
        let body = match is_plain {
            true => first_bytes(body).await,
            false => Vec::new(),
        };
        let body = String::from_utf8_lossy(&body);
        let line = body.lines().next().unwrap_or_default().trim();
        let line = if line.len() <= MAX_LINE_BYTES {
            line
        } else {
            ""
        };
        let seconds = text(&head.headers, header::RETRY_AFTER).parse().ok();
        Disconnect::Refused {
            status: head.status.as_u16(),
            line: self.hide(line),
            retry_after: seconds.map(Duration::from_secs),
        }
    }

    /// A text without the secrets, which a proxy may repeat.
    pub(super) fn hide(&self, text: &str) -> String {
        let resume = self.resume.as_ref().map(|(token, _)| token);
        let secrets = self.token.iter().chain(resume).filter(|it| !it.is_empty());
        secrets.fold(text.to_owned(), |text, secret| {
            text.replace(&encode(secret), HIDDEN)
                .replace(secret, HIDDEN)
        })
    }
}

impl fmt::Debug for Connect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connect")
            .field("url", &self.url)
            .field("has_token", &self.token.is_some())
            .field("resumes", &self.resume.is_some())
            .finish_non_exhaustive()
    }
}

/// The value of a header, empty if it is not there.
fn text(headers: &HeaderMap, name: header::HeaderName) -> &str {
    let value = headers.get(name).and_then(|it| it.to_str().ok());
    value.unwrap_or_default()
}

/// The first bytes of a body. What has come of one that breaks off says enough.
async fn first_bytes(body: Incoming) -> Vec<u8> {
    let mut body = pin!(body);
    let mut bytes = Vec::new();
    while bytes.len() < MAX_BODY_BYTES
        && let Some(Ok(frame)) = poll_fn(|cx| Pin::as_mut(&mut body).poll_frame(cx)).await
    {
        bytes.extend(frame.into_data().unwrap_or_else(|_| Bytes::new()));
    }
    bytes.truncate(MAX_BODY_BYTES);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_not_shown() {
        let url: RoomUrl = "ws://a/room".parse().unwrap();
        let connect = Connect::to(url).token("a/secret").resume("hidden!", 3);
        let shown = format!("{connect:?}");
        assert!(
            !shown.contains("secret") && !shown.contains("hidden!"),
            "{shown}"
        );
        let text = connect.hide("no a/secret, no a%2Fsecret, no hidden!");
        assert_eq!(text, "no [hidden], no [hidden], no [hidden]");
    }
}
