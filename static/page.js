// The demo page: the way into a room. The other modules are the parts of the room.

import { Mesh, join } from "./anteroom.js";
import { startCall } from "./call.js";
import { $, on, recall, remember } from "./dom.js";
import { isTransferring } from "./files.js";
import { People, cleanName, showPeople } from "./people.js";
import { startChat } from "./chat.js";
import { startWire } from "./wire.js";

/** @import { Room, StateChange } from "./anteroom.js" */
/** @import { RoomContext } from "./people.js" */

/** The words of suggested names. */
const ADJECTIVES = ["Amber", "Calm", "Early", "Gentle", "Hazel", "Lucky", "Merry", "Quiet"];
const ANIMALS = ["Badger", "Crane", "Falcon", "Heron", "Lynx", "Otter", "Robin", "Swift", "Wren"];

/** A server's wait at the end of a Close reason. */
const RETRY = /[\s,;:(]*retry in \d+ ms\)?$/;

/** The states, for the header. */
const WORDS = { connecting: "Connecting …", open: "Connected", reconnecting: "Reconnecting …", closed: "Closed" };

let myName = rememberedName();
const query = new URLSearchParams(location.search);
const roomName = query.get("room");
for (const button of document.querySelectorAll(".check")) {
  on(button, "click", async () => {
    const { showCheck } = await import("./check.js");
    showCheck(query.get("token") ?? "");
  });
}
if (roomName === null) {
  showEntry("");
} else {
  try {
    enterRoom(join(roomName, { token: query.get("token") ?? "" }), roomName);
  } catch (/** @type {any} */ error) {
    showEntry(`Cannot enter: ${error.message}.`);
  }
}

/** @param {string} problem why a room could not be entered */
function showEntry(problem) {
  $("entry").hidden = false;
  $("entry-error").textContent = problem;
  $("room-name").value = roomName ?? suggestedName().toLowerCase().replace(" ", "-");
  $("your-name").value = myName;
  // The form itself loads the page of the room.
  on($("entry-form"), "submit", () => rename($("your-name").value));
}

/** @param {Room} room @param {string} name */
function enterRoom(room, name) {
  const mesh = new Mesh(room);
  const people = new People(room, mesh, myName);
  startWire(room, people);
  const context = { room, mesh, people };
  showPeople(context);
  startCall(context);
  document.title = `${name} – anteroom`;
  startChat(context);
  offerBoard(context);
  mesh.addEventListener("error", ({ detail: { id, error } }) => console.warn(id, error));

  $("title").textContent = name;
  showRoom(true);
  $("text").focus();

  showState(room);
  room.opened.then(() => import("./check.js")).catch(() => {});
  on($("rejoin"), "click", () => location.reload());
  leaveByLinks(room);

  $("name").value = myName;
  on($("name"), "change", () => {
    rename($("name").value);
    $("name").value = myName;
    people.setProfile({ name: myName });
  });
  on($("name-form"), "submit", (event) => {
    event.preventDefault();
    $("text").focus();
  });
  on($("invite"), "click", copyInviteLink);

  for (const button of $("views").children) {
    button.addEventListener("click", () => showView(button.dataset.view));
  }
}

/** The button of the whiteboard says how many others have it open.
 * @param {RoomContext} context */
function offerBoard(context) {
  const { people } = context;
  people.addEventListener("change", () => {
    const count = people.others.filter((id) => people.profile(id).board).length;
    $("draw").lastChild.textContent = count > 0 ? `Draw (${count})` : "Draw";
  });
  on($("draw"), "click", async () => {
    const { showBoard } = await import("./whiteboard.js");
    showBoard(context, $("draw").ariaPressed === "false");
  });
}

/** @param {boolean} inside whether the page shows the room, or the way into it */
function showRoom(inside) {
  for (const id of ["bar", "room", "views", "banner"]) $(id).hidden = !inside;
  document.body.classList.toggle("inside", inside);
}

/** Leaves the room as soon as a link to the start page is followed, so that the others hear it at once.
 * @param {Room} room */
function leaveByLinks(room) {
  let left = false;
  for (const link of document.querySelectorAll("header a")) {
    on(link, "click", (event) => {
      // With these keys the link opens elsewhere.
      if (event.ctrlKey || event.metaKey || event.shiftKey || event.altKey) return;
      if (isTransferring() && !confirm("A file is still on its way. Leave and cancel it?")) return event.preventDefault();
      left = true;
      room.leave();
    });
  }
  // The user has come back to the page, and the browser has kept it.
  on(window, "pageshow", ({ persisted }) => {
    if (persisted && left) location.reload();
  });
}

/** Selects what a narrow screen shows.
 * @param {string} name */
function showView(name) {
  $("room").dataset.view = name;
  for (const button of $("views").children) {
    button.ariaCurrent = String(button.dataset.view === name);
    if (button.dataset.view === name) delete button.dataset.unread;
  }
}

/** Shows the state of the connection: in a word in the header, and in a banner if something is wrong.
 * @param {Room} room */
function showState(room) {
  /** @type {StateChange} */
  let change = { state: "connecting" };
  let entered = false;
  let offline = false;
  const show = () => {
    const { state } = change;
    const text = explain(change, entered, offline);
    if (state === "closed" && !entered) {
      document.title = "anteroom";
      showRoom(false);
      return showEntry(text);
    }
    $("state").dataset.state = $("banner").dataset.state = state;
    $("state").textContent = WORDS[state];
    // A screen reader reads each change.
    if ($("banner-text").textContent !== text) $("banner-text").textContent = text;
    $("rejoin").hidden = state !== "closed";
  };
  show();
  room.addEventListener("statechange", ({ detail }) => {
    change = detail;
    if (change.state === "open") [entered, offline] = [true, false];
    show();
  });
  on(window, "online offline", ({ type }) => {
    offline = type === "offline";
    show();
  });
  // A server on this machine needs no network.
  room.addEventListener("wire", ({ detail }) => {
    if (!offline || detail.direction === "out") return;
    offline = false;
    show();
  });
}

/** What is wrong with the connection, and what to do.
 * @param {StateChange} change @param {boolean} entered whether the room has been open @param {boolean} offline */
function explain(change, entered, offline) {
  if (change.state === "closed") return explainEnd(change.code, change.reason);
  if (offline) return "You are offline. The room reconnects when the network is back.";
  if (change.state !== "reconnecting") return "";
  const { code, reason, delay } = change;
  switch (code) {
    case 1012:
      return "The server is restarting: reconnecting …";
    case 4429:
    case 4503: {
      const why = sentence(reason.replace(RETRY, "")) || "The server is busy";
      return `${why}: trying again in ${Math.ceil(delay / 1000)} s.`;
    }
    default:
      return `${entered ? "Connection lost" : "Cannot reach the server"}${reason && ` (${reason})`}: trying again …`;
  }
}

/** Why the room was closed, and what to do.
 * @param {number} code @param {string} reason */
function explainEnd(code, reason) {
  const why = reason && `: ${reason}`;
  const linkNeeded = /token/.test(reason) ? " Ask for a new link to the room." : "";
  switch (code) {
    case 1000:
      return "You left the room.";
    case 4401:
      return `The room needs a valid link${why}. Ask for a new one.`;
    case 4403:
      return `You may not enter this room${why}. Ask for a link to it, or enter another one.`;
    default:
      return `The server ended the connection${why || ` (code ${code})`}.${linkNeeded}`;
  }
}

/** @param {string} text */
function sentence(text) {
  return text.charAt(0).toUpperCase() + text.slice(1);
}

async function copyInviteLink() {
  const label = $("invite").querySelector("span");
  // Without the token, which is personal.
  const link = new URL(`?room=${encodeURIComponent(roomName ?? "")}`, location.href).href;
  try {
    await navigator.clipboard.writeText(link);
    label.textContent = "Copied";
  } catch {
    // Browsers allow the clipboard only over HTTPS or on localhost.
    prompt("The invite link:", link);
  }
  setTimeout(() => (label.textContent = "Copy invite link"), 3000);
}

/** The name chosen in this tab, or last in another, or a suggested one. */
function rememberedName() {
  const name = cleanName(recall("name", "session")) || cleanName(recall("name")) || suggestedName();
  remember("name", name, "session");
  return name;
}

/** @param {string} chosen */
function rename(chosen) {
  const name = cleanName(chosen);
  if (name === "" || name === myName) return;
  myName = name;
  remember("name", myName);
  remember("name", myName, "session");
}

function suggestedName() {
  const pick = (/** @type {string[]} */ words) => words[Math.floor(Math.random() * words.length)];
  return `${pick(ADJECTIVES)} ${pick(ANIMALS)}`;
}
