"""Validation on held-out perturbations: the loss, and the scores that matter.

Every rank adds its own sets; the results of all are put together, each group once, so that any number of ranks finds the same.
The scores run over one set of every group and its matched controls: they follow the official ones, which take all cells.

Shape legend: S sets, C cells of a set, G genes, P perturbations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from vcell.data.batch import CellSetBatch
from vcell.data.splits import Group
from vcell.errors import VcellError, nearest
from vcell.model.losses import Loss, discrimination_loss, weights_of
from vcell.model.scores import (
    Differential,
    de_overlap,
    delta_correlation,
    differential,
    discrimination_l1,
    distinctness,
)

# the scores of which more is better; the others are errors
HIGHER_IS_BETTER = {"discrimination", "de_overlap", "delta_correlation", "distinctness"}
FEWEST_TO_COLLAPSE = 3
COLLAPSED = 0.02  # a one-hot table's held-out perturbations, which get a mean response, come to 0.01 by their control cells alone


@dataclass
class Validated:
    """One group's part of a validation, on the host."""

    terms: dict[str, float]
    predicted_G: Tensor  # pseudobulk deltas, mean log1p
    observed_G: Tensor
    known_G: Tensor | None
    mae: float
    de_overlap: float | None
    start_G: Tensor | None = None  # of what the network starts from, where that is a prior


@dataclass
class ValidationScores:
    """Collects the sets of a validation.

    Parameters
    ----------
    genes
        Names, to leave a target's own gene out of its discrimination score.
    differential_expression
        Whether to compute DE overlap, the dearest of the scores.
    """

    genes: Sequence[str]
    differential_expression: bool = True
    found: dict[Group, Validated] = field(default_factory=dict)
    distinctness: float | None = None  # of the last validation, where enough was held out in one context
    last_groups: list[Group] = field(default_factory=list)  # and its groups
    _device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    _measured: dict[Group, Differential] = field(default_factory=dict)  # the same cells in every validation

    def __post_init__(self) -> None:
        self.genes = list(self.genes)

    @property
    def collapsed(self) -> bool:
        """Whether the predictions of the last validation were one profile."""
        return self.distinctness is not None and self.distinctness < COLLAPSED

    def names(self, loss: Loss) -> list[str]:
        """What `compute` gives; distinctness only where enough perturbations are held out in one context."""
        overlap = ["de_overlap"] if self.differential_expression else []
        return [
            "loss",
            *weights_of(loss),
            "discrimination",
            *overlap,
            "mae",
            "delta_correlation",
            "distinctness",
            "addition",
        ]

    def check(self, names: Sequence[str], loss: Loss, key: str) -> None:
        """Raises, before training, for one of `names` (``val/mae``), given as `key`, that no validation will give."""
        known = [f"val/{name}" for name in self.names(loss)]
        for name in names:
            if name not in known:
                raise VcellError(f"{key} names {name!r}; validation gives {', '.join(known)}.{nearest(name, known)}")

    def add(self, batch: CellSetBatch, predicted_SCG: Tensor, loss: Loss, start_SCG: Tensor | None = None) -> None:
        """Takes in predicted sets, and the cells that the network started from, where these are a prior's."""
        assert batch.perturbed_SCG is not None
        predicted_SCG, self._device = predicted_SCG.float(), predicted_SCG.device
        terms = loss(predicted_SCG, batch)
        control_SG = batch.control_SCG.mean(1)
        predicted_SG, observed_SG = predicted_SCG.mean(1) - control_SG, batch.perturbed_SCG.mean(1) - control_SG
        start_SG = None if start_SCG is None else start_SCG.float().mean(1) - control_SG
        for i, group in enumerate(zip(batch.contexts, batch.perturbations, strict=True)):
            known_G = None if batch.known_SG is None else batch.known_SG[i]
            error_G = (predicted_SG[i] - observed_SG[i]).abs()
            overlap = None
            if self.differential_expression:
                known = slice(None) if known_G is None else known_G
                control_CG, cells_CG = batch.control_SCG[i][:, known], batch.perturbed_SCG[i][:, known]
                if group not in self._measured:
                    self._measured[group] = differential(cells_CG, control_CG)
                predicted = differential(predicted_SCG[i][:, known], control_CG)
                overlap = float(de_overlap(predicted, self._measured[group]))
            self.found[group] = Validated(
                {name: float(value_S[i]) for name, value_S in terms.items()},
                predicted_SG[i].cpu(),
                observed_SG[i].cpu(),
                None if known_G is None else known_G.cpu(),
                float(error_G.mean() if known_G is None else error_G[known_G].mean()),
                overlap,
                None if start_SG is None else start_SG[i].cpu(),
            )

    def compute(self, loss: Loss) -> dict[str, float]:
        """Mean scores over the groups of all ranks; clears what was collected."""
        found = _of_all_ranks(self.found)
        self.found = {}
        if not found:
            return {}
        self.last_groups = groups = sorted(found)
        rows = [found[group] for group in groups]
        scores = {name: _mean([row.terms[name] for row in rows]) for name in rows[0].terms}
        predicted_PG, observed_PG = (
            torch.stack([getattr(row, n) for row in rows]).to(self._device) for n in ("predicted_G", "observed_G")
        )
        known = [row.known_G for row in rows]
        known_PG = None if known[0] is None else torch.stack(known).to(self._device)  # type: ignore[arg-type]
        if known_PG is not None:
            predicted_PG, observed_PG = predicted_PG * known_PG, observed_PG * known_PG
        if rows[0].start_G is not None:
            scores["addition"] = worth_keeping(rows)
        scores |= self._over_contexts(groups, predicted_PG, observed_PG, known_PG, loss)
        scores["mae"] = _mean([row.mae for row in rows])
        scores["delta_correlation"] = float(delta_correlation(predicted_PG, observed_PG, known_PG).mean())
        if self.differential_expression:
            scores["de_overlap"] = _mean([row.de_overlap for row in rows])
        # of the terms as they are now: the contrastive one over all groups, not those that happened to share a step
        if weights := weights_of(loss):
            scores["loss"] = sum(weight * scores[name] for name, weight in weights.items())
        return scores

    def _over_contexts(
        self, groups: list[Group], predicted_PG: Tensor, observed_PG: Tensor, known_PG: Tensor | None, loss: Loss
    ) -> dict[str, float]:
        """Scores that compare the perturbations of one context."""
        number = {gene: i for i, gene in enumerate(self.genes)}
        ranks, distinct, contrasts = [], [], []
        for context in sorted({context for context, _ in groups}):
            places = [i for i, group in enumerate(groups) if group[0] == context]
            here = torch.tensor(places, device=self._device)
            own_P = torch.tensor([number.get(groups[i][1], -1) for i in places], device=self._device)
            ranks.append(discrimination_l1(predicted_PG[here], observed_PG[here], own_P))
            if len(here) >= FEWEST_TO_COLLAPSE:
                distinct.append(float(distinctness(predicted_PG[here])))
            if "contrastive" in weights_of(loss):
                known = None if known_PG is None else known_PG[here]
                own = torch.arange(len(here), device=self._device)
                rivals = ~torch.eye(len(here), dtype=torch.bool, device=self._device)
                contrasts.append(
                    discrimination_loss(
                        predicted_PG[here],
                        observed_PG[here],
                        own,
                        rivals,
                        known,
                        known,
                        getattr(loss, "temperature", 0.1),
                    )
                )
        self.distinctness = _mean(distinct) if distinct else None
        scores = {"discrimination": float(torch.cat(ranks).mean())}
        if self.distinctness is not None:
            scores["distinctness"] = self.distinctness
        if contrasts:
            scores["contrastive"] = float(torch.cat(contrasts).mean())
        return scores


def worth_keeping(rows: Sequence[Validated]) -> float:
    """How much of what a network adds to its prior brings predictions nearest to the measured groups, 0 to 1.

    By least squares over the mean log1p of all groups. A network that has learnt the noise of its training cells adds what is in no other
    cells: there this is about 0, and the prior stands.
    """
    along = length = 0.0
    for row in rows:
        assert row.start_G is not None
        known_G = slice(None) if row.known_G is None else row.known_G
        added_G = (row.predicted_G - row.start_G)[known_G].double()
        along += float(added_G @ (row.observed_G - row.start_G)[known_G].double())
        length += float(added_G @ added_G)
    return min(1.0, max(0.0, along / length)) if length > 0 else 1.0


def score_of(trainer: Trainer, name: str, key: str) -> float:
    """A score of the validation that just ended."""
    if name not in trainer.callback_metrics:
        raise VcellError(
            f"{key} names {name!r}, which this validation does not give: it needs {FEWEST_TO_COLLAPSE} perturbations of one context"
        )
    return float(trainer.callback_metrics[name])


def improved(name: str, score: float, best: float | None) -> bool:
    """Whether a score is better than the best so far; NaN never is."""
    higher = name.split("/")[-1] in HIGHER_IS_BETTER
    return score == score and (best is None or (score > best if higher else score < best))


def _mean(values: Sequence[Any]) -> float:
    return sum(values) / len(values)


def _of_all_ranks(found: dict[Group, Validated]) -> dict[Group, Validated]:
    if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
        return found
    parts: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(parts, found)
    return {group: row for part in parts for group, row in part.items()}
