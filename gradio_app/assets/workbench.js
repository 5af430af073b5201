// What is around the drawing: the question's line, the basket, and the tabs below; and the wire to the app's Python.

const TABS = [
  ["next", "Next token"],
  ["scatter", "Predicted vs measured"],
  ["effects", "Effects by position"],
  ["set", "Pinned set"],
  ["compare", "Compare"],
  ["keep", "Keep"],
];
const FILES = [
  ["json", "Circuit (JSON)"],
  ["html", "Page that opens from disk"],
  ["python", "Python program"],
  ["graphml", "GraphML"],
  ["csv", "CSV tables"],
  ["dot", "Graphviz"],
];
const MEASURED = 30;
const COLUMNS = 24;
const PATIENCE = 30000; // ms until a question without an answer is said to be unanswered

class Workbench {
  constructor(element, wire) {
    this.wire = wire;
    this.basket = new Basket();
    this.results = new Map();
    this.questions = new Map(); // what was asked under each number
    this.options = { errors: "live", attention: "free" };
    this.tab = "next";
    this.seq = 0;
    this.flying = null;
    this.shown = null;
    this.view = null;
    this.site = "";
    this.values = "predicted";
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
    this.link = button("Copy link", "Copy a link that brings back what is on the screen", () => this.copyLink());
    this.drawing = make("div", { class: "cw-drawing" });
    this.strip = make("section", { class: "cw-basket", "aria-label": "Interventions" });
    this.tabs = make("div", { class: "cw-tabs", role: "tablist", "aria-label": "Below the drawing" });
    this.pane = make("div", { class: "cw-pane", role: "tabpanel", tabindex: "0", id: "cw-pane" });
    TABS.forEach(([id, name]) => this.tabs.append(make("button", { type: "button", role: "tab", id: `cw-tab-${id}`, "aria-controls": "cw-pane", text: name, on: { click: () => this.open(id) } })));
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
    this.root.append(make("div", { class: "cw-top" }, this.question, line, this.link), this.problem, this.drawing, this.strip, this.tabs, this.pane);
    const theme = () => (this.root.dataset.theme = document.body.classList.contains("dark") ? "dark" : "light");
    new MutationObserver(theme).observe(document.body, { attributes: true, attributeFilter: ["class"] });
    theme();
  }

  /** Moves to an element; what had the keyboard's focus keeps it. */
  standIn(element) {
    const focused = this.root.contains(document.activeElement) ? document.activeElement : null;
    element.querySelector(".cw-mount").replaceChildren(this.root);
    if (focused) focused.focus({ preventScroll: true });
  }

  /** Goes over from the wire that stood in to the real one. */
  connect(wire) {
    const { wire: before } = this;
    this.wire = wire;
    this.hear();
    before.becomes(wire);
    if (wire.props.shown) this.show(wire.props.shown);
  }

  /** Listens to what Python tells. */
  hear() {
    const { watch } = this.wire;
    const heard = (name, listener) => watch(name, () => this.wire.props[name] && listener.call(this, this.wire.props[name]));
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

  // --- what is shown ---

  async show(shown) {
    if (this.view && this.shown.id === shown.id) return; // told again, with something else that changed
    const token = (this.loading = {});
    this.complain("");
    const { first } = globalThis.CircuitApp;
    let found;
    try {
      found = first && first.id === shown.id ? first : await this.wire.server.circuit(shown.id);
    } catch {
      found = { error: "The app can't be reached; is it still running?" };
    }
    if (token !== this.loading) return;
    if (found.error) return this.complain(found.error, () => this.show(shown));
    this.before = shown.comparesWith ? this.shown : null;
    this.shown = shown;
    this.colours = found.colours;
    this.basket = new Basket();
    this.results.clear();
    this.questions.clear();
    this.flying = this.result = null;
    this.measured = new Map();
    this.measuring = null;
    this.faithful = this.written = null;
    const focused = this.drawing.contains(document.activeElement);
    if (this.view) this.view.destroy();
    const payload = JSON.parse(found.payload);
    this.view = CircuitGraph.mount(this.drawing, payload, { intervene: Boolean(shown.form) });
    const { circuit } = this.view;
    for (let i = 0; i < circuit.n; i += 1) if (!Number.isNaN(circuit.measured[i])) this.measured.set(circuit.key[i], circuit.measured[i]);
    this.view.on("intervene", ({ keys, op, value }) => this.put(keys, op, value));
    this.view.on("select", ({ keys }) => this.selected(keys));
    this.view.on("pins", () => this.tab === "set" && this.fill());
    if (focused) this.view.focus(); // the keyboard goes on where it was: in the drawing
    if (this.colours.length) this.view.setOverlay({ modes: this.colours });
    this.ask();
    if (shown.restore) this.restore(shown.restore);
    this.say("");
    this.renderBasket();
    this.open(shown.comparesWith ? "compare" : this.tab === "compare" ? "next" : this.tab);
    this.root.dataset.circuit = shown.id;
    requestAnimationFrame(() => requestAnimationFrame(() => performance.mark("circuit-painted")));
  }

  /** The line above the drawing: what the model says, and what of it is explained. */
  ask() {
    const { about } = this.view.circuit;
    const metric = about.metric || {};
    const value = about.metric_value === undefined ? "" : ` = ${format(about.metric_value)}`;
    const against = about.baseline_metric_value === undefined ? "" : ` (patch prompt: ${format(about.baseline_metric_value)})`;
    this.question.replaceChildren(make("b", { text: (metric.description || metric.name || "metric") + value }), against);
    this.question.title = about.prompt || "";
  }

  restore(state) {
    const { view } = state;
    if (view && typeof view === "object") this.view.setState(view);
    for (const name of Object.keys(this.options)) if (state.options && state.options[name] === "frozen") this.options[name] = "frozen";
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
    this.problem.replaceChildren(...(text ? [make("span", { text }), again ? button("Try again", "Try again", again) : null].filter(Boolean) : []));
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
      this.renderBasket();
    }
  }

  /** Says how the model is doing until it is ready. */
  async poll() {
    clearTimeout(this.polling);
    const preset = this.shown && this.shown.form ? this.shown.form.preset : this.wire.props.limits.preset;
    let wait = 1500;
    try {
      const { ready, failed, text } = await this.wire.server.status(preset);
      if (!this.ready && !this.flying) this.status.textContent = ready ? "" : text;
      if (failed && !this.failed) this.complain(text);
      [this.ready, this.failed] = [ready, failed];
      if (ready) return;
    } catch {
      wait = 4000;
    }
    this.polling = setTimeout(() => this.poll(), wait);
  }

  // --- the basket ---

  put(keys, op, value) {
    const { circuit } = this.view;
    const usable = keys.filter((key) => !["metric", "bias"].includes(circuit.kind[circuit.row.get(key)]));
    if (!usable.length) return;
    if (!this.basket.put(usable, op, value)) return this.complain(`At most ${MOST_EDITS} nodes can be changed at once.`);
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
    this.complain("");
    this.written = null;
    const known = this.results.get(this.name());
    if (!edits.length || known) this.apply(known || null);
    else {
      this.result = null;
      this.view.setOverlay({ marks: this.marks(), ...(this.colours.length ? { modes: this.colours } : {}) });
      this.renderBasket();
      this.request();
    }
  }

  request() {
    if (this.flying) return; // its answer asks for what is wanted then
    const name = this.name();
    const seq = this.send("intervene", { edits: this.basket.edits, ...this.options });
    this.questions.set(seq, name);
    this.flying = { name, seq };
    const { flying } = this;
    setTimeout(() => {
      if (this.flying !== flying) return;
      this.flying = null; // should its answer come after all, it is taken
      if (!this.result && this.basket.edits.length) this.complain("There is no answer yet: the app may be busy, or the connection lost.", () => this.carryOut());
      this.renderBasket();
    }, PATIENCE);
    this.renderBasket();
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
      if (overlay.error) this.renderBasket();
      else this.apply(overlay);
    } else if (this.basket.edits.length && !this.results.has(this.name())) this.request();
  }

  marks() {
    return this.basket.edits.map((edit) => ({ key: edit.key, text: edit.op === "ablate" ? "\u00d70" : editText(edit) }));
  }

  apply(result) {
    const { edits } = this.basket;
    this.result = edits.length ? result : null;
    if (!this.result) this.view.setOverlay(this.colours.length ? { modes: this.colours } : null);
    else this.view.setOverlay({ before: result.before, after: result.after, marks: this.marks() });
    if (this.result && edits.length === 1 && edits[0].op === "ablate" && this.options.errors === "live" && this.options.attention === "free") {
      const value = result.metric_after - result.metric_before;
      this.measured.set(edits[0].key, value);
      this.view.setMeasured({ [edits[0].key]: value });
    }
    this.renderBasket();
    if (this.result) {
      const { text } = this.summary();
      this.view.say(text);
      const spent = performance.now() - this.asked;
      requestAnimationFrame(() => requestAnimationFrame(() => (this.root.dataset.measuredMs = String(Math.round(spent)))));
    }
    if (["next", "scatter"].includes(this.tab)) this.fill();
  }

  /** Predicted, measured and their gap, in words. */
  summary() {
    const { edits } = this.basket;
    const predicted = predictAll(this.view.circuit, edits);
    const measured = this.result ? this.result.metric_after - this.result.metric_before : NaN;
    const gap = measured - predicted;
    const gapName = edits.length > 1 ? "interaction" : "not linear";
    const text = `Metric ${format(this.result ? this.result.metric_before : NaN)} to ${format(this.result ? this.result.metric_after : NaN)}, predicted ${format(predicted, true)}, measured ${format(measured, true)}`;
    return { predicted, measured, gap, gapName, text };
  }

  renderBasket() {
    const { edits } = this.basket;
    const { circuit } = this.view;
    const busy = Boolean(this.flying) && !this.result;
    this.strip.hidden = !this.shown.form;
    const undo = button("Undo", "Undo (Z)", () => this.move(-1), { disabled: !this.basket.canUndo, class: "cg-small-button" });
    const redo = button("Redo", "Redo (Shift Z)", () => this.move(1), { disabled: !this.basket.canRedo, class: "cg-small-button" });
    const clear = button("Clear", "Put everything back", () => this.clear(), { disabled: !edits.length, class: "cg-small-button" });
    const way = (name, label, words, ways) => {
      const select = make("select", { "aria-label": label, title: words, on: { change: () => ((this.options[name] = select.value), this.carryOut()) } }, ...ways.map((value) => make("option", { value, text: `${name} ${value}` })));
      select.value = this.options[name];
      return select;
    };
    const errors = way("errors", "Error nodes", "Error nodes in the changed run: computed anew, or held at what they were", ["live", "frozen"]);
    const attention = way("attention", "Attention", "Attention patterns in the changed run: computed anew, or held at what they were", ["free", "frozen"]);
    const chips = edits.slice(0, 40).map((edit) => {
      const i = circuit.row.get(edit.key);
      const place = circuit.position[i] >= 0 ? ` ${quoted(cut(circuit.tokenAt(i), 12))}` : "";
      return make("span", { class: "cw-edit" }, make("button", { type: "button", class: "cw-edit-name", title: edit.key, on: { click: () => this.view.select([edit.key]) } }, make("b", { text: circuit.name(i) }), make("span", { class: "cg-soft", text: circuit.kind[i] === "token" ? "" : place }), make("span", { text: ` ${editText(edit)}` })), button("close", `Take ${circuit.name(i)} out`, () => (this.basket.remove(edit.key), this.carryOut()), { class: "cg-quiet" }));
    });
    if (edits.length > 40) chips.push(make("span", { class: "cg-soft", text: `and ${edits.length - 40} more` }));
    const line = make("div", { class: "cw-basket-line" }, make("h2", { text: "Interventions" }), ...(chips.length ? chips : [make("span", { class: "cg-soft", text: "None yet: select a node and press Ablate." })]), make("span", { class: "cw-tools" }, errors, attention, undo, redo, clear));
    const parts = [line];
    const sayings = {};
    if (edits.length) {
      const { predicted, measured, gap, gapName } = this.summary();
      const waiting = busy ? (this.ready ? "measuring \u2026" : "waiting for the model \u2026") : "\u2013";
      const number = (name, value, kind, title) => make("div", { class: `cw-number ${kind}`, title }, make("span", { text: name }), make("b", { text: value }));
      const about = this.result ? `${format(this.result.metric_before)} \u2192 ${format(this.result.metric_after)}` : `${format(circuit.about.metric_value)} \u2192 ${waiting}`;
      parts.push(make("div", { class: "cw-numbers", role: "group", "aria-label": "Result" },
        number("metric", about, "cw-metric"),
        number("predicted", format(predicted, true), "cw-predicted", "The sum of what attribution predicts for each change"),
        number("measured", this.result ? format(measured, true) : waiting, "cw-measured", "By really running the model with all changes at once"),
        this.result ? number(gapName, format(gap, true), "cw-gap", edits.length > 1 ? "Measured minus the sum of the predictions: what the changes do only together, and what is not linear" : "Measured minus predicted: how far the metric is from linear on the way") : null,
        this.result ? number("KL", format(this.result.kl), "cw-kl", "Divergence of the next-token distribution from what it was, in nats") : null));
      for (const edit of edits) sayings[edit.key] = { op: edit.op, value: edit.value, text: `In the basket: ${editText(edit)}. Predicted ${format(predictEdit(circuit, edit), true)}${this.result ? `, measured ${format(measured, true)}${edits.length > 1 ? ` with the other ${edits.length - 1}` : ""}.` : busy ? `, ${waiting}` : "."}` };
    }
    this.strip.replaceChildren(...parts);
    this.view.setSayings(sayings);
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
    const focused = this.pane.contains(document.activeElement) ? document.activeElement.getAttribute("aria-label") : null;
    const scrolled = this.pane.querySelector(".cw-scroll");
    const place = scrolled ? [scrolled.scrollLeft, scrolled.scrollTop] : null;
    this.pane.replaceChildren(...{ next: this.nextTokens, scatter: this.scatterPane, effects: this.effectsPane, set: this.setPane, compare: this.comparePane, keep: this.keepPane }[this.tab].call(this).filter(Boolean));
    const again = this.pane.querySelector(".cw-scroll");
    if (again && place) again.scrollTo(...place);
    if (focused) {
      const same = [...this.pane.querySelectorAll("[aria-label]")].find((other) => other.getAttribute("aria-label") === focused);
      if (same) same.focus({ preventScroll: true });
    }
  }

  nextTokens() {
    const { about } = this.view.circuit;
    const rows = this.result ? this.result.next : (about.top_tokens || []).map(([text, p]) => [text, p]);
    const parts = [rows.length ? tokenTable(rows) : make("p", { class: "cg-soft", text: "This circuit does not say the model's next tokens." })];
    if (!this.shown.form) return parts;
    const write = button("Let the model write on", "Twelve tokens, each the likeliest, before and after the interventions", () => {
      this.send("continuation", { edits: this.basket.edits, ...this.options });
      this.say("The model is writing");
    });
    const written = make("div", { class: "cw-written" }, write);
    if (this.written) {
      const line = (name, tokens, same) => make("p", {}, make("span", { class: "cg-soft", text: `${name} ` }), ...tokens.map((text, n) => make(same && same[n] !== text ? "mark" : "span", { text: visible(text).replaceAll("\u23ce", "\u23ce ") })));
      written.append(line("before", this.written.before), ...(this.basket.edits.length ? [line("after", this.written.after, this.written.before)] : []));
    }
    return [make("div", { class: "cw-columns" }, parts[0], written)];
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

  measuredSome(found) {
    if (!this.measuring || found.seq !== this.measuring.seq || found.id !== this.shown.id) return;
    for (const [key, value] of Object.entries(found.values)) this.measured.set(key, value);
    this.view.setMeasured(found.values);
    this.measuring = found.over ? null : { ...this.measuring, done: found.done };
    const shown = this.pane.querySelector(".cw-measuring");
    if (!["scatter", "effects"].includes(this.tab)) return;
    if (found.over || !shown) return this.fill();
    // Only what is new is replaced: the button beside it is to stay where the pointer is.
    shown.firstChild.value = found.done;
    shown.children[1].textContent = this.measuringText();
    const old = this.pane.querySelector(".cw-scatter");
    if (old && !old.contains(document.activeElement)) old.replaceWith(this.scatterPicture());
  }

  measuringText() {
    return `${this.measuring.done} of ${this.measuring.total} measured`;
  }

  /** A button that measures, or how far that is, with Cancel. */
  measureButton(keys, text) {
    const missing = keys.filter((key) => !this.measured.has(key)).length;
    if (this.measuring) {
      const { done, total } = this.measuring;
      return make("span", { class: "cw-measuring" }, make("progress", { max: total, value: done, "aria-label": "Nodes measured" }), make("span", { text: this.measuringText() }), button("Cancel", "Stop measuring", () => this.wire.trigger("halt"), { class: "cg-small-button" }));
    }
    if (!missing || !this.shown.form) return null;
    return button(text(missing), "Ablates each by itself and runs the model", () => this.measure(keys), { class: "cg-main-button" });
  }

  points() {
    const { circuit } = this.view;
    return [...this.measured].filter(([key]) => circuit.row.has(key)).map(([key, y]) => {
      const i = circuit.row.get(key);
      return { key, x: circuit.effect[i], y, kind: circuit.kind[i], name: `${circuit.name(i)} ${circuit.place(i)}` };
    }).filter(({ x, y }) => Number.isFinite(x) && Number.isFinite(y));
  }

  scatterPicture() {
    return scatter(this.points(), { chosen: this.view.selection()[0], onSelect: (key) => this.view.select([key]) });
  }

  scatterPane() {
    const points = this.points();
    const keys = this.strongest(MEASURED);
    const measure = this.measureButton(keys, (n) => (n === keys.length ? `Measure the ${n} strongest` : `Measure ${n} more of the ${keys.length} strongest`));
    if (!points.length && !this.measuring) return [make("p", { class: "cw-lead", text: "Every effect in the drawing is predicted. Measure the strongest nodes to see how well the predictions hold." }), measure];
    const r = correlation(points.map(({ x, y }) => [x, y]));
    const agree = points.filter(({ x, y }) => x * y > 0).length;
    const worst = points.slice().sort((a, b) => Math.abs(b.y - b.x) - Math.abs(a.y - a.x)).slice(0, 6);
    const side = make("div", { class: "cw-side" },
      make("p", { class: "cw-lead" }, make("b", { text: `r = ${format(r)}` }), ` over ${plural(points.length, "node")}; the sign is right for ${agree}.`),
      measure,
      make("h3", { text: "Furthest from the line" }),
      make("ul", { class: "cg-list" }, ...worst.map(({ key, name, x, y }) => make("li", {}, make("button", { type: "button", class: "cw-row", title: `Select ${name}`, on: { click: () => this.view.select([key]) } }, make("b", { text: cut(name, 40) }), make("span", { class: "cg-number", text: `${format(x, true)} \u2192 ${format(y, true)}` }))))));
    return [make("div", { class: "cw-columns" }, this.scatterPicture(), side)];
  }

  effectsPane() {
    const { circuit } = this.view;
    const sites = circuit.sites.map((_, s) => s).filter((s) => circuit.choosable.some((i) => circuit.site[i] === s));
    const only = sites.includes(Number(this.site)) && this.site !== "" ? Number(this.site) : -1;
    const wanted = circuit.choosable.filter((i) => (only < 0 || circuit.site[i] === only) && circuit.position[i] >= 0);
    const features = new Map();
    const errors = new Map();
    for (const i of wanted) {
      const id = circuit.kind[i] === "error" ? `${circuit.site[i]}/error` : `${circuit.site[i]}/${circuit.index[i]}`;
      const into = circuit.kind[i] === "error" ? errors : features;
      if (!into.has(id)) into.set(id, []);
      into.get(id).push(i);
    }
    const size = (list) => Math.max(...list.map((i) => circuit.strength[i]));
    const shown = [...[...features.values()].sort((a, b) => size(b) - size(a)).slice(0, COLUMNS), ...errors.values()];
    const keys = shown.flat().map((i) => circuit.key[i]);
    const value = (i) => (this.values === "measured" ? this.measured.get(circuit.key[i]) ?? NaN : circuit.effect[i]);
    const columns = shown.map((list) => ({
      name: circuit.name(list[0]),
      title: circuit.label[list[0]] ? `${circuit.name(list[0])}, ${circuit.label[list[0]]}` : circuit.name(list[0]),
      error: circuit.kind[list[0]] === "error",
      cells: new Map(list.map((i) => [circuit.position[i], { key: circuit.key[i], value: value(i) }])),
    }));
    const which = make("select", { "aria-label": "Effects shown", on: { change: () => ((this.values = which.value), this.fill()) } }, make("option", { value: "predicted", text: "predicted effects" }), make("option", { value: "measured", text: "measured, by ablation" }));
    which.value = this.values;
    const where = make("select", { "aria-label": "Site", on: { change: () => ((this.site = where.value), this.fill()) } }, make("option", { value: "", text: "all sites" }), ...sites.map((s) => make("option", { value: String(s), text: circuit.rowName(s) })));
    where.value = only < 0 ? "" : String(only);
    const [chosen] = this.view.selection();
    return [
      make("div", { class: "cw-controls" }, which, where, this.values === "measured" ? this.measureButton(keys, (n) => `Measure ${plural(n, "cell")}`) : null, make("span", { class: "cg-soft", text: `${plural(Math.min(COLUMNS, features.size), "feature")} across, the errors last; an effect is the metric's change when the node is ablated` })),
      columns.length ? heatmap(circuit, columns, { chosen, onSelect: (key) => this.view.select([key]) }) : make("p", { text: "No node here has a position." }),
    ];
  }

  setPane() {
    const { pins } = this.view.getState();
    const lead = make("p", { class: "cw-lead", text: pins.length ? `${plural(pins.length, "node")} pinned. Faithfulness is the part of the metric that is left when every other node is set to its baseline.` : "Pin nodes (P) to ask whether they alone carry the metric: every other node is then set to its baseline." });
    const run = (errors) => {
      this.send("faithfulness", { keys: pins, errors });
      this.say("Measuring the pinned set");
    };
    const pinTop = button("Pin the 20 strongest", "Pin the 20 strongest nodes", () => this.view.pin(this.strongest(20)), { class: "cg-small-button" });
    const controls = make("div", { class: "cw-controls" }, pins.length && this.shown.form ? button("Measure, errors kept", "Error nodes stay as they are", () => run(false), { class: "cg-main-button" }) : null, pins.length && this.shown.form ? button("Measure, errors ablated too", "Error nodes outside the set are set to their baseline as well", () => run(true)) : null, pinTop);
    if (!this.faithful) return [lead, controls];
    const f = this.faithful;
    const words = `${plural(f.size, "pinned node")} of ${f.pool.toLocaleString("en-US")}, ${f.errors ? "errors ablated" : "errors kept"}: metric ${format(f.metric)}, between ${format(f.empty)} with all of them ablated and ${format(f.full)} of the model. Dots: random sets of as many.`;
    return [lead, controls, faithfulnessLine(f), make("p", { class: "cg-soft", text: words })];
  }

  comparePane() {
    const { circuit } = this.view;
    if (this.shown.comparesWith) {
      const counts = [0, 0, 0];
      const where = this.colours[0];
      for (const key of Object.keys(where.values)) if (circuit.rank[circuit.row.get(key)] >= 0) counts[where.values[key]] += 1;
      const list = counts.map((n, k) => make("li", {}, make("b", { text: String(n) }), ` ${where.names[k]}`));
      return [make("p", { class: "cw-lead", text: circuit.about.prompt }), make("ul", { class: "cw-counts" }, ...list), make("div", { class: "cw-controls" }, this.before ? button("Back to A", "The first circuit alone", () => this.show({ ...this.before, restore: null }), { class: "cg-main-button" }) : null)];
    }
    if (!this.shown.form) return [make("p", { text: "This circuit does not say a prompt and model of this app: there is nothing to compare it with." })];
    const field = make("textarea", { rows: 2, "aria-label": "Second prompt", spellcheck: "false", text: this.other || this.shown.form.patch || this.shown.form.prompt });
    const go = () => {
      this.send("compare", { prompt: field.value });
      this.say("Tracing the second prompt");
    };
    field.addEventListener("input", () => (this.other = field.value));
    field.addEventListener("keydown", (event) => {
      event.stopPropagation();
      if (event.key === "Enter" && !event.shiftKey) {
        event.preventDefault();
        go();
      }
    });
    return [make("p", { class: "cw-lead", text: "A second prompt, B, with the same question: both circuits as one, coloured by which nodes they share." }), make("div", { class: "cw-controls cw-wide" }, field, button("Compare", "Trace B and show both", go, { class: "cg-main-button" })), make("p", { class: "cg-soft", text: "To explain the difference between two prompts instead, give the second as the patch prompt under Options." })];
  }

  keepPane() {
    const pictures = [["svg", "Picture (SVG)"], ["png", "Picture (PNG)"]].map(([what, text]) => button(text, text, () => this.view.save(what)));
    const files = FILES.map(([format, text]) => button(text, text, () => this.download(format)));
    const parts = [make("h3", { text: "Download" }), make("div", { class: "cw-controls" }, ...files, ...pictures)];
    if (this.wire.props.limits.uploads) {
      const input = make("input", { type: "file", accept: ".json,application/json", "aria-label": "A saved circuit", on: { change: () => input.files[0] && this.upload(input.files[0]) } });
      parts.push(make("h3", { text: "Open a saved circuit" }), make("div", { class: "cw-controls" }, input));
    }
    parts.push(make("h3", { text: "Link" }), make("div", { class: "cw-controls" }, button("Copy link", "Copy link", () => this.copyLink()), make("span", { class: "cg-soft", text: "The link holds the question, the interventions, pins, groups and view; whoever opens it traces anew." })));
    return parts;
  }

  // --- keeping ---

  async download(format) {
    const { edits } = this.basket;
    const shown = { state: this.view.getState(), edits, options: this.options };
    if (edits.length && this.result && format === "html") {
      const { circuit } = this.view;
      shown.overlay = { before: this.result.before, after: this.result.after, marks: this.marks() };
      shown.note = `Interventions: ${edits.map((edit) => `${circuit.name(circuit.row.get(edit.key))} ${circuit.place(circuit.row.get(edit.key))} ${editText(edit)}`).join("; ")}.\n${this.summary().text}.`;
    }
    this.say("Writing the file");
    try {
      const { files, error } = await this.wire.server.files({ id: this.shown.id, format, shown });
      this.say("");
      if (error) return this.complain(error);
      for (const [name, text] of Object.entries(files)) offer(new Blob([text]), name);
    } catch {
      this.complain("The app can't be reached; is it still running?", () => this.download(format));
    }
  }

  async upload(file) {
    const { uploads } = this.wire.props.limits;
    if (file.size > uploads) return this.complain(`${file.name} has ${file.size.toLocaleString("en-US")} bytes; at most ${uploads.toLocaleString("en-US")} are read here.`);
    this.say(`Reading ${cut(file.name, 40)}`);
    try {
      const { id, error } = await this.wire.server.upload_circuit(await file.text());
      this.say("");
      if (error) return this.complain(error);
      this.send("opened", { id });
    } catch {
      this.complain("The file could not be sent; is the app still running?");
    }
  }

  async copyLink() {
    const shown = this.shown && this.shown.form ? this.shown : this.before;
    if (!shown || !shown.form) return this.complain("This circuit came from a file; a link can't hold it. Download it instead.");
    const view = this.view.getState();
    const state = { v: 1, form: shown.form, basket: this.basket.edits, options: this.options, view, tab: this.tab };
    const address = new URL(window.location.href);
    address.search = `?c=${await packState(state)}`;
    address.hash = "";
    const text = address.href;
    this.root.dataset.link = text;
    try {
      await navigator.clipboard.writeText(text);
      this.say("Link copied.");
    } catch {
      const field = make("input", { readonly: true, value: text, "aria-label": "Link" });
      this.problem.replaceChildren(make("span", { text: "Copy this link:" }), field);
      this.problem.hidden = false;
      field.select();
    }
  }

  told(answer) {
    if (answer.id !== this.shown.id) return;
    if (answer.error) return this.complain(answer.error);
    if (answer.faithfulness !== undefined) this.faithful = answer;
    if (answer.before) this.written = answer;
    this.fill();
  }
}

/** Stands in for the wire until gradio's part of the page is there: what is asked until then is kept and asked then. */
class Waiting {
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
function begin() {
  const { first } = globalThis.CircuitApp;
  const gradio = window.gradio_config || {};
  if (!first || gradio.auth_required) return;
  const wanted = new URLSearchParams(window.location.search).get("__theme");
  const dark = wanted === "dark" || (wanted !== "light" && window.matchMedia("(prefers-color-scheme: dark)").matches);
  document.body.classList.toggle("dark", dark); // as gradio will
  const form = make("div", { class: "ca-coming ca-title" }, make("h1", { text: "circuitsae" }), make("span", {}));
  const host = make("div", { class: "ca-early" }, form, make("div", { class: "cw-mount" }));
  document.body.append(host);
  const shown = (globalThis.CircuitApp.shown = new Workbench(host, new Waiting(first)));
  shown.say("The page is starting");
  setTimeout(() => {
    if (shown.wire instanceof Waiting) shown.complain("The rest of the page has not come: the connection may be lost.", () => window.location.reload());
  }, PATIENCE);
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
