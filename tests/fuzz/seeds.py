"""Good files of every kind, which fuzzing damages."""

import gzip
import json
from pathlib import Path

from circuitsae.export.circuit_tracer import as_circuit_tracer
from circuitsae.export.tables import as_cytoscape
from circuitsae.labels import Context, Description
from circuitsae.labels.parquet import write_store
from tests.synthetic import synthetic_circuit

SITE = "blocks.0.hook_mlp_out"
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
    return {
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
