//! WebSocket (RFC 6455), the server's side: the opening handshake, the frames, and the socket that
//! carries them.
//!
//! This is the only code of the crate that knows frames. `decode` and `frame` are sans-I/O;
//! `socket` puts them on a stream; `upgrade` answers the handshake request.

mod decode;
mod frame;
mod socket;
mod upgrade;

pub(crate) use decode::{Event, Violation};
pub(crate) use frame::Frame;
pub(crate) use socket::{Next, Reader, Stop, Writer, split};
pub(crate) use upgrade::accept;
