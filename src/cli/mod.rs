//! What only the program has.

mod logging;

pub(crate) use self::logging::init as init_logging;
