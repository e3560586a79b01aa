//! The client module's `Mesh`: malformed signals, peers without a mesh, colliding offers, and the
//! pages of the README and the guide.

use serde_json::{Value, json};

use super::{
    driver::Browser,
    page::until_videos_play,
    scripted_server::{
        ScriptedServer, Socket, ack, open_module_page, receive, roster, send, static_server,
    },
};
use crate::{
    guide::{CLIENT, README, blocks},
    support::{Client, TestServer},
};

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn a_mesh_survives_malformed_signals_and_connects_to_a_peer_without_a_mesh() {
    let server = static_server().await;
    let browser = Browser::start().await;
    let room = "globalThis.mesh = new Mesh(globalThis.room = join('strange'), { maxPeers: 2 });
        globalThis.errors = [];
        globalThis.states = [];
        globalThis.channels = [];
        mesh.addEventListener('datachannel', ({ detail: { channel } }) => channels.push(channel.label));
        mesh.addEventListener('error', ({ detail }) => errors.push(detail.id));
        mesh.addEventListener('statechange', ({ detail: { peer } }) => states.push(peer.state));";
    let mut attacker = Client::join(&server, "strange").await;
    let tab = open_module_page(&browser, &server, room).await;
    tab.until("room.state === 'open'").await;
    let own = tab.run("return room.id").await;

    for (kind, data) in [
        ("offer", Value::Null),
        ("offer", json!({"sdp": 7})),
        ("offer", json!({"type": "offer", "sdp": "v=0\r\nnonsense"})),
        ("answer", json!({"sdp": "v=0"})),
        ("answer", json!([])),
        ("candidate", json!("x")),
        (
            "candidate",
            json!({"candidate": "candidate:nonsense", "sdpMid": "0"}),
        ),
    ] {
        attacker
            .send(json!({"type": kind, "receiver": own, "data": data}))
            .await;
    }
    tab.until("errors.length === 7").await;

    // A page without a mesh: it only answers offers.
    let plain = browser.open(&format!("http://{}/", server.address)).await;
    let script = "
        const socket = new WebSocket(`ws://${location.host}/room/strange`);
        const pc = new RTCPeerConnection();
        globalThis.stop = async () => {
            for (const transceiver of pc.getTransceivers()) transceiver.stop();
            await pc.setLocalDescription();
            send('offer', pc.localDescription);
        };
        globalThis.heard = '';
        globalThis.channels = [];
        pc.ondatachannel = ({ channel }) => {
            channels.push(channel.label);
            channel.onmessage = ({ data }) => { heard = data; channel.send('pong'); };
        };
        let peer;
        const send = (type, data) => socket.send(JSON.stringify({ type, receiver: peer, data }));
        pc.onicecandidate = ({ candidate }) => send('candidate', candidate);
        socket.onmessage = async ({ data }) => {
            const message = JSON.parse(data);
            peer = message.sender;
            if (message.type === 'candidate') await pc.addIceCandidate(message.data);
            if (message.type === 'answer') await pc.setRemoteDescription(message.data);
            if (message.type !== 'offer') return;
            await pc.setRemoteDescription(message.data);
            await pc.setLocalDescription();
            send('answer', pc.localDescription);
        };";
    plain.run(script).await;
    tab.until("room.peers.size === 2").await;
    tab.run(
        "globalThis.heard = '';
        const channel = [...mesh.peers.values()][1].pc.createDataChannel('x');
        channel.onopen = () => channel.send('ping');
        channel.onmessage = ({ data }) => { heard = data; };",
    )
    .await;
    plain.until("heard === 'ping'").await;
    // Both sides get the event for the first data channel.
    assert_eq!(tab.run("return channels").await, json!(["mesh"]));
    assert_eq!(
        plain.run("return channels.sort()").await,
        json!(["mesh", "x"])
    );
    tab.until("heard === 'pong'").await;
    assert_eq!(
        tab.run("return states").await,
        json!(["connecting", "connected"])
    );
    let quality = tab
        .run("return [...mesh.peers.values()][1].quality()")
        .await;
    assert_eq!(quality["relayed"], false);
    assert!(quality["bitsOut"].as_f64().unwrap() > 0.0, "{quality}");

    // A peer that stops its transceivers does not break the mesh.
    tab.run(
        "const [track] = (await navigator.mediaDevices.getUserMedia({ audio: true })).getTracks();
        mesh.addTrack(globalThis.track = track);",
    )
    .await;
    // Wait for the end of the negotiation, so that the peer's offer collides with none.
    let negotiated = "connections.at(-1).getTransceivers()
        .some(({ currentDirection }) => currentDirection === 'recvonly')";
    plain.until(negotiated).await;
    plain.run("await stop()").await;
    let transceivers = "[...mesh.peers.values()][1].pc.getTransceivers()";
    tab.until(&format!(
        "{transceivers}.every(({{ direction }}) => direction === 'stopped')"
    ))
    .await;
    tab.run("mesh.removeTrack(track); mesh.addTrack(track)")
        .await;
    tab.until(&format!(
        "{transceivers}.some(({{ sender }}) => sender.track === track)"
    ))
    .await;

    // A peer beyond `maxPeers` waits, and the mesh fires an error.
    let third = Client::join(&server, "strange").await;
    tab.until("errors.length === 8").await;
    assert_eq!(
        tab.run("return [errors.at(-1), mesh.peers.size]").await,
        json!([third.id, 2])
    );
    // The connection to a peer that leaves is closed, and the waiting peer gets one.
    attacker.leave().await;
    tab.until("mesh.peers.size === 2 && [...mesh.peers.keys()].at(-1) === errors.at(-1)")
        .await;
    tab.run("mesh.close()").await;
    assert_eq!(
        tab.run("return [mesh.peers.size, room.state]").await,
        json!([0, "open"])
    );
    browser.close().await;
}

/// Receives the next message of a type to a session, and acknowledges all. Adds the type and the
/// receiver of those before it to `skipped`.
pub async fn receive_type(
    socket: &mut Socket,
    kind: &str,
    receiver: &str,
    skipped: &mut Vec<(String, String)>,
) -> Value {
    loop {
        let message = receive(socket).await;
        send(socket, ack(&message)).await;
        let [found, to] =
            ["type", "receiver"].map(|field| message[field].as_str().unwrap().to_owned());
        if found == kind && to == receiver {
            return message;
        }
        skipped.push((found, to));
    }
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn when_offers_collide_the_smaller_id_withdraws_its_own() {
    let browser = Browser::start().await;
    let (server, tab) = ScriptedServer::with_page(&browser, "{}").await;
    // The peers' connections are in the same page. Their signals pass through this test.
    tab.run(
        "globalThis.mesh = new Mesh(room);
        globalThis.errors = [];
        mesh.addEventListener('error', ({ detail }) => errors.push(String(detail.error)));
        globalThis.others = {};
        for (const id of ['a', 'z']) others[id] = new RTCPeerConnection();
        for (const pc of Object.values(others)) pc.addTransceiver('audio');
        globalThis.offer = async (pc) => {
            await pc.setLocalDescription();
            return pc.localDescription;
        };
        globalThis.answer = async (pc, sdp) => {
            await pc.setRemoteDescription({ type: 'offer', sdp });
            await pc.setLocalDescription();
            return pc.localDescription;
        };",
    )
    .await;
    let mut socket = server.accept().await;
    let mut hello = roster(&[]);
    hello["receiver"] = json!("m");
    hello["data"]["limits"]["messageBytes"] = json!(65536);
    send(&mut socket, hello).await;
    let signal = |from: &str, kind: &str, data: &Value| json!({"type": kind, "sender": from, "receiver": "m", "data": data});
    let mut skipped = Vec::new();

    // The page is impolite towards `a`: its own offer stands, and it does not answer the other.
    send(
        &mut socket,
        json!({"type": "new", "sender": "a", "receiver": "all", "data": null}),
    )
    .await;
    let first = receive_type(&mut socket, "offer", "a", &mut skipped).await;
    let colliding = tab.run("return offer(others.a)").await;
    send(&mut socket, signal("a", "offer", &colliding)).await;
    tab.run("await others.a.setLocalDescription({ type: 'rollback' })")
        .await;
    let answer = tab
        .run_with(
            "return answer(others.a, arguments[0])",
            vec![first["data"]["sdp"].clone()],
        )
        .await;
    send(&mut socket, signal("a", "answer", &answer)).await;
    tab.until("mesh.peers.get('a').pc.signalingState === 'stable'")
        .await;

    // The page is polite towards `z`: it withdraws its offer and answers.
    send(
        &mut socket,
        json!({"type": "new", "sender": "z", "receiver": "all", "data": null}),
    )
    .await;
    receive_type(&mut socket, "offer", "z", &mut skipped).await;
    assert!(
        !skipped.contains(&("answer".into(), "a".into())),
        "{skipped:?}"
    );
    let colliding = tab.run("return offer(others.z)").await;
    send(&mut socket, signal("z", "offer", &colliding)).await;
    let answered = receive_type(&mut socket, "answer", "z", &mut skipped).await;
    let apply = "await others.z.setRemoteDescription(arguments[0])";
    tab.run_with(apply, vec![answered["data"].clone()]).await;
    // The withdrawn offer leaves no channel behind.
    assert_eq!(
        tab.run("return mesh.peers.get('z').pc.localDescription.sdp.match(/^m=.*/gm).length")
            .await,
        1
    );
    tab.run("mesh.peers.get('z').pc.createDataChannel('later')")
        .await;
    let again = receive_type(&mut socket, "offer", "z", &mut skipped).await;
    let answer_z = "return answer(others.z, arguments[0])";
    let answer = tab
        .run_with(answer_z, vec![again["data"]["sdp"].clone()])
        .await;
    // An offer that follows an answer at once does not collide.
    let next = tab
        .run("others.z.addTransceiver('video'); return offer(others.z)")
        .await;
    send(&mut socket, signal("z", "answer", &answer)).await;
    send(&mut socket, signal("z", "offer", &next)).await;
    let answered = receive_type(&mut socket, "answer", "z", &mut skipped).await;
    tab.run_with(apply, vec![answered["data"].clone()]).await;

    // Later offers collide: the page answers, and still sends its track.
    tab.run(
        "const [track] = (await navigator.mediaDevices.getUserMedia({ audio: true })).getTracks();
        mesh.addTrack(track);
        others.z.addTransceiver('video');",
    )
    .await;
    receive_type(&mut socket, "offer", "z", &mut skipped).await;
    let colliding = tab.run("return offer(others.z)").await;
    send(&mut socket, signal("z", "offer", &colliding)).await;
    let answered = receive_type(&mut socket, "answer", "z", &mut skipped).await;
    tab.run_with(apply, vec![answered["data"].clone()]).await;
    // The answer may include the track already.
    let sends = "return /a=send(recv|only)/.test(others.z.currentRemoteDescription.sdp)";
    if tab.run(sends).await == false {
        let offer = receive_type(&mut socket, "offer", "z", &mut skipped).await;
        tab.run_with(answer_z, vec![offer["data"]["sdp"].clone()])
            .await;
        assert_eq!(tab.run(sends).await, true);
    }
    assert_eq!(tab.run("return errors").await, json!([]));
    browser.close().await;
}

/// Writes the page in a chapter into a file. Returns the file's URL.
fn write_page(browser: &Browser, name: &str, text: &str, server: &TestServer) -> String {
    let page = blocks(text, "html").next().expect("a page");
    assert!(page.contains("//127.0.0.1:8080/"));
    let file = browser.folder.join(name);
    let page = page.replace("127.0.0.1:8080", &server.address.to_string());
    std::fs::write(&file, page).unwrap();
    format!("file://{}", file.display())
}

/// Checks that two pages make a call with each other, and that one of them notices when the other
/// leaves.
async fn check_call(browser: &Browser, pages: [&str; 2]) {
    let tabs = [browser.open(pages[0]).await, browser.open(pages[1]).await];
    for tab in &tabs {
        until_videos_play(tab, 1).await;
        tab.until("document.querySelectorAll('video').length === 2")
            .await;
    }
    let [first, second] = tabs;
    second.close().await;
    first
        .until("document.querySelectorAll('video').length === 1")
        .await;
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn the_readme_page_is_a_call() {
    let page = blocks(README, "html").next().expect("a page");
    assert!(
        page.lines().count() <= 15,
        "at most 15 lines, as the README promises a short page"
    );
    let server = TestServer::start().await;
    let browser = Browser::start().await;
    let url = write_page(&browser, "call.html", README, &server);
    check_call(&browser, [&url, &url]).await;
    browser.close().await;
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn the_page_without_the_module_calls_itself_and_a_mesh() {
    for [first, second] in [[CLIENT, CLIENT], [CLIENT, README], [README, CLIENT]] {
        let server = TestServer::start().await;
        let browser = Browser::start().await;
        let first = write_page(&browser, "first.html", first, &server);
        let second = write_page(&browser, "second.html", second, &server);
        check_call(&browser, [&first, &second]).await;
        browser.close().await;
    }
}
