//! Plain HTTP: content codings, the answer to a refused request, and the host that a request is for.

mod encoding;
mod error;
pub(crate) mod host;

pub(crate) use self::{encoding::Encoding, error::HttpError};
