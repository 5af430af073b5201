// @ts-check
// The basket of interventions, its history, and what attribution predicts of it. No DOM here.

import { format } from "../../circuitsae/export/assets/text.js";

const OPERATIONS = ["ablate", "scale", "set", "add"];
export const MOST_EDITS = 500;
const GOES_ON = 1200; // ms within which a slider's next step is the same change

/** What an edit is called on a node and in the basket. */
export function editText({ op, value }) {
  if (op === "ablate") return "ablated";
  if (op === "scale") return `\u00d7${format(value)}`;
  if (op === "set") return `= ${format(value)}`;
  return format(value, true);
}

/** What attribution predicts: the metric's slope along the node times how far the edit moves it; NaN where unknown. */
export function predictEdit(circuit, { key, op, value }) {
  const i = circuit.row.get(key);
  if (i === undefined) return NaN;
  const effect = circuit.effect[i];
  if (op === "ablate") return effect;
  const baseline = baselineOf(circuit, i);
  if (circuit.kind[i] !== "feature") {
    // A vector: only its way to a zero baseline is known.
    if (op === "scale") return baseline === 0 ? effect * (1 - value) : value === 1 ? 0 : NaN;
    return op === "set" && value === 0 && baseline === 0 ? effect : NaN;
  }
  const activation = circuit.activation[i];
  const wanted = op === "scale" ? activation * value : op === "set" ? value : activation + value;
  if (wanted === activation) return 0;
  return baseline === activation ? NaN : (effect * (wanted - activation)) / (baseline - activation);
}

/** The plain sum of what attribution predicts for each edit by itself. */
export function predictSum(circuit, edits) {
  return edits.reduce((sum, edit) => sum + predictEdit(circuit, edit), 0);
}

/**
 * What attribution predicts of several edits together, to first order through the graph: an edit moves what is
 * downstream, and a node that is itself edited then has less, or more, of a way to go. All movements are counted in
 * multiples of the node's own ablation: along an edge, of the source's, the contribution over the target's activation
 * (above its baseline) is passed on. NaN where an edit's effect is unknown.
 */
export function predictThrough(circuit, edits) {
  if (edits.length < 2) return predictSum(circuit, edits);
  const editOf = new Map(edits.map((edit) => [circuit.row.get(edit.key), edit]));
  const moved = new Float64Array(circuit.n);
  let total = 0;
  for (const i of circuit.order()) {
    let given = 0;
    for (const e of circuit.ins[i])
      if (moved[circuit.source[e]]) given += moved[circuit.source[e]] * passedOn(circuit, e);
    const edit = editOf.get(i);
    const own = edit ? push(circuit, i, edit, given) : 0;
    if (own) total += own * circuit.effect[i];
    moved[i] = given + own;
  }
  return total;
}

function passedOn(circuit, e) {
  const i = circuit.target[e];
  const room = circuit.activation[i] - baselineOf(circuit, i);
  if (circuit.kind[i] === "feature" && room && !Number.isNaN(circuit.contribution[e]))
    return circuit.contribution[e] / room;
  return circuit.effect[i] ? circuit.weight[e] / circuit.effect[i] : 0;
}

/** How far an edit itself moves a node that is already moved by `given`, in multiples of the node's ablation. */
function push(circuit, i, { op, value }, given) {
  if (op === "ablate") return 1 - given;
  const baseline = baselineOf(circuit, i);
  // A vector: only its way to a zero baseline is known.
  if (circuit.kind[i] !== "feature") {
    if (op === "scale") return baseline === 0 ? (1 - value) * (1 - given) : value === 1 ? 0 : NaN;
    return op === "set" && value === 0 && baseline === 0 ? 1 - given : NaN;
  }
  const activation = circuit.activation[i];
  const way = baseline - activation;
  if (op === "scale") return value === 1 ? 0 : (value - 1) * (activation / way + given);
  return op === "set" ? (value - activation) / way - given : value / way;
}

function baselineOf(circuit, i) {
  return Number.isNaN(circuit.baseline[i]) ? 0 : circuit.baseline[i];
}

/** The nodes among `rows` from which a node can be reached. */
function upstream(circuit, i, rows) {
  const seen = new Set([i]);
  const waiting = [i];
  while (waiting.length)
    for (const e of circuit.ins[waiting.pop()])
      if (!seen.has(circuit.source[e])) {
        seen.add(circuit.source[e]);
        waiting.push(circuit.source[e]);
      }
  return rows.filter((row) => row !== i && seen.has(row));
}

/** Why scaling a node did nothing: it reads 0 in the changed run. Empty where it does not. */
export function whyNothing(circuit, edits, edit, result) {
  const i = circuit.row.get(edit.key);
  const [before, after] = [result.before[i], result.after[i]];
  if (edit.op !== "scale" || edit.value === 0 || !before || Math.abs(after) > 1e-6 * Math.abs(before)) return "";
  const others = edits.filter((other) => other.key !== edit.key).map((other) => circuit.row.get(other.key));
  const causes = upstream(circuit, i, others);
  const names = (causes.length ? causes : others).slice(0, 3).map((row) => circuit.name(row));
  const once = names.length ? ` once ${names.join(", ")} ${names.length > 1 ? "are" : "is"} changed` : "";
  return `${circuit.name(i)} is 0 there${once}: there is nothing to scale.`;
}

/** Edits as a stranger's link or file gives them: those that make sense for the circuit. */
export function cleanEdits(circuit, given) {
  if (!Array.isArray(given)) return [];
  const seen = new Set();
  return given
    .filter(
      (edit) =>
        edit &&
        typeof edit === "object" &&
        circuit.row.has(edit.key) &&
        OPERATIONS.includes(edit.op) &&
        (edit.op === "ablate" || Number.isFinite(edit.value)) &&
        !seen.has(edit.key) &&
        seen.add(edit.key),
    )
    .slice(0, MOST_EDITS)
    .map(({ key, op, value }) => (op === "ablate" ? { key, op } : { key, op, value }));
}

/** What is done to the model: edits and the ways in which the rest is treated, with their history. */
export class Basket {
  constructor(options = { errors: "live", attention: "free" }) {
    this.past = [{ edits: [], options }];
    this.at = 0;
    this.last = null; // the last put: a slider that moves on replaces it
  }

  get edits() {
    return this.past[this.at].edits;
  }

  get options() {
    return this.past[this.at].options;
  }

  get canUndo() {
    return this.at > 0;
  }

  get canRedo() {
    return this.at < this.past.length - 1;
  }

  change(edits, options = this.options) {
    this.past = [...this.past.slice(Math.max(0, this.at - 199), this.at + 1), { edits, options }];
    this.at = this.past.length - 1;
    this.last = null;
  }

  /**
   * Puts in an edit of each node, in place of what there was of it; false where there is no room. One amount after
   * another for the same nodes, as a slider gives them, is one change.
   */
  put(keys, op, value, now = performance.now()) {
    const mine = new Set(keys);
    const edits = [
      ...this.edits.filter((edit) => !mine.has(edit.key)),
      ...keys.map((key) => (op === "ablate" ? { key, op } : { key, op, value })),
    ];
    if (edits.length > MOST_EDITS) return false;
    const what = JSON.stringify([keys, op]);
    const goesOn = op !== "ablate" && this.last && this.last.what === what && now - this.last.at < GOES_ON;
    if (goesOn) this.past[this.at] = { edits, options: this.options };
    else this.change(edits);
    this.last = { what, at: now };
    return true;
  }

  remove(key) {
    this.change(this.edits.filter((edit) => edit.key !== key));
  }

  move(by) {
    this.at = Math.min(this.past.length - 1, Math.max(0, this.at + by));
    this.last = null;
  }
}

/** Pearson's correlation of pairs; NaN where there are too few or they do not vary. */
export function correlation(pairs) {
  const n = pairs.length;
  if (n < 3) return NaN;
  const mean = (k) => pairs.reduce((sum, pair) => sum + pair[k], 0) / n;
  const [a, b] = [mean(0), mean(1)];
  let [ab, aa, bb] = [0, 0, 0];
  for (const [x, y] of pairs) {
    ab += (x - a) * (y - b);
    aa += (x - a) ** 2;
    bb += (y - b) ** 2;
  }
  return aa > 0 && bb > 0 ? ab / Math.sqrt(aa * bb) : NaN;
}
