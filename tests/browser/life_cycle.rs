//! The life cycle of a page (WHATWG HTML, section 7.4.6; Page Lifecycle): a page that is left and
//! restored, frozen, hidden or gone.
//!
//! The server keeps a suspended session for longer than any test waits, and does not ping: what the
//! others hear, they hear because the page said it.

use serde_json::json;

use super::devtools::{Chromium, Page};
use crate::{
    proxy::{Failure, Fate, Proxy},
    support::{Client, TestServer},
};

async fn start_server() -> TestServer {
    TestServer::with(|config| {
        config.liveness.resume_seconds = 3600;
        config.liveness.ping_seconds = 3600;
    })
    .await
}

/// Opens the page of `origin`, and joins the room `life` there. The page has a link to another page, and
/// these globals: `room`, `received` (the data of the messages), `sent` (the texts that the room has
/// sent) and `restored` (whether the page was taken from the back/forward cache).
async fn open_room<'a>(browser: &'a Chromium, origin: std::net::SocketAddr) -> Page<'a> {
    let page = browser.open(&format!("http://{origin}/")).await;
    page.run(
        "(async () => {
            const link = document.createElement('a');
            link.id = 'link';
            link.href = '/?elsewhere';
            link.textContent = 'elsewhere';
            document.body.prepend(link);
            const { Mesh, join } = await import('/anteroom.js');
            Object.assign(globalThis, { Mesh, received: [], sent: [], restored: false });
            globalThis.room = join('life', { idleTimeout: 3_600_000 });
            room.addEventListener('message', ({ detail }) => received.push(detail.data));
            room.addEventListener('wire', ({ detail: { direction, text } }) => {
                if (direction === 'out') sent.push(text);
            });
            addEventListener('pageshow', ({ persisted }) => (restored = persisted));
        })()",
    )
    .await;
    page
}

/// Joins the room with a client and with a page.
async fn client_and_page<'a>(server: &TestServer, browser: &'a Chromium) -> (Client, Page<'a>) {
    let mut client = Client::join(server, "life").await;
    let page = open_room(browser, server.address).await;
    client.expect_any_new().await;
    page.until("room.state === 'open'").await;
    (client, page)
}

async fn id_of(page: &Page<'_>) -> String {
    page.run("room.id").await.as_str().unwrap().into()
}

/// Follows the link of the page.
async fn follow_link(page: &Page<'_>) {
    page.click("#link").await;
    page.until("location.search === '?elsewhere' && document.readyState === 'complete'")
        .await;
}

/// Sends a message to the session of a page, which is suspended.
async fn send_meanwhile(client: &mut Client, id: &str) {
    let message = json!({"type": "chat", "receiver": id, "data": "meanwhile", "ref": 1});
    client.send(message).await;
    let receipt = client.next().await;
    assert_eq!(receipt["data"], json!({"ref": 1, "receivers": 1}));
}

/// The page must have its session again, and what was sent meanwhile. The client must not have noticed.
async fn expect_resumed(client: &mut Client, page: &Page<'_>, id: &str) {
    page.until("room.state === 'open' && received.length === 1")
        .await;
    assert_eq!(id_of(page).await, id);
    assert_eq!(page.run("received").await, json!(["meanwhile"]));
    client.expect_quiet().await;
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn a_page_that_is_left_and_restored_resumes_its_session() {
    let server = start_server().await;
    let browser = Chromium::start().await;
    let (mut client, page) = client_and_page(&server, &browser).await;
    let id = id_of(&page).await;

    follow_link(&page).await;
    server.expect_suspended(1).await;
    send_meanwhile(&mut client, &id).await;

    page.back().await;
    page.until("globalThis.restored").await;
    expect_resumed(&mut client, &page, &id).await;
    browser.close().await;
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn a_page_that_does_not_return_leaves_at_once() {
    let server = start_server().await;
    let browser = Chromium::start().await;

    // A page that listens to `unload` is not kept.
    let (mut client, page) = client_and_page(&server, &browser).await;
    let id = id_of(&page).await;
    page.run("addEventListener('unload', () => {})").await;
    follow_link(&page).await;
    client.expect_left(&id).await;
    page.close().await;
    client.leave().await;

    let (mut client, page) = client_and_page(&server, &browser).await;
    let id = id_of(&page).await;
    page.command("Page.reload", json!({})).await;
    client.expect_left(&id).await;
    page.close().await;
    client.leave().await;

    let (mut client, page) = client_and_page(&server, &browser).await;
    let id = id_of(&page).await;
    page.close().await;
    client.expect_left(&id).await;
    browser.close().await;
}

/// Chromium tells a page with an RTCPeerConnection that it is kept, and does not keep it.
#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn a_page_in_a_call_leaves_at_once() {
    let server = start_server().await;
    let browser = Chromium::start().await;
    let one = open_room(&browser, server.address).await;
    one.run("void (globalThis.mesh = new Mesh(room))").await;
    let other = open_room(&browser, server.address).await;
    other.run("void (globalThis.mesh = new Mesh(room))").await;
    for page in [&one, &other] {
        page.until(
            "[...mesh.peers.values()].map(({ pc }) => pc.connectionState).join() === 'connected'",
        )
        .await;
    }
    one.bring_to_front().await;
    follow_link(&one).await;
    other.until("room.peers.size === 0").await;
    browser.close().await;
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn a_room_that_is_left_stays_closed_when_its_page_is_restored() {
    let server = start_server().await;
    let browser = Chromium::start().await;
    let (mut client, page) = client_and_page(&server, &browser).await;
    let id = id_of(&page).await;

    page.run("room.leave()").await;
    follow_link(&page).await;
    client.expect_left(&id).await;

    page.back().await;
    page.until("globalThis.restored").await;
    assert_eq!(page.run("room.state").await, "closed");
    client.expect_quiet().await;
    browser.close().await;
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn a_frozen_page_resumes_its_session() {
    let server = start_server().await;
    let browser = Chromium::start().await;
    let (mut client, page) = client_and_page(&server, &browser).await;
    let id = id_of(&page).await;

    page.freeze().await;
    server.expect_suspended(1).await;
    send_meanwhile(&mut client, &id).await;

    page.resume().await;
    expect_resumed(&mut client, &page, &id).await;
    browser.close().await;
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn a_page_that_is_shown_again_checks_its_connection_at_once() {
    let server = start_server().await;
    let proxy = Proxy::start(server.address, || Fate::NONE).await;
    let browser = Chromium::start().await;
    let page = open_room(&browser, proxy.address).await;
    page.until("room.state === 'open'").await;
    let id = id_of(&page).await;
    let other = browser.open(&format!("http://{}/", server.address)).await;
    page.until("document.visibilityState === 'hidden'").await;

    // An open room sends a ping.
    page.run("sent.length = 0").await;
    page.bring_to_front().await;
    page.until("sent.some((text) => text.includes('\"ping\"'))")
        .await;

    // A room that would wait for an hour connects.
    other.bring_to_front().await;
    page.until("document.visibilityState === 'hidden'").await;
    page.run("void (globalThis.setTimeout = () => 0)").await;
    proxy.fail(Failure::Reset);
    page.until("room.state === 'reconnecting'").await;
    page.bring_to_front().await;
    page.until("room.state === 'open'").await;
    assert_eq!(id_of(&page).await, id);
    browser.close().await;
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn leaving_while_reconnecting_ends_the_session_at_once() {
    let server = start_server().await;
    let proxy = Proxy::start(server.address, || Fate::NONE).await;
    let browser = Chromium::start().await;
    let mut client = Client::join(&server, "life").await;
    let page = open_room(&browser, proxy.address).await;
    client.expect_any_new().await;
    page.until("room.state === 'open'").await;
    let id = id_of(&page).await;

    page.run(
        "room.addEventListener('statechange', ({ detail }) => {
            if (detail.state === 'reconnecting') room.leave();
        })",
    )
    .await;
    proxy.fail(Failure::Reset);
    page.until("room.state === 'closed'").await;
    client.expect_left(&id).await;
    client.expect_quiet().await;
    server.expect_suspended(0).await;
    browser.close().await;
}
