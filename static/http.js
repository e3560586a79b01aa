/* A connection to an anteroom server without a WebSocket, for networks that let none through. `anteroom.js` loads it when
 * it needs it. */

/** How long the first event of a stream may take, in ms: beyond, something on the way holds answers back. */
const FIRST_EVENT_MS = 4000;
/** How long an answer of long polling waits for messages, in seconds, and how much longer it may take, in ms. */
const POLL_SECONDS = 25;
const LATE_POLL_MS = 10_000;
/** The most characters that one request sends, unless a single message has more. */
const POST_LENGTH = 256 << 10;
/** How often a request is sent whose answer does not come, and the pause between, in ms. */
const POST_ATTEMPTS = 3;
const POST_PAUSE_MS = 1000;

// The close codes, as for a WebSocket (RFC 6455, section 7.4).
const CLOSE_FAILED = 1006;
const CLOSE_LOST = 4000;

/** The close codes that stand for a status, where a server refuses a session.
 * @type {Record<number, number>} */
const REFUSALS = { 401: 4401, 403: 4403, 429: 4429 };

/** Whether something on the way holds answers back. */
let isHeldBack = false;

/** A connection over plain HTTP: events, or answers of long polling, bring messages, and POST requests take them. */
export class HttpTransport {
  /** How messages come.
   * @type {"events" | "polling"} */
  kind = isHeldBack ? "polling" : "events";
  /** What the server has not taken in, in characters. */
  bufferedAmount = 0;
  #events;
  #url;
  #token;
  #received;
  #abort = new AbortController();
  #isOpen = false;
  #isClosed = false;
  /** @type {string[]} Messages that are not taken in, a line each. */
  #lines = [];
  /** How many messages are taken in. */
  #sent = 0;
  #isPosting = false;
  /** Not settled while the server must not learn what has come.
   * @type {Promise<void> | null} */
  #held = null;
  #release = () => {};

  /** @param {string} url as for a WebSocket
   * @param {{ opened(): void, received(data: string | ArrayBuffer): void, closed(code: number, reason: string): void }}
   *   events */
  constructor(url, events) {
    this.#events = events;
    this.#url = new URL(url.replace(/^ws/, "http"));
    const query = this.#url.searchParams;
    this.#token = query.get("resume");
    this.#received = Number(query.get("received"));
    this.#run().catch((error) => this.#end(CLOSE_FAILED, String(error)));
  }

  /** @param {string | Uint8Array} data */
  send(data) {
    // Line breaks in JSON are white space.
    const line = typeof data === "string" ? data.replace(/[\r\n]/g, " ") : `"${base64(data)}"`;
    this.#lines.push(line);
    this.bufferedAmount += line.length;
    this.#post();
  }

  /** While it holds, the server does not learn what has come: another connection has told it before.
   * @param {boolean} holds */
  hold(holds) {
    this.#release();
    this.#held = holds ? new Promise((resolve) => (this.#release = resolve)) : null;
  }

  /** Ends the connection, and the session unless the code is 4000.
   * @param {number} code */
  close(code) {
    if (this.#isClosed) return;
    if (code !== CLOSE_LOST && this.#token) {
      // The page may be going away.
      fetch(this.#request({}), { method: "DELETE", keepalive: true }).catch(() => {});
    }
    this.#isClosed = true;
    this.#abort.abort();
  }

  /** Tells that the connection has ended.
   * @param {number} code @param {string} reason */
  #end(code, reason) {
    if (this.#isClosed) return;
    this.#isClosed = true;
    this.#abort.abort();
    this.#events.closed(code, reason);
  }

  /** The URL of a request. The token of a user is needed to join and to resume only.
   * @param {Record<string, string | number>} query @param {boolean} [isUser] */
  #request(query, isUser = false) {
    const url = new URL(this.#url);
    const user = url.searchParams.get("token");
    url.search = "";
    if (isUser && user) url.searchParams.set("token", user);
    if (this.#token) url.searchParams.set("resume", this.#token);
    for (const [name, value] of Object.entries(query)) url.searchParams.set(name, String(value));
    return url;
  }

  async #run() {
    // The answer to this comes at once, also where answers are held back.
    if (!this.#token) await this.#poll(0);
    if (!isHeldBack) await this.#stream();
    this.kind = "polling";
    while (!this.#isClosed) {
      await this.#held;
      await this.#poll(POLL_SECONDS);
    }
  }

  /** @param {string} accept @param {Record<string, number>} query @param {AbortSignal} signal */
  async #get(accept, query, signal) {
    const response = await fetch(this.#request(query, true), { headers: { accept }, cache: "no-store", signal });
    if (response.ok) return response;
    const reason = (await response.text()).trim();
    const seconds = Number(response.headers.get("retry-after"));
    const code = REFUSALS[response.status] ?? CLOSE_FAILED;
    this.#end(code, seconds ? `${reason} (retry in ${seconds * 1000} ms)` : reason);
    return null;
  }

  /** @param {number} wait */
  async #poll(wait) {
    const signal = AbortSignal.any([this.#abort.signal, AbortSignal.timeout(wait * 1000 + LATE_POLL_MS)]);
    const response = await this.#get("application/json", { received: this.#received, wait }, signal);
    if (!response || this.#isClosed) return;
    const { session, messages, count, close } = await response.json();
    if (session) this.#begin(session);
    for (const message of messages) this.#message(message, JSON.stringify(message));
    this.#received = count;
    if (close) this.#end(close.code, close.reason);
  }

  /** Reads events until they end, or come too late. */
  async #stream() {
    const held = new AbortController();
    const timer = setTimeout(() => held.abort(), FIRST_EVENT_MS);
    const signal = AbortSignal.any([this.#abort.signal, held.signal]);
    try {
      const response = await this.#get("text/event-stream", { received: this.#received }, signal);
      if (!response?.body) return;
      const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
      let text = "";
      for (;;) {
        const { done, value } = await reader.read();
        if (done || this.#isClosed) return this.#end(CLOSE_FAILED, "the stream has ended");
        clearTimeout(timer);
        text += value;
        const events = text.split("\n\n");
        text = events.pop() ?? "";
        for (const event of events) this.#event(event);
      }
    } catch (error) {
      if (!held.signal.aborted) throw error;
      isHeldBack = true;
    } finally {
      clearTimeout(timer);
    }
  }

  /** @param {string} text */
  #event(text) {
    let kind = "";
    const data = [];
    for (const line of text.split("\n")) {
      const [, field, value] = /^(\w+): ?(.*)$/.exec(line) ?? [];
      if (field === "event") kind = value;
      else if (field === "data") data.push(value);
      else if (field === "id") this.#received = Number(value);
    }
    if (!data.length || this.#isClosed) return;
    const json = data.join("\n");
    const content = JSON.parse(json);
    if (kind === "session") this.#begin(content);
    else if (kind === "close") this.#end(content.code, content.reason);
    else if (!kind) this.#message(content, json);
  }

  /** @param {{ token: string }} session */
  #begin({ token }) {
    this.#token = token;
    this.#sent = 0;
    this.#open();
  }

  #open() {
    if (this.#isOpen) return;
    this.#isOpen = true;
    this.#events.opened();
  }

  /** @param {any} message @param {string} text */
  #message(message, text) {
    if (message?.type === "resumed" && message.sender === "server") {
      // The session goes on; only the first of these is of another connection.
      if (this.#isOpen) return;
      this.#sent = message.data.received;
      this.#open();
    }
    if (this.#isClosed) return;
    this.#events.received(typeof message === "string" ? bytes(message) : text);
  }

  /** Sends what waits, one request after the other. */
  async #post() {
    if (this.#isPosting) return;
    this.#isPosting = true;
    // What is sent in the same turn goes together.
    await null;
    for (let attempt = 1; this.#lines.length && !this.#isClosed; attempt += 1) {
      let count = 0;
      for (let length = 0; count < this.#lines.length && (!count || length < POST_LENGTH); count += 1) {
        length += this.#lines[count].length;
      }
      const url = this.#request({ sent: this.#sent });
      if (!this.#held) url.searchParams.set("received", String(this.#received));
      const body = this.#lines.slice(0, count).join("\n");
      try {
        const response = await fetch(url, { method: "POST", body, signal: this.#abort.signal });
        if (!response.ok && response.status !== 429 && response.status < 500) {
          return this.#end(CLOSE_FAILED, await response.text());
        }
        if (response.ok) {
          const taken = (await response.json()).received - this.#sent;
          for (const line of this.#lines.splice(0, Math.max(0, taken))) this.bufferedAmount -= line.length;
          this.#sent += Math.max(0, taken);
          if (taken > 0) attempt = 0;
          continue;
        }
      } catch {
        // The answer may be lost: the server takes nothing in twice.
      }
      if (attempt >= POST_ATTEMPTS) return this.#end(CLOSE_FAILED, "messages cannot be sent");
      await new Promise((resolve) => setTimeout(resolve, POST_PAUSE_MS));
    }
    this.#isPosting = false;
  }
}

/** @param {Uint8Array} data */
function base64(data) {
  let text = "";
  for (const byte of data) text += String.fromCharCode(byte);
  return btoa(text);
}

/** @param {string} text in base64 */
function bytes(text) {
  return Uint8Array.from(atob(text), (char) => char.charCodeAt(0)).buffer;
}
