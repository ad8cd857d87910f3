"""Columns of obs are those that anndata reads, without loading it where they are of the usual kinds."""

import subprocess
import sys
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest

from vcell.data.files.h5ad import read_column
from vcell.errors import VcellError

COLUMNS = {
    "categories": pd.Categorical(["b", "a", None, "b"]),
    "ordered": pd.Categorical(["low", "high", "low", "low"], categories=["low", "high"], ordered=True),
    "numbers as categories": pd.Categorical([3, 1, 3, 3]),
    "strings": np.array(["one", "", "µ", "four"], object),
    "whole": np.array([1, -2, 3, 4]),
    "fractions": np.array([0.5, np.nan, 1.0, 2.0], np.float32),
    "truth": np.array([True, False, True, True]),
    "missing numbers": pd.array([1, None, 3, 4], dtype="Int64"),
}
USUAL = [name for name in COLUMNS if not name.startswith("missing")]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "cells.h5ad"
    ad.AnnData(np.zeros((4, 1), np.float32), obs=pd.DataFrame(COLUMNS, index=list("wxyz"))).write_h5ad(path)
    return path


@pytest.mark.parametrize("name", COLUMNS)
def test_a_column_is_what_anndata_reads(file: Path, name: str):
    expected = ad.read_h5ad(file).obs[name]
    with h5py.File(file) as opened:
        found = read_column(opened, "obs", name, file)
    assert found.astype(object).where(found.notna(), None).tolist() == expected.astype(object).where(
        expected.notna(), None
    ).tolist()  # fmt: skip
    if isinstance(expected.dtype, pd.CategoricalDtype):
        assert found.cat.categories.tolist() == expected.cat.categories.tolist()
        assert found.cat.ordered == expected.cat.ordered


@pytest.mark.parametrize("name", ["whole", "strings", "categories"])
def test_a_column_is_as_long_as_its_table(file: Path, name: str):
    """What is missing would be NaN, and what is too much lost."""
    with h5py.File(file, "r+") as opened:
        where = f"obs/{name}/codes" if name == "categories" else f"obs/{name}"
        values, about = opened[where][:], dict(opened[where].attrs)
        del opened[where]
        opened[where] = values[:-1]
        opened[where].attrs.update(about)
    with (
        h5py.File(file) as opened,
        pytest.raises(VcellError, match=f"obs/{name} has 3 values, where obs has 4 rows"),
    ):
        read_column(opened, "obs", name, file)


def test_usual_columns_do_not_load_anndata(file: Path):
    """It takes half a second, of every command that looks at a file."""
    code = (
        "import sys, h5py\nfrom pathlib import Path\nfrom vcell.data.files.h5ad import read_column\n"
        f"path = Path({str(file)!r})\nwith h5py.File(path) as opened:\n"
        f" for name in {USUAL!r}:\n  read_column(opened, 'obs', name, path)\n"
        "assert 'anndata' not in sys.modules, 'loaded'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
