//! Errors that clients are told of.

use std::fmt::Display;

use serde::{Serialize, Serializer};

use super::text::quote;

/// Why a message was not delivered, or not understood.
#[derive(Debug)]
pub(crate) struct Problem {
    pub(crate) code: ErrorCode,
    /// What is wrong and what to do, for people.
    pub(crate) message: String,
}

/// The stable names of problems.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ErrorCode {
    /// Not JSON, not an object, or a field that is missing, doubled, unknown or of the wrong type.
    BadMessage,
    /// No such session in this room.
    UnknownReceiver,
    /// Written to all, and nobody else is here.
    EmptyRoom,
    /// The server does not know this request.
    UnknownRequest,
    /// The session's token does not allow this, or is none that is good.
    NotAllowed,
    /// The session that was asked for could not be resumed.
    ResumeFailed,
}

impl ErrorCode {
    pub(crate) const ALL: [ErrorCode; 6] = [
        ErrorCode::BadMessage,
        ErrorCode::UnknownReceiver,
        ErrorCode::EmptyRoom,
        ErrorCode::UnknownRequest,
        ErrorCode::NotAllowed,
        ErrorCode::ResumeFailed,
    ];

    /// The code as it stands in the message.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            ErrorCode::BadMessage => "bad_message",
            ErrorCode::UnknownReceiver => "unknown_receiver",
            ErrorCode::EmptyRoom => "empty_room",
            ErrorCode::UnknownRequest => "unknown_request",
            ErrorCode::NotAllowed => "not_allowed",
            ErrorCode::ResumeFailed => "resume_failed",
        }
    }
}

impl Serialize for ErrorCode {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl Problem {
    pub(crate) fn unknown_receiver(receiver: impl Display) -> Problem {
        let receiver = receiver.to_string();
        Problem {
            code: ErrorCode::UnknownReceiver,
            message: format!("no session {} in this room", quote(&receiver)),
        }
    }

    pub(crate) fn empty_room() -> Problem {
        Problem {
            code: ErrorCode::EmptyRoom,
            message: "nobody else is in this room".into(),
        }
    }

    pub(crate) fn resume_failed() -> Problem {
        Problem {
            code: ErrorCode::ResumeFailed,
            message:
                "the session could not be resumed: this is a new one, and hello tells who is here"
                    .into(),
        }
    }

    pub(crate) fn bad_message(message: &str) -> Problem {
        Problem {
            code: ErrorCode::BadMessage,
            message: message.into(),
        }
    }

    pub(crate) fn not_allowed(message: &str) -> Problem {
        Problem {
            code: ErrorCode::NotAllowed,
            message: message.into(),
        }
    }

    /// `known` are the requests there are.
    pub(crate) fn unknown_request(kind: &str, known: &str) -> Problem {
        Problem {
            code: ErrorCode::UnknownRequest,
            message: format!("no request {}: the server answers {known}", quote(kind)),
        }
    }
}
