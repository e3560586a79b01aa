//! Why a session or its connection ends.

use std::fmt::{self, Display};

use crate::{
    outbox::Command,
    protocol::{BACK_SOON, Close},
};

/// Why a session ends, or loses its connection.
pub(super) enum Disconnect {
    /// The connection broke.
    Lost,
    /// The client closed its side of the connection without a Close frame.
    Eof,
    /// The client sent a Close frame, with this code if it gave one.
    Left(Option<u16>),
    /// The server gives up the connection, but not the session.
    Detached(Close),
    /// The server closes the session.
    Closed(Close),
    /// The client has not reconnected in time.
    Expired,
    /// The session has moved to another node.
    Migrated,
}

impl Disconnect {
    /// The value of the metrics' label `cause`.
    pub(super) fn cause(&self) -> &'static str {
        match self {
            Disconnect::Lost => "lost",
            Disconnect::Eof => "eof",
            Disconnect::Left(_) => "left",
            Disconnect::Detached(_) | Disconnect::Closed(_) => "closed",
            Disconnect::Expired => "expired",
            Disconnect::Migrated => "migrated",
        }
    }

    /// Whether only the connection is lost, so that a resumable session waits for the next one.
    pub(super) fn is_loss(&self) -> bool {
        match self {
            Disconnect::Lost
            | Disconnect::Eof
            | Disconnect::Left(Some(BACK_SOON))
            | Disconnect::Detached(_) => true,
            Disconnect::Left(_)
            | Disconnect::Closed(_)
            | Disconnect::Expired
            | Disconnect::Migrated => false,
        }
    }

    /// The Close frame with which the server ends the session or the connection, if it does.
    pub(super) fn close(&self) -> Option<&Close> {
        match self {
            Disconnect::Detached(close) | Disconnect::Closed(close) => Some(close),
            _ => None,
        }
    }
}

impl From<Command> for Disconnect {
    fn from(command: Command) -> Disconnect {
        match command {
            Command::Detach(close) => Disconnect::Detached(close),
            Command::Close(close) => Disconnect::Closed(close),
        }
    }
}

impl Display for Disconnect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Disconnect::Lost => f.write_str("the connection was lost"),
            Disconnect::Eof => f.write_str("the client closed without a Close frame"),
            Disconnect::Left(Some(code)) => write!(f, "the client closed ({code})"),
            Disconnect::Left(None) => f.write_str("the client closed"),
            Disconnect::Detached(close) | Disconnect::Closed(close) => {
                write!(f, "the server closed ({close})")
            }
            Disconnect::Expired => f.write_str("the client did not reconnect in time"),
            Disconnect::Migrated => f.write_str("the session moved to another node"),
        }
    }
}
