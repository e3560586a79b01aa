//! How a session begins: on a new connection, on one that resumes a session of this node, or on one that
//! moves a session here from another node. From there it runs to its end.

use std::{
    future::poll_fn,
    net::IpAddr,
    num::NonZeroU32,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use hyper::upgrade::OnUpgrade;
use log::debug;
use tokio::time::{Instant, sleep};

use super::{
    closing_handshake::ClosingHandshake,
    disconnect::Disconnect,
    groups::{self, LobbyPlace, Place},
    serve::{Ended, Session},
    suspended::{Awakening, resume_window},
    topics::Topics,
};
use crate::{
    access::{Admitted, ConnectRequest, SessionSlot},
    cluster::{self, Answer},
    dialects,
    event_stream::{Outlet, Receiver},
    outbox::{detached_outbox, outbox},
    protocol::{self, Close, CloseCode, Problem, Resume, ResumeToken, RoomName, SessionId},
    rooms::{LookupOutcome, MigrationRequest, Reservation, SessionInfo},
    state::{Reconnection, ResumeAttempt, ResumeRequest, SavedSession, Shared, Takeover},
    transport::{Reader, Writer},
    websocket::{self, Frame},
};

/// The first pause before the nodes are asked again for a session that is moving between them. Each
/// further pause is twice as long.
const LOOK_UP_AGAIN: Duration = Duration::from_millis(10);

/// What a client has connected with.
pub(crate) enum Connection {
    /// A connection that is being upgraded.
    WebSocket(OnUpgrade),
    /// The answer to a request, and what the client posts.
    EventStream(Box<Receiver>, Box<Outlet>),
}

/// A client that is about to join a room.
struct Newcomer {
    reader: Reader,
    writer: Writer,
    client: ConnectRequest,
    reservation: Reservation,
    slot: SessionSlot,
    /// The place in a lobby, in a group.
    lobby: Option<Box<LobbyPlace>>,
}

/// Waits until `connection` is open. Then begins a session on it, or continues the session that the
/// client wants to `resume`.
pub(crate) fn start(
    shared: Arc<Shared>,
    room: RoomName,
    connection: Connection,
    client: ConnectRequest,
    resume: Option<ResumeRequest>,
    admitted: Option<Admitted>,
) {
    let request = resume.as_ref().and_then(ResumeRequest::read);
    let attempt = request.map(|(token, _)| shared.resumes.attempt(token.hash()));
    let tasks = shared.tasks.clone();
    tasks.spawn(async move {
        let opened = match connection {
            Connection::WebSocket(connection) => upgraded(&shared, connection).await,
            Connection::EventStream(receiver, outlet) => {
                Some(((*receiver).into(), (*outlet).into()))
            }
        };
        let Some((reader, writer)) = opened else {
            return;
        };
        let mut connection = Box::new(Reconnection {
            reader,
            writer,
            token: None,
            received: 0,
            client,
            room,
            admitted,
        });
        let (Some((token, received)), Some(attempt)) = (request, attempt) else {
            return match resume {
                Some(_) => begin_anew(shared, connection),
                None => begin(shared, connection, None),
            };
        };
        connection.token = Some(token);
        connection.received = received;
        if let Err(connection) = take_over(&shared, &attempt, connection) {
            look_up(shared, connection, token, attempt).await;
        }
    });
}

/// Waits until `connection`, which is from `address`, is upgraded. Then closes it with `refusal`, after `first` if that
/// is a frame.
pub(crate) fn close_refused(
    shared: Arc<Shared>,
    connection: OnUpgrade,
    address: Option<IpAddr>,
    first: Option<Frame>,
    refusal: Close,
) {
    let tasks = shared.tasks.clone();
    tasks.spawn(async move {
        if let Some((reader, writer)) = upgraded(&shared, connection).await {
            let disconnect = Disconnect::Closed(refusal);
            let handshake = ClosingHandshake::of_connection(shared, disconnect, writer, address);
            handshake.after(first).run(reader).await;
        }
    });
}

/// The halves of a connection once it is upgraded; `None` if that fails or takes too long.
async fn upgraded(shared: &Shared, connection: OnUpgrade) -> Option<(Reader, Writer)> {
    let limit = shared.config.limits.handshake();
    let upgraded = shared.in_time(limit, connection).await?.ok()?;
    let max_message_bytes = shared.config.limits.max_message_bytes;
    let traffic = &shared.metrics.traffic;
    let (reader, writer) = websocket::split(upgraded, max_message_bytes, traffic);
    Some((reader.into(), writer.into()))
}

/// Makes a session of this node continue with a connection, or rejects the connection if a later one is there.
///
/// # Errors
///
/// The connection, if this node has no such session or the session cannot continue with it.
fn take_over(
    shared: &Arc<Shared>,
    attempt: &ResumeAttempt,
    connection: Box<Reconnection>,
) -> Result<(), Box<Reconnection>> {
    let (room, user) = (connection.room.clone(), connection.client.user());
    let user = user.map(str::to_owned);
    let takeover = Takeover::Local(connection);
    match attempt.take_over(&room, user.as_deref(), takeover) {
        Ok(lost) => {
            if let Some(lost) = lost {
                reject(shared, lost);
            }
            Ok(())
        }
        Err(Takeover::Local(connection)) => Err(connection),
        Err(Takeover::Remote(_)) => unreachable!("the takeover is a local one"),
    }
}

/// Rejects a takeover, because a later one got the session.
pub(crate) fn reject(shared: &Arc<Shared>, takeover: Takeover) {
    match takeover {
        Takeover::Local(connection) => {
            let disconnect = Disconnect::Detached(Close::taken_over());
            close(shared.clone(), disconnect, *connection);
        }
        Takeover::Remote(request) => refuse(shared, request, Answer::Superseded),
    }
}

/// Tells a node why it does not get a session.
pub(crate) fn refuse(shared: &Shared, request: MigrationRequest, answer: Answer) {
    if let Some(cluster) = &shared.cluster {
        let MigrationRequest {
            node, room, seek, ..
        } = request;
        cluster.outbound.batch().answer(node, room, seek, answer);
    }
}

/// Closes a connection that has no session.
fn close(shared: Arc<Shared>, disconnect: Disconnect, connection: Reconnection) {
    let Reconnection {
        reader,
        writer,
        client,
        ..
    } = connection;
    let tasks = shared.tasks.clone();
    let handshake = ClosingHandshake::of_connection(shared, disconnect, writer, client.address);
    tasks.spawn(handshake.run(reader));
}

/// Closes a connection whose client wants to resume a session that may be on a node that cannot be asked now.
fn try_again(shared: Arc<Shared>, connection: Box<Reconnection>) {
    let reason = "other nodes cannot be asked for the session now: try again";
    let close_frame = Close::new(CloseCode::TryAgainLater, reason);
    close(shared, Disconnect::Closed(close_frame), *connection);
}

/// Begins a new session in place of the one that could not be resumed.
fn begin_anew(shared: Arc<Shared>, connection: Box<Reconnection>) {
    shared.metrics.resumes("failed").inc();
    begin(shared, connection, Some(Problem::resume_failed()));
}

/// Begins a new session, in a task of its own. A problem is the first message that its client gets.
fn begin(shared: Arc<Shared>, mut connection: Box<Reconnection>, problem: Option<Problem>) {
    let admitted = match admit(&shared, &mut connection) {
        Ok(admitted) => admitted,
        Err(close_frame) => {
            return close(shared, Disconnect::Closed(close_frame), *connection);
        }
    };
    let group = connection.client.group_size;
    let group = group.map(|size| (connection.room.clone(), size));
    let newcomer = Newcomer {
        reader: connection.reader,
        writer: connection.writer,
        client: connection.client,
        reservation: admitted.reservation,
        slot: admitted.slot,
        lobby: None,
    };
    if let Some((room, size)) = group {
        let tasks = shared.tasks.clone();
        tasks.spawn(begin_in_group(shared, newcomer, room, size));
    } else {
        begin_in_room(shared, newcomer, problem);
    }
}

/// Begins a session in the group of this size of a room that it belongs to.
async fn begin_in_group(
    shared: Arc<Shared>,
    mut newcomer: Newcomer,
    room: RoomName,
    size: NonZeroU32,
) {
    let down = shared.cluster.as_ref().map(|cluster| cluster.down);
    match groups::find(&shared, &room, size, down.unwrap_or_default()).await {
        Ok(Place { reservation, lobby }) => {
            newcomer.reservation = reservation;
            newcomer.lobby = Some(Box::new(lobby));
            begin_in_room(shared, newcomer, None);
        }
        Err(close) => close_newcomer(shared, newcomer, close).await,
    }
}

/// Closes the connection of a client that gets no session for now.
async fn close_newcomer(shared: Arc<Shared>, newcomer: Newcomer, close: Close) {
    let disconnect = Disconnect::Closed(close);
    let address = newcomer.client.address;
    let handshake = ClosingHandshake::of_connection(shared, disconnect, newcomer.writer, address);
    handshake.run(newcomer.reader).await;
}

/// Begins a session in its room.
fn begin_in_room(shared: Arc<Shared>, newcomer: Newcomer, problem: Option<Problem>) {
    let tasks = shared.tasks.clone();
    let limit = shared.cluster.as_ref().map(|cluster| cluster.down);
    if limit.is_none() && !newcomer.reservation.is_flushing() {
        let (session, reader) = join_alone(shared, newcomer, problem);
        tasks.spawn(run(session, Some(reader)));
        return;
    }
    tasks.clone().spawn(async move {
        let joined = match limit {
            Some(limit) => join_in_cluster(shared, newcomer, problem, limit).await,
            None => {
                newcomer.reservation.wait_for_flushes().await;
                Some(join_alone(shared, newcomer, problem))
            }
        };
        if let Some((session, reader)) = joined {
            // A task of its own: what this one has needed to wait must not be part of an idle
            // session's memory.
            tasks.spawn(run(session, Some(reader)));
        }
    });
}

/// What a new session on this connection needs: as obtained before the upgrade, or now.
///
/// # Errors
///
/// The Close frame that says why there is none.
fn admit(shared: &Shared, connection: &mut Reconnection) -> Result<Admitted, Close> {
    if let Some(admitted) = connection.admitted.take() {
        return Ok(admitted);
    }
    let admitted = shared
        .admission
        .admit(&connection.room, connection.client.address);
    admitted.map_err(|error| match shared.stopping.is_cancelled() {
        true => Close::restart(0),
        false => Close::refusal(&error)
            .filter(|_| connection.client.reads_refusals)
            .unwrap_or_else(|| Close::new(CloseCode::TryAgainLater, error.message())),
    })
}

/// Joins the room of a server that is no node of a cluster.
fn join_alone(
    shared: Arc<Shared>,
    newcomer: Newcomer,
    problem: Option<Problem>,
) -> (Session, Reader) {
    let (session, reader) = join(shared, newcomer, problem);
    session.open_name();
    (session, reader)
}

/// Joins the room, once the other nodes have said who is there, and waits until they have seen the session,
/// `limit` each. `None` if the outbound queue has no room within that time.
async fn join_in_cluster(
    shared: Arc<Shared>,
    newcomer: Newcomer,
    problem: Option<Problem>,
    limit: Duration,
) -> Option<(Session, Reader)> {
    // The sessions of other nodes were there before this one.
    let entered = newcomer.reservation.wait_for_snapshots(limit);
    shared.in_time(limit, entered).await;
    let rooms = shared.rooms.clone();
    let waits = async {
        loop {
            let line = rooms.wait_in_line().await;
            if !newcomer.reservation.is_flushing() {
                break line;
            }
            // Other rooms are not in line for this one.
            drop(line);
            newcomer.reservation.wait_for_flushes().await;
        }
    };
    let Some(line) = shared.in_time(limit, waits).await else {
        let message = "the cluster is slow: try again later";
        let close = Close::new(CloseCode::TryAgainLater, message);
        close_newcomer(shared, newcomer, close).await;
        return None;
    };
    let (session, reader) = join(shared, newcomer, problem);
    drop(line);
    let settled = session.join_guard.wait_until_seen(limit);
    session.shared.in_time(limit, settled).await;
    session.join_guard.finish_join();
    session.open_name();
    Some((session, reader))
}

/// Joins the room.
fn join(shared: Arc<Shared>, newcomer: Newcomer, problem: Option<Problem>) -> (Session, Reader) {
    let Newcomer {
        mut reader,
        mut writer,
        client,
        reservation,
        slot,
        lobby,
    } = newcomer;
    let id = SessionId::random();
    let limits = &shared.config.limits;
    let token = reader.is_event_stream().then(|| shared.resumes.new_token());
    if let Some(token) = token {
        let seconds = resume_window(&shared, true).as_secs();
        writer.introduce(&Resume { token, seconds });
    }
    let (sender, outbox) = outbox(limits.outbox_bytes, writer);
    let registration = token.map(|token| {
        outbox.keep();
        let (room, user) = (reservation.room().clone(), client.user().map(str::to_owned));
        let resumes = &shared.resumes;
        let mut registration = resumes.register_token(token, room, user, sender.clone());
        reader.connect(registration.open_inlet(limits.max_message_bytes, 0));
        Box::new(registration)
    });
    if let Some(problem) = problem {
        shared.metrics.errors(problem.code.as_str()).inc();
        outbox.push(protocol::error(id, &problem, None));
    }
    let ConnectRequest {
        address,
        mut grant,
        reads_refusals: _,
        claim,
        group_size: _,
    } = client;
    let format = dialects::of(reservation.room().dialect());
    if claim.is_some() {
        outbox.outlive_connection();
    } else if let Some(first) = format.opened(id) {
        outbox.push(first);
    }
    let public = grant.as_mut().and_then(|grant| grant.public.take());
    let rooms = grant.as_mut().and_then(|grant| grant.rooms.take());
    let info = SessionInfo::new(public, address).with_claim(claim);
    let join_guard = reservation.join(id, sender, info);
    let permissions = grant.map(cluster::Permissions::from);
    let mut session = Session::new(shared, join_guard, outbox, permissions, slot, [0, 0]);
    session.lobby = lobby;
    session.heartbeat.pause(reader.is_event_stream());
    session.registration = registration;
    if session.join_guard.room().is_nowhere() {
        session.topics = Some(Box::new(Topics::new(rooms)));
    }
    debug!("{id} joined {}", session.join_guard.room());
    (session, reader)
}

/// Looks on the other nodes for the session that a client wants to resume, and begins a new one if no node
/// has it.
async fn look_up(
    shared: Arc<Shared>,
    connection: Box<Reconnection>,
    token: ResumeToken,
    attempt: ResumeAttempt,
) {
    let Some(cluster) = &shared.cluster else {
        return begin_anew(shared, connection);
    };
    // The nodes are not asked for a token that none of them has made.
    if !shared.resumes.may_exist(&token) {
        return match shared.knows_nodes() {
            true => begin_anew(shared, connection),
            false => try_again(shared, connection),
        };
    }
    let (limit, stopped) = (cluster.down, shared.stopped.clone());
    let deadline = Instant::now() + limit;
    let address = connection.client.address;
    if !shared.admission.may_look_up(address, deadline).await {
        return try_again(shared, connection);
    }
    tokio::select! {
        biased;
        () = import(shared.clone(), connection, token, attempt, limit) => {}
        // No node is waited for any more.
        () = stopped.cancelled() => {}
    }
}

/// Moves the session with this token here from the node that has it. Begins a new session if no node has
/// it.
async fn import(
    shared: Arc<Shared>,
    mut connection: Box<Reconnection>,
    token: ResumeToken,
    attempt: ResumeAttempt,
    limit: Duration,
) {
    // A new session tells the client why it is refused.
    let Ok(Admitted {
        mut reservation,
        slot,
    }) = admit(&shared, &mut connection)
    else {
        return begin_anew(shared, connection);
    };
    reservation.wait_for_snapshots(limit).await;
    let user = connection.client.user().map(str::to_owned);
    let (received, outbox_bytes) = (connection.received, shared.config.limits.outbox_bytes);
    let deadline = Instant::now() + limit;
    let mut pause = LOOK_UP_AGAIN;
    let mut imported = loop {
        if attempt.is_superseded() {
            // The nodes give the session to the connection for which they are asked last.
            return reject(&shared, Takeover::Local(connection));
        }
        let left = deadline - Instant::now();
        let knew_nodes = shared.knows_nodes();
        let lookup = reservation.look_up(
            token.hash(),
            user.clone(),
            received,
            outbox_bytes,
            left,
            limit,
        );
        match lookup.await {
            LookupOutcome::Found(imported) => break imported,
            LookupOutcome::Retry(returned) if Instant::now() < deadline => reservation = returned,
            LookupOutcome::Superseded => return reject(&shared, Takeover::Local(connection)),
            LookupOutcome::Unanswered | LookupOutcome::Retry(_) => {
                return try_again(shared, connection);
            }
            // A node that was not asked may have it.
            LookupOutcome::NotFound(_) if !(knew_nodes && shared.knows_nodes()) => {
                return try_again(shared, connection);
            }
            LookupOutcome::NotFound(reservation) => {
                // The session may have moved here since, with an earlier connection of the client.
                if let Err(mut connection) = take_over(&shared, &attempt, connection) {
                    connection.admitted = Some(Admitted { reservation, slot });
                    begin_anew(shared, connection);
                }
                return;
            }
        }
        // Of two nodes that look for the session at once, each may have missed it.
        sleep(pause).await;
        pause *= 2;
        // The session may have moved here in the meantime.
        match take_over(&shared, &attempt, connection) {
            Ok(()) => return,
            Err(returned) => connection = returned,
        }
    };
    let id = imported.transfer().member.id;
    let permissions = imported.transfer().permissions.clone();
    let owed = imported.transfer().owed;
    let (sender, outbox) = detached_outbox(outbox_bytes, received, imported.take_missed());
    let user = permissions.as_ref().and_then(|it| it.user.clone());
    let room = connection.room.clone();
    let registration = shared
        .resumes
        .register_token(token, room, user, sender.clone());
    if let Err(connection) = take_over(&shared, &attempt, connection) {
        // The client has missed more than this node keeps.
        begin_anew(shared.clone(), connection);
    }
    let join_guard = imported.join(sender, limit).await;
    debug!("{id} has moved to {} from another node", join_guard.room());
    let mut session = Session::new(shared, join_guard, outbox, permissions, slot, owed);
    session.registration = Some(Box::new(registration));
    session.shared.tasks.clone().spawn(run(session, None));
}

/// Continues a session that another process has saved. It is suspended from now on.
pub(crate) fn restore(shared: &Arc<Shared>, saved: SavedSession) {
    // A limit that is lower now loses no message.
    let missed_bytes = saved.missed.iter().map(Frame::cost).sum();
    let outbox_bytes = shared.config.limits.outbox_bytes.max(missed_bytes);
    let (sender, outbox) = detached_outbox(outbox_bytes, saved.sent, saved.missed);
    // A server that asks for no tokens now could not tell the user again.
    let takes_tokens = shared.admission.tokens().is_some();
    let permissions = saved.permissions.filter(|_| takes_tokens);
    let user = permissions.as_ref().and_then(|it| it.user.clone());
    let registration =
        shared
            .resumes
            .register_hash(saved.token, saved.room.clone(), user, sender.clone());
    let slot = shared.admission.readmit(saved.address);
    let join_guard = shared
        .rooms
        .restore(&saved.room, saved.member, saved.first_number, sender);
    let info = join_guard.info();
    info.taken_in.store(saved.taken_in, Relaxed);
    info.binary.store(saved.binary, Relaxed);
    *info.address.lock() = saved.address;
    let mut session = Session::new(
        shared.clone(),
        join_guard,
        outbox,
        permissions,
        slot,
        saved.owed,
    );
    session.registration = Some(Box::new(registration));
    shared.tasks.spawn(run(session, None));
}

/// Runs a session to its end. Without a reader it begins suspended.
///
/// The future of an idle session is most of what the session costs: it holds these few variables, and
/// what is needed seldom is in boxes.
fn run(session: Session, reader: Option<Reader>) -> impl Future<Output = ()> + Send {
    // An async fn would hold its arguments twice.
    let (mut session, mut reader) = (session, reader);
    async move {
        let ending = loop {
            if reader.is_some() {
                let served = poll_fn(|cx| session.poll_serve(cx, &mut reader));
                let disconnect = served.await;
                if !disconnect.is_loss() || !session.is_resumable() {
                    break Box::pin(end(session, disconnect, reader));
                }
                session.suspend(disconnect, &mut reader);
            }
            match Box::pin(wait(&mut session)).await {
                Ok(Some(resumed)) => reader = Some(resumed),
                Ok(None) => return keep(session),
                Err(disconnect) => break Box::pin(end(session, disconnect, None)),
            }
        };
        ending.await;
    }
}

/// Waits until a suspended session is resumed, and returns the reader of its new connection; `None` if the
/// server stops and saves the session. Deals with what the session rejects meanwhile.
///
/// # Errors
///
/// Why the session ends.
async fn wait(session: &mut Session) -> Result<Option<Reader>, Disconnect> {
    let suspension = session.suspension();
    loop {
        match session.wait_for_takeover(&suspension).await {
            Awakening::Resumed(reader) => return Ok(Some(reader)),
            Awakening::ServerStops => return Ok(None),
            Awakening::Ended(disconnect) => return Err(disconnect),
            Awakening::Rejected(connection) => begin_anew(session.shared.clone(), connection),
            Awakening::Refused(request, answer) => refuse(&session.shared, request, answer),
        }
    }
}

/// Keeps a suspended session for the next process, or ends it if it only holds a name or the server no longer saves
/// sessions.
fn keep(mut session: Session) {
    let shared = session.shared.clone();
    if session.registration.is_none() {
        let disconnect = Disconnect::Closed(Close::restart(0));
        shared.tasks.spawn(end(session, disconnect, None));
        return;
    }
    if let Some(registration) = &mut session.registration {
        // Nothing more is taken in.
        registration.close_inlet();
    }
    // The TURN server of the next process knows nothing of this one's allocations.
    session.turn = None;
    let late = session.registration.as_ref().and_then(|it| it.retire());
    answer_late(&shared, late);
    if let Err(session) = shared.to_save.add(session) {
        let disconnect = Disconnect::Closed(Close::restart(0));
        shared.tasks.spawn(end(session, disconnect, None));
    }
}

/// Ends a session. A connection that came too late to resume it gets a new one.
async fn end(session: Session, disconnect: Disconnect, reader: Option<Reader>) {
    // A crowd that leaves a large room at once would fill its outboxes.
    session.join_guard.wait_for_flushes().await;
    let shared = session.shared.clone();
    let Ended {
        late,
        handshake,
        slot,
    } = session.end(disconnect, reader);
    answer_late(&shared, late);
    if let Some((handshake, reader)) = handshake {
        handshake.run(reader).await;
    }
    drop(slot);
}

/// Answers a takeover that came too late.
fn answer_late(shared: &Arc<Shared>, late: Option<Takeover>) {
    match late {
        Some(Takeover::Local(connection)) => begin_anew(shared.clone(), connection),
        Some(Takeover::Remote(request)) => refuse(shared, request, Answer::NotHere),
        None => {}
    }
}
