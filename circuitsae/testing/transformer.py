"""A transformer without normalisation whose weights are written down, with TransformerLens' hook points.

Everything that is not written is zero, so what acts on what is known by construction.
"""

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint


class _Attention(nn.Module):
    def __init__(self, n_heads: int, d_model: int, d_head: int) -> None:
        super().__init__()
        for name, shape in (("W_Q", (d_model, d_head)), ("W_K", (d_model, d_head)), ("W_V", (d_model, d_head)),
                            ("W_O", (d_head, d_model))):  # fmt: skip
            self.register_parameter(name, nn.Parameter(torch.zeros(n_heads, *shape, dtype=torch.float64)))
        self.hook_q, self.hook_k, self.hook_v = HookPoint(), HookPoint(), HookPoint()
        self.hook_attn_scores, self.hook_pattern = HookPoint(), HookPoint()
        self.hook_z = HookPoint()

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (torch.einsum("bpd,hde->bphe", x, getattr(self, w)) for w in ("W_Q", "W_K", "W_V"))
        q, k, v = (hook(y).transpose(1, 2) for hook, y in ((self.hook_q, q), (self.hook_k, k), (self.hook_v, v)))
        scores = q @ k.transpose(-1, -2)
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=x.device).triu(1)
        pattern = self.hook_pattern(self.hook_attn_scores(scores.masked_fill(later, -torch.inf)).softmax(-1))
        z = self.hook_z((pattern @ v).transpose(1, 2))
        return torch.einsum("bphe,hed->bpd", z, self.W_O)


class _MLP(nn.Module):
    def __init__(self, d_model: int, d_mlp: int) -> None:
        super().__init__()
        self.W_in = nn.Parameter(torch.zeros(d_model, d_mlp, dtype=torch.float64))
        self.b_in = nn.Parameter(torch.zeros(d_mlp, dtype=torch.float64))
        self.W_out = nn.Parameter(torch.zeros(d_mlp, d_model, dtype=torch.float64))
        self.hook_in = HookPoint()
        self.hook_post = HookPoint()

    def forward(self, x: Tensor) -> Tensor:
        return self.hook_post(torch.relu(self.hook_in(x) @ self.W_in + self.b_in)) @ self.W_out


class _Block(nn.Module):
    def __init__(self, n_heads: int, d_model: int, d_head: int, d_mlp: int) -> None:
        super().__init__()
        self.attn, self.mlp = _Attention(n_heads, d_model, d_head), _MLP(d_model, d_mlp)
        self.hook_resid_pre, self.hook_attn_out, self.hook_resid_mid = HookPoint(), HookPoint(), HookPoint()
        self.hook_mlp_out, self.hook_resid_post = HookPoint(), HookPoint()

    def forward(self, x: Tensor) -> Tensor:
        x = self.hook_resid_pre(x)
        x = self.hook_resid_mid(x + self.hook_attn_out(self.attn(x)))
        return self.hook_resid_post(x + self.hook_mlp_out(self.mlp(x)))


class _Unembed(nn.Module):
    def __init__(self, d_model: int, d_vocab: int) -> None:
        super().__init__()
        self.W_U = nn.Parameter(torch.zeros(d_model, d_vocab, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.W_U


class WrittenTransformer(nn.Module):
    """A transformer of `float64` zeros, to be filled in: no normalisation, no biases but the MLPs'.

    Args:
        n_layers, n_heads, d_model, d_head, d_mlp, d_vocab, n_ctx: As in TransformerLens.
    """

    def __init__(
        self, *, n_layers: int, n_heads: int, d_model: int, d_head: int, d_mlp: int, d_vocab: int, n_ctx: int
    ) -> None:
        super().__init__()
        self.cfg: Any = SimpleNamespace(
            n_layers=n_layers, n_heads=n_heads, d_model=d_model, d_head=d_head, d_mlp=d_mlp, d_vocab=d_vocab,
            d_vocab_out=d_vocab, n_ctx=n_ctx, model_name="planted", dtype=torch.float64,
        )  # fmt: skip
        self.tokenizer = None
        self.W_E = nn.Parameter(torch.zeros(d_vocab, d_model, dtype=torch.float64))
        self.W_pos = nn.Parameter(torch.zeros(n_ctx, d_model, dtype=torch.float64))
        self.hook_embed, self.hook_pos_embed = HookPoint(), HookPoint()
        self.blocks = nn.ModuleList(_Block(n_heads, d_model, d_head, d_mlp) for _ in range(n_layers))
        self.unembed = _Unembed(d_model, d_vocab)
        self.hook_dict = {name: point for name, point in self.named_modules() if isinstance(point, HookPoint)}
        for name, point in self.hook_dict.items():
            point.name = name

    def forward(self, tokens: Tensor, return_type: str = "logits", **_: Any) -> Tensor:
        """Returns the logits, `[batch pos d_vocab]`."""
        x = self.hook_embed(self.W_E[tokens]) + self.hook_pos_embed(
            self.W_pos[: tokens.shape[1]].expand(len(tokens), -1, -1)
        )
        for block in self.blocks:
            x = block(x)
        return self.unembed(x)
