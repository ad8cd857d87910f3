"""The simulator keeps its promises about layout and truth."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch

from tests.conftest import SMALL_SCREEN
from vcell.data.simulation.field import Field
from vcell.data.simulation.screen import SHARES, Screen, Truth
from vcell.data.simulation.write import ensure_screen, simulate
from vcell.errors import VcellError


def test_files_lie_as_the_challenge_lays_them_out(screen: Path):
    genes = (screen / "gene_names.csv").read_text().split()
    table = torch.load(screen / "embedding.pt", weights_only=True)
    assert list(table) == genes and all(v.shape == (12,) for v in table.values())
    training, hidden = ad.read_h5ad(screen / "simC.h5ad"), ad.read_h5ad(screen / "truth" / "simC_test.h5ad")
    request = pd.read_csv(screen / "pert_counts_Test.csv")
    assert list(request.columns) == ["target_gene", "n_cells", "median_umi_per_cell"]
    for cells in (training, hidden):
        assert cells.var_names.tolist() == genes
        assert {"target_gene", "guide_id", "batch", "cell_type"} <= set(cells.obs)
        assert "non-targeting" in set(cells.obs["target_gene"])
        assert (cells.X.data == np.rint(cells.X.data)).all()
    assert set(request["target_gene"]) == set(hidden.obs["target_gene"]) - {"non-targeting"}
    assert set(request["target_gene"]).isdisjoint(training.obs["target_gene"])
    assert set(request["target_gene"]) <= set(ad.read_h5ad(screen / "simA.h5ad").obs["target_gene"])
    counted = hidden.obs["target_gene"].value_counts()
    assert (request["n_cells"].to_numpy() == counted[request["target_gene"]].to_numpy()).all()


def test_controls_are_the_same_cells_in_both_files(screen: Path):
    training, hidden = (ad.read_h5ad(screen / f"{name}.h5ad") for name in ("simC", "truth/simC_test"))
    both = [cells[cells.obs["target_gene"] == "non-targeting"] for cells in (training, hidden)]
    assert both[0].obs_names.equals(both[1].obs_names)
    assert (both[0].X != both[1].X).nnz == 0


def test_effect_variance_is_shared_as_measured():
    truth = Truth(Screen(genes=2000, targets=60, test_targets=0))
    parts = {name: [] for name in SHARES}
    for context in range(3):
        for target in range(60):
            for name, part in truth.effect_parts(context, target).items():
                parts[name].append(part)
    variance = {name: np.var(values) for name, values in parts.items()}
    total = np.var(np.sum([np.array(v) for v in parts.values()], axis=0))
    assert total == pytest.approx(0.25**2, rel=0.1)
    for name, share in SHARES.items():
        assert variance[name] / total == pytest.approx(share, abs=0.03)


def test_truth_file_holds_the_effects(screen: Path):
    truth = ad.read_h5ad(screen / "truth" / "effects.h5ad")
    assert truth.shape == (60, 120)
    np.testing.assert_allclose(truth.X.toarray(), sum(truth.layers[name] for name in SHARES), atol=1e-5)
    common = truth.layers["common"][(truth.obs["cell_type"] == "simA").to_numpy()]
    other_targets = np.ones(common.shape[1], dtype=bool)
    other_targets[[truth.var_names.get_loc(t) for t in truth.obs["target_gene"].unique()]] = False
    assert (common[:, other_targets] == common[0, other_targets]).all()


def test_measured_effects_follow_the_truth_and_targets_are_knocked_down(tmp_path: Path):
    big = replace(SMALL_SCREEN, cells_per_target=200, controls_per_context=1000, targets=6, test_targets=0, library_size=5000)  # fmt: skip
    folder = simulate(tmp_path / "screen", replace(big, contexts=("only",)))
    cells, truth = ad.read_h5ad(folder / "only.h5ad"), ad.read_h5ad(folder / "truth" / "effects.h5ad")
    share = cells.X.toarray() / cells.X.toarray().sum(axis=1, keepdims=True)
    labels = cells.obs["target_gene"].to_numpy()
    control = share[labels == "non-targeting"].mean(0)
    for row, target in enumerate(truth.obs["target_gene"]):
        measured = share[labels == target].mean(0) / control
        own = truth.var_names.get_loc(target)
        assert measured[own] < 0.5
        well_measured = (control > np.quantile(control, 0.5)) & (np.arange(120) != own)
        known = truth.X.toarray()[row][well_measured]
        assert np.corrcoef(np.log(measured[well_measured]), known)[0, 1] > 0.8


def test_a_seed_gives_the_same_screen_and_another_another(tmp_path: Path, screen: Path):
    again = simulate(tmp_path / "again", SMALL_SCREEN)
    other = simulate(tmp_path / "other", replace(SMALL_SCREEN, seed=1))
    first, second, third = (ad.read_h5ad(f / "simB.h5ad") for f in (screen, again, other))
    assert (first.X != second.X).nnz == 0 and first.obs.equals(second.obs)
    assert first.shape != third.shape or (first.X != third.X).nnz > 0


def test_the_table_says_something_of_the_effects():
    truth = Truth(Screen(genes=600, targets=150, test_targets=0))
    vectors = np.stack([truth.table()[t].numpy() for t in truth.targets])
    effects = np.stack([truth.effect(0, t) for t in range(150)])
    train, test = slice(0, 120), slice(120, 150)
    x = np.c_[vectors, np.ones(150)]
    ridge = np.linalg.solve(x[train].T @ x[train] + 5 * np.eye(x.shape[1]), x[train].T @ effects[train])
    explained = 1 - np.var(effects[test] - x[test] @ ridge) / np.var(effects[test] - effects[train].mean(0))
    assert explained > 0.4  # of the 72 % that is not common to all, 53 % can be known


@pytest.mark.parametrize(
    ("change", "words"),
    [({"targets": 0}, "targets=0"), ({"targets": 100}, "half of genes"), ({"contexts": ("a", "a")}, "different names"), ({"guide_efficiency": 1.2}, "guide_efficiency")],
)  # fmt: skip
def test_impossible_screens_are_refused(change: dict, words: str):
    with pytest.raises(VcellError, match=words):
        replace(SMALL_SCREEN, **change)


def test_an_existing_folder_is_not_touched(tmp_path: Path):
    with pytest.raises(VcellError, match="exists already"):
        simulate(tmp_path, SMALL_SCREEN)


def test_another_screen_in_the_folder_is_not_taken_for_this_one(tmp_path: Path):
    folder = ensure_screen(tmp_path / "screen", SMALL_SCREEN)
    assert ensure_screen(folder, SMALL_SCREEN) == folder
    with pytest.raises(VcellError, match=r"seed \(0 then, 5 now\)"):
        ensure_screen(folder, replace(SMALL_SCREEN, seed=5))


def field_screen(**changes: object) -> Screen:
    return Screen(genes=600, targets=80, test_targets=0, contexts=("A", "B", "C"), field=Field(**changes))  # type: ignore[arg-type]


def test_field_effects_are_heavy_tailed_and_weakly_shared():
    truth = Truth(field_screen())
    effects = np.array([[truth.effect(c, t) for t in range(80)] for c in range(3)])
    norms = np.linalg.norm(effects, axis=2)
    assert 4 < np.percentile(norms, 90) / np.percentile(norms, 10) < 25
    centred = effects - effects.mean(1, keepdims=True)
    likeness = [np.corrcoef(centred[0, t], centred[1, t])[0, 1] for t in range(80)]
    wrong = [np.corrcoef(centred[0, t], centred[1, t - 1])[0, 1] for t in range(80)]
    assert 0.08 < np.mean(likeness) < 0.35 and abs(np.mean(wrong)) < 0.05


def test_contexts_of_a_lineage_are_more_alike():
    truth = Truth(field_screen(lineages=2, lineage_share=0.8, null_targets=0.0))
    effects = np.array([[truth.effect(c, t) for t in range(80)] for c in range(3)])
    centred = effects - effects.mean(1, keepdims=True)
    near, far = ([np.corrcoef(centred[0, t], centred[c, t])[0, 1] for t in range(80)] for c in (2, 1))
    assert np.mean(near) > np.mean(far) + 0.3


def test_a_field_screen_is_written_with_its_parts_and_poorer_sources(tmp_path: Path):
    screen = replace(
        field_screen(), genes=200, targets=20, cells_per_target=20, controls_per_context=40, library_size=2000.0
    )
    simulate(tmp_path / "f", screen)
    truth = ad.read_h5ad(tmp_path / "f" / "truth" / "effects.h5ad")
    assert set(truth.layers) == set(screen.parts)
    source, last = (ad.read_h5ad(tmp_path / "f" / f"{c}.h5ad") for c in ("A", "C"))
    assert source.X.sum(1).mean() < 0.7 * last.X.sum(1).mean() and source.n_obs < last.n_obs
    assert (np.asarray(source.X.sum(0)).ravel() == 0).sum() > (np.asarray(last.X.sum(0)).ravel() == 0).sum()


@pytest.mark.parametrize("change", [{"panel": 0.0}, {"guide_failures": 2.0}, {"programmes": 0}])
def test_impossible_fields_are_refused(change: dict):
    with pytest.raises(VcellError, match=r"field\."):
        Field(**change)
