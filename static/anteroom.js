// The client of an anteroom server: `join` enters a room, `Mesh` connects everybody in it directly.
// A plain ES module without dependencies, for browsers and for whatever else has WebSocket.

/** The waits before connecting again, in ms: the first, from which on each is twice as long, the
 * longest, and the longest that the server may ask for. */
const [FIRST_DELAY, LONGEST_DELAY, LONGEST_ASKED] = [500, 30_000, 3_600_000];
/** After a connection that lasted so long, in ms, the waits begin anew. */
const SETTLED = 10_000;
/** How much may wait to be sent, or to be handed out, in bytes. */
const QUEUE_BYTES = 1 << 20;

/** Somebody else in the room: a session id, what its token tells of it, or `null`, and whether it
 * came later than this session. By custom, whoever was here first makes the first offer.
 * @typedef {{ readonly id: string, readonly data: unknown, readonly newcomer: boolean }} Peer */

/** A message from another session, or from the application behind the server (`"server"`).
 * @typedef {{ type: string, sender: string, receiver: string, data: unknown }} Message */

/** `connecting` at first, `open`, `reconnecting` when that failed or the connection was lost, and
 * `closed` for good.
 * @typedef {"connecting" | "open" | "reconnecting" | "closed"} RoomState */

/** The new state: with `open`, whether the session was resumed or is a new one; with the last two the
 * Close frame's code and reason (RFC 6455, section 7.1.5), and the ms until the next attempt.
 * @typedef {{ state: "connecting" } | { state: "open", resumed: boolean }
 *   | { state: "reconnecting", code: number, reason: string, delay: number }
 *   | { state: "closed", code: number, reason: string }} StateChange */

/** A message as it travels, for debugging.
 * @typedef {{ direction: "in" | "out", text: string }} OnTheWire */

/** What the server says of a delivered message: to how many.
 * @typedef {{ receivers: number }} Receipt */

/** The events of a `Room`, by type, with what is in their `detail`. `peerjoin` is told of everyone,
 * be it at the opening or later; `peerleave` when a session goes, is missed after a reconnection,
 * or when the room is closed. `error` is what belongs to no promise.
 * @typedef {object} RoomEvents
 * @property {StateChange} statechange
 * @property {Peer} peerjoin
 * @property {Peer} peerleave
 * @property {Message} message
 * @property {RoomError} error
 * @property {OnTheWire} wire */

/** Where rooms are, and how patient one is. `url` is the server's address, with `http` or `ws`; it can
 * be left out where the server has served this module, not where it was copied or bundled. `token`
 * is the JSON Web Token that admits, or a function that is asked for one before each connection,
 * also when the last has ended.
 * After `idleTimeout` ms without a word the server is asked for one; after `timeout` ms without an
 * answer the connection is given up.
 * @typedef {{ url?: string | URL, token?: string | (() => string), idleTimeout?: number,
 *   timeout?: number }} JoinOptions */

/** An EventTarget that knows its events.
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

/** The first line is what the server says, the second what this module says for itself;
 * `connection_lost` is said of what was sent, and nobody knows whether it arrived.
 * @typedef {"bad_message" | "unknown_receiver" | "empty_room" | "unknown_request" | "rate_limited"
 *   | "not_allowed" | "closed" | "connection_lost" | "message_too_large" | "not_open" | "queue_full"} ErrorCode */

/** Why something was not done. */
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

/** Enters a room. The room connects, and connects again whenever that is needed, until `leave()`.
 * @param {string} room its name, 1 to 128 bytes of UTF-8 without control characters
 * @param {JoinOptions} [options]
 * @returns {Room}
 * @throws {TypeError} if the name or the address cannot be */
export function join(room, options) {
  return new Room(room, options);
}

const RoomTarget = /** @type {new () => TypedTarget<RoomEvents>} */ (EventTarget);

/** A room, as one session in it sees it. Made by `join`. */
export class Room extends RoomTarget {
  #url;
  #admission;
  #idleTimeout;
  #timeout;
  /** @type {WebSocket | null} The connection that counts; events of others are stale. */
  #socket = null;
  /** @type {RoomState} */
  #state = "connecting";
  /** @type {string | null} */
  #id = null;
  /** @type {Map<string, Peer>} */
  #peers = new Map();
  /** @type {RTCIceServer[]} */
  #iceServers = [];
  #messageBytes = Infinity;
  /** @type {{ messages: Message[], newcomers: Set<string>, bytes: number } | null} What came before
   * the roster. */
  #early = null;
  /** @type {{ ref: number, text: string, bytes: number, signal?: AbortSignal }[]} */
  #queue = [];
  #queuedBytes = 0;
  #flushes = false;
  /** @type {string | null} By which the session is resumed. */
  #token = null;
  /** How many messages have come in this session, and how many are known to be taken in. */
  #received = 0;
  #taken = 0;
  /** @type {{ ref?: number, text: string, bytes: number }[]} What was sent after those. */
  #sent = [];
  #sentBytes = 0;
  #lastRef = 0;
  /** @type {Map<number, { resolve(receipt: Receipt): void, reject(reason: unknown): void }>} */
  #receipts = new Map();
  #attempts = 0;
  #openedAt = Infinity;
  /** @type {ReturnType<typeof setTimeout> | undefined} The one thing that is waited for. */
  #timer;
  #listening = new AbortController();

  /** @param {string} name
   * @param {JoinOptions} [options] */
  constructor(name, { url, token, idleTimeout = 25_000, timeout = 10_000 } = {}) {
    super();
    this.#url = address(name, url ?? new URL(".", import.meta.url));
    this.#admission = token;
    this.#idleTimeout = idleTimeout;
    this.#timeout = timeout;
    this.#connect();
    const { signal } = this.#listening;
    globalThis.addEventListener?.("online", () => this.#networkChanged(true), { signal });
    globalThis.addEventListener?.("offline", () => this.#networkChanged(false), { signal });
  }

  /** The session's id, `null` until the room is open. It stays the same when the session is resumed
   * after a reconnection; otherwise this session has gone for the others, and a new one has come. */
  get id() {
    return this.#id;
  }

  /** Who else is here, by id, longest-joined first. Live: it changes before each event.
   * @returns {ReadonlyMap<string, Peer>} */
  get peers() {
    return this.#peers;
  }

  /** What the server gives for `RTCPeerConnection`. */
  get iceServers() {
    return this.#iceServers;
  }

  /** How it stands with the connection. */
  get state() {
    return this.#state;
  }

  /** Sends a message; while there is no connection, it waits for one. Nobody needs to look at the
   * promise: where it is ignored, so is its rejection. The server's own answers are not messages:
   * `send("server", "ping")` is kept when the answer is there.
   * @param {string} receiver a session's id, `"all"` or `"server"`
   * @param {string} type 1 to 64 bytes, in the application's own words
   * @param {unknown} [data] whatever JSON can say
   * @param {{ signal?: AbortSignal }} [options] aborted, the message is not sent if it still waits
   * @returns {Promise<Receipt>} rejects with a `RoomError`, with a `TypeError` if JSON cannot say
   *   `data`, or with the signal's reason when it is the turn of a message that was taken back */
  send(receiver, type, data, { signal } = {}) {
    const receipt = new Promise((resolve, reject) => {
      const ref = ++this.#lastRef;
      const text = JSON.stringify({ type, receiver, data, ref });
      const bytes = byteLength(text);
      if (this.#state === "closed") {
        throw new RoomError("closed", "the room is closed: join it again");
      }
      this.#checkSize(bytes);
      this.#checkWaiting(bytes);
      this.#receipts.set(ref, { resolve, reject });
      this.#queue.push({ ref, text, bytes, signal });
      this.#queuedBytes += bytes;
      this.#flush();
    });
    receipt.catch(() => {});
    return receipt;
  }

  /** Sends a message to everyone else in the room. Rejects with `empty_room` where there is nobody.
   * @param {string} type
   * @param {unknown} [data]
   * @returns {Promise<Receipt>} */
  broadcast(type, data) {
    return this.send("all", type, data);
  }

  /** Sends a text exactly as it is, for debugging. The answer is seen with the event `wire`.
   * @param {string} text
   * @throws {RoomError} if the room is not open, the text longer than the server takes, or too much
   *   waits already */
  sendRaw(text) {
    if (this.#state !== "open") throw new RoomError("not_open", "there is no connection just now");
    const bytes = byteLength(text);
    this.#checkSize(bytes);
    this.#checkWaiting(bytes);
    this.#write(text);
  }

  /** Leaves the room for good. */
  leave() {
    if (this.#state === "closed") return;
    this.#socket?.close(1000);
    this.#end(1000, "left");
  }

  #connect() {
    const url = new URL(this.#url);
    if (this.#token) url.search = `resume=${this.#token}&received=${this.#received}`;
    const token = typeof this.#admission === "function" ? this.#admission() : this.#admission;
    if (token) url.searchParams.append("token", token);
    const socket = new WebSocket(url, "anteroom.v1");
    this.#socket = socket;
    socket.addEventListener("open", () => {
      if (socket === this.#socket && !this.#token) this.#greet();
    });
    socket.addEventListener("message", ({ data }) => {
      if (socket === this.#socket) this.#read(data);
    });
    socket.addEventListener("close", ({ code, reason }) => {
      if (socket === this.#socket) this.#lost(code, reason);
    });
    this.#wait(this.#timeout, () => this.#giveUp("no answer in time"));
  }

  /** Begins a session. */
  #greet() {
    this.#early = { messages: [], newcomers: new Set(), bytes: 0 };
    this.#write('{"type":"hello","receiver":"server","data":{"resume":true}}');
  }

  /** Goes on with the session.
   * @param {number} received how many of its messages the server has taken in */
  #resume(received) {
    this.#confirm(received - this.#taken);
    for (const { text } of this.#sent) this.#send(text);
    this.#open(true);
  }

  /** Gives up the session, and what was sent in it.
   * @param {number} received how many messages of the next one have come */
  #forget(received) {
    this.#token = null;
    this.#received = received;
    this.#taken = this.#sentBytes = 0;
    this.#sent = [];
    const waiting = new Set(this.#queue.map(({ ref }) => ref));
    for (const ref of this.#receipts.keys()) {
      if (waiting.has(ref)) continue;
      const message = "the connection was lost before the receipt came";
      this.#settle(ref)?.reject(new RoomError("connection_lost", message));
    }
  }

  /** So many more messages have been taken in.
   * @param {number} count */
  #confirm(count) {
    for (const { bytes } of this.#sent.splice(0, count)) this.#sentBytes -= bytes;
    this.#taken += count;
  }

  /** Waits for one thing, and no longer for another.
   * @param {number} delay
   * @param {() => void} then */
  #wait(delay, then) {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(then, delay);
  }

  /** Asks for a sign of life. */
  #ping() {
    this.#write('{"type":"ping","receiver":"server","ref":0}', 0);
    // A page that stood still first hears what has come.
    this.#wait(this.#timeout, () => this.#wait(50, () => this.#giveUp("no sign of life")));
  }

  /** @param {boolean} online */
  #networkChanged(online) {
    if (this.#state === "open") this.#ping();
    else if (online && !this.#socket) this.#connect();
  }

  /** Drops a connection that is of no use, without waiting for the other side to agree.
   * @param {string} reason */
  #giveUp(reason) {
    // "I shall be back", which tells this from leaving.
    this.#socket?.close(4000, reason);
    this.#lost(4000, reason);
  }

  /** @param {number} code
   * @param {string} reason */
  #lost(code, reason) {
    // An attempt that was given up may arrive late, and take the session over.
    const again = typeof this.#admission === "function" ? /^resumed|^the token/ : /^resumed/;
    if (code === 1008 && !again.test(reason)) return this.#end(code, reason);
    this.#socket = null;
    this.#flushes = false;
    if (!this.#token) this.#forget(0);
    if (performance.now() - this.#openedAt > SETTLED) this.#attempts = 0;
    this.#openedAt = Infinity;
    const asked = code === 1012 && /retry in (\d+) ms/.exec(reason);
    const delay = asked
      ? Math.min(Number(asked[1]), LONGEST_ASKED)
      : Math.min(FIRST_DELAY * 2 ** this.#attempts, LONGEST_DELAY) * (0.5 + Math.random() / 2);
    this.#attempts += 1;
    this.#wait(delay, () => this.#connect());
    this.#setState({ state: "reconnecting", code, reason, delay });
  }

  /** @param {number} code
   * @param {string} reason */
  #end(code, reason) {
    this.#socket = null;
    this.#flushes = false;
    this.#queue = [];
    clearTimeout(this.#timer);
    this.#listening.abort();
    this.#state = "closed";
    for (const ref of this.#receipts.keys()) {
      this.#settle(ref)?.reject(new RoomError("closed", `the room is closed: ${reason}`));
    }
    for (const id of this.#peers.keys()) this.#goes(id);
    this.#setState({ state: "closed", code, reason });
  }

  /** What waits can go now.
   * @param {boolean} resumed */
  #open(resumed) {
    this.#openedAt = performance.now();
    this.#setState({ state: "open", resumed });
    this.#flushes = this.#state === "open";
    this.#flush();
  }

  /** @param {StateChange} change */
  #setState(change) {
    this.#state = change.state;
    this.#emit("statechange", change);
  }

  /** @param {string} text */
  #send(text) {
    this.#socket?.send(text);
    this.#emit("wire", { direction: "out", text });
  }

  /** Sends a message, and keeps it until it is known to be taken in.
   * @param {string} text
   * @param {number} [ref] */
  #write(text, ref) {
    const bytes = byteLength(text);
    this.#sent.push({ ref, text, bytes });
    this.#sentBytes += bytes;
    this.#send(text);
  }

  /** Sends what waits, in its order. */
  #flush() {
    while (this.#flushes) {
      const next = this.#queue.shift();
      if (!next) return;
      this.#queuedBytes -= next.bytes;
      try {
        next.signal?.throwIfAborted();
        this.#checkSize(next.bytes);
        this.#write(next.text, next.ref);
      } catch (error) {
        this.#settle(next.ref)?.reject(error);
      }
    }
  }

  /** @param {number} bytes */
  #checkSize(bytes) {
    if (bytes <= this.#messageBytes) return;
    const message = `a message has at most ${this.#messageBytes} bytes, this one has ${bytes}`;
    throw new RoomError("message_too_large", message);
  }

  /** @param {number} bytes */
  #checkWaiting(bytes) {
    const waiting = this.#queuedBytes + this.#sentBytes;
    if (waiting + bytes <= QUEUE_BYTES) return;
    const message = `${waiting} bytes wait to be taken in already: send less, or later`;
    throw new RoomError("queue_full", message);
  }

  /** @param {string} text */
  #read(text) {
    this.#emit("wire", { direction: "in", text });
    if (this.#state === "closed") return;
    this.#received += 1;
    try {
      this.#take(JSON.parse(text), text.length);
    } catch (error) {
      this.#emit("error", new RoomError("bad_message", `the server sent ${text}: ${error}`));
    }
    if (this.#state === "open") this.#wait(this.#idleTimeout, () => this.#ping());
  }

  /** @param {Message} message
   * @param {number} bytes */
  #take(message, bytes) {
    const { type, sender, receiver } = message;
    if (typeof type !== "string" || typeof sender !== "string") throw new TypeError("no message");
    const data = /** @type {any} */ (message.data);
    if (sender === "server" && type === "hello") return this.#greeted(receiver, data);
    if (sender === "server" && type === "pong") return;
    if (sender === "server" && type === "resumed") {
      this.#received -= 1;
      return this.#resume(data.received);
    }
    if (sender === "server" && (type === "ack" || type === "error")) {
      // This is taken in, and all before it.
      this.#confirm(this.#sent.findIndex(({ ref }) => ref !== undefined && ref === data.ref) + 1);
      const receipt = this.#settle(data.ref);
      if (type === "ack") return receipt?.resolve(data);
      if (data.code === "resume_failed") {
        this.#forget(1);
        return this.#greet();
      }
      const error = new RoomError(data.code, data.message);
      return receipt ? receipt.reject(error) : this.#emit("error", error);
    }
    const isNew = type === "new" && receiver === "all";
    if (this.#early) {
      if (isNew) this.#early.newcomers.add(sender);
      else this.#early.messages.push(message);
      this.#early.bytes += bytes;
      if (this.#early.bytes > QUEUE_BYTES) this.#giveUp("too much came before the answer to hello");
      return;
    }
    // Others may write messages that look like a second `new`.
    if (isNew && !this.#peers.has(sender)) this.#comes({ id: sender, data, newcomer: true });
    else if (isNew) return;
    else if (type === "close" && receiver === null) this.#goes(sender);
    else this.#emit("message", message);
  }

  /** The roster is here: what differs from what was known has come or gone.
   * @param {string} id
   * @param {{ peers: { id: string, data: unknown }[], iceServers: RTCIceServer[],
   *   resume: { token: string } | null, limits: { messageBytes: number } }} data */
  #greeted(id, { peers, iceServers, resume, limits }) {
    const early = this.#early;
    this.#early = null;
    if (early) this.#token = resume?.token ?? null;
    this.#id = id;
    this.#iceServers = iceServers;
    this.#messageBytes = limits.messageBytes;
    const present = new Set(peers.map((peer) => peer.id));
    for (const known of this.#peers.keys()) if (!present.has(known)) this.#goes(known);
    for (const { id: peer, data } of peers) {
      // Who was known before this session is older than it.
      const newcomer = early ? early.newcomers.has(peer) : (this.#peers.get(peer)?.newcomer ?? true);
      this.#comes({ id: peer, data, newcomer });
    }
    if (!early || this.#state === "closed") return;

    this.#open(false);
    for (const message of early.messages) {
      // Who is not in the roster has gone before it.
      const known = present.has(message.sender) || message.sender === "server";
      if (known && this.#state === "open") this.#take(message, 0);
    }
  }

  /** @param {Peer} peer */
  #comes(peer) {
    // Whoever hears of one may leave before the next.
    if (this.#state === "closed") return;
    const known = this.#peers.has(peer.id);
    this.#peers.set(peer.id, peer);
    if (!known) this.#emit("peerjoin", peer);
  }

  /** @param {string} id */
  #goes(id) {
    const peer = this.#peers.get(id);
    if (!peer) return;
    this.#peers.delete(id);
    this.#emit("peerleave", peer);
  }

  /** @param {number} ref */
  #settle(ref) {
    const receipt = this.#receipts.get(ref);
    this.#receipts.delete(ref);
    return receipt;
  }

  /** @template {keyof RoomEvents} Type
   * @param {Type} type
   * @param {RoomEvents[Type]} detail */
  #emit(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }
}

/** The address of a room's WebSocket.
 * @param {string} name
 * @param {string | URL} server */
function address(name, server) {
  const bytes = byteLength(name);
  if (bytes < 1 || bytes > 128) {
    throw new TypeError(`a room's name has 1 to 128 bytes, this one has ${bytes}`);
  }
  if (/[\p{Cc}\p{Cs}]/u.test(name)) {
    throw new TypeError("a room's name has no control characters and no half surrogate pairs");
  }
  if (name === "." || name === "..") {
    throw new TypeError(`browsers cannot ask for a room named "${name}"`);
  }
  if (!URL.canParse(server) || !/^(http|ws)s?:$/.test(new URL(server).protocol)) {
    throw new TypeError(`${server} is no server: give its address, as in { url: "https://example.org/" }`);
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

/** The events of a `Mesh`, by type, with what is in their `detail`.
 * @typedef {object} MeshEvents
 * @property {{ peer: MeshPeer }} connect there is a connection to somebody, though not yet open
 * @property {{ peer: MeshPeer }} disconnect it is torn down, with its channels: somebody has left,
 *   the mesh is closed, or the own session is a new one, and connects anew
 * @property {{ peer: MeshPeer }} statechange `peer.state` has changed
 * @property {{ peer: MeshPeer, track: MediaStreamTrack, streams: readonly MediaStream[] }} track
 * @property {{ peer: MeshPeer, channel: RTCDataChannel }} datachannel there is a channel: the one
 *   labelled `mesh`, or one that somebody has made
 * @property {{ id: string, error: unknown }} error what a session sent, or did, made no sense */

/** Bits per second since the last question (or the beginning), milliseconds, `null` where they are
 * not known, and whether a TURN server is between.
 * @typedef {{ bitsIn: number, bitsOut: number, roundTrip: number | null, relayed: boolean }} Quality */

const MeshTarget = /** @type {new () => TypedTarget<MeshEvents>} */ (EventTarget);

/** How long a newcomer waits for the first offer of somebody who was here before, in
 * milliseconds, before it makes one itself. */
const FIRST_OFFER = 5000;
/** How many signals of one session may wait to be taken in. */
const WAITING = 256;

/** A direct connection to everyone in a room, who have a mesh, too, or speak as simply: messages
 * `offer` and `answer` with an RTCSessionDescription, `candidate` with an RTCIceCandidate. Whoever
 * was here first makes the first offer; then negotiation is "perfect" (WebRTC, section 10.7), and
 * the smaller id is polite: where two offers meet, it yields.
 *
 * The first offer has room for sound, a picture and data, so that one exchange is enough for who
 * cannot negotiate again. Its data channel, labelled `mesh`, is told of on both sides. */
export class Mesh extends MeshTarget {
  #room;
  #configuration;
  #maxPeers;
  /** @type {Map<MediaStreamTrack, MediaStream[]>} */
  #tracks = new Map();
  /** @type {Map<string, MeshPeer>} */
  #peers = new Map();
  /** @type {Map<string, Negotiation>} What goes on behind each of them. */
  #negotiations = new Map();
  #listening = new AbortController();

  /** @param {Room} room just joined: an offer that came before would be missed
   * @param {object} [options]
   * @param {RTCConfiguration} [options.configuration] the room's `iceServers` are added to it
   * @param {number} [options.maxPeers] how many connections there may be; who comes when there are
   *   so many stays without one */
  constructor(room, { configuration = {}, maxPeers = 16 } = {}) {
    super();
    if (room.id !== null) {
      throw new Error("make the Mesh right after join(): what came since would be missed");
    }
    this.#room = room;
    this.#configuration = configuration;
    this.#maxPeers = maxPeers;
    const { signal } = this.#listening;
    room.addEventListener("peerjoin", ({ detail }) => {
      this.#connect(detail.id, detail.newcomer);
    }, { signal });
    room.addEventListener("peerleave", ({ detail }) => this.#disconnect(detail.id), { signal });
    room.addEventListener("message", ({ detail }) => this.#receive(detail), { signal });
    room.addEventListener("statechange", () => this.#renew(), { signal });
  }

  /** The connections, by session id. Live.
   * @returns {ReadonlyMap<string, MeshPeer>} */
  get peers() {
    return this.#peers;
  }

  /** Sends a track to everyone, now and later.
   * @param {MediaStreamTrack} track
   * @param {...MediaStream} streams what it belongs to on the other side */
  addTrack(track, ...streams) {
    if (this.#tracks.has(track)) throw new Error("this track is being sent already");
    this.#tracks.set(track, streams);
    for (const negotiation of this.#negotiations.values()) negotiation.addTrack(track, streams);
  }

  /** Sends another track in the place of one, without a negotiation.
   * @param {MediaStreamTrack} old
   * @param {MediaStreamTrack} track of the same kind */
  replaceTrack(old, track) {
    const streams = this.#tracks.get(old);
    if (this.#tracks.has(track)) throw new Error("this track is being sent already");
    if (!streams) throw new Error("the track to be replaced is not being sent");
    if (old.kind !== track.kind) throw new TypeError(`${old.kind} is not replaced by ${track.kind}`);
    this.#tracks.delete(old);
    this.#tracks.set(track, streams);
    for (const negotiation of this.#negotiations.values()) negotiation.replaceTrack(old, track);
  }

  /** @param {MediaStreamTrack} track sent to nobody any longer */
  removeTrack(track) {
    if (!this.#tracks.delete(track)) throw new Error("this track is not being sent");
    for (const negotiation of this.#negotiations.values()) negotiation.removeTrack(track);
  }

  /** Closes all connections for good; the room stays as it is. */
  close() {
    this.#listening.abort();
    for (const id of this.#peers.keys()) this.#disconnect(id);
  }

  /** @param {string} id
   * @param {boolean} offers whether to make the first offer */
  #connect(id, offers) {
    if (this.#peers.size >= this.#maxPeers) {
      const error = new Error(`no connection: there are ${this.#maxPeers} already`);
      return this.#emit("error", { id, error });
    }
    const iceServers = [...(this.#configuration.iceServers ?? []), ...this.#room.iceServers];
    const configuration = { ...this.#configuration, iceServers };
    try {
      const peer = new MeshPeer(id, new RTCPeerConnection(configuration));
      const negotiation = new Negotiation(this.#room, peer, offers, (type, detail) => {
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
    if (type === "offer" || type === "answer") negotiation?.describe(type, data);
    else if (type === "candidate") negotiation?.addCandidate(data);
  }

  /** Connects anew where we are somebody else to the others: after a reconnection. */
  #renew() {
    if (this.#room.state !== "open") return;
    for (const { self, peer } of [...this.#negotiations.values()]) {
      if (self === this.#room.id) continue;
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

/** The connection to one other session. */
export class MeshPeer {
  #measured = { at: performance.now(), bytesIn: 0, bytesOut: 0 };

  /** @param {string} id
   * @param {RTCPeerConnection} pc */
  constructor(id, pc) {
    /** The other's session id. @readonly */
    this.id = id;
    /** The connection itself: for data channels, and to look at. Its tracks are the mesh's.
     * @readonly */
    this.pc = pc;
  }

  /** @returns {RTCPeerConnectionState} `new` until the other has answered */
  get state() {
    return this.pc.connectionState;
  }

  /** How good the connection is.
   * @returns {Promise<Quality>} */
  async quality() {
    const stats = [...(await this.pc.getStats()).values()];
    const transport = stats.find(({ type }) => type === "transport");
    // Firefox has no transport, but knows which pair is selected.
    const pair = stats.find(({ type, id, selected }) => {
      return type === "candidate-pair" && (id === transport?.selectedCandidatePairId || selected);
    });
    const local = stats.find(({ id }) => id === pair?.localCandidateId);
    const last = this.#measured;
    const now = {
      at: performance.now(),
      bytesIn: pair?.bytesReceived ?? 0,
      bytesOut: pair?.bytesSent ?? 0,
    };
    this.#measured = now;
    const elapsed = Math.max(1, now.at - last.at);
    // Another pair counts from zero.
    const rate = (/** @type {number} */ bytes) => (Math.max(0, bytes) * 8000) / elapsed;
    return {
      bitsIn: rate(now.bytesIn - last.bytesIn),
      bitsOut: rate(now.bytesOut - last.bytesOut),
      roundTrip: pair?.currentRoundTripTime === undefined ? null : pair.currentRoundTripTime * 1000,
      relayed: local?.candidateType === "relay",
    };
  }
}

/** What goes on behind a `MeshPeer`: the negotiation, and the tracks that are sent. */
class Negotiation {
  #room;
  #emit;
  #polite;
  /** @type {RTCSessionDescriptionInit | null} The offer that waits for an answer, on the polite side. */
  #offered = null;
  #ignoresOffer = false;
  /** What is to be done, one after the other, and how much of it waits. */
  #last = Promise.resolve();
  #waiting = 0;
  /** @type {Map<MediaStreamTrack, RTCRtpTransceiver>} */
  #transceivers = new Map();
  #open = new AbortController();
  /** @type {ReturnType<typeof setTimeout> | undefined} Runs while the other is to make an offer. */
  #waits;
  /** Whether there was something to offer meanwhile. */
  #hasToOffer = false;

  /** @param {Room} room
   * @param {MeshPeer} peer
   * @param {boolean} offers whether to make the first offer, or to wait for the other's
   * @param {<Type extends keyof MeshEvents>(type: Type, detail: MeshEvents[Type]) => void} emit */
  constructor(room, peer, offers, emit) {
    this.#room = room;
    this.#emit = emit;
    this.peer = peer;
    /** The own session id, as the other knows it. */
    this.self = room.id ?? "";
    this.#polite = this.self < peer.id;

    const { pc } = peer;
    /** The first data channel, where it is made on this side. */
    this.channel = offers ? pc.createDataChannel("mesh") : null;
    if (offers) for (const kind of ["audio", "video"]) pc.addTransceiver(kind, { direction: "recvonly" });
    else this.#waits = setTimeout(() => this.#offerAfterAll(), FIRST_OFFER);
    pc.addEventListener("negotiationneeded", () => {
      if (this.#waits === undefined) this.#offer();
      else this.#hasToOffer = true;
    });
    pc.addEventListener("icecandidate", ({ candidate }) => {
      if (candidate?.candidate) this.#signal("candidate", candidate);
    });
    pc.addEventListener("iceconnectionstatechange", () => {
      if (pc.iceConnectionState === "failed") pc.restartIce();
    });
    pc.addEventListener("connectionstatechange", () => emit("statechange", { peer }));
    pc.addEventListener("track", ({ track, streams }) => emit("track", { peer, track, streams }));
    pc.addEventListener("datachannel", ({ channel }) => emit("datachannel", { peer, channel }));
  }

  /** @param {MediaStreamTrack} track
   * @param {MediaStream[]} streams */
  addTrack(track, streams) {
    const { pc } = this.peer;
    // What has carried a track may carry another: each one more would stay in the description
    // for good.
    const taken = new Set(this.#transceivers.values());
    const free = pc.getTransceivers().find((transceiver) => {
      const usable = transceiver.receiver.track.kind === track.kind && transceiver.direction !== "stopped";
      return usable && !taken.has(transceiver);
    });
    if (free) {
      free.sender.setStreams(...streams);
      free.direction = "sendrecv";
      this.#transceivers.set(track, free);
      this.#try(() => free.sender.replaceTrack(track));
    } else {
      const sender = pc.addTrack(track, ...streams);
      const made = pc.getTransceivers().find((transceiver) => transceiver.sender === sender);
      if (made) this.#transceivers.set(track, made);
    }
  }

  /** @param {MediaStreamTrack} old
   * @param {MediaStreamTrack} track */
  replaceTrack(old, track) {
    const transceiver = this.#transceivers.get(old);
    if (!transceiver) return;
    this.#transceivers.delete(old);
    this.#transceivers.set(track, transceiver);
    this.#try(() => transceiver.sender.replaceTrack(track));
  }

  /** @param {MediaStreamTrack} track */
  removeTrack(track) {
    const transceiver = this.#transceivers.get(track);
    this.#transceivers.delete(track);
    // The other side may have stopped it.
    if (!transceiver || transceiver.direction === "stopped") return;
    transceiver.direction = "recvonly";
    this.#try(() => transceiver.sender.replaceTrack(null));
  }

  /** Takes in an offer or an answer.
   * @param {"offer" | "answer"} type
   * @param {any} data */
  describe(type, data) {
    this.#next(async () => {
      const { pc } = this.peer;
      const description = { type, sdp: String(data?.sdp) };
      if (type === "answer") {
        const offered = this.#offered;
        this.#offered = null;
        if (offered) await pc.setLocalDescription(offered);
        return pc.setRemoteDescription(description);
      }
      this.#ignoresOffer = !this.#polite && pc.signalingState !== "stable";
      if (this.#ignoresOffer) return;
      await pc.setRemoteDescription(description);
      this.#offered = null;
      this.#waitNoLonger();
      await pc.setLocalDescription();
      this.#signal("answer", pc.localDescription);
    });
  }

  /** @param {any} candidate */
  addCandidate(candidate) {
    this.#next(async () => {
      try {
        await this.peer.pc.addIceCandidate(candidate);
      } catch (error) {
        if (!this.#ignoresOffer) throw error;
      }
    });
  }

  /** Closes the connection, and withdraws what of it waits to be sent. */
  close() {
    this.#waitNoLonger();
    this.#open.abort();
    this.peer.pc.close();
  }

  #waitNoLonger() {
    clearTimeout(this.#waits);
    this.#waits = undefined;
  }

  /** Offers what there is, the other having failed to. */
  #offerAfterAll() {
    this.#waitNoLonger();
    if (this.#hasToOffer) this.#offer();
  }

  #offer() {
    this.#next(async () => {
      const { pc } = this.peer;
      // When what is under way is settled, the browser asks again if there is still a need.
      if (pc.signalingState !== "stable" || this.#offered) return;
      if (this.#polite) {
        // Who may have to yield commits itself only when the answer is there: a browser that takes
        // an offer back forgets more than that (in Chromium channels never open, and tracks stay
        // muted).
        this.#offered = await pc.createOffer();
        this.#signal("offer", this.#offered);
      } else {
        await pc.setLocalDescription();
        this.#signal("offer", pc.localDescription);
      }
    });
  }

  /** @param {string} type
   * @param {RTCSessionDescriptionInit | RTCIceCandidate | null} data */
  #signal(type, data) {
    this.#try(() => this.#room.send(this.peer.id, type, data, { signal: this.#open.signal }));
  }

  /** Does something when all before it is done.
   * @param {() => Promise<unknown>} work */
  #next(work) {
    if (this.#waiting >= WAITING) {
      const error = new Error(`${this.#waiting} signals wait already: this one is dropped`);
      return this.#emit("error", { id: this.peer.id, error });
    }
    this.#waiting += 1;
    this.#last = this.#last.then(async () => {
      await this.#try(work);
      this.#waiting -= 1;
    });
  }

  /** Does something; what goes wrong becomes an event, unless the connection is closed anyway.
   * @param {() => Promise<unknown>} work */
  async #try(work) {
    try {
      await work();
    } catch (error) {
      if (!this.#open.signal.aborted) this.#emit("error", { id: this.peer.id, error });
    }
  }
}
