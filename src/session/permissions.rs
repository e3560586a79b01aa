//! What a token allows a session.

use std::sync::Arc;

use crate::{
    access::Grant,
    cluster,
    outbox::Sender,
    state::{Expiries, ExpiryGuard},
};

/// What its token allows a session. A session has it where the server asks for tokens.
pub(super) struct Permissions {
    /// The user whom the token names.
    pub(super) user: Option<String>,
    /// Whether the session may send messages to other sessions.
    pub(super) may_send: bool,
    expiry: ExpiryGuard,
}

impl From<Grant> for cluster::Permissions {
    fn from(grant: Grant) -> cluster::Permissions {
        cluster::Permissions {
            user: grant.user,
            may_send: grant.may_send,
            expires: grant.expires,
        }
    }
}

impl Permissions {
    /// Permissions of the session behind `sender`, which ends when they expire.
    pub(super) fn new(
        permissions: cluster::Permissions,
        expiries: &Arc<Expiries>,
        sender: Sender,
    ) -> Permissions {
        Permissions {
            user: permissions.user,
            may_send: permissions.may_send,
            expiry: expiries.register(permissions.expires, sender),
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
