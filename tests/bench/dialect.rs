//! What the servers' clients say on the wire: the same messages, in several ways of writing them.

use std::borrow::Cow;

use serde_json::Value;

/// A way of writing messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// anteroom's own.
    Rooms,
    /// The same, by clients that ask to be resumed.
    Resuming,
    /// The same objects in Socket.IO's packets.
    SocketIo,
    /// PeerServer's, which has no rooms.
    PeerJs,
    /// As the receiver shall get them: they are passed on as they are.
    Relayed,
}

/// What a text message from the server is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Text {
    /// One of those that the benchmark sends.
    Message,
    /// Another session has come.
    New,
    /// Something of the dialect itself.
    Other,
}

impl Dialect {
    /// The request target with which the session of this number joins a room.
    pub fn target(self, room: &str, number: usize) -> String {
        match self {
            Dialect::Rooms | Dialect::Resuming | Dialect::Relayed => format!("/room/{room}"),
            Dialect::SocketIo => format!("/socket.io/?EIO=4&transport=websocket&room={room}"),
            Dialect::PeerJs => format!("/peerjs?key=peerjs&id=p{number}&token=t{number}"),
        }
    }

    /// What a client says first.
    pub fn greeting(self) -> Option<&'static str> {
        match self {
            Dialect::Resuming => {
                Some(r#"{"type":"hello","receiver":"server","data":{"resume":true}}"#)
            }
            Dialect::SocketIo => Some("40"),
            Dialect::Rooms | Dialect::PeerJs | Dialect::Relayed => None,
        }
    }

    /// The id of the session of this number, where the client chooses it.
    pub fn chosen_id(self, number: usize) -> Option<String> {
        match self {
            Dialect::PeerJs => Some(format!("p{number}")),
            // As long as anteroom's, and the same for both of a pair: so each says whose a message is.
            Dialect::Relayed => Some(format!("{:031}-pair", number / 2)),
            Dialect::Rooms | Dialect::Resuming | Dialect::SocketIo => None,
        }
    }

    /// Whether sessions are told of each other.
    pub fn tells_news(self) -> bool {
        !matches!(self, Dialect::PeerJs | Dialect::Relayed)
    }

    /// What the payload of a client's frame is masked with (RFC 6455, section 5.3), if it is.
    pub fn mask(self) -> Option<[u8; 4]> {
        (self != Dialect::Relayed).then_some([0x37, 0xfa, 0x21, 0x3d])
    }

    /// A message whose `data` has so many bytes.
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

    /// What this text is.
    pub fn text(self, text: &[u8]) -> Text {
        let (prefix, message): (&[u8], &[u8]) = match self {
            Dialect::Rooms | Dialect::Resuming | Dialect::Relayed => (b"", br#"{"type":"bench""#),
            Dialect::SocketIo => (br#"42["message","#, br#"{"type":"bench""#),
            Dialect::PeerJs => (b"", br#"{"type":"OFFER""#),
        };
        match text.strip_prefix(prefix) {
            Some(text) if text.starts_with(message) => Text::Message,
            Some(text) if text.starts_with(br#"{"type":"new""#) => Text::New,
            _ => Text::Other,
        }
    }

    /// The id of who sent this.
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
