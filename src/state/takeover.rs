//! Connections and nodes that come to continue a session.

use std::mem;

use parking_lot::Mutex;

use crate::{
    access::{Admitted, ConnectRequest},
    protocol::{ResumeToken, RoomName},
    rooms::MigrationRequest,
    transport::{Reader, Writer},
};

/// A connection that has come to continue a session.
pub(crate) struct Reconnection {
    pub(crate) reader: Reader,
    pub(crate) writer: Writer,
    /// The token with which its client wants to resume the session; `None` if it wants a new one.
    pub(crate) token: Option<ResumeToken>,
    /// How many of the session's messages its client has received.
    pub(crate) received: u64,
    /// Who has connected.
    pub(crate) client: ConnectRequest,
    pub(crate) room: RoomName,
    /// What a new session needs, in case the old one cannot continue. `None` if that must be
    /// obtained then.
    pub(crate) admitted: Option<Admitted>,
}

/// With what a session continues.
pub(crate) enum Takeover {
    /// With another connection to this node.
    Local(Box<Reconnection>),
    /// On another node, which the client has reconnected to.
    Remote(MigrationRequest),
}

impl Takeover {
    /// How many of the session's messages its client has received.
    pub(super) fn received(&self) -> u64 {
        match self {
            Takeover::Local(reconnection) => reconnection.received,
            Takeover::Remote(request) => request.received,
        }
    }
}

/// Holds the last takeover of one session until the session takes it. Of several that come at once, the
/// last one gets the session.
pub(super) struct Mailbox(Mutex<Contents>);

enum Contents {
    Empty,
    Full(Takeover),
    /// The session has ended or left this node.
    Retired,
}

impl Mailbox {
    pub(super) fn new() -> Mailbox {
        Mailbox(Mutex::new(Contents::Empty))
    }

    /// Puts a takeover in, and returns the one that it replaces.
    ///
    /// # Errors
    ///
    /// The takeover, if the mailbox is retired.
    pub(super) fn put(&self, takeover: Takeover) -> Result<Option<Takeover>, Takeover> {
        let mut contents = self.0.lock();
        if let Contents::Retired = *contents {
            return Err(takeover);
        }
        let replaced = mem::replace(&mut *contents, Contents::Full(takeover));
        Ok(replaced.into_takeover())
    }

    /// Takes the takeover out.
    pub(super) fn take(&self) -> Option<Takeover> {
        let mut contents = self.0.lock();
        match *contents {
            Contents::Full(_) => mem::replace(&mut *contents, Contents::Empty).into_takeover(),
            Contents::Empty | Contents::Retired => None,
        }
    }

    pub(super) fn is_full(&self) -> bool {
        matches!(*self.0.lock(), Contents::Full(_))
    }

    /// Accepts nothing from now on, and returns the takeover that came too late.
    pub(super) fn retire(&self) -> Option<Takeover> {
        mem::replace(&mut *self.0.lock(), Contents::Retired).into_takeover()
    }

    /// Retires the mailbox if it is empty. Returns whether it was.
    pub(super) fn retire_if_empty(&self) -> bool {
        let mut contents = self.0.lock();
        let is_empty = matches!(*contents, Contents::Empty);
        if is_empty {
            *contents = Contents::Retired;
        }
        is_empty
    }
}

impl Contents {
    fn into_takeover(self) -> Option<Takeover> {
        match self {
            Contents::Full(takeover) => Some(takeover),
            Contents::Empty | Contents::Retired => None,
        }
    }
}
