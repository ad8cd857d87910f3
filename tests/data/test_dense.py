"""Cells made dense, and sparse again, by compiled loops: the numbers of the plain way, to the last bit."""

import numpy as np
import pytest
from scipy import sparse

from vcell.data.dense import IN_TABLE, fill_log1p, sparse_columns
from vcell.data.gather import _fill_log1p


@pytest.mark.numeric
@pytest.mark.parametrize("gene_type", [np.uint16, np.uint32])
@pytest.mark.parametrize("count_type", [np.uint16, np.uint32])
def test_the_compiled_loop_writes_what_numpy_writes(gene_type: type, count_type: type):
    rng = np.random.default_rng(0)
    lengths = rng.integers(0, 60, 41)
    lengths[[0, 7, 40]] = 0  # cells without counts
    starts = np.concatenate([[0], np.cumsum(lengths)])
    genes = np.concatenate([rng.permutation(97)[:n] for n in lengths]).astype(gene_type)
    small = rng.integers(1, IN_TABLE, len(genes))
    counts = np.where(rng.random(len(genes)) < 0.2, rng.integers(IN_TABLE, 60_000, len(genes)), small)
    scale = (1e4 / rng.integers(1, 90_000, 41)).astype(np.float32)
    for cells in (slice(0, 41), slice(5, 30)):  # a block within a batch has places that do not begin at 0
        begin, end = cells.start, cells.stop
        ours, plain = np.full((2, end - begin, 97), 7.0, np.float32)
        arguments = starts[begin : end + 1], genes, counts.astype(count_type), scale[begin:end]
        fill_log1p(ours, *arguments)
        _fill_log1p(plain, *arguments)
        np.testing.assert_array_equal(ours, plain)
        assert ours.max() > 0


@pytest.mark.numeric
@pytest.mark.parametrize("columns", [np.arange(60), np.arange(60)[::-1], np.array([3, -1, 59, 0, -1])])
def test_columns_are_taken_in_their_order_without_zeros(columns: np.ndarray):
    rng = np.random.default_rng(0)
    dense_CG = np.where(rng.random((23, 60)) < 0.4, rng.normal(size=(23, 60)), 0.0).astype(np.float32)
    dense_CG[[0, 22]] = 0.0
    dense_CG[7] = 1.0
    found = sparse_columns(dense_CG, columns)
    plain = sparse.csr_matrix(np.where(columns >= 0, dense_CG[:, columns], 0.0).astype(np.float32))
    for part in ("data", "indices", "indptr"):
        np.testing.assert_array_equal(getattr(found, part), getattr(plain, part))
    assert found.shape == plain.shape and found.dtype == np.float32
