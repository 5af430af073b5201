// The whole: what is shown and selected, the bar above, the panel beside, and the controller that a host gets.

const EDGE_STEPS = [0, 1, 2, 3, 5, 8, 12, 20, 40, 80, Infinity];
const KEYS = [
  ["\u2190 \u2192 \u2191 \u2193", "to the next node that way"],
  ["Alt \u2191 \u2193", "along the strongest edge"],
  ["Enter", "select; with Shift, several"],
  ["Esc", "clear"],
  ["P", "pin"],
  ["G", "group what is selected"],
  ["/", "search"],
  ["T", "table"],
  ["+ \u2212 0", "zoom, fit"],
  ["F", "full screen"],
];
let drawings = 0;

class View {
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
    this.root = make("div", { class: "cg", "data-theme": "light" });
    element.replaceChildren(this.root);
    this.load(payload);
    this.watch();
  }

  load(payload) {
    this.circuit = new Circuit(payload);
    const { circuit } = this;
    this.state = { nodes: Math.min(circuit.choosable.length, this.options.nodes), edges: this.options.edges, bias: false, onlyPinned: false, colour: "effect", selected: new Set(), pins: new Set(), way: null, table: false };
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
    const { circuit } = this;
    if (this.stage) cancelAnimationFrame(this.stage.waiting);
    this.stage = new Stage(this);
    this.panel = new Panel(this);
    this.table = new Table(this);
    this.live = make("div", { class: "cg-live", "aria-live": "polite" });
    const slider = (name, most, listener, title) => {
      const said = make("output", { class: "cg-count" });
      const range = make("input", { type: "range", min: 0, max: most, "aria-label": name, title, on: { input: () => listener(Number(range.value)) } });
      return { range, said, label: make("label", { class: "cg-slider" }, make("span", { text: name }), range, said) };
    };
    this.nodesSlider = slider("Nodes", 1000, (place) => this.set({ nodes: this.nodesAt(place) }), "How many nodes, strongest first");
    this.edgesSlider = slider("In-edges", EDGE_STEPS.length - 1, (step) => this.set({ edges: EDGE_STEPS[step] }), "How many edges into each node, strongest first");
    this.colourSelect = make("select", { "aria-label": "Colour", on: { change: () => this.set({ colour: this.colourSelect.value }) } });
    const bias = make("input", { type: "checkbox", on: { change: () => this.set({ bias: bias.checked }) } });
    this.biasBox = bias;
    this.tableButton = button("Table", "Table", () => this.set({ table: !this.state.table }), { "aria-pressed": "false" });
    const zoom = make("div", { class: "cg-zoom" },
      button("minus", "Zoom out", () => this.stage.zoomBy(1 / 1.3)), button("fit", "Fit", () => this.stage.fit()), button("plus", "Zoom in", () => this.stage.zoomBy(1.3)));
    const tools = make("div", { class: "cg-tools" }, this.tableButton, this.menu("Save", [["SVG picture", () => this.save("svg")], ["PNG picture", () => this.save("png")], ["Nodes as CSV", () => this.save("nodes.csv")], ["Edges as CSV", () => this.save("edges.csv")]]), this.help(), button("full", "Full screen (F)", () => this.fullScreen()));
    this.bar = make("div", { class: "cg-bar" }, this.finder(), this.nodesSlider.label, this.edgesSlider.label,
      make("label", { class: "cg-field" }, make("span", { text: "Colour" }), this.colourSelect),
      circuit.bias >= 0 ? make("label", { class: "cg-check" }, bias, "bias edges") : null, tools);
    this.legend = make("div", { class: "cg-legend" });
    this.said = make("div", { class: "cg-status", role: "status" });
    this.stage.root.append(zoom);
    const main = make("div", { class: "cg-main" }, make("div", { class: "cg-left" }, this.stage.root, this.table.root, make("div", { class: "cg-below" }, this.legend, this.said)), this.panel.root);
    this.root.replaceChildren(...[this.options.header ? this.header() : null, this.bar, main, this.live].filter(Boolean));
    if (this.observer) this.observer.disconnect();
    this.observer = new ResizeObserver(() => this.resized());
    this.observer.observe(this.stage.root);
    this.observer.observe(this.root);
  }

  header() {
    const { about } = this.circuit;
    const metric = about.metric || {};
    const head = make("header", { class: "cg-head" });
    const tried = [about.preset || about.model, about.method && String(about.method).replace(/-/g, " "), about.baseline && `${about.baseline} baseline`].filter(Boolean);
    if (tried.length) head.append(make("p", { class: "cg-eyebrow", text: tried.join(" \u00b7 ") }));
    head.append(make("h1", { text: about.prompt ? quoted(about.prompt) : "Circuit" }));
    const facts = make("div", { class: "cg-facts" });
    const value = about.metric_value === undefined ? "" : ` = ${format(about.metric_value)}`;
    const against = about.baseline_metric_value === undefined ? "" : ` (${format(about.baseline_metric_value)} on the patch prompt)`;
    facts.append(make("p", { class: "cg-metric-line" }, make("b", { text: (metric.description || metric.name || "metric") + value }), against));
    if (about.top_tokens && about.top_tokens.length) {
      const most = about.top_tokens[0][1] || 1;
      const chips = about.top_tokens.slice(0, 6).map(([token, p]) => {
        const fill = make("span", { class: "cg-bar-fill" });
        fill.style.width = `${(100 * p) / most}%`;
        return make("span", { class: "cg-chip" }, fill, make("span", { text: quoted(token) }), make("small", { text: ` ${percent(p)}` }));
      });
      facts.append(make("div", { class: "cg-chips" }, make("span", { class: "cg-soft", text: "Next token" }), ...chips));
    }
    head.append(facts);
    this.note = make("p", { class: "cg-note", hidden: true });
    head.append(this.note);
    const rows = make("dl", { class: "cg-provenance" });
    const row = (name, given) => {
      if (given === undefined || given === null || given === "") return;
      rows.append(make("dt", { text: name }), make("dd", { text: typeof given === "string" ? given : typeof given === "object" ? pairs(given) : String(given) }));
    };
    for (const name of ["model", "preset", "method", "baseline", "gradient", "linearisation", "prune", "patch", "options", "kept", "package_version", "created"]) row(name.replace("_", " "), about[name]);
    for (const d of about.dictionaries || []) row(String(d.site), `${d.architecture}, ${d.d_sae} features, ${d.source}, sha256 ${d.fingerprint}`);
    const how = make("p", { text: "Read it upwards: each column is a token, each band a layer, the metric on top. A line runs from what acts to what it acts on; the thicker, the more of the metric goes through it. Select a node to see what feeds it and what it feeds." });
    head.append(make("div", { class: "cg-folds" }, make("details", { class: "cg-fold" }, make("summary", { text: "How to read this" }), how), make("details", { class: "cg-fold" }, make("summary", { text: "How it was made" }), rows)));
    return head;
  }

  finder() {
    const list = make("ul", { class: "cg-found", role: "listbox", id: `${this.id}-found`, "aria-label": "Found nodes", hidden: true });
    const input = make("input", { type: "search", placeholder: "Find index, label, token", "aria-label": "Search nodes", role: "combobox", "aria-expanded": "false", "aria-controls": list.id, "aria-autocomplete": "list", autocomplete: "off", spellcheck: "false" });
    this.search = input;
    let found = [];
    let at = -1;
    const open = (on) => {
      list.hidden = !on || !found.length;
      input.setAttribute("aria-expanded", String(!list.hidden));
    };
    const point = (next) => {
      at = next;
      [...list.children].forEach((row, n) => row.setAttribute("aria-selected", String(n === at)));
      if (at >= 0) {
        input.setAttribute("aria-activedescendant", list.children[at].id);
        list.children[at].scrollIntoView({ block: "nearest" });
      } else input.removeAttribute("aria-activedescendant");
    };
    const take = (n) => {
      if (found[n] === undefined) return;
      open(false);
      this.choose([found[n]]);
    };
    input.addEventListener("input", () => {
      found = this.circuit.find(input.value, 1000);
      this.matches = found;
      list.replaceChildren(...found.slice(0, 12).map((i, n) => make("li", { role: "option", id: `${this.id}-found-${n}`, "aria-selected": "false", on: { pointerdown: (event) => (event.preventDefault(), take(n)) } }, make("b", { text: this.circuit.name(i) }), make("span", { class: "cg-soft", text: ` ${this.circuit.label[i] || this.placeOf(i)}` }))));
      point(-1);
      open(true);
      if (input.value && !found.length) this.say("Nothing found.");
      this.stage.mark();
    });
    input.addEventListener("keydown", (event) => {
      const rows = Math.min(found.length, 12);
      if (event.key === "ArrowDown" && rows) point((at + 1) % rows), open(true);
      else if (event.key === "ArrowUp" && rows) point((at + rows - 1) % rows);
      else if (event.key === "Enter") take(Math.max(at, 0));
      else if (event.key === "Escape") {
        input.value = "";
        found = this.matches = [];
        open(false);
        this.clear();
      } else return;
      event.preventDefault();
      event.stopPropagation();
    });
    input.addEventListener("blur", () => open(false));
    input.addEventListener("focus", () => open(true));
    return make("div", { class: "cg-find" }, input, list);
  }

  menu(text, entries) {
    const list = make("div", { class: "cg-menu-list", role: "menu" });
    const menu = make("details", { class: "cg-menu" }, make("summary", {}, text, icon("down")), list);
    for (const [name, listener] of entries) list.append(make("button", { type: "button", role: "menuitem", text: name, on: { click: () => ((menu.open = false), listener()) } }));
    menu.addEventListener("focusout", (event) => !menu.contains(event.relatedTarget) && event.relatedTarget && (menu.open = false));
    return menu;
  }

  help() {
    const rows = KEYS.flatMap(([key, text]) => [make("dt", {}, make("kbd", { text: key })), make("dd", { text })]);
    if (this.options.intervene) rows.push(make("dt", {}, make("kbd", { text: "A" })), make("dd", { text: "ablate" }));
    rows.push(make("dt", { text: "Shift + drag" }), make("dd", { text: "select within" }), make("dt", { text: "Ctrl + wheel" }), make("dd", { text: "zoom" }));
    this.helpMenu = make("details", { class: "cg-menu" }, make("summary", { "aria-label": "Keys", title: "Keys (?)" }, "?"), make("dl", { class: "cg-menu-list cg-keys" }, ...rows));
    return this.helpMenu;
  }

  /** Listens to what lives as long as the view. */
  watch() {
    const on = { signal: this.listeners.signal };
    const theme = () => this.setTheme(this.options.theme);
    window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", theme, on);
    this.themes = new MutationObserver(theme);
    for (const element of [document.documentElement, document.body]) this.themes.observe(element, { attributes: true, attributeFilter: ["class", "data-theme"] });
    document.addEventListener("fullscreenchange", () => {
      this.root.classList.toggle("cg-full", document.fullscreenElement === this.root);
      this.stage.follows = true;
    }, on);
    document.addEventListener("pointerdown", (event) => {
      for (const menu of this.root.querySelectorAll(".cg-menu[open]")) if (!menu.contains(event.target)) menu.open = false;
    }, on);
    theme();
  }

  hear() {
    if (this.heard) return;
    this.heard = true;
    this.root.addEventListener("keydown", (event) => {
      if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey) return;
      const typing = event.target.closest("input, select, textarea");
      if (event.key === "Escape") {
        for (const menu of this.root.querySelectorAll(".cg-menu[open]")) menu.open = false;
        this.clear();
      } else if (typing || !this.key(event, -1)) return;
      event.preventDefault();
    }, { signal: this.listeners.signal });
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
      g: () => nodes.length > 1 && this.groupNodes(nodes),
    };
    if (this.options.intervene) actions.a = () => nodes.length && this.emit("intervene", { keys: nodes.map((i) => circuit.key[i]), op: "ablate", value: undefined });
    const action = actions[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    if (!action) return false;
    action();
    return true;
  }

  setTheme(theme) {
    this.options.theme = theme;
    const host = [document.documentElement, document.body];
    const named = host.map((element) => element.dataset.theme).find((name) => name === "dark" || name === "light");
    const hosted = host.some((element) => element.classList.contains("dark")) ? "dark" : document.querySelector(".gradio-container") ? "light" : null;
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

  nodesAt(place) {
    // The slider is fine where there are few, coarse where there are many.
    const most = this.circuit.choosable.length;
    return place >= 1000 ? most : Math.round(Math.expm1((place / 1000) * Math.log1p(most)));
  }

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
    this.forced = single.filter((id) => this.choosable(id) && !state.pins.has(id) && (onlyPinned || circuit.rank[id] >= state.nodes));
    const forced = [...single, ...(state.way ? state.way.nodes : [])];
    this.shown = compose(circuit, { nodes: state.nodes, edges: state.edges, bias: state.bias, pins: [...state.pins], groups: this.groups, onlyPinned, forced });
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
    this.fillBar();
    if (state.table) this.table.fill();
    stage.arrange(animate && !state.table);
    this.panel.show();
  }

  fillBar() {
    const { circuit, state } = this;
    const most = circuit.choosable.length;
    this.nodesSlider.range.value = most ? Math.round((1000 * Math.log1p(Math.min(state.nodes, most))) / Math.log1p(most)) : 0;
    this.edgesSlider.range.value = EDGE_STEPS.findIndex((step) => step >= state.edges);
    this.biasBox.checked = state.bias;
    const [nodes, edges] = this.status();
    this.nodesSlider.said.textContent = `${count(this.kept().length)} / ${count(most)}`;
    this.edgesSlider.said.textContent = state.edges === Infinity ? "all" : `${state.edges} each`;
    this.said.replaceChildren(make("span", { class: "cg-count-nodes", text: nodes }), make("span", { class: "cg-count-edges", text: edges }));
    this.colourSelect.replaceChildren(...this.modes.map((mode) => make("option", { value: mode.id, text: mode.name, selected: mode === this.mode })));
    this.colourSelect.value = this.mode.id;
    const swatch = (classes, text, path) => make("span", {}, draw("svg", { viewBox: "-7 -7 14 14", class: `cg-swatch cg-node ${classes}`, "aria-hidden": "true" }, path || draw("circle", { class: "cg-shape", r: 5 })), text);
    const line = (down, text) => make("span", {}, draw("svg", { viewBox: "0 0 24 10", class: "cg-line-swatch", "aria-hidden": "true" }, draw("path", { d: "M1 5h22", class: down ? "cg-line-down" : "cg-line-up" })), text);
    const entries = [
      ...colourLegend(this.mode).map(([classes, text]) => swatch(classes, text)),
      swatch("cg-none", "error node", draw("path", { class: "cg-shape", d: "M0-6L6 0L0 6L-6 0Z" })),
      line(false, "raises its target"),
      line(true, "lowers it"),
      make("span", { text: `size: ${circuit.strengthName}, thickness: |weight|` }),
    ];
    this.legend.replaceChildren(...entries);
  }

  kept() {
    const { circuit, shown } = this;
    return circuit.choosable.filter((i) => shown.item[i] >= 0);
  }

  /** What is on the drawing, of what there is. */
  status() {
    const { circuit, shown, state } = this;
    const kept = this.kept();
    const held = kept.reduce((sum, i) => sum + circuit.strength[i], 0);
    const share = circuit.totalStrength ? held / circuit.totalStrength : 1;
    const known = circuit.about.kept || {};
    const all = typeof known.effect_share === "number" && circuit.strengthName === "|effect|" ? share * known.effect_share : share;
    const weights = (list) => list.reduce((sum, edge) => sum + Math.abs(edge.weight), 0);
    const total = weights(shown.edges);
    const nodes = `${count(kept.length)} of ${plural(circuit.choosable.length, "node")}, kept ${percent(all)} of ${circuit.strengthName}`;
    const each = state.edges === Infinity ? "" : `, ${state.edges} into each`;
    return [nodes, `${count(shown.drawn.length)} of ${plural(shown.edges.length, "edge")}${each}, ${percent(total ? weights(shown.drawn) / total : 1)} of |weight|`];
  }

  /** Why there is not more to see, each in a sentence. */
  reasons() {
    const { circuit, shown, state } = this;
    const known = circuit.about.kept || {};
    const reasons = [];
    const hidden = circuit.choosable.length - this.kept().length;
    if (state.onlyPinned && state.pins.size) reasons.push(`${plural(hidden, "node")} hidden because only pinned ones are shown.`);
    else if (hidden > 0) reasons.push(`${plural(hidden, "weaker node")} below the Nodes slider.`);
    if (shown.drawn.length < shown.edges.length) reasons.push(`${plural(shown.edges.length - shown.drawn.length, "weaker edge")} below the In-edges slider; a selected node shows all of its own.`);
    if (!state.bias && circuit.bias >= 0) reasons.push("The bias node and its edges; tick \u201cbias edges\u201d.");
    if (typeof known.candidates === "number" && known.candidates > circuit.choosable.length) {
      const by = circuit.about.prune ? ` (${typeof circuit.about.prune === "string" ? circuit.about.prune : "pruning"})` : "";
      const share = typeof known.effect_share === "number" ? ` The circuit holds ${percent(known.effect_share)} of all |effect|.` : "";
      reasons.push(`${plural(known.candidates - circuit.choosable.length, "candidate")} left out when the circuit was traced${by}; trace with a larger max_nodes for more.${share}`);
    }
    if (typeof known.edge_candidates === "number" && known.edge_candidates > circuit.m) reasons.push(`${plural(known.edge_candidates - circuit.m, "edge")} left out when it was traced; a lower edge_threshold keeps more.`);
    return reasons;
  }

  /** What stands out: the way chosen or pointed at, else what is selected and pointed at, with its edges. */
  light() {
    const { circuit, shown, state } = this;
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
      for (const edge of [...(shown.ins.get(this.hovered) || []), ...(shown.outs.get(this.hovered) || [])]) if (drawn.has(edge) || (state.selected.size && edges.has(edge))) edges.add(edge);
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
    return ids.length === 1 && ids[0] < this.circuit.n ? this.circuit.elsewhere(ids[0]).filter((i) => this.shown.item[i] === i) : [];
  }

  /** The part of its activation that a node has left after an intervention, for those that changed most. */
  captions() {
    const { mode, circuit, shown } = this;
    const captions = new Map();
    if (!mode.before) return captions;
    const changed = shown.items.filter((id) => id < circuit.n && mode.before[id] && Number.isFinite(mode.after[id]) && Math.abs(mode.after[id] / mode.before[id] - 1) > 0.02);
    changed.sort((a, b) => Math.abs(mode.after[b] - mode.before[b]) - Math.abs(mode.after[a] - mode.before[a]));
    for (const id of changed.slice(0, 16)) captions.set(id, `${Math.round((100 * mode.after[id]) / mode.before[id])}%`.replace("-", MINUS));
    return captions;
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

  tipFor(id) {
    const { circuit, mode } = this;
    const parts = [make("b", { text: this.nameOf(id) })];
    if (this.placeOf(id)) parts.push(make("span", { class: "cg-soft", text: ` ${this.placeOf(id)}` }));
    if (id < circuit.n) {
      if (circuit.label[id]) parts.push(make("p", { class: "cg-label", text: cut(circuit.label[id], 140) }));
      const rows = [["activation", format(circuit.activation[id]), circuit.activation[id]], ["effect, predicted", format(circuit.effect[id], true), circuit.effect[id]], ["effect, measured", format(circuit.measured[id], true), circuit.measured[id]]];
      if (!["effect", "measured", "activation"].includes(mode.id)) rows.push([mode.name.toLowerCase(), mode.kind === "category" ? String((mode.names || [])[mode.values[id]] ?? "") : format(mode.values[id], mode.kind !== "scale"), mode.values[id]]);
      const shown = rows.filter(([, , value]) => !Number.isNaN(value));
      if (shown.length) parts.push(make("dl", {}, ...shown.flatMap(([name, text]) => [make("dt", { text: name }), make("dd", { text })])));
      const [ins, outs] = [circuit.ins[id].length, circuit.outs[id].length];
      if (ins + outs) parts.push(make("p", { class: "cg-soft", text: `${count(ins)} in, ${count(outs)} out` }));
    } else parts.push(make("p", { text: `predicted together ${format(this.sum(this.nodesOf([id])), true)}` }));
    return parts;
  }

  // --- doing ---

  hover(id, tip = true) {
    if (id >= 0) id = this.shown.item[id] ?? id;
    if (id === this.hovered && tip) return;
    this.hovered = id;
    this.stage.root.classList.toggle("cg-over", id >= 0);
    this.stage.showTip(tip ? id : -1);
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
    const chosen = [...(add ? state.selected : []), ...items].map((id) => (id < circuit.n && this.shown.item[id] >= 0 ? this.shown.item[id] : id));
    state.selected = new Set(chosen);
    state.way = null;
    this.preview = null;
    // A node below the threshold is shown as long as it is selected.
    if (chosen.some((id) => this.shown.item[id] < 0) || this.forced.some((id) => !state.selected.has(id))) this.update(true);
    else {
      stage.mark();
      stage.paint();
      this.panel.show();
      if (state.table) this.table.fill();
    }
    if (chosen.length === 1 && !state.table) {
      // On a narrow screen the details come over the lower half: the drawing moves up to stay in sight.
      if (this.root.classList.contains("cg-narrow") && stage.root.getBoundingClientRect().top > 80) stage.root.scrollIntoView({ block: "start" });
      stage.reveal(chosen[0]);
    }
    if ([...state.selected].join() === before) return;
    this.say(chosen.length === 1 ? `Selected: ${this.describe(chosen[0])}` : chosen.length ? `${chosen.length} selected` : "Nothing selected");
    this.emit("select", { keys: this.nodesOf(chosen).map((i) => circuit.key[i]) });
    this.changed();
  }

  /** The height of the drawing that nothing covers. */
  seenHeight() {
    const { height } = this.stage.size;
    if (!this.root.classList.contains("cg-narrow") || !this.state.selected.size) return height;
    return Math.max(120, Math.min(height, window.innerHeight * 0.54 - Math.max(0, this.stage.root.getBoundingClientRect().top)));
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
    const members = [...new Set(nodes)].filter((i) => this.choosable(i) || circuit.kind[i] === "token").sort((a, b) => a - b);
    if (!members.length) return;
    const taken = new Set(members);
    for (const group of this.groups) group.nodes = group.nodes.filter((i) => !taken.has(i));
    this.groups = this.groups.filter((group) => group.nodes.length);
    const label = members.map((i) => circuit.label[i]).find(Boolean);
    this.groups.push({ name: String(name || label || `Group ${this.groups.length + 1}`).slice(0, 80), nodes: members });
    this.regroup(circuit.n + this.groups.length - 1);
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
    return this.groups.map((group) => ({ name: group.name, keys: group.nodes.map((i) => this.circuit.key[i]) }));
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
    const wanted = overlay && (overlay.mode || (overlay.before && overlay.after ? "change" : overlay.modes && overlay.modes.length ? overlay.modes[0].id : null));
    if (wanted && this.modes.some((mode) => mode.id === wanted)) this.state.colour = wanted;
    else if (!this.modes.some((mode) => mode.id === this.state.colour)) this.state.colour = "effect";
    this.mode = this.modes.find((mode) => mode.id === this.state.colour) || this.modes[0];
    this.fillBar();
    // What changed is to be seen beside what is selected.
    this.root.classList.toggle("cg-changed", this.modes.some((mode) => mode.before));
    this.stage.recolour();
    this.stage.paint();
    this.panel.show();
  }

  /** Takes in effects that were measured since. */
  setMeasured(values) {
    for (const [key, value] of Object.entries(values)) {
      const i = this.circuit.row.get(key);
      if (i !== undefined && typeof value === "number") this.circuit.measured[i] = value;
    }
    this.setModes();
    this.fillBar();
    this.stage.recolour();
    this.stage.paint();
    this.panel.show();
    if (this.state.table) this.table.fill();
  }

  fullScreen() {
    if (document.fullscreenElement) document.exitFullscreen();
    else if (this.root.requestFullscreen) this.root.requestFullscreen().catch(() => this.say("This browser does not allow full screen here."));
  }

  async save(what) {
    const name = (this.circuit.about.prompt || "circuit").toLowerCase().replace(/[^a-z0-9]+/g, "-").replace(/^-|-$/g, "").slice(0, 40) || "circuit";
    try {
      if (what === "svg") offer(new Blob([toSvg(this)], { type: "image/svg+xml" }), `${name}.svg`);
      else if (what === "png") offer(await toPng(this), `${name}.png`);
      else offer(new Blob([this.csv(what === "nodes.csv")], { type: "text/csv" }), `${name}.${what}`);
    } catch (error) {
      this.say(`Could not save: ${error.message}`);
    }
  }

  csv(nodes) {
    const { circuit } = this;
    const cell = (value) => {
      if (typeof value === "number") return Number.isNaN(value) ? "" : String(value);
      const text = String(value ?? "");
      // A spreadsheet would run these as formulas.
      const safe = /^[=+\-@\t\r]./.test(text) ? `'${text}` : text;
      return /[",\n\r]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
    };
    const rows = nodes
      ? [["node", "kind", "token", "label", "activation", "effect", "measured_effect"], ...this.nodesOf(this.shown.items).map((i) => [circuit.key[i], circuit.kind[i], circuit.tokenAt(i), circuit.label[i], circuit.activation[i], circuit.effect[i], circuit.measured[i]])]
      : [["source", "target", "contribution", "weight"], ...this.shown.edges.map((edge) => [edge.source, edge.target].map((id) => (id < circuit.n ? circuit.key[id] : this.nameOf(id))).concat([edge.contribution, edge.weight]))];
    return rows.map((row) => row.map(cell).join(",")).join("\n") + "\n";
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
    this.telling = setTimeout(() => this.emit("state", { state: this.getState() }), 150);
  }

  // --- state ---

  getState() {
    const { state, circuit, stage } = this;
    const keys = (nodes) => [...nodes].map((i) => circuit.key[i]);
    return {
      version: 1,
      nodes: state.nodes,
      edges: state.edges === Infinity ? "all" : state.edges,
      bias: state.bias,
      onlyPinned: state.onlyPinned,
      colour: state.colour,
      table: state.table,
      selected: [...state.selected].map((id) => (id < circuit.n ? circuit.key[id] : { group: id - circuit.n })),
      pins: keys(state.pins),
      groups: this.groupKeys(),
      way: state.way ? keys(state.way.nodes) : null,
      zoom: stage.follows ? null : { ...stage.zoom },
    };
  }

  /** Takes a state from getState, perhaps from a stranger's link: what it does not understand it leaves as it is. */
  setState(given) {
    if (!given || typeof given !== "object") return;
    const { circuit, state, stage } = this;
    const rows = (keys) => (Array.isArray(keys) ? keys.map((key) => circuit.row.get(key)).filter((i) => i !== undefined) : []);
    if (Number.isFinite(given.nodes)) state.nodes = Math.max(0, Math.min(circuit.choosable.length, Math.round(given.nodes)));
    if (given.edges === "all" || given.edges === Infinity) state.edges = Infinity;
    else if (Number.isFinite(given.edges)) state.edges = Math.max(0, Math.round(given.edges));
    for (const name of ["bias", "onlyPinned", "table"]) if (typeof given[name] === "boolean") state[name] = given[name];
    if (given.overlay && typeof given.overlay === "object") this.setOverlay(given.overlay);
    if (typeof given.note === "string" && this.note) {
      this.note.textContent = given.note;
      this.note.hidden = !given.note;
    }
    if (typeof given.colour === "string") state.colour = given.colour;
    if (given.pins) state.pins = new Set(rows(given.pins).filter((i) => this.choosable(i) || circuit.kind[i] === "token"));
    if (Array.isArray(given.groups)) {
      const taken = new Set();
      this.groups = given.groups.slice(0, 100).filter((group) => group && typeof group === "object").map((group) => ({
        name: String(group.name || "Group").slice(0, 80),
        nodes: rows(group.keys).filter((i) => (this.choosable(i) || circuit.kind[i] === "token") && !taken.has(i) && taken.add(i)),
      })).filter((group) => group.nodes.length);
    }
    if (given.selected) {
      const items = Array.isArray(given.selected) ? given.selected : [];
      state.selected = new Set(items.map((item) => (item && typeof item === "object" && Number.isInteger(item.group) && item.group >= 0 && item.group < this.groups.length ? circuit.n + item.group : circuit.row.get(item))).filter((id) => id !== undefined));
    }
    if (given.way !== undefined) {
      const nodes = rows(given.way);
      const edges = nodes.slice(1).map((i, n) => circuit.ins[i].find((e) => circuit.source[e] === nodes[n]));
      state.way = nodes.length > 1 && edges.every((e) => e !== undefined) ? { nodes, edges, share: edges.reduce((share, e) => (share * Math.abs(circuit.weight[e])) / circuit.inWeight[circuit.target[e]], 1), sign: edges.reduce((sign, e) => (circuit.contribution[e] < 0 ? -sign : sign), 1) } : null;
    }
    const { zoom } = given;
    const moved = zoom && ["k", "x", "y"].every((name) => Number.isFinite(zoom[name])) && zoom.k > 0;
    stage.follows = !moved;
    this.update();
    if (moved) stage.move({ k: Math.min(6, Math.max(0.1, zoom.k)), x: zoom.x, y: zoom.y });
  }

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

/** An object as "name: value" pairs. */
function pairs(value) {
  if (Array.isArray(value)) return value.map((item) => (item && typeof item === "object" ? JSON.stringify(item) : String(item))).join(", ");
  return Object.entries(value).map(([name, item]) => `${name.replaceAll("_", " ")}: ${item && typeof item === "object" ? JSON.stringify(item) : String(item)}`).join(", ");
}

/**
 * Draws a payload (circuitsae.export.view) in an element and returns a controller; docs/drawing.md describes both.
 */
function mount(element, payload, options = {}) {
  const view = new View(element, payload, options);
  const rows = (keys) => (Array.isArray(keys) ? keys : keys ? [keys] : []).map((key) => view.circuit.row.get(key)).filter((i) => i !== undefined);
  if (options.state) view.setState(options.state);
  return {
    element: view.root,
    get circuit() {
      return view.circuit;
    },
    setPayload: (next) => view.load(next),
    getState: () => view.getState(),
    setState: (state) => view.setState(state),
    getThresholds: () => ({ nodes: view.state.nodes, edges: view.state.edges }),
    setThresholds: ({ nodes, edges }) => view.setState({ nodes, edges, zoom: view.stage.follows ? null : view.stage.zoom }),
    select: (keys) => view.choose(rows(keys)),
    focus: () => view.stage.focus(view.stage.firstItem()),
    selection: () => view.nodesOf([...view.state.selected]).map((i) => view.circuit.key[i]),
    pin: (keys, on = true) => view.pin(rows(keys), on),
    group: (name, keys) => view.groupNodes(rows(keys), name),
    ungroup: (name) => {
      const g = view.groups.findIndex((group) => group.name === name);
      if (g >= 0) view.ungroup(g);
    },
    paths: (source, target, k = 5) => {
      const [from, to] = [view.circuit.row.get(source), view.circuit.row.get(target)];
      if (from === undefined || to === undefined) return [];
      return view.circuit.paths(from, to, k).map((way) => ({ nodes: way.nodes.map((i) => view.circuit.key[i]), share: way.share, sign: way.sign }));
    },
    showPath: (keys) => view.setState({ way: keys }),
    setOverlay: (overlay) => view.setOverlay(overlay),
    setColour: (mode) => view.set({ colour: mode }),
    setMeasured: (values) => view.setMeasured(values),
    setSayings: (sayings) => {
      view.sayings = new Map(Object.entries(sayings || {}));
      view.panel.show();
    },
    say: (text) => view.say(text),
    save: (what) => view.save(what),
    setCard: (key, sections) => {
      if (sections) view.panel.cards.set(key, sections);
      else view.panel.cards.delete(key);
      view.panel.show();
    },
    setTheme: (theme) => view.setTheme(theme),
    setTable: (on) => view.set({ table: Boolean(on) }),
    fit: () => view.stage.fit(),
    toSVG: () => toSvg(view),
    toPNG: (scale) => toPng(view, scale),
    on: (type, listener) => {
      if (!view.hearers.has(type)) view.hearers.set(type, new Set());
      view.hearers.get(type).add(listener);
      return () => view.hearers.get(type).delete(listener);
    },
    destroy: () => view.destroy(),
  };
}

// What a host builds its own parts with, so that they look and read like these.
const tools = { make, draw, button, icon, format, percent, count, plural, visible, quoted, cut, offer, MINUS };

globalThis.CircuitGraph = { mount, tools };
