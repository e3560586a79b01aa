//! The metrics and their registry, named by the rules of OpenMetrics 1.0. No label holds a room or a
//! session: their number has no bound, and each value of a label costs a time series.

use std::{
    borrow::Cow,
    sync::Arc,
    time::{Duration, SystemTime},
};

use prometheus_client::{
    encoding::text::{encode, encode_registry},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram, info::Info},
    registry::{Registry, Unit},
};

use super::{
    process,
    relayed::{RelayedFamilies, RelayedTraffic},
    traffic::Traffic,
};
use crate::config::Limit;

/// The content type of [`Metrics::render`] (OpenMetrics 1.0, exposition format).
pub(crate) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The upper bounds of the buckets for ping round trips, in seconds: from the same machine to the
/// other side of the world and beyond.
const ROUND_TRIP_BUCKETS: [f64; 13] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0,
];

/// The upper bounds of the buckets for the time until peers are connected, in seconds: from one network to relays that
/// are tried after all else.
const PEER_CONNECTION_BUCKETS: [f64; 9] = [0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0];

/// How direct connections between clients go: the result, and the path.
const PEER_CONNECTIONS: [[&str; 2]; 5] = [
    ["connected", "host"],
    ["connected", "srflx"],
    ["connected", "prflx"],
    ["connected", "relay"],
    ["failed", "none"],
];

/// Why the TURN server refuses or drops something: wrong credentials, a session that has ended, the quotas of a session
/// and an address, no free port, too many peers of an allocation, a peer that relays may not reach, too many requests
/// without credentials, too many connections of an address, too many open files, too many bytes of a session or of all,
/// and datagrams that could not be sent.
const TURN_REFUSALS: [&str; 12] = [
    "credentials",
    "session",
    "session_allocations",
    "address_allocations",
    "ports",
    "peers",
    "peer",
    "rate",
    "connections",
    "files",
    "bandwidth",
    "lost",
];

/// Counters with one label, whose values are all known when the server starts.
type Counters = Family<[(&'static str, Cow<'static, str>); 1], Counter>;

/// The counters, which change as things happen, and the gauges, which [`render`](Metrics::render)
/// sets.
pub(crate) struct Metrics {
    registry: Registry,
    pub(crate) traffic: Arc<Traffic>,
    pub(crate) joins: Counter,
    pub(crate) slow_readers: Counter,
    leaves: Counters,
    errors: Counters,
    closes: Counters,
    limits: Counters,
    resumes: Counters,
    upgrades: Counters,
    peer_connections: Family<[(&'static str, &'static str); 2], Counter>,
    peer_connection_times: Histogram,
    round_trips: Histogram,
    pub(crate) history_stored: Counter,
    pub(crate) history_failed: Counter,
    pub(crate) turn_allocations: Gauge,
    pub(crate) turn_allocations_opened: Counter,
    turn_refusals: Counters,
    relayed: RelayedFamilies,
    pub(crate) cluster_nodes: Gauge,
    pub(crate) cluster_sent: Counter,
    pub(crate) cluster_received: Counter,
    pub(crate) cluster_invalid: Counter,
    pub(crate) cluster_overflows: Counter,
    pub(crate) cluster_lost: Counter,
    gauges: Gauges<Gauge>,
}

/// The values that are read from the server's state whenever the metrics are rendered.
#[derive(Default)]
pub(crate) struct Gauges<T> {
    pub(crate) sessions: T,
    pub(crate) suspended: T,
    pub(crate) rooms: T,
    pub(crate) outbox_bytes: T,
    pub(crate) history_bytes: T,
    /// 1 while the node is connected to NATS, 0 otherwise.
    pub(crate) cluster_connected: T,
}

impl Metrics {
    /// Registers all metrics; those of the cluster only if `is_clustered`, those of the TURN server only if it
    /// `has_turn`. The counters for `error_codes` and `close_codes` are shown as zero from the start.
    pub(crate) fn new(
        is_clustered: bool,
        has_turn: bool,
        error_codes: impl IntoIterator<Item = &'static str>,
        close_codes: impl IntoIterator<Item = u16>,
    ) -> Metrics {
        let mut metrics = Metrics {
            registry: Registry::with_prefix("anteroom"),
            traffic: Arc::default(),
            joins: Counter::default(),
            slow_readers: Counter::default(),
            leaves: Counters::default(),
            errors: Counters::default(),
            closes: Counters::default(),
            limits: Counters::default(),
            resumes: Counters::default(),
            upgrades: Counters::default(),
            peer_connections: Family::default(),
            peer_connection_times: Histogram::new(PEER_CONNECTION_BUCKETS),
            round_trips: Histogram::new(ROUND_TRIP_BUCKETS),
            history_stored: Counter::default(),
            history_failed: Counter::default(),
            turn_allocations: Gauge::default(),
            turn_allocations_opened: Counter::default(),
            turn_refusals: Counters::default(),
            relayed: RelayedFamilies::default(),
            cluster_nodes: Gauge::default(),
            cluster_sent: Counter::default(),
            cluster_received: Counter::default(),
            cluster_invalid: Counter::default(),
            cluster_overflows: Counter::default(),
            cluster_lost: Counter::default(),
            gauges: Gauges::default(),
        };
        metrics.register();
        if is_clustered {
            metrics.register_cluster();
        }
        if has_turn {
            metrics.register_turn();
        }
        for code in error_codes {
            metrics.errors(code);
        }
        for code in close_codes {
            metrics.closes(code);
        }
        metrics.create_counters();
        metrics
    }

    /// Registers the metrics that every server has, each with its name and help text.
    fn register(&mut self) {
        let registry = &mut self.registry;
        let version = [("version", env!("CARGO_PKG_VERSION"))];
        registry.register(
            "build",
            "The running version of anteroom",
            Info::new(version),
        );

        let Gauges {
            sessions,
            suspended,
            rooms,
            outbox_bytes,
            history_bytes,
            cluster_connected: _,
        } = &self.gauges;
        let help = "Current sessions, including suspended ones";
        registry.register("sessions", help, sessions.clone());
        let help = "Current sessions that lost their connection and can be resumed";
        registry.register("sessions_suspended", help, suspended.clone());
        registry.register("rooms", "Current rooms", rooms.clone());
        let help = "Size of the messages that wait to be sent to sessions";
        registry.register_with_unit("outbox", help, Unit::Bytes, outbox_bytes.clone());
        let help = "Size of the messages that rooms keep";
        registry.register_with_unit("history", help, Unit::Bytes, history_bytes.clone());
        let help = "Messages stored in the history of their room";
        registry.register("history_messages_stored", help, self.history_stored.clone());
        let help =
            "Messages that were delivered, but could not be stored in the history of their room";
        registry.register("history_messages_failed", help, self.history_failed.clone());

        let help = "Sessions that started";
        registry.register("joins", help, self.joins.clone());
        let help = "Sessions that ended, by cause";
        registry.register("leaves", help, self.leaves.clone());
        let help = "Requests to open a session, by HTTP status, or the one that a refusal by Close frame stands for";
        registry.register("upgrades", help, self.upgrades.clone());
        let help = "Times that a limit refused a request or slowed a session down, by the option that sets it";
        registry.register("limits_hit", help, self.limits.clone());

        let Traffic {
            messages_received,
            received_bytes,
            deliveries,
            messages_sent,
            sent_bytes,
        } = &*self.traffic;
        let help = "Messages received from clients";
        registry.register("messages_received", help, messages_received.clone());
        let help = "Bytes received in WebSocket frames";
        registry.register_with_unit("received", help, Unit::Bytes, received_bytes.clone());
        let help = "Messages of clients and backends that were queued for a receiver, once for each receiver";
        registry.register("deliveries", help, deliveries.clone());
        let help = "Messages written to connections";
        registry.register("messages_sent", help, messages_sent.clone());
        let help = "Bytes written in WebSocket frames";
        registry.register_with_unit("sent", help, Unit::Bytes, sent_bytes.clone());

        let help = "Errors sent to clients, by error code";
        registry.register("errors", help, self.errors.clone());
        let help = "Connections that the server closed, by WebSocket close code";
        registry.register("closes", help, self.closes.clone());
        let help = "Connections closed because too many bytes waited to be sent";
        registry.register("slow_readers", help, self.slow_readers.clone());
        let help = "Attempts to resume a session that succeeded or failed, and suspended sessions that expired";
        registry.register("resumes", help, self.resumes.clone());
        let help = "Direct connections between clients, as each of both reports them";
        registry.register("peer_connections", help, self.peer_connections.clone());
        let help = "Time until a direct connection between clients was there";
        let times = self.peer_connection_times.clone();
        registry.register_with_unit("peer_connection", help, Unit::Seconds, times);
        let help = "Time from a ping to its pong";
        let round_trips = self.round_trips.clone();
        registry.register_with_unit("ping_round_trip", help, Unit::Seconds, round_trips);
    }

    /// Registers the metrics that only a server with a TURN server has.
    fn register_turn(&mut self) {
        let registry = &mut self.registry;
        let help = "Current allocations of the TURN server";
        registry.register("turn_allocations", help, self.turn_allocations.clone());
        let help = "Allocations that the TURN server opened";
        let opened = self.turn_allocations_opened.clone();
        registry.register("turn_allocations_opened", help, opened);
        let help = "What the TURN server refused or dropped, by reason";
        registry.register("turn_refusals", help, self.turn_refusals.clone());
        self.relayed.register(registry);
        for reason in TURN_REFUSALS {
            self.turn_refusals(reason);
        }
        self.relayed.traffic();
    }

    /// Registers the metrics that only a node of a cluster has.
    fn register_cluster(&mut self) {
        let registry = &mut self.registry;
        let help = "1 while the node is connected to NATS, 0 otherwise";
        let connected = self.gauges.cluster_connected.clone();
        registry.register("cluster_connected", help, connected);
        let help = "Other nodes of the cluster that this node sees, without itself";
        registry.register("cluster_nodes", help, self.cluster_nodes.clone());
        let help = "Messages published to NATS";
        registry.register("cluster_messages_sent", help, self.cluster_sent.clone());
        let help = "Messages received from other nodes";
        registry.register(
            "cluster_messages_received",
            help,
            self.cluster_received.clone(),
        );
        let help = "Messages received over NATS that could not be decoded";
        registry.register(
            "cluster_messages_invalid",
            help,
            self.cluster_invalid.clone(),
        );
        let help = "Times that messages were lost because other nodes sent them faster than this node read them";
        registry.register("cluster_overflows", help, self.cluster_overflows.clone());
        let help = "Messages of clients and backends known not to have reached another node, without an error to the sender, once for each node";
        registry.register("cluster_messages_lost", help, self.cluster_lost.clone());
    }

    /// Creates the remaining counters at zero: Prometheus computes a rate only from a series that
    /// existed before its first increment.
    fn create_counters(&self) {
        for cause in ["left", "lost", "eof", "closed", "expired", "migrated"] {
            self.leaves(cause);
        }
        for status in [101, 400, 401, 403, 405, 426, 429, 503] {
            self.upgrades(status);
        }
        for outcome in ["resumed", "failed", "expired"] {
            self.resumes(outcome);
        }
        for limit in Limit::ALL {
            self.limits_hit(limit);
        }
        for labels in PEER_CONNECTIONS {
            self.peer_connections(labels);
        }
    }

    /// Sessions that ended for this cause.
    pub(crate) fn leaves(&self, cause: &'static str) -> Counter {
        one(&self.leaves, "cause", cause.into())
    }

    /// Errors with this code that were sent to clients.
    pub(crate) fn errors(&self, code: &'static str) -> Counter {
        one(&self.errors, "code", code.into())
    }

    /// Connections that the server closed with this WebSocket close code.
    pub(crate) fn closes(&self, code: u16) -> Counter {
        one(&self.closes, "code", code.to_string().into())
    }

    /// Times that this limit took effect.
    pub(crate) fn limits_hit(&self, limit: Limit) -> Counter {
        one(&self.limits, "limit", limit.option().into())
    }

    /// Attempts to resume a session with this outcome.
    pub(crate) fn resumes(&self, outcome: &'static str) -> Counter {
        one(&self.resumes, "outcome", outcome.into())
    }

    /// Requests to open a session that were answered with this HTTP status.
    pub(crate) fn upgrades(&self, status: u16) -> Counter {
        one(&self.upgrades, "status", status.to_string().into())
    }

    /// What the TURN server refused for this reason, one of [`TURN_REFUSALS`].
    pub(crate) fn turn_refusals(&self, reason: &'static str) -> Counter {
        one(&self.turn_refusals, "reason", reason.into())
    }

    /// The counters of what the TURN server relays.
    pub(crate) fn relayed_traffic(&self) -> RelayedTraffic {
        self.relayed.traffic()
    }

    /// Direct connections between clients with this result and path.
    pub(crate) fn peer_connections(&self, [result, path]: [&'static str; 2]) -> Counter {
        let labels = [("result", result), ("path", path)];
        self.peer_connections.get_or_create_owned(&labels)
    }

    /// The number of direct connections between clients with each result and path.
    pub(crate) fn count_peer_connections(&self) -> impl Iterator<Item = ([&'static str; 2], u64)> {
        let count = |labels| (labels, self.peer_connections(labels).get());
        PEER_CONNECTIONS.into_iter().map(count)
    }

    /// Records the time until a direct connection between clients was there.
    pub(crate) fn observe_peer_connection(&self, time: Duration) {
        self.peer_connection_times.observe(time.as_secs_f64());
    }

    /// Records the time from a ping to its pong.
    pub(crate) fn observe_round_trip(&self, time: Duration) {
        self.round_trips.observe(time.as_secs_f64());
    }

    /// All metrics in the text format of OpenMetrics, with the gauges set to `now`, and those of the process, whose server
    /// was `started` then.
    pub(crate) fn render(&self, now: &Gauges<usize>, started: SystemTime) -> String {
        let set = |gauge: &Gauge, value: usize| gauge.set(value as i64);
        set(&self.gauges.sessions, now.sessions);
        set(&self.gauges.suspended, now.suspended);
        set(&self.gauges.rooms, now.rooms);
        set(&self.gauges.outbox_bytes, now.outbox_bytes);
        set(&self.gauges.history_bytes, now.history_bytes);
        set(&self.gauges.cluster_connected, now.cluster_connected);
        let mut text = String::new();
        encode_registry(&mut text, &process::registry(started)).expect("a String takes everything");
        encode(&mut text, &self.registry).expect("a String takes everything");
        text
    }
}

/// The counter whose label has this value.
fn one(counters: &Counters, label: &'static str, value: Cow<'static, str>) -> Counter {
    counters.get_or_create_owned(&[(label, value)])
}
