// The conversation: chat messages, people joining and leaving, and files.

import { $, append, element, json, on, stayAtEnd, time } from "./dom.js";
import { receiveFiles, sendFile } from "./files.js";

/** @import { People, RoomContext } from "./people.js" */

/** How many lines are kept. */
const MAX_LINES = 500;
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
    const item = chatLine(people, room.id ?? "", receiver, text);
    item.classList.add("pending");
    show(item);
    try {
      await room.send(receiver, "chat", text);
    } catch (/** @type {any} */ error) {
      const reason = error.code === "empty_room" ? "nobody else is here" : error.message;
      item.append(element("em", { className: "error" }, ` Not delivered: ${reason}.`));
      if (error.code === "message_too_large" && $("text").value === "") $("text").value = text;
    }
    item.classList.remove("pending");
  });

  room.addEventListener("message", ({ detail: { type, sender, receiver, data } }) => {
    const text = typeof data === "string" ? data : json(data);
    if (type === "notice" && sender === "server") return notice("Notice from the server: ", element("bdi", {}, text));
    if (type !== "chat") return;
    show(chatLine(people, sender, receiver, text));
    countUnread();
  });
  room.addEventListener("error", ({ detail }) => {
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

/** @param {People} people @param {string} sender @param {string} receiver @param {string} text */
function chatLine(people, sender, receiver, text) {
  const item = element("div", {}, people.nameTag(sender));
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
