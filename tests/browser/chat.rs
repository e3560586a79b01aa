//! People, names and chat messages; the message log; the invite link; the keyboard.

use serde_json::json;

use super::{
    driver::{Browser, Tab},
    page::{until_message, until_people},
};
use crate::support::{Client, TestServer, operator};

/// A tab's own session id, which it lists first, and all session ids that it lists, sorted.
async fn listed_sessions(tab: &Tab<'_>) -> (String, Vec<String>) {
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

/// The chat messages that a tab shows. Call it after a later message has arrived: then none is
/// missing.
async fn chat_messages(tab: &Tab<'_>) -> Vec<String> {
    let words = tab
        .run(
            "return [...document.querySelectorAll('#chat-log .message-text')].map((item) => item.textContent)",
        )
        .await;
    serde_json::from_value(words).unwrap()
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn tabs_list_the_same_people_and_show_only_messages_to_them() {
    let server = TestServer::start().await;
    let browser = Browser::start().await;
    let url = format!("http://{}/?room=four", server.address);
    let mut tabs = Vec::new();
    for count in 1..=4 {
        tabs.push(browser.open(&url).await);
        for tab in &tabs {
            until_people(tab, count).await;
        }
    }
    let mut own_ids = Vec::new();
    let (_, everyone) = listed_sessions(&tabs[0]).await;
    for tab in &tabs {
        let (own, ids) = listed_sessions(tab).await;
        assert_eq!(ids, everyone);
        own_ids.push(own);
    }
    own_ids.sort();
    assert_eq!(own_ids, everyone, "each tab lists itself first");

    // Markup in a name is shown as text.
    rename(&tabs[0], "<b onclick=alert(1)>Eve</b>").await;
    for tab in &tabs {
        tab.until("[...document.querySelectorAll('.name-tag')].some((item) => item.textContent === '<b onclick=alert(1)>Eve</b>')").await;
        assert_eq!(
            tab.run("return document.querySelectorAll('b[onclick]').length")
                .await,
            0
        );
    }

    // A message to one peer, then one to everyone: a tab that shows the second has received the
    // first, if at all.
    let (third, _) = listed_sessions(&tabs[2]).await;
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
    for (index, tab) in tabs.iter().enumerate().skip(1) {
        until_message(tab, "everyone").await;
        let expected: &[&str] = match index {
            2 => &["only <i>you</i>", "everyone"],
            _ => &["everyone"],
        };
        assert_eq!(chat_messages(tab).await, expected);
    }

    // When a person leaves, the others no longer list them, and a message to them goes to nobody
    // else.
    let last = tabs.pop().unwrap();
    let (left, _) = listed_sessions(&last).await;
    tabs[0]
        .run_with(
            "document.querySelector('#receiver').value = arguments[0]",
            vec![left.into()],
        )
        .await;
    last.close().await;
    for tab in &tabs {
        until_people(tab, 3).await;
    }
    // The notice shows the name, which has two words, and not the id.
    tabs[0]
        .until("[...document.querySelectorAll('#chat-log .notice')].at(-1).textContent.endsWith(' left')")
        .await;
    let name = tabs[0]
        .run("return [...document.querySelectorAll('#chat-log .notice')].at(-1).querySelector('.name-tag').textContent")
        .await;
    assert_eq!(name.as_str().unwrap().split(' ').count(), 2, "{name}");
    tabs[0].type_into("#text", "a secret\n").await;
    tabs[0]
        .until("document.querySelector('#chat-log .error')?.textContent.includes('Not delivered')")
        .await;
    tabs[0]
        .run("document.querySelector('#receiver').value = 'all'")
        .await;
    tabs[0].type_into("#text", "no secret\n").await;
    until_message(&tabs[1], "no secret").await;
    assert_eq!(chat_messages(&tabs[1]).await, ["everyone", "no secret"]);
    browser.close().await;
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn the_page_shows_a_newcomer_names_and_devices_and_sends_it_no_message_for_that() {
    let server = TestServer::start().await;
    let mut mallory = Client::join(&server, "lobby").await;
    let devices = json!({"name": "Mallory", "microphone": true, "camera": false, "screen": true});
    mallory.set_state(devices).await;
    let browser = Browser::start().await;
    let url = format!("http://{}/?room=lobby", server.address);
    let tab = browser.open(&url).await;
    until_people(&tab, 2).await;
    let shown =
        "[...document.querySelectorAll('#people-list li:nth-child(2) :is(.name-tag, .badge)')]
        .map((one) => one.title && one.className === 'badge' ? one.title : one.textContent).join()";
    tab.until(&format!("{shown} === 'Mallory,microphone on,screen on'"))
        .await;
    let muted = json!({"type": "state", "receiver": "server", "data": {"name": "Mallory"}});
    mallory.send(muted).await;
    tab.until(&format!("{shown} === 'Mallory'")).await;

    let new = mallory.next().await;
    assert_eq!(new["type"], "new");
    let id = new["sender"].as_str().unwrap();
    let name = tab
        .run("return document.querySelector('#name').value")
        .await;
    let profile = |microphone: bool| json!({"name": name, "microphone": microphone, "camera": false, "screen": false, "board": false});
    mallory.expect_state(id, profile(false)).await;
    tab.click("#microphone").await;
    loop {
        let message = mallory.next().await;
        if message["type"] == "state" {
            assert_eq!(message["data"], profile(true));
            break;
        }
        assert!(["offer", "candidate"].contains(&message["type"].as_str().unwrap()));
    }
    let mut newcomer = Client::join(&server, "lobby").await;
    let states = newcomer.states().await;
    assert_eq!(states[1], (id.to_owned(), profile(true)));
    // The page connects to the newcomer, and tells it nothing else.
    let offer = newcomer.next().await;
    assert_eq!(
        (&offer["type"], &offer["sender"]),
        (&json!("offer"), &json!(id))
    );
    browser.close_regardless().await;
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn the_page_works_with_the_keyboard_alone() {
    let server = TestServer::start().await;
    let browser = Browser::start().await;
    let other = browser
        .open(&format!("http://{}/?room=keys", server.address))
        .await;
    until_people(&other, 1).await;

    const TAB: &str = "\u{E004}";
    const SELECT_ALL: &str = "\u{E009}a\u{E000}";
    let tab = browser.open(&format!("http://{}/", server.address)).await;
    // The first Tab stops are the link to the start page and the name of the room.
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
    until_people(&tab, 2).await;
    for _ in 0..40 {
        if tab.run("return document.activeElement.id").await == "text" {
            break;
        }
        tab.press(TAB).await;
    }
    tab.press("by keys alone\n").await;
    until_message(&other, "by keys alone").await;
    other
        .until("document.querySelector('#people-list').textContent.includes('Kay')")
        .await;

    // The camera button tells whether the camera is on.
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
async fn the_message_log_shows_filters_and_sends_messages() {
    let server = TestServer::start().await;
    let browser = Browser::start().await;
    let tab = browser
        .open(&format!("http://{}/?room=wire", server.address))
        .await;
    until_people(&tab, 1).await;

    // The log is loaded when it is open for the first time.
    let messages = "document.querySelectorAll('#messages li').length";
    assert_eq!(tab.run(&format!("return {messages}")).await, 0);
    tab.click("#fold").await;
    tab.until(&format!("{messages} > 0")).await;
    tab.click("#clear").await;
    tab.click("#fold").await;
    tab.until("!document.querySelector('#messages').checkVisibility()")
        .await;

    // The folded log has no elements. Once it is open it shows what came before, up to 500 messages.
    tab.run(
        "document.querySelector('#json').value = '{\"type\":\"ping\",\"receiver\":\"server\"}';
        for (let i = 0; i < 600; i += 1) document.querySelector('#compose').requestSubmit();",
    )
    .await;
    assert_eq!(tab.run(&format!("return {messages}")).await, 0);
    assert!(!tab.find("#messages").await.is_displayed().await.unwrap());
    tab.click("#fold").await;
    tab.until(&format!("{messages} === 500")).await;
    tab.click("#clear").await;
    // The choice outlives the page.
    tab.run("location.reload()").await;
    tab.until("document.querySelector('#messages')?.checkVisibility() && document.querySelector('#messages summary')")
        .await;
    until_people(&tab, 1).await;

    tab.run("document.querySelector('#json').value = '{\"type\":\"chat\",\"to\":\"all\"}'")
        .await;
    tab.type_into("#json", "\n").await;
    tab.until("document.querySelector('#messages').textContent.includes('error')")
        .await;
    tab.run("document.querySelector('#filter-text').value = ''")
        .await;
    tab.type_into("#filter-text", "BAD_message").await;
    let shown = "[...document.querySelectorAll('#messages li')].filter((item) => !item.hidden)";
    tab.until(&format!("{shown}.length === 1")).await;
    tab.run(&format!("{shown}[0].querySelector('summary').click()"))
        .await;
    tab.until(&format!(
        "{shown}[0].querySelector('pre')?.textContent.includes('\"code\": \"bad_message\"')"
    ))
    .await;
    tab.run("document.querySelector('#direction').value = 'out'")
        .await;
    tab.type_into("#filter-text", " ").await;
    tab.until(&format!("{shown}.length === 0")).await;

    // The conversation also shows the server's error.
    tab.until("document.querySelector('#chat-log .error')?.textContent.includes('to')")
        .await;
    browser.close().await;
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn the_invite_link_opens_the_room() {
    let server = TestServer::start().await;
    let browser = Browser::start().await;
    let tab = browser
        .open(&format!(
            "http://{}/?room=caf%C3%A9+%3Cb%3E",
            server.address
        ))
        .await;
    until_people(&tab, 1).await;
    let permissions = json!({"permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"]});
    tab.devtools("Browser.grantPermissions", permissions).await;
    tab.click("#invite").await;
    tab.until("document.querySelector('#invite').textContent === 'Copied'")
        .await;
    let link = tab.run("return navigator.clipboard.readText()").await;
    let invited = browser.open(link.as_str().unwrap()).await;
    for tab in [&tab, &invited] {
        until_people(tab, 2).await;
        assert_eq!(tab.text("#title").await, "café <b>");
    }
    browser.close().await;
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn the_conversation_shows_notices_of_the_server_alone() {
    let server = TestServer::with(|config| {
        config.admin.listen = Some(([127, 0, 0, 1], 0).into());
    })
    .await;
    let browser = Browser::start().await;
    let url = format!("http://{}/?room=tea", server.address);
    let tab = browser.open(&url).await;
    until_people(&tab, 1).await;
    let mut mallory = Client::join(&server, "tea").await;
    until_people(&tab, 2).await;
    mallory
        .send(json!({"type": "notice", "receiver": "all", "data": "forged"}))
        .await;
    let notice = r#"{"type":"notice","receiver":"all","data":"<b>back soon</b>"}"#;
    let answer = operator(&server, "POST", "/messages", notice).await;
    assert_eq!(answer.body, r#"{"receivers":2}"#);
    tab.until("document.querySelector('#chat-log').textContent.endsWith('Notice from the server: <b>back soon</b>')")
        .await;
    assert!(!tab.text("#chat-log").await.contains("forged"));
    browser.close().await;
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn web_addresses_are_links_and_other_text_stays_text() {
    let server = TestServer::start().await;
    let browser = Browser::start().await;
    let url = format!("http://{}/?room=links", server.address);
    let tab = browser.open(&url).await;
    let other = browser.open(&url).await;
    until_people(&other, 2).await;
    let text = "(see https://a.test/x_(y)?q=1#z). javascript:alert(1) http://google.test@evil.test/ http://:google.test@evil.test/ \
        xhttps://no.test HTTP://B.test/<b>, https:// data:text/html,x";
    tab.type_into("#text", &format!("{text}\n")).await;
    until_message(&other, text).await;
    let links = other
        .run("return [...document.querySelectorAll('#chat-log a')].map((link) => [link.textContent, link.target, link.rel])")
        .await;
    let rel = "noopener noreferrer nofollow";
    assert_eq!(
        links,
        json!([
            ["https://a.test/x_(y)?q=1#z", "_blank", rel],
            ["HTTP://B.test/", "_blank", rel],
        ])
    );
    other
        .until("!isNaN(Date.parse(document.querySelector('#chat-log time').dateTime))")
        .await;

    // A message of many addresses, or of punctuation alone, takes no noticeable time.
    let long = "'http://a '.repeat(5000)";
    let marks = "'http://a' + '!'.repeat(50000) + 'x'";
    for script in [long, marks] {
        tab.run(&format!(
            "document.querySelector('#text').value = {script};
            document.querySelector('#chat-form').requestSubmit();"
        ))
        .await;
    }
    until_message_count(&other, 3).await;
    let counts = other
        .run("return [...document.querySelectorAll('.message-text')].map((item) => item.querySelectorAll('a').length)")
        .await;
    assert_eq!(counts, json!([2, 50, 1]));
    browser.close().await;
}

async fn until_message_count(tab: &Tab<'_>, count: usize) {
    tab.until(&format!(
        "document.querySelectorAll('.message-text').length === {count}"
    ))
    .await;
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn the_title_counts_messages_until_the_user_sees_them() {
    let server = TestServer::start().await;
    let browser = Browser::start().await;
    let url = format!("http://{}/?room=unread", server.address);
    let tab = browser.open(&url).await;
    let other = browser.open(&url).await;
    until_people(&other, 2).await;
    let narrow = json!({"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": true});
    tab.devtools("Emulation.setDeviceMetricsOverride", narrow)
        .await;
    other.type_into("#text", "one\n").await;
    other.type_into("#text", "two\n").await;
    tab.until("document.title === '(2) unread – anteroom'")
        .await;
    tab.click("nav [data-view=chat]").await;
    tab.until("document.title === 'unread – anteroom'").await;

    tab.run(
        "Object.defineProperty(document, 'visibilityState', { get: () => globalThis.visibility })",
    )
    .await;
    tab.run("globalThis.visibility = 'hidden'").await;
    other.type_into("#text", "three\n").await;
    tab.until("document.title === '(1) unread – anteroom'")
        .await;
    tab.run("visibility = 'visible'; document.dispatchEvent(new Event('visibilitychange'))")
        .await;
    tab.until("document.title === 'unread – anteroom'").await;
    browser.close().await;
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn leaving_tells_the_room_at_once_and_coming_back_joins_again() {
    let server = TestServer::start().await;
    let browser = Browser::start().await;
    let url = format!("http://{}/?room=leave", server.address);
    let tab = browser.open(&url).await;
    let other = browser.open(&url).await;
    until_people(&other, 2).await;
    until_people(&tab, 2).await;
    // The page stays, as in the browser's cache.
    tab.run("document.querySelector('#leave').href = '#'").await;
    tab.click("#leave").await;
    until_people(&other, 1).await;
    tab.until("document.querySelector('#banner').textContent.includes('You left the room.')")
        .await;
    tab.run("dispatchEvent(new PageTransitionEvent('pageshow', { persisted: true }))")
        .await;
    until_people(&other, 2).await;

    // The button of the banner joins again, too.
    until_people(&tab, 2).await;
    tab.run("document.querySelector('#leave').href = '#'").await;
    tab.click("#leave").await;
    until_people(&other, 1).await;
    tab.click("#rejoin").await;
    until_people(&other, 2).await;
    browser.close().await;
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn a_conversation_at_its_end_stays_there_in_every_size_and_view() {
    let server = TestServer::start().await;
    let browser = Browser::start().await;
    let url = format!("http://{}/?room=end", server.address);
    let tab = browser.open(&url).await;
    let other = browser.open(&url).await;
    until_people(&other, 2).await;
    let resize = async |width: u32, height: u32| {
        let metrics = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500});
        tab.devtools("Emulation.setDeviceMetricsOverride", metrics)
            .await;
        tab.devtools("Page.bringToFront", json!({})).await;
    };
    let say = |from: u32| {
        format!(
            "for (let number = {from}; number < {from} + 60; number += 1) {{
                document.querySelector('#text').value = `number ${{number}}`;
                document.querySelector('#chat-form').requestSubmit();
            }}"
        )
    };
    let at_end = "(() => {
        const { scrollHeight, scrollTop, clientHeight } = document.querySelector('#chat-log');
        return clientHeight > 0 && scrollHeight > clientHeight && scrollHeight - scrollTop - clientHeight < 2;
    })()";
    resize(390, 844).await;
    tab.click("nav [data-view=chat]").await;
    other.run(&say(0)).await;
    until_message(&tab, "number 59").await;
    tab.until(at_end).await;
    // The keyboard of a phone takes half of the height.
    resize(390, 420).await;
    tab.until(at_end).await;
    resize(390, 844).await;
    // Messages arrive while the conversation is hidden, and a wide window shows it.
    tab.click("nav [data-view=people]").await;
    other.run(&say(60)).await;
    until_message(&tab, "number 119").await;
    resize(1280, 800).await;
    tab.until(at_end).await;

    // The browser tells of the scrolling before it tells of the size.
    tab.run(
        "const log = document.querySelector('#chat-log');
        log.scrollTop -= 1;
        log.style.flex = 'none';
        log.style.height = `${log.clientHeight - 100}px`;",
    )
    .await;
    tab.until(at_end).await;
    tab.run("document.querySelector('#chat-log').style = ''")
        .await;
    tab.until(at_end).await;

    // Who reads older messages is not moved.
    tab.run("document.querySelector('#chat-log').scrollTop = 100")
        .await;
    tab.run(
        "return new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))",
    )
    .await;
    resize(1280, 760).await;
    tab.until("innerHeight === 760").await;
    tab.run(
        "return new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))",
    )
    .await;
    let place = tab
        .run("return document.querySelector('#chat-log').scrollTop")
        .await;
    assert_eq!(place, 100);
    browser.close().await;
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn a_name_has_no_invisible_characters() {
    let server = TestServer::start().await;
    let browser = Browser::start().await;
    let url = format!("http://{}/?room=names", server.address);
    let tab = browser.open(&url).await;
    until_people(&tab, 1).await;
    // Joiners stay where scripts and emoji need them.
    let cleaned = [
        ["Ada\u{61c} \u{2060}Lovelace\u{ad}", "Ada Lovelace"],
        ["A\u{3164}B\u{2800}C\u{ffa0}D\u{202e}\n", "A B C D"],
        ["\u{200d}Ada\u{fe0f}\u{200d}\u{200c}", "Ada\u{fe0f}"],
        ["A\u{200d}\u{200d}B", "A B"],
        ["می\u{200c}خواهم", "می\u{200c}خواهم"],
        ["👁\u{fe0f}\u{200d}🗨\u{fe0f}", "👁\u{fe0f}\u{200d}🗨\u{fe0f}"],
        ["\u{61c}\u{2060}\u{ad}\u{3164}", ""],
        ["\u{115f}\u{1160}\u{ffa0}\u{2800}", ""],
        ["\u{200d}", ""],
        ["\u{301}", ""],
    ];
    let names = cleaned.map(|[name, _]| name);
    let script = "return import('/people.js').then(({ cleanName }) => arguments[0].map(cleanName))";
    let result = tab.run_with(script, vec![json!(names)]).await;
    assert_eq!(result, json!(cleaned.map(|[_, clean]| clean)));

    // A name of which nothing is visible is none: the page shows the id.
    let mut mallory = Client::join(&server, "names").await;
    until_people(&tab, 2).await;
    let tag = "document.querySelector('#people-list li:nth-child(2) .name-tag').textContent";
    let named = |name: &str| json!({"type": "state", "receiver": "server", "data": {"name": name}});
    mallory.send(named("Mallory")).await;
    tab.until(&format!("{tag} === 'Mallory'")).await;
    mallory.send(named("\u{3164}\u{2060}")).await;
    tab.until(&format!("{tag} === '{}'", &mallory.id[..8]))
        .await;
    let name = tab
        .run("return document.querySelector('#name').value")
        .await;
    rename(&tab, "\u{3164}").await;
    tab.until(&format!("document.querySelector('#name').value === {name}"))
        .await;
    browser.close().await;
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn the_message_log_is_bounded_by_its_text_whether_it_is_visible_or_not() {
    let server = TestServer::start().await;
    let browser = Browser::start().await;
    let tab = browser.open(&format!("http://{}/", server.address)).await;
    tab.run(
        "document.querySelector('#entry').hidden = true;
        document.querySelector('#room').hidden = false;
        return Promise.all([import('/people.js'), import('/wire.js')]).then(([{ People }, { startWire }]) => {
            const room = Object.assign(new EventTarget(), { id: 'me', peers: new Map(), state: 'open', setState() {} });
            const mesh = Object.assign(new EventTarget(), { peers: new Map() });
            startWire(room, new People(room, mesh, 'Me'));
            globalThis.receive = (count, size) => {
                for (let number = 0; number < count; number += 1) {
                    const detail = { direction: 'in', text: `${number} ${'x'.repeat(size)}` };
                    room.dispatchEvent(new CustomEvent('wire', { detail }));
                }
            };
        })",
    )
    .await;
    let texts = "[...document.querySelectorAll('#messages li')].map((item) => item.dataset.text)";
    let last =
        |condition: &str| format!("(() => {{ const texts = {texts}; return {condition}; }})()");
    let bounded = last(
        "texts.at(-1)?.startsWith('99 ') && texts.length > 10 && texts.join('').length <= 2 ** 20",
    );
    tab.run("receive(100, 60_000)").await;
    tab.click("#fold").await;
    tab.until(&bounded).await;
    tab.run("document.querySelector('#clear').click(); receive(100, 60_000)")
        .await;
    tab.until(&bounded).await;
    // The newest message stays, even if it is larger alone.
    tab.run("receive(1, 2_000_000)").await;
    tab.until(&last("texts.length === 1 && texts[0].length > 2_000_000"))
        .await;
    tab.click("#fold").await;
    tab.until("!document.querySelector('#messages').checkVisibility()")
        .await;
    browser.close().await;
}
