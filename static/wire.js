// "On the wire": notes all messages, and loads the log that shows them. A wide page shows it if the user wants.

import { $, MAX_MESSAGES, MAX_TEXT, json, on, recall, remember } from "./dom.js";

/** @import { Room, WireMessage } from "./anteroom.js" */
/** @import { People } from "./people.js" */

/** A message and when it was sent or received.
 * @typedef {WireMessage & { date: Date }} LoggedMessage */

/** How long binary messages are counted, in ms: each of them would be too much to read. */
const COUNT_MS = 1000;

/** @param {Room} room @param {People} people */
export function startWire(room, people) {
  const fold = (/** @type {string} */ state) => {
    $("room").dataset.wire = state;
    $("fold").textContent = state === "open" ? "Hide" : "Show";
  };
  fold(recall("wire") ?? "folded");
  on($("fold"), "click", () => {
    fold($("room").dataset.wire === "open" ? "folded" : "open");
    remember("wire", $("room").dataset.wire);
  });

  // Also before the log is loaded.
  for (const form of ["filter", "compose"]) on($(form), "submit", (event) => event.preventDefault());

  // A hidden log has no elements: only what it shows when it appears.
  /** @type {LoggedMessage[]} */
  let hidden = [];
  let size = 0;
  /** @type {((messages: LoggedMessage[]) => void) | null} While the log is visible. */
  let show = null;
  /** @param {WireMessage} detail */
  const note = (detail) => {
    const message = { ...detail, date: new Date() };
    if (show) return show([message]);
    hidden.push(message);
    size += message.text.length;
    // The newest one stays, whatever its size.
    while (hidden.length > MAX_MESSAGES || (hidden.length > 1 && size > MAX_TEXT)) size -= hidden.shift()?.text.length ?? 0;
  };
  /** @type {Map<string, number[]>} How many binary messages and bytes there were. */
  const counts = new Map();
  room.addEventListener("wire", ({ detail }) => {
    const { direction, id, bytes } = detail;
    if (!bytes) return note(detail);
    if (counts.size === 0) {
      setTimeout(() => {
        for (const [key, [messages, bytes]] of counts) {
          const [direction, field, id] = key.split(" ");
          const text = json({ type: "binary", [field]: id, data: { messages, bytes } });
          note({ direction: direction === "in" ? "in" : "out", text });
        }
        counts.clear();
      }, COUNT_MS);
    }
    const key = `${direction} ${direction === "in" ? "sender" : "receiver"} ${id}`;
    const [messages, sum] = counts.get(key) ?? [0, 0];
    counts.set(key, [messages + 1, sum + bytes.length]);
  });
  /** @type {Promise<(messages: LoggedMessage[]) => void> | undefined} */
  let log;
  new ResizeObserver(async () => {
    show = null;
    if (!$("messages").checkVisibility()) return;
    log ??= import("./log.js").then(({ startLog }) => startLog(room, people));
    const loaded = await log.catch(() => null);
    // It may have been hidden meanwhile, or could not be loaded.
    if (!loaded) log = undefined;
    if (!loaded || !$("messages").checkVisibility()) return;
    show = loaded;
    show(hidden);
    hidden = [];
    size = 0;
  }).observe($("messages"));
}
