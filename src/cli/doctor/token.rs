//! What a token says of itself. The server checks the signature, not the doctor.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::Deserialize;

/// The claims of a token that the doctor reads.
#[derive(Deserialize, Default)]
pub(super) struct Claims {
    /// The times are numbers that may have fractions.
    pub(super) exp: Option<f64>,
    pub(super) nbf: Option<f64>,
    pub(super) iat: Option<f64>,
    #[serde(default)]
    room: Option<Rooms>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Rooms {
    One(String),
    Several(Vec<String>),
}

impl Claims {
    /// Reads the claims; `None` if the text is not a JSON Web Token.
    pub(super) fn read(token: &str) -> Option<Claims> {
        let payload = token.split('.').nth(1)?;
        let payload = URL_SAFE_NO_PAD.decode(payload).ok()?;
        serde_json::from_slice(&payload).ok()
    }

    /// The room to join: `own`, or what the token admits to. The second is whether others may be there.
    pub(super) fn room(&self, own: &str) -> (String, bool) {
        let rooms: &[String] = match &self.room {
            None => return (own.into(), false),
            Some(Rooms::One(room)) => std::slice::from_ref(room),
            Some(Rooms::Several(rooms)) => rooms,
        };
        let pattern = rooms.iter().find_map(|room| room.strip_suffix('*'));
        match (pattern, rooms.first()) {
            (Some(start), _) => (format!("{start}{own}"), false),
            (None, Some(room)) => (room.clone(), true),
            (None, None) => (own.into(), false),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_room_is_one_to_which_the_token_admits() {
        for (claims, room, is_shared) in [
            (r#"{"exp":1}"#, "doctor-1", false),
            (r#"{"exp":1,"room":"*"}"#, "doctor-1", false),
            (r#"{"room":"team-*"}"#, "team-doctor-1", false),
            (r#"{"room":["tea","team-*"]}"#, "team-doctor-1", false),
            (r#"{"room":["tea","coffee"]}"#, "tea", true),
            (r#"{"room":"tea"}"#, "tea", true),
        ] {
            let token = format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(claims));
            let claims = Claims::read(&token).unwrap();
            assert_eq!(claims.room("doctor-1"), (room.into(), is_shared), "{token}");
        }
        assert!(Claims::read("secret").is_none());
        assert!(Claims::read("a.b.c").is_none());
    }
}
