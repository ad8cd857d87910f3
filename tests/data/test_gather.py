import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from vcell.data.datamodule import CellSetDataModule
from vcell.data.files.normalize import to_log1p
from vcell.data.gather import Gather
from vcell.data.resident import DeviceRows
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
    assert len(resident.resident.cells.genes) == cells.stored_values  # its size on the device is known before
    expected, found = (g.to_device(g.fetch(sets), device) for g in (gather, resident))
    torch.testing.assert_close(found.control_SCG, expected.control_SCG, rtol=0, atol=0)
    torch.testing.assert_close(found.perturbed_SCG, expected.perturbed_SCG, rtol=0, atol=0)


def test_a_store_on_the_device_may_have_parts_of_other_number_types(store: CellStore, monkeypatch: pytest.MonkeyPatch):
    wide = np.result_type(store.values.dtype, np.uint32)
    view = with_genes(store, store.genes)
    monkeypatch.setattr(type(view), "number_types", property(lambda self: (np.dtype(np.uint32), wide)))
    cells = np.arange(0, store.n_cells, 7)
    rows = DeviceRows.of(view, "cpu").rows(torch.from_numpy(cells))
    assert rows.genes.dtype == rows.counts.dtype == torch.int32
    expected = store.rows(cells)
    np.testing.assert_array_equal(rows.counts.numpy(), expected.values.astype(np.int64))
    np.testing.assert_array_equal(rows.genes.numpy(), expected.indices.astype(np.int64))


@pytest.mark.parametrize(
    ("asked", "free", "chosen", "said"),
    [
        ("auto", 10**9, True, "held by the GPU"),
        ("auto", 10, False, "copied to the GPU step by step, which takes longer .* of which it may take 75%"),
        (False, 10**9, False, "data.sets.resident=false"),
        (True, 10, True, "data.sets.resident=true"),
    ],
)
def test_where_the_store_lies_is_said_with_the_reason(
    store: CellStore, asked: str | bool, free: int, chosen: bool, said: str
):
    data = CellSetDataModule(store, {}, 1e4, 5, 3, resident=asked)
    found, words = data._residence(torch.device("cuda"), free)
    assert found is chosen and re.search(said, words)
    assert data._residence(torch.device("cpu"), 0) == ((False, "") if asked is not True else (True, words))
