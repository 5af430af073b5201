"""circuit-tracer's format: valid by its own models and Neuronpedia's rules, unique ids, and nothing lost either way."""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import networkx as nx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from circuitsae import names
from circuitsae.cli.main import run
from circuitsae.errors import GraphFileError, InputError
from circuitsae.export.circuit_tracer import (
    as_circuit_tracer,
    from_circuit_tracer,
    read_circuit_tracer,
    write_viewer_folder,
)
from circuitsae.graph.circuit import Circuit
from tests.graph.test_strangers import circuits
from tests.synthetic import synthetic_circuit

# What Neuronpedia's graph-schema.json requires, and the types it gives, in our words.
NODE_TYPES: Mapping[str, Any] = {
    "node_id": str,
    "feature": int | None,
    "layer": str | int,
    "ctx_idx": int,
    "feature_type": str,
    "jsNodeId": str,
    "clerp": str,
}
METADATA_TYPES: Mapping[str, Any] = {"slug": str, "scan": str, "prompt_tokens": list, "prompt": str}


def check_schema(document: dict[str, Any]) -> None:
    for name, kind in METADATA_TYPES.items():
        assert isinstance(document["metadata"][name], kind)
    assert all(isinstance(token, str) for token in document["metadata"]["prompt_tokens"])
    assert isinstance(document["qParams"], dict)
    for row in document["nodes"]:
        for name, kind in NODE_TYPES.items():
            assert isinstance(row[name], kind) and not isinstance(row[name], bool), (name, row)
        for name in ("influence", "activation"):
            assert isinstance(row.get(name), int | float | None)
    for link in document["links"]:
        assert isinstance(link["source"], str) and isinstance(link["target"], str)
        assert isinstance(link["weight"], int | float)


@settings(max_examples=50)
@given(circuits())
def test_every_circuit_is_valid_there_and_comes_back_exactly(circuit: Circuit) -> None:
    text = as_circuit_tracer(circuit)
    document = json.loads(text)
    check_schema(document)
    ids = [row["node_id"] for row in document["nodes"]]
    assert len(set(ids)) == len(ids) == len(circuit)
    assert {end for link in document["links"] for end in (link["source"], link["target"])} <= set(ids)
    again = from_circuit_tracer(text)
    assert again == circuit and again.to_json() == circuit.to_json()


def test_ids_that_collide_in_circuit_tracer_are_unique_here() -> None:
    graph: nx.DiGraph[str] = nx.DiGraph(tokens=["a"] * 4)
    keys = [
        "blocks.0.hook_mlp_out/5@3",
        "blocks.5.hook_mlp_out/error@3",
        "blocks.5.hook_mlp_out/5@3",
        "blocks.5.hook_resid_post/5@3",
        "blocks.5.hook_resid_post/error@3",
        "token@3",
        "bias",
    ]
    for key in keys:
        graph.add_edge(key, "metric", weight=-1.0, contribution=2.0)
    rows = json.loads(as_circuit_tracer(Circuit(graph)))["nodes"]
    assert len({row["node_id"] for row in rows}) == len(rows) == 8
    by_key = {row["circuitsae"]["key"]: row for row in rows}
    # a circuit with one site a layer keeps circuit-tracer's ids and feature numbers
    assert by_key[keys[0]]["node_id"] == "0_5_3" and by_key[keys[0]]["feature"] == 20
    assert by_key[keys[2]]["node_id"] == "5_5_3" and by_key[keys[1]]["node_id"] == "err_5_3"
    # the viewer shares a label among nodes of one (layer, feature, position)
    shown = [(row["layer"], row["feature"], row["ctx_idx"]) for row in rows if "error" not in row["feature_type"]]
    assert len(set(shown)) == len(shown)
    links = json.loads(as_circuit_tracer(Circuit(graph)))["links"]
    assert {link["weight"] for link in links} == {2.0}


def test_influence_is_the_share_of_this_and_stronger_nodes() -> None:
    graph: nx.DiGraph[str] = nx.DiGraph()
    for index, influence in enumerate((0.1, 0.6, 0.3)):
        graph.add_node(f"blocks.0.hook_mlp_out/{index}@0", influence=influence)
        graph.add_edge(f"blocks.0.hook_mlp_out/{index}@0", "metric", weight=1.0)
    document = json.loads(as_circuit_tracer(Circuit(graph)))
    shares = [row["influence"] for row in document["nodes"] if row["feature_type"] != "logit"]
    assert shares == pytest.approx([1.0, 0.6, 0.9])
    assert document["metadata"]["node_threshold"] == 1.0


@pytest.fixture(scope="module")
def theirs() -> dict[str, Any]:
    """A graph as circuit-tracer 0.5 writes it: two logits, and the id 0_1_1 both a feature and an error node."""

    def node(node_id: str, feature: int, layer: str, at: int, kind: str, **more: Any) -> dict[str, Any]:
        row = {
            "node_id": node_id, "feature": feature, "layer": layer, "ctx_idx": at, "feature_type": kind,
            "token_prob": 0.0, "is_target_logit": False, "run_idx": 0, "reverse_ctx_idx": 0, "jsNodeId": node_id,
            "clerp": "", "influence": None, "activation": None,
        }  # fmt: skip
        return row | more

    clt, error = "cross layer transcoder", "mlp reconstruction error"
    return {
        "metadata": {
            "slug": "s", "scan": "gemma", "transcoder_list": [], "prompt_tokens": ["<bos>", "a"], "prompt": "a",
            "node_threshold": 0.8, "schema_version": 1,
        },
        "qParams": {"pinnedIds": ["0_1_1"], "supernodes": [], "linkType": "both", "clickedId": "", "sg_pos": ""},
        "nodes": [
            node("0_1_1", 4, "0", 1, clt, activation=2.0, influence=0.5),
            node("2_7_1", 61, "2", 1, clt, activation=4.0, clerp="months"),
            node("0_1_1", -1, "1", 1, error),
            node("E_9_1", 1, "E", 1, "embedding"),
            node("4_3_1", 3, "4", 1, "logit", is_target_logit=True, token_prob=0.6, clerp='Output " x" (p=0.600)'),
            node("4_8_1", 8, "4", 1, "logit", token_prob=0.2, clerp='Output " y" (p=0.200)'),
        ],
        "links": [
            {"source": "0_1_1", "target": "2_7_1", "weight": 3.0},
            {"source": "0_1_1", "target": "2_7_1", "weight": 0.5},
            {"source": "E_9_1", "target": "0_1_1", "weight": 2.0},
            {"source": "2_7_1", "target": "4_3_1", "weight": 8.0},
            {"source": "2_7_1", "target": "4_8_1", "weight": -1.0},
        ],
    }  # fmt: skip


def test_a_graph_of_circuit_tracer_becomes_a_circuit(theirs: dict[str, Any]) -> None:
    circuit = from_circuit_tracer(json.dumps(theirs))
    feature, top, error = "blocks.0.hook_mlp_out/1@1", "blocks.2.hook_mlp_out/7@1", "blocks.1.hook_mlp_out/error@1"
    assert set(circuit) == {feature, top, error, "token@1", "metric"}
    assert circuit[top]["label"] == "months" and circuit[feature]["activation"] == 2.0
    edges = circuit.graph.edges
    assert edges[feature, top]["contribution"] == 3.0 and edges[error, top]["contribution"] == 0.5
    # the metric is 8 of the logit per 4 of the activation: taking 3 of the 4 away loses 6
    assert edges[top, "metric"]["weight"] == -8.0 and edges[feature, top]["weight"] == -6.0
    assert circuit[feature]["effect"] == -6.0 and circuit[error]["effect"] == -1.0
    assert circuit["token@1"]["effect"] == -6.0
    assert circuit.graph.graph["metric"]["description"] == "logit of ' x'"
    assert circuit.graph.graph["tokens"] == ["<bos>", "a"] and circuit.prompt == "a"


def test_a_graph_of_circuit_tracer_comes_back_exactly(theirs: dict[str, Any], tmp_path: Path) -> None:
    circuit = from_circuit_tracer(json.dumps(theirs))
    assert json.loads(as_circuit_tracer(circuit)) == theirs
    circuit.save(tmp_path / "c.json")
    assert json.loads(as_circuit_tracer(Circuit.load(tmp_path / "c.json"))) == theirs


@settings(max_examples=40)
@given(st.data())
def test_every_graph_of_theirs_comes_back_exactly(data: st.DataObject) -> None:
    numbers = st.floats(-1e6, 1e6, allow_nan=False)
    n_tokens = data.draw(st.integers(1, 3))
    places = data.draw(
        st.sets(st.tuples(st.integers(0, 3), st.integers(0, 30), st.integers(0, n_tokens - 1)), max_size=6)
    )
    errors = data.draw(st.sets(st.tuples(st.integers(0, 3), st.integers(0, n_tokens - 1)), max_size=3))
    nodes = [
        {"node_id": f"{layer}_{index}_{at}", "feature": index, "layer": str(layer), "ctx_idx": at, "jsNodeId": "x",
         "feature_type": "cross layer transcoder", "clerp": data.draw(st.text(max_size=3)), "activation": data.draw(numbers)}
        for layer, index, at in places
    ] + [
        {"node_id": f"0_{layer}_{at}", "feature": -1, "layer": str(layer), "ctx_idx": at, "jsNodeId": "x",
         "feature_type": "mlp reconstruction error", "clerp": ""}
        for layer, at in errors
    ] + [
        {"node_id": f"5_{index}_0", "feature": index, "layer": "5", "ctx_idx": 0, "jsNodeId": "x",
         "feature_type": "logit", "is_target_logit": index == 1, "clerp": ""}
        for index in range(data.draw(st.integers(1, 3)))
    ]  # fmt: skip
    layer_of = {row["node_id"]: int(row["layer"]) for row in nodes}
    doubled = {row["node_id"] for row in nodes if sum(other["node_id"] == row["node_id"] for other in nodes) > 1}
    ids = sorted(set(layer_of) - doubled)
    pairs = [(a, b) for a in ids for b in ids if layer_of[a] < layer_of[b] and not b.startswith("0_")]
    links = [
        {"source": a, "target": b, "weight": data.draw(numbers)}
        for a, b in (data.draw(st.lists(st.sampled_from(pairs), unique=True, max_size=8)) if pairs else [])
    ]
    document = {
        "metadata": {"slug": "s", "scan": "m", "prompt_tokens": ["a"] * n_tokens, "prompt": "a"},
        "qParams": {},
        "nodes": nodes,
        "links": links,
        "more": [1],
    }
    circuit = from_circuit_tracer(json.dumps(document))
    assert json.loads(as_circuit_tracer(circuit)) == document
    assert Circuit.from_json(circuit.to_json()) == circuit


def test_pins_and_supernodes_are_read_and_written(theirs: dict[str, Any]) -> None:
    theirs = json.loads(json.dumps(theirs))
    theirs["qParams"] |= {"pinnedIds": ["2_7_1", "4_8_1", "gone"], "supernodes": [["months", "2_7_1", "0_1_1"], ["x"]]}
    circuit = from_circuit_tracer(json.dumps(theirs))
    feature, top = "blocks.0.hook_mlp_out/1@1", "blocks.2.hook_mlp_out/7@1"
    assert circuit.graph.graph["pins"] == [top]
    assert circuit.graph.graph["groups"] == [{"name": "months", "keys": [top, feature]}]
    assert json.loads(as_circuit_tracer(circuit)) == theirs  # what is no node here comes back too
    circuit.graph.graph["groups"].append({"name": "input", "keys": ["token@1"]})
    written = json.loads(as_circuit_tracer(circuit))["qParams"]
    assert written["supernodes"] == [["months", "2_7_1", "0_1_1"], ["input", "E_9_1"]]
    assert written["linkType"] == "both"


@pytest.mark.parametrize("token", [' "', ' say "x"', '"', " (p=1)", "\n"])
def test_a_token_is_read_whole_out_of_its_label(theirs: dict[str, Any], token: str) -> None:
    theirs = json.loads(json.dumps(theirs))
    theirs["nodes"][4]["clerp"] = f'Output "{token}" (p=0.600)'
    circuit = from_circuit_tracer(json.dumps(theirs))
    assert circuit.graph.graph["metric"]["description"] == f"logit of {token!r}"


def test_attention_dictionaries_and_biases_of_neuronpedia_are_read() -> None:
    """Ids, types and null features as Neuronpedia writes graphs with attention dictionaries."""

    def node(node_id: str, layer: Any, kind: str, feature: int | None = None, **more: Any) -> dict[str, Any]:
        row = {"node_id": node_id, "jsNodeId": node_id, "feature": feature, "feature_type": kind, "layer": layer}
        return row | {"ctx_idx": 1, "clerp": "", "activation": None} | more

    nodes = [
        node("E_9_1", "E", "embedding", token=" a"),
        node("3_lor_17_1", 3, "lorsa", 227, activation=2.0),
        node("3_cro_17_1", 3, "cross layer transcoder", 227, activation=4.0),
        node("3_error_attn_1", 3, "lorsa error"),
        node("3_error_mlp_1", 3, "mlp reconstruction error"),
        node("3_bias_attn_bO_1", 3, "bias", clerp="L3 Bias (attn_bO)"),
        node("3_unknown_blocks_3_x_1", 3, "unknown"),
        node("4_262_1", 4, "logit", 262, clerp='Logit " x" (p=0.500)', token_prob=0.5),
    ]
    links = [
        {"source": source, "target": target, "weight": weight}
        for source, target, weight in [
            ("E_9_1", "3_lor_17_1", 1.0),
            ("3_lor_17_1", "3_cro_17_1", 2.0),
            ("3_bias_attn_bO_1", "3_cro_17_1", 0.25),
            ("3_unknown_blocks_3_x_1", "3_cro_17_1", 0.5),
            ("3_error_attn_1", "3_cro_17_1", -1.0),
            ("3_cro_17_1", "4_262_1", 8.0),
            ("3_error_mlp_1", "4_262_1", 1.0),
        ]
    ]
    metadata = {"slug": "s", "scan": "m", "prompt_tokens": ["<bos>", " a"], "prompt": " a"}
    document = {"metadata": metadata, "qParams": {}, "nodes": nodes, "links": links, "qk_only_nodes": {}}
    circuit = from_circuit_tracer(json.dumps(document))
    attention, mlp = "blocks.3.hook_attn_out/17@1", "blocks.3.hook_mlp_out/17@1"
    errors = {"blocks.3.hook_attn_out/error@1", "blocks.3.hook_mlp_out/error@1"}
    assert set(circuit) == {"token@1", attention, mlp, *errors, "bias", "metric"}
    assert circuit.graph.edges[attention, mlp]["contribution"] == 2.0
    assert circuit.graph.edges["bias", mlp]["contribution"] == 0.75
    assert circuit[attention]["effect"] == -4.0  # 8 of the logit per 4 of the feature that it adds 2 to
    assert circuit.graph.graph["metric"]["description"] == "logit of ' x'"
    assert json.loads(as_circuit_tracer(circuit)) == document
    assert Circuit.from_json(circuit.to_json()) == circuit


def test_a_pickle_is_not_opened_and_what_to_do_instead_is_said(tmp_path: Path) -> None:
    for name, content in (("graph.pt", b"PK\x03\x04rest"), ("graph", b"PK\x03\x04"), ("old.json", b"\x80\x02}")):
        (tmp_path / name).write_bytes(content)
        for read in (Circuit.load, read_circuit_tracer):
            with pytest.raises(GraphFileError, match="create_graph_files"):
                read(tmp_path / name)
    assert run(["export", str(tmp_path / "graph.pt")]) == 2


def test_a_part_of_their_graph_can_be_written(theirs: dict[str, Any]) -> None:
    circuit = from_circuit_tracer(json.dumps(theirs))
    part = circuit.subgraph(["blocks.2.hook_mlp_out/7@1", "metric"])
    document = json.loads(as_circuit_tracer(part))
    assert [row["node_id"] for row in document["nodes"]] == ["2_7_1", "4_3_1", "4_8_1"]
    assert [link["target"] for link in document["links"]] == ["4_3_1", "4_8_1"]


def test_circuit_tracers_own_models_accept_it() -> None:
    graph_models = pytest.importorskip("circuit_tracer.frontend.graph_models", reason="circuit-tracer is not installed")
    document = json.loads(as_circuit_tracer(synthetic_circuit(seed=3, n_features=20)))
    model = graph_models.Model.model_validate(document)
    assert len(model.nodes) == len(document["nodes"]) and len(model.links) == len(document["links"])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda d: d.pop("links"), "expected an object with"),
        (lambda d: d.update(metadata=[]), "'metadata' is no object"),
        (lambda d: d.update(nodes={}), "'nodes' is no list of objects"),
        (lambda d: d["metadata"].update(prompt_tokens=[1]), "no list of texts"),
        (lambda d: d["nodes"][0].update(ctx_idx=9), "the prompt has 2 tokens"),
        (lambda d: d["nodes"][0].update(ctx_idx=-1), "ctx_idx is -1"),
        (lambda d: d["nodes"][0].update(layer="x" * 50), "expected a layer's number"),
        (lambda d: d["nodes"][1].update(node_id="2"), "expected LAYER_FEATURE_POSITION"),
        (lambda d: d["nodes"][0].update(node_id=["a"]), "expected text"),
        (lambda d: d["nodes"].append(d["nodes"][1]), "is there twice"),
        (lambda d: d["links"][0].update(source="nowhere"), "there is no such node"),
        (lambda d: d["links"][0].update(weight="1"), "expected a finite number"),
        (lambda d: d["links"].append(d["links"][3]), "a second time"),
        (lambda d: d["links"].append({"source": "2_7_1", "target": "2_7_1", "weight": 1}), "no cycles"),
        (lambda d: d["nodes"].__delitem__(slice(4, 6)), "no logit node"),
        (lambda d: d["links"][0].update(weight=1e999), "finite"),
    ],
)
def test_what_is_no_such_graph_is_refused_in_words(theirs: dict[str, Any], change: Any, sentence: str) -> None:
    document = json.loads(json.dumps(theirs))
    change(document)
    with pytest.raises(GraphFileError, match=sentence):
        from_circuit_tracer(json.dumps(document))


def test_bombs_are_refused(tmp_path: Path) -> None:
    for text in (
        "[" * 100_000,
        '{"metadata": ' + "9" * 5000 + "}",
        "",
        "null",
        '{"metadata": {}, "nodes": [], "links": []}',
    ):
        with pytest.raises(GraphFileError):
            from_circuit_tracer(text)
    (tmp_path / "g.json").write_text("x" * 100)
    with pytest.raises(GraphFileError, match="larger than 50 bytes"):
        read_circuit_tracer(tmp_path / "g.json", max_bytes=50)


def test_site_names_can_be_said(theirs: dict[str, Any]) -> None:
    circuit = from_circuit_tracer(json.dumps(theirs), site="blocks.{layer}.hook_resid_mid")
    assert "blocks.0.hook_resid_mid/1@1" in circuit
    with pytest.raises(GraphFileError, match="can't be filled in"):
        from_circuit_tracer(json.dumps(theirs), site="blocks.{lay}.hook")


def test_a_viewers_folder_lists_each_graph_once(tmp_path: Path) -> None:
    circuit = synthetic_circuit(seed=3, n_features=8)
    path = write_viewer_folder(circuit, tmp_path, slug="one")
    write_viewer_folder(circuit, tmp_path, slug="two")
    write_viewer_folder(circuit, tmp_path, slug="one")
    listing = json.loads((tmp_path / "graph-metadata.json").read_text())
    assert [graph["slug"] for graph in listing["graphs"]] == ["two", "one"]
    assert read_circuit_tracer(path) == circuit
    for wrong in ("../x", "a/b", ".hidden"):
        with pytest.raises(InputError, match="can't be a file's"):
            write_viewer_folder(circuit, tmp_path, slug=wrong)
    (tmp_path / "graph-metadata.json").write_text("{}")
    with pytest.raises(InputError, match="is damaged"):
        write_viewer_folder(circuit, tmp_path, slug="one")


def test_nodes_of_the_synthetic_circuit_keep_their_kinds() -> None:
    circuit = synthetic_circuit(seed=3, n_features=20)
    rows = json.loads(as_circuit_tracer(circuit))["nodes"]
    kinds = {row["circuitsae"]["key"]: row["feature_type"] for row in rows}
    expected = {"feature": "cross layer transcoder", "error": "mlp reconstruction error", "token": "embedding"}
    for key, kind in kinds.items():
        assert kind == expected.get(names.parse(key).kind, {"metric": "logit", "bias": "bias"}.get(key))


def test_the_command_turns_their_graph_into_other_formats(theirs: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "g.json").write_text(json.dumps(theirs))
    with pytest.raises(GraphFileError, match=r"circuitsae\.export\.circuit_tracer reads it"):
        Circuit.load(tmp_path / "g.json")
    assert run(["export", str(tmp_path / "g.json"), "-o", str(tmp_path / "c.json"), "-o", str(tmp_path / "c.svg")]) == 0
    circuit = Circuit.load(tmp_path / "c.json")
    assert circuit == from_circuit_tracer(json.dumps(theirs)) and (tmp_path / "c.svg").exists()
    assert run(["export", str(tmp_path / "c.json"), "-o", str(tmp_path / "again.circuit-tracer.json")]) == 0
    assert json.loads((tmp_path / "again.circuit-tracer.json").read_text()) == theirs


def test_stdin_and_stdout(
    theirs: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    circuit = synthetic_circuit(seed=3, n_features=8)
    for text, same in ((circuit.to_json(), circuit), (json.dumps(theirs), from_circuit_tracer(json.dumps(theirs)))):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
        assert run(["export", "-", "-o", "-"]) == 0
        assert Circuit.from_json(capsys.readouterr().out) == same
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(circuit.to_json().encode())))
    assert run(["export", "-", "-o", "-", "--format", "dot"]) == 0
    assert capsys.readouterr().out.startswith("digraph circuit {")
    for format, said in (("csv", "has several files"), ("png", "is no text")):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(circuit.to_json().encode())))
        assert run(["export", "-", "-o", "-", "--format", format]) == 2
        assert said in capsys.readouterr().err
