"""Hook points where the residual stream forks, hide each other or are no place for a dictionary; threads on one model."""

import threading
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from transformer_lens.hook_points import HookPoint

import circuitsae as cs
from circuitsae.dictionaries.base import Dictionary
from circuitsae.errors import SpliceError
from circuitsae.model.checks import check_splices
from circuitsae.model.spliced import SplicedModel
from circuitsae.testing.transformer import WrittenTransformer
from tests.attribution.architectures import N_LAYERS, TOKENS, bridge, dictionary, with_transcoders

model = cache(bridge)
TASK = cs.Task(TOKENS, metric=cs.LogitDiff(7, 8))
STEP = 1e-2  # transformers computes softmaxes in float32, which a smaller step would magnify


def plain_metric(spliced: SplicedModel, changes: list[tuple[Any, Any, bool]]) -> float:
    """The metric of transformers' own model, with functions on what its modules read (`True`) or give."""
    handles = []
    for module, change, reads in changes:
        if reads:
            handles.append(module.register_forward_pre_hook(lambda _, args, f=change: (f(args[0]), *args[1:])))
        else:
            handles.append(module.register_forward_hook(lambda _, args, out, f=change: f(out)))
    try:
        with torch.no_grad():
            logits = spliced.model.original_model(torch.tensor([TOKENS])).logits[0, -1]
    finally:
        for handle in handles:
            handle.remove()
    return float(logits[7] - logits[8])


def slope(spliced: SplicedModel, at: Any, row: dict[str, Any], reads: bool, *others: Any) -> float:
    """The metric's derivative by a feature's value, by central differences."""
    site, _, rest = row["node"].rpartition("/")
    index, _, position = rest.partition("@")
    direction = spliced.dictionary(site).decoder_rows(torch.tensor([int(index)]))[0]

    def along(step: float) -> Any:
        change = torch.zeros(len(TOKENS), len(direction), dtype=torch.float64)
        change[int(position)] = step * direction
        return lambda x: x + change.view_as(x)

    up, down = (plain_metric(spliced, [(at, along(s), reads), *others]) for s in (STEP, -STEP))
    return (up - down) / (2 * STEP)


@pytest.mark.parametrize("method", ["attribution-patching", "ablation"])
def test_a_site_where_the_stream_forks_is_what_one_branch_reads(method: str) -> None:
    """OLMo 2's MLP reads the residual stream itself: what is written there is what the MLP reads, and no more."""
    spliced = SplicedModel(model("olmo2"), [dictionary("blocks.1.mlp.hook_in")], prepend_bos=False)
    mlp = spliced.model.original_model.model.layers[1].mlp
    effects = cs.node_effects(spliced, TASK, method=method)
    rows = [row for row in effects.strongest(6) if "/error" not in row["node"]]
    assert len(rows) > 2
    for row in rows:
        if method == "attribution-patching":
            expected = -row["activation"] * slope(spliced, mlp, row, True)
            assert row["effect"] == pytest.approx(expected, rel=5e-3, abs=1e-5)
        else:
            site, _, rest = row["node"].rpartition("/")
            index, position = map(int, rest.split("@"))
            taken = row["activation"] * spliced.dictionary(site).decoder_rows(torch.tensor([index]))[0]

            def without(x: Tensor, at: int = position, taken: Tensor = taken) -> Tensor:
                new = x.clone()
                new[0, at] -= taken
                return new

            expected = plain_metric(spliced, [(mlp, without, True)]) - plain_metric(spliced, [])
            assert row["effect"] == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_edges_pass_beside_a_site_where_the_stream_forks() -> None:
    spliced = SplicedModel(model("olmo2"), [dictionary("blocks.1.mlp.hook_in")], prepend_bos=False)
    circuit = cs.trace(spliced, TASK, max_nodes=200, prune=None)
    layers = spliced.model.original_model.model
    kept: list[Tensor] = []
    plain_metric(spliced, [(layers.layers[1].mlp, lambda x: kept.append(x) or x, True)])
    hold = (layers.layers[1].mlp, lambda x: kept[0], True)
    embed = spliced.hooked.model.original_model.model.embed_tokens
    for position in (1, 4, 8):
        edge = circuit.graph.edges[f"token@{position}", "metric"]
        token = spliced.hooked.model.original_model.model.embed_tokens.weight[TOKENS[position]]

        def scaled(x: Tensor, by: float, at: int = position, token: Tensor = token) -> Tensor:
            new = x.clone()
            new[0, at] += by * token
            return new

        up, down = (plain_metric(spliced, [(embed, lambda x, s=s: scaled(x, s), False), hold]) for s in (STEP, -STEP))
        assert edge["contribution"] == pytest.approx((up - down) / (2 * STEP), rel=5e-3, abs=1e-5)


def test_the_middle_of_opts_blocks_is_on_the_path() -> None:
    """What OPT's block shows there is a view; its effects, its edges and finite differences are one number."""
    spliced = SplicedModel(model("opt"), [dictionary("blocks.1.hook_resid_mid")], prepend_bos=False)
    out = spliced.model.original_model.model.decoder.layers[1].self_attn.out_proj
    circuit = cs.trace(spliced, TASK, max_nodes=200, prune=None)
    for row in cs.node_effects(spliced, TASK, method="attribution-patching").strongest(6):
        if "/error" in row["node"]:
            continue
        found = slope(spliced, out, row, False)
        assert row["effect"] == pytest.approx(-row["activation"] * found, rel=5e-3, abs=1e-5)
        edge = circuit.graph.edges[row["node"], "metric"]
        assert edge["contribution"] == pytest.approx(row["activation"] * found, rel=5e-3, abs=1e-5)


def test_position_embeddings_are_a_site_that_no_token_acts_on() -> None:
    spliced = SplicedModel(model("gpt2"), [dictionary("hook_pos_embed")], prepend_bos=False)
    table = spliced.model.original_model.transformer.wpe
    circuit = cs.trace(spliced, TASK, max_nodes=200, prune=None)
    rows = [
        row
        for row in cs.node_effects(spliced, TASK, method="attribution-patching").strongest(6)
        if "/error" not in row["node"]
    ]
    assert rows
    for row in rows:
        found = slope(spliced, table, row, False)
        assert row["effect"] == pytest.approx(-row["activation"] * found, rel=5e-3, abs=1e-5)
        assert circuit.graph.in_degree(row["node"]) == 0 or set(circuit.graph.predecessors(row["node"])) == {"bias"}


@pytest.mark.parametrize(
    "sites",
    [("attn.hook_z", "hook_attn_out"), ("mlp.hook_post", "hook_mlp_out"), ("attn.hook_v", "attn.hook_z")],
)
def test_a_site_that_hides_another_from_all_above_is_no_broken_splice(sites: tuple[str, str]) -> None:
    widths = {"mlp.hook_post": 32}
    names = [(f"blocks.1.{site}", widths.get(site, 24)) for site in sites]
    spliced = SplicedModel(model("gpt2"), [dictionary(n, width=w) for n, w in names], prepend_bos=False)
    assert [c for c in check_splices(spliced) if not c.holds] == []
    assert cs.trace(spliced, TASK, max_nodes=8).graph.number_of_edges() > 0


@pytest.mark.parametrize(
    ("name", "hook", "what"),
    [
        ("opt", "blocks.1.ln2.hook_normalized", r"OPTForCausalLM gives \[10, 24\] for 2 prompt.*not a vector for each"),
        ("nanochat", "ln_final.hook_in", r"'ln_final.hook_in' fires 2 times in one pass of NanoChatForCausalLM"),
    ],
)
def test_what_is_no_place_for_a_dictionary_is_refused(name: str, hook: str, what: str) -> None:
    spliced = SplicedModel(model(name), [dictionary(hook)], prepend_bos=False)
    with pytest.raises(SpliceError, match=what):
        cs.node_effects(spliced, TASK)
    with pytest.raises(SpliceError, match=what):
        cs.trace(spliced, TASK, max_nodes=4)


def skip_cross_layer(layer: int) -> Dictionary:
    """A cross-layer transcoder with a skip path, writing from its layer to the last."""
    generator = torch.Generator().manual_seed(layer)
    outs = tuple(f"blocks.{n}.hook_mlp_out" for n in range(layer, N_LAYERS))

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64) * 0.3

    tensors = {
        "W_enc": random(24, 40), "b_enc": random(40) - 0.3, "W_dec": random(40, len(outs), 24),
        "b_dec": random(len(outs), 24), "W_skip": random(24, 24),
    }  # fmt: skip
    return Dictionary.from_tensors(
        architecture="skip_cross_layer_transcoder",
        hook_in=f"blocks.{layer}.mlp.hook_in",
        hook_outs=outs,
        tensors=tensors,
    )


def test_direct_effects_past_skip_paths_that_start_below() -> None:
    spliced = SplicedModel(model("gpt2"), [skip_cross_layer(n) for n in range(N_LAYERS)], prepend_bos=False)
    circuit = cs.trace(spliced, TASK, linearisation="frozen", max_nodes=400, prune=None)
    above = spliced.sites[1]  # run from layer 1, where what layer 0 reads is not computed
    top = [key for key, kind in circuit.graph.nodes(data="kind") if kind == "feature" and key.startswith(above)]
    assert top
    for key in top[:3]:
        direct = cs.intervene(
            spliced, TASK, [cs.Scale(key, 1.5)], direct_only=True, attention="frozen", normalisation="frozen"
        )
        assert direct.effect == pytest.approx(0.5 * circuit.graph.edges[key, "metric"]["contribution"], rel=1e-7)


def test_a_model_whose_hook_points_were_replaced_says_so() -> None:
    written = WrittenTransformer(n_layers=1, n_heads=1, d_model=24, d_head=4, d_mlp=8, d_vocab=50, n_ctx=32)
    with torch.no_grad():
        for parameter in written.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(0))
    spliced = SplicedModel(written, [dictionary("blocks.0.hook_mlp_out")], prepend_bos=False)
    cs.node_effects(spliced, TASK)
    block: Any = written.blocks[0]
    block.hook_mlp_out = HookPoint()  # what add_sae and reset_saes do
    written.hook_dict = {**written.hook_dict, "blocks.0.hook_mlp_out": block.hook_mlp_out}
    with pytest.raises(SpliceError, match=r"changed since.*'blocks\.0\.hook_mlp_out'.*new SplicedModel"):
        cs.node_effects(spliced, TASK)


def test_threads_on_one_model_give_what_one_gives() -> None:
    spliced = with_transcoders(bridge("gpt2"))
    tasks = [cs.Task(TOKENS[:n], metric=cs.LogitDiff(7, 8)) for n in (5, 7, 9)]
    expected = [cs.trace(spliced, task, max_nodes=6) for task in tasks]
    tokens = torch.tensor([TOKENS])
    bare = spliced.model(tokens, return_type="logits").detach()
    found: dict[int, Any] = {}
    foreign: list[Tensor] = []
    done = threading.Event()

    def elsewhere() -> None:
        while not done.is_set():
            foreign.append(spliced.model(tokens, return_type="logits").detach())

    def trace(number: int) -> None:
        other = SplicedModel(spliced.model, spliced.dictionaries, prepend_bos=False)
        found[number] = cs.trace(other, tasks[number], max_nodes=6)

    threads = [threading.Thread(target=trace, args=(n,)) for n in range(3)]
    watcher = threading.Thread(target=elsewhere)
    for thread in (watcher, *threads):
        thread.start()
    for thread in threads:
        thread.join()
    done.set()
    watcher.join()
    for number, circuit in enumerate(expected):
        ours = dict(circuit.graph.edges)
        theirs = dict(found[number].graph.edges)
        assert ours.keys() == theirs.keys()
        for edge, data in ours.items():
            assert theirs[edge]["contribution"] == pytest.approx(data["contribution"], rel=1e-9)
    assert foreign and all(torch.allclose(logits, bare, atol=1e-10) for logits in foreign)


def test_a_model_is_let_go_after_an_error() -> None:
    spliced = with_transcoders(model("gpt2"))
    with pytest.raises(ZeroDivisionError), torch.no_grad():
        spliced.hooked.forward(torch.tensor([TOKENS]), [("blocks.0.hook_mlp_out", lambda x: x * (1 // 0))])
    free: list[Any] = []
    thread = threading.Thread(target=lambda: free.append(spliced.hooked.forward(torch.tensor([TOKENS]))))
    thread.start()
    thread.join(30)
    assert free
