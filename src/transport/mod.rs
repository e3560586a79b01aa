//! The connection of a session, whatever it goes over: the two halves, which read and write the same way.

mod reader;
mod writer;

pub(crate) use self::{reader::Reader, writer::Writer};
