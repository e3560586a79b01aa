//! Requests to the admin API.

use std::net::SocketAddr;

use super::{answer::Answer, raw::Raw, server::TestServer};

/// Sends a request to the server's admin API.
pub async fn operator(server: &TestServer, method: &str, path: &str, body: &str) -> Answer {
    operator_with(server, method, path, "", body).await
}

/// Sends a request with more headers to the server's admin API. Each header includes its end of line.
pub async fn operator_with(
    server: &TestServer,
    method: &str,
    path: &str,
    headers: &str,
    body: &str,
) -> Answer {
    operator_at(server.admin.unwrap(), method, path, headers, body).await
}

/// Sends a request to the admin API at an address.
pub async fn operator_at(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &str,
    body: &str,
) -> Answer {
    let host = match headers.contains("Host:") {
        true => String::new(),
        false => format!("Host: {address}\r\n"),
    };
    let length = match method {
        "POST" => format!("Content-Length: {}\r\n", body.len()),
        _ => String::new(),
    };
    let mut raw = Raw::connect_to(address).await;
    let first = format!("{method} {path} HTTP/1.1\r\nConnection: close\r\n");
    raw.write(format!("{first}{host}{headers}{length}\r\n{body}"))
        .await;
    let head = raw.read_head().await.to_ascii_lowercase();
    let body = String::from_utf8(raw.read_to_end().await).unwrap();
    Answer {
        status: head[9..12].parse().unwrap(),
        head,
        body,
    }
}
