//! The tiles of the call: large ones, full screen, speakers, colours, who is speaking, and an empty room.

use serde_json::{Value, json};

use super::{
    call::{open_tabs, switch},
    driver::{Browser, Tab},
    page::until_videos_play,
};
use crate::support::TestServer;

async fn resize(tab: &Tab<'_>, width: u32, height: u32) {
    let metrics =
        json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500});
    tab.devtools("Emulation.setDeviceMetricsOverride", metrics)
        .await;
    // Only a tab in front is laid out.
    tab.devtools("Page.bringToFront", json!({})).await;
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn a_shared_screen_is_large_in_every_window_until_the_user_pins_another_tile() {
    let server = TestServer::start().await;
    let browser = Browser::start().await;
    let tabs = open_tabs(&browser, &server, 3).await;
    switch(&tabs[1], "screen", true).await;
    let tab = &tabs[0];
    let large = "document.querySelector('#tiles .large')";
    tab.until(&format!("{large}?.dataset.screen === 'true'"))
        .await;
    for (width, height) in [(320, 568), (390, 844), (844, 390), (1024, 600), (1440, 900)] {
        resize(tab, width, height).await;
        // Either two thirds of the width or two thirds of the height belong to the screen.
        tab.until(&format!(
            "(() => {{
                const box = document.querySelector('#tiles').getBoundingClientRect();
                const tile = {large}.getBoundingClientRect();
                return (tile.width >= box.width - 1 && tile.height > box.height * 0.6)
                    || (tile.height >= box.height - 1 && tile.width > box.width * 0.6);
            }})()"
        ))
        .await;
    }
    // No tile is cut off, also in a small part of the window.
    resize(tab, 900, 800).await;
    for fold in ["open", "folded"] {
        tab.click("#fold").await;
        tab.until(&format!(
            "document.querySelector('#room').dataset.wire === '{fold}'
            && [...document.querySelectorAll('#tiles li')].every((tile) => {{
                const box = document.querySelector('#tiles').getBoundingClientRect();
                const {{ top, bottom, height }} = tile.getBoundingClientRect();
                return height > 50 && top >= box.top - 1 && bottom <= box.bottom + 1;
            }})"
        ))
        .await;
    }
    resize(tab, 1440, 900).await;
    let pins = "[...document.querySelectorAll('#tiles .pin')].map((pin) => pin.ariaPressed).join()";
    tab.until(&format!("{pins} === 'false,true,false'")).await;

    // By keyboard: the own tile.
    tab.run("document.querySelector('#tiles li .pin').focus()")
        .await;
    tab.press("\u{e007}").await;
    tab.until(&format!("{pins} === 'true,false,false'")).await;
    // By pointer: the own tile again, which makes all tiles small.
    tab.click("#tiles li").await;
    tab.until(&format!("{pins} === 'false,true,false'")).await;
    tab.click("#tiles .large .pin").await;
    tab.until(&format!("{pins} === 'false,false,false'")).await;
    // A screen that is shared again is large again.
    switch(&tabs[1], "screen", false).await;
    tab.until("!document.querySelector('#tiles [data-screen=true]')")
        .await;
    switch(&tabs[1], "screen", true).await;
    tab.until(&format!("{pins} === 'false,true,false'")).await;

    // A double click shows a tile in full screen.
    let double_click = "const tile = document.querySelector('#tiles .large');
        tile.requestFullscreen = async () => { globalThis.fullScreen = tile.dataset.screen; };
        for (const type of ['click', 'click', 'dblclick']) tile.dispatchEvent(new MouseEvent(type, { bubbles: true }));";
    tab.run(double_click).await;
    tab.until("globalThis.fullScreen === 'true'").await;
    browser.close().await;
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn people_in_a_room_have_different_colors_which_everyone_sees_alike() {
    let server = TestServer::start().await;
    let browser = Browser::start().await;
    let tabs = open_tabs(&browser, &server, 5).await;
    let mut seen: Vec<Value> = Vec::new();
    for tab in &tabs {
        tab.until("document.querySelectorAll('#tiles li').length === 5")
            .await;
        let hues = tab
            .run(
                "const tiles = [...document.querySelectorAll('#tiles li')];
                tiles.sort((a, b) => a.dataset.id < b.dataset.id ? -1 : 1);
                return tiles.map((tile) => Number(tile.style.getPropertyValue('--hue')))",
            )
            .await;
        seen.push(hues);
    }
    let mut hues: Vec<i64> = serde_json::from_value(seen[0].clone()).unwrap();
    hues.sort_unstable();
    assert!(
        hues.windows(2).all(|pair| pair[1] - pair[0] > 30),
        "{hues:?}"
    );
    assert!(seen.iter().all(|other| other == &seen[0]), "{seen:?}");
    browser.close().await;
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn who_speaks_is_marked_in_tiles_and_people_until_the_microphone_is_off() {
    let server = TestServer::start().await;
    let browser = Browser::start().await;
    let mut tabs = open_tabs(&browser, &server, 2).await;
    // The browser's own simulated microphone beeps for 20 ms in 500: what is measured in between is silence.
    tabs[0]
        .run(
            "navigator.mediaDevices.getUserMedia = async () => {
                const audio = new AudioContext();
                const tone = audio.createOscillator();
                const microphone = audio.createMediaStreamDestination();
                tone.connect(microphone);
                tone.start();
                return microphone.stream;
            };",
        )
        .await;
    switch(&tabs[0], "microphone", true).await;
    for (tab, own) in [(&tabs[0], true), (&tabs[1], false)] {
        for list in ["#tiles", "#people-list"] {
            tab.until(&format!(
                "document.querySelector('{list} [data-speaking]')?.textContent.includes('(you)') === {own}"
            ))
            .await;
        }
    }
    switch(&tabs[0], "microphone", false).await;
    for tab in &tabs {
        tab.until("!document.querySelector('[data-speaking]')")
            .await;
    }
    // Whoever is left alone is not heard.
    switch(&tabs[0], "microphone", true).await;
    tabs[0]
        .until("document.querySelector('[data-speaking]')")
        .await;
    tabs.pop().unwrap().close().await;
    tabs[0]
        .until("!document.querySelector('[data-speaking]')")
        .await;
    browser.close().await;
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn a_connection_without_session_keeps_its_name_and_color_until_it_ends() {
    let server = TestServer::start().await;
    let browser = Browser::start().await;
    let tab = browser.open(&format!("http://{}/", server.address)).await;
    let names = tab
        .run(
            "return import('/people.js').then(async ({ People }) => {
                const emit = (target, type, detail) => target.dispatchEvent(new CustomEvent(type, { detail }));
                const room = Object.assign(new EventTarget(), { id: 'me', peers: new Map(), state: 'open', setState() {} });
                const mesh = Object.assign(new EventTarget(), { peers: new Map() });
                const people = new People(room, mesh, 'Me');
                const name = () => [people.name('one'), people.hue('one') !== people.hue('me')];
                mesh.peers.set('one', { id: 'one' });
                room.peers = new Map([['one', { id: 'one' }]]);
                emit(room, 'peerjoin', { id: 'one', data: { user: 'Ada' }, newcomer: true });
                const seen = [name()];
                room.peers = new Map();
                emit(room, 'peerleave', { id: 'one' });
                await null;
                seen.push(name());
                mesh.peers.delete('one');
                emit(mesh, 'disconnect', { peer: { id: 'one' } });
                seen.push(name());
                await null;
                return [...seen, people.name('one')];
            })",
        )
        .await;
    assert_eq!(
        names,
        json!([["Ada", true], ["Ada", true], ["Ada", true], "one"])
    );
    browser.close().await;
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn a_phone_says_in_every_view_that_the_room_is_empty() {
    let server = TestServer::start().await;
    let browser = Browser::start().await;
    let tabs = open_tabs(&browser, &server, 1).await;
    let tab = &tabs[0];
    resize(tab, 390, 844).await;
    let hints =
        "[...document.querySelectorAll('.alone')].filter((hint) => hint.checkVisibility()).length";
    for view in ["people", "chat", "wire", "call"] {
        tab.click(&format!("nav [data-view={view}]")).await;
        tab.until(&format!("{hints} === 1")).await;
    }
    let url = format!("http://{}/?room=call", server.address);
    browser.open(&url).await;
    tab.until(&format!("{hints} === 0")).await;
    browser.close().await;
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn the_header_scrolls_away_at_a_zoom_of_400_percent() {
    let server = TestServer::start().await;
    let browser = Browser::start().await;
    let tabs = open_tabs(&browser, &server, 2).await;
    switch(&tabs[1], "camera", true).await;
    until_videos_play(&tabs[0], 1).await;
    let tab = &tabs[0];
    for (width, height) in [(320, 256), (360, 225)] {
        resize(tab, width, height).await;
        tab.run("scrollTo(0, document.documentElement.scrollHeight)")
            .await;
        tab.until("document.querySelector('header').getBoundingClientRect().bottom <= 1")
            .await;
        let visible = "document.querySelector('nav').getBoundingClientRect().bottom <= innerHeight";
        tab.until(visible).await;
    }
    browser.close().await;
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn a_double_click_fills_the_screen_and_a_button_moves_the_video_out_of_the_page() {
    let server = TestServer::start().await;
    let browser = Browser::start().await;
    let tabs = open_tabs(&browser, &server, 2).await;
    switch(&tabs[1], "camera", true).await;
    let tab = &tabs[0];
    tab.devtools("Page.bringToFront", json!({})).await;
    let tile = "document.querySelector('#tiles [data-video=true]')";
    tab.until(tile).await;
    let double_click = async || {
        let center = tab
            .run(&format!(
                "const {{ x, y, width, height }} = {tile}.getBoundingClientRect();
                return [x + width / 2, y + height / 2]"
            ))
            .await;
        for count in [1, 2] {
            for event in ["mousePressed", "mouseReleased"] {
                let click = json!({"type": event, "x": center[0], "y": center[1], "button": "left", "clickCount": count});
                tab.devtools("Input.dispatchMouseEvent", click).await;
            }
        }
    };
    double_click().await;
    tab.until(&format!("document.fullscreenElement === {tile}"))
        .await;
    // The video fills the screen, and the button says so.
    tab.until(&format!(
        "{tile}.querySelector('.full').ariaPressed === 'true'
        && {tile}.querySelector('video').clientWidth === innerWidth"
    ))
    .await;
    double_click().await;
    tab.until("!document.fullscreenElement").await;
    // Neither click has pinned the tile.
    assert_eq!(
        tab.run("return document.querySelector('#tiles .large')")
            .await,
        Value::Null
    );

    tab.click("#tiles [data-video=true] .pin").await;
    for pressed in [true, false] {
        tab.click("#tiles .large .popout").await;
        tab.until(&format!(
            "(document.pictureInPictureElement === {tile}.querySelector('video')) === {pressed}
            && {tile}.querySelector('.popout').ariaPressed === '{pressed}'"
        ))
        .await;
    }
    browser.close().await;
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn every_video_plays_on_the_chosen_speaker() {
    let server = TestServer::start().await;
    let browser = Browser::start().await;
    let tabs = open_tabs(&browser, &server, 2).await;
    let tab = &tabs[0];
    tab.run(
        "const set = HTMLMediaElement.prototype.setSinkId;
        globalThis.chosen = new Map();
        HTMLMediaElement.prototype.setSinkId = function (id) {
            chosen.set(this, id);
            return set.call(this, id);
        };",
    )
    .await;
    // Devices have names once a microphone is on.
    switch(tab, "microphone", true).await;
    tab.until("document.querySelectorAll('#speaker-device option').length > 1")
        .await;
    let speaker = tab
        .run(
            "const select = document.querySelector('#speaker-device');
            select.selectedIndex = 1;
            select.dispatchEvent(new Event('change'));
            return select.value;",
        )
        .await;
    let all = |count: usize| {
        format!(
            "(() => {{
                const videos = [...document.querySelectorAll('#tiles video')];
                return videos.length === {count} && videos.every((video) => chosen.get(video) === {speaker});
            }})()"
        )
    };
    tab.until(&all(2)).await;
    // So does that of somebody who joins later.
    let url = format!("http://{}/?room=call", server.address);
    browser.open(&url).await;
    tab.until(&all(3)).await;
    tab.until("[...chosen.keys()].every((video) => video.sinkId !== '')")
        .await;
    browser.close().await;
}
