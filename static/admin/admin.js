// The operators' page of the admin listener: rooms, sessions, current rates, peer connections, refusals, and notices.

// The admin listener serves `admin.js` and `dom.js` both at its root: there, a browser resolves `../` to the root.
import { $, element, json, on, shortId } from "../dom.js";

/** How long the page waits between two requests for the figures, in ms. */
const REFRESH_MS = 2000;

/** How long the page waits for an answer, in ms: longer than the server waits for other nodes. */
const ANSWER_MS = 15_000;

/** The maximum number of rows of a table. A table that keeps its order has up to twice as many. */
const MAX_ROWS = 500;

/** The maximum number of other nodes that the page names. */
const MAX_NODES = 8;

/** The metrics that the page shows: title, series, and a function that formats its value, or its rate per second.
 * @type {[string, string, (value: number, rate: number) => string][]} */
const TOTALS = [
  ["Sessions", "anteroom_sessions", (value) => value.toLocaleString()],
  ["Suspended", "anteroom_sessions_suspended", (value) => value.toLocaleString()],
  ["Rooms", "anteroom_rooms", (value) => value.toLocaleString()],
  ["Messages in", "anteroom_messages_received_total", (_, rate) => `${compact(rate)}/s`],
  ["Deliveries", "anteroom_deliveries_total", (_, rate) => `${compact(rate)}/s`],
  ["Bytes in", "anteroom_received_bytes_total", (_, rate) => `${compact(rate)}B/s`],
  ["Bytes out", "anteroom_sent_bytes_total", (_, rate) => `${compact(rate)}B/s`],
  ["Queued", "anteroom_outbox_bytes", (value) => `${compact(value)}B`],
];

/** Why the server refuses a request for a session, by HTTP status.
 * @type {Record<string, string>} */
const REASONS = {
  400: "bad request",
  401: "no valid token",
  403: "not allowed",
  405: "wrong method",
  426: "no WebSocket",
  429: "too many from one address",
  503: "full or draining",
};

/** Which address of its own end a peer connection uses, by the type of the candidate.
 * @type {Record<string, string>} */
const PATHS = {
  host: "Own address",
  srflx: "Address from STUN",
  prflx: "Address that the peer saw",
  relay: "TURN server",
};

/** A number with three significant digits and a unit prefix.
 * @param {number} value */
const compact = (value) =>
  value.toLocaleString("en", { notation: "compact", maximumSignificantDigits: 3 }).replace(/^([\d.]+)([KMBT]?)$/, "$1 $2");

/** The clients of a room with a dialect are not this server's own.
 * @typedef {{ room: string, dialect?: string, sessions: number }} Room */
/** @typedef {{ id: string, name?: string, data: any, state?: any, since: string, node?: string, address?: string | null, messagesReceived?: number,
 *   binary?: number, messagesSent?: number, waitingBytes?: number, away?: boolean }} Session */

/** @typedef {{ result: string, path: string, count: number }} PeerConnections */

/** The room whose sessions are shown. The fragment of the page's URL holds it as well, so that a link or a reload
 * leads to the same room. */
let selectedRoom = roomOfFragment();
/** @type {{ time: number, values: Map<string, number> } | undefined} The previous metrics, to compute rates. */
let previous;
/** @type {Room[]} */
let rooms = [];
/** @type {number | undefined} The timer of the next refresh. */
let timer;

/** What stands between the dialect and the name of a room: no name has such a character. */
const SEPARATOR = "\u001f";

/** The dialect and the name of a room together.
 * @param {Room} room */
const keyOf = ({ room, dialect }) => dialect ? dialect + SEPARATOR + room : room;

/** What the page calls a room.
 * @param {string} key */
const titleOf = (key) => key.replace(SEPARATOR, ": ");

/** The path of a room, or of what is in it.
 * @param {string} key
 * @param {string} [rest] */
function pathOf(key, rest = "") {
  const [dialect, room] = key.includes(SEPARATOR) ? key.split(SEPARATOR) : ["", key];
  return `rooms/${encodeURIComponent(room)}${rest}${dialect && `?dialect=${dialect}`}`;
}

function roomOfFragment() {
  try {
    return decodeURIComponent(location.hash.slice(1));
  } catch {
    return "";
  }
}

/** A request that the server refused. */
class RequestError extends Error {
  /** @param {number} status @param {string} message */
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/** Sends a request with the operator's token, and returns the answer. An answer that is an error is thrown.
 * @param {string} path
 * @param {RequestInit} [options] */
async function request(path, options) {
  const token = sessionStorage.getItem("token");
  /** @type {Record<string, string>} */
  const headers = token ? { authorization: `Bearer ${token}` } : {};
  const response = await fetch(path, { ...options, headers, signal: AbortSignal.timeout(ANSWER_MS) })
    .catch(() => { throw new RequestError(0, "the server does not answer"); });
  if (response.ok) return response;
  const { message } = await response.json().catch(() => ({ message: `the server answers ${response.status}` }));
  throw new RequestError(response.status, message);
}

/** Updates everything on the page, now and then again after `REFRESH_MS`. */
async function refresh() {
  try {
    const [metrics, list, status, ready] = await Promise.all([
      request("metrics").then((response) => response.text()),
      request("rooms").then((response) => response.json()),
      request("status").then((response) => response.json()),
      fetch("ready", { signal: AbortSignal.timeout(ANSWER_MS) }).then((response) => response.text()),
    ]);
    showMetrics(metrics);
    showStatus(status);
    rooms = list.rooms;
    showRooms();
    await showSessions();
    const reason = ready.trim();
    const isDraining = reason === "draining";
    showState(isDraining ? "draining: new sessions are refused" : reason, reason === "ready" ? "open" : "connecting");
    showProblem("");
    $("drain").hidden = isDraining;
    $("authorize").hidden = true;
    $("figures").hidden = false;
  } catch (/** @type {any} */ error) {
    if (error.status === 401) askForToken();
    else {
      showState(error.status ? "refused" : "no answer", "closed");
      const message = error.status ? error.message : "the server does not answer";
      const old = $("figures").hidden ? "" : " The figures below are old.";
      showProblem(`${message.charAt(0).toUpperCase()}${message.slice(1)}.${old} Trying again …`);
    }
  }
  clearTimeout(timer);
  timer = setTimeout(refresh, REFRESH_MS);
}

function askForToken() {
  const isWrong = sessionStorage.getItem("token") !== null;
  sessionStorage.removeItem("token");
  showState("signed out", "closed");
  if (isWrong) $("token-error").textContent = "The server does not accept this token. Check it and try again.";
  showProblem("");
  $("authorize").hidden = false;
  $("figures").hidden = $("drain").hidden = true;
  if (isWrong) $("token").select();
}

/** Sets the text of an element. An unchanged text stays untouched: a screen reader would read it again.
 * @param {string} id
 * @param {string} text */
function setText(id, text) {
  if ($(id).textContent !== text) $(id).textContent = text;
}

/** Shows the state of the server.
 * @param {string} text
 * @param {string} state the room state whose colour the text gets */
function showState(text, state) {
  setText("state", text);
  $("state").dataset.state = state;
}

/** Shows why the figures are not current.
 * @param {string} text empty if they are */
function showProblem(text) {
  setText("problem", text);
  $("figures").classList.toggle("old", text !== "");
}

/** Does what an operator asks for, and shows the outcome.
 * @param {string} failure how the outcome begins if it fails
 * @param {() => Promise<string>} action returns the outcome */
async function act(failure, action) {
  try {
    setText("outcome", await action());
    $("outcome").className = "";
  } catch (/** @type {any} */ error) {
    $("outcome").className = "error";
    setText("outcome", `${failure}: ${error.message}.`);
    if (error.status === 401) askForToken();
  }
}

/** @param {number} count @param {string} noun */
const plural = (count, noun) => `${count.toLocaleString()} ${noun}${count === 1 ? "" : "s"}`;

/** @param {{ version: string, startedAt: string, node: string | null, nodes: string[],
 *   peerConnections: PeerConnections[] }} status */
function showStatus({ version, startedAt, node, nodes, peerConnections }) {
  const started = new Date(startedAt);
  const minutes = Math.max(0, Math.floor((Date.now() - started.getTime()) / 60_000));
  const [days, hours] = [Math.floor(minutes / 1440), Math.floor(minutes / 60) % 24];
  const uptime = days ? `${days} d ${hours} h` : hours ? `${hours} h ${minutes % 60} min` : `${minutes} min`;
  setText("version", `Version ${version}`);
  setText("uptime", `Up ${uptime}, since ${started.toLocaleString([], { dateStyle: "medium", timeStyle: "short" })}`);
  const more = nodes.length > MAX_NODES ? ` and ${nodes.length - MAX_NODES} more` : "";
  const others = nodes.length ? `, with ${nodes.slice(0, MAX_NODES).join(", ")}${more}` : ", alone in its cluster";
  setText("nodes", node ? `Node ${node}${others}` : "");
  setText("everyone", node ? "everyone on this node" : "everyone");
  showPeerConnections(peerConnections);
}

/** Shows which share of the peer connections connects, and which share of those uses which path.
 * @param {PeerConnections[]} series */
function showPeerConnections(series) {
  const sum = (/** @type {PeerConnections[]} */ some) => some.reduce((total, { count }) => total + count, 0);
  const connected = series.filter(({ result }) => result === "connected");
  const [all, good] = [sum(series), sum(connected)];
  const paths = connected.filter(({ count }) => count > 0).map(({ path, count }) =>
    fact(`${PATHS[path]} (${path})`, share(count, good)));
  $("connections").replaceChildren(fact(`Connected, of ${all.toLocaleString()}`, share(good, all)), ...paths);
  $("peers").hidden = all === 0;
}

/** A share in percent. Only nothing is 0 %, and only all is 100 %.
 * @param {number} part @param {number} all */
function share(part, all) {
  const percent = Math.round((100 * part) / all);
  if (percent === 0 && part > 0) return "< 1 %";
  return percent === 100 && part < all ? "> 99 %" : `${percent} %`;
}

/** @param {string} metrics in the text format of Prometheus */
function showMetrics(metrics) {
  const time = performance.now();
  const values = new Map(metrics.split("\n").map((line) => {
    const [series, value] = line.split(" ");
    return [series, Number(value)];
  }));
  const seconds = previous ? (time - previous.time) / 1000 : Infinity;
  const totals = TOTALS.map(([title, series, format]) => {
    const value = values.get(series) ?? 0;
    const rate = (value - (previous?.values.get(series) ?? value)) / seconds;
    return fact(title, format(value, rate));
  });
  $("totals").replaceChildren(...totals);
  previous = { time, values };

  const refusals = labelled(values, "anteroom_upgrades_total", "status").filter(([status]) => status !== "101");
  const statuses = refusals.map(([status, count]) => fact(`${status} ${REASONS[status] ?? ""}`, count.toLocaleString()));
  const limits = labelled(values, "anteroom_limits_hit_total", "limit");
  showFacts("refusals", statuses);
  showFacts("limits", limits.map(([limit, count]) => fact(`--${limit}`, count.toLocaleString())));
}

/** The values of a label whose counter is above zero, with the counter.
 * @param {Map<string, number>} values
 * @param {string} name
 * @param {string} label
 * @returns {[string, number][]} */
function labelled(values, name, label) {
  const start = `${name}{${label}="`;
  const found = [...values].filter(([series, count]) => series.startsWith(start) && count > 0);
  return found.map(([series, count]) => /** @type {[string, number]} */ ([series.slice(start.length, -2), count])).sort();
}

/** @param {string} title @param {string} value */
const fact = (title, value) => element("div", {}, element("dt", {}, title), element("dd", {}, value));

/** @param {string} id of a `dl`, which is hidden if there are no facts
 * @param {HTMLElement[]} facts */
function showFacts(id, facts) {
  $(id).replaceChildren(...facts);
  $(id).hidden = facts.length === 0;
  $(`no-${id}`).hidden = facts.length > 0;
}

/** Makes the function that shows items as the rows of a table, at most `MAX_ROWS`. Rows are updated in place. While
 * the pointer is over the table or the keyboard is in it, no row moves: new ones are appended, and those whose item has
 * gone stay, struck out, so that nobody clicks another row than the one that they aim at.
 * @template Item
 * @param {HTMLElement} body
 * @param {(item: Item) => string} keyOf
 * @param {(item: Item) => { row: HTMLElement, update: (item: Item) => void }} create
 * @returns {(items: Item[], mayMove?: boolean) => void} */
function table(body, keyOf, create) {
  /** @type {Map<string, { row: HTMLElement, update: (item: Item) => void }>} */
  const rows = new Map();
  const frame = /** @type {HTMLElement} */ (body.closest(".scroll"));
  return (items, mayMove = !frame.matches(":hover, :focus-visible, :has(:focus-visible)")) => {
    const all = new Map(items.map((item) => [keyOf(item), item]));
    const first = new Set([...all.keys()].slice(0, MAX_ROWS));
    for (const [key, { row }] of rows) {
      if (mayMove && !first.has(key)) {
        row.remove();
        rows.delete(key);
      }
      row.classList.toggle("gone", !all.has(key));
      row.querySelector("button")?.setAttribute("aria-disabled", String(!all.has(key)));
    }
    for (const key of first) {
      if (rows.has(key) || rows.size >= 2 * MAX_ROWS) continue;
      const created = create(/** @type {Item} */ (all.get(key)));
      rows.set(key, created);
      body.append(created.row);
    }
    for (const [key, { update }] of rows) {
      const item = all.get(key);
      if (item) update(item);
    }
    if (!mayMove) return;
    const focused = document.activeElement;
    [...first].forEach((key, index) => {
      const row = /** @type {HTMLElement} */ (rows.get(key)?.row);
      if (body.children[index] !== row) body.insertBefore(row, body.children[index]);
    });
    // A row that moves loses the focus.
    if (focused !== document.activeElement) /** @type {HTMLElement} */ (focused).focus({ preventScroll: true });
  };
}

/** A cell of a table. Where the table is a list of cards, it shows its title.
 * @param {string} className
 * @param {string} [title] */
const cell = (className, title = "") => element("td", { className, role: "cell", dataset: { title } });

/** Shows a text that may not fit. The whole text is in its `title`.
 * @param {HTMLElement} target
 * @param {string} text */
function fill(target, text) {
  if (target.textContent !== text) target.textContent = target.title = text;
}

const showRoomRows = table($("rooms"), keyOf, (/** @type {Room} */ which) => {
  const room = keyOf(which);
  const title = titleOf(room);
  const open = element("button", { type: "button", title }, element("bdi", {}, title));
  const count = cell("number");
  const row = element("tr", { role: "row" }, element("td", { role: "cell" }, open), count);
  on(open, "click", () => {
    selectedRoom = room;
    history.replaceState(null, "", `#${encodeURIComponent(room)}`);
    $("target").value = "room";
    showRooms();
    showSessionRows([], true);
    act("Not shown", async () => {
      await showSessions();
      return "";
    });
  });
  return {
    row,
    update({ sessions }) {
      fill(count, sessions.toLocaleString());
      if (room === selectedRoom) row.setAttribute("aria-current", "true");
      else row.removeAttribute("aria-current");
    },
  };
});

/** @param {boolean} [mayMove] */
function showRooms(mayMove) {
  const search = $("search").value;
  const found = rooms.filter((room) => titleOf(keyOf(room)).includes(search));
  found.sort((a, b) => b.sessions - a.sessions);
  showRoomRows(found, mayMove);
  const none = search ? "No room has this in its name." : "No rooms yet: a room begins with its first session.";
  const more = found.length > MAX_ROWS ? `and ${found.length - MAX_ROWS} more` : "";
  setText("more", found.length ? more : none);
}

const showSessionRows = table($("sessions"), (/** @type {Session} */ { id }) => id, ({ id, name: claimed, data, since }) => {
  const room = selectedRoom;
  const user = typeof data?.user === "string" ? data.user : claimed ?? "";
  const close = element("button", { type: "button", dataset: { key: id } }, "Close");
  close.setAttribute("aria-label", `Close ${user} ${id}`);
  const [name, details, state] = [element("bdi"), element("small"), element("small")];
  const cells = ["Address", "Since", "Received", "Sent", "Queued"].map((title, index) =>
    cell(index < 2 ? "" : "number", title));
  const [address, started, received, sent, queued] = cells;
  started.title = since;
  started.textContent = new Date(since).toLocaleTimeString();
  const who = element("td", { role: "cell" }, name, details, state);
  const row = element("tr", { role: "row" }, who, ...cells, element("td", { role: "cell" }, close));
  on(close, "click", () => {
    if (row.classList.contains("gone")) return;
    const whom = user ? `${user} (${shortId(id)})` : shortId(id);
    if (!confirm(`Close the session of ${whom} in the room ${titleOf(room)}?`)) return;
    act("Not closed", async () => {
      await request(pathOf(room, `/sessions/${id}`), { method: "DELETE" });
      await showSessions();
      return `Closed the session of ${whom}.`;
    });
  });
  return {
    row,
    update(/** @type {Session} */ session) {
      fill(name, user || id);
      fill(details, [user && id, session.away && "suspended"].filter(Boolean).join(", "));
      fill(state, json(session.state));
      fill(address, session.node ? `node ${session.node}` : session.address ?? "unknown");
      const binary = session.binary ? ` (${session.binary.toLocaleString()} binary)` : "";
      fill(received, `${session.messagesReceived?.toLocaleString() ?? ""}${binary}`);
      fill(sent, session.messagesSent?.toLocaleString() ?? "");
      fill(queued, session.waitingBytes?.toLocaleString() ?? "");
    },
  };
});

/** Shows the sessions of the selected room. */
async function showSessions() {
  const room = selectedRoom;
  showTarget(room);
  if (!room) return;
  /** @type {Session[]} */
  let sessions = [];
  try {
    sessions = (await (await request(pathOf(room))).json()).sessions;
  } catch (/** @type {any} */ error) {
    // Nobody is in the room any more.
    if (error.status !== 404) throw error;
  }
  if (room !== selectedRoom) return;
  showSessionRows(sessions);
  const more = sessions.length > MAX_ROWS ? `and ${sessions.length - MAX_ROWS} more` : "";
  setText("choose", sessions.length ? more : "Nobody is in this room.");
}

/** Shows which room is selected.
 * @param {string} room */
function showTarget(room) {
  const title = titleOf(room);
  fill($("whose"), room ? `Sessions in ${title}` : "Sessions");
  // Other people's clients have no words for a notice.
  $("this-room").disabled = !room || room !== title;
  setText("this-room", room ? `the room ${title}` : "a room: select one below");
}

on($("search"), "input", () => showRooms(true));
on($("authorize"), "submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("token", $("token").value);
  setText("token-error", "");
  showState("checking the token …", "connecting");
  refresh();
});
on($("notice"), "submit", (event) => {
  event.preventDefault();
  const toRoom = $("target").value === "room";
  const path = toRoom ? pathOf(selectedRoom, "/messages") : "messages";
  const body = JSON.stringify({ type: "notice", receiver: "all", data: $("text").value });
  act("Not sent", async () => {
    const { receivers } = await (await request(path, { method: "POST", body })).json();
    $("text").value = "";
    return `Sent to ${plural(receivers, "session")}.`;
  });
});
on($("drain"), "click", () => {
  if (!confirm("Refuse new sessions on this server? Only a restart undoes this.")) return;
  act("Not draining", async () => {
    const { sessions } = await (await request("drain", { method: "POST" })).json();
    refresh();
    return `Draining: ${plural(sessions, "session")} may stay.`;
  });
});
showTarget(selectedRoom);
refresh();
