"""Halves of the measured cells, each held against its half of the controls: several splits in one pass over the cells.

A cell's values are those of any half that it is in. So each target's cells are sorted once, and find their places among all controls
once; what a half needs of that is counted.

Shape legend: S splits, P targets, G genes, T tested genes; 2 halves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numba import njit
from scipy import sparse

from vcell.data.files.csr import row_of
from vcell.data.files.normalize import pseudobulk_log1p
from vcell.score.differential import LEAST_CPM, Tests2026, fold_of_cpm, log1p_cpm, mean_cpm, millions_of
from vcell.score.embedding import CELLS_PER_SET, Embedding
from vcell.score.grouped import GroupedCells
from vcell.score.jackknife import jackknife
from vcell.score.ranksum import ByGene, cubed, not_below, numbered, past_equal, two_sided
from vcell.score.side import Measured, Side
from vcell.score.sums import CellGroup
from vcell.system import in_threads

MOST_BYTES = 600_000_000  # of what is measured of halves at a time
Places = tuple[Mapping[str, np.ndarray], Mapping[str, np.ndarray]]  # of two halves: of each label, which cells


class Half(NamedTuple):
    """What is measured of a target's cells in a half."""

    bulk_G: np.ndarray
    noise: float
    p_G: np.ndarray
    fold_G: np.ndarray
    placed: np.ndarray | None


@dataclass(frozen=True)
class ControlHalves:
    """Two halves of the control cells.

    Attributes
    ----------
    mean
        Mean counts per million, of each half ``(genes)``.
    bulk, noise
        Pseudobulk of each half, and its sampling variance.
    before
        At each place among the sorted values of a gene, and at their end, how many of the first half lie before it, ``(values + tested
        genes)``.
    odd_T
        The place of the odd cell among a gene's values; beyond all where it has none.
    ties
        Of the values of each half, as of `SortedControls`, ``(2, tested genes)``.
    """

    mean: tuple[np.ndarray, np.ndarray]
    bulk: tuple[np.ndarray, np.ndarray]
    noise: tuple[float, float]
    before: np.ndarray
    odd_T: np.ndarray
    ties: np.ndarray

    def tested(self, half: int) -> np.ndarray:
        """The genes that a half's cells are tested for, a mask."""
        return self.mean[half] > LEAST_CPM


class Splits:
    """Splits of measured cells into halves.

    Parameters
    ----------
    cells
        Measured whole counts with controls.
    seeds
        Of the splits.
    target
        Pseudobulks are log1p of summed counts per this.
    embedding
        In which the cells of the first split are placed.
    """

    def __init__(
        self, cells: GroupedCells, seeds: Sequence[int], target: float, embedding: Embedding | None = None
    ) -> None:
        self.cells, self.target, self.embedding = cells, target, embedding
        self.places: list[Places] = [cells.half_places(seed) for seed in seeds]
        controls, millions = cells.controls, millions_of(cells.controls)
        rows = [half[cells.control] for places in self.places for half in places]
        found = list(in_threads(lambda some: mean_cpm(CellGroup(controls, some), millions[some]), rows))
        means = list(zip(found[::2], found[1::2], strict=True))
        tested_G = np.any([mean_G > LEAST_CPM for both in means for mean_G in both], axis=0)
        self.column = numbered(tested_G)
        values, _ = log1p_cpm(controls, millions)
        ordered = ByGene.of(values, self.column, entries=True, threads=True)
        cell_of = row_of(controls.indptr, np.int32)[ordered.entries]
        self.sorted = replace(ordered, entries=ordered.entries[:0].copy())
        del values, ordered  # of the controls of a large context these are a gigabyte
        splits = zip(self.places, means, strict=True)
        self.controls = list(in_threads(lambda split: self._halves(controls, *split, cell_of), splits))

    def _halves(
        self, controls: sparse.csr_matrix, places: Places, mean: tuple[np.ndarray, np.ndarray], cell_of: np.ndarray
    ) -> ControlHalves:
        """Of the controls in one split."""
        n, rows = controls.shape[0], [half[self.cells.control] for half in places]
        starts, values = self.sorted.starts, self.sorted.values
        before = np.empty(len(values) + len(starts) - 1, np.uint16 if n < 2**16 else np.uint32)
        odd_T, ties = _count_halves(starts, values, cell_of, half_of(n, rows), before)
        (first_G, first_noise), (second_G, second_noise) = (self._profile(CellGroup(controls, r)) for r in rows)
        return ControlHalves(mean, (first_G, second_G), (first_noise, second_noise), before, odd_T, ties)

    def _profile(self, group: CellGroup) -> tuple[np.ndarray, float]:
        """Pseudobulk of some cells, and its sampling variance."""
        return pseudobulk_log1p(group.sums[0], self.target), jackknife(group, self.target)

    def sides(self) -> list[tuple[Side, Side]]:
        """Of every split the sides of its halves, everything measured."""
        # the same in every split: those of two cells and more
        targets = [target for target in self.cells.targets if target in self.places[0][0]]
        measured = [[_empty(len(targets), len(self.cells.genes)) for _ in range(2)] for _ in self.places]
        for p, halves in enumerate(in_threads(self._of_target, targets)):
            for s, both in enumerate(halves):
                for into, half in zip(measured[s], both, strict=True):
                    into.bulk_PG[p], into.noise_P[p], into.p_PG[p], into.fold_PG[p] = half[:4]
                    if half.placed is not None:
                        into.placed.append(half.placed)
        return [(self._side(s, 0, one), self._side(s, 1, other)) for s, (one, other) in enumerate(measured)]

    def _side(self, split: int, half: int, measured: Measured) -> Side:
        controls = self.controls[split]
        return Side(
            self.cells.some(self.places[split][half]), Tests2026(controls.mean[half], controls.tested(half), None), controls.bulk[half],
            embedding=self.embedding if split == 0 else None, known=measured, control_noise=controls.noise[half],
        )  # fmt: skip

    def _of_target(self, target: str) -> list[list[Half]]:
        """Of every split, both halves of a target's cells."""
        counts = self.cells.cells[target]
        millions = millions_of(counts)
        values, _ = log1p_cpm(counts, millions)
        own = ByGene.of(values, self.column, entries=True)
        cell_of = row_of(counts.indptr, np.int32)[own.entries]
        low, high = _places(own.starts, own.values, self.sorted.starts, self.sorted.values)
        found = []
        for s, (controls, places) in enumerate(zip(self.controls, self.places, strict=True)):
            rows = [half[target] for half in places]
            n = np.array([[len(half[target]), len(half[self.cells.control])] for half in places])
            p_2T = _half_p(
                own.starts, own.values, low, high, cell_of, half_of(counts.shape[0], rows), self.sorted.starts, controls.before,
                controls.odd_T, controls.ties, n,
            )  # fmt: skip
            groups = [CellGroup(counts, some) for some in rows]
            found.append([self._half(groups[h], millions[rows[h]], p_2T[h], controls, h, s == 0) for h in range(2)])
        return found

    def _half(
        self, group: CellGroup, millions: np.ndarray, p_T: np.ndarray, controls: ControlHalves, half: int, place: bool
    ) -> Half:
        fold_G = fold_of_cpm(mean_cpm(group, millions), controls.mean[half])
        p_G = np.full(len(fold_G), np.nan)
        tested_G = controls.tested(half)
        p_G[tested_G] = p_T[self.column[tested_G]]
        placed = self.embedding.place(group, CELLS_PER_SET) if place and self.embedding else None
        return Half(*self._profile(group), p_G, fold_G, placed)


def at_once(cells: GroupedCells) -> int:
    """How many splits are measured together, so that memory stays small."""
    return max(1, MOST_BYTES // max(1, 2 * 3 * 8 * len(cells.targets) * len(cells.genes)))


def _empty(n_targets: int, n_genes: int) -> Measured:
    bulk_PG, p_PG, fold_PG = (np.empty((n_targets, n_genes)) for _ in range(3))
    return Measured(bulk_PG, np.empty(n_targets), p_PG, fold_PG, [])


def half_of(n: int, rows: Sequence[np.ndarray]) -> np.ndarray:
    """The half that each of `n` cells is in, -1 for none."""
    found = np.full(n, -1, np.int8)
    for half, some in enumerate(rows):
        found[some] = half
    return found


@njit(nogil=True, cache=True)
def _count_halves(starts, values, cell_of, half_C, before):
    """Fills `before` of `ControlHalves`, and gives its `odd_T` and `ties`."""
    n_genes = len(starts) - 1
    odd_T = np.full(n_genes, np.int64(0x7FFFFFFF))
    ties = np.zeros((2, n_genes), np.float64)
    for g in range(n_genes):
        first, i = 0, starts[g]
        while i < starts[g + 1]:
            j = past_equal(values, i + 1, starts[g + 1], values[i])
            equal_first, equal_second = 0, 0
            for k in range(i, j):
                before[k + g] = first + equal_first
                half = half_C[cell_of[k]]
                equal_first += half == 0
                equal_second += half == 1
                if half < 0:
                    odd_T[g] = k - starts[g]
            ties[0, g] += cubed(float(equal_first))
            ties[1, g] += cubed(float(equal_second))
            first += equal_first
            i = j
        before[starts[g + 1] + g] = first
    return odd_T, ties


@njit(nogil=True, cache=True)
def _places(starts, values, control_starts, control_values):
    """Of each value, how many of its gene's control values lie below it, and how many not above."""
    low, high = np.empty(len(values), np.int32), np.empty(len(values), np.int32)
    for g in range(len(starts) - 1):
        begin, end = control_starts[g], control_starts[g + 1]
        at = begin
        for i in range(starts[g], starts[g + 1]):
            at = not_below(control_values, at, end, values[i])
            low[i] = at - begin
            high[i] = past_equal(control_values, at, end, values[i]) - begin
    return low, high


@njit(nogil=True, cache=True)
def _half_p(starts, values, low, high, cell_of, half_C, control_starts, before, odd_T, control_ties, n):
    """p-values of both halves against their controls, ``(2, tested genes)``; `n` holds the cells and the controls of each half."""
    p = np.ones((2, len(starts) - 1), np.float64)
    for g in range(len(starts) - 1):
        begin, stored = control_starts[g] + g, control_starts[g + 1] - control_starts[g]
        own_0 = own_1 = 0  # values of each half so far
        ranks_0 = ranks_1 = 0.0  # of these, among what is stored
        ties_0, ties_1 = control_ties[0, g], control_ties[1, g]
        i = starts[g]
        while i < starts[g + 1]:
            j = past_equal(values, i + 1, starts[g + 1], values[i])
            equal_0 = equal_1 = 0
            for k in range(i, j):
                half = half_C[cell_of[k]]
                equal_0 += half == 0
                equal_1 += half == 1
            low_0, high_0 = np.int64(before[begin + low[i]]), np.int64(before[begin + high[i]])
            low_1 = low[i] - low_0 - (odd_T[g] < low[i])
            high_1 = high[i] - high_0 - (odd_T[g] < high[i])
            both_0, both_1 = equal_0 + high_0 - low_0, equal_1 + high_1 - low_1
            ranks_0 += equal_0 * (own_0 + low_0 + (both_0 + 1.0) / 2.0)
            ranks_1 += equal_1 * (own_1 + low_1 + (both_1 + 1.0) / 2.0)
            ties_0 += cubed(float(both_0)) - cubed(float(high_0 - low_0))
            ties_1 += cubed(float(both_1)) - cubed(float(high_1 - low_1))
            own_0 += equal_0
            own_1 += equal_1
            i = j
        first = np.int64(before[begin + stored])
        second = stored - first - (odd_T[g] < stored)
        p[0, g] = _p_of_ranks(ranks_0, own_0, first, ties_0, n[0, 0], n[0, 1])
        p[1, g] = _p_of_ranks(ranks_1, own_1, second, ties_1, n[1, 0], n[1, 1])
    return p


@njit(nogil=True, cache=True)
def _p_of_ranks(ranks, own, others, ties, n_cells, n_controls):
    """From the ranks of `own` stored values among what is stored, zeros not counted."""
    zeros = float(n_cells + n_controls - own - others)
    rank_sum = ranks + own * zeros + (n_cells - own) * (zeros + 1.0) / 2.0
    return two_sided(rank_sum, n_cells, n_controls, ties + cubed(zeros))
