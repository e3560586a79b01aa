//! Every option once, by group, and the values that options have: addresses, origins, files, secrets.

mod access;
mod admin;
mod check;
#[cfg(feature = "cluster")]
mod cluster;
mod dialect;
mod files;
mod history;
mod ice_url;
mod limits;
mod liveness;
#[cfg(feature = "cluster")]
mod nats_url;
mod options;
mod origin;
#[cfg(feature = "cli")]
mod parse;
#[cfg(any(feature = "cluster", feature = "tls", feature = "tokens"))]
pub(crate) mod pem;
mod secret;
mod serving;
mod stopping;
#[cfg(feature = "tokens")]
mod token_algorithm;
#[cfg(feature = "tokens")]
mod token_options;
#[cfg(feature = "turn")]
mod turn;
mod webrtc;

#[cfg(feature = "turn")]
pub use self::turn::{PortRange, TurnOptions};
pub use self::{
    access::Access, admin::Admin, dialect::Dialect, history::HistoryOptions, ice_url::IceUrl,
    limits::Limits, liveness::Liveness, options::Config, origin::Origin, serving::Serving,
    stopping::Stopping, webrtc::Webrtc,
};
#[cfg(feature = "tokens")]
pub(crate) use self::{check::not_empty, files::check_secret};
#[cfg(feature = "cluster")]
pub use self::{cluster::ClusterOptions, history::HistoryStorage, nats_url::NatsUrl};
pub(crate) use self::{
    files::{SecretFile, invalid, read_file, read_secret},
    limits::Limit,
    secret::{Secret, expose_to_client},
};
#[cfg(feature = "tokens")]
pub use self::{token_algorithm::TokenAlgorithm, token_options::TokenOptions};
