// Files, from browser to browser. Each goes through a data channel of its own, labelled `file`:
// the sender writes a header, `{"name", "size"}`; the receiver answers `accept`, or closes; the
// bytes follow; the receiver says `done`.

import { element } from "./dom.js";

/** @import { Mesh, MeshPeer } from "./anteroom.js" */

/** How many bytes one message of the channel has. */
const CHUNK = 64 * 1024;
/** How many bytes are read from the file, and wait in the channel, at a time. */
const AHEAD = 1024 * 1024;
/** The largest file that is taken: it is held by the browser until it is saved. */
const LARGEST = 2 ** 30;
/** How many files of one sender may be under way, or wait to be accepted. */
const AT_ONCE = 8;
/** How long a header may take to come, in milliseconds. */
const HEADER_TIME = 30_000;

/**
 * Offers a file to somebody.
 * @param {Mesh} mesh
 * @param {MeshPeer} peer
 * @param {File} file
 * @returns {HTMLElement} shows how it goes
 */
export function sendFile(mesh, peer, file) {
  const channel = peer.pc.createDataChannel("file");
  const line = new Line(`offers ${file.name} (${size(file.size)})`, file.size);
  line.button("Cancel", () => end("taken back"));
  const end = connected(mesh, peer, channel, (why) => line.end(why));
  channel.addEventListener("open", () => {
    channel.send(JSON.stringify({ name: file.name, size: file.size }));
  });
  channel.addEventListener("message", async ({ data }) => {
    if (data === "done") return end("delivered");
    if (data !== "accept") return;
    line.say(`sends ${file.name} (${size(file.size)})`);
    try {
      await pour(file, channel, (sent) => line.progress(sent));
    } catch (/** @type {any} */ error) {
      end(`not sent: ${error.message}`);
    }
  });
  return line.item;
}

/**
 * Writes a file into a channel, no faster than it is taken.
 * @param {File} file
 * @param {RTCDataChannel} channel
 * @param {(sent: number) => void} progress
 */
async function pour(file, channel, progress) {
  channel.bufferedAmountLowThreshold = AHEAD / 2;
  for (let from = 0; from < file.size; from += AHEAD) {
    const block = await file.slice(from, from + AHEAD).arrayBuffer();
    for (let at = 0; at < block.byteLength; at += CHUNK) {
      channel.send(block.slice(at, at + CHUNK));
    }
    while (channel.bufferedAmount > AHEAD / 2 && channel.readyState === "open") {
      await new Promise((resolve) => {
        for (const type of ["bufferedamountlow", "close"]) {
          channel.addEventListener(type, resolve, { once: true });
        }
      });
    }
    if (channel.readyState !== "open") return;
    progress(from + block.byteLength - channel.bufferedAmount);
  }
}

/**
 * Takes the files that others offer, if the user wants them.
 * @param {Mesh} mesh
 * @param {(id: string, item: HTMLElement) => void} show
 */
export function receiveFiles(mesh, show) {
  /** @type {Map<MeshPeer, number>} */
  const underWay = new Map();
  mesh.addEventListener("datachannel", ({ detail: { peer, channel } }) => {
    if (channel.label !== "file") return;
    const others = underWay.get(peer) ?? 0;
    if (others >= AT_ONCE) return channel.close();
    underWay.set(peer, others + 1);
    receive(mesh, peer, channel, show, () => underWay.set(peer, (underWay.get(peer) ?? 1) - 1));
  });
  mesh.addEventListener("disconnect", ({ detail: { peer } }) => underWay.delete(peer));
}

/**
 * @param {Mesh} mesh
 * @param {MeshPeer} peer
 * @param {RTCDataChannel} channel
 * @param {(id: string, item: HTMLElement) => void} show
 * @param {() => void} over
 */
function receive(mesh, peer, channel, show, over) {
  channel.binaryType = "arraybuffer";
  /** @type {"header" | "offered" | "coming" | "over"} */
  let stage = "header";
  let header = { name: "", size: 0 };
  /** @type {Line | null} */
  let line = null;
  let received = 0;
  /** @type {Blob[]} What the browser may put onto the disk. */
  const blocks = [];
  /** @type {ArrayBuffer[]} */
  const chunks = [];

  const end = connected(mesh, peer, channel, (why) => {
    clearTimeout(timer);
    if (stage !== "over") line?.end(why);
    stage = "over";
    over();
  });
  const timer = setTimeout(() => end("no header came"), HEADER_TIME);

  const accept = () => {
    stage = "coming";
    line?.say(`sends ${header.name} (${size(header.size)})`);
    channel.send("accept");
    if (header.size === 0) finish();
  };
  const finish = () => {
    stage = "over";
    // Never of a type that the browser would open as a part of this page.
    const file = new Blob([...blocks, ...chunks], { type: "application/octet-stream" });
    line?.end("received");
    line?.link(file, header.name);
    // Having heard that, the sender closes.
    channel.send("done");
  };

  channel.addEventListener("message", ({ data }) => {
    if (stage === "header") {
      const read = headerOf(data);
      if (!read) return end("");
      clearTimeout(timer);
      stage = "offered";
      header = read;
      line = new Line(`offers ${header.name} (${size(header.size)})`, header.size);
      show(peer.id, line.item);
      if (header.size > LARGEST) return end(`more than ${size(LARGEST)}: too large for a browser`);
      line.button("Accept", accept);
      line.button("Decline", () => end("declined"));
    } else if (stage === "coming" && data.byteLength <= header.size - received) {
      received += data.byteLength;
      chunks.push(data);
      if (chunks.length >= 64) blocks.push(new Blob(chunks.splice(0)));
      line?.progress(received);
      if (received === header.size) finish();
    } else {
      end("given up: what came is not what was offered");
    }
  });
}

/**
 * The header that somebody has sent, if it is one.
 * @param {unknown} data
 */
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

/**
 * Ends a transfer once, whatever ends it: the returned function, the channel, or the connection,
 * which closes its channels without a word.
 * @param {Mesh} mesh
 * @param {MeshPeer} peer
 * @param {RTCDataChannel} channel
 * @param {(why: string) => void} ended
 */
function connected(mesh, peer, channel, ended) {
  const listening = new AbortController();
  const { signal } = listening;
  /** @param {string} why */
  const end = (why) => {
    if (signal.aborted) return;
    listening.abort();
    channel.close();
    ended(why);
  };
  channel.addEventListener("close", () => end("ended by the other side"), { signal });
  mesh.addEventListener("disconnect", ({ detail }) => {
    if (detail.peer === peer) end("interrupted: the connection has gone");
  }, { signal });
  return end;
}

/** A transfer in the conversation. */
class Line {
  #text = element("span", { className: "words" });
  #bar;
  #buttons = element("span", { className: "buttons" });

  /**
   * @param {string} text
   * @param {number} total bytes
   */
  constructor(text, total) {
    this.#text.textContent = text;
    this.#bar = element("progress", { max: total || 1, value: 0, hidden: true, ariaLabel: text });
    this.item = element("div", { className: "file" }, this.#text, this.#bar, this.#buttons);
  }

  /** @param {string} text */
  say(text) {
    this.#text.textContent = text;
    this.#bar.hidden = false;
    this.#bar.ariaLabel = text;
    this.#buttons.querySelector("[data-name=Accept]")?.remove();
  }

  /** @param {number} bytes */
  progress(bytes) {
    this.#bar.value = bytes;
  }

  /**
   * @param {string} name
   * @param {() => void} clicked
   */
  button(name, clicked) {
    this.#buttons.append(element("button", { type: "button", dataset: { name }, onclick: clicked }, name));
  }

  /** Offers what has come to be saved, as long as the line is there.
   * @param {Blob} file
   * @param {string} name */
  link(file, name) {
    const href = URL.createObjectURL(file);
    this.item.append(element("a", { href, download: name, className: "button" }, `Save ${name}`));
    new MutationObserver((_, observer) => {
      if (this.item.isConnected) return;
      observer.disconnect();
      URL.revokeObjectURL(href);
    }).observe(/** @type {Node} */ (this.item.parentNode), { childList: true });
  }

  /** @param {string} why */
  end(why) {
    this.#buttons.remove();
    this.#bar.hidden = why !== "received" && why !== "delivered";
    if (!this.#bar.hidden) this.#bar.value = this.#bar.max;
    this.item.append(element("em", {}, ` ${why}`));
  }
}

/** @param {number} bytes */
function size(bytes) {
  if (bytes < 1000) return `${bytes} bytes`;
  if (bytes < 1e6) return `${(bytes / 1e3).toFixed(1)} kB`;
  return bytes < 1e9 ? `${(bytes / 1e6).toFixed(1)} MB` : `${(bytes / 1e9).toFixed(2)} GB`;
}
