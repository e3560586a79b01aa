//! Pictures, sound and screens, and tabs that go.

use serde_json::Value;

use super::{
    driver::{Browser, Tab},
    talking::until_here,
};
use crate::support::TestServer;

/// Puts a sum over all connections' statistics of a kind into the page, as `sum(kind, field)`.
const SUM: &str = "
    const sum = async (direction, kind, field) => {
        let total = [];
        for (const connection of connections) {
            if (connection.connectionState !== 'connected') continue;
            for (const stats of (await connection.getStats()).values()) {
                if (stats.type === direction && stats.kind === kind) total.push(stats[field] ?? 0);
            }
        }
        return total;
    };";

/// Waits until so many connections each have more decoded video frames than now.
pub async fn until_pictures_move(tab: &Tab<'_>, from: usize) {
    let script = format!(
        "{SUM}
        return new Promise(async (resolve) => {{
            const frames = () => sum('inbound-rtp', 'video', 'framesDecoded');
            let first = await frames();
            for (;;) {{
                const now = await frames();
                if (now.length !== first.length) first = now;
                if (now.filter((count, place) => count > first[place] + 2).length >= {from}) return resolve();
                await new Promise((next) => setTimeout(next, 50));
            }}
        }});"
    );
    tab.run(&script).await;
}

async fn sum(tab: &Tab<'_>, direction: &str, kind: &str, field: &str) -> f64 {
    let script = format!("{SUM} return sum('{direction}', '{kind}', '{field}')");
    let values: Vec<f64> = serde_json::from_value(tab.run(&script).await).unwrap();
    values.iter().sum()
}

async fn switch(tab: &Tab<'_>, name: &str, on: bool) {
    tab.click(&format!("#{name}")).await;
    tab.until(&format!(
        "document.querySelector('#{name}').getAttribute('aria-pressed') === '{on}'"
    ))
    .await;
}

/// Opens so many tabs in a room.
async fn gather<'a>(browser: &'a Browser, server: &TestServer, count: usize) -> Vec<Tab<'a>> {
    let mut tabs = Vec::new();
    for _ in 0..count {
        let url = format!("http://{}/?room=call", server.address);
        tabs.push(browser.open(&url).await);
    }
    for tab in &tabs {
        until_here(tab, count).await;
    }
    tabs
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn in_a_call_of_four_every_picture_moves_for_everyone() {
    let server = TestServer::start().await;
    let browser = Browser::start().await;
    let mut tabs = gather(&browser, &server, 4).await;
    for tab in &tabs {
        switch(tab, "camera", true).await;
    }
    for tab in &tabs {
        until_pictures_move(tab, 3).await;
        tab.until("document.querySelectorAll('#tiles [data-video=true]').length === 4")
            .await;
    }
    // A tab that goes takes its picture with it; the others go on.
    tabs.pop().unwrap().close().await;
    for tab in &tabs {
        until_here(tab, 3).await;
        tab.until("document.querySelectorAll('#tiles [data-video=true]').length === 3")
            .await;
        until_pictures_move(tab, 2).await;
    }
    // A camera that is switched off is not seen, and can come back.
    switch(&tabs[0], "camera", false).await;
    tabs[1]
        .until("document.querySelectorAll('#tiles [data-video=true]').length === 2")
        .await;
    switch(&tabs[0], "camera", true).await;
    for tab in &tabs {
        until_pictures_move(tab, 2).await;
        tab.until("document.querySelectorAll('#tiles [data-video=true]').length === 3")
            .await;
    }
    browser.close().await;
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn two_cameras_started_in_the_same_instant_connect() {
    let server = TestServer::start().await;
    let browser = Browser::start().await;
    let tabs = gather(&browser, &server, 2).await;
    // The first start makes the devices ready, so that the next ones take no time.
    for tab in &tabs {
        switch(tab, "camera", true).await;
        switch(tab, "camera", false).await;
    }
    // Often enough for offers to meet under way.
    for _ in 0..5 {
        for tab in &tabs {
            tab.until("connections.every(({ signalingState }) => signalingState === 'stable')")
                .await;
        }
        let now = tabs[0].run("return Date.now()").await.as_u64().unwrap();
        for tab in &tabs {
            let script = "setTimeout(() => {
                for (const name of ['camera', 'microphone']) document.querySelector('#' + name).click();
            }, arguments[0] - Date.now())";
            tab.run_with(script, vec![Value::from(now + 300)]).await;
        }
        for tab in &tabs {
            until_pictures_move(tab, 1).await;
            tab.until("document.querySelectorAll('#tiles [data-video=true]').length === 2")
                .await;
        }
        for tab in &tabs {
            switch(tab, "camera", false).await;
        }
    }
    // Switching on and off has not made the description longer and longer.
    let lines = tabs[0]
        .run("return connections[0].localDescription.sdp.split('m=video').length - 1")
        .await;
    assert_eq!(lines, 1, "video lines");
    browser.close().await;
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn a_screen_replaces_the_camera_and_the_sound_goes_on() {
    let server = TestServer::start().await;
    let browser = Browser::start().await;
    let tabs = gather(&browser, &server, 2).await;
    switch(&tabs[0], "microphone", true).await;
    switch(&tabs[0], "camera", true).await;
    until_pictures_move(&tabs[1], 1).await;
    tabs[0]
        .until("connections.every(({ signalingState }) => signalingState === 'stable')")
        .await;
    let sound = sum(&tabs[1], "inbound-rtp", "audio", "packetsReceived").await;
    let offers = "return [...document.querySelectorAll('#messages b')]
        .filter((item) => item.textContent === 'offer').length";
    let before = tabs[0].run(offers).await;
    let surface = "return connections[0].getSenders()
        .find(({ track }) => track?.kind === 'video').track.getSettings().displaySurface ?? 'none'";
    assert_eq!(tabs[0].run(surface).await, "none");

    switch(&tabs[0], "screen", true).await;
    assert_eq!(tabs[0].run(surface).await, "monitor");
    let screens = "document.querySelectorAll('#tiles [data-screen=true][data-video=true]').length";
    tabs[1].until(&format!("{screens} === 1")).await;
    until_pictures_move(&tabs[1], 1).await;
    switch(&tabs[0], "screen", false).await;
    assert_eq!(tabs[0].run(surface).await, "none");
    tabs[1].until(&format!("{screens} === 0")).await;
    until_pictures_move(&tabs[1], 1).await;

    assert_eq!(tabs[0].run(offers).await, before, "nothing was negotiated");
    assert!(sum(&tabs[1], "inbound-rtp", "audio", "packetsReceived").await > sound);
    browser.close().await;
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn a_connection_that_failed_finds_another_way() {
    let server = TestServer::start().await;
    let browser = Browser::start().await;
    let tabs = gather(&browser, &server, 2).await;
    switch(&tabs[0], "camera", true).await;
    until_pictures_move(&tabs[1], 1).await;
    for tab in &tabs {
        tab.until("connections[0].signalingState === 'stable'")
            .await;
    }
    let credentials = "connections[0].localDescription.sdp.match(/a=ice-ufrag:.*/)[0]";
    let before = tabs[1].run(&format!("return {credentials}")).await;
    tabs[0]
        .run(
            "const failed = { value: 'failed', configurable: true };
            Object.defineProperty(connections[0], 'iceConnectionState', failed);
            connections[0].dispatchEvent(new Event('iceconnectionstatechange'));
            delete connections[0].iceConnectionState;",
        )
        .await;
    // Both sides have new ICE credentials, and the pictures go on.
    tabs[1].until(&format!("{credentials} !== {before}")).await;
    tabs[1]
        .until("connections[0].signalingState === 'stable'")
        .await;
    until_pictures_move(&tabs[1], 1).await;
    tabs[1]
        .until("connections[0].connectionState === 'connected'")
        .await;
    browser.close().await;
}
