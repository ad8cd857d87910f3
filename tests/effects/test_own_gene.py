"""A silenced gene is silenced: what a perturbation does to its own gene is learnt from training and set in predictions."""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import numpy as np
import pytest

from tests.conftest import infer_here
from vcell.data.gather import Gather
from vcell.data.store.store import CellStore
from vcell.effects.own_gene import measure_own_genes, own_genes
from vcell.errors import VcellError


def left(found: ad.AnnData, target: str) -> float:
    """Expression that a target keeps of its own gene."""
    counts = np.expm1(found[:, target].X.toarray()).ravel()
    is_target = (found.obs["target_gene"] == target).to_numpy()
    return float(counts[is_target].mean() / counts[(found.obs["target_gene"] == "non-targeting").to_numpy()].mean())


def well_expressed(store: CellStore, context: str) -> str:
    rows = store.rows(store.controls_of(context))
    total = np.bincount(rows.indices, rows.values, store.n_genes)
    targets = {p for c, p in store.groups if c == context and p in store.genes}
    return max(targets, key=lambda t: total[store.genes.index(t)])


def test_the_simulated_guides_are_found_again(store: CellStore):
    found = measure_own_genes(Gather(store, 1e4), [g for g in store.groups if g[1] != store.control])
    assert set(found) == set(store.contexts)
    for one in found.values():
        assert 0.1 < one["ratio"] < 0.35 and one["low"] <= one["ratio"] <= one["high"]


@pytest.mark.parametrize(("asked", "expected"), [("auto", 0.22), ("0.5", 0.5), ("0", 0.0), ("off", 1.0)])
def test_predictions_silence_their_target(in_trained: Path, tmp_path: Path, asked: str, expected: float):
    target = well_expressed(CellStore.open("data/demo/store"), "simC")
    infer_here(
        f"out={tmp_path / 'p.h5ad'}", f"targets=[{target}]", "contexts=[simC]", "n_cells=60", f"knockdown={asked}"
    )
    assert left(ad.read_h5ad(tmp_path / "p.h5ad"), target) == pytest.approx(expected, abs=0.15)


@pytest.mark.parametrize("predictor", ["context_mean", "transfer", "model"])
def test_drawn_counts_do_so_too(in_trained: Path, tmp_path: Path, predictor: str):
    target = well_expressed(CellStore.open("data/demo/store"), "simC")
    infer_here(f"out={tmp_path / 'p.h5ad'}", f"targets=[{target}]", "contexts=[simC]", "n_cells=60", "draw=true", "knockdown=0.3", f"predictor={predictor}")  # fmt: skip
    assert left(ad.read_h5ad(tmp_path / "p.h5ad"), target) == pytest.approx(0.3, abs=0.12)


def test_activation_goes_the_other_way_and_neither_is_left_alone():
    genes = ["A", "B"]
    activated, said = own_genes("auto", {"x": {"ratio": 6.0}, "y": {"ratio": 3.0}}, genes, "non-targeting")
    assert (
        activated is not None
        and activated.ratio_of("x") == 6.0
        and activated.ratio_of("new") == 4.5
        and "4.50" in str(said)
    )
    assert list(activated.columns_of("B")) == [1] and list(activated.columns_of("other")) == []
    assert own_genes("auto", {"x": {"ratio": 0.95}}, genes, "non-targeting")[0] is None
    assert own_genes("auto", None, genes, "non-targeting") == (None, None)


def test_a_value_that_means_nothing_is_refused():
    with pytest.raises(VcellError, match="knockdown=some must be auto, off, or the fraction"):
        own_genes("some", None, ["A"], "non-targeting")
