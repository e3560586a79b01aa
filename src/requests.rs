//! What is addressed to the server: one enum, one match, one function each.

use crate::{
    Config,
    outbox::Outbox,
    protocol::{self, Hello, Limits, Message, Problem},
    rooms::Membership,
};

/// The requests, in the words of the error for one that is unknown.
const KNOWN: &str = "hello and ping";

/// What a client may ask the server.
enum Request {
    /// Who am I, who is here, what may I do?
    Hello,
    /// Are you there?
    Ping,
}

impl Request {
    fn of_type(kind: &str) -> Option<Request> {
        match kind {
            "hello" => Some(Request::Hello),
            "ping" => Some(Request::Ping),
            _ => None,
        }
    }
}

/// Answers a message to the server, into the outbox of the session that sent it.
pub(crate) fn answer(
    message: &Message<'_>,
    membership: &Membership,
    outbox: &Outbox,
    config: &Config,
) -> Result<(), Problem> {
    let request = Request::of_type(&message.kind)
        .ok_or_else(|| Problem::unknown_request(&message.kind, KNOWN))?;
    match request {
        Request::Hello => hello(membership, outbox, config),
        Request::Ping => outbox.push(protocol::pong(membership.id(), message.data)),
    }
    Ok(())
}

fn hello(membership: &Membership, outbox: &Outbox, config: &Config) {
    membership.with_roster(|peers| {
        let hello = Hello {
            room: membership.room(),
            peers,
            ice_servers: [],
            resume: (),
            limits: Limits {
                message_bytes: config.max_message_bytes,
            },
        };
        outbox.push(protocol::hello(membership.id(), &hello));
    });
}
