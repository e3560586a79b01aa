//! Requests to the server: one enum, one match, one function each.

use std::{pin::Pin, sync::Arc, time::Duration};

use serde_json::value::RawValue;

use super::{pace::Pace, permissions::Permissions};
use crate::{
    access::Denied,
    history::{Query, Unavailable},
    outbox::{FlushSet, Outbox},
    protocol::{
        self, Hello, HelloRequest, HistoryRequest, Limits, Message, Outcome, PeerResult, Problem,
        Resume,
    },
    rooms::{JoinGuard, Speaker},
    state::{ResumeRegistration, Shared},
    unix_time,
};

/// How many messages of the history are sent to a client that does not say.
const DEFAULT_LAST: usize = 50;

/// What each message of the history costs in an outbox beside its content, in bytes.
const ENVELOPE_BYTES: usize = 256;

/// A request that a client may send to the server.
enum Request {
    /// Who am I, who else is here, and what am I allowed to do?
    Hello,
    /// Are you there?
    Ping,
    /// Here is a newer token of mine.
    Token,
    /// Here is what the others may know of me.
    State,
    /// What was said before I came?
    History,
    /// So my direct connection to a peer went.
    Outcome,
    /// Which address do I come from?
    Address,
}

/// An answer.
pub(super) enum Answer {
    /// It is in the outbox, and has this many bytes.
    Sent(usize),
    /// The future puts it into the outbox, and the receipt after it. Returns how many bytes that are.
    Follows(Pin<Box<dyn Future<Output = usize> + Send>>),
}

/// The parts of a session that requests read and change.
pub(super) struct RequestContext<'a> {
    pub(super) shared: &'a Arc<Shared>,
    pub(super) join_guard: &'a JoinGuard,
    pub(super) outbox: &'a Outbox,
    pub(super) permissions: &'a mut Option<Box<Permissions>>,
    pub(super) registration: &'a mut Option<Box<ResumeRegistration>>,
    pub(super) pace: &'a mut Option<Box<Pace>>,
    pub(super) flush_set: &'a mut FlushSet,
}

impl Request {
    fn of_type(kind: &str) -> Option<Request> {
        match kind {
            "hello" => Some(Request::Hello),
            "ping" => Some(Request::Ping),
            "token" => Some(Request::Token),
            "state" => Some(Request::State),
            "history" => Some(Request::History),
            "outcome" => Some(Request::Outcome),
            "address" => Some(Request::Address),
            _ => None,
        }
    }
}

/// Answers a request.
pub(super) fn answer(
    context: &mut RequestContext<'_>,
    message: &Message<'_>,
) -> Result<Answer, Problem> {
    let takes_tokens = context.shared.admission.tokens().is_some();
    let bytes = match Request::of_type(&message.kind) {
        Some(Request::Hello) => hello(context, &HelloRequest::parse(message.data)),
        Some(Request::Ping) => ping(context, message.data),
        Some(Request::Address) => address(context),
        Some(Request::State) => state(context, message.data)?,
        Some(Request::History) => return history(context, message).map(Answer::Follows),
        Some(Request::Outcome) => outcome(context, message.data).map(|()| 0)?,
        Some(Request::Token) if takes_tokens => token(context, message.data).map(|()| 0)?,
        Some(Request::Token) | None => {
            let known = match takes_tokens {
                true => "hello, ping, state, history, outcome, address and token",
                false => "hello, ping, state, history, outcome and address",
            };
            return Err(Problem::unknown_request(&message.kind, known));
        }
    };
    Ok(Answer::Sent(bytes))
}

fn hello(context: &mut RequestContext<'_>, request: &HelloRequest) -> usize {
    let RequestContext {
        shared,
        join_guard,
        outbox,
        permissions,
        registration,
        ..
    } = context;
    let config = &shared.config;
    let user = permissions.as_ref().and_then(|it| it.user.as_deref());
    let expires = permissions.as_ref().map(|it| it.expires());
    let is_resumable = request.resume && config.liveness.resume_seconds > 0;
    let new_registration = (is_resumable && registration.is_none()).then(|| {
        let (room, user) = (join_guard.room().clone(), user.map(str::to_owned));
        Box::new(shared.resumes.register(room, user, outbox.sender()))
    });
    let known = registration.as_ref().or(new_registration.as_ref());
    let token = known.filter(|_| is_resumable).and_then(|it| it.token());
    let ice_servers =
        shared
            .ice
            .for_session(join_guard.id(), user, expires, unix_time::unix_seconds());
    let (bytes, is_kept) = join_guard.with_peers(|peers| {
        let hello = Hello {
            room: join_guard.room(),
            peers,
            ice_servers: &ice_servers,
            resume: token.map(|token| Resume {
                token,
                seconds: config.liveness.resume_seconds,
            }),
            history: join_guard.history().map(|history| history.messages()),
            limits: Limits {
                message_bytes: config.limits.max_message_bytes,
                state_bytes: config.limits.state_bytes(),
                messages_per_second: config.limits.messages_per_second,
                bytes_per_second: config.limits.bytes_per_second,
            },
        };
        let hello = protocol::hello(join_guard.id(), &hello);
        let bytes = hello.len();
        let is_kept = match &new_registration {
            Some(_) => outbox.push_and_keep(hello),
            None => {
                outbox.push(hello);
                false
            }
        };
        (bytes, is_kept)
    });
    if is_kept {
        **registration = new_registration;
    }
    bytes
}

fn ping(context: &RequestContext<'_>, data: Option<&RawValue>) -> usize {
    let pong = protocol::pong(context.join_guard.id(), data);
    let bytes = pong.len();
    context.outbox.push(pong);
    bytes
}

/// Says by which address limits count the session.
fn address(context: &RequestContext<'_>) -> usize {
    let ip = *context.join_guard.info().address.lock();
    let answer = protocol::address(context.join_guard.id(), ip);
    let bytes = answer.len();
    context.outbox.push(answer);
    bytes
}

/// Sets what the session says of itself, and tells the others.
fn state(context: &mut RequestContext<'_>, data: Option<&RawValue>) -> Result<usize, Problem> {
    let permissions = context.permissions.as_ref();
    if permissions.is_some_and(|it| !it.may_send) {
        return Err(Problem::listens_only());
    }
    let value = data.filter(|data| data.get() != "null");
    let limits = &context.shared.config.limits;
    let (length, limit) = (value.map_or(0, |it| it.get().len()), limits.state_bytes());
    if length > limit {
        let message = format!("data has {length} bytes, and a state at most {limit}");
        return Err(Problem::bad_message(message));
    }
    if context.shared.cluster.is_some() {
        context.pace.get_or_insert_default().ensure_quota();
    }
    let quota = context.pace.as_ref().and_then(|pace| pace.quota());
    let speaker = Speaker::session(context.join_guard.id(), quota, None);
    let value = value.map(ToOwned::to_owned);
    // A `hello` has the states of all, and must fit into an outbox beside other messages.
    let most = limits.outbox_bytes / 2;
    let set = context
        .join_guard
        .set_state(speaker, value, most, context.flush_set);
    set.ok_or_else(|| Problem::too_many_states(most))
}

/// Reads what was said to all before the session joined.
fn history(
    context: &RequestContext<'_>,
    message: &Message<'_>,
) -> Result<Pin<Box<dyn Future<Output = usize> + Send>>, Problem> {
    let join_guard = context.join_guard;
    let history = join_guard
        .history()
        .ok_or_else(Problem::no_history)?
        .clone();
    let data = message.data.map_or("null", RawValue::get);
    let request: Option<Option<HistoryRequest>> =
        // An array of its values is valid for serde as well.
        serde_json::from_str(data).ok().filter(|_| !data.starts_with('['));
    let request = request.ok_or_else(|| {
        let message =
            "data must be an object of the integers last and before, which may be left out";
        Problem::bad_message(message)
    })?;
    let request = request.unwrap_or_default();
    let before = request.before.unwrap_or(u64::MAX);
    // An answer must fit into the outbox beside other messages, and after earlier answers on a slow connection.
    let outbox_bytes = context.shared.config.limits.outbox_bytes;
    let queued_bytes = context.outbox.sender().stats().bytes;
    let query = Query {
        last: request.last.unwrap_or(DEFAULT_LAST),
        before,
        bytes: outbox_bytes.saturating_sub(queued_bytes) / 2,
        overhead: ENVELOPE_BYTES,
    };
    let (id, room) = (join_guard.id(), join_guard.room().clone());
    let (outbox, reference) = (
        context.outbox.sender(),
        message.reference.map(ToOwned::to_owned),
    );
    let (past, metrics) = (join_guard.past(), context.shared.metrics.clone());
    // A task of its own: it goes on when the session has lost its connection, and a server that stops waits for it.
    let answered = context.shared.tasks.spawn(async move {
        let page = history.page(&room, query, &past).await;
        let reference = reference.as_deref();
        let answer = match page {
            Ok(page) => {
                let messages = page.messages.iter();
                let messages = messages.map(|message| protocol::history(id, message));
                let end = serde_json::json!({"done": true, "more": page.more});
                let receipt = reference.map(|reference| protocol::ack(id, reference, 1));
                let ends = [Some(protocol::history(id, end)), receipt];
                messages.chain(ends.into_iter().flatten()).collect()
            }
            Err(Unavailable) => {
                let problem = Problem::history_unavailable();
                metrics.errors(problem.code.as_str()).inc();
                vec![protocol::error(id, &problem, reference)]
            }
        };
        let mut flush_set = FlushSet::default();
        let mut bytes = 0;
        for frame in answer {
            bytes += frame.len();
            // A session that takes nothing more is leaving.
            let _ = outbox.push(frame, &mut flush_set);
        }
        bytes
    });
    Ok(Box::pin(async move { answered.await.unwrap_or_default() }))
}

/// Counts how a direct connection to a peer went.
fn outcome(context: &RequestContext<'_>, data: Option<&RawValue>) -> Result<(), Problem> {
    let outcome = data.and_then(|data| Outcome::parse(data.get()));
    let outcome = outcome.ok_or_else(|| {
        let message = "data must have result (connected or failed), path (host, srflx, prflx or relay; only if \
                       connected) and milliseconds (an integer, at most a day)";
        Problem::bad_message(message)
    })?;
    let metrics = &context.shared.metrics;
    let labels = [outcome.result.label(), outcome.path_label()];
    metrics.peer_connections(labels).inc();
    if outcome.result == PeerResult::Connected {
        metrics.observe_peer_connection(Duration::from_millis(outcome.milliseconds));
    }
    Ok(())
}

/// Replaces the session's token by another one of the same user.
fn token(context: &mut RequestContext<'_>, data: Option<&RawValue>) -> Result<(), Problem> {
    let token: Option<String> = data.and_then(|data| serde_json::from_str(data.get()).ok());
    let token = token.ok_or_else(|| Problem::bad_message("data must be the token, a string"))?;
    let tokens = context.shared.admission.tokens();
    let grant = tokens
        .expect("without tokens the request is unknown")
        .check(&token, context.join_guard.room())
        .map_err(|denied| match denied {
            Denied::Invalid(message) | Denied::Forbidden(message) => Problem::not_allowed(message),
        })?;
    let user = context.permissions.as_ref().and_then(|it| it.user.as_ref());
    if grant.user.as_ref() != user {
        return Err(Problem::not_allowed("the token is another user's"));
    }
    if let Some(permissions) = context.permissions {
        permissions.renew(grant);
    }
    Ok(())
}
