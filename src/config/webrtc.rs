//! Options of WebRTC: STUN and TURN servers.

use std::path::PathBuf;

#[cfg(feature = "cli")]
use clap::Args;

use super::{
    check::{all_or_none, within},
    ice_url::IceUrl,
};

/// The ICE servers that sessions get.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "cli", derive(Args), command(next_help_heading = "WebRTC"))]
#[non_exhaustive]
pub struct Webrtc {
    /// ICE server that `hello` lists for clients, such as `stun:stun.example.org` or
    /// `turn:name:password@turn.example.org`; may be given several times
    #[cfg_attr(
        feature = "cli",
        arg(
            long,
            env = "ANTEROOM_ICE_SERVER",
            hide_env_values = true,
            value_name = "URL",
            value_delimiter = ','
        )
    )]
    pub ice_server: Vec<IceUrl>,

    /// TURN server that `hello` lists with temporary credentials for each session; may be given
    /// several times
    #[cfg_attr(
        feature = "cli",
        arg(
            long,
            env = "ANTEROOM_TURN_URL",
            hide_env_values = true,
            value_name = "URL",
            value_delimiter = ','
        )
    )]
    pub turn_url: Vec<IceUrl>,

    /// File with the secret shared with the TURN servers (coturn: `static-auth-secret`); read again
    /// on SIGHUP
    #[cfg_attr(
        feature = "cli",
        arg(long, env = "ANTEROOM_TURN_SECRET_FILE", value_name = "FILE")
    )]
    pub turn_secret_file: Option<PathBuf>,

    /// Lifetime of TURN credentials, in seconds; they expire with the session's token if that is
    /// earlier; a call ends when its credentials expire
    #[cfg_attr(feature = "cli", arg(
        long, env = "ANTEROOM_TURN_SECONDS", value_name = "SECONDS",
        default_value_t = Webrtc::default().turn_seconds
    ))]
    pub turn_seconds: u64,
}

impl Default for Webrtc {
    fn default() -> Webrtc {
        Webrtc {
            ice_server: Vec::new(),
            turn_url: Vec::new(),
            turn_secret_file: None,
            turn_seconds: 86_400,
        }
    }
}

impl Webrtc {
    pub(super) fn check(&self) -> Result<(), String> {
        within("--turn-seconds", self.turn_seconds, 60..=7 * 24 * 3600)?;
        all_or_none([
            (!self.turn_url.is_empty(), "--turn-url"),
            (self.turn_secret_file.is_some(), "--turn-secret-file"),
        ])?;
        let is_turn = |url: &IceUrl| url.is_turn() && !url.has_credentials();
        if !self.turn_url.iter().all(is_turn) {
            return Err(
                "--turn-url must be a turn: or turns: URL without name and password".into(),
            );
        }
        if self.ice_server.iter().any(is_turn) {
            return Err(
                "browsers want a name and a password for a TURN server: give them in --ice-server \
                 (turn:name:password@example.org), or use --turn-url"
                    .into(),
            );
        }
        Ok(())
    }
}
