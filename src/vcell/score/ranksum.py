"""Wilcoxon rank-sum tests of many groups of cells against the same controls, gene by gene, on sparse cells.

The controls are sorted once. A group's few stored values of a gene, sorted too, then find their places among them in one walk, where
numba-mwu (in `pdex`) sorts both again for every group. Several groups walk one after the other while a gene's controls are in the
processor's cache: to fetch them from memory takes longer than the walk. illico's p-values near 1 lie below 1 where the official ones
are 1, and the order of such genes counts in a score of 2026. ``benchmarks/score.py`` has the figures. Statistic, tie and continuity
correction are those of `scipy.stats.mannwhitneyu` (asymptotic, two-sided).

Shape legend: T groups, C cells, G genes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numba import njit
from scipy import sparse

from vcell.data.files.csr import starts_of
from vcell.score.rows import with_values
from vcell.system import in_threads

if TYPE_CHECKING:
    import torch

GENES_A_THREAD = 2048
VALUES_A_THREAD = 4_000_000
AT_ONCE = 8  # values compared with one
NEAR = 128  # values that are walked before steps double
Tested = Callable[[sparse.csr_matrix], np.ndarray]  # the values that are tested, float64, of those that a matrix stores
KEYS = 8192  # of the first, coarse sort of a gene's values


def as_stored(cells: sparse.csr_matrix) -> np.ndarray:
    """What is tested is what is stored."""
    return cells.data.astype(np.float64, copy=False)


@dataclass(frozen=True)
class ByGene:
    """Stored values of some cells, gene by gene, ascending.

    Attributes
    ----------
    n
        Cells, those with zeros included.
    starts
        Where each gene's values begin, ``(genes + 1)``.
    values
        Positive values, float64.
    entries
        Which of the matrix's stored values each is.
    """

    n: int
    starts: np.ndarray
    values: np.ndarray
    entries: np.ndarray

    @classmethod
    def of(cls, cells: sparse.csr_matrix, place: np.ndarray, tested: Tested) -> ByGene:
        """From many cells of non-negative values, on all cores.

        Parameters
        ----------
        place
            The gene that each column is, ``(columns)``, ascending; -1 for columns left out.
        tested
            Makes what is tested of the values of some genes.
        """
        n_genes = int(place.max(initial=-1)) + 1
        starts = gene_starts(cells.indices, cells.data, place, n_genes)
        ordered, numbers = np.empty(starts[-1], np.float64), np.empty(starts[-1], entry_type(cells))
        step = genes_at_once(n_genes, cells.nnz)

        def sort(first: int) -> None:
            last = min(first + step, n_genes)
            part = slice(starts[first], starts[last])
            _, ordered[part], numbers[part] = sorted_part(cells, tested, place, starts, first, last)

        for _ in in_threads(sort, range(0, n_genes, step)):
            pass
        return cls(cells.shape[0], starts, ordered, numbers)


@dataclass(frozen=True)
class GroupsByGene:
    """Stored values of a few groups of cells, one group after the other, each gene by gene, ascending.

    Attributes
    ----------
    sizes
        Cells of each group, those with zeros included.
    starts
        Where each gene's values begin, ``(groups, genes + 1)``.
    values
        Positive values, float64.
    entries
        Which of the values that its group's matrix stores each is; empty where nobody asked.
    """

    sizes: np.ndarray
    starts: np.ndarray
    values: np.ndarray
    entries: np.ndarray

    @classmethod
    def of(cls, groups: Sequence[sparse.csr_matrix], place: np.ndarray, entries: bool = False) -> GroupsByGene:
        """From cells of non-negative values; `place` as of `ByGene.of`, `entries` says whether they are wanted."""
        stored, n_genes = [as_stored(cells) for cells in groups], int(place.max(initial=-1)) + 1
        starts = [gene_starts(c.indices, values, place, n_genes) for c, values in zip(groups, stored, strict=True)]
        begins = starts_of(np.array([own[-1] for own in starts]))
        ordered = np.empty(begins[-1], np.float64)
        numbers = np.empty(begins[-1] if entries else 0, np.result_type(*map(entry_type, groups)))
        for cells, values, own, begin in zip(groups, stored, starts, begins, strict=False):
            part = slice(begin, begin + own[-1])
            _sort_genes(cells.indices, values, place, own, 0, n_genes, ordered[part], numbers[part])
        sizes = np.array([cells.shape[0] for cells in groups])
        return cls(sizes, np.stack(starts) + begins[:-1, None], ordered, numbers)


@dataclass(frozen=True)
class SortedControls:
    """Control cells by gene.

    Attributes
    ----------
    cells
        Their values.
    ties
        Sum of t³ - t over equal positive values, ``(genes)``.
    place
        The gene that each column of a group is, as of `ByGene.of`.
    """

    cells: ByGene
    ties: np.ndarray
    place: np.ndarray

    @classmethod
    def of(
        cls, cells: sparse.csr_matrix, place: np.ndarray | None = None, tested: Tested = as_stored
    ) -> SortedControls:
        """From cells of non-negative values, of which `tested` makes what is tested; all columns where `place` is not given."""
        if place is None:
            place = np.arange(cells.shape[1], dtype=np.int32)
        by_gene = ByGene.of(cells, place, tested)
        return cls(by_gene, _ties(by_gene.starts, by_gene.values), place)

    def __call__(self, groups: Sequence[sparse.csr_matrix], copies: int = 1) -> np.ndarray:
        return rank_sum_p(groups, self, copies)

    def drawn_from(self, pool: sparse.csr_matrix, tested: Tested) -> Callable[[np.ndarray], np.ndarray]:
        from vcell.score.drawn import DrawnCells  # here: it is made of what is below

        return DrawnCells.of(pool, self, tested)

    def drawn_again(self, controls: sparse.csr_matrix) -> Callable[[np.ndarray], np.ndarray]:
        """The test of rows of the controls themselves, of which only the stored values' columns matter."""
        from vcell.score.drawn import DrawnCells

        return DrawnCells.of(controls, self)


def numbered(kept_G: np.ndarray) -> np.ndarray:
    """The `place` of columns of which some are kept: their numbers among these, -1 for the others."""
    return np.where(kept_G, np.cumsum(kept_G, dtype=np.int32) - 1, -1)


class RankTest(Protocol):
    """Tests against some controls."""

    def __call__(self, groups: Sequence[sparse.csr_matrix], copies: int = 1) -> np.ndarray:
        """p-values of groups of cells, each of which is there `copies` times, ``(groups, genes)``."""
        ...

    def drawn_from(self, pool: sparse.csr_matrix, tested: Tested) -> Callable[[np.ndarray], np.ndarray]:
        """The test of rows of `pool`, which is analysed once; `tested` makes what is tested of its stored values or of some of them."""
        ...


def rank_test(
    controls: sparse.csr_matrix,
    device: torch.device | None = None,
    tested_G: np.ndarray | None = None,
    tested: Tested = as_stored,
) -> RankTest:
    """The test of groups of cells against `controls`, which are sorted once.

    Parameters
    ----------
    device
        None: on the CPU.
    tested_G
        The genes that are, a mask; None: all.
    tested
        Makes of the controls' values what is tested.
    """
    if device is None:
        return SortedControls.of(controls, None if tested_G is None else numbered(tested_G), tested)
    from vcell.score.gpu import DenseRankTest  # here: torch takes a second to load

    return DenseRankTest(with_values(controls, tested(controls)), device, tested_G)


def entry_type(cells: sparse.csr_matrix) -> np.dtype:
    """Of the numbers of stored values."""
    return np.dtype(np.int32 if cells.nnz < 2**31 else np.int64)


def genes_at_once(n_genes: int, n_values: int) -> int:
    """Genes that a thread analyses at a time: so few that what is made of them takes little memory."""
    return max(1, min(GENES_A_THREAD, n_genes * VALUES_A_THREAD // max(1, n_values)))


def rank_sum_p(groups: Sequence[sparse.csr_matrix], controls: SortedControls, copies: int = 1) -> np.ndarray:
    """Two-sided p-values of groups of cells against the controls, ``(groups, genes)``; 1 for a gene that is the same in all.

    Parameters
    ----------
    groups
        CSR ``(cells, columns)``, non-negative, at least one cell each.
    copies
        How often each of the cells is there.
    """
    own, others = GroupsByGene.of(groups, controls.place), controls.cells
    return _p_values(own.starts, own.values, own.sizes, copies, others.starts, others.values, controls.ties, others.n)


def sorted_part(
    cells: sparse.csr_matrix, tested: Tested, place: np.ndarray, starts: np.ndarray, first: int, last: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What `ByGene` holds of the genes from `first` to `last` alone: starts, values and entries; `starts` as from `gene_starts`."""
    number, kind = int(starts[last] - starts[first]), entry_type(cells)
    ordered, numbers, entries = np.empty(number, np.float64), np.empty(number, kind), np.empty(number, kind)
    columns = np.flatnonzero(place >= 0)[first:last]
    genes, values = np.empty(number, cells.indices.dtype), np.empty(number, cells.data.dtype)
    begins = _take_genes(
        cells.indptr, cells.indices, cells.data, place, columns[0], columns[-1], cells.has_sorted_indices, entries, genes, values
    )  # fmt: skip
    part = sparse.csr_matrix((values, genes, begins), cells.shape)
    own = starts - starts[first]
    _sort_genes(part.indices, tested(part), place, own, first, last, ordered, numbers)
    return own[first : last + 1], ordered, entries[numbers]


@njit(nogil=True, cache=True)
def _take_genes(starts, genes, values, place, first, last, ascending, entries, into_genes, into_values):
    """Writes which stored values are of the columns from `first` to `last`, their columns and the values, cell by cell; gives where each
    cell's begin."""
    begins, n = np.zeros(len(starts), np.int64), 0
    for c in range(len(starts) - 1):
        k = starts[c]
        if ascending:
            k += np.searchsorted(genes[starts[c] : starts[c + 1]], first)
        while k < starts[c + 1] and not (ascending and genes[k] > last):
            if first <= genes[k] <= last and place[genes[k]] >= 0 and values[k] > 0:
                entries[n], into_genes[n], into_values[n] = k, genes[k], values[k]
                n += 1
            k += 1
        begins[c + 1] = n
    return begins


@njit(nogil=True, cache=True)
def gene_starts(genes, values, place, n_genes):
    """Where each gene's values begin. Zeros that are stored are left out: they would count as values above the others' zeros."""
    starts = np.zeros(n_genes + 1, np.int64)
    for i in range(len(genes)):
        g = place[genes[i]]
        if g >= 0 and values[i] > 0.0:
            starts[g + 1] += 1
    for g in range(n_genes):
        starts[g + 1] += starts[g]
    return starts


@njit(nogil=True, cache=True)
def _sort_genes(genes, values, place, starts, first, last, ordered, entries):
    """Writes the values of some genes to their places in `ordered`, ascending, and which they are to `entries` where that is wanted."""
    begin, wanted = starts[first], len(entries) > 0
    number = starts[last] - begin
    found, numbers = np.empty(number, np.float64), np.empty(number if wanted else 0, entries.dtype)
    at = starts[first:last] - begin
    for i in range(len(genes)):
        g = place[genes[i]]
        if first <= g < last and values[i] > 0.0:
            k = at[g - first]
            found[k] = values[i]
            if wanted:
                numbers[k] = i
            at[g - first] += 1
    begins = np.empty(KEYS + 2, np.int64)
    for g in range(first, last):
        one = slice(starts[g] - begin, starts[g + 1] - begin)
        _sort_roughly(found[one], numbers[one], wanted, begins, ordered, entries, starts[g])
        _insert(ordered, entries, wanted, starts[g], starts[g + 1])


@njit(nogil=True, cache=True)
def _sort_roughly(found, numbers, wanted, begins, ordered, entries, at):
    """Writes the values of one gene to `ordered` from `at` on, by their leading bits, as which positive floats are ordered; `begins` is room."""
    if len(found) == 0:
        return
    bits = found.view(np.int64)
    low, high = bits[0], bits[0]
    for k in range(len(bits)):
        low, high = min(low, bits[k]), max(high, bits[k])
    keys, shift = min(KEYS, 2 * len(found)), 0
    while (high - low) >> shift >= keys:
        shift += 1
    begins = begins[: ((high - low) >> shift) + 2]
    begins[:] = 0
    for k in range(len(bits)):
        begins[((bits[k] - low) >> shift) + 1] += 1
    for key in range(len(begins) - 1):
        begins[key + 1] += begins[key]
    for k in range(len(bits)):
        key = (bits[k] - low) >> shift
        to = at + begins[key]
        ordered[to] = found[k]
        if wanted:
            entries[to] = numbers[k]
        begins[key] += 1


@njit(nogil=True, cache=True)
def _insert(values, entries, wanted, begin, end):
    for i in range(begin + 1, end):
        value = values[i]
        if values[i - 1] <= value:
            continue
        entry = entries[i] if wanted else 0
        j = i
        while j > begin and values[j - 1] > value:
            values[j] = values[j - 1]
            if wanted:
                entries[j] = entries[j - 1]
            j -= 1
        values[j] = value
        if wanted:
            entries[j] = entry


@njit(nogil=True, cache=True)
def _ties(starts, values):
    ties = np.zeros(len(starts) - 1, np.float64)
    for g in range(len(ties)):
        i = starts[g]
        while i < starts[g + 1]:
            j = past_equal(values, i + 1, starts[g + 1], values[i])
            ties[g] += cubed(float(j - i))
            i = j
    return ties


@njit(nogil=True, cache=True)
def cubed(t):
    """t³ - t, by which equal values lessen the variance of ranks."""
    return t * t * t - t


@njit(nogil=True, cache=True)
def not_below(values, low, high, value):
    """First place from `low` on, or `high`, whose value is not below `value`: near ones are counted some at a time, then steps double and
    halve."""
    # places that cannot be negative: numba has compiled code look at several values at once for these alone
    at, end, step, one = np.uint64(low), np.uint64(high), np.uint64(AT_ONCE), np.uint64(1)
    near = min(end, at + np.uint64(NEAR))
    while at + step <= near and values[at + step - one] < value:
        at += step
    if at + step <= near:
        below = np.uint64(0)
        for i in range(step):
            below += np.uint64(values[at + i] < value)
        return np.int64(at + below)
    while at < near and values[at] < value:
        at += one
    return np.int64(at) if at < near or near == end else _far(values, np.int64(at), high, value, False)


@njit(nogil=True, cache=True)
def past_equal(values, low, high, value):
    """First place from `low` on, or `high`, whose value is above `value`; those from `low` on are not below it."""
    if low >= high or values[low] != value:
        return low
    low += 1
    if low >= high or values[low] != value:  # most often
        return low
    return _far(values, low, high, value, True)


@njit(nogil=True, cache=True)
def _far(values, low, high, value, above):
    """First place from `low` on, or `high`, whose value is not below `value`, or, `above`, is above it."""
    step = 1
    end = low
    while end < high and (values[end] < value or (above and values[end] == value)):
        low = end + 1
        end += step
        step *= 2
    end = min(end, high)
    while low < end:
        middle = (low + end) // 2
        if values[middle] < value or (above and values[middle] == value):
            low = middle + 1
        else:
            end = middle
    return low


@njit(nogil=True, cache=True)
def _p_values(starts_TG, values, sizes, copies, control_starts, control_values, control_ties, n_controls):
    p_TG = np.ones((len(starts_TG), len(control_ties)), np.float64)
    for g in range(p_TG.shape[1]):
        begin, end = control_starts[g], control_starts[g + 1]
        for t in range(len(p_TG)):  # what is read of a gene is at hand for all groups
            first, last = starts_TG[t, g], starts_TG[t, g + 1]
            n_cells, stored = sizes[t] * copies, (last - first) * copies
            n = n_cells + n_controls
            zeros = float(n - stored - (end - begin))
            # ranks of the group's cells: its zeros share the middle of all zeros' ranks
            rank_sum = (n_cells - stored) * (zeros + 1.0) / 2.0
            ties = control_ties[g] + cubed(zeros)
            low = begin
            i = first
            while i < last:
                j = past_equal(values, i + 1, last, values[i])
                low = not_below(control_values, low, end, values[i])
                high = past_equal(control_values, low, end, values[i])
                own, others = float((j - i) * copies), float(high - low)
                rank_sum += own * (zeros + (i - first) * copies + (low - begin) + (own + others + 1.0) / 2.0)
                ties += cubed(own + others) - cubed(others)
                low = high
                i = j
            p_TG[t, g] = two_sided(rank_sum, n_cells, n_controls, ties)
    return p_TG


@njit(nogil=True, cache=True)
def two_sided(rank_sum, n_x, n_y, ties):
    """p-value of the sum of ranks of `n_x` cells against `n_y` others."""
    n = float(n_x + n_y)
    u_x = rank_sum - n_x * (n_x + 1.0) / 2.0
    u = max(u_x, n_x * n_y - u_x)
    variance = n_x * n_y / 12.0 * ((n + 1.0) - ties / (n * (n - 1.0)))
    if variance <= 0.0:
        return 1.0
    z = (u - n_x * n_y / 2.0 - 0.5) / math.sqrt(variance)
    return min(max(math.erfc(z / math.sqrt(2.0)), 0.0), 1.0)
