//! Clients of every dialect in the same pages, with one name for what each of them calls a room; the examples of the
//! guide.

use anteroom::config::Dialect;
use serde_json::Value;

use super::{
    driver::Tab,
    stock_clients::{StockClients, start_server, tools, topics},
};
use crate::guide::{DIALECTS as GUIDE, blocks};

const DIALECTS: [&str; 4] = ["peerjs", "y-webrtc", "trystero", "room"];

/// Sends a text to the other tab in each dialect, on the connection of its client. The arguments are the text and the
/// name of the other tab.
const SAY: &str = "
    const [text, to] = arguments;
    const send = (dialect, message) => socketsOf(dialect)[0].send(JSON.stringify(message));
    const name = globalThis.topic;
    send('peerjs', { type: 'CANDIDATE', dst: `peer-${to}`, payload: { text: `${text} of peerjs` } });
    send('y-webrtc', { type: 'publish', topic: name, data: { text: `${text} of y-webrtc` } });
    send('trystero', { type: 'publish', topic: name, payload: { text: `${text} of trystero` } });
    send('room', { type: 'chat', receiver: 'all', data: `${text} of room` });";

/// Joins with the client of each dialect. The name that all of them use is the topic that trystero chooses. The
/// arguments are the URLs of the server and of its topics, and the tab's name.
const JOIN: &str = "
    const [server, url, own] = arguments;
    globalThis.joined = joinTrystero('tea', url);
    globalThis.socketsOf = (dialect) => sockets.filter(({ url, sent }) =>
        dialect === 'room' || dialect === 'peerjs'
            ? url.includes(`/${dialect}`)
            : url.endsWith('/topics') && sent[0]?.includes('\"topics\"') === (dialect === 'y-webrtc'));
    globalThis.announced = () => socketsOf('trystero')
        .flatMap(({ sent }) => sent.map((text) => JSON.parse(text)))
        .find(({ type }) => type === 'publish')?.topic;
    while (!announced()) await new Promise((next) => setTimeout(next, 20));
    globalThis.topic = announced();
    const { hostname: host, port } = new URL(server);
    globalThis.peer = startPeer(`peer-${own}`, { host, port, path: '/peerjs', key: topic });
    globalThis.shared = shareDocument(topic, url);
    globalThis.room = join(topic, { url: server });
    shared.text.insert(0, `${own} `);
    // Two clients of y-webrtc that start at the same time may never connect.
    while (!socketsOf('y-webrtc')[0]?.received.length) await new Promise((next) => setTimeout(next, 20));";

/// The ids that a tab has, by dialect.
const NAMES: &str = "
    return { peerjs: peer.id, 'y-webrtc': shared.provider.room.peerId, trystero: selfId, room: room.id };";

/// Waits until a tab has this text in a dialect, and returns all that it has received in it.
async fn received(tab: &Tab<'_>, dialect: &str, text: &str) -> Vec<String> {
    let received = format!("socketsOf('{dialect}').flatMap(({{ received }}) => received)");
    tab.until(&format!(
        "{received}.some((message) => message.includes('{text} of {dialect}'))"
    ))
    .await;
    serde_json::from_value(tab.run(&format!("return {received}")).await).unwrap()
}

/// The sets of fields that the messages have.
fn fields(messages: &[String]) -> Vec<String> {
    let mut all: Vec<_> = messages
        .iter()
        .map(|text| {
            let message: Value = serde_json::from_str(text).unwrap();
            let mut names: Vec<_> = message.as_object().unwrap().keys().cloned().collect();
            names.sort();
            names.join(" ")
        })
        .collect();
    all.sort();
    all.dedup();
    all
}

#[tokio::test]
#[ignore = "needs Chromium and npm packages: tests/run starts it"]
async fn dialects_hear_nothing_of_each_other_under_the_same_name() {
    let dialects = [Dialect::PeerJs, Dialect::YWebrtc, Dialect::Trystero];
    let server = start_server(dialects, |_| {}).await;
    let clients = StockClients::start().await;
    let [alice, bob] = [clients.open("alice").await, clients.open("bob").await];
    for (tab, own) in [(&alice, "alice"), (&bob, "bob")] {
        let base = format!("http://{}/", server.address);
        let arguments = vec![base.into(), topics(server.address).into(), own.into()];
        tab.run_with(JOIN, arguments).await;
    }
    assert_eq!(
        alice.run("return topic").await,
        bob.run("return topic").await
    );
    for tab in [&alice, &bob] {
        tab.until("peer.open && room.peers.size === 1 && joined.peers.size === 1")
            .await;
        tab.until(
            "shared.text.toString().includes('alice') && shared.text.toString().includes('bob')",
        )
        .await;
    }
    alice
        .run("globalThis.connection = connect(peer, 'peer-bob')")
        .await;
    alice.until("connection.open").await;

    let names = [alice.run(NAMES).await, bob.run(NAMES).await];
    // What leaks is pushed before the answer to the first text is here, and so comes before the second.
    for text in ["first", "second"] {
        for (from, to, name) in [(&alice, &bob, "bob"), (&bob, &alice, "alice")] {
            from.run_with(SAY, vec![text.into(), name.into()]).await;
            for dialect in DIALECTS {
                received(to, dialect, text).await;
            }
        }
    }
    for tab in [&alice, &bob] {
        for dialect in DIALECTS {
            let messages = received(tab, dialect, "second").await;
            for other in DIALECTS.into_iter().filter(|other| *other != dialect) {
                let text = format!(" of {other}");
                let ids = names.each_ref().map(|names| names[other].as_str().unwrap());
                for word in [&text, ids[0], ids[1]] {
                    let leak = messages.iter().find(|message| message.contains(word));
                    assert_eq!(leak, None, "{dialect} hears of {other}: {word}");
                }
            }
            let expected: &[&str] = match dialect {
                "peerjs" => &["dst payload src type", "type"],
                "y-webrtc" => &["clients data topic type"],
                "trystero" => &["payload topic"],
                _ => &["data receiver sender type"],
            };
            assert_eq!(fields(&messages), expected, "{dialect}");
        }
        let counts =
            "return socketsOf('y-webrtc')[0].received.map((text) => JSON.parse(text).clients)";
        let counts: Vec<u64> = serde_json::from_value(tab.run(counts).await).unwrap();
        assert!(counts.iter().all(|count| *count <= 2), "{counts:?}");
        assert_eq!(tab.run("return room.peers.size").await, 1);
    }

    // An id of one dialect is nobody in another.
    let session = names[1]["room"].clone();
    alice
        .run_with("connect(peer, arguments[0])", vec![session])
        .await;
    alice
        .until("peer.events.includes('peer-unavailable')")
        .await;
    let refused =
        "return room.send('peer-bob', 'chat', 'hello').then(() => null, ({ code }) => code)";
    assert_eq!(alice.run(refused).await, "unknown_receiver");
    clients.browser.close().await;
}

#[tokio::test]
#[ignore = "needs Chromium and npm packages: tests/run starts it"]
async fn the_examples_of_the_guide_connect() {
    let dialects = [Dialect::PeerJs, Dialect::YWebrtc, Dialect::Trystero];
    let server = start_server(dialects, |_| {}).await;
    let clients = StockClients::start().await;
    let [alice, bob] = [clients.open("alice").await, clients.open("bob").await];
    let port = server.address.port().to_string();
    for (example, result, connected) in [
        ("new Peer(", "peer", "peer.open"),
        (
            "new WebrtcProvider(",
            "provider",
            "[...provider.room.webrtcConns.values()].some(({ synced }) => synced)",
        ),
        (
            "joinRoom(",
            "room",
            "Object.keys(room.getPeers()).length === 1",
        ),
    ] {
        let found = blocks(GUIDE, "js").find(|block| block.contains(example));
        let script = found.expect("an example").replace("8080", &port);
        for (tab, id) in [(&alice, "alice"), (&bob, "bob")] {
            let script = script.replace("\"alice\"", &format!("{id:?}"));
            let script = format!("const doc = new Doc(); {script} globalThis.{result} = {result};");
            tab.run(&script).await;
            if example == "new WebrtcProvider(" {
                tab.until("received('/topics').length > 0").await;
            }
        }
        for tab in [&alice, &bob] {
            tab.until(connected).await;
        }
    }
    // Two peers of simple-peer greet each other.
    let folder = &clients.browser.folder;
    let script = "simplepeer.min.js";
    let source = tools().join("node_modules/simple-peer").join(script);
    std::fs::copy(source, folder.join(script)).unwrap();
    let page = blocks(GUIDE, "html").next().expect("a page");
    let file = folder.join("simple-peer.html");
    std::fs::write(&file, page.replace("8080", &port)).unwrap();
    let url = format!("file://{}", file.display());
    let tabs = [
        clients.browser.open(&url).await,
        clients.browser.open(&url).await,
    ];
    for tab in &tabs {
        tab.until("document.body.textContent.includes('hello from ')")
            .await;
    }
    clients.browser.close().await;
}
