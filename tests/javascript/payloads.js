// Circuits to test with, as circuitsae.export.view gives them.

/** Numbers that look random and are the same everywhere. */
export function numbers(seed) {
  let state = seed;
  return () => {
    state = (state * 16807) % 2147483647;
    return state / 2147483647;
  };
}

/** A payload of features at random places: tokens first, the metric last, edges upwards. */
export function payload({ tokens = 8, layers = 4, features = 30, edges = 120, seed = 1 } = {}) {
  const random = numbers(seed);
  const nodes = { kind: [], site: [], index: [], position: [], label: [], activation: [], effect: [] };
  const add = (kind, site, index, position, effect) => {
    nodes.kind.push(kind);
    nodes.site.push(site);
    nodes.index.push(index);
    nodes.position.push(position);
    nodes.label.push(null);
    nodes.activation.push(kind === 2 ? 1 + random() : null);
    nodes.effect.push(effect);
  };
  for (let p = 0; p < tokens; p += 1) add(0, -1, -1, p, random() - 0.5);
  const wanted = Array.from({ length: features }, () => [Math.floor(random() * layers), Math.floor(random() * tokens)]);
  wanted.sort(([a], [b]) => a - b);
  wanted.forEach(([site, position], index) => add(2, site, index, position, random() - 0.5));
  add(4, -1, -1, tokens - 1, null);
  const n = nodes.kind.length;
  const columns = { source: [], target: [], contribution: [], weight: [] };
  const seen = new Set();
  for (let e = 0; e < edges; e += 1) {
    const [a, b] = [Math.floor(random() * (n - 1)), Math.floor(random() * n)].sort((x, y) => x - y);
    if (a === b || nodes.kind[b] === 0 || seen.has(a * n + b)) continue;
    if (nodes.kind[a] === 2 && nodes.kind[b] === 2 && nodes.site[a] === nodes.site[b]) continue;
    seen.add(a * n + b);
    columns.source.push(a);
    columns.target.push(b);
    columns.contribution.push(random() - 0.5);
    columns.weight.push(random() - 0.5);
  }
  return {
    schema: "circuitsae-view/1",
    kinds: ["token", "bias", "feature", "error", "metric"],
    prompt: "a test",
    tokens: Array.from({ length: tokens }, (_, p) => ` word${p}`),
    metric: { name: "logit-diff", description: "", position: tokens - 1 },
    metric_value: 1.5,
    sites: Array.from({ length: layers }, (_, layer) => ({ id: `blocks.${layer}.hook_mlp_out`, layer, part: "mlp" })),
    nodes,
    edges: columns,
  };
}
