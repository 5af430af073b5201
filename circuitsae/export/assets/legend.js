// @ts-check
// Below: what the colours mean, how much is shown, and why not more.

import { MOST_DRAWN } from "./compose.js";
import { count, percent, plural } from "./text.js";

/** What is on the drawing, of what there is. */
export function amounts(view) {
  const { circuit, shown, state } = view;
  const kept = view.kept();
  const held = kept.reduce((sum, i) => sum + circuit.strength[i], 0);
  const share = circuit.totalStrength ? held / circuit.totalStrength : 1;
  const known = circuit.about.kept || {};
  const all =
    typeof known.effect_share === "number" && circuit.strengthName === "|effect|" ? share * known.effect_share : share;
  const weights = (list) => list.reduce((sum, edge) => sum + Math.abs(edge.weight), 0);
  const total = weights(shown.edges);
  const nodes = `${count(kept.length)} of ${plural(circuit.choosable.length, "node")}, kept ${percent(all)} of ${circuit.strengthName}`;
  const each = state.edges === Infinity ? "" : `, ${state.edges} into each`;
  return [
    nodes,
    `${count(shown.drawn.length)} of ${plural(shown.edges.length, "edge")}${each}, ${percent(total ? weights(shown.drawn) / total : 1)} of |weight|`,
  ];
}

/** Why there is not more to see, each in a sentence. */
export function whyNotMore(view) {
  const { circuit, shown, state } = view;
  const known = circuit.about.kept || {};
  const reasons = [];
  const folded = state.errors ? [] : circuit.choosable.filter((i) => circuit.kind[i] === "error" && shown.item[i] < 0);
  if (folded.length) {
    const held = folded.reduce((sum, i) => sum + circuit.strength[i], 0) / (circuit.totalStrength || 1);
    reasons.push(
      `${plural(folded.length, "error node")} hidden, which hold ${percent(held)} of the circuit\u2019s ${circuit.strengthName}; tick \u201cerrors\u201d.`,
    );
  }
  const hidden = circuit.choosable.length - view.kept().length - folded.length;
  if (state.onlyPinned && state.pins.size)
    reasons.push(`${plural(hidden, "node")} hidden because only pinned ones are shown.`);
  else if (hidden > 0) reasons.push(`${plural(hidden, "weaker node")} below the Nodes slider.`);
  if (shown.drawn.length < shown.edges.length)
    reasons.push(
      `${plural(shown.edges.length - shown.drawn.length, "weaker edge")} below the In-edges slider, or beyond the ${count(MOST_DRAWN)} that are drawn at once; a selected node shows all of its own.`,
    );
  if (!state.bias && circuit.bias >= 0) reasons.push("The bias node and its edges; tick \u201cbias\u201d.");
  if (typeof known.candidates === "number" && known.candidates > circuit.choosable.length) {
    const by = circuit.about.prune
      ? ` (${typeof circuit.about.prune === "string" ? circuit.about.prune : "pruning"})`
      : "";
    const share =
      typeof known.effect_share === "number"
        ? ` The circuit holds ${percent(known.effect_share)} of all |effect|.`
        : "";
    reasons.push(
      `${plural(known.candidates - circuit.choosable.length, "candidate")} left out when the circuit was traced${by}; trace with a larger max_nodes for more.${share}`,
    );
  }
  if (typeof known.edge_candidates === "number" && known.edge_candidates > circuit.m)
    reasons.push(
      `${plural(known.edge_candidates - circuit.m, "edge")} left out when it was traced; a lower edge_threshold keeps more.`,
    );
  return reasons;
}
