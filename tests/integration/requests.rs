//! Requests to the server: `hello` and `ping`.

use serde_json::json;

use crate::support::{Client, Raw, TestServer, frame, text};

#[tokio::test]
async fn hello_lists_the_peers_in_the_order_they_joined_and_the_limits() {
    let server = TestServer::with(|config| config.limits.max_message_bytes = 1234).await;
    let mut first = Client::join(&server, "tea").await;
    let second = Client::join(&server, "tea").await;
    let third = Client::join(&server, "tea").await;
    first.expect_new(&second.id).await;
    first.expect_new(&third.id).await;

    let mut last = Client::connect(server.address, "/room/tea").await;
    last.send(json!({"type": "hello", "receiver": "server"}))
        .await;
    let hello = last.next_text().await;
    last.id = first.next().await["sender"].as_str().unwrap().into();
    let expected = format!(
        r#"{{"type":"hello","sender":"server","receiver":"{}","data":{{"room":"tea","peers":[{{"id":"{}","data":null}},{{"id":"{}","data":null}},{{"id":"{}","data":null}}],"iceServers":[],"resume":null,"history":null,"limits":{{"messageBytes":1234,"stateBytes":1234,"messagesPerSecond":null,"bytesPerSecond":null}}}}}}"#,
        last.id, first.id, second.id, third.id
    );
    assert_eq!(hello, expected);
}

#[tokio::test]
async fn an_id_is_a_version_4_uuid_in_lower_case() {
    let server = TestServer::start().await;
    let client = Client::join(&server, "tea").await;
    let id = client.id.as_bytes();
    assert_eq!(id.len(), 36);
    assert_eq!(id[14], b'4');
    assert!(b"89ab".contains(&id[19]));
    let dashes = [8, 13, 18, 23];
    for (at, byte) in id.iter().enumerate() {
        assert_eq!(dashes.contains(&at), *byte == b'-');
        assert!(!byte.is_ascii_uppercase());
    }
}

#[tokio::test]
async fn the_peers_in_hello_match_the_events_before_it() {
    let server = TestServer::start().await;
    let mut observer = Client::join(&server, "tea").await;
    let mut present: Vec<String> = Vec::new();
    let mut clients = Vec::new();
    for _ in 0..20 {
        let hello = json!({"type": "hello", "receiver": "server"});
        let joining = async {
            let client = Client::join(&server, "tea").await;
            clients.push(client);
            if clients.len() % 3 == 0 {
                clients.remove(0).leave().await;
            }
        };
        tokio::join!(joining, observer.send(hello));
        // In whatever order the join and the request arrive, the peers are the sum of the events before.
        loop {
            let message = observer.next().await;
            let sender = || message["sender"].as_str().unwrap().to_owned();
            match message["type"].as_str().unwrap() {
                "new" => present.push(sender()),
                "close" => present.retain(|id| *id != sender()),
                "hello" => {
                    let peers = message["data"]["peers"].as_array().unwrap().iter();
                    let peers: Vec<_> = peers.map(|peer| peer["id"].as_str().unwrap()).collect();
                    assert_eq!(peers, present);
                    break;
                }
                other => panic!("{other}"),
            }
        }
    }
}

#[tokio::test]
async fn ping_returns_its_data() {
    let server = TestServer::start().await;
    let mut alice = Client::join(&server, "tea").await;
    let id = alice.id.clone();
    for (data, back) in [
        (
            r#","data":[1, 2.50,{"b":1,"a":2}]"#,
            r#"[1, 2.50,{"b":1,"a":2}]"#,
        ),
        ("", "null"),
    ] {
        alice
            .send_text(&format!(r#"{{"type":"ping","receiver":"server"{data}}}"#))
            .await;
        let pong =
            format!(r#"{{"type":"pong","sender":"server","receiver":"{id}","data":{back}}}"#);
        alice.expect_text(&pong).await;
    }
}

#[tokio::test]
async fn the_error_for_an_unknown_request_names_the_known_ones() {
    let server = TestServer::start().await;
    let mut alice = Client::join(&server, "tea").await;
    alice
        .send(json!({"type": "Hello", "receiver": "server"}))
        .await;
    let error = alice.expect_error("unknown_request").await;
    assert_eq!(
        error["message"],
        "unknown request Hello: the server answers hello, ping, state, history, outcome and address"
    );
}

#[tokio::test]
async fn messages_behind_the_one_that_closes_a_session_are_not_delivered() {
    let server = TestServer::with(|config| config.limits.outbox_bytes = 100_000).await;
    let mut alice = Client::join(&server, "tea").await;
    let mut raw = Raw::join(&server, "tea").await;
    let id = alice.next().await["sender"].as_str().unwrap().to_owned();
    // One packet causes more answers than the outbox holds; the message behind them is not delivered.
    let data = "p".repeat(100);
    let ask = text(json!({"type": "ping", "receiver": "server", "data": data}).to_string());
    let late = text(json!({"type": "late", "receiver": "all"}).to_string());
    let packet = [frame(0x89, b"").repeat(2000), ask, late].concat();
    assert!(packet.len() < 16 * 1024, "one read takes the packet");
    raw.write(packet).await;
    assert_eq!(raw.read_close().await.0, 1013);
    alice.expect_left(&id).await;
    alice.expect_quiet().await;
}

#[tokio::test]
async fn a_session_learns_the_address_by_which_it_is_counted() {
    let server = TestServer::with(|config| {
        config.serving.trust_proxy = vec!["127.0.0.1/32".parse().unwrap()];
    })
    .await;
    let request = json!({"type": "address", "receiver": "server", "ref": 1});
    let mut alice = Client::join(&server, "tea").await;
    alice.send(request.clone()).await;
    let answer = alice.next().await;
    assert_eq!(answer["type"], "address");
    assert_eq!(answer["sender"], "server");
    assert_eq!(answer["receiver"], *alice.id);
    assert_eq!(answer["data"], json!({"ip": "127.0.0.1"}));
    assert_eq!(alice.next().await["type"], "ack");

    let forwarded = "X-Forwarded-For: 203.0.113.9\r\n";
    let mut raw = Raw::upgrade(&server, "/room/coffee", forwarded)
        .await
        .unwrap();
    raw.write(text(request.to_string())).await;
    let answer = raw.read_message().await;
    assert_eq!(answer["data"], json!({"ip": "203.0.113.9"}));
}

#[tokio::test]
async fn the_outcomes_of_direct_connections_are_counted() {
    let server = TestServer::start().await;
    let mut alice = Client::join(&server, "tea").await;
    let report = async |alice: &mut Client, data: &str| {
        let message = format!(r#"{{"type":"outcome","receiver":"server","data":{data},"ref":1}}"#);
        alice.send_text(&message).await;
        alice.next().await
    };
    for (data, times) in [
        (
            r#"{"result":"connected","path":"host","milliseconds":90}"#,
            2,
        ),
        (
            r#"{"result":"connected","path":"relay","milliseconds":3000}"#,
            1,
        ),
        (r#"{"result":"failed","path":null,"milliseconds":30000}"#, 1),
        (r#"{"milliseconds":86400000,"result":"failed"}"#, 1),
    ] {
        for _ in 0..times {
            let receipt = report(&mut alice, data).await;
            assert_eq!(receipt["type"], "ack", "{receipt}");
        }
    }
    let count =
        |labels: &str| server.count(&format!("anteroom_peer_connections_total{{{labels}}}"));
    assert_eq!(count(r#"result="connected",path="host""#), 2);
    assert_eq!(count(r#"result="connected",path="srflx""#), 0);
    assert_eq!(count(r#"result="connected",path="relay""#), 1);
    assert_eq!(count(r#"result="failed",path="none""#), 2);
    let within = |seconds: &str| {
        server.count(&format!(
            "anteroom_peer_connection_seconds_bucket{{le=\"{seconds}\"}}"
        ))
    };
    assert_eq!([within("0.1"), within("2.0"), within("4.0")], [2, 2, 3]);

    for data in [
        "null",
        "[]",
        r#"["connected","host",90]"#,
        r#"{"result":"connected","milliseconds":90}"#,
        r#"{"result":"failed","path":"host","milliseconds":90}"#,
        r#"{"result":"connected","path":"udp","milliseconds":90}"#,
        r#"{"result":"connected","path":"host","milliseconds":-1}"#,
        r#"{"result":"connected","path":"host","milliseconds":86400001}"#,
        r#"{"result":"connected","path":"host","milliseconds":90,"peer":1}"#,
    ] {
        let error = report(&mut alice, data).await;
        assert_eq!(error["data"]["code"], "bad_message", "{data}");
    }
    assert_eq!(count(r#"result="connected",path="host""#), 2);
}
