//! The messages of clients: the fields are parsed and checked, the payload stays raw.

use std::{borrow::Cow, fmt};

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor},
};
use serde_json::value::RawValue;

use super::{
    error::{ErrorCode, Problem},
    id::SessionId,
    text::{Text, quote},
};

/// What the name of a user follows in `receiver`.
pub(super) const USER_PREFIX: &str = "user:";

/// The longest `type`, in bytes.
const MAX_TYPE: usize = 64;

/// The longest `ref` that is a string, in bytes.
const MAX_REF: usize = 64;

/// The most digits of a `ref` that is an integer: as many as the largest number of 64 bits has.
const MAX_REF_DIGITS: usize = 20;

/// A message of a client, without its `sender`: the server knows who sent it and ignores what the
/// client wrote.
#[derive(Debug)]
pub(crate) struct Message<'a> {
    /// The field `type`, which the application chooses: 1 to 64 bytes.
    pub(crate) kind: Cow<'a, str>,
    pub(crate) receiver: Receiver<'a>,
    /// The payload, byte for byte as the client wrote it.
    pub(crate) data: Option<&'a RawValue>,
    /// The field `ref`, a JSON string or integer. It requests a receipt.
    pub(crate) reference: Option<&'a RawValue>,
}

/// The receiver of a message.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Receiver<'a> {
    /// Every other session of the room.
    All,
    /// The server itself.
    Server,
    /// One session.
    Session(SessionId),
    /// All sessions of the user with this name.
    User(Cow<'a, str>),
    /// No session can have this id.
    Unknown(Cow<'a, str>),
}

impl Receiver<'_> {
    /// The error that no session receives a message.
    pub(crate) fn problem(&self) -> Problem {
        match self {
            Receiver::All | Receiver::Server => Problem::empty_room(),
            Receiver::Session(id) => Problem::unknown_receiver(id),
            Receiver::User(name) => Problem::unknown_user(name),
            Receiver::Unknown(name) => Problem::unknown_receiver(name),
        }
    }
}

/// An invalid message, and its `ref` if that is valid.
#[derive(Debug)]
pub(crate) struct Invalid<'a> {
    pub(crate) problem: Problem,
    pub(crate) reference: Option<&'a RawValue>,
}

/// Parses a client's message. `data` is only checked to be JSON, of any depth and with numbers of any
/// size, and not parsed.
///
/// # Errors
///
/// The [`Invalid`] message, with an error text for the developer of the client.
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
            false => "not a JSON object: a message must begin with {".into(),
        };
        fail(message, None)
    })?;
    let mut fields = fields;
    // Serializers write absent values as null.
    fields.reference.take_if(|raw| raw.get() == "null");
    let reference = fields.reference.filter(|raw| is_reference(raw.get()));
    fields.check().map_err(|message| fail(message, reference))
}

/// The raw fields of a message. Deserializing fails only if the text is not JSON. Other errors are
/// recorded, so that the error sent to the client can carry the message's `ref`.
#[derive(Default)]
struct Fields<'a> {
    kind: Option<&'a RawValue>,
    receiver: Option<&'a RawValue>,
    data: Option<&'a RawValue>,
    reference: Option<&'a RawValue>,
    /// The error about the first field that is unknown or repeated.
    misplaced: Option<String>,
}

impl<'a> Fields<'a> {
    /// Checks the values of the fields.
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
            text => match (SessionId::parse(text), receiver) {
                (Some(id), _) => Receiver::Session(id),
                (None, receiver) => user(receiver),
            },
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
                            "unknown field {}: put your own fields into data",
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

/// The name of a field as bytes, because the escapes of a JSON string can stand for text that is not
/// Unicode (RFC 8259, section 8.2). Borrowed if it has no escapes.
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

/// The receiver that is not the id of a session.
fn user(text: Cow<'_, str>) -> Receiver<'_> {
    match text {
        Cow::Borrowed(text) => match text.strip_prefix(USER_PREFIX) {
            Some(name) => Receiver::User(name.into()),
            None => Receiver::Unknown(text.into()),
        },
        Cow::Owned(text) => match text.strip_prefix(USER_PREFIX) {
            Some(name) => Receiver::User(name.to_owned().into()),
            None => Receiver::Unknown(text.into()),
        },
    }
}

/// The value of a required field that must be a string.
fn string<'a>(name: &str, value: Option<&'a RawValue>) -> Result<Cow<'a, str>, String> {
    let value = value.ok_or_else(|| format!("{name} is missing"))?;
    if let [b'"', plain @ .., b'"'] = value.get().as_bytes()
        && !plain.contains(&b'\\')
    {
        // Without escapes, the text between the quotes is the string.
        return Ok(value.get()[1..=plain.len()].into());
    }
    match serde_json::from_str(value.get()) {
        Ok(Text(text)) => Ok(text),
        // The text is valid JSON, so lone surrogates are the only possible error in a string.
        Err(_) if value.get().starts_with('"') => {
            Err(format!("{name} must not contain lone surrogates"))
        }
        Err(_) => Err(format!(
            "{name} must be a string, not {}",
            quote(value.get())
        )),
    }
}

/// Whether this JSON is a valid `ref`: a short string, or an integer of few digits. Some serializers
/// write integers with a fraction of zeros.
pub(super) fn is_reference(json: &str) -> bool {
    if json.starts_with('"') {
        return serde_json::from_str(json).is_ok_and(|Text(text)| text.len() <= MAX_REF);
    }
    let number = json.strip_prefix('-').unwrap_or(json);
    let (integer, fraction) = number.split_once('.').unwrap_or((number, ""));
    integer.len() + fraction.len() <= MAX_REF_DIGITS
        && integer.bytes().all(|byte| byte.is_ascii_digit())
        && fraction.bytes().all(|byte| byte == b'0')
}
