//! Calls: camera, microphone and screen, and people who leave.

use serde_json::{Value, json};

use super::{
    driver::{Browser, Tab},
    page::{sum_statistics, until_people, until_videos_play},
};
use crate::support::{TestServer, operator};

/// Presses the button of a device, and waits until the device is on or off.
pub async fn switch(tab: &Tab<'_>, name: &str, on: bool) {
    tab.click(&format!("#{name}")).await;
    tab.until(&format!(
        "document.querySelector('#{name}').getAttribute('aria-pressed') === '{on}'"
    ))
    .await;
}

/// Opens this number of tabs in one room, and waits until each lists all.
pub async fn open_tabs<'a>(
    browser: &'a Browser,
    server: &TestServer,
    count: usize,
) -> Vec<Tab<'a>> {
    let mut tabs = Vec::new();
    for _ in 0..count {
        let url = format!("http://{}/?room=call", server.address);
        tabs.push(browser.open(&url).await);
    }
    for tab in &tabs {
        until_people(tab, count).await;
    }
    tabs
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn every_video_plays_for_everyone_in_a_call_of_four() {
    let server = TestServer::start().await;
    let browser = Browser::start().await;
    let mut tabs = open_tabs(&browser, &server, 4).await;
    for tab in &tabs {
        switch(tab, "camera", true).await;
    }
    for tab in &tabs {
        until_videos_play(tab, 3).await;
        tab.until("document.querySelectorAll('#tiles [data-video=true]').length === 4")
            .await;
    }
    // When a tab is closed, its video disappears, and the others continue.
    tabs.pop().unwrap().close().await;
    for tab in &tabs {
        until_people(tab, 3).await;
        tab.until("document.querySelectorAll('#tiles [data-video=true]').length === 3")
            .await;
        until_videos_play(tab, 2).await;
    }
    // The video of a camera disappears when the camera is switched off, and returns when it is
    // switched on.
    switch(&tabs[0], "camera", false).await;
    tabs[1]
        .until("document.querySelectorAll('#tiles [data-video=true]').length === 2")
        .await;
    switch(&tabs[0], "camera", true).await;
    for tab in &tabs {
        until_videos_play(tab, 2).await;
        tab.until("document.querySelectorAll('#tiles [data-video=true]').length === 3")
            .await;
    }
    browser.close().await;
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn cameras_started_at_the_same_time_connect() {
    let server = TestServer::start().await;
    let browser = Browser::start().await;
    let tabs = open_tabs(&browser, &server, 2).await;
    // The first start initializes the devices, so that later ones take no time.
    for tab in &tabs {
        switch(tab, "camera", true).await;
        switch(tab, "camera", false).await;
    }
    // Repeat, so that offers collide at least once.
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
            until_videos_play(tab, 1).await;
            tab.until("document.querySelectorAll('#tiles [data-video=true]').length === 2")
                .await;
        }
        for tab in &tabs {
            switch(tab, "camera", false).await;
        }
    }
    // Switching on and off has not added media sections to the session description.
    let lines = tabs[0]
        .run("return connections[0].localDescription.sdp.split('m=video').length - 1")
        .await;
    assert_eq!(lines, 1, "video lines");
    browser.close().await;
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn a_shared_screen_replaces_the_camera_without_renegotiation() {
    let server = TestServer::start().await;
    let browser = Browser::start().await;
    let tabs = open_tabs(&browser, &server, 2).await;
    switch(&tabs[0], "microphone", true).await;
    switch(&tabs[0], "camera", true).await;
    until_videos_play(&tabs[1], 1).await;
    tabs[0]
        .until("connections.every(({ signalingState }) => signalingState === 'stable')")
        .await;
    let packets = sum_statistics(&tabs[1], "inbound-rtp", "audio", "packetsReceived").await;
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
    until_videos_play(&tabs[1], 1).await;
    switch(&tabs[0], "screen", false).await;
    assert_eq!(tabs[0].run(surface).await, "none");
    tabs[1].until(&format!("{screens} === 0")).await;
    until_videos_play(&tabs[1], 1).await;

    assert_eq!(tabs[0].run(offers).await, before, "no renegotiation");
    assert!(sum_statistics(&tabs[1], "inbound-rtp", "audio", "packetsReceived").await > packets);
    browser.close().await;
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn a_failed_connection_restarts_ice() {
    let server = TestServer::start().await;
    let browser = Browser::start().await;
    let tabs = open_tabs(&browser, &server, 2).await;
    switch(&tabs[0], "camera", true).await;
    until_videos_play(&tabs[1], 1).await;
    for tab in &tabs {
        tab.until("connections[0].signalingState === 'stable'")
            .await;
    }
    let credentials = "connections[0].localDescription.sdp.match(/a=ice-ufrag:.*/)[0]";
    let before = tabs[1].run(&format!("return {credentials}")).await;
    tabs[0]
        .run(
            "const failed = { value: 'failed', configurable: true };
            Object.defineProperty(connections[0], 'connectionState', failed);
            connections[0].dispatchEvent(new Event('connectionstatechange'));
            delete connections[0].connectionState;",
        )
        .await;
    // Both sides have new ICE credentials, and the video continues.
    tabs[1].until(&format!("{credentials} !== {before}")).await;
    tabs[1]
        .until("connections[0].signalingState === 'stable'")
        .await;
    until_videos_play(&tabs[1], 1).await;
    tabs[1]
        .until("connections[0].connectionState === 'connected'")
        .await;
    browser.close().await;
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn alt_m_and_alt_v_switch_microphone_and_camera_while_the_user_types() {
    let server = TestServer::start().await;
    let browser = Browser::start().await;
    let tab = &open_tabs(&browser, &server, 1).await[0];
    tab.until("document.activeElement.id === 'text'").await;
    for (key, name) in [("m", "microphone"), ("v", "camera")] {
        for on in [true, false] {
            tab.press(&format!("\u{e00a}{key}\u{e000}")).await;
            tab.until(&format!(
                "document.querySelector('#{name}').ariaPressed === '{on}'"
            ))
            .await;
            let state = if on { "on" } else { "off" };
            let spoken = tab
                .run("return document.querySelector('#announcement').textContent.toLowerCase()")
                .await;
            assert_eq!(spoken, format!("{name} {state}"));
        }
    }
    tab.press("mv").await;
    let typed = "return document.querySelector('#text').value";
    assert_eq!(tab.run(typed).await, "mv");
    browser.close().await;
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn another_device_is_chosen_without_renegotiation_and_replaces_a_lost_one() {
    let server = TestServer::start().await;
    let browser = Browser::start().await;
    let tabs = open_tabs(&browser, &server, 2).await;
    let hidden = "return document.querySelector('#devices-button').hidden";
    assert_eq!(tabs[0].run(hidden).await, true);
    switch(&tabs[0], "camera", true).await;
    until_videos_play(&tabs[1], 1).await;
    tabs[0]
        .until("!document.querySelector('#devices-button').hidden")
        .await;
    let offers = "return [...document.querySelectorAll('#messages b')]
        .filter((item) => item.textContent === 'offer').length";
    let before = tabs[0].run(offers).await;
    tabs[0].click("#devices-button").await;
    let sent = "connections[0].getSenders().find(({ track }) => track?.kind === 'video').track";
    let first = tabs[0]
        .run("return document.querySelector('#camera-device').value")
        .await;
    tabs[0]
        .run(
            "const select = document.querySelector('#camera-device');
            // Chromium's second simulated camera measures depth, and gives no picture.
            select.selectedIndex = 2;
            select.dispatchEvent(new Event('change'));",
        )
        .await;
    tabs[0]
        .until(&format!(
            "{sent}.readyState === 'live' && {sent}.getSettings().deviceId !== {first}
            && {sent}.getSettings().deviceId === document.querySelector('#camera-device').value"
        ))
        .await;
    until_videos_play(&tabs[1], 1).await;
    assert_eq!(tabs[0].run(offers).await, before, "no renegotiation");

    // The chosen camera is unplugged.
    tabs[0]
        .run(&format!(
            "const {{ mediaDevices }} = navigator;
            const lost = {sent};
            const {{ deviceId }} = lost.getSettings();
            const enumerate = mediaDevices.enumerateDevices.bind(mediaDevices);
            const request = mediaDevices.getUserMedia.bind(mediaDevices);
            mediaDevices.enumerateDevices = async () => {{
                return (await enumerate()).filter((device) => device.deviceId !== deviceId);
            }};
            mediaDevices.getUserMedia = async (constraints) => {{
                if (constraints.video.deviceId?.exact === deviceId) throw new OverconstrainedError('deviceId');
                return request({{ video: {{ deviceId: {{ exact: {first} }} }} }});
            }};
            lost.stop();
            lost.dispatchEvent(new Event('ended'));"
        ))
        .await;
    tabs[0]
        .until("document.querySelector('#call-hint').textContent.includes('was disconnected')")
        .await;
    let id = tabs[0]
        .run(&format!("return {sent}.getSettings().deviceId"))
        .await;
    assert_eq!(id, first);
    until_videos_play(&tabs[1], 1).await;
    browser.close().await;
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn the_bit_rate_of_a_camera_falls_with_the_number_of_peers_and_a_screen_keeps_its_size() {
    let server = TestServer::start().await;
    let browser = Browser::start().await;
    let tabs = open_tabs(&browser, &server, 5).await;
    switch(&tabs[0], "camera", true).await;
    let all = |condition: &str| {
        format!(
            "(() => {{
                const encodings = connections.filter((one) => one.connectionState === 'connected').flatMap((one) => {{
                    return one.getSenders().filter(({{ track }}) => track?.kind === 'video')
                        .flatMap((sender) => sender.getParameters().encodings);
                }});
                return encodings.length > 0 && encodings.every((one) => {condition});
            }})()"
        )
    };
    tabs[0]
        .until(&all(
            "one.maxBitrate === 750_000 && one.scaleResolutionDownBy > 1",
        ))
        .await;
    switch(&tabs[0], "screen", true).await;
    tabs[0]
        .until(&all(
            "one.maxBitrate === 1_500_000 && one.scaleResolutionDownBy === 1",
        ))
        .await;
    browser.close().await;
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn the_screen_of_the_device_stays_on_during_a_call() {
    let server = TestServer::start().await;
    let browser = Browser::start().await;
    let tab = &open_tabs(&browser, &server, 1).await[0];
    tab.run(
        "globalThis.locks = 0;
        navigator.wakeLock.request = async () => {
            locks += 1;
            return { release: async () => { locks -= 1; } };
        };",
    )
    .await;
    switch(tab, "camera", true).await;
    tab.until("locks === 1").await;
    // The browser releases the lock of a hidden page.
    tab.run("locks = 0; document.dispatchEvent(new Event('visibilitychange'))")
        .await;
    tab.until("locks === 1").await;
    switch(tab, "camera", false).await;
    tab.until("locks === 0").await;
    browser.close().await;
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn camera_and_microphone_cannot_be_switched_on_in_a_closed_room() {
    let server = TestServer::with(|config| {
        config.admin.listen = Some(([127, 0, 0, 1], 0).into());
    })
    .await;
    let browser = Browser::start().await;
    let tab = &open_tabs(&browser, &server, 1).await[0];
    switch(tab, "camera", true).await;
    tab.run(
        "globalThis.request = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
        navigator.mediaDevices.getUserMedia = (constraints) => {
            return globalThis.requested = new Promise((resolve) => {
                globalThis.permit = async () => resolve(globalThis.stream = await request(constraints));
            });
        };
        document.querySelector('#microphone').click();",
    )
    .await;
    let id = tab
        .run("return document.querySelector('#people-list li').dataset.id")
        .await;
    let path = format!("/rooms/call/sessions/{}", id.as_str().unwrap());
    let closed = operator(&server, "DELETE", &path, "").await;
    assert_eq!(closed.status, 204);
    for name in ["microphone", "camera", "screen"] {
        tab.until(&format!(
            "document.querySelector('#{name}:disabled')?.ariaPressed === 'false'"
        ))
        .await;
    }
    assert!(tab.text("#call-hint").await.contains("join again"));
    // A permission that comes too late opens nothing.
    tab.run("permit()").await;
    tab.until("globalThis.stream?.getTracks().every(({ readyState }) => readyState === 'ended')")
        .await;
    assert!(tab.text("#call-hint").await.contains("join again"));
    browser.close().await;
}

/// Makes the page ask the test for each microphone or camera: `asked` lists the requests, and `permit`
/// answers the oldest open one and returns the track.
const ASK: &str = "
    globalThis.asked = [];
    const { mediaDevices } = navigator;
    const request = mediaDevices.getUserMedia.bind(mediaDevices);
    mediaDevices.getUserMedia = (constraints) => new Promise((resolve) => asked.push({ constraints, resolve }));
    globalThis.permit = async () => {
        const { constraints, resolve } = asked.shift();
        const stream = await request(constraints);
        resolve(stream);
        [globalThis.opened] = stream.getTracks();
    };
    globalThis.choose = (name, index) => {
        const select = document.querySelector(`#${name}-device`);
        select.selectedIndex = index;
        select.dispatchEvent(new Event('change'));
        return select.value;
    };";

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn a_device_that_opens_obeys_what_the_user_does_meanwhile() {
    let server = TestServer::start().await;
    let browser = Browser::start().await;
    let tab = &open_tabs(&browser, &server, 1).await[0];
    for name in ["camera", "microphone"] {
        switch(tab, name, true).await;
    }
    tab.until("!document.querySelector('#devices-button').hidden")
        .await;
    tab.run(ASK).await;
    let sent = "document.querySelector('#tiles video').srcObject";

    // The camera is switched off while another one opens: it stays off, and the new one is closed.
    tab.run("choose('camera', 2)").await;
    tab.until("asked.length === 1").await;
    switch(tab, "camera", false).await;
    tab.run("return permit()").await;
    tab.until("opened.readyState === 'ended'").await;
    let off = format!(
        "return [document.querySelector('#camera').ariaPressed, {sent}.getVideoTracks().length]"
    );
    assert_eq!(tab.run(&off).await, json!(["false", 0]));

    // It is switched off and on while another one opens: it is on.
    tab.click("#camera").await;
    tab.until("asked.length === 1").await;
    tab.run("return permit()").await;
    tab.until("document.querySelector('#camera').ariaPressed === 'true'")
        .await;
    tab.run("choose('camera', 0)").await;
    tab.until("asked.length === 1").await;
    switch(tab, "camera", false).await;
    tab.click("#camera").await;
    tab.run("return permit()").await;
    let live = format!(
        "document.querySelector('#camera').ariaPressed === 'true' && {sent}.getVideoTracks()[0] === opened \
         && opened.readyState === 'live'"
    );
    tab.until(&live).await;
    assert_eq!(tab.run("return asked.length").await, 0);

    // A third one is chosen while the second one opens: the third one is used.
    tab.run("choose('camera', 2)").await;
    tab.until("asked.length === 1").await;
    let third = tab.run("return choose('camera', 0)").await;
    tab.run("return permit()").await;
    tab.until("asked.length === 1 && opened.readyState === 'ended'")
        .await;
    tab.run("return permit()").await;
    tab.until(&live).await;
    let used = "return opened.getSettings().deviceId";
    assert_eq!(tab.run(used).await, third);

    // The microphone is muted while another one opens: it stays muted.
    tab.run("choose('microphone', 1)").await;
    tab.until("asked.length === 1").await;
    switch(tab, "microphone", false).await;
    tab.run("return permit()").await;
    tab.until(&format!("{sent}.getAudioTracks()[0] === opened"))
        .await;
    assert_eq!(tab.run("return opened.enabled").await, false);

    // The user leaves while a camera opens.
    tab.run("choose('camera', 2); document.querySelector('#leave').href = '#'")
        .await;
    tab.until("asked.length === 1").await;
    tab.click("#leave").await;
    tab.until("document.querySelector('#camera:disabled')")
        .await;
    tab.run("return permit()").await;
    tab.until("opened.readyState === 'ended'").await;
    assert!(tab.text("#call-hint").await.contains("join again"));
    browser.close().await;
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn without_a_list_of_devices_a_camera_works_and_one_that_ends_stays_off() {
    let server = TestServer::start().await;
    let browser = Browser::start().await;
    let tab = &open_tabs(&browser, &server, 1).await[0];
    tab.run(
        "globalThis.unhandled = 0;
        addEventListener('unhandledrejection', () => { unhandled += 1; });
        navigator.mediaDevices.enumerateDevices = () => Promise.reject(new DOMException('', 'NotAllowedError'));
        navigator.mediaDevices.dispatchEvent(new Event('devicechange'));",
    )
    .await;
    switch(tab, "camera", true).await;
    tab.run(
        "const [track] = document.querySelector('#tiles video').srcObject.getVideoTracks();
        track.stop();
        track.dispatchEvent(new Event('ended'));",
    )
    .await;
    tab.until("document.querySelector('#camera').ariaPressed === 'false'")
        .await;
    assert_eq!(tab.run("return unhandled").await, 0);
    browser.close().await;
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn one_click_unmutes_every_video_that_the_browser_has_blocked() {
    let server = TestServer::start().await;
    let browser = Browser::start().await;
    let tabs = open_tabs(&browser, &server, 3).await;
    let tab = &tabs[0];
    tab.run(
        "globalThis.listeners = new Set();
        const { addEventListener: add, removeEventListener: remove } = window;
        window.addEventListener = (type, listener, ...options) => {
            if (['click', 'keydown'].includes(type)) listeners.add(listener);
            add(type, listener, ...options);
        };
        window.removeEventListener = (type, listener, ...options) => {
            listeners.delete(listener);
            remove(type, listener, ...options);
        };
        const play = HTMLMediaElement.prototype.play;
        HTMLMediaElement.prototype.play = function () {
            return this.muted ? play.call(this) : Promise.reject(new DOMException('', 'NotAllowedError'));
        };",
    )
    .await;
    for other in &tabs[1..] {
        switch(other, "camera", true).await;
    }
    let muted = "[...document.querySelectorAll('#tiles video')].map(({ muted }) => muted).join()";
    tab.until(&format!("{muted} === 'true,true,true'")).await;
    assert_eq!(tab.run("return listeners.size").await, 1);
    assert!(tab.text("#call-hint").await.contains("to hear"));
    tab.click("h1").await;
    // The own video stays muted.
    tab.until(&format!("{muted} === 'true,false,false'")).await;
    assert_eq!(tab.text("#call-hint").await, "");
    assert_eq!(tab.run("return listeners.size").await, 0);
    browser.close().await;
}
