//! Sessions that outlive their server (PROTOCOL.md, section 8, "Restarts").

use std::{fs, num::NonZeroU32, path::PathBuf, process::Stdio};

use anteroom::{Config, Server};
use serde_json::{Value, json};
use tokio::process::Command;

#[cfg(feature = "cli")]
use crate::support::Program;
use crate::{
    proxy::{Fate, Proxy},
    resuming::{Crew, reconnect},
    shutdown::delay,
    support::{Client, Folder, TestServer, operator, within_deadline},
};
#[cfg(all(feature = "cli", feature = "tls", feature = "tokens"))]
use crate::{
    support::File,
    tokens::{SECRET, sign, with_secret},
};

/// The sessions file of a test.
fn file(folder: &Folder) -> PathBuf {
    folder.file("sessions")
}

/// Starts a server that keeps its sessions in a file of this folder.
async fn start(folder: &Folder) -> TestServer {
    start_with(folder, |_| {}).await
}

async fn start_with(folder: &Folder, change: impl FnOnce(&mut Config)) -> TestServer {
    TestServer::with(|config| {
        config.stopping.sessions_file = Some(file(folder));
        change(config);
    })
    .await
}

/// Stops a server whose clients are gone or close their side.
async fn stop(mut server: TestServer) {
    server.stop();
    server.stopped().await;
}

/// A client that joins the room `tea` and asks for a resume token; returns both.
async fn resumable(server: &TestServer) -> (Client, String) {
    let mut client = Client::join(server, "tea").await;
    let token = client.ask_for_resume_token().await;
    (client, token)
}

/// Loses a connection, and waits until `suspended` sessions are suspended.
async fn suspend(server: &TestServer, client: Client, suspended: u64) -> String {
    let id = client.id.clone();
    drop(client.into_raw());
    server.expect_suspended(suspended).await;
    id
}

/// The messages up to the Close frame, which must be 1012. Closes this side.
async fn read_to_restart(mut client: Client) -> Vec<Value> {
    let mut messages = Vec::new();
    loop {
        match client.next_or_close().await {
            Ok(message) => messages.push(message),
            Err(code) => {
                assert_eq!(code, 1012);
                return messages;
            }
        }
    }
}

fn ids(peers: &Value) -> Vec<&str> {
    let peers = peers.as_array().unwrap().iter();
    peers.map(|peer| peer["id"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn the_state_of_a_session_outlives_a_restart() {
    let folder = Folder::new("state");
    let server = start(&folder).await;
    let (mut alice, token) = resumable(&server).await;
    alice.set_state(json!({"name": "Alice\n"})).await;
    let id = suspend(&server, alice, 1).await;
    stop(server).await;
    let server = start(&folder).await;
    let mut bob = Client::join(&server, "tea").await;
    assert_eq!(
        bob.states().await,
        [(id.clone(), json!({"name": "Alice\n"}))]
    );
    // Two `hello`s and a receipt were received.
    let mut alice = reconnect(&server, "tea", &token, 3).await;
    alice.expect_resumed(&id, 3).await;
    alice.expect_new(&bob.id).await;
    alice.set_state(json!(2)).await;
    bob.expect_state(&id, json!(2)).await;
}

#[tokio::test]
async fn a_session_outlives_a_restart_and_the_room_notices_nothing() {
    let folder = Folder::new("outlives");
    let mut server = start(&folder).await;
    let (mut bob, bobs_token) = resumable(&server).await;
    let (mut alice, alices_token) = resumable(&server).await;
    bob.expect_new(&alice.id).await;
    let mut carol = Client::join(&server, "tea").await;
    alice.expect_new(&carol.id).await;
    bob.expect_new(&carol.id).await;
    bob.note(&alice.id.clone(), 1).await;
    alice.expect_note(1).await;
    let (bob_id, carol_id) = (bob.id.clone(), carol.id.clone());
    let alice_id = suspend(&server, alice, 1).await;
    bob.note(&alice_id, 2).await;
    carol.note(&alice_id, 3).await;

    server.stop();
    assert!(read_to_restart(carol).await.is_empty());
    let before_restart = read_to_restart(bob).await;
    server.stopped().await;
    let metadata = fs::metadata(file(&folder)).unwrap();
    #[cfg(unix)]
    assert_eq!(
        std::os::unix::fs::PermissionsExt::mode(&metadata.permissions()) & 0o777,
        0o600
    );
    let content = fs::read_to_string(file(&folder)).unwrap();
    assert!(!content.contains(&alices_token) && !content.contains(&bobs_token));

    let server = start(&folder).await;
    assert!(!file(&folder).exists());
    server.expect_suspended(2).await;
    let mut dave = Client::join(&server, "tea").await;
    let hello = dave.hello().await;
    assert_eq!(ids(&hello["data"]["peers"]), [&bob_id, &alice_id]);
    // Alice had received two `hello`s, Carol's `new` and a note, and has sent two requests.
    let mut alice = reconnect(&server, "tea", &alices_token, 4).await;
    alice.expect_resumed(&alice_id, 2).await;
    alice.expect_note(2).await;
    alice.expect_note(3).await;
    alice.expect_left(&carol_id).await;
    alice.expect_new(&dave.id).await;
    // Bob had received two `hello`s, two `new`s and two receipts.
    let received = 6 + before_restart.len();
    let mut bob = reconnect(&server, "tea", &bobs_token, received).await;
    bob.expect_resumed(&bob_id, 4).await;
    match &before_restart[..] {
        [] => bob.expect_left(&carol_id).await,
        left => assert_eq!(left[0]["sender"], carol_id),
    }
    bob.expect_new(&dave.id).await;
    bob.note(&alice_id, 4).await;
    alice.expect_note(4).await;
    assert_eq!(alice.ask_for_resume_token().await, alices_token);
    for client in [&mut alice, &mut bob, &mut dave] {
        client.expect_quiet().await;
    }

    // A session that has been kept once is kept again.
    stop_with(server, [alice, bob, dave]).await;
    let server = start(&folder).await;
    server.expect_suspended(2).await;
}

/// Stops a server once these clients have got the Close frame.
async fn stop_with<const N: usize>(mut server: TestServer, clients: [Client; N]) {
    server.stop();
    for client in clients {
        read_to_restart(client).await;
    }
    server.stopped().await;
}

#[tokio::test]
async fn clients_of_kept_sessions_are_asked_back_in_the_first_half_of_the_time() {
    for (drain_seconds, resume_seconds, longest) in [(8, 30, 4000), (60, 8, 4000)] {
        let folder = Folder::new(&format!("asked-back-{drain_seconds}"));
        let mut server = start_with(&folder, |config| {
            config.stopping.drain_seconds = drain_seconds;
            config.liveness.resume_seconds = resume_seconds;
        })
        .await;
        let mut clients = Vec::new();
        for _ in 0..4 {
            clients.push(resumable(&server).await.0);
        }
        server.stop();
        let mut delays = Vec::new();
        for client in &mut clients {
            let (code, reason) = client.expect_close().await;
            assert_eq!(code, 1012);
            delays.push(delay(&reason));
        }
        delays.sort_unstable();
        let quarter = longest / 4;
        assert_eq!(delays, [0, quarter, 2 * quarter, 3 * quarter]);
        drop(clients);
        server.stopped().await;
    }
}

#[tokio::test]
async fn a_session_that_does_not_come_back_after_a_restart_leaves() {
    let folder = Folder::new("does-not-come-back");
    let server = start(&folder).await;
    let (bob, token) = resumable(&server).await;
    let (alice, _) = resumable(&server).await;
    let (alice, bob) = (
        suspend(&server, alice, 1).await,
        suspend(&server, bob, 2).await,
    );
    stop(server).await;
    let server = start_with(&folder, |config| config.liveness.resume_seconds = 1).await;
    let mut observer = Client::join(&server, "tea").await;
    let mut bobs = reconnect(&server, "tea", &token, 3).await;
    bobs.expect_resumed(&bob, 2).await;
    bobs.expect_new(&observer.id).await;
    bobs.expect_left(&alice).await;
    observer.expect_left(&alice).await;
}

#[tokio::test]
async fn a_restored_session_is_only_its_owners() {
    let folder = Folder::new("owners");
    let server = start(&folder).await;
    let (alice, token) = resumable(&server).await;
    let alice = suspend(&server, alice, 1).await;
    stop(server).await;
    let server = start(&folder).await;
    for (room, token, received) in [
        ("coffee", &*token, 2),
        ("tea", "AAAAAAAAAAAAAAAAAAAAAA", 2),
        ("tea", &token, 100),
        ("tea", &token, 0),
    ] {
        let mut other = reconnect(&server, room, token, received).await;
        other.expect_resume_failed().await;
        other.leave().await;
    }
    let mut back = reconnect(&server, "tea", &token, 2).await;
    back.expect_resumed(&alice, 2).await;
}

#[tokio::test]
async fn a_lower_limit_after_a_restart_ends_no_session() {
    let folder = Folder::new("lower-limit");
    let one = NonZeroU32::new(1);
    let server = start(&folder).await;
    let (alice, alices) = resumable(&server).await;
    let (mut bob, bobs) = resumable(&server).await;
    let alice = suspend(&server, alice, 1).await;
    // Alice misses more than an outbox holds after the restart.
    for number in 0..40 {
        let data = json!([number, "x".repeat(2500)]);
        bob.send(json!({"type": "note", "receiver": alice, "data": data}))
            .await;
    }
    bob.expect_quiet().await;
    let bob = suspend(&server, bob, 2).await;
    stop(server).await;
    let server = start_with(&folder, |config| {
        config.limits.outbox_bytes = 67_000;
        config.limits.max_sessions = Some(1);
        config.limits.max_room_sessions = one;
        config.limits.max_address_sessions = one;
    })
    .await;
    let mut first = reconnect(&server, "tea", &alices, 3).await;
    first.expect_resumed(&alice, 2).await;
    for number in 0..40 {
        assert_eq!(first.next().await["data"][0], number);
    }
    let mut second = reconnect(&server, "tea", &bobs, 3).await;
    second.expect_resumed(&bob, 43).await;
    first.leave().await;
    second.expect_left(&alice).await;
}

#[cfg(all(feature = "cli", feature = "tls", feature = "tokens"))]
#[tokio::test]
async fn a_session_from_before_the_server_asked_for_tokens_has_the_permissions_of_its_token() {
    let folder = Folder::new("tokens-on");
    let secret = File::new("tokens-on-secret", SECRET);
    let server = start(&folder).await;
    let (alice, resume) = resumable(&server).await;
    let alice = suspend(&server, alice, 1).await;
    stop(server).await;
    let server = start_with(&folder, |config| with_secret(config, &secret)).await;
    let token = sign(json!({"send": false}));
    let mut listener = reconnect(&server, "tea", &resume, format!("2&token={token}")).await;
    listener.expect_resumed(&alice, 2).await;
    listener.id.clone_from(&alice);
    listener.send(json!({"type": "x", "receiver": "all"})).await;
    listener.expect_error("not_allowed").await;
}

#[cfg(all(feature = "cli", feature = "tls", feature = "tokens"))]
#[tokio::test]
async fn a_session_goes_on_when_the_server_asks_for_no_tokens_any_more() {
    let folder = Folder::new("tokens-off");
    let secret = File::new("tokens-off-secret", SECRET);
    let server = start_with(&folder, |config| with_secret(config, &secret)).await;
    let token = sign(json!({"sub": "alice", "send": false}));
    let mut alice = Client::connect(server.address, &format!("/room/tea?token={token}")).await;
    let resume = alice.ask_for_resume_token().await;
    let alice = suspend(&server, alice, 1).await;
    stop(server).await;
    let server = start(&folder).await;
    let mut back = reconnect(&server, "tea", &resume, 1).await;
    back.expect_resumed(&alice, 1).await;
    back.id.clone_from(&alice);
    back.send(json!({"type": "x", "receiver": "all"})).await;
    back.expect_error("empty_room").await;
}

#[tokio::test]
async fn a_session_that_an_operator_closes_while_the_server_stops_is_not_kept() {
    let folder = Folder::new("operator");
    let mut server = start_with(&folder, |config| {
        config.admin.listen = Some(([127, 0, 0, 1], 0).into());
    })
    .await;
    let (alice, _) = resumable(&server).await;
    let (bob, token) = resumable(&server).await;
    let (alice, bob) = (
        suspend(&server, alice, 1).await,
        suspend(&server, bob, 2).await,
    );
    // This one has not closed its side: the server waits for it.
    let unclosed = Client::join(&server, "coffee").await.into_raw();
    server.stop();
    server.expect_suspended(0).await;
    let path = format!("/rooms/tea/sessions/{alice}");
    assert_eq!(operator(&server, "DELETE", &path, "").await.status, 204);
    drop(unclosed);
    server.stopped().await;
    let server = start(&folder).await;
    assert_eq!(server.anteroom.sessions(), 1);
    let mut back = reconnect(&server, "tea", &token, 2).await;
    back.expect_resumed(&bob, 2).await;
    back.expect_left(&alice).await;
}

#[tokio::test]
async fn a_file_that_cannot_be_used_is_moved_aside() {
    let folder = Folder::new("moved-aside");
    let server = start(&folder).await;
    let (alice, token) = resumable(&server).await;
    suspend(&server, alice, 1).await;
    stop(server).await;
    let good = fs::read(file(&folder)).unwrap();
    let aside = folder.file("sessions.refused");
    let mut damaged = good.clone();
    damaged[good.len() / 2] ^= 1;
    for content in [
        &damaged[..],
        &good[..good.len() - 1],
        b"",
        b"{}",
        &[0; 100_000],
    ] {
        fs::write(file(&folder), content).unwrap();
        let server = start(&folder).await;
        assert_eq!(server.anteroom.sessions(), 0);
        assert_eq!(fs::read(&aside).unwrap(), content);
        assert!(!file(&folder).exists());
        let mut back = reconnect(&server, "tea", &token, 2).await;
        back.expect_resume_failed().await;
        drop(back);
        stop(server).await;
    }
}

#[tokio::test]
async fn a_server_that_is_shut_down_twice_saves_its_sessions_once() {
    let folder = Folder::new("shut-down-twice");
    let server = start(&folder).await;
    let (alice, token) = resumable(&server).await;
    let alice = suspend(&server, alice, 1).await;
    let anteroom = server.anteroom.clone();
    stop(server).await;
    within_deadline("the second shutdown", anteroom.shut_down()).await;
    let server = start(&folder).await;
    let mut back = reconnect(&server, "tea", &token, 2).await;
    back.expect_resumed(&alice, 2).await;
}

/// The error of a server that starts with this sessions file. It must name the file.
fn start_error(path: PathBuf) -> String {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let _guard = runtime.enter();
    let mut config = Config::default();
    config.serving.listen = ([127, 0, 0, 1], 0).into();
    config.stopping.sessions_file = Some(path.clone());
    let error = Server::bind(config).err().unwrap().to_string();
    assert!(error.contains(path.to_str().unwrap()), "{error}");
    error
}

#[test]
fn a_sessions_file_that_cannot_be_written_is_an_error_at_the_start() {
    let folder = Folder::new("unwritable");
    fs::create_dir(file(&folder)).unwrap();
    start_error(folder.file("missing/sessions"));
    start_error(file(&folder));
}

#[cfg(unix)]
#[test]
fn a_sessions_file_that_is_a_device_is_an_error_at_the_start() {
    let folder = Folder::new("device");
    // A read of this device never ends.
    std::os::unix::fs::symlink("/dev/zero", file(&folder)).unwrap();
    let error = start_error(file(&folder));
    assert!(error.ends_with("it is not a regular file"), "{error}");
}

#[cfg(feature = "cli")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_message_is_lost_over_restarts_of_the_program() {
    let folder = Folder::new("program");
    let start = async |listen: String| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_anteroom"));
        command
            .args(["--listen", &listen, "--drain-seconds", "10"])
            .arg("--sessions-file")
            .arg(file(&folder))
            .stderr(Stdio::null());
        Program::run(command).await
    };
    let mut program = start("127.0.0.1:0".to_owned()).await;
    let address = program.address;
    let proxy = Proxy::start(address, || Fate::NONE).await;
    let crew = Crew::begin(&proxy, "tea", 8).await;
    for _ in 0..3 {
        crew.expect_progress().await;
        proxy.wait(true);
        program.signal("TERM").await;
        assert_eq!(program.exit_code().await, Some(0));
        program = start(address.to_string()).await;
        proxy.wait(false);
    }
    crew.end().await;
}
