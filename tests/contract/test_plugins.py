"""A stranger's plugin: installed by pip, found by its entry points, used from the command line; a broken one is named."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import networkx as nx
import pytest

from circuitsae.cli.scaffold import write_plugin
from circuitsae.graph.circuit import Circuit

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which pip has installed what `plugins new` writes, and beside it a distribution whose plugin can't be imported."""
    target = tmp_path_factory.mktemp("site")
    written = write_plugin("example", tmp_path_factory.mktemp("new") / "example")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    command = [*pip, "install", "--no-deps", "--no-index", "--no-build-isolation", f"--target={target}", str(written)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    broken = target / "broken_one-1.0.dist-info"
    broken.mkdir()
    (broken / "METADATA").write_text("Metadata-Version: 2.1\nName: broken-one\nVersion: 1.0\n")
    (broken / "entry_points.txt").write_text(
        "[circuitsae.metrics]\nhopeless = broken_one:Hopeless\nlogit = broken_one:Logit\n"
    )
    (target / "broken_one.py").write_text("import a_package_that_is_not_there\n")
    return target


def _circuitsae(site: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(site)])}
    command = [sys.executable, "-m", "circuitsae", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_it_is_listed_with_who_provides_it(site: Path) -> None:
    listing = json.loads(_circuitsae(site, "plugins", "--json").stdout)
    rows = {(row["kind"], row["name"]): row for row in listing["plugins"]}
    margin = rows["metrics", "example-margin"]
    assert (margin["from"], margin["problem"]) == ("circuitsae-example", "")
    assert margin["summary"] == "Logit of the answer minus the largest logit of any other token."
    assert rows["exporters", "example-list"]["from"] == "circuitsae-example"


def test_its_metric_explains_a_models_answer(site: Path) -> None:
    question = [
        "--preset",
        "tiny",
        "The keys to the cabinet",
        "--answer",
        " are",
        "--metric",
        "example-margin",
        "--json",
    ]
    done = _circuitsae(site, "effects", *question)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    done = _circuitsae(site, "intervene", *question, "--ablate", found["nodes"][0]["node"])
    intervened = json.loads(done.stdout)
    # Logits differ as log-probabilities do, so the table of next tokens gives the metric by another road.
    shares = dict(intervened["top_tokens_before"])
    margin = math.log(shares.pop(" are")) - math.log(max(shares.values()))
    assert found["metric"] == pytest.approx(margin, abs=1e-4)
    assert intervened["metric_before"] == pytest.approx(margin, abs=1e-4)
    assert abs(intervened["effect"]) > 1e-3


def test_its_format_writes_a_saved_circuit(site: Path, tmp_path: Path) -> None:
    graph: nx.DiGraph[str] = nx.DiGraph()
    graph.add_node("blocks.0.hook_mlp_out/17@0", effect=-0.5)
    graph.add_node("blocks.0.hook_mlp_out/9@0", effect=1.25)
    graph.add_edge("blocks.0.hook_mlp_out/17@0", "metric", weight=-0.5)
    Circuit(graph).save(tmp_path / "c.json")
    done = _circuitsae(
        site, "export", str(tmp_path / "c.json"), "--format", "example-list", "-o", str(tmp_path / "c.txt")
    )
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / "c.txt").read_text().splitlines()
    assert lines == ["blocks.0.hook_mlp_out/9@0\t+1.2500", "blocks.0.hook_mlp_out/17@0\t-0.5000"]


def test_a_broken_plugin_is_named_and_takes_nothing_down(site: Path) -> None:
    listing = _circuitsae(site, "plugins", "metrics")
    assert listing.returncode == 0
    [line] = [line for line in listing.stdout.splitlines() if line.strip().startswith("hopeless")]
    assert "broken-one" in line
    assert "No module named 'a_package_that_is_not_there'" in line
    assert "margin" in listing.stdout
    assert "ignored, from broken-one: The name 'logit' is taken among the metrics" in listing.stdout


def test_using_a_broken_plugin_says_so_in_one_sentence(site: Path) -> None:
    done = _circuitsae(site, "effects", "--preset", "tiny", "The keys", "--answer", " are", "--metric", "hopeless")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1
    assert "The plugin 'hopeless' (metrics, from broken-one) can't be loaded: ModuleNotFoundError" in done.stderr


def test_checking_plugins_fails_on_a_broken_one(site: Path) -> None:
    done = _circuitsae(site, "plugins", "metrics", "--check")
    assert done.returncode == 1
    assert "'hopeless'" in done.stderr
