//! One session's life, and what it asks the server.

mod requests;
mod serve;

pub(crate) use self::serve::{refuse, reject, start};
