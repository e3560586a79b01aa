// The same rooms on Bun, whose WebSocket implementation is uWebSockets.
const rooms = new Map();
const { TLS_CERT, TLS_KEY } = process.env;
const tls = TLS_CERT && { cert: Bun.file(TLS_CERT), key: Bun.file(TLS_KEY) };

const message = (type, sender, receiver, data) => JSON.stringify({ type, sender, receiver, data });

const server = Bun.serve({
  hostname: "127.0.0.1",
  port: 0,
  tls,
  fetch(request, server) {
    const room = new URL(request.url).pathname;
    if (server.upgrade(request, { data: { id: crypto.randomUUID(), room } })) return;
    return new Response("this is a WebSocket endpoint\n", { status: 426 });
  },
  websocket: {
    maxPayloadLength: 65536,
    idleTimeout: 40,
    sendPings: true,
    open(socket) {
      const { id, room } = socket.data;
      const members = rooms.get(room) ?? new Map();
      rooms.set(room, members);
      members.set(id, socket);
      server.publish(room, message("new", id, "all", null));
      socket.subscribe(room);
    },
    message(socket, text) {
      const { id, room } = socket.data;
      const { type, receiver, data } = JSON.parse(text);
      const relayed = message(type, id, receiver, data);
      if (receiver === "all") socket.publish(room, relayed);
      else rooms.get(room).get(receiver)?.send(relayed);
    },
    close(socket) {
      const { id, room } = socket.data;
      const members = rooms.get(room);
      members.delete(id);
      if (members.size === 0) rooms.delete(room);
      server.publish(room, message("close", id, null, null));
    },
  },
});
console.log(`bun listening on http://127.0.0.1:${server.port}`);
