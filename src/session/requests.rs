//! What is addressed to the server: one enum, one match, one function each.

use serde_json::value::RawValue;

use super::serve::Session;
use crate::{
    access::{Denied, now},
    protocol::{self, Hello, HelloRequest, Limits, Message, Problem, Resume},
};

/// What a client may ask the server.
enum Request {
    /// Who am I, who is here, what may I do?
    Hello,
    /// Are you there?
    Ping,
    /// Here is a fresher token.
    Token,
}

impl Request {
    fn of_type(kind: &str) -> Option<Request> {
        match kind {
            "hello" => Some(Request::Hello),
            "ping" => Some(Request::Ping),
            "token" => Some(Request::Token),
            _ => None,
        }
    }
}

/// Answers a message to the server, into the outbox of the session that sent it; returns how many bytes
/// that is.
pub(crate) fn answer(session: &mut Session, message: &Message<'_>) -> Result<usize, Problem> {
    let takes_tokens = session.shared.admission.tokens().is_some();
    match Request::of_type(&message.kind) {
        Some(Request::Hello) => Ok(hello(session, &HelloRequest::parse(message.data))),
        Some(Request::Ping) => Ok(ping(session, message.data)),
        Some(Request::Token) if takes_tokens => token(session, message.data).map(|()| 0),
        Some(Request::Token) | None => {
            let known = match takes_tokens {
                true => "hello, ping and token",
                false => "hello and ping",
            };
            Err(Problem::unknown_request(&message.kind, known))
        }
    }
}

fn hello(session: &Session, request: &HelloRequest) -> usize {
    let Session {
        shared,
        join_guard,
        outbox,
        ..
    } = session;
    let config = &shared.config;
    let resumable = request.resume && config.resume_seconds > 0;
    let known = outbox.token().filter(|_| resumable);
    let ticket = (resumable && known.is_none()).then(|| {
        let user = session.user().map(str::to_owned);
        let room = join_guard.room().clone();
        let token = shared.resumes.token();
        shared.resumes.register(token, room, user, outbox.sender())
    });
    let token = known.or(ticket.as_ref().map(|ticket| ticket.token()));
    let (user, expires) = (session.user(), session.expires());
    let ice_servers = shared
        .ice
        .for_session(join_guard.id(), user, expires, now());
    join_guard.with_roster(|peers| {
        let hello = Hello {
            room: join_guard.room(),
            peers,
            ice_servers: &ice_servers,
            resume: token.map(|token| Resume {
                token,
                seconds: config.resume_seconds,
            }),
            limits: Limits {
                message_bytes: config.max_message_bytes,
                messages_per_second: config.messages_per_second,
                bytes_per_second: config.bytes_per_second,
            },
        };
        let hello = protocol::hello(join_guard.id(), &hello);
        let bytes = hello.len();
        match ticket {
            Some(ticket) => outbox.push_and_keep(hello, ticket),
            None => outbox.push(hello),
        }
        bytes
    })
}

fn ping(session: &Session, data: Option<&RawValue>) -> usize {
    let pong = protocol::pong(session.join_guard.id(), data);
    let bytes = pong.len();
    session.outbox.push(pong);
    bytes
}

/// Takes a token of the same user in place of the last one.
fn token(session: &mut Session, data: Option<&RawValue>) -> Result<(), Problem> {
    let token: Option<String> = data.and_then(|data| serde_json::from_str(data.get()).ok());
    let token = token.ok_or_else(|| Problem::bad_message("data must be the token, a string"))?;
    let shared = session.shared.clone();
    let tokens = shared.admission.tokens().expect("it has been asked for");
    let grant = tokens
        .check(&token, session.join_guard.room())
        .map_err(|denied| match denied {
            Denied::Invalid(message) | Denied::Forbidden(message) => Problem::not_allowed(message),
        })?;
    if grant.user.as_deref() != session.user() {
        return Err(Problem::not_allowed("the token is another user's"));
    }
    session.renew(grant);
    Ok(())
}
