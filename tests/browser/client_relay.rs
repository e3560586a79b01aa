//! The client module's `Mesh` with `relay`: the channel `mesh` goes through the room while there is no direct way.

use std::num::NonZeroU32;

use serde_json::{Value, json};

use super::{
    driver::{Browser, Tab},
    scripted_server::{open_module_page, static_server},
};
use crate::{
    bytes::send_bytes,
    guide::{CLIENT, blocks},
    support::{Client, TestServer},
};

/// Defines `enter(name, options, path)` in the page: joins a room with a mesh, which it returns. The mesh's `got` is
/// what has come through its channel, `states` are the states that it was told, and `outcomes` what it has told the
/// server. `problems` has what goes wrong anywhere, and the bytes that the application is given.
///
/// There are no TURN servers: with `policy.iceTransportPolicy` of `relay` there is no direct way. Each timer of at
/// least five seconds is 15 times as fast.
const ENTER: &str = "
    const wait = setTimeout;
    globalThis.setTimeout = (then, delay) => wait(then, delay >= 5000 ? delay / 15 : delay);
    globalThis.until = async (condition) => {
        while (!condition()) await new Promise((next) => wait(next, 10));
    };
    globalThis.problems = [];
    globalThis.policy = { iceTransportPolicy: 'relay' };
    globalThis.sockets = [];
    class Recorded extends WebSocket {
        constructor(...options) {
            super(...options);
            sockets.push(this);
        }
    }
    globalThis.enter = (name, options) => {
        const room = join(name, { WebSocket: Recorded });
        const mesh = new Mesh(room, { configuration: policy, ...options });
        Object.assign(mesh, { room, got: [], states: [], outcomes: [], channel: null });
        room.addEventListener('wire', ({ detail: { direction, text } }) => {
            const { type, data } = text ? JSON.parse(text) : {};
            if (direction === 'out' && type === 'outcome') mesh.outcomes.push(data.result);
        });
        room.addEventListener('bytes', ({ detail: { bytes } }) => problems.push([...bytes].join()));
        for (const target of [room, mesh]) target.addEventListener('error', ({ detail }) => problems.push(String(detail.error ?? detail)));
        mesh.addEventListener('statechange', ({ detail: { peer } }) => mesh.states.push(peer.state));
        mesh.addEventListener('datachannel', ({ detail: { channel } }) => {
            mesh.channel = channel;
            channel.addEventListener('message', ({ data }) => mesh.got.push(typeof data === 'string' ? data : new Uint8Array(data)));
        });
        return mesh;
    };
    globalThis.peer = (mesh) => [...mesh.peers.values()][0];
    globalThis.are = (state) => meshes.every((mesh) => peer(mesh)?.state === state);
    globalThis.open = () => meshes.every(({ channel }) => channel?.readyState === 'open');
    // Both send numbers until `stop`, which checks that all have arrived in order.
    globalThis.chatter = () => {
        for (const mesh of meshes) mesh.got = [];
        let sent = 0;
        const timer = setInterval(() => {
            for (const { channel } of meshes) channel.send(String(sent));
            sent += 1;
        }, 5);
        globalThis.stop = async () => {
            clearInterval(timer);
            await until(() => meshes.every(({ got }) => got.length >= sent));
            return sent > 10 && meshes.every(({ got }) => got.every((number, place) => number === String(place)));
        };
    };";

/// A page with two meshes of these options in a room, which the global `meshes` has.
async fn page_with_two<'a>(
    browser: &'a Browser,
    server: &TestServer,
    options: [&str; 2],
) -> Tab<'a> {
    let tab = open_module_page(browser, server, ENTER).await;
    let [first, second] = options;
    tab.run(&format!(
        "globalThis.meshes = [enter('relay', {first}), enter('relay', {second})]"
    ))
    .await;
    tab
}

const RELAY: &str = "{ relay: true }";

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn without_a_direct_way_the_channel_goes_through_the_room_until_there_is_one() {
    let server = static_server().await;
    let browser = Browser::start().await;
    let tab = page_with_two(&browser, &server, [RELAY, RELAY]).await;
    tab.until("open() && are('relayed')").await;
    assert_eq!(
        tab.run(
            "const [{ channel }, other] = meshes;
            const bytes = Uint8Array.from({ length: 200_000 }, (_, i) => i * 7);
            channel.send('text');
            channel.send(new Uint8Array(0));
            channel.send(bytes);
            channel.send('');
            channel.send(new Uint16Array([258]).buffer);
            for (let i = 0; i < 300; i += 1) other.channel.send(`back ${i}`);
            await until(() => other.got.length === 5 && meshes[0].got.length === 300);
            const [text, none, big, empty, view] = other.got;
            return [text, none.length, big.length, big.every((byte, i) => byte === bytes[i]), empty, [...view],
                meshes[0].got.every((text, i) => text === `back ${i}`)];"
        )
        .await,
        json!(["text", 0, 200_000, true, "", [2, 1], true])
    );
    tab.until("meshes.every(({ channel }) => channel.bufferedAmount === 0)")
        .await;

    // The application's own bytes are not the mesh's.
    tab.run(
        "meshes[0].room.sendBytes('all', Uint8Array.of(1, 2));
        meshes[0].channel.send('between');
        meshes[0].room.sendBytes(meshes[1].room.id, Uint8Array.of(3));",
    )
    .await;
    tab.until("problems.length === 2").await;
    assert_eq!(
        tab.run("return problems.splice(0)").await,
        json!(["1,2", "3"])
    );
    // For the operator, the direct connection has failed.
    tab.until("meshes.every(({ outcomes }) => outcomes.length === 1)")
        .await;
    assert_eq!(
        tab.run("return meshes.map(({ outcomes }) => outcomes)")
            .await,
        json!([["failed"], ["failed"]])
    );

    tab.run("chatter(); globalThis.before = connections.length; policy.iceTransportPolicy = 'all'")
        .await;
    tab.until("are('connected')").await;
    tab.run("await new Promise((next) => setTimeout(next, 200))")
        .await;
    assert_eq!(tab.run("return stop()").await, true);
    // The connections are the same, as are the channels.
    assert_eq!(
        tab.run("return [connections.length - before, open(), meshes.map(({ states }) => states.slice(-2)), problems]").await,
        json!([0, true, [["relayed", "connected"], ["relayed", "connected"]], []])
    );
    // Now nothing goes through the room.
    assert_eq!(
        tab.run(
            "let relayed = 0;
            for (const { room } of meshes) room.addEventListener('wire', ({ detail: { bytes } }) => (relayed += bytes ? 1 : 0));
            chatter();
            await new Promise((next) => setTimeout(next, 200));
            return [await stop(), relayed];"
        )
        .await,
        json!([true, 0])
    );
    tab.run("meshes[0].channel.send('last'); meshes[0].channel.close()")
        .await;
    tab.until("meshes.every(({ channel }) => channel.readyState === 'closed')")
        .await;
    assert_eq!(
        tab.run("return [meshes[1].got.at(-1), problems]").await,
        json!(["last", []])
    );
    browser.close().await;
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn a_direct_way_that_comes_and_goes_loses_doubles_and_reorders_nothing() {
    let server = static_server().await;
    let browser = Browser::start().await;
    let tab = page_with_two(&browser, &server, [RELAY, RELAY]).await;
    tab.run("policy.iceTransportPolicy = 'all'").await;
    tab.until("open() && are('connected')").await;
    // While it is `dead`, the direct way swallows what is sent, and each side notices at another time.
    tab.run(
        "const { get } = Object.getOwnPropertyDescriptor(Object.getPrototypeOf(RTCPeerConnection.prototype), 'connectionState');
        const { send } = RTCDataChannel.prototype;
        globalThis.dead = false;
        Object.defineProperty(RTCPeerConnection.prototype, 'connectionState', {
            get() { return dead ? 'failed' : get.call(this); },
        });
        RTCDataChannel.prototype.send = function (...data) {
            if (!dead) send.apply(this, data);
        };
        globalThis.notice = (place) => peer(meshes[place]).pc.dispatchEvent(new Event('connectionstatechange'));
        globalThis.moment = (ms) => new Promise((next) => setTimeout(next, ms));
        for (const mesh of meshes) mesh.states = [];
        chatter();
        for (let i = 0; i < 6; i += 1) {
            for (const now of [true, false]) {
                dead = now;
                await moment(60);
                notice(i % 2);
                await moment(60);
                notice(1 - i % 2);
                await moment(60);
            }
        }",
    )
    .await;
    assert_eq!(tab.run("return stop()").await, true);
    let states = tab
        .run("return meshes.map(({ states }) => states.join())")
        .await;
    let expected = ["relayed", "connected"].repeat(6).join(",");
    assert_eq!(states, json!([expected, expected]));
    assert_eq!(tab.run("return problems").await, json!([]));
    browser.close().await;
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn if_only_one_side_relays_neither_does() {
    let server = static_server().await;
    let browser = Browser::start().await;
    for options in [[RELAY, "{}"], ["{}", RELAY]] {
        let tab = page_with_two(&browser, &server, options).await;
        // Without an answer in time, new connections replace the old ones, as ever.
        tab.until("connections.length > 4").await;
        assert_eq!(
            tab.run("return [open(), meshes.some(({ states }) => states.includes('relayed'))]")
                .await,
            json!([false, false])
        );
        tab.run("policy.iceTransportPolicy = 'all'").await;
        tab.until("open() && are('connected')").await;
        assert_eq!(
            tab.run(
                "meshes.forEach(({ channel }, place) => channel.send(`from ${place}`));
                await until(() => meshes.every(({ got }) => got.length === 1));
                return [meshes.map(({ got }) => got[0]), meshes.every(({ channel }) => channel instanceof RTCDataChannel), problems];"
            )
            .await,
            json!([["from 1", "from 0"], true, []])
        );
        tab.run("for (const { room } of meshes) room.leave()").await;
    }
    browser.close().await;
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn what_is_relayed_stays_within_the_limits_of_the_session() {
    let server = TestServer::with(|config| {
        config.serving.static_dir = Some("static".into());
        config.limits.messages_per_second = NonZeroU32::new(50);
    })
    .await;
    let browser = Browser::start().await;
    let tab = page_with_two(&browser, &server, [RELAY, RELAY]).await;
    tab.until("open()").await;
    let refusals = tab
        .run(
            "const [{ channel }] = meshes;
            const attempt = (data) => {
                try {
                    channel.send(data);
                } catch (error) {
                    return error.code ?? error.name;
                }
            };
            const results = [attempt('x'.repeat(262_145)), attempt({}), attempt('x'.repeat(262_144))];
            while (!results.includes('queue_full')) results.push(attempt('x'.repeat(10_000)));
            return results.filter(Boolean);",
        )
        .await;
    assert_eq!(
        refusals,
        json!(["message_too_large", "TypeError", "queue_full"])
    );
    // The room has place for other messages, and sends them soon.
    assert_eq!(
        tab.run("return [meshes[0].room.bufferedAmount < 80_000, await outcome(meshes[0].room.broadcast('other'))]").await,
        json!([true, 1])
    );
    tab.run(
        "const [{ channel }] = meshes;
        channel.bufferedAmountLowThreshold = 1000;
        globalThis.low = 0;
        channel.onbufferedamountlow = () => (low += 1);
        await until(() => channel.bufferedAmount === 0);",
    )
    .await;
    assert_eq!(tab.run("return low").await, 1);

    // Many small messages make few large ones: far more than 50 a second.
    assert_eq!(
        tab.run(
            "for (const mesh of meshes) mesh.got = [];
            for (let i = 0; i < 2000; i += 1) for (const { channel } of meshes) channel.send(String(i));
            const began = performance.now();
            await until(() => meshes.every(({ got }) => got.length === 2000));
            return [meshes.every(({ got }) => got.every((text, i) => text === String(i))), performance.now() - began < 10_000];"
        )
        .await,
        json!([true, true])
    );
    // A server that accepts only short messages gets short ones.
    assert_eq!(
        tab.run(
            "for (const { room } of meshes) Object.defineProperty(room, 'messageBytes', { value: 400 });
            let longest = 0;
            meshes[0].room.addEventListener('wire', ({ detail: { direction, bytes } }) => {
                if (direction === 'out') longest = Math.max(longest, (bytes?.length ?? 0) + 16);
            });
            meshes[1].got = [];
            meshes[0].channel.send('y'.repeat(5000));
            await until(() => meshes[1].got.length === 1);
            return [meshes[1].got[0] === 'y'.repeat(5000), longest, problems];"
        )
        .await,
        json!([true, 400, []])
    );
    browser.close().await;
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn what_is_relayed_survives_resumed_sessions_and_a_peer_that_leaves_is_no_error() {
    let server = static_server().await;
    let browser = Browser::start().await;
    let tab = page_with_two(&browser, &server, [RELAY, RELAY]).await;
    tab.until("open()").await;
    let ids = tab.run("return meshes.map(({ room }) => room.id)").await;
    for place in 0..4 {
        tab.run(&format!(
            "chatter();
            const [{{ room }}] = meshes.slice({place} % 2);
            const resumed = new Promise((done) => room.addEventListener('statechange', function listen({{ detail }}) {{
                if (detail.state !== 'open') return;
                room.removeEventListener('statechange', listen);
                done(detail.resumed);
            }}));
            await new Promise((next) => setTimeout(next, 100));
            for (const socket of sockets) socket.close(4000);
            if (!await resumed) throw new Error('it is another session');"
        ))
        .await;
        assert_eq!(tab.run("return stop()").await, true);
    }
    assert_eq!(
        tab.run("return meshes.map(({ room }) => room.id)").await,
        ids
    );
    assert_eq!(tab.run("return are('relayed')").await, true);

    // One goes on to send, until it hears that the other has left.
    tab.run(
        "const [{ channel }] = meshes;
        globalThis.gone = false;
        const timer = setInterval(() => {
            try {
                channel.send('x');
            } catch {
                clearInterval(timer);
            }
        }, 1);
        channel.onclose = () => (gone = true);
        setTimeout(() => meshes[1].room.leave(), 50);",
    )
    .await;
    tab.until("gone").await;
    assert_eq!(
        tab.run(
            "await meshes[0].room.send('server', 'ping');
            try {
                meshes[0].channel.send('late');
            } catch (error) {
                return [error.name, problems];
            }"
        )
        .await,
        json!(["InvalidStateError", []])
    );
    browser.close_regardless().await;
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn packets_that_make_no_sense_break_nothing_and_reach_no_application() {
    let server = static_server().await;
    let browser = Browser::start().await;
    let mut attacker = Client::join(&server, "relay").await;
    let tab = page_with_two(&browser, &server, [RELAY, "{ relay: true }"]).await;
    tab.until("open()").await;
    // The mark and any number: of a connection that this session does not have.
    let mark = [0xa7, 0x1d, 0xe5, 0x0c, 0x93, 0x4b, 0xf8, 0x66];
    for rest in [&[][..], &[0], &[1, 2, 3, 4], &[0xff; 40]] {
        send_bytes(&mut attacker, [0; 16], &[&mark[..], rest].concat()).await;
    }
    // Almost the mark: the application's.
    send_bytes(&mut attacker, [0; 16], &mark[..7]).await;
    let others = "problems.filter((problem) => !/RangeError/.test(problem))";
    tab.until(&format!("{others}.length >= 2")).await;
    assert_eq!(
        tab.run(&format!(
            "const others = {others}; problems = []; return others"
        ))
        .await,
        json!(["167,29,229,12,147,75,248", "167,29,229,12,147,75,248"])
    );
    // A peer with a connection sends each packet also cut short, with other numbers, and again.
    tab.run(
        "const { sendBytes } = Room.prototype;
        Room.prototype.sendBytes = function (receiver, bytes) {
            if (this === meshes[0].room) {
                for (const end of [8, 11, 12, 15, 19, 22, bytes.length - 1]) sendBytes.call(this, receiver, bytes.slice(0, end));
                const later = bytes.slice();
                later.set([0x7f, 0xff], 16);
                sendBytes.call(this, receiver, later);
                const stranger = bytes.slice();
                stranger[8] ^= 1;
                sendBytes.call(this, receiver, stranger);
                sendBytes.call(this, receiver, bytes);
            }
            sendBytes.call(this, receiver, bytes);
        };",
    )
    .await;
    assert_eq!(
        tab.run(
            "for (let i = 0; i < 20; i += 1) {
                for (const { channel } of meshes) channel.send(`${i}`);
                await new Promise((next) => setTimeout(next, 20));
            }
            await until(() => meshes.every(({ got }) => got.at(-1) === '19'));
            return problems.filter((problem) => !/RangeError/.test(problem));"
        )
        .await,
        json!([])
    );
    // The other direction has seen nothing of it.
    assert_eq!(
        tab.run("return meshes[0].got").await,
        Value::from((0..20).map(|i| i.to_string()).collect::<Vec<_>>())
    );
    assert_eq!(tab.run("return open() && problems.length > 0").await, true);
    browser.close().await;
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn the_relay_of_the_guide_says_hello() {
    let server = static_server().await;
    let browser = Browser::start().await;
    let recipe = blocks(CLIENT, "js").find(|block| block.contains("relay: true"));
    let recipe = recipe.expect("the guide has the recipe");
    let script = format!(
        "const Direct = RTCPeerConnection;
        globalThis.RTCPeerConnection = class extends Direct {{
            constructor(configuration) {{ super({{ ...configuration, iceTransportPolicy: 'relay' }}); }}
            setConfiguration(configuration) {{ super.setConfiguration({{ ...configuration, iceTransportPolicy: 'relay' }}); }}
        }};
        globalThis.room = join('hello');
        globalThis.shown = [];
        globalThis.show = (...what) => shown.push(what);
        {recipe}"
    );
    let tabs = [
        open_module_page(&browser, &server, &script).await,
        open_module_page(&browser, &server, &script).await,
    ];
    let id = tabs[0].run("return room.opened.then(() => room.id)").await;
    tabs[1].until("shown.length === 2").await;
    assert_eq!(
        tabs[1].run("return shown").await,
        json!([[id, "relayed"], [id, "hello"]])
    );
    browser.close().await;
}
