//! Options of the cluster.

use std::path::PathBuf;

#[cfg(feature = "cli")]
use clap::Args;

use super::{check::within, nats_url::NatsUrl};

/// The longest prefix of the cluster's subjects, in bytes.
const MAX_PREFIX: usize = 128;

/// How this node forms a cluster with others.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "cli", derive(Args), command(next_help_heading = "Cluster"))]
#[non_exhaustive]
pub struct ClusterOptions {
    /// NATS server that connects the nodes of a cluster, such as `nats://nats.example.org` or
    /// `tls://user:password@nats.example.org:4222`; may be given several times, for the servers of
    /// one NATS cluster [default: this node is alone]
    #[cfg_attr(
        feature = "cli",
        arg(
            long = "cluster",
            env = "ANTEROOM_CLUSTER",
            hide_env_values = true,
            value_name = "URL",
            value_delimiter = ','
        )
    )]
    pub servers: Vec<NatsUrl>,

    /// Credentials for NATS: a `.creds` file
    #[cfg_attr(
        feature = "cli",
        arg(
            long = "cluster-credentials-file",
            env = "ANTEROOM_CLUSTER_CREDENTIALS_FILE",
            value_name = "FILE"
        )
    )]
    pub credentials_file: Option<PathBuf>,

    /// Certificate authorities that may sign the certificate of NATS, as PEM, instead of those that
    /// this machine trusts
    #[cfg_attr(
        feature = "cli",
        arg(
            long = "cluster-ca-file",
            env = "ANTEROOM_CLUSTER_CA_FILE",
            value_name = "FILE"
        )
    )]
    pub ca_file: Option<PathBuf>,

    /// Prefix of the NATS subjects of this cluster; nodes with another prefix form another cluster
    #[cfg_attr(feature = "cli", arg(
        long = "cluster-prefix", env = "ANTEROOM_CLUSTER_PREFIX", value_name = "SUBJECT",
        default_value_t = ClusterOptions::default().prefix
    ))]
    pub prefix: String,

    /// Time after which a silent node counts as down, in seconds; its sessions are then reported as
    /// closed
    #[cfg_attr(feature = "cli", arg(
        long = "cluster-down-seconds", env = "ANTEROOM_CLUSTER_DOWN_SECONDS",
        value_name = "SECONDS", default_value_t = ClusterOptions::default().down_seconds
    ))]
    pub down_seconds: u64,
}

impl Default for ClusterOptions {
    fn default() -> ClusterOptions {
        ClusterOptions {
            servers: Vec::new(),
            credentials_file: None,
            ca_file: None,
            prefix: "anteroom".into(),
            down_seconds: 3,
        }
    }
}

impl ClusterOptions {
    pub(super) fn check(&self) -> Result<(), String> {
        within("--cluster-down-seconds", self.down_seconds, 2..=3600)?;
        if self.servers.is_empty() && (self.credentials_file.is_some() || self.ca_file.is_some()) {
            return Err("--cluster-credentials-file and --cluster-ca-file need --cluster".into());
        }
        let mut passwords = self.servers.iter().filter_map(NatsUrl::credentials);
        let first = passwords.next();
        if passwords.any(|other| first != Some(other)) {
            return Err("all servers of --cluster must have the same user and password".into());
        }
        let is_token = |token: &str| {
            let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
            !token.is_empty() && token.bytes().all(is_plain)
        };
        if !self.prefix.split('.').all(is_token) || self.prefix.len() > MAX_PREFIX {
            return Err(format!(
                "--cluster-prefix must be letters, digits, - and _, with dots between, such as \
                 chat.anteroom, and at most {MAX_PREFIX} of them"
            ));
        }
        Ok(())
    }
}
