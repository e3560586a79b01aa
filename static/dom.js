// Elements, made of tags, properties and text: nothing here can turn text into markup.

/** The element of index.html that has this id.
 * @param {string} id
 * @returns {any} */
export const $ = (id) => document.getElementById(id);

/** Makes an element.
 * @template {keyof HTMLElementTagNameMap} Tag
 * @param {Tag} tag
 * @param {Record<string, any>} [properties] set on the element; `dataset` entry by entry
 * @param {...(Node | string)} children */
export function element(tag, { dataset = {}, ...properties } = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  Object.assign(made.dataset, dataset);
  made.append(...children);
  return made;
}

/** An icon of the sprite in index.html, which says nothing to a screen reader.
 * @param {string} name */
export function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  use.setAttribute("href", `#i-${name}`);
  svg.append(use);
  return svg;
}

/** Puts an item at the end of a list of at most `limit`, and in view if the end was in view.
 * @param {HTMLElement} list
 * @param {HTMLElement} item
 * @param {number} limit */
export function append(list, item, limit) {
  const atEnd = list.scrollHeight - list.scrollTop - list.clientHeight < 40;
  list.append(item);
  while (list.children.length > limit) list.firstElementChild?.remove();
  if (atEnd) list.scrollTop = list.scrollHeight;
}

/** Listens to several types of events.
 * @param {any} target
 * @param {string} types with spaces between
 * @param {(event: any) => void} listener
 * @param {AddEventListenerOptions} [options] */
export function on(target, types, listener, options) {
  for (const type of types.split(" ")) target.addEventListener(type, listener, options);
}

/** Does something soon, once for however many times it is asked for meanwhile.
 * @param {() => void} work */
export function soon(work) {
  let waits = false;
  return () => {
    if (waits) return;
    waits = true;
    setTimeout(() => {
      waits = false;
      work();
    }, 30);
  };
}

/** What JSON makes of something that somebody has sent.
 * @param {unknown} data
 * @param {number} [indent] */
export function json(data, indent) {
  try {
    return JSON.stringify(data, null, indent) ?? "";
  } catch {
    return "(nested too deeply to be shown)";
  }
}

/** The beginning of a session's id, as people read it.
 * @param {string} id */
export function short(id) {
  return id.length === 36 ? id.slice(0, 8) : id;
}
