//! Why a message was not delivered.

use std::fmt::{self, Display};

use super::disconnect::Disconnect;

/// Why a message was not delivered, or a request not answered.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SendError {
    /// The server answered with an error.
    Rejected {
        /// What is wrong, in a stable word: `unknown_receiver`, `empty_room`, `not_allowed`, …
        code: String,
        /// The same for people.
        message: String,
    },
    /// The connection was lost and the session could not be resumed: it is unknown whether the message has arrived.
    Lost,
    /// The room is closed.
    Closed(Disconnect),
    /// Too much is queued or not acknowledged yet.
    Full,
    /// The message is longer than the server accepts, or than the whole queue.
    TooLarge {
        /// Its length in bytes.
        bytes: usize,
        /// The longest that is accepted.
        limit: usize,
    },
    /// The receiver of bytes is neither a session id nor `"all"`.
    Receiver,
    /// The data is no JSON.
    Data(String),
}

impl Display for SendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SendError::Rejected { message, .. } => f.write_str(message),
            SendError::Lost => f.write_str(
                "the connection was lost before the receipt arrived, and the session is a new one",
            ),
            SendError::Closed(why) => write!(f, "the room is closed: {why}"),
            SendError::Full => f.write_str("too much is queued: wait for receipts"),
            SendError::TooLarge { bytes, limit } => {
                write!(f, "the message has {bytes} bytes, and may have {limit}")
            }
            SendError::Receiver => f.write_str("bytes go to a session id or to \"all\""),
            SendError::Data(reason) => write!(f, "the data is no JSON: {reason}"),
        }
    }
}

impl std::error::Error for SendError {}
