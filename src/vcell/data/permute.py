"""Random permutations that are never materialised: the element at any position, for many permutations at once.

The cells of a training step must be a function of its number, in at most a millisecond per step, for any number of cells. A
generator per set and a shuffle of its cells take ten; here a step is a few operations on whole arrays.
"""

from __future__ import annotations

import numpy as np

ROUNDS = 12  # enough that no pair of positions is likelier than another by more than 2 %, in ranges as small as 5
GOLDEN = np.uint64(0x9E3779B97F4A7C15)
FACTORS = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
WORTH_COMPILED = 1_000  # positions: compiled code takes a quarter of a second to load


def key(*parts: np.ndarray | int) -> np.ndarray:
    """uint64 that stand for the parts, element by element; whole numbers that are not negative, broadcast together."""
    hashed = np.zeros((), np.uint64)
    with np.errstate(over="ignore"):
        for part in parts:
            hashed = _mix(hashed * GOLDEN + np.asarray(part).astype(np.uint64) + np.uint64(1))
    return hashed


def permuted(position: np.ndarray, size: np.ndarray | int, key: np.ndarray) -> np.ndarray:
    """Elements at `position` of the pseudo-random permutations of ``range(size)`` that `key` names; int64, all broadcast.

    A Feistel network over a grid of at least `size` places, iterated until the result is in range (Black & Rogaway 2002).
    """
    position, size, key = np.broadcast_arrays(np.asarray(position, np.uint64), np.asarray(size, np.uint64), key)
    shape, at = position.shape, position.ravel()
    size, key = size.ravel(), key.ravel()
    if len(at) >= WORTH_COMPILED:
        from vcell.data.permute_loop import permute

        found = np.empty(len(at), np.int64)
        permute(at, size, key, found)
        return found.reshape(shape)
    return _permuted(at, size, key).reshape(shape)


def _permuted(at: np.ndarray, size: np.ndarray, key: np.ndarray) -> np.ndarray:
    """The same without a compiler."""
    rows = np.ceil(np.sqrt(size.astype(np.float64))).astype(np.uint64)
    columns = (size + rows - np.uint64(1)) // rows
    out = _walk(at, rows, columns, key)
    left = np.flatnonzero(out >= size)
    while len(left):
        out[left] = _walk(out[left], rows[left], columns[left], key[left])
        left = left[out[left] >= size[left]]
    return out.astype(np.int64)


def _walk(at: np.ndarray, rows: np.ndarray, columns: np.ndarray, key: np.ndarray) -> np.ndarray:
    """One pass of the network: a bijection of ``rows × columns`` places."""
    row, column = np.divmod(at, columns)
    with np.errstate(over="ignore"):
        for turn in range(ROUNDS):
            salt = key + GOLDEN * np.uint64(turn + 1)
            if turn % 2:
                column = (column + (_mix(salt ^ row) >> np.uint64(32))) % columns
            else:
                row = (row + (_mix(salt ^ column) >> np.uint64(32))) % rows
    return row * columns + column


def _mix(x: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64 (Steele, Lea & Flood 2014)."""
    x = (x ^ (x >> np.uint64(30))) * FACTORS[0]
    x = (x ^ (x >> np.uint64(27))) * FACTORS[1]
    return x ^ (x >> np.uint64(31))
