//! The client module's binary messages: receivers, errors, the roster, resuming, and what waits.

use std::num::NonZeroU32;

use futures_util::{SinkExt, StreamExt};
use serde_json::json;
use tokio_tungstenite::tungstenite::Message;
use uuid::Uuid;

use super::{
    driver::{Browser, Tab},
    scripted_server::{
        ScriptedServer, Socket, ack, open_module_page, receive, roster, send, static_server,
    },
};
use crate::{
    bytes::{expect_bytes, send_bytes},
    guide::{CLIENT, blocks},
    support::{Client, TestServer, within_deadline},
};

/// The receiver of a message to all.
const ALL: [u8; 16] = [0; 16];
/// A peer of the scripted server.
const PEER: &str = "6c1f2a44-9f6e-4e4d-8f31-0123456789ab";

/// Collects the events `bytes` of the global `room` in `got`, and its errors in `failed`.
const COLLECT: &str = "
    globalThis.got = [];
    globalThis.failed = [];
    room.addEventListener('bytes', ({ detail: { sender, bytes } }) => {
        if (bytes.constructor !== Uint8Array || bytes.buffer.byteLength !== bytes.length) throw new Error('no own buffer');
        got.push([sender, [...bytes]]);
    });
    room.addEventListener('error', ({ detail: { code } }) => failed.push(code));
    globalThis.attempt = (receiver, bytes) => {
        try {
            return room.sendBytes(receiver, bytes) ?? 'sent';
        } catch (error) {
            return error.code ?? error.name;
        }
    };";

/// A page that has joined a room of a real server.
async fn joined<'a>(browser: &'a Browser, server: &TestServer, name: &str) -> Tab<'a> {
    let script = format!("globalThis.room = join('{name}'); {COLLECT} await room.opened");
    open_module_page(browser, server, &script).await
}

/// The bytes of an id.
fn id_bytes(id: &str) -> [u8; 16] {
    Uuid::parse_str(id).unwrap().into_bytes()
}

/// A binary message to the page.
fn binary(sender: &str, payload: &[u8]) -> Message {
    Message::binary([&id_bytes(sender)[..], payload].concat())
}

/// Receives the next message of the page, which must be binary.
async fn receive_bytes(socket: &mut Socket) -> Vec<u8> {
    let message = within_deadline("bytes", socket.next()).await;
    match message.unwrap().unwrap() {
        Message::Binary(bytes) => bytes.to_vec(),
        other => panic!("expected bytes, got {other:?}"),
    }
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn bytes_go_to_one_session_or_to_all_and_arrive_in_a_buffer_of_their_own() {
    let server = static_server().await;
    let browser = Browser::start().await;
    let mut alice = Client::join(&server, "bytes").await;
    let tab = joined(&browser, &server, "bytes").await;
    let id = alice.next().await["sender"].as_str().unwrap().to_owned();
    let alice_id = json!(alice.id);
    let sent = tab
        .run_with(
            "const [alice] = arguments;
            const numbers = Uint8Array.from({ length: 256 }, (_, i) => i);
            room.sendBytes(alice, numbers);
            numbers.fill(0);
            room.broadcast('between', 1);
            room.sendBytes('all', numbers.buffer.slice(0, 2));
            room.sendBytes('all', new DataView(Uint8Array.of(7, 8, 9).buffer, 1));
            room.sendBytes('all', new Float32Array([1]));
            room.sendBytes('all', new ArrayBuffer(0));
            room.sendBytes(room.id, Uint8Array.of(5));
            return room.bufferedAmount;",
            vec![alice_id],
        )
        .await;
    // How much of it the browser has sent is its own affair.
    assert!(sent.is_number(), "{sent}");
    let every_byte: Vec<u8> = (0..=255).collect();
    expect_bytes(&mut alice, &id, &every_byte).await;
    assert_eq!(alice.next().await["type"], "between");
    for payload in [&[0, 0][..], &[8, 9], &[0, 0, 128, 63], &[]] {
        expect_bytes(&mut alice, &id, payload).await;
    }
    send_bytes(&mut alice, id_bytes(&id), &every_byte).await;
    send_bytes(&mut alice, ALL, &[]).await;
    tab.until("got.length === 3").await;
    assert_eq!(
        tab.run("return [got, failed]").await,
        json!([[[id, [5]], [alice.id, every_byte], [alice.id, []]], [],])
    );
    tab.until("room.bufferedAmount === 0").await;
    browser.close().await;
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn what_is_wrong_throws_and_the_servers_errors_are_events() {
    let server = static_server().await;
    let browser = Browser::start().await;
    let tab = joined(&browser, &server, "errors").await;
    for (call, expected) in [
        ("'all', new Uint8Array(65_536 - 16)", "sent"),
        ("'all', new Uint8Array(65_536 - 15)", "message_too_large"),
        ("'all', 'text'", "TypeError"),
        ("'all', [1, 2]", "TypeError"),
        ("'all'", "TypeError"),
        ("undefined, new Uint8Array(1)", "TypeError"),
        ("'server', new Uint8Array(1)", "TypeError"),
        ("'user:alice', new Uint8Array(1)", "TypeError"),
        // It would be everyone's.
        (
            "'00000000-0000-0000-0000-000000000000', new Uint8Array(1)",
            "TypeError",
        ),
        (
            "'6C1F2A44-9F6E-4E4D-8F31-0123456789AB', new Uint8Array(1)",
            "TypeError",
        ),
        (
            "'6c1f2a44-9f6e-4e4d-8f31-0123456789ab', new Uint8Array(1)",
            "sent",
        ),
    ] {
        assert_eq!(
            tab.run(&format!("return attempt({call})")).await,
            expected,
            "{call}"
        );
    }
    tab.until("failed.length === 2").await;
    assert_eq!(
        tab.run("return failed").await,
        json!(["empty_room", "unknown_receiver"])
    );
    assert_eq!(
        tab.run("room.leave(); return attempt('all', new Uint8Array(1))")
            .await,
        "closed"
    );
    browser.close().await;
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn bytes_before_the_roster_are_kept_if_their_sender_is_there() {
    let browser = Browser::start().await;
    let (server, tab) = ScriptedServer::with_page(&browser, "{}").await;
    tab.run(COLLECT).await;
    let gone = "00000000-0000-4000-8000-000000000001";
    let mut socket = server.accept().await;
    for message in [
        binary(PEER, b"1"),
        binary(gone, b"2"),
        Message::text(roster(&[PEER]).to_string()),
        binary(PEER, b"3"),
        // No sender at all, and nobody.
        Message::binary(vec![1; 15]),
        Message::binary(vec![0; 16]),
        binary(PEER, b"4"),
    ] {
        socket.send(message).await.unwrap();
    }
    tab.until("got.length === 3").await;
    assert_eq!(
        tab.run("return [got, failed]").await,
        json!([
            [[PEER, [b'1']], [PEER, [b'3']], [PEER, [b'4']]],
            ["bad_message", "bad_message"],
        ])
    );
    browser.close().await;
}

/// A page with a session that can be resumed, after it has sent the bytes `1`, a text, and the bytes `2`.
async fn page_that_has_sent_three<'a>(browser: &'a Browser) -> (ScriptedServer, Tab<'a>, Socket) {
    let (server, tab) = ScriptedServer::with_page(browser, "{}").await;
    tab.run(COLLECT).await;
    let mut socket = server.accept().await;
    let mut hello = roster(&[PEER]);
    hello["data"]["resume"] = json!({"token": "secret", "seconds": 30});
    send(&mut socket, hello).await;
    tab.until("room.state === 'open'").await;
    tab.run_with(
        "room.sendBytes(arguments[0], Uint8Array.of(1));
        globalThis.text = outcome(room.broadcast('text'));
        room.sendBytes('all', Uint8Array.of(2));",
        vec![json!(PEER)],
    )
    .await;
    assert_eq!(
        receive_bytes(&mut socket).await,
        [&id_bytes(PEER)[..], &[1]].concat()
    );
    assert_eq!(receive(&mut socket).await["type"], "text");
    assert_eq!(receive_bytes(&mut socket).await, [&ALL[..], &[2]].concat());
    (server, tab, socket)
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn bytes_count_and_are_sent_again_when_a_session_is_resumed() {
    let browser = Browser::start().await;
    let (server, tab, mut socket) = page_that_has_sent_three(&browser).await;
    for number in 1..=3 {
        socket.send(binary(PEER, &[number])).await.unwrap();
    }
    tab.until("got.length === 3").await;
    drop(socket);
    tab.until("room.state === 'reconnecting'").await;
    assert_eq!(
        tab.run("room.sendBytes('all', Uint8Array.of(3)); return room.bufferedAmount")
            .await,
        17
    );
    let (mut socket, query) = server.accept_with_query().await;
    // The roster, and three times bytes.
    assert_eq!(query, "resume=secret&received=4");
    // The server has received `hello` and the first bytes.
    let resumed =
        json!({"type": "resumed", "sender": "server", "receiver": "me", "data": {"received": 2}});
    send(&mut socket, resumed).await;
    let text = receive(&mut socket).await;
    assert_eq!(text["type"], "text");
    for number in 2..=3 {
        assert_eq!(
            receive_bytes(&mut socket).await,
            [&ALL[..], &[number]].concat()
        );
    }
    send(&mut socket, ack(&text)).await;
    assert_eq!(tab.run("return text").await, 1);
    assert_eq!(tab.run("return room.bufferedAmount").await, 0);
    browser.close_regardless().await;
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn in_a_new_session_only_bytes_that_waited_are_sent() {
    let browser = Browser::start().await;
    let (server, tab, socket) = page_that_has_sent_three(&browser).await;
    drop(socket);
    tab.until("room.state === 'reconnecting'").await;
    // The limit of the next server is not known yet.
    tab.run("room.sendBytes('all', Uint8Array.of(3)); room.sendBytes('all', new Uint8Array(80))")
        .await;
    let (mut socket, _) = server.accept_with_query().await;
    let data = json!({"code": "resume_failed", "message": "too late"});
    send(
        &mut socket,
        json!({"type": "error", "sender": "server", "receiver": "me", "data": data}),
    )
    .await;
    assert_eq!(receive(&mut socket).await["type"], "hello");
    let mut hello = roster(&[PEER]);
    hello["data"]["limits"]["messageBytes"] = json!(90);
    send(&mut socket, hello).await;
    assert_eq!(receive_bytes(&mut socket).await, [&ALL[..], &[3]].concat());
    tab.run("room.sendBytes('all', Uint8Array.of(4))").await;
    assert_eq!(receive_bytes(&mut socket).await, [&ALL[..], &[4]].concat());
    assert_eq!(
        tab.run("return Promise.all([text, failed])").await,
        json!(["connection_lost", ["message_too_large"]])
    );
    browser.close_regardless().await;
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn bytes_wait_within_limits_and_the_amount_tells_how_much() {
    let server = TestServer::with(|config| {
        config.serving.static_dir = Some("static".into());
        config.limits.messages_per_second = NonZeroU32::new(100);
    })
    .await;
    let browser = Browser::start().await;
    let mut alice = Client::join(&server, "limits").await;
    let tab = joined(&browser, &server, "limits").await;
    let id = alice.next().await["sender"].as_str().unwrap().to_owned();
    // A second's worth goes out at once, the rest at the rate.
    let waiting = tab
        .run(
            "for (let i = 0; i < 150; i += 1) room.sendBytes('all', Uint8Array.of(i));
            return room.bufferedAmount",
        )
        .await;
    assert!(
        (17 * 40..=17 * 150).contains(&waiting.as_u64().unwrap()),
        "{waiting}"
    );
    for number in 0..150 {
        expect_bytes(&mut alice, &id, &[number]).await;
    }
    tab.until("room.bufferedAmount === 0").await;
    assert_eq!(tab.run("return failed").await, json!([]));
    browser.close().await;
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn bytes_without_receipts_do_not_fill_the_queue_for_ever() {
    let server = static_server().await;
    let browser = Browser::start().await;
    let mut alice = Client::join(&server, "long").await;
    let tab = joined(&browser, &server, "long").await;
    let id = alice.next().await["sender"].as_str().unwrap().to_owned();
    // The limit is 1 MiB, and counts what is on its way.
    let refused = tab
        .run(
            "globalThis.sent = 0;
            for (; attempt('all', new Uint8Array(1008).fill(sent)) === 'sent'; sent += 1);
            return [sent, attempt('all', new Uint8Array(1008))];",
        )
        .await;
    // The requests for receipts have their bytes, too.
    let count = refused[0].as_u64().unwrap();
    assert!((1020..=1024).contains(&count), "{refused}");
    assert_eq!(refused[1], "queue_full");
    for number in 0..count {
        expect_bytes(&mut alice, &id, &[number as u8; 1008]).await;
    }
    // Nobody asks for a receipt of theirs, and 4 MiB more are sent.
    let script = "for (let i = 0; i < 4096; i += 1) {
            while (attempt('all', new Uint8Array(1008).fill(i)) !== 'sent') await new Promise((next) => setTimeout(next, 5));
        }";
    let sending = tab.run(script);
    let receiving = async {
        for number in 0..4096 {
            expect_bytes(&mut alice, &id, &[number as u8; 1008]).await;
        }
    };
    tokio::join!(sending, receiving);
    assert_eq!(tab.run("return failed").await, json!([]));
    browser.close().await;
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn the_cursors_of_the_guide_follow_each_other_and_skip_what_a_slow_connection_cannot_send() {
    let server = static_server().await;
    let browser = Browser::start().await;
    let recipe = blocks(CLIENT, "js").find(|block| block.contains("sendBytes"));
    let recipe = recipe.expect("the guide has the recipe");
    let script = format!(
        "globalThis.room = join('cursors');
        globalThis.moved = [];
        globalThis.moveCursor = (...cursor) => moved.push(cursor);
        await room.opened;
        {recipe}"
    );
    let tabs = [
        open_module_page(&browser, &server, &script).await,
        open_module_page(&browser, &server, &script).await,
    ];
    tabs[0].until("room.peers.size === 1").await;
    let id = tabs[0].run("return room.id").await;
    let point = "dispatchEvent(new PointerEvent('pointermove', { clientX: innerWidth / 2, clientY: innerHeight / 4 }))";
    tabs[0].run(point).await;
    tabs[1].until("moved.length === 1").await;
    assert_eq!(tabs[1].run("return moved").await, json!([[id, 0.5, 0.25]]));
    // Neither what is no position, nor one for which the connection is too slow, moves anything.
    tabs[1]
        .run("globalThis.last = new Promise((done) => room.addEventListener('message', () => done(true)))")
        .await;
    tabs[0]
        .run(&format!(
            "room.sendBytes('all', new Uint8Array(7));
            Object.defineProperty(room, 'bufferedAmount', {{ value: 1 }});
            {point};
            room.broadcast('last');"
        ))
        .await;
    tabs[1].until("last").await;
    assert_eq!(tabs[1].run("return moved.length").await, 1);
    browser.close().await;
}
