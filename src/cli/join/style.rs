//! Colours, on a terminal.

/// The colours of people, as numbers of ANSI escape sequences. The first is one's own.
const COLORS: [u8; 6] = [36, 33, 32, 35, 34, 31];

/// Whether text is coloured.
#[derive(Clone, Copy)]
pub(super) struct Style {
    pub(super) has_colors: bool,
}

impl Style {
    /// A name in the colour of a person.
    pub(super) fn name(self, name: &str, color: usize) -> String {
        self.with(&format!("1;{}", COLORS[color % COLORS.len()]), name)
    }

    /// What is no message of a person.
    pub(super) fn notice(self, text: &str) -> String {
        self.with("2", text)
    }

    /// What went wrong.
    pub(super) fn error(self, text: &str) -> String {
        self.with("31", text)
    }

    fn with(self, code: &str, text: &str) -> String {
        match self.has_colors {
            true => format!("\u{1b}[{code}m{text}\u{1b}[0m"),
            false => text.into(),
        }
    }
}
