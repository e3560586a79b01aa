// The panel that checks the connection. The page loads it once the room is open, because it is needed when the server
// cannot be reached.

import { check } from "./anteroom.js";
import { element, on } from "./dom.js";

/** Opens the panel. Closing it ends the check.
 * @param {string} token */
export async function showCheck(token) {
  const steps = element("ol", { ariaLive: "polite" });
  const summary = element("p", { role: "status" }, "Checking … This takes up to a minute.");
  const close = element("button", { type: "button" }, "Close");
  const title = element("h2", { id: "check-title" }, "Check my connection");
  const dialog = element("dialog", { id: "check" }, title, steps, summary, close);
  dialog.setAttribute("aria-labelledby", title.id);
  const lifetime = new AbortController();
  on(close, "click", () => dialog.close());
  on(dialog, "close", () => {
    lifetime.abort();
    dialog.remove();
  });
  document.body.append(dialog);
  dialog.showModal();
  try {
    const report = await check(undefined, {
      token,
      signal: lifetime.signal,
      onStep: ({ name, ok, detail }) => steps.append(element("li", { className: ok ? "" : "bad" },
        element("span", { role: "img", ariaLabel: ok ? "works" : "fails" }, ok ? "✓" : "✗"),
        element("p", {}, element("b", {}, name), `: ${detail}`))),
    });
    summary.textContent = report.summary;
  } catch (error) {
    summary.textContent = `The check has failed: ${error}.`;
  }
}
