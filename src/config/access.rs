//! Options of admission that need no token.

#[cfg(feature = "cli")]
use clap::Args;

use super::origin::Origin;

/// Which clients may open a session.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(
    feature = "cli",
    derive(Args),
    command(next_help_heading = "Admission")
)]
#[non_exhaustive]
pub struct Access {
    /// Origin of a web page that may open sessions, such as `https://example.org`; may be given
    /// several times, or with commas between [default: any origin, and clients that are not
    /// browsers]
    #[cfg_attr(
        feature = "cli",
        arg(
            long,
            env = "ANTEROOM_ALLOW_ORIGIN",
            value_name = "ORIGIN",
            value_delimiter = ','
        )
    )]
    pub allow_origin: Vec<Origin>,
}
