//! The rooms of other nodes, over NATS.
//!
//! Three kinds of subjects carry all: one that every node hears, one for each room, which the nodes hear
//! that have somebody in it, and one for each node. What is said is in `wire`, what becomes of it in a
//! room in `rooms`.

use std::{
    collections::HashMap,
    future::poll_fn,
    io, mem,
    path::PathBuf,
    pin::pin,
    sync::{
        Arc,
        atomic::{
            AtomicBool,
            Ordering::{Relaxed, SeqCst},
        },
    },
    task::{Context, Poll, Wake, Waker},
    time::{Duration, Instant},
};

use async_nats::{
    Client, ConnectOptions, Event as NatsEvent, Message as NatsMessage, ServerAddr, Subscriber,
    connection::State,
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use futures_util::{
    StreamExt,
    stream::{AbortHandle, Abortable, SelectAll, abortable},
    task::AtomicWaker,
};
use log::{debug, info, warn};
use parking_lot::Mutex;
use tokio::{
    sync::mpsc,
    task::{coop::unconstrained, yield_now},
    time::{MissedTickBehavior, interval, sleep, timeout},
};

use super::{
    flow_control::Load,
    membership::{Change, Membership},
    outbound::Outbound,
    queue::{Outgoing, Subject},
    wire::{
        self, Broadcast, Direct, Envelope, IDS_BYTES, LINE_BYTES, Message, NodeId, PART_BYTES, Want,
    },
};
use crate::{
    config::{ClusterOptions, Limits, NatsUrl},
    outbox::FlushSet,
    protocol::{ErrorCode, Escaped, RoomName},
    rooms::{MigrationRequest, Replies},
    session,
    state::{Shared, Takeover},
};

/// How often to look whether all is well.
const TICK: Duration = Duration::from_millis(250);

/// How often a node says that it is there.
const ALIVE: Duration = Duration::from_secs(1);

/// How often nodes compare what they know of each other.
const DIGEST: Duration = Duration::from_secs(10);

/// How long an attempt to connect to NATS may take, and how long the last words.
const NATS_LIMIT: Duration = Duration::from_secs(2);

/// How long to wait between attempts to connect.
const RETRY: Duration = Duration::from_secs(1);

/// How long to wait between attempts to connect again: each moment is taken from the others' patience.
const RECONNECT: Duration = Duration::from_millis(200);

/// How long nothing is said on a connection that is made again: until then the other nodes are back, and
/// hear it.
const SETTLE: Duration = Duration::from_millis(500);

/// How many messages may wait to be taken in, of a room or of a node. Nodes wait for each other before
/// that many do.
const INCOMING: usize = 1 << 20;

/// A node is told each time that so many bytes of what it said have been taken in.
const TOLD_BYTES: usize = 256 << 10;

/// How many messages may have been given to the client that it has not written: when the connection is
/// back, it writes them, however old they are.
const OUTGOING: usize = 64;

/// This node's part in the cluster.
pub(crate) struct Cluster {
    pub(crate) outbound: Arc<Outbound>,
    servers: Vec<NatsUrl>,
    credentials: Option<PathBuf>,
    ca: Option<PathBuf>,
    prefix: String,
    /// How long a node may be silent, and how long a session waits for the others' word.
    pub(crate) down: Duration,
    /// How long a payload may be.
    payload_bytes: usize,
    /// Whether the other nodes had the time to say that they are there.
    has_begun: AtomicBool,
    is_connected: AtomicBool,
    /// What NATS has refused on this connection.
    refusal: Arc<Mutex<Option<String>>>,
    /// From when on others hear what is said on this connection; `None` while there is none.
    settled_at: Arc<Mutex<Option<Instant>>>,
}

impl Cluster {
    /// `None` if this node is to be alone.
    pub(crate) fn new(options: &ClusterOptions, limits: &Limits) -> Option<Cluster> {
        (!options.servers.is_empty()).then(|| Cluster {
            outbound: Arc::new(Outbound::new(NodeId::random())),
            servers: options.servers.clone(),
            credentials: options.credentials_file.clone(),
            ca: options.ca_file.clone(),
            prefix: options.prefix.clone(),
            down: Duration::from_secs(options.down_seconds),
            payload_bytes: limits.max_message_bytes.max(PART_BYTES)
                + IDS_BYTES
                + limits.max_header_bytes
                + LINE_BYTES,
            has_begun: AtomicBool::new(false),
            is_connected: AtomicBool::new(false),
            refusal: Arc::default(),
            // Nobody has been heard before the first connection.
            settled_at: Arc::new(Mutex::new(Some(Instant::now()))),
        })
    }

    /// Whether it has been connected for long enough to know the other membership.
    pub(crate) fn has_begun(&self) -> bool {
        self.has_begun.load(Relaxed)
    }

    /// Whether it is connected.
    pub(crate) fn is_connected(&self) -> bool {
        self.is_connected.load(Relaxed)
    }

    /// What NATS has refused, such as to let this node hear a subject.
    pub(crate) fn refusal(&self) -> Option<String> {
        self.refusal.lock().clone()
    }

    fn subject(&self, to: &Subject) -> String {
        let prefix = &self.prefix;
        match to {
            Subject::All => format!("{prefix}.all"),
            // A name may have dots and wildcards.
            Subject::Room(room) => {
                format!("{prefix}.room.{}", URL_SAFE_NO_PAD.encode(room.as_str()))
            }
            Subject::Node(node) => format!("{prefix}.node.{node}"),
        }
    }

    /// Waits for a NATS server.
    async fn connect(&self, shared: &Shared) -> Client {
        let mut last_error = String::new();
        loop {
            match self.try_connect(shared).await {
                Ok(client) => return client,
                Err(error) => {
                    if last_error != error {
                        let said = Escaped(&error);
                        warn!("waiting for NATS at {:?}: {said}", self.servers);
                        last_error = error;
                    }
                    sleep(RETRY).await;
                }
            }
        }
    }

    async fn try_connect(&self, shared: &Shared) -> Result<Client, String> {
        let metrics = shared.metrics.clone();
        let (refusal, settled_at) = (self.refusal.clone(), self.settled_at.clone());
        let mut options = ConnectOptions::new()
            .name(format!("anteroom {}", self.outbound.node()))
            .no_echo()
            .subscription_capacity(INCOMING)
            .client_capacity(OUTGOING)
            .connection_timeout(NATS_LIMIT)
            .ping_interval(ALIVE)
            .ignore_discovered_servers()
            .reconnect_delay_callback(|attempt| match attempt {
                0 | 1 => Duration::ZERO,
                _ => RECONNECT,
            })
            .event_callback(move |event| {
                match event {
                    NatsEvent::SlowConsumer(_) => _ = metrics.cluster_overflows.inc(),
                    NatsEvent::ServerError(error) => {
                        let error = error.to_string();
                        let said = Escaped(&error);
                        warn!("NATS refuses something, and this node is not ready: {said}");
                        *refusal.lock() = Some(error);
                    }
                    NatsEvent::Disconnected => *settled_at.lock() = None,
                    NatsEvent::Connected => {
                        *refusal.lock() = None;
                        settled_at.lock().get_or_insert(Instant::now() + SETTLE);
                    }
                    event => debug!("NATS: {}", Escaped(event)),
                }
                async {}
            });
        // All have the same.
        if let Some((user, password)) = self.servers.iter().find_map(NatsUrl::credentials) {
            options = options.user_and_password(user.expose().clone(), password.expose().clone());
        }
        if let Some(file) = &self.credentials {
            let name = |error: io::Error| format!("cannot use {}: {error}", file.display());
            options = options.credentials_file(file).await.map_err(name)?;
        }
        if let Some(file) = &self.ca {
            options = options.add_root_certificates(file.clone());
        }
        let servers: Vec<ServerAddr> = self.servers.iter().map(|url| url.server.clone()).collect();
        let connecting = timeout(2 * NATS_LIMIT, options.connect(servers)).await;
        let client = connecting
            .map_err(|_| "no answer".to_owned())?
            .map_err(|error| error.to_string())?;
        let (has, needs) = (client.max_payload(), self.payload_bytes);
        if has < needs {
            return Err(format!(
                "its max_payload is {has} bytes, and must be {needs} for messages of --max-message-bytes"
            ));
        }
        Ok(client)
    }

    /// Waits until the other nodes hear what is said, or it is too late for what was said in this time.
    async fn settled(&self, client: &Client, epoch: u64) {
        loop {
            let settled_at = {
                let mut settled_at = self.settled_at.lock();
                if settled_at.is_none() && client.connection_state() == State::Connected {
                    // The client tells of a connection only as far as it has room for that.
                    *settled_at = Some(Instant::now() + SETTLE);
                }
                *settled_at
            };
            match settled_at {
                Some(settled_at) if settled_at <= Instant::now() => return,
                _ if !self.outbound.is_current(epoch) => return,
                _ => sleep(SETTLE / 20).await,
            }
        }
    }

    /// Says what is to be said, in its order.
    async fn write(&self, shared: &Shared, client: &Client, subscribed: mpsc::Sender<Subscribed>) {
        while let Some((epoch, waiting)) = self.outbound.next().await {
            for item in waiting {
                let cost = item.cost();
                self.settled(client, epoch).await;
                // What is of a time that is over is not said any longer.
                let is_due = self.outbound.is_current(epoch);
                let load = match item {
                    Outgoing::Message(to, message, load) => {
                        if is_due {
                            shared.metrics.cluster_sent.inc();
                            // It fails where the client is closed, or the message too long, which it is
                            // not.
                            let _ = client.publish(self.subject(&to), message.into()).await;
                        }
                        load
                    }
                    Outgoing::Subscribe(room) => {
                        let subject = self.subject(&Subject::Room(room.clone()));
                        if is_due && let Ok(subscriber) = client.subscribe(subject).await {
                            let _ = subscribed.send(Subscribed::To(room, subscriber)).await;
                        }
                        Load::Control
                    }
                    Outgoing::Unsubscribe(room) => {
                        if is_due {
                            let _ = subscribed.send(Subscribed::NoLonger(room)).await;
                        }
                        Load::Control
                    }
                };
                self.outbound.written(epoch, cost, &load);
            }
        }
        let _ = client.flush().await;
    }
}

/// What is heard from now on, or no longer.
enum Subscribed {
    To(RoomName, Subscriber),
    NoLonger(RoomName),
}

/// Takes part in the cluster until the server stops and everybody has left.
pub(crate) async fn run(cluster: Arc<Cluster>, shared: Arc<Shared>) {
    let client = tokio::select! {
        client = cluster.connect(&shared) => client,
        () = shared.stopping.cancelled() => return,
    };
    info!("node {} is connected to NATS", cluster.outbound.node());
    let subjects =
        [Subject::All, Subject::Node(cluster.outbound.node())].map(|to| cluster.subject(&to));
    let mut incoming = Incoming::default();
    for subject in subjects {
        match client.subscribe(subject).await {
            Ok(subscriber) => incoming.streams.push(abortable(subscriber).0),
            // The client is closed, as it is never.
            Err(error) => return warn!("cannot hear other nodes: {}", Escaped(error)),
        }
    }
    let (subscribe, subscribed) = mpsc::channel(INCOMING);
    let now = Instant::now();
    let reader = Reader {
        membership: Membership::new(cluster.outbound.node(), cluster.down),
        incoming,
        subscribed,
        client: &client,
        cluster: &cluster,
        shared: &shared,
        connected: Some(now),
        lost_at: now,
        last_tick: now,
        alive_at: now + ALIVE,
        digest_at: now + DIGEST,
    };
    let mut write = pin!(cluster.write(&shared, &client, subscribe));
    tokio::select! {
        () = reader.read() => {}
        () = &mut write => return,
    }
    let _ = cluster.outbound.batch().tell_all(Broadcast::Bye);
    cluster.outbound.finish();
    let _ = timeout(NATS_LIMIT, write).await;
}

/// What takes in everything that other nodes say.
struct Reader<'a> {
    membership: Membership,
    incoming: Incoming,
    subscribed: mpsc::Receiver<Subscribed>,
    client: &'a Client,
    cluster: &'a Cluster,
    shared: &'a Arc<Shared>,
    /// When the connection was made, if there is one, and when it was lost the last time.
    connected: Option<Instant>,
    lost_at: Instant,
    last_tick: Instant,
    /// When to say that this node is there, and when to compare.
    alive_at: Instant,
    digest_at: Instant,
}

impl Reader<'_> {
    /// Reads until everybody has left.
    async fn read(mut self) {
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        self.begin();
        while !self.is_over() {
            tokio::select! {
                biased;
                _ = ticks.tick() => self.tick(Instant::now()),
                // Rooms that are heard from now on, or no longer.
                Some(subscribed) = self.subscribed.recv() => self.incoming.change(subscribed),
                // What other nodes say.
                messages = unconstrained(self.incoming.batch()) => self.hear(&messages),
                // What there is to say in pieces.
                () = self.shared.rooms.wait_for_chunk_space(), if self.shared.rooms.has_chunks() => {}
            }
            self.shared.rooms.send_chunks();
            // What there is to say must be said, too, however much comes.
            yield_now().await;
        }
        // Nothing is to be taken for lost that was heard.
        self.tell_taken(1);
    }

    /// Whether the server stops, and nobody is here any longer, or waited for.
    fn is_over(&self) -> bool {
        let has_emptied = self.shared.stopping.is_cancelled() && self.shared.rooms.len() == 0;
        has_emptied || self.shared.stopped.is_cancelled()
    }

    /// Does what is due.
    fn tick(&mut self, now: Instant) {
        // Who stood still has not heard anybody.
        let stood_still = now - mem::replace(&mut self.last_tick, now) > ALIVE;
        self.check_connection(now);
        if !stood_still && self.connected.is_some() {
            let silent = self.membership.tick(now);
            silent.into_iter().for_each(|change| self.follow(change));
        }
        if now >= self.alive_at {
            self.alive_at = now + ALIVE;
            self.alive();
            self.shared.rooms.ask_again();
            // By now everybody else has been heard.
            let is_heard = self.cluster.refusal.lock().is_none();
            let has_begun = self.connected.is_some_and(|since| now - since >= ALIVE) && is_heard;
            self.tell_taken(1);
            self.cluster.has_begun.fetch_or(has_begun, Relaxed);
        }
        if now >= self.digest_at {
            self.digest_at = now + DIGEST;
            self.shared.rooms.send_digests();
            if self.cluster.refusal.lock().take().is_some() {
                // It may have been allowed meanwhile; otherwise it is refused again.
                self.incoming.forget_rooms();
                self.shared.rooms.resubscribe();
            }
        }
    }

    /// Begins to speak, and to hear of all rooms there are.
    fn begin(&mut self) {
        self.cluster.is_connected.store(true, Relaxed);
        self.incoming.forget_rooms();
        self.cluster.outbound.open();
        self.shared.rooms.resubscribe();
        // Who has known this node before shall begin anew, too.
        self.alive();
    }

    /// Sees to it that this node is cut off no longer than it knows of.
    fn check_connection(&mut self, now: Instant) {
        let is_connected = self.client.connection_state() == State::Connected;
        match (is_connected, self.connected) {
            (true, None) => {
                info!("connected to NATS again");
                self.cluster.is_connected.store(true, Relaxed);
                self.connected = Some(now);
                // The others could not be heard, and shall hear of this one.
                self.membership.restart_timeouts(now + SETTLE);
                self.alive();
            }
            (false, Some(_)) => {
                warn!("the connection to NATS is lost: sessions of other nodes cannot be reached");
                self.cluster.is_connected.store(false, Relaxed);
                self.connected = None;
                self.lost_at = now;
            }
            _ => {}
        }
        if !is_connected && now - self.lost_at > self.cluster.down {
            self.cluster.outbound.close();
        }
        if !self.cluster.outbound.is_open() {
            // The others have given this node up, or are about to.
            let all = self.membership.clear();
            all.into_iter().for_each(|change| self.follow(change));
            if is_connected {
                self.begin();
            }
        }
    }

    fn hear(&mut self, messages: &[NatsMessage]) {
        let mut heard: Vec<Envelope<'_>> = messages
            .iter()
            .filter_map(|message| match wire::decode(&message.payload) {
                Ok(heard) => Some(heard),
                Err(error) => {
                    self.shared.metrics.cluster_invalid.inc();
                    debug!("not understood on {}: {error}", Escaped(&message.subject));
                    None
                }
            })
            .collect();
        self.shared
            .metrics
            .cluster_received
            .inc_by(heard.len() as u64);
        // They have come by several ways; this is the order in which they were said.
        heard.sort_by_key(|heard| heard.number);
        let mut replies = Replies::default();
        let mut flush_set = FlushSet::default();
        for heard in heard {
            self.cluster.outbound.observe(heard.number);
            if self.membership.is_new(heard.node, heard.number) {
                if let Some(count) = heard.count {
                    let missed = self.membership.count_received(heard.node, count);
                    self.shared.metrics.cluster_lost.inc_by(missed);
                }
                if self.membership.is_up(heard.node) {
                    self.membership.received(heard.node, heard.bytes);
                }
                self.take_in(heard, &mut replies, &mut flush_set);
            }
        }
        let undelivered = self
            .shared
            .metrics
            .errors(ErrorCode::UnknownReceiver.as_str());
        undelivered.inc_by(replies.told_undelivered);
        let lost = replies.send(&self.cluster.outbound);
        self.shared.metrics.cluster_lost.inc_by(lost);
        flush_set.flush(&self.shared.tasks);
        self.tell_taken(TOLD_BYTES);
    }

    /// Tells the nodes how far they have been heard, of which at least so many bytes have been since that
    /// was told.
    fn tell_taken(&mut self, least: usize) {
        let nodes = self.membership.take_unacknowledged(least);
        if !nodes.is_empty() {
            let mut batch = self.cluster.outbound.batch();
            for (node, number) in nodes {
                batch.notify(node, Direct::Taken { number });
            }
        }
    }

    fn take_in(&mut self, heard: Envelope<'_>, replies: &mut Replies, flush_set: &mut FlushSet) {
        let Envelope {
            node,
            number,
            message,
            text,
            ..
        } = heard;
        let rooms = &self.shared.rooms;
        let is_up = self.membership.is_up(node);
        match message {
            Message::All(Broadcast::Alive { heard, keys }) => {
                self.shared.resumes.learn(&keys);
                let (change, is_new) =
                    self.membership
                        .heartbeat(Instant::now(), node, number, &heard);
                if let Some(change) = change {
                    self.follow(change);
                }
                if is_new {
                    // It shall know that it is heard.
                    self.alive();
                }
            }
            Message::All(Broadcast::Bye) => {
                if let Some(change) = self.membership.bye(node) {
                    self.follow(change);
                }
            }
            Message::All(Broadcast::Enter { room }) => {
                rooms.apply_enter(node, number, room, replies, flush_set);
            }
            // Who does not hear this node, or is not heard, may only ask.
            Message::Node(said @ Direct::Unicast { .. }) if !is_up => replies.reject(node, said),
            _ if !is_up && !matches!(message, Message::Node(Direct::Ask(_))) => {}
            Message::All(Broadcast::Want(want)) => self.hand_over(node, want),
            Message::Node(Direct::Taken { number }) => {
                self.cluster.outbound.acknowledged(node, number)
            }
            Message::Room(said) => rooms.apply_event(node, number, said, text, replies, flush_set),
            Message::Node(said) => rooms.apply_direct(node, number, said, text, replies, flush_set),
        }
    }

    /// Has a session of this node go over to one where its client has come back, if it is here.
    fn hand_over(&self, node: NodeId, want: Want) {
        let Want {
            room,
            seek,
            token,
            user,
            received,
            seen,
        } = want;
        let name = room.clone();
        let takeover = Takeover::Remote(MigrationRequest {
            node,
            room,
            seek,
            token,
            received,
            seen,
        });
        let resumes = &self.shared.resumes;
        let delivered = resumes.take_over(&token, &name, user.as_deref(), takeover);
        match delivered.unwrap_or_else(Some) {
            Some(Takeover::Remote(request)) if request.is_of(node, seek) => {
                if let Some(answer) = self.shared.rooms.answer_lookup(&request) {
                    session::refuse(self.shared, request, answer);
                }
            }
            Some(earlier) => session::reject(self.shared, earlier),
            None => {}
        }
    }

    /// Does what follows from the coming or going of a node.
    fn follow(&self, change: Change) {
        match change {
            Change::Up(node) => {
                info!("node {node} is there");
                self.cluster.outbound.up(node);
                self.shared.rooms.node_up(node);
            }
            Change::Down(node) => {
                info!("node {node} is no longer there");
                let lost = self.cluster.outbound.down(node);
                self.shared.metrics.cluster_lost.inc_by(lost);
                // It shall give this one up as well, and both begin anew.
                self.alive();
                self.shared.rooms.node_down(node);
            }
        }
        self.shared
            .metrics
            .cluster_nodes
            .set(self.membership.count_up() as i64);
    }

    /// Says that this node is there.
    fn alive(&self) {
        let heard = self.membership.nodes();
        let keys = self.shared.resumes.keys();
        let mut batch = self.cluster.outbound.batch();
        // Where it is cut off, nobody shall hear it.
        let _ = batch.tell_all(Broadcast::Alive { heard, keys });
    }
}

/// What comes from other nodes, by several ways.
#[derive(Default)]
struct Incoming {
    streams: SelectAll<Abortable<Subscriber>>,
    rooms: HashMap<RoomName, AbortHandle>,
    woken: Arc<Woken>,
}

/// Whether a stream has woken its reader since that last looked.
#[derive(Default)]
pub(super) struct Woken {
    pub(super) since: AtomicBool,
    reader: AtomicWaker,
}

impl Wake for Woken {
    fn wake(self: Arc<Woken>) {
        self.since.store(true, SeqCst);
        self.reader.wake();
    }
}

impl Incoming {
    fn change(&mut self, subscribed: Subscribed) {
        let (room, earlier) = match subscribed {
            Subscribed::To(room, subscriber) => {
                let (stream, handle) = abortable(subscriber);
                self.streams.push(stream);
                (room.clone(), self.rooms.insert(room, handle))
            }
            Subscribed::NoLonger(room) => {
                let earlier = self.rooms.remove(&room);
                (room, earlier)
            }
        };
        if let Some(earlier) = earlier {
            debug!("no longer hearing the last of {room}");
            earlier.abort();
        }
    }

    fn forget_rooms(&mut self) {
        self.rooms.drain().for_each(|(_, handle)| handle.abort());
    }

    /// Everything that is there, once there is something.
    ///
    /// A message comes later than all that the same node said before, but perhaps by another way: when
    /// all ways have been found empty after it, and none has stirred since, nothing is missing before
    /// it. Its task must not be made to yield in between.
    async fn batch(&mut self) -> Vec<NatsMessage> {
        let mut batch = Vec::new();
        let waker = Waker::from(self.woken.clone());
        poll_fn(|cx| {
            self.woken.reader.register(cx.waker());
            let mut cx = Context::from_waker(&waker);
            loop {
                let before = batch.len();
                self.woken.since.store(false, SeqCst);
                while let Poll::Ready(Some(message)) = self.streams.poll_next_unpin(&mut cx) {
                    batch.push(message);
                }
                if batch.len() == before && !self.woken.since.load(SeqCst) {
                    break;
                }
            }
            match batch.is_empty() {
                true => Poll::Pending,
                false => Poll::Ready(()),
            }
        })
        .await;
        batch
    }
}
