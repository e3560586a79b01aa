// The call: what the user sends, with the buttons for microphone, camera and screen.

import { $, on, throttle } from "./dom.js";
import { DEVICES } from "./people.js";
import { showTiles } from "./tiles.js";

/** @import { Mesh } from "./anteroom.js" */
/** @import { Device, RoomContext } from "./people.js" */

/** Enough video for a tile, and little enough to send to each peer. */
const CAMERA_CONSTRAINTS = { width: { ideal: 640 }, height: { ideal: 360 }, frameRate: { ideal: 24 } };
/** The bits per second of all copies of the video together, which an uplink at home has, and of one copy. */
const CAMERA_RATES = { all: 3_000_000, min: 120_000, max: 900_000 };
const SCREEN_RATES = { all: 6_000_000, min: 400_000, max: 2_500_000 };

/** The keys that press a button, together with Alt: they work while the user types, and a single letter would
 * be pressed by speech input (WCAG 2.1.4).
 * @type {Record<string, Device>} */
const KEYS = { KeyM: "microphone", KeyV: "camera" };

/** @param {RoomContext} context */
export function startCall(context) {
  showTiles(context, sendMedia(context));
  const { room, mesh, people } = context;
  // Before the first microphone is on, nobody is heard.
  const load = async () => {
    if (![room.id ?? "", ...mesh.peers.keys()].some((id) => people.profile(id).microphone)) return;
    people.removeEventListener("change", load);
    const { showSpeakers } = await import("./speaking.js");
    showSpeakers(context);
  };
  people.addEventListener("change", load);
}

/** The buttons. They send one audio and one video track at most: the screen replaces the camera.
 * @param {RoomContext} context
 * @returns {MediaStream} what is being sent */
function sendMedia({ room, mesh, people }) {
  const outgoing = new MediaStream();
  /** @type {Record<Device, MediaStreamTrack | null>} */
  const tracks = { microphone: null, camera: null, screen: null };
  /** @type {Record<string, string>} The ids of the chosen devices. */
  const chosen = {};

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
    for (const name of DEVICES) {
      const button = $(name);
      const pressed = String(active[name]);
      // A screen reader reads the state only of a button that has the focus.
      if (button.ariaPressed !== pressed && button !== document.activeElement) {
        $("announcement").textContent = `${button.textContent} ${active[name] ? "on" : "off"}`;
      }
      button.ariaPressed = pressed;
    }
    people.setProfile(active);
    limit();
    showDevices();
  };

  const limit = throttle(() => limitBitRates(mesh, tracks.screen !== null));
  on(mesh, "connect disconnect statechange", limit);

  /** @param {Device} name */
  const stop = (name) => {
    wanted.delete(name);
    tracks[name]?.stop();
    tracks[name] = null;
    update();
  };

  /** @param {Device} name @param {string} [id] of the chosen device
   * @returns {Promise<MediaStreamTrack>} */
  const requestTrack = async (name, id) => {
    const { mediaDevices } = navigator;
    // Chromium may ignore a device that is only ideal.
    const deviceId = id && { exact: id };
    try {
      const stream = name === "screen" ? mediaDevices.getDisplayMedia({ video: true }) : mediaDevices.getUserMedia(
        name === "microphone" ? { audio: { deviceId } } : { video: { ...CAMERA_CONSTRAINTS, deviceId } },
      );
      return (await stream).getTracks()[0];
    } catch (/** @type {any} */ error) {
      if (error?.name !== "OverconstrainedError" || !id) throw error;
      // The chosen device is gone.
      if (chosen[name] === id) delete chosen[name];
      return requestTrack(name);
    }
  };

  /** The devices that the user wants on, and those that are opening: the browser may ask the user. */
  const [wanted, opening] = [new Set(), new Set()];
  /** Opens a device, instead of the open one if there is one: the chosen device, or another without it. While it
   * opens, the user may switch it off and on, choose another one, or leave the room.
   * @param {Device} name */
  const open = async (name) => {
    wanted.add(name);
    if (opening.has(name)) return;
    opening.add(name);
    const old = tracks[name];
    // Many phones open only one camera at a time.
    old?.stop();
    /** @type {MediaStreamTrack | undefined} */
    let track;
    let id;
    let hint = "";
    do {
      track?.stop();
      track = undefined;
      id = chosen[name];
      try {
        track = await requestTrack(name, id);
        hint = "";
      } catch (error) {
        hint = explain(name, error);
      }
    } while (wanted.has(name) && chosen[name] && chosen[name] !== id);
    opening.delete(name);
    if (!wanted.has(name)) return track?.stop();
    $("call-hint").textContent = hint;
    if (!track) return stop(name);
    tracks[name] = track;
    track.enabled = old?.enabled ?? true;
    if (name === "screen") track.contentHint = "detail";
    on(track, "ended", () => ended(name, track));
    update();
  };

  /** A device was unplugged: open another. Or the user has ended it with the browser's own button.
   * @param {Device} name @param {MediaStreamTrack} track */
  const ended = async (name, track) => {
    const { deviceId } = track.getSettings();
    const { listDevices } = await import("./devices.js");
    const devices = await listDevices();
    if (tracks[name] !== track || opening.has(name)) return;
    // Without a list, nobody knows: the user may have wanted it off.
    const isGone = devices.length > 0 && devices.every((device) => device.deviceId !== deviceId);
    if (name === "screen" || !isGone) return stop(name);
    await open(name);
    const { label } = tracks[name] ?? {};
    if (label) $("call-hint").textContent = `The ${name} was disconnected. Now you use ${label}.`;
  };

  /** @type {Promise<() => void> | undefined} */
  let menu;
  // Before the first device is open, its list has no names.
  const showDevices = async () => {
    if (outgoing.getTracks().length > 0) {
      menu ??= import("./devices.js").then(({ startDevices }) => startDevices(tracks, (name, id) => {
        chosen[name] = id;
        if (tracks[name]) open(name);
      }));
    }
    (await menu)?.();
  };

  const close = () => {
    for (const name of DEVICES) stop(name);
    disable("The room is closed: join again to use microphone, camera and screen.");
  };
  room.addEventListener("statechange", () => {
    if (room.state === "closed") close();
  });

  for (const name of DEVICES) {
    $(name).addEventListener("click", () => {
      const track = tracks[name];
      if (!track) return open(name);
      if (name !== "microphone") return stop(name);
      // A muted device stays open, so that unmuting takes no time.
      track.enabled = !track.enabled;
      update();
    });
  }
  document.addEventListener("keydown", (event) => {
    const { altKey, ctrlKey, metaKey, shiftKey, repeat, code } = event;
    if (!KEYS[code] || !altKey || ctrlKey || metaKey || shiftKey) return;
    event.preventDefault();
    if (!repeat) $(KEYS[code]).click();
  });
  if (!navigator.mediaDevices) disable(explain("camera", null));
  return outgoing;
}

/** @param {string} reason why nothing can be sent */
function disable(reason) {
  for (const name of DEVICES) $(name).disabled = true;
  $("call-hint").textContent = reason;
}

/** Divides the uplink among the peers: each gets a copy of the video. A camera's picture becomes smaller with
 * its bit rate; a screen keeps its size, so that text stays readable.
 * @param {Mesh} mesh @param {boolean} screen */
function limitBitRates(mesh, screen) {
  const { all, min, max } = screen ? SCREEN_RATES : CAMERA_RATES;
  const maxBitrate = Math.round(Math.min(max, Math.max(min, all / mesh.peers.size)));
  const scaleResolutionDownBy = screen ? 1 : Math.sqrt(max / maxBitrate);
  for (const { pc } of mesh.peers.values()) {
    for (const { sender, receiver } of pc.getTransceivers()) {
      if (receiver.track.kind !== "video") continue;
      const parameters = sender.getParameters();
      const [encoding] = parameters.encodings ?? [];
      const same = encoding?.maxBitrate === maxBitrate && encoding.scaleResolutionDownBy === scaleResolutionDownBy;
      if (!encoding || same) continue;
      Object.assign(encoding, { maxBitrate, scaleResolutionDownBy });
      parameters.degradationPreference = screen ? "maintain-resolution" : "balanced";
      // It fails for a connection that closes, and then no longer matters.
      sender.setParameters(parameters).catch(() => {});
    }
  }
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

