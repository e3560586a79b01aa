//! Credentials of TURN that expire by themselves: the TURN REST scheme (draft-uberti-behave-turn-rest-00), which
//! coturn calls `use-auth-secret`. The user name begins with the time until which they are valid, in seconds since
//! 1970.

use base64::{Engine, engine::general_purpose::STANDARD};
use hmac::{Hmac, KeyInit, Mac};
use sha1::Sha1;

/// The password for a user name, from the secret that TURN servers share.
pub(crate) fn password(secret: &[u8], username: &str) -> String {
    let hmac = Hmac::<Sha1>::new_from_slice(secret).expect("HMAC takes keys of any length");
    STANDARD.encode(hmac.chain_update(username).finalize().into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_password_is_the_one_that_coturn_expects() {
        // printf 1790000000:alice | openssl dgst -sha1 -hmac secret -binary | base64
        let password = password(b"secret", "1790000000:alice");
        assert_eq!(password, "bgktWZImaee5cQirM/UhMSE7C3o=");
    }
}
