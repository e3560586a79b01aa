// The same rooms on Node and ws.
import { randomUUID } from "node:crypto";
import { readFileSync } from "node:fs";
import { createServer } from "node:http";
import { createServer as createTlsServer } from "node:https";
import { WebSocketServer } from "ws";

const rooms = new Map();

function joinRoom(socket, name) {
  const id = randomUUID();
  const members = rooms.get(name) ?? new Map();
  rooms.set(name, members);
  const broadcast = (text) => {
    for (const [other, member] of members) if (other !== id) member.send(text);
  };
  const announce = (type, receiver) =>
    broadcast(JSON.stringify({ type, sender: id, receiver, data: null }));

  members.set(id, socket);
  announce("new", "all");
  socket.on("message", (bytes) => {
    const { type, receiver, data } = JSON.parse(bytes);
    const text = JSON.stringify({ type, sender: id, receiver, data });
    if (receiver === "all") broadcast(text);
    else members.get(receiver)?.send(text);
  });
  socket.on("close", () => {
    members.delete(id);
    if (members.size === 0) rooms.delete(name);
    announce("close", null);
  });
}

const { TLS_CERT, TLS_KEY } = process.env;
const http = TLS_CERT
  ? createTlsServer({ cert: readFileSync(TLS_CERT), key: readFileSync(TLS_KEY) })
  : createServer();
const sockets = new WebSocketServer({ server: http, maxPayload: 65536 });
sockets.on("connection", (socket, request) => joinRoom(socket, request.url));
setInterval(() => {
  for (const socket of sockets.clients) socket.ping();
}, 20_000);
http.listen(0, "127.0.0.1", 4096, () =>
  console.log(`ws listening on http://127.0.0.1:${http.address().port}`),
);
