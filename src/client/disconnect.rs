//! Why a connection did not open, or ended.

use std::{
    fmt::{self, Display},
    time::Duration,
};

/// The closing of a connection that the server restarts; its reason has a delay.
const RESTART: u16 = 1012;

/// What `retry in N ms` in the reason of a Close frame begins with.
const RETRY: &str = "retry in ";

/// The longest delay that a server can ask for.
const MAX_DELAY: Duration = Duration::from_secs(3600);

/// Why a connection did not open, or ended.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Disconnect {
    /// The application left the room.
    Left,
    /// The server, or a proxy, answered the upgrade with another status than 101.
    Refused {
        /// The HTTP status.
        status: u16,
        /// The answer's first line if it is plain text, which says what is wrong; empty otherwise.
        line: String,
        /// The value of `Retry-After`.
        retry_after: Option<Duration>,
    },
    /// A Close frame.
    Closed {
        /// Its code; 1005 if it has none.
        code: u16,
        /// Its reason.
        reason: String,
    },
    /// No connection could be opened: the name does not resolve, nothing listens, or TLS fails.
    Unreachable(String),
    /// The connection ended without a Close frame.
    Cut(String),
    /// Nothing came for this long.
    Silent(Duration),
    /// The function that returns the token failed.
    Token(String),
    /// The other side breaks the protocol: it is no anteroom server.
    Protocol(String),
    /// The application reads its events too slowly.
    Overflow,
}

impl Disconnect {
    /// How long the server asks to wait before the next attempt.
    pub fn retry_after(&self) -> Option<Duration> {
        let asked = match self {
            Disconnect::Refused { retry_after, .. } => (*retry_after)?,
            Disconnect::Closed {
                code: RESTART | 4429 | 4503,
                reason,
            } => {
                let (_, number) = reason.split_once(RETRY)?;
                let (number, _) = number.split_once(" ms")?;
                Duration::from_millis(number.parse().ok()?)
            }
            _ => return None,
        };
        Some(asked.min(MAX_DELAY))
    }

    /// Whether another attempt with the same token would fail the same way. The Close code 1008 is final unless the
    /// session was resumed on another connection: that may be an earlier attempt which arrived late.
    pub fn is_final(&self) -> bool {
        match self {
            Disconnect::Left | Disconnect::Protocol(_) | Disconnect::Overflow => true,
            Disconnect::Refused { status, .. } => {
                !matches!(status, 408 | 425 | 429 | 500..) && *status != 101
            }
            Disconnect::Closed { code: 1008, reason } => !reason.starts_with("resumed"),
            Disconnect::Closed { code, .. } => {
                matches!(code, 1002 | 1003 | 1007 | 1009 | 4401 | 4403)
            }
            _ => false,
        }
    }

    /// Whether the server does not accept the token, so that a fresh one may help.
    pub(super) fn is_of_token(&self) -> bool {
        match self {
            Disconnect::Refused { status, .. } => matches!(status, 401 | 403),
            Disconnect::Closed { code: 1008, reason } => reason.starts_with("the token"),
            Disconnect::Closed { code, .. } => matches!(code, 4401 | 4403),
            _ => false,
        }
    }
}

impl Display for Disconnect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Disconnect::Left => f.write_str("left"),
            Disconnect::Refused { status, line, .. } if line.is_empty() => {
                write!(f, "the connection was refused ({status})")
            }
            Disconnect::Refused { status, line, .. } => {
                write!(f, "the connection was refused ({status}: {line})")
            }
            Disconnect::Closed { code, reason } if reason.is_empty() => {
                write!(f, "the connection was closed ({code})")
            }
            Disconnect::Closed { code, reason } => {
                write!(f, "the connection was closed ({code}: {reason})")
            }
            Disconnect::Unreachable(reason) => write!(f, "the server is not reached: {reason}"),
            Disconnect::Cut(reason) => write!(f, "the connection was cut: {reason}"),
            Disconnect::Silent(time) => write!(f, "no answer in {time:.0?}"),
            Disconnect::Token(reason) => write!(f, "there is no token: {reason}"),
            Disconnect::Protocol(reason) => {
                write!(f, "the other side is no anteroom server: {reason}")
            }
            Disconnect::Overflow => f.write_str("the application reads its events too slowly"),
        }
    }
}

impl std::error::Error for Disconnect {}

#[cfg(test)]
mod tests {
    use super::*;

    fn closed(code: u16, reason: &str) -> Disconnect {
        let reason = reason.into();
        Disconnect::Closed { code, reason }
    }

    fn refused(status: u16, seconds: Option<u64>) -> Disconnect {
        Disconnect::Refused {
            status,
            line: String::new(),
            retry_after: seconds.map(Duration::from_secs),
        }
    }

    #[test]
    fn the_delay_that_the_server_asks_for_is_read() {
        for (disconnect, expected) in [
            (
                closed(1012, "the server is stopping: retry in 250 ms"),
                Some(250),
            ),
            (closed(4429, "too many (retry in 1500 ms)"), Some(1500)),
            (
                closed(4503, "full (retry in 99999999999 ms)"),
                Some(3_600_000),
            ),
            (closed(1013, "retry in 250 ms"), None),
            (closed(1012, "retry in x ms"), None),
            (closed(1012, ""), None),
            (refused(503, Some(2)), Some(2000)),
            (refused(503, None), None),
            (Disconnect::Left, None),
        ] {
            let expected = expected.map(Duration::from_millis);
            assert_eq!(disconnect.retry_after(), expected, "{disconnect}");
        }
    }

    #[test]
    fn what_an_attempt_would_repeat_is_final() {
        for code in [1002, 1003, 1007, 1008, 1009, 4401, 4403] {
            assert!(closed(code, "").is_final(), "{code}");
        }
        for code in [1000, 1001, 1005, 1006, 1011, 1012, 1013, 4429, 4503] {
            assert!(!closed(code, "").is_final(), "{code}");
        }
        assert!(!closed(1008, "resumed on another connection").is_final());
        for status in [200, 302, 400, 401, 403, 404, 426] {
            assert!(refused(status, None).is_final(), "{status}");
        }
        for status in [408, 429, 500, 502, 503, 504] {
            assert!(!refused(status, None).is_final(), "{status}");
        }
        assert!(!Disconnect::Cut(String::new()).is_final());
    }
}
