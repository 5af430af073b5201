// @ts-check
// Above, on a page: what was asked and how it was traced.

import { make } from "./elements.js";
import { format, percent, quoted } from "./text.js";

export function header(view) {
  const { about } = view.circuit;
  const metric = about.metric || {};
  const head = make("header", { class: "cg-head" });
  const tried = [
    about.preset || about.model,
    about.method && String(about.method).replace(/-/g, " "),
    about.baseline && `${about.baseline} baseline`,
  ].filter(Boolean);
  if (tried.length) head.append(make("p", { class: "cg-eyebrow", text: tried.join(" \u00b7 ") }));
  head.append(make("h1", { text: about.prompt ? quoted(about.prompt) : "Circuit", title: about.prompt }));
  const facts = make("div", { class: "cg-facts" });
  const value = about.metric_value === undefined ? "" : ` = ${format(about.metric_value)}`;
  const against =
    about.baseline_metric_value === undefined ? "" : ` (${format(about.baseline_metric_value)} on the patch prompt)`;
  facts.append(
    make(
      "p",
      { class: "cg-metric-line" },
      make("b", { text: (metric.description || metric.name || "metric") + value }),
      against,
    ),
  );
  if (about.top_tokens && about.top_tokens.length) {
    const chips = about.top_tokens.slice(0, 6).map(([token, p]) => {
      const fill = make("span", { class: "cg-bar-fill" });
      fill.style.width = `${100 * p}%`;
      return make(
        "span",
        { class: "cg-chip" },
        fill,
        make("span", { text: quoted(token) }),
        make("small", { text: ` ${percent(p)}` }),
      );
    });
    facts.append(make("div", { class: "cg-chips" }, make("span", { class: "cg-soft", text: "Next token" }), ...chips));
  }
  head.append(facts);
  view.note = make("p", { class: "cg-note", hidden: true });
  head.append(view.note);
  const rows = make("dl", { class: "cg-provenance" });
  const row = (name, given) => {
    if (given === undefined || given === null || given === "") return;
    rows.append(
      make("dt", { text: name }),
      make("dd", {
        text: typeof given === "string" ? given : typeof given === "object" ? pairs(given) : String(given),
      }),
    );
  };
  for (const name of [
    "model",
    "preset",
    "method",
    "baseline",
    "gradient",
    "linearisation",
    "prune",
    "patch",
    "options",
    "kept",
    "package_version",
    "created",
  ])
    row(name.replace("_", " "), about[name]);
  for (const d of about.dictionaries || [])
    row(String(d.site), `${d.architecture}, ${d.d_sae} features, ${d.source}, sha256 ${d.fingerprint}`);
  const how = make("p", {
    text: "Read it upwards: each column is a token, each band a layer, the metric on top. A line runs from what acts to what it acts on; the thicker, the more of the metric goes through it. Select a node to see what feeds it and what it feeds.",
  });
  head.append(
    make(
      "div",
      { class: "cg-folds" },
      make("details", { class: "cg-fold" }, make("summary", { text: "How to read this" }), how),
      make("details", { class: "cg-fold" }, make("summary", { text: "How it was made" }), rows),
    ),
  );
  return head;
}

/** An object as "name: value" pairs. */
function pairs(value) {
  if (Array.isArray(value))
    return value.map((item) => (item && typeof item === "object" ? JSON.stringify(item) : String(item))).join(", ");
  return Object.entries(value)
    .map(
      ([name, item]) =>
        `${name.replaceAll("_", " ")}: ${item && typeof item === "object" ? JSON.stringify(item) : String(item)}`,
    )
    .join(", ");
}
