"""Good files of every kind, which fuzzing damages."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from circuitsae.export.circuit_tracer import as_circuit_tracer
from circuitsae.export.tables import as_cytoscape
from circuitsae.labels import Context, Description
from circuitsae.labels.parquet import write_store
from gradio_app.links import encode_state
from tests.synthetic import synthetic_circuit

SITE = "blocks.0.hook_mlp_out"
EDITS = [{"key": f"{SITE}/1@0", "op": "scale", "value": 0.5}, {"key": f"{SITE}/2@0"}]
PRESET = b"""
name = "mine"
summary = "Mine"
licence = "MIT"
skip_positions = [0]
memory = 1
labels = "./labels.parquet"
dictionaries = ["./a", "b/c"]
[model]
hub = "a/b"
revision = "main"
[[examples]]
prompt = "a"
answer = " b"
"""


def good_files(folder: Path) -> dict[str, bytes]:
    """Returns a file for each target that it reads without complaint; `folder` is for files on the way."""
    circuit = synthetic_circuit(seed=1, n_features=5, n_edges=12)
    path = folder / "s.parquet"
    context = Context((" a", " b"), (0.0, 1.0), 1)
    rows = [Description(SITE, n, f"label {n}", promoted=((" x", 1.0),), contexts=(context,), histogram=(1, 2)) for n in range(5)]  # fmt: skip
    write_store(path, rows)
    lines = b"\n".join(json.dumps({"index": str(n), "description": f"label {n}"}).encode() for n in range(3))
    labels = {f"{SITE}/{n}": f"label {n}" for n in range(3)}
    task = {"clean": "The keys", "patch": "The key", "answer": " are", "foil": " is", "case": "plural"}
    columns = {name: [value] * 3 for name, value in task.items()}
    pq.write_table(pa.table(columns), path.with_name("tasks.parquet"))
    asked = {"preset": "tiny", "prompt": "The keys", "answer": " are", "nodes": 20, "edits": EDITS, "options": {}}
    asked |= {"state": {"pins": [f"{SITE}/1@0"], "groups": {}}, "overlay": None, "note": "a"}
    return {
        "tasks_jsonl": (json.dumps(task) + "\n").encode() * 3,
        "tasks_json": json.dumps([task] * 3).encode(),
        "tasks_csv": b"clean,patch,answer,foil\n" + b"The keys,The key, are, is\n" * 3,
        "tasks_parquet": path.with_name("tasks.parquet").read_bytes(),
        "link": encode_state({"form": {"preset": "tiny", "prompt": "The keys"}}).encode(),
        "form": json.dumps(asked).encode(),
        "circuit": circuit.to_json().encode(),
        "circuit_tracer": as_circuit_tracer(circuit).encode(),
        "cytoscape": as_cytoscape(circuit).encode(),
        "parquet": path.read_bytes(),
        "csv": b"node,label\n" + b"".join(f"{key},{label}\n".encode() for key, label in labels.items()),
        "json_labels": json.dumps(labels).encode(),
        "jsonl_labels": b"\n".join(json.dumps({"node": k, "label": v}).encode() for k, v in labels.items()),
        "neuronpedia": gzip.compress(lines, mtime=0),
        "neuronpedia_unpacked": lines,
        "preset": PRESET,
    }
