//! The wire formats of other people's clients.

use std::{
    fmt::{self, Display},
    str::FromStr,
};

/// A wire format of other people's clients, as `--dialect` names it. Each is named after its client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Dialect {
    /// `peerjs`: PeerJS, at `/peerjs`.
    PeerJs,
    /// `y-webrtc`: y-webrtc of Yjs, at `/topics`.
    YWebrtc,
    /// `trystero`: the strategy `ws-relay` of trystero, at `/topics`.
    Trystero,
    /// `matchbox`: matchbox, at `/matchbox/{room}`.
    Matchbox,
}

impl Dialect {
    /// All of them.
    pub const ALL: [Dialect; 4] = [
        Dialect::PeerJs,
        Dialect::YWebrtc,
        Dialect::Trystero,
        Dialect::Matchbox,
    ];

    /// The name of the option's value.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Dialect::PeerJs => "peerjs",
            Dialect::YWebrtc => "y-webrtc",
            Dialect::Trystero => "trystero",
            Dialect::Matchbox => "matchbox",
        }
    }
}

impl FromStr for Dialect {
    type Err = &'static str;

    /// Parses a name in any case.
    fn from_str(text: &str) -> Result<Dialect, &'static str> {
        let is_named = |dialect: &Dialect| dialect.name().eq_ignore_ascii_case(text);
        let dialect = Dialect::ALL.into_iter().find(is_named);
        dialect.ok_or("not peerjs, y-webrtc, trystero or matchbox")
    }
}

impl Display for Dialect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}
