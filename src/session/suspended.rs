//! A session without a connection: it waits for its client to reconnect, here or to another node.

use std::{
    future::poll_fn,
    sync::atomic::Ordering::Relaxed,
    task::{Context, Poll},
    time::Duration,
};

use log::debug;
use tokio::time::{Instant, timeout_at};

use super::{
    closing_handshake::ClosingHandshake, disconnect::Disconnect, pace::Pace,
    permissions::Permissions, serve::Session,
};
use crate::{
    cluster::Answer,
    event_stream::Receiver,
    protocol::{self, Close},
    rooms::MigrationRequest,
    state::{Reconnection, Save, SavedSession, Shared, SuspendedGuard, Takeover},
    transport::Reader,
};

/// The least time that a session may be without a connection if it uses no WebSocket: each answer of long polling ends
/// its connection.
const LEAST_WINDOW: Duration = Duration::from_secs(10);

/// The time that a session may be without a connection.
pub(super) struct Suspension {
    _count: SuspendedGuard,
    deadline: Instant,
}

/// What ends the wait of a suspended session.
pub(super) enum Awakening {
    /// The session continues with the connection of this reader.
    Resumed(Reader),
    /// The session cannot continue with this connection, and still waits.
    Rejected(Box<Reconnection>),
    /// The session does not move to the node that asks for it, and still waits.
    Refused(MigrationRequest, Answer),
    /// The session ends.
    Ended(Disconnect),
    /// The server stops, and saves the session, which still waits.
    ServerStops,
}

impl Session {
    /// Whether the session outlives its connection.
    pub(super) fn is_resumable(&self) -> bool {
        self.registration.is_some() || self.holds_name()
    }

    /// Whether the session holds its name while its client is away, which then takes the name over with a new session.
    fn holds_name(&self) -> bool {
        let has_name = self.join_guard.info().name().is_some();
        has_name && self.shared.config.liveness.resume_seconds > 0
    }

    /// Gives the connection up. The closing handshake runs in a task of its own.
    pub(super) fn suspend(&mut self, disconnect: Disconnect, reader: &mut Option<Reader>) {
        debug!("{} is suspended: {disconnect}", self.id());
        self.count_slow(&disconnect);
        let mut writer = self.outbox.detach();
        // The replay buffer has the frames that were not written, if the session is resumable.
        writer.clear();
        if let Some(reader) = reader.take() {
            let address = *self.join_guard.info().address.lock();
            let shared = self.shared.clone();
            let handshake = ClosingHandshake::of_connection(shared, disconnect, writer, address);
            self.shared.tasks.spawn(handshake.run(reader));
        }
    }

    /// How long the session may be without a connection. One that uses no WebSocket is without one between any two
    /// answers.
    fn window(&self) -> Duration {
        let registration = self.registration.as_ref();
        let inlet = registration.and_then(|it| it.inlet());
        resume_window(&self.shared, inlet.is_some())
    }

    /// Begins the time without a connection.
    pub(super) fn suspension(&self) -> Suspension {
        Suspension {
            _count: self.shared.resumes.suspend(),
            deadline: Instant::now() + self.window(),
        }
    }

    /// Waits for the client, until the suspension ends.
    pub(super) async fn wait_for_takeover(&mut self, suspension: &Suspension) -> Awakening {
        loop {
            let shared = self.shared.clone();
            let takeover = poll_fn(|cx| self.poll_takeover(cx));
            let takeover = tokio::select! {
                biased;
                takeover = timeout_at(suspension.deadline, takeover) => takeover,
                () = shared.stopping.cancelled(), if shared.sessions_file.is_some() => {
                    return Awakening::ServerStops;
                }
                // No other node has taken it over in the drain time.
                () = shared.stopped.cancelled() => {
                    return Awakening::Ended(Disconnect::Closed(Close::restart(0)));
                }
            };
            match takeover {
                Ok(Ok(Takeover::Local(reconnection))) => return self.resume(reconnection),
                Ok(Ok(Takeover::Remote(request))) => {
                    if let Some(awakening) = self.migrate(request).await {
                        return awakening;
                    }
                }
                Ok(Err(disconnect)) => return Awakening::Ended(disconnect),
                Err(_) => return Awakening::Ended(Disconnect::Expired),
            }
        }
    }

    /// Continues with another connection, which may come from another address and with another token.
    fn resume(&mut self, mut reconnection: Box<Reconnection>) -> Awakening {
        // The next connection owes no pong for the pings of the last one, and without a WebSocket none at all.
        let is_event_stream = reconnection.reader.is_event_stream();
        self.heartbeat.pause(is_event_stream);
        let taken_in = self.join_guard.info().taken_in.load(Relaxed);
        let resumed = protocol::resumed(self.id(), taken_in);
        let received = reconnection.received;
        if let Err(writer) = self.outbox.attach(resumed, received, reconnection.writer) {
            // The session has missed too much since the takeover was delivered.
            reconnection.writer = writer;
            return Awakening::Rejected(reconnection);
        }
        debug!("{} is resumed", self.id());
        // Long polling loses nothing between two answers.
        if !reconnection.reader.is_poll() {
            self.shared.metrics.resumes("resumed").inc();
        }
        let client = reconnection.client;
        *self.join_guard.info().address.lock() = client.address;
        match (&mut self.permissions, client.grant) {
            // The client may come with its first token while the session has a newer one.
            (Some(permissions), Some(grant)) if grant.expires > permissions.expires() => {
                permissions.renew(grant);
            }
            // The server asked for no tokens before it was restarted.
            (None, Some(grant)) => {
                let (expiries, sender) = (&self.shared.expiries, self.outbox.sender());
                self.permissions = Some(Permissions::new(grant.into(), expiries, sender).into());
            }
            _ => {}
        }
        if let Some(registration) = &mut self.registration {
            if let Some(token) = reconnection.token {
                registration.learn_token(token);
            }
            match is_event_stream {
                true => {
                    let max_message_bytes = self.shared.config.limits.max_message_bytes;
                    let inlet = registration.open_inlet(max_message_bytes, taken_in);
                    reconnection.reader.connect(inlet);
                }
                false => registration.close_inlet(),
            }
        }
        if self.has_takeover() {
            // Another takeover was delivered before the outbox was attached.
            self.outbox.give_up(Close::taken_over());
        } else if self.shared.stopping.is_cancelled() {
            // The server began to stop before the outbox was attached.
            self.shared.stop_session(&self.outbox.sender(), 0);
        }
        Awakening::Resumed(reconnection.reader)
    }

    /// Transfers the session to the node that requests it. `None` if that node no longer wants the session; then
    /// the session stays suspended here.
    async fn migrate(&mut self, request: MigrationRequest) -> Option<Awakening> {
        let limit = self
            .shared
            .cluster
            .as_ref()
            .map_or(Duration::ZERO, |cluster| cluster.down);
        let rooms = self.shared.rooms.clone();
        let (pace, history) = (&mut self.pace, self.join_guard.history());
        let offer = async {
            if let (Some(history), Some(pace)) = (history, pace) {
                // An answer and receipts that are due would not find the session any more.
                pace.end_pause().await;
                if pace.awaits_receipts() {
                    let _ = history.flush().await;
                }
            }
            self.join_guard.wait_for_events(&request.seen, limit).await;
            // The permit comes before the offer, so that nothing waits for room once the session is offered.
            let permit = rooms.migration_permit().await;
            let is_accepted = self.join_guard.offer(&request, limit).await;
            is_accepted.then_some(permit)
        };
        let permit = self.shared.in_time(2 * limit, offer).await??;
        let permissions = self.permissions.as_deref().map(Permissions::to_wire);
        let owed = self.pace.as_deref().map(Pace::owed).unwrap_or_default();
        let registration = self.registration.as_ref();
        let may_close = || registration.is_some_and(|it| it.retire_if_empty());
        let forwarding =
            self.join_guard
                .migrate(&self.outbox, &request, permissions, owed, may_close);
        let Some(forwarded) = forwarding else {
            let answer = match self.has_takeover() {
                true => Answer::Superseded,
                false => Answer::NotHere,
            };
            return Some(Awakening::Refused(request, answer));
        };
        drop(permit);
        // The session may come back to this node and register its token again.
        self.registration = None;
        // Nothing more comes for the session here once this is done. The other node waits for further
        // nodes, so this may take twice the limit.
        self.shared.in_time(2 * limit, forwarded).await;
        Some(Awakening::Ended(Disconnect::Migrated))
    }

    /// Waits for a takeover, or for the reason why the session ends. Carries out meanwhile what a client without a
    /// WebSocket asks for.
    fn poll_takeover(&mut self, cx: &mut Context<'_>) -> Poll<Result<Takeover, Disconnect>> {
        if let Poll::Ready(close) = self.outbox.poll_closed(cx) {
            return Poll::Ready(Err(Disconnect::Closed(close)));
        }
        let registration = self.registration.as_ref();
        if let Some(takeover) = registration.and_then(|it| it.take()) {
            return Poll::Ready(Ok(takeover));
        }
        if let Some(inlet) = registration.and_then(|it| it.inlet()) {
            let mut reader = Receiver::without_answer(inlet.clone()).into();
            return self.poll_posts(cx, &mut reader).map(Err);
        }
        Poll::Pending
    }

    fn has_takeover(&self) -> bool {
        self.registration
            .as_ref()
            .is_some_and(|it| it.has_takeover())
    }
}

/// A suspended session of a server that stops.
impl Save for Session {
    fn is_ended(&self) -> bool {
        self.outbox.is_closing()
    }

    fn save(self: Box<Self>) -> SavedSession {
        let registration = self.registration.expect("a suspended session is resumable");
        let info = self.join_guard.info();
        let (room, address) = (self.join_guard.room().clone(), *info.address.lock());
        let (taken_in, binary) = (info.taken_in.load(Relaxed), info.binary.load(Relaxed));
        let (sent, missed) = self.outbox.into_kept();
        let first_number = self.join_guard.first_number();
        SavedSession {
            room,
            first_number,
            member: self.join_guard.into_record(),
            address,
            token: registration.hash(),
            permissions: self.permissions.as_deref().map(Permissions::to_wire),
            taken_in,
            binary,
            owed: self.pace.as_deref().map(Pace::owed).unwrap_or_default(),
            sent,
            missed,
        }
    }
}

/// How long a session may be without a connection, if its client uses a WebSocket or not.
pub(super) fn resume_window(shared: &Shared, is_event_stream: bool) -> Duration {
    let window = shared.config.liveness.resume();
    match is_event_stream {
        true => window.max(LEAST_WINDOW),
        false => window,
    }
}
