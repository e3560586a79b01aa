//! The host that a request is for (RFC 9112, section 3.2).

use std::net::Ipv6Addr;

use http::{HeaderMap, HeaderValue, StatusCode, header::HOST, uri::Authority};

use super::error::HttpError;

/// The host and port in the `Host` header, which HTTP/1.1 requires.
///
/// # Errors
///
/// The [`HttpError`] (400) for a request without exactly one valid `Host`, which is
/// `uri-host [ ":" port ]` (RFC 9110, section 7.2).
pub(crate) fn required(headers: &HeaderMap) -> Result<Authority, HttpError> {
    optional(headers)?.ok_or_else(invalid)
}

/// The host and port in the `Host` header; `None` without the header, which HTTP/1.0 does not have.
///
/// # Errors
///
/// The [`HttpError`] (400) for a request with several such headers, or an invalid one.
pub(crate) fn optional(headers: &HeaderMap) -> Result<Option<Authority>, HttpError> {
    let mut hosts = headers.get_all(HOST).iter();
    match (hosts.next(), hosts.next()) {
        (None, _) => Ok(None),
        (Some(host), None) => parse(host).map(Some).ok_or_else(invalid),
        (Some(_), Some(_)) => Err(invalid()),
    }
}

fn invalid() -> HttpError {
    HttpError::new(
        StatusCode::BAD_REQUEST,
        "send one Host header: a name or an address, and optionally a port",
    )
}

/// The authority in a `Host` header. It has no user, a host that is not empty (RFC 9110, section
/// 4.2.1), and only an IPv6 address between brackets (RFC 3986, section 3.2.2).
fn parse(header: &HeaderValue) -> Option<Authority> {
    let authority = Authority::try_from(header.as_bytes()).ok()?;
    let host = authority.host();
    let rest = authority.as_str().strip_prefix(host)?;
    let is_port = |port: &str| {
        let is_number = port.bytes().all(|byte| byte.is_ascii_digit());
        port.is_empty() || is_number && port.parse::<u16>().is_ok()
    };
    let is_host = match host.strip_prefix('[') {
        Some(address) => address.strip_suffix(']')?.parse::<Ipv6Addr>().is_ok(),
        None => !host.is_empty(),
    };
    let has_port = rest.is_empty() || rest.strip_prefix(':').is_some_and(is_port);
    (has_port && is_host).then_some(authority)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_a_name_or_an_address_with_or_without_a_port() {
        let is_host = |text: &str| parse(&HeaderValue::from_bytes(text.as_bytes()).unwrap());
        for host in [
            "test",
            "TEST.example.",
            "test:",
            "test:80",
            "test:65535",
            "127.0.0.1:80",
            "[::1]",
            "[2001:db8::1]:80",
            "under_score",
        ] {
            assert_eq!(is_host(host).unwrap(), host, "{host}");
        }
        for host in [
            "",
            ":80",
            "a b",
            "a/b",
            "http://test",
            "name@test",
            "test@test",
            "@test",
            "test:80:80",
            "test:port",
            "test:-1",
            "test:65536",
            "test80:80a",
            "::1",
            "[::1",
            "[]",
            "[zzz]",
            "[::1]80",
            "[::1]x:80",
            "test, test",
            "caf\u{e9}",
        ] {
            assert!(is_host(host).is_none(), "{host}");
        }
    }
}
