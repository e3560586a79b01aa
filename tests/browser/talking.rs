//! Rosters, messages, names, by mouse and by keyboard alone.

use serde_json::json;

use super::driver::{Browser, Tab};
use crate::support::TestServer;

/// Waits until a tab shows so many people, itself among them.
pub async fn until_here(tab: &Tab<'_>, count: usize) {
    tab.until(&format!(
        "document.querySelectorAll('#people-list li').length === {count}"
    ))
    .await;
}

/// The ids that a tab shows, sorted; its own is the first that it shows.
async fn roster(tab: &Tab<'_>) -> (String, Vec<String>) {
    let ids = tab
        .run("return [...document.querySelectorAll('#people-list li')].map((item) => item.dataset.id)")
        .await;
    let mut ids: Vec<String> = serde_json::from_value(ids).unwrap();
    let own = ids[0].clone();
    ids.sort();
    (own, ids)
}

async fn rename(tab: &Tab<'_>, name: &str) {
    tab.run("document.querySelector('#name').value = ''").await;
    tab.type_into("#name", name).await;
    tab.press("\n").await;
}

pub async fn until_heard(tab: &Tab<'_>, words: &str) {
    tab.until(&format!(
        "[...document.querySelectorAll('#chat-log .message-text')].some((item) => item.textContent === {words:?})"
    ))
    .await;
}

/// What a tab has heard; asked after a later message has come, nothing is missing.
async fn heard(tab: &Tab<'_>) -> Vec<String> {
    let words = tab
        .run(
            "return [...document.querySelectorAll('#chat-log .message-text')].map((item) => item.textContent)",
        )
        .await;
    serde_json::from_value(words).unwrap()
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn four_tabs_agree_on_who_is_here_and_hear_what_is_meant_for_them() {
    let server = TestServer::start().await;
    let browser = Browser::start().await;
    let url = format!("http://{}/?room=four", server.address);
    let mut tabs = Vec::new();
    for count in 1..=4 {
        tabs.push(browser.open(&url).await);
        for tab in &tabs {
            until_here(tab, count).await;
        }
    }
    let mut own_ids = Vec::new();
    let (_, everyone) = roster(&tabs[0]).await;
    for tab in &tabs {
        let (own, ids) = roster(tab).await;
        assert_eq!(ids, everyone);
        own_ids.push(own);
    }
    own_ids.sort();
    assert_eq!(own_ids, everyone, "each is itself");

    // A name with markup is a name.
    rename(&tabs[0], "<b onclick=alert(1)>Eve</b>").await;
    for tab in &tabs {
        tab.until("[...document.querySelectorAll('.name-tag')].some((item) => item.textContent === '<b onclick=alert(1)>Eve</b>')").await;
        assert_eq!(
            tab.run("return document.querySelectorAll('b[onclick]').length")
                .await,
            0
        );
    }

    // To one, then to all: who has got the second would have the first.
    let (third, _) = roster(&tabs[2]).await;
    tabs[0]
        .run_with(
            "document.querySelector('#receiver').value = arguments[0]",
            vec![third.into()],
        )
        .await;
    tabs[0].type_into("#text", "only <i>you</i>\n").await;
    tabs[0]
        .run("document.querySelector('#receiver').value = 'all'")
        .await;
    tabs[0].type_into("#text", "everyone\n").await;
    for (place, tab) in tabs.iter().enumerate().skip(1) {
        until_heard(tab, "everyone").await;
        let expected: &[&str] = match place {
            2 => &["only <i>you</i>", "everyone"],
            _ => &["everyone"],
        };
        assert_eq!(heard(tab).await, expected);
    }

    // Who goes is gone for the others, and what was meant for them goes to nobody else.
    let last = tabs.pop().unwrap();
    let (gone, _) = roster(&last).await;
    tabs[0]
        .run_with(
            "document.querySelector('#receiver').value = arguments[0]",
            vec![gone.into()],
        )
        .await;
    last.close().await;
    for tab in &tabs {
        until_here(tab, 3).await;
    }
    // What has no name is named by its id; these have names.
    tabs[0]
        .until("[...document.querySelectorAll('#chat-log .notice')].at(-1).textContent.endsWith(' left')")
        .await;
    let gone = tabs[0]
        .run("return [...document.querySelectorAll('#chat-log .notice')].at(-1).querySelector('.name-tag').textContent")
        .await;
    assert_eq!(gone.as_str().unwrap().split(' ').count(), 2, "{gone}");
    tabs[0].type_into("#text", "a secret\n").await;
    tabs[0]
        .until("document.querySelector('#chat-log .error')?.textContent.includes('Not delivered')")
        .await;
    tabs[0]
        .run("document.querySelector('#receiver').value = 'all'")
        .await;
    tabs[0].type_into("#text", "no secret\n").await;
    until_heard(&tabs[1], "no secret").await;
    assert_eq!(heard(&tabs[1]).await, ["everyone", "no secret"]);
    browser.close().await;
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn the_keyboard_alone_joins_and_sends() {
    let server = TestServer::start().await;
    let browser = Browser::start().await;
    let other = browser
        .open(&format!("http://{}/?room=keys", server.address))
        .await;
    until_here(&other, 1).await;

    const TAB: &str = "\u{E004}";
    const SELECT_ALL: &str = "\u{E009}a\u{E000}";
    let tab = browser.open(&format!("http://{}/", server.address)).await;
    // The first stops are the link home and the room's name.
    tab.press(TAB).await;
    tab.press(TAB).await;
    assert_eq!(
        tab.run("return document.activeElement.id").await,
        "room-name"
    );
    tab.press(SELECT_ALL).await;
    tab.press("keys").await;
    tab.press(TAB).await;
    tab.press(SELECT_ALL).await;
    tab.press("Kay\n").await;
    until_here(&tab, 2).await;
    for _ in 0..40 {
        if tab.run("return document.activeElement.id").await == "text" {
            break;
        }
        tab.press(TAB).await;
    }
    tab.press("by keys alone\n").await;
    until_heard(&other, "by keys alone").await;
    other
        .until("document.querySelector('#people-list').textContent.includes('Kay')")
        .await;

    // The switches say whether they are on.
    for _ in 0..40 {
        if tab.run("return document.activeElement.id").await == "camera" {
            break;
        }
        tab.press("\u{E008}\u{E004}").await;
    }
    tab.press(" ").await;
    tab.until("document.querySelector('#camera').getAttribute('aria-pressed') === 'true'")
        .await;
    browser.close().await;
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn on_the_wire_every_message_is_seen_filtered_and_written() {
    let server = TestServer::start().await;
    let browser = Browser::start().await;
    let tab = browser
        .open(&format!("http://{}/?room=wire", server.address))
        .await;
    until_here(&tab, 1).await;

    tab.run("document.querySelector('#json').value = '{\"type\":\"chat\",\"to\":\"all\"}'")
        .await;
    tab.type_into("#json", "\n").await;
    tab.until("document.querySelector('#messages').textContent.includes('error')")
        .await;
    tab.run("document.querySelector('#filter-text').value = ''")
        .await;
    tab.type_into("#filter-text", "BAD_message").await;
    let seen = "[...document.querySelectorAll('#messages li')].filter((item) => !item.hidden)";
    tab.until(&format!("{seen}.length === 1")).await;
    tab.run(&format!("{seen}[0].querySelector('summary').click()"))
        .await;
    tab.until(&format!(
        "{seen}[0].querySelector('pre')?.textContent.includes('\"code\": \"bad_message\"')"
    ))
    .await;
    tab.run("document.querySelector('#direction').value = 'out'")
        .await;
    tab.type_into("#filter-text", " ").await;
    tab.until(&format!("{seen}.length === 0")).await;

    // The server's complaint is shown where people read, too.
    tab.until("document.querySelector('#chat-log .error')?.textContent.includes('to')")
        .await;
    browser.close().await;
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn the_invite_link_leads_into_the_room() {
    let server = TestServer::start().await;
    let browser = Browser::start().await;
    let tab = browser
        .open(&format!(
            "http://{}/?room=caf%C3%A9+%3Cb%3E",
            server.address
        ))
        .await;
    until_here(&tab, 1).await;
    let permissions = json!({"permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"]});
    tab.chrome("Browser.grantPermissions", permissions).await;
    tab.click("#invite").await;
    tab.until("document.querySelector('#invite').textContent === 'Copied'")
        .await;
    let link = tab.run("return navigator.clipboard.readText()").await;
    let guest = browser.open(link.as_str().unwrap()).await;
    for tab in [&tab, &guest] {
        until_here(tab, 2).await;
        assert_eq!(tab.text("#title").await, "café <b>");
    }
    browser.close().await;
}
