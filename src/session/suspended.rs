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
    outbox::Outbox,
    protocol::{self, Close},
    rooms::MigrationRequest,
    state::{Reconnection, ResumeRegistration, Save, SavedSession, SuspendedGuard, Takeover},
    websocket::Reader,
};

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

    /// Begins the time without a connection.
    pub(super) fn suspension(&self) -> Suspension {
        Suspension {
            _count: self.shared.resumes.suspend(),
            deadline: Instant::now() + self.shared.config.liveness.resume(),
        }
    }

    /// Waits for the client, until the suspension ends.
    pub(super) async fn wait_for_takeover(&mut self, suspension: &Suspension) -> Awakening {
        loop {
            let (outbox, registration) = (&self.outbox, &self.registration);
            let takeover = poll_fn(|cx| poll_takeover(cx, outbox, registration.as_deref()));
            let shared = &self.shared;
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
        // The next connection owes no pong for the pings of the last one.
        let _ = self.heartbeat.pong();
        let taken_in = self.join_guard.info().taken_in.load(Relaxed);
        let resumed = protocol::resumed(self.id(), taken_in);
        let received = reconnection.received;
        if let Err(writer) = self.outbox.attach(resumed, received, reconnection.writer) {
            // The session has missed too much since the takeover was delivered.
            reconnection.writer = writer;
            return Awakening::Rejected(reconnection);
        }
        debug!("{} is resumed", self.id());
        self.shared.metrics.resumes("resumed").inc();
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
        if let (Some(registration), Some(token)) = (&mut self.registration, reconnection.token) {
            registration.learn_token(token);
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

/// Waits for a takeover, or for the reason why the session ends.
fn poll_takeover(
    cx: &Context<'_>,
    outbox: &Outbox,
    registration: Option<&ResumeRegistration>,
) -> Poll<Result<Takeover, Disconnect>> {
    if let Poll::Ready(close) = outbox.poll_closed(cx) {
        return Poll::Ready(Err(Disconnect::Closed(close)));
    }
    let takeover = registration.and_then(ResumeRegistration::take);
    takeover.map_or(Poll::Pending, |takeover| Poll::Ready(Ok(takeover)))
}
