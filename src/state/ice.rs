//! The ICE servers in `hello` (RFC 8445). TURN servers that share a secret with this server get credentials
//! for each session that expire by themselves.

use std::{io, path::Path, sync::Arc};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use crate::{
    config::{Secret, SecretFile, Webrtc, invalid, read_file},
    protocol::{IceServer, SessionId},
    turn::Turn,
    turn_rest,
};

/// The characters of a user's name that are percent-encoded in the user name of TURN: all but the unreserved
/// ones of RFC 3986, section 2.3. A colon would be taken for the end of the time before it, and a line break
/// would break the line in a log.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// The longest user name of TURN, in bytes (RFC 8489, section 14.3).
const MAX_USERNAME: usize = 508;

/// The configured ICE servers.
pub(crate) struct IceServers {
    servers: Vec<IceServer>,
    shared: Option<SharedTurn>,
    /// The TURN server of this process.
    own: Option<Arc<Turn>>,
    /// How long credentials are valid, in seconds.
    seconds: u64,
}

/// TURN servers that share a secret with this server.
struct SharedTurn {
    urls: Vec<String>,
    secret: SecretFile,
}

impl IceServers {
    /// Those of the options, and the TURN server of this process.
    ///
    /// # Errors
    ///
    /// A file of the secret that cannot be read, or is empty; the message names it.
    pub(crate) fn new(options: &Webrtc, own: Option<Arc<Turn>>) -> io::Result<IceServers> {
        let servers = options.ice_server.iter().map(|server| {
            let (username, credential) = server.credentials.clone().unzip();
            IceServer {
                urls: vec![server.url.clone()],
                username,
                credential,
            }
        });
        let shared = options.turn_secret_file.clone().map(|path| {
            io::Result::Ok(SharedTurn {
                urls: options.turn_url.iter().map(|url| url.url.clone()).collect(),
                secret: SecretFile::new(path, read_turn_secret)?,
            })
        });
        Ok(IceServers {
            servers: servers.collect(),
            shared: shared.transpose()?,
            own,
            seconds: options.turn_seconds,
        })
    }

    /// Reads the secret again, if there is one.
    ///
    /// # Errors
    ///
    /// As of [`new`](IceServers::new); the old one stays then.
    pub(crate) fn reload(&self) -> Option<io::Result<()>> {
        self.shared.as_ref().map(|turn| turn.secret.reload())
    }

    /// The ICE servers for a session at time `now`, with credentials for `user` if the session's token names
    /// one. The credentials are valid no longer than the token, which expires at `expires`. Both times are in
    /// seconds since 1970.
    pub(crate) fn for_session(
        &self,
        id: SessionId,
        user: Option<&str>,
        expires: Option<u64>,
        now: u64,
    ) -> Vec<IceServer> {
        let until = expires.unwrap_or(u64::MAX).min(now + self.seconds);
        let shared = self.shared.iter();
        let shared = shared.map(|turn| turn.server(username(id, user, until)));
        // Its relays end with the session, which ends with the token.
        let own = self.own.iter();
        let own = own.map(|turn| turn.ice_server(id, now + self.seconds));
        let servers = self.servers.iter().cloned();
        servers.chain(own).chain(shared).collect()
    }
}

impl SharedTurn {
    fn server(&self, username: String) -> IceServer {
        let credential = turn_rest::password(self.secret.get().expose(), &username);
        IceServer {
            urls: self.urls.clone(),
            credential: Some(Secret::new(credential)),
            username: Some(username),
        }
    }
}

/// Reads the secret in a file. It has no minimum length: coturn's may be of any length.
fn read_turn_secret(path: &Path) -> io::Result<Secret<Vec<u8>>> {
    let secret = read_file(path)?.trim_ascii_end().to_vec();
    match secret.is_empty() {
        true => Err(invalid(format!("{} is empty", path.display()))),
        false => Ok(Secret::new(secret)),
    }
}

/// The user name of credentials that are valid `until` then: the time, and the user or else the session.
fn username(id: SessionId, user: Option<&str>, until: u64) -> String {
    let user = user.filter(|user| !user.is_empty());
    user.map(|user| format!("{until}:{}", utf8_percent_encode(user, ENCODED)))
        .filter(|username| username.len() <= MAX_USERNAME)
        .unwrap_or_else(|| format!("{until}:{id}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turn_user_name_is_never_empty_or_longer_than_turn_allows() {
        let id = SessionId::random();
        let of = |user: &str| username(id, Some(user), 1_790_000_000);
        let longest = "x".repeat(MAX_USERNAME - "1790000000:".len());
        assert_eq!(of(&longest), format!("1790000000:{longest}"));
        assert_eq!(of(&format!("{longest}x")), format!("1790000000:{id}"));
        assert_eq!(of(""), format!("1790000000:{id}"));
    }
}
