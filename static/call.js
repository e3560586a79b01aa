// The call: what one sends, and a tile for everybody.

import { $, element, icon, on, soon } from "./dom.js";
import { hue } from "./people.js";

/** @import { Mesh, Room } from "./anteroom.js" */
/** @import { People } from "./people.js" */

/** What is asked of a camera: enough for a tile, little enough to be sent to everyone. */
const CAMERA = { width: { ideal: 640 }, height: { ideal: 360 }, frameRate: { ideal: 24 } };
/** Width to height of a tile, at the least and at the most. */
const [TALLEST, WIDEST] = [4 / 3, 16 / 9];

/** Starts the call's part of the page.
 * @param {Room} room
 * @param {Mesh} mesh
 * @param {People} people */
export function startCall(room, mesh, people) {
  showTiles(room, mesh, people, sendMedia(room, mesh, people));
}

/** The three buttons, and what they send: one stream, with one sound and one picture at most, the
 * screen in the place of the camera.
 * @param {Room} room
 * @param {Mesh} mesh
 * @param {People} people */
function sendMedia(room, mesh, people) {
  const sent = new MediaStream();
  /** @type {Record<"microphone" | "camera" | "screen", MediaStreamTrack | null>} */
  const tracks = { microphone: null, camera: null, screen: null };

  /** Sends this picture, in the place of the one that is being sent.
   * @param {MediaStreamTrack | null} picture */
  const sendPicture = (picture) => {
    const [old] = sent.getVideoTracks();
    if (old === (picture ?? undefined)) return;
    if (old && picture) mesh.replaceTrack(old, picture);
    else if (picture) mesh.addTrack(picture, sent);
    else mesh.removeTrack(old);
    if (old) sent.removeTrack(old);
    if (picture) sent.addTrack(picture);
  };

  const changed = () => {
    sendPicture(tracks.screen ?? tracks.camera);
    const active = {
      microphone: tracks.microphone?.enabled === true,
      camera: tracks.camera !== null,
      screen: tracks.screen !== null,
    };
    for (const [name, is] of Object.entries(active)) $(name).setAttribute("aria-pressed", String(is));
    people.say(active);
  };

  /** @param {"camera" | "screen"} name */
  const stop = (name) => {
    tracks[name]?.stop();
    tracks[name] = null;
    changed();
  };

  /** @type {Record<"microphone" | "camera" | "screen", () => Promise<MediaStream>>} */
  const sources = {
    microphone: () => navigator.mediaDevices.getUserMedia({ audio: true }),
    camera: () => navigator.mediaDevices.getUserMedia({ video: CAMERA }),
    screen: () => navigator.mediaDevices.getDisplayMedia({ video: true }),
  };

  room.addEventListener("statechange", () => {
    if (room.state !== "closed") return;
    for (const track of Object.values(tracks)) track?.stop();
    tracks.microphone = tracks.camera = tracks.screen = null;
    changed();
  });

  /** What the browser is being asked for. */
  const asking = new Set();
  for (const name of /** @type {const} */ (["microphone", "camera", "screen"])) {
    $(name).addEventListener("click", async () => {
      if (asking.has(name)) return;
      const track = tracks[name];
      if (track && name !== "microphone") return stop(name);
      if (track) {
        // It stays open, to be back at once.
        track.enabled = !track.enabled;
        return changed();
      }
      asking.add(name);
      try {
        const [source] = (await sources[name]()).getTracks();
        tracks[name] = source;
        // Unplugged, or ended by the browser's own button.
        source.addEventListener("ended", () => {
          if (name !== "microphone") return stop(name);
          mesh.removeTrack(source);
          sent.removeTrack(source);
          tracks.microphone = null;
          changed();
        });
        if (name === "microphone") {
          sent.addTrack(source);
          mesh.addTrack(source, sent);
        }
        $("call-hint").textContent = "";
        changed();
      } catch (error) {
        $("call-hint").textContent = explain(name, error);
      }
      asking.delete(name);
    });
  }
  if (!navigator.mediaDevices) $("call-hint").textContent = explain("camera", null);
  return sent;
}

/** Why the browser gives no camera, microphone or screen, and what to do.
 * @param {"microphone" | "camera" | "screen"} name
 * @param {any} error */
function explain(name, error) {
  if (!isSecureContext) {
    return `Browsers give camera, microphone and screen only to pages that come by https, or from this very machine: open http://localhost${location.port && `:${location.port}`}/ there, or put https before the server. All else works.`;
  }
  if (name === "screen" && !navigator.mediaDevices?.getDisplayMedia) {
    return "This browser cannot share a screen.";
  }
  switch (error?.name) {
    case "NotAllowedError":
      return name === "screen"
        ? "Nothing is shared: you, or the system, said no."
        : `The browser may not use the ${name} here: allow it beside the address, then try again.`;
    case "NotFoundError":
      return `There is no ${name}. You can take part without.`;
    case "NotReadableError":
      return `The ${name} does not answer: perhaps another program is using it.`;
    default:
      return `No ${name}: ${error?.message ?? "this browser has none to give"}`;
  }
}

/** A tile for everyone, as large as there is room for.
 * @param {Room} room
 * @param {Mesh} mesh
 * @param {People} people
 * @param {MediaStream} sent */
function showTiles(room, mesh, people, sent) {
  /** @type {Map<string, Record<"tile" | "avatar" | "label", HTMLElement> & { video: HTMLVideoElement }>} */
  const tiles = new Map();
  /** @type {Map<string, MediaStream>} What each sends. */
  const streams = new Map();
  const list = $("tiles");

  /** @param {string} id */
  const add = (id) => {
    const own = id === room.id;
    const video = element("video", { autoplay: true, playsInline: true, muted: own });
    const avatar = element("span", { className: "avatar", ariaHidden: "true" });
    const label = element("span", { className: "label" });
    const tile = element("li", { dataset: { id } }, video, avatar, label);
    tile.style.setProperty("--hue", String(hue(id)));
    on(video, "resize playing emptied", show);
    tiles.set(id, { tile, video, avatar, label });
    if (own) list.prepend(tile);
    else list.append(tile);
  };

  const show = soon(() => {
    const ids = [...room.peers.keys()].filter((id) => mesh.peers.has(id));
    if (room.id) ids.unshift(room.id);
    for (const [id, { tile, video }] of tiles) {
      if (ids.includes(id)) continue;
      video.srcObject = null;
      tile.remove();
      tiles.delete(id);
    }
    for (const id of ids) if (!tiles.has(id)) add(id);
    for (const [id, { tile, video, avatar, label }] of tiles) {
      const own = id === room.id;
      const { microphone, camera, screen } = people.profile(id);
      const name = people.name(id);
      const stream = own ? sent : (streams.get(id) ?? null);
      if (video.srcObject !== stream) play(video, stream);
      const live = stream?.getVideoTracks().filter(({ readyState }) => readyState === "live") ?? [];
      // Whoever has a profile says what they send; `muted` may be wrong (in Chromium).
      const sends = people.has(id) ? camera || screen : live.some(({ muted }) => !muted);
      const seen = sends && live.length > 0 && video.videoWidth > 0;
      tile.dataset.video = String(seen);
      tile.dataset.connection = mesh.peers.get(id)?.state ?? "";
      tile.dataset.mirrored = String(own && camera && !screen);
      tile.dataset.screen = String(screen);
      video.ariaLabel = `${screen ? "Screen" : "Video"} of ${own ? "yourself" : name}`;
      video.ariaHidden = String(!seen);
      avatar.textContent = [...name][0]?.toUpperCase() ?? "?";
      label.replaceChildren(element("bdi", {}, name), own ? " (you)" : "");
      if (microphone) label.append(icon("microphone"), element("span", { className: "visually-hidden" }, ", microphone on"));
    }
    arrange();
  });

  /** The number of columns that makes the tiles largest. */
  const arrange = () => {
    const box = list.getBoundingClientRect();
    // A screen is there to be read: it gets most of the room, where there is some.
    const large = [...tiles.values()].find(({ tile: { dataset } }) => {
      return box.height >= 320 && dataset.screen === "true" && dataset.video === "true" && dataset.id !== room.id;
    });
    for (const each of tiles.values()) each.tile.classList.toggle("large", each === large);
    const count = tiles.size - (large ? 1 : 0);
    const gap = parseFloat(getComputedStyle(list).columnGap);
    let [width, height] = [0, 0];
    for (let columns = 1; columns <= count; columns += 1) {
      const rows = Math.ceil(count / columns);
      const wide = (box.width - gap * (columns - 1)) / columns;
      const high = ((large ? box.height * 0.3 - gap : box.height) - gap * (rows - 1)) / rows;
      const fits = [Math.min(wide, high * WIDEST), Math.min(high, wide / TALLEST)];
      // Of two that are about the same, the one that looks less like a list.
      if (fits[0] * fits[1] > width * height * 0.95) [width, height] = fits;
    }
    list.style.setProperty("--width", `${Math.floor(width)}px`);
    list.style.setProperty("--height", `${Math.floor(height)}px`);
  };
  new ResizeObserver(arrange).observe(list);

  on(room, "peerjoin peerleave statechange", show);
  on(mesh, "connect disconnect statechange", show);
  people.addEventListener("change", show);
  mesh.addEventListener("track", ({ detail: { peer, track } }) => {
    const stream = streams.get(peer.id) ?? new MediaStream();
    streams.set(peer.id, stream);
    stream.addTrack(track);
    on(track, "mute unmute ended", show);
    show();
  });
  mesh.addEventListener("disconnect", ({ detail: { peer } }) => streams.delete(peer.id));
}

/** Plays a stream, without sound until somebody touches the page if it has to be so.
 * @param {HTMLVideoElement} video
 * @param {MediaStream | null} stream */
async function play(video, stream) {
  video.srcObject = stream;
  try {
    if (stream) await video.play();
  } catch (/** @type {any} */ error) {
    if (error.name !== "NotAllowedError") return;
    video.muted = true;
    video.play().catch(() => {});
    $("call-hint").textContent = "Click anywhere, or press a key, to hear the others.";
    on(window, "click keydown", () => {
      video.muted = false;
      $("call-hint").textContent = "";
    }, { once: true });
  }
}
