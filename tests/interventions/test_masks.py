"""A circuit's metric by masks equals the same by dense arrays and plain hooks, one run a circuit."""

import pytest
import torch
from torch import Tensor

import circuitsae as cs
from circuitsae.attribution.effects import Context, make_context
from circuitsae.model.masks import FeatureMask, Masks, VectorMask, run_masked
from tests.interventions.plain import Hook, dense_of, metric_of, tokens_of


def plain_metric(spliced: cs.SplicedModel, task: cs.Task, masks: Masks, copy: int, errors_frozen: bool) -> float:
    """One copy: every site rebuilt from dense activations, the kept ones live, the others at their baselines."""
    tokens = tokens_of(spliced, task)
    n_tokens = tokens.shape[1]
    read: dict[str, Tensor] = {}
    hooks: list[tuple[str, Hook]] = []
    for number, dictionary in enumerate(spliced.dictionaries):
        mask, errors = masks.features.get(number), masks.errors.get(dictionary.hook_outs[0])
        clean_error = dense_of(spliced, tokens, dictionary.site)[1] if errors_frozen else torch.zeros(0)

        def keep(x: Tensor, hook: object, name: str = dictionary.hook_in) -> None:
            read[name] = x[0].clone()

        def write(
            x: Tensor,
            hook: object,
            dictionary: cs.Dictionary = dictionary,
            mask: FeatureMask | None = mask,
            errors: VectorMask | None = errors,
            clean_error: Tensor = clean_error,
        ) -> Tensor:
            x_in = read[dictionary.hook_in]
            encoding = dictionary.encode(x_in)
            error = x[0] - dictionary.decode(encoding, x_in)
            live = encoding.features.to_dense()
            features = live.clone()
            if mask is not None:
                if not bool(mask.others[copy]):
                    features[:] = 0
                    features[mask.positions, mask.indices] = live[mask.positions, mask.indices]
                base = torch.zeros(len(mask.positions)) if mask.baselines is None else mask.baselines
                lost = ~mask.kept[copy]
                features[mask.positions[lost], mask.indices[lost]] = base[lost].double()
            if errors_frozen:
                error = clean_error.clone()
            if errors is not None:
                base = torch.zeros(n_tokens, x.shape[-1]) if errors.baselines is None else errors.baselines
                error = torch.where(errors.kept[copy][:, None], error, base.double())
            W_dec = dictionary.decoder_rows(torch.arange(dictionary.d_sae)).double()
            scale = 1 if encoding.scale is None else encoding.scale[:, None]
            return (x[0] - (x[0] - dictionary.decode(encoding, x_in)) + (features - live) @ W_dec * scale + error)[None]

        hooks += [(dictionary.hook_in, keep), (dictionary.hook_outs[0], write)]
    if masks.tokens is not None:
        kept, base = masks.tokens.kept[copy], masks.tokens.baselines
        hooks.append(
            ("hook_embed", lambda x, hook: torch.where(kept[:, None], x, 0.0 if base is None else base.to(x.dtype)))
        )
    return metric_of(spliced, task, hooks)


def random_masks(context: Context, share: list[float], others: list[bool], seed: int = 0) -> Masks:
    generator = torch.Generator().manual_seed(seed)
    n_tokens, copies = len(context.task.tokens), len(share)

    def draw(n: int) -> Tensor:
        return torch.rand(copies, n, generator=generator) < torch.tensor(share)[:, None]

    features = {
        number: FeatureMask(
            nodes.positions, nodes.indices, draw(len(nodes.positions)), nodes.baselines, torch.tensor(others)
        )
        for number, nodes in enumerate(context.nodes)
    }
    base = context.baseline.errors
    errors = {
        hook: VectorMask(draw(n_tokens), None if base is None else base[hook]) for hook in context.spliced.written
    }
    return Masks(features, errors, VectorMask(draw(n_tokens) | True, context.baseline.embed))


SHARES, OTHERS = [0.0, 0.2, 0.7, 1.0], [False, False, True, True]


@pytest.mark.parametrize("errors_frozen", [False, True])
@pytest.mark.parametrize("preset", ["spliced", "transcoders"])
@pytest.mark.parametrize("which", ["task", "patched"])
def test_masked_metric_equals_dense_algebra(
    preset: str, which: str, errors_frozen: bool, request: pytest.FixtureRequest
) -> None:
    spliced: cs.SplicedModel = request.getfixturevalue(preset)
    task: cs.Task = request.getfixturevalue(which)
    context = make_context(spliced, task)
    masks = random_masks(context, SHARES, OTHERS)
    run = context.run
    edited = run_masked(spliced, run, context.readout, masks, len(SHARES), errors_frozen=errors_frozen)
    found = context.readout.value(edited.logits)
    for copy in range(len(SHARES)):
        assert float(found[copy]) == pytest.approx(plain_metric(spliced, task, masks, copy, errors_frozen), abs=1e-9)
    assert float(found[-1]) == pytest.approx(run.metric or 0, abs=1e-9)  # the whole model
    assert float(found[0]) != pytest.approx(run.metric or 0, abs=1e-2)


def test_without_live_errors_only_the_kept_features_are_encoded(
    transcoders: cs.SplicedModel, patched: cs.Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = make_context(transcoders, patched)
    masks = random_masks(context, [0.05, 0.3], [False, False])
    none = {hook: VectorMask(torch.zeros_like(mask.kept), mask.baselines) for hook, mask in masks.errors.items()}
    masks = Masks(masks.features, none)
    expected = [plain_metric(transcoders, patched, masks, copy, False) for copy in range(2)]
    run, readout = context.run, context.readout
    monkeypatch.setattr(cs.Dictionary, "encode", lambda *args: pytest.fail("encoded whole"))
    found = readout.value(run_masked(transcoders, run, readout, masks, 2).logits)
    assert found.tolist() == pytest.approx(expected, abs=1e-9)


def test_nothing_masked_is_the_clean_run(spliced: cs.SplicedModel, task: cs.Task) -> None:
    context = make_context(spliced, task)
    found = run_masked(spliced, context.run, context.readout, Masks(), 2)
    torch.testing.assert_close(found.logits, context.run.logits.expand(2, -1, -1), atol=1e-10, rtol=0)


def test_masked_token_embeddings_are_set(spliced: cs.SplicedModel, patched: cs.Task) -> None:
    context = make_context(spliced, patched)
    kept = torch.tensor([[True] * 9 + [False] * 6, [False] * 15])[:, -len(context.task.tokens) :]
    masks = Masks(tokens=VectorMask(kept, context.baseline.embed))
    found = context.readout.value(run_masked(spliced, context.run, context.readout, masks, 2).logits)
    assert float(found[0]) == pytest.approx(plain_metric(spliced, patched, masks, 0, False), abs=1e-9)
    assert context.baseline.metric is not None
    assert float(found[1]) == pytest.approx(context.baseline.metric, abs=1e-9)


def test_skipped_positions_are_error_nodes(spliced: cs.SplicedModel, patched: cs.Task) -> None:
    other = spliced.skipping([0])
    context = make_context(other, patched)
    masks = random_masks(context, [0.0, 1.0], [False, False])
    found = context.readout.value(run_masked(other, context.run, context.readout, masks, 2).logits)
    assert context.baseline.metric is not None
    # With nothing kept every site holds its value on the patch prompt.
    assert float(found[0]) == pytest.approx(context.baseline.metric, abs=1e-9)
    assert float(found[1]) == pytest.approx(context.run.metric or 0, abs=1e-9)
