// Clients of other makers, as the pages of `tests/browser/stock_clients.rs` use them. What this file defines is
// global in these pages.

import {
  createRelayManager,
  createTopicStrategy,
  makeSocket,
  selfId,
} from "@trystero-p2p/core";
import { join } from "anteroom-client";
import { Peer } from "peerjs";
import { WebrtcProvider } from "y-webrtc";
import { Doc } from "yjs";

/** Every WebSocket of the page. `received` has the text of each message, and `sent` of each that the page sent. */
const sockets = [];

globalThis.WebSocket = class extends WebSocket {
  received = [];
  sent = [];

  constructor(...options) {
    super(...options);
    this.addEventListener("message", ({ data }) => this.received.push(data));
    sockets.push(this);
  }

  send(data) {
    this.sent.push(data);
    super.send(data);
  }
};

/** What all WebSockets whose URL has this part have received, parsed. */
const received = (part) =>
  sockets.filter(({ url }) => url.includes(part)).flatMap((socket) => socket.received.map((text) => JSON.parse(text)));

// Peers are in tabs of one browser.
const configuration = { iceServers: [] };

/**
 * Starts a PeerJS peer. `events` has what it has fired, an error as its type. `incoming` has the data connections
 * that others opened, and `calls` the calls of others.
 */
const startPeer = (id, options) => {
  const peer = new Peer(id, { host: "127.0.0.1", config: configuration, ...options });
  Object.assign(peer, { events: [], errors: [], incoming: [], calls: [] });
  for (const event of ["open", "disconnected", "close"]) peer.on(event, () => peer.events.push(event));
  peer.on("error", ({ type, message }) => {
    peer.events.push(type);
    peer.errors.push(message);
  });
  peer.on("connection", (connection) => peer.incoming.push(record(connection)));
  peer.on("call", (call) => peer.calls.push(record(call)));
  return peer;
};

/** Records what a connection of a PeerJS peer fires. `received` has the data, with bytes as arrays of numbers. */
const record = (connection) => {
  Object.assign(connection, { events: [], received: [] });
  for (const event of ["open", "stream", "close"]) connection.on(event, () => connection.events.push(event));
  connection.on("error", ({ type }) => connection.events.push(type));
  const plain = (_, value) =>
    value instanceof ArrayBuffer || ArrayBuffer.isView(value) ? [...new Uint8Array(value)] : value;
  connection.on("data", (data) => connection.received.push(JSON.parse(JSON.stringify(data, plain))));
  return connection;
};

/** Opens a data connection from a peer. */
const connect = (peer, id, options) => record(peer.connect(id, options));

/** Calls a peer with the camera and the microphone. */
const call = async (peer, id, options) => record(peer.call(id, await media(), options));

/** The camera and the microphone. */
const media = () => navigator.mediaDevices.getUserMedia({ audio: true, video: true });

/** Shares a new Yjs document. Other origins share nothing with this page but what passes through `signaling`. */
const shareDocument = (topic, signaling, options) => {
  const doc = new Doc();
  const provider = new WebrtcProvider(topic, doc, {
    signaling: [signaling],
    maxConns: 20,
    peerOpts: { config: configuration },
    ...options,
  });
  return { doc, provider, text: doc.getText(), awareness: provider.awareness };
};

const relays = createRelayManager((relay) => relay.socket);
const handlers = new Map();

/** A strategy for the core of trystero, with the messages of its package `ws-relay`, for one relay. */
const joinRoom = createTopicStrategy({
  init: ({ relayConfig: { urls } }) =>
    urls.map((url) => {
      const receive = (text) => {
        const { topic, payload } = JSON.parse(text);
        for (const handle of handlers.get(topic) ?? []) handle(topic, payload);
      };
      return relays.register(url, () => makeSocket(url, receive)).ready;
    }),

  subscribeTopic: (relay, topic, handle) => {
    if (!handlers.has(topic)) {
      handlers.set(topic, new Set());
      relay.send(JSON.stringify({ type: "subscribe", topic }));
    }
    const all = handlers.get(topic).add(handle);
    return () => {
      all.delete(handle);
      if (all.size > 0 || !handlers.delete(topic)) return;
      relay.send(JSON.stringify({ type: "unsubscribe", topic }));
    };
  },

  publishTopic: (relay, topic, payload) => relay.send(JSON.stringify({ type: "publish", topic, payload })),
});

/** Joins a room of trystero. `peers` has the peers in the room, and `heard` what they said. */
const joinTrystero = (name, url, options) => {
  const errors = [];
  const settings = { appId: "anteroom", rtcConfig: configuration, relayConfig: { urls: [url] }, ...options };
  const room = joinRoom(settings, name, { onJoinError: ({ error }) => errors.push(error) });
  const heard = [];
  const peers = new Set();
  const streams = [];
  room.onPeerJoin = (peer) => peers.add(peer);
  room.onPeerLeave = (peer) => peers.delete(peer);
  room.onPeerStream = (stream) => streams.push(stream);
  const chat = room.makeAction("chat", { onMessage: (data, { peerId }) => heard.push([peerId, data]) });
  return { room, peers, heard, streams, errors, say: (data) => chat.send(data) };
};

Object.assign(globalThis, {
  Doc,
  Peer,
  WebrtcProvider,
  call,
  connect,
  join,
  joinRoom,
  joinTrystero,
  media,
  received,
  selfId,
  shareDocument,
  sockets,
  startPeer,
});
