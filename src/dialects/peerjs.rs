//! The dialect of PeerJS 1.5, as peerjs-server 1.0 speaks it. A peer's id is its name in the room, which is its key.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{Author, Command, WireFormat, invalid};
use crate::{
    protocol::{Invalid, Receiver, SessionId},
    web::HttpError,
    websocket::Frame,
};

/// The longest id of a peer, in bytes.
const MAX_ID: usize = 128;

/// The messages that never wait for their receiver, as they begin.
const IMPATIENT: [&[u8]; 2] = [br#"{"type":"LEAVE""#, br#"{"type":"EXPIRE""#];

/// The messages of PeerJS.
pub(super) struct PeerJs;

/// Whether a text can be the id of a peer: letters and digits of ASCII in groups, with a space, hyphen or underscore
/// between two groups; 1 to 128 bytes.
pub(crate) fn is_id(text: &str) -> bool {
    text.len() <= MAX_ID
        && text.split([' ', '_', '-']).all(|group| {
            !group.is_empty() && group.bytes().all(|byte| byte.is_ascii_alphanumeric())
        })
}

/// A message of a client. Its other fields are ignored, as is what it says about its sender.
#[derive(Deserialize)]
struct Sent<'a> {
    #[serde(rename = "type", borrow)]
    kind: Cow<'a, str>,
    #[serde(borrow)]
    dst: Option<Cow<'a, str>>,
    #[serde(borrow)]
    payload: Option<&'a RawValue>,
}

/// A message of the server.
#[derive(Default, Serialize)]
struct Told<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    src: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dst: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload: Option<Payload<'a>>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Payload<'a> {
    OfPeer(&'a RawValue),
    OfServer { msg: Cow<'a, str> },
}

impl Told<'_> {
    fn frame(&self) -> Frame {
        Frame::text(|buffer| {
            serde_json::to_writer(buffer, self)
                .expect("strings and checked JSON always serialize, and a Vec takes every write");
        })
    }
}

impl WireFormat for PeerJs {
    fn read<'a>(&self, author: Author<'_>, text: &'a str) -> Result<Command<'a>, Invalid<'a>> {
        let sent: Sent<'_> = serde_json::from_str(text)
            .map_err(|error| invalid(format!("not a message of PeerJS: {error}")))?;
        let kind = match &*sent.kind {
            "OFFER" | "ANSWER" | "CANDIDATE" | "LEAVE" | "EXPIRE" => &*sent.kind,
            _ => return Ok(Command::Ignore),
        };
        let Some(receiver) = sent.dst else {
            return Ok(Command::Ignore);
        };
        let told = Told {
            kind,
            src: author.name,
            dst: Some(&receiver),
            payload: sent.payload.map(Payload::OfPeer),
        };
        Ok(Command::Send {
            frame: told.frame(),
            receiver: Receiver::Name(receiver),
            reference: None,
        })
    }

    fn opened(&self, _: SessionId) -> Option<Frame> {
        let told = Told {
            kind: "OPEN",
            ..Told::default()
        };
        Some(told.frame())
    }

    fn refused(&self, error: &HttpError) -> Option<Frame> {
        let message = error.message();
        let msg = match error.status().as_u16() {
            401 => format!("Invalid token provided: {message}").into(),
            _ if error.is_full() => "Server has reached its concurrent user limit".into(),
            _ => message,
        };
        let told = Told {
            kind: "ERROR",
            payload: Some(Payload::OfServer { msg }),
            ..Told::default()
        };
        Some(told.frame())
    }

    fn name_taken(&self) -> Option<Frame> {
        let msg = "ID is taken".into();
        let told = Told {
            kind: "ID-TAKEN",
            payload: Some(Payload::OfServer { msg }),
            ..Told::default()
        };
        Some(told.frame())
    }

    fn waits(&self, payload: &[u8]) -> bool {
        !IMPATIENT.iter().any(|kind| payload.starts_with(kind))
    }

    fn expired(&self, absent: &str, author: &str) -> Option<Frame> {
        let told = Told {
            kind: "EXPIRE",
            src: Some(absent),
            dst: Some(author),
            ..Told::default()
        };
        Some(told.frame())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Option<(String, String)> {
        let author = Author {
            id: SessionId::random(),
            name: Some("ann"),
        };
        match PeerJs.read(author, text).ok()? {
            Command::Send {
                receiver: Receiver::Name(name),
                frame,
                ..
            } => {
                let text = String::from_utf8(frame.payload().to_vec()).unwrap();
                Some((name.into_owned(), text))
            }
            Command::Ignore => Some(Default::default()),
            _ => panic!("another command"),
        }
    }

    #[test]
    fn messages_to_peers_are_relayed_with_their_true_source() {
        for (sent, dst, told) in [
            (
                r#"{"type":"OFFER","src":"eve","dst":"bob","payload":{"sdp":"\ud800"}}"#,
                "bob",
                r#"{"type":"OFFER","src":"ann","dst":"bob","payload":{"sdp":"\ud800"}}"#,
            ),
            (
                r#"{"payload":1e999,"more":[],"dst":"b\u006fb 2","type":"ANSWER"}"#,
                "bob 2",
                r#"{"type":"ANSWER","src":"ann","dst":"bob 2","payload":1e999}"#,
            ),
            (
                r#"{"type":"LEAVE","dst":"bob","payload":null}"#,
                "bob",
                r#"{"type":"LEAVE","src":"ann","dst":"bob"}"#,
            ),
        ] {
            let (name, text) = read(sent).unwrap();
            assert_eq!((&*name, &*text), (dst, told), "{sent}");
        }
        for ignored in [
            r#"{"type":"HEARTBEAT"}"#,
            r#"{"type":"OPEN","dst":"bob"}"#,
            r#"{"type":"OFFER","payload":1}"#,
        ] {
            assert_eq!(read(ignored), Some(Default::default()), "{ignored}");
        }
        for wrong in [
            "",
            "[]",
            "{}",
            "1",
            r#"{"type":1}"#,
            r#"{"type":"OFFER","dst":7}"#,
            r#"{"type":"OFFER","dst":"\ud800"}"#,
            r#"{"type":"OFFER","type":"ANSWER","dst":"bob"}"#,
        ] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn an_id_has_groups_of_letters_and_digits() {
        for id in ["a", "7", "Ann-2_b c", &"x".repeat(128)] {
            assert!(is_id(id), "{id}");
        }
        for text in [
            "",
            " ",
            "-a",
            "a-",
            "a--b",
            "a_ b",
            "ä",
            "a.b",
            "a\n",
            &"x".repeat(129),
        ] {
            assert!(!is_id(text), "{text}");
        }
    }

    #[test]
    fn only_what_sets_up_a_connection_waits() {
        for (payload, waits) in [
            (r#"{"type":"OFFER","src":"a"}"#, true),
            (r#"{"type":"LEAVE","src":"a"}"#, false),
            (r#"{"type":"EXPIRE","src":"a"}"#, false),
        ] {
            assert_eq!(PeerJs.waits(payload.as_bytes()), waits);
        }
    }
}
