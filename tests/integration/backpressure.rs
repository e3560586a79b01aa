//! Clients that read too slowly: they are closed, and do not delay others.

use std::{
    collections::HashMap,
    future::poll_fn,
    mem,
    task::Poll,
    time::{Duration, Instant},
};

use serde_json::json;
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
};
#[cfg(all(feature = "cli", feature = "cluster", feature = "tls"))]
use tokio_rustls::rustls::version::TLS13;
use tokio_tungstenite::client_async;

use crate::support::{
    Client, Raw, TestServer, eventually, handshake, hold_little, text, within_deadline,
};
#[cfg(all(feature = "cli", feature = "cluster", feature = "tls"))]
use crate::tls::{Authority, Files, shake_hands};

/// A message of some 50 KB to all.
fn large_message() -> serde_json::Value {
    json!({"type": "large", "receiver": "all", "data": "m".repeat(50_000)})
}

#[tokio::test]
async fn a_slow_reader_is_closed_and_delays_nobody() {
    let server = TestServer::with(|config| config.limits.outbox_bytes = 200_000).await;
    let mut alice = Client::join(&server, "tea").await;
    let mut bob = Client::join(&server, "tea").await;
    alice.expect_new(&bob.id).await;
    let stalled = Raw::join(&server, "tea").await;
    let id = alice.next().await["sender"].as_str().unwrap().to_owned();
    bob.expect_new(&id).await;

    // Bob receives everything in order. Once the kernel's and the server's buffers for the stalled client
    // are full, the server closes that client; the others go on.
    let mut sent = 0;
    let mut left = false;
    let mut after = 0;
    while after < 10 {
        alice.send(large_message()).await;
        sent += 1;
        after += u32::from(left);
        loop {
            let message = bob.next().await;
            match message["type"].as_str().unwrap() {
                "large" => break,
                "close" => {
                    assert_eq!(message["sender"], id.as_str());
                    left = true;
                }
                other => panic!("{other}"),
            }
        }
        assert!(sent < 2000, "100 MB did not fill the outbox");
    }
    alice.expect_left(&id).await;
    alice.expect_quiet().await;
    bob.expect_quiet().await;

    eventually("the end of its session", || server.anteroom.sessions() == 2).await;
    assert_eq!(server.count("anteroom_slow_readers_total"), 1);
    drop(stalled);
}

#[tokio::test]
async fn a_slow_reader_that_reads_again_in_time_gets_the_reason() {
    let server = TestServer::with(|config| config.limits.outbox_bytes = 200_000).await;
    let mut alice = Client::join(&server, "tea").await;
    let mut slow = Raw::join(&server, "tea").await;
    let id = alice.next().await["sender"].as_str().unwrap().to_owned();
    // The sender goes on until the slow client has left; only then does the slow client read.
    let mut unread = 0;
    loop {
        alice
            .send(json!({"type": "x", "receiver": id, "data": "m".repeat(50_000), "ref": 1}))
            .await;
        let answer = alice.next().await;
        match answer["type"].as_str().unwrap() {
            "ack" => unread += 1,
            "error" | "close" => break,
            other => panic!("{other}"),
        }
        assert!(unread < 2000, "100 MB did not fill the outbox");
    }
    let (code, reason) = slow.read_close().await;
    assert_eq!(
        (code, &*reason),
        (1013, "too slow: over 200000 bytes waited to be sent")
    );
    assert_eq!(slow.read_to_end().await, b"");
}

#[tokio::test]
async fn a_stalled_connection_is_reset_even_if_no_close_can_be_sent() {
    let server = TestServer::with(|config| config.limits.outbox_bytes = 200_000).await;
    let mut alice = Client::join(&server, "tea").await;
    let stalled = Raw::join(&server, "tea").await;
    alice.next().await;
    flood_until_close(&mut alice).await;
    expect_reset(&stalled.stream).await;
}

#[cfg(all(feature = "cli", feature = "cluster", feature = "tls"))]
#[tokio::test]
async fn a_stalled_tls_connection_is_reset() {
    let authority = Authority::new();
    let files = Files::new("stalled", authority.issue("stalled.test"));
    let server = TestServer::with(|config| {
        config.limits.outbox_bytes = 200_000;
        config.serving.tls_cert = Some(files.cert.path());
        config.serving.tls_key = Some(files.key.path());
    })
    .await;
    let connect = async || {
        let stream = TcpStream::connect(server.address).await.unwrap();
        let connector = authority.connector(&[&TLS13]);
        shake_hands(&connector, stream).await.unwrap()
    };
    let upgrade = client_async("wss://localhost/room/tea", connect().await);
    let mut alice = Client::over(within_deadline("the upgrade", upgrade).await.unwrap().0);
    alice.hello().await;
    let mut stalled = connect().await;
    let request = handshake("/room/tea");
    let joining = stalled.write_all(request.as_bytes());
    within_deadline("the handshake", joining).await.unwrap();
    alice.expect_any_new().await;
    flood_until_close(&mut alice).await;
    expect_reset(stalled.get_ref().0).await;
}

/// Broadcasts until the server closes a client that does not read.
async fn flood_until_close<S: AsyncRead + AsyncWrite + Unpin>(client: &mut Client<S>) {
    for _ in 0..2000 {
        client.send(large_message()).await;
        client
            .send(json!({"type": "ping", "receiver": "server"}))
            .await;
        if client.next().await["type"] == "close" {
            return;
        }
    }
    panic!("100 MB did not fill the outbox");
}

/// The server must reset the connection. The client has read nothing, so the Close frame cannot be sent;
/// the server waits 2 s for that.
async fn expect_reset(stalled: &TcpStream) {
    let left = Instant::now();
    let mut ticks = tokio::time::interval(Duration::from_millis(5));
    within_deadline("the reset", async {
        while stalled.take_error().unwrap().is_none() {
            ticks.tick().await;
        }
    })
    .await;
    let waited = left.elapsed();
    assert!(
        waited < Duration::from_secs(8),
        "reset only after {waited:?}"
    );
}

#[tokio::test]
async fn a_client_that_does_not_read_its_answers_is_closed() {
    let server = TestServer::with(|config| config.limits.outbox_bytes = 100_000).await;
    let mut alice = Client::join(&server, "tea").await;
    let raw = Raw::join(&server, "tea").await;
    let id = alice.next().await["sender"].as_str().unwrap().to_owned();
    let ask =
        text(json!({"type": "ping", "receiver": "server", "data": "p".repeat(50_000)}).to_string());
    let (_read, mut write) = raw.stream.into_split();
    let writing = tokio::spawn(async move {
        // Ends when the server closes the connection.
        while tokio::io::AsyncWriteExt::write_all(&mut write, &ask)
            .await
            .is_ok()
        {}
    });
    alice.expect_left(&id).await;
    within_deadline("the end of the writes", writing)
        .await
        .unwrap();
}

#[tokio::test]
async fn a_burst_within_the_outbox_limit_arrives_complete() {
    let server = TestServer::start().await;
    let mut alice = Client::join(&server, "tea").await;
    let mut bob = Client::join(&server, "tea").await;
    alice.expect_new(&bob.id).await;
    for number in 0..5000 {
        bob.send(json!({"type": "x", "receiver": "all", "data": number}))
            .await;
    }
    for number in 0..5000 {
        assert_eq!(alice.next().await["data"], number);
    }
}

#[tokio::test]
async fn a_flood_to_a_large_room_closes_no_client_whose_socket_has_space() {
    flood(1, 100_000, 400, 1000).await;
}

#[tokio::test]
async fn several_floods_to_a_large_room_close_no_client_whose_socket_has_space() {
    // Each of the eight may read a batch, of about 17,000 bytes, before the server writes anything.
    flood(8, 200_000, 400, 1000).await;
}

#[tokio::test]
async fn floods_of_small_messages_close_no_client_whose_socket_has_space() {
    // In an outbox, what each of them may read at once takes half of it.
    flood(16, 100_000, 5000, 1).await;
}

#[tokio::test]
async fn a_crowd_that_speaks_at_once_closes_no_client_whose_socket_has_space() {
    const SESSIONS: usize = 300;
    // What all say is more than twice as much as an outbox holds.
    let server = TestServer::with(|config| hold_little(config, 100_000)).await;
    let mut sessions = Vec::new();
    for _ in 0..SESSIONS {
        sessions.push(Raw::join(&server, "large").await);
    }
    let message = json!({"type": "all", "receiver": "all", "data": "d".repeat(1000)});
    Raw::write_at_once(&sessions, text(message.to_string()));
    Raw::expect_from_all(&mut sessions, "all", SESSIONS - 1).await;
    server.expect_no_slow_readers();
}

/// The runtime has one thread, and each task gets one turn while the one that watches waits.
#[tokio::test]
async fn a_sender_is_not_read_from_while_a_large_room_is_written_to() {
    const SESSIONS: usize = 320;
    let server = TestServer::with(|config| config.liveness.pong_seconds = 3600).await;
    let mut sessions = Vec::new();
    for _ in 0..SESSIONS {
        sessions.push(Raw::join(&server, "large").await);
    }
    let mut sender = sessions.pop().unwrap();
    let to_all =
        |kind: &str| text(json!({"type": kind, "receiver": "all", "data": ""}).to_string());
    sender.write(to_all("begin")).await;
    let mut receivers = Vec::new();
    for mut session in sessions {
        while session.read_message().await["type"] != "begin" {}
        receivers.push(session.stream.into_std().unwrap());
    }

    // Between two messages to all there is more than the server reads at once.
    let ping = json!({"type": "ping", "receiver": "server", "data": "p".repeat(20_000)});
    let ping = text(ping.to_string()).repeat(2);
    let taken_in = "anteroom_messages_received_total";
    let before = server.count(taken_in);
    sender
        .write([to_all("first"), ping, to_all("second")].concat())
        .await;
    let written = move || {
        let has_first = |receiver: &&std::net::TcpStream| {
            let mut bytes = [0; 200];
            let count = receiver.peek(&mut bytes).unwrap_or_default();
            String::from_utf8_lossy(&bytes[..count]).contains("first")
        };
        receivers.iter().filter(has_first).count()
    };
    let watch = tokio::spawn(async move {
        let mut was_partly_written = false;
        while server.count(taken_in) < before + 4 {
            was_partly_written |= (1..SESSIONS - 1).contains(&written());
            // tokio's `yield_now` gives others more than one turn.
            let mut has_waited = false;
            poll_fn(|cx| {
                cx.waker().wake_by_ref();
                match mem::replace(&mut has_waited, true) {
                    true => Poll::Ready(()),
                    false => Poll::Pending,
                }
            })
            .await;
        }
        assert!(was_partly_written);
        assert_eq!(written(), SESSIONS - 1);
    });
    within_deadline("the second message", watch).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn broadcasts_on_many_threads_arrive_complete_and_in_order() {
    const SESSIONS: usize = 100;
    const WRITERS: usize = 4;
    const MESSAGES: usize = 200;
    let server = TestServer::with(|config| config.liveness.pong_seconds = 3600).await;
    let mut sessions = Vec::new();
    for _ in 0..SESSIONS {
        sessions.push(Raw::join(&server, "threads").await);
    }
    let message = |number| {
        let message = json!({"type": "x", "receiver": "all", "data": number});
        text(message.to_string())
    };
    let mut tasks = JoinSet::new();
    for (index, mut session) in sessions.into_iter().enumerate() {
        tasks.spawn(async move {
            let is_writer = index < WRITERS;
            if is_writer {
                // One by one: the server also reads them while it writes earlier ones.
                for number in 0..MESSAGES {
                    session.write(message(number)).await;
                }
            }
            let mut next: HashMap<String, usize> = HashMap::new();
            let mut missing = MESSAGES * (WRITERS - usize::from(is_writer));
            while missing > 0 {
                let message = session.read_message().await;
                if message["type"] == "x" {
                    let sender = message["sender"].as_str().unwrap().to_owned();
                    let count = next.entry(sender).or_default();
                    assert_eq!(message["data"], *count);
                    *count += 1;
                    missing -= 1;
                }
            }
        });
    }
    tasks.join_all().await;
}

/// Lets `senders` sessions send so many messages with so many bytes of data to a large room, as fast as they can. Each
/// outbox holds `outbox_bytes`.
async fn flood(senders: usize, outbox_bytes: usize, messages: usize, bytes: usize) {
    const SESSIONS: usize = 320;
    let server = TestServer::with(|config| {
        config.limits.outbox_bytes = outbox_bytes;
        config.liveness.pong_seconds = 3600;
    })
    .await;
    let mut sessions = Vec::new();
    for _ in 0..SESSIONS {
        sessions.push(Raw::join(&server, "flood").await);
    }
    let flood = json!({"type": "flood", "receiver": "all", "data": "d".repeat(bytes)});
    let last = json!({"type": "last", "receiver": "all", "ref": 1});
    let mut frames = text(flood.to_string()).repeat(messages / senders);
    frames.extend(text(last.to_string()));
    let senders = &mut sessions[SESSIONS - senders..];
    for sender in &mut *senders {
        sender.write(frames.clone()).await;
    }
    for sender in senders {
        let answer = loop {
            let message = sender.read_message().await;
            assert_ne!(message["type"], "close", "a session was closed");
            if message["type"] == "ack" {
                break message;
            }
        };
        assert_eq!(answer["data"]["receivers"], SESSIONS - 1);
    }
}
