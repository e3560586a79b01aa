//! The client module's `Mesh`: what a hostile peer can make it do, places beyond `maxPeers`, and
//! listeners that close it.

use serde_json::{Value, json};

use super::{
    client_mesh::receive_type,
    driver::{Browser, Tab},
    scripted_server::{
        ScriptedServer, Socket, ack, open_module_page, receive, roster, send, static_server,
    },
};

/// A page with a mesh in a room of the session "m", which is impolite towards "a", "b" and "c". The
/// session "a" is there. The global `offer` is an offer, and `connects` has the ids and times of
/// `connect`.
async fn page_with_mesh<'a>(
    browser: &'a Browser,
    options: &str,
) -> (ScriptedServer, Tab<'a>, Socket) {
    let (server, tab) = ScriptedServer::with_page(browser, "{}").await;
    tab.run(&format!(
        "globalThis.mesh = new Mesh(room, {options});
        globalThis.errors = [];
        globalThis.connects = [];
        mesh.addEventListener('error', ({{ detail }}) => errors.push(String(detail.error)));
        mesh.addEventListener('connect', ({{ detail }}) => connects.push([detail.peer.id, performance.now()]));
        const other = new RTCPeerConnection();
        for (const kind of ['audio', 'video']) other.addTransceiver(kind);
        globalThis.offer = await other.createOffer();"
    ))
    .await;
    let mut socket = server.accept().await;
    let mut hello = roster(&["a"]);
    hello["receiver"] = json!("m");
    hello["data"]["limits"]["messageBytes"] = json!(65536);
    send(&mut socket, hello).await;
    tab.until("room.state === 'open'").await;
    (server, tab, socket)
}

fn signal(from: &str, kind: &str, data: &Value) -> Value {
    json!({"type": kind, "sender": from, "receiver": "m", "data": data})
}

fn new(id: &str) -> Value {
    json!({"type": "new", "sender": id, "receiver": "all", "data": null})
}

/// The page's offer `offer`, as that of the `number`th connection of a peer.
async fn offer_of_connection(tab: &Tab<'_>, number: usize) -> Value {
    let script = "const sdp = offer.sdp.replace(/^o=- \\d+/m, `o=- ${arguments[0]}`);
        return { type: 'offer', sdp, id: `offer ${arguments[0]}`, mesh: 'theirs' }";
    tab.run_with(script, vec![json!(number)]).await
}

/// Sends a signal 500 times, and acknowledges nothing before a message of the page to "c" has
/// arrived. Returns how many messages of the type `counted` were before it.
async fn flood(tab: &Tab<'_>, socket: &mut Socket, repeated: &Value, counted: &str) -> usize {
    for _ in 0..500 {
        send(socket, repeated.clone()).await;
    }
    send(socket, signal("a", "end", &Value::Null)).await;
    tab.until(
        "events.some(([type, { type: message }]) => type === 'message' && message === 'end')",
    )
    .await;
    let settled = tab
        .run(
            "events.length = 0;
            globalThis.sent = outcome(room.send('c', 'chat', 'hello'));
            return Promise.race([sent, new Promise((next) => setTimeout(next, 0))])",
        )
        .await;
    assert_eq!(settled, Value::Null, "the queue has room");
    let mut skipped = Vec::new();
    receive_type(socket, "chat", "c", &mut skipped).await;
    assert_eq!(tab.run("return sent").await, 1);
    skipped.iter().filter(|(kind, _)| kind == counted).count()
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn repeated_offers_leave_the_queue_to_other_messages() {
    let browser = Browser::start().await;
    let (_server, tab, mut socket) = page_with_mesh(&browser, "{}").await;
    let offer = offer_of_connection(&tab, 1).await;
    send(&mut socket, signal("a", "offer", &offer)).await;
    receive_type(&mut socket, "answer", "a", &mut Vec::new()).await;
    // The page has answered this offer.
    let repeated = signal("a", "offer", &json!({"id": "offer 1"}));
    let answers = flood(&tab, &mut socket, &repeated, "answer").await;
    assert!(answers <= 1, "{answers}");

    // The page's own first offer is open.
    send(&mut socket, new("b")).await;
    receive_type(&mut socket, "offer", "b", &mut Vec::new()).await;
    let repeated = signal("b", "offer", &json!({}));
    let offers = flood(&tab, &mut socket, &repeated, "offer").await;
    assert!(offers <= 1, "{offers}");
    browser.close().await;
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn a_peer_can_replace_its_connection_once_a_second() {
    let browser = Browser::start().await;
    let (_server, tab, mut socket) = page_with_mesh(&browser, "{}").await;
    for number in 1..20 {
        let offer = offer_of_connection(&tab, number).await;
        send(&mut socket, signal("a", "offer", &offer)).await;
    }
    for number in 1..5 {
        let answer = receive_type(&mut socket, "answer", "a", &mut Vec::new()).await;
        assert_eq!(answer["data"]["id"], format!("offer {number}"));
    }
    let gaps =
        "return connects.slice(0, 4).map(([, time], i) => time - connects[Math.max(0, i - 1)][1])";
    let gaps: Vec<f64> = serde_json::from_value(tab.run(gaps).await).unwrap();
    // The first replacement is at once, and timers may be a little early.
    assert!(gaps[2..].iter().all(|gap| *gap > 990.0), "{gaps:?}");
    assert_eq!(tab.run("return errors").await, json!([]));
    tab.run("mesh.close()").await;
    browser.close().await;
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn each_refusal_of_the_browser_after_a_connection_is_an_error() {
    let browser = Browser::start().await;
    let (_server, tab, mut socket) = page_with_mesh(&browser, "{}").await;
    tab.run(
        "const Real = RTCPeerConnection;
        globalThis.refuses = true;
        globalThis.RTCPeerConnection = function (...options) {
            if (refuses) throw new Error('too many');
            return new Real(...options);
        };",
    )
    .await;
    for (number, refuses) in [(1, false), (2, true), (3, true), (4, false), (5, true)] {
        tab.run_with("globalThis.refuses = arguments[0]", vec![json!(refuses)])
            .await;
        let offer = offer_of_connection(&tab, number).await;
        send(&mut socket, signal("a", "offer", &offer)).await;
        let expected = [0, 1, 1, 1, 2][number - 1];
        if refuses {
            tab.until(&format!(
                "errors.length === {expected} && mesh.peers.size === 0"
            ))
            .await;
        } else {
            receive_type(&mut socket, "answer", "a", &mut Vec::new()).await;
        }
        assert_eq!(tab.run("return errors.length").await, expected);
    }
    browser.close().await;
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn a_session_that_does_not_connect_gives_its_place_to_one_that_waits() {
    let browser = Browser::start().await;
    let (_server, tab, mut socket) = page_with_mesh(&browser, "{ maxPeers: 1 }").await;
    // The timers of attempts are fast.
    tab.run(
        "const wait = setTimeout;
        globalThis.setTimeout = (then, delay) => wait(then, delay >= 5_000 ? delay / 100 : delay);",
    )
    .await;
    // An answered session that does not connect is no better than one that does not answer.
    send(
        &mut socket,
        json!({"type": "close", "sender": "a", "receiver": null, "data": null}),
    )
    .await;
    send(&mut socket, new("a")).await;
    send(&mut socket, new("b")).await;
    let mut offers = String::new();
    while offers.len() < 7 {
        let message = receive(&mut socket).await;
        send(&mut socket, ack(&message)).await;
        if message["type"] == "offer" {
            offers += message["receiver"].as_str().unwrap();
        }
    }
    assert_eq!(offers, "aaabbba");
    assert_eq!(tab.run("return [...mesh.peers.keys()]").await, json!(["a"]));
    // A room that is left connects none of those that wait.
    let made = "const before = connections.length;
        room.leave();
        return [connections.length - before, mesh.peers.size]";
    assert_eq!(tab.run(made).await, json!([0, 0]));
    browser.close().await;
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn a_room_has_one_mesh_at_a_time() {
    let server = static_server().await;
    let browser = Browser::start().await;
    let tab = open_module_page(&browser, &server, "globalThis.room = join('one')").await;
    let script = "
        const attempt = () => { try { return new Mesh(room); } catch (error) { return error.message; } };
        const first = attempt();
        const refused = attempt();
        first.close();
        const second = attempt();
        // This closes the first once more.
        first.close();
        return [refused, second instanceof Mesh, attempt()]";
    let message = "the room has a mesh: close() that one first";
    assert_eq!(tab.run(script).await, json!([message, true, message]));
    browser.close().await;
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn a_listener_can_close_the_mesh_or_leave_the_room_at_every_event() {
    let server = static_server().await;
    let browser = Browser::start().await;
    for kind in [
        "peerjoin",
        "connect",
        "datachannel",
        "statechange",
        "track",
        "disconnect",
        "error",
    ] {
        for end in ["mesh.close()", "room.leave()"] {
            let script = format!(
                "const name = '{kind} {end}'.replace(/\\W/g, '');
                globalThis.room = join(name);
                globalThis.pcs = [];
                globalThis.ended = false;
                let mesh;
                const end = () => {{ {end}; ended = true; }};
                if ('{kind}' === 'peerjoin') room.addEventListener('peerjoin', end);
                mesh = new Mesh(room, {{ maxPeers: '{kind}' === 'error' ? 0 : 16 }});
                globalThis.mesh = mesh;
                mesh.addEventListener('connect', ({{ detail }}) => pcs.push(detail.peer.pc));
                mesh.addEventListener('{kind}', end);
                await room.opened;
                const other = await join(name).opened;
                const first = new Mesh(other);
                if ('{kind}' === 'track') {{
                    first.addTrack((await navigator.mediaDevices.getUserMedia({{ audio: true }})).getTracks()[0]);
                }}
                if ('{kind}' !== 'disconnect') return;
                // A second mesh of the same session replaces the connection, unless colliding offers have.
                while (!ended && first.peers.values().next().value?.state !== 'connected') {{
                    await new Promise((next) => setTimeout(next, 20));
                }}
                first.close();
                new Mesh(other);"
            );
            let tab = open_module_page(&browser, &server, &script).await;
            tab.until("ended").await;
            let left = tab
                .run(
                    "await new Promise((next) => setTimeout(next, 0));
                    return [mesh.peers.size, pcs.filter(({ signalingState }) => signalingState !== 'closed').length]",
                )
                .await;
            assert_eq!(left, json!([0, 0]), "{end} at {kind}");
        }
    }
    browser.close().await;
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn a_connection_whose_dtls_handshake_fails_is_replaced() {
    let server = static_server().await;
    let browser = Browser::start().await;
    // Every answer of the first RTCPeerConnection that answers has another certificate's fingerprint.
    let script = "
        const wait = setTimeout;
        globalThis.setTimeout = (then, delay) => wait(then, delay >= 12_000 ? delay / 30 : delay);
        const { send } = Room.prototype;
        let broken;
        Room.prototype.send = function (receiver, type, data, ...rest) {
            if (type === 'answer') {
                const [origin] = /^o=\\S+ \\S+/m.exec(data.sdp);
                broken ??= origin;
                const sdp = data.sdp.replace(/^(a=fingerprint:\\S+ ).*/gm, `$1${'AB:'.repeat(31)}AB`);
                if (origin === broken) data = { ...data, sdp };
            }
            return send.call(this, receiver, type, data, ...rest);
        };
        globalThis.failed = 0;
        globalThis.meshes = [0, 1].map(() => {
            const mesh = new Mesh(join('dtls'));
            mesh.addEventListener('statechange', ({ detail: { peer } }) => {
                if (peer.state === 'failed') failed += 1;
            });
            return mesh;
        });";
    let tab = open_module_page(&browser, &server, script).await;
    tab.until("failed > 0").await;
    tab.until(
        "connections.length > 2 && meshes.every(({ peers }) =>
            [...peers.values()].every(({ state, pc }) => state === 'connected' && pc.signalingState === 'stable'))",
    )
    .await;
    browser.close().await;
}
