// File transfer between browsers. Each file has a data channel, labelled `file`: the sender sends a header,
// `{"name", "size"}`; the receiver sends `accept`; the sender sends the bytes; the receiver sends `done`, and
// the sender closes. Either side may close earlier. It should first send why: one of the texts of `REASONS`.

import { element, keepAtEnd, on } from "./dom.js";

/** @import { Mesh, MeshPeer } from "./anteroom.js" */
/** @import { RoomContext } from "./people.js" */

/** Why the other side ends a transfer early, by the text that it sends, for display before its name.
 * @type {Record<string, string>} */
const REASONS = {
  decline: "Declined by",
  cancel: "Cancelled by",
  large: "Too large for",
  busy: "Not sent: too many files at once for",
};

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
/** How often the text of the progress changes at most, and when the rate is meaningful, in ms. */
const [PROGRESS_MS, RATE_MS] = [250, 1000];
/** The image types that have a preview, by the end of the name: formats without script. */
const IMAGE = /\.(png|jpe?g|gif|webp|avif)$/i;
/** The largest image that has a preview, in bytes and in pixels: decoded, a pixel takes four bytes. */
const [MAX_IMAGE, MAX_PIXELS] = [20e6, 50e6];

/** The transfers under way. @type {Set<Transfer>} */
const underWay = new Set();

/** Whether leaving the page would interrupt a transfer. */
export const isTransferring = () => underWay.size > 0;

/** Makes the browser ask before the page is left.
 * @param {Event} event */
const askBeforeLeaving = (event) => event.preventDefault();

/** @param {RoomContext} context @param {MeshPeer} peer @param {File} file @param {boolean} showPreview
 * @returns {HTMLElement} shows the progress */
export function sendFile(context, peer, file, showPreview) {
  const channel = peer.pc.createDataChannel("file");
  const line = new Line(file.name, file.size);
  const transfer = new Transfer(context, peer, channel, OFFER_MS, (outcome, complete) => line.end(outcome, complete));
  if (showPreview) line.preview(file);
  /** @type {"offered" | "sending" | "sent"} */
  let stage = "offered";
  line.button("Cancel", () => transfer.end("Cancelled", "cancel"));
  channel.addEventListener("open", () => {
    channel.send(JSON.stringify({ name: file.name, size: file.size }));
  });
  channel.addEventListener("message", async ({ data }) => {
    if (transfer.endedByPeer(data)) return;
    if (data === "done" && stage === "sent") return transfer.complete("Delivered");
    if (data !== "accept" || stage !== "offered") return transfer.end("Failed: wrong answer", "cancel");
    stage = "sending";
    transfer.begin();
    line.begin();
    line.button("Cancel", () => transfer.end("Cancelled", "cancel"));
    try {
      await sendBytes(file, channel, (sent) => {
        line.progress(sent);
        transfer.restartTimer(IDLE_MS);
      });
      stage = "sent";
    } catch (/** @type {any} */ error) {
      // A closing channel ends the transfer itself.
      if (channel.readyState === "open") transfer.end(`Failed: ${error.message}`, "cancel");
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
        channel.onbufferedamountlow = channel.onclose = resolve;
      });
    }
    progress(start + block.byteLength - channel.bufferedAmount);
  }
}

/** @param {RoomContext} context @param {(id: string, item: HTMLElement) => void} show */
export function receiveFiles(context, show) {
  const { room, mesh, people } = context;
  /** @type {Map<string, number>} The offers and transfers of each session, which can have one connection after another. */
  const running = new Map();
  mesh.addEventListener("datachannel", ({ detail: { peer, channel } }) => {
    if (channel.label !== "file") return;
    const count = running.get(peer.id) ?? 0;
    if (count >= MAX_TRANSFERS) return refuse(channel);
    running.set(peer.id, count + 1);
    receiveFile(context, peer, channel, (item) => show(peer.id, item), () => {
      const left = running.get(peer.id);
      if (left) running.set(peer.id, left - 1);
    });
  });
  // Neither in the room nor connected: the id does not return.
  const forget = () => {
    for (const id of running.keys()) if (!people.others.includes(id)) running.delete(id);
  };
  room.addEventListener("peerleave", forget);
  mesh.addEventListener("disconnect", forget);
}

/** Closes a channel over the limit. It may not be open yet.
 * @param {RTCDataChannel} channel */
function refuse(channel) {
  if (channel.readyState === "connecting") return on(channel, "open", () => refuse(channel), { once: true });
  if (channel.readyState === "open") channel.send("busy");
  channel.close();
}

/** @param {RoomContext} context @param {MeshPeer} peer @param {RTCDataChannel} channel
 * @param {(item: HTMLElement) => void} show @param {() => void} ended */
function receiveFile(context, peer, channel, show, ended) {
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

  const transfer = new Transfer(context, peer, channel, IDLE_MS, (outcome) => {
    if (stage !== "complete") line?.end(outcome);
    // Too large an offer counts for good, so that a sender cannot repeat it for ever.
    if (header.size <= MAX_FILE) ended();
  });
  const accept = () => {
    if (channel.readyState !== "open") return;
    stage = "receiving";
    transfer.begin();
    line?.begin();
    line?.button("Cancel", () => transfer.end("Cancelled", "cancel"));
    transfer.restartTimer(IDLE_MS);
    transfer.send("accept");
    if (header.size === 0) finish();
  };
  const finish = () => {
    stage = "complete";
    // The browser never opens this type as a part of the page.
    const file = new Blob([...blobs, ...chunks], { type: "application/octet-stream" });
    transfer.finish();
    line?.end("Received", true);
    line?.save(file, header.name);
    line?.preview(file);
    // The conversation may have removed the line as one of the oldest.
    if (line && !line.item.isConnected) show(line.item);
    transfer.send("done");
  };

  channel.addEventListener("message", ({ data }) => {
    if (transfer.endedByPeer(data)) return;
    if (stage === "header") {
      const parsed = parseHeader(data);
      if (!parsed) return transfer.end("", "cancel");
      stage = "offered";
      header = parsed;
      line = new Line(header.name, header.size);
      if (header.size > MAX_FILE) {
        transfer.end(`Too large: the limit is ${formatSize(MAX_FILE)}`, "large");
      } else {
        transfer.restartTimer(OFFER_MS);
        line.button("Accept", accept);
        line.button("Decline", () => transfer.end("Declined", "decline"));
      }
      show(line.item);
    } else if (stage === "receiving" && data.byteLength > 0 && data.byteLength <= header.size - received) {
      received += data.byteLength;
      chunks.push(data);
      if (chunks.length >= BLOB_CHUNKS) blobs.push(new Blob(chunks.splice(0)));
      line?.progress(received);
      transfer.restartTimer(IDLE_MS);
      if (received === header.size) finish();
    } else {
      transfer.end("Failed: this is not the offered file", "cancel");
    }
  }, { signal: transfer.signal });
}

/** @param {unknown} data */
function parseHeader(data) {
  try {
    const { name, size } = JSON.parse(String(data));
    if (typeof name !== "string" || !Number.isSafeInteger(size) || size < 0) return null;
    // A name, not a path, without characters that fake another extension or are invisible.
    const safeName = name.replace(/[\p{C}\p{Zl}\p{Zp}\u115f\u1160\u2800\u3164\uffa0/\\]+/gu, "_").slice(-120);
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
  #peerName;
  #lifetime = new AbortController();
  signal = this.#lifetime.signal;
  /** @type {number | undefined} */
  #timer;

  /** @param {RoomContext} context @param {MeshPeer} peer @param {RTCDataChannel} channel @param {number} timeout
   * @param {(outcome: string, complete: boolean) => void} onEnd */
  constructor({ mesh, people }, peer, channel, timeout, onEnd) {
    this.#channel = channel;
    this.#onEnd = onEnd;
    this.#peerName = () => people.name(peer.id);
    const { signal } = this;
    const lost = () => this.end("Failed: the connection was lost");
    channel.addEventListener("close", lost, { signal });
    mesh.addEventListener("disconnect", ({ detail }) => {
      if (detail.peer === peer) lost();
    }, { signal });
    this.restartTimer(timeout);
  }

  /** Sends a text, unless the channel is closing.
   * @param {string} text */
  send(text) {
    if (this.#channel.readyState === "open") this.#channel.send(text);
  }

  /** @param {number} timeout until the transfer fails, in ms */
  restartTimer(timeout) {
    clearTimeout(this.#timer);
    if (this.signal.aborted) return;
    this.#timer = setTimeout(() => this.end("Failed: no progress for too long", "cancel"), timeout);
  }

  /** Bytes are on their way: leaving the page would interrupt them. */
  begin() {
    underWay.add(this);
    on(window, "beforeunload", askBeforeLeaving);
  }

  /** No more bytes are on their way. */
  finish() {
    underWay.delete(this);
    // Some browsers do not cache a page with this listener.
    if (!isTransferring()) window.removeEventListener("beforeunload", askBeforeLeaving);
  }

  /** Ends the transfer if a message of the other side says so.
   * @param {unknown} data */
  endedByPeer(data) {
    if (typeof data !== "string" || !Object.hasOwn(REASONS, data)) return false;
    this.end(`${REASONS[data]} ${this.#peerName()}`);
    return true;
  }

  /** @param {string} outcome for display */
  complete(outcome) {
    this.end(outcome, "", true);
  }

  /** @param {string} outcome for display
   * @param {string} [reason] for the other side, one of `REASONS`
   * @param {boolean} [complete] */
  end(outcome, reason = "", complete = false) {
    if (this.signal.aborted) return;
    this.#lifetime.abort();
    clearTimeout(this.#timer);
    this.finish();
    if (reason) this.send(reason);
    this.#channel.close();
    this.#onEnd(outcome, complete);
  }
}

/** A preview of an image, `null` if the name is not that of an image, or the file is large.
 * @param {Blob} file @param {string} name */
function imagePreview(file, name) {
  if (!IMAGE.test(name) || file.size > MAX_IMAGE) return null;
  // A browser recognizes these formats by their bytes. It never reads SVG under this type.
  const src = URL.createObjectURL(file.slice(0, file.size, "image/png"));
  const image = element("img", { src, alt: `Preview of ${name}`, hidden: true });
  on(image, "load error", ({ type }) => {
    URL.revokeObjectURL(src);
    if (type === "error" || image.naturalWidth * image.naturalHeight > MAX_PIXELS) return image.remove();
    keepAtEnd(image.closest("[role=log]"), () => (image.hidden = false));
  });
  return image;
}

/** A line of the conversation. */
class Line {
  #status = element("em", {}, "Offered …");
  // Hidden from screen readers: they read the bar, and each change of a line.
  #progress = element("span", { ariaHidden: "true" });
  #began = 0;
  #shown = 0;
  #bar;
  #buttons = element("span", { className: "buttons" });
  #name;

  /** @param {string} name @param {number} bytes */
  constructor(name, bytes) {
    this.#name = name;
    this.#bar = element("progress", { max: bytes || 1, value: 0, hidden: true, ariaLabel: name });
    const title = element("span", { className: "message-text" }, `${name} (${formatSize(bytes)})`);
    this.item = element("div", { className: "file", tabIndex: -1, ariaAtomic: "true" },
      title, this.#bar, this.#status, this.#progress, this.#buttons);
  }

  begin() {
    this.#status.textContent = "";
    this.#began = performance.now();
    this.#bar.hidden = false;
    this.#clear();
  }

  /** @param {number} bytes */
  progress(bytes) {
    this.#bar.value = bytes;
    const now = performance.now();
    if (now - this.#shown < PROGRESS_MS) return;
    this.#shown = now;
    const elapsed = now - this.#began;
    const rate = (bytes / elapsed) * 1000;
    const words = [`${Math.floor((bytes / this.#bar.max) * 100)} %`];
    if (elapsed > RATE_MS) words.push(`${formatSize(rate)}/s`, `${formatTime((this.#bar.max - bytes) / rate)} left`);
    this.#progress.textContent = words.join(", ");
  }

  /** Shows a preview if the file is an image.
   * @param {Blob} file */
  preview(file) {
    const image = imagePreview(file, this.#name);
    if (image) this.#bar.before(image);
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
    this.#progress.textContent = "";
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
  if (bytes < 1000) return `${Math.round(bytes)} bytes`;
  if (bytes < 1e6) return `${(bytes / 1e3).toFixed(1)} kB`;
  return bytes < 1e9 ? `${(bytes / 1e6).toFixed(1)} MB` : `${(bytes / 1e9).toFixed(2)} GB`;
}

/** @param {number} seconds */
function formatTime(seconds) {
  return seconds < 90 ? `${Math.ceil(seconds)} s` : `${Math.ceil(seconds / 60)} min`;
}
