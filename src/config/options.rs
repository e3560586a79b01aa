//! The options of a server, by group.

#[cfg(feature = "cli")]
use clap::Args;

#[cfg(feature = "cluster")]
use super::cluster::ClusterOptions;
#[cfg(feature = "tokens")]
use super::token_options::TokenOptions;
#[cfg(feature = "turn")]
use super::turn::TurnOptions;
use super::{
    access::Access,
    admin::Admin,
    history::HistoryOptions,
    limits::{Limits, open_files, sessions_by_files},
    liveness::Liveness,
    serving::Serving,
    stopping::Stopping,
    webrtc::Webrtc,
};

/// The options of a server. The binary reads them from its command line and environment;
/// [`Config::default`] has the same defaults.
///
/// `hide_env_values` marks an option whose value may have a password in it: the program shows the value
/// neither in `--help` nor in a usage error.
///
/// ```
/// use anteroom::Config;
///
/// let mut config = Config::default();
/// config.limits.max_sessions = Some(100);
/// # assert_eq!(config.check(), Ok(()));
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "cli", derive(Args))]
#[non_exhaustive]
pub struct Config {
    /// The listener, TLS, and trusted proxies.
    #[cfg_attr(feature = "cli", command(flatten))]
    pub serving: Serving,

    /// Allowed origins.
    #[cfg_attr(feature = "cli", command(flatten))]
    pub access: Access,

    /// Room tokens.
    #[cfg(feature = "tokens")]
    #[cfg_attr(feature = "cli", command(flatten))]
    pub tokens: TokenOptions,

    /// Limits on requests, sessions and rooms.
    #[cfg_attr(feature = "cli", command(flatten))]
    pub limits: Limits,

    /// Pings and resuming.
    #[cfg_attr(feature = "cli", command(flatten))]
    pub liveness: Liveness,

    /// ICE servers.
    #[cfg_attr(feature = "cli", command(flatten))]
    pub webrtc: Webrtc,

    /// The STUN and TURN server.
    #[cfg(feature = "turn")]
    #[cfg_attr(feature = "cli", command(flatten))]
    pub turn: TurnOptions,

    /// Rooms that keep their last messages.
    #[cfg_attr(feature = "cli", command(flatten))]
    pub history: HistoryOptions,

    /// The admin API.
    #[cfg_attr(feature = "cli", command(flatten))]
    pub admin: Admin,

    /// The cluster of nodes.
    #[cfg(feature = "cluster")]
    #[cfg_attr(feature = "cli", command(flatten))]
    pub cluster: ClusterOptions,

    /// Graceful shutdown.
    #[cfg_attr(feature = "cli", command(flatten))]
    pub stopping: Stopping,
}

impl Config {
    /// The limit of sessions on this server.
    pub(crate) fn sessions(&self) -> usize {
        self.limits
            .max_sessions
            .unwrap_or_else(|| self.possible_sessions())
    }

    /// The number of sessions that the open-file limit allows.
    pub(crate) fn possible_sessions(&self) -> usize {
        sessions_by_files(self.turn_files())
    }

    /// The number of files that the TURN server may open.
    pub(crate) fn turn_files(&self) -> usize {
        /// The part of the open-file limit that is left to the TURN server.
        const TURN_PART: u64 = 4;
        #[cfg(feature = "turn")]
        let has_turn = self.turn.listen.is_some();
        #[cfg(not(feature = "turn"))]
        let has_turn = false;
        let files = usize::try_from(open_files() / TURN_PART).unwrap_or(usize::MAX);
        if has_turn { files } else { 0 }
    }

    /// Checks the values, alone and against each other.
    ///
    /// # Errors
    ///
    /// A line that names the option, the values that it takes, and the value that it has.
    pub fn check(&self) -> Result<(), String> {
        self.serving.check()?;
        #[cfg(feature = "tokens")]
        self.tokens.check()?;
        self.limits.check()?;
        self.liveness.check()?;
        self.webrtc.check()?;
        #[cfg(feature = "turn")]
        self.turn.check()?;
        self.history.check()?;
        self.admin.check()?;
        #[cfg(feature = "cluster")]
        self.cluster.check()?;
        self.stopping.check()?;
        let keeps_sessions = self.stopping.sessions_file.is_some();
        if keeps_sessions && self.liveness.resume_seconds == 0 {
            return Err("--sessions-file needs --resume-seconds of at least 1".into());
        }
        #[cfg(feature = "cluster")]
        self.history.check_place(!self.cluster.servers.is_empty())?;
        #[cfg(feature = "cluster")]
        if keeps_sessions && !self.cluster.servers.is_empty() {
            let message = "--sessions-file is for a server without --cluster: in a cluster, sessions \
                           go on at the other nodes";
            return Err(message.into());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_valid() {
        assert_eq!(Config::default().check(), Ok(()));
    }

    #[test]
    fn an_invalid_value_is_named_with_the_valid_range() {
        let of = |change: fn(&mut Config)| {
            let mut config = Config::default();
            change(&mut config);
            config.check()
        };
        let checks = [
            (
                of(|config| config.liveness.ping_seconds = 0),
                "--ping-seconds must be 1 to 3600, not 0",
            ),
            (
                of(|config| config.limits.max_header_bytes = 100),
                "--max-header-bytes must be 1024 to 1048576, not 100",
            ),
            (
                of(|config| config.limits.outbox_bytes = 65_536),
                "--outbox-bytes must hold one message of --max-message-bytes: at least 66560, not 65536",
            ),
        ];
        for (result, message) in checks {
            assert_eq!(result, Err(message.into()));
        }
    }

    #[cfg(feature = "cluster")]
    #[test]
    fn the_options_of_a_history_are_those_of_a_cluster_or_of_one_server() {
        let of = |is_cluster: bool, change: fn(&mut HistoryOptions)| {
            let mut config = Config::default();
            config.history.rooms = vec!["lobby".into()];
            if is_cluster {
                config.cluster.servers = vec!["nats://localhost".parse().unwrap()];
            }
            change(&mut config.history);
            config.check()
        };
        assert_eq!(of(false, |history| history.dir = Some("x".into())), Ok(()));
        assert_eq!(of(true, |history| history.replicas = Some(5)), Ok(()));
        for (result, message) in [
            (
                of(true, |history| history.dir = Some("x".into())),
                "--history-dir is for a server without --cluster: in a cluster, JetStream keeps the messages",
            ),
            (
                of(false, |history| history.replicas = Some(3)),
                "--history-storage and --history-replicas need --cluster",
            ),
            (
                of(true, |history| history.replicas = Some(6)),
                "--history-replicas must be 1 to 5, not 6",
            ),
            (
                of(true, |history| {
                    history.rooms.clear();
                    history.storage = Some(crate::config::HistoryStorage::Memory);
                }),
                "--history-storage and --history-replicas need --history-room",
            ),
        ] {
            assert_eq!(result, Err(message.into()));
        }
    }
}
