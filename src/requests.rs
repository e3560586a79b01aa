//! What is addressed to the server: one enum, one match, one function each.

use crate::{
    Shared,
    outbox::Outbox,
    protocol::{self, Hello, HelloRequest, Limits, Message, Problem, Resume},
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
    shared: &Shared,
) -> Result<(), Problem> {
    let request = Request::of_type(&message.kind)
        .ok_or_else(|| Problem::unknown_request(&message.kind, KNOWN))?;
    match request {
        Request::Hello => {
            let request = HelloRequest::parse(message.data);
            hello(&request, membership, outbox, shared);
        }
        Request::Ping => outbox.push(protocol::pong(membership.id(), message.data)),
    }
    Ok(())
}

fn hello(request: &HelloRequest, membership: &Membership, outbox: &Outbox, shared: &Shared) {
    let config = &shared.config;
    let resumable = request.resume && config.resume_seconds > 0;
    let known = outbox.token().filter(|_| resumable);
    let ticket = (resumable && known.is_none()).then(|| {
        shared
            .resumes
            .register(membership.room().clone(), outbox.sender())
    });
    let token = known.or(ticket.as_ref().map(|ticket| ticket.token()));
    membership.with_roster(|peers| {
        let hello = Hello {
            room: membership.room(),
            peers,
            ice_servers: [],
            resume: token.map(|token| Resume {
                token,
                seconds: config.resume_seconds,
            }),
            limits: Limits {
                message_bytes: config.max_message_bytes,
            },
        };
        let hello = protocol::hello(membership.id(), &hello);
        match ticket {
            Some(ticket) => outbox.push_and_keep(hello, ticket),
            None => outbox.push(hello),
        }
    });
}
