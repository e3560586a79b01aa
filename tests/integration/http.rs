//! HTTP requests that are not an upgrade, and upgrades that are invalid.

use std::{collections::HashMap, io::Read, net::SocketAddr};

use anteroom::{Anteroom, Config};
use flate2::read::GzDecoder;
use tokio::{io::AsyncWriteExt, net::TcpListener};

use crate::support::{Client, Raw, TestServer, handshake};

/// An HTTP answer with its headers by name and its body as bytes.
struct Response {
    status: u16,
    headers: HashMap<String, String>,
    body: Vec<u8>,
}

impl Response {
    /// The body, which must be one line of text.
    fn line(&self) -> &str {
        let body = std::str::from_utf8(&self.body).unwrap();
        assert_eq!(body.lines().count(), 1, "{body:?}");
        assert!(body.ends_with('\n'));
        body.trim_end()
    }
}

/// Sends a request on a new connection.
async fn request(server: &TestServer, method: &str, path: &str, headers: &str) -> Response {
    let text = format!("{method} {path} HTTP/1.1\r\nHost: test\r\n{headers}\r\n");
    request_text(server, &text).await
}

/// Sends the text of a request on a new connection.
async fn request_text(server: &TestServer, text: &str) -> Response {
    request_text_at(server.address, text).await
}

/// Sends the text of a request, with `Connection: close` added, on a new connection to an address.
async fn request_text_at(address: SocketAddr, text: &str) -> Response {
    let mut raw = Raw::connect_to(address).await;
    let close = text.replacen("\r\n", "\r\nConnection: close\r\n", 1);
    raw.write(&close).await;
    let head = raw.read_head().await;
    let mut lines = head.lines();
    let status: u16 = lines
        .next()
        .unwrap()
        .split(' ')
        .nth(1)
        .unwrap()
        .parse()
        .unwrap();
    let headers = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        .collect();
    Response {
        status,
        headers,
        // An upgraded connection stays open.
        body: match status {
            101 => Vec::new(),
            _ => raw.read_to_end().await,
        },
    }
}

#[tokio::test]
async fn health_answers_ok() {
    let server = TestServer::start().await;
    let health = request(&server, "GET", "/health", "").await;
    assert_eq!((health.status, health.line()), (200, "ok"));
    let head = request(&server, "HEAD", "/health", "").await;
    assert_eq!((head.status, head.body.len()), (200, 0));
}

#[tokio::test]
async fn the_page_and_its_files_have_content_types_and_etags() {
    let server = TestServer::start().await;
    let index = request(&server, "GET", "/", "").await;
    assert_eq!(index.status, 200);
    assert_eq!(index.headers["content-type"], "text/html; charset=utf-8");
    let html = String::from_utf8(index.body).unwrap();
    assert!(html.starts_with("<!doctype html>"));
    for (path, mime) in [
        ("/page.js", "text/javascript; charset=utf-8"),
        ("/page.css", "text/css; charset=utf-8"),
    ] {
        assert!(html.contains(&path[1..]), "the page uses {path}");
        let file = request(&server, "GET", path, "").await;
        assert_eq!((file.status, &*file.headers["content-type"]), (200, mime));
        let etag = &file.headers["etag"];

        let same = request(&server, "GET", path, &format!("If-None-Match: {etag}\r\n")).await;
        assert_eq!((same.status, same.body.len()), (304, 0));
        assert_eq!(&same.headers["etag"], etag);
        let listed = format!("If-None-Match: \"other\", W/{etag}\r\n");
        assert_eq!(request(&server, "GET", path, &listed).await.status, 304);
        let other = request(&server, "GET", path, "If-None-Match: \"other\"\r\n").await;
        assert_eq!((other.status, other.body), (200, file.body.clone()));

        let head = request(&server, "HEAD", path, "").await;
        assert_eq!((head.status, head.body.len()), (200, 0));
        assert_eq!(head.headers["content-length"], file.body.len().to_string());
    }
}

#[tokio::test]
async fn the_page_is_small_when_it_is_compressed_and_has_strict_security_headers() {
    let server = TestServer::start().await;
    let mut bytes = 0;
    for file in std::fs::read_dir("static").unwrap() {
        let name = file.unwrap().file_name().into_string().unwrap();
        if name == "admin" {
            let page = request(&server, "GET", "/admin/", "").await;
            assert_eq!(page.status, 404, "only the admin listener has it");
            continue;
        }
        let encodings = "Accept-Encoding: br, gzip\r\n";
        let file = request(&server, "GET", &format!("/{name}"), encodings).await;
        let is_of_package = ["package.json", "README.md", "node_modules"].contains(&&*name);
        if is_of_package || name.ends_with(".tgz") {
            assert_eq!(file.status, 404, "{name} is for the npm package alone");
            continue;
        }
        if name.ends_with(".png") {
            assert_eq!(
                file.status, 404,
                "{name} is for the README and the guide alone"
            );
            continue;
        }
        // The page does not load the types, and these only when they are needed.
        let is_loaded_later = [
            "check.js",
            "devices.js",
            "log.js",
            "speaking.js",
            "whiteboard.css",
            "whiteboard.js",
        ];
        if !name.ends_with(".d.ts") && !is_loaded_later.contains(&&*name) {
            bytes += file.body.len();
        }
        for (header, value) in [
            ("x-content-type-options", "nosniff"),
            ("referrer-policy", "no-referrer"),
            (
                "permissions-policy",
                "camera=(self), microphone=(self), display-capture=(self)",
            ),
            ("access-control-allow-origin", "*"),
        ] {
            assert_eq!(file.headers[header], value, "{name}");
        }
        assert_eq!(
            file.headers["content-security-policy"],
            "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; \
             connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'; \
             require-trusted-types-for 'script'; trusted-types 'none'"
        );
    }
    println!("the page has {bytes} bytes");
    assert!(bytes <= 40 << 10, "{bytes} bytes");
}

#[tokio::test]
async fn embedded_files_are_sent_in_the_encoding_that_the_client_prefers() {
    let server = TestServer::start().await;
    let get = async |method, path, headers: &str| request(&server, method, path, headers).await;
    for path in ["/", "/anteroom.js", "/page.css"] {
        let plain = get("GET", path, "").await;
        assert_eq!(plain.headers.get("content-encoding"), None);
        assert_eq!(plain.headers["vary"], "accept-encoding");
        let plain_etag = &plain.headers["etag"];
        let mut etags = vec![plain_etag.clone()];
        for (accepted, encoding) in [
            ("gzip, deflate, br, zstd", Some("br")),
            ("gzip, deflate", Some("gzip")),
            ("br;q=0.5, gzip;q=0.8", Some("gzip")),
            ("identity;q=0, gzip;q=0.1", Some("gzip")),
            ("*", Some("br")),
            ("zstd", None),
            ("br;q=0, identity", None),
        ] {
            let accept = format!("Accept-Encoding: {accepted}\r\n");
            let file = get("GET", path, &accept).await;
            assert_eq!(file.status, 200);
            let sent = file.headers.get("content-encoding").map(String::as_str);
            assert_eq!(sent, encoding, "{accepted}");
            let length = file.body.len();
            assert_eq!(file.headers["content-length"], length.to_string());
            assert_eq!(file.headers["content-type"], plain.headers["content-type"]);
            assert_eq!(file.headers["vary"], "accept-encoding");
            assert_eq!(decoded(encoding, &file.body), plain.body, "{accepted}");
            assert!(encoding.is_none() || length < plain.body.len());

            let head = get("HEAD", path, &accept).await;
            assert_eq!((head.status, head.body.len()), (200, 0));
            for header in ["content-length", "content-encoding", "etag", "vary"] {
                assert_eq!(head.headers.get(header), file.headers.get(header));
            }
            let etag = &file.headers["etag"];
            let known = format!("{accept}If-None-Match: {etag}\r\n");
            let same = get("GET", path, &known).await;
            assert_eq!((same.status, same.body.len()), (304, 0));
            assert_eq!(
                (&same.headers["etag"], &*same.headers["vary"]),
                (etag, "accept-encoding")
            );
            if encoding.is_some() {
                let other = format!("{accept}If-None-Match: {plain_etag}\r\n");
                assert_eq!(get("GET", path, &other).await.status, 200, "{accepted}");
            }
            etags.push(etag.clone());
        }
        etags.sort();
        etags.dedup();
        assert_eq!(etags.len(), 3, "one for each encoding: {etags:?}");
    }
}

#[tokio::test]
async fn files_are_sent_without_the_comments_of_whole_lines_except_the_place_of_the_types() {
    let server = TestServer::start().await;
    for file in std::fs::read_dir("static").unwrap() {
        let path = file.unwrap().path();
        if path
            .extension()
            .is_none_or(|extension| extension != "js" && extension != "css")
        {
            continue;
        }
        let name = path.file_name().unwrap().to_str().unwrap();
        let source = std::fs::read_to_string(&path).unwrap();
        let answer = request(&server, "GET", &format!("/{name}"), "").await;
        let sent = String::from_utf8(answer.body).unwrap();
        assert!(sent.len() < source.len(), "{name} has comments");
        assert_eq!(sent.lines().count(), source.lines().count(), "{name}");
        for (number, (line, source)) in (1..).zip(sent.lines().zip(source.lines())) {
            let source = match line.is_empty() {
                true => source.to_owned(),
                false => without_types(source),
            };
            let comment = source.strip_suffix(line).unwrap().trim();
            let is_comment = comment.starts_with("//")
                || comment.starts_with('*')
                || comment.starts_with("/*") && (line.is_empty() || comment.ends_with("*/"));
            assert!(
                comment.is_empty() || is_comment,
                "{name}:{number}: {source}"
            );
            let rest = line.trim_start();
            let begins_with_comment = rest.starts_with("//") || rest.starts_with("/*");
            // Deno reads it.
            if name == "anteroom.js" && number == 1 {
                assert_eq!(rest, r#"// @ts-self-types="./anteroom.d.ts""#);
                continue;
            }
            assert!(!begins_with_comment, "{name}:{number}: {source}");
        }
    }
}

/// A line of code without the comments `/** @type … */` in it.
fn without_types(line: &str) -> String {
    let mut parts = line.split("/** @");
    let mut code = parts.next().unwrap().to_owned();
    for part in parts {
        let (_, after) = part.split_once("*/").unwrap_or(("", part));
        code += after.strip_prefix(' ').unwrap_or(after);
    }
    code
}

/// The contents of a body in this encoding.
fn decoded(encoding: Option<&str>, body: &[u8]) -> Vec<u8> {
    let mut contents = Vec::new();
    match encoding {
        Some("br") => brotli::BrotliDecompress(&mut &*body, &mut contents).unwrap(),
        Some("gzip") => _ = GzDecoder::new(body).read_to_end(&mut contents).unwrap(),
        _ => contents.extend(body),
    }
    contents
}

#[tokio::test]
async fn no_path_leads_out_of_the_embedded_files() {
    let server = TestServer::start().await;
    for path in [
        "/../Cargo.toml",
        "/%2e%2e/Cargo.toml",
        "//etc/passwd",
        "/%2Fetc/passwd",
        "/./admin/admin.js",
        "/x/../admin/admin.js",
        "/./call.png",
    ] {
        let status = request(&server, "GET", path, "").await.status;
        assert_eq!(status, 404, "{path}");
    }
}

#[tokio::test]
async fn a_folder_can_replace_the_page() {
    let folder = std::env::temp_dir().join(format!("anteroom-static-{}", std::process::id()));
    std::fs::create_dir_all(folder.join("sub")).unwrap();
    std::fs::write(folder.join("index.html"), "own").unwrap();
    std::fs::write(folder.join("sub/data.json"), "{}").unwrap();
    let server = TestServer::with(|config| config.serving.static_dir = Some(folder.clone())).await;

    let index = request(&server, "GET", "/", "Accept-Encoding: br, gzip\r\n").await;
    assert_eq!(index.body, b"own");
    assert!(!index.headers.contains_key("content-encoding"));
    assert!(!index.headers.contains_key("vary"));
    assert!(!index.headers.contains_key("content-security-policy"));
    assert_eq!(index.headers["x-content-type-options"], "nosniff");
    let json = request(&server, "GET", "/sub/data.json", "").await;
    assert_eq!(
        (&*json.headers["content-type"], &*json.body),
        ("application/json", &b"{}"[..])
    );
    assert_eq!(request(&server, "GET", "/page.js", "").await.status, 404);
    std::os::unix::fs::symlink("/etc", folder.join("outside")).unwrap();
    std::os::unix::fs::symlink("data.json", folder.join("sub/inside.json")).unwrap();
    let fifo = std::process::Command::new("mkfifo")
        .arg(folder.join("fifo"))
        .status()
        .unwrap();
    assert!(fifo.success());
    let not_found = [
        "/../Cargo.toml",
        "/%2e%2e/Cargo.toml",
        "/sub/..%2f..%2f..%2fetc/passwd",
        "//etc/passwd",
        "/outside/passwd",
        "/fifo",
        "/sub",
        "/sub/",
        "/%00",
        "/a%5cb",
        "/index.html/",
    ];
    for path in not_found {
        assert_eq!(
            request(&server, "GET", path, "").await.status,
            404,
            "{path}"
        );
    }
    assert_eq!(
        request(&server, "GET", "/sub/inside.json", "").await.body,
        b"{}"
    );
    assert_eq!(request(&server, "GET", "/health", "").await.line(), "ok");

    // A changed file is served at once: within the same second, and despite `If-Modified-Since`.
    let etag = request(&server, "GET", "/", "").await.headers["etag"].clone();
    let unchanged = request(&server, "GET", "/", &format!("If-None-Match: {etag}\r\n")).await;
    assert_eq!(unchanged.status, 304);
    std::fs::write(folder.join("index.html"), "changed").unwrap();
    let since = "If-Modified-Since: Fri, 01 Jan 2100 00:00:00 GMT";
    let conditions = format!("If-None-Match: {etag}\r\n{since}\r\n");
    let changed = request(&server, "GET", "/", &conditions).await;
    assert_eq!((changed.status, changed.body), (200, b"changed".into()));
    std::fs::remove_dir_all(folder).unwrap();
}

#[tokio::test]
async fn an_unknown_path_gets_404_with_one_line() {
    let server = TestServer::start().await;
    for path in [
        "/nothing",
        "/room/a/b",
        "/roomy",
        "/health/more",
        "/..",
        "/index.htm",
        "//",
    ] {
        let answer = request(&server, "GET", path, "").await;
        assert_eq!(answer.status, 404, "{path}");
        assert_eq!(
            answer.line(),
            "no such URL: the page is at /, rooms are at /room and /room/{name}"
        );
        assert_eq!(answer.headers["content-type"], "text/plain; charset=utf-8");
    }
}

#[tokio::test]
async fn other_methods_get_405() {
    let server = TestServer::start().await;
    for path in ["/", "/health", "/page.js"] {
        for method in ["POST", "DELETE", "OPTIONS"] {
            let answer = request(&server, method, path, "Content-Length: 0\r\n").await;
            assert_eq!(
                (answer.status, &*answer.headers["allow"]),
                (405, "GET, HEAD"),
                "{path}"
            );
            answer.line();
        }
    }
    let answer = request_text(&server, &handshake("/room").replace("GET", "PUT")).await;
    assert_eq!(
        (answer.status, &*answer.headers["allow"]),
        (405, "GET, POST, DELETE, OPTIONS")
    );
    assert_eq!(
        answer.line(),
        "open a session with GET, send with POST and leave with DELETE, not PUT"
    );
}

#[tokio::test]
async fn an_invalid_upgrade_gets_the_status_and_header_that_name_the_reason() {
    let server = TestServer::start().await;
    let valid = handshake("/room/tea");
    let without = |name: &str| {
        let lines = valid.split("\r\n").filter(|line| !line.starts_with(name));
        lines.collect::<Vec<_>>().join("\r\n")
    };
    let upgrade = ("upgrade", "websocket");
    let version = ("sec-websocket-version", "13");
    let key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==";
    let two_keys = valid.replace(key, &format!("{key}\r\n{key}"));
    let cases = [
        (
            "GET /room HTTP/1.1\r\nHost: test\r\n\r\n".to_owned(),
            426,
            Some(upgrade),
        ),
        (without("Upgrade"), 426, Some(upgrade)),
        (without("Connection"), 426, Some(upgrade)),
        (valid.replace("websocket", "h2c"), 426, Some(upgrade)),
        (valid.replace("HTTP/1.1", "HTTP/1.0"), 426, Some(upgrade)),
        (without("Sec-WebSocket-Version"), 426, Some(version)),
        (valid.replace("13", "8"), 426, Some(version)),
        (valid.replace("13", "13, 8"), 426, Some(version)),
        (without("Sec-WebSocket-Key"), 400, None),
        (
            valid.replace("dGhlIHNhbXBsZSBub25jZQ==", "short"),
            400,
            None,
        ),
        (
            valid.replace("dGhlIHNhbXBsZSBub25jZQ==", "dGhlIHNhbXBsZSBub25jZSE="),
            400,
            None,
        ),
        (two_keys, 400, None),
        (
            valid.replacen("\r\n", "\r\nContent-Length: 5\r\n", 1),
            400,
            None,
        ),
        (
            valid.replacen("\r\n", "\r\nTransfer-Encoding: chunked\r\n", 1),
            400,
            None,
        ),
    ];
    for (request, status, header) in cases {
        // These requests also have `Connection: close`, which must not be the reason for the rejection.
        let answer = request_text(&server, &request).await;
        assert_eq!(answer.status, status, "{request}");
        if let Some((name, value)) = header {
            assert_eq!(answer.headers[name], value, "{request}");
        }
        answer.line();
    }
    assert_eq!(server.anteroom.sessions(), 0);
}

#[tokio::test]
async fn the_answer_to_an_upgrade_over_http_1_0_names_the_version() {
    let server = TestServer::start().await;
    let valid = handshake("/room/tea");
    for (request, part) in [
        (valid.replace("HTTP/1.1", "HTTP/1.0"), "needs HTTP/1.1"),
        (
            valid.replace("Upgrade: websocket\r\n", ""),
            "Upgrade: websocket",
        ),
    ] {
        let answer = request_text(&server, &request).await;
        assert!(answer.line().contains(part), "{request}: {}", answer.line());
    }
}

#[tokio::test]
async fn a_connection_serves_several_requests_and_then_an_upgrade() {
    let server = TestServer::start().await;
    let mut raw = Raw::connect(&server).await;
    for _ in 0..3 {
        raw.write("GET /health HTTP/1.1\r\nHost: test\r\n\r\n")
            .await;
        assert!(raw.read_head().await.starts_with("HTTP/1.1 200 "));
        let mut body = [0; 3];
        tokio::io::AsyncReadExt::read_exact(&mut raw.stream, &mut body)
            .await
            .unwrap();
        assert_eq!(&body, b"ok\n");
    }
    raw.write(handshake("/room")).await;
    assert!(raw.read_head().await.starts_with("HTTP/1.1 101 "));
}

#[tokio::test]
async fn bytes_that_are_not_http_get_400_or_a_close() {
    let server = TestServer::start().await;
    for bytes in [
        "\r\n\r\nnonsense\r\n\r\n",
        "\x16\x03\x01\x02\x00\x01\x00\x01\x7c",
        "GET / HTTP/9.9\r\n\r\n",
    ] {
        let mut raw = Raw::connect(&server).await;
        raw.write(bytes).await;
        tokio::io::AsyncWriteExt::shutdown(&mut raw.stream)
            .await
            .unwrap();
        let answer = String::from_utf8(raw.read_to_end().await).unwrap();
        assert!(
            answer.is_empty() || answer.starts_with("HTTP/1.1 400 "),
            "{answer}"
        );
    }
    assert_eq!(request(&server, "GET", "/health", "").await.line(), "ok");
}

#[tokio::test]
async fn a_request_target_that_is_not_a_path_gets_400() {
    let server = TestServer::start().await;
    for request in [
        "GET test:80 HTTP/1.1",
        "CONNECT test:80 HTTP/1.1",
        "OPTIONS * HTTP/1.1",
    ] {
        let answer = request_text(&server, &format!("{request}\r\nHost: test\r\n\r\n")).await;
        assert_eq!(answer.status, 400, "{request}");
        assert_eq!(
            answer.line(),
            "the request target must be a path, such as /room"
        );
    }
    let absolute = "GET http://test/health HTTP/1.1\r\nHost: test\r\n\r\n";
    assert_eq!(request_text(&server, absolute).await.line(), "ok");
}

#[tokio::test]
async fn a_client_that_closes_its_sending_side_still_gets_its_answer() {
    let server = TestServer::start().await;
    let mut raw = Raw::connect(&server).await;
    raw.write("GET /health HTTP/1.1\r\nHost: test\r\n\r\n")
        .await;
    raw.stream.shutdown().await.unwrap();
    let answer = String::from_utf8(raw.read_to_end().await).unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("ok\n"),
        "{answer}"
    );

    let mut raw = Raw::connect(&server).await;
    let hello = crate::support::text(r#"{"type":"hello","receiver":"server"}"#);
    raw.write([handshake("/room").as_bytes(), &hello].concat())
        .await;
    raw.stream.shutdown().await.unwrap();
    assert!(raw.read_head().await.starts_with("HTTP/1.1 101 "));
    assert_eq!(raw.read_message().await["type"], "hello");
    assert_eq!(raw.read_to_end().await, b"");
}

#[tokio::test]
async fn hidden_files_are_not_served_except_in_well_known() {
    let folder = std::env::temp_dir().join(format!("anteroom-dots-{}", std::process::id()));
    for name in ["sub", ".git", ".well-known/sub", "sub/.well-known"] {
        std::fs::create_dir_all(folder.join(name)).unwrap();
    }
    for name in [
        ".env",
        ".git/config",
        ".git/index.html",
        "sub/.hidden",
        "sub/plain",
        ".well-known/security.txt",
        ".well-known/sub/plain",
        ".well-known/.hidden",
        "sub/.well-known/plain",
    ] {
        std::fs::write(folder.join(name), "contents").unwrap();
    }
    for (target, link) in [
        (".env", "env"),
        (".git", "git"),
        ("sub/plain", ".plain"),
        (".well-known/security.txt", "security.txt"),
    ] {
        std::os::unix::fs::symlink(target, folder.join(link)).unwrap();
    }
    let server = TestServer::with(|config| config.serving.static_dir = Some(folder.clone())).await;
    for (path, status) in [
        ("/.env", 404),
        ("/%2eenv", 404),
        ("/%2Eenv", 404),
        ("/.git/config", 404),
        ("/.git/", 404),
        ("/sub/.hidden", 404),
        ("/sub/%2ehidden", 404),
        ("/sub%2f.hidden", 404),
        ("/sub/../.env", 404),
        ("/.well-known/../.env", 404),
        ("/.well-known/.hidden", 404),
        ("/sub/.well-known/plain", 404),
        ("//.env", 404),
        // A link to a hidden file or folder, and a hidden link.
        ("/env", 404),
        ("/git/config", 404),
        ("/.plain", 404),
        ("/sub/plain", 200),
        ("/.well-known/security.txt", 200),
        ("/%2ewell-known/sub/plain", 200),
        ("/security.txt", 200),
    ] {
        let answer = request(&server, "GET", path, "").await;
        assert_eq!(answer.status, status, "{path}");
        if status == 404 {
            assert_eq!(
                answer.line(),
                "no such URL: the page is at /, rooms are at /room and /room/{name}"
            );
        }
    }
    std::fs::remove_dir_all(folder).unwrap();
}

/// Variants of a request that has no `Host`: that request, and others with an invalid `Host` or two (RFC
/// 9112, section 3.2).
fn with_invalid_hosts(request: &str) -> Vec<String> {
    let hosts = [
        "",
        "Host: test\r\nHost: test\r\n",
        "Host: \r\n",
        "Host: a b\r\n",
        "Host: a/b\r\n",
        "Host: http://test\r\n",
        "Host: name@test\r\n",
        "Host: test:port\r\n",
        "Host: test:65536\r\n",
        "Host: :80\r\n",
        "Host: [::1\r\n",
        "Host: [zzz]\r\n",
        "Host: test, test\r\n",
        "Host: caf\u{e9}\r\n",
    ];
    let with = |host: &&str| request.replacen("\r\n", &format!("\r\n{host}"), 1);
    hosts.iter().map(with).collect()
}

#[tokio::test]
async fn a_request_needs_exactly_one_valid_host() {
    let server =
        TestServer::with(|config| config.admin.listen = Some(([127, 0, 0, 1], 0).into())).await;
    let upgrade = handshake("/room").replace("Host: test\r\n", "");
    let plain = |path| format!("GET {path} HTTP/1.1\r\n\r\n");
    let admin = server.admin.unwrap();
    for (address, request) in [
        (server.address, plain("/health")),
        (server.address, plain("/")),
        (server.address, upgrade.clone()),
        (admin, plain("/health")),
        (admin, plain("/rooms")),
        (admin, plain("/")),
    ] {
        for request in with_invalid_hosts(&request) {
            let answer = request_text_at(address, &request).await;
            assert_eq!(answer.status, 400, "{request}");
            assert!(answer.line().contains("Host"), "{request}");
        }
    }
    assert_eq!(server.anteroom.sessions(), 0);

    for host in [
        "test",
        "TEST.example:",
        "test:8080",
        "127.0.0.1:80",
        "[::1]",
        "[::1]:8080",
        "under_score.example",
    ] {
        let request = format!("GET /health HTTP/1.1\r\nHost: {host}\r\n\r\n");
        assert_eq!(request_text_at(server.address, &request).await.line(), "ok");
        assert_eq!(request_text_at(admin, &request).await.line(), "ok");
    }
    // HTTP/1.0 does not require `Host`, but a `Host` that is present must be valid.
    for address in [server.address, admin] {
        let old = "GET /health HTTP/1.0\r\n\r\n";
        assert_eq!(request_text_at(address, old).await.line(), "ok");
        let two_hosts = "GET /health HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n";
        assert_eq!(request_text_at(address, two_hosts).await.status, 400);
    }
}

#[tokio::test]
async fn the_filter_in_another_application_needs_exactly_one_valid_host() {
    let anteroom = Anteroom::new(Config::default()).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let served = tokio::spawn(warp::serve(anteroom.room()).incoming(listener).run());
    let upgrade = handshake("/room").replace("Host: test\r\n", "");
    for request in with_invalid_hosts(&upgrade) {
        let answer = request_text_at(address, &request).await;
        assert_eq!(answer.status, 400, "{request}");
        assert!(answer.line().contains("Host"), "{request}");
    }
    assert_eq!(anteroom.sessions(), 0);
    let mut client = Client::connect(address, "/room").await;
    client.expect_quiet().await;
    client.leave().await;
    served.abort();
}

#[tokio::test]
async fn the_answer_to_too_many_or_too_long_headers_says_what_to_do() {
    let server =
        TestServer::with(|config| config.admin.listen = Some(([127, 0, 0, 1], 0).into())).await;
    let lines = "a request may have 100 header lines: send fewer";
    let bytes = "the headers exceed --max-header-bytes: send less, for example smaller cookies";
    let upgrade = handshake("/room");
    let plain = "GET /health HTTP/1.1\r\nHost: test\r\n\r\n";
    for (address, request, status) in [
        (server.address, plain, 200),
        (server.address, &*upgrade, 101),
        (server.admin.unwrap(), plain, 200),
    ] {
        let with = |more: &str| request.replace("\r\n\r\n", &format!("\r\n{more}\r\n"));
        let own = request.lines().count() - 2;
        // `request_text_at` adds one more header.
        let most = 100 - own - 1;
        for (request, refused) in [
            (with(&"A: b\r\n".repeat(most)), None),
            (with(&"A: b\r\n".repeat(most + 1)), Some(lines)),
            (with(&"A: b\r\n".repeat(1000)), Some(lines)),
            (with(&format!("A: {}\r\n", "f".repeat(15_000))), None),
            (with(&format!("A: {}\r\n", "f".repeat(16_384))), Some(bytes)),
            (with(&format!("A: {}\r\n", "f".repeat(30_000))), Some(bytes)),
        ] {
            let answer = request_text_at(address, &request).await;
            match refused {
                None => assert_eq!(answer.status, status),
                Some(line) => assert_eq!((answer.status, answer.line()), (431, line)),
            }
        }
    }
    let long = format!("GET /{} HTTP/1.1\r\nHost: test\r\n\r\n", "a".repeat(20_000));
    let answer = request_text_at(server.address, &long).await;
    assert_eq!((answer.status, answer.line()), (431, bytes));
}

#[tokio::test]
async fn the_server_survives_any_number_of_headers() {
    let server = TestServer::with(|config| config.limits.max_header_bytes = 1 << 20).await;
    for (line, count) in [
        ("A:\n", 2_000),
        ("A:\n", 30_000),
        ("A:\n", 340_000),
        ("A: b\r\n", 24_000),
    ] {
        let mut raw = Raw::connect(&server).await;
        let lines = line.repeat(count);
        let request = format!("GET /health HTTP/1.1\r\nHost: test\r\n{lines}\r\n");
        // The server may answer and close before the request is complete.
        let _ = raw.try_write(request).await;
        let answer = String::from_utf8(raw.read_to_end().await).unwrap();
        assert!(
            answer.is_empty() || answer.starts_with("HTTP/1.1 431 "),
            "{answer}"
        );
    }
    assert_eq!(request(&server, "GET", "/health", "").await.line(), "ok");
}
