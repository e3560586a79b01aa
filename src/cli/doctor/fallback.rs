//! Whether clients get through without a WebSocket, as they try where the network lets none through.

use http::{
    HeaderValue, Method, StatusCode,
    header::{ACCEPT, ORIGIN},
};
use serde_json::Value;

use super::{
    http::{Answer, ask},
    report::{Finding, Report},
    server_url::encode,
    session::Endpoint,
};

/// What the client sends.
const MESSAGE: &str = r#"{"type":"ping","receiver":"server"}"#;

/// What comes first over the stream of events.
const FIRST_EVENT: &str = r#"{"type":"resumed","#;

/// Does the step `without WebSocket`: joins, sends a message, reads events and leaves.
pub(super) async fn check(endpoint: &Endpoint, report: &mut Report) -> Finding {
    exchange(endpoint, report).await.unwrap_or_else(|it| it)
}

async fn exchange(endpoint: &Endpoint, report: &mut Report) -> Result<Finding, Finding> {
    let token = endpoint.token.as_deref().map(encode);
    let token = token.map(|token| format!("&token={token}"));
    let token = token.unwrap_or_default();
    let joined = request(endpoint, Method::GET, &token, "application/json").await?;
    let joined: Value = serde_json::from_str(&joined.body).unwrap_or_default();
    let Some(resume) = joined["session"]["token"].as_str() else {
        let advice = "have the proxy pass requests for this path on to the server as they are";
        return Err(Finding::warning(
            "the answer is not that of an anteroom server",
            advice,
        ));
    };
    report.hide(resume);
    let session = format!("&resume={}", encode(resume));
    let sent = format!("{session}&sent=0");
    let sent = request(endpoint, Method::POST, &sent, "*/*").await;
    let resumed = format!("{session}&received=0{token}");
    let events = request(endpoint, Method::GET, &resumed, "text/event-stream").await;
    let left = request(endpoint, Method::DELETE, &session, "*/*").await;
    sent?;
    let events = events?;
    left?;
    Ok(match events.body.contains(FIRST_EVENT) {
        true => Finding::ok("events come, and messages arrive"),
        false => Finding::warning(
            "events are held back: clients poll instead, which costs more requests",
            "turn off response buffering for this path: in nginx, proxy_buffering off",
        ),
    })
}

/// Sends a request to the room, with additional parts of the query.
///
/// # Errors
///
/// The finding for one that does not succeed.
async fn request(
    endpoint: &Endpoint,
    method: Method,
    query: &str,
    accept: &'static str,
) -> Result<Answer, Finding> {
    let path = format!(
        "{}?{query}",
        endpoint.target.with_room(&endpoint.room).path()
    );
    let headers = [
        (ACCEPT, HeaderValue::from_static(accept)),
        (
            ORIGIN,
            HeaderValue::from_str(&endpoint.origin).unwrap_or(HeaderValue::from_static("")),
        ),
    ];
    let body = match method {
        Method::POST => MESSAGE,
        _ => "",
    };
    let host = endpoint.target.authority();
    let answer = ask(
        &endpoint.connector,
        &host,
        method.clone(),
        &path,
        &headers,
        body,
    );
    let advice = "if clients should get through where WebSockets are blocked, have the proxy pass GET, POST and DELETE \
                  requests for this path on";
    match answer.await {
        Ok(answer) if matches!(answer.status, StatusCode::OK | StatusCode::NO_CONTENT) => {
            Ok(answer)
        }
        Ok(answer) => {
            let line = answer.line().unwrap_or_default();
            let said = format!("{method}: the answer is {}", answer.status.as_u16());
            let said = match line {
                "" => said,
                line => format!("{said}: {line}"),
            };
            Err(Finding::warning(said, advice))
        }
        Err(error) => Err(Finding::warning(format!("{method}: {error}"), advice)),
    }
}
