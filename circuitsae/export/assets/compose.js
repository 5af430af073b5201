// @ts-check
// What is on the drawing: which nodes, groups and edges. No DOM here.

export const MOST_DRAWN = 12000; // edges; more would be one wall of colour

/**
 * What is on the drawing: the nodes over the threshold (and those pinned, grouped or forced), a group as one item, and
 * the edges among them, a group's summed. Items 0..n-1 are the circuit's nodes, n.. the groups. Edges come strongest
 * first; `drawn` marks, of each item's in-edges, the `edges` strongest, and of all of those not more than
 * can be told apart.
 */
export function compose(circuit, { nodes, edges, bias, errors = true, pins, groups, onlyPinned, forced }) {
  const { n } = circuit;
  const item = new Int32Array(n).fill(-1);
  const always = new Set([...pins, ...forced]);
  for (let i = 0; i < n; i += 1) {
    const kind = circuit.kind[i];
    if (kind === "feature" || kind === "error") {
      const wanted = !onlyPinned && circuit.rank[i] < nodes && (errors || kind !== "error");
      if (always.has(i) || wanted) item[i] = i;
    } else if (kind !== "bias" || bias || always.has(i)) item[i] = i;
  }
  groups.forEach((group, g) => group.nodes.forEach((i) => (item[i] = n + g)));
  const size = n + groups.length;
  const list = [];
  const sums = new Map();
  for (let e = 0; e < circuit.m; e += 1) {
    const source = item[circuit.source[e]];
    const target = item[circuit.target[e]];
    if (source < 0 || target < 0 || source === target) continue;
    const [weight, contribution] = [circuit.weight[e], circuit.contribution[e]];
    if (source < n && target < n) {
      list.push({ source, target, weight, contribution, base: e });
      continue;
    }
    const id = source * size + target;
    const sum = sums.get(id);
    if (sum) {
      sum.weight += weight;
      sum.contribution += contribution;
      sum.base = -1;
    } else {
      const edge = { source, target, weight, contribution, base: e };
      sums.set(id, edge);
      list.push(edge);
    }
  }
  if (sums.size) list.sort((a, b) => Math.abs(b.weight) - Math.abs(a.weight));
  const ins = new Map();
  const outs = new Map();
  const drawn = [];
  for (const edge of list) {
    if (!ins.has(edge.target)) ins.set(edge.target, []);
    if (!outs.has(edge.source)) outs.set(edge.source, []);
    if (ins.get(edge.target).length < edges && edge.weight !== 0 && drawn.length < MOST_DRAWN) drawn.push(edge);
    ins.get(edge.target).push(edge);
    outs.get(edge.source).push(edge);
  }
  const items = [];
  const seen = new Uint8Array(size);
  for (let i = 0; i < n; i += 1) {
    if (item[i] < 0 || seen[item[i]]) continue;
    seen[item[i]] = 1;
    items.push(item[i]);
  }
  return { item, items, edges: list, drawn, ins, outs };
}
