"""What every test relies on: one thread, the caller's gradient mode, and no download behind a test's back.

What must hold on every processor can be tried on one: ATEN_CPU_CAPABILITY=default (or avx2) takes other kernels of torch,
CIRCUITSAE_PRODUCTS=torch (or numpy) the other library for encoders, and TEST_THREADS=2 two threads.
"""

import os
from collections.abc import Iterator

# Set before any test imports huggingface_hub: tests of downloads name their own loopback hub.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("WANDB_MODE", "disabled")

import jaxtyping
import pytest
import torch
from hypothesis import settings

# Shapes and types of every call in these rooms are checked while testing. An int where a float is asked for is right.
CHECKED = ("attribution", "dictionaries", "evaluation", "interventions", "model")
jaxtyping.install_import_hook(
    [f"circuitsae.{room}" for room in CHECKED], "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"
)

# The same examples in every run, and no deadline: a busy machine is no bug. HYPOTHESIS_PROFILE=search looks for new ones.
settings.register_profile("steady", deadline=None, derandomize=True, database=None)
settings.register_profile("search", deadline=None, max_examples=1000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "steady"))


def pytest_report_header() -> str:
    """Says on what the run's rounding depends."""
    library = os.environ.get("CIRCUITSAE_PRODUCTS", "this machine's")
    kernels = torch.backends.cpu.get_cpu_capability()
    return f"numerics: {kernels} kernels, {library} products, {os.environ.get('TEST_THREADS', '1')} thread(s)"


@pytest.fixture(autouse=True, scope="session")
def threads() -> None:
    """Fixes the number of threads, so that sums are added in the same order on every machine; tests run side by side."""
    torch.set_num_threads(int(os.environ.get("TEST_THREADS", "1")))


@pytest.fixture(autouse=True)
def checks(request: pytest.FixtureRequest) -> Iterator[None]:
    """Lets a test marked `unchecked` hand over what annotations forbid."""
    jaxtyping.config.update("jaxtyping_disable", request.node.get_closest_marker("unchecked") is not None)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(autouse=True)
def gradient_mode() -> Iterator[None]:
    """Holds every test, and so the code under it, to leaving gradient mode and default dtype as they were."""
    before = torch.is_grad_enabled(), torch.get_default_dtype()
    yield
    after = torch.is_grad_enabled(), torch.get_default_dtype()
    torch.set_grad_enabled(before[0])
    torch.set_default_dtype(before[1])
    assert after == before, f"gradient mode and default dtype were {before} before the test and {after} after it"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips, with the reason, what this machine can't run."""
    without_cuda = pytest.mark.skip(reason="no CUDA device here")
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(without_cuda)
