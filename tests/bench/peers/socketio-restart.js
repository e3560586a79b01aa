// The rooms of socketio.js, whose sessions outlive their server: connection state recovery, with Redis as storage.
// The arguments are the URL of Redis and the port.
import { createServer } from "node:http";
import { createAdapter } from "@socket.io/redis-streams-adapter";
import { createClient } from "redis";
import { Server } from "socket.io";

const [url, port] = process.argv.slice(2);
const redis = createClient({ url });
await redis.connect();
const http = createServer();
const io = new Server(http, {
  transports: ["websocket", "polling"],
  maxHttpBufferSize: 65536,
  // The default of two minutes is over before 10,000 sessions are recovered.
  connectionStateRecovery: { maxDisconnectionDuration: 15 * 60 * 1000 },
  // By default, the stream keeps fewer events than 10,000 sessions cause, and whoever needs an older one is lost.
  adapter: createAdapter(redis, { maxLen: 100_000 }),
});
io.on("connection", (socket) => {
  const { room } = socket.handshake.query;
  if (!socket.recovered) {
    socket.join(room);
    socket.to(room).emit("message", { type: "new", sender: socket.id, receiver: "all", data: null });
  }
  socket.on("message", ({ type, receiver, data }, acknowledge) => {
    const to = receiver === "all" ? room : receiver;
    socket.to(to).emit("message", { type, sender: socket.id, receiver, data });
    acknowledge?.();
  });
  socket.on("disconnect", (reason) => {
    // They will come back.
    if (reason === "server shutting down") return;
    io.to(room).emit("message", { type: "close", sender: socket.id, receiver: null, data: null });
  });
});
process.once("SIGTERM", async () => {
  await io.close();
  // This waits for what is being stored.
  await redis.close();
  process.exit(0);
});
http.listen(Number(port), "127.0.0.1", 4096, () =>
  console.log(`socket.io listening on http://127.0.0.1:${http.address().port}`),
);
