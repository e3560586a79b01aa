//! TLS, tokens and TURN in a browser.

use anteroom::{TokenAlgorithm, TokenRequest};
use serde_json::json;

use super::{
    driver::Browser,
    page::{until_message, until_people},
};
use crate::{
    operating::Coturn,
    support::{File, TestServer, eventually, operator},
    tls::{Authority, Files},
};

/// A token that admits a user to these rooms, signed with the secret in a file.
pub fn token(file: &File, user: &str, rooms: &[&str]) -> String {
    let mut request = TokenRequest::new(file.path());
    request.token_algorithm = Some(TokenAlgorithm::Hs256);
    request.user = Some(user.into());
    request.room = rooms.iter().map(ToString::to_string).collect();
    request.sign().unwrap()
}

#[tokio::test]
#[ignore = "needs Chromium and certutil: tests/run starts it"]
async fn people_with_tokens_meet_over_tls() {
    let authority = Authority::new();
    let files = Files::new("browser", authority.issue("rooms.test"));
    let secret = File::new(
        "browser.secret",
        "a-secret-of-this-test-that-has-more-than-32-bytes",
    );
    let server = TestServer::with(|config| {
        config.serving.tls_cert = Some(files.cert.path());
        config.serving.tls_key = Some(files.key.path());
        config.tokens.key_file = Some(secret.path());
        config.tokens.algorithm = Some(TokenAlgorithm::Hs256);
        config.admin.listen = Some(([127, 0, 0, 1], 0).into());
    })
    .await;
    let browser = Browser::trusting(&authority.pem()).await;
    let url = format!("https://localhost:{}/?room=tea", server.address.port());
    let alice = browser
        .open(&format!(
            "{url}&token={}",
            token(&secret, "alice", &["tea"])
        ))
        .await;
    let bob = browser
        .open(&format!("{url}&token={}", token(&secret, "bob", &["tea"])))
        .await;
    until_people(&alice, 2).await;
    until_people(&bob, 2).await;
    assert_eq!(bob.run("return isSecureContext").await, true);
    // A tab shows the other person's name from the token.
    alice
        .until("[...document.querySelectorAll('#people-list .name-tag')].some((who) => who.textContent === 'bob')")
        .await;
    alice.type_into("#text", "over TLS\n").await;
    until_message(&bob, "over TLS").await;
    // The invite link does not contain the token.
    bob.run("globalThis.prompt = (_, link) => { globalThis.link = link }; navigator.clipboard.writeText = async (link) => prompt('', link)")
        .await;
    bob.click("#invite").await;
    bob.until("globalThis.link").await;
    assert_eq!(bob.run("return link").await, url);

    // The client module renews its token, and receives a message from the application's own server.
    let script = "return import('/anteroom.js').then(({ join }) => {
        globalThis.messages = [];
        globalThis.tokensRequested = 0;
        globalThis.room = join('tea', { token: () => { tokensRequested += 1; return arguments[0]; } });
        room.addEventListener('message', ({ detail }) => messages.push(detail));
        return room.send('server', 'token', arguments[1]).then(() => tokensRequested);
    })";
    let tokens = [
        token(&secret, "carol", &["tea"]),
        token(&secret, "carol", &["tea"]),
    ];
    let requested = bob.run_with(script, tokens.map(Into::into).into()).await;
    assert_eq!(requested, 1);
    let notice = json!({"type": "notice", "receiver": "all", "data": "tea is ready"});
    operator(&server, "POST", "/rooms/tea/messages", &notice.to_string()).await;
    bob.until("messages.some(({ type, sender, data }) => type === 'notice' && sender === 'server' && data === 'tea is ready')")
        .await;
    let refused = bob
        .run_with(
            "return room.send('server', 'token', arguments[0]).catch(({ code }) => code)",
            vec![token(&secret, "mallory", &["tea"]).into()],
        )
        .await;
    assert_eq!(refused, "not_allowed");
    bob.run("room.leave()").await;
    browser.close().await;
}

#[tokio::test]
#[ignore = "needs Chromium and coturn: tests/run starts it"]
async fn a_call_uses_turn_with_the_credentials_from_hello() {
    let coturn = Coturn::start().await;
    let server = TestServer::with(|config| {
        config.webrtc.turn_url = vec![coturn.url.parse().unwrap()];
        config.webrtc.turn_secret_file = Some(coturn.secret.path());
    })
    .await;
    relayed_call(&server, "turn:").await;
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn a_call_is_relayed_by_the_same_process_over_udp_and_tcp() {
    let server = TestServer::with(|config| {
        config.turn.listen = Some(([127, 0, 0, 1], 0).into());
        config.turn.addresses = vec![[127, 0, 0, 1].into()];
    })
    .await;
    for transport in ["transport=udp", "transport=tcp"] {
        relayed_call(&server, transport).await;
    }
    let to_clients = r#"anteroom_turn_datagrams_total{direction="to_clients"}"#;
    assert!(server.count(to_clients) > 0);
    eventually("the end of all allocations", || {
        server.count("anteroom_turn_allocations") == 0
    })
    .await;
}

/// Two pages whose only path to each other is a relay, at a URL of the room's ICE servers that has this part.
async fn relayed_call(server: &TestServer, part: &str) {
    let relayed = r#"anteroom_peer_connections_total{result="connected",path="relay"}"#;
    let before = server.count(relayed);
    let browser = Browser::start().await;
    let url = format!("http://{}/", server.address);
    let tabs = [browser.open(&url).await, browser.open(&url).await];
    for tab in &tabs {
        tab.run(&format!(
            "globalThis.RTCPeerConnection = class extends RTCPeerConnection {{
                constructor(configuration) {{
                    const iceServers = configuration.iceServers.map((server) =>
                        ({{ ...server, urls: server.urls.filter((url) => url.includes('{part}')) }}));
                    super({{ ...configuration, iceServers }});
                }}
            }};
            return import('/anteroom.js').then(({{ join, Mesh }}) => {{
                const configuration = {{ iceTransportPolicy: 'relay' }};
                globalThis.mesh = new Mesh(join('relay'), {{ configuration }});
                mesh.addEventListener('datachannel', ({{ detail: {{ channel }} }}) => {{
                    channel.addEventListener('message', ({{ data }}) => globalThis.received = data);
                    const greet = () => channel.send('through the relay');
                    // A channel from the other side may be open when its event fires.
                    if (channel.readyState === 'open') greet();
                    else channel.addEventListener('open', greet);
                }});
            }})"
        ))
        .await;
    }
    for tab in &tabs {
        tab.until("globalThis.received === 'through the relay'")
            .await;
        let kinds = tab
            .run(
                "return connections[0].getStats().then((stats) => [...stats.values()]
                    .filter(({ type }) => type === 'local-candidate')
                    .map(({ candidateType }) => candidateType))",
            )
            .await;
        for kind in kinds.as_array().unwrap() {
            assert_eq!(kind, "relay");
        }
    }
    eventually("both outcomes", || server.count(relayed) == before + 2).await;
    browser.close().await;
}
