// The log of all messages, and a form to send one as JSON. The page loads it when it is shown.

import { $, MAX_MESSAGES, append, element, json, on, stayAtEnd, time } from "./dom.js";

/** @import { Room } from "./anteroom.js" */
/** @import { People } from "./people.js" */
/** @import { LoggedMessage } from "./wire.js" */

/** Messages to start from.
 * @type {Record<string, (peer: string) => object>} */
const EXAMPLES = {
  "who is here?": () => ({ type: "hello", receiver: "server" }),
  "ping the server": () => ({ type: "ping", receiver: "server", data: "any JSON" }),
  "what was said before?": () => ({ type: "history", receiver: "server", data: { last: 10 } }),
  "to everyone": () => ({ type: "chat", receiver: "all", data: "hello, everyone" }),
  "to one peer": (peer) => ({ type: "chat", receiver: peer, data: "only for you" }),
  "with a receipt": () => ({ type: "cursor", receiver: "all", data: { x: 3, y: 4 }, ref: "1" }),
  "with a mistake": () => ({ type: "chat", to: "all", data: "the field is called receiver" }),
};

/** @param {Room} room @param {People} people
 * @returns {(messages: LoggedMessage[]) => void} shows messages */
export function startLog(room, people) {
  stayAtEnd($("messages"));

  /** @param {HTMLElement} item */
  const filter = (item) => {
    const { direction, text = "" } = item.dataset;
    const wanted = $("direction").value;
    const matches = text.toLowerCase().includes($("filter-text").value.toLowerCase());
    item.hidden = !matches || (wanted !== "" && wanted !== direction);
  };
  on($("filter"), "input", () => {
    for (const item of $("messages").children) filter(item);
  });
  // Arrow keys move between messages: the list is one Tab stop.
  on($("messages"), "keydown", (event) => {
    const step = event.key === "ArrowDown" ? 1 : event.key === "ArrowUp" ? -1 : 0;
    if (!step) return;
    event.preventDefault();
    const all = [...$("messages").querySelectorAll("li:not([hidden]) summary")];
    const index = all.indexOf(event.target);
    (index < 0 ? all.at(step < 0 ? -1 : 0) : all[index + step])?.focus();
  });
  on($("clear"), "click", () => $("messages").replaceChildren());

  $("example").append(...Object.keys(EXAMPLES).map((name) => new Option(name)));
  const showExample = () => {
    const peer = room.peers.keys().next().value ?? room.id ?? "";
    $("json").value = JSON.stringify(EXAMPLES[$("example").value](peer));
  };
  on($("example"), "input", showExample);
  showExample();
  const send = () => {
    try {
      room.sendRaw($("json").value);
    } catch (/** @type {any} */ error) {
      append($("messages"), [element("li", { className: "error" }, `Not sent: ${error.message}.`)], MAX_MESSAGES);
    }
  };
  on($("compose"), "submit", send);
  on($("json"), "keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    send();
  });

  return (messages) => {
    const items = messages.map((message) => logEntry(message, people));
    items.forEach(filter);
    append($("messages"), items, MAX_MESSAGES);
  };
}

/** @param {LoggedMessage} message @param {People} people */
function logEntry({ direction, text, date }, people) {
  const message = parse(text);
  const name = (/** @type {unknown} */ id) => (typeof id === "string" ? people.name(id) : "");
  const [from, to] = [name(message?.sender), name(message?.receiver)];
  const summary = element("summary", { tabIndex: -1 },
    element("span", { className: "arrow", role: "img", ariaLabel: direction }, direction === "in" ? "←" : "→"),
    element("b", {}, typeof message?.type === "string" ? message.type : "?"),
    element("span", { className: "route" }, direction === "in" ? `from ${from}${to && `, to ${to}`}` : `to ${to || "?"}`),
    time({ hour12: false, timeStyle: "medium" }, date));
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

/** JSON with one line per field, and per line of a session description.
 * @param {any} message @param {string} text */
function pretty(message, text) {
  if (message === null) return text;
  return json(message, 2).replace(/\\r\\n(?!")/g, "\n      ");
}
