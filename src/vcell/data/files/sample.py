"""Some cells of a matrix, spread over the file, without reading much of it."""

from __future__ import annotations

import numpy as np

from vcell.data.files.matrix import Matrix, Sample

SAMPLE_VALUES = 4_000_000  # read for a sample, at most
FEWEST_CHUNKS = 16  # of a file that are looked into, at least


def sample_cells(matrix: Matrix, n_cells: int) -> Sample:
    """About `n_cells` cells spread over the file, reading about `SAMPLE_VALUES` values at most."""
    budget = SAMPLE_VALUES
    if matrix.layout == "csc":
        genes = _genes_within(matrix, budget) if matrix.stored > budget else np.arange(matrix.shape[1])
        return _of_csc(matrix, genes, n_cells)
    if matrix.layout == "dense":
        return matrix.rows(_spread_runs(matrix, n_cells, budget))
    mean = max(1, matrix.stored // max(1, matrix.shape[0]))
    cells = cheap_cells(matrix, budget)
    number = max(1, min(n_cells, budget // mean, len(cells)))
    return matrix.rows(cells[np.linspace(0, len(cells) - 1, number).astype(np.int64)] if len(cells) else cells)


def cheap_cells(matrix: Matrix, budget: int, also: np.ndarray | None = None) -> np.ndarray:
    """Cells, ascending, that can all be read without unpacking much more than `budget` values.

    HDF5 reads chunks whole, and one of a million values for every cell would be the file many times over. So some
    chunks are taken, spread over the file, and those in which cells of `also` lie.
    """
    everyone, chunks = np.arange(matrix.shape[0]), matrix.values_node.chunks
    if matrix.layout == "csc" or chunks is None or not matrix.stored:
        return everyone
    # where each cell begins and ends, in stored values
    begins = matrix.indptr if matrix.indptr is not None else np.arange(matrix.shape[0] + 1) * matrix.shape[1]
    length = chunks[0] if matrix.indptr is not None else chunks[0] * matrix.shape[1]
    pieces, taken = -(-matrix.stored // length), max(FEWEST_CHUNKS, budget // length)
    if taken >= pieces or length * matrix.shape[0] < 4 * matrix.stored:
        return everyone
    chosen = np.linspace(0, pieces - 1, taken).astype(np.int64)
    if also is not None and len(also):
        some = also[np.linspace(0, len(also) - 1, FEWEST_CHUNKS // 4).astype(np.int64)]
        chosen = np.append(chosen, begins[some] // length)
    first, last = begins[:-1] // length, (np.maximum(begins[1:], begins[:-1] + 1) - 1) // length
    found = np.flatnonzero((first == last) & np.isin(first, chosen))
    return found if found.size else everyone


def _spread_runs(matrix: Matrix, n_cells: int, budget: int) -> np.ndarray:
    """Cells of a dense matrix in runs as high as its chunks, which are read whole anyway."""
    chunks = matrix.values_node.chunks
    height = min(chunks[0] if chunks else 1, matrix.shape[0])
    cells = min(matrix.shape[0], n_cells, max(1, budget // max(1, matrix.shape[1])))
    runs = max(1, min(cells, budget // max(1, height * matrix.shape[1])))
    starts = np.unique(np.linspace(0, max(0, matrix.shape[0] - height), runs).astype(np.int64) // height * height)
    long = max(1, cells // len(starts))
    return np.unique(np.minimum(starts[:, None] + np.arange(long), matrix.shape[0] - 1).ravel())


def _genes_within(matrix: Matrix, budget: int) -> np.ndarray:
    """Genes of a CSC matrix, spread evenly, with `budget` values together."""
    assert matrix.indptr is not None
    lengths = np.diff(matrix.indptr)
    order = np.argsort(np.arange(len(lengths)) * 0.6180339887 % 1.0)  # spread evenly, however many are taken
    taken = np.sort(order[np.cumsum(lengths[order]) <= budget])
    return taken if taken.size else order[:1]


def _of_csc(matrix: Matrix, genes: np.ndarray, n_cells: int) -> Sample:
    """Some genes of cells spread over the file."""
    cells = np.unique(np.linspace(0, matrix.shape[0] - 1, min(n_cells, matrix.shape[0])).astype(np.int64))
    parts: list[tuple[np.ndarray, ...]] = []
    for gene in genes:
        rows, values = matrix.column(gene)
        keep = np.isin(rows, cells)
        parts.append((rows[keep], np.full(int(keep.sum()), gene), values[keep]))
    row, gene_of, values = (np.concatenate([p[i] for p in parts]) for i in range(3))
    order = np.argsort(row, kind="stable")
    indptr = np.searchsorted(row[order], np.append(cells, matrix.shape[0]))
    return Sample(cells, indptr, gene_of[order], values[order], len(genes) == matrix.shape[1])
