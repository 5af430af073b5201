"""Every export of every kind of circuit: written, and read back where there is a reader, with nothing lost."""

import csv
import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jsonschema
import networkx as nx
import pytest

import circuitsae as cs
from circuitsae import registry
from circuitsae.errors import GraphFileError
from circuitsae.export.circuit_tracer import as_circuit_tracer, from_circuit_tracer
from circuitsae.export.tables import from_cytoscape
from circuitsae.graph.circuit import Circuit
from circuitsae.graph.schema import EDGE_NUMBERS, NODE_NUMBERS
from circuitsae.presets import find_preset

KINDS = (
    *("metric", "several answers", "top logits", "loss", "logits", "quotes", "transcoders"),
    *("by position", "by template", "summed", "compared", "grouped", "a part", "empty"),
)
FORMATS = sorted(p.name for p in registry.plugins("exporters") if p.distribution == "circuitsae")

TEXT, NUMBER, INTEGER = {"type": "string"}, {"type": "number"}, {"type": "integer"}
# What Neuronpedia's upload asks of a graph (its graph schema, version 1.0.0, read for its facts).
NEURONPEDIA: Mapping[str, Any] = {
    "type": "object",
    "required": ["metadata", "qParams", "nodes", "links"],
    "properties": {
        "metadata": {
            "type": "object",
            "required": ["slug", "scan", "prompt_tokens", "prompt"],
            "properties": {
                "slug": {"type": "string", "pattern": "^[a-zA-Z0-9_.-]+$"},
                "scan": {"type": "string", "pattern": "^[a-zA-Z0-9_.-]+$"},
                "prompt_tokens": {"type": "array", "items": TEXT},
                "prompt": TEXT,
                "node_threshold": NUMBER,
                "feature_details": {"type": "object", "properties": {"neuronpedia_source_set": TEXT}},
                "info": {
                    "type": "object",
                    "properties": {
                        **dict.fromkeys(("description", "creator_name", "creator_url"), TEXT),
                        "source_urls": {"type": "array", "items": TEXT},
                        "generator": {"type": "object", "additionalProperties": TEXT},
                        "create_time_ms": NUMBER,
                    },
                },
                "generation_settings": {
                    "type": "object",
                    "properties": {
                        **dict.fromkeys(("max_n_logits", "batch_size", "max_feature_nodes"), INTEGER),
                        "desired_logit_prob": NUMBER,
                    },
                },
                "pruning_settings": {
                    "type": "object",
                    "properties": {"node_threshold": NUMBER, "edge_threshold": NUMBER},
                },
            },
        },
        "qParams": {
            "type": "object",
            "properties": {
                "pinnedIds": {"type": "array", "items": TEXT},
                "supernodes": {"type": "array", "items": {"type": "array", "items": TEXT}},
                **dict.fromkeys(("linkType", "clickedId", "sg_pos"), TEXT),
            },
        },
        "nodes": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["node_id", "feature", "layer", "ctx_idx", "feature_type", "jsNodeId", "clerp"],
                "properties": {
                    **dict.fromkeys(("node_id", "feature_type", "jsNodeId", "clerp"), TEXT),
                    "feature": {"type": ["integer", "null"]},
                    "layer": {"type": ["string", "integer"]},
                    "ctx_idx": {"type": "integer"},
                    "influence": {"type": ["number", "null"]},
                    "activation": {"type": ["number", "null"]},
                },
            },
        },
        "links": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["source", "target", "weight"],
                "properties": {"source": TEXT, "target": TEXT, "weight": NUMBER},
            },
        },
    },
}


@pytest.fixture(scope="module")
def kinds() -> dict[str, Circuit]:
    spliced, transcoders = cs.load("tiny"), cs.load("tiny-transcoders")
    question = cs.LogitDiff(" are", " is")

    def traced(
        metric: Any = question, prompt: str = "The keys to the cabinet", on: Any = spliced, **how: Any
    ) -> Circuit:
        return cs.trace(on, cs.Task(prompt, metric=metric), **{"max_nodes": 12, **how})

    plural = [traced(), traced(prompt="The keys to the box")]
    found = {
        "metric": plural[0],
        "several answers": traced(cs.LogitDiff((" are", " were"), (" is", " was"))),
        "top logits": traced(cs.TopLogits()),
        "loss": traced(cs.Loss(2)),
        "logits": traced(targets="logits", prune="influence"),
        "quotes": traced(targets="logits", max_logits=3),
        "transcoders": traced(cs.TopLogits(), on=transcoders, compat="circuit-tracer", prune="influence"),
        "by position": cs.aggregate(plural),
        "by template": cs.aggregate(plural, align="template"),
        "summed": cs.aggregate(plural, align="sum"),
        "compared": cs.compare(*plural).circuit,
        "grouped": traced(),
        "empty": plural[0].subgraph(["metric"]),
    }
    strongest = found["grouped"].strongest(4, kind="feature")
    found["grouped"].graph.graph.update(
        pins=[*strongest[:3], "metric"], groups=[{"name": 'plural "s"', "keys": strongest[:2]}]
    )
    found["grouped"].graph.nodes[strongest[0]]["label"] = 'a "label"'
    found["a part"] = found["grouped"].subgraph([*strongest[1:], "metric"])
    top = next(key for key in found["quotes"] if key.startswith("logit/"))
    found["quotes"].graph.nodes[top]["label"] = ' "'
    assert set(found) == set(KINDS)
    return found


def node_link(text: str) -> Circuit:
    return Circuit(nx.DiGraph(nx.node_link_graph(json.loads(text), edges="edges")))


READERS: Mapping[str, Callable[[str], Circuit]] = {
    "json": Circuit.from_json,
    "circuit-tracer": from_circuit_tracer,
    "cytoscape": from_cytoscape,
    "node-link": node_link,
}


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_export_of_every_kind_of_circuit(
    kinds: dict[str, Circuit], kind: str, format: str, tmp_path: Path
) -> None:
    circuit = kinds[kind]
    files = circuit.export(tmp_path / "c.out", format=format)
    assert files and all(file.stat().st_size > 0 for file in files)
    if format in READERS:
        assert READERS[format](files[0].read_text("utf-8")) == circuit
    if format in ("graphml", "gexf"):
        read = {"graphml": nx.read_graphml, "gexf": nx.read_gexf}[format](files[0])
        assert set(read) == set(circuit) and set(read.edges) == set(circuit.graph.edges)
    if format == "csv":
        nodes, edges = (list(csv.DictReader(io.StringIO(file.read_text("utf-8")))) for file in files)
        assert {row["node"] for row in nodes} == set(circuit)
        assert {(row["source"], row["target"]) for row in edges} == set(circuit.graph.edges)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_circuit_is_what_neuronpedia_takes(kinds: dict[str, Circuit], kind: str) -> None:
    circuit = kinds[kind]
    document = json.loads(as_circuit_tracer(circuit, source_set="a-set", creator="someone"))
    jsonschema.validate(document, NEURONPEDIA, jsonschema.Draft7Validator)
    ids = [row["node_id"] for row in document["nodes"]]
    assert len(set(ids)) == len(ids) == len(circuit)
    assert {end for link in document["links"] for end in (link["source"], link["target"])} <= set(ids)
    assert {i for i in document["qParams"]["pinnedIds"]} <= set(ids)
    logits = [row for row in document["nodes"] if row["feature_type"] == "logit"]
    assert sum(row["is_target_logit"] for row in logits) == bool(logits)
    for row in logits:  # as the viewer reads them
        assert float(row["clerp"].split("(p=")[1].split(")")[0]) == pytest.approx(row["token_prob"], abs=5e-4)


SCHEMA = json.loads((Path(__file__).parents[2] / "docs" / "circuitsae-1.schema.json").read_text("utf-8"))


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_circuit_is_what_the_published_schema_says(kinds: dict[str, Circuit], kind: str) -> None:
    document = json.loads(kinds[kind].to_json())
    jsonschema.validate(document, SCHEMA, jsonschema.Draft202012Validator)


@pytest.mark.parametrize(
    ("part", "column", "value"),
    [
        ("nodes", "key", "no key"), ("nodes", "key", "token@x"), ("nodes", "effect", "1"), ("edges", "source", -1),
        ("edges", "weight", None), ("graph", "tokens", 3), ("graph", "groups", {"name": "x"}),
    ],
)  # fmt: skip
def test_what_is_refused_is_no_document_of_the_published_schema(
    kinds: dict[str, Circuit], part: str, column: str, value: Any
) -> None:
    document = json.loads(kinds["grouped"].to_json())
    document[part][column][0] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document, SCHEMA, jsonschema.Draft202012Validator)
    with pytest.raises(GraphFileError):
        Circuit.from_json(json.dumps(document))


def test_the_published_schema_names_every_number() -> None:
    assert set(NODE_NUMBERS) <= set(SCHEMA["properties"]["nodes"]["properties"])
    assert set(EDGE_NUMBERS) <= set(SCHEMA["properties"]["edges"]["properties"])


def test_each_logit_has_its_own_token_and_probability(kinds: dict[str, Circuit]) -> None:
    circuit = kinds["logits"]
    rows = {row["circuitsae"]["key"]: row for row in json.loads(as_circuit_tracer(circuit))["nodes"]}
    logits = [key for key in circuit if key.startswith("logit/")]
    assert len(logits) > 1
    for key in logits:
        data, row = circuit[key], rows[key]
        assert row["feature"] == data["index"] and row["node_id"].split("_")[1:] == [str(data["index"]), "5"]
        assert row["token_prob"] == data["probability"]
        assert row["clerp"] == f'Output "{data["label"]}" (p={data["probability"]:.3f})'
    likeliest = max(logits, key=lambda key: circuit[key]["probability"])
    assert [key for key in logits if rows[key]["is_target_logit"]] == [likeliest]


def test_pins_and_groups_are_written_and_the_page_opens_with_them(kinds: dict[str, Circuit]) -> None:
    circuit = kinds["grouped"]
    document = json.loads(as_circuit_tracer(circuit))
    ids = {row["circuitsae"]["key"]: row["node_id"] for row in document["nodes"]}
    pins, (group,) = circuit.graph.graph["pins"], circuit.graph.graph["groups"]
    assert document["qParams"]["pinnedIds"] == [ids[key] for key in pins]
    assert document["qParams"]["supernodes"] == [[group["name"], *(ids[key] for key in group["keys"])]]
    page = circuit_data(registry.get("exporters", "html")(circuit))
    assert page["state"] == {"pins": pins, "groups": [group]}
    part = kinds["a part"].graph.graph
    assert part["pins"] == [*pins[1:3], "metric"] and part["groups"][0]["keys"] == group["keys"][1:]


def circuit_data(page: str) -> dict[str, Any]:
    return json.loads(page.split('id="circuit-data">')[1].split("</script>")[0])


def test_an_upload_says_how_the_graph_was_made(kinds: dict[str, Circuit]) -> None:
    circuit = kinds["transcoders"]
    metadata = json.loads(as_circuit_tracer(circuit))["metadata"]
    assert metadata["transcoder_list"] == [d["source"] for d in circuit.graph.graph["dictionaries"]]
    assert metadata["generation_settings"]["max_n_logits"] == 10
    assert metadata["generation_settings"]["desired_logit_prob"] == 0.95
    assert metadata["pruning_settings"]["prune"] == "influence"
    assert metadata["info"]["create_time_ms"] > 1.7e12 and "feature_details" not in metadata
    there = circuit.subgraph(circuit)
    there.graph.graph["neuronpedia"] = find_preset("gemma-2-2b-transcoders").neuronpedia
    there.graph.graph["dictionaries"][0]["source"] = "hf://google/gemma-scope-2b-pt-transcoders/layer_0/width_16k"
    metadata = json.loads(as_circuit_tracer(there))["metadata"]
    assert metadata["scan"] == "gemma-2-2b"
    assert metadata["feature_details"] == {"neuronpedia_source_set": "gemmascope-transcoder-16k"}
    assert metadata["info"]["source_urls"] == ["https://huggingface.co/google/gemma-scope-2b-pt-transcoders"]


def test_many_answers_are_told_by_a_few(kinds: dict[str, Circuit]) -> None:
    spliced = cs.load("tiny")
    many = tuple(range(10, 30))
    described = cs.Task("The keys", metric=cs.LogitDiff(many, 9)).prepare(spliced.vocabulary).metric.description
    text = described["description"]
    assert text.count(" or ") == 4 and " or 16 others minus " in text and described["token_ids"]["answer"] == list(many)
    prompts = kinds["by position"].graph.graph["metric"]["description"]
    assert prompts.startswith("mean over 2 prompts of logit of ")
