// The tiles of the call, one for each person, as large as fits.

import { $, element, icon, on, throttle } from "./dom.js";

/** @import { RoomContext } from "./people.js" */

/** @typedef {{ tile: HTMLElement, video: HTMLVideoElement, avatar: HTMLElement, label: HTMLElement,
 *   buttons: Record<"pin" | "popout" | "full", HTMLButtonElement> }} Tile */

/** The limits of a tile's aspect ratio. */
const [MIN_ASPECT, MAX_ASPECT] = [4 / 3, 16 / 9];
/** Beside a large tile, the others take between these shares of the space. */
const [MIN_SHARE, MAX_SHARE] = [0.22, 0.34];
/** The height of the smallest tile beside a large one, in px, and the height below which a tile has no room for
 * buttons. */
const [MIN_HEIGHT, SMALL_HEIGHT] = [72, 110];
/** How long a click waits for a second one, in ms. */
const DOUBLE_CLICK_MS = 250;
/** What to do if the browser blocks sound. */
const HEAR_HINT = "Click anywhere, or press a key, to hear the others.";
/** The key of the own tile, which stays when the session's id changes. */
const OWN = "";

/** @param {RoomContext} context @param {MediaStream} outgoing */
export function showTiles({ room, mesh, people }, outgoing) {
  /** @type {Map<string, Tile>} */
  const tiles = new Map();
  /** @type {Map<string, MediaStream>} By peer. */
  const streams = new Map();
  const list = $("tiles");
  const keepAwake = wakeLock();
  /** @type {string | null} The tile that the user has made large. */
  let pinned = null;
  /** @type {string | null} The screen that the user has made small. */
  let unpinned = null;

  /** The tile that is large: a screen, which must be readable, unless the user has chosen another. */
  const largeKey = () => {
    if (tiles.size < 2) return null;
    if (pinned !== null && tiles.has(pinned)) return pinned;
    const screens = [...tiles].filter(([key, { tile: { dataset } }]) => {
      return key !== OWN && key !== unpinned && dataset.screen === "true" && dataset.video === "true";
    });
    return screens.at(-1)?.[0] ?? null;
  };

  /** @param {string} key */
  const pin = (key) => {
    const isLarge = key === largeKey();
    unpinned = isLarge ? key : null;
    pinned = isLarge ? null : key;
    arrange();
  };

  /** @param {string} key */
  const add = (key) => {
    const video = element("video", { autoplay: true, playsInline: true, muted: key === OWN });
    const avatar = element("span", { className: "avatar", ariaHidden: "true" });
    const label = element("span", { className: "label" });
    const button = (/** @type {string} */ name, /** @type {() => void} */ onclick) => {
      return element("button", { type: "button", className: name, onclick }, icon(name));
    };
    const buttons = {
      pin: button("pin", () => pin(key)),
      popout: button("popout", () => togglePopout(video)),
      full: button("full", () => toggleFullScreen(tile, video)),
    };
    const tools = element("span", { className: "tools" }, ...Object.values(buttons));
    const tile = element("li", {}, video, avatar, label, tools);
    if (key === OWN) list.prepend(tile);
    else list.append(tile);
    tiles.set(key, { tile, video, avatar, label, buttons });
    // The speaker may be gone: then the browser stays with its default.
    if (list.dataset.speaker) video.setSinkId(list.dataset.speaker).catch(() => {});
    on(video, "resize playing emptied enterpictureinpicture leavepictureinpicture", show);

    /** @type {ReturnType<typeof setTimeout> | undefined} */
    let click;
    on(tile, "click", ({ target }) => {
      clearTimeout(click);
      if (!tools.contains(target) && !document.fullscreenElement) click = setTimeout(() => pin(key), DOUBLE_CLICK_MS);
    });
    on(tile, "dblclick", ({ target }) => {
      clearTimeout(click);
      if (!tools.contains(target)) toggleFullScreen(tile, video);
    });
  };

  const show = throttle(() => {
    // A connection can outlast its session in the room.
    const keys = [...(room.id ? [OWN] : []), ...mesh.peers.keys()];
    for (const [key, { tile, video }] of tiles) {
      if (keys.includes(key)) continue;
      video.srcObject = null;
      tile.remove();
      tiles.delete(key);
    }
    for (const key of keys) if (!tiles.has(key)) add(key);
    let inCall = false;
    for (const [key, { tile, video, avatar, label, buttons }] of tiles) {
      const own = key === OWN;
      const id = own ? (room.id ?? "") : key;
      const { microphone, camera, screen } = people.profile(id);
      const name = people.name(id);
      const stream = own ? outgoing : (streams.get(id) ?? null);
      if (video.srcObject !== stream) play(video, stream);
      const live = stream?.getVideoTracks().filter(({ readyState }) => readyState === "live") ?? [];
      // A profile says what is sent; `muted` can be wrong in Chromium.
      const sendsVideo = screen || (camera ?? live.some(({ muted }) => !muted));
      const showsVideo = sendsVideo && live.length > 0 && video.videoWidth > 0;
      inCall ||= showsVideo || microphone;
      Object.assign(tile.dataset, {
        id,
        video: showsVideo,
        connection: mesh.peers.get(id)?.state ?? "",
        mirrored: own && !screen && live[0]?.getSettings().facingMode !== "environment",
        screen,
      });
      tile.style.setProperty("--hue", String(people.hue(id)));
      video.ariaLabel = `${screen ? "Screen" : "Video"} of ${own ? "yourself" : name}`;
      video.ariaHidden = String(!showsVideo);
      avatar.textContent = [...name][0]?.toUpperCase() ?? "?";
      label.replaceChildren(element("bdi", {}, name), own ? " (you)" : "");
      if (microphone) label.append(icon("microphone"), element("span", { className: "sr-only" }, ", microphone on"));
      if (unpinned === key && !screen) unpinned = null;

      describeButton(buttons.pin, "Large", name);
      describeButton(buttons.popout, "Picture in picture", name, document.pictureInPictureElement === video);
      describeButton(buttons.full, "Full screen", name, document.fullscreenElement === tile);
      buttons.popout.hidden = !showsVideo || !document.pictureInPictureEnabled;
      buttons.full.hidden = !showsVideo;
    }
    keepAwake(inCall);
    arrange();
  });

  /** Chooses the sizes that make the tiles largest. */
  const arrange = () => {
    const { width, height } = list.getBoundingClientRect();
    const gap = parseFloat(getComputedStyle(list).columnGap);
    const key = largeKey();
    for (const [other, { tile, buttons }] of tiles) {
      tile.classList.toggle("large", other === key);
      buttons.pin.ariaPressed = String(other === key);
    }
    const large = key === null ? undefined : tiles.get(key);
    let size = fit(tiles.size, width, height, gap);
    let scrolls = false;
    list.classList.remove("beside");
    if (large) {
      const { videoWidth, videoHeight } = large.video;
      const layout = besideLarge(videoWidth / videoHeight || MAX_ASPECT, width, height, gap);
      list.classList.toggle("beside", layout.beside);
      list.style.setProperty("--large-width", `${Math.floor(layout.width)}px`);
      list.style.setProperty("--large-height", `${Math.floor(layout.height)}px`);
      size = layout.beside
        ? fit(tiles.size - 1, width - layout.width - gap, height, gap)
        : fit(tiles.size - 1, width, height - layout.height - gap, gap);
      const least = leastHeight(height);
      // Rounding may take a fraction of a pixel.
      scrolls = size[1] < least - 1;
      if (scrolls) size = [least * MIN_ASPECT, least];
    }
    list.classList.toggle("scrolls", scrolls);
    list.classList.toggle("small", size[1] < SMALL_HEIGHT);
    list.style.setProperty("--width", `${Math.floor(size[0])}px`);
    list.style.setProperty("--height", `${Math.floor(size[1])}px`);
  };
  new ResizeObserver(arrange).observe(list);

  on(room, "peerjoin peerleave statechange", show);
  on(mesh, "connect disconnect statechange", show);
  on(document, "fullscreenchange visibilitychange", show);
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

/** The largest width and height of a tile with which this number of tiles fits.
 * @param {number} count @param {number} width @param {number} height @param {number} gap */
function fit(count, width, height, gap) {
  let best = [0, 0];
  for (let columns = 1; columns <= count; columns += 1) {
    const rows = Math.ceil(count / columns);
    const cellWidth = (width - gap * (columns - 1)) / columns;
    const cellHeight = (height - gap * (rows - 1)) / rows;
    const tile = [Math.min(cellWidth, cellHeight * MAX_ASPECT), Math.min(cellHeight, cellWidth / MIN_ASPECT)];
    // At about the same area, prefer more columns: they look less like a list.
    if (tile[0] * tile[1] > best[0] * best[1] * 0.95) best = tile;
  }
  return best;
}

/** The height of the smallest tile beside a large one.
 * @param {number} height of all */
const leastHeight = (height) => Math.min(MIN_HEIGHT, height / 3);

/** The size of a large tile, and whether the others are beside it or below: where its picture is larger.
 * @param {number} aspect of the picture @param {number} width @param {number} height @param {number} gap */
function besideLarge(aspect, width, height, gap) {
  /** Leaves what the picture does not need, within the limits.
   * @param {number} all @param {number} needed */
  const leave = (all, needed) => {
    return Math.min(Math.max(needed, all * (1 - MAX_SHARE)), all * (1 - MIN_SHARE)) - gap;
  };
  const below = Math.min(leave(height, width / aspect), height - leastHeight(height) - gap);
  const beside = leave(width, height * aspect);
  return Math.min(width, below * aspect) >= Math.min(beside, height * aspect)
    ? { width, height: below, beside: false }
    : { width: beside, height, beside: true };
}

/** @param {HTMLButtonElement} button @param {string} action @param {string} name of the person
 * @param {boolean} [pressed] */
function describeButton(button, action, name, pressed) {
  button.title = action;
  button.ariaLabel = `${action}: ${name}`;
  if (pressed !== undefined) button.ariaPressed = String(pressed);
}

/** @param {HTMLElement} tile @param {any} video */
function toggleFullScreen(tile, video) {
  if (document.fullscreenElement) document.exitFullscreen().catch(() => {});
  else if (tile.requestFullscreen) tile.requestFullscreen().catch(() => {});
  // An iPhone shows only videos in full screen.
  else video.webkitEnterFullscreen?.();
}

/** @param {HTMLVideoElement} video */
function togglePopout(video) {
  const done = document.pictureInPictureElement === video
    ? document.exitPictureInPicture()
    : video.requestPictureInPicture();
  // The browser may refuse, or the video end meanwhile.
  done.catch(() => {});
}

/** Keeps the screen of a phone on.
 * @returns {(inCall: boolean) => void} */
function wakeLock() {
  /** @type {Promise<WakeLockSentinel | undefined> | null} */
  let lock = null;
  on(document, "visibilitychange", () => {
    // The browser has released it with the page hidden.
    lock = null;
  });
  return (inCall) => {
    if (!inCall) {
      lock?.then((sentinel) => sentinel?.release());
      lock = null;
    } else if (document.visibilityState === "visible") {
      // The browser may refuse, as with a low battery.
      lock ??= navigator.wakeLock?.request().catch(() => undefined) ?? null;
    }
  };
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
    video.dataset.blocked = "";
    video.play().catch(() => {});
    $("call-hint").textContent ||= HEAR_HINT;
    on(window, "click keydown", unmute);
  }
}

/** Unmutes the videos that the browser has blocked. */
function unmute() {
  for (const type of ["click", "keydown"]) window.removeEventListener(type, unmute);
  for (const video of document.querySelectorAll("video")) {
    if (video.dataset.blocked === undefined) continue;
    video.muted = false;
    delete video.dataset.blocked;
  }
  if ($("call-hint").textContent === HEAR_HINT) $("call-hint").textContent = "";
}
