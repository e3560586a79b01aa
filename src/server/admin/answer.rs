//! The answers of the admin API: JSON, or a line of text.

use std::borrow::Cow;

use http::{
    HeaderValue, StatusCode,
    header::{CACHE_CONTROL, WWW_AUTHENTICATE},
};
use serde::Serialize;
use warp::reply::{Reply, Response};

use crate::web::HttpError;

/// An error of the admin API: an HTTP status and a JSON object with `code` and `message`.
pub(super) struct ApiError {
    pub(super) status: StatusCode,
    /// The error's name, for programs: it never changes.
    pub(super) code: &'static str,
    /// The error and its remedy, for people.
    pub(super) message: Cow<'static, str>,
}

impl ApiError {
    /// An error with a message that is known at compile time.
    pub(super) const fn new(
        status: StatusCode,
        code: &'static str,
        message: &'static str,
    ) -> ApiError {
        ApiError {
            status,
            code,
            message: Cow::Borrowed(message),
        }
    }
}

impl Reply for ApiError {
    fn into_response(self) -> Response {
        let ApiError {
            status,
            code,
            message,
        } = self;
        let mut response = json(&serde_json::json!({ "code": code, "message": message }));
        *response.status_mut() = status;
        if status == StatusCode::UNAUTHORIZED {
            let challenge = HeaderValue::from_static("Bearer");
            response.headers_mut().insert(WWW_AUTHENTICATE, challenge);
        }
        response
    }
}

/// The response for the result of a request.
pub(super) fn from_result(result: Result<Response, ApiError>) -> Response {
    result.unwrap_or_else(ApiError::into_response)
}

/// A line of text.
pub(super) fn line(status: StatusCode, message: impl Into<Cow<'static, str>>) -> Response {
    HttpError::new(status, message).into_response()
}

/// A JSON value, which caches must not store.
pub(super) fn json(value: &impl Serialize) -> Response {
    let mut response = warp::reply::json(value).into_response();
    let headers = response.headers_mut();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
