// @ts-check
// Where things stand: a column for each position, rows for the sites, tokens at the foot, the metric on top. No DOM here.

import { cutTo, quoted, visible } from "./text.js";

const UNIT = 21; // from one node to the next, across and down
const GAP = 8; // between columns, at least
const TOKEN = { padding: 16, widest: 130, narrowest: 30 };
const LONG = 24; // tokens; of a longer prompt empty columns are folded
const LOGIT = 84; // from one logit to the next, where there is room
const FEW_SITES = 14; // with more, rows without a node become thin

/**
 * A column: one token, or a run of `gap` tokens without a node. `least` is the width that its text needs.
 * @typedef {{position: number, gap: number, text: string, title: string, least: number, width?: number, x?: number}} Column
 *
 * A band: `y` is its middle, `top` its upper edge.
 * @typedef {{kind: "tokens" | "site" | "metric", name: string, site?: number, layer?: number | null,
 *   height?: number, top?: number, y?: number}} Row
 *
 * What is placed: a node (`wide` 0) or a group, a box of that width. A token with `keep` is not folded.
 * @typedef {{id: number, row: number, position: number, wide: number, strength: number, last: number, keep?: boolean}} Item
 */

/** The circuit's rows from the foot: tokens, sites in the order the model computes them, the metric. */
export function rowsOf(circuit) {
  const used = new Set(circuit.site.filter((site) => site >= 0));
  const sites = circuit.sites.map((_, site) => site).filter((site) => used.has(site));
  /** @type {Row[]} */
  const rows = [{ kind: "tokens", name: "" }];
  for (const site of sites)
    rows.push({ kind: "site", site, name: circuit.rowName(site), layer: circuit.sites[site].layer });
  rows.push({ kind: "metric", name: "" });
  return rows;
}

/** How much larger than at scale 1 tokens are written where a whole drawing is shown small. */
export function textScale(k) {
  return Math.min(1.45, Math.max(1, 0.82 / k));
}

/**
 * The columns: one a token; where the prompt is long, runs of three and more tokens without a node become one, but for
 * those that somebody has unfolded.
 */
function columnsOf(circuit, used, unfolded, measure) {
  /** @type {Column[]} */
  const columns = [];
  const { tokens } = circuit;
  const long = tokens.length > LONG;
  for (let position = 0; position < tokens.length; position += 1) {
    let end = position;
    while (long && end < tokens.length && !used.has(end) && !unfolded.has(end)) end += 1;
    if (end - position >= 3) {
      const text = `+${end - position}`;
      const title = quoted(tokens.slice(position, end).join(""));
      columns.push({ position, gap: end - position, text, title, least: measure(text) + TOKEN.padding });
      position = end - 1;
      continue;
    }
    const text = cutTo(visible(tokens[position]).trim() || visible(tokens[position]), TOKEN.widest, measure);
    const least = Math.max(TOKEN.narrowest, measure(text) + TOKEN.padding);
    columns.push({ position, gap: 0, text, title: quoted(tokens[position]), least });
  }
  if (used.has(-1) || !columns.length) columns.unshift({ position: -1, gap: 0, text: "", title: "", least: 48 });
  return columns;
}

/**
 * Places items, each with `id`, `row`, `position`, `wide` (0 for a node, a width for a group) and `strength`, in a room
 * of a given size, where a scale below `room.least` can't be read. Of the heights that cells may have, it takes the one
 * that lets the whole be shown largest; what room is left over goes between columns and rows. Tokens stand in one line:
 * those whose columns are folded get the place of what stands for them, and are in `folded`.
 *
 * @param {import("./circuit.js").Circuit} circuit
 * @param {Row[]} rows
 * @param {Item[]} items
 * @param {{width: number, height: number, least: number}} room
 * @param {(text: string) => number} measure how wide a text is
 * @param {Set<number>} unfolded positions that stay, though nothing stands in their columns
 */
export function layOut(circuit, rows, items, room, measure, unfolded = new Set()) {
  // Where the whole is shown small, tokens are written larger, and their columns must have room for that.
  let laid = layOutAt(circuit, rows, items, room, measure, unfolded, 1);
  for (let again = 0; again < 2 && textScale(laid.k) > laid.textScale * 1.01; again += 1)
    laid = layOutAt(circuit, rows, items, room, measure, unfolded, textScale(laid.k));
  return laid;
}

function layOutAt(circuit, rows, items, room, measureAtOne, unfolded, scale) {
  const measure = (text) => scale * measureAtOne(text);
  const last = rows.length - 1;
  const read = circuit.about.metric ? circuit.about.metric.position : null;
  const used = new Set();
  for (const { row, position, keep } of items) if ((row > 0 && row < last) || keep) used.add(position);
  if (Number.isInteger(read)) used.add(read);
  if (items.some(({ row, position }) => row === 0 && position < 0)) used.add(-1);
  const columns = columnsOf(circuit, used, unfolded, measure);
  const columnOf = new Map();
  columns.forEach((column, c) => {
    for (let p = column.position; p <= column.position + Math.max(0, column.gap - 1); p += 1) columnOf.set(p, c);
  });
  const metricColumn =
    columnOf.get(Number.isInteger(read) && read >= 0 ? read : circuit.tokens.length - 1) ?? columns.length - 1;
  const cells = new Map();
  for (const item of items) {
    const column = item.row === last ? metricColumn : (columnOf.get(item.position) ?? 0);
    const id = item.row * columns.length + column;
    if (!cells.has(id)) cells.set(id, { row: item.row, column, single: [], wide: [] });
    (item.wide ? cells.get(id).wide : cells.get(id).single).push(item);
  }
  for (const cell of cells.values())
    cell.single.sort((a, b) => a.last - b.last || b.strength - a.strength || a.id - b.id);

  // A cell may be so many lines high; its column is then as wide as it must be, and at least as wide as its token.
  const arrange = (tallest) => {
    const across = columns.map((column) => Math.max(1, Math.floor((column.least + 4) / UNIT)));
    const widths = columns.map((column) => column.least);
    for (const { row, column, single, wide } of cells.values()) {
      if (row === 0 || row === last) continue;
      across[column] = Math.max(across[column], Math.ceil(single.length / tallest));
      widths[column] = Math.max(widths[column], ...wide.map((item) => item.wide + 8));
    }
    columns.forEach((_, c) => (widths[c] = Math.max(widths[c], across[c] * UNIT)));
    const lines = rows.map(() => 0);
    for (const { row, column, single, wide } of cells.values())
      lines[row] = Math.max(lines[row], Math.ceil(single.length / across[column]) + wide.length);
    const heights = rows.map(({ kind }, row) => {
      if (kind !== "site") return 46;
      return lines[row] ? lines[row] * UNIT + 20 : rows.length > FEW_SITES ? 12 : 32;
    });
    const sum = (list) => list.reduce((a, b) => a + b, 0);
    const width = sum(widths) + GAP * columns.length;
    const height = sum(heights);
    return { across, widths, heights, width, height, scale: Math.min(room.width / width, room.height / height) };
  };
  const most = Math.max(1, ...Array.from(cells.values(), (cell) => cell.single.length));
  const tried = [];
  for (let tallest = 1; tallest <= Math.min(most, 60); tallest += 1) tried.push(arrange(tallest));
  const bestOf = (list, value) => list.reduce((best, one) => (value(one) > value(best) * 1.001 ? one : best));
  let best = bestOf(tried, (one) => one.scale);
  if (best.scale < room.least) {
    // It can't be read as a whole. Then its height fits, if it can, and it is moved sideways, as the prompt is read.
    const high = tried.filter((one) => room.height / one.height >= room.least);
    best = high.length ? bestOf(high, (one) => 1 / one.width) : bestOf(tried, (one) => 1 / one.height);
  }
  const { across, widths, heights } = best;
  const k = Math.min(1.15, Math.max(room.least, best.scale));
  const betweenColumns = GAP + Math.min(44, Math.max(0, room.width / k - best.width) / columns.length);
  const betweenRows = Math.min(56, Math.max(0, room.height / k - best.height) / rows.length);

  let x = 0;
  columns.forEach((column, c) => {
    column.width = widths[c];
    column.x = x + (widths[c] + betweenColumns) / 2;
    x += widths[c] + betweenColumns;
  });
  let y = 0;
  for (let row = last; row >= 0; row -= 1) {
    rows[row].height = heights[row] + betweenRows;
    rows[row].top = y;
    rows[row].y = y + rows[row].height / 2;
    y += rows[row].height;
  }
  const places = new Map();
  const folded = new Set();
  for (const { row, column, single, wide } of cells.values()) {
    if (row === 0 && columns[column].gap) {
      for (const { id } of single) {
        places.set(id, { x: columns[column].x, y: rows[0].y });
        folded.add(id);
      }
      if (!wide.length) continue;
      single.length = 0;
    }
    const count = Math.ceil(single.length / across[column]);
    const per = Math.ceil(single.length / (count || 1));
    const tall = (count + wide.length - 1) * UNIT;
    // The metric's pill is wide and may stand over the last, narrow column: it stays inside.
    const centre = row === last ? Math.min(columns[column].x, Math.max(x / 2, x - 60)) : columns[column].x;
    const top = rows[row].y - tall / 2;
    if (row === last && single.length > 1) {
      // Several logits stand side by side, the most probable one where a metric would.
      const step = Math.min(LOGIT, centre / single.length);
      single.forEach((item, at) => places.set(item.id, { x: centre - at * step, y: rows[row].y }));
      continue;
    }
    wide.forEach((item, line) => places.set(item.id, { x: centre, y: top + line * UNIT }));
    single.forEach((item, at) => {
      const line = Math.floor(at / per);
      const inLine = Math.min(per, single.length - line * per);
      places.set(item.id, { x: centre + ((at % per) - (inLine - 1) / 2) * UNIT, y: top + (wide.length + line) * UNIT });
    });
  }
  return { rows, columns, places, folded, k, textScale: scale, width: x, height: y };
}
