//! Admission: origins, tokens, client addresses, rates, and slots.

mod admission;
mod client_ip;
mod credentials;
mod grant;
#[cfg(feature = "tokens")]
mod keys;
mod origin;
mod rate_limit;
mod slots;
// In a build without the feature, the type of tokens has no values.
#[cfg_attr(not(feature = "tokens"), path = "no_tokens.rs")]
mod token;

#[cfg(feature = "tokens")]
pub use self::token::TokenRequest;
pub(crate) use self::{
    admission::{Admission, Admitted, ConnectRequest, SessionSlot},
    client_ip::network,
    credentials::bearer,
    grant::{Denied, Grant, Names},
    rate_limit::Rates,
    slots::{AddressSlot, AddressSlots},
};
