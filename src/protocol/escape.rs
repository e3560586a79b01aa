//! Untrusted text in log lines.

use std::fmt::{self, Display, Formatter, Write};

/// A value for the log whose text may come from a client, a token, a file or another server. Characters
/// that start a line, control a terminal or reorder the text around them are escaped as in Rust's
/// strings. So is the backslash, so that no text looks like an escape.
pub(crate) struct Escaped<T>(pub(crate) T);

impl<T: Display> Display for Escaped<T> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(Escaping(f), "{}", self.0)
    }
}

/// A writer that escapes text.
struct Escaping<'a, 'b>(&'a mut Formatter<'b>);

impl Write for Escaping<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for char in text.chars() {
            match is_unsafe(char) {
                true => write!(self.0, "{}", char.escape_default())?,
                false => self.0.write_char(char)?,
            }
        }
        Ok(())
    }
}

/// Whether a character is a control character (C0, DEL and C1), a line or paragraph separator, a
/// bidirectional control (Unicode Standard Annex 9, section 2), or the backslash.
fn is_unsafe(char: char) -> bool {
    char.is_control()
        || matches!(
            char,
            '\\' | '\u{61C}'
                | '\u{200E}'
                | '\u{200F}'
                | '\u{2028}'..='\u{202E}'
                | '\u{2066}'..='\u{2069}'
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logged_text_stays_on_its_line_and_in_its_order() {
        for (text, logged) in [
            ("tea", "tea"),
            ("größer 🍵 हिन्दी \"a\" 'b'", "größer 🍵 हिन्दी \"a\" 'b'"),
            ("a\r\nb\tc\0", r"a\r\nb\tc\u{0}"),
            (
                "\u{1B}[31m\u{7F}\u{85}\u{9B}",
                r"\u{1b}[31m\u{7f}\u{85}\u{9b}",
            ),
            ("a\u{2028}b\u{2029}", r"a\u{2028}b\u{2029}"),
            (
                "\u{202A}\u{202E}\u{2066}\u{2069}",
                r"\u{202a}\u{202e}\u{2066}\u{2069}",
            ),
            ("\u{61C}\u{200E}\u{200F}", r"\u{61c}\u{200e}\u{200f}"),
            (r"a\nb", r"a\\nb"),
        ] {
            assert_eq!(Escaped(text).to_string(), logged);
        }
        // An error writes its text in pieces.
        let error = format_args!("unknown variant `{}`", "a\nb").to_string();
        assert_eq!(Escaped(error).to_string(), r"unknown variant `a\nb`");
    }
}
