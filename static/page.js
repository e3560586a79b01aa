// The demo page: the way into a room. The other modules are the parts of the room.

import { Mesh, join } from "./anteroom.js";
import { startCall } from "./call.js";
import { $, on } from "./dom.js";
import { People, showPeople } from "./people.js";
import { startChat } from "./chat.js";
import { startWire } from "./wire.js";

/** @import { Room, StateChange } from "./anteroom.js" */

/** The words of suggested names. */
const ADJECTIVES = ["Amber", "Calm", "Early", "Gentle", "Hazel", "Lucky", "Merry", "Quiet"];
const ANIMALS = ["Badger", "Crane", "Falcon", "Heron", "Lynx", "Otter", "Robin", "Swift", "Wren"];

let myName = rememberedName();
const query = new URLSearchParams(location.search);
const roomName = query.get("room");
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
  const people = new People(room, myName);
  startWire(room, people);
  const context = { room, mesh, people };
  showPeople(context);
  startCall(context);
  startChat(context);
  mesh.addEventListener("error", ({ detail: { id, error } }) => console.warn(id, error));

  document.title = `${name} – anteroom`;
  $("title").textContent = name;
  for (const id of ["bar", "room", "views"]) $(id).hidden = false;
  document.body.classList.add("inside");
  $("text").focus();

  showState(room);
  on($("rejoin"), "click", () => location.reload());

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

/** Selects what a narrow screen shows.
 * @param {string} name */
function showView(name) {
  $("room").dataset.view = name;
  for (const button of $("views").children) {
    button.ariaCurrent = String(button.dataset.view === name);
    if (button.dataset.view === name) delete button.dataset.unread;
  }
  // A hidden list does not scroll to new items.
  for (const id of ["chat-log", "messages"]) $(id).scrollTop = $(id).scrollHeight;
}

/** @param {Room} room */
function showState(room) {
  const show = (/** @type {StateChange} */ change) => {
    $("state").dataset.state = change.state;
    $("state").textContent = describe(change);
    $("rejoin").hidden = change.state !== "closed";
  };
  show({ state: "connecting" });
  room.addEventListener("statechange", ({ detail }) => show(detail));
}

/** @param {StateChange} change */
function describe(change) {
  switch (change.state) {
    case "connecting":
      return "Connecting …";
    case "open":
      return "Connected";
    case "reconnecting":
      return `${change.code === 1012 ? "The server is restarting" : "Connection lost"}, reconnecting …`;
    case "closed":
      return change.reason ? `Closed: ${change.reason}` : "Closed";
  }
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
  let name;
  try {
    name = sessionStorage.getItem("name") ?? localStorage.getItem("name");
    name ??= suggestedName();
    sessionStorage.setItem("name", name);
  } catch {
    // Storage can be forbidden: then the name lasts as long as the page.
  }
  return name ?? suggestedName();
}

/** @param {string} chosen */
function rename(chosen) {
  if (chosen.trim() === "" || chosen.trim() === myName) return;
  myName = chosen.trim();
  try {
    localStorage.setItem("name", myName);
    sessionStorage.setItem("name", myName);
  } catch {
    // As above.
  }
}

function suggestedName() {
  const pick = (/** @type {string[]} */ words) => words[Math.floor(Math.random() * words.length)];
  return `${pick(ADJECTIVES)} ${pick(ANIMALS)}`;
}
