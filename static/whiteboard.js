// The whiteboard: what everyone draws, and where they point, in bytes and once a frame. Loaded when the user opens it.

import { $, element, on } from "./dom.js";

/** @import { RoomContext } from "./people.js" */

/** A message begins with its kind. DRAW has a line, which begins where the sender's last one ended, and POINT a point
 * alone. LEAVE takes the cursor away, CLEAR every line, and ASK wants the lines so far: LINES has each with its hue and
 * length. Numbers have 16 bits, and a point two of them. */
const [POINT, DRAW, LEAVE, CLEAR, ASK, LINES] = [1, 2, 3, 4, 5, 6];
/** The largest coordinate. */
const END = 65_535;
/** How many points a line has at most, and all lines: the oldest make place. */
const [MAX_LINE, MAX_POINTS] = [1000, 40_000];
/** How often a peer gets the lines at most, and how long one may take that was asked for them, in ms. */
const [ANSWER_MS, ASK_MS] = [2000, 1500];

/** A hue in degrees, and the coordinates of points.
 * @typedef {{ hue: number, points: number[] }} Line */

/** @type {Promise<(open: boolean) => void> | undefined} */
let board;

/** Opens or closes the whiteboard.
 * @param {RoomContext} context @param {boolean} open */
export async function showBoard(context, open) {
  board ??= createBoard(context);
  (await board)(open);
}

/** @param {RoomContext} context */
async function createBoard({ room, people }) {
  const canvas = element("canvas", { role: "img", ariaLabel: "Whiteboard" });
  const hint = element("p", { className: "hint" }, "Draw here: everyone who opens this sees it.");
  const clear = element("button", { type: "button", ariaLabel: "Clear the whiteboard for everyone" }, "Clear");
  const container = element("div", { id: "board" }, element("div", {}, canvas, hint, clear));
  const paper = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
  const dark = matchMedia("(prefers-color-scheme: dark)");
  /** @type {Line[]} A line that has come twice looks like one. */
  let lines = [];
  /** @type {Map<string, HTMLElement>} */
  const cursors = new Map();
  /** @type {Map<string, number>} When each peer was last sent the lines. */
  const answered = new Map();
  /** @type {string | undefined} The peer that was asked for the lines. */
  let asked;
  let hasAnswer = false;

  /** What reaches nobody is missed by nobody.
   * @param {string} receiver @param {number} kind @param {number[]} [numbers] */
  const send = (receiver, kind, numbers = []) => {
    if (room.peers.size === 0 || room.state === "closed") return;
    const view = new DataView(new ArrayBuffer(1 + 2 * numbers.length));
    view.setUint8(0, kind);
    numbers.forEach((number, index) => view.setUint16(1 + 2 * index, number));
    try {
      room.sendBytes(receiver, view);
    } catch {
      // Too much waits for a connection. Others will not see this.
    }
  };

  /** @param {number} hue @param {number[]} points */
  const add = (hue, points) => {
    const last = lines.findLast((line) => line.hue === hue)?.points ?? [];
    const fits = last.length + points.length <= 2 * MAX_LINE;
    if (fits && `${last.slice(-2)}` === `${points.slice(0, 2)}`) last.push(...points.slice(2));
    else lines.push({ hue, points });
    let count = lines.reduce((sum, line) => sum + line.points.length / 2, 0);
    while (count > MAX_POINTS) count -= (lines.shift()?.points.length ?? 0) / 2;
    schedule();
  };

  const paint = () => {
    const [width, height] = [canvas.clientWidth, canvas.clientHeight].map((size) => Math.round(size * devicePixelRatio));
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
    paper.clearRect(0, 0, width, height);
    paper.lineWidth = Math.max(2, width / 320);
    paper.lineCap = paper.lineJoin = "round";
    for (const { hue, points } of lines) {
      paper.strokeStyle = `oklch(${dark.matches ? 0.78 : 0.55} 0.15 ${hue})`;
      paper.beginPath();
      for (let i = 0; i < points.length; i += 2) paper.lineTo((points[i] / END) * width, (points[i + 1] / END) * height);
      paper.stroke();
    }
    hint.hidden = lines.length > 0;
  };

  // The own pointer: where it is, what it has drawn since the last message, and whether it has moved.
  let [position, drawn, moved, scheduled] = [/** @type {number[]} */ ([]), /** @type {number[]} */ ([]), false, false];
  const transmit = () => {
    if (!moved) return;
    send("all", drawn.length > 0 ? DRAW : POINT, drawn.length > 0 ? drawn : position);
    drawn = drawn.slice(-2);
    moved = false;
  };
  const schedule = () => {
    if (scheduled) return;
    scheduled = true;
    requestAnimationFrame(() => {
      scheduled = false;
      // What the connection cannot take now goes together later. Of positions, only the last one does.
      if (room.bufferedAmount === 0) transmit();
      paint();
      if (moved) schedule();
    });
  };
  /** @param {PointerEvent} event */
  const move = ({ clientX, clientY }) => {
    const { left, top, width, height } = canvas.getBoundingClientRect();
    const last = position;
    const shares = [(clientX - left) / width, (clientY - top) / height];
    position = shares.map((share) => Math.round(END * Math.min(1, Math.max(0, share))));
    moved = true;
    if (drawn.length > 0 && drawn.length < 2 * MAX_LINE) {
      drawn.push(...position);
      add(people.hue(room.id ?? ""), [...last, ...position]);
    }
    schedule();
  };
  on(canvas, "pointerdown", (event) => {
    if (event.button !== 0 || !event.isPrimary) return;
    canvas.setPointerCapture(event.pointerId);
    move(event);
    drawn = [...position];
    // A line to itself is a dot.
    move(event);
  });
  on(canvas, "pointermove", (event) => {
    const events = event.getCoalescedEvents?.() ?? [];
    if (event.isPrimary) (events.length > 0 ? events : [event]).forEach(move);
  });
  on(canvas, "pointerup pointercancel", ({ isPrimary }) => {
    if (!isPrimary) return;
    transmit();
    drawn = [];
  });
  const leave = () => {
    [drawn, moved] = [[], false];
    send("all", LEAVE);
  };
  on(canvas, "pointerleave", leave);

  /** @param {string} id @param {number[]} [point] nowhere without one */
  const moveCursor = (id, point) => {
    const cursor = cursors.get(id) ?? element("span", { className: "cursor" }, people.nameTag(id));
    if (!point) {
      cursor.remove();
      cursors.delete(id);
      return;
    }
    cursor.style.setProperty("--hue", String(people.hue(id)));
    cursor.style.translate = point.map((number, index) => `${(100 * number) / END}cq${"wh"[index]}`).join(" ");
    if (!cursors.has(id)) canvas.after(cursor);
    cursors.set(id, cursor);
  };

  /** Sends the lines, several in a message.
   * @param {string} id */
  const answer = (id) => {
    const now = performance.now();
    if (now - (answered.get(id) ?? -Infinity) < ANSWER_MS) return;
    answered.set(id, now);
    /** @type {number[]} */
    let numbers = [];
    lines.forEach(({ hue, points }, index) => {
      numbers.push(hue, points.length, ...points);
      if (numbers.length < 2 * MAX_LINE && index < lines.length - 1) return;
      send(id, LINES, numbers);
      numbers = [];
    });
  };
  /** @param {number[]} numbers */
  const addLines = (numbers) => {
    for (let at = 0; at < numbers.length; at += 2 + numbers[at + 1]) {
      const points = numbers.slice(at + 2, at + 2 + numbers[at + 1]);
      if (points.length < 2 || points.length % 2 > 0 || points.length > 2 * MAX_LINE) return;
      add(numbers[at] % 360, points);
    }
  };
  /** Asks one after the other for the lines, until one answers: who has just been lost does not.
   * @param {string[]} [ids] */
  const ask = (ids = [...room.peers.keys()].filter((id) => people.profile(id).board)) => {
    const [id, ...others] = ids;
    asked = id;
    if (!id) return;
    send(id, ASK);
    setTimeout(() => asked === id && !hasAnswer && ask(others), ASK_MS);
    hasAnswer = false;
  };

  // Anybody may send anything: what has another length is ignored.
  room.addEventListener("bytes", ({ detail: { sender, bytes } }) => {
    const [kind] = bytes;
    const view = new DataView(bytes.buffer);
    if (bytes.length % 2 === 0) return;
    const numbers = Array.from({ length: (bytes.length - 1) / 2 }, (_, index) => view.getUint16(1 + 2 * index));
    const isLine = numbers.length > 1 && numbers.length % 2 === 0 && numbers.length <= 2 * MAX_LINE;
    if (kind === DRAW && isLine) add(people.hue(sender), numbers);
    if ((kind === DRAW || kind === POINT) && isLine) moveCursor(sender, numbers.slice(-2));
    if (kind === LINES && sender === asked) {
      hasAnswer = true;
      addLines(numbers);
    }
    if (kind === LEAVE) moveCursor(sender);
    if (kind === CLEAR) lines = [];
    if (kind === ASK) answer(sender);
    schedule();
  });
  room.addEventListener("peerleave", ({ detail: { id } }) => {
    moveCursor(id);
    answered.delete(id);
    if (id === asked) ask();
  });
  room.addEventListener("statechange", ({ detail }) => {
    if (detail.state === "open" && !detail.resumed) ask();
  });
  on(clear, "click", () => {
    lines = [];
    send("all", CLEAR);
    schedule();
  });

  new ResizeObserver(paint).observe(canvas);
  on(window, "resize", paint);
  on(dark, "change", paint);
  const style = element("link", { rel: "stylesheet", href: "whiteboard.css" });
  const loaded = new Promise((resolve) => on(style, "load error", resolve));
  document.head.append(style);
  await loaded;

  return (/** @type {boolean} */ open) => {
    if (open) $("tiles").before(container);
    else container.remove();
    $("draw").ariaPressed = String(open);
    people.setProfile({ board: open });
    if (open) ask();
    else leave();
  };
}
