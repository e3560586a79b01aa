//! The server's side of WebSocket (RFC 6455): the handshake, and messages as frames on a stream.
//!
//! No other folder knows how frames are encoded. `upgrade` answers the handshake, `decode` and
//! `frame` convert between bytes and frames without I/O, and `reader` and `writer` are the two halves
//! of a connection.

mod decode;
mod frame;
mod reader;
mod socket;
mod stream;
mod upgrade;
mod writer;

pub(crate) use self::{
    decode::{Event, Violation},
    frame::{Content, Frame},
    reader::{ReadControl, Reader, Stop},
    socket::split,
    upgrade::accept,
    writer::Writer,
};
