//! The operators' page.

use serde_json::json;

use super::{
    accessibility::axe_violations,
    driver::{Browser, Tab},
};
use crate::support::{Client, File, Raw, TestServer, eventually};

/// Checks that the page has no violations, and is not wider than the window, at every size.
async fn assert_accessible(tab: &Tab<'_>, axe: &str) {
    for scheme in ["light", "dark"] {
        let media = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
        tab.devtools("Emulation.setEmulatedMedia", media).await;
        for width in [320, 390, 768, 1280, 1920] {
            let metrics =
                json!({"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": false});
            tab.devtools("Emulation.setDeviceMetricsOverride", metrics)
                .await;
            assert_eq!(axe_violations(tab, axe).await, [""; 0], "{scheme} {width}");
            let too_wide = tab
                .run(
                    "return [document.documentElement, ...document.querySelectorAll('.scroll')]
                        .filter((one) => one.scrollWidth > one.clientWidth)
                        .map((one) => `${one.className} ${one.scrollWidth} ${one.clientWidth}`)",
                )
                .await;
            assert_eq!(too_wide, json!([]), "{width}");
        }
    }
}

/// The names of the rooms in the order of the table.
async fn rooms(tab: &Tab<'_>) -> serde_json::Value {
    tab.run("return [...document.querySelectorAll('#rooms button')].map((one) => one.textContent)")
        .await
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts this test"]
async fn no_row_moves_while_the_pointer_is_over_the_table() {
    let server = TestServer::with(|config| {
        config.admin.listen = Some(([127, 0, 0, 1], 0).into());
    })
    .await;
    let _alice = [
        Client::join(&server, "tea").await,
        Client::join(&server, "tea").await,
    ];
    let bob = Client::join(&server, "coffee").await;
    let browser = Browser::start().await;
    let tab = browser
        .open(&format!("http://{}/", server.admin.unwrap()))
        .await;
    tab.until("document.querySelectorAll('#rooms tr').length === 2")
        .await;
    let hover = async |selector: &str| {
        let place = tab
            .run(&format!(
                "const {{ x, y }} = document.querySelector({selector:?}).getBoundingClientRect();
                 return {{ type: 'mouseMoved', x: x + 5, y: y + 5 }}"
            ))
            .await;
        tab.devtools("Input.dispatchMouseEvent", place).await;
    };
    hover("#rooms tr").await;
    tab.until("document.querySelector('#rooms').matches(':hover')")
        .await;
    bob.leave().await;
    let _milk = [
        Client::join(&server, "milk").await,
        Client::join(&server, "milk").await,
        Client::join(&server, "milk").await,
    ];
    tab.until("document.querySelector('#rooms').textContent.endsWith('milk3')")
        .await;
    assert_eq!(rooms(&tab).await, json!(["tea", "coffee", "milk"]));
    let gone = tab
        .run("return [...document.querySelectorAll('.gone button')].map((one) => one.textContent)")
        .await;
    assert_eq!(gone, json!(["coffee"]));
    hover("h1").await;
    tab.until("document.querySelectorAll('#rooms tr').length === 2")
        .await;
    assert_eq!(rooms(&tab).await, json!(["milk", "tea"]));

    // The same while the keyboard is in the table. Elements of a window without focus have none.
    tab.devtools(
        "Emulation.setFocusEmulationEnabled",
        json!({"enabled": true}),
    )
    .await;
    tab.run("document.querySelectorAll('#rooms button')[1].focus()")
        .await;
    let _tea = [
        Client::join(&server, "tea").await,
        Client::join(&server, "tea").await,
    ];
    tab.until("document.querySelector('#rooms').textContent.endsWith('tea4')")
        .await;
    assert_eq!(rooms(&tab).await, json!(["milk", "tea"]));
    tab.run("document.querySelector('#search').focus()").await;
    tab.until("document.querySelector('#rooms').textContent.startsWith('tea4')")
        .await;
    browser.close().await;
}

#[tokio::test]
#[ignore = "needs Chromium and axe-core: tests/run names them and starts this test"]
async fn the_admin_page_shows_and_closes_sessions() {
    let axe = std::fs::read_to_string(std::env::var("AXE").expect("AXE is the path of axe.js"));
    let axe = axe.unwrap();
    const TOKEN: &str = "the operators' token, which is long enough";
    let token = File::new("browser.operators", TOKEN);
    let server = TestServer::with(|config| {
        config.admin.listen = Some(([127, 0, 0, 1], 0).into());
        config.admin.token_file = Some(token.path());
    })
    .await;
    let mut alice = Client::join(&server, "tea").await;
    let mut bob = Client::join(&server, "tea").await;
    let _carol = Client::join(&server, "%3Cb%3Ecoffee%3C%2Fb%3E").await;
    let _dave = Client::join(&server, &"w".repeat(128)).await;
    alice.expect_new(&bob.id).await;
    let state = json!({"name": "<b>Alice</b>", "about": "long ".repeat(50)});
    alice.set_state(state.clone()).await;
    bob.expect_state(&alice.id, state.clone()).await;
    assert!(Raw::upgrade(&server, "/room/%2E", "").await.is_err());
    let browser = Browser::start().await;
    let tab = browser
        .open(&format!("http://{}/", server.admin.unwrap()))
        .await;
    tab.until("!document.querySelector('#authorize').hidden")
        .await;
    assert_accessible(&tab, &axe).await;
    tab.type_into("#token", "another token\n").await;
    tab.until("document.querySelector('#token-error').textContent.includes('not accept')")
        .await;
    // The wrong token is selected, so that typing replaces it.
    tab.press(&format!("{TOKEN}\n")).await;
    tab.until("document.querySelectorAll('#rooms tr').length === 3")
        .await;
    assert_eq!(
        tab.run("return document.querySelector('td b')").await,
        json!(null)
    );
    assert_eq!(
        tab.text("#version").await,
        format!("Version {}", env!("CARGO_PKG_VERSION"))
    );
    assert!(tab.text("#uptime").await.starts_with("Up 0 min"));
    assert_eq!(tab.text("#refusals").await, "400 bad request\n1");
    assert_eq!(tab.text("#no-limits").await, "None since the start.");
    let hidden = "document.querySelector('#peers').hidden";
    assert_eq!(tab.run(&format!("return {hidden}")).await, true);
    for (hosts, all, expected) in [
        (
            2,
            4,
            "Connected, of 4\n75 %\nOwn address (host)\n67 %\nTURN server (relay)\n33 %",
        ),
        // Only nothing is 0 %, and only all is 100 %.
        (
            600,
            606,
            "Connected, of 606\n> 99 %\nOwn address (host)\n> 99 %\nTURN server (relay)\n< 1 %",
        ),
    ] {
        let paths = [json!("relay"), json!(null)].into_iter();
        for path in paths.chain(std::iter::repeat_n(json!("host"), hosts)) {
            let result = if path.is_null() {
                "failed"
            } else {
                "connected"
            };
            let data = json!({"result": result, "path": path, "milliseconds": 840});
            bob.send(json!({"type": "outcome", "receiver": "server", "data": data}))
                .await;
        }
        tab.until(&format!(
            "!{hidden} && document.querySelector('#connections').textContent.includes('of {all}')"
        ))
        .await;
        assert_eq!(tab.text("#connections").await, expected);
    }
    tab.until("document.querySelector('#totals').textContent.includes('Sessions4')")
        .await;
    tab.run("[...document.querySelectorAll('#rooms button')].find((one) => one.textContent === 'tea').click()")
        .await;
    tab.until("document.querySelectorAll('#sessions tr').length === 2")
        .await;
    // A row shows the beginning of the state. The whole state is in the title.
    let shown = tab
        .run(
            "return [...document.querySelectorAll('#sessions tr')].map((row) => {
                const { textContent, title, scrollWidth, clientWidth } = row.querySelector('td').lastChild;
                return [textContent && JSON.parse(textContent), title === textContent, scrollWidth > clientWidth];
            })",
        )
        .await;
    assert_eq!(shown, json!([[state, true, true], ["", true, false]]));
    assert_accessible(&tab, &axe).await;
    if let Ok(path) = std::env::var("SCREENSHOT") {
        tab.screenshot(&path).await;
    }

    // Notices, to a room and to everyone.
    for (target, receivers) in [("room", "2 sessions"), ("all", "4 sessions")] {
        tab.run(&format!(
            "document.querySelector('#target').value = '{target}'; \
             document.querySelector('#outcome').textContent = ''"
        ))
        .await;
        tab.type_into("#text", "back soon\n").await;
        tab.until(&format!(
            "document.querySelector('#outcome').textContent === 'Sent to {receivers}.'"
        ))
        .await;
        let notice = r#"{"type":"notice","sender":"server","receiver":"all","data":"back soon"}"#;
        alice.expect_text(notice).await;
        bob.expect_text(notice).await;
    }

    // Closing needs a confirmation, which names whom.
    tab.run("globalThis.confirm = (question) => (globalThis.question = question, false)")
        .await;
    let close = format!("#sessions [data-key='{}']", bob.id);
    tab.click(&close).await;
    let question = format!(
        "Close the session of {} in the room tea?",
        bob.id.split('-').next().unwrap()
    );
    assert_eq!(tab.run("return question").await, question);
    alice.expect_quiet().await;
    tab.run("globalThis.confirm = () => true").await;
    tab.click(&close).await;
    alice.expect_left(&bob.id).await;
    // The pointer is still over the table: the row stays, and its button does nothing.
    tab.until(&format!(
        "document.querySelector({close:?}).closest('tr').matches('.gone')"
    ))
    .await;
    assert_eq!(axe_violations(&tab, &axe).await, [""; 0], "a row is gone");
    tab.click(&close).await;
    tab.click("h1").await;
    tab.until("document.querySelectorAll('#sessions tr').length === 1")
        .await;

    // A failed action tells why.
    tab.run("document.querySelector('#target').value = 'room'")
        .await;
    alice.leave().await;
    eventually("alice leaves", || server.anteroom.sessions() == 2).await;
    tab.type_into("#text", "too late\n").await;
    tab.until(
        "document.querySelector('#outcome.error')?.textContent === 'Not sent: no such room.'",
    )
    .await;

    // Draining needs a confirmation.
    tab.run("globalThis.confirm = () => false").await;
    tab.click("#drain").await;
    assert!(server.anteroom.is_ready());
    tab.run("globalThis.confirm = () => true").await;
    tab.click("#drain").await;
    tab.until("document.querySelector('#state').textContent.startsWith('draining')")
        .await;
    assert!(!server.anteroom.is_ready());

    // Without an answer, the page says so.
    tab.run("globalThis.fetch = () => Promise.reject(new TypeError('failed'))")
        .await;
    tab.until(
        "document.querySelector('#problem').textContent.startsWith('The server does not answer.')",
    )
    .await;
    assert_accessible(&tab, &axe).await;
    // The console has errors for the refused requests: 401 before the token was given, 404 for the
    // room without sessions, 503 while draining.
    let errors = browser.console_errors().await;
    assert!(
        errors.iter().all(
            |line| ["401 (Unauthorized)", "404 (Not Found)", "503 (Service"]
                .iter()
                .any(|expected| line.contains(expected))
        ),
        "{errors:?}"
    );
    browser.close_regardless().await;
}
