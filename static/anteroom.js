// The client of an anteroom server, for browsers and other runtimes with WebSocket. It has no dependencies:
// import it from a server, or copy this one file.
//
// 1. Room         a session in a room
// 2. Mesh         a WebRTC connection to every peer of a room
// 3. Negotiation  the signals and tracks of one connection (private)

// ---- 1. Room ----

/** Delays before reconnecting, in ms: the first, which doubles with each attempt, the longest, and the longest
 * that a restarting server may ask for. */
const [FIRST_RETRY_MS, MAX_RETRY_MS, MAX_ASKED_MS] = [500, 30_000, 3_600_000];
/** A connection open for this long, in ms, resets the delay. */
const STABLE_AFTER_MS = 10_000;
/** How long an overdue pong is accepted, in ms: a frozen page runs its timers before it reads messages. */
const LATE_PONG_MS = 50;
/** The limit of queued and unacknowledged messages, and of messages before the roster, in bytes. */
const MAX_QUEUE_BYTES = 1 << 20;

/** Close codes (RFC 6455, section 7.4). The last one keeps the session resumable: a browser cannot drop a
 * connection without a Close frame. */
const [CLOSE_NORMAL, CLOSE_REFUSED, CLOSE_RESTART, CLOSE_LOST] = [1000, 1008, 1012, 4000];
/** The server's close reasons that the client acts on. */
const [TAKEN_OVER, TOKEN_REJECTED, RETRY_DELAY] = [/^resumed/, /^the token/, /retry in (\d+) ms/];

/** Another session in the room: its id, the public data of its token or `null`, and whether it joined after
 * this session. By convention, the session that joined first makes the first offer.
 * @typedef {{ readonly id: string, readonly data: unknown, readonly newcomer: boolean }} Peer */

/** A message from another session, or from the application behind the server (`"server"`).
 * @typedef {{ type: string, sender: string, receiver: string, data: unknown }} Message */

/** `connecting` at first, `open`, `reconnecting` after a failed attempt or a lost connection, `closed` for good.
 * @typedef {"connecting" | "open" | "reconnecting" | "closed"} RoomState */

/** The new state. `resumed` is whether the old session continues; if not, the id is new. `code` and `reason`
 * are the Close frame's (RFC 6455, section 7.1.5), `delay` the time until the next attempt, in ms.
 * @typedef {{ state: "connecting" } | { state: "open", resumed: boolean }
 *   | { state: "reconnecting", code: number, reason: string, delay: number }
 *   | { state: "closed", code: number, reason: string }} StateChange */

/** A message as sent or received, for debugging.
 * @typedef {{ direction: "in" | "out", text: string }} WireMessage */

/** The server's receipt: how many sessions a message was delivered to.
 * @typedef {{ receivers: number }} Receipt */

/** The events of a `Room`, with their `detail`.
 * @typedef {object} RoomEvents
 * @property {StateChange} statechange
 * @property {Peer} peerjoin a peer is there when the room opens, or joins later
 * @property {Peer} peerleave a peer left, is missing after a reconnection, or the room is closed
 * @property {Message} message
 * @property {RoomError} error an error that belongs to no promise
 * @property {WireMessage} wire */

/** @typedef {object} JoinOptions
 * @property {string | URL} [url] the server's address, with `http` or `ws`; required unless that server has
 *   served this module
 * @property {string | (() => string)} [token] the JSON Web Token that grants access, or a function that
 *   returns the current one before each attempt, also after the server rejected the last
 * @property {number} [idleTimeout] how long the server may be silent, in ms, before it is pinged
 * @property {number} [timeout] how long it may take to answer, in ms, before the room reconnects */

/** An EventTarget with typed events.
 * @template Events
 * @typedef {Omit<EventTarget, ListenerMethods> & Record<ListenerMethods, <Type extends keyof Events>(
 *   type: Type, listener: Listener<Events[Type]>, options?: boolean | AddEventListenerOptions) => void>
 * } TypedTarget */
/** @typedef {"addEventListener" | "removeEventListener"} ListenerMethods */

/** @template Detail
 * @typedef {((event: CustomEvent<Detail>) => void)
 *   | { handleEvent(event: CustomEvent<Detail>): void } | null} Listener */

/** The first line comes from the server, the second from this module. After `connection_lost` it is unknown
 * whether the message has arrived.
 * @typedef {"bad_message" | "unknown_receiver" | "empty_room" | "unknown_request" | "not_allowed"
 *   | "closed" | "connection_lost" | "message_too_large" | "not_open" | "queue_full"} ErrorCode */

/** Why a message or request failed. */
export class RoomError extends Error {
  /** @param {ErrorCode} code @param {string} message */
  constructor(code, message) {
    super(message);
    this.name = "RoomError";
    /** @readonly */
    this.code = code;
  }
}

/** Joins a room. The room connects, and reconnects when the connection is lost, until `leave()`.
 * @param {string} room its name, 1 to 128 bytes of UTF-8 without control characters
 * @param {JoinOptions} [options]
 * @returns {Room}
 * @throws {TypeError} if the name or the address is not valid */
export function join(room, options) {
  return new Room(room, options);
}

/** A room, as one session sees it. Made by `join`. */
export class Room extends /** @type {new () => TypedTarget<RoomEvents>} */ (EventTarget) {
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
  #maxBytes = Infinity;

  /** @type {WebSocket | null} Events of earlier connections are ignored. */
  #socket = null;
  #attempts = 0;
  #openedAt = Infinity;
  /** @type {ReturnType<typeof setTimeout> | undefined} The only timer. */
  #timer;
  #lifetime = new AbortController();

  /** @type {string | null} `null` if there is no session to resume. */
  #resumeToken = null;
  /** How many messages have come in this session. */
  #received = 0;
  /** @type {{ messages: Message[], newcomers: Set<string>, bytes: number } | null} What
   * has arrived before the roster of a new session. */
  #beforeRoster = null;

  #lastRef = 0;
  /** @type {Map<number, { resolve(receipt: Receipt): void, reject(reason: unknown): void }>} */
  #receipts = new Map();
  /** @type {{ ref: number, text: string, bytes: number, signal?: AbortSignal }[]} */
  #queue = [];
  #queuedBytes = 0;
  /** False until the listeners of `statechange` to `open` have run. */
  #canSend = false;
  /** How many messages the server has received in this session. */
  #acked = 0;
  /** @type {{ ref?: number, text: string, bytes: number }[]} Sent since those. */
  #unacked = [];
  #unackedBytes = 0;

  /** @param {string} name @param {JoinOptions} [options] */
  constructor(name, { url, token, idleTimeout = 25_000, timeout = 10_000 } = {}) {
    super();
    this.#url = roomUrl(name, url ?? new URL(".", import.meta.url));
    this.#accessToken = token;
    this.#idleTimeout = idleTimeout;
    this.#timeout = timeout;
    this.#connect();
    const { signal } = this.#lifetime;
    for (const type of ["online", "offline"]) {
      globalThis.addEventListener?.(type, () => this.#networkChanged(type === "online"), { signal });
    }
  }

  /** The session's id, `null` until the room is open. A resumed session keeps it. Otherwise, for the peers,
   * this session has left and a new one has joined. */
  get id() {
    return this.#id;
  }

  /** The others by id, longest-joined first. Live: it changes before each event.
   * @returns {ReadonlyMap<string, Peer>} */
  get peers() {
    return this.#peers;
  }

  /** The server's ICE servers, for `RTCPeerConnection`. */
  get iceServers() {
    return this.#iceServers;
  }

  get state() {
    return this.#state;
  }

  /** Sends a message. Without a connection, it waits for one. The promise may be ignored: its rejection is
   * never unhandled. The server's own answers are not messages: the promise of `send("server", "ping")`
   * resolves when the answer is there.
   * @param {string} receiver a session id, `"all"` or `"server"`
   * @param {string} type 1 to 64 bytes, chosen by the application
   * @param {unknown} [data] any JSON
   * @param {{ signal?: AbortSignal }} [options] aborting withdraws a message that is still queued
   * @returns {Promise<Receipt>} rejects with a `RoomError`, with a `TypeError` if `data` is not JSON, or
   *   with the signal's reason when a withdrawn message has its turn */
  send(receiver, type, data, { signal } = {}) {
    const receipt = new Promise((resolve, reject) => {
      const ref = ++this.#lastRef;
      const text = JSON.stringify({ type, receiver, data, ref });
      const bytes = byteLength(text);
      if (this.#state === "closed") {
        throw new RoomError("closed", "the room is closed: join it again");
      }
      this.#checkQueue(bytes);
      this.#receipts.set(ref, { resolve, reject });
      this.#queue.push({ ref, text, bytes, signal });
      this.#queuedBytes += bytes;
      this.#flush();
    });
    receipt.catch(() => {});
    return receipt;
  }

  /** Sends a message to everyone else. Rejects with `empty_room` if there is nobody.
   * @param {string} type @param {unknown} [data]
   * @returns {Promise<Receipt>} */
  broadcast(type, data) {
    return this.send("all", type, data);
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
    this.#write(text);
  }

  /** Leaves the room for good. */
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
    const socket = new WebSocket(url, "anteroom.v1");
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
    this.#startTimer(this.#timeout, () => this.#drop("no answer in time"));
  }

  /** @param {number} delay @param {() => void} callback */
  #startTimer(delay, callback) {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(callback, delay);
  }

  #ping() {
    // `send` counts from 1: the receipt for 0 settles no promise.
    this.#write('{"type":"ping","receiver":"server","ref":0}', 0);
    this.#startTimer(this.#timeout, () => {
      this.#startTimer(LATE_PONG_MS, () => this.#drop("no pong in time"));
    });
  }

  /** @param {boolean} online */
  #networkChanged(online) {
    if (this.#state === "open") this.#ping();
    else if (online && !this.#socket) this.#connect();
  }

  /** Drops the connection without waiting for the server.
   * @param {string} reason */
  #drop(reason) {
    this.#socket?.close(CLOSE_LOST, reason);
    this.#connectionLost(CLOSE_LOST, reason);
  }

  /** @param {number} code @param {string} reason */
  #connectionLost(code, reason) {
    if (code === CLOSE_REFUSED && !this.#mayReconnect(reason)) return this.#close(code, reason);
    this.#socket = null;
    this.#canSend = false;
    if (!this.#resumeToken) this.#endSession(0);
    if (performance.now() - this.#openedAt > STABLE_AFTER_MS) this.#attempts = 0;
    this.#openedAt = Infinity;
    const requested = code === CLOSE_RESTART && RETRY_DELAY.exec(reason);
    const delay = requested
      ? Math.min(Number(requested[1]), MAX_ASKED_MS)
      : Math.min(FIRST_RETRY_MS * 2 ** this.#attempts, MAX_RETRY_MS) * (0.5 + Math.random() / 2);
    this.#attempts += 1;
    this.#startTimer(delay, () => this.#connect());
    this.#setState({ state: "reconnecting", code, reason, delay });
  }

  /** Whether to reconnect after a refusal. An abandoned attempt may arrive late and take the session over:
   * the next attempt takes it back. A function may return a fresh token.
   * @param {string} reason */
  #mayReconnect(reason) {
    return TAKEN_OVER.test(reason) || (typeof this.#accessToken === "function" && TOKEN_REJECTED.test(reason));
  }

  /** @param {number} code @param {string} reason */
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

  // The session

  #startSession() {
    this.#beforeRoster = { messages: [], newcomers: new Set(), bytes: 0 };
    this.#write('{"type":"hello","receiver":"server","data":{"resume":true}}');
  }

  /** Handles the answer to `hello`, also to an application's own, which starts no session.
   * @param {string} id
   * @param {{ peers: { id: string, data: unknown }[], iceServers: RTCIceServer[],
   *   resume: { token: string } | null, limits: { messageBytes: number } }} data */
  #receiveRoster(id, { peers, iceServers, resume, limits }) {
    const before = this.#beforeRoster;
    this.#beforeRoster = null;
    if (before) this.#resumeToken = resume?.token ?? null;
    this.#id = id;
    this.#iceServers = iceServers;
    this.#maxBytes = limits.messageBytes;
    const present = new Set(peers.map((peer) => peer.id));
    for (const known of this.#peers.keys()) if (!present.has(known)) this.#removePeer(known);
    for (const { id: peer, data } of peers) {
      // In a new session, the peers are older, except those whose `new` came before the roster.
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

  /** @param {number} received how many messages of this session the server has received */
  #resumeSession(received) {
    // The server does not count `resumed`.
    this.#received -= 1;
    this.#acknowledge(received - this.#acked);
    for (const { text } of this.#unacked) this.#transmit(text);
    this.#setOpen(true);
  }

  /** Forgets the session and what was sent in it. What is queued waits for the next one.
   * @param {number} received how many messages of the next session have arrived */
  #endSession(received) {
    this.#resumeToken = null;
    this.#received = received;
    this.#acked = this.#unackedBytes = 0;
    this.#unacked = [];
    const queued = new Set(this.#queue.map(({ ref }) => ref));
    for (const ref of this.#receipts.keys()) {
      if (queued.has(ref)) continue;
      const message = "the connection was lost before the receipt arrived";
      this.#takeReceipt(ref)?.reject(new RoomError("connection_lost", message));
    }
  }

  /** @param {boolean} resumed */
  #setOpen(resumed) {
    this.#openedAt = performance.now();
    this.#setState({ state: "open", resumed });
    // A listener may have left the room.
    this.#canSend = this.#state === "open";
    this.#flush();
  }

  // Sending

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

  /** Sends a message, and keeps it until it is acknowledged.
   * @param {string} text @param {number} [ref] */
  #write(text, ref) {
    const bytes = byteLength(text);
    this.#unacked.push({ ref, text, bytes });
    this.#unackedBytes += bytes;
    this.#transmit(text);
  }

  /** @param {string} text */
  #transmit(text) {
    this.#socket?.send(text);
    this.#emit("wire", { direction: "out", text });
  }

  /** @param {number} count how many more messages the server has received */
  #acknowledge(count) {
    for (const { bytes } of this.#unacked.splice(0, count)) this.#unackedBytes -= bytes;
    this.#acked += count;
  }

  /** @param {number} ref */
  #takeReceipt(ref) {
    const receipt = this.#receipts.get(ref);
    this.#receipts.delete(ref);
    return receipt;
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
    const waiting = this.#queuedBytes + this.#unackedBytes;
    if (waiting + bytes <= MAX_QUEUE_BYTES) return;
    const message = `${waiting} bytes are queued or not acknowledged: wait for receipts`;
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
      if (type === "pong") return;
    }
    const isNew = type === "new" && receiver === "all";
    if (this.#beforeRoster) {
      if (isNew) this.#beforeRoster.newcomers.add(sender);
      else this.#beforeRoster.messages.push(message);
      this.#beforeRoster.bytes += bytes;
      if (this.#beforeRoster.bytes > MAX_QUEUE_BYTES) this.#drop("too much came before the roster");
      return;
    }
    // A peer may send a message that looks like a second `new`: ignore it.
    if (isNew && !this.#peers.has(sender)) this.#addPeer({ id: sender, data, newcomer: true });
    else if (isNew) return;
    // Only the server can send the receiver `null`.
    else if (type === "close" && receiver === null) this.#removePeer(sender);
    else this.#emit("message", message);
  }

  /** @param {"ack" | "error"} type @param {any} data */
  #receiveAnswer(type, data) {
    // The server has received this message and all before it.
    this.#acknowledge(this.#unacked.findIndex(({ ref }) => ref !== undefined && ref === data.ref) + 1);
    const receipt = this.#takeReceipt(data.ref);
    if (type === "ack") return receipt?.resolve(data);
    if (data.code === "resume_failed") {
      // This is the first message of a new session.
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

  /** @template {keyof RoomEvents} Type @param {Type} type @param {RoomEvents[Type]} detail */
  #emit(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }
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
  if (!URL.canParse(server) || !/^(http|ws)s?:$/.test(new URL(server).protocol)) {
    throw new TypeError(`${server} is not a server address: give one, as in { url: "https://example.org/" }`);
  }
  const url = new URL(server);
  url.protocol = url.protocol.replace("http", "ws");
  url.search = url.hash = "";
  url.pathname = `${url.pathname.replace(/\/$/, "")}/room/${encodeURIComponent(name)}`;
  return url;
}

/** @param {string} text */
function byteLength(text) {
  return new TextEncoder().encode(text).length;
}

// ---- 2. Mesh ----

/** The events of a `Mesh`, with their `detail`.
 * @typedef {object} MeshEvents
 * @property {{ peer: MeshPeer }} connect not open yet
 * @property {{ peer: MeshPeer }} disconnect a connection and its channels are closed: the peer left, the
 *   mesh was closed, or this session has a new id and connects again
 * @property {{ peer: MeshPeer }} statechange
 * @property {{ peer: MeshPeer, track: MediaStreamTrack, streams: readonly MediaStream[] }} track
 * @property {{ peer: MeshPeer, channel: RTCDataChannel }} datachannel the channel `mesh`, or one that the
 *   peer has created
 * @property {{ id: string, error: unknown }} error a connection, signal or track of a session failed */

/** Bits per second since the last call (or the beginning), the round trip in ms or `null`, and whether a TURN
 * server relays.
 * @typedef {{ bitsIn: number, bitsOut: number, roundTrip: number | null, relayed: boolean }} Quality */

/** A WebRTC connection to every peer of a room. A peer needs no `Mesh`, only the messages `offer` and
 * `answer` with an RTCSessionDescription and `candidate` with an RTCIceCandidate. The session that joined
 * first makes the first offer. Then negotiation is "perfect" (WebRTC, section 10.7): when two offers
 * collide, the smaller id is polite and withdraws its own.
 *
 * The first offer has audio, video and data, so that one exchange is enough for a peer that cannot
 * renegotiate. Both sides get an event for its data channel, `mesh`. */
export class Mesh extends /** @type {new () => TypedTarget<MeshEvents>} */ (EventTarget) {
  #room;
  #configuration;
  #maxPeers;
  /** @type {Map<MediaStreamTrack, MediaStream[]>} */
  #tracks = new Map();
  /** @type {Map<string, MeshPeer>} */
  #peers = new Map();
  /** @type {Map<string, Negotiation>} */
  #negotiations = new Map();
  #lifetime = new AbortController();

  /** @param {Room} room just joined, because the mesh would miss earlier offers
   * @param {object} [options]
   * @param {RTCConfiguration} [options.configuration] the room's `iceServers` are added to it
   * @param {number} [options.maxPeers] further peers get no connection, and each fires an `error` */
  constructor(room, { configuration = {}, maxPeers = 16 } = {}) {
    super();
    if (room.id !== null) {
      throw new Error("the room has opened already: make the Mesh right after join()");
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
    room.addEventListener("statechange", () => this.#renew(), { signal });
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
    for (const negotiation of this.#negotiations.values()) negotiation.addTrack(track, streams);
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
    for (const negotiation of this.#negotiations.values()) negotiation.replaceTrack(old, track);
  }

  /** @param {MediaStreamTrack} track is no longer sent */
  removeTrack(track) {
    if (!this.#tracks.delete(track)) throw new Error("the track is not being sent");
    for (const negotiation of this.#negotiations.values()) negotiation.removeTrack(track);
  }

  /** Closes all connections for good. The room stays open. */
  close() {
    this.#lifetime.abort();
    for (const id of this.#peers.keys()) this.#disconnect(id);
  }

  /** @param {string} id @param {boolean} offersFirst */
  #connect(id, offersFirst) {
    if (this.#peers.size >= this.#maxPeers) {
      const error = new Error(`no connection: maxPeers is ${this.#maxPeers}`);
      return this.#emit("error", { id, error });
    }
    const iceServers = [...(this.#configuration.iceServers ?? []), ...this.#room.iceServers];
    const configuration = { ...this.#configuration, iceServers };
    try {
      const peer = new MeshPeer(id, new RTCPeerConnection(configuration));
      const negotiation = new Negotiation(this.#room, peer, offersFirst, (type, detail) => {
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

  /** Connects again to peers that know this session by an old id, after a reconnection. */
  #renew() {
    if (this.#room.state !== "open") return;
    for (const { ownId, peer } of [...this.#negotiations.values()]) {
      if (ownId === this.#room.id) continue;
      this.#disconnect(peer.id);
      this.#connect(peer.id, false);
    }
  }

  /** @template {keyof MeshEvents} Type @param {Type} type @param {MeshEvents[Type]} detail */
  #emit(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }
}

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

  /** @returns {RTCPeerConnectionState} `new` until the peer has answered */
  get state() {
    return this.pc.connectionState;
  }

  /** @returns {Promise<Quality>} */
  async quality() {
    const stats = [...(await this.pc.getStats()).values()];
    const transport = stats.find(({ type }) => type === "transport");
    // Firefox reports no transport, but marks the selected candidate pair.
    const pair = stats.find(({ type, id, selected }) => {
      return type === "candidate-pair" && (id === transport?.selectedCandidatePairId || selected);
    });
    const local = stats.find(({ id }) => id === pair?.localCandidateId);
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
      relayed: local?.candidateType === "relay",
    };
  }
}

// ---- 3. Negotiation ----

/** How long a newcomer waits for a peer's first offer before it makes one, in ms. */
const FIRST_OFFER_MS = 5000;
/** The limit of queued signals of one peer. */
const MAX_SIGNALS = 256;

class Negotiation {
  #room;
  #emit;
  #polite;
  /** @type {RTCSessionDescriptionInit | null} The polite side's offer until it is answered. */
  #pendingOffer = null;
  /** Whether the peer's last offer lost a collision: its candidates may fail. */
  #ignoredOffer = false;
  /** The end and the length of the queue. */
  #queueEnd = Promise.resolve();
  #queued = 0;
  /** @type {Map<MediaStreamTrack, RTCRtpTransceiver>} */
  #transceivers = new Map();
  /** @type {ReturnType<typeof setTimeout> | undefined} Runs until the peer's first offer. */
  #offerTimer;
  #needsOffer = false;
  /** Aborted when the connection is closed: withdraws queued signals. */
  #lifetime = new AbortController();

  /** @param {Room} room @param {MeshPeer} peer @param {boolean} offersFirst
   * @param {<Type extends keyof MeshEvents>(type: Type, detail: MeshEvents[Type]) => void} emit */
  constructor(room, peer, offersFirst, emit) {
    this.#room = room;
    this.#emit = emit;
    this.peer = peer;
    /** As the peer knows it. */
    this.ownId = room.id ?? "";
    this.#polite = this.ownId < peer.id;

    const { pc } = peer;
    this.channel = offersFirst ? pc.createDataChannel("mesh") : null;
    if (offersFirst) for (const kind of ["audio", "video"]) pc.addTransceiver(kind, { direction: "recvonly" });
    else this.#offerTimer = setTimeout(() => this.#offerTimedOut(), FIRST_OFFER_MS);
    pc.addEventListener("negotiationneeded", () => {
      if (this.#offerTimer === undefined) this.#makeOffer();
      else this.#needsOffer = true;
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

  close() {
    this.#stopOfferTimer();
    this.#lifetime.abort();
    this.peer.pc.close();
  }

  // Tracks

  /** @param {MediaStreamTrack} track @param {MediaStream[]} streams */
  addTrack(track, streams) {
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

  /** @param {"offer" | "answer"} type @param {any} data */
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
      this.#stopOfferTimer();
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
      // After the current exchange the browser asks again, if there is still a need.
      if (pc.signalingState !== "stable" || this.#pendingOffer) return;
      if (this.#polite) {
        // Apply the offer only when the answer arrives: a browser that rolls an offer back loses more than
        // that (in Chromium, channels never open, and tracks stay muted).
        this.#pendingOffer = await pc.createOffer();
        this.#sendSignal("offer", this.#pendingOffer);
      } else {
        await pc.setLocalDescription();
        this.#sendSignal("offer", pc.localDescription);
      }
    });
  }

  #offerTimedOut() {
    this.#stopOfferTimer();
    if (this.#needsOffer) this.#makeOffer();
  }

  #stopOfferTimer() {
    clearTimeout(this.#offerTimer);
    this.#offerTimer = undefined;
  }

  /** @param {string} type @param {RTCSessionDescriptionInit | RTCIceCandidate | null} data */
  #sendSignal(type, data) {
    this.#attempt(() => this.#room.send(this.peer.id, type, data, { signal: this.#lifetime.signal }));
  }

  /** Runs a task after all before it.
   * @param {() => Promise<unknown>} task */
  #enqueue(task) {
    if (this.#queued >= MAX_SIGNALS) {
      const error = new Error(`${this.#queued} signals are queued: this one is dropped`);
      return this.#emit("error", { id: this.peer.id, error });
    }
    this.#queued += 1;
    this.#queueEnd = this.#queueEnd.then(async () => {
      await this.#attempt(task);
      this.#queued -= 1;
    });
  }

  /** Runs a task. A failure fires `error`, unless the connection is closed.
   * @param {() => Promise<unknown>} task */
  async #attempt(task) {
    try {
      await task();
    } catch (error) {
      if (!this.#lifetime.signal.aborted) this.#emit("error", { id: this.peer.id, error });
    }
  }
}
