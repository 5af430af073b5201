import assert from "node:assert/strict";
import { test } from "node:test";

import { Circuit } from "../../circuitsae/export/assets/circuit.js";
import { Basket, cleanEdits, correlation, predictEdit } from "../../gradio_app/assets/edits.js";
import { payload } from "./payloads.js";

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
