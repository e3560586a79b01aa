//! Temporary files and folders.

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

/// A temporary folder, removed with its files when dropped.
pub struct Folder(PathBuf);

impl Folder {
    /// Creates an empty folder. No other test may use the same `name`.
    pub fn new(name: &str) -> Folder {
        let name = format!("anteroom-{}-{name}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path).unwrap();
        Folder(path)
    }

    /// The path of a file in the folder.
    pub fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
