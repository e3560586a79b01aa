// The same rooms on Node and Socket.IO. A session id is the socket's id, and a room is a Socket.IO room.
import { createServer } from "node:http";
import { Server } from "socket.io";

const http = createServer();
const io = new Server(http, { transports: ["websocket", "polling"], maxHttpBufferSize: 65536 });
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
