"""What a file is said to hold is what it holds, and the line it ends with works."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from tests.conftest import SHARED, SMALL_SCREEN, Command
from tests.data.store.test_filters import EXPRESSION
from tests.data.store.test_filters import screen as knockdown_screen
from tests.data.store.test_ingest import as_fractions, layouts, make_cells, rewrite_as_of_0_6, scaled, write
from vcell.config import compose
from vcell.data.store.ensure import ensure_store
from vcell.data.store.options import StoreOptions
from vcell.errors import VcellError
from vcell.inspection.inspect import inspect
from vcell.inspection.report import as_text


def matrix_of(cells: ad.AnnData, path: Path) -> dict:
    found = inspect(write(cells, path))
    json.dumps(found)
    assert as_text(found)
    return found["matrices"][0]


@pytest.mark.parametrize(
    ("layout", "scale", "total"),
    [
        ("csr", "counts", None),
        ("csc", "counts", None),
        ("dense", "counts", None),
        ("log1p", "log1p_counts", None),
        ("log1p of counts per 50,000", "log1p_normalised", 5e4),
        ("csc of log1p of counts per 10,000", "log1p_normalised", 1e4),
        ("dense counts per million", "normalised", 1e6),
    ],
)
def test_scale_and_layout_are_found(layout: str, scale: str, total: float | None, tmp_path: Path):
    found = matrix_of(layouts(make_cells())[layout], tmp_path / "a.h5ad")
    assert found["scale"] == scale and found["layout"] == layout.split()[0].replace("log1p", "csr")
    assert found["counts_recoverable"] and found["failed_cells"] == 0 and found["verified_cells"] == 90
    assert found.get("normalised_to") == total
    library = np.asarray(make_cells().X.sum(axis=1))
    assert found["library_size"]["median"] == pytest.approx(np.median(library))


def test_genes_dropped_after_scaling_are_noticed(tmp_path: Path):
    cells = make_cells()
    cells.X = scaled(cells, 5e4).log1p().astype(np.float32)
    found = matrix_of(cells[:, ::2].copy(), tmp_path / "a.h5ad")
    assert found["scale"] == "log1p_normalised" and found["normalised_to"] is None
    assert found["totals"]["min"] < found["totals"]["max"] < 5e4


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda x: (x - x.mean(0)) / (x.std(0) + 1e-9), "z-scored"),
        (lambda x: x - 0.5, "negative values"),
        (lambda x: np.where(x == 3, np.nan, x), "NaN"),
        (lambda x: np.where(x == 3, np.inf, x), "infinite"),
        (lambda x: x * 0, "all zeros"),
        (lambda x: np.concatenate([np.log1p(x[:45]), x[45:]]), "several scales"),
    ],
)
def test_unusable_values_are_named(change, words: str, tmp_path: Path):
    cells = make_cells()
    cells.X = change(cells.X.toarray()).astype(np.float32)
    found = inspect(write(cells, tmp_path / "a.h5ad"))
    assert words in found["matrices"][0]["problem"]
    assert (
        found["matrix"] is None and found["prepare"] is None and "no matrix can be used" in " ".join(found["warnings"])
    )


def test_fractions_are_no_counts(tmp_path: Path):
    found = inspect(write(as_fractions(make_cells()), tmp_path / "a.h5ad"))
    assert found["matrices"][0]["scale"] == "log1p_fractional" and found["matrices"][0]["normalised_to"] == 1e4
    assert "counts cannot be recovered" in " ".join(found["warnings"])


def test_the_matrix_with_raw_counts_is_recommended(tmp_path: Path):
    cells = make_cells()
    cells.layers["counts"] = cells.X.copy()
    dense = cells.X.toarray()
    cells.X = ((dense - dense.mean(0)) / (dense.std(0) + 1e-9)).astype(np.float32)
    found = inspect(write(cells, tmp_path / "a.h5ad"))
    assert found["matrix"] == "layers/counts" and "data.matrix=layers/counts" in found["prepare"]
    assert "use this one" in as_text(found)


def test_gene_names_are_judged(tmp_path: Path):
    cells = make_cells()
    cells.var_names = [
        "TAZ",
        "CCDC84",
        "ENSG00000115415.20",
        "1-Mar",
        "NOTAGENE",
        "STAT1",
        *(f"G{i}" for i in range(34)),
    ]
    genes = inspect(write(cells, tmp_path / "a.h5ad"))["genes"]
    assert genes["ambiguous"]["TAZ"] == ["TAFAZZIN", "WWTR1"]
    assert genes["outdated"]["CCDC84"] == "CENATAC"
    assert genes["ensembl_versions"] == ["ENSG00000115415.20"] and genes["excel_dates"] == ["1-Mar"]
    assert "NOTAGENE" in genes["unknown"] and genes["n_duplicates"] == 0
    with h5py.File(tmp_path / "a.h5ad", "r+") as file:
        file["var/_index"][5] = "NOTAGENE"
    found = inspect(tmp_path / "a.h5ad")
    assert found["genes"]["duplicates"] == ["NOTAGENE"] and "duplicated" in " ".join(found["warnings"])
    aligned = inspect(write(make_cells(), tmp_path / "b.h5ad"), genes=["G3", "G1", "MISSING"])["genes"]["list"]
    assert aligned["found"] == 2 and aligned["missing"] == ["MISSING"]


@pytest.mark.parametrize(
    ("names", "control"),
    [
        ({"target_gene": "gene", "batch": "gem_group", "cell_type": "cell_line"}, "NTC"),
        ({"target_gene": "perturbation", "batch": "lane", "cell_type": "context"}, "control"),
        ({"target_gene": "my_label", "batch": "plate", "cell_type": "celltype"}, "Non-Targeting Control"),
        ({"target_gene": "treatment", "batch": "donor", "cell_type": "tissue"}, "DMSO"),
    ],
)
def test_columns_and_controls_are_guessed_and_the_line_works(
    names: dict[str, str], control: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    cells = make_cells()
    cells.obs = cells.obs.replace("non-targeting", control).rename(columns=names)
    cells.obs["n_counts"] = np.arange(90.0)
    cells.obs["barcode"] = [f"ACGT-{i}" for i in range(90)]
    found = inspect(write(cells, tmp_path / "my cells.h5ad"))
    for role, name in zip(("perturbation", "batch", "context"), names.values(), strict=True):
        assert found["labels"][role]["column"] == name
    assert found["labels"]["control"]["label"] == control
    assert found["labels"]["perturbation"]["confidence"] == ("medium" if names["target_gene"] == "my_label" else "high")
    monkeypatch.chdir(tmp_path)
    line = shlex.split(found["prepare"])
    assert line[:3] == ["python", "-m", "vcell.prepare"]
    assert ensure_store(StoreOptions.of(compose("prepare", line[3:]).data)).n_cells == 90


def test_a_file_without_batch_and_context_gets_a_line_that_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    cells = make_cells()
    cells.obs = cells.obs[["target_gene"]]
    found = inspect(write(cells, tmp_path / "K562-day 8.h5ad"))
    monkeypatch.chdir(tmp_path)
    store = ensure_store(StoreOptions.of(compose("prepare", shlex.split(found["prepare"])[3:]).data))
    assert store.contexts == ["K562-day 8"]


def test_perturbations_without_matching_controls_are_counted(tmp_path: Path):
    found = inspect(knockdown_screen(tmp_path / "a.h5ad"))
    assert found["labels"]["unmatched"] == {
        "cells": 40,
        "n_perturbations": 1,
        "perturbations": ["CD4"],
        "contexts_without_controls": [],
    }
    assert found["labels"]["perturbation"]["combined"] == ["KLF1+MYC"]
    assert found["labels"]["perturbation"]["cells"] == dict.fromkeys(EXPRESSION, 40)
    assert found["labels"]["batch"]["cells"] == {"early": 160, "late": 40}


@pytest.mark.parametrize("layout", ["csr", "csc", "dense", "log1p"])
def test_knock_down_is_measured_and_the_unsilenced_are_named(layout: str, tmp_path: Path):
    path = knockdown_screen(tmp_path / "a.h5ad")
    cells = ad.read_h5ad(path)
    cells.X = {"csr": cells.X, "csc": cells.X.tocsc(), "dense": cells.X.toarray(), "log1p": cells.X.log1p()}[layout]
    found = inspect(write(cells, path))["knockdown"]
    assert found["targets_judged"] == 4 and set(found["unsilenced"]) == {"IRF1"}
    for name, left in EXPRESSION.items():
        assert found["residual"][name] == pytest.approx(left, abs=0.06)
    assert not found["activation"]


def test_old_encodings_are_inspected(tmp_path: Path):
    path = write(make_cells(), tmp_path / "a.h5ad")
    new = inspect(path)
    rewrite_as_of_0_6(path)
    old = inspect(path)
    assert old["labels"] == new["labels"] and old["genes"] == new["genes"] and old["matrices"][0]["scale"] == "counts"


@pytest.mark.parametrize("compression", [None, "gzip"])
def test_a_large_file_is_sampled_not_read(compression: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Values read stay within a budget that does not grow with the file."""
    cells = 40_000
    large = ad.concat([make_cells(900, seed=i) for i in range(4)], index_unique="_")
    blocks = sparse.vstack([large.X] * (cells // large.n_obs + 1)).tocsr()[:cells]
    obs = pd.concat([large.obs] * (cells // large.n_obs + 1))[:cells].reset_index(drop=True)
    obs.index = obs.index.astype(str)
    path = tmp_path / "large.h5ad"
    ad.AnnData(blocks, obs=obs, var=large.var).write_h5ad(path, compression=compression)
    monkeypatch.setattr("vcell.data.files.sample.SAMPLE_VALUES", 100_000)
    monkeypatch.setattr("vcell.data.files.sample.FEWEST_CHUNKS", 4)
    monkeypatch.setattr("vcell.inspection.knockdown.MOST_VALUES", 200_000)
    read = 0
    whole_get = h5py.Dataset.__getitem__

    def counted(self, *args, **kwargs):
        nonlocal read
        out = whole_get(self, *args, **kwargs)
        if self.name in ("/X/data", "/X/indices"):
            read += np.size(out)
        return out

    monkeypatch.setattr(h5py.Dataset, "__getitem__", counted)
    found = inspect(path)
    assert 0 < read / 2 < 1.2 * 300_000 < 0.5 * blocks.nnz  # values and their genes
    assert found["matrices"][0]["verified_cells"] == 500 and found["knockdown"]["targets_judged"] == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"columns": {"batch": "bach"}}, "no obs column 'bach'.*Did you mean 'batch'"),
        ({"control": "non-targetting"}, "Did you mean 'non-targeting'"),
        ({"matrix": "layers/counts"}, "no matrix 'layers/counts'"),
    ],
)
def test_what_the_user_names_must_be_there(arguments: dict, words: str, tmp_path: Path):
    with pytest.raises(VcellError, match=words):
        inspect(write(make_cells(), tmp_path / "a.h5ad"), **arguments)


def test_the_command_prints_a_table_or_json(vcell: Command, screen: Path, tmp_path: Path):
    path = screen / f"{SMALL_SCREEN.contexts[0]}.h5ad"
    found = json.loads(vcell("inspect", f"path={path}", "json=true", cwd=tmp_path).stdout)
    assert found["matrix"] == "X" and found["labels"]["control"]["label"] == "non-targeting"
    said = vcell("inspect", f"path={path}", cwd=tmp_path).stdout
    assert found["prepare"] in said and not list(tmp_path.iterdir())


@pytest.mark.shared
@pytest.mark.skipif(not SHARED.is_dir(), reason="the real data sets are not beside the checkout")
@pytest.mark.parametrize("path", sorted(SHARED.glob("*.h5ad")), ids=lambda p: p.stem)
def test_the_lines_for_real_files_work(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    found = inspect(path)
    assert found["matrices"][0]["scale"] == "counts" and found["labels"]["control"]["label"] == "non-targeting"
    monkeypatch.chdir(tmp_path)
    store = ensure_store(StoreOptions.of(compose("prepare", shlex.split(found["prepare"])[3:]).data))
    assert store.n_cells == found["cells"] and store.n_genes == found["genes"]["number"]
