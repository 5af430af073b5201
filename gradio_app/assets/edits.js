// @ts-check
// The basket of interventions, its history, and what attribution predicts of it. No DOM here.

import { format } from "../../circuitsae/export/assets/text.js";

const OPERATIONS = ["ablate", "scale", "set", "add"];
export const MOST_EDITS = 500;

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
  const baseline = Number.isNaN(circuit.baseline[i]) ? 0 : circuit.baseline[i];
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

export function predictAll(circuit, edits) {
  return edits.reduce((sum, edit) => sum + predictEdit(circuit, edit), 0);
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

export class Basket {
  constructor() {
    this.past = [[]];
    this.at = 0;
  }

  get edits() {
    return this.past[this.at];
  }

  get canUndo() {
    return this.at > 0;
  }

  get canRedo() {
    return this.at < this.past.length - 1;
  }

  change(edits) {
    this.past = [...this.past.slice(Math.max(0, this.at - 199), this.at + 1), edits];
    this.at = this.past.length - 1;
  }

  /** Puts in an edit of each node, in place of what there was of it; false where there is no room. */
  put(keys, op, value) {
    const mine = new Set(keys);
    const edits = [
      ...this.edits.filter((edit) => !mine.has(edit.key)),
      ...keys.map((key) => (op === "ablate" ? { key, op } : { key, op, value })),
    ];
    if (edits.length > MOST_EDITS) return false;
    this.change(edits);
    return true;
  }

  remove(key) {
    this.change(this.edits.filter((edit) => edit.key !== key));
  }

  move(by) {
    this.at = Math.min(this.past.length - 1, Math.max(0, this.at + by));
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
