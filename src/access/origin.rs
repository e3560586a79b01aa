//! The check of the origin that a browser names.

use http::{HeaderMap, StatusCode, header::ORIGIN};

use crate::{config::Origin, web::HttpError};

/// Checks the `Origin` of a request against the allowed ones; none allowed means that all are. A
/// request without `Origin` is refused like one of another origin: it is not of an allowed page.
///
/// # Errors
///
/// The [`HttpError`] (403) for an origin that is not allowed.
pub(super) fn check(allowed: &[Origin], headers: &HeaderMap) -> Result<(), HttpError> {
    let header = headers.get(ORIGIN);
    let is_allowed = |header| allowed.iter().any(|origin| origin.is(header));
    if allowed.is_empty() || header.is_some_and(is_allowed) {
        return Ok(());
    }
    let message = "this origin may not open sessions: add it to --allow-origin";
    Err(HttpError::new(StatusCode::FORBIDDEN, message))
}
