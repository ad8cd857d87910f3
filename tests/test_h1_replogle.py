"""The challenge's support set as it is distributed: other scales in one folder, a TOML, an embedding table."""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import numpy as np
import pytest
import torch
from scipy import sparse

from tests.conftest import SMALL_SCREEN, Command, assert_refused, infer_here
from vcell.config import compose
from vcell.data.simulation.screen import Screen
from vcell.data.simulation.write import simulate
from vcell.data.store.ensure import ensure_store
from vcell.data.store.options import StoreOptions
from vcell.data.store.store import CellStore
from vcell.errors import VcellError

TOML = """
# Dataset paths
[datasets]
replogle_h1 = "competition_support_set/{competition_train,k562_gwps,rpe1,jurkat,k562,hepg2}.h5"

[training]
replogle_h1 = "train"

[zeroshot]
"replogle_h1.hepg2" = "test"

[fewshot]
"""
FILES = {"competition_train": "H1", "k562_gwps": "k562", "rpe1": "rpe1", "jurkat": "jurkat", "k562": "k562", "hepg2": "hepg2"}  # fmt: skip
DROPPED = slice(100, 110)  # genes that the other screens never measured: filled with 0 after scaling


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with a small support set, and the counts it was made from."""
    folder = tmp_path_factory.mktemp("h1")
    small = {f: getattr(SMALL_SCREEN, f) for f in ("genes", "targets", "library_size", "embedding")}
    screen = Screen(**small, contexts=tuple(FILES), test_targets=0, cells_per_target=6, controls_per_context=30, batches=2)  # fmt: skip
    simulate(folder / "counts", screen)
    support = folder / "competition_support_set"
    support.mkdir()
    for name, cell_type in FILES.items():
        cells = ad.read_h5ad(folder / "counts" / f"{name}.h5ad")
        total = np.asarray(cells.X.sum(axis=1)).ravel()
        if name != "competition_train":
            cells.X = sparse.csr_matrix(sparse.diags(5e4 / total) @ cells.X)
            cells.X = (cells.X @ sparse.diags(np.r_[np.ones(100), np.zeros(10), np.ones(10)])).tocsr()
        cells.X = cells.X.log1p().astype(np.float32)
        cells.obs["batch_var"] = cells.obs["batch"].astype(str)
        cells.obs["cell_type"] = cell_type
        cells.obs = cells.obs[["target_gene", "batch_var", "cell_type"]]
        cells.write_h5ad(support / f"{name}.h5")
    (support / "starter.toml").write_text(TOML)
    (support / "gene_names.csv").write_text((folder / "counts" / "gene_names.csv").read_text())
    table = torch.load(folder / "counts" / "embedding.pt", weights_only=True)
    torch.save(table, support / "ESM2_pert_features.pt")
    return folder


def test_support_set_trains_and_predicts(folder: Path, monkeypatch: pytest.MonkeyPatch):
    from vcell.training.train import train

    monkeypatch.chdir(folder)
    small = ["model=tiny", "trainer=cpu", "data.sets.set_size=8", "data.sets.sets_per_step=4", "trainer.max_steps=3"]
    train(compose("train", ["experiment=h1_replogle", *small]))
    store = CellStore.open("data/h1_replogle/store")
    scales = {Path(file).stem: scale for file, scale in store.meta["scales"].items()}
    assert scales.pop("competition_train") == "log1p_counts" and set(scales.values()) == {"log1p_normalised"}
    for name in ("competition_train", "rpe1"):
        counts = ad.read_h5ad(folder / "counts" / f"{name}.h5ad")
        rows = np.flatnonzero(store.obs["source"] == name)
        found = store.rows(rows)
        matrix = sparse.csr_matrix((found.values, found.indices, found.indptr), shape=(len(rows), 120)).toarray()
        expected = counts[store.obs["cell_id"].iloc[rows]].X.toarray()
        if name != "competition_train":
            expected[:, DROPPED] = 0
        np.testing.assert_array_equal(matrix, expected)
    infer_here("out=pred.h5ad", "targets=[GENE0003]", "contexts=[H1]", "n_cells=10")
    infer_here("out=test.h5ad")  # the TOML's test split: hepg2, never trained on
    assert set(ad.read_h5ad("test.h5ad").obs["cell_type"]) == {"hepg2"}


def test_missing_files_are_listed_with_where_to_get_them(
    folder: Path, vcell: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    done = vcell("train", "experiment=h1_replogle", cwd=tmp_path)
    assert_refused(
        done, "9 of the 9 files", "competition_train.h5", "40 GB", "virtualcellchallenge.org", "data.root=FOLDER"
    )
    assert not list(tmp_path.iterdir())
    partial = tmp_path / "set"
    partial.mkdir()
    for path in (folder / "competition_support_set").iterdir():
        if path.name != "jurkat.h5":
            (partial / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(VcellError, match=r"1 of the 9 files(?s:.*)jurkat\.h5") as refused:
        ensure_store(StoreOptions.of(compose("train", ["experiment=h1_replogle", "data.root=set"]).data))
    assert "rpe1.h5" not in str(refused.value)
