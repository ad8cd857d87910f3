"""What all CSR rows need: where each row starts, which values it holds, what they sum to, how to read them in blocks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

SMALL = 2**16 - 1  # the largest number that two bytes hold
LARGEST = 2**32 - 1  # and four: of one gene in one cell, no experiment counts as many


def starts_of(lengths: np.ndarray | Sequence[int]) -> np.ndarray:
    """int64 ``(rows + 1)``: where each row starts, and the last one ends, from how long they are."""
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def positions(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Where the values of rows lie that start at `starts` and are `lengths` long, row after row."""
    ends = np.cumsum(lengths)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - (ends - lengths), lengths)


def row_of(indptr: np.ndarray, kind: type[np.integer] = np.int64) -> np.ndarray:
    """The row that each value lies in."""
    return np.repeat(np.arange(len(indptr) - 1, dtype=kind), np.diff(indptr))


def row_sums(values: np.ndarray, indptr: np.ndarray) -> np.ndarray:
    """Sum of each row's values, float64 ``(rows)``."""
    return np.bincount(row_of(indptr), values, len(indptr) - 1)


def ranges(indptr: np.ndarray, block_values: int) -> Iterator[tuple[int, int]]:
    """Rows in ranges of at most `block_values` values, at least one row each."""
    first, rows = 0, len(indptr) - 1
    while first < rows:
        last = int(np.searchsorted(indptr, indptr[first] + block_values, side="right")) - 1
        last = min(max(last, first + 1), rows)
        yield first, last
        first = last


def number_type(largest: float) -> np.dtype:
    """The unsigned type that whole numbers up to `largest` are stored in."""
    return np.dtype(np.uint16 if largest <= SMALL else np.uint32)
