// @ts-check
// What a drawing's state is as JSON, for links and pages.

export function getState(view) {
  const { state, circuit, stage } = view;
  const keys = (nodes) => [...nodes].map((i) => circuit.key[i]);
  return {
    version: 1,
    nodes: state.nodes,
    edges: state.edges === Infinity ? "all" : state.edges,
    bias: state.bias,
    errors: state.errors,
    onlyPinned: state.onlyPinned,
    colour: state.colour,
    table: state.table,
    selected: [...state.selected].map((id) => (id < circuit.n ? circuit.key[id] : { group: id - circuit.n })),
    pins: keys(state.pins),
    groups: view.groupKeys(),
    way: state.way ? keys(state.way.nodes) : null,
    zoom: stage.follows ? null : { ...stage.zoom },
  };
}

/** Takes a state from getState, perhaps from a stranger's link: what it does not understand it leaves as it is. */
export function setState(view, given) {
  if (!given || typeof given !== "object") return;
  const { circuit, state, stage } = view;
  const rows = (keys) =>
    Array.isArray(keys) ? keys.map((key) => circuit.row.get(key)).filter((i) => i !== undefined) : [];
  if (Number.isFinite(given.nodes))
    state.nodes = Math.max(0, Math.min(circuit.choosable.length, Math.round(given.nodes)));
  if (given.edges === "all" || given.edges === Infinity) state.edges = Infinity;
  else if (Number.isFinite(given.edges)) state.edges = Math.max(0, Math.round(given.edges));
  for (const name of ["bias", "errors", "onlyPinned", "table"])
    if (typeof given[name] === "boolean") state[name] = given[name];
  if (given.overlay && typeof given.overlay === "object") view.setOverlay(given.overlay);
  if (typeof given.note === "string" && view.note) {
    view.note.textContent = given.note;
    view.note.hidden = !given.note;
  }
  if (typeof given.colour === "string") state.colour = given.colour;
  if (given.pins)
    state.pins = new Set(rows(given.pins).filter((i) => view.choosable(i) || circuit.kind[i] === "token"));
  if (Array.isArray(given.groups)) {
    const taken = new Set();
    view.groups = given.groups
      .slice(0, 100)
      .filter((group) => group && typeof group === "object")
      .map((group) => ({
        name: String(group.name || "Group").slice(0, 80),
        nodes: rows(group.keys).filter(
          (i) => (view.choosable(i) || circuit.kind[i] === "token") && !taken.has(i) && taken.add(i),
        ),
        // of all its members at once
        measured: typeof group.measured_effect === "number" ? group.measured_effect : NaN,
        whole: Array.isArray(group.keys) ? group.keys.length : 0,
      }))
      .map(({ name, nodes, measured, whole }) => ({ name, nodes, measured: nodes.length === whole ? measured : NaN }))
      .filter((group) => group.nodes.length);
  }
  if (given.selected) {
    const items = Array.isArray(given.selected) ? given.selected : [];
    state.selected = new Set(
      items
        .map((item) =>
          item &&
          typeof item === "object" &&
          Number.isInteger(item.group) &&
          item.group >= 0 &&
          item.group < view.groups.length
            ? circuit.n + item.group
            : circuit.row.get(item),
        )
        .filter((id) => id !== undefined),
    );
  }
  if (given.way !== undefined) {
    const nodes = rows(given.way);
    const edges = nodes.slice(1).map((i, n) => circuit.ins[i].find((e) => circuit.source[e] === nodes[n]));
    state.way =
      nodes.length > 1 && edges.every((e) => e !== undefined)
        ? {
            nodes,
            edges,
            share: edges.reduce(
              (share, e) => (share * Math.abs(circuit.weight[e])) / circuit.inWeight[circuit.target[e]],
              1,
            ),
            sign: edges.reduce((sign, e) => (circuit.contribution[e] < 0 ? -sign : sign), 1),
          }
        : null;
  }
  const { zoom } = given;
  const moved = zoom && ["k", "x", "y"].every((name) => Number.isFinite(zoom[name])) && zoom.k > 0;
  stage.follows = !moved;
  view.update();
  if (moved) stage.move({ k: Math.min(6, Math.max(0.1, zoom.k)), x: zoom.x, y: zoom.y });
}
