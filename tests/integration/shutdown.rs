//! Draining and stopping, in a process and as a program.

use std::sync::Arc;

use futures_util::future::join_all;
use serde_json::json;
use tokio::{net::TcpStream, sync::Semaphore};

#[cfg(feature = "cli")]
use crate::support::Program;
use crate::support::{Client, Raw, TestServer, handshake, within_deadline};

/// The N of `retry in N ms`.
pub fn delay(reason: &str) -> u64 {
    let (_, rest) = reason.split_once("retry in ").unwrap();
    rest.strip_suffix(" ms").unwrap().parse().unwrap()
}

#[tokio::test]
async fn each_session_gets_its_own_reconnect_delay_within_the_drain_time() {
    let mut server = TestServer::with(|config| config.stopping.drain_seconds = 8).await;
    let mut clients = Vec::new();
    for number in 0..40 {
        clients.push(Client::join(&server, &format!("room{}", number % 7)).await);
    }
    server.stop();
    let closes = join_all(clients.iter_mut().map(|client| client.expect_close())).await;
    let mut delays: Vec<u64> = closes
        .iter()
        .map(|(code, reason)| {
            assert_eq!(*code, 1012);
            delay(reason)
        })
        .collect();
    delays.sort_unstable();
    let expected: Vec<u64> = (0..40).map(|index| index * 200).collect();
    assert_eq!(delays, expected);
    // The clients close their side (reading on flushes the answer to the Close frame), and the server
    // stops.
    drop(clients);
    let (address, anteroom) = (server.address, server.anteroom.clone());
    server.stopped().await;
    assert_eq!((anteroom.sessions(), anteroom.rooms()), (0, 0));
    assert!(TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn messages_sent_before_the_stop_arrive_before_the_close() {
    let mut server = TestServer::start().await;
    let mut alice = Client::join(&server, "tea").await;
    let mut bob = Client::join(&server, "tea").await;
    alice.expect_new(&bob.id).await;
    for number in 0..100 {
        bob.send(json!({"type": "x", "receiver": "all", "data": number}))
            .await;
    }
    bob.expect_quiet().await;
    server.stop();
    for number in 0..100 {
        assert_eq!(alice.next().await["data"], number);
    }
    // Bob's `close` may arrive before the Close frame.
    assert_eq!(alice.expect_close().await.0, 1012);
}

#[tokio::test]
async fn a_stopping_server_waits_no_longer_than_the_drain_time() {
    let mut server = TestServer::with(|config| {
        config.stopping.drain_seconds = 1;
        // Longer than this test: the handshake timeout must not be what ends the wait for a partial
        // request.
        config.limits.handshake_seconds = 600;
    })
    .await;
    // One client never closes its side, one has sent half of its headers, one sends nothing.
    let unclosed = Raw::join(&server, "tea").await;
    let mut half = Raw::connect(&server).await;
    half.write(&handshake("/room")[..20]).await;
    let idle = Raw::connect(&server).await;
    server.stop();
    server.stopped().await;
    drop((unclosed, half, idle));
}

#[tokio::test]
async fn a_drain_time_of_zero_still_sends_the_close() {
    let mut server = TestServer::with(|config| config.stopping.drain_seconds = 0).await;
    let mut raw = Raw::join(&server, "tea").await;
    server.stop();
    server.stopped().await;
    let (code, reason) = raw.read_close().await;
    assert_eq!((code, delay(&reason)), (1012, 0));
}

#[cfg(feature = "cli")]
#[tokio::test]
async fn sigterm_and_ctrl_c_drain_and_exit_with_0() {
    for signal in ["TERM", "INT"] {
        let mut program = Program::start([]).await;
        let mut client = Client::connect(program.address, "/room").await;
        client.expect_quiet().await;
        program.signal(signal).await;
        let (code, reason) = client.expect_close().await;
        assert_eq!(code, 1012, "{reason}");
        drop(client);
        assert_eq!(program.exit_code().await, Some(0));
    }
}

#[cfg(feature = "cli")]
#[tokio::test]
async fn sigterm_under_load_closes_every_session_and_exits_with_0() {
    const CLIENTS: u32 = 100;
    let mut program = Program::start(["--drain-seconds", "10"]).await;
    let address = program.address;
    let busy = Arc::new(Semaphore::new(0));
    let clients: Vec<_> = (0..CLIENTS)
        .map(|number| {
            let busy = busy.clone();
            tokio::spawn(async move {
                let room = format!("/room/{}", number % 10);
                let mut client = Client::connect(address, &room).await;
                client
                    .send(json!({"type": "hello", "receiver": "server"}))
                    .await;
                // From then on the client always has one message to itself in flight, until the server
                // stops.
                let mut round = 0;
                loop {
                    match client.next_or_close().await {
                        Ok(message) if message["type"] == "new" => continue,
                        Ok(message) if message["type"] == "close" => continue,
                        Ok(message) => client.id = message["receiver"].as_str().unwrap().into(),
                        Err(code) => return code,
                    }
                    round += 1;
                    if round == 20 {
                        busy.add_permits(1);
                    }
                    let data = "d".repeat(1000);
                    let next = json!({"type": "x", "receiver": client.id, "data": data});
                    client.try_send(next).await;
                }
            })
        })
        .collect();
    let all = within_deadline("the load", busy.acquire_many(CLIENTS)).await;
    program.signal("TERM").await;
    for client in clients {
        assert_eq!(within_deadline("the close", client).await.unwrap(), 1012);
    }
    assert_eq!(program.exit_code().await, Some(0));
    drop(all);
}

#[cfg(feature = "cli")]
#[tokio::test]
async fn a_second_signal_exits_at_once() {
    let mut program = Program::start(["--drain-seconds", "3600"]).await;
    let mut client = Client::connect(program.address, "/room").await;
    client.expect_quiet().await;
    program.signal("TERM").await;
    // The client has received the Close frame, but does not close its side.
    assert_eq!(client.expect_close().await.0, 1012);
    let mut raw = client.into_raw();
    program.signal("TERM").await;
    assert_eq!(program.exit_code().await, Some(1));
    raw.read_to_end().await;
}
