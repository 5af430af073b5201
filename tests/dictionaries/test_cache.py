"""The cache keeps within its budget, drops the least recently used, and forgets dictionaries that are gone."""

import gc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from circuitsae.dictionaries import cache
from circuitsae.dictionaries.cache import CACHE, WeightCache
from circuitsae.dictionaries.reader import read_folder, save_folder
from circuitsae.errors import InputError
from tests.dictionaries.reference import random_dictionary, random_input


@pytest.fixture(autouse=True)
def budget_as_before() -> Iterator[None]:
    yield
    CACHE.budget = None


def tensor(nbytes: int) -> Tensor:
    return torch.zeros(nbytes, dtype=torch.uint8)


@given(st.integers(0, 40), st.lists(st.tuples(st.integers(0, 5), st.integers(1, 15)), max_size=40))
def test_budget_is_never_exceeded_and_the_oldest_goes_first(budget: int, uses: list[tuple[int, int]]) -> None:
    kept = WeightCache(budget)
    sizes: dict[int, int] = {}
    recent: list[int] = []  # a model of the cache, oldest first
    for key, size in uses:
        size = sizes.setdefault(key, size)
        made: list[int] = []
        kept.get((key,), lambda size=size, made=made: made.append(1) or tensor(size))
        assert bool(made) == (key not in recent)
        if key in recent:
            recent.remove(key)
            recent.append(key)
        elif size <= budget:
            while sum(sizes[k] for k in recent) + size > budget:
                recent.pop(0)
            recent.append(key)
        assert kept.used == sum(sizes[k] for k in recent) <= budget
    assert [key for key in sizes if kept.peek((key,)) is not None] == [key for key in sizes if key in recent]


def test_lowering_the_budget_drops_what_is_over() -> None:
    kept = WeightCache(30)
    for key in range(3):
        kept.get((key,), lambda: tensor(10))
    kept.peek((0,))
    kept.budget = 10
    assert kept.used == 10 and kept.peek((0,)) is not None


def test_release_drops_one_owner_or_all() -> None:
    kept = WeightCache(100)
    for owner in "ab":
        kept.get((owner, "W_enc"), lambda: tensor(10))
    kept.release("a")
    assert kept.peek(("a", "W_enc")) is None and kept.peek(("b", "W_enc")) is not None
    kept.release()
    assert kept.used == 0


def test_budget_is_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cache.VARIABLE, "12345")
    assert WeightCache().budget == 12345
    monkeypatch.setenv(cache.VARIABLE, "2 GB")
    with pytest.raises(InputError, match="CIRCUITSAE_CACHE_BYTES is '2 GB'; expected a whole number of bytes"):
        _ = WeightCache().budget
    monkeypatch.delenv(cache.VARIABLE)
    assert 0 < WeightCache().budget <= 1 << 30


def test_a_converted_encoder_is_kept_used_again_and_released(tmp_path: Path) -> None:
    save_folder(random_dictionary("standard", dtype=torch.float16), tmp_path)
    CACHE.budget = 1 << 20
    CACHE.release()
    dictionary, x = read_folder(tmp_path), random_input(dtype=torch.float32)
    first = dictionary.encode(x).features
    assert CACHE.used == 4 * (23 + 7)  # an encoder read once is not worth keeping
    torch.testing.assert_close(dictionary.encode(x).features.to_dense(), first.to_dense())
    assert CACHE.used == 4 * (7 * 23 + 23 + 7)
    converted = CACHE.peek(dictionary._key("W_enc", torch.float32, torch.device("cpu")))
    assert converted is not None
    converted += 1  # if it is used again, it shows
    assert (dictionary.encode(x).features.to_dense() - first.to_dense()).abs().max() > 0.1
    cache.release()
    assert CACHE.used == 0 and not dictionary.weights.is_ready("W_enc", torch.float32, torch.device("cpu"))
    torch.testing.assert_close(dictionary.encode(x).features.to_dense(), first.to_dense())
    dictionary.release()
    assert CACHE.used == 0


def test_weights_that_need_no_conversion_are_not_copied(tmp_path: Path) -> None:
    save_folder(random_dictionary("standard", dtype=torch.float32), tmp_path)
    CACHE.release()
    for dictionary in (read_folder(tmp_path), random_dictionary("standard", dtype=torch.float32)):
        dictionary.encode(random_input(dtype=torch.float32))
    assert CACHE.used == 0


def test_a_dictionary_that_is_gone_takes_its_weights_with_it() -> None:
    CACHE.release()
    dictionary = random_dictionary("topk", dtype=torch.float16)
    dictionary.encode(random_input())
    assert CACHE.used > 0
    del dictionary
    gc.collect()
    assert CACHE.used == 0


def test_many_threads_under_a_tight_budget_get_the_right_numbers() -> None:
    CACHE.budget = 3000
    dictionaries = [random_dictionary("standard", seed=seed, dtype=torch.float16) for seed in range(6)]
    x = random_input(dtype=torch.float32)
    expected = [dictionary.encode(x).features.to_dense() for dictionary in dictionaries]

    def ask(number: int) -> bool:
        return torch.allclose(dictionaries[number % 6].encode(x).features.to_dense(), expected[number % 6], atol=1e-5)

    with ThreadPoolExecutor(8, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        assert all(pool.map(ask, range(200)))
    assert CACHE.used <= 3000
