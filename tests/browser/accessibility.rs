//! Accessibility at every window size, and pages outside a secure context.

use serde_json::json;

use super::{
    call::switch,
    driver::{Browser, Tab},
    page::until_people,
};
use crate::support::{Client, TestServer};

/// The violations that axe-core finds, whatever their impact.
pub async fn axe_violations(tab: &Tab<'_>, axe: &str) -> Vec<String> {
    tab.run(&format!(
        "if (!globalThis.axe) {{ {axe}; globalThis.axe = axe; }}"
    ))
    .await;
    let found = tab
        .run("return axe.run().then((found) => found.violations)")
        .await;
    let found = found.as_array().unwrap().iter();
    found
        .map(|finding| format!("{}: {}", finding["id"], finding["nodes"]))
        .collect()
}

#[tokio::test]
#[ignore = "needs Chromium and axe-core: tests/run names them and starts this test"]
async fn the_page_is_accessible_at_every_size_and_loads_only_files_of_its_server() {
    let axe = std::fs::read_to_string(std::env::var("AXE").expect("AXE is the path of axe.js"));
    let axe = axe.unwrap();
    let server = TestServer::with(|config| config.history.rooms = vec!["axe".into()]).await;
    // More than the page shows at first.
    let mut before = Client::join(&server, "axe").await;
    for number in 0..60 {
        let chat = json!({"type": "chat", "receiver": "all", "data": number, "ref": number});
        before.send(chat).await;
        assert_eq!(before.next().await["type"], "ack");
    }
    drop(before.into_raw());
    let browser = Browser::start().await;
    let url = format!("http://{}/?room=axe", server.address);
    let other = browser.open(&url).await;
    let tab = browser.open(&url).await;
    until_people(&tab, 2).await;
    tab.until("document.querySelector('#chat-log button')")
        .await;
    switch(&other, "screen", true).await;
    switch(&tab, "camera", true).await;
    tab.until("document.querySelector('#tiles .large')").await;
    tab.type_into("#text", "hello\n").await;
    tab.until("document.querySelector('#chat-log .message-text')")
        .await;
    // A file that was received, and one that is offered.
    for name in ["received.txt", "offered.txt"] {
        let file = browser.folder.join(name);
        std::fs::write(&file, "some words").unwrap();
        other.type_into("#file", file.to_str().unwrap()).await;
        tab.until("document.querySelector('[data-name=Accept]')")
            .await;
        if name == "received.txt" {
            tab.click("[data-name=Accept]").await;
            tab.until("document.querySelector('[data-name=Save]')")
                .await;
        }
    }
    other
        .type_into("#text", "see https://a.test/ for more\n")
        .await;
    tab.until("document.querySelector('#chat-log a')").await;
    let banner = "document.querySelector('#banner-text').textContent = 'The room is full: trying again in 5 s.'; document.querySelector('#rejoin').hidden = false;";

    let entry = browser.open(&format!("http://{}/", server.address)).await;
    let entry_error = browser
        .open(&format!("http://{}/?room=..", server.address))
        .await;
    entry_error
        .until("document.querySelector('#entry-error').textContent.includes('..')")
        .await;
    let empty = browser
        .open(&format!("http://{}/?room=empty", server.address))
        .await;
    empty
        .until("document.querySelector('.alone:not([hidden])')")
        .await;
    let closed = browser
        .open(&format!("http://{}/?room=closed", server.address))
        .await;
    until_people(&closed, 1).await;
    // The page stays, as in the browser's cache.
    closed
        .run("document.querySelector('#leave').href = '#'")
        .await;
    closed.click("#leave").await;
    closed
        .until("document.querySelector('#camera:disabled')")
        .await;

    for scheme in ["light", "dark"] {
        for (width, height) in [(320, 256), (390, 844), (844, 390), (1024, 768), (1440, 900)] {
            for (name, page) in [
                ("room", &tab),
                ("empty room", &empty),
                ("closed room", &closed),
                ("entry", &entry),
                ("entry with an error", &entry_error),
            ] {
                let media =
                    json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
                page.devtools("Emulation.setEmulatedMedia", media).await;
                let metrics = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500});
                page.devtools("Emulation.setDeviceMetricsOverride", metrics)
                    .await;
                let views: &[&str] = match (name, width) {
                    ("room" | "empty room" | "closed room", 320 | 390 | 844) => {
                        &["call", "people", "chat", "wire"]
                    }
                    _ => &[""],
                };
                // Wide pages have the message log folded in the light scheme and open in the dark one.
                if name == "room" && width >= 1024 {
                    let folded = tab
                        .run("return document.querySelector('#room').dataset.wire === 'folded'")
                        .await;
                    if folded == (scheme == "dark") {
                        tab.click("#fold").await;
                    }
                    if scheme == "dark" {
                        tab.until("document.querySelector('#messages summary')")
                            .await;
                        tab.run("document.querySelector('#messages details').open = true")
                            .await;
                    }
                }
                if name == "room" {
                    tab.run(banner).await;
                }
                for view in views {
                    if !view.is_empty() {
                        page.click(&format!("nav [data-view={view}]")).await;
                    }
                    if view == &"wire" {
                        page.until("document.querySelector('#messages details')")
                            .await;
                        page.run("document.querySelector('#messages details').open = true")
                            .await;
                    }
                    // The sizes in between differ only in layout.
                    if [320, 390, 1440].contains(&width) {
                        // An element that is still fading in has too little contrast: wait for the
                        // animations.
                        page.run("return Promise.allSettled(document.getAnimations().map((one) => one.finished)).then(() => 0)")
                            .await;
                        let found = axe_violations(page, &axe).await;
                        assert_eq!(found, [""; 0], "{name} {view} {scheme} {width}");
                    }
                    // The menu of devices opens where the controls are visible.
                    if name == "room" && (view == &"call" || width == 1440) {
                        page.run("document.querySelector('#devices').showPopover()")
                            .await;
                        let found = axe_violations(page, &axe).await;
                        assert_eq!(found, [""; 0], "devices {scheme} {width}");
                        page.run("document.querySelector('#devices').hidePopover()")
                            .await;
                        // So does the whiteboard.
                        page.run("document.querySelector('#draw').click()").await;
                        page.until("document.querySelector('#board canvas')").await;
                        let found = axe_violations(page, &axe).await;
                        assert_eq!(found, [""; 0], "whiteboard {scheme} {width}");
                        let overflow = page
                            .run("return document.documentElement.scrollWidth - innerWidth")
                            .await;
                        assert!(overflow.as_i64().unwrap() <= 0, "whiteboard at {width}");
                        page.run("document.querySelector('#draw').click()").await;
                    }
                    let overflow = page
                        .run("return document.documentElement.scrollWidth - innerWidth")
                        .await;
                    assert!(
                        overflow.as_i64().unwrap() <= 0,
                        "{name} {view} is {overflow} px too wide at {width}"
                    );
                }
            }
        }
    }

    for page in [&tab, &other, &entry] {
        let loaded = page
            .run("return performance.getEntriesByType('resource').map(({ name }) => name)")
            .await;
        for name in loaded.as_array().unwrap() {
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
async fn outside_a_secure_context_the_page_explains_why_there_is_no_camera() {
    let server = TestServer::start().await;
    let browser = Browser::start().await;
    let url = format!("http://anteroom.test:{}/?room=plain", server.address.port());
    let tab = browser.open(&url).await;
    until_people(&tab, 1).await;
    assert_eq!(tab.run("return isSecureContext").await, false);
    assert!(tab.text("#call-hint").await.contains("https"));
    tab.click("#screen").await;
    assert!(tab.text("#call-hint").await.contains("https"));
    // Everything else works.
    let other = browser.open(&url).await;
    until_people(&other, 2).await;
    other.type_into("#text", "without a camera\n").await;
    tab.until("document.querySelector('#chat-log .message-text')")
        .await;
    browser.close().await;
}
