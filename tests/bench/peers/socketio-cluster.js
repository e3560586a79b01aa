// The rooms of socketio.js on several nodes, which Redis connects. The argument is the URL of Redis.
import { createServer } from "node:http";
import { createAdapter } from "@socket.io/redis-adapter";
import { createClient } from "redis";
import { Server } from "socket.io";

const publisher = createClient({ url: process.argv[2] });
const subscriber = publisher.duplicate();
await Promise.all([publisher.connect(), subscriber.connect()]);
const http = createServer();
const io = new Server(http, {
  transports: ["websocket", "polling"],
  maxHttpBufferSize: 65536,
  adapter: createAdapter(publisher, subscriber),
});
io.on("connection", (socket) => {
  const { room } = socket.handshake.query;
  socket.join(room);
  socket.to(room).emit("message", { type: "new", sender: socket.id, receiver: "all", data: null });
  socket.on("message", ({ type, receiver, data }) => {
    const to = receiver === "all" ? room : receiver;
    socket.to(to).emit("message", { type, sender: socket.id, receiver, data });
  });
  socket.on("disconnect", () => {
    io.to(room).emit("message", { type: "close", sender: socket.id, receiver: null, data: null });
  });
});
http.listen(0, "127.0.0.1", 4096, () =>
  console.log(`socket.io listening on http://127.0.0.1:${http.address().port}`),
);
