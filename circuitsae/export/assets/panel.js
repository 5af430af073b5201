// @ts-check
// Beside the drawing: what is selected in numbers, edges and ways; and everything as a table.

import { button, make } from "./elements.js";
import { interveneControls } from "./intervene.js";
import { whyNotMore } from "./legend.js";
import { edgeLists, linkRow, listOf, nodeLink, waysList } from "./lists.js";
import { format, percent, plural, quoted, visible } from "./text.js";

function nameOf(control) {
  return control.getAttribute("aria-label") || control.textContent;
}

export class Panel {
  constructor(view) {
    this.view = view;
    this.cards = new Map();
    this.draft = null; // what is typed for the selected nodes and not yet asked for
    this.body = make("div", { class: "cg-panel-body" });
    this.root = make("aside", { class: "cg-panel", "aria-label": "Details" }, this.body);
  }

  show() {
    const { state } = this.view;
    const { circuit } = this.view;
    const items = [...state.selected];
    // A slider that is held stays in the hand that holds it; it is redrawn when it is let go.
    const held = this.shownFor === items.join() && this.body.querySelector("input[type=range]:active");
    if (held) return held.addEventListener("pointerup", () => setTimeout(() => this.show()), { once: true });
    if (this.shownFor !== items.join()) this.draft = null;
    let parts;
    if (!items.length) parts = this.overview();
    else if (items.length > 1) parts = this.several(items);
    else if (items[0] >= circuit.n) parts = this.group(items[0]);
    else parts = this.node(items[0]);
    const same = this.shownFor === items.join();
    const top = same ? this.body.scrollTop : 0;
    const focused = this.body.contains(document.activeElement);
    const name = focused && same ? nameOf(document.activeElement) : null;
    this.shownFor = items.join();
    this.view.root.classList.toggle("cg-has-selection", items.length > 0);
    this.redrawing = true; // what leaves the page loses the focus: that asks for nothing
    this.body.replaceChildren(...parts.flat().filter(Boolean));
    this.redrawing = false;
    this.body.scrollTop = top;
    if (!focused) return;
    // What had the focus is gone with the old contents: it goes to its like, else reading goes on at their title.
    const like =
      name && [...this.body.querySelectorAll("button, input, select")].find((other) => nameOf(other) === name);
    (like || this.body.querySelector("h2")).focus({ preventScroll: true });
  }

  /** Puts the keyboard's focus where the selected group's name is written. */
  askName() {
    const field = this.body.querySelector(".cg-rename");
    if (!field) return;
    field.focus({ preventScroll: true });
    field.select();
  }

  title(text, under, ...tools) {
    const close = button("close", "Clear the selection", () => this.view.clear(), { class: "cg-quiet" });
    return make(
      "div",
      { class: "cg-title" },
      make(
        "div",
        {},
        make("h2", { text, tabindex: "-1" }),
        under ? make("p", { class: "cg-soft", text: under }) : null,
      ),
      make("div", { class: "cg-tools" }, ...tools, close),
    );
  }

  overview() {
    const { view } = this;
    const { circuit, state } = view;
    const parts = [
      make("h2", { text: "Strongest nodes", tabindex: "-1" }),
      make("p", {
        class: "cg-soft",
        text: `Change of the metric when the node alone is ablated${circuit.choosable.slice(0, 10).some((i) => circuit.predicted(i)) ? "; \u2248 predicted, not measured" : ", measured"}.`,
      }),
    ];
    const strongest = circuit.choosable.slice(0, 10);
    parts.push(listOf(strongest.map((i) => nodeLink(view, i, circuit.strength[i] / (circuit.largestStrength || 1)))));
    if (state.pins.size) {
      const clear = button("Unpin all", "Unpin all", () => view.pin([...state.pins], false), {
        class: "cg-small-button",
      });
      const group =
        state.pins.size > 1
          ? button("Group them", "Group the pinned nodes", () => view.groupNodes([...state.pins]), {
              class: "cg-small-button",
            })
          : null;
      parts.push(
        make("h3", { text: `Pinned (${state.pins.size})` }),
        listOf([...state.pins].map((i) => nodeLink(view, i))),
        make("div", { class: "cg-actions" }, this.onlyPinned(), group, clear),
      );
    }
    if (view.groups.length) {
      parts.push(
        make("h3", { text: `Groups (${view.groups.length})` }),
        make("p", {
          class: "cg-soft",
          text: "All members ablated at once; \u2248 the sum of what is predicted of each.",
        }),
        listOf(
          view.groups.map((group, g) =>
            linkRow(view, {
              name: group.name,
              place: plural(group.nodes.length, "node"),
              numbers: [
                Number.isFinite(group.measured)
                  ? format(group.measured, true)
                  : `\u2248 ${format(view.sum(group.nodes), true)}`,
              ],
              open: () => view.choose([circuit.n + g]),
            }),
          ),
        ),
      );
    }
    parts.push(this.missing());
    return parts;
  }

  onlyPinned() {
    const { view } = this;
    const box = make("input", {
      type: "checkbox",
      checked: view.state.onlyPinned,
      on: { change: () => view.set({ onlyPinned: box.checked }) },
    });
    return make("label", { class: "cg-check" }, box, "show only these");
  }

  /** Why there is not more to see. */
  missing() {
    const reasons = whyNotMore(this.view);
    if (!reasons.length) return null;
    return make(
      "details",
      { class: "cg-fold", open: false },
      make("summary", { text: "What is not shown" }),
      make("ul", { class: "cg-reasons" }, ...reasons.map((text) => make("li", { text }))),
    );
  }

  node(i) {
    const { view } = this;
    const { circuit, state } = view;
    const kind = circuit.kind[i];
    const words = { feature: "Feature", error: "Error node", token: "Token", bias: "Bias", metric: "Metric" };
    const pinned = state.pins.has(i);
    const pin = button("pin", pinned ? "Unpin" : "Pin (P)", () => view.pin([i], !pinned), {
      class: "cg-quiet",
      "aria-pressed": String(pinned),
    });
    const name =
      kind === "feature" || kind === "token"
        ? `${words[kind]} ${kind === "feature" ? circuit.name(i) : quoted(circuit.tokenAt(i))}`
        : kind === "error"
          ? `Error node ${circuit.siteName(i)}`
          : kind === "metric" && circuit.index[i] >= 0
            ? "Next token\u2019s logit"
            : words[kind];
    const parts = [this.title(name, circuit.place(i), view.choosable(i) || kind === "token" ? pin : null)];
    if (circuit.label[i]) parts.push(make("p", { class: "cg-label", text: circuit.label[i] }));
    if (kind === "metric" && circuit.about.metric)
      parts.push(make("p", { class: "cg-label", text: circuit.about.metric.description || circuit.about.metric.name }));
    parts.push(
      this.numbers(i),
      view.options.intervene && kind !== "metric" && kind !== "bias" ? interveneControls(this, [i]) : null,
      this.card(i),
    );
    const same = circuit.elsewhere(i);
    if (same.length) {
      const chips = same
        .slice(0, 16)
        .map((j) =>
          button(
            `${quoted(circuit.tokenAt(j))} ${circuit.position[j]}`,
            `The same feature at ${circuit.place(j)}`,
            () => view.choose([j]),
            { class: "cg-chip" },
          ),
        );
      parts.push(make("h3", { text: "Also active at" }), make("div", { class: "cg-chips" }, ...chips));
    }
    parts.push(edgeLists(view, i, "ins"), edgeLists(view, i, "outs"));
    if (circuit.metric >= 0 && kind !== "metric" && kind !== "bias") parts.push(waysList(view, i, circuit.metric));
    parts.push(make("p", { class: "cg-key" }, make("code", { text: circuit.key[i] })));
    return parts;
  }

  numbers(i) {
    const { circuit, mode } = this.view;
    const rows = [];
    const row = (name, value, title) => rows.push(make("dt", { text: name, title }), make("dd", { text: value }));
    const known = (values) => !Number.isNaN(values[i]);
    const compared = circuit.sides.some(known);
    // A comparison's other numbers are the first circuit's, for nodes that only the second has the second's.
    const whose = compared ? (known(circuit.sides[0]) ? ", A" : ", B") : "";
    const both = (sides) => sides.map((side) => (known(side) ? format(side[i], true) : "\u2013")).join(", ");
    const lacking = "In each of the two circuits; \u2013 where it lacks the node";
    if (compared && circuit.activations.some(known)) row("Activation in A, in B", both(circuit.activations), lacking);
    else if (known(circuit.activation)) {
      const baseline =
        known(circuit.baseline) && circuit.baseline[i] !== 0 ? ` (baseline ${format(circuit.baseline[i])})` : "";
      row("Activation", format(circuit.activation[i]) + baseline);
    }
    const spread = known(circuit.spread) ? ` \u00b1 ${format(circuit.spread[i])}` : "";
    if (compared) {
      const [a, b] = circuit.sides.map((side) => side[i] || 0);
      row("Effect in A, in B", both(circuit.sides), lacking);
      row("Difference, B \u2212 A", format(b - a, true), "A circuit that lacks the node counts as 0");
    } else if (known(circuit.effect))
      row(
        "Effect, predicted",
        format(circuit.effect[i], true) + spread,
        `Change of the metric when the node is set to its baseline, by attribution${spread && "; mean and standard deviation over the prompts"}`,
      );
    if (known(circuit.measured))
      row(`Effect, measured${whose}`, format(circuit.measured[i], true), "The same change, by really doing it");
    if (mode.before && Number.isFinite(mode.before[i]) && Number.isFinite(mode.after[i]))
      row("Activation before, after", `${format(mode.before[i])} \u2192 ${format(mode.after[i])}`);
    if (known(circuit.count) && circuit.about.aggregate)
      row("In", `${circuit.count[i]} of ${circuit.about.aggregate.prompts} prompts`);
    if (known(circuit.probability)) row("Probability", percent(circuit.probability[i]));
    if (known(circuit.merged))
      row("Stands in for", `${circuit.merged[i]} pruned`, "Features that were pruned; what they did is counted here");
    if (known(circuit.influence)) row("Influence", format(circuit.influence[i]));
    if (known(circuit.explained))
      row(
        "Input explained",
        percent(circuit.explained[i]),
        "Share of all that arrives here which the circuit's edges carry",
      );
    return rows.length ? make("dl", { class: "cg-numbers" }, ...rows) : null;
  }

  /** What the host knows of a node besides: titled sections of text, chips or marked contexts. */
  card(i) {
    const sections = this.cards.get(this.view.circuit.key[i]);
    if (!sections) return null;
    return sections.map((section) => {
      const part = make("section", { class: "cg-card" }, make("h3", { text: section.title }));
      if (section.text) part.append(make("p", { text: section.text }));
      if (section.tokens)
        part.append(
          make(
            "div",
            { class: "cg-chips" },
            ...section.tokens.map(([text, value]) =>
              make(
                "span",
                { class: "cg-chip" },
                visible(String(text)),
                value === undefined || value === null ? "" : make("small", { text: ` ${format(value)}` }),
              ),
            ),
          ),
        );
      for (const context of section.contexts || []) {
        const most = Math.max(1e-12, ...context.map(([, value]) => Math.abs(value || 0)));
        part.append(
          make(
            "p",
            { class: "cg-context" },
            ...context.map(([text, value]) =>
              make(value ? "mark" : "span", {
                class: value ? `cg-s${Math.min(5, Math.floor((6 * Math.abs(value)) / most))}` : "",
                text: visible(String(text)),
              }),
            ),
          ),
        );
      }
      return part;
    });
  }

  several(items) {
    const { view } = this;
    const { circuit } = view;
    const nodes = view.nodesOf(items);
    const sum = view.sum(nodes);
    const parts = [
      this.title(
        `${items.length} selected`,
        Number.isNaN(sum) ? "" : `predicted together ${format(sum, true)}, the sum of their effects`,
      ),
    ];
    const allPinned = nodes.every((i) => view.state.pins.has(i));
    const inGroup = items.some((id) => id >= circuit.n);
    const groupable = nodes.every((i) => view.choosable(i) || circuit.kind[i] === "token");
    parts.push(
      make(
        "div",
        { class: "cg-actions" },
        !inGroup && groupable
          ? button("Group", "Group (G)", () => view.askGroup(nodes), { class: "cg-small-button" })
          : null,
        button(allPinned ? "Unpin" : "Pin", "Pin (P)", () => view.pin(nodes, !allPinned), { class: "cg-small-button" }),
      ),
    );
    if (view.options.intervene)
      parts.push(
        interveneControls(
          this,
          nodes.filter((i) => circuit.kind[i] !== "metric" && circuit.kind[i] !== "bias"),
        ),
      );
    parts.push(
      listOf(
        items.map((id) =>
          linkRow(view, {
            name: view.nameOf(id),
            place: view.placeOf(id),
            numbers: [format(view.sum(view.nodesOf([id])), true)],
            open: () => view.choose([id]),
            hover: id,
          }),
        ),
      ),
    );
    if (items.length === 2 && items.every((id) => id < circuit.n)) {
      const order = circuit.order();
      const [from, to] = items.slice().sort((a, b) => order.indexOf(a) - order.indexOf(b));
      parts.push(waysList(view, from, to));
    }
    return parts;
  }

  group(id) {
    const { view } = this;
    const group = view.groups[id - view.circuit.n];
    const g = id - view.circuit.n;
    const name = make("input", {
      class: "cg-rename",
      value: group.name,
      "aria-label": "Group's name",
      maxlength: 80,
      on: {
        change: () => !this.redrawing && view.renameGroup(g, name.value),
        keydown: (event) => {
          if (event.key !== "Enter" && event.key !== "Escape") return;
          event.preventDefault();
          event.stopPropagation();
          if (event.key === "Enter") view.renameGroup(g, name.value);
          else name.value = group.name;
          view.stage.focus(id); // the keyboard goes on in the drawing
        },
      },
    });
    const sum = view.sum(group.nodes);
    return [
      this.title(
        "Group",
        `${plural(group.nodes.length, "node")}${Number.isNaN(sum) ? "" : `, predicted together ${format(sum, true)}`}`,
      ),
      name,
      make(
        "div",
        { class: "cg-actions" },
        button("Ungroup", "Ungroup", () => view.ungroup(id - view.circuit.n), { class: "cg-small-button" }),
      ),
      view.options.intervene ? interveneControls(this, group.nodes) : null,
      make("h3", { text: "Members" }),
      listOf(group.nodes.map((i) => nodeLink(view, i))),
      edgeLists(view, id, "ins"),
      edgeLists(view, id, "outs"),
    ];
  }
}
