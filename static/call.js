// The call: buttons for camera, microphone and screen, and a tile for each person.

import { $, element, icon, on, throttle } from "./dom.js";
import { hue } from "./people.js";

/** @import { RoomContext } from "./people.js" */

/** Enough video for a tile, and little enough to send to each peer. */
const CAMERA_CONSTRAINTS = { width: { ideal: 640 }, height: { ideal: 360 }, frameRate: { ideal: 24 } };
/** @typedef {"microphone" | "camera" | "screen"} Device */

/** The limits of a tile's aspect ratio. */
const [MIN_ASPECT, MAX_ASPECT] = [4 / 3, 16 / 9];
/** The height that allows a large tile, in px, and the share of it that `page.css` leaves to the others. */
const [LARGE_HEIGHT, SMALL_SHARE] = [320, 0.3];

/** @param {RoomContext} context */
export function startCall(context) {
  showTiles(context, sendMedia(context));
}

/** The buttons. They send one audio and one video track at most: the screen replaces the camera.
 * @param {RoomContext} context
 * @returns {MediaStream} what is being sent */
function sendMedia({ room, mesh, people }) {
  const outgoing = new MediaStream();
  /** @type {Record<Device, MediaStreamTrack | null>} */
  const tracks = { microphone: null, camera: null, screen: null };

  /** Sends a track in place of the current one of its kind.
   * @param {MediaStreamTrack | undefined} old @param {MediaStreamTrack | null} track */
  const send = (old, track) => {
    if (old === (track ?? undefined)) return;
    if (old && track) mesh.replaceTrack(old, track);
    else if (track) mesh.addTrack(track, outgoing);
    else if (old) mesh.removeTrack(old);
    if (old) outgoing.removeTrack(old);
    if (track) outgoing.addTrack(track);
  };

  const update = () => {
    send(outgoing.getAudioTracks()[0], tracks.microphone);
    send(outgoing.getVideoTracks()[0], tracks.screen ?? tracks.camera);
    const active = {
      microphone: tracks.microphone?.enabled === true,
      camera: tracks.camera !== null,
      screen: tracks.screen !== null,
    };
    for (const [name, isActive] of Object.entries(active)) $(name).ariaPressed = String(isActive);
    people.setProfile(active);
  };

  /** @param {Device} name */
  const stop = (name) => {
    tracks[name]?.stop();
    tracks[name] = null;
    update();
  };

  /** @type {Record<Device, () => Promise<MediaStream>>} */
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

  /** The devices that the browser asks the user about. */
  const requested = new Set();
  for (const name of /** @type {const} */ (["microphone", "camera", "screen"])) {
    $(name).addEventListener("click", async () => {
      if (requested.has(name)) return;
      const track = tracks[name];
      if (track && name !== "microphone") return stop(name);
      if (track) {
        // A muted device stays open, so that unmuting takes no time.
        track.enabled = !track.enabled;
        return update();
      }
      requested.add(name);
      try {
        const [newTrack] = (await requestStream[name]()).getTracks();
        tracks[name] = newTrack;
        // It was unplugged, or ended with the browser's own button.
        newTrack.addEventListener("ended", () => stop(name));
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

/** Why a device is missing, and what to do.
 * @param {Device} name @param {any} error */
function explain(name, error) {
  if (!isSecureContext) {
    const local = `http://localhost${location.port && `:${location.port}`}/`;
    return `Browsers allow camera, microphone and screen only over https or on localhost: use https, or open ${
      local} on the server's machine. Everything else works.`;
  }
  if (name === "screen" && !navigator.mediaDevices?.getDisplayMedia) {
    return "This browser cannot share a screen: use another one.";
  }
  switch (error?.name) {
    case "NotAllowedError":
      return name === "screen"
        ? "You or the system denied sharing: press the button to try again."
        : `This page may not use the ${name}: allow it next to the address, then try again.`;
    case "NotFoundError":
      return `No ${name} found: connect one, or take part without.`;
    case "NotReadableError":
      return `Another program may use the ${name}: close it, then try again.`;
    default:
      return `No ${name}: ${error?.message ?? "this browser does not support it"}`;
  }
}

/** The tiles, as large as fits.
 * @param {RoomContext} context @param {MediaStream} outgoing */
function showTiles({ room, mesh, people }, outgoing) {
  /** @type {Map<string, Record<"tile" | "avatar" | "label", HTMLElement> & { video: HTMLVideoElement }>} */
  const tiles = new Map();
  /** @type {Map<string, MediaStream>} By peer. */
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
      // A profile says what is sent; `muted` can be wrong in Chromium.
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
      if (microphone) label.append(icon("microphone"), element("span", { className: "sr-only" }, ", microphone on"));
    }
    arrange();
  });

  /** Chooses the number of columns that makes the tiles largest. */
  const arrange = () => {
    const box = list.getBoundingClientRect();
    // A shared screen must be readable: its tile is large if the height allows it.
    const large = [...tiles.values()].find(({ tile: { dataset } }) => {
      return box.height >= LARGE_HEIGHT && dataset.screen === "true"
        && dataset.video === "true" && dataset.id !== room.id;
    });
    for (const entry of tiles.values()) entry.tile.classList.toggle("large", entry === large);
    const count = tiles.size - (large ? 1 : 0);
    const gap = parseFloat(getComputedStyle(list).columnGap);
    let [width, height] = [0, 0];
    for (let columns = 1; columns <= count; columns += 1) {
      const rows = Math.ceil(count / columns);
      const cellWidth = (box.width - gap * (columns - 1)) / columns;
      const cellHeight = ((large ? box.height * SMALL_SHARE - gap : box.height) - gap * (rows - 1)) / rows;
      const fitting = [Math.min(cellWidth, cellHeight * MAX_ASPECT), Math.min(cellHeight, cellWidth / MIN_ASPECT)];
      // At about the same area, prefer more columns: they look less like a list.
      if (fitting[0] * fitting[1] > width * height * 0.95) [width, height] = fitting;
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

/** Plays a stream, muted until the user touches the page if the browser requires that.
 * @param {HTMLVideoElement} video @param {MediaStream | null} stream */
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
