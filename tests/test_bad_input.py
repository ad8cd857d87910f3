"""Bad input to the commands: one message that says what, where and what to do; nothing half-written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pytest

from tests.conftest import Command, assert_refused
from tests.data.store.test_ingest import make_cells, write
from vcell.config import compose
from vcell.data.store.ensure import ensure_store
from vcell.data.store.options import StoreOptions
from vcell.data.store.store import CellStore
from vcell.errors import VcellError

Change = Callable[[Path], object]


def cells_with(change: Callable[[ad.AnnData], object]) -> Change:
    def rewrite(path: Path) -> None:
        cells = make_cells()
        change(cells)
        write(cells, path)

    return rewrite


def set_value(value: float) -> Change:
    return cells_with(lambda cells: cells.X.data.__setitem__(7, value))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])


def unlabelled(cells: ad.AnnData) -> None:
    cells.obs["target_gene"] = cells.obs["target_gene"].where(cells.obs["target_gene"] != "non-targeting", "G3")


def emptied(cells: ad.AnnData) -> None:
    matrix = cells.X.tolil()
    matrix[4] = 0
    cells.X = matrix.tocsr()


def without_controls_counts(cells: ad.AnnData) -> None:
    keep = (cells.obs["target_gene"] != "non-targeting").to_numpy()
    cells.X = cells.X.multiply(keep[:, None]).tocsr()


def overflowed(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        indptr = file["X/indptr"][:].astype(np.int32)
        indptr[40:] -= 2**31 - 1
        file["X/indptr"][:] = indptr


CASES: dict[str, tuple[Change, list[str], str]] = {
    "truncated": (cut, [], r"a\.h5ad is cut short or damaged.*again"),
    "not HDF5": (lambda path: path.write_text("cells"), [], r"a\.h5ad is not an h5ad"),
    "no such column": (lambda path: None, ["data.columns.batch=lane"], r"no obs column 'lane'.*It has: batch.*data\.columns\.batch"),
    "no control": (cells_with(unlabelled), [], r"no cell in .*a\.h5ad is labelled as control 'non-targeting'.*data\.control="),
    "control misspelt": (lambda path: None, ["data.control=non-targetting"], r"Did you mean 'non-targeting'"),
    "duplicated genes": (
        cells_with(lambda cells: setattr(cells, "var_names", ["G1", "G1", *cells.var_names[2:]])), [], r"are duplicated \(G1\)"),
    "NaN": (set_value(np.nan), [], r"cell 'cell\d+' holds nan"),
    "negative": (set_value(-2.0), [], r"cell 'cell\d+' holds the negative value -2"),
    "more than any count": (set_value(5e9), [], r"cell 'cell\d+' holds 5e\+09, more than any count can be \(4,294,967,295\)"),
    "genes without names": (
        cells_with(lambda cells: setattr(cells, "var_names", [""] * cells.n_vars)), [], r"a\.h5ad: none of its \d+ genes has a name"),
    "infinite": (set_value(np.inf), [], r"cell 'cell\d+' holds inf"),
    "all-zero cells": (cells_with(emptied), [], r"cell 'cell4' has no counts.*data\.empty_cells=drop"),
    "no counts in any control": (
        cells_with(without_controls_counts), ["data.empty_cells=drop"], r"no control cell is left: \d+ of 90 cells have no counts"),
    "unknown gene": (
        cells_with(lambda cells: cells.obs.replace("G1", "STAT11", inplace=True)),
        ["data.filter.residual_expression=0.3"], r"STAT11\. Did you mean 'STAT1'"),
    "no overlap with the list": (
        lambda path: path.with_name("genes.csv").write_text("A\nB\nC\n"), ["data.genes=genes.csv"], r"barely overlap: 0 genes"),
    "no such file": (lambda path: path.unlink(), [], r"no such file: a\.h5ad"),
    "no such matrix": (lambda path: None, ["data.matrix=layers/counts"], r"has no matrix 'layers/counts'.*It has: X"),
    "overflowed pointers": (overflowed, [], r"index pointer decreases"),
    "missing labels": (
        cells_with(lambda cells: cells.obs.__setitem__("batch", cells.obs["batch"].where(np.arange(90) > 3))), [],
        r"4 cells have no value in obs column 'batch'"),
    "no such column of guides": (lambda path: None, ["data.columns.guide=lane"], r"no obs column 'lane' for the guide.*data\.columns\.guide"),
    "no scale at all": (lambda path: None, ["data.scale=3"], r"data\.scale=3 must be auto, counts"),
    "no number of workers": (lambda path: None, ["prepare.workers=many"], r"prepare\.workers=many must be a whole number from 1 to 4,096 or null"),
    "no such scale": (lambda path: None, ["data.scale=log2"], r"data\.scale='log2' is none of"),
    "scale of no file": (
        lambda path: None, ["data.scale={b.h5ad: counts}"], r"data\.scale names b\.h5ad.*Did you mean 'a\.h5ad'"),
    "renamed gene of no file": (lambda path: None, ["data.rename={G99: G1}"], r"data\.rename names G99.*Did you mean 'G9'"),
    "said scale is wrong": (lambda path: None, ["data.scale=log1p_counts"], r"cannot be recovered as whole counts"),
    "no such scheduler": (lambda path: None, ["prepare.cluster=tcp://127.0.0.1:9"], r"no Dask scheduler responds"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_prepare_refuses_and_leaves_nothing(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    change, overrides, words = CASES[case]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("vcell.data.store.workers.CONNECT_S", 1)
    if any(override.startswith("prepare.cluster") for override in overrides):
        pytest.importorskip("distributed")
    write(make_cells(), tmp_path / "a.h5ad")
    change(tmp_path / "a.h5ad")
    before = sorted(tmp_path.rglob("*"))
    config = compose("prepare", ["data=perturb_seq", "data.path=a.h5ad", *overrides])
    with pytest.raises(VcellError, match=words) as refused:
        ensure_store(StoreOptions.of(config.data), **config.prepare)
    assert "\n" not in str(refused.value).strip()
    left = [path for path in sorted(tmp_path.rglob("*")) if path not in before]
    assert not [path for path in left if not path.is_dir()]


def test_the_command_ends_with_code_2_and_one_message(vcell: Command, tmp_path: Path):
    write(make_cells(), tmp_path / "a.h5ad")
    cut(tmp_path / "a.h5ad")
    assert_refused(vcell("prepare", "data=perturb_seq", "data.path=a.h5ad", cwd=tmp_path), "cut short")
    assert_refused(vcell("inspect", "path=a.h5ad", cwd=tmp_path), "cut short")
    assert [p.name for p in tmp_path.iterdir()] == ["a.h5ad"]


def test_two_files_that_barely_overlap_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    other = make_cells()
    other.var_names = [f"MOUSE{i}" for i in range(40)]
    write(make_cells(), tmp_path / "a.h5ad")
    write(other, tmp_path / "b.h5ad")
    with pytest.raises(VcellError, match=r"b\.h5ad and the files before it barely overlap"):
        ensure_store(StoreOptions.of(compose("prepare", ["data=perturb_seq", "data.path=[a.h5ad,b.h5ad]"]).data))


def test_a_place_that_cannot_be_written_is_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    write(make_cells(), tmp_path / "a.h5ad")
    for place in ("a.h5ad/store", "/proc/store"):
        with pytest.raises(VcellError, match=r"could not be written"):
            ensure_store(
                StoreOptions.of(
                    compose("prepare", ["data=perturb_seq", "data.path=a.h5ad", f"data.store={place}"]).data
                )
            )
    assert [p.name for p in tmp_path.iterdir()] == ["a.h5ad"]


def test_a_full_disk_leaves_nothing(vcell: Command, tmp_path: Path):
    """A limit on file sizes stands in for a disk that runs full while the cells are written."""
    write(make_cells(3000), tmp_path / "a.h5ad")

    done = vcell("prepare", "data=perturb_seq", "data.path=a.h5ad", cwd=tmp_path, largest_file=100_000)
    assert_refused(done, "could not be written", "File too large")
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and p.name != "a.h5ad"]


@pytest.fixture()
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write(make_cells(), tmp_path / "a.h5ad")
    ensure_store(StoreOptions.of(compose("prepare", ["data=perturb_seq", "data.path=a.h5ad", "data.store=store"]).data))
    return tmp_path / "store"


def test_a_store_of_another_format_is_refused(prepared: Path):
    meta = json.loads((prepared / "meta.json").read_text())
    (prepared / "meta.json").write_text(json.dumps({**meta, "format_version": 1}))
    with pytest.raises(VcellError, match=r"format version 1; this vcell reads version 2.*prepare it again"):
        CellStore.open(prepared)


@pytest.mark.parametrize(
    "name", ["counts.indptr.npy", "counts.indices.npy", "counts.values.npy", "obs.parquet", "meta.json"]
)
def test_a_store_cut_short_is_refused(prepared: Path, name: str):
    cut(prepared / name)
    with pytest.raises(VcellError, match=r"is damaged.*prepare it again"):
        CellStore.open(prepared)
    shutil.rmtree(prepared)
    with pytest.raises(VcellError, match="is not a cell store"):
        CellStore.open(prepared)
