// @ts-check
// The controls that ask for an intervention.

import { button, make } from "./elements.js";

const SCALES = ["0", "0.5", "1", "1.5", "2"];

/** Controls that ask for an intervention; who drew the drawing carries it out. */
export function interveneControls(panel, nodes) {
  const { view } = panel;
  const { circuit } = view;
  if (!nodes.length) return null;
  const ask = (op, value) => view.emit("intervene", { keys: nodes.map((i) => circuit.key[i]), op, value });
  // Error nodes and tokens are vectors: they can be scaled, but set to one number only where it is 0.
  const features = nodes.every((i) => circuit.kind[i] === "feature");
  const said = nodes.length === 1 ? view.sayings.get(circuit.key[nodes[0]]) : null;
  const { draft } = panel;
  const op = draft ? draft.op : said && said.op && said.op !== "ablate" ? said.op : "scale";
  const value = draft ? draft.value : said && op === said.op ? said.value : 1;
  const names = { scale: "Scale by", set: "Set to", add: "Add" };
  const number = make("input", { type: "number", step: "any", value, "aria-label": names[op] });
  const range = make("input", {
    type: "range",
    min: 0,
    max: 2,
    step: 0.05,
    value: op === "scale" ? value : 1,
    list: `${view.id}-scales`,
    "aria-label": "Scale slider",
    hidden: op !== "scale",
  });
  const ticks = make("datalist", { id: `${view.id}-scales` }, ...SCALES.map((value) => make("option", { value })));
  const way = make(
    "select",
    { "aria-label": "How to change it" },
    ...[
      ["scale", "\u00d7"],
      ["set", "="],
      ["add", "+"],
    ].map(([value, text]) => make("option", { value, text, selected: value === op })),
  );
  const wanted = (value, typed) => (panel.draft = { op: way.value, value, typed });
  const commit = () => {
    const typed = panel.draft && panel.draft.typed && number.value !== "" && Number.isFinite(Number(number.value));
    if (!typed || panel.redrawing) return;
    panel.draft = null;
    if (way.value === "scale") range.value = number.value;
    ask(way.value, Number(number.value));
  };
  range.addEventListener("input", () => (number.value = range.value));
  range.addEventListener("change", () => {
    panel.draft = null;
    ask("scale", Number(range.value));
  });
  way.addEventListener("change", () => {
    range.hidden = way.value !== "scale";
    number.setAttribute("aria-label", names[way.value]);
    const known = nodes.length === 1 && !Number.isNaN(circuit.activation[nodes[0]]);
    number.value =
      way.value === "scale"
        ? range.value
        : way.value === "set" && known
          ? String(Number(circuit.activation[nodes[0]].toPrecision(3)))
          : "0";
    wanted(number.value, false);
  });
  number.addEventListener("input", () => wanted(number.value, true));
  number.addEventListener("change", commit);
  // The browser reports no change of a field that was drawn anew under the hands that type in it.
  number.addEventListener("keydown", (event) => event.key === "Enter" && commit());
  number.addEventListener("blur", commit);
  const ablate = button(nodes.length > 1 ? `Ablate all ${nodes.length}` : "Ablate", "Ablate (A)", () => ask("ablate"), {
    class: "cg-main-button",
  });
  const sign = features ? way : make("span", { text: "\u00d7" });
  const saying = said ? make("p", { class: "cg-saying", text: said.text }) : null;
  return make(
    "div",
    { class: "cg-intervene" },
    ablate,
    make("div", { class: "cg-amount" }, sign, range, number),
    ticks,
    saying,
  );
}
