//! What nodes say to each other: versioned, bounded, checked. No I/O.
//!
//! A message is a line of JSON and, where it carries what a client or a backend wrote, that text
//! behind the line. A node ignores what it does not know, be it a field or a whole message, so that
//! nodes of different versions can stand beside each other during an upgrade: from version 2 on, what must
//! be understood by all is never changed, only added to.

use std::{
    fmt::{self, Display},
    str::{self, FromStr},
};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};
use serde_json::value::RawValue;

use crate::protocol::{RoomName, SessionId, TokenHash, TokenKey};

/// The version of this format.
const VERSION: u32 = 2;

/// The greatest number a message can have: the greatest that JSON is sure to keep (RFC 8259, section
/// 6).
pub(crate) const MAX_NUMBER: u64 = (1 << 53) - 1;

/// How many rooms stand in one message at the most.
pub(crate) const MAX_ROOMS: usize = 512;

/// How many nodes stand in one message at the most, and how many there may be.
pub(crate) const MAX_NODES: usize = 256;

/// How many ids stand in one message at the most.
pub(crate) const MAX_IDS: usize = 4096;

/// How many bytes of sessions, or of their messages, stand in one message, unless a single one has
/// more.
pub(crate) const PART_BYTES: usize = 256 << 10;

/// How long so many ids are in JSON, in bytes.
pub(super) const IDS_BYTES: usize = MAX_IDS * 39;

/// What else there is in a line, at the most: the nodes of a whole cluster, each with a number.
pub(super) const LINE_BYTES: usize = 64 << 10;

/// A run of a server: 64 random bits, 16 hexadecimal digits on the wire. Who is started again is
/// another node.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct NodeId(u64);

impl NodeId {
    pub(crate) fn random() -> NodeId {
        let mut bits = [0; 8];
        getrandom::fill(&mut bits).expect("the operating system has random bits");
        NodeId(u64::from_be_bytes(bits))
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
            _ => Err("a node has 16 hexadecimal digits"),
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

/// What is said to every node.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Broadcast {
    /// I am here, and I hear these.
    Alive {
        heard: Vec<NodeId>,
        /// The keys by which tokens of sessions are told from made-up ones: mine, and others that I
        /// know.
        #[serde(default)]
        keys: Vec<TokenKey>,
    },
    /// I am about to stop: do not wait for me.
    Bye,
    /// I am in this room from now on, without anybody yet; who else is?
    Enter { room: RoomName },
    /// A client of mine wants to go on with a session that is not here.
    Want(Want),
}

/// What is said to every node that is in a room: what happens there, in an unbroken row.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct RoomEvent {
    pub(crate) room: RoomName,
    /// The number of what this node said of the room before.
    pub(crate) after: u64,
    pub(crate) what: Event,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Event {
    /// A session has come.
    Join(SessionRecord),
    /// A session has gone.
    Leave(SessionId),
    /// A session of the node `from` is here now.
    Arrive { member: SessionRecord, from: NodeId },
    /// A session, or a backend in the server's name, says what stands behind the line, to all.
    Broadcast(Option<SessionId>),
    /// I am no longer in this room.
    Exit,
}

/// What is said to one node.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Direct {
    /// Who of yours is in these rooms?
    Ask(Vec<RoomName>),
    /// These are mine, or some of them.
    Members(SnapshotChunk),
    /// I am in none of these.
    Absent(Vec<RoomName>),
    /// I have taken in what you said of this room, up to this number.
    Seen { room: RoomName, number: u64 },
    /// I have taken in all that you said, up to this number.
    Taken { number: u64 },
    /// A session, or a backend in the server's name, says what stands behind the line, to one of
    /// yours.
    Unicast {
        room: RoomName,
        sender: Option<SessionId>,
        receiver: SessionId,
        /// The client's mark for it.
        #[serde(rename = "ref", default, skip_serializing_if = "Option::is_none")]
        reference: Option<Box<RawValue>>,
    },
    /// What a session of yours wrote to one of mine has not reached it: it is not here any longer.
    Undelivered {
        room: RoomName,
        sender: SessionId,
        receiver: SessionId,
        #[serde(rename = "ref", default, skip_serializing_if = "Option::is_none")]
        reference: Option<Box<RawValue>>,
    },
    /// An operator closes one of yours.
    Expel { room: RoomName, id: SessionId },
    /// What has come of your search for a session, where that is not the session.
    Answer {
        room: RoomName,
        seek: u64,
        answer: Answer,
    },
    /// I have the session that you want; do you still?
    Offer {
        room: RoomName,
        seek: u64,
        token: TokenHash,
    },
    /// I do, and wait for it; or I do no longer.
    Accept {
        room: RoomName,
        seek: u64,
        accepted: bool,
    },
    /// This is the session that you want, or a part of it.
    Handed(Box<SessionTransfer>),
    /// I shall send what is for this session to the node where it is now, and no longer to you.
    Turned { room: RoomName, id: SessionId },
    /// What stands behind the line is for a session that is yours now; it was said under this number
    /// by this node.
    Forward {
        room: RoomName,
        seek: u64,
        source: NodeId,
        number: u64,
        sender: Option<SessionId>,
        receiver: SessionId,
        #[serde(rename = "ref", default, skip_serializing_if = "Option::is_none")]
        reference: Option<Box<RawValue>>,
    },
    /// Nothing more is forwarded to you.
    Done { room: RoomName, seek: u64 },
    /// Where you should be with what I have said of the rooms that we are both in.
    Digest {
        rooms: Vec<Digest>,
        /// Whether there are more.
        more: bool,
    },
}

/// Some of the sessions of a node in a room, after it has said what has the number `last`: all whose
/// ids are in a range. The ranges follow each other, and what happens in the room is told between them.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct SnapshotChunk {
    pub(crate) room: RoomName,
    pub(crate) last: u64,
    /// The highest number of joining there has been.
    pub(crate) clock: u64,
    /// The id behind which the range begins; `None` for the first.
    #[serde(default)]
    pub(crate) after: Option<SessionId>,
    /// The last id that is in it; `None` if it is the last range.
    #[serde(default)]
    pub(crate) until: Option<SessionId>,
    pub(crate) members: Vec<SessionRecord>,
}

/// A session.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct SessionRecord {
    pub(crate) id: SessionId,
    /// Its number in the order of joining; of two that have the same, the smaller id was first.
    pub(crate) joined: u64,
    /// What its token says of it publicly.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) data: Option<Box<RawValue>>,
    /// When it joined, in milliseconds since 1970.
    #[serde(default)]
    pub(crate) since: u64,
    /// How many nodes it has left behind: of two that say it is theirs, the one that says more is right.
    #[serde(default)]
    pub(crate) moves: u32,
}

impl SessionRecord {
    /// About how long it is on the wire, in bytes.
    pub(crate) fn len(&self) -> usize {
        96 + self.data.as_ref().map_or(0, |data| data.get().len())
    }
}

/// Which session a client wants to go on with.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Want {
    pub(crate) room: RoomName,
    /// The asking node's mark for this.
    pub(crate) seek: u64,
    /// What is made of the token: who listens shall not learn that.
    pub(crate) token: TokenHash,
    /// Whose the session must be, if that is known.
    pub(crate) user: Option<String>,
    /// How many of its messages the client has got.
    pub(crate) received: u64,
    /// Up to where the asking node has heard each node.
    pub(crate) seen: Vec<(NodeId, u64)>,
}

/// Why a node does not hand a session over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Answer {
    /// I have not got it.
    NotHere,
    /// I have not got it, but a client of mine wants it, too.
    WantedHere,
    /// It has just gone from here to another node: ask again.
    AskAgain,
    /// Its client has come back once more since.
    Superseded,
}

/// A session that is handed over. It comes in parts, each with some of those it knows of and, behind the
/// line, some of the messages that its client has not got: a JSON array.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct SessionTransfer {
    pub(crate) room: RoomName,
    pub(crate) seek: u64,
    pub(crate) token: TokenHash,
    pub(crate) member: SessionRecord,
    /// How many of its client's messages have been taken in.
    pub(crate) taken_in: u64,
    /// What it owes to its rates of messages and of bytes: how long they take to be paid, in
    /// milliseconds.
    #[serde(default)]
    pub(crate) owed: [u64; 2],
    /// What its token allows, if one was asked for.
    #[serde(rename = "permit")]
    pub(crate) permissions: Option<Permissions>,
    /// What it has been told by each node: all up to these numbers.
    pub(crate) seen: Vec<(NodeId, u64)>,
    /// How many parts there are before this.
    pub(crate) part: usize,
    /// Whom it was told of, and who was there before it.
    pub(crate) known: Vec<SessionId>,
    /// Whether there are more parts.
    pub(crate) more: bool,
}

/// What a session is allowed by its token.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Permissions {
    pub(crate) user: Option<String>,
    pub(crate) may_send: bool,
    /// In seconds since 1970.
    pub(crate) expires: u64,
}

/// What a node holds of a room.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Digest {
    pub(crate) room: RoomName,
    /// The number of what it last said of it.
    pub(crate) last: u64,
    /// The ids of its sessions, folded by exclusive or.
    pub(crate) hash: u64,
}

/// A message, whoever it is for.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Message {
    All(Broadcast),
    Room(RoomEvent),
    Node(Direct),
}

/// The line of a message.
#[derive(Debug, Serialize, Deserialize)]
struct Line<T> {
    #[serde(rename = "v")]
    version: u32,
    node: NodeId,
    #[serde(rename = "n")]
    number: u64,
    /// How many messages of clients and backends there have been for the node that it is said to, with
    /// this one.
    #[serde(rename = "k", default, skip_serializing_if = "Option::is_none")]
    count: Option<u64>,
    say: T,
}

/// A message as it was heard.
#[derive(Debug)]
pub(crate) struct Envelope<'a> {
    pub(crate) node: NodeId,
    /// Its number: greater than that of everything its node has heard or said before.
    pub(crate) number: u64,
    /// How many messages of clients and backends it has sent to this node alone, if this is one.
    pub(crate) count: Option<u64>,
    pub(crate) say: Message,
    /// What stands behind the line.
    pub(crate) text: &'a str,
    /// How long all of it is.
    pub(crate) bytes: usize,
}

/// Writes a message.
pub(crate) fn encode(
    node: NodeId,
    number: u64,
    count: Option<u64>,
    say: &Message,
    text: &[u8],
) -> Vec<u8> {
    let line = Line {
        version: VERSION,
        node,
        number,
        count,
        say,
    };
    let mut bytes = Vec::with_capacity(256 + text.len());
    serde_json::to_writer(&mut bytes, &line)
        .expect("strings and checked JSON always serialize, and a Vec takes every write");
    bytes.push(b'\n');
    bytes.extend_from_slice(text);
    bytes
}

/// Reads a message.
///
/// # Errors
///
/// What is wrong with it: it is none, it is over a bound, or it is of a kind that is not known here.
pub(crate) fn decode(bytes: &[u8]) -> Result<Envelope<'_>, String> {
    let text = str::from_utf8(bytes).map_err(|_| "not UTF-8")?;
    // What a token says of somebody may have lines of its own.
    let mut lines = serde_json::Deserializer::from_str(text).into_iter::<Line<Message>>();
    let line = lines
        .next()
        .ok_or("nothing")?
        // What serde says of it may quote it.
        .map_err(|error| format!("{:?} error in column {}", error.classify(), error.column()))?;
    let text = text[lines.byte_offset()..]
        .strip_prefix('\n')
        .ok_or("no end of the line")?;
    if line.version == 0 || line.number > MAX_NUMBER {
        return Err(format!("version {}, number {}", line.version, line.number));
    }
    let length = match &line.say {
        Message::All(Broadcast::Alive { heard, keys }) => heard.len().max(keys.len()),
        Message::Node(Direct::Ask(rooms) | Direct::Absent(rooms)) => rooms.len(),
        Message::Node(Direct::Digest { rooms, .. }) => rooms.len(),
        Message::All(Broadcast::Want(want)) => want.seen.len(),
        Message::Node(Direct::Handed(handed)) => handed.seen.len(),
        _ => 0,
    };
    let ids = match &line.say {
        Message::Node(Direct::Handed(handed)) => handed.known.len(),
        _ => 0,
    };
    if length > MAX_ROOMS || ids > MAX_IDS {
        return Err(format!("a list of {length}"));
    }
    let carries_text = matches!(
        line.say,
        Message::Room(RoomEvent {
            what: Event::Broadcast(_),
            ..
        }) | Message::Node(Direct::Unicast { .. } | Direct::Forward { .. } | Direct::Handed(_))
    );
    if carries_text == text.is_empty() {
        return Err("a text where none belongs, or none where one does".into());
    }
    if carries_text && serde_json::from_str::<&RawValue>(text).is_err() {
        return Err("a text that is not JSON".into());
    }
    Ok(Envelope {
        node: line.node,
        number: line.number,
        count: line.count,
        say: line.say,
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
        }
    }

    #[test]
    fn what_is_said_is_heard() {
        let exact = "{\"user\":\"a\",\n\"info\":\n1.0}";
        let said = member(Some(exact));
        let join = Message::Room(RoomEvent {
            room: room("a%22b.%3E%F0%9F%8D%B5"),
            after: 41,
            what: Event::Join(said.clone()),
        });
        let bytes = encode(node(), 42, None, &join, b"");
        let heard = decode(&bytes).unwrap();
        assert_eq!((heard.node, heard.number, heard.text), (node(), 42, ""));
        let Message::Room(RoomEvent {
            room: name,
            after,
            what: Event::Join(heard),
        }) = heard.say
        else {
            panic!("something else")
        };
        assert_eq!((name.as_str(), after), ("a\"b.>🍵", 41));
        assert_eq!((heard.id, heard.joined), (said.id, said.joined));
        assert_eq!(heard.data.unwrap().get(), exact);

        // A client's message may have lines of its own.
        let text = "{\"type\":\"x\",\n\"data\":\n1}";
        let unicast = Message::Node(Direct::Unicast {
            room: room("tea"),
            sender: None,
            receiver: said.id,
            reference: None,
        });
        let bytes = encode(node(), 43, Some(1), &unicast, text.as_bytes());
        assert_eq!(decode(&bytes).unwrap().text, text);
    }

    #[test]
    fn a_newer_version_may_add_fields() {
        let line = json!({"v": 9, "node": "00000000000000ff", "n": 1, "new": [], "say":
            {"all": {"alive": {"heard": [], "keys": [], "load": 0.5}}}});
        assert!(decode(format!("{line}\n").as_bytes()).is_ok());
        // What it adds besides is left alone.
        let line = json!({"v": 9, "node": "00000000000000ff", "n": 1, "say": {"all": {"sing": 1}}});
        assert!(decode(format!("{line}\n").as_bytes()).is_err());
    }

    #[test]
    fn what_breaks_a_rule_is_refused() {
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
