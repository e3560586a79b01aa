//! The client module's history of a room.

use std::{
    num::NonZeroU32,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use serde_json::{Value, json};

use super::{
    driver::{Browser, Tab},
    scripted_server::{ScriptedServer, Socket, ack, open_module_page, receive, roster, send},
};
use crate::{
    guide::{CLIENT, blocks},
    support::{Client, TestServer},
};

/// A function for pages: `numbers(pages)`, the numbers of the messages of each page, and whether there are more.
const NUMBERS: &str =
    "globalThis.numbers = ({ messages, more }) => [messages.map(({ number }) => number), more];";

/// Serves `static/` as a folder, and keeps the history of the room `tea`.
async fn history_server() -> TestServer {
    TestServer::with(|config| {
        config.serving.static_dir = Some("static".into());
        config.history.rooms = vec!["tea".into()];
        config.history.messages = NonZeroU32::new(1_000_000).unwrap();
    })
    .await
}

/// The answer to `hello` in a room that keeps its messages. The session can be resumed.
fn roster_with_history(peers: &[&str]) -> Value {
    let mut roster = roster(peers);
    roster["data"]["history"] = json!(1000);
    roster["data"]["resume"] = json!({"token": "secret", "seconds": 30});
    roster["data"]["limits"]["messageBytes"] = json!(1000);
    roster
}

/// A page whose room is open on a scripted server that keeps a history.
async fn open_page(browser: &Browser) -> (ScriptedServer, Tab<'_>, Socket) {
    let (server, tab) = ScriptedServer::with_page(browser, "{}").await;
    let mut socket = server.accept().await;
    send(&mut socket, roster_with_history(&["a"])).await;
    tab.until("room.state === 'open'").await;
    tab.run(NUMBERS).await;
    tab.run("events.length = 0").await;
    (server, tab, socket)
}

/// Receives a request for the history with this `data`.
async fn expect_request(socket: &mut Socket, data: Value) -> Value {
    let request = receive(socket).await;
    assert_eq!(
        (&request["type"], &request["receiver"], &request["data"]),
        (&json!("history"), &json!("server"), &data)
    );
    request
}

async fn send_history(socket: &mut Socket, data: Value) {
    let history = json!({"type": "history", "sender": "server", "receiver": "me", "data": data});
    send(socket, history).await;
}

/// Sends the messages of an answer, without its end.
async fn send_messages(socket: &mut Socket, numbers: &[u64]) {
    for number in numbers {
        let message = json!({"type": "say", "sender": "b", "receiver": "all", "data": number});
        let from = json!({"user": "bob"});
        let time = 1_790_000_000_000_u64 + number;
        let data = json!({"number": number, "time": time, "from": from, "message": message});
        send_history(socket, data).await;
    }
}

/// Sends an answer, and the receipt of its request.
async fn answer(socket: &mut Socket, request: &Value, numbers: &[u64], more: bool) {
    send_messages(socket, numbers).await;
    send_history(socket, json!({"done": true, "more": more})).await;
    send(socket, ack(request)).await;
}

async fn send_error(socket: &mut Socket, request: &Value, code: &str) {
    let data = json!({"code": code, "message": "no", "ref": request["ref"]});
    let error = json!({"type": "error", "sender": "server", "receiver": "me", "data": data});
    send(socket, error).await;
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn pages_and_live_messages_are_together_exact_while_others_speak() {
    const SPEAKERS: u64 = 3;
    /// More than a page.
    const BEFORE: u64 = 150;
    /// More than any of them says.
    const EACH: u64 = 100_000;
    let server = history_server().await;
    let browser = Browser::start().await;
    let tab = open_module_page(&browser, &server, "").await;
    let mut listener = Client::join(&server, "tea").await;
    let mut speakers = Vec::new();
    for _ in 0..SPEAKERS {
        speakers.push(Client::join(&server, "tea").await);
    }
    for number in 0..BEFORE {
        speakers[0].tell(SPEAKERS * EACH + number).await;
    }
    let stop = Arc::<AtomicBool>::default();
    let speaking = speakers.into_iter().zip(0..).map(|(mut speaker, index)| {
        let stop = stop.clone();
        tokio::spawn(async move {
            let mut said = 0;
            while !stop.load(Relaxed) {
                speaker.tell(index * EACH + said).await;
                said += 1;
            }
            (speaker, said)
        })
    });
    let speaking: Vec<_> = speaking.collect();
    // Each session joins at another moment, and reads pages while messages arrive.
    tab.run(
        "globalThis.rooms = [];
        for (let count = 1; count <= 4; count += 1) {
            const live = [];
            const room = join('tea');
            room.addEventListener('message', ({ detail }) => live.push(detail));
            rooms.push((async () => {
                let pages = [];
                for await (const { messages } of room.history({ last: 100 })) pages = [...messages, ...pages];
                return { room, live, pages };
            })());
            await room.opened;
        }
        globalThis.rooms = await Promise.all(rooms);",
    )
    .await;
    stop.store(true, Relaxed);
    let mut said = BEFORE;
    let mut speakers = Vec::new();
    for speaker in speaking {
        let (speaker, count) = speaker.await.unwrap();
        speakers.push(speaker);
        said += count;
    }
    let mut expected = Vec::new();
    while (expected.len() as u64) < said {
        let message = listener.next().await;
        if message["type"] == "say" {
            let fields = ["type", "sender", "receiver", "data"];
            expected.push(json!(fields.map(|field| &message[field])));
        }
    }
    let heard = tab
        .run(
            "return Promise.all(rooms.map(async ({ room, live, pages }) => {
                await room.send('server', 'ping');
                const rise = pages.every(({ number }, index) => index === 0 || pages[index - 1].number < number);
                return [rise, [...pages, ...live].map(({ type, sender, receiver, data }) => [type, sender, receiver, data])];
            }))",
        )
        .await;
    // Messages of different senders may come in another order.
    let by_sender = |messages: &[Value]| {
        let mut messages = messages.to_vec();
        messages.sort_by_key(|message| message[1].to_string());
        messages
    };
    let expected = by_sender(&expected);
    for room in heard.as_array().unwrap() {
        assert_eq!(room[0], true);
        assert_eq!(by_sender(room[1].as_array().unwrap()), expected);
    }
    browser.close().await;
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn a_room_says_how_many_messages_it_keeps_and_one_without_a_history_refuses() {
    let server = history_server().await;
    let browser = Browser::start().await;
    let tab = open_module_page(
        &browser,
        &server,
        "globalThis.room = join('tea');
        globalThis.before = room.historyMessages;
        globalThis.other = await join('coffee').opened;
        await room.opened;",
    )
    .await;
    assert_eq!(
        tab.run("return [before, room.historyMessages, other.historyMessages]")
            .await,
        json!([null, 1_000_000, null])
    );
    assert_eq!(
        tab.run("return [await room.history(), await outcome(other.history())]")
            .await,
        json!([{"messages": [], "more": false}, "no_history"])
    );
    assert_eq!(
        tab.run("return outcome(room.history({ last: -1 }))").await,
        "bad_message"
    );
    assert_eq!(
        tab.run("for await (const page of room.history()) return 'a page of nothing'")
            .await,
        Value::Null
    );
    // An application may ask by itself: the answer is no event, and gets into no page.
    let raw = "room.addEventListener('message', () => { throw new Error('an event') });
        room.sendRaw('{\"type\":\"history\",\"receiver\":\"server\"}');
        return room.history({ last: 1 })";
    assert_eq!(tab.run(raw).await, json!({"messages": [], "more": false}));
    browser.close().await;
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn several_requests_get_their_own_pages_and_none_is_an_event() {
    let browser = Browser::start().await;
    let (_server, tab, mut socket) = open_page(&browser).await;
    tab.run(
        "globalThis.said = outcome(room.broadcast('say', 'own'));
        globalThis.pages = [room.history(), room.history({ last: 2, before: 5 }), room.history({ last: 3 })]
            .map((page) => page.then(numbers, ({ code }) => code));",
    )
    .await;
    let own = receive(&mut socket).await;
    let first = expect_request(&mut socket, json!({})).await;
    let second = expect_request(&mut socket, json!({"last": 2, "before": 5})).await;
    let third = expect_request(&mut socket, json!({"last": 3})).await;
    send_messages(&mut socket, &[5]).await;
    // What others say, and receipts of what is stored, come between.
    let live = json!({"type": "say", "sender": "a", "receiver": "all", "data": "live"});
    send(&mut socket, live).await;
    send_messages(&mut socket, &[7]).await;
    send_history(&mut socket, json!({"done": true, "more": true})).await;
    send(&mut socket, ack(&own)).await;
    send(&mut socket, ack(&first)).await;
    send_error(&mut socket, &second, "history_failed").await;
    answer(&mut socket, &third, &[3, 4], false).await;
    assert_eq!(
        tab.run("return Promise.all([said, ...pages])").await,
        json!([1, [[5, 7], true], "history_failed", [[3, 4], false]])
    );
    assert_eq!(
        tab.run("return events").await,
        json!([["message", {"type": "say", "sender": "a", "receiver": "all", "data": "live"}]])
    );
    // A message has all that is known of it.
    tab.run("globalThis.page = room.history()").await;
    let request = expect_request(&mut socket, json!({})).await;
    answer(&mut socket, &request, &[9], false).await;
    assert_eq!(
        tab.run("const { messages: [message] } = await page; return { ...message, time: message.time.getTime() }")
            .await,
        json!({"type": "say", "sender": "b", "receiver": "all", "data": 9, "number": 9,
            "time": 1_790_000_000_009_u64, "from": {"user": "bob"}})
    );
    browser.close().await;
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn pages_are_read_one_after_the_other_until_the_oldest_or_until_the_caller_stops() {
    let browser = Browser::start().await;
    let (_server, tab, mut socket) = open_page(&browser).await;
    let read = "globalThis.read = async (stop) => {
        const found = [];
        for await (const page of room.history({ last: 2, before: 9 })) {
            found.push(numbers(page));
            if (page.messages[0].number <= stop) break;
        }
        return found;
    };
    globalThis.found = [read(0), read(6)];";
    tab.run(read).await;
    let before = |before: u64| json!({"last": 2, "before": before});
    for _ in 0..2 {
        let request = expect_request(&mut socket, before(9)).await;
        answer(&mut socket, &request, &[6, 8], true).await;
    }
    let request = expect_request(&mut socket, before(6)).await;
    // An answer may be shorter than what was asked for.
    answer(&mut socket, &request, &[5], true).await;
    let request = expect_request(&mut socket, before(5)).await;
    answer(&mut socket, &request, &[1, 3], false).await;
    assert_eq!(
        tab.run("return Promise.all(found)").await,
        json!([
            [[[6, 8], true], [[5], true], [[1, 3], false]],
            [[[6, 8], true]]
        ])
    );
    // The one that has stopped has asked for nothing more. An error ends the iteration.
    tab.run("globalThis.failed = read(0).catch(({ code }) => code)")
        .await;
    let request = expect_request(&mut socket, before(9)).await;
    answer(&mut socket, &request, &[6, 8], true).await;
    let request = expect_request(&mut socket, before(6)).await;
    send_error(&mut socket, &request, "history_failed").await;
    assert_eq!(tab.run("return failed").await, "history_failed");
    browser.close().await;
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn an_answer_goes_on_in_a_resumed_session_and_half_an_answer_is_lost_with_its_session() {
    let browser = Browser::start().await;
    let (server, tab, mut socket) = open_page(&browser).await;
    tab.run("globalThis.page = room.history({ last: 3 }).then(numbers)")
        .await;
    let request = expect_request(&mut socket, json!({"last": 3})).await;
    send_messages(&mut socket, &[1, 2]).await;
    let live = json!({"type": "say", "sender": "a", "receiver": "all", "data": "live"});
    send(&mut socket, live.clone()).await;
    tab.until("events.at(-1)?.[0] === 'message'").await;
    drop(socket);
    tab.until("room.state === 'reconnecting'").await;

    // The page has received the roster, two messages of the history, and one of a peer.
    let (mut socket, query) = server.accept_with_query().await;
    assert_eq!(query, "resume=secret&received=4");
    let resumed =
        json!({"type": "resumed", "sender": "server", "receiver": "me", "data": {"received": 2}});
    send(&mut socket, resumed).await;
    send_messages(&mut socket, &[3]).await;
    send_history(&mut socket, json!({"done": true, "more": true})).await;
    send(&mut socket, ack(&request)).await;
    assert_eq!(tab.run("return page").await, json!([[1, 2, 3], true]));

    // One request is half answered when the connection is lost, one waits.
    tab.run("globalThis.lost = outcome(room.history({ last: 3 }))")
        .await;
    expect_request(&mut socket, json!({"last": 3})).await;
    send_messages(&mut socket, &[1, 2]).await;
    send(&mut socket, live).await;
    tab.until("events.filter(([type]) => type === 'message').length === 2")
        .await;
    drop(socket);
    tab.until("room.state === 'reconnecting'").await;
    tab.run("globalThis.page = room.history({ last: 4 }).then(numbers)")
        .await;
    let (mut socket, _) = server.accept_with_query().await;
    let data = json!({"code": "resume_failed", "message": "too late"});
    let failed = json!({"type": "error", "sender": "server", "receiver": "me", "data": data});
    send(&mut socket, failed).await;
    assert_eq!(receive(&mut socket).await["type"], "hello");
    send(&mut socket, roster_with_history(&[])).await;
    assert_eq!(tab.run("return lost").await, "connection_lost");
    let request = expect_request(&mut socket, json!({"last": 4})).await;
    answer(&mut socket, &request, &[3, 4], false).await;
    assert_eq!(tab.run("return page").await, json!([[3, 4], false]));

    // Nobody answers a room that was left.
    tab.run("globalThis.left = outcome(room.history())").await;
    expect_request(&mut socket, json!({})).await;
    send_messages(&mut socket, &[1]).await;
    tab.run("room.leave()").await;
    assert_eq!(
        tab.run("return Promise.all([left, outcome(room.history())])")
            .await,
        json!(["closed", "closed"])
    );
    browser.close_regardless().await;
}

/// The recipe of the guide.
#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn an_application_that_starts_over_in_each_new_session_shows_everything_once() {
    let browser = Browser::start().await;
    let (server, tab) = ScriptedServer::with_page(&browser, "{}").await;
    let recipe = blocks(CLIENT, "js").find(|block| block.contains("clear()"));
    let recipe = recipe.expect("the guide has the recipe");
    tab.run(&format!(
        "globalThis.shown = [];
        globalThis.append = (messages) => shown.push(...messages.map(({{ data }}) => data));
        globalThis.prepend = (messages) => shown.unshift(...messages.map(({{ data }}) => data));
        globalThis.clear = () => (shown.length = 0);
        {recipe}"
    ))
    .await;
    let live = |data: u64| json!({"type": "say", "sender": "a", "receiver": "all", "data": data});
    let mut socket = server.accept().await;
    send(&mut socket, roster_with_history(&["a"])).await;
    let request = expect_request(&mut socket, json!({})).await;
    send(&mut socket, live(3)).await;
    answer(&mut socket, &request, &[1, 2], false).await;
    tab.until("shown.join() === '1,2,3'").await;
    // A session that is resumed goes on.
    drop(socket);
    let (mut socket, _) = server.accept_with_query().await;
    let resumed =
        json!({"type": "resumed", "sender": "server", "receiver": "me", "data": {"received": 2}});
    send(&mut socket, resumed).await;
    send(&mut socket, live(4)).await;
    tab.until("shown.join() === '1,2,3,4'").await;
    // The first new session is lost before it has answered.
    for numbers in [None, Some([1, 2, 3, 4, 5])] {
        drop(socket);
        socket = server.accept_with_query().await.0;
        let id = numbers.map_or("second", |_| "third");
        let data = json!({"code": "resume_failed", "message": "too late"});
        let failed = json!({"type": "error", "sender": "server", "receiver": id, "data": data});
        send(&mut socket, failed).await;
        assert_eq!(receive(&mut socket).await["type"], "hello");
        let mut hello = roster_with_history(&["a"]);
        hello["receiver"] = json!(id);
        send(&mut socket, hello).await;
        let request = expect_request(&mut socket, json!({})).await;
        send(&mut socket, live(6)).await;
        match numbers {
            None => send_messages(&mut socket, &[1, 2]).await,
            Some(numbers) => answer(&mut socket, &request, &numbers, false).await,
        }
        tab.until("shown.at(-1) === 6").await;
    }
    tab.until("shown.join() === '1,2,3,4,5,6'").await;
    browser.close_regardless().await;
}

/// Such a message is not in the history of the session, because it was sent after the session joined.
#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn a_message_to_all_arrives_although_its_sender_left_before_the_roster() {
    let browser = Browser::start().await;
    let (server, tab) = ScriptedServer::with_page(&browser, "{}").await;
    let mut socket = server.accept().await;
    for message in [
        json!({"type": "say", "sender": "b", "receiver": "all", "data": 1}),
        json!({"type": "say", "sender": "b", "receiver": "me", "data": 2}),
        json!({"type": "close", "sender": "b", "receiver": null, "data": null}),
        roster_with_history(&["a"]),
        json!({"type": "say", "sender": "a", "receiver": "all", "data": 3}),
    ] {
        send(&mut socket, message).await;
    }
    tab.until("events.at(-1)?.[1].data === 3").await;
    assert_eq!(
        tab.run("return events.filter(([type]) => type === 'message').map(([, { data }]) => data)")
            .await,
        json!([1, 3])
    );
    browser.close().await;
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn what_waits_to_be_sent_waits_for_the_bytes_of_an_answer_too() {
    let browser = Browser::start().await;
    let (server, tab) = ScriptedServer::with_page(&browser, "{}").await;
    let mut socket = server.accept().await;
    let mut hello = roster_with_history(&["a"]);
    hello["data"]["limits"]["bytesPerSecond"] = json!(10_000);
    send(&mut socket, hello).await;
    tab.until("room.state === 'open'").await;
    tab.run("globalThis.page = outcome(room.history())").await;
    let request = expect_request(&mut socket, json!({})).await;
    // Three seconds' worth, of which one may be sent at once.
    let message =
        json!({"type": "say", "sender": "b", "receiver": "all", "data": "x".repeat(30_000)});
    let data = json!({"number": 1, "time": 1, "from": null, "message": message});
    send_history(&mut socket, data).await;
    send_history(&mut socket, json!({"done": true, "more": false})).await;
    send(&mut socket, ack(&request)).await;
    tab.run(
        "await page;
        globalThis.begin = performance.now();
        globalThis.waited = new Promise((resolve) => {
            room.addEventListener('wire', ({ detail: { text } }) => {
                if (text.includes('later')) resolve(performance.now() - begin);
            });
        });
        room.broadcast('later');",
    )
    .await;
    assert_eq!(receive(&mut socket).await["type"], "later");
    let waited = tab.run("return waited").await.as_f64().unwrap();
    assert!(waited > 1000.0, "{waited} ms");
    browser.close().await;
}
