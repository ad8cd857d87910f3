import numpy as np
import pytest
from scipy import sparse

from vcell.data.files.scale import Scale, detect_scale, one_total, recover_counts
from vcell.errors import VcellError

pytestmark = pytest.mark.numeric


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
    recovered = recover_counts(found.data, found.indptr, scale)
    assert recovered.fine.all()
    np.testing.assert_array_equal(recovered.counts, counts.data)
    if total is not None:
        np.testing.assert_allclose(total / recovered.unit, np.asarray(counts.sum(axis=1)).ravel(), rtol=2e-6)


def test_counts_come_back_when_genes_were_dropped_after_scaling():
    counts = cells()
    kept = scaled(counts, 5e4, log=True)[:, ::2].tocsr()
    expected = counts[:, ::2].tocsr()
    recovered = recover_counts(kept.data, kept.indptr, detect_scale(kept.data, kept.indptr))
    assert recovered.fine.all()
    np.testing.assert_array_equal(recovered.counts, expected.data)


def test_a_cell_on_another_scale_is_told_apart():
    counts = cells()
    found = scaled(counts, 1e4, log=True)
    found.data[found.indptr[3] : found.indptr[4]] *= 1.1
    fine = recover_counts(found.data, found.indptr, Scale.LOG1P_NORMALISED).fine
    assert np.flatnonzero(~fine).tolist() == [3]


def test_empty_cells_are_no_obstacle():
    counts = sparse.csr_matrix(np.array([[0, 0, 0], [1, 5, 0], [0, 0, 0]], dtype=float))
    found = scaled(counts + 0 * counts, None, log=True)
    recovered = recover_counts(found.data, found.indptr, Scale.LOG1P_NORMALISED)
    assert recovered.fine.all() and recovered.counts.tolist() == [1, 5]


def fractions(n: int = 40, genes: int = 50) -> np.ndarray:
    return np.random.default_rng(0).gamma(1.0, 30.0, (n, genes))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda x: x, Scale.FRACTIONAL),  # too large to be logarithms
        (lambda x: x / x.sum(1, keepdims=True), Scale.FRACTIONAL),  # one total
        (lambda x: np.log1p(1e4 * x / x.sum(1, keepdims=True)), Scale.LOG1P_FRACTIONAL),
        (lambda x: x / 100, Scale.UNKNOWN),
    ],
)
def test_values_that_are_no_counts_are_named_for_what_they_are(change, expected: Scale):
    found = sparse.csr_matrix(change(fractions()))
    scale = detect_scale(found.data, found.indptr)
    assert scale is expected and not scale.recoverable


@pytest.mark.parametrize("log", [False, True])
def test_the_total_that_cells_were_scaled_to_is_found(log: bool):
    found = scaled(cells(), 7321.5, log)
    scale = Scale.LOG1P_NORMALISED if log else Scale.NORMALISED
    assert one_total(found.data, found.indptr, scale) == pytest.approx(7321.5, rel=1e-4)
    some = found[:, ::2].tocsr()
    assert one_total(some.data, some.indptr, scale) is None


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("log", [False, True])
def test_whole_values_with_a_step_of_their_own_are_scaled_counts(seed: int, log: bool):
    """Cells of 1,000 counts each, scaled to 10,000: whole numbers, tenfold."""
    rng = np.random.default_rng(seed)
    counts = sparse.csr_matrix(rng.multinomial(1000, rng.dirichlet(np.full(300, 0.3)), 60).astype(float))
    found = scaled(counts, 1e4, log)
    scale = detect_scale(found.data, found.indptr)
    assert scale is (Scale.LOG1P_NORMALISED if log else Scale.NORMALISED)
    recovered = recover_counts(found.data, found.indptr, scale)
    assert recovered.fine.all() and np.array_equal(recovered.counts, counts.data)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("log", [False, True])
def test_values_rounded_after_scaling_are_no_counts(seed: int, log: bool):
    rounded = scaled(cells(seed), 1e4, log=False)
    rounded.data = np.round(rounded.data)
    rounded.eliminate_zeros()
    rounded.data = np.log1p(rounded.data) if log else rounded.data
    scale = detect_scale(rounded.data, rounded.indptr)
    assert (
        scale is (Scale.LOG1P_ROUNDED if log else Scale.ROUNDED) and not scale.recoverable and "rounded" in scale.words
    )


def test_counts_drawn_down_to_one_depth_are_counts():
    rng = np.random.default_rng(0)
    counts = sparse.csr_matrix(rng.multinomial(1000, rng.dirichlet(np.full(300, 0.3)), 60).astype(np.float32))
    assert detect_scale(counts.data, counts.indptr) is Scale.COUNTS


def test_cells_on_several_scales_are_told_what_would_take_them():
    counts = cells()
    mixed = counts.copy()
    half = mixed.indptr[30]
    mixed.data[:half] *= 0.913
    mixed.data[:half:3] += 0.37
    with pytest.raises(VcellError, match=r"data\.scale=fractional"):
        detect_scale(mixed.data, mixed.indptr)
