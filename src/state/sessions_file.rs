//! The file that keeps sessions over a restart.
//!
//! It is a JSON object, and then a line with the SHA-256 of the object (FIPS 180-4) in base64url.

use std::{
    collections::HashSet,
    ffi::OsStr,
    fs::{self, File, OpenOptions},
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use log::{info, warn};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::saved_sessions::SavedSession;
use crate::{cluster::MAX_NUMBER, protocol::Escaped, unix_time};

/// The version of the format. A change of any field needs another.
const VERSION: u32 = 2;

/// The length of the last line: a line feed, a SHA-256 in base64url, and a line feed.
const CHECKSUM_BYTES: usize = 45;

/// The path of the file.
pub(crate) struct SessionsFile(PathBuf);

/// What is read first.
#[derive(Deserialize)]
struct Header {
    version: u32,
    /// As in [`Content`]; other versions may not have it.
    #[serde(default)]
    saved: u64,
}

#[derive(Serialize, Deserialize)]
struct Content<S> {
    version: u32,
    /// When the file was written, in milliseconds since 1970.
    saved: u64,
    sessions: S,
}

impl SessionsFile {
    /// The file at this path.
    ///
    /// # Errors
    ///
    /// The folder does not exist, or this process cannot write to it; the message names the file.
    pub(crate) fn new(path: PathBuf) -> io::Result<SessionsFile> {
        let file = SessionsFile(path);
        let probe = file.beside("tmp");
        create_private(&probe)
            .and_then(|_| fs::remove_file(&probe))
            .map_err(|error| file.name("cannot write beside", error))?;
        Ok(file)
    }

    /// Reads the sessions that an earlier process saved less than `window` ago, and removes the file. A file
    /// that cannot be used is moved aside, which is logged: then there are no sessions.
    ///
    /// # Errors
    ///
    /// The file cannot be read, moved or removed; the message names it.
    pub(crate) fn take(&self, window: Duration) -> io::Result<Vec<SavedSession>> {
        let path = self.0.display();
        let content = match read_regular(&self.0) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            content => content.map_err(|error| self.name("cannot read", error))?,
        };
        match decode(&content, unix_time::unix_millis(), window) {
            Ok(sessions) => {
                // A process that crashes has no up-to-date file, and must not leave this one to the next.
                fs::remove_file(&self.0).map_err(|error| self.name("cannot remove", error))?;
                info!("{} session(s) of {path} can be resumed", sessions.len());
                Ok(sessions)
            }
            Err(reason) => {
                let aside = self.beside("refused");
                fs::rename(&self.0, &aside).map_err(|error| self.name("cannot move", error))?;
                let aside = aside.display();
                warn!(
                    "starting without the sessions of {path}, now {aside}: {}",
                    Escaped(reason)
                );
                Ok(Vec::new())
            }
        }
    }

    /// Writes the sessions. The file appears whole or not at all.
    ///
    /// # Errors
    ///
    /// The error of the operating system; the message names the file.
    pub(crate) fn write(&self, sessions: &[SavedSession]) -> io::Result<()> {
        let temporary = self.beside("tmp");
        let written = self.write_to(&temporary, sessions);
        written
            .inspect_err(|_| _ = fs::remove_file(&temporary))
            .map_err(|error| self.name("cannot write", error))
    }

    fn write_to(&self, temporary: &Path, sessions: &[SavedSession]) -> io::Result<()> {
        let mut file = BufWriter::new(create_private(temporary)?);
        encode(&mut file, unix_time::unix_millis(), sessions)?;
        file.into_inner()?.sync_all()?;
        fs::rename(temporary, &self.0)?;
        // The new name is in the folder only when that is on the disk, too.
        let folder = self.0.parent().filter(|folder| *folder != Path::new(""));
        File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
    }

    /// The path with another extension added.
    fn beside(&self, extension: &str) -> PathBuf {
        let mut name = self.0.clone().into_os_string();
        name.push(OsStr::new("."));
        name.push(OsStr::new(extension));
        name.into()
    }

    fn name(&self, what: &str, error: io::Error) -> io::Error {
        let path = self.0.display();
        io::Error::new(
            error.kind(),
            format!("{what} the sessions file {path}: {error}"),
        )
    }
}

/// Writes the content of a file at a time in milliseconds since 1970.
pub(crate) fn encode(file: &mut impl Write, now: u64, sessions: &[SavedSession]) -> io::Result<()> {
    let content = Content {
        version: VERSION,
        saved: now,
        sessions,
    };
    let sum = Sha256::new();
    let mut summed = Summed { file, sum };
    serde_json::to_writer(&mut summed, &content)?;
    let Summed { file, sum } = summed;
    write!(file, "\n{}\n", URL_SAFE_NO_PAD.encode(sum.finalize()))
}

/// Reads the content of a file at a time in milliseconds since 1970.
///
/// # Errors
///
/// Why it cannot be used, as text for the log.
pub(crate) fn decode(file: &[u8], now: u64, window: Duration) -> Result<Vec<SavedSession>, String> {
    let damaged = "it is damaged";
    let (json, checksum) = file.split_last_chunk::<CHECKSUM_BYTES>().ok_or(damaged)?;
    let expected = format!("\n{}\n", URL_SAFE_NO_PAD.encode(Sha256::digest(json)));
    if checksum != expected.as_bytes() {
        return Err("it is damaged: its checksum is wrong".into());
    }
    let invalid = |error| format!("it is damaged: {error}");
    let Header { version, saved } = serde_json::from_slice(json).map_err(invalid)?;
    if version != VERSION {
        return Err(format!(
            "it has version {version}, and this server reads version {VERSION}"
        ));
    }
    let age = Duration::from_millis(now.saturating_sub(saved));
    if age > window {
        return Err(format!(
            "it was written {} s ago, and sessions are kept for {} s",
            age.as_secs(),
            window.as_secs()
        ));
    }
    let content: Content<Vec<SavedSession>> = serde_json::from_slice(json).map_err(invalid)?;
    let (mut ids, mut tokens) = (HashSet::new(), HashSet::new());
    for session in &content.sessions {
        if !ids.insert(session.member.id) || !tokens.insert(session.token) {
            return Err("it is damaged: it has a session twice".into());
        }
        // No session lives long enough to count so far, and the counts go on from here.
        if session.sent.max(session.taken_in).max(session.first_number) > MAX_NUMBER {
            return Err(format!("it is damaged: a count is over {MAX_NUMBER}"));
        }
    }
    Ok(content.sessions)
}

/// Reads a file, but no FIFO or device, of which a read may never end.
fn read_regular(path: &Path) -> io::Result<Vec<u8>> {
    if !fs::metadata(path)?.is_file() {
        let message = "it is not a regular file";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
    }
    fs::read(path)
}

/// Creates a file that only this user can read.
fn create_private(path: &Path) -> io::Result<File> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut options = OpenOptions::new();
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.write(true).create_new(true).open(path)
}

/// A file, and the checksum of what is written to it.
struct Summed<'a, W> {
    file: &'a mut W,
    sum: Sha256,
}

impl<W: Write> Write for Summed<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.file.write(bytes)?;
        self.sum.update(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::{env, process};

    use super::*;

    const WINDOW: Duration = Duration::from_secs(30);

    /// A file with these bytes before the checksum.
    fn with_checksum(json: &str) -> Vec<u8> {
        let sum = URL_SAFE_NO_PAD.encode(Sha256::digest(json));
        format!("{json}\n{sum}\n").into_bytes()
    }

    /// A file with this session, as often as given, that was written at 1,000,000 ms.
    fn file(count: usize) -> Vec<u8> {
        let session = r#"{"room":"tea","member":{"id":"6c1f0a52-9d0e-4f5b-8a37-2f6f6c1b7e11","joined":3,"data":{"user":"a\nb"}},"address":null,"token":"AAAAAAAAAAAAAAAAAAAAAA","permissions":null,"taken_in":7,"first_number":0,"owed":[0,0],"sent":2,"missed":["{\"data\":\n1}"]}"#;
        let sessions = vec![session; count].join(",");
        with_checksum(&format!(
            r#"{{"version":2,"saved":1000000,"sessions":[{sessions}]}}"#
        ))
    }

    fn refusal(file: &[u8], now: u64) -> String {
        decode(file, now, WINDOW).err().unwrap()
    }

    #[test]
    fn sessions_are_read_within_the_window() {
        for now in [0, 1_000_000, 1_030_000] {
            let sessions = decode(&file(1), now, WINDOW).unwrap();
            assert_eq!((sessions.len(), sessions[0].taken_in), (1, 7));
            assert_eq!(sessions[0].missed[0].payload(), b"{\"data\":\n1}");
        }
        assert_eq!(
            refusal(&file(1), 1_031_500),
            "it was written 31 s ago, and sessions are kept for 30 s"
        );
    }

    #[test]
    fn a_file_from_long_ago_is_moved_aside() {
        let path = env::temp_dir().join(format!("anteroom-{}-long-ago", process::id()));
        fs::write(&path, file(1)).unwrap();
        let sessions_file = SessionsFile(path);
        assert!(sessions_file.take(WINDOW).unwrap().is_empty());
        assert!(!sessions_file.0.exists());
        fs::remove_file(sessions_file.beside("refused")).unwrap();
    }

    #[test]
    fn a_path_without_a_folder_is_in_the_current_one() {
        let name = format!("anteroom-{}-sessions", process::id());
        let sessions_file = SessionsFile::new(name.into()).unwrap();
        sessions_file.write(&[]).unwrap();
        assert!(sessions_file.take(WINDOW).unwrap().is_empty());
        assert!(!sessions_file.0.exists());
    }

    #[test]
    fn a_file_with_any_byte_changed_or_missing_is_refused() {
        let good = file(1);
        for index in 0..good.len() {
            let mut damaged = good.clone();
            damaged[index] ^= 0x20;
            assert!(refusal(&damaged, 1_000_000).starts_with("it is damaged"));
            assert!(refusal(&good[..index], 1_000_000).starts_with("it is damaged"));
        }
    }

    #[test]
    fn a_file_with_a_count_that_cannot_go_on_is_refused() {
        let good = String::from_utf8(file(1)).unwrap();
        let json = good.lines().next().unwrap();
        for (count, other) in [
            ("\"sent\":2", "\"sent\":"),
            ("\"taken_in\":7", "\"taken_in\":"),
        ] {
            let with_count =
                |number| with_checksum(&json.replace(count, &format!("{other}{number}")));
            assert!(decode(&with_count(MAX_NUMBER), 1_000_000, WINDOW).is_ok());
            assert_eq!(
                refusal(&with_count(MAX_NUMBER + 1), 1_000_000),
                "it is damaged: a count is over 9007199254740991"
            );
        }
    }

    #[test]
    fn a_file_of_another_version_or_with_a_session_twice_is_refused() {
        let other = with_checksum(r#"{"version":3,"sessions":"elsewhere"}"#);
        assert_eq!(
            refusal(&other, 0),
            "it has version 3, and this server reads version 2"
        );
        assert_eq!(
            refusal(&file(2), 1_000_000),
            "it is damaged: it has a session twice"
        );
        let foreign = with_checksum("not JSON");
        assert!(refusal(&foreign, 0).starts_with("it is damaged: expected"));
    }
}
