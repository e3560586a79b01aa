//! The server with coturn, nginx and Prometheus. `tests/run` installs these programs.

use std::{
    net::{SocketAddr, TcpListener, UdpSocket},
    ops::Range,
    path::{Path, PathBuf},
    process::{Output, Stdio},
    sync::atomic::{AtomicU32, Ordering::Relaxed},
    time::Duration,
};

use anteroom::Config;
use serde_json::{Value, json};
use tokio::{
    net::{self, TcpSocket, TcpStream},
    process::{Child, Command},
    time::interval,
};
use tokio_rustls::{
    client::TlsStream,
    rustls::version::{TLS12, TLS13},
};
use tokio_tungstenite::tungstenite::{self, client::IntoClientRequest};

use crate::{
    cluster::Nats,
    guide::{CLUSTER, OPERATING, blocks},
    ice::turn_credential,
    support::{
        Client, File, Folder, TestServer, eventually, in_seconds, operator, turn_server,
        within_deadline,
    },
    tls::{self, Authority},
};

/// A port of 127.0.0.1 that is free for TCP and UDP. It is below the ports that Linux gives to sockets that ask for
/// none (`ip_local_port_range`), so that none of them takes it before the program that it is for.
pub fn free_port() -> u16 {
    const PORTS: Range<u32> = 20_000..32_000;
    static GIVEN: AtomicU32 = AtomicU32::new(0);
    for _ in PORTS {
        // Test processes that run at the same time begin at different ports.
        let next = GIVEN.fetch_add(1, Relaxed) + std::process::id() * 97;
        let port = (PORTS.start + next % PORTS.len() as u32) as u16;
        let address = ("127.0.0.1", port);
        if TcpListener::bind(address).is_ok() && UdpSocket::bind(address).is_ok() {
            return port;
        }
    }
    panic!("no port of {PORTS:?} is free");
}

/// Starts a program that is killed when dropped, and waits until it accepts connections.
pub async fn start(command: &mut Command, port: u16) -> Child {
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap_or_else(|error| panic!("{command:?}: {error}; see tests/run"));
    let mut ticks = interval(Duration::from_millis(20));
    within_deadline("the program's start", async {
        while TcpStream::connect(("127.0.0.1", port)).await.is_err() {
            ticks.tick().await;
        }
    })
    .await;
    child
}

/// Runs a program to its end.
async fn run(command: &mut Command) -> Output {
    within_deadline("the program's end", command.kill_on_drop(true).output())
        .await
        .unwrap_or_else(|error| panic!("{command:?}: {error}; see tests/run"))
}

/// A coturn TURN server on a free port.
pub struct Coturn {
    child: Child,
    options: &'static [&'static str],
    pid: File,
    log: File,
    pub secret: File,
    pub port: u16,
    pub url: String,
}

impl Coturn {
    const SECRET: &str = "a secret that coturn has, too";

    pub async fn start() -> Coturn {
        Coturn::start_with(&[]).await
    }

    /// Starts it with more options.
    pub async fn start_with(options: &'static [&'static str]) -> Coturn {
        let port = free_port();
        let secret = File::new(&format!("coturn-{port}"), Coturn::SECRET);
        let pid = File::new(&format!("coturn-{port}.pid"), "");
        let log = File::new(&format!("coturn-{port}.log"), "");
        Coturn {
            child: Coturn::run(port, &pid, &log, options).await,
            options,
            pid,
            log,
            secret,
            port,
            url: format!("turn:127.0.0.1:{port}"),
        }
    }

    /// Starts the process, and waits until it answers over TCP and UDP: it starts without a port that it cannot bind.
    async fn run(port: u16, pid: &File, log: &File, options: &[&str]) -> Child {
        let child = start(
            Command::new("turnserver")
                .args([
                    "-n",
                    "--listening-ip=127.0.0.1",
                    "--relay-ip=127.0.0.1",
                    "--no-tls",
                ])
                .args([
                    "--no-dtls",
                    "--no-cli",
                    "--allow-loopback-peers",
                    "--use-auth-secret",
                ])
                .args(["--realm=anteroom.test", "--simple-log"])
                .arg(format!("--static-auth-secret={}", Coturn::SECRET))
                .arg(format!("--listening-port={port}"))
                .arg(format!("--pidfile={}", pid.path().display()))
                .arg(format!("--log-file={}", log.path().display()))
                .args(options),
            port,
        )
        .await;
        let socket = net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
        socket.connect(("127.0.0.1", port)).await.unwrap();
        // A binding request (RFC 8489, sections 5 and 6): its type, no attributes, the magic cookie and an id.
        let request = [&[0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42][..], &[7; 12]].concat();
        let mut ticks = interval(Duration::from_millis(20));
        let mut answer = [0; 1500];
        within_deadline("coturn's answer over UDP", async {
            while !matches!(socket.try_recv(&mut answer), Ok(20..)) {
                // Fails while nothing is bound to the port.
                let _ = socket.send(&request).await;
                ticks.tick().await;
            }
        })
        .await;
        child
    }

    /// Kills the process and starts it again: every allocation is lost.
    pub async fn restart(&mut self) {
        self.child.kill().await.unwrap();
        self.child = Coturn::run(self.port, &self.pid, &self.log, self.options).await;
    }
}

impl Drop for Coturn {
    /// Shows what coturn has logged where a test fails.
    fn drop(&mut self) {
        if std::thread::panicking() {
            // A second panic would end the process.
            eprintln!(
                "{}",
                std::fs::read_to_string(self.log.path()).unwrap_or_default()
            );
        }
    }
}

#[tokio::test]
#[ignore = "needs coturn: tests/run starts this test"]
async fn coturn_relays_only_with_valid_credentials() {
    let coturn = Coturn::start().await;
    let server = TestServer::with(|config| {
        config.webrtc.turn_url = vec![coturn.url.parse().unwrap()];
        config.webrtc.turn_secret_file = Some(coturn.secret.path());
    })
    .await;
    let mut client = Client::join(&server, "tea").await;
    let hello = client.hello().await;
    let given = &hello["data"]["iceServers"][0];
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let (username, credential) = (text(&given["username"]), text(&given["credential"]));

    let sign = |username: &str| turn_credential(Coturn::SECRET, username);
    assert_eq!(credential, sign(&username));
    let longer = format!("{}:{}", in_seconds(7 * 3600), client.id);
    let expired = format!("{}:{}", in_seconds(-10), client.id);
    for (username, credential, is_relayed) in [
        (&username, &credential, true),
        (
            &username,
            &credential.replace(char::is_alphanumeric, "A"),
            false,
        ),
        (&longer, &credential, false),
        (&expired, &sign(&expired), false),
    ] {
        // Two clients send each other messages through the relay.
        let output = run(Command::new("turnutils_uclient").args([
            "-y",
            "-c",
            "-n",
            "2",
            "-u",
            username,
            "-w",
            credential,
            "-p",
            &coturn.port.to_string(),
            "127.0.0.1",
        ]))
        .await;
        let stdout = String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.success(), is_relayed, "{username}: {stdout}");
        if is_relayed {
            assert!(stdout.contains("Total lost packets 0"), "{stdout}");
        }
    }
}

#[tokio::test]
#[ignore = "needs coturn: tests/run starts this test"]
async fn the_clients_of_coturn_use_the_server_in_the_same_process() {
    let server = TestServer::with(|config| {
        // Nobody answers the session's pings, the first of which may come at once. Its allocations end with it.
        config.liveness.pong_seconds = 3600;
        config.turn.listen = Some(([127, 0, 0, 1], 0).into());
        config.turn.addresses = vec![[127, 0, 0, 1].into()];
    })
    .await;
    let mut client = Client::join(&server, "tea").await;
    let hello = client.hello().await;
    let (address, given) = turn_server(&hello);
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let port = address.port().to_string();
    let mut stun_client = Command::new("turnutils_stunclient");
    let output = run(stun_client.args(["-p", &port, "127.0.0.1"])).await;
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(
        stdout.contains("UDP reflexive addr: 127.0.0.1:"),
        "{stdout}"
    );

    let (username, credential) = (text(&given["username"]), text(&given["credential"]));
    // By channels over UDP, and by indications over TCP.
    for (transport, credential, is_relayed) in [
        (&[][..], &*credential, true),
        (&["-t", "-s"], &credential, true),
        (&[], "wrong", false),
    ] {
        let mut uclient = Command::new("turnutils_uclient");
        uclient
            .args(transport)
            .args(["-y", "-c", "-n", "20", "-m", "2", "-p", &port]);
        let output = run(uclient.args(["-u", &username, "-w", credential, "127.0.0.1"])).await;
        let stdout = String::from_utf8_lossy(&output.stdout);
        assert_eq!(
            output.status.success(),
            is_relayed,
            "{transport:?}: {stdout}"
        );
        if is_relayed {
            assert!(
                stdout.contains("Total lost packets 0"),
                "{transport:?}: {stdout}"
            );
        }
    }
    client.leave().await;
    eventually("the end of all allocations", || {
        server.count("anteroom_turn_allocations") == 0
    })
    .await;
}

/// The parts of the guide that are a configuration for nginx: a server, several nodes behind it, and a
/// second server to lead newcomers to.
fn nginx_configurations() -> [&'static str; 3] {
    let mut operating = blocks(OPERATING, "nginx");
    let (server, turns) = (operating.next().unwrap(), operating.next().unwrap());
    let nodes = blocks(CLUSTER, "nginx").next().unwrap();
    [server, nodes, turns]
}

/// Replaces parts of an example, each of which must occur.
fn change(mut text: String, changes: &[(&str, String)]) -> String {
    for (part, replacement) in changes {
        assert!(text.contains(part), "{part} is not in the guide's example");
        text = text.replace(part, replacement);
    }
    text
}

/// A running nginx.
pub struct NginxProcess {
    _child: Child,
    _configuration: File,
    folder: PathBuf,
}

impl Drop for NginxProcess {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

impl NginxProcess {
    /// Starts nginx with these blocks in `http`, and waits until it listens on `port`.
    pub async fn start(name: &str, port: u16, blocks: &str) -> NginxProcess {
        let folder = std::env::temp_dir().join(format!("anteroom-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let paths: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|kind| format!("{kind}_temp_path {}/{kind};\n", folder.display()))
            .concat();
        let configuration = format!(
            "daemon off; master_process off; pid {folder}/pid; error_log {folder}/log;\n\
             events {{}}\nhttp {{ access_log off;\n{paths}{blocks}}}\n",
            folder = folder.display()
        );
        let configuration = File::new(&format!("{name}.conf"), configuration);
        let child = start(
            Command::new("nginx").arg("-c").arg(configuration.path()),
            port,
        )
        .await;
        NginxProcess {
            _child: child,
            _configuration: configuration,
            folder,
        }
    }
}

/// nginx in front of a server, by the guide's example.
pub struct Nginx {
    _process: NginxProcess,
    _files: [File; 2],
    pub address: SocketAddr,
    pub authority: Authority,
}

impl Nginx {
    /// Starts nginx in front of one server, or of a server and its successor.
    pub async fn start(name: &str, backends: &[SocketAddr]) -> Nginx {
        let [_, _, successor] = nginx_configurations();
        Nginx::before(name, successor, backends).await
    }

    /// Starts nginx in front of two nodes of a cluster.
    pub async fn start_before_nodes(name: &str, nodes: [SocketAddr; 2]) -> Nginx {
        let [_, upstream, _] = nginx_configurations();
        Nginx::before(name, upstream, &nodes).await
    }

    /// In front of one server, or of two that stand in this part of the guide.
    async fn before(name: &str, upstream: &str, backends: &[SocketAddr]) -> Nginx {
        let port = free_port();
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let authority = Authority::new();
        let (cert, key) = authority.issue("rooms.test");
        let cert = File::new(&format!("{name}.cert"), cert);
        let key = File::new(&format!("{name}.key"), key);
        let [server, ..] = nginx_configurations();
        let server = change(
            server.into(),
            &[
                ("listen 443 ssl", format!("listen {address} ssl")),
                ("rooms.example.org", "localhost".into()),
                ("/etc/ssl/rooms.pem", cert.path().display().to_string()),
                ("/etc/ssl/rooms.key", key.path().display().to_string()),
            ],
        );
        let one = "proxy_pass http://127.0.0.1:8080;";
        let server = match backends {
            [only] => change(server, &[(one, format!("proxy_pass http://{only};"))]),
            backends => {
                let (upstream, location) = upstream.split_once("\n\n").unwrap();
                let ports = [
                    ("127.0.0.1:8080", backends[0]),
                    ("127.0.0.1:8081", backends[1]),
                ];
                let ports = ports.map(|(port, backend)| (port, backend.to_string()));
                change(upstream.into(), &ports) + &change(server, &[(one, location.into())])
            }
        };
        Nginx {
            _process: NginxProcess::start(name, port, &server).await,
            _files: [cert, key],
            address,
            authority,
        }
    }

    /// Joins a room through nginx, as [`Nginx::connect`] does, and learns the session's id.
    pub async fn join(&self, room: &str, claim: &str) -> Result<Client<TlsStream<TcpStream>>, u16> {
        let mut client = self.connect(room, claim).await?;
        client.id = client.hello().await["receiver"].as_str().unwrap().into();
        Ok(client)
    }

    /// Connects to a room through nginx, from the address 127.0.0.2 and with a forged `X-Forwarded-For` if
    /// `claim` is not empty. The error is the status of the answer.
    async fn connect(&self, room: &str, claim: &str) -> Result<Client<TlsStream<TcpStream>>, u16> {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(([127, 0, 0, 2], 0).into()).unwrap();
        let stream = socket.connect(self.address).await.unwrap();
        let connector = self.authority.connector(&[&TLS12, &TLS13]);
        let stream = tls::shake_hands(&connector, stream).await;
        let url = format!("wss://localhost/room/{room}");
        let mut request = url.into_client_request().unwrap();
        if !claim.is_empty() {
            let value = claim.parse().unwrap();
            request.headers_mut().insert("X-Forwarded-For", value);
        }
        let upgrade = tokio_tungstenite::client_async(request, stream.unwrap());
        match within_deadline("the upgrade", upgrade).await {
            Ok((socket, _)) => Ok(Client::over(socket)),
            Err(tungstenite::Error::Http(response)) => Err(response.status().as_u16()),
            Err(error) => panic!("{error}"),
        }
    }
}

#[tokio::test]
#[ignore = "needs nginx: tests/run starts this test"]
async fn behind_nginx_sessions_have_their_own_client_addresses() {
    let server = TestServer::with(|config| {
        config.admin.listen = Some(([127, 0, 0, 1], 0).into());
        config.serving.trust_proxy = vec!["127.0.0.1/32".parse().unwrap()];
        config.limits.max_address_sessions = std::num::NonZeroU32::new(1);
    })
    .await;
    let nginx = Nginx::start("forward", &[server.address]).await;
    let mut alice = nginx.join("tea", "").await.unwrap();
    let room = operator(&server, "GET", "/rooms/tea", "").await.json();
    assert_eq!(room["sessions"][0]["address"], "127.0.0.2");
    // A forged address is to the left of the address that nginx adds.
    for claim in [
        "203.0.113.9",
        "127.0.0.1",
        "203.0.113.9, 127.0.0.1",
        "nonsense",
    ] {
        assert_eq!(nginx.join("tea", claim).await.err(), Some(429), "{claim}");
    }
    alice.expect_quiet().await;
    alice.leave().await;
    within_deadline("a free slot", async {
        while nginx.join("tea", "203.0.113.9").await.is_err() {}
    })
    .await;
}

#[tokio::test]
#[ignore = "needs nginx: tests/run starts this test"]
async fn behind_nginx_a_restart_loses_no_message() {
    let admin = |config: &mut Config| config.admin.listen = Some(([127, 0, 0, 1], 0).into());
    let mut old = TestServer::with(admin).await;
    let new = TestServer::with(admin).await;
    let nginx = Nginx::start("restart", &[old.address, new.address]).await;
    let mut alice = nginx.join("tea", "").await.unwrap();
    let token = alice.ask_for_resume_token().await;
    let mut bob = nginx.join("tea", "").await.unwrap();
    alice.expect_new(&bob.id).await;

    operator(&old, "POST", "/drain", "").await;
    // nginx leads new clients to the new server; the sessions of the old server notice nothing.
    let carol = nginx.join("tea", "").await.unwrap();
    assert_eq!((old.anteroom.sessions(), new.anteroom.sessions()), (2, 1));
    // A client that loses its connection returns to the old server, which has its session, and misses no
    // message.
    let id = alice.id.clone();
    drop(alice);
    old.expect_suspended(1).await;
    for number in 0..100 {
        let message = json!({"type": "x", "receiver": id, "data": number, "ref": number});
        bob.send(message).await;
        assert_eq!(bob.next().await["type"], "ack");
    }
    // Alice has received the answers to two `hello`s, and a `new`.
    let resume = format!("tea?resume={token}&received=3");
    let mut alice = nginx.connect(&resume, "").await.unwrap();
    assert_eq!(alice.next().await["type"], "resumed");
    for number in 0..100 {
        assert_eq!(alice.next().await["data"], number);
    }
    // Once its sessions have left, the old server can stop.
    alice.leave().await;
    bob.leave().await;
    eventually("the leaves", || old.anteroom.sessions() == 0).await;
    old.stop();
    old.stopped().await;
    let mut dave = nginx.join("tea", "").await.unwrap();
    let peers = dave.hello().await["data"]["peers"].clone();
    assert_eq!(peers, json!([{"id": carol.id, "data": null}]));
}

#[tokio::test]
#[ignore = "needs nginx, and takes eighty seconds: tests/run starts this test"]
async fn behind_nginx_an_idle_session_outlives_the_read_timeout() {
    let server = TestServer::with(|config| config.liveness.ping_seconds = 20).await;
    let nginx = Nginx::start("idle", &[server.address]).await;
    let mut alice = nginx.join("tea", "").await.unwrap();
    // nginx closes a backend's connection after 60 silent seconds; by default, the server sends a ping every 20.
    let begun = std::time::Instant::now();
    while begun.elapsed() < Duration::from_secs(65) {
        let frame = alice.next_frame().await.unwrap();
        assert!(frame.is_ping(), "{frame:?}");
    }
    alice.expect_quiet().await;
    alice.leave().await;
}

/// Starts Prometheus with this configuration and folder.
async fn start_prometheus(configuration: &File, folder: &Path, port: u16) -> Child {
    start(
        Command::new("prometheus")
            .arg(format!("--config.file={}", configuration.path().display()))
            .arg(format!("--storage.tsdb.path={}", folder.display()))
            .arg(format!("--web.listen-address=127.0.0.1:{port}")),
        port,
    )
    .await
}

/// The queries of the dashboard for Grafana, each with what names its lines, and with Grafana's variables replaced.
fn dashboard_queries(dashboard: &Value) -> Vec<(String, &str)> {
    let panels = dashboard["panels"].as_array().unwrap().iter();
    let targets = panels.filter_map(|panel| panel["targets"].as_array());
    let queries = targets.flatten().map(|target| {
        let query = target["expr"].as_str().unwrap();
        let query = query
            .replace("$__rate_interval", "4s")
            .replace("$job", ".*")
            .replace("$instance", ".*");
        assert!(!query.contains('$'), "{query}");
        (query, target["legendFormat"].as_str().unwrap())
    });
    queries.collect()
}

#[tokio::test]
#[ignore = "needs Prometheus and NATS: tests/run starts this test"]
async fn the_dashboard_shows_every_metric_and_each_of_its_queries_has_a_result() {
    let nats = Nats::start().await;
    let server = TestServer::with(|config| {
        config.admin.listen = Some(([127, 0, 0, 1], 0).into());
        config.cluster.servers = vec![nats.url().parse().unwrap()];
        config.turn.listen = Some(([127, 0, 0, 1], 0).into());
        config.turn.addresses = vec![[127, 0, 0, 1].into()];
    })
    .await;
    let dashboard = std::fs::read_to_string("static/admin/grafana.json").unwrap();
    let metrics = server.anteroom.metrics();
    for family in metrics
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE "))
    {
        let (name, _) = family.split_once(' ').unwrap();
        assert!(dashboard.contains(name), "no panel shows {name}");
    }
    let dashboard: Value = serde_json::from_str(&dashboard).unwrap();
    let queries = dashboard_queries(&dashboard);
    assert!(queries.len() > 40);

    let port = free_port();
    let folder = Folder::new("dashboard");
    let configuration = File::new(
        "dashboard.yml",
        format!(
            "global: {{ scrape_interval: 1s }}\nscrape_configs:\n  - job_name: anteroom\n    static_configs:\n      \
             - targets: [\"{}\"]\n",
            server.admin.unwrap()
        ),
    );
    let _prometheus = start_prometheus(&configuration, &folder.file("data"), port).await;
    let url = format!("http://127.0.0.1:{port}");
    for (query, legend) in queries {
        let mut ticks = interval(Duration::from_millis(200));
        // A rate is there after two scrapes.
        let series = within_deadline(&query, async {
            loop {
                let mut promtool = Command::new("promtool");
                promtool.args(["query", "instant", "--format=json", &url, &query]);
                let output = run(&mut promtool).await;
                let stderr = String::from_utf8_lossy(&output.stderr);
                assert!(output.status.success(), "{query}: {stderr}");
                let series: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
                if !series.is_empty() {
                    break series;
                }
                ticks.tick().await;
            }
        })
        .await;
        for label in legend.split("{{").skip(1) {
            let (label, _) = label.split_once("}}").unwrap();
            for one in &series {
                assert!(one["metric"][label].is_string(), "{query}: {label}: {one}");
            }
        }
    }
}

#[tokio::test]
#[ignore = "needs Prometheus: tests/run starts this test"]
async fn prometheus_scrapes_the_metrics_and_promtool_finds_no_error_in_them() {
    let server =
        TestServer::with(|config| config.admin.listen = Some(([127, 0, 0, 1], 0).into())).await;
    let mut client = Client::join(&server, "tea").await;
    client.send_text("nonsense").await;
    client.expect_error("bad_message").await;

    // The linter knows only the older text format, in which a counter has the name of its samples.
    let metrics = server.anteroom.metrics();
    let counters: Vec<&str> = metrics
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.strip_suffix(" counter"))
        .collect();
    let older = metrics
        .lines()
        .filter(|line| !line.starts_with("# UNIT ") && *line != "# EOF")
        .map(|line| {
            let mut words: Vec<String> = line.split(' ').map(str::to_owned).collect();
            if words[0] == "#" && counters.contains(&&*words[2]) {
                words[2] += "_total";
            }
            if words[0] == "#" && words[2] == "anteroom_build" {
                words[2] += "_info";
            }
            words.join(" ").replace(" info", " gauge") + "\n"
        });
    let older = File::new("metrics", older.collect::<String>());
    let promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(std::fs::File::open(older.path()).unwrap())
        .kill_on_drop(true)
        .output();
    let checked = within_deadline("promtool", promtool)
        .await
        .expect("see tests/run");
    let stderr = String::from_utf8_lossy(&checked.stderr).into_owned();
    assert!(checked.status.success() && stderr.is_empty(), "{stderr}");

    // Prometheus itself reads the metrics as OpenMetrics.
    let port = free_port();
    let folder = std::env::temp_dir().join(format!("anteroom-prometheus-{}", std::process::id()));
    let example = blocks(OPERATING, "yaml").next().unwrap();
    assert!(example.contains("127.0.0.1:9090"));
    let example = example.replace("127.0.0.1:9090", &server.admin.unwrap().to_string());
    let global = "global: { scrape_interval: 1s }\n";
    let configuration = File::new("prometheus.yml", format!("{global}{example}"));
    let mut prometheus = start_prometheus(&configuration, &folder, port).await;
    let url = format!("http://127.0.0.1:{port}");
    let query = async |query: &str| {
        let output = run(Command::new("promtool").args(["query", "instant", &url, query])).await;
        String::from_utf8(output.stdout).unwrap()
    };
    let mut ticks = interval(Duration::from_millis(100));
    within_deadline("a scrape", async {
        while !query("anteroom_sessions").await.contains(" => 1 ") {
            ticks.tick().await;
        }
    })
    .await;
    assert!(query("up").await.contains(" => 1 "));
    assert!(
        query("anteroom_errors_total{code=\"bad_message\"}")
            .await
            .contains(" => 1 ")
    );
    assert!(query("anteroom_build_info").await.contains("version="));
    prometheus.kill().await.unwrap();
    std::fs::remove_dir_all(folder).unwrap();
}
