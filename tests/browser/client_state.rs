//! The client module's states of sessions, and messages to users.

use serde_json::{Value, json};

use super::{
    driver::Browser,
    scripted_server::{
        ScriptedServer, Socket, ack, close, open_module_page, receive, roster, send, static_server,
    },
};
use crate::{
    support::{Client, File, TestServer},
    tokens::{SECRET, sign, with_secret},
};

/// The announcement of a state.
fn state(id: &str, state: Value) -> Value {
    json!({"type": "state", "sender": id, "receiver": null, "data": state})
}

/// The answer to `hello`, with these states of others in the room, and a session that can be resumed.
fn roster_with_states(peers: &[(&str, Value)]) -> Value {
    let ids: Vec<_> = peers.iter().map(|(id, _)| *id).collect();
    let mut roster = roster(&ids);
    for (place, (_, state)) in peers.iter().enumerate() {
        roster["data"]["peers"][place]["state"] = state.clone();
    }
    roster["data"]["resume"] = json!({"token": "secret", "seconds": 30});
    roster
}

/// Receives a request that sets the state, and answers it.
async fn expect_state(socket: &mut Socket, state: Value) {
    let request = receive(socket).await;
    assert_eq!(
        (&request["type"], &request["receiver"], &request["data"]),
        (&json!("state"), &json!("server"), &state)
    );
    send(socket, ack(&request)).await;
}

/// Refuses to resume a session, and starts a new one with this roster.
async fn start_new_session(socket: &mut Socket, roster: Value) {
    let data = json!({"code": "resume_failed", "message": "too late"});
    let failed = json!({"type": "error", "sender": "server", "receiver": "me", "data": data});
    send(socket, failed).await;
    assert_eq!(receive(socket).await["type"], "hello");
    send(socket, roster).await;
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn others_see_a_state_at_once_and_whoever_joins_later_at_the_joining() {
    let server = static_server().await;
    let mut alice = Client::join(&server, "states").await;
    alice.set_state(json!({"name": "Alice"})).await;
    let browser = Browser::start().await;
    // Of the states that are set before the room is open, only the last one is sent.
    let tab = open_module_page(
        &browser,
        &server,
        "globalThis.room = join('states');
        globalThis.events = [];
        for (const type of ['peerjoin', 'peerstate', 'message']) {
            room.addEventListener(type, ({ detail }) => events.push([type, detail.state ?? detail.data]));
        }
        globalThis.set = ['one', 'two', 'three'].map((state) => outcome(room.setState(state)));",
    )
    .await;
    assert_eq!(
        tab.run("return Promise.all([...set, room.ownState])").await,
        json!([1, 1, 1, "three"])
    );
    let new = alice.next().await;
    assert_eq!(new["type"], "new");
    let id = new["sender"].as_str().unwrap();
    alice.expect_state(id, json!("three")).await;
    assert_eq!(
        tab.run("return outcome(room.setState({ muted: true }))")
            .await,
        1
    );
    alice.expect_state(id, json!({"muted": true})).await;

    let mut bob = Client::join(&server, "states").await;
    alice.expect_new(&bob.id).await;
    let states = bob.states().await;
    assert_eq!(states[1], (id.to_owned(), json!({"muted": true})));
    alice.set_state(json!({"name": "Alicia"})).await;
    // The same state again is no change.
    alice.set_state(json!({"name": "Alicia"})).await;
    alice.set_state(Value::Null).await;
    // What a session says is no state, whatever its type.
    let forged = json!({"type": "state", "receiver": "all", "data": "forged"});
    alice.send(forged).await;
    tab.until("events.at(-1)?.[0] === 'message'").await;
    assert_eq!(
        tab.run("return events").await,
        json!([
            ["peerjoin", {"name": "Alice"}],
            ["peerjoin", null],
            ["peerstate", {"name": "Alicia"}],
            ["peerstate", null],
            ["message", "forged"],
        ])
    );
    assert_eq!(
        tab.run("return [...room.peers.values()].map(({ state }) => state)")
            .await,
        json!([null, null])
    );
    assert_eq!(
        tab.run("return [await outcome(room.setState(null)), room.ownState]")
            .await,
        json!([1, null])
    );
    tab.run("room.leave()").await;
    assert_eq!(
        tab.run("return outcome(room.setState('late'))").await,
        "closed"
    );
    browser.close().await;
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn a_new_session_sets_the_last_state_again_before_all_that_waits() {
    let browser = Browser::start().await;
    let (server, tab) = ScriptedServer::with_page(&browser, "{}").await;
    let mut socket = server.accept().await;
    // The roster is later than a state that comes before it.
    send(&mut socket, state("a", json!("old"))).await;
    let peers = [
        ("a", json!("same")),
        ("b", json!("before")),
        ("c", json!(1)),
    ];
    send(&mut socket, roster_with_states(&peers)).await;
    tab.until("room.state === 'open'").await;
    assert_eq!(
        tab.run("return events.map(([type, { id, state }]) => [type, id, state])")
            .await,
        json!([
            ["peerjoin", "a", "same"],
            ["peerjoin", "b", "before"],
            ["peerjoin", "c", 1],
            ["statechange", null, "open"],
        ])
    );
    tab.run("globalThis.first = outcome(room.setState('first'))")
        .await;
    expect_state(&mut socket, json!("first")).await;
    assert_eq!(tab.run("return first").await, 1);

    // The page has a receipt for the state.
    tab.run("events.length = 0").await;
    drop(socket);
    tab.until("room.state === 'reconnecting'").await;
    tab.run("globalThis.later = outcome(room.broadcast('later'))")
        .await;
    let mut socket = server.accept_without_hello().await;
    let peers = [
        ("a", json!("same")),
        ("b", json!("after")),
        ("c", Value::Null),
    ];
    start_new_session(&mut socket, roster_with_states(&peers)).await;
    expect_state(&mut socket, json!("first")).await;
    let later = receive(&mut socket).await;
    assert_eq!(later["type"], "later");
    send(&mut socket, ack(&later)).await;
    assert_eq!(tab.run("return later").await, 1);
    assert_eq!(
        tab.run("return events.slice(1).map(([type, { id, state }]) => [type, id, state])")
            .await,
        json!([
            ["peerstate", "b", "after"],
            ["peerstate", "c", null],
            ["statechange", null, "open"],
        ])
    );

    // The page has no receipt: that of the new session is the promise's. A state before it, and other messages, may
    // or may not have arrived.
    tab.run(
        "globalThis.sent = [room.setState('second'), room.broadcast('x'), room.setState('third')].map(outcome)",
    )
    .await;
    for kind in ["state", "x", "state"] {
        assert_eq!(receive(&mut socket).await["type"], kind);
    }
    close(socket, 1012, "restart").await;
    let mut socket = server.accept_without_hello().await;
    start_new_session(&mut socket, roster(&[])).await;
    expect_state(&mut socket, json!("third")).await;
    assert_eq!(
        tab.run("return Promise.all([...sent, room.ownState])")
            .await,
        json!(["connection_lost", "connection_lost", 1, "third"])
    );

    // The server keeps no sessions: nothing can be resumed.
    drop(socket);
    let mut socket = server.accept().await;
    send(&mut socket, roster(&[])).await;
    expect_state(&mut socket, json!("third")).await;

    // A state that waits overtakes the messages that wait.
    drop(socket);
    tab.until("room.state === 'reconnecting'").await;
    tab.run("room.broadcast('again'); room.setState('fourth')")
        .await;
    let mut socket = server.accept().await;
    send(&mut socket, roster(&[])).await;
    expect_state(&mut socket, json!("fourth")).await;
    assert_eq!(receive(&mut socket).await["type"], "again");
    browser.close_regardless().await;
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn a_resumed_session_sends_only_the_last_of_the_states_that_wait() {
    let browser = Browser::start().await;
    let (server, tab) = ScriptedServer::with_page(&browser, "{}").await;
    let mut socket = server.accept().await;
    send(&mut socket, roster_with_states(&[("a", Value::Null)])).await;
    tab.until("room.state === 'open'").await;
    tab.run("globalThis.sent = [outcome(room.setState('received'))]")
        .await;
    assert_eq!(receive(&mut socket).await["data"], "received");
    drop(socket);
    tab.until("room.state === 'reconnecting'").await;
    tab.run(
        "sent.push(...[room.setState('waits'), room.broadcast('x'), room.setState('last')].map(outcome))",
    )
    .await;
    let mut socket = server.accept_without_hello().await;
    let data = json!({"received": 2});
    let resumed = json!({"type": "resumed", "sender": "server", "receiver": "me", "data": data});
    send(&mut socket, resumed).await;
    let received = json!({"type": "ack", "sender": "server", "receiver": "me", "data": {"ref": 1, "receivers": 1}});
    send(&mut socket, received).await;
    let x = receive(&mut socket).await;
    assert_eq!(x["type"], "x");
    send(&mut socket, ack(&x)).await;
    expect_state(&mut socket, json!("last")).await;
    assert_eq!(
        tab.run("return Promise.all(sent)").await,
        json!([1, 1, 1, 1])
    );
    browser.close().await;
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn by_the_rates_a_state_counts_as_a_message_to_all() {
    let browser = Browser::start().await;
    let (server, tab) = ScriptedServer::with_page(&browser, "{}").await;
    let mut socket = server.accept().await;
    let mut hello = roster(&["a", "b", "c", "d", "e", "f", "g", "h", "i"]);
    hello["data"]["limits"]["bytesPerSecond"] = json!(1000);
    send(&mut socket, hello).await;
    tab.until("room.state === 'open'").await;
    tab.run(
        "globalThis.times = [];
        room.addEventListener('wire', ({ detail: { direction } }) => {
            if (direction === 'out') times.push(performance.now());
        });",
    )
    .await;
    // The server counts each state of 70 bytes ten times.
    let text = "x".repeat(18);
    for _ in 0..3 {
        tab.run(&format!("room.setState('{text}')")).await;
        expect_state(&mut socket, json!(text)).await;
    }
    // Two of them may be sent at once. The third waits until 1400 bytes have become 1000.
    assert_eq!(tab.run("return times[2] - times[0] >= 390").await, true);
    browser.close().await;
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn a_state_that_the_server_refuses_is_not_set_again() {
    let browser = Browser::start().await;
    let (server, tab) = ScriptedServer::with_page(&browser, "{}").await;
    let mut socket = server.accept().await;
    send(&mut socket, roster(&[])).await;
    tab.until("room.state === 'open'").await;
    tab.run(
        "globalThis.sent = ['good', 'bad', 'worse'].map((state) => outcome(room.setState(state)))",
    )
    .await;
    let good = receive(&mut socket).await;
    send(&mut socket, ack(&good)).await;
    for _ in ["bad", "worse"] {
        let request = receive(&mut socket).await;
        let data = json!({"code": "bad_message", "message": "too long", "ref": request["ref"]});
        let error = json!({"type": "error", "sender": "server", "receiver": "me", "data": data});
        send(&mut socket, error).await;
    }
    assert_eq!(
        tab.run("return Promise.all(sent)").await,
        json!([1, "bad_message", "bad_message"])
    );
    assert_eq!(tab.run("return room.ownState").await, "good");
    // What is no JSON, and what is longer than any message, is refused by the room itself.
    assert_eq!(
        tab.run(
            "return Promise.all([
                room.setState(1n).catch(({ name }) => name),
                outcome(room.setState('x'.repeat(1000))),
            ])"
        )
        .await,
        json!(["TypeError", "message_too_large"])
    );
    drop(socket);
    let mut socket = server.accept().await;
    send(&mut socket, roster(&[])).await;
    expect_state(&mut socket, json!("good")).await;
    assert_eq!(tab.run("return room.ownState").await, "good");
    browser.close_regardless().await;
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn a_state_that_is_nested_too_deeply_and_a_state_of_nobody_do_no_harm() {
    let browser = Browser::start().await;
    let (server, tab) = ScriptedServer::with_page(&browser, "{}").await;
    let mut socket = server.accept().await;
    send(&mut socket, roster(&["a"])).await;
    tab.until("room.state === 'open'").await;
    // How deep a browser can go depends on the browser.
    tab.run(
        "const { stringify } = JSON;
        JSON.stringify = (value) => {
            if (Array.isArray(value)) throw new RangeError('Maximum call stack size exceeded');
            return stringify(value);
        };",
    )
    .await;
    for _ in 0..2 {
        send(&mut socket, state("a", json!([[[]]]))).await;
    }
    send(&mut socket, state("nobody", json!(1))).await;
    send(&mut socket, state("a", json!(2))).await;
    tab.until("room.peers.get('a').state === 2").await;
    assert_eq!(
        tab.run("return [events.map(([type]) => type), [...room.peers.keys()]]")
            .await,
        json!([
            [
                "peerjoin",
                "statechange",
                "peerstate",
                "peerstate",
                "peerstate"
            ],
            ["a"]
        ])
    );
    browser.close().await;
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn a_message_to_a_user_reaches_every_other_tab_of_that_user() {
    let secret = File::new("browser.users", SECRET);
    let server = TestServer::with(|config| {
        config.serving.static_dir = Some("static".into());
        with_secret(config, &secret);
    })
    .await;
    let browser = Browser::start().await;
    let tab = open_module_page(
        &browser,
        &server,
        "globalThis.received = [];
        globalThis.enter = async (name, token) => {
            const room = await join('users', { token }).opened;
            room.addEventListener('message', ({ detail: { type, receiver, data } }) => {
                received.push([name, type, receiver, data]);
            });
            return (globalThis[name] = room);
        };",
    )
    .await;
    for (name, user) in [("phone", "alice"), ("laptop", "alice"), ("bob", "bob")] {
        let token = sign(json!({"sub": user}));
        tab.run_with(
            "return enter(...arguments).then(() => null)",
            vec![json!(name), json!(token)],
        )
        .await;
    }
    assert_eq!(
        tab.run("return outcome(bob.sendToUser('alice', 'wave', { x: 1 }))")
            .await,
        2
    );
    assert_eq!(
        tab.run("return outcome(phone.sendToUser('alice', 'sync'))")
            .await,
        1
    );
    tab.until("received.length === 3").await;
    assert_eq!(
        tab.run("return received.sort()").await,
        json!([
            ["laptop", "sync", "user:alice", null],
            ["laptop", "wave", "user:alice", {"x": 1}],
            ["phone", "wave", "user:alice", {"x": 1}],
        ])
    );
    for (sender, user) in [("bob", "bob"), ("bob", "carol")] {
        let call = format!("return outcome({sender}.sendToUser('{user}', 'x'))");
        assert_eq!(tab.run(&call).await, "unknown_receiver");
    }
    browser.close().await;
}
