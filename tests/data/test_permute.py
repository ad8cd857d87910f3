from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from vcell.data.permute import WORTH_COMPILED, _permuted, key, permuted


@pytest.mark.parametrize("size", [1, 2, 3, 7, 16, 97, 1000])
def test_every_permutation_has_each_element_once(size: int):
    keys = key(5, np.arange(20))
    for row in permuted(np.arange(size), size, keys[:, None]):
        assert np.array_equal(np.sort(row), np.arange(size))


def test_many_sizes_and_keys_at_once_equal_one_by_one():
    sizes, keys = np.array([3, 50, 801]), key(1, np.arange(3))
    together = permuted(np.array([2, 49, 17]), sizes, keys)
    assert together.tolist() == [
        int(permuted(np.array(p), n, k)) for p, n, k in zip([2, 49, 17], sizes, keys, strict=True)
    ]


@pytest.mark.parametrize("size", [3, 10, 100])
def test_every_element_is_as_likely_at_every_position(size: int):
    drawn = permuted(np.array([0, size - 1]), size, key(np.arange(20_000))[:, None])
    for position in drawn.T:
        assert stats.chisquare(np.bincount(position, minlength=size)).pvalue > 1e-4
    # and two positions are drawn independently, but that they differ
    differences = np.bincount((drawn[:, 1] - drawn[:, 0]) % size, minlength=size)
    assert differences[0] == 0 and stats.chisquare(differences[1:]).pvalue > 1e-4 if size > 2 else True


def test_keys_depend_on_every_part_and_their_order():
    keys = [int(key(*parts)) for parts in [(0, 0), (0, 1), (1, 0), (0,), (0, 0, 0), (2, 3), (3, 2)]]
    assert len(set(keys)) == len(keys)


@pytest.mark.numeric
@pytest.mark.parametrize("largest", [1, 2, 50, 10**6, 10**12])
def test_the_compiled_loop_gives_the_plain_numbers(largest: int):
    rng = np.random.default_rng(0)
    size = rng.integers(1, largest, WORTH_COMPILED, endpoint=True).astype(np.uint64)
    position = rng.integers(0, 2**60, len(size)).astype(np.uint64) % size
    keys = key(np.arange(len(size)))
    assert np.array_equal(permuted(position, size, keys), _permuted(position, size, keys))
