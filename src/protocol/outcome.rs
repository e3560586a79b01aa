//! How a direct connection between two clients went, as one of them reports it.

use serde::Deserialize;

/// The longest time that is reported, in milliseconds: a day.
const MAX_MILLISECONDS: u64 = 24 * 60 * 60 * 1000;

/// The `data` of an `outcome` request.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Outcome {
    pub(crate) result: PeerResult,
    path: Option<Path>,
    /// The time until the peers were connected, or until the client gave up.
    pub(crate) milliseconds: u64,
}

/// Whether the peers were connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum PeerResult {
    Connected,
    Failed,
}

/// The type of the candidate through which they are: `relay` if one of both is (RFC 8445, section 4; the names of RFC
/// 8839, section 5.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Path {
    Host,
    Srflx,
    Prflx,
    Relay,
}

impl Outcome {
    /// Reads the request from `data`; `None` if it is not valid.
    pub(crate) fn parse(data: &str) -> Option<Outcome> {
        let outcome: Outcome = serde_json::from_str(data).ok()?;
        let has_path = outcome.path.is_some();
        let is_valid = outcome.milliseconds <= MAX_MILLISECONDS
            && has_path == (outcome.result == PeerResult::Connected)
            && data.starts_with('{');
        is_valid.then_some(outcome)
    }

    /// The path as a label of metrics; `none` if the peers were not connected.
    pub(crate) fn path_label(&self) -> &'static str {
        match self.path {
            Some(Path::Host) => "host",
            Some(Path::Srflx) => "srflx",
            Some(Path::Prflx) => "prflx",
            Some(Path::Relay) => "relay",
            None => "none",
        }
    }
}

impl PeerResult {
    /// The result as a label of metrics.
    pub(crate) fn label(self) -> &'static str {
        match self {
            PeerResult::Connected => "connected",
            PeerResult::Failed => "failed",
        }
    }
}
