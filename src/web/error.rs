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
    retry_seconds: Option<u64>,
    is_full: bool,
    is_room_full: bool,
}

impl HttpError {
    /// An answer without headers of its own.
    pub(crate) fn new(status: StatusCode, message: impl Into<Cow<'static, str>>) -> HttpError {
        HttpError {
            status,
            message: message.into(),
            headers: Vec::new(),
            retry_seconds: None,
            is_full: false,
            is_room_full: false,
        }
    }

    /// 503 with `Retry-After`: the server cannot serve the request now.
    pub(crate) fn unavailable(message: &'static str) -> HttpError {
        HttpError {
            retry_seconds: Some(RETRY_SECONDS),
            ..HttpError::new(StatusCode::SERVICE_UNAVAILABLE, message)
        }
    }

    /// 503 with `Retry-After`: the server has as many sessions or rooms as it may have.
    pub(crate) fn full(message: &'static str) -> HttpError {
        HttpError {
            is_full: true,
            ..HttpError::unavailable(message)
        }
    }

    /// 503 with `Retry-After`: the room is full. Other rooms of this server may have room.
    pub(crate) fn room_full(message: &'static str) -> HttpError {
        HttpError {
            is_room_full: true,
            ..HttpError::full(message)
        }
    }

    /// 429 with `Retry-After`: the client's address has used up its share. `seconds` is when to
    /// retry, if that is known.
    pub(crate) fn too_many_requests(message: &'static str, seconds: Option<u64>) -> HttpError {
        HttpError {
            retry_seconds: Some(seconds.unwrap_or(RETRY_SECONDS)),
            ..HttpError::new(StatusCode::TOO_MANY_REQUESTS, message)
        }
    }

    /// The status.
    pub(crate) fn status(&self) -> StatusCode {
        self.status
    }

    /// The line of text.
    pub(crate) fn message(&self) -> Cow<'static, str> {
        self.message.clone()
    }

    /// After how many seconds the client should retry; `None` if a retry is of no use.
    pub(crate) fn retry_seconds(&self) -> Option<u64> {
        self.retry_seconds
    }

    /// Whether the server or the room is full.
    pub(crate) fn is_full(&self) -> bool {
        self.is_full
    }

    /// Whether the room is full, and not the server.
    pub(crate) fn is_room_full(&self) -> bool {
        self.is_room_full
    }

    /// Adds a header.
    pub(crate) fn with(mut self, name: HeaderName, value: HeaderValue) -> HttpError {
        self.headers.push((name, value));
        self
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
        if let Some(seconds) = self.retry_seconds {
            headers.insert(RETRY_AFTER, seconds.into());
        }
        response
    }
}
