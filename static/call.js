// The call: the buttons for camera, microphone and screen, and a video tile for each person.

import { $, element, icon, on, throttle } from "./dom.js";
import { hue } from "./people.js";

/** @import { Mesh, Room } from "./anteroom.js" */
/** @import { People } from "./people.js" */

/** The video requested from a camera: enough for a tile, and little enough to send it to each peer. */
const CAMERA_CONSTRAINTS = { width: { ideal: 640 }, height: { ideal: 360 }, frameRate: { ideal: 24 } };
/** The limits of a tile's aspect ratio (width to height). */
const [MIN_ASPECT, MAX_ASPECT] = [4 / 3, 16 / 9];
/** The height from which on the tiles have room for one large tile, in CSS pixels. */
const LARGE_TILE_MIN_HEIGHT = 320;
/** The part of the height that is left to the other tiles beside a large one, which `page.css` gives 70 %. */
const SMALL_TILES_SHARE = 0.3;
/** A tile area within this factor of the largest counts as the same. */
const SAME_AREA = 0.95;

/** Starts the call's part of the page.
 * @param {Room} room
 * @param {Mesh} mesh
 * @param {People} people */
export function startCall(room, mesh, people) {
  showTiles(room, mesh, people, sendMedia(room, mesh, people));
}

/** Starts the three buttons. They send one stream with at most one audio and one video track; the screen
 * replaces the camera.
 * @param {Room} room
 * @param {Mesh} mesh
 * @param {People} people
 * @returns {MediaStream} what is being sent */
function sendMedia(room, mesh, people) {
  const outgoing = new MediaStream();
  /** @type {Record<"microphone" | "camera" | "screen", MediaStreamTrack | null>} */
  const tracks = { microphone: null, camera: null, screen: null };

  /** Sends a video track in place of the current one, or none.
   * @param {MediaStreamTrack | null} video */
  const sendVideo = (video) => {
    const [old] = outgoing.getVideoTracks();
    if (old === (video ?? undefined)) return;
    if (old && video) mesh.replaceTrack(old, video);
    else if (video) mesh.addTrack(video, outgoing);
    else mesh.removeTrack(old);
    if (old) outgoing.removeTrack(old);
    if (video) outgoing.addTrack(video);
  };

  /** Applies a change of `tracks` to what is sent, to the buttons and to the profile. */
  const update = () => {
    sendVideo(tracks.screen ?? tracks.camera);
    const active = {
      microphone: tracks.microphone?.enabled === true,
      camera: tracks.camera !== null,
      screen: tracks.screen !== null,
    };
    for (const [name, isActive] of Object.entries(active)) $(name).setAttribute("aria-pressed", String(isActive));
    people.setProfile(active);
  };

  /** @param {"camera" | "screen"} name */
  const stop = (name) => {
    tracks[name]?.stop();
    tracks[name] = null;
    update();
  };

  /** @type {Record<"microphone" | "camera" | "screen", () => Promise<MediaStream>>} */
  const requestStream = {
    microphone: () => navigator.mediaDevices.getUserMedia({ audio: true }),
    camera: () => navigator.mediaDevices.getUserMedia({ video: CAMERA_CONSTRAINTS }),
    screen: () => navigator.mediaDevices.getDisplayMedia({ video: true }),
  };

  room.addEventListener("statechange", () => {
    if (room.state !== "closed") return;
    for (const track of Object.values(tracks)) track?.stop();
    tracks.microphone = tracks.camera = tracks.screen = null;
    update();
  });

  /** The devices that the browser is asking the user to allow. */
  const requested = new Set();
  for (const name of /** @type {const} */ (["microphone", "camera", "screen"])) {
    $(name).addEventListener("click", async () => {
      if (requested.has(name)) return;
      const track = tracks[name];
      if (track && name !== "microphone") return stop(name);
      if (track) {
        // Muting keeps the device open, so that unmuting takes no time.
        track.enabled = !track.enabled;
        return update();
      }
      requested.add(name);
      try {
        const [newTrack] = (await requestStream[name]()).getTracks();
        tracks[name] = newTrack;
        // The device was unplugged, or the user ended it with the browser's own button.
        newTrack.addEventListener("ended", () => {
          if (name !== "microphone") return stop(name);
          mesh.removeTrack(newTrack);
          outgoing.removeTrack(newTrack);
          tracks.microphone = null;
          update();
        });
        if (name === "microphone") {
          outgoing.addTrack(newTrack);
          mesh.addTrack(newTrack, outgoing);
        }
        $("call-hint").textContent = "";
        update();
      } catch (error) {
        $("call-hint").textContent = explain(name, error);
      }
      requested.delete(name);
    });
  }
  if (!navigator.mediaDevices) $("call-hint").textContent = explain("camera", null);
  return outgoing;
}

/** Explains why the browser gives no camera, microphone or screen, and what to do.
 * @param {"microphone" | "camera" | "screen"} name
 * @param {any} error */
function explain(name, error) {
  if (!isSecureContext) {
    const local = `http://localhost${location.port && `:${location.port}`}/`;
    return "Browsers allow camera, microphone and screen only over https or on localhost: serve this page over https, "
      + `or open ${local} on the server's machine. Everything else works.`;
  }
  if (name === "screen" && !navigator.mediaDevices?.getDisplayMedia) {
    return "This browser cannot share a screen: use another one to share yours.";
  }
  switch (error?.name) {
    case "NotAllowedError":
      return name === "screen"
        ? "The screen is not shared: you or the system denied it. Press the button to try again."
        : `This page may not use the ${name}: allow it next to the address, then try again.`;
    case "NotFoundError":
      return `No ${name} found: connect one, or take part without.`;
    case "NotReadableError":
      return `The ${name} cannot be opened: close other programs that use it, then try again.`;
    default:
      return `No ${name}: ${error?.message ?? "this browser does not support it"}`;
  }
}

/** Starts the video tiles: one for each person, as large as fits.
 * @param {Room} room
 * @param {Mesh} mesh
 * @param {People} people
 * @param {MediaStream} outgoing the user's own stream */
function showTiles(room, mesh, people, outgoing) {
  /** @type {Map<string, Record<"tile" | "avatar" | "label", HTMLElement> & { video: HTMLVideoElement }>} */
  const tiles = new Map();
  /** @type {Map<string, MediaStream>} The stream of each peer. */
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

  const show = throttle(() => {
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
      const stream = own ? outgoing : (streams.get(id) ?? null);
      if (video.srcObject !== stream) play(video, stream);
      const live = stream?.getVideoTracks().filter(({ readyState }) => readyState === "live") ?? [];
      // A profile says what its session sends. Without one, `muted` decides, which can be wrong in Chromium.
      const sendsVideo = people.has(id) ? camera || screen : live.some(({ muted }) => !muted);
      const showsVideo = sendsVideo && live.length > 0 && video.videoWidth > 0;
      tile.dataset.video = String(showsVideo);
      tile.dataset.connection = mesh.peers.get(id)?.state ?? "";
      tile.dataset.mirrored = String(own && camera && !screen);
      tile.dataset.screen = String(screen);
      video.ariaLabel = `${screen ? "Screen" : "Video"} of ${own ? "yourself" : name}`;
      video.ariaHidden = String(!showsVideo);
      avatar.textContent = [...name][0]?.toUpperCase() ?? "?";
      label.replaceChildren(element("bdi", {}, name), own ? " (you)" : "");
      if (microphone) label.append(icon("microphone"), element("span", { className: "visually-hidden" }, ", microphone on"));
    }
    arrange();
  });

  /** Sets the size of the tiles, for the number of columns that makes them largest. */
  const arrange = () => {
    const box = list.getBoundingClientRect();
    // A shared screen must be readable: its tile is large where the height allows it.
    const large = [...tiles.values()].find(({ tile: { dataset } }) => {
      return box.height >= LARGE_TILE_MIN_HEIGHT && dataset.screen === "true" && dataset.video === "true" && dataset.id !== room.id;
    });
    for (const entry of tiles.values()) entry.tile.classList.toggle("large", entry === large);
    const count = tiles.size - (large ? 1 : 0);
    const gap = parseFloat(getComputedStyle(list).columnGap);
    let [width, height] = [0, 0];
    for (let columns = 1; columns <= count; columns += 1) {
      const rows = Math.ceil(count / columns);
      const cellWidth = (box.width - gap * (columns - 1)) / columns;
      const available = large ? box.height * SMALL_TILES_SHARE - gap : box.height;
      const cellHeight = (available - gap * (rows - 1)) / rows;
      const fitting = [Math.min(cellWidth, cellHeight * MAX_ASPECT), Math.min(cellHeight, cellWidth / MIN_ASPECT)];
      // Of two arrangements of about the same area, prefer the one with more columns: it looks less like a list.
      if (fitting[0] * fitting[1] > width * height * SAME_AREA) [width, height] = fitting;
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

/** Plays a stream. If the browser forbids sound before the user has interacted with the page, the stream is
 * muted until then.
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
