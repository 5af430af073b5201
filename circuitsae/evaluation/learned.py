"""Masks learned for faithfulness: which nodes suffice at a given size, found by training gates instead of by prediction.

Every node has a hard-concrete gate (Louizos et al. 2018, arXiv 1712.01312): between 0 and 1 while training, with all of
the mass at the ends. Trained are the gates only, on the distance of `m(C)` from `m(full)` and on the size.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from circuitsae.attribution.context import Context
from circuitsae.errors import InputError
from circuitsae.evaluation.prompts import Prompts
from circuitsae.evaluation.ranking import NodeTable, Owners
from circuitsae.evaluation.survey import summarise, survey_prompt
from circuitsae.model.modes import in_own_mode
from circuitsae.model.runs import forward
from circuitsae.model.spliced import SplicedModel
from circuitsae.progress import Progress, report
from circuitsae.task.sets import TaskSet
from circuitsae.task.task import Task

# The gates' stretch and temperature, as in the paper.
_LOW, _HIGH, _HEAT = -0.1, 1.1, 2 / 3


@dataclass(frozen=True)
class LearnedMask:
    """A learned circuit.

    Attributes:
        scores: By node key, the gates' log-odds of the `size` nodes that are most open; `evaluate` takes them as a circuit.
        losses: Of every step, the mean squared distance of `m(C)` from `m(full)`, in units of `m(full) - m(empty)`.
        sizes: Of every step, the expected number of open gates.
        about: How it was trained, JSON-able.
    """

    scores: Mapping[str, float]
    losses: tuple[float, ...]
    sizes: tuple[float, ...]
    about: Mapping[str, Any]


@in_own_mode
def learn_mask(
    spliced: SplicedModel,
    tasks: TaskSet | Sequence[Task],
    size: int,
    *,
    steps: int = 200,
    rate: float = 0.1,
    batch: int = 8,
    positions: bool = False,
    baseline: str | None = None,
    errors: bool = True,
    seed: int = 0,
    progress: Progress | None = None,
) -> LearnedMask:
    """Returns the nodes that a mask of a given size, trained for faithfulness, keeps.

    Gates begin open where predicted effects are largest; Adam lowers `((m(C) - m(full)) / (m(full) - m(empty)))**2` plus
    a penalty on an expected size above `size`. Gradients flow through the model and through dictionaries (features that are
    active); error nodes are what the dictionaries leave over in the masked run. Cost: the survey of the tasks, then `steps
    * batch` forward and backward passes.

    Args:
        spliced: The model.
        tasks: What to be faithful on.
        size: Number of nodes.
        steps: Of Adam.
        rate: Its learning rate.
        batch: Tasks a step.
        positions: Whether a node is a feature at one position; then all prompts must have one length.
        baseline: As for `evaluate`.
        errors: Whether error nodes are nodes like others, or all kept.
        seed: Of the gates' noise and of the tasks' order.
        progress: Called with steps done, steps in all, and a word; returning `False` cancels.

    Raises:
        InputError: A size, number of steps or rate that is not positive, or prompts of several lengths with `positions`.
    """
    for name, value in (("size", size), ("steps", steps), ("batch", batch), ("rate", rate)):
        if not value > 0:
            raise InputError(f"{name} is {value}; expected more than 0.")
    prompts = Prompts(spliced, tuple(tasks), baseline=baseline, seed=seed)
    if positions and prompts.length is None:
        raise InputError("Nodes with positions need prompts of one length, and these have several.")
    owners = Owners.of(spliced, positions)
    surveyed = [survey_prompt(prompts, n, owners, "attribution-patching", errors) for n in range(len(prompts))]
    survey = summarise(owners, surveyed)
    table = survey.table
    if size > len(table):
        raise InputError(f"size is {size}; there are {len(table)} nodes on these tasks.")
    generator = torch.Generator().manual_seed(seed)
    # The predicted circuit of that size begins open, the weakest nearly closed; training may change any of that.
    order = np.argsort(np.argsort(-np.abs(survey.effect), kind="stable"), kind="stable")
    start = torch.from_numpy(np.where(order < size, 2.0, -1.0 - 2.0 * order / len(table)))
    gates = start.to(spliced.device, torch.float64).requires_grad_()
    adam = torch.optim.Adam([gates], lr=rate)
    spans = _spans(prompts, table)
    losses: list[float] = []
    sizes: list[float] = []
    for step in range(steps):
        chosen = torch.randperm(len(prompts), generator=generator)[:batch].tolist()
        adam.zero_grad()
        total = 0.0
        with torch.enable_grad():
            for number in chosen:
                prompt = prompts[number]
                noise = torch.rand(len(table), generator=generator, dtype=torch.float64).clamp(1e-6, 1 - 1e-6)
                mask = _open(gates, noise.to(gates.device))
                miss = (masked_metric(prompt, table, mask) - prompt.metric) / spans
                (miss**2 / len(chosen)).backward()
                total += float(miss.detach()) ** 2 / len(chosen)
            expected = torch.sigmoid(gates - _HEAT * float(np.log(-_LOW / _HIGH))).sum()
            (torch.relu(expected - size) / size).backward()
        adam.step()
        losses.append(total)
        sizes.append(float(expected.detach()))
        report(progress, step + 1, steps, "steps")
    odds = gates.detach().cpu()
    kept = odds.topk(size).indices.tolist()
    lowest = float(odds.min())
    return LearnedMask(
        {table.key(place): float(odds[place]) - lowest for place in kept},
        tuple(losses),
        tuple(sizes),
        {"size": size, "steps": steps, "rate": rate, "batch": batch, "seed": seed, "baseline": prompts.baseline,
         "n_nodes": len(table)},
    )  # fmt: skip


def masked_metric(prompt: Context, table: NodeTable, mask: Tensor) -> Tensor:
    """Returns the metric with every node between its baseline (0) and its live value (1), differentiable in `mask [node]`.

    At 0 and 1 it is the metric of that circuit, as `measure_cuts` gives it.
    """
    spliced, run, owners = prompt.spliced, prompt.run, table.owners
    read: dict[int, Tensor] = {}
    dtype = run.embed.dtype
    mask = mask.to(dtype)

    def gate(owner: int, positions: Tensor, indices: Tensor) -> Tensor:
        """What share of each of an owner's nodes is kept: none of those that only the masked run has."""
        part = table.part(owner)
        known = torch.from_numpy(table.number[part].copy()).to(mask.device)
        width = 1 if owners.is_error(owner) else owners.widths[owner]
        numbers = (positions * width + indices if owners.positioned else indices).contiguous()
        if not len(known):
            return torch.ones(len(numbers), dtype=dtype, device=mask.device)
        at = torch.searchsorted(known, numbers).clamp_max(len(known) - 1)
        return torch.where(known[at] == numbers, mask[part][at], 0.0)

    def on_write(name: str, x: Tensor) -> Tensor:
        x = x.to(dtype)
        change = torch.zeros_like(x[0])
        rebuilt = torch.zeros_like(x[0])
        at = run.sites[name].kept
        for number, out in spliced.writers[name]:
            dictionary = spliced.dictionaries[number]
            x_in = read[number][0].to(dtype)
            applied = run.features[number].kept
            live = dictionary.encode(x_in[applied].detach()).features
            rows = applied[live.rows]
            values = dictionary.pre_activations(x_in, rows, live.indices)
            nodes = prompt.nodes[number]
            base = prompt.baseline.feature_values(number, rows, live.indices)
            lost = values if base is None else values - base
            # Features of the baseline that are not live here are nodes too: they are brought in as far as they are lost.
            absent = live.find(torch.searchsorted(applied, nodes.positions), nodes.indices) < 0
            positions = torch.cat([rows, nodes.positions[absent]])
            indices = torch.cat([live.indices, nodes.indices[absent]])
            lost = torch.cat([lost, -nodes.baselines[absent]])
            weights = (1 - gate(number, positions, indices)) * lost
            whole = values
            scale, biases = dictionary.scale_and_biases(x_in)
            if scale is not None:
                weights, whole = weights * scale[positions], whole * scale[rows]
            unique, place = torch.unique(indices, return_inverse=True)
            decoders = dictionary.decoder_rows(unique, out).to(x)
            change = change.index_add(0, positions, -weights[:, None] * decoders[place])
            rebuilt = rebuilt.index_add(0, rows, whole[:, None] * decoders[place[: len(rows)]])
            bias = biases[out].to(dtype).expand(len(x_in), -1)[applied]
            rebuilt = rebuilt.index_add(0, applied, bias)
            skip = dictionary.skip(x_in[applied]) if out == 0 else None
            if skip is not None:
                rebuilt = rebuilt.index_add(0, applied, skip)
        owner = len(owners.sites) + owners.hooks.index(name)
        errors = (x[0] - rebuilt)[at]
        base_errors = None if prompt.baseline.errors is None else prompt.baseline.errors[name][at]
        gone = errors if base_errors is None else errors - base_errors
        zeros = torch.zeros_like(at)
        kept = gate(owner, at if owners.positioned else zeros, zeros)
        change = change.index_add(0, at, -(1 - kept)[:, None] * gone)
        return x + change[None]

    captured = forward(spliced, run.tokens[None], prompt.readout, on_read=read.__setitem__, on_write=on_write)
    return prompt.readout.of(captured)[0].double()


def _open(gates: Tensor, noise: Tensor) -> Tensor:
    concrete = torch.sigmoid((noise.log() - (1 - noise).log() + gates) / _HEAT)
    return (concrete * (_HIGH - _LOW) + _LOW).clamp(0, 1)


def _spans(prompts: Prompts, table: NodeTable) -> float:
    """Returns by how much ablating everything moves the metric, root mean square over the tasks."""
    nothing = torch.zeros(len(table), dtype=torch.float64, device=prompts.spliced.device)
    with torch.no_grad():
        moved = [
            float(masked_metric(prompts[n], table, nothing)) - prompts[n].metric for n in range(min(len(prompts), 8))
        ]
    return float(np.sqrt(np.mean(np.square(moved)))) or 1.0
