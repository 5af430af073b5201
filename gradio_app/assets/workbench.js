// @ts-check
// What is around the drawing: the question's line, the basket, and the tabs below; and the wire to the app's Python.

import { Basket, MOST_EDITS, cleanEdits, editText, predictSum, predictThrough } from "./edits.js";
import { copyLink, keep, remember, stateOf } from "./keeping.js";
import { Waiting, begin } from "./start.js";
import { renderStrip } from "./strip.js";
import { PANES, TABS, measuringText, scatterPicture } from "./tabs.js";
import { button, focused, make } from "../../circuitsae/export/assets/elements.js";
import { mount } from "../../circuitsae/export/assets/graph.js";
import { format } from "../../circuitsae/export/assets/text.js";

const OWN_KEYS = [
  ["Z", "undo"],
  ["Shift Z", "redo"],
];
const [AT_FIRST, LISTED, TURNS] = [24, 10, 4]; // nodes measured of themselves, and how often those that move up
export const PATIENCE = 30000; // ms until a question without an answer is said to be unanswered

export class Workbench {
  constructor(element, wire, kept = null) {
    this.wire = wire;
    this.basket = new Basket();
    this.results = new Map();
    this.questions = new Map(); // what was asked under each number
    this.tab = "next";
    this.seq = 0;
    this.ready = this.failed = this.lost = false; // the model; the app
    this.kept = kept; // a circuit from this browser, until the app has traced it anew
    this.askedSet = null; // what was pinned when the pinned set was last measured
    this.polling = this.remembering = 0;
    this.carded = this.cardedIn = null; // the node whose card was fetched last, and where
    this.flying = null;
    this.shown = null;
    this.view = null;
    this.site = "";
    this.values = "predicted";
    this.turns = 0; // of measuring that are left
    this.build();
    this.standIn(element);
    this.listen();
    this.hear();
    if (wire.props.shown) this.show(wire.props.shown);
    else this.say("Press Trace to see a circuit.");
    this.poll();
  }

  // --- building ---

  build() {
    this.root = make("div", { class: "cg cw", "data-theme": "light" });
    this.question = make("p", { class: "cw-question" });
    this.status = make("span", { class: "cw-status-text" });
    this.bar = make("progress", { max: 1, hidden: true, "aria-label": "Progress" });
    this.problem = make("p", { class: "cw-problem", role: "alert", hidden: true });
    this.link = button("Copy link", "Copy a link that brings back what is on the screen", () => copyLink(this));
    this.notice = make("p", { class: "cw-told", role: "status", hidden: true });
    this.drawing = make("div", { class: "cw-drawing" });
    this.strip = make("section", { class: "cw-basket", "aria-label": "Interventions" });
    this.tabs = make("div", { class: "cw-tabs", role: "tablist", "aria-label": "Below the drawing" });
    this.pane = make("div", { class: "cw-pane", role: "tabpanel", tabindex: "0", id: "cw-pane" });
    TABS.forEach(([id, name]) =>
      this.tabs.append(
        make("button", {
          type: "button",
          role: "tab",
          id: `cw-tab-${id}`,
          "aria-controls": "cw-pane",
          text: name,
          on: { click: () => (this.open(id), remember(this)) },
        }),
      ),
    );
    this.tabs.addEventListener("keydown", (event) => {
      const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!by) return;
      const at = TABS.findIndex(([id]) => id === this.tab);
      this.open(TABS[(at + by + TABS.length) % TABS.length][0]);
      this.tabs.querySelector('[aria-selected="true"]').focus();
      event.preventDefault();
      event.stopPropagation();
    });
    const line = make("div", { class: "cw-status", role: "status" }, this.status, this.bar);
    this.root.append(
      make("div", { class: "cw-top" }, this.question, line, this.link),
      this.problem,
      this.notice,
      this.drawing,
      this.strip,
      this.tabs,
      this.pane,
    );
    const theme = () => (this.root.dataset.theme = document.body.classList.contains("dark") ? "dark" : "light");
    new MutationObserver(theme).observe(document.body, { attributes: true, attributeFilter: ["class"] });
    theme();
  }

  /** Moves to an element; what had the keyboard's focus keeps it. */
  standIn(element) {
    const held = this.root.contains(focused()) ? focused() : null;
    element.querySelector(".cw-mount").replaceChildren(this.root);
    if (held) held.focus({ preventScroll: true });
  }

  /** Goes over from the wire that stood in to the real one. */
  connect(wire) {
    const { wire: before } = this;
    this.wire = wire;
    this.hear();
    before.becomes(wire);
    // What this browser had kept stays until the app, which the address asks for it, has traced it.
    if (wire.props.shown && !(this.shown && this.shown.kept)) this.show(wire.props.shown);
  }

  /** Listens to what Python tells. */
  hear() {
    const { watch } = this.wire;
    const heard = (name, listener) =>
      watch(name, () => this.wire.props[name] && listener.call(this, this.wire.props[name]));
    heard("shown", this.show);
    heard("progress", this.progress);
    heard("overlay", this.answered);
    heard("measured", this.measuredSome);
    heard("answer", this.told);
  }

  listen() {
    this.root.addEventListener("keydown", (event) => {
      if (event.defaultPrevented || event.altKey || event.target.closest("input, select, textarea")) return;
      const key = event.key.toLowerCase();
      if (key === "z") this.move(event.shiftKey ? 1 : -1);
      else if (key === "y" && (event.ctrlKey || event.metaKey)) this.move(1);
      else return;
      event.preventDefault();
    });
    window.addEventListener("online", () => this.poll());
  }

  /** Asks Python for something that takes time; the answer comes as a property. */
  send(event, asked) {
    this.seq += 1;
    const { props, trigger } = this.wire;
    props.value = { ...(props.value || {}), [event]: { seq: this.seq, id: this.shown.id, ...asked } };
    trigger(event);
    return this.seq;
  }

  /** How errors and attention are treated in the changed run. */
  get options() {
    return this.basket.options;
  }

  // --- what is shown ---

  async show(shown) {
    if (this.view && this.shown.id === shown.id) return; // told again, with something else that changed
    const token = (this.loading = {});
    this.complain("");
    const { first } = globalThis.CircuitApp;
    let found;
    try {
      found =
        [first, this.kept].find((one) => one && one.id === shown.id) || (await this.wire.server.circuit(shown.id));
    } catch {
      found = { error: "The app can't be reached; is it still running?" };
    }
    if (token !== this.loading) return;
    if (found.error) return this.complain(found.error, () => this.show(shown));
    if (this.shown && this.shown.kept) {
      if (sameNodes(this.kept.payload, found.payload)) return this.adopt(shown);
      shown = { ...shown, restore: stateOf(this) };
    }
    this.before = shown.comparesWith ? this.shown : null;
    this.shown = shown;
    this.colours = found.colours;
    this.basket = new Basket(this.basket.options);
    this.results.clear();
    this.questions.clear();
    this.flying = this.result = null;
    this.measured = new Map();
    this.measuring = null;
    this.faithful = this.written = null;
    const focused = this.drawing.contains(document.activeElement);
    if (this.view) this.view.destroy();
    const payload = JSON.parse(found.payload);
    this.view = mount(this.drawing, payload, { intervene: Boolean(shown.form), keys: OWN_KEYS });
    const { circuit } = this.view;
    for (let i = 0; i < circuit.n; i += 1)
      if (!Number.isNaN(circuit.measured[i])) this.measured.set(circuit.key[i], circuit.measured[i]);
    this.view.on("intervene", ({ keys, op, value }) => this.put(keys, op, value));
    this.view.on("select", ({ keys }) => this.selected(keys));
    this.view.on("pins", () => this.tab === "set" && this.fill());
    this.view.on("state", () => remember(this));
    if (focused) this.view.focus(); // the keyboard goes on where it was: in the drawing
    if (this.colours.length) this.view.setOverlay({ modes: this.colours });
    this.ask();
    if (shown.restore) this.restore(shown.restore);
    this.say("");
    renderStrip(this);
    this.open(shown.comparesWith ? "compare" : this.tab === "compare" ? "next" : this.tab);
    this.root.dataset.circuit = shown.id;
    const fresh = shown.form && !shown.kept && !shown.id.startsWith("shipped-");
    this.turns = fresh && shown.form.method === "auto" ? TURNS : 0;
    this.measureFirst();
    if (shown.kept) this.tell("Restored from this browser; the model is asked again.");
    else if (shown.restore) this.tell("Restored from the address: question, interventions, pins, groups and view.");
    else this.tell("");
    if (shown !== (first && first.shown) && shown.form && !shown.id.startsWith("shipped-")) {
      keep(shown.form, found);
      remember(this);
    }
    requestAnimationFrame(() => requestAnimationFrame(() => performance.mark("circuit-painted")));
  }

  /** The line above the drawing: what the model says, and what of it is explained. */
  ask() {
    const { about } = this.view.circuit;
    const metric = about.metric || {};
    const value = about.metric_value === undefined ? "" : ` = ${format(about.metric_value)}`;
    const against =
      about.baseline_metric_value === undefined ? "" : ` (patch prompt: ${format(about.baseline_metric_value)})`;
    // Whose circuit it is: the form above may by now name another model.
    const whose = about.preset || about.model;
    this.question.replaceChildren(
      whose ? make("span", { class: "cg-soft", text: `${whose}: ` }) : "",
      make("b", { text: (metric.description || metric.name || "metric") + value }),
      against,
    );
    this.question.title = about.prompt || "";
  }

  /** Takes the circuit that the app has traced for the one that this browser had kept: what is on the screen stays. */
  adopt(shown) {
    this.shown = { ...shown, restore: null };
    this.kept = null;
    this.root.dataset.circuit = shown.id;
    this.tell("Restored from this browser.");
    this.say("");
    if (this.basket.edits.length && !this.result) this.carryOut();
  }

  /** Says something that is no problem, in one line, until it is closed. */
  tell(text) {
    this.notice.hidden = !text;
    const away = button("close", "Close this line", () => this.tell(""), { class: "cg-quiet" });
    const afresh = button("Start afresh", "Go to the circuit that ships with the app", () => {
      window.location.href = window.location.pathname;
    });
    this.notice.replaceChildren(...(text ? [make("span", { text }), afresh, away] : []));
  }

  restore(state) {
    const { view } = state;
    if (view && typeof view === "object") this.view.setState(view);
    const options = { ...this.options };
    for (const name of Object.keys(options))
      if (state.options && ["live", "free", "frozen"].includes(state.options[name]))
        options[name] = state.options[name];
    this.basket = new Basket(options);
    const edits = cleanEdits(this.view.circuit, state.basket);
    if (TABS.some(([id]) => id === state.tab)) this.tab = state.tab;
    if (edits.length && this.shown.form) {
      this.basket.change(edits);
      this.carryOut();
    }
  }

  async selected(keys) {
    if (this.tab === "scatter" || this.tab === "effects") this.fill();
    if (keys.length !== 1 || !this.shown.form) return;
    const { view } = this;
    const [key] = keys;
    if (this.carded === key && this.cardedIn === view) return;
    try {
      const sections = await this.wire.server.card({ id: this.shown.id, key });
      if (view !== this.view) return;
      if (sections.length) {
        [this.carded, this.cardedIn] = [key, view];
        view.setCard(key, sections);
      }
    } catch {
      // The card says less; the next selection asks again.
    }
  }

  // --- status ---

  say(text) {
    this.status.textContent = text;
    this.bar.hidden = true;
  }

  complain(text, again) {
    this.problem.hidden = !text;
    this.problem.replaceChildren(
      ...(text ? [make("span", { text }), again ? button("Try again", "Try again", again) : null].filter(Boolean) : []),
    );
  }

  progress(step) {
    if (step.error) {
      this.say("");
      this.complain(step.error);
    } else if (step.cancelled) this.say("Cancelled; what was there stays.");
    else if (step.over) this.say("");
    else {
      this.complain("");
      this.say(step.total > 1 ? `${step.text}, ${step.done} of ${step.total}` : step.text || "Working");
      this.bar.hidden = !(step.total > 1);
      if (step.total > 1) this.bar.value = step.done / step.total;
    }
    if (step.error || step.cancelled) {
      this.flying = null;
      renderStrip(this);
    }
  }

  /** Says how the model is doing until it is ready. */
  async poll() {
    clearTimeout(this.polling);
    const preset = this.shown && this.shown.form ? this.shown.form.preset : this.wire.props.limits.preset;
    let wait;
    try {
      const { ready, failed, text } = await this.wire.server.status(preset);
      if (!this.ready && !this.flying) this.status.textContent = ready ? "" : text;
      if (failed && !this.failed) this.complain(text);
      [this.ready, this.failed] = [ready, failed];
      if (this.lost) await this.foundAgain();
      // Somebody who waits for an answer wants to know at once when the app is gone.
      wait = this.flying || this.measuring || !ready ? 1500 : 10000;
    } catch {
      wait = 1000;
      this.lose();
    }
    clearTimeout(this.polling);
    this.polling = setTimeout(() => this.poll(), wait);
  }

  /** The app can't be reached: that is said, and tried again until it can. */
  lose() {
    if (this.wire instanceof Waiting) return;
    this.lost = true;
    this.flying = this.measuring = null;
    this.say("");
    this.complain("The app can't be reached; trying again \u2026");
    if (this.view) renderStrip(this);
  }

  /** The app is there again: what was asked is asked again, or the page loaded anew where the app has forgotten it. */
  async foundAgain() {
    this.lost = false;
    const { shown } = this;
    const found = shown && !shown.kept ? await this.wire.server.circuit(shown.id) : {};
    this.complain("");
    if (found.error && shown.form) {
      await remember(this, 0);
      window.location.reload();
    } else if (found.error) this.complain(found.error);
    else {
      this.say("Connected again.");
      if (this.view && this.basket.edits.length && !this.result) this.carryOut();
    }
  }

  // --- the basket ---

  put(keys, op, value) {
    const { circuit } = this.view;
    const usable = keys.filter((key) => !["metric", "bias"].includes(circuit.kind[circuit.row.get(key)]));
    if (!usable.length) return;
    if (!this.basket.put(usable, op, value))
      return this.complain(`At most ${MOST_EDITS} nodes can be changed at once.`);
    this.carryOut();
  }

  move(by) {
    if (by < 0 ? !this.basket.canUndo : !this.basket.canRedo) return;
    this.basket.move(by);
    this.carryOut();
  }

  clear() {
    if (!this.basket.edits.length) return;
    this.basket.change([]);
    this.carryOut();
  }

  name() {
    return JSON.stringify([this.basket.edits, this.options]);
  }

  /** Shows the prediction at once, and what was measured as soon as it is there. */
  carryOut() {
    const { edits } = this.basket;
    this.asked = performance.now();
    remember(this);
    this.complain("");
    this.written = null;
    const known = this.results.get(this.name());
    if (!edits.length || known) this.apply(known || null);
    else {
      this.result = null;
      this.view.setOverlay({ marks: this.marks(), ...(this.colours.length ? { modes: this.colours } : {}) });
      renderStrip(this);
      this.request();
    }
  }

  request() {
    if (this.flying || this.shown.kept || this.lost) return; // asked once there is an answer, or the app
    const name = this.name();
    const seq = this.send("intervene", { edits: this.basket.edits, ...this.options });
    this.questions.set(seq, name);
    this.flying = { name, seq };
    const { flying } = this;
    if (!(this.wire instanceof Waiting)) setTimeout(() => this.flying === flying && this.poll(), 1000);
    setTimeout(() => {
      if (this.flying !== flying) return;
      this.flying = null; // should its answer come after all, it is taken
      if (!this.result && this.basket.edits.length)
        this.complain("There is no answer yet: the app may be busy, or the connection lost.", () => this.carryOut());
      renderStrip(this);
    }, PATIENCE);
    renderStrip(this);
  }

  answered(overlay) {
    const name = this.questions.get(overlay.seq);
    if (name === undefined || overlay.id !== this.shown.id) return;
    this.questions.delete(overlay.seq);
    if (this.flying && this.flying.seq === overlay.seq) this.flying = null;
    if (!overlay.error) {
      this.results.set(name, overlay);
      if (this.results.size > 60) this.results.delete(this.results.keys().next().value);
    }
    if (name === this.name()) {
      this.complain(overlay.error || "");
      if (overlay.error) renderStrip(this);
      else this.apply(overlay);
    } else if (this.basket.edits.length && !this.results.has(this.name())) this.request();
  }

  marks() {
    return this.basket.edits.map((edit) => ({
      key: edit.key,
      text: edit.op === "ablate" ? "\u00d70" : editText(edit),
    }));
  }

  apply(result) {
    const { edits } = this.basket;
    this.result = edits.length ? result : null;
    if (!this.result) this.view.setOverlay(this.colours.length ? { modes: this.colours } : null);
    else
      this.view.setOverlay({
        before: result.before,
        after: result.after,
        marks: this.marks(),
        metric: [result.metric_before, result.metric_after],
      });
    if (
      this.result &&
      edits.length === 1 &&
      edits[0].op === "ablate" &&
      this.options.errors === "live" &&
      this.options.attention === "free"
    ) {
      const value = result.metric_after - result.metric_before;
      this.measured.set(edits[0].key, value);
      this.view.setMeasured({ [edits[0].key]: value });
    }
    renderStrip(this);
    if (this.result) {
      const { text } = this.summary();
      this.view.say(text);
      const spent = performance.now() - this.asked;
      requestAnimationFrame(() =>
        requestAnimationFrame(() => (this.root.dataset.measuredMs = String(Math.round(spent)))),
      );
    }
    if (["next", "scatter"].includes(this.tab)) this.fill();
  }

  /** Predicted, measured and their gap, in words. */
  summary() {
    const { edits } = this.basket;
    const predicted = predictThrough(this.view.circuit, edits);
    const sum = predictSum(this.view.circuit, edits);
    const measured = this.result ? this.result.metric_after - this.result.metric_before : NaN;
    const gap = measured - predicted;
    const gapName = edits.length > 1 ? "interaction" : "not linear";
    const plain = edits.length > 1 && Math.abs(sum - predicted) > 0.005 * Math.abs(sum) ? sum : NaN;
    const text = `Metric ${format(this.result ? this.result.metric_before : NaN)} to ${format(this.result ? this.result.metric_after : NaN)}, predicted ${format(predicted, true)}, measured ${format(measured, true)}`;
    return { predicted, plain, measured, gap, gapName, text };
  }

  // --- the tabs ---

  open(id) {
    this.tab = id;
    for (const tab of this.tabs.children) {
      const on = tab.id === `cw-tab-${id}`;
      tab.setAttribute("aria-selected", String(on));
      tab.setAttribute("tabindex", on ? "0" : "-1");
    }
    this.pane.setAttribute("aria-labelledby", `cw-tab-${id}`);
    this.fill();
  }

  fill() {
    if (!this.view) return;
    const focused = this.pane.contains(document.activeElement)
      ? document.activeElement.getAttribute("aria-label")
      : null;
    const scrolled = this.pane.querySelector(".cw-scroll");
    const place = scrolled ? [scrolled.scrollLeft, scrolled.scrollTop] : null;
    this.pane.replaceChildren(...PANES[this.tab](this).filter(Boolean));
    const again = this.pane.querySelector(".cw-scroll");
    if (again && place) again.scrollTo(...place);
    if (focused) {
      const same = [...this.pane.querySelectorAll("[aria-label]")].find(
        (other) => other.getAttribute("aria-label") === focused,
      );
      if (same) same.focus({ preventScroll: true });
    }
  }

  strongest(n) {
    return this.view.circuit.choosable.slice(0, n).map((i) => this.view.circuit.key[i]);
  }

  measure(keys) {
    const missing = keys.filter((key) => !this.measured.has(key));
    if (!missing.length) return;
    this.measuring = { seq: this.send("measure", { keys: missing }), done: 0, total: missing.length };
    this.fill();
  }

  /** With the method `auto` the strongest nodes are measured once the prediction is painted, until the ten first are. */
  measureFirst() {
    const missing = this.strongest(this.turns === TURNS ? AT_FIRST : LISTED).filter((key) => !this.measured.has(key));
    if (this.turns && missing.length) this.measure(missing);
    else this.turns = 0;
  }

  measuredSome(found) {
    if (!this.measuring || found.seq !== this.measuring.seq || found.id !== this.shown.id) return;
    for (const [key, value] of Object.entries(found.values)) this.measured.set(key, value);
    this.view.setMeasured(found.values, found.over);
    this.measuring = found.over ? null : { ...this.measuring, done: found.done };
    if (this.turns) {
      const { done, total } = found;
      this.progress(found.over ? { over: true } : { text: "Measuring the strongest nodes", done, total });
      if (found.over) this.turns = done < total ? 0 : this.turns - 1; // not all: it was cancelled
      if (found.over) this.measureFirst();
    }
    const shown = this.pane.querySelector(".cw-measuring");
    if (!["scatter", "effects"].includes(this.tab)) return;
    if (found.over || !shown) return this.fill();
    // Only what is new is replaced: the button beside it is to stay where the pointer is.
    shown.firstChild.value = found.done;
    shown.children[1].textContent = measuringText(this);
    const old = this.pane.querySelector(".cw-scatter");
    if (old && !old.contains(document.activeElement)) old.replaceWith(scatterPicture(this));
  }

  // --- keeping ---

  told(answer) {
    if (answer.id !== this.shown.id) return;
    if (answer.error) return this.complain(answer.error);
    if (answer.faithfulness !== undefined) this.faithful = { ...answer, asked: this.askedSet };
    if (answer.before) this.written = answer;
    this.fill();
  }
}

/** Whether two payloads, as JSON, are of the same nodes and edges. */
function sameNodes(one, other) {
  const [a, b] = [one, other].map((text) => {
    const { nodes, edges, tokens } = JSON.parse(text);
    return JSON.stringify([nodes.kind, nodes.site, nodes.index, nodes.position, edges.source, edges.target, tokens]);
  });
  return a === b;
}

globalThis.CircuitApp = {
  mount(element, wire) {
    const { shown } = globalThis.CircuitApp;
    if (shown && shown.wire instanceof Waiting) {
      shown.standIn(element);
      shown.connect(wire);
      for (const early of document.querySelectorAll(".ca-early, #ca-early-style")) early.remove();
    } else globalThis.CircuitApp.shown = new Workbench(element, wire);
  },
  toggleDark() {
    document.body.classList.toggle("dark");
  },
};
// The page has been read and gradio's scripts, which are deferred, have not yet run.
document.addEventListener("readystatechange", begin, { once: true });
