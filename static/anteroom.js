// The client module of an anteroom server, for browsers and for every other runtime that has WebSocket.
//
// This file is the whole module: import it from a server (`/anteroom.js`), or copy it. It has no
// dependencies and needs no build step. It has three parts, each of which uses only the parts before it:
//
// 1. Room         a session in a room: connecting, sending, receiving, reconnecting, resuming
// 2. Mesh         a WebRTC connection to every peer of a room
// 3. Negotiation  offers, answers and candidates of one WebRTC connection (private)
//
// Public: `join`, `Room`, `RoomError`, `Mesh`, `MeshPeer`, and the types in `@typedef`.

/* ------------------------------------------------------------------------------------------------
 * 1. Room
 * ---------------------------------------------------------------------------------------------- */

/** The WebSocket subprotocol that the client offers. */
const SUBPROTOCOL = "anteroom.v1";
/** The delay before the first reconnection attempt, in ms. Each further attempt doubles it. */
const FIRST_RETRY_MS = 500;
/** The longest delay between reconnection attempts, in ms. */
const MAX_RETRY_MS = 30_000;
/** The longest delay that a restarting server may ask for, in ms. */
const MAX_SERVER_RETRY_MS = 3_600_000;
/** A connection that was open for this long, in ms, resets the delay to `FIRST_RETRY_MS`. */
const STABLE_AFTER_MS = 10_000;
/** How long an overdue pong is still accepted, in ms. A page that was frozen runs its timers before it
 * reads what has arrived meanwhile. */
const LATE_PONG_MS = 50;
/** The limit of unacknowledged and queued messages together, and of messages that arrive before the
 * roster, in bytes. */
const MAX_QUEUE_BYTES = 1 << 20;

/** Close codes of RFC 6455, section 7.4, as anteroom uses them. `CLOSE_CONNECTION_LOST` tells the server
 * that the client gives up only the connection: the session stays resumable. A browser cannot drop a
 * connection without a Close frame. */
const CLOSE_NORMAL = 1000;
const CLOSE_NOT_ALLOWED = 1008;
const CLOSE_RESTART = 1012;
const CLOSE_CONNECTION_LOST = 4000;

/** Reasons of the server's Close frames that the client acts on. */
const TAKEN_OVER = /^resumed/;
const TOKEN_REJECTED = /^the token/;
const RETRY_DELAY = /retry in (\d+) ms/;

/** Another session in the room. `id` is its session id, `data` what its token says of it publicly, or
 * `null`. `newcomer` is whether it joined after this session. By convention, the session that joined
 * first makes the first WebRTC offer.
 * @typedef {{ readonly id: string, readonly data: unknown, readonly newcomer: boolean }} Peer */

/** A message from another session, or from the application behind the server (then `sender` is
 * `"server"`).
 * @typedef {{ type: string, sender: string, receiver: string, data: unknown }} Message */

/** The state of a room: `connecting` until the first connection is open or has failed, `open`,
 * `reconnecting` after a failed attempt or a lost connection, and finally `closed`.
 * @typedef {"connecting" | "open" | "reconnecting" | "closed"} RoomState */

/** The new state. `resumed` is whether the old session continues; if not, the session and its id are
 * new. `code` and `reason` are those of the Close frame (RFC 6455, section 7.1.5). `delay` is the time
 * until the next attempt, in ms.
 * @typedef {{ state: "connecting" } | { state: "open", resumed: boolean }
 *   | { state: "reconnecting", code: number, reason: string, delay: number }
 *   | { state: "closed", code: number, reason: string }} StateChange */

/** A message as sent or received, for debugging.
 * @typedef {{ direction: "in" | "out", text: string }} WireMessage */

/** The server's receipt for a message: how many sessions it was delivered to.
 * @typedef {{ receivers: number }} Receipt */

/** The events of a `Room` by type, with the type of their `detail`.
 * @typedef {object} RoomEvents
 * @property {StateChange} statechange the state has changed
 * @property {Peer} peerjoin a peer is in the room: fires for each peer that is there when the room opens,
 *   and for each that joins later
 * @property {Peer} peerleave a peer is no longer in the room: it left, a new session's roster lacks it,
 *   or the room is closed
 * @property {Message} message a message has arrived
 * @property {RoomError} error an error that belongs to no `send`: the server's answer to a text sent with
 *   `sendRaw`, or a malformed message of the server
 * @property {WireMessage} wire a message was sent or received */

/** Options of `join`.
 * @typedef {object} JoinOptions
 * @property {string | URL} [url] the server's address, with the scheme `http`, `https`, `ws` or `wss`;
 *   required where this module is copied or bundled, because the default is the server that this module
 *   was imported from
 * @property {string | (() => string)} [token] the JSON Web Token that grants access, or a function that
 *   returns the current one; the function runs before each connection attempt and must be synchronous.
 *   With a function, the room also reconnects after the server has closed the session because of its
 *   token, for example when the token has expired.
 * @property {number} [idleTimeout] after this time without a message from the server, in ms, the client
 *   sends a ping (25,000 by default)
 * @property {number} [timeout] after this time without an answer to a connection attempt or a ping, in
 *   ms, the client gives up the connection and reconnects (10,000 by default) */

/** An EventTarget with typed events.
 * @template Events
 * @typedef {Omit<EventTarget, "addEventListener" | "removeEventListener"> & {
 *   addEventListener<Type extends keyof Events>(type: Type, listener: Listener<Events[Type]>,
 *     options?: boolean | AddEventListenerOptions): void,
 *   removeEventListener<Type extends keyof Events>(type: Type, listener: Listener<Events[Type]>,
 *     options?: boolean | EventListenerOptions): void,
 * }} TypedTarget */

/** @template Detail
 * @typedef {((event: CustomEvent<Detail>) => void)
 *   | { handleEvent(event: CustomEvent<Detail>): void } | null} Listener */

/** The code of a `RoomError`. The codes of the first line come from the server, those of the second from
 * this module. `connection_lost` means that the message was sent, and that it is unknown whether it
 * arrived.
 * @typedef {"bad_message" | "unknown_receiver" | "empty_room" | "unknown_request" | "rate_limited" | "not_allowed"
 *   | "closed" | "connection_lost" | "message_too_large" | "not_open" | "queue_full"} ErrorCode */

/** The error of a message or request that failed. `message` is a sentence for people, `code` is stable. */
export class RoomError extends Error {
  /** @param {ErrorCode} code
   * @param {string} message */
  constructor(code, message) {
    super(message);
    this.name = "RoomError";
    /** @readonly */
    this.code = code;
  }
}

/** Joins a room. The room connects, and reconnects whenever the connection is lost, until `leave()`.
 * @param {string} room the name of the room, 1 to 128 bytes of UTF-8 without control characters
 * @param {JoinOptions} [options]
 * @returns {Room}
 * @throws {TypeError} if the name or the server's address is not valid */
export function join(room, options) {
  return new Room(room, options);
}

const RoomTarget = /** @type {new () => TypedTarget<RoomEvents>} */ (EventTarget);

/** A room, as seen by one session in it. `join` makes it.
 *
 * Messages travel at most once per connection, and exactly once across resumed connections. For that,
 * the room keeps each message until the server is known to have received it, and sends the rest again
 * after a resume. */
export class Room extends RoomTarget {
  #url;
  #accessToken;
  #idleTimeout;
  #timeout;

  /** @type {RoomState} */
  #state = "connecting";
  /** @type {string | null} */
  #id = null;
  /** @type {Map<string, Peer>} */
  #peers = new Map();
  /** @type {RTCIceServer[]} */
  #iceServers = [];
  #maxMessageBytes = Infinity;

  /** @type {WebSocket | null} The current connection. Events of earlier ones are ignored. */
  #socket = null;
  /** Failed or short-lived connections in a row. */
  #attempts = 0;
  #openedAt = Infinity;
  /** @type {ReturnType<typeof setTimeout> | undefined} The one running timer: reconnection, time limit
   * of an attempt, idle timeout, or time limit of a ping. */
  #timer;
  /** Aborted when the room is closed: removes the listeners on the global object. */
  #lifetime = new AbortController();

  /** @type {string | null} The token to resume the session with; `null` if there is no session, or the
   * server does not resume it. */
  #resumeToken = null;
  /** Messages received in this session, without `resumed`. */
  #received = 0;
  /** @type {{ messages: Message[], newcomers: Set<string>, bytes: number } | null} What has arrived while
   * a new session waits for the roster (the answer to `hello`). */
  #beforeRoster = null;

  #lastRef = 0;
  /** @type {Map<number, { resolve(receipt: Receipt): void, reject(reason: unknown): void }>} The promises
   * that `send` has returned, by `ref`. */
  #receipts = new Map();
  /** @type {{ ref: number, text: string, bytes: number, signal?: AbortSignal }[]} Not sent yet. */
  #queue = [];
  #queuedBytes = 0;
  /** Whether messages are sent at once. False also while the listeners of `statechange` to `open` run. */
  #canSend = false;
  /** @type {{ ref?: number, text: string, bytes: number }[]} Sent in this session, and not known to have
   * been received by the server. */
  #unacknowledged = [];
  #unacknowledgedBytes = 0;
  /** Messages of this session that the server is known to have received. */
  #acknowledged = 0;

  /** @param {string} name
   * @param {JoinOptions} [options] */
  constructor(name, { url, token, idleTimeout = 25_000, timeout = 10_000 } = {}) {
    super();
    this.#url = roomUrl(name, url ?? new URL(".", import.meta.url));
    this.#accessToken = token;
    this.#idleTimeout = idleTimeout;
    this.#timeout = timeout;
    this.#connect();
    const { signal } = this.#lifetime;
    globalThis.addEventListener?.("online", () => this.#networkChanged(true), { signal });
    globalThis.addEventListener?.("offline", () => this.#networkChanged(false), { signal });
  }

  /** The session's id, `null` until the room is open. It stays the same when the session is resumed after
   * a reconnection. Otherwise the id is new: for the peers, the old session has left and a new one has
   * joined. */
  get id() {
    return this.#id;
  }

  /** The other sessions in the room by id, longest-joined first. The map is live: it changes before each
   * event fires.
   * @returns {ReadonlyMap<string, Peer>} */
  get peers() {
    return this.#peers;
  }

  /** The server's STUN and TURN servers, for `RTCPeerConnection`. */
  get iceServers() {
    return this.#iceServers;
  }

  /** The state of the connection to the server. */
  get state() {
    return this.#state;
  }

  /** Sends a message. Without a connection, the message waits for one.
   *
   * The promise may be ignored: its rejection is never reported as unhandled. The server's answers to
   * requests are not messages: the promise of `send("server", "ping")` resolves when the answer arrives.
   * @param {string} receiver a session id, `"all"` or `"server"`
   * @param {string} type 1 to 64 bytes, chosen by the application
   * @param {unknown} [data] any value that JSON can represent
   * @param {{ signal?: AbortSignal }} [options] aborting `signal` withdraws a message that is still queued
   * @returns {Promise<Receipt>} rejects with a `RoomError`; with a `TypeError` if JSON cannot represent
   *   `data`; with the signal's reason if the message was withdrawn, when its turn comes */
  send(receiver, type, data, { signal } = {}) {
    const receipt = new Promise((resolve, reject) => {
      const ref = ++this.#lastRef;
      const text = JSON.stringify({ type, receiver, data, ref });
      const bytes = byteLength(text);
      if (this.#state === "closed") {
        throw new RoomError("closed", "the room is closed: join it again");
      }
      this.#checkSize(bytes);
      this.#checkQueue(bytes);
      this.#receipts.set(ref, { resolve, reject });
      this.#queue.push({ ref, text, bytes, signal });
      this.#queuedBytes += bytes;
      this.#flush();
    });
    receipt.catch(() => {});
    return receipt;
  }

  /** Sends a message to every other session in the room. Rejects with `empty_room` if there is none.
   * @param {string} type
   * @param {unknown} [data]
   * @returns {Promise<Receipt>} */
  broadcast(type, data) {
    return this.send("all", type, data);
  }

  /** Sends a text unchanged, for debugging. The event `wire` shows the answer.
   * @param {string} text
   * @throws {RoomError} if the room is not open, the text exceeds the server's limit, or the queue is
   *   full */
  sendRaw(text) {
    if (this.#state !== "open") {
      throw new RoomError("not_open", "the room is not open: wait until it has reconnected");
    }
    const bytes = byteLength(text);
    this.#checkSize(bytes);
    this.#checkQueue(bytes);
    this.#write(text);
  }

  /** Leaves the room. A room that was left cannot be opened again. */
  leave() {
    if (this.#state === "closed") return;
    this.#socket?.close(CLOSE_NORMAL);
    this.#close(CLOSE_NORMAL, "left");
  }

  // Connecting

  #connect() {
    const url = new URL(this.#url);
    if (this.#resumeToken) url.search = `resume=${this.#resumeToken}&received=${this.#received}`;
    const token = typeof this.#accessToken === "function" ? this.#accessToken() : this.#accessToken;
    if (token) url.searchParams.append("token", token);
    const socket = new WebSocket(url, SUBPROTOCOL);
    this.#socket = socket;
    socket.addEventListener("open", () => {
      if (socket === this.#socket && !this.#resumeToken) this.#startSession();
    });
    socket.addEventListener("message", ({ data }) => {
      if (socket === this.#socket) this.#receive(data);
    });
    socket.addEventListener("close", ({ code, reason }) => {
      if (socket === this.#socket) this.#connectionLost(code, reason);
    });
    this.#startTimer(this.#timeout, () => this.#dropConnection("no answer in time"));
  }

  /** Starts a timer in place of the running one.
   * @param {number} delay in ms
   * @param {() => void} callback */
  #startTimer(delay, callback) {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(callback, delay);
  }

  /** Sends a ping, and drops the connection if nothing arrives in time. */
  #ping() {
    // `send` counts from 1: the receipt for 0 acknowledges what was sent before, and settles no promise.
    this.#write('{"type":"ping","receiver":"server","ref":0}', 0);
    this.#startTimer(this.#timeout, () => {
      this.#startTimer(LATE_PONG_MS, () => this.#dropConnection("no pong in time"));
    });
  }

  /** @param {boolean} online */
  #networkChanged(online) {
    if (this.#state === "open") this.#ping();
    else if (online && !this.#socket) this.#connect();
  }

  /** Gives up the connection, without waiting for the server's Close frame.
   * @param {string} reason */
  #dropConnection(reason) {
    this.#socket?.close(CLOSE_CONNECTION_LOST, reason);
    this.#connectionLost(CLOSE_CONNECTION_LOST, reason);
  }

  /** Schedules the next connection attempt, or closes the room if the server does not allow one.
   * @param {number} code
   * @param {string} reason */
  #connectionLost(code, reason) {
    if (code === CLOSE_NOT_ALLOWED && !this.#mayReconnect(reason)) return this.#close(code, reason);
    this.#socket = null;
    this.#canSend = false;
    if (!this.#resumeToken) this.#endSession(0);
    if (performance.now() - this.#openedAt > STABLE_AFTER_MS) this.#attempts = 0;
    this.#openedAt = Infinity;
    const requested = code === CLOSE_RESTART && RETRY_DELAY.exec(reason);
    const delay = requested
      ? Math.min(Number(requested[1]), MAX_SERVER_RETRY_MS)
      : Math.min(FIRST_RETRY_MS * 2 ** this.#attempts, MAX_RETRY_MS) * (0.5 + Math.random() / 2);
    this.#attempts += 1;
    this.#startTimer(delay, () => this.#connect());
    this.#setState({ state: "reconnecting", code, reason, delay });
  }

  /** Whether another attempt can succeed after the server closed the connection with
   * `CLOSE_NOT_ALLOWED`. An attempt that the client gave up may reach the server late and take the
   * session over; the next attempt takes it back. A rejected token may have a successor if a function
   * returns it.
   * @param {string} reason */
  #mayReconnect(reason) {
    return TAKEN_OVER.test(reason) || (typeof this.#accessToken === "function" && TOKEN_REJECTED.test(reason));
  }

  /** Closes the room for good.
   * @param {number} code
   * @param {string} reason */
  #close(code, reason) {
    this.#socket = null;
    this.#canSend = false;
    this.#queue = [];
    clearTimeout(this.#timer);
    this.#lifetime.abort();
    this.#state = "closed";
    for (const ref of this.#receipts.keys()) {
      this.#takeReceipt(ref)?.reject(new RoomError("closed", `the room is closed: ${reason}`));
    }
    for (const id of this.#peers.keys()) this.#removePeer(id);
    this.#setState({ state: "closed", code, reason });
  }

  /** @param {StateChange} change */
  #setState(change) {
    this.#state = change.state;
    this.#emit("statechange", change);
  }

  // The session: starting, resuming, ending

  /** Asks for the roster and for a resumable session. */
  #startSession() {
    this.#beforeRoster = { messages: [], newcomers: new Set(), bytes: 0 };
    this.#write('{"type":"hello","receiver":"server","data":{"resume":true}}');
  }

  /** Handles the roster: fires `peerjoin` and `peerleave` for each difference to the known peers. The
   * answer to an application's own `hello` takes the same path, but starts no session.
   * @param {string} id
   * @param {{ peers: { id: string, data: unknown }[], iceServers: RTCIceServer[],
   *   resume: { token: string } | null, limits: { messageBytes: number } }} data */
  #receiveRoster(id, { peers, iceServers, resume, limits }) {
    const before = this.#beforeRoster;
    this.#beforeRoster = null;
    if (before) this.#resumeToken = resume?.token ?? null;
    this.#id = id;
    this.#iceServers = iceServers;
    this.#maxMessageBytes = limits.messageBytes;
    const present = new Set(peers.map((peer) => peer.id));
    for (const known of this.#peers.keys()) if (!present.has(known)) this.#removePeer(known);
    for (const { id: peer, data } of peers) {
      // For a new session every peer is older, except those whose `new` came before the roster.
      const newcomer = before ? before.newcomers.has(peer) : (this.#peers.get(peer)?.newcomer ?? true);
      this.#addPeer({ id: peer, data, newcomer });
    }
    if (!before || this.#state === "closed") return;

    this.#setOpen(false);
    for (const message of before.messages) {
      // A sender that the roster lacks has left before it.
      const known = present.has(message.sender) || message.sender === "server";
      if (known && this.#state === "open") this.#dispatch(message, 0);
    }
  }

  /** Continues the session on a new connection: sends again what the server has not received.
   * @param {number} received how many messages of this session the server has received */
  #resumeSession(received) {
    this.#acknowledge(received - this.#acknowledged);
    for (const { text } of this.#unacknowledged) this.#transmit(text);
    this.#setOpen(true);
  }

  /** Forgets the session. Rejects the receipts of what was sent in it; what is queued is sent in the next
   * one.
   * @param {number} received how many messages of the next session have arrived already */
  #endSession(received) {
    this.#resumeToken = null;
    this.#received = received;
    this.#acknowledged = this.#unacknowledgedBytes = 0;
    this.#unacknowledged = [];
    const queued = new Set(this.#queue.map(({ ref }) => ref));
    for (const ref of this.#receipts.keys()) {
      if (queued.has(ref)) continue;
      const message = "the connection was lost before the receipt arrived";
      this.#takeReceipt(ref)?.reject(new RoomError("connection_lost", message));
    }
  }

  /** Opens the room, and sends what is queued after the listeners of `statechange` have run.
   * @param {boolean} resumed */
  #setOpen(resumed) {
    this.#openedAt = performance.now();
    this.#setState({ state: "open", resumed });
    // A listener may have left the room.
    this.#canSend = this.#state === "open";
    this.#flush();
  }

  // Sending

  /** Sends the queued messages in order. */
  #flush() {
    while (this.#canSend) {
      const next = this.#queue.shift();
      if (!next) return;
      this.#queuedBytes -= next.bytes;
      try {
        next.signal?.throwIfAborted();
        this.#checkSize(next.bytes);
        this.#write(next.text, next.ref);
      } catch (error) {
        this.#takeReceipt(next.ref)?.reject(error);
      }
    }
  }

  /** Sends a message, and keeps it until the server is known to have received it.
   * @param {string} text
   * @param {number} [ref] */
  #write(text, ref) {
    const bytes = byteLength(text);
    this.#unacknowledged.push({ ref, text, bytes });
    this.#unacknowledgedBytes += bytes;
    this.#transmit(text);
  }

  /** @param {string} text */
  #transmit(text) {
    this.#socket?.send(text);
    this.#emit("wire", { direction: "out", text });
  }

  /** Removes the oldest unacknowledged messages: the server has received them.
   * @param {number} count */
  #acknowledge(count) {
    for (const { bytes } of this.#unacknowledged.splice(0, count)) this.#unacknowledgedBytes -= bytes;
    this.#acknowledged += count;
  }

  /** Removes the promise of a message, to settle it.
   * @param {number} ref */
  #takeReceipt(ref) {
    const receipt = this.#receipts.get(ref);
    this.#receipts.delete(ref);
    return receipt;
  }

  /** @param {number} bytes */
  #checkSize(bytes) {
    if (bytes <= this.#maxMessageBytes) return;
    const message = `the message has ${bytes} bytes, the server accepts ${this.#maxMessageBytes}: send less at once`;
    throw new RoomError("message_too_large", message);
  }

  /** @param {number} bytes */
  #checkQueue(bytes) {
    const waiting = this.#queuedBytes + this.#unacknowledgedBytes;
    if (waiting + bytes <= MAX_QUEUE_BYTES) return;
    const message = `${waiting} bytes are queued or not acknowledged yet: wait for receipts before sending more`;
    throw new RoomError("queue_full", message);
  }

  // Receiving

  /** @param {string} text */
  #receive(text) {
    this.#emit("wire", { direction: "in", text });
    if (this.#state === "closed") return;
    this.#received += 1;
    try {
      this.#dispatch(JSON.parse(text), text.length);
    } catch (error) {
      this.#emit("error", new RoomError("bad_message", `the server sent ${text}: ${error}`));
    }
    if (this.#state === "open") this.#startTimer(this.#idleTimeout, () => this.#ping());
  }

  /** Handles a message, or stores it if it arrives before the roster.
   * @param {Message} message
   * @param {number} bytes its size, for the limit of what is stored */
  #dispatch(message, bytes) {
    const { type, sender, receiver } = message;
    if (typeof type !== "string" || typeof sender !== "string") {
      throw new TypeError("the message lacks a type or a sender");
    }
    const data = /** @type {any} */ (message.data);
    if (sender === "server" && type === "hello") return this.#receiveRoster(receiver, data);
    if (sender === "server" && type === "pong") return;
    if (sender === "server" && type === "resumed") {
      // The server does not count `resumed`.
      this.#received -= 1;
      return this.#resumeSession(data.received);
    }
    if (sender === "server" && (type === "ack" || type === "error")) return this.#receiveAnswer(type, data);
    const isNew = type === "new" && receiver === "all";
    if (this.#beforeRoster) {
      if (isNew) this.#beforeRoster.newcomers.add(sender);
      else this.#beforeRoster.messages.push(message);
      this.#beforeRoster.bytes += bytes;
      if (this.#beforeRoster.bytes > MAX_QUEUE_BYTES) this.#dropConnection("too much came before the answer to hello");
      return;
    }
    // A peer can send a message of type `new` itself: it looks like the server's, and is ignored.
    if (isNew && !this.#peers.has(sender)) this.#addPeer({ id: sender, data, newcomer: true });
    else if (isNew) return;
    // Only the server can send the receiver `null`.
    else if (type === "close" && receiver === null) this.#removePeer(sender);
    else this.#emit("message", message);
  }

  /** Handles a receipt or an error of the server.
   * @param {"ack" | "error"} type
   * @param {any} data */
  #receiveAnswer(type, data) {
    // The server has received the message with this `ref`, and everything sent before it.
    this.#acknowledge(this.#unacknowledged.findIndex(({ ref }) => ref !== undefined && ref === data.ref) + 1);
    const receipt = this.#takeReceipt(data.ref);
    if (type === "ack") return receipt?.resolve(data);
    if (data.code === "resume_failed") {
      // The connection has become a new session, and this error is its first message.
      this.#endSession(1);
      return this.#startSession();
    }
    const error = new RoomError(data.code, data.message);
    return receipt ? receipt.reject(error) : this.#emit("error", error);
  }

  /** @param {Peer} peer */
  #addPeer(peer) {
    // A listener of an earlier `peerjoin` may have left the room.
    if (this.#state === "closed") return;
    const known = this.#peers.has(peer.id);
    this.#peers.set(peer.id, peer);
    if (!known) this.#emit("peerjoin", peer);
  }

  /** @param {string} id */
  #removePeer(id) {
    const peer = this.#peers.get(id);
    if (!peer) return;
    this.#peers.delete(id);
    this.#emit("peerleave", peer);
  }

  /** @template {keyof RoomEvents} Type
   * @param {Type} type
   * @param {RoomEvents[Type]} detail */
  #emit(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }
}

/** The URL of a room's WebSocket.
 * @param {string} name
 * @param {string | URL} server */
function roomUrl(name, server) {
  const bytes = byteLength(name);
  if (bytes < 1 || bytes > 128) {
    throw new TypeError(`the room name has ${bytes} bytes: use 1 to 128`);
  }
  if (/[\p{Cc}\p{Cs}]/u.test(name)) {
    throw new TypeError("the room name has a control character or an unpaired surrogate: remove it");
  }
  if (name === "." || name === "..") {
    throw new TypeError(`the room name is "${name}", which browsers resolve as a path: choose another`);
  }
  if (!URL.canParse(server) || !/^(http|ws)s?:$/.test(new URL(server).protocol)) {
    throw new TypeError(`${server} is not a server's address: give one, as in { url: "https://example.org/" }`);
  }
  const url = new URL(server);
  url.protocol = url.protocol.replace("http", "ws");
  url.search = url.hash = "";
  url.pathname = `${url.pathname.replace(/\/$/, "")}/room/${encodeURIComponent(name)}`;
  return url;
}

/** The length of a text in UTF-8.
 * @param {string} text */
function byteLength(text) {
  return new TextEncoder().encode(text).length;
}

/* ------------------------------------------------------------------------------------------------
 * 2. Mesh
 * ---------------------------------------------------------------------------------------------- */

/** The label of the data channel that every connection has from the start. */
const CHANNEL_LABEL = "mesh";

/** The events of a `Mesh` by type, with the type of their `detail`.
 * @typedef {object} MeshEvents
 * @property {{ peer: MeshPeer }} connect a connection to a peer was created; it is not open yet
 * @property {{ peer: MeshPeer }} disconnect a connection was closed, with its data channels: the peer left,
 *   the mesh was closed, or this session got a new id and connects again
 * @property {{ peer: MeshPeer }} statechange `peer.state` has changed
 * @property {{ peer: MeshPeer, track: MediaStreamTrack, streams: readonly MediaStream[] }} track the peer
 *   sends a track
 * @property {{ peer: MeshPeer, channel: RTCDataChannel }} datachannel a data channel is there: the one
 *   labelled `mesh`, or one that the peer has created
 * @property {{ id: string, error: unknown }} error the connection to session `id` could not be created, or
 *   one of its signals or tracks could not be handled */

/** The quality of a connection. `bitsIn` and `bitsOut` are bits per second since the last call, or since
 * the connection was created. `roundTrip` is in ms, `null` while it is unknown. `relayed` is whether this
 * side sends through a TURN server.
 * @typedef {{ bitsIn: number, bitsOut: number, roundTrip: number | null, relayed: boolean }} Quality */

const MeshTarget = /** @type {new () => TypedTarget<MeshEvents>} */ (EventTarget);

/** A WebRTC connection to every peer of a room.
 *
 * A peer needs no `Mesh`, only three types of messages: `offer` and `answer` with an
 * RTCSessionDescription as `data`, and `candidate` with an RTCIceCandidate. The session that joined first
 * makes the first offer. After that, either side may make one ("perfect negotiation", WebRTC, section
 * 10.7). The side with the smaller id is polite: when two offers collide, it withdraws its own.
 *
 * The first offer includes audio, video and a data channel, so that one exchange is enough for a peer
 * that cannot renegotiate. The data channel is labelled `mesh`, and both sides get the event
 * `datachannel` for it. */
export class Mesh extends MeshTarget {
  #room;
  #configuration;
  #maxPeers;
  /** @type {Map<MediaStreamTrack, MediaStream[]>} The tracks that every peer gets. */
  #tracks = new Map();
  /** @type {Map<string, MeshPeer>} */
  #peers = new Map();
  /** @type {Map<string, Negotiation>} By the id of the peer. */
  #negotiations = new Map();
  /** Aborted when the mesh is closed: removes the listeners on the room. */
  #lifetime = new AbortController();

  /** @param {Room} room as `join` returns it: the mesh would miss what an open room has received
   * @param {object} [options]
   * @param {RTCConfiguration} [options.configuration] the room's `iceServers` are added to it
   * @param {number} [options.maxPeers] the maximum number of connections; further peers get none, and the
   *   event `error` fires for each */
  constructor(room, { configuration = {}, maxPeers = 16 } = {}) {
    super();
    if (room.id !== null) {
      throw new Error("the room has opened already: make the Mesh right after join(), before anything arrives");
    }
    this.#room = room;
    this.#configuration = configuration;
    this.#maxPeers = maxPeers;
    const { signal } = this.#lifetime;
    room.addEventListener("peerjoin", ({ detail }) => {
      this.#connect(detail.id, detail.newcomer);
    }, { signal });
    room.addEventListener("peerleave", ({ detail }) => this.#disconnect(detail.id), { signal });
    room.addEventListener("message", ({ detail }) => this.#receive(detail), { signal });
    room.addEventListener("statechange", () => this.#renewConnections(), { signal });
  }

  /** The connections by session id. The map is live.
   * @returns {ReadonlyMap<string, MeshPeer>} */
  get peers() {
    return this.#peers;
  }

  /** Sends a track to every peer, including those that join later.
   * @param {MediaStreamTrack} track
   * @param {...MediaStream} streams the streams that the track belongs to on the other side */
  addTrack(track, ...streams) {
    if (this.#tracks.has(track)) throw new Error("the track is being sent already: add each track once");
    this.#tracks.set(track, streams);
    for (const negotiation of this.#negotiations.values()) negotiation.addTrack(track, streams);
  }

  /** Sends another track in place of `old`, without renegotiation.
   * @param {MediaStreamTrack} old
   * @param {MediaStreamTrack} track of the same kind */
  replaceTrack(old, track) {
    const streams = this.#tracks.get(old);
    if (this.#tracks.has(track)) throw new Error("the new track is being sent already: remove it first");
    if (!streams) throw new Error("the old track is not being sent: use addTrack()");
    if (old.kind !== track.kind) {
      throw new TypeError(`the old track is ${old.kind}, the new one ${track.kind}: use one of the same kind`);
    }
    this.#tracks.delete(old);
    this.#tracks.set(track, streams);
    for (const negotiation of this.#negotiations.values()) negotiation.replaceTrack(old, track);
  }

  /** Stops sending a track. The track itself goes on.
   * @param {MediaStreamTrack} track */
  removeTrack(track) {
    if (!this.#tracks.delete(track)) throw new Error("the track is not being sent: add it first");
    for (const negotiation of this.#negotiations.values()) negotiation.removeTrack(track);
  }

  /** Closes all connections, and makes no further ones. The room stays open. */
  close() {
    this.#lifetime.abort();
    for (const id of this.#peers.keys()) this.#disconnect(id);
  }

  /** @param {string} id
   * @param {boolean} makesFirstOffer whether this side makes the first offer */
  #connect(id, makesFirstOffer) {
    if (this.#peers.size >= this.#maxPeers) {
      const error = new Error(`no connection to this peer: the limit of ${this.#maxPeers} (maxPeers) is reached`);
      return this.#emit("error", { id, error });
    }
    const iceServers = [...(this.#configuration.iceServers ?? []), ...this.#room.iceServers];
    const configuration = { ...this.#configuration, iceServers };
    try {
      const peer = new MeshPeer(id, new RTCPeerConnection(configuration));
      const negotiation = new Negotiation(this.#room, peer, makesFirstOffer, (type, detail) => {
        this.#emit(type, detail);
      });
      this.#peers.set(id, peer);
      this.#negotiations.set(id, negotiation);
      for (const [track, streams] of this.#tracks) negotiation.addTrack(track, streams);
      this.#emit("connect", { peer });
      const { channel } = negotiation;
      if (channel) this.#emit("datachannel", { peer, channel });
    } catch (error) {
      this.#emit("error", { id, error });
    }
  }

  /** @param {string} id */
  #disconnect(id) {
    const negotiation = this.#negotiations.get(id);
    if (!negotiation) return;
    this.#peers.delete(id);
    this.#negotiations.delete(id);
    negotiation.close();
    this.#emit("disconnect", { peer: negotiation.peer });
  }

  /** @param {Message} message */
  #receive({ type, sender, data }) {
    const negotiation = this.#negotiations.get(sender);
    if (type === "offer" || type === "answer") negotiation?.applyDescription(type, data);
    else if (type === "candidate") negotiation?.addCandidate(data);
  }

  /** Replaces the connections whose peers know this session by an old id, after a reconnection that did
   * not resume it. */
  #renewConnections() {
    if (this.#room.state !== "open") return;
    for (const { ownId, peer } of [...this.#negotiations.values()]) {
      if (ownId === this.#room.id) continue;
      this.#disconnect(peer.id);
      this.#connect(peer.id, false);
    }
  }

  /** @template {keyof MeshEvents} Type
   * @param {Type} type
   * @param {MeshEvents[Type]} detail */
  #emit(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }
}

/** The connection to one peer. */
export class MeshPeer {
  #lastSample = { at: performance.now(), bytesIn: 0, bytesOut: 0 };

  /** @param {string} id
   * @param {RTCPeerConnection} pc */
  constructor(id, pc) {
    /** The peer's session id. @readonly */
    this.id = id;
    /** The RTCPeerConnection, for data channels and for inspection. Add and remove tracks with the `Mesh`.
     * @readonly */
    this.pc = pc;
  }

  /** @returns {RTCPeerConnectionState} `new` until the peer has answered */
  get state() {
    return this.pc.connectionState;
  }

  /** Measures the quality of the connection.
   * @returns {Promise<Quality>} */
  async quality() {
    const stats = [...(await this.pc.getStats()).values()];
    const transport = stats.find(({ type }) => type === "transport");
    // Firefox reports no transport, but marks the selected candidate pair.
    const pair = stats.find(({ type, id, selected }) => {
      return type === "candidate-pair" && (id === transport?.selectedCandidatePairId || selected);
    });
    const local = stats.find(({ id }) => id === pair?.localCandidateId);
    const last = this.#lastSample;
    const now = {
      at: performance.now(),
      bytesIn: pair?.bytesReceived ?? 0,
      bytesOut: pair?.bytesSent ?? 0,
    };
    this.#lastSample = now;
    const elapsed = Math.max(1, now.at - last.at);
    // A newly selected pair counts from zero, so a difference can be negative.
    const bitsPerSecond = (/** @type {number} */ bytes) => (Math.max(0, bytes) * 8000) / elapsed;
    return {
      bitsIn: bitsPerSecond(now.bytesIn - last.bytesIn),
      bitsOut: bitsPerSecond(now.bytesOut - last.bytesOut),
      roundTrip: pair?.currentRoundTripTime === undefined ? null : pair.currentRoundTripTime * 1000,
      relayed: local?.candidateType === "relay",
    };
  }
}

/* ------------------------------------------------------------------------------------------------
 * 3. Negotiation
 * ---------------------------------------------------------------------------------------------- */

/** How long this side waits for the first offer of a peer that joined earlier, in ms, before it makes one
 * itself. */
const FIRST_OFFER_TIMEOUT_MS = 5000;
/** How many signals of one peer may be queued. */
const MAX_QUEUED_SIGNALS = 256;

/** The negotiation of one connection, and the tracks that it sends. */
class Negotiation {
  #room;
  #emit;
  /** Whether this side withdraws its own offer when two collide. */
  #polite;
  /** @type {RTCSessionDescriptionInit | null} The polite side's offer, until the answer or the peer's own
   * offer arrives. */
  #pendingOffer = null;
  /** Whether the peer's last offer lost a collision. Its candidates fail, which is no error. */
  #ignoredOffer = false;
  /** Signals are handled one after the other: the end of the queue, and its length. */
  #queueEnd = Promise.resolve();
  #queued = 0;
  /** @type {Map<MediaStreamTrack, RTCRtpTransceiver>} */
  #transceivers = new Map();
  /** @type {ReturnType<typeof setTimeout> | undefined} Runs while the peer is to make the first offer. */
  #firstOfferTimer;
  /** Whether there was something to negotiate while the timer ran. */
  #negotiationNeeded = false;
  /** Aborted when the connection is closed: withdraws the signals that the room has queued. */
  #lifetime = new AbortController();

  /** @param {Room} room
   * @param {MeshPeer} peer
   * @param {boolean} makesFirstOffer whether this side makes the first offer, or waits for the peer's
   * @param {<Type extends keyof MeshEvents>(type: Type, detail: MeshEvents[Type]) => void} emit */
  constructor(room, peer, makesFirstOffer, emit) {
    this.#room = room;
    this.#emit = emit;
    this.peer = peer;
    /** This session's id, as the peer knows it. */
    this.ownId = room.id ?? "";
    this.#polite = this.ownId < peer.id;

    const { pc } = peer;
    /** The first data channel, if this side creates it. */
    this.channel = makesFirstOffer ? pc.createDataChannel(CHANNEL_LABEL) : null;
    if (makesFirstOffer) for (const kind of ["audio", "video"]) pc.addTransceiver(kind, { direction: "recvonly" });
    else this.#firstOfferTimer = setTimeout(() => this.#firstOfferTimedOut(), FIRST_OFFER_TIMEOUT_MS);
    pc.addEventListener("negotiationneeded", () => {
      if (this.#firstOfferTimer === undefined) this.#makeOffer();
      else this.#negotiationNeeded = true;
    });
    pc.addEventListener("icecandidate", ({ candidate }) => {
      if (candidate?.candidate) this.#sendSignal("candidate", candidate);
    });
    pc.addEventListener("iceconnectionstatechange", () => {
      if (pc.iceConnectionState === "failed") pc.restartIce();
    });
    pc.addEventListener("connectionstatechange", () => emit("statechange", { peer }));
    pc.addEventListener("track", ({ track, streams }) => emit("track", { peer, track, streams }));
    pc.addEventListener("datachannel", ({ channel }) => emit("datachannel", { peer, channel }));
  }

  /** Closes the connection, and withdraws its signals that are still queued. */
  close() {
    this.#stopFirstOfferTimer();
    this.#lifetime.abort();
    this.peer.pc.close();
  }

  // Tracks

  /** @param {MediaStreamTrack} track
   * @param {MediaStream[]} streams */
  addTrack(track, streams) {
    const { pc } = this.peer;
    // Reuse a transceiver that sends nothing: each new one stays in the session description for good.
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

  /** @param {MediaStreamTrack} old
   * @param {MediaStreamTrack} track */
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
    // The peer may have stopped the transceiver.
    if (!transceiver || transceiver.direction === "stopped") return;
    transceiver.direction = "recvonly";
    this.#attempt(() => transceiver.sender.replaceTrack(null));
  }

  // Signals of the peer

  /** Applies an offer or an answer of the peer, and answers an offer.
   * @param {"offer" | "answer"} type
   * @param {any} data */
  applyDescription(type, data) {
    this.#enqueue(async () => {
      const { pc } = this.peer;
      const description = { type, sdp: String(data?.sdp) };
      if (type === "answer") {
        const offer = this.#pendingOffer;
        this.#pendingOffer = null;
        if (offer) await pc.setLocalDescription(offer);
        return pc.setRemoteDescription(description);
      }
      this.#ignoredOffer = !this.#polite && pc.signalingState !== "stable";
      if (this.#ignoredOffer) return;
      await pc.setRemoteDescription(description);
      this.#pendingOffer = null;
      this.#stopFirstOfferTimer();
      await pc.setLocalDescription();
      this.#sendSignal("answer", pc.localDescription);
    });
  }

  /** @param {any} candidate */
  addCandidate(candidate) {
    this.#enqueue(async () => {
      try {
        await this.peer.pc.addIceCandidate(candidate);
      } catch (error) {
        if (!this.#ignoredOffer) throw error;
      }
    });
  }

  // Signals to the peer

  #makeOffer() {
    this.#enqueue(async () => {
      const { pc } = this.peer;
      // The browser fires `negotiationneeded` again after the current exchange, if there is still a need.
      if (pc.signalingState !== "stable" || this.#pendingOffer) return;
      if (this.#polite) {
        // The polite side applies its offer only when the answer arrives. A browser that rolls back an
        // applied offer loses more than the offer: in Chromium, data channels never open, and tracks stay
        // muted.
        this.#pendingOffer = await pc.createOffer();
        this.#sendSignal("offer", this.#pendingOffer);
      } else {
        await pc.setLocalDescription();
        this.#sendSignal("offer", pc.localDescription);
      }
    });
  }

  /** Makes an offer in place of the peer, if there is something to negotiate. */
  #firstOfferTimedOut() {
    this.#stopFirstOfferTimer();
    if (this.#negotiationNeeded) this.#makeOffer();
  }

  #stopFirstOfferTimer() {
    clearTimeout(this.#firstOfferTimer);
    this.#firstOfferTimer = undefined;
  }

  /** @param {string} type
   * @param {RTCSessionDescriptionInit | RTCIceCandidate | null} data */
  #sendSignal(type, data) {
    this.#attempt(() => this.#room.send(this.peer.id, type, data, { signal: this.#lifetime.signal }));
  }

  /** Runs a task after all earlier ones.
   * @param {() => Promise<unknown>} task */
  #enqueue(task) {
    if (this.#queued >= MAX_QUEUED_SIGNALS) {
      const error = new Error(`${this.#queued} signals of this peer are queued: this one is dropped`);
      return this.#emit("error", { id: this.peer.id, error });
    }
    this.#queued += 1;
    this.#queueEnd = this.#queueEnd.then(async () => {
      await this.#attempt(task);
      this.#queued -= 1;
    });
  }

  /** Runs a task. Its failure fires the event `error`, unless the connection is closed.
   * @param {() => Promise<unknown>} task */
  async #attempt(task) {
    try {
      await task();
    } catch (error) {
      if (!this.#lifetime.signal.aborted) this.#emit("error", { id: this.peer.id, error });
    }
  }
}
