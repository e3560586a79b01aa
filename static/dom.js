// Elements, built from tags, properties and text: text never becomes markup.

/** How near its end a list counts as scrolled to the end, in px. */
const AT_END_PX = 40;
/** The most text that a list keeps, in UTF-16 code units. */
export const MAX_TEXT = 2 ** 20;
/** How many messages "On the wire" keeps. */
export const MAX_MESSAGES = 500;
/** How long a throttled function waits for further calls, in ms. */
const THROTTLE_MS = 30;

/** The element of the page with this id.
 * @param {string} id
 * @returns {any} */
export const $ = (id) => document.getElementById(id);

/** Creates an element.
 * @template {keyof HTMLElementTagNameMap} Tag
 * @param {Tag} tag
 * @param {Record<string, any>} [properties] assigned to it; `dataset` entry by entry
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

/** Appends items to a list of at most `limit` and of `MAX_TEXT`, and scrolls to them if the list was at its end.
 * @param {HTMLElement} list
 * @param {HTMLElement[]} items
 * @param {number} limit */
export function append(list, items, limit) {
  keepAtEnd(list, () => {
    list.append(...items);
    let size = 0;
    [...list.children].reverse().forEach((item, index) => {
      size += (/** @type {HTMLElement} */ (item).dataset.text ?? item.textContent ?? "").length;
      if (index >= limit || (index > 0 && size > MAX_TEXT)) item.remove();
    });
  });
}

/** @param {Element} list */
const isAtEnd = (list) => list.scrollHeight - list.scrollTop - list.clientHeight < AT_END_PX;

/** Changes what a list shows. A list that was scrolled to its end is afterwards, too.
 * @param {Element | null} list
 * @param {() => void} change */
export function keepAtEnd(list, change) {
  const atEnd = list && isAtEnd(list);
  change();
  if (atEnd) list.scrollTop = list.scrollHeight;
}

/** Keeps a list at its end while its size changes, as by a phone's keyboard or by becoming visible.
 * @param {HTMLElement} list */
export function stayAtEnd(list) {
  let [atEnd, size] = [true, ""];
  const measure = () => `${list.clientWidth} ${list.clientHeight}`;
  on(list, "scroll", () => {
    // Before the observer knows a new size, the list need not be at its end.
    if (measure() === size) atEnd = isAtEnd(list);
  });
  new ResizeObserver(() => {
    size = measure();
    if (atEnd) list.scrollTop = list.scrollHeight;
  }).observe(list);
}

/** An element with a time, by default the current one.
 * @param {Intl.DateTimeFormatOptions} options
 * @param {Date} [date] */
export function time(options, date = new Date()) {
  return element("time", { dateTime: date.toISOString(), title: date.toLocaleString() }, date.toLocaleString([], options));
}

/** A setting that the browser keeps, or this tab (`session`). `null` if there is none or storage is forbidden.
 * @param {string} key
 * @param {"local" | "session"} [storage] */
export function recall(key, storage = "local") {
  try {
    return window[`${storage}Storage`].getItem(key);
  } catch {
    return null;
  }
}

/** Keeps a setting. If storage is forbidden, it lasts as long as the page.
 * @param {string} key
 * @param {string} value
 * @param {"local" | "session"} [storage] */
export function remember(key, value, storage = "local") {
  try {
    window[`${storage}Storage`].setItem(key, value);
  } catch {
    // As said above.
  }
}

/** Adds a listener for several event types.
 * @param {any} target
 * @param {string} types separated by spaces
 * @param {(event: any) => void} listener
 * @param {AddEventListenerOptions} [options] */
export function on(target, types, listener, options) {
  for (const type of types.split(" ")) target.addEventListener(type, listener, options);
}

/** Runs a function once for all calls within `THROTTLE_MS`.
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

/** A session id, shortened for display.
 * @param {string} id */
export function shortId(id) {
  return id.length === 36 ? id.slice(0, 8) : id;
}
