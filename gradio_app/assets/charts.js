// @ts-check
// Charts below the drawing: next tokens, predicted against measured, effects by position, sets of nodes.

import { draw, make } from "../../circuitsae/export/assets/elements.js";
import { MINUS, cut, format, percent, quoted, visible } from "../../circuitsae/export/assets/text.js";

/**
 * Next tokens before and after, as a table with bars, a full bar for certainty. `rows`: text, probability before, after
 * (or none), logit before, after, and what it is in the question: "answer", "foil" or nothing. Those two come first.
 */
export function tokenTable(rows) {
  const after = rows.some(([, , value]) => value !== undefined && value !== null);
  const logits = rows.some(([, , , value]) => value !== undefined && value !== null);
  const bar = (value, kind) => {
    const fill = make("span", { class: `cw-fill ${kind}` });
    fill.style.width = `${100 * (value || 0)}%`;
    return make(
      "td",
      {},
      make("span", { class: "cw-bar" }, fill),
      make("span", { class: "cw-value", text: percent(value) }),
    );
  };
  const head = ["next token", ...(after ? ["before", "after"] : ["probability"]), ...(logits ? ["logit"] : [])];
  const asked = rows.filter(([, , , , , role]) => role);
  const others = rows.filter(([, , , , , role]) => !role);
  const body = [...asked, ...others]
    .slice(0, 8 + asked.length)
    .map(([text, a, b, from, to, role]) =>
      make(
        "tr",
        { class: role ? "cw-asked" : null },
        make(
          "th",
          { scope: "row" },
          quoted(cut(text, 24)),
          role ? make("span", { class: "cg-soft", text: ` ${role}` }) : null,
        ),
        bar(a, "cw-was"),
        after ? bar(b, "cw-is") : null,
        logits
          ? make("td", { class: "cw-value", text: to === null ? format(from) : `${format(from)} \u2192 ${format(to)}` })
          : null,
      ),
    );
  return make(
    "table",
    { class: "cw-tokens" },
    make("thead", {}, make("tr", {}, ...head.map((text) => make("th", { scope: "col", text })))),
    make("tbody", {}, ...body),
  );
}

function niceStep(span) {
  const rough = span / 4;
  const power = 10 ** Math.floor(Math.log10(rough));
  return [1, 2, 5, 10].map((k) => k * power).find((step) => step >= rough);
}

/** Predicted (across) against measured (up), with y = x. `points`: {key, name, x, y, kind}. */
export function scatter(points, { chosen, onSelect }) {
  const [width, height, left, foot] = [430, 330, 52, 40];
  const values = points.flatMap(({ x, y }) => [x, y]);
  let [low, high] = [Math.min(0, ...values), Math.max(0, ...values)];
  const pad = (high - low) * 0.06 || 1;
  low -= pad;
  high += pad;
  const px = (v) => left + ((v - low) / (high - low)) * (width - left - 12);
  const py = (v) => height - foot - ((v - low) / (high - low)) * (height - foot - 12);
  const svg = draw("svg", {
    class: "cw-scatter",
    viewBox: `0 0 ${width} ${height}`,
    role: "group",
    "aria-label": `Predicted against measured effect of ${points.length} nodes. Arrow keys move between points, Enter selects.`,
  });
  const step = niceStep(high - low);
  for (let v = Math.ceil(low / step) * step; v <= high; v += step) {
    const value = Math.abs(v) < step / 1e6 ? 0 : v;
    svg.append(
      draw("line", {
        class: value === 0 ? "cw-axis" : "cw-grid",
        x1: px(value),
        x2: px(value),
        y1: 12,
        y2: height - foot,
      }),
      draw("line", {
        class: value === 0 ? "cw-axis" : "cw-grid",
        y1: py(value),
        y2: py(value),
        x1: left,
        x2: width - 12,
      }),
      draw("text", { x: px(value), y: height - foot + 15, "text-anchor": "middle", text: format(value) }),
      draw("text", { x: left - 6, y: py(value) + 4, "text-anchor": "end", text: format(value) }),
    );
  }
  svg.append(
    draw("line", { class: "cw-diagonal", x1: px(low), y1: py(low), x2: px(high), y2: py(high) }),
    draw("text", {
      class: "cw-strong",
      x: (left + width) / 2,
      y: height - 6,
      "text-anchor": "middle",
      text: "predicted effect",
    }),
    draw("text", {
      class: "cw-strong",
      x: 12,
      y: (height - foot) / 2,
      "text-anchor": "middle",
      transform: `rotate(-90 12 ${(height - foot) / 2})`,
      text: "measured effect",
    }),
    draw("text", { x: px(high) - 4, y: py(high) + 14, "text-anchor": "end", text: "y = x" }),
  );
  const marks = points
    .slice()
    .sort((a, b) => a.x - b.x)
    .map((point, n) => {
      const title = draw("title", {
        text: `${point.name}: predicted ${format(point.x, true)}, measured ${format(point.y, true)}`,
      });
      const given = {
        class: `cw-point${point.key === chosen ? " cw-chosen" : ""}${point.kind === "error" ? " cw-error" : ""}`,
        role: "button",
        tabindex: n ? "-1" : "0",
        "aria-label": title.textContent,
        on: { click: () => onSelect(point.key) },
      };
      const [x, y] = [px(point.x), py(point.y)];
      return point.kind === "error"
        ? draw("path", { d: `M${x} ${y - 6}L${x + 6} ${y}L${x} ${y + 6}L${x - 6} ${y}Z`, ...given }, title)
        : draw("circle", { cx: x, cy: y, r: 5, ...given }, title);
    });
  marks.forEach((mark, n) =>
    mark.addEventListener("keydown", (event) => {
      const to = { ArrowRight: n + 1, ArrowUp: n + 1, ArrowLeft: n - 1, ArrowDown: n - 1 }[event.key];
      if (to !== undefined && marks[to]) {
        mark.setAttribute("tabindex", "-1");
        marks[to].setAttribute("tabindex", "0");
        marks[to].focus();
      } else if (event.key === "Enter" || event.key === " ") mark.dispatchEvent(new Event("click"));
      else return;
      event.preventDefault();
      event.stopPropagation();
    }),
  );
  svg.append(...marks);
  return svg;
}

/**
 * Effects by position (down) and feature (across), errors last. `columns`: {name, title, cells: Map(position -> {key,
 * value}), error}; a cell selects its node.
 */
export function heatmap(circuit, columns, { chosen, onSelect }) {
  const positions = circuit.tokens.map((_, p) => p).filter((p) => columns.some((column) => column.cells.has(p)));
  const most = Math.max(
    1e-12,
    ...columns.flatMap((column) => [...column.cells.values()].map(({ value }) => Math.abs(value) || 0)),
  );
  const head = make(
    "tr",
    {},
    make("td"),
    ...columns.map(({ name, title, error }) =>
      make("th", { scope: "col", title, class: error ? "cw-error-column" : null }, make("span", { text: name })),
    ),
  );
  const rows = positions.map((p) =>
    make(
      "tr",
      {},
      make("th", { scope: "row", text: `${quoted(cut(circuit.tokens[p], 14))} ${p}` }),
      ...columns.map((column) => {
        const cell = column.cells.get(p);
        const td = make("td", { class: column.error ? "cw-error-column" : null });
        if (!cell) return td;
        const { key, value } = cell;
        const known = Number.isFinite(value);
        const box = make("button", {
          type: "button",
          class: `cw-cell ${value > 0 ? "cw-down" : "cw-up"}${key === chosen ? " cw-chosen" : ""}`,
          "aria-label": `${column.title} at ${visible(circuit.tokens[p])}, ${p}: ${known ? shortNumber(value) : "\u00b7"}`,
          title: `${column.title} @${p}: ${format(value, true)}`,
          text: known ? shortNumber(value) : "\u00b7",
          on: { click: () => onSelect(key) },
        });
        if (known) box.style.setProperty("--share", `${Math.round(8 + 72 * Math.sqrt(Math.abs(value) / most))}%`);
        td.append(box);
        return td;
      }),
    ),
  );
  return make(
    "div",
    { class: "cw-scroll", tabindex: "0", role: "region", "aria-label": "Effects by position and feature" },
    make("table", { class: "cw-heat" }, make("thead", {}, head), make("tbody", {}, ...rows)),
  );
}

function shortNumber(value) {
  const size = Math.abs(value);
  const text = size >= 100 ? size.toFixed(0) : size >= 10 ? size.toFixed(1) : size.toFixed(2);
  return (value < 0 ? MINUS : "+") + text.replace(/^0\./, ".");
}

/** A set's faithfulness beside those of random sets, on a line from 0 (every node ablated) to 1 (none). */
export function faithfulnessLine(found) {
  const known = [found.faithfulness, ...found.random].filter((v) => v !== null);
  if (!known.length)
    return make("p", {
      text: "Ablating every node leaves the metric where it is: there is nothing to be faithful to.",
    });
  const [low, high] = [Math.min(0, ...known), Math.max(1, ...known)];
  const [width, height] = [520, 96];
  const px = (v) => 30 + ((v - low) / (high - low || 1)) * (width - 60);
  const svg = draw("svg", {
    class: "cw-line",
    viewBox: `0 0 ${width} ${height}`,
    role: "img",
    "aria-label": `Faithfulness ${format(found.faithfulness)}; random sets ${found.random.map((v) => format(v)).join(", ")}`,
  });
  svg.append(draw("line", { class: "cw-axis", x1: 20, x2: width - 20, y1: 50, y2: 50 }));
  for (const [v, text] of [
    [0, "0: all ablated"],
    [1, "1: the model"],
  ])
    svg.append(
      draw("line", { class: "cw-axis", x1: px(v), x2: px(v), y1: 42, y2: 58 }),
      draw("text", { x: px(v), y: 76, "text-anchor": v ? "end" : "start", text }),
    );
  for (const v of found.random)
    if (v !== null) svg.append(draw("circle", { class: "cw-random", cx: px(v), cy: 50, r: 5 }));
  if (found.faithfulness !== null)
    svg.append(
      draw("rect", { class: "cw-set", x: px(found.faithfulness) - 6, y: 44, width: 12, height: 12, rx: 2 }),
      draw("text", {
        class: "cw-strong",
        x: px(found.faithfulness),
        y: 34,
        "text-anchor": "middle",
        text: `pinned ${format(found.faithfulness)}`,
      }),
    );
  return svg;
}
