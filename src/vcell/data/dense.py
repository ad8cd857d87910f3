"""Rows of a store made dense and log1p in one pass over memory, and dense rows made sparse, compiled.

The numbers are those of numpy's log1p, to the last bit. Nearly all counts are small, so each cell gets a table of the log1p of small
counts, and its row is filled from that.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from scipy import sparse

from vcell.data.files.normalize import stored_to_log1p

IN_TABLE = 128  # counts below this are looked up
_SMALL = np.arange(IN_TABLE, dtype=np.float32)


def fill_log1p(
    dense_CG: np.ndarray, starts: np.ndarray, genes: np.ndarray, counts: np.ndarray, scale: np.ndarray
) -> None:
    """Writes log1p of ``counts * scale`` into `dense_CG`, zeros included.

    Parameters
    ----------
    dense_CG
        float32 ``(cells, genes)``; what it held is overwritten.
    starts
        ``(cells + 1)``: where each cell's stored values begin in `genes` and `counts`.
    genes, counts
        Unsigned integers ``(stored values)``.
    scale
        float32 ``(cells)``: target sum over library size.
    """
    tables = np.log1p(_SMALL * scale[:, None])
    large = np.empty(starts[-1] - starts[0], np.int32)  # places of the counts that the tables lack
    large = large[: _fill(dense_CG, starts, genes, counts, tables, large)].astype(np.int64) + starts[0]
    if len(large):
        cells = np.searchsorted(starts, large, side="right") - 1
        dense_CG[cells, genes[large]] = stored_to_log1p(counts[large], scale[cells])


@njit(nogil=True, cache=True)
def _fill(dense, starts, genes, counts, tables, large):
    in_table, found, begin = tables.shape[1], 0, starts[0]
    for cell in range(len(dense)):
        row, table = dense[cell], tables[cell]
        row[:] = 0
        first, last = starts[cell], starts[cell + 1]
        own_genes, own_counts = genes[first:last], counts[first:last]
        for i in range(len(own_genes)):
            count = own_counts[i]
            if count < in_table:
                row[own_genes[i]] = table[count]
            else:
                large[found] = first - begin + i
                found += 1
    return found


def sparse_columns(dense_CG: np.ndarray, columns: np.ndarray) -> sparse.csr_matrix:
    """Some columns of dense rows, in this order, without their zeros: ``(cells, columns)``; a column of a number below 0 is empty."""
    starts = np.zeros(len(dense_CG) + 1, np.int64)
    _count(dense_CG, columns, starts)
    values, places = np.empty(starts[-1], dense_CG.dtype), np.empty(starts[-1], np.int32)
    _collect(dense_CG, columns, starts, values, places)
    return sparse.csr_matrix((values, places, starts), shape=(len(dense_CG), len(columns)))


@njit(nogil=True, cache=True)
def _count(dense, columns, starts):
    for cell in range(len(dense)):
        row, number = dense[cell], 0
        for column in columns:
            number += column >= 0 and row[column] != 0
        starts[cell + 1] = starts[cell] + number


@njit(nogil=True, cache=True)
def _collect(dense, columns, starts, values, places):
    for cell in range(len(dense)):
        row, at, end = dense[cell], starts[cell], starts[cell + 1]
        for place in range(len(columns)):
            if at == end:  # only zeros follow, for which there is no room
                break
            column = columns[place]
            value = row[column] if column >= 0 else row.dtype.type(0)
            # written anyhow, and kept where it is none: to branch on values that nobody foresees takes twice as long
            values[at], places[at] = value, place
            at += value != 0
