//! Close codes and reasons.

use std::{
    borrow::Cow,
    fmt::{self, Display},
};

use crate::websocket::Frame;

/// The close code of a client that gives its connection up and will be back: it counts as lost.
pub(crate) const BACK_SOON: u16 = 4000;

/// Why the server closes a connection: the code and the reason of its Close frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Close {
    pub(crate) code: CloseCode,
    pub(crate) reason: Cow<'static, str>,
}

/// The close codes the server gives (RFC 6455, section 7.4.1, and the registry it founds).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CloseCode {
    /// No pong in time.
    GoingAway = 1001,
    /// The WebSocket protocol was violated.
    ProtocolError = 1002,
    /// A binary message.
    UnsupportedData = 1003,
    /// Text that is not UTF-8.
    InvalidPayload = 1007,
    /// Not allowed (any longer).
    PolicyViolation = 1008,
    /// A message over the limit.
    MessageTooBig = 1009,
    /// The server is going away.
    ServiceRestart = 1012,
    /// What waited to be sent passed the limit.
    TryAgainLater = 1013,
}

impl CloseCode {
    pub(crate) const ALL: [CloseCode; 8] = [
        CloseCode::GoingAway,
        CloseCode::ProtocolError,
        CloseCode::UnsupportedData,
        CloseCode::InvalidPayload,
        CloseCode::PolicyViolation,
        CloseCode::MessageTooBig,
        CloseCode::ServiceRestart,
        CloseCode::TryAgainLater,
    ];
}

impl Close {
    pub(crate) fn new(code: CloseCode, reason: impl Into<Cow<'static, str>>) -> Close {
        Close {
            code,
            reason: reason.into(),
        }
    }

    /// The server is going away; the client shall come back after `delay_ms` milliseconds.
    pub(crate) fn restart(delay_ms: u64) -> Close {
        let reason = format!("the server is going away: retry in {delay_ms} ms");
        Close::new(CloseCode::ServiceRestart, reason)
    }

    /// An operator has asked for it.
    pub(crate) fn by_operator() -> Close {
        Close::new(CloseCode::PolicyViolation, "closed by an operator")
    }

    /// The session goes on with another connection.
    pub(crate) fn taken_over() -> Close {
        Close::new(CloseCode::PolicyViolation, "resumed on another connection")
    }

    pub(crate) fn frame(&self) -> Frame {
        Frame::close(Some((self.code as u16, &self.reason)))
    }
}

impl Display for Close {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.code as u16, self.reason)
    }
}
