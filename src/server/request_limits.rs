//! The checks that every HTTP request must pass, whatever its URL.

use http::{Request, StatusCode, Version};

use crate::web::{HttpError, host};

/// The most header lines that a request may have. Browsers and proxies send about thirty.
const MAX_HEADER_LINES: usize = 100;

/// Checks the size of a request's headers, its `Host` and its target.
///
/// # Errors
///
/// The [`HttpError`] for a request with too many or too long headers (431; RFC 6585, section 5), or
/// without exactly one valid host, or with a target that is not a path (400; RFC 9112, section 3.2).
/// warp routes requests of the last two kinds as if they were valid.
pub(super) fn check<B>(request: &Request<B>, max_header_bytes: usize) -> Result<(), HttpError> {
    let too_large = |message| HttpError::new(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, message);
    if request.headers().len() > MAX_HEADER_LINES {
        let message = format!("a request may have {MAX_HEADER_LINES} header lines: send fewer");
        return Err(too_large(message));
    }
    if head_bytes(request) > max_header_bytes {
        let message =
            "the headers exceed --max-header-bytes: send less, for example smaller cookies";
        return Err(too_large(message.into()));
    }
    if request.version() < Version::HTTP_11 {
        host::optional(request.headers())?;
    } else {
        host::required(request.headers())?;
    }
    if !request.uri().path().starts_with('/') {
        let message = "the request target must be a path, such as /room";
        return Err(HttpError::new(StatusCode::BAD_REQUEST, message));
    }
    Ok(())
}

/// The size of a request without its body, in bytes, computed from its parts with the least white
/// space that HTTP allows: hyper does not tell how many bytes it has read.
fn head_bytes<B>(request: &Request<B>) -> usize {
    let uri = request.uri();
    let target = uri.authority().map_or(0, |host| host.as_str().len())
        + uri.path_and_query().map_or(0, |path| path.as_str().len());
    let first = request.method().as_str().len() + target + "  HTTP/1.1\r\n".len();
    let lines = request.headers().iter();
    let lines = lines.map(|(name, value)| name.as_str().len() + value.len() + ": \r\n".len());
    first + lines.sum::<usize>() + "\r\n".len()
}
