// @ts-check
// The line of interventions and what came of them.

import { editText, predictEdit, whyNothing } from "./edits.js";
import { button, make } from "../../circuitsae/export/assets/elements.js";
import { cut, format, quoted } from "../../circuitsae/export/assets/text.js";

export function renderStrip(bench) {
  const { edits } = bench.basket;
  const { circuit } = bench.view;
  const busy = Boolean(bench.flying) && !bench.result;
  bench.strip.hidden = !bench.shown.form;
  const undo = button("Undo", "Undo (Z)", () => bench.move(-1), {
    disabled: !bench.basket.canUndo,
    class: "cg-small-button",
  });
  const redo = button("Redo", "Redo (Shift Z)", () => bench.move(1), {
    disabled: !bench.basket.canRedo,
    class: "cg-small-button",
  });
  const clear = button("Clear", "Put everything back", () => bench.clear(), {
    disabled: !edits.length,
    class: "cg-small-button",
  });
  const way = (name, label, words, ways) => {
    const select = make(
      "select",
      {
        "aria-label": label,
        title: words,
        on: {
          change: () => (bench.basket.change(edits, { ...bench.options, [name]: select.value }), bench.carryOut()),
        },
      },
      ...ways.map((value) => make("option", { value, text: `${name} ${value}` })),
    );
    select.value = bench.options[name];
    return select;
  };
  const errors = way(
    "errors",
    "Error nodes",
    "Error nodes in the changed run: computed anew, or held at what they were",
    ["live", "frozen"],
  );
  const attention = way(
    "attention",
    "Attention",
    "Attention patterns in the changed run: computed anew, or held at what they were",
    ["free", "frozen"],
  );
  const chips = edits.slice(0, 40).map((edit) => {
    const i = circuit.row.get(edit.key);
    const place = circuit.position[i] >= 0 ? ` ${quoted(cut(circuit.tokenAt(i), 12))}` : "";
    return make(
      "span",
      { class: "cw-edit" },
      make(
        "button",
        { type: "button", class: "cw-edit-name", title: edit.key, on: { click: () => bench.view.select([edit.key]) } },
        make("b", { text: circuit.name(i) }),
        make("span", { class: "cg-soft", text: circuit.kind[i] === "token" ? "" : place }),
        make("span", { text: ` ${editText(edit)}` }),
      ),
      button("close", `Take ${circuit.name(i)} out`, () => (bench.basket.remove(edit.key), bench.carryOut()), {
        class: "cg-quiet",
      }),
    );
  });
  if (edits.length > 40) chips.push(make("span", { class: "cg-soft", text: `and ${edits.length - 40} more` }));
  const line = make(
    "div",
    { class: "cw-basket-line" },
    make("h2", { text: "Interventions" }),
    ...(chips.length ? chips : [make("span", { class: "cg-soft", text: "None yet: select a node and press Ablate." })]),
    make("span", { class: "cw-tools" }, errors, attention, undo, redo, clear),
  );
  const parts = [line];
  const sayings = {};
  if (edits.length) {
    const { predicted, plain, measured, gap, gapName } = bench.summary();
    const waiting = busy ? (bench.ready ? "measuring \u2026" : "waiting for the model \u2026") : "\u2013";
    const number = (name, value, kind, title) =>
      make("div", { class: `cw-number ${kind}`, title }, make("span", { text: name }), make("b", { text: value }));
    const about = bench.result
      ? `${format(bench.result.metric_before)} \u2192 ${format(bench.result.metric_after)}`
      : `${format(circuit.about.metric_value)} \u2192 ${waiting}`;
    parts.push(
      make(
        "div",
        { class: "cw-numbers", role: "group", "aria-label": "Result" },
        number("metric", about, "cw-metric"),
        number(
          "predicted",
          format(predicted, true),
          "cw-predicted",
          edits.length > 1
            ? "What attribution predicts of the changes together: what one does to another is followed along the graph's edges"
            : "What attribution predicts of the change",
        ),
        Number.isNaN(plain)
          ? null
          : number("plain sum", format(plain, true), "cw-sum", "The sum of what each change would do by itself"),
        number(
          "measured",
          bench.result ? format(measured, true) : waiting,
          "cw-measured",
          "By really running the model with all changes at once",
        ),
        bench.result
          ? number(
              gapName,
              format(gap, true),
              "cw-gap",
              edits.length > 1
                ? "Measured minus predicted: what the changes do only together beyond the edges among them, and what is not linear"
                : "Measured minus predicted: how far the metric is from linear on the way",
            )
          : null,
        bench.result
          ? number(
              "KL",
              format(bench.result.kl),
              "cw-kl",
              "Divergence of the next-token distribution from what it was, in nats",
            )
          : null,
      ),
    );
    const reasons = bench.result ? edits.map((edit) => whyNothing(circuit, edits, edit, bench.result)) : [];
    parts.push(...reasons.filter(Boolean).map((text) => make("p", { class: "cw-reason", text })));
    for (const [n, edit] of edits.entries())
      sayings[edit.key] = {
        op: edit.op,
        value: edit.value,
        text: `${reasons[n] ? `${reasons[n]} ` : ""}In the basket: ${editText(edit)}. Predicted ${format(predictEdit(circuit, edit), true)}${bench.result ? `, measured ${format(measured, true)}${edits.length > 1 ? ` with the other ${edits.length - 1}` : ""}.` : busy ? `, ${waiting}` : "."}`,
      };
  }
  bench.strip.replaceChildren(...parts);
  bench.view.setSayings(sayings);
}
