//! Validation of messages, and `data` that the server relays unchanged.

use serde_json::json;

use crate::support::{Client, TestServer};

#[tokio::test]
async fn an_invalid_message_gets_an_error_with_the_reason_and_the_session_goes_on() {
    let server = TestServer::start().await;
    let mut bystander = Client::join(&server, "tea").await;
    let mut alice = Client::join(&server, "tea").await;
    bystander.expect_new(&alice.id).await;
    let long_type = format!(r#"{{"type":"{}","receiver":"all"}}"#, "é".repeat(33));
    let long_ref = format!(
        r#"{{"type":"x","receiver":"all","ref":"{}"}}"#,
        "r".repeat(65)
    );
    let long_number = format!(
        r#"{{"type":"x","receiver":"all","ref":{}}}"#,
        "9".repeat(60_000)
    );
    let deep_array = "[".repeat(60_000);
    let invalid = [
        ("", "JSON object"),
        (" ", "JSON object"),
        ("hello", "JSON object"),
        ("7", "JSON object"),
        ("null", "JSON object"),
        (r#""text""#, "JSON object"),
        (r#"["x","","all",null]"#, "JSON object"),
        (
            "\u{feff}{\"type\":\"x\",\"receiver\":\"all\"}",
            "JSON object",
        ),
        (&deep_array, "JSON object"),
        ("{", "not JSON"),
        ("{}x", "not JSON"),
        (r#"{"type":"x","receiver":"all"}{}"#, "not JSON"),
        (r#"{"type":"x","receiver":"all",}"#, "not JSON"),
        (r#"{'type':'x'}"#, "not JSON"),
        (r#"{"type":"x","receiver":"all","data":01}"#, "not JSON"),
        (r#"{"type":"x","receiver":"all","data":NaN}"#, "not JSON"),
        (r#"{"type":"x","receiver":"all","data":[1,2}"#, "not JSON"),
        (
            "{\"type\":\"x\",\"receiver\":\"all\",\"data\":\"\u{0}\"}",
            "not JSON",
        ),
        (
            "{\"type\":\"x\",\"receiver\":\"all\",\"data\":\"a\nb\"}",
            "not JSON",
        ),
        ("{}", "type is missing"),
        (r#"{"receiver":"all"}"#, "type is missing"),
        (r#"{"type":"x"}"#, "receiver is missing"),
        (r#"{"type":"x","Receiver":"all"}"#, "unknown field Receiver"),
        (
            r#"{"type":"x","receiver":"all","payload":{}}"#,
            "unknown field payload",
        ),
        (
            r#"{"type":"x","type":"x","receiver":"all"}"#,
            "type is given twice",
        ),
        (
            r#"{"type":"x","receiver":"all","receiver":"all"}"#,
            "receiver is given twice",
        ),
        (
            r#"{"type":"x","receiver":"all","data":1,"data":1}"#,
            "data is given twice",
        ),
        (
            r#"{"type":"x","receiver":"all","sender":1,"sender":1}"#,
            "sender is given twice",
        ),
        (
            r#"{"type":"x","receiver":"all","ref":1,"\u0072ef":1}"#,
            "ref is given twice",
        ),
        (r#"{"type":7,"receiver":"all"}"#, "type must be a string"),
        (r#"{"type":null,"receiver":"all"}"#, "type must be a string"),
        (
            r#"{"type":"\ud800","receiver":"all"}"#,
            "type must not contain lone surrogates",
        ),
        (
            r#"{"type":"","receiver":"all"}"#,
            "type must have 1 to 64 bytes",
        ),
        (&long_type, "type must have 1 to 64 bytes"),
        (r#"{"type":"x","receiver":7}"#, "receiver must be a string"),
        (
            r#"{"type":"x","receiver":null}"#,
            "receiver must be a string",
        ),
        (
            r#"{"type":"x","receiver":["all"]}"#,
            "receiver must be a string",
        ),
        (r#"{"type":"x","receiver":"all","ref":1.5}"#, "ref must be"),
        (&long_number, "ref must be"),
        (
            r#"{"\ud800":1,"type":"x","receiver":"all"}"#,
            "unknown field",
        ),
        (r#"{"type":"x","receiver":"all","ref":1e3}"#, "ref must be"),
        (r#"{"type":"x","receiver":"all","ref":true}"#, "ref must be"),
        (
            r#"{"type":"x","receiver":"all","ref":{"a":1}}"#,
            "ref must be",
        ),
        (&long_ref, "ref must be"),
    ];
    for (text, reason) in invalid {
        alice.send_text(text).await;
        let error = alice.expect_error("bad_message").await;
        let message = error["message"].as_str().unwrap();
        assert!(message.contains(reason), "{text}: {message}");
        assert!(message.len() < 200, "{text}: {message}");
    }
    alice.expect_quiet().await;
    bystander.expect_quiet().await;
}

#[tokio::test]
async fn an_error_repeats_the_ref_if_it_can_be_read() {
    let server = TestServer::start().await;
    let mut alice = Client::join(&server, "tea").await;
    let invalid = [
        (r#"{"ref":5}"#, json!(5)),
        (
            r#"{"type":"x","ref":"mine","receiver":"all","extra":1}"#,
            json!("mine"),
        ),
        (r#"{"type":7,"ref":-1,"receiver":"all"}"#, json!(-1)),
        (
            r#"{"\ud800":1,"type":"x","receiver":"all","ref":7}"#,
            json!(7),
        ),
        (r#"{"type":7,"ref":1.0,"receiver":"all"}"#, json!(1.0)),
        (r#"{"type":"x","receiver":"all","ref":1.5}"#, json!(null)),
    ];
    for (text, reference) in invalid {
        alice.send_text(text).await;
        assert_eq!(
            alice.expect_error("bad_message").await["ref"],
            reference,
            "{text}"
        );
    }
}

#[tokio::test]
async fn data_is_relayed_byte_for_byte() {
    let server = TestServer::with(|config| config.limits.max_message_bytes = 300_000).await;
    let mut alice = Client::join(&server, "tea").await;
    let mut bob = Client::join(&server, "tea").await;
    alice.expect_new(&bob.id).await;
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let deep_objects = format!("{}1{}", r#"{"a":"#.repeat(20_000), "}".repeat(20_000));
    let digits = "1234567890".repeat(40);
    let unusual = [
        "null",
        "0",
        "-0.0",
        "1e999",
        "1.000000000000000000000000000000001",
        &digits,
        r#"{"b":1,"a":2,"b":3}"#,
        "[ 1,\t2 ,\n 3\r]",
        r#""\ud800""#,
        r#""\udc00\ud800 \u0000 \/""#,
        "\"\u{2028}\u{2029}\u{feff}\u{7f}é🍵\"",
        r#"{"type":"new","sender":"server"}"#,
        &deep,
        &deep_objects,
    ];
    for data in unusual {
        // White space around the value is not part of the value.
        bob.send_text(&format!(
            r#" {{"data": {data} ,"type":"x","receiver":"all"}} "#
        ))
        .await;
        let (from, relayed) = (&bob.id, alice.next_text().await);
        let expected =
            format!(r#"{{"type":"x","sender":"{from}","receiver":"all","data":{data}}}"#);
        assert!(relayed == expected, "{}", &data[..data.len().min(100)]);
    }
}

#[tokio::test]
async fn a_type_with_escapes_is_relayed_as_the_string_it_means() {
    let server = TestServer::start().await;
    let mut alice = Client::join(&server, "tea").await;
    let mut bob = Client::join(&server, "tea").await;
    alice.expect_new(&bob.id).await;
    let longest = "t".repeat(64);
    let longest_quoted = format!("\"{longest}\"");
    let types = [
        (r#""\u0063hat""#, "chat"),
        (r#""a\"b\\c\/d""#, "a\"b\\c/d"),
        (r#""\u0000\n""#, "\0\n"),
        (r#""\ud83c\udf75""#, "🍵"),
        (r#""new""#, "new"),
        (&longest_quoted, &longest),
    ];
    for (written, meant) in types {
        bob.send_text(&format!(r#"{{"type":{written},"receiver":"\u0061ll"}}"#))
            .await;
        let message = alice.next().await;
        assert_eq!(message["type"], meant);
        assert_eq!(message["receiver"], "all");
    }
}

#[tokio::test]
async fn a_message_of_the_maximum_size_is_relayed_and_a_longer_one_closes() {
    let server = TestServer::start().await;
    let mut alice = Client::join(&server, "tea").await;
    let mut bob = Client::join(&server, "tea").await;
    alice.expect_new(&bob.id).await;
    let message = |length: usize| {
        let envelope = r#"{"type":"x","receiver":"all","data":""}"#;
        let data = "d".repeat(length - envelope.len());
        envelope.replace("\"\"", &format!("\"{data}\""))
    };
    bob.send_text(&message(65_536)).await;
    assert!(alice.next_text().await.len() > 65_536);
    bob.send_text(&message(65_537)).await;
    assert_eq!(
        bob.expect_close().await,
        (1009, "a message over 65536 bytes".into())
    );
    let id = bob.id.clone();
    alice.expect_left(&id).await;
    alice.expect_quiet().await;
}
