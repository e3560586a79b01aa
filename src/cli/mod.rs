//! What only the program has: its command line, its other commands, its log, its exit codes.

mod failure;
mod logging;
mod options;
#[cfg(feature = "tokens")]
pub(crate) mod token;
mod usage_error;

#[cfg(feature = "tokens")]
pub(crate) use self::options::Command;
pub(crate) use self::{
    failure::Failure, logging::init as init_logging, options::Options, usage_error::describe,
};
