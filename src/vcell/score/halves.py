"""Halves of the measured cells, each held against its half of the controls: several splits in one pass over the cells.

A cell's values are those of any half that it is in. So each target's cells are sorted once, and find their places among all controls
once; what a half needs of that is counted.

Shape legend: S splits, P targets, G genes, T tested genes; 2 halves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numba import njit
from scipy import sparse

from vcell.data.files.csr import row_of
from vcell.data.files.normalize import pseudobulk_log1p
from vcell.score.differential import LEAST_CPM, Tests2026, fold_of_cpm, in_millions, log1p_cpm, mean_cpm, millions_of
from vcell.score.embedding import CELLS_PER_SET, Embedding
from vcell.score.grouped import GroupedCells
from vcell.score.jackknife import jackknife
from vcell.score.ranksum import ByGene, cubed, not_below, numbered, past_equal, two_sided
from vcell.score.side import Measured, Side
from vcell.score.sums import CellGroup
from vcell.system import in_threads

NEITHER = 2  # of a cell: it is the odd one of its label, or the only one
WORD = 64  # bits
BEYOND = np.int64(0x7FFFFFFF)
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
    """

    mean: Sequence[np.ndarray]
    bulk: Sequence[np.ndarray]
    noise: Sequence[float]

    def tested(self, half: int) -> np.ndarray:
        """The genes that a half's cells are tested for, a mask."""
        return self.mean[half] > LEAST_CPM


@dataclass(frozen=True)
class SplitControls:
    """Control cells by gene, and how splits divide them.

    Attributes
    ----------
    starts, values
        As of `ByGene`.
    firsts
        Of each split a bit for each value, whether it is of the first half, 64 to a word, ``(splits, words)``.
    before
        How many values of the first half lie before each word, ``(splits, words)``.
    odd
        The place of the odd cell among a gene's values, ``(splits, tested genes)``; beyond all where it has none.
    ties
        Of the values of each half, as of `SortedControls`, ``(splits, 2, tested genes)``.
    """

    starts: np.ndarray
    values: np.ndarray
    firsts: np.ndarray
    before: np.ndarray
    odd: np.ndarray
    ties: np.ndarray

    @classmethod
    def of(cls, controls: sparse.csr_matrix, column: np.ndarray, half_SC: np.ndarray) -> SplitControls:
        """From log1p of counts per million; `column` as of `ByGene.of`, `half_SC` as from `half_of`."""
        ordered = ByGene.of(controls, column, entries=True, threads=True)
        cell_of = row_of(controls.indptr, np.int32)[ordered.entries]
        split = in_threads(lambda half_C: _count_halves(ordered.starts, ordered.values, cell_of, half_C), half_SC)
        return cls(ordered.starts, ordered.values, *(np.stack(parts) for parts in zip(*split, strict=True)))


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
        controls = cells.controls
        millions = millions_of(controls)
        halves = [half for both in self._groups(CellGroup(controls), cells.control) for half in both]
        means = list(in_threads(lambda half: mean_cpm(half, millions[half.rows]), halves))
        bulks, noises = zip(*in_threads(self._profile, halves), strict=True)
        self.controls = [
            ControlHalves(means[h : h + 2], bulks[h : h + 2], noises[h : h + 2]) for h in range(0, len(halves), 2)
        ]
        tested_G = np.any([half.tested(h) for half in self.controls for h in range(2)], axis=0)
        self.column = numbered(tested_G)
        values, _ = log1p_cpm(controls, millions)
        self.sorted = SplitControls.of(values, self.column, self._half_codes(cells.control))

    def _half_codes(self, label: str) -> np.ndarray:
        """The half that each cell of a label is in, in each split, ``(splits, cells)``."""
        n = self.cells.n_cells(label)
        return np.stack([half_of(n, [half[label] for half in places]) for places in self.places])

    def _groups(self, group: CellGroup, label: str) -> list[list[CellGroup]]:
        """The halves of a label's cells, summed, in each split."""
        half_SC = self._half_codes(label)
        first_SG = half_sums(group, half_SC, 0)
        sum_G, mass_C = group.sums
        found = []
        for s, places in enumerate(self.places):
            first, second = (half[label] for half in places)
            # sums of whole counts are exact
            second_G = sum_G - first_SG[s]
            for odd in np.flatnonzero(half_SC[s] == NEITHER):
                second_G -= CellGroup(group.matrix, np.array([odd])).sums[0]
            found.append([
                CellGroup(group.matrix, first, (first_SG[s], mass_C[first])),
                CellGroup(group.matrix, second, (second_G, mass_C[second])),
            ])  # fmt: skip
        return found

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
        group = self.cells.group(target)
        millions = in_millions(group.sums[1])
        values, _ = log1p_cpm(group.cells, millions)
        own, controls = ByGene.of(values, self.column, entries=True), self.sorted
        cell_of = row_of(group.cells.indptr, np.int32)[own.entries]
        low, high = _places(own.starts, own.values, controls.starts, controls.values)
        groups = self._groups(group, target)
        n = np.array([
            [[len(half[target]), len(half[self.cells.control])] for half in places] for places in self.places
        ])  # fmt: skip
        p = _half_p(
            own.starts, own.values, low, high, cell_of, self._half_codes(target), controls.starts, controls.firsts, controls.before, controls.odd,
            controls.ties, n,
        )  # fmt: skip
        return [
            [self._half(groups[s][h], millions, p[s, h], self.controls[s], h, s == 0) for h in range(2)]
            for s in range(len(groups))
        ]

    def _half(
        self, group: CellGroup, millions: np.ndarray, p_T: np.ndarray, controls: ControlHalves, half: int, place: bool
    ) -> Half:
        fold_G = fold_of_cpm(mean_cpm(group, millions[group.rows]), controls.mean[half])
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
    """The half that each of `n` cells is in."""
    found = np.full(n, NEITHER, np.int8)
    for half, some in enumerate(rows):
        found[some] = half
    return found


def half_sums(group: CellGroup, half_SC: np.ndarray, half: int) -> np.ndarray:
    """Sums of the genes over the cells of a half in each split, ``(splits, genes)``; `group` is all of a matrix."""
    counts = group.matrix
    weight_CS = np.ascontiguousarray((half_SC == half).T.astype(np.float64))
    return np.ascontiguousarray(_half_sums(counts.indptr, counts.indices, counts.data, weight_CS, counts.shape[1]).T)


@njit(nogil=True, cache=True)
def _half_sums(starts, genes, values, weight_CS, n_genes):
    sum_GS = np.zeros((n_genes, weight_CS.shape[1]), np.float64)
    for c in range(len(weight_CS)):
        for k in range(starts[c], starts[c + 1]):
            value, g = float(values[k]), genes[k]
            for s in range(weight_CS.shape[1]):
                sum_GS[g, s] += value * weight_CS[c, s]
    return sum_GS


@njit(nogil=True, cache=True)
def _count_halves(starts, values, cell_of, half_C):
    """What `SplitControls` holds of one split."""
    n_genes, n_words = len(starts) - 1, len(values) // WORD + 1
    firsts, before = np.zeros(n_words, np.uint64), np.empty(n_words, np.int64)
    odd, ties = np.full(n_genes, BEYOND), np.zeros((2, n_genes), np.float64)
    for g in range(n_genes):
        i = starts[g]
        while i < starts[g + 1]:
            j = past_equal(values, i + 1, starts[g + 1], values[i])
            equal_0 = equal_1 = 0
            for k in range(i, j):
                half = half_C[cell_of[k]]
                equal_0 += half == 0
                equal_1 += half == 1
                firsts[k // WORD] |= np.uint64(half == 0) << np.uint64(k % WORD)
                if half == NEITHER:
                    odd[g] = k - starts[g]
            ties[0, g] += cubed(float(equal_0))
            ties[1, g] += cubed(float(equal_1))
            i = j
    number = 0
    for word in range(n_words):
        before[word] = number
        number += bits_set(firsts[word])
    return firsts, before, odd, ties


@njit(nogil=True, cache=True)
def bits_set(word):
    """How many bits of 64 are set, in the form that compilers know."""
    word -= (word >> np.uint64(1)) & np.uint64(0x5555555555555555)
    word = (word & np.uint64(0x3333333333333333)) + ((word >> np.uint64(2)) & np.uint64(0x3333333333333333))
    word = (word + (word >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return np.int64((word * np.uint64(0x0101010101010101)) >> np.uint64(56))


@njit(nogil=True, cache=True)
def _firsts(firsts, before, place):
    """How many of the first half lie before a place among all values."""
    word = np.uint64(place) >> np.uint64(6)
    below = (np.uint64(1) << (np.uint64(place) & np.uint64(WORD - 1))) - np.uint64(1)
    return before[word] + bits_set(firsts[word] & below)


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
def _half_p(starts, values, low, high, cell_of, half_SC, control_starts, firsts_S, before_S, odd, control_ties, n):
    """p-values of both halves of each split against their controls, ``(splits, 2, tested genes)``; `n` holds the cells and the controls of
    each half.

    As `vcell.score.drawn` has it, ranks are those of the own values, whatever these are, plus the controls below each and half of those
    equal to it. What is counted of cells of neither half is not used.
    """
    p = np.ones((len(half_SC), 2, len(starts) - 1), np.float64)
    for g in range(len(starts) - 1):
        begin, stored = control_starts[g], control_starts[g + 1] - control_starts[g]
        for s in range(len(p)):  # what is read of a gene is at hand for all splits
            firsts, before, half_C, place = firsts_S[s], before_S[s], half_SC[s], odd[s, g]
            own_0, own_1 = np.int64(0), np.int64(0)
            twice_0, twice_1 = np.int64(0), np.int64(0)
            ties_0, ties_1 = control_ties[s, 0, g], control_ties[s, 1, g]
            earlier = _firsts(firsts, before, begin)
            i = starts[g]
            while i < starts[g + 1]:
                half = half_C[cell_of[i]]
                equal_0, equal_1 = np.int64(half == 0), np.int64(half == 1)
                j = i + 1
                while j < starts[g + 1] and values[j] == values[i]:
                    half = half_C[cell_of[j]]
                    equal_0 += half == 0
                    equal_1 += half == 1
                    j += 1
                low_0 = _firsts(firsts, before, begin + low[i]) - earlier
                high_0 = _firsts(firsts, before, begin + high[i]) - earlier
                low_1, high_1 = low[i] - low_0 - (place < low[i]), high[i] - high_0 - (place < high[i])
                twice_0 += equal_0 * (low_0 + high_0)
                twice_1 += equal_1 * (low_1 + high_1)
                ties_0 += cubed(float(equal_0 + high_0 - low_0)) - cubed(float(high_0 - low_0))
                ties_1 += cubed(float(equal_1 + high_1 - low_1)) - cubed(float(high_1 - low_1))
                own_0 += equal_0
                own_1 += equal_1
                i = j
            first = _firsts(firsts, before, begin + stored) - earlier
            second = stored - first - (place < stored)
            p[s, 0, g] = _p_of_ranks(
                (own_0 * (own_0 + 1.0) + twice_0) / 2.0, own_0, first, ties_0, n[s, 0, 0], n[s, 0, 1]
            )
            p[s, 1, g] = _p_of_ranks(
                (own_1 * (own_1 + 1.0) + twice_1) / 2.0, own_1, second, ties_1, n[s, 1, 0], n[s, 1, 1]
            )
    return p


@njit(nogil=True, cache=True)
def _p_of_ranks(ranks, own, others, ties, n_cells, n_controls):
    """From the ranks of `own` stored values among what is stored, zeros not counted."""
    zeros = float(n_cells + n_controls - own - others)
    rank_sum = ranks + own * zeros + (n_cells - own) * (zeros + 1.0) / 2.0
    return two_sided(rank_sum, n_cells, n_controls, ties + cubed(zeros))
