// The demo page: joins a room, shows who is here, what is said, and every message that travels.
// What comes from others is only ever shown as text.

/** How many lines the conversation and the wire keep. */
const LINES = 500;

const $ = (id) => document.getElementById(id);

/** @type {WebSocket | null} The connection, while there is one. */
let socket = null;
/** The session's own id, once `hello` has told it. */
let me = null;

$("room").value = new URLSearchParams(location.search).get("room") ?? "lobby";
showConnected(false);
showReceivers();
if (new URLSearchParams(location.search).has("room")) join($("room").value);

$("join").addEventListener("submit", (event) => {
  event.preventDefault();
  const room = $("room").value;
  history.replaceState(null, "", `?room=${encodeURIComponent(room)}`);
  join(room);
});

$("leave").addEventListener("click", () => socket?.close(1000));

$("copy").addEventListener("click", async () => {
  try {
    await navigator.clipboard.writeText(location.href);
    $("copied").textContent = "Copied: send it to someone, or open it in another window.";
  } catch {
    // Without https there is no clipboard.
    $("copied").textContent = location.href;
  }
});

$("say").addEventListener("submit", (event) => {
  event.preventDefault();
  const message = { type: $("type").value, receiver: $("receiver").value };
  if ($("text").value !== "") message.data = $("text").value;
  if (!send(JSON.stringify(message))) return;
  if (message.receiver !== "server") say(me, message, true);
  $("text").value = "";
});

$("raw").addEventListener("submit", (event) => {
  event.preventDefault();
  send($("json").value);
});

function join(room) {
  socket?.close(1000);
  const scheme = location.protocol === "https:" ? "wss" : "ws";
  const connection = new WebSocket(`${scheme}://${location.host}/room/${encodeURIComponent(room)}`);
  socket = connection;
  $("peers").replaceChildren();
  showState(`Joining ${room} …`);

  connection.addEventListener("open", () => {
    if (connection === socket) send(JSON.stringify({ type: "hello", receiver: "server" }));
  });
  connection.addEventListener("message", (event) => {
    if (connection === socket) receive(event.data);
  });
  connection.addEventListener("close", (event) => {
    if (connection !== socket) return;
    socket = me = null;
    $("peers").replaceChildren();
    showConnected(false);
    showReceivers();
    if (event.code === 1000) showState(`You have left ${room}.`);
    else if (event.code === 1006) showState(`No connection to ${room}: is the server running, and has it a place?`, true);
    else showState(`Closed by the server: ${event.reason} (${event.code})`, true);
  });
}

/** Sends text as it is; false if there is no connection. */
function send(text) {
  if (socket?.readyState !== WebSocket.OPEN) return false;
  socket.send(text);
  showOnTheWire("out", text);
  return true;
}

function receive(text) {
  showOnTheWire("in", text);
  const message = JSON.parse(text);
  if (message.sender === "server") {
    if (message.type === "hello") greeted(message);
    else if (message.type === "error") news(message.data.message, "error");
  } else if (message.type === "new" && message.receiver === "all" && message.sender !== me) {
    addPeer(message.sender);
    news(`${short(message.sender)} has come`);
  } else if (message.type === "close" && message.receiver === null) {
    peerItem(message.sender)?.remove();
    showReceivers();
    news(`${short(message.sender)} has gone`);
  } else {
    say(message.sender, message, false);
  }
}

function greeted(message) {
  me = message.receiver;
  $("peers").replaceChildren();
  for (const peer of message.data.peers) addPeer(peer.id);
  showReceivers();
  showConnected(true);
  showState(`You are ${me} in ${message.data.room}.`);
}

function addPeer(id) {
  // Told twice, by the roster and by its own news, it is still one.
  if (peerItem(id)) return;
  const item = document.createElement("li");
  item.dataset.id = id;
  item.append(name(id));
  $("peers").append(item);
  showReceivers();
}

function peerItem(id) {
  return [...$("peers").children].find((item) => item.dataset.id === id);
}

/** Puts what was said into the conversation. */
function say(sender, { type, receiver, data }, own) {
  const item = document.createElement("li");
  const to = receiver === "all" ? "" : ` to ${own ? short(receiver) : "you"}`;
  const kind = type === "chat" ? "" : ` [${type}]`;
  const words = typeof data === "string" ? data : JSON.stringify(data ?? null);
  item.append(name(sender), `${own ? " (you)" : ""}${to}${kind}: ${words}`);
  append($("said"), item);
}

/** Puts what happened into the conversation. */
function news(text, kind = "news") {
  const item = document.createElement("li");
  item.className = kind;
  item.textContent = text;
  append($("said"), item);
}

function showOnTheWire(direction, text) {
  const item = document.createElement("li");
  item.className = direction;
  item.textContent = text;
  append($("messages"), item);
}

function append(list, item) {
  const atEnd = list.scrollHeight - list.scrollTop - list.clientHeight < 40;
  list.append(item);
  while (list.children.length > LINES) list.firstElementChild.remove();
  if (atEnd) list.scrollTop = list.scrollHeight;
}

/** Everyone who can be written to; the one chosen stays chosen while it is there. */
function showReceivers() {
  const chosen = $("receiver").value;
  const peers = [...$("peers").children].map((item) => item.dataset.id);
  const choices = [["all", "all"], ["server", "the server"], ...peers.map((id) => [id, short(id)])];
  $("receiver").replaceChildren(...choices.map(([id, text]) => new Option(text, id)));
  $("receiver").value = choices.some(([id]) => id === chosen) ? chosen : "all";
  $("alone").hidden = peers.length > 0;
}

function showConnected(connected) {
  for (const form of [$("say"), $("raw")]) {
    for (const element of form.elements) element.disabled = !connected;
  }
  $("leave").hidden = !connected;
  $("share").hidden = !connected;
  $("copied").textContent = "";
}

function showState(text, wrong = false) {
  $("state").textContent = text;
  $("state").classList.toggle("wrong", wrong);
}

/** An id as people read it, with a colour of its own. */
function name(id) {
  const element = document.createElement("span");
  element.className = "who";
  element.title = id;
  element.textContent = short(id);
  element.style.setProperty("--hue", parseInt(id.slice(0, 4), 16) % 360);
  return element;
}

function short(id) {
  return id.length === 36 ? id.slice(0, 8) : id;
}
