//! Every option once, and the values that options have: addresses, origins, files, secrets.

mod files;
mod ice_url;
mod limit;
mod nats_url;
mod options;
mod origin;
pub(crate) mod pem;
mod secret;

pub(crate) use self::{
    files::{Reloadable, check_secret, invalid, read_file, read_secret},
    limit::Limit,
    options::{not_empty, sessions_by_files},
    secret::{Secret, expose_to_client},
};
pub use self::{ice_url::IceUrl, nats_url::NatsUrl, options::Config, origin::Origin};
