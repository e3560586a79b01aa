//! The task of a node: it connects to NATS, receives, keeps track of the other nodes and of its own
//! connection.

use std::{mem, pin::pin, sync::Arc, time::Duration};

use log::{debug, info, warn};
use tokio::{
    sync::mpsc,
    task::{coop::unconstrained, yield_now},
    time::{Instant, MissedTickBehavior, interval, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    delegate::Delegate,
    handle::Cluster,
    inbox::{Inbox, SubscriptionChange},
    membership::{Change, HEARTBEAT, Membership},
    queue::Subject,
    status::SETTLE,
    transport::{Connection, ConnectionEvent, Payload, Transport},
    wire::{self, Broadcast, Direct, Envelope, Message, NodeId},
    writer::Writer,
};
use crate::{metrics::Metrics, protocol::Escaped};

/// Time between checks of the connection and of the other nodes.
const TICK: Duration = Duration::from_millis(250);

/// Time after which a node ends a batch of messages that it has received, though there are more of them: the other nodes
/// wait for its heartbeats.
const BATCH: Duration = Duration::from_millis(50);

/// Time between two comparisons of what nodes know of each other.
const DIGEST: Duration = Duration::from_secs(10);

/// Time between attempts to connect to NATS for the first time.
const RETRY: Duration = Duration::from_secs(1);

/// Bytes of a node's messages after which this node acknowledges them. Fewer are acknowledged with the next
/// heartbeat.
const ACKNOWLEDGE_BYTES: usize = 256 << 10;

/// Time limit of the last messages when this node stops.
const FINISH_LIMIT: Duration = Duration::from_secs(2);

/// Subscriptions that may wait to begin or end.
const SUBSCRIPTIONS: usize = 1 << 20;

/// Takes part in the cluster until the delegate is done. Returns early if the server stops before there is
/// a connection to NATS.
pub(crate) async fn run(
    cluster: Arc<Cluster>,
    transport: impl Transport,
    metrics: Arc<Metrics>,
    stopping: CancellationToken,
    delegate: impl Delegate,
) {
    let outbound = &cluster.outbound;
    let connection = tokio::select! {
        biased;
        connection = connect(&cluster, &transport, &metrics) => connection,
        () = stopping.cancelled() => return,
    };
    info!("node {} is connected to NATS", outbound.node());
    let mut inbox = Inbox::new();
    for subject in [Subject::All, Subject::Node(outbound.node())] {
        match connection.subscribe(&subject).await {
            Ok(subscription) => inbox.add(subscription),
            Err(error) => return warn!("cannot subscribe to other nodes: {}", Escaped(error)),
        }
    }
    let (changes, subscriptions) = mpsc::channel(SUBSCRIPTIONS);
    let writer = Writer {
        connection: &connection,
        outbound,
        status: &cluster.status,
        metrics: &metrics,
        subscriptions: changes,
    };
    let now = Instant::now();
    let node = Node {
        cluster: &cluster,
        metrics: &metrics,
        connection: &connection,
        delegate,
        membership: Membership::new(outbound.node(), cluster.down, now),
        inbox,
        subscriptions,
        lost_at: now,
        last_tick: now,
        heartbeat_at: now + HEARTBEAT,
        retry_at: now + HEARTBEAT,
        digest_at: now + DIGEST,
    };
    let mut write = pin!(writer.run());
    tokio::select! {
        biased;
        () = node.run() => {}
        () = &mut write => return,
    }
    let _ = outbound.batch().tell_all(Broadcast::Bye);
    outbound.finish();
    let _ = timeout(FINISH_LIMIT, write).await;
}

/// Connects to NATS, however often that takes.
async fn connect<T: Transport>(
    cluster: &Cluster,
    transport: &T,
    metrics: &Arc<Metrics>,
) -> T::Connection {
    let mut last_error = String::new();
    loop {
        let (status, metrics) = (cluster.status.clone(), metrics.clone());
        let on_event = move |event| match event {
            ConnectionEvent::Connected => status.begin_connection(),
            ConnectionEvent::Disconnected => status.end_connection(),
            ConnectionEvent::Error(error) => {
                warn!(
                    "NATS reports an error, and this node is not ready: {}",
                    Escaped(&error)
                );
                status.set_error(error);
            }
            ConnectionEvent::Overflow => _ = metrics.cluster_overflows.inc(),
        };
        let name = format!("anteroom {}", cluster.outbound.node());
        match transport.connect(name, on_event).await {
            Ok(connection) => return connection,
            Err(error) => {
                if last_error != error {
                    let servers = transport.servers();
                    warn!("waiting for NATS at {servers}: {}", Escaped(&error));
                    last_error = error;
                }
                sleep(RETRY).await;
            }
        }
    }
}

/// A node that is connected to NATS.
struct Node<'a, C: Connection, D> {
    cluster: &'a Cluster,
    metrics: &'a Metrics,
    connection: &'a C,
    delegate: D,
    membership: Membership,
    inbox: Inbox<C::Subscription>,
    subscriptions: mpsc::Receiver<SubscriptionChange<C::Subscription>>,
    /// When the connection was lost the last time.
    lost_at: Instant,
    last_tick: Instant,
    heartbeat_at: Instant,
    retry_at: Instant,
    digest_at: Instant,
}

impl<C: Connection, D: Delegate> Node<'_, C, D> {
    async fn run(mut self) {
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        self.begin();
        while !self.delegate.is_done() {
            tokio::select! {
                biased;
                _ = ticks.tick() => self.tick(Instant::now()).await,
                // Subscriptions to rooms that begin or end.
                Some(change) = self.subscriptions.recv() => self.inbox.change(change),
                // Messages of other nodes.
                payloads = unconstrained(self.inbox.batch()) => self.receive(&payloads).await,
                // Room for chunks of lists.
                () = self.delegate.lists_ready() => {}
            }
            self.delegate.send_lists();
            // The writer runs in the same task, and must have its turn even if messages arrive all the time.
            yield_now().await;
        }
        self.delegate.finish().await;
        // The other nodes count messages as lost that are not acknowledged.
        self.acknowledge(1);
    }

    /// Does what is due.
    async fn tick(&mut self, now: Instant) {
        let time = now - mem::replace(&mut self.last_tick, now);
        // If this process stood still, it has not received the heartbeats of others.
        let stood_still = time > HEARTBEAT;
        if stood_still {
            self.membership.stood_still(now, time);
        }
        self.check_connection(now).await;
        if !stood_still && self.cluster.status.is_connected() {
            for change in self.membership.tick(now) {
                self.follow(change).await;
            }
        }
        self.update_status(now);
        self.send_heartbeat_if_due(now);
        if now >= self.retry_at {
            self.retry_at = now + HEARTBEAT;
            self.delegate.retry();
            self.acknowledge(1);
        }
        if now >= self.digest_at {
            self.digest_at = now + DIGEST;
            self.delegate.send_digests();
            if self.cluster.status.clear_error() {
                // Permissions may have changed. If not, NATS reports the error again.
                self.inbox.forget_rooms();
                self.delegate.subscribe();
            }
        }
    }

    /// Notes what this node knows of the others.
    fn update_status(&mut self, now: Instant) {
        let status = &self.cluster.status;
        if status.has_error() || !status.is_connected() {
            self.membership.learn_anew(now);
        }
        status.set_knowledge(
            self.membership.can_begin(now),
            self.membership.knows_all(now),
        );
    }

    /// Begins to send, and subscribes to all rooms.
    fn begin(&mut self) {
        self.cluster.status.set_connected(true);
        self.inbox.forget_rooms();
        self.cluster.outbound.open();
        self.delegate.subscribe();
        // A node that has known this one before sees in the heartbeat that it must begin anew.
        self.send_heartbeat();
    }

    /// Checks whether the connection is lost or back. Removes all nodes once it is lost for longer than the
    /// down time.
    async fn check_connection(&mut self, now: Instant) {
        let is_connected = self.connection.is_connected();
        match (is_connected, self.cluster.status.is_connected()) {
            (true, false) => {
                info!("connected to NATS again");
                self.cluster.status.set_connected(true);
                // Meanwhile this node could not receive heartbeats. The other nodes need one of this node.
                self.membership.restart_timeouts(now + SETTLE);
                self.send_heartbeat();
            }
            (false, true) => {
                warn!("lost the connection to NATS: sessions of other nodes cannot be reached");
                self.cluster.status.set_connected(false);
                self.lost_at = now;
            }
            _ => {}
        }
        let outbound = &self.cluster.outbound;
        if !is_connected && now - self.lost_at > self.cluster.down {
            outbound.close();
        }
        if !outbound.is_open() {
            // The other nodes have given this one up, or are about to.
            self.membership.learn_anew(now + SETTLE);
            for change in self.membership.clear() {
                self.follow(change).await;
            }
            if is_connected {
                self.begin();
            }
        }
    }

    /// Receives everything that has arrived.
    async fn receive(&mut self, payloads: &[C::Payload]) {
        let mut envelopes: Vec<Envelope<'_>> = payloads
            .iter()
            .filter_map(|payload| match wire::decode(payload.bytes()) {
                Ok(envelope) => Some(envelope),
                Err(error) => {
                    self.metrics.cluster_invalid.inc();
                    let subject = Escaped(payload.subject());
                    debug!("ignored an invalid message on {subject}: {error}");
                    None
                }
            })
            .collect();
        let count = envelopes.len() as u64;
        self.metrics.cluster_received.inc_by(count);
        // They arrived in several subscriptions. Their numbers are the order in which they were sent.
        envelopes.sort_by_key(|envelope| envelope.number);
        let mut begin = Instant::now();
        for envelope in envelopes {
            self.cluster.outbound.observe(envelope.number);
            if self.membership.is_new(envelope.node, envelope.number) {
                if let Some(count) = envelope.count {
                    let missed = self.membership.count_received(envelope.node, count);
                    self.count_lost(missed);
                }
                if self.membership.is_up(envelope.node) {
                    self.membership.received(envelope.node, envelope.bytes);
                }
                self.handle(envelope).await;
            }
            if self.delegate.must_end_batch() || begin.elapsed() > BATCH {
                self.end_batch().await;
                // The writer runs in the same task.
                yield_now().await;
                begin = Instant::now();
            }
        }
        self.end_batch().await;
    }

    /// Ends a batch of messages that are handled.
    async fn end_batch(&mut self) {
        let lost = self.delegate.end_batch().await;
        self.count_lost(lost);
        self.acknowledge(ACKNOWLEDGE_BYTES);
        self.send_heartbeat_if_due(Instant::now());
    }

    /// Handles heartbeats and acknowledgements, and has the delegate apply all other messages.
    async fn handle(&mut self, envelope: Envelope<'_>) {
        let Envelope {
            node,
            number,
            message,
            text,
            ..
        } = envelope;
        let is_up = self.membership.is_up(node);
        match message {
            Message::All(Broadcast::Alive { heard, keys }) => {
                self.delegate.learn_token_keys(&keys);
                let now = Instant::now();
                let (change, is_unknown) = self.membership.heartbeat(now, node, number, heard);
                if is_unknown {
                    // The new node is up only when it knows that this one receives it.
                    self.send_heartbeat();
                }
                if let Some(change) = change {
                    self.follow(change).await;
                }
            }
            Message::All(Broadcast::Bye) => {
                if let Some(change) = self.membership.bye(node) {
                    self.follow(change).await;
                }
            }
            Message::All(Broadcast::Enter { .. }) | Message::Node(Direct::Ask(_)) => {
                self.delegate.apply(node, number, message, text);
            }
            Message::Node(unicast @ Direct::Unicast { .. }) if !is_up => {
                self.delegate.reject(node, unicast);
            }
            // A node that does not receive this one, or is not received, may only ask: it gets no answer to
            // anything else.
            _ if !is_up => {}
            Message::Node(Direct::Taken { number }) => {
                self.cluster.outbound.acknowledged(node, number);
            }
            message => self.delegate.apply(node, number, message, text),
        }
    }

    /// Acknowledges the messages of every node of which at least so many bytes are not acknowledged.
    fn acknowledge(&mut self, least: usize) {
        let nodes = self.membership.take_unacknowledged(least);
        if !nodes.is_empty() {
            let mut batch = self.cluster.outbound.batch();
            for (node, number) in nodes {
                batch.notify(node, Direct::Taken { number });
            }
        }
    }

    /// Follows a change of the membership.
    async fn follow(&mut self, change: Change) {
        let now = Instant::now();
        match change {
            Change::Up(node) => {
                info!("node {node} is up");
                self.cluster.outbound.up(node);
                self.delegate.node_up(node);
                self.update_status(now);
            }
            Change::Down(node) => {
                // Lookups that end because of it may not say that the session is lost, if it may not be.
                self.update_status(now);
                self.node_down(node).await;
            }
        }
        let nodes = self.membership.count_up();
        self.metrics.cluster_nodes.set(nodes as i64);
    }

    async fn node_down(&mut self, node: NodeId) {
        info!("node {node} is down");
        let lost = self.cluster.outbound.down(node);
        self.count_lost(lost);
        // The heartbeat no longer lists the node. The node then removes this one, and both begin anew.
        self.send_heartbeat();
        self.delegate.node_down(node);
        loop {
            let has_more = self.delegate.remove_sessions();
            self.end_batch().await;
            if !has_more {
                break;
            }
            // The writer runs in the same task.
            yield_now().await;
        }
    }

    fn count_lost(&self, messages: u64) {
        self.metrics.cluster_lost.inc_by(messages);
    }

    fn send_heartbeat_if_due(&mut self, now: Instant) {
        if now >= self.heartbeat_at {
            self.heartbeat_at = now + HEARTBEAT;
            self.send_heartbeat();
        }
    }

    /// Announces this node, and which nodes it receives.
    fn send_heartbeat(&self) {
        let heard = self.membership.nodes();
        let keys = self.delegate.token_keys();
        let mut batch = self.cluster.outbound.batch();
        // A disconnected node must not be announced.
        let _ = batch.tell_all(Broadcast::Alive { heard, keys });
    }
}
