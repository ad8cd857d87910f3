import numpy as np
import pytest
import torch

from vcell.data.gather import Gather
from vcell.data.normalize import to_log1p
from vcell.data.sampler import CellSetSampler
from vcell.data.store import CellStore


def dense_counts(store: CellStore, cells: np.ndarray) -> torch.Tensor:
    out = np.zeros((len(cells), store.n_genes), dtype=np.float32)
    for i, cell in enumerate(cells):
        low, high = store.indptr[cell : cell + 2]
        out[i, store.indices[low:high]] = store.values[low:high]
    return torch.from_numpy(out)


def test_gather_equals_reading_cell_by_cell(store: CellStore):
    groups = [g for g in store.groups if g[1] != store.control]
    sets = CellSetSampler(store, groups, 5, 3).batch(2)
    gather = Gather(store, 1e4)
    batch = gather.to_device(gather.fetch(sets))
    for found, cells in ((batch.control_SCG, sets.controls_SC), (batch.perturbed_SCG, sets.perturbed_SC)):
        counts = dense_counts(store, cells.ravel())
        expected = to_log1p(counts, counts.sum(1), 1e4).view(3, 5, -1)
        torch.testing.assert_close(found, expected)


def test_pseudobulk_is_the_mean_of_log1p(store: CellStore, monkeypatch: pytest.MonkeyPatch):
    gather, cells = Gather(store, 1e4), np.arange(3, 80)
    expected = gather.log1p(cells).double().mean(0).numpy()
    monkeypatch.setattr("vcell.data.gather.BLOCK_CELLS", 10)
    np.testing.assert_allclose(gather.pseudobulk_mean_log1p(cells), expected, rtol=1e-5, atol=1e-7)
