// @ts-self-types="./anteroom.d.ts"
// The client of an anteroom server, for browsers and other runtimes with WebSocket. It has no dependencies:
// import it from a server, or copy this one file.
//
// 1. Room         a session in a room
// 2. Mesh         a WebRTC connection to every peer of a room
// 3. Negotiation  the signals and tracks of one connection (private)
// 4. Relay        the channel of a connection that may go through the room (private)
// 5. Check        whether and how this browser can connect

// ---- 1. Room ----

/** Delays before reconnecting, in ms: the first, which doubles with each attempt, the longest, and the longest
 * that the server may ask for. */
const [FIRST_RETRY_MS, MAX_RETRY_MS, MAX_ASKED_MS] = [500, 30_000, 3_600_000];
/** While the session can be resumed, a delay or an attempt takes at most this share of the time that is left:
 * attempts come closer together towards the end of the window. */
const WINDOW_SHARE = 1 / 3;
/** An attempt has at least this long, in ms, because a distant server needs some round trips. */
const MIN_ATTEMPT_MS = 2000;
/** A connection open for this long, in ms, resets the delay. */
const STABLE_AFTER_MS = 10_000;
/** How long a room does without a WebSocket before it tries one again, in ms: at first, and at most. */
const [FIRST_PROBE_MS, MAX_PROBE_MS] = [15_000, 600_000];
/** How long a WebSocket that is tried may take, in ms: nothing is polled meanwhile. */
const PROBE_MS = 2000;
/** How long an overdue pong is accepted, in ms: a frozen page runs its timers before it reads messages. */
const LATE_PONG_MS = 50;
/** The limit of queued and unacknowledged messages, and of messages before the roster, in bytes. */
const MAX_QUEUE_BYTES = 1 << 20;
/** After so many bytes without a receipt the server is asked for one, or the queue would fill. */
const CONFIRM_BYTES = 1 << 15;
/** The length of a session id at the beginning of a binary message, in bytes, and its form as text. */
const ID_BYTES = 16;
const SESSION_ID = /^(?![0-]+$)[\da-f]{8}(?:-[\da-f]{4}){3}-[\da-f]{12}$/;
/** How much may be sent at once under the server's rates, and how long to send nothing after a message was over
 * the rate of a server that drops such messages, in ms. */
const [BURST_MS, RATE_LIMITED_MS] = [1000, 2000];

/** Close codes (RFC 6455, section 7.4): left, not allowed, restarting, and refused because of the token, the
 * permission, a rate, or a full room. `CLOSE_LOST` keeps the session resumable: a browser cannot drop a
 * connection without a Close frame. */
const [CLOSE_NORMAL, CLOSE_FAILED, CLOSE_NOT_ALLOWED, CLOSE_RESTART] = [1000, 1006, 1008, 1012];
const CLOSE_LOST = 4000;
const [REFUSED_TOKEN, REFUSED_PERMISSION, REFUSED_RATE, REFUSED_FULL] = [4401, 4403, 4429, 4503];
/** The server's close reasons that the client acts on. */
const RESUMED = /^\{"type":"resumed","sender":"server"/;
const [TAKEN_OVER, TOKEN_REJECTED, RETRY_DELAY] = [/^resumed/, /^the token/, /retry in (\d+) ms/];

/** Another session in the room: its id, the public data of its token or `null`, whether it joined after this
 * session, and its state or `null`. By convention, the session that joined first makes the first offer.
 * @template [State=unknown]
 * @typedef {{ readonly id: string, readonly data: unknown, readonly newcomer: boolean,
 *   readonly state: State | null }} Peer */

/** A message from another session, or from the application behind the server (`"server"`). `Messages` are the
 * types of `data` by the message's `type`, for the compiler: what a session sends is not checked.
 * @template {Record<string, any>} [Messages=Record<string, unknown>]
 * @typedef {{ [Type in keyof Messages & string]:
 *   { type: Type, sender: string, receiver: string, data: Messages[Type] } }[keyof Messages & string]} Message */

/** A message to all that was sent earlier, with its number in the room, which rises with gaps, the time at which the
 * server received it, and the public data of its sender's token or `null`. The sender may have left.
 * @template {Record<string, any>} [Messages=Record<string, unknown>]
 * @typedef {Message<Messages> & { number: number, time: Date, from: unknown }} HistoryMessage */

/** A part of a room's history: its messages, oldest first, and whether there are older ones.
 * @template {Record<string, any>} [Messages=Record<string, unknown>]
 * @typedef {{ messages: HistoryMessage<Messages>[], more: boolean }} HistoryPage */

/** `connecting` at first, `open`, `reconnecting` after a failed attempt or a lost connection, `closed` for good.
 * @typedef {"connecting" | "open" | "reconnecting" | "closed"} RoomState */

/** The new state. `resumed` is whether the old session continues; if not, the id is new. `code` and `reason`
 * are the Close frame's (RFC 6455, section 7.1.5), or 1006 and what has failed. `delay` is the time until the
 * next attempt, in ms: `Infinity` while the browser keeps the page frozen.
 * @typedef {{ state: "connecting" } | { state: "open", resumed: boolean }
 *   | { state: "reconnecting", code: number, reason: string, delay: number }
 *   | { state: "closed", code: number, reason: string }} StateChange */

/** A message as sent or received, for debugging. A binary message has no `text`, but its `bytes`, and `id`: the
 * receiver as in `sendBytes`, or the sender.
 * @typedef {{ direction: "in" | "out", text: string, id?: string, bytes?: Uint8Array<ArrayBuffer> }} WireMessage */

/** Bytes from another session, in a buffer of their own.
 * @typedef {{ sender: string, bytes: Uint8Array<ArrayBuffer> }} BytesMessage */

/** A message of this session: text, or the bytes of a binary message with its receiver.
 * @typedef {{ ref?: number, data: string | Uint8Array<ArrayBuffer>, bytes: number, toAll?: boolean,
 *   state?: any }} Outgoing */
/** @typedef {ReturnType<typeof setTimeout> | undefined} Timer */

/** Any JSON, by default `null`. Aborting `signal` withdraws a message that waits.
 * @template Data
 * @typedef {[(null | undefined) & Data] extends [never] ? [data: Data, options?: { signal?: AbortSignal }]
 *   : [data?: Data, options?: { signal?: AbortSignal }]} Payload */

/** The server's receipt: how many sessions a message was delivered to.
 * @typedef {{ receivers: number }} Receipt */

/** The events of a `Room`, with their `detail`.
 * @template {Record<string, any>} [Messages=Record<string, unknown>]
 * @template [State=unknown]
 * @typedef {object} RoomEvents
 * @property {StateChange} statechange
 * @property {Peer<State>} peerjoin a peer is there when the room opens, or joins later
 * @property {Peer<State>} peerstate the state of a peer has changed
 * @property {Peer<State>} peerleave a peer left, is missing after a reconnection, or the room is closed
 * @property {Message<Messages>} message
 * @property {BytesMessage} bytes
 * @property {RoomError} error an error that belongs to no promise
 * @property {WireMessage} wire */

/** @typedef {object} JoinOptions
 * @property {string | URL} [url] the server's address, with `http` or `ws`; required unless that server has
 *   served this module
 * @property {string | (() => string | Promise<string>)} [token] the JSON Web Token that grants access, or a
 *   function that returns the current one before each attempt, once more after the server rejected the last
 * @property {number} [idleTimeout] how long the server may be silent, in ms, before it is pinged
 * @property {number} [timeout] how long it may take to answer, in ms, before the room reconnects
 * @property {WebSocketConstructor} [WebSocket] for runtimes that have none, such as `ws` in Node.js 20
 * @property {boolean} [fallback] whether to do without a WebSocket where the network lets none through; `true` unless
 *   given */

/** What the room needs of a WebSocket.
 * @typedef {{ binaryType: any, readonly bufferedAmount: number, send(message: string | Uint8Array<ArrayBuffer>): void,
 *   close(code?: number, reason?: string): void,
 *   addEventListener(type: any, listener: (event: any) => void): void }} Socket */
/** @typedef {new (url: string, protocol: string) => Socket} WebSocketConstructor */

/** An EventTarget with typed events.
 * @template Events
 * @typedef {Omit<EventTarget, ListenerMethods> & Record<ListenerMethods, <Type extends keyof Events>(
 *   type: Type, listener: Listener<Events[Type]>, options?: boolean | AddEventListenerOptions) => void>
 * } TypedTarget */
/** @typedef {"addEventListener" | "removeEventListener"} ListenerMethods */
const TypedEventTarget = /** @type {new <Events>() => TypedTarget<Events>} */ (EventTarget);

/** @template Detail
 * @typedef {((event: CustomEvent<Detail>) => void)
 *   | { handleEvent(event: CustomEvent<Detail>): void } | null} Listener */

/** The first two lines come from the server, the last from this module. After `connection_lost` it is unknown
 * whether the message has arrived.
 * @typedef {"bad_message" | "unknown_receiver" | "empty_room" | "unknown_request" | "not_allowed"
 *   | "no_history" | "history_failed"
 *   | "closed" | "connection_lost" | "message_too_large" | "not_open" | "queue_full"} ErrorCode */

/** Why a message or request failed. */
export class RoomError extends Error {
  /** @param {ErrorCode} code @param {string} message */
  constructor(code, message, /** @type {ErrorOptions} */ options = {}) {
    super(message, options);
    this.name = "RoomError";
    /** @readonly */
    this.code = code;
  }
}

/** Joins a room. The room connects, and reconnects when the connection is lost, until `leave()` or until the
 * server refuses it for good.
 * @template {Record<string, any>} [Messages=Record<string, unknown>] the types of `data` by type of message,
 *   as in `join<{ chat: string, cursor: { x: number, y: number } }>("tea")`
 * @template [State=unknown] the type of a session's state
 * @param {string} room its name, 1 to 128 bytes of UTF-8 without control characters
 * @param {JoinOptions} [options]
 * @returns {Room<Messages, State>}
 * @throws {TypeError} if the name or the address is not valid, or there is no WebSocket */
export function join(room, options) {
  return new Room(room, options);
}

/** A room, as one session sees it. Made by `join`.
 * @template {Record<string, any>} [Messages=Record<string, unknown>]
 * @template [State=unknown]
 * @extends {TypedEventTarget<RoomEvents<Messages, State>>} */
export class Room extends TypedEventTarget {
  #url;
  #accessToken;
  /** @type {string | undefined} The token of the session. */
  #token;
  #idleTimeout;
  #timeout;
  #WebSocket;
  #fallback;

  /** @type {RoomState} */
  #state = "connecting";
  /** @type {string | null} */
  #id = null;
  /** @type {Map<string, Peer<any>>} */
  #peers = new Map();
  /** @type {ReadonlyMap<string, Peer<State>> | null} What `peers` has returned since the last change. */
  #snapshot = null;
  /** @type {RTCIceServer[]} */
  #iceServers = [];
  /** @type {number | null} */
  #historyMessages = null;
  #maxBytes = Infinity;
  /** @type {{ resolve(room: any): void, reject(reason: unknown): void }} Settles `opened`. */
  #opening = { resolve() {}, reject() {} };

  /** @type {Connection | null} The connection or the attempt. Earlier ones are ignored. */
  #connection = null;
  /** Whether a WebSocket has brought a message, and whether the next attempt goes without one. */
  #socketWorks = false;
  #viaHttp = false;
  /** @type {Connection | null} A WebSocket that is tried beside a connection without one. */
  #probe = null;
  /** @type {Timer} For the next of these, and how long until then, in ms. */
  #probeTimer;
  #probeDelay = FIRST_PROBE_MS;
  /** When a server that has refused the session allows the next attempt. */
  #notBefore = 0;
  /** Failed attempts, and refusals by the token, since the room was last open. */
  #attempts = 0;
  #refusals = 0;
  #openedAt = Infinity;
  /** The browser has frozen the page, or put it into the back/forward cache. */
  #frozen = false;
  /** @type {Timer} For the connection. */
  #timer;
  #lifetime = new AbortController();

  /** @type {string | null} `null` if there is no session to resume. */
  #resumeToken = null;
  /** How long the server keeps a lost session, in ms, and until when it keeps this one. */
  #window = 0;
  #keptUntil = 0;
  /** How many messages have come in this session. */
  #received = 0;
  /** @type {{ messages: (Message | BytesMessage)[], newcomers: Set<string>, bytes: number } | null} What
   * has arrived before the roster of a new session. */
  #beforeRoster = null;
  /** @type {HistoryMessage<Messages>[]} What has arrived of a page of the history. */
  #pageMessages = [];
  /** @type {HistoryPage<Messages>} The page that has arrived last. */
  #page = { messages: [], more: false };

  #lastRef = 0;
  /** @type {Map<number, { resolve(receipt: Receipt | Promise<Receipt>): void, reject(reason: unknown): void }>} */
  #receipts = new Map();
  /** @type {Outgoing[]} First what is sent and not acknowledged, then what waits. */
  #outgoing = [];
  #outgoingBytes = 0;
  /** How many of those are sent. */
  #sent = 0;
  /** How much was sent after the last message with a receipt, in bytes. */
  #unconfirmed = 0;
  /** @type {Outgoing[]} What has set the state: the last message with a receipt, and those without. */
  #states = [];
  /** How many messages before those the server has received in this session. */
  #acked = 0;
  /** False until the listeners of `statechange` to `open` have run. */
  #canSend = false;
  /** @type {{ messages: number, bytes: number }} The server's rates, per second. */
  #rates = { messages: Infinity, bytes: Infinity };
  /** When the rates have recovered from all that is sent. */
  #paidAt = 0;
  /** @type {Timer} For the rates. */
  #paceTimer;

  /** @param {string} name @param {JoinOptions} [options] */
  constructor(name, options = {}) {
    super();
    const { url, token, idleTimeout = 25_000, timeout = 10_000, WebSocket = globalThis.WebSocket, fallback = true } = options;
    this.#url = roomUrl(name, url ?? moduleServer());
    if (!WebSocket) throw new TypeError("this runtime has no WebSocket: give one, as in { WebSocket }");
    this.#WebSocket = WebSocket;
    this.#fallback = fallback;
    this.#accessToken = token;
    this.#idleTimeout = idleTimeout;
    this.#timeout = timeout;
    /** Resolves with the room when it is open for the first time. Rejects with a `RoomError` if it closes before;
     * its `cause` has the `code` and `reason` of the Close frame. @type {Promise<this>} @readonly */
    this.opened = new Promise((resolve, reject) => (this.#opening = { resolve, reject }));
    this.opened.catch(() => {});
    this.#connect();
    this.#watchPage();
  }

  /** The session's id, `null` until the room is open. A resumed session keeps it. Otherwise, for the peers,
   * this session has left and a new one has joined. */
  get id() {
    return this.#id;
  }

  /** The others by id, longest-joined first. A new map after each change, which precedes its event.
   * @returns {ReadonlyMap<string, Peer<State>>} */
  get peers() {
    return (this.#snapshot ??= new Map(this.#peers));
  }

  /** The server's ICE servers, for `RTCPeerConnection`. */
  get iceServers() {
    return this.#iceServers;
  }

  /** How many messages the room keeps for `history`. `null` if it keeps none, and until the room is open.
   * @returns {number | null} */
  get historyMessages() {
    return this.#historyMessages;
  }

  /** The most bytes that a message to the server may have, `Infinity` until the room is open. */
  get messageBytes() {
    return this.#maxBytes;
  }

  get state() {
    return this.#state;
  }

  /** What messages come over: a WebSocket, or where the network lets none through, server-sent events or answers of long
   * polling. `null` without a connection.
   * @returns {"websocket" | "events" | "polling" | null} */
  get transport() {
    return this.#connection?.isOpen ? (this.#connection.transport?.kind ?? null) : null;
  }

  /** Sends a message. Without a connection, it waits for one; over the server's rates, it waits for its turn.
   * The promise may be ignored: its rejection is never unhandled. The server's own answers are not messages: the
   * promise of `send("server", "ping")` resolves when the answer is there.
   * @template {string} Receiver
   * @template {Receiver extends "server" ? string : keyof Messages & string} Type
   * @param {Receiver} receiver a session id, `"all"` or `"server"`
   * @param {Type} type 1 to 64 bytes, chosen by the application
   * @param {Payload<Receiver extends "server" ? unknown : Messages[Type]>} payload
   * @returns {Promise<Receipt>} rejects with a `RoomError`, with a `TypeError` if the data is not JSON, or
   *   with the signal's reason */
  send(receiver, type, ...payload) {
    const [data, { signal } = {}] = /** @type {Payload<unknown>} */ (payload);
    const ref = ++this.#lastRef;
    const withdraw = () => {
      const index = this.#outgoing.findIndex((message) => message.ref === ref);
      if (index >= this.#sent) this.#remove(index)?.reject(signal?.reason);
    };
    const receipt = new Promise((resolve, reject) => {
      signal?.throwIfAborted();
      const text = JSON.stringify({ type, receiver, data, ref });
      this.#checkOpen();
      const toAll = receiver === "all" || (receiver === "server" && type === "state");
      const message = { ref, data: text, bytes: byteLength(text), toAll };
      this.#checkQueue(message.bytes);
      this.#receipts.set(ref, { resolve, reject });
      signal?.addEventListener("abort", withdraw);
      this.#enqueue(this.#outgoing.length, message);
      this.#flush();
    });
    receipt.catch(() => {}).then(() => signal?.removeEventListener("abort", withdraw));
    if (receiver === "server" && type === "token") {
      receipt.then(() => {
        this.#token = String(data);
        if (typeof this.#accessToken === "string") this.#accessToken = this.#token;
      }, () => {});
    }
    return receipt;
  }

  /** Sends a message to everyone else. Rejects with `empty_room` if there is nobody.
   * @template {keyof Messages & string} Type
   * @param {Type} type @param {Payload<Messages[Type]>} payload
   * @returns {Promise<Receipt>} */
  broadcast(type, ...payload) {
    return this.send("all", type, ...payload);
  }

  /** Sends a message to all other sessions of the user whom their tokens name.
   * @template {keyof Messages & string} Type
   * @param {string} name @param {Type} type @param {Payload<Messages[Type]>} payload
   * @returns {Promise<Receipt>} */
  sendToUser(name, type, ...payload) {
    return this.send(`user:${name}`, type, ...payload);
  }

  /** Sets the session's state, which its peers see in `peers`. The room sets it again in a new session. Of the
   * states that wait to be sent, only the last is: its receipt counts for all.
   * @param {State | null} state any JSON, `null` for none
   * @returns {Promise<Receipt>} as of `send` */
  setState(state) {
    const ref = this.#lastRef + 1;
    const receipt = this.send("server", "state", state);
    const message = this.#outgoing.find((one) => one.ref === ref);
    if (!message) return receipt;
    const waiting = this.#outgoing.findIndex((one) => one === this.#states.at(-1));
    if (waiting >= this.#sent) {
      this.#states.pop();
      this.#remove(waiting)?.resolve(receipt);
    }
    this.#states.push(Object.assign(message, { state }));
    receipt.then(() => this.#states.splice(0, this.#states.indexOf(message)), () => {
      this.#states = this.#states.filter((one) => one !== message);
    });
    return receipt;
  }

  /** The last state that `setState` has set and the server has not refused, or `null`.
   * @returns {State | null} */
  get ownState() {
    return this.#states.at(-1)?.state ?? null;
  }

  /** Reads what was sent to all before this session joined, in a room that keeps it. The events `message` bring what
   * others have sent since: together they are everything, and nothing twice. If the room becomes a new session, its
   * history has the messages of the session before, too.
   *
   * Await the return value for the last page, or iterate over it for that page and those before it, newest first.
   * @param {object} [options]
   * @param {number} [options.last] how many messages a page has at most, by default 50
   * @param {number} [options.before] leaves out the message with this number and all after it
   * @returns {Promise<HistoryPage<Messages>> & AsyncIterable<HistoryPage<Messages>>} rejects as `send` does, with
   *   `no_history` if the room keeps no messages, and with `history_failed` if the server cannot read them now */
  history({ last, before } = {}) {
    const ref = this.#lastRef + 1;
    const page = /** @type {Promise<any>} */ (this.send("server", "history", { last, before }));
    const receipt = this.#receipts.get(ref);
    // The page arrives before the receipt.
    const resolve = () => receipt?.resolve(/** @type {any} */ (this.#page));
    if (receipt) this.#receipts.set(ref, { ...receipt, resolve });
    const next = (/** @type {number} */ number) => this.history({ last, before: number });
    async function* pages() {
      for (let current = await page; current.messages.length > 0; current = await next(current.messages[0].number)) {
        yield current;
        if (!current.more) return;
      }
    }
    return Object.assign(page, { [Symbol.asyncIterator]: pages });
  }

  /** Sends bytes for which JSON is too slow, such as positions many times a second. They wait and are kept as messages
   * are, in order with them, but have no receipt: if they reach nobody, the event `error` says so.
   * @param {string} receiver a session id, or `"all"` for everyone else
   * @param {ArrayBuffer | ArrayBufferView} bytes at most `limits.messageBytes` of the server, less 16. They are copied
   * @throws {RoomError} if the room is closed, the bytes are too many, or the queue is full
   * @throws {TypeError} if the receiver is no session id, or the bytes are none */
  sendBytes(receiver, bytes) {
    const toAll = receiver === "all";
    if (!toAll && !SESSION_ID.test(receiver)) throw new TypeError(`give a session id or "all", not ${receiver}`);
    const payload = toBytes(bytes);
    this.#checkOpen();
    const message = new Uint8Array(ID_BYTES + payload.length);
    if (!toAll) {
      const digits = receiver.replaceAll("-", "");
      for (let i = 0; i < ID_BYTES; i += 1) message[i] = parseInt(digits.substr(2 * i, 2), 16);
    }
    message.set(payload, ID_BYTES);
    this.#checkQueue(message.length);
    this.#enqueue(this.#outgoing.length, { data: message, bytes: message.length, toAll });
    this.#flush();
  }

  /** How much waits to be sent, in bytes: for a connection, for the rates, or in the browser. What can be left out, as
   * all but the last of several positions, need not be sent while this is more than zero. */
  get bufferedAmount() {
    const waiting = this.#outgoing.slice(this.#sent).reduce((sum, { bytes }) => sum + bytes, 0);
    return waiting + (this.#connection?.transport?.bufferedAmount ?? 0);
  }

  /** Sends a text unchanged, for debugging. The event `wire` shows the answer.
   * @param {string} text
   * @throws {RoomError} if the room is not open, the text too large, or the queue full */
  sendRaw(text) {
    if (this.#state !== "open") {
      throw new RoomError("not_open", "the room is not open: try again later");
    }
    const bytes = byteLength(text);
    this.#checkQueue(bytes);
    this.#enqueue(this.#outgoing.length, { data: text, bytes });
    this.#flush();
  }

  /** Leaves the room for good. A session that waits to be resumed is resumed once more, to end it: otherwise
   * the others would see it until the server gives it up. */
  leave() {
    if (this.#state === "closed") return;
    // A connection that is open has taken the session up already.
    const isKept = this.#state === "reconnecting" && !this.#connection?.isOpen && this.#keptFor() > 0;
    this.#connection?.transport?.close(CLOSE_NORMAL);
    this.#close(CLOSE_NORMAL, "left");
    if (isKept) this.#connect();
  }

  // Connecting

  async #connect() {
    this.#endProbe();
    const connection = (this.#connection = new Connection(this.#viaHttp));
    const limit = Math.max(MIN_ATTEMPT_MS, this.#windowShare());
    this.#startTimer(Math.min(limit, this.#timeout), () => {
      // A token may be what has not come in time.
      if (connection.transport) this.#chooseWay();
      this.#drop("no answer in time");
    });
    try {
      // The caller has time to listen, or to leave: React's strict mode joins, leaves and joins again.
      await null;
      await this.#start(connection);
    } catch (error) {
      if (connection === this.#connection) this.#connectionLost(CLOSE_FAILED, `cannot connect: ${error}`);
    }
  }

  /** Starts a connection, which resumes the session if there is one.
   * @param {Connection} connection the room's, or a WebSocket that is tried beside it */
  async #start(connection) {
    const isWanted = () => connection === this.#connection || connection === this.#probe;
    if (!isWanted()) return;
    const url = new URL(this.#url);
    const token = await (typeof this.#accessToken === "function" ? this.#accessToken() : this.#accessToken);
    if (!isWanted()) return;
    this.#token = token;
    const told = this.#received;
    if (this.#resumeToken) url.search = `resume=${this.#resumeToken}&received=${told}`;
    if (token) url.searchParams.append("token", token);
    /** How many more messages come again, because they have come over the connection before, too. */
    let twice = 0;
    /** @type {ConstructorParameters<typeof Transport>[2]} */
    const events = {
      opened: () => {
        if (!isWanted()) return;
        connection.isOpen = true;
        if (this.#state === "closed") return this.#endConnection(CLOSE_NORMAL, "left");
        if (!this.#resumeToken) this.#startSession();
      },
      received: (data) => {
        if (connection === this.#probe) {
          // Another server may answer, which does not know the session.
          if (!RESUMED.test(String(data))) return this.#probeFailed(false);
          this.#probe = null;
          clearTimeout(this.#probeTimer);
          this.#connection?.transport?.close(CLOSE_LOST);
          this.#connection = connection;
          this.#viaHttp = false;
          this.#canSend = false;
          twice = this.#received - told;
        } else if (connection !== this.#connection || twice-- > 0) return;
        if (!connection.viaHttp) this.#socketWorks = true;
        this.#receive(data);
      },
      closed: (code, reason) => {
        if (connection === this.#probe) return this.#probeFailed(connection.isOpen && code < REFUSED_TOKEN);
        if (connection !== this.#connection) return;
        // A WebSocket that is tried may have taken the session over already.
        if (this.#probe && (this.#probe.isOpen || TAKEN_OVER.test(reason))) connection.isOpen = false;
        else this.#attemptFailed(code, reason);
      },
    };
    connection.transport = connection.viaHttp
      ? new HttpTransport(url.href, events, () => this.#token)
      : new Transport(this.#WebSocket, url.href, events);
  }

  /** Tries the other way at once if an attempt has failed as no server refuses one.
   * @param {number} code @param {string} reason */
  #attemptFailed(code, reason) {
    if (!this.#connection?.isOpen && code === CLOSE_FAILED && this.#state !== "closed") {
      this.#chooseWay();
      if (this.#viaHttp) return this.#connect();
    }
    this.#connectionLost(code, reason);
  }

  /** Lets the next attempt go without a WebSocket if this one has not worked, and with one after that. */
  #chooseWay() {
    const isHopeless = !this.#socketWorks || this.#attempts > 1;
    this.#viaHttp = this.#fallback && isHopeless && !this.#viaHttp;
  }

  /** Tries a WebSocket beside a connection without one, and goes on with it once it has the session.
   * @param {number} delay in ms */
  #scheduleProbe(delay) {
    if (this.#probe) return;
    clearTimeout(this.#probeTimer);
    this.#probeTimer = setTimeout(() => {
      if (this.#state !== "open" || !this.#resumeToken || !this.#connection?.viaHttp) return;
      const probe = (this.#probe = new Connection(false));
      this.#hold(true);
      this.#probeTimer = setTimeout(() => this.#probeFailed(probe.isOpen), PROBE_MS);
      this.#start(probe).catch(() => probe === this.#probe && this.#probeFailed(false));
    }, delay);
  }

  /** @param {boolean} mayBeTaken whether the server may have given the session to the WebSocket all the same */
  #probeFailed(mayBeTaken) {
    this.#endProbe();
    this.#hold(false);
    this.#probeDelay = Math.min(2 * this.#probeDelay, MAX_PROBE_MS);
    this.#scheduleProbe(this.#probeDelay);
    if (mayBeTaken || !this.#connection?.isOpen) this.#drop("no answer in time");
  }

  /** Gives up on a WebSocket that is tried. */
  #endProbe() {
    clearTimeout(this.#probeTimer);
    this.#probe?.transport?.close(CLOSE_LOST);
    this.#probe = null;
  }

  /** Until the server has given the session to a WebSocket that is tried, it must keep what comes.
   * @param {boolean} isHeld */
  #hold(isHeld) {
    const transport = this.#connection?.transport;
    if (transport instanceof HttpTransport) transport.isHeld = isHeld;
  }

  /** @param {number} delay @param {() => void} callback */
  #startTimer(delay, callback) {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(callback, delay);
  }

  #ping() {
    this.#startTimer(this.#timeout, () => {
      this.#startTimer(LATE_PONG_MS, () => this.#drop("no pong in time"));
    });
    this.#askReceipt();
  }

  /** No promise waits for the receipt: what has arrived need not be kept. */
  #askReceipt() {
    const ref = ++this.#lastRef;
    this.#sendNow(`{"type":"ping","receiver":"server","ref":${ref}}`, ref);
  }

  /** Follows the life cycle of the page (WHATWG HTML, section 7.4.6; Page Lifecycle) and the network. */
  #watchPage() {
    /** @type {Record<string, (event: any) => void>} */
    const listeners = {
      online: () => this.#wake(),
      offline: () => this.#state === "open" && this.#ping(),
      visibilitychange: () => document.visibilityState === "visible" && this.#wake(),
      // The browser keeps the connections of a page in the back/forward cache or a frozen tab, which hears
      // nothing: the server must know that the page is away.
      pagehide: ({ persisted }) => (persisted ? this.#freeze() : this.leave()),
      freeze: () => this.#freeze(),
      pageshow: () => this.#thaw(),
      resume: () => this.#thaw(),
    };
    for (const [type, listener] of Object.entries(listeners)) {
      // Some of these events are the document's: the window captures them.
      globalThis.addEventListener?.(type, listener, { capture: true, signal: this.#lifetime.signal });
    }
  }

  /** Checks the connection, or connects without further delay than the server has asked for. */
  #wake() {
    if (this.#state === "open") {
      this.#scheduleProbe(0);
      return this.#ping();
    }
    if (this.#connection || this.#frozen) return;
    const wait = this.#notBefore - performance.now();
    if (wait > 0) this.#startTimer(wait, () => this.#connect());
    else this.#connect();
  }

  #freeze() {
    if (this.#frozen) return;
    this.#frozen = true;
    // Browsers do not keep a page with direct connections, although `persisted` says so: nobody would resume.
    if (MESHES.get(this)?.peers.size) {
      this.#endConnection(CLOSE_NORMAL, "the page is gone");
      this.#resumeToken = null;
    }
    this.#drop("the page is frozen");
  }

  #thaw() {
    if (!this.#frozen) return;
    this.#frozen = false;
    this.#wake();
  }

  /** Drops the connection without waiting for the server.
   * @param {string} reason */
  #drop(reason) {
    this.#endConnection(CLOSE_LOST, reason);
    this.#connectionLost(CLOSE_LOST, reason);
  }

  /** @param {number} code @param {string} reason */
  #endConnection(code, reason) {
    this.#endProbe();
    this.#connection?.transport?.close(code, reason);
    this.#connection = null;
    clearTimeout(this.#timer);
  }

  /** @param {number} code @param {string} reason */
  #connectionLost(code, reason) {
    this.#endProbe();
    this.#connection = null;
    this.#canSend = false;
    clearTimeout(this.#timer);
    clearTimeout(this.#paceTimer);
    const isFinal = this.#isFinal(code, reason);
    // A room that was left wants to end its session, while there is one.
    if (this.#state === "closed") {
      const delay = this.#retryDelay(code, reason);
      if (!isFinal && delay < this.#keptFor()) this.#startTimer(delay, () => this.#connect());
      return;
    }
    if (isFinal) return this.#close(code, reason);
    const now = performance.now();
    if (!this.#resumeToken) this.#endSession(0);
    else if (this.#state === "open") this.#keptUntil = now + this.#window;
    if (now - this.#openedAt > STABLE_AFTER_MS) this.#attempts = 0;
    this.#openedAt = Infinity;
    const delay = this.#frozen ? Infinity : this.#retryDelay(code, reason);
    if (code === REFUSED_RATE || code === REFUSED_FULL) this.#notBefore = now + delay;
    this.#attempts += 1;
    if (!this.#frozen) this.#startTimer(delay, () => this.#connect());
    this.#setState({ state: "reconnecting", code, reason, delay });
  }

  /** Whether the server wants no other attempt. An abandoned attempt may arrive late and take the session over:
   * the next attempt takes it back. A function may return a better token.
   * @param {number} code @param {string} reason */
  #isFinal(code, reason) {
    const mayAskToken = typeof this.#accessToken === "function";
    if (code === CLOSE_NOT_ALLOWED) {
      return !TAKEN_OVER.test(reason) && !(mayAskToken && TOKEN_REJECTED.test(reason));
    }
    if (code !== REFUSED_TOKEN && code !== REFUSED_PERMISSION) return false;
    this.#refusals += 1;
    return !mayAskToken || this.#refusals > 1;
  }

  /** How long to wait before the next attempt, in ms: longer each time, and at least as long as the server asks.
   * @param {number} code @param {string} reason */
  #retryDelay(code, reason) {
    const mayAsk = [CLOSE_RESTART, REFUSED_RATE, REFUSED_FULL].includes(code);
    const asked = Number((mayAsk && RETRY_DELAY.exec(reason)?.[1]) || 0);
    const delay = Math.min(FIRST_RETRY_MS * 2 ** this.#attempts, MAX_RETRY_MS, this.#windowShare());
    return Math.max(Math.min(asked, MAX_ASKED_MS), Math.max(delay, FIRST_RETRY_MS) * (0.5 + Math.random() / 2));
  }

  /** How much longer the session can be resumed, in ms. */
  #keptFor() {
    return this.#resumeToken ? this.#keptUntil - performance.now() : 0;
  }

  /** The longest delay or attempt that leaves time for others before the session is lost, in ms. */
  #windowShare() {
    const left = this.#keptFor();
    return left > 0 ? left * WINDOW_SHARE : Infinity;
  }

  /** @param {number} code @param {string} reason */
  #close(code, reason) {
    this.#endProbe();
    this.#connection = null;
    this.#canSend = false;
    clearTimeout(this.#timer);
    clearTimeout(this.#paceTimer);
    this.#lifetime.abort();
    this.#state = "closed";
    const error = new RoomError("closed", `the room is closed: ${reason}`, { cause: { code, reason } });
    this.#opening.reject(error);
    this.#outgoing = [];
    for (const ref of this.#receipts.keys()) this.#takeReceipt(ref)?.reject(error);
    for (const id of this.#peers.keys()) this.#removePeer(id);
    this.#setState({ state: "closed", code, reason });
  }

  /** @param {StateChange} change */
  #setState(change) {
    this.#state = change.state;
    this.#emit("statechange", change);
  }

  // The session

  #startSession() {
    this.#beforeRoster = { messages: [], newcomers: new Set(), bytes: 0 };
    this.#queueState();
    this.#sendNow('{"type":"hello","receiver":"server","data":{"resume":true}}');
  }

  /** Puts the state before all that waits, while nothing is sent. */
  #queueState() {
    const state = this.#states.at(-1);
    if (!state) return;
    const index = this.#outgoing.indexOf(state);
    if (index >= 0) this.#outgoing.splice(index, 1);
    else this.#outgoingBytes += state.bytes;
    this.#outgoing.unshift(state);
  }

  /** Handles the answer to `hello`, also to an application's own, which starts no session.
   * @param {string} id
   * @param {{ peers: { id: string, data: unknown, state?: unknown }[], iceServers: RTCIceServer[],
   *   resume: { token: string, seconds: number } | null, history?: number | null, limits: { messageBytes: number,
   *   messagesPerSecond?: number | null, bytesPerSecond?: number | null } }} data */
  #receiveRoster(id, { peers, iceServers, resume, history = null, limits }) {
    const before = this.#beforeRoster;
    this.#beforeRoster = null;
    if (before) this.#resumeToken = resume?.token ?? null;
    if (resume) this.#window = resume.seconds * 1000;
    this.#id = id;
    this.#iceServers = iceServers;
    this.#historyMessages = history;
    this.#maxBytes = limits.messageBytes;
    this.#rates = { messages: limits.messagesPerSecond ?? Infinity, bytes: limits.bytesPerSecond ?? Infinity };
    const present = new Set(peers.map((peer) => peer.id));
    for (const known of this.#peers.keys()) if (!present.has(known)) this.#removePeer(known);
    for (const { id: peer, data, state = null } of peers) {
      // In a new session, the peers are older, except those whose `new` came before the roster.
      const newcomer = before ? before.newcomers.has(peer) : (this.#peers.get(peer)?.newcomer ?? true);
      this.#setPeer({ id: peer, data, newcomer, state });
    }
    if (!before || this.#state === "closed") return;

    this.#setOpen(false);
    for (const message of before.messages) {
      // A sender that the roster lacks has left before it. What it has sent to all is not in the history.
      const known = present.has(message.sender) || message.sender === "server"
        || (history !== null && "receiver" in message && message.receiver === "all");
      if (!known || this.#state !== "open") continue;
      if ("bytes" in message) this.#receiveBytes(message);
      else this.#dispatch(message, 0);
    }
  }

  /** @param {number} received how many messages of this session the server has received */
  #resumeSession(received) {
    // The server does not count `resumed`.
    this.#received -= 1;
    this.#acknowledge(Math.max(0, Math.min(received - this.#acked, this.#sent)));
    this.#sent = 0;
    this.#setOpen(true);
  }

  /** Forgets the session and what was sent in it. What waits is sent in the next one.
   * @param {number} received how many messages of the next session have arrived */
  #endSession(received) {
    this.#resumeToken = null;
    this.#received = received;
    this.#acknowledge(this.#sent);
    this.#acked = 0;
    this.#pageMessages = [];
    this.#queueState();
    const waiting = new Set(this.#outgoing.map(({ ref }) => ref));
    const error = new RoomError("connection_lost", "the connection was lost before the receipt arrived");
    for (const ref of this.#receipts.keys()) if (!waiting.has(ref)) this.#takeReceipt(ref)?.reject(error);
  }

  /** @param {boolean} resumed */
  #setOpen(resumed) {
    this.#openedAt = performance.now();
    this.#refusals = 0;
    if (this.#connection?.viaHttp) this.#scheduleProbe(this.#probeDelay);
    this.#setState({ state: "open", resumed });
    this.#opening.resolve(this);
    // A listener may have left the room.
    this.#canSend = this.#state === "open";
    this.#flush();
  }

  // Sending

  /** Sends what waits, as fast as the rates allow. */
  #flush() {
    clearTimeout(this.#paceTimer);
    while (this.#canSend && this.#sent < this.#outgoing.length) {
      const { ref, data, bytes, toAll } = this.#outgoing[this.#sent];
      try {
        this.#checkSize(bytes);
      } catch (/** @type {any} */ error) {
        const receipt = this.#remove(this.#sent);
        if (receipt) receipt.reject(error);
        else this.#emit("error", error);
        continue;
      }
      const now = performance.now();
      const wait = this.#paidAt - now - BURST_MS;
      if (wait > 0) {
        this.#paceTimer = setTimeout(() => this.#flush(), wait);
        return;
      }
      // The server counts what a message makes it send, too.
      const copies = 1 + (toAll ? this.#peers.size : 1);
      const cost = Math.max(1000 / this.#rates.messages, (1000 * bytes * copies) / this.#rates.bytes);
      this.#paidAt = Math.max(this.#paidAt, now) + cost;
      this.#sent += 1;
      this.#transmit(data);
      this.#unconfirmed = ref === undefined ? this.#unconfirmed + bytes : 0;
      if (this.#unconfirmed >= CONFIRM_BYTES) this.#askReceipt();
    }
  }

  /** Sends a message of the room's own, before all that waits.
   * @param {string} text @param {number} [ref] */
  #sendNow(text, ref) {
    this.#enqueue(this.#sent, { ref, data: text, bytes: byteLength(text) });
    this.#sent += 1;
    this.#unconfirmed = 0;
    this.#transmit(text);
  }

  /** @param {number} index @param {Outgoing} message */
  #enqueue(index, message) {
    this.#outgoing.splice(index, 0, message);
    this.#outgoingBytes += message.bytes;
  }

  /** @param {string | Uint8Array<ArrayBuffer>} message */
  #transmit(message) {
    this.#connection?.transport?.send(message);
    this.#emit("wire", { direction: "out", ...parts(message) });
  }

  /** Removes a message that is not sent.
   * @param {number} index */
  #remove(index) {
    const [{ ref, bytes }] = this.#outgoing.splice(index, 1);
    this.#outgoingBytes -= bytes;
    return this.#takeReceipt(ref);
  }

  /** @param {number} count how many more messages the server has received */
  #acknowledge(count) {
    for (const { bytes } of this.#outgoing.splice(0, count)) this.#outgoingBytes -= bytes;
    this.#sent -= count;
    this.#acked += count;
  }

  /** @param {number} [ref] */
  #takeReceipt(ref = 0) {
    const receipt = this.#receipts.get(ref);
    this.#receipts.delete(ref);
    return receipt;
  }

  #checkOpen() {
    if (this.#state === "closed") throw new RoomError("closed", "the room is closed: join it again");
  }

  /** @param {number} bytes */
  #checkSize(bytes) {
    if (bytes <= this.#maxBytes) return;
    const message = `the message has ${bytes} bytes, the limit is ${this.#maxBytes}: send less`;
    throw new RoomError("message_too_large", message);
  }

  /** @param {number} bytes */
  #checkQueue(bytes) {
    this.#checkSize(bytes);
    if (this.#outgoingBytes + bytes <= MAX_QUEUE_BYTES) return;
    const message = `${this.#outgoingBytes} bytes are queued or not acknowledged: wait for receipts`;
    throw new RoomError("queue_full", message);
  }

  // Receiving

  /** @param {string | ArrayBuffer} data */
  #receive(data) {
    const wire = parts(typeof data === "string" ? data : new Uint8Array(data));
    this.#emit("wire", { direction: "in", ...wire });
    if (this.#state === "closed") return;
    this.#received += 1;
    const { text, id, bytes } = wire;
    try {
      if (!bytes || !id) this.#dispatch(JSON.parse(text), text.length);
      else if (SESSION_ID.test(id)) this.#receiveBytes({ sender: id, bytes });
      else throw new TypeError("bytes lack a sender");
    } catch (error) {
      this.#emit("error", new RoomError("bad_message", `the server sent ${text || "bytes"}: ${error}`));
    }
    if (this.#state === "open") this.#startTimer(this.#idleTimeout, () => this.#ping());
  }

  /** @param {Message} message @param {number} bytes */
  #dispatch(message, bytes) {
    const { type, sender, receiver } = message;
    if (typeof type !== "string" || typeof sender !== "string") {
      throw new TypeError("it lacks a type or a sender");
    }
    const data = /** @type {any} */ (message.data);
    if (sender === "server") {
      if (type === "hello") return this.#receiveRoster(receiver, data);
      if (type === "resumed") return this.#resumeSession(data.received);
      if (type === "ack" || type === "error") return this.#receiveAnswer(type, data);
      if (type === "history") return this.#receiveHistory(data, bytes);
      if (type === "pong") return;
    }
    const isNew = type === "new" && receiver === "all";
    // Only the server can send the receiver `null`.
    const isState = type === "state" && receiver === null;
    if (this.#beforeRoster) {
      if (isNew) this.#beforeRoster.newcomers.add(sender);
      // The roster has the last states.
      else if (!isState) this.#beforeRoster.messages.push(message);
      return this.#countBeforeRoster(bytes);
    }
    const peer = this.#peers.get(sender);
    // A peer may send a message that looks like a second `new`: ignore it.
    if (isNew && !peer) this.#setPeer({ id: sender, data, newcomer: true, state: null });
    else if (isNew) return;
    else if (isState) peer && this.#setPeer({ ...peer, state: data });
    else if (type === "close" && receiver === null) this.#removePeer(sender);
    else this.#emit("message", message);
  }

  /** @param {number} bytes */
  #countBeforeRoster(bytes) {
    if (!this.#beforeRoster) return;
    this.#beforeRoster.bytes += bytes;
    if (this.#beforeRoster.bytes > MAX_QUEUE_BYTES) this.#drop("too much came before the roster");
  }

  /** @param {BytesMessage} message */
  #receiveBytes(message) {
    if (!this.#beforeRoster) {
      const isRelayed = RELAY_MARK.every((byte, index) => byte === message.bytes[index]);
      return isRelayed ? MESHES.get(this)?.receiveRelayed(message) : this.#emit("bytes", message);
    }
    this.#beforeRoster.messages.push(message);
    this.#countBeforeRoster(ID_BYTES + message.bytes.length);
  }

  /** @param {"ack" | "error"} type @param {any} data */
  #receiveAnswer(type, data) {
    const index = this.#outgoing.findIndex(({ ref }) => ref !== undefined && ref === data.ref);
    const message = this.#outgoing[index];
    // The server has received this message and all before it.
    if (index < this.#sent) this.#acknowledge(index + 1);
    if (type === "ack") return this.#takeReceipt(data.ref)?.resolve(data);
    if (data.code === "resume_failed") {
      // This is the first message of a new session.
      this.#endSession(1);
      return this.#startSession();
    }
    if (data.code === "rate_limited" && message?.ref) return this.#sendLater(message);
    const error = new RoomError(data.code, data.message);
    const receipt = this.#takeReceipt(data.ref);
    if (receipt) return receipt.reject(error);
    // A peer that has left may still be sent what is relayed.
    const isExpected = error.code === "unknown_receiver" && MESHES.get(this)?.hasRelayedTo(error.message);
    if (!isExpected) this.#emit("error", error);
  }

  /** Handles a message of the history, or the end of a page. The server answers one request after the other.
   * @param {any} data @param {number} bytes */
  #receiveHistory({ done, more, number, time, from, message }, bytes) {
    // The server counts its answer, too.
    this.#paidAt = Math.max(this.#paidAt, performance.now()) + (1000 * bytes) / this.#rates.bytes;
    if (!done) return this.#pageMessages.push({ ...message, number, time: new Date(time), from });
    this.#page = { messages: this.#pageMessages, more };
    this.#pageMessages = [];
  }

  /** Sends a message again that an older server has dropped because of its rates.
   * @param {Outgoing} message */
  #sendLater(message) {
    const { ref = 0 } = message;
    let index = this.#sent;
    while ((this.#outgoing[index]?.ref ?? Infinity) < ref) index += 1;
    this.#enqueue(index, message);
    this.#paidAt = performance.now() + BURST_MS + RATE_LIMITED_MS;
    this.#flush();
  }

  /** @param {Peer} peer */
  #setPeer(peer) {
    // A listener of an earlier event may have left the room.
    if (this.#state === "closed") return;
    const known = this.#peers.get(peer.id);
    this.#peers.set(peer.id, peer);
    this.#snapshot = null;
    if (!known) this.#emit("peerjoin", peer);
    else if (!isSame(known.state, peer.state)) this.#emit("peerstate", peer);
  }

  /** @param {string} id */
  #removePeer(id) {
    const peer = this.#peers.get(id);
    if (!peer) return;
    this.#peers.delete(id);
    this.#snapshot = null;
    this.#emit("peerleave", peer);
  }

  /** @template {keyof RoomEvents} Type @param {Type} type @param {RoomEvents[Type]} detail */
  #emit(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }
}

/** A connection, or an attempt. */
class Connection {
  /** @type {Transport | HttpTransport | null} */
  transport = null;
  isOpen = false;

  /** @param {boolean} viaHttp whether it does without a WebSocket */
  constructor(viaHttp) {
    this.viaHttp = viaHttp;
  }
}

/** A connection to the server over a WebSocket. The room knows nothing else of it: a connection without one has the same
 * members. Messages are text, or binary. */
class Transport {
  /** @type {"websocket"} */
  kind = "websocket";
  #socket;

  /** @param {WebSocketConstructor} WebSocket @param {string} url
   * @param {{ opened(): void, received(data: string | ArrayBuffer): void, closed(code: number, reason: string): void }}
   *   events */
  constructor(WebSocket, url, { opened, received, closed }) {
    const socket = (this.#socket = new WebSocket(url, "anteroom.v1"));
    socket.binaryType = "arraybuffer";
    socket.addEventListener("open", opened);
    socket.addEventListener("message", ({ data }) => received(data));
    // `ws` fires it before `close`, and throws without a listener.
    socket.addEventListener("error", () => {});
    socket.addEventListener("close", ({ code, reason }) => closed(code, String(reason)));
  }

  /** What has not left the browser, in bytes. */
  get bufferedAmount() {
    return this.#socket.bufferedAmount;
  }

  /** @param {string | Uint8Array<ArrayBuffer>} message */
  send(message) {
    this.#socket.send(message);
  }

  /** @param {number} code @param {string} [reason] */
  close(code, reason) {
    this.#socket.close(code, reason);
  }
}

/** How long the first event of a stream may take, in ms: beyond, something on the way holds answers back. How long rooms
 * poll then, in ms. */
const [PATIENCE_MS, HELD_BACK_MS] = [4000, 600_000];
/** How long an answer of long polling waits for messages, in seconds. */
const POLL_SECONDS = 25;
/** The most characters that one request sends, unless a single message has more, and that a page sends as it goes. */
const [POST_LENGTH, KEEPALIVE_LENGTH] = [1 << 18, 1 << 14];
/** After so many characters of events the server is told what has come: it keeps them until then. */
const TELL_LENGTH = 1 << 14;
/** How often a request is sent whose answer does not come, and the pause between, in ms. */
const [POST_ATTEMPTS, POST_PAUSE_MS] = [3, 1000];
/** How often a connection that may not poll looks whether it may, in ms. */
const HELD_MS = 100;

/** Until when rooms poll, because something on the way holds answers back. */
let heldBackUntil = -Infinity;

/** A connection without a WebSocket, with the members of `Transport`: events or answers of long polling bring messages, and
 * POST requests take them. It has one session, and begins nothing after its end. */
class HttpTransport {
  /** @type {"events" | "polling"} */
  kind = performance.now() < heldBackUntil || !globalThis.EventSource ? "polling" : "events";
  /** What the server has not taken in, in characters. */
  bufferedAmount = 0;
  /** Whether the server must not learn what has come: another connection has told it before. */
  isHeld = false;
  #events;
  #getToken;
  #url;
  #received;
  /** Ends the connection. */
  #end = new AbortController();
  #isOpen = false;
  /** How many characters have come since the server was told what has come. */
  #untold = 0;
  /** @type {string[]} Messages that are not taken in, a line each. */
  #lines = [];
  /** How many messages are taken in. */
  #sent = 0;
  #isPosting = false;

  /** @param {string} url as for a WebSocket @param {ConstructorParameters<typeof Transport>[2]} events
   * @param {() => string | undefined} getToken of the user, for each request that resumes the session */
  constructor(url, events, getToken) {
    this.#events = events;
    this.#getToken = getToken;
    this.#url = new URL(url.replace("ws", "http"));
    this.#received = Number(this.#url.searchParams.get("received"));
    // A browser does not tell why a request has failed either.
    this.#run().catch((error) => this.#fail(CLOSE_FAILED, error instanceof TypeError ? "" : String(error)));
  }

  /** @param {string | Uint8Array} message */
  send(message) {
    // Line breaks in JSON are white space. A line without JSON is no message for the server, but `null` is a wrong one.
    const text = typeof message === "string" ? message.replace(/[\r\n]/g, " ").trim() : `"${toBase64(message)}"`;
    const line = text || "null";
    this.#lines.push(line);
    this.bufferedAmount += line.length;
    this.#post();
  }

  /** Ends the connection, and the session unless the code is 4000.
   * @param {number} code */
  close(code) {
    const isLeaving = code !== CLOSE_LOST && !this.#hasEnded && this.#url.searchParams.has("resume");
    this.#end.abort();
    const body = this.#lines.join("\n");
    this.#lines = [];
    if (!isLeaving) return;
    // The page may be going away.
    const keepalive = body.length < KEEPALIVE_LENGTH;
    const last = body ? fetch(this.#request({ sent: this.#sent, leave: 1 }), { method: "POST", body, keepalive })
      : fetch(this.#request({}), { method: "DELETE", keepalive });
    last.catch(() => {});
  }

  get #hasEnded() {
    return this.#end.signal.aborted;
  }

  /** Tells that the connection has ended.
   * @param {number} code @param {string} reason */
  #fail(code, reason) {
    if (this.#hasEnded) return;
    this.close(CLOSE_LOST);
    this.#events.closed(code, reason);
  }

  /** The URL of a request. A user's token is needed to join and to resume only.
   * @param {Record<string, string | number>} query */
  #request(query) {
    const url = new URL(this.#url);
    url.searchParams.delete("token");
    for (const [name, value] of Object.entries(query)) url.searchParams.set(name, String(value));
    return url;
  }

  /** The URL of a request that joins, or resumes the session.
   * @param {Record<string, number>} query */
  #resume(query) {
    const token = this.#getToken();
    return this.#request({ ...query, ...(token && { token }), received: this.#received });
  }

  async #run() {
    // The answer to this comes at once, also where answers are held back, and says why there is no session.
    await this.#poll(0);
    if (this.kind === "events") await this.#stream();
    while (!this.#hasEnded) {
      if (this.isHeld) await sleep(HELD_MS);
      else await this.#poll(POLL_SECONDS);
    }
  }

  /** @param {number} wait for messages, in s */
  async #poll(wait) {
    const response = await fetch(this.#resume({ wait }), {
      headers: { accept: "application/json" },
      cache: "no-store",
      signal: this.#end.signal,
    });
    const { ok, status, headers } = response;
    if (!ok) {
      // Other texts are a proxy's.
      const isServer = headers.get("content-type")?.startsWith("text/plain");
      const reason = isServer ? (await response.text()).trim() : `status ${status}`;
      const seconds = Number(headers.get("retry-after"));
      const isRefusal = [REFUSED_TOKEN, REFUSED_PERMISSION, REFUSED_RATE, REFUSED_FULL].includes(4000 + status);
      const code = isServer && isRefusal ? 4000 + status : CLOSE_FAILED;
      return this.#fail(code, seconds ? `${reason} (retry in ${seconds * 1000} ms)` : reason);
    }
    const { session, messages, count, close } = await response.json();
    if (session) this.#begin(session);
    for (const message of messages) this.#receive(message, JSON.stringify(message));
    this.#received = count;
    if (close) this.#fail(close.code, close.reason);
  }

  /** Receives events until the connection ends, or the first comes too late. */
  async #stream() {
    if (this.#hasEnded) return;
    const source = new EventSource(this.#resume({}));
    await new Promise((resolve) => {
      const timer = setTimeout(() => {
        heldBackUntil = performance.now() + HELD_BACK_MS;
        this.kind = "polling";
        resolve(null);
      }, PATIENCE_MS);
      this.#end.signal.addEventListener("abort", () => {
        clearTimeout(timer);
        resolve(null);
      });
      source.onerror = () => this.#fail(CLOSE_FAILED, "the stream has ended");
      source.onmessage = ({ data, lastEventId }) => {
        clearTimeout(timer);
        this.#receive(JSON.parse(data), data);
        this.#received = Math.max(this.#received, Number(lastEventId));
        this.#untold += data.length;
        if (this.#untold > TELL_LENGTH) this.#post();
      };
      source.addEventListener("session", ({ data }) => this.#begin(JSON.parse(data)));
      source.addEventListener("close", ({ data }) => {
        const { code, reason } = JSON.parse(data);
        this.#fail(code, reason);
      });
    });
    source.close();
  }

  /** @param {{ token: string }} session */
  #begin({ token }) {
    this.#url.searchParams.set("resume", token);
    if (!this.#isOpen) return this.#open();
    // The session of this connection is lost, and nobody wants this one.
    this.#lines = [];
    this.close(CLOSE_NORMAL);
    this.#events.closed(CLOSE_FAILED, "the session is lost");
  }

  #open() {
    this.#isOpen = true;
    this.#events.opened();
  }

  /** @param {any} message @param {string} text */
  #receive(message, text) {
    if (this.#hasEnded) return;
    if (RESUMED.test(text)) {
      // The first of these is for the room: the others are of requests of this connection.
      if (this.#isOpen) return;
      this.#sent = message.data.received;
      this.#open();
    }
    this.#events.received(typeof message === "string" ? fromBase64(message) : text);
  }

  /** Sends what waits, one request after the other. */
  async #post() {
    if (this.#isPosting) return;
    this.#isPosting = true;
    // What is sent in the same turn goes together.
    await null;
    for (let failures = 0; !this.#hasEnded && (this.#lines.length || this.#untold > TELL_LENGTH); ) {
      let count = 0;
      for (let length = 0; count < this.#lines.length && (!count || length < POST_LENGTH); count += 1) {
        length += this.#lines[count].length;
      }
      const query = { sent: this.#sent, ...(!this.isHeld && { received: this.#received }) };
      this.#untold = 0;
      let taken = 0;
      try {
        const body = this.#lines.slice(0, count).join("\n");
        const response = await fetch(this.#request(query), { method: "POST", body, signal: this.#end.signal });
        const { received } = await response.json();
        if (!response.ok || !(received >= 0)) throw received;
        taken = received - this.#sent;
        failures = 0;
      } catch {
        // The answer may be lost, or a proxy's: the server takes nothing in twice.
        failures += 1;
        if (failures === POST_ATTEMPTS) this.#fail(CLOSE_FAILED, "messages cannot be sent");
      }
      for (const line of this.#lines.splice(0, Math.max(taken, 0))) {
        this.#sent += 1;
        this.bufferedAmount -= line.length;
      }
      if (count && taken <= 0) await sleep(POST_PAUSE_MS);
    }
    this.#isPosting = false;
  }
}

/** @param {number} delay in ms */
function sleep(delay) {
  return new Promise((resolve) => setTimeout(resolve, delay));
}

/** @param {Uint8Array} bytes */
function toBase64(bytes) {
  let text = "";
  for (const byte of bytes) text += String.fromCharCode(byte);
  return btoa(text);
}

/** @param {string} text */
function fromBase64(text) {
  return Uint8Array.from(atob(text), (character) => character.charCodeAt(0)).buffer;
}

/** The mesh of a room.
 * @type {WeakMap<Room<any, any>, MeshContext>} */
const MESHES = new WeakMap();

/** The URL of a module that a server has served, and the server's part of it. A path of a package is not one. */
const SERVED = /^(https?:\/\/(?![^?#]*\/(?:node_modules|anteroom-client)[/@])[^?#]*\/)anteroom\.js(?:[?#]|$)/;

/** The server that this module comes from.
 * @throws {TypeError} if that is unknown, as in a bundle */
function moduleServer() {
  // Outside a `try`, esbuild warns that the formats `iife` and `cjs` have no `import.meta`. Other bundlers
  // look for a file when they read `new URL(".", import.meta.url)`.
  try {
    const server = SERVED.exec(import.meta.url)?.[1];
    if (server) return server;
  } catch {}
  throw new TypeError('the server is unknown: give its address, as in { url: "https://example.org/" }');
}

/** @param {string} name @param {string | URL} server */
function roomUrl(name, server) {
  const bytes = byteLength(name);
  if (bytes < 1 || bytes > 128) {
    throw new TypeError(`the room name has ${bytes} bytes: use 1 to 128`);
  }
  if (/[\p{Cc}\p{Cs}]/u.test(name)) {
    throw new TypeError("the room name has a control character or half a surrogate pair: remove it");
  }
  if (name === "." || name === "..") {
    throw new TypeError(`browsers cannot request a room named "${name}": choose another name`);
  }
  const url = parseUrl(server);
  if (!url || !/^(http|ws)s?:$/.test(url.protocol)) {
    throw new TypeError(`${server} is not a server address: give one, as in { url: "https://example.org/" }`);
  }
  url.protocol = url.protocol.replace("http", "ws");
  url.search = url.hash = "";
  url.pathname = `${url.pathname.replace(/\/$/, "")}/room/${encodeURIComponent(name)}`;
  return url;
}

/** @param {string | URL} text */
function parseUrl(text) {
  try {
    return new URL(text);
  } catch {
    return null;
  }
}

/** Whether two values are the same JSON. Those that are nested too deeply count as different.
 * @param {unknown} a @param {unknown} b */
function isSame(a, b) {
  try {
    return JSON.stringify(a) === JSON.stringify(b);
  } catch {
    return false;
  }
}

/** @param {string} text */
function byteLength(text) {
  return new TextEncoder().encode(text).length;
}

/** @param {ArrayBuffer | ArrayBufferView} data */
function toBytes(data) {
  if (ArrayBuffer.isView(data)) return new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
  if (data instanceof ArrayBuffer) return new Uint8Array(data);
  throw new TypeError("give bytes: an ArrayBuffer or a view of one, such as a Uint8Array");
}

/** The parts of a message as sent or received.
 * @param {string | Uint8Array<ArrayBuffer>} message
 * @returns {Omit<WireMessage, "direction">} */
function parts(message) {
  if (typeof message === "string") return { text: message };
  const digits = Array.from(message.subarray(0, ID_BYTES), (byte) => byte.toString(16).padStart(2, "0")).join("");
  const id = digits.replace(/^(.{8})(.{4})(.{4})(.{4})/, "$1-$2-$3-$4-");
  return { text: "", id: /[^0]/.test(digits) ? id : "all", bytes: message.slice(ID_BYTES) };
}

// ---- 2. Mesh ----

/** TURN credentials older than this, in ms, are renewed before they are used. */
const FRESH_CREDENTIALS_MS = 30_000;
/** How long a kept connection stays after its successor is connected, in ms: until that shows a picture. */
const SUCCESSION_MS = 1000;

/** The events of a `Mesh`, with their `detail`.
 * @typedef {object} MeshEvents
 * @property {{ peer: MeshPeer }} connect not open yet
 * @property {{ peer: MeshPeer }} disconnect a connection and its channels are closed: the peer left, the
 *   mesh was closed, or the connection did not recover: then a `connect` to the same session follows
 * @property {{ peer: MeshPeer }} statechange
 * @property {{ peer: MeshPeer, track: MediaStreamTrack, streams: readonly MediaStream[] }} track
 * @property {{ peer: MeshPeer, channel: RTCDataChannel }} datachannel the channel `mesh`, or one that the
 *   peer has created
 * @property {{ id: string, error: unknown }} error a connection, signal or track of a session failed */

/** Bits per second since the last call (or the beginning), the round trip in ms or `null`, and whether a TURN
 * server relays.
 * @typedef {{ bitsIn: number, bitsOut: number, roundTrip: number | null, relayed: boolean }} Quality */

/** What a `Mesh` shares with its negotiations. `id` is random: it tells peers that a session belongs to the
 * same mesh as an earlier one.
 * @typedef {{ id: string, room: Room, peers: Map<string, MeshPeer>, tracks: Map<MediaStreamTrack, MediaStream[]>,
 *   relay: boolean, relayedTo: string[], receiveRelayed(message: BytesMessage): void,
 *   hasRelayedTo(text: string): boolean,
 *   configuration(): RTCConfiguration, renewIceServers(): Promise<void>,
 *   stateChanged(negotiation: Negotiation): void, giveWay(negotiation: Negotiation): boolean,
 *   emit<Type extends keyof MeshEvents>(type: Type, detail: MeshEvents[Type]): void }} MeshContext */

/** A WebRTC connection to every peer of a room. A peer needs no `Mesh`, only the messages `offer` and
 * `answer` with an RTCSessionDescription and `candidate` with an RTCIceCandidate. The session that joined
 * first makes the first offer; a mesh that is made later offers to everyone. When two offers collide, the
 * smaller id withdraws its own, as in "perfect" negotiation (WebRTC, section 10.7).
 *
 * The first offer has audio, video and data, so that one exchange is enough for a peer that cannot
 * renegotiate. Both sides get an event for its data channel, `mesh`.
 *
 * A connection that fails restarts ICE. If that does not help, a new connection replaces it, unless both sides relay:
 * then the channel `mesh` goes through the room in binary messages while there is no direct way. When the server
 * loses its sessions, a working connection to a session of before stays until it fails, or until its owner
 * is connected under another id.
 * @extends {TypedEventTarget<MeshEvents>} */
export class Mesh extends TypedEventTarget {
  #room;
  #maxPeers;
  /** @type {Map<MediaStreamTrack, MediaStream[]>} */
  #tracks = new Map();
  /** @type {Map<string, MeshPeer>} */
  #peers = new Map();
  /** @type {Map<string, Negotiation>} One for each session of the room, up to `maxPeers`. */
  #negotiations = new Map();
  /** @type {Set<Negotiation>} Working connections to sessions that the server has lost. */
  #kept = new Set();
  /** @type {Set<string>} Sessions beyond `maxPeers`. */
  #waiting = new Set();
  #credentialsAt = -Infinity;
  /** @type {Promise<void> | undefined} */
  #renewal;
  #lifetime = new AbortController();
  /** @type {MeshContext} */
  #context;

  /** @param {Room<any, any>} room without another mesh
   * @param {object} [options]
   * @param {RTCConfiguration} [options.configuration] the room's `iceServers` are added to it
   * @param {boolean} [options.relay] relays the channel `mesh` through the room while a connection fails, if the other
   *   side's mesh does as well
   * @param {number} [options.maxPeers] each further peer fires an `error`, and is connected when another
   *   disconnects, or in turn with those that do not connect */
  constructor(room, { configuration = {}, relay = false, maxPeers = 16 } = {}) {
    super();
    if (MESHES.has(room)) throw new Error("the room has a mesh: close() that one first");
    this.#room = room;
    this.#maxPeers = maxPeers;
    this.#context = {
      id: randomId(),
      room,
      peers: this.#peers,
      tracks: this.#tracks,
      relay,
      relayedTo: [],
      receiveRelayed: ({ sender, bytes }) => this.#negotiations.get(sender)?.receiveRelayed(bytes),
      hasRelayedTo: (text) => this.#context.relayedTo.some((id) => text.includes(id)),
      configuration: () => {
        const iceServers = [...(configuration.iceServers ?? []), ...room.iceServers];
        return { bundlePolicy: "max-bundle", ...configuration, iceServers };
      },
      renewIceServers: () => this.#renewIceServers(),
      stateChanged: (negotiation) => this.#stateChanged(negotiation),
      giveWay: (negotiation) => {
        if (this.#waiting.size === 0) return false;
        this.#waiting.add(negotiation.id);
        this.#disconnect(negotiation);
        return true;
      },
      emit: (type, detail) => this.#emit(type, detail),
    };
    MESHES.set(room, this.#context);
    const { signal } = this.#lifetime;
    room.addEventListener("peerjoin", ({ detail }) => this.#connect(detail.id, detail.newcomer), { signal });
    room.addEventListener("peerleave", ({ detail }) => this.#peerLeft(detail.id), { signal });
    room.addEventListener("message", ({ detail }) => this.#receive(detail), { signal });
    room.addEventListener("statechange", ({ detail }) => {
      if (detail.state === "closed") for (const negotiation of this.#kept) this.#disconnect(negotiation);
      // Another server that resumes the session, or this one after a restart, may know other credentials.
      if (detail.state === "open") this.#credentialsAt = detail.resumed ? -Infinity : performance.now();
      if (detail.state === "open" && !detail.resumed) {
        for (const negotiation of this.#negotiations.values()) negotiation.sessionStarted();
      }
      this.#fill();
    }, { signal });
    // The caller adds its listeners first.
    queueMicrotask(() => {
      for (const id of room.peers.keys()) this.#connect(id, true);
    });
  }

  /** The connections by session id. Live.
   * @returns {ReadonlyMap<string, MeshPeer>} */
  get peers() {
    return this.#peers;
  }

  /** Sends a track to every peer, now and later.
   * @param {MediaStreamTrack} track
   * @param {...MediaStream} streams what it belongs to on the other side */
  addTrack(track, ...streams) {
    if (this.#tracks.has(track)) throw new Error("the track is being sent already");
    this.#tracks.set(track, streams);
    for (const negotiation of this.#all()) negotiation.addTrack(track, streams);
  }

  /** Sends another track instead, without negotiation.
   * @param {MediaStreamTrack} old
   * @param {MediaStreamTrack} track of the same kind */
  replaceTrack(old, track) {
    const streams = this.#tracks.get(old);
    if (this.#tracks.has(track)) throw new Error("the new track is being sent already");
    if (!streams) throw new Error("the old track is not being sent: use addTrack()");
    if (old.kind !== track.kind) {
      throw new TypeError(`replace ${old.kind} by ${old.kind}, not ${track.kind}`);
    }
    this.#tracks.delete(old);
    this.#tracks.set(track, streams);
    for (const negotiation of this.#all()) negotiation.replaceTrack(old, track);
  }

  /** @param {MediaStreamTrack} track is no longer sent */
  removeTrack(track) {
    if (!this.#tracks.delete(track)) throw new Error("the track is not being sent");
    for (const negotiation of this.#all()) negotiation.removeTrack(track);
  }

  /** Closes all connections for good. The room stays open, and may get another mesh. */
  close() {
    if (this.#lifetime.signal.aborted) return;
    this.#lifetime.abort();
    MESHES.delete(this.#room);
    this.#waiting.clear();
    for (const negotiation of this.#all()) this.#disconnect(negotiation);
  }

  #all() {
    return [...this.#negotiations.values(), ...this.#kept];
  }

  /** @param {string} id @param {boolean} offersFirst */
  #connect(id, offersFirst) {
    // A listener may have left the room.
    if (this.#lifetime.signal.aborted || this.#negotiations.has(id) || !this.#room.peers.has(id)) return;
    if (this.#negotiations.size >= this.#maxPeers) {
      this.#waiting.add(id);
      const error = new Error(`maxPeers is ${this.#maxPeers}: this session waits until another disconnects`);
      return this.#emit("error", { id, error });
    }
    const negotiation = new Negotiation(this.#context, id);
    this.#negotiations.set(id, negotiation);
    // In a cluster, a session that was lost may return.
    for (const old of this.#kept) if (old.id === id) this.#disconnect(old);
    negotiation.open(offersFirst);
  }

  /** @param {Negotiation} negotiation */
  #disconnect(negotiation) {
    if (!this.#kept.delete(negotiation)) this.#negotiations.delete(negotiation.id);
    negotiation.close();
    this.#fill();
  }

  /** Connects sessions that wait, unless the room is about to report that they have left. */
  #fill() {
    for (const id of this.#waiting) {
      if (this.#room.state !== "open" || this.#negotiations.size >= this.#maxPeers) return;
      this.#waiting.delete(id);
      this.#connect(id, true);
    }
  }

  /** @param {string} id */
  #peerLeft(id) {
    this.#waiting.delete(id);
    const negotiation = this.#negotiations.get(id);
    // While the room reconnects, the server tells of a session that it has lost, not of one that has left.
    if (this.#room.state === "reconnecting" && negotiation?.peer?.state === "connected") {
      this.#negotiations.delete(id);
      this.#kept.add(negotiation);
      negotiation.keep();
    } else if (negotiation) {
      this.#disconnect(negotiation);
    }
  }

  /** @param {Negotiation} negotiation */
  #stateChanged(negotiation) {
    const state = negotiation.peer?.state;
    if (this.#kept.has(negotiation)) {
      if (state === "failed" || state === "closed") this.#disconnect(negotiation);
    } else if (state === "connected" && negotiation.mesh) {
      for (const old of this.#kept) {
        if (old.mesh !== negotiation.mesh) continue;
        setTimeout(() => this.#kept.has(old) && this.#disconnect(old), SUCCESSION_MS);
      }
    }
  }

  /** @param {Message} message */
  #receive({ type, sender, data }) {
    const negotiation = this.#negotiations.get(sender);
    if (type === "offer") negotiation?.applyOffer(data);
    else if (type === "answer") negotiation?.applyAnswer(data);
    else if (type === "candidate") negotiation?.addCandidate(data);
  }

  /** Asks for new ICE servers if they have credentials that may have expired. */
  async #renewIceServers() {
    const age = performance.now() - this.#credentialsAt;
    if (age < FRESH_CREDENTIALS_MS || !this.#room.iceServers.some(({ credential }) => credential)) return;
    const { signal } = this.#lifetime;
    this.#renewal ??= this.#room.send("server", "hello", undefined, { signal })
      .then(() => void (this.#credentialsAt = performance.now()), () => {})
      .finally(() => void (this.#renewal = undefined));
    await this.#renewal;
  }

  /** @template {keyof MeshEvents} Type @param {Type} type @param {MeshEvents[Type]} detail */
  #emit(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }
}

/** The peers to which the room relays.
 * @type {WeakSet<MeshPeer>} */
const RELAYED = new WeakSet();

/** The connection to one peer. */
export class MeshPeer {
  #last = { at: performance.now(), bytesIn: 0, bytesOut: 0 };

  /** @param {string} id @param {RTCPeerConnection} pc */
  constructor(id, pc) {
    /** The peer's session id. @readonly */
    this.id = id;
    /** For data channels and statistics. The `Mesh` manages the tracks. @readonly */
    this.pc = pc;
  }

  /** @returns {RTCPeerConnectionState | "relayed"} `new` until the peer has answered */
  get state() {
    return RELAYED.has(this) ? "relayed" : this.pc.connectionState;
  }

  /** @returns {Promise<Quality>} */
  async quality() {
    const { pair, path } = await selectedPath(this.pc);
    const last = this.#last;
    const now = {
      at: performance.now(),
      bytesIn: pair?.bytesReceived ?? 0,
      bytesOut: pair?.bytesSent ?? 0,
    };
    this.#last = now;
    const elapsed = Math.max(1, now.at - last.at);
    // A newly selected pair counts from zero.
    const rate = (/** @type {number} */ bytes) => (Math.max(0, bytes) * 8000) / elapsed;
    return {
      bitsIn: rate(now.bytesIn - last.bytesIn),
      bitsOut: rate(now.bytesOut - last.bytesOut),
      roundTrip: pair?.currentRoundTripTime === undefined ? null : pair.currentRoundTripTime * 1000,
      relayed: path === "relay",
    };
  }
}

/** Finds the candidate pair that a connection uses. Its path is `relay` if a candidate is a TURN server's, and
 * otherwise the type of the own candidate.
 * @param {RTCPeerConnection} pc @returns {Promise<{ pair?: any, path?: string }>} */
async function selectedPath(pc) {
  const stats = [...(await pc.getStats()).values()];
  const chosen = stats.find(({ type }) => type === "transport")?.selectedCandidatePairId;
  const pairs = stats.filter(({ type }) => type === "candidate-pair");
  // Firefox does not tell the pair of a transport. It marks the pair that it has selected.
  const pair = pairs.find(({ id, selected }) => (chosen ? id === chosen : selected))
    ?? pairs.find(({ nominated, state }) => nominated && state === "succeeded");
  const ends = [pair?.localCandidateId, pair?.remoteCandidateId];
  const [local, remote] = ends.map((end) => stats.find(({ id }) => id === end)?.candidateType);
  return { pair, path: remote === "relay" ? remote : local };
}

// ---- 3. Negotiation ----

/** How long a newcomer waits for a peer's first offer before it makes one, in ms. */
const FIRST_OFFER_MS = 5000;
/** How long an answer and ICE may take before the next attempt, in ms. Doubles with each attempt, up to the
 * second. */
const [ATTEMPT_MS, MAX_ATTEMPT_MS] = [15_000, 30_000];
/** How long a connection may be `disconnected` before ICE looks for another path, in ms. The browser has waited for
 * some seconds already, and would go on waiting for about ten. */
const DISCONNECTED_MS = 2000;
/** How long a channel may have no direct way before the room relays, in ms, and the longest time between attempts to
 * find one meanwhile. */
const [RELAY_AFTER_MS, MAX_RELAYED_MS] = [5000, 120_000];
/** How many sessions that were relayed to are remembered: an error about one that has left is expected. */
const MAX_RELAYED_TO = 100;
/** After this many attempts, a session that waits gets the place. */
const MAX_ATTEMPTS = 3;
/** How much longer the polite side waits: usually one side is enough to begin afresh. */
const POLITE_FACTOR = 1.2;
/** A peer can cause one repeated description and one new connection in this time, in ms. */
const PEER_INTERVAL_MS = 1000;
/** The limit of queued signals of one peer. */
const MAX_SIGNALS = 256;
/** A signal that fails for these reasons needs no event: the peer has gone, or the next attempt repeats it. */
const EXPECTED = ["unknown_receiver", "closed", "connection_lost", "queue_full"];

/** A connection that ends unconnected has failed if it is at least as old as the first, in ms. After the second
 * it has failed in any case. */
const [EARLY_END_MS, FAILED_AFTER_MS] = [10_000, 30_000];
/** The longest duration that a server accepts, in ms. */
const MAX_DURATION_MS = 86_400_000;

/** How a connection goes. The server hears of it once, for its operator. */
class Outcome {
  #room;
  #pc;
  #began = performance.now();
  /** Whether the peer has sent a description: a session without a mesh sends none. */
  #tried = false;
  #told = false;
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #timer;

  /** @param {Room} room @param {RTCPeerConnection} pc */
  constructor(room, pc) {
    this.#room = room;
    this.#pc = pc;
  }

  /** The peer has sent its first description. */
  tried() {
    this.#tried = true;
    // A peer that took so long has made its mesh only now.
    if (this.#age() > FAILED_AFTER_MS) this.#began = performance.now();
    this.#timer = setTimeout(() => this.#failed(), FAILED_AFTER_MS);
  }

  async connected() {
    if (this.#told) return;
    const milliseconds = this.#finish();
    const { path } = await selectedPath(this.#pc).catch(() => ({ path: undefined }));
    // A connection that has ended in the meantime may have no path.
    if (path) this.#tell({ result: "connected", path, milliseconds });
  }

  /** The connection is about to be closed. */
  ended() {
    if (this.#age() >= EARLY_END_MS) this.#failed();
    clearTimeout(this.#timer);
  }

  #failed() {
    if (this.#tried && !this.#told) this.#tell({ result: "failed", milliseconds: this.#finish() });
  }

  #age() {
    return performance.now() - this.#began;
  }

  #finish() {
    this.#told = true;
    clearTimeout(this.#timer);
    return Math.round(Math.min(this.#age(), MAX_DURATION_MS));
  }

  /** Nobody waits for the receipt: an older server refuses this request.
   * @param {{ result: string, path?: string, milliseconds: number }} data */
  #tell(data) {
    this.#room.send("server", "outcome", data);
  }
}

/** @typedef {{ type: "offer" | "answer", sdp: string, id?: string, mesh: string, relay?: number }} Description */

/** The connections to one session, one after the other. An offer is applied only when its answer arrives: it
 * can be sent again or forgotten at any time. (A browser that rolls an offer back loses more than that: in
 * Chromium, channels never open, and tracks stay muted.) */
class Negotiation {
  #context;
  /** @type {MeshPeer | null} `null` if the browser refuses a connection, and when closed. */
  peer = null;
  /** @type {Outcome | undefined} Of `peer`. */
  #outcome;
  /** @type {unknown} The id of the peer's mesh. */
  mesh;
  /** This session, as the peer knows it. */
  #ownId;
  /** @type {Description | null} The own offer until it is answered. */
  #offer = null;
  /** @type {string | undefined} The `id` of the peer's offer that was answered last. */
  #answered;
  /** @type {string | null} Identifies the peer's RTCPeerConnection, once it has sent a description. */
  #remote = null;
  /** Whether this side may make offers. A newcomer waits for the first. */
  #offers = false;
  #restarted = false;
  #refused = false;
  /** Listeners may close the mesh in the middle of a change. */
  #closed = false;
  #attempts = 0;
  /** When the peer last caused that. */
  #repeatedAt = -Infinity;
  #replacedAt = -Infinity;
  /** @type {ReturnType<typeof setTimeout> | undefined} Runs unless the connection is settled. */
  #timer;
  /** The number by which this connection knows what is relayed to it, and the peer's.
   * @type {number | undefined} */
  #relayId;
  /** @type {number | undefined} */
  #relayTo;
  /** @type {RTCDataChannel | undefined} The channel `mesh` that this side has made. */
  #made;
  /** @type {RelayedChannel | undefined} The channel `mesh` if both sides relay. */
  #channel;
  /** @type {Timer} Runs while there is no direct way, until the room relays. */
  #relayTimer;
  /** @type {string | undefined} The last state that the application was told. */
  #told;
  /** The end and the length of the queue. */
  #queueEnd = Promise.resolve();
  #queued = 0;
  /** How many signals have no receipt. */
  #sending = 0;
  /** @type {Map<MediaStreamTrack, RTCRtpTransceiver>} */
  #transceivers = new Map();
  /** Aborted when the connection is replaced, kept or closed: withdraws queued signals. */
  #lifetime = new AbortController();

  /** @param {MeshContext} context @param {string} id the peer's session id */
  constructor(context, id) {
    this.#context = context;
    this.id = id;
    this.#ownId = context.room.id;
  }

  get #awaitsOffer() {
    return this.peer !== null && !this.#offers && this.#remote === null;
  }

  get #polite() {
    return (this.#context.room.id ?? "") < this.id;
  }

  /** Replaces the connection.
   * @param {boolean} offersFirst */
  open(offersFirst) {
    this.#drop();
    if (this.#closed) return;
    const { room, peers, tracks, configuration, stateChanged, emit } = this.#context;
    this.#lifetime = new AbortController();
    this.#offer = this.#remote = null;
    this.#answered = undefined;
    this.#offers = this.#restarted = false;
    this.#made = this.#told = this.#relayTimer = undefined;
    if (this.#context.relay) this.#relayId = Math.floor(Math.random() * 2 ** 32);
    try {
      this.peer = new MeshPeer(this.id, new RTCPeerConnection(configuration()));
    } catch (error) {
      if (!this.#refused) emit("error", { id: this.id, error });
      this.#refused = true;
      return this.#check();
    }
    this.#refused = false;
    const { peer } = this;
    const { pc } = peer;
    const outcome = (this.#outcome = new Outcome(room, pc));
    peers.set(this.id, peer);
    pc.addEventListener("negotiationneeded", () => this.#makeOffer(pc));
    pc.addEventListener("icecandidate", ({ candidate }) => {
      if (candidate?.candidate) this.#send("candidate", candidate);
    });
    pc.addEventListener("connectionstatechange", () => {
      if (pc.connectionState === "connected") outcome.connected();
      this.#checkRelay();
      this.#tellState(peer);
      if (pc.connectionState === "failed" && !this.#restarted) this.#restartIce(pc);
      this.#check();
      stateChanged(this);
    });
    pc.addEventListener("track", ({ track, streams }) => emit("track", { peer, track, streams }));
    pc.addEventListener("datachannel", ({ channel }) => {
      if (channel.label !== "mesh" || !this.#channel?.attach(channel)) emit("datachannel", { peer, channel });
    });
    for (const [track, streams] of tracks) this.addTrack(track, streams);
    emit("connect", { peer });
    if (offersFirst && peer === this.peer) this.#offerFirst(peer);
    this.#check();
  }

  close() {
    this.#closed = true;
    this.#drop();
  }

  #drop() {
    this.keep();
    const { peer } = this;
    if (!peer) return;
    this.peer = null;
    this.#channel?.end();
    this.#channel = undefined;
    this.#transceivers.clear();
    this.#outcome?.ended();
    peer.pc.close();
    this.#context.peers.delete(this.id);
    this.#context.emit("disconnect", { peer });
  }

  /** Stops all signals and repairs. The connection stays. */
  keep() {
    this.#lifetime.abort();
    clearTimeout(this.#timer);
    this.#timer = undefined;
    clearTimeout(this.#relayTimer);
    if (this.peer) RELAYED.delete(this.peer);
    this.#channel?.relay(null);
  }

  /** Begins afresh in the room's new session, unless the connection works: the peer makes an offer to the new
   * id. */
  sessionStarted() {
    if (this.#ownId === this.#context.room.id) return;
    this.#ownId = this.#context.room.id;
    this.#enqueue(async () => {
      if (this.peer?.state !== "connected") this.open(false);
    });
  }

  // Tracks

  /** @param {MediaStreamTrack} track @param {MediaStream[]} streams */
  addTrack(track, streams) {
    if (!this.peer) return;
    const { pc } = this.peer;
    // Reuse a free transceiver: each new one stays in the description for good.
    const used = new Set(this.#transceivers.values());
    const free = pc.getTransceivers().find((transceiver) => {
      const usable = transceiver.receiver.track.kind === track.kind && transceiver.direction !== "stopped";
      return usable && !used.has(transceiver);
    });
    if (free) {
      free.sender.setStreams(...streams);
      free.direction = "sendrecv";
      this.#transceivers.set(track, free);
      this.#attempt(() => free.sender.replaceTrack(track));
    } else {
      const sender = pc.addTrack(track, ...streams);
      const added = pc.getTransceivers().find((transceiver) => transceiver.sender === sender);
      if (added) this.#transceivers.set(track, added);
    }
  }

  /** @param {MediaStreamTrack} old @param {MediaStreamTrack} track */
  replaceTrack(old, track) {
    const transceiver = this.#transceivers.get(old);
    if (!transceiver) return;
    this.#transceivers.delete(old);
    this.#transceivers.set(track, transceiver);
    this.#attempt(() => transceiver.sender.replaceTrack(track));
  }

  /** @param {MediaStreamTrack} track */
  removeTrack(track) {
    const transceiver = this.#transceivers.get(track);
    this.#transceivers.delete(track);
    // The peer may have stopped it.
    if (!transceiver || transceiver.direction === "stopped") return;
    transceiver.direction = "recvonly";
    this.#attempt(() => transceiver.sender.replaceTrack(null));
  }

  // Signals of the peer

  /** @param {any} data */
  applyOffer(data) {
    this.#enqueue(async () => {
      const { id, remote, sdp } = parse(data);
      if (id !== undefined && id === this.#answered) return this.#mayRepeat() && this.#sendAnswer();
      const replaced = this.#remote !== null && this.#remote !== remote;
      if (this.#offer && !this.#polite) {
        // The peer withdraws its offer when it gets the own one: perhaps it had no mesh then.
        if (replaced) await this.#replace(true);
        else if (this.#remote === null && this.#mayRepeat()) await this.#send("offer", this.#offer);
        return;
      }
      // In the collision of first offers, a second channel `mesh` and unused transceivers would remain.
      if (!this.peer || replaced || (this.#offer && this.#remote === null)) await this.#replace(false);
      const pc = await this.#prepare();
      if (!pc) return;
      await pc.setRemoteDescription({ type: "offer", sdp });
      this.#described(data, remote);
      await pc.setLocalDescription();
      this.#answered = id;
      await this.#sendAnswer();
    });
  }

  #mayRepeat() {
    const now = performance.now();
    if (now - this.#repeatedAt < PEER_INTERVAL_MS) return false;
    this.#repeatedAt = now;
    return true;
  }

  /** Replaces the connection when the peer wants it.
   * @param {boolean} offersFirst */
  async #replace(offersFirst) {
    const wait = this.#replacedAt + PEER_INTERVAL_MS - performance.now();
    if (wait > 0) await new Promise((resolve) => setTimeout(resolve, wait));
    this.#lifetime.signal.throwIfAborted();
    this.open(offersFirst);
    this.#replacedAt = performance.now();
  }

  /** @param {any} data */
  applyAnswer(data) {
    this.#enqueue(async () => {
      const { id, remote, sdp } = parse(data);
      const offer = this.#offer;
      // A repeated answer, or one to a withdrawn offer.
      if (id !== undefined && id !== offer?.id) return;
      if (!offer) throw new Error("the peer sent an answer to no offer");
      const pc = await this.#prepare();
      if (!pc) return;
      await pc.setLocalDescription({ type: "offer", sdp: offer.sdp });
      this.#offer = null;
      await pc.setRemoteDescription({ type: "answer", sdp });
      this.#described(data, remote);
    });
  }

  /** Updates the ICE servers before the browser gathers candidates. */
  async #prepare() {
    const { peer } = this;
    if (peer && peer.state !== "connected") {
      await this.#context.renewIceServers();
      if (peer === this.peer) peer.pc.setConfiguration(this.#context.configuration());
    }
    return this.peer?.pc;
  }

  /** @param {any} data @param {string} remote */
  #described({ mesh, relay }, remote) {
    const isFirst = this.#remote === null;
    this.#remote = remote;
    this.#offer = null;
    this.#answered = undefined;
    this.mesh = mesh;
    if (!isFirst) {
      // One side is enough to look for a direct way.
      if (this.peer?.state === "relayed") this.#startTimer();
      return;
    }
    // ICE begins now.
    this.#outcome?.tried();
    this.#startTimer();
    const { peer } = this;
    if (!peer || this.#relayId === undefined) return;
    if (typeof relay === "number") {
      this.#relayTo = relay;
      this.#channel = new RelayedChannel(this.#context.room, () => this.#checkRelay());
      if (this.#made) this.#channel.attach(this.#made);
      this.#checkRelay();
    }
    const channel = /** @type {any} */ (this.#channel ?? this.#made);
    if (channel) this.#context.emit("datachannel", { peer, channel });
  }

  // The relay

  /** Begins or ends to relay. */
  #checkRelay() {
    if (!this.#channel || this.#lifetime.signal.aborted) return;
    const state = this.peer?.pc.connectionState;
    if (state === "connected" && this.#channel.isDirect) {
      clearTimeout(this.#relayTimer);
      this.#relayTimer = undefined;
      this.#setRelayed(false);
    } else if (state === "failed") {
      this.#setRelayed(true);
    } else {
      this.#relayTimer ??= setTimeout(() => this.#setRelayed(true), RELAY_AFTER_MS);
    }
    this.#check();
  }

  /** @param {boolean} relayed */
  #setRelayed(relayed) {
    const { peer } = this;
    const channel = this.#channel;
    if (!peer || !channel || RELAYED.has(peer) === relayed) return;
    if (relayed) RELAYED.add(peer);
    else RELAYED.delete(peer);
    const { room, relayedTo, stateChanged } = this.#context;
    relayedTo.unshift(this.id);
    relayedTo.splice(MAX_RELAYED_TO);
    channel.relay(relayed ? (packet) => {
      const head = new Uint8Array(RELAY_HEAD_BYTES);
      head.set(RELAY_MARK);
      new DataView(head.buffer).setUint32(RELAY_MARK.length, this.#relayTo ?? 0);
      room.sendBytes(this.id, concat(head, packet));
    } : null);
    this.#tellState(peer);
    stateChanged(this);
  }

  /** @param {MeshPeer} peer */
  #tellState(peer) {
    if (peer.state === this.#told) return;
    this.#told = peer.state;
    this.#context.emit("statechange", { peer });
  }

  /** @param {Uint8Array<ArrayBuffer>} bytes */
  receiveRelayed(bytes) {
    try {
      if (new DataView(bytes.buffer).getUint32(RELAY_MARK.length) !== this.#relayId) return;
      this.#channel?.receive(bytes.subarray(RELAY_HEAD_BYTES));
    } catch (error) {
      this.#context.emit("error", { id: this.id, error });
    }
  }

  /** @param {any} candidate */
  addCandidate(candidate) {
    this.#enqueue(async () => {
      const pc = this.peer?.pc;
      const ufrag = candidate?.usernameFragment;
      // A candidate of a replaced connection or an ignored offer.
      if (ufrag && !pc?.remoteDescription?.sdp.includes(`a=ice-ufrag:${ufrag}`)) return;
      await pc?.addIceCandidate(candidate);
    });
  }

  // Signals to the peer

  /** Adds what a first offer has: audio, video and the channel `mesh`.
   * @param {MeshPeer} peer */
  #offerFirst(peer) {
    this.#offers = true;
    const { pc } = peer;
    const kinds = new Set(pc.getTransceivers().map(({ receiver }) => receiver.track.kind));
    for (const kind of ["audio", "video"]) {
      if (!kinds.has(kind)) pc.addTransceiver(kind, { direction: "recvonly" });
    }
    this.#made = pc.createDataChannel("mesh");
    // Whether both sides relay is not known yet.
    if (!this.#context.relay) this.#context.emit("datachannel", { peer, channel: this.#made });
  }

  /** @param {RTCPeerConnection} pc */
  #makeOffer(pc) {
    this.#enqueue(async () => {
      // After the current exchange the browser asks again, if there is still a need.
      if (pc !== this.peer?.pc || this.#offer || !(this.#offers || this.#remote !== null)) return;
      if (pc.signalingState !== "stable") return;
      const { sdp = "" } = await pc.createOffer();
      this.#offer = { type: "offer", sdp, id: randomId(), mesh: this.#context.id, relay: this.#relayId };
      await this.#send("offer", this.#offer);
    });
  }

  #sendAnswer() {
    const sdp = this.peer?.pc.localDescription?.sdp ?? "";
    const mesh = this.#context.id;
    return this.#send("answer", { type: "answer", sdp, id: this.#answered, mesh, relay: this.#relayId });
  }

  /** Waits for the receipt. The queue waits for a description's: at most one is on its way.
   * @param {string} type @param {Description | RTCIceCandidate} data */
  async #send(type, data) {
    const { signal } = this.#lifetime;
    this.#sending += 1;
    try {
      await this.#context.room.send(this.id, type, data, { signal });
    } catch (error) {
      const expected = error instanceof RoomError && EXPECTED.includes(error.code);
      if (!expected && !signal.aborted) this.#context.emit("error", { id: this.id, error });
    }
    this.#sending -= 1;
  }

  // Repairs

  #mayRestartIce() {
    return this.peer?.pc.connectionState === "disconnected" && !this.#restarted && !this.#offer;
  }

  /** @param {RTCPeerConnection} pc */
  #restartIce(pc) {
    this.#restarted = true;
    pc.restartIce();
    this.#startTimer();
  }

  /** Starts or stops the timer. */
  #check() {
    const { state, pc } = this.peer ?? {};
    if (state === "connected" && pc?.signalingState === "stable" && !this.#offer) {
      this.#attempts = 0;
      this.#restarted = false;
      clearTimeout(this.#timer);
      this.#timer = undefined;
    } else if (this.#timer === undefined) {
      this.#startTimer();
    }
  }

  #startTimer() {
    // A kept or closed connection has no timer.
    if (this.#lifetime.signal.aborted) return;
    const longest = this.peer?.state === "relayed" ? MAX_RELAYED_MS : MAX_ATTEMPT_MS;
    const attempt = Math.min(ATTEMPT_MS * 2 ** this.#attempts, longest);
    const wait = (this.#mayRestartIce() ? DISCONNECTED_MS : attempt) * (this.#polite ? POLITE_FACTOR : 1);
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => {
      this.#timer = undefined;
      // Signals that are on their way get as much time again.
      if (this.#sending > 0 || this.#context.room.state !== "open") this.#startTimer();
      else this.#enqueue(() => this.#timedOut());
    }, this.#awaitsOffer ? FIRST_OFFER_MS : wait);
  }

  async #timedOut() {
    const { peer } = this;
    const connected = peer?.state === "connected";
    if (peer && this.#awaitsOffer) return this.#offerFirst(peer);
    if (peer && this.#mayRestartIce()) return this.#restartIce(peer.pc);
    this.#attempts += 1;
    const relayed = peer?.state === "relayed";
    if (!connected && !relayed && this.#attempts >= MAX_ATTEMPTS && this.#context.giveWay(this)) return;
    if (this.#offer && (connected || relayed || this.#remote === null)) await this.#send("offer", this.#offer);
    // A direct connection that has lost its channel gets no other.
    else if (relayed && peer.pc.connectionState !== "connected") peer.pc.restartIce();
    else this.open(true);
  }

  /** Runs a task after all before it.
   * @param {() => Promise<unknown>} task */
  #enqueue(task) {
    if (this.#queued >= MAX_SIGNALS) {
      const error = new Error(`${this.#queued} signals are queued: this one is dropped`);
      return this.#context.emit("error", { id: this.id, error });
    }
    this.#queued += 1;
    this.#queueEnd = this.#queueEnd.then(async () => {
      if (!this.#lifetime.signal.aborted) await this.#attempt(task);
      this.#queued -= 1;
      this.#check();
    });
  }

  /** Runs a task. A failure fires `error`, unless the connection is closed.
   * @param {() => Promise<unknown>} task */
  async #attempt(task) {
    try {
      await task();
    } catch (error) {
      if (!this.#lifetime.signal.aborted) this.#context.emit("error", { id: this.id, error });
    }
  }
}

/** @returns {string} unique for a room, not a secret */
function randomId() {
  return Math.random().toString(36).slice(2);
}

/** Reads an offer or answer. `remote` identifies the peer's RTCPeerConnection: a browser's by the session id of
 * the origin line (RFC 8866, section 5.2), which others change; theirs by the certificate.
 * @param {any} data */
function parse(data) {
  const sdp = String(data?.sdp);
  const [, remote = ""] = (data?.mesh ? /^o=\S+ (\S+)/m : /^a=fingerprint:(.+)/m).exec(sdp) ?? [];
  return { sdp, remote, id: typeof data?.id === "string" ? data.id : undefined };
}

// ---- 4. Relay ----

/** What is relayed begins with these bytes, so that the room keeps it from the application, and with the number that
 * the receiver's description has. */
const RELAY_MARK = Uint8Array.of(0xa7, 0x1d, 0xe5, 0x0c, 0x93, 0x4b, 0xf8, 0x66);
const RELAY_HEAD_BYTES = RELAY_MARK.length + 4;
/** A packet begins with two numbers: how many frames the sender has received, and how many it has sent before these. A
 * frame begins with its length, times eight, and these flags: text rather than bytes, a part with more to follow, and
 * the end of the channel. */
const [PACKET_HEAD_BYTES, FRAME_HEAD_BYTES] = [8, 4];
const [IS_TEXT, HAS_MORE, IS_END] = [1, 2, 4];
/** The longest packet, which others need not wait for long, and the longest message, as in browsers, in bytes. */
const [MAX_PACKET_BYTES, MAX_RELAYED_BYTES] = [1 << 13, 1 << 18];
/** How many packets are on their way through the room at most, and after how many they are confirmed. */
const [MAX_PACKETS, CONFIRM_PACKETS] = [8, 4];
/** How long a confirmation waits for more to confirm, how long it is waited for, and how long for place in the room's
 * queue, in ms. */
const [CONFIRM_MS, RESEND_MS, RETRY_MS] = [100, 10_000, 500];

/** The channel `mesh` between two sides that relay. To the application it is an RTCDataChannel, as far as it goes.
 *
 * Both sides number their frames, and keep them until the other has confirmed them. When the way changes, they send
 * again what is not confirmed, and the other leaves out what it has: nothing is lost, doubled or reordered. */
class RelayedChannel extends EventTarget {
  label = "mesh";
  binaryType = "arraybuffer";
  /** @type {RTCDataChannelState} */
  readyState = "connecting";
  bufferedAmount = 0;
  bufferedAmountLowThreshold = 0;
  #room;
  #changed;
  /** @type {RTCDataChannel | null} */
  #direct = null;
  /** @type {((packet: Uint8Array<ArrayBuffer>) => void) | null} */
  #relay = null;
  /** @type {Uint8Array<ArrayBuffer>[]} Frames that are not confirmed, and how many are before them. */
  #frames = [];
  #confirmed = 0;
  /** How many of those are sent this way, and where each packet through the room ends. */
  #sent = 0;
  /** @type {number[]} */
  #packets = [];
  /** How many frames have come, how many packets with them are not confirmed, and the parts of a message. */
  #received = 0;
  #unconfirmed = 0;
  /** @type {Uint8Array<ArrayBuffer>} */
  #partial = new Uint8Array();
  /** @type {Timer} */
  #confirmTimer;
  /** @type {Timer} */
  #resendTimer;

  /** @param {Room} room @param {() => void} changed called when the direct channel opens or closes */
  constructor(room, changed) {
    super();
    this.#room = room;
    this.#changed = changed;
    for (const type of ["open", "message", "bufferedamountlow", "close"]) {
      this.addEventListener(type, (event) => /** @type {any} */ (this)[`on${type}`]?.(event));
    }
  }

  get isDirect() {
    return this.#direct?.readyState === "open";
  }

  /** Takes a channel for the direct way, if there is none.
   * @param {RTCDataChannel} channel */
  attach(channel) {
    if (this.#direct) return false;
    this.#direct = channel;
    channel.binaryType = "arraybuffer";
    channel.addEventListener("message", ({ data }) => this.receive(new Uint8Array(data)));
    channel.addEventListener("open", () => {
      this.#changed();
      this.#changeWay();
    });
    channel.addEventListener("close", () => {
      this.#direct = null;
      this.#changed();
    });
    return true;
  }

  /** Begins to relay with this function, or ends it.
   * @param {((packet: Uint8Array<ArrayBuffer>) => void) | null} send */
  relay(send) {
    this.#relay = send;
    this.#changeWay();
  }

  #changeWay() {
    if (!this.#relay && !this.isDirect) return;
    if (this.readyState === "connecting") {
      this.readyState = "open";
      this.dispatchEvent(new Event("open"));
    }
    this.#restart();
  }

  /** Sends again what is not confirmed. */
  #restart() {
    clearTimeout(this.#resendTimer);
    this.#sent = 0;
    this.#packets = [];
    this.#flush();
    if (this.#unconfirmed > 0) this.#transmit(0);
  }

  /** @param {string | ArrayBuffer | ArrayBufferView} data */
  send(data) {
    if (this.readyState !== "open") throw new DOMException("the channel is not open", "InvalidStateError");
    const flag = typeof data === "string" ? IS_TEXT : 0;
    const bytes = typeof data === "string" ? new TextEncoder().encode(data) : toBytes(data);
    if (bytes.length > MAX_RELAYED_BYTES) {
      const message = `the message has ${bytes.length} bytes, the limit is ${MAX_RELAYED_BYTES}: send less`;
      throw new RoomError("message_too_large", message);
    }
    if (this.bufferedAmount + bytes.length > MAX_QUEUE_BYTES) {
      const message = `${this.bufferedAmount} bytes are not confirmed: wait for bufferedamountlow`;
      throw new RoomError("queue_full", message);
    }
    const overhead = ID_BYTES + RELAY_HEAD_BYTES + PACKET_HEAD_BYTES + FRAME_HEAD_BYTES;
    const size = Math.max(1, Math.min(MAX_PACKET_BYTES, this.#room.messageBytes) - overhead);
    let at = 0;
    do {
      const part = bytes.subarray(at, (at += size));
      this.#push(part, flag | (at < bytes.length ? HAS_MORE : 0));
    } while (at < bytes.length);
    this.#flush();
  }

  close() {
    if (this.readyState === "connecting") return this.end();
    if (this.readyState !== "open") return;
    this.readyState = "closing";
    this.#push(new Uint8Array(), IS_END);
    this.#flush();
  }

  /** @param {Uint8Array} payload @param {number} flags */
  #push(payload, flags) {
    const head = new Uint8Array(FRAME_HEAD_BYTES);
    new DataView(head.buffer).setUint32(0, payload.length * 8 + flags);
    const frame = concat(head, payload);
    this.#frames.push(frame);
    this.bufferedAmount += frame.length;
  }

  #flush() {
    while (this.#sent < this.#frames.length && (!this.#relay || this.#packets.length < MAX_PACKETS)) {
      let count = 0;
      let size = ID_BYTES + RELAY_HEAD_BYTES + PACKET_HEAD_BYTES;
      do size += this.#frames[this.#sent + count++].length;
      while (size + this.#frames[this.#sent + count]?.length <= Math.min(MAX_PACKET_BYTES, this.#room.messageBytes));
      if (!this.#transmit(count)) return;
    }
  }

  /** Sends the next frames, or only confirms.
   * @param {number} count */
  #transmit(count) {
    const head = new Uint8Array(PACKET_HEAD_BYTES);
    const view = new DataView(head.buffer);
    view.setUint32(0, this.#received);
    view.setUint32(4, this.#confirmed + this.#sent);
    const packet = concat(head, ...this.#frames.slice(this.#sent, this.#sent + count));
    try {
      if (this.#relay) this.#relay(packet);
      else if (this.isDirect) this.#direct?.send(packet);
      else return false;
    } catch {
      this.#startResendTimer(RETRY_MS);
      return false;
    }
    clearTimeout(this.#confirmTimer);
    this.#unconfirmed = 0;
    this.#sent += count;
    if (this.#relay && count > 0) {
      this.#packets.push(this.#confirmed + this.#sent);
      this.#startResendTimer(RESEND_MS);
    }
    return true;
  }

  /** @param {number} delay */
  #startResendTimer(delay) {
    clearTimeout(this.#resendTimer);
    this.#resendTimer = setTimeout(() => {
      // What waits in the room is not lost.
      if (this.#room.state !== "open" || this.#room.bufferedAmount > 0) this.#startResendTimer(delay);
      else this.#restart();
    }, delay);
  }

  /** @param {Uint8Array<ArrayBuffer>} packet */
  receive(packet) {
    const view = new DataView(packet.buffer, packet.byteOffset, packet.length);
    this.#confirm(view.getUint32(0));
    let number = view.getUint32(4);
    let at = PACKET_HEAD_BYTES;
    for (; at < packet.length; number += 1) {
      const head = view.getUint32(at);
      const payload = packet.slice(at + FRAME_HEAD_BYTES, (at += FRAME_HEAD_BYTES + (head >>> 3)));
      if (at > packet.length) throw new RangeError("a relayed packet is too short");
      if (number !== this.#received) continue;
      this.#received += 1;
      if (this.readyState !== "closed") this.#take(payload, head);
    }
    if (at === PACKET_HEAD_BYTES) return;
    this.#unconfirmed += 1;
    clearTimeout(this.#confirmTimer);
    if (this.#unconfirmed >= CONFIRM_PACKETS) this.#transmit(0);
    else this.#confirmTimer = setTimeout(() => this.#transmit(0), CONFIRM_MS);
  }

  /** @param {Uint8Array<ArrayBuffer>} payload @param {number} flags */
  #take(payload, flags) {
    if (flags & IS_END) return this.end();
    if (this.#partial.length + payload.length > MAX_RELAYED_BYTES) throw new RangeError("a relayed message is too long");
    this.#partial = concat(this.#partial, payload);
    if (flags & HAS_MORE) return;
    const { buffer } = this.#partial;
    this.#partial = new Uint8Array();
    const data = flags & IS_TEXT ? new TextDecoder().decode(buffer) : buffer;
    this.dispatchEvent(new MessageEvent("message", { data }));
  }

  /** @param {number} received how many frames the other side has */
  #confirm(received) {
    const frames = this.#frames.splice(0, Math.max(0, received - this.#confirmed));
    if (frames.length === 0) return;
    this.#confirmed += frames.length;
    this.#sent = Math.max(0, this.#sent - frames.length);
    this.#packets = this.#packets.filter((end) => end > received);
    const before = this.bufferedAmount;
    for (const { length } of frames) this.bufferedAmount -= length;
    clearTimeout(this.#resendTimer);
    if (this.#packets.length > 0) this.#startResendTimer(RESEND_MS);
    if (this.readyState === "closing" && this.#frames.length === 0) return this.end();
    const low = this.bufferedAmountLowThreshold;
    if (before > low && this.bufferedAmount <= low) this.dispatchEvent(new Event("bufferedamountlow"));
    this.#flush();
  }

  /** The channel is closed on both sides, or its connection. */
  end() {
    if (this.readyState === "closed") return;
    this.readyState = "closed";
    clearTimeout(this.#resendTimer);
    this.#frames = [];
    this.dispatchEvent(new Event("close"));
  }
}

/** @param {Uint8Array[]} parts */
function concat(...parts) {
  const all = new Uint8Array(parts.reduce((sum, { length }) => sum + length, 0));
  let at = 0;
  for (const part of parts) {
    all.set(part, at);
    at += part.length;
  }
  return all;
}

// ---- 5. Check ----

/** How long each wait of a check takes at most, in ms. */
const CHECK_MS = 10_000;
/** How many ICE servers are checked at most, each in a connection of its own. */
const MAX_PROBES = 16;
/** The code of `icecandidateerror` for a server that does not answer, and TURN's for wrong credentials. */
const [NO_ANSWER, UNAUTHORIZED] = [701, 401];

/** What was tried, whether it works, and how.
 * @typedef {{ name: string, ok: boolean, detail: string }} CheckStep */

/** Whether all steps work, what that means for calls, in a sentence, and the steps.
 * @typedef {{ ok: boolean, summary: string, steps: CheckStep[] }} CheckReport */

/** @typedef {object} CheckOptions
 * @property {string} [token] the JSON Web Token, if the server wants one
 * @property {AbortSignal} [signal] ends the check: its promise rejects with the signal's reason
 * @property {(step: CheckStep) => void} [onStep] called with each step when it is done */

/** An ICE server, and the type of candidates that it should give. `announced` is false for a TURN server over TCP that
 * the server announces only over UDP: calls do not use it.
 * @typedef {{ name: string, server: RTCIceServer, type: "srflx" | "relay", isUdp: boolean, announced: boolean }} Probe */

/** What ICE has found: the types of candidates, and why a server gave none.
 * @typedef {{ types: Set<string>, error: { code: number, text: string } | null, complete: boolean }} Found */

/** Tells whether and how this browser can connect to a server and to peers. It joins a room of its own for less than a
 * minute. A token that admits only to rooms that it names in full leads to the first of them: there the others see a
 * session that joins and leaves.
 * @param {string | URL} [url] the server's address, as for `join`
 * @param {CheckOptions} [options]
 * @returns {Promise<CheckReport>} rejects with the reason of the signal, or with a `TypeError` as `join` throws it */
export async function check(url, { token, signal, onStep } = {}) {
  signal?.throwIfAborted();
  const lifetime = new AbortController();
  const end = () => lifetime.abort();
  /** @type {Socket | undefined} The room's, to drop its connection. */
  let socket;
  let dropped = Promise.resolve();
  // The room calls it with `new`.
  /** @param {string} address @param {string} protocol */
  const connect = function (address, protocol) {
    return (socket = new WebSocket(address, protocol));
  };
  const room = join(checkRoom(token), { url, token, fallback: false, WebSocket: /** @type {any} */ (connect) });
  signal?.addEventListener("abort", end);
  /** @type {CheckStep[]} */
  const steps = [];
  /** @param {string} name @param {boolean} ok @param {string} detail */
  const add = (name, ok, detail) => {
    signal?.throwIfAborted();
    steps.push({ name, ok, detail });
    onStep?.({ name, ok, detail });
  };
  /** @param {string} summary */
  const report = (summary) => ({ ok: steps.every(({ ok }) => ok), summary, steps });
  const nextChange = () => within(lifetime.signal, (/** @type {(change: StateChange) => void} */ resolve) => {
    room.addEventListener("statechange", ({ detail }) => resolve(detail), { once: true });
  });
  const stopwatch = () => {
    const began = performance.now();
    return () => `${Math.round(performance.now() - began)} ms`;
  };

  try {
    let time = stopwatch();
    const opening = await nextChange();
    if (opening?.state !== "open") {
      const { isRefusal, why } = explain(opening, "it is down, or the network or a proxy blocks WebSocket");
      add("WebSocket", false, why);
      return report(`The server ${isRefusal ? "refuses the connection" : "cannot be reached"}: ${why}.`);
    }
    const opened = time();
    time = stopwatch();
    const cut = await Promise.race([room.send("server", "ping").then(() => null, nextChange), nextChange()]);
    if (cut !== null) {
      const { why } = explain(cut);
      add("WebSocket", false, `cut: ${why}`);
      return report(`The connection to the server was cut: ${why}.`);
    }
    add("WebSocket", true, `opens in ${opened}, round trip ${time()}`);

    time = stopwatch();
    dropped = new Promise((resolve) => room.addEventListener("statechange", () => resolve(), { once: true }));
    socket?.close(CLOSE_LOST, "check");
    await Promise.race([dropped, nextChange()]);
    const reopening = await nextChange();
    if (reopening?.state !== "open") {
      const { why } = explain(reopening);
      add("Resume", false, why);
      return report(`The connection to the server was cut, and does not return: ${why}.`);
    }
    const lost = "the session is lost: the server keeps none, or another server answered";
    add("Resume", reopening.resumed, reopening.resumed ? `resumed after ${time()}` : lost);

    const { iceServers } = room;
    const probes = iceProbes(iceServers);
    const finding = [gather({ iceServers }, lifetime.signal), ...probes.map(({ server, type }) => {
      const policy = type === "relay" ? type : "all";
      return gather({ iceServers: [server], iceTransportPolicy: policy }, lifetime.signal, type);
    })];
    const all = await finding[0];
    add("ICE candidates", all.types.size > 0, [...all.types].join(", ") || `none${all.error ? `: ${all.error.text}` : ""}`);
    const results = [];
    for (const [index, probe] of probes.entries()) {
      const result = { ...probe, ...judge(probe, await finding[index + 1]) };
      // Calls do not use it: only a success is news.
      if (result.announced || result.ok) add(result.name, result.ok, result.detail);
      results.push(result);
    }
    return report(meaning(all, results));
  } finally {
    signal?.removeEventListener("abort", end);
    end();
    // A connection that is being dropped cannot leave any more: the room resumes it to do so.
    dropped.then(() => room.leave());
  }
}

/** A room that nobody else knows, or one that the token admits to.
 * @param {string} [token] */
function checkRoom(token) {
  const own = `check-${crypto.getRandomValues(new Uint32Array(4)).join("-")}`;
  try {
    const payload = atob(String(token?.split(".")[1]).replaceAll("-", "+").replaceAll("_", "/"));
    const bytes = Uint8Array.from(payload, (character) => character.charCodeAt(0));
    /** @type {string[]} */
    const names = [JSON.parse(new TextDecoder().decode(bytes)).room ?? "*"].flat();
    const pattern = names.find((name) => name.endsWith("*"));
    return pattern !== undefined ? pattern.slice(0, -1) + own : names[0];
  } catch {
    // There is no token, or the server will say what is wrong with it.
    return own;
  }
}

/** What has ended a connection or an attempt.
 * @param {StateChange | undefined} change `undefined` if there was none in time
 * @param {string} [unknown] what it is if the browser does not tell */
function explain(change, unknown = "the browser tells no reason") {
  const { code, reason } = change && "code" in change ? change : { code: CLOSE_LOST, reason: "no answer in time" };
  const isRefusal = code === CLOSE_NOT_ALLOWED || code >= REFUSED_TOKEN;
  return { isRefusal, why: reason || (code === CLOSE_FAILED ? unknown : `code ${code}`) };
}

/** The first value that `start` resolves with, or `undefined` after `CHECK_MS` or when the signal aborts.
 * @template Value
 * @param {AbortSignal} signal
 * @param {(resolve: (value: Value) => void, reject: (reason: unknown) => void) => void} start
 * @returns {Promise<Value | undefined>} */
function within(signal, start) {
  return new Promise((resolve, reject) => {
    /** @param {Value} [value] */
    const end = (value) => {
      clearTimeout(timer);
      signal.removeEventListener("abort", stop);
      resolve(value);
    };
    const stop = () => end();
    const timer = setTimeout(stop, signal.aborted ? 0 : CHECK_MS);
    signal.addEventListener("abort", stop);
    start(end, reject);
  });
}

/** @param {RTCIceServer[]} iceServers
 * @returns {Probe[]} */
function iceProbes(iceServers) {
  const announcedUrls = iceServers.flatMap(({ urls }) => urls);
  return iceServers.flatMap((server) => [server.urls].flat().flatMap((url) => {
    const [, scheme = "", host, transport] = /^(\w+):([^?]*)(?:\?transport=(\w+))?/.exec(url) ?? [];
    const isTurn = scheme.startsWith("turn");
    /** @param {string} urls @param {string} over @returns {Probe} */
    const probe = (urls, over) => ({
      name: isTurn ? `TURN ${host} over ${over}` : `STUN ${host}`,
      server: { ...server, urls },
      type: isTurn ? "relay" : "srflx",
      isUdp: over === "UDP",
      announced: announcedUrls.includes(urls),
    });
    const own = probe(url, scheme.endsWith("s") ? "TLS" : (transport ?? "udp").toUpperCase());
    const overTcp = probe(`${url}?transport=tcp`, "TCP");
    return scheme !== "turn" || transport || overTcp.announced ? [own] : [own, overTcp];
  })).slice(0, MAX_PROBES);
}

/** Gathers candidates until all are found, or one of a type.
 * @param {RTCConfiguration} configuration @param {AbortSignal} signal @param {string} [type]
 * @returns {Promise<Found>} */
async function gather(configuration, signal, type) {
  /** @type {Found} */
  const found = { types: new Set(), error: null, complete: false };
  /** @type {RTCPeerConnection | undefined} */
  let pc;
  try {
    const connection = (pc = new RTCPeerConnection(configuration));
    await within(signal, (resolve, reject) => {
      connection.addEventListener("icecandidate", ({ candidate }) => {
        const [, kind] = / typ (\w+)/.exec(candidate?.candidate ?? "") ?? [];
        if (kind) found.types.add(kind);
        found.complete = candidate === null;
        if (found.complete || (kind && kind === type)) resolve(null);
      });
      connection.addEventListener("icecandidateerror", ({ errorCode, errorText }) => {
        // Each address of this machine may have an error: an answer says more than none.
        if ((found.error?.code ?? NO_ANSWER) === NO_ANSWER) found.error = { code: errorCode, text: errorText };
      });
      connection.createDataChannel("check");
      connection.setLocalDescription().catch(reject);
    });
  } catch (error) {
    found.error = { code: NO_ANSWER, text: String(error) };
  }
  pc?.close();
  return found;
}

/** @param {Probe} probe @param {Found} found
 * @returns {{ ok: boolean, answers: boolean, code?: number, detail: string }} */
function judge({ type, announced, server }, { types, error, complete }) {
  if (types.has(type)) {
    const unused = `answers, but calls do not use it: the server announces no ${server.urls}`;
    return { ok: true, answers: true, detail: announced ? "answers" : unused };
  }
  // A public address is no second candidate. A browser without these errors tells nothing then.
  const mayBePublic = type === "srflx" && types.has("host") && complete && !error;
  if (mayBePublic && "onicecandidateerror" in RTCPeerConnection.prototype) {
    return { ok: true, answers: true, detail: "answers: there is no NAT between" };
  }
  const { code, text } = error ?? { code: NO_ANSWER, text: "" };
  const answers = code !== NO_ANSWER;
  const why = code === UNAUTHORIZED ? "refuses the credentials" : "gives no address";
  return { ok: false, answers, code, detail: `${answers ? why : "no answer"}${text && ` (${text})`}` };
}

/** What the steps mean for calls.
 * @param {Found} all
 * @param {(Probe & { ok: boolean, answers: boolean, code?: number })[]} results */
function meaning({ types }, results) {
  const overUdp = results.filter(({ isUdp }) => isUdp);
  const relays = results.filter(({ type, announced }) => type === "relay" && announced);
  if (relays.some(({ ok }) => ok)) {
    const isBlocked = overUdp.length > 0 && !overUdp.some(({ answers }) => answers);
    if (isBlocked) return "This network seems to block UDP: calls go over TCP through the relay.";
    return "Calls should connect: a relay answers.";
  }
  if (types.size === 0) return "Calls do not work: a setting or an extension of this browser blocks WebRTC.";
  let why = "There is no relay";
  if (relays.some(({ code }) => code === UNAUTHORIZED)) why = "The relay refuses the server’s credentials";
  else if (relays.some(({ answers }) => answers)) why = "No relay works";
  else if (results.some(({ ok, announced }) => ok && !announced)) why = "The relay answers only over TCP, which the server does not announce";
  else if (relays.length > 0) why = "No relay answers";
  return `${why}: calls work only where the network lets peers reach each other directly.`;
}
