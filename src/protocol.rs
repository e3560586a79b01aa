//! The whole wire format: ids and names, what clients may write, what the server answers, and the
//! codes of both. No I/O.

use std::{
    borrow::Cow,
    fmt::{self, Display},
    hash::{Hash, Hasher},
    num::NonZeroU32,
    str,
    sync::Arc,
};

use aws_lc_rs::{
    constant_time::verify_slices_are_equal,
    digest::{SHA256, digest},
    hmac,
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use nohash_hasher::IsEnabled;
use percent_encoding::percent_decode;
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{Error, MapAccess, Visitor},
};
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::{
    escape::Escaped,
    secret::{Secret, expose_to_client},
    websocket::Frame,
};

/// The subprotocol a client gets if it offers it.
pub(crate) const SUBPROTOCOL: &str = "anteroom.v1";

/// The name of the room that `/room` without a name leads to.
const DEFAULT_ROOM: &str = "lobby";

/// The longest room name, in bytes after percent-decoding.
const MAX_ROOM_NAME: usize = 128;

/// The longest `type`, in bytes.
const MAX_TYPE: usize = 64;

/// The longest `ref` that is a string, in bytes.
const MAX_REF: usize = 64;

/// The most digits of a `ref` that is an integer: those of the largest number of 64 bits.
const MAX_REF_DIGITS: usize = 20;

/// How much of a client's own words an error message repeats, in bytes.
const MAX_QUOTE: usize = 64;

/// The name of a session in its room, on the wire a lower-case hyphenated UUID (RFC 9562, version
/// 4: 122 random bits).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct SessionId(Uuid);

impl SessionId {
    pub(crate) fn random() -> SessionId {
        SessionId(Uuid::new_v4())
    }

    /// The id that is written so and not otherwise: 36 characters, lower case.
    pub(crate) fn parse(text: &str) -> Option<SessionId> {
        let canonical = text.len() == 36 && !text.bytes().any(|byte| byte.is_ascii_uppercase());
        Uuid::try_parse(text)
            .ok()
            .filter(|_| canonical)
            .map(SessionId)
    }

    /// The id as it is written.
    fn encode(self, buffer: &mut [u8]) -> &str {
        self.0.as_hyphenated().encode_lower(buffer)
    }

    /// The id's bits, evenly spread.
    pub(crate) fn bits(self) -> u128 {
        self.0.as_u128()
    }
}

/// Ids are random, and only the server makes them: their bits need no hashing.
impl Hash for SessionId {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let (high, low) = self.0.as_u64_pair();
        state.write_u64(high ^ low);
    }
}

impl IsEnabled for SessionId {}

impl Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Display::fmt(self.0.as_hyphenated(), f)
    }
}

impl Serialize for SessionId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.encode(&mut Uuid::encode_buffer()))
    }
}

impl<'de> Deserialize<'de> for SessionId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<SessionId, D::Error> {
        let Text(text) = Text::deserialize(deserializer)?;
        SessionId::parse(&text).ok_or_else(|| D::Error::custom("not a session id"))
    }
}

/// The name of a room: 1 to 128 bytes of UTF-8 without control characters, and neither `.` nor `..`,
/// which URLs cannot hold: clients remove such path segments, encoded ones too (WHATWG URL, section
/// 4.4).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct RoomName(Arc<str>);

impl RoomName {
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// The room of who names none.
    pub(crate) fn default_room() -> RoomName {
        RoomName(DEFAULT_ROOM.into())
    }

    /// The name in a path segment as it stands in the URL, percent-encoded (RFC 3986, section 2.1).
    ///
    /// # Errors
    ///
    /// A line that says what is wrong with it.
    pub(crate) fn from_segment(segment: &str) -> Result<RoomName, &'static str> {
        let malformed = segment.split('%').skip(1).any(|after| {
            !matches!(after.as_bytes(), [a, b, ..] if a.is_ascii_hexdigit() && b.is_ascii_hexdigit())
        });
        if malformed {
            return Err("a % in a room name must be followed by two hexadecimal digits");
        }
        let bytes: Cow<'_, [u8]> = percent_decode(segment.as_bytes()).into();
        RoomName::new(str::from_utf8(&bytes).map_err(|_| "a room name must be UTF-8")?)
    }

    fn new(name: &str) -> Result<RoomName, &'static str> {
        if name.is_empty() || name.len() > MAX_ROOM_NAME {
            return Err("a room name has 1 to 128 bytes");
        }
        if name.chars().any(char::is_control) {
            return Err("a room name has no control characters");
        }
        if [".", ".."].contains(&name) {
            return Err("a room name is neither . nor .., which browsers remove: take another");
        }
        Ok(RoomName(name.into()))
    }
}

/// The name for the log, [`Escaped`]; everything else takes [`as_str`](RoomName::as_str).
impl Display for RoomName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Escaped(&self.0).fmt(f)
    }
}

impl Serialize for RoomName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for RoomName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<RoomName, D::Error> {
        let Text(name) = Text::deserialize(deserializer)?;
        RoomName::new(&name).map_err(D::Error::custom)
    }
}

/// How many random bytes a token has.
const TOKEN_BYTES: usize = 16;

/// How many bytes of a token tell it from a made-up one.
const TAG_BYTES: usize = 8;

/// The secret by which a session is taken up again: 128 random bits, on the wire in base64url (RFC
/// 4648, section 5). In a cluster a tag stands behind them, an HMAC (RFC 2104) that is cut short. It
/// has neither `Debug` nor `Display`: no log shall have it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Token {
    bits: [u8; TOKEN_BYTES],
    tag: Option<[u8; TAG_BYTES]>,
}

/// The key of the tags of a node's tokens. All nodes of a cluster know it, so that none asks the others
/// for a session that never was.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct TokenKey([u8; 16]);

impl TokenKey {
    pub(crate) fn random() -> TokenKey {
        TokenKey(random_bits())
    }

    fn tag(&self, bits: &[u8]) -> [u8; TAG_BYTES] {
        let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &self.0), bits);
        let tag = tag.as_ref().first_chunk();
        *tag.expect("an HMAC with SHA-256 has 32 bytes")
    }
}

impl fmt::Debug for TokenKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenKey")
    }
}

impl Serialize for TokenKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&URL_SAFE_NO_PAD.encode(self.0))
    }
}

impl<'de> Deserialize<'de> for TokenKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<TokenKey, D::Error> {
        bits(deserializer).map(TokenKey)
    }
}

impl Token {
    /// A new token, with the tag of this key if there is one.
    pub(crate) fn random(key: Option<&TokenKey>) -> Token {
        let bits = random_bits();
        let tag = key.map(|key| key.tag(&bits));
        Token { bits, tag }
    }

    /// The token that is written so.
    pub(crate) fn parse(text: &str) -> Option<Token> {
        let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
        let (bits, tag) = bytes.split_first_chunk()?;
        let tag = match tag {
            [] => None,
            tag => Some(tag.try_into().ok()?),
        };
        Some(Token { bits: *bits, tag })
    }

    /// Whether it has the tag of this key.
    pub(crate) fn is_of(&self, key: &TokenKey) -> bool {
        self.tag
            .is_some_and(|tag| verify_slices_are_equal(&tag, &key.tag(&self.bits)).is_ok())
    }

    /// What nodes say to each other in place of the token.
    pub(crate) fn hash(&self) -> TokenHash {
        let hash = digest(&SHA256, &self.bits);
        let bits = hash.as_ref().first_chunk().expect("SHA-256 has 32 bytes");
        TokenHash(*bits)
    }
}

fn random_bits<const N: usize>() -> [u8; N] {
    let mut bits = [0; N];
    getrandom::fill(&mut bits).expect("the operating system has random bits");
    bits
}

/// So many bytes in base64url.
fn bits<'de, const N: usize, D: Deserializer<'de>>(deserializer: D) -> Result<[u8; N], D::Error> {
    let Text(text) = Text::deserialize(deserializer)?;
    let bits = URL_SAFE_NO_PAD.decode(&*text).ok();
    bits.and_then(|bits| bits.try_into().ok())
        .ok_or_else(|| D::Error::custom(format_args!("not {N} bytes in base64url")))
}

/// The first half of a token's SHA-256 (FIPS 180-4), on the wire in base64url: who has it has not got
/// the token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct TokenHash([u8; 16]);

impl Serialize for TokenHash {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&URL_SAFE_NO_PAD.encode(self.0))
    }
}

impl<'de> Deserialize<'de> for TokenHash {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<TokenHash, D::Error> {
        bits(deserializer).map(TokenHash)
    }
}

impl Serialize for Token {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let bytes = [&self.bits[..], self.tag.as_ref().map_or(&[], |tag| tag)].concat();
        serializer.serialize_str(&URL_SAFE_NO_PAD.encode(bytes))
    }
}

/// A message as a client wrote it. Its `sender` is gone: whatever it said, the server knows better.
#[derive(Debug)]
pub(crate) struct Message<'a> {
    /// The application's word for what the message is: 1 to 64 bytes.
    pub(crate) kind: Cow<'a, str>,
    pub(crate) receiver: Receiver<'a>,
    /// The payload, byte for byte as it came.
    pub(crate) data: Option<&'a RawValue>,
    /// The client's mark for this message, a JSON string or integer: it asks for a receipt.
    pub(crate) reference: Option<&'a RawValue>,
}

/// Whom a message is for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Receiver<'a> {
    /// Every other session of the room.
    All,
    /// The server itself.
    Server,
    /// One session.
    Session(SessionId),
    /// Nobody: what stands there cannot be an id.
    Unknown(Cow<'a, str>),
}

/// A message that breaks the rules, and the mark it carried if that could be read.
#[derive(Debug)]
pub(crate) struct Invalid<'a> {
    pub(crate) problem: Problem,
    pub(crate) reference: Option<&'a RawValue>,
}

/// Reads a client's message. Only the envelope is looked into; `data` is checked to be JSON and
/// left as it is, whatever its depth or the size of its numbers.
///
/// # Errors
///
/// What is [`Invalid`] about it, in words for the one who wrote it.
pub(crate) fn parse(text: &str) -> Result<Message<'_>, Invalid<'_>> {
    let fail = |message: String, reference| Invalid {
        problem: Problem {
            code: ErrorCode::BadMessage,
            message,
        },
        reference,
    };
    let fields: Fields<'_> = serde_json::from_str(text).map_err(|error| {
        let begins = text
            .trim_start_matches([' ', '\t', '\n', '\r'])
            .starts_with('{');
        let message = match begins {
            true => format!("not JSON: {error}"),
            false => "a message is a JSON object: it begins with {".into(),
        };
        fail(message, None)
    })?;
    let mut fields = fields;
    // Serializers write what is not there as null.
    fields.reference.take_if(|raw| raw.get() == "null");
    let reference = fields.reference.filter(|raw| is_reference(raw.get()));
    fields.check().map_err(|message| fail(message, reference))
}

/// The fields of a message as they stand in its text. Reading them fails only where the text is not
/// JSON; what else is wrong is kept, so that an error can carry the message's `ref`.
#[derive(Default)]
struct Fields<'a> {
    kind: Option<&'a RawValue>,
    receiver: Option<&'a RawValue>,
    data: Option<&'a RawValue>,
    reference: Option<&'a RawValue>,
    /// The first field that is unknown or given twice.
    misplaced: Option<String>,
}

impl<'a> Fields<'a> {
    fn check(self) -> Result<Message<'a>, String> {
        if let Some(message) = self.misplaced {
            return Err(message);
        }
        let kind = string("type", self.kind)?;
        if kind.is_empty() || kind.len() > MAX_TYPE {
            return Err(format!(
                "type must have 1 to {MAX_TYPE} bytes, not {}",
                kind.len()
            ));
        }
        let receiver = string("receiver", self.receiver)?;
        let receiver = match &*receiver {
            "all" => Receiver::All,
            "server" => Receiver::Server,
            text => SessionId::parse(text).map_or(Receiver::Unknown(receiver), Receiver::Session),
        };
        if self.reference.is_some_and(|raw| !is_reference(raw.get())) {
            return Err(format!(
                "ref must be a string of at most {MAX_REF} bytes or an integer of at most \
                 {MAX_REF_DIGITS} digits"
            ));
        }
        Ok(Message {
            kind,
            receiver,
            data: self.data,
            reference: self.reference,
        })
    }
}

impl<'de> Deserialize<'de> for Fields<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(FieldsVisitor)
    }
}

struct FieldsVisitor;

impl<'de> Visitor<'de> for FieldsVisitor {
    type Value = Fields<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a message")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut fields = Fields::default();
        let mut sender = None;
        while let Some(Name(name)) = map.next_key()? {
            let value = map.next_value()?;
            let name = String::from_utf8_lossy(&name);
            let field = match &*name {
                "type" => &mut fields.kind,
                "sender" => &mut sender,
                "receiver" => &mut fields.receiver,
                "data" => &mut fields.data,
                "ref" => &mut fields.reference,
                _ => {
                    fields.misplaced.get_or_insert_with(|| {
                        format!(
                            "unknown field {}: what is yours goes into data",
                            quote(&name)
                        )
                    });
                    continue;
                }
            };
            if field.replace(value).is_some() {
                fields
                    .misplaced
                    .get_or_insert_with(|| format!("{name} is given twice"));
            }
        }
        Ok(fields)
    }
}

/// The name of a field as JSON allows it: what an escape stands for need not be Unicode (RFC 8259,
/// section 8.2). Borrowed where it has no escapes.
struct Name<'a>(Cow<'a, [u8]>);

impl<'de> Deserialize<'de> for Name<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_bytes(NameVisitor)
    }
}

struct NameVisitor;

impl<'de> Visitor<'de> for NameVisitor {
    type Value = Name<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_borrowed_bytes<E>(self, bytes: &'de [u8]) -> Result<Self::Value, E> {
        Ok(Name(bytes.into()))
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(Name(text.as_bytes().into()))
    }

    fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Self::Value, E> {
        Ok(Name(bytes.to_vec().into()))
    }

    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Name(text.as_bytes().to_vec().into()))
    }
}

/// A JSON string, borrowed where it has no escapes.
#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

/// The value of a field that must be there and be a string.
fn string<'a>(name: &str, value: Option<&'a RawValue>) -> Result<Cow<'a, str>, String> {
    let value = value.ok_or_else(|| format!("{name} is missing"))?;
    if let [b'"', plain @ .., b'"'] = value.get().as_bytes()
        && !plain.contains(&b'\\')
    {
        // Without escapes, what stands between the quotes is the string.
        return Ok(value.get()[1..=plain.len()].into());
    }
    match serde_json::from_str(value.get()) {
        Ok(Text(text)) => Ok(text),
        // It was JSON, so what is left to be wrong with a string is this.
        Err(_) if value.get().starts_with('"') => {
            Err(format!("{name} must not have lone surrogates"))
        }
        Err(_) => Err(format!(
            "{name} must be a string, not {}",
            quote(value.get())
        )),
    }
}

/// Whether this JSON may be a `ref`: a short string, or an integer of few digits, which some serializers
/// write with a fraction of zeros.
fn is_reference(json: &str) -> bool {
    if json.starts_with('"') {
        return serde_json::from_str(json).is_ok_and(|Text(text)| text.len() <= MAX_REF);
    }
    let number = json.strip_prefix('-').unwrap_or(json);
    let (integer, fraction) = number.split_once('.').unwrap_or((number, ""));
    integer.len() + fraction.len() <= MAX_REF_DIGITS
        && integer.bytes().all(|byte| byte.is_ascii_digit())
        && fraction.bytes().all(|byte| byte == b'0')
}

/// The beginning of a client's own words, for an error message.
fn quote(words: &str) -> Cow<'_, str> {
    match words.floor_char_boundary(MAX_QUOTE) {
        end if end < words.len() => format!("{}…", &words[..end]).into(),
        _ => words.into(),
    }
}

/// Why a message was not delivered, or not understood.
#[derive(Debug)]
pub(crate) struct Problem {
    pub(crate) code: ErrorCode,
    /// What is wrong and what to do, for people.
    pub(crate) message: String,
}

/// The stable names of problems.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(into = "&'static str")]
pub(crate) enum ErrorCode {
    /// Not JSON, not an object, or a field that is missing, doubled, unknown or of the wrong type.
    BadMessage,
    /// No such session in this room.
    UnknownReceiver,
    /// Written to all, and nobody else is here.
    EmptyRoom,
    /// The server does not know this request.
    UnknownRequest,
    /// The session's token does not allow this, or is none that is good.
    NotAllowed,
    /// The session that was asked for could not be resumed.
    ResumeFailed,
}

impl ErrorCode {
    pub(crate) const ALL: [ErrorCode; 6] = [
        ErrorCode::BadMessage,
        ErrorCode::UnknownReceiver,
        ErrorCode::EmptyRoom,
        ErrorCode::UnknownRequest,
        ErrorCode::NotAllowed,
        ErrorCode::ResumeFailed,
    ];
}

impl From<ErrorCode> for &'static str {
    fn from(code: ErrorCode) -> &'static str {
        match code {
            ErrorCode::BadMessage => "bad_message",
            ErrorCode::UnknownReceiver => "unknown_receiver",
            ErrorCode::EmptyRoom => "empty_room",
            ErrorCode::UnknownRequest => "unknown_request",
            ErrorCode::NotAllowed => "not_allowed",
            ErrorCode::ResumeFailed => "resume_failed",
        }
    }
}

impl Problem {
    pub(crate) fn unknown_receiver(receiver: impl Display) -> Problem {
        let receiver = receiver.to_string();
        Problem {
            code: ErrorCode::UnknownReceiver,
            message: format!("no session {} in this room", quote(&receiver)),
        }
    }

    pub(crate) fn empty_room() -> Problem {
        Problem {
            code: ErrorCode::EmptyRoom,
            message: "nobody else is in this room".into(),
        }
    }

    pub(crate) fn resume_failed() -> Problem {
        Problem {
            code: ErrorCode::ResumeFailed,
            message:
                "the session could not be resumed: this is a new one, and hello tells who is here"
                    .into(),
        }
    }

    pub(crate) fn bad_message(message: &str) -> Problem {
        Problem {
            code: ErrorCode::BadMessage,
            message: message.into(),
        }
    }

    pub(crate) fn not_allowed(message: &str) -> Problem {
        Problem {
            code: ErrorCode::NotAllowed,
            message: message.into(),
        }
    }

    /// `known` are the requests there are.
    pub(crate) fn unknown_request(kind: &str, known: &str) -> Problem {
        Problem {
            code: ErrorCode::UnknownRequest,
            message: format!("no request {}: the server answers {known}", quote(kind)),
        }
    }
}

/// Who stands in `sender` and `receiver`.
enum Party {
    Session(SessionId),
    Server,
    All,
    /// `null`: the receiver of a `close`.
    Nobody,
}

impl Party {
    /// Writes it as JSON.
    fn write(&self, buffer: &mut Vec<u8>) {
        match self {
            Party::Session(id) => {
                buffer.push(b'"');
                buffer.extend_from_slice(id.encode(&mut Uuid::encode_buffer()).as_bytes());
                buffer.push(b'"');
            }
            Party::Server => buffer.extend_from_slice(br#""server""#),
            Party::All => buffer.extend_from_slice(br#""all""#),
            Party::Nobody => buffer.extend_from_slice(b"null"),
        }
    }
}

/// What the server writes: the four fields in their order.
fn frame(kind: &str, sender: Party, receiver: Party, data: impl Serialize) -> Frame {
    fn write(buffer: &mut Vec<u8>, json: impl Serialize) {
        serde_json::to_writer(buffer, &json)
            .expect("strings and checked JSON always serialize, and a Vec takes every write");
    }
    Frame::text(|buffer| {
        buffer.extend_from_slice(br#"{"type":"#);
        write(buffer, kind);
        buffer.extend_from_slice(br#","sender":"#);
        sender.write(buffer);
        buffer.extend_from_slice(br#","receiver":"#);
        receiver.write(buffer);
        buffer.extend_from_slice(br#","data":"#);
        write(buffer, data);
        buffer.push(b'}');
    })
}

/// To the others of a room: `id` has come.
pub(crate) fn joined(id: SessionId, public: Option<&RawValue>) -> Frame {
    frame("new", Party::Session(id), Party::All, public)
}

/// To the others of a room: `id` has gone.
pub(crate) fn left(id: SessionId) -> Frame {
    frame("close", Party::Session(id), Party::Nobody, ())
}

/// A client's message to `receiver`, or to all, from the session that really sent it.
pub(crate) fn relayed(
    message: &Message<'_>,
    sender: SessionId,
    receiver: Option<SessionId>,
) -> Frame {
    let receiver = receiver.map_or(Party::All, Party::Session);
    frame(
        &message.kind,
        Party::Session(sender),
        receiver,
        message.data,
    )
}

/// A message of the application's backend, which speaks as the server, to `receiver`, or to all.
pub(crate) fn announced(message: &Message<'_>, receiver: Option<SessionId>) -> Frame {
    let receiver = receiver.map_or(Party::All, Party::Session);
    frame(&message.kind, Party::Server, receiver, message.data)
}

/// The receipt for the message marked `reference`: it stands in the outboxes of so many
/// `receivers`.
pub(crate) fn ack(to: SessionId, reference: &RawValue, receivers: usize) -> Frame {
    #[derive(Serialize)]
    struct Ack<'a> {
        r#ref: &'a RawValue,
        receivers: usize,
    }
    answer(
        "ack",
        to,
        Ack {
            r#ref: reference,
            receivers,
        },
    )
}

/// What went wrong with the message marked `reference`.
pub(crate) fn error(to: SessionId, problem: &Problem, reference: Option<&RawValue>) -> Frame {
    #[derive(Serialize)]
    struct Error<'a> {
        code: ErrorCode,
        message: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        r#ref: Option<&'a RawValue>,
    }
    answer(
        "error",
        to,
        Error {
            code: problem.code,
            message: &problem.message,
            r#ref: reference,
        },
    )
}

/// The answer to `hello`.
pub(crate) fn hello(to: SessionId, hello: &Hello<'_>) -> Frame {
    answer("hello", to, hello)
}

/// The first message on a resumed connection: so many of the client's messages have been taken in.
pub(crate) fn resumed(to: SessionId, received: u64) -> Frame {
    #[derive(Serialize)]
    struct Resumed {
        received: u64,
    }
    answer("resumed", to, Resumed { received })
}

/// The answer to `ping`.
pub(crate) fn pong(to: SessionId, data: Option<&RawValue>) -> Frame {
    answer("pong", to, data)
}

fn answer(kind: &str, to: SessionId, data: impl Serialize) -> Frame {
    frame(kind, Party::Server, Party::Session(to), data)
}

/// What `hello` tells.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Hello<'a> {
    pub(crate) room: &'a RoomName,
    /// The others in the room, longest-joined first.
    pub(crate) peers: &'a [Peer<'a>],
    pub(crate) ice_servers: &'a [IceServer],
    /// How the session is taken up again, if it has asked for that.
    pub(crate) resume: Option<Resume>,
    pub(crate) limits: Limits,
}

/// An RTCIceServer (W3C WebRTC, section 4.2.4).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct IceServer {
    pub(crate) urls: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) username: Option<String>,
    #[serde(
        skip_serializing_if = "Option::is_none",
        serialize_with = "expose_to_client"
    )]
    pub(crate) credential: Option<Secret<String>>,
}

/// How a session is taken up again.
#[derive(Serialize)]
pub(crate) struct Resume {
    pub(crate) token: Token,
    /// How long it waits for its client.
    pub(crate) seconds: u64,
}

/// What a client says with `hello`.
#[derive(Default, Deserialize)]
pub(crate) struct HelloRequest {
    /// Whether the session shall outlive its connection.
    #[serde(default)]
    pub(crate) resume: bool,
}

impl HelloRequest {
    /// What `data` says if it is an object; whatever else stands there is nothing to the server.
    pub(crate) fn parse(data: Option<&RawValue>) -> HelloRequest {
        data.filter(|data| data.get().starts_with('{'))
            .and_then(|data| serde_json::from_str(data.get()).ok())
            .unwrap_or_default()
    }
}

/// Another session of the room.
#[derive(Serialize)]
pub(crate) struct Peer<'a> {
    pub(crate) id: SessionId,
    /// The `data` of its `new`.
    pub(crate) data: Option<&'a RawValue>,
}

/// What a client must keep to.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Limits {
    pub(crate) message_bytes: usize,
    /// The session's rates; `None` for no limit.
    pub(crate) messages_per_second: Option<NonZeroU32>,
    pub(crate) bytes_per_second: Option<NonZeroU32>,
}

/// The close code of a client that gives its connection up and will be back: it counts as lost.
pub(crate) const BACK_SOON: u16 = 4000;

/// Why the server closes a connection: the code and the reason of its Close frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Close {
    pub(crate) code: CloseCode,
    pub(crate) reason: Cow<'static, str>,
}

/// The close codes the server gives (RFC 6455, section 7.4.1, and the registry it founds).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CloseCode {
    /// No pong in time.
    GoingAway = 1001,
    /// The WebSocket protocol was violated.
    ProtocolError = 1002,
    /// A binary message.
    UnsupportedData = 1003,
    /// Text that is not UTF-8.
    InvalidPayload = 1007,
    /// Not allowed (any longer).
    PolicyViolation = 1008,
    /// A message over the limit.
    MessageTooBig = 1009,
    /// The server is going away.
    ServiceRestart = 1012,
    /// What waited to be sent passed the limit.
    TryAgainLater = 1013,
}

impl CloseCode {
    pub(crate) const ALL: [CloseCode; 8] = [
        CloseCode::GoingAway,
        CloseCode::ProtocolError,
        CloseCode::UnsupportedData,
        CloseCode::InvalidPayload,
        CloseCode::PolicyViolation,
        CloseCode::MessageTooBig,
        CloseCode::ServiceRestart,
        CloseCode::TryAgainLater,
    ];
}

impl Close {
    pub(crate) fn new(code: CloseCode, reason: impl Into<Cow<'static, str>>) -> Close {
        Close {
            code,
            reason: reason.into(),
        }
    }

    /// The server is going away; the client shall come back after `delay_ms` milliseconds.
    pub(crate) fn restart(delay_ms: u64) -> Close {
        let reason = format!("the server is going away: retry in {delay_ms} ms");
        Close::new(CloseCode::ServiceRestart, reason)
    }

    /// An operator has asked for it.
    pub(crate) fn by_operator() -> Close {
        Close::new(CloseCode::PolicyViolation, "closed by an operator")
    }

    /// The session goes on with another connection.
    pub(crate) fn taken_over() -> Close {
        Close::new(CloseCode::PolicyViolation, "resumed on another connection")
    }

    pub(crate) fn frame(&self) -> Frame {
        Frame::close(Some((self.code as u16, &self.reason)))
    }
}

impl Display for Close {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.code as u16, self.reason)
    }
}

#[cfg(test)]
mod tests;
