// The conversation: chat messages, people joining and leaving, files, and what was said before, if the room keeps it.

import { $, append, element, json, on, stayAtEnd, time } from "./dom.js";
import { receiveFiles, sendFile } from "./files.js";
import { cleanName } from "./people.js";

/** @import { HistoryMessage, Message } from "./anteroom.js" */
/** @import { RoomContext } from "./people.js" */

/** How many lines are kept. */
const MAX_LINES = 500;
/** How many earlier messages are asked for at once. */
const PAGE_MESSAGES = 50;
/** How many links a message can have. */
const MAX_LINKS = 50;
/** A link to a web site, possibly with punctuation that follows it. Invisible characters are no part of it:
 * they could make it look like another one. */
const LINK = /\bhttps?:\/\/[^\s<>"\p{C}]+/giu;
/** What is no part of a link at its end; so is a closing parenthesis that the link does not open. */
const PUNCTUATION = ".,:;!?'*_~]}’”»…";

/** @param {RoomContext} context */
export function startChat(context) {
  const { room, mesh, people } = context;
  /** @param {HTMLElement} item */
  const show = (item) => {
    if (!item.querySelector("time")) item.prepend(time({ timeStyle: "short" }), " ");
    append($("chat-log"), [item], MAX_LINES);
    if ($("chat-log").checkVisibility()) return;
    // A screen reader does not read a hidden list.
    $("announcement").textContent = item.textContent;
    $("views").querySelector("[data-view=chat]").dataset.unread = "true";
  };
  stayAtEnd($("chat-log"));
  const countUnread = showUnread();
  /** @param {...(Node | string)} content */
  const notice = (...content) => show(element("div", { className: "notice" }, ...content));

  on($("chat-form"), "submit", async (event) => {
    event.preventDefault();
    const text = $("text").value;
    if (text === "") return;
    $("text").value = "";
    const receiver = $("receiver").value;
    const item = chatLine(people.nameTag(room.id ?? ""), context, receiver, text);
    item.classList.add("pending");
    show(item);
    // Whoever joins later sees no profile of a session that has left.
    const isKept = receiver === "all" && room.historyMessages !== null;
    const data = isKept ? { text, name: people.name(room.id ?? "") } : text;
    let outcome = "";
    try {
      await room.send(receiver, "chat", data);
    } catch (/** @type {any} */ error) {
      outcome = error.code;
      const reason = outcome === "empty_room" ? "nobody else is here" : error.message;
      const isDelivered = outcome === "history_failed";
      const problem = isDelivered ? "People who join later do not see this" : `Not delivered: ${reason}`;
      item.append(element("em", { className: "error" }, ` ${problem}.`));
      if (outcome === "message_too_large" && $("text").value === "") $("text").value = text;
    }
    item.classList.remove("pending");
    if (outcome === "connection_lost") item.classList.add("lost");
    if (receiver === "all" && ["", "connection_lost"].includes(outcome)) item.dataset.said = room.id ?? "";
  });

  room.addEventListener("message", ({ detail }) => {
    const item = messageLine(context, detail);
    if (!item) return;
    show(item);
    if (detail.type === "chat") countUnread();
  });
  showHistory(context, show);
  room.addEventListener("error", ({ detail }) => {
    // Of the whiteboard: whoever has gone misses nothing.
    if (["unknown_receiver", "empty_room"].includes(detail.code)) return;
    show(element("div", { className: "error" }, detail.message));
  });

  // When a server returns without its sessions, everyone is said to have left: the roster tells who is back.
  let entered = false;
  room.opened.then(() => (entered = true), () => {});
  room.addEventListener("peerjoin", ({ detail: { id, newcomer } }) => {
    if (newcomer || entered) notice(people.nameTag(id), " joined");
  });
  room.addEventListener("peerleave", ({ detail: { id } }) => {
    if (room.state !== "closed") notice(people.nameTag(id), " left");
  });

  receiveFiles(context, (id, item) => {
    if (!item.querySelector(".name-tag")) item.prepend(people.nameTag(id), ": ");
    show(item);
    countUnread();
  });
  on($("attach"), "click", () => $("file").click());
  on($("file"), "change", () => {
    offer($("file").files);
    $("file").value = "";
  });
  // Accept files anywhere: the browser would leave the page to show a dropped file.
  for (const type of /** @type {const} */ (["dragover", "drop"])) {
    document.addEventListener(type, (event) => {
      if (!event.dataTransfer?.types.includes("Files")) return;
      event.preventDefault();
      if (type === "drop") offer(event.dataTransfer.files);
    });
  }

  on(document, "paste", (event) => {
    const { files, types } = event.clipboardData;
    // Text copied from a document or a table comes with a picture of it: the text is meant.
    if (files.length === 0 || (types.includes("text/plain") && types.includes("text/html"))) return;
    event.preventDefault();
    offer(files);
  });

  /** @param {Iterable<File>} files */
  const offer = (files) => {
    const receiver = $("receiver").value;
    const peers = [...mesh.peers.values()].filter(({ id }) => receiver === "all" || id === receiver);
    for (const file of files) {
      if (peers.length === 0) notice(`Not sent: nobody is here to receive ${file.name}.`);
      for (const peer of peers) {
        const item = sendFile(context, peer, file, peer === peers[0]);
        item.prepend("to ", people.nameTag(peer.id), ": ");
        show(item);
      }
    }
  };
}

/** Shows what was said before the session joined, if the room keeps it, and a line where it ends.
 * @param {RoomContext} context @param {(item: HTMLElement) => void} show */
function showHistory(context, show) {
  const { room } = context;
  const log = $("chat-log");
  const button = element("button", { type: "button", ariaLive: "off" }, "Show earlier messages");
  /** @type {HTMLElement | null} */
  let end = null;

  // A new session has a history of its own: it goes on to where that session joined.
  room.addEventListener("statechange", ({ detail }) => {
    if (detail.state !== "open" || detail.resumed || room.historyMessages === null) return;
    button.remove();
    end?.remove();
    const old = [...log.querySelectorAll("[data-said]")];
    const text = "You joined. People who join later see what is said to everyone.";
    end = element("div", { className: "notice end" }, time({ timeStyle: "short" }), " ", text);
    // What is pending is sent in the new session.
    append(log, [end, ...log.querySelectorAll(".pending")], MAX_LINES);
    showPage(end, old);
  });

  /** Shows a page above the line `below`. What the last session has shown stays until the history reaches it: a server
   * that has lost its history must not empty the conversation.
   * @param {Element} below @param {HTMLElement[]} old messages to all @param {number} [before] */
  const showPage = async (below, old, before) => {
    const session = end;
    const offer = (/** @type {number | undefined} */ number) => {
      button.onclick = () => {
        log.focus({ preventScroll: true });
        button.remove();
        showPage(below, old, number);
      };
      below.before(button);
    };
    let page;
    try {
      page = await room.history({ last: Math.max(PAGE_MESSAGES, before ? 0 : old.length), before });
    } catch (/** @type {any} */ error) {
      // If the session is lost, the next one asks again.
      if (session !== end || room.state !== "open") return;
      show(element("div", { className: "error" }, `Earlier messages are not shown: ${error.message}.`));
      return offer(before);
    }
    if (session !== end) return;
    const { messages, more } = page;
    const isReached = messages.some(({ sender }) => old.some(({ dataset }) => dataset.said === sender));
    for (const line of old) {
      const { said } = line.dataset;
      const text = line.querySelector(".message-text")?.textContent;
      // Only the history knows whether a message has arrived whose receipt was lost.
      const isArrived = () => messages.some(({ sender, data }) => sender === said && messageText(data) === text);
      if (line.matches(".lost") ? isArrived() : isReached) line.remove();
    }
    const fromEnd = log.scrollHeight - log.scrollTop;
    const lines = messages.flatMap((message) => messageLine(context, message) ?? []);
    for (const line of lines.toReversed()) {
      // Private messages, notices and files stay at their time.
      while (sentAt(below.previousElementSibling) > sentAt(line)) below = below.previousElementSibling ?? below;
      below.before(line);
      below = line;
    }
    if (more) offer(messages[0].number);
    log.scrollTop = log.scrollHeight - fromEnd;
    if (lines.length > 0) $("announcement").textContent = `Earlier messages: ${lines.length}`;
  };
}

/** When the message of a line was sent, in ms. `NaN` if it has no time.
 * @param {Element | null} line */
const sentAt = (line) => Date.parse(line?.querySelector("time")?.dateTime ?? "");

/** The line of a message, as it arrives or from the history. `null` if the conversation does not show it.
 * @param {RoomContext} context @param {Message & Partial<HistoryMessage>} message */
function messageLine(context, { type, sender, receiver, data, time: date, from }) {
  const { room, people } = context;
  let item;
  if (type === "notice" && sender === "server") {
    item = element("div", { className: "notice" }, "Notice from the server: ", element("bdi", {}, messageText(data)));
  } else if (type === "chat") {
    const name = date && (cleanName(/** @type {any} */ (from)?.user) || cleanName(/** @type {any} */ (data)?.name));
    const tag = people.nameTag(sender, name || undefined);
    tag.classList.toggle("gone", sender !== room.id && !room.peers.has(sender));
    item = chatLine(tag, context, receiver, messageText(data));
  } else {
    return null;
  }
  if (receiver === "all") item.dataset.said = sender;
  if (!date) return item;
  const isToday = date.toDateString() === new Date().toDateString();
  item.prepend(time({ timeStyle: "short", dateStyle: isToday ? undefined : "short" }, date), " ");
  // A screen reader does not read what was said before.
  item.ariaLive = "off";
  return item;
}

/** @param {any} data a text, or a text and the name of its sender */
function messageText(data) {
  const text = data?.text ?? data;
  return typeof text === "string" ? text : json(data);
}

/** @param {HTMLElement} tag the sender's @param {RoomContext} context @param {string} receiver @param {string} text */
function chatLine(tag, { people }, receiver, text) {
  const item = element("div", {}, tag);
  if (receiver !== "all") item.append(element("small", {}, " only to ", people.nameTag(receiver)));
  item.append(" ", element("span", { className: "message-text" }, ...linked(text)));
  return item;
}

/** Shows how many messages are unread in the title of the page.
 * @returns {() => void} counts a message, unless the user sees the conversation */
function showUnread() {
  const { title } = document;
  let unread = 0;
  const update = (/** @type {number} */ added) => {
    const seen = document.visibilityState === "visible" && $("chat-log").checkVisibility();
    unread = seen ? 0 : unread + added;
    document.title = unread > 0 ? `(${unread}) ${title}` : title;
  };
  on(document, "visibilitychange", () => update(0));
  on($("views"), "click", () => update(0));
  on(window, "resize", () => update(0));
  return () => update(1);
}

/** A text with its web addresses as links.
 * @param {string} text
 * @returns {(Node | string)[]} */
function linked(text) {
  const parts = [];
  let end = 0;
  for (const { 0: match, index } of text.matchAll(LINK)) {
    const href = match.slice(0, linkLength(match));
    if (!isWebAddress(href)) continue;
    const link = element("a", { href, target: "_blank", rel: "noopener noreferrer nofollow" }, href);
    parts.push(text.slice(end, index), link);
    end = index + href.length;
    if (parts.length >= 2 * MAX_LINKS) break;
  }
  return [...parts, text.slice(end)];
}

/** The length of a link without the punctuation after it.
 * @param {string} link */
function linkLength(link) {
  let surplus = link.split(")").length - link.split("(").length;
  let length = link.length;
  for (; length > 0; length -= 1) {
    const last = link[length - 1];
    if (last === ")" ? surplus-- <= 0 : !PUNCTUATION.includes(last)) break;
  }
  return length;
}

/** Whether a link is one, without a user name, which can look like another site.
 * @param {string} link */
function isWebAddress(link) {
  try {
    const { username, password } = new URL(link);
    return username === "" && password === "";
  } catch {
    return false;
  }
}
