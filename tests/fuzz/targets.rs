//! The fuzz targets that need the internals of the crate. This file is a module of the crate in the builds of
//! cargo-fuzz, which pass `--cfg fuzzing`. Each target takes any bytes, and panics where the crate breaks a
//! promise.

use std::{
    ops::ControlFlow,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use futures_util::FutureExt;
use serde::Deserialize;
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};
use tokio_util::{either::Either, task::TaskTracker};

use crate::{
    cluster::{Broadcast, Envelope, Message, NodeId, TestLink, decode, encode},
    config::{Dialect, Limits},
    dialects::{self, Author, Command},
    event_stream::{Inlet, Posted},
    outbox::{FlushSet, Outbox, detached_outbox, outbox},
    protocol::{self, BinaryMessage, Receiver, RoomName, SessionId},
    rooms::{JoinGuard, Replies, Rooms, SessionInfo},
    state::{SavedSession, decode_sessions, encode_sessions},
    transport::Writer,
    turn::FuzzedServer,
    websocket::{Event, ReadControl},
};

/// The separator of the messages in one input: a byte that JSON does not contain unescaped.
const SEPARATOR: u8 = 0x1e;

/// The most nodes that an input can have.
const MAX_NODES: usize = 4;

/// The capacity of an outbox, in bytes.
const OUTBOX_BYTES: usize = 1 << 20;

/// The sessions of this node, which an input can name, and their rooms.
const SESSIONS: [(&str, &str); 3] = [
    ("00000000-0000-4000-8000-000000000001", "a"),
    ("00000000-0000-4000-8000-000000000002", "a"),
    ("00000000-0000-4000-8000-000000000003", "b"),
];

/// A client's message is relayed as JSON of four fields, with `type` and `data` as the client wrote them, or is
/// rejected with a reason.
pub fn client_messages(input: &[u8]) {
    #[derive(Deserialize)]
    struct Written<'a> {
        r#type: String,
        receiver: String,
        #[serde(borrow)]
        data: Option<&'a RawValue>,
    }
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Relayed<'a> {
        r#type: String,
        sender: String,
        receiver: String,
        #[serde(borrow)]
        data: &'a RawValue,
    }
    #[derive(Deserialize)]
    struct Error {
        data: Reason,
    }
    #[derive(Deserialize)]
    struct Reason {
        code: String,
        message: String,
    }
    let [(id, _), ..] = SESSIONS;
    let sender = SessionId::parse(id).unwrap();
    posted_lines(input);
    if let Ok(message) = BinaryMessage::parse(input) {
        let relayed = message.relayed(sender);
        assert_eq!(relayed.payload()[16..], input[16..]);
        let json = protocol::to_json(&relayed);
        let again = protocol::from_json(str::from_utf8(&json).unwrap());
        assert_eq!(again.bytes(), relayed.bytes());
    }
    let Ok(text) = str::from_utf8(input) else {
        return;
    };
    match protocol::parse(text) {
        Ok(message) => {
            let written: Written<'_> = serde_json::from_str(text).unwrap();
            // Nothing is relayed to a receiver that cannot exist.
            if !matches!(message.receiver, Receiver::Unknown(_)) {
                let frame = protocol::relayed(&message, sender);
                let relayed: Relayed<'_> = serde_json::from_slice(frame.payload()).unwrap();
                assert_eq!(relayed.r#type, written.r#type);
                assert_eq!(
                    (&*relayed.sender, &relayed.receiver),
                    (id, &written.receiver)
                );
                assert_eq!(
                    relayed.data.get(),
                    written.data.map_or("null", RawValue::get)
                );
            }
            match message.receiver {
                Receiver::All => assert_eq!(written.receiver, "all"),
                Receiver::Server => assert_eq!(written.receiver, "server"),
                Receiver::Session(id) => assert_eq!(written.receiver, id.to_string()),
                Receiver::User(name) => assert_eq!(written.receiver, format!("user:{name}")),
                Receiver::Unknown(name) => assert_eq!(written.receiver, name),
            }
        }
        Err(invalid) => {
            let frame = protocol::error(sender, &invalid.problem, invalid.reference);
            let error: Error = serde_json::from_slice(frame.payload()).unwrap();
            assert_eq!(error.data.code, "bad_message");
            assert!(!error.data.message.is_empty());
        }
    }
    for dialect in Dialect::ALL {
        other_clients(dialect, sender, text);
    }
}

/// Every line that a client posts is taken in once, up to the first that breaks a rule.
fn posted_lines(input: &[u8]) {
    let inlet = Inlet::new(usize::MAX, 0);
    let mut taken = 0;
    for _ in 0..2 {
        let lines = input.to_vec().into();
        let Posted::Waits(_answer) = inlet.post(0, None, lines) else {
            panic!("an inlet takes a request");
        };
        let mut cx = Context::from_waker(Waker::noop());
        while let Poll::Ready(Ok(_)) = inlet.poll_read(&mut cx, |event| {
            // A fragment stands for a line that was taken in before.
            taken += usize::from(!matches!(event, Event::Fragment));
            ControlFlow::<(), _>::Continue(ReadControl::Continue)
        }) {}
    }
    let lines = input.split(|byte| *byte == b'\n');
    let lines = lines.filter(|line| !line.trim_ascii().is_empty());
    let valid = lines.take_while(|line| str::from_utf8(line).is_ok());
    assert_eq!((taken, inlet.taken_in()), (valid.count(), taken as u64));
}

/// A message of another client is relayed as JSON, or is rejected with a reason.
fn other_clients(dialect: Dialect, id: SessionId, text: &str) {
    let format = dialects::of(Some(dialect));
    let author = Author {
        id,
        name: Some("ann"),
    };
    match format.read(author, text) {
        Ok(
            Command::Send { frame, .. } | Command::SendToName { frame, .. } | Command::Reply(frame),
        ) => {
            let _: &RawValue = serde_json::from_slice(frame.payload()).unwrap();
        }
        Ok(Command::Publish(publication)) => {
            let frame = publication.frame(7);
            let _: &RawValue = serde_json::from_slice(frame.payload()).unwrap();
        }
        Ok(Command::Subscribe(rooms) | Command::Unsubscribe(rooms)) => {
            assert!(rooms.iter().all(|room| room.dialect().is_some()));
        }
        Ok(Command::Request(_)) => panic!("only the protocol has requests"),
        Ok(Command::Ignore) => {}
        Err(invalid) => assert!(!invalid.problem.message.is_empty()),
    }
}

/// A sessions file is refused, or read, written and read again without a change, and its sessions return to
/// their rooms. The checksum of the input is added: otherwise no change of a valid file would get any further.
pub fn sessions_file(input: &[u8]) {
    let window = Duration::MAX;
    let read = |file: &[u8]| decode_sessions(file, 0, window);
    let _ = read(input);
    let sum = URL_SAFE_NO_PAD.encode(Sha256::digest(input));
    let Ok(sessions) = read(&[input, format!("\n{sum}\n").as_bytes()].concat()) else {
        return;
    };
    let write = |sessions: &[SavedSession]| {
        let mut file = Vec::new();
        encode_sessions(&mut file, 0, sessions).unwrap();
        file
    };
    let file = write(&sessions);
    assert!(file == write(&read(&file).unwrap()));
    let rooms = Rooms::empty(None);
    let restored = sessions.into_iter().map(|session| {
        let (sender, outbox) = detached_outbox(OUTBOX_BYTES, session.sent, session.missed);
        let first = session.first_number;
        let guard = rooms.restore(&session.room, session.member, first, sender);
        (guard, outbox)
    });
    let mut restored: Vec<_> = restored.collect();
    for session in SESSIONS {
        if !restored
            .iter()
            .any(|(guard, _)| guard.id().to_string() == session.0)
        {
            restored.push(join(&rooms, session));
        }
    }
    for (guard, _) in restored {
        let (room, id) = (guard.room().clone(), guard.id());
        guard.with_peers(|peers| assert!(peers.iter().all(|peer| peer.id != id)));
        let record = guard.into_record();
        assert!(record.id == id && !room.as_str().is_empty());
    }
    assert_eq!(rooms.len(), 0);
}

/// Messages of other nodes are decoded, encoded and decoded again without a change, and applied to rooms. When
/// those nodes are down, nothing of them is left.
pub fn node_messages(input: &[u8]) {
    let link = TestLink::open();
    let rooms = Rooms::empty(Some(link.outbound.clone()));
    let mut sessions: Vec<_> = SESSIONS.iter().map(|it| join(&rooms, *it)).collect();
    let mut nodes: Vec<NodeId> = Vec::new();
    for item in input.split(|byte| *byte == SEPARATOR) {
        let mut replies = Replies::default();
        let mut flush_set = FlushSet::default();
        match item {
            b"ask" => rooms.ask_again(),
            b"digest" => rooms.send_digests(),
            b"down" => {
                if let Some(node) = nodes.pop() {
                    lose(&rooms, node);
                }
            }
            b"leave" => {
                // It comes back at once.
                let left = sessions.remove(0);
                let (id, room) = (left.0.id().to_string(), left.0.room().as_str().to_owned());
                drop(left);
                sessions.push(join(&rooms, (&id, &room)));
            }
            bytes => {
                let Ok(envelope) = decode(bytes) else {
                    continue;
                };
                check_encoding(&envelope);
                let node = envelope.node;
                if !nodes.contains(&node) {
                    if nodes.len() == MAX_NODES || node == link.node {
                        continue;
                    }
                    nodes.push(node);
                    let outbound = link.outbound.clone();
                    link.node_up(&TestLink { node, outbound });
                    rooms.node_up(node);
                }
                apply(&rooms, envelope, &mut replies, &mut flush_set);
            }
        }
        rooms.send_chunks();
        replies.send(&link.outbound);
        flush_set.flush(&TaskTracker::new());
    }
    nodes.into_iter().for_each(|node| lose(&rooms, node));
    for (name, count) in [("a", 2), ("b", 1)] {
        let query = rooms.query(&room(name), Duration::ZERO).now_or_never();
        assert_eq!(query.unwrap().map_or(0, |sessions| sessions.len()), count);
    }
    drop(sessions);
    assert_eq!((rooms.len(), rooms.session_count()), (0, 0));
}

/// Removes a node with its sessions.
fn lose(rooms: &Rooms, node: NodeId) {
    let mut lost = rooms.node_down(node);
    while lost.remove_sessions(&mut FlushSet::default()) {}
}

/// A session in its room. Its connection accepts everything.
fn join(rooms: &Arc<Rooms>, (id, name): (&str, &str)) -> (JoinGuard, Outbox) {
    let writer = Writer::new(Either::Right(Box::new(tokio::io::sink())), Arc::default());
    let (sender, outbox) = outbox(OUTBOX_BYTES, writer);
    let reservation = rooms.reserve(&room(name)).ok().unwrap();
    let id = SessionId::parse(id).unwrap();
    let guard = reservation.join(id, sender, SessionInfo::new(None, None));
    (guard, outbox)
}

fn room(name: &str) -> RoomName {
    RoomName::from_segment(name).ok().unwrap()
}

/// Asserts that encoding and decoding do not change a message.
fn check_encoding(envelope: &Envelope<'_>) {
    let Envelope {
        node,
        number,
        count,
        message,
        text,
        ..
    } = envelope;
    let bytes = encode(*node, *number, *count, message, text.as_bytes());
    let again = decode(&bytes).unwrap();
    assert_eq!(
        (again.node, again.number, again.count),
        (*node, *number, *count)
    );
    assert_eq!(format!("{:?}", again.message), format!("{message:?}"));
    assert_eq!(again.text, *text);
}

fn apply(rooms: &Rooms, envelope: Envelope<'_>, replies: &mut Replies, flush_set: &mut FlushSet) {
    let (node, number, text) = (envelope.node, envelope.number, envelope.text);
    match envelope.message {
        Message::All(Broadcast::Enter { room }) => {
            rooms.apply_enter(node, number, room, replies, flush_set);
        }
        Message::Room(event) => rooms.apply_event(node, number, event, text, replies, flush_set),
        Message::Node(direct) => rooms.apply_direct(node, number, direct, text, replies, flush_set),
        Message::All(_) => {}
    }
}

/// Whatever the client of a TURN server sends, each request gets one answer at most, which is no longer than what was
/// sent and a fixed number of bytes. The input is a sequence of a byte, a length, and so many bytes: a datagram if the
/// byte is 255, or else the attributes of a request with credentials, whose method is the byte.
pub fn turn_messages(input: &[u8]) {
    /// The most bytes by which an answer is longer: the realm, a nonce, and the code and its reason.
    const MOST_ADDED: usize = 160;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let _entered = runtime.enter();
    let mut server = FuzzedServer::new();
    let mut rest = input;
    while let [kind, length, bytes @ ..] = rest {
        let (payload, next) = bytes.split_at(bytes.len().min(usize::from(*length)));
        let mut datagram = match kind {
            255 => payload.to_vec(),
            method => server.request(u16::from(*method), payload),
        };
        let sent = datagram.len();
        let answers = server.receive(&mut datagram);
        assert!(answers.len() <= 1);
        for answer in answers {
            assert!(
                answer.len() <= sent + MOST_ADDED,
                "{} of {sent}",
                answer.len()
            );
            stun_types::message::Message::from_bytes(&answer).unwrap();
        }
        rest = next;
    }
}
