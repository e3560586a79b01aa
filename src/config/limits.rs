//! Limits: the options that set them, and the names by which metrics and logs tell them apart.

use std::{num::NonZeroU32, time::Duration};

#[cfg(feature = "cli")]
use clap::Args;

use super::check::within;
#[cfg(feature = "cli")]
use super::parse::positive;

/// Bytes in a kibibyte.
const KIB: u64 = 1 << 10;

/// Bytes in a gibibyte.
const GIB: u64 = 1 << 30;

/// Open files that the default of `--max-sessions` leaves unused: for the listener, for requests that
/// open no session, and for the 503 to connections beyond the limit. If the open-file limit is low, a
/// quarter of it is left unused.
const SPARE_FILES: u64 = 256;

/// Most bytes that relaying adds to a message: its sender and the other fields.
const ENVELOPE_BYTES: usize = 1024;

/// The most that clients may ask of the server.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "cli", derive(Args), command(next_help_heading = "Limits"))]
#[non_exhaustive]
pub struct Limits {
    /// Longest message that a client may send, in bytes; a longer one closes the connection (1009)
    #[cfg_attr(feature = "cli", arg(
        long, env = "ANTEROOM_MAX_MESSAGE_BYTES", value_name = "BYTES",
        default_value_t = Limits::default().max_message_bytes
    ))]
    pub max_message_bytes: usize,

    /// Longest state that a session may set, in bytes
    #[cfg_attr(feature = "cli", arg(
        long, env = "ANTEROOM_MAX_STATE_BYTES", value_name = "BYTES",
        default_value_t = Limits::default().max_state_bytes
    ))]
    pub max_state_bytes: usize,

    /// Most bytes that wait for one session, in its outbox or its replay buffer; each message
    /// counts 64 bytes more than its length; a session beyond the limit is closed (1013)
    #[cfg_attr(feature = "cli", arg(
        long, env = "ANTEROOM_OUTBOX_BYTES", value_name = "BYTES",
        default_value_t = Limits::default().outbox_bytes
    ))]
    pub outbox_bytes: usize,

    /// Most sessions on this server; further connections get 503 [default: what the open-file limit
    /// allows]
    #[cfg_attr(
        feature = "cli",
        arg(long, env = "ANTEROOM_MAX_SESSIONS", value_name = "COUNT")
    )]
    pub max_sessions: Option<usize>,

    /// Most sessions in one room; further connections get 503 [default: no limit]
    #[cfg_attr(feature = "cli", arg(
        long, env = "ANTEROOM_MAX_ROOM_SESSIONS", value_name = "COUNT", value_parser = positive
    ))]
    pub max_room_sessions: Option<NonZeroU32>,

    /// Most rooms on this server; connections that would open another get 503 [default: no limit]
    #[cfg_attr(feature = "cli", arg(
        long, env = "ANTEROOM_MAX_ROOMS", value_name = "COUNT", value_parser = positive
    ))]
    pub max_rooms: Option<NonZeroU32>,

    /// Most sessions from one IPv4 address or one IPv6 /64 network; further connections get 429
    /// [default: no limit]
    #[cfg_attr(feature = "cli", arg(
        long, env = "ANTEROOM_MAX_ADDRESS_SESSIONS", value_name = "COUNT",
        value_parser = positive
    ))]
    pub max_address_sessions: Option<NonZeroU32>,

    /// Most connection attempts per second from one IPv4 address or one IPv6 /64 network, with a
    /// burst of two seconds; further attempts get 429 [default: no limit]
    #[cfg_attr(feature = "cli", arg(
        long, env = "ANTEROOM_JOINS_PER_SECOND", value_name = "COUNT", value_parser = positive
    ))]
    pub joins_per_second: Option<NonZeroU32>,

    /// Average rate of messages that a session may send, with a burst of two seconds; pings and
    /// fragments count; the server stops reading from a session over the rate until the session is
    /// within it again [default: no limit]
    #[cfg_attr(feature = "cli", arg(
        long, env = "ANTEROOM_MESSAGES_PER_SECOND", value_name = "COUNT",
        value_parser = positive
    ))]
    pub messages_per_second: Option<NonZeroU32>,

    /// Average rate of bytes that a session may send and cause to be sent to any session, with a
    /// burst of two seconds; enforced like --messages-per-second [default: no limit]
    #[cfg_attr(feature = "cli", arg(
        long, env = "ANTEROOM_BYTES_PER_SECOND", value_name = "BYTES", value_parser = positive
    ))]
    pub bytes_per_second: Option<NonZeroU32>,

    /// Most topics that a connection of y-webrtc or trystero may be subscribed to
    #[cfg_attr(feature = "cli", arg(
        long, env = "ANTEROOM_MAX_TOPICS", value_name = "COUNT",
        default_value_t = Limits::default().max_topics
    ))]
    pub max_topics: usize,

    /// Time limit from the connection to the end of the request headers, in seconds; the TLS
    /// handshake has the same limit for itself
    #[cfg_attr(feature = "cli", arg(
        long, env = "ANTEROOM_HANDSHAKE_SECONDS", value_name = "SECONDS",
        default_value_t = Limits::default().handshake_seconds
    ))]
    pub handshake_seconds: u64,

    /// Longest request without its body, in bytes; a longer one gets 431
    #[cfg_attr(feature = "cli", arg(
        long, env = "ANTEROOM_MAX_HEADER_BYTES", value_name = "BYTES",
        default_value_t = Limits::default().max_header_bytes
    ))]
    pub max_header_bytes: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            max_message_bytes: 65_536,
            max_state_bytes: 4096,
            outbox_bytes: 1 << 20,
            max_sessions: None,
            max_room_sessions: None,
            max_rooms: None,
            max_address_sessions: None,
            joins_per_second: None,
            messages_per_second: None,
            bytes_per_second: None,
            max_topics: 100,
            handshake_seconds: 10,
            max_header_bytes: 16 << 10,
        }
    }
}

impl Limits {
    pub(super) fn check(&self) -> Result<(), String> {
        let bytes = |count: usize| count as u64;
        within(
            "--max-message-bytes",
            bytes(self.max_message_bytes),
            1..=GIB,
        )?;
        within(
            "--max-state-bytes",
            bytes(self.max_state_bytes),
            0..=KIB * KIB,
        )?;
        within("--outbox-bytes", bytes(self.outbox_bytes), 1..=4 * GIB)?;
        if let Some(sessions) = self.max_sessions {
            within("--max-sessions", bytes(sessions), 1..=GIB)?;
        }
        within("--max-topics", bytes(self.max_topics), 1..=KIB * KIB)?;
        within("--handshake-seconds", self.handshake_seconds, 1..=3600)?;
        within(
            "--max-header-bytes",
            bytes(self.max_header_bytes),
            KIB..=KIB * KIB,
        )?;
        let least = self.max_message_bytes + ENVELOPE_BYTES;
        if self.outbox_bytes < least {
            let given = self.outbox_bytes;
            return Err(format!(
                "--outbox-bytes must hold one message of --max-message-bytes: at least {least}, not {given}"
            ));
        }
        Ok(())
    }

    /// The longest state that fits into a message.
    pub(crate) fn state_bytes(&self) -> usize {
        self.max_state_bytes.min(self.max_message_bytes)
    }

    pub(crate) fn handshake(&self) -> Duration {
        Duration::from_secs(self.handshake_seconds)
    }
}

/// The number of files that the process may open.
pub(super) fn open_files() -> u64 {
    // A limit that cannot be read counts as none.
    rlimit::Resource::NOFILE
        .get_soft()
        .unwrap_or(rlimit::INFINITY)
}

/// The number of sessions that the open-file limit allows beside `others`, which are not for sessions.
pub(super) fn sessions_by_files(others: usize) -> usize {
    let files = open_files().saturating_sub(others as u64);
    let sessions = files - SPARE_FILES.min(files / 4);
    usize::try_from(sessions).unwrap_or(usize::MAX)
}

/// A limit that a client can reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Limit {
    Sessions,
    Rooms,
    RoomSessions,
    AddressSessions,
    JoinRate,
    MessageRate,
    ByteRate,
    Topics,
}

impl Limit {
    pub(crate) const ALL: [Limit; 8] = [
        Limit::Sessions,
        Limit::Rooms,
        Limit::RoomSessions,
        Limit::AddressSessions,
        Limit::JoinRate,
        Limit::MessageRate,
        Limit::ByteRate,
        Limit::Topics,
    ];

    /// The option that sets the limit, without dashes.
    pub(crate) fn option(self) -> &'static str {
        match self {
            Limit::Sessions => "max-sessions",
            Limit::Rooms => "max-rooms",
            Limit::RoomSessions => "max-room-sessions",
            Limit::AddressSessions => "max-address-sessions",
            Limit::JoinRate => "joins-per-second",
            Limit::MessageRate => "messages-per-second",
            Limit::ByteRate => "bytes-per-second",
            Limit::Topics => "max-topics",
        }
    }
}
