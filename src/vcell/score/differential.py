"""Differential expression of every target against controls, as the official scorers compute it.

======================  =========================================  ==========================================
                        2025 (`cell-eval` 0.8.2, profile vcc)      2026 (`cell-eval2` 0.20.0, preset vcc2026)
======================  =========================================  ==========================================
tested values           log1p as given                             log1p of counts per million
genes                   all                                        mean CPM above 5 in the measured controls
fold change             of geometric means                         of mean CPM, 1e-9 added to both
called                  adjusted p below .05, in single precision  adjusted p below .05
======================  =========================================  ==========================================

Both: two-sided Wilcoxon rank-sum test, Benjamini-Hochberg *per target*. Correcting over all targets at once, as many scripts
do, gives other sets of genes.

Shape legend: P targets, G genes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy import sparse
from scipy.stats import false_discovery_control

from vcell.data.files.normalize import counts_of_log1p
from vcell.score.gpu import rank_test
from vcell.score.grouped import GroupedCells
from vcell.system import in_threads

SIGNIFICANT = 0.05
PER_MILLION = 1e6
LEAST_CPM = 5.0
EPSILON = 1e-9


@dataclass(frozen=True)
class Calls:
    """Tests of targets (rows) and genes (columns).

    Attributes
    ----------
    p_PG, adjusted_PG
        p-values, and those adjusted per target; NaN for genes that were not tested.
    fold_PG
        log2 fold changes; may be infinite in 2025.
    called_PG
        Genes called changed.
    """

    targets: list[str]
    p_PG: np.ndarray
    adjusted_PG: np.ndarray
    fold_PG: np.ndarray
    called_PG: np.ndarray

    def of(self, target: str) -> int:
        """Row of a target."""
        return self.targets.index(target)


def calls_2025(cells: GroupedCells, device: torch.device) -> Calls:
    """Of log1p cells against their own controls."""
    control_mean = counts_of_log1p(_mean(cells.controls))
    p_of = rank_test(cells.controls, device)

    def test(target: str) -> tuple[np.ndarray, np.ndarray]:
        group = cells.cells[target]
        with np.errstate(divide="ignore", invalid="ignore"):
            fold = np.log2(counts_of_log1p(_mean(group)) / control_mean)
        return p_of(group), np.nan_to_num(fold, nan=0.0, posinf=np.inf, neginf=-np.inf)

    targets, p_PG, fold_PG = _all(cells, test)
    adjusted_PG = _adjusted(p_PG)
    # cell-eval reads the table as single precision before it compares
    called_PG = adjusted_PG.astype(np.float32) < np.float32(SIGNIFICANT)
    return Calls(targets, p_PG, adjusted_PG, fold_PG, called_PG)


def calls_2026(cells: GroupedCells, controls: sparse.csr_matrix, device: torch.device) -> Calls:
    """Of whole counts against the measured controls given."""
    per_million = cpm(controls)
    control_mean = _mean(per_million)
    tested_G = control_mean > LEAST_CPM
    p_of = rank_test(_log1p(per_million), device)

    def test(target: str) -> tuple[np.ndarray, np.ndarray]:
        group = cpm(cells.cells[target])
        fold = np.log2((_mean(group) + EPSILON) / (control_mean + EPSILON))
        return np.where(tested_G, p_of(_log1p(group)), np.nan), fold

    targets, p_PG, fold_PG = _all(cells, test)
    adjusted_PG = np.full_like(p_PG, np.nan)
    if tested_G.any():
        adjusted_PG[:, tested_G] = _adjusted(p_PG[:, tested_G])
    return Calls(targets, p_PG, adjusted_PG, fold_PG, adjusted_PG < SIGNIFICANT)


def cpm(counts: sparse.csr_matrix) -> sparse.csr_matrix:
    """Counts per million of each cell, in the arithmetic of `scanpy.pp.normalize_total`: ties must stay ties."""
    data = counts.data.astype(np.float64)
    lengths = np.diff(counts.indptr)
    totals = np.asarray(
        sparse.csr_matrix((data, counts.indices, counts.indptr), shape=counts.shape).sum(axis=1)
    ).ravel()
    totals = totals / PER_MILLION
    totals[totals == 0] = 1.0
    return sparse.csr_matrix((data / np.repeat(totals, lengths), counts.indices, counts.indptr), shape=counts.shape)


def _log1p(cells: sparse.csr_matrix) -> sparse.csr_matrix:
    return sparse.csr_matrix((np.log1p(cells.data), cells.indices, cells.indptr), shape=cells.shape)


def _mean(cells: sparse.csr_matrix) -> np.ndarray:
    """In the cells' own precision, as the packages take it: fold changes that are equal there must be equal here."""
    return np.asarray(cells.mean(axis=0)).ravel()


def _all(
    cells: GroupedCells, test: Callable[[str], tuple[np.ndarray, np.ndarray]]
) -> tuple[list[str], np.ndarray, np.ndarray]:
    targets = cells.targets
    p_PG, fold_PG = (np.empty((len(targets), len(cells.genes))) for _ in range(2))
    for row, (p_G, fold_G) in enumerate(in_threads(test, targets)):
        p_PG[row], fold_PG[row] = p_G, fold_G
    return targets, p_PG, fold_PG


def _adjusted(p_PG: np.ndarray) -> np.ndarray:
    """Benjamini and Hochberg (1995), target by target."""
    return np.asarray(false_discovery_control(p_PG, axis=1)) if p_PG.size else p_PG
