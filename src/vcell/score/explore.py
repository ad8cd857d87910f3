"""What the report lets a reader look into: every target's genes, as measured and as predicted, small enough for one page.

Shape legend: P targets, G genes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from vcell.pages.render import packed
from vcell.score.metrics import Metric, per_target
from vcell.score.pairs import Pair
from vcell.score.side import Side

PAGE_BYTES = 2_400_000  # of genes by targets, over all contexts, before compression
BYTES = 4  # of a gene of a target: two fold changes, a p-value, who called it
LARGEST_FOLD = 8.0  # log2; larger ones are drawn there
P_STEP = 0.1  # of -log10 of an adjusted p-value: 0 to 25.5 in a byte
CALLED_MEASURED, CALLED_PREDICTED, TESTED = 1, 2, 4


@dataclass(frozen=True)
class Effects:
    """Fold changes and calls of one context, in bytes.

    Attributes
    ----------
    genes, targets
        Columns and rows.
    n_genes
        Of how many `genes` are the ones that change most.
    limit
        The log2 fold change that 127 stands for.
    measured_PG, predicted_PG
        log2 fold changes, int8.
    p_PG
        -log10 of the adjusted p-value in the measured cells, in steps of `P_STEP`, uint8.
    called_PG
        Bits: `CALLED_MEASURED`, `CALLED_PREDICTED`, `TESTED`.
    """

    genes: list[str]
    targets: list[str]
    n_genes: int
    limit: float
    measured_PG: np.ndarray
    predicted_PG: np.ndarray
    p_PG: np.ndarray
    called_PG: np.ndarray

    def fewer(self, genes: int) -> Effects:
        """Of the first genes, which are those that change most."""
        if genes >= len(self.genes):
            return self
        parts = (self.measured_PG, self.predicted_PG, self.p_PG, self.called_PG)
        return Effects(self.genes[:genes], self.targets, self.n_genes, self.limit, *(part[:, :genes] for part in parts))

    def plain(self) -> dict[str, Any]:
        return {
            "genes": self.genes, "targets": self.targets, "n_genes": self.n_genes, "limit": self.limit, "p_step": P_STEP,
            "measured": packed(self.measured_PG), "predicted": packed(self.predicted_PG), "p": packed(self.p_PG),
            "called": packed(self.called_PG),
        }  # fmt: skip


def effects(pred: Side, real: Side) -> Effects:
    """Of the targets of `pred`, all genes, those that change most first."""
    targets, genes = pred.cells.targets, list(pred.cells.genes)
    rows = [real.calls.of(target) for target in targets]
    measured_PG, predicted_PG = _finite(real.calls.fold_PG[rows]), _finite(pred.calls.fold_PG)
    called_PG = real.calls.called_PG[rows] * CALLED_MEASURED + pred.calls.called_PG * CALLED_PREDICTED
    order = _most_changed_first(measured_PG, called_PG, genes, targets)[: PAGE_BYTES // (BYTES * max(1, len(targets)))]
    adjusted_PG = real.calls.adjusted_PG[rows][:, order]
    with np.errstate(divide="ignore", invalid="ignore"):
        p_PG = np.nan_to_num(-np.log10(adjusted_PG), nan=0.0, posinf=25.5)
    measured_PG, predicted_PG = measured_PG[:, order], predicted_PG[:, order]
    limit = max(float(np.abs(measured_PG).max(initial=0)), float(np.abs(predicted_PG).max(initial=0)), 1e-3)
    return Effects(
        [genes[g] for g in order], list(targets), len(genes), limit,
        np.rint(measured_PG / limit * 127).astype(np.int8), np.rint(predicted_PG / limit * 127).astype(np.int8),
        np.clip(np.rint(p_PG / P_STEP), 0, 255).astype(np.uint8),
        (called_PG[:, order] + np.isfinite(adjusted_PG) * TESTED).astype(np.uint8),
    )  # fmt: skip


def _finite(fold_PG: np.ndarray) -> np.ndarray:
    return np.clip(
        np.nan_to_num(fold_PG, nan=0.0, posinf=LARGEST_FOLD, neginf=-LARGEST_FOLD), -LARGEST_FOLD, LARGEST_FOLD
    )


def _most_changed_first(
    measured_PG: np.ndarray, called_PG: np.ndarray, genes: list[str], targets: Sequence[str]
) -> np.ndarray:
    """Genes by their largest change among the called ones; the targets' own genes before all others."""
    weight_G = np.where(called_PG > 0, np.abs(measured_PG), 0.0).max(axis=0) + 1e-3 * np.abs(measured_PG).mean(axis=0)
    own = set(targets)
    first_G = np.array([gene not in own for gene in genes])
    return np.lexsort((-weight_G, first_G))


def target_table(pair: Pair, pred: Side, real: Side) -> pd.DataFrame:
    """One row per target: how many genes are called and by whom, its own gene, its cells."""
    place = {gene: i for i, gene in enumerate(pred.cells.genes)}
    rows = []
    for p, target in enumerate(pred.cells.targets):
        r, own = real.calls.of(target), place.get(target)
        called, true = pred.calls.called_PG[p], real.calls.called_PG[r]
        fold = real.calls.fold_PG[r]
        right = called & true & (np.sign(pred.calls.fold_PG[p]) == np.sign(fold))
        rows.append(
            {
                "perturbation": target, "pred": int(called.sum()), "real": int(true.sum()), "both": int((called & true).sum()),
                "right": int(right.sum()), "effect": float(np.sqrt(np.square(real.delta_of(r)).sum())),
                "cells": pair.real.n_cells(target),
                "own_pred": np.nan if own is None else pred.calls.fold_PG[p, own],
                "own_real": np.nan if own is None else fold[own],
            }
        )  # fmt: skip
    return pd.DataFrame(rows).set_index("perturbation")


def columns_of_target(metric: Metric, table: pd.DataFrame, order: Sequence[str]) -> list[float]:
    """A metric's value for every target, in the order of `order`."""
    return [float(value) for value in per_target(table, metric).reindex(order)]
