//! Other people's text on a terminal.

/// The most characters of a name.
const MAX_NAME: usize = 40;

/// A text in which characters that control a terminal, begin a line or reorder the text around them are escaped, and
/// the backslash, so that no text looks like an escape.
pub(crate) fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for letter in text.chars() {
        match is_unsafe(letter) {
            true => shown.extend(letter.escape_default()),
            false => shown.push(letter),
        }
    }
    shown
}

/// Whether a character is a control character, a separator of lines, a bidirectional control, or the backslash.
fn is_unsafe(letter: char) -> bool {
    letter.is_control()
        || matches!(
            letter,
            '\\' | '\u{61c}'
                | '\u{200e}'..='\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2066}'..='\u{2069}'
                | '\u{feff}'
        )
}

/// A name as it can be shown; `None` if nothing of it is visible. White space becomes a single space, and characters
/// that are unsafe or invisible are left out.
pub(crate) fn name(text: &str) -> Option<String> {
    let is_visible = |letter: &char| {
        !is_unsafe(*letter)
            && !matches!(letter, '\u{ad}' | '\u{34f}' | '\u{115f}'..='\u{1160}' | '\u{17b4}'..='\u{17b5}'
                | '\u{180b}'..='\u{180f}' | '\u{200b}' | '\u{2060}'..='\u{206f}' | '\u{2800}' | '\u{3164}'
                | '\u{ffa0}' | '\u{fff0}'..='\u{fffb}' | '\u{e000}'..='\u{f8ff}' | '\u{e0000}'..='\u{e0fff}')
    };
    let words: Vec<String> = text
        .split(char::is_whitespace)
        .map(|word| word.chars().filter(is_visible).collect())
        .filter(|word: &String| !word.is_empty())
        .collect();
    let name: String = words.join(" ").chars().take(MAX_NAME).collect();
    let has_text = name.chars().any(|letter| {
        !matches!(
            letter,
            ' ' | '\u{200c}' | '\u{200d}' | '\u{fe0e}' | '\u{fe0f}'
        )
    });
    has_text.then(|| name.trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_reaches_the_terminal_as_a_control_character() {
        for (text, shown) in [
            ("größer 🍵 \"a\"", "größer 🍵 \"a\""),
            ("a\r\nb\tc\u{0}", r"a\r\nb\tc\u{0}"),
            ("\u{1b}[2J\u{9b}31m\u{7f}", r"\u{1b}[2J\u{9b}31m\u{7f}"),
            ("\u{202e}abc\u{2066}", r"\u{202e}abc\u{2066}"),
            (r"a\nb", r"a\\nb"),
        ] {
            assert_eq!(printable(text), shown);
        }
    }

    #[test]
    fn names_are_short_and_visible() {
        for (text, shown) in [
            ("Alice", Some("Alice")),
            ("  A \t\r\n B ", Some("A B")),
            ("\u{1b}[31mred", Some("[31mred")),
            ("\u{202e}\u{200b}\u{feff} ", None),
            ("\u{200d}", None),
            ("", None),
        ] {
            assert_eq!(name(text).as_deref(), shown, "{text:?}");
        }
        assert_eq!(name(&"x".repeat(100)).unwrap().len(), MAX_NAME);
    }
}
