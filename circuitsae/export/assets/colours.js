// @ts-check
// What a node's colour says, as classes; the colours themselves are in the style sheet, light and dark.

import { format } from "./text.js";

const STEPS = 6;

function given(values) {
  return values.some((value) => !Number.isNaN(value));
}

/** The columns that an overlay brings, in the nodes' order, from lists in that order or objects from key to value. */
function overlayValues(circuit, values) {
  if (Array.isArray(values))
    return Float64Array.from({ length: circuit.n }, (_, i) => (typeof values[i] === "number" ? values[i] : NaN));
  return Float64Array.from(circuit.key, (key) => (values && typeof values[key] === "number" ? values[key] : NaN));
}

/**
 * The ways of colouring nodes: by a sign (`sign`), from little to much (`scale`), by what fell and rose (`change`) or by
 * kinds (`category`). An overlay adds its own, and from `before` and `after` makes three.
 */
export function colourModes(circuit, overlay) {
  const some = given(circuit.measured);
  const modes = [{ id: "effect", name: some ? "Effect" : "Effect, predicted", kind: "sign", values: circuit.known }];
  if (some) {
    modes.push({ id: "measured", name: "Effect, measured", kind: "sign", values: circuit.measured });
    modes.push({ id: "predicted", name: "Effect, predicted", kind: "sign", values: circuit.effect });
  }
  if (given(circuit.activation))
    modes.push({ id: "activation", name: "Activation", kind: "scale", values: circuit.activation });
  if (given(circuit.explained))
    modes.push({ id: "explained", name: "Input explained", kind: "scale", values: circuit.explained, most: 1 });
  if (given(circuit.influence))
    modes.push({ id: "influence", name: "Influence", kind: "scale", values: circuit.influence });
  if (overlay) {
    if (overlay.before && overlay.after) {
      const before = overlayValues(circuit, overlay.before);
      const after = overlayValues(circuit, overlay.after);
      const most = Math.max(
        0,
        ...before.filter(Number.isFinite).map(Math.abs),
        ...after.filter(Number.isFinite).map(Math.abs),
      );
      const change = after.map((value, i) => value - before[i]);
      modes.push({ id: "change", name: "Change", kind: "change", values: change, before, after });
      modes.push({ id: "before", name: "Before", kind: "scale", values: before, most, before, after });
      modes.push({ id: "after", name: "After", kind: "scale", values: after, most, before, after });
    }
    for (const mode of overlay.modes || []) {
      const kind = ["sign", "scale", "change", "category"].includes(mode.kind) ? mode.kind : "scale";
      modes.push({
        id: String(mode.id),
        name: String(mode.name || mode.id),
        kind,
        values: overlayValues(circuit, mode.values),
        most: mode.most,
        names: mode.names,
      });
    }
  }
  for (const mode of modes) {
    if (mode.most === undefined || mode.most === null)
      mode.most = Math.max(0, ...mode.values.filter(Number.isFinite).map(Math.abs));
  }
  return modes;
}

/** The classes that show a value in a mode. What lowers, or fell, is hollow too: colour is never alone. */
export function colourClass(mode, value) {
  if (value === undefined || Number.isNaN(value)) return "cg-none";
  if (mode.kind === "category") return `cg-k${Math.abs(Math.round(value)) % 6}`;
  // An effect is the metric's change when the node is taken away, so what raises the metric has a negative one.
  if (mode.kind === "sign") return value > 0 ? "cg-down" : value < 0 ? "cg-up" : "cg-none";
  const share = mode.most > 0 ? Math.min(1, Math.sqrt(Math.abs(value) / mode.most)) : 0;
  const step = Math.min(STEPS - 1, Math.floor(share * STEPS));
  if (mode.kind === "scale") return `cg-s${step}`;
  if (share < 0.08) return "cg-same";
  return value < 0 ? `cg-fell cg-f${step}` : `cg-rose cg-r${step}`;
}

/** The legend's entries for a mode: a class and what it stands for. */
export function colourLegend(mode) {
  if (mode.kind === "sign")
    return [
      ["cg-up", "raises the metric"],
      ["cg-down", "lowers it"],
    ];
  if (mode.kind === "change")
    return [
      ["cg-rose cg-r4", "rose"],
      ["cg-fell cg-f4", "fell"],
      ["cg-same", "unchanged"],
    ];
  if (mode.kind === "category") return (mode.names || []).slice(0, 6).map((name, k) => [`cg-k${k}`, String(name)]);
  return [
    ["cg-s0", "little"],
    ["cg-s3", ""],
    ["cg-s5", `much (${format(mode.most)})`],
  ];
}
