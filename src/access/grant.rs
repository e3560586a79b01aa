//! What a token allows, and why a token is rejected.

use serde_json::value::RawValue;

/// What a token allows its bearer.
#[derive(Debug)]
pub(crate) struct Grant {
    /// The user, from the claim `sub`.
    pub(crate) user: Option<String>,
    /// What others see of the session: a JSON object with `user` and `info`.
    pub(crate) public: Option<Box<RawValue>>,
    /// Whether the session may send to others.
    pub(crate) may_send: bool,
    /// When the token expires, in seconds since 1970.
    pub(crate) expires: u64,
}

/// Why a token is rejected.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Denied {
    /// The token is not valid, or has expired.
    Invalid(&'static str),
    /// The token is valid, but does not allow this.
    Forbidden(&'static str),
}
