// @ts-check
// The bands of the layers, their names, and the tokens at the foot.

import { draw } from "./elements.js";
import { GUTTER, round } from "./stage.js";
import { cut } from "./text.js";

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

/** Names the columns and the rows. */
export function layAxes(stage) {
  const { circuit, shown } = stage.view;
  const { columns, rows, textScale } = stage.layout;
  // Tokens that are no nodes of the circuit still name their columns.
  const there = new Set(shown.items.filter((id) => circuit.kind[id] === "token").map((id) => circuit.position[id]));
  const foot = rows[0].y;
  stage.axis.replaceChildren();
  for (const { position, gap, text, title, x } of columns) {
    if (position < 0 || (there.has(position) && !gap)) continue;
    const drawn = draw(
      "text",
      { class: "cg-plain", "text-anchor": "middle", y: 4, text },
      draw("title", { text: title }),
    );
    const at = { transform: `translate(${round(x)},${round(foot)})` };
    if (!gap) {
      stage.axis.append(draw("g", at, drawn));
      continue;
    }
    const width = stage.measure(text) * textScale + 14;
    const label = `${gap} tokens without a node: ${title}. Unfold`;
    const box = draw("rect", { x: -width / 2, y: -13, width, height: 26, rx: 7 });
    stage.axis.append(
      draw(
        "g",
        { class: "cg-gap", role: "button", tabindex: "0", "data-gap": position, "aria-label": label, ...at },
        box,
        drawn,
      ),
    );
  }
  stage.gutter.replaceChildren(
    draw("rect", { class: "cg-gutter-back", x: 0, y: 0, width: GUTTER.left - 8, height: "100%" }),
  );
  stage.rowTexts = rows
    .filter((row) => row.name)
    .map((row) => {
      const text = draw("text", { class: "cg-row", x: 10, text: cut(row.name, 9) });
      if (row.name.length > 9) text.append(draw("title", { text: row.name }));
      stage.gutter.append(text);
      return [row, text];
    });
  stage.foot.replaceChildren(
    draw("rect", { class: "cg-gutter-back", x: 0, width: "100%", height: 24 }),
    draw("line", { class: "cg-grid", x1: 0, x2: "100%" }),
  );
  stage.footTexts = columns
    .filter((column) => column.text)
    .map((column) => {
      const text = draw("text", { class: "cg-plain", "text-anchor": "middle", y: 16, text: column.text });
      stage.foot.append(text);
      return [column, text, stage.measure(column.text, 12.5)];
    });
}

/** Moves the names of rows and columns to where the zoom has what they name; those without room are left out. */
export function moveAxes(stage) {
  const { zoom, layout } = stage;
  const { height } = stage.size;
  for (const [row, text] of stage.rowTexts) {
    text.setAttribute("y", round(row.y * zoom.k + zoom.y + 4));
    text.setAttribute("display", row.height * zoom.k < 11 ? "none" : "inline");
  }
  // Once the tokens are out of sight, their names stay at the foot.
  const away = layout.rows[0].y * zoom.k + zoom.y > height + 4;
  stage.foot.setAttribute("display", away ? "inline" : "none");
  if (!away) return;
  stage.foot.setAttribute("transform", `translate(0,${height - 24})`);
  let free = -Infinity;
  for (const [column, text, width] of stage.footTexts) {
    const x = column.x * zoom.k + zoom.x;
    const fits = x - width / 2 > free;
    text.setAttribute("x", round(x));
    text.setAttribute("display", fits ? "inline" : "none");
    if (fits) free = x + width / 2 + 5;
  }
}
