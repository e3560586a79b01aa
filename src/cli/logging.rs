//! The program's log: `RUST_LOG` chooses what is in it, except for what may be a secret.

use env_logger::{Builder, Env, Logger};
use log::{LevelFilter, Log, Metadata, Record};

/// What is logged where `RUST_LOG` does not say.
const DEFAULT: &str = "anteroom=info";

/// The most that may be logged of a library that knows secrets: its target, and the level.
///
/// async-nats logs every message of other nodes at `trace`, with all that it contains: what waits for a
/// session that moves to another node, its resume token and TURN password among it.
const AT_MOST: [(&str, LevelFilter); 1] = [("async_nats", LevelFilter::Debug)];

/// A logger that leaves out what [`AT_MOST`] forbids, whatever `RUST_LOG` asks for.
struct Discreet(Logger);

/// Starts logging to standard error.
pub(crate) fn init() {
    let logger = Builder::from_env(Env::default().default_filter_or(DEFAULT)).build();
    let level = logger.filter();
    log::set_boxed_logger(Box::new(Discreet(logger))).expect("nobody else sets a logger");
    log::set_max_level(level);
}

/// Whether a record may be logged: of this target, at this level.
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

impl Log for Discreet {
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
    fn what_a_library_says_of_its_messages_is_not_logged() {
        let is_allowed = |target, level| {
            let metadata = Metadata::builder().target(target).level(level).build();
            is_allowed(&metadata)
        };
        assert!(!is_allowed("async_nats::connection", Level::Trace));
        assert!(!is_allowed("async_nats", Level::Trace));
        assert!(is_allowed("async_nats::connection", Level::Debug));
        assert!(is_allowed("async_nats_next", Level::Trace));
        assert!(is_allowed("anteroom::session", Level::Trace));
    }
}
