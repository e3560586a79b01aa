//! An HTTP request that is turned away.

use std::borrow::Cow;

use http::{HeaderName, HeaderValue, StatusCode, header::CONTENT_TYPE};
use warp::reply::{Reply, Response};

/// The answer to a request that is turned away: a status, one line of text that says what is wrong,
/// and the headers that tell a client what to do about it.
#[derive(Debug)]
pub(crate) struct HttpError {
    status: StatusCode,
    message: Cow<'static, str>,
    headers: Vec<(HeaderName, HeaderValue)>,
}

impl HttpError {
    pub(crate) fn new(status: StatusCode, message: impl Into<Cow<'static, str>>) -> HttpError {
        HttpError {
            status,
            message: message.into(),
            headers: Vec::new(),
        }
    }

    /// What is wrong.
    pub(crate) fn message(self) -> Cow<'static, str> {
        self.message
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
        response
    }
}
