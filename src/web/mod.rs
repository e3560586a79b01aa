//! Plain HTTP: the answer to a refused request, and the host that a request is for.

mod error;
pub(crate) mod host;

pub(crate) use self::error::HttpError;
