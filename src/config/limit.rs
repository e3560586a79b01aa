//! The limits that options set.

/// What there may be only so much of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Limit {
    Sessions,
    Rooms,
    RoomSessions,
    AddressSessions,
    JoinRate,
    MessageRate,
    ByteRate,
}

impl Limit {
    pub(crate) const ALL: [Limit; 7] = [
        Limit::Sessions,
        Limit::Rooms,
        Limit::RoomSessions,
        Limit::AddressSessions,
        Limit::JoinRate,
        Limit::MessageRate,
        Limit::ByteRate,
    ];

    /// The option that sets it.
    pub(crate) fn option(self) -> &'static str {
        match self {
            Limit::Sessions => "max-sessions",
            Limit::Rooms => "max-rooms",
            Limit::RoomSessions => "max-room-sessions",
            Limit::AddressSessions => "max-address-sessions",
            Limit::JoinRate => "joins-per-second",
            Limit::MessageRate => "messages-per-second",
            Limit::ByteRate => "bytes-per-second",
        }
    }
}
