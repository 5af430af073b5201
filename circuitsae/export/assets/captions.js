// @ts-check
// The texts at the nodes: names, what is left of an activation, what was done.

import { draw } from "./elements.js";
import { extent } from "./nodes.js";
import { round } from "./stage.js";
import { MINUS, cut, visible } from "./text.js";

/** The part of its activation that a node has left after an intervention, for those that changed most. */
function captionsOf(view) {
  const { mode, circuit, shown } = view;
  const captions = new Map();
  if (!mode.before) return captions;
  const changed = shown.items.filter(
    (id) =>
      id < circuit.n &&
      mode.before[id] &&
      Number.isFinite(mode.after[id]) &&
      Math.abs(mode.after[id] / mode.before[id] - 1) > 0.02,
  );
  changed.sort((a, b) => Math.abs(mode.after[b] - mode.before[b]) - Math.abs(mode.after[a] - mode.before[a]));
  for (const id of changed.slice(0, 16))
    captions.set(id, `${Math.round((100 * mode.after[id]) / mode.before[id])}%`.replace("-", MINUS));
  return captions;
}

/** Names the nodes that matter most, as many as have room on the screen. */
export function nameNodes(stage) {
  const { circuit, shown, state, overlay } = stage.view;
  const { k } = stage.zoom;
  const size = Math.min(12, Math.max(9.5, 11 * k)) / k;
  const texts = [];
  const taken = [];
  const marks = new Map(
    (overlay && overlay.marks ? overlay.marks : []).map((mark) => [circuit.row.get(mark.key), mark.text]),
  );
  const captions = captionsOf(stage.view);
  const must = new Set([...state.selected, ...state.pins, ...marks.keys()]);
  const order = shown.items.filter((id) => id < circuit.n && circuit.rank[id] >= 0);
  order.sort(
    (a, b) =>
      Number(must.has(b)) - Number(must.has(a)) ||
      Number(captions.has(b)) - Number(captions.has(a)) ||
      circuit.rank[a] - circuit.rank[b],
  );
  const room = k > 1.3 ? 160 : k > 0.8 ? 40 : 14;
  for (const id of order.slice(0, must.size + captions.size + room)) {
    const { x, y } = stage.places.get(id);
    const [, h] = extent(stage, id);
    const caption = captions.get(id);
    const label =
      state.pins.has(id) && circuit.label[id]
        ? cut(visible(circuit.label[id]), 26)
        : circuit.kind[id] === "error"
          ? "error"
          : String(circuit.index[id]);
    const full = caption ? (state.pins.has(id) || state.selected.has(id) ? `${label}: ${caption}` : caption) : label;
    const half = stage.measure(full, size) / 2 + 2;
    const box = [x - half, y + h + 1, x + half, y + h + size + 3];
    const free = !taken.some(
      (other) => box[0] < other[2] && box[2] > other[0] && box[1] < other[3] && box[3] > other[1],
    );
    if (!must.has(id) && (!free || (!caption && covered(stage, box, id)))) continue;
    taken.push(box);
    texts.push(
      draw("text", {
        x: round(x),
        y: round(y + h + size),
        "font-size": round(size),
        "text-anchor": "middle",
        class: must.has(id) || caption ? "cg-name-strong" : null,
        "stroke-width": round(3 / k),
        text: full,
      }),
    );
    if (marks.has(id))
      texts.push(
        draw("text", {
          x: round(x),
          y: round(y - h - 3 / k),
          "font-size": round(size * 1.05),
          "text-anchor": "middle",
          class: "cg-badge",
          "stroke-width": round(3 / k),
          text: String(marks.get(id)),
        }),
      );
  }
  stage.texts.replaceChildren(...texts);
}

function covered(stage, box, id) {
  for (const [other, { x, y }] of stage.places) {
    if (other === id) continue;
    if (x > box[0] - 3 && x < box[2] + 3 && y > box[1] - 5 && y < box[3] + 5) return true;
  }
  return false;
}
