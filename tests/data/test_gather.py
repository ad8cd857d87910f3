from dataclasses import replace

import numpy as np
import pytest
import torch

from vcell.data.files.normalize import to_log1p
from vcell.data.gather import DeviceRows, Gather
from vcell.data.sampler import CellSetSampler
from vcell.data.store.store import CellStore
from vcell.data.store.view import with_genes

pytestmark = pytest.mark.numeric


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


DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")])]  # fmt: skip


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("some_genes", [False, True])
def test_a_store_on_the_device_gives_the_same_numbers(store: CellStore, device: str, some_genes: bool):
    cells = with_genes(store, store.genes[10:90:3]) if some_genes else store
    sets = CellSetSampler(cells, [g for g in cells.groups if g[1] != cells.control], 5, 3).batch(2)
    gather = Gather(cells, 1e4)
    resident = replace(gather, resident=DeviceRows.of(cells, device))
    expected, found = (g.to_device(g.fetch(sets), device) for g in (gather, resident))
    torch.testing.assert_close(found.control_SCG, expected.control_SCG, rtol=0, atol=0)
    torch.testing.assert_close(found.perturbed_SCG, expected.perturbed_SCG, rtol=0, atol=0)
