"""circuit-tracer's graph JSON, which its own viewer and Neuronpedia show: written from a circuit, and read back.

The format has a layer where a circuit has a site, ids that can name two nodes (feature 5 of layer 0 and the error of
layer 5 are both `0_5_3` there), and edges in one unit. Ids written here are unique; what the format has no place for is
kept beside it under `circuitsae`, which other readers pass over, so that a circuit comes back exactly. A file of
circuit-tracer's own comes back exactly too, its ids included, when it is written again.
"""

import datetime
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import networkx as nx

from circuitsae import __version__, names
from circuitsae.errors import GraphFileError, InputError
from circuitsae.files import read_whole, write_whole
from circuitsae.graph.circuit import Circuit, refuse_pickle
from circuitsae.graph.schema import FROM_KEY, Attributes, Graph, is_number, shown

_MAX_BYTES = 512 * 2**20
_KIND = {
    "feature": "cross layer transcoder",
    "error": "mlp reconstruction error",
    "token": "embedding",
    "bias": "bias",
    "metric": "logit",
}
_OURS, _THEIRS = "circuitsae", "circuit_tracer"
# What of a circuit's options their pages show, by their names.
_SETTINGS = {
    "generation_settings": {
        "max_n_logits": ("max_logits", int),
        "desired_logit_prob": ("logit_share", int | float),
        "max_feature_nodes": ("max_nodes", int),
    },
    "pruning_settings": {
        "node_threshold": ("node_threshold", int | float),
        "edge_threshold": ("edge_threshold", int | float),
    },
}
_FEATURE_ID = re.compile(r"\d+_(?:[a-z]{1,8}_)?(\d{1,16})_[^_]*", re.ASCII)
_ATTENTION_SITE = "blocks.{layer}.hook_attn_out"
_KNOWN = ("cross layer transcoder", "lorsa")
_SUMMED = "summed"


def as_circuit_tracer(
    circuit: Circuit,
    slug: str | None = None,
    scan: str | None = None,
    *,
    source_set: str | None = None,
    creator: str | None = None,
    creator_url: str | None = None,
) -> str:
    """Returns the graph JSON of circuit-tracer and Neuronpedia (schema version 1).

    A link's weight is the edge's `contribution`, as in circuit-tracer; without one, the metric's change that `weight`
    stands for, with its sign turned. `influence` is there the share of all influence that lies in this and stronger
    nodes, and is written where the circuit knows influences. The metric is the one logit node; where next tokens' logits
    are the targets, each is one, and the most probable is the target. Pins and groups become pinned ids and supernodes.

    Args:
        circuit: What is written.
        slug: The graph's name there; made from the circuit's prompt by default.
        scan: Which model or transcoders; what the circuit's preset says, else the model's name. Neuronpedia takes it as
            the model's id.
        source_set: Neuronpedia's source set, in which it looks features up; what the circuit's preset says by default.
        creator, creator_url: Who made the graph, as Neuronpedia shows it.
    """
    about, nodes = circuit.graph.graph, circuit.graph.nodes
    kept: dict[str, Any] = about.get(_THEIRS) or {}
    kept = kept if isinstance(kept, dict) else {}
    keys = sorted(circuit.graph, key=names.sort_key)
    tokens = list(about.get("tokens") or ())
    token_ids = list(about.get("token_ids") or ())
    n_layers = _n_layers(about, [nodes[key] for key in keys])
    numbers = _site_numbers([nodes[key] for key in keys])
    # their viewer shows one logit as the target
    target = max(
        (key for key in keys if nodes[key]["kind"] == "metric"),
        key=lambda key: nodes[key].get("probability", 0.0),
        default=None,
    )
    shares = _cumulative({key: nodes[key]["influence"] for key in keys if "influence" in nodes[key]})
    ids: dict[str, str] = {}
    rows: list[dict[str, Any]] = []
    numbered: list[tuple[int, dict[str, Any]]] = []
    for key in keys:
        data = nodes[key]
        theirs = _kept_row(data)
        if kept and data.get(_THEIRS) == _SUMMED:
            continue
        if kept and theirs is not None and isinstance(theirs[1].get("node_id"), str):
            ids[key] = theirs[1]["node_id"]
            numbered.append((theirs[0], theirs[1] | ({"clerp": data["label"]} if "label" in data else {})))
            continue
        row = _node(key, data, about, tokens, token_ids, n_layers, numbers)
        row["is_target_logit"] = key == target
        ids[key] = row["node_id"]
        if key in shares:
            row["influence"] = shares[key]
        row[_OURS] = {"key": key, **{name: value for name, value in data.items() if name not in FROM_KEY}}
        if data.get("layer") != names.layer_of(data.get("site", "")):
            row[_OURS]["layer"] = data["layer"]
        rows.append(row)
    links: list[dict[str, Any]] = []
    numbered_links: list[tuple[int, dict[str, Any]]] = []
    for source, target, data in circuit.graph.edges(data=True):
        theirs = _kept_row(data)
        if kept and data.get(_THEIRS) == _SUMMED:
            continue
        if kept and theirs is not None:
            numbered_links.append(theirs)
            continue
        weight = data["contribution"] if "contribution" in data else -data["weight"]
        links.append({"source": ids[source], "target": ids[target], "weight": weight, _OURS: dict(data)})
    if kept:
        numbered += _kept_rows(kept.get("nodes"))
        left = {row.get("node_id") for _, row in numbered}
        numbered_links += [
            (at, link) for at, link in _kept_rows(kept.get("links")) if {link.get("source"), link.get("target")} <= left
        ]
        rows = [row for _, row in sorted(numbered, key=lambda pair: pair[0])] + rows
        links = [link for _, link in sorted(numbered_links, key=lambda pair: pair[0])] + links
        document = {**(kept.get("document") or {}), "nodes": rows, "links": links}
        shown_before = kept.get("shown", {"pins": [], "groups": []})
        if shown_before != {"pins": about.get("pins", []), "groups": about.get("groups", [])}:
            document["qParams"] = {**(document.get("qParams") or {}), **_pinned(about, ids)}
        return json.dumps(document, indent=1, allow_nan=False) + "\n"
    known_scan, _, known_set = str(about.get("neuronpedia") or "").partition("/")
    source_set = source_set or known_set
    model = re.sub(r"[^A-Za-z0-9_.-]+", "-", str(about.get("model", {}).get("name") or "").rpartition("/")[2])
    document = {
        "metadata": {
            "slug": slug or _slug(circuit.prompt),
            "scan": scan or known_scan or model or "unknown",
            "transcoder_list": [str(d["source"]) for d in about.get("dictionaries", ()) if d.get("source")],
            "prompt_tokens": tokens or _position_names([nodes[key] for key in keys]),
            "prompt": circuit.prompt,
            "schema_version": 1,
            "info": _info(about, creator, creator_url),
            **({"feature_details": {"neuronpedia_source_set": source_set}} if source_set else {}),
            **_settings(about),
            **({"node_threshold": 1.0} if shares else {}),
        },
        "qParams": {**_pinned(about, ids), "linkType": "both", "clickedId": "", "sg_pos": ""},
        "nodes": rows,
        "links": links,
        _OURS: {"graph": about, "order": list(circuit.graph)},
    }
    return json.dumps(document, indent=1, allow_nan=False) + "\n"


def write_viewer_folder(circuit: Circuit, folder: str | os.PathLike[str], slug: str | None = None) -> Path:
    """Writes a circuit into a folder that circuit-tracer's viewer serves (`circuit-tracer start-server --graph_file_dir
    FOLDER`), beside the graphs that are there, and returns the graph's file.

    Raises:
        InputError: The folder can't be written, its list of graphs is damaged, or the name can't be a file's.
    """
    folder = Path(folder)
    text = as_circuit_tracer(circuit, slug=slug)
    metadata = json.loads(text)["metadata"]
    name = metadata["slug"]
    if not isinstance(name, str) or not name or set(name) & set("/\\:\0") or name.startswith("."):
        raise InputError(f"The name {shown(name)} can't be a file's; give a slug of letters, digits and '-'.")
    listing = folder / "graph-metadata.json"
    graphs: list[Any] = []
    if listing.exists():
        try:
            graphs = json.loads(read_whole(listing, _MAX_BYTES))["graphs"]
            graphs = [graph for graph in graphs if graph["slug"] != name]
            json.dumps(graphs, allow_nan=False)  # NaN can be read, but is not JSON
        except (ValueError, KeyError, TypeError, RecursionError):
            raise InputError(f"The list of graphs {str(listing)!r} is damaged; move it away first.") from None
    path = folder / f"{name}.json"
    write_whole({path: text.encode(), listing: json.dumps({"graphs": [*graphs, metadata]}, allow_nan=False).encode()})
    return path


def is_circuit_tracer(path: str | os.PathLike[str], max_bytes: int = _MAX_BYTES) -> bool:
    """Whether a file looks like circuit-tracer's graph format."""
    try:
        return _looks_right(json.loads(read_whole(Path(path), max_bytes)))
    except (InputError, ValueError, RecursionError):
        return False


def read_circuit_tracer(
    path: str | os.PathLike[str], *, site: str | None = None, max_bytes: int = _MAX_BYTES
) -> Circuit:
    """Reads a graph that circuit-tracer, Neuronpedia or this package wrote; see `from_circuit_tracer`.

    Raises:
        GraphFileError: The file can't be read, is too large, or is not such a graph.
    """
    refuse_pickle(path)
    try:
        text = read_whole(Path(path), max_bytes)
    except InputError as error:
        raise GraphFileError(str(error)) from None
    try:
        return from_circuit_tracer(text, site=site)
    except GraphFileError as error:
        raise GraphFileError(f"{str(path)!r}: {error}") from None


def from_circuit_tracer(text: str | bytes, *, site: str | None = None) -> Circuit:
    """Returns the circuit in circuit-tracer's graph JSON.

    What this package wrote comes back exactly. In a file of circuit-tracer's own, the target logit becomes the metric,
    and a link's weight the edge's `contribution`. Effects are not in such a file; those given here follow from its
    linear graph: `effect` of a node is the metric's change when it is taken away and the change passes along the kept
    edges only, and an edge's `weight` the part that goes through it. Pinned ids and supernodes become pins and groups;
    features of attention dictionaries get sites `blocks.LAYER.hook_attn_out`; biases and nodes of unknown type are added
    up in the bias node. Other logit nodes, and all else that a circuit has no place for, are kept and written again by
    `as_circuit_tracer`. Where an id names a feature and an error node, links
    are the feature's unless a second link between the same ids, or the layers, say otherwise.

    Args:
        text: The file's contents; a stranger's are checked as a whole.
        site: The sites' names, with `{layer}` in them; `blocks.{layer}.hook_mlp_out` by default.

    Raises:
        GraphFileError: It is not such a graph, or what it says can't be a circuit: a link to no node, a cycle, a number
            that is not finite.
    """
    try:
        document = json.loads(text)
    except RecursionError:
        raise GraphFileError("The graph can't be read: its JSON is nested too deep.") from None
    except (ValueError, UnicodeDecodeError) as error:
        raise GraphFileError(f"The graph can't be read: it is not JSON ({str(error).split(';')[0]}).") from None
    try:
        if not _looks_right(document):
            raise InputError("expected an object with 'metadata', 'nodes' and 'links'.")
        parts = cast(dict[str, Any], document)
        if not isinstance(parts["metadata"], dict):
            raise InputError("'metadata' is no object.")
        nodes, links = _objects(parts, "nodes"), _objects(parts, "links")
        ours = parts.get(_OURS)
        if isinstance(ours, dict):
            return Circuit(_ours(ours, nodes, links))
        return Circuit(_theirs(parts, nodes, links, site or "blocks.{layer}.hook_mlp_out"))
    except (InputError, RecursionError, OverflowError) as error:
        raise GraphFileError(f"The graph can't be read: {error}") from None


def _node(
    key: str,
    data: Attributes,
    about: Mapping[str, Any],
    tokens: Sequence[str],
    token_ids: Sequence[int],
    n_layers: int,
    numbers: Mapping[str, int],
) -> dict[str, Any]:
    kind, position = data["kind"], data.get("position")
    at = "all" if position is None else position
    number = numbers.get(data.get("site", ""), 0)
    layer = str(_layer(data))
    probability = 0.0
    label = data.get("label", "")
    if kind == "feature":
        part = data["index"] if number == 0 else f"{data['index']}-{number}"
        node_id = f"{layer}_{part}_{at}"
        # one number for (layer, site, index), as the viewer tells features apart by it alone
        feature = _pairing(_layer(data) + number * (n_layers + 2), data["index"])
        js = f"{layer}_{part}-0"
        label = label or _site_label(data, number)
    elif kind == "error":
        node_id = f"err{'' if number == 0 else f'-{number}'}_{layer}_{at}"  # circuit-tracer's 0_LAYER_AT is a feature's
        feature, js = -1 - number, f"{node_id}-0"
        label = label or f"Err: {data['site']}"
    elif kind == "token":
        token = token_ids[position] if position is not None and position < len(token_ids) else "token"
        node_id, layer = f"E_{token}_{at}", "E"
        feature, js = position or 0, f"E_{token}-{at}"
    elif kind == "bias":
        node_id, feature, layer, js, label = "bias", 0, "E", "bias-0", label or "Bias"
        position = 0
    elif "index" in data:
        probability, feature, layer = float(data.get("probability", 0.0)), data["index"], str(n_layers + 1)
        label = f'Output "{label}" (p={probability:.3f})'
        node_id, js = f"{layer}_{feature}_{at}", f"L_{feature}-{at}"
    else:
        metric = about.get("metric", {})
        ids = metric.get("token_ids") if isinstance(metric.get("token_ids"), dict) else {}
        feature = next((i for i in _listed(ids.get("answer")) if type(i) is int), 0)
        position = max(len(tokens) - 1, 0)
        layer = str(n_layers + 1)
        # the viewer reads the probability out of the label, and stops without one
        shares = {row[0]: row[1] for row in about.get("top_tokens", ()) if isinstance(row, list) and len(row) == 2}
        answers = [text for text in _listed(metric.get("answer")) if isinstance(text, str)]
        probability = float(sum(shares.get(text, 0.0) for text in answers))
        text = metric.get("description") or metric.get("name") or "metric"
        label = f'Output "{text.replace(chr(34), chr(39))}" (p={probability:.3f})'
        node_id, js = f"{layer}_{feature}_{position}", f"L_{feature}-{position}"
    row = {
        "node_id": node_id,
        "feature": feature,
        "layer": layer,
        "ctx_idx": position or 0,
        "feature_type": _KIND[kind],
        "token_prob": probability,
        "is_target_logit": False,
        "run_idx": 0,
        "reverse_ctx_idx": 0,
        "jsNodeId": js,
        "clerp": label,
        "influence": None,
        "activation": data.get("activation"),
    }
    return row


def _looks_right(document: object) -> bool:
    return isinstance(document, dict) and {"metadata", "nodes", "links"} <= document.keys()


def _listed(value: object) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _pinned(about: Mapping[str, Any], ids: Mapping[str, str]) -> dict[str, Any]:
    """Returns pins and groups as the viewer's state has them; nodes that are not there are left out."""
    groups = [(group["name"], [ids[key] for key in group["keys"] if key in ids]) for group in about.get("groups", ())]
    return {
        "pinnedIds": [ids[key] for key in about.get("pins", ()) if key in ids],
        "supernodes": [[name, *members] for name, members in groups if members],
    }


def _info(about: Mapping[str, Any], creator: str | None, creator_url: str | None) -> dict[str, Any]:
    info: dict[str, Any] = {"generator": {"name": "circuitsae", "version": __version__}}
    info |= {"creator_name": creator} if creator else {}
    info |= {"creator_url": creator_url} if creator_url else {}
    sources = (
        str(d.get("source", "")).removeprefix("hf://").split("/")
        for d in about.get("dictionaries", ())
        if str(d.get("source", "")).startswith("hf://")
    )
    urls = dict.fromkeys(f"https://huggingface.co/{'/'.join(parts[:2])}" for parts in sources)
    info |= {"source_urls": list(urls)} if urls else {}
    try:
        created = datetime.datetime.fromisoformat(about["created"])
        info["create_time_ms"] = int(created.timestamp() * 1000)
    except (KeyError, ValueError, OverflowError, OSError):
        pass
    return info


def _settings(about: Mapping[str, Any]) -> dict[str, Any]:
    options = about.get("options", {})
    found: dict[str, Any] = {}
    for part, wanted in _SETTINGS.items():
        values = {
            name: options[ours]
            for name, (ours, kind) in wanted.items()
            if isinstance(options.get(ours), kind) and not isinstance(options[ours], bool)
        }
        own = ("method", "baseline", "linearisation") if part == "generation_settings" else ("prune",)
        values |= {name: about[name] for name in own if isinstance(about.get(name), str)}
        found |= {part: values} if values else {}
    return found


def _kept_row(data: Mapping[str, Any]) -> tuple[int, dict[str, Any]] | None:
    """Returns what a file of circuit-tracer's own had for a node or edge, and its place there."""
    kept = data.get(_THEIRS)
    found = _kept_rows([kept])
    return found[0] if found else None


def _kept_rows(rows: object) -> list[tuple[int, dict[str, Any]]]:
    return [
        (row[0], row[1])
        for row in (cast(list[Any], rows) if isinstance(rows, list) else ())
        if isinstance(row, list) and len(row) == 2 and type(row[0]) is int and isinstance(row[1], dict)
    ]


def _ours(ours: Mapping[str, Any], nodes: list[dict[str, Any]], links: list[dict[str, Any]]) -> Graph:
    """Returns the graph that was written by this package, labels taken from where the viewer's user may edit them."""
    graph: Graph = nx.DiGraph()
    about = ours.get("graph")
    if not isinstance(about, dict):
        raise InputError("'circuitsae.graph' is no object.")
    graph.graph.update(about)
    keys: dict[str, str] = {}
    found: dict[str, Attributes] = {}
    for number, row in enumerate(nodes):
        kept = row.get(_OURS)
        node_id = row.get("node_id")
        if not isinstance(kept, dict) or not isinstance(kept.get("key"), str) or not isinstance(node_id, str):
            raise InputError(f"nodes[{number}] lacks the key that circuitsae gave it.")
        if node_id in keys or kept["key"] in found:
            raise InputError(f"the node {shown(node_id)} is there twice.")
        keys[node_id] = kept["key"]
        found[kept["key"]] = {name: value for name, value in kept.items() if name != "key"}
    order = ours.get("order")
    if isinstance(order, list) and len(order) == len(found) and all(isinstance(key, str) for key in order):
        found = {key: found[key] for key in order if key in found} | found
    for key, data in found.items():
        graph.add_node(key, **{str(name): value for name, value in data.items()})
    for number, link in enumerate(links):
        source, target = (
            keys.get(end) if isinstance(end := link.get(name), str) else None for name in ("source", "target")
        )
        data = link.get(_OURS)
        if source is None or target is None:
            raise InputError(
                f"links[{number}] joins {shown(link.get('source'))} to {shown(link.get('target'))}; there is no such node."
            )
        if not isinstance(data, dict):
            raise InputError(f"links[{number}] lacks what circuitsae wrote of it.")
        if graph.has_edge(source, target):
            raise InputError(f"the link from {shown(source)} to {shown(target)} is there twice.")
        graph.add_edge(source, target, **data)
    return graph


def _theirs(document: dict[str, Any], nodes: list[dict[str, Any]], links: list[dict[str, Any]], site: str) -> Graph:
    """Returns a graph of circuit-tracer's own."""
    metadata = document["metadata"]
    tokens = metadata.get("prompt_tokens")
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        raise InputError("'metadata.prompt_tokens' is no list of texts.")
    by_id: dict[str, list[str | None]] = {}
    found: dict[str, Attributes] = {}
    others: list[list[Any]] = []
    logits = [row for row in nodes if row.get("feature_type") == "logit"]
    target = next((row for row in logits if row.get("is_target_logit") is True), logits[0] if logits else None)
    if target is None:
        raise InputError("there is no logit node, so nothing is explained.")
    for number, row in enumerate(nodes):
        node_id = row.get("node_id")
        if not isinstance(node_id, str):
            raise InputError(f"nodes[{number}].node_id is {shown(node_id)}; expected text.")
        if row is target:
            key, data = names.METRIC, {}
        elif row.get("feature_type") == "logit":
            others.append([number, row])
            by_id.setdefault(node_id, []).append(None)
            continue
        else:
            key, data = _their_node(row, f"nodes[{number}]", site, tokens)
        if key == names.BIAS:
            found[key] = {_THEIRS: _SUMMED}
            others.append([number, row])
            by_id.setdefault(node_id, []).append(key)
            continue
        if key in found:
            raise InputError(f"nodes[{number}] is {key}, which is there twice.")
        by_id.setdefault(node_id, []).append(key)
        found[key] = data | {_THEIRS: [number, row]}
    graph: Graph = nx.DiGraph()
    for key in sorted(found, key=names.sort_key):
        graph.add_node(key, **found[key])
    left: list[list[Any]] = []
    seen: set[tuple[str, str]] = set()
    for number, link in enumerate(links):
        ends = []
        for name in ("source", "target"):
            end = link.get(name)
            if not isinstance(end, str) or end not in by_id:
                raise InputError(f"links[{number}].{name} is {shown(end)}; there is no such node.")
            ends.append(by_id[end])
        weight = link.get("weight")
        if not is_number(weight):
            raise InputError(f"links[{number}].weight is {shown(weight)}; expected a finite number.")
        pair = _pair(ends[0], ends[1], seen)
        if pair is None:
            left.append([number, link])
            continue
        if pair[0] == names.BIAS:
            so_far = graph.edges[pair]["contribution"] if graph.has_edge(*pair) else 0.0
            graph.add_edge(*pair, contribution=so_far + float(weight), weight=0.0, **{_THEIRS: _SUMMED})
            left.append([number, link])
            continue
        if pair in seen:
            raise InputError(f"links[{number}] joins {shown(pair[0])} to {shown(pair[1])} a second time.")
        seen.add(pair)
        graph.add_edge(*pair, contribution=float(weight), weight=0.0, **{_THEIRS: [number, link]})
    _effects(graph)
    prompt = metadata.get("prompt")
    shown_there = _shown_there(document.get("qParams"), by_id)
    graph.graph.update({name: value for name, value in shown_there.items() if value})
    graph.graph.update(
        tokens=list(tokens),
        prompt=prompt if isinstance(prompt, str) else "".join(tokens),
        metric={"name": "logit", "description": _logit_text(target)},
        method="circuit-tracer",
        circuit_tracer={
            "document": {name: value for name, value in document.items() if name not in ("nodes", "links")},
            "nodes": others,
            "links": left,
            "shown": shown_there,
        },
    )
    scan = metadata.get("scan")
    if isinstance(scan, str):
        graph.graph["model"] = {"name": scan}
    return graph


def _shown_there(state: object, by_id: Mapping[str, list[str | None]]) -> dict[str, list[Any]]:
    """Returns the pins and groups in the viewer's state; ids of nodes that are not there are passed over."""
    given = cast(dict[str, Any], state) if isinstance(state, dict) else {}

    def keys(ids: object) -> list[str]:
        known = [by_id.get(i, [None])[0] for i in (ids if isinstance(ids, list) else ()) if isinstance(i, str)]
        return list(dict.fromkeys(key for key in known if key is not None))

    supernodes = [row for row in _listed(given.get("supernodes")) if isinstance(row, list) and row]
    groups = [{"name": str(row[0]), "keys": keys(row[1:])} for row in supernodes]
    return {"pins": keys(given.get("pinnedIds")), "groups": [group for group in groups if group["keys"]]}


def _their_node(row: dict[str, Any], where: str, site: str, tokens: Sequence[str]) -> tuple[str, Attributes]:
    kind, position = str(row.get("feature_type")), row.get("ctx_idx")
    if type(position) is not int or not 0 <= position < max(len(tokens), 1):
        raise InputError(f"{where}.ctx_idx is {shown(position)}; the prompt has {len(tokens)} tokens.")
    data: Attributes = {}
    if tokens:
        data["token"] = tokens[position]
    for name in ("activation", "influence"):
        value = row.get(name)
        if is_number(value):
            data[name] = value
    if isinstance(row.get("clerp"), str) and row["clerp"]:
        data["label"] = row["clerp"]
    if kind == "embedding":
        return names.token(position), data
    match = _FEATURE_ID.fullmatch(str(row.get("node_id")))
    if kind in ("bias", "unknown") or (match is None and kind not in _KNOWN and "error" not in kind):
        return names.BIAS, {}
    layer = row.get("layer")
    if not str(layer).isascii() or not str(layer).isdigit() or len(str(layer)) > 6:
        raise InputError(f"{where}.layer is {shown(layer)}; expected a layer's number.")
    try:
        place = (_ATTENTION_SITE if kind.startswith("lorsa") else site).format(layer=int(str(layer)))
    except (KeyError, IndexError, ValueError):
        raise InputError(f"The site {site!r} can't be filled in; expected one place, {{layer}}.") from None
    if "error" in kind:
        return names.error(place, position), data
    if match is None:
        raise InputError(f"{where}.node_id is {shown(row.get('node_id'))}; expected LAYER_FEATURE_POSITION.")
    return names.feature(place, int(match[1]), position), data


def _pair(sources: list[str | None], targets: list[str | None], seen: set[tuple[str, str]]) -> tuple[str, str] | None:
    """Returns which nodes a link joins, where an id may name two; `None` where it goes to another logit."""
    # nothing acts on an error node, so that a target which is two nodes is the feature
    target = next((key for key in targets if key is not None and names.parse(key).kind not in ("error", "bias")), None)
    if target is None:
        return None
    candidates = [key for key in sources if key is not None]
    if not candidates:
        return None
    candidates.sort(key=lambda key: names.parse(key).kind == "error")
    at = names.layer_of(names.parse(target).site or "")
    for key in candidates:
        layer = names.layer_of(names.parse(key).site or "")
        below = at is None or layer is None or layer < at
        if (key, target) not in seen and (below or len(candidates) == 1):
            return key, target
    return candidates[0], target


def _effects(graph: Graph) -> None:
    """Fills in `weight` and `effect` from contributions: the metric's slope by each target, downwards."""
    if not nx.is_directed_acyclic_graph(graph):
        return  # Circuit says where the cycle is
    slopes: dict[str, float] = {names.METRIC: 1.0}
    for key in reversed(list(nx.topological_sort(graph))):
        out = sum(slopes[target] * data["contribution"] for _, target, data in graph.out_edges(key, data=True))
        for _, target, data in graph.out_edges(key, data=True):
            data["weight"] = -slopes[target] * data["contribution"]
        if key == names.METRIC:
            continue
        value = graph.nodes[key].get("activation")
        if not value:  # an activation that the file does not give is what its in-edges add up to
            value = sum(data["contribution"] for _, _, data in graph.in_edges(key, data=True))
        slope = out / value if value else 0.0
        slopes[key] = slope if slope - slope == 0 else 0.0
        if graph.out_degree(key):
            graph.nodes[key]["effect"] = -out


def _objects(document: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    rows = document[name]
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise InputError(f"{name!r} is no list of objects.")
    return rows


def _n_layers(about: Mapping[str, Any], nodes: Iterable[Attributes]) -> int:
    named = about.get("model", {}).get("n_layers")
    highest = max((_layer(data) for data in nodes), default=0) + 1
    return max(named, highest) if type(named) is int and 0 <= named < 10_000 else highest


def _layer(data: Attributes) -> int:
    return max(int(data.get("layer", 0)), 0)


def _site_numbers(nodes: Iterable[Attributes]) -> dict[str, int]:
    """Numbers the sites of each layer, from 0, in the order of their names."""
    layers: dict[int, set[str]] = {}
    for data in nodes:
        if "site" in data:
            layers.setdefault(_layer(data), set()).add(data["site"])
    return {site: number for sites in layers.values() for number, site in enumerate(sorted(sites))}


def _site_label(data: Attributes, number: int) -> str:
    return f"{data['site']}/{data['index']}" if number else ""


def _cumulative(influence: Mapping[str, float]) -> dict[str, float]:
    """Returns, per node, the share of the whole that it and all stronger ones hold: what the viewer's slider cuts by."""
    total = sum(abs(value) for value in influence.values())
    if not 0 < total < float("inf"):
        return {}
    shares, so_far = {}, 0.0
    for key in sorted(influence, key=lambda key: (-abs(influence[key]), names.sort_key(key))):
        so_far += abs(influence[key]) / total
        shares[key] = min(so_far, 1.0)
    return shares


def _position_names(nodes: Sequence[Attributes]) -> list[str]:
    length = max((data.get("position", -1) for data in nodes), default=-1) + 1
    found = [""] * min(length, 4096)
    for data in nodes:
        if "token" in data and data.get("position", len(found)) < len(found):
            found[data["position"]] = data["token"]
    return found


def _logit_text(row: Mapping[str, Any]) -> str:
    clerp = row.get("clerp")
    token = re.match(r'[^"]*"(.*)"(?: \(p=|\Z)', clerp, re.DOTALL) if isinstance(clerp, str) else None
    return f"logit of {token[1]!r}" if token else "logit"


def _slug(prompt: str) -> str:
    words = "".join(c if c.isascii() and c.isalnum() else " " for c in prompt.lower()).split()
    return "-".join(words)[:60].strip("-") or "circuit"


def _pairing(x: int, y: int) -> int:
    """Cantor's pairing, by which circuit-tracer makes one number of a layer and an index."""
    return (x + y) * (x + y + 1) // 2 + y
