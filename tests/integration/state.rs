//! States of sessions (PROTOCOL.md, sections 3 and 6).

use anteroom::Config;
use serde_json::{Value, json};

use crate::{
    resuming::reconnect,
    support::{Client, TestServer, operator},
};

impl Client {
    /// Sets the state, and waits for the receipt.
    pub async fn set_state(&mut self, state: Value) {
        self.send(json!({"type": "state", "receiver": "server", "data": state, "ref": "state"}))
            .await;
        let receipt = self.next().await;
        assert_eq!(receipt["data"], json!({"ref": "state", "receivers": 1}));
    }

    /// Expects the state of another session.
    pub async fn expect_state(&mut self, id: &str, state: Value) {
        let expected = json!({"type": "state", "sender": id, "receiver": null, "data": state});
        assert_eq!(self.next().await, expected);
    }

    /// The others in the room, each with its state.
    pub async fn states(&mut self) -> Vec<(String, Value)> {
        let hello = self.hello().await;
        let peers = hello["data"]["peers"].as_array().unwrap().iter();
        let state = |peer: &Value| {
            (
                peer["id"].as_str().unwrap().to_owned(),
                peer["state"].clone(),
            )
        };
        peers.map(state).collect()
    }
}

#[tokio::test]
async fn a_state_is_told_in_order_and_to_whoever_comes_later() {
    let server = TestServer::start().await;
    let mut alice = Client::join(&server, "tea").await;
    let mut bob = Client::join(&server, "tea").await;
    alice.expect_new(&bob.id).await;
    // The text of a state survives byte for byte.
    alice
        .send_text(r#"{"type":"state","receiver":"server","data":{ "b":1.50, "a":"\u00e9" }}"#)
        .await;
    alice.send(json!({"type": "x", "receiver": "all"})).await;
    let id = alice.id.clone();
    bob.expect_text(&format!(
        r#"{{"type":"state","sender":"{id}","receiver":null,"data":{{ "b":1.50, "a":"\u00e9" }}}}"#
    ))
    .await;
    assert_eq!(bob.next().await["type"], "x");

    let mut carol = Client::connect(server.address, "/room/tea").await;
    carol
        .send(json!({"type": "hello", "receiver": "server"}))
        .await;
    let hello = carol.next_text().await;
    let peers = format!(
        r#""peers":[{{"id":"{id}","data":null,"state":{{ "b":1.50, "a":"\u00e9" }}}},{{"id":"{}","data":null}}]"#,
        bob.id
    );
    assert!(hello.contains(&peers), "{hello}");

    // `null`, and no data, clear it.
    for client in [&mut alice, &mut bob] {
        client.expect_any_new().await;
    }
    alice.set_state(Value::Null).await;
    bob.expect_state(&id, Value::Null).await;
    carol.expect_state(&id, Value::Null).await;
    let states = carol.states().await;
    assert_eq!(states[0], (id.clone(), Value::Null));
    alice.set_state(json!(1)).await;
    alice
        .send(json!({"type": "state", "receiver": "server"}))
        .await;
    alice.leave().await;
    bob.expect_state(&id, json!(1)).await;
    bob.expect_state(&id, Value::Null).await;
    bob.expect_left(&id).await;
}

#[tokio::test]
async fn a_state_over_the_limit_is_an_error_and_changes_nothing() {
    let server = TestServer::with(|config| config.limits.max_state_bytes = 10).await;
    let mut alice = Client::join(&server, "tea").await;
    let mut bob = Client::join(&server, "tea").await;
    alice.expect_new(&bob.id).await;
    alice.set_state(json!("12345678")).await;
    bob.expect_state(&alice.id, json!("12345678")).await;
    alice
        .send(json!({"type": "state", "receiver": "server", "data": "123456789"}))
        .await;
    let error = alice.expect_error("bad_message").await;
    assert_eq!(
        error["message"],
        "data has 11 bytes, and a state at most 10"
    );
    bob.expect_quiet().await;
    assert_eq!(bob.states().await, [(alice.id.clone(), json!("12345678"))]);
}

#[tokio::test]
async fn the_states_of_a_room_fit_into_half_an_outbox_together() {
    let server = TestServer::with(|config| config.limits.outbox_bytes = 70_000).await;
    let mut clients = Vec::new();
    let state = "x".repeat(4000);
    for _ in 0..8 {
        let mut client = Client::join(&server, "tea").await;
        client.set_state(json!(state)).await;
        clients.push(client);
    }
    let mut last = Client::join(&server, "tea").await;
    last.send(json!({"type": "state", "receiver": "server", "data": state}))
        .await;
    last.expect_error("not_allowed").await;
    assert_eq!(last.states().await.len(), 8);
    // One is cleared.
    clients[0]
        .send(json!({"type": "state", "receiver": "server"}))
        .await;
    last.expect_state(&clients[0].id, Value::Null).await;
    last.set_state(json!(state)).await;
}

#[tokio::test]
async fn a_state_survives_the_loss_of_a_connection_and_what_is_missed_is_told() {
    let server = TestServer::start().await;
    let mut alice = Client::connect(server.address, "/room/tea").await;
    let token = alice.ask_for_resume_token().await;
    alice.set_state(json!("here")).await;
    let mut bob = Client::join(&server, "tea").await;
    alice.expect_new(&bob.id).await;
    let id = alice.id.clone();
    drop(alice.into_raw());
    server.expect_suspended(1).await;
    assert_eq!(bob.states().await, [(id.clone(), json!("here"))]);
    for number in 0..3 {
        bob.set_state(json!(number)).await;
    }
    // A `hello`, a receipt and a `new` were received.
    let mut alice = reconnect(&server, "tea", &token, 3).await;
    alice.expect_resumed(&id, 2).await;
    for number in 0..3 {
        alice.expect_state(&bob.id, json!(number)).await;
    }
    alice.set_state(json!("back")).await;
    bob.expect_state(&id, json!("back")).await;
}

#[tokio::test]
async fn operators_see_the_state_of_a_session() {
    let server = TestServer::with(|config: &mut Config| {
        config.admin.listen = Some(([127, 0, 0, 1], 0).into());
    })
    .await;
    let mut alice = Client::join(&server, "tea").await;
    let list = async || operator(&server, "GET", "/rooms/tea", "").await.json();
    assert_eq!(list().await["sessions"][0].get("state"), None);
    alice.set_state(json!({"name": "Alice"})).await;
    assert_eq!(
        list().await["sessions"][0]["state"],
        json!({"name": "Alice"})
    );
}
