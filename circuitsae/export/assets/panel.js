// Beside the drawing: what is selected in numbers, edges and ways; and everything as a table.

const FIRST_EDGES = 8;
const SCALES = ["0", "0.5", "1", "1.5", "2"];

function nameOf(control) {
  return control.getAttribute("aria-label") || control.textContent;
}

class Panel {
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
    const like = name && [...this.body.querySelectorAll("button, input, select")].find((other) => nameOf(other) === name);
    (like || this.body.querySelector("h2")).focus({ preventScroll: true });
  }

  title(text, under, ...tools) {
    const close = button("close", "Clear the selection", () => this.view.clear(), { class: "cg-quiet" });
    return make("div", { class: "cg-title" }, make("div", {}, make("h2", { text, tabindex: "-1" }), under ? make("p", { class: "cg-soft", text: under }) : null), make("div", { class: "cg-tools" }, ...tools, close));
  }

  overview() {
    const { view } = this;
    const { circuit, state } = view;
    const parts = [make("h2", { text: "Strongest nodes", tabindex: "-1" }), make("p", { class: "cg-soft", text: "Change of the metric when the node alone is ablated." })];
    const strongest = circuit.choosable.slice(0, 10);
    parts.push(this.list(strongest.map((i) => this.nodeLink(i, circuit.strength[i] / (circuit.largestStrength || 1)))));
    if (state.pins.size) {
      const clear = button("Unpin all", "Unpin all", () => view.pin([...state.pins], false), { class: "cg-small-button" });
      const group = state.pins.size > 1 ? button("Group them", "Group the pinned nodes", () => view.groupNodes([...state.pins]), { class: "cg-small-button" }) : null;
      parts.push(make("h3", { text: `Pinned (${state.pins.size})` }), this.list([...state.pins].map((i) => this.nodeLink(i))), make("div", { class: "cg-actions" }, this.onlyPinned(), group, clear));
    }
    if (view.groups.length) {
      parts.push(make("h3", { text: `Groups (${view.groups.length})` }), this.list(view.groups.map((group, g) => this.link({ name: group.name, place: plural(group.nodes.length, "node"), numbers: [format(view.sum(group.nodes), true)], open: () => view.choose([circuit.n + g]) }))));
    }
    parts.push(this.missing());
    return parts;
  }

  onlyPinned() {
    const { view } = this;
    const box = make("input", { type: "checkbox", checked: view.state.onlyPinned, on: { change: () => view.set({ onlyPinned: box.checked }) } });
    return make("label", { class: "cg-check" }, box, "show only these");
  }

  /** Why there is not more to see. */
  missing() {
    const reasons = this.view.reasons();
    if (!reasons.length) return null;
    return make("details", { class: "cg-fold", open: false }, make("summary", { text: "What is not shown" }), make("ul", { class: "cg-reasons" }, ...reasons.map((text) => make("li", { text }))));
  }

  node(i) {
    const { view } = this;
    const { circuit, state } = view;
    const kind = circuit.kind[i];
    const words = { feature: "Feature", error: "Error node", token: "Token", bias: "Bias", metric: "Metric" };
    const pinned = state.pins.has(i);
    const pin = button("pin", pinned ? "Unpin" : "Pin (P)", () => view.pin([i], !pinned), { class: "cg-quiet", "aria-pressed": String(pinned) });
    const name = kind === "feature" || kind === "token" ? `${words[kind]} ${kind === "feature" ? circuit.name(i) : quoted(circuit.tokenAt(i))}` : kind === "error" ? `Error node ${circuit.siteName(i)}` : kind === "metric" && circuit.index[i] >= 0 ? "Next token\u2019s logit" : words[kind];
    const parts = [this.title(name, circuit.place(i), view.choosable(i) || kind === "token" ? pin : null)];
    if (circuit.label[i]) parts.push(make("p", { class: "cg-label", text: circuit.label[i] }));
    if (kind === "metric" && circuit.about.metric) parts.push(make("p", { class: "cg-label", text: circuit.about.metric.description || circuit.about.metric.name }));
    parts.push(this.numbers(i), view.options.intervene ? this.intervene([i]) : null, this.card(i));
    const same = circuit.elsewhere(i);
    if (same.length) {
      const chips = same.slice(0, 16).map((j) => button(`${quoted(circuit.tokenAt(j))} ${circuit.position[j]}`, `The same feature at ${circuit.place(j)}`, () => view.choose([j]), { class: "cg-chip" }));
      parts.push(make("h3", { text: "Also active at" }), make("div", { class: "cg-chips" }, ...chips));
    }
    parts.push(this.edges(i, "ins"), this.edges(i, "outs"));
    if (circuit.metric >= 0 && kind !== "metric" && kind !== "bias") parts.push(this.ways(i, circuit.metric));
    parts.push(make("p", { class: "cg-key" }, make("code", { text: circuit.key[i] })));
    return parts;
  }

  numbers(i) {
    const { circuit, mode } = this.view;
    const rows = [];
    const row = (name, value, title) => rows.push(make("dt", { text: name, title }), make("dd", { text: value }));
    const known = (values) => !Number.isNaN(values[i]);
    if (known(circuit.activation)) {
      const baseline = known(circuit.baseline) && circuit.baseline[i] !== 0 ? ` (baseline ${format(circuit.baseline[i])})` : "";
      row("Activation", format(circuit.activation[i]) + baseline);
    }
    const spread = known(circuit.spread) ? ` \u00b1 ${format(circuit.spread[i])}` : "";
    const compared = circuit.sides.some(known);
    if (compared) {
      row("Effect in a, in b", circuit.sides.map((side) => (known(side) ? format(side[i], true) : "\u2013")).join(", "), "In each of the two circuits; \u2013 where it lacks the node");
      row("Difference, b \u2212 a", format(circuit.effect[i], true));
    } else if (known(circuit.effect)) row("Effect, predicted", format(circuit.effect[i], true) + spread, `Change of the metric when the node is set to its baseline, by attribution${spread && "; mean and standard deviation over the prompts"}`);
    if (known(circuit.measured)) row("Effect, measured", format(circuit.measured[i], true), "The same change, by really doing it");
    if (mode.before && Number.isFinite(mode.before[i]) && Number.isFinite(mode.after[i])) row("Activation before, after", `${format(mode.before[i])} \u2192 ${format(mode.after[i])}`);
    if (known(circuit.count) && circuit.about.aggregate) row("In", `${circuit.count[i]} of ${circuit.about.aggregate.prompts} prompts`);
    if (known(circuit.probability)) row("Probability", percent(circuit.probability[i]));
    if (known(circuit.merged)) row("Stands in for", `${circuit.merged[i]} pruned`, "Features that were pruned; what they did is counted here");
    if (known(circuit.influence)) row("Influence", format(circuit.influence[i]));
    if (known(circuit.explained)) row("Input explained", percent(circuit.explained[i]), "Share of all that arrives here which the circuit's edges carry");
    return rows.length ? make("dl", { class: "cg-numbers" }, ...rows) : null;
  }

  /** Controls that ask for an intervention; who drew the drawing carries it out. */
  intervene(nodes) {
    const { view } = this;
    const { circuit } = view;
    if (!nodes.length) return null;
    const ask = (op, value) => view.emit("intervene", { keys: nodes.map((i) => circuit.key[i]), op, value });
    // Error nodes and tokens are vectors: they can be scaled, but set to one number only where it is 0.
    const features = nodes.every((i) => circuit.kind[i] === "feature");
    const said = nodes.length === 1 ? view.sayings.get(circuit.key[nodes[0]]) : null;
    const { draft } = this;
    const op = draft ? draft.op : said && said.op && said.op !== "ablate" ? said.op : "scale";
    const value = draft ? draft.value : said && op === said.op ? said.value : 1;
    const names = { scale: "Scale by", set: "Set to", add: "Add" };
    const number = make("input", { type: "number", step: "any", value, "aria-label": names[op] });
    const range = make("input", { type: "range", min: 0, max: 2, step: 0.05, value: op === "scale" ? value : 1, list: `${view.id}-scales`, "aria-label": "Scale slider", hidden: op !== "scale" });
    const ticks = make("datalist", { id: `${view.id}-scales` }, ...SCALES.map((value) => make("option", { value })));
    const way = make("select", { "aria-label": "How to change it" }, ...[["scale", "\u00d7"], ["set", "="], ["add", "+"]].map(([value, text]) => make("option", { value, text, selected: value === op })));
    const wanted = (value, typed) => (this.draft = { op: way.value, value, typed });
    const commit = () => {
      const typed = this.draft && this.draft.typed && number.value !== "" && Number.isFinite(Number(number.value));
      if (!typed || this.redrawing) return;
      this.draft = null;
      if (way.value === "scale") range.value = number.value;
      ask(way.value, Number(number.value));
    };
    range.addEventListener("input", () => (number.value = range.value));
    range.addEventListener("change", () => {
      this.draft = null;
      ask("scale", Number(range.value));
    });
    way.addEventListener("change", () => {
      range.hidden = way.value !== "scale";
      number.setAttribute("aria-label", names[way.value]);
      const known = nodes.length === 1 && !Number.isNaN(circuit.activation[nodes[0]]);
      number.value = way.value === "scale" ? range.value : way.value === "set" && known ? String(Number(circuit.activation[nodes[0]].toPrecision(3))) : "0";
      wanted(number.value, false);
    });
    number.addEventListener("input", () => wanted(number.value, true));
    number.addEventListener("change", commit);
    // The browser reports no change of a field that was drawn anew under the hands that type in it.
    number.addEventListener("keydown", (event) => event.key === "Enter" && commit());
    number.addEventListener("blur", commit);
    const ablate = button(nodes.length > 1 ? `Ablate all ${nodes.length}` : "Ablate", "Ablate (A)", () => ask("ablate"), { class: "cg-main-button" });
    const sign = features ? way : make("span", { text: "\u00d7" });
    const saying = said ? make("p", { class: "cg-saying", text: said.text }) : null;
    return make("div", { class: "cg-intervene" }, ablate, make("div", { class: "cg-amount" }, sign, range, number), ticks, saying);
  }

  /** What the host knows of a node besides: titled sections of text, chips or marked contexts. */
  card(i) {
    const sections = this.cards.get(this.view.circuit.key[i]);
    if (!sections) return null;
    return sections.map((section) => {
      const part = make("section", { class: "cg-card" }, make("h3", { text: section.title }));
      if (section.text) part.append(make("p", { text: section.text }));
      if (section.tokens) part.append(make("div", { class: "cg-chips" }, ...section.tokens.map(([text, value]) => make("span", { class: "cg-chip" }, visible(String(text)), value === undefined || value === null ? "" : make("small", { text: ` ${format(value)}` })))));
      for (const context of section.contexts || []) {
        const most = Math.max(1e-12, ...context.map(([, value]) => Math.abs(value || 0)));
        part.append(make("p", { class: "cg-context" }, ...context.map(([text, value]) => make(value ? "mark" : "span", { class: value ? `cg-s${Math.min(5, Math.floor((6 * Math.abs(value)) / most))}` : "", text: visible(String(text)) }))));
      }
      return part;
    });
  }

  edges(id, side) {
    const { view } = this;
    const { circuit } = view;
    const single = id < circuit.n;
    const list = single ? circuit[side][id].map((e) => ({ source: circuit.source[e], target: circuit.target[e], weight: circuit.weight[e], contribution: circuit.contribution[e], share: circuit.share(e, side === "ins" ? "in" : "out") })) : view.shown[side].get(id) || [];
    if (!single) {
      const total = list.reduce((sum, edge) => sum + Math.abs(edge.weight), 0);
      for (const edge of list) edge.share = total ? Math.abs(edge.weight) / total : 0;
    }
    const heading = side === "ins" ? `From (${count(list.length)})` : `To (${count(list.length)})`;
    const section = make("section", {}, make("h3", { text: heading }));
    if (!list.length) return section;
    section.append(make("div", { class: "cg-columns cg-soft" }, make("span", { text: side === "ins" ? "source" : "target" }), make("span", { text: "contribution", title: "What the source adds to its target, in the target's units" }), make("span", { text: "weight", title: "Change of the metric through this edge when the source is ablated" }), make("span", { text: "share" })));
    const byShare = list.slice().sort((a, b) => b.share - a.share);
    for (const [words, sign] of [["raising", true], ["lowering", false]]) {
      const part = byShare.filter((edge) => raises(edge) === sign);
      if (!part.length) continue;
      const sum = part.reduce((total, edge) => total + edge.share, 0);
      section.append(make("p", { class: `cg-sign ${sign ? "cg-up" : "cg-down"}`, text: `${sign ? "+" : MINUS} ${words}, ${percent(sum)}` }));
      const rows = (edges) => edges.map((edge) => this.edgeLink(edge, side, byShare[0].share));
      const items = this.list(rows(part.slice(0, FIRST_EDGES)));
      section.append(items);
      if (part.length > FIRST_EDGES) {
        const more = button(`Show ${count(part.length - FIRST_EDGES)} more`, `Show ${count(part.length - FIRST_EDGES)} more`, () => {
          items.append(...rows(part.slice(FIRST_EDGES)));
          more.remove();
        }, { class: "cg-small-button" });
        section.append(more);
      }
    }
    return section;
  }

  edgeLink(edge, side, largest) {
    const { view } = this;
    const other = side === "ins" ? edge.source : edge.target;
    const row = this.link({
      name: view.nameOf(other),
      place: other < view.circuit.n && view.circuit.kind[other] !== "token" ? view.circuit.position[other] < 0 ? "" : quoted(view.circuit.tokenAt(other)) : view.placeOf(other),
      title: view.describe(other),
      numbers: [format(edge.contribution, true), format(edge.weight, true), percent(edge.share)],
      open: () => view.choose([other]),
      hover: other,
      bar: largest ? edge.share / largest : 0,
      sign: raises(edge) ? "cg-up" : "cg-down",
    });
    return row;
  }

  nodeLink(i, bar = 0) {
    const { view } = this;
    const { circuit } = view;
    const effect = circuit.effect[i];
    return this.link({ name: circuit.name(i), place: circuit.label[i] || view.placeOf(i), numbers: [format(effect, true)], open: () => view.choose([i]), hover: i, bar, sign: effect > 0 ? "cg-down" : "cg-up" });
  }

  list(rows) {
    return make("ul", { class: "cg-list" }, ...rows);
  }

  link({ name, place, title, numbers, open, hover, bar, sign }) {
    const { view } = this;
    const fill = make("span", { class: `cg-bar-fill ${sign || ""}` });
    if (bar) fill.style.width = `${100 * bar}%`;
    const on = { click: open };
    if (hover !== undefined) Object.assign(on, { pointerenter: () => view.hover(hover, false), pointerleave: () => view.hover(-1), focus: () => view.hover(hover, false), blur: () => view.hover(-1) });
    const words = make("span", { class: "cg-words" }, make("b", { text: name }), place ? make("span", { class: "cg-soft", text: ` ${place}` }) : null);
    words.title = title || (place ? `${name} ${place}` : name);
    return make("li", {}, make("button", { type: "button", class: "cg-link", on }, fill, words, ...numbers.map((text) => make("span", { class: "cg-number", text }))));
  }

  ways(from, to) {
    const { view } = this;
    const { circuit } = view;
    const section = make("section", {});
    const show = () => {
      const found = circuit.paths(from, to, 5);
      section.replaceChildren(make("h3", { text: to === circuit.metric ? "Strongest ways to the metric" : `Strongest ways to ${circuit.name(to)}` }));
      if (!found.length) section.append(make("p", { class: "cg-soft", text: "No way leads there." }));
      found.forEach((way) => {
        const chosen = () => view.state.way && view.state.way.nodes.join() === way.nodes.join();
        const steps = way.nodes.map((i) => circuit.name(i)).join(" \u2192 ");
        const row = make("button", {
          type: "button",
          class: "cg-way",
          "aria-pressed": String(Boolean(chosen())),
          on: {
            click: () => {
              view.setWay(chosen() ? null : way);
              for (const other of section.querySelectorAll(".cg-way")) other.setAttribute("aria-pressed", String(other === row && Boolean(chosen())));
            },
            pointerenter: () => view.previewWay(way),
            pointerleave: () => view.previewWay(null),
          },
        }, make("span", { class: "cg-number", text: percent(way.share) }), make("span", { text: steps }), make("span", { class: way.sign > 0 ? "cg-sign cg-up" : "cg-sign cg-down", text: way.sign > 0 ? "raises" : "lowers" }));
        section.append(row);
      });
    };
    if (view.state.way && view.state.way.nodes[0] === from && view.state.way.nodes[view.state.way.nodes.length - 1] === to) show();
    else section.append(button(to === circuit.metric ? "Ways to the metric" : "Ways between the two", "Find the strongest ways", show, { class: "cg-small-button" }));
    return section;
  }

  several(items) {
    const { view } = this;
    const { circuit } = view;
    const nodes = view.nodesOf(items);
    const sum = view.sum(nodes);
    const parts = [this.title(`${items.length} selected`, Number.isNaN(sum) ? "" : `predicted together ${format(sum, true)}, the sum of their effects`)];
    const allPinned = nodes.every((i) => view.state.pins.has(i));
    const inGroup = items.some((id) => id >= circuit.n);
    const groupable = nodes.every((i) => view.choosable(i) || circuit.kind[i] === "token");
    parts.push(make("div", { class: "cg-actions" },
      !inGroup && groupable ? button("Group", "Group (G)", () => view.groupNodes(nodes), { class: "cg-small-button" }) : null,
      button(allPinned ? "Unpin" : "Pin", "Pin (P)", () => view.pin(nodes, !allPinned), { class: "cg-small-button" })));
    if (view.options.intervene) parts.push(this.intervene(nodes.filter((i) => circuit.kind[i] !== "metric" && circuit.kind[i] !== "bias")));
    parts.push(this.list(items.map((id) => this.link({ name: view.nameOf(id), place: view.placeOf(id), numbers: [format(view.sum(view.nodesOf([id])), true)], open: () => view.choose([id]), hover: id }))));
    if (items.length === 2 && items.every((id) => id < circuit.n)) {
      const order = circuit.order();
      const [from, to] = items.slice().sort((a, b) => order.indexOf(a) - order.indexOf(b));
      parts.push(this.ways(from, to));
    }
    return parts;
  }

  group(id) {
    const { view } = this;
    const group = view.groups[id - view.circuit.n];
    const name = make("input", { class: "cg-rename", value: group.name, "aria-label": "Group's name", maxlength: 80, on: { change: () => view.renameGroup(id - view.circuit.n, name.value) } });
    const sum = view.sum(group.nodes);
    return [
      this.title("Group", `${plural(group.nodes.length, "node")}${Number.isNaN(sum) ? "" : `, predicted together ${format(sum, true)}`}`),
      name,
      make("div", { class: "cg-actions" }, button("Ungroup", "Ungroup", () => view.ungroup(id - view.circuit.n), { class: "cg-small-button" })),
      view.options.intervene ? this.intervene(group.nodes) : null,
      make("h3", { text: "Members" }),
      this.list(group.nodes.map((i) => this.nodeLink(i))),
      this.edges(id, "ins"),
      this.edges(id, "outs"),
    ];
  }
}

/** Everything shown, as two tables that sort by any column. */
class Table {
  constructor(view) {
    this.view = view;
    this.what = "nodes";
    this.by = { nodes: [5, -1], edges: [3, -1] };
    this.limit = 300;
    this.root = make("div", { class: "cg-table", hidden: true });
  }

  columns() {
    const { circuit } = this.view;
    if (this.what === "edges") {
      return [["source", (e) => circuit.name(e.source)], ["target", (e) => circuit.name(e.target)], ["contribution", (e) => e.contribution], ["weight", (e) => e.weight], ["share of target", (e) => circuit.share(e.base, "in"), percent]];
    }
    return [["node", (i) => circuit.name(i)], ["position", (i) => (circuit.position[i] < 0 ? NaN : circuit.position[i]), (v) => (Number.isNaN(v) ? "" : String(v))], ["token", (i) => visible(circuit.tokenAt(i))], ["label", (i) => circuit.label[i] || ""], ["activation", (i) => circuit.activation[i]], ["effect", (i) => circuit.effect[i]], ["measured", (i) => circuit.measured[i]], ["explained", (i) => circuit.explained[i], (v) => (Number.isNaN(v) ? "\u2013" : percent(v))]];
  }

  fill() {
    const { view, what } = this;
    const { circuit } = view;
    const columns = this.columns();
    const shown = view.shown.items.filter((id) => id >= circuit.n || circuit.rank[id] >= 0);
    const rows = what === "nodes" ? view.nodesOf(shown) : view.shown.drawn.filter((edge) => edge.base >= 0).map((edge) => ({ ...edge, source: circuit.source[edge.base], target: circuit.target[edge.base] }));
    const [sorted, way] = this.by[what];
    const read = columns[sorted][1];
    const size = (value) => (typeof value === "number" ? (Number.isNaN(value) ? -1 : Math.abs(value)) : value);
    const keyed = rows.map((row) => [size(read(row)), row]);
    keyed.sort(([a], [b]) => way * (typeof a === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true })));
    const tab = (name, text) => button(text, text, () => ((this.what = name), (this.limit = 300), this.fill()), { class: "cg-small-button", "aria-pressed": String(what === name) });
    const head = make("tr", {}, ...columns.map(([name, , ], c) => make("th", { scope: "col", "aria-sort": c === sorted ? (way < 0 ? "descending" : "ascending") : "none" }, make("button", { type: "button", on: { click: () => ((this.by[what] = [c, c === sorted ? -way : -1]), this.fill()) } }, name, c === sorted ? (way < 0 ? " \u2193" : " \u2191") : ""))));
    const body = make("tbody");
    for (const [, row] of keyed.slice(0, this.limit)) {
      const id = what === "nodes" ? row : null;
      const cells = columns.map(([, value, write], c) => {
        const content = value(row);
        const numeric = typeof content === "number";
        const text = write ? write(content) : numeric ? format(content, what === "edges" || c === 5 || c === 6) : content;
        if (c > 1 || (what === "nodes" && c > 0)) return make("td", { class: numeric ? "cg-number" : "", text });
        const open = what === "nodes" ? id : c === 0 ? row.source : row.target;
        return make("td", {}, make("button", { type: "button", class: "cg-link-text", text, on: { click: () => view.choose([view.shown.item[open] >= 0 ? view.shown.item[open] : open]) } }));
      });
      body.append(make("tr", { class: id !== null && view.state.selected.has(id) ? "cg-row-chosen" : "" }, ...cells));
    }
    const more = keyed.length > this.limit ? button(`Show all ${count(keyed.length)}`, `Show all ${count(keyed.length)}`, () => ((this.limit = Infinity), this.fill()), { class: "cg-small-button" }) : null;
    this.root.replaceChildren(make("div", { class: "cg-actions" }, tab("nodes", "Nodes"), tab("edges", "Edges")), make("table", {}, make("thead", {}, head), body), ...(more ? [more] : []));
  }
}
