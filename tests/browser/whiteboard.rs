//! The whiteboard of the demo page: lines and cursors in bytes.

use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;
use uuid::Uuid;

use super::{
    driver::{Browser, Tab},
    page::until_people,
};
use crate::{
    bytes::send_bytes,
    support::{Client, TestServer},
};

/// The receiver of a message to all.
const ALL: [u8; 16] = [0; 16];
/// The kinds of messages.
const POINT: u8 = 1;
const DRAW: u8 = 2;
const LEAVE: u8 = 3;
const CLEAR: u8 = 4;
const ASK: u8 = 5;
const LINES: u8 = 6;

/// Opens the page of the room, and gives the user a name.
async fn enter<'a>(browser: &'a Browser, server: &TestServer, name: &str) -> Tab<'a> {
    let tab = browser
        .open(&format!("http://{}/?room=board", server.address))
        .await;
    tab.run_with(
        "const input = document.querySelector('#name');
        input.value = arguments[0];
        input.dispatchEvent(new Event('change'));
        // Whether there is ink within a hundredth of the board around a place.
        globalThis.painted = (x, y) => {
            const canvas = document.querySelector('#board canvas');
            if (!canvas?.width) return false;
            const size = Math.ceil(canvas.width / 50);
            const left = Math.round(x * canvas.width - size / 2);
            const top = Math.round(y * canvas.height - size / 2);
            // A canvas that is read becomes slower, and the console says so.
            const copy = new OffscreenCanvas(size, size).getContext('2d', { willReadFrequently: true });
            copy.drawImage(canvas, left, top, size, size, 0, 0, size, size);
            return copy.getImageData(0, 0, size, size).data.some((value) => value > 0);
        };
        globalThis.cursors = () => [...document.querySelectorAll('.cursor')].map(({ textContent, style }) =>
            [textContent, ...style.translate.split(' ').map((part) => Math.round(parseFloat(part)))]);",
        vec![json!(name)],
    )
    .await;
    tab
}

/// Only a tab in front is painted.
async fn bring_to_front(tab: &Tab<'_>) {
    tab.devtools("Page.bringToFront", json!({})).await;
}

async fn open_board(tab: &Tab<'_>) {
    bring_to_front(tab).await;
    tab.run("document.querySelector('#draw').focus()").await;
    tab.press(" ").await;
    tab.until("document.querySelector('#board canvas')?.width > 300")
        .await;
    assert_eq!(
        tab.run("return document.querySelector('#draw').ariaPressed")
            .await,
        "true"
    );
}

/// The place on the screen of a place on the board, both from 0 to 1.
async fn locate(tab: &Tab<'_>, [x, y]: [f64; 2]) -> [f64; 2] {
    let place = tab
        .run(&format!(
            "const {{ left, top, width, height }} = document.querySelector('#board canvas').getBoundingClientRect();
            return [left + {x} * width, top + {y} * height]"
        ))
        .await;
    serde_json::from_value(place).unwrap()
}

/// Moves the mouse, or presses or releases its button.
async fn mouse(tab: &Tab<'_>, kind: &str, place: [f64; 2]) {
    let [x, y] = locate(tab, place).await;
    let buttons = u8::from(kind != "mouseReleased");
    tab.devtools(
        "Input.dispatchMouseEvent",
        json!({"type": kind, "x": x, "y": y, "button": "left", "buttons": buttons, "clickCount": 1}),
    )
    .await;
}

/// Draws a line with the mouse, whose button stays pressed.
async fn draw(tab: &Tab<'_>, places: &[[f64; 2]]) {
    mouse(tab, "mousePressed", places[0]).await;
    for place in &places[1..] {
        mouse(tab, "mouseMoved", *place).await;
    }
}

/// Receives the next bytes of a kind that a session of the page sends, and returns their numbers.
async fn next_of_kind(client: &mut Client, kind: u8) -> Vec<u16> {
    loop {
        if let Message::Binary(bytes) = client.next_frame().await.unwrap()
            && bytes[16] == kind
        {
            let numbers = bytes[17..].chunks(2);
            return numbers
                .map(|pair| u16::from_be_bytes([pair[0], pair[1]]))
                .collect();
        }
    }
}

/// The bytes of a message.
fn message(kind: u8, numbers: &[u16]) -> Vec<u8> {
    let numbers = numbers.iter().flat_map(|number| number.to_be_bytes());
    [kind].into_iter().chain(numbers).collect()
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn everyone_sees_lines_and_cursors_while_they_are_drawn_and_who_comes_later_gets_them() {
    let server = TestServer::start().await;
    let browser = Browser::start().await;
    let ada = enter(&browser, &server, "Ada").await;
    let grace = enter(&browser, &server, "Grace").await;
    for tab in [&ada, &grace] {
        until_people(tab, 2).await;
        // The first visit does not load it.
        let loaded = "return performance.getEntriesByType('resource').map(({ name }) => name).filter((name) => /whiteboard|speaking|devices/.test(name))";
        assert_eq!(tab.run(loaded).await, json!([]));
    }
    open_board(&grace).await;
    ada.until("document.querySelector('#draw').textContent === 'Draw (1)'")
        .await;
    open_board(&ada).await;
    draw(&ada, &[[0.2, 0.2], [0.4, 0.2], [0.4, 0.6]]).await;
    ada.until("painted(0.3, 0.2) && painted(0.4, 0.5)").await;
    bring_to_front(&grace).await;
    // The button is still pressed.
    grace.until("painted(0.3, 0.2) && painted(0.4, 0.5)").await;
    assert_eq!(
        grace.run("return [painted(0.3, 0.5), cursors()]").await,
        json!([false, [["Ada", 40, 60]]])
    );
    // The colours are those of the people.
    let color = |tab: &'static str| {
        format!("return getComputedStyle(document.querySelector('{tab}'), '::before').color")
    };
    let tag = grace
        .run(&color("#people-list li:last-child .name-tag"))
        .await;
    let arrow =
        "return getComputedStyle(document.querySelector('.cursor'), '::before').backgroundColor";
    assert_eq!(grace.run(arrow).await, tag);
    bring_to_front(&ada).await;
    mouse(&ada, "mouseReleased", [0.4, 0.6]).await;
    mouse(&ada, "mouseMoved", [0.8, 0.8]).await;
    bring_to_front(&grace).await;
    grace.until("cursors().join() === 'Ada,80,80'").await;
    assert_eq!(grace.run("return painted(0.6, 0.7)").await, false);

    // Who comes later gets what is there, also the second time.
    let late = enter(&browser, &server, "Late").await;
    until_people(&late, 3).await;
    open_board(&late).await;
    late.until("painted(0.3, 0.2) && painted(0.4, 0.5)").await;
    // It stays while the window changes, and when the board is closed and opened.
    late.devtools(
        "Emulation.setDeviceMetricsOverride",
        json!({"width": 600, "height": 900, "deviceScaleFactor": 2, "mobile": true}),
    )
    .await;
    late.until("document.querySelector('#board canvas').width > 2 * document.querySelector('#board canvas').clientWidth - 2 && painted(0.3, 0.2)")
        .await;
    late.click("#draw").await;
    late.until("!document.querySelector('#board')").await;
    late.click("#draw").await;
    late.until("painted(0.4, 0.5)").await;

    // A finger draws, and does not scroll.
    for (kind, place) in [
        ("touchStart", [0.6, 0.3]),
        ("touchMove", [0.7, 0.3]),
        ("touchMove", [0.8, 0.3]),
    ] {
        let [x, y] = locate(&late, place).await;
        late.devtools(
            "Input.dispatchTouchEvent",
            json!({"type": kind, "touchPoints": [{"x": x, "y": y}]}),
        )
        .await;
    }
    late.devtools(
        "Input.dispatchTouchEvent",
        json!({"type": "touchEnd", "touchPoints": []}),
    )
    .await;
    bring_to_front(&grace).await;
    grace.until("painted(0.7, 0.3)").await;
    // The finger is gone, and with it the cursor.
    grace.until("cursors().join() === 'Ada,80,80'").await;
    late.close().await;
    bring_to_front(&ada).await;
    ada.click("#leave").await;
    bring_to_front(&grace).await;
    grace.until("cursors().length === 0").await;
    grace.click("#board button").await;
    grace
        .until("!painted(0.3, 0.2) && !painted(0.7, 0.3)")
        .await;
    assert_eq!(
        grace
            .run("return document.querySelector('#chat-log .error')")
            .await,
        Value::Null
    );
    browser.close().await;
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn nonsense_breaks_nothing_and_a_slow_connection_gets_fewer_messages() {
    let server = TestServer::start().await;
    let browser = Browser::start().await;
    let mut spy = Client::join(&server, "board").await;
    spy.set_state(json!({"name": "Spy", "board": true})).await;
    let tab = enter(&browser, &server, "Ada").await;
    until_people(&tab, 2).await;
    let id = tab
        .run("return document.querySelector('#people-list li').dataset.id")
        .await;
    let id = Uuid::parse_str(id.as_str().unwrap()).unwrap().into_bytes();
    open_board(&tab).await;
    // It asks who has it open.
    assert_eq!(next_of_kind(&mut spy, ASK).await, [0; 0]);
    let half = u16::MAX / 2;
    // Lines in several colours, of which the last is cut short.
    send_bytes(
        &mut spy,
        id,
        &message(
            LINES,
            &[
                40, 4, 0, half, half, half, 200, 4, half, 0, half, half, 7, 9, 1,
            ],
        ),
    )
    .await;
    tab.until("painted(0.25, 0.5) && painted(0.5, 0.25)").await;

    for nonsense in [
        vec![],
        vec![DRAW],
        vec![DRAW, 0],
        message(DRAW, &[1]),
        message(DRAW, &[1, 2, 3]),
        message(DRAW, &[9; 30_000]),
        message(LINES, &[]),
        message(LINES, &[1]),
        message(LINES, &[1, 0]),
        message(LINES, &[1, 3, 1, 2, 3]),
        message(LINES, &[1, u16::MAX, 1, 2]),
        vec![POINT],
        vec![POINT, 1, 2, 3],
        vec![LEAVE, 1],
        vec![CLEAR, 1, 2, 3],
        vec![0, 1, 2],
        vec![255; 60_000],
    ] {
        send_bytes(&mut spy, ALL, &nonsense).await;
    }
    send_bytes(&mut spy, ALL, &message(POINT, &[half, u16::MAX])).await;
    tab.until("cursors().join() === 'Spy,50,100'").await;
    assert_eq!(
        tab.run("return painted(0.25, 0.5) && painted(0.5, 0.25)")
            .await,
        true
    );
    // Nobody was asked for these.
    let mut other = Client::join(&server, "board").await;
    send_bytes(&mut other, id, &message(LINES, &[40, 4, 0, 0, half, 0])).await;
    send_bytes(&mut other, id, &message(POINT, &[0, 0])).await;
    tab.until("cursors().length === 2").await;
    assert_eq!(tab.run("return painted(0.25, 0.01)").await, false);
    other.leave().await;
    tab.until("cursors().length === 1").await;

    // A cursor that waits for the connection is sent where it is then.
    tab.run(
        "globalThis.slow = true;
        Object.defineProperty(WebSocket.prototype, 'bufferedAmount', { get: () => (slow ? 1 : 0) });",
    )
    .await;
    mouse(&tab, "mouseReleased", [0.1, 0.1]).await;
    for step in 1..=8_u8 {
        mouse(&tab, "mouseMoved", [0.1 * f64::from(step), 0.1]).await;
    }
    tab.run("await new Promise((next) => requestAnimationFrame(() => requestAnimationFrame(next))); slow = false").await;
    let point = next_of_kind(&mut spy, POINT).await;
    assert!(
        point[0].abs_diff((0.8 * 65_535.0) as u16) < 200,
        "{point:?}"
    );
    // Of a line, every point is.
    tab.run("slow = true").await;
    draw(&tab, &[[0.1, 0.9], [0.2, 0.9], [0.3, 0.9], [0.4, 0.9]]).await;
    tab.run("await new Promise((next) => requestAnimationFrame(() => requestAnimationFrame(next))); slow = false").await;
    let line = next_of_kind(&mut spy, DRAW).await;
    assert!(line.len() >= 8, "{line:?}");
    for (point, share) in [(0, 0.1), (line.len() - 2, 0.4)] {
        assert!(
            line[point].abs_diff((share * 65_535.0) as u16) < 200,
            "{line:?}"
        );
    }
    mouse(&tab, "mouseReleased", [0.4, 0.9]).await;

    // Who asks gets all of it, but not as often as they like.
    for _ in 0..3 {
        send_bytes(&mut spy, id, &[ASK]).await;
    }
    let lines = next_of_kind(&mut spy, LINES).await;
    assert_eq!(
        lines[..12],
        [40, 4, 0, half, half, half, 200, 4, half, 0, half, half]
    );
    send_bytes(&mut spy, ALL, &[CLEAR]).await;
    tab.until("!painted(0.25, 0.5)").await;
    tab.click("#draw").await;
    assert_eq!(next_of_kind(&mut spy, LEAVE).await, [0; 0]);
    browser.close().await;
}
