//! Messages of clients: the envelope is parsed and checked, the payload is left as it is.

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

/// The longest `type`, in bytes.
const MAX_TYPE: usize = 64;

/// The longest `ref` that is a string, in bytes.
const MAX_REF: usize = 64;

/// The most digits of a `ref` that is an integer: those of the largest number of 64 bits.
const MAX_REF_DIGITS: usize = 20;

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
