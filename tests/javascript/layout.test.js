import assert from "node:assert/strict";
import { test } from "node:test";
import { payload } from "./payloads.js";
import { Circuit } from "../../circuitsae/export/assets/circuit.js";
import { layOut, rowsOf } from "../../circuitsae/export/assets/layout.js";
import { placeCaptions } from "../../circuitsae/export/assets/placing.js";

const measure = (text) => 7 * text.length;

/** A circuit laid out with all of its nodes in a room. */
function laidOut(circuit, room, unfolded = new Set()) {
  const rows = rowsOf(circuit);
  const rowOf = (i) =>
    circuit.kind[i] === "metric" ? rows.length - 1 : circuit.site[i] >= 0 ? circuit.site[i] + 1 : 0;
  const items = Array.from({ length: circuit.n }, (_, id) => ({
    id,
    row: rowOf(id),
    position: circuit.position[id],
    wide: 0,
    strength: circuit.strength[id],
    last: 0,
  }));
  return layOut(circuit, rows, items, room, measure, unfolded);
}

for (const [width, features] of [
  [1200, 40],
  [700, 300],
  [320, 300],
])
  test(`${features} nodes in ${width} pixels stand apart, each in its band and its token's column`, () => {
    const circuit = new Circuit(payload({ features, tokens: 12 }));
    const { places, rows, columns } = laidOut(circuit, { width, height: 500, least: 0.6 });
    const placed = [...places].filter(([id]) => circuit.kind[id] === "feature");
    assert.equal(placed.length, features);
    const seen = new Set();
    for (const [id, { x, y }] of placed) {
      const row = rows[circuit.site[id] + 1];
      assert.ok(y > row.top && y < row.top + row.height);
      const column = columns.find(({ position }) => position === circuit.position[id]);
      assert.ok(Math.abs(x - column.x) <= column.width / 2);
      const at = `${Math.round(x)},${Math.round(y)}`;
      assert.ok(!seen.has(at));
      seen.add(at);
    }
    for (let a = 0; a < placed.length; a += 1)
      for (let b = 0; b < a; b += 1)
        assert.ok(Math.hypot(placed[a][1].x - placed[b][1].x, placed[a][1].y - placed[b][1].y) > 20);
  });

test("layers go up and positions to the right", () => {
  const { rows, columns } = laidOut(new Circuit(payload()), { width: 900, height: 500, least: 0.6 });
  assert.ok(rows.every((row, r) => r === 0 || row.y < rows[r - 1].y));
  assert.ok(columns.every((column, c) => c === 0 || column.x > columns[c - 1].x));
});

test("tokens stand in one line; runs without a node are folded, but for what is unfolded or held", () => {
  const circuit = new Circuit(payload({ tokens: 220, features: 10, layers: 3 }));
  const room = { width: 1000, height: 500, least: 0.6 };
  const { columns, folded, places, rows } = laidOut(circuit, room);
  assert.equal(
    folded.size,
    columns.reduce((sum, column) => sum + column.gap, 0),
  );
  assert.ok(folded.size > 100);
  for (let i = 0; i < circuit.n; i += 1) if (circuit.kind[i] === "token") assert.equal(places.get(i).y, rows[0].y);
  const [gap] = columns.filter((column) => column.gap);
  const after = laidOut(circuit, room, new Set([gap.position, gap.position + 1, gap.position + 2]));
  assert.ok(after.folded.size < folded.size);
  const kept = [...after.columns].filter((column) => !column.gap).map((column) => column.position);
  assert.ok(kept.includes(gap.position));
});

test("captions stand apart, those that must be there first, and inside the window", () => {
  const at = (x, y, given = {}) => ({ x, y, w: 5, h: 5, width: 60, size: 10, ...given });
  const wanted = [at(100, 100, { must: true }), at(104, 100, { must: true }), at(108, 100), at(100, 300)];
  const [first, second, third, fourth] = placeCaptions(wanted, [], () => false);
  assert.deepEqual(first, { x: 100, y: 115 });
  assert.ok(second && second.y < 100); // over the node, as below there is no room
  assert.equal(third, null);
  assert.ok(fourth);
  const [inside] = placeCaptions([at(10, 100, { must: true, within: [0, 0, 400, 400] })], [], () => false);
  assert.ok(inside.x - 30 >= 0);
  const [none] = placeCaptions([at(50, 100)], [], () => true);
  assert.equal(none, null);
});
