//! Every option once: its name, environment variable, default, unit and meaning.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    num::NonZeroU32,
    ops::RangeInclusive,
    path::PathBuf,
    time::Duration,
};

use clap::Args;
use ipnet::IpNet;

use super::{ice_url::IceUrl, nats_url::NatsUrl, origin::Origin};

/// How many of the open files are kept back from the sessions by default: for the listener, for
/// requests that are no sessions, and to say 503 to who comes when all places are taken. Where few
/// files may be open, a quarter of them.
const SPARE_FILES: u64 = 256;

/// What the envelope adds to a message's own bytes when it is relayed, at the most.
const ENVELOPE_BYTES: usize = 1024;

/// The options of a server. The binary reads them from its command line and environment;
/// [`Config::default`] has the same defaults.
///
/// An option whose value may have a password in it is marked with `hide_env_values`: the program shows
/// its value neither in `--help` nor in a usage error.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Where to listen; port 0 picks a free one
    #[arg(
        long,
        env = "ANTEROOM_LISTEN",
        value_name = "ADDRESS:PORT",
        help_heading = "Serving"
    )]
    #[arg(default_value_t = Config::default().listen, value_parser = address)]
    pub listen: SocketAddr,

    /// Serve the files of this folder in place of the built-in page
    #[arg(
        long,
        env = "ANTEROOM_STATIC_DIR",
        value_name = "FOLDER",
        help_heading = "Serving"
    )]
    pub static_dir: Option<PathBuf>,

    /// The certificate to serve with TLS (1.2 and 1.3), PEM, with the chain that leads to it; read again
    /// on SIGHUP
    #[arg(
        long,
        env = "ANTEROOM_TLS_CERT",
        value_name = "FILE",
        help_heading = "Serving"
    )]
    pub tls_cert: Option<PathBuf>,

    /// The private key of the certificate, PEM
    #[arg(
        long,
        env = "ANTEROOM_TLS_KEY",
        value_name = "FILE",
        help_heading = "Serving"
    )]
    pub tls_key: Option<PathBuf>,

    /// Which proxies are believed about where a request comes from (`X-Forwarded-For`), by their
    /// address or network, such as `10.0.0.0/8`; may be given several times
    #[arg(
        long,
        env = "ANTEROOM_TRUST_PROXY",
        value_name = "ADDRESS",
        value_delimiter = ',',
        help_heading = "Serving"
    )]
    #[arg(value_parser = network)]
    pub trust_proxy: Vec<IpNet>,

    /// Which web pages may open a session, by their origin, such as `https://example.org`; may be
    /// given several times, or with commas between [default: all, and who is no web page]
    #[arg(
        long,
        env = "ANTEROOM_ALLOW_ORIGIN",
        value_name = "ORIGIN",
        value_delimiter = ',',
        help_heading = "Admission"
    )]
    pub allow_origin: Vec<Origin>,

    /// Whose signature a token must have that admits to a room, a JSON Web Token: a secret (HS256), a
    /// public key as PEM, or a JSON Web Key Set (RS256, ES256, EdDSA); read again on SIGHUP [default:
    /// no token is needed]
    #[arg(
        long,
        env = "ANTEROOM_TOKEN_KEY_FILE",
        value_name = "FILE",
        help_heading = "Admission"
    )]
    pub token_key_file: Option<PathBuf>,

    /// The issuer a token must have (`iss`)
    #[arg(
        long,
        env = "ANTEROOM_TOKEN_ISSUER",
        value_name = "NAME",
        help_heading = "Admission"
    )]
    pub token_issuer: Option<String>,

    /// The audience a token must have (`aud`)
    #[arg(
        long,
        env = "ANTEROOM_TOKEN_AUDIENCE",
        value_name = "NAME",
        help_heading = "Admission"
    )]
    pub token_audience: Option<String>,

    /// The longest message a client may send, in bytes; a longer one closes its connection (1009)
    #[arg(
        long,
        env = "ANTEROOM_MAX_MESSAGE_BYTES",
        value_name = "BYTES",
        help_heading = "Limits"
    )]
    #[arg(default_value_t = Config::default().max_message_bytes)]
    pub max_message_bytes: usize,

    /// How much may wait to be sent to one session, or be kept to be sent again, in bytes, with 64
    /// for each message; past it the session is closed (1013)
    #[arg(
        long,
        env = "ANTEROOM_OUTBOX_BYTES",
        value_name = "BYTES",
        help_heading = "Limits"
    )]
    #[arg(default_value_t = Config::default().outbox_bytes)]
    pub outbox_bytes: usize,

    /// How many sessions there may be at once; the next one gets 503 [default: what the open-file
    /// limit allows]
    #[arg(
        long,
        env = "ANTEROOM_MAX_SESSIONS",
        value_name = "COUNT",
        help_heading = "Limits"
    )]
    pub max_sessions: Option<usize>,

    /// How many sessions there may be in one room; the next one gets 503 [default: no limit]
    #[arg(
        long,
        env = "ANTEROOM_MAX_ROOM_SESSIONS",
        value_name = "COUNT",
        help_heading = "Limits"
    )]
    #[arg(value_parser = positive)]
    pub max_room_sessions: Option<NonZeroU32>,

    /// How many rooms there may be; who would open another gets 503 [default: no limit]
    #[arg(
        long,
        env = "ANTEROOM_MAX_ROOMS",
        value_name = "COUNT",
        help_heading = "Limits"
    )]
    #[arg(value_parser = positive)]
    pub max_rooms: Option<NonZeroU32>,

    /// How many sessions an address may have, or an IPv6 network of 64 bits; the next one gets 429
    /// [default: no limit]
    #[arg(
        long,
        env = "ANTEROOM_MAX_ADDRESS_SESSIONS",
        value_name = "COUNT",
        help_heading = "Limits"
    )]
    #[arg(value_parser = positive)]
    pub max_address_sessions: Option<NonZeroU32>,

    /// How often an address, or an IPv6 network of 64 bits, may ask for a session, with a burst of two
    /// seconds; more get 429 [default: no limit]
    #[arg(
        long,
        env = "ANTEROOM_JOINS_PER_SECOND",
        value_name = "COUNT",
        help_heading = "Limits"
    )]
    #[arg(value_parser = positive)]
    pub joins_per_second: Option<NonZeroU32>,

    /// How many messages a session may send on average, pings and parts of messages among them, with a
    /// burst of two seconds; a session over that is not read from until it is within again [default: no
    /// limit]
    #[arg(
        long,
        env = "ANTEROOM_MESSAGES_PER_SECOND",
        value_name = "COUNT",
        help_heading = "Limits"
    )]
    #[arg(value_parser = positive)]
    pub messages_per_second: Option<NonZeroU32>,

    /// How many bytes a session may send in them, and cause to be sent to itself and others, likewise
    /// [default: no limit]
    #[arg(
        long,
        env = "ANTEROOM_BYTES_PER_SECOND",
        value_name = "BYTES",
        help_heading = "Limits"
    )]
    #[arg(value_parser = positive)]
    pub bytes_per_second: Option<NonZeroU32>,

    /// How long a request may take from its connection to the end of its headers, in seconds
    #[arg(
        long,
        env = "ANTEROOM_HANDSHAKE_SECONDS",
        value_name = "SECONDS",
        help_heading = "Limits"
    )]
    #[arg(default_value_t = Config::default().handshake_seconds)]
    pub handshake_seconds: u64,

    /// How long a request may be without its body, in bytes; a longer one gets 431
    #[arg(
        long,
        env = "ANTEROOM_MAX_HEADER_BYTES",
        value_name = "BYTES",
        help_heading = "Limits"
    )]
    #[arg(default_value_t = Config::default().max_header_bytes)]
    pub max_header_bytes: usize,

    /// How often every session is pinged, in seconds
    #[arg(
        long,
        env = "ANTEROOM_PING_SECONDS",
        value_name = "SECONDS",
        help_heading = "Liveness"
    )]
    #[arg(default_value_t = Config::default().ping_seconds)]
    pub ping_seconds: u64,

    /// How long a session may take to answer a ping, in seconds; then it is closed (1001)
    #[arg(
        long,
        env = "ANTEROOM_PONG_SECONDS",
        value_name = "SECONDS",
        help_heading = "Liveness"
    )]
    #[arg(default_value_t = Config::default().pong_seconds)]
    pub pong_seconds: u64,

    /// How long a session that has asked for it waits for its client to come back, in seconds; 0 lets
    /// nobody ask
    #[arg(
        long,
        env = "ANTEROOM_RESUME_SECONDS",
        value_name = "SECONDS",
        help_heading = "Liveness"
    )]
    #[arg(default_value_t = Config::default().resume_seconds)]
    pub resume_seconds: u64,

    /// An ICE server that sessions are told of, such as `stun:stun.example.org` or
    /// `turn:name:password@turn.example.org`; may be given several times
    #[arg(
        long,
        env = "ANTEROOM_ICE_SERVER",
        hide_env_values = true,
        value_name = "URL",
        value_delimiter = ',',
        help_heading = "WebRTC"
    )]
    pub ice_server: Vec<IceUrl>,

    /// A TURN server that sessions are told of with credentials of their own; may be given several
    /// times
    #[arg(
        long,
        env = "ANTEROOM_TURN_URL",
        hide_env_values = true,
        value_name = "URL",
        value_delimiter = ',',
        help_heading = "WebRTC"
    )]
    pub turn_url: Vec<IceUrl>,

    /// The secret shared with it (coturn: `static-auth-secret`); read again on SIGHUP
    #[arg(
        long,
        env = "ANTEROOM_TURN_SECRET_FILE",
        value_name = "FILE",
        help_heading = "WebRTC"
    )]
    pub turn_secret_file: Option<PathBuf>,

    /// How long these credentials are good, in seconds, though no longer than the token of the session;
    /// calls do not outlast them
    #[arg(
        long,
        env = "ANTEROOM_TURN_SECONDS",
        value_name = "SECONDS",
        help_heading = "WebRTC"
    )]
    #[arg(default_value_t = Config::default().turn_seconds)]
    pub turn_seconds: u64,

    /// Where operators are answered: metrics, rooms and sessions, and a page that shows them; port 0
    /// picks a free one [default: nowhere]
    #[arg(
        long,
        env = "ANTEROOM_ADMIN",
        value_name = "ADDRESS:PORT",
        help_heading = "Administration"
    )]
    #[arg(value_parser = address)]
    pub admin: Option<SocketAddr>,

    /// The secret that operators must give; needed where --admin is not on loopback; read again on
    /// SIGHUP
    #[arg(
        long,
        env = "ANTEROOM_ADMIN_TOKEN_FILE",
        value_name = "FILE",
        help_heading = "Administration"
    )]
    pub admin_token_file: Option<PathBuf>,

    /// The NATS server by which nodes make their rooms one, such as `nats://nats.example.org` or
    /// `tls://user:password@nats.example.org:4222`; may be given several times, for the servers of one
    /// NATS cluster [default: this node is alone]
    #[arg(
        long,
        env = "ANTEROOM_CLUSTER",
        hide_env_values = true,
        value_name = "URL",
        value_delimiter = ',',
        help_heading = "Cluster"
    )]
    pub cluster: Vec<NatsUrl>,

    /// The credentials for it: a `.creds` file
    #[arg(
        long,
        env = "ANTEROOM_CLUSTER_CREDENTIALS_FILE",
        value_name = "FILE",
        help_heading = "Cluster"
    )]
    pub cluster_credentials_file: Option<PathBuf>,

    /// Which authorities may have signed its certificate, PEM, in place of those that this machine trusts
    #[arg(
        long,
        env = "ANTEROOM_CLUSTER_CA_FILE",
        value_name = "FILE",
        help_heading = "Cluster"
    )]
    pub cluster_ca_file: Option<PathBuf>,

    /// How the subjects begin that the nodes use: nodes with another prefix are another cluster
    #[arg(
        long,
        env = "ANTEROOM_CLUSTER_PREFIX",
        value_name = "SUBJECT",
        help_heading = "Cluster"
    )]
    #[arg(default_value_t = Config::default().cluster_prefix)]
    pub cluster_prefix: String,

    /// How long a node may be silent, in seconds; then its sessions are told to have gone
    #[arg(
        long,
        env = "ANTEROOM_CLUSTER_DOWN_SECONDS",
        value_name = "SECONDS",
        help_heading = "Cluster"
    )]
    #[arg(default_value_t = Config::default().cluster_down_seconds)]
    pub cluster_down_seconds: u64,

    /// How long a stopping server waits for its sessions, in seconds; they are told to come back
    /// spread over that time
    #[arg(
        long,
        env = "ANTEROOM_DRAIN_SECONDS",
        value_name = "SECONDS",
        help_heading = "Stopping"
    )]
    #[arg(default_value_t = Config::default().drain_seconds)]
    pub drain_seconds: u64,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 8080)),
            static_dir: None,
            tls_cert: None,
            tls_key: None,
            trust_proxy: Vec::new(),
            allow_origin: Vec::new(),
            token_key_file: None,
            token_issuer: None,
            token_audience: None,
            max_message_bytes: 65_536,
            outbox_bytes: 1 << 20,
            max_sessions: None,
            max_room_sessions: None,
            max_rooms: None,
            max_address_sessions: None,
            joins_per_second: None,
            messages_per_second: None,
            bytes_per_second: None,
            handshake_seconds: 10,
            max_header_bytes: 16 << 10,
            ping_seconds: 20,
            pong_seconds: 10,
            resume_seconds: 30,
            ice_server: Vec::new(),
            turn_url: Vec::new(),
            turn_secret_file: None,
            turn_seconds: 86_400,
            admin: None,
            admin_token_file: None,
            cluster: Vec::new(),
            cluster_credentials_file: None,
            cluster_ca_file: None,
            cluster_prefix: "anteroom".into(),
            cluster_down_seconds: 3,
            drain_seconds: 5,
        }
    }
}

impl Config {
    /// Checks that every value makes sense.
    ///
    /// # Errors
    ///
    /// A line that names the option, what it may be, and what it is.
    pub fn check(&self) -> Result<(), String> {
        const KIB: u64 = 1 << 10;
        const GIB: u64 = 1 << 30;
        let bytes = |count: usize| count as u64;
        within(
            "--max-message-bytes",
            bytes(self.max_message_bytes),
            1..=GIB,
        )?;
        within("--outbox-bytes", bytes(self.outbox_bytes), 1..=4 * GIB)?;
        if let Some(sessions) = self.max_sessions {
            within("--max-sessions", bytes(sessions), 1..=GIB)?;
        }
        within("--handshake-seconds", self.handshake_seconds, 1..=3600)?;
        within(
            "--max-header-bytes",
            bytes(self.max_header_bytes),
            KIB..=KIB * KIB,
        )?;
        within("--ping-seconds", self.ping_seconds, 1..=3600)?;
        within("--pong-seconds", self.pong_seconds, 1..=3600)?;
        within("--resume-seconds", self.resume_seconds, 0..=3600)?;
        within(
            "--cluster-down-seconds",
            self.cluster_down_seconds,
            2..=3600,
        )?;
        within("--drain-seconds", self.drain_seconds, 0..=3600)?;
        within("--turn-seconds", self.turn_seconds, 60..=7 * 24 * 3600)?;
        let least = self.max_message_bytes + ENVELOPE_BYTES;
        if self.outbox_bytes < least {
            let given = self.outbox_bytes;
            return Err(format!(
                "--outbox-bytes must hold one message of --max-message-bytes: at least {least}, not {given}"
            ));
        }
        self.check_companions()
    }

    /// Checks that no option lacks another that it needs.
    fn check_companions(&self) -> Result<(), String> {
        let all_or_none = |given: [(bool, &str); 2]| match given {
            [(true, given), (false, missing)] | [(false, missing), (true, given)] => {
                Err(format!("{given} needs {missing}, too"))
            }
            _ => Ok(()),
        };
        all_or_none([
            (self.tls_cert.is_some(), "--tls-cert"),
            (self.tls_key.is_some(), "--tls-key"),
        ])?;
        all_or_none([
            (!self.turn_url.is_empty(), "--turn-url"),
            (self.turn_secret_file.is_some(), "--turn-secret-file"),
        ])?;
        let is_asked_for = self.token_key_file.is_some();
        if !is_asked_for && (self.token_issuer.is_some() || self.token_audience.is_some()) {
            return Err("--token-issuer and --token-audience need --token-key-file".into());
        }
        not_empty("--token-issuer", self.token_issuer.as_deref())?;
        not_empty("--token-audience", self.token_audience.as_deref())?;
        if self.cluster.is_empty() {
            let files = [&self.cluster_credentials_file, &self.cluster_ca_file];
            if files.iter().any(|file| file.is_some()) {
                return Err(
                    "--cluster-credentials-file and --cluster-ca-file need --cluster".into(),
                );
            }
        }
        let mut passwords = self.cluster.iter().filter_map(NatsUrl::credentials);
        let first = passwords.next();
        if passwords.any(|other| first != Some(other)) {
            return Err("all servers of --cluster must have the same user and password".into());
        }
        let is_token = |token: &str| {
            let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
            !token.is_empty() && token.bytes().all(is_plain)
        };
        if !self.cluster_prefix.split('.').all(is_token) || self.cluster_prefix.len() > 128 {
            return Err(
                "--cluster-prefix must be letters, digits, - and _, with dots between, such as \
                 chat.anteroom, and at most 128 of them"
                    .into(),
            );
        }
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
        match (self.admin, &self.admin_token_file) {
            (None, Some(_)) => return Err("--admin-token-file needs --admin".into()),
            (Some(admin), None) if self.is_admin_exposed() => {
                return Err(format!(
                    "--admin {admin} can be reached from elsewhere: it needs --admin-token-file"
                ));
            }
            _ => {}
        }
        Ok(())
    }

    /// Whether operators are answered also where others can connect.
    pub(crate) fn is_admin_exposed(&self) -> bool {
        self.admin.is_some_and(|admin| !admin.ip().is_loopback())
    }

    /// How many sessions there may be at once.
    pub(crate) fn session_limit(&self) -> usize {
        self.max_sessions.unwrap_or_else(sessions_by_files)
    }

    pub(crate) fn handshake(&self) -> Duration {
        Duration::from_secs(self.handshake_seconds)
    }

    pub(crate) fn resume(&self) -> Duration {
        Duration::from_secs(self.resume_seconds)
    }

    pub(crate) fn drain(&self) -> Duration {
        Duration::from_secs(self.drain_seconds)
    }
}

/// For how many sessions the open files are enough.
pub(crate) fn sessions_by_files() -> usize {
    // Where the limit cannot be read there is none to keep.
    let files = rlimit::Resource::NOFILE
        .get_soft()
        .unwrap_or(rlimit::INFINITY);
    let sessions = files - SPARE_FILES.min(files / 4);
    usize::try_from(sessions).unwrap_or(usize::MAX)
}

fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse()
        .map_err(|_| "not an IP address and a port, such as 0.0.0.0:8080 or [::]:8080".into())
}

fn positive(text: &str) -> Result<NonZeroU32, &'static str> {
    text.parse()
        .map_err(|_| "not a number from 1 to 4294967295; leave it out for no limit")
}

/// A network, or an address, which is one of itself.
fn network(text: &str) -> Result<IpNet, String> {
    let address = || text.parse::<IpAddr>().map(IpNet::from);
    let network = text.parse().or_else(|_| address());
    network.map_err(|_| "not an IP address or a network, such as 10.0.0.0/8 or fd00::/8".into())
}

/// Checks the value of an option that may be left out, but not be empty.
pub(crate) fn not_empty(option: &str, value: Option<&str>) -> Result<(), String> {
    match value {
        Some("") => Err(format!("{option} must not be empty: leave it out")),
        _ => Ok(()),
    }
}

fn within(option: &str, value: u64, range: RangeInclusive<u64>) -> Result<(), String> {
    if range.contains(&value) {
        return Ok(());
    }
    Err(format!(
        "{option} must be {} to {}, not {value}",
        range.start(),
        range.end()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_make_sense() {
        assert_eq!(Config::default().check(), Ok(()));
    }

    #[test]
    fn what_makes_no_sense_is_named_with_what_would() {
        let checks = [
            (
                Config {
                    ping_seconds: 0,
                    ..Config::default()
                },
                "--ping-seconds must be 1 to 3600, not 0",
            ),
            (
                Config {
                    max_header_bytes: 100,
                    ..Config::default()
                },
                "--max-header-bytes must be 1024 to 1048576, not 100",
            ),
            (
                Config {
                    outbox_bytes: 65_536,
                    ..Config::default()
                },
                "--outbox-bytes must hold one message of --max-message-bytes: at least 66560, not 65536",
            ),
        ];
        for (config, message) in checks {
            assert_eq!(config.check(), Err(message.into()));
        }
    }
}
