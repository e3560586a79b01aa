//! The client module's `Mesh` when signals are lost, TURN or the server fails, or many join at once.

use std::num::NonZeroU32;

use serde_json::{Value, json};
use tokio::process::Command;

use super::{
    client_mesh::receive_type,
    driver::{Browser, Tab},
    scripted_server::{
        ScriptedServer, ack, open_module_page, receive, roster, send, static_server,
    },
};
use crate::{
    operating::Coturn,
    support::{Folder, Program, TestServer},
};

/// Defines `enter(options)` in the page: joins `room` at the global `url` with a `Mesh` of these
/// options, and adds it to the global `meshes`. Errors of all meshes are in `errors`.
const ENTER: &str = "
    globalThis.meshes = [];
    globalThis.errors = [];
    globalThis.watch = (room, options) => {
        const mesh = new Mesh(room, options);
        mesh.room = room;
        mesh.addEventListener('error', ({ detail }) => errors.push(String(detail.error)));
        meshes.push(mesh);
        return mesh;
    };
    globalThis.enter = (options) => watch(join('mesh', { url: globalThis.url }), options);
    globalThis.complete = (count) => meshes.length === count && meshes.every(({ peers }) =>
        peers.size === count - 1 && [...peers.values()].every(({ state, pc }) =>
            state === 'connected' && pc.signalingState === 'stable'));";

/// Makes each timer of the mesh's attempts 30 times as fast. `longest` is the longest delay before that, in ms.
const FAST_ATTEMPTS: &str = "
    const wait = setTimeout;
    globalThis.longest = 0;
    globalThis.setTimeout = (then, delay) => {
        longest = Math.max(longest, delay);
        return wait(then, delay >= 12_000 ? delay / 30 : delay);
    };";

/// Defines `camera()` in the page: a small video track without a device.
const CAMERA: &str = "
    globalThis.camera = () => {
        const canvas = Object.assign(document.createElement('canvas'), { width: 64, height: 48 });
        const context = canvas.getContext('2d');
        setInterval(() => {
            context.fillStyle = `hsl(${performance.now() % 360} 90% 50%)`;
            context.fillRect(0, 0, 64, 48);
        }, 100);
        return canvas.captureStream(10).getTracks()[0];
    };";

/// A page that has the functions above.
async fn open_page<'a>(browser: &'a Browser, server: &TestServer, script: &str) -> Tab<'a> {
    let tab = open_module_page(browser, server, ENTER).await;
    tab.run(CAMERA).await;
    tab.run(script).await;
    tab
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn lost_offers_and_answers_are_repeated_and_applied_once() {
    let browser = Browser::start().await;
    let (server, tab) = ScriptedServer::with_page(&browser, "{}").await;
    tab.run(FAST_ATTEMPTS).await;
    tab.run(
        "globalThis.mesh = new Mesh(room);
        globalThis.errors = [];
        mesh.addEventListener('error', ({ detail }) => errors.push(String(detail.error)));
        globalThis.other = new RTCPeerConnection();
        globalThis.answer = async (data) => {
            await other.setRemoteDescription(data);
            await other.setLocalDescription();
            return { ...other.localDescription.toJSON(), id: data.id };
        };",
    )
    .await;
    let mut socket = server.accept().await;
    let mut hello = roster(&[]);
    hello["data"]["limits"]["messageBytes"] = json!(65536);
    send(&mut socket, hello).await;
    let new = json!({"type": "new", "sender": "a", "receiver": "all", "data": null});
    send(&mut socket, new).await;

    // Receipts come, answers do not: the same offer comes again, at last every 30 seconds.
    let mut offers = Vec::new();
    while offers.len() < 5 {
        let message = receive(&mut socket).await;
        send(&mut socket, ack(&message)).await;
        if message["type"] == "offer" {
            offers.push(message["data"].clone());
        }
    }
    assert!(offers.iter().all(|offer| *offer == offers[0]));
    assert_eq!(tab.run("return longest").await, 30_000);
    assert!(offers[0]["id"].is_string(), "{}", offers[0]);

    // An answer to another offer is ignored, and a repeated answer, too.
    let answer = tab
        .run_with("return answer(arguments[0])", vec![offers[0].clone()])
        .await;
    let mut stale = answer.clone();
    stale["id"] = json!("another");
    let signal = |kind: &str, data: &Value| json!({"type": kind, "sender": "a", "receiver": "me", "data": data});
    for data in [&stale, &answer, &answer] {
        send(&mut socket, signal("answer", data)).await;
    }
    tab.until("mesh.peers.get('a').pc.currentRemoteDescription !== null")
        .await;

    // An offer that comes again gets the same answer, without being applied.
    let offer = tab
        .run(
            "await other.setLocalDescription();
            return { ...other.localDescription.toJSON(), id: 'theirs' };",
        )
        .await;
    let mut skipped = Vec::new();
    let mut answers = Vec::new();
    for _ in 0..2 {
        send(&mut socket, signal("offer", &offer)).await;
        answers.push(receive_type(&mut socket, "answer", "a", &mut skipped).await["data"].clone());
    }
    assert_eq!(answers[0]["id"], "theirs");
    let version = |data: &Value| {
        data["sdp"]
            .as_str()
            .unwrap()
            .lines()
            .nth(1)
            .map(str::to_owned)
    };
    assert_eq!(version(&answers[0]), version(&answers[1]));
    // A candidate of another connection is not an error.
    let candidate = json!({"candidate": "candidate:1 1 udp 1 127.0.0.1 9 typ host",
        "sdpMid": "0", "usernameFragment": "gone"});
    send(&mut socket, signal("candidate", &candidate)).await;
    // An answer is repeated at most once a second.
    tab.run("const now = performance.now.bind(performance); performance.now = () => now() + 1000")
        .await;
    send(&mut socket, signal("offer", &offer)).await;
    receive_type(&mut socket, "answer", "a", &mut skipped).await;
    assert_eq!(tab.run("return errors").await, json!([]));
    // After `close` no timer remains: nothing is sent any more.
    tab.run("mesh.close(); room.send('a', 'last')").await;
    receive_type(&mut socket, "last", "a", &mut skipped).await;
    browser.close().await;
}

/// A third of the signals is lost: half of them in silence, half with an error.
#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn lost_signals_leave_no_connection_between_states() {
    let server = static_server().await;
    let browser = Browser::start().await;
    let script = "
        let seed = 1;
        const random = () => (seed = (seed * 16807) % 2147483647) / 2147483647;
        const { send } = Room.prototype;
        globalThis.lost = 0;
        Room.prototype.send = function (receiver, type, ...rest) {
            const loses = ['offer', 'answer', 'candidate'].includes(type) && random() < 1 / 3;
            if (!loses) return send.call(this, receiver, type, ...rest);
            lost += 1;
            return lost % 2 ? Promise.resolve({ receivers: 1 }) : Promise.reject(new RoomError('queue_full', ''));
        };
        for (let i = 0; i < 4; i += 1) enter();";
    let tab = open_page(&browser, &server, FAST_ATTEMPTS).await;
    tab.run(script).await;
    tab.until("complete(4)").await;
    // Tracks that come and go make further offers, of both sides at once.
    for _ in 0..5 {
        tab.run(
            "for (const mesh of meshes) {
                const track = camera();
                mesh.addTrack(track);
                setTimeout(() => mesh.removeTrack(track), 50);
            }
            await new Promise((next) => setTimeout(next, 100));",
        )
        .await;
        tab.until("complete(4)").await;
    }
    assert!(tab.run("return lost > 20").await == true);
    assert_eq!(tab.run("return errors").await, json!([]));
    browser.close().await;
}

/// Neither restart ends a connection, and the server's is not noticed at all.
#[tokio::test]
#[ignore = "needs Chromium and coturn: tests/run starts it"]
async fn a_relayed_call_survives_turn_and_a_server_with_a_sessions_file() {
    let folder = Folder::new("mesh-sessions");
    let mut coturn = Coturn::start().await;
    let (turn, secret) = (coturn.url.clone(), coturn.secret.path());
    let sessions = folder.file("sessions");
    let start = async |address: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_anteroom"));
        command
            .args(["--listen", address, "--turn-url", &turn])
            .arg("--turn-secret-file")
            .arg(&secret)
            .arg("--sessions-file")
            .arg(&sessions)
            // The clients come back within two seconds, and have all the time that they need.
            .args(["--drain-seconds", "4", "--resume-seconds", "300"]);
        Program::run(command).await
    };
    let mut server = start("127.0.0.1:0").await;
    let address = server.address.to_string();
    let pages = static_server().await;
    let browser = Browser::start().await;
    let tab = open_page(
        &browser,
        &pages,
        &format!("globalThis.url = 'http://{address}/';"),
    )
    .await;
    // `frames` are the decoded frames of every received video. `pictures` tells whether all have got
    // more since `mark`.
    tab.run(
        "globalThis.noticed = [];
        globalThis.interrupted = 0;
        globalThis.frames = async () => {
            const counts = [];
            for (const { peers } of meshes) for (const { pc } of peers.values()) {
                const stats = [...(await pc.getStats()).values()];
                const video = stats.find(({ type, kind }) => type === 'inbound-rtp' && kind === 'video');
                counts.push(video?.framesDecoded ?? 0);
            }
            return counts;
        };
        globalThis.mark = async () => void (globalThis.before = await frames());
        globalThis.pictures = async () => (await frames()).every((count, i) => count > before[i]);
        globalThis.before = Array(12).fill(0);
        for (let i = 0; i < 4; i += 1) {
            const mesh = enter({ configuration: { iceTransportPolicy: 'relay' } });
            mesh.addTrack(camera());
            mesh.addEventListener('statechange', ({ detail }) => {
                if (['disconnected', 'failed'].includes(detail.peer.state)) interrupted += 1;
            });
            for (const [target, types] of [[mesh, 'connect disconnect statechange'], [mesh.room, 'peerjoin peerleave']]) {
                for (const type of types.split(' ')) target.addEventListener(type, () => noticed.push([i, type]));
            }
        }",
    )
    .await;
    tab.until("complete(4)").await;
    tab.until("await pictures()").await;

    coturn.restart().await;
    tab.until("interrupted > 0").await;
    tab.until("complete(4)").await;
    tab.run("await mark()").await;
    tab.until("await pictures()").await;

    tab.run("noticed = []; globalThis.ids = meshes.map(({ room }) => room.id)")
        .await;
    server.signal("TERM").await;
    server.exit_code().await;
    tab.until("meshes.every(({ room }) => room.state === 'reconnecting')")
        .await;
    tab.run("await mark()").await;
    tab.until("await pictures()").await;
    let _server = start(&address).await;
    tab.until("meshes.every(({ room }) => room.state === 'open')")
        .await;
    tab.run("await mark()").await;
    tab.until("complete(4) && await pictures()").await;
    assert_eq!(tab.run("return noticed").await, json!([]));
    assert_eq!(
        tab.run("return meshes.every(({ room }, i) => room.id === ids[i])")
            .await,
        true
    );
    assert_eq!(tab.run("return connections.length").await, 12);
    assert_eq!(tab.run("return errors").await, json!([]));
    browser.close_regardless().await;
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn a_mesh_may_be_made_late_and_again() {
    let server = static_server().await;
    let browser = Browser::start().await;
    // With either of them polite: the one that is late is older in one pair and newer in the other.
    let enter = "const rooms = [];
        for (let i = 0; i < 3; i += 1) {
            rooms.push(join('mesh'));
            await new Promise((open) => rooms[i].addEventListener('statechange', open, { once: true }));
        }
        globalThis.rooms = rooms;
        watch(rooms[0]);
        watch(rooms[2]);";
    let tab = open_page(&browser, &server, enter).await;
    tab.until("[...meshes[0].peers.values()].some(({ state }) => state === 'connected')")
        .await;
    tab.run("globalThis.connects = []; watch(rooms[1]).addEventListener('connect', ({ detail }) => connects.push(detail.peer.id))")
        .await;
    tab.until("complete(3)").await;
    assert!(tab.run("return connects.length >= 2").await == true);

    for index in 0..3 {
        tab.run(&format!(
            "const [old] = meshes.splice(0, 1);
            old.close();
            watch(old.room).again = {index};"
        ))
        .await;
        tab.until("complete(3)").await;
    }
    assert_eq!(tab.run("return errors").await, json!([]));
    browser.close().await;
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn connections_stay_while_a_restarted_server_loses_its_sessions() {
    let mut server = Program::start([]).await;
    let address = server.address;
    let pages = static_server().await;
    let browser = Browser::start().await;
    let enter = format!(
        "globalThis.url = 'http://{address}/';
        globalThis.gaps = 0;
        globalThis.log = [];
        for (let i = 0; i < 3; i += 1) {{
            const mesh = enter();
            mesh.addTrack(camera());
            for (const type of ['connect', 'disconnect', 'statechange']) mesh.addEventListener(type, ({{ detail }}) => {{
                const connected = [...mesh.peers.values()].filter(({{ state }}) => state === 'connected').length;
                log.push([i, type, detail.peer.id.slice(0, 4), detail.peer.state, connected]);
                if (globalThis.restarting && connected < 2) gaps += 1;
            }});
        }}"
    );
    let tab = open_page(&browser, &pages, &enter).await;
    tab.until("complete(3)").await;
    tab.run("globalThis.restarting = true; globalThis.ids = meshes.map(({ room }) => room.id)")
        .await;
    server.signal("TERM").await;
    server.exit_code().await;
    tab.until("meshes.every(({ room }) => room.state === 'reconnecting')")
        .await;
    assert_eq!(tab.run("return complete(3)").await, true);

    let mut command = Command::new(env!("CARGO_BIN_EXE_anteroom"));
    command.args(["--listen", &address.to_string()]);
    let _server = Program::run(command).await;
    // The connections to the new ids are there, and those to the old ids are closed.
    tab.until(
        "meshes.every(({ room, peers }) => room.state === 'open' && !ids.includes(room.id)
        && room.peers.size === 2 && peers.size === 2
        && [...peers].every(([id, { state }]) => room.peers.has(id) && state === 'connected'))",
    )
    .await;
    assert_eq!(
        tab.run("return gaps").await,
        0,
        "{}",
        tab.run("return log").await
    );
    assert_eq!(tab.run("return errors").await, json!([]));
    // A room that closes for good closes its connections.
    tab.run("meshes[0].room.leave()").await;
    tab.until("meshes[0].peers.size === 0 && meshes[1].peers.size === 1")
        .await;
    browser.close_regardless().await;
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn a_peer_waits_for_a_connection_and_credentials_are_renewed() {
    let secret =
        crate::support::File::new("mesh.turn", "a secret for credentials that nobody uses");
    let server = TestServer::with(|config| {
        config.serving.static_dir = Some("static".into());
        config.webrtc.turn_url = vec!["turn:127.0.0.1:9".parse().unwrap()];
        config.webrtc.turn_secret_file = Some(secret.path());
    })
    .await;
    let browser = Browser::start().await;
    let enter = "globalThis.hellos = 0;
        const mesh = enter({ maxPeers: 1 });
        mesh.room.addEventListener('wire', ({ detail: { direction, text } }) => {
            if (direction === 'out' && text.includes('\"hello\"')) hellos += 1;
        });
        await new Promise((open) => mesh.room.addEventListener('statechange', open, { once: true }));
        enter();";
    let tab = open_page(&browser, &server, enter).await;
    tab.until("complete(2)").await;
    assert_eq!(tab.run("return hellos").await, 1);
    // The browser refuses the next connection once.
    tab.run(FAST_ATTEMPTS).await;
    tab.run(
        "enter();
        const now = performance.now.bind(performance);
        performance.now = () => now() + 31_000;",
    )
    .await;
    tab.until("errors.length === 1").await;
    tab.run(
        "const Real = RTCPeerConnection;
        globalThis.RTCPeerConnection = function () {
            globalThis.RTCPeerConnection = Real;
            throw new Error('Cannot create so many PeerConnections');
        };
        meshes[1].room.leave();
        meshes.splice(1, 1);",
    )
    .await;
    tab.until("complete(2)").await;
    tab.until("hellos === 2").await;
    let errors = tab.run("return errors").await;
    assert!(
        errors[1].as_str().unwrap().contains("so many") && errors.as_array().unwrap().len() == 2,
        "{errors}"
    );
    let renewed = "const [peer] = meshes[0].peers.values();
        const { bundlePolicy, iceServers: [{ credential }] } = peer.pc.getConfiguration();
        return bundlePolicy === 'max-bundle' && credential === meshes[0].room.iceServers[0].credential;";
    assert_eq!(tab.run(renewed).await, true);
    browser.close_regardless().await;
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn many_who_join_at_once_with_cameras_all_connect_under_the_limits_of_the_guide() {
    let count: usize = std::env::var("MESH_COUNT").map_or(8, |text| text.parse().unwrap());
    let server = TestServer::with(|config| {
        config.serving.static_dir = Some("static".into());
        config.limits.messages_per_second = NonZeroU32::new(50);
        config.limits.bytes_per_second = NonZeroU32::new(200_000);
    })
    .await;
    let browser = Browser::start().await;
    let enter = format!(
        "globalThis.began = performance.now();
        globalThis.sent = [0, 0];
        for (let i = 0; i < {count}; i += 1) {{
            const mesh = enter();
            mesh.addTrack(camera());
            if (i === 0) mesh.room.addEventListener('wire', ({{ detail: {{ direction, text }} }}) => {{
                if (direction === 'out') {{ sent[0] += 1; sent[1] += text.length; }}
            }});
        }}"
    );
    let tab = open_page(&browser, &server, &enter).await;
    tab.until(&format!("complete({count})")).await;
    let figures = tab
        .run("return [performance.now() - began, sent, connections.length]")
        .await;
    println!("{count} sessions: {figures} (ms, messages and bytes of the first, connections made)");
    // Off and on again: every connection settles.
    tab.run(
        "for (const mesh of meshes) {
            const track = camera();
            mesh.addTrack(track);
            setTimeout(() => mesh.removeTrack(track), 50);
        }",
    )
    .await;
    tab.until(&format!("complete({count})")).await;
    assert_eq!(tab.run("return errors").await, json!([]));
    browser.close().await;
}
