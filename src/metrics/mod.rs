//! Everything that is counted, in the words of OpenMetrics. Rooms and sessions are no labels: there
//! may be any number of them.

use std::{borrow::Cow, sync::Arc, time::Duration};

use prometheus_client::{
    encoding::text::encode,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram, info::Info},
    registry::{Registry, Unit},
};

mod traffic;

pub(crate) use self::traffic::Traffic;
use crate::{
    config::Limit,
    protocol::{CloseCode, ErrorCode},
};

/// The content type of the text (OpenMetrics 1.0, exposition format).
pub(crate) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The upper bounds of the round trips' buckets, in seconds: from the same machine to the other side
/// of the world and beyond.
const ROUND_TRIPS: [f64; 13] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0,
];

/// Counters by one label, whose values are all known beforehand.
type Counters = Family<[(&'static str, Cow<'static, str>); 1], Counter>;

/// All counters, and the gauges that are set when they are asked for.
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
    round_trips: Histogram,
    pub(crate) cluster_nodes: Gauge,
    pub(crate) cluster_sent: Counter,
    pub(crate) cluster_received: Counter,
    pub(crate) cluster_refused: Counter,
    pub(crate) cluster_dropped: Counter,
    pub(crate) cluster_lost: Counter,
    gauges: Gauges<Gauge>,
}

/// What is counted when it is asked for.
#[derive(Default)]
pub(crate) struct Gauges<T> {
    pub(crate) sessions: T,
    pub(crate) suspended: T,
    pub(crate) rooms: T,
    pub(crate) outbox_bytes: T,
    /// Whether there is a connection to NATS.
    pub(crate) cluster_connected: T,
}

impl Metrics {
    /// What concerns a cluster is left out of a server that is alone.
    pub(crate) fn new(is_clustered: bool) -> Metrics {
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
            round_trips: Histogram::new(ROUND_TRIPS),
            cluster_nodes: Gauge::default(),
            cluster_sent: Counter::default(),
            cluster_received: Counter::default(),
            cluster_refused: Counter::default(),
            cluster_dropped: Counter::default(),
            cluster_lost: Counter::default(),
            gauges: Gauges::default(),
        };
        metrics.register();
        if is_clustered {
            metrics.register_cluster();
        }
        metrics.begin();
        metrics
    }

    /// Names each of them and says what it is.
    fn register(&mut self) {
        let registry = &mut self.registry;
        let version = [("version", env!("CARGO_PKG_VERSION"))];
        registry.register("build", "The program", Info::new(version));

        let Gauges {
            sessions,
            suspended,
            rooms,
            outbox_bytes,
            cluster_connected: _,
        } = &self.gauges;
        let help = "Sessions, with those that are without a connection";
        registry.register("sessions", help, sessions.clone());
        let help = "Sessions that are without a connection and may be resumed";
        registry.register("sessions_away", help, suspended.clone());
        registry.register("rooms", "Rooms", rooms.clone());
        let help = "What waits to be sent to all sessions";
        registry.register_with_unit("outbox", help, Unit::Bytes, outbox_bytes.clone());

        let help = "Sessions that have begun";
        registry.register("joins", help, self.joins.clone());
        let help = "Sessions that have ended, by the cause";
        registry.register("leaves", help, self.leaves.clone());
        let help = "Requests for a session, by the HTTP status of the answer";
        registry.register("upgrades", help, self.upgrades.clone());
        let help = "Requests and messages over a limit, by the option that sets it";
        registry.register("limits_hit", help, self.limits.clone());

        let Traffic {
            messages_received,
            received_bytes,
            deliveries,
            messages_sent,
            sent_bytes,
        } = &*self.traffic;
        let help = "Messages that have come from clients";
        registry.register("messages_received", help, messages_received.clone());
        let help = "Bytes that have come in WebSocket frames";
        registry.register_with_unit("received", help, Unit::Bytes, received_bytes.clone());
        let help = "Messages of clients and backends put into outboxes, once for each receiver";
        registry.register("deliveries", help, deliveries.clone());
        let help = "Messages that are written to connections";
        registry.register("messages_sent", help, messages_sent.clone());
        let help = "Bytes that are written in WebSocket frames";
        registry.register_with_unit("sent", help, Unit::Bytes, sent_bytes.clone());

        let help = "Errors that clients were told of, by their code";
        registry.register("errors", help, self.errors.clone());
        let help = "Connections closed by the server, by the code of the Close frame";
        registry.register("closes", help, self.closes.clone());
        let help = "Connections given up because too much waited to be sent";
        registry.register("slow_readers", help, self.slow_readers.clone());
        let help = "Sessions taken up again, requests for that which failed, sessions that nobody took up in time";
        registry.register("resumes", help, self.resumes.clone());
        let help = "From a ping to its pong";
        let round_trips = self.round_trips.clone();
        registry.register_with_unit("ping_round_trip", help, Unit::Seconds, round_trips);
    }

    fn register_cluster(&mut self) {
        let registry = &mut self.registry;
        let help = "Whether there is a connection to NATS: 1 or 0";
        let connected = self.gauges.cluster_connected.clone();
        registry.register("cluster_connected", help, connected);
        let help = "Other nodes that are there";
        registry.register("cluster_nodes", help, self.cluster_nodes.clone());
        let help = "Messages given to NATS";
        registry.register("cluster_messages_sent", help, self.cluster_sent.clone());
        let help = "Messages of other nodes";
        registry.register(
            "cluster_messages_received",
            help,
            self.cluster_received.clone(),
        );
        let help = "What has come over NATS and was not understood";
        registry.register(
            "cluster_messages_refused",
            help,
            self.cluster_refused.clone(),
        );
        let help = "Times that messages of other nodes came faster than they were taken in, and some were lost";
        registry.register("cluster_overflows", help, self.cluster_dropped.clone());
        let help = "Messages of clients and backends that did not reach another node, as far as that is known and nobody was told, once for each node";
        registry.register("cluster_messages_lost", help, self.cluster_lost.clone());
    }

    /// Shows everything that has not happened yet as zero: what grows must have a beginning.
    fn begin(&self) {
        for cause in ["left", "lost", "eof", "closed", "expired", "gone"] {
            self.leaves(cause);
        }
        for status in [101, 400, 401, 403, 405, 426, 429, 503] {
            self.upgrades(status);
        }
        for outcome in ["resumed", "failed", "expired"] {
            self.resumes(outcome);
        }
        for code in ErrorCode::ALL {
            self.errors(code);
        }
        for code in CloseCode::ALL {
            self.closes(code);
        }
        for limit in Limit::ALL {
            self.limits_hit(limit);
        }
    }

    pub(crate) fn leaves(&self, cause: &'static str) -> Counter {
        one(&self.leaves, "cause", cause.into())
    }

    pub(crate) fn errors(&self, code: ErrorCode) -> Counter {
        one(&self.errors, "code", <&str>::from(code).into())
    }

    pub(crate) fn closes(&self, code: CloseCode) -> Counter {
        one(&self.closes, "code", (code as u16).to_string().into())
    }

    pub(crate) fn limits_hit(&self, limit: Limit) -> Counter {
        one(&self.limits, "limit", limit.option().into())
    }

    pub(crate) fn resumes(&self, outcome: &'static str) -> Counter {
        one(&self.resumes, "outcome", outcome.into())
    }

    pub(crate) fn upgrades(&self, status: u16) -> Counter {
        one(&self.upgrades, "status", status.to_string().into())
    }

    pub(crate) fn observe_round_trip(&self, time: Duration) {
        self.round_trips.observe(time.as_secs_f64());
    }

    /// All of it in the text format of OpenMetrics, with the gauges as they are now.
    pub(crate) fn render(&self, now: &Gauges<usize>) -> String {
        let set = |gauge: &Gauge, value: usize| gauge.set(value as i64);
        set(&self.gauges.sessions, now.sessions);
        set(&self.gauges.suspended, now.suspended);
        set(&self.gauges.rooms, now.rooms);
        set(&self.gauges.outbox_bytes, now.outbox_bytes);
        set(&self.gauges.cluster_connected, now.cluster_connected);
        let mut text = String::new();
        encode(&mut text, &self.registry).expect("a String takes everything");
        text
    }
}

fn one(counters: &Counters, label: &'static str, value: Cow<'static, str>) -> Counter {
    counters.get_or_create_owned(&[(label, value)])
}
