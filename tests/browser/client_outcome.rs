//! What the client module's `Mesh` tells the server about its connections.

use serde_json::{Value, json};

use super::{
    driver::Browser,
    scripted_server::{
        ScriptedServer, Socket, ack, open_module_page, receive, roster, send, static_server,
    },
};
use crate::support::eventually;

/// Defines `enter(name)` in the page: joins a room with a mesh, which it returns. The mesh's
/// `outcomes` are what it has told the server, and `noticed` has the errors of all rooms and meshes.
const ENTER: &str = "
    globalThis.noticed = [];
    globalThis.enter = (name) => {
        const room = join(name);
        const mesh = Object.assign(new Mesh(room), { room, outcomes: [] });
        room.addEventListener('wire', ({ detail: { direction, text } }) => {
            const { type, data } = JSON.parse(text);
            if (direction === 'out' && type === 'outcome') mesh.outcomes.push(data);
        });
        for (const target of [room, mesh]) target.addEventListener('error', ({ detail }) => noticed.push(String(detail)));
        return mesh;
    };
    globalThis.until = async (condition) => {
        while (!condition()) await new Promise((next) => setTimeout(next, 10));
    };
    globalThis.connected = ({ peers }) => [...peers.values()].some(({ state }) => state === 'connected');";

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn each_connection_is_reported_once_with_its_path_and_counted() {
    let server = static_server().await;
    let browser = Browser::start().await;
    let tab = open_module_page(&browser, &server, ENTER).await;
    tab.run("globalThis.meshes = [enter('pair'), enter('pair')]")
        .await;
    tab.until("meshes.every(({ outcomes }) => outcomes.length === 1)")
        .await;
    let outcomes = tab
        .run("return meshes.flatMap(({ outcomes }) => outcomes)")
        .await;
    for outcome in outcomes.as_array().unwrap() {
        assert_eq!(outcome["result"], "connected", "{outcome}");
        assert_eq!(outcome["path"], "host", "{outcome}");
        assert!(outcome["milliseconds"].as_u64().unwrap() > 0, "{outcome}");
    }
    let series = r#"anteroom_peer_connections_total{result="connected",path="host"}"#;
    eventually("both outcomes", || server.count(series) == 2).await;

    // A connection that is connected again, or closed later, is not reported again.
    tab.run(
        "const [mesh, other] = meshes;
        const [{ pc }] = mesh.peers.values();
        pc.dispatchEvent(new Event('connectionstatechange'));
        await pc.getStats();
        const now = performance.now.bind(performance);
        performance.now = () => now() + 60_000;
        mesh.close();
        other.room.leave();
        await mesh.room.send('server', 'ping');",
    )
    .await;
    assert_eq!(
        tab.run("return meshes.flatMap(({ outcomes }) => outcomes)")
            .await,
        outcomes
    );
    assert_eq!(tab.run("return noticed").await, json!([]));
    browser.close().await;
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn the_path_is_that_of_the_selected_candidate_pair() {
    let server = static_server().await;
    let browser = Browser::start().await;
    let tab = open_module_page(&browser, &server, ENTER).await;
    let candidate = |id: &str| json!({"type": "candidate", "id": id, "candidateType": id});
    let pair = |local: &str, remote: &str, more: Value| {
        let mut pair = json!({"type": "candidate-pair", "id": format!("{local} {remote}"),
            "localCandidateId": local, "remoteCandidateId": remote, "state": "succeeded"});
        pair.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        pair
    };
    let transport =
        |id: &str| json!({"type": "transport", "id": "t", "selectedCandidatePairId": id});
    let nominated = json!({"nominated": true});
    let others = [
        pair("host", "host", json!({})),
        pair(
            "relay",
            "relay",
            json!({"nominated": true, "state": "failed"}),
        ),
    ];
    for (name, reports, path) in [
        (
            "of the transport",
            vec![
                transport("srflx host"),
                pair("prflx", "host", nominated.clone()),
                pair("srflx", "host", nominated.clone()),
            ],
            Some("srflx"),
        ),
        (
            "that is marked",
            vec![
                pair("srflx", "host", nominated.clone()),
                pair("prflx", "srflx", json!({"selected": true})),
            ],
            Some("prflx"),
        ),
        (
            "that is nominated",
            vec![pair("srflx", "prflx", nominated.clone())],
            Some("srflx"),
        ),
        (
            "with the peer's relay",
            vec![pair("srflx", "relay", nominated.clone())],
            Some("relay"),
        ),
        (
            "with the own relay",
            vec![pair("relay", "host", nominated.clone())],
            Some("relay"),
        ),
        ("that nobody knows", vec![], None),
    ] {
        let ends = ["host", "srflx", "prflx", "relay"].map(candidate);
        let stats = [&ends[..], &others[..], &reports[..]].concat();
        let paths = tab
            .run_with(
                "const [name, stats] = arguments;
                RTCPeerConnection.prototype.getStats = async () => new Map(stats.map((one, place) => [place, one]));
                const meshes = [enter(name), enter(name)];
                await until(() => meshes.every(connected));
                // Then `getStats` has answered, and the receipts are there.
                await new Promise((next) => setTimeout(next, 0));
                for (const { room } of meshes) {
                    await room.send('server', 'ping');
                    room.leave();
                }
                return meshes.map(({ outcomes }) => outcomes.map(({ path }) => path));",
                vec![json!(name), json!(stats)],
            )
            .await;
        let expected: Vec<_> = path.into_iter().collect();
        assert_eq!(paths, json!([expected, expected]), "{name}");
    }
    assert_eq!(tab.run("return noticed").await, json!([]));
    browser.close().await;
}

/// Receives the page's messages up to one of the type `last`, and refuses its outcomes as an older
/// server does. Returns the outcomes.
async fn outcomes_before(socket: &mut Socket, last: &str) -> Vec<Value> {
    let mut outcomes = Vec::new();
    loop {
        let message = receive(socket).await;
        if message["type"] == "outcome" {
            assert_eq!(message["receiver"], "server");
            let data = json!({"code": "unknown_request", "message": "ask for something else",
                "ref": message["ref"]});
            let error = json!({"type": "error", "sender": "server", "receiver": "m", "data": data});
            send(socket, error).await;
            outcomes.push(message["data"].clone());
            continue;
        }
        send(socket, ack(&message)).await;
        if message["type"] == last {
            return outcomes;
        }
    }
}

/// The page's clock stands still, and no timer of at least five seconds runs, unless the test wants it.
#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn a_tried_connection_that_is_not_made_is_reported_once_to_servers_of_any_age() {
    let browser = Browser::start().await;
    let (server, tab) = ScriptedServer::with_page(&browser, "{}").await;
    tab.run(
        "globalThis.clock = 0;
        performance.now = () => clock;
        globalThis.timers = new Map();
        let lastId = 0;
        const [set, clear] = [setTimeout, clearTimeout];
        globalThis.setTimeout = (then, delay) => {
            if (delay < 5000) return set(then, delay);
            const id = (lastId -= 1);
            timers.set(id, { then, delay });
            return id;
        };
        globalThis.clearTimeout = (id) => timers.delete(id) || clear(id);
        globalThis.deadlines = () => [...timers.values()].filter(({ delay }) => delay === 30_000);
        globalThis.mesh = new Mesh(room);
        globalThis.errors = [];
        mesh.addEventListener('error', ({ detail }) => errors.push(String(detail.error)));
        const other = new RTCPeerConnection();
        other.addTransceiver('audio');
        globalThis.offer = (await other.createOffer()).sdp;",
    )
    .await;
    let mut socket = server.accept().await;
    let mut hello = roster(&["early", "silent", "late", "tried", "longer", "stays"]);
    hello["receiver"] = json!("m");
    hello["data"]["limits"]["messageBytes"] = json!(65536);
    send(&mut socket, hello).await;
    tab.until("mesh.peers.size === 6").await;
    let sdp = tab.run("return offer").await;
    let mut number = 0;
    // Without candidates of the peer, no connection is made.
    let mut offer = async |socket: &mut Socket, peer: &str| {
        number += 1;
        let data = json!({"type": "offer", "sdp": sdp, "id": number.to_string(), "mesh": "theirs"});
        send(
            socket,
            json!({"type": "offer", "sender": peer, "receiver": "m", "data": data}),
        )
        .await;
        assert_eq!(outcomes_before(socket, "answer").await, [Value::Null; 0]);
    };
    for peer in ["early", "tried", "longer", "stays"] {
        offer(&mut socket, peer).await;
    }
    let close = async |socket: &mut Socket, peer: &str| {
        send(
            socket,
            json!({"type": "close", "sender": peer, "receiver": null, "data": null}),
        )
        .await;
        tab.until(&format!("!mesh.peers.has('{peer}')")).await;
    };
    let failed = |milliseconds: u64| json!({"result": "failed", "milliseconds": milliseconds});

    // A connection that ends before it is ten seconds old may still have been made.
    tab.run("clock = 9999.9").await;
    close(&mut socket, "early").await;
    tab.run("clock = 10_000").await;
    close(&mut socket, "tried").await;
    // The session may have no mesh.
    close(&mut socket, "silent").await;
    tab.run("room.send('stays', 'first')").await;
    assert_eq!(
        outcomes_before(&mut socket, "first").await,
        [failed(10_000)]
    );

    // After 30 seconds nobody waits for the end.
    assert_eq!(tab.run("return deadlines().length").await, 2);
    tab.run("clock = 30_000.4; deadlines()[0].then(); room.send('stays', 'second')")
        .await;
    assert_eq!(
        outcomes_before(&mut socket, "second").await,
        [failed(30_000)]
    );
    close(&mut socket, "longer").await;

    // The session has made its mesh only now.
    tab.run("clock = 60_000").await;
    offer(&mut socket, "late").await;
    tab.run("clock = 69_999").await;
    close(&mut socket, "late").await;
    // The server accepts a day at most.
    tab.run("clock = 100_000_000; mesh.close(); room.send('stays', 'third')")
        .await;
    assert_eq!(
        outcomes_before(&mut socket, "third").await,
        [failed(86_400_000)]
    );
    assert_eq!(tab.run("return deadlines().length").await, 0);

    // The refusals are no events.
    tab.run("room.send('stays', 'last')").await;
    outcomes_before(&mut socket, "last").await;
    assert_eq!(tab.run("return errors").await, json!([]));
    assert_eq!(
        tab.run("return events.filter(([type]) => type === 'error')")
            .await,
        json!([])
    );
    browser.close().await;
}
