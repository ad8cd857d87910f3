"""What we score besides the official members."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse, stats

from vcell.score.differential import Calls
from vcell.score.embedding import Embedding, energy_distance_unbiased
from vcell.score.grouped import GroupedCells
from vcell.score.own import correlation, fold_correlation, spearman, top_recovery
from vcell.score.sums import CellGroup

RNG = np.random.default_rng(0)


def calls(fold: np.ndarray, called: np.ndarray) -> Calls:
    p = np.where(called, 1e-6, 0.5)[None]
    return Calls(["T"], p, p, fold[None], called[None])


def test_top_genes_are_the_called_ones_of_largest_change():
    fold = RNG.normal(0, 1, 200)
    real = calls(fold, np.arange(200) < 120)
    assert top_recovery(real, 0, real, 0) == 1
    nothing = calls(fold, np.zeros(200, bool))
    assert top_recovery(nothing, 0, real, 0) == 0 and np.isnan(top_recovery(real, 0, nothing, 0))
    wanted = set(np.argsort(-np.abs(fold[:120]))[:50])
    other = calls(fold[::-1].copy(), np.ones(200, bool))
    shared = len(wanted & set(np.argsort(-np.abs(fold[::-1]))[:50]))
    assert top_recovery(other, 0, real, 0) == shared / 50


def test_fold_changes_are_correlated_over_truly_changed_genes():
    fold, other = RNG.normal(0, 1, 100), RNG.normal(0, 1, 100)
    changed = np.arange(100) < 30
    found = fold_correlation(calls(other, ~changed), 0, calls(fold, changed), 0)
    assert found == pytest.approx(stats.spearmanr(other[:30], fold[:30]).statistic)
    assert fold_correlation(calls(np.zeros(100), changed), 0, calls(fold, changed), 0) == 0
    assert np.isnan(fold_correlation(calls(other, changed), 0, calls(fold, np.arange(100) < 2), 0))


def test_effects_are_correlated_over_genes():
    x, y = RNG.normal(0, 1, (3, 50)), RNG.normal(0, 1, (3, 50))
    np.testing.assert_allclose(correlation(x, y), [np.corrcoef(a, b)[0, 1] for a, b in zip(x, y, strict=True)])
    assert correlation(np.ones((1, 50)), y[:1]) == 0


def test_energy_distance_is_about_0_for_one_population_and_grows_with_the_shift():
    x, y = RNG.normal(0, 1, (300, 5)), RNG.normal(0, 1, (300, 5))
    near, far, farther = (energy_distance_unbiased(x, y + shift) for shift in (0, 1, 2))
    assert abs(near) < 0.05 < far < farther


def test_components_are_those_of_the_measured_cells_and_the_same_every_time():
    axis = RNG.normal(0, 1, 40)
    made = {
        k: np.maximum(3 + np.outer(RNG.normal(m, 1, 80), axis) + RNG.normal(0, 0.1, (80, 40)), 0)
        for k, m in (("A", 2), ("B", -2))
    }
    cells = GroupedCells({k: sparse.csr_matrix(v) for k, v in made.items()}, [f"G{i}" for i in range(40)], "B")
    found = Embedding.of(cells, None)
    a, b = (found.place(cells.group(k))[:, 0] for k in ("A", "B"))
    assert abs(a.mean() - b.mean()) > 3 * max(a.std(), b.std())
    np.testing.assert_array_equal(found.axes_GK, Embedding.of(cells, None).axes_GK)
    np.testing.assert_allclose(found.axes_GK.T @ found.axes_GK, np.eye(found.axes_GK.shape[1]), atol=1e-8)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("cells", [3, 90])
def test_cells_that_are_all_alike_lie_in_one_place(cells: int):
    alike = {k: sparse.csr_matrix(np.full((cells, 40), 2.0)) for k in ("A", "B")}
    found = Embedding.of(GroupedCells(alike, [f"G{i}" for i in range(40)], "B"), None)
    place = found.place(CellGroup(alike["A"]))
    assert place.shape == (cells, 1) and np.ptp(place) == 0
    assert energy_distance_unbiased(place, place) == 0


def test_rank_correlations_equal_scipys():
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 9, 60).astype(float), rng.standard_normal(60)
    x[3], y[4] = np.inf, -np.inf
    assert spearman(x, y) == stats.spearmanr(x, y).statistic
    assert np.isnan(spearman(x, np.ones(60)))
