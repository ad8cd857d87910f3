"""Cells in principal components of the measured ones: for distances between sets of cells, and to look at."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit
from scipy import sparse
from scipy.linalg import eigh

from vcell.score.differential import log1p_cpm, millions_of
from vcell.score.grouped import GroupedCells
from vcell.score.sums import CellGroup, totals

FITTED_CELLS = 2_000
FITTED_GENES = 2_000
COMPONENTS = 50
CELLS_PER_SET = 200


@dataclass(frozen=True)
class Sample:
    """Cells that an embedding is fitted to.

    Attributes
    ----------
    genes
        The most variable ones.
    mean_G, centred_CG
        Mean of those genes, and the cells less that.
    target_sum
        Of the embedding.
    """

    genes: np.ndarray
    mean_G: np.ndarray
    centred_CG: np.ndarray
    target_sum: float | None

    @classmethod
    def of(cls, cells: GroupedCells, target_sum: float | None) -> Sample:
        """Some cells of every label, deterministic."""
        each = max(2, FITTED_CELLS // len(cells.cells))
        parts = [_log1p(spread(cells.cells[label], each), target_sum) for label in cells.cells]
        number = sum(part.shape[0] for part in parts)
        sum_G, square_G = np.zeros((2, len(cells.genes)))
        for part in parts:
            _add_moments(part.indices, part.data, sum_G, square_G)
        variance_G = square_G / number - (sum_G / number) ** 2
        genes = np.sort(np.argsort(-variance_G, kind="stable")[:FITTED_GENES])
        dense_CG, at = np.zeros((number, len(genes) + 1)), 0
        for part in parts:
            at += len(_of_genes(part, np.arange(part.shape[0]), genes, np.ones(part.shape[0]), dense_CG[at:]))
        dense_CG = dense_CG[:, :-1]
        mean_G = dense_CG.mean(0)
        return cls(genes, mean_G, np.subtract(dense_CG, mean_G, out=dense_CG), target_sum)

    def embedding(self) -> Embedding:
        """Their principal components: products and eigenvectors, which take all cores outside of threads."""
        centred = self.centred_CG
        # eigenvectors of the smaller of the two products
        wide = centred.shape[1] > centred.shape[0]
        product = centred @ centred.T if wide else centred.T @ centred
        first = max(0, len(product) - COMPONENTS)
        # the transpose lies in memory as LAPACK wants it
        values, vectors = eigh(
            product.T, subset_by_index=[first, len(product) - 1], overwrite_a=True, check_finite=False
        )
        # where all cells are alike one is kept, along which nothing varies
        telling = max(1, int((values > 1e-9 * max(values.max(), 0)).sum()))
        kept = np.argsort(-values)[: min(COMPONENTS, telling)]
        axes = vectors[:, kept]
        if wide:
            axes = centred.T @ axes / np.sqrt(np.maximum(values[kept], np.finfo(float).tiny))
        axes *= np.sign(
            axes[np.abs(axes).argmax(0), np.arange(axes.shape[1])]
        )  # a sign that does not depend on the library
        return Embedding(self.genes, self.mean_G, axes, self.target_sum)


@dataclass(frozen=True)
class Embedding:
    """Principal components of measured log1p cells.

    Attributes
    ----------
    genes
        Columns taken: the most variable ones.
    mean_G, axes_GK
        Of those genes.
    target_sum
        Counts are brought to log1p of counts per this; None: cells are log1p already.
    """

    genes: np.ndarray
    mean_G: np.ndarray
    axes_GK: np.ndarray
    target_sum: float | None

    @classmethod
    def of(cls, cells: GroupedCells, target_sum: float | None) -> Embedding:
        """From some cells of every label, deterministic."""
        return Sample.of(cells, target_sum).embedding()

    def place(self, group: CellGroup, number: int | None = None) -> np.ndarray:
        """Coordinates ``(cells, components)``; of no more than `number` cells, evenly from first to last."""
        cells, rows = group.matrix, group.rows[spread_rows(len(group), len(group) if number is None else number)]
        scale_C = np.ones(len(rows))
        if self.target_sum is not None:
            mass_C = totals(cells, rows)
            scale_C = self.target_sum / np.where(mass_C > 0, mass_C, 1.0)
        dense = _of_genes(cells, rows, self.genes, scale_C)
        if self.target_sum is not None:
            np.log1p(dense, out=dense)
        dense = dense[:, :-1]
        dense -= self.mean_G
        return dense @ self.axes_GK


def _of_genes(
    cells: sparse.csr_matrix,
    rows: np.ndarray,
    genes: np.ndarray,
    scale_C: np.ndarray,
    room: np.ndarray | None = None,
) -> np.ndarray:
    """Some columns of some rows, each cell's values times a factor; and a last column that means nothing: values of other genes go there,
    which is quicker than to ask of each whether it is wanted. They are put into the first rows of `room`, zeros, where that is given."""
    column = np.full(cells.shape[1], len(genes), np.int32)
    column[genes] = np.arange(len(genes), dtype=np.int32)
    dense = np.zeros((len(rows), len(genes) + 1)) if room is None else room[: len(rows)]
    _fill(cells.indptr, cells.indices, cells.data, rows, column, scale_C, dense)
    return dense


@njit(nogil=True, cache=True)
def _fill(starts, genes, values, rows, column, scale_C, dense):
    for c in range(len(rows)):
        for k in range(starts[rows[c]], starts[rows[c] + 1]):
            dense[c, column[genes[k]]] = values[k] * scale_C[c]


@njit(nogil=True, cache=True)
def _add_moments(genes, values, sum_G, square_G):
    for k in range(len(genes)):
        value = float(values[k])
        sum_G[genes[k]] += value
        square_G[genes[k]] += value * value


def energy_distance_unbiased(x_CK: np.ndarray, y_CK: np.ndarray) -> float:
    """E|x - y| - E|x - x'| / 2 - E|y - y'| / 2 (Székely and Rizzo 2013), a cell with itself left out (the U-statistic): about 0 for two samples
    of one population."""
    from scipy.spatial.distance import cdist, pdist

    within = [pdist(z).mean() if len(z) > 1 else 0.0 for z in (x_CK, y_CK)]
    return float(cdist(x_CK, y_CK).mean() - sum(within) / 2)


def spread(cells: sparse.csr_matrix, number: int) -> sparse.csr_matrix:
    """At most `number` cells, evenly from first to last."""
    return cells[spread_rows(cells.shape[0], number)]


def spread_rows(n_cells: int, number: int) -> np.ndarray:
    return np.unique(np.linspace(0, n_cells - 1, min(number, n_cells)).astype(int))


def _log1p(cells: sparse.csr_matrix, target_sum: float | None) -> sparse.csr_matrix:
    return cells if target_sum is None else log1p_cpm(cells, millions_of(cells, target_sum))[0]
