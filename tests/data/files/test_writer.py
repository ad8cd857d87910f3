from __future__ import annotations

from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest

from vcell.data.files.writer import H5adWriter
from vcell.errors import VcellError

CELLS = np.random.default_rng(0).poisson(0.5, (23, 11)).astype(np.float32)
OBS = pd.DataFrame({"target_gene": pd.Categorical(["A"] * 20 + ["B"] * 3)}, index=[f"c{i}" for i in range(23)])
GENES = [f"G{i}" for i in range(11)]


@pytest.mark.parametrize("step", [1, 7, 23])
@pytest.mark.parametrize("compression", [None, "lzf", "gzip"])
def test_what_is_written_is_read(tmp_path: Path, step: int, compression: str | None):
    with H5adWriter(tmp_path / "a.h5ad", OBS, GENES, {"vcell": "{}"}, compression) as writer:
        for start in range(0, 23, step):
            writer.write(CELLS[start : start + step])
    found = ad.read_h5ad(tmp_path / "a.h5ad")
    np.testing.assert_array_equal(found.X.toarray(), CELLS)
    assert found.var_names.tolist() == GENES and found.obs.equals(OBS) and found.uns["vcell"] == "{}"
    with h5py.File(tmp_path / "a.h5ad") as file:
        assert file["X/indptr"].dtype == np.int32 and len(file["X/data"]) == np.count_nonzero(CELLS)
    assert [p.name for p in tmp_path.iterdir()] == ["a.h5ad"]


def test_a_failure_leaves_nothing_behind_and_the_old_file_whole(tmp_path: Path):
    (tmp_path / "a.h5ad").write_text("old")
    with pytest.raises(ValueError, match="stop"), H5adWriter(tmp_path / "a.h5ad", OBS, GENES) as writer:
        writer.write(CELLS[:3])
        raise ValueError("stop")
    assert (tmp_path / "a.h5ad").read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_too_few_cells_are_an_error(tmp_path: Path):
    with pytest.raises(VcellError, match="3 of 23 cells"), H5adWriter(tmp_path / "a.h5ad", OBS, GENES) as writer:
        writer.write(CELLS[:3])
    assert not list(tmp_path.iterdir())


def test_an_unwritable_place_is_said_so(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(VcellError, match="cannot be written"):
        H5adWriter(tmp_path / "file" / "a.h5ad", OBS, GENES)
