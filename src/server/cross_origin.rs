//! Pages of other origins that send plain requests and read the answers (WHATWG Fetch, section 3.3).

use http::{
    HeaderMap, HeaderName, HeaderValue, StatusCode,
    header::{
        ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
        ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, CACHE_CONTROL, ORIGIN, VARY,
    },
};
use warp::reply::{Reply, Response};

use crate::{
    state::Shared,
    web::{HttpError, host},
};

/// What a browser says of the origin of a request where it sends no `Origin` (W3C Fetch Metadata, section 2.3).
const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// The methods of a session without a WebSocket.
pub(super) const METHODS: HeaderValue = HeaderValue::from_static("GET, POST, DELETE, OPTIONS");

/// Checks the origin of a page. A browser names none when the page is of this server, and other clients have none.
///
/// # Errors
///
/// The [`HttpError`] (403) for an origin that is not allowed.
pub(super) fn check_page(shared: &Shared, headers: &HeaderMap) -> Result<(), HttpError> {
    match headers.contains_key(ORIGIN) {
        true => shared.admission.check_origin(headers),
        false => Ok(()),
    }
}

/// Adds the origin of a page of this server, which a browser does not name with a GET request. The scheme is the one
/// that is allowed: behind a proxy with TLS, only the client knows it.
pub(super) fn name_own_origin(shared: &Shared, headers: &mut HeaderMap) {
    let is_own = headers
        .get(SEC_FETCH_SITE)
        .is_some_and(|site| site == "same-origin");
    if headers.contains_key(ORIGIN) || !is_own {
        return;
    }
    let Ok(Some(host)) = host::optional(headers) else {
        return;
    };
    for scheme in ["http", "https"] {
        if let Ok(origin) = HeaderValue::try_from(format!("{scheme}://{host}")) {
            headers.insert(ORIGIN, origin);
            if shared.admission.check_origin(headers).is_ok() {
                return;
            }
        }
    }
}

/// The answer to a page of an origin that may open sessions, which may read it.
pub(super) fn readable(shared: &Shared, headers: &HeaderMap, mut response: Response) -> Response {
    if let Err(error) = check_page(shared, headers) {
        return error.into_response();
    }
    let origin = headers.get(ORIGIN).cloned();
    let added = response.headers_mut();
    added.insert(
        ACCESS_CONTROL_ALLOW_ORIGIN,
        origin.unwrap_or_else(|| HeaderValue::from_static("*")),
    );
    added.insert(
        ACCESS_CONTROL_EXPOSE_HEADERS,
        HeaderValue::from_static("retry-after"),
    );
    added.insert(VARY, HeaderValue::from_static("Origin"));
    added.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// The answer to a browser that asks whether a page may send a request (section 3.3.5).
pub(super) fn preflight(shared: &Shared, headers: &HeaderMap) -> Response {
    let mut response = StatusCode::NO_CONTENT.into_response();
    let added = response.headers_mut();
    added.insert(ACCESS_CONTROL_ALLOW_METHODS, METHODS);
    added.insert(
        ACCESS_CONTROL_ALLOW_HEADERS,
        HeaderValue::from_static("authorization, content-type, last-event-id"),
    );
    // Two hours, the longest that Chromium remembers.
    added.insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("7200"));
    readable(shared, headers, response)
}
