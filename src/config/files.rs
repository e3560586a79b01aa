//! What is read from files, and may be read again while the server runs: certificates and secrets.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
    sync::Arc,
};

use parking_lot::RwLock;

use super::secret::Secret;

/// The longest file that is read, in bytes.
const MAX_FILE: u64 = 1 << 20;

/// The fewest bytes of a secret: shorter ones can be guessed (RFC 7518, section 3.2).
const MIN_SECRET: usize = 32;

/// A value that is made of files.
pub(crate) struct Reloadable<T> {
    read: Box<dyn Fn() -> io::Result<T> + Send + Sync>,
    value: RwLock<Arc<T>>,
}

impl<T> Reloadable<T> {
    /// Reads it for the first time.
    ///
    /// # Errors
    ///
    /// Those of `read`, which name the file.
    pub(crate) fn new(
        read: impl Fn() -> io::Result<T> + Send + Sync + 'static,
    ) -> io::Result<Reloadable<T>> {
        let value = RwLock::new(Arc::new(read()?));
        let read = Box::new(read);
        Ok(Reloadable { read, value })
    }

    /// The value as it was read last.
    pub(crate) fn get(&self) -> Arc<T> {
        self.value.read().clone()
    }

    /// Reads it again. Where that fails, the value stays as it was.
    ///
    /// # Errors
    ///
    /// Those of `read`, which name the file.
    pub(crate) fn reload(&self) -> io::Result<()> {
        let value = Arc::new((self.read)()?);
        *self.value.write() = value;
        Ok(())
    }
}

/// The bytes of a file.
///
/// # Errors
///
/// A file that cannot be read or is no configuration for its length; the message names it.
pub(crate) fn read_file(path: &Path) -> io::Result<Vec<u8>> {
    let read = || {
        let mut bytes = Vec::new();
        let file = File::open(path)?;
        if file.take(MAX_FILE + 1).read_to_end(&mut bytes)? as u64 > MAX_FILE {
            return Err(invalid("it is over 1 MiB"));
        }
        Ok(bytes)
    };
    read().map_err(|error| {
        let message = format!("cannot read {}: {error}", path.display());
        io::Error::new(error.kind(), message)
    })
}

/// The secret that a file holds, without the end of its line.
///
/// # Errors
///
/// A file that cannot be read, or a secret that is too short; the message names it.
pub(crate) fn read_secret(path: &Path) -> io::Result<Secret<Vec<u8>>> {
    check_secret(read_file(path)?, path)
}

/// The same of the contents of a file.
pub(crate) fn check_secret(mut bytes: Vec<u8>, path: &Path) -> io::Result<Secret<Vec<u8>>> {
    bytes.truncate(bytes.trim_ascii_end().len());
    if bytes.len() < MIN_SECRET {
        return Err(invalid(format!(
            "the secret in {} has {} bytes: take at least {MIN_SECRET}, such as those of `openssl rand -hex 32`",
            path.display(),
            bytes.len()
        )));
    }
    Ok(Secret::new(bytes))
}

/// An error about what stands in a file.
pub(crate) fn invalid(message: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message.into())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

    use super::*;

    #[test]
    fn a_value_that_cannot_be_read_again_stays() {
        static GOOD: AtomicBool = AtomicBool::new(true);
        let value = Reloadable::new(|| match GOOD.load(Relaxed) {
            true => Ok("good".to_owned()),
            false => Err(invalid("bad")),
        })
        .unwrap();
        GOOD.store(false, Relaxed);
        assert_eq!(value.reload().unwrap_err().to_string(), "bad");
        assert_eq!(*value.get(), "good");
    }

    #[test]
    fn a_secret_ends_before_its_line() {
        let secret = |bytes: &[u8]| check_secret(bytes.to_vec(), Path::new("file"));
        let good = [b'a'; MIN_SECRET];
        for end in ["", "\n", "\r\n"] {
            let bytes = [&good, end.as_bytes()].concat();
            assert_eq!(*secret(&bytes).unwrap().expose(), good);
        }
        let error = secret(&good[1..]).unwrap_err().to_string();
        assert!(
            error.starts_with("the secret in file has 31 bytes: take at least 32"),
            "{error}"
        );
    }
}
