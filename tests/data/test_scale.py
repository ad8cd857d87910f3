import numpy as np
import pytest
from scipy import sparse

from vcell.data.scale import Scale, detect_scale, recover_counts
from vcell.errors import VcellError


def cells(seed: int = 0, n: int = 60, genes: int = 400, high: float = 30.0) -> sparse.csr_matrix:
    """Counts like a cell's: mostly 0 and 1, some in the thousands."""
    rng = np.random.default_rng(seed)
    mean = np.exp(rng.normal(-1.5, 2.0, genes)).clip(max=high * 100)
    counts = rng.poisson(mean * rng.uniform(0.5, 2.0, (n, 1)))
    return sparse.csr_matrix(counts.astype(np.float64))


def scaled(counts: sparse.csr_matrix, total: float | None, log: bool) -> sparse.csr_matrix:
    out = counts.copy()
    if total is not None:
        out = sparse.csr_matrix(sparse.diags(total / np.asarray(counts.sum(axis=1)).ravel()) @ counts)
    if log:
        out.data = np.log1p(out.data)
    return out.astype(np.float32)


@pytest.mark.parametrize("total", [None, 1e4, 5e4, 1e6, 7321.5])
@pytest.mark.parametrize("log", [False, True])
def test_counts_come_back_exactly(total: float | None, log: bool):
    counts = cells()
    found = scaled(counts, total, log)
    scale = detect_scale(found.data, found.indptr)
    expected = {
        (True, False): Scale.COUNTS,
        (True, True): Scale.LOG1P_COUNTS,
        (False, True): Scale.LOG1P_NORMALISED,
        (False, False): Scale.NORMALISED,
    }[total is None, log]
    assert scale is expected
    recovered, fine = recover_counts(found.data, found.indptr, scale)
    assert fine.all()
    np.testing.assert_array_equal(recovered, counts.data)


def test_counts_come_back_when_genes_were_dropped_after_scaling():
    counts = cells()
    kept = scaled(counts, 5e4, log=True)[:, ::2].tocsr()
    expected = counts[:, ::2].tocsr()
    recovered, fine = recover_counts(kept.data, kept.indptr, detect_scale(kept.data, kept.indptr))
    assert fine.all()
    np.testing.assert_array_equal(recovered, expected.data)


def test_a_cell_on_another_scale_is_told_apart():
    counts = cells()
    found = scaled(counts, 1e4, log=True)
    found.data[found.indptr[3] : found.indptr[4]] *= 1.1
    _, fine = recover_counts(found.data, found.indptr, Scale.LOG1P_NORMALISED)
    assert np.flatnonzero(~fine).tolist() == [3]


def test_empty_cells_are_no_obstacle():
    counts = sparse.csr_matrix(np.array([[0, 0, 0], [1, 5, 0], [0, 0, 0]], dtype=float))
    found = scaled(counts + 0 * counts, None, log=True)
    recovered, fine = recover_counts(found.data, found.indptr, Scale.LOG1P_NORMALISED)
    assert fine.all() and recovered.tolist() == [1, 5]


def test_changed_values_are_refused():
    rng = np.random.default_rng(0)
    values = rng.gamma(1.0, 1.0, 500)
    with pytest.raises(VcellError, match="no counts can be recovered"):
        detect_scale(values, np.arange(0, 501, 50))
