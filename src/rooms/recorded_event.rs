//! Pure data: the events of a room while a session migrates to this node.

use crate::{cluster::NodeId, protocol::SessionId, websocket::Frame};

/// An event of the room, with its place in the order of events.
pub(super) struct Recorded {
    /// The node that sent the event, and the event's number there.
    pub(super) source: NodeId,
    pub(super) number: u64,
    pub(super) event: RecordedEvent,
}

/// An event that a session receives.
#[derive(Clone)]
pub(super) enum RecordedEvent {
    Joined(SessionId, Frame),
    Left(SessionId, Frame),
    /// The state of a session, with its number among the states of that session.
    State(SessionId, u64, Frame),
    /// A message to all; the sender is `None` for a backend.
    Broadcast(Option<SessionId>, Frame),
    /// A message to the migrating session alone; the sender is `None` for a backend.
    Unicast(Option<SessionId>, Frame),
}

impl RecordedEvent {
    /// The event as the client receives it.
    pub(super) fn frame(&self) -> &Frame {
        match self {
            RecordedEvent::Joined(_, frame)
            | RecordedEvent::Left(_, frame)
            | RecordedEvent::State(_, _, frame)
            | RecordedEvent::Broadcast(_, frame)
            | RecordedEvent::Unicast(_, frame) => frame,
        }
    }
}
