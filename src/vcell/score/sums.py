"""Groups of sparse cells, and their sums in double precision.

scipy adds up a matrix of single precision in single precision, whatever `dtype` it is asked for: the largest genes of many control cells
would be off by a ten-thousandth.

Shape legend: C cells, G genes.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
from numba import njit
from scipy import sparse


class CellGroup:
    """Some rows of a matrix of cells: a target's cells, half of them, or cells drawn from others.

    Parameters
    ----------
    matrix
        Cells, CSR.
    rows
        Which of them, in their order; one may be there several times. None: all.
    known
        Their `sums`, where these were added up elsewhere.
    """

    def __init__(
        self,
        matrix: sparse.csr_matrix,
        rows: np.ndarray | None = None,
        known: tuple[np.ndarray, np.ndarray] | None = None,
    ) -> None:
        self.matrix, self.all, self.known = matrix, rows is None, known
        self.rows = np.arange(matrix.shape[0]) if rows is None else rows

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def cells(self) -> sparse.csr_matrix:
        """The rows as a matrix of their own."""
        return self.matrix if self.all else self.matrix[self.rows]

    @cached_property
    def sums(self) -> tuple[np.ndarray, np.ndarray]:
        """Sum of each gene ``(genes)`` and of each cell ``(cells)``."""
        return self.known or _sums(
            self.matrix.indptr, self.matrix.indices, self.matrix.data, self.rows, self.matrix.shape[1]
        )

    def mean(self) -> np.ndarray:
        """Mean over cells, ``(genes)``."""
        return self.sums[0] / len(self)


def totals(cells: sparse.csr_matrix, rows: np.ndarray) -> np.ndarray:
    """Sum of each of some cells; as of `CellGroup.sums`, where genes' sums are not needed."""
    return _totals(cells.indptr, cells.data, rows)


@njit(nogil=True, cache=True)
def _sums(starts, genes, values, rows, n_genes):
    sum_G, sum_C = np.zeros(n_genes, np.float64), np.zeros(len(rows), np.float64)
    for c in range(len(rows)):
        for k in range(starts[rows[c]], starts[rows[c] + 1]):
            value = float(values[k])
            sum_G[genes[k]] += value
            sum_C[c] += value
    return sum_G, sum_C


@njit(nogil=True, cache=True)
def _totals(starts, values, rows):
    sum_C = np.zeros(len(rows), np.float64)
    for c in range(len(rows)):
        for k in range(starts[rows[c]], starts[rows[c] + 1]):
            sum_C[c] += float(values[k])
    return sum_C
