//! TLS, tokens and TURN as browsers meet them, and the page for operators.

use anteroom::TokenRequest;
use serde_json::json;

use super::{
    driver::Browser,
    looks::serious,
    talking::{until_heard, until_here},
};
use crate::{
    operating::Coturn,
    support::{Client, File, TestServer, operator},
    tls::{Authority, Files},
};

/// A token for somebody, by the secret in a file.
fn token(file: &File, user: &str) -> String {
    let request = TokenRequest {
        token_key_file: file.path(),
        token_issuer: None,
        token_audience: None,
        user: Some(user.into()),
        room: vec!["tea".into()],
        hours: 1.0,
        info: None,
        listen_only: false,
    };
    request.sign().unwrap()
}

#[tokio::test]
#[ignore = "needs Chromium and certutil: tests/run starts it"]
async fn people_with_tokens_meet_over_wss() {
    let authority = Authority::new();
    let files = Files::new("browser", authority.issue("rooms.test"));
    let secret = File::new(
        "browser.secret",
        "a-secret-of-this-test-that-has-more-than-32-bytes",
    );
    let server = TestServer::with(|config| {
        config.tls_cert = Some(files.cert.path());
        config.tls_key = Some(files.key.path());
        config.token_key_file = Some(secret.path());
        config.admin = Some(([127, 0, 0, 1], 0).into());
    })
    .await;
    let browser = Browser::trusting(&authority.pem()).await;
    let url = format!("https://localhost:{}/?room=tea", server.address.port());
    let alice = browser
        .open(&format!("{url}&token={}", token(&secret, "alice")))
        .await;
    let bob = browser
        .open(&format!("{url}&token={}", token(&secret, "bob")))
        .await;
    until_here(&alice, 2).await;
    until_here(&bob, 2).await;
    assert_eq!(bob.run("return isSecureContext").await, true);
    // Each sees the other by the name in the token.
    alice
        .until("[...document.querySelectorAll('#people-list .name-tag')].some((who) => who.textContent === 'bob')")
        .await;
    alice.type_into("#text", "over TLS\n").await;
    until_heard(&bob, "over TLS").await;
    // An invitation has no token.
    bob.run("globalThis.prompt = (_, link) => { globalThis.link = link }; navigator.clipboard.writeText = async (link) => prompt('', link)")
        .await;
    bob.click("#invite").await;
    bob.until("globalThis.link").await;
    assert_eq!(bob.run("return link").await, url);

    // A fresher token, and a word from the application's own server.
    let script = "return import('/anteroom.js').then(({ join }) => {
        globalThis.heard = [];
        globalThis.asked = 0;
        globalThis.room = join('tea', { token: () => { asked += 1; return arguments[0]; } });
        room.addEventListener('message', ({ detail }) => heard.push(detail));
        return room.send('server', 'token', arguments[1]).then(() => asked);
    })";
    let tokens = [token(&secret, "carol"), token(&secret, "carol")];
    let asked = bob.run_with(script, tokens.map(Into::into).into()).await;
    assert_eq!(asked, 1);
    let notice = json!({"type": "notice", "receiver": "all", "data": "tea is ready"});
    operator(&server, "POST", "/rooms/tea/messages", &notice.to_string()).await;
    bob.until("heard.some(({ type, sender, data }) => type === 'notice' && sender === 'server' && data === 'tea is ready')")
        .await;
    let refused = bob
        .run_with(
            "return room.send('server', 'token', arguments[0]).catch(({ code }) => code)",
            vec![token(&secret, "mallory").into()],
        )
        .await;
    assert_eq!(refused, "not_allowed");
    bob.run("room.leave()").await;
    browser.close().await;
}

#[tokio::test]
#[ignore = "needs Chromium and coturn: tests/run starts it"]
async fn a_call_goes_through_coturn_with_the_credentials_of_hello() {
    let coturn = Coturn::start().await;
    let server = TestServer::with(|config| {
        config.turn_url = vec![coturn.url.parse().unwrap()];
        config.turn_secret_file = Some(coturn.secret.path());
    })
    .await;
    let browser = Browser::start().await;
    let url = format!("http://{}/", server.address);
    let tabs = [browser.open(&url).await, browser.open(&url).await];
    for tab in &tabs {
        tab.run(
            "return import('/anteroom.js').then(({ join, Mesh }) => {
                const configuration = { iceTransportPolicy: 'relay' };
                globalThis.mesh = new Mesh(join('relay'), { configuration });
                mesh.addEventListener('datachannel', ({ detail: { channel } }) => {
                    channel.addEventListener('message', ({ data }) => globalThis.heard = data);
                    const say = () => channel.send('through the relay');
                    // The other side's may be open as soon as it is there.
                    if (channel.readyState === 'open') say();
                    else channel.addEventListener('open', say);
                });
            })",
        )
        .await;
    }
    for tab in &tabs {
        tab.until("globalThis.heard === 'through the relay'").await;
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
    browser.close().await;
}

#[tokio::test]
#[ignore = "needs Chromium and axe-core: tests/run names them and starts this test"]
async fn operators_see_and_close_sessions_on_their_page() {
    let axe = std::fs::read_to_string(std::env::var("AXE").expect("AXE is the path of axe.js"));
    let axe = axe.unwrap();
    const SECRET: &str = "the operators' secret, which is long enough";
    let secret = File::new("browser.operators", SECRET);
    let server = TestServer::with(|config| {
        config.admin = Some(([127, 0, 0, 1], 0).into());
        config.admin_token_file = Some(secret.path());
    })
    .await;
    let mut alice = Client::join(&server, "tea").await;
    let bob = Client::join(&server, "tea").await;
    let _carol = Client::join(&server, "%3Cb%3Ecoffee%3C%2Fb%3E").await;
    alice.expect_new(&bob.id).await;
    let browser = Browser::start().await;
    let tab = browser
        .open(&format!("http://{}/", server.admin.unwrap()))
        .await;
    tab.until("!document.querySelector('#authorize').hidden")
        .await;
    tab.type_into("#token", &format!("{SECRET}\n")).await;
    tab.until("document.querySelectorAll('#rooms tr').length === 2")
        .await;
    assert_eq!(
        tab.run("return document.querySelector('td b')").await,
        json!(null)
    );
    tab.until("document.querySelector('#totals').textContent.includes('Sessions3')")
        .await;
    tab.run("[...document.querySelectorAll('#rooms button')].find((one) => one.textContent === 'tea').click()")
        .await;
    tab.until("document.querySelectorAll('#sessions tr').length === 2")
        .await;
    // What is looked at stays when it is drawn anew.
    let close = format!("#sessions [data-key='{}']", bob.id);
    tab.run(&format!("document.querySelector({close:?}).focus()"))
        .await;
    tab.run("globalThis.row = document.querySelector('#sessions tr')")
        .await;
    tab.until("!row.isConnected").await;
    let focused = tab.run("return document.activeElement.dataset.key").await;
    assert_eq!(focused, bob.id);
    for scheme in ["light", "dark"] {
        let media = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
        tab.chrome("Emulation.setEmulatedMedia", media).await;
        for width in [390, 1440] {
            let metrics =
                json!({"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": false});
            tab.chrome("Emulation.setDeviceMetricsOverride", metrics)
                .await;
            assert_eq!(serious(&tab, &axe).await, [""; 0], "{scheme} {width}");
            let wider = tab
                .run("return document.documentElement.scrollWidth - innerWidth")
                .await;
            assert!(
                wider.as_i64().unwrap() <= 0,
                "{wider} px too wide at {width}"
            );
        }
    }
    if let Ok(path) = std::env::var("SCREENSHOT") {
        tab.screenshot(&path).await;
    }
    tab.press("\n").await;
    alice.expect_left(&bob.id).await;
    tab.until("document.querySelectorAll('#sessions tr').length === 1")
        .await;

    // Draining has to be confirmed.
    tab.run("globalThis.confirm = () => false").await;
    tab.click("#drain").await;
    assert!(server.anteroom.is_ready());
    tab.run("globalThis.confirm = () => true").await;
    tab.click("#drain").await;
    tab.until("document.querySelector('#state').textContent.startsWith('draining')")
        .await;
    assert!(!server.anteroom.is_ready());
    // Not being ready, and not being allowed at first, are errors to the browser's console.
    let complaints = browser.complaints().await;
    assert!(
        complaints
            .iter()
            .all(|line| line.contains("401 (Unauthorized)") || line.contains("503 (Service")),
        "{complaints:?}"
    );
    browser.close_regardless().await;
}
