//! The server's clock, by the `Date` of its answers: tokens and TURN credentials expire by it.

use std::time::{SystemTime, UNIX_EPOCH};

use jiff::Timestamp;

use super::{report::Finding, token::Claims};

/// The difference of clocks that does no harm, in seconds. The server grants issuers of tokens as much.
const MAX_SKEW: i64 = 30;

/// A token that expires sooner, in seconds, expires while the doctor works or soon after.
const MIN_LEFT: f64 = 120.0;

const SET_CLOCK: &str = "set the clocks with NTP (timedatectl set-ntp true)";

/// Judges a `Date` that arrived at a time of this machine, and the times in a token.
pub(super) fn judge(date: Option<&(String, SystemTime)>, claims: Option<&Claims>) -> Finding {
    let Some((date, arrived)) = date else {
        return Finding::skipped("no answer has a Date");
    };
    let Ok(server) = jiff::fmt::rfc2822::parse(date) else {
        return Finding::skipped(format!("the Date of the answer is not one: {date}"));
    };
    let server = server.timestamp().as_second();
    let local = arrived
        .duration_since(UNIX_EPOCH)
        .map_or(0, |it| it.as_secs() as i64);
    let skew = server - local;
    if skew.abs() > MAX_SKEW {
        let direction = if skew > 0 { "ahead of" } else { "behind" };
        return Finding::failed(
            format!(
                "the clock of the server or proxy is {} s {direction} this machine's",
                skew.abs()
            ),
            format!("tokens and TURN credentials expire by it: {SET_CLOCK}"),
        );
    }
    let clocks = format!("{} s apart", skew.abs());
    match claims {
        Some(claims) => times(
            claims,
            server.max(local) as f64,
            server.min(local) as f64,
            &clocks,
        ),
        None => Finding::ok(clocks),
    }
}

/// Judges the times in a token by the later and the earlier of both clocks.
fn times(claims: &Claims, later: f64, earlier: f64, clocks: &str) -> Finding {
    let shown = |time: f64| {
        let time = Timestamp::from_second(time as i64);
        time.map_or_else(|_| "never".into(), |it| it.to_string())
    };
    let starts = [claims.nbf, claims.iat].into_iter().flatten();
    let start = starts.fold(f64::MIN, f64::max);
    if start > earlier + MAX_SKEW as f64 {
        return Finding::failed(
            format!(
                "the token is valid from {} on, which is later than now",
                shown(start)
            ),
            format!("use another token; on the machine that issues tokens, {SET_CLOCK}"),
        );
    }
    match claims.exp {
        Some(exp) if exp <= later => Finding::failed(
            format!("the token has expired at {}", shown(exp)),
            "use a fresh token",
        ),
        Some(exp) if exp <= later + MIN_LEFT => Finding::warning(
            format!("{clocks}; the token expires at {}", shown(exp)),
            "use a token that is valid for some minutes",
        ),
        Some(exp) => Finding::ok(format!("{clocks}; the token is valid until {}", shown(exp))),
        None => Finding::ok(clocks),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::report::Outcome;
    use super::*;

    #[test]
    fn clocks_and_tokens_are_compared() {
        let arrived = UNIX_EPOCH + Duration::from_secs(1_790_000_000);
        let claims = |json: &str| serde_json::from_str::<Claims>(json).unwrap();
        let valid = claims(r#"{"nbf":1790000010,"exp":1790003600.5}"#);
        let expired = claims(r#"{"exp":1789999999}"#);
        let ending = claims(r#"{"exp":1790000060}"#);
        let early = claims(r#"{"nbf":1790000100,"exp":1790003600}"#);
        for (date, claims, outcome) in [
            ("Mon, 21 Sep 2026 14:13:20 GMT", None, Outcome::Ok),
            ("Mon, 21 Sep 2026 14:13:45 GMT", None, Outcome::Ok),
            ("Mon, 21 Sep 2026 15:13:20 GMT", None, Outcome::Failed),
            ("Mon, 21 Sep 2026 13:13:20 GMT", None, Outcome::Failed),
            ("Mon, 21 Sep 2026 14:13:20 GMT", Some(&valid), Outcome::Ok),
            (
                "Mon, 21 Sep 2026 14:13:20 GMT",
                Some(&expired),
                Outcome::Failed,
            ),
            (
                "Mon, 21 Sep 2026 14:13:20 GMT",
                Some(&ending),
                Outcome::Warning,
            ),
            (
                "Mon, 21 Sep 2026 14:13:20 GMT",
                Some(&early),
                Outcome::Failed,
            ),
            ("yesterday", None, Outcome::Skipped),
        ] {
            let finding = judge(Some(&(date.into(), arrived)), claims);
            assert_eq!(finding.outcome, outcome, "{date}: {finding:?}");
        }
        assert_eq!(judge(None, None).outcome, Outcome::Skipped);
    }
}
