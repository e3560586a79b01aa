//! Answers to STUN requests.

use stun_types::{
    attribute::{AttributeType, ErrorCode, Fingerprint, Nonce, Realm, UnknownAttributes},
    message::{
        IntegrityAlgorithm, IntegrityKey, Message, MessageWrite, MessageWriteExt, MessageWriteVec,
    },
    prelude::{Attribute, AttributeStaticType, AttributeWrite},
};

/// A request that is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    /// The code of RFC 8489, section 14.8, or RFC 8656, section 19.
    code: u16,
    reason: &'static str,
    /// The reason by which metrics count it. What every client or a faulty one does is not counted.
    pub(super) counted_as: Option<&'static str>,
}

impl Refusal {
    pub(super) const BAD_REQUEST: Refusal =
        Refusal::uncounted(ErrorCode::BAD_REQUEST, "Bad Request");
    /// Every client asks without credentials first, to learn the realm and a nonce.
    pub(super) const NO_CREDENTIALS: Refusal =
        Refusal::uncounted(ErrorCode::UNAUTHORIZED, "Unauthorized");
    pub(super) const WRONG_CREDENTIALS: Refusal =
        Refusal::new(ErrorCode::UNAUTHORIZED, "Unauthorized", "credentials");
    pub(super) const NO_SESSION: Refusal =
        Refusal::new(ErrorCode::UNAUTHORIZED, "Unauthorized", "session");
    pub(super) const PEER_FORBIDDEN: Refusal =
        Refusal::new(ErrorCode::FORBIDDEN, "Forbidden", "peer");
    pub(super) const UNKNOWN_ATTRIBUTE: Refusal =
        Refusal::uncounted(ErrorCode::UNKNOWN_ATTRIBUTE, "Unknown Attribute");
    pub(super) const ALLOCATION_MISMATCH: Refusal =
        Refusal::uncounted(ErrorCode::ALLOCATION_MISMATCH, "Allocation Mismatch");
    pub(super) const STALE_NONCE: Refusal =
        Refusal::uncounted(ErrorCode::STALE_NONCE, "Stale Nonce");
    pub(super) const FAMILY_NOT_SUPPORTED: Refusal = Refusal::uncounted(
        ErrorCode::ADDRESS_FAMILY_NOT_SUPPORTED,
        "Address Family not Supported",
    );
    /// The allocation is another user's.
    pub(super) const OTHER_CREDENTIALS: Refusal = Refusal::new(
        ErrorCode::WRONG_CREDENTIALS,
        "Wrong Credentials",
        "credentials",
    );
    pub(super) const TRANSPORT_NOT_SUPPORTED: Refusal = Refusal::uncounted(
        ErrorCode::UNSUPPORTED_TRANSPORT_PROTOCOL,
        "Unsupported Transport Protocol",
    );
    pub(super) const PEER_OF_OTHER_FAMILY: Refusal = Refusal::uncounted(
        ErrorCode::PEER_ADDRESS_FAMILY_MISMATCH,
        "Peer Address Family Mismatch",
    );

    pub(super) const fn quota_reached(counted_as: &'static str) -> Refusal {
        let reason = "Allocation Quota Reached";
        Refusal::new(ErrorCode::ALLOCATION_QUOTA_REACHED, reason, counted_as)
    }

    pub(super) const fn no_capacity(counted_as: &'static str) -> Refusal {
        let reason = "Insufficient Capacity";
        Refusal::new(ErrorCode::INSUFFICIENT_CAPACITY, reason, counted_as)
    }

    const fn new(code: u16, reason: &'static str, counted_as: &'static str) -> Refusal {
        Refusal {
            code,
            reason,
            counted_as: Some(counted_as),
        }
    }

    const fn uncounted(code: u16, reason: &'static str) -> Refusal {
        Refusal {
            code,
            reason,
            counted_as: None,
        }
    }

    /// Whether the answer tells the realm and a nonce.
    pub(super) fn asks_for_credentials(&self) -> bool {
        matches!(self.code, ErrorCode::UNAUTHORIZED | ErrorCode::STALE_NONCE)
    }
}

/// The attributes of a message that its receiver must understand, and that are not `known` (RFC 8489, section 14).
pub(super) fn unknown_attributes(
    message: &Message<'_>,
    known: &[AttributeType],
) -> Vec<AttributeType> {
    let kinds = message.iter_attributes().map(|(_, it)| it.get_type());
    kinds
        .filter(|kind| kind.comprehension_required() && !known.contains(kind))
        .collect()
}

/// An answer that succeeds, with these attributes. It is signed if there is a key.
pub(super) fn success(
    request: &Message<'_>,
    attributes: &[&dyn AttributeWrite],
    key: Option<&IntegrityKey>,
) -> Vec<u8> {
    let answer = Message::builder_success(request, MessageWriteVec::new());
    finish(request, answer, attributes, key)
}

/// An answer that refuses a request. It is signed if there is a key. It names the `unknown` attributes, and the realm
/// and a nonce if they are given.
pub(super) fn refuse(
    request: &Message<'_>,
    refusal: &Refusal,
    unknown: &[AttributeType],
    realm_and_nonce: Option<(&str, &str)>,
    key: Option<&IntegrityKey>,
) -> Vec<u8> {
    let answer = Message::builder_error(request, MessageWriteVec::new());
    let error = ErrorCode::new(refusal.code, refusal.reason).expect("the code is valid");
    if let Some((realm, nonce)) = realm_and_nonce {
        let realm = Realm::new(realm).expect("the realm is short");
        let nonce = Nonce::new(nonce).expect("nonces are short");
        finish(request, answer, &[&error, &realm, &nonce], key)
    } else if unknown.is_empty() {
        finish(request, answer, &[&error], key)
    } else {
        let unknown = UnknownAttributes::new(unknown);
        finish(request, answer, &[&error, &unknown], key)
    }
}

fn finish(
    request: &Message<'_>,
    mut answer: MessageWriteVec,
    attributes: &[&dyn AttributeWrite],
    key: Option<&IntegrityKey>,
) -> Vec<u8> {
    for attribute in attributes {
        answer
            .add_attribute(*attribute)
            .expect("attributes come before the signature");
    }
    if let Some(key) = key {
        answer
            .add_message_integrity_with_key(key, IntegrityAlgorithm::Sha1)
            .expect("there is one signature");
    }
    if request.has_attribute(Fingerprint::TYPE) {
        answer.add_fingerprint().expect("there is one fingerprint");
    }
    answer.finish()
}
