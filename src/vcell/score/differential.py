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

from dataclasses import dataclass

import numpy as np
import torch
from scipy import sparse

from vcell.data.files.normalize import counts_of_log1p
from vcell.model.scores import false_discovery_rate
from vcell.score.gpu import RankTest, rank_test

SIGNIFICANT = 0.05
PER_MILLION = 1e6
LEAST_CPM = 5.0
EPSILON = 1e-9
CELLS_AT_ONCE = 1024


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


@dataclass(frozen=True)
class Tests2025:
    """Of log1p cells against some controls, which are analysed once."""

    control_mean_G: np.ndarray
    p_of: RankTest

    @classmethod
    def of(cls, controls: sparse.csr_matrix, device: torch.device) -> Tests2025:
        return cls(counts_of_log1p(_mean(controls)), rank_test(controls, device))

    def __call__(self, group: sparse.csr_matrix) -> tuple[np.ndarray, np.ndarray]:
        """p-values and log2 fold changes of some cells, ``(genes)``."""
        with np.errstate(divide="ignore", invalid="ignore"):
            fold_G = np.log2(counts_of_log1p(_mean(group)) / self.control_mean_G)
        return self.p_of(group), np.nan_to_num(fold_G, nan=0.0, posinf=np.inf, neginf=-np.inf)

    def calls(self, targets: list[str], p_PG: np.ndarray, fold_PG: np.ndarray) -> Calls:
        adjusted_PG = false_discovery_rate(torch.from_numpy(p_PG)).numpy()
        # cell-eval reads the table as single precision before it compares
        called_PG = adjusted_PG.astype(np.float32) < np.float32(SIGNIFICANT)
        return Calls(targets, p_PG, adjusted_PG, fold_PG, called_PG)


@dataclass(frozen=True)
class Tests2026:
    """Of whole counts against some controls, which are analysed once; of the genes that these express only."""

    control_mean_G: np.ndarray
    tested_G: np.ndarray
    p_of: RankTest

    @classmethod
    def of(cls, controls: sparse.csr_matrix, device: torch.device) -> Tests2026:
        per_million = cpm(controls)
        mean_G = _mean(per_million)
        tested_G = mean_G > LEAST_CPM
        tested = _columns(per_million, tested_G)
        del per_million  # the controls of a large context are a gigabyte, in each form
        return cls(mean_G, tested_G, rank_test(_to_log1p(tested), device))

    def __call__(self, group: sparse.csr_matrix) -> tuple[np.ndarray, np.ndarray]:
        """p-values, NaN for genes that are not tested, and log2 fold changes of some cells, ``(genes)``."""
        per_million = cpm(group)
        fold_G = np.log2((_mean(per_million) + EPSILON) / (self.control_mean_G + EPSILON))
        p_G = np.full(len(fold_G), np.nan)
        p_G[self.tested_G] = self.p_of(_to_log1p(_columns(per_million, self.tested_G)))
        return p_G, fold_G

    def calls(self, targets: list[str], p_PG: np.ndarray, fold_PG: np.ndarray) -> Calls:
        adjusted_PG = np.full_like(p_PG, np.nan)
        if self.tested_G.any():
            adjusted_PG[:, self.tested_G] = false_discovery_rate(torch.from_numpy(p_PG[:, self.tested_G])).numpy()
        return Calls(targets, p_PG, adjusted_PG, fold_PG, adjusted_PG < SIGNIFICANT)


def _columns(cells: sparse.csr_matrix, kept_G: np.ndarray) -> sparse.csr_matrix:
    """Some columns, in their order: by one look at each stored value."""
    here = kept_G[cells.indices]
    number_G = np.cumsum(kept_G, dtype=np.int32) - 1
    ends = np.concatenate([[0], np.cumsum(here)])
    parts = (cells.data[here], number_G[cells.indices[here]], ends[cells.indptr].astype(cells.indptr.dtype))
    return sparse.csr_matrix(parts, shape=(cells.shape[0], int(kept_G.sum())))


def cpm(counts: sparse.csr_matrix) -> sparse.csr_matrix:
    """Counts per million of each cell, in the arithmetic of `scanpy.pp.normalize_total`: ties must stay ties."""
    data = counts.data.astype(np.float64)
    cells = sparse.csr_matrix((data, counts.indices, counts.indptr), shape=counts.shape)
    totals = np.asarray(cells.sum(axis=1)).ravel() / PER_MILLION
    totals[totals == 0] = 1.0
    for first in range(0, len(totals), CELLS_AT_ONCE):  # divisors of all values at once would be as large as these
        starts = cells.indptr[first : first + CELLS_AT_ONCE + 1]
        data[starts[0] : starts[-1]] /= np.repeat(totals[first : first + CELLS_AT_ONCE], np.diff(starts))
    return cells


def _to_log1p(cells: sparse.csr_matrix) -> sparse.csr_matrix:
    """In place."""
    np.log1p(cells.data, out=cells.data)
    return cells


def _mean(cells: sparse.csr_matrix) -> np.ndarray:
    """In the cells' own precision, as the packages take it: fold changes that are equal there must be equal here."""
    return np.asarray(cells.mean(axis=0)).ravel()
