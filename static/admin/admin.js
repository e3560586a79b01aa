// The operators' page of the admin listener: rooms, sessions and current rates.

// The admin listener serves `admin.js` and `dom.js` both at its root: there, a browser resolves `../` to the root.
import { $, element, on } from "../dom.js";

/** How long the page waits between two requests for the figures, in ms. */
const REFRESH_MS = 2000;

/** The maximum number of rows of a table. */
const MAX_ROWS = 500;

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

/** A number with three significant digits and a unit prefix.
 * @param {number} value */
const compact = (value) =>
  value.toLocaleString("en", { notation: "compact", maximumSignificantDigits: 3 }).replace(/^([\d.]+)([KMBT]?)$/, "$1 $2");

/** The room whose sessions are shown. The fragment of the page's URL holds it as well, so that a link or a reload
 * leads to the same room. */
let selectedRoom = decodeURIComponent(location.hash.slice(1));
/** @type {{ time: number, values: Map<string, number> } | undefined} The previous metrics, to compute rates. */
let previous;

/** Sends a request with the operator's token.
 * @param {string} path
 * @param {string} [method] */
async function request(path, method = "GET") {
  const token = sessionStorage.getItem("token");
  /** @type {Record<string, string>} */
  const headers = token ? { authorization: `Bearer ${token}` } : {};
  const response = await fetch(path, { method, headers });
  if (response.status === 401) throw new Unauthorized();
  return response;
}

/** The server has answered 401: it needs a token. */
class Unauthorized extends Error {}

/** Updates everything on the page, now and then again after `REFRESH_MS`. */
async function refresh() {
  try {
    const [metrics, rooms, ready] = await Promise.all([
      request("metrics").then((response) => response.text()),
      request("rooms").then((response) => response.json()),
      fetch("ready"),
    ]);
    showTotals(metrics);
    showRooms(rooms.rooms);
    await showSessions();
    showState(ready.ok ? "ready" : "draining: new sessions are refused", ready.ok ? "open" : "connecting");
    $("drain").hidden = !ready.ok;
    $("authorize").hidden = true;
    $("figures").hidden = false;
  } catch (error) {
    const locked = error instanceof Unauthorized;
    showState(locked ? "enter the token" : "the server does not answer", "closed");
    $("authorize").hidden = !locked;
    if (locked) $("figures").hidden = true;
  }
  setTimeout(refresh, REFRESH_MS);
}

/** Shows the state of the server. An unchanged text stays untouched: a screen reader would read it again.
 * @param {string} text
 * @param {string} state the room state whose colour the text gets */
function showState(text, state) {
  if ($("state").textContent !== text) $("state").textContent = text;
  $("state").dataset.state = state;
}

/** @param {string} metrics in the text format of Prometheus */
function showTotals(metrics) {
  const time = performance.now();
  const values = new Map(metrics.split("\n").map((line) => {
    const [series, value] = line.split(" ");
    return [series, Number(value)];
  }));
  const seconds = previous ? (time - previous.time) / 1000 : Infinity;
  const totals = TOTALS.map(([title, series, format]) => {
    const value = values.get(series) ?? 0;
    const rate = (value - (previous?.values.get(series) ?? value)) / seconds;
    return element("div", {}, element("dt", {}, title), element("dd", {}, format(value, rate)));
  });
  $("totals").replaceChildren(...totals);
  previous = { time, values };
}

/** @param {{ room: string, sessions: number }[]} rooms */
function showRooms(rooms) {
  const search = $("search").value;
  const found = rooms.filter(({ room }) => room.includes(search));
  found.sort((a, b) => b.sessions - a.sessions);
  const rows = found.slice(0, MAX_ROWS).map(({ room, sessions }) => {
    const open = element("button", { type: "button", dataset: { key: room } }, room);
    on(open, "click", () => {
      selectedRoom = room;
      history.replaceState(null, "", `#${encodeURIComponent(room)}`);
      for (const row of $("rooms").children) row.toggleAttribute("aria-current", false);
      open.closest("tr")?.setAttribute("aria-current", "true");
      showSessions();
    });
    const row = element("tr", {}, element("td", {}, open), numberCell(sessions));
    if (room === selectedRoom) row.setAttribute("aria-current", "true");
    return row;
  });
  replace($("rooms"), rows);
  $("more").textContent = found.length > MAX_ROWS ? `and ${found.length - MAX_ROWS} more` : "";
}

async function showSessions() {
  const room = selectedRoom;
  if (!room) return;
  const path = `rooms/${encodeURIComponent(room)}`;
  const response = await request(path);
  if (room !== selectedRoom) return;
  /** @type {{ sessions: any[] }} */
  const { sessions } = response.ok ? await response.json() : { sessions: [] };
  const rows = sessions.slice(0, MAX_ROWS).map((session) => {
    const { id, data, node, address, since, messagesReceived, messagesSent, waitingBytes, away } = session;
    const close = element("button", { type: "button", dataset: { key: id } }, "Close");
    close.setAttribute("aria-label", `Close ${id}`);
    on(close, "click", () => request(`${path}/sessions/${id}`, "DELETE").then(showSessions));
    const details = [data?.user, away ? "suspended" : null].filter(Boolean).join(", ");
    return element("tr", {},
      element("td", {}, id, element("small", {}, details)),
      element("td", {}, node ? `node ${node}` : address ?? "unknown"),
      element("td", { title: since }, new Date(since).toLocaleTimeString()),
      numberCell(messagesReceived), numberCell(messagesSent), numberCell(waitingBytes),
      element("td", {}, close));
  });
  replace($("sessions"), rows);
  $("whose").textContent = `Sessions in ${room}`;
  $("choose").textContent = sessions.length > MAX_ROWS ? `and ${sessions.length - MAX_ROWS} more` : "";
}

/** A table cell with a number.
 * @param {number} value */
const numberCell = (value) => element("td", { className: "number" }, value?.toLocaleString() ?? "");

/** Replaces the rows of a table. The button that has the focus keeps it.
 * @param {HTMLElement} body
 * @param {HTMLElement[]} rows */
function replace(body, rows) {
  const focused = body.contains(document.activeElement)
    ? /** @type {HTMLElement} */ (document.activeElement).dataset.key
    : undefined;
  body.replaceChildren(...rows);
  /** @type {HTMLElement | undefined} */
  const sameButton = [...body.querySelectorAll("button")].find((button) => button.dataset.key === focused);
  if (focused) sameButton?.focus({ preventScroll: true });
}

on($("authorize"), "submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("token", $("token").value);
  showState("checking the token …", "connecting");
});
on($("drain"), "click", () => {
  if (confirm("Refuse new sessions on this server? Only a restart undoes this.")) {
    request("drain", "POST");
  }
});
refresh();
