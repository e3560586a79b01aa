//! HTTP beside WebSocket: which host a request is for, and the answer to a request that is refused.

mod error;
pub(crate) mod host;

pub(crate) use self::error::HttpError;
