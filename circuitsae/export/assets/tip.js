// @ts-check
// What is said of the node that is pointed at.

import { make } from "./elements.js";
import { extent } from "./nodes.js";
import { count, cut, format } from "./text.js";

function tipFor(view, id) {
  const { circuit, mode } = view;
  const parts = [make("b", { text: view.nameOf(id) })];
  if (view.placeOf(id)) parts.push(make("span", { class: "cg-soft", text: ` ${view.placeOf(id)}` }));
  if (id < circuit.n) {
    if (circuit.label[id]) parts.push(make("p", { class: "cg-label", text: cut(circuit.label[id], 140) }));
    const rows = [
      ["activation", format(circuit.activation[id]), circuit.activation[id]],
      ["effect, predicted", format(circuit.effect[id], true), circuit.effect[id]],
      ["effect, measured", format(circuit.measured[id], true), circuit.measured[id]],
    ];
    if (!["effect", "measured", "predicted", "activation"].includes(mode.id))
      rows.push([
        mode.name.toLowerCase(),
        mode.kind === "category"
          ? String((mode.names || [])[mode.values[id]] ?? "")
          : format(mode.values[id], mode.kind !== "scale"),
        mode.values[id],
      ]);
    const shown = rows.filter(([, , value]) => !Number.isNaN(value));
    if (shown.length)
      parts.push(
        make("dl", {}, ...shown.flatMap(([name, text]) => [make("dt", { text: name }), make("dd", { text })])),
      );
    const [ins, outs] = [circuit.ins[id].length, circuit.outs[id].length];
    if (ins + outs) parts.push(make("p", { class: "cg-soft", text: `${count(ins)} in, ${count(outs)} out` }));
  } else parts.push(make("p", { text: `predicted together ${format(view.sum(view.nodesOf([id])), true)}` }));
  return parts;
}

export function showTip(stage, id) {
  stage.tip.hidden = id < 0 || !stage.places.has(id);
  if (stage.tip.hidden) return;
  stage.tip.replaceChildren(...tipFor(stage.view, id));
  const { k, x, y } = stage.zoom;
  const place = stage.places.get(id);
  const [w, h] = extent(stage, id);
  const { width, height } = stage.size;
  // Beside the node, never over it.
  const beside = (at, half, size, room) =>
    Math.max(4, at + half + 10 + size > room ? at - half - 10 - size : at + half + 10);
  stage.tip.style.left = `${beside(place.x * k + x, w * k, stage.tip.offsetWidth, width)}px`;
  stage.tip.style.top = `${beside(place.y * k + y, h * k, stage.tip.offsetHeight, height)}px`;
}
