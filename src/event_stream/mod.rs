//! The transport without a WebSocket: messages go down in the answer to a GET request, and up in the bodies of POST
//! requests.
//!
//! ```text
//! outbox ─ Outlet ─ Pipe ─ Body ─ HTTP answer
//! POST ─ Inlet ─ Receiver ─ session
//! ```
//!
//! A session has one inlet for as long as it uses this transport, and a pipe for each answer. `form` turns frames into
//! server-sent events (WHATWG HTML, section 9.2), or into the JSON of long polling.

mod body;
mod form;
mod inlet;
mod outlet;
mod pipe;
mod receiver;

pub(crate) use self::{
    body::Body,
    form::Form,
    inlet::{Inlet, Posted},
    outlet::Outlet,
    receiver::Receiver,
};
