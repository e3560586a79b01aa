//! The credentials of sessions (the long-term credentials of RFC 8489, section 9.2).
//!
//! The user name is the time until which it is valid and the id of the session, and the password follows from it and
//! a secret of the server: the scheme of `turn_rest`. The nonce is a time and a code that authenticates it and the
//! client. So the server keeps nothing for a client that has not shown its credentials.

use std::fmt::Write;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use stun_types::{
    attribute::{Nonce, Realm, Username},
    message::{IntegrityAlgorithm, IntegrityKey, LongTermKeyCredentials, Message},
};
use subtle::ConstantTimeEq;

use super::{
    five_tuple::{FiveTuple, Transport},
    reply::Refusal,
};
use crate::{protocol::SessionId, random, turn_rest};

/// The realm. Clients do not show it to anybody.
pub(super) const REALM: &str = "anteroom";

/// How long a nonce is valid, in seconds (RFC 8656, section 5).
const NONCE_SECONDS: u64 = 3600;

/// The bytes of the code in a nonce.
const CODE_BYTES: usize = 10;

/// Makes and checks credentials and nonces, with secrets that end with this process.
pub(super) struct Credentials {
    secret: [u8; 32],
    nonce_secret: [u8; 32],
}

/// Who has sent a request.
pub(super) struct Authenticated {
    pub(super) username: String,
    pub(super) session: SessionId,
    /// The key that signs the answer.
    pub(super) key: IntegrityKey,
}

impl Credentials {
    pub(super) fn new() -> Credentials {
        Credentials {
            secret: random::bits(),
            nonce_secret: random::bits(),
        }
    }

    /// The user name and the password of a session, valid until then, in seconds since 1970.
    pub(super) fn of(&self, session: SessionId, until: u64) -> (String, String) {
        let username = format!("{until}:{session}");
        let password = turn_rest::password(&self.secret, &username);
        (username, password)
    }

    /// A nonce for a client, at the time `now` in seconds since 1970.
    pub(super) fn nonce(&self, client: &FiveTuple, now: u64) -> String {
        self.sign_nonce(client, now + NONCE_SECONDS)
    }

    /// Checks the credentials of a request (RFC 8489, section 9.2.4) at the time `now`, in seconds since 1970.
    pub(super) fn check(
        &self,
        message: &Message<'_>,
        client: &FiveTuple,
        now: u64,
    ) -> Result<Authenticated, Refusal> {
        let (Ok(username), Ok(realm), Ok(nonce)) = (
            message.attribute::<Username>(),
            message.attribute::<Realm>(),
            message.attribute::<Nonce>(),
        ) else {
            return Err(Refusal::BAD_REQUEST);
        };
        if !self.is_fresh(nonce.nonce(), client, now) {
            return Err(Refusal::STALE_NONCE);
        }
        let username = username.username();
        let (session, _) = parse(username)
            .filter(|(_, until)| *until > now && realm.realm() == REALM)
            .ok_or(Refusal::WRONG_CREDENTIALS)?;
        let password = turn_rest::password(&self.secret, username);
        let key = LongTermKeyCredentials::new(username.into(), password, REALM.into())
            .make_key(IntegrityAlgorithm::Sha1);
        message
            .validate_integrity_with_key(&key)
            .map_err(|_| Refusal::WRONG_CREDENTIALS)?;
        Ok(Authenticated {
            username: username.into(),
            session,
            key,
        })
    }

    fn is_fresh(&self, nonce: &str, client: &FiveTuple, now: u64) -> bool {
        let until = nonce
            .get(..8)
            .and_then(|it| u64::from_str_radix(it, 16).ok());
        until.is_some_and(|until| {
            let signed = self.sign_nonce(client, until);
            until > now && bool::from(signed.as_bytes().ct_eq(nonce.as_bytes()))
        })
    }

    fn sign_nonce(&self, client: &FiveTuple, until: u64) -> String {
        let transport = match client.transport {
            Transport::Udp => b'u',
            Transport::Tcp => b't',
        };
        let code = Hmac::<Sha256>::new_from_slice(&self.nonce_secret)
            .expect("HMAC takes keys of any length")
            .chain_update(until.to_be_bytes())
            .chain_update([transport])
            .chain_update(client.address().to_string())
            .finalize()
            .into_bytes();
        let mut nonce = format!("{until:08x}");
        for byte in &code[..CODE_BYTES] {
            write!(nonce, "{byte:02x}").expect("a String takes everything");
        }
        nonce
    }
}

/// The session and the time of a user name.
fn parse(username: &str) -> Option<(SessionId, u64)> {
    let (until, session) = username.split_once(':')?;
    Some((SessionId::parse(session)?, until.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use stun_types::{
        message::{BINDING, MessageWrite, MessageWriteExt, MessageWriteVec},
        prelude::AttributeWrite,
    };

    use super::*;

    fn client(transport: Transport, port: u16) -> FiveTuple {
        FiveTuple {
            transport,
            client: ([192, 0, 2, 1], port).into(),
            server: None,
        }
    }

    #[test]
    fn credentials_are_valid_until_they_expire() {
        let credentials = Credentials::new();
        let (session, asking) = (SessionId::random(), client(Transport::Udp, 5000));
        let (username, password) = credentials.of(session, 1_790_000_600);
        let check = |now| {
            let mut message = Message::builder_request(BINDING, MessageWriteVec::new());
            let nonce = credentials.nonce(&asking, now);
            for attribute in [
                &Username::new(&username).unwrap() as &dyn AttributeWrite,
                &Realm::new(REALM).unwrap(),
                &Nonce::new(&nonce).unwrap(),
            ] {
                message.add_attribute(attribute).unwrap();
            }
            let key = LongTermKeyCredentials::new(username.clone(), password.clone(), REALM.into());
            message
                .add_message_integrity(&key.into(), IntegrityAlgorithm::Sha1)
                .unwrap();
            let bytes = message.finish();
            let checked = credentials.check(&Message::from_bytes(&bytes).unwrap(), &asking, now);
            checked.map(|it| (it.username, it.session))
        };
        assert_eq!(check(1_790_000_599), Ok((username.clone(), session)));
        assert_eq!(check(1_790_000_600), Err(Refusal::WRONG_CREDENTIALS));
    }

    #[test]
    fn a_nonce_is_for_one_client_and_an_hour() {
        let (credentials, others) = (Credentials::new(), Credentials::new());
        let asking = client(Transport::Udp, 5000);
        let nonce = credentials.nonce(&asking, 1_790_000_000);
        let is_fresh = |client: &FiveTuple, now| credentials.is_fresh(&nonce, client, now);
        assert!(is_fresh(&asking, 1_790_000_000));
        assert!(is_fresh(&asking, 1_790_003_599));
        assert!(!is_fresh(&asking, 1_790_003_600));
        assert!(!is_fresh(&client(Transport::Tcp, 5000), 1_790_000_000));
        assert!(!is_fresh(&client(Transport::Udp, 5001), 1_790_000_000));
        assert!(!others.is_fresh(&nonce, &asking, 1_790_000_000));
        for altered in [
            "",
            "x",
            &nonce[1..],
            &nonce[..27],
            &format!("f{}", &nonce[1..]),
        ] {
            assert!(
                !credentials.is_fresh(altered, &asking, 1_790_000_000),
                "{altered}"
            );
        }
    }
}
