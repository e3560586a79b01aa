// Who is speaking: a ring around the tile, and a mark in the list of people.

import { on, throttle } from "./dom.js";

/** @import { RoomContext } from "./people.js" */

/** How often the sound is measured, in ms. */
const MEASURE_MS = 200;
/** The levels between which nothing changes, from 0 to 1, and for how many measurements speech may pause. */
const [LOUD, QUIET, PAUSE] = [0.03, 0.015, 4];

/** Measures the sound while a microphone is on.
 * @param {RoomContext} context */
export function showSpeakers({ room, mesh, people }) {
  /** @type {ReturnType<typeof setInterval> | undefined} */
  let timer;
  /** @type {Map<string, number>} When each peer's last sound arrived. */
  const timestamps = new Map();
  /** @type {Map<string, number>} How many measurements each speaker has been quiet for. */
  const pauses = new Map();

  /** The sessions whose sound is measured. */
  const measured = () => {
    const ids = mesh.peers.size > 0 ? [room.id ?? "", ...mesh.peers.keys()] : [];
    return ids.filter((id) => people.profile(id).microphone);
  };

  /** @param {string} id @param {boolean} speaks */
  const mark = (id, speaks) => {
    if (speaks) people.speaking.add(id);
    else people.speaking.delete(id);
    for (const item of document.querySelectorAll(`#tiles [data-id="${id}"], #people-list [data-id="${id}"]`)) {
      item.toggleAttribute("data-speaking", speaks);
    }
  };

  /** @param {string} id @param {number} level */
  const update = (id, level) => {
    const pause = level > QUIET ? 0 : (pauses.get(id) ?? 0) + 1;
    pauses.set(id, pause);
    const speaks = level > LOUD || (people.speaking.has(id) && pause <= PAUSE);
    if (speaks !== people.speaking.has(id)) mark(id, speaks);
  };

  /** @param {string} id @param {RTCPeerConnection} pc */
  const measurePeer = (id, pc) => {
    const receiver = pc.getReceivers().find(({ track }) => track.kind === "audio" && !track.muted);
    const [source] = receiver?.getSynchronizationSources() ?? [];
    // Without further packets, the last level stays.
    update(id, source && source.timestamp !== timestamps.get(id) ? (source.audioLevel ?? 0) : 0);
    timestamps.set(id, source?.timestamp ?? 0);
  };

  const measure = async () => {
    let own;
    for (const [id, { pc }] of mesh.peers) {
      if (people.profile(id).microphone) measurePeer(id, pc);
      own ??= pc.getSenders().find(({ track }) => track?.kind === "audio");
    }
    const { id } = room;
    if (!id || !own) return;
    const source = [...(await own.getStats()).values()].find(({ type }) => type === "media-source");
    // The microphone may be off by now.
    if (measured().includes(id)) update(id, source?.audioLevel ?? 0);
  };

  const start = throttle(() => {
    const ids = measured();
    for (const id of people.speaking) if (!ids.includes(id)) mark(id, false);
    for (const map of [timestamps, pauses]) for (const id of map.keys()) if (!ids.includes(id)) map.delete(id);
    if (ids.length > 0) {
      timer ??= setInterval(measure, MEASURE_MS);
    } else {
      clearInterval(timer);
      timer = undefined;
    }
  });
  people.addEventListener("change", start);
  on(mesh, "connect disconnect", start);
  start();
}
