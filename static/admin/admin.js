// The page of the admin listener: rooms, sessions and rates, as they are now.

// At the root of a server, there is nothing above.
import { $, element, on } from "../dom.js";

/** How often it looks, in ms. */
const PERIOD = 2000;

/** How many rows a table has at most. */
const ROWS = 500;

/** What is shown of the metrics: a title, the series, and how its value is written.
 * @type {[string, string, (value: number, rate: number) => string][]} */
const TOTALS = [
  ["Sessions", "anteroom_sessions", (value) => value.toLocaleString()],
  ["Away", "anteroom_sessions_away", (value) => value.toLocaleString()],
  ["Rooms", "anteroom_rooms", (value) => value.toLocaleString()],
  ["Messages in", "anteroom_messages_received_total", (_, rate) => `${written(rate)}/s`],
  ["Deliveries", "anteroom_deliveries_total", (_, rate) => `${written(rate)}/s`],
  ["Bytes in", "anteroom_received_bytes_total", (_, rate) => `${written(rate)}B/s`],
  ["Bytes out", "anteroom_sent_bytes_total", (_, rate) => `${written(rate)}B/s`],
  ["Waiting", "anteroom_outbox_bytes", (value) => `${written(value)}B`],
];

/** A number with a unit prefix.
 * @param {number} value */
const written = (value) =>
  value.toLocaleString("en", { notation: "compact", maximumSignificantDigits: 3 }).replace(/^([\d.]+)([KMBT]?)$/, "$1 $2");

/** The room whose sessions are shown; it stands in the address, too. */
let chosen = decodeURIComponent(location.hash.slice(1));
/** @type {{ time: number, values: Map<string, number> } | undefined} */
let before;

/** Asks the server, as an operator.
 * @param {string} path
 * @param {string} [method] */
async function ask(path, method = "GET") {
  const secret = sessionStorage.getItem("secret");
  /** @type {Record<string, string>} */
  const headers = secret ? { authorization: `Bearer ${secret}` } : {};
  const response = await fetch(path, { method, headers });
  if (response.status === 401) throw new Unauthorized();
  return response;
}

class Unauthorized extends Error {}

async function look() {
  try {
    const [metrics, rooms, ready] = await Promise.all([
      ask("metrics").then((response) => response.text()),
      ask("rooms").then((response) => response.json()),
      fetch("ready"),
    ]);
    showTotals(metrics);
    showRooms(rooms.rooms);
    await showSessions();
    show(ready.ok ? "ready" : "draining: no more sessions begin here", ready.ok ? "open" : "connecting");
    $("drain").hidden = !ready.ok;
    $("authorize").hidden = true;
    $("figures").hidden = false;
  } catch (error) {
    const locked = error instanceof Unauthorized;
    show(locked ? "the secret is needed" : "no answer", "closed");
    $("authorize").hidden = !locked;
    if (locked) $("figures").hidden = true;
  }
  setTimeout(look, PERIOD);
}

/** @param {string} text
 * @param {string} state */
function show(text, state) {
  if ($("state").textContent !== text) $("state").textContent = text;
  $("state").dataset.state = state;
}

/** @param {string} metrics in the text format */
function showTotals(metrics) {
  const time = performance.now();
  const values = new Map(metrics.split("\n").map((line) => {
    const [series, value] = line.split(" ");
    return [series, Number(value)];
  }));
  const seconds = before ? (time - before.time) / 1000 : Infinity;
  const totals = TOTALS.map(([title, series, write]) => {
    const value = values.get(series) ?? 0;
    const rate = (value - (before?.values.get(series) ?? value)) / seconds;
    return element("div", {}, element("dt", {}, title), element("dd", {}, write(value, rate)));
  });
  $("totals").replaceChildren(...totals);
  before = { time, values };
}

/** @param {{ room: string, sessions: number }[]} all */
function showRooms(all) {
  const search = $("search").value;
  const found = all.filter(({ room }) => room.includes(search));
  found.sort((a, b) => b.sessions - a.sessions);
  const rows = found.slice(0, ROWS).map(({ room, sessions }) => {
    const open = element("button", { type: "button", dataset: { key: room } }, room);
    on(open, "click", () => {
      chosen = room;
      history.replaceState(null, "", `#${encodeURIComponent(room)}`);
      for (const row of $("rooms").children) row.toggleAttribute("aria-current", false);
      open.closest("tr")?.setAttribute("aria-current", "true");
      showSessions();
    });
    const row = element("tr", {}, element("td", {}, open), number(sessions));
    if (room === chosen) row.setAttribute("aria-current", "true");
    return row;
  });
  replace($("rooms"), rows);
  $("more").textContent = found.length > ROWS ? `and ${found.length - ROWS} more` : "";
}

async function showSessions() {
  const room = chosen;
  if (!room) return;
  const path = `rooms/${encodeURIComponent(room)}`;
  const response = await ask(path);
  if (room !== chosen) return;
  /** @type {{ sessions: any[] }} */
  const { sessions } = response.ok ? await response.json() : { sessions: [] };
  const rows = sessions.slice(0, ROWS).map((session) => {
    const { id, data, node, address, since, messagesReceived, messagesSent, waitingBytes, away } = session;
    const close = element("button", { type: "button", dataset: { key: id } }, "Close");
    close.setAttribute("aria-label", `Close ${id}`);
    on(close, "click", () => ask(`${path}/sessions/${id}`, "DELETE").then(showSessions));
    const about = [data?.user, away ? "away" : null].filter(Boolean).join(", ");
    return element("tr", {},
      element("td", {}, id, element("small", {}, about)),
      element("td", {}, node ? `node ${node}` : address ?? "unknown"),
      element("td", { title: since }, new Date(since).toLocaleTimeString()),
      number(messagesReceived), number(messagesSent), number(waitingBytes),
      element("td", {}, close));
  });
  replace($("sessions"), rows);
  $("whose").textContent = `Sessions in ${room}`;
  $("choose").textContent = sessions.length > ROWS ? `and ${sessions.length - ROWS} more` : "";
}

/** @param {number} value */
const number = (value) => element("td", { className: "number" }, value?.toLocaleString() ?? "");

/** Replaces the rows of a table; the button that has the focus keeps it.
 * @param {HTMLElement} body
 * @param {HTMLElement[]} rows */
function replace(body, rows) {
  const focused = body.contains(document.activeElement)
    ? /** @type {HTMLElement} */ (document.activeElement).dataset.key
    : undefined;
  body.replaceChildren(...rows);
  /** @type {HTMLElement | undefined} */
  const again = [...body.querySelectorAll("button")].find((button) => button.dataset.key === focused);
  if (focused) again?.focus({ preventScroll: true });
}

on($("authorize"), "submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("secret", $("secret").value);
  show("one moment", "connecting");
});
on($("drain"), "click", () => {
  if (confirm("Let no more sessions begin here? That cannot be undone but by a restart.")) {
    ask("drain", "POST");
  }
});
look();
