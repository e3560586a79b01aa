//! The image and the manifests of the guide: that their parts fit together, and that servers started with their options
//! do what Kubernetes expects of them.

use std::{net::SocketAddr, process::Stdio, time::Instant};

use serde_json::{Value, json};
use tokio::{net::TcpStream, process::Command};
use tokio_tungstenite::{client_async, tungstenite::client::IntoClientRequest};

use crate::{
    cluster::Nats,
    guide::{CONTAINERS, blocks},
    support::{Client, File, Folder, Program, eventually_async, operator_at, within_deadline},
    tokens::{SECRET, sign},
};

/// How long a server may take to exit once its drain time is over, in seconds.
const EXIT_SECONDS: u64 = 5;

/// All YAML documents of the chapter.
fn documents() -> Vec<Value> {
    let documents = blocks(CONTAINERS, "yaml").flat_map(|block| block.split("\n---\n"));
    let parsed = documents.map(|document| serde_saphyr::from_str(document).unwrap());
    parsed.collect()
}

/// The only manifest of this kind.
fn manifest(kind: &str) -> Value {
    let mut found = documents()
        .into_iter()
        .filter(|document| document["kind"] == kind);
    let manifest = found.next().unwrap();
    assert_eq!(found.next(), None, "{kind}");
    manifest
}

/// The options of the Deployment's servers.
fn options() -> Vec<String> {
    let deployment = manifest("Deployment");
    let args = deployment["spec"]["template"]["spec"]["containers"][0]["args"].as_array();
    let args = args.unwrap().iter();
    args.map(|option| option.as_str().unwrap().to_owned())
        .collect()
}

/// The value of an option of the Deployment's servers.
fn option(name: &str) -> String {
    let prefix = format!("--{name}=");
    let options = options();
    let mut values = options
        .iter()
        .filter_map(|option| option.strip_prefix(&prefix));
    let value = values.next().unwrap_or_else(|| panic!("no --{name}"));
    value.to_owned()
}

/// The probe's path, after a check that its port has a name.
fn probe(container: &Value, name: &str) -> String {
    let request = &container[name]["httpGet"];
    assert_eq!(request["port"], "admin", "{name}");
    request["path"].as_str().unwrap().to_owned()
}

/// Starts a server as the Deployment does, on free ports of this machine. Returns the address of its admin API, too.
async fn start_pod(secrets: &Folder, nats: &str) -> (Program, SocketAddr) {
    std::fs::write(secrets.file("admin"), SECRET).unwrap();
    std::fs::write(secrets.file("tokens"), SECRET).unwrap();
    let folder = secrets.file("").display().to_string();
    let mut command = Command::new(env!("CARGO_BIN_EXE_anteroom"));
    for option in options() {
        let option = option
            .replace("0.0.0.0:8080", "127.0.0.1:0")
            .replace("0.0.0.0:9090", "127.0.0.1:0")
            .replace("/etc/anteroom/", &folder)
            .replace("nats://nats:4222", nats);
        command.arg(option);
    }
    command.stderr(Stdio::null());
    let mut pod = Program::run(command).await;
    let admin = pod.admin().await;
    (pod, admin)
}

/// The status of the answer to a probe.
async fn ask(admin: SocketAddr, path: &str) -> u16 {
    operator_at(admin, "GET", path, "", "").await.status
}

/// Connects as a page of the allowed origin does.
async fn connect(pod: &Program, query: &str) -> Client {
    let stream = TcpStream::connect(pod.address).await.unwrap();
    let token = sign(json!({}));
    let url = format!("ws://{}/room/tea?token={token}{query}", pod.address);
    let mut request = url.into_client_request().unwrap();
    let origin = option("allow-origin").parse().unwrap();
    request.headers_mut().insert("Origin", origin);
    let (socket, _) = within_deadline("the upgrade", client_async(request, stream))
        .await
        .unwrap();
    Client::over(socket)
}

#[test]
fn the_parts_of_the_manifests_fit_together() {
    let deployment = manifest("Deployment");
    let (spec, service, budget) = (
        &deployment["spec"],
        &manifest("Service")["spec"],
        &manifest("PodDisruptionBudget")["spec"],
    );
    let pod = &spec["template"]["spec"];
    let container = &pod["containers"][0];

    let labels = &spec["template"]["metadata"]["labels"];
    assert!(labels.is_object());
    for selector in [
        &spec["selector"]["matchLabels"],
        &service["selector"],
        &budget["selector"]["matchLabels"],
    ] {
        assert_eq!(selector, labels);
    }
    let replicas = spec["replicas"].as_u64().unwrap();
    assert!(budget["maxUnavailable"].as_u64().unwrap() < replicas);

    // The ports are those that the server listens on, and the names lead to them.
    let port = |name: &str| {
        let ports = container["ports"].as_array().unwrap();
        let port = ports.iter().find(|port| port["name"] == name).unwrap();
        port["containerPort"].as_u64().unwrap()
    };
    assert_eq!(option("listen"), format!("0.0.0.0:{}", port("rooms")));
    assert_eq!(option("admin"), format!("0.0.0.0:{}", port("admin")));
    assert_eq!(service["ports"][0]["targetPort"], "rooms");
    assert_eq!(probe(container, "readinessProbe"), "/ready");
    assert_eq!(probe(container, "livenessProbe"), "/health");

    // Kubernetes waits longer than the server needs.
    let sleep = container["lifecycle"]["preStop"]["sleep"]["seconds"].as_u64();
    let drain: u64 = option("drain-seconds").parse().unwrap();
    let grace = pod["terminationGracePeriodSeconds"].as_u64().unwrap();
    assert!(grace >= sleep.unwrap() + drain + EXIT_SECONDS, "{grace}");

    // The files are in the volume, and the user may read them.
    let folder = container["volumeMounts"][0]["mountPath"].as_str().unwrap();
    for file in ["admin-token-file", "token-key-file"] {
        assert!(option(file).starts_with(&format!("{folder}/")), "{file}");
    }
    let mount = &container["volumeMounts"][0]["name"];
    assert_eq!(mount, &pod["volumes"][0]["name"]);
    let user = pod["securityContext"]["runAsUser"].as_u64().unwrap();
    assert_eq!(pod["securityContext"]["fsGroup"], user);
    let file = blocks(CONTAINERS, "dockerfile").next().unwrap();
    assert!(file.contains(&format!("USER {user}:{user}\n")), "{file}");
    assert!(file.contains(&format!("ANTEROOM_LISTEN=0.0.0.0:{}\n", port("rooms"))));
}

#[test]
fn the_single_server_keeps_its_sessions_in_its_volume() {
    let spec = &manifest("StatefulSet")["spec"];
    assert_eq!(spec["replicas"], 1);
    let container = &spec["template"]["spec"]["containers"][0];
    let mount = &container["volumeMounts"][0];
    assert_eq!(
        mount["name"],
        spec["volumeClaimTemplates"][0]["metadata"]["name"]
    );
    let folder = mount["mountPath"].as_str().unwrap();
    let options = container["args"].as_array().unwrap();
    assert_eq!(options[0], format!("--sessions-file={folder}/sessions"));
    let folder = Folder::new("stateful-set");
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_anteroom"));
    for option in options {
        let option = option.as_str().unwrap();
        command.arg(option.replace("/var/lib/anteroom/", &folder.file("").display().to_string()));
    }
    // An address that is taken ends it once the options have been read.
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let output = command.args(["--listen", &address]).output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("cannot listen on"), "{error}");
}

#[tokio::test]
async fn without_nats_a_pod_is_alive_and_not_ready() {
    let secrets = Folder::new("pod-alone");
    let (mut pod, admin) = start_pod(&secrets, "nats://127.0.0.1:1").await;
    assert_eq!(ask(admin, "/health").await, 200);
    assert_eq!(ask(admin, "/ready").await, 503);
    assert_eq!(ask(admin, "/metrics").await, 401);
    pod.signal("TERM").await;
    assert_eq!(pod.exit_code().await, Some(0));
}

#[tokio::test]
#[ignore = "needs NATS: tests/run starts this test"]
async fn in_a_rolling_update_sessions_move_and_the_old_pod_exits() {
    let nats = Nats::start().await;
    let secrets = Folder::new("pods");
    let (mut old, old_admin) = start_pod(&secrets, &nats.url()).await;
    let (new, new_admin) = start_pod(&secrets, &nats.url()).await;
    for admin in [old_admin, new_admin] {
        eventually_async("readiness", async || ask(admin, "/ready").await == 200).await;
    }
    let mut alice = connect(&old, "").await;
    let token = alice.ask_for_resume_token().await;
    let mut bob = connect(&new, "").await;
    bob.hello().await;
    alice.expect_any_new().await;

    let stopped = Instant::now();
    old.signal("TERM").await;
    assert_eq!(alice.expect_close().await.0, 1012);
    // Kubernetes still sees that the program runs.
    assert_eq!(ask(old_admin, "/health").await, 200);
    drop(alice);
    let mut alice = connect(&new, &format!("&resume={token}&received=2")).await;
    assert_eq!(alice.next().await["type"], "resumed");
    assert_eq!(old.exit_code().await, Some(0));
    let drain: u64 = option("drain-seconds").parse().unwrap();
    assert!(stopped.elapsed().as_secs() < drain + EXIT_SECONDS);
    bob.send(json!({"type": "x", "receiver": "all", "data": 1}))
        .await;
    assert_eq!(alice.next().await["type"], "x");
}

#[tokio::test]
#[ignore = "needs Prometheus: tests/run starts this test"]
async fn promtool_finds_no_error_in_the_scrape_configuration() {
    let mut found = blocks(CONTAINERS, "yaml").filter(|block| block.contains("scrape_configs:"));
    let block = found.next().unwrap();
    let secret = File::new("scrape-secret", SECRET);
    let path = "/etc/prometheus/anteroom/admin";
    assert!(block.contains(path));
    // Debian builds Prometheus without its part for Kubernetes.
    let discovery = "kubernetes_sd_configs:\n      - role: pod\n        namespaces:\n          names: [default]\n";
    assert!(block.contains(discovery));
    let block = block
        .replace(path, &secret.path().display().to_string())
        .replace(
            discovery,
            "static_configs: [{ targets: ['127.0.0.1:9090'] }]\n",
        );
    let configuration = File::new("scrape.yml", block);
    let mut promtool = Command::new("promtool");
    promtool
        .args(["check", "config"])
        .arg(configuration.path())
        .kill_on_drop(true);
    let checked = within_deadline("promtool", promtool.output())
        .await
        .expect("see tests/run");
    let stderr = String::from_utf8_lossy(&checked.stderr);
    assert!(checked.status.success(), "{stderr}");
}
