"""`Circuit`: the traced graph, with its tables, paths, files and exports. Opening one needs no torch."""

import hashlib
import heapq
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

import networkx as nx

from circuitsae import names, registry
from circuitsae.errors import GraphFileError, InputError, NodeError, UnknownNameError, near_matches
from circuitsae.extras import wanted
from circuitsae.files import read_whole, write_whole
from circuitsae.graph import labels as label_files
from circuitsae.graph import prune as pruners
from circuitsae.graph import reports, schema
from circuitsae.graph.influence import Scores, graph_scores
from circuitsae.graph.schema import Attributes, Graph
from circuitsae.graph.table import table_of

if TYPE_CHECKING:
    from pandas import DataFrame  # pyright: ignore[reportMissingTypeStubs]

_MAX_BYTES = 512 * 2**20


class GraphPath(NamedTuple):
    """A way through a circuit.

    `share` is the product, over its edges u -> v, of |weight(u -> v)| / sum of |weight| over all of v's kept in-edges:
    the part of the target's input that comes this way. `sign` is +1 where the first node pushes the last one up this
    way, -1 where down: the product of the contributions' signs.
    """

    nodes: tuple[str, ...]
    share: float
    sign: int


class Circuit:
    """A circuit: a directed acyclic graph of features, error nodes, tokens, a bias node and the metric.

    `graph` is a plain `networkx.DiGraph`, held to the contract of docs/format.md when the circuit is made and when it
    is saved: keys parse, numbers are finite, there is no cycle. What follows from a node's key (`kind`, `site`,
    `layer`, `index`, `position`) is filled in where it is missing, so that a graph of keys and weights is enough.

    Raises:
        InputError: The graph breaks the contract; the message names the node, edge or attribute.

    >>> graph = nx.DiGraph()
    >>> graph.add_edge("token@0", "blocks.0.hook_mlp_out/17@0", contribution=1.5, weight=-0.5)
    >>> graph.add_edge("blocks.0.hook_mlp_out/17@0", "metric", contribution=0.75, weight=-0.75)
    >>> circuit = Circuit(graph)
    >>> circuit["blocks.0.hook_mlp_out/17@0"]["layer"]
    0
    >>> circuit.paths("token@0", "metric")
    [GraphPath(nodes=('token@0', 'blocks.0.hook_mlp_out/17@0', 'metric'), share=1.0, sign=1)]
    """

    graph: Graph

    def __init__(self, graph: Graph) -> None:
        schema.normalise(graph)
        self.graph = graph

    # --- reading ---

    def __len__(self) -> int:
        return len(self.graph)

    def __contains__(self, key: object) -> bool:
        return key in self.graph

    def __iter__(self) -> Iterator[str]:
        return iter(self.graph)

    def __getitem__(self, key: str) -> Attributes:
        """Returns a node's attributes.

        Raises:
            NodeError: The circuit has no such node; the message gives near matches.
        """
        self._require(key)
        return self.graph.nodes[key]

    def __eq__(self, other: object) -> bool:
        """Whether nodes, edges, and all attributes agree exactly; their order does not matter."""
        if not isinstance(other, Circuit):
            return NotImplemented
        return (
            self.graph.graph == other.graph.graph
            and {key: data for key, data in self.graph.nodes(data=True)}
            == {key: data for key, data in other.graph.nodes(data=True)}
            and {edge[:2]: edge[2] for edge in self.graph.edges(data=True)}
            == {edge[:2]: edge[2] for edge in other.graph.edges(data=True)}
        )

    __hash__ = None  # type: ignore[assignment]

    @property
    def features(self) -> list[str]:
        """The feature nodes' keys, as the model computes them."""
        return self._of_kind("feature")

    @property
    def errors(self) -> list[str]:
        """The error nodes' keys, as the model computes them."""
        return self._of_kind("error")

    @property
    def tokens(self) -> list[str]:
        """The token nodes' keys, in the prompt's order. Their text is in `circuit.graph.graph["tokens"]`."""
        return self._of_kind("token")

    @property
    def prompt(self) -> str:
        """The prompt as text; its tokens joined where it was given as token ids."""
        prompt = self.graph.graph.get("prompt")
        return prompt if isinstance(prompt, str) else "".join(self.graph.graph.get("tokens", []))

    @property
    def fingerprint(self) -> str:
        """sha256 of the saved form, in hexadecimal: equal for equal circuits of equal order."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def strongest(self, n: int = 10, kind: names.Kind | None = None) -> list[str]:
        """Returns the keys of the `n` nodes of largest |effect|, largest first; nodes without an effect are left out.

        A measured effect counts where there is one, a predicted one elsewhere.

        Args:
            n: How many at most.
            kind: `"feature"`, `"error"` or `"token"`: only those. Features and error nodes by default.
        """
        kinds = ("feature", "error") if kind is None else (kind,)
        found = [
            (abs(effect), key)
            for key, data in self.graph.nodes(data=True)
            if data["kind"] in kinds and (effect := schema.known_effect(data)) is not None
        ]
        return [key for _, key in sorted(found, key=lambda item: (-item[0], names.sort_key(item[1])))[: max(n, 0)]]

    def strongest_edges(self, n: int = 10) -> list[tuple[str, str]]:
        """Returns the `n` edges of largest |weight|, largest first, as (source, target)."""
        return strongest_of(self.graph.edges(data=True), n)

    def scores(self) -> Scores | None:
        """Returns how much of what acts goes through nodes that can be read: circuit-tracer's replacement and completeness.

        `None` where the graph has no edges or no metric node.
        """
        table, _ = table_of(self.graph)
        return graph_scores(table) if len(table) and table.start.any() else None

    def nodes_table(self) -> list[dict[str, Any]]:
        """Returns a row per node (`node` and its attributes), largest |effect| first, those without an effect last."""
        rows: list[dict[str, Any]] = [{"node": key, **data} for key, data in self.graph.nodes(data=True)]
        effects = {row["node"]: schema.known_effect(row) for row in rows}
        rows.sort(
            key=lambda row: (1.0 if (e := effects[row["node"]]) is None else -abs(e), names.sort_key(row["node"]))
        )
        return rows

    def heads(self) -> list[dict[str, Any]]:
        """Returns a row for each attention head and pair of positions: what it carries along the edges that say so.

        Each has `layer`, `head`, `source` and `target` (positions), `edges` (how many), `weight` (their weights' part that
        passes this head and no other, in units of the metric, summed) and `carried` (the same of the absolute weights),
        largest `carried` first. Edges have heads where the trace was asked for them (`heads=K`): its K strongest.
        """
        rows: dict[tuple[int, int, int, int], dict[str, Any]] = {}
        for source, target, data in self.graph.edges(data=True):
            for layer, head, contribution in data.get("heads", ()):
                p, q = (int(self.graph.nodes[end].get("position", -1)) for end in (source, target))
                place = {"layer": layer, "head": head, "source": p, "target": q}
                row = rows.setdefault((layer, head, p, q), {**place, "edges": 0, "weight": 0.0, "carried": 0.0})
                part = data["weight"] * contribution / data["contribution"] if data.get("contribution") else 0.0
                row["edges"] += 1
                row["weight"] += part
                row["carried"] += abs(part)
        return sorted(rows.values(), key=lambda row: (-row["carried"], *list(row.values())[:4]))

    def edges_table(self) -> list[dict[str, Any]]:
        """Returns a row per edge (`source`, `target` and its attributes), largest |weight| first."""
        rows: list[dict[str, Any]] = [
            {"source": source, "target": target, **data} for source, target, data in self.graph.edges(data=True)
        ]
        rows.sort(key=lambda row: (-abs(row["weight"]), names.sort_key(row["source"]), names.sort_key(row["target"])))
        return rows

    def to_dataframe(self, what: Literal["nodes", "edges"] = "nodes") -> "DataFrame":
        """Returns the table of nodes or of edges as a pandas DataFrame; what is not known is missing (NaN).

        Raises:
            MissingExtraError: pandas is not installed.
            UnknownNameError: `what` is neither "nodes" nor "edges".
        """
        tables = {"nodes": self.nodes_table, "edges": self.edges_table}
        if what not in tables:
            raise UnknownNameError("table", what, tables)
        pandas = wanted("pandas", "Circuit.to_dataframe")
        columns = ["node", "kind", "site", "index", "position"] if what == "nodes" else ["source", "target"]
        rows = tables[what]()
        columns += [name for name in {name: None for row in rows for name in row} if name not in columns]
        return pandas.DataFrame(rows, columns=columns)

    # --- parts and ways ---

    def subgraph(self, keys: Iterable[str]) -> "Circuit":
        """Returns the circuit of some of the nodes, and the edges among them, as a copy of its own.

        Its `kept` counts the nodes and edges it has; the shares and scores of the whole circuit say nothing about a part
        and are left out.

        Raises:
            NodeError: The circuit lacks one of the nodes.
        """
        wanted = list(keys)
        for key in wanted:
            self._require(key)
        part = cast(Graph, nx.DiGraph())
        # networkx' subgraph orders by a set; the circuit's own order is kept instead.
        inside = set(wanted)
        part.add_nodes_from((key, dict(data)) for key, data in self.graph.nodes(data=True) if key in inside)
        part.add_edges_from(
            (source, target, dict(data))
            for source, target, data in self.graph.edges(data=True)
            if source in inside and target in inside
        )
        part.graph.update(deepcopy(self.graph.graph))
        part.graph.pop("faithfulness", None)
        if "pins" in part.graph:
            part.graph["pins"] = [key for key in part.graph["pins"] if key in inside]
        for group in part.graph.get("groups", ()):
            group["keys"] = [key for key in group["keys"] if key in inside]
        kept = part.graph.get("kept")
        if kept is not None:
            shares = {name for name in kept if name.endswith(("_share", "_score"))}
            part.graph["kept"] = {name: value for name, value in kept.items() if name not in shares}
            part.graph["kept"].update(nodes=part.number_of_nodes(), edges=part.number_of_edges())
        return Circuit(part)

    def paths(self, source: str, target: str = names.METRIC, k: int = 5) -> list[GraphPath]:
        """Returns the `k` strongest ways from one node to another, largest `share` first; see `GraphPath`.

        Exact: one sweep over the graph in topological order keeps the k best ways into every node.
        Cost: O(edges * k log k).

        Raises:
            NodeError: The circuit lacks one of the two nodes.
        """
        self._require(source)
        self._require(target)
        if k < 1:
            raise InputError(f"k is {k}; expected at least one path.")
        graph = self.graph
        after = nx.descendants(graph, source)  # pyright: ignore[reportUnknownMemberType]
        before = nx.ancestors(graph, target)  # pyright: ignore[reportUnknownMemberType]
        between = after & (before | {target})
        best: dict[str, list[GraphPath]] = {source: [GraphPath((source,), 1.0, 1)]}
        for node in nx.topological_sort(graph):
            if node not in between:
                continue
            edges = [(origin, data) for origin, _, data in graph.in_edges(node, data=True)]
            total = math.fsum(abs(data["weight"]) for _, data in edges)
            if total == 0:
                continue
            ways = [
                GraphPath((*way.nodes, node), way.share * abs(data["weight"]) / total, way.sign * _sign(data))
                for origin, data in edges
                if data["weight"] != 0
                for way in best.get(origin, [])
            ]
            best[node] = sorted(ways, key=lambda way: (-way.share, [names.sort_key(n) for n in way.nodes]))[:k]
        return best.get(target, []) if source != target else best[source]

    def pruned(
        self,
        prune: str = "influence",
        *,
        max_nodes: int | None = None,
        node_threshold: float | None = None,
        edge_threshold: float | None = None,
        merge_pruned: bool = False,
    ) -> "Circuit":
        """Returns a smaller copy: what a pruner keeps of this circuit. Tokens, the bias and metric nodes stay.

        Args:
            prune: Name of a pruner plugin: `"influence"`, `"top-k"`, `"threshold"`.
            max_nodes: How many features to keep at most, by |effect|.
            node_threshold, edge_threshold: The pruner's: shares of influence for `"influence"`, smallest |effect| and
                |weight| for the others.
            merge_pruned: Whether what dropped features did is added to the error nodes at their places, where the circuit
                has those.

        Raises:
            UnknownNameError: There is no such pruner.
            InputError: A threshold out of range.
        """
        copy = self.subgraph(self.graph)
        copy.graph.graph.update(deepcopy(self.graph.graph))
        pruners.prune_graph(copy.graph, prune, max_nodes, node_threshold, edge_threshold, merge_pruned)
        return Circuit(copy.graph)

    def with_labels(self, labels: Mapping[str, str] | str | os.PathLike[str]) -> "Circuit":
        """Returns a copy whose features carry labels.

        Args:
            labels: Feature key to text, without a position (`"blocks.3.hook_mlp_out/17"`: wherever it is active) or
                with one; or a CSV, JSON or JSONL file of such (`circuitsae.graph.labels.read_labels`).

        Raises:
            InputError: The file can't be read or holds no labels.
        """
        if not isinstance(labels, Mapping):
            labels = label_files.read_labels(labels)
        copy = self.subgraph(self.graph)
        copy.graph.graph.update(self.graph.graph)
        label_files.attach_labels(copy.graph, labels)
        return copy

    # --- files ---

    def to_json(self) -> str:
        """Returns the circuit in the format `circuitsae/1`: JSON in ASCII, one column to a line, floats exact.

        Raises:
            InputError: The graph has been changed since and breaks the contract.
        """
        schema.normalise(self.graph)
        document = schema.to_document(self.graph)

        def line(value: Any) -> str:
            return json.dumps(value, separators=(",", ":"), allow_nan=False)

        def block(columns: dict[str, list[Any]]) -> str:
            return "{\n" + ",\n".join(f"{line(name)}:{line(column)}" for name, column in columns.items()) + "\n}"

        parts = [
            f'"schema":{line(document["schema"])}',
            f'"graph":{line(document["graph"])}',
            f'"nodes":{block(document["nodes"])}',
            f'"edges":{block(document["edges"])}',
        ]
        return "{" + ",\n".join(parts) + "}\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> "Circuit":
        """Returns the circuit that [to_json][circuitsae.graph.circuit.Circuit.to_json] wrote. The text may be a
        stranger's: it is only ever data, and is checked as a whole.

        Raises:
            GraphFileError: The text is not JSON, not of this schema, of a newer one, or breaks the contract.
        """
        try:
            document = json.loads(text)
        except RecursionError:
            raise GraphFileError("The circuit can't be read: its JSON is nested too deep.") from None
        except (ValueError, UnicodeDecodeError) as error:
            reason = str(error).split(";")[0].removesuffix(".")
            raise GraphFileError(f"The circuit can't be read: it is not JSON ({reason}).") from None
        try:
            circuit = cls.__new__(cls)
            circuit.graph = schema.from_document(document)
        except (InputError, RecursionError) as error:
            raise GraphFileError(f"The circuit can't be read: {error}") from None
        return circuit

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the circuit in its own format, whole or not at all; `load` gives it back exactly.

        Raises:
            InputError: The path can't be written, or the graph breaks the contract.
        """
        write_whole({Path(path): self.to_json().encode("ascii")})

    @classmethod
    def load(cls, path: str | os.PathLike[str], max_bytes: int = _MAX_BYTES) -> "Circuit":
        """Reads a saved circuit, checking all of it; nothing in the file is ever run.

        Args:
            path: A file that `save` (or `export` to JSON) wrote.
            max_bytes: Larger files are refused.

        Raises:
            GraphFileError: The file can't be read, is too large, not JSON, not of this schema, of a newer one, or
                breaks the contract (cycles, numbers that are not finite, unknown kinds, edges to nowhere).
        """
        path = Path(path)
        refuse_pickle(path)
        try:
            return cls.from_json(read_whole(path, max_bytes))
        except GraphFileError as error:
            raise GraphFileError(f"{str(path)!r}: {error}") from None
        except InputError as error:
            raise GraphFileError(str(error)) from None

    def export(self, path: str | os.PathLike[str], format: str | None = None, **options: Any) -> tuple[Path, ...]:
        """Writes the circuit in an exporter plugin's format and returns the files written, whole or not at all.

        Args:
            path: Where to. An exporter of several files puts its own endings in place of the suffix
                (`c.csv`: `c.nodes.csv` and `c.edges.csv`).
            format: An exporter's name; by the path's suffix when left out.
            **options: Passed to the exporter.

        Raises:
            UnknownNameError: No exporter has that name or suffix.
            InputError: The path can't be written.
        """
        path = Path(path)
        plugin = exporter_for(path.name) if format is None else registry.find("exporters", format)
        schema.normalise(self.graph)
        content = plugin.load()(self, **options)
        if isinstance(content, Mapping):
            suffix = str(plugin.extra.get("suffix", ""))
            stem = path.name[: -len(suffix)] if suffix and path.name.lower().endswith(suffix) else path.name
            parts = cast(Mapping[str, str | bytes], content)
            files = {path.with_name(stem + ending): _as_bytes(part) for ending, part in parts.items()}
        else:
            files = {path: _as_bytes(cast(str | bytes, content))}
        write_whole(files)
        return tuple(files)

    # --- showing ---

    def report(self, n: int = 10) -> str:
        """Returns a page of text: what was asked, what was kept, the `n` strongest nodes and edges."""
        return reports.as_text(self, n)

    def show(self, height: int = 800) -> reports.Shown:
        """Returns the interactive drawing for a notebook's cell: the exported page, in a frame that can't reach the
        notebook. The notebook file then holds the page (about 100 KB and 40 bytes an edge).

        Args:
            height: Of the frame, in pixels.
        """
        return reports.Shown(registry.get("exporters", "html")(self), height)

    def __str__(self) -> str:
        return self.report()

    def __repr__(self) -> str:
        return f"<{reports.summary(self)[0]}: {reports.counts(self)}, {self.graph.number_of_edges():,} edges>"

    def _repr_html_(self) -> str:
        return reports.as_html(self)

    def _of_kind(self, kind: str) -> list[str]:
        return sorted((key for key, data in self.graph.nodes(data=True) if data["kind"] == kind), key=names.sort_key)

    def _require(self, key: str) -> None:
        if key not in self.graph:
            near = near_matches(str(key)[:200], list(self.graph))
            hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"it has {len(self.graph):,} others."
            raise NodeError(f"The circuit has no node {schema.shown(key)}; {hint}")


def strongest_of(edges: Iterable[tuple[str, str, Attributes]], n: int) -> list[tuple[str, str]]:
    """Returns the `n` edges of largest |weight| among (source, target, attributes), largest first, as (source, target)."""
    found = ((abs(float(data["weight"])), source, target) for source, target, data in edges)
    first = heapq.nsmallest(n, found, lambda item: (-item[0], names.sort_key(item[1]), names.sort_key(item[2])))
    return [(source, target) for _, source, target in first]


def refuse_pickle(path: str | os.PathLike[str]) -> None:
    """Refuses a file of torch's, such as the `graph.pt` that circuit-tracer saves: opening a pickle can run code.

    Raises:
        GraphFileError: The file is one, by its name or its first bytes; the message says what to do instead.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(4)
    except (OSError, ValueError):
        return  # reading it says why
    if Path(path).suffix.lower() in (".pt", ".pth", ".pkl") or head == b"PK\x03\x04" or head[:1] == b"\x80":
        raise GraphFileError(
            f"{os.fspath(path)!r} is a pickle, which can run code when it is opened, so it is not read. circuit-tracer "
            "writes its graph as JSON by create_graph_files('graph.pt', slug='NAME', output_path='FOLDER') of "
            "circuit_tracer.utils; FOLDER/NAME.json is read here."
        )


def exporter_for(name: str) -> registry.Plugin:
    """Returns the exporter whose suffix ends the file's name; the longest such suffix wins.

    Raises:
        InputError: No exporter has such a suffix; the message lists those there are.
    """
    by_suffix = {str(p.extra["suffix"]): p for p in registry.plugins("exporters") if p.extra.get("suffix")}
    fitting = [suffix for suffix in by_suffix if name.lower().endswith(suffix)]
    if not fitting:
        suffixes = ", ".join(sorted(by_suffix))
        raise InputError(f"The name {name!r} tells no format; end it in one of {suffixes}, or name the format.")
    return by_suffix[max(fitting, key=len)]


def _as_bytes(content: str | bytes) -> bytes:
    return content if isinstance(content, bytes) else content.encode("utf-8", "backslashreplace")


def _sign(edge: Mapping[str, Any]) -> int:
    """Returns the sign of an edge's contribution; +1 where it is not known."""
    return -1 if edge.get("contribution", 1.0) < 0 else 1
