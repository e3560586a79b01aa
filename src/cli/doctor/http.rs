//! HTTP requests to the server, each on a connection of its own.

use std::{
    error::Error,
    future::poll_fn,
    io,
    net::IpAddr,
    pin::Pin,
    time::{Duration, SystemTime},
};

use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Version, header,
};
use hyper::{
    body::{Body, Incoming},
    client::conn::http1,
    upgrade::Upgraded,
};
use hyper_util::rt::TokioIo;
use tokio::time::timeout;

use super::{connection::Connector, stream::Io};

/// How long an answer may take. A proxy whose server does not answer says so after its own limit, which is
/// mostly 60 seconds or less; whoever waits longer is gone.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);

/// How long a body may take after its head. What has arrived by then is enough.
const BODY_TIMEOUT: Duration = Duration::from_secs(3);

/// How many bytes of a body are read.
const MAX_BODY_BYTES: usize = 64 * 1024;

/// An answer. The body is cut off at [`MAX_BODY_BYTES`], and after [`BODY_TIMEOUT`].
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) version: Version,
    pub(super) headers: HeaderMap,
    pub(super) body: String,
    /// The connection, if the status is 101.
    pub(super) upgraded: Option<Upgraded>,
    /// The address of this machine that the connection has.
    pub(super) local: IpAddr,
    /// When the headers arrived.
    pub(super) arrived: SystemTime,
}

impl Answer {
    /// The value of a header, empty if it is not there.
    pub(super) fn header(&self, name: HeaderName) -> &str {
        let value = self.headers.get(name);
        value.and_then(|it| it.to_str().ok()).unwrap_or_default()
    }

    /// The value of `Location` without query and fragment: a query that a redirect keeps has the token.
    pub(super) fn location(&self) -> &str {
        let location = self.header(header::LOCATION);
        location.split(['?', '#']).next().unwrap_or_default()
    }

    /// The value of `Date`, and when it arrived here.
    pub(super) fn date(&self) -> Option<(String, SystemTime)> {
        let date = self.header(header::DATE);
        (!date.is_empty()).then(|| (date.to_owned(), self.arrived))
    }

    /// The first line of the body, if it is short plain text, as the server's own refusals are.
    pub(super) fn line(&self) -> Option<&str> {
        let is_plain = self.header(header::CONTENT_TYPE).starts_with("text/plain");
        let line = self.body.lines().next()?.trim();
        (is_plain && !line.is_empty() && line.len() <= 300).then_some(line)
    }
}

/// Sends a GET with these headers, and reads the answer.
///
/// # Errors
///
/// Why there is no answer.
pub(super) async fn get(
    connector: &Connector,
    host: &str,
    path: &str,
    headers: &[(HeaderName, HeaderValue)],
) -> io::Result<Answer> {
    ask(connector, host, Method::GET, path, headers, "").await
}

/// Sends a request with these headers and this body, and reads the answer.
///
/// # Errors
///
/// Why there is no answer.
pub(super) async fn ask(
    connector: &Connector,
    host: &str,
    method: Method,
    path: &str,
    headers: &[(HeaderName, HeaderValue)],
    body: &str,
) -> io::Result<Answer> {
    let connection = connector.connect().await?;
    let io = TokioIo::new(connection.stream);
    let mut request = Request::builder()
        .method(method)
        .uri(path)
        .header(header::HOST, host)
        .header(
            header::USER_AGENT,
            concat!("anteroom-doctor/", env!("CARGO_PKG_VERSION")),
        );
    for (name, value) in headers {
        request = request.header(name, value);
    }
    let request = request.body(body.to_owned()).map_err(io::Error::other)?;
    let answered = timeout(ANSWER_TIMEOUT, head(io, request)).await;
    let (response, upgraded) = answered
        .map_err(|_| {
            let seconds = ANSWER_TIMEOUT.as_secs();
            let message = format!("no answer in {seconds} s");
            io::Error::new(io::ErrorKind::TimedOut, message)
        })?
        .map_err(|error| error.0)?;
    let arrived = SystemTime::now();
    let (head, body) = response.into_parts();
    Ok(Answer {
        status: head.status,
        version: head.version,
        headers: head.headers,
        body: read(body).await,
        upgraded,
        local: connection.local,
        arrived,
    })
}

/// Sends a request, and reads the head of the answer. The second is the connection, if the status is 101.
async fn head(
    io: TokioIo<Box<dyn Io>>,
    request: Request<String>,
) -> Result<(Response<Incoming>, Option<Upgraded>), RequestError> {
    let (mut sender, driver) = http1::handshake(io).await?;
    // It ends with the request, or with the connection that comes out of an upgrade.
    tokio::spawn(driver.with_upgrades());
    let mut response = sender.send_request(request).await?;
    let upgraded = match response.status() {
        StatusCode::SWITCHING_PROTOCOLS => Some(hyper::upgrade::on(&mut response).await?),
        _ => None,
    };
    Ok((response, upgraded))
}

/// Reads a body. What has arrived of one that breaks off or does not end says enough.
async fn read(mut body: Incoming) -> String {
    let mut bytes = Vec::new();
    let _ = timeout(BODY_TIMEOUT, async {
        while bytes.len() < MAX_BODY_BYTES
            && let Some(Ok(frame)) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await
        {
            bytes.extend(frame.into_data().unwrap_or_default());
        }
    })
    .await;
    bytes.truncate(MAX_BODY_BYTES);
    String::from_utf8_lossy(&bytes).into_owned()
}

/// An error of hyper, or of the connection.
struct RequestError(io::Error);

impl From<hyper::Error> for RequestError {
    fn from(error: hyper::Error) -> RequestError {
        let cause = error.source().and_then(|it| it.downcast_ref::<io::Error>());
        let is_closed = cause.is_some_and(|it| {
            matches!(
                it.kind(),
                io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset
            )
        });
        let message = match cause {
            _ if error.is_incomplete_message() || is_closed => {
                "the connection is closed without an answer".into()
            }
            _ if error.is_parse() => {
                "the answer is not HTTP/1.1: the port is that of TLS (wss:) or of another program"
                    .into()
            }
            Some(cause) => cause.to_string(),
            None => error.to_string(),
        };
        RequestError(io::Error::other(message))
    }
}

impl From<io::Error> for RequestError {
    fn from(error: io::Error) -> RequestError {
        RequestError(error)
    }
}
