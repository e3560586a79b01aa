//! Usage errors: one line, without what may be a secret.

use clap::{
    CommandFactory,
    error::{ContextKind, ContextValue},
};

use super::options::Options;

/// Stands in a usage error in place of a word that may be a secret.
const NOT_SHOWN: &str = "(not shown: it may be a secret)";

/// What standard error says of a usage error.
pub(crate) fn describe(error: clap::Error) -> String {
    one_line(&without_secrets(error).to_string())
}

/// Takes out of a usage error what may be a secret: the value of an option that is marked with
/// `hide_env_values`, and a word that belongs to no option, since it may be a part of such a value.
fn without_secrets(mut error: clap::Error) -> clap::Error {
    // A suggestion repeats the word.
    error.remove(ContextKind::Suggested);
    let mut options = Options::command();
    options.build();
    let commands = || [&options].into_iter().chain(options.get_subcommands());
    let argument = |name: &str| {
        let mut arguments = commands().flat_map(clap::Command::get_arguments);
        arguments.find(|argument| argument.to_string() == name)
    };
    let is_public = |name: &ContextValue| {
        argument(&name.to_string()).is_some_and(|argument| {
            argument.get_action().takes_values() && !argument.is_hide_env_values_set()
        })
    };
    if !error.get(ContextKind::InvalidArg).is_some_and(is_public)
        && error.get(ContextKind::InvalidValue).is_some()
    {
        error.insert(
            ContextKind::InvalidValue,
            ContextValue::String(NOT_SHOWN.into()),
        );
    }
    for word in [ContextKind::InvalidArg, ContextKind::InvalidSubcommand] {
        if let Some(ContextValue::String(text)) = error.get(word)
            && !is_option(text)
            && argument(text).is_none()
            && options.find_subcommand(text).is_none()
        {
            error.insert(word, ContextValue::String(NOT_SHOWN.into()));
        }
    }
    error
}

/// Whether the text is the name of an option, alone or with the name of its value (`--listen <ADDRESS:PORT>`).
fn is_option(text: &str) -> bool {
    let (name, value) = text.split_once(' ').unwrap_or((text, "<>"));
    let is_letter = |byte: u8| byte.is_ascii_lowercase() || byte == b'-';
    let is_long = name.starts_with("--") && name.bytes().all(is_letter);
    let is_short = name.starts_with('-') && name.len() == 2;
    (is_long || is_short) && value.starts_with('<')
}

/// The text of a usage error on one line, without the usage and the hint that clap adds.
fn one_line(error: &str) -> String {
    let message = error.split("\n\nUsage:").next().unwrap_or(error);
    let message = message
        .split("\n\nFor more information")
        .next()
        .unwrap_or(message);
    let message = message.strip_prefix("error: ").unwrap_or(message);
    let lines = message
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty());
    lines.collect::<Vec<_>>().join("; ").replace(":; ", ": ")
}
