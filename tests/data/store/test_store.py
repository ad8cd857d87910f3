import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from vcell.data.store.store import CellStore
from vcell.errors import VcellError


@pytest.fixture()
def copy(store: CellStore, tmp_path: Path) -> Path:
    shutil.copytree(store.path, tmp_path / "store")
    return tmp_path / "store"


def test_groups_cover_every_cell_once(store: CellStore):
    cells = np.concatenate(list(store.groups.values()))
    assert np.array_equal(np.sort(cells), np.arange(store.n_cells))


def test_rows_come_in_any_order_with_repeats(store: CellStore):
    some = np.array([5, 0, 5, store.n_cells - 1])
    rows = store.rows(some)
    for i, cell in enumerate(some):
        alone = store.rows(np.array([cell]))
        part = slice(rows.indptr[i], rows.indptr[i + 1])
        np.testing.assert_array_equal(rows.indices[part], alone.indices)
        np.testing.assert_array_equal(rows.values[part], alone.values)


def test_many_rows_are_copied_by_a_compiled_loop_as_few_are(store: CellStore, monkeypatch: pytest.MonkeyPatch):
    cells = np.random.default_rng(0).integers(0, store.n_cells, 50)
    plain = store.rows(cells)
    monkeypatch.setattr("vcell.data.store.store.WORTH_COMPILED", 0)
    for chosen, expected in ((cells, plain), (cells[:0], store.rows(cells[:0]))):
        found = store.rows(chosen)
        for name in ("indptr", "indices", "values", "library_size"):
            np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


def test_another_format_version_is_refused(copy: Path):
    meta = json.loads((copy / "meta.json").read_text())
    (copy / "meta.json").write_text(json.dumps({**meta, "format_version": 99}))
    with pytest.raises(VcellError, match="format version 99"):
        CellStore.open(copy)


@pytest.mark.parametrize("name", ["counts.values.npy", "counts.indptr.npy", "obs.parquet"])
def test_a_cut_array_is_refused(copy: Path, name: str):
    content = (copy / name).read_bytes()
    (copy / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(VcellError, match="is damaged"):
        CellStore.open(copy)


@pytest.mark.parametrize("name", ["counts.values.npy", "var.parquet", "genes.csv", "labels.csv"])
def test_a_file_that_is_gone_is_named(copy: Path, name: str):
    """Also one without which the counts could be read."""
    (copy / name).unlink()
    with pytest.raises(VcellError, match=f"is damaged: it lacks {name}"):
        CellStore.open(copy)


def test_no_store_is_said_so(tmp_path: Path):
    with pytest.raises(VcellError, match="not a cell store"):
        CellStore.open(tmp_path)
