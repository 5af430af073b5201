// @ts-check
// What is below the drawing, a tab each.

import { faithfulnessLine, heatmap, scatter, tokenTable } from "./charts.js";
import { correlation } from "./edits.js";
import { copyLink, download, upload } from "./keeping.js";
import { button, make } from "../../circuitsae/export/assets/elements.js";
import { count, cut, format, plural, visible } from "../../circuitsae/export/assets/text.js";

export const TABS = [
  ["next", "Next token"],
  ["scatter", "Predicted vs measured"],
  ["effects", "Effects by position"],
  ["set", "Pinned set"],
  ["compare", "Compare"],
  ["keep", "Keep"],
];

const FILES = [
  ["json", "Circuit (JSON)"],
  ["html", "Page that opens from disk"],
  ["python", "Python program"],
  ["graphml", "GraphML"],
  ["csv", "CSV tables"],
  ["dot", "Graphviz"],
];

const MEASURED = 30;

const COLUMNS = 24;

/** The next tokens that a circuit says, and among them the answer and the foil: their probabilities where it says them. */
function knownTokens(about, form) {
  const rows = (about.top_tokens || []).map(([text, p]) => [text, p]);
  if (!rows.length) return rows;
  for (const role of ["answer", "foil"]) {
    if (!form || !form[role]) continue;
    const row = rows.find(([text]) => text.trim() === form[role].trim());
    if (row) row[5] = role;
    else rows.push([form[role], undefined, undefined, undefined, undefined, role]);
  }
  return rows;
}

function nextTokens(bench) {
  const { about } = bench.view.circuit;
  const rows = bench.result ? bench.result.next : knownTokens(about, bench.shown.form);
  const parts = [
    rows.length
      ? tokenTable(rows)
      : make("p", { class: "cg-soft", text: "This circuit does not say the model's next tokens." }),
  ];
  if (!bench.shown.form) return parts;
  const write = button(
    "Let the model write on",
    "Twelve tokens, each the likeliest, before and after the interventions",
    () => {
      bench.send("continuation", { edits: bench.basket.edits, ...bench.options });
      bench.say("The model is writing");
    },
  );
  const written = make("div", { class: "cw-written" }, write);
  if (bench.written) {
    const line = (name, tokens, same) =>
      make(
        "p",
        {},
        make("span", { class: "cg-soft", text: `${name} ` }),
        ...tokens.map((text, n) =>
          make(same && same[n] !== text ? "mark" : "span", { text: visible(text).replaceAll("\u23ce", "\u23ce ") }),
        ),
      );
    written.append(
      line("before", bench.written.before),
      ...(bench.basket.edits.length ? [line("after", bench.written.after, bench.written.before)] : []),
    );
  }
  return [make("div", { class: "cw-columns" }, parts[0], written)];
}

function pointsOf(bench) {
  const { circuit } = bench.view;
  return [...bench.measured]
    .filter(([key]) => circuit.row.has(key))
    .map(([key, y]) => {
      const i = circuit.row.get(key);
      return { key, x: circuit.effect[i], y, kind: circuit.kind[i], name: `${circuit.name(i)} ${circuit.place(i)}` };
    })
    .filter(({ x, y }) => Number.isFinite(x) && Number.isFinite(y));
}

export function scatterPicture(bench) {
  return scatter(pointsOf(bench), { chosen: bench.view.selection()[0], onSelect: (key) => bench.view.select([key]) });
}

export function measuringText(bench) {
  return `${bench.measuring.done} of ${bench.measuring.total} measured`;
}

/** A button that measures, or how far that is, with Cancel. */
function measureButton(bench, keys, text) {
  const missing = keys.filter((key) => !bench.measured.has(key)).length;
  if (bench.measuring) {
    const { done, total } = bench.measuring;
    return make(
      "span",
      { class: "cw-measuring" },
      make("progress", { max: total, value: done, "aria-label": "Nodes measured" }),
      make("span", { text: measuringText(bench) }),
      button("Cancel", "Stop measuring", () => bench.wire.trigger("halt"), { class: "cg-small-button" }),
    );
  }
  if (!missing || !bench.shown.form) return null;
  return button(text(missing), "Ablates each by itself and runs the model", () => bench.measure(keys), {
    class: "cg-main-button",
  });
}

function scatterPane(bench) {
  const points = pointsOf(bench);
  const keys = bench.strongest(MEASURED);
  const measure = measureButton(bench, keys, (n) =>
    n === keys.length ? `Measure the ${n} strongest` : `Measure ${n} more of the ${keys.length} strongest`,
  );
  if (!points.length && !bench.measuring)
    return [
      make("p", {
        class: "cw-lead",
        text: "Every effect in the drawing is predicted. Measure the strongest nodes to see how well the predictions hold.",
      }),
      measure,
    ];
  const r = correlation(points.map(({ x, y }) => [x, y]));
  const agree = points.filter(({ x, y }) => x * y > 0).length;
  const worst = points
    .slice()
    .sort((a, b) => Math.abs(b.y - b.x) - Math.abs(a.y - a.x))
    .slice(0, 6);
  const side = make(
    "div",
    { class: "cw-side" },
    make(
      "p",
      { class: "cw-lead" },
      make("b", { text: `r = ${format(r)}` }),
      ` over ${plural(points.length, "node")}; the sign is right for ${agree}.`,
    ),
    measure,
    make("h3", { text: "Furthest from the line" }),
    make(
      "ul",
      { class: "cg-list" },
      ...worst.map(({ key, name, x, y }) =>
        make(
          "li",
          {},
          make(
            "button",
            {
              type: "button",
              class: "cw-row",
              title: `Select ${name}`,
              on: { click: () => bench.view.select([key]) },
            },
            make("b", { text: cut(name, 40) }),
            make("span", { class: "cg-number", text: `${format(x, true)} \u2192 ${format(y, true)}` }),
          ),
        ),
      ),
    ),
  );
  return [make("div", { class: "cw-columns" }, scatterPicture(bench), side)];
}

function effectsPane(bench) {
  const { circuit } = bench.view;
  const sites = circuit.sites.map((_, s) => s).filter((s) => circuit.choosable.some((i) => circuit.site[i] === s));
  const only = sites.includes(Number(bench.site)) && bench.site !== "" ? Number(bench.site) : -1;
  const wanted = circuit.choosable.filter((i) => (only < 0 || circuit.site[i] === only) && circuit.position[i] >= 0);
  const features = new Map();
  const errors = new Map();
  for (const i of wanted) {
    const id = circuit.kind[i] === "error" ? `${circuit.site[i]}/error` : `${circuit.site[i]}/${circuit.index[i]}`;
    const into = circuit.kind[i] === "error" ? errors : features;
    if (!into.has(id)) into.set(id, []);
    into.get(id).push(i);
  }
  const size = (list) => Math.max(...list.map((i) => circuit.strength[i]));
  const shown = [...[...features.values()].sort((a, b) => size(b) - size(a)).slice(0, COLUMNS), ...errors.values()];
  const keys = shown.flat().map((i) => circuit.key[i]);
  const value = (i) => (bench.values === "measured" ? (bench.measured.get(circuit.key[i]) ?? NaN) : circuit.effect[i]);
  const columns = shown.map((list) => ({
    name: circuit.name(list[0]),
    title: circuit.label[list[0]] ? `${circuit.name(list[0])}, ${circuit.label[list[0]]}` : circuit.name(list[0]),
    error: circuit.kind[list[0]] === "error",
    cells: new Map(list.map((i) => [circuit.position[i], { key: circuit.key[i], value: value(i) }])),
  }));
  const which = make(
    "select",
    { "aria-label": "Effects shown", on: { change: () => ((bench.values = which.value), bench.fill()) } },
    make("option", { value: "predicted", text: "predicted effects" }),
    make("option", { value: "measured", text: "measured, by ablation" }),
  );
  which.value = bench.values;
  const where = make(
    "select",
    { "aria-label": "Site", on: { change: () => ((bench.site = where.value), bench.fill()) } },
    make("option", { value: "", text: "all sites" }),
    ...sites.map((s) => make("option", { value: String(s), text: circuit.rowName(s) })),
  );
  where.value = only < 0 ? "" : String(only);
  const [chosen] = bench.view.selection();
  return [
    make(
      "div",
      { class: "cw-controls" },
      which,
      where,
      bench.values === "measured" ? measureButton(bench, keys, (n) => `Measure ${plural(n, "cell")}`) : null,
      make("span", {
        class: "cg-soft",
        text: `${plural(Math.min(COLUMNS, features.size), "feature")} across, the errors last; an effect is the metric's change when the node is ablated`,
      }),
    ),
    columns.length
      ? heatmap(circuit, columns, { chosen, onSelect: (key) => bench.view.select([key]) })
      : make("p", { text: "No node here has a position." }),
  ];
}

function setPane(bench) {
  const { pins } = bench.view.getState();
  const lead = make("p", {
    class: "cw-lead",
    text: pins.length
      ? `${plural(pins.length, "node")} pinned. Faithfulness is the part of the metric that is left when every other node is set to its baseline.`
      : "Pin nodes (P) to ask whether they alone carry the metric: every other node is then set to its baseline.",
  });
  const run = (errors) => {
    bench.askedSet = pins.length;
    bench.send("faithfulness", { keys: pins, errors });
    bench.say("Measuring the pinned set");
  };
  const pinTop = button(
    "Pin the 20 strongest",
    "Pin the 20 strongest nodes",
    () => bench.view.pin(bench.strongest(20)),
    { class: "cg-small-button" },
  );
  const controls = make(
    "div",
    { class: "cw-controls" },
    pins.length && bench.shown.form
      ? button("Measure, errors kept", "Error nodes stay as they are", () => run(false), { class: "cg-main-button" })
      : null,
    pins.length && bench.shown.form
      ? button("Measure, errors ablated too", "Error nodes outside the set are set to their baseline as well", () =>
          run(true),
        )
      : null,
    pinTop,
  );
  if (!bench.faithful) return [lead, controls];
  const f = bench.faithful;
  const left = f.asked - f.size;
  const kept = left
    ? ` The other ${left} pinned, ${f.errors ? "tokens" : "error nodes and tokens"}, stay in any case.`
    : "";
  const words = `${plural(f.asked, "node")} pinned: ${count(f.size)} of the ${count(f.pool)} ${f.errors ? "features and errors" : "features"} that are ablated otherwise.${kept} Metric ${format(f.metric)}, between ${format(f.empty)} with all of them ablated and ${format(f.full)} of the model. Dots: random sets of as many.`;
  return [lead, controls, faithfulnessLine(f), make("p", { class: "cg-soft", text: words })];
}

function comparePane(bench) {
  const { circuit } = bench.view;
  if (bench.shown.comparesWith) {
    const counts = [0, 0, 0];
    const where = bench.colours[0];
    for (const key of Object.keys(where.values))
      if (circuit.rank[circuit.row.get(key)] >= 0) counts[where.values[key]] += 1;
    const list = counts.map((n, k) => make("li", {}, make("b", { text: String(n) }), ` ${where.names[k]}`));
    return [
      make("p", { class: "cw-lead", text: circuit.about.prompt }),
      make("ul", { class: "cw-counts" }, ...list),
      make(
        "div",
        { class: "cw-controls" },
        bench.before
          ? button("Back to A", "The first circuit alone", () => bench.show({ ...bench.before, restore: null }), {
              class: "cg-main-button",
            })
          : null,
      ),
    ];
  }
  if (!bench.shown.form)
    return [
      make("p", {
        text: "This circuit does not say a prompt and model of this app: there is nothing to compare it with.",
      }),
    ];
  const field = make("textarea", {
    rows: 2,
    "aria-label": "Second prompt",
    spellcheck: "false",
    text: bench.other || bench.shown.form.patch || bench.shown.form.prompt,
  });
  const go = () => {
    bench.send("compare", { prompt: field.value });
    bench.say("Tracing the second prompt");
  };
  field.addEventListener("input", () => (bench.other = field.value));
  field.addEventListener("keydown", (event) => {
    event.stopPropagation();
    if (event.key === "Enter" && !event.shiftKey) {
      event.preventDefault();
      go();
    }
  });
  return [
    make("p", {
      class: "cw-lead",
      text: "A second prompt, B, with the same question: both circuits as one, coloured by which nodes they share.",
    }),
    make(
      "div",
      { class: "cw-controls cw-wide" },
      field,
      button("Compare", "Trace B and show both", go, { class: "cg-main-button" }),
    ),
    make("p", {
      class: "cg-soft",
      text: "To explain the difference between two prompts instead, give the second as the patch prompt under Options.",
    }),
  ];
}

function keepPane(bench) {
  const pictures = [
    ["svg", "Picture (SVG)"],
    ["png", "Picture (PNG)"],
  ].map(([what, text]) => button(text, text, () => bench.view.save(what)));
  const files = FILES.map(([format, text]) => button(text, text, () => download(bench, format)));
  const parts = [make("h3", { text: "Download" }), make("div", { class: "cw-controls" }, ...files, ...pictures)];
  if (bench.wire.props.limits.uploads) {
    const input = make("input", {
      type: "file",
      accept: ".json,application/json",
      "aria-label": "A saved circuit",
      on: { change: () => input.files[0] && upload(bench, input.files[0]) },
    });
    parts.push(make("h3", { text: "Open a saved circuit" }), make("div", { class: "cw-controls" }, input));
  }
  parts.push(
    make("h3", { text: "Link" }),
    make(
      "div",
      { class: "cw-controls" },
      button("Copy link", "Copy link", () => copyLink(bench)),
      make("span", {
        class: "cg-soft",
        text: "The link holds the question, the interventions, pins, groups and view; whoever opens it traces anew.",
      }),
    ),
  );
  return parts;
}

/** What each tab shows. */
export const PANES = {
  next: nextTokens,
  scatter: scatterPane,
  effects: effectsPane,
  set: setPane,
  compare: comparePane,
  keep: keepPane,
};
