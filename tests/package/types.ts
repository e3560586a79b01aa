// The types of the package, as an application sees them. It is compiled, not run.
import { check, join, Mesh, Room, RoomError, type Message, type Peer } from "anteroom-client";

interface Messages {
  chat: string;
  cursor: { x: number; y: number };
  typing: boolean | null;
  bye: undefined;
}

const room: Room<Messages> = join<Messages>("tea", { url: "https://example.org/" });
room.send("all", "chat", "hello");
room.broadcast("cursor", { x: 3, y: 4 });
// @ts-expect-error the type is not one of the messages
room.broadcast("chta", "hello");
// @ts-expect-error the data is that of another type
room.broadcast("chat", { x: 3, y: 4 });
// @ts-expect-error the data lacks a property
room.send("all", "cursor", { x: 3 });
// @ts-expect-error the data is missing
room.send("all", "chat");
// @ts-expect-error the data is missing
room.broadcast("cursor");
room.send("all", "chat", "hello", { signal: AbortSignal.timeout(1000) });
// @ts-expect-error there is no such option
room.broadcast("chat", "hello", { abort: true });
room.send("all", "typing");
room.broadcast("typing", Math.random() > 0.5 ? null : true);
room.broadcast("bye");
// @ts-expect-error sessions do not answer the server's requests
room.send("all", "ping");
room.send("server", "ping");
room.send("server", "token", "eyJ");
// @ts-expect-error there is no such option
join("tea", { uri: "https://example.org/" });

room.addEventListener("message", ({ detail }) => {
  if (detail.type === "chat") detail.data.toUpperCase();
  else if (detail.type === "cursor") detail.data.x.toFixed();
  // @ts-expect-error the type of the message is not known here
  detail.data.toUpperCase();
});
room.addEventListener("statechange", ({ detail }) => {
  if (detail.state === "closed") detail.reason.toUpperCase();
  // @ts-expect-error only some states have a reason
  detail.reason.toUpperCase();
});
room.addEventListener("error", ({ detail }) => detail.code === "empty_room");
room.addEventListener("peerjoin", ({ detail }: CustomEvent<Peer>) => detail.id.toUpperCase());
// @ts-expect-error there is no such event
room.addEventListener("peerjoined", () => {});
// @ts-expect-error the state cannot be set
room.state = "closed";

// Bytes, from any buffer or view.
room.sendBytes("all", new Uint8Array(3));
room.sendBytes("6c1f2a44-9f6e-4e4d-8f31-0123456789ab", new Float32Array(2).buffer);
// @ts-expect-error a text is no bytes
room.sendBytes("all", "hello");
room.addEventListener("bytes", ({ detail: { sender, bytes } }) => sender.toUpperCase() + new DataView(bytes.buffer).getUint8(0));
room.addEventListener("wire", ({ detail }) => detail.bytes?.length ?? detail.text.length);
room.bufferedAmount.toFixed() + room.messageBytes.toFixed();
// @ts-expect-error the room counts it
room.bufferedAmount = 0;
join("tea", { WebSocket });

// A second type argument is the type of states.
interface State {
  name: string;
  muted?: boolean;
}
const stateful = join<Messages, State>("tea");
stateful.setState({ name: "Alice" }).then(({ receivers }) => receivers.toFixed());
stateful.setState(null);
// @ts-expect-error the state lacks a property
stateful.setState({ muted: true });
stateful.ownState?.name.toUpperCase();
// @ts-expect-error the session may have no state
stateful.ownState.name.toUpperCase();
stateful.peers.get("x")?.state?.name.toUpperCase();
stateful.addEventListener("peerstate", ({ detail }) => detail.state?.muted === true);
stateful.sendToUser("alice", "chat", "hello", { signal: AbortSignal.timeout(1000) });
// @ts-expect-error the data is that of another type
stateful.sendToUser("alice", "chat", { x: 3, y: 4 });
new Mesh(stateful);

// The history, as a page and page by page.
room.history({ last: 20, before: 7 }).then(({ messages, more }) => more || messages.length.toFixed());
for await (const { messages } of room.history()) {
  for (const message of messages) {
    if (message.type === "chat") message.data.toUpperCase();
    // @ts-expect-error unknown data needs a check
    message.from.user;
    message.time.getTime() + message.number;
  }
}
// @ts-expect-error there is no such option
room.history({ first: 20 });
room.historyMessages?.toFixed();
// @ts-expect-error the room may keep none
room.historyMessages.toFixed();

// Without a type argument, every type of message is allowed and data is unknown.
const untyped = join("tea");
untyped.broadcast("anything", [1, 2, 3]);
untyped.broadcast("anything");
untyped.setState({ anything: [1, 2, 3] });
// @ts-expect-error an unknown state needs a check
untyped.ownState.anything;
untyped.addEventListener("message", ({ detail }: CustomEvent<Message>) => {
  // @ts-expect-error unknown data needs a check
  detail.data.toUpperCase();
});

const mesh = new Mesh(room, { maxPeers: 8 });
new Mesh(untyped, { relay: true });
// @ts-expect-error it is on or off
new Mesh(untyped, { relay: "all" });
mesh.addEventListener("statechange", ({ detail: { peer } }) => peer.state === "relayed");
// @ts-expect-error there is no such state
mesh.addEventListener("statechange", ({ detail: { peer } }) => peer.state === "relay");
mesh.addEventListener("track", ({ detail: { peer, track } }) => `${peer.id} ${track.kind}`);
const { receivers }: { receivers: number } = await room.send("all", "chat", "hello");
const report = await check("https://example.org/", {
  token: "eyJ",
  signal: AbortSignal.timeout(1000),
  onStep: ({ name, ok, detail }) => ok || name.toUpperCase() + detail.toUpperCase(),
});
report.ok || report.summary.toUpperCase() + report.steps.length.toFixed();
// @ts-expect-error there is no such option
check(undefined, { room: "tea" });
new RoomError("closed", `${receivers}`);
export {};
