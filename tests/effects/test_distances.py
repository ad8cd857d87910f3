"""Distances of rows are sums over the columns in their order, whatever the sizes."""

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from vcell.effects.distances import COLUMNS, ROWS, l1_distances


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("n_x", "n_y", "columns"),
    [(3, ROWS, COLUMNS), (2, ROWS + 1, COLUMNS + 1), (5, 2 * ROWS + 3, 2 * COLUMNS + 7), (1, 1, 3), (4, 2, 0), (0, 3, 5), (3, 0, 5)],
)  # fmt: skip
def test_l1_distances_are_those_of_scipy_to_the_last_bit(n_x, n_y, columns, dtype):
    rng = np.random.default_rng(0)
    x_XG, y_YG = (rng.normal(size=(n, columns)).astype(dtype) for n in (n_x, n_y))
    expected = cdist(x_XG, y_YG, "cityblock") if columns else np.zeros((n_x, n_y))
    assert np.array_equal(l1_distances(x_XG, y_YG), expected)


def test_some_rows_and_columns_of_a_larger_array():
    x_XG = np.random.default_rng(0).normal(size=(20, 40))
    some = x_XG[::2, 1::3]
    assert np.array_equal(l1_distances(some, some), cdist(some, some, "cityblock"))


def test_a_value_that_is_not_a_number_spoils_its_own_row_only():
    x_XG = np.ones((3, 6))
    x_XG[1, 2] = np.nan
    assert np.isnan(l1_distances(x_XG, np.zeros((70, 6)))).all(1).tolist() == [False, True, False]
