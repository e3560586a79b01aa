// File transfer between browsers. Each file has a data channel, labelled `file`: the sender sends a header,
// `{"name", "size"}`; the receiver sends `accept`, or closes; the sender sends the bytes; the receiver sends
// `done`, and the sender closes.

import { element, on } from "./dom.js";

/** @import { Mesh, MeshPeer } from "./anteroom.js" */

/** The size of a message, in bytes. */
const CHUNK_BYTES = 64 * 1024;
/** How much is read from the file at a time, and waits in the channel, in bytes. */
const BLOCK_BYTES = 1024 * 1024;
/** The largest file, in bytes: the browser holds it until it is saved. */
const MAX_FILE = 2 ** 30;
/** The limit of one sender's offers and transfers. */
const MAX_TRANSFERS = 8;
/** How many chunks become a Blob, which the browser can move to disk. */
const BLOB_CHUNKS = 64;
/** How long to wait for the other browser, and for a user's decision, in ms. */
const [IDLE_MS, OFFER_MS] = [60_000, 600_000];
/** How long the browser may read a saved file, in ms. */
const SAVE_MS = 60_000;

/** @param {Mesh} mesh @param {MeshPeer} peer @param {File} file
 * @returns {HTMLElement} shows the progress */
export function sendFile(mesh, peer, file) {
  const channel = peer.pc.createDataChannel("file");
  const line = new Line(file.name, file.size);
  const transfer = new Transfer(mesh, peer, channel, OFFER_MS, (outcome, complete) => line.end(outcome, complete));
  /** @type {"offered" | "sending" | "sent"} */
  let stage = "offered";
  line.button("Cancel", () => transfer.end("cancelled"));
  channel.addEventListener("open", () => {
    channel.send(JSON.stringify({ name: file.name, size: file.size }));
  });
  channel.addEventListener("message", async ({ data }) => {
    if (data === "done" && stage === "sent") return transfer.end("delivered", true);
    if (data !== "accept" || stage !== "offered") return transfer.end("failed: wrong answer");
    stage = "sending";
    line.begin();
    line.button("Cancel", () => transfer.end("cancelled"));
    try {
      await sendBytes(file, channel, (sent) => {
        line.progress(sent);
        transfer.restartTimer(IDLE_MS);
      });
      stage = "sent";
    } catch (/** @type {any} */ error) {
      // A closing channel ends the transfer itself.
      if (channel.readyState === "open") transfer.end(`failed: ${error.message}`);
    }
  }, { signal: transfer.signal });
  return line.item;
}

/** Sends a file no faster than the channel transmits, until it closes.
 * @param {File} file @param {RTCDataChannel} channel @param {(sent: number) => void} progress */
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

/** @param {Mesh} mesh @param {(id: string, item: HTMLElement) => void} show */
export function receiveFiles(mesh, show) {
  /** @type {WeakMap<MeshPeer, number>} */
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

/** @param {Mesh} mesh @param {MeshPeer} peer @param {RTCDataChannel} channel
 * @param {(item: HTMLElement) => void} show @param {() => void} ended */
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
  /** @type {ArrayBuffer[]} */
  const chunks = [];

  const transfer = new Transfer(mesh, peer, channel, IDLE_MS, (outcome) => {
    if (stage !== "complete") line?.end(outcome);
    // Too large an offer counts for good, so that a sender cannot repeat it for ever.
    if (header.size <= MAX_FILE) ended();
  });
  const accept = () => {
    if (channel.readyState !== "open") return;
    stage = "receiving";
    line?.begin();
    line?.button("Cancel", () => transfer.end("cancelled"));
    transfer.restartTimer(IDLE_MS);
    channel.send("accept");
    if (header.size === 0) finish();
  };
  const finish = () => {
    stage = "complete";
    // The browser never opens this type as a part of the page.
    const file = new Blob([...blobs, ...chunks], { type: "application/octet-stream" });
    line?.end("received", true);
    line?.save(file, header.name);
    // The conversation may have removed the line as one of the oldest.
    if (line && !line.item.isConnected) show(line.item);
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
      if (header.size > MAX_FILE) return transfer.end(`too large: the limit is ${formatSize(MAX_FILE)}`);
      transfer.restartTimer(OFFER_MS);
      line.button("Accept", accept);
      line.button("Decline", () => transfer.end("declined"));
    } else if (stage === "receiving" && data.byteLength > 0 && data.byteLength <= header.size - received) {
      received += data.byteLength;
      chunks.push(data);
      if (chunks.length >= BLOB_CHUNKS) blobs.push(new Blob(chunks.splice(0)));
      line?.progress(received);
      transfer.restartTimer(IDLE_MS);
      if (received === header.size) finish();
    } else {
      transfer.end("failed: this is not the offered file");
    }
  }, { signal: transfer.signal });
}

/** @param {unknown} data */
function parseHeader(data) {
  try {
    const { name, size } = JSON.parse(String(data));
    if (typeof name !== "string" || !Number.isSafeInteger(size) || size < 0) return null;
    // A name, not a path, without characters that fake another extension.
    const safeName = name.replace(/[\p{C}\p{Zl}\p{Zp}/\\]+/gu, "_").slice(-120);
    return { name: safeName || "file", size };
  } catch {
    return null;
  }
}

/** The channel of a file. It ends once: by a button, a timeout, its closing, or the connection's, which fires
 * no event at its channels. */
class Transfer {
  #channel;
  #onEnd;
  #lifetime = new AbortController();
  signal = this.#lifetime.signal;
  /** @type {number | undefined} */
  #timer;

  /** @param {Mesh} mesh @param {MeshPeer} peer @param {RTCDataChannel} channel @param {number} timeout
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

  /** @param {number} timeout until the transfer fails, in ms */
  restartTimer(timeout) {
    clearTimeout(this.#timer);
    if (this.signal.aborted) return;
    this.#timer = setTimeout(() => this.end("failed: no progress for too long"), timeout);
  }

  /** @param {string} outcome for display
   * @param {boolean} [complete] */
  end(outcome, complete = false) {
    if (this.signal.aborted) return;
    this.#lifetime.abort();
    clearTimeout(this.#timer);
    this.#channel.close();
    this.#onEnd(outcome, complete);
  }
}

/** A line of the conversation. */
class Line {
  #status = element("em", {}, "offered …");
  #bar;
  #buttons = element("span", { className: "buttons" });

  /** @param {string} name @param {number} bytes */
  constructor(name, bytes) {
    this.#bar = element("progress", { max: bytes || 1, value: 0, hidden: true, ariaLabel: name });
    const title = element("span", { className: "message-text" }, `${name} (${formatSize(bytes)})`);
    this.item = element("div", { className: "file", tabIndex: -1, ariaAtomic: "true" },
      title, this.#bar, this.#status, this.#buttons);
  }

  begin() {
    this.#status.textContent = "in progress …";
    this.#bar.hidden = false;
    this.#clear();
  }

  /** @param {number} bytes */
  progress(bytes) {
    this.#bar.value = bytes;
  }

  /** @param {string} name @param {() => void} onclick */
  button(name, onclick) {
    this.#buttons.append(element("button", { type: "button", dataset: { name }, onclick }, name));
  }

  /** @param {Blob} file @param {string} name */
  save(file, name) {
    this.button("Save", () => {
      const href = URL.createObjectURL(file);
      element("a", { href, download: name }).click();
      setTimeout(() => URL.revokeObjectURL(href), SAVE_MS);
    });
  }

  /** @param {string} outcome @param {boolean} [complete] */
  end(outcome, complete = false) {
    this.#clear();
    this.#bar.hidden = !complete;
    if (complete) this.#bar.value = this.#bar.max;
    this.#status.textContent = outcome;
  }

  /** Removes the buttons, and moves the focus from them to the line. */
  #clear() {
    const focused = this.#buttons.contains(document.activeElement);
    this.#buttons.replaceChildren();
    if (focused) this.item.focus();
  }
}

/** @param {number} bytes */
function formatSize(bytes) {
  if (bytes < 1000) return `${bytes} bytes`;
  if (bytes < 1e6) return `${(bytes / 1e3).toFixed(1)} kB`;
  return bytes < 1e9 ? `${(bytes / 1e6).toFixed(1)} MB` : `${(bytes / 1e9).toFixed(2)} GB`;
}
