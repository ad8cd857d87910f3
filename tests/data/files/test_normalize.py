import anndata as ad
import numpy as np
import pytest
import torch

from vcell.data.files.normalize import change_target_sum, counts_of_log1p, from_log1p, to_log1p

scanpy = pytest.importorskip("scanpy")

pytestmark = pytest.mark.numeric

COUNTS = torch.from_numpy(np.random.default_rng(0).poisson(2.0, (5, 30)).astype(np.float32))


def test_to_log1p_equals_scanpy():
    cells = ad.AnnData(COUNTS.numpy().copy())
    scanpy.pp.normalize_total(cells, target_sum=1e4)
    scanpy.pp.log1p(cells)
    np.testing.assert_allclose(to_log1p(COUNTS, COUNTS.sum(1), 1e4).numpy(), cells.X, rtol=1e-5)


def test_from_log1p_inverts_to_log1p():
    log1p = to_log1p(COUNTS, COUNTS.sum(1), 5e4)
    torch.testing.assert_close(from_log1p(log1p, COUNTS.sum(1), 5e4), COUNTS, rtol=1e-4, atol=1e-4)


def test_library_size_counts_genes_that_were_left_out():
    whole = to_log1p(COUNTS, COUNTS.sum(1), 1e4)
    torch.testing.assert_close(to_log1p(COUNTS[:, :10], COUNTS.sum(1), 1e4), whole[:, :10])


def test_change_target_sum_equals_scaling_to_it():
    library_size = COUNTS.sum(1)
    changed = change_target_sum(to_log1p(COUNTS, library_size, 1e4), 1e4, 3e3)
    torch.testing.assert_close(changed, to_log1p(COUNTS, library_size, 3e3), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.float32, np.float64])
def test_log1p_of_any_type_of_number_is_undone(kind: type):
    """Numpy alone takes small whole numbers for half precision, which overflows above 11."""
    found = counts_of_log1p(np.array([0, 1, 14], kind))
    assert found.dtype in (np.float32, np.float64)
    np.testing.assert_allclose(found, np.expm1([0.0, 1, 14]), rtol=4 * np.finfo(np.float32).eps)
