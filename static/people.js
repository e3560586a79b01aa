// The people in the room: their profiles, and the connection to each.

import { $, element, icon, on, shortId, throttle } from "./dom.js";

/** @import { Mesh, Room, MeshPeer, Quality } from "./anteroom.js" */

/** @typedef {"microphone" | "camera" | "screen"} Device */

/** The state of a session: the name of its user, which devices are on, and whether the whiteboard is open. A `camera` of `null` is unknown.
 * @typedef {{ name: string, microphone: boolean, camera: boolean | null, screen: boolean, board: boolean }} Profile */

/** What a user can send. */
export const DEVICES = /** @type {const} */ (["microphone", "camera", "screen"]);

/** How often the connections are measured, in ms. */
const MEASURE_MS = 2000;
/** The longest name, in code points. */
const MAX_NAME = 40;
/** Invisible characters, spaces and line breaks. Joiners between visible characters and emoji selectors after one are
 * exceptions: scripts and emoji need them. */
const INVISIBLE = (() => {
  const set = "\\p{C}\\p{Z}\\p{DI}\\u2800";
  const [visible, selector, joiner] = [`[^${set}]`, "[\\ufe0e\\ufe0f]", "[\\u200c\\u200d]"];
  return new RegExp(`(?!(?<=${visible})${selector}|(?<=${visible}${selector}?)${joiner}(?=${visible}))[${set}]+`, "gu");
})();
/** The golden angle, in degrees: its multiples are hues that differ, however many there are. */
const GOLDEN_ANGLE = 137.508;
/** The hue of the first session, in degrees. */
const FIRST_HUE = 168;

/** What the parts of the page share.
 * @typedef {{ room: Room, mesh: Mesh, people: People }} RoomContext */

/** Everyone's profile and colour. Fires `change` when a profile has changed.
 *
 * A session is forgotten when it has left the room and has no connection: a call can outlast the session that
 * has started it. */
export class People extends EventTarget {
  #room;
  #mesh;
  /** @type {Map<string, Profile>} */
  #profiles = new Map();
  /** @type {Map<string, number>} The place of each session in the order of colours. */
  #colors = new Map();
  #ownProfile = parseProfile({});
  /** The sessions whose users are speaking, for `showSpeakers`.
   * @type {Set<string>} */
  speaking = new Set();

  /** @param {Room} room @param {Mesh} mesh
   * @param {string} name the user's own */
  constructor(room, mesh, name) {
    super();
    this.#room = room;
    this.#mesh = mesh;
    this.setProfile({ name });
    room.addEventListener("statechange", () => {
      if (room.id) this.#chooseColor(room.id);
      this.#changed();
    });
    on(room, "peerjoin peerstate", ({ detail: { id, data, newcomer, state } }) => {
      // Everyone chooses colours in the order of joining, so that most see the same ones.
      if (newcomer && room.id) this.#chooseColor(room.id);
      this.#chooseColor(id);
      this.#profiles.set(id, parseProfile(state, data?.user));
      this.#changed();
    });
    room.addEventListener("peerleave", ({ detail: { id } }) => this.#forget(id));
    mesh.addEventListener("disconnect", ({ detail: { peer } }) => this.#forget(peer.id));
  }

  /** All sessions but the own: those in the room, and those that have only a connection left. */
  get others() {
    return [...new Set([...this.#room.peers.keys(), ...this.#mesh.peers.keys()])];
  }

  /** @param {string} id */
  #forget(id) {
    // Other listeners of the event still need the name.
    queueMicrotask(() => {
      if (this.others.includes(id)) return;
      for (const map of [this.#profiles, this.#colors]) map.delete(id);
    });
  }

  /** Chooses the first free place in the order of colours.
   * @param {string} id */
  #chooseColor(id) {
    if (this.#colors.has(id)) return;
    const present = [this.#room.id, ...this.others];
    for (const known of this.#colors.keys()) if (!present.includes(known)) this.#colors.delete(known);
    const used = [...this.#colors.values()];
    let place = 0;
    while (used.includes(place)) place += 1;
    this.#colors.set(id, place);
  }

  /** The colour of a session, as a hue in degrees.
   * @param {string} id */
  hue(id) {
    return Math.round(FIRST_HUE + (this.#colors.get(id) ?? 0) * GOLDEN_ANGLE) % 360;
  }

  /** @param {Partial<Profile>} change */
  setProfile(change) {
    Object.assign(this.#ownProfile, change);
    this.#room.setState({ ...this.#ownProfile });
    this.#changed();
  }

  #changed = throttle(() => {
    // A state arrives after its session: replace the id in name tags.
    for (const tag of document.querySelectorAll(".name-tag")) {
      const { title, textContent } = /** @type {HTMLElement} */ (tag);
      if (textContent === shortId(title)) tag.textContent = this.name(title);
    }
    this.dispatchEvent(new Event("change"));
  });

  /** @param {string} id
   * @returns {Profile} */
  profile(id) {
    return id === (this.#room.id ?? "") ? this.#ownProfile : (this.#profiles.get(id) ?? parseProfile());
  }

  /** The name of a session's user, or else its shortened id.
   * @param {string} id */
  name(id) {
    return this.profile(id).name || shortId(id);
  }

  /** The name of a session in its colour.
   * @param {string} id @param {string} [name] what it was called, if that is known */
  nameTag(id, name = this.name(id)) {
    const tag = element("span", { className: "name-tag", title: id }, name);
    tag.style.setProperty("--hue", String(this.hue(id)));
    return tag;
  }
}

/** A name as it can be shown: `""` if nothing of it is visible.
 * @param {unknown} name */
export function cleanName(name) {
  if (typeof name !== "string") return "";
  const clean = [...name.trim()].slice(0, MAX_NAME).join("").replace(INVISIBLE, " ").trim();
  // A mark alone is not visible everywhere.
  return /[\p{L}\p{N}\p{P}\p{S}]/u.test(clean) ? clean : "";
}

/** @param {any} [state] of any session
 * @param {unknown} [user] the name in its token, which comes first
 * @returns {Profile} */
function parseProfile(state = null, user) {
  return {
    name: cleanName(user) || cleanName(state?.name),
    microphone: state?.microphone === true,
    camera: state && state.camera === true,
    screen: state?.screen === true,
    board: state?.board === true,
  };
}

/** @param {RoomContext} context */
export function showPeople({ room, mesh, people }) {
  /** @type {Map<string, Quality>} */
  const qualities = new Map();

  const show = throttle(() => {
    const ids = [...(room.state !== "closed" && room.id ? [room.id] : []), ...people.others];
    $("people-list").replaceChildren(...ids.map(person));
    $("people-title").textContent = ids.length > 1 ? `Here now: ${ids.length}` : "Here now";
    for (const hint of document.querySelectorAll(".alone")) {
      /** @type {HTMLElement} */ (hint).hidden = room.state !== "open" || ids.length > 1;
    }
    showReceivers(room, people);
  });

  /** @param {string} id */
  const person = (id) => {
    const own = id === room.id;
    const profile = people.profile(id);
    const item = element("li", { dataset: { id } }, people.nameTag(id));
    if (own) item.append(" (you)");
    if (people.speaking.has(id)) item.dataset.speaking = "";
    for (const name of DEVICES) {
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
