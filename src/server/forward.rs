//! Requests of clients without a WebSocket whose sessions are on other nodes.
//!
//! A balancer may lead each request to another node. The node that gets it asks the others once where the session is,
//! remembers that, and sends the request there. A session takes in every message once, so a request that may be lost is
//! sent again.

use std::{mem, net::IpAddr, sync::Arc, time::Duration};

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::StatusCode;
use tokio::time::{Instant, sleep, timeout};

use crate::{
    cluster::{Direct, Load, NodeId, PART_BYTES, PostOutcome},
    event_stream::Posted,
    protocol::{ResumeToken, RoomName, TokenHash},
    state::Shared,
    web::HttpError,
};

/// How long the messages of a request may wait to be taken in: less than proxies wait for an answer.
const POST_LIMIT: Duration = Duration::from_secs(20);

/// How long the answer of another node may take beyond that.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);

/// The first and the longest pause before a session is looked for again, which may be moving between nodes. Each pause
/// is twice as long as the last.
const FIRST_PAUSE: Duration = Duration::from_millis(25);
const LONGEST_PAUSE: Duration = Duration::from_millis(800);

/// The most bytes of messages that go to another node at once, unless a single one has more. In base64, they are as
/// long as other parts.
const FORWARDED_BYTES: usize = PART_BYTES / 4 * 3;

/// What a client asks for.
#[derive(Clone)]
pub(super) enum Request {
    /// Take these messages in, a line each, which come after so many others. The client may say how many messages it
    /// has received.
    Post {
        sent: u64,
        received: Option<u64>,
        lines: Bytes,
    },
    /// End the session.
    Leave,
}

/// The session of a request.
pub(super) struct SessionKey {
    pub(super) room: RoomName,
    pub(super) token: ResumeToken,
    /// The address of the client.
    pub(super) address: Option<IpAddr>,
}

impl SessionKey {
    /// The node of the session: `None` for this one.
    ///
    /// # Errors
    ///
    /// The [`HttpError`] if no node has the session, or some cannot be asked.
    pub(super) async fn find(&self, shared: &Shared) -> Result<Option<NodeId>, HttpError> {
        let hash = self.token.hash();
        if shared.resumes.inlet(&hash, &self.room).is_some() {
            return Ok(None);
        }
        let Some(cluster) = &shared.cluster else {
            return Err(no_session());
        };
        let knew_nodes = shared.knows_nodes();
        let not_found = || match knew_nodes && shared.knows_nodes() {
            true => no_session(),
            false => unanswered(),
        };
        // The nodes are not asked for a token that none of them has made.
        if !shared.resumes.may_exist(&self.token) {
            return Err(not_found());
        }
        if let Some(node) = shared.remote_inlets.home(&hash) {
            return Ok(Some(node));
        }
        let deadline = Instant::now() + cluster.down;
        if !shared.can_ask_nodes() || !shared.admission.may_look_up(self.address, deadline).await {
            return Err(unanswered());
        }
        let nodes = shared.rooms.nodes();
        if nodes.is_empty() {
            return Err(not_found());
        }
        let mark = cluster.outbound.next_mark();
        let found = shared
            .remote_inlets
            .search(mark, nodes.into_iter().collect());
        let sent = cluster.outbound.batch().find(mark, self.room.clone(), hash);
        sent.map_err(|_| unanswered())?;
        let node = timeout(cluster.down, found).await;
        let node = node.ok().and_then(Result::ok).ok_or_else(unanswered)?;
        let node = node.ok_or_else(not_found)?;
        shared.remote_inlets.set_home(hash, Some(node));
        Ok(Some(node))
    }

    /// Has the session carry out a request. Returns how many messages of the client it has taken in: fewer than were
    /// sent if they have to wait for too long.
    ///
    /// # Errors
    ///
    /// The [`HttpError`] that says why that is not possible.
    pub(super) async fn carry_out(
        &self,
        shared: &Arc<Shared>,
        request: Request,
    ) -> Result<u64, HttpError> {
        let mut pause = FIRST_PAUSE;
        loop {
            let outcome = match self.find(shared).await {
                Ok(None) => take(shared, &self.room, &self.token.hash(), request.clone()).await,
                Ok(Some(node)) => self.send(shared, node, request.clone()).await?,
                Err(error) if error.status() == StatusCode::NOT_FOUND => PostOutcome::NotHere,
                Err(error) => return Err(error),
            };
            let error = match outcome {
                PostOutcome::TakenIn(count) => return Ok(count),
                PostOutcome::NoStream => {
                    let message = "the session uses a WebSocket: send its messages there, or resume it here first";
                    HttpError::new(StatusCode::CONFLICT, message)
                }
                PostOutcome::Busy => {
                    let message = "too many requests of the session wait: send one at a time";
                    return Err(HttpError::too_many_requests(message, Some(1)));
                }
                PostOutcome::Refused => {
                    let most = shared.config.limits.max_message_bytes;
                    let message = format!(
                        "a message has over {most} bytes, or is not UTF-8: this has ended the session"
                    );
                    return Err(HttpError::new(StatusCode::UNPROCESSABLE_ENTITY, message));
                }
                PostOutcome::NotHere => no_session(),
            };
            shared.remote_inlets.set_home(self.token.hash(), None);
            // A session that moves between nodes is on none for a moment.
            if shared.cluster.is_none() || pause > LONGEST_PAUSE {
                return Err(error);
            }
            sleep(pause).await;
            pause *= 2;
        }
    }

    /// Has the session take in messages, a line each, which come after the first `sent`. To another node they go in
    /// parts.
    ///
    /// # Errors
    ///
    /// As for [`carry_out`](SessionKey::carry_out).
    pub(super) async fn post(
        &self,
        shared: &Arc<Shared>,
        mut sent: u64,
        received: Option<u64>,
        mut lines: Bytes,
    ) -> Result<u64, HttpError> {
        loop {
            let is_here = matches!(self.find(shared).await, Ok(None));
            let part = match is_here {
                true => mem::take(&mut lines),
                false => first_part(&mut lines),
            };
            let count = part.split(|byte| *byte == b'\n');
            let count = count.filter(|line| !line.trim_ascii().is_empty()).count();
            let request = Request::Post {
                sent,
                received,
                lines: part,
            };
            let taken_in = self.carry_out(shared, request).await?;
            sent += count as u64;
            if lines.is_empty() || taken_in < sent {
                return Ok(taken_in);
            }
        }
    }

    /// Sends a request to the node of the session.
    async fn send(
        &self,
        shared: &Shared,
        node: NodeId,
        request: Request,
    ) -> Result<PostOutcome, HttpError> {
        let cluster = shared.cluster.as_ref().ok_or_else(unanswered)?;
        let outbound = &cluster.outbound;
        let (mark, room, token) = (outbound.next_mark(), self.room.clone(), self.token.hash());
        let answer = shared.remote_inlets.expect(mark, node);
        let (message, text) = match request {
            Request::Post {
                sent,
                received,
                lines,
            } => {
                let post = Direct::Post {
                    room,
                    mark,
                    token,
                    sent,
                    received,
                };
                // The lines are checked where they are taken in, so they need not be JSON.
                (post, format!("\"{}\"", STANDARD.encode(lines)))
            }
            Request::Leave => (Direct::End { room, mark, token }, String::new()),
        };
        let line = timeout(cluster.down, outbound.wait_in_line()).await;
        let line = line.map_err(|_| unanswered())?;
        let sent = outbound
            .batch()
            .tell_node(node, message, text.as_bytes(), Load::Line);
        drop(line);
        sent.map_err(|_| unanswered())?;
        match timeout(POST_LIMIT + ANSWER_LIMIT, answer).await {
            Ok(Ok(outcome)) => Ok(outcome),
            // The node is down, or has lost the request.
            Ok(Err(_)) => Ok(PostOutcome::NotHere),
            Err(_) => {
                shared.remote_inlets.set_home(token, None);
                Err(unanswered())
            }
        }
    }
}

/// Has a session of this node carry out a request.
pub(super) async fn take(
    shared: &Shared,
    room: &RoomName,
    token: &TokenHash,
    request: Request,
) -> PostOutcome {
    let inlet = match shared.resumes.inlet(token, room) {
        Some(Some(inlet)) => inlet,
        Some(None) => return PostOutcome::NoStream,
        None => return PostOutcome::NotHere,
    };
    match request {
        Request::Leave => match inlet.leave() {
            true => PostOutcome::TakenIn(inlet.taken_in()),
            false => PostOutcome::NotHere,
        },
        Request::Post {
            sent,
            received,
            lines,
        } => match inlet.post(sent, received, lines) {
            Posted::Waits(taken_in) => match timeout(POST_LIMIT, taken_in).await {
                Ok(Ok(count)) => PostOutcome::TakenIn(count),
                // The session has ended, has moved, or uses a WebSocket now.
                Ok(Err(_)) if inlet.has_refused() => PostOutcome::Refused,
                Ok(Err(_)) => PostOutcome::NotHere,
                Err(_) => PostOutcome::TakenIn(inlet.taken_in()),
            },
            Posted::Busy => PostOutcome::Busy,
            Posted::Retired => PostOutcome::NotHere,
        },
    }
}

/// Has a session of this node carry out a request that another node has forwarded, and answers that node.
pub(super) fn take_forwarded(shared: &Arc<Shared>, node: NodeId, message: Direct, text: &str) {
    let (room, mark, token, request) = match message {
        Direct::Post {
            room,
            mark,
            token,
            sent,
            received,
        } => {
            let lines = text.strip_prefix('"').and_then(|it| it.strip_suffix('"'));
            let Some(Ok(lines)) = lines.map(|it| STANDARD.decode(it)) else {
                return;
            };
            let lines = lines.into();
            let post = Request::Post {
                sent,
                received,
                lines,
            };
            (room, mark, token, post)
        }
        Direct::End { room, mark, token } => (room, mark, token, Request::Leave),
        _ => return,
    };
    let shared = shared.clone();
    shared.tasks.clone().spawn(async move {
        let taken = take(&shared, &room, &token, request);
        let outcome = shared.in_time(POST_LIMIT, taken).await;
        if let Some(cluster) = &shared.cluster {
            let outcome = outcome.unwrap_or(PostOutcome::NotHere);
            let answer = Direct::Posted { mark, outcome };
            cluster.outbound.batch().notify(node, answer);
        }
    });
}

/// Takes whole lines out, as many as may go to another node at once.
fn first_part(lines: &mut Bytes) -> Bytes {
    if lines.len() <= FORWARDED_BYTES {
        return mem::take(lines);
    }
    let end = |from: &[u8]| from.iter().position(|byte| *byte == b'\n');
    let last = lines[..FORWARDED_BYTES]
        .iter()
        .rposition(|byte| *byte == b'\n');
    let after = || end(&lines[FORWARDED_BYTES..]).map(|at| FORWARDED_BYTES + at);
    let at = last.or_else(after).map_or(lines.len(), |at| at + 1);
    lines.split_to(at)
}

fn no_session() -> HttpError {
    let message = "no such session in this room: it has ended, or the token is another's";
    HttpError::new(StatusCode::NOT_FOUND, message)
}

fn unanswered() -> HttpError {
    HttpError::unavailable("the server cannot reach the node of the session: try again")
}
