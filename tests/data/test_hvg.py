"""Variable genes: scanpy's, on training cells only."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pytest

from vcell.data.gather import Gather
from vcell.data.hvg import choose_hvg
from vcell.data.store.store import CellStore
from vcell.errors import VcellError

scanpy = pytest.importorskip("scanpy")


def test_the_choice_is_scanpys(store: CellStore):
    gather = Gather(store, 1e4)
    cells = ad.AnnData(gather.log1p(np.arange(store.n_cells)).double().numpy())
    scanpy.pp.highly_variable_genes(cells, flavor="seurat", n_top_genes=30)
    everything = {g: "train" for g in store.groups if g[1] != store.control}
    assert choose_hvg(gather, everything, 30) == [
        g for g, h in zip(store.genes, cells.var["highly_variable"], strict=True) if h
    ]


def test_held_out_cells_have_no_say(store: CellStore):
    assigned = {g: "test" if g[0] == "simC" else "train" for g in store.groups if g[1] != store.control}
    kept = {g: s for g, s in assigned.items() if s == "train"}
    gather = Gather(store, 1e4)
    assert (
        choose_hvg(gather, assigned, 30)
        == choose_hvg(gather, kept, 30)
        != choose_hvg(gather, dict.fromkeys(assigned, "train"), 30)
    )


@pytest.mark.parametrize("number", [0, 121, 2.5])
def test_impossible_numbers_are_refused(store: CellStore, number):
    with pytest.raises(VcellError, match=r"data\.hvg="):
        choose_hvg(Gather(store, 1e4), {}, number)
