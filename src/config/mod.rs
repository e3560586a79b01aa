//! Every option once, by group, and the values that options have: addresses, origins, files, secrets.

mod access;
mod admin;
mod check;
mod cluster;
mod files;
mod ice_url;
mod limits;
mod liveness;
mod nats_url;
mod options;
mod origin;
mod parse;
pub(crate) mod pem;
mod secret;
mod serving;
mod stopping;
mod token_algorithm;
mod token_options;
mod webrtc;

pub use self::{
    access::Access, admin::Admin, cluster::ClusterOptions, ice_url::IceUrl, limits::Limits,
    liveness::Liveness, nats_url::NatsUrl, options::Config, origin::Origin, serving::Serving,
    stopping::Stopping, token_algorithm::TokenAlgorithm, token_options::TokenOptions,
    webrtc::Webrtc,
};
pub(crate) use self::{
    check::not_empty,
    files::{SecretFile, check_secret, invalid, read_file, read_secret},
    limits::{Limit, sessions_by_files},
    secret::{Secret, expose_to_client},
};
