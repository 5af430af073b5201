// @ts-check
// The drawing itself: bands and edges on a canvas, nodes as SVG above it; zoom, pan, hover, lasso and keys.

import { layAxes, moveAxes, paintBands } from "./axes.js";
import { nameNodes } from "./captions.js";
import { bucketed, stroke } from "./edges.js";
import { draw, focused, make } from "./elements.js";
import { layOut, rowsOf, textScale } from "./layout.js";
import { BOX, extent, recolour, resize, shapeOf } from "./nodes.js";
import { listen } from "./pointer.js";
import { cut } from "./text.js";

const MANY = 4000; // edges; with more, a drag moves the picture and paints it anew when it rests
export const GUTTER = { left: 58, right: 14, top: 8, bottom: 8 };

export class Stage {
  constructor(view) {
    this.view = view;
    this.zoom = { k: 1, x: 0, y: 0 };
    this.moved = -Infinity;
    this.painted = this.zoom;
    this.follows = true; // keeps the whole in sight until somebody moves it
    this.elements = new Map();
    this.places = new Map();
    this.unfolded = new Set(); // positions whose empty columns somebody wants to see
    this.family = "";
    this.seen = null; // the size for which it was last placed
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
    const hatch = draw(
      "pattern",
      { id: `${view.id}-hatch`, width: 4, height: 4, patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)" },
      draw("path", { d: "M0 0v4", class: "cg-hatch" }),
    );
    this.svg = draw(
      "svg",
      {
        role: "group",
        "aria-label":
          "Circuit. Arrow keys move between nodes, Enter selects, Escape clears, question mark lists the keys.",
      },
      draw("defs", {}, hatch),
      this.scene,
      this.gutter,
      this.foot,
      this.lasso,
    );
    this.tip = make("div", { class: "cg-tip", hidden: true });
    this.root = make("div", { class: "cg-stage" }, this.base, this.top, this.svg, this.tip);
    this.ruler = document.createElement("canvas").getContext("2d");
    listen(this);
  }

  get size() {
    const { clientWidth, clientHeight } = this.root;
    if (clientWidth && clientHeight) this.lastSize = { width: clientWidth, height: clientHeight };
    return this.lastSize || { width: 800, height: 500 };
  }

  /** Where the drawing may go; below `least` nothing can be read. */
  get room() {
    const { width, height } = this.size;
    return {
      width: width - GUTTER.left - GUTTER.right,
      height: height - GUTTER.top - GUTTER.bottom,
      least: width < 600 ? 0.72 : 0.6,
    };
  }

  /** How wide a text is, in the drawing's own font. */
  measure(text, size = 13, weight = 400) {
    this.family ||= getComputedStyle(this.view.root).fontFamily || "sans-serif";
    this.ruler.font = `${weight} ${size}px ${this.family}`;
    return this.ruler.measureText(text).width;
  }

  // --- what is there ---

  /** Places the shown items anew; those that were there before glide to their new places. */
  arrange(animate) {
    const { circuit, shown, groups } = this.view;
    const rowOfSite = new Map();
    this.rows = rowsOf(circuit);
    this.rows.forEach((row, r) => row.kind === "site" && rowOfSite.set(row.site, r));
    const rowOf = (i) =>
      circuit.kind[i] === "metric" ? this.rows.length - 1 : circuit.site[i] >= 0 ? rowOfSite.get(circuit.site[i]) : 0;
    const items = shown.items.map((id) => {
      // A group stands where its strongest node does.
      const node =
        id < circuit.n
          ? id
          : groups[id - circuit.n].nodes.reduce((best, i) => (circuit.strength[i] > circuit.strength[best] ? i : best));
      const wide = id < circuit.n ? 0 : Math.min(150, this.measure(cut(groups[id - circuit.n].name, 18)) + 26);
      return {
        id,
        row: rowOf(node),
        position: circuit.position[node],
        wide,
        strength: circuit.probability[node] || circuit.strength[node],
        last: circuit.kind[node] === "error" ? 1 : 0,
        keep: this.view.held(id),
      };
    });
    this.layout = layOut(circuit, this.rows, items, this.room, (text) => this.measure(text), this.unfolded);
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
    this.buckets = bucketed(this, this.view.shown.drawn);
    if (!moving) this.mark();
    this.paint();
  }

  render() {
    const { view } = this;
    const { circuit, shown } = view;
    const columnOf = new Map(this.layout.columns.map((column) => [column.position, column]));
    const wanted = [];
    for (const id of shown.items) {
      if (this.layout.folded.has(id)) continue;
      let element = this.elements.get(id);
      if (!element || id >= circuit.n) {
        element = shapeOf(this, id);
        this.elements.set(id, element);
      }
      if (id < circuit.n && circuit.kind[id] === "token") {
        const column = columnOf.get(circuit.position[id]);
        if (column) {
          const width = this.layout.textScale * this.measure(column.text);
          resize(element, Math.max(24, Math.min(column.width - 4, width + 14)), BOX.token);
          element.lastChild.textContent = column.text;
        }
      }
      wanted.push(element);
    }
    for (const id of this.elements.keys()) if (id >= circuit.n + view.groups.length) this.elements.delete(id);
    const focus = this.nodes.contains(document.activeElement) ? focused() : null;
    this.nodes.replaceChildren(...wanted);
    if (focus && focus.isConnected) focus.focus({ preventScroll: true });
    recolour(this);
    layAxes(this);
    if (!this.nodes.querySelector('[tabindex="0"]') && wanted.length)
      this.elements.get(this.firstItem()).setAttribute("tabindex", "0");
  }

  firstItem() {
    const { circuit, shown } = this.view;
    return (
      shown.items.find((id) => circuit.rank[id] === 0) ??
      shown.items.find((id) => id >= circuit.n || circuit.rank[id] >= 0) ??
      shown.items[0]
    );
  }

  // --- edges ---

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
      for (const canvas of [this.base, this.top])
        canvas.style.transform = `translate(${zoom.x - this.painted.x * by}px,${zoom.y - this.painted.y * by}px) scale(${by})`;
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
      if (canvas === this.base) paintBands(this, context, width, colour);
      context.translate(zoom.x, zoom.y);
      context.scale(zoom.k, zoom.k);
      const buckets = canvas === this.base ? this.buckets : this.litBuckets || [];
      for (const bucket of buckets) stroke(this, context, bucket, colours, canvas === this.top);
    }
    this.paintScene();
    if (!this.gliding) nameNodes(this);
  }

  /** Moves what is SVG to where the zoom has it. */
  paintScene() {
    const { zoom, layout } = this;
    // Tokens are read at any zoom at which they are shown.
    this.svg.style.setProperty("--cg-scale", Math.min(layout.textScale, textScale(zoom.k)));
    this.scene.setAttribute("transform", `translate(${round(zoom.x)},${round(zoom.y)}) scale(${zoom.k})`);
    moveAxes(this);
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
    this.litBuckets = bucketed(this, edges);
    const rings = [];
    const ring = (id, kind) => {
      const place = this.places.get(id);
      if (!place) return;
      const [w, h] = extent(this, id);
      const shape =
        w > 14
          ? draw("rect", {
              x: round(place.x - w - 3),
              y: round(place.y - h - 3),
              width: round(2 * w + 6),
              height: round(2 * h + 6),
              rx: 9,
            })
          : draw("circle", { cx: round(place.x), cy: round(place.y), r: round(w + 3.5) });
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
    if (this.unfolded.size) {
      this.unfolded.clear();
      this.arrange(true);
    }
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

  /** Where the box of a folded run of columns stands. */
  gapPlace(position) {
    const { columns, rows } = this.layout;
    return { x: columns.find((column) => column.position === position).x, y: rows[0].y };
  }

  /** Shows the tokens of a folded run of columns. */
  unfold(position) {
    const gap = this.layout.columns.find((column) => column.position === position && column.gap);
    if (!gap) return;
    for (let p = position; p < position + gap.gap; p += 1) this.unfolded.add(p);
    this.arrange(true);
    this.view.say(`${gap.gap} tokens unfolded; Fit folds them again`);
  }

  /** What of the drawing the window shows, in the drawing's own units. */
  inSight() {
    const { width, height } = this.size;
    const { k, x, y } = this.zoom;
    return [(GUTTER.left - 6 - x) / k, -y / k, (width - x) / k, (height - y) / k];
  }

  overflows() {
    const { width, height } = this.size;
    const { k, x, y } = this.zoom;
    return { x: x < 0 || x + this.layout.width * k > width + 1, y: y < -1 || y + this.layout.height * k > height + 1 };
  }

  /** Brings an item into sight, if it is not. */
  reveal(id) {
    const place = this.layout.places.get(id);
    if (place) this.revealPlace(place);
  }

  revealPlace(place) {
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

  focus(id) {
    const element = this.elements.get(id);
    if (!element) return;
    for (const other of this.nodes.querySelectorAll('[tabindex="0"]')) other.setAttribute("tabindex", "-1");
    element.setAttribute("tabindex", "0");
    this.reveal(id);
    element.focus({ preventScroll: true });
  }
}

export function round(value) {
  return Math.round(value * 100) / 100;
}
