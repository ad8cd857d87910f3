"""Counts of the scorers as log1p: scanpy's numbers, which the official packages read."""

import anndata as ad
import numpy as np
import pytest
from scipy import sparse

from vcell.data.files.scale import Scale
from vcell.score.scaling import log1p_of_counts

scanpy = pytest.importorskip("scanpy")


@pytest.mark.numeric
@pytest.mark.parametrize("target_sum", [1e4, 3633.0, 1234.567])
def test_counts_become_the_log1p_that_scanpy_makes_of_them(target_sum: float):
    rng = np.random.default_rng(0)
    counts = sparse.csr_matrix(rng.poisson(rng.gamma(0.3, 3, (50, 300))).astype(np.float32))
    counts.data[slice(*counts.indptr[7:9])] = 0  # a cell without counts
    theirs = ad.AnnData(counts.copy())
    ours = log1p_of_counts(counts, Scale.COUNTS, target_sum, "the cells")
    with pytest.warns(UserWarning, match="zero counts"):
        scanpy.pp.normalize_total(theirs, target_sum=target_sum)
    scanpy.pp.log1p(theirs)
    np.testing.assert_array_equal(ours.toarray(), theirs.X.toarray())
