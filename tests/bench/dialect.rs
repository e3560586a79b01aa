//! The wire formats of the servers' clients: the same messages, written in several ways.

use std::borrow::Cow;

use serde_json::Value;

/// A wire format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// anteroom's own format.
    Rooms,
    /// anteroom's format, by clients that ask for a resume token.
    Resuming,
    /// anteroom's objects in Socket.IO's packets.
    SocketIo,
    /// PeerServer's format, which has no rooms.
    PeerJs,
    /// anteroom's format as the receiver gets it, for the relay, which forwards bytes unchanged.
    Relayed,
}

/// The kind of a text message from the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Text {
    /// A message that the benchmark has sent.
    Message,
    /// The event that another session has joined.
    New,
    /// The receipt of a message.
    Receipt,
    /// Any other message of the format.
    Other,
}

impl Dialect {
    /// The request target with which session `number` joins a room.
    pub fn target(self, room: &str, number: usize) -> String {
        match self {
            Dialect::Rooms | Dialect::Resuming | Dialect::Relayed => format!("/room/{room}"),
            Dialect::SocketIo => format!("/socket.io/?EIO=4&transport=websocket&room={room}"),
            Dialect::PeerJs => format!("/peerjs?key=peerjs&id=p{number}&token=t{number}"),
        }
    }

    /// The first message of a client, if there is one.
    pub fn greeting(self) -> Option<&'static str> {
        match self {
            Dialect::Resuming => {
                Some(r#"{"type":"hello","receiver":"server","data":{"resume":true}}"#)
            }
            Dialect::SocketIo => Some("40"),
            Dialect::Rooms | Dialect::PeerJs | Dialect::Relayed => None,
        }
    }

    /// The id of session `number`, if the client chooses it.
    pub fn chosen_id(self, number: usize) -> Option<String> {
        match self {
            Dialect::PeerJs => Some(format!("p{number}")),
            // As long as anteroom's ids. Both sessions of a pair have the same id, which names the pair of
            // a message.
            Dialect::Relayed => Some(format!("{:031}-pair", number / 2)),
            Dialect::Rooms | Dialect::Resuming | Dialect::SocketIo => None,
        }
    }

    /// Whether sessions learn of each other.
    pub fn tells_news(self) -> bool {
        !matches!(self, Dialect::PeerJs | Dialect::Relayed)
    }

    /// The key that masks the payload of a client's frames (RFC 6455, section 5.3), if it is masked.
    pub fn mask(self) -> Option<[u8; 4]> {
        (self != Dialect::Relayed).then_some([0x37, 0xfa, 0x21, 0x3d])
    }

    /// A message whose `data` has `data_bytes` bytes.
    pub fn message(self, receiver: &str, data_bytes: usize) -> String {
        let data = "d".repeat(data_bytes - 2);
        match self {
            Dialect::Rooms | Dialect::Resuming => {
                format!(r#"{{"type":"bench","receiver":"{receiver}","data":"{data}"}}"#)
            }
            Dialect::SocketIo => format!(
                r#"42["message",{{"type":"bench","receiver":"{receiver}","data":"{data}"}}]"#
            ),
            Dialect::Relayed => format!(
                r#"{{"type":"bench","sender":"{receiver}","receiver":"{receiver}","data":"{data}"}}"#
            ),
            Dialect::PeerJs => {
                format!(r#"{{"type":"OFFER","dst":"{receiver}","payload":"{data}"}}"#)
            }
        }
    }

    /// The kind of a text message.
    pub fn text(self, text: &[u8]) -> Text {
        let (prefix, message): (&[u8], &[u8]) = match self {
            Dialect::Rooms | Dialect::Resuming | Dialect::Relayed => (b"", br#"{"type":"bench""#),
            Dialect::SocketIo => (br#"42["message","#, br#"{"type":"bench""#),
            Dialect::PeerJs => (b"", br#"{"type":"OFFER""#),
        };
        match text.strip_prefix(prefix) {
            Some(text) if text.starts_with(message) => Text::Message,
            Some(text) if text.starts_with(br#"{"type":"new""#) => Text::New,
            Some(text) if text.starts_with(br#"{"type":"ack""#) => Text::Receipt,
            _ => Text::Other,
        }
    }

    /// The id of the sender of a message.
    pub fn sender(self, text: &[u8]) -> String {
        let text = String::from_utf8_lossy(text);
        let json: Cow<'_, str> = match self {
            Dialect::SocketIo => text[r#"42["message","#.len()..text.len() - 1].into(),
            _ => text,
        };
        let value: Value = serde_json::from_str(&json).expect("servers write JSON");
        let sender = value.get("sender").or(value.get("src"));
        sender
            .and_then(Value::as_str)
            .expect("messages have a sender")
            .to_owned()
    }
}
