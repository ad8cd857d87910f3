"""Predictors without a network, with the same `predict`: what a model must beat.

Shape legend: S sets, C cells of a set, G genes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from vcell.data.batch import CellSetBatch
from vcell.data.gather import Gather
from vcell.data.sampler import ControlPool
from vcell.data.splits import Group
from vcell.model.predictor import Predictor
from vcell.progress import progress_bar


@dataclass(frozen=True)
class CopiedControls:
    """No effect: the control cells themselves."""

    def predict(self, batch: CellSetBatch) -> Tensor:
        return batch.control_SCG


@dataclass(frozen=True)
class MeanEffect:
    """Control cells shifted by a pseudobulk delta, cut off at 0."""

    delta_of: Callable[[Group], np.ndarray]

    def predict(self, batch: CellSetBatch) -> Tensor:
        groups = zip(batch.contexts, batch.perturbations, strict=True)
        delta_SG = torch.from_numpy(np.stack([self.delta_of(g) for g in groups]).astype(np.float32))
        return (batch.control_SCG + delta_SG.to(batch.control_SCG.device).unsqueeze(1)).relu()


@dataclass(frozen=True)
class TrainingDeltas:
    """Pseudobulk deltas of the training groups: mean log1p of the perturbed minus that of the controls.

    Controls are the context's, weighted by the batches in which the perturbed cells lie, so that batches that hold
    other cells do not pass for effects.
    """

    deltas: Mapping[Group, np.ndarray]  # (genes), NaN for a gene that was not measured there
    fallbacks: dict[str, set[Group]] = field(default_factory=dict)
    means: dict[str | None, np.ndarray] = field(default_factory=dict)  # by context; None: over all

    @classmethod
    def of(cls, gather: Gather, assigned: Mapping[Group, str]) -> TrainingDeltas:
        groups = [g for g, split in assigned.items() if split == "train" and g in gather.store.groups]
        controls = _ControlMeans(gather, {context for context, _ in groups})
        deltas = {}
        with progress_bar(len(groups), "mean effects of training perturbations", "groups") as progress:
            for context, perturbation in groups:
                cells = gather.store.groups[context, perturbation]
                deltas[context, perturbation] = gather.pseudobulk_mean_log1p(cells) - controls.matched(context, cells)
                progress.update()
        return cls(deltas)

    def context_mean(self, group: Group) -> np.ndarray:
        """Mean over the training perturbations of the context; over all contexts where it has none."""
        if group[0] not in {context for context, _ in self.deltas}:
            self.fallbacks.setdefault("context mean", set()).add(group)
        return self._of_context(group[0])

    def perturbation_mean(self, group: Group) -> np.ndarray:
        """Mean over the training contexts of the perturbation; the context mean where it was never trained on."""
        here = [d for (_, perturbation), d in self.deltas.items() if perturbation == group[1]]
        if not here:
            self.fallbacks.setdefault("perturbation mean", set()).add(group)
            return self.context_mean(group)
        return _mean_known(here, self._of_context(group[0]))

    def _of_context(self, context: str) -> np.ndarray:
        """Mean delta of a context; genes it never measured, and contexts never trained on, get that of all contexts."""
        if context not in self.means:
            if None not in self.means:
                self.means[None] = _mean_known(self.deltas.values(), np.array(0.0))
            here = [d for (c, _), d in self.deltas.items() if c == context]
            self.means[context] = _mean_known(here, self.means[None])
        return self.means[context]


def _mean_known(deltas: Iterable[np.ndarray], otherwise: np.ndarray) -> np.ndarray:
    """Mean over the deltas in which a gene was measured; `otherwise` where it was in none."""
    total: np.ndarray | float = 0.0
    number: np.ndarray | int = 0
    for delta in deltas:
        total, number = total + np.nan_to_num(delta), number + ~np.isnan(delta)
    return np.where(number > 0, total / np.maximum(number, 1), otherwise)


class _ControlMeans:
    """Mean log1p of control cells by batch, with the batches and the fallback that training sets are drawn by."""

    def __init__(self, gather: Gather, contexts: set[str]) -> None:
        self.pool = ControlPool(gather.store, contexts)
        self.of_context = {c: gather.pseudobulk_mean_log1p(cells) for c, cells in self.pool.of_context.items()}
        self.of_batch = {b: gather.pseudobulk_mean_log1p(cells) for b, cells in self.pool.of_batch.items()}

    def matched(self, context: str, cells: np.ndarray) -> np.ndarray:
        """Means of the batches of `cells`, weighted by how many of them lie there."""
        batches, counts = np.unique(self.pool.batch_of_cell[cells], return_counts=True)
        means = np.stack([self.of_batch.get(int(b), self.of_context[context]) for b in batches])
        weights = counts[:, None] * ~np.isnan(means)  # batches of sources that did not measure a gene say nothing of it
        total = weights.sum(axis=0)
        return np.divide(
            np.nansum(means * counts[:, None], axis=0), total, out=np.full(len(total), np.nan), where=total > 0
        )


def make_baselines(gather: Gather, assigned: Mapping[Group, str]) -> tuple[dict[str, Predictor], TrainingDeltas]:
    """The three baselines by name, and the deltas that two of them use."""
    deltas = TrainingDeltas.of(gather, assigned)
    baselines: dict[str, Predictor] = {
        "copied_controls": CopiedControls(),
        "context_mean": MeanEffect(_remembered(deltas.context_mean)),
        "perturbation_mean": MeanEffect(_remembered(deltas.perturbation_mean)),
    }
    return baselines, deltas


def _remembered(delta_of: Callable[[Group], np.ndarray]) -> Callable[[Group], np.ndarray]:
    """The same function, its last answer kept: cells come target by target."""
    last: dict[Group, np.ndarray] = {}

    def remembered(group: Group) -> np.ndarray:
        if group not in last:
            last.clear()
            last[group] = delta_of(group)
        return last[group]

    return remembered
