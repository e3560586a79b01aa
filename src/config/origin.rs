//! Origins of web pages.

use std::{
    fmt::{self, Display, Formatter},
    str::FromStr,
};

use http::{HeaderValue, uri::Authority};

/// The schemes whose URLs always have a host (WHATWG URL, section 4.2: the special ones but `file`).
const SCHEMES_WITH_HOST: [&str; 5] = ["ftp", "http", "https", "ws", "wss"];

/// The origin of a web page, as browsers write it: scheme, host, and the port if it is not the
/// default of the scheme (RFC 6454, section 6.2); or `null`, for pages without an origin. Pages of some
/// schemes have no host: Electron sends `file://`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin(String);

impl Origin {
    /// Whether this is the origin in an `Origin` header (RFC 6454, section 7).
    pub(crate) fn is(&self, header: &HeaderValue) -> bool {
        *header == *self.0
    }
}

impl Display for Origin {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Origin {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Origin, &'static str> {
        const ERROR: &str = "not an origin, such as https://example.org or http://localhost:3000: \
                             scheme and host, without a path or wildcards; or file://, or null";
        let origin = text.to_ascii_lowercase();
        if origin == "null" {
            return Ok(Origin(origin));
        }
        let (scheme, host) = origin.split_once("://").ok_or(ERROR)?;
        let is_scheme = |byte: u8| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte);
        if !scheme.starts_with(|first: char| first.is_ascii_alphabetic())
            || !scheme.bytes().all(is_scheme)
        {
            return Err(ERROR);
        }
        if host.is_empty() && !SCHEMES_WITH_HOST.contains(&scheme) {
            return Ok(Origin(origin));
        }
        let authority: Authority = host.parse().map_err(|_| ERROR)?;
        let has_port = host.rsplit(']').next().is_some_and(|end| end.contains(':'));
        if authority.host().is_empty()
            || host.contains(['@', '*'])
            || has_port != authority.port_u16().is_some()
        {
            return Err(ERROR);
        }
        // Browsers leave out the default port of a scheme.
        Ok(match (scheme, authority.port_u16()) {
            ("http", Some(80)) | ("https", Some(443)) => {
                Origin(format!("{scheme}://{}", authority.host()))
            }
            _ => Origin(origin),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_what_browsers_send() {
        for (text, sent) in [
            ("https://example.org", "https://example.org"),
            ("HTTPS://Example.ORG", "https://example.org"),
            ("https://example.org:443", "https://example.org"),
            ("http://example.org:80", "http://example.org"),
            ("http://example.org:443", "http://example.org:443"),
            ("http://[::1]:3000", "http://[::1]:3000"),
            ("http://[::1]", "http://[::1]"),
            ("chrome-extension://abc", "chrome-extension://abc"),
            ("file://", "file://"),
            ("FILE://", "file://"),
            ("app://", "app://"),
            ("app://localhost", "app://localhost"),
            ("null", "null"),
        ] {
            let origin: Origin = text.parse().unwrap();
            assert!(origin.is(&HeaderValue::from_static(sent)), "{text}");
        }
        for text in [
            "",
            "*",
            "example.org",
            "https://",
            "http://",
            "ws://",
            "wss://",
            "ftp://",
            "https:",
            "file:",
            "file:///",
            "file://*",
            "1app://",
            "a_b://",
            "https://example.org/",
            "https://example.org/a",
            "https://me@example.org",
            "https://a b",
            "https://*.example.org",
            "://example.org",
            "https://example.org:",
            "https://example.org:x",
            "https://example.org:99999",
        ] {
            assert!(text.parse::<Origin>().is_err(), "{text}");
        }
    }
}
