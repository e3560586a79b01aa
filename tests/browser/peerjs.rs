//! The client of PeerJS, as it is, before a server with the dialect `peerjs`.

use std::{net::SocketAddr, time::Duration};

use anteroom::config::Dialect;
use serde_json::{Value, json};

use super::{
    deployment::token,
    driver::Tab,
    page::until_videos_play,
    stock_clients::{StockClients, start_program, start_server},
};
use crate::{
    proxy::{Failure, Fate, Proxy},
    support::{File, TestServer, within_deadline},
    tokens::{SECRET, with_secret},
};

/// The token of the peers of a test. Who has another is someone else.
const OWN: &str = "own";

/// How long a message waits for a peer that is unknown.
const EXPIRY: Duration = Duration::from_secs(5);

async fn peer_server() -> TestServer {
    start_server([Dialect::PeerJs], |_| {}).await
}

/// Starts a peer as the global `peer` of a tab, with further options. An `id` of `null` asks the server for one.
async fn start_peer(tab: &Tab<'_>, server: SocketAddr, id: impl Into<Value>, options: Value) {
    let mut all = json!({"port": server.port(), "path": "/peerjs", "token": OWN});
    let options = options.as_object().unwrap().clone();
    all.as_object_mut().unwrap().extend(options);
    let script = "globalThis.peer = startPeer(...arguments)";
    tab.run_with(script, vec![id.into(), all]).await;
}

/// Starts a peer, and waits until it is open.
async fn open_peer(tab: &Tab<'_>, server: SocketAddr, id: &str) {
    start_peer(tab, server, id, json!({})).await;
    tab.until("peer.open").await;
}

/// Waits until the peer of a tab has fired exactly these events.
async fn until_events(tab: &Tab<'_>, events: &[&str]) {
    tab.until(&format!("peer.events.length >= {}", events.len()))
        .await;
    assert_eq!(tab.run("return peer.events").await, json!(events));
}

/// Opens the global `connection` of a tab to another peer, and waits until both sides have it.
async fn open_connection(from: &Tab<'_>, to: &Tab<'_>, id: &str) {
    let known = to.run("return peer.incoming.length").await;
    let script = "globalThis.connection = connect(peer, arguments[0])";
    from.run_with(script, vec![id.into()]).await;
    from.until("connection.open").await;
    to.until(&format!("peer.incoming[{known}]?.open")).await;
}

/// Sends a text in each direction through the last connection that one tab has opened to another.
async fn expect_data(from: &Tab<'_>, to: &Tab<'_>) {
    for (from, sender, to, receiver) in [
        (from, "connection", to, "peer.incoming.at(-1)"),
        (to, "peer.incoming.at(-1)", from, "connection"),
    ] {
        let before = to.run(&format!("return {receiver}.received.length")).await;
        from.run(&format!("{sender}.send('hello')")).await;
        to.until(&format!("{receiver}.received.length > {before}"))
            .await;
    }
}

/// Starts a peer with another token in a tab. It must be told that its id is taken.
async fn expect_taken(tab: &Tab<'_>, server: SocketAddr, id: &str) {
    start_peer(tab, server, id, json!({"token": "another"})).await;
    until_events(tab, &["unavailable-id", "disconnected", "close"]).await;
}

/// Starts peers with another token in a tab until one is not told that its id is taken.
async fn until_free(tab: &Tab<'_>, server: SocketAddr, id: &str) {
    within_deadline("a free id", async {
        loop {
            start_peer(tab, server, id, json!({"token": "another"})).await;
            tab.until("peer.events.length > 0").await;
            if tab.run("return peer.events[0]").await == "open" {
                return;
            }
        }
    })
    .await;
}

/// The types of the messages that all peers of a tab have received.
async fn message_types(tab: &Tab<'_>) -> Vec<String> {
    let types = "return received('/peerjs?').map(({ type }) => type)";
    serde_json::from_value(tab.run(types).await).unwrap()
}

#[tokio::test]
#[ignore = "needs Chromium and npm packages: tests/run starts it"]
async fn data_passes_between_two_tabs_with_label_and_metadata() {
    let server = peer_server().await;
    let clients = StockClients::start().await;
    let [alice, bob] = [clients.open("alice").await, clients.open("bob").await];
    // The server gives one an id. Both paths lead to the same peers.
    start_peer(&alice, server.address, Value::Null, json!({"path": "/"})).await;
    open_peer(&bob, server.address, "bob").await;
    alice.until("peer.open").await;
    let id = alice.run("return peer.id").await;
    let metadata = json!({"room": "tea", "list": [1, null, {}], "text": "grün \u{2028}"});
    for (serialization, data, expected) in [
        (
            "binary",
            "{ text: 'grün', bytes: new Uint8Array(50_000).fill(7) }",
            json!({"text": "grün", "bytes": vec![7; 50_000]}),
        ),
        (
            "json",
            "{ text: 'grün', list: [1, null] }",
            json!({"text": "grün", "list": [1, null]}),
        ),
        ("raw", "'grün'", json!("grün")),
    ] {
        let options = json!({
            "serialization": serialization,
            "label": serialization,
            "metadata": metadata,
            "reliable": true,
        });
        let script = "globalThis.connection = connect(peer, 'bob', arguments[0])";
        alice.run_with(script, vec![options]).await;
        bob.until("(globalThis.connection = peer.incoming.pop())")
            .await;
        assert_eq!(
            bob.run("const { peer, label, metadata } = connection; return [peer, label, metadata]")
                .await,
            json!([id, serialization, metadata])
        );
        for tab in [&alice, &bob] {
            tab.until("connection.open").await;
            tab.run(&format!("connection.send({data})")).await;
        }
        for tab in [&alice, &bob] {
            tab.until("connection.received.length > 0").await;
            assert_eq!(
                tab.run("return connection.received").await,
                json!([expected]),
                "{serialization}"
            );
        }
        alice.run("connection.close()").await;
        bob.until("connection.events.at(-1) === 'close'").await;
    }
    for tab in [&alice, &bob] {
        until_events(tab, &["open"]).await;
    }
    clients.browser.close().await;
}

#[tokio::test]
#[ignore = "needs Chromium and npm packages: tests/run starts it"]
async fn a_call_has_camera_and_microphone_in_both_directions() {
    let server = peer_server().await;
    let clients = StockClients::start().await;
    let [alice, bob] = [clients.open("alice").await, clients.open("bob").await];
    open_peer(&alice, server.address, "alice").await;
    open_peer(&bob, server.address, "bob").await;
    alice
        .run("globalThis.ongoing = await call(peer, 'bob', { metadata: { topic: 'tea' } })")
        .await;
    bob.until("(globalThis.ongoing = peer.calls[0])").await;
    assert_eq!(
        bob.run("return [ongoing.peer, ongoing.metadata]").await,
        json!(["alice", {"topic": "tea"}])
    );
    bob.run("ongoing.answer(await media())").await;
    for tab in [&alice, &bob] {
        tab.until("ongoing.events.includes('stream')").await;
        // Chromium decodes only what an element plays.
        tab.run(
            "const video = document.createElement('video');
            Object.assign(video, { muted: true, autoplay: true, srcObject: ongoing.remoteStream });
            document.body.append(video);",
        )
        .await;
    }
    for tab in [&alice, &bob] {
        until_videos_play(tab, 1).await;
        let kinds = "return ongoing.remoteStream.getTracks().map(({ kind }) => kind).sort()";
        assert_eq!(tab.run(kinds).await, json!(["audio", "video"]));
    }
    bob.run("ongoing.close()").await;
    alice.until("ongoing.events.at(-1) === 'close'").await;
    for tab in [&alice, &bob] {
        until_events(tab, &["open"]).await;
    }
    clients.browser.close().await;
}

#[tokio::test]
#[ignore = "needs Chromium and npm packages: tests/run starts it"]
async fn an_id_is_taken_until_its_peer_is_destroyed() {
    let server = peer_server().await;
    let clients = StockClients::start().await;
    let [alice, bob, carol] = [
        clients.open("alice").await,
        clients.open("bob").await,
        clients.open("carol").await,
    ];
    open_peer(&alice, server.address, "alice").await;
    open_peer(&bob, server.address, "Bob 2_b-3").await;
    expect_taken(&carol, server.address, "Bob 2_b-3").await;
    // The peer that has the id did not notice.
    open_connection(&alice, &bob, "Bob 2_b-3").await;
    expect_data(&alice, &bob).await;

    bob.run("peer.destroy()").await;
    alice.until("connection.events.at(-1) === 'close'").await;
    until_events(&bob, &["open", "disconnected", "close"]).await;
    until_free(&carol, server.address, "Bob 2_b-3").await;
    open_connection(&alice, &carol, "Bob 2_b-3").await;
    expect_data(&alice, &carol).await;
    // A peer that only leaves the server gives its id up, too, and keeps its connections.
    carol.run("peer.disconnect()").await;
    until_free(&bob, server.address, "Bob 2_b-3").await;
    expect_data(&alice, &carol).await;
    until_events(&alice, &["open"]).await;
    clients.browser.close().await;
}

#[tokio::test]
#[ignore = "needs Chromium and npm packages: tests/run starts it"]
async fn an_offer_waits_five_seconds_for_an_unknown_peer() {
    let server = peer_server().await;
    let clients = StockClients::start().await;
    let [alice, bob, carol] = [
        clients.open("alice").await,
        clients.open("bob").await,
        clients.open("carol").await,
    ];
    let frequent = json!({"pingInterval": 100});
    start_peer(&alice, server.address, "alice", frequent).await;
    alice.until("peer.open").await;
    // The peers of another key are not known, and may have the same ids.
    let other = json!({"key": "other", "token": "another"});
    start_peer(&carol, server.address, "alice", other).await;
    carol.until("peer.open").await;
    carol.run("connect(peer, 'bob')").await;
    alice
        .run(
            "globalThis.connection = connect(peer, 'bob');
            globalThis.started = performance.now();
            peer.on('error', () => (globalThis.expired = performance.now() - started));
            connect(peer, 'nobody');",
        )
        .await;
    open_peer(&bob, server.address, "bob").await;
    bob.until("peer.incoming[0]?.open").await;
    expect_data(&alice, &bob).await;

    until_events(&alice, &["open", "peer-unavailable"]).await;
    assert_eq!(
        alice.run("return peer.errors").await,
        json!(["Could not connect to peer nobody"])
    );
    let expired = alice.run("return expired").await.as_f64().unwrap();
    let expired = Duration::from_secs_f64(expired / 1000.0);
    assert!(expired > EXPIRY - Duration::from_millis(100), "{expired:?}");
    assert!(expired < EXPIRY * 2, "{expired:?}");
    until_events(&carol, &["open", "peer-unavailable"]).await;
    assert_eq!(
        carol.run("return peer.errors").await,
        json!(["Could not connect to peer bob"])
    );
    assert_eq!(bob.run("return peer.incoming.length").await, 1);

    // Nothing answers a heartbeat.
    alice
        .until("sockets[0].sent.filter((text) => text === '{\"type\":\"HEARTBEAT\"}').length > 20")
        .await;
    let mut types = message_types(&alice).await;
    types.retain(|kind| kind != "CANDIDATE");
    assert_eq!(types, ["OPEN", "ANSWER", "EXPIRE"]);
    expect_data(&alice, &bob).await;
    clients.browser.close().await;
}

#[tokio::test]
#[ignore = "needs Chromium and npm packages: tests/run starts it"]
async fn data_passes_while_a_peer_has_lost_the_server_and_its_id_is_kept_for_it() {
    let server = peer_server().await;
    let proxy = Proxy::start(server.address, || Fate::NONE).await;
    let clients = StockClients::start().await;
    let [alice, bob, mallory] = [
        clients.open("alice").await,
        clients.open("bob").await,
        clients.open("mallory").await,
    ];
    open_peer(&alice, proxy.address, "alice").await;
    open_peer(&bob, server.address, "bob").await;
    open_connection(&alice, &bob, "bob").await;
    proxy.fail(Failure::Reset);
    until_events(&alice, &["open", "network", "disconnected"]).await;
    expect_data(&alice, &bob).await;
    expect_taken(&mallory, server.address, "alice").await;

    // An offer waits for the peer that comes back.
    bob.run("globalThis.connection = connect(peer, 'alice')")
        .await;
    bob.until("sockets[0].sent.at(-1).includes('\"CANDIDATE\"')")
        .await;
    alice.run("peer.reconnect()").await;
    until_events(&alice, &["open", "network", "disconnected", "open"]).await;
    bob.until("connection.open").await;
    expect_data(&bob, &alice).await;
    // The first connection has not noticed, and nobody was told that the peer had left.
    assert_eq!(alice.run("return connection.events").await, json!(["open"]));
    expect_data(&alice, &bob).await;
    let types = message_types(&bob).await;
    for kind in ["LEAVE", "EXPIRE"] {
        assert!(!types.contains(&kind.into()), "{types:?}");
    }
    until_events(&bob, &["open"]).await;
    expect_taken(&mallory, server.address, "alice").await;
    clients.browser.close_regardless().await;
}

#[tokio::test]
#[ignore = "needs Chromium and npm packages: tests/run starts it"]
async fn a_peer_replaces_its_own_connection_that_the_server_still_holds_open() {
    let server = peer_server().await;
    let proxy = Proxy::start(server.address, || Fate::NONE).await;
    let clients = StockClients::start().await;
    let [alice, bob, mallory] = [
        clients.open("alice").await,
        clients.open("bob").await,
        clients.open("mallory").await,
    ];
    open_peer(&alice, proxy.address, "alice").await;
    open_peer(&bob, server.address, "bob").await;
    // What one side closes from now on, the other does not learn.
    proxy.fail(Failure::Stall);
    let mut stalls = proxy.stalls.clone();
    stalls.wait_for(|stalls| *stalls == 1).await.unwrap();
    expect_taken(&mallory, server.address, "alice").await;
    alice.run("peer.disconnect(); peer.reconnect()").await;
    until_events(&alice, &["open", "disconnected", "open"]).await;
    expect_taken(&mallory, server.address, "alice").await;
    open_connection(&bob, &alice, "alice").await;
    expect_data(&bob, &alice).await;
    open_connection(&alice, &bob, "bob").await;
    expect_data(&alice, &bob).await;
    let types = message_types(&bob).await;
    assert!(!types.contains(&"LEAVE".into()), "{types:?}");
    clients.browser.close().await;
}

#[tokio::test]
#[ignore = "needs Chromium and npm packages: tests/run starts it"]
async fn peers_find_each_other_again_after_the_server_restarted() {
    let mut server = start_program("peerjs", 0).await;
    let address = server.address;
    let clients = StockClients::start().await;
    let [alice, bob] = [clients.open("alice").await, clients.open("bob").await];
    open_peer(&alice, address, "alice").await;
    open_peer(&bob, address, "bob").await;
    open_connection(&alice, &bob, "bob").await;
    server.signal("TERM").await;
    assert_eq!(server.exit_code().await, Some(0));
    for tab in [&alice, &bob] {
        until_events(tab, &["open", "network", "disconnected"]).await;
    }
    expect_data(&alice, &bob).await;
    let _server = start_program("peerjs", address.port()).await;
    for tab in [&alice, &bob] {
        tab.run("peer.reconnect()").await;
        until_events(tab, &["open", "network", "disconnected", "open"]).await;
    }
    expect_data(&alice, &bob).await;
    open_connection(&bob, &alice, "alice").await;
    expect_data(&bob, &alice).await;
    clients.browser.close().await;
}

#[tokio::test]
#[ignore = "needs Chromium and npm packages: tests/run starts it"]
async fn a_peer_without_a_valid_token_is_told_so() {
    let secret = File::new("peerjs.secret", SECRET);
    let server = start_server([Dialect::PeerJs], |config| with_secret(config, &secret)).await;
    let clients = StockClients::start().await;
    let [alice, bob] = [clients.open("alice").await, clients.open("bob").await];
    // The client sends a random token if it is given none.
    for token in [
        "k3yb0ardcat".to_owned(),
        token(&secret, "mallory", &["another"]),
    ] {
        start_peer(&alice, server.address, "alice", json!({"token": token})).await;
        until_events(&alice, &["server-error", "disconnected", "close"]).await;
        let errors = alice.run("return peer.errors[0]").await;
        assert!(errors.as_str().unwrap().contains("token"), "{errors}");
    }
    for (tab, id) in [(&alice, "alice"), (&bob, "bob")] {
        let options = json!({"token": token(&secret, id, &["peerjs"])});
        start_peer(tab, server.address, id, options).await;
        tab.until("peer.open").await;
    }
    open_connection(&alice, &bob, "bob").await;
    expect_data(&alice, &bob).await;
    clients.browser.close().await;
}

#[tokio::test]
#[ignore = "needs Chromium and npm packages: tests/run starts it"]
async fn an_id_is_kept_for_the_user_of_a_token_with_each_of_its_tokens() {
    let secret = File::new("peerjs-users.secret", SECRET);
    let server = start_server([Dialect::PeerJs], |config| with_secret(config, &secret)).await;
    let proxy = Proxy::start(server.address, || Fate::NONE).await;
    let clients = StockClients::start().await;
    let [alice, mallory] = [clients.open("alice").await, clients.open("mallory").await];
    let of = |user, rooms: &[&str]| json!({"token": token(&secret, user, rooms)});
    let own = of("alice", &["peerjs"]);
    start_peer(&alice, proxy.address, "alice", own).await;
    alice.until("peer.open").await;
    proxy.fail(Failure::Reset);
    until_events(&alice, &["open", "network", "disconnected"]).await;
    let taken = ["unavailable-id", "disconnected", "close"];
    start_peer(&mallory, server.address, "alice", of("mallory", &[])).await;
    until_events(&mallory, &taken).await;
    // The page was loaded again, and has been given a new token.
    start_peer(&alice, server.address, "alice", of("alice", &[])).await;
    until_events(&alice, &["open"]).await;
    start_peer(&mallory, server.address, "alice", of("mallory", &[])).await;
    until_events(&mallory, &taken).await;
    clients.browser.close_regardless().await;
}

#[tokio::test]
#[ignore = "needs Chromium and npm packages: tests/run starts it"]
async fn peers_are_listed_where_the_operator_allows_it() {
    let clients = StockClients::start().await;
    let [alice, bob] = [clients.open("alice").await, clients.open("bob").await];
    for allowed in [false, true] {
        let server = start_server([Dialect::PeerJs], |config| {
            config.serving.peerjs_discovery = allowed;
        })
        .await;
        open_peer(&alice, server.address, "alice").await;
        open_peer(&bob, server.address, "bob").await;
        alice
            .run("peer.listAllPeers((ids) => (globalThis.listed = ids.sort()))")
            .await;
        if allowed {
            alice.until("globalThis.listed").await;
            assert_eq!(alice.run("return listed").await, json!(["alice", "bob"]));
            until_events(&alice, &["open"]).await;
        } else {
            until_events(&alice, &["open", "server-error", "disconnected"]).await;
        }
    }
    clients.browser.close_regardless().await;
}
