import assert from "node:assert/strict";
import { test } from "node:test";
import { payload } from "./payloads.js";
import { Circuit } from "../../circuitsae/export/assets/circuit.js";
import {
  Basket,
  cleanEdits,
  correlation,
  predictEdit,
  predictSum,
  predictThrough,
  whyNothing,
} from "../../gradio_app/assets/edits.js";

const circuit = new Circuit(payload());
const [i, j] = circuit.choosable;
const [key, other] = [circuit.key[i], circuit.key[j]];

test("a prediction is the slope times the way that the activation goes", () => {
  const [effect, activation] = [circuit.effect[i], circuit.activation[i]];
  const close = (a, b) => assert.ok(Math.abs(a - b) < 1e-12, `${a} is not ${b}`);
  close(predictEdit(circuit, { key, op: "ablate" }), effect);
  close(predictEdit(circuit, { key, op: "scale", value: 0 }), effect);
  close(predictEdit(circuit, { key, op: "scale", value: 1 }), 0);
  close(predictEdit(circuit, { key, op: "scale", value: 2 }), -effect);
  close(predictEdit(circuit, { key, op: "set", value: activation / 2 }), effect / 2);
  close(predictEdit(circuit, { key, op: "add", value: -activation }), effect);
  assert.ok(Number.isNaN(predictEdit(circuit, { key: "nowhere", op: "ablate" })));
});

test("edits of one chain are predicted through the edges between them, others as a sum", () => {
  // A linear model by hand: token -> x -> y -> metric and x -> metric; activations 2 and 3, slopes 1 each.
  const chain = new Circuit({
    ...payload({ tokens: 1, layers: 2, features: 0, edges: 0 }),
    nodes: {
      kind: [0, 2, 2, 4],
      site: [-1, 0, 1, -1],
      index: [-1, 5, 6, -1],
      position: [0, 0, 0, 0],
      activation: [null, 2, 3, null],
      effect: [null, -6, -9, null],
    },
    // y = 0.5 x + 2, metric = x + 3 y - 3 x / 2 + ...: x moves the metric by 3 for each unit, of which 1.5 through y.
    edges: { source: [1, 1, 2], target: [2, 3, 3], contribution: [1, 3, 9], weight: [-3, -3, -9] },
  });
  const [x, y] = [chain.key[1], chain.key[2]];
  const ablate = (key) => ({ key, op: "ablate" });
  const of = (edits) => predictThrough(chain, edits);
  const close = (a, b) => assert.ok(Math.abs(a - b) < 1e-12, `${a} is not ${b}`);
  close(of([ablate(x)]), -6);
  // With x gone y is 2 less a third of 3 already: metric falls by 6 for x, and by 3 * 2 for what is left of y.
  close(of([ablate(x), ablate(y)]), -6 - 6);
  close(predictSum(chain, [ablate(x), ablate(y)]), -15);
  close(of([ablate(x), { key: y, op: "set", value: 3 }]), -6 + 3); // y held: x acts only beside it
  close(of([ablate(x), { key: y, op: "scale", value: 2 }]), -6 + 6); // doubles what is left, 2
  close(of([ablate(x), { key: y, op: "add", value: 1 }]), -6 + 3);
  close(of([{ key: x, op: "scale", value: 2 }, ablate(y)]), 6 - 12);
});

test("why scaling does nothing is said of a node that reads 0, and of no other", () => {
  const edit = { key: other, op: "scale", value: 2 };
  const result = { before: Array.from(circuit.activation), after: Array.from(circuit.activation) };
  assert.equal(whyNothing(circuit, [{ key, op: "ablate" }, edit], edit, result), "");
  result.after[j] = 0;
  assert.match(whyNothing(circuit, [{ key, op: "ablate" }, edit], edit, result), /is 0 there once .* is changed/);
});

test("a slider's steps are one change, and the ways are in the history", () => {
  const basket = new Basket();
  for (let step = 1; step < 6; step += 1) basket.put([key], "scale", step / 10, 100 * step);
  assert.deepEqual(basket.edits, [{ key, op: "scale", value: 0.5 }]);
  basket.put([key], "scale", 0.9, 5000);
  basket.change(basket.edits, { errors: "frozen", attention: "free" });
  basket.move(-1);
  assert.equal(basket.options.errors, "live");
  basket.move(-1);
  basket.move(-1);
  assert.equal(basket.canUndo, false);
});

test("the basket goes back and forth, one change at a time", () => {
  const basket = new Basket();
  assert.equal(basket.canUndo, false);
  basket.put([key], "ablate");
  basket.put([key, other], "scale", 2);
  assert.deepEqual(basket.edits, [
    { key, op: "scale", value: 2 },
    { key: other, op: "scale", value: 2 },
  ]);
  basket.move(-1);
  assert.deepEqual(basket.edits, [{ key, op: "ablate" }]);
  basket.move(1);
  basket.remove(key);
  assert.equal(basket.edits.length, 1);
  assert.equal(
    basket.put(
      Array.from({ length: 501 }, (_, n) => String(n)),
      "ablate",
    ),
    false,
  );
});

test("a stranger's edits are taken as far as they make sense", () => {
  const given = [
    { key, op: "ablate", value: 3 },
    { key: "no", op: "ablate" },
    { key: other, op: "burn" },
    null,
    { key },
  ];
  assert.deepEqual(cleanEdits(circuit, given), [{ key, op: "ablate" }]);
  assert.deepEqual(cleanEdits(circuit, "edits"), []);
});

test("a correlation is Pearson's", () => {
  const pairs = [1, 2, 3].map((x) => [x, 2 * x + 1]);
  assert.ok(Math.abs(correlation(pairs) - 1) < 1e-12);
  assert.ok(Number.isNaN(correlation(pairs.slice(0, 2))));
});
