import assert from "node:assert/strict";
import { test } from "node:test";

import { Circuit } from "../../circuitsae/export/assets/circuit.js";
import { layOut, rowsOf } from "../../circuitsae/export/assets/layout.js";
import { payload } from "./payloads.js";

const measure = (text) => 7 * text.length;

/** A circuit laid out with all of its nodes in a room. */
function laidOut(circuit, room) {
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
  return layOut(circuit, rows, items, room, measure);
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
