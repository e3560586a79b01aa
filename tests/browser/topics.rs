//! y-webrtc and trystero, as they are, before a server with their dialects.

use anteroom::config::Dialect;
use serde_json::json;

use super::{
    deployment::token,
    driver::Tab,
    page::until_videos_play,
    stock_clients::{StockClients, start_program, start_server, topics},
};
use crate::{
    support::{File, eventually_async},
    tokens::{SECRET, with_secret},
};

/// Shares a document as [`start_sharing`] does, and waits until its announcement has passed through the server. The
/// client may never connect if offers of both sides meet, as they do if two clients start at the same time.
async fn share(tab: &Tab<'_>, url: &str, password: Option<&str>, name: &str) {
    start_sharing(tab, url, password, name).await;
    tab.until("received('/topics').length > 0").await;
}

/// Shares a document as the global `shared` of a tab, which writes its name there and into its awareness.
async fn start_sharing(tab: &Tab<'_>, url: &str, password: Option<&str>, name: &str) {
    tab.run_with(
        "const [url, password, name] = arguments;
        globalThis.shared = shareDocument('tea', url, { password });
        shared.text.insert(0, name + ' ');
        shared.awareness.setLocalState({ name });",
        vec![url.into(), password.into(), name.into()],
    )
    .await;
}

/// Waits until all tabs show a text that has these words, in the same order everywhere.
async fn until_same_text(tabs: &[&Tab<'_>], words: &[&str]) {
    let mut texts = Vec::new();
    for tab in tabs {
        let count = words.len();
        tab.until(&format!(
            "shared.text.toString().trim().split(' ').length === {count}"
        ))
        .await;
        texts.push(tab.run("return shared.text.toString()").await);
    }
    for text in &texts {
        assert_eq!(text, &texts[0]);
        for word in words {
            assert!(text.as_str().unwrap().contains(word), "{text} {word}");
        }
    }
}

/// Waits until a tab is aware of exactly these names, its own included.
async fn until_aware(tab: &Tab<'_>, names: &[&str]) {
    let names = json!(names).to_string();
    tab.until(&format!(
        "JSON.stringify([...shared.awareness.getStates().values()].map(({{ name }}) => name).sort()) === '{names}'"
    ))
    .await;
}

/// Waits until a tab has this number of WebRTC connections for its document. It must have no other way to them.
async fn until_connected(tab: &Tab<'_>, count: usize) {
    tab.until(&format!(
        "[...shared.provider.room.webrtcConns.values()].filter(({{ connected }}) => connected).length === {count}"
    ))
    .await;
    assert_eq!(tab.run("return shared.provider.room.bcConns.size").await, 0);
}

#[tokio::test]
#[ignore = "needs Chromium and npm packages: tests/run starts it"]
async fn documents_converge_and_a_late_one_catches_up() {
    let server = start_server([Dialect::YWebrtc], |_| {}).await;
    let url = topics(server.address);
    let clients = StockClients::start().await;
    let [alice, bob, carol] = [
        clients.open("alice").await,
        clients.open("bob").await,
        clients.open("carol").await,
    ];
    share(&alice, &url, None, "alice").await;
    share(&bob, &url, None, "bob").await;
    until_same_text(&[&alice, &bob], &["alice", "bob"]).await;
    for tab in [&alice, &bob] {
        until_aware(tab, &["alice", "bob"]).await;
    }
    // Both write at the same time.
    alice.run("shared.text.insert(0, 'first ')").await;
    bob.run("shared.text.insert(0, 'second ')").await;
    let words = ["alice", "bob", "first", "second"];
    until_same_text(&[&alice, &bob], &words).await;

    share(&carol, &url, None, "carol").await;
    let words = ["alice", "bob", "first", "second", "carol"];
    until_same_text(&[&alice, &bob, &carol], &words).await;
    for tab in [&alice, &bob, &carol] {
        until_aware(tab, &["alice", "bob", "carol"]).await;
        until_connected(tab, 2).await;
    }
    // Every message comes whole, with the number of subscribers.
    let fields = carol
        .run("return [...new Set(received('/topics').map((message) => Object.keys(message).sort().join()))]")
        .await;
    assert_eq!(fields, json!(["clients,data,topic,type"]));
    let counts = "[...new Set(received('/topics').map(({ clients }) => clients))].sort()";
    assert_eq!(carol.run(&format!("return {counts}")).await, json!([3]));

    // The client's question whether the server is there, which it asks after 15 s.
    alice
        .run("shared.provider.signalingConns[0].send({ type: 'ping' })")
        .await;
    alice
        .until("JSON.stringify(received('/topics').at(-1)) === '{\"type\":\"pong\"}'")
        .await;

    // One leaves, and returns.
    carol.run("shared.provider.disconnect()").await;
    for tab in [&alice, &bob] {
        until_aware(tab, &["alice", "bob"]).await;
        until_connected(tab, 1).await;
    }
    alice
        .until(
            "(shared.provider.signalingConns[0].send({ type: 'publish', topic: 'tea', data: {} }),
            received('/topics').at(-1).clients === 2)",
        )
        .await;
    alice.run("shared.text.insert(0, 'third ')").await;
    carol.run("shared.provider.connect()").await;
    let words = ["alice", "bob", "first", "second", "carol", "third"];
    until_same_text(&[&alice, &bob, &carol], &words).await;
    until_connected(&carol, 2).await;
    clients.browser.close().await;
}

#[tokio::test]
#[ignore = "needs Chromium and npm packages: tests/run starts it"]
async fn documents_with_a_password_converge_and_the_server_reads_none_of_it() {
    let server = start_server([Dialect::YWebrtc], |_| {}).await;
    let url = topics(server.address);
    let clients = StockClients::start().await;
    let [alice, bob, mallory] = [
        clients.open("alice").await,
        clients.open("bob").await,
        clients.open("mallory").await,
    ];
    share(&mallory, &url, Some("guess"), "mallory").await;
    share(&alice, &url, Some("secret"), "alice").await;
    share(&bob, &url, Some("secret"), "bob").await;
    until_same_text(&[&alice, &bob], &["alice", "bob"]).await;
    for tab in [&alice, &bob] {
        until_aware(tab, &["alice", "bob"]).await;
        until_connected(tab, 1).await;
    }
    // Who has another password hears the same, and understands nothing.
    mallory.until("received('/topics').length > 4").await;
    let readable = "return received('/topics').filter(({ data }) => typeof data !== 'string')";
    assert_eq!(mallory.run(readable).await, json!([]));
    until_connected(&mallory, 0).await;
    until_same_text(&[&mallory], &["mallory"]).await;
    // The client does not catch the error of the decryption.
    for text in clients.browser.console_errors().await {
        assert!(text.contains("Uncaught DOMException"), "{text}");
    }
    clients.browser.close().await;
}

#[tokio::test]
#[ignore = "needs Chromium and npm packages: tests/run starts it"]
async fn documents_converge_while_a_killed_server_restarts_and_others_join_then() {
    let mut server = start_program("y-webrtc", 0).await;
    let url = topics(server.address);
    let clients = StockClients::start().await;
    let [alice, bob, carol] = [
        clients.open("alice").await,
        clients.open("bob").await,
        clients.open("carol").await,
    ];
    share(&alice, &url, None, "alice").await;
    share(&bob, &url, None, "bob").await;
    until_same_text(&[&alice, &bob], &["alice", "bob"]).await;
    server.signal("KILL").await;
    server.exit_code().await;
    for tab in [&alice, &bob] {
        tab.until("!shared.provider.signalingConns[0].connected")
            .await;
    }
    alice.run("shared.text.insert(0, 'meanwhile ')").await;
    until_same_text(&[&alice, &bob], &["alice", "bob", "meanwhile"]).await;

    let _server = start_program("y-webrtc", server.address.port()).await;
    for tab in [&alice, &bob] {
        tab.until("sockets.at(-1).received.length > 0").await;
    }
    share(&carol, &url, None, "carol").await;
    let words = ["alice", "bob", "meanwhile", "carol"];
    until_same_text(&[&alice, &bob, &carol], &words).await;
    for tab in [&alice, &bob, &carol] {
        until_aware(tab, &["alice", "bob", "carol"]).await;
        until_connected(tab, 2).await;
    }
    clients.browser.close_regardless().await;
}

#[tokio::test]
#[ignore = "needs Chromium and npm packages: tests/run starts it"]
async fn documents_converge_with_a_token_for_their_topic_only() {
    let secret = File::new("topics.secret", SECRET);
    let server = start_server([Dialect::YWebrtc], |config| with_secret(config, &secret)).await;
    let url = topics(server.address);
    let with = |user, rooms: &[&str]| format!("{url}?token={}", token(&secret, user, rooms));
    let clients = StockClients::start().await;
    let [alice, bob, carol, mallory] = [
        clients.open("alice").await,
        clients.open("bob").await,
        clients.open("carol").await,
        clients.open("mallory").await,
    ];
    start_sharing(&carol, &url, None, "carol").await;
    let elsewhere = with("mallory", &["coffee"]);
    start_sharing(&mallory, &elsewhere, None, "mallory").await;
    share(&alice, &with("alice", &["tea"]), None, "alice").await;
    share(&bob, &with("bob", &["te*"]), None, "bob").await;
    until_same_text(&[&alice, &bob], &["alice", "bob"]).await;
    for tab in [&alice, &bob] {
        until_connected(tab, 1).await;
    }
    carol
        .until("shared.provider.signalingConns[0].unsuccessfulReconnects > 0")
        .await;
    for tab in [&carol, &mallory] {
        until_connected(tab, 0).await;
    }
    // The client passes over a message of this type, which is for who looks at its frames.
    let refusal = json!({"type": "error", "message": "the token does not admit to this topic"});
    let heard = mallory.run("return received('/topics')").await;
    let heard = heard.as_array().unwrap();
    assert!(!heard.is_empty() && heard.iter().all(|message| *message == refusal));
    assert_eq!(carol.run("return received('/topics')").await, json!([]));
    clients.browser.close_regardless().await;
}

/// Joins a room of trystero as the global `joined` of a tab.
async fn join_trystero(tab: &Tab<'_>, url: &str, password: Option<&str>) {
    tab.run_with(
        "const [url, password] = arguments;
        globalThis.joined = joinTrystero('tea', url, password ? { password } : {});",
        vec![url.into(), password.into()],
    )
    .await;
}

/// Waits until each tab has exactly the others as peers.
async fn until_met(tabs: &[&Tab<'_>]) {
    let mut ids = Vec::new();
    for tab in tabs {
        ids.push(tab.run("return selfId").await);
    }
    for (tab, own) in tabs.iter().zip(&ids) {
        let mut others: Vec<_> = ids.iter().filter(|id| *id != own).collect();
        others.sort_by_key(|id| id.to_string());
        tab.until(&format!(
            "JSON.stringify([...joined.peers].sort()) === '{}'",
            json!(others)
        ))
        .await;
    }
}

#[tokio::test]
#[ignore = "needs Chromium and npm packages: tests/run starts it"]
async fn peers_of_trystero_meet_talk_and_leave() {
    let server = start_server([Dialect::Trystero], |_| {}).await;
    let url = topics(server.address);
    let clients = StockClients::start().await;
    let [alice, bob, carol] = [
        clients.open("alice").await,
        clients.open("bob").await,
        clients.open("carol").await,
    ];
    join_trystero(&alice, &url, None).await;
    join_trystero(&bob, &url, None).await;
    until_met(&[&alice, &bob]).await;
    join_trystero(&carol, &url, None).await;
    until_met(&[&alice, &bob, &carol]).await;
    alice
        .run("joined.say({ text: 'grün', list: [1, null] })")
        .await;
    let said = json!([alice.run("return selfId").await, {"text": "grün", "list": [1, null]}]);
    for tab in [&bob, &carol] {
        tab.until("joined.heard.length > 0").await;
        assert_eq!(tab.run("return joined.heard").await, json!([said]));
    }
    bob.run("joined.room.addStream(await media())").await;
    alice.until("joined.streams.length === 1").await;
    alice
        .run(
            "const video = document.createElement('video');
            Object.assign(video, { muted: true, autoplay: true, srcObject: joined.streams[0] });
            document.body.append(video);",
        )
        .await;
    until_videos_play(&alice, 1).await;
    let fields = alice
        .run("return [...new Set(received('/topics').map((message) => Object.keys(message).join()))]")
        .await;
    assert_eq!(fields, json!(["topic,payload"]));

    // Another room has its own topics on the same connection, and the same name has with another app.
    for (tab, name, app) in [(&alice, "coffee", "anteroom"), (&bob, "tea", "another")] {
        tab.run_with(
            "const [name, url, appId] = arguments; globalThis.other = joinTrystero(name, url, { appId })",
            vec![name.into(), url.as_str().into(), app.into()],
        )
        .await;
        tab.until("sockets[0].sent.filter((text) => text.includes('\"subscribe\"')).length === 4")
            .await;
        assert_eq!(tab.run("return sockets.length").await, 1);
    }
    carol.run("joined.room.leave()").await;
    until_met(&[&alice, &bob]).await;
    for tab in [&alice, &bob] {
        assert_eq!(tab.run("return other.peers.size").await, 0);
    }
    carol
        .run(
            "globalThis.joined = joinTrystero('coffee', arguments[0])"
                .replace("arguments[0]", &json!(url).to_string())
                .as_str(),
        )
        .await;
    carol.until("joined.peers.size === 1").await;
    alice.until("other.peers.size === 1").await;
    bob.close().await;
    alice.until("joined.peers.size === 0").await;
    clients.browser.close().await;
}

#[tokio::test]
#[ignore = "needs Chromium and npm packages: tests/run starts it"]
async fn peers_of_trystero_need_the_same_password_and_a_token_where_the_server_wants_one() {
    let secret = File::new("trystero.secret", SECRET);
    let server = start_server([Dialect::Trystero], |config| with_secret(config, &secret)).await;
    let url = topics(server.address);
    let with = |user| format!("{url}?token={}", token(&secret, user, &[]));
    let clients = StockClients::start().await;
    let [alice, bob, carol, mallory] = [
        clients.open("alice").await,
        clients.open("bob").await,
        clients.open("carol").await,
        clients.open("mallory").await,
    ];
    join_trystero(&carol, &url, Some("secret")).await;
    join_trystero(&mallory, &with("mallory"), Some("guess")).await;
    join_trystero(&alice, &with("alice"), Some("secret")).await;
    join_trystero(&bob, &with("bob"), Some("secret")).await;
    until_met(&[&alice, &bob]).await;
    // Of two peers with different passwords, the one that reads first what it cannot read is told.
    eventually_async("an error", async || {
        let mut errors = 0;
        for tab in [&alice, &bob, &mallory] {
            let count = tab.run("return joined.errors.length").await;
            errors += count.as_u64().unwrap();
        }
        errors > 0
    })
    .await;
    for tab in [&carol, &mallory] {
        assert_eq!(tab.run("return joined.peers.size").await, 0);
    }
    carol
        .until("sockets.length > 1 && sockets[0].readyState === WebSocket.CLOSED")
        .await;
    assert_eq!(carol.run("return received('/topics')").await, json!([]));
    clients.browser.close_regardless().await;
}
