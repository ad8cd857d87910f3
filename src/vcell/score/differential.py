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

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numba import njit
from scipy import sparse

from vcell.data.files.normalize import counts_of_log1p
from vcell.score.blocks import by_targets
from vcell.score.ranksum import RankTest, SortedControls, Tested, as_stored, numbered, rank_test
from vcell.score.rows import with_values
from vcell.score.sums import CellGroup, totals

if TYPE_CHECKING:
    import torch

SIGNIFICANT = 0.05
PER_MILLION = 1e6
LEAST_CPM = 5.0
EPSILON = 1e-9
LOOKED_UP = 32  # counts below
PAndFold = tuple[np.ndarray, np.ndarray]  # p-values and log2 fold changes


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
        return self._rows[target]

    def rows(self, rows: slice) -> Calls:
        """Of some targets."""
        parts = (self.p_PG, self.adjusted_PG, self.fold_PG, self.called_PG)
        return Calls(self.targets[rows], *(part[rows] for part in parts))

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {target: row for row, target in enumerate(self.targets)}


@dataclass(frozen=True)
class Tests2025:
    """Of log1p cells against some controls, which are analysed once.

    Attributes
    ----------
    control_mean_G
        `geometric_mean` of the controls.
    p_of
        None where p-values come from elsewhere.
    controls
        Control cells; None as `p_of`.
    """

    control_mean_G: np.ndarray
    p_of: RankTest | None = None
    controls: sparse.csr_matrix | None = None

    @classmethod
    def of(cls, controls: sparse.csr_matrix, device: torch.device | None = None) -> Tests2025:
        return cls(geometric_mean(CellGroup(controls)), rank_test(controls, device), controls)

    def __call__(self, groups: Sequence[CellGroup]) -> list[PAndFold]:
        """p-values and log2 fold changes of groups of cells, ``(genes)`` of each."""
        assert self.p_of is not None
        p_TG = self.p_of([group.cells for group in groups])
        return [(p_G, self.fold(group)) for p_G, group in zip(p_TG, groups, strict=True)]

    def drawn_from(self, pool: sparse.csr_matrix) -> Callable[[Sequence[CellGroup]], list[PAndFold]]:
        """The same of groups that are rows of `pool`, which is analysed once."""
        assert self.p_of is not None
        p_of = rows_test(self.p_of, pool, self.controls, as_stored)
        return lambda groups: [(p_of(group.rows), self.fold(group)) for group in groups]

    def sorted_controls(self, controls: sparse.csr_matrix) -> SortedControls:
        """The controls by gene, with their entries."""
        return self.p_of if isinstance(self.p_of, SortedControls) else SortedControls.of(controls)

    def fold(self, group: CellGroup) -> np.ndarray:
        """log2 fold changes of the geometric means of some cells, ``(genes)``."""
        with np.errstate(divide="ignore", invalid="ignore"):
            fold_G = np.log2(geometric_mean(group) / self.control_mean_G)
        return np.nan_to_num(fold_G, nan=0.0, posinf=np.inf, neginf=-np.inf)

    def calls(self, targets: list[str], p_PG: np.ndarray, fold_PG: np.ndarray) -> Calls:
        adjusted_PG = false_discovery_rate(p_PG, np.full(p_PG.shape[1], True))
        # cell-eval reads the table as single precision before it compares
        called_PG = adjusted_PG.astype(np.float32) < np.float32(SIGNIFICANT)
        return Calls(targets, p_PG, adjusted_PG, fold_PG, called_PG)


@dataclass(frozen=True)
class Tests2026:
    """Of whole counts against some controls, which are analysed once; of the genes that these express only.

    Attributes
    ----------
    control_mean_G
        Mean counts per million of the controls.
    tested_G
        The genes tested, a mask.
    sorted_G
        Those and others that half of the controls may express enough, a mask; None as `p_of`.
    p_of
        Of log1p of counts per million; None where p-values come from elsewhere.
    controls
        Control cells; None as `p_of`.
    """

    control_mean_G: np.ndarray
    tested_G: np.ndarray
    sorted_G: np.ndarray | None = None
    p_of: RankTest | None = None
    controls: sparse.csr_matrix | None = None

    @classmethod
    def of(cls, controls: sparse.csr_matrix, device: torch.device | None = None) -> Tests2026:
        millions, n = millions_of(controls), controls.shape[0]
        mean_G = mean_cpm(CellGroup(controls), millions)
        # the mean of all cells is at least the share of a half in it; a rounded one may lie just below
        sorted_G = mean_G > LEAST_CPM * (n // 2) / n * (1 - 1e-9)
        return cls(
            mean_G, mean_G > LEAST_CPM, sorted_G, rank_test(controls, device, sorted_G, tested_with(millions)), controls
        )

    def __call__(self, groups: Sequence[CellGroup]) -> list[PAndFold]:
        """p-values, NaN for genes that are not tested, and log2 fold changes of groups of cells, ``(genes)`` of each."""
        assert self.p_of is not None
        values, means = zip(*(log1p_cpm(group.cells, in_millions(group.sums[1])) for group in groups), strict=True)
        return [self._of_target(p_T, mean_G) for p_T, mean_G in zip(self.p_of(values), means, strict=True)]

    def drawn_from(self, pool: sparse.csr_matrix) -> Callable[[Sequence[CellGroup]], list[PAndFold]]:
        """The same of groups that are rows of `pool`, which is analysed once."""
        assert self.p_of is not None
        p_of = rows_test(self.p_of, pool, self.controls, tested_with(millions_of(pool)))

        def test(group: CellGroup) -> PAndFold:
            return self._of_target(p_of(group.rows), mean_cpm(group, in_millions(group.sums[1])))

        return lambda groups: list(map(test, groups))

    def _of_target(self, p_T: np.ndarray, mean_G: np.ndarray) -> PAndFold:
        return self.of_all_genes(p_T), fold_of_cpm(mean_G, self.control_mean_G)

    def sorted_controls(self, controls: sparse.csr_matrix) -> SortedControls:
        """The controls by gene, with their entries."""
        assert self.sorted_G is not None
        if isinstance(self.p_of, SortedControls):
            return self.p_of
        # a GPU has no need of them
        return SortedControls.of(controls, numbered(self.sorted_G), tested_with(millions_of(controls)))

    def of_all_genes(self, p_T: np.ndarray, tested_G: np.ndarray | None = None) -> np.ndarray:
        """p-values of the sorted genes among those of all, NaN for genes that are not tested; these are others in halves."""
        p_G = np.full(len(self.tested_G), np.nan)
        p_G[self.sorted_G] = p_T
        p_G[~(self.tested_G if tested_G is None else tested_G)] = np.nan
        return p_G

    def calls(self, targets: list[str], p_PG: np.ndarray, fold_PG: np.ndarray) -> Calls:
        adjusted_PG = false_discovery_rate(p_PG, self.tested_G)
        return Calls(targets, p_PG, adjusted_PG, fold_PG, adjusted_PG < SIGNIFICANT)


def rows_test(
    test: RankTest, pool: sparse.csr_matrix, controls: sparse.csr_matrix | None, tested: Tested
) -> Callable[[np.ndarray], np.ndarray]:
    """The test of rows of `pool`, as of `RankTest.drawn_from`; where they are the controls, much is known already."""
    if pool is controls and isinstance(test, SortedControls):
        return test.drawn_again(pool)
    return test.drawn_from(pool, tested)


def false_discovery_rate(p_PG: np.ndarray, tested_G: np.ndarray) -> np.ndarray:
    """`vcell.model.scores.false_discovery_rate` without torch: p-values of the genes tested, a mask, adjusted by Benjamini and Hochberg
    (1995), each row by itself; NaN for other genes."""
    adjusted_PG = np.full_like(p_PG, np.nan)

    def adjust(rows: slice) -> None:
        adjusted_PG[rows, tested_G] = _adjusted(p_PG[rows, tested_G])

    if tested_G.any():
        by_targets(adjust, *p_PG.shape)
    return adjusted_PG


def _adjusted(p_PG: np.ndarray) -> np.ndarray:
    order_PG, n = np.argsort(p_PG, -1), p_PG.shape[-1]
    scaled_PG = np.take_along_axis(p_PG, order_PG, -1) * (n / np.arange(1, n + 1))
    adjusted_PG = np.minimum(np.minimum.accumulate(scaled_PG[:, ::-1], -1)[:, ::-1], 1.0)
    found_PG = np.empty_like(p_PG)
    np.put_along_axis(found_PG, order_PG, adjusted_PG, -1)
    return found_PG


def fold_of_cpm(mean_G: np.ndarray, control_mean_G: np.ndarray) -> np.ndarray:
    """log2 fold changes of mean counts per million."""
    return np.log2((mean_G + EPSILON) / (control_mean_G + EPSILON))


def log1p_cpm(counts: sparse.csr_matrix, millions: np.ndarray) -> tuple[sparse.csr_matrix, np.ndarray]:
    """log1p of counts per million of each cell, and the mean counts per million of each gene, ``(genes)``; `millions` as from `millions_of`.

    In the arithmetic of `scanpy.pp.normalize_total` and of scipy's means: ties must stay ties, equal fold changes equal. Most counts are
    small: their logarithms are looked up.
    """
    table = np.log1p(np.arange(LOOKED_UP) / millions[:, None])
    values, larger, mean_G = _log1p_cpm(counts.indptr, counts.indices, counts.data, millions, table, counts.shape[1])
    if len(larger) == len(values):  # no whole counts, then
        np.log1p(values, out=values)
    else:
        values[larger] = np.log1p(values[larger])
    return with_values(counts, values), mean_G


def tested_with(millions: np.ndarray) -> Tested:
    """Makes log1p of counts per million of values that some cells store, all or those of some genes; `millions` of the whole cells."""
    return lambda cells: log1p_cpm(cells, millions)[0].data


def mean_cpm(group: CellGroup, millions: np.ndarray) -> np.ndarray:
    """Mean counts per million of some cells, ``(genes)``, added up in their order; `millions` as from `in_millions`."""
    counts = group.matrix
    return _mean_cpm(counts.indptr, counts.indices, counts.data, millions, group.rows, counts.shape[1])


def millions_of(counts: sparse.csr_matrix, million: float = PER_MILLION) -> np.ndarray:
    """Counts of each cell, in millions, or in units of another number that cells are scaled to; 1 for a cell without any."""
    return in_millions(totals(counts, np.arange(counts.shape[0])), million)


def in_millions(mass_C: np.ndarray, million: float = PER_MILLION) -> np.ndarray:
    """The same of counts of each cell that were added up already."""
    millions = mass_C / million
    millions[millions == 0] = 1.0
    return millions


@njit(nogil=True, cache=True)
def _mean_cpm(starts, genes, counts, millions, rows, n_genes):
    mean_G, share = np.zeros(n_genes, np.float64), 1.0 / len(rows)
    for c in range(len(rows)):
        for k in range(starts[rows[c]], starts[rows[c] + 1]):
            mean_G[genes[k]] += float(counts[k]) / millions[c] * share
    return mean_G


@njit(nogil=True, cache=True)
def _log1p_cpm(starts, genes, counts, millions, table, n_genes):
    """Values, of which those at `larger` are not logarithms yet."""
    values, mean_G = np.empty(len(counts), np.float64), np.zeros(n_genes, np.float64)
    larger, n = np.empty(len(counts), np.int64), 0
    share = 1.0 / len(millions)
    for i in range(len(millions)):
        for k in range(starts[i], starts[i + 1]):
            count = float(counts[k])
            per_million = count / millions[i]
            mean_G[genes[k]] += per_million * share
            if count < table.shape[1] and count == math.floor(count):
                values[k] = table[i, int(count)]
            else:
                values[k] = per_million
                larger[n] = k
                n += 1
    return values, larger[:n].copy(), mean_G


def geometric_mean(group: CellGroup) -> np.ndarray:
    """Of one more than the counts of log1p cells, less 1, ``(genes)``."""
    return counts_of_log1p(_mean(group))


def _mean(group: CellGroup) -> np.ndarray:
    """In the cells' own precision, added up as scipy does it and so the packages: fold changes that are equal there must be equal here."""
    cells = group.matrix
    return _mean_of_genes(cells.indptr, cells.indices, cells.data, group.rows, cells.shape[1])


@njit(nogil=True, cache=True)
def _mean_of_genes(starts, genes, values, rows, n_genes):
    mean_G, share = np.zeros(n_genes, values.dtype), np.empty(1, values.dtype)
    share[0] = 1.0 / len(rows)
    for row in rows:
        for k in range(starts[row], starts[row + 1]):
            mean_G[genes[k]] += values[k] * share[0]
    return mean_G
