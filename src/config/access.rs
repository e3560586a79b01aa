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
pub struct Access {
    /// Which web pages may open a session, by their origin, such as `https://example.org`; may be
    /// given several times, or with commas between [default: all, and who is no web page]
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
