"""Files of other kinds are read where they can be, and named for what they are where they cannot."""

from __future__ import annotations

import gzip
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from tests.data.store.test_ingest import assert_same_counts, counts_by_cell, make_cells, write
from vcell.data.files.h5ad import Columns
from vcell.data.store.ingest import ingest
from vcell.data.store.panel import GeneChoice
from vcell.errors import VcellError
from vcell.inspection.inspect import inspect
from vcell.inspection.report import as_text
from vcell.score import cells as scored


def gz(path: Path) -> Path:
    out = path.with_name("a.h5ad.gz")
    out.write_bytes(gzip.compress(path.read_bytes()))
    return out


def tenx(path: Path) -> Path:
    with h5py.File(path.with_name("t.h5"), "w") as file:
        file["matrix/barcodes"] = np.array([b"A"])
    return path.with_name("t.h5")


def loom(path: Path) -> Path:
    with h5py.File(path.with_name("l.loom"), "w") as file:
        file["matrix"] = np.zeros((2, 3))
        file.create_group("row_attrs")
        file.create_group("col_attrs")
    return path.with_name("l.loom")


def without(path: Path, what: str) -> Path:
    cells = make_cells()
    return write(cells[:0].copy() if what == "cells" else cells[:, :0].copy(), path.with_name("none.h5ad"))


def mudata(path: Path) -> Path:
    with h5py.File(path.with_name("m.h5mu"), "w") as file:
        file.create_group("mod/rna")
    return path.with_name("m.h5mu")


def empty_zarr(path: Path) -> Path:
    out = path.with_name("e.zarr")
    out.mkdir()
    (out / ".zgroup").write_text('{"zarr_format": 2}')
    return out


OTHERS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "gzip": (gz, "compressed with gzip.*gunzip"),
    "10x": (tenx, "10x matrix.*scanpy.read_10x_h5"),
    "loom": (loom, "loom file.*scanpy.read_loom"),
    "no cells": (lambda path: without(path, "cells"), r"none\.h5ad is empty: 0 cells, 40 genes"),
    "no genes": (lambda path: without(path, "genes"), r"none\.h5ad is empty: 90 cells, 0 genes"),
    "MuData": (mudata, r"MuData.*\['rna'\]\.write_h5ad"),
    "a zarr store without AnnData": (empty_zarr, "zarr store"),
    "a folder": (lambda path: path.parent, r"is a folder.*a\.h5ad"),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_other_files_are_named_for_what_they_are(kind: str, tmp_path: Path):
    make, words = OTHERS[kind]
    path = make(write(make_cells(), tmp_path / "a.h5ad"))
    columns = scored.Columns("target_gene", None, "non-targeting")
    for read in (
        inspect,
        lambda p: ingest([p], tmp_path / "store", Columns()),
        lambda p: scored.CellFile(p, columns, needs_controls=True),
    ):
        with pytest.raises(VcellError, match=words):
            read(path)


@pytest.mark.filterwarnings("ignore")
def test_zarr_stores_are_read(tmp_path: Path):
    cells = make_cells()
    cells.obs = cells.obs.astype("category")
    cells.write_zarr(tmp_path / "a.zarr")
    assert_same_counts(ingest([tmp_path / "a.zarr"], tmp_path / "store", Columns()), cells)
    assert inspect(tmp_path / "a.zarr")["labels"]["control"]["label"] == "non-targeting"


TYPES = {
    "half precision": "f2", "yes and no": "?", "big-endian": ">f4", "big-endian whole numbers": ">i2", "extended precision": "g",
}  # fmt: skip


@pytest.mark.parametrize("layout", [sparse.csr_matrix, sparse.csc_matrix, np.asarray])
@pytest.mark.parametrize("kind", TYPES)
def test_values_of_any_number_type_are_read(kind: str, layout: Callable, tmp_path: Path):
    cells = make_cells()
    if kind == "yes and no":
        cells.X = (cells.X > 0).astype(np.float32)
    cells.X = layout(cells.X.toarray())
    path = write(cells, tmp_path / "a.h5ad")
    with h5py.File(path, "r+") as file:
        name = "X" if isinstance(file["X"], h5py.Dataset) else "X/data"
        values, about = file[name][()].astype(TYPES[kind]), dict(file[name].attrs)
        del file[name]
        file[name] = values
        file[name].attrs.update(about)
    cells.X = sparse.csr_matrix(cells.X)
    assert_same_counts(ingest([path], tmp_path / "store", Columns()), cells)
    read = scored.CellFile(path, scored.Columns("target_gene", None, "non-targeting"), True).cells_of(None)
    found = read.take(np.arange(read.n_cells))
    np.testing.assert_array_equal(found.toarray(), cells.X.toarray())
    assert found.dtype.isnative


def test_a_file_in_use_is_said_so(tmp_path: Path):
    path = write(make_cells(), tmp_path / "a.h5ad")
    read = "import sys; from pathlib import Path; from vcell.data.files.h5ad import open_h5ad\nwith open_h5ad(Path(sys.argv[1])): pass"
    with h5py.File(path, "r+"):
        done = subprocess.run([sys.executable, "-c", read, str(path)], capture_output=True, text=True)
    assert "is in use: another process" in done.stderr


@pytest.mark.parametrize("gaps", [1, 5])
def test_genes_without_a_symbol_go_by_the_index(gaps: int, tmp_path: Path):
    cells = make_cells()
    symbols = pd.Series([f"S{i}" for i in range(40)], dtype=object)
    symbols.iloc[10 : 10 + gaps] = np.nan
    symbols.iloc[30] = " "
    cells.var["symbol"] = symbols.to_numpy()
    store = ingest([write(cells, tmp_path / "a.h5ad")], tmp_path / "store", Columns(gene="symbol"))
    assert (
        "nan" not in store.genes
        and store.genes[10 : 10 + gaps] == [f"G{i}" for i in range(10, 10 + gaps)]
        and store.genes[30] == "G30"
    )


def test_dots_and_dates_are_no_genes(tmp_path: Path):
    cells = make_cells()
    cells.var_names = ["HLA.A", "NKX2.1", "1-Mar", "", *cells.var_names[4:]]
    path = write(cells, tmp_path / "a.h5ad")
    store = ingest([path], tmp_path / "store", Columns())
    assert store.genes[:3] == ["HLA-A", "NKX2-1", "1-Mar"] and store.n_genes == 39
    assert store.library_size.sum() == cells.X.sum()  # a gene without a name counts in libraries all the same
    decisions = pd.read_csv(store.path / "genes.csv", keep_default_na=False).set_index("gene")["decision"]
    assert decisions["HLA.A"] == "renamed" and "date" in decisions["1-Mar"] and "no name" in decisions[""]
    listed = ingest([path], tmp_path / "listed", Columns(), GeneChoice(["HLA-A", "G10", "G11"], min_overlap=0))
    assert listed.known is None
    np.testing.assert_array_equal(
        [counts_by_cell(listed)[c][0] for c in cells.obs_names], cells.X[:, 0].toarray().ravel()
    )


def test_cells_that_count_twice_are_warned_of(tmp_path: Path):
    paths = [write(make_cells(), tmp_path / f"{name}.h5ad") for name in "ab"]
    store = ingest(paths, tmp_path / "store", Columns())
    assert store.meta["counted_twice"] == ["90 cells lie in each of a, b"]


def test_inspect_passes_over_what_it_need_not_read(tmp_path: Path):
    cells = make_cells()
    cells.obs["target_gene"] = cells.obs["target_gene"].astype("category").cat.add_categories(["G3", "TP53"])
    path = write(cells, tmp_path / "a.h5ad")
    with h5py.File(path, "r+") as file:
        column = file["obs"].create_dataset("S/G2M", data=np.zeros(90))
        column.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
        file["obs/strange"] = h5py.SoftLink("/nowhere")
        file["obs/odd"] = np.zeros(90, np.dtype([("a", "f4"), ("b", "i4")]))
        file["uns/dead"] = h5py.ExternalLink("gone.h5", "/x")
    found = inspect(path)
    assert found["labels"]["perturbation"]["number"] == 2 and "G1" in as_text(found)


@pytest.mark.parametrize(
    ("labels", "control"),
    [
        (["Negative", "Negative", "NT"], "NT"),
        (["mCherry"], None),
        (["unperturbed"], "unperturbed"),
        (["NTC_1", "WT1"], "NTC_1"),
    ],
)
def test_inspect_recommends_the_right_control(labels: list[str], control: str | None, tmp_path: Path):
    cells = make_cells()
    cells.obs["target_gene"] = [[*labels, "STAT1", "MYC"][i % (len(labels) + 2)] for i in range(90)]
    found = inspect(write(cells, tmp_path / "a.h5ad"))
    assert found["labels"]["control"]["label"] == control
    assert (found["prepare"] is None) == (control is None)
