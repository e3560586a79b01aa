//! Who may come in: origins, tokens, addresses, rates, and the slots that there are.

mod admission;
pub(crate) mod client_ip;
mod keys;
mod rate_limit;
mod token;

pub use self::token::TokenRequest;
pub(crate) use self::{
    admission::{
        AddressSlot, Admission, Admitted, ConnectRequest, SessionSlot, bearer, unavailable,
    },
    rate_limit::Rates,
    token::{Denied, Grant, now},
};
