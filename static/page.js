// The demo page: the way into a room, and out of it. What happens inside is in the modules beside.

import { Mesh, join } from "./anteroom.js";
import { startCall } from "./call.js";
import { $, on } from "./dom.js";
import { People, showPeople } from "./people.js";
import { startChat } from "./chat.js";
import { startWire } from "./wire.js";

/** @import { Room, StateChange } from "./anteroom.js" */

/** What somebody is called, or a room, before they choose. */
const KINDS = ["Amber", "Calm", "Early", "Gentle", "Hazel", "Lucky", "Merry", "Quiet"];
const ANIMALS = ["Badger", "Crane", "Falcon", "Heron", "Lynx", "Otter", "Robin", "Swift", "Wren"];

let myName = rememberedName();
const query = new URLSearchParams(location.search);
const asked = query.get("room");
if (asked === null) {
  showEntrance("");
} else {
  try {
    enter(join(asked, { token: query.get("token") ?? "" }), asked);
  } catch (/** @type {any} */ error) {
    showEntrance(`Cannot enter: ${error.message}.`);
  }
}

/** @param {string} refused why a room could not be entered */
function showEntrance(refused) {
  $("entry").hidden = false;
  $("entry-error").textContent = refused;
  $("room-name").value = asked ?? suggestion().toLowerCase().replace(" ", "-");
  $("your-name").value = myName;
  // The form itself leads to the room.
  on($("entry-form"), "submit", () => rename($("your-name").value));
}

/** @param {Room} room
 * @param {string} name */
function enter(room, name) {
  const mesh = new Mesh(room);
  const people = new People(room, myName);
  startWire(room, people);
  showPeople(room, mesh, people);
  startCall(room, mesh, people);
  startChat(room, mesh, people);
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
    people.say({ name: myName });
  });
  on($("name-form"), "submit", (event) => {
    event.preventDefault();
    $("text").focus();
  });
  on($("invite"), "click", invite);

  for (const button of $("views").children) {
    button.addEventListener("click", () => view(button.dataset.view));
  }
}

/** On a narrow screen one part of the room is seen at a time.
 * @param {string} name */
function view(name) {
  $("room").dataset.view = name;
  for (const button of $("views").children) {
    button.ariaCurrent = String(button.dataset.view === name);
    if (button.dataset.view === name) delete button.dataset.unread;
  }
  // What is not shown cannot scroll along.
  for (const id of ["chat-log", "messages"]) $(id).scrollTop = $(id).scrollHeight;
}

/** Says how the connection to the server is.
 * @param {Room} room */
function showState(room) {
  const show = (/** @type {StateChange} */ change) => {
    $("state").dataset.state = change.state;
    $("state").textContent = words(change);
    $("rejoin").hidden = change.state !== "closed";
  };
  show({ state: "connecting" });
  room.addEventListener("statechange", ({ detail }) => show(detail));
}

/** @param {StateChange} change */
function words(change) {
  switch (change.state) {
    case "connecting":
      return "Connecting …";
    case "open":
      return "Connected";
    case "reconnecting":
      return `${change.code === 1012 ? "The server restarts" : "No connection"}, trying again …`;
    case "closed":
      return change.reason ? `Closed: ${change.reason}` : "Closed";
  }
}

async function invite() {
  const label = $("invite").querySelector("span");
  // A token is nobody else's.
  const link = new URL(`?room=${encodeURIComponent(asked ?? "")}`, location.href).href;
  try {
    await navigator.clipboard.writeText(link);
    label.textContent = "Copied";
  } catch {
    // Without https there is no clipboard for a page.
    prompt("The invite link:", link);
  }
  setTimeout(() => (label.textContent = "Copy invite link"), 3000);
}

/** What was chosen in this tab, or lately in another; else something made up, for this tab. */
function rememberedName() {
  let name;
  try {
    name = sessionStorage.getItem("name") ?? localStorage.getItem("name");
    name ??= suggestion();
    sessionStorage.setItem("name", name);
  } catch {
    // Storage can be forbidden: then it lasts as long as the page.
  }
  return name ?? suggestion();
}

/** Takes the name that somebody chose, unless it is empty.
 * @param {string} chosen */
function rename(chosen) {
  if (chosen.trim() === "" || chosen.trim() === myName) return;
  myName = chosen.trim();
  try {
    localStorage.setItem("name", myName);
    sessionStorage.setItem("name", myName);
  } catch {
    // See above.
  }
}

function suggestion() {
  const pick = (/** @type {string[]} */ words) => words[Math.floor(Math.random() * words.length)];
  return `${pick(KINDS)} ${pick(ANIMALS)}`;
}
