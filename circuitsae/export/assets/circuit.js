// @ts-check
// The circuit as typed columns, and the questions the drawing asks of it. No DOM here.

import { format, quoted } from "./text.js";

export class Circuit {
  constructor(payload) {
    if (!payload || payload.schema !== "circuitsae-view/1") {
      throw new Error("This is no circuit for this drawing: its schema is not circuitsae-view/1.");
    }
    const { nodes, edges } = payload;
    this.about = payload;
    this.tokens = payload.tokens || [];
    this.sites = payload.sites || [];
    this.n = nodes.kind.length;
    this.kind = nodes.kind.map((place) => payload.kinds[place]);
    this.site = nodes.site;
    this.index = nodes.index;
    this.position = nodes.position.map((p) => (p < Math.max(this.tokens.length, 1) && this.tokens.length ? p : -1));
    const numbers = (name) =>
      Float64Array.from(nodes[name] || new Array(this.n).fill(null), (v) => (v === null ? NaN : v));
    this.activation = numbers("activation");
    this.effect = numbers("effect"); // predicted
    this.measured = numbers("measured_effect");
    this.influence = numbers("influence");
    this.explained = numbers("explained");
    this.total = numbers("total");
    this.baseline = numbers("baseline");
    this.probability = numbers("probability");
    this.merged = numbers("merged");
    // Of a mean over prompts, and of a comparison of two circuits.
    this.count = numbers("count");
    this.spread = numbers("effect_std");
    this.sides = [numbers("effect_a"), numbers("effect_b")];
    this.activations = [numbers("activation_a"), numbers("activation_b")];
    this.label = nodes.label || new Array(this.n).fill(null);
    // Rows of one layer need its part's name ("L3 mlp") only where a layer has several.
    const perLayer = new Map();
    for (const site of this.sites) perLayer.set(site.layer, (perLayer.get(site.layer) || 0) + 1);
    this.manyParts = Math.max(0, ...perLayer.values()) > 1;
    this.key = Array.from({ length: this.n }, (_, i) => this.keyOf(i, nodes.position[i]));
    this.row = new Map(this.key.map((key, i) => [key, i]));

    const m = edges.weight.length;
    this.m = m;
    const order = Array.from({ length: m }, (_, e) => e);
    order.sort((a, b) => Math.abs(edges.weight[b]) - Math.abs(edges.weight[a]) || a - b);
    // Edges are held strongest first, so that an edge's number is its rank.
    this.source = Int32Array.from(order, (e) => edges.source[e]);
    this.target = Int32Array.from(order, (e) => edges.target[e]);
    this.weight = Float64Array.from(order, (e) => edges.weight[e]);
    this.contribution = Float64Array.from(order, (e) => (edges.contribution[e] === null ? NaN : edges.contribution[e]));
    this.ins = Array.from({ length: this.n }, () => []);
    this.outs = Array.from({ length: this.n }, () => []);
    this.inWeight = new Float64Array(this.n);
    this.outWeight = new Float64Array(this.n);
    this.inContribution = new Float64Array(this.n);
    for (let e = 0; e < m; e += 1) {
      const size = Math.abs(this.weight[e]);
      this.outs[this.source[e]].push(e);
      this.ins[this.target[e]].push(e);
      this.outWeight[this.source[e]] += size;
      this.inWeight[this.target[e]] += size;
      this.inContribution[this.target[e]] += Math.abs(this.contribution[e]) || 0;
    }
    this.largestWeight = m ? Math.abs(this.weight[0]) : 0;

    this.rerank();
    this.metric = this.kind.indexOf("metric");
    this.bias = this.kind.indexOf("bias");

    this.places = new Map(); // the same feature at its positions
    for (let i = 0; i < this.n; i += 1) {
      if (this.kind[i] !== "feature") continue;
      const id = `${this.site[i]}/${this.index[i]}`;
      if (!this.places.has(id)) this.places.set(id, []);
      this.places.get(id).push(i);
    }
  }

  keyOf(i, position) {
    const at = position < 0 ? "" : `@${position}`;
    const kind = this.kind[i];
    if (kind === "token") return `token${at}`;
    if (kind === "feature") return `${this.sites[this.site[i]].id}/${this.index[i]}${at}`;
    if (kind === "error") return `${this.sites[this.site[i]].id}/error${at}`;
    if (kind === "metric" && this.index[i] >= 0) return `logit/${this.index[i]}${at}`;
    return kind;
  }

  /** A row's name: `L12`, `L12 mlp` where the layer has several, or the site's own outside the layers. */
  rowName(site) {
    const { layer, part } = this.sites[site];
    if (layer === null || layer === undefined) return part;
    return this.manyParts ? `L${layer} ${part}` : `L${layer}`;
  }

  siteName(i) {
    return this.sites[this.site[i]] ? this.rowName(this.site[i]) : "";
  }

  /** The short name that fits beside a node: L12/421, L12 error, a quoted token. */
  name(i) {
    const kind = this.kind[i];
    if (kind === "feature") return `${this.siteName(i)}/${this.index[i]}`;
    if (kind === "error") return `${this.siteName(i)} error`;
    if (kind === "token") return this.tokenAt(i) ? quoted(this.tokenAt(i)) : "token";
    if (kind === "metric" && this.index[i] >= 0)
      return this.label[i] ? `logit of ${quoted(this.label[i])}` : `logit ${this.index[i]}`;
    return kind;
  }

  tokenAt(i) {
    return this.position[i] >= 0 ? this.tokens[this.position[i]] : "";
  }

  /** Where a node stands: its position and token; empty for those that stand nowhere. */
  place(i) {
    if (this.position[i] < 0) return "";
    return this.kind[i] === "token"
      ? `position ${this.position[i]}`
      : `${quoted(this.tokenAt(i))} at ${this.position[i]}`;
  }

  describe(i) {
    const words = { feature: "Feature", error: "Error node", token: "Token", bias: "Bias", metric: "Metric" };
    if (this.kind[i] === "metric" && this.index[i] >= 0)
      return `${this.name(i)}, probability ${format(this.probability[i])}`;
    if (this.kind[i] === "metric" && this.about.metric_value !== undefined)
      return `Metric ${format(this.about.metric_value)}, ${this.about.metric.description || this.about.metric.name}`;
    const parts = [
      this.kind[i] === "bias" || this.kind[i] === "metric"
        ? words[this.kind[i]]
        : `${words[this.kind[i]]} ${this.name(i)}`,
    ];
    if (this.place(i)) parts.push(this.place(i));
    if (this.label[i]) parts.push(this.label[i]);
    if (!Number.isNaN(this.known[i]))
      parts.push(
        `effect when ablated ${format(this.known[i], true)}${Number.isNaN(this.measured[i]) ? "" : ", measured"}`,
      );
    return parts.join(", ");
  }

  /** +1 where ablating the node would lower the metric: the node raises it; -1 where it lowers it. */
  sign(i) {
    return this.known[i] > 0 ? -1 : 1;
  }

  /** Whether a node's effect is predicted, not measured. */
  predicted(i) {
    return !Number.isNaN(this.known[i]) && (Boolean(this.about.aggregate) || Number.isNaN(this.measured[i]));
  }

  /** Orders the nodes by what is known of them: measured effects where there are such, predicted ones elsewhere. */
  rerank() {
    // In a mean over prompts every circuit's best known effect is in `effect` already.
    const averaged = Boolean(this.about.aggregate);
    this.known = this.effect.map((v, i) => (averaged || Number.isNaN(this.measured[i]) ? v : this.measured[i]));
    const ranked = this.known.some((v) => !Number.isNaN(v))
      ? this.known
      : this.influence.some((v) => !Number.isNaN(v))
        ? this.influence
        : this.outWeight;
    this.strengthName = ranked === this.known ? "|effect|" : ranked === this.influence ? "influence" : "|weight|";
    this.strength = Float64Array.from(ranked, (v) => Math.abs(v) || 0);
    this.choosable = [];
    for (let i = 0; i < this.n; i += 1)
      if (this.kind[i] === "feature" || this.kind[i] === "error") this.choosable.push(i);
    this.choosable.sort((a, b) => this.strength[b] - this.strength[a] || a - b);
    this.rank = new Int32Array(this.n).fill(-1);
    this.choosable.forEach((i, rank) => (this.rank[i] = rank));
    this.totalStrength = this.choosable.reduce((sum, i) => sum + this.strength[i], 0);
    this.largestStrength = this.choosable.length ? this.strength[this.choosable[0]] : 0;
  }

  elsewhere(i) {
    if (this.kind[i] !== "feature") return [];
    return this.places.get(`${this.site[i]}/${this.index[i]}`).filter((j) => j !== i);
  }

  /** An edge's share: in `"in"` lists of what its target gets, in `"out"` lists of what its source gives. */
  share(e, direction) {
    if (direction === "out") return Math.abs(this.weight[e]) / this.outWeight[this.source[e]];
    const total = this.inContribution[this.target[e]];
    if (total > 0 && !Number.isNaN(this.contribution[e])) return Math.abs(this.contribution[e]) / total;
    return Math.abs(this.weight[e]) / this.inWeight[this.target[e]];
  }

  order() {
    if (this.topological) return this.topological;
    const waiting = Int32Array.from(this.ins, (list) => list.length);
    const ready = [];
    for (let i = 0; i < this.n; i += 1) if (waiting[i] === 0) ready.push(i);
    for (let at = 0; at < ready.length; at += 1) {
      for (const e of this.outs[ready[at]]) {
        waiting[this.target[e]] -= 1;
        if (waiting[this.target[e]] === 0) ready.push(this.target[e]);
      }
    }
    this.topological = ready;
    return ready;
  }

  /**
   * The k strongest ways between two nodes, as Circuit.paths in Python finds them: the product over the edges of
   * |weight| over the sum of |weight| of all the target's in-edges. Exact, by one sweep that keeps k ways a node.
   */
  paths(from, to, k = 5) {
    const reach = new Uint8Array(this.n);
    reach[to] = 1;
    const order = this.order();
    for (let at = order.length - 1; at >= 0; at -= 1) {
      const i = order[at];
      if (!reach[i] && this.outs[i].some((e) => reach[this.target[e]])) reach[i] = 1;
    }
    const best = new Map([[from, [{ share: 1, sign: 1, edge: -1, before: null, node: from }]]]);
    for (const i of order) {
      if (i === from || !reach[i] || !(this.inWeight[i] > 0)) continue;
      const ways = [];
      for (const e of this.ins[i]) {
        if (this.weight[e] === 0) continue;
        const share = Math.abs(this.weight[e]) / this.inWeight[i];
        for (const way of best.get(this.source[e]) || []) {
          ways.push({
            share: way.share * share,
            sign: this.contribution[e] < 0 ? -way.sign : way.sign,
            edge: e,
            before: way,
            node: i,
          });
        }
      }
      ways.sort((a, b) => b.share - a.share);
      if (ways.length) best.set(i, ways.slice(0, k));
      if (i === to) break;
    }
    if (from === to) return [];
    return (best.get(to) || []).map((way) => {
      const nodes = [];
      const edges = [];
      for (let step = way; step; step = step.before) {
        nodes.unshift(step.node);
        if (step.edge >= 0) edges.unshift(step.edge);
      }
      return { nodes, edges, share: way.share, sign: way.sign };
    });
  }

  /** Nodes whose index, key, label or token match, strongest first; at most `limit`. */
  find(text, limit = 50) {
    const wanted = text.trim().toLowerCase();
    if (!wanted) return [];
    const found = [];
    for (let i = 0; i < this.n; i += 1) {
      const exact = /^\d+$/.test(wanted) && this.kind[i] === "feature" && String(this.index[i]) === wanted;
      const texts = [this.name(i), this.key[i], this.label[i] || "", this.kind[i] === "token" ? "" : this.tokenAt(i)];
      const score = exact ? 2 : texts.some((t) => t.toLowerCase().includes(wanted)) ? 1 : 0;
      if (score) found.push([score, i]);
    }
    found.sort((a, b) => b[0] - a[0] || this.strength[b[1]] - this.strength[a[1]]);
    return found.slice(0, limit).map(([, i]) => i);
  }
}
