// The conversation: chat messages, people joining and leaving, and files.

import { $, append, element, json, on } from "./dom.js";
import { receiveFiles, sendFile } from "./files.js";

/** @import { People, RoomContext } from "./people.js" */

/** How many lines are kept. */
const MAX_LINES = 500;

/** @param {RoomContext} context */
export function startChat({ room, mesh, people }) {
  /** @param {HTMLElement} item */
  const show = (item) => {
    append($("chat-log"), item, MAX_LINES);
    if ($("chat-log").checkVisibility()) return;
    // A screen reader does not read a hidden list.
    $("announcement").textContent = item.textContent;
    $("views").querySelector("[data-view=chat]").dataset.unread = "true";
  };
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
    if (type !== "chat") return;
    show(chatLine(people, sender, receiver, typeof data === "string" ? data : json(data)));
  });
  room.addEventListener("error", ({ detail }) => {
    show(element("div", { className: "error" }, detail.message));
  });

  room.addEventListener("peerjoin", ({ detail: { id, newcomer } }) => {
    if (newcomer) notice(people.nameTag(id), " joined");
  });
  room.addEventListener("peerleave", ({ detail: { id } }) => {
    if (room.state !== "closed") notice(people.nameTag(id), " left");
  });

  receiveFiles(mesh, (id, item) => {
    if (!item.querySelector(".name-tag")) item.prepend(people.nameTag(id), ": ");
    show(item);
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

  /** @param {Iterable<File>} files */
  const offer = (files) => {
    const receiver = $("receiver").value;
    const peers = [...mesh.peers.values()].filter(({ id }) => receiver === "all" || id === receiver);
    for (const file of files) {
      if (peers.length === 0) notice(`Not sent: nobody is here to receive ${file.name}.`);
      for (const peer of peers) {
        const item = sendFile(mesh, peer, file);
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
  item.append(" ", element("span", { className: "message-text" }, text));
  return item;
}
