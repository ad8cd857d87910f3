"""Sums of sparse cells in double precision.

scipy adds up a matrix of single precision in single precision, whatever `dtype` it is asked for: the largest genes of many control cells
would be off by a ten-thousandth.

Shape legend: C cells, G genes.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from scipy import sparse


def sums(cells: sparse.csr_matrix, rows: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Of all cells or of some: sum of each gene ``(genes)`` and of each cell ``(rows)``."""
    rows = np.arange(cells.shape[0]) if rows is None else rows
    return _sums(cells.indptr, cells.indices, cells.data, rows, cells.shape[1])


def mean_profile(cells: sparse.csr_matrix) -> np.ndarray:
    """Mean over cells, ``(genes)``."""
    return sums(cells)[0] / cells.shape[0]


@njit(nogil=True, cache=True)
def _sums(starts, genes, values, rows, n_genes):
    sum_G, sum_C = np.zeros(n_genes, np.float64), np.zeros(len(rows), np.float64)
    for c in range(len(rows)):
        for k in range(starts[rows[c]], starts[rows[c] + 1]):
            value = float(values[k])
            sum_G[genes[k]] += value
            sum_C[c] += value
    return sum_G, sum_C
