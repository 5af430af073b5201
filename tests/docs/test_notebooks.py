"""The tutorials run from a fresh kernel to their end, say what they should, and are stored as they ran."""

import importlib.util
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

DOCS = Path(__file__).parents[2] / "docs"
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.slow]  # Jupyter's own sockets and event loops


def executed(name: str) -> nbformat.NotebookNode:
    notebook = nbformat.read(DOCS / name, as_version=4)
    NotebookClient(notebook, timeout=400, kernel_name="python3", resources={"metadata": {"path": str(DOCS)}}).execute()
    return notebook


def texts(notebook: nbformat.NotebookNode) -> str:
    """Returns everything that the cells print or give, as text."""
    found = []
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            found.append(output.get("text", "") or output.get("data", {}).get("text/plain", ""))
    return "\n".join(found)


@pytest.mark.smollm2
def test_tutorial() -> None:
    notebook = executed("tutorial.ipynb")
    text = texts(notebook)
    spliced, model = map(float, re.search(r"^\((5\.2\d+), (5\.2\d+)\)$", text, re.M).groups())  # type: ignore[union-attr]
    assert abs(spliced - model) < 1e-3
    agreement = re.search(r"r = (0\.\d+), rank", text)
    assert agreement is not None and float(agreement[1]) > 0.95
    pictures = [o for c in notebook.cells for o in c.get("outputs", ()) if "image/png" in o.get("data", {})]
    assert len(pictures) >= 4


@pytest.mark.saelens
@pytest.mark.skipif(
    importlib.util.find_spec("sae_lens") is None
    or importlib.util.find_spec("transformer_lens.HookedTransformer") is None,
    reason="needs sae_lens and HookedTransformer",
)
def test_beside_saelens() -> None:
    text = texts(executed("saelens.ipynb"))
    pairs = re.findall(r"^\((-?\d\.\d+), (-?\d\.\d+)\)$", text, re.M)
    assert len(pairs) == 2
    for ours, theirs in pairs:
        assert abs(float(ours) - float(theirs)) < 1e-4
    assert re.search(r"^0$", text, re.M)  # no hook is left


@pytest.mark.parametrize("name", sorted(p.name for p in DOCS.glob("*.ipynb")))
def test_stored_outputs_are_of_one_run_without_errors(name: str) -> None:
    notebook = nbformat.read(DOCS / name, as_version=4)
    nbformat.validate(notebook)
    counts = [c.execution_count for c in notebook.cells if c.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))
    assert not [o for c in notebook.cells for o in c.get("outputs", ()) if o.output_type == "error"]
    assert "/work/" not in str(notebook) and "/root/" not in str(notebook)
