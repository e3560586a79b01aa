//! The dialect of PeerJS 1.5, as peerjs-server 1.0 speaks it. A peer's id is its name in the room, which is its key.

use std::borrow::Cow;

use http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{Author, Command, WireFormat, frame, invalid};
use crate::{
    protocol::{Invalid, SessionId},
    web::HttpError,
    websocket::Frame,
};

/// The longest id of a peer, in bytes.
const MAX_ID: usize = 128;

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
struct ClientMessage<'a> {
    #[serde(rename = "type", borrow)]
    kind: Cow<'a, str>,
    #[serde(borrow)]
    dst: Option<Cow<'a, str>>,
    #[serde(borrow)]
    payload: Option<&'a RawValue>,
}

/// A message of the server.
#[derive(Default, Serialize)]
struct ServerMessage<'a> {
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

impl WireFormat for PeerJs {
    fn read<'a>(&self, author: Author<'_>, text: &'a str) -> Result<Command<'a>, Invalid<'a>> {
        let sent: ClientMessage<'_> = serde_json::from_str(text)
            .map_err(|error| invalid(format!("not a message of PeerJS: {error}")))?;
        let may_wait = match &*sent.kind {
            "OFFER" | "ANSWER" | "CANDIDATE" => true,
            "LEAVE" | "EXPIRE" => false,
            _ => return Ok(Command::Ignore),
        };
        let Some(name) = sent.dst else {
            return Ok(Command::Ignore);
        };
        if !is_id(&name) {
            // No peer can have it.
            let expired = self.expired(&name, author.name.unwrap_or_default());
            let expired = expired.filter(|_| may_wait);
            return Ok(expired.map_or(Command::Ignore, Command::Reply));
        }
        let told = ServerMessage {
            kind: &sent.kind,
            src: author.name,
            dst: Some(&name),
            payload: sent.payload.map(Payload::OfPeer),
        };
        Ok(Command::SendToName {
            frame: frame(&told),
            name,
            may_wait,
        })
    }

    fn opened(&self, _: SessionId) -> Option<Frame> {
        let told = ServerMessage {
            kind: "OPEN",
            ..ServerMessage::default()
        };
        Some(frame(&told))
    }

    fn refused(&self, error: &HttpError) -> Option<Frame> {
        if error.status() == StatusCode::SERVICE_UNAVAILABLE && !error.is_full() {
            // Balancers act on the status.
            return None;
        }
        let message = error.message();
        let msg = match error.status() {
            StatusCode::UNAUTHORIZED => format!("Invalid token provided: {message}").into(),
            _ if error.is_full() => "Server has reached its concurrent user limit".into(),
            _ => message,
        };
        let told = ServerMessage {
            kind: "ERROR",
            payload: Some(Payload::OfServer { msg }),
            ..ServerMessage::default()
        };
        Some(frame(&told))
    }

    fn name_taken(&self) -> Option<Frame> {
        let msg = "ID is taken".into();
        let told = ServerMessage {
            kind: "ID-TAKEN",
            payload: Some(Payload::OfServer { msg }),
            ..ServerMessage::default()
        };
        Some(frame(&told))
    }

    fn expired(&self, absent: &str, author: &str) -> Option<Frame> {
        let told = ServerMessage {
            kind: "EXPIRE",
            src: Some(absent),
            dst: Some(author),
            ..ServerMessage::default()
        };
        Some(frame(&told))
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
            Command::SendToName {
                name,
                frame,
                may_wait,
            } => {
                let text = String::from_utf8(frame.payload().to_vec()).unwrap();
                let never_waits = text.contains("LEAVE") || text.contains("EXPIRE");
                assert_eq!(may_wait, !never_waits);
                Some((name.into_owned(), text))
            }
            Command::Ignore => Some(Default::default()),
            Command::Reply(frame) => {
                let text = String::from_utf8(frame.payload().to_vec()).unwrap();
                Some(("ann".into(), text))
            }
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
            (
                r#"{"type":"OFFER","dst":"bob."}"#,
                "ann",
                r#"{"type":"EXPIRE","src":"bob.","dst":"ann"}"#,
            ),
        ] {
            let (name, text) = read(sent).unwrap();
            assert_eq!((&*name, &*text), (dst, told), "{sent}");
        }
        for ignored in [
            r#"{"type":"HEARTBEAT"}"#,
            r#"{"type":"OPEN","dst":"bob"}"#,
            r#"{"type":"OFFER","payload":1}"#,
            r#"{"type":"LEAVE","dst":"bob."}"#,
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
}
