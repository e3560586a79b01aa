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

use crate::{
    Shared,
    admission::{AddressPlace, Admitted, Place, Visitor},
    cluster::{self, Answer, Share},
    expiry::Expiry,
    heartbeat::Beat,
    outbox::{
        Arrival, Attached, Call, FlushError, Outbox, Sender, Successor, Takeover, Unflushed,
        outbox, outbox_of_missed,
    },
    protocol::{
        self, BACK_SOON, Close, CloseCode, Message, Problem, Receiver, RoomName, SessionId, Token,
    },
    rates::{Limit, Rates},
    requests, resume,
    rooms::{Guest, Membership, Seat, Sought, Speaker},
    tokens::Grant,
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
    visitor: Visitor,
    resume: Option<resume::Request>,
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
        let mut arrival = Box::new(Arrival {
            reader,
            writer,
            received: 0,
            visitor,
            room,
            admitted,
        });
        let Some(request) = resume else {
            return Session::begin(shared, arrival, None);
        };
        let user = arrival.visitor.user();
        if let Some((sender, received)) = shared.resumes.find(&request, &arrival.room, user) {
            arrival.received = received;
            match go_on(&shared, &sender, arrival) {
                Ok(()) => return,
                Err(returned) => arrival = returned,
            }
        }
        match (&shared.cluster, request.read()) {
            // Nobody is asked for what no node has made.
            (Some(cluster), Some((token, received))) if shared.resumes.may_be(&token) => {
                arrival.received = received;
                let (limit, stopped) = (cluster.down, shared.stopped.clone());
                let deadline = Instant::now() + limit;
                let address = arrival.visitor.address;
                if !shared.admission.may_look_up(address, deadline).await {
                    return Session::begin_anew(shared, arrival);
                }
                tokio::select! {
                    () = Session::take_over(shared.clone(), arrival, token, limit) => {}
                    // Nobody answers any more.
                    () = stopped.cancelled() => {}
                }
            }
            _ => Session::begin_anew(shared, arrival),
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
    arrival: Box<Arrival>,
) -> Result<(), Box<Arrival>> {
    match session.hand_over(Successor::Here(arrival)) {
        Ok(earlier) => {
            earlier
                .into_iter()
                .for_each(|earlier| turn_away(shared, earlier));
            Ok(())
        }
        Err(Successor::Here(arrival)) => Err(arrival),
        Err(Successor::There(_)) => unreachable!("it is the one that was given"),
    }
}

/// Tells who has come to go on with a session that somebody else does.
pub(crate) fn turn_away(shared: &Arc<Shared>, successor: Successor) {
    match successor {
        Successor::Here(arrival) => {
            let end = End::Detached(Close::taken_over());
            let address = arrival.visitor.address;
            let goodbye = Goodbye::new(shared.clone(), end, arrival.writer, address);
            shared.tasks.spawn(goodbye.say(arrival.reader));
        }
        Successor::There(takeover) => refuse(shared, takeover, Answer::Superseded),
    }
}

/// Tells a node that it does not get a session.
pub(crate) fn refuse(shared: &Shared, takeover: Takeover, answer: Answer) {
    if let Some(cluster) = &shared.cluster {
        let Takeover {
            node, room, seek, ..
        } = takeover;
        cluster.uplink.turn().answer(node, room, seek, answer);
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
    pub(crate) membership: Membership,
    pub(crate) outbox: Outbox,
    beat: Beat,
    place: Place,
    /// There where a token has been asked for.
    permit: Option<Box<Permit>>,
    /// There where it may not say as much as it likes.
    pace: Option<Box<Pace>>,
}

/// What a session keeps to. Most are idle, and have none.
#[derive(Default)]
struct Pace {
    rates: Option<Rates>,
    /// What it has on its way to other nodes, once it has written to others where there are some.
    share: Option<Arc<Share>>,
    /// There while it is not read from: done when it is to be again.
    pause: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

/// Who is about to join a room.
struct Newcomer {
    reader: Reader,
    writer: Writer,
    visitor: Visitor,
    seat: Seat,
    place: Place,
}

/// What a session is allowed by its token.
struct Permit {
    user: Option<String>,
    may_send: bool,
    expiry: Expiry,
}

/// Why a session is to end, or to stay away.
enum End {
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
    fn begin_anew(shared: Arc<Shared>, arrival: Box<Arrival>) {
        shared.metrics.resumes("failed").inc();
        Session::begin(shared, arrival, Some(Problem::resume_failed()));
    }

    /// Joins the room and lives on in a task of its own. If there was a problem, that is the first
    /// thing the client gets to know.
    fn begin(shared: Arc<Shared>, arrival: Box<Arrival>, problem: Option<Problem>) {
        let Arrival {
            reader,
            writer,
            visitor,
            room,
            admitted,
            ..
        } = *arrival;
        let tasks = shared.tasks.clone();
        let admitted = match admitted {
            Some(admitted) => Ok(admitted),
            None => shared.admission.admit(&room, visitor.address),
        };
        let Admitted { seat, place } = match admitted {
            Ok(admitted) => admitted,
            Err(refusal) => {
                let close = match shared.stopping.is_cancelled() {
                    true => Close::restart(0),
                    false => Close::new(CloseCode::TryAgainLater, refusal.message()),
                };
                let end = End::Closed(close);
                let goodbye = Goodbye::new(shared, end, writer, visitor.address);
                tasks.spawn(goodbye.say(reader));
                return;
            }
        };
        let newcomer = Newcomer {
            reader,
            writer,
            visitor,
            seat,
            place,
        };
        let Some(limit) = shared.cluster.as_ref().map(|cluster| cluster.down) else {
            let (session, reader) = Session::join(shared, newcomer, problem);
            tasks.spawn(session.live(Some(reader)));
            return;
        };
        tasks.clone().spawn(async move {
            // Who is there on other nodes was there before.
            in_time(&shared, limit, newcomer.seat.enter(limit)).await;
            let (session, reader) = {
                let rooms = shared.rooms.clone();
                let Some(_line) = in_time(&shared, limit, rooms.in_line()).await else {
                    let message = "the cluster is slow: try again later";
                    let end = End::Closed(Close::new(CloseCode::TryAgainLater, message));
                    let Newcomer {
                        writer, visitor, ..
                    } = newcomer;
                    let goodbye = Goodbye::new(shared, end, writer, visitor.address);
                    return goodbye.say(newcomer.reader).await;
                };
                Session::join(shared, newcomer, problem)
            };
            in_time(&session.shared, limit, session.membership.settled(limit)).await;
            session.membership.begins();
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
            visitor,
            seat,
            place,
        } = newcomer;
        let id = SessionId::random();
        let (sender, outbox) = outbox(shared.config.outbox_bytes, writer);
        if let Some(problem) = problem {
            shared.metrics.errors(problem.code).inc();
            outbox.push(protocol::error(id, &problem, None));
        }
        let Visitor { address, mut grant } = visitor;
        let public = grant.as_mut().and_then(|grant| grant.public.take());
        let membership = seat.join(id, sender, Guest::new(public, address));
        let permit = grant.map(|grant| cluster::Permit {
            user: grant.user,
            may_send: grant.may_send,
            expires: grant.expires,
        });
        let session = Session::new(shared, membership, outbox, permit, place, [0, 0]);
        debug!("{id} joined {}", session.membership.room());
        (session, reader)
    }

    /// A session that is in its room, with what its token allows, and what it owes to its rates.
    fn new(
        shared: Arc<Shared>,
        membership: Membership,
        outbox: Outbox,
        permit: Option<cluster::Permit>,
        place: Place,
        owed: [u64; 2],
    ) -> Session {
        let (id, sender) = (membership.id(), outbox.sender());
        shared.metrics.joins.inc();
        let session = Session {
            membership,
            beat: shared.heartbeat.register(id, sender.clone()),
            permit: permit.map(|permit| {
                let expiry = shared.expiries.register(permit.expires, id, sender.clone());
                Box::new(Permit {
                    user: permit.user,
                    may_send: permit.may_send,
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
        mut arrival: Box<Arrival>,
        token: Token,
        limit: Duration,
    ) {
        let admitted = match arrival.admitted.take() {
            Some(admitted) => Ok(admitted),
            None => shared
                .admission
                .admit(&arrival.room, arrival.visitor.address),
        };
        // Why it is refused, it is told where it begins anew.
        let Ok(Admitted { mut seat, place }) = admitted else {
            return Session::begin_anew(shared, arrival);
        };
        seat.enter(limit).await;
        let user = arrival.visitor.user().map(str::to_owned);
        let (received, outbox_bytes) = (arrival.received, shared.config.outbox_bytes);
        let end_of_time = Instant::now() + limit;
        let mut pause = SEEK_AGAIN;
        let mut arriving = loop {
            let left = end_of_time - Instant::now();
            let seeking = seat.seek(
                token.hash(),
                user.clone(),
                received,
                outbox_bytes,
                left,
                limit,
            );
            match seeking.await {
                Sought::Found(arriving) => break arriving,
                Sought::Again(returned) if Instant::now() < end_of_time => seat = returned,
                Sought::Superseded => return turn_away(&shared, Successor::Here(arrival)),
                Sought::Nobody(seat) | Sought::Again(seat) => {
                    arrival.admitted = Some(Admitted { seat, place });
                    return Session::begin_anew(shared, arrival);
                }
            }
            // Of two that look for it both may have missed it.
            sleep(pause).await;
            pause *= 2;
            // It may have come here meanwhile.
            let session = shared
                .resumes
                .look_up(&token.hash(), &arrival.room, user.as_deref());
            if let Some(session) = session {
                match go_on(&shared, &session, arrival) {
                    Ok(()) => return,
                    Err(returned) => arrival = returned,
                }
            }
        };
        let id = arriving.handed().member.id;
        let (permit, owed) = (arriving.handed().permit.clone(), arriving.handed().owed);
        let missed = arriving.missed();
        let (sender, outbox) = outbox_of_missed(outbox_bytes, received, missed, |sender| {
            let user = permit.as_ref().and_then(|permit| permit.user.clone());
            let room = arrival.room.clone();
            shared.resumes.register(token, room, user, sender)
        });
        if let Err(arrival) = go_on(&shared, &sender, arrival) {
            // More has been missed than is kept here.
            Session::begin_anew(shared.clone(), arrival);
        }
        let membership = arriving.arrive(sender, limit).await;
        debug!("{id} has come to {} from another node", membership.room());
        let session = Session::new(shared, membership, outbox, permit, place, owed);
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
    fn poll_serve(&mut self, cx: &mut Context<'_>, reader: &mut Option<Reader>) -> Poll<End> {
        let reader = reader
            .as_mut()
            .expect("it is here while there is a connection");
        // Whom it sends something that is not written yet.
        let mut unflushed = Unflushed::default();
        let mut read = Poll::Pending;
        if let Poll::Ready(result) = self.poll_pause(cx, reader) {
            if let Err(end) = result {
                return Poll::Ready(end);
            }
            read = reader.poll_read(cx, |event| self.on_event(event, &mut unflushed));
            if let Poll::Ready(Ok(false)) = read
                && !self.is_paused()
            {
                // Nothing more is there; this asks to be woken when there is.
                read = reader.poll_read(cx, |event| self.on_event(event, &mut unflushed));
            }
        }
        if let Poll::Ready(Err(stop)) = read {
            return Poll::Ready(self.on_stop(stop));
        }
        match self.outbox.poll_flush(cx) {
            Poll::Ready(Err(FlushError::Lost)) => return Poll::Ready(End::Lost),
            Poll::Ready(Err(FlushError::Called(call))) => return Poll::Ready(call.into()),
            Poll::Ready(Ok(())) | Poll::Pending => {}
        }
        unflushed.flush(&self.shared.tasks);
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
    fn poll_pause(&mut self, cx: &mut Context<'_>, reader: &Reader) -> Poll<Result<(), End>> {
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
                Next::Pause if reader.is_closed() => return Poll::Ready(Err(End::Eof)),
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
        let uplink = share.and_then(|share| self.membership.has_to_wait(share));
        if excess.is_none() && uplink.is_none() {
            return Next::Event;
        }
        self.beat.pause(true);
        pace.pause = Some(Box::pin(async move {
            let look_again = Instant::now() + LOOK_AGAIN;
            if let Some((_, until)) = excess {
                sleep_until(until.min(look_again)).await;
            }
            if let Some(uplink) = uplink {
                let _ = timeout_at(look_again, uplink).await;
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
    fn detach(&mut self, end: End, reader: &mut Option<Reader>) {
        debug!("{} is away: {end}", self.id());
        self.count_slow(&end);
        let mut writer = self.outbox.detach();
        // All of it is kept for the next connection.
        writer.clear();
        if let Some(reader) = reader.take() {
            let address = *self.membership.guest().address.lock();
            let goodbye = Goodbye::new(self.shared.clone(), end, writer, address);
            self.shared.tasks.spawn(goodbye.say(reader));
        }
    }

    /// Waits for the next connection, from which `reader` reads then.
    ///
    /// # Errors
    ///
    /// Why the session is to end.
    async fn stay_away(&mut self, reader: &mut Option<Reader>) -> Result<(), End> {
        let _away = self.shared.resumes.away();
        let end_of_time = Instant::now() + self.shared.config.resume();
        loop {
            let successor = poll_fn(|cx| self.outbox.poll_successor(cx));
            let arrival = match timeout_at(end_of_time, successor).await {
                Ok(successor) => match successor.map_err(End::Closed)? {
                    Successor::Here(arrival) => arrival,
                    Successor::There(takeover) => {
                        self.hand_over(takeover).await?;
                        continue;
                    }
                },
                Err(_) => return Err(End::Expired),
            };
            // What the last connection owed, this one does not.
            let _ = self.beat.pong();
            let taken_in = self.membership.guest().taken_in.load(Relaxed);
            let resumed = protocol::resumed(self.id(), taken_in);
            match self.outbox.attach(resumed, arrival) {
                Ok(attached) => {
                    debug!("{} is back", self.id());
                    self.shared.metrics.resumes("resumed").inc();
                    *reader = Some(self.go_on(attached));
                    return Ok(());
                }
                // In the meantime too much has been missed.
                Err(arrival) => Session::begin_anew(self.shared.clone(), arrival),
            }
        }
    }

    /// Goes over to another node, if what the client has missed is still here.
    ///
    /// # Errors
    ///
    /// [`End::Gone`], when nothing more comes for the session here.
    async fn hand_over(&mut self, takeover: Takeover) -> Result<(), End> {
        let permit = self.permit.as_ref().map(|permit| cluster::Permit {
            user: permit.user.clone(),
            may_send: permit.may_send,
            expires: permit.expiry.time(),
        });
        let limit = self
            .shared
            .cluster
            .as_ref()
            .map_or(Duration::ZERO, |cluster| cluster.down);
        let rooms = self.shared.rooms.clone();
        let offer = async {
            self.membership.caught_up(&takeover.seen, limit).await;
            // Once it is offered, nobody waits for room.
            let turn = rooms.may_hand_over().await;
            let accepted = self.membership.offer(&takeover, limit).await;
            accepted.then_some(turn)
        };
        let Some(Some(turn)) = in_time(&self.shared, 2 * limit, offer).await else {
            return Ok(());
        };
        let rates = self.pace.as_ref().and_then(|pace| pace.rates.as_ref());
        let owed = rates.map(Rates::owed).unwrap_or_default();
        let handed = self
            .membership
            .hand_over(&self.outbox, &takeover, permit, owed);
        let Some(gone) = handed else {
            let answer = match self.outbox.has_successor() {
                true => Answer::Superseded,
                false => Answer::NotHere,
            };
            refuse(&self.shared, takeover, answer);
            return Ok(());
        };
        drop(turn);
        // That node waits for others, too.
        in_time(&self.shared, 2 * limit, gone).await;
        Err(End::Gone)
    }

    /// Goes on with another connection, which may come from elsewhere and with another token; returns
    /// its reader.
    fn go_on(&mut self, attached: Attached) -> Reader {
        let Attached {
            reader,
            visitor,
            admitted,
        } = attached;
        drop(admitted);
        *self.membership.guest().address.lock() = visitor.address;
        // It may come with the token that it has had at first, and be allowed more already.
        if let Some(grant) = visitor.grant
            && Some(grant.expires) > self.expires()
        {
            self.renew(grant);
        }
        reader
    }

    /// Leaves the room, and says goodbye to who is there. Who has come too late to go on with the
    /// session gets another.
    async fn leave(self, end: End, reader: Option<Reader>) {
        debug!("{} left {}: {end}", self.id(), self.membership.room());
        self.count_slow(&end);
        self.shared.metrics.leaves(end.cause()).inc();
        drop((self.membership, self.beat, self.permit));
        if let End::Expired = end {
            self.shared.metrics.resumes("expired").inc();
        }
        let rest = self.outbox.into_rest();
        // A connection takes its place to the end.
        let place = reader.is_some().then_some(self.place);
        match rest.successor {
            Some(Successor::Here(arrival)) => Session::begin_anew(self.shared.clone(), arrival),
            Some(Successor::There(takeover)) => {
                refuse(&self.shared, takeover, Answer::NotHere);
            }
            None => {}
        }
        if let (Some(reader), Some(writer)) = (reader, rest.writer) {
            let goodbye = Goodbye {
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
        if let Some(permit) = &mut self.permit {
            permit.may_send = grant.may_send;
            permit.expiry.renew(grant.expires);
        }
    }

    /// Whose session it is, if that is known.
    pub(crate) fn user(&self) -> Option<&str> {
        self.permit.as_ref()?.user.as_deref()
    }

    /// When its token ends, in seconds since 1970, if it has one.
    pub(crate) fn expires(&self) -> Option<u64> {
        self.permit.as_ref().map(|permit| permit.expiry.time())
    }

    fn count_slow(&self, end: &End) {
        if let End::Closed(close) | End::Detached(close) = end
            && close.code == CloseCode::TryAgainLater
        {
            self.shared.metrics.slow_readers.inc();
        }
    }

    /// The session's id.
    fn id(&self) -> SessionId {
        self.membership.id()
    }

    fn on_event(&mut self, event: Event<'_>, unflushed: &mut Unflushed) -> ControlFlow<End, Next> {
        // Nothing more is done for a session that is called away.
        if let Some(call) = self.outbox.called() {
            return ControlFlow::Break(call.into());
        }
        let bytes = match event {
            // What is asked for costs nothing.
            Event::Pong(payload) if self.is_answer(payload) => {
                return ControlFlow::Continue(Next::Event);
            }
            Event::Text(text) => self.on_message(text, unflushed).saturating_add(text.len()),
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
                return ControlFlow::Break(End::Closed(close));
            }
            Event::Close(status) => return ControlFlow::Break(End::Left(status.map(|s| s.0))),
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

    fn on_stop(&self, stop: Stop<End>) -> End {
        let violation = match stop {
            Stop::Lost => return End::Lost,
            Stop::Eof => return End::Eof,
            Stop::Break(end) => return end,
            Stop::Violation(violation) => violation,
        };
        End::Closed(match violation {
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
    fn on_message(&mut self, text: &str, unflushed: &mut Unflushed) -> usize {
        self.membership.take_in();
        self.shared.metrics.traffic.messages_received.inc();
        let (result, reference) = match protocol::parse(text) {
            Ok(message) => (self.route(&message, unflushed), message.reference),
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
        unflushed: &mut Unflushed,
    ) -> Result<Routed, Problem> {
        if let Receiver::Server = message.receiver {
            let bytes = requests::answer(self, message)?;
            let receivers = 1;
            return Ok(Routed { receivers, bytes });
        }
        if self.permit.as_ref().is_some_and(|permit| !permit.may_send) {
            return Err(Problem::not_allowed("your token lets you listen only"));
        }
        if self.shared.cluster.is_some() {
            let pace = self.pace.get_or_insert_default();
            pace.share.get_or_insert_default();
        }
        let membership = &self.membership;
        let (bytes, receivers) = match &message.receiver {
            Receiver::Session(id) => {
                let frame = protocol::relayed(message, membership.id(), Some(*id));
                let bytes = frame.len();
                let speaker = self.speaker(message.reference);
                match membership.send(speaker, *id, frame, unflushed) {
                    true => (bytes, 1),
                    false => return Err(Problem::unknown_receiver(id)),
                }
            }
            Receiver::Unknown(name) => return Err(Problem::unknown_receiver(name)),
            Receiver::All | Receiver::Server => {
                let frame = protocol::relayed(message, membership.id(), None);
                match membership.broadcast(self.speaker(None), &frame, unflushed) {
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
struct Goodbye {
    shared: Arc<Shared>,
    end: End,
    writer: Writer,
    /// What still waits to be written.
    waiting: VecDeque<Frame>,
    /// The place of the connection, if it may have one.
    place: Result<Option<AddressPlace>, Limit>,
}

impl Goodbye {
    /// A goodbye without anything before it, on a connection from `address` that is no session's.
    fn new(shared: Arc<Shared>, end: End, writer: Writer, address: Option<IpAddr>) -> Goodbye {
        Goodbye {
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
            End::Lost | End::Expired | End::Gone => return,
            End::Eof => (None, GOODBYE_LIMIT),
            End::Left(code) => (
                Some(Frame::close(code.map(|code| (code, "")))),
                GOODBYE_LIMIT,
            ),
            End::Detached(close) => {
                self.shared.metrics.closes(close.code).inc();
                (Some(close.frame()), GOODBYE_LIMIT)
            }
            End::Closed(close) => {
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

impl End {
    /// In a word.
    fn cause(&self) -> &'static str {
        match self {
            End::Lost => "lost",
            End::Eof => "eof",
            End::Left(_) => "left",
            End::Detached(_) | End::Closed(_) => "closed",
            End::Expired => "expired",
            End::Gone => "gone",
        }
    }

    /// Whether the connection is lost, but the session need not be.
    fn is_loss(&self) -> bool {
        match self {
            End::Lost | End::Eof | End::Left(Some(BACK_SOON)) | End::Detached(_) => true,
            End::Left(_) | End::Closed(_) | End::Expired | End::Gone => false,
        }
    }
}

impl From<Call> for End {
    fn from(call: Call) -> End {
        match call {
            Call::Detach(close) => End::Detached(close),
            Call::End(close) => End::Closed(close),
        }
    }
}

impl Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            End::Lost => f.write_str("the connection was lost"),
            End::Eof => f.write_str("the client closed without a word"),
            End::Left(Some(code)) => write!(f, "the client closed ({code})"),
            End::Left(None) => f.write_str("the client closed"),
            End::Detached(close) | End::Closed(close) => {
                write!(f, "closed by the server ({close})")
            }
            End::Expired => f.write_str("the client did not come back in time"),
            End::Gone => f.write_str("the client came back to another node"),
        }
    }
}
