// @ts-check
// The bands of the layers, their names, and the tokens at the foot.

export function paintBands(stage, context, width, colour) {
  const { zoom, layout } = stage;
  let even = false;
  let layer;
  context.fillStyle = colour("--cg-band");
  for (const row of layout.rows) {
    if (row.kind !== "site") continue;
    if (row.layer !== layer || row.layer === null) even = !even;
    layer = row.layer;
    if (even) context.fillRect(0, row.top * zoom.k + zoom.y, width, row.height * zoom.k);
  }
}
