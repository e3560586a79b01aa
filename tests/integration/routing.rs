//! Which sessions receive a message; receipts.

use serde_json::json;

use crate::support::{Client, TestServer};

#[tokio::test]
async fn a_message_to_one_session_reaches_only_that_session_with_its_sender() {
    let server = TestServer::start().await;
    let mut alice = Client::join(&server, "tea").await;
    let mut bob = Client::join(&server, "tea").await;
    let mut carol = Client::join(&server, "tea").await;
    alice.expect_new(&bob.id).await;
    alice.expect_new(&carol.id).await;
    bob.expect_new(&carol.id).await;

    alice
        .send(json!({"type": "offer", "receiver": bob.id, "data": {"sdp": "v=0"}}))
        .await;
    let (from, to) = (&alice.id, &bob.id);
    let expected =
        format!(r#"{{"type":"offer","sender":"{from}","receiver":"{to}","data":{{"sdp":"v=0"}}}}"#);
    bob.expect_text(&expected).await;
    carol.expect_quiet().await;
    alice.expect_quiet().await;
}

#[tokio::test]
async fn a_message_to_all_reaches_every_other_session_of_the_room() {
    let server = TestServer::start().await;
    let mut alice = Client::join(&server, "tea").await;
    let mut bob = Client::join(&server, "tea").await;
    let mut carol = Client::join(&server, "tea").await;
    alice.expect_new(&bob.id).await;
    alice.expect_new(&carol.id).await;
    bob.expect_new(&carol.id).await;

    bob.send(json!({"type": "chat", "receiver": "all"})).await;
    let expected = format!(
        r#"{{"type":"chat","sender":"{}","receiver":"all","data":null}}"#,
        bob.id
    );
    alice.expect_text(&expected).await;
    carol.expect_text(&expected).await;
    bob.expect_quiet().await;
}

#[tokio::test]
async fn the_sender_cannot_be_forged() {
    let server = TestServer::start().await;
    let mut alice = Client::join(&server, "tea").await;
    let mut bob = Client::join(&server, "tea").await;
    alice.expect_new(&bob.id).await;
    for forged in [
        json!(alice.id),
        json!("server"),
        json!(null),
        json!({"id": [1, 2]}),
        json!(7),
    ] {
        bob.send(json!({"type": "chat", "sender": forged, "receiver": alice.id}))
            .await;
        assert_eq!(alice.next().await["sender"], bob.id.as_str(), "{forged}");
    }
}

#[tokio::test]
async fn a_session_may_send_to_itself() {
    let server = TestServer::start().await;
    let mut alice = Client::join(&server, "tea").await;
    let id = alice.id.clone();
    alice
        .send(json!({"type": "note", "receiver": id, "data": 1}))
        .await;
    let expected = format!(r#"{{"type":"note","sender":"{id}","receiver":"{id}","data":1}}"#);
    alice.expect_text(&expected).await;
}

#[tokio::test]
async fn messages_of_one_sender_stay_in_order() {
    let server = TestServer::start().await;
    let mut alice = Client::join(&server, "tea").await;
    let mut bob = Client::join(&server, "tea").await;
    alice.expect_new(&bob.id).await;
    for number in 0..1000 {
        let receiver = if number % 3 == 0 { "all" } else { &alice.id };
        bob.send(json!({"type": "count", "receiver": receiver, "data": number}))
            .await;
    }
    for number in 0..1000 {
        assert_eq!(alice.next().await["data"], number);
    }
}

#[tokio::test]
async fn a_message_without_a_receiver_in_the_room_is_an_error() {
    let server = TestServer::start().await;
    let mut alice = Client::join(&server, "tea").await;
    let mut outsider = Client::join(&server, "coffee").await;
    let gone = Client::join(&server, "tea").await;
    alice.expect_new(&gone.id).await;
    let gone_id = gone.id.clone();
    gone.leave().await;
    alice.expect_left(&gone_id).await;

    let upper_case = alice.id.to_uppercase();
    let braced = format!("{{{}}}", alice.id);
    let without_dashes = alice.id.replace('-', "");
    for receiver in [
        &outsider.id,
        &gone_id,
        "bob",
        "",
        "ALL",
        " all",
        &upper_case,
        &braced,
        &without_dashes,
    ] {
        alice
            .send(json!({"type": "chat", "receiver": receiver, "ref": 7}))
            .await;
        let error = alice.expect_error("unknown_receiver").await;
        assert_eq!(
            error["message"],
            format!("no session {receiver} in this room")
        );
        assert_eq!(error["ref"], 7);
    }
    alice.send(json!({"type": "chat", "receiver": "all"})).await;
    let error = alice.expect_error("empty_room").await;
    assert_eq!(error.get("ref"), None);
    outsider.expect_quiet().await;
}

#[tokio::test]
async fn a_receipt_counts_the_receivers_and_repeats_the_ref() {
    let server = TestServer::start().await;
    let mut alice = Client::join(&server, "tea").await;
    let mut bob = Client::join(&server, "tea").await;
    let carol = Client::join(&server, "tea").await;
    alice.expect_new(&bob.id).await;
    alice.expect_new(&carol.id).await;
    bob.expect_new(&carol.id).await;

    let id = alice.id.clone();
    let longest = format!("\"{}\"", "é".repeat(32));
    let many_digits = "9".repeat(20);
    let refs = [
        "1",
        "-7",
        "0",
        r#""a\u0041\n""#,
        r#""""#,
        &longest,
        "18446744073709551616",
        &many_digits,
    ];
    for reference in refs {
        alice
            .send_text(&format!(
                r#"{{"type":"x","receiver":"all","ref":{reference}}}"#
            ))
            .await;
        let data = format!(r#"{{"ref":{reference},"receivers":2}}"#);
        let ack = format!(r#"{{"type":"ack","sender":"server","receiver":"{id}","data":{data}}}"#);
        alice.expect_text(&ack).await;
        assert_eq!(bob.next().await.get("ref"), None);
    }
    alice
        .send(json!({"type": "x", "receiver": carol.id, "ref": "one"}))
        .await;
    assert_eq!(
        alice.next().await["data"],
        json!({"ref": "one", "receivers": 1})
    );

    // The receipt of a request follows its answer.
    alice
        .send(json!({"type": "ping", "receiver": "server", "ref": 9}))
        .await;
    assert_eq!(alice.next().await["type"], "pong");
    assert_eq!(
        alice.next().await["data"],
        json!({"ref": 9, "receivers": 1})
    );
    alice
        .send(json!({"type": "dance", "receiver": "server", "ref": 10}))
        .await;
    assert_eq!(alice.expect_error("unknown_request").await["ref"], 10);
}
