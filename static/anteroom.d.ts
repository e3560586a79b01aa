// Written by tests/package/declarations.mjs from the comments in anteroom.js.
/** Another session in the room: its id, the public data of its token or `null`, whether it joined after this
 * session, and its state or `null`. By convention, the session that joined first makes the first offer. */
export type Peer<State = unknown> = {
    readonly id: string;
    readonly data: unknown;
    readonly newcomer: boolean;
    readonly state: State | null;
};
/** A message from another session, or from the application behind the server (`"server"`). `Messages` are the
 * types of `data` by the message's `type`, for the compiler: what a session sends is not checked. */
export type Message<Messages extends Record<string, any> = Record<string, unknown>> = {
    [Type in keyof Messages & string]: {
        type: Type;
        sender: string;
        receiver: string;
        data: Messages[Type];
    };
}[keyof Messages & string];
/** A message to all that was sent earlier, with its number in the room, which rises with gaps, the time at which the
 * server received it, and the public data of its sender's token or `null`. The sender may have left. */
export type HistoryMessage<Messages extends Record<string, any> = Record<string, unknown>> = Message<Messages> & {
    number: number;
    time: Date;
    from: unknown;
};
/** A part of a room's history: its messages, oldest first, and whether there are older ones. */
export type HistoryPage<Messages extends Record<string, any> = Record<string, unknown>> = {
    messages: HistoryMessage<Messages>[];
    more: boolean;
};
/** `connecting` at first, `open`, `reconnecting` after a failed attempt or a lost connection, `closed` for good. */
export type RoomState = "connecting" | "open" | "reconnecting" | "closed";
/** The new state. `resumed` is whether the old session continues; if not, the id is new. `code` and `reason`
 * are the Close frame's (RFC 6455, section 7.1.5), or 1006 and what has failed. `delay` is the time until the
 * next attempt, in ms: `Infinity` while the browser keeps the page frozen. */
export type StateChange = {
    state: "connecting";
} | {
    state: "open";
    resumed: boolean;
} | {
    state: "reconnecting";
    code: number;
    reason: string;
    delay: number;
} | {
    state: "closed";
    code: number;
    reason: string;
};
/** A message as sent or received, for debugging. A binary message has no `text`, but its `bytes`, and `id`: the
 * receiver as in `sendBytes`, or the sender. */
export type WireMessage = {
    direction: "in" | "out";
    text: string;
    id?: string;
    bytes?: Uint8Array<ArrayBuffer>;
};
/** Bytes from another session, in a buffer of their own. */
export type BytesMessage = {
    sender: string;
    bytes: Uint8Array<ArrayBuffer>;
};
/** A message of this session: text, or the bytes of a binary message with its receiver. */
export type Outgoing = {
    ref?: number;
    data: string | Uint8Array<ArrayBuffer>;
    bytes: number;
    toAll?: boolean;
    state?: any;
};
export type Timer = ReturnType<typeof setTimeout> | undefined;
/** Any JSON, by default `null`. Aborting `signal` withdraws a message that waits. */
export type Payload<Data> = [(null | undefined) & Data] extends [never] ? [data: Data, options?: {
    signal?: AbortSignal;
}] : [data?: Data, options?: {
    signal?: AbortSignal;
}];
/** The server's receipt: how many sessions a message was delivered to. */
export type Receipt = {
    receivers: number;
};
/** The events of a `Room`, with their `detail`. */
export type RoomEvents<Messages extends Record<string, any> = Record<string, unknown>, State = unknown> = {
    statechange: StateChange;
    /**
     * a peer is there when the room opens, or joins later
     */
    peerjoin: Peer<State>;
    /**
     * the state of a peer has changed
     */
    peerstate: Peer<State>;
    /**
     * a peer left, is missing after a reconnection, or the room is closed
     */
    peerleave: Peer<State>;
    message: Message<Messages>;
    bytes: BytesMessage;
    /**
     * an error that belongs to no promise
     */
    error: RoomError;
    wire: WireMessage;
};
export type JoinOptions = {
    /**
     * the server's address, with `http` or `ws`; required unless that server has
     * served this module
     */
    url?: string | URL;
    /**
     * the JSON Web Token that grants access, or a
     * function that returns the current one before each attempt, once more after the server rejected the last
     */
    token?: string | (() => string | Promise<string>);
    /**
     * how long the server may be silent, in ms, before it is pinged
     */
    idleTimeout?: number;
    /**
     * how long it may take to answer, in ms, before the room reconnects
     */
    timeout?: number;
    /**
     * for runtimes that have none, such as `ws` in Node.js 20
     */
    WebSocket?: WebSocketConstructor;
    /**
     * whether to do without a WebSocket where the network lets none through; `true` unless
     * given
     */
    fallback?: boolean;
};
/** What the room needs of a WebSocket. */
export type Socket = {
    binaryType: any;
    readonly bufferedAmount: number;
    send(message: string | Uint8Array<ArrayBuffer>): void;
    close(code?: number, reason?: string): void;
    addEventListener(type: any, listener: (event: any) => void): void;
};
export type WebSocketConstructor = new (url: string, protocol: string) => Socket;
/** An EventTarget with typed events. */
export type TypedTarget<Events> = Omit<EventTarget, ListenerMethods> & Record<ListenerMethods, <Type extends keyof Events>(type: Type, listener: Listener<Events[Type]>, options?: boolean | AddEventListenerOptions) => void>;
export type ListenerMethods = "addEventListener" | "removeEventListener";
declare const TypedEventTarget: new <Events>() => TypedTarget<Events>;
export type Listener<Detail> = ((event: CustomEvent<Detail>) => void) | {
    handleEvent(event: CustomEvent<Detail>): void;
} | null;
/** The first two lines come from the server, the last from this module. After `connection_lost` it is unknown
 * whether the message has arrived. */
export type ErrorCode = "bad_message" | "unknown_receiver" | "empty_room" | "unknown_request" | "not_allowed" | "no_history" | "history_failed" | "closed" | "connection_lost" | "message_too_large" | "not_open" | "queue_full";
/** Why a message or request failed. */
export declare class RoomError extends Error {
    /** @readonly */
    code: ErrorCode;
    /** @param {ErrorCode} code @param {string} message */
    constructor(code: ErrorCode, message: string, /** @type {ErrorOptions} */ options?: ErrorOptions);
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
export declare function join<Messages extends Record<string, any> = Record<string, unknown>, State = unknown>(room: string, options?: JoinOptions): Room<Messages, State>;
/** A room, as one session sees it. Made by `join`.
 * @template {Record<string, any>} [Messages=Record<string, unknown>]
 * @template [State=unknown]
 * @extends {TypedEventTarget<RoomEvents<Messages, State>>} */
export declare class Room<Messages extends Record<string, any> = Record<string, unknown>, State = unknown> extends TypedEventTarget<RoomEvents<Messages, State>> {
    #private;
    /** Resolves with the room when it is open for the first time. Rejects with a `RoomError` if it closes before;
     * its `cause` has the `code` and `reason` of the Close frame. @type {Promise<this>} @readonly */
    opened: Promise<this>;
    /** @param {string} name @param {JoinOptions} [options] */
    constructor(name: string, options?: JoinOptions);
    /** The session's id, `null` until the room is open. A resumed session keeps it. Otherwise, for the peers,
     * this session has left and a new one has joined. */
    get id(): string | null;
    /** The others by id, longest-joined first. A new map after each change, which precedes its event.
     * @returns {ReadonlyMap<string, Peer<State>>} */
    get peers(): ReadonlyMap<string, Peer<State>>;
    /** The server's ICE servers, for `RTCPeerConnection`. */
    get iceServers(): RTCIceServer[];
    /** How many messages the room keeps for `history`. `null` if it keeps none, and until the room is open.
     * @returns {number | null} */
    get historyMessages(): number | null;
    /** The most bytes that a message to the server may have, `Infinity` until the room is open. */
    get messageBytes(): number;
    get state(): RoomState;
    /** What messages come over: a WebSocket, or where the network lets none through, server-sent events or answers of long
     * polling. `null` without a connection.
     * @returns {"websocket" | "events" | "polling" | null} */
    get transport(): "websocket" | "events" | "polling" | null;
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
    send<Receiver extends string, Type extends Receiver extends "server" ? string : keyof Messages & string>(receiver: Receiver, type: Type, ...payload: Payload<Receiver extends "server" ? unknown : Messages[Type]>): Promise<Receipt>;
    /** Sends a message to everyone else. Rejects with `empty_room` if there is nobody.
     * @template {keyof Messages & string} Type
     * @param {Type} type @param {Payload<Messages[Type]>} payload
     * @returns {Promise<Receipt>} */
    broadcast<Type extends keyof Messages & string>(type: Type, ...payload: Payload<Messages[Type]>): Promise<Receipt>;
    /** Sends a message to all other sessions of the user whom their tokens name.
     * @template {keyof Messages & string} Type
     * @param {string} name @param {Type} type @param {Payload<Messages[Type]>} payload
     * @returns {Promise<Receipt>} */
    sendToUser<Type extends keyof Messages & string>(name: string, type: Type, ...payload: Payload<Messages[Type]>): Promise<Receipt>;
    /** Sets the session's state, which its peers see in `peers`. The room sets it again in a new session. Of the
     * states that wait to be sent, only the last is: its receipt counts for all.
     * @param {State | null} state any JSON, `null` for none
     * @returns {Promise<Receipt>} as of `send` */
    setState(state: State | null): Promise<Receipt>;
    /** The last state that `setState` has set and the server has not refused, or `null`.
     * @returns {State | null} */
    get ownState(): State | null;
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
    history({ last, before }?: {
        last?: number;
        before?: number;
    }): Promise<HistoryPage<Messages>> & AsyncIterable<HistoryPage<Messages>>;
    /** Sends bytes for which JSON is too slow, such as positions many times a second. They wait and are kept as messages
     * are, in order with them, but have no receipt: if they reach nobody, the event `error` says so.
     * @param {string} receiver a session id, or `"all"` for everyone else
     * @param {ArrayBuffer | ArrayBufferView} bytes at most `limits.messageBytes` of the server, less 16. They are copied
     * @throws {RoomError} if the room is closed, the bytes are too many, or the queue is full
     * @throws {TypeError} if the receiver is no session id, or the bytes are none */
    sendBytes(receiver: string, bytes: ArrayBuffer | ArrayBufferView): void;
    /** How much waits to be sent, in bytes: for a connection, for the rates, or in the browser. What can be left out, as
     * all but the last of several positions, need not be sent while this is more than zero. */
    get bufferedAmount(): number;
    /** Sends a text unchanged, for debugging. The event `wire` shows the answer.
     * @param {string} text
     * @throws {RoomError} if the room is not open, the text too large, or the queue full */
    sendRaw(text: string): void;
    /** Leaves the room for good. A session that waits to be resumed is resumed once more, to end it: otherwise
     * the others would see it until the server gives it up. */
    leave(): void;
}
/** The events of a `Mesh`, with their `detail`. */
export type MeshEvents = {
    /**
     * not open yet
     */
    connect: {
        peer: MeshPeer;
    };
    /**
     * a connection and its channels are closed: the peer left, the
     * mesh was closed, or the connection did not recover: then a `connect` to the same session follows
     */
    disconnect: {
        peer: MeshPeer;
    };
    statechange: {
        peer: MeshPeer;
    };
    track: {
        peer: MeshPeer;
        track: MediaStreamTrack;
        streams: readonly MediaStream[];
    };
    /**
     * the channel `mesh`, or one that the
     * peer has created
     */
    datachannel: {
        peer: MeshPeer;
        channel: RTCDataChannel;
    };
    /**
     * a connection, signal or track of a session failed
     */
    error: {
        id: string;
        error: unknown;
    };
};
/** Bits per second since the last call (or the beginning), the round trip in ms or `null`, and whether a TURN
 * server relays. */
export type Quality = {
    bitsIn: number;
    bitsOut: number;
    roundTrip: number | null;
    relayed: boolean;
};
/** What a `Mesh` shares with its negotiations. `id` is random: it tells peers that a session belongs to the
 * same mesh as an earlier one. */
export type MeshContext = {
    id: string;
    room: Room;
    peers: Map<string, MeshPeer>;
    tracks: Map<MediaStreamTrack, MediaStream[]>;
    relay: boolean;
    relayedTo: string[];
    receiveRelayed(message: BytesMessage): void;
    hasRelayedTo(text: string): boolean;
    configuration(): RTCConfiguration;
    renewIceServers(): Promise<void>;
    stateChanged(negotiation: Negotiation): void;
    giveWay(negotiation: Negotiation): boolean;
    emit<Type extends keyof MeshEvents>(type: Type, detail: MeshEvents[Type]): void;
};
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
export declare class Mesh extends TypedEventTarget<MeshEvents> {
    #private;
    /** @param {Room<any, any>} room without another mesh
     * @param {object} [options]
     * @param {RTCConfiguration} [options.configuration] the room's `iceServers` are added to it
     * @param {boolean} [options.relay] relays the channel `mesh` through the room while a connection fails, if the other
     *   side's mesh does as well
     * @param {number} [options.maxPeers] each further peer fires an `error`, and is connected when another
     *   disconnects, or in turn with those that do not connect */
    constructor(room: Room<any, any>, { configuration, relay, maxPeers }?: {
        configuration?: RTCConfiguration;
        relay?: boolean;
        maxPeers?: number;
    });
    /** The connections by session id. Live.
     * @returns {ReadonlyMap<string, MeshPeer>} */
    get peers(): ReadonlyMap<string, MeshPeer>;
    /** Sends a track to every peer, now and later.
     * @param {MediaStreamTrack} track
     * @param {...MediaStream} streams what it belongs to on the other side */
    addTrack(track: MediaStreamTrack, ...streams: MediaStream[]): void;
    /** Sends another track instead, without negotiation.
     * @param {MediaStreamTrack} old
     * @param {MediaStreamTrack} track of the same kind */
    replaceTrack(old: MediaStreamTrack, track: MediaStreamTrack): void;
    /** @param {MediaStreamTrack} track is no longer sent */
    removeTrack(track: MediaStreamTrack): void;
    /** Closes all connections for good. The room stays open, and may get another mesh. */
    close(): void;
}
/** The connection to one peer. */
export declare class MeshPeer {
    #private;
    /** The peer's session id. @readonly */
    id: string;
    /** For data channels and statistics. The `Mesh` manages the tracks. @readonly */
    pc: RTCPeerConnection;
    /** @param {string} id @param {RTCPeerConnection} pc */
    constructor(id: string, pc: RTCPeerConnection);
    /** @returns {RTCPeerConnectionState | "relayed"} `new` until the peer has answered */
    get state(): RTCPeerConnectionState | "relayed";
    /** @returns {Promise<Quality>} */
    quality(): Promise<Quality>;
}
export type Description = {
    type: "offer" | "answer";
    sdp: string;
    id?: string;
    mesh: string;
    relay?: number;
};
/** The connections to one session, one after the other. An offer is applied only when its answer arrives: it
 * can be sent again or forgotten at any time. (A browser that rolls an offer back loses more than that: in
 * Chromium, channels never open, and tracks stay muted.) */
declare class Negotiation {
    #private;
    id: string;
    /** @type {MeshPeer | null} `null` if the browser refuses a connection, and when closed. */
    peer: MeshPeer | null;
    /** @type {unknown} The id of the peer's mesh. */
    mesh: unknown;
    /** @param {MeshContext} context @param {string} id the peer's session id */
    constructor(context: MeshContext, id: string);
    /** Replaces the connection.
     * @param {boolean} offersFirst */
    open(offersFirst: boolean): void;
    close(): void;
    /** Stops all signals and repairs. The connection stays. */
    keep(): void;
    /** Begins afresh in the room's new session, unless the connection works: the peer makes an offer to the new
     * id. */
    sessionStarted(): void;
    /** @param {MediaStreamTrack} track @param {MediaStream[]} streams */
    addTrack(track: MediaStreamTrack, streams: MediaStream[]): void;
    /** @param {MediaStreamTrack} old @param {MediaStreamTrack} track */
    replaceTrack(old: MediaStreamTrack, track: MediaStreamTrack): void;
    /** @param {MediaStreamTrack} track */
    removeTrack(track: MediaStreamTrack): void;
    /** @param {any} data */
    applyOffer(data: any): void;
    /** @param {any} data */
    applyAnswer(data: any): void;
    /** @param {Uint8Array<ArrayBuffer>} bytes */
    receiveRelayed(bytes: Uint8Array<ArrayBuffer>): void;
    /** @param {any} candidate */
    addCandidate(candidate: any): void;
}
/** What was tried, whether it works, and how. */
export type CheckStep = {
    name: string;
    ok: boolean;
    detail: string;
};
/** Whether all steps work, what that means for calls, in a sentence, and the steps. */
export type CheckReport = {
    ok: boolean;
    summary: string;
    steps: CheckStep[];
};
export type CheckOptions = {
    /**
     * the JSON Web Token, if the server wants one
     */
    token?: string;
    /**
     * ends the check: its promise rejects with the signal's reason
     */
    signal?: AbortSignal;
    /**
     * called with each step when it is done
     */
    onStep?: (step: CheckStep) => void;
};
/** An ICE server, and the type of candidates that it should give. `announced` is false for a TURN server over TCP that
 * the server announces only over UDP: calls do not use it. */
export type Probe = {
    name: string;
    server: RTCIceServer;
    type: "srflx" | "relay";
    isUdp: boolean;
    announced: boolean;
};
/** What ICE has found: the types of candidates, and why a server gave none. */
export type Found = {
    types: Set<string>;
    error: {
        code: number;
        text: string;
    } | null;
    complete: boolean;
};
/** Tells whether and how this browser can connect to a server and to peers. It joins a room of its own for less than a
 * minute. A token that admits only to rooms that it names in full leads to the first of them: there the others see a
 * session that joins and leaves.
 * @param {string | URL} [url] the server's address, as for `join`
 * @param {CheckOptions} [options]
 * @returns {Promise<CheckReport>} rejects with the reason of the signal, or with a `TypeError` as `join` throws it */
export declare function check(url?: string | URL, { token, signal, onStep }?: CheckOptions): Promise<CheckReport>;
export {};
