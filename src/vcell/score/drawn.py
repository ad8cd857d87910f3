"""Rank-sum tests of cells that are drawn from others: copied controls, the mean response.

Every cell of every target is then one of a pool. Where each of the pool's values lies among the controls is looked up once; a target's
rank sum adds up what its cells bring, with nothing left to sort. For with d = cells of the target below or equal, the sum of ranks is
that of 1 to n, whatever the values, plus for each cell the controls below it and half of those equal to it. Only the correction for
ties needs to know which values are equal among the target's own, and most are not.

Shape legend: C cells, G genes, T tested genes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit
from scipy import sparse

from vcell.score.ranksum import (
    GENES_A_THREAD,
    SortedControls,
    cubed,
    gene_starts,
    not_below,
    past_equal,
    sorted_part,
    two_sided,
)
from vcell.system import in_threads

LEFT_OUT, ALONE = -2, -1  # of a value: it is not tested; no other of the pool is equal to it


@dataclass(frozen=True)
class DrawnCells:
    """A pool of cells whose places among the controls are known.

    Attributes
    ----------
    starts, genes
        Where the stored values of each cell of the pool begin, and their columns, as of CSR.
    controls
        What they are tested against.
    twice
        Of each stored value: the number of control values of its gene that lie below it, twice, and of those equal to it.
    equal
        Of each stored value: the number of control values equal to it.
    shared
        A number below half of the stored values, the same for all of a gene that are equal to each other; else `LEFT_OUT` or `ALONE`.
    """

    starts: np.ndarray
    genes: np.ndarray
    controls: SortedControls
    twice: np.ndarray
    equal: np.ndarray
    shared: np.ndarray

    @classmethod
    def of(cls, pool: sparse.csr_matrix, controls: SortedControls, own: bool = False) -> DrawnCells:
        """From cells of non-negative values; `own`: they are the controls, and need no sorting."""
        others, n_values = controls.cells, len(pool.data)
        kind = np.uint16 if 2 * others.n < 2**16 else np.uint32
        twice, equal = (np.zeros(n_values, kind) for _ in range(2))
        shared = np.full(n_values, LEFT_OUT, np.int32 if n_values < 2**31 else np.int64)
        values = pool.data.astype(np.float64, copy=False)
        starts = others.starts if own else gene_starts(pool.indices, values, controls.place, len(controls.ties))

        def look_up(first: int) -> None:
            last = min(first + GENES_A_THREAD, len(controls.ties))
            if own:
                part = starts[first : last + 1], others.values, others.entries
            else:
                part = sorted_part(pool.indices, values, controls.place, starts, first, last)
            _look_up(*part, others.starts[first:], others.values, starts[first] // 2, twice, equal, shared)

        for _ in in_threads(look_up, range(0, len(controls.ties), GENES_A_THREAD)):
            pass
        return cls(pool.indptr, pool.indices, controls, twice, equal, shared)

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """Two-sided p-values ``(tested genes)`` of some cells of the pool, one of which may be there several times."""
        cells, times = np.unique(rows, return_counts=True)
        seen = np.zeros(len(self.shared) // 2, np.int32)  # here: numpy leaves what is not touched to the system
        return _p_values(
            self.starts, self.genes, self.controls.place, cells, times, len(rows), self.twice, self.equal, self.shared, seen,
            np.diff(self.controls.cells.starts), self.controls.ties, self.controls.cells.n,
        )  # fmt: skip


@njit(nogil=True, cache=True)
def _look_up(starts, values, entries, control_starts, control_values, number, twice, equal, shared):
    """Fills what is known of the values of some genes; numbers of `shared` begin with `number`."""
    for g in range(len(starts) - 1):
        begin, end = control_starts[g], control_starts[g + 1]
        at, i = begin, starts[g]
        while i < starts[g + 1]:
            j = past_equal(values, i + 1, starts[g + 1], values[i])
            at = not_below(control_values, at, end, values[i])
            high = past_equal(control_values, at, end, values[i])
            for k in range(i, j):
                e = entries[k]
                twice[e], equal[e], shared[e] = at + high - 2 * begin, high - at, number if j > i + 1 else ALONE
            number += j > i + 1
            i = j


@njit(nogil=True, cache=True)
def _p_values(
    starts, genes, place, cells, times, n_cells, twice, equal, shared, seen, control_stored, control_ties, n_controls
):
    """Of `cells`, each `times` there; `seen` holds a zero for each number of `shared`."""
    n_genes = len(control_stored)
    own, twice_G, ties = np.zeros(n_genes, np.int64), np.zeros(n_genes, np.int64), control_ties.copy()
    for c in range(len(cells)):
        m = times[c]
        for e in range(starts[cells[c]], starts[cells[c] + 1]):
            number = shared[e]
            if number == LEFT_OUT:
                continue
            g = place[genes[e]]
            own[g] += m
            twice_G[g] += m * np.int64(twice[e])
            alike = np.int64(equal[e])
            if number != ALONE:
                alike += seen[number]
                seen[number] += m
            ties[g] += cubed(float(alike + m)) - cubed(float(alike))
    p = np.ones(n_genes, np.float64)
    for g in range(n_genes):
        zeros = float(n_cells + n_controls - own[g] - control_stored[g])
        ranks = own[g] * zeros + (own[g] * (own[g] + 1.0) + twice_G[g]) / 2.0 + (n_cells - own[g]) * (zeros + 1.0) / 2.0
        p[g] = two_sided(ranks, n_cells, n_controls, ties[g] + cubed(zeros))
    return p
