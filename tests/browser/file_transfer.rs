//! Files from one browser to another.

use std::time::Duration;

use sha2::{Digest, Sha256};

use super::{driver::Browser, page::until_people};
use crate::support::{TestServer, within_deadline};

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn a_file_of_20_mb_arrives_intact_and_shows_its_progress() {
    let server = TestServer::start().await;
    let browser = Browser::start().await;
    let url = format!("http://{}/?room=files", server.address);
    let sender = browser.open(&url).await;
    let receiver = browser.open(&url).await;
    for tab in [&sender, &receiver] {
        until_people(tab, 2).await;
    }
    let bytes: Vec<u8> = (0..20_000_000u32)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    let sent = browser.folder.join("sent <b>.bin");
    std::fs::write(&sent, &bytes).unwrap();

    // Record every value of the progress bars.
    for tab in [&sender, &receiver] {
        tab.run(
            "globalThis.steps = [];
            const { set, get } = Object.getOwnPropertyDescriptor(HTMLProgressElement.prototype, 'value');
            Object.defineProperty(HTMLProgressElement.prototype, 'value', {
                get,
                set(value) {
                    set.call(this, value);
                    if (this.isConnected && !this.hidden) steps.push(value);
                },
            });",
        )
        .await;
    }
    sender.type_into("#file", sent.to_str().unwrap()).await;
    receiver
        .until("document.querySelector('[data-name=Accept]')")
        .await;
    receiver.click("[data-name=Accept]").await;
    receiver
        .until("document.querySelector('[data-name=Save]')")
        .await;
    sender
        .until("document.querySelector('.file').textContent.includes('Delivered')")
        .await;
    for tab in [&sender, &receiver] {
        let steps: Vec<u64> = serde_json::from_value(tab.run("return steps").await).unwrap();
        assert!(steps.is_sorted(), "progress never decreases");
        let between = steps.iter().filter(|step| (1..20_000_000).contains(*step));
        assert!(between.count() >= 10, "progress is visible: {steps:?}");
        assert_eq!(steps.last(), Some(&20_000_000));
    }

    receiver.click("[data-name=Save]").await;
    let saved = browser.folder.join("sent _b_.bin");
    let mut poll = tokio::time::interval(Duration::from_millis(20));
    let received = within_deadline("the download", async {
        loop {
            poll.tick().await;
            match std::fs::read(&saved) {
                Ok(received) if received.len() == bytes.len() => return received,
                _ => {}
            }
        }
    })
    .await;
    assert_eq!(Sha256::digest(received), Sha256::digest(bytes));

    // The receiver declines a file, and the sender shows it.
    sender.type_into("#file", sent.to_str().unwrap()).await;
    receiver
        .until("document.querySelector('[data-name=Decline]')")
        .await;
    receiver.click("[data-name=Decline]").await;
    sender
        .until("[...document.querySelectorAll('.file')].at(-1).textContent.includes('Declined by ' + document.querySelector('#people-list li:nth-child(2) .name-tag').textContent)")
        .await;

    // A transfer ends when the receiver leaves before its end.
    sender.type_into("#file", sent.to_str().unwrap()).await;
    receiver
        .until("document.querySelectorAll('[data-name=Accept]').length === 1")
        .await;
    receiver.close().await;
    sender
        .until("[...document.querySelectorAll('.file')].at(-1).textContent.includes('Failed: the connection was lost')")
        .await;
    browser.close().await;
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn a_transfer_that_differs_from_its_offer_fails() {
    let server = TestServer::start().await;
    let browser = Browser::start().await;
    let receiver = browser
        .open(&format!("http://{}/?room=files", server.address))
        .await;
    until_people(&receiver, 1).await;
    let sender = browser.open(&format!("http://{}/", server.address)).await;
    sender
        .run(
            "const { join, Mesh } = await import('/anteroom.js');
        globalThis.mesh = new Mesh(join('files'));
        globalThis.closedChannels = 0;
        globalThis.offer = (header, after = []) => {
            const channel = [...mesh.peers.values()][0].pc.createDataChannel('file');
            channel.onopen = () => channel.send(header);
            channel.onclose = () => { closedChannels += 1; };
            channel.onmessage = ({ data }) => {
                if (data === 'accept') for (const bytes of after) channel.send(bytes);
            };
        };",
        )
        .await;
    sender
        .until("[...mesh.peers.values()][0]?.state === 'connected'")
        .await;

    // Too many bytes, an empty message, and text: each transfer fails, and there is no file to
    // save.
    for (number, content) in ["new Uint8Array(11)", "new Uint8Array(0)", "'text'"]
        .iter()
        .enumerate()
    {
        sender
            .run(&format!(
                "offer('{{\"name\":\"x\",\"size\":10}}', [{content}])"
            ))
            .await;
        receiver
            .until("document.querySelector('[data-name=Accept]')")
            .await;
        receiver.click("[data-name=Accept]").await;
        receiver
            .until(&format!(
                "[...document.querySelectorAll('.file')].filter((line) => line.textContent.includes('Failed: this is not the offered file')).length === {}",
                number + 1
            ))
            .await;
    }
    assert_eq!(
        receiver
            .run("return document.querySelectorAll('[data-name=Save]').length")
            .await,
        0
    );

    // Malformed offers are not shown. Of the offers of files that are too large, only the first 8
    // are shown.
    sender.until("closedChannels === 3").await;
    sender.run(
        "for (const header of ['', '[]', '{}', '{\"name\":1,\"size\":1}', '{\"name\":\"x\",\"size\":-1}']) offer(header);",
    )
    .await;
    sender.until("closedChannels === 8").await;
    sender
        .run("for (let i = 0; i < 20; i += 1) offer('{\"name\":\"../huge\",\"size\":1e12}');")
        .await;
    sender.until("closedChannels === 28").await;
    receiver
        .until("document.querySelectorAll('.file').length === 3 + 8")
        .await;
    let lines = receiver
        .run("return [...document.querySelectorAll('.file')].slice(3).map((line) => line.textContent)")
        .await;
    for line in lines.as_array().unwrap() {
        let line = line.as_str().unwrap();
        assert!(
            line.contains(".._huge") && line.contains("Too large"),
            "{line}"
        );
    }
    browser.close().await;
}

/// A PNG image of one pixel, in Base64.
const PIXEL: &str = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==";

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn pasted_images_have_previews_and_pasted_text_is_no_file() {
    let server = TestServer::start().await;
    let browser = Browser::start().await;
    let url = format!("http://{}/?room=paste", server.address);
    let sender = browser.open(&url).await;
    let receiver = browser.open(&url).await;
    for tab in [&sender, &receiver] {
        until_people(tab, 2).await;
    }
    // Pastes, and returns whether the page has handled it.
    sender
        .run(&format!(
            "globalThis.bytes = Uint8Array.from(atob('{PIXEL}'), (char) => char.charCodeAt(0));
            globalThis.paste = (name, bytes, texts) => {{
                const clipboardData = new DataTransfer();
                for (const type of texts) clipboardData.setData(type, 'words');
                if (name) clipboardData.items.add(new File([bytes], name));
                const event = new ClipboardEvent('paste', {{ clipboardData, bubbles: true, cancelable: true }});
                return !document.querySelector('#text').dispatchEvent(event);
            }};"
        ))
        .await;
    for text in [
        "paste('', '', ['text/plain'])",
        "paste('cells.png', bytes, ['text/plain', 'text/html'])",
    ] {
        assert_eq!(sender.run(&format!("return {text}")).await, false);
    }
    let image =
        "[...document.querySelectorAll('.file')].at(-1)?.querySelector('img:not([hidden])')";
    for name in ["image.png", "photo.JPEG"] {
        let script = format!("return paste('{name}', bytes, ['text/html'])");
        assert_eq!(sender.run(&script).await, true);
        sender
            .until(&format!("{image}?.alt === 'Preview of {name}'"))
            .await;
        receiver
            .until("document.querySelector('[data-name=Accept]')")
            .await;
        receiver.click("[data-name=Accept]").await;
        receiver
            .until(&format!("{image}?.alt === 'Preview of {name}'"))
            .await;
        // The URL of a shown preview is revoked.
        let script = format!("return fetch({image}.src).then(() => true, () => false)");
        assert_eq!(receiver.run(&script).await, false);
    }
    // SVG can have scripts, and what is no image has no preview, whatever its name.
    sender
        .run("paste('drawing.svg', '<svg xmlns=\"http://www.w3.org/2000/svg\"/>', []); paste('fake.png', '<svg xmlns=\"http://www.w3.org/2000/svg\"/>', [])")
        .await;
    for _ in 0..2 {
        receiver
            .until("document.querySelector('[data-name=Accept]')")
            .await;
        receiver.click("[data-name=Accept]").await;
    }
    for tab in [&sender, &receiver] {
        tab.until("document.querySelectorAll('.file').length === 4 && [...document.querySelectorAll('.file em')].every((item) => /Delivered|Received/.test(item.textContent)) && document.querySelectorAll('.file img').length === 2")
            .await;
    }
    browser.close_regardless().await;
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn a_file_under_way_is_not_left_without_asking_and_says_who_cancels() {
    let server = TestServer::start().await;
    let browser = Browser::start().await;
    let url = format!("http://{}/?room=leave", server.address);
    let receiver = browser.open(&url).await;
    until_people(&receiver, 1).await;
    let sender = browser.open(&format!("http://{}/", server.address)).await;
    // A sender that offers a file and sends nothing of it.
    sender
        .run(
            "const { join, Mesh } = await import('/anteroom.js');
            globalThis.mesh = new Mesh(join('leave'));
            globalThis.received = [];
            globalThis.offer = () => {
                globalThis.channel = [...mesh.peers.values()][0].pc.createDataChannel('file');
                channel.onopen = () => channel.send('{\"name\":\"x\",\"size\":10}');
                channel.onmessage = ({ data }) => received.push(data);
            };",
        )
        .await;
    sender
        .until("[...mesh.peers.values()][0]?.state === 'connected'")
        .await;
    let asks = "return !dispatchEvent(new Event('beforeunload', { cancelable: true }))";
    sender.run("offer()").await;
    receiver
        .until("document.querySelector('[data-name=Accept]')")
        .await;
    assert_eq!(receiver.run(asks).await, false, "an offer does not hold");
    receiver.click("[data-name=Accept]").await;
    sender.until("received.at(-1) === 'accept'").await;
    assert_eq!(receiver.run(asks).await, true);
    receiver
        .run("globalThis.confirm = () => { globalThis.asked = true; return false; }")
        .await;
    receiver.click("#leave").await;
    receiver
        .until("asked && document.querySelector('#state').dataset.state === 'open'")
        .await;
    sender.run("channel.send('cancel')").await;
    receiver
        .until("document.querySelector('.file em').textContent.startsWith('Cancelled by ')")
        .await;
    assert_eq!(receiver.run(asks).await, false);

    for (button, word) in [("Decline", "decline"), ("Cancel", "cancel")] {
        sender.run("offer()").await;
        receiver
            .until("document.querySelector('[data-name=Accept]')")
            .await;
        if button == "Cancel" {
            receiver.click("[data-name=Accept]").await;
        }
        receiver.click(&format!("[data-name={button}]")).await;
        sender.until(&format!("received.at(-1) === '{word}'")).await;
    }
    browser.close().await;
}

/// Defines `channel(receiver)` in the page, a data channel that calls the receiver for each text, and
/// throws as a browser's does while it closes; and `start`, which starts to receive files.
const FAKE_CHANNEL: &str = "
    globalThis.channel = (receive = () => {}) => Object.assign(new EventTarget(), {
        label: 'file',
        readyState: 'open',
        send(text) {
            if (this.readyState !== 'open') throw new DOMException('closing', 'InvalidStateError');
            receive.call(this, text);
        },
        close() {
            this.readyState = 'closed';
            this.dispatchEvent(new Event('close'));
        },
        say(data) {
            this.dispatchEvent(new MessageEvent('message', { data }));
        },
    });
    globalThis.room = Object.assign(new EventTarget(), { id: 'me', peers: new Map(), state: 'open', setState() {} });
    globalThis.mesh = Object.assign(new EventTarget(), { peers: new Map() });
    globalThis.emit = (target, type, detail) => target.dispatchEvent(new CustomEvent(type, { detail }));
    globalThis.start = async () => {
        const [{ People }, files] = await Promise.all([import('/people.js'), import('/files.js')]);
        globalThis.context = { room, mesh, people: new People(room, mesh, 'Me') };
        globalThis.items = [];
        files.receiveFiles(context, (id, item) => { items.push(item); document.body.append(item); });
        return files;
    };";

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn a_new_connection_of_a_session_has_no_further_offers() {
    let server = TestServer::start().await;
    let browser = Browser::start().await;
    let tab = browser.open(&format!("http://{}/", server.address)).await;
    tab.run(FAKE_CHANNEL).await;
    let answers = tab
        .run(
            "return start().then(() => {
                const answers = [];
                const offer = (peer) => {
                    const fake = channel((text) => answers.push(text));
                    emit(mesh, 'datachannel', { peer, channel: fake });
                    fake.say('{\"name\":\"x\",\"size\":1e12}');
                };
                const connect = () => {
                    const peer = { id: 'one' };
                    mesh.peers.set('one', peer);
                    return peer;
                };
                const disconnect = (peer) => {
                    mesh.peers.delete('one');
                    emit(mesh, 'disconnect', { peer });
                };
                room.peers = new Map([['one', { id: 'one' }]]);
                let peer = connect();
                for (let count = 0; count < 9; count += 1) offer(peer);
                disconnect(peer);
                peer = connect();
                offer(peer);
                // The session has left, its connection has ended, and another one has its id.
                room.peers = new Map();
                emit(room, 'peerleave', { id: 'one' });
                offer(peer);
                disconnect(peer);
                offer(connect());
                return answers;
            })",
        )
        .await;
    let mut expected = vec!["large"; 8];
    expected.extend(["busy", "busy", "busy", "large"]);
    assert_eq!(answers, serde_json::json!(expected));
    browser.close().await;
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn a_channel_that_closes_with_the_last_byte_has_delivered_the_file() {
    let server = TestServer::start().await;
    let browser = Browser::start().await;
    let tab = browser.open(&format!("http://{}/", server.address)).await;
    tab.run(FAKE_CHANNEL).await;
    tab.run(
        "return start().then(() => {
            const closing = channel(function () { this.readyState = 'closing'; });
            emit(mesh, 'datachannel', { peer: { id: 'one' }, channel: closing });
            closing.say('{\"name\":\"x\",\"size\":3}');
            items[0].querySelector('[data-name=Accept]').click();
            closing.say(new ArrayBuffer(3));
        })",
    )
    .await;
    assert_eq!(tab.text(".file em").await, "Received");
    assert_eq!(tab.text("[data-name=Save]").await, "Save");
    browser.close().await;
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn a_sender_adds_no_listener_for_each_block() {
    let server = TestServer::start().await;
    let browser = Browser::start().await;
    let tab = browser.open(&format!("http://{}/", server.address)).await;
    tab.run(FAKE_CHANNEL).await;
    let listeners = tab
        .run(
            "return start().then((files) => new Promise((resolve) => {
                let listeners = 0;
                const slow = channel(function (text) {
                    if (typeof text === 'string') return;
                    this.bufferedAmount += text.byteLength;
                    setTimeout(() => {
                        this.bufferedAmount = 0;
                        this.dispatchEvent(new Event('bufferedamountlow'));
                        this.onbufferedamountlow?.();
                    });
                });
                const add = slow.addEventListener;
                slow.addEventListener = (type, ...rest) => {
                    if (type === 'close') listeners += 1;
                    add.call(slow, type, ...rest);
                };
                slow.bufferedAmount = 0;
                const peer = { id: 'one', pc: { createDataChannel: () => slow } };
                const line = files.sendFile(context, peer, new File([new Uint8Array(4e6)], 'x'), false);
                slow.say('accept');
                const progress = line.querySelector('progress');
                const check = () => progress.value === 4e6 ? resolve(listeners) : setTimeout(check, 20);
                check();
            }))",
        )
        .await;
    assert_eq!(listeners, 1);
    browser.close().await;
}
