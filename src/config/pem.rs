//! PEM (RFC 7468), parsed strictly: a file that is not understood as a whole is an error. A lenient parser
//! silently skips a certificate whose boundary shares its line with something else.

use std::str;

use base64::{Engine, engine::general_purpose::STANDARD};

use super::secret::Secret;

/// How a boundary begins and ends (RFC 7468, section 3).
const BEGIN: &str = "-----BEGIN ";
const END: &str = "-----END ";
const DASHES: &str = "-----";

/// Characters of base64 in a line (RFC 7468, section 2).
const LINE: usize = 64;

/// The contents between two boundaries.
#[derive(Debug)]
pub(crate) struct Block<'a> {
    pub(crate) label: &'a str,
    /// The number of its first line, from 1.
    pub(crate) line: usize,
    /// A secret, since it may be a private key.
    pub(crate) der: Secret<Vec<u8>>,
}

impl Block<'_> {
    /// The block alone, as PEM.
    pub(crate) fn to_pem(&self) -> Secret<Vec<u8>> {
        let base64 = STANDARD.encode(self.der.expose());
        let mut pem = format!("{BEGIN}{}{DASHES}\n", self.label);
        let mut rest = &*base64;
        while let Some((line, more)) = rest.split_at_checked(LINE) {
            pem.extend([line, "\n"]);
            rest = more;
        }
        pem.extend([rest, "\n", END, self.label, DASHES, "\n"]);
        Secret::new(pem.into())
    }

    /// An error that says that a block is not supported, and what to do.
    pub(crate) fn not_read(&self, advice: &str) -> String {
        let Block { label, line, .. } = self;
        format!("has a {label:?} in line {line}, which is not read: {advice}")
    }
}

/// Parses all blocks of a file. Text before, between and after them is ignored.
///
/// # Errors
///
/// What is wrong with the file, to follow its name. The text has nothing from between boundaries.
pub(crate) fn parse(pem: &[u8]) -> Result<Vec<Block<'_>>, String> {
    let mut blocks = Vec::new();
    // The label, the first line and the base64 of the block that is open.
    let mut open: Option<(&str, usize, Vec<u8>)> = None;
    // An end of line is CR, LF or both.
    let end_of_line = if pem.contains(&b'\n') { b'\n' } else { b'\r' };
    for (index, line) in pem.split(|byte| *byte == end_of_line).enumerate() {
        let number = index + 1;
        let line = line.trim_ascii_end();
        let begins = label(line, BEGIN);
        let ends = label(line, END);
        open = match (open, begins, ends) {
            (None, Some(label), _) => Some((label, number, Vec::new())),
            (Some((label, start, base64)), _, Some(end)) if label == end => {
                let der = STANDARD.decode(base64).ok().filter(|der| !der.is_empty());
                let der = der.ok_or_else(|| {
                    format!("has data that is not base64 in the {label:?} of line {start}")
                })?;
                blocks.push(Block {
                    label,
                    line: start,
                    der: Secret::new(der),
                });
                None
            }
            (Some((label, start, _)), Some(_), _) | (Some((label, start, _)), _, Some(_)) => {
                return Err(format!(
                    "has no end of the {label:?} of line {start} before line {number}"
                ));
            }
            (None, _, Some(label)) => {
                return Err(format!(
                    "has an end of a {label:?} in line {number} without its beginning"
                ));
            }
            _ if is_like_a_boundary(line) => {
                return Err(format!(
                    "has something else beside a boundary in line {number}, or a part of one: \
                     {BEGIN}…{DASHES} and {END}…{DASHES} must stand alone on their lines"
                ));
            }
            (Some(_), ..) if line.contains(&b':') => {
                return Err(format!(
                    "has a header in line {number}: what is encrypted must be decrypted first \
                     (openssl pkey -in FILE)"
                ));
            }
            (Some((label, start, mut base64)), ..) => {
                base64.extend_from_slice(line);
                Some((label, start, base64))
            }
            (None, ..) => None,
        };
    }
    match open {
        Some((label, start, _)) => Err(format!("has no end of the {label:?} of line {start}")),
        None => Ok(blocks),
    }
}

/// The label of a boundary that stands alone on its line.
fn label<'a>(line: &'a [u8], begin: &str) -> Option<&'a str> {
    let line = str::from_utf8(line).ok()?;
    let label = line.strip_prefix(begin)?.strip_suffix(DASHES)?;
    let is_label = |byte: u8| byte.is_ascii_graphic() || byte == b' ';
    (label.bytes().all(is_label) && !label.contains("--")).then_some(label)
}

/// Whether a line looks like a damaged boundary.
fn is_like_a_boundary(line: &[u8]) -> bool {
    let has = |word: &[u8]| line.windows(word.len()).any(|window| window == word);
    has(b"--") && (has(b"BEGIN ") || has(b"END "))
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "-----BEGIN A-----\nQUJD\n-----END A-----\n";
    const B: &str = "-----BEGIN B C-----\nREVG\nR0hJ\n-----END B C-----\n";

    fn read(pem: &str) -> Result<Vec<(&str, Vec<u8>)>, String> {
        let blocks = parse(pem.as_bytes())?;
        let blocks = blocks.into_iter();
        Ok(blocks
            .map(|block| (block.label, block.der.expose().clone()))
            .collect())
    }

    #[test]
    fn blocks_stand_between_boundaries_and_text_between_blocks() {
        let both = Ok(vec![("A", b"ABC".to_vec()), ("B C", b"DEFGHI".to_vec())]);
        assert_eq!(read(&format!("{A}{B}")), both);
        assert_eq!(read(&format!("{A}{B}").replace('\n', "\r\n")), both);
        assert_eq!(read(&format!("{A}{B}").replace('\n', "\r")), both);
        assert_eq!(read(&format!("{A}{B}").replace('\n', " \t\n")), both);
        assert_eq!(read(format!("{A}{B}").trim_end()), both);
        let text = "subject=CN = a -- b\n    00:11:22\n\n";
        assert_eq!(read(&format!("{text}{A}{text}{B}{text}")), both);
        assert_eq!(read(""), Ok(vec![]));
        assert_eq!(read("nonsense"), Ok(vec![]));
        assert_eq!(parse(b"\xFF\xFE\n").unwrap().len(), 0);
    }

    #[test]
    fn what_is_not_understood_as_a_whole_is_refused() {
        let alone = "must stand alone on their lines";
        for (pem, error) in [
            (format!("{}{B}", A.trim_end()), alone),
            (format!("\u{feff}{A}"), alone),
            (format!(" {A}"), alone),
            (format!("# {A}"), alone),
            (A.replace("-----BEGIN", "----BEGIN"), alone),
            (A.replace("A-----\nQ", "A----\nQ"), alone),
            (A.replace("A-----\nQ", "A----- x\nQ"), alone),
            (A.replace("\nQUJD\n", "QUJD"), alone),
            (
                A.replace("END A", "END B"),
                "has no end of the \"A\" of line 1 before line 3",
            ),
            (
                A.replace("-----END A-----\n", ""),
                "has no end of the \"A\" of line 1",
            ),
            (
                format!("{}{B}", A.replace("-----END A-----\n", "")),
                "before line 3",
            ),
            (
                B.replace("-----BEGIN B C-----\n", ""),
                "without its beginning",
            ),
            (
                A.replace("QUJD", "Proc-Type: 4,ENCRYPTED"),
                "has a header in line 2",
            ),
            (A.replace("QUJD", "QUJ"), "data that is not base64"),
            (A.replace("QUJD", "QUJ*"), "data that is not base64"),
            (A.replace("QUJD", "QQ==QQ=="), "data that is not base64"),
            (A.replace("QUJD\n", ""), "data that is not base64"),
        ] {
            let said = read(&pem).unwrap_err();
            assert!(said.contains(error), "{pem}: {said}");
        }
    }

    #[test]
    fn a_block_is_written_as_it_may_be_read() {
        for length in [1, 48, 49, 1000] {
            let der = vec![7; length];
            let block = Block {
                label: "A",
                line: 1,
                der: Secret::new(der.clone()),
            };
            let pem = block.to_pem();
            let blocks = parse(pem.expose()).unwrap();
            assert_eq!(blocks[0].der.expose(), &der);
        }
    }
}
