"""A store is made once, found again, and never taken for another one."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from vcell.config import compose
from vcell.data.store.ensure import ensure_store
from vcell.data.store.options import StoreOptions
from vcell.data.store.store import CellStore
from vcell.errors import VcellError


def ensure(*overrides: str, overwrite: bool = False) -> CellStore:
    return ensure_store(
        StoreOptions.of(compose("prepare", ["data=perturb_seq", "data.path=cells/*.h5ad", *overrides]).data), overwrite
    )


@pytest.fixture()
def folder(screen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with two files and the store made from them."""
    (tmp_path / "cells").mkdir()
    for name in ("simA", "simB"):
        shutil.copy(screen / f"{name}.h5ad", tmp_path / "cells")
    monkeypatch.chdir(tmp_path)
    ensure()
    return tmp_path


def test_a_store_is_found_again(folder: Path):
    before = (folder / "data/perturb_seq/store/meta.json").stat().st_mtime_ns
    assert ensure().n_genes == 120
    assert (folder / "data/perturb_seq/store/meta.json").stat().st_mtime_ns == before


def test_a_store_travels_without_its_files_but_not_under_another_path(folder: Path):
    shutil.rmtree("cells")
    assert ensure().contexts == ["simA", "simB"]
    with pytest.raises(VcellError, match=r"no such file: cels/\*\.h5ad"):
        ensure("data.path=cels/*.h5ad")


def test_files_may_move(folder: Path):
    Path("cells").rename("elsewhere")
    assert ensure("data.path=elsewhere/*.h5ad").contexts == ["simA", "simB"]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [(["data.path=cells/simA.h5ad"], "the files"), (["data.columns.batch=null"], r"data\.columns\.batch"), (["data.genes=g.csv"], r"data\.genes")],
)  # fmt: skip
def test_other_input_is_refused_and_replaced_only_when_asked(folder: Path, overrides: list[str], words: str):
    Path("g.csv").write_text("GENE0002\nGENE0001\n")
    with pytest.raises(VcellError, match=f"other input: {words} differ.*overwrite=true"):
        ensure(*overrides)
    assert ensure().n_genes == 120
    ensure(*overrides, overwrite=True)
    ensure(*overrides)


def test_another_gene_list_of_the_same_name_is_noticed(folder: Path):
    Path("g.csv").write_text("GENE0002\nGENE0001\n")
    assert ensure("data.genes=g.csv", overwrite=True).genes == ["GENE0002", "GENE0001"]
    Path("g.csv").write_text("GENE0003\nGENE0001\n")
    with pytest.raises(VcellError, match="the gene list"):
        ensure("data.genes=g.csv")


def test_nothing_is_simulated_for_files_that_are_given(screen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(screen / "simA.h5ad", "a.h5ad")
    given = StoreOptions.of(compose("prepare", ["data=demo", "data.path=a.h5ad", "data.store=store"]).data)
    assert ensure_store(given).contexts == ["simA"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.h5ad", "store"]
    assert StoreOptions.of(compose("prepare", ["data=demo"]).data).simulate is not None
