//! The token that a request carries.

use http::{
    HeaderMap, HeaderValue, StatusCode,
    header::{AUTHORIZATION, WWW_AUTHENTICATE},
};

use super::{
    grant::{Denied, Grant},
    token::Tokens,
};
use crate::{protocol::RoomName, web::HttpError};

/// Checks the token of a request, which is in the query or in the `Authorization` header (RFC 6750,
/// section 2).
///
/// # Errors
///
/// The [`HttpError`] for a token that is missing or not valid (401), given in both places (400), or
/// valid but not for this room (403).
pub(super) fn check(
    tokens: &Tokens,
    room: &RoomName,
    headers: &HeaderMap,
    query: Option<&str>,
) -> Result<Grant, HttpError> {
    let unauthorized = |challenge, message| {
        HttpError::new(StatusCode::UNAUTHORIZED, message)
            .with(WWW_AUTHENTICATE, HeaderValue::from_static(challenge))
    };
    let token = match (query, bearer(headers)) {
        (Some(token), None) | (None, Some(token)) => token,
        (None, None) => {
            let message =
                "a token is required: send ?token=<jwt> or the header Authorization: Bearer <jwt>";
            return Err(unauthorized("Bearer", message));
        }
        (Some(_), Some(_)) => {
            let message = "send the token in the query or in the Authorization header, not in both";
            return Err(HttpError::new(StatusCode::BAD_REQUEST, message));
        }
    };
    tokens.check(token, room).map_err(|denied| match denied {
        Denied::Invalid(message) => unauthorized(r#"Bearer error="invalid_token""#, message),
        Denied::Forbidden(message) => HttpError::new(StatusCode::FORBIDDEN, message),
    })
}

/// The token in the `Authorization` header (RFC 6750, section 2.1).
pub(crate) fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}
