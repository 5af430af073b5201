"""What a circuit records of how it came about, enough to compute it again."""

import datetime
from typing import Any

from circuitsae import __version__
from circuitsae.attribution.effects import Context, NodeEffects
from circuitsae.errors import InputError, UnknownNameError
from circuitsae.interventions import top_tokens
from circuitsae.presets import find_preset


def provenance(context: Context, effects: NodeEffects) -> dict[str, Any]:
    """Returns what a saved circuit needs to be computed again."""
    spliced, task, run = context.spliced, context.task, context.run
    found: dict[str, Any] = {
        "schema": "circuitsae/1",
        "package_version": __version__,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "model": {
            "name": spliced.name,
            "n_layers": spliced.n_layers,
            "d_model": spliced.d_model,
            "d_vocab": spliced.vocabulary.d_vocab,
            **({"revision": spliced.revision} if spliced.revision else {}),
        },
        "dictionaries": spliced.describe(),
        "sites": sorted(spliced.sites, key=lambda s: spliced.order(spliced.dictionary(s).hook_in)),
        "tokens": list(task.strings),
        "token_ids": list(task.tokens),
        "metric": dict(task.metric.description),
        "metric_value": effects.metric,
        "top_tokens": [[t, p] for t, p in top_tokens(run.logits[-1], spliced.vocabulary, 10)],
        "method": effects.method,
        "baseline": effects.baseline,
        "gradient": effects.gradient,
    }
    if spliced.preset is not None:
        found["preset"] = spliced.preset
        try:
            there = find_preset(spliced.preset).neuronpedia
        except (UnknownNameError, InputError):  # its file is gone since the model was loaded
            there = ""
        found |= {"neuronpedia": there} if there else {}
    if task.prompt is not None:
        found["prompt"] = task.prompt
    if task.patch_tokens is not None:
        found |= {"patch_tokens": list(task.patch_strings or ()), "patch_token_ids": list(task.patch_tokens)}
        if task.patch is not None:
            found["patch"] = task.patch
    if effects.baseline_metric is not None:
        found["baseline_metric_value"] = effects.baseline_metric
    return found
