//! Options of rooms that keep their last messages.

use std::{num::NonZeroU32, path::PathBuf, time::Duration};

#[cfg(feature = "cli")]
use clap::Args;

use super::check::within;
#[cfg(feature = "cli")]
use super::parse::positive;

/// Seconds in a day.
const DAY: u64 = 24 * 60 * 60;

/// The longest pattern: the longest name of a room, and a star.
const MAX_PATTERN: usize = 129;

/// The most NATS servers that can keep a stream.
#[cfg(feature = "cluster")]
const MAX_REPLICAS: u64 = 5;

/// Which rooms keep their last messages, how many, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "cli", derive(Args), command(next_help_heading = "History"))]
#[non_exhaustive]
pub struct HistoryOptions {
    /// Room that keeps its last messages to all, for those who come later; a * at the end stands for
    /// any end; may be given several times [default: no room]
    #[cfg_attr(
        feature = "cli",
        arg(
            long = "history-room",
            env = "ANTEROOM_HISTORY_ROOM",
            value_name = "NAME",
            value_delimiter = ','
        )
    )]
    pub rooms: Vec<String>,

    /// Most messages that each of these rooms keeps
    #[cfg_attr(feature = "cli", arg(
        long = "history-messages", env = "ANTEROOM_HISTORY_MESSAGES", value_name = "COUNT",
        default_value_t = HistoryOptions::default().messages, value_parser = positive
    ))]
    pub messages: NonZeroU32,

    /// Time for which a message is kept, in days
    #[cfg_attr(feature = "cli", arg(
        long = "history-days", env = "ANTEROOM_HISTORY_DAYS", value_name = "DAYS",
        default_value_t = HistoryOptions::default().days, value_parser = positive
    ))]
    pub days: NonZeroU32,

    /// Most bytes that all rooms keep together, 64 bytes extra for each message; the oldest messages
    /// go first
    #[cfg_attr(feature = "cli", arg(
        long = "history-bytes", env = "ANTEROOM_HISTORY_BYTES", value_name = "BYTES",
        default_value_t = HistoryOptions::default().bytes
    ))]
    pub bytes: u64,

    /// Folder that keeps the messages of a single node over a restart; it is created if it does not
    /// exist [default: in memory]
    #[cfg_attr(
        feature = "cli",
        arg(
            long = "history-dir",
            env = "ANTEROOM_HISTORY_DIR",
            value_name = "FOLDER"
        )
    )]
    pub dir: Option<PathBuf>,

    /// Where JetStream keeps the messages of a cluster: in a file, or in memory [default: file]
    #[cfg(feature = "cluster")]
    #[cfg_attr(
        feature = "cli",
        arg(
            long = "history-storage",
            env = "ANTEROOM_HISTORY_STORAGE",
            value_name = "STORAGE",
            hide_possible_values = true
        )
    )]
    pub storage: Option<HistoryStorage>,

    /// NATS servers that each keep the messages of a cluster [default: 1]
    #[cfg(feature = "cluster")]
    #[cfg_attr(
        feature = "cli",
        arg(
            long = "history-replicas",
            env = "ANTEROOM_HISTORY_REPLICAS",
            value_name = "COUNT"
        )
    )]
    pub replicas: Option<u8>,
}

/// Where JetStream keeps messages.
#[cfg(feature = "cluster")]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[non_exhaustive]
pub enum HistoryStorage {
    /// In a file: they outlive the NATS servers.
    #[default]
    File,
    /// In memory: they are lost when the last server that has them stops.
    Memory,
}

impl Default for HistoryOptions {
    fn default() -> HistoryOptions {
        HistoryOptions {
            rooms: Vec::new(),
            messages: NonZeroU32::new(1000).expect("it is not zero"),
            days: NonZeroU32::new(30).expect("it is not zero"),
            bytes: 256 << 20,
            dir: None,
            #[cfg(feature = "cluster")]
            storage: None,
            #[cfg(feature = "cluster")]
            replicas: None,
        }
    }
}

impl HistoryOptions {
    pub(super) fn check(&self) -> Result<(), String> {
        within(
            "--history-messages",
            self.messages.get().into(),
            1..=1_000_000,
        )?;
        within("--history-days", self.days.get().into(), 1..=36_500)?;
        within("--history-bytes", self.bytes, 1 << 20..=1 << 40)?;
        let is_pattern = |name: &String| (1..=MAX_PATTERN).contains(&name.len());
        if let Some(name) = self.rooms.iter().find(|name| !is_pattern(name)) {
            let length = name.len();
            return Err(format!(
                "--history-room must have 1 to {MAX_PATTERN} bytes, not {length}"
            ));
        }
        match (&self.dir, self.rooms.is_empty()) {
            (Some(_), true) => Err("--history-dir needs --history-room".into()),
            _ => Ok(()),
        }
    }

    /// Checks that the options are those of a cluster, or of a single node.
    #[cfg(feature = "cluster")]
    pub(super) fn check_place(&self, is_cluster: bool) -> Result<(), String> {
        let has_stream_options = self.storage.is_some() || self.replicas.is_some();
        match is_cluster {
            true if self.dir.is_some() => Err(
                "--history-dir is for a server without --cluster: in a cluster, JetStream keeps the messages"
                    .into(),
            ),
            false if has_stream_options => {
                Err("--history-storage and --history-replicas need --cluster".into())
            }
            _ if has_stream_options && self.rooms.is_empty() => {
                Err("--history-storage and --history-replicas need --history-room".into())
            }
            _ => within("--history-replicas", self.replicas().into(), 1..=MAX_REPLICAS),
        }
    }

    /// How many NATS servers keep the messages.
    #[cfg(feature = "cluster")]
    pub(crate) fn replicas(&self) -> u8 {
        self.replicas.unwrap_or(1)
    }

    /// How long a message is kept.
    pub(crate) fn age(&self) -> Duration {
        Duration::from_secs(DAY * u64::from(self.days.get()))
    }
}
