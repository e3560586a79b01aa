//! The command `token`: prints a signed token, for development.

use anteroom::TokenRequest;

use super::failure::Failure;

/// Signs the token that is asked for.
pub(crate) fn sign(request: &TokenRequest) -> Result<String, Failure> {
    request.check().map_err(Failure::usage)?;
    request.sign().map_err(Failure::other)
}
