//! A server under test in this process, and its metrics.

use std::net::SocketAddr;

use anteroom::{Anteroom, Config, Server};
use futures_util::{FutureExt, future::join_all};
use tokio::{sync::oneshot, task::JoinHandle};

use super::time::{eventually, within_deadline};

/// A running server, in this process or in another.
pub trait RunningServer: Sync {
    fn address(&self) -> SocketAddr;

    /// The value of one series of its metrics; 0 if the series does not exist yet.
    fn count(&self, series: &str) -> impl Future<Output = u64> + Send;
}

impl RunningServer for TestServer {
    fn address(&self) -> SocketAddr {
        self.address
    }

    async fn count(&self, series: &str) -> u64 {
        metric_value(&self.anteroom.metrics(), series)
    }
}

/// The sum of one series over the metrics of several servers.
pub async fn total(servers: &[impl RunningServer], series: &str) -> u64 {
    let counts = servers.iter().map(|server| server.count(series));
    join_all(counts).await.into_iter().sum()
}

/// The value of one series in the text of the metrics; 0 if the series does not exist.
pub fn metric_value(metrics: &str, series: &str) -> u64 {
    let lines = metrics.lines().filter_map(|line| line.rsplit_once(' '));
    let mut values = lines.filter(|(name, _)| *name == series);
    values.next().map_or(0, |(_, value)| value.parse().unwrap())
}

/// Has outboxes hold little, and expects no pong: a test that reads one client after the other answers pings late.
pub fn hold_little(config: &mut Config, outbox_bytes: usize) {
    config.limits.max_message_bytes = 10_000;
    config.limits.outbox_bytes = outbox_bytes;
    config.liveness.pong_seconds = 3600;
}

/// A server in this process, on a free port of 127.0.0.1.
pub struct TestServer {
    pub address: SocketAddr,
    /// The address of the admin listener, if the server has one.
    pub admin: Option<SocketAddr>,
    pub anteroom: Anteroom,
    stop: Option<oneshot::Sender<()>>,
    served: JoinHandle<()>,
}

impl TestServer {
    /// Starts a server with the default options, but without pings: a test's client answers those only while the test
    /// reads from it.
    pub async fn start() -> TestServer {
        TestServer::with(|_| {}).await
    }

    /// Starts a server as `start` does, with some options changed.
    pub async fn with(change: impl FnOnce(&mut Config)) -> TestServer {
        let _ = rlimit::increase_nofile_limit(rlimit::INFINITY);
        let mut config = Config::default();
        config.serving.listen = ([127, 0, 0, 1], 0).into();
        config.liveness.ping_seconds = 3600;
        change(&mut config);
        let server = Server::bind(config).unwrap();
        let address = server.local_addr().unwrap();
        let admin = server.admin_addr().unwrap();
        let anteroom = server.anteroom().clone();
        let (stop, stopped) = oneshot::channel();
        let served = tokio::spawn(server.serve(stopped.map(drop)));
        TestServer {
            address,
            admin,
            anteroom,
            stop: Some(stop),
            served,
        }
    }

    /// Checks that the server has closed nobody because of reading too slowly.
    pub fn expect_no_slow_readers(&self) {
        assert_eq!(self.count("anteroom_slow_readers_total"), 0);
    }

    /// The value of one series of the metrics; 0 if the series does not exist yet.
    pub fn count(&self, series: &str) -> u64 {
        metric_value(&self.anteroom.metrics(), series)
    }

    /// Waits until this many sessions are suspended.
    pub async fn expect_suspended(&self, sessions: u64) {
        eventually(&format!("{sessions} suspended sessions"), || {
            self.count("anteroom_sessions_suspended") == sessions
        })
        .await;
    }

    /// Asks the server to stop.
    pub fn stop(&mut self) {
        self.stop.take().unwrap().send(()).unwrap();
    }

    /// Waits until the server has stopped.
    pub async fn stopped(self) {
        within_deadline("the server's end", self.served)
            .await
            .unwrap();
    }
}
