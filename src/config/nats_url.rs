//! URLs of NATS servers.

use std::{
    fmt::{self, Display},
    net::Ipv6Addr,
    str::FromStr,
};

use http::uri::Authority;
use percent_encoding::percent_decode_str;

use super::secret::Secret;

/// The port of a URL that names none, which is the port of NATS.
const PORT: u16 = 4222;

/// The URL of a NATS server, with a user and a password if it has them.
#[derive(Clone, PartialEq, Eq)]
pub struct NatsUrl {
    /// Scheme, host and port. User and password are kept apart, because the NATS client logs addresses.
    address: String,
    /// User and password. A user without a password may be a NATS token, which is a secret.
    credentials: Option<(Secret<String>, Secret<String>)>,
}

impl FromStr for NatsUrl {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<NatsUrl, &'static str> {
        const ERROR: &str = "not the address of a NATS server, such as nats://localhost:4222, \
             nats://user:password@nats.example.org or tls://nats.example.org";
        let (scheme, authority) = text.split_once("://").ok_or(ERROR)?;
        if !["nats", "tls"].contains(&scheme) || authority.contains(['/', '?', '#']) {
            return Err(ERROR);
        }
        let (user_info, host) = match authority.rsplit_once('@') {
            Some((user_info, host)) => (Some(user_info), host),
            None => (None, authority),
        };
        let (host, port) = host_and_port(host).ok_or(ERROR)?;
        let credentials = user_info.map(credentials).transpose();
        let credentials = credentials.map_err(|()| ERROR)?;
        Ok(NatsUrl {
            address: format!("{scheme}://{host}:{port}"),
            credentials,
        })
    }
}

/// The host and the port of a URL (RFC 3986, sections 3.2.2 and 3.2.3).
fn host_and_port(text: &str) -> Option<(&str, u16)> {
    let authority: Authority = text.parse().ok()?;
    let host = text.get(..authority.host().len())?;
    let is_valid = match host.strip_prefix('[') {
        Some(address) => address.strip_suffix(']')?.parse::<Ipv6Addr>().is_ok(),
        None => !host.is_empty(),
    };
    let port = match text.strip_prefix(host)? {
        "" | ":" => PORT,
        port => {
            let digits = port.strip_prefix(':')?;
            // `parse` alone accepts a sign.
            let is_number = digits.bytes().all(|byte| byte.is_ascii_digit());
            is_number.then(|| digits.parse().ok())??
        }
    };
    is_valid.then_some((host, port))
}

/// Decodes the user and the password of a URL (RFC 3986, section 3.2.1).
fn credentials(user_info: &str) -> Result<(Secret<String>, Secret<String>), ()> {
    let decode = |text: &str| {
        let decoded = percent_decode_str(text).decode_utf8();
        decoded.map_or(Err(()), |text| Ok(Secret::new(text.into_owned())))
    };
    let (user, password) = user_info.split_once(':').unwrap_or((user_info, ""));
    if user.is_empty() {
        return Err(());
    }
    Ok((decode(user)?, decode(password)?))
}

impl NatsUrl {
    /// The URL without user and password.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// The user and the password of the URL, if it has them.
    pub(crate) fn credentials(&self) -> Option<&(Secret<String>, Secret<String>)> {
        self.credentials.as_ref()
    }
}

/// Without user and password.
impl Display for NatsUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (_, host_and_port) = self.address.split_once("://").unwrap_or_default();
        f.write_str(host_and_port)
    }
}

impl fmt::Debug for NatsUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_a_scheme_a_host_and_perhaps_a_user_and_a_port() {
        for (text, address) in [
            ("nats://localhost", "nats://localhost:4222"),
            ("tls://nats.example.org:4443", "tls://nats.example.org:4443"),
            ("nats://user:p%40ss@10.0.0.1", "nats://10.0.0.1:4222"),
            ("nats://[::1]:1234", "nats://[::1]:1234"),
        ] {
            let url: NatsUrl = text.parse().unwrap();
            assert_eq!(url.address(), address);
            assert!(address.ends_with(&url.to_string()));
            assert_eq!(url.credentials().is_some(), text.contains('@'));
        }
        for text in [
            "localhost",
            "http://localhost",
            "nats://",
            "nats://:4222",
            "nats://localhost:port",
            "nats://localhost:65536",
            "nats://localhost:+80",
            "nats://[::1",
            "nats://[localhost]",
            "nats://a b",
            "nats://@localhost",
            "nats://localhost/path",
        ] {
            assert!(text.parse::<NatsUrl>().is_err(), "{text}");
        }
    }
}
