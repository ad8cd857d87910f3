"""Compiled loops on the threads that torch computes with.

Torch's threads (OpenMP) wait for their next operation in busy loops, so that threads of our own beside them would get half a core each.
A loop is therefore given to the same team, by the call that compilers make of ``#pragma omp parallel``.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numba import carray, njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from threadpoolctl import threadpool_info
from torch import Tensor

BLOCKS = 256  # that the rows of a loop are dealt out in, at most, whatever the number of threads
# places in what a loop is given: the next block, their number, the rows, and what it is told besides
NEXT, NUMBER, ROWS, TOLD = range(4)


def run(loop: Any, rows: int, *told: Tensor | int) -> None:
    """Runs `loop` on torch's threads, and returns when all rows are done.

    Parameters
    ----------
    loop
        A `numba.cfunc` of one pointer: it asks `next_rows` for rows until there are none, and `rows_of`, `number` and `array` for the rest.
    rows
        How many there are; at least one.
    told
        Whole numbers, and tensors without gaps, which are passed by their address.
    """
    assert all(t.is_contiguous() for t in told if isinstance(t, Tensor))
    numbers = [t.data_ptr() if isinstance(t, Tensor) else t for t in told]
    given = np.array([0, min(rows, BLOCKS), rows, *numbers], np.int64)
    start = team()
    assert start is not None
    start(loop.address, given.ctypes.data, torch.get_num_threads(), 0)


@cache
def team() -> Callable[..., None] | None:
    """What runs a function on the threads of torch's OpenMP; None where that has no such call, as on a Mac."""
    paths = [Path(found["filepath"]) for found in threadpool_info() if found["user_api"] == "openmp"]
    own = Path(torch.__file__).parent
    for path in sorted(paths, key=lambda path: not path.is_relative_to(own)):  # torch's own copy first
        found = getattr(ctypes.CDLL(str(path)), "GOMP_parallel", None)
        if found is not None:
            found.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
            found.restype = None
            return found
    return None


_intrinsic: Any = intrinsic


@_intrinsic
def _take(typing: Any, given: Any) -> Any:
    """The number at `given`, which is one more afterwards, whichever thread asks."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = builder.bitcast(arguments[0], context.get_value_type(types.int64).as_pointer())
        return builder.atomic_rmw("add", place, context.get_constant(types.int64, 1), "monotonic")

    return types.int64(types.voidptr), emit


@_intrinsic
def _pointer(typing: Any, address: Any) -> Any:
    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(types.int64), emit


@njit(nogil=True)
def next_rows(given):
    """First and last (not included) of rows that no thread has done; no rows when all are."""
    told = carray(given, (TOLD,), np.int64)
    block, blocks, rows = _take(given), told[NUMBER], told[ROWS]
    return min(block, blocks) * rows // blocks, min(block + 1, blocks) * rows // blocks


@njit(nogil=True)
def rows_of(given):
    """How many rows there are."""
    return carray(given, (TOLD,), np.int64)[ROWS]


@njit(nogil=True)
def number(given, place):
    """What the loop was told at a place, a whole number."""
    return carray(given, (TOLD + place + 1,), np.int64)[TOLD + place]


@njit(nogil=True)
def array(given, place, shape, dtype):
    """What the loop was told at a place, a tensor."""
    return carray(_pointer(number(given, place)), shape, dtype)
