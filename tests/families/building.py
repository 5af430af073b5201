"""A family's tiny random model with random dictionaries, and the row that is judged of it."""

import contextlib
import copy
import functools
import re
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from circuitsae.dictionaries.base import Dictionary
from circuitsae.errors import CircuitsaeError
from circuitsae.model.spliced import SplicedModel
from circuitsae.testing.judging import CELLS, Cell, judge
from tests.families.configurations import SINGLE, class_name, configuration

TOKENS = [3, 14, 15, 9, 2, 6]
D_SAE = 40

POINTS = (
    "hook_resid_pre", "hook_resid_mid", "hook_resid_post", "hook_attn_out", "hook_mlp_out", "ln1.hook_in", "ln2.hook_in",
    "attn.hook_in", "attn.hook_z", "mlp.hook_in", "mlp.hook_post",
)  # fmt: skip
"""The hook points of a block at which an autoencoder is tried."""


class NotBuiltError(Exception):
    """TransformerLens does not build this family here."""


@contextlib.contextmanager
def in_double() -> Iterator[None]:
    """Lets what transformers computes in float32 inside a float64 model (norms, softmax, routers) be float64."""
    tensor: Any = torch.Tensor

    def single(x: Any) -> bool:
        return x is torch.float32

    def wrap(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def run(x: Tensor, *args: Any, **kwargs: Any) -> Any:
            if isinstance(x, Tensor) and x.dtype is torch.float64:
                if function is plain["float"]:
                    return x
                args = tuple(torch.float64 if single(a) else a for a in args)
                kwargs = {k: torch.float64 if single(v) else v for k, v in kwargs.items()}
            return function(x, *args, **kwargs)

        return run

    plain = {name: getattr(tensor, name) for name in ("float", "to", "type")}
    soft = {module: module.softmax for module in (functional, torch)}
    for name, function in plain.items():
        setattr(tensor, name, wrap(function))
    for module, function in soft.items():
        module.softmax = wrap(function)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        for name, function in plain.items():
            setattr(tensor, name, function)
        for module, function in soft.items():
            module.softmax = function  # type: ignore[attr-defined]


def build(family: str) -> tuple[Any, nn.Module]:
    """Returns a Bridge, every weight random, and the transformers model that it was made from, as it was before.

    Raises:
        NotBuiltError: transformers has no such family, or TransformerLens no bridge that runs it.
    """
    name = class_name(family)
    try:
        import transformers
        from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

        made = configuration(family)
        dtype = torch.float32 if family in SINGLE else torch.float64
        torch.manual_seed(0)
        model = getattr(transformers, name)._from_config(made, attn_implementation="eager").to(dtype).eval()
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for p in model.parameters():
                p.add_((0.15 * torch.randn(p.shape, generator=generator, dtype=torch.float64)).to(dtype))
        model.requires_grad_(False)
        twin = copy.deepcopy(model)
        bridge = build_bridge_from_module(
            model, name, hf_config=model.config, tokenizer=None, dtype=dtype, device="cpu"
        )
        with torch.no_grad():
            bridge(torch.tensor([TOKENS]), return_type="logits")
    except (ImportError, AttributeError, TypeError, ValueError, KeyError, RuntimeError) as error:
        raise NotBuiltError(f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}") from error
    bridge.requires_grad_(False)
    return bridge, twin


def values_at(model: Any, hooks: list[str]) -> dict[str, Tensor]:
    """Returns what stands at those of some hook points that the model has and that fire, `[pos width]`."""
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        return lambda x, hook: found.__setitem__(name, x.flatten(2)[0]) if x.ndim > 2 else None

    with torch.no_grad():
        there = [(name, keep(name)) for name in hooks if name in model.hook_dict]
        model.run_with_hooks(torch.tensor([TOKENS]), fwd_hooks=there, return_type="logits")
    return found


def dictionary(values: dict[str, Tensor], hook_in: str, hook_out: str | None = None, *, seed: int = 0) -> Dictionary:
    """A random autoencoder, or a transcoder where it writes elsewhere, of the size of what stands there."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    x, y = values[hook_in].double(), values[hook_out or hook_in].double()
    size = float(y.square().mean().sqrt())
    tensors = {
        "W_enc": random(x.shape[1], D_SAE) / (float(x.square().mean().sqrt()) * x.shape[1] ** 0.5),
        "W_dec": random(D_SAE, y.shape[1]) * 0.3 * size,
        "b_enc": random(D_SAE) * 0.3 - 0.4,
        "b_dec": random(y.shape[1]) * 0.1 * size,
    }
    tensors = {name: tensor.to(values[hook_in].dtype) for name, tensor in tensors.items()}
    if hook_out is None:
        return Dictionary.from_tensors(architecture="standard", hook_in=hook_in, tensors=tensors, prepend_bos=False)
    return Dictionary.from_tensors(
        architecture="transcoder", hook_in=hook_in, hook_outs=hook_out, tensors=tensors, prepend_bos=False
    )


def row(family: str) -> dict[str, str]:
    """Returns what is said of a family under each heading of the page: "right", or why it is refused.

    A text that begins with "wrong" or "crash" is a fault. The autoencoders are at the residual stream after the first
    block and at what attention and MLP of the second write, the transcoders at every MLP.

    Raises:
        NotBuiltError: It can't be built here.
    """
    with warnings.catch_warnings(), contextlib.nullcontext() if family in SINGLE else in_double():
        warnings.simplefilter("ignore")
        model, twin = build(family)
        blocks = [f"blocks.{n}." for n in range(2)] if "blocks.0.hook_out" in model.hook_dict else ["L_blocks.0."] * 2
        ends = ("hook_resid_post", "hook_attn_out", "hook_mlp_out", "hook_out", "mlp.hook_in")
        values = values_at(model, [block + end for block in blocks for end in (*ends, *POINTS)])
        wanted = [(0, ("hook_resid_post", "hook_out")), (1, ("hook_attn_out",)), (1, ("hook_mlp_out",))]
        found = [next((blocks[n] + e for e in ends if blocks[n] + e in values), None) for n, ends in wanted]
        autoencoders = [dictionary(values, hook, seed=n) for n, hook in enumerate(found) if hook is not None]
        pairs = [(block + "mlp.hook_in", block + "hook_mlp_out") for block in blocks]
        transcoders = [
            dictionary(values, low, high, seed=n)
            for n, (low, high) in enumerate(pairs)
            if low in values and high in values
        ]
        judged: dict[str, dict[str, Cell]] = {"autoencoders": _judged(model, autoencoders, twin, family)}
        if len(transcoders) == 2:
            judged["transcoders"] = _judged(model, transcoders, twin, family)
        texts = {cell: _joined({kind: _said(c[cell], family) for kind, c in judged.items()}) for cell in CELLS}
        at: dict[str, list[str]] = {}
        for end in POINTS:
            hook = blocks[0] + end
            if (
                hook in values
                and blocks[0] == "blocks.0."
                and (end != "hook_resid_mid" or _is_middle(values, blocks[0]))
            ):
                cells = _judged(model, [dictionary(values, hook)], twin, family, cells=("effects",))
                said = _joined(
                    {kind: _said(cell, family).replace(repr(hook), "this hook point") for kind, cell in cells.items()}
                )
                at.setdefault(said, []).append(end)
    texts["hook points"] = "; ".join(f"{', '.join(ends)}: {said}" for said, ends in at.items())
    return texts


def _is_middle(values: dict[str, Tensor], block: str) -> bool:
    """Whether `hook_resid_mid` is the stream and what attention adds to it: then the reference knows how to change it."""
    if block + "hook_attn_out" not in values:
        return False
    low, mid, added = (values[block + end].double() for end in ("hook_resid_pre", "hook_resid_mid", "hook_attn_out"))
    scale = ((mid - low) * added).sum() / added.square().sum()
    return bool((mid - low - scale * added).abs().max() <= 1e-3 * mid.abs().max())


def _judged(model: Any, dictionaries: list[Dictionary], twin: Any, family: str, **options: Any) -> dict[str, Cell]:
    try:
        spliced = SplicedModel(model, dictionaries, prepend_bos=False, name=family)
    except CircuitsaeError as error:
        return dict.fromkeys(options.get("cells", CELLS), Cell("refused", str(error)))
    return judge(spliced, TOKENS, twin=twin, **options)


def _said(cell: Cell, family: str) -> str:
    """A cell's text without what differs from family to family and from processor to processor."""
    return re.sub(r"off by [\d.e+-]+, where [\d.e+-]+", "off by more than", str(cell).replace(family, "this model"))


def _joined(texts: dict[str, str]) -> str:
    """One text where all say the same."""
    return (
        next(iter(texts.values())) if len({*texts.values()}) == 1 else "; ".join(f"{k}: {t}" for k, t in texts.items())
    )
