"""Descriptions against the definitions, counted by hand over dense activations of the same text."""

import math
from pathlib import Path

import pytest
import torch

import circuitsae as cs
from circuitsae.errors import CancelledError, InputError, TaskError
from circuitsae.labels.describing import N_BINS, Recipe, describe, gather, promoted_tokens, read_sequences
from circuitsae.labels.parquet import ParquetLabels
from circuitsae.model.spliced import SplicedModel
from circuitsae.task.vocabulary import Vocabulary
from tests.attribution.architectures import dictionary

TEXT = (
    "When Mary and John went to the store, John gave a drink to Mary. The keys to the cabinet are old. "
    "The war lasted from 1745 to 1781. The capital of France is Paris. The old key is on the table. "
) * 6
SITE = "blocks.2.hook_mlp_out"


@pytest.fixture(scope="module")
def spliced() -> SplicedModel:
    return cs.load("tiny", sites=["blocks.0.hook_resid_post", SITE])


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture(scope="module")
def store(spliced: SplicedModel, text: Path, tmp_path_factory: pytest.TempPathFactory) -> ParquetLabels:
    return describe(
        spliced, text, tmp_path_factory.mktemp("store") / "s.parquet", recipe=Recipe(length=20, batch=3, before=4)
    )


def _dense(spliced: SplicedModel, text: Path) -> tuple[list[list[int]], torch.Tensor]:
    """Activations of the second dictionary, [sequence, position, feature], by the bare model's own hook."""
    sequences = list(read_sequences(spliced, [text], 20))
    found = []
    for ids in sequences:
        _, cache = spliced.model.run_with_cache(torch.tensor([ids]))
        encoding = spliced.dictionaries[1].encode(cache[SITE][0].detach())
        dense = encoding.features.to_dense()
        dense[0] = 0  # BOS counts nowhere
        found.append(torch.nn.functional.pad(dense, (0, 0, 0, 20 - len(ids))))
    return sequences, torch.stack(found)


def test_sequences_hold_all_of_the_text_once(spliced: SplicedModel, text: Path) -> None:
    sequences = list(read_sequences(spliced, [text], 20))
    bos = spliced.vocabulary.bos_token_id
    assert all(ids[0] == bos and len(ids) <= 20 for ids in sequences)
    assert [token for ids in sequences for token in ids[1:]] == spliced.model.tokenizer(TEXT, add_special_tokens=False)[
        "input_ids"
    ]
    assert sum(len(ids) - 1 for ids in read_sequences(spliced, [text], 20, 50)) == 50


def test_several_texts_are_read_in_turn(spliced: SplicedModel, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("The keys are old. " * 10)
    (tmp_path / "b.txt").write_text("John is here. " * 2)
    names = [tmp_path / "a.txt", tmp_path / "b.txt"]
    first, second, *_ = read_sequences(spliced, names, 8)
    assert spliced.vocabulary.strings(first)[1] == " The" and " John" in spliced.vocabulary.strings(second)[1]


def test_a_text_longer_than_a_block_is_cut_between_words(
    spliced: SplicedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("circuitsae.labels.describing._BLOCK", 50)
    (tmp_path / "a.txt").write_text(TEXT)
    sequences = read_sequences(spliced, [tmp_path / "a.txt"], 20)
    assert [token for ids in sequences for token in ids[1:]] == spliced.model.tokenizer(TEXT, add_special_tokens=False)[
        "input_ids"
    ]


def test_counts_means_and_histograms_are_those_of_the_dense_activations(
    spliced: SplicedModel, text: Path, store: ParquetLabels
) -> None:
    sequences, dense = _dense(spliced, text)
    counted = sum(len(ids) - 1 for ids in sequences)
    assert store.about["counted"] == counted
    flat = dense.flatten(0, 1)
    checked = 0
    for index in range(dense.shape[2]):
        found, values = store.describe(SITE, index), flat[:, index][flat[:, index] > 0]
        assert found is not None
        assert found.density == pytest.approx(len(values) / counted)
        if not len(values):
            assert (found.largest, found.mean, found.histogram, found.contexts, found.label) == (None, None, (), (), "")
            continue
        checked += 1
        assert found.largest == pytest.approx(float(values.max()), rel=5e-3)  # three digits are kept
        assert found.mean == pytest.approx(float(values.mean()), rel=5e-3)
        assert found.bin_width is not None
        assert math.log2(found.bin_width) == round(math.log2(found.bin_width))
        assert N_BINS * found.bin_width / 2 < float(values.max()) <= N_BINS * found.bin_width
        expected = torch.histc(values.double(), N_BINS, 0, N_BINS * found.bin_width).int().tolist()
        assert list(found.histogram) + [0] * (N_BINS - len(found.histogram)) == expected
    assert checked > 50


def test_contexts_are_the_sequences_of_largest_activation_with_their_peak_marked(
    spliced: SplicedModel, text: Path, store: ParquetLabels
) -> None:
    sequences, dense = _dense(spliced, text)
    checked = 0
    for index in dense.amax((0, 1)).nonzero()[:, 0].tolist():
        found = store.describe(SITE, index)
        assert found is not None
        peaks = dense[:, :, index].amax(1)
        expected = peaks[peaks > 0].sort(descending=True).values[:5]
        assert [c.activation for c in found.contexts] == pytest.approx(expected.tolist(), rel=5e-3)
        for context in found.contexts:
            # the context is a stretch of one of the sequences that have such a peak, with the activations there
            fits = 0
            for number, ids in enumerate(sequences):
                at = int(dense[number, :, index].argmax())
                if float(peaks[number]) == pytest.approx(context.activation, rel=5e-3):
                    start, stop = max(0, at - 4), min(len(ids), at + 5)
                    texts = tuple(spliced.vocabulary.strings(ids[start:stop]))
                    near = dense[number, start:stop, index].tolist()
                    fits += context.tokens == texts and context.activations == pytest.approx(near, rel=5e-3, abs=1e-6)
            assert fits
            checked += 1
    assert checked > 100


def test_the_order_and_size_of_batches_change_nothing(spliced: SplicedModel, text: Path) -> None:
    one, n = gather(spliced, read_sequences(spliced, [text], 20), Recipe(length=20, batch=1))
    many, m = gather(spliced, read_sequences(spliced, [text], 20), Recipe(length=20, batch=7))
    assert n == m
    for a, b in zip(one, many, strict=True):
        # a value near a threshold may fall on either side of it, as sums come in another order
        assert int((a.count - b.count).abs().sum()) <= 2
        torch.testing.assert_close(a.peaks, b.peaks, rtol=1e-3, atol=1e-4)
        assert (a.bins - b.bins).abs().sum() <= 4


def test_promoted_tokens_are_those_of_the_logit_lens_by_hand(spliced: SplicedModel) -> None:
    dictionary = spliced.dictionary(SITE)
    found = promoted_tokens(spliced, dictionary, n=4)
    assert found is not None
    ups, amounts, downs, falls = found
    row = dictionary.decoder_rows(torch.tensor([7]))[0]
    gpt = spliced.model.original_model
    with torch.no_grad():
        centred = (row - row.mean()) / (row.var(unbiased=False) + spliced.model.cfg.eps).sqrt()
        logits = gpt.lm_head.weight @ (centred * gpt.transformer.ln_f.weight)
    assert ups[7].tolist() == logits.topk(4).indices.tolist()
    assert downs[7].tolist() == (-logits).topk(4).indices.tolist()
    torch.testing.assert_close(amounts[7], logits.topk(4).values, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(falls[7], -(-logits).topk(4).values, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["attn.hook_z", "attn.o.hook_in"])
def test_rows_at_heads_outputs_go_through_the_output_product_by_either_name(spliced: SplicedModel, name: str) -> None:
    heads = dictionary(f"blocks.1.{name}", width=spliced.d_model)
    gpt = spliced.model.original_model
    with torch.no_grad():
        product = spliced.model.blocks[1].attn.o.original_component.weight  # GPT-2 multiplies from the left
        row = heads.decoder_rows(torch.tensor([7]))[0].to(product) @ product
        centred = (row - row.mean()) / (row.var(unbiased=False) + spliced.model.cfg.eps).sqrt()
        logits = gpt.lm_head.weight @ (centred * gpt.transformer.ln_f.weight)
    found = promoted_tokens(spliced, heads, n=4)
    assert found is not None
    torch.testing.assert_close(found[1][7], logits.topk(4).values, rtol=1e-4, atol=1e-4)


def test_the_store_says_what_it_was_made_of(spliced: SplicedModel, text: Path, store: ParquetLabels) -> None:
    about = store.about
    assert (about["model"], about["preset"], about["schema"]) == ("tiny", "tiny", "circuitsae-labels/1")
    assert [d["fingerprint"] for d in about["dictionaries"]] == [d.fingerprint for d in spliced.dictionaries]
    assert about["texts"][0]["name"] == "text.txt" and len(about["texts"][0]["sha256"]) == 64
    assert store.sites == list(spliced.sites) and len(store) == sum(d.d_sae for d in spliced.dictionaries)


def test_what_can_not_be_described_is_said(spliced: SplicedModel, tmp_path: Path) -> None:
    out = tmp_path / "s.parquet"
    with pytest.raises(InputError, match=r"Can't read the text '.*nowhere\.txt'"):
        describe(spliced, tmp_path / "nowhere.txt", out)
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9 and more")
    with pytest.raises(InputError, match="is not UTF-8"):
        describe(spliced, tmp_path / "latin.txt", out)
    (tmp_path / "empty.txt").write_text(" \n")
    with pytest.raises(TaskError, match="holds no token"):
        describe(spliced, tmp_path / "empty.txt", out)
    (tmp_path / "a.txt").write_text(TEXT)
    with pytest.raises(CancelledError):
        describe(spliced, tmp_path / "a.txt", out, progress=lambda *_: False)
    for name, value in [("batch", 0), ("length", 1), ("before", -1), ("max_tokens", 0)]:
        with pytest.raises(InputError):
            Recipe(**{name: value})
    assert not out.exists() and sorted(p.name for p in tmp_path.iterdir()) == ["a.txt", "empty.txt", "latin.txt"]


def test_a_model_without_tokenizer_is_told_why(
    spliced: SplicedModel, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spliced, "vocabulary", Vocabulary(None, 584))
    with pytest.raises(TaskError, match="no tokenizer"):
        list(read_sequences(spliced, [text], 20))
