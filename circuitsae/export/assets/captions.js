// @ts-check
// The texts at the nodes: names, what is left of an activation, what was done.

import { draw } from "./elements.js";
import { extent } from "./nodes.js";
import { placeCaptions } from "./placing.js";
import { round } from "./stage.js";
import { MINUS, cut, visible } from "./text.js";

/** The part of its activation that a node or group has left after an intervention, for those that changed most. */
function captionsOf(view) {
  const { mode, shown } = view;
  const captions = new Map();
  if (!mode.before) return captions;
  const sum = (values, id) =>
    view.nodesOf([id]).reduce((total, i) => total + (Number.isNaN(values[i]) ? 0 : values[i]), 0);
  const known = shown.items.map((id) => [id, sum(mode.before, id), sum(mode.after, id)]);
  const changed = known.filter(([, before, after]) => before && Math.abs(after / before - 1) > 0.02);
  changed.sort((a, b) => Math.abs(b[2] - b[1]) - Math.abs(a[2] - a[1]));
  for (const [id, before, after] of changed.slice(0, 16))
    captions.set(id, `${Math.round((100 * after) / before)}%`.replace("-", MINUS));
  return captions;
}

/** What was done to which items: a group is marked where all of its nodes are, with what is said of all of them. */
function marksOf(view) {
  const marks = new Map();
  for (const { key, text } of (view.overlay && view.overlay.marks) || []) {
    const id = view.shown.item[view.circuit.row.get(key)] ?? -1;
    if (id < 0) continue;
    if (!marks.has(id)) marks.set(id, []);
    marks.get(id).push(String(text));
  }
  for (const [id, texts] of marks) {
    const whole = texts.length === view.nodesOf([id]).length && texts.every((text) => text === texts[0]);
    marks.set(id, whole ? texts[0] : `${texts.length} changed`);
  }
  return marks;
}

/** What a node is called on the drawing. */
function shortName(view, id) {
  const { circuit, state } = view;
  if (id >= circuit.n) return "";
  if (state.pins.has(id) && circuit.label[id]) return cut(visible(circuit.label[id]), 26);
  return circuit.kind[id] === "error" ? "error" : String(circuit.index[id]);
}

/** Names the nodes that matter most, as many as have room on the screen. */
export function nameNodes(stage) {
  const { view } = stage;
  const { circuit, shown, state } = view;
  const { k } = stage.zoom;
  const size = Math.min(12, Math.max(9.5, 11 * k)) / k;
  const marks = marksOf(view);
  const captions = captionsOf(view);
  const must = new Set([...state.selected, ...state.pins, ...marks.keys()]);
  const order = shown.items.filter((id) =>
    id >= circuit.n ? captions.has(id) || marks.has(id) : circuit.rank[id] >= 0 || marks.has(id),
  );
  const first = (id) => (state.selected.has(id) ? 3 : marks.has(id) ? 2 : must.has(id) ? 1 : 0);
  const rank = (id) => circuit.rank[id] ?? -1;
  order.sort((a, b) => first(b) - first(a) || Number(captions.has(b)) - Number(captions.has(a)) || rank(a) - rank(b));
  const room = k > 1.3 ? 160 : k > 0.8 ? 40 : 14;
  const wanted = [];
  const inSight = stage.inSight();
  const want = (id, text, given) => {
    const { x, y } = stage.places.get(id);
    const [w, h] = extent(stage, id);
    const strong = must.has(id) || captions.has(id);
    wanted.push({
      id,
      text,
      x,
      y,
      w,
      h,
      size,
      strong,
      within: inSight,
      width: stage.measure(text, size, strong ? 600 : 400),
      ...given,
    });
  };
  for (const id of order.slice(0, must.size + captions.size + room)) {
    const [name, caption] = [circuit.kind[id] === "token" ? "" : shortName(view, id), captions.get(id)];
    const both = name && (state.pins.has(id) || state.selected.has(id));
    const text = caption ? (both ? `${name}: ${caption}` : caption) : name;
    if (marks.has(id)) want(id, marks.get(id), { above: true, must: true, badge: true });
    if (text) want(id, text, { must: must.has(id) || captions.has(id) });
  }
  /** @type {import("./placing.js").Box[]} */
  const solid = [];
  for (const [id, { x, y }] of stage.places) {
    const [w, h] = extent(stage, id);
    if (w > 14 && !stage.layout.folded.has(id)) solid.push([x - w, y - h, x + w, y + h]);
  }
  const placed = placeCaptions(wanted, solid, (box, n) => covered(stage, box, wanted[n].id));
  const texts = placed.flatMap((place, n) => {
    if (!place) return [];
    const { text, strong, badge } = wanted[n];
    return draw("text", {
      x: round(place.x),
      y: round(place.y),
      "font-size": round(size),
      "text-anchor": "middle",
      class: badge ? "cg-badge" : strong ? "cg-name-strong" : null,
      "stroke-width": round(3 / k),
      text,
    });
  });
  stage.texts.replaceChildren(...texts);
}

function covered(stage, box, id) {
  for (const [other, { x, y }] of stage.places) {
    if (other === id) continue;
    if (x > box[0] - 3 && x < box[2] + 3 && y > box[1] - 5 && y < box[3] + 5) return true;
  }
  return false;
}
