// The menu of microphones, cameras and speakers.

import { $, on } from "./dom.js";

/** @typedef {"microphone" | "camera"} Input */

/** The kind of the devices in each list. */
const KINDS = { microphone: "audioinput", camera: "videoinput", speaker: "audiooutput" };
const canChooseSpeaker = "setSinkId" in HTMLMediaElement.prototype;

/** The devices, none if the browser does not tell. */
export async function listDevices() {
  try {
    return await navigator.mediaDevices.enumerateDevices();
  } catch {
    return [];
  }
}

/** Fills the menu, whose button is visible while there is a choice.
 * @param {Record<Input, MediaStreamTrack | null>} tracks the open devices
 * @param {(name: Input, id: string) => void} choose
 * @returns {() => void} to be called when other devices are open */
export function startDevices(tracks, choose) {
  const refresh = async () => {
    const devices = await listDevices();
    let hasChoice = false;
    for (const [name, kind] of Object.entries(KINDS)) {
      const select = $(`${name}-device`);
      // Devices have no label before the user has permitted their use.
      const found = devices.filter((device) => device.kind === kind && device.label);
      const options = found.map(({ label, deviceId }) => new Option(shortLabel(label), deviceId));
      const key = JSON.stringify(found);
      // The options of an open list must not move under the pointer.
      if (select.dataset.key !== key) select.replaceChildren(...options);
      select.dataset.key = key;
      const id = name === "speaker" ? $("tiles").dataset.speaker : tracks[/** @type {Input} */ (name)]?.getSettings().deviceId;
      if (id) select.value = id;
      const visible = found.length > 1 && (name !== "speaker" || canChooseSpeaker);
      select.parentElement.hidden = !visible;
      hasChoice ||= visible;
    }
    $("devices-button").hidden = !hasChoice;
  };

  for (const name of Object.keys(KINDS)) {
    on($(`${name}-device`), "change", ({ target: { value } }) => {
      if (name !== "speaker") return choose(/** @type {Input} */ (name), value);
      // Later tiles take it from here.
      $("tiles").dataset.speaker = value;
      for (const video of document.querySelectorAll("video")) video.setSinkId(value).catch(() => {});
    });
  }
  const menu = $("devices");
  on(menu, "beforetoggle", ({ newState }) => {
    if (newState !== "open") return;
    const { left, top } = $("devices-button").getBoundingClientRect();
    menu.style.setProperty("--left", `${Math.round(left)}px`);
    menu.style.setProperty("--bottom", `${Math.round(innerHeight - top)}px`);
  });
  navigator.mediaDevices?.addEventListener("devicechange", refresh);
  return refresh;
}

/** A label without the numbers that browsers add for USB, and with the side of a phone's camera first.
 * @param {string} label */
function shortLabel(label) {
  return label.replace(/ \([\da-f]{4}:[\da-f]{4}\)$/, "")
    .replace(/^camera2? (\d+), facing (front|back)$/, (_, number, side) => {
      return `${side === "front" ? "Front" : "Back"} camera (${number})`;
    });
}
