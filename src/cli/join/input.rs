//! What people type.

use serde_json::{Value, value::RawValue};

/// What `/help` shows.
pub(super) const HELP: &str = "\
a line           is said to everyone
/to NAME TEXT    is said to one person; an id, or how it begins, does as well; quote a name with spaces
/name NAME       sets your name
/state JSON      sets your state, which has your name as {\"name\": …}
/history [N]     shows the last N messages that the room keeps, 20 by default
/who             lists who is here
/raw JSON        sends a message of the protocol as it stands
/quit            leaves, as Ctrl-D does
//…              says a line that begins with a slash";

/// How many messages `/history` shows.
const DEFAULT_HISTORY: u32 = 20;

/// What a line asks for.
#[derive(Debug, PartialEq)]
pub(super) enum Input {
    Nothing,
    Say(String),
    To(String, String),
    Name(String),
    State(Value),
    History(u32),
    Who,
    Raw(String),
    Help,
    Quit,
}

/// Reads a line.
///
/// # Errors
///
/// What is wrong with it.
pub(super) fn parse(line: &str) -> Result<Input, String> {
    let line = line.trim_end_matches(['\r', '\n']);
    if line.trim().is_empty() {
        return Ok(Input::Nothing);
    }
    let Some(command) = line.strip_prefix('/') else {
        return Ok(Input::Say(line.into()));
    };
    if command.starts_with('/') {
        return Ok(Input::Say(command.into()));
    }
    let (command, rest) = command
        .split_once(char::is_whitespace)
        .unwrap_or((command, ""));
    let rest = rest.trim();
    match command {
        "to" => {
            let (name, text) = first_word(rest);
            match name.is_empty() || text.is_empty() {
                true => Err("/to needs a name and a text".into()),
                false => Ok(Input::To(name.into(), text.into())),
            }
        }
        "name" if rest.is_empty() => Err("/name needs a name".into()),
        "name" => Ok(Input::Name(rest.into())),
        "state" => match serde_json::from_str(rest) {
            Ok(state) => Ok(Input::State(state)),
            Err(error) => Err(format!(
                "/state needs JSON, such as {{\"name\":\"Alice\"}}: {error}"
            )),
        },
        "history" if rest.is_empty() => Ok(Input::History(DEFAULT_HISTORY)),
        "history" => match rest.parse() {
            Ok(count @ 1..) => Ok(Input::History(count)),
            _ => Err("/history needs a number".into()),
        },
        "who" => Ok(Input::Who),
        "raw" => match serde_json::from_str::<&RawValue>(rest) {
            Ok(_) => Ok(Input::Raw(rest.into())),
            Err(error) => Err(format!("/raw needs JSON: {error}")),
        },
        "help" => Ok(Input::Help),
        "quit" => Ok(Input::Quit),
        _ => Err("no such command: /help lists them; // begins a line with a slash".into()),
    }
}

/// The first word, which may be quoted, and the rest.
fn first_word(text: &str) -> (&str, &str) {
    let quoted = text.strip_prefix('"').and_then(|it| it.split_once('"'));
    let (word, rest) = quoted
        .or_else(|| text.split_once(char::is_whitespace))
        .unwrap_or((text, ""));
    (word, rest.trim_start())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn lines_are_said_unless_they_begin_with_a_slash() {
        let say = |text: &str| Ok(Input::Say(text.into()));
        let to = |name: &str, text: &str| Ok(Input::To(name.into(), text.into()));
        for (line, input) in [
            ("hello world\n", say("hello world")),
            ("  indented", say("  indented")),
            ("//etc", say("/etc")),
            (" ", Ok(Input::Nothing)),
            ("/to Bob hi there", to("Bob", "hi there")),
            ("/to \"Bob B\"  hi", to("Bob B", "hi")),
            ("/name Alice A", Ok(Input::Name("Alice A".into()))),
            ("/state {\"a\":1}", Ok(Input::State(json!({"a": 1})))),
            ("/history", Ok(Input::History(20))),
            ("/history 3", Ok(Input::History(3))),
            (
                "/raw {\"type\": \"x\"}",
                Ok(Input::Raw("{\"type\": \"x\"}".into())),
            ),
            ("/who", Ok(Input::Who)),
            ("/help me", Ok(Input::Help)),
            ("/quit", Ok(Input::Quit)),
        ] {
            assert_eq!(parse(line), input, "{line}");
        }
        for line in [
            "/to",
            "/to Bob",
            "/name",
            "/state",
            "/state {",
            "/history x",
            "/history 0",
            "/raw",
            "/x",
            "/",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }
}
