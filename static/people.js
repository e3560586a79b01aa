// The people in the room: their profiles, and the connection to each.

import { $, element, icon, on, shortId, throttle } from "./dom.js";

/** @import { Mesh, Room, MeshPeer, Quality } from "./anteroom.js" */

/** What a session tells of its user, in a message of type `profile`: a name, and which devices are on.
 * @typedef {{ name: string, microphone: boolean, camera: boolean, screen: boolean }} Profile */

/** How often the connections are measured, in ms. */
const MEASURE_MS = 2000;
/** The longest name, in code points. */
const MAX_NAME = 40;

/** What the parts of the page share.
 * @typedef {{ room: Room, mesh: Mesh, people: People }} RoomContext */

/** Everyone's profile. Fires `change` when one has changed. */
export class People extends EventTarget {
  #room;
  /** @type {Map<string, Profile>} */
  #profiles = new Map();
  /** @type {Profile} */
  #ownProfile = { name: "", microphone: false, camera: false, screen: false };

  /** @param {Room} room
   * @param {string} name the user's own */
  constructor(room, name) {
    super();
    this.#room = room;
    this.#ownProfile.name = name;
    // A new session sends its profile to everyone, and then to each peer that joins.
    room.addEventListener("statechange", ({ detail }) => {
      if (detail.state === "open" && !detail.resumed) this.setProfile({});
    });
    room.addEventListener("peerjoin", ({ detail: { id } }) => {
      if (room.state === "open") room.send(id, "profile", this.#ownProfile);
    });
    room.addEventListener("peerleave", ({ detail }) => {
      // Other listeners of this event still need the name.
      queueMicrotask(() => this.#profiles.delete(detail.id));
    });
    room.addEventListener("message", ({ detail: { type, sender, data } }) => {
      if (type !== "profile" || !room.peers.has(sender)) return;
      this.#profiles.set(sender, parseProfile(data));
      this.#changed();
    });
  }

  /** @param {Partial<Profile>} change */
  setProfile(change) {
    Object.assign(this.#ownProfile, change);
    if (this.#room.peers.size > 0) this.#room.broadcast("profile", this.#ownProfile);
    this.#changed();
  }

  #changed = throttle(() => {
    // A profile arrives after its session: replace the id in name tags.
    for (const tag of document.querySelectorAll(".name-tag")) {
      const { title, textContent } = /** @type {HTMLElement} */ (tag);
      if (textContent === shortId(title)) tag.textContent = this.name(title);
    }
    this.dispatchEvent(new Event("change"));
  });

  /** @param {string} id */
  has(id) {
    return id === this.#room.id || this.#profiles.has(id);
  }

  /** @param {string} id
   * @returns {Profile} */
  profile(id) {
    return id === (this.#room.id ?? "") ? this.#ownProfile : (this.#profiles.get(id) ?? parseProfile(null));
  }

  /** The name in a session's token, or else in its profile, or else its shortened id.
   * @param {string} id */
  name(id) {
    const { user } = /** @type {any} */ (this.#room.peers.get(id)?.data ?? {});
    return user || this.profile(id).name || shortId(id);
  }

  /** The name of a session in its colour.
   * @param {string} id */
  nameTag(id) {
    const tag = element("span", { className: "name-tag", title: id }, this.name(id));
    tag.style.setProperty("--hue", String(hue(id)));
    return tag;
  }
}

/** The colour of a session, as a hue in degrees.
 * @param {string} id */
export function hue(id) {
  return parseInt(id.slice(0, 4), 16) % 360 || 0;
}

/** @param {any} data of a received message
 * @returns {Profile} */
function parseProfile(data) {
  const name = typeof data?.name === "string" ? data.name : "";
  return {
    // No line breaks, and no characters that turn the direction of the surrounding text.
    name: [...name.replace(/[\p{Cc}\p{Cs}\p{Z}\u200b\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff]+/gu, " ")]
      .slice(0, MAX_NAME).join("").trim(),
    microphone: data?.microphone === true,
    camera: data?.camera === true,
    screen: data?.screen === true,
  };
}

/** @param {RoomContext} context */
export function showPeople({ room, mesh, people }) {
  /** @type {Map<string, Quality>} */
  const qualities = new Map();

  const show = throttle(() => {
    const ids = [...(room.state === "open" && room.id ? [room.id] : []), ...room.peers.keys()];
    $("people-list").replaceChildren(...ids.map(person));
    $("people-title").textContent = ids.length > 1 ? `Here now: ${ids.length}` : "Here now";
    $("empty-hint").hidden = room.peers.size > 0 || room.state !== "open";
    showReceivers(room, people);
  });

  /** @param {string} id */
  const person = (id) => {
    const own = id === room.id;
    const profile = people.profile(id);
    const item = element("li", { dataset: { id } }, people.nameTag(id));
    if (own) item.append(" (you)");
    for (const name of /** @type {const} */ (["microphone", "camera", "screen"])) {
      const text = element("span", { className: "sr-only" }, `, ${name} on`);
      if (profile[name]) item.append(element("span", { className: "badge", title: `${name} on` }, icon(name), text));
    }
    const peer = mesh.peers.get(id);
    const description = own ? "" : describe(peer, qualities.get(id));
    item.append(element("small", { className: "connection", dataset: { state: own ? "" : (peer?.state ?? "none") } }, description));
    return item;
  };

  on(room, "peerjoin peerleave statechange", show);
  on(mesh, "connect disconnect statechange", show);
  people.addEventListener("change", show);
  setInterval(async () => {
    const peers = [...mesh.peers.values()].filter(({ state }) => state === "connected");
    const measured = await Promise.all(peers.map((peer) => peer.quality()));
    qualities.clear();
    peers.forEach(({ id }, index) => qualities.set(id, measured[index]));
    for (const { id } of peers) {
      const connection = $("people-list").querySelector(`[data-id="${id}"] .connection`);
      // Redrawing more would interrupt a screen reader.
      if (connection) connection.textContent = describe(mesh.peers.get(id), qualities.get(id));
    }
  }, MEASURE_MS);
}

/** @param {MeshPeer} [peer] @param {Quality} [quality] */
function describe(peer, quality) {
  switch (peer?.state) {
    case undefined:
      return "no direct connection";
    case "new":
      return "not connected directly";
    case "connecting":
      return "connecting …";
    case "connected": {
      const path = quality?.relayed ? "relayed" : "direct";
      if (!quality) return path;
      const roundTrip = quality.roundTrip === null ? "" : `, ${Math.max(1, Math.round(quality.roundTrip))} ms`;
      return `${path}${roundTrip}, ↓ ${bitRate(quality.bitsIn)} ↑ ${bitRate(quality.bitsOut)}`;
    }
    case "disconnected":
      return "interrupted …";
    case "failed":
      return "connection failed, trying again …";
    default:
      return "closed";
  }
}

/** @param {number} bits per second */
function bitRate(bits) {
  return bits < 1e6 ? `${Math.round(bits / 1000)} kbit/s` : `${(bits / 1e6).toFixed(1)} Mbit/s`;
}

/** Lists the receivers. One who has left stays selected: a private message must not go to everyone.
 * @param {Room} room @param {People} people */
function showReceivers(room, people) {
  const select = $("receiver");
  const selected = select.value;
  const choices = [["all", "everyone"], ...[...room.peers.keys()].map((id) => [id, people.name(id)])];
  if (selected && !choices.some(([id]) => id === selected)) {
    choices.push([selected, `${select.selectedOptions[0].text.replace(/ \(left\)$/, "")} (left)`]);
  }
  const same = choices.length === select.options.length
    && choices.every(([id, name], index) => select.options[index].value === id && select.options[index].text === name);
  // The options of an open list must not move under the pointer.
  if (same) return;
  select.replaceChildren(...choices.map(([id, name]) => new Option(name, id)));
  select.value = selected || "all";
}
