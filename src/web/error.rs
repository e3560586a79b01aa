//! The answer to an HTTP request that is refused.

use std::borrow::Cow;

use http::{
    HeaderName, HeaderValue, StatusCode,
    header::{CONTENT_TYPE, RETRY_AFTER},
};
use warp::reply::{Reply, Response};

/// How long a client waits before it retries a request that the server cannot serve now, in seconds.
const RETRY_SECONDS: u64 = 5;

/// The answer to a refused request: a status, one line of text that says what is wrong and what to
/// do, and headers that tell the same to a program.
#[derive(Debug)]
pub(crate) struct HttpError {
    status: StatusCode,
    message: Cow<'static, str>,
    headers: Vec<(HeaderName, HeaderValue)>,
}

impl HttpError {
    /// An answer without headers of its own.
    pub(crate) fn new(status: StatusCode, message: impl Into<Cow<'static, str>>) -> HttpError {
        HttpError {
            status,
            message: message.into(),
            headers: Vec::new(),
        }
    }

    /// 503 with `Retry-After`: the server cannot serve the request now.
    pub(crate) fn unavailable(message: &'static str) -> HttpError {
        HttpError::new(StatusCode::SERVICE_UNAVAILABLE, message).retry_after(RETRY_SECONDS)
    }

    /// 429 with `Retry-After`: the client's address has used up its share. `seconds` is when to
    /// retry, if that is known.
    pub(crate) fn too_many_requests(message: &'static str, seconds: Option<u64>) -> HttpError {
        HttpError::new(StatusCode::TOO_MANY_REQUESTS, message)
            .retry_after(seconds.unwrap_or(RETRY_SECONDS))
    }

    /// The line of text.
    pub(crate) fn message(self) -> Cow<'static, str> {
        self.message
    }

    /// Adds a header.
    pub(crate) fn with(mut self, name: HeaderName, value: HeaderValue) -> HttpError {
        self.headers.push((name, value));
        self
    }

    fn retry_after(self, seconds: u64) -> HttpError {
        self.with(RETRY_AFTER, seconds.into())
    }
}

impl Reply for HttpError {
    fn into_response(self) -> Response {
        let mut response = Response::new(format!("{}\n", self.message).into());
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(
            CONTENT_TYPE,
            HeaderValue::from_static("text/plain; charset=utf-8"),
        );
        headers.extend(self.headers);
        response
    }
}
