//! What a refusal says about the limits of the server.

use anteroom::client::Disconnect;

use super::swarm::Pace;

/// A refusal in a few words: which option of the server limits what was asked for. Otherwise, what has failed.
pub(super) fn reason(why: &Disconnect) -> String {
    let status = match why {
        Disconnect::Refused { status, .. } => *status,
        Disconnect::Closed { code, .. } if (4400..4600).contains(code) => code - 4000,
        _ => 0,
    };
    match (status, why) {
        (429, _) => "the server limits the sessions of an address (429): --max-address-sessions, --joins-per-second".into(),
        (503, Disconnect::Closed { .. }) => "the server limits the sessions of a room (4503): --max-room-sessions".into(),
        (503, _) => "the server limits its sessions (503): --max-sessions, --max-rooms".into(),
        (401, _) => "the server wants a token (401): --token".into(),
        (403, _) => "the server refuses (403): --token, --origin".into(),
        (_, Disconnect::Closed { code: 1013, .. }) => {
            "the server closed a session that reads too slowly (1013): --outbox-bytes".into()
        }
        (_, why) => why.to_string(),
    }
}

/// Whether the server has refused a session: no more are asked for.
pub(super) fn is_refusal(why: &Disconnect) -> bool {
    match why {
        Disconnect::Refused { .. } => true,
        Disconnect::Closed { code, .. } => (4400..4600).contains(code),
        _ => false,
    }
}

/// The rates at which the server paces each session, and the options that set them; `None` if it does not.
pub(super) fn pace(pace: &Pace) -> Option<String> {
    let messages = pace
        .messages_per_second
        .map(|rate| format!("{rate} messages a second (--messages-per-second)"));
    let bytes = pace
        .bytes_per_second
        .map(|rate| format!("{rate} bytes a second (--bytes-per-second)"));
    let rates: Vec<String> = messages.into_iter().chain(bytes).collect();
    (!rates.is_empty()).then(|| format!("the server paces a session at {}", rates.join(" and ")))
}
