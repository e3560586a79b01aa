// On the wire: every message in and out, and a form to write one by hand.

import { $, append, element, json, on } from "./dom.js";

/** @import { Room } from "./anteroom.js" */
/** @import { People } from "./people.js" */

/** How many messages are kept. */
const MESSAGES = 500;

/** What can be written by hand, for a start.
 * @type {Record<string, (peer: string) => object>} */
const EXAMPLES = {
  "who is here?": () => ({ type: "hello", receiver: "server" }),
  "are you alive?": () => ({ type: "ping", receiver: "server", data: "any JSON" }),
  "to everyone": () => ({ type: "chat", receiver: "all", data: "hello, everyone" }),
  "to one": (peer) => ({ type: "chat", receiver: peer, data: "only for you" }),
  "with a receipt": () => ({ type: "cursor", receiver: "all", data: { x: 3, y: 4 }, ref: "1" }),
  "a mistake": () => ({ type: "chat", to: "all", data: "the field is called receiver" }),
};

/** Starts the panel.
 * @param {Room} room
 * @param {People} people */
export function startWire(room, people) {
  room.addEventListener("wire", ({ detail: { direction, text } }) => {
    const item = line(direction, text, people);
    filter(item);
    append($("messages"), item, MESSAGES);
  });

  /** @param {HTMLElement} item */
  const filter = (item) => {
    const { direction, text = "" } = item.dataset;
    const wanted = $("direction").value;
    const contained = text.toLowerCase().includes($("filter-text").value.toLowerCase());
    item.hidden = !contained || (wanted !== "" && wanted !== direction);
  };
  on($("filter"), "input", () => {
    for (const item of $("messages").children) filter(item);
  });
  on($("filter"), "submit", (event) => event.preventDefault());
  // One stop for Tab, however many messages there are.
  on($("messages"), "keydown", (event) => {
    const step = event.key === "ArrowDown" ? 1 : event.key === "ArrowUp" ? -1 : 0;
    if (!step) return;
    event.preventDefault();
    const all = [...$("messages").querySelectorAll("li:not([hidden]) summary")];
    const at = all.indexOf(event.target);
    (at < 0 ? all.at(step < 0 ? -1 : 0) : all[at + step])?.focus();
  });
  on($("clear"), "click", () => $("messages").replaceChildren());

  $("example").append(...Object.keys(EXAMPLES).map((name) => new Option(name)));
  const write = () => {
    const peer = room.peers.keys().next().value ?? room.id ?? "";
    $("json").value = JSON.stringify(EXAMPLES[$("example").value](peer));
  };
  on($("example"), "input", write);
  write();
  const send = () => {
    try {
      room.sendRaw($("json").value);
    } catch (/** @type {any} */ error) {
      append($("messages"), element("li", { className: "error" }, `Not sent: ${error.message}.`), MESSAGES);
    }
  };
  on($("compose"), "submit", (event) => {
    event.preventDefault();
    send();
  });
  on($("json"), "keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    send();
  });
}

/** A message, in one line until it is opened.
 * @param {string} direction
 * @param {string} text
 * @param {People} people */
function line(direction, text, people) {
  const message = parse(text);
  const name = (/** @type {unknown} */ id) => (typeof id === "string" ? people.name(id) : "");
  const [from, to] = [name(message?.sender), name(message?.receiver)];
  const summary = element("summary", { tabIndex: -1 },
    element("span", { className: "arrow", role: "img", ariaLabel: direction }, direction === "in" ? "←" : "→"),
    element("b", {}, typeof message?.type === "string" ? message.type : "?"),
    element("span", { className: "route" }, direction === "in" ? `from ${from}${to && `, to ${to}`}` : `to ${to || "?"}`),
    element("time", {}, new Date().toLocaleTimeString([], { hour12: false })));
  const details = element("details", {}, summary);
  details.addEventListener("toggle", () => {
    if (details.childElementCount === 1) details.append(element("pre", {}, pretty(message, text)));
  });
  const kind = message?.sender === "server" && message.type === "ack" ? "in receipt" : direction;
  return element("li", { className: kind, dataset: { direction, text } }, details);
}

/** @param {string} text
 * @returns {any} */
function parse(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

/** JSON with a line for every field, and for every line of a session description.
 * @param {any} message
 * @param {string} text */
function pretty(message, text) {
  if (message === null) return text;
  return json(message, 2).replace(/\\r\\n(?!")/g, "\n      ");
}
