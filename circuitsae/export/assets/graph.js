// The drawing: edges on a canvas, nodes as SVG above it, beside it a panel. All text goes in by textContent.

const SVG = "http://www.w3.org/2000/svg";
const GAP = { column: 22, node: 25, line: 28, row: 34, edge: 24 };
const PER_LINE = 5; // nodes of one cell side by side; more go on further lines
const EDGE_STEPS = [0, 1, 2, 3, 5, 8, 12, 20, 40, 80, Infinity];

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "text") element.textContent = value;
    else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

function draw(tag, attributes = {}) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

/** Places the nodes: a column for each position, a line of rows for each site, tokens at the foot, the metric on top. */
function place(circuit, shown) {
  const used = new Set(shown.map((i) => circuit.site[i]).filter((site) => site >= 0));
  const sites = circuit.sites.map((_, site) => site).filter((site) => used.has(site));
  const rowOf = new Map(sites.map((site, row) => [site, row + 1]));
  const top = sites.length + 1;
  const cells = new Map();
  for (const i of shown) {
    const row = circuit.kind[i] === "metric" ? top : rowOf.get(circuit.site[i]) || 0;
    const id = `${row},${circuit.position[i]}`;
    if (!cells.has(id)) cells.set(id, { row, column: circuit.position[i], nodes: [] });
    cells.get(id).nodes.push(i);
  }
  const columns = circuit.tokens.map((_, position) => position);
  const loose = [...cells.values()].some((cell) => cell.column < 0 && cell.row > 0 && cell.row < top);
  const hasBias = cells.has("0,-1");
  if (loose || hasBias || columns.length === 0) columns.unshift(-1);
  const wide = new Map(columns.map((column) => [column, column < 0 ? 1 : 0]));
  const lines = new Array(top + 1).fill(1);
  for (const { row, column, nodes } of cells.values()) {
    if (row !== 0) wide.set(column, Math.max(wide.get(column) || 0, Math.min(nodes.length, PER_LINE)));
    lines[row] = Math.max(lines[row], Math.ceil(nodes.length / PER_LINE));
  }
  let x = 84;
  const centre = new Map();
  const width = new Map();
  for (const column of columns) {
    const text = column < 0 ? "bias" : visible(circuit.tokens[column]);
    const span = Math.max(Math.min(Array.from(text).length, 12) * 9 + 14, wide.get(column) * GAP.node, 40);
    centre.set(column, x + span / 2);
    width.set(column, span);
    x += span + GAP.column;
  }
  const y = new Array(top + 1);
  let at = 44;
  for (let row = top; row >= 0; row -= 1) {
    y[row] = at;
    at += lines[row] * GAP.line + (sites.length > 10 ? GAP.row / 2 : GAP.row);
  }
  const px = new Float64Array(circuit.n);
  const py = new Float64Array(circuit.n);
  for (const { row, column, nodes } of cells.values()) {
    nodes.sort((a, b) => circuit.strength[b] - circuit.strength[a] || a - b);
    nodes.forEach((i, place) => {
      const line = Math.floor(place / PER_LINE);
      const inLine = Math.min(PER_LINE, nodes.length - line * PER_LINE);
      // The metric stands at the position it is read at: the last, unless it says otherwise.
      const read = (circuit.about.metric || {}).position;
      const last = circuit.tokens.length - 1;
      const metricColumn = Number.isInteger(read) && read >= 0 && read <= last ? read : last;
      const base = row === top ? centre.get(metricColumn) : centre.get(column);
      px[i] = (base === undefined ? 84 : base) + ((place % PER_LINE) - (inLine - 1) / 2) * GAP.node;
      py[i] = y[row] + line * GAP.line + (row === 0 ? 6 : 0);
    });
  }
  const rows = sites.map((site, row) => {
    const { layer, part } = circuit.sites[site];
    const named = layer === null || layer === undefined ? part : circuit.manyParts ? `L${layer} ${part}` : `L${layer}`;
    return { name: named, y: y[row + 1], height: lines[row + 1] * GAP.line };
  });
  rows.push({ name: "tokens", y: y[0] + 6, height: GAP.line }, { name: "metric", y: y[top], height: GAP.line });
  return { px, py, rows, columns, centre, width, boxWidth: x, boxHeight: at };
}

class View {
  constructor(element, payload, options) {
    this.options = options;
    this.circuit = new Circuit(payload);
    this.nodes = Math.min(this.circuit.choosable.length, options.nodes || 250);
    this.step = EDGE_STEPS.indexOf(2);
    this.bias = false;
    this.selected = -1;
    this.hovered = -1;
    this.matches = new Set();
    this.zoom = { k: 1, x: 0, y: 0 };
    this.listeners = new AbortController();
    this.root = make("div", { class: "cg" });
    this.build();
    element.replaceChildren(this.root);
    this.moved = false;
    this.update();
    const on = { signal: this.listeners.signal };
    this.observer = new ResizeObserver(() => {
      const { clientWidth } = this.stage;
      if (clientWidth !== this.fitted && clientWidth && !this.moved) this.fit();
      this.paint();
    });
    this.observer.observe(this.stage);
    window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.paint(), on);
  }

  build() {
    const { circuit } = this;
    const slider = (name, max, value, change) => {
      const count = make("output", { class: "cg-count" });
      const range = make("input", { type: "range", min: 0, max, value, "aria-label": name, oninput: () => change(Number(range.value)) });
      return [make("label", { class: "cg-slider" }, make("span", { text: name }), range, count), range, count];
    };
    let nodesLabel;
    let edgesLabel;
    [nodesLabel, this.nodesRange, this.nodesCount] = slider("Nodes", circuit.choosable.length, this.nodes, (n) => this.setNodes(n));
    [edgesLabel, this.edgesRange, this.edgesCount] = slider("In-edges", EDGE_STEPS.length - 1, this.step, (step) => {
      this.step = step;
      this.update();
    });
    const bias = make("input", { type: "checkbox", onchange: () => ((this.bias = bias.checked), this.update()) });
    const search = make("input", {
      type: "search",
      placeholder: "Index, token or label",
      "aria-label": "Search nodes",
      oninput: () => ((this.matches = new Set(circuit.find(search.value, 1000))), this.mark()),
      onkeydown: (event) => {
        const found = circuit.find(search.value, 1000);
        if (event.key === "Enter" && found.length) this.select(found[(found.indexOf(this.selected) + 1) % found.length]);
      },
    });
    this.tableButton = make("button", { type: "button", text: "Table", "aria-pressed": "false", onclick: () => this.toggleTable() });
    const button = (text, label, onclick) => make("button", { type: "button", text, "aria-label": label, title: label, onclick });
    const bar = make("div", { class: "cg-bar" }, nodesLabel, edgesLabel, make("label", {}, bias, make("span", { text: " bias edges" })), search, this.tableButton);
    this.canvas = make("canvas");
    this.svg = draw("svg", { role: "group", "aria-label": "Circuit. Arrow keys move between nodes, Enter selects, Escape clears." });
    this.layer = draw("g");
    this.svg.append(this.layer);
    this.tip = make("div", { class: "cg-tip", hidden: true });
    this.stage = make("div", { class: "cg-stage" }, this.canvas, this.svg, this.tip);
    this.table = make("div", { class: "cg-table", hidden: true });
    this.panel = make("aside", { class: "cg-panel", "aria-live": "polite", "aria-label": "Selected node" });
    const legend = make("p", { class: "cg-legend" },
      make("span", { class: "cg-up", text: "\u25cf raises the metric" }), make("span", { class: "cg-down", text: "\u25cf lowers it (dashed)" }),
      make("span", { text: "\u25cb feature" }), make("span", { text: "\u25c7 error node" }), make("span", { text: "size: " + circuit.strengthName }),
      make("span", { text: "line: source raises (solid) or lowers (dashed) its target" }),
      make("span", { class: "cg-zoom" }, button("+", "Zoom in", () => this.zoomBy(1.3)), button(MINUS, "Zoom out", () => this.zoomBy(1 / 1.3)), button("Fit", "Fit the drawing", () => this.fit(true))));
    this.root.append(this.header(), bar, make("div", { class: "cg-main" }, make("div", { class: "cg-left" }, this.stage, this.table, legend), this.panel));
    this.listen();
  }

  header() {
    const { about } = this.circuit;
    const value = about.metric_value === undefined ? "" : ` = ${format(about.metric_value)}`;
    const against = about.baseline_metric_value === undefined ? "" : ` (${format(about.baseline_metric_value)} on the patch prompt)`;
    const head = make("header", { class: "cg-head" }, make("h1", { text: about.prompt ? quoted(about.prompt) : "Circuit" }),
      make("p", {}, make("b", { text: (about.metric.description || about.metric.name) + value }), make("span", { text: against })));
    if (about.top_tokens) {
      const chips = about.top_tokens.slice(0, 6).map(([token, p]) => make("span", { class: "cg-chip", text: `${quoted(token)} ${percent(p)}` }));
      head.append(make("p", { class: "cg-chips" }, make("span", { text: "Next token: " }), ...chips));
    }
    head.append(make("p", { class: "cg-how", text: "Read it upwards: each column is a token, each row a layer, the metric on top. Select a node to see what feeds it and what it feeds." }));
    const rows = make("dl");
    const row = (name, given) => {
      if (given !== undefined && given !== "") rows.append(make("dt", { text: name }), make("dd", { text: typeof given === "string" ? given : JSON.stringify(given) }));
    };
    for (const name of ["model", "preset", "method", "baseline", "gradient", "linearisation", "prune", "patch", "options", "kept", "package_version", "created"]) {
      row(name.replace("_", " "), about[name]);
    }
    for (const d of about.dictionaries || []) row(String(d.site), `${d.architecture}, ${d.d_sae} features, ${d.source}, sha256 ${d.fingerprint}`);
    head.append(make("details", {}, make("summary", { text: "How it was made" }), rows));
    return head;
  }

  listen() {
    const on = { signal: this.listeners.signal };
    const nodeOf = (event) => {
      const group = event.target.closest && event.target.closest("g[data-node]");
      return group ? Number(group.dataset.node) : -1;
    };
    let drag = null;
    this.svg.addEventListener("pointerdown", (event) => {
      drag = { x: event.clientX, y: event.clientY, from: { ...this.zoom }, moved: false, node: nodeOf(event) };
    }, on);
    window.addEventListener("pointermove", (event) => {
      if (!drag) return;
      const [dx, dy] = [event.clientX - drag.x, event.clientY - drag.y];
      if (!drag.moved && Math.hypot(dx, dy) < 4) return;
      drag.moved = this.moved = true;
      this.zoom = { k: drag.from.k, x: drag.from.x + dx, y: drag.from.y + dy };
      this.paint();
    }, on);
    const release = () => {
      if (drag && !drag.moved) this.select(drag.node === this.selected ? -1 : drag.node);
      drag = null;
    };
    window.addEventListener("pointerup", release, on);
    window.addEventListener("pointercancel", () => (drag = null), on);
    this.svg.addEventListener("pointerover", (event) => this.hover(nodeOf(event)), on);
    this.svg.addEventListener("pointerleave", () => this.hover(-1), on);
    this.svg.addEventListener("focusin", (event) => this.hover(nodeOf(event)), on);
    this.svg.addEventListener("focusout", () => this.hover(-1), on);
    this.stage.addEventListener("wheel", (event) => {
      event.preventDefault();
      const box = this.stage.getBoundingClientRect();
      this.zoomBy(Math.exp(-event.deltaY / 400), event.clientX - box.left, event.clientY - box.top);
    }, { passive: false, ...on });
    this.root.addEventListener("keydown", (event) => {
      if (event.key === "Escape") this.select(-1);
      const node = nodeOf(event);
      if (node < 0) return;
      const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
      if (way) this.move(node, way);
      else if (event.key === "Enter" || event.key === " ") this.select(node);
      else return;
      event.preventDefault();
    }, on);
  }

  /** Moves the focus to the nearest node that way; sideways steps cost more. */
  move(from, [dx, dy]) {
    const { px, py } = this.layout;
    let best = -1;
    let least = Infinity;
    for (const i of this.shown) {
      const [x, y] = [px[i] - px[from], py[i] - py[from]];
      const along = x * dx + y * dy;
      if (along < 1) continue;
      const cost = along + 3 * Math.abs(x * dy + y * dx);
      if (cost < least) [best, least] = [i, cost];
    }
    if (best >= 0) this.focus(best);
  }

  focus(i) {
    for (const group of this.groups.values()) group.setAttribute("tabindex", "-1");
    this.groups.get(i).setAttribute("tabindex", "0");
    this.groups.get(i).focus({ preventScroll: true });
    if (this.selected >= 0) this.select(i);
  }

  setNodes(n) {
    this.nodes = n;
    this.nodesRange.value = n;
    this.update();
  }

  /** Chooses what is on the drawing by both thresholds, places it, and paints. */
  update() {
    const { circuit } = this;
    const isShown = (i) => circuit.rank[i] < this.nodes && (circuit.kind[i] !== "bias" || this.bias);
    this.shown = [];
    for (let i = 0; i < circuit.n; i += 1) if (isShown(i)) this.shown.push(i);
    const visibleNodes = new Set(this.shown);
    if (this.selected >= 0 && !visibleNodes.has(this.selected)) this.selected = -1;
    this.edges = [];
    const most = EDGE_STEPS[this.step];
    let held = 0;
    let all = 0;
    for (let e = 0; e < circuit.m; e += 1) all += Math.abs(circuit.weight[e]);
    for (const i of this.shown) {
      let taken = 0;
      for (const e of circuit.ins[i]) {
        if (taken >= most) break;
        if (!visibleNodes.has(circuit.source[e])) continue;
        this.edges.push(e);
        held += Math.abs(circuit.weight[e]);
        taken += 1;
      }
    }
    this.edges.sort((a, b) => b - a); // an edge's number is its rank: the strongest are painted last
    const strength = circuit.choosable.slice(0, this.nodes).reduce((sum, i) => sum + circuit.strength[i], 0);
    const nodes = Math.min(this.nodes, circuit.choosable.length);
    this.nodesCount.textContent = `${count(nodes)} of ${plural(circuit.choosable.length, "node")}, kept ${percent(circuit.totalStrength ? strength / circuit.totalStrength : 1)}`;
    this.edgesCount.textContent = `${most === Infinity ? "all" : `${most} each`}: ${count(this.edges.length)} of ${count(circuit.m)}, ${percent(all ? held / all : 1)}`;
    this.layout = place(circuit, this.shown);
    if (!this.moved && !this.stage.hidden) this.fit();
    this.drawNodes();
    if (!this.table.hidden) this.fillTable();
    this.mark();
    this.showPanel();
  }

  drawNodes() {
    const { circuit, layout } = this;
    this.layer.replaceChildren();
    this.groups = new Map();
    this.rowTexts = [];
    for (const { name, y, height } of layout.rows) {
      const text = draw("text", { class: "cg-row", y: y - 12 });
      text.textContent = name;
      const line = draw("line", { class: "cg-grid", x1: 8, x2: layout.boxWidth, y1: y + height + 2, y2: y + height + 2 });
      this.layer.append(line);
      this.rowTexts.push(text);
    }
    const named = [];
    for (const i of this.shown.slice().sort((a, b) => circuit.rank[a] - circuit.rank[b] || a - b)) {
      const kind = circuit.kind[i];
      const sign = kind === "token" || kind === "metric" || kind === "bias" ? "" : circuit.sign(i) > 0 ? " cg-up" : " cg-down";
      const group = draw("g", { class: `cg-node cg-${kind}${sign}`, "data-node": i, role: "button", tabindex: "-1", transform: `translate(${layout.px[i]},${layout.py[i]})` });
      group.setAttribute("aria-label", circuit.describe(i));
      const share = circuit.largestStrength ? circuit.strength[i] / circuit.largestStrength : 0;
      const r = 3.5 + 7.5 * Math.sqrt(share);
      const text = draw("text", { "text-anchor": "middle" });
      if (kind === "token" || kind === "metric" || kind === "bias") {
        text.textContent = kind === "token" ? cut(visible(circuit.tokenAt(i) || "token"), 12) : kind;
        const w = kind === "token" ? layout.width.get(circuit.position[i]) || 40 : 58;
        group.append(draw("rect", { x: -w / 2, y: -13, width: w, height: 26, rx: 6 }));
        text.setAttribute("y", 4);
      } else {
        const d = r * 1.2;
        group.append(kind === "error" ? draw("path", { d: `M0 ${-d}L${d} 0L0 ${d}L${-d} 0Z` }) : draw("circle", { r }));
        text.textContent = kind === "error" ? "error" : String(circuit.index[i]);
        text.setAttribute("y", 17);
        // The strongest carry their index always, unless a stronger neighbour's is in the way; the rest when near.
        const clear = circuit.rank[i] < 12 && !named.some((j) => Math.abs(layout.px[i] - layout.px[j]) < 40 && Math.abs(layout.py[i] - layout.py[j]) < 14);
        if (clear) named.push(i);
        text.setAttribute("class", clear ? "cg-small" : "cg-small cg-minor");
      }
      group.append(text);
      this.layer.append(group);
      this.groups.set(i, group);
    }
    this.layer.append(...this.rowTexts);
    const first = this.selected >= 0 ? this.selected : this.shown.find((i) => circuit.rank[i] === 0) ?? this.shown[0];
    if (this.groups.has(first)) this.groups.get(first).setAttribute("tabindex", "0");
  }

  /** Lights the selected or hovered node, its neighbours, and what was searched for. */
  mark() {
    const { circuit } = this;
    const focus = this.selected >= 0 ? this.selected : this.hovered;
    this.lit = new Set();
    if (focus >= 0) {
      this.lit.add(focus);
      // Of a selected node every edge is drawn, of one hovered over those over the threshold.
      const drawn = new Set(this.edges);
      const near = [...circuit.ins[focus], ...circuit.outs[focus]];
      this.own = near.filter((e) => this.groups.has(circuit.source[e]) && this.groups.has(circuit.target[e]) && (this.selected >= 0 || drawn.has(e)));
      for (const e of this.own) this.lit.add(circuit.source[e]).add(circuit.target[e]);
    } else this.own = [];
    this.svg.classList.toggle("cg-focused", this.selected >= 0);
    const same = new Set(focus >= 0 ? circuit.elsewhere(focus) : []);
    for (const [i, group] of this.groups) {
      group.classList.toggle("cg-lit", this.lit.has(i));
      group.classList.toggle("cg-selected", i === this.selected);
      group.classList.toggle("cg-match", this.matches.has(i) || same.has(i));
    }
    this.paint();
  }

  paint() {
    if (this.waiting) return;
    this.waiting = requestAnimationFrame(() => {
      this.waiting = 0;
      this.paintNow();
    });
  }

  paintNow() {
    const { circuit, canvas, zoom } = this;
    const [w, h] = [this.stage.clientWidth, this.stage.clientHeight];
    const ratio = window.devicePixelRatio || 1;
    if (canvas.width !== Math.round(w * ratio)) canvas.width = Math.round(w * ratio);
    if (canvas.height !== Math.round(h * ratio)) canvas.height = Math.round(h * ratio);
    this.layer.setAttribute("transform", `translate(${zoom.x},${zoom.y}) scale(${zoom.k})`);
    for (const text of this.rowTexts) text.setAttribute("x", (8 - zoom.x) / zoom.k); // rows keep their names in sight
    this.svg.style.setProperty("--cg-scale", Math.min(1.4, Math.max(1, 0.85 / zoom.k)));
    this.svg.classList.toggle("cg-near", zoom.k > 1.05);
    const style = getComputedStyle(this.root);
    const colours = [style.getPropertyValue("--cg-up"), style.getPropertyValue("--cg-down")];
    const context = canvas.getContext("2d");
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, w, h);
    context.translate(zoom.x, zoom.y);
    context.scale(zoom.k, zoom.k);
    const faint = this.selected >= 0 ? 0.06 : this.own.length ? 0.12 : 0.5;
    for (const e of this.edges) this.stroke(context, e, colours, faint, 1);
    const strongest = Math.max(0, ...this.own.map((e) => Math.abs(circuit.weight[e])));
    for (const e of this.own.slice().reverse()) this.stroke(context, e, colours, 0.95, circuit.largestWeight / (strongest || 1));
  }

  stroke(context, e, colours, alpha, scale) {
    const { circuit, layout } = this;
    const [s, t] = [circuit.source[e], circuit.target[e]];
    const [x1, y1, x2, y2] = [layout.px[s], layout.py[s], layout.px[t], layout.py[t]];
    const size = Math.min(1, (Math.abs(circuit.weight[e]) * scale) / (circuit.largestWeight || 1));
    const raises = Number.isNaN(circuit.contribution[e]) ? circuit.weight[e] <= 0 : circuit.contribution[e] >= 0;
    context.strokeStyle = colours[raises ? 0 : 1];
    context.globalAlpha = alpha * (0.25 + 0.75 * Math.sqrt(size));
    context.lineWidth = 0.5 + 4 * Math.sqrt(size);
    context.setLineDash(raises ? [] : [5, 4]);
    const bend = (y1 - y2) * 0.45;
    context.beginPath();
    context.moveTo(x1, y1);
    context.bezierCurveTo(x1, y1 - bend, x2, y2 + bend, x2, y2);
    context.stroke();
  }

  /** Fits the width; where that would be too small to read, the drawing keeps a readable size and starts at the end. */
  fit(whole = false) {
    const { boxWidth, boxHeight } = this.layout;
    const w = this.stage.clientWidth || 800;
    const wanted = Math.min(1.4, (w - GAP.edge) / boxWidth);
    this.moved = false;
    this.fitted = this.stage.clientWidth;
    const k = whole ? wanted : Math.max(wanted, w < 700 ? 0.65 : 0.5);
    // A narrow screen shows all layers, as there a finger's way up and down scrolls the page.
    const highest = w < 700 && !whole ? Infinity : Math.max(window.innerHeight * 0.78, 320);
    this.stage.style.height = `${Math.min(Math.max(boxHeight * k, 280), highest)}px`;
    const y = Math.min(0, this.stage.clientHeight - boxHeight * k);
    this.zoom = { k, x: boxWidth * k > w ? w - boxWidth * k - 8 : (w - boxWidth * k) / 2, y: whole ? Math.max(y, 0) : y };
    this.paint();
  }

  zoomBy(factor, x = this.stage.clientWidth / 2, y = this.stage.clientHeight / 2) {
    const k = Math.min(6, Math.max(0.15, this.zoom.k * factor));
    const by = k / this.zoom.k;
    this.moved = true;
    this.zoom = { k, x: x - (x - this.zoom.x) * by, y: y - (y - this.zoom.y) * by };
    this.paint();
  }

  hover(i) {
    if (i === this.hovered) return;
    this.hovered = i;
    this.tip.hidden = i < 0;
    if (i >= 0) {
      const { circuit, layout, zoom } = this;
      const lines = [circuit.name(i), circuit.kind[i] === "token" ? "" : circuit.place(i), circuit.label[i] || ""];
      this.tip.replaceChildren(...lines.filter(Boolean).map((text, n) => make(n ? "div" : "b", { text })));
      for (const [name, value] of this.numbers(i)) this.tip.append(make("div", { text: `${name} ${value}` }));
      // Right below the node; on its other side where there is no room, so that it never covers the node.
      const beside = (at, size, room) => Math.max(4, at + 14 + size > room ? at - 14 - size : at + 14);
      const { clientWidth, clientHeight } = this.stage;
      this.tip.style.left = `${beside(layout.px[i] * zoom.k + zoom.x, this.tip.offsetWidth, clientWidth)}px`;
      this.tip.style.top = `${beside(layout.py[i] * zoom.k + zoom.y, this.tip.offsetHeight, clientHeight)}px`;
    }
    this.mark();
  }

  numbers(i) {
    const { circuit } = this;
    const rows = [
      [circuit.kind[i] === "metric" ? "value" : "activation", circuit.activation[i], false],
      ["effect when ablated, predicted", circuit.effect[i], true],
      ["effect when ablated, measured", circuit.measured[i], true],
      ["influence", circuit.influence[i], false],
    ];
    return rows.filter(([, value]) => !Number.isNaN(value)).map(([name, value, signed]) => [name, format(value, signed)]);
  }

  /** Selects a node (-1: none); one under the threshold brings the threshold down to it. */
  select(i) {
    if (i >= 0 && this.circuit.rank[i] >= this.nodes) this.setNodes(this.circuit.rank[i] + 1);
    if (i >= 0 && !this.groups.has(i)) i = -1;
    this.selected = i;
    this.mark();
    this.showPanel();
    if (this.options.onSelect) this.options.onSelect(i < 0 ? null : this.circuit.key[i]);
  }

  showPanel() {
    const { circuit, panel, selected: i } = this;
    if (i < 0) {
      const strongest = circuit.choosable.slice(0, 8).map((j) => this.link(j, format(circuit.effect[j], true), ""));
      panel.replaceChildren(make("h2", { text: "Strongest nodes" }), make("p", { class: "cg-how", text: "Effect on the metric when the node is ablated." }), make("ul", {}, ...strongest));
      return;
    }
    const rows = make("dl");
    for (const [name, value] of this.numbers(i)) rows.append(make("dt", { text: name }), make("dd", { text: value }));
    if (!Number.isNaN(circuit.explained[i])) rows.append(make("dt", { text: "input explained by kept edges" }), make("dd", { text: percent(circuit.explained[i]) }));
    panel.replaceChildren(make("button", { type: "button", class: "cg-close", text: "\u00d7", "aria-label": "Clear the selection", onclick: () => this.select(-1) }),
      make("h2", { text: circuit.name(i) }), make("p", { text: circuit.kind[i] === "token" ? `position ${circuit.position[i]}` : circuit.place(i) }));
    if (circuit.label[i]) panel.append(make("p", { class: "cg-label", text: circuit.label[i] }));
    panel.append(make("code", { text: circuit.key[i] }), rows, this.edgeList(i, "in"), this.edgeList(i, "out"));
  }

  edgeList(i, direction) {
    const { circuit } = this;
    const all = direction === "in" ? circuit.ins[i] : circuit.outs[i];
    const section = make("section", {}, make("h3", { text: `${direction === "in" ? "From" : "To"} (${count(all.length)})` }));
    if (!all.length) return section;
    section.append(make("p", { class: "cg-how", text: "contribution \u00b7 weight on the metric \u00b7 share" }));
    const list = make("ul");
    const add = (edges) => {
      for (const e of edges) {
        const other = direction === "in" ? circuit.source[e] : circuit.target[e];
        list.append(this.link(other, `${format(circuit.contribution[e], true)} \u00b7 ${format(circuit.weight[e], true)}`, percent(circuit.share(e, direction))));
      }
    };
    add(all.slice(0, 12));
    section.append(list);
    if (all.length > 12) {
      const more = make("button", { type: "button", text: `Show ${count(all.length - 12)} more`, onclick: () => (add(all.slice(12)), more.remove()) });
      section.append(more);
    }
    return section;
  }

  link(i, numbers, share) {
    const { circuit } = this;
    const where = circuit.kind[i] === "token" || circuit.position[i] < 0 ? "" : ` ${quoted(circuit.tokenAt(i))}`;
    const name = make("span", { class: "cg-name" }, make("b", { text: circuit.name(i) }), make("span", { text: where + (circuit.label[i] ? ` ${circuit.label[i]}` : "") }));
    return make("li", {}, make("button", { type: "button", class: "cg-link", onclick: () => this.select(i) }, name, make("span", { class: "cg-number", text: numbers }), make("span", { class: "cg-share", text: share })));
  }

  toggleTable() {
    this.table.hidden = !this.table.hidden;
    this.stage.hidden = !this.table.hidden;
    this.tableButton.setAttribute("aria-pressed", String(!this.table.hidden));
    if (!this.table.hidden) this.fillTable();
    else if (!this.moved) this.fit();
  }

  fillTable() {
    const { circuit } = this;
    const names = ["node", "token", "label", "activation", "effect", "measured"];
    const body = make("tbody");
    for (const i of circuit.choosable.slice(0, this.nodes)) {
      const cells = [circuit.name(i), circuit.place(i), circuit.label[i] || "", format(circuit.activation[i]), format(circuit.effect[i], true), format(circuit.measured[i], true)];
      const open = make("button", { type: "button", class: "cg-link", text: cells[0], onclick: () => this.select(i) });
      body.append(make("tr", {}, make("td", {}, open), ...cells.slice(1).map((text, n) => make("td", { text, class: n > 1 ? "cg-number" : "" }))));
    }
    const head = make("tr", {}, ...names.map((text) => make("th", { text, scope: "col" })));
    this.table.replaceChildren(make("table", {}, make("thead", {}, head), body));
  }

  destroy() {
    this.listeners.abort();
    this.observer.disconnect();
    cancelAnimationFrame(this.waiting);
    this.root.remove();
  }
}

/**
 * Draws a payload (circuitsae.export.view) in an element and returns a controller.
 * Options: `nodes` shown at first, `onSelect(key or null)`.
 */
function mount(element, payload, options = {}) {
  const view = new View(element, payload, options);
  return {
    circuit: view.circuit,
    select: (key) => view.select(key === null ? -1 : view.circuit.row.get(key) ?? -1),
    setNodes: (n) => view.setNodes(n),
    fit: () => view.fit(),
    destroy: () => view.destroy(),
  };
}

globalThis.CircuitGraph = { mount };
