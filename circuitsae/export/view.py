"""What the drawing is given: a circuit as compact columns of plain data, the same for the exported page and the app.

Positions and colours are not in it: thresholds, groups and the window's size change them live, so the drawing
(`assets/graph.js`) lays out what it shows.
"""

import math
from collections.abc import Iterable
from typing import Any

from circuitsae import names
from circuitsae.graph.circuit import Circuit
from circuitsae.graph.reports import explained
from circuitsae.graph.schema import NODE_NUMBERS
from circuitsae.kinds import NODE_KINDS

VIEW_SCHEMA = "circuitsae-view/1"

_DIGITS = 5
_ABOUT = (
    "package_version",
    "created",
    "preset",
    "patch",
    "patch_tokens",
    "metric_value",
    "baseline_metric_value",
    "top_tokens",
    "method",
    "baseline",
    "gradient",
    "linearisation",
    "prune",
    "options",
    "kept",
    "dictionaries",
    "aggregate",
)
_PARTS = {
    "hook_embed": "embed",
    "hook_resid_pre": "resid pre",
    "hook_resid_mid": "resid mid",
    "hook_resid_post": "resid",
    "hook_attn_out": "attn",
    "hook_z": "attn z",
    "hook_mlp_in": "mlp in",
    "hook_mlp_out": "mlp",
}


def view_payload(circuit: Circuit) -> dict[str, Any]:
    """Returns the drawing's data: JSON-able, numbers cut to five digits, `None` where a number is not known.

    `nodes` and `edges` are columns; nodes come in the order in which the model computes them, and a node's key is not
    stored, as it follows from `kind` (a place in `kinds`), `site` (a place in `sites`), `index` and `position`. An
    edge's `source` and `target` are places in the nodes' order. Columns in which nothing is known are left out.
    Cost: 50 KB for 300 nodes and 2,000 edges, 500 KB for 3,000 and 20,000.
    """
    about = circuit.graph.graph
    keys = sorted(circuit.graph, key=names.sort_key)
    row_of = {key: row for row, key in enumerate(keys)}
    data = [circuit.graph.nodes[key] for key in keys]
    sites = _ordered_sites(about.get("sites", []), data)
    site_row = {site: row for row, site in enumerate(sites)}
    layer_of = {node["site"]: node["layer"] for node in data if "site" in node and "layer" in node}
    nodes: dict[str, list[Any]] = {
        "kind": [NODE_KINDS.index(node["kind"]) for node in data],
        "site": [site_row[node["site"]] if "site" in node else -1 for node in data],
        "index": [node.get("index", -1) for node in data],
        "position": [node.get("position", -1) for node in data],
        "label": [node.get("label") for node in data],
        **{name: [_rounded(node.get(name)) for node in data] for name in NODE_NUMBERS},
    }
    edges = list(circuit.graph.edges(data=True))
    metric = about.get("metric", {})
    return {
        "schema": VIEW_SCHEMA,
        "kinds": list(NODE_KINDS),
        "model": about.get("model", {}).get("name", ""),
        "prompt": circuit.prompt,
        "tokens": about.get("tokens") or _tokens_from_nodes(data),
        "metric": {**metric, "name": metric.get("name", "metric"), "description": metric.get("description", "")},
        **{name: about[name] for name in _ABOUT if about.get(name) is not None},
        "explained": explained(circuit),
        "sites": [_site(site, layer_of.get(site, names.layer_of(site))) for site in sites],
        "nodes": {name: column for name, column in nodes.items() if any(value is not None for value in column)},
        "edges": {
            "source": [row_of[source] for source, _, _ in edges],
            "target": [row_of[target] for _, target, _ in edges],
            "contribution": [_rounded(edge.get("contribution")) for _, _, edge in edges],
            "weight": [_rounded(edge["weight"]) for _, _, edge in edges],
        },
    }


def site_name(site: str) -> str:
    """Returns a site's short name: `L12 mlp` for `blocks.12.hook_mlp_out`; the id itself outside the blocks.

    >>> site_name("blocks.12.hook_mlp_out")
    'L12 mlp'
    """
    layer = names.layer_of(site)
    part = _part(site)
    return part if layer is None else f"L{layer} {part}"


def _site(site: str, layer: int | None) -> dict[str, Any]:
    return {"id": site, "layer": layer, "part": _part(site)}


def _part(site: str) -> str:
    last = site.rpartition(".")[2]
    return _PARTS.get(last, last.removeprefix("hook_").replace("_", " ") or site)


def _ordered_sites(recorded: Iterable[str], nodes: list[dict[str, Any]]) -> list[str]:
    """Returns the sites in the order the model computes them: as recorded, then by name those that are not."""
    found = dict.fromkeys(recorded)
    found.update(dict.fromkeys(node["site"] for node in nodes if "site" in node))
    return list(found)


def _tokens_from_nodes(nodes: list[dict[str, Any]]) -> list[str]:
    """Returns a text per position for a circuit that does not record its tokens; none when it has no positions."""
    length = max((node.get("position", -1) for node in nodes), default=-1) + 1
    if length > 4096:  # a stranger's graph may name any position; the drawing then has one column for all
        return []
    tokens = [""] * length
    for node in nodes:
        if "token" in node and "position" in node:
            tokens[node["position"]] = node["token"]
    return tokens


def _rounded(value: float | None) -> float | None:
    if value is None:
        return None
    short = float(f"{value:.{_DIGITS}g}")
    return short if math.isfinite(short) else value  # the largest floats would round beyond what there is
