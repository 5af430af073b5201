// @ts-check
// Everything shown, as tables to read and to save.

import { button, make } from "./elements.js";
import { count, format, percent, visible } from "./text.js";

/** Everything shown, as two tables that sort by any column. */
export class Table {
  constructor(view) {
    this.view = view;
    this.what = "nodes";
    this.by = { nodes: [5, -1], edges: [3, -1] };
    this.limit = 300;
    this.root = make("div", { class: "cg-table", hidden: true });
  }

  /**
   * The columns: a name, what stands in it, and how that is written.
   * @returns {[string, (row: any) => any, ((value: any) => string)?][]}
   */
  columns() {
    const { circuit } = this.view;
    if (this.what === "edges") {
      return [
        ["source", (e) => circuit.name(e.source)],
        ["target", (e) => circuit.name(e.target)],
        ["contribution", (e) => e.contribution],
        ["weight", (e) => e.weight],
        ["share of target", (e) => circuit.share(e.base, "in"), percent],
      ];
    }
    return [
      ["node", (i) => circuit.name(i)],
      [
        "position",
        (i) => (circuit.position[i] < 0 ? NaN : circuit.position[i]),
        (v) => (Number.isNaN(v) ? "" : String(v)),
      ],
      ["token", (i) => visible(circuit.tokenAt(i))],
      ["label", (i) => circuit.label[i] || ""],
      ["activation", (i) => circuit.activation[i]],
      ["effect", (i) => circuit.effect[i]],
      ["measured", (i) => circuit.measured[i]],
      ["explained", (i) => circuit.explained[i], (v) => (Number.isNaN(v) ? "\u2013" : percent(v))],
    ];
  }

  fill() {
    const { view, what } = this;
    const { circuit } = view;
    const columns = this.columns();
    const shown = view.shown.items.filter((id) => id >= circuit.n || circuit.rank[id] >= 0);
    const rows =
      what === "nodes"
        ? view.nodesOf(shown)
        : view.shown.drawn
            .filter((edge) => edge.base >= 0)
            .map((edge) => ({ ...edge, source: circuit.source[edge.base], target: circuit.target[edge.base] }));
    const [sorted, way] = this.by[what];
    const read = columns[sorted][1];
    const size = (value) => (typeof value === "number" ? (Number.isNaN(value) ? -1 : Math.abs(value)) : value);
    const keyed = rows.map((row) => [size(read(row)), row]);
    keyed.sort(
      ([a], [b]) => way * (typeof a === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true })),
    );
    const tab = (name, text) =>
      button(text, text, () => ((this.what = name), (this.limit = 300), this.fill()), {
        class: "cg-small-button",
        "aria-pressed": String(what === name),
      });
    const head = make(
      "tr",
      {},
      ...columns.map(([name, ,], c) =>
        make(
          "th",
          { scope: "col", "aria-sort": c === sorted ? (way < 0 ? "descending" : "ascending") : "none" },
          make(
            "button",
            { type: "button", on: { click: () => ((this.by[what] = [c, c === sorted ? -way : -1]), this.fill()) } },
            name,
            c === sorted ? (way < 0 ? " \u2193" : " \u2191") : "",
          ),
        ),
      ),
    );
    const body = make("tbody");
    for (const [, row] of keyed.slice(0, this.limit)) {
      const id = what === "nodes" ? row : null;
      const cells = columns.map(([, value, write], c) => {
        const content = value(row);
        const numeric = typeof content === "number";
        const text = write
          ? write(content)
          : numeric
            ? format(content, what === "edges" || c === 5 || c === 6)
            : content;
        if (c > 1 || (what === "nodes" && c > 0)) return make("td", { class: numeric ? "cg-number" : "", text });
        const open = what === "nodes" ? id : c === 0 ? row.source : row.target;
        return make(
          "td",
          {},
          make("button", {
            type: "button",
            class: "cg-link-text",
            text,
            on: { click: () => view.choose([view.shown.item[open] >= 0 ? view.shown.item[open] : open]) },
          }),
        );
      });
      body.append(make("tr", { class: id !== null && view.state.selected.has(id) ? "cg-row-chosen" : "" }, ...cells));
    }
    const more =
      keyed.length > this.limit
        ? button(
            `Show all ${count(keyed.length)}`,
            `Show all ${count(keyed.length)}`,
            () => ((this.limit = Infinity), this.fill()),
            { class: "cg-small-button" },
          )
        : null;
    this.root.replaceChildren(
      make("div", { class: "cg-actions" }, tab("nodes", "Nodes"), tab("edges", "Edges")),
      make("table", {}, make("thead", {}, head), body),
      ...(more ? [more] : []),
    );
  }
}

export function csv(view, nodes) {
  const { circuit } = view;
  const cell = (value) => {
    if (typeof value === "number") return Number.isNaN(value) ? "" : String(value);
    const text = String(value ?? "");
    // A spreadsheet would run these as formulas.
    const safe = /^[=+\-@\t\r]./.test(text) ? `'${text}` : text;
    return /[",\n\r]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
  };
  const rows = nodes
    ? [
        ["node", "kind", "token", "label", "activation", "effect", "measured_effect"],
        ...view
          .nodesOf(view.shown.items)
          .map((i) => [
            circuit.key[i],
            circuit.kind[i],
            circuit.tokenAt(i),
            circuit.label[i],
            circuit.activation[i],
            circuit.effect[i],
            circuit.measured[i],
          ]),
      ]
    : [
        ["source", "target", "contribution", "weight"],
        ...view.shown.edges.map((edge) =>
          [edge.source, edge.target]
            .map((id) => (id < circuit.n ? circuit.key[id] : view.nameOf(id)))
            .concat([edge.contribution, edge.weight]),
        ),
      ];
  return rows.map((row) => row.map(cell).join(",")).join("\n") + "\n";
}
