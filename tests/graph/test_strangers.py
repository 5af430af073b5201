"""Circuits and files as hypothesis makes them: whatever is valid comes back exactly, whatever is not is refused in words."""

import json
import tempfile
from pathlib import Path
from typing import Any

import networkx as nx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from circuitsae import names
from circuitsae.errors import GraphFileError, InputError
from circuitsae.export.formats import as_csv, as_dot, as_gexf, as_graphml, as_html, as_node_link
from circuitsae.export.view import view_payload
from circuitsae.graph.circuit import Circuit
from circuitsae.graph.labels import read_labels

# Every character, half surrogate pairs, and what ends strings, elements, comments and lines somewhere.
TEXTS = st.one_of(
    st.text(st.characters(exclude_categories=[]), max_size=20),
    st.sampled_from(
        ["</script>", "<!--", "]]>", "${x}", "&amp;", '"', "\\", "\r\n", "\u2028", "\x00", "=1+1", "\ud800"]
    ),
)
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | FLOATS | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)
SITES = ("blocks.0.hook_mlp_out", "blocks.0.hook_resid_post", "blocks.10.hook_attn_out", "hook_embed")


@st.composite
def circuits(draw: st.DrawFn) -> Circuit:
    """A valid circuit: edges run upwards in the model's order, numbers are any finite ones, texts are anything."""
    tokens = draw(st.lists(TEXTS, min_size=1, max_size=5))
    positions = st.integers(0, len(tokens) - 1)
    features = st.builds(names.feature, st.sampled_from(SITES), st.integers(0, 2**53 - 1), positions)
    keys = draw(st.lists(features | st.builds(names.error, st.sampled_from(SITES), positions), unique=True, max_size=8))
    keys = sorted({*keys, names.token(draw(positions)), names.METRIC}, key=names.sort_key)
    graph: nx.DiGraph[str] = nx.DiGraph(tokens=tokens, prompt=draw(TEXTS), notes=draw(PLAIN))
    for key in keys:
        known = draw(st.dictionaries(st.sampled_from(["activation", "effect", "total"]), FLOATS, max_size=3))
        graph.add_node(key, **known, **draw(st.fixed_dictionaries({}, optional={"label": TEXTS, "token": TEXTS})))
    above = {key: keys[row + 1 :] for row, key in enumerate(keys[:-1])}
    for source in above:
        for target in draw(st.lists(st.sampled_from(above[source]), unique=True, max_size=3)):
            if not target.startswith("token"):
                graph.add_edge(source, target, weight=draw(FLOATS), contribution=draw(FLOATS))
    return Circuit(graph)


@given(circuits())
def test_every_circuit_comes_back_exactly(circuit: Circuit) -> None:
    text = circuit.to_json()
    again = Circuit.from_json(text)
    assert again == circuit and again.to_json() == text and text.isascii()
    assert list(again.graph.edges) == list(circuit.graph.edges)


@given(circuits())
def test_every_circuit_goes_into_every_format_and_other_programs_read_it(circuit: Circuit) -> None:
    graph = circuit.graph
    with tempfile.TemporaryDirectory() as folder:
        for name, read in [("c.graphml", nx.read_graphml), ("c.gexf", nx.read_gexf)]:
            (path,) = circuit.export(Path(folder) / name)
            found = read(path)
            assert set(found) == set(graph) and set(found.edges) == set(graph.edges)
            for edge in graph.edges:
                assert found.edges[edge]["weight"] == graph.edges[edge]["weight"]
    read_back = nx.node_link_graph(json.loads(as_node_link(circuit)), edges="edges")
    assert nx.utils.graphs_equal(read_back, graph)
    assert as_dot(circuit).count(" -> ") == graph.number_of_edges()
    assert set(as_csv(circuit)) == {".nodes.csv", ".edges.csv"}
    page = as_html(circuit)
    assert page.count("<script") == 2 and page.count("</script>") == 2 and page.isprintable() is False
    assert all(isinstance(part, bytes) for part in (as_gexf(circuit), as_graphml(circuit)))


@given(circuits())
def test_the_drawing_is_given_every_node_edge_and_number(circuit: Circuit) -> None:
    payload = json.loads(json.dumps(view_payload(circuit)))
    nodes, edges = payload["nodes"], payload["edges"]
    assert len(nodes["kind"]) == len(circuit) and len(edges["weight"]) == circuit.graph.number_of_edges()
    keys = sorted(circuit.graph, key=names.sort_key)
    given_edges = [
        (keys[source], keys[target], weight)
        for source, target, weight in zip(edges["source"], edges["target"], edges["weight"], strict=True)
    ]
    for source, target, weight in given_edges:
        assert weight == pytest.approx(circuit.graph.edges[source, target]["weight"], rel=1e-4, abs=1e-300)
    for row, key in enumerate(keys):
        site = payload["sites"][nodes["site"][row]]["id"] if nodes["site"][row] >= 0 else None
        position = nodes["position"][row]
        rebuilt = names.NodeKey(
            payload["kinds"][nodes["kind"][row]],
            site,
            nodes["index"][row] if nodes["index"][row] >= 0 else None,
            position if position >= 0 else None,
        )
        assert str(rebuilt) == key


@given(st.binary(max_size=200) | st.text(max_size=200) | PLAIN.map(json.dumps))
def test_any_text_is_a_circuit_or_refused(text: str | bytes) -> None:
    _circuit_or_sentence(text)


@settings(suppress_health_check=[HealthCheck.filter_too_much], max_examples=200)
@given(circuits(), st.data())
def test_a_damaged_circuit_is_a_circuit_or_refused(circuit: Circuit, data: st.DataObject) -> None:
    document = json.loads(circuit.to_json())
    places = [[part] for part in document] + [
        [part, column] for part in ("graph", "nodes", "edges") for column in document[part]
    ]
    places += [
        [*place, 0]
        for place in places
        if len(place) == 2 and isinstance(_at(document, place), list) and _at(document, place)
    ]
    place = data.draw(st.sampled_from(places))
    holder: Any = _at(document, place[:-1])
    if data.draw(st.booleans()):
        del holder[place[-1]]
    else:
        holder[place[-1]] = data.draw(PLAIN)
    _circuit_or_sentence(json.dumps(document))


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"schema":' * 50_000,
        '{"schema":"circuitsae/1","graph":{"a":'
        + "[" * 500
        + "]" * 500
        + '},"nodes":{"key":[]},"edges":{"source":[],"target":[]}}',
        '{"schema":"circuitsae/' + "9" * 5000 + '"}',
        '{"schema":"circuitsae/1","graph":{"metric_value":' + "9" * 5000 + "}}",
        '{"schema":"circuitsae/1","graph":{"metric_value":1e999},"nodes":{"key":[]},"edges":{"source":[],"target":[]}}',
        '{"schema":"circuitsae/1","graph":{},"nodes":{"key":["'
        + "x" * 10**6
        + '"]},"edges":{"source":[],"target":[]}}',
        '{"schema":"circuitsae/1","graph":{},"nodes":{"key":["token@'
        + "1" * 900
        + '"]},"edges":{"source":[],"target":[]}}',
        '{"schema":"circuitsae/1","graph":{},"nodes":{"key":["token@\u0661"]},"edges":{"source":[],"target":[]}}',
    ],
    ids=["deep list", "deep object", "deep attribute", "version", "digits", "infinity", "key", "position", "digit"],
)
def test_what_would_exhaust_a_reader_is_refused_briefly(text: str) -> None:
    with pytest.raises(GraphFileError) as refused:
        Circuit.from_json(text)
    assert len(str(refused.value)) < 400


@settings(max_examples=200)
@given(
    st.binary(max_size=120) | TEXTS.map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.sampled_from(["csv", "tsv", "json", "jsonl"]),
)
def test_any_file_of_labels_is_read_or_refused(content: bytes, suffix: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"labels.{suffix}"
        path.write_bytes(content)
        try:
            found = read_labels(path)
        except InputError as error:
            assert str(path) in str(error) and "\n" not in str(error)
        else:
            assert all(names.parse(key).kind == "feature" and label for key, label in found.items())


def _at(document: Any, place: list[Any]) -> Any:
    for step in place:
        document = document[step]
    return document


def _circuit_or_sentence(text: str | bytes) -> None:
    try:
        circuit = Circuit.from_json(text)
    except GraphFileError as error:
        assert str(error).startswith("The circuit can't be read: ") and len(str(error)) < 1500
    else:
        assert Circuit.from_json(circuit.to_json()) == circuit
        view_payload(circuit)
