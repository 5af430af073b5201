// @ts-check
// The controller that a host gets.

import { toPng, toSvg } from "./save.js";
import { getState, setState } from "./states.js";
import { View } from "./view.js";

/**
 * Draws a payload (circuitsae.export.view) in an element and returns a controller; docs/drawing.md describes both.
 */
export function mount(element, payload, options = {}) {
  const view = new View(element, payload, options);
  const rows = (keys) =>
    (Array.isArray(keys) ? keys : keys ? [keys] : [])
      .map((key) => view.circuit.row.get(key))
      .filter((i) => i !== undefined);
  if (options.state) setState(view, options.state);
  return {
    element: view.root,
    get circuit() {
      return view.circuit;
    },
    setPayload: (next) => view.load(next),
    getState: () => getState(view),
    setState: (state) => setState(view, state),
    getThresholds: () => ({ nodes: view.state.nodes, edges: view.state.edges }),
    setThresholds: ({ nodes, edges }) =>
      setState(view, { nodes, edges, zoom: view.stage.follows ? null : view.stage.zoom }),
    select: (keys) => view.choose(rows(keys)),
    focus: () => view.stage.focus(view.stage.firstItem()),
    selection: () => view.nodesOf([...view.state.selected]).map((i) => view.circuit.key[i]),
    pin: (keys, on = true) => view.pin(rows(keys), on),
    group: (name, keys) => view.groupNodes(rows(keys), name),
    ungroup: (name) => {
      const g = view.groups.findIndex((group) => group.name === name);
      if (g >= 0) view.ungroup(g);
    },
    paths: (source, target, k = 5) => {
      const [from, to] = [view.circuit.row.get(source), view.circuit.row.get(target)];
      if (from === undefined || to === undefined) return [];
      return view.circuit
        .paths(from, to, k)
        .map((way) => ({ nodes: way.nodes.map((i) => view.circuit.key[i]), share: way.share, sign: way.sign }));
    },
    showPath: (keys) => setState(view, { way: keys }),
    setOverlay: (overlay) => view.setOverlay(overlay),
    setColour: (mode) => view.set({ colour: mode }),
    setMeasured: (values, rank) => view.setMeasured(values, rank),
    setSayings: (sayings) => {
      view.sayings = new Map(Object.entries(sayings || {}));
      view.panel.show();
    },
    say: (text) => view.say(text),
    save: (what) => view.save(what),
    setCard: (key, sections) => {
      if (sections) view.panel.cards.set(key, sections);
      else view.panel.cards.delete(key);
      view.panel.show();
    },
    setTheme: (theme) => view.setTheme(theme),
    setTable: (on) => view.set({ table: Boolean(on) }),
    fit: () => view.stage.fit(),
    toSVG: () => toSvg(view),
    toPNG: (scale) => toPng(view, scale),
    on: (type, listener) => {
      if (!view.hearers.has(type)) view.hearers.set(type, new Set());
      view.hearers.get(type).add(listener);
      return () => view.hearers.get(type).delete(listener);
    },
    destroy: () => view.destroy(),
  };
}

globalThis.CircuitGraph = { mount };
