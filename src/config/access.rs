//! Options of admission that need no token.

use clap::Args;

use super::origin::Origin;

/// Which clients may open a session.
#[derive(Args, Clone, Debug, Default, PartialEq, Eq)]
#[command(next_help_heading = "Admission")]
pub struct Access {
    /// Which web pages may open a session, by their origin, such as `https://example.org`; may be
    /// given several times, or with commas between [default: all, and who is no web page]
    #[arg(
        long,
        env = "ANTEROOM_ALLOW_ORIGIN",
        value_name = "ORIGIN",
        value_delimiter = ','
    )]
    pub allow_origin: Vec<Origin>,
}
