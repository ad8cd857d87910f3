"""Rows copied out of a store by a compiled loop: other threads go on meanwhile, where slices joined by numpy hold them up."""

from __future__ import annotations

from numba import njit


@njit(nogil=True, cache=True)
def copy_rows(starts, indptr, indices, values, own_indices, own_values):
    """Copies the rows that begin at `starts` to the places from `indptr`."""
    for row in range(len(starts)):
        begin, end = indptr[row], indptr[row + 1]
        start, stop = starts[row], starts[row] + end - begin
        own_indices[begin:end] = indices[start:stop]
        own_values[begin:end] = values[start:stop]
