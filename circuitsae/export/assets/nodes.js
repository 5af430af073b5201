// @ts-check
// The nodes' shapes and colours, and their rings.

import { colourClass } from "./colours.js";
import { attributes, draw } from "./elements.js";
import { round } from "./stage.js";
import { cut, format, visible } from "./text.js";

export const BOX = { token: 26, metric: 30, group: 28 };

export function resize(element, width, height) {
  element.boxWidth = width;
  element.boxHeight = height;
  attributes(element.firstChild, { x: -width / 2, y: -height / 2, width, height });
}

function radius(stage, id) {
  const { circuit } = stage.view;
  const share = circuit.largestStrength ? circuit.strength[id] / circuit.largestStrength : 0;
  return 3.6 + 6 * Math.sqrt(share);
}

/** Half the width and height of an item's shape. */
export function extent(stage, id) {
  const { circuit } = stage.view;
  const element = stage.elements.get(id);
  if (element && element.boxWidth) return [element.boxWidth / 2, element.boxHeight / 2];
  const r = radius(stage, id);
  return circuit.kind[id] === "error" ? [r * 1.2, r * 1.2] : [r, r];
}

export function shapeOf(stage, id) {
  const { view } = stage;
  const { circuit } = view;
  const kind = id < circuit.n ? circuit.kind[id] : "group";
  const element = draw("g", {
    class: `cg-node cg-${kind}`,
    "data-node": id,
    role: "button",
    tabindex: "-1",
    "aria-label": view.describe(id),
  });
  const box = (text, width, height, radius, given = {}) => {
    element.append(
      draw("rect", { class: "cg-shape", rx: radius }),
      draw("text", { "text-anchor": "middle", y: 4, text, ...given }),
    );
    resize(element, width, height);
  };
  if (kind === "feature") element.append(draw("circle", { class: "cg-shape", r: round(radius(stage, id)) }));
  else if (kind === "error") {
    const d = round(radius(stage, id) * 1.2);
    const path = `M0 ${-d}L${d} 0L0 ${d}L${-d} 0Z`;
    element.append(
      draw("path", { class: "cg-shape", d: path }),
      draw("path", { d: path, fill: `url(#${view.id}-hatch)` }),
    );
  } else if (kind === "token") {
    const text = circuit.tokenAt(id);
    box(cut(visible(text).trim() || visible(text) || "token", 14), 40, BOX.token, 7);
  } else if (kind === "metric") {
    const text = pillText(view, id);
    box(text, pillWidth(stage, id, text), BOX.metric, 15);
  } else if (kind === "bias") box("bias", 42, BOX.token, 7);
  else {
    const text = cut(view.groups[id - circuit.n].name, 18);
    box(text, Math.min(150, stage.measure(text) + 26), BOX.group - 4, 12);
  }
  return element;
}

/** What the metric's pill says: its value, and what an intervention made of it. */
function pillText(view, id) {
  const { circuit, overlay } = view;
  // A next token's logit, of which there are several.
  if (circuit.index[id] >= 0) return cut(visible(circuit.label[id] || "").trim() || String(circuit.index[id]), 9);
  if (overlay && overlay.metric) return overlay.metric.map((value) => format(value)).join(" \u2192 ");
  const value = circuit.about.metric_value;
  return value === undefined ? "metric" : `metric ${format(value)}`;
}

function pillWidth(stage, id, text) {
  return (
    stage.measure(text, 13, 600) * Math.min(1.2, stage.layout.textScale) + (stage.view.circuit.index[id] >= 0 ? 18 : 30)
  );
}

/** Gives nodes the colours of the present mode, and the metric its value. */
export function recolour(stage) {
  const { view } = stage;
  for (const [id, element] of stage.elements) {
    const kind = id < view.circuit.n ? view.circuit.kind[id] : "group";
    if (kind === "metric") {
      const text = pillText(view, id);
      if (element.lastChild.textContent !== text) {
        element.lastChild.textContent = text;
        resize(element, pillWidth(stage, id, text), BOX.metric);
      }
    }
    const plain = kind === "metric" || kind === "bias" ? "" : colourClass(view.mode, view.valueOf(id));
    if (element.colour === plain) continue;
    if (element.colour) element.classList.remove(...element.colour.split(" "));
    if (plain) element.classList.add(...plain.split(" "));
    element.colour = plain;
  }
}
