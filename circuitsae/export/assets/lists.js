// @ts-check
// Lists in the panel: nodes, edges, ways.

import { raises } from "./edges.js";
import { button, make } from "./elements.js";
import { MINUS, count, format, percent, quoted } from "./text.js";

const FIRST_EDGES = 8;

export function listOf(rows) {
  return make("ul", { class: "cg-list" }, ...rows);
}

/**
 * A row that opens something.
 * @param {import("./view.js").View} view
 * @param {{name: string, place?: string, title?: string, numbers: string[], open: () => void, hover?: number,
 *   bar?: number, sign?: string}} row
 */
export function linkRow(view, { name, place, title, numbers, open, hover, bar, sign }) {
  const fill = make("span", { class: `cg-bar-fill ${sign || ""}` });
  if (bar) fill.style.width = `${100 * bar}%`;
  const on = { click: open };
  if (hover !== undefined)
    Object.assign(on, {
      pointerenter: () => view.hover(hover, false),
      pointerleave: () => view.hover(-1),
      focus: () => view.hover(hover, false),
      blur: () => view.hover(-1),
    });
  const words = make(
    "span",
    { class: "cg-words" },
    make("b", { text: name }),
    place ? make("span", { class: "cg-soft", text: ` ${place}` }) : null,
  );
  words.title = title || (place ? `${name} ${place}` : name);
  return make(
    "li",
    {},
    make(
      "button",
      { type: "button", class: "cg-link", on },
      fill,
      words,
      ...numbers.map((text) => make("span", { class: "cg-number", text })),
    ),
  );
}

export function nodeLink(view, i, bar = 0) {
  const { circuit } = view;
  const effect = circuit.known[i];
  return linkRow(view, {
    name: circuit.name(i),
    place: circuit.label[i] || view.placeOf(i),
    numbers: [`${circuit.predicted(i) ? "\u2248 " : ""}${format(effect, true)}`],
    open: () => view.choose([i]),
    hover: i,
    bar,
    sign: effect > 0 ? "cg-down" : "cg-up",
  });
}

export function edgeLists(view, id, side) {
  const { circuit } = view;
  const single = id < circuit.n;
  const list = single
    ? circuit[side][id].map((e) => ({
        source: circuit.source[e],
        target: circuit.target[e],
        weight: circuit.weight[e],
        contribution: circuit.contribution[e],
        share: circuit.share(e, side === "ins" ? "in" : "out"),
      }))
    : view.shown[side].get(id) || [];
  if (!single) {
    const total = list.reduce((sum, edge) => sum + Math.abs(edge.weight), 0);
    for (const edge of list) edge.share = total ? Math.abs(edge.weight) / total : 0;
  }
  const heading = side === "ins" ? `From (${count(list.length)})` : `To (${count(list.length)})`;
  const section = make("section", {}, make("h3", { text: heading }));
  if (!list.length) return section;
  section.append(
    make(
      "div",
      { class: "cg-columns cg-soft" },
      make("span", { text: side === "ins" ? "source" : "target" }),
      make("span", { text: "contribution", title: "What the source adds to its target, in the target's units" }),
      make("span", { text: "weight", title: "Change of the metric through this edge when the source is ablated" }),
      make("span", { text: "share" }),
    ),
  );
  const byShare = list.slice().sort((a, b) => b.share - a.share);
  for (const [words, sign] of [
    ["raising", true],
    ["lowering", false],
  ]) {
    const part = byShare.filter((edge) => raises(edge) === sign);
    if (!part.length) continue;
    const sum = part.reduce((total, edge) => total + edge.share, 0);
    section.append(
      make("p", {
        class: `cg-sign ${sign ? "cg-up" : "cg-down"}`,
        text: `${sign ? "+" : MINUS} ${words}, ${percent(sum)}`,
      }),
    );
    const rows = (edges) => edges.map((edge) => edgeLink(view, edge, side, byShare[0].share));
    const items = listOf(rows(part.slice(0, FIRST_EDGES)));
    section.append(items);
    if (part.length > FIRST_EDGES) {
      const more = button(
        `Show ${count(part.length - FIRST_EDGES)} more`,
        `Show ${count(part.length - FIRST_EDGES)} more`,
        () => {
          items.append(...rows(part.slice(FIRST_EDGES)));
          more.remove();
        },
        { class: "cg-small-button" },
      );
      section.append(more);
    }
  }
  return section;
}

function edgeLink(view, edge, side, largest) {
  const other = side === "ins" ? edge.source : edge.target;
  const row = linkRow(view, {
    name: view.nameOf(other),
    place:
      other < view.circuit.n && view.circuit.kind[other] !== "token"
        ? view.circuit.position[other] < 0
          ? ""
          : quoted(view.circuit.tokenAt(other))
        : view.placeOf(other),
    title: view.describe(other),
    numbers: [format(edge.contribution, true), format(edge.weight, true), percent(edge.share)],
    open: () => view.choose([other]),
    hover: other,
    bar: largest ? edge.share / largest : 0,
    sign: raises(edge) ? "cg-up" : "cg-down",
  });
  return row;
}

export function waysList(view, from, to) {
  const { circuit } = view;
  const section = make("section", {});
  const show = () => {
    const found = circuit.paths(from, to, 5);
    section.replaceChildren(
      make("h3", {
        text: to === circuit.metric ? "Strongest ways to the metric" : `Strongest ways to ${circuit.name(to)}`,
      }),
    );
    if (!found.length) section.append(make("p", { class: "cg-soft", text: "No way leads there." }));
    found.forEach((way) => {
      const chosen = () => view.state.way && view.state.way.nodes.join() === way.nodes.join();
      const steps = way.nodes.map((i) => circuit.name(i)).join(" \u2192 ");
      const row = make(
        "button",
        {
          type: "button",
          class: "cg-way",
          "aria-pressed": String(Boolean(chosen())),
          on: {
            click: () => {
              view.setWay(chosen() ? null : way);
              for (const other of section.querySelectorAll(".cg-way"))
                other.setAttribute("aria-pressed", String(other === row && Boolean(chosen())));
            },
            pointerenter: () => view.previewWay(way),
            pointerleave: () => view.previewWay(null),
          },
        },
        make("span", { class: "cg-number", text: percent(way.share) }),
        make("span", { text: steps }),
        make("span", {
          class: way.sign > 0 ? "cg-sign cg-up" : "cg-sign cg-down",
          text: way.sign > 0 ? "raises" : "lowers",
        }),
      );
      section.append(row);
    });
  };
  if (
    view.state.way &&
    view.state.way.nodes[0] === from &&
    view.state.way.nodes[view.state.way.nodes.length - 1] === to
  )
    show();
  else
    section.append(
      button(to === circuit.metric ? "Ways to the metric" : "Ways between the two", "Find the strongest ways", show, {
        class: "cg-small-button",
      }),
    );
  return section;
}
