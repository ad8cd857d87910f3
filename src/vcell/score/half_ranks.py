"""Rank-sum tests of halves of cells, each against its half of the controls: of several splits in one pass over the cells.

A cell's values are those of any half that it is in. So each target's cells are sorted once, and find their places among all controls
once; how many of those before a place are of a half, bits tell.

Shape legend: S splits, C cells; 2 halves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numba import njit
from scipy import sparse

from vcell.data.files.csr import row_of
from vcell.score.ranksum import GroupsByGene, SortedControls, cubed, not_below, past_equal, two_sided
from vcell.system import in_threads

NEITHER = 2  # of a cell: it is the odd one of its label, or the only one
WORD = 64  # bits
VALUES_AT_ONCE = 1_000_000
BEYOND = np.int64(0x7FFFFFFF)


@dataclass(frozen=True)
class SplitControls:
    """Control cells by gene, and how splits divide them.

    Attributes
    ----------
    sorted
        Their values, gene by gene, of log1p of counts per million.
    firsts
        Of each split a bit for each value, whether it is of the first half, 64 to a word, ``(splits, words)``.
    before
        How many values of the first half lie before each word, ``(splits, words)``.
    odd
        The place of the odd cell among a gene's values, ``(splits, sorted genes)``; beyond all where it has none.
    ties
        Of the values of each half, as of `SortedControls`, ``(splits, 2, sorted genes)``.
    sizes
        Cells of each half, ``(splits, 2)``.
    """

    sorted: SortedControls
    firsts: np.ndarray
    before: np.ndarray
    odd: np.ndarray
    ties: np.ndarray
    sizes: np.ndarray

    @classmethod
    def of(cls, sorted: SortedControls, indptr: np.ndarray, half_SC: np.ndarray) -> SplitControls:
        """From controls sorted with their entries, where their cells begin, and the half that each is in (`half_of`)."""
        by_gene = sorted.cells
        kind = np.uint16 if len(indptr) <= 2**16 else np.int32  # of these there are as many as values
        cell_of, row = np.empty(len(by_gene.entries), kind), row_of(indptr, kind)

        def some(first: int) -> None:
            part = slice(first, first + VALUES_AT_ONCE)
            np.take(row, by_gene.entries[part], out=cell_of[part])

        for _ in in_threads(some, range(0, len(cell_of), VALUES_AT_ONCE)):
            pass
        split = in_threads(lambda half_C: _count_halves(by_gene.starts, by_gene.values, cell_of, half_C), half_SC)
        firsts, before, odd, ties = (np.stack(parts) for parts in zip(*split, strict=True))
        return cls(sorted, firsts, before, odd, ties, sizes_of(half_SC))

    def p_values(self, groups: Sequence[sparse.csr_matrix], halves: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Two-sided p-values of both halves of groups of cells in each split, ``(splits, 2, sorted genes)`` of each; 1 where a half has no
        cells. `halves` are the groups' `half_codes`."""
        own, controls = GroupsByGene.of(groups, self.sorted.place, entries=True), self.sorted.cells
        low, high = _places(own.starts, own.values, controls.starts, controls.values)
        found = []
        for cells, half_SC, starts in zip(groups, halves, own.starts, strict=True):
            cell_of = row_of(cells.indptr, np.int32)[own.entries[starts[0] : starts[-1]]]
            found.append(_half_p(
                starts, own.values, low, high, cell_of, half_SC, controls.starts, self.firsts, self.before, self.odd, self.ties,
                sizes_of(half_SC), self.sizes,
            ))  # fmt: skip
        return found


def sizes_of(half_SC: np.ndarray) -> np.ndarray:
    """Cells of each half, ``(splits, 2)``."""
    return np.stack([(half_SC == half).sum(1) for half in range(2)], axis=1)


def half_of(n: int, rows: Sequence[np.ndarray]) -> np.ndarray:
    """The half that each of `n` cells is in."""
    found = np.full(n, NEITHER, np.int8)
    for half, some in enumerate(rows):
        found[some] = half
    return found


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
def _places(starts_TG, values, control_starts, control_values):
    """Of each value, how many of its gene's control values lie below it, and how many not above."""
    low, high = np.empty(len(values), np.int32), np.empty(len(values), np.int32)
    for g in range(starts_TG.shape[1] - 1):
        begin, end = control_starts[g], control_starts[g + 1]
        for t in range(len(starts_TG)):  # what is read of a gene is at hand for all groups
            at = begin
            for i in range(starts_TG[t, g], starts_TG[t, g + 1]):
                at = not_below(control_values, at, end, values[i])
                low[i] = at - begin
                high[i] = past_equal(control_values, at, end, values[i]) - begin
    return low, high


@njit(nogil=True, cache=True)
def _half_p(
    starts, values, low, high, cell_of, half_SC, control_starts, firsts_S, before_S, odd, control_ties, sizes, control_sizes
):  # fmt: skip
    """p-values of both halves of each split against their controls, ``(splits, 2, sorted genes)``.

    As `vcell.score.drawn` has it, ranks are those of the own values, whatever these are, plus the controls below each and half of those
    equal to it. What is counted of cells of neither half is not used. `cell_of` begins with the group's first value.
    """
    p, first_of = np.ones((len(half_SC), 2, len(starts) - 1), np.float64), starts[0]
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
                half = half_C[cell_of[i - first_of]]
                equal_0, equal_1 = np.int64(half == 0), np.int64(half == 1)
                j = i + 1
                while j < starts[g + 1] and values[j] == values[i]:
                    half = half_C[cell_of[j - first_of]]
                    equal_0 += half == 0
                    equal_1 += half == 1
                    j += 1
                low_0 = _firsts(firsts, before, begin + low[i]) - earlier
                low_1 = low[i] - low_0 - (place < low[i])
                twice_0 += equal_0 * 2 * low_0
                twice_1 += equal_1 * 2 * low_1
                if j > i + 1 or high[i] > low[i]:  # it is not alone
                    others_0 = _firsts(firsts, before, begin + high[i]) - earlier - low_0
                    others_1 = high[i] - low[i] - others_0 - (low[i] <= place < high[i])
                    twice_0 += equal_0 * others_0
                    twice_1 += equal_1 * others_1
                    ties_0 += cubed(float(equal_0 + others_0)) - cubed(float(others_0))
                    ties_1 += cubed(float(equal_1 + others_1)) - cubed(float(others_1))
                own_0 += equal_0
                own_1 += equal_1
                i = j
            first = _firsts(firsts, before, begin + stored) - earlier
            second = stored - first - (place < stored)
            ranks_0, ranks_1 = (own_0 * (own_0 + 1.0) + twice_0) / 2.0, (own_1 * (own_1 + 1.0) + twice_1) / 2.0
            p[s, 0, g] = _p_of_ranks(ranks_0, own_0, first, ties_0, sizes[s, 0], control_sizes[s, 0])
            p[s, 1, g] = _p_of_ranks(ranks_1, own_1, second, ties_1, sizes[s, 1], control_sizes[s, 1])
    return p


@njit(nogil=True, cache=True)
def _p_of_ranks(ranks, own, others, ties, n_cells, n_controls):
    """From the ranks of `own` stored values among what is stored, zeros not counted."""
    if n_cells == 0 or n_controls == 0:
        return 1.0
    zeros = float(n_cells + n_controls - own - others)
    rank_sum = ranks + own * zeros + (n_cells - own) * (zeros + 1.0) / 2.0
    return two_sided(rank_sum, n_cells, n_controls, ties + cubed(zeros))
