//! What the steps have found, as lines or as one JSON document.

use std::io::{self, Write};

use serde::Serialize;

use super::server_url::encode;

/// The most characters of a detail or an advice that are shown: parts of it are the server's words.
const MAX_CHARACTERS: usize = 500;

/// What stands in place of a secret.
const HIDDEN: &str = "[hidden]";

/// How a step went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Outcome {
    Ok,
    Failed,
    Warning,
    Skipped,
}

/// What a step has found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Finding {
    pub(super) outcome: Outcome,
    pub(super) detail: String,
    /// What to do.
    pub(super) advice: Option<String>,
}

impl Finding {
    pub(super) fn ok(detail: impl Into<String>) -> Finding {
        Finding::new(Outcome::Ok, detail.into(), None)
    }

    pub(super) fn failed(detail: impl Into<String>, advice: impl Into<String>) -> Finding {
        Finding::new(Outcome::Failed, detail.into(), Some(advice.into()))
    }

    pub(super) fn warning(detail: impl Into<String>, advice: impl Into<String>) -> Finding {
        Finding::new(Outcome::Warning, detail.into(), Some(advice.into()))
    }

    pub(super) fn skipped(reason: impl Into<String>) -> Finding {
        Finding::new(Outcome::Skipped, reason.into(), None)
    }

    fn new(outcome: Outcome, detail: String, advice: Option<String>) -> Finding {
        Finding {
            outcome,
            detail,
            advice,
        }
    }
}

#[derive(Serialize)]
struct Step {
    name: String,
    result: Outcome,
    detail: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    advice: Option<String>,
}

/// The report as JSON.
#[derive(Serialize)]
struct Document<'a> {
    url: &'a str,
    ok: bool,
    steps: &'a [Step],
}

/// The findings so far.
pub(super) struct Report {
    url: String,
    /// Whether the report is printed at its end, as JSON.
    is_json: bool,
    /// Texts that are not printed: tokens, as they are and percent-encoded.
    secrets: Vec<String>,
    steps: Vec<Step>,
}

impl Report {
    pub(super) fn new(url: String, is_json: bool) -> Report {
        Report {
            url,
            is_json,
            secrets: Vec::new(),
            steps: Vec::new(),
        }
    }

    /// Keeps a secret out of what is printed from now on: answers of a server or proxy may repeat it.
    pub(super) fn hide(&mut self, secret: &str) {
        if !secret.is_empty() {
            self.secrets.extend([secret.to_owned(), encode(secret)]);
        }
    }

    /// A text without secrets, as [`printable`] shows it.
    fn shown(&self, text: &str) -> String {
        let hide = |text: String, secret: &String| text.replace(secret, HIDDEN);
        printable(&self.secrets.iter().fold(text.to_owned(), hide))
    }

    /// Adds the finding of a step, and prints it.
    pub(super) fn add(&mut self, name: impl Into<String>, finding: Finding) {
        let step = Step {
            name: self.shown(&name.into()),
            result: finding.outcome,
            detail: self.shown(&finding.detail),
            advice: finding.advice.map(|it| self.shown(&it)),
        };
        if !self.is_json {
            print(&lines(&step));
        }
        self.steps.push(step);
    }

    /// Adds steps that cannot be done, and why.
    pub(super) fn skip(&mut self, names: &[&str], reason: &str) {
        for name in names {
            self.add(*name, Finding::skipped(reason));
        }
    }

    /// Whether no step failed.
    fn is_ok(&self) -> bool {
        let mut results = self.steps.iter().map(|step| step.result);
        results.all(|result| result != Outcome::Failed)
    }

    /// Prints what is left to print. Returns whether no step failed.
    pub(super) fn finish(self) -> bool {
        let is_ok = self.is_ok();
        if self.is_json {
            let document = Document {
                url: &self.url,
                ok: is_ok,
                steps: &self.steps,
            };
            print(&serde_json::to_string(&document).expect("strings are JSON"));
        }
        is_ok
    }
}

/// A step as it is shown to people.
fn lines(step: &Step) -> String {
    let mark = match step.result {
        Outcome::Ok => '✓',
        Outcome::Failed => '✗',
        Outcome::Warning => '!',
        Outcome::Skipped => '–',
    };
    let skipped = match step.result {
        Outcome::Skipped => "skipped: ",
        _ => "",
    };
    let mut lines = format!("{mark} {}: {skipped}{}", step.name, step.detail);
    if let Some(advice) = &step.advice {
        lines += "\n    ";
        lines += advice;
    }
    lines
}

/// Shortens a text, which then ends with `…`, and escapes characters that could change how a terminal shows the rest.
fn printable(text: &str) -> String {
    let is_harmful = |letter: &char| {
        letter.is_control()
            || matches!(letter, '\u{200e}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    let mut shown = String::new();
    let mut letters = text.trim().chars();
    for letter in letters.by_ref().take(MAX_CHARACTERS) {
        match is_harmful(&letter) {
            true => shown.extend(letter.escape_default()),
            false => shown.push(letter),
        }
    }
    if letters.next().is_some() {
        shown.push('…');
    }
    shown
}

/// Writes to standard output, which may be closed.
fn print(text: &str) {
    let _ = writeln!(io::stdout(), "{text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_one_line_and_its_advice_another() {
        let mut report = Report::new("ws://a/room".into(), true);
        report.add("tcp", Finding::ok("192.0.2.1 in 3 ms"));
        report.add("page", Finding::warning("404", "look"));
        report.skip(&["tls"], "ws: has no TLS");
        report.add("hello", Finding::failed("red\u{1b}[31m\u{202e}", "wait"));
        let shown: Vec<_> = report.steps.iter().map(lines).collect();
        let expected = [
            "✓ tcp: 192.0.2.1 in 3 ms",
            "! page: 404\n    look",
            "– tls: skipped: ws: has no TLS",
            "✗ hello: red\\u{1b}[31m\\u{202e}\n    wait",
        ];
        assert_eq!(shown, expected);
        assert!(!report.is_ok());
    }

    #[test]
    fn a_long_text_is_shortened() {
        let most = "x".repeat(MAX_CHARACTERS);
        assert_eq!(printable(&most), most);
        assert_eq!(printable(&(most.clone() + "x")), most + "…");
    }

    #[test]
    fn secrets_are_hidden_before_a_text_is_shortened() {
        let mut report = Report::new("ws://a/room".into(), true);
        report.hide("");
        report.hide("a/b.c");
        let start = "x".repeat(MAX_CHARACTERS - 2);
        report.add("page", Finding::warning("a/b.c a%2Fb.c", start + "a/b.c"));
        let step = &report.steps[0];
        assert_eq!(step.detail, "[hidden] [hidden]");
        assert!(!step.advice.as_ref().unwrap().contains("a/"));
    }

    #[test]
    fn warnings_and_skipped_steps_are_no_failure() {
        let mut report = Report::new("ws://a/room".into(), true);
        report.add("page", Finding::warning("404", "look"));
        report.skip(&["tls"], "ws: has no TLS");
        assert!(report.is_ok());
    }
}
