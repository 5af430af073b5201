"""The public contract: names, signatures, defaults. A change here is a change that users see."""

import inspect

import pytest

import circuitsae as cs

SIGNATURES = {
    "load": "(preset=None, *, model=None, dictionaries=None, device=None, dtype=None, tokenizer=None, sites=None, "
    "skip_positions=None, skip_sinks=None, prepend_bos=None, center_writing_weights=None, name=None, progress=None)",
    "node_effects": "(spliced, task, *, method='auto', baseline=None, gradient='pass-through', "
    "sites=None, skip_positions=None, reference=None, progress=None, **options)",
    "trace": "(spliced, task, *, method='auto', baseline=None, gradient='pass-through', "
    "linearisation='gradient', sites=None, targets='metric', logit_share=0.95, max_logits=10, error_targets=False, "
    "max_nodes=256, "
    "node_threshold=None, edge_threshold=None, top_edges=None, prune='top-k', merge_pruned=False, skip_positions=None, "
    "skip_nodes=False, drop_positions=(), measure=0, min_faithfulness=None, heads=0, reference=None, compat=None, progress=None, **method_options)",
    "estimate": "(spliced, task, *, graph=True, **settings)",
    "trace_each": "(spliced, tasks, *, progress=None, **options)",
    "node_effects_each": "(spliced, tasks, *, progress=None, **options)",
    "trace_many": "(spliced, tasks, *, align='position', slots=None, min_count=1, progress=None, **options)",
    "run_batch": "(spliced, tasks, folder, *, shard=(1, 1), workers=1, per_file=None, progress=None, **options)",
    "open_batch": "(folder)",
    "aggregate": "(circuits, *, align='position', slots=None, min_count=1)",
    "compare": "(a, b, *, align='position', slots=None)",
    "intervene": "(spliced, task, edits, *, errors='live', attention='free', normalisation='free', direct_only=False, "
    "baseline=None, circuit=None, nodes=None, skip_positions=None)",
    "intervene_many": "(spliced, task, choices, *, progress=None, **settings)",
    "attention": "(session, layer, head, query, key, *, relative=True, top=20)",
    "heads": "(session, edges)",
    "explain": "(session, source, target, *, relative=True, top=5)",
    "generate": "(spliced, prompt, edits, *, max_new_tokens=20, temperature=0.0, top_k=None, top_p=None, seed=0, "
    "samples=1, stop_at_end=True, baseline=None, skip_positions=None, use_cache=True, progress=None)",
    "scan_ablation": "(spliced, tasks, *, kinds=('feature', 'error'), sites=None, position=None, top=None, "
    "method='attribution-patching', baseline=None, skip_positions=None, progress=None)",
    "scan_activity": "(spliced, prompts, *, sites=None, position=None, errors=False, skip_positions=None)",
    "scan_scales": "(spliced, task, node, *, scales=None, errors='live', skip_positions=None)",
    "evaluate": "(spliced, tasks, circuit=None, *, baseline=None, errors='default', positions=None, start_layer=0, "
    "grid=(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0), complement=True, minimality=0, "
    "edges=False, tokens='keep', compare=('activation', 'random'), n_random=3, method='attribution-"
    "patching', reference=None, skip_positions=None, seed=0, bootstrap=1000, store=None, progress=None)",
    "learn_mask": "(spliced, tasks, size, *, steps=200, rate=0.1, batch=8, positions=False, baseline=None, errors=True, "
    "seed=0, progress=None)",
    "task_set": "(name, vocabulary, n=100, seed=0, *, aligned=False)",
    "read_tasks": "(path, vocabulary, name=None, *, n=None)",
    "describe": "(spliced, texts, path, *, recipe=None, progress=None)",
    "open_labels": "(source, **options)",
    "label_circuit": "(circuit, store)",
    "Task": "(prompt, metric, patch=None)",
    "LogitDiff": "(answer, foil, position=-1)",
    "Logit": "(answer, position=-1)",
    "LogProb": "(answer, position=-1)",
    "Probability": "(answer, position=-1)",
    "Ablate": "(node)",
    "Scale": "(node, by)",
    "Add": "(node, value)",
    "Set": "(node, value)",
    "SplicedModel": "(model, dictionaries, *, skip_positions=(), skip_sinks=None, name=None, prepend_bos=None, preset=None)",
}


def _signature(thing: object) -> str:
    signature = inspect.signature(thing)  # type: ignore[arg-type]
    plain = [p.replace(annotation=inspect.Parameter.empty) for p in signature.parameters.values()]
    return str(signature.replace(parameters=plain, return_annotation=inspect.Signature.empty))


@pytest.mark.parametrize("name", SIGNATURES)
def test_signature_is_as_published(name: str) -> None:
    assert _signature(getattr(cs, name)) == SIGNATURES[name]


@pytest.mark.parametrize("name", sorted(set(cs.__all__) - {"__version__"}))
def test_every_public_name_says_what_it_is(name: str) -> None:
    text = inspect.getdoc(getattr(cs, name))
    assert text
    assert text.split("\n")[0].endswith((".", ":"))


def test_circuit_and_results_have_what_the_contract_names() -> None:
    for name in ("graph", "save", "load", "export", "from_json", "to_json", "to_dataframe", "strongest", "paths"):
        assert hasattr(cs.Circuit, name) or name in cs.Circuit.__annotations__
    for name in ("metric_before", "metric_after", "effect", "kl", "activations", "top_tokens", "top_tokens_before"):
        assert hasattr(cs.InterventionResult, name) or name in cs.InterventionResult.__annotations__
    for name in ("to_dataframe", "strongest", "records", "effect_of"):
        assert hasattr(cs.NodeEffects, name)
