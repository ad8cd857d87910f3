"""Warm start: weights of another run, carried over by the names of genes, perturbations, contexts and batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vcell.errors import VcellError, shortlist
from vcell.model.checkpoint import Identity, read_checkpoint
from vcell.model.lora import merged
from vcell.model.predictor import axes_of
from vcell.model.table import ONE_HOT
from vcell.training.module import TransitionModule

# parameters with entries for these may come or go; those of contexts and batches begin as in any new model, all others at 0
OPTIONAL = {"contexts", "batches", "table columns"}
LEARNT_FIRST = {"contexts", "batches"}


@dataclass(frozen=True)
class Axis:
    """What the entries along one dimension of a parameter stand for, then and now."""

    what: str
    before: Sequence[str]
    now: Sequence[str]

    def matches(self) -> tuple[list[int], list[int]]:
        """Places of the names in common, now and then."""
        place = {name: i for i, name in enumerate(self.before)}
        common = [(i, place[name]) for i, name in enumerate(self.now) if name in place]
        return [i for i, _ in common], [j for _, j in common]


def carry_over(module: TransitionModule, path: Path) -> tuple[list[str], set[str]]:
    """Fills `module` with the weights in the checkpoint `path`; reports what was carried over, and names parameters with entries that begin untrained.

    Entries of genes, one-hot perturbations, contexts and batches are matched by name; those that are new begin at 0, so that they
    change nothing until they are learnt (their biases and embeddings begin as in any new model). The optimiser starts fresh.

    Raises
    ------
    VcellError
        If the checkpoint cannot be read, or its model has another shape.
    """
    checkpoint = read_checkpoint(path)
    then, now = Identity.of(checkpoint["vcell"], path), module.identity
    before = {k.removeprefix("model."): v for k, v in checkpoint["state_dict"].items() if k.startswith("model.")}
    before = merged(before, then.config)
    axes = {axis.what: axis for axis in (*_gene_axes(then, now), *_covariate_axes(then, now))}
    table, note = _table_axis(then.table, now.table)
    if table is not None:
        axes[table.what] = table
    named = _axes_of(module.model, axes)
    meaning = {name: set(dimensions.values()) for name, dimensions in axes_of(module.model).items()}
    optional = {name for name, what in meaning.items() if what & OPTIONAL}
    of_table = {name for name, what in meaning.items() if "table columns" in what}
    state = module.model.state_dict()  # the weights themselves: writing here is loading
    fresh, wrong = [], []
    partly = {name for name, axes in named.items() if any(len(a.matches()[0]) < len(a.now) for a in axes.values())}
    for name, weight in state.items():
        old = before.get(name)
        if old is None or (name in of_table and table is None):
            fresh.append(name)
        elif name in named and _carry(weight, old, named[name], not meaning[name] & LEARNT_FIRST):
            continue
        elif name not in named and old.shape == weight.shape:
            weight.copy_(old)
        else:
            wrong.append(f"{name} ({_shape(old)} then, {_shape(weight)} now)")
    lost = sorted(before.keys() - state.keys())
    wrong += [f"{name} (absent now)" for name in lost if name not in optional]
    wrong += [f"{name} (absent then)" for name in fresh if name not in optional]
    if wrong:
        raise VcellError(
            f"init_from={path} has a model with another shape: {shortlist(wrong, 6)}. Use the model.* settings it was trained with: they are "
            "recorded in the folder of its run"
        )
    lines = [f"weights of {path}, step {int(checkpoint['global_step']):,}"]
    lines += [_report(axis) for axis in axes.values()]
    lines += [note] if note else []
    if fresh:
        lines.append(f"untrained: {shortlist(fresh, 6)}")
    if lost:
        lines.append(f"left out: {shortlist(lost, 6)}")
    return lines, {*fresh, *partly}


def _gene_axes(then: Identity, now: Identity) -> list[Axis]:
    axes = [Axis("genes", then.genes, now.genes)]
    seen = [_seen(identity) for identity in (then, now)]
    if None not in seen:
        axes.append(Axis("input genes", *seen))  # type: ignore[arg-type]
    return axes


def _seen(identity: Identity) -> list[str] | None:
    """Names of the genes a model sees; None for one that sees an embedding."""
    sizes, genes = identity.sizes, identity.genes
    if sizes["input_width"] is not None:
        return None
    return genes if sizes["seen_genes"] is None else [genes[i] for i in sizes["seen_genes"]]


def _covariate_axes(then: Identity, now: Identity) -> list[Axis]:
    if then.covariates is None or now.covariates is None:
        return []
    return [Axis(what, then.covariates[what], now.covariates[what]) for what in ("contexts", "batches")]


def _table_axis(then: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[Axis | None, str | None]:
    """How the columns of the perturbation encoder's first layer map; None where they mean other things now."""
    if then["origin"] == ONE_HOT and now["origin"] == ONE_HOT:
        return Axis("perturbations", then["names"][: then["width"]], now["names"][: now["width"]]), None
    if ONE_HOT in (then["origin"], now["origin"]) or then["width"] != now["width"]:
        return None, (
            f"the perturbation table was {then['origin']} ({then['width']} wide) and is {now['origin']} ({now['width']} wide): the "
            "first layer of its encoder starts untrained"
        )
    columns = [str(i) for i in range(now["width"])]
    if then["fingerprint"] == now["fingerprint"]:
        return Axis("table columns", columns, columns), None
    return Axis("table columns", columns, columns), (
        f"the perturbation table {now['origin']} differs from the one used before ({then['origin']}) but has the same width: its columns are assumed to "
        "mean the same"
    )


def _axes_of(model: nn.Module, axes: dict[str, Axis]) -> dict[str, dict[int, Axis]]:
    """Parameter to the named axes of its dimensions, of those that are known on both sides."""
    found = {}
    for name, dimensions in axes_of(model).items():
        known = {
            dimension: axes["perturbations" if what == "table columns" and "perturbations" in axes else what]
            for dimension, what in dimensions.items()
            if what in axes or (what == "table columns" and "perturbations" in axes)
        }
        if known:
            found[name] = known
    return found


def _carry(weight: Tensor, old: Tensor, axes: dict[int, Axis], at_zero: bool) -> bool:
    """Copies into `weight` the entries of `old` whose names are there now; False where the other dimensions differ."""
    ((dimension, axis),) = axes.items()
    if [n for i, n in enumerate(weight.shape) if i != dimension] != [
        n for i, n in enumerate(old.shape) if i != dimension
    ]:
        return False
    to, origin = axis.matches()
    if at_zero:
        weight.zero_()
    weight.index_copy_(
        dimension,
        torch.tensor(to, dtype=torch.int64),
        old.index_select(dimension, torch.tensor(origin, dtype=torch.int64)),
    )
    return True


def _report(axis: Axis) -> str:
    to, _ = axis.matches()
    if len(to) == len(axis.now) == len(axis.before):
        return f"{axis.what}: all {len(to):,} carried over"
    return f"{axis.what}: {len(to):,} carried over, {len(axis.now) - len(to):,} new, {len(axis.before) - len(to):,} left out"


def _shape(tensor: Tensor) -> str:
    return "×".join(map(str, tensor.shape))
