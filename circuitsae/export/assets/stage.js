// The drawing itself: bands and edges on a canvas, nodes as SVG above it; zoom, pan, hover, lasso and keys.

const BUCKETS = 12;
const MANY = 4000; // edges; with more, a drag moves the picture and paints it anew when it rests
const REACH = 16; // how far from a node's middle the pointer still means it
const GUTTER = { left: 58, right: 14, top: 8, bottom: 8 };
const BOX = { token: 26, metric: 30, group: 28 };

class Stage {
  constructor(view) {
    this.view = view;
    this.zoom = { k: 1, x: 0, y: 0 };
    this.moved = -Infinity;
    this.painted = this.zoom;
    this.follows = true; // keeps the whole in sight until somebody moves it
    this.elements = new Map();
    this.places = new Map();
    this.base = make("canvas", { class: "cg-base" });
    this.top = make("canvas", { class: "cg-top" });
    this.scene = draw("g");
    this.axis = draw("g", { class: "cg-axis" });
    this.nodes = draw("g");
    this.rings = draw("g", { class: "cg-rings" });
    this.texts = draw("g", { class: "cg-texts" });
    this.scene.append(this.axis, this.rings, this.nodes, this.texts);
    this.gutter = draw("g", { class: "cg-gutter" });
    this.foot = draw("g", { class: "cg-foot-axis" });
    this.lasso = draw("rect", { class: "cg-lasso", display: "none" });
    const hatch = draw("pattern", { id: `${view.id}-hatch`, width: 4, height: 4, patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)" }, draw("path", { d: "M0 0v4", class: "cg-hatch" }));
    this.svg = draw("svg", { role: "group", "aria-label": "Circuit. Arrow keys move between nodes, Enter selects, Escape clears, question mark lists the keys." },
      draw("defs", {}, hatch), this.scene, this.gutter, this.foot, this.lasso);
    this.tip = make("div", { class: "cg-tip", hidden: true });
    this.root = make("div", { class: "cg-stage" }, this.base, this.top, this.svg, this.tip);
    this.ruler = document.createElement("canvas").getContext("2d");
    this.listen();
  }

  get size() {
    const { clientWidth, clientHeight } = this.root;
    if (clientWidth && clientHeight) this.lastSize = { width: clientWidth, height: clientHeight };
    return this.lastSize || { width: 800, height: 500 };
  }

  /** Where the drawing may go; below `least` nothing can be read. */
  get room() {
    const { width, height } = this.size;
    return { width: width - GUTTER.left - GUTTER.right, height: height - GUTTER.top - GUTTER.bottom, least: width < 600 ? 0.72 : 0.6 };
  }

  measure(text, size = 13) {
    this.ruler.font = `${size}px ${this.family || (this.family = getComputedStyle(this.view.root).fontFamily || "sans-serif")}`;
    return this.ruler.measureText(text).width;
  }

  // --- what is there ---

  /** Places the shown items anew; those that were there before glide to their new places. */
  arrange(animate) {
    const { circuit, shown, groups } = this.view;
    const rowOfSite = new Map();
    this.rows = rowsOf(circuit);
    this.rows.forEach((row, r) => row.kind === "site" && rowOfSite.set(row.site, r));
    const rowOf = (i) => (circuit.kind[i] === "metric" ? this.rows.length - 1 : circuit.site[i] >= 0 ? rowOfSite.get(circuit.site[i]) : 0);
    const items = shown.items.map((id) => {
      // A group stands where its strongest node does.
      const node = id < circuit.n ? id : groups[id - circuit.n].nodes.reduce((best, i) => (circuit.strength[i] > circuit.strength[best] ? i : best));
      const wide = id < circuit.n ? 0 : Math.min(150, this.measure(cut(groups[id - circuit.n].name, 18)) + 26);
      return { id, row: rowOf(node), position: circuit.position[node], wide, strength: circuit.probability[node] || circuit.strength[node], last: circuit.kind[node] === "error" ? 1 : 0 };
    });
    this.layout = layOut(circuit, this.rows, items, this.room, (text) => this.measure(text));
    const before = this.places;
    const after = this.layout.places;
    this.render();
    if (this.follows) this.zoom = this.fitted();
    const still = window.matchMedia("(prefers-reduced-motion: reduce)").matches;
    cancelAnimationFrame(this.gliding);
    this.gliding = 0;
    this.places = after;
    if (animate && !still && before.size && after.size <= 600 && shown.drawn.length <= 3000) this.glide(before, after);
    else this.settle();
  }

  glide(before, after) {
    const start = performance.now();
    const step = (now) => {
      const t = Math.min(1, (now - start) / 180);
      const eased = 1 - (1 - t) ** 3;
      this.places = new Map();
      for (const [id, to] of after) {
        const from = before.get(id) || to;
        this.places.set(id, { x: from.x + (to.x - from.x) * eased, y: from.y + (to.y - from.y) * eased });
      }
      this.gliding = t < 1 ? requestAnimationFrame(step) : 0;
      this.settle(t < 1);
    };
    this.texts.replaceChildren();
    this.rings.replaceChildren();
    this.gliding = requestAnimationFrame(step);
  }

  settle(moving = false) {
    for (const [id, { x, y }] of this.places) {
      const element = this.elements.get(id);
      if (element) element.setAttribute("transform", `translate(${round(x)},${round(y)})`);
    }
    this.buckets = this.bucket(this.view.shown.drawn);
    if (!moving) this.mark();
    this.paint();
  }

  radius(id) {
    const { circuit } = this.view;
    const share = circuit.largestStrength ? circuit.strength[id] / circuit.largestStrength : 0;
    return 3.6 + 6 * Math.sqrt(share);
  }

  /** Half the width and height of an item's shape. */
  extent(id) {
    const { circuit } = this.view;
    const element = this.elements.get(id);
    if (element && element.boxWidth) return [element.boxWidth / 2, element.boxHeight / 2];
    const r = this.radius(id);
    return circuit.kind[id] === "error" ? [r * 1.2, r * 1.2] : [r, r];
  }

  render() {
    const { view } = this;
    const { circuit, shown } = view;
    const columnOf = new Map(this.layout.columns.map((column) => [column.position, column]));
    const wanted = [];
    for (const id of shown.items) {
      let element = this.elements.get(id);
      if (!element || id >= circuit.n) {
        element = this.shape(id);
        this.elements.set(id, element);
      }
      if (id < circuit.n && circuit.kind[id] === "token") {
        const column = columnOf.get(circuit.position[id]);
        if (column) resize(element, Math.max(24, Math.min(column.width - 6, this.measure(column.text) + 26)), BOX.token);
      }
      wanted.push(element);
    }
    for (const id of this.elements.keys()) if (id >= circuit.n + view.groups.length) this.elements.delete(id);
    const focus = this.nodes.contains(document.activeElement) ? document.activeElement : null;
    this.nodes.replaceChildren(...wanted);
    if (focus && focus.isConnected) focus.focus({ preventScroll: true });
    this.recolour();
    // Tokens that are no nodes of the circuit still name their columns.
    const there = new Set(shown.items.filter((id) => circuit.kind[id] === "token").map((id) => circuit.position[id]));
    const foot = this.layout.rows[0].y;
    this.axis.replaceChildren();
    for (const column of this.layout.columns) {
      if (column.position < 0 || (there.has(column.position) && !column.gap)) continue;
      const text = draw("text", { class: "cg-plain", x: round(column.x), y: round(foot + 4), "text-anchor": "middle", text: column.text }, draw("title", { text: column.title }));
      this.axis.append(text);
    }
    this.gutter.replaceChildren(draw("rect", { class: "cg-gutter-back", x: 0, y: 0, width: GUTTER.left - 8, height: "100%" }));
    this.rowTexts = this.layout.rows.filter((row) => row.name).map((row) => {
      const text = draw("text", { class: "cg-row", x: 10, text: cut(row.name, 9) });
      if (row.name.length > 9) text.append(draw("title", { text: row.name }));
      this.gutter.append(text);
      return [row, text];
    });
    this.foot.replaceChildren(draw("rect", { class: "cg-gutter-back", x: 0, width: "100%", height: 24 }), draw("line", { class: "cg-grid", x1: 0, x2: "100%" }));
    this.footTexts = this.layout.columns.filter((column) => column.text).map((column) => {
      const text = draw("text", { class: "cg-plain", "text-anchor": "middle", text: cut(column.text, 10) });
      this.foot.append(text);
      return [column, text];
    });
    const focused = this.nodes.querySelector('[tabindex="0"]');
    if (!focused && wanted.length) this.elements.get(this.firstItem()).setAttribute("tabindex", "0");
  }

  firstItem() {
    const { circuit, shown } = this.view;
    return shown.items.find((id) => circuit.rank[id] === 0) ?? shown.items.find((id) => id >= circuit.n || circuit.rank[id] >= 0) ?? shown.items[0];
  }

  shape(id) {
    const { view } = this;
    const { circuit } = view;
    const kind = id < circuit.n ? circuit.kind[id] : "group";
    const element = draw("g", { class: `cg-node cg-${kind}`, "data-node": id, role: "button", tabindex: "-1", "aria-label": view.describe(id) });
    const box = (text, width, height, radius, given = {}) => {
      element.append(draw("rect", { class: "cg-shape", rx: radius }), draw("text", { "text-anchor": "middle", y: 4, text, ...given }));
      resize(element, width, height);
    };
    if (kind === "feature") element.append(draw("circle", { class: "cg-shape", r: round(this.radius(id)) }));
    else if (kind === "error") {
      const d = round(this.radius(id) * 1.2);
      const path = `M0 ${-d}L${d} 0L0 ${d}L${-d} 0Z`;
      element.append(draw("path", { class: "cg-shape", d: path }), draw("path", { d: path, fill: `url(#${view.id}-hatch)` }));
    } else if (kind === "token") {
      const text = circuit.tokenAt(id);
      box(cut(visible(text).trim() || visible(text) || "token", 14), 40, BOX.token, 7);
    } else if (kind === "metric") {
      const value = circuit.about.metric_value;
      const one = circuit.index[id] >= 0; // a next token's logit, of which there are several
      const text = one ? cut(visible(circuit.label[id] || "").trim() || String(circuit.index[id]), 9) : value === undefined ? "metric" : `metric ${format(value)}`;
      box(text, this.measure(text, 13) + (one ? 18 : 30), BOX.metric, 15);
    } else if (kind === "bias") box("bias", 42, BOX.token, 7);
    else {
      const text = cut(view.groups[id - circuit.n].name, 18);
      box(text, Math.min(150, this.measure(text) + 26), BOX.group - 4, 12);
    }
    return element;
  }

  recolour() {
    const { view } = this;
    for (const [id, element] of this.elements) {
      const kind = id < view.circuit.n ? view.circuit.kind[id] : "group";
      const plain = kind === "metric" || kind === "bias" ? "" : colourClass(view.mode, view.valueOf(id));
      if (element.colour === plain) continue;
      if (element.colour) element.classList.remove(...element.colour.split(" "));
      if (plain) element.classList.add(...plain.split(" "));
      element.colour = plain;
    }
  }

  // --- edges ---

  ends(edge) {
    const s = this.places.get(edge.source);
    const t = this.places.get(edge.target);
    if (!s || !t) return null;
    const up = t.y <= s.y;
    const y1 = s.y - (up ? 1 : -1) * this.extent(edge.source)[1];
    const y2 = t.y + (up ? 1 : -1) * this.extent(edge.target)[1];
    const bend = up ? Math.max(8, (y1 - y2) * 0.5) : -Math.max(8, (y2 - y1) * 0.5);
    return [s.x, y1, s.x, y1 - bend, t.x, y2 + bend, t.x, y2];
  }

  level(edge) {
    const largest = this.view.circuit.largestWeight || 1;
    return Math.min(BUCKETS - 1, Math.floor(BUCKETS * Math.sqrt(Math.min(1, Math.abs(edge.weight) / largest))));
  }

  /** Edges of like weight and sign share a path. Signs alternate as they are painted, lest one hides the other. */
  bucket(edges) {
    const buckets = Array.from({ length: BUCKETS }, (_, level) => [0, 1].map((down) => ({ level, down, path: null })));
    for (const edge of edges) {
      const ends = this.ends(edge);
      if (!ends) continue;
      const bucket = buckets[this.level(edge)][raises(edge) ? 0 : 1];
      if (!bucket.path) bucket.path = new Path2D();
      bucket.path.moveTo(ends[0], ends[1]);
      bucket.path.bezierCurveTo(...ends.slice(2));
    }
    return buckets.flat().filter((bucket) => bucket.path);
  }

  stroke(context, { level, down, path }, colours, strong) {
    const t = (level + 0.5) / BUCKETS;
    const { k } = this.zoom;
    const fine = Math.min(1, Math.max(0.55, k));
    context.strokeStyle = colours[down];
    context.globalAlpha = strong ? Math.min(1, 0.5 + 0.6 * t) : 0.14 + 0.66 * t;
    context.lineWidth = ((strong ? 1.1 : 0.7) + 4 * t * t) * (fine / k);
    context.setLineDash(down ? [5 / k, 3.5 / k] : []);
    context.stroke(path);
  }

  // --- painting ---

  paint() {
    if (this.waiting) return;
    this.waiting = requestAnimationFrame(() => {
      this.waiting = 0;
      if (this.layout && this.root.isConnected) this.paintNow();
    });
  }

  paintNow() {
    const { zoom } = this;
    const { width, height } = this.size;
    const ratio = window.devicePixelRatio || 1;
    const late = performance.now() - this.moved < 120 && this.view.shown.drawn.length > MANY;
    if (late) {
      const by = zoom.k / this.painted.k;
      for (const canvas of [this.base, this.top]) canvas.style.transform = `translate(${zoom.x - this.painted.x * by}px,${zoom.y - this.painted.y * by}px) scale(${by})`;
      clearTimeout(this.resting);
      this.resting = setTimeout(() => this.paint(), 140);
      this.paintScene();
      return;
    }
    this.painted = { ...zoom };
    const style = getComputedStyle(this.view.root);
    const colour = (name) => style.getPropertyValue(name).trim();
    const colours = [colour("--cg-up"), colour("--cg-down")];
    for (const canvas of [this.base, this.top]) {
      canvas.style.transform = "";
      if (canvas.width !== Math.round(width * ratio)) canvas.width = Math.round(width * ratio);
      if (canvas.height !== Math.round(height * ratio)) canvas.height = Math.round(height * ratio);
      const context = canvas.getContext("2d");
      context.setTransform(ratio, 0, 0, ratio, 0, 0);
      context.clearRect(0, 0, width, height);
      context.lineCap = "butt";
      if (canvas === this.base) this.paintBands(context, width, colour);
      context.translate(zoom.x, zoom.y);
      context.scale(zoom.k, zoom.k);
      const buckets = canvas === this.base ? this.buckets : this.litBuckets || [];
      for (const bucket of buckets) this.stroke(context, bucket, colours, canvas === this.top);
    }
    this.paintScene();
    if (!this.gliding) this.name();
  }

  /** Moves what is SVG to where the zoom has it. */
  paintScene() {
    const { zoom, layout } = this;
    const { height } = this.size;
    // Tokens are read at any zoom at which they are shown.
    this.svg.style.setProperty("--cg-scale", Math.min(1.45, Math.max(1, 0.82 / zoom.k)));
    this.scene.setAttribute("transform", `translate(${round(zoom.x)},${round(zoom.y)}) scale(${zoom.k})`);
    for (const [row, text] of this.rowTexts) {
      text.setAttribute("y", round(row.y * zoom.k + zoom.y + 4));
      text.setAttribute("display", row.height * zoom.k < 11 ? "none" : "inline");
    }
    // Once the tokens are out of sight, their names stay at the foot.
    const away = layout.rows[0].y * zoom.k + zoom.y > height + 4;
    this.foot.setAttribute("display", away ? "inline" : "none");
    if (away) {
      this.foot.setAttribute("transform", `translate(0,${height - 24})`);
      for (const [column, text] of this.footTexts) {
        text.setAttribute("x", round(column.x * zoom.k + zoom.x));
        text.setAttribute("y", 16);
        text.setAttribute("display", column.width * zoom.k < 22 ? "none" : "inline");
      }
    }
  }

  paintBands(context, width, colour) {
    const { zoom, layout } = this;
    let even = false;
    let layer;
    context.fillStyle = colour("--cg-band");
    for (const row of layout.rows) {
      if (row.kind !== "site") continue;
      if (row.layer !== layer || row.layer === null) even = !even;
      layer = row.layer;
      if (even) context.fillRect(0, row.top * zoom.k + zoom.y, width, row.height * zoom.k);
    }
  }

  /** Names the nodes that matter most, as many as have room on the screen. */
  name() {
    const { circuit, shown, state, overlay } = this.view;
    const { k } = this.zoom;
    const size = Math.min(12, Math.max(9.5, 11 * k)) / k;
    const texts = [];
    const taken = [];
    const marks = new Map((overlay && overlay.marks ? overlay.marks : []).map((mark) => [circuit.row.get(mark.key), mark.text]));
    const captions = this.view.captions();
    const must = new Set([...state.selected, ...state.pins, ...marks.keys()]);
    const order = shown.items.filter((id) => id < circuit.n && circuit.rank[id] >= 0);
    order.sort((a, b) => must.has(b) - must.has(a) || captions.has(b) - captions.has(a) || circuit.rank[a] - circuit.rank[b]);
    const room = k > 1.3 ? 160 : k > 0.8 ? 40 : 14;
    for (const id of order.slice(0, must.size + captions.size + room)) {
      const { x, y } = this.places.get(id);
      const [, h] = this.extent(id);
      const caption = captions.get(id);
      const label = state.pins.has(id) && circuit.label[id] ? cut(visible(circuit.label[id]), 26) : circuit.kind[id] === "error" ? "error" : String(circuit.index[id]);
      const full = caption ? (state.pins.has(id) || state.selected.has(id) ? `${label}: ${caption}` : caption) : label;
      const half = this.measure(full, size) / 2 + 2;
      const box = [x - half, y + h + 1, x + half, y + h + size + 3];
      const free = !taken.some((other) => box[0] < other[2] && box[2] > other[0] && box[1] < other[3] && box[3] > other[1]);
      if (!must.has(id) && (!free || (!caption && this.covered(box, id)))) continue;
      taken.push(box);
      texts.push(draw("text", { x: round(x), y: round(y + h + size), "font-size": round(size), "text-anchor": "middle", class: must.has(id) || caption ? "cg-name-strong" : null, "stroke-width": round(3 / k), text: full }));
      if (marks.has(id)) texts.push(draw("text", { x: round(x), y: round(y - h - 3 / k), "font-size": round(size * 1.05), "text-anchor": "middle", class: "cg-badge", "stroke-width": round(3 / k), text: String(marks.get(id)) }));
    }
    this.texts.replaceChildren(...texts);
  }

  covered(box, id) {
    for (const [other, { x, y }] of this.places) {
      if (other === id) continue;
      if (x > box[0] - 3 && x < box[2] + 3 && y > box[1] - 5 && y < box[3] + 5) return true;
    }
    return false;
  }

  /** Lights what is selected or pointed at, its edges and neighbours; the rest steps back. */
  mark() {
    const { view } = this;
    const { lit, edges, focused } = view.light();
    for (const [id, element] of this.elements) {
      const classes = element.classList;
      const on = lit.has(id);
      if (element.lit !== on) classes.toggle("cg-lit", (element.lit = on));
      const selected = view.state.selected.has(id);
      if (element.selected !== selected) {
        classes.toggle("cg-selected", (element.selected = selected));
        element.setAttribute("aria-pressed", String(selected));
      }
    }
    this.root.classList.toggle("cg-focused", focused);
    this.root.classList.toggle("cg-dimmed", edges.length > 0);
    this.litBuckets = this.bucket(edges);
    const rings = [];
    const ring = (id, kind) => {
      const place = this.places.get(id);
      if (!place) return;
      const [w, h] = this.extent(id);
      const shape = w > 14 ? draw("rect", { x: round(place.x - w - 3), y: round(place.y - h - 3), width: round(2 * w + 6), height: round(2 * h + 6), rx: 9 }) : draw("circle", { cx: round(place.x), cy: round(place.y), r: round(w + 3.5) });
      shape.setAttribute("class", `cg-ring ${kind}`);
      rings.push(shape);
    };
    for (const id of view.state.pins) ring(id, "cg-pin");
    for (const id of view.same()) ring(id, "cg-elsewhere");
    for (const id of view.matches.slice(0, 200)) ring(id, "cg-match");
    if (view.hovered >= 0 && !view.state.selected.has(view.hovered)) ring(view.hovered, "cg-hover");
    for (const id of view.state.selected) ring(id, "cg-chosen");
    this.rings.replaceChildren(...rings);
    this.paint();
  }

  // --- zoom ---

  fitted(whole = false) {
    const { width } = this.size;
    const { room } = this;
    const all = Math.min(1.15, room.width / this.layout.width, room.height / this.layout.height);
    // Where the whole can't be read, a part is shown, the end of the prompt and the metric first.
    const k = whole ? all : Math.max(all, room.least);
    const [w, h] = [this.layout.width * k, this.layout.height * k];
    return {
      k,
      x: w > room.width ? width - GUTTER.right - w : GUTTER.left + (room.width - w) / 2,
      y: h > room.height ? GUTTER.top : GUTTER.top + (room.height - h) / 2,
    };
  }

  fit(whole = true) {
    this.follows = true;
    this.zoom = this.fitted(whole);
    this.paint();
    this.view.changed();
  }

  zoomBy(factor, x = this.size.width / 2, y = this.size.height / 2) {
    const k = Math.min(6, Math.max(0.1, this.zoom.k * factor));
    const by = k / this.zoom.k;
    this.move({ k, x: x - (x - this.zoom.x) * by, y: y - (y - this.zoom.y) * by });
  }

  move(zoom) {
    this.follows = false;
    this.moved = performance.now();
    const { width, height } = this.size;
    const keep = 60; // so that the drawing can't be lost
    this.zoom = {
      k: zoom.k,
      x: Math.min(width - keep, Math.max(keep - this.layout.width * zoom.k, zoom.x)),
      y: Math.min(height - keep, Math.max(keep - this.layout.height * zoom.k, zoom.y)),
    };
    this.tip.hidden = true;
    this.paint();
    this.view.changed();
  }

  overflows() {
    const { width, height } = this.size;
    const { k, x, y } = this.zoom;
    return { x: x < 0 || x + this.layout.width * k > width + 1, y: y < -1 || y + this.layout.height * k > height + 1 };
  }

  /** Brings an item into sight, if it is not. */
  reveal(id) {
    const place = this.layout.places.get(id);
    if (!place) return;
    const { width } = this.size;
    const height = this.view.seenHeight();
    const { k } = this.zoom;
    let { x, y } = this.zoom;
    const [px, py] = [place.x * k + x, place.y * k + y];
    if (px < GUTTER.left + 10) x += GUTTER.left + 60 - px;
    if (px > width - 20) x -= px - width + 60;
    if (py < 16) y += 50 - py;
    if (py > height - 30) y -= py - height + 60;
    if (x !== this.zoom.x || y !== this.zoom.y) this.move({ k, x, y });
  }

  // --- pointer and keys ---

  /** The item under a point of the screen, the nearest within reach; -1 where there is none. */
  at(event) {
    const box = this.svg.getBoundingClientRect();
    const { k, x, y } = this.zoom;
    const [px, py] = [(event.clientX - box.left - x) / k, (event.clientY - box.top - y) / k];
    let best = -1;
    let least = Infinity;
    for (const [id, place] of this.places) {
      const [w, h] = this.extent(id);
      const [dx, dy] = [Math.abs(place.x - px), Math.abs(place.y - py)];
      if (w > 14) {
        if (dx <= w && dy <= h) return id;
        continue;
      }
      const distance = Math.hypot(dx, dy);
      if (distance <= Math.max(REACH / k, w) && distance < least) [best, least] = [id, distance];
    }
    return best;
  }

  listen() {
    const { view, svg, root } = this;
    const on = { signal: view.listeners.signal };
    const pointers = new Map();
    let drag = null;
    const spread = () => {
      const [a, b] = [...pointers.values()];
      return { distance: Math.hypot(a.x - b.x, a.y - b.y), x: (a.x + b.x) / 2, y: (a.y + b.y) / 2 };
    };
    svg.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      pointers.set(event.pointerId, { x: event.clientX, y: event.clientY });
      const item = this.at(event);
      drag = { x: event.clientX, y: event.clientY, from: { ...this.zoom }, item, moved: false, many: event.shiftKey || event.ctrlKey || event.metaKey, lasso: event.shiftKey && item < 0 };
      if (pointers.size === 2) drag = { pinch: spread(), from: { ...this.zoom }, moved: true };
    }, on);
    svg.addEventListener("pointermove", (event) => {
      if (pointers.has(event.pointerId)) pointers.set(event.pointerId, { x: event.clientX, y: event.clientY });
      if (!drag) {
        if (event.pointerType !== "touch") view.hover(this.at(event));
        return;
      }
      const box = svg.getBoundingClientRect();
      if (drag.pinch && pointers.size === 2) {
        const now = spread();
        const k = Math.min(6, Math.max(0.1, (drag.from.k * now.distance) / drag.pinch.distance));
        const by = k / drag.from.k;
        this.move({ k, x: now.x - box.left - (drag.pinch.x - box.left - drag.from.x) * by, y: now.y - box.top - (drag.pinch.y - box.top - drag.from.y) * by });
        return;
      }
      const [dx, dy] = [event.clientX - drag.x, event.clientY - drag.y];
      if (!drag.moved && Math.hypot(dx, dy) < 4) return;
      if (!drag.moved) svg.setPointerCapture(event.pointerId);
      drag.moved = true;
      if (drag.lasso) {
        const [x, y] = [Math.min(drag.x, event.clientX) - box.left, Math.min(drag.y, event.clientY) - box.top];
        drag.box = { x, y, width: Math.abs(dx), height: Math.abs(dy) };
        attributes(this.lasso, { ...drag.box, display: "inline" });
      } else {
        view.hover(-1);
        root.classList.add("cg-dragging");
        this.move({ k: drag.from.k, x: drag.from.x + dx, y: drag.from.y + dy });
      }
    }, on);
    const release = (event) => {
      pointers.delete(event.pointerId);
      if (!drag) return;
      root.classList.remove("cg-dragging");
      this.lasso.setAttribute("display", "none");
      if (drag.lasso && drag.box) view.choose(this.inside(drag.box), true);
      else if (!drag.moved && event.type === "pointerup") view.click(drag.item, drag.many);
      drag = null;
    };
    svg.addEventListener("pointerup", release, on);
    svg.addEventListener("pointercancel", release, on);
    svg.addEventListener("pointerleave", () => !drag && view.hover(-1), on);
    svg.addEventListener("focusin", (event) => {
      const item = this.itemOf(event.target);
      if (item >= 0 && event.target.matches(":focus-visible")) view.hover(item);
    }, on);
    svg.addEventListener("focusout", () => view.hover(-1), on);
    // A wheel scrolls what does not fit, else the page; with Ctrl, as a pinch sends it, it zooms.
    root.addEventListener("wheel", (event) => {
      const box = svg.getBoundingClientRect();
      const over = this.overflows();
      if (event.ctrlKey || event.metaKey) {
        event.preventDefault();
        this.zoomBy(Math.exp(-event.deltaY / 250), event.clientX - box.left, event.clientY - box.top);
      } else if ((event.deltaY && over.y) || (event.deltaX && over.x)) {
        event.preventDefault();
        this.move({ k: this.zoom.k, x: this.zoom.x - (over.x ? event.deltaX : 0), y: this.zoom.y - (over.y ? event.deltaY : 0) });
      }
    }, { passive: false, ...on });
    svg.addEventListener("keydown", (event) => {
      const item = this.itemOf(event.target);
      if (item < 0 || event.ctrlKey || event.metaKey) return;
      const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
      if (way && event.altKey) this.follow(item, event.key === "ArrowUp" ? "outs" : event.key === "ArrowDown" ? "ins" : null);
      else if (way) this.step(item, way);
      else if (event.key === "Enter" || event.key === " ") view.click(item, event.shiftKey);
      else if (event.key === "Home") this.focus(this.firstItem());
      else if (!view.key(event, item)) return;
      event.preventDefault();
    }, on);
  }

  itemOf(target) {
    const element = target.closest ? target.closest("g[data-node]") : null;
    return element ? Number(element.dataset.node) : -1;
  }

  inside({ x, y, width, height }) {
    const { zoom } = this;
    return [...this.places].filter(([id, place]) => {
      const [px, py] = [place.x * zoom.k + zoom.x, place.y * zoom.k + zoom.y];
      return this.view.choosable(id) && px >= x && px <= x + width && py >= y && py <= y + height;
    }).map(([id]) => id);
  }

  /** Moves the focus to the nearest item that way; sideways steps cost more. */
  step(from, [dx, dy]) {
    const here = this.places.get(from);
    let best = -1;
    let least = Infinity;
    for (const [id, place] of this.places) {
      const [x, y] = [place.x - here.x, place.y - here.y];
      const along = x * dx + y * dy;
      if (along < 1) continue;
      const cost = along + 3 * Math.abs(x * dy + y * dx);
      if (cost < least) [best, least] = [id, cost];
    }
    if (best >= 0) this.focus(best);
  }

  /** Moves the focus along the strongest edge, up or down. */
  follow(from, side) {
    const edges = side ? this.view.shown[side].get(from) : null;
    if (edges && edges.length) this.focus(side === "outs" ? edges[0].target : edges[0].source);
  }

  focus(id) {
    const element = this.elements.get(id);
    if (!element) return;
    for (const other of this.nodes.querySelectorAll('[tabindex="0"]')) other.setAttribute("tabindex", "-1");
    element.setAttribute("tabindex", "0");
    this.reveal(id);
    element.focus({ preventScroll: true });
  }

  showTip(id) {
    this.tip.hidden = id < 0 || !this.places.has(id);
    if (this.tip.hidden) return;
    this.tip.replaceChildren(...this.view.tipFor(id));
    const { k, x, y } = this.zoom;
    const place = this.places.get(id);
    const [w, h] = this.extent(id);
    const { width, height } = this.size;
    // Beside the node, never over it.
    const beside = (at, half, size, room) => Math.max(4, at + half + 10 + size > room ? at - half - 10 - size : at + half + 10);
    this.tip.style.left = `${beside(place.x * k + x, w * k, this.tip.offsetWidth, width)}px`;
    this.tip.style.top = `${beside(place.y * k + y, h * k, this.tip.offsetHeight, height)}px`;
  }
}

function round(value) {
  return Math.round(value * 100) / 100;
}

/** Whether an edge pushes its target up. */
function raises(edge) {
  return Number.isNaN(edge.contribution) ? edge.weight <= 0 : edge.contribution >= 0;
}

function resize(element, width, height) {
  element.boxWidth = width;
  element.boxHeight = height;
  attributes(element.firstChild, { x: -width / 2, y: -height / 2, width, height });
}
