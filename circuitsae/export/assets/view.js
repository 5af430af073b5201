// @ts-check
// The whole: what is shown and selected, and what is done with it.

import { barOf, fillBar } from "./bar.js";
import { Circuit } from "./circuit.js";
import { colourModes } from "./colours.js";
import { compose } from "./compose.js";
import { button, make } from "./elements.js";
import { header } from "./header.js";
import { recolour } from "./nodes.js";
import { Panel } from "./panel.js";
import { offer, toPng, toSvg } from "./save.js";
import { Stage } from "./stage.js";
import { getState } from "./states.js";
import { Table, csv } from "./table.js";
import { plural } from "./text.js";
import { showTip } from "./tip.js";

let drawings = 0;

export class View {
  constructor(element, payload, options) {
    this.options = { header: false, intervene: false, nodes: 300, edges: 2, theme: "auto", ...options };
    drawings += 1;
    this.id = `cg${drawings}`;
    this.listeners = new AbortController();
    this.hearers = new Map();
    this.groups = [];
    this.matches = [];
    this.hovered = -1;
    this.preview = null;
    this.overlay = null;
    this.sayings = new Map();
    this.note = null;
    this.search = this.helpMenu = this.tableButton = null; // made by the bar
    this.selecting = this.nothingElse = false;
    this.selectButton = null;
    this.root = make("div", { class: "cg", "data-theme": "light" });
    element.replaceChildren(this.root);
    this.load(payload);
    this.watch();
  }

  load(payload) {
    this.circuit = new Circuit(payload);
    const { circuit } = this;
    this.state = {
      nodes: Math.min(circuit.choosable.length, this.options.nodes),
      edges: this.options.edges,
      bias: false,
      errors: true,
      onlyPinned: false,
      colour: "effect",
      selected: new Set(),
      pins: new Set(),
      way: null,
      table: false,
    };
    this.groups = [];
    this.matches = [];
    this.hovered = -1;
    this.overlay = null;
    this.sayings.clear();
    this.setModes();
    this.build();
    this.update();
    this.hear();
  }

  // --- building ---

  build() {
    if (this.stage) cancelAnimationFrame(this.stage.waiting);
    this.stage = new Stage(this);
    this.panel = new Panel(this);
    this.table = new Table(this);
    this.live = make("div", { class: "cg-live", "aria-live": "polite" });
    this.bar = barOf(this);
    this.selectButton = button(
      "Select",
      "Select several by taps or a drag (S)",
      () => this.setSelecting(!this.selecting),
      {
        "aria-pressed": "false",
      },
    );
    const zoom = make(
      "div",
      { class: "cg-zoom" },
      button("minus", "Zoom out", () => this.stage.zoomBy(1 / 1.3)),
      button("fit", "Fit", () => this.stage.fit()),
      button("plus", "Zoom in", () => this.stage.zoomBy(1.3)),
      this.selectButton,
    );
    this.legend = make("div", { class: "cg-legend" });
    this.said = make("div", { class: "cg-status", role: "status" });
    this.stage.root.append(zoom);
    const main = make(
      "div",
      { class: "cg-main" },
      make(
        "div",
        { class: "cg-left" },
        this.stage.root,
        this.table.root,
        make("div", { class: "cg-below" }, this.legend, this.said),
      ),
      this.panel.root,
    );
    this.root.replaceChildren(
      ...[this.options.header ? header(this) : null, this.bar, main, this.live].filter(Boolean),
    );
    if (this.observer) this.observer.disconnect();
    this.observer = new ResizeObserver(() => this.resized());
    this.observer.observe(this.stage.root);
    this.observer.observe(this.root);
  }

  /** Listens to what lives as long as the view. */
  watch() {
    const on = { signal: this.listeners.signal };
    const theme = () => this.setTheme(this.options.theme);
    window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", theme, on);
    this.themes = new MutationObserver(theme);
    for (const element of [document.documentElement, document.body])
      this.themes.observe(element, { attributes: true, attributeFilter: ["class", "data-theme"] });
    document.addEventListener(
      "fullscreenchange",
      () => {
        this.root.classList.toggle("cg-full", document.fullscreenElement === this.root);
        this.stage.follows = true;
      },
      on,
    );
    document.addEventListener(
      "pointerdown",
      (event) => {
        for (const menu of this.root.querySelectorAll(".cg-menu[open]"))
          if (!menu.contains(event.target)) menu.open = false;
      },
      on,
    );
    theme();
  }

  hear() {
    if (this.heard) return;
    this.heard = true;
    this.root.addEventListener(
      "keydown",
      (event) => {
        if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey) return;
        const typing = event.target.closest("input, select, textarea");
        if (event.key === "Escape") {
          for (const menu of this.root.querySelectorAll(".cg-menu[open]")) menu.open = false;
          if (this.selecting) this.setSelecting(false);
          else this.clear();
        } else if (typing || !this.key(event, -1)) return;
        event.preventDefault();
      },
      { signal: this.listeners.signal },
    );
  }

  /** Does what a key asks for; `item` is the one focused, -1 for none. False where the key asks for nothing. */
  key(event, item) {
    const { stage, state, circuit } = this;
    const items = state.selected.size ? [...state.selected] : item >= 0 ? [item] : [];
    const nodes = this.nodesOf(items);
    const actions = {
      "+": () => stage.zoomBy(1.3),
      "=": () => stage.zoomBy(1.3),
      "-": () => stage.zoomBy(1 / 1.3),
      0: () => stage.fit(),
      "/": () => this.search.focus(),
      "?": () => (this.helpMenu.open = !this.helpMenu.open),
      t: () => this.set({ table: !state.table }),
      f: () => this.fullScreen(),
      p: () => nodes.length && this.pin(nodes, !nodes.every((i) => state.pins.has(i))),
      g: () => nodes.length > 1 && this.askGroup(nodes),
      s: () => this.setSelecting(!this.selecting),
    };
    if (this.options.intervene)
      actions.a = () =>
        nodes.length &&
        this.emit("intervene", { keys: nodes.map((i) => circuit.key[i]), op: "ablate", value: undefined });
    const action = actions[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    if (!action) return false;
    action();
    return true;
  }

  setTheme(theme) {
    this.options.theme = theme;
    const host = [document.documentElement, document.body];
    const named = host.map((element) => element.dataset.theme).find((name) => name === "dark" || name === "light");
    const hosted = host.some((element) => element.classList.contains("dark"))
      ? "dark"
      : document.querySelector(".gradio-container")
        ? "light"
        : null;
    const preferred = window.matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
    this.root.dataset.theme = theme === "light" || theme === "dark" ? theme : named || hosted || preferred;
    this.stage.paint();
  }

  resized() {
    const width = this.root.clientWidth;
    if (!width) return;
    this.root.classList.toggle("cg-narrow", width < 760);
    const { stage } = this;
    const { width: w, height: h } = stage.size;
    if (stage.seen && stage.seen[0] === w && stage.seen[1] === h) return;
    stage.seen = [w, h];
    if (stage.follows && !stage.root.hidden) stage.arrange(false);
    else stage.paint();
  }

  // --- what is shown ---

  set(changes) {
    Object.assign(this.state, changes);
    this.update(true);
    this.changed();
  }

  setModes() {
    this.modes = colourModes(this.circuit, this.overlay);
    this.mode = this.modes.find((mode) => mode.id === this.state.colour) || this.modes[0];
  }

  /** Chooses what is on the drawing, places it and fills bar, panel and table. */
  update(animate = false) {
    const { circuit, state, stage } = this;
    this.mode = this.modes.find((mode) => mode.id === state.colour) || this.modes[0];
    const single = [...state.selected].filter((id) => id < circuit.n);
    const onlyPinned = state.onlyPinned && state.pins.size > 0;
    this.forced = single.filter(
      (id) => this.choosable(id) && !state.pins.has(id) && (onlyPinned || circuit.rank[id] >= state.nodes),
    );
    const forced = [...single, ...(state.way ? state.way.nodes : [])];
    this.shown = compose(circuit, {
      nodes: state.nodes,
      edges: state.edges,
      bias: state.bias,
      errors: state.errors,
      pins: [...state.pins],
      groups: this.groups,
      onlyPinned,
      forced,
    });
    for (const id of [...state.selected]) if (id >= circuit.n + this.groups.length) state.selected.delete(id);
    // A node that went into a group is selected as that group.
    for (const id of single) {
      if (this.shown.item[id] !== id) {
        state.selected.delete(id);
        if (this.shown.item[id] >= 0) state.selected.add(this.shown.item[id]);
      }
    }
    this.table.root.hidden = !state.table;
    stage.root.hidden = state.table;
    this.tableButton.setAttribute("aria-pressed", String(state.table));
    fillBar(this);
    if (state.table) this.table.fill();
    stage.arrange(animate && !state.table);
    this.panel.show();
  }

  kept() {
    const { circuit, shown } = this;
    return circuit.choosable.filter((i) => shown.item[i] >= 0);
  }

  /** What stands out: the way chosen or pointed at, else what is selected and pointed at, with its edges. */
  light() {
    const { shown, state } = this;
    const way = this.preview || state.way;
    const lit = new Set();
    if (way) {
      const items = way.nodes.map((i) => shown.item[i]).filter((id) => id >= 0);
      for (const id of items) lit.add(id);
      const steps = new Set(items.slice(1).map((id, n) => `${items[n]},${id}`));
      const edges = shown.edges.filter((edge) => steps.has(`${edge.source},${edge.target}`));
      return { lit, edges, focused: true };
    }
    const edges = new Set();
    const drawn = new Set(shown.drawn);
    for (const id of state.selected) {
      lit.add(id);
      // A selected node shows all of its edges, one pointed at those that are drawn.
      for (const edge of [...(shown.ins.get(id) || []), ...(shown.outs.get(id) || [])]) edges.add(edge);
    }
    if (this.hovered >= 0) {
      lit.add(this.hovered);
      for (const edge of [...(shown.ins.get(this.hovered) || []), ...(shown.outs.get(this.hovered) || [])])
        if (drawn.has(edge) || (state.selected.size && edges.has(edge))) edges.add(edge);
    }
    for (const edge of edges) {
      lit.add(edge.source);
      lit.add(edge.target);
    }
    return { lit, edges: [...edges], focused: state.selected.size > 0 };
  }

  /** The same feature at other positions as the one selected or pointed at. */
  same() {
    const ids = this.hovered >= 0 ? [this.hovered] : [...this.state.selected];
    return ids.length === 1 && ids[0] < this.circuit.n
      ? this.circuit.elsewhere(ids[0]).filter((i) => this.shown.item[i] === i)
      : [];
  }

  /** Whether an item stays in sight whatever is folded: it is selected, pinned or on a way. */
  held(id) {
    const { selected, pins, way } = this.state;
    return selected.has(id) || pins.has(id) || Boolean(way && way.nodes.includes(id));
  }

  // --- names ---

  choosable(id) {
    return id >= this.circuit.n || this.circuit.rank[id] >= 0;
  }

  nodesOf(items) {
    return items.flatMap((id) => (id < this.circuit.n ? [id] : this.groups[id - this.circuit.n].nodes));
  }

  nameOf(id) {
    return id < this.circuit.n ? this.circuit.name(id) : this.groups[id - this.circuit.n].name;
  }

  placeOf(id) {
    if (id >= this.circuit.n) return plural(this.groups[id - this.circuit.n].nodes.length, "node");
    return this.circuit.kind[id] === "token" ? `at ${this.circuit.position[id]}` : this.circuit.place(id);
  }

  describe(id) {
    if (id < this.circuit.n) return this.circuit.describe(id);
    return `Group ${this.nameOf(id)}, ${this.placeOf(id)}`;
  }

  valueOf(id) {
    if (id < this.circuit.n) return this.mode.values[id];
    const { nodes } = this.groups[id - this.circuit.n];
    if (this.mode.kind === "category") return this.mode.values[nodes[0]];
    const known = nodes.map((i) => this.mode.values[i]).filter((value) => !Number.isNaN(value));
    if (!known.length) return NaN;
    const sum = known.reduce((total, value) => total + value, 0);
    return this.mode.kind === "sign" ? sum : sum / known.length;
  }

  /** The sum of predicted effects. */
  sum(nodes) {
    const known = nodes.map((i) => this.circuit.effect[i]).filter((value) => !Number.isNaN(value));
    return known.length ? known.reduce((total, value) => total + value, 0) : NaN;
  }

  // --- doing ---

  hover(id, tip = true) {
    if (id >= 0) id = this.shown.item[id] ?? id;
    if (id === this.hovered && tip) return;
    this.hovered = id;
    this.stage.root.classList.toggle("cg-over", id >= 0);
    showTip(this.stage, tip ? id : -1);
    this.stage.mark();
    this.emit("hover", { key: id >= 0 && id < this.circuit.n ? this.circuit.key[id] : null });
  }

  click(id, many) {
    this.stage.tip.hidden = true;
    if (id < 0) {
      if (!many) this.clear();
    } else if (many) {
      const items = new Set(this.state.selected);
      if (!items.delete(id)) items.add(id);
      this.choose([...items]);
    } else this.choose(this.state.selected.size === 1 && this.state.selected.has(id) ? [] : [id]);
  }

  /** Selects items; one under the threshold comes to be shown. */
  choose(items, add = false) {
    const { state, circuit, stage } = this;
    const before = [...state.selected].join();
    const chosen = [...(add ? state.selected : []), ...items].map((id) =>
      id < circuit.n && this.shown.item[id] >= 0 ? this.shown.item[id] : id,
    );
    state.selected = new Set(chosen);
    state.way = null;
    this.preview = null;
    // A node below the threshold is shown as long as it is selected.
    const hidden = (id) => this.shown.item[id] < 0 || stage.layout.folded.has(id);
    if (chosen.some(hidden) || this.forced.some((id) => !state.selected.has(id))) this.update(true);
    else {
      stage.mark();
      stage.paint();
      this.panel.show();
      if (state.table) this.table.fill();
    }
    if (chosen.length === 1 && !state.table) {
      // On a narrow screen the details come over the lower half: the drawing moves up to stay in sight.
      if (this.root.classList.contains("cg-narrow") && stage.root.getBoundingClientRect().top > 80)
        stage.root.scrollIntoView({ block: "start" });
      stage.reveal(chosen[0]);
    }
    if ([...state.selected].join() === before) return;
    this.say(
      chosen.length === 1
        ? `Selected: ${this.describe(chosen[0])}`
        : chosen.length
          ? `${chosen.length} selected`
          : "Nothing selected",
    );
    this.emit("select", { keys: this.nodesOf(chosen).map((i) => circuit.key[i]) });
    this.changed();
  }

  /** The height of the drawing that nothing covers. */
  seenHeight() {
    const { height } = this.stage.size;
    if (!this.root.classList.contains("cg-narrow") || !this.state.selected.size) return height;
    return Math.max(
      120,
      Math.min(height, window.innerHeight * 0.54 - Math.max(0, this.stage.root.getBoundingClientRect().top)),
    );
  }

  /** Whether each click adds to the selection, for those who have no Shift key. */
  setSelecting(on) {
    this.selecting = on;
    this.selectButton.setAttribute("aria-pressed", String(on));
    this.root.classList.toggle("cg-selecting", on);
    this.say(on ? "Each tap adds to the selection; a drag selects what is within" : "A tap selects one node");
  }

  clear() {
    if (this.state.way) this.setWay(null);
    else if (this.state.selected.size) this.choose([]);
    if (this.matches.length) {
      this.matches = [];
      this.search.value = "";
      this.stage.mark();
    }
  }

  pin(nodes, on) {
    for (const i of nodes) {
      if (!on) this.state.pins.delete(i);
      else if (this.choosable(i) || this.circuit.kind[i] === "token") this.state.pins.add(i);
    }
    if (!this.state.pins.size) this.state.onlyPinned = false;
    this.update(true);
    this.say(on ? `Pinned ${plural(nodes.length, "node")}` : `Unpinned ${plural(nodes.length, "node")}`);
    this.emit("pins", { keys: [...this.state.pins].map((i) => this.circuit.key[i]) });
    this.changed();
  }

  groupNodes(nodes, name) {
    const { circuit } = this;
    const members = [...new Set(nodes)]
      .filter((i) => this.choosable(i) || circuit.kind[i] === "token")
      .sort((a, b) => a - b);
    if (!members.length) return;
    const taken = new Set(members);
    for (const group of this.groups)
      if (group.nodes.some((i) => taken.has(i))) {
        group.nodes = group.nodes.filter((i) => !taken.has(i));
        group.measured = NaN;
      }
    this.groups = this.groups.filter((group) => group.nodes.length);
    const label = members.map((i) => circuit.label[i]).find(Boolean);
    this.groups.push({ name: String(name || label || `Group ${this.groups.length + 1}`).slice(0, 80), nodes: members });
    this.regroup(circuit.n + this.groups.length - 1);
  }

  /** Groups nodes and asks what the group is to be called; without an answer it keeps the name it got. */
  askGroup(nodes) {
    this.groupNodes(nodes);
    this.panel.askName();
  }

  ungroup(g) {
    this.groups.splice(g, 1);
    this.regroup(-1);
  }

  renameGroup(g, name) {
    if (!name.trim()) return;
    this.groups[g].name = name.trim().slice(0, 80);
    this.regroup(this.circuit.n + g);
  }

  regroup(selected) {
    this.state.selected = new Set(selected >= 0 ? [selected] : []);
    this.state.way = null;
    this.update(true);
    this.emit("groups", { groups: this.groupKeys() });
    this.changed();
  }

  groupKeys() {
    return this.groups.map(({ name, nodes, measured }) => ({
      name,
      keys: nodes.map((i) => this.circuit.key[i]),
      ...(Number.isFinite(measured) ? { measured_effect: measured } : {}),
    }));
  }

  setWay(way) {
    this.state.way = way;
    this.preview = null;
    if (way && way.nodes.some((i) => this.shown.item[i] < 0)) this.update(true);
    else this.stage.mark();
    this.changed();
  }

  previewWay(way) {
    this.preview = way;
    this.stage.mark();
  }

  setOverlay(overlay) {
    this.overlay = overlay || null;
    this.setModes();
    let wanted = null;
    if (overlay && overlay.mode) wanted = overlay.mode;
    else if (overlay && overlay.before && overlay.after) wanted = this.othersChanged() ? "change" : this.state.colour;
    else if (overlay && overlay.modes && overlay.modes.length) wanted = overlay.modes[0].id;
    if (wanted && this.modes.some((mode) => mode.id === wanted)) this.state.colour = wanted;
    else if (!this.modes.some((mode) => mode.id === this.state.colour)) this.state.colour = "effect";
    this.nothingElse = Boolean(overlay && overlay.before && overlay.after) && !this.othersChanged();
    this.mode = this.modes.find((mode) => mode.id === this.state.colour) || this.modes[0];
    fillBar(this);
    // What changed is to be seen beside what is selected.
    this.root.classList.toggle(
      "cg-changed",
      this.modes.some((mode) => mode.before),
    );
    recolour(this.stage);
    this.stage.paint();
    this.panel.show();
  }

  /** Whether an overlay changes more than the nodes that it marks: else its colours would say nothing. */
  othersChanged() {
    const change = this.modes.find((mode) => mode.id === "change");
    const marked = new Set((this.overlay.marks || []).map((mark) => this.circuit.row.get(mark.key)));
    return change.values.some((value, i) => Math.abs(value) > 1e-3 * change.most && !marked.has(i));
  }

  /** Takes in effects that were measured since, and with `rank` orders the nodes by them; what is selected stays. */
  setMeasured(values, rank = false) {
    for (const [key, value] of Object.entries(values)) {
      const i = this.circuit.row.get(key);
      if (i !== undefined && typeof value === "number") this.circuit.measured[i] = this.circuit.known[i] = value;
    }
    if (rank) this.circuit.rerank();
    this.setModes();
    if (rank) return this.update(true);
    fillBar(this);
    recolour(this.stage);
    this.stage.paint();
    this.panel.show();
    if (this.state.table) this.table.fill();
  }

  fullScreen() {
    if (document.fullscreenElement) document.exitFullscreen();
    else if (this.root.requestFullscreen)
      this.root.requestFullscreen().catch(() => this.say("This browser does not allow full screen here."));
  }

  async save(what) {
    const name =
      (this.circuit.about.prompt || "circuit")
        .toLowerCase()
        .replace(/[^a-z0-9]+/g, "-")
        .replace(/^-|-$/g, "")
        .slice(0, 40) || "circuit";
    try {
      if (what === "svg") offer(new Blob([toSvg(this)], { type: "image/svg+xml" }), `${name}.svg`);
      else if (what === "png") offer(await toPng(this), `${name}.png`);
      else offer(new Blob([csv(this, what === "nodes.csv")], { type: "text/csv" }), `${name}.${what}`);
    } catch (error) {
      this.say(`Could not save: ${error.message}`);
    }
  }

  say(text) {
    this.live.textContent = text;
  }

  emit(type, detail) {
    for (const listener of this.hearers.get(type) || []) listener(detail);
  }

  /** Tells, a little later and once, that what getState returns has changed. */
  changed() {
    clearTimeout(this.telling);
    this.telling = setTimeout(() => this.emit("state", { state: getState(this) }), 150);
  }

  // --- state ---

  destroy() {
    this.listeners.abort();
    this.observer.disconnect();
    this.themes.disconnect();
    clearTimeout(this.telling);
    cancelAnimationFrame(this.stage.waiting);
    cancelAnimationFrame(this.stage.gliding);
    clearTimeout(this.stage.resting);
    this.stage.layout = null;
    this.hearers.clear();
    this.root.remove();
  }
}
