//! URLs of NATS servers.

use std::{
    fmt::{self, Display},
    str::FromStr,
};

use async_nats::ServerAddr;
use percent_encoding::percent_decode_str;

use super::secret::Secret;

/// The address of a NATS server, and who connects to it. The address that the client library gets has
/// no user and password in it: the library logs addresses.
#[derive(Clone, PartialEq, Eq)]
pub struct NatsUrl {
    pub(crate) server: ServerAddr,
    /// User and password. A user without a password may be a token of NATS, a secret as well.
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
        let server: ServerAddr = format!("{scheme}://{host}").parse().map_err(|_| ERROR)?;
        if server.host().is_empty() {
            return Err(ERROR);
        }
        let credentials = user_info.map(credentials).transpose();
        let credentials = credentials.map_err(|()| ERROR)?;
        Ok(NatsUrl {
            server,
            credentials,
        })
    }
}

/// The user and the password that a URL names (RFC 3986, section 3.2.1).
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
    /// The user and the password in it, if there are any.
    pub(crate) fn credentials(&self) -> Option<&(Secret<String>, Secret<String>)> {
        self.credentials.as_ref()
    }
}

/// Without user and password.
impl Display for NatsUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.server.host(), self.server.port())
    }
}

impl fmt::Debug for NatsUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Display::fmt(self, f)
    }
}
