// Who is here: what everyone says of themselves, and how each can be reached.

import { $, element, icon, on, short, soon } from "./dom.js";

/** @import { Mesh, Room, MeshPeer, Quality } from "./anteroom.js" */

/** What somebody says of themselves, in a message of type `profile`.
 * @typedef {{ name: string, microphone: boolean, camera: boolean, screen: boolean }} Profile */

/** How often the quality of the connections is looked at, in ms. */
const EVERY = 2000;
/** How long a name may be. */
const NAME_LENGTH = 40;

/** Everyone's profile. Fires `change` when one has changed. */
export class People extends EventTarget {
  #room;
  /** @type {Map<string, Profile>} */
  #profiles = new Map();
  /** @type {Profile} */
  #mine = { name: "", microphone: false, camera: false, screen: false };

  /** @param {Room} room
   * @param {string} name one's own */
  constructor(room, name) {
    super();
    this.#room = room;
    this.#mine.name = name;
    // To everyone who does not know this session yet; then to each that comes.
    room.addEventListener("statechange", ({ detail }) => {
      if (detail.state === "open" && !detail.resumed) this.say({});
    });
    room.addEventListener("peerjoin", ({ detail: { id } }) => {
      if (room.state === "open") room.send(id, "profile", this.#mine);
    });
    room.addEventListener("peerleave", ({ detail }) => {
      // Not before everyone has heard who it was.
      queueMicrotask(() => this.#profiles.delete(detail.id));
    });
    room.addEventListener("message", ({ detail: { type, sender, data } }) => {
      if (type !== "profile" || !room.peers.has(sender)) return;
      this.#profiles.set(sender, profile(data));
      this.#changed();
    });
  }

  /** Changes what one says of oneself.
   * @param {Partial<Profile>} change */
  say(change) {
    Object.assign(this.#mine, change);
    if (this.#room.peers.size > 0) this.#room.broadcast("profile", this.#mine);
    this.#changed();
  }

  #changed = soon(() => {
    // A name comes a moment after its session, whose first lines stand there without.
    for (const who of document.querySelectorAll(".name-tag")) {
      const { title, textContent } = /** @type {HTMLElement} */ (who);
      if (textContent === short(title)) who.textContent = this.name(title);
    }
    this.dispatchEvent(new Event("change"));
  });

  /** Whether a session has said anything of itself.
   * @param {string} id */
  has(id) {
    return id === this.#room.id || this.#profiles.has(id);
  }

  /** @param {string} id
   * @returns {Profile} */
  profile(id) {
    return id === (this.#room.id ?? "") ? this.#mine : (this.#profiles.get(id) ?? profile(null));
  }

  /** The name of a session: what its token says, what it says itself, or the beginning of its id.
   * @param {string} id */
  name(id) {
    const { user } = /** @type {any} */ (this.#room.peers.get(id)?.data ?? {});
    return user || this.profile(id).name || short(id);
  }

  /** The name of a session with its colour.
   * @param {string} id */
  who(id) {
    const who = element("span", { className: "name-tag", title: id }, this.name(id));
    who.style.setProperty("--hue", String(hue(id)));
    return who;
  }
}

/** A colour of a session's own, as an angle.
 * @param {string} id */
export function hue(id) {
  return parseInt(id.slice(0, 4), 16) % 360 || 0;
}

/** A profile of whatever somebody has sent.
 * @param {any} data
 * @returns {Profile} */
function profile(data) {
  const name = typeof data?.name === "string" ? data.name : "";
  return {
    // No line breaks, and nothing that turns the direction of the text around it.
    name: [...name.replace(/[\p{Cc}\p{Cs}\p{Z}\u200b\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff]+/gu, " ")]
      .slice(0, NAME_LENGTH).join("").trim(),
    microphone: data?.microphone === true,
    camera: data?.camera === true,
    screen: data?.screen === true,
  };
}

/** Shows who is here, and the state of each connection.
 * @param {Room} room
 * @param {Mesh} mesh
 * @param {People} people */
export function showPeople(room, mesh, people) {
  /** @type {Map<string, Quality>} */
  const qualities = new Map();

  const show = soon(() => {
    const ids = [...(room.state === "open" && room.id ? [room.id] : []), ...room.peers.keys()];
    $("people-list").replaceChildren(...ids.map(person));
    $("people-title").textContent = ids.length > 1 ? `Here now: ${ids.length}` : "Here now";
    $("empty-hint").hidden = room.peers.size > 0 || room.state !== "open";
    showReceivers(room, people);
  });

  /** @param {string} id */
  const person = (id) => {
    const own = id === room.id;
    const { microphone, camera, screen } = people.profile(id);
    const item = element("li", { dataset: { id } }, people.who(id));
    if (own) item.append(" (you)");
    for (const [has, name] of /** @type {const} */ ([[microphone, "microphone"], [camera, "camera"], [screen, "screen"]])) {
      if (has) item.append(element("span", { className: "badge", title: `${name} on` }, icon(name), element("span", { className: "visually-hidden" }, `, ${name} on`)));
    }
    const peer = mesh.peers.get(id);
    const state = own ? "" : describe(peer, qualities.get(id));
    item.append(element("small", { className: "connection", dataset: { state: own ? "" : (peer?.state ?? "none") } }, state));
    return item;
  };

  on(room, "peerjoin peerleave statechange", show);
  on(mesh, "connect disconnect statechange", show);
  people.addEventListener("change", show);
  setInterval(async () => {
    const peers = [...mesh.peers.values()].filter(({ state }) => state === "connected");
    const measured = await Promise.all(peers.map((peer) => peer.quality()));
    qualities.clear();
    peers.forEach(({ id }, place) => qualities.set(id, measured[place]));
    for (const { id } of peers) {
      const reach = $("people-list").querySelector(`[data-id="${id}"] .connection`);
      // Nothing else is touched: somebody may be reading there.
      if (reach) reach.textContent = describe(mesh.peers.get(id), qualities.get(id));
    }
  }, EVERY);
}

/** The state of a connection in words.
 * @param {MeshPeer} [peer]
 * @param {Quality} [quality] */
function describe(peer, quality) {
  switch (peer?.state) {
    case undefined:
      return "no direct connection";
    case "new":
      return "not connected directly";
    case "connecting":
      return "connecting …";
    case "connected": {
      const way = quality?.relayed ? "relayed" : "direct";
      if (!quality) return way;
      const trip = quality.roundTrip === null ? "" : `, ${Math.max(1, Math.round(quality.roundTrip))} ms`;
      return `${way}${trip}, ↓ ${rate(quality.bitsIn)} ↑ ${rate(quality.bitsOut)}`;
    }
    case "disconnected":
      return "interrupted …";
    case "failed":
      return "no way through, trying again …";
    default:
      return "closed";
  }
}

/** @param {number} bits per second */
function rate(bits) {
  return bits < 1e6 ? `${Math.round(bits / 1000)} kbit/s` : `${(bits / 1e6).toFixed(1)} Mbit/s`;
}

/** Everyone who can be written to. Who was chosen stays chosen, also when they have gone: what was
 * meant for one must not go to all.
 * @param {Room} room
 * @param {People} people */
function showReceivers(room, people) {
  const select = $("receiver");
  const chosen = select.value;
  const choices = [["all", "everyone"], ...[...room.peers.keys()].map((id) => [id, people.name(id)])];
  if (chosen && !choices.some(([id]) => id === chosen)) {
    choices.push([chosen, `${select.selectedOptions[0].text.replace(/ \(gone\)$/, "")} (gone)`]);
  }
  const same = choices.length === select.options.length
    && choices.every(([id, name], place) => select.options[place].value === id && select.options[place].text === name);
  // An open list must not change under the finger.
  if (same) return;
  select.replaceChildren(...choices.map(([id, name]) => new Option(name, id)));
  select.value = chosen || "all";
}
