// Files, from browser to browser. Each goes through a data channel of its own, labelled `file`:
// the sender writes a header, `{"name", "size"}`; the receiver answers `accept`, or closes; the
// bytes follow; the receiver says `done`.

import { element, on } from "./dom.js";

/** @import { Mesh, MeshPeer } from "./anteroom.js" */

/** How many bytes one message of the channel has. */
const CHUNK = 64 * 1024;
/** How many bytes are read from the file, and wait in the channel, at a time. */
const AHEAD = 1024 * 1024;
/** The largest file that is taken: it is held by the browser until it is saved. */
const LARGEST = 2 ** 30;
/** How many files of one sender may be under way, or wait to be accepted. */
const AT_ONCE = 8;
/** How long the other side may say nothing, in ms; people may think longer. */
const [SILENCE, THOUGHT] = [60_000, 600_000];
/** How long a saved file is kept for the browser to read, in ms. */
const SAVING = 60_000;

/** Offers a file to somebody.
 * @param {Mesh} mesh
 * @param {MeshPeer} peer
 * @param {File} file
 * @returns {HTMLElement} shows how it goes */
export function sendFile(mesh, peer, file) {
  const channel = peer.pc.createDataChannel("file");
  const line = new Line(file.name, file.size);
  const transfer = new Transfer(mesh, peer, channel, THOUGHT, (why, well) => line.end(why, well));
  /** @type {"offered" | "sending" | "sent"} */
  let stage = "offered";
  line.button("Cancel", () => transfer.end("taken back"));
  channel.addEventListener("open", () => {
    channel.send(JSON.stringify({ name: file.name, size: file.size }));
  });
  channel.addEventListener("message", async ({ data }) => {
    if (data === "done" && stage === "sent") return transfer.end("delivered", true);
    if (data !== "accept" || stage !== "offered") return transfer.end("given up: the answer made no sense");
    stage = "sending";
    line.begin();
    line.button("Cancel", () => transfer.end("taken back"));
    try {
      await pour(file, channel, (sent) => {
        line.progress(sent);
        transfer.expect(SILENCE);
      });
      stage = "sent";
    } catch (/** @type {any} */ error) {
      // A channel that is closing says so itself.
      if (channel.readyState === "open") transfer.end(`not sent: ${error.message}`);
    }
  }, { signal: transfer.signal });
  return line.item;
}

/** Writes a file into a channel, no faster than it is taken, until the channel closes.
 * @param {File} file
 * @param {RTCDataChannel} channel
 * @param {(sent: number) => void} progress */
async function pour(file, channel, progress) {
  channel.bufferedAmountLowThreshold = AHEAD / 2;
  for (let from = 0; from < file.size; from += AHEAD) {
    const block = await file.slice(from, from + AHEAD).arrayBuffer();
    for (let at = 0; at < block.byteLength; at += CHUNK) {
      channel.send(block.slice(at, at + CHUNK));
    }
    while (channel.bufferedAmount > AHEAD / 2 && channel.readyState === "open") {
      await new Promise((resolve) => {
        on(channel, "bufferedamountlow close", resolve, { once: true });
      });
    }
    progress(from + block.byteLength - channel.bufferedAmount);
  }
}

/** Takes the files that others offer, if the user wants them.
 * @param {Mesh} mesh
 * @param {(id: string, item: HTMLElement) => void} show */
export function receiveFiles(mesh, show) {
  /** @type {WeakMap<MeshPeer, number>} */
  const underWay = new WeakMap();
  mesh.addEventListener("datachannel", ({ detail: { peer, channel } }) => {
    if (channel.label !== "file") return;
    const now = underWay.get(peer) ?? 0;
    if (now >= AT_ONCE) return channel.close();
    underWay.set(peer, now + 1);
    receive(mesh, peer, channel, (item) => show(peer.id, item), () => {
      underWay.set(peer, (underWay.get(peer) ?? 1) - 1);
    });
  });
}

/** @param {Mesh} mesh
 * @param {MeshPeer} peer
 * @param {RTCDataChannel} channel
 * @param {(item: HTMLElement) => void} show
 * @param {() => void} over */
function receive(mesh, peer, channel, show, over) {
  channel.binaryType = "arraybuffer";
  /** @type {"header" | "offered" | "coming" | "whole"} */
  let stage = "header";
  let header = { name: "", size: 0 };
  /** @type {Line | null} */
  let line = null;
  let received = 0;
  /** @type {Blob[]} What the browser may put onto the disk. */
  const blocks = [];
  /** @type {ArrayBuffer[]} */
  const chunks = [];

  const transfer = new Transfer(mesh, peer, channel, SILENCE, (why) => {
    if (stage !== "whole") line?.end(why);
    // Who offers what cannot be taken does not do so for ever.
    if (header.size <= LARGEST) over();
  });
  const accept = () => {
    if (channel.readyState !== "open") return;
    stage = "coming";
    line?.begin();
    line?.button("Cancel", () => transfer.end("cancelled"));
    transfer.expect(SILENCE);
    channel.send("accept");
    if (header.size === 0) finish();
  };
  const finish = () => {
    stage = "whole";
    // Never of a type that the browser would open as a part of this page.
    const file = new Blob([...blocks, ...chunks], { type: "application/octet-stream" });
    line?.end("received", true);
    line?.save(file, header.name);
    // Much may have been said in the meantime.
    if (line && !line.item.isConnected) show(line.item);
    // Having heard that, the sender closes.
    channel.send("done");
  };

  channel.addEventListener("message", ({ data }) => {
    if (stage === "header") {
      const read = headerOf(data);
      if (!read) return transfer.end("");
      stage = "offered";
      header = read;
      line = new Line(header.name, header.size);
      show(line.item);
      if (header.size > LARGEST) return transfer.end(`more than ${size(LARGEST)}: too large for a browser`);
      transfer.expect(THOUGHT);
      line.button("Accept", accept);
      line.button("Decline", () => transfer.end("declined"));
    } else if (stage === "coming" && data.byteLength > 0 && data.byteLength <= header.size - received) {
      received += data.byteLength;
      chunks.push(data);
      if (chunks.length >= 64) blocks.push(new Blob(chunks.splice(0)));
      line?.progress(received);
      transfer.expect(SILENCE);
      if (received === header.size) finish();
    } else {
      transfer.end("given up: what came is not what was offered");
    }
  }, { signal: transfer.signal });
}

/** The header that somebody has sent, if it is one.
 * @param {unknown} data */
function headerOf(data) {
  try {
    const { name, size } = JSON.parse(String(data));
    if (typeof name !== "string" || !Number.isSafeInteger(size) || size < 0) return null;
    // A name, not a path; nothing that shows another ending than it has.
    const clean = name.replace(/[\p{C}\p{Zl}\p{Zp}/\\]+/gu, "_").slice(-120);
    return { name: clean || "file", size };
  } catch {
    return null;
  }
}

/** One file's channel, which ends once, whatever ends it: a button, the channel, silence, or the
 * connection, which closes its channels without a word. */
class Transfer {
  #channel;
  #ended;
  #listening = new AbortController();
  /** Aborted when the transfer is over. */
  signal = this.#listening.signal;
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #patience;

  /** @param {Mesh} mesh
   * @param {MeshPeer} peer
   * @param {RTCDataChannel} channel
   * @param {number} patience
   * @param {(why: string, well: boolean) => void} ended */
  constructor(mesh, peer, channel, patience, ended) {
    this.#channel = channel;
    this.#ended = ended;
    const { signal } = this;
    channel.addEventListener("close", () => this.end("declined, or ended, by the other side"), { signal });
    mesh.addEventListener("disconnect", ({ detail }) => {
      if (detail.peer === peer) this.end("interrupted: the connection has gone");
    }, { signal });
    this.expect(patience);
  }

  /** Ends the transfer if nothing happens for a while.
   * @param {number} patience in milliseconds */
  expect(patience) {
    clearTimeout(this.#patience);
    if (this.signal.aborted) return;
    this.#patience = setTimeout(() => this.end("given up: nothing happened for too long"), patience);
  }

  /** @param {string} why
   * @param {boolean} [well] */
  end(why, well = false) {
    if (this.signal.aborted) return;
    this.#listening.abort();
    clearTimeout(this.#patience);
    this.#channel.close();
    this.#ended(why, well);
  }
}

/** A transfer in the conversation. */
class Line {
  #status = element("em", {}, "offered …");
  #bar;
  #buttons = element("span", { className: "buttons" });

  /** @param {string} name
   * @param {number} bytes */
  constructor(name, bytes) {
    this.#bar = element("progress", { max: bytes || 1, value: 0, hidden: true, ariaLabel: name });
    const what = element("span", { className: "message-text" }, `${name} (${size(bytes)})`);
    this.item = element("div", { className: "file", tabIndex: -1, ariaAtomic: "true" },
      what, this.#bar, this.#status, this.#buttons);
  }

  /** Says that the bytes are coming. */
  begin() {
    this.#status.textContent = "under way …";
    this.#bar.hidden = false;
    this.#clear();
  }

  /** @param {number} bytes */
  progress(bytes) {
    this.#bar.value = bytes;
  }

  /** @param {string} name
   * @param {() => void} clicked */
  button(name, clicked) {
    this.#buttons.append(element("button", { type: "button", dataset: { name }, onclick: clicked }, name));
  }

  /** Offers what has come to be saved.
   * @param {Blob} file
   * @param {string} name */
  save(file, name) {
    const clicked = () => {
      const href = URL.createObjectURL(file);
      element("a", { href, download: name }).click();
      setTimeout(() => URL.revokeObjectURL(href), SAVING);
    };
    this.button("Save", clicked);
  }

  /** @param {string} why
   * @param {boolean} [well] whether all has arrived */
  end(why, well = false) {
    this.#clear();
    this.#bar.hidden = !well;
    if (well) this.#bar.value = this.#bar.max;
    this.#status.textContent = why;
  }

  /** Removes the buttons; whoever was at one of them stays at the line. */
  #clear() {
    const focused = this.#buttons.contains(document.activeElement);
    this.#buttons.replaceChildren();
    if (focused) this.item.focus();
  }
}

/** @param {number} bytes */
function size(bytes) {
  if (bytes < 1000) return `${bytes} bytes`;
  if (bytes < 1e6) return `${(bytes / 1e3).toFixed(1)} kB`;
  return bytes < 1e9 ? `${(bytes / 1e6).toFixed(1)} MB` : `${(bytes / 1e9).toFixed(2)} GB`;
}
