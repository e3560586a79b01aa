//! What a token allows a session.

use crate::{access::Grant, cluster, state::ExpiryGuard};

/// What its token allows a session. A session has it where the server asks for tokens.
pub(super) struct Permissions {
    /// The user whom the token names.
    pub(super) user: Option<String>,
    /// Whether the session may send messages to other sessions.
    pub(super) may_send: bool,
    expiry: ExpiryGuard,
}

impl Permissions {
    /// Permissions that last as long as `expiry` says.
    pub(super) fn new(permissions: cluster::Permissions, expiry: ExpiryGuard) -> Permissions {
        Permissions {
            user: permissions.user,
            may_send: permissions.may_send,
            expiry,
        }
    }

    /// When the token expires, in seconds since 1970.
    pub(super) fn expires(&self) -> u64 {
        self.expiry.time()
    }

    /// Continues with what another token of the same user allows.
    pub(super) fn renew(&mut self, grant: Grant) {
        self.may_send = grant.may_send;
        self.expiry.renew(grant.expires);
    }

    /// The permissions as another node gets them with the session.
    pub(super) fn to_wire(&self) -> cluster::Permissions {
        cluster::Permissions {
            user: self.user.clone(),
            may_send: self.may_send,
            expires: self.expires(),
        }
    }
}
