//! Checks of option values that several groups share. Their errors name the option.

use std::ops::RangeInclusive;

/// Checks that a number is within a range.
pub(super) fn within(option: &str, value: u64, range: RangeInclusive<u64>) -> Result<(), String> {
    if range.contains(&value) {
        return Ok(());
    }
    Err(format!(
        "{option} must be {} to {}, not {value}",
        range.start(),
        range.end()
    ))
}

/// Checks that the value of an option is not empty.
#[cfg(feature = "tokens")]
pub(crate) fn not_empty(option: &str, value: Option<&str>) -> Result<(), String> {
    match value {
        Some("") => Err(format!("{option} must not be empty: leave it out")),
        _ => Ok(()),
    }
}

/// Checks that both of two options are given, or neither.
pub(super) fn all_or_none(given: [(bool, &str); 2]) -> Result<(), String> {
    match given {
        [(true, given), (false, missing)] | [(false, missing), (true, given)] => {
            Err(format!("{given} needs {missing}"))
        }
        _ => Ok(()),
    }
}
