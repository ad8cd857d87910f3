"""What is left out of a store, and why."""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from tests.data.store.test_ingest import write
from vcell.data.store.filters import Filters
from vcell.data.store.ingest import ingest
from vcell.errors import VcellError

EXPRESSION = {"STAT1": 0.1, "IRF1": 0.9, "KLF1+MYC": 0.1, "CD4": 0.2}  # of the control mean of 20 counts
GENES = ["STAT1", "IRF1", "KLF1", "MYC", "CD4", *(f"G{i}" for i in range(20))]


def screen(path: Path, seed: int = 0, **labels: str) -> Path:
    """40 controls and 40 cells of each perturbation; half of IRF1's cells escaped. CD4's cells are in a batch of their own."""
    rng = np.random.default_rng(seed)
    names = ["non-targeting", *EXPRESSION]
    label = np.repeat(names, 40)
    mean = np.full((len(label), len(GENES)), 20.0)
    for name, left in EXPRESSION.items():
        for gene in name.split("+"):
            mean[label == name, GENES.index(gene)] *= left
    counts = rng.poisson(mean)
    obs = pd.DataFrame(
        {
            "target_gene": pd.Series(label).replace(labels).to_numpy(),
            "batch": np.where(label == "CD4", "late", "early"),
            "cell_type": "K562",
        },
        index=[f"c{i}" for i in range(len(label))],
    )
    cells = ad.AnnData(sparse.csr_matrix(counts.astype(np.float32)), obs=obs, var=pd.DataFrame(index=GENES))
    return write(cells, path)


def kept(tmp_path: Path, filters: Filters, **labels: str) -> dict[str, int]:
    store = ingest([screen(tmp_path / "a.h5ad", **labels)], tmp_path / "store", filters=filters)
    counts = store.obs["perturbation"].value_counts()
    return {str(k): int(v) for k, v in counts.items() if v}


ALL = dict.fromkeys(["non-targeting", *EXPRESSION], 40)


def test_nothing_is_left_out_unasked(tmp_path: Path):
    assert kept(tmp_path, Filters()) == ALL


def test_unsilenced_perturbations_are_left_out_and_of_a_double_both_genes_count(tmp_path: Path):
    assert kept(tmp_path, Filters(residual_expression=0.3)) == {k: v for k, v in ALL.items() if k != "IRF1"}


def test_unsilenced_cells_and_then_small_groups_are_left_out(tmp_path: Path):
    cells = kept(tmp_path, Filters(cell_residual_expression=0.25))
    assert cells["non-targeting"] == 40 and cells.get("IRF1", 0) == 0
    assert 25 < cells["CD4"] < 40 and cells["STAT1"] > cells["CD4"]  # Poisson around 4 counts, 5 are allowed
    (tmp_path / "b").mkdir()
    assert "CD4" not in kept(tmp_path / "b", Filters(cell_residual_expression=0.25, min_cells=36))


def test_expression_left_is_the_share_of_the_library_relative_to_controls(tmp_path: Path):
    store = ingest([screen(tmp_path / "a.h5ad")], tmp_path / "store")
    left = store.obs.groupby("perturbation", observed=True)["residual"].mean()
    assert left["STAT1"] == pytest.approx(0.1, abs=0.05) and left["IRF1"] == pytest.approx(0.9, abs=0.08)
    assert np.isnan(left["non-targeting"])


def test_expression_is_compared_with_controls_of_the_same_context(tmp_path: Path):
    """Contexts in which the gene differs tenfold, in categories of which some are empty and none in order of appearance."""
    path = screen(tmp_path / "a.h5ad")
    cells = ad.read_h5ad(path)
    later = cells.copy()
    later.obs["cell_type"], later.obs_names = "A549", [f"later_{name}" for name in cells.obs_names]
    matrix = later.X.tolil()
    matrix[:, 0] = np.minimum(matrix[:, 0].toarray() // 10, 2)
    later.X = matrix.tocsr()
    both = ad.concat([cells, later])
    for name in ("target_gene", "cell_type"):
        both.obs[name] = pd.Categorical(
            both.obs[name], ["unused", *sorted(set(both.obs[name]), reverse=True), "nowhere"]
        )
    store = ingest([write(both, path)], tmp_path / "store")
    left = store.obs.groupby(["context", "perturbation"], observed=True)["residual"].mean()
    for context in ("K562", "A549"):
        assert left[context, "IRF1"] == pytest.approx(0.9, abs=0.08) and left[context, "CD4"] == pytest.approx(
            0.2, abs=0.05
        )
        assert left[context, "STAT1"] < 0.15


def test_batches_without_controls_are_left_out_by_number_or_name(tmp_path: Path):
    without = {k: v for k, v in ALL.items() if k != "CD4"}
    assert kept(tmp_path, Filters(min_controls_per_batch=5)) == without
    (tmp_path / "b").mkdir()
    assert kept(tmp_path / "b", Filters(drop_batches=["late"])) == without
    with pytest.raises(VcellError, match=r"drop_batches names lat.*Did you mean 'late'"):
        kept(tmp_path / "b", Filters(drop_batches=["lat"]))


def test_a_perturbation_of_no_known_gene_is_refused_kept_or_dropped(tmp_path: Path):
    with pytest.raises(VcellError, match=r"STAT11\. Did you mean 'STAT1'.*unknown_genes=keep"):
        kept(tmp_path, Filters(residual_expression=0.3), STAT1="STAT11")
    assert not (tmp_path / "store").exists() and not (tmp_path / "store.parts").exists()
    assert "STAT11" in kept(tmp_path, Filters(residual_expression=0.3, unknown_genes="keep"), STAT1="STAT11")
    assert "STAT11" not in kept(tmp_path, Filters(residual_expression=0.3, unknown_genes="drop"), STAT1="STAT11")
    # a known gene that was not measured cannot be judged, and is kept
    assert "SPI1" in kept(tmp_path, Filters(residual_expression=0.3), STAT1="SPI1")


def test_filters_that_leave_nothing_are_refused(tmp_path: Path):
    with pytest.raises(VcellError, match=r"leaves no perturbed cell.*fewer than 1000"):
        kept(tmp_path, Filters(min_cells=1000))
    with pytest.raises(VcellError, match=r"min_cells=-1 must be"):
        Filters(min_cells=-1)
