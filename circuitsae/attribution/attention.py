"""Features behind an attention score: which pairs of nodes, one on the query's side and one on the key's, make it.

With normalisations frozen, a head's query at q and its key at k are sums of what nodes write, and the score before the
softmax is a product of the two: `s = q . M k` with a matrix M (the scale, rotations, queries' and keys' own norms) that
depends on the positions only. So the score is a sum over pairs, `s = sum_uv q_u . M k_v`. This is what Anthropic calls QK
attributions ("Tracing Attention Computation Through Feature Interactions", Kamath et al., July 2025).

What a node writes to a query or key is its contribution as a frozen edge would have it (see `edges`): through the
residual stream, MLPs' slopes where nothing replaces them, and the frozen attention of layers between, with all other
nodes held. What no node carries is the bias: biases, positional embeddings, what MLPs' slopes leave over. Hence both sides
add up exactly, and so do the pairs.

M is not read off weights but measured: on a copy of the prompt whose queries and keys are zero, and whose norms' scales are
those of the prompt, the score's second derivative is M, whatever cap comes after it. With linear terms and a constant
(`[q 1] M [k 1]`) it must give the model's own scores, and these its pattern, before any number leaves.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from circuitsae import names
from circuitsae.attribution.blocks import BUDGET, products_together
from circuitsae.attribution.context import Context
from circuitsae.attribution.contributions import Rows
from circuitsae.attribution.edges import EdgeEngine, vector_products
from circuitsae.attribution.numbering import EveryNode
from circuitsae.errors import InputError, SpliceError
from circuitsae.extras import wanted
from circuitsae.model import points
from circuitsae.model.hooks import Hook, Prefix, Watch
from circuitsae.model.probes import close, tolerance
from circuitsae.model.runs import Readout, forward
from circuitsae.model.spliced import SplicedModel

# No score is so low; what masks one is far below.
_MASKED = -1e4


@dataclass(frozen=True)
class ScorePair:
    """A node on the query's side, one on the key's, and what the two add to the score."""

    query: str
    key: str
    contribution: float


@dataclass(frozen=True)
class ScoreSide:
    """A node on one side of a score, and what it adds together with everything on the other."""

    node: str
    contribution: float


@dataclass(frozen=True)
class AttentionScore:
    """What stands behind one attention score.

    Attributes:
        layer, head: The head.
        query, key: Positions.
        relative: Whether contributions are to the score minus the mean over keys, weighted by the pattern.
        score: The score before the softmax, without a mask and before a cap.
        weight: The pattern's weight there.
        total: What all pairs add up to: `score`, or with `relative` the score minus that mean, which is the weight's
            logarithm up to what all keys have in common.
        pairs: The pairs of the largest |contribution|, largest first.
        queries, keys: The nodes of either side with the largest |contribution| together with the whole other side; each
            side adds up to `total`.
        n_pairs: How many pairs there are, those of zero left out.
        token_strings: The prompt's tokens.
    """

    layer: int
    head: int
    query: int
    key: int
    relative: bool
    score: float
    weight: float
    total: float
    pairs: tuple[ScorePair, ...]
    queries: tuple[ScoreSide, ...]
    keys: tuple[ScoreSide, ...]
    n_pairs: int
    token_strings: tuple[str, ...] = field(repr=False)

    @property
    def held(self) -> float:
        """What the listed pairs add up to; the rest of `total` is in pairs that are not listed."""
        return sum(pair.contribution for pair in self.pairs)

    def records(self) -> Iterator[dict[str, Any]]:
        """Yields a record a pair: query, key, contribution, and the tokens where the two nodes are."""
        for pair in self.pairs:
            yield {**asdict(pair), "query_token": self._token(pair.query), "key_token": self._token(pair.key)}

    def to_dataframe(self) -> Any:
        """Returns a pandas DataFrame, one row a pair.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        columns = ["query", "key", "contribution", "query_token", "key_token"]
        return wanted("pandas", "to_dataframe()").DataFrame.from_records(list(self.records()), columns=columns)

    def to_json(self) -> dict[str, Any]:
        """Returns everything as plain values."""
        return {**asdict(self), "token_strings": list(self.token_strings), "held": self.held}

    def __str__(self) -> str:
        what = "score over the mean of all keys" if self.relative else "score"
        q, k = (f"{self.token_strings[at]!r}@{at}" for at in (self.query, self.key))
        lines = [
            f"head {self.layer}.{self.head}: {q} looks at {k} with weight {self.weight:.3f}; {what} {self.total:+.3f}, of "
            f"which {len(self.pairs)} of {self.n_pairs} pairs hold {self.held:+.3f}"
        ]
        lines += [f"  {pair.contribution:+8.3f}  {pair.query}  x  {pair.key}" for pair in self.pairs]
        return "\n".join(lines)

    def _token(self, key: str) -> str | None:
        at = names.parse(key).position
        return self.token_strings[at] if isinstance(at, int) else None


def score_pairs(
    context: Context, layer: int, head: int, query: int, key: int, *, relative: bool = True, top: int = 20
) -> AttentionScore:
    """Returns the pairs of nodes behind one attention score; see the module's text.

    Cost: two forward passes up to the layer and `2 d_head + 1` vector-Jacobian products down to the nearest residual site;
    pairs are never all in memory.

    Args:
        context: The task on the model.
        layer, head: The head.
        query, key: Positions; negative ones count from the prompt's end.
        relative: Contributions to the score minus its mean over keys, weighted by the pattern: what the other keys do is
            then part of it, and what all keys have in common is not. `False` for the score itself.
        top: How many pairs, and nodes of either side, to list.

    Raises:
        InputError: No such head or position, or the key is masked.
        SpliceError: The model can't be frozen, or its scores are no such product; the message names the hook point.
    """
    n_tokens = len(context.task.tokens)
    query, key = (_place(n, at, n_tokens) for n, at in (("query", query), ("key", key)))
    _check(context.spliced, layer, head, top)
    if key > query:
        raise InputError(f"Position {query} does not attend to {key}, which comes after it; expected key <= query.")
    numbered = EveryNode(context)
    engine = EdgeEngine(
        context.spliced, context.run, context.nodes, context.baseline, context.readout,
        linearisation="frozen", sources=numbered.sources,
    )  # fmt: skip
    form = _measure(context, layer, head, query)
    if not bool(form.allowed[key]):
        raise InputError(
            f"Head {layer}.{head} can't see position {key} from {query}: its window ends before; take a later."
        )
    weights = torch.zeros_like(form.scores)
    weights[key] = 1
    if relative:
        weights -= form.pattern
    # the key's side: [query 1] . side is the (relative) score
    side = torch.einsum("k,kij,kj->i", weights, form.matrix, form.keys)
    d, dtype = form.query.shape[0] - 1, context.run.embed.dtype
    totals = torch.cat([form.query[:-1], side]).to(dtype)

    tape: dict[str, Tensor] = {}
    q_name, k_name, *_ = points.scores(layer)
    low = points.segment_of(context.spliced, q_name)
    _, leaves = engine.tape(low, layer + 1, query + 1, {n: Watch(tape, n) for n in (q_name, k_name)})
    context.passes["forward"] += 2
    context.passes["backward"] += 2 * d + 1
    q, k = tape[q_name], tape[k_name]
    at_k = torch.einsum("k,kij->ikj", weights, form.matrix[:, :, :-1]).to(k.dtype)
    rows = Rows(engine.origins, totals, torch.ones_like(totals), torch.arange(len(totals), device=totals.device))
    size = products_together(context.spliced, query + 1, len(leaves))
    for first in range(0, len(totals), size):
        numbers = torch.arange(first, min(first + size, len(totals)), device=q.device)
        seeds_q, seeds_k = q.new_zeros(len(numbers), *q.shape), k.new_zeros(len(numbers), *k.shape)
        own = numbers[numbers < d]
        seeds_q[own - first, 0, query, head, own] = 1
        own = numbers[numbers >= d]
        seeds_k[own - first, 0, :, form.kv] = at_k[own - d]
        for name, j in vector_products([(q, seeds_q), (k, seeds_k)], leaves).items():
            rows.add(name, rearrange(j[:, 0].to(dtype), "target pos ... -> pos target (...)"), first)
    batch = rows.finish()
    numbers, place = torch.unique(batch.sources, return_inverse=True)
    sides = torch.zeros(len(numbers), len(totals), dtype=dtype)
    sides[place, batch.targets] = batch.contributions.to(dtype)
    queries = torch.cat([sides[:, :d], (numbers == numbered.bias)[:, None].to(dtype)], 1)
    keys = sides[:, d:]
    by_query, by_key = queries @ keys.sum(0), keys @ queries.sum(0)
    found, count = _strongest_pairs(queries, keys, top)
    named = [numbered.key(number) for number in numbers.tolist()]
    return AttentionScore(
        layer=layer, head=head, query=query, key=key, relative=relative,
        score=float(form.scores[key]), weight=float(form.pattern[key]), total=float(weights @ form.scores),
        pairs=tuple(ScorePair(named[u], named[v], value) for value, u, v in found),
        queries=_strongest_sides(named, by_query, top), keys=_strongest_sides(named, by_key, top),
        n_pairs=count, token_strings=tuple(context.task.strings),
    )  # fmt: skip


@dataclass(frozen=True)
class _Form:
    """A head's scores at one query as a product: `scores[k] = query . matrix[k] keys[k]`.

    Attributes:
        query: The head's query and a 1.
        keys: Its keys and a 1.
        matrix: Zero for masked keys.
        scores: Before a mask and a cap; zero for masked keys.
        pattern: The row of the pattern, over the keys alone where a sink takes a share.
        allowed: Which keys are not masked.
        kv: The number of the head's keys and values.
    """

    query: Float[Tensor, "d1"]
    keys: Float[Tensor, "key d1"]
    matrix: Float[Tensor, "key d1 d1"]
    scores: Float[Tensor, "key"]
    pattern: Float[Tensor, "key"]
    allowed: Bool[Tensor, "key"]
    kv: int


def _measure(context: Context, layer: int, head: int, query: int) -> _Form:
    """Measures the product on two copies of the prompt, one with queries and keys of zero, and tries it.

    Raises:
        SpliceError: It does not give the scores, or the scores not the pattern.
    """
    spliced, run, n = context.spliced, context.run, query + 1
    hooked = spliced.hooked
    q_name, k_name, s_name, p_name = points.scores(layer)
    clean: dict[str, Tensor] = {}
    leaves: dict[str, Tensor] = {}

    def zero(name: str) -> Hook:
        def hook(x: Tensor) -> Tensor:
            clean[name] = x[0].detach()
            leaves[name] = torch.zeros_like(x[1:]).requires_grad_()
            return torch.cat([x[:1].detach(), leaves[name]])

        return hook

    def first(x: Tensor) -> Tensor:  # some families join batch and positions
        return x.detach().reshape(2, -1)[:1].expand(2, -1).reshape(x.shape)

    tape: dict[str, Tensor] = {}
    scales = points.query_and_key_scales(hooked, layer)
    hooks: list[tuple[str, Hook]] = [(name, zero(name)) for name in (q_name, k_name)]
    hooks += [*((name, first) for name in scales), *((name, Watch(tape, name)) for name in (s_name, p_name))]
    prefix = run.prefix(layer)
    start = None if prefix is None else Prefix(prefix.layer, prefix.residual[:, :n])
    with torch.enable_grad():
        tokens = run.tokens[None, :n].expand(2, -1)
        forward(spliced, tokens, Readout(None, n), extra=hooks, start=start, until=layer + 1)
    scores, pattern, q, k = (tape.get(s_name), tape.get(p_name), clean.get(q_name), clean.get(k_name))
    if scores is None or pattern is None or q is None or k is None or scores.shape != (2, hooked.n_heads, n, n):
        raise _no_product(spliced, s_name, "the model shows no scores, queries or keys there")
    if q.ndim != 3 or k.ndim != 3 or len(q) != n or len(k) != n or q.shape[1] % k.shape[1]:
        raise _no_product(spliced, q_name, "the model shows no queries and keys of [pos head d_head] there")
    kv = head // (q.shape[1] // k.shape[1])
    own, row = scores[0, head, query].detach(), scores[1, head, query]
    allowed = own.isfinite() & row.detach().isfinite() & (row.detach() > _MASKED)
    wide = torch.float64 if run.embed.dtype == torch.float64 else torch.float32
    d, one = q.shape[-1], torch.ones(1, dtype=wide, device=q.device)
    matrix = torch.zeros(n, d + 1, d + 1, dtype=wide, device=q.device)
    chosen = allowed.nonzero().flatten()
    at_q, at_k = _derivatives(row[allowed], leaves[q_name], leaves[k_name], d, head, query, kv)
    if at_q is not None and at_k is not None:
        matrix[chosen, :d, -1] = at_q[0].to(wide)
        matrix[chosen, -1, :d] = at_k[0][chosen].to(wide)
        matrix[chosen, :d, :d] = at_k[1][:, chosen].transpose(0, 1).to(wide)
    matrix[chosen, -1, -1] = row[allowed].detach().to(wide)
    extended = torch.cat([k[:, kv].to(wide), one.expand(n, 1)], 1)
    form_q = torch.cat([q[query, head].to(wide), one])
    found = torch.einsum("i,kij,kj->k", form_q, matrix, extended)
    limit = tolerance(hooked.dtype)
    cap = _cap(spliced, layer)
    shown = found if cap is None else cap * torch.tanh(found / cap)
    if not close(shown[allowed], own[allowed].to(wide), limit):
        raise _no_product(spliced, s_name, "the scores are no product of queries and keys")
    weights = torch.zeros_like(found)
    weights[allowed] = pattern[0, head, query, allowed].detach().to(wide)
    weights = weights / weights.sum()
    # attention of torch or transformers computes some softmaxes in float32
    if not close(weights[allowed], own[allowed].to(wide).softmax(-1), max(limit, tolerance(torch.float32))):
        raise _no_product(spliced, p_name, "the pattern is no softmax of the scores over the keys")
    return _Form(form_q, extended, matrix, found, weights, allowed, kv)


def _derivatives(
    row: Float[Tensor, "allowed"], q: Tensor, k: Tensor, d: int, head: int, query: int, kv: int
) -> tuple[list[Tensor] | None, list[Tensor] | None]:
    """Returns the scores' derivative by the query, `[allowed d]`; and by the keys, `[key d]`, and by both, `[d key d]`."""
    if not row.requires_grad or not len(row):
        return None, None
    eye = torch.eye(len(row), dtype=row.dtype, device=row.device)
    (by_q,) = torch.autograd.grad(row, q, eye, retain_graph=True, allow_unused=True, is_grads_batched=True)
    (slope,) = torch.autograd.grad(row.sum(), q, create_graph=True, allow_unused=True)
    (by_k,) = torch.autograd.grad(row.sum(), k, retain_graph=True, allow_unused=True)
    if by_q is None or by_k is None or slope is None or not slope.requires_grad:
        return None, None
    slope = slope[0, query, head]
    eye = torch.eye(d, dtype=row.dtype, device=row.device)
    (both,) = torch.autograd.grad(slope, k, eye, allow_unused=True, is_grads_batched=True)
    if both is None:
        return None, None
    return [by_q[:, 0, query, head]], [by_k[0, :, kv], both[:, 0, :, kv]]


def _cap(spliced: SplicedModel, layer: int) -> float | None:
    """Returns what a model caps attention scores at, as its configuration says; trying is for `_measure`."""
    own: Any = getattr(spliced.model.blocks[layer].attn, "original_component", None)
    known = (getattr(own, "attn_logit_softcapping", None), getattr(spliced.hooked.cfg, "attn_scores_soft_cap", None))
    return next((float(cap) for cap in known if cap is not None and cap > 0), None)


def _no_product(spliced: SplicedModel, hook: str, why: str) -> SpliceError:
    return SpliceError(
        f"On {spliced.name} ({spliced.hooked.family}), {why} at {hook!r}, so there are no pairs of nodes behind a score; "
        "expected a model loaded with attn_implementation='eager' whose scores are a product of queries and keys."
    )


def _place(what: str, at: int, n_tokens: int) -> int:
    if not isinstance(at, int) or isinstance(at, bool) or not -n_tokens <= at < n_tokens:
        raise InputError(f"{what} is {at!r}; expected a position of this prompt of {n_tokens} tokens.")
    return at % n_tokens


def _check(spliced: SplicedModel, layer: int, head: int, top: int) -> None:
    for what, value, limit in (("layer", layer, spliced.n_layers), ("head", head, spliced.hooked.n_heads)):
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < limit:
            raise InputError(f"{what} is {value!r}; expected 0 to {limit - 1}.")
    if not isinstance(top, int) or isinstance(top, bool) or top < 1:
        raise InputError(f"top is {top!r}; expected how many pairs to list, at least 1.")
    for name in points.scores(layer):
        if not spliced.hooked.has(name):
            raise _no_product(spliced, name, "the model has no hook point")


def _strongest_sides(named: Sequence[str], values: Float[Tensor, "node"], top: int) -> tuple[ScoreSide, ...]:
    order: list[int] = values.abs().argsort(descending=True, stable=True)[:top].tolist()
    return tuple(ScoreSide(named[n], float(values[n])) for n in order if values[n] != 0)


def _strongest_pairs(
    queries: Float[Tensor, "node d1"], keys: Float[Tensor, "node d1"], top: int, budget: int = BUDGET
) -> tuple[list[tuple[float, int, int]], int]:
    """Returns the pairs of the largest |product|, by blocks: (value, query's place, key's place); and how many there are.

    Both sides go from long vectors to short, and no product is larger than that of the lengths: where all that is left
    can't come among the strongest any more, the rest is not computed.
    """
    sizes = [side.norm(dim=1) for side in (queries, keys)]
    order = [size.argsort(descending=True, stable=True)[: int((size > 0).sum())] for size in sizes]
    u_of, v_of = order
    a, b = queries[u_of], keys[v_of]
    lengths_a, lengths_b = sizes[0][u_of], sizes[1][v_of]
    step = max(1, int((budget / (4 * a.element_size())) ** 0.5))
    best = a.new_zeros(0)
    at = torch.zeros(0, dtype=torch.long)
    for i in range(0, len(a), step):
        for j in range(0, len(b), step):
            if len(best) == top and float(lengths_a[i] * lengths_b[j]) < float(best[-1].abs()):
                break
            block = a[i : i + step] @ b[j : j + step].T
            flat = block.flatten()
            local = flat.abs().topk(min(top, len(flat))).indices
            place = (local // block.shape[1] + i) * len(b) + local % block.shape[1] + j
            best, at = torch.cat([best, flat[local]]), torch.cat([at, place])
            kept = best.abs().argsort(descending=True, stable=True)[:top]
            best, at = best[kept], at[kept]
    found = [
        (value, int(u_of[number // len(b)]), int(v_of[number % len(b)]))
        for value, number in zip(best.tolist(), at.tolist(), strict=True)
        if value != 0
    ]
    return found, len(a) * len(b)
