"""Rank-sum tests of cells that are drawn from others: copied controls, the mean response.

Every cell of every target is then one of a pool. Where each of the pool's values lies among the controls is looked up once; nothing of a
target is sorted. For the ranks of its n cells add up to those of n cells by themselves, 1 + 2 + ... + n, whatever their values, and for
each cell the controls below it and half of those equal to it. Only the correction for ties needs to know which of the target's own
values are equal, and most are not.

Shape legend: C cells, G genes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit
from scipy import sparse

from vcell.score.ranksum import (
    SortedControls,
    Tested,
    cubed,
    entry_type,
    gene_starts,
    genes_at_once,
    not_below,
    past_equal,
    sorted_part,
    two_sided,
)
from vcell.system import in_threads

LEFT_OUT, ALONE = 0, 1  # of a value: it is not tested; no other of the pool is equal to it
NUMBERED = 2  # numbers of equal values begin here


@dataclass(frozen=True)
class DrawnCells:
    """A pool of cells whose places among the controls are known.

    Attributes
    ----------
    starts, genes
        Where the stored values of each cell of the pool begin, and their columns, as of CSR.
    controls
        What they are tested against.
    known
        Of each stored value, side by side as they are read together: `twice`, the number of control values of its gene that lie below it,
        twice, and of those equal to it; `equal`, the number of these; `shared`, a number that is the same for all of a gene that are equal
        to each other, from `NUMBERED` on, else `LEFT_OUT` or `ALONE`.
    n_shared
        How many numbers `shared` has.
    """

    starts: np.ndarray
    genes: np.ndarray
    controls: SortedControls
    known: np.ndarray
    n_shared: int

    @classmethod
    def of(cls, pool: sparse.csr_matrix, controls: SortedControls, tested: Tested | None = None) -> DrawnCells:
        """From cells with non-negative values, of which `tested` makes what is tested; None: they are the controls, and need no sorting."""
        others, n_genes = controls.cells, len(controls.ties)
        count = "u2" if 2 * others.n < 2**16 else "u4"
        known = np.zeros(pool.nnz, [("twice", count), ("equal", count), ("shared", entry_type(pool))])  # left out
        starts = others.starts if tested is None else gene_starts(pool.indices, pool.data, controls.place, n_genes)
        step = genes_at_once(n_genes, pool.nnz)

        def look_up(first: int) -> int:
            last = min(first + step, n_genes)
            if tested is None:
                part = starts[first : last + 1], others.values, others.entries
            else:
                part = sorted_part(pool, tested, controls.place, starts, first, last)
            return _look_up(*part, others.starts[first:], others.values, known)

        # each part of the genes has numbers from 0 so far
        shared = list(in_threads(look_up, range(0, n_genes, step)))
        begins = np.concatenate([[0], np.cumsum(shared, dtype=np.int64)])
        _number(pool.indices, controls.place, step, begins, known)
        return cls(pool.indptr, pool.indices, controls, known, int(begins[-1]))

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """Two-sided p-values ``(tested genes)`` of some cells of the pool, one of which may be there several times."""
        cells, times = np.unique(rows, return_counts=True)
        return _p_values(
            self.starts, self.genes, self.controls.place, cells, times, len(rows), self.known, self.n_shared,
            np.diff(self.controls.cells.starts), self.controls.ties, self.controls.cells.n,
        )  # fmt: skip


@njit(nogil=True, cache=True)
def _look_up(starts, values, entries, control_starts, control_values, known):
    """Fills what is known of the values of some genes, with numbers from 0; gives how many."""
    number = 0
    for g in range(len(starts) - 1):
        begin, end = control_starts[g], control_starts[g + 1]
        at, i = begin, starts[g]
        while i < starts[g + 1]:
            j = past_equal(values, i + 1, starts[g + 1], values[i])
            at = not_below(control_values, at, end, values[i])
            high = past_equal(control_values, at, end, values[i])
            for k in range(i, j):
                one = known[entries[k]]
                one.twice, one.equal = at + high - 2 * begin, high - at
                one.shared = number + NUMBERED if j > i + 1 else ALONE
            number += j > i + 1
            i = j
    return number


@njit(nogil=True, cache=True)
def _number(genes, place, step, begins, known):
    """Has the numbers of each part of the genes begin where the last one's ended."""
    for e in range(len(genes)):
        if known[e].shared >= NUMBERED:
            known[e].shared += begins[place[genes[e]] // step]


@njit(nogil=True, cache=True)
def _p_values(starts, genes, place, cells, times, n_cells, known, n_shared, control_stored, control_ties, n_controls):
    """Of `cells`, each `times` there."""
    seen = np.zeros(n_shared, np.int32)
    # of each gene the own values, the sum of `twice`, and ties: whole numbers, side by side
    of_G = np.zeros((len(control_stored), 3), np.float64)
    for c in range(len(cells)):
        m = times[c]
        for e in range(starts[cells[c]], starts[cells[c] + 1]):
            one = known[e]
            if one.shared == LEFT_OUT:
                continue
            g = place[genes[e]]
            alike = np.int64(one.equal)
            if one.shared != ALONE:
                alike += seen[one.shared - NUMBERED]
                seen[one.shared - NUMBERED] += m
            of_G[g, 0] += m
            of_G[g, 1] += m * np.int64(one.twice)
            of_G[g, 2] += cubed(float(alike + m)) - cubed(float(alike))
    p = np.ones(len(of_G), np.float64)
    for g in range(len(of_G)):
        own, twice, ties = of_G[g, 0], of_G[g, 1], of_G[g, 2] + control_ties[g]
        zeros = n_cells + n_controls - own - control_stored[g]
        ranks = own * zeros + (own * (own + 1.0) + twice) / 2.0 + (n_cells - own) * (zeros + 1.0) / 2.0
        p[g] = two_sided(ranks, n_cells, n_controls, ties + cubed(zeros))
    return p
