//! The messages between nodes and their encoding: versioned, bounded, checked. No I/O.
//!
//! A message is a line of JSON. If it carries the JSON of a client or a backend, that text follows after the
//! line; a binary message has the form of [`to_json`](crate::protocol::to_json). A node ignores fields and messages
//! that it does not know, so that nodes of different versions can run side by side during an upgrade: from version 2
//! on, nothing is changed that all nodes must understand. New versions only add to it.

use std::{
    fmt::{self, Display},
    str::{self, FromStr},
    sync::Arc,
};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};
use serde_json::value::RawValue;

use crate::{
    protocol::{RoomName, SessionId, TokenHash, TokenKey},
    random,
};

/// The version of this format.
const VERSION: u32 = 2;

/// The highest number of a message: the highest integer that all JSON implementations keep exact (RFC 8259,
/// section 6).
pub(crate) const MAX_NUMBER: u64 = (1 << 53) - 1;

/// Rooms in one message, at most.
pub(crate) const MAX_ROOMS: usize = 512;

/// Nodes in one message and in the cluster, at most.
pub(crate) const MAX_NODES: usize = 256;

/// Session ids in one message, at most.
pub(crate) const MAX_IDS: usize = 4096;

/// Bytes of sessions, or of their messages, in one message. Only a single item that is longer exceeds it.
pub(crate) const PART_BYTES: usize = 256 << 10;

/// The length of [`MAX_IDS`] ids in JSON, in bytes: 36 characters, two quotes and a comma each.
pub(super) const IDS_BYTES: usize = MAX_IDS * 39;

/// The length of the rest of a line, in bytes, at most: the nodes of a whole cluster, each with a number.
pub(super) const LINE_BYTES: usize = 64 << 10;

/// The id of a node: 64 random bits, 16 hexadecimal digits on the wire. It is new for each start of the
/// server.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct NodeId(u64);

impl NodeId {
    pub(crate) fn random() -> NodeId {
        NodeId(u64::from_be_bytes(random::bits()))
    }
}

impl Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Display::fmt(self, f)
    }
}

impl FromStr for NodeId {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<NodeId, &'static str> {
        let is_canonical = text.len() == 16 && !text.starts_with('+');
        match u64::from_str_radix(text, 16) {
            Ok(bits) if is_canonical => Ok(NodeId(bits)),
            _ => Err("a node id has 16 hexadecimal digits"),
        }
    }
}

impl Serialize for NodeId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for NodeId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<NodeId, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(D::Error::custom)
    }
}

/// Names a message among all of a cluster: the node that sent it, and its number there. In text, both with a hyphen
/// between, the number in decimal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct EventId {
    pub(crate) node: NodeId,
    pub(crate) number: u64,
}

impl Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.node, self.number)
    }
}

impl FromStr for EventId {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<EventId, &'static str> {
        const ERROR: &str = "the id of an event is that of a node, a hyphen and a number";
        let (node, number) = text.split_once('-').ok_or(ERROR)?;
        Ok(EventId {
            node: node.parse()?,
            number: number.parse().map_err(|_| ERROR)?,
        })
    }
}

/// A message to every node.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Broadcast {
    /// A heartbeat, sent every second.
    Alive {
        /// The nodes that the sender receives.
        heard: Vec<NodeId>,
        /// The keys that tell genuine resume tokens from made-up ones: the sender's, and all others that
        /// it knows.
        #[serde(default)]
        keys: Vec<TokenKey>,
    },
    /// The sender stops.
    Bye,
    /// The sender is in this room from now on, without sessions yet. The receivers list theirs.
    Enter { room: RoomName },
    /// A client of the sender wants to resume a session that is not on that node.
    Want(Want),
    /// A client has sent the sender a request for a session that is not on that node.
    Find {
        room: RoomName,
        mark: u64,
        token: TokenHash,
    },
}

/// A message to every node in a room: an event there. Each names the one before, so that receivers notice a
/// gap.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct RoomEvent {
    pub(crate) room: RoomName,
    /// The number of the sender's previous message about the room.
    pub(crate) after: u64,
    pub(crate) what: Event,
}

/// An event in a room.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Event {
    /// A session joined.
    Join(SessionRecord),
    /// A session left.
    Leave(SessionId),
    /// A session says something of itself.
    State {
        id: SessionId,
        state: Arc<SessionState>,
    },
    /// A session has migrated from the node `from` to the sender. All that the session has sent from there was
    /// sent before the message `last` of that node about the room.
    Arrive {
        member: SessionRecord,
        from: NodeId,
        #[serde(default)]
        last: u64,
    },
    /// A session, or a backend (`None`), sends the text after the line to all.
    Broadcast(Option<SessionId>),
    /// The sender is no longer in the room.
    Exit,
}

/// A message to one node.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Direct {
    /// Asks for the receiver's sessions in these rooms.
    Ask(Vec<RoomName>),
    /// Lists sessions of the sender in a room: all, or a chunk.
    Members(SnapshotChunk),
    /// The sender is in none of these rooms.
    Absent(Vec<RoomName>),
    /// The sender has applied the receiver's messages about this room up to this number, when its own last message
    /// about the room was `last`.
    Seen {
        room: RoomName,
        number: u64,
        #[serde(default)]
        last: u64,
    },
    /// The sender has received all messages of the receiver up to this number.
    Taken { number: u64 },
    /// A session, or a backend (`None`), sends the text after the line to a session of the receiver.
    Unicast {
        room: RoomName,
        sender: Option<SessionId>,
        receiver: SessionId,
        /// The client's reference for the message; `null` for a binary one.
        #[serde(
            rename = "ref",
            default,
            skip_serializing_if = "Option::is_none",
            deserialize_with = "present"
        )]
        reference: Option<Box<RawValue>>,
    },
    /// A message of a session of the receiver was not delivered, because the session it was for is no longer
    /// on the sender.
    Undelivered {
        room: RoomName,
        sender: SessionId,
        receiver: SessionId,
        #[serde(
            rename = "ref",
            default,
            skip_serializing_if = "Option::is_none",
            deserialize_with = "present"
        )]
        reference: Option<Box<RawValue>>,
    },
    /// An operator closes a session of the receiver.
    Expel { room: RoomName, id: SessionId },
    /// Tells the receiver why it does not get the session that it looks for.
    Answer {
        room: RoomName,
        seek: u64,
        answer: Answer,
    },
    /// The sender has the session that the receiver looks for, and asks whether it is still wanted.
    Offer {
        room: RoomName,
        seek: u64,
        token: TokenHash,
    },
    /// Answers an offer: whether the sender still waits for the session.
    Accept {
        room: RoomName,
        seek: u64,
        accepted: bool,
    },
    /// A session that migrates to the receiver, or a part of it.
    Handed(Box<SessionTransfer>),
    /// From now on the sender sends messages for this session to its new node, and no longer to the receiver.
    Turned { room: RoomName, id: SessionId },
    /// The text after the line is for a session that has migrated to the receiver. The node `source` sent it
    /// under `number`.
    Forward {
        room: RoomName,
        seek: u64,
        source: NodeId,
        number: u64,
        sender: Option<SessionId>,
        receiver: SessionId,
        #[serde(
            rename = "ref",
            default,
            skip_serializing_if = "Option::is_none",
            deserialize_with = "present"
        )]
        reference: Option<Box<RawValue>>,
    },
    /// No more messages are forwarded to the receiver.
    Done {
        room: RoomName,
        seek: u64,
        /// For each node, the number up to which the sender has received its messages about the room.
        #[serde(default)]
        seen: Vec<(NodeId, u64)>,
    },
    /// Digests of the sender's sessions in the rooms that both nodes are in, with which the receiver compares
    /// what it knows.
    Digest {
        rooms: Vec<Digest>,
        /// Whether more digests follow.
        more: bool,
    },
    /// Asks the receiver to answer when all is stored that its sessions have said so far.
    FlushHistory { mark: u64 },
    /// Answers that: all is stored, or cannot be.
    HistoryFlushed { mark: u64 },
    /// Answers a search: whether the sender has the session.
    Found { mark: u64, here: bool },
    /// A client sends a session of the receiver messages: the lines in the text after the line, a JSON string in
    /// base64. They come after the first `sent`. The client may have said how many messages it has received.
    Post {
        room: RoomName,
        mark: u64,
        token: TokenHash,
        sent: u64,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        received: Option<u64>,
    },
    /// A client ends a session of the receiver.
    End {
        room: RoomName,
        mark: u64,
        token: TokenHash,
    },
    /// Answers the two before.
    Posted { mark: u64, outcome: PostOutcome },
}

/// What has become of a request of a client without a WebSocket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum PostOutcome {
    /// The session has taken in so many messages of the client.
    TakenIn(u64),
    /// The session is not on this node, or no longer.
    NotHere,
    /// The client uses a WebSocket, or has not resumed the session yet.
    NoStream,
    /// Too many requests of the session wait.
    Busy,
    /// A message is too long or no text, and has ended the session.
    Refused,
}

/// The value of a field that is there, also if it is `null`.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Box<RawValue>>, D::Error> {
    Box::deserialize(deserializer).map(Some)
}

/// The sessions of a node in a room whose ids are in a range, as of the message with the number `last`. The
/// ranges follow each other, and events in the room are sent between them.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct SnapshotChunk {
    pub(crate) room: RoomName,
    pub(crate) last: u64,
    /// The highest join number so far.
    pub(crate) clock: u64,
    /// The id after which the range begins; `None` for the first range.
    #[serde(default)]
    pub(crate) after: Option<SessionId>,
    /// The last id of the range; `None` for the last range.
    #[serde(default)]
    pub(crate) until: Option<SessionId>,
    pub(crate) members: Vec<SessionRecord>,
}

/// A session, as nodes describe it to each other.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct SessionRecord {
    pub(crate) id: SessionId,
    /// Its number in the order of joining. Of two sessions with the same number, the smaller id is first.
    pub(crate) joined: u64,
    /// The public data from its token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) data: Option<Box<RawValue>>,
    /// When it joined, in milliseconds since 1970.
    #[serde(default)]
    pub(crate) since: u64,
    /// How often it has migrated. If two nodes claim the session, the higher number is right.
    #[serde(default)]
    pub(crate) moves: u32,
    /// The last state that it has set, if it has set one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) state: Option<Arc<SessionState>>,
    /// The name that it claims in the room, if it claims one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) claim: Option<Box<Claim>>,
}

/// The claim of a session to a name in its room. The first that claims a name has it, and of those with its secret the
/// last.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Claim {
    pub(crate) name: Arc<str>,
    /// What proves that another session is of the same client.
    pub(crate) secret: TokenHash,
    /// When the name was first claimed by a session from which this one has taken it over, in milliseconds since 1970;
    /// its own time if there is none.
    pub(crate) first: u64,
    /// When this session claimed it, later than all claims that its node knew.
    pub(crate) time: u64,
    /// Whether all sessions with the secret have the name.
    #[serde(default)]
    pub(crate) shared: bool,
}

/// What a session says of itself.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct SessionState {
    /// How many states the session has set, with this one. Of two states of a session, the one with the higher
    /// number is the later.
    #[serde(rename = "n")]
    pub(crate) number: u64,
    /// JSON; `None` if the session has cleared its state.
    pub(crate) value: Option<Box<RawValue>>,
}

impl SessionRecord {
    /// Its approximate length on the wire, in bytes.
    pub(crate) fn len(&self) -> usize {
        let data = self.data.as_ref().map_or(0, |data| data.get().len());
        let state = self.state.as_ref().map_or(0, |state| state.len());
        let claim = self.claim.as_ref().map_or(0, |claim| 80 + claim.name.len());
        96 + data + state + claim
    }
}

#[cfg(test)]
impl SessionRecord {
    /// The first session of a room, which has not moved.
    pub(crate) fn first(id: SessionId) -> SessionRecord {
        SessionRecord {
            id,
            joined: 1,
            data: None,
            since: 0,
            moves: 0,
            state: None,
            claim: None,
        }
    }
}

impl SessionState {
    /// Its approximate length on the wire, in bytes.
    fn len(&self) -> usize {
        32 + self.value.as_ref().map_or(0, |value| value.get().len())
    }
}

/// A lookup of a session that a client wants to resume.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Want {
    pub(crate) room: RoomName,
    /// The mark by which the asking node identifies the lookup.
    pub(crate) seek: u64,
    /// The hash of the resume token: whoever listens on NATS must not learn the token.
    pub(crate) token: TokenHash,
    /// The user that the session must have, if the client has a token of its own.
    pub(crate) user: Option<String>,
    /// How many messages of the session the client has received.
    pub(crate) received: u64,
    /// For each node, the number up to which the asking node has received its messages.
    pub(crate) seen: Vec<(NodeId, u64)>,
}

/// Why a node does not hand a session over to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Answer {
    /// The session is not on this node.
    NotHere,
    /// The session is not on this node, and a client of this node looks for it at the same time.
    WantedHere,
    /// The session has just migrated from this node to another: ask again.
    AskAgain,
    /// The client of the session has reconnected once more since.
    Superseded,
}

/// A session that migrates. It comes in parts. Each part lists some of the sessions that the client knows of,
/// and has a JSON array after the line: some of the messages that the client has not received.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct SessionTransfer {
    pub(crate) room: RoomName,
    pub(crate) seek: u64,
    pub(crate) token: TokenHash,
    pub(crate) member: SessionRecord,
    /// How many messages of its client the server has processed.
    pub(crate) taken_in: u64,
    /// How many of these were binary.
    #[serde(default)]
    pub(crate) binary: u64,
    /// Its debts to the limits of messages and of bytes: the time until each is paid off, in milliseconds.
    #[serde(default)]
    pub(crate) owed: [u64; 2],
    /// The permissions of its token, if the server requires tokens.
    #[serde(rename = "permit")]
    pub(crate) permissions: Option<Permissions>,
    /// For each node, the number up to which the client was told of its messages about the room.
    pub(crate) seen: Vec<(NodeId, u64)>,
    /// For each node, the number of its last message to one session that was delivered.
    #[serde(default)]
    pub(crate) delivered: Vec<(NodeId, u64)>,
    /// Which messages to all the session has not received. Empty if the room keeps no history.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) past: Vec<(NodeId, NodePast)>,
    /// The index of this part.
    pub(crate) part: usize,
    /// Sessions that its client knows of, and sessions that joined before it.
    pub(crate) known: Vec<SessionId>,
    /// Those of them that have set a state, each with the number of the state that its client knows.
    #[serde(default)]
    pub(crate) states: Vec<(SessionId, u64)>,
    /// Whether more parts follow.
    pub(crate) more: bool,
}

/// Which messages to all of a node a session has not received, because it came later or they were lost.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NodePast {
    /// The number up to which it is known.
    pub(crate) known: u64,
    /// Ranges: the number before the first message, and that of the last.
    pub(crate) missed: Vec<(u64, u64)>,
}

/// The permissions that the token of a session grants.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Permissions {
    pub(crate) user: Option<String>,
    pub(crate) may_send: bool,
    /// In seconds since 1970.
    pub(crate) expires: u64,
}

/// A digest of the sessions of a node in a room.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Digest {
    pub(crate) room: RoomName,
    /// The number of its last message about the room.
    pub(crate) last: u64,
    /// The exclusive or of the ids of its sessions.
    pub(crate) hash: u64,
    /// The exclusive or of the hashes of their states.
    #[serde(default)]
    pub(crate) states: u64,
}

/// A message to any number of nodes.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Message {
    All(Broadcast),
    Room(RoomEvent),
    Node(Direct),
}

/// The line of a message. `T` is the message, or a reference to it.
#[derive(Debug, Serialize, Deserialize)]
struct Line<T> {
    #[serde(rename = "v")]
    version: u32,
    node: NodeId,
    #[serde(rename = "n")]
    number: u64,
    /// How many messages of clients and backends the sender has sent to the receiver alone, with this one.
    #[serde(rename = "k", default, skip_serializing_if = "Option::is_none")]
    count: Option<u64>,
    #[serde(rename = "say")]
    message: T,
}

/// A message as it was received.
#[derive(Debug)]
pub(crate) struct Envelope<'a> {
    pub(crate) node: NodeId,
    /// Its number, which is higher than that of everything its node has sent or received before.
    pub(crate) number: u64,
    /// How many messages of clients and backends its node has sent to this one alone, with this one; `None`
    /// for other messages.
    pub(crate) count: Option<u64>,
    pub(crate) message: Message,
    /// The text after the line.
    pub(crate) text: &'a str,
    /// The length of line and text.
    pub(crate) bytes: usize,
}

/// Encodes a message.
pub(crate) fn encode(
    node: NodeId,
    number: u64,
    count: Option<u64>,
    message: &Message,
    text: &[u8],
) -> Vec<u8> {
    let line = Line {
        version: VERSION,
        node,
        number,
        count,
        message,
    };
    let mut bytes = Vec::with_capacity(256 + text.len());
    serde_json::to_writer(&mut bytes, &line)
        .expect("strings and checked JSON always serialize, and a Vec takes every write");
    bytes.push(b'\n');
    bytes.extend_from_slice(text);
    bytes
}

/// Decodes a message.
///
/// # Errors
///
/// Bytes that are no message, a message that exceeds a bound, or one of an unknown kind. The reason never
/// quotes the message.
pub(crate) fn decode(bytes: &[u8]) -> Result<Envelope<'_>, String> {
    let text = str::from_utf8(bytes).map_err(|_| "not UTF-8")?;
    // The line ends where its JSON ends: the public data of a session may contain line breaks.
    let mut lines = serde_json::Deserializer::from_str(text).into_iter::<Line<Message>>();
    let line = lines
        .next()
        .ok_or("no JSON")?
        // The message of the error may quote the input, which logs must not show.
        .map_err(|error| format!("{:?} error in column {}", error.classify(), error.column()))?;
    let text = text[lines.byte_offset()..]
        .strip_prefix('\n')
        .ok_or("no line break after the JSON")?;
    if line.version == 0 || line.number > MAX_NUMBER {
        return Err(format!("version {}, number {}", line.version, line.number));
    }
    let length = match &line.message {
        Message::All(Broadcast::Alive { heard, keys }) => heard.len().max(keys.len()),
        Message::Node(Direct::Ask(rooms) | Direct::Absent(rooms)) => rooms.len(),
        Message::Node(Direct::Digest { rooms, .. }) => rooms.len(),
        Message::All(Broadcast::Want(want)) => want.seen.len(),
        Message::Node(Direct::Handed(handed)) => {
            let lists = handed.seen.len().max(handed.delivered.len());
            lists.max(handed.past.len())
        }
        Message::Node(Direct::Done { seen, .. }) => seen.len(),
        _ => 0,
    };
    let ids = match &line.message {
        Message::Node(Direct::Handed(handed)) => {
            let missed = handed.past.iter().map(|(_, past)| past.missed.len());
            handed
                .known
                .len()
                .max(handed.states.len())
                .max(missed.sum())
        }
        _ => 0,
    };
    if length > MAX_ROOMS || ids > MAX_IDS {
        return Err(format!("a list of {} items", length.max(ids)));
    }
    let carries_text = matches!(
        line.message,
        Message::Room(RoomEvent {
            what: Event::Broadcast(_),
            ..
        }) | Message::Node(
            Direct::Unicast { .. }
                | Direct::Forward { .. }
                | Direct::Handed(_)
                | Direct::Post { .. }
        )
    );
    if carries_text == text.is_empty() {
        return Err(
            "a text after a line that has none, or no text after a line that has one".into(),
        );
    }
    if carries_text && serde_json::from_str::<&RawValue>(text).is_err() {
        return Err("a text that is not JSON".into());
    }
    Ok(Envelope {
        node: line.node,
        number: line.number,
        count: line.count,
        message: line.message,
        text,
        bytes: bytes.len(),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn node() -> NodeId {
        "00000000000000ff".parse().unwrap()
    }

    fn room(name: &str) -> RoomName {
        RoomName::from_segment(name).unwrap()
    }

    fn member(data: Option<&str>) -> SessionRecord {
        SessionRecord {
            id: SessionId::random(),
            joined: 7,
            data: data.map(|data| RawValue::from_string(data.into()).unwrap()),
            since: 1,
            moves: 0,
            state: None,
            claim: None,
        }
    }

    #[test]
    fn a_message_is_decoded_as_it_was_encoded() {
        let exact = "{\"user\":\"a\",\n\"info\":\n1.0}";
        let session = member(Some(exact));
        let join = Message::Room(RoomEvent {
            room: room("a%22b.%3E%F0%9F%8D%B5"),
            after: 41,
            what: Event::Join(session.clone()),
        });
        let bytes = encode(node(), 42, None, &join, b"");
        let envelope = decode(&bytes).unwrap();
        let Envelope { number, text, .. } = envelope;
        assert_eq!((envelope.node, number, text), (node(), 42, ""));
        let Message::Room(RoomEvent {
            room: name,
            after,
            what: Event::Join(heard),
        }) = envelope.message
        else {
            panic!("another message")
        };
        assert_eq!((name.as_str(), after), ("a\"b.>🍵", 41));
        assert_eq!((heard.id, heard.joined), (session.id, session.joined));
        assert_eq!(heard.data.unwrap().get(), exact);

        // A client's message may contain line breaks.
        let text = "{\"type\":\"x\",\n\"data\":\n1}";
        let unicast = Message::Node(Direct::Unicast {
            room: room("tea"),
            sender: None,
            receiver: session.id,
            reference: None,
        });
        let bytes = encode(node(), 43, Some(1), &unicast, text.as_bytes());
        assert_eq!(decode(&bytes).unwrap().text, text);
    }

    #[test]
    fn a_reference_of_null_is_not_the_same_as_none() {
        for json in [None, Some("null"), Some("\"a\"")] {
            let reference = json.map(|json| RawValue::from_string(json.into()).unwrap());
            let undelivered = Message::Node(Direct::Undelivered {
                room: room("tea"),
                sender: SessionId::random(),
                receiver: SessionId::random(),
                reference,
            });
            let bytes = encode(node(), 1, None, &undelivered, b"");
            let Message::Node(Direct::Undelivered {
                reference: decoded, ..
            }) = decode(&bytes).unwrap().message
            else {
                panic!("another message")
            };
            assert_eq!(decoded.as_deref().map(RawValue::get), json);
        }
    }

    #[test]
    fn a_newer_version_may_add_fields() {
        let line = json!({"v": 9, "node": "00000000000000ff", "n": 1, "new": [], "say":
            {"all": {"alive": {"heard": [], "keys": [], "load": 0.5}}}});
        assert!(decode(format!("{line}\n").as_bytes()).is_ok());
        // An unknown message is ignored by the caller.
        let line = json!({"v": 9, "node": "00000000000000ff", "n": 1, "say": {"all": {"sing": 1}}});
        assert!(decode(format!("{line}\n").as_bytes()).is_err());
    }

    #[test]
    fn an_invalid_message_is_not_decoded() {
        let line = |number: u64, say: serde_json::Value| {
            json!({"v": 2, "node": "00000000000000ff", "n": number, "say": say}).to_string()
        };
        let alive = |count| json!({"all": {"alive": {"heard": vec!["00000000000000ff"; count], "keys": []}}});
        let enter = |room: &str| json!({"all": {"enter": {"room": room}}});
        let broadcast = json!({"room": {"room": "a", "after": 1, "what": {"broadcast": null}}});
        assert!(decode(format!("{}\n", line(1, alive(MAX_ROOMS))).as_bytes()).is_ok());
        assert!(decode(format!("{}\n{{}}", line(1, broadcast.clone())).as_bytes()).is_ok());
        for bytes in [
            line(1, alive(1)),
            format!("{}\n", line(MAX_NUMBER + 1, alive(1))),
            format!("{}\n", line(1, alive(MAX_ROOMS + 1))),
            format!("{}\n{{}}", line(1, alive(1))),
            format!("{}\n", line(1, broadcast)),
            format!("{}\n", line(1, enter(""))),
            format!("{}\n", line(1, enter(&"a".repeat(129)))),
            format!("{}\n", line(1, enter("a\tb"))),
        ] {
            assert!(decode(bytes.as_bytes()).is_err(), "{bytes}");
        }
        assert!(decode(b"\xff\n").is_err());
        for id in [
            "ff",
            "00000000000000FG",
            "+0000000000000ff",
            "000000000000000ff",
        ] {
            assert!(id.parse::<NodeId>().is_err(), "{id}");
        }
    }
}
