"""Plain torch modules: what is read off the parameters computes what the module computes, or is refused."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from circuitsae.dictionaries.base import Dictionary
from circuitsae.dictionaries.loaders import load_dictionary
from circuitsae.errors import DictionaryError
from tests.dictionaries.formats import D, K, M, normal, top_k

HOOK = "blocks.0.hook_resid_pre"


class Plain(nn.Module):
    """An SAE as people write it."""

    def __init__(
        self, *, centres: bool = False, k: int | None = None, threshold: bool = False, odd: bool = False
    ) -> None:
        super().__init__()
        self.W_enc, self.W_dec = nn.Parameter(normal(D, M)), nn.Parameter(normal(M, D))
        self.b_enc, self.b_dec = nn.Parameter(normal(M)), nn.Parameter(normal(D))
        self.centres, self.odd, self.hook_name = centres, odd, HOOK
        self.k = k
        if threshold:
            self.threshold = nn.Parameter(normal(M, seed=1).abs() / 2)

    def encode(self, x: Tensor) -> Tensor:
        u = (x - self.b_dec if self.centres else x) @ self.W_enc + self.b_enc
        if self.odd:
            return u.square()
        if self.k is not None:
            return top_k(u, self.k)
        return u.relu() * (u > self.threshold) if hasattr(self, "threshold") else u.relu()

    def forward(self, x: Tensor) -> Tensor:
        return self.encode(x) @ self.W_dec + self.b_dec


class Linears(nn.Module):
    """One that keeps its weights in linear layers and has no encode."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(D, M).double(), nn.Linear(M, D).double()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.encoder(x - self.decoder.bias).relu()
        return self.decoder(features), features


def opened(module: nn.Module, **options: Any) -> Dictionary:
    (found,) = load_dictionary(module, **options)
    return found


@pytest.mark.parametrize("options", [{}, {"centres": True}, {"k": K}, {"k": K, "centres": True}, {"threshold": True}])
def test_a_module_is_what_it_computes(options: dict[str, Any]) -> None:
    module = Plain(**options)
    found, x = opened(module), normal(5, D, seed=3)
    with torch.no_grad():
        encoding = found.encode(x)
        assert (encoding.features.to_dense() - module.encode(x)).abs().max() < 1e-11
        assert (found.decode(encoding, x) - module(x)).abs().max() < 1e-11
    assert found.hook_in == HOOK and found.source == "a Plain in memory"
    assert found.config.apply_b_dec_to_input is bool(options.get("centres"))


def test_linear_layers_and_a_reconstruction_first_of_several() -> None:
    module = Linears()
    found, x = opened(module, hook_in=HOOK), normal(5, D, seed=3)
    with torch.no_grad():
        assert (found.decode(found.encode(x), x) - module(x)[0]).abs().max() < 1e-11


def test_a_transcoder_is_told_by_what_it_writes() -> None:
    found = opened(Plain(), hook_outs=["blocks.0.hook_mlp_out"])
    assert found.architecture == "transcoder" and found.hook_outs == ("blocks.0.hook_mlp_out",)


def test_what_computes_something_else_is_refused() -> None:
    with pytest.raises(DictionaryError, match=r"has the tensors of a standard, but computes something else"):
        load_dictionary(Plain(odd=True))
    with pytest.raises(DictionaryError, match=r"The module Linears names no hook point"):
        load_dictionary(Linears())
    nameless = nn.Module()
    nameless.W_enc, nameless.W_dec = nn.Parameter(normal(D, M)), nn.Parameter(normal(M, D))
    with pytest.raises(DictionaryError, match=r"can't be called to see what it computes \(NotImplementedError\)"):
        load_dictionary(nameless, hook_in=HOOK)
