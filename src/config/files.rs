//! Files that options name, and the secrets in them.

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
    sync::Arc,
};

use arc_swap::ArcSwap;

use super::secret::Secret;

/// The longest file that is read, in bytes.
const MAX_FILE: u64 = 1 << 20;

/// The fewest bytes of a secret: shorter ones can be guessed (RFC 7518, section 3.2).
const MIN_SECRET: usize = 32;

/// A secret in a file. It can be read again while others use it.
pub(crate) struct SecretFile {
    path: PathBuf,
    read: fn(&Path) -> io::Result<Secret<Vec<u8>>>,
    secret: ArcSwap<Secret<Vec<u8>>>,
}

impl SecretFile {
    /// Reads the secret for the first time.
    ///
    /// # Errors
    ///
    /// Those of `read`, which name the file.
    pub(crate) fn new(
        path: PathBuf,
        read: fn(&Path) -> io::Result<Secret<Vec<u8>>>,
    ) -> io::Result<SecretFile> {
        let secret = ArcSwap::from_pointee(read(&path)?);
        Ok(SecretFile { path, read, secret })
    }

    /// The secret as it was read last.
    pub(crate) fn get(&self) -> Arc<Secret<Vec<u8>>> {
        self.secret.load_full()
    }

    /// Reads the file again. If that fails, the old secret stays.
    ///
    /// # Errors
    ///
    /// Those of `read`, which name the file.
    pub(crate) fn reload(&self) -> io::Result<()> {
        self.secret.store(Arc::new((self.read)(&self.path)?));
        Ok(())
    }
}

/// Reads a file.
///
/// # Errors
///
/// A file that cannot be read, or is too long for configuration; the message names it.
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

/// Reads the secret in a file, without the end of its line.
///
/// # Errors
///
/// A file that cannot be read, or a secret that is too short; the message names it.
pub(crate) fn read_secret(path: &Path) -> io::Result<Secret<Vec<u8>>> {
    check_secret(read_file(path)?, path)
}

/// Checks the secret in the contents of a file; the path is for the message.
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

/// An error about the contents of a file.
pub(crate) fn invalid(message: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message.into())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

    use super::*;

    #[test]
    fn a_secret_that_cannot_be_read_again_stays() {
        static GOOD: AtomicBool = AtomicBool::new(true);
        let file = SecretFile::new("file".into(), |path| match GOOD.load(Relaxed) {
            true => Ok(Secret::new(b"good".to_vec())),
            false => Err(invalid(format!("{} is bad", path.display()))),
        })
        .unwrap();
        GOOD.store(false, Relaxed);
        assert_eq!(file.reload().unwrap_err().to_string(), "file is bad");
        assert_eq!(file.get().expose(), b"good");
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
