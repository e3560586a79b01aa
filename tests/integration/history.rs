//! Rooms that keep what is said to all (PROTOCOL.md, section 6, "History").

use std::{fs, net::SocketAddr, num::NonZeroU32};

use anteroom::{Config, Server};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

#[cfg(feature = "cli")]
use crate::support::Program;
use crate::{
    resuming::reconnect,
    support::{Client, Folder, TestServer, eventually_async, operator},
};

/// Makes the rooms `tea` and `tea-…` keep their messages.
pub fn with_history(config: &mut Config) {
    config.history.rooms = vec!["tea".into(), "tea-*".into()];
    config.admin.listen = Some(([127, 0, 0, 1], 0).into());
}

async fn start_in(folder: &Folder) -> TestServer {
    TestServer::with(|config| {
        with_history(config);
        config.history.dir = Some(folder.file("history"));
    })
    .await
}

async fn stop(mut server: TestServer) {
    server.stop();
    server.stopped().await;
}

impl Client {
    /// Says a number to all, and waits for the receipt that it is stored. Skips what others say.
    pub async fn tell(&mut self, number: u64) {
        self.send(json!({"type": "say", "receiver": "all", "data": number, "ref": number}))
            .await;
        loop {
            let message = self.next().await;
            if message["type"] == "ack" && message["data"]["ref"] == number {
                return;
            }
            assert_ne!(message["type"], "error", "{message}");
        }
    }

    /// Asks for the history; returns the messages and whether there are more.
    pub async fn history(&mut self, data: Value) -> (Vec<Value>, bool) {
        self.try_history(data).await.unwrap()
    }

    /// Like [`history`](Client::history), or the error that the server answers.
    pub async fn try_history(&mut self, data: Value) -> Result<(Vec<Value>, bool), Value> {
        self.send(json!({"type": "history", "receiver": "server", "data": data}))
            .await;
        let mut messages = Vec::new();
        loop {
            let message = self.next().await;
            if message["type"] == "error" {
                return Err(message);
            }
            assert_eq!(message["type"], "history", "{message}");
            assert_eq!(
                (&message["sender"], &message["receiver"]),
                (&json!("server"), &json!(self.id))
            );
            match message["data"]["done"] == true {
                true => return Ok((messages, message["data"]["more"] == true)),
                false => messages.push(message["data"].clone()),
            }
        }
    }
}

/// A session that joins `tea` while others say numbers there, and asks what was said before.
pub struct Listener {
    client: Client,
    /// What it has heard, live or from the history.
    heard: Vec<u64>,
}

impl Listener {
    pub async fn join(server: SocketAddr) -> Listener {
        Listener {
            // What is said before a first answer counts, too.
            client: Client::connect(server, "/room/tea").await,
            heard: Vec::new(),
        }
    }

    /// Reads the history, page by page. Live messages come between those of the history.
    pub async fn read_history(&mut self) {
        let mut before = u64::MAX;
        loop {
            let data = json!({"last": 37, "before": before});
            let request = json!({"type": "history", "receiver": "server", "data": data});
            self.client.send(request).await;
            loop {
                let message = self.client.next().await;
                match message["type"].as_str().unwrap() {
                    "history" if message["data"]["done"] == true => {
                        match message["data"]["more"] == true {
                            true => break,
                            false => return,
                        }
                    }
                    "history" => {
                        let number = message["data"]["number"].as_u64().unwrap();
                        before = before.min(number);
                        let said = &message["data"]["message"]["data"];
                        self.heard.push(said.as_u64().unwrap());
                    }
                    "say" => self.heard.push(message["data"].as_u64().unwrap()),
                    "error" => panic!("{message}"),
                    _ => {}
                }
            }
        }
    }

    /// Expects that it has heard all numbers below this one, each once.
    pub async fn expect_all(mut self, end: u64) {
        while (self.heard.len() as u64) < end {
            let message = self.client.next().await;
            if message["type"] == "say" {
                self.heard.push(message["data"].as_u64().unwrap());
            }
        }
        let ping = json!({"type": "ping", "receiver": "server"});
        self.client.send(ping).await;
        loop {
            let message = self.client.next().await;
            match message["type"].as_str().unwrap() {
                "say" => self.heard.push(message["data"].as_u64().unwrap()),
                "pong" => break,
                _ => {}
            }
        }
        self.heard.sort_unstable();
        assert!(self.heard.iter().copied().eq(0..end), "{:?}", self.heard);
    }
}

/// The data of the messages of a page.
pub fn said((messages, more): (Vec<Value>, bool)) -> (Vec<u64>, bool) {
    let numbers: Vec<u64> = messages
        .iter()
        .map(|it| it["number"].as_u64().unwrap())
        .collect();
    assert!(numbers.is_sorted_by(|a, b| a < b));
    let data = messages
        .iter()
        .map(|it| it["message"]["data"].as_u64().unwrap());
    (data.collect(), more)
}

#[tokio::test]
async fn whoever_joins_can_ask_for_what_was_said_before() {
    let server = TestServer::with(with_history).await;
    let mut alice = Client::join(&server, "tea").await;
    assert_eq!(alice.hello().await["data"]["history"], 1000);
    // Nobody else is there, and it is kept all the same.
    for number in 1..=5 {
        alice.tell(number).await;
    }
    let mut bob = Client::join(&server, "tea").await;
    alice.expect_new(&bob.id).await;
    // What was said since Bob has joined, he gets as it is said; unicasts, and other rooms, are not kept.
    alice.tell(6).await;
    bob.expect_text(&format!(
        r#"{{"type":"say","sender":"{}","receiver":"all","data":6}}"#,
        alice.id
    ))
    .await;
    alice
        .send(json!({"type": "say", "receiver": bob.id, "data": 7}))
        .await;
    assert_eq!(bob.next().await["data"], 7);
    assert_eq!(
        said(bob.history(json!({})).await),
        (vec![1, 2, 3, 4, 5], false)
    );
    let (page, more) = bob.history(json!({"last": 2})).await;
    assert!(more);
    assert_eq!(
        page[0]["message"],
        json!({"type": "say", "sender": alice.id, "receiver": "all", "data": 4})
    );
    assert!(page[0]["time"].as_u64() > Some(1_700_000_000_000));
    assert_eq!(page[0]["from"], Value::Null);
    let before = json!({"before": page[0]["number"], "last": 2});
    assert_eq!(said(bob.history(before).await), (vec![2, 3], true));
    assert_eq!(said(alice.history(Value::Null).await), (vec![], false));

    let mut other = Client::join(&server, "coffee").await;
    assert_eq!(other.hello().await["data"]["history"], Value::Null);
    other
        .send(json!({"type": "history", "receiver": "server", "ref": 1}))
        .await;
    assert_eq!(other.expect_error("no_history").await["ref"], 1);
    let mut carol = Client::join(&server, "tea-house").await;
    assert_eq!(said(carol.history(json!({})).await), (vec![], false));
    for data in [
        json!({"last": -1}),
        json!({"latest": 1}),
        json!([1]),
        json!([1, 2]),
        json!("5"),
    ] {
        carol
            .send(json!({"type": "history", "receiver": "server", "data": data}))
            .await;
        carol.expect_error("bad_message").await;
    }
    assert_eq!(server.count("anteroom_history_messages_stored_total"), 6);
}

#[tokio::test]
async fn the_receipt_of_a_request_follows_the_answer_and_later_messages_wait() {
    let server = TestServer::with(with_history).await;
    let mut alice = Client::join(&server, "tea").await;
    alice.tell(1).await;
    let mut bob = Client::join(&server, "tea").await;
    alice.expect_new(&bob.id).await;
    bob.send(json!({"type": "history", "receiver": "server", "ref": "h"}))
        .await;
    bob.send(json!({"type": "ping", "receiver": "server"}))
        .await;
    bob.send(json!({"type": "say", "receiver": "all", "data": 2, "ref": "s"}))
        .await;
    let mut kinds = Vec::new();
    for _ in 0..5 {
        let message = bob.next().await;
        let reference = message["data"]["ref"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        kinds.push(message["type"].as_str().unwrap().to_owned() + &reference);
    }
    assert_eq!(kinds, ["history", "history", "ackh", "pong", "acks"]);
    assert_eq!(alice.next().await["data"], 2);
}

#[tokio::test]
async fn history_and_live_messages_are_together_exact_while_many_speak() {
    let folder = Folder::new("exact");
    let server = start_in(&folder).await;
    const SPEAKERS: u64 = 4;
    const EACH: u64 = 200;
    let mut speakers = Vec::new();
    for _ in 0..SPEAKERS {
        speakers.push(Client::join(&server, "tea").await);
    }
    let speaking = speakers.into_iter().zip(0..).map(|(mut speaker, index)| {
        tokio::spawn(async move {
            for number in 0..EACH {
                speaker.tell(index * EACH + number).await;
            }
            speaker
        })
    });
    let speaking: Vec<_> = speaking.collect();
    let mut listeners = Vec::new();
    for _ in 0..20 {
        let mut listener = Listener::join(server.address).await;
        listener.read_history().await;
        listeners.push(listener);
    }
    for speaker in speaking {
        speaker.await.unwrap();
    }
    for listener in listeners {
        listener.expect_all(SPEAKERS * EACH).await;
    }
}

#[tokio::test]
async fn the_history_in_a_folder_outlives_the_server() {
    let folder = Folder::new("outlives");
    let server = start_in(&folder).await;
    let mut alice = Client::join(&server, "tea").await;
    for number in 1..=3 {
        alice.tell(number).await;
    }
    drop(alice.into_raw());
    #[cfg(unix)]
    for (path, mode) in [("history", 0o700), ("history/history.redb", 0o600)] {
        use std::os::unix::fs::PermissionsExt;
        let permissions = fs::metadata(folder.file(path)).unwrap().permissions();
        assert_eq!(permissions.mode() & 0o777, mode, "{path}");
    }
    // Two servers cannot use it at once.
    let mut config = Config::default();
    with_history(&mut config);
    config.history.dir = Some(folder.file("history"));
    config.serving.listen = ([127, 0, 0, 1], 0).into();
    let error = Server::bind(config).err().unwrap().to_string();
    assert!(error.starts_with("cannot open the history in "), "{error}");
    stop(server).await;

    let server = start_in(&folder).await;
    let mut bob = Client::join(&server, "tea").await;
    assert_eq!(said(bob.history(json!({})).await), (vec![1, 2, 3], false));
    bob.tell(4).await;
    let mut carol = Client::join(&server, "tea").await;
    assert_eq!(
        said(carol.history(json!({})).await),
        (vec![1, 2, 3, 4], false)
    );
}

#[tokio::test]
async fn what_is_stored_keeps_to_options_that_have_changed() {
    let folder = Folder::new("changed");
    let server = start_in(&folder).await;
    let mut alice = Client::join(&server, "tea").await;
    let mut bob = Client::join(&server, "tea-house").await;
    for number in 1..=5 {
        alice.tell(number).await;
        bob.tell(number).await;
    }
    drop((alice.into_raw(), bob.into_raw()));
    stop(server).await;
    let server = TestServer::with(|config| {
        with_history(config);
        config.history.rooms = vec!["tea".into()];
        config.history.messages = NonZeroU32::new(2).unwrap();
        config.history.dir = Some(folder.file("history"));
    })
    .await;
    // The limit is lower, and nobody says anything.
    eventually_async("the first messages are removed", async || {
        let mut carol = Client::join(&server, "tea").await;
        said(carol.history(json!({})).await) == (vec![4, 5], false)
    })
    .await;
    // The room is not named any more, and operators still reach its messages.
    let path = "/rooms/tea-house/history";
    let page = operator(&server, "GET", path, "").await.json();
    assert_eq!(page["messages"].as_array().unwrap().len(), 2);
    let removed = operator(&server, "DELETE", path, "").await;
    assert_eq!(removed.body, r#"{"removed":2}"#);
    let none = operator(&server, "GET", path, "").await;
    assert_eq!(none.code(), (404, "no_history".into()));
}

#[tokio::test]
async fn a_first_start_that_was_interrupted_needs_no_repair() {
    let folder = Folder::new("interrupted");
    fs::create_dir(folder.file("history")).unwrap();
    fs::write(folder.file("history/history.redb"), [0; 100_000]).unwrap();
    let server = start_in(&folder).await;
    let mut alice = Client::join(&server, "tea").await;
    alice.tell(1).await;
}

#[tokio::test]
async fn an_answer_that_is_due_outlives_the_connection() {
    let server = TestServer::with(with_history).await;
    let mut alice = Client::join(&server, "tea").await;
    alice.tell(1).await;
    let mut bob = Client::join(&server, "tea").await;
    let token = bob.ask_for_resume_token().await;
    let id = bob.id.clone();
    bob.send(json!({"type": "history", "receiver": "server", "ref": 1}))
        .await;
    // The request is taken in before the connection is lost.
    alice.expect_new(&id).await;
    bob.send(json!({"type": "say", "receiver": "all", "data": 2}))
        .await;
    assert_eq!(alice.next().await["data"], 2);
    drop(bob.into_raw());
    server.expect_suspended(1).await;
    // Two `hello`s were received, and four messages were sent.
    let mut bob = reconnect(&server, "tea", &token, 2).await;
    bob.expect_resumed(&id, 4).await;
    for _ in 0..2 {
        assert_eq!(bob.next().await["type"], "history");
    }
    assert_eq!(bob.next().await["data"]["ref"], 1);
}

/// A process that is killed has stored what it has given receipts for.
#[cfg(feature = "cli")]
#[tokio::test]
async fn what_has_a_receipt_outlives_the_kill_of_the_process() {
    let folder = Folder::new("killed");
    let dir = folder.file("history");
    let options = [
        "--history-room",
        "tea",
        "--history-dir",
        dir.to_str().unwrap(),
    ];
    let (mut next, mut confirmed) = (0, Vec::new());
    for round in 0..5 {
        let mut program = Program::start(options).await;
        let mut alice = Client::connect(program.address, "/room/tea").await;
        alice.id = alice.hello().await["receiver"].as_str().unwrap().into();
        let (page, more) = alice.history(json!({"last": 1000})).await;
        assert!(!more);
        let (mut stored, _) = said((page, more));
        stored.sort_unstable();
        assert!(stored.is_sorted_by(|a, b| a < b) && stored.iter().all(|it| *it < next));
        for number in &confirmed {
            assert!(stored.binary_search(number).is_ok(), "{number} is lost");
        }
        // Many are on their way when the process is killed.
        for _ in 0..150 {
            alice
                .send(json!({"type": "say", "receiver": "all", "data": next, "ref": next}))
                .await;
            next += 1;
        }
        for _ in 0..10 * (round + 1) {
            let receipt = alice.next().await;
            assert_eq!(receipt["type"], "ack");
            confirmed.push(receipt["data"]["ref"].as_u64().unwrap());
        }
        program.signal("KILL").await;
        program.exit_code().await;
        // Receipts that were on their way count, too.
        while let Ok(Message::Text(receipt)) = alice.next_frame().await {
            let receipt: Value = serde_json::from_str(&receipt).unwrap();
            confirmed.push(receipt["data"]["ref"].as_u64().unwrap());
        }
    }
}

#[tokio::test]
async fn a_session_that_outlives_its_server_finds_no_message_twice() {
    let folder = Folder::new("twice");
    let start = async || {
        TestServer::with(|config| {
            with_history(config);
            config.stopping.sessions_file = Some(folder.file("sessions"));
        })
        .await
    };
    let server = start().await;
    let mut alice = Client::join(&server, "tea").await;
    alice.tell(1).await;
    let mut bob = Client::join(&server, "tea").await;
    let token = bob.ask_for_resume_token().await;
    let id = bob.id.clone();
    alice.expect_new(&id).await;
    alice.tell(2).await;
    drop((alice.into_raw(), bob.into_raw()));
    server.expect_suspended(1).await;
    stop(server).await;

    // The history was in memory.
    let server = start().await;
    let mut carol = Client::join(&server, "tea").await;
    carol.tell(3).await;
    // Two `hello`s were received, and two requests were sent.
    let mut bob = reconnect(&server, "tea", &token, 2).await;
    bob.expect_resumed(&id, 2).await;
    bob.id = id;
    assert_eq!(bob.next().await["data"], 2);
    let mut kinds = Vec::new();
    for _ in 0..3 {
        kinds.push(bob.next().await["type"].as_str().unwrap().to_owned());
    }
    assert_eq!(kinds, ["close", "new", "say"]);
    assert_eq!(said(bob.history(json!({})).await), (vec![], false));
}

#[tokio::test]
async fn a_room_keeps_to_its_limit_and_an_answer_to_half_an_outbox() {
    let server = TestServer::with(|config| {
        with_history(config);
        config.history.messages = NonZeroU32::new(50).unwrap();
        config.limits.outbox_bytes = 100_000;
    })
    .await;
    let mut alice = Client::join(&server, "tea").await;
    for number in 0..60 {
        alice.tell(number).await;
    }
    let mut bob = Client::join(&server, "tea").await;
    alice.expect_new(&bob.id).await;
    assert_eq!(
        said(bob.history(json!({"last": 1000})).await),
        ((10..60).collect(), false)
    );
    let long = "x".repeat(20_000);
    for _ in 0..4 {
        alice
            .send(json!({"type": "say", "receiver": "all", "data": long, "ref": 1}))
            .await;
        assert_eq!(alice.next().await["type"], "ack");
        bob.next().await;
    }
    let mut carol = Client::join(&server, "tea").await;
    let (page, more) = carol.history(json!({})).await;
    assert_eq!((page.len(), more), (2, true));
}

#[tokio::test]
async fn operators_read_and_remove_what_a_room_keeps() {
    let server = TestServer::with(with_history).await;
    let mut alice = Client::join(&server, "tea").await;
    for number in 1..=4 {
        alice.tell(number).await;
    }
    let notice = r#"{"type":"say","receiver":"all","data":5}"#;
    operator(&server, "POST", "/rooms/tea/messages", notice).await;
    assert_eq!(alice.next().await["data"], 5);
    let page = async |query: &str| {
        let path = format!("/rooms/tea/history{query}");
        let page = operator(&server, "GET", &path, "").await.json();
        let messages = page["messages"].as_array().unwrap().clone();
        (messages, page["more"] == true)
    };
    let all = page("").await;
    assert_eq!(all.0[4]["message"]["sender"], "server");
    let third = all.0[2]["number"].as_u64().unwrap();
    assert_eq!(said(all), (vec![1, 2, 3, 4, 5], false));
    assert_eq!(
        said(page(&format!("?last=1&before={third}")).await),
        (vec![2], true)
    );

    let path = format!("/rooms/tea/history/{third}");
    let answer = operator(&server, "DELETE", &path, "").await;
    assert_eq!(answer.body, r#"{"removed":1}"#);
    let again = operator(&server, "DELETE", &path, "").await;
    assert_eq!(again.code(), (404, "unknown_message".into()));
    assert_eq!(said(page("").await), (vec![1, 2, 4, 5], false));
    let answer = operator(&server, "DELETE", "/rooms/tea/history", "").await;
    assert_eq!(answer.body, r#"{"removed":4}"#);
    assert_eq!(said(page("").await), (vec![], false));
    assert_eq!(server.count("anteroom_history_bytes"), 0);

    let answer = operator(&server, "DELETE", "/rooms/coffee/history", "").await;
    assert_eq!(answer.code(), (404, "no_history".into()));
    for (path, status, code) in [
        ("/rooms/coffee/history", 404, "no_history"),
        ("/rooms/tea/history?latest=1", 400, "bad_query"),
        ("/rooms/tea/history?last=x", 400, "bad_query"),
    ] {
        let answer = operator(&server, "GET", path, "").await;
        assert_eq!(answer.code(), (status, code.into()), "{path}");
    }
}
