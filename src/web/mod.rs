//! Plain HTTP: the answer to a refused request, the host that a request is for, and the connection it came on.

mod error;
pub(crate) mod host;
mod socket;

pub(crate) use self::{
    error::HttpError,
    socket::{Socket, SocketWatch},
};
