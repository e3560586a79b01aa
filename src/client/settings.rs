//! What an application has said of how it joins a room.

use std::time::Duration;

use super::{connect::Connect, retry::Delays, token::Token};

/// The settings of a room, as [`Join`](super::Join) describes them.
#[derive(Clone)]
pub(super) struct Settings {
    pub(super) connect: Connect,
    pub(super) token: Token,
    pub(super) resumes: bool,
    pub(super) is_wire: bool,
    pub(super) timeout: Duration,
    pub(super) idle_timeout: Duration,
    pub(super) give_up_after: Option<Duration>,
    pub(super) delays: Delays,
    pub(super) queue_bytes: usize,
    pub(super) event_bytes: usize,
}
