//! Accessibility, sizes, and what the browser forbids.

use serde_json::{Value, json};

use super::{
    driver::{Browser, Tab},
    talking::until_here,
};
use crate::support::TestServer;

/// What axe-core finds serious or worse.
pub async fn serious(tab: &Tab<'_>, axe: &str) -> Vec<String> {
    tab.run(&format!(
        "if (!globalThis.axe) {{ {axe}; globalThis.axe = axe; }}"
    ))
    .await;
    let found = tab
        .run("return axe.run().then((found) => found.violations)")
        .await;
    let found = found.as_array().unwrap().iter();
    let serious = found.filter(|finding| matches!(&finding["impact"], Value::String(impact) if impact == "serious" || impact == "critical"));
    serious
        .map(|finding| format!("{}: {}", finding["id"], finding["nodes"]))
        .collect()
}

#[tokio::test]
#[ignore = "needs Chromium and axe-core: tests/run names them and starts this test"]
async fn nobody_is_kept_out_and_nothing_is_fetched_from_elsewhere() {
    let axe = std::fs::read_to_string(std::env::var("AXE").expect("AXE is the path of axe.js"));
    let axe = axe.unwrap();
    let server = TestServer::start().await;
    let browser = Browser::start().await;
    let url = format!("http://{}/?room=axe", server.address);
    let other = browser.open(&url).await;
    let tab = browser.open(&url).await;
    until_here(&tab, 2).await;
    tab.click("#camera").await;
    tab.type_into("#text", "hello\n").await;
    tab.until("document.querySelector('#chat-log .message-text')").await;
    let file = browser.folder.join("note.txt");
    std::fs::write(&file, "some words").unwrap();
    other.type_into("#file", file.to_str().unwrap()).await;
    tab.until("document.querySelector('[data-name=Accept]')")
        .await;
    tab.run("document.querySelector('#messages summary').click()")
        .await;

    let entrance = browser.open(&format!("http://{}/", server.address)).await;
    let refused = browser
        .open(&format!("http://{}/?room=..", server.address))
        .await;
    refused
        .until("document.querySelector('#entry-error').textContent.includes('..')")
        .await;
    for scheme in ["light", "dark"] {
        for (width, height) in [(390, 844), (844, 390), (1024, 768), (1440, 900)] {
            for (name, page) in [
                ("room", &tab),
                ("entrance", &entrance),
                ("refused", &refused),
            ] {
                let media =
                    json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
                page.chrome("Emulation.setEmulatedMedia", media).await;
                let metrics = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500});
                page.chrome("Emulation.setDeviceMetricsOverride", metrics)
                    .await;
                let views: &[&str] = match (name, width) {
                    ("room", 390 | 844) => &["call", "people", "chat", "wire"],
                    _ => &[""],
                };
                for view in views {
                    if !view.is_empty() {
                        page.click(&format!("nav [data-view={view}]")).await;
                    }
                    // The sizes between have nothing of their own but their shape.
                    if [390, 1440].contains(&width) {
                        // What is only just appearing is still faint.
                        page.run("return Promise.allSettled(document.getAnimations().map((one) => one.finished)).then(() => 0)")
                            .await;
                        let found = serious(page, &axe).await;
                        assert_eq!(found, [""; 0], "{name} {view} {scheme} {width}");
                    }
                    let wider = page
                        .run("return document.documentElement.scrollWidth - innerWidth")
                        .await;
                    assert!(
                        wider.as_i64().unwrap() <= 0,
                        "{name} {view} is {wider} px too wide at {width}"
                    );
                }
            }
        }
    }

    for page in [&tab, &other, &entrance] {
        let fetched = page
            .run("return performance.getEntriesByType('resource').map(({ name }) => name)")
            .await;
        for name in fetched.as_array().unwrap() {
            let name = name.as_str().unwrap();
            assert!(
                name.starts_with(&format!("http://{}/", server.address)),
                "{name}"
            );
            assert!(!name.ends_with(".png"), "{name}");
        }
    }
    browser.close().await;
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn where_the_browser_gives_no_camera_the_page_says_why() {
    let server = TestServer::start().await;
    let browser = Browser::start().await;
    let url = format!("http://anteroom.test:{}/?room=plain", server.address.port());
    let tab = browser.open(&url).await;
    until_here(&tab, 1).await;
    assert_eq!(tab.run("return isSecureContext").await, false);
    assert!(tab.text("#call-hint").await.contains("https"));
    tab.click("#screen").await;
    assert!(tab.text("#call-hint").await.contains("https"));
    // All else works.
    let other = browser.open(&url).await;
    until_here(&other, 2).await;
    other.type_into("#text", "without a camera\n").await;
    tab.until("document.querySelector('#chat-log .message-text')").await;
    browser.close().await;
}
