import assert from "node:assert/strict";
import { test } from "node:test";
import { payload } from "./payloads.js";
import { Circuit } from "../../circuitsae/export/assets/circuit.js";
import { compose } from "../../circuitsae/export/assets/compose.js";
import { cut, format, percent, visible } from "../../circuitsae/export/assets/text.js";

test("numbers are written with three digits and a true minus sign", () => {
  assert.equal(format(-0.12345), "\u22120.123");
  assert.equal(format(0.5, true), "+0.5");
  assert.equal(format(12345.6), "12,346");
  assert.equal(format(1e-7), "1.0e\u22127");
  assert.equal(format(NaN), "\u2013");
  assert.equal(percent(0.0004), "<0.1%");
  assert.equal(percent(0.999), "100%");
});

test("a text is cut between whole characters, and what can't be seen is made visible", () => {
  assert.equal(cut("\u{1f600}\u{1f600}\u{1f600}", 2), "\u{1f600}\u2026");
  assert.equal(visible("a\n\tb\u0007"), "a\u23ce\u21e5b\ufffd");
});

test("a payload of another schema is refused", () => {
  assert.throws(() => new Circuit({ schema: "other" }), /circuitsae-view\/1/);
});

test("nodes have the keys that Python gives them", () => {
  const circuit = new Circuit(payload({ tokens: 3, features: 4 }));
  assert.equal(circuit.key[1], "token@1");
  assert.match(circuit.key[3], /^blocks\.\d\.hook_mlp_out\/0@\d$/);
  assert.equal(circuit.row.get(circuit.key[4]), 4);
});

test("the strongest ways are those that trying all ways finds", () => {
  const circuit = new Circuit(payload({ features: 14, edges: 400, seed: 5 }));
  const all = [];
  const walk = (i, nodes, share) => {
    if (i === circuit.metric) all.push([share, nodes.join()]);
    for (const e of circuit.outs[i]) {
      const target = circuit.target[e];
      walk(target, [...nodes, target], (share * Math.abs(circuit.weight[e])) / circuit.inWeight[target]);
    }
  };
  const from = circuit.kind.indexOf("token");
  walk(from, [from], 1);
  all.sort((a, b) => b[0] - a[0]);
  assert.ok(all.length > 5);
  const found = circuit.paths(from, circuit.metric, 4);
  assert.deepEqual(
    found.map(({ nodes }) => nodes.join()),
    all.slice(0, 4).map(([, nodes]) => nodes),
  );
  found.forEach(({ share }, n) => assert.ok(Math.abs(share - all[n][0]) < 1e-12));
});

test("what is drawn: so many nodes, and of each one's in-edges so many", () => {
  const circuit = new Circuit(payload());
  const { items, drawn, ins } = compose(circuit, {
    nodes: 10,
    edges: 2,
    bias: false,
    pins: [circuit.choosable[20]],
    groups: [],
    onlyPinned: false,
    forced: [],
  });
  assert.equal(items.filter((id) => circuit.rank[id] >= 0).length, 11);
  for (const [target, list] of ins) {
    const strongest = list.slice(0, 2);
    assert.deepEqual(
      drawn.filter((edge) => edge.target === target),
      strongest,
    );
    for (const edge of list.slice(2)) assert.ok(Math.abs(edge.weight) <= Math.abs(strongest[1].weight));
  }
});

test("a group's edges are its members' sums", () => {
  const circuit = new Circuit(payload());
  const members = circuit.choosable.slice(0, 5);
  const inside = new Set(members);
  const { outs } = compose(circuit, {
    nodes: Infinity,
    edges: Infinity,
    bias: false,
    pins: [],
    groups: [{ name: "five", nodes: members }],
    onlyPinned: false,
    forced: [],
  });
  for (const edge of outs.get(circuit.n)) {
    let sum = 0;
    for (let e = 0; e < circuit.m; e += 1)
      if (inside.has(circuit.source[e]) && circuit.target[e] === edge.target) sum += circuit.weight[e];
    assert.ok(Math.abs(edge.weight - sum) < 1e-12);
  }
});

test("a search finds an index exactly, and labels and tokens in part", () => {
  const circuit = new Circuit(payload());
  const [first] = circuit.find("7");
  assert.equal(circuit.index[first], 7);
  assert.ok(circuit.find("word3").every((i) => circuit.position[i] === 3));
  assert.deepEqual(circuit.find("nowhere"), []);
});

test("nodes are ordered by what was measured, and again when more is", () => {
  const given = payload({ features: 5 });
  const features = given.nodes.kind.flatMap((kind, i) => (kind === 2 ? [i] : []));
  given.nodes.measured_effect = given.nodes.kind.map(() => null);
  given.nodes.measured_effect[features[3]] = 0.001;
  given.nodes.measured_effect[features[1]] = -9;
  const circuit = new Circuit(given);
  assert.equal(circuit.choosable[0], features[1]);
  assert.equal(circuit.choosable.at(-1), features[3]);
  assert.equal(circuit.predicted(features[1]), false);
  assert.equal(circuit.predicted(features[0]), true);
  assert.equal(circuit.sign(features[1]), 1);
  circuit.measured[features[0]] = 20;
  circuit.rerank();
  assert.equal(circuit.choosable[0], features[0]);
  const mean = new Circuit({ ...given, aggregate: { prompts: 2 } });
  assert.notEqual(mean.choosable.at(-1), undefined);
  assert.equal(mean.known[features[1]], given.nodes.effect[features[1]]);
});
