//! One session's life, top to bottom: start, join, serve, stay away and return, leave, say goodbye.

use std::{
    collections::VecDeque,
    fmt::{self, Display},
    future::poll_fn,
    net::IpAddr,
    ops::ControlFlow,
    pin::Pin,
    sync::{Arc, atomic::Ordering::Relaxed},
    task::{Context, Poll, ready},
    time::Duration,
};

use hyper::upgrade::OnUpgrade;
use log::debug;
use serde_json::value::RawValue;
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};

use super::requests;
use crate::{
    access::{AddressSlot, Admitted, ConnectRequest, Grant, Rates, SessionSlot},
    cluster::{self, Answer, Quota},
    config::Limit,
    outbox::{
        Attached, Command, FlushError, FlushSet, MigrationRequest, Outbox, Reconnection, Sender,
        Takeover, outbox, outbox_of_missed,
    },
    protocol::{
        self, BACK_SOON, Close, CloseCode, Message, Problem, Receiver, ResumeToken, RoomName,
        SessionId,
    },
    rooms::{JoinGuard, LookupOutcome, Reservation, SessionInfo, Speaker},
    state::{ExpiryGuard, HeartbeatGuard, ResumeRequest, Shared},
    websocket::{self, Event, Frame, Next, Reader, Stop, Violation, Writer},
};

/// How long a client has to take its Close frame and close its side. A restarting server grants its
/// drain time instead.
const GOODBYE_LIMIT: Duration = Duration::from_secs(2);

/// How long to wait before a session is sought again that is on its way.
const SEEK_AGAIN: Duration = Duration::from_millis(10);

/// How often to look whether the client of a session is still there that is not read from.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// What a frame has at the least besides its payload, in bytes: two, and a mask (RFC 6455, section
/// 5.2).
const FRAME_BYTES: usize = 6;

/// Starts a session on `connection` once it is upgraded, or has the one that the client wants to
/// `resume` go on with it.
pub(crate) fn start(
    shared: Arc<Shared>,
    room: RoomName,
    connection: OnUpgrade,
    client: ConnectRequest,
    resume: Option<ResumeRequest>,
    admitted: Option<Admitted>,
) {
    let tasks = shared.tasks.clone();
    tasks.spawn(async move {
        let handshake = shared.config.handshake();
        let Some(Ok(upgraded)) = in_time(&shared, handshake, connection).await else {
            return;
        };
        let max_message_bytes = shared.config.max_message_bytes;
        let (reader, writer) =
            websocket::split(upgraded, max_message_bytes, &shared.metrics.traffic);
        let mut reconnection = Box::new(Reconnection {
            reader,
            writer,
            received: 0,
            client,
            room,
            admitted,
        });
        let Some(request) = resume else {
            return Session::begin(shared, reconnection, None);
        };
        let user = reconnection.client.user();
        if let Some((sender, received)) = shared.resumes.find(&request, &reconnection.room, user) {
            reconnection.received = received;
            match go_on(&shared, &sender, reconnection) {
                Ok(()) => return,
                Err(returned) => reconnection = returned,
            }
        }
        match (&shared.cluster, request.read()) {
            // Nobody is asked for what no node has made.
            (Some(cluster), Some((token, received))) if shared.resumes.may_be(&token) => {
                reconnection.received = received;
                let (limit, stopped) = (cluster.down, shared.stopped.clone());
                let deadline = Instant::now() + limit;
                let address = reconnection.client.address;
                if !shared.admission.may_look_up(address, deadline).await {
                    return Session::begin_anew(shared, reconnection);
                }
                tokio::select! {
                    () = Session::take_over(shared.clone(), reconnection, token, limit) => {}
                    // Nobody answers any more.
                    () = stopped.cancelled() => {}
                }
            }
            _ => Session::begin_anew(shared, reconnection),
        }
    });
}

/// Has a session of this node go on with another connection.
///
/// # Errors
///
/// The arrival, if the session cannot go on with it.
fn go_on(
    shared: &Arc<Shared>,
    session: &Sender,
    reconnection: Box<Reconnection>,
) -> Result<(), Box<Reconnection>> {
    match session.hand_over(Takeover::Local(reconnection)) {
        Ok(earlier) => {
            earlier
                .into_iter()
                .for_each(|earlier| reject(shared, earlier));
            Ok(())
        }
        Err(Takeover::Local(reconnection)) => Err(reconnection),
        Err(Takeover::Remote(_)) => unreachable!("it is the one that was given"),
    }
}

/// Tells who has come to go on with a session that somebody else does.
pub(crate) fn reject(shared: &Arc<Shared>, takeover: Takeover) {
    match takeover {
        Takeover::Local(reconnection) => {
            let end = Disconnect::Detached(Close::taken_over());
            let address = reconnection.client.address;
            let goodbye = ClosingHandshake::new(shared.clone(), end, reconnection.writer, address);
            shared.tasks.spawn(goodbye.say(reconnection.reader));
        }
        Takeover::Remote(request) => refuse(shared, request, Answer::Superseded),
    }
}

/// Tells a node that it does not get a session.
pub(crate) fn refuse(shared: &Shared, request: MigrationRequest, answer: Answer) {
    if let Some(cluster) = &shared.cluster {
        let MigrationRequest {
            node, room, seek, ..
        } = request;
        cluster.outbound.batch().answer(node, room, seek, answer);
    }
}

/// The outcome of `work`, unless it takes longer than `limit`, or the server stops waiting; but it
/// is begun in any case.
async fn in_time<T>(shared: &Shared, limit: Duration, work: impl Future<Output = T>) -> Option<T> {
    tokio::select! {
        biased;
        outcome = timeout(limit, work) => outcome.ok(),
        () = shared.stopped.cancelled() => None,
    }
}

/// A session that is in its room.
pub(crate) struct Session {
    pub(crate) shared: Arc<Shared>,
    pub(crate) join_guard: JoinGuard,
    pub(crate) outbox: Outbox,
    beat: HeartbeatGuard,
    place: SessionSlot,
    /// There where a token has been asked for.
    permissions: Option<Box<Permissions>>,
    /// There where it may not say as much as it likes.
    pace: Option<Box<Pace>>,
}

/// What a session keeps to. Most are idle, and have none.
#[derive(Default)]
struct Pace {
    rates: Option<Rates>,
    /// What it has on its way to other nodes, once it has written to others where there are some.
    share: Option<Arc<Quota>>,
    /// There while it is not read from: done when it is to be again.
    pause: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

/// Who is about to join a room.
struct Newcomer {
    reader: Reader,
    writer: Writer,
    client: ConnectRequest,
    reservation: Reservation,
    place: SessionSlot,
}

/// What a session is allowed by its token.
struct Permissions {
    user: Option<String>,
    may_send: bool,
    expiry: ExpiryGuard,
}

/// Why a session is to end, or to stay away.
enum Disconnect {
    /// The connection broke.
    Lost,
    /// The client closed its side of the connection without a Close frame.
    Eof,
    /// The client sent a Close frame, with this code if it gave one.
    Left(Option<u16>),
    /// The server gives the connection up, but not the session.
    Detached(Close),
    /// The server closes it.
    Closed(Close),
    /// Its client has not come back in time.
    Expired,
    /// Its client has come back to another node.
    Gone,
}

impl Session {
    /// Begins a session in place of one that could not be resumed.
    fn begin_anew(shared: Arc<Shared>, reconnection: Box<Reconnection>) {
        shared.metrics.resumes("failed").inc();
        Session::begin(shared, reconnection, Some(Problem::resume_failed()));
    }

    /// Joins the room and lives on in a task of its own. If there was a problem, that is the first
    /// thing the client gets to know.
    fn begin(shared: Arc<Shared>, reconnection: Box<Reconnection>, problem: Option<Problem>) {
        let Reconnection {
            reader,
            writer,
            client,
            room,
            admitted,
            ..
        } = *reconnection;
        let tasks = shared.tasks.clone();
        let admitted = match admitted {
            Some(admitted) => Ok(admitted),
            None => shared.admission.admit(&room, client.address),
        };
        let Admitted { reservation, place } = match admitted {
            Ok(admitted) => admitted,
            Err(refusal) => {
                let close = match shared.stopping.is_cancelled() {
                    true => Close::restart(0),
                    false => Close::new(CloseCode::TryAgainLater, refusal.message()),
                };
                let end = Disconnect::Closed(close);
                let goodbye = ClosingHandshake::new(shared, end, writer, client.address);
                tasks.spawn(goodbye.say(reader));
                return;
            }
        };
        let newcomer = Newcomer {
            reader,
            writer,
            client,
            reservation,
            place,
        };
        let Some(limit) = shared.cluster.as_ref().map(|cluster| cluster.down) else {
            let (session, reader) = Session::join(shared, newcomer, problem);
            tasks.spawn(session.live(Some(reader)));
            return;
        };
        tasks.clone().spawn(async move {
            // Who is there on other nodes was there before.
            in_time(&shared, limit, newcomer.reservation.enter(limit)).await;
            let (session, reader) = {
                let rooms = shared.rooms.clone();
                let Some(_line) = in_time(&shared, limit, rooms.in_line()).await else {
                    let message = "the cluster is slow: try again later";
                    let end = Disconnect::Closed(Close::new(CloseCode::TryAgainLater, message));
                    let Newcomer { writer, client, .. } = newcomer;
                    let goodbye = ClosingHandshake::new(shared, end, writer, client.address);
                    return goodbye.say(newcomer.reader).await;
                };
                Session::join(shared, newcomer, problem)
            };
            in_time(&session.shared, limit, session.join_guard.settled(limit)).await;
            session.join_guard.begins();
            // Its waiting shall not be part of what it costs.
            tasks.spawn(session.live(Some(reader)));
        });
    }

    fn join(
        shared: Arc<Shared>,
        newcomer: Newcomer,
        problem: Option<Problem>,
    ) -> (Session, Reader) {
        let Newcomer {
            reader,
            writer,
            client,
            reservation,
            place,
        } = newcomer;
        let id = SessionId::random();
        let (sender, outbox) = outbox(shared.config.outbox_bytes, writer);
        if let Some(problem) = problem {
            shared.metrics.errors(problem.code).inc();
            outbox.push(protocol::error(id, &problem, None));
        }
        let ConnectRequest { address, mut grant } = client;
        let public = grant.as_mut().and_then(|grant| grant.public.take());
        let join_guard = reservation.join(id, sender, SessionInfo::new(public, address));
        let permissions = grant.map(|grant| cluster::Permissions {
            user: grant.user,
            may_send: grant.may_send,
            expires: grant.expires,
        });
        let session = Session::new(shared, join_guard, outbox, permissions, place, [0, 0]);
        debug!("{id} joined {}", session.join_guard.room());
        (session, reader)
    }

    /// A session that is in its room, with what its token allows, and what it owes to its rates.
    fn new(
        shared: Arc<Shared>,
        join_guard: JoinGuard,
        outbox: Outbox,
        permissions: Option<cluster::Permissions>,
        place: SessionSlot,
        owed: [u64; 2],
    ) -> Session {
        let (id, sender) = (join_guard.id(), outbox.sender());
        shared.metrics.joins.inc();
        let session = Session {
            join_guard,
            beat: shared.heartbeat.register(id, sender.clone()),
            permissions: permissions.map(|permissions| {
                let expiry = shared
                    .expiries
                    .register(permissions.expires, id, sender.clone());
                Box::new(Permissions {
                    user: permissions.user,
                    may_send: permissions.may_send,
                    expiry,
                })
            }),
            pace: Rates::new(&shared.config, owed).map(|rates| {
                Box::new(Pace {
                    rates: Some(rates),
                    ..Pace::default()
                })
            }),
            shared,
            outbox,
            place,
        };
        if session.shared.stopping.is_cancelled() {
            // It came too late to be among those who were told.
            sender.close(Close::restart(0));
        }
        session
    }

    /// Goes on with a session of another node, if one has it that has this token.
    async fn take_over(
        shared: Arc<Shared>,
        mut reconnection: Box<Reconnection>,
        token: ResumeToken,
        limit: Duration,
    ) {
        let admitted = match reconnection.admitted.take() {
            Some(admitted) => Ok(admitted),
            None => shared
                .admission
                .admit(&reconnection.room, reconnection.client.address),
        };
        // Why it is refused, it is told where it begins anew.
        let Ok(Admitted {
            mut reservation,
            place,
        }) = admitted
        else {
            return Session::begin_anew(shared, reconnection);
        };
        reservation.enter(limit).await;
        let user = reconnection.client.user().map(str::to_owned);
        let (received, outbox_bytes) = (reconnection.received, shared.config.outbox_bytes);
        let end_of_time = Instant::now() + limit;
        let mut pause = SEEK_AGAIN;
        let mut arriving = loop {
            let left = end_of_time - Instant::now();
            let seeking = reservation.seek(
                token.hash(),
                user.clone(),
                received,
                outbox_bytes,
                left,
                limit,
            );
            match seeking.await {
                LookupOutcome::Found(arriving) => break arriving,
                LookupOutcome::Again(returned) if Instant::now() < end_of_time => {
                    reservation = returned
                }
                LookupOutcome::Superseded => return reject(&shared, Takeover::Local(reconnection)),
                LookupOutcome::Nobody(reservation) | LookupOutcome::Again(reservation) => {
                    reconnection.admitted = Some(Admitted { reservation, place });
                    return Session::begin_anew(shared, reconnection);
                }
            }
            // Of two that look for it both may have missed it.
            sleep(pause).await;
            pause *= 2;
            // It may have come here meanwhile.
            let session =
                shared
                    .resumes
                    .look_up(&token.hash(), &reconnection.room, user.as_deref());
            if let Some(session) = session {
                match go_on(&shared, &session, reconnection) {
                    Ok(()) => return,
                    Err(returned) => reconnection = returned,
                }
            }
        };
        let id = arriving.handed().member.id;
        let (permissions, owed) = (
            arriving.handed().permissions.clone(),
            arriving.handed().owed,
        );
        let missed = arriving.missed();
        let (sender, outbox) = outbox_of_missed(outbox_bytes, received, missed, |sender| {
            let user = permissions
                .as_ref()
                .and_then(|permissions| permissions.user.clone());
            let room = reconnection.room.clone();
            shared.resumes.register(token, room, user, sender)
        });
        if let Err(reconnection) = go_on(&shared, &sender, reconnection) {
            // More has been missed than is kept here.
            Session::begin_anew(shared.clone(), reconnection);
        }
        let join_guard = arriving.arrive(sender, limit).await;
        debug!("{id} has come to {} from another node", join_guard.room());
        let session = Session::new(shared, join_guard, outbox, permissions, place, owed);
        session.shared.tasks.clone().spawn(session.live(None));
    }

    /// Lives until something ends it. Without a reader it begins where it waits for a connection.
    ///
    /// This is most of what a session costs while it is idle. It holds just these few things, and
    /// what is needed seldom is in a box.
    fn live(mut self, reader: Option<Reader>) -> impl Future<Output = ()> + Send {
        // An async fn would hold its arguments twice.
        let mut reader = reader;
        async move {
            let farewell = loop {
                if reader.is_some() {
                    let end = poll_fn(|cx| self.poll_serve(cx, &mut reader)).await;
                    if !end.is_loss() || !self.outbox.is_resumable() {
                        break Box::pin(self.leave(end, reader));
                    }
                    self.detach(end, &mut reader);
                }
                let away = Box::pin(self.stay_away(&mut reader));
                if let Err(end) = away.await {
                    break Box::pin(self.leave(end, None));
                }
            };
            farewell.await;
        }
    }

    /// Takes in what has come, then writes what waits for the session and what it has sent to
    /// others; ready only when the session shall not go on so.
    fn poll_serve(
        &mut self,
        cx: &mut Context<'_>,
        reader: &mut Option<Reader>,
    ) -> Poll<Disconnect> {
        let reader = reader
            .as_mut()
            .expect("it is here while there is a connection");
        // Whom it sends something that is not written yet.
        let mut flush_set = FlushSet::default();
        let mut read = Poll::Pending;
        if let Poll::Ready(result) = self.poll_pause(cx, reader) {
            if let Err(end) = result {
                return Poll::Ready(end);
            }
            read = reader.poll_read(cx, |event| self.on_event(event, &mut flush_set));
            if let Poll::Ready(Ok(false)) = read
                && !self.is_paused()
            {
                // Nothing more is there; this asks to be woken when there is.
                read = reader.poll_read(cx, |event| self.on_event(event, &mut flush_set));
            }
        }
        if let Poll::Ready(Err(stop)) = read {
            return Poll::Ready(self.on_stop(stop));
        }
        match self.outbox.poll_flush(cx) {
            Poll::Ready(Err(FlushError::Lost)) => return Poll::Ready(Disconnect::Lost),
            Poll::Ready(Err(FlushError::Called(call))) => return Poll::Ready(call.into()),
            Poll::Ready(Ok(())) | Poll::Pending => {}
        }
        flush_set.flush(&self.shared.tasks);
        if read.is_ready() {
            // What it has sent is to be written before more comes.
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }

    fn is_paused(&self) -> bool {
        self.pace.as_ref().is_some_and(|pace| pace.pause.is_some())
    }

    /// Waits until the session is to be read from.
    ///
    /// # Errors
    ///
    /// [`End::Eof`] if its client closes the connection meanwhile: nobody is there to be waited for, and
    /// what has not been read was not acknowledged.
    fn poll_pause(
        &mut self,
        cx: &mut Context<'_>,
        reader: &Reader,
    ) -> Poll<Result<(), Disconnect>> {
        if !self.is_paused() {
            self.pause(None);
        }
        while let Some(pace) = &mut self.pace
            && let Some(pause) = &mut pace.pause
        {
            ready!(pause.as_mut().poll(cx));
            pace.pause = None;
            let excess = pace.rates.as_ref().and_then(Rates::excess);
            match self.pause(excess) {
                Next::Pause if reader.is_closed() => return Poll::Ready(Err(Disconnect::Eof)),
                Next::Pause => {}
                Next::Event => self.beat.pause(false),
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Takes what a frame has cost, with what it has caused to be sent.
    fn spend(&mut self, bytes: usize) -> Next {
        let Some(pace) = &mut self.pace else {
            return Next::Event;
        };
        let excess = pace.rates.as_mut().and_then(|rates| {
            rates.spend(bytes);
            rates.excess()
        });
        if let Some((limit, _)) = excess {
            self.shared.metrics.limits_hit(limit).inc();
        }
        self.pause(excess)
    }

    /// Where a rate is exceeded, or other nodes take no more for the moment, nothing is read for a while:
    /// the client's own TCP window tells it.
    fn pause(&mut self, excess: Option<(Limit, Instant)>) -> Next {
        let Some(pace) = &mut self.pace else {
            return Next::Event;
        };
        let share = pace.share.as_ref();
        let outbound = share.and_then(|share| self.join_guard.has_to_wait(share));
        if excess.is_none() && outbound.is_none() {
            return Next::Event;
        }
        self.beat.pause(true);
        pace.pause = Some(Box::pin(async move {
            let look_again = Instant::now() + LOOK_AGAIN;
            if let Some((_, until)) = excess {
                sleep_until(until.min(look_again)).await;
            }
            if let Some(outbound) = outbound {
                let _ = timeout_at(look_again, outbound).await;
            }
        }));
        Next::Pause
    }

    /// What is said for the session, with the client's mark for it.
    fn speaker<'a>(&'a self, reference: Option<&'a RawValue>) -> Speaker<'a> {
        let share = self.pace.as_ref().and_then(|pace| pace.share.as_ref());
        Speaker::session(self.id(), share, reference)
    }

    /// Says goodbye to a connection that is lost.
    fn detach(&mut self, end: Disconnect, reader: &mut Option<Reader>) {
        debug!("{} is away: {end}", self.id());
        self.count_slow(&end);
        let mut writer = self.outbox.detach();
        // All of it is kept for the next connection.
        writer.clear();
        if let Some(reader) = reader.take() {
            let address = *self.join_guard.info().address.lock();
            let goodbye = ClosingHandshake::new(self.shared.clone(), end, writer, address);
            self.shared.tasks.spawn(goodbye.say(reader));
        }
    }

    /// Waits for the next connection, from which `reader` reads then.
    ///
    /// # Errors
    ///
    /// Why the session is to end.
    async fn stay_away(&mut self, reader: &mut Option<Reader>) -> Result<(), Disconnect> {
        let _away = self.shared.resumes.suspend();
        let end_of_time = Instant::now() + self.shared.config.resume();
        loop {
            let takeover = poll_fn(|cx| self.outbox.poll_takeover(cx));
            let reconnection = match timeout_at(end_of_time, takeover).await {
                Ok(takeover) => match takeover.map_err(Disconnect::Closed)? {
                    Takeover::Local(reconnection) => reconnection,
                    Takeover::Remote(request) => {
                        self.hand_over(request).await?;
                        continue;
                    }
                },
                Err(_) => return Err(Disconnect::Expired),
            };
            // What the last connection owed, this one does not.
            let _ = self.beat.pong();
            let taken_in = self.join_guard.info().taken_in.load(Relaxed);
            let resumed = protocol::resumed(self.id(), taken_in);
            match self.outbox.attach(resumed, reconnection) {
                Ok(attached) => {
                    debug!("{} is back", self.id());
                    self.shared.metrics.resumes("resumed").inc();
                    *reader = Some(self.go_on(attached));
                    return Ok(());
                }
                // In the meantime too much has been missed.
                Err(reconnection) => Session::begin_anew(self.shared.clone(), reconnection),
            }
        }
    }

    /// Goes over to another node, if what the client has missed is still here.
    ///
    /// # Errors
    ///
    /// [`End::Gone`], when nothing more comes for the session here.
    async fn hand_over(&mut self, request: MigrationRequest) -> Result<(), Disconnect> {
        let permissions = self
            .permissions
            .as_ref()
            .map(|permissions| cluster::Permissions {
                user: permissions.user.clone(),
                may_send: permissions.may_send,
                expires: permissions.expiry.time(),
            });
        let limit = self
            .shared
            .cluster
            .as_ref()
            .map_or(Duration::ZERO, |cluster| cluster.down);
        let rooms = self.shared.rooms.clone();
        let offer = async {
            self.join_guard.caught_up(&request.seen, limit).await;
            // Once it is offered, nobody waits for room.
            let batch = rooms.may_hand_over().await;
            let accepted = self.join_guard.offer(&request, limit).await;
            accepted.then_some(batch)
        };
        let Some(Some(batch)) = in_time(&self.shared, 2 * limit, offer).await else {
            return Ok(());
        };
        let rates = self.pace.as_ref().and_then(|pace| pace.rates.as_ref());
        let owed = rates.map(Rates::owed).unwrap_or_default();
        let handed = self
            .join_guard
            .hand_over(&self.outbox, &request, permissions, owed);
        let Some(gone) = handed else {
            let answer = match self.outbox.has_takeover() {
                true => Answer::Superseded,
                false => Answer::NotHere,
            };
            refuse(&self.shared, request, answer);
            return Ok(());
        };
        drop(batch);
        // That node waits for others, too.
        in_time(&self.shared, 2 * limit, gone).await;
        Err(Disconnect::Gone)
    }

    /// Goes on with another connection, which may come from elsewhere and with another token; returns
    /// its reader.
    fn go_on(&mut self, attached: Attached) -> Reader {
        let Attached {
            reader,
            client,
            admitted,
        } = attached;
        drop(admitted);
        *self.join_guard.info().address.lock() = client.address;
        // It may come with the token that it has had at first, and be allowed more already.
        if let Some(grant) = client.grant
            && Some(grant.expires) > self.expires()
        {
            self.renew(grant);
        }
        reader
    }

    /// Leaves the room, and says goodbye to who is there. Who has come too late to go on with the
    /// session gets another.
    async fn leave(self, end: Disconnect, reader: Option<Reader>) {
        debug!("{} left {}: {end}", self.id(), self.join_guard.room());
        self.count_slow(&end);
        self.shared.metrics.leaves(end.cause()).inc();
        drop((self.join_guard, self.beat, self.permissions));
        if let Disconnect::Expired = end {
            self.shared.metrics.resumes("expired").inc();
        }
        let rest = self.outbox.into_rest();
        // A connection takes its place to the end.
        let place = reader.is_some().then_some(self.place);
        match rest.takeover {
            Some(Takeover::Local(reconnection)) => {
                Session::begin_anew(self.shared.clone(), reconnection)
            }
            Some(Takeover::Remote(request)) => {
                refuse(&self.shared, request, Answer::NotHere);
            }
            None => {}
        }
        if let (Some(reader), Some(writer)) = (reader, rest.writer) {
            let goodbye = ClosingHandshake {
                shared: self.shared,
                end,
                writer,
                waiting: rest.frames,
                place: Ok(None),
            };
            goodbye.say(reader).await;
        }
        drop(place);
    }

    /// Goes on with what another token of the same user allows.
    pub(crate) fn renew(&mut self, grant: Grant) {
        if let Some(permissions) = &mut self.permissions {
            permissions.may_send = grant.may_send;
            permissions.expiry.renew(grant.expires);
        }
    }

    /// Whose session it is, if that is known.
    pub(crate) fn user(&self) -> Option<&str> {
        self.permissions.as_ref()?.user.as_deref()
    }

    /// When its token ends, in seconds since 1970, if it has one.
    pub(crate) fn expires(&self) -> Option<u64> {
        self.permissions
            .as_ref()
            .map(|permissions| permissions.expiry.time())
    }

    fn count_slow(&self, end: &Disconnect) {
        if let Disconnect::Closed(close) | Disconnect::Detached(close) = end
            && close.code == CloseCode::TryAgainLater
        {
            self.shared.metrics.slow_readers.inc();
        }
    }

    /// The session's id.
    fn id(&self) -> SessionId {
        self.join_guard.id()
    }

    fn on_event(
        &mut self,
        event: Event<'_>,
        flush_set: &mut FlushSet,
    ) -> ControlFlow<Disconnect, Next> {
        // Nothing more is done for a session that is called away.
        if let Some(call) = self.outbox.called() {
            return ControlFlow::Break(call.into());
        }
        let bytes = match event {
            // What is asked for costs nothing.
            Event::Pong(payload) if self.is_answer(payload) => {
                return ControlFlow::Continue(Next::Event);
            }
            Event::Text(text) => self.on_message(text, flush_set).saturating_add(text.len()),
            Event::Ping(payload) => {
                let pong = Frame::pong(payload);
                let bytes = payload.len() + pong.len();
                self.outbox.push(pong);
                bytes
            }
            Event::Pong(payload) => payload.len(),
            Event::Fragment => 0,
            Event::Binary(_) => {
                let reason = "a binary message: send JSON as text";
                let close = Close::new(CloseCode::UnsupportedData, reason);
                return ControlFlow::Break(Disconnect::Closed(close));
            }
            Event::Close(status) => {
                return ControlFlow::Break(Disconnect::Left(status.map(|s| s.0)));
            }
        };
        ControlFlow::Continue(self.spend(bytes.saturating_add(FRAME_BYTES)))
    }

    /// Takes in the payload of a pong; returns whether it has been asked for.
    fn is_answer(&self, payload: &[u8]) -> bool {
        let time = self.beat.pong();
        if let Some(time) = time {
            self.shared.metrics.observe_round_trip(time);
        }
        self.outbox.pong(payload) || time.is_some()
    }

    fn on_stop(&self, stop: Stop<Disconnect>) -> Disconnect {
        let violation = match stop {
            Stop::Lost => return Disconnect::Lost,
            Stop::Eof => return Disconnect::Eof,
            Stop::Break(end) => return end,
            Stop::Violation(violation) => violation,
        };
        Disconnect::Closed(match violation {
            Violation::Protocol(what) => Close::new(CloseCode::ProtocolError, what),
            Violation::Utf8 => Close::new(CloseCode::InvalidPayload, "text that is not UTF-8"),
            Violation::TooLong => {
                let reason = format!(
                    "a message over {} bytes",
                    self.shared.config.max_message_bytes
                );
                Close::new(CloseCode::MessageTooBig, reason)
            }
        })
    }

    /// Routes one message, and answers what must be answered; returns how many bytes that causes to be
    /// sent.
    fn on_message(&mut self, text: &str, flush_set: &mut FlushSet) -> usize {
        self.join_guard.take_in();
        self.shared.metrics.traffic.messages_received.inc();
        let (result, reference) = match protocol::parse(text) {
            Ok(message) => (self.route(&message, flush_set), message.reference),
            Err(invalid) => (Err(invalid.problem), invalid.reference),
        };
        let id = self.id();
        let (answer, bytes) = match (result, reference) {
            (Ok(routed), Some(reference)) => {
                (protocol::ack(id, reference, routed.receivers), routed.bytes)
            }
            (Ok(routed), None) => return routed.bytes,
            (Err(problem), reference) => {
                self.shared.metrics.errors(problem.code).inc();
                (protocol::error(id, &problem, reference), 0)
            }
        };
        let bytes = bytes.saturating_add(answer.len());
        self.outbox.push(answer);
        bytes
    }

    /// Delivers a message.
    fn route(
        &mut self,
        message: &Message<'_>,
        flush_set: &mut FlushSet,
    ) -> Result<Routed, Problem> {
        if let Receiver::Server = message.receiver {
            let bytes = requests::answer(self, message)?;
            let receivers = 1;
            return Ok(Routed { receivers, bytes });
        }
        if self
            .permissions
            .as_ref()
            .is_some_and(|permissions| !permissions.may_send)
        {
            return Err(Problem::not_allowed("your token lets you listen only"));
        }
        if self.shared.cluster.is_some() {
            let pace = self.pace.get_or_insert_default();
            pace.share.get_or_insert_default();
        }
        let join_guard = &self.join_guard;
        let (bytes, receivers) = match &message.receiver {
            Receiver::Session(id) => {
                let frame = protocol::relayed(message, join_guard.id(), Some(*id));
                let bytes = frame.len();
                let speaker = self.speaker(message.reference);
                match join_guard.send(speaker, *id, frame, flush_set) {
                    true => (bytes, 1),
                    false => return Err(Problem::unknown_receiver(id)),
                }
            }
            Receiver::Unknown(name) => return Err(Problem::unknown_receiver(name)),
            Receiver::All | Receiver::Server => {
                let frame = protocol::relayed(message, join_guard.id(), None);
                match join_guard.broadcast(self.speaker(None), &frame, flush_set) {
                    0 => return Err(Problem::empty_room()),
                    receivers => (frame.len().saturating_mul(receivers), receivers),
                }
            }
        };
        self.shared
            .metrics
            .traffic
            .deliveries
            .inc_by(receivers as u64);
        Ok(Routed { receivers, bytes })
    }
}

/// What has become of a message.
struct Routed {
    /// How many sessions it is for.
    receivers: usize,
    /// How many bytes it causes to be sent.
    bytes: usize,
}

/// What is to be said to a client whose session or connection has ended.
struct ClosingHandshake {
    shared: Arc<Shared>,
    end: Disconnect,
    writer: Writer,
    /// What still waits to be written.
    waiting: VecDeque<Frame>,
    /// The place of the connection, if it may have one.
    place: Result<Option<AddressSlot>, Limit>,
}

impl ClosingHandshake {
    /// A goodbye without anything before it, on a connection from `address` that is no session's.
    fn new(
        shared: Arc<Shared>,
        end: Disconnect,
        writer: Writer,
        address: Option<IpAddr>,
    ) -> ClosingHandshake {
        ClosingHandshake {
            place: shared.admission.connect(address),
            shared,
            end,
            writer,
            waiting: VecDeque::new(),
        }
    }

    /// Says it behind all that waits; but who was too slow gets it alone, behind the frame it is in
    /// the middle of. Then waits until the client closes its side, and cuts it off if it does not
    /// in time, or has too many connections.
    async fn say(mut self, mut reader: Reader) {
        let Ok(_place) = self.place else {
            return reader.abort();
        };
        let (frame, limit) = match &self.end {
            Disconnect::Lost | Disconnect::Expired | Disconnect::Gone => return,
            Disconnect::Eof => (None, GOODBYE_LIMIT),
            Disconnect::Left(code) => (
                Some(Frame::close(code.map(|code| (code, "")))),
                GOODBYE_LIMIT,
            ),
            Disconnect::Detached(close) => {
                self.shared.metrics.closes(close.code).inc();
                (Some(close.frame()), GOODBYE_LIMIT)
            }
            Disconnect::Closed(close) => {
                self.shared.metrics.closes(close.code).inc();
                let limit = match close.code {
                    CloseCode::ServiceRestart => self.shared.config.drain(),
                    _ => GOODBYE_LIMIT,
                };
                if let CloseCode::TryAgainLater = close.code {
                    self.writer.clear();
                }
                (Some(close.frame()), limit)
            }
        };
        let last_frames = self.waiting.into_iter().chain(frame);
        let goodbye = async {
            self.writer.close(last_frames).await?;
            reader.discard().await
        };
        let taken = in_time(&self.shared, limit, goodbye).await;
        if taken.is_none() && !self.shared.stopped.is_cancelled() {
            reader.abort();
        }
    }
}

impl Disconnect {
    /// In a word.
    fn cause(&self) -> &'static str {
        match self {
            Disconnect::Lost => "lost",
            Disconnect::Eof => "eof",
            Disconnect::Left(_) => "left",
            Disconnect::Detached(_) | Disconnect::Closed(_) => "closed",
            Disconnect::Expired => "expired",
            Disconnect::Gone => "gone",
        }
    }

    /// Whether the connection is lost, but the session need not be.
    fn is_loss(&self) -> bool {
        match self {
            Disconnect::Lost
            | Disconnect::Eof
            | Disconnect::Left(Some(BACK_SOON))
            | Disconnect::Detached(_) => true,
            Disconnect::Left(_)
            | Disconnect::Closed(_)
            | Disconnect::Expired
            | Disconnect::Gone => false,
        }
    }
}

impl From<Command> for Disconnect {
    fn from(call: Command) -> Disconnect {
        match call {
            Command::Detach(close) => Disconnect::Detached(close),
            Command::Close(close) => Disconnect::Closed(close),
        }
    }
}

impl Display for Disconnect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Disconnect::Lost => f.write_str("the connection was lost"),
            Disconnect::Eof => f.write_str("the client closed without a word"),
            Disconnect::Left(Some(code)) => write!(f, "the client closed ({code})"),
            Disconnect::Left(None) => f.write_str("the client closed"),
            Disconnect::Detached(close) | Disconnect::Closed(close) => {
                write!(f, "closed by the server ({close})")
            }
            Disconnect::Expired => f.write_str("the client did not come back in time"),
            Disconnect::Gone => f.write_str("the client came back to another node"),
        }
    }
}
