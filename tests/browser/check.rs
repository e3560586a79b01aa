//! The client module's check of the connection, and the page's panel for it.

use std::net::SocketAddr;

use anteroom::TokenAlgorithm;
use futures_util::StreamExt;
use serde_json::{Value, json};
use tokio::net::UdpSocket;
use tokio_tungstenite::tungstenite::Message;

use super::{
    accessibility::axe_violations,
    deployment::token,
    driver::{Browser, Tab},
    page::until_people,
    scripted_server::{
        ScriptedServer, Socket, ack, close, open_module_page, receive, roster, send, static_server,
    },
};
use crate::{
    operating::{Coturn, free_port},
    support::{Client, File, TestServer, eventually, within_deadline},
};

/// The end of each summary of a network without a relay.
const DIRECT: &str = "calls work only where the network lets peers reach each other directly.";

/// The summary of a browser without addresses for calls.
const BLOCKED: &str = "Calls do not work: a setting or an extension of this browser blocks WebRTC.";

/// A server with these options of WebRTC that serves `static/` as a folder.
async fn ice_server(urls: &[&str], coturn: Option<&Coturn>) -> TestServer {
    TestServer::with(|config| {
        config.serving.static_dir = Some("static".into());
        let (stun, turn): (Vec<&str>, Vec<&str>) = urls
            .iter()
            .copied()
            .partition(|url| url.starts_with("stun"));
        config.webrtc.ice_server = stun.iter().map(|url| url.parse().unwrap()).collect();
        config.webrtc.turn_url = turn.iter().map(|url| url.parse().unwrap()).collect();
        config.webrtc.turn_secret_file = coturn.map(|coturn| coturn.secret.path());
    })
    .await
}

/// Runs a check in the page, which must tell each step when it is done and close its connections.
async fn check(tab: &Tab<'_>, arguments: &str) -> Value {
    let script = format!(
        "const told = [];
        const [url, options] = [{arguments}];
        const report = await check(url, {{ ...options, onStep: (step) => told.push(step) }});
        const closed = connections.every(({{ signalingState }}) => signalingState === 'closed');
        return {{ ...report, closed, same: JSON.stringify(told) === JSON.stringify(report.steps) }};"
    );
    let report = tab.run(&script).await;
    assert_eq!(report["same"], true, "{report}");
    assert_eq!(report["closed"], true, "{report}");
    report
}

/// The steps of a report, each as whether it works, its name, and how.
fn steps(report: &Value) -> Vec<(bool, &str, &str)> {
    let mut steps = Vec::new();
    for step in report["steps"].as_array().unwrap() {
        let [name, detail] = ["name", "detail"].map(|field| step[field].as_str().unwrap());
        steps.push((step["ok"] == true, name, detail));
    }
    steps
}

/// The steps of a report that are about ICE servers, after the others, which work.
fn ice_steps(report: &Value) -> Vec<(bool, &str, &str)> {
    let mut steps = steps(report);
    let servers = steps.split_off(3);
    for (step, name) in steps.iter().zip(["WebSocket", "Resume", "ICE candidates"]) {
        assert_eq!((step.0, step.1), (true, name), "{report}");
    }
    servers
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn without_ice_servers_a_check_connects_resumes_and_finds_the_own_address() {
    let server = ice_server(&[], None).await;
    let mut other = Client::join(&server, "tea").await;
    let browser = Browser::start().await;
    let tab = open_module_page(&browser, &server, "").await;
    let report = check(&tab, "undefined").await;
    assert_eq!(report["ok"], true, "{report}");
    assert_eq!(report["summary"], format!("There is no relay: {DIRECT}"));
    assert_eq!(ice_steps(&report), []);
    let steps = steps(&report);
    assert!(steps[0].2.starts_with("opens in "), "{report}");
    assert!(steps[1].2.starts_with("resumed after "), "{report}");
    assert_eq!(steps[2].2, "host");
    let resumed = r#"anteroom_resumes_total{outcome="resumed"}"#;
    assert_eq!(server.count(resumed), 1, "{}", server.anteroom.metrics());
    // The check has left its room, and nobody has heard of it.
    eventually("one session", || server.count("anteroom_sessions") == 1).await;
    other.expect_quiet().await;

    tab.run("globalThis.RTCPeerConnection = undefined").await;
    let report = check(&tab, "undefined").await;
    let how = "none: TypeError: RTCPeerConnection is not a constructor";
    assert_eq!(self::steps(&report)[2], (false, "ICE candidates", how));
    assert_eq!(report["summary"], BLOCKED);
    browser.close().await;
}

/// A STUN server behind a NAT: it tells everyone another address (RFC 8489, sections 5 and 14.2).
async fn stun_server() -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    tokio::spawn(async move {
        let mut request = [0; 1500];
        while let Ok((_, client)) = socket.recv_from(&mut request).await {
            // The port 5000 and the address 203.0.113.7, combined with the magic cookie.
            let mapped = [0, 0x20, 0, 8, 0, 1, 0x32, 0x9a, 0xea, 0x12, 0xd5, 0x45];
            let answer = [&[1, 1, 0, 12], &request[4..20], &mapped].concat();
            socket.send_to(&answer, client).await.unwrap();
        }
    });
    address
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn a_stun_server_that_answers_is_told_from_one_that_does_not() {
    let [answers, silent] = [stun_server().await.port(), free_port()];
    let urls = [answers, silent].map(|port| format!("stun:127.0.0.1:{port}"));
    let server = ice_server(&[&urls[0], &urls[1]], None).await;
    let browser = Browser::start().await;
    let tab = open_module_page(&browser, &server, "").await;
    let report = check(&tab, "undefined").await;
    assert_eq!(steps(&report)[2].2, "host, srflx");
    let servers = ice_steps(&report);
    assert_eq!(
        servers[0],
        (true, &*format!("STUN 127.0.0.1:{answers}"), "answers")
    );
    assert_eq!((servers[1].0, &servers[1].2[..9]), (false, "no answer"));
    assert_eq!(report["summary"], format!("There is no relay: {DIRECT}"));

    // A browser that may not use UDP finds nothing, and tells no error.
    tab.run(
        "globalThis.RTCPeerConnection = class extends RTCPeerConnection {
            constructor() { super({ iceTransportPolicy: 'relay' }); }
        };",
    )
    .await;
    let report = check(&tab, "undefined").await;
    let steps = steps(&report);
    assert_eq!(steps[2], (false, "ICE candidates", "none"));
    assert_eq!((steps[3].0, steps[3].2), (false, "no answer"));
    assert_eq!(report["summary"], BLOCKED);
    browser.close().await;
}

#[tokio::test]
#[ignore = "needs Chromium and coturn: tests/run starts it"]
async fn a_relay_is_found_over_udp_and_tcp() {
    let coturn = Coturn::start().await;
    let host = coturn.url.strip_prefix("turn:").unwrap();
    let stun = format!("stun:{host}");
    let tcp = format!("{}?transport=tcp", coturn.url);
    let browser = Browser::start().await;
    let unused = format!("answers, but calls do not use it: the server announces no {tcp}");
    for (urls, how) in [
        (vec![&*stun, &coturn.url], &*unused),
        (vec![&stun, &coturn.url, &tcp], "answers"),
    ] {
        let server = ice_server(&urls, Some(&coturn)).await;
        let tab = open_module_page(&browser, &server, "").await;
        let report = check(&tab, "undefined").await;
        assert_eq!(report["ok"], true, "{report}");
        assert_eq!(report["summary"], "Calls should connect: a relay answers.");
        assert_eq!(
            ice_steps(&report),
            [
                // Browser and server are on the same machine.
                (
                    true,
                    &*format!("STUN {host}"),
                    "answers: there is no NAT between"
                ),
                (true, &format!("TURN {host} over UDP"), "answers"),
                (true, &format!("TURN {host} over TCP"), how),
            ]
        );
        assert_eq!(steps(&report)[2].2, "host, relay");
    }
    browser.close().await;
}

#[tokio::test]
#[ignore = "needs Chromium and coturn: tests/run starts it"]
async fn a_relay_that_refuses_the_credentials_is_told_from_one_that_does_not_answer() {
    let mut coturn = Coturn::start().await;
    let host = coturn.url.strip_prefix("turn:").unwrap().to_owned();
    coturn.secret = File::new("check.wrong-secret", "another secret");
    let closed = format!("127.0.0.1:{}", free_port());
    let browser = Browser::start().await;

    let server = ice_server(&[&coturn.url], Some(&coturn)).await;
    let tab = open_module_page(&browser, &server, "").await;
    let report = check(&tab, "undefined").await;
    assert_eq!(report["ok"], false, "{report}");
    let summary = format!("The relay refuses the server’s credentials: {DIRECT}");
    assert_eq!(report["summary"], summary, "{report}");
    let servers = ice_steps(&report);
    let [(false, name, how)] = servers[..] else {
        panic!("{report}");
    };
    assert_eq!(name, format!("TURN {host} over UDP"));
    assert!(how.starts_with("refuses the credentials"), "{how}");

    // No server answers on a closed port.
    let [stun, udp, tcp] = [
        format!("stun:{closed}"),
        format!("turn:{closed}"),
        format!("turn:{closed}?transport=tcp"),
    ];
    let server = ice_server(&[&stun, &udp, &tcp], Some(&coturn)).await;
    let tab = open_module_page(&browser, &server, "").await;
    let report = check(&tab, "undefined").await;
    assert_eq!(report["summary"], format!("No relay answers: {DIRECT}"));
    let servers = ice_steps(&report);
    for (step, name) in servers.iter().zip([
        format!("STUN {closed}"),
        format!("TURN {closed} over UDP"),
        format!("TURN {closed} over TCP"),
    ]) {
        assert_eq!((step.0, step.1), (false, &*name));
        assert!(step.2.starts_with("no answer"), "{step:?}");
    }
    assert_eq!(servers.len(), 3, "{report}");
    browser.close().await;
}

#[tokio::test]
#[ignore = "needs Chromium and coturn: tests/run starts it"]
async fn a_relay_that_answers_only_over_tcp_is_named() {
    let coturn = Coturn::start().await;
    let host = coturn.url.strip_prefix("turn:").unwrap();
    let closed = format!("127.0.0.1:{}", free_port());
    let server = ice_server(
        &[
            &format!("stun:{closed}"),
            &format!("turn:{closed}?transport=udp"),
            &format!("{}?transport=tcp", coturn.url),
        ],
        Some(&coturn),
    )
    .await;
    let browser = Browser::start().await;
    let tab = open_module_page(&browser, &server, "").await;
    let report = check(&tab, "undefined").await;
    let summary = "This network seems to block UDP: calls go over TCP through the relay.";
    assert_eq!(report["summary"], summary, "{report}");
    assert_eq!(report["ok"], false);
    let servers = ice_steps(&report);
    let works: Vec<_> = servers.iter().map(|(ok, ..)| *ok).collect();
    assert_eq!(works, [false, false, true], "{report}");
    assert_eq!(servers[2].1, format!("TURN {host} over TCP"));
    browser.close().await;
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn a_server_that_is_down_or_refuses_the_connection_is_named() {
    let secret = File::new("check.secret", "a-secret-of-this-test-that-has-32-bytes");
    let server = TestServer::with(|config| {
        config.serving.static_dir = Some("static".into());
        config.tokens.key_file = Some(secret.path());
        config.tokens.algorithm = Some(TokenAlgorithm::Hs256);
    })
    .await;
    let browser = Browser::start().await;
    let tab = open_module_page(
        &browser,
        &server,
        "globalThis.names = [];
        globalThis.WebSocket = class extends WebSocket {
            constructor(url, protocol) {
                super(url, protocol);
                names.push(decodeURIComponent(new URL(url).pathname.split('/').at(-1)));
            }
        };",
    )
    .await;

    let closed = format!("'http://127.0.0.1:{}/'", free_port());
    let report = check(&tab, &closed).await;
    let why = "it is down, or the network or a proxy blocks WebSocket";
    assert_eq!(steps(&report), [(false, "WebSocket", why)]);
    assert_eq!(
        report["summary"],
        format!("The server cannot be reached: {why}.")
    );
    assert_eq!(report["ok"], false);

    let report = check(&tab, "undefined").await;
    let why = "a token is required: send ?token=<jwt> or the header Authorization: Bearer <jwt>";
    assert_eq!(steps(&report), [(false, "WebSocket", why)]);
    assert_eq!(
        report["summary"],
        format!("The server refuses the connection: {why}.")
    );

    // With a token, the check joins a room that the token admits to.
    let token_of = |rooms: &[&str]| token(&secret, "alice", rooms);
    for (rooms, start) in [
        (&[][..], "check-"),
        (&["tea", "call-*"], "call-check-"),
        (&["Tee – für zwei"], "Tee – für zwei"),
    ] {
        tab.run("names.length = 0").await;
        let options = format!("undefined, {{ token: '{}' }}", token_of(rooms));
        assert_eq!(check(&tab, &options).await["ok"], true);
        let names = tab.run("return names").await;
        let names: Vec<String> = serde_json::from_value(names).unwrap();
        assert_eq!((names.len(), &names[0]), (2, &names[1]));
        assert!(names[0].starts_with(start), "{names:?}");
        assert_eq!(names[0] == start, start.starts_with('T'), "{names:?}");
    }
    let invalid = tab
        .run("return check('nowhere').catch((error) => error.name)")
        .await;
    assert_eq!(invalid, "TypeError");
    // The console has the refused connection to the closed port.
    assert_eq!(browser.console_errors().await.len(), 1);
    browser.close().await;
}

/// A page and a server whose every frame the test writes. The page's global `report` becomes the report of a check, or
/// the error.
async fn scripted_check(browser: &Browser) -> (ScriptedServer, Tab<'_>) {
    let server = ScriptedServer::start().await;
    let pages = static_server().await;
    let start = format!(
        "globalThis.abort = new AbortController();
        globalThis.start = () => {{
            globalThis.report = null;
            // Only the claims are read here: this token has the room of the scripted server.
            const token = `.${{btoa(JSON.stringify({{ room: 'a b' }}))}}.`;
            const {{ signal }} = abort;
            check('{}', {{ token, signal }}).then((value) => (report = value), (error) => (report = String(error)));
        }};",
        server.url()
    );
    let tab = open_module_page(browser, &pages, &start).await;
    (server, tab)
}

/// Answers the `hello` of a check, with a session that can be resumed.
async fn answer_hello(socket: &mut Socket) {
    let mut hello = roster(&[]);
    hello["data"]["resume"] = json!({"token": "t", "seconds": 30});
    send(socket, hello).await;
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn a_connection_that_is_cut_or_not_resumed_is_named() {
    let browser = Browser::start().await;
    let (server, tab) = scripted_check(&browser).await;

    // The network cuts the connection before the answer.
    tab.run("start()").await;
    let mut socket = server.accept().await;
    answer_hello(&mut socket).await;
    assert_eq!(receive(&mut socket).await["type"], "ping");
    drop(socket);
    tab.until("report").await;
    let report = tab.run("return report").await;
    let why = "the browser tells no reason";
    assert_eq!(
        steps(&report),
        [(false, "WebSocket", &*format!("cut: {why}"))]
    );
    assert_eq!(
        report["summary"],
        format!("The connection to the server was cut: {why}.")
    );

    // The room resumes its session to leave it.
    let (socket, query) = server.accept_with_query().await;
    assert!(query.starts_with("resume=t&"), "{query}");
    assert_eq!(next_close(socket).await, Some(1000));

    // The server has lost the session.
    tab.run("start()").await;
    let mut socket = server.accept().await;
    answer_hello(&mut socket).await;
    let ping = receive(&mut socket).await;
    send(&mut socket, ack(&ping)).await;
    assert_eq!(next_close(socket).await, Some(4000));
    let mut socket = server.accept_without_hello().await;
    let error = json!({"code": "resume_failed", "message": "this is a new session"});
    let error = json!({"type": "error", "sender": "server", "receiver": "me", "data": error});
    send(&mut socket, error).await;
    assert_eq!(receive(&mut socket).await["type"], "hello");
    answer_hello(&mut socket).await;
    tab.until("report").await;
    let report = tab.run("return report").await;
    let why = "the session is lost: the server keeps none, or another server answered";
    assert_eq!(steps(&report)[1], (false, "Resume", why));
    assert_eq!(report["summary"], format!("There is no relay: {DIRECT}"));
    assert_eq!(report["ok"], false);

    // The server does not come back.
    tab.run("start()").await;
    let mut socket = server.accept().await;
    answer_hello(&mut socket).await;
    let ping = receive(&mut socket).await;
    send(&mut socket, ack(&ping)).await;
    assert_eq!(next_close(socket).await, Some(4000));
    close(server.accept_without_hello().await, 1012, "restarting").await;
    tab.until("report").await;
    let report = tab.run("return report").await;
    assert_eq!(steps(&report)[1], (false, "Resume", "restarting"));
    let summary = "The connection to the server was cut, and does not return: restarting.";
    assert_eq!(report["summary"], summary);
    browser.close_regardless().await;
}

/// The code of the page's Close frame, which must come next. It is answered.
async fn next_close(mut socket: Socket) -> Option<u16> {
    let mut code = None;
    while let Some(Ok(frame)) = within_deadline("the connection's end", socket.next()).await {
        let Message::Close(frame) = frame else {
            panic!("{frame:?}");
        };
        code = frame.map(|frame| frame.code.into());
    }
    code
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn an_aborted_check_leaves_its_room_and_closes_its_connections() {
    let server = TestServer::with(|config| {
        config.serving.static_dir = Some("static".into());
        config.liveness.resume_seconds = 3600;
    })
    .await;
    let browser = Browser::start().await;
    let tab = open_module_page(
        &browser,
        &server,
        "globalThis.checkUntil = async (count) => {
            const abort = new AbortController();
            const told = [];
            const onStep = (step) => {
                told.push(step);
                // The next wait begins before the task ends.
                if (told.length === count) queueMicrotask(() => abort.abort(new Error('enough')));
            };
            if (count === 0) abort.abort(new Error('enough'));
            const { message } = await check(undefined, { signal: abort.signal, onStep }).catch((error) => error);
            return [message, told.length, connections.every(({ signalingState }) => signalingState === 'closed')];
        };",
    )
    .await;
    for count in 0..3 {
        let script = format!("return checkUntil({count})");
        assert_eq!(tab.run(&script).await, json!(["enough", count, true]));
        eventually("no session", || server.count("anteroom_sessions") == 0).await;
    }
    // The check was gathering candidates.
    assert_eq!(tab.run("return connections.length > 0").await, true);
    browser.close().await;
}

#[tokio::test]
#[ignore = "needs Chromium and axe-core: tests/run names them and starts this test"]
async fn the_panel_shows_the_steps_and_is_accessible() {
    let axe = std::fs::read_to_string(std::env::var("AXE").expect("AXE is the path of axe.js"));
    let axe = axe.unwrap();
    let mut server = TestServer::with(|config| {
        let closed = format!("stun:127.0.0.1:{}", free_port());
        config.webrtc.ice_server = vec![closed.parse().unwrap()];
    })
    .await;
    let browser = Browser::start().await;
    let entry = browser.open(&format!("http://{}/", server.address)).await;
    let room = browser
        .open(&format!("http://{}/?room=tea", server.address))
        .await;
    until_people(&room, 1).await;

    let done = "document.querySelector('#check [role=status]').textContent.includes('peers')";
    for (page, button) in [(&entry, "#entry .check"), (&room, "#people .check")] {
        page.click(button).await;
        page.until("document.activeElement.closest('#check')").await;
        page.until(done).await;
        let shown = page
            .run(
                "return [...document.querySelectorAll('#check li')].map((step) =>
                    [step.querySelector('[role=img]').ariaLabel, step.querySelector('b').textContent])",
            )
            .await;
        let shown: Vec<(String, String)> = serde_json::from_value(shown).unwrap();
        let works: Vec<_> = shown.iter().map(|(works, _)| &**works).collect();
        assert_eq!(works, ["works", "works", "works", "fails"], "{shown:?}");
        assert_eq!(shown[0].1, "WebSocket");

        for scheme in ["light", "dark"] {
            for (width, height) in [(320, 256), (360, 740), (1440, 900)] {
                let media = json!([{"name": "prefers-color-scheme", "value": scheme}]);
                page.devtools("Emulation.setEmulatedMedia", json!({"features": media}))
                    .await;
                let metrics = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500});
                page.devtools("Emulation.setDeviceMetricsOverride", metrics)
                    .await;
                page.run("return Promise.allSettled(document.getAnimations().map((one) => one.finished)).then(() => 0)")
                    .await;
                let found = axe_violations(page, &axe).await;
                assert_eq!(found, [""; 0], "{button} {scheme} {width}");
                let overflow = page
                    .run("const { scrollWidth, clientWidth } = document.querySelector('#check'); return scrollWidth - clientWidth")
                    .await;
                assert_eq!(overflow, 0, "{button} {width}");
            }
        }
        // The Escape key closes the panel, and the focus returns.
        page.press("\u{e00c}").await;
        page.until("!document.querySelector('#check')").await;
        page.until("document.activeElement.matches('.check')").await;
    }

    // The panel does not need the server, and closing it ends the check.
    server.stop();
    server.stopped().await;
    entry.click("#entry .check").await;
    entry.until("document.querySelector('#check .bad')").await;
    let summary = "document.querySelector('#check [role=status]').textContent";
    entry
        .until(&format!(
            "{summary}.startsWith('The server cannot be reached')"
        ))
        .await;
    entry.click("#check button").await;
    entry.until("!document.querySelector('#check')").await;
    browser.close_regardless().await;
}
