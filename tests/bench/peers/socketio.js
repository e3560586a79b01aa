// The same rooms on Node and Socket.IO. A session id is the socket's id, and a room is a Socket.IO room. With the URL of
// Redis as argument, it is one of several nodes that Redis connects.
import { createServer } from "node:http";
import { Server } from "socket.io";

const [url] = process.argv.slice(2);
const http = createServer();
const io = new Server(http, { transports: ["websocket", "polling"], maxHttpBufferSize: 65536 });
if (url) {
  const { createAdapter } = await import("@socket.io/redis-adapter");
  const { createClient } = await import("redis");
  const publisher = createClient({ url });
  const subscriber = publisher.duplicate();
  await Promise.all([publisher.connect(), subscriber.connect()]);
  io.adapter(createAdapter(publisher, subscriber));
}
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
