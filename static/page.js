// The demo page: joins a room, shows who is here, what is said, and every message that travels.
// What comes from others is only ever shown as text.

/** How many lines the conversation and the wire keep. */
const LINES = 500;

const $ = (id) => document.getElementById(id);

/** @type {WebSocket | null} The connection, while there is one. */
let socket = null;
/** The session's own id, once `hello` has told it. */
let me = null;

/** The longest message the server takes, in bytes, once `hello` has told it. */
let messageBytes = Infinity;
/** The timer of the next attempt to join again, and how many attempts are left. */
let retry = 0;
let attempts = 0;

/** How often to try again when the server restarts, a second apart. */
const ATTEMPTS = 10;

const asked = new URLSearchParams(location.search).get("room");
$("room").value = asked ?? "lobby";
showConnected(false);
showReceivers();
if (asked !== null) join(asked);

$("join").addEventListener("submit", (event) => {
  event.preventDefault();
  const room = $("room").value;
  attempts = 0;
  $("said").replaceChildren();
  history.replaceState(null, "", `?room=${encodeURIComponent(room)}`);
  join(room);
});

$("leave").addEventListener("click", () => {
  clearTimeout(retry);
  attempts = 0;
  socket?.close(1000);
  socket = me = null;
  left("You have left.");
  $("room").focus();
});

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
  say(me, message, true);
  $("text").value = "";
});

$("raw").addEventListener("submit", (event) => {
  event.preventDefault();
  send($("json").value);
});

function join(room) {
  clearTimeout(retry);
  socket?.close(1000);
  socket = me = null;
  $("peers").replaceChildren();
  document.title = `${room} – anteroom`;
  const wrong = wrongWith(room);
  if (wrong) return left(wrong, true);

  const url = new URL(`room/${encodeURIComponent(room)}`, location.origin + location.pathname);
  url.protocol = url.protocol.replace("http", "ws");
  const connection = new WebSocket(url);
  socket = connection;
  showState(`Joining ${room} …`);

  connection.addEventListener("open", () => {
    if (connection === socket) send(JSON.stringify({ type: "hello", receiver: "server" }));
  });
  connection.addEventListener("message", (event) => {
    if (connection === socket) receive(event.data);
  });
  connection.addEventListener("close", ({ code, reason }) => {
    if (connection !== socket) return;
    const joined = me !== null;
    socket = me = null;
    // The server says when to come back (1012); it may not be there at once.
    const delay = Number(/retry in (\d+) ms/.exec(reason)?.[1] ?? 0);
    if (code === 1012) attempts = ATTEMPTS;
    if (code === 1012 || (attempts > 0 && !joined)) {
      attempts -= 1;
      left("The server is restarting. Joining again in a moment …", true);
      $("leave").hidden = false;
      retry = setTimeout(join, delay + 1000, room);
    } else if (reason) left(`Closed by the server: ${reason} (${code}). Join again when you like.`, true);
    else if (joined) left("The connection is lost. Join again when you like.", true);
    else left("Cannot join: the server is not running, or it is full.", true);
  });
}

/** What is wrong with a room's name, or nothing: a browser is not told why it was refused. */
function wrongWith(room) {
  const bytes = new TextEncoder().encode(room).length;
  if (bytes < 1 || bytes > 128) return `A room's name has 1 to 128 bytes, not ${bytes}.`;
  if (/\p{Cc}/u.test(room)) return "A room's name has no control characters.";
  if (room === "." || room === "..") return "Browsers cannot ask for a room of this name.";
  return "";
}

/** Shows that there is no connection, and why. */
function left(why, wrong = false) {
  $("peers").replaceChildren();
  showConnected(false);
  showReceivers();
  showState(why, wrong);
}

/** Sends text as it is; false if that cannot be done. */
function send(text) {
  if (socket?.readyState !== WebSocket.OPEN) return false;
  const bytes = new TextEncoder().encode(text).length;
  if (bytes > messageBytes) {
    news(`Not sent: a message has at most ${messageBytes} bytes, this one has ${bytes}.`, "error");
    return false;
  }
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
    else if (message.type === "pong") say("server", message, false);
  } else if (message.type === "new" && message.receiver === "all" && message.sender !== me) {
    addPeer(message.sender);
    news(`${short(message.sender)} has come`);
  } else if (message.type === "close" && message.receiver === null) {
    findPeer(message.sender)?.remove();
    showReceivers();
    news(`${short(message.sender)} has gone`);
  } else {
    say(message.sender, message, false);
  }
}

function greeted(message) {
  const first = me === null;
  me = message.receiver;
  attempts = 0;
  messageBytes = message.data.limits.messageBytes;
  $("peers").replaceChildren(...message.data.peers.map((peer) => peerItem(peer.id)));
  showReceivers();
  showConnected(true);
  showState(`You are ${short(me)} in “${message.data.room}”.`);
  $("state").title = me;
  if (first) $("text").focus();
}

function addPeer(id) {
  // Told twice, by the roster and by its own news, it is still one.
  if (findPeer(id)) return;
  $("peers").append(peerItem(id));
  showReceivers();
}

function findPeer(id) {
  return [...$("peers").children].find((item) => item.dataset.id === id);
}

function peerItem(id) {
  const item = document.createElement("li");
  item.dataset.id = id;
  item.append(name(id));
  return item;
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
  $("alone").textContent = me
    ? "Nobody else. Send the link to someone, or open it in another window."
    : "Join a room to see.";
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
