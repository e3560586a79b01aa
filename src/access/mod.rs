//! Admission: origins, tokens, client addresses, rates, and slots.

mod admission;
mod client_ip;
mod credentials;
mod keys;
mod origin;
mod rate_limit;
mod slots;
mod token;
mod unix_time;

pub use self::token::TokenRequest;
pub(crate) use self::{
    admission::{Admission, Admitted, ConnectRequest, SessionSlot},
    credentials::bearer,
    rate_limit::Rates,
    slots::AddressSlot,
    token::{Denied, Grant},
    unix_time::unix_seconds,
};
