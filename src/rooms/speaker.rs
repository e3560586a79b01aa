//! The author of a message to a room.

use std::sync::Arc;

use serde_json::value::RawValue;

use crate::{cluster::Quota, protocol::SessionId};

/// The author of a message. The default is a backend, which speaks in the server's name.
#[derive(Clone, Copy, Default)]
pub(crate) struct Speaker<'a> {
    /// The session's id; `None` for a backend.
    pub(super) id: Option<SessionId>,
    /// The session's share of the queue to other nodes.
    pub(super) quota: Option<&'a Arc<Quota>>,
    /// The `ref` that the client gave the message.
    pub(super) reference: Option<&'a RawValue>,
}

impl<'a> Speaker<'a> {
    /// A session, with its share of the queue to other nodes and the `ref` of its message.
    pub(crate) fn session(
        id: SessionId,
        quota: Option<&'a Arc<Quota>>,
        reference: Option<&'a RawValue>,
    ) -> Speaker<'a> {
        Speaker {
            id: Some(id),
            quota,
            reference,
        }
    }

    /// A session whose messages also come back to itself.
    pub(crate) fn anonymous(quota: Option<&'a Arc<Quota>>) -> Speaker<'a> {
        Speaker {
            quota,
            ..Speaker::default()
        }
    }
}
