"""Rows of a store made dense and log1p in one pass over memory, compiled. The numbers are those of numpy's log1p, to the last bit.

Nearly all counts are small, so each cell gets a table of the log1p of small counts, and its row is filled from that.
"""

from __future__ import annotations

import numpy as np
from numba import njit

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
