//! The command `bench`: counts and the shape of the report, never times.

use std::{
    num::NonZeroU32,
    process::{Output, Stdio},
};

use serde_json::{Value, json};
use tokio::process::Command;

use crate::support::{Client, TestServer, eventually, within_deadline};

async fn bench(arguments: &[&str]) -> Output {
    let output = Command::new(env!("CARGO_BIN_EXE_anteroom"))
        .arg("bench")
        .args(arguments)
        .env_remove("ANTEROOM_TOKEN")
        .stdin(Stdio::null())
        .output();
    within_deadline("the report", output).await.unwrap()
}

/// The report as JSON, with the exit code.
async fn report(arguments: &[&str]) -> (Option<i32>, Value) {
    let output = bench(&[&["--json", "--seconds", "1"], arguments].concat()).await;
    let report = serde_json::from_slice(&output.stdout);
    (
        output.status.code(),
        report.unwrap_or_else(|_| panic!("{output:?}")),
    )
}

fn phase<'a>(report: &'a Value, name: &str) -> &'a Value {
    let mut phases = report["phases"].as_array().unwrap().iter();
    phases.find(|phase| phase["name"] == name).unwrap()
}

#[tokio::test]
async fn sessions_join_and_their_messages_arrive() {
    let server = TestServer::start().await;
    let url = server.address.to_string();
    let (code, report) = report(&["--sessions", "12", "--rate", "50", &url]).await;
    assert_eq!(code, Some(0));
    assert_eq!(
        (&report["sessions"], &report["rooms"]),
        (&json!(12), &json!(2))
    );
    let names: Vec<_> = report["phases"]
        .as_array()
        .unwrap()
        .iter()
        .map(|it| &it["name"])
        .collect();
    assert_eq!(names, ["joins", "messages", "latency"]);
    let joins = phase(&report, "joins");
    assert_eq!(
        (&joins["count"], &joins["errors"]),
        (&json!(12), &json!({}))
    );
    let messages = phase(&report, "messages");
    assert!(messages["count"].as_u64().unwrap() > 12, "{messages}");
    assert!(messages["inFlight"].as_u64().unwrap() >= 1);
    let latency = phase(&report, "latency");
    assert_eq!(
        (&latency["count"], &latency["errors"]),
        (&json!(50), &json!({}))
    );
    // Of so few there is no 99th percentile.
    for (phase, samples) in [(joins, 12), (latency, 50)] {
        assert_eq!(phase["milliseconds"]["samples"], samples);
        assert_eq!(phase["milliseconds"]["p99"], Value::Null);
    }
    assert_eq!(
        (&latency["missing"], &latency["rates"]["asked"]),
        (&json!(0), &json!(50))
    );
    let stopped = latency["stopped"].as_str().unwrap();
    assert!(stopped.starts_with("50 messages were sent, "), "{stopped}");
    for phase in [joins, messages, latency] {
        let times = ["p50", "p90", "max"].map(|it| phase["milliseconds"][it].as_f64().unwrap());
        assert!(times.is_sorted() && times[0] > 0.0, "{phase}");
        assert!(phase["perSecond"].as_f64().unwrap() > 0.0);
        assert!(!phase["stopped"].as_str().unwrap().is_empty());
    }
    // All have left.
    assert_eq!(server.anteroom.sessions(), 0);
    assert_eq!(server.count("anteroom_sessions_suspended"), 0);
}

#[tokio::test]
async fn a_room_that_is_named_sees_what_the_sessions_are() {
    let server = TestServer::start().await;
    let mut bob = Client::join(&server, "tea").await;
    let url = format!("http://{}/?room=tea", server.address);
    let ended = tokio::spawn(async move {
        let output = bench(&["--seconds", "1", "--sessions", "3", "--rate", "1", &url]).await;
        (
            output.status.code(),
            String::from_utf8(output.stdout).unwrap(),
        )
    });
    let mut states = 0;
    let mut left = 0;
    while left < 3 {
        let message = bob.next().await;
        match message["type"].as_str().unwrap() {
            "new" => {}
            "state" => {
                assert_eq!(
                    message["data"],
                    json!({"name": "anteroom bench", "bench": true})
                );
                states += 1;
            }
            "close" => left += 1,
            other => panic!("{other}"),
        }
    }
    assert_eq!(states, 3);
    let (code, table) = ended.await.unwrap();
    assert_eq!(code, Some(0));
    assert!(table.contains("3 sessions in 1 rooms"), "{table}");
    for phase in ["joins", "messages", "latency"] {
        assert_eq!(
            table.lines().filter(|line| line.starts_with(phase)).count(),
            2,
            "{table}"
        );
    }
}

#[tokio::test]
async fn a_limit_of_the_server_ends_a_phase_and_is_named() {
    let server = TestServer::with(|config| {
        config.limits.max_address_sessions = NonZeroU32::new(4);
    })
    .await;
    let url = server.address.to_string();
    let (code, limited) = report(&["--sessions", "100", "--rate", "5", &url]).await;
    assert_eq!((code, &limited["sessions"]), (Some(0), &json!(4)));
    let joins = phase(&limited, "joins");
    let stopped = joins["stopped"].as_str().unwrap();
    assert!(stopped.contains("--max-address-sessions"), "{stopped}");
    let refused = joins["errors"][stopped].as_u64().unwrap();
    // Those that were on their way when the first one was refused.
    assert!((1..=16).contains(&refused), "{joins}");
    assert_eq!(phase(&limited, "latency")["count"], 5);

    let server = TestServer::with(|config| {
        config.access.allow_origin = vec!["https://example.org".parse().unwrap()];
    })
    .await;
    let url = server.address.to_string();
    let (code, refused) = report(&[&url]).await;
    assert_eq!((code, &refused["sessions"]), (Some(1), &json!(0)));
    assert_eq!(refused["phases"].as_array().unwrap().len(), 1);
    let (code, allowed) = report(&[
        "--sessions",
        "1",
        "--rate",
        "1",
        "--origin",
        "https://example.org",
        &url,
    ])
    .await;
    assert_eq!((code, &allowed["sessions"]), (Some(0), &json!(1)));
}

#[tokio::test]
async fn sessions_that_are_lost_end_a_phase_and_fail_the_measurement() {
    let mut server = TestServer::start().await;
    let url = server.address.to_string();
    let ended = tokio::spawn(async move {
        let arguments = ["--seconds", "5", "--sessions", "3", &url];
        let output = bench(&[&["--json"], &arguments[..]].concat()).await;
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        (output.status.code(), report)
    });
    eventually("messages of the second phase", || {
        server.count("anteroom_messages_sent_total") > 200
    })
    .await;
    server.stop();
    let (code, report) = ended.await.unwrap();
    assert_eq!(code, Some(1));
    assert_eq!(
        (&report["sessions"], &report["lost"]),
        (&json!(3), &json!(3))
    );
    let last = report["phases"].as_array().unwrap().last().unwrap();
    let stopped = last["stopped"].as_str().unwrap();
    assert!(stopped.contains("all sessions are lost"), "{stopped}");
}

#[tokio::test]
async fn a_rate_that_is_too_high_ends_the_phase() {
    let server = TestServer::start().await;
    let url = server.address.to_string();
    // That would be 6.5 GB a second.
    let arguments = ["--sessions", "2", "--size", "65000", "--rate", "100000"];
    let (_, report) = report(&[&arguments[..], &[&url]].concat()).await;
    let latency = phase(&report, "latency");
    assert_eq!(latency["rates"]["asked"], 100_000);
    let sent = latency["rates"]["sent"].as_f64().unwrap();
    assert!(sent < 100_000.0, "{sent}");
    let stopped = latency["stopped"].as_str().unwrap();
    assert!(stopped.contains(" a second of 100000"), "{stopped}");
    assert!(
        !stopped.starts_with("100000 messages were sent"),
        "{stopped}"
    );
}

#[tokio::test]
async fn a_server_that_paces_is_named() {
    let server = TestServer::with(|config| {
        config.limits.messages_per_second = NonZeroU32::new(10);
    })
    .await;
    let url = server.address.to_string();
    let (_, report) = report(&["--sessions", "1", "--rate", "5", &url]).await;
    for name in ["messages", "latency"] {
        let stopped = phase(&report, name)["stopped"].as_str().unwrap();
        let expected =
            "; the server paces a session at 10 messages a second (--messages-per-second)";
        assert!(stopped.ends_with(expected), "{stopped}");
    }
}

#[tokio::test]
async fn another_machine_is_not_loaded_unasked() {
    // The address is for documentation (RFC 5737): nobody is there.
    let output = bench(&["ws://192.0.2.1:9/"]).await;
    assert_eq!(output.status.code(), Some(2));
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(
        errors.contains("192.0.2.1 is not this machine") && errors.contains("--yes"),
        "{errors}"
    );
    for arguments in [
        &["--sessions", "0", "ws://127.0.0.1:9/"][..],
        &["--rate", "0", "ws://127.0.0.1:9/"],
        &["ftp://127.0.0.1/"],
    ] {
        assert_eq!(
            bench(arguments).await.status.code(),
            Some(2),
            "{arguments:?}"
        );
    }
}
