//! The log of the program: `RUST_LOG` chooses the records, except those that may have a secret.

use env_logger::{Builder, Env, Logger};
use log::{LevelFilter, Log, Metadata, Record};

/// The filter when `RUST_LOG` is not set.
const DEFAULT: &str = "anteroom=info";

/// The most verbose level of libraries that handle secrets or are loud, by target.
///
/// At `trace` async-nats logs the whole of every message from other nodes. Such a message may have the
/// outbox of a session that migrates, with its resume token and TURN password.
///
/// The parsers of STUN messages log keys at `trace`, and a warning for each invalid datagram, which anybody can send.
const AT_MOST: [(&str, LevelFilter); 4] = [
    ("async_nats", LevelFilter::Debug),
    ("stun_proto", LevelFilter::Error),
    ("stun_types", LevelFilter::Error),
    ("turn_types", LevelFilter::Error),
];

/// A logger that drops records above [`AT_MOST`], whatever `RUST_LOG` asks for.
struct CappedLogger(Logger);

/// Starts logging to standard error.
pub(crate) fn init() {
    let logger = Builder::from_env(Env::default().default_filter_or(DEFAULT)).build();
    let level = logger.filter();
    log::set_boxed_logger(Box::new(CappedLogger(logger))).expect("nobody else sets a logger");
    log::set_max_level(level);
}

/// Whether a record of this target and level may be logged.
fn is_allowed(metadata: &Metadata<'_>) -> bool {
    let target = metadata.target();
    let is_of = |library: &str| {
        let rest = target.strip_prefix(library);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
    };
    AT_MOST
        .iter()
        .all(|(library, level)| metadata.level() <= *level || !is_of(library))
}

impl Log for CappedLogger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        is_allowed(metadata) && self.0.enabled(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        if is_allowed(record.metadata()) {
            self.0.log(record);
        }
    }

    fn flush(&self) {
        self.0.flush();
    }
}

#[cfg(test)]
mod tests {
    use log::Level;

    use super::*;

    #[test]
    fn records_with_secrets_and_for_each_datagram_are_dropped() {
        let is_allowed = |target, level| {
            let metadata = Metadata::builder().target(target).level(level).build();
            is_allowed(&metadata)
        };
        assert!(!is_allowed("async_nats::connection", Level::Trace));
        assert!(!is_allowed("async_nats", Level::Trace));
        assert!(is_allowed("async_nats::connection", Level::Debug));
        assert!(is_allowed("async_nats_next", Level::Trace));
        assert!(is_allowed("anteroom::session", Level::Trace));
        assert!(!is_allowed("stun_types::message", Level::Warn));
        assert!(is_allowed("stun_types::message", Level::Error));
    }
}
