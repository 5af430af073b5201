// @ts-check
// How the page begins: the first circuit before gradio is there, then the wire to it.

import { keptCircuit } from "./keeping.js";
import { PATIENCE, Workbench } from "./workbench.js";
import { make } from "../../circuitsae/export/assets/elements.js";

/** Stands in for the wire until gradio's part of the page is there: what is asked until then is kept and asked then. */
export class Waiting {
  constructor({ shown, limits }) {
    const real = new Promise((resolve) => (this.arrived = resolve));
    this.props = { shown, limits };
    this.events = new Set();
    this.server = new Proxy({}, { get: (_, name) => async (asked) => (await real).server[name](asked) });
    this.trigger = (event) => this.events.add(event);
    this.watch = () => {};
  }

  becomes(wire) {
    if (this.props.value) wire.props.value = this.props.value;
    for (const event of this.events) wire.trigger(event);
    this.arrived(wire);
  }
}

/** Draws the first circuit, which came with the page, while gradio's scripts are still starting. */
export async function begin() {
  const { first } = globalThis.CircuitApp;
  const gradio = /** @type {any} */ (window).gradio_config || {};
  if (!first || gradio.auth_required) return;
  const wanted = new URLSearchParams(window.location.search).get("__theme");
  const dark = wanted === "dark" || (wanted !== "light" && window.matchMedia("(prefers-color-scheme: dark)").matches);
  document.body.classList.toggle("dark", dark); // as gradio will
  const form = make("div", { class: "ca-coming ca-title" }, make("h1", { text: "circuitsae" }), make("span", {}));
  const host = make("div", { class: "ca-early" }, form, make("div", { class: "cw-mount" }));
  document.body.append(host);
  // What the address asks for, if this browser has it; the page's own circuit otherwise.
  const kept = await keptCircuit();
  if (globalThis.CircuitApp.shown) return host.remove(); // gradio was quicker
  const shown = (globalThis.CircuitApp.shown = new Workbench(
    host,
    new Waiting({ ...first, ...(kept && { shown: kept.shown }) }),
    kept,
  ));
  shown.say("The page is starting");
  setTimeout(() => {
    if (shown.wire instanceof Waiting)
      shown.complain("The rest of the page has not come: the connection may be lost.", () => window.location.reload());
  }, PATIENCE);
}
