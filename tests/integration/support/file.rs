//! Temporary files.

use std::path::PathBuf;

/// A temporary file, removed when dropped.
pub struct File(PathBuf);

impl File {
    /// Writes a new file. No other test may use the same `name`.
    pub fn new(name: &str, contents: impl AsRef<[u8]>) -> File {
        let name = format!("anteroom-{}-{name}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::write(&path, contents).unwrap();
        File(path)
    }

    pub fn path(&self) -> PathBuf {
        self.0.clone()
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}
