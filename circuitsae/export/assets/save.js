// @ts-check
// The drawing as a picture of its own: SVG with its colours written in, and PNG made from it.

import { BUCKETS, endsOf, level, raises } from "./edges.js";
import { SVG, draw, make } from "./elements.js";
import { amounts } from "./legend.js";
import { GUTTER, round } from "./stage.js";
import { cut, format, visible } from "./text.js";

const PAINTED = [
  "fill",
  "stroke",
  "stroke-width",
  "stroke-dasharray",
  "opacity",
  "font-size",
  "font-weight",
  "paint-order",
];
const UNPRINTABLE =
  /[\u0000-\u0008\u000b\u000c\u000e-\u001f\ufffe\uffff]|[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]/g;

/** A copy of an element with the colours that the style sheet gives it. */
function painted(element) {
  const copy = element.cloneNode(true);
  const from = [element, ...element.querySelectorAll("*")];
  const to = [copy, ...copy.querySelectorAll("*")];
  from.forEach((original, n) => {
    const style = getComputedStyle(original);
    for (const name of ["class", "tabindex", "role", "data-node", "aria-pressed"]) to[n].removeAttribute(name);
    if (["g", "title", "defs", "pattern"].includes(original.localName)) {
      if (style.opacity !== "1") to[n].setAttribute("opacity", style.opacity);
      return;
    }
    for (const name of PAINTED) {
      const value = style.getPropertyValue(name);
      if (value && value !== "normal") to[n].setAttribute(name, value);
    }
  });
  return copy;
}

/** The legend's entries beside one another, as on the page. */
function legendPicture(view, y) {
  const row = draw("g", { transform: `translate(16,${y})` });
  let x = 0;
  for (const entry of view.legend.children) {
    const swatch = entry.querySelector("svg");
    if (swatch) {
      const part = draw("g", { transform: `translate(${x + 7},${swatch.viewBox.baseVal.x < 0 ? 0 : -5})` });
      part.append(...[...swatch.children].map((child) => painted(child)));
      row.append(part);
      x += swatch.viewBox.baseVal.width + 6;
    }
    const style = { "font-size": 11, fill: getComputedStyle(view.root).getPropertyValue("--cg-soft").trim() };
    row.append(draw("text", { x, y: 4, ...style, text: entry.textContent }));
    x += view.stage.measure(entry.textContent, 11) + 16;
  }
  return row;
}

/** The whole drawing as SVG text, at its natural size, with the question above and what was kept below it. */
export function toSvg(view) {
  const { stage, circuit } = view;
  const { layout } = stage;
  const style = getComputedStyle(view.root);
  const colour = (name) => style.getPropertyValue(name).trim();
  const [left, top] = [GUTTER.left, 56];
  const width = Math.ceil(Math.max(layout.width + left + GUTTER.right, 420));
  const height = Math.ceil(layout.height + top + 58);
  const svg = draw("svg", {
    xmlns: SVG,
    width,
    height,
    viewBox: `0 0 ${width} ${height}`,
    "font-family": style.fontFamily.replaceAll('"', "'"),
  });
  svg.append(painted(stage.svg.querySelector("defs")), draw("rect", { width, height, fill: colour("--cg-back") }));
  const metric = circuit.about.metric || {};
  const value = circuit.about.metric_value === undefined ? "" : ` = ${format(circuit.about.metric_value)}`;
  const { overlay } = view;
  const became = overlay && overlay.metric ? `, with interventions ${format(overlay.metric[1])}` : "";
  svg.append(
    draw("text", {
      x: 16,
      y: 24,
      "font-size": 15,
      "font-weight": 600,
      fill: colour("--cg-text"),
      text: cut(visible(circuit.about.prompt || "Circuit"), Math.floor(width / 8)),
    }),
  );
  svg.append(
    draw("text", {
      x: 16,
      y: 42,
      "font-size": 12,
      fill: colour("--cg-soft"),
      text: cut(visible((metric.description || metric.name || "") + value + became), Math.floor(width / 6.5)),
    }),
  );
  svg.append(
    draw("text", {
      x: 16,
      y: height - 12,
      "font-size": 11,
      fill: colour("--cg-soft"),
      text: `${amounts(view).join(", ")}. Solid raises, dashed lowers.`,
    }),
    legendPicture(view, height - 34),
  );
  const scene = draw("g", { transform: `translate(${left},${top})` });
  const dark = { 0: colour("--cg-up"), 1: colour("--cg-down") };
  let even = false;
  let layer;
  for (const row of layout.rows) {
    if (row.kind === "site") {
      if (row.layer !== layer || row.layer === null) even = !even;
      layer = row.layer;
      if (even)
        scene.append(
          draw("rect", { x: -left, y: round(row.top), width, height: round(row.height), fill: colour("--cg-band") }),
        );
    }
    if (row.name)
      scene.append(
        draw("text", {
          x: 10 - left,
          y: round(row.y + 4),
          "font-size": 11.5,
          fill: colour("--cg-soft"),
          text: cut(row.name, 9),
        }),
      );
  }
  const { lit, edges, focused } = view.light();
  const lines = (list, strong) => {
    const groups = new Map();
    for (const edge of list) {
      const ends = endsOf(stage, edge);
      if (!ends) continue;
      const id = level(stage, edge) * 2 + (raises(edge) ? 0 : 1);
      const [x, y, ...rest] = ends.map(round);
      groups.set(id, (groups.get(id) || "") + `M${x} ${y}C${rest.join(" ")}`);
    }
    for (const [id, d] of [...groups].sort(([a], [b]) => a - b)) {
      const t = (Math.floor(id / 2) + 0.5) / BUCKETS;
      scene.append(
        draw("path", {
          d,
          fill: "none",
          stroke: dark[id % 2],
          "stroke-width": round((strong ? 1.1 : 0.7) + 4 * t * t),
          "stroke-opacity": round(
            (strong ? Math.min(1, 0.5 + 0.6 * t) : 0.14 + 0.66 * t) * (edges.length && !strong ? 0.3 : 1),
          ),
          "stroke-dasharray": id % 2 ? "5 3.5" : null,
        }),
      );
    }
  };
  lines(view.shown.drawn, false);
  lines(edges, true);
  for (const part of [stage.axis, stage.rings, stage.nodes, stage.texts]) scene.append(painted(part));
  if (focused && lit.size) svg.setAttribute("data-selected", "true");
  svg.append(scene);
  for (const text of svg.querySelectorAll("text, title"))
    if (!text.children.length) text.textContent = text.textContent.replace(UNPRINTABLE, "\ufffd");
  for (const element of svg.querySelectorAll("[aria-label]"))
    element.setAttribute("aria-label", element.getAttribute("aria-label").replace(UNPRINTABLE, "\ufffd"));
  return new XMLSerializer().serializeToString(svg);
}

/** The drawing as PNG; `scale` pixels for each of the SVG's. */
export async function toPng(view, scale = 2) {
  const text = toSvg(view);
  const image = new Image();
  image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(text)}`;
  await image.decode();
  const canvas = document.createElement("canvas");
  // Browsers refuse canvases beyond some 16,000 pixels; a large circuit gets a coarser picture instead of none.
  const by = Math.min(scale, 12000 / Math.max(image.naturalWidth, image.naturalHeight));
  canvas.width = Math.max(1, Math.round(image.naturalWidth * by));
  canvas.height = Math.max(1, Math.round(image.naturalHeight * by));
  canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
  return new Promise((resolve, reject) =>
    canvas.toBlob((blob) => (blob ? resolve(blob) : reject(new Error("The picture could not be made."))), "image/png"),
  );
}

export function offer(blob, name) {
  const link = make("a", { download: name, href: URL.createObjectURL(blob) });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}
