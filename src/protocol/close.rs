//! The codes and reasons of Close frames.

use std::{
    borrow::Cow,
    fmt::{self, Display},
};

use http::StatusCode;

use crate::{random, web::HttpError, websocket::Frame};

/// The close code of a client that gives up on its connection and is about to reconnect. The session is
/// suspended as if the connection were lost, because a browser cannot drop a connection without a Close
/// frame.
pub(crate) const BACK_SOON: u16 = 4000;

/// Why the server closes a connection: the code and the reason of the Close frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Close {
    pub(crate) code: CloseCode,
    pub(crate) reason: Cow<'static, str>,
}

/// The close codes that the server sends (RFC 6455, section 7.4.1, and the IANA registry that it
/// establishes).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CloseCode {
    /// The client did not answer a ping in time.
    GoingAway = 1001,
    /// The client broke the WebSocket protocol.
    ProtocolError = 1002,
    /// The client sent a binary message, and its dialect has none.
    UnsupportedData = 1003,
    /// The client sent text that is not UTF-8.
    InvalidPayload = 1007,
    /// The session is not allowed, or no longer.
    PolicyViolation = 1008,
    /// The client sent a message over the limit.
    MessageTooBig = 1009,
    /// The server stops or restarts.
    ServiceRestart = 1012,
    /// The client read too slowly: its outbox is full.
    TryAgainLater = 1013,
    /// A token is required, or the token is not valid.
    Unauthorized = 4401,
    /// The origin or the token does not admit to the room.
    Forbidden = 4403,
    /// The address has used up its share.
    TooManyRequests = 4429,
    /// The room is full.
    RoomFull = 4503,
}

impl CloseCode {
    pub(crate) const ALL: [CloseCode; 12] = [
        CloseCode::GoingAway,
        CloseCode::ProtocolError,
        CloseCode::UnsupportedData,
        CloseCode::InvalidPayload,
        CloseCode::PolicyViolation,
        CloseCode::MessageTooBig,
        CloseCode::ServiceRestart,
        CloseCode::TryAgainLater,
        CloseCode::Unauthorized,
        CloseCode::Forbidden,
        CloseCode::TooManyRequests,
        CloseCode::RoomFull,
    ];

    /// The code in the Close frame.
    pub(crate) fn number(self) -> u16 {
        self as u16
    }
}

impl Close {
    /// A code with a reason, which is truncated to 123 bytes when it is sent.
    pub(crate) fn new(code: CloseCode, reason: impl Into<Cow<'static, str>>) -> Close {
        Close {
            code,
            reason: reason.into(),
        }
    }

    /// The server stops. The client should reconnect after `delay_ms` milliseconds; clients parse the
    /// number from the reason.
    pub(crate) fn restart(delay_ms: u64) -> Close {
        let reason = format!("the server is stopping: retry in {delay_ms} ms");
        Close::new(CloseCode::ServiceRestart, reason)
    }

    /// What a client that knows the subprotocol gets in place of an HTTP status, which a browser does
    /// not tell its page. `None` for an error that is not about this client or room: a balancer acts on its
    /// status.
    pub(crate) fn refusal(error: &HttpError) -> Option<Close> {
        let code = match error.status() {
            StatusCode::UNAUTHORIZED => CloseCode::Unauthorized,
            StatusCode::FORBIDDEN => CloseCode::Forbidden,
            StatusCode::TOO_MANY_REQUESTS => CloseCode::TooManyRequests,
            StatusCode::SERVICE_UNAVAILABLE if error.is_room_full() => CloseCode::RoomFull,
            _ => return None,
        };
        let reason = match error.retry_seconds() {
            Some(seconds) => {
                let delay_ms = spread(seconds * 1000);
                format!("{} (retry in {delay_ms} ms)", error.message()).into()
            }
            None => error.message(),
        };
        Some(Close::new(code, reason))
    }

    /// An operator closed the session.
    pub(crate) fn by_operator() -> Close {
        Close::new(CloseCode::PolicyViolation, "closed by an operator")
    }

    /// The session continues on another connection.
    pub(crate) fn taken_over() -> Close {
        Close::new(CloseCode::PolicyViolation, "resumed on another connection")
    }

    /// Another session has the name that the session claims.
    pub(crate) fn name_taken() -> Close {
        Close::new(CloseCode::PolicyViolation, "another session has the name")
    }

    /// The Close frame.
    pub(crate) fn frame(&self) -> Frame {
        Frame::close(Some((self.code.number(), &self.reason)))
    }
}

/// The delay, lengthened by a random part of itself, so that a refused crowd does not return all at once.
fn spread(delay_ms: u64) -> u64 {
    let random = u64::from_ne_bytes(random::bits());
    delay_ms + random % delay_ms.max(1)
}

impl Display for Close {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.code.number(), self.reason)
    }
}
