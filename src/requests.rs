//! What is addressed to the server: one enum, one match, one function each.

use crate::{
    protocol::{self, Hello, HelloRequest, Limits, Message, Problem, Resume},
    session::Session,
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
pub(crate) fn answer(message: &Message<'_>, session: &mut Session) -> Result<(), Problem> {
    let request = Request::of_type(&message.kind)
        .ok_or_else(|| Problem::unknown_request(&message.kind, KNOWN))?;
    match request {
        Request::Hello => hello(&HelloRequest::parse(message.data), session),
        Request::Ping => session.answer(protocol::pong(session.id(), message.data)),
    }
    Ok(())
}

fn hello(request: &HelloRequest, session: &mut Session) {
    let token = request.resume.then(|| session.let_resume()).flatten();
    let config = session.config();
    session.membership().with_roster(|peers| {
        let hello = Hello {
            room: session.membership().room(),
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
        session.answer(protocol::hello(session.id(), &hello));
    });
}
