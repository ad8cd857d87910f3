"""Files in, store out: the same counts, whatever the layout; bad files refused with nothing left behind."""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from vcell.data.h5ad import Columns
from vcell.data.ingest import ingest
from vcell.data.panel import GeneChoice
from vcell.data.parts import Recipe
from vcell.data.store import CellStore
from vcell.errors import VcellError


def make_cells(n: int = 90, genes: int = 40, seed: int = 0) -> ad.AnnData:
    rng = np.random.default_rng(seed)
    counts = rng.poisson(rng.gamma(0.5, 3.0, genes), (n, genes)).astype(np.float32)
    counts[:, 0] += 1  # no cell is empty
    obs = pd.DataFrame(
        {
            "target_gene": rng.choice(["non-targeting", "G1", "G2"], n),
            "batch": rng.choice(["b1", "b2"], n),
            "cell_type": rng.choice(["K562", "H1"], n),
        },
        index=[f"cell{i}" for i in range(n)],
    )
    return ad.AnnData(sparse.csr_matrix(counts), obs=obs, var=pd.DataFrame(index=[f"G{i}" for i in range(genes)]))


def write(cells: ad.AnnData, path: Path) -> Path:
    cells.write_h5ad(path)
    return path


def counts_by_cell(store: CellStore) -> dict[str, np.ndarray]:
    rows = store.rows(np.arange(store.n_cells))
    dense = sparse.csr_matrix((rows.values, rows.indices, rows.indptr), shape=(store.n_cells, store.n_genes)).toarray()
    return dict(zip(store.obs["cell_id"], dense, strict=True))


def assert_same_counts(store: CellStore, cells: ad.AnnData) -> None:
    found = counts_by_cell(store)
    assert len(found) == cells.n_obs
    for name, row in zip(cells.obs_names, cells[:, store.genes].X.toarray(), strict=True):
        np.testing.assert_array_equal(found[name], row)


def layouts(cells: ad.AnnData) -> dict[str, ad.AnnData]:
    csr, dense, logged, scaled = cells.copy(), cells.copy(), cells.copy(), cells.copy()
    dense.X = dense.X.toarray()
    logged.X = logged.X.log1p()
    total = np.asarray(cells.X.sum(axis=1)).ravel()
    scaled.X = sparse.csr_matrix(sparse.diags(5e4 / total) @ cells.X).log1p().astype(np.float32)
    return {"csr": csr, "dense": dense, "log1p": logged, "log1p of counts per 50,000": scaled}


@pytest.mark.parametrize("layout", ["csr", "dense", "log1p", "log1p of counts per 50,000"])
def test_store_holds_the_counts_of_the_file(layout: str, tmp_path: Path):
    cells = make_cells()
    path = write(layouts(cells)[layout], tmp_path / "a.h5ad")
    store = ingest([path], tmp_path / "store", Columns())
    assert_same_counts(store, cells)
    total = pd.Series(np.asarray(cells.X.sum(axis=1)).ravel(), index=cells.obs_names)
    np.testing.assert_array_equal(store.library_size, total[store.obs["cell_id"]])


def test_layers_and_raw_are_read(tmp_path: Path):
    cells = make_cells()
    odd = cells.copy()
    odd.raw = cells
    odd.layers["counts"] = cells.X.copy()
    odd.X = sparse.csr_matrix(np.full(cells.shape, 0.37, dtype=np.float32))
    path = write(odd, tmp_path / "a.h5ad")
    for i, matrix in enumerate(["layers/counts", "raw/X"]):
        assert_same_counts(ingest([path], tmp_path / f"store{i}", Recipe(matrix=matrix)), cells)


def test_cells_are_ordered_by_context_batch_perturbation(tmp_path: Path):
    store = ingest([write(make_cells(), tmp_path / "a.h5ad")], tmp_path / "store", Columns())
    labels = store.obs[["context", "batch", "perturbation"]].astype(str)
    assert labels.equals(labels.sort_values(["context", "batch", "perturbation"], kind="stable"))


def test_blocks_do_not_change_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = write(make_cells(), tmp_path / "a.h5ad")
    whole = ingest([path], tmp_path / "whole", Columns())
    for module in ("matrix", "rows"):
        monkeypatch.setattr(f"vcell.data.{module}.BLOCK_VALUES", 37)
    assert ingest([path], tmp_path / "blocks", Columns()).fingerprint == whole.fingerprint


def test_genes_are_matched_by_name_across_files(tmp_path: Path):
    first, second = make_cells(seed=1), make_cells(seed=2)
    second.obs_names = [f"second{i}" for i in range(second.n_obs)]
    backwards = second[:, ::-1].copy()
    files = [write(first, tmp_path / "a.h5ad"), write(backwards, tmp_path / "b.h5ad")]
    store = ingest(files, tmp_path / "store", Columns())
    assert store.genes == first.var_names.tolist()
    found = counts_by_cell(store)
    for name, row in zip(second.obs_names, second.X.toarray(), strict=True):
        np.testing.assert_array_equal(found[name], row)


def test_library_size_is_summed_before_genes_are_chosen(tmp_path: Path):
    cells = make_cells()
    path = write(cells, tmp_path / "a.h5ad")
    store = ingest([path], tmp_path / "store", genes=GeneChoice(["G3", "G0", "G7"]))
    assert store.genes == ["G3", "G0", "G7"]
    assert_same_counts(store, cells)
    assert store.library_size.sum() == cells.X.sum()


def test_cells_without_counts_are_refused_or_dropped_and_counted(tmp_path: Path):
    cells = make_cells()
    matrix = cells.X.tolil()
    matrix[5] = 0
    cells.X = matrix.tocsr()
    with pytest.raises(VcellError, match=r"'cell5' holds no counts at all.*empty_cells=drop"):
        ingest([write(cells, tmp_path / "a.h5ad")], tmp_path / "store")
    store = ingest([tmp_path / "a.h5ad"], tmp_path / "store", Recipe(empty_cells="drop"))
    assert store.n_cells == 89 and store.meta["empty_cells_dropped"] == 1


def test_counts_above_65535_are_kept(tmp_path: Path):
    cells = make_cells()
    cells.X[0, 0] = 70_000
    store = ingest([write(cells, tmp_path / "a.h5ad")], tmp_path / "store", Columns())
    assert store.values.dtype == np.uint32
    assert_same_counts(store, cells)


def break_values(value: float):
    def change(cells: ad.AnnData) -> None:
        cells.X.data[7] = value

    return change


def mixed_scales(cells: ad.AnnData) -> None:
    cells.X.data[: cells.X.indptr[60]] = np.log1p(cells.X.data[: cells.X.indptr[60]])
    cells.X.data[cells.X.indptr[60] :] += 0.4


def twice(cells: ad.AnnData) -> None:
    cells.var_names = ["G0", "G0", *cells.var_names[2:]]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (break_values(np.nan), "holds nan"),
        (break_values(np.inf), "holds inf"),
        (break_values(-1.0), "negative value -1"),
        (break_values(1.5), "whole counts"),
        (mixed_scales, "several scales.*log1p of raw counts"),
        (twice, "more than once \\(G0\\)"),
        (lambda cells: cells.obs.drop(columns="batch", inplace=True), "no obs column 'batch'"),
        (lambda cells: cells.obs.replace("non-targeting", "Non-Targeting", inplace=True), "mean 'Non-Targeting'"),
    ],
)
def test_bad_files_are_refused_and_nothing_is_left(change, words: str, tmp_path: Path):
    cells = make_cells()
    change(cells)
    path = write(cells, tmp_path / "a.h5ad")
    with pytest.raises(VcellError, match=words):
        ingest([path], tmp_path / "store", Columns())
    assert [p.name for p in tmp_path.iterdir()] == ["a.h5ad"]


def test_files_that_are_no_h5ad_are_refused(tmp_path: Path):
    (tmp_path / "text.h5ad").write_text("no")
    with pytest.raises(VcellError, match="not an h5ad"):
        ingest([tmp_path / "text.h5ad"], tmp_path / "store", Columns())
    whole = write(make_cells(), tmp_path / "whole.h5ad").read_bytes()
    (tmp_path / "cut.h5ad").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(VcellError, match="cut short"):
        ingest([tmp_path / "cut.h5ad"], tmp_path / "store", Columns())
    with h5py.File(tmp_path / "other.h5ad", "w") as file:
        file["x"] = 1
    with pytest.raises(VcellError, match="not an AnnData file"):
        ingest([tmp_path / "other.h5ad"], tmp_path / "store", Columns())


def test_a_failed_rewrite_keeps_the_old_store(tmp_path: Path):
    good = write(make_cells(), tmp_path / "good.h5ad")
    store = ingest([good], tmp_path / "store", Columns())
    (tmp_path / "bad.h5ad").write_text("no")
    with pytest.raises(VcellError):
        ingest([tmp_path / "bad.h5ad"], tmp_path / "store", Columns())
    assert CellStore.open(tmp_path / "store").fingerprint == store.fingerprint


def test_a_folder_that_is_no_store_is_left_alone(tmp_path: Path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    path = write(make_cells(), tmp_path / "a.h5ad")
    with pytest.raises(VcellError, match="left alone"):
        ingest([path], tmp_path / "mine", Columns())
    assert (tmp_path / "mine" / "thesis.txt").exists()
