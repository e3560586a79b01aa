//! Secrets in memory: passwords, shared keys, and the credentials that are made of them.

use std::fmt;

use serde::{Serialize, Serializer};

/// A value that must not appear in a log, an error or a `Debug` output. It has no `Display` and no
/// `Serialize`: code that needs the value calls [`expose`](Secret::expose), so that every use is easy to
/// find. The time of `==` depends on the values, so it must not compare what a client sends; use
/// `subtle::ConstantTimeEq` for that.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Secret<T>(T);

impl<T> Secret<T> {
    pub(crate) fn new(value: T) -> Secret<T> {
        Secret(value)
    }

    /// The value itself.
    pub(crate) fn expose(&self) -> &T {
        &self.0
    }
}

/// Shows nothing of the value, not even its length.
impl<T> fmt::Debug for Secret<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

/// Writes the value, for a field of which the protocol says that the client gets it
/// (`#[serde(serialize_with = …)]`).
pub(crate) fn expose_to_client<T: Serialize, S: Serializer>(
    secret: &Option<Secret<T>>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    secret.as_ref().map(Secret::expose).serialize(serializer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_output_has_nothing_of_a_secret() {
        let secret = Secret::new("hunter2");
        assert_eq!(
            format!("{secret:?} {:#?}", Some(&secret))
                .matches("hunter2")
                .count(),
            0
        );
        assert_eq!(*secret.expose(), "hunter2");
    }
}
