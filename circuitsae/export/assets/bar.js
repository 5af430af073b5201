// @ts-check
// The bar: sliders, colours, table, pictures, keys.

import { colourLegend } from "./colours.js";
import { button, draw, icon, make } from "./elements.js";
import { finder } from "./finder.js";
import { amounts } from "./legend.js";
import { count } from "./text.js";

const EDGE_STEPS = [0, 1, 2, 3, 5, 8, 12, 20, 40, 80, Infinity];

const KEYS = [
  ["\u2190 \u2192 \u2191 \u2193", "to the next node that way"],
  ["Alt \u2191 \u2193", "along the strongest edge"],
  ["Enter", "select; with Shift, several"],
  ["Esc", "clear"],
  ["P", "pin"],
  ["G", "group what is selected"],
  ["S", "each click adds to the selection"],
  ["/", "search"],
  ["T", "table"],
  ["+ \u2212 0", "zoom, fit"],
  ["F", "full screen"],
];

/** The bar's elements; `fillBar` fills them. */
export function barOf(view) {
  const { circuit } = view;
  const slider = (name, most, listener, title) => {
    const said = make("output", { class: "cg-count" });
    const range = make("input", {
      type: "range",
      min: 0,
      max: most,
      "aria-label": name,
      title,
      on: { input: () => listener(Number(range.value)) },
    });
    return { range, said, label: make("label", { class: "cg-slider" }, make("span", { text: name }), range, said) };
  };
  view.nodesSlider = slider(
    "Nodes",
    1000,
    (place) => view.set({ nodes: nodesAt(view, place) }),
    "How many nodes, strongest first",
  );
  view.edgesSlider = slider(
    "In-edges",
    EDGE_STEPS.length - 1,
    (step) => view.set({ edges: EDGE_STEPS[step] }),
    "How many edges into each node, strongest first",
  );
  view.colourSelect = make("select", {
    "aria-label": "Colour",
    on: { change: () => view.set({ colour: view.colourSelect.value }) },
  });
  const bias = make("input", { type: "checkbox", on: { change: () => view.set({ bias: bias.checked }) } });
  view.biasBox = bias;
  const errors = make("input", { type: "checkbox", on: { change: () => view.set({ errors: errors.checked }) } });
  view.errorsBox = errors;
  view.tableButton = button("Table", "Table", () => view.set({ table: !view.state.table }), {
    "aria-pressed": "false",
  });
  const tools = make(
    "div",
    { class: "cg-tools" },
    view.tableButton,
    menuOf("Save", [
      ["SVG picture", () => view.save("svg")],
      ["PNG picture", () => view.save("png")],
      ["Nodes as CSV", () => view.save("nodes.csv")],
      ["Edges as CSV", () => view.save("edges.csv")],
    ]),
    help(view),
    button("full", "Full screen (F)", () => view.fullScreen()),
  );
  return make(
    "div",
    { class: "cg-bar" },
    finder(view),
    view.nodesSlider.label,
    view.edgesSlider.label,
    make("label", { class: "cg-field" }, make("span", { text: "Colour" }), view.colourSelect),
    circuit.kind.includes("error") ? make("label", { class: "cg-check" }, errors, "errors") : null,
    circuit.bias >= 0 ? make("label", { class: "cg-check" }, bias, "bias") : null,
    tools,
  );
}

function menuOf(text, entries) {
  const list = make("div", { class: "cg-menu-list", role: "menu" });
  const menu = make("details", { class: "cg-menu" }, make("summary", {}, text, icon("down")), list);
  for (const [name, listener] of entries)
    list.append(
      make("button", {
        type: "button",
        role: "menuitem",
        text: name,
        on: { click: () => ((menu.open = false), listener()) },
      }),
    );
  menu.addEventListener(
    "focusout",
    (event) => !menu.contains(event.relatedTarget) && event.relatedTarget && (menu.open = false),
  );
  return menu;
}

function help(view) {
  const rows = KEYS.flatMap(([key, text]) => [make("dt", {}, make("kbd", { text: key })), make("dd", { text })]);
  const own = view.options.intervene ? [["A", "ablate"], ...(view.options.keys || [])] : [];
  for (const [key, text] of own) rows.push(make("dt", {}, make("kbd", { text: key })), make("dd", { text }));
  rows.push(
    make("dt", { text: "Shift + drag" }),
    make("dd", { text: "select within" }),
    make("dt", { text: "Ctrl + wheel" }),
    make("dd", { text: "zoom" }),
  );
  view.helpMenu = make(
    "details",
    { class: "cg-menu" },
    make("summary", { "aria-label": "Keys", title: "Keys (?)" }, "?"),
    make("dl", { class: "cg-menu-list cg-keys" }, ...rows),
  );
  return view.helpMenu;
}

function nodesAt(view, place) {
  // The slider is fine where there are few, coarse where there are many.
  const most = view.circuit.choosable.length;
  return place >= 1000 ? most : Math.round(Math.expm1((place / 1000) * Math.log1p(most)));
}

export function fillBar(view) {
  const { circuit, state } = view;
  const most = circuit.choosable.length;
  view.nodesSlider.range.value = most
    ? Math.round((1000 * Math.log1p(Math.min(state.nodes, most))) / Math.log1p(most))
    : 0;
  view.edgesSlider.range.value = EDGE_STEPS.findIndex((step) => step >= state.edges);
  view.biasBox.checked = state.bias;
  view.errorsBox.checked = state.errors;
  const [nodes, edges] = amounts(view);
  view.nodesSlider.said.textContent = `${count(view.kept().length)} / ${count(most)}`;
  view.edgesSlider.said.textContent = state.edges === Infinity ? "all" : `${state.edges} each`;
  view.said.replaceChildren(
    make("span", { class: "cg-count-nodes", text: nodes }),
    make("span", { class: "cg-count-edges", text: edges }),
    ...(circuit.about.explained || []).map((text) => make("span", { class: "cg-count-explained", text })),
  );
  view.colourSelect.replaceChildren(
    ...view.modes.map((mode) => make("option", { value: mode.id, text: mode.name, selected: mode === view.mode })),
  );
  view.colourSelect.value = view.mode.id;
  const swatch = (classes, text, path) =>
    make(
      "span",
      {},
      draw(
        "svg",
        { viewBox: "-7 -7 14 14", class: `cg-swatch cg-node ${classes}`, "aria-hidden": "true" },
        path || draw("circle", { class: "cg-shape", r: 5 }),
      ),
      text,
    );
  const line = (down, text) =>
    make(
      "span",
      {},
      draw(
        "svg",
        { viewBox: "0 0 24 10", class: "cg-line-swatch", "aria-hidden": "true" },
        draw("path", { d: "M1 5h22", class: down ? "cg-line-down" : "cg-line-up" }),
      ),
      text,
    );
  const entries = [
    ...colourLegend(view.mode).map(([classes, text]) => swatch(classes, text)),
    swatch("cg-none", "error node", draw("path", { class: "cg-shape", d: "M0-6L6 0L0 6L-6 0Z" })),
    line(false, "raises its target"),
    line(true, "lowers it"),
    make("span", { text: `size: ${circuit.strengthName}, thickness: |weight|` }),
    ...(view.nothingElse ? [make("span", { text: "no other node changed" })] : []),
  ];
  view.legend.replaceChildren(...entries);
}
