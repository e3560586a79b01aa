//! The errors that the server sends to clients.

use std::fmt::Display;

use serde::{Serialize, Serializer};

use super::text::quote;

/// Why the server did not deliver or process a message.
#[derive(Debug)]
pub(crate) struct Problem {
    pub(crate) code: ErrorCode,
    /// The error and its remedy, for people. Programs use the code.
    pub(crate) message: String,
}

/// The kinds of problems. Their names on the wire never change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ErrorCode {
    /// The message is not a JSON object, or a field is missing, repeated, unknown or of the wrong type.
    BadMessage,
    /// The receiver is not a session of this room.
    UnknownReceiver,
    /// The message is to all, but no other session is in the room.
    EmptyRoom,
    /// The server does not know a request of this type.
    UnknownRequest,
    /// The session's token does not allow this, or a new token is not valid.
    NotAllowed,
    /// The requested session could not be resumed.
    ResumeFailed,
    /// The room keeps no history.
    NoHistory,
    /// A message was delivered and not stored, or the history cannot be read.
    HistoryFailed,
}

impl ErrorCode {
    pub(crate) const ALL: [ErrorCode; 8] = [
        ErrorCode::BadMessage,
        ErrorCode::UnknownReceiver,
        ErrorCode::EmptyRoom,
        ErrorCode::UnknownRequest,
        ErrorCode::NotAllowed,
        ErrorCode::ResumeFailed,
        ErrorCode::NoHistory,
        ErrorCode::HistoryFailed,
    ];

    /// The code in the message.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            ErrorCode::BadMessage => "bad_message",
            ErrorCode::UnknownReceiver => "unknown_receiver",
            ErrorCode::EmptyRoom => "empty_room",
            ErrorCode::UnknownRequest => "unknown_request",
            ErrorCode::NotAllowed => "not_allowed",
            ErrorCode::ResumeFailed => "resume_failed",
            ErrorCode::NoHistory => "no_history",
            ErrorCode::HistoryFailed => "history_failed",
        }
    }
}

impl Serialize for ErrorCode {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl Problem {
    /// No session of the room has this id.
    pub(crate) fn unknown_receiver(receiver: impl Display) -> Problem {
        let receiver = receiver.to_string();
        Problem {
            code: ErrorCode::UnknownReceiver,
            message: format!("no session {} in this room", quote(&receiver)),
        }
    }

    /// The room has no other session of this user.
    pub(crate) fn unknown_user(name: &str) -> Problem {
        Problem {
            code: ErrorCode::UnknownReceiver,
            message: format!("no other session of user {} in this room", quote(name)),
        }
    }

    /// No other session is in the room.
    pub(crate) fn empty_room() -> Problem {
        Problem {
            code: ErrorCode::EmptyRoom,
            message: "no other session is in this room".into(),
        }
    }

    /// The client has a new session instead of the requested one.
    pub(crate) fn resume_failed() -> Problem {
        Problem {
            code: ErrorCode::ResumeFailed,
            message:
                "the session could not be resumed, and this is a new one: send hello to learn \
                      who is in the room"
                    .into(),
        }
    }

    /// The room keeps no history.
    pub(crate) fn no_history() -> Problem {
        Problem {
            code: ErrorCode::NoHistory,
            message: "this room keeps no history".into(),
        }
    }

    /// A message is not stored.
    pub(crate) fn not_stored() -> Problem {
        Problem {
            code: ErrorCode::HistoryFailed,
            message: "the message is delivered, but not stored in the history of the room".into(),
        }
    }

    /// The history cannot be read.
    pub(crate) fn history_unavailable() -> Problem {
        Problem {
            code: ErrorCode::HistoryFailed,
            message: "the history cannot be read now: try again".into(),
        }
    }

    /// A request to the server with invalid `data`.
    pub(crate) fn bad_message(message: impl Into<String>) -> Problem {
        Problem {
            code: ErrorCode::BadMessage,
            message: message.into(),
        }
    }

    /// The states of a room are too long together.
    pub(crate) fn too_many_states(most: usize) -> Problem {
        Problem::not_allowed(&format!(
            "the states of a room may have {most} bytes together: set a shorter one"
        ))
    }

    /// The token allows to listen only.
    pub(crate) fn listens_only() -> Problem {
        Problem::not_allowed("your token lets you listen only")
    }

    /// The token does not allow a message.
    pub(crate) fn not_allowed(message: &str) -> Problem {
        Problem {
            code: ErrorCode::NotAllowed,
            message: message.into(),
        }
    }

    /// No request has this type. `known` lists those that exist.
    pub(crate) fn unknown_request(kind: &str, known: &str) -> Problem {
        Problem {
            code: ErrorCode::UnknownRequest,
            message: format!(
                "unknown request {}: the server answers {known}",
                quote(kind)
            ),
        }
    }
}
