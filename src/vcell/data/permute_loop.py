"""`permute.permuted` for thousands of positions at once, compiled: other threads go on meanwhile. The numbers are the same."""

from __future__ import annotations

import numpy as np
from numba import njit

from vcell.data.permute import FACTORS, GOLDEN, ROUNDS

# whole numbers without a sign throughout: beside one with a sign they would become fractions
_ONE, _HALF = np.uint64(1), np.uint64(32)
_FIRST, _SECOND = FACTORS
_SHIFTS = np.uint64(30), np.uint64(27), np.uint64(31)


@njit(nogil=True, cache=True, error_model="numpy")
def permute(position, size, key, out):
    """Fills `out`, int64; all of one length, the others uint64."""
    for i in range(len(out)):
        rows = np.uint64(np.ceil(np.sqrt(np.float64(size[i]))))
        columns = (size[i] + rows - _ONE) // rows
        at = _walk(position[i], rows, columns, key[i])
        while at >= size[i]:
            at = _walk(at, rows, columns, key[i])
        out[i] = np.int64(at)


@njit(nogil=True, cache=True, error_model="numpy")
def _walk(at, rows, columns, key):
    row, column, salt = at // columns, at % columns, key
    for turn in range(ROUNDS):
        salt += GOLDEN
        if turn % 2:
            column = (column + (_mix(salt ^ row) >> _HALF)) % columns
        else:
            row = (row + (_mix(salt ^ column) >> _HALF)) % rows
    return row * columns + column


@njit(nogil=True, cache=True)
def _mix(x):
    x = (x ^ (x >> _SHIFTS[0])) * _FIRST
    x = (x ^ (x >> _SHIFTS[1])) * _SECOND
    return x ^ (x >> _SHIFTS[2])
