// DOM helpers. They build elements from tags, properties and text, so that text never becomes markup.

/** How close to its end a list counts as scrolled to the end, in CSS pixels. */
const AT_END_PX = 40;
/** The shortest time between two runs of a throttled function, in ms: many events come at once, and each
 * run redraws a part of the page. */
const THROTTLE_MS = 30;

/** The element of the page with this id.
 * @param {string} id
 * @returns {any} */
export const $ = (id) => document.getElementById(id);

/** Creates an element.
 * @template {keyof HTMLElementTagNameMap} Tag
 * @param {Tag} tag
 * @param {Record<string, any>} [properties] assigned to the element; the entries of `dataset` become data attributes
 * @param {...(Node | string)} children */
export function element(tag, { dataset = {}, ...properties } = {}, ...children) {
  const created = Object.assign(document.createElement(tag), properties);
  Object.assign(created.dataset, dataset);
  created.append(...children);
  return created;
}

/** An icon of the sprite in index.html, hidden from screen readers.
 * @param {string} name */
export function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  use.setAttribute("href", `#i-${name}`);
  svg.append(use);
  return svg;
}

/** Appends an item to a list, and removes the oldest items beyond `limit`. Scrolls to the item if the list
 * was scrolled to its end.
 * @param {HTMLElement} list
 * @param {HTMLElement} item
 * @param {number} limit */
export function append(list, item, limit) {
  const atEnd = list.scrollHeight - list.scrollTop - list.clientHeight < AT_END_PX;
  list.append(item);
  while (list.children.length > limit) list.firstElementChild?.remove();
  if (atEnd) list.scrollTop = list.scrollHeight;
}

/** Adds a listener for several event types.
 * @param {any} target
 * @param {string} types separated by spaces
 * @param {(event: any) => void} listener
 * @param {AddEventListenerOptions} [options] */
export function on(target, types, listener, options) {
  for (const type of types.split(" ")) target.addEventListener(type, listener, options);
}

/** Limits how often a function runs: the calls within `THROTTLE_MS` cause one run, at their end.
 * @param {() => void} run */
export function throttle(run) {
  let scheduled = false;
  return () => {
    if (scheduled) return;
    scheduled = true;
    setTimeout(() => {
      scheduled = false;
      run();
    }, THROTTLE_MS);
  };
}

/** A received value as JSON, for display.
 * @param {unknown} data
 * @param {number} [indent] */
export function json(data, indent) {
  try {
    return JSON.stringify(data, null, indent) ?? "";
  } catch {
    return "(nested too deeply to show)";
  }
}

/** A session id shortened for display. Other names, such as `server`, stay as they are.
 * @param {string} id */
export function shortId(id) {
  return id.length === 36 ? id.slice(0, 8) : id;
}
