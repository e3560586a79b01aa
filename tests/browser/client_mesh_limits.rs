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
