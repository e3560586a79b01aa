//! The operators' page.

use serde_json::json;

use super::{accessibility::axe_violations, driver::Browser};
use crate::support::{Client, File, TestServer};

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
    let bob = Client::join(&server, "tea").await;
    let _carol = Client::join(&server, "%3Cb%3Ecoffee%3C%2Fb%3E").await;
    alice.expect_new(&bob.id).await;
    let browser = Browser::start().await;
    let tab = browser
        .open(&format!("http://{}/", server.admin.unwrap()))
        .await;
    tab.until("!document.querySelector('#authorize').hidden")
        .await;
    tab.type_into("#token", &format!("{TOKEN}\n")).await;
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
    // A focused button keeps the focus when the table is redrawn.
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
        tab.devtools("Emulation.setEmulatedMedia", media).await;
        for width in [390, 1440] {
            let metrics =
                json!({"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": false});
            tab.devtools("Emulation.setDeviceMetricsOverride", metrics)
                .await;
            assert_eq!(
                axe_violations(&tab, &axe).await,
                [""; 0],
                "{scheme} {width}"
            );
            let overflow = tab
                .run("return document.documentElement.scrollWidth - innerWidth")
                .await;
            assert!(
                overflow.as_i64().unwrap() <= 0,
                "{overflow} px too wide at {width}"
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

    // Draining needs a confirmation.
    tab.run("globalThis.confirm = () => false").await;
    tab.click("#drain").await;
    assert!(server.anteroom.is_ready());
    tab.run("globalThis.confirm = () => true").await;
    tab.click("#drain").await;
    tab.until("document.querySelector('#state').textContent.startsWith('draining')")
        .await;
    assert!(!server.anteroom.is_ready());
    // The console has errors for the refused requests: 401 before the token was given, 503 while
    // draining.
    let errors = browser.console_errors().await;
    assert!(
        errors
            .iter()
            .all(|line| line.contains("401 (Unauthorized)") || line.contains("503 (Service")),
        "{errors:?}"
    );
    browser.close_regardless().await;
}
