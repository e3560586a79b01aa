//! What only the program has: its command line, its other commands, its log, its exit codes.

pub(crate) mod bench;
pub(crate) mod doctor;
mod failure;
pub(crate) mod join;
mod logging;
pub(crate) mod manual;
mod options;
mod printable;
mod room_address;
mod signals;
pub(crate) mod systemd;
#[cfg(feature = "tokens")]
pub(crate) mod token;
mod usage_error;

pub(crate) use self::{
    failure::Failure,
    logging::init as init_logging,
    options::{Command, Options},
    usage_error::describe,
};
