//! The dialects of y-webrtc 10 and of trystero's `ws-relay`. A connection subscribes to topics, which are rooms, and
//! publishes to them. Both are spoken at one URL, and each message shows of which dialect it is.

use std::{borrow::Cow, collections::BTreeMap};

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;

use super::{Author, Command, WireFormat, frame, invalid};
use crate::{
    config::Dialect,
    protocol::{Invalid, Problem, RoomName, SessionId},
    websocket::Frame,
};

/// The messages about topics.
pub(super) struct Topics;

/// A message of a client. y-webrtc names several topics to subscribe to, and trystero one.
#[derive(Deserialize)]
struct Sent<'a> {
    #[serde(rename = "type", borrow)]
    kind: Option<Cow<'a, str>>,
    #[serde(borrow)]
    topics: Option<Vec<Cow<'a, str>>>,
    #[serde(borrow)]
    topic: Option<Cow<'a, str>>,
    /// Only trystero publishes one, which may be `null`.
    #[serde(borrow, default, deserialize_with = "present")]
    payload: Option<&'a RawValue>,
}

/// Deserializes a value that may be `null`, other than an absent one.
fn present<'de, D: Deserializer<'de>>(json: D) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(json).map(Some)
}

/// What a client publishes in a topic.
pub(crate) struct Publication {
    pub(crate) room: RoomName,
    content: Content,
}

enum Content {
    /// The fields of a message of y-webrtc, which is forwarded whole.
    Fields(BTreeMap<String, Box<RawValue>>),
    /// The payload of trystero.
    Payload(Box<RawValue>),
}

impl Publication {
    /// The message to so many subscribers.
    pub(crate) fn frame(&self, subscribers: usize) -> Frame {
        #[derive(Serialize)]
        struct Whole<'a> {
            #[serde(flatten)]
            fields: &'a BTreeMap<String, Box<RawValue>>,
            clients: usize,
        }
        #[derive(Serialize)]
        struct Relayed<'a> {
            topic: &'a str,
            payload: &'a RawValue,
        }
        let topic = self.room.as_str();
        match &self.content {
            Content::Fields(fields) => frame(&Whole {
                fields,
                clients: subscribers,
            }),
            Content::Payload(payload) => frame(&Relayed { topic, payload }),
        }
    }
}

/// The room of a topic.
fn room<'a>(dialect: Dialect, topic: &str) -> Result<RoomName, Invalid<'a>> {
    let room = RoomName::new(topic).map(|room| room.in_dialect(dialect));
    room.map_err(|error| invalid(format!("not a topic: {error}")))
}

impl Sent<'_> {
    /// The rooms to subscribe to, or to unsubscribe from.
    fn rooms<'a>(&self) -> Result<Vec<RoomName>, Invalid<'a>> {
        match (&self.topics, &self.topic) {
            (Some(topics), None) => {
                let rooms = topics.iter().map(|topic| room(Dialect::YWebrtc, topic));
                rooms.collect()
            }
            (None, Some(topic)) => Ok(vec![room(Dialect::Trystero, topic)?]),
            _ => Err(invalid(
                "name the topics in topics, an array of strings, or one in topic",
            )),
        }
    }
}

impl WireFormat for Topics {
    fn read<'a>(&self, _: Author<'_>, text: &'a str) -> Result<Command<'a>, Invalid<'a>> {
        let sent: Sent<'a> = serde_json::from_str(text)
            .map_err(|error| invalid(format!("not a message about topics: {error}")))?;
        match sent.kind.as_deref() {
            Some("subscribe") => Ok(Command::Subscribe(sent.rooms()?)),
            Some("unsubscribe") => Ok(Command::Unsubscribe(sent.rooms()?)),
            Some("publish") => {
                let topic = sent.topic.ok_or_else(|| invalid("topic is missing"))?;
                let (dialect, content) = match sent.payload {
                    Some(payload) => (Dialect::Trystero, Content::Payload(payload.to_owned())),
                    None => {
                        let mut fields: BTreeMap<String, Box<RawValue>> =
                            serde_json::from_str(text)
                                .map_err(|error| invalid(format!("not a JSON object: {error}")))?;
                        // The server says how many they are.
                        fields.remove("clients");
                        (Dialect::YWebrtc, Content::Fields(fields))
                    }
                };
                Ok(Command::Publish(Publication {
                    room: room(dialect, &topic)?,
                    content,
                }))
            }
            Some("ping") => Ok(Command::Reply(Frame::text(|buffer| {
                buffer.extend_from_slice(br#"{"type":"pong"}"#);
            }))),
            _ => Err(invalid(
                "type must be subscribe, unsubscribe, publish or ping",
            )),
        }
    }

    /// The clients ignore a message of this type. Their developers see it.
    fn error(&self, _: SessionId, problem: &Problem, _: Option<&RawValue>) -> Option<Frame> {
        #[derive(Serialize)]
        struct Error<'a> {
            r#type: &'a str,
            message: &'a str,
        }
        Some(frame(&Error {
            r#type: "error",
            message: &problem.message,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Command<'_>, String> {
        let author = Author {
            id: SessionId::random(),
            name: None,
        };
        Topics
            .read(author, text)
            .map_err(|invalid| invalid.problem.message)
    }

    /// What subscribers get of a publication, and its room.
    fn published(text: &str) -> (String, String) {
        let Ok(Command::Publish(publication)) = read(text) else {
            panic!("{text} is no publication");
        };
        let frame = publication.frame(3);
        let text = String::from_utf8(frame.payload().to_vec()).unwrap();
        (publication.room.to_string(), text)
    }

    #[test]
    fn a_publication_shows_of_which_client_it_is() {
        for (sent, room, relayed) in [
            (
                r#"{"type":"publish","topic":"tea","data":"x","clients":99}"#,
                "y-webrtc:tea",
                r#"{"data":"x","topic":"tea","type":"publish","clients":3}"#,
            ),
            (
                r#"{"topic":"t\u0065a","n":1e999,"type":"publish"}"#,
                "y-webrtc:tea",
                r#"{"n":1e999,"topic":"t\u0065a","type":"publish","clients":3}"#,
            ),
            (
                r#"{"type":"publish","topic":"tea","payload":null}"#,
                "trystero:tea",
                r#"{"topic":"tea","payload":null}"#,
            ),
            (
                r#"{"type":"publish","topic":"tea","payload":{"a":"\ud800"},"more":1}"#,
                "trystero:tea",
                r#"{"topic":"tea","payload":{"a":"\ud800"}}"#,
            ),
        ] {
            assert_eq!(published(sent), (room.into(), relayed.into()), "{sent}");
        }
    }

    #[test]
    fn topics_are_subscribed_to_in_the_dialect_that_names_them() {
        let rooms = |text: &str| match read(text) {
            Ok(Command::Subscribe(rooms) | Command::Unsubscribe(rooms)) => {
                rooms.iter().map(RoomName::to_string).collect::<Vec<_>>()
            }
            _ => panic!("{text} names no topics"),
        };
        assert_eq!(
            rooms(r#"{"type":"subscribe","topics":["a","b c"]}"#),
            ["y-webrtc:a", "y-webrtc:b c"]
        );
        assert_eq!(
            rooms(r#"{"type":"unsubscribe","topic":"a"}"#),
            ["trystero:a"]
        );
        assert!(rooms(r#"{"type":"subscribe","topics":[]}"#).is_empty());
    }

    #[test]
    fn an_invalid_message_is_answered_with_what_is_wrong() {
        for (text, part) in [
            ("{", "not a message about topics: EOF"),
            (r#"{"type":"subscribe"}"#, "name the topics in topics"),
            (
                r#"{"type":"subscribe","topics":"a"}"#,
                "not a message about topics",
            ),
            (
                r#"{"type":"subscribe","topics":["a",""]}"#,
                "1 to 128 bytes",
            ),
            (
                r#"{"type":"subscribe","topic":"a\nb"}"#,
                "control characters",
            ),
            (r#"{"type":"publish","payload":1}"#, "topic is missing"),
            (r#"{"type":"hello"}"#, "type must be subscribe"),
            ("{}", "type must be subscribe"),
        ] {
            let error = read(text).err().unwrap();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
