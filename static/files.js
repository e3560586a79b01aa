// File transfer from browser to browser. Each file has its own data channel, labelled `file`:
//
// 1. The sender sends a header, `{"name", "size"}`.
// 2. The receiver sends `accept`, or closes the channel.
// 3. The sender sends the bytes.
// 4. The receiver sends `done`, and the sender closes the channel.

import { element, on } from "./dom.js";

/** @import { Mesh, MeshPeer } from "./anteroom.js" */

/** The size of one message of the channel, in bytes. */
const CHUNK_BYTES = 64 * 1024;
/** How much is read from the file at a time, in bytes. The next block is read when half of this is left in the
 * channel's buffer. */
const BLOCK_BYTES = 1024 * 1024;
/** The largest file that can be received, in bytes: the browser holds it until it is saved. */
const MAX_FILE_BYTES = 2 ** 30;
/** How many files of one sender may be offered or in transfer at a time. */
const MAX_TRANSFERS = 8;
/** How many received chunks are kept in memory, before they become a Blob, which the browser can move to disk. */
const CHUNKS_PER_BLOB = 64;
/** The longest file name, in characters. */
const MAX_NAME_LENGTH = 120;
/** How long a transfer waits for the other browser, in ms. */
const IDLE_TIMEOUT_MS = 60_000;
/** How long an offer waits for the user's decision, in ms. */
const OFFER_TIMEOUT_MS = 600_000;
/** How long the URL of a saved file stays valid for the browser to read, in ms. */
const SAVE_TIMEOUT_MS = 60_000;

/** Offers a file to a peer.
 * @param {Mesh} mesh
 * @param {MeshPeer} peer
 * @param {File} file
 * @returns {HTMLElement} a line that shows the progress */
export function sendFile(mesh, peer, file) {
  const channel = peer.pc.createDataChannel("file");
  const line = new Line(file.name, file.size);
  const transfer = new Transfer(mesh, peer, channel, OFFER_TIMEOUT_MS, (outcome, complete) => line.end(outcome, complete));
  /** @type {"offered" | "sending" | "sent"} */
  let stage = "offered";
  line.button("Cancel", () => transfer.end("cancelled"));
  channel.addEventListener("open", () => {
    channel.send(JSON.stringify({ name: file.name, size: file.size }));
  });
  channel.addEventListener("message", async ({ data }) => {
    if (data === "done" && stage === "sent") return transfer.end("delivered", true);
    if (data !== "accept" || stage !== "offered") return transfer.end("failed: the other side sent an unexpected answer");
    stage = "sending";
    line.begin();
    line.button("Cancel", () => transfer.end("cancelled"));
    try {
      await sendBytes(file, channel, (sent) => {
        line.progress(sent);
        transfer.restartTimer(IDLE_TIMEOUT_MS);
      });
      stage = "sent";
    } catch (/** @type {any} */ error) {
      // If the channel is closing, its `close` event ends the transfer.
      if (channel.readyState === "open") transfer.end(`failed: ${error.message}`);
    }
  }, { signal: transfer.signal });
  return line.item;
}

/** Sends the bytes of a file, no faster than the channel transmits them, until the channel closes.
 * @param {File} file
 * @param {RTCDataChannel} channel
 * @param {(sent: number) => void} progress */
async function sendBytes(file, channel, progress) {
  channel.bufferedAmountLowThreshold = BLOCK_BYTES / 2;
  for (let start = 0; start < file.size; start += BLOCK_BYTES) {
    const block = await file.slice(start, start + BLOCK_BYTES).arrayBuffer();
    for (let offset = 0; offset < block.byteLength; offset += CHUNK_BYTES) {
      channel.send(block.slice(offset, offset + CHUNK_BYTES));
    }
    while (channel.bufferedAmount > BLOCK_BYTES / 2 && channel.readyState === "open") {
      await new Promise((resolve) => {
        on(channel, "bufferedamountlow close", resolve, { once: true });
      });
    }
    progress(start + block.byteLength - channel.bufferedAmount);
  }
}

/** Receives the files that peers offer and the user accepts.
 * @param {Mesh} mesh
 * @param {(id: string, item: HTMLElement) => void} show shows the line of a file from session `id` */
export function receiveFiles(mesh, show) {
  /** @type {WeakMap<MeshPeer, number>} How many transfers of each peer are running. */
  const running = new WeakMap();
  mesh.addEventListener("datachannel", ({ detail: { peer, channel } }) => {
    if (channel.label !== "file") return;
    const count = running.get(peer) ?? 0;
    if (count >= MAX_TRANSFERS) return channel.close();
    running.set(peer, count + 1);
    receiveFile(mesh, peer, channel, (item) => show(peer.id, item), () => {
      running.set(peer, (running.get(peer) ?? 1) - 1);
    });
  });
}

/** Receives one file.
 * @param {Mesh} mesh
 * @param {MeshPeer} peer
 * @param {RTCDataChannel} channel
 * @param {(item: HTMLElement) => void} show
 * @param {() => void} ended is called when the transfer no longer counts against `MAX_TRANSFERS` */
function receiveFile(mesh, peer, channel, show, ended) {
  channel.binaryType = "arraybuffer";
  /** @type {"header" | "offered" | "receiving" | "complete"} */
  let stage = "header";
  let header = { name: "", size: 0 };
  /** @type {Line | null} */
  let line = null;
  let received = 0;
  /** @type {Blob[]} The browser can move these to disk. */
  const blobs = [];
  /** @type {ArrayBuffer[]} The bytes after those. */
  const chunks = [];

  const transfer = new Transfer(mesh, peer, channel, IDLE_TIMEOUT_MS, (outcome) => {
    if (stage !== "complete") line?.end(outcome);
    // An offer of a file that is too large counts for good: a sender cannot fill the conversation with them.
    if (header.size <= MAX_FILE_BYTES) ended();
  });
  const accept = () => {
    if (channel.readyState !== "open") return;
    stage = "receiving";
    line?.begin();
    line?.button("Cancel", () => transfer.end("cancelled"));
    transfer.restartTimer(IDLE_TIMEOUT_MS);
    channel.send("accept");
    if (header.size === 0) finish();
  };
  const finish = () => {
    stage = "complete";
    // With this type the browser saves the file, and never opens it as a part of this page.
    const file = new Blob([...blobs, ...chunks], { type: "application/octet-stream" });
    line?.end("received", true);
    line?.save(file, header.name);
    // The conversation may have removed the line since, as one of the oldest.
    if (line && !line.item.isConnected) show(line.item);
    // The sender then closes the channel.
    channel.send("done");
  };

  channel.addEventListener("message", ({ data }) => {
    if (stage === "header") {
      const parsed = parseHeader(data);
      if (!parsed) return transfer.end("");
      stage = "offered";
      header = parsed;
      line = new Line(header.name, header.size);
      show(line.item);
      if (header.size > MAX_FILE_BYTES) return transfer.end(`too large: a browser can receive ${formatSize(MAX_FILE_BYTES)}`);
      transfer.restartTimer(OFFER_TIMEOUT_MS);
      line.button("Accept", accept);
      line.button("Decline", () => transfer.end("declined"));
    } else if (stage === "receiving" && data.byteLength > 0 && data.byteLength <= header.size - received) {
      received += data.byteLength;
      chunks.push(data);
      if (chunks.length >= CHUNKS_PER_BLOB) blobs.push(new Blob(chunks.splice(0)));
      line?.progress(received);
      transfer.restartTimer(IDLE_TIMEOUT_MS);
      if (received === header.size) finish();
    } else {
      transfer.end("failed: the sender sent something other than the offered file");
    }
  }, { signal: transfer.signal });
}

/** The header in a received message, or `null` if it is none.
 * @param {unknown} data */
function parseHeader(data) {
  try {
    const { name, size } = JSON.parse(String(data));
    if (typeof name !== "string" || !Number.isSafeInteger(size) || size < 0) return null;
    // The name must not be a path, nor contain characters that display another extension than it has.
    const safeName = name.replace(/[\p{C}\p{Zl}\p{Zp}/\\]+/gu, "_").slice(-MAX_NAME_LENGTH);
    return { name: safeName || "file", size };
  } catch {
    return null;
  }
}

/** The data channel of one file. A transfer ends exactly once: by a button, by a timeout, when the channel
 * closes, or when the connection closes, which fires no event at its channels. */
class Transfer {
  #channel;
  #onEnd;
  #lifetime = new AbortController();
  /** Aborted when the transfer ends. */
  signal = this.#lifetime.signal;
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #timer;

  /** @param {Mesh} mesh
   * @param {MeshPeer} peer
   * @param {RTCDataChannel} channel
   * @param {number} timeout in ms
   * @param {(outcome: string, complete: boolean) => void} onEnd */
  constructor(mesh, peer, channel, timeout, onEnd) {
    this.#channel = channel;
    this.#onEnd = onEnd;
    const { signal } = this;
    channel.addEventListener("close", () => this.end("declined or cancelled by the other side"), { signal });
    mesh.addEventListener("disconnect", ({ detail }) => {
      if (detail.peer === peer) this.end("failed: the connection was lost");
    }, { signal });
    this.restartTimer(timeout);
  }

  /** Ends the transfer after a time, unless this is called again before.
   * @param {number} timeout in ms */
  restartTimer(timeout) {
    clearTimeout(this.#timer);
    if (this.signal.aborted) return;
    this.#timer = setTimeout(() => this.end("failed: no progress for too long"), timeout);
  }

  /** Ends the transfer.
   * @param {string} outcome for display
   * @param {boolean} [complete] whether the whole file has arrived */
  end(outcome, complete = false) {
    if (this.signal.aborted) return;
    this.#lifetime.abort();
    clearTimeout(this.#timer);
    this.#channel.close();
    this.#onEnd(outcome, complete);
  }
}

/** A transfer as a line of the conversation. */
class Line {
  #status = element("em", {}, "offered …");
  #bar;
  #buttons = element("span", { className: "buttons" });

  /** @param {string} name
   * @param {number} bytes */
  constructor(name, bytes) {
    this.#bar = element("progress", { max: bytes || 1, value: 0, hidden: true, ariaLabel: name });
    const title = element("span", { className: "message-text" }, `${name} (${formatSize(bytes)})`);
    this.item = element("div", { className: "file", tabIndex: -1, ariaAtomic: "true" },
      title, this.#bar, this.#status, this.#buttons);
  }

  /** Shows the progress bar in place of the buttons. */
  begin() {
    this.#status.textContent = "in progress …";
    this.#bar.hidden = false;
    this.#removeButtons();
  }

  /** @param {number} bytes so far */
  progress(bytes) {
    this.#bar.value = bytes;
  }

  /** @param {string} name
   * @param {() => void} onclick */
  button(name, onclick) {
    this.#buttons.append(element("button", { type: "button", dataset: { name }, onclick }, name));
  }

  /** Adds a button that saves the received file.
   * @param {Blob} file
   * @param {string} name */
  save(file, name) {
    this.button("Save", () => {
      const href = URL.createObjectURL(file);
      element("a", { href, download: name }).click();
      setTimeout(() => URL.revokeObjectURL(href), SAVE_TIMEOUT_MS);
    });
  }

  /** Shows the outcome in place of the buttons.
   * @param {string} outcome
   * @param {boolean} [complete] whether the whole file has arrived */
  end(outcome, complete = false) {
    this.#removeButtons();
    this.#bar.hidden = !complete;
    if (complete) this.#bar.value = this.#bar.max;
    this.#status.textContent = outcome;
  }

  /** Removes the buttons. If one of them has the focus, the line gets it, so that the keyboard stays here. */
  #removeButtons() {
    const focused = this.#buttons.contains(document.activeElement);
    this.#buttons.replaceChildren();
    if (focused) this.item.focus();
  }
}

/** A size for display, with a unit.
 * @param {number} bytes */
function formatSize(bytes) {
  if (bytes < 1000) return `${bytes} bytes`;
  if (bytes < 1e6) return `${(bytes / 1e3).toFixed(1)} kB`;
  return bytes < 1e9 ? `${(bytes / 1e6).toFixed(1)} MB` : `${(bytes / 1e9).toFixed(2)} GB`;
}
